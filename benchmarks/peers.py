"""One interface to jaxmixed and to its peers; a peer that cannot be imported is reported as absent."""

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.timing import version

DENSE_LIMIT = 1_000_000  # entries of a dense matrix of random effects that statsmodels is asked to work with


class Fitted(NamedTuple):
    """What a fit reports of itself."""

    loglik: float
    evaluations: int | None = None  # of the likelihood, where the package counts them
    seconds: float | None = None  # of a package that runs in a process of its own, by its own clock
    megabytes: float = nan  # and the memory that its first fit added at its peak


Fit = Callable[[], Fitted]


class NotRun(Exception):
    """Why a package is not asked to fit a problem."""


@dataclass(frozen=True)
class Problem:
    """A model with one grouping column: data and the formula in the forms that the packages want."""

    name: str
    data: pd.DataFrame
    fixed: str  # "y ~ x"
    random: str  # "x" or "1": what varies between groups
    group: str
    reml: bool = True

    @property
    def formula(self) -> str:
        """The model in lme4's syntax."""
        return f"{self.fixed} + ({self.random} | {self.group})"

    @property
    def factors(self) -> tuple[str, ...]:
        """The columns that are categories whatever their type."""
        return (self.group,)

    def statsmodels(self) -> tuple[pd.DataFrame, dict[str, object]]:
        """The data and the random part as statsmodels wants them."""
        varying = None if self.random == "1" else f"~{self.random}"
        return self.data, {"groups": self.group, "re_formula": varying}


@dataclass(frozen=True)
class Crossed:
    """A model with a random intercept for every level of several factors, crossed or nested."""

    name: str
    data: pd.DataFrame
    fixed: str
    groups: tuple[str, ...]  # columns, or interactions such as "a:b"
    reml: bool = True

    @property
    def formula(self) -> str:
        """The model in lme4's syntax."""
        return " + ".join([self.fixed, *(f"(1 | {group})" for group in self.groups)])

    @property
    def factors(self) -> tuple[str, ...]:
        """The columns that are categories whatever their type."""
        return tuple(dict.fromkeys(column for group in self.groups for column in group.split(":")))

    @property
    def levels(self) -> tuple[int, ...]:
        """The number of levels of each grouping factor."""
        return tuple(self.data.groupby(group.split(":")).ngroups for group in self.groups)

    def statsmodels(self) -> tuple[pd.DataFrame, dict[str, object]]:
        """The data and the random part as statsmodels wants them: variance components in one group."""
        columns = {
            group: f"0 + {':'.join(f'C({part})' for part in group.split(':'))}" for group in self.groups
        }
        return self.data.assign(all_rows=1), {"groups": "all_rows", "vc_formula": columns}


def jaxmixed(problem: Problem | Crossed) -> Fit:
    import jaxmixed as jm

    method = "reml" if problem.reml else "ml"

    def fit() -> Fitted:
        fitted = jm.mixed(problem.formula, problem.data, method=method)
        return Fitted(float(fitted.llf), int(fitted.diagnostics.evaluations))

    return fit


def lme_python(problem: Problem | Crossed) -> Fit:
    import lme_python as package
    import polars as pl

    data = pl.from_pandas(problem.data.astype(dict.fromkeys(problem.factors, str)))
    return lambda: Fitted(float(package.lmer(problem.formula, data=data, reml=problem.reml).log_likelihood))


def mixedlm(problem: Problem | Crossed) -> Fit:
    import mixedlm as package

    def fit() -> Fitted:
        fitted = package.lmer(problem.formula, problem.data, REML=problem.reml)
        return Fitted(float(fitted.logLik().value), int(fitted.function_evals))

    return fit


def _statsmodels_like(from_formula: Callable, problem: Problem | Crossed) -> Fit:
    data, random = problem.statsmodels()

    def fit() -> Fitted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Fitted(float(from_formula(problem.fixed, data, **random).fit(reml=problem.reml).llf))

    return fit


def mixedlm_rs(problem: Problem | Crossed) -> Fit:
    import mixedlm_rs as package

    return _statsmodels_like(package.mixedlm, problem)


def statsmodels(problem: Problem | Crossed) -> Fit:
    from statsmodels.formula.api import mixedlm as package

    if isinstance(problem, Crossed) and len(problem.data) * sum(problem.levels) > DENSE_LIMIT:
        size = f"{len(problem.data):,} × {sum(problem.levels):,}"
        raise NotRun(f"dense, with a matrix of {size} for the random effects")
    return _statsmodels_like(package, problem)


class RWorker:
    """An R process with data that waits for requests; the pipe costs some 0.1 ms a call."""

    script = ""

    def __init__(self, data: pd.DataFrame, *request: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "data.csv"
        data.to_csv(path, index=False)
        self.process = subprocess.Popen(
            ["Rscript", "--vanilla", str(Path(__file__).with_name(self.script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask("load", str(path), *request)
        path.unlink()

    def ask(self, *request: str) -> list[str]:
        """The words of the answer, without the first, which says what it is."""
        self.process.stdin.write("\t".join(request) + "\n")
        self.process.stdin.flush()
        kind, *answer = self.process.stdout.readline().split() or ["error", "the process of R has ended"]
        if kind == "error":
            raise RuntimeError(" ".join(answer))
        return answer


class Lme4Worker(RWorker):
    """An R process with the data and the formula of a problem."""

    script = "lme4_worker.R"

    def __init__(self, problem: Problem | Crossed) -> None:
        super().__init__(problem.data, problem.formula, str(problem.reml).upper(), ",".join(problem.factors))


class NlmeWorker(RWorker):
    """An R process with data for nlme's gls() and lme()."""

    script = "nlme_worker.R"

    def __init__(self, data: pd.DataFrame, factors: tuple[str, ...]) -> None:
        super().__init__(data, ",".join(factors))


def lme4(problem: Problem | Crossed) -> Fit:
    """Fits in a separate R process."""
    worker = Lme4Worker(problem)

    def fit() -> Fitted:
        loglik, evaluations, seconds, megabytes = worker.ask("fit")
        added = nan if megabytes == "NA" else float(megabytes)
        return Fitted(float(loglik), int(evaluations), float(seconds), added)

    return fit


PEERS: dict[str, Callable[[Problem | Crossed], Fit]] = {
    "jaxmixed": jaxmixed,
    "lme-python": lme_python,
    "mixedlm": mixedlm,
    "mixedlm-rs": mixedlm_rs,
    "statsmodels": statsmodels,
    "lme4": lme4,
}


def lme4_version() -> str:
    """Version of the lme4 that Rscript finds, or an empty string."""
    return r_version("lme4")


def r_version(package: str) -> str:
    """Version of a package that Rscript finds, or an empty string."""
    if shutil.which("Rscript") is None:
        return ""
    code = f'cat(as.character(packageVersion("{package}")))'
    done = subprocess.run(["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def available() -> dict[str, str]:
    """Name and version of every peer that can be run here, jaxmixed first."""
    found = {}
    for name in PEERS:
        if name == "lme4":
            found[name] = lme4_version()
        elif find_spec(name.replace("-", "_")) is not None:
            found[name] = version(name) or "from source"
        else:
            found[name] = ""
    return {name: release for name, release in found.items() if release}


def absent(found: dict[str, str]) -> str:
    """A sentence on the peers that were left out, for below a table."""
    missing = [name for name in PEERS if name not in found]
    return f"Not installed here, so not measured: {', '.join(missing)}." if missing else ""

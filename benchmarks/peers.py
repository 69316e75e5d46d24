"""One interface to jaxmixed and to its peers; a peer that cannot be imported is reported as absent."""

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from benchmarks.timing import version

Fit = Callable[[], float]  # fits the model and returns its log-likelihood


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


def jaxmixed(problem: Problem) -> Fit:
    import jaxmixed as jm

    method = "reml" if problem.reml else "ml"
    return lambda: float(jm.mixed(problem.formula, problem.data, method=method).llf)


def lme_python(problem: Problem) -> Fit:
    import lme_python as package
    import polars as pl

    data = pl.from_pandas(problem.data.astype({problem.group: str}))
    return lambda: float(package.lmer(problem.formula, data=data, reml=problem.reml).log_likelihood)


def mixedlm(problem: Problem) -> Fit:
    import mixedlm as package

    return lambda: float(package.lmer(problem.formula, problem.data, REML=problem.reml).logLik().value)


def _statsmodels_like(from_formula: Callable, problem: Problem) -> Fit:
    varying = None if problem.random == "1" else f"~{problem.random}"

    def fit() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = from_formula(problem.fixed, problem.data, groups=problem.group, re_formula=varying)
            return float(model.fit(reml=problem.reml).llf)

    return fit


def mixedlm_rs(problem: Problem) -> Fit:
    import mixedlm_rs as package

    return _statsmodels_like(package.mixedlm, problem)


def statsmodels(problem: Problem) -> Fit:
    from statsmodels.formula.api import mixedlm as package

    return _statsmodels_like(package, problem)


def lme4(problem: Problem) -> Fit:
    """Fits in a separate R process that waits for requests; the pipe costs some 0.1 ms a call."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "data.csv"
    problem.data.to_csv(path, index=False)
    worker = subprocess.Popen(
        ["Rscript", "--vanilla", str(Path(__file__).with_name("lme4_worker.R"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(request: str) -> str:
        worker.stdin.write(request + "\n")
        worker.stdin.flush()
        return worker.stdout.readline().split()[1]

    ask("\t".join(["load", str(path), problem.formula, str(problem.reml).upper(), problem.group]))
    shutil.rmtree(folder)
    return lambda: float(ask("fit"))


PEERS: dict[str, Callable[[Problem], Fit]] = {
    "jaxmixed": jaxmixed,
    "lme-python": lme_python,
    "mixedlm": mixedlm,
    "mixedlm-rs": mixedlm_rs,
    "statsmodels": statsmodels,
    "lme4": lme4,
}


def lme4_version() -> str:
    """Version of the lme4 that Rscript finds, or an empty string."""
    if shutil.which("Rscript") is None:
        return ""
    code = 'cat(as.character(packageVersion("lme4")))'
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

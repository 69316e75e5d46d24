"""Degrees of freedom, robust errors and profile intervals, jaxmixed against the packages people use for them.

What is timed starts from a fit that is there and ends with the table of all coefficients.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isnan, nan

import numpy as np
import pandas as pd

from benchmarks.crossed_problems import insteval
from benchmarks.large import slopes
from benchmarks.memory import forget_peak, limit_memory, memory
from benchmarks.peers import Crossed, Lme4Worker, Problem, r_version
from benchmarks.timing import milliseconds, paired_ratio, table

ROUNDS = 7
TIME_LIMIT = 240.0  # seconds for the fit and the table of one package on large data
MEMORY_SHARE = 0.6  # of the machine's memory that a package may ask for there
SATTERTHWAITE, KENWARD, CR2 = "Satterthwaite", "Kenward-Roger", "CR2"
PACKAGES = {SATTERTHWAITE: "lmerTest", KENWARD: "pbkrtest", CR2: "clubSandwich"}


def sleepstudy() -> Problem:
    """18 subjects on ten days."""
    import jaxmixed as jm

    data = pd.DataFrame(jm.datasets.load("sleepstudy"))[["Reaction", "Days", "Subject"]]
    return Problem("sleepstudy", data.astype({"Subject": str}), "Reaction ~ Days", "Days", "Subject")


def unbalanced(rows: int = 5000, groups: int = 500) -> Problem:
    """A random slope, a covariate of rows and one of groups; groups of three rows and more."""
    rng = np.random.default_rng(3)
    group = np.concatenate([np.repeat(np.arange(groups), 3), rng.integers(0, groups, rows - 3 * groups)])
    x, z = rng.normal(size=rows), rng.normal(size=groups)[group]
    intercept, slope = rng.normal(size=(2, groups))
    y = 1 + x + 0.3 * z + intercept[group] + 0.5 * slope[group] * x + rng.normal(size=rows)
    data = pd.DataFrame({"y": y, "x": x, "z": z, "g": group})
    return Problem(f"{groups} groups", data, "y ~ x + z", "x", "g")


def ratings(students: int) -> Crossed:
    """The ratings that some of the students of InstEval gave; departments differ too little among them."""
    whole = insteval()
    chosen = np.random.default_rng(5).choice(whole.data["s"].unique(), students, replace=False)
    data = whole.data[whole.data["s"].isin(chosen)].reset_index(drop=True)
    return Crossed(f"insteval, {students} students", data, whole.fixed, ("s", "d"))


LARGE: dict[str, Callable[[], Problem | Crossed]] = {
    "slopes, 10,000 groups": slopes,
    "slopes, 100,000 groups": partial(slopes, groups=100_000),
    "insteval, 100 students": partial(ratings, 100),
    "insteval": insteval,
}


def ours(fit: object, method: str, cluster: str) -> pd.DataFrame:
    """The table of coefficients."""
    if method == CR2:
        return fit.coef_table(vcov=fit.robust(kind="CR2", cluster=cluster))
    return fit.coef_table(ddf=method.lower())


def theirs(worker: Lme4Worker, method: str, cluster: str) -> tuple[float, float, np.ndarray]:
    """Seconds, memory in MB, and standard errors and degrees of freedom (2, p)."""
    request = {SATTERTHWAITE: ["satterthwaite"], KENWARD: ["kenward"], CR2: ["robust", cluster]}[method]
    seconds, megabytes, *numbers = worker.ask(*request)
    added = nan if megabytes == "NA" else float(megabytes)
    return float(seconds), added, np.array(numbers, dtype=float).reshape(2, -1)


def numbers_of(found: pd.DataFrame) -> np.ndarray:
    return found[["std_error", "df"]].to_numpy().T


def apart(found: np.ndarray, other: np.ndarray) -> list[str]:
    """Largest relative differences of standard errors and of degrees of freedom."""
    return [f"{difference:.0e}" for difference in np.abs(found / other - 1).max(axis=1)]


def fitted(problem: Problem | Crossed) -> object:
    import jaxmixed as jm

    return jm.mixed(problem.formula, problem.data, method="reml" if problem.reml else "ml")


def compared(problem: Problem, methods: Sequence[str]) -> list[list[str]]:
    """Rows for the methods on one problem; in each round a new fit, and every call in turn."""
    rows = []
    worker = Lme4Worker(problem) if r_version("lme4") else None
    for method in methods:
        package = PACKAGES[method]
        release = r_version(package) if worker else ""
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS + 1):  # the first compiles, and loads the package
            fit = fitted(problem)
            began = time.perf_counter()
            found = ours(fit, method, problem.group)
            seconds["ours"].append(time.perf_counter() - began)
            if release:
                elapsed, _, other = theirs(worker, method, problem.group)
                seconds["theirs"].append(elapsed)
        first, warm = seconds["ours"][0], seconds["ours"][1:]
        start = [problem.name, f"{len(problem.data):,}", method]
        mine = [f"jaxmixed (first call {first:.1f} s)", milliseconds(statistics.median(warm)), "1"]
        rows.append([*start, *mine, f"{fit.llf:.6f}", "", ""])
        if release:
            later = seconds["theirs"][1:]
            ratio = f"{paired_ratio(later, warm):.3g}"
            loglik = f"{float(worker.ask('fit')[0]):.6f}"
            timing = [f"{package} {release}", milliseconds(statistics.median(later)), ratio, loglik]
            rows.append([*start, *timing, *apart(numbers_of(found), other)])
    return rows


HEADER = ["data", "rows", "method", "by", "ms", "× jaxmixed", "log-likelihood", "SE apart", "df apart"]


def small_tables() -> str:
    """The table of everything that takes little."""
    rows = compared(sleepstudy(), [SATTERTHWAITE, KENWARD, CR2])
    return table(HEADER, rows + compared(unbalanced(), [SATTERTHWAITE, KENWARD, CR2]))


# Profile likelihood


def profiles(problem: Problem) -> str:
    """Table of times and limits of the profile intervals; by ML, which lme4 profiles whatever was fitted."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    worker = Lme4Worker(problem) if r_version("lme4") else None
    for _ in range(ROUNDS + 1):
        fit = fitted(problem)
        began = time.perf_counter()
        found = fit.profile(level=0.95).conf_int()
        seconds["ours"].append(time.perf_counter() - began)
        if worker:
            elapsed, *limits = worker.ask("profile")
            seconds["theirs"].append(float(elapsed))
    warm = seconds["ours"][1:]
    rows = [
        [f"jaxmixed (first call {seconds['ours'][0]:.1f} s)", milliseconds(statistics.median(warm)), "1", ""]
    ]
    if worker:
        later = seconds["theirs"][1:]
        ratio = f"{paired_ratio(later, warm):.3g}"
        other = np.array(limits, dtype=float).reshape(2, -1).T
        mine = np.roll(found.to_numpy(), -len(fit.params), axis=0)  # coefficients last, as there
        worst = np.abs(mine / other - 1).max()
        name = f"lme4 {r_version('lme4')} confint()"
        rows.append([name, milliseconds(statistics.median(later)), ratio, f"{worst:.0e}"])
    return table(
        ["95% profile intervals of all parameters (sleepstudy, ML) by", "ms", "× jaxmixed", "limits apart"],
        rows,
    )


# Large data


@dataclass(frozen=True)
class Result:
    """One method of one package on one problem; what was not measured is NaN."""

    rows: int
    first: float = nan  # seconds
    later: float = nan
    megabytes: float = nan  # added at the peak of the first table
    loglik: float = nan
    numbers: tuple[tuple[float, ...], ...] = ()  # standard errors, degrees of freedom
    reason: str = ""


def measure(package: str, method: str, name: str) -> Result:
    """One table in this process."""
    limit_memory(MEMORY_SHARE)
    problem = LARGE[name]()
    rows = len(problem.data)
    if package != "jaxmixed":
        worker = Lme4Worker(problem)
        loglik = float(worker.ask("fit")[0])
        try:
            seconds, megabytes, numbers = theirs(worker, method, "")
        except RuntimeError as error:
            return Result(rows, loglik=loglik, reason=str(error))
        return Result(rows, seconds, seconds, megabytes, loglik, tuple(map(tuple, numbers)))
    seconds = []
    for repeat in range(4):
        fit = fitted(problem)
        if not repeat:
            forget_peak()
            before = memory("VmRSS")
        began = time.perf_counter()
        found = ours(fit, method, "")
        seconds.append(time.perf_counter() - began)
        if not repeat:
            used = (memory("VmHWM") - before) / 1e6
    numbers = tuple(map(tuple, numbers_of(found)))
    return Result(rows, seconds[0], statistics.median(seconds[1:]), used, float(fit.llf), numbers)


def in_own_process(package: str, method: str, name: str) -> Result:
    """The measurement in a fresh process, with all that it starts ended when its time is over."""
    command = [sys.executable, "-m", "benchmarks.inference", "--measure", package, method, name]
    with tempfile.TemporaryDirectory() as cache:
        paths = {"PYTHONPATH": os.pathsep.join(sys.path), "JAXMIXED_CACHE_DIR": cache}
        child = subprocess.Popen(
            command, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            lines = child.communicate(timeout=TIME_LIMIT)[0].splitlines()
        except subprocess.TimeoutExpired:
            return Result(0, reason=f"not finished in {TIME_LIMIT:.0f} s, the fit included")
        finally:
            with suppress(ProcessLookupError):  # R, where it goes on after its caller's end
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        return Result(0, reason=f"the process ended with status {child.returncode}")
    return Result(**json.loads(lines[-1]))


def large_table() -> str:
    """The table of what takes long elsewhere, and why something is missing."""
    rows, reasons = [], []
    for name in LARGE:
        for method in (SATTERTHWAITE, KENWARD):
            package = PACKAGES[method]
            mine = in_own_process("jaxmixed", method, name)
            size = f"{mine.rows:,}"
            rows.append([name, size, method, "jaxmixed", *brief(mine), "1", f"{mine.loglik:.4f}", "", ""])
            if not (release := r_version(package)):
                continue
            other = in_own_process(package, method, name)
            title = [name, size, method, f"{package} {release}"]
            if other.reason:
                rows.append([*title, "none", "", "", "", "", "", ""])
                reasons.append(f"- {package} on {name}: {other.reason}.")
                continue
            ratio = f"{other.first / mine.later:.3g}"
            differences = apart(np.array(mine.numbers), np.array(other.numbers))
            rows.append([*title, *brief(other), ratio, f"{other.loglik:.4f}", *differences])
    header = [*HEADER[:4], "first, s", "later, s", "peak MB", *HEADER[5:]]
    return table(header, rows) + ("\n\n" + "\n".join(reasons) if reasons else "")


def brief(result: Result) -> list[str]:
    later = "-" if isnan(result.later) or result.later == result.first else f"{result.later:.3g}"
    return [
        f"{result.first:.3g}",
        later,
        "-" if isnan(result.megabytes) else f"{max(result.megabytes, 0):.0f}",
    ]


INTRODUCTION = """\
Standard errors and degrees of freedom of all coefficients, from a fit that is there to the table; REML. For
lmerTest that is `as_lmerModLmerTest()` and `summary()`, for pbkrtest `vcovAdj()` once and `Lb_ddf()` for each
coefficient, for clubSandwich `vcovCR(type = "CR2")` and `coef_test()`. Every table of jaxmixed's is of a fit
of its own; its first call compiles. Apart: the largest relative differences between the two packages; the
optimum of lme4's fit, which theirs start from, is only as good as its optimiser's tolerance."""


def run() -> str:
    """All tables, from an empty cache of compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMIXED_CACHE_DIR"] = cache
        return _tables()


def _tables() -> str:
    absent = [package for package in PACKAGES.values() if not r_version(package)]
    note = f"Not installed here, so not measured: {', '.join(absent)}." if absent else ""
    large = "Large and crossed data, each table in a process of its own; peers' tables are made once."
    parts = [
        INTRODUCTION,
        small_tables(),
        profiles(replace(sleepstudy(), reml=False)),
        large,
        large_table(),
        note,
    ]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=3, metavar=("PACKAGE", "METHOD", "PROBLEM"))
    given = parser.parse_args()
    print(json.dumps(asdict(measure(*given.measure))) if given.measure else run())


if __name__ == "__main__":
    main()

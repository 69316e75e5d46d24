"""What it costs to leave out every group, or every row, of a fit: by refits, and by derivatives."""

import os
import statistics
import tempfile
import time
from math import nan

import numpy as np
import pandas as pd

from benchmarks.peers import Lme4Worker, Problem, r_version
from benchmarks.timing import table

ROUNDS = 3
SAMPLE = 50
"""Rows that lme4 leaves out, one by one; the time for all of them follows from theirs."""


def schools() -> Problem:
    """Scores of 7,185 pupils in 160 schools; an intercept and a slope that vary between schools."""
    import jaxmixed as jm

    data = pd.DataFrame(jm.datasets.load("hsb82"))[["mathach", "ses", "school"]]
    return Problem("hsb82", data.astype({"school": str}), "mathach ~ ses", "ses", "school")


def ours(fit: object, cases: str, method: str) -> tuple[float, pd.DataFrame]:
    """Seconds, and the change of the coefficients without each case."""
    began = time.perf_counter()
    found = fit.influence(cases, method=method)
    measures = found.deletion if method == "deletion" else found.approximate
    change = measures.dfbeta
    return time.perf_counter() - began, change


def theirs(worker: Lme4Worker, cases: str, rows: list[int], count: int, p: int) -> tuple[float, np.ndarray]:
    """Seconds for all cases, and the change of the coefficients without each case, or each of some rows."""
    request = ["delete", cases] if cases != "rows" else ["deleterows", ",".join(str(i + 1) for i in rows)]
    seconds, *numbers = worker.ask(*request)
    change = np.array(numbers, dtype=float).reshape(-1, p)
    return float(seconds) * (count / len(rows) if cases == "rows" else 1.0), change


def compared(problem: Problem, cases: str) -> list[list[str]]:
    """Rows of the table: deletion and approximation, and lme4 once."""
    import jaxmixed as jm

    seconds: dict[str, list[float]] = {"deletion": [], "approximate": []}
    changes: dict[str, pd.DataFrame] = {}
    for _ in range(ROUNDS + 1):  # the first compiles
        fit = jm.mixed(problem.formula, problem.data)
        for method in seconds:
            elapsed, changes[method] = ours(fit, cases, method)
            seconds[method].append(elapsed)
    exact, approximate = changes["deletion"], changes["approximate"]
    apart = {"deletion": nan, "approximate": relative(approximate.to_numpy(), exact.to_numpy())}
    start = [problem.name, f"{len(exact):,} {cases if cases == 'rows' else cases + 's'}"]
    warm = {method: statistics.median(times[1:]) for method, times in seconds.items()}
    lines = []
    for method, title in (("deletion", "jaxmixed, refits"), ("approximate", "jaxmixed, derivatives")):
        ratio = f"{warm[method] / warm['deletion']:.3g}"
        numbers = [f"{seconds[method][0]:.3g}", f"{warm[method]:.3g}", ratio, f"{fit.llf:.6f}"]
        lines.append([*start, title, *numbers, "" if np.isnan(apart[method]) else f"{apart[method]:.0e}"])
    if release := r_version("lme4"):
        worker = Lme4Worker(problem)
        loglik = float(worker.ask("fit")[0])
        rows = np.random.default_rng(1).choice(len(problem.data), SAMPLE, replace=False).tolist()
        elapsed, change = theirs(worker, cases, rows, len(exact), len(fit.params))
        same = exact.iloc[rows] if cases == "rows" else exact.loc[problem.data["school"].unique()]
        name = f"lme4 {release} influence()" + (f", {SAMPLE} rows extrapolated" if cases == "rows" else "")
        numbers = ["-", f"{elapsed:.4g}", f"{elapsed / warm['deletion']:.3g}", f"{loglik:.6f}"]
        lines.append([*start, name, *numbers, f"{relative(change, same.to_numpy()):.0e}"])
    return lines


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference of changes, column by column, relative to the largest change there."""
    return float((np.abs(found - exact).max(axis=0) / np.abs(exact).max(axis=0)).max())


INTRODUCTION = """\
From a fit that is there to the changes of all coefficients when every case is left out in turn, by refits
to the optimum, or by derivatives of the estimates. An intercept and a slope vary between schools; REML.
lme4's `influence()` refits with `update()` from the estimates of the full fit. It is made once; of the rows
it is given a sample, refitted as `influence()` does, and the time for all is extrapolated. Apart: the
largest difference to jaxmixed's refits, relative to the largest change of that coefficient in the cases
compared; the changes are small, so that the tolerance of lme4's optimiser shows."""


def run() -> str:
    """The table, from an empty cache of compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMIXED_CACHE_DIR"] = cache
        problem = schools()
        rows = compared(problem, "school") + compared(problem, "rows")
    header = ["data", "cases", "by", "first, s", "later, s", "× refits", "log-likelihood", "apart"]
    return f"{INTRODUCTION}\n\n{table(header, rows)}"


if __name__ == "__main__":
    print(run())

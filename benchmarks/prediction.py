"""What predictions with standard errors cost, for many rows and for many groups, and ranks of groups."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.influence import schools
from benchmarks.large import intercepts
from benchmarks.memory import forget_peak, memory
from benchmarks.peers import Lme4Worker, Problem, r_version
from benchmarks.timing import milliseconds, paired_ratio, table

ROUNDS = 5
NEW_ROWS = 100_000
COMPARED = 1_000
"""Rows whose standard errors are compared."""
GROUPS = 1_000_000
SCHOOLS, DRAWS = 1_000, 1_000


# Rows


def new_rows(problem: Problem, count: int = NEW_ROWS) -> pd.DataFrame:
    """Rows of the data, drawn with replacement: known groups."""
    return problem.data.sample(count, replace=True, random_state=1).reset_index(drop=True)


def rows_table() -> str:
    """Conditional predictions of 10⁵ new rows of known groups with their standard errors."""
    import jaxmixed as jm

    problem = schools()
    new = new_rows(problem)
    peers = {}
    if release := r_version("lme4"):
        peers[f"lme4 {release}, its Cholesky factor by hand"] = "predict"
        if release := r_version("merTools"):
            peers[f"merTools {release} predictInterval(), 1,000 simulations"] = "intervals"
    worker = Lme4Worker(problem) if peers else None
    seconds: dict[str, list[float]] = {name: [] for name in ["jaxmixed", *peers]}
    errors: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.csv"
        new.drop(columns=problem.fixed.split(" ~ ")[0]).to_csv(path, index=False)
        for _ in range(ROUNDS + 1):  # the first compiles, and loads the packages
            fit = jm.mixed(problem.formula, problem.data)
            began = time.perf_counter()
            found = fit.predictions(new)
            seconds["jaxmixed"].append(time.perf_counter() - began)
            for name, request in peers.items():
                elapsed, _, *numbers = worker.ask(request, str(path), str(COMPARED))
                seconds[name].append(float(elapsed))
                errors[name] = np.array(numbers[COMPARED:], dtype=float)
        loglik = float(worker.ask("fit")[0]) if worker else np.nan
    own, warm = found["std_error"].to_numpy()[:COMPARED], seconds["jaxmixed"][1:]
    first = f"jaxmixed (first call {seconds['jaxmixed'][0]:.1f} s)"
    rows = [[first, milliseconds(statistics.median(warm)), "1", f"{fit.llf:.6f}", ""]]
    for name in peers:
        later = seconds[name][1:]
        apart = f"{np.abs(errors[name] / own - 1).max():.0e}"
        ratio = f"{paired_ratio(later, warm):.3g}"
        rows.append([name, milliseconds(statistics.median(later)), ratio, f"{loglik:.6f}", apart])
    title = f"{NEW_ROWS:,} new rows of hsb82's 160 schools by"
    return table([title, "ms", "× jaxmixed", "log-likelihood", "SE apart"], rows)


# Groups


@dataclass(frozen=True)
class Large:
    """One kind of prediction from a fit of 10⁶ groups."""

    rows: int
    first: float  # seconds
    later: float
    megabytes: float  # added at the peak of the first call
    loglik: float


def measure(kind: str, groups: int = GROUPS) -> Large:
    """Predictions in this process."""
    import jaxmixed as jm

    problem = intercepts(groups)
    fit = jm.mixed(problem.formula, problem.data)
    new = problem.data.drop_duplicates("g") if kind == "a row per group" else None
    seconds = []
    for repeat in range(2):
        if not repeat:
            forget_peak()
            before = memory("VmRSS")
        else:
            fit = jm.mixed(problem.formula, problem.data)
        began = time.perf_counter()
        if kind == "errors of the groups":
            count = len(fit.ranef_se(beta="estimated")["g"])
        else:
            count = len(fit.predictions(new))
        seconds.append(time.perf_counter() - began)
        if not repeat:
            used = (memory("VmHWM") - before) / 1e6
    return Large(count, *seconds, used, float(fit.llf))


KINDS = {
    "a row per group": "predictions of a new row per group",
    "all rows": "predictions of all rows of the fit",
    "errors of the groups": 'ranef_se(beta="estimated")',
}


def in_own_process(kind: str) -> Large:
    command = [sys.executable, "-m", "benchmarks.prediction", "--measure", kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Large(**json.loads(done.stdout.splitlines()[-1]))


def groups_table() -> str:
    """Predictions from a fit of 10⁶ groups, each in a process of its own."""
    rows = []
    for kind, title in KINDS.items():
        found = in_own_process(kind)
        times = [f"{found.first:.3g}", f"{found.later:.3g}", f"{found.megabytes:.0f}"]
        rows.append([title, f"{found.rows:,}", *times, f"{found.loglik:.4f}"])
    title = f"from a fit of {GROUPS:,} groups"
    return table([title, "rows", "first, s", "later, s", "peak MB", "log-likelihood"], rows)


# Ranks


def league(groups: int, rows: int = 20) -> Problem:
    """Schools with a covariate, an intercept and a slope of their own."""
    rng = np.random.default_rng(11)
    group = np.repeat(np.arange(groups), rows)
    x = rng.normal(size=group.size)
    intercept, slope = rng.normal(size=(2, groups))
    y = 1 + x + intercept[group] + 0.3 * slope[group] * x + 2 * rng.normal(size=group.size)
    return Problem("league", pd.DataFrame({"y": y, "x": x, "g": group}), "y ~ x", "x", "g")


def by_hand(fit: object, draws: int) -> pd.Series:
    """Expected ranks from the dense joint covariance of the predictions, as numpy alone would have them."""
    joint = fit.ranef_cov("g", beta="estimated")
    effect = joint.index.get_level_values(-1) == "(Intercept)"
    covariance = joint.to_numpy()[np.ix_(effect, effect)]
    values = fit.ranef()["g"]["(Intercept)"]
    root = np.linalg.cholesky(covariance)
    noise = np.random.default_rng(0).normal(size=(draws, len(values))) @ root.T
    order = np.argsort(-(values.to_numpy() + noise), axis=1)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(values) + 1), axis=1)
    return pd.Series(ranks.mean(axis=0), index=values.index)


def ranks_table(sizes: tuple[int, ...] = (SCHOOLS, 100 * SCHOOLS)) -> str:
    """Ranks of the groups with intervals and probabilities."""
    import jaxmixed as jm

    rows = []
    for groups in sizes:
        problem = league(groups)
        hand = groups <= 10 * SCHOOLS
        seconds: dict[str, list[float]] = {"ours": [], "hand": []}
        for _ in range(ROUNDS + 1 if hand else 2):
            fit = jm.mixed(problem.formula, problem.data)
            began = time.perf_counter()
            found = fit.ranks("g", num_draws=DRAWS)
            seconds["ours"].append(time.perf_counter() - began)
            if hand:
                began = time.perf_counter()
                expected = by_hand(fit, DRAWS)
                seconds["hand"].append(time.perf_counter() - began)
        warm, name = seconds["ours"][1:], f"{groups:,}"
        start = f"jaxmixed (first call {seconds['ours'][0]:.1f} s)"
        rows.append([name, start, milliseconds(statistics.median(warm)), "1", f"{fit.llf:.4f}", ""])
        if hand:
            later = seconds["hand"][1:]
            apart = np.abs(found["expected"].reindex(expected.index) - expected).max()
            ratio = f"{paired_ratio(later, warm):.3g}"
            title = "numpy, from the dense joint covariance"
            rows.append([name, title, milliseconds(statistics.median(later)), ratio, "", f"{apart:.2g}"])
    header = ["schools", f"ranks from {DRAWS:,} draws by", "ms", "× jaxmixed", "log-likelihood"]
    return table([*header, "expected ranks apart"], rows)


INTRODUCTION = """\
Predictions with the joint standard errors of fixed and predicted random effects, from a fit that is there;
REML. By hand, such errors come from the Cholesky factor that lme4 keeps. merTools draws fixed and random
effects as if they were independent, so that its errors are others, and uncertain by some percent. Apart:
the largest relative difference of standard errors; of expected ranks, the largest difference, which is that
of two simulations."""


def run() -> str:
    """All tables, from an empty cache of compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMIXED_CACHE_DIR"] = cache
        return "\n\n".join([INTRODUCTION, rows_table(), groups_table(), ranks_table()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", choices=list(KINDS))
    given = parser.parse_args()
    print(json.dumps(asdict(measure(given.measure))) if given.measure else run())


if __name__ == "__main__":
    main()

"""Trials with unstructured covariances of the residuals, autoregressive errors; gls() and lme() of nlme."""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.peers import NlmeWorker, r_version
from benchmarks.stages import recorded
from benchmarks.timing import milliseconds, paired_ratio, table

ROUNDS = 15
SLOW_ROUNDS = 3
SIZES = (1_000, 10_000, 100_000)
SLOW = 5.0
"""Seconds from which on a peer's call is made once."""


@dataclass(frozen=True)
class Longitudinal:
    """A model with structured residuals, as jaxmixed and as nlme write it."""

    name: str
    data: pd.DataFrame
    formula: str
    residuals: str
    fixed: str
    random: str  # of lme(), empty for gls()
    family: str
    time: str
    group: str
    variance_by: str = ""
    factors: tuple[str, ...] = ()
    reml: bool = True


def trial(subjects: int, visits: int, patterns: int, seed: int = 8) -> pd.DataFrame:
    """Two arms, correlated responses whose variance grows; each subject has one of some sets of visits."""
    rng = np.random.default_rng(seed)
    seen = np.ones((patterns, visits), dtype=bool)
    row = 1
    while row < patterns:  # half drop out, all may miss single visits
        drawn = rng.uniform(size=visits) > 0.15
        drawn[0] = True
        drawn[rng.integers(2, visits + 1) if row % 2 else visits :] = False
        if not (seen[:row] == drawn).all(axis=1).any():
            seen[row] = drawn
            row += 1
    rng = np.random.default_rng(seed + subjects)
    pattern = np.where(rng.uniform(size=subjects) < 0.5, 0, rng.integers(0, patterns, subjects))
    pattern[:patterns] = np.arange(patterns)
    lags = np.abs(np.arange(visits)[:, None] - np.arange(visits)[None, :])
    covariance = 0.8**lags * np.outer(*[np.linspace(1, 2, visits)] * 2)
    e = rng.normal(size=(subjects, visits)) @ np.linalg.cholesky(covariance).T
    arm = rng.integers(0, 2, subjects)
    y = 10 + 0.3 * np.arange(visits) * (1 + arm[:, None]) + e
    subject, visit = np.nonzero(seen[pattern])
    columns = {"id": subject, "visit": visit + 1, "arm": np.array(["drug", "placebo"])[arm[subject]]}
    return pd.DataFrame({**columns, "y": y[subject, visit]}).astype({"visit": "int64"})


def mmrm(subjects: int, visits: int, patterns: int) -> Longitudinal:
    """Mixed model for repeated measures: a mean for each visit of each arm, an unstructured covariance."""
    return Longitudinal(
        f"MMRM, {visits} visits, {subjects:,} subjects",
        trial(subjects, visits, patterns).astype({"visit": "category"}),
        "y ~ arm * visit",
        "us(visit | id)",
        "y ~ arm * factor(visit)",
        "",
        "unstructured",
        "visit",
        "id",
        "visit",
        ("id", "arm"),
    )


def ovary() -> dict[str, object]:
    """Follicles of mares, with a wave of one cycle (Pinheiro and Bates 2000)."""
    import jaxmixed as jm

    data = pd.DataFrame(jm.datasets.load("ovary"))
    data["sin1"], data["cos1"] = np.sin(2 * np.pi * data["Time"]), np.cos(2 * np.pi * data["Time"])
    return {"data": data, "time": "occasion", "group": "Mare", "factors": ("Mare",)}


def long_series(subjects: int = 50, length: int = 100) -> pd.DataFrame:
    """Series of an autoregressive process, a tenth of whose times are missing."""
    rng = np.random.default_rng(4)
    e = rng.normal(size=(subjects, length))
    for k in range(1, length):
        e[:, k] = 0.7 * e[:, k - 1] + np.sqrt(1 - 0.49) * e[:, k]
    subject, t = np.nonzero(rng.uniform(size=(subjects, length)) > 0.1)
    x = rng.normal(size=len(t))
    y = x + e[subject, t] + rng.normal(size=subjects)[subject]
    return pd.DataFrame({"id": subject, "t": t, "x": x, "y": y})


def small_problems() -> list[Longitudinal]:
    """What is fitted within a minute by gls() or lme()."""
    wave, mares = "follicles ~ sin1 + cos1", "ar1(occasion | Mare)"
    random = "Ovary, random intercept, AR(1)", f"{wave} + (1 | Mare)", "~ 1 | Mare"
    where = {"data": long_series(), "time": "t", "group": "id", "factors": ("id",)}
    series = partial(Longitudinal, fixed="y ~ x", **where)
    own = partial(Longitudinal, fixed=wave, residuals=mares, family="ar1", **ovary())
    return [
        mmrm(200, 4, 5),
        mmrm(1_000, 4, 5),
        mmrm(200, 10, 30),
        own("Ovary, AR(1)", formula=wave, random=""),
        own(random[0], formula=random[1], random=random[2]),
        series(
            "50 series, random intercept, AR(1)",
            formula="y ~ x + (1 | id)",
            residuals="ar1(t | id)",
            random="~ 1 | id",
            family="ar1",
        ),
        series(
            "50 series, exponential",
            formula="y ~ x",
            residuals="exp(t | id)",
            random="",
            family="exponential",
        ),
    ]


def ours(problem: Longitudinal) -> object:
    import jaxmixed as jm

    method = "reml" if problem.reml else "ml"
    return jm.mixed(problem.formula, problem.data, residuals=problem.residuals, method=method)


def theirs(worker: NlmeWorker, problem: Longitudinal) -> tuple[float, float]:
    """Log-likelihood and seconds."""
    method = "REML" if problem.reml else "ML"
    where = (problem.time, problem.group, problem.variance_by)
    request = (problem.fixed, problem.random, problem.family, *where, method, "default")
    loglik, seconds = worker.ask("fit", *request)
    return float(loglik), float(seconds)


def compared(problem: Longitudinal) -> list[list[str]]:
    """Two rows: jaxmixed and nlme, in turn, round by round."""
    worker = NlmeWorker(problem.data, problem.factors) if r_version("nlme") else None
    mine, other = [], []
    for round_number in range(ROUNDS + 1):  # the first compiles
        began = time.perf_counter()
        fit = ours(problem)
        mine.append(time.perf_counter() - began)
        if worker and (round_number == 0 or other[0] < SLOW):
            loglik, seconds = theirs(worker, problem)
            other.append(seconds)
    warm, start = mine[1:], [problem.name, f"{len(problem.data):,}"]
    best = max(fit.llf, loglik) if worker else fit.llf
    times = [f"{mine[0]:.1f}", milliseconds(statistics.median(warm)), "1"]
    rows = [[*start, "jaxmixed", *times, str(fit.diagnostics.evaluations), *reached(fit.llf, best)]]
    if worker:
        later = other[1:] or other * len(warm)
        times = ["", milliseconds(statistics.median(later)), f"{paired_ratio(later, warm):.3g}"]
        rows.append([*start, "lme()" if problem.random else "gls()", *times, "", *reached(loglik, best)])
    return rows


def reached(loglik: float, best: float) -> list[str]:
    return [f"{loglik:.6f}", f"{best - loglik:.0e}"]


HEADER = [
    "model",
    "rows",
    "by",
    "first, s",
    "warm ms",
    "× jaxmixed",
    "evaluations",
    "log-likelihood",
    "short by",
]


def scaled(subjects: int) -> list[str]:
    """How the parts of one warm call grow with the subjects, their 30 sets of visits being the same."""
    problem = mmrm(subjects, 10, 30)
    fit = ours(problem)
    calls, parts = [], []
    for _ in range(SLOW_ROUNDS):
        with recorded() as seconds:
            began = time.perf_counter()
            fit = ours(problem)
            calls.append(time.perf_counter() - began)
        parts.append(list(seconds.values()))
    stages = [milliseconds(value) for value in np.median(parts, axis=0)]
    evaluations = fit.diagnostics.evaluations
    each = milliseconds(np.median(parts, axis=0)[-1] / evaluations)
    sizes, whole = [f"{subjects:,}", f"{len(problem.data):,}"], milliseconds(statistics.median(calls))
    return [*sizes, whole, *stages[:-1], str(evaluations), each, f"{fit.llf:.4f}"]


SCALED_HEADER = [
    "subjects", "rows", "whole call, ms", "model frame", "pass over the rows", "fit", "evaluations",
    "one evaluation", "log-likelihood",
]  # fmt: skip

INTRODUCTION = """\
The whole call, from formula and data frame to the fitted model, REML; gls() and lme() of nlme with their
defaults, in an R process of their own, by its clock; medians of interleaved rounds, ratios within rounds.
First: the first call, with compilation, but for programs that a model above has compiled. Short by: how far
below the better of the two log-likelihoods."""


def run() -> str:
    """All tables, from an empty cache of compiled programs."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAXMIXED_CACHE_DIR"] = cache
        return _tables()


def _tables() -> str:
    release = r_version("nlme")
    note = f"nlme {release}." if release else "Not installed here, so not measured: nlme."
    rows = [row for problem in small_problems() for row in compared(problem)]
    growth = [scaled(subjects) for subjects in SIZES]
    ratio = (
        "One evaluation is of value, gradient and Hessian matrix; ten visits, 55 variances and correlations."
    )
    parts = [INTRODUCTION, table(HEADER, rows), note, table(SCALED_HEADER, growth), ratio]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(run())

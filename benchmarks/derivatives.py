"""Derivatives of a fit with respect to every response, against finite differences of whole refits."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.peers import Lme4Worker, Problem, lme4_version
from benchmarks.timing import milliseconds, table

Array = NDArray[np.float64]
ROUNDS = 5
STEPS = (1 / 64, 1 / 8, 1.0)
"""Of central differences, in standard deviations of the response: each package gets the one that serves it
best, for an optimiser that stops early needs a long one."""


def problems() -> list[Problem]:
    """18 subjects on ten days, and 7,185 pupils in 160 schools."""
    import jaxmixed as jm

    sleepstudy = pd.DataFrame(jm.datasets.load("sleepstudy"))[["Reaction", "Days", "Subject"]]
    schools = pd.DataFrame(jm.datasets.load("hsb82"))[["mathach", "ses", "school"]]
    return [
        Problem("sleepstudy", sleepstudy.astype({"Subject": str}), "Reaction ~ Days", "Days", "Subject"),
        Problem("hsb82", schools.astype({"school": str}), "mathach ~ ses", "ses", "school"),
    ]


def response(problem: Problem) -> Array:
    return problem.data[problem.fixed.split("~")[0].strip()].to_numpy(np.float64)


def moved(y: Array, rows: Array, step: float) -> Array:
    """Responses (n, 2 rows): each of the rows moved up, and down."""
    move = np.zeros((len(y), len(rows)))
    move[rows, np.arange(len(rows))] = step
    return np.concatenate([y[:, None] + move, y[:, None] - move], axis=1)


def difference(thetas: Array, step: float) -> Array:
    """Central differences (rows, k) of theta, (2 rows, k)."""
    up, down = np.split(thetas, 2)
    return (up - down) / (2 * step)


Thetas = Callable[[Array], Array]  # responses (n, B) -> theta (B, k)


def by_lme4(problem: Problem) -> Thetas:
    """One refit() after the other, in a process of R."""
    worker = Lme4Worker(problem)

    def thetas(Y: Array) -> Array:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "responses"
            path.write_bytes(Y.tobytes(order="F"))
            worker.ask("responses", str(path), str(len(Y)))
        _, count, *theta = worker.ask("bare", "1", "600")
        return np.array(theta, dtype=float).reshape(int(count), -1)

    return thetas


def by_refit_many(problem: Problem) -> Thetas:
    """All refits in one batch."""
    import jaxmixed as jm

    fit = jm.mixed(problem.formula, problem.data)
    return lambda Y: np.asarray(fit.refit_many(Y).theta)


def by_solve(problem: Problem) -> Callable[[Array], Array]:
    """The exact derivatives (n, k), compiled once."""
    import jax

    import jaxmixed as jm
    from jaxmixed.precision import double_precision

    model = jm.arrays(problem.formula, problem.data)
    program = jax.jit(jax.jacrev(lambda y: jm.solve(model.summarise(y=y)).theta))

    def jacobian(y: Array) -> Array:
        with double_precision():
            return np.asarray(program(y)).T

    return jacobian


def median_seconds(call: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def one(problem: Problem) -> list[list[str]]:
    """Rows of the table."""
    y = response(problem)
    rows = np.unique(np.linspace(0, len(y) - 1, 180).astype(int))
    step = STEPS[0] * y.std()
    batch, exact = by_refit_many(problem), by_solve(problem)
    # Extrapolated to a step of zero, from fits of the front end.
    coarse, fine = (difference(batch(moved(y, rows, h)), h) for h in (step, step / 2))
    truth = (4 * fine - coarse) / 3
    began = time.perf_counter()
    exact(y)
    first = time.perf_counter() - began
    baseline = median_seconds(partial(exact, y), ROUNDS)

    def row(name: str, seconds: float, found: Array) -> list[str]:
        error = np.abs(found - truth).max() / np.abs(truth).max()
        ratio = seconds / baseline
        return [problem.name, name, str(len(y)), milliseconds(seconds), f"{ratio:.3g}", f"{error:.1e}"]

    share = len(y) / len(rows)
    methods = {"fit.refit_many, differences": batch}
    if lme4_version():
        methods[f"lme4 {lme4_version()} refit(), differences"] = by_lme4(problem)
    found = [row("jax.jacrev of jm.solve", baseline, exact(y)[rows])]
    for name, thetas in methods.items():
        tried = {}
        for step in STEPS:
            Y = moved(y, rows, step * y.std())
            began = time.perf_counter()
            result = difference(thetas(Y), step * y.std())
            tried[step] = (share * (time.perf_counter() - began), result)
        best = min(STEPS, key=lambda step: np.abs(tried[step][1] - truth).max())
        found.append(row(f"{name} (step {best:g} sd)", *tried[best]))
    found[0][1] += f" (first call {first:.1f} s)"
    return found


def run() -> str:
    """Table of times and of errors."""
    header = ["data", "derivatives by", "responses", "ms", "× jm.solve", "largest error"]
    return "\n".join(
        [
            "Derivatives of theta, the parameters of the random effects' covariance, with respect to every",
            "response: random intercept and slope, REML, warm. Differences are central, two refits for each",
            "response, with the best of three steps; where there are more than 180 responses, 180 of them",
            "were done and the time is scaled to all. Errors are relative to the largest derivative; the",
            "truth is extrapolated from differences of refits at two steps.",
            "",
            table(header, [row for problem in problems() for row in one(problem)]),
        ]
    )


if __name__ == "__main__":
    print(run())

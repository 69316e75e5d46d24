"""How often 95% intervals of predictions hold what they predict, with few groups.

Every number comes from what a user would call: a fit by REML of simulated data, and its ``predictions``.
"""

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import in_processes
from benchmarks.timing import table

Array = NDArray[np.float64]
GROUPS = (6, 10, 30)
REPLICATES = 600
LEVEL = 0.95


@dataclass(frozen=True)
class Scenario:
    """A design, all its coefficients zero, with errors of standard deviation one.

    Attributes
    ----------
    title : str
    formula : str
        Of the response y.
    size : int
        Rows of a group.
    factor : tuple of tuples
        Lower triangle whose product with its transpose is the covariance of the random effects.
    """

    title: str
    formula: str
    size: int
    factor: tuple[tuple[float, ...], ...]


SCENARIOS = {
    "intercepts": Scenario("ICC 0.3, 5 rows in a group", "y ~ x + (1 | g)", 5, (((0.3 / 0.7) ** 0.5,),)),
    "slopes": Scenario(
        "sd of intercepts 1, of slopes 0.5, correlation 0.3, 8 rows in a group",
        "y ~ x + (x | g)",
        8,
        ((1.0, 0.0), (0.15, 0.5 * (1 - 0.3**2) ** 0.5)),
    ),
}

METHODS = {
    "variances known, z": {},
    "variances estimated, z": {"variance_parameters": "estimated"},
    "variances estimated, t": {"variance_parameters": "estimated", "ddf": "satterthwaite"},
}

TARGETS = {
    "mean of a known group": {"random": True, "interval": "confidence"},
    "new response, known group": {"random": True, "interval": "prediction"},
    "new response, new group": {"random": False, "interval": "prediction"},
}


@dataclass(frozen=True)
class Cell:
    """What happened to the replicates of one scenario with one number of groups.

    Attributes
    ----------
    singular : float
        Share of singular fits.
    covered : dict
        By target and method: share of groups (the same number in all replicates) whose interval held the
        truth, by replicate.
    widths : dict
        By target and method: median width, over replicates, of the intervals.
    """

    singular: float
    covered: dict[tuple[str, str], Array]
    widths: dict[tuple[str, str], float]


def simulate(key: str, groups: int, replicates: int) -> Cell:
    """All replicates of one cell: predictions at x = 1 in every group."""
    import jaxmixed as jm

    warnings.simplefilter("ignore")  # singular fits are counted
    scenario = SCENARIOS[key]
    rng = np.random.default_rng([groups, list(SCENARIOS).index(key)])
    g = np.repeat(np.arange(groups), scenario.size)
    x = rng.normal(size=len(g))  # the same in all replicates
    factor = np.array(scenario.factor)
    q, new = len(factor), {"g": np.arange(groups), "x": np.ones(groups)}
    singular, covered, widths = 0, {}, {}
    for _ in range(replicates):
        effects, others = (rng.normal(size=(groups, q)) @ factor.T for _ in range(2))
        noise = rng.normal(size=len(g))
        y = effects[g, 0] + (effects[g, 1] * x if q > 1 else 0.0) + noise
        fit = jm.mixed(scenario.formula, {"y": y, "g": g, "x": x})
        singular += fit.is_singular
        mean, error = effects.sum(axis=1), rng.normal(size=groups)
        truths = dict(zip(TARGETS, (mean, mean + error, others.sum(axis=1) + error), strict=True))
        for target, options in TARGETS.items():
            for method, knowledge in METHODS.items():
                found = fit.predictions(new, level=LEVEL, **options, **knowledge)
                low, high = found["conf_low"].to_numpy(), found["conf_high"].to_numpy()
                inside = (low <= truths[target]) & (truths[target] <= high)
                covered.setdefault((target, method), []).append(inside.mean())
                widths.setdefault((target, method), []).append(np.mean(high - low))
    shares = {name: np.array(values) for name, values in covered.items()}
    return Cell(singular / replicates, shares, {name: float(np.median(w)) for name, w in widths.items()})


def cell_table(cells: dict[tuple[str, int], Cell], target: str) -> str:
    header = ["scenario", "groups", "singular, %", *(f"{method}, %" for method in METHODS)]
    header += [f"width, {method}" for method in METHODS]
    rows: list[Sequence[str]] = []
    for (key, groups), cell in cells.items():
        shares = [f"{100 * cell.covered[target, method].mean():.1f}" for method in METHODS]
        widths = [f"{cell.widths[target, method]:.2f}" for method in METHODS]
        rows.append([key, str(groups), f"{100 * cell.singular:.1f}", *shares, *widths])
    return table(header, rows)


INTRODUCTION = """\
Simulated data, fitted by REML; random effects and errors normal. Coverage: percent of 95% intervals at x = 1
that hold the truth, averaged over groups and data sets, and median widths. Known variances: standard errors
at the estimated variances. Estimated ones: `variance_parameters="estimated"`; t: with
`ddf="satterthwaite"`, too. Singular fits are counted in."""


def run(replicates: int = REPLICATES) -> str:
    """A table for each target."""
    places = [(key, groups) for key in SCENARIOS for groups in GROUPS]
    results = in_processes([partial(simulate, key, groups, replicates) for key, groups in places])
    cells = dict(zip(places, results, strict=True))
    described = "\n".join(f"- {key}: `{own.formula}`; {own.title}" for key, own in SCENARIOS.items())
    tables = [f"{target[0].upper()}{target[1:]}:\n\n{cell_table(cells, target)}" for target in TARGETS]
    errors = [
        100 * values.std(ddof=1) / np.sqrt(replicates)
        for cell in cells.values()
        for values in cell.covered.values()
    ]
    note = (
        f"{replicates:,} data sets in each row; Monte-Carlo standard errors of the coverage between"
        f" {min(errors):.2f} and {max(errors):.2f}."
    )
    return "\n\n".join([INTRODUCTION, described, *tables, note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    print(run(parser.parse_args().replicates))


if __name__ == "__main__":
    main()

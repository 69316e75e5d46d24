"""How often 95% intervals hold the truth, and how often 5% tests reject it, with few groups.

Every number comes from what a user would call: a fit by REML of simulated data, and its tables.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.timing import RESULTS, table

Array = NDArray[np.float64]
GROUPS = (6, 10, 30)
REPLICATES = 10_000
VARIANCE_REPLICATES = 2_000
"""Data sets for the intervals of variances: for each a bootstrap, and the profile of a parameter."""
BOOTSTRAP = 500
LEVEL = 0.95
DDF = {"none": "z", "satterthwaite": "Satterthwaite", "kenward-roger": "Kenward-Roger"}
COLOURS = {"none": "#b2182b", "satterthwaite": "#2166ac", "kenward-roger": "#1b7837"}


@dataclass(frozen=True)
class Scenario:
    """A design, a true covariance of the random effects, and what is tested; all coefficients are zero.

    Attributes
    ----------
    title : str
    formula : str
        Of the response y.
    sizes : tuple of int
        Rows of the groups, in turn.
    sds : tuple of float
        Standard deviations of the random intercept and of the slope of x, where there is one, for a residual
        standard deviation of one; the correlation is `correlation`.
    tested : tuple of str
        Coefficients, tested jointly.
    """

    title: str
    formula: str
    sizes: tuple[int, ...]
    sds: tuple[float, ...]
    tested: tuple[str, ...]
    correlation: float = 0.3


UNEQUAL = (2, 3, 5, 8, 13, 20)
SCENARIOS = {
    "balanced": Scenario(
        "covariate of groups, ICC 0.3, 8 rows each",
        "y ~ z + (1 | g)",
        (8,),
        ((0.3 / 0.7) ** 0.5,),
        ("z",),
    ),
    "low ICC": Scenario(
        "covariate of groups, ICC 0.05, 2 to 20 rows",
        "y ~ z + (1 | g)",
        UNEQUAL,
        ((0.05 / 0.95) ** 0.5,),
        ("z",),
    ),
    "high ICC": Scenario(
        "covariate of groups, ICC 0.6, 2 to 20 rows",
        "y ~ z + (1 | g)",
        UNEQUAL,
        ((0.6 / 0.4) ** 0.5,),
        ("z",),
    ),
    "slope": Scenario(
        "slope that varies between groups, 4 to 10 rows",
        "y ~ x + (x | g)",
        (4, 6, 8, 10),
        (1.0, 0.5),
        ("x",),
    ),
    "three arms": Scenario(
        "three arms of groups, joint F test, ICC 0.2, 3 to 15 rows",
        "y ~ arm + x + (1 | g)",
        (3, 15, 6, 4, 10, 8, 12),
        (0.5,),
        ("armb", "armc"),
    ),
}


def layout(scenario: Scenario, groups: int) -> pd.DataFrame:
    """Covariates of one design: they are the same in all replicates."""
    rng = np.random.default_rng(groups)
    sizes = np.resize(scenario.sizes, groups)
    g = np.repeat(np.arange(groups), sizes)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=len(g)), "z": rng.normal(size=groups)[g]})
    return data.assign(arm=np.array(["a", "b", "c"])[g % 3])


def responses(scenario: Scenario, data: pd.DataFrame, count: int, seed: Sequence[int]) -> Array:
    """Responses (n, count)."""
    rng = np.random.default_rng(seed)
    g, x = data["g"].to_numpy(), data["x"].to_numpy()
    effects = rng.normal(size=(len(scenario.sds), g.max() + 1, count))
    if len(scenario.sds) == 2:
        r = scenario.correlation
        effects[1] = r * effects[0] + np.sqrt(1 - r**2) * effects[1]
    columns = [np.ones(len(g)), x]
    parts = (sd * z[:, None] * u[g] for sd, z, u in zip(scenario.sds, columns, effects, strict=False))
    return sum(parts) + rng.normal(size=(len(g), count))


@dataclass(frozen=True)
class Cell:
    """What happened to the replicates of one scenario with one number of groups.

    Attributes
    ----------
    replicates, singular, failed : int
        Failed fits have no part in the rest.
    covered : dict
        For each method, how many intervals of the first tested coefficient held zero.
    rejected : dict
        How many tests of all tested coefficients rejected at 5%.
    missing : dict
        How many gave no p-value, which is neither.
    """

    replicates: int
    singular: int
    failed: int
    covered: dict[str, int]
    rejected: dict[str, int]
    missing: dict[str, int]


def simulate(key: str, groups: int, replicates: int) -> Cell:
    """All replicates of one cell."""
    import jaxmixed as jm

    warnings.simplefilter("ignore")  # singular fits are counted
    scenario = SCENARIOS[key]
    data = layout(scenario, groups)
    Y = responses(scenario, data, replicates, [groups, list(SCENARIOS).index(key)])
    singular = failed = 0
    covered, rejected, missing = (dict.fromkeys(DDF, 0) for _ in range(3))
    for y in Y.T:
        fit = jm.mixed(scenario.formula, data.assign(y=y))
        if not fit.converged:
            failed += 1
            continue
        singular += fit.is_singular
        L = np.array(
            [[name == tested for name in fit.params.index] for tested in scenario.tested], dtype=float
        )
        for ddf in DDF:
            low, high = fit.coef_table(ddf=ddf).loc[scenario.tested[0], ["conf_low", "conf_high"]]
            p_value = fit.fixed_inference(ddf).joint_test(L).p_value
            missing[ddf] += not np.isfinite(p_value)
            covered[ddf] += low <= 0 <= high
            rejected[ddf] += p_value < 1 - LEVEL
    return Cell(replicates, singular, failed, covered, rejected, missing)


# Intervals of variances

PARAMETERS = {"sd((Intercept) | g)": "sd of the groups", "sd(Residual)": "residual sd"}


def variance_intervals(fit: object, seed: int) -> dict[str, Array]:
    """Limits (2, 2), a row for each of the parameters, by method."""
    columns = ["sd_or_corr_conf_low", "sd_or_corr_conf_high"]
    found = {"Wald, log scale": fit.varcorr[columns].to_numpy()}
    found["profile"] = fit.profile(list(PARAMETERS), LEVEL).conf_int(LEVEL).loc[list(PARAMETERS)].to_numpy()
    boot = fit.bootstrap(BOOTSTRAP, seed=seed)
    for method in ("percentile", "basic", "studentized"):
        limits = boot.conf_int(LEVEL, method).loc[list(PARAMETERS), ["conf_low", "conf_high"]]
        found[f"bootstrap, {method}"] = limits.to_numpy()
    return found


def simulate_variances(groups: int, replicates: int) -> tuple[int, dict[str, Array]]:
    """How many fits were singular, and how many intervals (2,) held the truth, by method."""
    import jaxmixed as jm

    warnings.simplefilter("ignore")
    scenario = SCENARIOS["balanced"]
    data = layout(scenario, groups)
    truth = np.array([*scenario.sds, 1.0])
    singular, covered = 0, {}
    for number, y in enumerate(responses(scenario, data, replicates, [groups, 99]).T):
        fit = jm.mixed(scenario.formula, data.assign(y=y))
        singular += fit.is_singular
        for method, limits in variance_intervals(fit, number).items():
            inside = (limits[:, 0] <= truth) & (truth <= limits[:, 1])
            covered[method] = covered.get(method, 0) + inside
    return singular, covered


# Tables and plot


def percent(count: float, of: int) -> str:
    return f"{100 * count / of:.1f}"


def standard_error(share: float, replicates: int) -> float:
    """Of a share by simulation, in percent."""
    return 100 * float(np.sqrt(share * (1 - share) / replicates))


def cell_table(cells: dict[tuple[str, int], Cell]) -> str:
    header = ["scenario", "groups", "singular, %"]
    header += [f"coverage, {name}" for name in DDF.values()] + [f"size, {name}" for name in DDF.values()]
    rows = []
    for (key, groups), cell in cells.items():
        used = cell.replicates - cell.failed
        shares = [percent(cell.covered[ddf], used) for ddf in DDF]
        sizes = [percent(cell.rejected[ddf], used) for ddf in DDF]
        rows.append([key, str(groups), percent(cell.singular, used), *shares, *sizes])
    return table(header, rows)


def variance_table(found: dict[int, tuple[int, dict[str, Array]]], replicates: int) -> str:
    rows = []
    for groups, (singular, covered) in found.items():
        for method, inside in covered.items():
            cells = [percent(count, replicates) for count in inside]
            rows.append([method, str(groups), percent(singular, replicates), *cells])
    header = ["95% interval", "groups", "singular, %"]
    return table(header + [f"coverage, {name}" for name in PARAMETERS.values()], rows)


def draw(cells: dict[tuple[str, int], Cell]) -> None:
    """Size of the tests against the number of groups, a panel for each scenario."""
    from matplotlib import pyplot as plt

    keys = list(dict.fromkeys(key for key, _ in cells))
    figure, grid = plt.subplots(2, 3, figsize=(9.6, 6.4), sharey=True, layout="constrained")
    axes = grid.ravel()
    for ax, key in zip(axes, keys, strict=False):
        groups = [count for name, count in cells if name == key]
        for shift, ddf in zip((-0.08, 0.0, 0.08), DDF, strict=True):
            here = [cells[key, count] for count in groups]
            used = np.array([cell.replicates - cell.failed for cell in here])
            share = np.array([cell.rejected[ddf] for cell in here]) / used
            error = 196 * np.sqrt(share * (1 - share) / used)
            style = {"color": COLOURS[ddf], "marker": "o", "markersize": 4, "capsize": 2, "label": DDF[ddf]}
            ax.errorbar(np.arange(len(groups)) + shift, 100 * share, error, **style)
        ax.axhline(5, color="0.3", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ax.set_xticks(range(len(groups)), [str(count) for count in groups])
        ax.set_xlabel("groups")
        ax.set_title(SCENARIOS[key].title.replace(", ", ",\n", 1), fontsize="medium", loc="left")
        ax.grid(axis="y", color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    for row in grid:
        row[0].set_ylabel("true hypotheses rejected, %")
    axes[-1].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(
        handles, labels, loc="center", frameon=False, title="5% tests, with 95% limits of simulation"
    )
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "coverage.png", dpi=110)
    plt.close(figure)


INTRODUCTION = """\
Simulated data, fitted by REML; true coefficients are zero, errors and random effects normal. Coverage:
percent of 95% intervals of the (first) tested coefficient that hold zero. Size: percent of 5% tests that
reject; with three arms the test is of two coefficients at once. Singular fits are counted in, as a user would
have them."""


def described() -> str:
    lines = (f"- {key}: {scenario.title}; `{scenario.formula}`" for key, scenario in SCENARIOS.items())
    return "\n".join(lines)


def in_processes(calls: Sequence[Callable[[], object]]) -> Iterable[object]:
    """Results in order, each core with a process of its own."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        yield from [future.result() for future in [pool.submit(call) for call in calls]]


def run(replicates: int = REPLICATES, variance_replicates: int = VARIANCE_REPLICATES) -> str:
    """Tables; the plot is written beside them."""
    places = [(key, groups) for key in SCENARIOS for groups in GROUPS]
    tests = [partial(simulate, key, groups, replicates) for key, groups in places]
    variances = [partial(simulate_variances, groups, variance_replicates) for groups in GROUPS]
    results = list(in_processes([*tests, *variances]))
    cells = dict(zip(places, results[: len(places)], strict=True))
    found = dict(zip(GROUPS, results[len(places) :], strict=True))
    draw(cells)
    failed = sum(cell.failed for cell in cells.values())
    missing = sum(sum(cell.missing.values()) for cell in cells.values())
    errors = [standard_error(share, replicates) for share in (0.05, 0.1, 0.2)]
    notes = (
        f"{replicates:,} replicates in each row; not converged: {failed}; tests without a p-value: {missing}."
        f" Monte-Carlo standard errors: {errors[0]:.2f} at 5 or 95%, {errors[1]:.2f} at 10 or 90%,"
        f" {errors[2]:.2f} at 20 or 80%."
    )
    error = standard_error(0.05, variance_replicates)
    more = (
        f"Intervals of the standard deviations in the balanced scenario, {variance_replicates:,} replicates"
        f" (Monte-Carlo standard error {error:.2f} at 95%), {BOOTSTRAP} bootstrap replicates in each. Where"
        " the groups' variance is estimated as zero, Wald and studentized intervals of it do not exist and"
        " count as misses."
    )
    picture = "![Rejections of true hypotheses against the number of groups](coverage.png)"
    last = variance_table(found, variance_replicates)
    return "\n\n".join([INTRODUCTION, described(), cell_table(cells), notes, picture, more, last])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    parser.add_argument("--variance-replicates", type=int, default=VARIANCE_REPLICATES)
    given = parser.parse_args()
    print(run(given.replicates, given.variance_replicates))


if __name__ == "__main__":
    main()

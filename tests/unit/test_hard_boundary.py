"""Estimates on and near the boundary: exact zeros where the likelihood has them, and nowhere else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.dense import Block, DenseModel
from tests.support.fits import fit as bundled
from tests.support.fits import quietly
from tests.support.simulated import one_way, outcome, students

ONE_WAY = "y ~ 1 + (1 | g)"
SLOPES = "y ~ x + (x | g)"


def ratio(fit: jm.MixedResults) -> float:
    return float(fit.random_terms[0].cov.iloc[0, 0] / fit.sigma**2)


# Dyestuff2: the estimate is exactly zero


def test_dyestuff2_by_maximum_likelihood_is_the_published_fit():
    fit = bundled("dyestuff2", "Yield ~ 1 + (1 | Batch)", "ml")
    assert fit.deviance == pytest.approx(162.87303665382575, rel=1e-13)
    assert fit.random_terms[0].cov.iloc[0, 0] == 0.0
    assert fit.sigma == pytest.approx(3.6532313513746537, rel=1e-13)
    assert fit.bse["(Intercept)"] == pytest.approx(0.6669857396443264, rel=1e-12)
    assert fit.params["(Intercept)"] == pytest.approx(5.6656, rel=1e-12)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_variance_of_zero_is_a_correct_answer_and_said_in_words(method):
    found = outcome("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"), method=method)
    fit = found.fit
    assert fit.is_singular
    assert fit.converged
    assert found.warnings == (found.text,)
    assert "Batch: the variance of (Intercept) is estimated as zero" in found.text
    assert "WARNING: the fit is singular" in str(fit.summary())
    assert "singular" in fit.summary()._repr_html_()
    row = fit.varcorr.iloc[0]
    assert row["estimate"] == row["sd_or_corr"] == 0
    assert row[["std_error", "conf_low", "conf_high", "sd_or_corr_std_error"]].isna().all()
    assert (fit.ranef()["Batch"] == 0).all(axis=None)
    assert (fit.ranef_se()["Batch"] == 0).all(axis=None)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_term_of_zero_variance_leaves_the_linear_model(method):
    data = jm.datasets.load("dyestuff2")
    fit = quietly("Yield ~ 1 + (1 | Batch)", data, method=method)
    linear = quietly("Yield ~ 1", data, method=method)
    assert fit.llf == pytest.approx(linear.llf, rel=1e-14)
    assert fit.sigma == pytest.approx(linear.sigma, rel=1e-13)
    np.testing.assert_allclose(fit.bse, linear.bse, rtol=1e-12)
    test = jm.lrtest(linear, fit)
    assert float(test.statistic) == pytest.approx(0, abs=1e-10)
    assert test.statistic >= 0
    assert test.p_value == pytest.approx(1)


def test_adding_a_term_of_zero_variance_leaves_another_term_alone():
    data = students(1, groups=24, size=8)
    data["half"] = data["g"] * 2 + np.tile([0, 0, 0, 0, 1, 1, 1, 1], 24)
    # Halves of a group that differ less than chance: their variance is estimated as zero.
    means = data.groupby("half")["y"].transform("mean") - data.groupby("g")["y"].transform("mean")
    data["y"] -= means
    fit = quietly("y ~ 1 + (1 | g) + (1 | half)", data)
    alone = quietly(ONE_WAY, data)
    assert [term.group for term in fit.random_terms if term.cov.iloc[0, 0] == 0] == ["half"]
    assert fit.llf == pytest.approx(alone.llf, rel=1e-12)
    np.testing.assert_allclose(fit.bse, alone.bse, rtol=1e-9)
    assert ratio_of(fit, "g") == pytest.approx(ratio(alone), rel=1e-7)


def ratio_of(fit: jm.MixedResults, group: str) -> float:
    return next(float(t.cov.iloc[0, 0]) for t in fit.random_terms if t.group == group) / fit.sigma**2


# One-way layouts: the closed form knows


NEAR_ZERO = (-0.1, -0.01, -1e-3, -1e-4, -1e-6, 1e-4, 1e-3, 3e-3, 0.01, 0.1)


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true_ratio", NEAR_ZERO)
def test_balanced_fits_near_zero_equal_the_closed_form(true_ratio, seed, method):
    design = one_way(true_ratio, seed=seed)
    between, within = design.variances(method)
    found = outcome(ONE_WAY, design.data, method=method)
    assert not any("may be wrong" in text for text in found.warnings), found.text
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-8)
    estimate = found.fit.random_terms[0].cov.iloc[0, 0]
    if between == 0:
        assert estimate == 0
        assert found.fit.is_singular
    else:
        assert estimate == pytest.approx(between, rel=1e-5)
        assert not found.fit.is_singular


@pytest.mark.parametrize(("true_ratio", "tolerance"), [(1e-3, 1e-7), (1.0, 1e-10), (2e4, 1e-9), (1e8, 1e-7)])
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_ratios_of_all_sizes_are_estimated_without_a_word(true_ratio, tolerance, method):
    design = one_way(true_ratio)
    found = outcome(ONE_WAY, design.data, method=method)
    between, within = design.variances(method)
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-8)
    if between:
        assert found.warnings == ()
        assert found.fit.random_terms[0].cov.iloc[0, 0] == pytest.approx(between, rel=tolerance)


@pytest.mark.parametrize("true_ratio", [1e-6, 1e-8, 1e-10, 1e-12])
def test_a_ratio_too_small_for_the_likelihood_is_right_or_zero_and_no_alarm(true_ratio):
    # Over 3e-8 in the ratio the deviance changes by 3e-13, its rounding: all these answers are optima.
    design = one_way(true_ratio)
    found = outcome(ONE_WAY, design.data)
    assert found.fit.converged, found.text
    assert found.fit.sigma**2 == pytest.approx(1, rel=1e-6)
    assert ratio(found.fit) == pytest.approx(true_ratio, abs=3e-8)
    assert found.fit.is_singular == (ratio(found.fit) == 0)


@pytest.mark.parametrize("true_ratio", [1e10, 1e12, 1e16])
def test_a_huge_ratio_is_right_and_no_alarm(true_ratio):
    found = outcome(ONE_WAY, one_way(true_ratio).data)
    assert found.warnings == ()
    assert ratio(found.fit) == pytest.approx(true_ratio, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-5, 1e-10, 1e-20])
def test_a_tiny_true_variance_is_not_taken_for_zero(unit):
    design = one_way(0.5, unit=unit)
    found = outcome(ONE_WAY, design.data)
    between, within = design.variances("reml")
    assert found.warnings == ()
    assert found.fit.random_terms[0].cov.iloc[0, 0] == pytest.approx(between, rel=1e-9)
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-10)
    assert (found.fit.varcorr["std_error"] > 0).all()


GRID = np.r_[0.0, np.geomspace(1e-4, 1e4, 60)]


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("seed", range(6))
def test_no_point_of_a_grid_is_better_than_the_estimate(seed, method):
    rng = np.random.default_rng(seed)
    g = np.sort(rng.permutation(np.resize(np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 8]), 36)))
    x = rng.normal(size=36)
    y = x + rng.choice([0.0, 0.1, 0.5]) * rng.normal(size=8)[g] + rng.normal(size=36)
    fit = quietly("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}, method=method)
    dense = DenseModel(y, np.column_stack([np.ones(36), x]), (Block(np.ones((36, 1)), g),))
    best = max(dense.profiled((np.array([[value]]),), method).llf for value in GRID)
    assert fit.llf >= best - 1e-9
    assert fit.llf == pytest.approx(dense.profiled((np.array([[ratio(fit)]]),), method).llf, rel=1e-11)


# Correlations of +-1 and lower ranks


def restricted(data: pd.DataFrame, ratio: float) -> float:
    """REML criterion of one-way data at a ratio of the variances, sigma profiled out."""
    groups = data.groupby("g")["y"]
    n, means = groups.size().to_numpy(float), groups.mean().to_numpy()
    weights = n / (1 + n * ratio)
    mean = np.average(means, weights=weights)
    within = data["y"] - groups.transform("mean")
    rss, df = within @ within + weights @ (means - mean) ** 2, len(data) - 1
    constants = np.log1p(n * ratio).sum() + np.log(weights.sum())
    return float(constants + df * (1 + np.log(2 * np.pi * rss / df)))


@pytest.mark.parametrize(
    ("sizes", "outliers"),
    [([22, 113], [4.9, -0.6, -4.5]), ([40, 60], [5.0, -4.5]), ([30, 40, 50], [4.5, -4.5, 4.0])],
)
def test_the_lower_of_two_minima_is_found_although_the_other_is_at_zero(sizes, outliers):
    # Large groups with equal means, whose moments say zero, and some groups of a single, distant row.
    rng = np.random.default_rng(1)
    large = [values - values.mean() for values in (rng.normal(size=size) for size in sizes)]
    y = np.concatenate([outliers, *large])
    g = np.repeat(np.arange(len(outliers) + len(sizes)), [1] * len(outliers) + sizes)
    data = pd.DataFrame({"y": y, "g": g})
    grid = [restricted(data, ratio) for ratio in np.append(0.0, np.geomspace(1e-4, 1e3, 500))]
    assert grid[0] < grid[1]  # zero is a minimum too
    fit = jm.mixed("y ~ 1 + (1 | g)", data)
    assert fit.deviance <= min(grid) < grid[0] - 10
    assert fit.deviance == pytest.approx(restricted(data, fit.theta[0] ** 2), abs=1e-8)


def perfectly_correlated(sign: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(32), 10)
    x, b = rng.normal(size=320), rng.normal(size=32)
    return pd.DataFrame({"y": 1 + x + b[g] + sign * 0.5 * b[g] * x + rng.normal(size=320), "x": x, "g": g})


def assert_singularity_is_said(fit: jm.MixedResults) -> None:
    """`is_singular` says the same as the estimated matrices, and boundary parameters have no errors."""
    smallest = []
    for term in fit.random_terms:
        sd = np.sqrt(np.diagonal(term.cov))
        if (sd == 0).any():
            smallest.append(0.0)
            continue
        smallest.append(np.linalg.eigvalsh(term.cov / np.outer(sd, sd))[0])
    assert fit.is_singular == (min(smallest) < 1e-9), smallest
    table = fit.varcorr
    correlations = table[table["effect2"].notna()]
    assert (correlations["sd_or_corr"].abs() <= 1).all()
    edge = correlations[correlations["sd_or_corr"].abs() > 1 - 1e-9]
    assert edge["sd_or_corr_std_error"].isna().all()
    if len(edge):
        assert fit.is_singular


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_correlation_of_one_is_reached_exactly_and_flagged(sign, seed):
    found = outcome(SLOPES, perfectly_correlated(sign, seed))
    assert found.fit.converged, found.text
    assert_singularity_is_said(found.fit)
    correlation = found.fit.varcorr.loc[1, "sd_or_corr"]
    if found.fit.is_singular:
        assert correlation == pytest.approx(sign, abs=1e-9)
        assert "the correlation of" in found.text


def test_perfect_correlations_are_among_those_tried():
    fits = [quietly(SLOPES, perfectly_correlated(1.0, seed)) for seed in range(8)]
    assert sum(fit.is_singular for fit in fits) >= 2


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_singularity_is_flagged_exactly_when_the_matrix_is_singular(seed, slope):
    found = outcome(SLOPES, students(seed, groups=32, slope=slope))
    assert found.fit.converged, found.text
    assert_singularity_is_said(found.fit)


def test_moving_the_origin_does_not_hide_a_singular_fit():
    data = students(0)  # a slope without variance: its estimate is singular
    base = quietly(SLOPES, data)
    assert base.is_singular
    for shift in (-1.0, 10.0, 100.0):
        moved = quietly(SLOPES, data.assign(x=data["x"] + shift))
        assert moved.llf == pytest.approx(base.llf, abs=1e-8)
        assert moved.is_singular
        assert_singularity_is_said(moved)


def test_a_matrix_of_rank_two_without_a_zero_variance_is_flagged_with_its_direction():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(32), 10)
    x, z = rng.normal(size=(2, 320))
    b = rng.normal(size=(32, 2)) @ np.array([[1.0, 0.5, 0.8], [0.0, 0.9, -0.7]])
    y = 1 + x + b[g, 0] + b[g, 1] * x + b[g, 2] * z + 0.5 * rng.normal(size=320)
    found = outcome("y ~ x + (x + z | g)", {"y": y, "x": x, "z": z, "g": g})
    fit = found.fit
    assert fit.converged, found.text
    assert (np.diagonal(fit.random_terms[0].cov) > 0.1).all()
    assert_singularity_is_said(fit)
    assert fit.is_singular
    assert "the combination" in found.text
    assert all(name in found.text for name in ("(Intercept)", "x", "z"))


@pytest.mark.parametrize("structure", ["independent", "identity", "exchangeable"])
@pytest.mark.parametrize("seed", range(4))
def test_restricted_structures_on_the_boundary_are_valid(structure, seed):
    data = students(seed, between=0.0, groups=32)
    found = outcome(SLOPES, data, covariance=structure)
    assert found.fit.converged, found.text
    assert found.fit.llf >= quietly("y ~ x", data).llf - 1e-9
    if structure != "exchangeable":
        assert_singularity_is_said(found.fit)


@pytest.mark.parametrize("seed", range(6))
def test_larger_models_never_have_a_smaller_likelihood(seed):
    data = students(seed, between=0.1, groups=32)
    chain = ["y ~ x", "y ~ x + (1 | g)", "y ~ x + (x || g)", "y ~ x + (x | g)"]
    llf = [quietly(formula, data, method="ml").llf for formula in chain]
    assert all(larger >= smaller - 1e-9 for smaller, larger in pairwise(llf)), llf

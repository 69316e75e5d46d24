"""Hard crossed designs: boundaries, poor identifiability, odd shapes, sizes beyond memory.

Quick tests keep to 24 levels of one factor and 6 of the other, so that two compiled programs serve them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.dense import Block, DenseModel
from tests.support.fits import quietly
from tests.support.simulated import outcome

TWO = "y ~ 1 + (1 | a) + (1 | b)"
SLOPES = "y ~ x + (x | a) + (1 | b)"


def variances(fit: jm.MixedResults) -> dict[str, float]:
    """Intercept variance by grouping."""
    return {term.group: float(term.cov.iloc[0, 0]) for term in fit.random_terms}


# Balanced two-way layouts: the restricted likelihood has a closed form


class TwoWay(NamedTuple):
    """Balanced crossed data of chosen sums of squares: of a, of b, within."""

    data: pd.DataFrame
    sums: tuple[float, float, float]
    sizes: tuple[int, int, int]  # levels of a, levels of b, rows in a cell

    @property
    def dfs(self) -> tuple[int, int, int]:
        a, b, r = self.sizes
        return a - 1, b - 1, a * b * r - a - b + 1

    def mean_squares(self) -> tuple[float, float, float]:
        """Restricted maximum likelihood of the expected mean squares, which are at least that within.

        Where a mean square falls below the one within, both are pooled, the smallest first: the pools of
        adjacent violators of a tree order (Thompson 1962, Annals of Mathematical Statistics 33, 273-289).
        """
        pooled, df = self.sums[2], self.dfs[2]
        found = {k: self.sums[k] / self.dfs[k] for k in (0, 1)}
        for k in sorted(found, key=found.__getitem__):
            if self.sums[k] / self.dfs[k] < pooled / df:
                pooled, df = pooled + self.sums[k], df + self.dfs[k]
                del found[k]
        return found.get(0, pooled / df), found.get(1, pooled / df), pooled / df

    def reml(self) -> tuple[float, float, float]:
        """Variances of a and of b, residual variance."""
        a, b, r = self.sizes
        of_a, of_b, within = self.mean_squares()
        return (of_a - within) / (b * r), (of_b - within) / (a * r), within

    def deviance(self) -> float:
        """REML criterion at its minimum; that of the mean cancels against log|X'V^-1 X| but for log n."""
        n = int(np.prod(self.sizes))
        terms = zip(self.dfs, self.sums, self.mean_squares(), strict=True)
        return float(
            (n - 1) * np.log(2 * np.pi) + np.log(n) + sum(df * np.log(ms) + ss / ms for df, ss, ms in terms)
        )


def two_way(
    ratio_a: float, ratio_b: float, sizes: tuple[int, int, int] = (24, 6, 1), seed: int = 0
) -> TwoWay:
    """Data whose analysis of variance estimates these ratios to the residual variance, which it puts at 1."""
    rng = np.random.default_rng(seed)
    a, b, r = sizes
    noise = rng.normal(size=sizes)
    noise -= noise.mean(axis=(1, 2), keepdims=True) + noise.mean(axis=(0, 2), keepdims=True) - noise.mean()
    noise *= np.sqrt((a * b * r - a - b + 1) / (noise**2).sum())
    effects = []
    for levels, rows, ratio in ((a, b * r, ratio_a), (b, a * r, ratio_b)):
        effect = rng.normal(size=levels)
        effect -= effect.mean()
        effects.append(effect * np.sqrt((levels - 1) * (1 / rows + ratio) / (effect**2).sum()))
    y = noise + effects[0][:, None, None] + effects[1][None, :, None] + 3.0
    of_a, of_b = y.mean(axis=(1, 2)), y.mean(axis=(0, 2))
    within = y - of_a[:, None, None] - of_b[None, :, None] + y.mean()
    sums = (
        b * r * float(((of_a - y.mean()) ** 2).sum()),
        a * r * float(((of_b - y.mean()) ** 2).sum()),
        float((within**2).sum()),
    )
    codes = np.indices(sizes).reshape(3, -1)
    return TwoWay(pd.DataFrame({"y": y.ravel(), "a": codes[0], "b": codes[1]}), sums, sizes)


RATIOS = (-0.04, -0.01, -1e-3, -1e-5, 1e-5, 1e-3, 0.02, 1.0, 50.0)


@pytest.mark.parametrize("ratio_b", RATIOS)
@pytest.mark.parametrize("ratio_a", RATIOS)
def test_balanced_fits_on_and_near_the_boundary_equal_the_closed_form(ratio_a: float, ratio_b: float) -> None:
    design = two_way(ratio_a, ratio_b)
    fit = quietly(TWO, design.data)
    assert fit.converged, fit.diagnostics.messages
    of_a, of_b, within = design.reml()
    assert fit.sigma**2 == pytest.approx(within, rel=1e-8)
    assert fit.deviance == pytest.approx(design.deviance(), rel=1e-11)
    for group, expected in (("a", of_a), ("b", of_b)):
        found = variances(fit)[group]
        if expected == 0:
            assert found == 0
        else:
            # Over 3e-8 in the ratio the deviance changes by its rounding.
            assert found == pytest.approx(expected, rel=1e-6, abs=3e-8)
    assert fit.is_singular == (of_a == 0 or of_b == 0)
    assert len(fit.diagnostics.singular_terms) == (of_a == 0) + (of_b == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 10), (2, 12, 3), (12, 2, 3), (6, 5, 4), (9, 7, 1), (30, 3, 1)])
@pytest.mark.parametrize("ratios", [(0.5, 2.0), (-0.02, 0.7), (-0.02, -0.01)])
def test_few_levels_and_single_rows_in_the_cells_equal_the_closed_form(
    sizes: tuple[int, int, int], ratios: tuple[float, float]
) -> None:
    design = two_way(*ratios, sizes=sizes)
    found = outcome(TWO, design.data)
    assert found.fit is not None
    assert found.fit.converged, found.text
    of_a, of_b, within = design.reml()
    assert found.fit.deviance == pytest.approx(design.deviance(), rel=1e-11)
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-7)
    assert variances(found.fit) == {"a": pytest.approx(of_a, rel=1e-6), "b": pytest.approx(of_b, rel=1e-6)}


def test_conditional_modes_of_a_balanced_layout_shrink_the_means_of_the_levels() -> None:
    design = two_way(0.6, 1.5)
    fit = quietly(TWO, design.data)
    of_a, of_b, within = design.mean_squares()
    a, b, r = design.sizes
    for group, mean_square, size in (("a", of_a, b * r), ("b", of_b, a * r)):
        means = design.data.groupby(group)["y"].mean()
        shrinkage = 1 - within / mean_square
        expected = shrinkage * (means - means.mean())
        np.testing.assert_allclose(fit.ranef()[group]["(Intercept)"], expected, rtol=1e-6, atol=1e-9)
        # All levels are alike, so that they have one standard error.
        assert np.ptp(fit.ranef_se()[group]["(Intercept)"]) < 1e-9 * np.sqrt(mean_square / size)


@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4, 2e4, 1e6])
def test_large_ratios_are_estimated_without_a_word(ratio: float) -> None:
    design = two_way(ratio, 2 * ratio)
    found = outcome(TWO, design.data)
    assert found.warnings == ()
    of_a, of_b, within = design.reml()
    assert found.fit.sigma**2 == pytest.approx(within, rel=1e-7)
    assert found.fit.deviance == pytest.approx(design.deviance(), rel=1e-9)
    assert variances(found.fit) == {"a": pytest.approx(of_a, rel=1e-6), "b": pytest.approx(of_b, rel=1e-6)}


@pytest.mark.parametrize("ratio", [1e8, 1e10])
def test_a_ratio_too_large_for_float64_is_right_or_not_silent(ratio: float) -> None:
    # Both factors hold the mean: their common direction is a difference of numbers 1e8 times as large.
    design = two_way(ratio, 2 * ratio)
    found = outcome(TWO, design.data)
    if not found.text:
        assert found.fit.sigma**2 == pytest.approx(design.reml()[2], rel=1e-5)
        assert found.fit.deviance == pytest.approx(design.deviance(), rel=1e-7)


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_units_do_not_move_a_boundary(unit: float) -> None:
    design = two_way(-0.02, 0.5)
    base, moved = quietly(TWO, design.data), quietly(TWO, design.data.assign(y=unit * design.data["y"]))
    assert variances(base)["a"] == variances(moved)["a"] == 0
    assert variances(moved)["b"] == pytest.approx(unit**2 * variances(base)["b"], rel=1e-7)


# Variances of zero are said by name


def crossed(seed: int, *, of_a: float = 1.0, of_b: float = 1.0, n: int = 400) -> pd.DataFrame:
    """Unbalanced data: 24 levels of a, 6 of b, some cells empty; standard deviations of the effects."""
    rng = np.random.default_rng(seed)
    a = rng.permutation(np.concatenate([np.arange(24), rng.integers(24, size=n - 24)]))
    b = rng.permutation(np.concatenate([np.arange(6), rng.integers(6, size=n - 6)]))
    x = rng.normal(size=n)
    y = 1 + of_a * rng.normal(size=24)[a] + of_b * rng.normal(size=6)[b] + rng.normal(size=n)
    return pd.DataFrame({"y": y, "x": x, "a": a, "b": b})


def levelled(data: pd.DataFrame, group: str) -> pd.DataFrame:
    """Take the estimated effects of a factor, beside the other one, out of the response: none is left."""
    dummies = {name: pd.get_dummies(data[name]).to_numpy(dtype=float) for name in "ab"}
    own = dummies[group]
    both = np.column_stack([own, *(columns for name, columns in dummies.items() if name != group)])
    effects = np.linalg.lstsq(both, data["y"].to_numpy())[0][: own.shape[1]]
    return data.assign(y=data["y"] - own @ (effects - effects.mean()))


ML_SLOWLY = [pytest.param("ml", marks=pytest.mark.slow), "reml"]


@pytest.mark.parametrize("method", ML_SLOWLY)
@pytest.mark.parametrize(("zero", "kept"), [("a", "b"), ("b", "a")])
def test_a_factor_without_variance_is_exactly_zero_and_named(zero: str, kept: str, method: str) -> None:
    data = levelled(crossed(1), zero)
    found = outcome(TWO, data, method=method)
    fit, alone = found.fit, quietly(f"y ~ 1 + (1 | {kept})", data, method=method)
    assert fit.converged, found.text
    assert fit.is_singular
    assert variances(fit)[zero] == 0
    assert variances(fit)[kept] > 0
    sentence = f"{zero}: the variance of (Intercept) is estimated as zero"
    assert fit.diagnostics.singular_terms == (sentence,)
    assert found.warnings == (found.text,)
    assert sentence in found.text
    printed = " ".join(str(fit.summary()).split())
    assert "WARNING: the fit is singular" in printed
    assert sentence in printed
    row = fit.varcorr[fit.varcorr["group"] == zero].iloc[0]
    assert row["estimate"] == 0
    assert row[["std_error", "conf_low", "conf_high"]].isna().all()
    assert fit.llf >= alone.llf - 1e-10 * abs(alone.llf)
    assert fit.llf == pytest.approx(alone.llf, rel=1e-12)
    np.testing.assert_allclose(fit.params, alone.params, rtol=1e-7)
    np.testing.assert_allclose(fit.bse, alone.bse, rtol=1e-8)
    assert (fit.ranef()[zero] == 0).all(axis=None)
    assert (fit.ranef_se()[zero] == 0).all(axis=None)
    np.testing.assert_allclose(fit.ranef()[kept], alone.ranef()[kept], rtol=1e-5, atol=1e-7)
    # Standard errors of the other parameters are those of the model without the term.
    others = fit.varcorr[fit.varcorr["group"] != zero]
    np.testing.assert_allclose(others["std_error"], alone.varcorr["std_error"], rtol=1e-5)
    test = jm.lrtest(alone, fit)
    assert test.statistic == 0
    assert test.p_value == pytest.approx(1)


@pytest.mark.parametrize("method", ML_SLOWLY)
def test_two_factors_without_variance_leave_the_linear_model(method: str) -> None:
    design = two_way(-0.03, -0.02)
    found = outcome(TWO, design.data, method=method)
    linear = quietly("y ~ 1", design.data, method=method)
    assert found.fit.converged, found.text
    assert variances(found.fit) == {"a": 0.0, "b": 0.0}
    assert found.fit.llf == pytest.approx(linear.llf, rel=1e-13)
    assert found.fit.sigma == pytest.approx(linear.sigma, rel=1e-12)
    np.testing.assert_allclose(found.fit.bse, linear.bse, rtol=1e-11)
    for group in "ab":
        assert f"{group}: the variance of (Intercept) is estimated as zero" in found.text
    assert "chi2(2) = 0.00, p = 1.0000" in str(found.fit.summary())


@pytest.mark.parametrize("seed", range(6))
def test_fits_to_data_simulated_without_an_effect_are_no_worse_than_the_model_without_it(seed: int) -> None:
    data = crossed(seed, of_a=0.0)
    found = outcome(TWO, data)
    alone = quietly("y ~ 1 + (1 | b)", data)
    assert found.fit.converged, found.text
    assert found.fit.llf >= alone.llf - 1e-10 * abs(alone.llf)
    assert found.fit.is_singular == (variances(found.fit)["a"] == 0)
    assert ("a: the variance" in found.text) == found.fit.is_singular


def test_data_without_an_effect_end_on_both_sides_of_the_boundary() -> None:
    fits = [quietly(TWO, crossed(seed, of_a=0.0)) for seed in range(6)]
    assert {fit.is_singular for fit in fits} == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_point_of_a_grid_is_better_than_the_estimate(seed: int) -> None:
    data = crossed(seed, of_a=[0.0, 0.2, 1.0, 0.1][seed], of_b=[0.1, 0.0, 0.3, 2.0][seed], n=80)
    fit = quietly("y ~ x + (1 | a) + (1 | b)", data, method="ml")
    blocks = tuple(Block(np.ones((80, 1)), data[name].to_numpy()) for name in "ab")
    dense = DenseModel(data["y"].to_numpy(), np.column_stack([np.ones(80), data["x"]]), blocks)
    grid = [np.array([[value]]) for value in np.r_[0.0, np.geomspace(1e-3, 1e2, 16)]]
    best = max(dense.profiled((one, two), "ml").llf for one in grid for two in grid)
    assert fit.llf >= best - 1e-9
    here = tuple(np.array([[variances(fit)[name] / fit.sigma**2]]) for name in "ab")
    assert fit.llf == pytest.approx(dense.profiled(here, "ml").llf, rel=1e-11)


# Correlations of +-1


def perfectly_correlated(sign: float, seed: int) -> pd.DataFrame:
    """Data of 300 rows in 120 of the 144 cells."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(144)[:120]
    a, b = np.divmod(np.r_[cells, rng.choice(cells, 180)], 6)
    x, effect = rng.normal(size=300), rng.normal(size=24)
    y = 1 + x + effect[a] + sign * 0.5 * effect[a] * x + rng.normal(size=6)[b] + rng.normal(size=300)
    return pd.DataFrame({"y": y, "x": x, "a": a, "b": b})


def of_factor(fit: jm.MixedResults, group: str) -> jm.results.RandomTerm:
    return next(term for term in fit.random_terms if term.group == group)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_correlation_of_one_is_reached_exactly_and_flagged(sign: float, seed: int) -> None:
    data = perfectly_correlated(sign, seed)
    found = outcome(SLOPES, data)
    fit = found.fit
    assert fit.converged, found.text
    rows = fit.varcorr[fit.varcorr["effect2"].notna()]
    correlation = rows["sd_or_corr"].iloc[0]
    term = of_factor(fit, "a")
    smallest = np.linalg.eigvalsh(term.corr)[0]
    assert fit.is_singular == (smallest < 1e-9)
    if fit.is_singular:
        assert correlation == pytest.approx(sign, abs=1e-9)
        assert "a: the correlation of" in found.text
        assert "b:" not in found.text
        assert rows["sd_or_corr_std_error"].isna().all()


def test_perfect_correlations_are_among_those_tried() -> None:
    fits = [quietly(SLOPES, perfectly_correlated(1.0, seed)) for seed in range(6)]
    assert sum(fit.is_singular for fit in fits) >= 2


@pytest.mark.parametrize("seed", range(2))
def test_a_near_singular_slope_is_right_by_the_dense_likelihood(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = perfectly_correlated(0.0, seed)
    data["y"] += 0.02 * rng.normal(size=24)[data["a"]] * data["x"]
    fit = quietly(SLOPES, data)
    assert fit.converged, fit.diagnostics.messages
    X = np.column_stack([np.ones(300), data["x"]])
    blocks = (Block(X, data["a"].to_numpy()), Block(np.ones((300, 1)), data["b"].to_numpy()))
    dense = DenseModel(data["y"].to_numpy(), X, blocks)
    relative = [of_factor(fit, name).cov.to_numpy() / fit.sigma**2 for name in "ab"]
    assert fit.llf == pytest.approx(dense.profiled(tuple(relative), "reml").llf, rel=1e-10)
    for size in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(2):
            moved = []
            for cov in relative:
                root = np.linalg.cholesky(cov + 1e-14 * np.eye(len(cov)))
                root += size * np.tril(rng.normal(size=root.shape))
                moved.append(root @ root.T)
            assert dense.profiled(tuple(moved), "reml").llf <= fit.llf + 1e-8


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda seed: crossed(seed, of_a=0.1, of_b=0.3), lambda seed: perfectly_correlated(-1.0, seed)]
)
def test_larger_models_never_have_a_smaller_likelihood(make: Callable[[int], pd.DataFrame]) -> None:
    for seed in range(4):
        data = make(seed)
        chain = ["", " + (1 | a)", " + (1 | a) + (1 | b)", " + (x || a) + (1 | b)", " + (x | a) + (1 | b)"]
        llf = [quietly(f"y ~ x{bars}", data, method="ml").llf for bars in chain]
        assert all(larger >= smaller - 1e-9 for smaller, larger in pairwise(llf)), llf


@pytest.mark.parametrize("limit", [1, 2])
def test_a_fit_that_is_stopped_early_says_so(limit: int) -> None:
    found = outcome(SLOPES, perfectly_correlated(0.5, 2), max_iterations=limit)
    assert "limit on iterations was reached" in found.text
    assert "gradient is not zero" in found.text
    assert not found.fit.converged
    assert "NOT CONVERGED" in repr(found.fit)
    assert "WARNING: not converged" in str(found.fit.summary())


# What the data cannot identify


def with_copies() -> pd.DataFrame:
    data = crossed(3)
    data["copy"] = [f"name {code}" for code in data["b"]]
    data["region"] = data["a"] // 4
    data["cell"] = data["a"] * 6 + data["b"]
    return data


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("y ~ x + (1 | a) + (1 | b) + (1 | copy)", ("'b'", "'copy'", "same 6 groups")),
        ("y ~ x + (1 | a) + (1 | copy) + (x | b)", ("'b'", "'copy'", "same 6 groups")),
        (
            "y ~ x + (1 | b) + (1 | region) + (1 | a) + (1 | region:a)",
            ("'a'", "'region:a'", "same 24 groups"),
        ),
        ("y ~ x + factor(b) + (1 | a) + (1 | b)", ("'b' has fixed effects",)),
        ("y ~ x + (1 | a) + (1 | b) + (1 + x | b)", ("b", "not identifiable")),
    ],
)
def test_random_terms_that_are_not_identified_are_refused_by_name(
    formula: str, says: tuple[str, ...]
) -> None:
    found = outcome(formula, with_copies())
    assert isinstance(found.error, jm.DesignError | jm.FormulaError)
    assert all(piece in found.text for piece in says), found.text


def test_cells_with_one_row_each_are_refused_as_the_residual() -> None:
    data = two_way(1.0, 1.0, sizes=(9, 7, 1)).data
    found = outcome(f"{TWO} + (1 | a:b)", data)
    assert isinstance(found.error, jm.DesignError)
    assert "63 levels for 63 rows" in found.text


@pytest.mark.slow
def test_a_slope_of_the_same_groups_under_another_name_is_fitted_or_refused_with_a_true_reason() -> None:
    data = with_copies()
    found = outcome("y ~ x + (1 | a) + (1 | b) + (0 + x | copy)", data)
    if found.fit is None:
        assert "only the sum of their variances" not in found.text
    else:
        assert found.fit.llf == pytest.approx(quietly("y ~ x + (1 | a) + (x || b)", data).llf, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("fixed", ["copy", "x * copy"])
def test_a_disguised_copy_of_a_factor_among_the_fixed_effects_is_never_silent(fixed: str) -> None:
    found = outcome(f"y ~ {fixed} + (1 | a) + (1 | b)", with_copies())
    assert found.text
    if found.fit is not None:
        assert not found.fit.converged or found.fit.is_singular
        assert "not a minimum" not in found.text
        assert variances(found.fit)["a"] > 0


ADDITIVE = [
    (TWO, "reml"),
    *(
        pytest.param(formula, method, marks=pytest.mark.slow)
        for formula in (TWO, "y ~ x + (1 | a) + (1 | b)", "y ~ 1 + (1 | a) + (1 | b) + (1 | region)", SLOPES)
        for method in ("ml", "reml")
        if (formula, method) != (TWO, "reml")
    ),
]


@pytest.mark.parametrize("unit", [1.0, 1e8, 1e-8])
@pytest.mark.parametrize(("formula", "method"), ADDITIVE)
def test_a_response_that_is_additive_in_both_factors_is_refused(
    formula: str, method: str, unit: float
) -> None:
    data = with_copies()
    rng = np.random.default_rng(4)
    data["y"] = unit * (3 + rng.normal(size=24)[data["a"]] + rng.normal(size=6)[data["b"]])
    found = outcome(formula, data, method=method)
    assert isinstance(found.error, jm.DesignError), found.text
    assert "residual variance is zero" in found.text


@pytest.mark.slow
def test_a_response_that_is_constant_in_the_cells_is_refused() -> None:
    data = with_copies()
    data["y"] = np.random.default_rng(5).normal(size=144)[data["cell"]]
    found = outcome("y ~ 1 + (1 | a) + (1 | b) + (1 | a:b)", data)
    assert isinstance(found.error, jm.DesignError), found.text
    assert "residual variance is zero" in found.text


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 6, 8, 9, 12])
@pytest.mark.parametrize("formula", [TWO, "y ~ x + (1 | a) + (1 | b)", SLOPES])
def test_a_handful_of_rows_is_fitted_or_refused_with_a_reason(formula: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    data = pd.DataFrame({"y": rng.normal(size=12), "x": rng.normal(size=12)})
    data["a"], data["b"] = np.arange(12) % 3, (np.arange(12) // 2) % 2
    found = outcome(formula, data[:rows])
    if found.fit is not None:
        assert np.isfinite(found.fit.llf)
        assert found.fit.nobs == rows
    else:
        assert found.text


# Odd shapes


def assert_dense(fit: jm.MixedResults, data: pd.DataFrame) -> None:
    """A model of intercepts for a and b is what the dense likelihood says, and none of a grid is better."""
    n = len(data)
    codes = {name: pd.factorize(data[name], sort=True)[0] for name in "ab"}
    blocks = tuple(Block(np.ones((n, 1)), codes[name]) for name in "ab")
    dense = DenseModel(data["y"].to_numpy(), np.ones((n, 1)), blocks)
    relative = tuple(np.array([[variances(fit)[name] / fit.sigma**2]]) for name in "ab")
    here = dense.profiled(relative, fit.method)
    assert fit.converged, fit.diagnostics.messages
    assert fit.llf == pytest.approx(here.llf, rel=1e-11)
    assert fit.sigma == pytest.approx(here.sigma, rel=1e-9)
    absolute = tuple(fit.sigma**2 * cov for cov in relative)
    for k, name in enumerate("ab"):
        modes = dense.blups(k, absolute, fit.sigma)
        np.testing.assert_allclose(fit.ranef()[name], modes, rtol=1e-6, atol=1e-8)
        for beta in ("known", "estimated"):
            expected = np.sqrt(np.maximum(dense.blup_cov(k, absolute, fit.sigma, beta)[:, 0, 0], 0))
            np.testing.assert_allclose(fit.ranef_se(beta)[name].iloc[:, 0], expected, rtol=1e-6, atol=1e-8)
    grid = [np.array([[value]]) for value in np.r_[0.0, np.geomspace(1e-2, 30, 8)]]
    best = max(dense.profiled((one, two), fit.method).llf for one in grid for two in grid)
    assert fit.llf >= best - 1e-9


ROW = np.arange(80)
SHAPES: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "disconnected": lambda rng: (
        ROW // 40 * 5 + rng.integers(5, size=80),
        ROW // 40 * 4 + rng.integers(4, size=80),
    ),
    "one bridge": lambda rng: (ROW // 8, np.where(ROW == 79, 0, ROW // 20)),
    "single rows": lambda rng: (np.where(ROW < 40, ROW, 0), np.where(ROW < 40, ROW % 7, ROW - 40)),
    "one large level": lambda rng: (np.maximum(ROW - 59, 0), rng.integers(6, size=80)),
    "two levels": lambda rng: (rng.integers(2, size=80), rng.integers(15, size=80)),
    "nearly nested": lambda rng: (ROW // 4, np.where(ROW < 3, 3, ROW // 20)),
    "nearly the same": lambda rng: (ROW // 8, np.where(ROW == 0, 5, ROW // 8)),
    "a ring": lambda rng: (ROW // 8, (ROW + 4) % 80 // 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_designs_of_odd_shapes_equal_the_dense_likelihood(name: str, method: str) -> None:
    rng = np.random.default_rng(6)
    a, b = SHAPES[name](rng)
    y = rng.normal(size=50)[a] + 0.7 * rng.normal(size=50)[b] + rng.normal(size=80)
    data = pd.DataFrame({"y": y, "a": a, "b": b}).iloc[rng.permutation(80)]
    found = outcome(TWO, data, method=method)
    assert found.fit is not None, found.text
    assert_dense(found.fit, data)


def test_two_factors_with_two_levels_each_equal_the_closed_form_and_are_noted() -> None:
    design = two_way(0.5, 2.0, sizes=(2, 2, 10))
    fit = quietly(TWO, design.data)
    assert fit.deviance == pytest.approx(design.deviance(), rel=1e-11)
    of_a, of_b, within = design.reml()
    assert fit.sigma**2 == pytest.approx(within, rel=1e-8)
    assert variances(fit) == {"a": pytest.approx(of_a, rel=1e-6), "b": pytest.approx(of_b, rel=1e-6)}
    text = " ".join(str(fit.summary()).split())
    assert "a has only 2 levels" in text
    assert "b has only 2 levels" in text


# Sizes


def levels_of_both(levels: int, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    a, b = (rng.permutation(np.resize(np.arange(levels), rows)) for _ in range(2))
    return {"y": rng.normal(size=rows), "student": a, "lecturer": b}


def test_a_design_beyond_memory_is_refused_in_seconds_with_levels_bytes_and_factor() -> None:
    data = levels_of_both(60_000, 300_000)
    start = time.perf_counter()
    found = outcome("y ~ 1 + (1 | student) + (1 | lecturer)", data)
    seconds = time.perf_counter() - start
    assert isinstance(found.error, jm.DesignError)
    assert "60,000 levels" in found.text
    assert " GB" in found.text
    assert " bytes" in found.text
    assert "'student'" in found.text or "'lecturer'" in found.text
    assert seconds < 5


@pytest.mark.slow
def test_many_levels_nested_in_many_are_no_crossed_design_and_are_fitted() -> None:
    rng = np.random.default_rng(9)
    child = rng.permutation(np.repeat(np.arange(60_000), 3))
    y = rng.normal(size=60_000)[child] + rng.normal(size=20_000)[child // 3] + rng.normal(size=180_000)
    data = {"y": y, "child": child, "school": child // 3}
    fit = quietly("y ~ 1 + (1 | child) + (1 | school)", data)
    assert fit.converged
    assert variances(fit) == {"child": pytest.approx(1, rel=0.1), "school": pytest.approx(1, rel=0.1)}


@pytest.mark.slow
def test_many_levels_crossed_with_few_are_fitted() -> None:
    rng = np.random.default_rng(10)
    pupil = rng.permutation(np.repeat(np.arange(30_000), 4))
    item = rng.integers(40, size=120_000)
    y = rng.normal(size=30_000)[pupil] + 0.5 * rng.normal(size=40)[item] + rng.normal(size=120_000)
    fit = quietly("y ~ 1 + (1 | pupil) + (1 | item)", {"y": y, "pupil": pupil, "item": item})
    assert fit.converged
    assert variances(fit)["pupil"] == pytest.approx(1, rel=0.05)
    assert fit.sigma == pytest.approx(1, rel=0.02)

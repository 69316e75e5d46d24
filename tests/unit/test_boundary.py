"""Which variances a comparison tests, and their information, against matrices of the order of the data."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import kernels
from jaxmixed.boundary import _term_block, boundary_distribution
from jaxmixed.chi_bar_square import chi_bar_square
from jaxmixed.nesting import nesting_of
from tests.support.dense import Block, DenseModel
from tests.support.fits import quietly

STANDARD_ERRORS = 4.0


@cache
def data() -> pd.DataFrame:
    """Unbalanced groups g crossed with h; covariates in units far apart."""
    rng = np.random.default_rng(8)
    n = 150
    table = pd.DataFrame(
        {"g": rng.integers(0, 12, n), "h": rng.integers(0, 7, n), "f": rng.integers(0, 3, n)}
    )
    table["x"], table["z"] = rng.normal(size=n), 1e3 * (rng.normal(size=n) + 2)
    table["f"] = table["f"].map(dict(enumerate("abc")))
    effects = rng.normal(size=12)[table["g"]] + 0.5 * rng.normal(size=7)[table["h"]]
    table["y"] = 3 + table["x"] + effects + rng.normal(size=n)
    return table


@cache
def fitted(random: str, method: str = "reml", covariance: str | None = None) -> jm.MixedResults:
    return quietly(f"y ~ x + z{random}", data(), method=method, covariance=covariance)


def projected_information(
    small: jm.MixedResults, tested: list[np.ndarray], others: list[np.ndarray]
) -> np.ndarray:
    """Information of directions V_a of the covariance of the rows, by its definition."""
    table, frame = data(), small.frame
    blocks, covs = [], []
    for term in small.estimates.terms:
        group = frame.groups[term.frame_index]
        blocks.append(Block(np.asarray(group.Z), group.codes))
        covs.append(term.cov)
    model = DenseModel(table["y"].to_numpy(), np.asarray(frame.X), tuple(blocks))
    V = model.covariance(tuple(covs), float(small.sigma))
    P = np.linalg.inv(V)
    if small.method == "reml":
        P = P - P @ model.X @ np.linalg.inv(model.X.T @ P @ model.X) @ model.X.T @ P
    products = [P @ direction for direction in (*tested, *others, np.eye(len(V)))]
    whole = np.array([[np.sum(a * b.T) / 2 for b in products] for a in products])
    m = len(tested)
    projected = whole[:m, :m] - whole[:m, m:] @ np.linalg.solve(whole[m:, m:], whole[m:, :m])
    return np.asarray(projected)


def direction(codes: Any, left: Any, right: Any) -> np.ndarray:
    """Covariance of rows by that of two effects of a group, or by the variance of one."""
    codes, left, right = (np.asarray(values) for values in (codes, left, right))
    product = np.outer(left, right)
    product = product if left is right or (left == right).all() else product + product.T
    return np.where(codes[:, None] == codes[None, :], product, 0.0)


def distribution(small: jm.MixedResults, large: jm.MixedResults, seed: int = 0) -> Any:
    df = large.num_params - small.num_params
    return boundary_distribution(small, large, nesting_of(small, large), df, seed)


@pytest.mark.parametrize("method", [pytest.param("ml", marks=pytest.mark.slow), "reml"])
def test_two_variances_have_the_weights_of_their_information(method: str) -> None:
    small, large = fitted(" + (1 | g)", method), fitted(" + (1 + x || g) + (1 | h)", method)
    table, one = data(), np.ones(len(data()))
    H = projected_information(
        small,
        [direction(table["g"], table["x"], table["x"]), direction(table["h"], one, one)],
        [direction(table["g"], one, one)],
    )
    found = distribution(small, large)
    assert found.free == 0
    assert found.weights == pytest.approx(chi_bar_square(H, (1, 1)).weights, abs=1e-7)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_covariance_matrix_of_two_more_effects_has_the_distribution_of_its_cone(method: str) -> None:
    small, large = fitted(" + (1 | g)", method), fitted(" + (1 + x + z | g)", method)
    table, one = data(), np.ones(len(data()))
    x, z, g = table["x"].to_numpy(), table["z"].to_numpy(), table["g"]
    H = projected_information(
        small,
        [direction(g, x, x), direction(g, x, z), direction(g, z, z)],
        [direction(g, one, one), direction(g, one, x), direction(g, one, z)],
    )
    found, dense = distribution(small, large), chi_bar_square(H, (2,), 2, seed=5)
    assert (found.free, found.dimension) == (2, 3)
    for statistic in (2.0, 6.0, 15.0, 60.0):
        (p_value, error), (exact, exact_error) = found.p_value(statistic), dense.p_value(statistic)
        assert abs(p_value - exact) <= STANDARD_ERRORS * np.hypot(error, exact_error)


def test_an_effect_of_the_smaller_model_in_other_units_and_directions_is_known() -> None:
    """The slope of x at another origin: with the intercept they span the same effects."""
    shifted = data().assign(x=5 * (data()["x"] - 40))
    small = fitted(" + (1 + x | g)")
    large = quietly("y ~ x + z + (1 + x + z | g)", shifted)
    found = distribution(small, large)
    assert (found.free, found.dimension) == (2, 1)


@pytest.mark.parametrize(
    ("small", "large", "orders"),
    [
        ("", " + (1 | g)", (1,)),
        ("", " + (1 + x | g)", (2,)),
        ("", " + (1 + x || g) + (1 | h)", (1, 1, 1)),
        (" + (1 | g)", " + (1 + x | g)", (1,)),
        (" + (1 + x || g)", " + (1 + x | g)", ()),
        pytest.param(" + (1 + x || g)", " + (1 + x + z | g) + (1 | h)", (1, 1), marks=pytest.mark.slow),
        (" + (1 | g)", " + (1 | g) + (0 + x + z | g)", (2,)),
        (" + homdiag(1 + x | g)", " + (1 + x || g)", ()),
        (" + (1 | g:f)", " + (0 + f | g)", ()),
        (" + (1 | g)", " + (0 + f | g)", (2,)),
        (" + (1 | g)", " + cs(0 + f | g)", (1,)),
        ("", " + cs(0 + f | g)", (1, 1)),
        pytest.param("", " + homdiag(1 + x | g) + (1 | h)", (1, 1), marks=pytest.mark.slow),
    ],
)
def test_the_matrices_that_a_comparison_sets_to_zero(small: str, large: str, orders: tuple[int, ...]) -> None:
    one, two = fitted(small), fitted(large)
    nesting = nesting_of(one, two)
    assert nesting.obstacle == ""
    blocks = [_term_block(one, two, t, nesting.contained) for t in range(len(two.estimates.terms))]
    assert sorted(order for block, _ in blocks for order in block.orders) == sorted(orders)
    for number, (block, factor) in enumerate(blocks):
        covariance = two.estimates.terms[number].covariance
        together = np.concatenate([block.tested, block.free])
        assert np.linalg.matrix_rank(together.reshape(len(together), -1)) == len(together)
        assert np.allclose(together, together.swapaxes(1, 2))
        for change in block.tested:  # the smaller model's effects have no part in it
            assert np.abs(change @ np.linalg.pinv(factor @ factor.T)).max() <= 1e-9
        assert len(together) == covariance.num_params


@pytest.mark.slow
def test_the_larger_models_terms_take_the_smaller_models_covariances() -> None:
    """The covariance of the rows is that of the smaller fit, for a term within groups, too."""
    one, two = fitted(" + (1 | g:f) + (1 | h)"), fitted(" + (0 + f | g) + (1 + x | h)")
    nesting = nesting_of(one, two)
    found = np.zeros((len(data()),) * 2)
    for number, term in enumerate(two.estimates.terms):
        _, factor = _term_block(one, two, number, nesting.contained)
        group = two.frame.groups[term.frame_index]
        b = term.frame @ factor
        found += Block(np.asarray(group.Z), group.codes).covariance(b @ b.T)
    expected = np.zeros_like(found)
    for term in one.estimates.terms:
        group = one.frame.groups[term.frame_index]
        expected += Block(np.asarray(group.Z), group.codes).covariance(term.factor @ term.factor.T)
    assert np.abs(found - expected).max() <= 1e-9 * expected.max()


@pytest.mark.slow
def test_a_covariance_function_has_no_mixture() -> None:
    table = data().assign(t=np.tile(np.arange(5.0), 30))
    kernel = kernels.matern32()
    function = quietly("y ~ x + (0 + C(t) | g)", table, covariance={"g": kernel})
    with pytest.raises(jm.DesignError, match=r"covariance function of g .* simulate"):
        jm.lrtest(quietly("y ~ x", table), function, mixture=True)
    covariance = {"g": [kernel, "unstructured"]}
    more = quietly("y ~ x + (0 + C(t) | g) + (0 + x + z | g)", table, covariance=covariance)
    test = jm.lrtest(function, more, mixture=True)  # it is in both: nothing of it is tested
    assert test.distribution == "chibar2(0 to 3)"
    assert test.p_value < jm.lrtest(function, more).p_value


def test_effects_that_the_rows_do_not_tell_apart_are_refused() -> None:
    table = data().assign(x2=data()["x"])
    small = quietly("y ~ x + (1 | g)", table)
    large = quietly("y ~ x + (1 | g) + (0 + x | g) + (0 + x2 | g)", table)
    with pytest.raises(jm.DesignError, match="do not tell the tested variances apart"):
        jm.lrtest(small, large, mixture=True)


@pytest.mark.slow
def test_the_mixture_is_the_distribution_of_simulated_likelihood_ratios() -> None:
    rng = np.random.default_rng(4)
    table = pd.DataFrame({"g": np.repeat(np.arange(400), 6), "x": np.tile(np.linspace(-1, 2, 6), 400)})
    table["y"] = rng.normal(size=2400)
    small, large = quietly("y ~ x", table), quietly("y ~ x + (x | g)", table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.ConvergenceWarning)  # one in a thousand fails
        null = jm.lrtest(small, large, simulate=2000, seed=3).null
    assert null is not None
    assert null.n_failed < 10
    found = distribution(small, large)
    assert (found.free, found.dimension) == (0, 3)
    for statistic in (0.5, 1.5, 3.0, 5.0):
        p_value, _ = found.p_value(statistic)
        share = (null.statistics >= statistic).mean()
        assert abs(share - p_value) <= STANDARD_ERRORS * np.sqrt(p_value * (1 - p_value) / 2000)

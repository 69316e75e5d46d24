"""What holds of the likelihood for any data: invariances, additivity, agreement with the dense density."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import reduce_rows
from jaxmixed.effects import blup
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import Parameters, Profile, deviance, level_factors, loglik, profile
from jaxmixed.precision import double_precision
from jaxmixed.statistics import SufficientStatistics, Term, pad, summarise
from tests.support.compilation import LIKE_FITS
from tests.support.dense import Block, DenseModel

pytestmark = pytest.mark.property

VALUE = 1e-10
"""Relative: two routes to one number in float64."""

# One shape for all, so that one compiled program serves every example.
N, P, SIZES = 40, 2, (9, 3)

seeds = st.integers(0, 2**32 - 1)
quick = settings(derandomize=True, max_examples=25, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def double() -> Iterator[None]:
    with double_precision():
        yield


compiled = partial(jax.jit, compiler_options=LIKE_FITS)
summarised = compiled(partial(summarise, standardise=False), static_argnames="num_groups")


@dataclass(frozen=True)
class Rows:
    """A two-level data set with its parameters, all drawn from one seed."""

    rng: np.random.Generator
    y: np.ndarray
    X: np.ndarray
    Z: tuple[np.ndarray, ...]
    codes: tuple[np.ndarray, ...]
    weights: np.ndarray
    theta: np.ndarray

    def statistics(self) -> SufficientStatistics:
        codes = [jnp.asarray(code) for code in self.codes]
        return summarised(self.y, self.X, self.Z, codes, num_groups=SIZES, weights=self.weights)

    def reduced(self) -> SufficientStatistics:
        terms = tuple(
            Term(d, 0, covariance_structure("unstructured", Z.shape[1])) for d, Z in enumerate(self.Z)
        )
        groupings = [Grouping(*one, "g") for one in zip(self.Z, self.codes, SIZES, strict=True)]
        return reduce_rows(self.y, self.X, groupings, terms, self.weights).stats

    def take(self, rows: np.ndarray) -> Rows:
        return replace(
            self,
            y=self.y[rows],
            X=self.X[rows],
            Z=tuple(Z[rows] for Z in self.Z),
            codes=tuple(codes[rows] for codes in self.codes),
            weights=self.weights[rows],
        )

    def dense(self) -> DenseModel:
        blocks = tuple(Block(*one) for one in zip(self.Z, self.codes, strict=True))
        return DenseModel(self.y, self.X, blocks, self.weights)

    def covariances(self) -> tuple[np.ndarray, ...]:
        a, b, c, d = self.theta
        T = np.array([[a, 0], [b, c]])
        return T @ T.T, np.array([[d * d]])


def draw(seed: int) -> Rows:
    """Sizes of the groups, of the variances and of the numbers themselves vary over orders of magnitude."""
    rng = np.random.default_rng(seed)
    fine = rng.permutation(np.concatenate([np.arange(9), rng.integers(0, rng.integers(1, 10), N - 9)]))
    owner = rng.permutation(np.resize(np.arange(3), 9))
    x = rng.normal(size=N) * 10 ** rng.uniform(-1, 1)
    X = np.column_stack([np.ones(N), x])
    Z = (np.column_stack([np.ones(N), x]), np.ones((N, 1)))
    y = rng.normal(size=N) * 10 ** rng.uniform(-1, 1) + rng.normal(size=9)[fine]
    theta = rng.normal(size=4) * 10 ** rng.uniform(-2, 0.5, 4)
    return Rows(rng, y, X, Z, (fine, owner[fine]), rng.uniform(0.2, 3, N), theta)


def values(theta: jax.Array, stats: SufficientStatistics) -> jax.Array:
    return jnp.stack([deviance(theta, stats, method=method) for method in ("ml", "reml")])


both = compiled(values)
over_thetas = compiled(jax.vmap(values, in_axes=(0, None)))
gradient = compiled(jax.grad(deviance))
modes_of = compiled(blup)
loglik_at = compiled(loglik)


@compiled
def at_theta(theta: jax.Array, stats: SufficientStatistics) -> Profile:
    return profile(level_factors(theta, stats), stats, method="ml")


def close(found: object, expected: object, tolerance: float = VALUE) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * N)


@quick
@given(seeds)
def test_both_forms_give_the_dense_deviance(seed: int) -> None:
    rows = draw(seed)
    dense = rows.dense()
    expected = [-2 * dense.profiled(rows.covariances(), method).llf for method in ("ml", "reml")]
    close(both(rows.theta, rows.statistics()), expected, 1e-9)
    close(both(rows.theta, rows.reduced()), expected, 1e-9)


@quick
@given(seeds)
def test_the_unprofiled_likelihood_is_largest_at_the_profiled_estimates(seed: int) -> None:
    rows = draw(seed)
    stats = rows.statistics()
    found = at_theta(rows.theta, stats)
    schur = np.asarray(found.schur)
    beta = np.linalg.solve(schur[:P, :P], schur[:P, P])
    best = Parameters(beta, rows.theta, np.sqrt(np.exp(found.log_rss) / N))
    value = loglik_at
    top = float(value(best, stats))
    close(-2 * top, found.deviance, 1e-9)
    errors = np.sqrt(np.diagonal(np.linalg.inv(schur[:P, :P])))
    for _ in range(5):
        beta_there = beta + best.sigma * errors * rows.rng.normal(size=P)
        there = Parameters(beta_there, rows.theta, best.sigma * np.exp(0.1 * rows.rng.normal()))
        assert value(there, stats) < top


@quick
@given(seeds)
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    rows = draw(seed)
    shuffled = rows.take(rows.rng.permutation(N))
    close(both(rows.theta, shuffled.statistics()), both(rows.theta, rows.statistics()))
    close(both(rows.theta, shuffled.reduced()), both(rows.theta, rows.reduced()))


@quick
@given(seeds)
def test_the_numbers_of_the_groups_do_not_matter(seed: int) -> None:
    rows = draw(seed)
    renumbered = tuple(
        rows.rng.permutation(size)[codes] for codes, size in zip(rows.codes, SIZES, strict=True)
    )
    other = replace(rows, codes=renumbered)
    close(both(rows.theta, other.statistics()), both(rows.theta, rows.statistics()))
    close(both(rows.theta, other.reduced()), both(rows.theta, rows.reduced()))


@quick
@given(seeds)
def test_padding_is_exact(seed: int) -> None:
    stats = (rows := draw(seed)).reduced()
    close(both(rows.theta, pad(stats)), both(rows.theta, stats), 1e-13)


@quick
@given(seeds)
def test_signs_of_columns_of_the_factor_do_not_matter(seed: int) -> None:
    stats = (rows := draw(seed)).reduced()
    expected = both(rows.theta, stats)
    for signs in ([-1, -1, 1, 1], [1, 1, -1, 1], [1, 1, 1, -1]):
        close(both(np.array(signs) * rows.theta, stats), expected, 1e-12)


@quick
@given(seeds)
def test_what_is_linear_in_the_fixed_effects_does_not_matter(seed: int) -> None:
    rows = draw(seed)
    moved = replace(rows, y=rows.y + rows.X @ rows.rng.normal(size=P))
    close(both(rows.theta, moved.reduced()), both(rows.theta, rows.reduced()))


@quick
@given(seeds)
def test_another_basis_of_the_fixed_effects_moves_the_reml_criterion_by_its_determinant(seed: int) -> None:
    rows = draw(seed)
    A = rows.rng.normal(size=(P, P)) + 2 * np.eye(P)
    moved = both(rows.theta, replace(rows, X=rows.X @ A).reduced()) - both(rows.theta, rows.reduced())
    close(moved, [0.0, 2 * np.linalg.slogdet(A)[1]], 1e-9)


@quick
@given(seeds, st.integers(-60, 60))
def test_the_unit_of_the_response_moves_the_deviance_by_its_logarithm(seed: int, exponent: int) -> None:
    rows = draw(seed)
    moved = both(rows.theta, replace(rows, y=rows.y * 2.0**exponent).reduced()) - both(
        rows.theta, rows.reduced()
    )
    close(moved, 2 * exponent * np.log(2) * np.array([N, N - P]), 1e-9)


@quick
@given(seeds)
def test_equal_weights_move_the_deviance_as_sigma_takes_them_up(seed: int) -> None:
    rows = draw(seed)
    c = rows.rng.uniform(0.1, 10)
    heavier = replace(rows, weights=c * rows.weights, theta=rows.theta / np.sqrt(c))
    # V / sigma^2 shrinks by c as a whole: log|V| and the residual sum of squares cancel, REML's X'V^-1 X too.
    close(both(heavier.theta, heavier.reduced()), both(rows.theta, rows.reduced()), 1e-9)


@quick
@given(seeds)
def test_integer_weights_are_means_of_repeated_rows(seed: int) -> None:
    """A row of weight w enters the cross-products as w copies of itself do."""
    rows = draw(seed)
    copies = rows.rng.permutation(np.resize([1, 2, 3], N))
    weighted = replace(rows, weights=copies.astype(float)).statistics()
    repeated = rows.take(np.repeat(np.arange(N), copies))
    codes = [jnp.asarray(code) for code in repeated.codes]
    alike = summarised(repeated.y, repeated.X, repeated.Z, codes, num_groups=SIZES)
    close(weighted.total, alike.total)
    for left, right in zip(weighted.levels, alike.levels, strict=True):
        np.testing.assert_allclose(left.root, right.root, rtol=1e-10, atol=1e-10 * np.abs(right.root).max())
        np.testing.assert_allclose(left.cross, right.cross, rtol=1e-9, atol=1e-10 * np.abs(right.cross).max())


@quick
@given(seeds)
def test_statistics_of_parts_add_up(seed: int) -> None:
    rows = draw(seed)
    whole = rows.statistics()
    half = rows.rng.random(N) < 0.5
    masked = [replace(rows, weights=np.where(half == part, rows.weights, 1e-300)) for part in (True, False)]
    parts = [part.statistics() for part in masked]
    close(parts[0].total + parts[1].total, whole.total)
    for depth, level in enumerate(whole.levels):
        for name in ("root", "cross"):
            added = sum(getattr(part.levels[depth], name) for part in parts)
            expected = getattr(level, name)
            np.testing.assert_allclose(added, expected, rtol=1e-9, atol=1e-11 * np.abs(expected).max())


@quick
@given(seeds)
def test_double_bars_are_two_terms(seed: int) -> None:
    rows = draw(seed)
    stats = rows.statistics()
    one, two = covariance_structure("unstructured", 1), covariance_structure("independent", 2)
    coarse = Term(1, 0, one)
    together = replace(stats, terms=(Term(0, 0, two), coarse))
    apart = replace(stats, terms=(Term(0, 0, one), Term(0, 1, one), coarse))
    theta = rows.theta[[0, 2, 3]]
    close(both(theta, together), both(theta, apart), 1e-13)
    full = both(np.array([theta[0], 0.0, theta[1], theta[2]]), stats)
    close(both(theta, together), full, 1e-13)


@quick
@given(seeds)
def test_a_term_without_variance_is_as_good_as_absent(seed: int) -> None:
    rows = draw(seed)
    without = rows.theta * [1, 1, 1, 0]
    stats = rows.reduced()
    alone = DenseModel(rows.y, rows.X, (Block(rows.Z[0], rows.codes[0]),), rows.weights)
    expected = [-2 * alone.profiled(rows.covariances()[:1], method).llf for method in ("ml", "reml")]
    close(both(without, stats), expected, 1e-9)


@quick
@given(seeds)
def test_vmap_over_any_parameters_equals_a_loop(seed: int) -> None:
    rows = draw(seed)
    stats = rows.reduced()
    batch = rows.theta * rows.rng.normal(size=(3, 4))
    together = over_thetas(batch, stats)
    close(together, [both(theta, stats) for theta in batch], 1e-12)


@quick
@given(seeds)
def test_the_gradient_is_that_of_differences_in_any_direction(seed: int) -> None:
    rows = draw(seed)
    stats = rows.reduced()
    direction = rows.rng.normal(size=4) * np.maximum(np.abs(rows.theta), 1e-3)
    slope = float(gradient(rows.theta, stats) @ direction)
    h = 1e-4
    values = [float(both(rows.theta + s * h * direction, stats)[1]) for s in (2, 1, -1, -2)]
    numeric = (-values[0] + 8 * values[1] - 8 * values[2] + values[3]) / (12 * h)
    assert slope == pytest.approx(numeric, rel=1e-6, abs=1e-6 * (1 + abs(values[0]) * 1e-3))


@quick
@given(seeds)
def test_conditional_modes_are_those_of_the_dense_model(seed: int) -> None:
    rows = draw(seed)
    modes = modes_of(rows.theta, rows.statistics())
    for depth in range(2):
        expected = rows.dense().blups(depth, rows.covariances(), 1.0)
        scale = np.abs(expected).max() + 1e-12
        np.testing.assert_allclose(np.asarray(modes[depth]).T / scale, expected / scale, atol=1e-8)

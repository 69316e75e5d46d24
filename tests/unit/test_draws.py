"""Numbered replicates: equal in any chunk, their distributions, and the covariance of simulated responses."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed.draws import (
    EFFECTS_STREAM,
    RESIDUAL_STREAM,
    Draws,
    EffectsSource,
    ResponseSource,
    effects_source,
    random_effects,
    random_part,
    simulate_responses,
)
from tests.support.dense import Block, DenseModel

ROOT = Path(__file__).resolve().parents[2]
SIGMAS = 5.0
"""Standard errors that a Monte Carlo mean may be away from what it estimates: 6e-7 two-sided."""

GROUPS = np.array([0, 1, 1, 0, 2, 1, 0])
METHODS = {
    "normal": lambda draws, first, count: draws.normal(first, count, 7),
    "uniform": lambda draws, first, count: draws.uniform(first, count, 7),
    "signs": lambda draws, first, count: draws.signs(first, count, 7),
    "indices": lambda draws, first, count: draws.indices(first, count, 7),
    "permutations": lambda draws, first, count: draws.permutations(first, count, 7),
    "permutations within": lambda draws, first, count: draws.permutations(first, count, 7, GROUPS),
}


def within(values: np.ndarray, expected: Any, errors: Any) -> None:
    """Every value is within the allowed number of its standard errors."""
    excess = np.abs(values - expected) / np.asarray(errors)
    assert excess.max() < SIGMAS, f"{excess.max():.2f} standard errors"


# Replicates


@pytest.mark.parametrize("method", METHODS)
def test_a_replicate_is_the_same_in_every_chunk_order_and_thread(method: str) -> None:
    draw, draws = METHODS[method], Draws(11, "test")
    whole = draw(draws, 0, 60)
    assert whole.shape == (7, 60)
    for size in (1, 7, 60):
        chunks = [draw(Draws(11, "test"), first, min(size, 60 - first)) for first in range(0, 60, size)]
        np.testing.assert_array_equal(np.hstack(chunks), whole)
    with ThreadPoolExecutor(4) as pool:
        columns = list(pool.map(lambda first: draw(draws, first, 1), reversed(range(60))))
    np.testing.assert_array_equal(np.hstack(columns[::-1]), whole)


def test_a_replicate_is_the_same_in_another_process() -> None:
    code = (
        "import json; from jaxmixed.draws import Draws;"
        "print(json.dumps(Draws(11, 'test').normal(5, 2, 3).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    np.testing.assert_array_equal(json.loads(done.stdout), Draws(11, "test").normal(0, 9, 3)[:, 5:7])


def test_a_replicate_is_a_generator_whose_counter_begins_at_its_number() -> None:
    key = np.random.SeedSequence(3, spawn_key=tuple(b"residuals")).generate_state(2, np.uint64)
    draws = Draws(3, "residuals")
    for number in (0, 1, 41, 2**40):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, number, 0, 0]))
        expected = generator.standard_normal(1000)  # the ziggurat rejects some, which must not shift others
        np.testing.assert_array_equal(draws.normal(number, 1, 1000)[:, 0], expected)


def test_replicates_streams_and_seeds_are_unrelated() -> None:
    count, size = 40, 2000
    columns = [
        Draws(seed, stream).normal(0, count, size)
        for seed, stream in ((1, "a"), (1, "b"), (2, "a"), (1, "ab"), (1, ""), (2**70 + 1, "a"))
    ]
    corr = np.corrcoef(np.hstack(columns), rowvar=False)
    np.fill_diagonal(corr, 0.0)
    within(corr, 0.0, 1 / np.sqrt(size))


def test_the_global_random_state_is_not_used() -> None:
    before = np.random.get_state()
    first = [draw(Draws(1), 0, 5) for draw in METHODS.values()]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert np.random.get_state()[2:] == before[2:]
    np.random.standard_normal(3)
    for draw, values in zip(METHODS.values(), first, strict=True):
        np.testing.assert_array_equal(draw(Draws(1), 0, 5), values)


@pytest.mark.parametrize(
    "seed",
    [-1, 1.0, True, None, "1", [1], np.random.default_rng(1), np.float64(1)],
    ids=lambda value: type(value).__name__,
)
def test_a_seed_that_is_no_integer_is_refused(seed: object) -> None:
    with pytest.raises(jm.DataError, match="seed must be a non-negative integer"):
        Draws(seed)  # type: ignore[arg-type]


def test_a_seed_may_be_of_any_size_and_of_any_kind_of_integer() -> None:
    assert not np.array_equal(Draws(2**100).normal(0, 1, 3), Draws(2**100 + 1).normal(0, 1, 3))
    np.testing.assert_array_equal(Draws(np.uint8(7)).normal(0, 1, 3), Draws(7).normal(0, 1, 3))  # type: ignore[arg-type]
    assert repr(Draws(7, "a")) == "Draws(7, 'a')"


def test_no_replicate_and_no_number_are_empty_arrays() -> None:
    for draw in METHODS.values():
        assert draw(Draws(1), 3, 0).shape == (7, 0)
    assert Draws(1).indices(0, 4, 0).shape == (0, 4)


# Distributions


def test_normal_numbers_have_the_moments_of_the_normal_distribution() -> None:
    values = Draws(1).normal(0, 2000, 100)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        within((values**power).mean(), moment, np.sqrt(variance / values.size))
    within(values.mean(axis=0), 0.0, 0.1)


def test_uniform_numbers_signs_and_indices_are_uniform() -> None:
    uniform, signs = Draws(2).uniform(0, 2000, 50), Draws(2).signs(0, 2000, 50)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    within(uniform.mean(), 0.5, np.sqrt(1 / 12 / uniform.size))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    within(signs.mean(), 0.0, 1 / np.sqrt(signs.size))
    indices = Draws(2).indices(0, 2000, 50, 9)
    assert indices.dtype == np.int64
    shares = np.bincount(indices.ravel(), minlength=9) / indices.size
    within(shares, 1 / 9, np.sqrt(1 / 9 * 8 / 9 / indices.size))


def test_each_index_may_have_a_population_of_its_own() -> None:
    sizes = np.array([1, 2, 3, 10])
    indices = Draws(3).indices(0, 5000, 4, sizes)
    assert indices.max(axis=1).tolist() == [0, 1, 2, 9]
    within(indices.mean(axis=1), (sizes - 1) / 2, np.sqrt((sizes**2 - 1) / 12 / 5000) + 1e-12)
    with pytest.raises(jm.DataError, match="empty population"):
        Draws(3).indices(0, 1, 2, np.array([0, 3]))


def test_the_largest_uniform_gives_the_last_index() -> None:
    class Largest(Draws):
        def uniform(self, first: int, count: int, size: int) -> np.ndarray:
            return np.full((size, count), np.nextafter(1.0, 0.0))

    sizes = np.array([1, 2, 3, 10**9 + 7, 2**40 + 1, 2**52 - 1, 2**53 - 1])
    assert (Largest(1).indices(0, 1, len(sizes), sizes)[:, 0] == sizes - 1).all()


def test_all_orders_are_equally_likely() -> None:
    count = 24_000
    orders = Draws(4).permutations(0, count, 4)
    seen = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders.T.tolist():
        seen[tuple(order)] += 1
    within(np.array(list(seen.values())), count / 24, np.sqrt(count * (1 / 24) * (23 / 24)))


def test_restricted_permutations_stay_within_their_groups_and_are_uniform_there() -> None:
    count = 6000
    orders = Draws(5).permutations(0, count, 7, GROUPS)
    assert (np.sort(orders, axis=0) == np.arange(7)[:, None]).all()
    assert (GROUPS[orders] == GROUPS[:, None]).all()
    ways = {tuple(order) for order in orders.T.tolist()}
    assert len(ways) == 6 * 6  # two groups of three, one of one
    first_group = np.flatnonzero(GROUPS == 0)
    for position in first_group:
        shares = [(orders[position] == other).mean() for other in first_group]
        within(np.array(shares), 1 / 3, np.sqrt(2 / 9 / count))


# Responses


COVS = (np.array([[4.0, -1.5], [-1.5, 2.0]]), np.array([[3.0]]))


def crossed_source(seed: int = 0, num_rows: int = 24) -> ResponseSource:
    """Two crossed groupings, one with a slope, and unequal weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=num_rows)
    Z, ones = np.column_stack([np.ones(num_rows), x]), np.ones((num_rows, 1))
    a, b = np.arange(num_rows) % 4, rng.permutation(np.arange(num_rows) % 3)
    weights = rng.uniform(0.3, 3.0, size=num_rows)
    terms = (effects_source(Z, a, 4, COVS[0]), effects_source(ones, b, 3, COVS[1]))
    return ResponseSource(rng.normal(size=num_rows) * 10, terms, 1.5, weights)


def dense_covariance(source: ResponseSource) -> np.ndarray:
    """Covariance of the responses of `crossed_source`, from the definition."""
    blocks = tuple(Block(term.Z, term.codes) for term in source.terms)
    return DenseModel(source.mean, np.ones((len(source.mean), 1)), blocks, source.weights).covariance(
        COVS, source.sigma
    )


def check_moments(values: np.ndarray, mean: np.ndarray, V: np.ndarray) -> None:
    """Means and covariances over the columns are those given, within Monte Carlo error."""
    count, variances = values.shape[1], np.diagonal(V)
    within(values.mean(axis=1), mean, np.sqrt(variances / count))
    centred = values - mean[:, None]
    within(centred @ centred.T / count, V, np.sqrt((np.outer(variances, variances) + V**2) / count))


def test_responses_have_the_mean_and_the_covariance_of_the_model() -> None:
    source = crossed_source()
    V = dense_covariance(source)
    check_moments(simulate_responses(source, 1, 0, 20_000), source.mean, V)


def test_the_moments_of_another_model_are_told_apart() -> None:
    source = crossed_source()
    V = dense_covariance(source)
    values = simulate_responses(source, 1, 0, 20_000)
    for wrong in (V + np.eye(len(V)), V * 1.08, V - 1):
        with pytest.raises(AssertionError, match="standard errors"):
            check_moments(values, source.mean, wrong)
    with pytest.raises(AssertionError, match="standard errors"):
        check_moments(values, source.mean + 0.2, V)


def test_responses_are_the_same_in_every_chunk_to_the_last_bit() -> None:
    source = crossed_source(num_rows=300)
    whole = simulate_responses(source, 5, 0, 700)  # more than one internal chunk
    for size in (1, 13, 256, 300):
        chunks = [
            simulate_responses(source, 5, first, min(size, 700 - first)) for first in range(0, 700, size)
        ]
        np.testing.assert_array_equal(np.hstack(chunks), whole)


def test_long_responses_are_drawn_a_few_at_a_time_and_are_the_same() -> None:
    source = crossed_source(num_rows=70_000)
    whole = simulate_responses(source, 5, 0, 3)
    np.testing.assert_array_equal(simulate_responses(source, 5, 2, 1), whole[:, 2:])


def test_the_residuals_do_not_depend_on_the_random_effects() -> None:
    source = crossed_source()
    without = ResponseSource(source.mean, (), source.sigma, source.weights)
    difference = simulate_responses(source, 8, 0, 50) - simulate_responses(without, 8, 0, 50)
    part = random_part(source.terms, 24, Draws(8, EFFECTS_STREAM), 0, 50)
    np.testing.assert_allclose(difference, part, atol=1e-13)
    standard = (simulate_responses(without, 8, 0, 50) - source.mean[:, None]) * np.sqrt(source.weights)[
        :, None
    ]
    np.testing.assert_allclose(standard / 1.5, Draws(8, RESIDUAL_STREAM).normal(0, 50, 24), atol=1e-13)


def test_random_effects_have_their_covariance_and_are_independent_between_levels() -> None:
    cov, count = np.array([[4.0, -1.5, 0.5], [-1.5, 2.0, 0.3], [0.5, 0.3, 1.0]]), 20_000
    term = effects_source(np.ones((2, 3)), np.array([0, 1]), 2, cov)
    effects = random_effects([term], Draws(1), 0, count)[0]
    assert effects.shape == (3, 2, count)
    check_moments(effects.transpose(1, 0, 2).reshape(6, count), np.zeros(6), np.kron(np.eye(2), cov))


def test_the_random_part_is_the_sum_over_the_terms_of_design_times_effects() -> None:
    source = crossed_source()
    effects = random_effects(source.terms, Draws(1), 3, 4)
    wide = [Block(term.Z, term.codes).wide() for term in source.terms]
    expected = sum(
        matrix @ own.transpose(1, 0, 2).reshape(-1, 4) for matrix, own in zip(wide, effects, strict=True)
    )
    np.testing.assert_allclose(random_part(source.terms, 24, Draws(1), 3, 4), expected, atol=1e-13)


def test_a_singular_covariance_gives_effects_in_its_range_alone() -> None:
    codes, Z = np.array([0, 1]), np.ones((2, 2))
    dependent = effects_source(Z, codes, 2, np.array([[1.0, 2.0], [2.0, 4.0]]))
    effects = random_effects([dependent], Draws(1), 0, 100)[0]
    np.testing.assert_array_equal(effects[1], 2 * effects[0])
    assert effects[0].std() > 0.5
    without_intercept = effects_source(Z, codes, 2, np.array([[0.0, 0.0], [0.0, 9.0]]))
    effects = random_effects([without_intercept], Draws(1), 0, 100)[0]
    assert (effects[0] == 0).all()
    assert effects[1].std() > 2
    nothing = effects_source(Z, codes, 2, np.zeros((2, 2)))
    source = ResponseSource(np.array([1.0, 2.0]), (nothing,), 1e-300)
    np.testing.assert_array_equal(simulate_responses(source, 1, 0, 5), np.array([[1.0], [2.0]]) + np.zeros(5))


def test_the_factor_of_a_covariance_does_not_depend_on_the_units() -> None:
    cov, units = np.array([[4.0, -1.5], [-1.5, 2.0]]), np.array([1e-9, 1e9])
    term = effects_source(np.ones((2, 2)), np.array([0, 1]), 2, cov)
    scaled = effects_source(np.ones((2, 2)), np.array([0, 1]), 2, units[:, None] * cov * units)
    assert isinstance(term, EffectsSource)
    np.testing.assert_allclose(scaled.factor / units[:, None], term.factor, rtol=1e-14)

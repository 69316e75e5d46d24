"""Sequences that do not decrease, and where they reach a value."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from jaxmixed.proportions import crossing, increasing

NORMAL = NormalDist()


def test_a_sequence_that_does_not_decrease_stays_as_it_is() -> None:
    values = np.array([0.0, 0.1, 0.1, 0.7, 1.0])
    np.testing.assert_array_equal(increasing(values, np.arange(1.0, 6.0)), values)


def test_pools_are_the_least_squares_solution() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        values, weights = rng.normal(size=7), rng.uniform(0.5, 3, size=7)
        found = increasing(values, weights)
        assert (np.diff(found) >= 0).all()
        # The max-min formula of isotonic regression (Robertson, Wright & Dykstra 1988, theorem 1.4.4).
        for i in range(7):
            means = [
                [np.average(values[s : t + 1], weights=weights[s : t + 1]) for t in range(i, 7)]
                for s in range(i + 1)
            ]
            assert found[i] == pytest.approx(max(min(row) for row in means), abs=1e-12)


def test_a_probit_line_is_followed_exactly() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    values = np.array([NORMAL.cdf(-2 + 0.9 * at) for at in x])
    assert crossing(x, values, 0.8, 1e-6) == pytest.approx((NORMAL.inv_cdf(0.8) + 2) / 0.9, abs=1e-12)


def test_values_outside_the_sequence_are_beyond_its_ends() -> None:
    x, values = np.array([1.0, 2.0]), np.array([0.3, 0.6])
    assert crossing(x, values, 0.7, 0.01) == np.inf
    assert crossing(x, values, 0.2, 0.01) == -np.inf
    assert crossing(x, values, 0.3, 0.01) == 1.0
    assert crossing(x[:0], values[:0], 0.3, 0.01) == np.inf


def test_proportions_of_zero_and_one_do_not_pull_the_crossing_to_an_end() -> None:
    found = crossing(np.array([1.0, 2.0]), np.array([0.0, 1.0]), 0.5, 0.01)
    assert found == pytest.approx(1.5)

"""Joint errors of fixed effects and predicted effects, against the dense inverse of Henderson's equations."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.support.dense_predictions import DensePredictions, dense_predictions
from tests.support.fits import aliased, sleepstudy, with_kernel
from tests.support.school_fits import crossed, nested, related, singular

ROUNDING = 1e-9
"""Of the largest variance: two routes to the same numbers, one through inverses of the order of n."""


SLOW = pytest.param(related, marks=pytest.mark.slow)
KERNEL = pytest.param(with_kernel, marks=pytest.mark.slow)
FITS = [sleepstudy, aliased, nested, crossed, singular, SLOW, KERNEL]


@cache
def dense(make: object) -> DensePredictions:
    return dense_predictions(make())  # type: ignore[operator]


def rows_of(found: DensePredictions) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Rows of the data, then some with other levels (a known class in another school) and unknown ones."""
    rng = np.random.default_rng(1)
    pick = rng.choice(len(found.model.y), 12, replace=False)
    X = np.array(found.fit.frame.X[pick])
    terms = []
    for i, Z, codes in found.own_terms(pick):
        codes = codes.copy()
        related = found.model.blocks[i].related
        codes[4:8] = rng.integers(0, found.model.blocks[i].num_levels, 4)
        if related is None:
            codes[8 + i : 10 + i] = -1
        terms.append((i, Z + 0.1 * rng.normal(size=Z.shape), codes))
    return X, terms


@pytest.mark.parametrize("beta", ["estimated", "known"])
@pytest.mark.parametrize("make", FITS, ids=lambda make: make.__name__)
def test_errors_of_rows_are_those_of_hendersons_equations(make, beta: str) -> None:
    found = dense(make)
    X, terms = rows_of(found)
    expected = found.covariance(X, terms, beta)
    model = found.fit._errors if beta == "estimated" else found.fit._errors.given_beta()
    rows = model.rows(X, terms)
    slack = ROUNDING * np.abs(expected).max()
    np.testing.assert_allclose(rows.covariance(), expected, atol=slack)
    np.testing.assert_allclose(rows.variance(), np.diagonal(expected), atol=slack)


@pytest.mark.parametrize("make", [nested, crossed], ids=lambda make: make.__name__)
def test_functions_without_fixed_effects_and_of_some_terms_only(make) -> None:
    found = dense(make)
    _, terms = rows_of(found)
    expected = found.covariance(None, terms[1:])
    own = found.fit._errors.rows(None, terms[1:]).covariance()
    np.testing.assert_allclose(own, expected, atol=ROUNDING * expected.max())


def test_covariances_between_two_sets_of_rows_are_row_by_row() -> None:
    found = dense(crossed)
    X, terms = rows_of(found)
    known = [(i, Z, np.abs(codes)) for i, Z, codes in terms]
    half = [(i, Z[:6], codes[:6]) for i, Z, codes in known]
    other = [(i, Z[6:], codes[6:]) for i, Z, codes in known]
    joint = found.covariance(X, known)
    first, second = found.fit._errors.rows(X[:6], half), found.fit._errors.rows(X[6:], other)
    expected = np.diagonal(joint[:6, 6:])
    np.testing.assert_allclose(first.covariance_with(second), expected, atol=ROUNDING * joint.max())


@pytest.mark.parametrize("make", [nested, SLOW], ids=lambda make: make.__name__)
def test_draws_have_the_joint_covariance(make) -> None:
    found, num = dense(make), 4000
    expected = found.model.errors(found.covs, found.sigma)
    draws = [
        np.concatenate([draw.beta, *(effects.ravel() for effects in draw.effects)])
        for draw in found.fit._errors.draws(3, num)
    ]
    sd = np.sqrt(np.diagonal(expected))
    correlation = np.cov(np.array(draws).T) / np.outer(sd, sd)
    # Of 4,000 draws a correlation has a standard error of 0.016.
    np.testing.assert_allclose(correlation, expected / np.outer(sd, sd), atol=0.1)

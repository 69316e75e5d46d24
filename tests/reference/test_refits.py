"""Batches of responses against lme4's fit of every one; `refits.py` beside this file has the sets."""

import warnings

import numpy as np
import pytest

import jaxmixed as jm
from tests.reference import refits

pytestmark = pytest.mark.reference

CRITERION = 1e-8
"""lme4's fits are polished until the predicted gain is 1e-15; sums of some hundred terms round to 1e-12."""

ERRORS = 1e-6
"""Estimates of the reference are good to about 1e-8 of their standard errors."""

QUICK = {"sleepstudy", "sleepstudy_slope0"}


def sets(method: str) -> list:
    return [
        pytest.param(name, method, marks=() if name in QUICK and method == "reml" else pytest.mark.slow)
        for name in refits.NAMES
    ]


@pytest.mark.parametrize(("name", "method"), [case for m in refits.METHODS for case in sets(m)])
def test_every_response_has_the_estimates_of_its_own_fit(name, method):
    stored = refits.load(name)
    expected = stored.fits[method]
    right = "~" + stored.formula.partition("~")[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = jm.fit_many(right, stored.data, stored.Y, method=method)
    assert many.converged.all()
    # Higher is never a failure.
    assert (many.llf.to_numpy() > expected.loglik - CRITERION).all()
    np.testing.assert_allclose(many.llf, expected.loglik, rtol=0, atol=CRITERION)
    np.testing.assert_array_equal(many.nobs, np.isfinite(stored.Y).sum(axis=0))
    assert tuple(many.params.columns) == stored.fixed
    np.testing.assert_allclose(many.params / expected.se, expected.beta / expected.se, rtol=0, atol=ERRORS)
    np.testing.assert_allclose(many.bse, expected.se, rtol=ERRORS)
    np.testing.assert_allclose(many.sigma, expected.sigma, rtol=ERRORS)
    np.testing.assert_array_equal(many.is_singular, expected.singular)


@pytest.mark.parametrize("name", ["sleepstudy", pytest.param("pastes", marks=pytest.mark.slow)])
def test_every_response_has_the_covariances_of_its_own_fit(name):
    stored = refits.load(name)
    expected = stored.fits["reml"]
    many = jm.fit_many("~" + stored.formula.partition("~")[2], stored.data, stored.Y)
    table = many.varcorr
    scale = expected.sigma**2
    for term, covariance in zip(stored.terms, expected.covariances, strict=True):
        group = ":".join(reversed(term.group.split(":")))
        for i, first in enumerate(term.effects):
            for j, second in enumerate(term.effects[: i + 1]):
                rows = table[(table["group"] == group) & (table["effect"] == second)]
                rows = rows[rows["effect2"].isna() if i == j else rows["effect2"] == first]
                found = rows["estimate"].to_numpy()
                np.testing.assert_allclose(found / scale, covariance[:, i, j] / scale, rtol=1e-5, atol=1e-5)

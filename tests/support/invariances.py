"""What a change of units must do to a fit, whatever its groupings.

A case has `data` with columns x and y, a generator `rng`, the `method`, and `fit(data)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import jaxmixed as jm


def covariances(fit: jm.MixedResults) -> dict[str, np.ndarray]:
    return {term.group: term.cov.to_numpy() for term in fit.random_terms}


def response_in_any_unit(c: Any) -> None:
    """The response in another unit, and shifted."""
    unit = float(10 ** c.rng.uniform(-8, 8)) * c.rng.choice([-1, 1])
    shift = float(c.rng.normal(scale=100))
    base, moved = c.fit(), c.fit(c.data.assign(y=unit * (c.data["y"] + shift)))
    df = base.nobs - (len(base.params) if c.method == "reml" else 0)
    np.testing.assert_allclose(moved.llf, base.llf - df * np.log(abs(unit)), rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moved.sigma, base.sigma * abs(unit), rtol=1e-6)
    np.testing.assert_allclose(moved.bse, base.bse * abs(unit), rtol=1e-5)
    shifted = base.fittedvalues + shift
    np.testing.assert_allclose(moved.fittedvalues / unit, shifted, rtol=1e-5, atol=1e-5)
    for group, cov in covariances(base).items():
        np.testing.assert_allclose(
            covariances(moved)[group] / unit**2, cov, rtol=1e-4, atol=1e-5 * base.sigma**2
        )


def predictor_in_any_unit(c: Any) -> None:
    """A predictor in another unit, and shifted."""
    unit = float(10 ** c.rng.uniform(-6, 6)) * c.rng.choice([-1, 1])
    shift = float(c.rng.normal(scale=3))
    base, moved = c.fit(), c.fit(c.data.assign(x=unit * (c.data["x"] + shift)))
    jacobian = np.log(abs(unit)) if c.method == "reml" else 0.0
    np.testing.assert_allclose(moved.llf, base.llf - jacobian, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moved.params["x"] * unit, base.params["x"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.bse["x"] * abs(unit), base.bse["x"], rtol=1e-4)
    np.testing.assert_allclose(moved.fittedvalues, base.fittedvalues, rtol=1e-4, atol=1e-4)

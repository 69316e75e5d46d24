"""Properties of drawn designs: how they are tested, and what a change of units must do to any fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import jaxmixed as jm
from tests.support.fits import quietly


@dataclass(frozen=True)
class Case:
    """A data set, with columns x and y, with a model."""

    data: pd.DataFrame
    formula: str
    method: str
    rng: np.random.Generator

    def fit(self, data: Any = None, formula: str | None = None, **options: Any) -> jm.MixedResults:
        return quietly(
            self.formula if formula is None else formula,
            self.data if data is None else data,
            method=self.method,
            **options,
        )


def short_and_long(
    check: Callable[[int], None], seeds: tuple[int, ...]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """A property as two tests: some designs, by their seeds, and 500 of them marked slow."""

    @pytest.mark.parametrize("seed", seeds)
    def short(seed: int) -> None:
        check(seed)

    def holds(seed: int) -> None:
        check(seed)

    every = settings(
        max_examples=500,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    return short, pytest.mark.slow(pytest.mark.timeout(900)(every(given(st.integers(0, 2**32 - 1))(holds))))


def covariances(fit: jm.MixedResults) -> dict[str, np.ndarray]:
    return {term.group: term.cov.to_numpy() for term in fit.random_terms}


def response_in_any_unit(c: Case) -> None:
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


def predictor_in_any_unit(c: Case) -> None:
    """A predictor in another unit, and shifted."""
    unit = float(10 ** c.rng.uniform(-6, 6)) * c.rng.choice([-1, 1])
    shift = float(c.rng.normal(scale=3))
    base, moved = c.fit(), c.fit(c.data.assign(x=unit * (c.data["x"] + shift)))
    jacobian = np.log(abs(unit)) if c.method == "reml" else 0.0
    np.testing.assert_allclose(moved.llf, base.llf - jacobian, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moved.params["x"] * unit, base.params["x"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.bse["x"] * abs(unit), base.bse["x"], rtol=1e-4)
    np.testing.assert_allclose(moved.fittedvalues, base.fittedvalues, rtol=1e-4, atol=1e-4)

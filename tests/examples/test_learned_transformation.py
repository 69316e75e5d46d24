"""Learned parameters against the front end's fits, dense covariances, grids and finite differences."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

import jaxmixed as jm
from jaxmixed.precision import double_precision
from tests.support.examples import load

example = load("learned_transformation")

pytestmark = pytest.mark.slow

STEPS, SITES, SAMPLES, POINTS, SEED = 300, 45, 2, 31, 0

FIT = 1e-7
"""Relative, of log-likelihoods at the maxima that two searches find."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return example.main(STEPS, SITES, SAMPLES, POINTS, SEED)


@pytest.fixture(scope="module")
def field() -> Any:
    return example.simulate(SITES, SAMPLES, SEED)


def transformed(lam: float) -> float:
    """Maximised log-likelihood of the times' power, with the Jacobian, by the front end."""
    data = jm.datasets.load("sleepstudy")
    y = data["Reaction"].to_numpy()
    fit = jm.mixed("z ~ Days + (Days | Subject)", data.assign(z=(y**lam - 1) / lam), method="ml")
    return float(fit.llf + (lam - 1) * np.sum(np.log(y)))


def test_the_power_is_that_of_refits_of_the_transformed_times(found: dict[str, Any]) -> None:
    power = found["power"]
    best = minimize_scalar(lambda lam: -transformed(lam), bracket=(-0.9, -0.7), options={"xtol": 1e-4})
    assert power["lambda"] == pytest.approx(best.x, abs=1e-3)
    assert power["log-likelihood"] == pytest.approx(-best.fun, rel=FIT)
    for end in ("lower", "upper"):
        assert transformed(power[end]) == pytest.approx(-best.fun - example.CHI2_95 / 2, rel=FIT)


def test_no_power_of_the_grid_is_better(found: dict[str, Any]) -> None:
    powers, power = found["powers"], found["power"]
    assert powers.max() <= power["log-likelihood"]
    assert abs(powers.idxmax() - power["lambda"]) <= powers.index[1] - powers.index[0]
    reciprocal = powers.index[np.argmin(np.abs(powers.index + 1))]
    assert powers[reciprocal] == pytest.approx(transformed(reciprocal), rel=FIT)
    assert power["lower"] < -1 < power["upper"] < 0


def test_the_transformation_is_smooth_at_the_logarithm() -> None:
    y = np.array([200.0, 250.0, 400.0])
    with double_precision():
        near, at = (np.asarray(example.power(jnp.asarray(y), jnp.asarray(lam))) for lam in (1e-3, 0.0))
    mean = np.exp(np.log(y).mean())
    np.testing.assert_allclose(at, mean * np.log(y), rtol=1e-12)
    np.testing.assert_allclose(near, (y**1e-3 - 1) / 1e-3 * mean ** (1 - 1e-3), rtol=1e-10)


def dense(field: Any, length: float) -> tuple[float, float]:
    """REML log-likelihood and error at the other sites, from covariance matrices of all samples."""
    apart = np.linalg.norm(field.places[:, None] - field.places[None], axis=-1)
    K = (np.exp(-(apart**2) / (2 * length**2)) + 1e-4 * np.eye(len(apart))) / (1 + 1e-4)
    K = K[field.site][:, field.site]
    seen = field.observed == 1
    y, X, n, p = field.y[seen], field.X[seen], int(seen.sum()), field.X.shape[1]

    def fit(theta: float) -> tuple[float, np.ndarray, np.ndarray]:
        V = np.eye(n) + theta**2 * K[np.ix_(seen, seen)]
        VX = np.linalg.solve(V, X)
        beta = np.linalg.solve(X.T @ VX, VX.T @ y)
        weighted = np.linalg.solve(V, y - X @ beta)
        variance = (y - X @ beta) @ weighted / (n - p)
        logdet = np.linalg.slogdet(V)[1] + np.linalg.slogdet(X.T @ VX)[1]
        return -0.5 * (logdet + (n - p) * (1 + np.log(2 * np.pi * variance))), beta, weighted

    theta = minimize_scalar(
        lambda t: -fit(t)[0], bounds=(0.1, 5), method="bounded", options={"xatol": 1e-9}
    ).x
    loglik, beta, weighted = fit(theta)
    predicted = field.X[~seen] @ beta + theta**2 * K[np.ix_(~seen, seen)] @ weighted
    return float(loglik), float(np.mean((field.y[~seen] - predicted) ** 2))


def test_both_criteria_are_those_of_dense_covariances(found: dict[str, Any], field: Any) -> None:
    profile: pd.DataFrame = found["field"]
    for length in profile.index[[8, 14, 20]]:
        expected = dense(field, length)
        np.testing.assert_allclose(
            profile.loc[length, ["loglik", "error"]].astype(float), expected, rtol=1e-6
        )


def test_each_criterion_is_best_at_its_own_length(found: dict[str, Any]) -> None:
    lengths, profile = found["lengths"], found["field"]
    by_likelihood, by_error = lengths.loc["likelihood"], lengths.loc["error at other sites"]
    assert by_likelihood["loglik"] >= max(profile["loglik"].max(), by_error["loglik"])
    assert by_error["error"] <= min(profile["error"].min(), by_likelihood["error"])
    ratio = profile.index[1] / profile.index[0]
    for line in (by_likelihood, by_error):
        assert 1 / ratio < line["length"] / line["on a grid"] < ratio


def test_derivatives_through_the_fit_are_those_of_refits(field: Any) -> None:
    at, step = np.log(1.2), 1e-4
    with double_precision():
        _, slope = example.criteria(jnp.asarray(at, float), field)
        up, down = (example.criteria(jnp.asarray(at + h, float), field)[0] for h in (step, -step))
        difference = (np.array(up) - np.array(down)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-5)

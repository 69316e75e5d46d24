"""Tests of coefficients beside correlated residuals: definitions with n x n matrices, and equal models."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.residual_variation import is_linear, of_any_covariance
from tests.support.dense_residual_tests import DenseCurved, curved_model, linear_residual, natural_residual
from tests.support.dense_residuals import Structure
from tests.support.dense_tests import kenward_roger_test, satterthwaite_df
from tests.support.fits import quietly

SAME = 1e-6
"""Relative, of what follows from estimates that have about ten digits."""

SUBJECTS, TIMES = 14, 4


@cache
def data() -> pd.DataFrame:
    """Subjects at up to four times, one of them late; groups of several sizes."""
    rng = np.random.default_rng(1)
    g, t = np.repeat(np.arange(SUBJECTS), TIMES), np.tile(np.arange(TIMES), SUBJECTS)
    root = np.array([[1, 0, 0, 0], [0.6, 1.1, 0, 0], [0.5, 0.4, 1.2, 0], [0.3, 0.4, 0.6, 1.5]])
    e = (rng.normal(size=(SUBJECTS, TIMES)) @ root.T).ravel()
    x, kept = rng.normal(size=len(g)), rng.uniform(size=len(g)) < 0.85
    kept[: 2 * TIMES] = True
    arm, half = np.where(g % 2, "a", "b"), np.where(g % 4 < 2, "A", "B")
    w = np.round(rng.uniform(0.5, 2.0, len(g)), 2)
    y = 1 + 0.5 * t + (g % 2) * 0.3 * t + e / np.sqrt(w)
    c = np.arange(len(g)) % 5
    y += np.array([1.0, -0.5, 0.2, -1.2, 0.6])[c]
    table = pd.DataFrame({"g": g, "t": t, "x": x, "arm": arm, "half": half, "c": c, "w": w, "y": y})
    return table[kept].reset_index(drop=True).assign(late=lambda own: own["t"] + 3 * (own["t"] == 3))


class Model(NamedTuple):
    """A fit, and what its residual structure is by definition."""

    formula: str
    residuals: object
    structure: Structure
    linear: bool
    weights: str | None = None


R = jm.residuals
MODELS = {
    "unstructured": Model(
        "y ~ x + t * arm",
        R.Unstructured(time="t", group="g"),
        Structure("unstructured", group="g", time="t", variance_by="t"),
        True,
    ),
    "ar1": Model(
        "y ~ x + t * arm", R.AR(time="late", group="g"), Structure("ar", group="g", time="late"), False
    ),
    "ar1 and intercept": Model(
        "y ~ x + t * arm + (1 | g)",
        R.AR(time="late", group="g"),
        Structure("ar", group="g", time="late"),
        False,
    ),
    "ar1 and crossed intercept": Model(
        "y ~ x + t * arm + (1 | c)",
        R.AR(time="late", group="g"),
        Structure("ar", group="g", time="late"),
        False,
    ),
    "exchangeable": Model(
        "y ~ x + t * arm",
        R.Exchangeable(group="g", time="t"),
        Structure("exchangeable", group="g", time="t"),
        True,
    ),
    "exponential by half": Model(
        "y ~ x + t * arm",
        R.Exponential(time="late", group="g", by="half"),
        Structure("exponential", group="g", time="late", by="half"),
        False,
    ),
    "heterogeneous ar1, weights": Model(
        "y ~ x + t * arm",
        R.AR(time="t", group="g", variance_by="t"),
        Structure("ar", group="g", time="t", variance_by="t", weights="w"),
        False,
        "w",
    ),
    "antedependence": Model(
        "y ~ x + t * arm",
        R.AnteDependence(time="t", group="g"),
        Structure("antedependence", group="g", time="t", variance_by="t"),
        False,
    ),
    "variances and slope": Model(
        "y ~ x + t * arm + (t || g)",
        R.Independent(variance_by="arm"),
        Structure("independent", variance_by="arm"),
        True,
    ),
}
QUICK = ("unstructured", "ar1", "ar1 and intercept")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in MODELS]


@cache
def fitted(name: str, method: str = "reml") -> jm.MixedResults:
    model = MODELS[name]
    return quietly(model.formula, data(), method=method, residuals=model.residuals, weights=model.weights)


def effects(fit: jm.MixedResults) -> list[tuple[np.ndarray, float]]:
    """Matrices whose sum, each times a variance or covariance, is that of the random effects."""
    found = []
    for term in fit.estimates.terms:
        group = fit.frame.groups[term.frame_index]
        Z, same = np.asarray(group.Z), group.codes[:, None] == group.codes[None, :]
        for i, own in enumerate(Z.T):
            if term.cov[i, i] > 0:
                found.append((same * np.outer(own, own), float(term.cov[i, i])))
    return found


@cache
def dense(name: str, method: str = "reml") -> DenseCurved:
    """V in the parameters of the model's metric, from its definition at the estimates' natural parameters.

    Variances and the natural parameters of the correlations; or, where the covariance matrices of the
    residuals are a linear space, the values of entries that are equal.
    """
    fit = fitted(name, method)
    values = dict(fit.residual_parameters)
    redundant = {own.replace("range", "rho") for own in values if own.startswith("range")}
    values = {own: value for own, value in values.items() if own not in redundant}
    values = {own: value**2 if own.startswith("sd[") else value for own, value in values.items()}
    if not any(own.startswith("sd[") for own in values):
        values["sigma2"] = fit.sigma**2
    residual, at = (
        natural_residual(MODELS[name].structure, data(), list(values)),
        np.array([*values.values()]),
    )
    if MODELS[name].linear:
        entries = np.round(residual(at), 9)
        at = np.array([value for value in np.unique(entries) if value != 0])
        residual = linear_residual([(entries == value).astype(float) for value in at])
    return curved_model(np.asarray(fit.frame.X), fit.frame.y, effects(fit), residual, at)


@pytest.mark.parametrize("method", ["reml", pytest.param("ml", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_satterthwaite_is_its_definition(name: str, method: str) -> None:
    fit = fitted(name, method)
    L = np.vstack([np.eye(5), np.linspace(-1, 2, 5)])
    expected = satterthwaite_df(dense(name, method), L, method)
    np.testing.assert_allclose(fit.fixed_inference("satterthwaite").df(L), expected, rtol=SAME)


@pytest.mark.parametrize("name", CASES)
def test_kenward_roger_is_its_definition(name: str) -> None:
    fit = fitted(name)
    found = fit.estimates.residual
    assert found is not None
    assert is_linear(of_any_covariance(fit.state), found) == MODELS[name].linear
    inference, beta = fit.fixed_inference("kenward-roger"), fit.params.to_numpy()
    for L in (np.eye(5)[1:2], np.eye(5)[2:]):
        expected = kenward_roger_test(dense(name), L, beta)
        np.testing.assert_allclose(inference.cov, expected.adjusted, rtol=SAME, atol=1e-10)
        tested = inference.reference.joint(L, L @ beta)
        np.testing.assert_allclose(tested, (expected.statistic, expected.df), rtol=SAME)


@cache
def orthodont(residuals: str | None = None, formula: str = "distance ~ age * Sex") -> jm.MixedResults:
    return quietly(formula, jm.datasets.load("orthodont"), residuals=residuals)


def test_exchangeable_residuals_are_a_random_intercept() -> None:
    one = orthodont("cs(age | Subject)")
    two = orthodont(None, "distance ~ age * Sex + (1 | Subject)")
    for ddf in ("satterthwaite", "kenward-roger", "between-within"):
        columns = ["std_error", "df", "p_value"]
        tables = (fit.coef_table(ddf)[columns] for fit in (one, two))
        np.testing.assert_allclose(*tables, rtol=SAME)
    np.testing.assert_allclose(one.robust().cov, two.robust().cov, rtol=SAME, atol=1e-9)


def test_a_trial_with_unstructured_residuals() -> None:
    """Kenward and Roger's numbers from their formulas at the estimates of nlme's gls, in R."""
    table = jm.datasets.load("depression")
    fit = quietly("change ~ baseline * visit + arm * visit", table, residuals="us(visit | patient)")
    names = fit.params.index.tolist()
    L = np.array([[name in ("armdrug", "visitW8:armdrug") for name in names]], dtype=float)
    inference = fit.fixed_inference("kenward-roger")
    np.testing.assert_allclose(inference.estimate(L), -2.1107347, rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(inference.covariance(L)[0]), 1.0587858, rtol=1e-6)
    np.testing.assert_allclose(inference.df(L), 162.72298, rtol=1e-6)
    # With one function Satterthwaite's degrees of freedom are theirs from the observed information.
    np.testing.assert_allclose(fit.fixed_inference("satterthwaite").df(L), 161.79234, rtol=1e-6)


def test_a_parameter_at_the_end_of_its_range_is_held_there() -> None:
    """Correlations that cannot be negative are zero, and all is as with independent residuals."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"g": np.repeat(np.arange(15), 5), "t": np.tile(np.arange(5), 15)})
    e = rng.normal(size=(15, 6))
    table["x"] = rng.normal(size=75)
    table["y"] = table["x"] + (e[:, 1:] - 0.7 * e[:, :-1]).ravel()
    fit, plain = quietly("y ~ x + t", table, residuals="exp(t | g)"), quietly("y ~ x + t", table)
    assert fit.residual_parameters["rho"] < 1e-10
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_allclose(
            *(own.coef_table(ddf)[["std_error", "df"]] for own in (fit, plain)), rtol=SAME
        )
    assert fit.conf_int(which="rho", method="profile").isna().all(axis=None)

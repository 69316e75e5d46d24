"""Simulation, refits and bootstraps where residuals are correlated, and what is refused there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.replicated_effects import EffectsPass
from jaxmixed.resampling import cluster
from tests.support.dense_forecasts import dense_forecasts
from tests.support.dense_residuals import Structure
from tests.support.fits import autoregressive, mares, quietly

INTERCEPTS = "follicles ~ Time + (1 | Mare)"
STRUCTURE = Structure("ar", group="Mare", time="occasion")
# Standard errors that a Monte Carlo mean may be away from what it estimates.
SIGMAS = 5.5
# Optima found from different starts agree to about the square root of the last gradient.
OPTIMUM = 1e-6
ROUNDING = 1e-9


def check_covariance(values: np.ndarray, V: np.ndarray) -> None:
    """Covariances over the columns are those given, within Monte Carlo error."""
    count, variances = values.shape[1], np.diagonal(V)
    errors = np.sqrt((np.outer(variances, variances) + V**2) / count)
    assert (np.abs(np.cov(values) - V) / errors).max() < SIGMAS


def test_simulated_responses_have_the_covariance_of_the_model() -> None:
    found = autoregressive(INTERCEPTS)
    dense = dense_forecasts(found, mares(), mares()[:0], ("Time",), STRUCTURE)
    values = found.simulate(4000, seed=1).to_numpy()
    check_covariance(values, dense.covariance)
    own = found.simulate(4000, seed=1, random="fitted").to_numpy()
    check_covariance(own, dense.residual)
    np.testing.assert_allclose(own.mean(axis=1), found.fittedvalues, atol=SIGMAS * found.sigma / 4000**0.5)


def test_a_replicate_is_the_same_however_many_there_are() -> None:
    found = autoregressive()
    many, few = found.simulate(300, seed=3), found.simulate(2, seed=3)
    pd.testing.assert_frame_equal(many[["sim_1", "sim_2"]], few, check_exact=True)


def test_weights_and_variances_enter_simulated_residuals() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=np.tile([1.0, 4.0], 90))
    found = quietly("Reaction ~ Days", data, residuals="cs(Subject)", weights="w")
    values = found.simulate(3000, seed=1).to_numpy()[:10]
    check_covariance(values, found.wcorrelation(308).covariance.to_numpy())


def test_a_refit_is_the_fit_of_the_response() -> None:
    found = autoregressive(INTERCEPTS)
    y = found.simulate(1, seed=5)["sim_1"]
    again = found.refit(y)
    fresh = quietly(INTERCEPTS, mares().assign(follicles=y), residuals="ar1(occasion | Mare)")
    np.testing.assert_allclose(again.llf, fresh.llf, rtol=1e-10)
    np.testing.assert_allclose(again.residual_parameters, fresh.residual_parameters, rtol=OPTIMUM)
    np.testing.assert_allclose(again.params, fresh.params, rtol=OPTIMUM)
    assert again.residual_parameters.index.tolist() == ["phi1"]


def test_parametric_replicates_are_refits_of_simulated_responses() -> None:
    found = autoregressive(INTERCEPTS)
    boot = found.bootstrap(6, seed=1)
    y = found.simulate(6, seed=1)
    refits = [quietly_refit(INTERCEPTS, y[name]) for name in y]
    np.testing.assert_allclose(boot.llf, [float(one.llf) for one in refits], rtol=1e-10)
    phi = [float(one.residual_parameters["phi1"]) for one in refits]
    np.testing.assert_allclose(boot.residual["phi1"], phi, rtol=OPTIMUM)
    table = boot.table()
    assert table.loc["phi1", "kind"] == "residual"
    np.testing.assert_allclose(table.loc["phi1", "estimate"], found.residual_parameters["phi1"])
    np.testing.assert_allclose(table.loc["phi1", "std_error"], np.std(phi, ddof=1), rtol=1e-5)
    assert np.isfinite(boot.conf_int(method="studentized").loc["phi1"]).all()
    assert boot.replicates.num_params.tolist() == [found.num_params] * 6


def quietly_refit(formula: str, y: Any) -> jm.MixedResults:
    return quietly(formula, mares().assign(follicles=y), residuals="ar1(occasion | Mare)")


def test_many_responses_are_fitted_one_after_the_other_to_the_rows_that_they_have() -> None:
    found = autoregressive(INTERCEPTS)
    Y = found.simulate(3, seed=1)
    Y.loc[Y.index[:7], "sim_2"] = np.nan
    Y["constant"] = 1.0
    many = quietly_many(found, Y)
    for name in ("sim_1", "sim_2"):
        fresh = quietly_refit(INTERCEPTS, Y[name])
        np.testing.assert_allclose(many.llf[name], fresh.llf, rtol=1e-10)
        np.testing.assert_allclose(many.params.loc[name], fresh.params, rtol=OPTIMUM)
        residual = many.residual_parameters.loc[name]
        np.testing.assert_allclose(residual, fresh.residual_parameters, rtol=OPTIMUM)
        assert many.nobs[name] == fresh.nobs
        assert many.aic[name] == pytest.approx(fresh.aic)
    assert many.reason["constant"] == "the response is constant"
    with pytest.raises(jm.DesignError, match="independent residuals"):
        many.coef_table("Time", ddf="satterthwaite")


def quietly_many(found: jm.MixedResults, Y: pd.DataFrame) -> jm.ManyResults:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.JaxMixedWarning)
        return found.refit_many(Y)


@pytest.mark.slow
def test_clusters_are_drawn_with_the_times_of_their_rows() -> None:
    data = mares()
    for formula in ("follicles ~ Time", INTERCEPTS):
        found = autoregressive(formula)
        boot = found.bootstrap(2, "cluster", seed=2)
        (drawn, _) = cluster(found, 2)(0, 2)
        copy = data.iloc[drawn.rows].assign(Mare=[f"m{code}" for code in drawn.codes[-1]])
        fresh = quietly(formula, copy, residuals="ar1(occasion | Mare)")
        np.testing.assert_allclose(boot.llf.iloc[0], fresh.llf, rtol=1e-9)
        np.testing.assert_allclose(boot.residual["phi1"].iloc[0], fresh.residual_parameters, rtol=OPTIMUM)


@pytest.mark.slow
def test_influence_of_groups_is_found_by_fits_without_them() -> None:
    found = autoregressive(INTERCEPTS)
    influence = found.influence("Mare", method="deletion")
    rest = mares()[mares()["Mare"] != "4"]
    without = quietly(INTERCEPTS, rest, residuals="ar1(occasion | Mare)")
    np.testing.assert_allclose(influence.refits.params.loc["4"], without.params, rtol=OPTIMUM)
    change = without.params - found.params
    distance = change @ np.linalg.solve(found.cov_params(), change) / 2
    np.testing.assert_allclose(influence.table.loc["4", "cooks_distance"], distance, rtol=1e-5)


@pytest.mark.slow
def test_a_likelihood_ratio_is_simulated_from_the_smaller_model() -> None:
    small, large = autoregressive(), autoregressive(INTERCEPTS)
    test = small.lrtest(large, simulate=5, seed=1)
    y = small.simulate(5, seed=1)
    pairs = [
        [quietly_refit(formula, y[name]).llf for name in y] for formula in ("follicles ~ Time", INTERCEPTS)
    ]
    drawn = 2 * np.maximum(np.subtract(pairs[1], pairs[0]), 0)
    expected = (1 + (drawn >= test.statistic - 1e-6).sum()) / 6
    np.testing.assert_allclose(test.p_value, expected)


def test_effects_of_further_responses_are_those_of_the_whitened_model() -> None:
    for formula, weights in (("follicles ~ Time", None), (INTERCEPTS, "w")):
        found = quietly(formula, mares(), residuals="ar1(occasion | Mare)", weights=weights)
        y = mares()["follicles"].to_numpy()
        (own,) = EffectsPass(found.state, found.estimates).solve(np.column_stack([y, 2 * y + 3]))
        np.testing.assert_allclose(own.beta[0], found.params, rtol=ROUNDING)
        np.testing.assert_allclose(own.sigma, [found.sigma, 2 * found.sigma], rtol=ROUNDING)
        for modes, estimated in zip(own.modes, found._modes, strict=True):
            np.testing.assert_allclose(modes[0], estimated, rtol=1e-7, atol=ROUNDING)


def test_autocorrelations_are_of_normalized_residuals_by_the_times_of_the_structure() -> None:
    found = autoregressive()
    table = found.autocorrelation(simulations=0)
    values = found.residuals("normalized")
    data = mares().assign(r=values)
    pairs = data.merge(data.assign(occasion=data["occasion"] - 1), on=["Mare", "occasion"])
    expected = (pairs["r_x"] * pairs["r_y"]).mean() / (values**2).mean()
    np.testing.assert_allclose(table["autocorrelation"][1], expected, rtol=ROUNDING)
    assert table["pairs"][1] == len(pairs)
    assert len(found.variogram()) > 3
    limits = found.autocorrelation(simulations=39)
    assert ((limits["low"] < 0) & (limits["high"] > 0))[1:6].all()


REFUSED: dict[str, Callable[[jm.MixedResults], Any]] = {
    "residuals are drawn as if": lambda fit: fit.bootstrap(3, "residual", seed=1),
    "rows are drawn as if": lambda fit: fit.bootstrap(3, "case", seed=1),
    "the first order of deletion": lambda fit: fit.influence(),
    "labels change places": lambda fit: fit.permutation_test(n=3, seed=1),
    r"simulate\(\) draws independent": lambda fit: jm.simulate(fit.formula, mares(), fit),
    r"power\(\) draws and fits": lambda fit: jm.power(fit=fit, test="Time", n=3),
    "degrees of freedom of many models": lambda fit: fit.influence("Mare", "deletion").refits.coef_table(
        "Time", ddf="satterthwaite"
    ),
}


@pytest.mark.parametrize(
    "why", [*list(REFUSED)[:-1], pytest.param(list(REFUSED)[-1], marks=pytest.mark.slow)]
)
def test_what_needs_independent_residuals_is_refused_with_the_reason(why: str) -> None:
    with pytest.raises(jm.DesignError, match=why):
        REFUSED[why](autoregressive(INTERCEPTS))


def test_unequal_variances_without_groups_have_no_clusters() -> None:
    data = jm.datasets.load("sleepstudy")
    residuals = jm.residuals.Independent(variance=jm.residuals.Exp("Days"))
    found = quietly("Reaction ~ Days", data, residuals=residuals)
    with pytest.raises(jm.DesignError, match="no groups to draw"):
        found.bootstrap(3, "cluster", seed=1)
    values = found.simulate(3000, seed=1).to_numpy()
    sd = found.sigma * np.exp(found.residual_parameters["delta"] * data["Days"])
    np.testing.assert_allclose(values.std(axis=1), sd, rtol=0.08)

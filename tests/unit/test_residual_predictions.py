"""Predictions and residuals where residuals are correlated: against kriging with dense matrices, and nlme."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.inference import VarianceParameters, parameter_covariance
from tests.support.dense_forecasts import DenseForecasts, dense_forecasts, moved
from tests.support.dense_residuals import Structure
from tests.support.fits import autoregressive, mares

# Two routes to the same number differ by rounding; matrices have condition numbers of up to 1e4.
ROUNDING = 1e-9
# nlme's optimum is found to about seven digits.
NLME = 2e-6
# Central differences of step 1e-5.
DIFFERENCES = 2e-4

AR = Structure("ar", group="Mare", time="occasion")


def marginal() -> jm.MixedResults:
    return autoregressive()


def conditional() -> jm.MixedResults:
    return autoregressive("follicles ~ Time + (1 | Mare)")


NEW = pd.DataFrame(
    {
        "Mare": ["4", "4", "2", "4", "1"],
        "occasion": [8, 36, 3, -4, 3],  # in a gap, beyond the end and further than any lag, before the start
        "Time": [0.31, 1.2, -0.11, 0.3, -0.06],
        "w": [1.0, 2.0, 1.0, 0.5, 1.5],
    }
)


def check(fit: jm.MixedResults, dense: DenseForecasts, weights: str | None = None) -> None:
    """Predictions, and errors of means and responses, are those of dense matrices."""
    expected, new = dense.forecast(), dense.new
    np.testing.assert_allclose(fit.predict(new, weights=weights), expected.estimate, rtol=ROUNDING)
    means = fit.predictions(new, weights=weights)
    np.testing.assert_allclose(means["estimate"], expected.estimate, rtol=ROUNDING)
    np.testing.assert_allclose(means["std_error"], expected.of_mean, rtol=1e2 * ROUNDING)
    responses = fit.predictions(new, interval="prediction", weights=weights)
    np.testing.assert_allclose(responses["std_error"], expected.of_response, rtol=ROUNDING)


# Forecasts


@pytest.mark.parametrize("make", [marginal, conditional])
def test_new_rows_are_predicted_with_the_residuals_of_their_group(make) -> None:  # type: ignore[no-untyped-def]
    fit = make()
    check(fit, dense_forecasts(fit, mares(), NEW, ("Time",), AR))


@pytest.mark.slow
def test_weights_and_a_variance_function_enter_forecasts() -> None:
    data = mares()
    residuals = jm.residuals.Exponential(time="Time", variance=jm.residuals.Exp("Time"))
    fit = jm.mixed("follicles ~ Time + (1 | Mare)", data, residuals=residuals, weights="w")
    structure = Structure("exponential", group="Mare", time="Time", exp="Time", weights="w")
    check(fit, dense_forecasts(fit, data, NEW, ("Time",), structure), weights="w")
    with pytest.raises(jm.DataError, match="the model has precision weights"):
        fit.predict(NEW)


@cache
def dropouts() -> pd.DataFrame:
    """A trial from which patients drop out, its later visits missing."""
    trial = jm.datasets.load("depression")
    trial = trial[trial["patient"].isin(sorted(trial["patient"].unique())[:60])]
    return trial.assign(drug=(trial["arm"] == "drug").astype(float)).reset_index(drop=True)


def test_visits_after_dropout_are_predicted_from_those_before_by_an_unstructured_covariance() -> None:
    trial = dropouts()
    fit = jm.mixed("change ~ baseline + drug", trial, residuals="us(visit | arm/patient)")
    seen = set(zip(trial["patient"], trial["visit"], strict=True))
    facts = trial.drop_duplicates("patient")
    missed = [
        {"patient": own.patient, "arm": own.arm, "drug": own.drug, "baseline": own.baseline, "visit": visit}
        for own in facts.itertuples()
        for visit in ("W6", "W8")
        if (own.patient, visit) not in seen
    ]
    assert len(missed) > 5
    new = pd.DataFrame(missed)
    structure = Structure("unstructured", group="patient", time="visit", by="arm", variance_by="visit")
    check(fit, dense_forecasts(fit, trial, new, ("baseline", "drug"), structure))
    population = fit.predictions(new, random=False, interval="prediction")["std_error"] ** 2
    sd = [fit.residual_parameters[f"sd[{own.arm},{own.visit}]"] for own in new.itertuples()]
    errors = fit.predictions(new, random=False)["std_error"] ** 2
    np.testing.assert_allclose(population, errors + np.square(sd), rtol=ROUNDING)
    with pytest.raises(jm.DataError, match="'visit' has the level 'W12'"):
        fit.predict(new[:1].assign(visit="W12"))
    with pytest.raises(jm.DataError, match="another stratum of 'arm'"):
        fit.predict(new.assign(arm=np.where(new["arm"] == "drug", "placebo", "drug")))


@pytest.mark.slow
def test_exchangeable_residuals_forecast_as_random_intercepts_do() -> None:
    data = jm.datasets.load("sleepstudy")
    one = jm.mixed("Reaction ~ Days", data, residuals="cs(Subject)")
    other = jm.mixed("Reaction ~ Days + (1 | Subject)", data)
    new = pd.DataFrame({"Subject": ["308", "335", "335"], "Days": [10, 3, 11]})
    np.testing.assert_allclose(one.predict(new), other.predict(new), rtol=1e-6)
    for interval in ("confidence", "prediction"):
        mine, theirs = (
            fit.predictions(new, interval=interval, variance_parameters="estimated", ddf="satterthwaite")
            for fit in (one, other)
        )
        if interval == "prediction":  # the mean of the one is the other's with the random intercept
            np.testing.assert_allclose(mine, theirs, rtol=1e-4)
        np.testing.assert_allclose(mine["estimate"], theirs["estimate"], rtol=1e-6)


def test_rows_at_observed_times_are_the_fitted_ones_and_population_predictions_know_no_residuals() -> None:
    data = mares()
    for fit in (marginal(), conditional()):
        np.testing.assert_allclose(fit.predict(data), fit.fittedvalues, rtol=ROUNDING)
        own = fit.predictions(data)
        np.testing.assert_allclose(own["std_error"], fit.predictions()["std_error"], rtol=ROUNDING)
        population = fit.predict(NEW, random=False)
        np.testing.assert_allclose(population, fit.params.iloc[0] + fit.params.iloc[1] * NEW["Time"])
        short = NEW[["Time"]]
        np.testing.assert_array_equal(fit.predict(short, random=False), population)
        errors = fit.predictions(short, random=False)["std_error"] ** 2
        response = fit.predictions(short, random=False, interval="prediction")["std_error"] ** 2
        between = sum(float(term.cov.iloc[0, 0]) for term in fit.random_terms)
        np.testing.assert_allclose(response - errors, fit.sigma**2 + between)


def test_a_random_effects_grouping_predicts_without_the_residuals() -> None:
    fit = conditional()
    effects = fit.ranef()["Mare"]["(Intercept)"].loc[NEW["Mare"]].to_numpy()
    expected = fit.predict(NEW, random=False) + effects
    np.testing.assert_allclose(fit.predict(NEW, random="Mare"), expected)


def test_groups_that_are_not_known_are_refused_or_population_predictions() -> None:
    new = NEW.assign(Mare=["4", "x", "2", "4", "y"])
    with pytest.raises(jm.DataError, match=r"rows 1, 4 .*levels of 'Mare' .*allow_new_levels=True"):
        marginal().predict(new)
    found = marginal().predict(new, allow_new_levels=True)
    np.testing.assert_allclose(found[[1, 4]], marginal().predict(new, random=False)[[1, 4]])
    assert (found[[0, 2]] != marginal().predict(new, random=False)[[0, 2]]).all()
    with pytest.raises(jm.DataError, match=r"no column 'Mare'.*random=False"):
        marginal().predict(new[["Time", "occasion"]])


def test_rows_with_missing_values_have_no_prediction() -> None:
    new = NEW.assign(Mare=["4", None, "2", "4", "1"], occasion=[8, 36, np.nan, -4, 3])
    table = marginal().predictions(new, interval="prediction", allow_new_levels=True)
    assert table.isna().all(axis=1).tolist() == [False, True, True, False, False]
    whole = marginal().predictions(NEW, interval="prediction")
    pd.testing.assert_frame_equal(table.loc[[0, 3, 4]], whole.loc[[0, 3, 4]], rtol=ROUNDING)


@pytest.mark.slow
def test_lags_beyond_those_of_the_data_are_refused_where_their_correlation_is_not_known() -> None:
    data = mares()
    data = data[data["occasion"] < 6]
    fit = jm.mixed("follicles ~ Time", data, residuals="toep(occasion | Mare)")
    with pytest.raises(jm.DataError, match="apart"):
        fit.predict(NEW[:2])


def test_degrees_of_freedom_of_other_methods_are_not_those_of_forecasts() -> None:
    with pytest.raises(jm.DataError, match="'residual' is of functions of the fixed effects alone"):
        marginal().predictions(NEW, ddf="residual")


# Estimated variances


def dense_at(fit: jm.MixedResults, x: np.ndarray) -> DenseForecasts:
    """The dense model at the optimiser's parameters and log sigma."""
    dense = dense_forecasts(fit, mares(), NEW, ("Time",), AR)
    sigma = float(np.exp(x[-1]))
    found = moved(dense, {"phi1": float(np.tanh(x[-2]))}, sigma)
    if not fit.estimates.terms:
        return found
    (term,), scale = fit.estimates.terms, sigma * x[0]
    cov = (scale * term.frame) @ (scale * term.frame).T
    return DenseForecasts(**{**vars(found), "effects": (found.effects[0]._replace(cov=cov),)})


def gradient(function, x: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Central differences, parameters last."""
    step, columns = 1e-5, []
    for move in np.eye(len(x)) * step:
        columns.append((function(x + move) - function(x - move)) / (2 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("make", [marginal, conditional])
def test_degrees_of_freedom_and_estimated_variances_count_the_residual_parameters(make) -> None:  # type: ignore[no-untyped-def]
    fit = make()
    x = np.append(fit.estimates.standard, np.log(fit.sigma))
    C = parameter_covariance(VarianceParameters.of(fit.estimates))[0]
    at = dense_at(fit, x).forecast()
    options = {"ddf": "satterthwaite", "variance_parameters": "estimated"}
    for interval, place in (("prediction", 2), ("confidence", 1)):
        table = fit.predictions(NEW, interval=interval, **options)
        slopes = gradient(lambda own, place=place: dense_at(fit, own).forecast()[place] ** 2, x)
        df = 2 * at[place] ** 4 / np.einsum("mi,ij,mj->m", slopes, C, slopes)
        np.testing.assert_allclose(table["df"], df, rtol=DIFFERENCES)
        J = gradient(lambda own: dense_at(fit, own).forecast().estimate, x)
        more = 2 * np.einsum("mi,ij,mj->m", J, C, J)
        np.testing.assert_allclose(table["std_error"] ** 2, at[place] ** 2 + more, rtol=DIFFERENCES)


# Residuals


@pytest.mark.slow
def test_normalized_residuals_are_those_of_nlme() -> None:
    # R 4.2.2, nlme 3.1-162, Ovary in the order of mares and times, occasion = number of the row in its mare:
    #   gls(follicles ~ Time, corr = corAR1(form = ~occasion | Mare)); lme(..., random = ~1 | Mare);
    #   gls(..., weights = varPower(form = ~occasion)); residuals(., type = "normalized"), mare 4
    data = jm.datasets.load("ovary")
    rows = (data["Mare"] == "4").to_numpy()
    one = jm.mixed("follicles ~ Time", data, residuals="ar1(occasion | Mare)")
    found = one.residuals("normalized")[rows][:4]
    np.testing.assert_allclose(found, [-0.4992467456, -0.1809421107, -0.8244750513, -0.6409879730], rtol=NLME)
    two = jm.mixed("follicles ~ Time + (1 | Mare)", data, residuals="ar1(occasion | Mare)")
    found = two.residuals("normalized")[rows][:4]
    expected = [0.13696591515, 0.03982997292, -0.61660119864, -0.47071445222]
    np.testing.assert_allclose(found, expected, atol=NLME)
    found = two.residuals("normalized", random=False)[rows][:4]
    np.testing.assert_allclose(found, [-0.5220078464, -0.2207770825, -0.8772082541, -0.7313215077], rtol=NLME)
    power = jm.residuals.AR(time="occasion", group="Mare", variance=jm.residuals.Power("occasion"))
    three = jm.mixed("follicles ~ Time", data, residuals=power)
    found = three.residuals("standardized")[rows][:3]
    np.testing.assert_allclose(found, [-0.5564276555, -0.5483449051, -0.9615770974], rtol=NLME)
    found = three.residuals("normalized")[rows][:3]
    np.testing.assert_allclose(found, [-0.5564276555, -0.1787403037, -0.8595477857], rtol=NLME)


@pytest.mark.parametrize("weights", [None, "w"])
def test_residuals_of_every_kind_and_leverages_follow_from_the_dense_projection(weights: str | None) -> None:
    data = mares()
    fit = conditional()
    structure = AR
    if weights is not None:
        options = {"residuals": "ar1(occasion | Mare)", "weights": weights}
        fit = jm.mixed("follicles ~ Time + (1 | Mare)", data, **options)
        structure = Structure("ar", group="Mare", time="occasion", weights=weights)
    dense = dense_forecasts(fit, data, data[:0], ("Time",), structure)
    sigma, X, y = fit.sigma, dense.design(("Time",)), data["follicles"].to_numpy(dtype=float)
    V, R = dense.covariance, dense.residual
    inverse = np.linalg.inv(V)
    P = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    e, marginal_residual = R @ P @ y, y - fit.predict(random=False).to_numpy()
    sd = np.sqrt(np.diagonal(R))
    expected = {
        "response": e,
        "pearson": sigma * e / sd,
        "standardized": e / sd,
        "studentized": e / np.sqrt(np.diagonal(R @ P @ R)),
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(fit.residuals(kind), values, rtol=0, atol=ROUNDING * np.abs(values).max())
    np.testing.assert_allclose(fit.leverage(), 1 - np.diagonal(R @ P), rtol=ROUNDING, atol=ROUNDING)
    found = fit.residuals("standardized", random=False)
    np.testing.assert_allclose(found, marginal_residual / np.sqrt(np.diagonal(V)), rtol=1e-8)
    # Deleted: the error of predicting a row from all others, by a fit without it at the same variances.
    df = len(y) - X.shape[1]
    t = (P @ y) / np.sqrt(np.diagonal(P))
    without = np.sqrt((df - t**2) / (df - 1))
    np.testing.assert_allclose(fit.residuals("deleted"), t / without, rtol=1e-8)
    others = np.arange(len(y)) != 17
    part = DenseForecasts(**{**vars(dense), "data": data[others], "new": data[17:18]})
    left_out = part.forecast()
    error = (y[17] - left_out.estimate[0]) / (left_out.of_response[0] * without[17])
    np.testing.assert_allclose(fit.residuals("deleted")[17], error, rtol=1e-8)


def test_whitened_residuals_are_uncorrelated_with_the_covariance_of_the_structure() -> None:
    data = mares()
    fit = conditional()
    dense = dense_forecasts(fit, data, data[:0], ("Time",), AR)
    order = data.assign(row=np.arange(len(data))).sort_values(["Mare", "occasion"])["row"].to_numpy()
    for kind, values, matrix in (
        ("normalized", fit.resid, dense.residual),
        ("scaled", data["follicles"] - fit.predict(random=False), dense.covariance),
    ):
        L = np.linalg.cholesky(matrix[np.ix_(order, order)])
        expected = np.linalg.solve(L, values.to_numpy()[order])
        np.testing.assert_allclose(fit.residuals(kind).to_numpy()[order], expected, rtol=1e-8, atol=1e-10)


def test_normalized_residuals_of_independent_ones_are_the_standardized() -> None:
    fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    pd.testing.assert_series_equal(fit.residuals("normalized"), fit.residuals("standardized"))

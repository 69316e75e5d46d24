"""The scikit-learn estimator: scikit-learn's own checks, both doors, known and new groups, its tools."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import warnings
from functools import cache

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import jaxmixed as jm
from jaxmixed import MixedModelRegressor
from tests.support.fits import quietly

TWO_ROUTES = 1e-9  # the same fit by two routes that differ in the order of columns, or in their units
ANOTHER_SOLVER = 1e-10  # ordinary least squares, of well-conditioned columns

SLOPES = "Reaction ~ Days + (Days | Subject)"


@cache
def data() -> pd.DataFrame:
    return jm.datasets.load("sleepstudy")


@cache
def slopes() -> jm.MixedResults:
    return jm.mixed(SLOPES, data())


@cache
def from_formula() -> MixedModelRegressor:
    return MixedModelRegressor(SLOPES).fit(data())


@cache
def from_arrays() -> MixedModelRegressor:
    model = MixedModelRegressor(random_slopes=[0])
    return model.fit(data()[["Days"]].to_numpy(), data()["Reaction"].to_numpy(), groups=data()["Subject"])


@cache
def crossed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two predictors, two crossed factors of 6 and 4 levels, 96 rows."""
    rng = np.random.default_rng(5)
    groups = np.column_stack([np.arange(96) % 6, np.arange(96) // 6 % 4])
    X = rng.normal(size=(96, 2))
    y = 1 + X @ [2.0, -1.0] + rng.normal(size=6)[groups[:, 0]] + 2 * rng.normal(size=4)[groups[:, 1]]
    return X, y + rng.normal(size=96), groups


# scikit-learn's checks

ZERO_RESIDUALS = (
    "the check's response is an exact function of X: the likelihood has no maximum, and fit says so"
)


def failing(_: MixedModelRegressor) -> dict[str, str]:
    return {
        "check_sample_weights_shape": ZERO_RESIDUALS,
        "check_sample_weights_not_overwritten": ZERO_RESIDUALS,
        "check_regressors_no_decision_function": ZERO_RESIDUALS,
        "check_sample_weight_equivalence_on_dense_data": (
            "the check's X has more columns than rows: the likelihood has no maximum, and fit says so"
        ),
    }


@pytest.mark.filterwarnings("ignore::jaxmixed.errors.JaxMixedWarning")  # no groups; collinear columns
@parametrize_with_checks([MixedModelRegressor()], expected_failed_checks=failing)
def test_the_estimator_does_what_scikit_learn_asks(estimator, check):
    state = np.random.get_state()  # scikit-learn's checks seed NumPy's global generator
    try:
        check(estimator)
    finally:
        np.random.set_state(state)


def test_what_has_no_likelihood_is_refused_as_everywhere_in_the_package() -> None:
    X = np.column_stack([np.tile([1.0, 2.0, 3.0, 4.0], 4), np.tile([3.0, 1.0, 3.0, 1.0], 4)])
    with pytest.raises(jm.DesignError, match="exact linear function"):
        MixedModelRegressor(group_columns=[]).fit(X, 1 + X[:, 0])
    with pytest.raises(jm.DesignError, match="17 columns for 16 rows"):
        MixedModelRegressor(group_columns=[]).fit(np.eye(16), X[:, 0])


# What is fitted


def test_arrays_give_the_model_of_the_formula() -> None:
    expected = slopes()
    for model in (from_formula(), from_arrays()):
        np.testing.assert_allclose(model.intercept_, expected.params["(Intercept)"], rtol=TWO_ROUTES)
        np.testing.assert_allclose(model.coef_, [expected.params["Days"]], rtol=TWO_ROUTES)
        np.testing.assert_allclose(model.sigma_, expected.sigma, rtol=TWO_ROUTES)
        np.testing.assert_allclose(
            model.variance_components_["Subject"], expected.random_terms[0].cov, rtol=TWO_ROUTES
        )
        np.testing.assert_allclose(
            model.random_effects_["Subject"], expected.ranef()["Subject"], rtol=TWO_ROUTES, atol=1e-8
        )
        assert model.result_.deviance == pytest.approx(expected.deviance, rel=1e-12)
        assert model.n_iter_ == expected.diagnostics.iterations
    assert from_formula().coef_names_.tolist() == ["Days"]
    assert from_formula().feature_names_in_.tolist() == ["Days", "Subject"]
    assert from_arrays().coef_names_.tolist() == ["x0"]


def test_crossed_factors_are_columns_of_groups() -> None:
    X, y, groups = crossed()
    table = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": y, "g": groups[:, 0], "h": groups[:, 1]})
    expected = jm.mixed("y ~ a + b + (1 | g) + (1 | h)", table)
    model = MixedModelRegressor().fit(X, y, groups=groups)
    assert list(model.random_effects_) == ["group0", "group1"]
    np.testing.assert_allclose(model.coef_, expected.params[["a", "b"]], rtol=TWO_ROUTES)
    np.testing.assert_allclose(model.predict(X, groups), expected.fittedvalues, rtol=TWO_ROUTES)
    named = pd.DataFrame(groups, columns=["g", "h"])
    again = MixedModelRegressor(covariance={"g": "identity"}).fit(X, y, groups=named)
    assert list(again.random_effects_) == ["g", "h"]
    # A table's columns go by name, whatever their order.
    np.testing.assert_allclose(again.predict(X, named[["h", "g"]]), expected.fittedvalues, rtol=TWO_ROUTES)
    inside = MixedModelRegressor(group_columns=[2, -1]).fit(np.column_stack([X, groups]), y)
    np.testing.assert_allclose(
        inside.predict(np.column_stack([X, groups])), expected.fittedvalues, rtol=TWO_ROUTES
    )
    assert inside.n_features_in_ == 4
    assert inside.coef_.shape == (2,)


def test_known_groups_get_the_best_linear_prediction_and_new_ones_the_population_value() -> None:
    X, y, groups = crossed()
    model = MixedModelRegressor().fit(X, y, groups=groups)
    covariance = model.sigma_**2 * np.eye(len(y))
    to_first = np.zeros((len(y), len(y)))
    for j, name in enumerate(["group0", "group1"]):
        same = groups[:, j, None] == groups[None, :, j]
        variance = model.variance_components_[name].iloc[0, 0]
        covariance += variance * same
        to_first += variance * same * (j == 0)
    design = np.column_stack([np.ones(len(y)), X])
    weighted = np.linalg.solve(covariance, design)
    beta = np.linalg.solve(design.T @ weighted, weighted.T @ y)
    np.testing.assert_allclose([model.intercept_, *model.coef_], beta, rtol=1e-8)
    population = design @ beta
    np.testing.assert_allclose(model.predict(X), population, rtol=1e-8)
    np.testing.assert_allclose(model.predict(X, groups + 100), population, rtol=1e-8)
    half_new = np.column_stack([groups[:, 0], np.full(len(y), -1)])
    expected = population + to_first @ np.linalg.solve(covariance, y - population)
    np.testing.assert_allclose(model.predict(X, half_new), expected, rtol=1e-7)


@pytest.mark.slow
def test_nested_labels_that_repeat_are_told_apart() -> None:
    X, y, groups = crossed()
    table = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "y": y, "g": groups[:, 0], "h": groups[:, 1]})
    expected = quietly("y ~ a + b + (1 | g/h)", table, method="ml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularFitWarning)
        model = MixedModelRegressor(nested=True, method="ml").fit(X, y, groups=table[["g", "h"]])
    assert set(model.random_effects_) == {"g", "g:h"}
    assert len(model.random_effects_["g:h"]) == 24
    np.testing.assert_allclose(model.result_.llf, expected.llf, rtol=1e-12)
    np.testing.assert_allclose(model.predict(X, table[["g", "h"]]), expected.fittedvalues, rtol=1e-6)


def test_without_groups_it_is_least_squares_and_says_so() -> None:
    X, y, _ = crossed()
    weights = np.random.default_rng(1).integers(0, 3, len(y)).astype(float)
    with pytest.warns(jm.JaxMixedWarning, match=r"no groups.*group_columns="):
        model = MixedModelRegressor().fit(X, y, sample_weight=weights)
    other = LinearRegression().fit(X, y, sample_weight=weights)
    np.testing.assert_allclose([model.intercept_, *model.coef_], [other.intercept_, *other.coef_], rtol=1e-9)
    np.testing.assert_allclose(
        model.score(X, y, sample_weight=weights), other.score(X, y, sample_weight=weights), rtol=1e-10
    )
    assert model.result_.nobs == np.count_nonzero(weights)
    silent = MixedModelRegressor(group_columns=[], fit_intercept=False).fit(X, y)
    other = LinearRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(silent.coef_, other.coef_, rtol=ANOTHER_SOLVER)
    assert silent.intercept_ == 0.0
    assert silent.random_effects_ == silent.variance_components_ == {}


def test_weights_are_precisions_and_a_weight_of_zero_leaves_a_row_out() -> None:
    table = data().assign(w=np.r_[0.0, np.linspace(0.5, 2, 179)])
    expected = jm.mixed(SLOPES, table[1:], weights="w")
    found = MixedModelRegressor(SLOPES).fit(table, sample_weight=table["w"])
    np.testing.assert_allclose(found.coef_, expected.params[1:], rtol=TWO_ROUTES)
    np.testing.assert_allclose(found.sigma_, expected.sigma, rtol=TWO_ROUTES)
    arrays = MixedModelRegressor(random_slopes="Days")
    arrays.fit(table[["Days"]], table["Reaction"], groups=table["Subject"], sample_weight=list(table["w"]))
    np.testing.assert_allclose(arrays.coef_, expected.params[1:], rtol=TWO_ROUTES)
    for bad, why in (([-1.0], "is -1 in row 0"), ([np.nan], "is nan in row 0")):
        with pytest.raises(jm.DataError, match=why):
            MixedModelRegressor(SLOPES).fit(table, sample_weight=bad + [1.0] * 179)
    with pytest.raises(jm.DataError, match="all zero"):
        MixedModelRegressor(SLOPES).fit(table, sample_weight=np.zeros(180))


def test_a_column_that_repeats_another_gets_a_coefficient_of_zero() -> None:
    X, y, _ = crossed()
    doubled = np.column_stack([X, X[:, 0]])
    with pytest.warns(jm.RankDeficientWarning):
        model = MixedModelRegressor(group_columns=[]).fit(doubled, y)
    assert np.count_nonzero(model.coef_) == 2
    np.testing.assert_allclose(model.predict(doubled), model.intercept_ + doubled @ model.coef_, rtol=1e-12)


def test_names_of_columns_may_be_anything() -> None:
    names = {"Days": "`a b`c", "Subject": "g\n|", "Reaction": "y"}
    table = data().rename(columns=names).assign(**{"": data()["Days"] ** 2})
    model = MixedModelRegressor(group_columns="g\n|", random_slopes="`a b`c")
    model.fit(table[["`a b`c", "g\n|"]], table["y"])
    np.testing.assert_allclose(
        model.predict(table[["`a b`c", "g\n|"]]), slopes().fittedvalues, rtol=TWO_ROUTES
    )
    assert model.coef_names_.tolist() == ["`a b`c"]
    X, y, _ = crossed()
    odd = pd.DataFrame(np.column_stack([X, X**2]), columns=["y", "(1|g)~", "x2", ""])
    model = MixedModelRegressor(group_columns=[]).fit(odd, pd.Series(y, name="y"))
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(odd, y).coef_, rtol=1e-9)
    assert model.coef_names_.tolist() == model.feature_names_in_.tolist() == ["y", "(1|g)~", "x2", ""]


def test_long_names_of_many_columns_still_make_a_formula() -> None:
    rng = np.random.default_rng(3)
    X = pd.DataFrame(
        rng.normal(size=(200, 90)), columns=["predictor " + "x" * 100 + str(j) for j in range(90)]
    )
    y = X.iloc[:, 0] + rng.normal(size=200)
    model = MixedModelRegressor(group_columns=[]).fit(X, y)
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_, rtol=1e-9, atol=1e-12)


# The door of formulas


def test_y_takes_the_place_of_the_response_or_gives_one() -> None:
    table, shifted = data(), data()["Reaction"] + 100
    expected = slopes().params + np.array([100, 0])
    for formula, X in (
        (SLOPES, table),
        (SLOPES, table.drop(columns="Reaction")),
        ("~ Days + (Days | Subject)", table.drop(columns="Reaction")),
        ("~ Days + (Days | Subject)", table),
        ("  ~ Days + (Days | Subject)", pl.from_pandas(table.astype({"Subject": str}))),
    ):
        model = MixedModelRegressor(formula).fit(X, shifted)
        np.testing.assert_allclose([model.intercept_, *model.coef_], expected, rtol=1e-8)
        assert model.feature_names_in_.tolist() == ["Days", "Subject"]
    assert table.equals(jm.datasets.load("sleepstudy"))


def test_a_response_called_like_a_predictor_stays_apart_from_it() -> None:
    X, y, _ = crossed()
    table = pd.DataFrame(X, columns=["y", "y_"])
    model = MixedModelRegressor("~ y + y_").fit(table, pd.Series(y, name="y"))
    np.testing.assert_allclose(model.coef_, LinearRegression().fit(X, y).coef_, rtol=ANOTHER_SOLVER)


def test_groups_are_further_columns_of_a_formula() -> None:
    X = data()[["Days"]].to_numpy()
    model = MixedModelRegressor("~ x0 + (x0 | group)").fit(
        X, data()["Reaction"], groups=list(data()["Subject"])
    )
    np.testing.assert_allclose(model.coef_, slopes().params[1:], rtol=TWO_ROUTES)
    np.testing.assert_allclose(
        model.predict(X, list(data()["Subject"])), slopes().fittedvalues, rtol=TWO_ROUTES
    )
    np.testing.assert_allclose(model.predict(X), slopes().predict(random=False), rtol=TWO_ROUTES)


def test_a_formula_s_own_groups_are_read_from_x() -> None:
    new = pd.DataFrame({"Days": [3.0, 3.0], "Subject": ["308", "nobody"]})
    expected = slopes().predict(new, allow_new_levels=True)
    np.testing.assert_array_equal(from_formula().predict(new), expected)
    np.testing.assert_array_equal(from_formula().predict(pl.from_pandas(new)), expected)
    with pytest.raises(jm.DataError, match="no column 'Subject'"):
        from_formula().predict(new[["Days"]])


def test_the_score_is_r_squared_with_the_response_of_x_where_none_is_given() -> None:
    y, fitted = data()["Reaction"], slopes().fittedvalues
    expected = 1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert from_formula().score(data()) == pytest.approx(expected, rel=1e-12)
    assert from_formula().score(data(), y) == pytest.approx(expected, rel=1e-12)
    assert from_arrays().score(data()[["Days"]].to_numpy(), y, groups=data()["Subject"]) == pytest.approx(
        expected
    )
    with pytest.raises(jm.DataError, match="score needs y"):
        from_formula().score(data()[["Days", "Subject"]])


# Missing values


def test_missing_values_are_refused_or_their_rows_dropped() -> None:
    table = data().copy()
    table.loc[3, "Days"] = np.nan
    table.loc[5, "Reaction"] = np.nan
    table["Subject"] = table["Subject"].astype(object)
    table.loc[7, "Subject"] = None
    kept = table.dropna()
    expected = jm.mixed(SLOPES, kept)
    X, y = table[["Days", "Subject"]], table["Reaction"]
    refusing = MixedModelRegressor(group_columns="Subject", random_slopes="Days")
    with pytest.raises(ValueError, match="NaN"):
        refusing.fit(X, y)
    with pytest.raises(jm.DataError, match=r"missing.*'Subject' in 1"):
        refusing.fit(X.fillna({"Days": 1.0}), data()["Reaction"])
    with pytest.raises(jm.DataError, match="missing='drop'"):
        MixedModelRegressor(SLOPES).fit(table)
    for model in (clone(refusing), MixedModelRegressor("~ Days + (Days | Subject)")):
        model.set_params(missing="drop").fit(X, y)
        np.testing.assert_allclose(model.coef_, expected.params[1:], rtol=TWO_ROUTES)
        assert np.flatnonzero(np.isnan(model.predict(X))).tolist() == [3, 7]
        fitted = expected.fittedvalues
        share = 1 - ((kept["Reaction"] - fitted) ** 2).sum() / kept["Reaction"].var(ddof=0) / len(kept)
        assert model.score(X, y) == pytest.approx(share, rel=1e-9)
    with pytest.raises(jm.DataError, match="missing in 1 of 2 rows"):
        from_formula().predict({"Days": [1.0, None], "Subject": ["308", "308"]})


# scikit-learn's tools


def test_a_pipeline_that_scales_predicts_the_same() -> None:
    X, y, subject = data()[["Days"]], data()["Reaction"], data()["Subject"]
    pipe = make_pipeline(StandardScaler(), MixedModelRegressor(random_slopes=[0]))
    pipe.fit(X, y, mixedmodelregressor__groups=subject)
    np.testing.assert_allclose(pipe.predict(X, groups=subject), slopes().fittedvalues, rtol=1e-8)
    np.testing.assert_allclose(pipe.predict(X), slopes().predict(random=False), rtol=1e-8)


def test_predictions_for_groups_left_out_are_population_predictions() -> None:
    X, y, subject = data()[["Days", "Subject"]], data()["Reaction"], data()["Subject"]
    folds = GroupKFold(3)
    model = MixedModelRegressor(group_columns="Subject", random_slopes="Days")
    found = cross_val_predict(model, X, y, groups=subject, cv=folds)
    for train, test in folds.split(X, y, subject):
        fit = jm.mixed(SLOPES, data().iloc[train])
        np.testing.assert_allclose(found[test], fit.predict(data().iloc[test], random=False), rtol=1e-8)
    by_formula = cross_val_score(MixedModelRegressor(SLOPES), data(), groups=subject, cv=folds)
    np.testing.assert_allclose(by_formula, cross_val_score(model, X, y, groups=subject, cv=folds), rtol=1e-8)


def grid_search(table: pd.DataFrame, grid: dict) -> tuple[GridSearchCV, np.ndarray]:
    """A search over folds of subjects, and the folds' mean squared errors of the largest model."""
    X, y, subject = table[["Days", "Subject"]], table["Reaction"], table["Subject"]
    folds = GroupKFold(2)
    search = GridSearchCV(MixedModelRegressor(), grid, cv=folds, scoring="neg_mean_squared_error")
    search.fit(X, y, groups=subject)
    errors = []
    for train, test in folds.split(X, y, subject):
        fit = quietly(SLOPES, table.iloc[train], method=search.best_estimator_.method)
        errors.append(np.mean((y.iloc[test] - fit.predict(table.iloc[test], random=False)) ** 2))
    return search, np.array(errors)


def test_a_grid_over_formulas_finds_the_best() -> None:
    search, errors = grid_search(data(), {"formula": ["~ 1", "~ Days + (Days | Subject)"]})
    assert search.cv_results_["mean_test_score"][1] == pytest.approx(-errors.mean(), rel=1e-8)
    assert search.best_index_ == 1
    assert search.best_estimator_.result_.ngroups == {"Subject": 18}


@pytest.mark.slow
def test_a_grid_over_structures_and_methods_scores_each() -> None:
    unbalanced = data()[np.random.default_rng(2).random(180) < 0.7]  # in balanced data structures tie
    own = {"group_columns": ["Subject"], "random_slopes": ["Days"], "method": ["ml"]}
    search, errors = grid_search(unbalanced, {**own, "covariance": ["independent", "unstructured"]})
    scores = search.cv_results_["mean_test_score"]
    assert scores[1] == pytest.approx(-errors.mean(), rel=1e-8)
    assert scores[0] != scores[1]
    assert search.best_estimator_.result_.method == "ml"


def test_groups_can_be_routed_to_fit_and_score() -> None:
    X, y, subject = data()[["Days"]].to_numpy(), data()["Reaction"].to_numpy(), data()["Subject"].to_numpy()
    with config_context(enable_metadata_routing=True):
        model = (
            MixedModelRegressor(random_slopes=[0]).set_fit_request(groups=True).set_score_request(groups=True)
        )
        folds = [(np.arange(0, 180, 2), np.arange(1, 180, 2))]
        found = cross_validate(model, X, y, params={"groups": subject}, cv=folds)["test_score"]
        splitter = cross_validate(model, X, y, params={"groups": subject}, cv=GroupKFold(2))["test_score"]
    even = jm.mixed(SLOPES, data().iloc[::2])
    odd = data().iloc[1::2]
    rest = ((odd["Reaction"] - even.predict(odd)) ** 2).sum() / odd["Reaction"].var(ddof=0) / len(odd)
    np.testing.assert_allclose(found, [1 - rest], rtol=1e-8)
    assert splitter.shape == (2,)


def test_a_fitted_estimator_survives_pickling_and_cloning_forgets() -> None:
    copy = pickle.loads(pickle.dumps(from_arrays()))
    X = data()[["Days"]].to_numpy()
    np.testing.assert_array_equal(
        copy.predict(X, data()["Subject"]), from_arrays().predict(X, data()["Subject"])
    )
    np.testing.assert_array_equal(copy.result_.bse, from_arrays().result_.bse)
    fresh = clone(from_arrays())
    assert fresh.get_params() == from_arrays().get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    with pytest.raises(NotFittedError):
        _ = fresh.random_effects_
    assert not hasattr(fresh, "variance_components_")


def test_a_fit_that_fails_leaves_no_older_one() -> None:
    X, y, _ = crossed()
    model = MixedModelRegressor(group_columns=[]).fit(X, y)
    with pytest.raises(jm.DataError, match="one level"):
        model.fit(X, y, groups=np.zeros(len(y)))
    with pytest.raises(NotFittedError):
        model.predict(X)


# Errors


@pytest.mark.parametrize(
    ("parameters", "given", "error", "message"),
    [
        ({"missing": "ignore"}, {}, jm.DataError, "missing='ignore'"),
        ({"method": "map"}, {}, jm.DesignError, "method='map'"),
        ({"contrasts": {"a": "sum"}}, {}, jm.FormulaError, "contrasts= are for a formula"),
        ({"formula": "~ x0", "random_slopes": [0]}, {}, jm.FormulaError, "random_slopes= .*in the formula"),
        ({"formula": "~ x0", "fit_intercept": False}, {}, jm.FormulaError, "fit_intercept="),
        ({"formula": "log(x1) ~ x0"}, {}, jm.DataError, r"log\(x1\).*leave out y"),
        ({"formula": "~ x0"}, {"y": None}, jm.DataError, "no response"),
        ({}, {"y": None}, ValueError, "requires y"),
        ({}, {"y": np.ones(4)}, jm.DataError, "y has 4 values, but X has 96 rows"),
        ({"group_columns": [], "random_slopes": [0]}, {}, jm.DesignError, "random_slopes= needs groups"),
        ({"group_columns": "school"}, {}, jm.DataError, "'school', but X has no names"),
        ({"group_columns": 7}, {}, jm.DataError, "group_columns=7 is neither"),
        ({"group_columns": [True]}, {}, jm.DataError, "group_columns=True is neither"),
        ({"group_columns": 1}, {"groups": np.arange(96) % 5}, jm.DataError, "given twice"),
        ({}, {"groups": np.arange(95) % 5}, jm.DataError, "groups= has 95 rows"),
        ({}, {"groups": np.zeros((96, 1, 1))}, jm.DataError, r"shape \(96, 1, 1\)"),
        ({"random_slopes": {"h": [0]}}, {"groups": np.arange(96) % 5}, jm.DataError, "names the group 'h'"),
        ({"random_slopes": [0, -2]}, {"groups": np.arange(96) % 5}, jm.DataError, "a column twice"),
        ({"group_columns": 1, "random_slopes": 1}, {}, jm.DataError, "column 1 of X, which holds groups"),
        ({}, {"sample_weight": np.ones(3)}, jm.DataError, r"shape \(3,\)"),
        ({}, {"X": sparse.eye_array(96)}, TypeError, "dense data is required"),
        ({"group_columns": 0}, {"X": sparse.eye_array(96)}, TypeError, "dense data is required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:fit\\(\\) got no groups")
def test_errors_name_what_is_wrong(parameters, given, error, message) -> None:
    X, y, _ = crossed()
    given = {"X": X, "y": y} | given
    with pytest.raises(error, match=message):
        MixedModelRegressor(**parameters).fit(given.pop("X"), given.pop("y"), **given)


def test_predictions_refuse_groups_that_the_fit_did_not_have() -> None:
    X, y, groups = crossed()
    with pytest.raises(jm.DataError, match="fit got none"):
        MixedModelRegressor(group_columns=[]).fit(X, y).predict(X, groups)
    model = MixedModelRegressor().fit(X, y, groups=groups)
    with pytest.raises(jm.DataError, match=r"\['group'\], but fit got \['group0', 'group1'\]"):
        model.predict(X, groups[:, 0])
    with pytest.raises(jm.DataError, match="table with named columns"):
        from_formula().predict(X)
    with pytest.warns(DataConversionWarning):
        MixedModelRegressor().fit(X, y[:, None], groups=groups)


def test_without_scikit_learn_the_class_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    source = inspect.getsourcefile(MixedModelRegressor)
    spec = importlib.util.spec_from_file_location("jaxmixed.regressor", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # `from jaxmixed import *` loads it: no error yet
    with pytest.raises(jm.JaxMixedError, match=r"scikit-learn 1.6 .* pip install 'jaxmixed\[sklearn\]'"):
        module.MixedModelRegressor("y ~ x")


def test_the_arguments_of_the_fit_are_those_of_mixed() -> None:
    shared = {"method", "covariance", "contrasts", "functions", "max_iterations"}
    theirs, own = (inspect.signature(each).parameters for each in (jm.mixed, MixedModelRegressor))
    assert {name: theirs[name].default for name in shared} == {name: own[name].default for name in shared}

"""Standard errors and intervals of predictions: against kriging by dense matrices, R's lm, differences."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

import jaxmixed as jm
import jaxmixed.predictions as module
from jaxmixed.prediction_df import prediction_df
from tests.support.dense import Array
from tests.support.dense_predictions import DensePredictions, Term, dense_predictions
from tests.support.fits import aliased, fit, quietly, sleepstudy
from tests.support.processes import run_python
from tests.support.school_fits import crossed, nested, related, schools, singular

ROUNDING = 1e-7
"""Relative: the dense route inverts matrices of the order of n."""

NEW = {"school": [3, 3, 99, 2], "class": [12, 98, 99, 12], "x": [0.5, -1.0, 2.0, 0.0]}
"""A known class; a new one in a known school; a new school; a known class with another school."""

KNOWN_SCHOOL, KNOWN_CLASS = [3, 3, -1, 2], [12, -1, -1, 12]


def kriging(found: DensePredictions, x: Array, terms: list[Term], noise: Array) -> Array:
    """Variance of y* less its best linear unbiased prediction, as of a further response.

    Cressie (1993), Statistics for Spatial Data, equation 3.4.5 (universal kriging); nothing is solved for
    effects. ``noise`` is the variance of what y* shares with no row.
    """
    model, V = found.model, found.model.covariance(found.covs, found.sigma)
    own, cross = np.array(noise, dtype=float), np.zeros((len(x), len(model.y)))
    for i, Z, codes in terms:
        block, cov = model.blocks[i], found.covs[i]
        own += np.einsum("ni,ij,nj->n", Z, cov, Z)
        same = np.asarray(codes)[:, None] == block.codes[None]
        cross += same * (Z @ cov @ block.Z.T)
    solved = np.linalg.solve(V, cross.T)
    left = x - solved.T @ model.X
    return own - np.einsum("ij,ji->i", cross, solved) + np.einsum("ni,ij,nj->n", left, model.gls(V).cov, left)


def school_terms(schools_: list[int], classes: list[int], x: Array) -> list[Term]:
    """Terms of `nested`, in its order, for rows of these schools and classes (-1: new)."""
    codes = {
        "school": np.array([-1 if s < 0 else levels_of("school").get_loc(s) for s in schools_]),
        "class": np.array([-1 if c < 0 else levels_of("class").get_loc(c) for c in classes]),
    }
    columns = {"(Intercept)": np.ones(len(x)), "x": x}
    return [
        (i, np.column_stack([columns[name] for name in term.names]), codes[term.group])
        for i, term in enumerate(nested().estimates.terms)
    ]


def levels_of(group: str) -> pd.Index:
    return next(own.levels for own in nested().frame.groups if own.label == group)


def new_rows() -> tuple[Array, list[Term]]:
    x = np.array(NEW["x"])
    return np.column_stack([np.ones(4), x]), school_terms(KNOWN_SCHOOL, KNOWN_CLASS, x)


def test_population_predictions_have_the_standard_errors_of_stdp() -> None:
    found = sleepstudy()
    table = found.predictions({"Days": [0.0, 10.0]}, random=False)
    cov = found.cov_params().to_numpy()
    expected = [np.sqrt(np.array(x) @ cov @ x) for x in ([1.0, 0.0], [1.0, 10.0])]
    np.testing.assert_allclose(table["std_error"], expected, rtol=1e-12)
    np.testing.assert_allclose(table["estimate"], found.predict({"Days": [0.0, 10.0]}, random=False))
    assert list(table.columns) == ["estimate", "std_error", "conf_low", "conf_high"]


def test_limits_are_normal_and_of_the_level() -> None:
    table = sleepstudy().predictions(level=0.8)
    half = norm.ppf(0.9) * table["std_error"]
    np.testing.assert_allclose(table["conf_low"], table["estimate"] - half, rtol=1e-12)
    np.testing.assert_allclose(table["conf_high"], table["estimate"] + half, rtol=1e-12)


@pytest.mark.parametrize("make", [sleepstudy, aliased, crossed, singular], ids=lambda make: make.__name__)
def test_errors_of_the_fitted_rows_are_those_of_hendersons_equations(make) -> None:
    found = dense_predictions(make())
    expected = np.diagonal(found.covariance(make().frame.X, found.own_terms()))
    table = make().predictions()
    np.testing.assert_allclose(table["std_error"] ** 2, expected, rtol=ROUNDING)
    np.testing.assert_allclose(table["estimate"], make().fittedvalues)
    assert table.index.equals(make().frame.index)


@pytest.mark.parametrize("random", [True, "school"])
def test_new_levels_at_each_depth_are_as_by_kriging(random: bool | str) -> None:
    X, terms = new_rows()
    used = [own for own in terms if random is True or nested().estimates.terms[own[0]].group == "school"]
    expected = kriging(dense_predictions(nested()), X, used, np.zeros(4))
    table = nested().predictions(NEW, random, allow_new_levels=True)
    np.testing.assert_allclose(table["std_error"] ** 2, expected, rtol=ROUNDING)
    new = "2 rows" if random is True else "1 row"
    assert f"Note: levels that the model was not fitted to, in {new}: their" in repr(table)


@pytest.mark.parametrize("random", [True, "school", False])
def test_a_new_response_varies_with_what_the_prediction_leaves_out(random: bool | str) -> None:
    X, terms = new_rows()
    weights, found = np.array([1.0, 2.0, 0.5, 4.0]), nested()
    groups = {True: ["school", "class"], "school": ["school"], False: []}[random]
    labels = [found.estimates.terms[i].group for i, _, _ in terms]
    # A group that is left out is a new one in every row.
    rows = [
        (i, Z, codes if label in groups else codes * 0 - 1)
        for (i, Z, codes), label in zip(terms, labels, strict=True)
    ]
    expected = kriging(dense_predictions(found), X, rows, found.sigma**2 / weights)
    options = {"interval": "prediction", "allow_new_levels": True, "weights": weights}
    needed = {name: NEW[name] for name in ["x", *groups]}
    table = found.predictions(needed, random, **options)
    np.testing.assert_allclose(table["std_error"] ** 2, expected, rtol=ROUNDING)


def test_new_responses_in_the_fitted_rows_have_their_weights() -> None:
    found = nested()
    inner, outer = found.predictions(), found.predictions(interval="prediction")
    added = outer["std_error"] ** 2 - inner["std_error"] ** 2
    np.testing.assert_allclose(added, found.sigma**2 / schools()["w"], rtol=1e-9)


def test_weights_of_new_responses_must_be_given_and_be_positive() -> None:
    found, new = nested(), schools().iloc[:3]
    by_name = found.predictions(new, interval="prediction", weights="w")
    by_array = found.predictions(new, interval="prediction", weights=new["w"].to_numpy())
    pd.testing.assert_frame_equal(by_name, by_array)
    assert np.isfinite(found.predictions(new, interval="prediction", weights=1)).all(axis=None)
    for options, words in (
        ({}, "give weights="),
        ({"weights": [1.0, 2.0]}, "2 values for 3 rows"),
        ({"weights": [1.0, -2.0, 1.0]}, "contain -2"),
        ({"weights": "ww"}, "no column 'ww'"),
    ):
        with pytest.raises(jm.DataError, match=words):
            found.predictions(new, interval="prediction", **options)
    with pytest.raises(jm.DataError, match="weights= is for interval='prediction' in new data"):
        found.predictions(interval="prediction", weights=1)


def test_a_linear_model_has_rs_intervals() -> None:
    found = fit("sleepstudy", "Reaction ~ Days")
    # R 4.2.2: predict(lm(Reaction ~ Days, sleepstudy), data.frame(Days = 10), interval = ...)
    row = found.predictions({"Days": [10]}, ddf="residual").iloc[0]
    np.testing.assert_allclose(
        row.to_numpy(), [356.077964444, 7.6827997794, 178, 340.916874189, 371.239054700]
    )
    row = found.predictions({"Days": [10]}, ddf="residual", interval="prediction").iloc[0]
    np.testing.assert_allclose(row[["conf_low", "conf_high"]], [260.705874944, 451.450053945])


def test_degrees_of_freedom_are_those_of_the_linear_combination() -> None:
    found = sleepstudy()
    table = found.predictions({"Days": [3.0, np.nan]}, random=False, ddf="kenward-roger")
    expected = found.lincom("(Intercept) + 3 * Days", ddf="kenward-roger").iloc[0]
    names = ["estimate", "std_error", "df", "conf_low", "conf_high"]
    np.testing.assert_allclose(table.iloc[0][names], expected[names].to_numpy(dtype=float), rtol=1e-10)
    assert table.iloc[1].isna().all()
    robust = found.predictions({"Days": [3.0]}, random=False, vcov=found.robust("CR2"))
    assert robust["std_error"].iloc[0] == pytest.approx(
        found.lincom("(Intercept) + 3 * Days", vcov=found.robust("CR2")).iloc[0]["std_error"]
    )


def at_parameters(found: jm.MixedResults, values: Array) -> DensePredictions:
    """The dense model of random intercepts at relative standard deviations, then log sigma."""
    *relative, log_sigma = values
    sigma = float(np.exp(log_sigma))
    return dense_predictions(found, [np.array([[(sigma * sd) ** 2]]) for sd in relative], sigma)


def by_differences(found: jm.MixedResults) -> tuple[Array, Array, Array]:
    """Covariance of the parameters, slopes of the fitted rows' predictions and of their variances."""
    sds = [np.sqrt(term.cov[0, 0]) / found.sigma for term in found.estimates.terms]
    x, h = np.array([*sds, np.log(found.sigma)]), 1e-4
    steps = h * np.eye(len(x))

    def deviance(values: Array) -> float:
        dense = at_parameters(found, values)
        return -2 * dense.model.loglik(dense.covs, dense.sigma, found.method)  # type: ignore[arg-type]

    def rows(values: Array) -> tuple[Array, Array]:
        dense = at_parameters(found, values)
        wide, _ = dense.combinations(found.frame.X, dense.own_terms())
        return wide @ dense.estimates(), np.diagonal(dense.covariance(found.frame.X, dense.own_terms()))

    signs = [(s, t) for s in (1, -1) for t in (1, -1)]
    H = [
        [sum(s * t * deviance(x + s * one + t * two) for s, t in signs) / (4 * h**2) for two in steps]
        for one in steps
    ]
    slopes = [
        [(up - down) / (2 * h) for up, down in zip(rows(x + e), rows(x - e), strict=True)] for e in steps
    ]
    of_values, of_variances = np.moveaxis(np.array(slopes), 1, 0)
    return 2 * np.linalg.inv(np.array(H)), of_values, of_variances


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("pastes", "strength ~ 1 + (1 | batch/cask)"),
        pytest.param("sleepstudy", "Reaction ~ Days + (1 | Subject)", marks=pytest.mark.slow),
    ],
)
def test_estimated_variances_add_kackar_and_harvilles_term_twice_and_have_satterthwaites_df(
    name: str, formula: str
) -> None:
    found = fit(name, formula)
    C, J, g = by_differences(found)
    known = found.predictions()["std_error"] ** 2
    table = found.predictions(variance_parameters="estimated", ddf="satterthwaite")
    expected = 2 * np.einsum("an,ab,bn->n", J, C, J)
    added = table["std_error"] ** 2 - known
    np.testing.assert_allclose(added, expected, rtol=2e-3, atol=1e-5 * expected.max())
    np.testing.assert_allclose(table["df"], 2 * known**2 / np.einsum("an,ab,bn->n", g, C, g), rtol=2e-3)
    half = t.ppf(0.975, table["df"]) * table["std_error"]
    np.testing.assert_allclose(table["conf_high"], table["estimate"] + half)


def test_a_new_group_of_a_balanced_design_has_the_degrees_of_freedom_of_its_mean_squares() -> None:
    # The variance of a new response in a new group is a (1 + 1/k)/n + b (1 - 1/n), with a and b the mean
    # squares between and within k groups of n.
    found = fit("dyestuff", "Yield ~ 1 + (1 | Batch)")
    data = jm.datasets.load("dyestuff")
    k, n = 6, 5
    means = data.groupby("Batch", observed=True)["Yield"].mean()
    a = n * means.var()
    b = ((data["Yield"] - data["Batch"].map(means).astype(float)) ** 2).sum() / (k * (n - 1))
    parts = np.array([a * (1 + 1 / k) / n, b * (1 - 1 / n)])
    expected = parts.sum() ** 2 / (parts**2 @ [1 / (k - 1), 1 / (k * (n - 1))])
    for options in ({"random": False}, {"allow_new_levels": True}):
        table = found.predictions({"Batch": ["new"]}, interval="prediction", ddf="satterthwaite", **options)
        np.testing.assert_allclose(table["std_error"] ** 2, parts.sum(), rtol=1e-6)
        np.testing.assert_allclose(table["df"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "make", [sleepstudy, pytest.param(crossed, marks=pytest.mark.slow)], ids=["sleepstudy", "crossed"]
)
def test_degrees_of_freedom_of_fixed_effects_are_satterthwaites(make) -> None:
    found = make()
    rows, errors = found.frame.X[:3], found._errors
    blocks = [(slice(0, 3), errors.rows(rows, []))]
    df = prediction_df(errors, found.estimates, lambda: iter(blocks), [], blocks[0][1].variance())
    np.testing.assert_allclose(df, found.fixed_inference("satterthwaite").df(rows), rtol=1e-6)


def test_variances_on_the_boundary_are_held_there() -> None:
    known, estimated = singular().predictions(), singular().predictions(variance_parameters="estimated")
    pd.testing.assert_frame_equal(known, estimated)


def test_missing_values_give_missing_rows_and_the_index_is_kept() -> None:
    new = pd.DataFrame({"Days": [1.0, np.nan, 3.0], "Subject": ["308", "309", None]}, index=list("abc"))
    for options in (
        {},
        {"interval": "prediction"},
        {"variance_parameters": "estimated", "ddf": "satterthwaite"},
    ):
        table = sleepstudy().predictions(new, **options)
        assert table.isna().all(axis=1).tolist() == [False, True, True]
        assert table.isna().any(axis=1).tolist() == [False, True, True]
        assert table.index.tolist() == ["a", "b", "c"]
        assert "Note" not in repr(table)


def test_rows_are_visited_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"interval": "prediction", "variance_parameters": "estimated", "ddf": "satterthwaite"}
    whole = sleepstudy().predictions(**options)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "BLOCK_ROWS", 33)
    blocks = sleepstudy().predictions(**options)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(whole, blocks, rtol=1e-12)


def test_dropped_columns_leave_the_errors_of_the_reduced_model() -> None:
    data = jm.datasets.load("sleepstudy").drop(index=[3, 17])
    reduced = quietly("Reaction ~ Days + (Days | Subject)", data)
    new = pd.DataFrame({"Days": [2.0, 12.0], "Days2": [4.0, 24.0], "Subject": ["308", "309"]})
    for random in (True, False):
        pd.testing.assert_frame_equal(
            aliased().predictions(new, random), reduced.predictions(new, random), rtol=1e-4
        )


def test_offsets_move_predictions_and_not_their_errors() -> None:
    data = jm.datasets.load("sleepstudy")
    found = quietly("Reaction ~ 1 + (1 | Subject)", data, offset=data["Days"].to_numpy())
    new = {"Subject": ["308", "308"]}
    table = found.predictions(new, offset=[0.0, 5.0])
    assert table["estimate"].diff().iloc[1] == pytest.approx(5.0)
    assert table["std_error"].iloc[0] == table["std_error"].iloc[1]


def test_related_levels_are_predicted_with_and_without_data_and_unknown_ones_refused() -> None:
    found = related()
    new = {"school": [3, 3], "item": [2, 7], "x": [0.0, 0.0]}
    table = found.predictions(new)  # item 7 has no rows, and is related to the others
    dense = dense_predictions(found)
    codes = {"school": [3, 3], "item": [2, 7]}
    terms = [(i, np.ones((2, 1)), np.array(codes[own.group])) for i, own in enumerate(found.estimates.terms)]
    expected = np.diagonal(dense.covariance(np.array([[1.0, 0.0]] * 2), terms))
    np.testing.assert_allclose(table["std_error"] ** 2, expected, rtol=ROUNDING)
    assert table["std_error"].iloc[1] > table["std_error"].iloc[0]
    with pytest.raises(jm.DataError, match=r"row 1 .* level of 'item' that is not in its relationship"):
        found.predictions({**new, "item": [2, 55]}, allow_new_levels=True)
    wide = found.predictions(new, random=False, interval="prediction")["std_error"] ** 2
    inner = found.predictions(new, random=False)["std_error"] ** 2
    variances = [term.cov[0, 0] for term in found.estimates.terms]
    np.testing.assert_allclose(wide - inner, sum(variances) + found.sigma**2)


@pytest.mark.slow
def test_new_levels_of_unequal_known_variances_are_refused() -> None:
    A = pd.DataFrame(np.diag(np.arange(1.0, 8.0)), index=range(7), columns=range(7))
    found = quietly("y ~ x + (1 | item)", schools(), covariance={"item": jm.known(A)})
    with pytest.raises(jm.DataError, match=r"levels of 'item' have different variances .* \(1 to 7 times"):
        found.predictions({"x": [0.0]}, random=False, interval="prediction")
    assert len(found.predictions({"x": [0.0], "item": [3]}, interval="prediction")) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interval": "tolerance"}, r"interval is 'tolerance'; choose one of 'confidence', 'prediction'"),
        ({"variance_parameters": True}, r"choose one of 'known', 'estimated'"),
        ({"level": 95}, "give a number between 0 and 1"),
        ({"ddf": "kr"}, "ddf is 'kr'"),
        ({"ddf": "residual"}, r"'residual' is of functions of the fixed effects alone.*'satterthwaite'"),
        ({"random": "school"}, r"random is 'school'"),
        (
            {"ddf": "residual", "random": False, "interval": "prediction"},
            "these predictions have random effects",
        ),
        (
            {"ddf": "kenward-roger", "random": False, "variance_parameters": "estimated"},
            "does not go with variance_parameters=",
        ),
    ],
)
def test_mistakes_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(jm.DataError, match=words):
        sleepstudy().predictions(**options)  # type: ignore[arg-type]


def test_new_levels_are_refused_unless_they_are_allowed() -> None:
    with pytest.raises(jm.DataError, match=r"Subject: new.*allow_new_levels=True"):
        sleepstudy().predictions({"Days": [1.0], "Subject": ["new"]})


MILLION = """
import resource
import numpy as np
import jaxmixed as jm

rng = np.random.default_rng(0)
m = 1_000_000
g, x = np.repeat(np.arange(m), 2), rng.normal(size=2 * m)
y = x + rng.normal(size=m)[g] + rng.normal(size=2 * m)
fit = jm.mixed("y ~ x + (1 | g)", {"y": y, "g": g, "x": x})
fit.ranef()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
new = {"g": rng.integers(0, 2 * m, m), "x": rng.normal(size=m)}
options = {"interval": "prediction", "variance_parameters": "estimated", "ddf": "satterthwaite"}
table = fit.predictions(new, allow_new_levels=True, **options)
fit.predictions()
fit.residuals("deleted")
fit.coef()
fit.ranef_cov(levels=[3, 5])
assert table.notna().all(axis=None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in kilobytes as Linux does")
def test_predictions_from_a_million_groups_take_a_few_numbers_for_each_row_and_group() -> None:
    kilobytes = int(run_python(MILLION))
    assert 1024 * kilobytes < 8 * 40 * 3_000_000  # 40 numbers; a matrix of rows by groups has a million

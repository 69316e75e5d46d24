"""Predictions: levels of grouping, new data, new levels, missing values, dropped columns, transforms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.fits import aliased, fit, quietly, sleepstudy, sleepstudy_dropping

NESTED = "math ~ year + black + hispanic + (year | schoolid/childid)"


def test_predictions_of_the_fitted_rows_are_the_fitted_values() -> None:
    found = sleepstudy()
    np.testing.assert_allclose(found.predict(), found.fittedvalues, rtol=1e-12)
    np.testing.assert_allclose(found.predict(random=False), found.frame.X @ found.params)


def test_predictions_of_the_data_as_new_data_are_the_fitted_values() -> None:
    for found, data in (
        (sleepstudy(), jm.datasets.load("sleepstudy")),
        (fit("egsingle", NESTED), jm.datasets.load("egsingle")),
        (fit("machines", "score ~ Machine + (0 + Machine | Worker)"), jm.datasets.load("machines")),
    ):
        np.testing.assert_allclose(found.predict(data), found.fittedvalues, rtol=1e-10)


def test_reference_predictions_with_a_level_that_is_new() -> None:
    new = {"Days": [0, 10, 12], "Subject": ["308", "308", "new"]}
    found = sleepstudy().predict(new, allow_new_levels=True)
    np.testing.assert_allclose(found, [253.6636703983, 450.3262487894, 377.0125363636], atol=0.02)
    population = sleepstudy().predict(new, random=False)
    np.testing.assert_allclose(population, [251.4051048485, 356.0779644444, 377.0125363636], atol=1e-3)


def test_new_levels_are_refused_and_the_first_ten_are_listed() -> None:
    new = pd.DataFrame({"Days": range(12), "Subject": [f"new{i}" for i in range(12)]})
    with pytest.raises(jm.DataError, match=r"Subject: new0, new1, .*new9 and 2 more.*allow_new_levels=True"):
        sleepstudy().predict(new)
    assert len(sleepstudy().predict(new, random=False)) == 12


def test_a_known_school_with_a_new_child_keeps_the_effect_of_the_school() -> None:
    found = fit("egsingle", NESTED)
    row = jm.datasets.load("egsingle").iloc[[0]]
    stranger = row.assign(childid="nobody")
    with pytest.raises(jm.DataError, match=r"schoolid:childid: \S+:nobody"):
        found.predict(stranger)
    np.testing.assert_allclose(
        found.predict(stranger, allow_new_levels=True), found.predict(row, random="schoolid")
    )


def test_a_group_label_includes_the_groupings_that_contain_it() -> None:
    found = fit("egsingle", NESTED)
    np.testing.assert_allclose(found.predict(random="schoolid:childid"), found.fittedvalues)
    frame, modes = found.frame, found.ranef()["schoolid"]
    group = next(group for group in frame.groups if group.label == "schoolid")
    expected = found.predict(random=False) + (group.Z * modes.to_numpy()[group.codes]).sum(axis=1)
    np.testing.assert_allclose(found.predict(random="schoolid"), expected)


def test_containment_is_read_from_the_data_and_not_from_the_names() -> None:
    data = jm.datasets.load("egsingle")
    found = quietly("math ~ year + size + female + (1 | childid) + (1 | schoolid)", data)
    np.testing.assert_allclose(found.predict(random="childid"), found.fittedvalues)
    assert not np.allclose(found.predict(random="schoolid"), found.fittedvalues)


@pytest.mark.parametrize("random", ["school", 1, None, "Days"])
def test_an_unknown_kind_of_prediction_is_refused(random: object) -> None:
    with pytest.raises(
        jm.DataError, match=r"True, False \(population\) or a group of the model \('Subject'\)"
    ):
        sleepstudy().predict(random=random)  # type: ignore[arg-type]


def test_a_linear_model_predicts_its_population() -> None:
    found = fit("sleepstudy", "Reaction ~ Days")
    np.testing.assert_allclose(found.predict({"Days": [0.0]}), found.params.iloc[:1])
    with pytest.raises(jm.DataError, match="this is a linear model"):
        found.predict(random="Subject")


def test_missing_values_give_missing_predictions_in_their_rows() -> None:
    new = pd.DataFrame({"Days": [1.0, np.nan, 3.0], "Subject": ["308", "309", None]}, index=list("abc"))
    conditional, population = sleepstudy().predict(new), sleepstudy().predict(new, random=False)
    assert conditional.isna().tolist() == [False, True, True]
    assert population.isna().tolist() == [False, True, False]
    assert conditional.index.tolist() == ["a", "b", "c"]


def test_the_index_of_new_data_is_kept() -> None:
    new = jm.datasets.load("sleepstudy").iloc[[5, 5, 1]]
    assert sleepstudy().predict(new).index.tolist() == [5, 5, 1]
    days = pd.Series([1.0, 2.0], index=["u", "v"])
    assert sleepstudy().predict({"Days": days}, random=False).index.tolist() == ["u", "v"]
    assert sleepstudy().predict({"Days": [1.0, 2.0]}, random=False).index.tolist() == [0, 1]


def test_a_missing_column_is_named_and_groups_are_not_needed_for_the_population() -> None:
    with pytest.raises(jm.DataError, match="no column 'Days'"):
        sleepstudy().predict({"Subject": ["308"]})
    with pytest.raises(jm.DataError, match="no column 'Subject'"):
        sleepstudy().predict({"Days": [1.0]})
    assert len(sleepstudy().predict({"Days": [1.0]}, random=False)) == 1


def test_dropped_columns_leave_the_predictions_of_the_reduced_model() -> None:
    data = sleepstudy_dropping(3, 17)
    reduced = quietly("Reaction ~ Days + (Days | Subject)", data)
    np.testing.assert_allclose(aliased().predict(), reduced.predict(), atol=1e-5)
    np.testing.assert_allclose(aliased().predict(data), reduced.predict(data), atol=1e-5)
    assert np.isfinite(aliased().predict(data)).all()


def test_rows_dropped_at_the_fit_can_be_predicted() -> None:
    data = sleepstudy_dropping(3, 17)
    assert len(aliased().predict()) == 178
    assert np.isfinite(aliased().predict(data).loc[[3, 17]]).all()


def test_transforms_use_the_statistics_of_the_training_data() -> None:
    data = jm.datasets.load("sleepstudy")
    found = quietly("Reaction ~ scale(Days) + I(Days^2) + (1 | Subject)", data)
    np.testing.assert_allclose(found.predict(data.iloc[[7]]), found.fittedvalues.iloc[[7]])


def test_offsets_are_part_of_predictions() -> None:
    data = jm.datasets.load("sleepstudy")
    found = quietly("Reaction ~ 1 + offset(Days) + (1 | Subject)", data)
    two = found.predict({"Days": [0.0, 5.0], "Subject": ["308", "308"]})
    assert two[1] - two[0] == pytest.approx(5.0)
    np.testing.assert_allclose(found.predict(), found.fittedvalues)
    by_array = quietly("Reaction ~ 1 + (1 | Subject)", data, offset=data["Days"].to_numpy())
    new = data.iloc[:3]
    np.testing.assert_allclose(by_array.predict(new, offset=new["Days"]), found.predict(new), atol=1e-6)
    with pytest.raises(jm.DataError, match="give offset="):
        by_array.predict(new)
    with pytest.raises(jm.DataError, match="offset= is for new data"):
        by_array.predict(offset=new["Days"])


def test_an_unseen_level_of_a_fixed_factor_is_always_refused() -> None:
    found = fit("machines", "score ~ Machine + (1 | Worker)")
    with pytest.raises(jm.DataError, match="D"):
        found.predict({"Machine": ["D"], "Worker": ["1"]}, allow_new_levels=True)


def test_polars_and_arrow_tables_are_new_data_too() -> None:
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = {"Days": [0.0, 3.0], "Subject": ["308", "309"]}
    expected = sleepstudy().predict(pd.DataFrame(columns))
    for new in (polars.DataFrame(columns), pyarrow.table(columns)):
        np.testing.assert_array_equal(sleepstudy().predict(new), expected)

"""Residual structures brought together with data: codes, times, labels, and what is refused."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.errors import DataError, DesignError
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame
from jaxmixed.model import frame_of
from jaxmixed.residual_checks import _undetermined_steps
from jaxmixed.residual_columns import residual_columns
from jaxmixed.residual_families import (
    AnteDependence,
    Autoregressive,
    AutoregressiveMovingAverage,
    Banded,
    Exponential,
    MovingAverage,
    Toeplitz,
    Unstructured,
)
from jaxmixed.residual_frame import ResidualFrame, longest_run, residual_frame
from jaxmixed.residual_text import as_structure

R = jm.residuals


def trial(groups: int = 8, times: int = 4) -> pd.DataFrame:
    """Every group at all times, two arms, two sexes; rows not in order."""
    rng = np.random.default_rng(3)
    n = groups * times
    code = np.repeat(np.arange(groups), times)
    data = pd.DataFrame(
        {
            "y": rng.standard_normal(n),
            "x": rng.standard_normal(n),
            "id": [f"s{c}" for c in code],
            "number": code % (groups // 2),
            "week": np.tile(np.arange(times), groups) + 10,
            "arm": np.where(code < groups // 2, "a", "b"),
            "sex": np.where(code % 2, "m", "f"),
            "site": np.where(code % 4 < 2, "north", "south"),
            "dose": np.tile(np.arange(1.0, times + 1), groups),
        }
    )
    data["visit"] = pd.Categorical("v" + data.week.astype(str), ordered=True)
    return data.iloc[rng.permutation(n)].reset_index(drop=True)


DATA = trial()
LARGE = trial(16)


def bind(residuals: Any, data: Any = DATA, formula: str = "y ~ x", **options: Any) -> ResidualFrame:
    own = framed(residuals, data, formula, **options)[1]
    assert own is not None
    return own


def framed(residuals: Any, data: Any = DATA, formula: str = "y ~ x", **options: Any) -> Any:
    spec = as_structure(residuals)
    parsed = parse(formula)
    frame = build_frame(parsed, data, also=residual_columns(spec, parsed), **options)
    return frame, residual_frame(spec, frame)


# Codes and times


def test_groups_times_and_levels_are_those_of_the_rows():
    own = bind("us(visit | id)").design
    levels = pd.Index(sorted(DATA.id.unique()))
    assert np.array_equal(own.codes, levels.get_indexer(DATA.id))
    assert own.size == 8
    assert np.array_equal(own.times, DATA.week - 10)
    assert np.array_equal(own.levels, DATA.week - 10)
    assert np.array_equal(own.covariate, np.ones(len(DATA)))
    assert not own.stratum.any()
    assert own.covariance.levels == 4


@pytest.mark.parametrize(
    ("residuals", "family"),
    [
        ("ar1(week | id)", Autoregressive(1, 3)),
        ("ar(2, week | id)", Autoregressive(2, 3)),
        ("ma1(week | id)", MovingAverage(1, 3)),
        ("arma(1, 1, week | id)", AutoregressiveMovingAverage(1, 1, 3)),
        ("toep(week | id)", Toeplitz(3, 3)),
        ("toep(2, week | id)", Toeplitz(2, 3)),
        ("exp(week | id)", Exponential(False, 1.0)),
        ("exp(week | id, nugget)", Exponential(True, 1.0)),
        ("us(week | id)", Unstructured(4)),
        ("banded(2, week | id)", Banded(2, 4)),
        ("banded(9, week | id)", Banded(3, 4)),
        ("ad(week | id)", AnteDependence(4)),
    ],
)
def test_families_are_bound_to_the_times(residuals, family):
    own = bind(residuals)
    assert own.design.covariance.family == family
    assert own.labels.time == "week"
    assert np.array_equal(own.design.times, DATA.week - 10)


def test_gaps_in_whole_times_count_and_their_lags_share_sizes():
    data = DATA.assign(week=DATA.week.replace({12: 15, 13: 21}))
    own = bind("ar1(week | id)", data).design
    assert own.times.max() == 11
    assert own.covariance.family == Autoregressive(1, 12)  # of a grid, so that programs are shared


def test_labels_of_whole_times_are_numbered_in_their_order():
    own = bind("ar1(visit | id)")
    assert np.array_equal(own.design.times, DATA.week - 10)
    assert own.labels.times == ("v10", "v11", "v12", "v13")


def test_the_unit_of_continuous_times_is_a_typical_distance():
    data = DATA.assign(hour=DATA.week * 31.0 + 1e6)
    own = bind("exp(hour | id)", data)
    assert own.design.covariance.family == Exponential(False, 32.0)
    assert own.design.times.min() == 0.0


def test_exchangeable_groups_of_one_size_are_alike_whenever_they_were_observed():
    data = DATA[(DATA.arm == "a") | (DATA.week != 11)]
    own = bind("cs(week | id)", data)
    assert own.labels.text == "Exchangeable within id"
    assert own.design.covariance.family.largest == 4
    by_group = pd.Series(own.design.times).groupby(own.design.codes).apply(sorted)
    assert {tuple(times) for times in by_group} == {(0, 1, 2, 3), (0, 1, 2)}


def test_independent_rows_are_their_own_groups_and_plain_ones_are_no_structure():
    own = bind("diag(visit)")
    assert own.design.size == len(DATA)
    assert own.design.covariance.num_params == 3
    assert own.labels.group is None
    assert len(own.group_levels) == 0
    assert framed("iid")[1] is None
    assert framed(None)[1] is None


def test_strata_standard_deviations_and_covariates_are_coded():
    spec = R.AR(time="week", group="id", by="arm", variance_by=("sex", "site"), variance=R.Power("dose"))
    own = bind(spec)
    assert np.array_equal(own.design.stratum, (DATA.arm == "b").astype(int))
    assert own.labels.strata == ("a", "b")
    assert own.labels.variance_by == "sex:site"
    assert own.labels.levels == ("f:north", "f:south", "m:north", "m:south")
    codes = 2 * (DATA.sex == "m") + (DATA.site == "south")
    assert np.array_equal(own.design.levels, codes)
    assert np.array_equal(own.design.covariate, DATA.dose)
    assert own.labels.covariate == "dose"
    # phi, three ratios and an exponent in each of two strata, and the ratio between them
    assert own.design.covariance.num_params == 2 * (1 + 3 + 1) + 1
    assert own.design.covariance.function == "power"


def test_homogeneous_labels_have_one_standard_deviation():
    own = bind(R.Unstructured(time="visit", group="id", variance_by=None))
    assert own.design.covariance.levels == 1
    assert own.labels.levels == ()
    assert own.labels.times == ("v10", "v11", "v12", "v13")


# Groups


def test_the_default_group_is_the_innermost_of_the_formula():
    frame, own = framed("ar1(week)", formula="y ~ x + (1 | site) + (1 | site:id)")
    assert own.labels.group == "site:id"
    assert own.design.codes is frame.groups[1].codes
    assert own.labels.text == "AR(1) in week within site:id"


def test_the_label_of_a_grouping_of_the_formula_is_a_group():
    frame, own = framed(R.AR(time="week", group="site:id"), formula="y ~ x + (1 | site/id)")
    assert own.design.codes is frame.groups[1].codes


def test_several_columns_make_groups_of_numbers_used_again():
    own = bind(R.Unstructured(time="visit", group=("arm", "number"), by="arm"), LARGE)
    assert own.design.size == 16
    assert own.labels.group == "arm:number"
    assert own.group_levels.tolist()[0] == "a:0"


def test_the_groups_of_a_relationship_are_those_with_rows():
    A = np.eye(10) + 0.1
    ids = [*(f"s{k}" for k in range(8)), "other", "another"]
    fit_frame = frame_of(
        "y ~ x + (1 | id)", DATA, {"id": jm.known(A, ids)}, None, None,
        weights=None, offset=None, missing="drop", residuals="ar1(week)",
    )[0]  # fmt: skip
    assert fit_frame.residual.design.size == 8
    assert len(fit_frame.residual.group_levels) == 8
    assert fit_frame.residual.at({"id": ["s2", "other"], "week": [10, 11]}).codes.tolist() == [2, -1]


# Missing values


@pytest.mark.parametrize("column", ["week", "id", "arm", "sex", "dose"])
def test_rows_with_a_missing_value_in_any_column_of_the_structure_are_dropped(column):
    data = DATA.copy()
    data[column] = data[column].astype(object).where(data.index != 5, None)
    if column in ("week", "dose"):
        data[column] = data[column].astype(float)
    spec = R.AR(time="week", group="id", by="arm", variance_by="sex", variance=R.Exp("dose"))
    frame, own = framed(spec, data)
    assert frame.n_dropped == 1
    assert frame.dropped_by == {column: 1}
    assert len(own.design.codes) == len(frame.y) == len(DATA) - 1
    expected = DATA.week.drop(5) - DATA.week.min()
    assert np.array_equal(own.design.times, expected)
    with pytest.raises(DataError, match=f"'{column}' in 1 of 32 rows"):
        framed(spec, data, missing="raise")


def test_later_changes_of_the_data_change_nothing():
    data = DATA.copy()
    own = bind("ar1(week | id)", data)
    before = own.design.times.copy()
    data["week"] = 0
    assert np.array_equal(own.design.times, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.to_dict("list"),
        lambda data: {name: data[name].to_numpy() for name in data if name != "visit"},
        lambda data: data.assign(week=data.week.astype("Int64"), id=data.id.astype("string")),
        lambda data: data.assign(week=data.week.astype(float), id=data.id.astype("category")),
    ],
)
def test_every_kind_of_table_gives_the_same_structure(change):
    one, other = bind("ar1(week | id)").design, bind("ar1(week | id)", change(DATA)).design
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.times, other.times)
    assert one.covariance == other.covariance


# New rows


def test_new_rows_are_coded_as_those_of_the_fit():
    spec = R.AR(time="week", group="id", by="arm", variance_by="sex", variance=R.Exp("dose"))
    own = bind(spec)
    again = own.at(DATA)
    for name in ("codes", "times", "levels", "covariate", "stratum"):
        assert np.array_equal(getattr(again, name), getattr(own.design, name)), name
    new = own.at(
        {
            "id": ["s3", "new", None],
            "week": [25, 9, 10],
            "arm": ["a", "b", "a"],
            "sex": ["m", "f", "f"],
            "dose": [-1.0, 2.0, 3.0],
        }
    )
    assert new.codes.tolist() == [3, -1, -1]
    assert new.times[:2].tolist() == [15.0, -1.0]
    assert np.isnan(new.times[2])
    assert new.levels.tolist() == [1, 0, -1]
    assert new.stratum.tolist() == [0, 1, -1]
    assert new.covariate[:2].tolist() == [-1.0, 2.0]


def test_rows_of_new_groups_need_the_columns_of_their_variances_alone():
    assert bind("ar1(week | id)").at({"x": [1.0, 2.0]}, grouped=False).codes.tolist() == [-1, -1]
    own = bind("ar1(week | id, variance_by=sex)").at({"sex": ["m", "f"]}, grouped=False)
    assert own.levels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("residuals", "newdata", "says"),
    [
        ("us(visit | id)", {"id": ["s1"], "visit": ["v99"]}, "'visit' has the level 'v99'"),
        ("ar1(week | id)", {"id": ["s1"], "week": [10.5]}, "not whole numbers, e.g. 10.5"),
        ("ar1(week | id)", {"id": ["s1"]}, "no column 'week'"),
        ("cs(id, by=arm)", {"id": ["s1"], "arm": ["c"]}, "'arm' has the level 'c'"),
        (
            R.AR(time="week", group="id", variance=R.Power("dose")),
            {"id": ["s1"], "week": [11], "dose": [0.0]},
            "'dose'",
        ),
    ],
)
def test_new_rows_that_the_structure_has_nothing_for_are_refused(residuals, newdata, says):
    with pytest.raises(DataError) as caught:
        bind(residuals).at(newdata)
    assert says in str(caught.value)


def test_farther_times_have_the_correlations_of_the_same_parameters():
    own = bind("ar1(week | id)")
    farther = own.covariance_for(np.array([0.0, 20.0, np.nan]))
    assert farther.num_params == own.design.covariance.num_params
    free = jnp.array([np.arctanh(0.9)])
    C = np.asarray(farther.family.correlation(free, jnp.array([0.0, 3.0, 20.0])))
    assert C[0, 1:] == pytest.approx([0.9**3, 0.9**20], rel=1e-5)  # float32 outside the scope of float64
    assert own.covariance_for(np.array([0.0, 2.0])) == own.design.covariance
    assert bind("us(visit | id)").covariance_for(np.array([0.0, 1.0])).family == Unstructured(4)


def test_a_correlation_of_each_lag_is_not_known_beyond_the_longest():
    with pytest.raises(DataError, match=r"rows are 5 apart in 'week', .* up to the lag 3"):
        bind("toep(week | id)").covariance_for(np.array([0.0, 5.0]))
    assert bind("toep(2, week | id)").covariance_for(np.array([0.0, 5.0])).family.order == 2


# Refusals


def changed(**columns: Any) -> pd.DataFrame:
    return DATA.assign(**columns)


ODD = DATA.id.isin(["s1", "s3", "s5", "s7"])

REFUSED = {
    "time missing": (R.AR(group="id"), DATA, DesignError, "AR(1) needs the times of the rows: give time="),
    "group missing": (R.AR(time="week"), DATA, DesignError, "give group=, the column of the subjects"),
    "unknown column": ("ar1(weak | id)", DATA, DataError, "no column 'weak' (did you mean 'week'?)"),
    "repeated time": (
        "us(visit | id)",
        pd.concat([DATA, DATA.iloc[[4, 7]]], ignore_index=True),
        DataError,
        f"the group '{DATA.id[4]}' of 'id' has several rows at visit {DATA.visit[4]} (rows 4 and 32",
    ),
    "repeated time without order": (
        "cs(visit | id)",
        pd.concat([DATA, DATA.iloc[[4, 7]]], ignore_index=True),
        DataError,
        "and 1 more group has such rows",
    ),
    "number used again": ("ar1(week | number)", DATA, DataError, "such as group=('site', 'id')"),
    "number used again by arm": (
        "ar1(week | arm/number)",
        DATA,
        DataError,
        "of 'number' lies in several strata of by='arm'",
    ),
    "fractions": ("ar1(x | id)", DATA, DataError, "the times 'x' are not whole numbers"),
    "labels as numbers": ("exp(visit | id)", DATA, DataError, "the times 'visit' hold categories, e.g. 'v1"),
    "dates": (
        "ar1(day | id)",
        changed(day=pd.Timestamp("2024-01-01") + pd.to_timedelta(DATA.week, unit="D")),
        DataError,
        "the times 'day' hold dates or times",
    ),
    "infinite": (
        "exp(t | id)",
        changed(t=DATA.week.where(DATA.index != 3, np.inf)),
        DataError,
        "column 't' is infinite in 1 of the rows used",
    ),
    "order of texts": (
        "ad(t | id)",
        changed(t="week " + (DATA.week - 3).astype(str)),
        DataError,
        "as texts 'week 10' comes before 'week 7'",
    ),
    "long lags": (
        "ar1(t | id)",
        changed(t=20240000 + 5001 * DATA.week),
        DesignError,
        "up to 15,003 apart",
    ),
    "many labels": (
        "us(t | id)",
        pd.DataFrame({"y": np.arange(130.0), "x": 1.5, "id": np.arange(130) // 2, "t": np.arange(130)}),
        DesignError,
        "the time 't' has 130 different values",
    ),
    "one row each": (
        "cs(row)",
        changed(row=np.arange(32)),
        DesignError,
        "every group of 'row' has one row",
    ),
    "one row each in a stratum": (
        "cs(id, by=arm)",
        DATA[(DATA.arm == "a") | (DATA.week == 10)],
        DesignError,
        "every group of arm 'b' of 'id' has one row",
    ),
    "one label": (
        "us(t | id)",
        changed(t="only").drop_duplicates("id"),
        DesignError,
        "every group of 'id' has one row",
    ),
    "labels never together": (
        "us(visit | id)",
        DATA[np.where(ODD, DATA.week < 12, DATA.week >= 12)],
        DesignError,
        "observed at both visit 'v10' and 'v12', 'v11' and 'v12', 'v10' and 'v13', 'v11' and 'v13'",
    ),
    "labels never together in a stratum": (
        "us(visit | arm/id)",
        LARGE[(LARGE.arm == "a") | np.where(LARGE.sex == "m", LARGE.week != 10, LARGE.week != 12)],
        DesignError,
        "no group of arm 'b' was observed at both visit 'v10' and 'v12'",
    ),
    "a step never made": (
        "ad(visit | id)",
        DATA[np.where(ODD, DATA.week < 12, DATA.week >= 12)],
        DesignError,
        "observed at both visit 'v11' and 'v12', so",
    ),
    "few groups": (
        "us(visit | id)",
        DATA[DATA.id.isin(["s0", "s1", "s2"])],
        DesignError,
        "there are 3 groups",
    ),
    "lag absent": (
        "ma1(t | id)",
        changed(t=4 * DATA.week),
        DesignError,
        "no two rows of a group are 1 apart in 't'; the smallest is 4",
    ),
    "lag of Toeplitz absent": (
        "toep(t | id)",
        changed(t=DATA.week.replace({12: 13, 13: 17})),
        DesignError,
        "are 5 apart in 't'",
    ),
    "few lags": ("ar(2, week | id)", DATA[DATA.week < 12], DesignError, "too few different lags for the 2"),
    "few lags for a nugget": (
        "exp(week | id, nugget)",
        DATA[DATA.week < 12],
        DesignError,
        "are '1' apart in 'week': too few",
    ),
    "order too long": ("toep(5, week | id)", DATA, DesignError, "are 4, 5 apart"),
    "no row of a level": (
        "us(visit | arm/id)",
        DATA[(DATA.arm == "a") | (DATA.week < 13)],
        DesignError,
        "no row used of arm 'b' at visit 'v13'",
    ),
    "a level fitted exactly": (
        R.Independent(variance_by="week"),
        DATA[(DATA.week < 13) | (DATA.id == "s1")],
        DesignError,
        "one row at week '13' only, which the fixed effects fit exactly",
    ),
    "power of zero": (
        R.AR(time="week", group="id", variance=R.Power("z")),
        changed(z=DATA.week - 10),
        DataError,
        "the covariate 'z' of Power(covariate='z') is 0",
    ),
    "covariate of labels": (
        R.AR(time="week", group="id", variance=R.Exp("sex")),
        DATA,
        DataError,
        "column 'sex' holds text",
    ),
    "strata within groups": ("cs(id, by=visit)", DATA, DataError, "lies in several strata of by='visit'"),
}


@pytest.mark.parametrize(("residuals", "data", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_what_the_rows_cannot_determine_is_refused_with_the_reason(residuals, data, error, says):
    with pytest.raises(error) as caught:
        bind(residuals, data)
    assert says in str(caught.value)


def test_crossed_groupings_do_not_say_which_rows_belong_together():
    with pytest.raises(DesignError, match="'id' and 'week' of the formula are crossed"):
        bind("exp(dose)", formula="y ~ x + (1 | id) + (1 | week)")


def test_rows_are_counted_as_in_the_data():
    data = pd.concat([DATA, DATA.iloc[[4]]], ignore_index=True)
    data.loc[0, "x"] = np.nan
    with pytest.raises(DataError, match="rows 4 and 32, counting from 0"):
        bind("us(visit | id)", data)


def test_few_rows_of_a_level_are_enough_with_random_effects():
    data = DATA[(DATA.week < 13) | (DATA.id == "s1")]
    assert bind(R.Independent(variance_by="week"), data, "y ~ x + (1 | id)").design.covariance.levels == 4


def test_groups_that_fixed_effects_of_every_label_fit_exactly_are_too_few():
    four = DATA[DATA.id.isin(["s0", "s1", "s2", "s3"])]
    assert bind("us(visit | id)", four).design.size == 4
    with pytest.raises(DesignError, match="there are 4 groups"):
        bind("us(visit | id)", four, "y ~ visit")
    assert bind("banded(2, visit | id)", four, "y ~ visit").design.size == 4


def test_a_step_is_determined_by_products_over_other_steps():
    together = np.zeros((4, 4))
    for i, j in [(0, 2), (1, 2), (2, 3)]:  # rho1 rho2, rho2, rho3
        together[i, j] = together[j, i] = 1
    assert _undetermined_steps(together) == []
    together[1, 2] = together[2, 1] = 0
    assert _undetermined_steps(together) == [(0, 1), (1, 2)]


# Functions of one's own


def damped(params: dict[str, Any], times: Any) -> Any:
    return params["rho"] ** jnp.abs(times[:, None] - times[None, :])


def singular(params: dict[str, Any], times: Any) -> Any:
    return jnp.ones((len(times), len(times))) * (1 + 0 * params["rho"])


def test_a_function_of_ones_own_gets_the_times_as_they_are():
    own = bind(R.structure(damped, {"rho": jm.kernels.Correlation(0.4)}, time="week", group="id"))
    assert np.array_equal(own.design.times, DATA.week)
    assert own.design.covariance.num_params == 1
    assert own.labels.text == "damped in week within id"


@pytest.mark.parametrize(
    ("function", "parameters", "says"),
    [
        (damped, {"rho": 0.4}, "give its support and starting value"),
        (singular, {"rho": jm.kernels.Correlation(0.4)}, "is not positive definite"),
    ],
)
def test_a_function_of_ones_own_that_gives_no_correlations_is_refused(function, parameters, says):
    with pytest.raises(DesignError) as caught:
        bind(R.structure(function, parameters, time="week", group="id"))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("times", "expected"),
    [([3, 0, 1, 3, 4], 2), ([0, 1, 2, 9, 7], 3), ([0, 2, 4, 7, 9], 1), ([1, 0, 2, 5, 6], 3)],
)
def test_the_most_rows_without_a_gap_are_those_of_one_group(times, expected):
    assert longest_run(np.array([1, 1, 1, 0, 0]), np.array(times, dtype=float)) == expected

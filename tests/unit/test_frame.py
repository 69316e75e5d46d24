"""Data of every kind into a model frame: rows, groups, weights, offsets, and what is refused."""

import datetime
import decimal

import narwhals
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame

NAN = float("nan")


def plain_data():
    """Eight rows with a numeric, a text and a grouping column."""
    return {
        "y": [1.0, 2.0, 4.0, 3.0, 6.0, 5.0, 7.0, 9.0],
        "x": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 8.5],
        "f": ["a", "b", "a", "b", "c", "c", "a", "b"],
        "g": [3, 3, 1, 1, 2, 2, 3, 1],
    }


FORMULA = "y ~ x + f + (1 | g)"


def structured(data):
    return np.rec.fromarrays([np.array(column) for column in data.values()], names=list(data))


# Kinds of tables


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        lambda data: pd.DataFrame(data).convert_dtypes(),
        lambda data: pd.DataFrame(data).convert_dtypes(dtype_backend="pyarrow"),
        lambda data: pd.DataFrame(data).astype({"f": "category", "x": "float32", "g": "int8"}),
        lambda data: pd.DataFrame(data).astype({"f": object, "x": object, "g": object, "y": object}),
        pl.DataFrame,
        lambda data: pl.DataFrame(data).with_columns(pl.col("f").cast(pl.Categorical)),
        lambda data: pl.DataFrame(data).with_columns(pl.col("f").cast(pl.Enum(["a", "b", "c"]))),
        lambda data: pl.DataFrame(data).with_columns(
            pl.col("x").cast(pl.Decimal(10, 2)), pl.col("g").cast(pl.UInt8)
        ),
        pa.table,
        lambda data: pa.table({**data, "f": pa.array(data["f"]).dictionary_encode()}),
        lambda data: narwhals.from_native(pl.DataFrame(data)),
        structured,
        lambda data: np.asarray(structured(data)),
        dict,
        lambda data: {name: np.array(column) for name, column in data.items()},
        lambda data: {name: tuple(column) for name, column in data.items()},
        lambda data: {name: pd.Series(column) for name, column in data.items()},
    ],
)
def test_every_kind_of_table_gives_the_same_model(convert):
    expected = build_frame(FORMULA, plain_data())
    frame = build_frame(FORMULA, convert(plain_data()))
    assert frame.x_names == expected.x_names == ("(Intercept)", "x", "fb", "fc")
    np.testing.assert_array_equal(frame.X, expected.X)
    np.testing.assert_array_equal(frame.y, plain_data()["y"])
    np.testing.assert_array_equal(frame.groups[0].codes, [2, 2, 0, 0, 1, 1, 2, 0])
    assert frame.groups[0].levels.tolist() == [1, 2, 3]
    assert (frame.y.dtype, frame.X.dtype, frame.groups[0].codes.dtype) == (np.float64, np.float64, np.int64)
    assert frame.data_repr.endswith("with 8 rows")


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        lambda data: pd.DataFrame(data).convert_dtypes(),
        lambda data: pd.DataFrame(data).convert_dtypes(dtype_backend="pyarrow"),
        lambda data: pd.DataFrame(data).astype({"f": "category"}),
        lambda data: pd.DataFrame(data).astype(object),
        pl.DataFrame,
        pa.table,
        dict,
    ],
)
def test_missing_values_of_every_kind_of_table_are_dropped_from_every_array_together(convert):
    data = plain_data()
    data["x"][1] = None
    data["f"][4] = None
    data["g"][6] = None
    data["f"][6] = None
    frame = build_frame(FORMULA, convert(data))
    assert frame.kept.tolist() == [True, False, True, True, False, True, False, True]
    assert frame.dropped_by == {"x": 1, "f": 2, "g": 1}
    assert frame.n_dropped == 3
    np.testing.assert_array_equal(frame.y, [1, 4, 3, 5, 9])
    np.testing.assert_array_equal(frame.X[:, 1], [0.5, 2.5, 3.5, 5.5, 8.5])
    np.testing.assert_array_equal(frame.groups[0].codes, [2, 0, 0, 1, 0])
    assert frame.groups[0].levels.tolist() == [1, 2, 3]
    assert frame.index.tolist() == [0, 2, 3, 5, 7]


def test_a_formula_may_be_given_as_text_or_parsed():
    data = plain_data()
    by_text, parsed = build_frame(FORMULA, data), build_frame(parse(FORMULA), data)
    np.testing.assert_array_equal(by_text.X, parsed.X)
    assert by_text.formula == parsed.formula
    assert by_text.response_name == "y"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "NoneType is not a table"),
        ([1, 2, 3], "list is not a table"),
        ("data.csv", "str is not a table"),
        (pd.Series([1.0, 2.0], name="y"), "Series is not a table"),
        (np.zeros((3, 2)), r"shape \(3, 2\), which has no column names"),
        (pl.DataFrame(plain_data()).lazy(), "collect a lazy frame first"),
        (pd.DataFrame({("y", 1): [1.0], ("x", 1): [1.0]}), "MultiIndex columns"),
        ({"y": [1.0, 2.0], "x": [1.0]}, "differ in length: 'y' has 2, 'x' has 1"),
        ({"y": [1.0, 2.0], "x": np.zeros((2, 2))}, r"'x' has shape \(2, 2\)"),
        ({"y": [1.0, 2.0], "x": "ab"}, "'x' is a str"),
        ({"y": [1.0, 2.0], "x": np.array([(1, 2), (3, 4)], dtype="i8,i8")}, "which a model cannot use"),
        (pl.DataFrame({"y": [1.0, 2.0], "x": [[1], [2]]}), "holds List"),
        ({"y": [], "x": []}, "no rows"),
        (pd.DataFrame({"y": [], "x": []}), "no rows"),
    ],
)
def test_what_is_no_table_is_an_error(data, message):
    with pytest.raises(DataError, match=message):
        build_frame("y ~ x", data)


def test_series_with_different_indexes_are_not_matched_by_position():
    data = {"y": pd.Series([1.0, 2.0, 4.0]), "x": pd.Series([1.0, 2.0, 3.0], index=[2, 1, 0])}
    with pytest.raises(DataError, match="'y' and 'x' have different indexes"):
        build_frame("y ~ x", data)


def test_every_unknown_name_is_listed_with_close_matches():
    with pytest.raises(DataError) as error:
        build_frame(
            "reaction ~ Dayz + (1 | subject) + (1 | nowhere)",
            {"Reaction": [1.0], "Days": [0], "Subject": [1]},
        )
    message = str(error.value)
    for piece in (
        "'reaction' (did you mean 'Reaction'",
        "'Dayz' (did you mean 'Days'",
        "'subject' (did you mean 'Subject'",
        "'nowhere'",
        "available columns: 'Reaction', 'Days', 'Subject'",
    ):
        assert piece in message


@pytest.mark.parametrize("convert", [pd.DataFrame, pl.DataFrame, dict])
def test_unknown_names_are_errors_for_every_kind_of_table(convert):
    with pytest.raises(DataError, match="no columns 'q', 'w'; available columns: 'y', 'x', 'f', 'g'"):
        build_frame("y ~ q + (1 | w)", convert(plain_data()))
    with pytest.raises(DataError, match="no column 'w'"):
        build_frame("y ~ x", convert(plain_data()), weights="w")


def test_two_columns_of_one_name_are_an_error_when_used():
    data = pd.DataFrame([[1.0, 2.0, 3.0], [2.0, 3.0, 5.0], [4.0, 4.0, 1.0]], columns=["y", "x", "x"])
    with pytest.raises(DataError, match="2 columns are named 'x'"):
        build_frame("y ~ x", data)


def test_only_used_columns_are_read():
    data = pd.DataFrame(plain_data()).assign(unused=None, odd=[{}] * 8)
    assert build_frame(FORMULA, data).n_dropped == 0


def test_the_data_of_the_caller_are_never_modified():
    data = pd.DataFrame({**plain_data(), "w": 2.0})
    data.loc[2, "x"] = NAN
    before = data.copy(deep=True)
    frame = build_frame("y ~ x + scale(x) + f + (x | g)", data, weights="w", offset="w")
    pd.testing.assert_frame_equal(data, before)
    with pytest.raises(ValueError, match="read-only"):
        frame.X[0, 0] = 5.0
    with pytest.raises(ValueError, match="read-only"):
        frame.y[0] = 5.0
    data.loc[0, "y"] = 1e6
    assert frame.y[0] == 1.0


def test_read_only_and_strided_arrays_are_fine():
    data = {name: np.array(column) for name, column in plain_data().items()}
    data["x"] = np.repeat(data["x"], 2)[::2]
    for array in data.values():
        array.flags.writeable = False
    np.testing.assert_array_equal(build_frame(FORMULA, data).X[:, 1], plain_data()["x"])


# Missing and infinite values


@pytest.mark.parametrize("missing", [None, NAN, pd.NA, pd.NaT, np.nan])
def test_none_nan_nat_and_na_are_all_missing(missing):
    data = pd.DataFrame(plain_data()).astype({"x": object, "f": object, "g": object, "y": object})
    for row, name in enumerate(["y", "x", "f", "g"]):
        data.loc[row, name] = missing
    frame = build_frame(FORMULA, data)
    assert frame.dropped_by == {"y": 1, "x": 1, "f": 1, "g": 1}
    assert len(frame.y) == 4


def test_a_missing_group_never_becomes_a_level():
    groups = ["nan", "", None, "nan", "", "x", NAN, "x"]
    frame = build_frame("y ~ 1 + (1 | g)", {**plain_data(), "g": pd.Series(groups, dtype=object)})
    assert frame.groups[0].levels.tolist() == ["", "nan", "x"]
    assert frame.dropped_by == {"g": 2}


def test_missing_times_and_float_groups_are_dropped():
    times = pd.to_datetime(
        ["2020-01-02", None, "2020-01-01", "2020-01-01", "2020-01-02", None, "2020-01-02", "2020-01-01"]
    )
    frame = build_frame("y ~ 1 + (1 | g)", {**plain_data(), "g": times})
    assert frame.groups[0].codes.tolist() == [1, 0, 0, 1, 1, 0]
    frame = build_frame("y ~ 1 + (1 | g)", {**plain_data(), "g": [1.5, NAN, 1.5, 0.5, 0.5, 0.5, NAN, 1.5]})
    assert frame.groups[0].levels.tolist() == [0.5, 1.5]


def test_missing_raise_names_columns_and_counts():
    data = plain_data()
    data["x"][1] = data["x"][2] = data["f"][0] = None
    with pytest.raises(DataError, match=r"'x' in 2, 'f' in 1 of 8 rows.*missing='drop'"):
        build_frame(FORMULA, data, missing="raise")
    assert build_frame(FORMULA, plain_data(), missing="raise").n_dropped == 0


@pytest.mark.parametrize("option", ["ignore", "Drop", None, True])
def test_an_invalid_option_for_missing_lists_the_valid_ones(option):
    with pytest.raises(DataError, match="'drop', 'raise'"):
        build_frame(FORMULA, plain_data(), missing=option)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [None] * 8}, "0 complete rows of 8; x is missing in all"),
        ({"x": [None] * 8, "f": [None] * 8}, "x and f are missing in all"),
        ({"x": [NAN, 1.0] * 4, "y": [1.0, NAN] * 4}, "0 complete rows of 8; missing: 'y' in 4, 'x' in 4"),
    ],
)
def test_no_complete_row_is_an_error_that_says_why(changes, message):
    with pytest.raises(DataError, match=message):
        build_frame(FORMULA, {**plain_data(), **changes})


@pytest.mark.parametrize("name", ["y", "x", "w", "o"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_errors_that_name_column_and_row(name, value):
    data = pd.DataFrame({**plain_data(), "w": 1.0, "o": 1.0})
    data.loc[0, "x"] = NAN
    data.loc[[3, 5], name] = value
    with pytest.raises(DataError, match=f"'{name}' is infinite in 2 of the rows used, first in row 3 "):
        build_frame("y ~ x + (1 | g)", data, weights="w", offset="o")


def test_infinite_values_in_dropped_rows_do_not_matter():
    data = plain_data()
    data["x"][3], data["f"][3] = np.inf, None
    assert build_frame(FORMULA, data).n_dropped == 1


@pytest.mark.parametrize(
    "index", [[7] * 8, list("hgfedcba"), pd.MultiIndex.from_product([[1, 2], list("abcd")])]
)
def test_rows_are_positional_and_the_index_is_carried(index):
    data = pd.DataFrame(plain_data(), index=index)
    data.iloc[2, 1] = NAN
    frame = build_frame(FORMULA, data)
    assert frame.index.equals(data.index.delete(2))
    np.testing.assert_array_equal(frame.y, np.delete(plain_data()["y"], 2))


# Response


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (["1", "2", "3"], "'y' holds text, e.g. '1'"),
        ([1.0, "n/a", 2.0], "'y' holds values of several types, e.g. 'n/a'"),
        (pd.Categorical([1, 2, 3]), "'y' holds categories, e.g. 1"),
        (np.array([1, 2, 3], dtype="M8[D]"), "'y' holds dates or times"),
        ([datetime.date(2020, 1, day) for day in (1, 2, 3)], "'y' holds dates or times"),
        ([1j, 2, 3], "'y' holds complex numbers"),
        ([True, False, True], "'y' holds booleans, e.g. .*True.* 0 and 1"),
        ([2.0, 2.0, 2.0], "response y is constant: all 3 rows used equal 2"),
        ([0, 0, 0], "response y is constant"),
        ([5.0, NAN, NAN], "all 1 rows used equal 5"),
    ],
)
def test_a_response_that_is_no_varying_number_is_an_error(y, message):
    with pytest.raises(DataError, match=message):
        build_frame("y ~ x", {"y": y, "x": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize(
    "y",
    [
        pd.Series([1, 2, 4], dtype=object),
        [decimal.Decimal(1), decimal.Decimal(2), decimal.Decimal(4)],
        pd.Series([1, 2, 4], dtype="Int64"),
        pd.Series([1, 2, 4], dtype="Float64"),
        pd.Series([1, 2, 4], dtype="float32"),
        pd.Series(pd.arrays.SparseArray([1.0, 2.0, 4.0])),
        np.array([1, 2, 4], dtype=np.uint8),
        np.array([1, 2, 4], dtype=np.float16),
        np.ma.masked_array([1.0, 2.0, 4.0]),
        pd.Index([1, 2, 4]),
        range(1, 5),
        pd.Series([1, 2, 4], dtype="Int64").astype("int64[pyarrow]"),
    ],
)
def test_numbers_of_every_dtype_are_a_response_and_a_predictor(y):
    values = [1, 2, 3, 4] if isinstance(y, range) else [1, 2, 4]
    data = {"y": y, "x": list(range(len(values)))}
    np.testing.assert_array_equal(build_frame("y ~ x", data).y, values)
    frame = build_frame("x ~ y", data)
    assert frame.x_names == ("(Intercept)", "y")
    np.testing.assert_array_equal(frame.X[:, 1], values)


@pytest.mark.parametrize(("factor", "shift"), [(1e200, 0.0), (1e-200, 0.0), (1.0, 2.0**40), (1e12, 0.0)])
def test_extreme_magnitudes_pass(factor, shift):
    data = plain_data()
    data["y"] = [factor * value + shift for value in data["y"]]
    data["x"] = [factor * value for value in data["x"]]
    frame = build_frame(FORMULA, data)
    np.testing.assert_array_equal(frame.y, data["y"])
    np.testing.assert_array_equal(frame.X[:, 1], data["x"])


def test_a_response_may_be_transformed():
    frame = build_frame("log(y) ~ x", plain_data())
    np.testing.assert_array_equal(frame.y, np.log(plain_data()["y"]))
    assert frame.response_name == "log(y)"
    with pytest.raises(
        DataError, match=r"log\(y\) is not a finite number in 1 of 8 complete rows, first in row 0"
    ):
        build_frame("log(y) ~ x", {**plain_data(), "y": [0.0, 1, 2, 3, 4, 5, 6, 7]})


def test_integers_too_large_for_64_bits_become_floats():
    frame = build_frame("y ~ x", {"y": [1.0, 2.0, 4.0], "x": [10**30, 1, 2]})
    np.testing.assert_array_equal(frame.X[:, 1], [1e30, 1, 2])


def test_nan_and_na_of_one_nullable_column_are_both_missing():
    x = pd.Series(
        pd.arrays.FloatingArray(np.array([1.0, NAN, 3.0, 7.0]), np.array([True, False, False, False]))
    )
    assert build_frame("y ~ x", {"y": [1.0, 2.0, 4.0, 5.0], "x": x}).dropped_by == {"x": 2}


def test_a_masked_array_is_missing_where_masked():
    data = {"y": np.ma.masked_array([1.0, 2.0, 4.0, 9.0], mask=[0, 1, 0, 0]), "x": [1.0, 2.0, 3.0, 5.0]}
    assert build_frame("y ~ x", data).dropped_by == {"y": 1}


# Identifiability


def test_one_level_is_an_error():
    with pytest.raises(DataError, match=r"'g' of \(1 \| g\) has one level, 5, in the rows used"):
        build_frame("y ~ x + (1 | g)", {**plain_data(), "g": [5] * 8})


@pytest.mark.parametrize("values", [list(range(8)), [0.1 * row for row in range(8)], list("abcdefgh")])
def test_a_level_per_row_is_an_error_with_both_numbers(values):
    with pytest.raises(DesignError, match="8 levels for 8 rows"):
        build_frame("y ~ x + (1 | g)", {**plain_data(), "g": values})


def test_as_many_random_effects_as_rows_are_an_error_with_both_numbers():
    data = {"y": np.arange(36.0) ** 2, "x": [0.0, 1.0] * 18, "g": np.repeat(np.arange(18), 2)}
    with pytest.raises(DesignError, match="36 random effects, 36 rows"):
        build_frame("y ~ x + (1 + x | g)", data)
    assert len(build_frame("y ~ x + (x || g)", data).groups[0].names) == 2
    with pytest.raises(DesignError, match="36 random effects, 36 rows"):
        build_frame("y ~ x + diag(0 + factor(x) | g)", data)


def test_too_many_covariance_parameters_are_an_error_with_their_number():
    data = {"y": np.arange(1000.0), "f": np.arange(1000) % 120, "g": np.repeat([1, 2], 500)}
    with pytest.raises(DesignError, match="120 correlated effects, so 7260 covariance parameters"):
        build_frame("y ~ 1 + (0 + factor(f) | g)", data)
    assert len(build_frame("y ~ 1 + diag(0 + factor(f) | g)", data).groups[0].names) == 120


def test_two_groupings_of_one_partition_are_an_error():
    data = {**plain_data(), "h": [f"group {code}" for code in plain_data()["g"]]}
    with pytest.raises(DesignError, match="'g' and 'h' split the rows into the same 3 groups"):
        build_frame("y ~ x + (1 | g) + (1 | h)", data)
    assert len(build_frame("y ~ x + (1 | g) + (0 + x | h)", data).groups) == 2
    crossed = {**data, "h": [1, 2, 3, 1, 2, 3, 1, 2]}
    assert len(build_frame("y ~ x + (1 | g) + (1 | h)", crossed).groups) == 2


def test_a_factor_that_is_fixed_and_random_is_an_error():
    with pytest.raises(DesignError, match=r"'f' has fixed effects and is the grouping of \(1 \| f\)"):
        build_frame("y ~ f + (1 | f)", plain_data())
    with pytest.raises(DesignError, match="'g' has fixed effects"):
        build_frame("y ~ factor(g) + (1 | g)", plain_data())
    assert build_frame("y ~ g + (1 | g)", plain_data()).x_names == ("(Intercept)", "g")
    assert build_frame("y ~ f + (0 + x | f)", plain_data()).groups[0].names == ("x",)


@pytest.mark.parametrize("num_rows", [1, 2])
def test_one_or_two_rows_are_an_error(num_rows):
    data = {name: column[:num_rows] for name, column in plain_data().items()}
    with pytest.raises((DataError, DesignError)):
        build_frame(FORMULA, data)


def test_two_groups_and_singleton_groups_pass():
    data = {**plain_data(), "g": [1, 1, 1, 1, 1, 1, 1, 2]}
    assert build_frame("y ~ x + (1 | g)", data).groups[0].levels.tolist() == [1, 2]


def test_a_formula_without_random_term_is_a_linear_model():
    frame = build_frame("y ~ x", plain_data())
    assert frame.groups == ()
    assert (frame.weights, frame.offset) == (None, None)


# Weights and offset


@pytest.mark.parametrize(
    "weights",
    [
        "w",
        [1, 2, 3, 4, 5, 6, 7, 8],
        np.arange(1, 9, dtype=np.int8),
        pd.Series(range(1, 9), index=list("stuvwxyz")),
        pl.Series([1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_weights_come_as_a_column_or_as_an_array(weights):
    data = pd.DataFrame({**plain_data(), "w": range(1, 9)}, index=list("stuvwxyz"))
    data.iloc[2, 0] = NAN
    frame = build_frame(FORMULA, data, weights=weights)
    np.testing.assert_array_equal(frame.weights, [1, 2, 4, 5, 6, 7, 8])
    assert frame.weights.dtype == np.float64


def test_rows_with_missing_weights_or_offset_are_dropped():
    weights = [1.0, NAN, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    offset = [None, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0]
    frame = build_frame(FORMULA, plain_data(), weights=weights, offset=offset)
    assert frame.dropped_by == {"weights": 1, "offset": 1}
    np.testing.assert_array_equal(frame.weights, weights[2:])
    np.testing.assert_array_equal(frame.y, plain_data()["y"][2:])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 7, "weights has 7 values, but the data have 8 rows"),
        ([1.0] * 7 + [0.0], "contain 0, first in row 7 .*subset the data instead"),
        ([1.0] * 6 + [-1.0, 1.0], "contain -1, first in row 6 .*must be positive"),
        ([1.0] * 7 + [np.inf], "'weights' is infinite"),
        (["1"] * 8, "'weights' hold text, e.g. '1'"),
        ([True] * 8, "'weights' hold booleans"),
        (2.0, "weights=2.0 is neither a column name nor an array"),
        (np.ones((8, 1)), r"'weights' has shape \(8, 1\)"),
        (pd.Series([1.0] * 8, index=range(1, 9)), "index of weights does not match"),
        ("f", "'f' hold text"),
        ("wieghts", "no column 'wieghts'"),
    ],
)
def test_weights_that_cannot_be_are_errors(weights, message):
    with pytest.raises(DataError, match=message):
        build_frame(FORMULA, plain_data(), weights=weights)


def test_offsets_of_formula_and_argument_are_summed():
    data = {**plain_data(), "o": [1] * 8}
    frame = build_frame("y ~ x + offset(log(x)) + offset(o)", data, offset=np.full(8, 10, dtype=np.int8))
    np.testing.assert_array_equal(frame.offset, np.log(data["x"]) + 11)
    np.testing.assert_array_equal(build_frame("y ~ x", data, offset="o").offset, np.ones(8))


@pytest.mark.parametrize(
    ("formula", "offset", "message"),
    [
        ("y ~ x", ["1"] * 8, "'offset' holds text"),
        ("y ~ x", [1.0], "offset has 1 values"),
        ("y ~ x", "f", "'f' holds text, e.g. 'a', but the offset needs numbers"),
        ("y ~ x", pd.Series([1.0] * 8, index=range(8, 0, -1)), "index of offset"),
        ("y ~ x + offset(f)", None, r"offset\(f\) needs numbers"),
        ("y ~ x + offset(log(x))", None, r"log\(x\) is not a finite number"),
    ],
)
def test_offsets_that_cannot_be_are_errors(formula, offset, message):
    data = plain_data()
    if "log" in formula:
        data["x"][3] = -1.0
    with pytest.raises(DataError, match=message):
        build_frame(formula, data, offset=offset)


# Names


def test_columns_named_like_functions_or_with_spaces_are_found():
    data = {
        "y": [1.0, 2.0, 4.0, 3.0],
        "log": [1, 2, 3, 5],
        "my col": list("abab"),
        "Intercept": [1.0, 4.0, 2.0, 2.0],
    }
    frame = build_frame("y ~ log + log(log) + Intercept", data)
    assert frame.x_names == ("(Intercept)", "log", "log(log)", "Intercept")
    assert build_frame("y ~ `my col`", data).x_names == ("(Intercept)", "`my col`b")


def test_errors_of_the_formula_come_first():
    with pytest.raises(FormulaError):
        build_frame("y ~ x + (1 | g", plain_data())


def test_the_order_of_rows_changes_only_the_order_of_rows():
    data = pd.DataFrame(plain_data())
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    straight, shuffled = build_frame(FORMULA, data), build_frame(FORMULA, data.iloc[order])
    np.testing.assert_array_equal(shuffled.X, straight.X[order])
    np.testing.assert_array_equal(shuffled.groups[0].codes, straight.groups[0].codes[order])
    assert shuffled.index.tolist() == order


def test_further_columns_are_kept_as_read_and_drop_the_rows_in_which_they_are_missing():
    data = {"y": [1.0, 2.0, 4.0, 3.0], "x": [0.0, 1.0, 0.0, 1.0], "week": [1.0, np.nan, 3.0, np.inf]}
    frame = build_frame("y ~ x", data, also=("week", "x"))
    assert frame.n_dropped == 1
    assert frame.dropped_by == {"week": 1}
    assert frame.also["week"].values.tolist() == [1.0, 3.0, np.inf]
    assert frame.also["week"].has_infinite
    assert "week" not in frame.fixed_data
    data["week"][0] = 9.0
    assert frame.also["week"].values[0] == 1.0
    with pytest.raises(DataError, match="no column 'weak'"):
        build_frame("y ~ x", data, also=("weak",))

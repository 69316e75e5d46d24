"""Design matrices against R's model.matrix, and the encoding of new data."""

import datetime

import numpy as np
import pandas as pd
import pytest

from jaxmixed.encoding import encode_fixed, encode_random
from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.frame import build_frame

RNG = np.random.default_rng(20)
NUM_ROWS = 48
NAN = float("nan")
DATA = pd.DataFrame(
    {
        "y": RNG.normal(size=NUM_ROWS),
        "x": RNG.normal(size=NUM_ROWS),
        "z": RNG.integers(1, 9, NUM_ROWS).astype(float),
        "a": np.tile(["p", "q", "r"], 16),
        "b": np.repeat(["u", "v"], 24),
        "t": np.tile([True, True, False, False], 12),
        "g": np.tile(np.arange(1, 7), 8),
        "h": np.repeat(list("wxyz"), 12),
    }
)
SMALL = {
    "y": [1.0, 2.0, 4.0, 3.0, 6.0, 5.0, 7.0, 9.0],
    "x": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 8.5],
    "f": ["a", "b", "a", "b", "c", "c", "a", "b"],
    "g": [3, 3, 1, 1, 2, 2, 3, 1],
}
P, Q, R = (np.asarray(DATA.a == level, dtype=float) for level in "pqr")
U, V = (np.asarray(DATA.b == level, dtype=float) for level in "uv")
X, Z, T = DATA.x.to_numpy(), DATA.z.to_numpy(), DATA.t.to_numpy(dtype=float)
ONE = np.ones(NUM_ROWS)

# Names, order and coding of the columns as R's model.matrix gives them for the right-hand side.
MODEL_MATRICES = [
    ("1", {"(Intercept)": ONE}),
    ("x", {"(Intercept)": ONE, "x": X}),
    ("0 + x", {"x": X}),
    ("x - 1", {"x": X}),
    ("a", {"(Intercept)": ONE, "aq": Q, "ar": R}),
    ("0 + a", {"ap": P, "aq": Q, "ar": R}),
    ("0 + a + b", {"ap": P, "aq": Q, "ar": R, "bv": V}),
    ("0 + x + b", {"x": X, "bu": U, "bv": V}),
    ("t", {"(Intercept)": ONE, "tTRUE": T}),
    ("0 + t", {"tFALSE": 1 - T, "tTRUE": T}),
    ("x:z", {"(Intercept)": ONE, "x:z": X * Z}),
    ("x*a", {"(Intercept)": ONE, "x": X, "aq": Q, "ar": R, "x:aq": X * Q, "x:ar": X * R}),
    ("x:a", {"(Intercept)": ONE, "x:ap": X * P, "x:aq": X * Q, "x:ar": X * R}),
    ("a + a:x", {"(Intercept)": ONE, "aq": Q, "ar": R, "ap:x": X * P, "aq:x": X * Q, "ar:x": X * R}),
    ("x + a:x", {"(Intercept)": ONE, "x": X, "x:aq": X * Q, "x:ar": X * R}),
    ("a*b", {"(Intercept)": ONE, "aq": Q, "ar": R, "bv": V, "aq:bv": Q * V, "ar:bv": R * V}),
    (
        "0 + a:b",
        {"ap:bu": P * U, "aq:bu": Q * U, "ar:bu": R * U, "ap:bv": P * V, "aq:bv": Q * V, "ar:bv": R * V},
    ),
    (
        "a:b",
        {
            "(Intercept)": ONE,
            "ap:bu": P * U,
            "aq:bu": Q * U,
            "ar:bu": R * U,
            "ap:bv": P * V,
            "aq:bv": Q * V,
            "ar:bv": R * V,
        },
    ),
    ("a/b", {"(Intercept)": ONE, "aq": Q, "ar": R, "ap:bv": P * V, "aq:bv": Q * V, "ar:bv": R * V}),
    (
        "b + a:b",
        {"(Intercept)": ONE, "bv": V, "bu:aq": U * Q, "bv:aq": V * Q, "bu:ar": U * R, "bv:ar": V * R},
    ),
    ("0 + x:b", {"x:bu": X * U, "x:bv": X * V}),
    ("0 + a*x", {"ap": P, "aq": Q, "ar": R, "x": X, "aq:x": Q * X, "ar:x": R * X}),
    (
        "a*b*x",
        {
            "(Intercept)": ONE,
            "aq": Q,
            "ar": R,
            "bv": V,
            "x": X,
            "aq:bv": Q * V,
            "ar:bv": R * V,
            "aq:x": Q * X,
            "ar:x": R * X,
            "bv:x": V * X,
            "aq:bv:x": Q * V * X,
            "ar:bv:x": R * V * X,
        },
    ),
    ("I(x^2)", {"(Intercept)": ONE, "I(x^2)": X**2}),
    ("I(2 * x + z / 4)", {"(Intercept)": ONE, "I(2 * x + z/4)": 2 * X + Z / 4}),
    ("I(-x)", {"(Intercept)": ONE, "I(-x)": -X}),
    ("log(z) + sqrt(z)", {"(Intercept)": ONE, "log(z)": np.log(Z), "sqrt(z)": np.sqrt(Z)}),
    ("exp(x):b", {"(Intercept)": ONE, "exp(x):bu": np.exp(X) * U, "exp(x):bv": np.exp(X) * V}),
    ("I(t * x)", {"(Intercept)": ONE, "I(t * x)": T * X}),
    ("C(a, sum)", {"(Intercept)": ONE, "C(a, sum)1": P - R, "C(a, sum)2": Q - R}),
    ("0 + C(a, sum)", {"C(a, sum)p": P, "C(a, sum)q": Q, "C(a, sum)r": R}),
    (
        "C(a, helmert):b",
        {
            "(Intercept)": ONE,
            **{
                f"C(a, helmert){i}:b{j}": m * n
                for j, n in (("u", U), ("v", V))
                for i, m in zip("pqr", (P, Q, R), strict=True)
            },
        },
    ),
    ("b*C(a, helmert)", None),
]


@pytest.mark.parametrize(("right", "columns"), [case for case in MODEL_MATRICES if case[1]])
def test_fixed_effects_are_coded_as_by_model_matrix(right, columns):
    frame = build_frame(f"y ~ {right}", DATA)
    assert frame.x_names == tuple(columns)
    np.testing.assert_allclose(frame.X, np.column_stack(list(columns.values())), rtol=1e-15, atol=0)
    assert frame.X.dtype == np.float64
    assert frame.X.flags.f_contiguous


@pytest.mark.parametrize(
    ("right", "columns"), [case for case in MODEL_MATRICES if case[1] and case[0] != "1"]
)
def test_random_effects_follow_the_same_rules(right, columns):
    data = pd.concat([DATA] * 4, ignore_index=True)
    frame = build_frame(f"y ~ 1 + ({right} | h)", data)
    assert frame.groups[0].names == tuple(columns)
    np.testing.assert_allclose(
        frame.groups[0].Z[:NUM_ROWS], np.column_stack(list(columns.values())), rtol=1e-15
    )


def test_interactions_of_contrasts_multiply_them():
    frame = build_frame("y ~ b*C(a, helmert)", DATA)
    assert frame.x_names[-2:] == ("bv:C(a, helmert)1", "bv:C(a, helmert)2")
    np.testing.assert_array_equal(frame.X[:, -2:], np.column_stack([V * (Q - P), V * (2 * R - P - Q)]))
    assert frame.x_assign == (0, 1, 2, 2, 3, 3)
    assert frame.term_labels == ("b", "C(a, helmert)", "b:C(a, helmert)")


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "float32", "Int8", "bool"])
def test_products_of_small_dtypes_are_computed_in_float64(dtype):
    values = pd.Series([100, 120, 90, 127, 1, 0]).astype("int64" if dtype != "bool" else "bool").astype(dtype)
    data = pd.DataFrame({"y": np.arange(6.0), "x": values, "w": values})
    exact = values.astype("float64").to_numpy() ** 2
    frame = build_frame("y ~ I(x * w)", data)
    np.testing.assert_array_equal(frame.X[:, 1], exact)
    product = build_frame("y ~ 0 + x:w", data)
    np.testing.assert_array_equal(product.X[:, -1], exact)


def test_the_logarithm_of_small_integers_has_all_its_digits():
    frame = build_frame("y ~ log(x)", {"y": [1.0, 2.0, 4.0], "x": np.array([1, 2, 3], dtype=np.int8)})
    np.testing.assert_array_equal(frame.X[:, 1], np.log([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("right", "x", "message"),
    [
        ("log(x)", [1.0, 0.0, 3.0], r"log\(x\) is not a finite number in 1 of 3.*row 1 .*x = 0"),
        ("log(x)", [1.0, -1.0, -3.0], r"log\(x\) is not a finite number in 2 of 3"),
        ("sqrt(x)", [1.0, 2.0, -3.0], r"sqrt\(x\).*row 2"),
        ("I(1 / x)", [1.0, 0.0, 3.0], "1/x is not a finite number"),
        ("exp(log(x))", [1.0, 0.0, 3.0], r"log\(x\) is not a finite number"),
        ("exp(x)", [1.0, 1e5, 3.0], r"exp\(x\).*x = 100000"),
        ("I(x^9)", [1.0, 1e200, 3.0], r"x\^9 is not"),
        ("x:w", [1.0, 1e200, 3.0], "term x:w are too large"),
    ],
)
def test_values_that_are_not_finite_are_errors_that_name_the_expression(right, x, message):
    data = {"y": [1.0, 2.0, 4.0], "x": x, "w": [1.0, 1e200, 2.0]}
    with pytest.raises(DataError, match=message):
        build_frame(f"y ~ {right}", data)


def test_rows_dropped_for_a_missing_value_need_no_finite_transform():
    frame = build_frame("y ~ log(x)", {"y": [1.0, 2.0, None, 3.0], "x": [1.0, 2.0, -1.0, 4.0]})
    assert frame.n_dropped == 1


@pytest.mark.parametrize("right", ["I(poly(x, 2))", "log(factor(x))", "I(C(x, sum) + 1)"])
def test_several_columns_have_no_place_in_arithmetic(right):
    with pytest.raises(FormulaError):
        build_frame(f"y ~ {right}", DATA)


def test_a_boolean_that_is_always_true_is_a_constant_column_as_in_r():
    frame = build_frame("y ~ t", {"y": [1.0, 2.0, 4.0], "t": [True] * 3})
    np.testing.assert_array_equal(frame.X, np.ones((3, 2)))


def test_categories_that_read_alike_get_distinct_names():
    frame = build_frame(
        "y ~ 0 + f", {"y": [1.0, 2.0, 4.0], "f": pd.Categorical([1, "1", 1], categories=[1, "1"])}
    )
    assert frame.x_names == ("f1", "f'1'")


def test_a_transform_that_overflows_on_new_data_is_an_error():
    frame = build_frame("y ~ poly(x, 2)", DATA)
    with pytest.raises(DataError, match=r"poly\(x, 2\) is not a finite number in 1 of 2 .*x = 1e\+300"):
        encode_fixed(frame.encoding, {"x": [1.0, 1e300]})


@pytest.mark.parametrize(
    ("right", "column", "message"),
    [
        ("log(a)", "a", "'a' holds text, e.g. 'p'"),
        ("I(a + 1)", "a", "'a' holds text"),
        ("scale(a)", "a", "'a' holds text"),
        ("d", "d", "'d' holds dates or times"),
        ("m", "m", "'m' holds values of several types"),
        ("c", "c", "'c' holds complex numbers"),
        ("poly(m, 2)", "m", "several types, e.g. 'two'"),
    ],
)
def test_columns_that_cannot_be_predictors_are_errors_that_name_them(right, column, message):
    data = {
        "y": [1.0, 2.0, 4.0],
        "a": ["p", "q", "p"],
        "d": np.array(["2020-01-01", "2020-01-02", "2020-01-05"], dtype="datetime64[D]"),
        "m": [1, "two", 3],
        "c": [1j, 2.0, 3.0],
    }
    with pytest.raises(DataError, match=message):
        build_frame(f"y ~ {right}", data)


def test_more_columns_than_rows_are_refused_before_they_are_made():
    many = np.arange(300_000)
    data = {"y": np.arange(300_000.0), "f": many, "g": many}
    message = r"columns for 300000 rows; the term factor\(f\):factor\(g\) alone has .*random-effects term"
    with pytest.raises(DesignError, match=message):
        build_frame("y ~ factor(f)*factor(g)", data)
    with pytest.raises(DesignError, match=r"alone has 299999, which need 671 GiB, more than half of"):
        build_frame("y ~ factor(f)", data)


# Groups


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([3, 1, 3, 1, 2, 2], [1, 2, 3]),
        ([-5, 10**6, -5, 10**6, 7, 7], [-5, 7, 10**6]),
        ([2**53 + 1, 2**53, 2**53 + 1, 2**53, 0, 0], [0, 2**53, 2**53 + 1]),
        (
            np.array([2**64 - 1, 2**64 - 2, 2**64 - 1, 2**64 - 2, 0, 0], dtype=np.uint64),
            [0, 2**64 - 2, 2**64 - 1],
        ),
        (np.array([-100, 100, -100, 100, 0, 0], dtype=np.int8), [-100, 0, 100]),
        (pd.Series([2**60 + 1, 2**60, 2**60 + 1, 2**60, 1, 1], dtype="Int64"), [1, 2**60, 2**60 + 1]),
        ([1.5, -2.0, 1.5, -2.0, 0.0, -0.0], [-2.0, 0.0, 1.5]),
        ([True, False, True, False, True, True], [False, True]),
        (["b", "", "b", "nan", "", "nan"], ["", "b", "nan"]),
        (["ä", "Z", "a", "ä", "Z", "a"], ["Z", "a", "ä"]),
        (np.array(["10", "9", "10", "9", "10", "9"]), ["10", "9"]),
        ([1, "1", 1, "1", "a", "a"], [1, "1", "a"]),
        (["a", 1, "a", 1, "1", "1"], ["a", 1, "1"]),
        ([(1, 2), (1, 1), (1, 2), (1, 1), (0, 5), (0, 5)], [(0, 5), (1, 1), (1, 2)]),
        ([b"x", b"w", b"x", b"w", b"x", b"w"], [b"w", b"x"]),
        (pd.Categorical(list("caacca"), categories=["c", "b", "a"]), ["c", "a"]),
        (pd.Categorical(list("caacca"), categories=["c", "b", "a"], ordered=True), ["c", "a"]),
        (pd.Categorical([3, 1, 3, 1, 2, 2], categories=[3, 2, 1]), [3, 2, 1]),
    ],
)
def test_levels_are_the_observed_values_in_the_order_of_a_factor(values, levels):
    series = pd.Series(np.empty(6, dtype=object)) if isinstance(values, list) else pd.Series(values)
    if isinstance(values, list):
        for row, value in enumerate(values):
            series.iloc[row] = value
    frame = build_frame("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 4.0, 3.0, 6.0, 5.0], "g": values})
    group = frame.groups[0]
    assert group.levels.tolist() == levels
    assert [group.levels[code] for code in group.codes] == list(values)
    direct = build_frame("y ~ 1 + (1 | g)", pd.DataFrame({"y": frame.y, "g": series}))
    np.testing.assert_array_equal(direct.groups[0].codes, group.codes)


def test_dates_and_times_are_levels():
    times = pd.to_datetime(["2020-03-01", "2020-01-01"] * 3)
    for values in (
        times,
        times.tz_localize("Europe/Vienna"),
        times.to_period("M"),
        list(times.date),
        times - times[0],
    ):
        frame = build_frame("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 4.0, 3.0, 6.0, 5.0], "g": values})
        assert frame.groups[0].codes.tolist() == [1, 0] * 3


def test_dates_in_combinations_read_as_dates():
    times = pd.to_datetime(["2020-03-01", "2020-01-01"] * 3)
    frame = build_frame("y ~ 1 + (1 | g:d)", {"y": np.arange(6.0), "g": list("ab") * 3, "d": times})
    assert frame.groups[0].levels.tolist() == ["a:2020-03-01", "b:2020-01-01"]


def test_groups_that_cannot_be_compared_are_an_error():
    with pytest.raises(DataError, match=r"'g' names groups with values that cannot be compared, e.g. \[1\]"):
        build_frame("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 3.0], "g": [[1], [2], [1]]})


def test_unused_categories_change_nothing():
    data = pd.DataFrame(SMALL)
    wide = data.assign(
        f=pd.Categorical(data.f, categories=["zz", "a", "b", "c", "d"]),
        g=pd.Categorical(data.g, categories=range(9)),
    )
    expected, frame = build_frame("y ~ x + f + (1 | g)", data), build_frame("y ~ x + f + (1 | g)", wide)
    assert frame.x_names == expected.x_names
    np.testing.assert_array_equal(frame.X, expected.X)
    np.testing.assert_array_equal(frame.groups[0].codes, expected.groups[0].codes)


def test_levels_that_are_only_in_dropped_rows_are_no_levels():
    data = pd.DataFrame(SMALL)
    data.loc[[4, 5], "f"] = "z"
    data.loc[[4, 5], "y"] = NAN
    frame = build_frame("y ~ x + f + (1 | f:g)", data)
    assert frame.x_names == ("(Intercept)", "x", "fb")
    assert frame.groups[0].levels.tolist() == ["a:1", "a:3", "b:1", "b:3"]


def test_interactions_have_the_observed_combinations_in_order():
    data = {"y": np.arange(8.0), "a": [2, 2, 10, 10, 2, 2, 10, 10], "b": list("xyxxxyxx")}
    frame = build_frame("y ~ 1 + (1 | a/b)", data)
    outer, inner = frame.groups
    assert (outer.label, inner.label) == ("a", "a:b")
    assert inner.columns == ("a", "b")
    assert outer.levels.tolist() == [2, 10]
    assert inner.levels.tolist() == ["2:x", "2:y", "10:x"]
    assert inner.codes.tolist() == [0, 1, 2, 2, 0, 1, 2, 2]


def test_repeated_labels_of_an_inner_factor_stay_apart():
    data = {
        "y": np.arange(12.0),
        "school": np.repeat(["s1", "s2"], 6),
        "class": np.tile([1, 1, 2, 2, 3, 3], 2),
    }
    frame = build_frame("y ~ 1 + (1 | school/class)", data)
    assert [len(group.levels) for group in frame.groups] == [2, 6]


def test_combinations_that_would_read_alike_stay_apart():
    data = {
        "y": np.arange(6.0),
        "a": ["p:q", "p", "p:q", "p", "p", "p"],
        "b": ["r", "q:r", "r", "q:r", "s", "s"],
    }
    levels = build_frame("y ~ 1 + (1 | a:b)", data).groups[0].levels
    assert levels.tolist() == ["'p':'q:r'", "'p':'s'", "'p:q':'r'"]


def test_terms_with_one_grouping_share_codes_and_levels():
    data = {**SMALL, "y": np.arange(8.0) ** 2, "h": [1, 2] * 4}
    frame = build_frame("y ~ x + (1 | h) + (1 | g) + (0 + x | h)", data)
    first, other, last = frame.groups
    assert first.codes is last.codes
    assert first.levels is last.levels
    assert other.codes is not first.codes


def test_random_effects_that_are_fixed_effects_are_not_stored_twice():
    data = {**SMALL, "g": [1, 2] * 4}
    frame = build_frame("y ~ x + f + (1 + x | g)", data)
    assert np.shares_memory(frame.groups[0].Z, frame.X)
    np.testing.assert_array_equal(frame.groups[0].Z, frame.X[:, :2])
    own = build_frame("y ~ f + (1 + x | g)", data).groups[0].Z
    np.testing.assert_array_equal(own, np.column_stack([np.ones(8), data["x"]]))


def test_equal_names_of_different_coding_are_not_taken_for_equal_columns():
    data = {"y": np.arange(24.0) ** 2, "f": [1, 2, 3] * 8, "g": np.repeat([1, 2], 12)}
    frame = build_frame(
        "y ~ f2 + (0 + f2 | g)", {**data, "f2": [str(v) for v in data["f"]]}, contrasts={"f2": "sum"}
    )
    assert frame.x_names == ("(Intercept)", "f21", "f22")
    assert frame.groups[0].names == ("f21", "f22", "f23")
    np.testing.assert_array_equal(frame.groups[0].Z.sum(axis=1), np.ones(24))


def test_structures_and_labels_are_those_of_the_terms():
    data = {"y": np.arange(24.0) ** 2, "x": np.arange(24.0) % 5, "g": np.repeat([1, 2], 12), "h": [1, 2] * 12}
    frame = build_frame("y ~ x + (x || g) + cs(0 + x | h)", data)
    assert [group.structure for group in frame.groups] == ["independent", "exchangeable"]
    assert [group.names for group in frame.groups] == [("(Intercept)", "x"), ("x",)]


# New data


@pytest.mark.parametrize(("right", "columns"), [case for case in MODEL_MATRICES if case[0] != "1"])
@pytest.mark.parametrize("rows", [[5], [11, 3, 40], list(range(NUM_ROWS))])
def test_new_data_get_the_training_coding(right, columns, rows):
    frame = build_frame(f"y ~ {right}", DATA)
    new, ok, offset = encode_fixed(frame.encoding, DATA.drop(columns=["y", "g"]).iloc[rows])
    assert ok.all()
    np.testing.assert_array_equal(new, frame.X[rows])
    np.testing.assert_array_equal(offset, np.zeros(len(rows)))


def test_an_intercept_needs_no_column_of_new_data():
    frame = build_frame("y ~ 1", DATA)
    for new in (DATA[["x"]].head(3), {"x": [1, 2, 3]}, DATA.iloc[:3, :0]):
        np.testing.assert_array_equal(encode_fixed(frame.encoding, new)[0], np.ones((3, 1)))


@pytest.mark.parametrize("values", [["q", "z", "zz"], pd.Categorical(["q", "z", "zz"])])
def test_a_new_level_of_a_fixed_factor_is_always_an_error(values):
    frame = build_frame("y ~ a", DATA)
    with pytest.raises(
        DataError, match=r"'a' has levels .* does not know: 'z', 'zz'; it was fitted with 'p', 'q', 'r'"
    ):
        encode_fixed(frame.encoding, {"a": values})


def test_only_the_first_ten_new_levels_are_listed():
    frame = build_frame("y ~ a", DATA)
    with pytest.raises(DataError, match="'n09' and 20 more"):
        encode_fixed(frame.encoding, {"a": [f"n{i:02d}" for i in range(30)]})


@pytest.mark.parametrize(
    "values",
    [
        ["r", "q"],
        pd.Categorical(["r", "q"], categories=["r", "q"]),
        pd.Categorical(["r", "q"], categories=["zzz", "q", "r", "p"], ordered=True),
        np.array(["r", "q"]),
        pd.Series(["r", "q"], dtype=object),
        pd.Series(["r", "q"], dtype="string"),
    ],
)
def test_new_levels_are_matched_by_value_whatever_their_dtype_and_order(values):
    for trained in (DATA.a, DATA.a.astype("category"), DATA.a.astype(object)):
        frame = build_frame("y ~ a", DATA.assign(a=trained))
        X, ok, _ = encode_fixed(frame.encoding, {"a": values})
        np.testing.assert_array_equal(X, [[1, 0, 1], [1, 1, 0]])
        assert ok.all()


@pytest.mark.parametrize(
    ("trained", "new", "expected"),
    [
        (["1", "2", "3"], [3, 1], [[0, 1], [0, 0]]),
        (["1", "2", "3"], [3.0, 1.0], [[0, 1], [0, 0]]),
        ([1, 2, 3], ["3", "1"], [[0, 1], [0, 0]]),
        ([1.0, 2.5, 3.0], [2.5, 1], [[1, 0], [0, 0]]),
    ],
)
def test_numbers_for_a_factor_are_taken_when_their_labels_match(trained, new, expected):
    frame = build_frame("y ~ factor(f)", {"y": [1.0, 3.0, 2.0], "f": trained})
    np.testing.assert_array_equal(encode_fixed(frame.encoding, {"f": new})[0][:, 1:], expected)
    with pytest.raises(DataError, match=r"'f' has levels.* '7'"):
        encode_fixed(frame.encoding, {"f": [7]})


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"x": ["low", "high"], "a": ["p", "q"]}, "'x' holds text, e.g. 'low'"),
        ({"a": ["p", "q"]}, "no column 'x'; available columns: 'a'"),
        ({"A": ["p"], "X": [1]}, r"no columns 'x' \(did you mean 'X'\?\), 'a' \(did you mean 'A'\?\)"),
        ({"x": [1.0, np.inf], "a": ["p", "q"]}, "'x' is infinite in 1 of the rows used, first in row 1"),
        ({"x": [1.0, 2.0], "a": [0, 1]}, "'a' has levels"),
    ],
)
def test_new_data_that_do_not_fit_the_model_are_errors(new, message):
    frame = build_frame("y ~ x + a", DATA)
    with pytest.raises(DataError, match=message):
        encode_fixed(frame.encoding, new)


def test_missing_values_in_new_data_give_nan_in_those_rows_only():
    frame = build_frame("y ~ log(z) + a + offset(x)", DATA)
    new = pd.DataFrame({"z": [1.0, None, 2.0, -1.0], "a": ["q", "p", None, None], "x": [0.5, 1, 1, 1]})
    X, ok, offset = encode_fixed(frame.encoding, new)
    assert ok.tolist() == [True, False, False, False]
    np.testing.assert_array_equal(X[0], [1, 0, 1, 0])
    assert np.isnan(X[1:]).all()
    np.testing.assert_array_equal(offset, [0.5, np.nan, np.nan, np.nan])


def test_a_boolean_predictor_takes_booleans_and_their_labels_but_not_numbers():
    frame = build_frame("y ~ t", DATA)
    for new in ([True, False], np.array([True, False]), ["TRUE", "FALSE"]):
        np.testing.assert_array_equal(encode_fixed(frame.encoding, {"t": new})[0][:, 1], [1, 0])
    with pytest.raises(DataError, match=r"'t' has levels .* does not know: '0', '1'"):
        encode_fixed(frame.encoding, {"t": [1, 0]})


def test_offsets_of_new_data_are_those_of_the_formula_and_of_the_argument():
    new = {"x": [1.0, 2.0], "z": [10.0, 20.0], "a": ["p", "q"]}
    by_column = build_frame("y ~ a + offset(x)", DATA, offset="z").encoding
    np.testing.assert_array_equal(encode_fixed(by_column, new)[2], [11, 22])
    with pytest.raises(DataError, match="no column 'z'"):
        encode_fixed(by_column, {"x": [1.0], "a": ["p"]})
    by_array = build_frame("y ~ a + offset(x)", DATA, offset=DATA.z.to_numpy()).encoding
    np.testing.assert_array_equal(encode_fixed(by_array, new, offset=[5.0, 6.0])[2], [6, 8])
    with_gap = encode_fixed(by_array, new, offset=[NAN, 6.0])
    assert with_gap[1].tolist() == [False, True]
    np.testing.assert_array_equal(with_gap[2], [NAN, 8])
    with pytest.raises(DataError, match="new data need their own"):
        encode_fixed(by_array, new)
    with pytest.raises(DataError, match="offset has 3 values for 2 rows"):
        encode_fixed(by_array, new, offset=[5.0, 6.0, 7.0])


# Groups of new data


def test_groups_of_new_data_get_training_codes_and_unseen_ones_are_reported():
    frame = build_frame("y ~ x + (x | g)", DATA)
    Z_new, codes, unseen = encode_random(frame.encoding, {"x": [1.0, 2.0, 3.0, 4.0], "g": [6, 99, 1, 98]}, 0)
    assert codes.tolist() == [5, -1, 0, -1]
    assert codes.dtype == np.int64
    assert unseen == ("99", "98")
    np.testing.assert_array_equal(Z_new, [[1, 1], [1, 2], [1, 3], [1, 4]])


def test_missing_values_in_effects_or_groups_of_new_data_give_nan_rows():
    frame = build_frame("y ~ x + (x | h)", DATA)
    new = pd.DataFrame({"x": [1.0, None, 3.0], "h": ["w", "x", None]})
    Z_new, codes, unseen = encode_random(frame.encoding, new, 0)
    assert codes.tolist() == [0, -1, -1]
    assert unseen == ()
    np.testing.assert_array_equal(Z_new, [[1, 1], [np.nan, np.nan], [np.nan, np.nan]])


def test_combinations_of_groups_are_matched_part_by_part():
    frame = build_frame("y ~ x + (1 | h/a)", DATA[(DATA.h != "w") | (DATA.a == "q")])
    observed = frame.groups[1].levels.tolist()
    assert observed == ["w:q", "x:p", "x:q", "x:r", "y:p", "y:q", "y:r", "z:p", "z:q", "z:r"]
    new = {"h": ["z", "w", "w", "new", "x"], "a": ["r", "q", "r", "p", "new"]}
    _, codes, unseen = encode_random(frame.encoding, new, 1)
    assert codes.tolist() == [9, 0, -1, -1, -1]
    assert unseen == ("w:r", "new:p", "x:new")
    _, outer, _ = encode_random(frame.encoding, new, 0)
    assert outer.tolist() == [3, 0, 0, -1, 1]


def test_three_way_combinations_are_matched():
    frame = build_frame("y ~ x + (1 | a:b:t)", DATA)
    _, codes, unseen = encode_random(frame.encoding, DATA, 0)
    np.testing.assert_array_equal(codes, frame.groups[0].codes)
    assert unseen == ()
    assert frame.groups[0].levels[codes[0]] == "p:u:TRUE"


@pytest.mark.parametrize(
    ("levels", "strangers"),
    [
        ([1, 2], ["1", "2"]),
        (["1", "2"], [1, 2]),
        ([2**53, 2**53 + 1], [2**53 + 2]),
        (["", "nan"], ["NaN", " "]),
        ([datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)], [datetime.date(2021, 1, 1)]),
    ],
)
def test_group_levels_are_matched_by_value_never_by_looks(levels, strangers):
    data = {"y": np.arange(8.0), "g": levels * 4}
    encoding = build_frame("y ~ 1 + (1 | g)", data).encoding
    assert encode_random(encoding, {"g": levels}, 0)[1].tolist() == [0, 1]
    assert encode_random(encoding, {"g": strangers}, 0)[1].tolist() == [-1] * len(strangers)


def test_a_missing_group_column_of_new_data_is_named():
    frame = build_frame("y ~ x + (x | g)", DATA)
    with pytest.raises(DataError, match="no column 'g'"):
        encode_random(frame.encoding, {"x": [1.0]}, 0)
    assert encode_fixed(frame.encoding, {"x": [1.0]})[1].tolist() == [True]

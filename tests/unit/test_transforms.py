"""Stateful transforms against R's documented results; the state is that of the training data."""

import numpy as np
import pandas as pd
import pytest

from jaxmixed.encoding import encode_fixed
from jaxmixed.errors import DataError, FormulaError
from jaxmixed.frame import build_frame
from jaxmixed.transforms import Affine, fit_transform

WOMEN_HEIGHT = np.arange(58.0, 73.0)  # R's datasets::women$height
PRINTED = 6e-7  # R prints seven digits


def fitted(name, x, **options):
    return fit_transform(name, f"{name}(x)", np.asarray(x, dtype=float), options)


def test_poly_of_equally_spaced_points_equals_r():
    # R: poly(1:5, 2)
    expected = [
        [-0.6324555, 0.5345225],
        [-0.3162278, -0.2672612],
        [0, -0.5345225],
        [0.3162278, -0.2672612],
        [0.6324555, 0.5345225],
    ]
    x = np.arange(1.0, 6.0)
    np.testing.assert_allclose(fitted("poly", x, degree=2).apply(x), expected, atol=PRINTED)


def test_poly_of_unequal_points_is_centred_and_orthonormal_with_rising_leading_terms():
    x = np.array([1.0, 2.0, 4.0, 8.0, 8.0, 9.5])
    basis = fitted("poly", x, degree=4).apply(x)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-13)
    np.testing.assert_allclose(basis.sum(axis=0), 0, atol=1e-13)
    for degree in range(1, 5):
        leading = np.polyfit(x, basis[:, degree - 1], degree)[0]
        assert leading > 0


def test_poly_predicts_by_its_training_polynomials():
    # on 1:5, p_1 is (x - 3) / sqrt(10) and p_2 is ((x - 3)^2 - 2) / sqrt(14)
    state = fitted("poly", np.arange(1.0, 6.0), degree=2)
    np.testing.assert_allclose(
        state.apply(np.array([10.0])), [[7 / np.sqrt(10), 47 / np.sqrt(14)]], rtol=1e-14
    )


@pytest.mark.parametrize("shift", [0.0, 1e6, 2.0**40])
def test_poly_does_not_lose_digits_to_a_shift(shift):
    x = np.arange(1.0, 9.0)
    plain = fitted("poly", x, degree=3).apply(x)
    np.testing.assert_allclose(fitted("poly", x + shift, degree=3).apply(x + shift), plain, atol=1e-13)


@pytest.mark.parametrize("unit", [1e-200, 1e-12, 1e12, 1e200])
def test_poly_and_scale_do_not_depend_on_the_unit(unit):
    x = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    for name, options in (("poly", {"degree": 2}), ("scale", {})):
        plain = fitted(name, x, **options).apply(x)
        np.testing.assert_allclose(fitted(name, unit * x, **options).apply(unit * x), plain, rtol=1e-12)


def test_raw_poly_gives_powers():
    state = fitted("poly", [1.0, 2.0, 3.0], degree=2, raw=True)
    np.testing.assert_array_equal(state.apply(np.array([2.0, 5.0])), [[2, 4], [5, 25]])


@pytest.mark.parametrize(
    ("options", "shift", "divisor"),
    [
        ({}, 4.0, np.sqrt(50.0 / 3)),  # deviations -3, -2, -1, 6
        ({"center": False}, 0.0, np.sqrt(114.0 / 3)),  # R: root mean square with n - 1
        ({"scale": False}, 4.0, 1.0),
        ({"center": 2.0, "scale": 5.0}, 2.0, 5.0),
    ],
)
def test_scale_has_the_arguments_of_r(options, shift, divisor):
    state = fitted("scale", [1.0, 2.0, 3.0, 10.0], **options)
    assert state.shift == pytest.approx(shift, rel=1e-15)
    assert state.divisor == pytest.approx(divisor, rel=1e-15)


def test_center_subtracts_the_mean_only():
    assert fitted("center", [1.0, 2.0, 6.0]) == Affine(3.0, 1.0)


def test_bs_equals_the_example_of_its_help_page():
    # R: bs(women$height, df = 5), rows 1 to 3 as printed; inner knots at 62.66667 and 67.33333
    state = fitted("bs", WOMEN_HEIGHT, df=5)
    np.testing.assert_allclose(state.knots[4:6], [62.66667, 67.33333], atol=1e-5)
    expected = [
        [0, 0, 0, 0, 0],
        [4.534439e-01, 5.985787e-02, 1.639942e-03, 0, 0],
        [5.969388e-01, 2.033528e-01, 1.311953e-02, 0, 0],
    ]
    np.testing.assert_allclose(state.apply(WOMEN_HEIGHT)[:3], expected, atol=PRINTED)


def test_ns_equals_the_example_of_its_help_page():
    # R: ns(women$height, df = 5), rows 1 to 3 as printed
    expected = [
        [0, 0, 0, 0, 0],
        [7.592323e-03, 0, -8.670223e-02, 2.601067e-01, -1.734045e-01],
        [6.073858e-02, 0, -1.503044e-01, 4.509132e-01, -3.006088e-01],
    ]
    basis = fitted("ns", WOMEN_HEIGHT, df=5).apply(WOMEN_HEIGHT)
    np.testing.assert_allclose(basis[:3], expected, atol=PRINTED)


@pytest.mark.parametrize(("degree", "df"), [(1, 1), (1, 4), (2, 5), (3, 3), (3, 8)])
def test_bs_columns_and_the_dropped_one_sum_to_one(degree, df):
    basis = fitted("bs", WOMEN_HEIGHT, df=df, degree=degree).apply(WOMEN_HEIGHT)
    assert basis.shape == (15, df)
    rest = 1 - basis.sum(axis=1)
    assert rest[0] == pytest.approx(1, abs=1e-15)
    assert (rest > -1e-14).all()


def test_bs_goes_on_beyond_its_boundary_as_a_polynomial():
    state = fitted("bs", WOMEN_HEIGHT, df=3)
    inside = np.linspace(58, 72, 9)
    for column in range(3):
        cubic = np.polynomial.Polynomial.fit(inside, state.apply(inside)[:, column], 3)
        np.testing.assert_allclose(
            state.apply(np.array([50.0, 80.0]))[:, column],
            cubic(np.array([50.0, 80.0])),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize("start", [40.0, 74.0])
def test_ns_is_linear_beyond_its_boundary_and_continuous_at_it(start):
    state = fitted("ns", WOMEN_HEIGHT, df=4)
    values = state.apply(start + np.arange(4.0))
    np.testing.assert_allclose(np.diff(values, 2, axis=0), 0, atol=1e-12)
    edge = 58.0 if start < 58 else 72.0
    np.testing.assert_allclose(
        state.apply(np.array([edge - 1e-9])), state.apply(np.array([edge + 1e-9])), atol=1e-7
    )


@pytest.mark.parametrize(
    ("name", "x", "options", "error", "message"),
    [
        (
            "poly",
            [1.0, 2.0, 2.0, 1.0],
            {"degree": 2},
            DataError,
            "degree 2 needs more than 2 distinct values",
        ),
        ("poly", [1.0, 2.0], {"degree": 0}, FormulaError, "whole number from 1"),
        ("poly", [1.0, 2.0], {"degree": 1.5}, FormulaError, "not 1.5"),
        ("poly", [1.0, 2.0], {"degree": 1e9}, FormulaError, "to 50"),
        ("scale", [3.0, 3.0, 3.0], {}, DataError, "all 3 values equal 3"),
        ("scale", [0.0, 0.0], {}, DataError, "standard deviation is zero"),
        ("scale", [1.0, 2.0], {"scale": 0.0}, FormulaError, "must not be 0"),
        ("bs", [1.0, 1.0, 1.0], {"df": 3}, DataError, "at least two distinct"),
        ("bs", [1.0, 2.0, 3.0], {"df": 2}, FormulaError, "from 3 to"),
        ("ns", [1.0, 1.0, 1.0, 1.0, 2.0], {"df": 4}, DataError, "smaller df"),
    ],
)
def test_transforms_that_the_data_cannot_support_are_errors(name, x, options, error, message):
    with pytest.raises(error, match=message):
        fitted(name, x, **options)


@pytest.mark.parametrize(
    ("term", "names"),
    [
        ("poly(x, 2)", ("poly(x, 2)1", "poly(x, 2)2")),
        ("poly(x, 2, raw = TRUE)", ("poly(x, 2, raw = TRUE)1", "poly(x, 2, raw = TRUE)2")),
        ("poly(x, 1)", ("poly(x, 1)1",)),
        ("poly(log(x), 2)", ("poly(log(x), 2)1", "poly(log(x), 2)2")),
        ("bs(x, 4)", tuple(f"bs(x, 4){j}" for j in range(1, 5))),
        ("ns(x, 2)", ("ns(x, 2)1", "ns(x, 2)2")),
        ("scale(x)", ("scale(x)",)),
        ("scale(x, center = FALSE)", ("scale(x, center = FALSE)",)),
        ("scale(x, center = -2)", ("scale(x, center = -2)",)),
        ("center(x)", ("center(x)",)),
        ("I(log(scale(x) + 5))", ("I(log(scale(x) + 5))",)),
        ("I(center(x)^2)", ("I(center(x)^2)",)),
    ],
)
def test_new_data_are_transformed_with_the_training_state(term, names):
    rng = np.random.default_rng(1)
    x = rng.uniform(1, 9, 40)
    frame = build_frame(f"y ~ {term}", {"y": rng.normal(size=40), "x": x})
    assert frame.x_names == ("(Intercept)", *names)
    for rows in ([3], [7, 2, 11], list(range(40))):
        X, ok, offset = encode_fixed(frame.encoding, {"x": x[rows]})
        assert ok.all()
        assert not offset.any()
        np.testing.assert_allclose(X, frame.X[rows], rtol=1e-13, atol=1e-14)


def test_functions_of_the_caller_get_copies_and_are_used_for_new_data():
    def doubled(values, factor, unit):
        values *= factor if unit == "m" else 0
        return values

    data = pd.DataFrame({"y": [1.0, 2.0, 4.0], "x": [0.5, 1.0, 2.0]})
    before = data.copy()
    frame = build_frame("y ~ twice(x, 2, 'm')", data, functions={"twice": doubled})
    np.testing.assert_array_equal(frame.X[:, 1], [1, 2, 4])
    pd.testing.assert_frame_equal(data, before)
    np.testing.assert_array_equal(encode_fixed(frame.encoding, {"x": [3.0]})[0], [[1, 6]])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[:2], r"returned an array of shape \(2,\)"),
        (lambda x: "text", "failed: ValueError"),
        (lambda x: 1 / 0, "failed: ZeroDivisionError"),
        (lambda x: x * np.nan, r"f\(x\) is not a finite number"),
    ],
)
def test_a_function_of_the_caller_that_fails_is_named(function, message):
    with pytest.raises(DataError, match=message):
        build_frame("y ~ f(x)", {"y": [1.0, 2.0, 4.0], "x": [0.5, 1.0, 2.0]}, functions={"f": function})

"""Contrast matrices against R's printed ones, and the choice of contrasts."""

import numpy as np
import pandas as pd
import pytest

from jaxmixed.contrasts import contrast_matrix, contrast_name, contrast_suffixes, orthogonal_polynomials
from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.frame import build_frame

# R 4.2: contr.treatment(4), contr.treatment(4, base = 3), contr.sum(4), contr.helmert(4), contr.poly(3),
# contr.poly(4) and contr.poly(5), each printed to seven digits.
R_CONTRASTS = [
    ("treatment", 4, 0, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    ("treatment", 4, 2, [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]),
    ("sum", 4, 0, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, -1]]),
    ("helmert", 4, 0, [[-1, -1, -1], [1, -1, -1], [0, 2, -1], [0, 0, 3]]),
    ("helmert", 2, 0, [[-1], [1]]),
    ("poly", 2, 0, [[-0.7071068], [0.7071068]]),
    ("poly", 3, 0, [[-0.7071068, 0.4082483], [0, -0.8164966], [0.7071068, 0.4082483]]),
    (
        "poly",
        4,
        0,
        [
            [-0.6708204, 0.5, -0.2236068],
            [-0.2236068, -0.5, 0.6708204],
            [0.2236068, -0.5, -0.6708204],
            [0.6708204, 0.5, 0.2236068],
        ],
    ),
    (
        "poly",
        5,
        0,
        [
            [-0.6324555, 0.5345225, -0.3162278, 0.1195229],
            [-0.3162278, -0.2672612, 0.6324555, -0.4780914],
            [0, -0.5345225, 0, 0.7171372],
            [0.3162278, -0.2672612, -0.6324555, -0.4780914],
            [0.6324555, 0.5345225, 0.3162278, 0.1195229],
        ],
    ),
]
HALF_PRINTED_DIGIT = 5.1e-8


@pytest.mark.parametrize(("name", "num_levels", "base", "expected"), R_CONTRASTS)
def test_contrast_matrices_equal_those_of_r(name, num_levels, base, expected):
    np.testing.assert_allclose(
        contrast_matrix(name, num_levels, base), expected, rtol=0, atol=HALF_PRINTED_DIGIT
    )


@pytest.mark.parametrize(
    ("name", "base", "expected"),
    [
        ("treatment", 0, ("b", "c", "d", "e", "f")),
        ("treatment", 2, ("a", "b", "d", "e", "f")),
        ("sum", 0, ("1", "2", "3", "4", "5")),
        ("helmert", 0, ("1", "2", "3", "4", "5")),
        ("poly", 0, (".L", ".Q", ".C", "^4", "^5")),
    ],
)
def test_columns_are_named_as_in_r(name, base, expected):
    assert contrast_suffixes(name, list("abcdef"), base) == expected


@pytest.mark.parametrize("num_levels", [2, 7, 30, 95])
def test_polynomial_contrasts_stay_orthonormal_up_to_the_limit(num_levels):
    matrix = contrast_matrix("poly", num_levels)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(num_levels - 1), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=0), 0, atol=1e-12)


def test_polynomials_satisfy_their_recurrence():
    x = np.array([0.5, 1.0, 4.0, 7.0, 7.5, 11.0])
    basis, alpha, norm = orthogonal_polynomials(x, 3)
    monic = [np.zeros_like(x), np.ones_like(x)]
    for degree in range(3):
        ratio = norm[degree] / norm[degree - 1] if degree else 0.0
        monic.append((x - alpha[degree]) * monic[-1] - ratio * monic[-2])
    np.testing.assert_allclose(basis, np.column_stack(monic[2:]) / np.sqrt(norm[1:]), rtol=1e-12, atol=1e-13)


def test_a_shared_contrast_matrix_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        contrast_matrix("sum", 3)[0, 0] = 5.0


@pytest.mark.parametrize("name", ["treatment", "contr.treatment", "sum", "contr.helmert", "poly"])
def test_contrast_names_of_r_are_accepted(name):
    assert contrast_name(name) == name.removeprefix("contr.")


@pytest.mark.parametrize("name", ["summ", "SAS", "", None, 3])
def test_an_unknown_contrast_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(FormulaError, match="treatment, sum, helmert, poly"):
        contrast_name(name)


DATA = {
    "y": [1.0, 2.0, 4.0, 3.0, 6.0, 5.0, 7.0, 9.0],
    "f": list("abcabcab"),
    "x": [1, 2, 3, 1, 2, 3, 1, 2],
}


@pytest.mark.parametrize(
    ("formula", "contrasts", "names"),
    [
        ("y ~ f", None, ("fb", "fc")),
        ("y ~ f", {"f": "sum"}, ("f1", "f2")),
        ("y ~ f", {"f": "contr.helmert"}, ("f1", "f2")),
        ("y ~ f", {"f": "poly"}, ("f.L", "f.Q")),
        ("y ~ C(f, sum)", None, ("C(f, sum)1", "C(f, sum)2")),
        ("y ~ C(f, sum)", {"f": "poly"}, ("C(f, sum)1", "C(f, sum)2")),
        ("y ~ C(f, poly)", None, ("C(f, poly).L", "C(f, poly).Q")),
        ("y ~ C(f, treatment, base = 2)", None, ("C(f, treatment, base = 2)a", "C(f, treatment, base = 2)c")),
        ("y ~ C(f, ref = 'c')", None, ('C(f, ref = "c")a', 'C(f, ref = "c")b')),
        ("y ~ C(x, ref = 3)", None, ("C(x, ref = 3)1", "C(x, ref = 3)2")),
        ("y ~ factor(x)", None, ("factor(x)2", "factor(x)3")),
        ("y ~ factor(x)", {"factor(x)": "sum"}, ("factor(x)1", "factor(x)2")),
        ("y ~ factor(x)", {"x": "sum"}, ("factor(x)1", "factor(x)2")),
    ],
)
def test_contrasts_come_from_the_formula_else_the_argument_else_the_default(formula, contrasts, names):
    frame = build_frame(formula, DATA, contrasts=contrasts)
    assert frame.x_names == ("(Intercept)", *names)
    assert np.linalg.matrix_rank(frame.X) == 3


def test_ordered_categoricals_get_polynomial_contrasts_as_in_r():
    ordered = pd.Categorical(DATA["f"], categories=["c", "b", "a"], ordered=True)
    frame = build_frame("y ~ f", {**DATA, "f": ordered})
    assert frame.x_names == ("(Intercept)", "f.L", "f.Q")
    np.testing.assert_allclose(frame.X[:3, 1], [np.sqrt(0.5), 0, -np.sqrt(0.5)], atol=1e-15)
    treated = build_frame("y ~ f", {**DATA, "f": ordered}, contrasts={"f": "treatment"})
    assert treated.x_names == ("(Intercept)", "fb", "fa")


@pytest.mark.parametrize(
    ("formula", "contrasts", "error", "message"),
    [
        ("y ~ f", {"f": "nonsense"}, FormulaError, "'nonsense' is not known"),
        ("y ~ f", {"g": "sum"}, DataError, "'g'.*factors: 'f'"),
        ("y ~ x", {"x": "sum"}, DataError, "'x'.*factors: none"),
        ("y ~ C(f, ref = 'z')", None, DataError, "level 'z' does not exist; the levels are 'a', 'b', 'c'"),
        ("y ~ C(f, base = 4)", None, DataError, "level number 4 does not exist"),
        ("y ~ C(f, sum, base = 2)", None, FormulaError, "only treatment contrasts"),
    ],
)
def test_contrasts_that_cannot_be_are_errors(formula, contrasts, error, message):
    with pytest.raises(error, match=message):
        build_frame(formula, DATA, contrasts=contrasts)


def test_a_factor_of_one_level_has_no_contrasts():
    data = {"y": [1.0, 2.0, 3.0], "f": ["only", "only", "only"]}
    with pytest.raises(DesignError, match="f has only the level 'only'"):
        build_frame("y ~ f", data)
    assert build_frame("y ~ 0 + f", data).x_names == ("fonly",)


def test_polynomial_contrasts_of_too_many_levels_are_refused():
    data = {"y": np.arange(300.0), "f": np.arange(300) % 100}
    with pytest.raises(DesignError, match="polynomial contrasts of 100 levels"):
        build_frame("y ~ C(f, poly)", data)

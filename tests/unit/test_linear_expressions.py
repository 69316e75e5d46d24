"""Hypotheses about coefficients as text: what they mean, and what a mistake is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jaxmixed.coefficient_names import Coefficients
from jaxmixed.errors import DataError, FormulaError
from jaxmixed.frame import build_frame
from jaxmixed.linear_expressions import LinearFunctions, linear_functions, written

NAMES = (
    "(Intercept)",
    "x1",
    "x2",
    "recipeB",
    "recipeC",
    "recipeB:temperature185",
    "I(x^2)",
    "C(f)b",
    "log(x)",
    "`body mass`",
    "age20-30",
    "poly(x, 2)1",
    "poly(x, 2)2",
    "g.L",
    "g^4",
    "`my f`b c",
    "x",
    "scale(x, center = TRUE)",
    'C(f, ref = "a")b',
)
TERMS = {"x1": (1,), "recipe": (3, 4), "poly(x, 2)": (11, 12), "g": (13, 14)}
COEFFICIENTS = Coefficients(NAMES, TERMS)


def read(spec: object) -> LinearFunctions:
    return linear_functions(spec, COEFFICIENTS)


def meaning(spec: object) -> list[tuple[dict[str, float], float]]:
    """Weights by name, and the value that the function is compared with."""
    found = read(spec)
    return [
        ({NAMES[j]: row[j] for j in np.flatnonzero(row)}, value)
        for row, value in zip(found.L, found.rhs, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x1", [({"x1": 1}, 0)]),
        ("x1 = x2 = 0", [({"x1": 1, "x2": -1}, 0), ({"x2": 1}, 0)]),
        ("x1==x2", [({"x1": 1, "x2": -1}, 0)]),
        ("x1 = 0, x2 = 3", [({"x1": 1}, 0), ({"x2": 1}, 3)]),
        ("2*x1 - x2/3 = 1.5", [({"x1": 2, "x2": -1 / 3}, 1.5)]),
        ("x1 + 2*x2", [({"x1": 1, "x2": 2}, 0)]),
        ("-(x1 - 2*(x2+1))*3", [({"x1": -3, "x2": 6}, -6)]),
        ("3 = x1 + 1", [({"x1": -1}, -2)]),
        ("1e-3*x1 - .5*x2*2", [({"x1": 1e-3, "x2": -1}, 0)]),
        ("x1*2/4", [({"x1": 0.5}, 0)]),
        ("x1 + x1 - x2", [({"x1": 2, "x2": -1}, 0)]),
        ("+x1", [({"x1": 1}, 0)]),
        ("(Intercept)", [({"(Intercept)": 1}, 0)]),
        ("((Intercept)) - 1", [({"(Intercept)": 1}, 1)]),
        ("_cons = 250", [({"(Intercept)": 1}, 250)]),
        ("_b[x1] = _b[ _cons ]", [({"x1": 1, "(Intercept)": -1}, 0)]),
        ("recipeB:temperature185", [({"recipeB:temperature185": 1}, 0)]),
        ("recipeB : temperature185 - recipeB", [({"recipeB:temperature185": 1, "recipeB": -1}, 0)]),
        ("I(x^2)", [({"I(x^2)": 1}, 0)]),
        ("I(x ** 2) = 1", [({"I(x^2)": 1}, 1)]),
        ("I( x**2 )-x", [({"I(x^2)": 1, "x": -1}, 0)]),
        ("C( f )b - log(x)", [({"C(f)b": 1, "log(x)": -1}, 0)]),
        ("C(f, ref='a')b", [({'C(f, ref = "a")b': 1}, 0)]),
        ("poly(x,2)1 = poly(x, 2)2", [({"poly(x, 2)1": 1, "poly(x, 2)2": -1}, 0)]),
        ("g^4 + g.L", [({"g^4": 1, "g.L": 1}, 0)]),
        ("scale(x, center = TRUE) = 2, x", [({"scale(x, center = TRUE)": 1}, 2), ({"x": 1}, 0)]),
        ("`body mass` + 2*x", [({"`body mass`": 1, "x": 2}, 0)]),
        ("`my f`b c", [({"`my f`b c": 1}, 0)]),
        ("`recipeB:temperature185` = 1", [({"recipeB:temperature185": 1}, 1)]),
        ("age20-30 - x1", [({"age20-30": 1, "x1": -1}, 0)]),
        ("recipe", [({"recipeB": 1}, 0), ({"recipeC": 1}, 0)]),
        ("(recipe) = 2", [({"recipeB": 1}, 2), ({"recipeC": 1}, 2)]),
        ("0 = recipe, x", [({"recipeB": 1}, 0), ({"recipeC": 1}, 0), ({"x": 1}, 0)]),
        ("poly(x, 2)", [({"poly(x, 2)1": 1}, 0), ({"poly(x, 2)2": 1}, 0)]),
        ("x1\n  =\n\tx2", [({"x1": 1, "x2": -1}, 0)]),
        (["x1", "g", "x2 = 3"], [({"x1": 1}, 0), ({"g.L": 1}, 0), ({"g^4": 1}, 0), ({"x2": 1}, 3)]),
        ({"x1": 1, "I(x**2)": -2.5}, [({"x1": 1, "I(x^2)": -2.5}, 0)]),
        ([{"x1": 1}, {"_cons": 1, "x2": 2}], [({"x1": 1}, 0), ({"(Intercept)": 1, "x2": 2}, 0)]),
        ({"difference": "x1 - x2", "sum": "x1 + x2"}, [({"x1": 1, "x2": -1}, 0), ({"x1": 1, "x2": 1}, 0)]),
        (pd.DataFrame({"x1": [1, 0], "x": [0, 2]}), [({"x1": 1}, 0), ({"x": 2}, 0)]),
        (pd.Series({"x1": 1, "x": -1}), [({"x1": 1, "x": -1}, 0)]),
        (np.eye(len(NAMES))[1], [({"x1": 1}, 0)]),
        (np.eye(len(NAMES))[[1, 16]].tolist(), [({"x1": 1}, 0), ({"x": 1}, 0)]),
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_meant(
    text: object, expected: list[tuple[dict[str, float], float]]
) -> None:
    found = meaning(text)
    assert len(found) == len(expected)
    for (row, value), (want_row, want_value) in zip(found, expected, strict=True):
        assert row.keys() == want_row.keys()
        assert value == pytest.approx(want_value, abs=1e-15)
        for name, weight in want_row.items():
            assert row[name] == pytest.approx(weight, rel=1e-15)


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("x1 =  x2 = 0", ("x1 = x2", "x2 = 0")),
        ("recipe, x1  + 2*x2", ("recipeB", "recipeC", "x1 + 2*x2")),
        ({"a": "x1 - x2"}, ("a",)),
        (pd.DataFrame({"x1": [1, 0], "x": [0, 2]}, index=["A", "B"]), ("A", "B")),
        (pd.DataFrame({"x1": [1, 0], "x": [1, -2.5]}), ("x1 + x", "-2.5*x")),
    ],
)
def test_rows_are_called_what_the_user_wrote(spec: object, labels: tuple[str, ...]) -> None:
    assert read(spec).labels == labels


def test_a_long_function_is_called_by_its_number() -> None:
    assert written(np.arange(1.0, 20.0), NAMES, 3) == "row 3"


@pytest.mark.parametrize(
    ("text", "message", "pointer"),
    [
        ("x3", "no coefficient 'x3'; did you mean", "^^"),
        ("recipB = 0", "did you mean 'recipeB' or", "^^^^^^"),
        ("temperature185:recipeB", "did you mean 'recipeB:temperature185'?", "^" * 22),
        (
            "1 + zebra(x, y)k",
            r"no coefficient 'zebra\(x, y\)k'; the model has '\(Intercept\)', 'x1'",
            "^" * 12,
        ),
        ("zebra", r"and 9 more; terms 'recipe', 'poly\(x, 2\)', 'g' \(character 1", "^^^^^"),
        ("Intercept", r"did you mean '\(Intercept\)'", "^" * 9),
        ("_b[zz]", "no coefficient", "^^^^^^"),
        ("`zz`", "no coefficient 'zz'", "^^^^"),
        ("x1:x2", "no coefficient 'x1:x2'", "^^^^^"),
        ("x1 = ", "nothing stands on one side of the '='", "^"),
        ("= x1", "nothing stands on one side of the '='", "^"),
        ("x1 = = x2", "nothing stands on one side of the '='", "^"),
        ("x1,,x2", "nothing stands on one side of the ','", "^"),
        ("x1,", "nothing stands on one side of the ','", "^"),
        ("x1 x2", "operator is missing", "^^"),
        ("2x1", "number runs into a name", "^^"),
        ("2(x1)", "operator is missing", "^"),
        ("x1 > 0", "a hypothesis is an equation", "^"),
        ("x1 != 0", "a hypothesis is an equation", "^"),
        ("x1; x2", "commas", "^"),
        ("x1 ~ x2", "write '='", "^"),
        ("x1 | x2", "a bar is for formulas", "^"),
        ("'x1'", "without quotation marks", "^^^^"),
        ("x1 − x2", "MINUS SIGN", "^"),
        ("x1 = x1", "no coefficient is left", "^^^^^^^"),
        ("3 = 3", "no coefficient is left", "^^^^^"),
        ("0*x1", "no coefficient is left", "^^^^"),
        ("(x1 = 0)", "'=' cannot stand between parentheses", "^"),
        ("(x1, x2)", "',' cannot stand between parentheses", "^"),
        ("x1)", "closes nothing", "^"),
        ("(x1", "never closed", "^"),
        ("x1 +", "nothing follows the '\\+'", "^"),
        ("x1*x2", "product of coefficients is not linear", "^"),
        ("x1/x2", "division by a coefficient is not linear", "^"),
        ("x1/(2-2)", "division by zero", "^"),
        ("x1^2", "a power is not linear", "^"),
        ("1e400*x1", "too large", "^^^^^"),
        ("1e308*10*x1", "too large", "^" * 11),
        ("recipe - x1", "is a term, which can only stand alone; its coefficients are 'recipeB'", "^" * 6),
        ("recipe = x1", "a whole term can only be compared with a number", "^" * 11),
        ("recipe = recipe", "a whole term can only be compared with a number", "^" * 15),
        ("x\x00", "control character", "^"),
    ],
)
def test_a_mistake_is_shown_where_it_stands(text: str, message: str, pointer: str) -> None:
    with pytest.raises(FormulaError, match=message) as caught:
        read(text)
    assert str(caught.value).rstrip().splitlines()[-1].strip() == pointer


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("x1 + " * 2_001 + "x1", "10,007 characters"),
        ("(" * 200 + "x1" + ")" * 200, "nested more than 100"),
        (",".join(["x1"] * 2_001), "more than 2,000"),
        ([], "shape"),
        ({}, "no weights"),
        ({"zz": 1}, "no coefficient 'zz'; the model has"),
        ({"x1": "a", "x2": 1}, "weight of 'x1' is 'a'"),
        ({"x1": np.nan}, "finite number"),
        ({3: 1.0}, "no coefficient 3"),
        ({"a": "x1, x2"}, "2 linear functions; give one each"),
        ({"a": "x1", "b": "zz"}, "no coefficient"),
        (None, "does not fit"),
        (object(), "says no linear functions"),
        ([1, "x1"], "says no linear functions"),
        ([1.0, 2.0], r"shape \(2,\) does not fit: .*19 coefficients"),
        (np.zeros((1, len(NAMES))), "row 0 .* no weights but zero"),
        (np.full((1, len(NAMES)), np.inf), "not finite"),
        (np.zeros((1, 1, len(NAMES))), "does not fit"),
    ],
)
def test_what_says_no_linear_function_is_refused(spec: object, message: str) -> None:
    with pytest.raises((FormulaError, DataError), match=message):
        read(spec)


def test_a_name_that_is_also_an_expression_is_asked_for_in_backquotes() -> None:
    ages = Coefficients(("age20", "age20-30", "30"), {})
    with pytest.raises(
        FormulaError, match="'age20' is another one: put the name that is meant in backquotes"
    ):
        linear_functions("age20-30", ages)
    assert linear_functions("`age20-30`", ages).L.tolist() == [[0, 1, 0]]
    assert linear_functions("`age20` - 30", ages).L.tolist() == [[1, 0, 0]]


def test_a_name_of_two_coefficients_is_refused() -> None:
    twice = Coefficients(("fx", "fx", "f x", "f  x"), {})
    for spec in ("fx", {"fx": 1.0}):
        with pytest.raises((FormulaError, DataError), match="several coefficients are called 'fx'"):
            linear_functions(spec, twice)
    assert linear_functions("f  x", twice).L.tolist() == [[0, 0, 0, 1]]
    with pytest.raises(FormulaError, match="write it as printed"):
        linear_functions("f   x", twice)


def test_the_coefficients_of_a_model_and_its_terms() -> None:
    data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "f": list("aabbcc"), "_cons": [1, 2, 1, 3, 2, 1]}
    found = Coefficients.of(build_frame("y ~ f + _cons", data))
    assert found.terms == {"f": (1, 2), "_cons": (3,)}
    assert linear_functions("_cons", found).L.tolist() == [[0, 0, 0, 1]]  # the column, not the intercept
    assert linear_functions("f", found).labels == ("fb", "fc")


def test_no_text_breaks_the_reader() -> None:
    rng = np.random.default_rng(6)
    pieces = ["x1", "(Intercept)", "recipe", "`body mass`", "_b[", "2", ".5", "g^4", *"+-*/=,()^:|~<[]`' é−"]
    read_well = 0
    for _ in range(2_000):
        text = "".join(rng.choice(pieces, size=rng.integers(1, 12)))
        try:
            found = read(text)
        except FormulaError:
            continue
        read_well += 1
        assert np.isfinite(found.L).all()
        assert found.L.any(axis=1).all()
    assert read_well > 20

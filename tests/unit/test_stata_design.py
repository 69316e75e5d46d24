"""Lists of effects become the columns, names and labels of Stata."""

import numpy as np
import pandas as pd
import pytest

from jaxmixed.errors import StataError
from jaxmixed.stata_design import Design, design_of
from jaxmixed.stata_factors import terms
from jaxmixed.stata_frame import Variables
from jaxmixed.stata_syntax import parse

DATA = pd.DataFrame(
    {
        "y": np.arange(12.0),
        "a": np.repeat([1.0, 2.0, 3.0], 4),
        "b": np.tile([0.0, 1.0], 6),
        "c": np.tile([1.0, 1.0, 2.0, 2.0], 3),
        "x": np.linspace(0.5, 3.0, 12) ** 2,
        "half": np.tile([0.5, 1.0], 6),
        "below": np.tile([-1.0, 1.0], 6),
        "name": ["u", "v"] * 6,
    }
)


def design(
    effects: str, data: pd.DataFrame = DATA, constant: bool = True, **labels: dict[float, str]
) -> Design:
    line = parse(f"mixed y {effects}")[0]
    found = terms(line, line.arguments[1:], Variables(line, tuple(data.columns)))
    return design_of(line, found, data, labels, constant)


@pytest.mark.parametrize(
    ("effects", "names"),
    [
        ("x", "x _cons"),
        ("i.a", "2.a 3.a _cons"),
        ("ib2.a", "1.a 3.a _cons"),
        ("ib(last).a", "1.a 2.a _cons"),
        ("ibn.a", "1.a 2.a 3.a _cons"),
        ("2.a", "2.a _cons"),
        ("i(2 3).a", "2.a 3.a _cons"),
        ("a##b", "2.a 3.a 1.b 2.a#1.b 3.a#1.b _cons"),
        ("i.a#c.x", "1.a#c.x 2.a#c.x 3.a#c.x _cons"),
        ("x i.a#c.x", "x 2.a#c.x 3.a#c.x _cons"),
        ("i.a##c.x", "2.a 3.a x 2.a#c.x 3.a#c.x _cons"),
        ("c.x#i.a x", "2.a#c.x 3.a#c.x x _cons"),
        ("c.x##c.x", "x c.x#c.x _cons"),
        ("i.a#i.b", "1.a#1.b 2.a#0.b 2.a#1.b 3.a#0.b 3.a#1.b _cons"),
        ("i.b i.a#i.b", "1.b 2.a#0.b 2.a#1.b 3.a#0.b 3.a#1.b _cons"),
        ("ib2.a i.a#c.x x", "1.a 3.a 1.a#c.x 3.a#c.x x _cons"),
    ],
)
def test_columns_have_statas_names_in_statas_order(effects: str, names: str) -> None:
    assert " ".join(design(effects).names) == names


@pytest.mark.parametrize(
    "effects",
    ["a##b", "a##b##c", "i.a#i.b", "i.b i.a#i.b", "i.a##c.x", "i.a#c.x", "ib(freq).a##ib1.b c.x##c.x"],
)
def test_no_column_depends_on_others_and_all_cells_are_spanned(effects: str) -> None:
    found = design(effects)
    X = found.matrix(DATA)
    assert np.linalg.matrix_rank(X) == X.shape[1] == len(found.names)
    if "#i.b" in effects or effects == "a##b":
        cells = pd.get_dummies(DATA["a"].astype(str) + DATA["b"].astype(str)).to_numpy(dtype=float)
        assert np.linalg.matrix_rank(np.column_stack([X, cells])) == X.shape[1]


def test_the_most_frequent_level_is_a_base() -> None:
    data = DATA.assign(a=[1.0, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1])
    assert design("ib(freq).a", data).names == ("1.a", "3.a", "_cons")


def test_cells_without_rows_are_empty_and_no_columns() -> None:
    data = DATA[~((DATA["a"] == 3) & (DATA["b"] == 1))]
    found = design("a##b", data)
    assert "3.a#1.b" not in found.names
    assert [column.is_empty for column in found.terms[-1].columns] == [False, True]


def test_values_of_a_column_are_products() -> None:
    found = design("3.a#c.x#1.b")
    expected = (DATA["a"] == 3) * DATA["x"] * (DATA["b"] == 1)
    assert found.columns[0].name == "3.a#1.b#c.x"
    np.testing.assert_allclose(found.columns[0].values(DATA), expected)


def test_labels_of_values_stand_in_the_place_of_levels() -> None:
    found = design("a##b", a={1.0: "low", 2.0: "mid", 3.0: "high"})
    assert [column.label for column in found.terms[0].columns] == ["mid", "high"]
    assert [column.label for column in found.terms[2].columns] == ["mid#1", "high#1"]
    assert [column.label for column in design("a##b").terms[2].columns] == ["2 1", "3 1"]


@pytest.mark.parametrize(
    ("effects", "piece", "problem"),
    [
        ("i.half", "i.half", "whole numbers"),
        ("i.below", "i.below", "whole numbers"),
        ("name", "name", "holds texts"),
        ("x ib7.a", "ib7.a", "no value of 'a'"),
    ],
)
def test_what_is_no_factor_is_refused_where_it_stands(effects: str, piece: str, problem: str) -> None:
    with pytest.raises(StataError, match=problem) as refused:
        design(effects)
    assert refused.value.column == len("mixed y ") + effects.index(piece) + 1


def test_a_list_with_too_many_columns_is_refused() -> None:
    data = pd.DataFrame({"y": 0.0, "a": np.arange(200.0), "b": np.arange(200.0)})
    with pytest.raises(StataError, match="more than 5,000 columns"):
        design("a##b", data)

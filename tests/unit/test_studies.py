"""Designs of studies as tables: groups within groups, columns in turn and at random, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm

SIGMAS = 5.0
"""Standard errors that a mean of random values may be away from its expectation."""


def test_groups_lie_within_groups_and_rows_within_them() -> None:
    table = jm.study({"school": 3, "class": 2}, size=4)
    assert table["school"].tolist() == [s for s in "123" for _ in range(8)]
    assert table["class"].unique().tolist() == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    assert (table.groupby("class", observed=True).size() == 4).all()
    assert all(c.startswith(f"{s}.") for s, c in zip(table["school"], table["class"], strict=True))
    assert isinstance(table.index, pd.RangeIndex)


def test_three_levels_keep_every_ancestor() -> None:
    table = jm.study({"town": 2, "school": 2, "class": [1, 3]}, size=[1, 2])
    classes = table.drop_duplicates("class")
    assert classes["class"].tolist() == [
        "1.1.1",
        "1.2.1",
        "1.2.2",
        "1.2.3",
        "2.1.1",
        "2.2.1",
        "2.2.2",
        "2.2.3",
    ]
    assert [c.rsplit(".", 1)[0] for c in classes["class"]] == classes["school"].tolist()
    assert [s.rsplit(".", 1)[0] for s in table["school"]] == table["town"].tolist()
    assert table.groupby("class", observed=True).size().tolist() == [1, 2, 1, 2, 1, 2, 1, 2]


def test_columns_of_groups_are_constant_in_them_and_balanced() -> None:
    between = {"arm": ["control", "drug", "both"], "class": {"method": [0, 1]}}
    table = jm.study({"school": 6, "class": 3}, size=5, between=between)
    assert (table.groupby("school", observed=True)["arm"].nunique() == 1).all()
    assert (table.groupby("class", observed=True)["method"].nunique() == 1).all()
    assert table.drop_duplicates("school")["arm"].value_counts().tolist() == [2, 2, 2]
    assert table.drop_duplicates("class")["method"].value_counts().tolist() == [9, 9]
    assert table["arm"].cat.categories.tolist() == ["control", "drug", "both"]


def test_values_of_rows_start_anew_in_every_group() -> None:
    table = jm.study({"person": 2}, size=[3, 5], within={"day": range(4), "arm": ["a", "b"]})
    assert table["day"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert table["arm"].tolist() == ["a", "b", "a", "a", "b", "a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "mean", "sd"),
    [
        ("normal", 0, 1),
        (("normal", 10, 2), 10, 2),
        ("uniform", 0.5, 12**-0.5),
        (("uniform", -1, 5), 2, 6 / 12**0.5),
        ("binary", 0.5, 0.5),
        (("binary", 0.2), 0.2, 0.4),
        (("sample", np.array([1.0, 5.0])), 3, 2),
    ],
)
def test_random_columns_have_their_moments(values: Any, mean: float, sd: float) -> None:
    drawn = jm.study({"g": 20}, size=200, within={"x": values}, seed=3)["x"].to_numpy()
    assert abs(drawn.mean() - mean) < SIGMAS * sd / np.sqrt(4000)
    assert drawn.std() == pytest.approx(sd, rel=0.1)
    assert len(jm.study({"g": 20}, 2, between={"x": values})["x"].unique()) <= 20


def test_samples_of_a_factor_keep_its_categories() -> None:
    sector = jm.datasets.load("hsb82")["sector"]
    drawn = jm.study({"g": 10}, size=5, between={"sector": ("sample", sector)}, seed=1)["sector"]
    assert drawn.cat.categories.tolist() == ["Public", "Catholic"]


def test_equal_seeds_give_equal_tables_and_columns_do_not_share_numbers() -> None:
    make = lambda seed: jm.study({"g": 5}, size=20, within={"x": "normal", "z": "normal"}, seed=seed)  # noqa: E731
    pd.testing.assert_frame_equal(make(1), make(1))
    assert not make(1)["x"].equals(make(2)["x"])
    assert abs(np.corrcoef(make(1)["x"], make(1)["z"])[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {}}, r"groups=\{\} must map"),
        ({"groups": {"g": 0}}, r"groups\['g'\] is 0"),
        ({"groups": {"g": 2.5}}, r"groups\['g'\] is 2.5"),
        ({"groups": {"g": True}}, r"groups\['g'\] is True"),
        ({"groups": {1: 3}}, "names of columns are texts"),
        ({"size": []}, r"size is \[\]"),
        ({"size": 10**9}, "too many for a table"),
        ({"groups": {"g": 10**4}, "size": 10**5}, "too many for a table"),
        ({"between": {"x": 3}}, r"between\['x'\] is 3; give a list of values, or one of 'normal'"),
        ({"between": {"school": {"x": [1]}}}, "the study's groupings are 'g'"),
        ({"between": {"g": [0, 1]}}, r"between\['g'\]"),
        ({"between": [1]}, "between=.* must map names"),
        ({"within": {"g": [0, 1]}}, r"within\['g'\]: the study has a column 'g' already"),
        ({"between": {"x": [0]}, "within": {"x": [0]}}, r"within\['x'\]: the study has a column 'x'"),
        ({"within": {"x": "gamma"}}, "'gamma', which is no distribution; choose one of 'normal'"),
        ({"within": {"x": ("normal", 1)}}, r"must be \('normal', mean, sd\)"),
        ({"within": {"x": ("normal", 1, -1)}}, "standard deviation is -1"),
        ({"within": {"x": ("normal", "a", 1)}}, "mean is 'a'"),
        ({"within": {"x": ("uniform", 1, 1)}}, "is empty"),
        ({"within": {"x": ("binary", 2)}}, "probability is 2"),
        ({"within": {"x": ("sample", 3)}}, "values to sample from"),
        ({"within": {"x": "sample"}}, r"must be \('sample', values\)"),
        ({"within": {"x": []}}, "is empty"),
        ({"within": {"x": [1.0, np.nan]}}, "missing values"),
        ({"seed": -1}, "seed must be a non-negative integer"),
    ],
)
def test_what_cannot_be_laid_out_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        jm.study(**({"groups": {"g": 3}, "size": 2} | arguments))

"""Designs of other sizes: which groups and rows are used, what is copied with them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.frame import ModelFrame, build_frame
from jaxmixed.resizing import (
    Selection,
    container,
    every_row,
    grouping,
    innermost,
    resized,
    with_groups,
    with_size,
)


def nested(unique: bool = True) -> pd.DataFrame:
    """Six schools of three classes of four pupils; a treatment of schools, sorted, and a method of pupils."""
    table = jm.study({"school": 6, "class": 3}, size=4, within={"method": [0, 0, 1, 1], "x": "normal"})
    table["treatment"] = (table["school"].cat.codes >= 3).astype(int)
    if not unique:
        table["class"] = table["class"].str.split(".").str[1]
    return table.assign(y=np.random.default_rng(1).normal(size=len(table)))


def frame_of(formula: str, table: pd.DataFrame) -> ModelFrame:
    return build_frame(formula, table)


FORMULA = "y ~ treatment + method + x + (1 | school/class)"


@pytest.mark.parametrize("unique", [True, False])
def test_copies_of_a_school_have_classes_of_their_own(unique: bool) -> None:
    frame = frame_of(FORMULA, nested(unique))
    more = resized(frame, with_groups(frame, every_row(frame), ("school",), 8, seed=1))
    sizes = {group.label: np.bincount(group.codes) for group in more.groups}
    assert {label: len(found) for label, found in sizes.items()} == {"school": 8, "school:class": 24}
    assert (sizes["school:class"] == 4).all()
    assert len(more.X) == 8 * 12
    school = next(group.codes for group in more.groups if group.label == "school")
    assert len(np.unique(np.column_stack([school, more.X[:, 1]]), axis=0)) == 8  # one arm each
    if not unique:
        return
    separate = frame_of("y ~ treatment + (1 | school) + (1 | class)", nested())
    more = resized(separate, with_groups(separate, every_row(separate), ("school",), 8, seed=1))
    assert {group.label: len(group.levels) for group in more.groups} == {"school": 8, "class": 24}


def test_few_schools_of_many_keep_the_arms_in_balance_and_do_not_depend_on_their_order() -> None:
    table = jm.study({"school": 40}, size=2).assign(y=range(80))
    table["treatment"] = (table["school"].cat.codes >= 30).astype(int)  # 30 controls, then 10 treated
    frame = frame_of("y ~ treatment + (1 | school)", table)
    chosen = set()
    for seed in range(4):
        for number in (4, 8, 20):
            few = with_groups(frame, every_row(frame), ("school",), number, seed)
            arms = frame.X[few.rows, 1].reshape(-1, 2)[:, 0]
            assert (len(arms), arms.sum()) == (number, number / 4)
        chosen.add(tuple(few.rows.tolist()))
        fewer = with_groups(frame, every_row(frame), ("school",), 8, seed)
        assert set(fewer.rows) <= set(few.rows)  # smaller studies are parts of larger ones
    assert len(chosen) == 4
    assert max(max(rows) for rows in chosen) > 70  # not the first ones only


def test_the_same_number_changes_nothing() -> None:
    frame = frame_of(FORMULA, nested())
    for columns, number in ((("school",), 6), (("school", "class"), 3)):
        same = with_groups(frame, every_row(frame), columns, number, seed=3)
        np.testing.assert_array_equal(same.rows, np.arange(72))
    np.testing.assert_array_equal(
        with_size(frame, every_row(frame), ("school", "class"), 4, seed=3).rows, np.arange(72)
    )
    copied = resized(frame, same)
    for group, other in zip(frame.groups, copied.groups, strict=True):
        np.testing.assert_array_equal(group.codes, other.codes)
    np.testing.assert_array_equal(frame.X, copied.X)


def test_classes_are_counted_in_each_school() -> None:
    for formula in (FORMULA, "y ~ x + (1 | school) + (1 | class)"):
        frame = frame_of(formula, nested())
        columns = grouping(frame, "class", "groups")
        assert container(frame, every_row(frame), columns) == ("school",)
        for number in (1, 2, 5):
            new = resized(frame, with_groups(frame, every_row(frame), columns, number, seed=1))
            found = {group.label: group.codes for group in new.groups}
            label = ":".join(columns)
            pairs = np.unique(np.column_stack([found["school"], found[label]]), axis=0)
            assert np.bincount(pairs[:, 0]).tolist() == [number] * 6
            assert len(pairs) == 6 * number


def test_crossed_factors_stay_as_they_are() -> None:
    table = jm.study({"person": 6}, size=5, within={"item": list("abcde")}).assign(y=range(30))
    frame = frame_of("y ~ 1 + (1 | person) + (1 | item)", table)
    more = resized(frame, with_groups(frame, every_row(frame), ("person",), 9, seed=1))
    assert [len(group.levels) for group in more.groups] == [9, 5]
    items = resized(frame, with_groups(frame, every_row(frame), ("item",), 8, seed=1))
    assert [len(group.levels) for group in items.groups] == [6, 8]
    assert (np.bincount(items.groups[0].codes) == 8).all()


def test_rows_in_groups_are_balanced_over_arms_and_classes() -> None:
    frame = frame_of(FORMULA, nested())
    for number in (6, 12, 18):
        new = with_size(frame, every_row(frame), ("school",), number, seed=1)
        school = new.codes(("school",))
        assert (np.bincount(school) == number).all()
        methods = np.bincount(school, weights=frame.X[new.rows, 2])
        assert (methods == number / 2).all()
        assert (np.bincount(new.codes(("school", "class"))) == number / 3).all()


def test_repeated_measures_keep_their_first_occasions() -> None:
    data = jm.datasets.load("sleepstudy")
    frame = frame_of("Reaction ~ Days + (Days | Subject)", data)
    for number, days in ((4, [0, 1, 2, 3]), (12, [*range(10), 0, 1])):
        new = with_size(frame, every_row(frame), ("Subject",), number, seed=1)
        for subject in range(18):
            found = frame.X[new.rows[new.codes(("Subject",)) == subject], 1]
            assert sorted(found.tolist()) == sorted(days)


def test_covariates_with_many_values_do_not_decide_which_rows_are_used() -> None:
    table = jm.study({"g": 4}, size=50).assign(y=range(200), x=np.tile(np.arange(50.0), 4))
    table["x"] += np.linspace(0, 0.4, 200)
    frame = frame_of("y ~ x + (1 | g)", table)
    new = with_size(frame, every_row(frame), ("g",), 10, seed=2)
    assert frame.X[new.rows, 1].max() > 30  # not the first ten
    assert len(np.unique(new.rows)) == 40


def test_weights_offsets_and_effects_go_with_their_rows() -> None:
    table = nested().assign(w=np.arange(1.0, 73.0), o=np.arange(72.0))
    frame = build_frame("y ~ x + offset(o) + (x | school)", table, weights="w")
    new = resized(frame, with_groups(frame, every_row(frame), ("school",), 9, seed=1))
    rows = np.searchsorted(frame.offset, new.offset)
    np.testing.assert_array_equal(new.weights, frame.weights[rows])
    np.testing.assert_array_equal(new.X, frame.X[rows])
    np.testing.assert_array_equal(new.groups[0].Z, frame.X[rows])
    np.testing.assert_array_equal(new.y, frame.y[rows])


def test_a_linear_model_has_all_rows_in_one_group() -> None:
    frame = frame_of("y ~ x", nested())
    assert innermost(frame, "size") == ()
    assert len(with_size(frame, every_row(frame), (), 100, seed=1).rows) == 100


def test_groupings_are_found_by_label_or_column() -> None:
    frame = frame_of("y ~ x + (1 | school:class)", nested())
    assert grouping(frame, "class", "size") == grouping(frame, "school:class", "size") == ("school", "class")
    assert grouping(frame, "school", "size") == ("school",)
    with pytest.raises(jm.DataError, match=r"size names 'pupil', which is no grouping .*'school:class'"):
        grouping(frame, "pupil", "size")
    table = nested(unique=False).assign(room=lambda t: t["school"].cat.codes % 2)
    both = frame_of("y ~ x + (1 | school:class) + (1 | room:class)", table)
    with pytest.raises(jm.DataError, match="could be 'school:class', 'room:class'"):
        grouping(both, "class", "size")


def test_the_innermost_of_crossed_groupings_is_not_guessed() -> None:
    table = jm.study({"person": 6}, size=5, within={"item": list("abcde")}).assign(y=range(30))
    frame = frame_of("y ~ 1 + (1 | person) + (1 | item)", table)
    with pytest.raises(jm.DataError, match="are crossed: say whose rows"):
        innermost(frame, "vary['size']")


def test_codes_have_no_gaps() -> None:
    selection = Selection(np.arange(4), {"a": np.array([0, 5, 5, 0]), "b": np.array([1, 1, 7, 1])})
    assert selection.codes(("a", "b")).tolist() == [0, 1, 2, 0]

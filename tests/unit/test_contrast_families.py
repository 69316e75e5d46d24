"""Families of contrasts: weights by hand and from published tables, names, refusals."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from jaxmixed.contrast_families import DEFAULT_ADJUST, contrasts, whole_polynomials
from jaxmixed.contrasts import contrast_matrix
from jaxmixed.errors import DataError

ABC = ["a", "b", "c"]

BY_HAND = {
    "pairwise": ({"a - b": [1, -1, 0], "a - c": [1, 0, -1], "b - c": [0, 1, -1]}, "tukey"),
    "tukey": ({"a - b": [1, -1, 0], "a - c": [1, 0, -1], "b - c": [0, 1, -1]}, "tukey"),
    "revpairwise": ({"b - a": [-1, 1, 0], "c - a": [-1, 0, 1], "c - b": [0, -1, 1]}, "tukey"),
    "trt.vs.ctrl": ({"b - a": [-1, 1, 0], "c - a": [-1, 0, 1]}, "mvt"),
    "dunnett": ({"b - a": [-1, 1, 0], "c - a": [-1, 0, 1]}, "mvt"),
    "eff": (
        {
            "a effect": [2 / 3, -1 / 3, -1 / 3],
            "b effect": [-1 / 3, 2 / 3, -1 / 3],
            "c effect": [-1 / 3, -1 / 3, 2 / 3],
        },
        "fdr",
    ),
    "del.eff": (
        {"a effect": [1, -0.5, -0.5], "b effect": [-0.5, 1, -0.5], "c effect": [-0.5, -0.5, 1]},
        "fdr",
    ),
    "consec": ({"b - a": [-1, 1, 0], "c - b": [0, -1, 1]}, "mvt"),
    "mean_chg": ({"a|b": [-1, 0.5, 0.5], "b|c": [-0.5, -0.5, 1]}, "mvt"),
    "poly": ({"linear": [-1, 0, 1], "quadratic": [1, -2, 1]}, "none"),
    "opoly": (
        {
            "linear": [-np.sqrt(0.5), 0, np.sqrt(0.5)],
            "quadratic": [np.sqrt(1 / 6), -2 * np.sqrt(1 / 6), np.sqrt(1 / 6)],
        },
        "none",
    ),
    "helmert": ({"b vs earlier": [-1, 1, 0], "c vs earlier": [-1, -1, 2]}, "none"),
    "identity": ({"a": [1, 0, 0], "b": [0, 1, 0], "c": [0, 0, 1]}, "none"),
}

# Fisher and Yates (1938), Statistical Tables, table 23.
PUBLISHED = {
    4: [[-3, -1, 1, 3], [1, -1, -1, 1], [-1, 3, -3, 1]],
    5: [[-2, -1, 0, 1, 2], [2, -1, -2, -1, 2], [-1, 2, 0, -2, 1], [1, -4, 6, -4, 1]],
    6: [
        [-5, -3, -1, 1, 3, 5],
        [5, -1, -4, -4, -1, 5],
        [-5, 7, 4, -4, -7, 5],
        [1, -3, 2, 2, -3, 1],
        [-1, 5, -10, 10, -5, 1],
    ],
    7: [[-3, -2, -1, 0, 1, 2, 3], [5, 0, -3, -4, -3, 0, 5], [-1, 1, 1, 0, -1, -1, 1]],
}


@pytest.mark.parametrize("method", BY_HAND)
def test_the_contrasts_of_three_means_are_those_by_hand(method: str) -> None:
    expected, adjust = BY_HAND[method]
    found = contrasts(method, ABC)
    assert found.names == tuple(expected)
    assert found.adjust == adjust
    np.testing.assert_allclose(found.weights, list(expected.values()), atol=1e-14)


def test_only_all_pairs_know_how_many_means_they_compare() -> None:
    compared = {method: contrasts(method, ABC).compared for method in DEFAULT_ADJUST}
    assert {method for method, count in compared.items() if count is not None} == {"pairwise", "revpairwise"}
    assert compared["pairwise"] == 3


@pytest.mark.parametrize("method", sorted(set(DEFAULT_ADJUST) - {"identity"}))
@pytest.mark.parametrize("k", [2, 5, 9])
def test_contrasts_sum_to_zero(method: str, k: int) -> None:
    assert contrasts(method, [str(i) for i in range(k)]).sums_to_zero
    assert not contrasts("identity", ABC).sums_to_zero


@pytest.mark.parametrize("k", PUBLISHED)
def test_polynomials_are_those_of_published_tables(k: int) -> None:
    expected = np.array(PUBLISHED[k], dtype=float)
    np.testing.assert_array_equal(whole_polynomials(k, len(expected)), expected)


def test_polynomials_of_many_means_are_orthogonal_and_end_at_the_sixth_degree() -> None:
    found = contrasts("poly", [str(i) for i in range(13)])
    assert found.names == ("linear", "quadratic", "cubic", "quartic", "degree 5", "degree 6")
    gram = found.weights @ found.weights.T
    np.testing.assert_allclose(gram - np.diag(np.diagonal(gram)), 0, atol=1e-8)
    assert (found.weights == np.round(found.weights)).all()


def test_helmert_contrasts_are_those_that_code_a_factor() -> None:
    weights = contrasts("helmert", [str(i) for i in range(5)]).weights
    np.testing.assert_array_equal(weights, contrast_matrix("helmert", 5).T)


def test_a_control_is_named_and_several_are_averaged() -> None:
    assert contrasts("trt.vs.ctrl", ABC, ref="b").names == ("a - b", "c - b")
    found = contrasts("trt.vs.ctrl", ABC, ref=["a", "c"])
    assert found.names == ("b - avg(a,c)",)
    np.testing.assert_array_equal(found.weights, [[-0.5, 1, -0.5]])


def test_labels_with_signs_are_put_in_parentheses() -> None:
    assert contrasts("pairwise", ["a - b", "a - c"]).names == ("(a - b) - (a - c)",)


def test_weights_of_the_callers_own() -> None:
    named = contrasts({"a or b - c": [0.5, 0.5, -1]}, ABC)
    assert named.names == ("a or b - c",)
    assert named.adjust == "none"
    array = contrasts(np.array([[1, 0, -1], [0, 1, -1]]), ABC)
    assert array.names == ("contrast 1", "contrast 2")
    assert contrasts([1, 0, -1], ABC).weights.tolist() == [[1, 0, -1]]
    frame = contrasts(pd.DataFrame([[1, 0, -1]], index=["ends"]), ABC)
    assert frame.names == ("ends",)


@pytest.mark.parametrize(
    ("method", "labels", "ref", "message"),
    [
        ("pairs", ABC, None, "'pairs' is not known; choose one of 'pairwise'"),
        ("pairwise", ["a"], None, "at least two means"),
        ("pairwise", ABC, "a", "ref= is the control of 'trt.vs.ctrl'"),
        ({"x": [1, -1, 0]}, ABC, "a", "ref= is the control"),
        ("trt.vs.ctrl", ABC, "d", "'d' is none of the means; they are 'a', 'b', 'c'"),
        ("trt.vs.ctrl", ABC, ABC, "nothing is left"),
        ("trt.vs.ctrl", ABC, [], "nothing is left"),
        ({"x": [1, -1]}, ABC, None, "needs 3 weights"),
        ({"x": [1, -1, 0], "y": [1]}, ABC, None, "differ in length"),
        ({"x": ["u", "v", "w"]}, ABC, None, "are numbers"),
        ({"x": [1, np.nan, 0]}, ABC, None, "finite"),
        (np.eye(4), ABC, None, r"shape \(4, 4\)"),
        (None, ABC, None, "needs 3 weights|are numbers"),
    ],
)
def test_what_is_no_contrast_is_refused(method: Any, labels: Any, ref: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        contrasts(method, labels, ref=ref)

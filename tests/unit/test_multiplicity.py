"""Adjusted p-values against hand computation and published decisions."""

from typing import Any

import numpy as np
import pytest

from jaxmixed.errors import DataError
from jaxmixed.multiplicity import ADJUSTMENTS, adjusted_p_values

P = [0.03, 0.5, 0.01, 0.02]
HARMONIC = 1 + 1 / 2 + 1 / 3 + 1 / 4

# In ascending order: p times (4, 2, 4/3, 1), the smallest of that and of all later ones; the same times the
# harmonic sum; p times (4, 3, 2, 1), the largest of that and of all earlier ones; p times 4.
BY_HAND = {
    "fdr_bh": [0.04, 0.5, 0.04, 0.04],
    "fdr_by": [0.04 * HARMONIC, 1.0, 0.04 * HARMONIC, 0.04 * HARMONIC],
    "holm": [0.06, 0.5, 0.04, 0.06],
    "bonferroni": [0.12, 1.0, 0.04, 0.08],
    "none": P,
}

# Benjamini and Hochberg (1995), section 4.1: 15 comparisons of two treatments of myocardial infarction.
MYOCARDIAL = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]


@pytest.mark.parametrize("method", ADJUSTMENTS)
def test_four_p_values_are_adjusted_as_by_hand(method: Any) -> None:
    np.testing.assert_allclose(adjusted_p_values(P, method), BY_HAND[method], rtol=1e-14)


def test_the_false_discovery_rate_is_the_default() -> None:
    np.testing.assert_allclose(adjusted_p_values(P), BY_HAND["fdr_bh"], rtol=1e-14)


@pytest.mark.parametrize(("method", "rejected"), [("fdr_bh", 4), ("bonferroni", 3), ("holm", 3)])
def test_the_decisions_of_the_published_example_are_reproduced(method: Any, rejected: int) -> None:
    adjusted = adjusted_p_values(MYOCARDIAL, method)
    assert (adjusted <= 0.05).tolist() == [True] * rejected + [False] * (15 - rejected)


@pytest.mark.parametrize("method", ADJUSTMENTS)
def test_missing_p_values_stay_missing_and_do_not_count(method: Any) -> None:
    some = np.insert(np.array(P), [0, 2, 4], np.nan)
    adjusted = adjusted_p_values(some, method)
    assert np.isnan(adjusted).tolist() == np.isnan(some).tolist()
    np.testing.assert_allclose(adjusted[~np.isnan(some)], BY_HAND[method], rtol=1e-14)


@pytest.mark.parametrize("method", ADJUSTMENTS)
def test_each_column_is_a_family_of_its_own(method: Any) -> None:
    table = np.full((6, 3), np.nan)
    table[:4, 0] = P
    table[2:, 1] = P[::-1]
    before = table.copy()
    adjusted = adjusted_p_values(table, method)
    np.testing.assert_allclose(adjusted[:4, 0], BY_HAND[method], rtol=1e-14)
    np.testing.assert_allclose(adjusted[2:, 1], BY_HAND[method][::-1], rtol=1e-14)
    assert np.isnan(adjusted[:, 2]).all()
    np.testing.assert_array_equal(table, before)


@pytest.mark.parametrize("method", ADJUSTMENTS)
def test_extremes_stay_probabilities(method: Any) -> None:
    np.testing.assert_array_equal(adjusted_p_values([0.0, 1.0, 1.0, 0.0], method), [0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(adjusted_p_values([0.3], method), [0.3])
    assert adjusted_p_values([], method).shape == (0,)
    assert adjusted_p_values(np.zeros((0, 3)), method).shape == (0, 3)
    assert adjusted_p_values(np.zeros((3, 0)), method).shape == (3, 0)


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([0.1, 1.5, -0.2], r"2 of the p-values lie outside 0 to 1 \(the first is 1.5\)"),
        (["a", "b"], "numbers between 0 and 1, or NaN; p holds others"),
        ([[0.1], [0.1, 0.2]], "numbers between 0 and 1"),
        (0.05, "give the p-values of all tests together"),
    ],
)
def test_what_is_no_p_value_is_refused(p: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        adjusted_p_values(p)


@pytest.mark.parametrize("method", ["bh", "FDR_BH", None, 1, ["holm"]])
def test_other_methods_are_refused_with_the_list_of_those_available(method: Any) -> None:
    with pytest.raises(DataError, match=r"'fdr_bh', 'fdr_by', 'holm', 'bonferroni', 'none'"):
        adjusted_p_values(P, method)

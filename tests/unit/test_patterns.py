"""Patterns: groups that are alike share an entry, and their order is found by counting."""

import numpy as np
import pytest

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.patterns import compress, stable_order
from jaxmixed.statistics import Term

INTERCEPT = (Term(0, 0, covariance_structure("unstructured", 1)),)


@pytest.mark.parametrize("size", [1, 5, 65536, 65537, 2_000_000])
def test_the_order_is_that_of_a_stable_sort(size):
    codes = np.random.default_rng(size).integers(0, size, 20_000)
    codes[0] = size - 1
    np.testing.assert_array_equal(stable_order(codes, size), np.argsort(codes, kind="stable"))


def test_groups_of_one_size_share_one_entry_and_keep_their_products():
    rng = np.random.default_rng(1)
    sizes = np.array([3] * 20 + [4] * 30)
    codes = np.repeat(np.arange(50), sizes)
    one = np.ones((len(codes), 1))
    stats = reduce_rows(rng.normal(size=len(codes)), one, [Grouping(one, codes, 50, "g")], INTERCEPT).stats
    level = compress(stats).levels[0]
    np.testing.assert_array_equal(level.count, [20, 30])
    cross = stats.levels[0].cross[0]
    np.testing.assert_allclose(level.gram[0, 0, 0], cross[:, :20] @ cross[:, :20].T, rtol=1e-12)
    np.testing.assert_allclose(level.gram[0, 0, 1], cross[:, 20:] @ cross[:, 20:].T, rtol=1e-12)


def test_groups_that_are_all_different_are_left_as_they_are():
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(30), 4)
    Z = np.column_stack([np.ones(120), rng.normal(size=120)])
    terms = (Term(0, 0, covariance_structure("unstructured", 2)),)
    stats = reduce_rows(rng.normal(size=120), Z, [Grouping(Z, codes, 30, "g")], terms).stats
    assert compress(stats) is stats

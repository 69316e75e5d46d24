"""Statistics without a case, against the dense likelihood of the rows that remain."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import deviance
from jaxmixed.precision import double_precision
from jaxmixed.removal import GroupRemoval, Remaining, RowRemoval, holds_whole_groups, whole_level
from jaxmixed.statistics import SufficientStatistics, Term
from tests.support import dense
from tests.support.compilation import QUICKLY

ROUNDING = 1e-11
"""Relative to deviances of some hundreds: sums of squares taken in another order."""

SIZES = np.array([1, 1, 2, 3, 4] * 6)
"""Rows of the finest groups; five of these make a coarser one."""

THETA = {1: np.array([0.7]), 2: np.array([0.7, -0.2, 0.5])}


criterion = jax.jit(partial(deviance, method="reml"), compiler_options=QUICKLY)


class Data:
    """Random rows in nested groups."""

    def __init__(self, levels: int, slopes: int, weighted: bool) -> None:
        rng = np.random.default_rng(5)
        fine = np.repeat(np.arange(len(SIZES)), SIZES)
        rng.shuffle(fine)
        self.codes = (fine, fine // 5)[:levels]
        n = len(fine)
        self.X = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
        self.y = rng.normal(size=n) + 0.5 * self.X[:, 1]
        self.Z = self.X[:, :slopes]
        self.weights = rng.uniform(0.5, 2, n) if weighted else None
        structure = covariance_structure("unstructured", slopes)
        self.terms = tuple(Term(level, 0, structure) for level in range(levels))
        self.theta = np.tile(THETA[slopes], levels)

    def reduce(self, rows: np.ndarray) -> Reduction:
        codes = [np.unique(own[rows], return_inverse=True)[1] for own in self.codes]
        groupings = [Grouping(self.Z[rows], own, own.max() + 1, "g") for own in codes]
        weights = None if self.weights is None else self.weights[rows]
        return reduce_rows(self.y[rows], self.X[rows], groupings, self.terms, weights)

    def expected(self, codes: np.ndarray, case: int) -> float:
        """Restricted deviance of the rows that are left, from its definition."""
        rows = np.flatnonzero(codes != case)
        weights = None if self.weights is None else self.weights[rows]
        blocks = tuple(dense.Block(self.Z[rows], own[rows]) for own in self.codes)
        model = dense.DenseModel(self.y[rows], self.X[rows], blocks, weights)
        q = self.Z.shape[1]
        T = np.zeros((q, q))
        T.T[np.triu_indices(q)] = THETA[q]
        return -2 * model.profiled((T @ T.T,) * len(blocks), "reml").llf


def one_of(remaining: Remaining, place: int) -> SufficientStatistics:
    return jax.tree.map(lambda values: np.array(values[..., place]), remaining.stats)


def assert_left(data: Data, codes: np.ndarray, removal: RowRemoval | GroupRemoval, cases: range) -> None:
    good, remaining = removal.take_out(cases.start, cases.stop)
    assert len(good)
    with double_precision():
        found = [float(criterion(data.theta, one_of(remaining, place))) for place in range(len(good))]
    expected = [data.expected(codes, case) for case in good.tolist()]
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)
    for place, case in enumerate(good.tolist()):
        rows = codes != case
        Xy = np.column_stack([data.X, data.y])[rows]
        w = np.ones(rows.sum()) if data.weights is None else data.weights[rows]
        units = remaining.units
        assert units.nobs[place] == rows.sum()
        np.testing.assert_allclose(units.sum_log_weights[place], np.log(w).sum(), atol=1e-12)
        turn = np.eye(4)
        turn[:3, :3] = units.basis
        turn[:3, 3] = units.basis @ units.origin
        turn[3, 3] = units.scale[place]
        np.testing.assert_allclose(
            turn.T @ remaining.whole[place] @ turn, Xy.T @ (w[:, None] * Xy), rtol=1e-9
        )


DESIGNS = {
    "patterns": (1, 1, False),
    "weights": (1, 1, True),
    "slopes": (1, 2, False),
    "nested": (2, 1, True),
    "nested slopes": (2, 2, False),
}


@pytest.fixture(params=DESIGNS.values(), ids=DESIGNS.keys(), scope="module")
def data(request: pytest.FixtureRequest) -> Data:
    return Data(*request.param)


def test_without_a_row(data: Data) -> None:
    every = np.arange(len(data.y))
    removal = RowRemoval(data.reduce(every), data.y)
    assert_left(data, every, removal, range(3, 7))
    alone = np.flatnonzero(data.codes[0] == 0)
    assert_left(data, every, removal, range(alone[0], alone[0] + 1))


@pytest.mark.parametrize("level", [0, 1])
def test_without_a_group(data: Data, level: int) -> None:
    # The coarser groups are those that the model does not know, where it has one level.
    codes = data.codes[level] if level < len(data.codes) else data.codes[0] // 3
    whole = data.reduce(np.arange(len(data.y)))
    assert holds_whole_groups(whole, codes) == (level < len(data.codes) or len(data.codes) == 1)
    assert_left(data, codes, GroupRemoval(whole, data.y, codes), range(1, 4))


def test_equal_groups_stay_together_when_one_of_them_goes() -> None:
    data = Data(1, 1, False)
    whole = data.reduce(np.arange(len(data.y)))
    assert whole.compact.levels[0].gram is not None
    _, remaining = GroupRemoval(whole, data.y, data.codes[0]).take_out(0, 5)
    assert remaining.stats.levels[0].gram is not None


def test_without_random_effects() -> None:
    data = Data(0, 1, True)
    every = np.arange(len(data.y))
    assert_left(data, every, RowRemoval(data.reduce(every), data.y), range(4))


def test_a_case_that_has_nearly_all_of_something_is_left_to_another_reduction() -> None:
    data = Data(1, 1, False)
    data.X = data.X.copy()
    data.X[:, 2] = 1e-3 * data.X[:, 2]
    data.X[7, 2] = 1e3
    every = np.arange(len(data.y))
    good, _ = RowRemoval(data.reduce(every), data.y).take_out(0, len(every))
    assert 7 not in good
    assert len(good) == len(every) - 1


def test_cases_that_cut_through_groups_are_told() -> None:
    data = Data(2, 1, False)
    whole = data.reduce(np.arange(len(data.y)))
    assert not holds_whole_groups(whole, np.arange(len(data.y)) % 3)
    assert whole_level(whole, np.arange(len(data.y)) % 3) is None
    found = whole_level(whole, data.codes[1])
    assert found is not None
    assert found[0] == 1

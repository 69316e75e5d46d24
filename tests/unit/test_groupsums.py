"""Sums over the rows of groups: those of a loop, whatever the sizes of the groups and their order."""

import numpy as np
import pytest

from jaxmixed.groupsums import GroupSums, WithinGroups, order_by_size


def test_rows_of_groups_of_one_size_stand_together() -> None:
    rng = np.random.default_rng(17)
    codes = rng.permutation(np.concatenate([np.arange(9), rng.integers(1, 9, 31)]))
    order = order_by_size(codes, 9)
    ordered, counts = codes[order], np.bincount(codes)
    assert sorted(order.tolist()) == list(range(40))
    assert (np.diff(counts[ordered]) >= 0).all()
    assert np.count_nonzero(np.diff(ordered)) == 8  # every group in one piece
    for group in range(9):
        assert (np.diff(order[ordered == group]) > 0).all()


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1, 4, 2, 4, 1], [5], [1, 1, 1]])
def test_sums_over_groups_are_those_of_a_loop(sizes: list[int]) -> None:
    rng = np.random.default_rng(18)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    Z, values = rng.normal(size=(len(codes), 2)), rng.normal(size=(len(codes), 5))
    expected = np.stack([Z[codes == g].T @ values[codes == g] for g in range(len(sizes))], axis=1)
    np.testing.assert_allclose(GroupSums(Z, codes, len(sizes))(values), expected, rtol=1e-12, atol=1e-14)


def test_what_lies_in_a_group_is_removed() -> None:
    rng = np.random.default_rng(19)
    codes = np.repeat(np.arange(3), [2, 4, 4])
    Q = np.concatenate([np.linalg.qr(rng.normal(size=(size, 2)))[0] for size in (2, 4, 4)])
    values = rng.normal(size=(10, 5))
    left = values.copy()
    found = WithinGroups(Q, codes, 3).remove(left)
    for group in range(3):
        mine = codes == group
        np.testing.assert_allclose(found[:, group], Q[mine].T @ values[mine], atol=1e-14)
        np.testing.assert_allclose(left[mine], values[mine] - Q[mine] @ found[:, group], atol=1e-14)

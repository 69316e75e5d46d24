"""The sizes that arrays are padded to."""

import numpy as np
import pytest

from jaxmixed.sizes import grid_size, root_size

COUNTS = [*range(1, 300), 1000, 4095, 4096, 4097, 49152, 49153, 10**6]


def test_the_grid_is_that_of_powers_of_two_and_three_halves_of_them() -> None:
    grid = sorted({grid_size(m) for m in range(1, 200)})
    assert grid == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]


def test_a_grid_size_is_the_smallest_that_holds_the_entries() -> None:
    grid = np.array(sorted({2**k for k in range(22)} | {3 * 2**k for k in range(21)}))
    assert [grid_size(m) for m in COUNTS] == [int(grid[grid >= m][0]) for m in COUNTS]


def test_an_empty_array_is_padded_to_one_entry() -> None:
    assert grid_size(0) == 1


def test_a_root_grows_by_at_most_a_sixteenth() -> None:
    for columns in COUNTS:
        assert columns <= root_size(columns) <= columns + columns / 16


def test_a_small_root_is_not_padded() -> None:
    assert [root_size(columns) for columns in range(32)] == list(range(32))


def test_larger_roots_have_no_smaller_padding() -> None:
    sizes = [root_size(columns) for columns in range(3000)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("size", [grid_size, root_size])
def test_what_is_padded_needs_no_more_padding(size) -> None:  # type: ignore[no-untyped-def]
    assert all(size(size(count)) == size(count) for count in COUNTS)


def test_roots_of_similar_size_share_one() -> None:
    assert len({root_size(columns) for columns in range(1024, 2049)}) <= 17

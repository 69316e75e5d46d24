"""Which grouping factors are eliminated as a nested chain, and which join the dense root.

Nesting is found from the data, never declared. Of all chains of nested factors the cheapest is taken, by a
rough count of the operations that an evaluation then needs; the other factors' levels become columns of the
root (:mod:`jaxmixed.root`), whose size decides about memory, which is checked before anything is allocated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmixed import relatedness
from jaxmixed.errors import DesignError
from jaxmixed.links import LARGEST_PAIRS, PRODUCT_COST, fill_cost

ROOT_COPIES = 12
"""Matrices of the root's size that an evaluation with second derivatives holds at its peak."""

BASIS_COPIES = 8
"""Further matrices of the order of a known relationship matrix: itself, its root, and what makes that."""

PAIR_BYTES = 40
"""Bytes for a pair of entries: its indices, and the products that an evaluation makes."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """A grouping factor and its random-effects columns, those of all its terms side by side.

    Attributes
    ----------
    Z : (n, q) array
    codes : (n,) int array
        Group of each row, ``0 .. m-1``, all present.
    size : int
        Number of groups m.
    label : str
    relationship : (all, all) array or None
        Known relationship matrix A: the effects have covariance ``sigma**2 kron(A, G)``. Its first m rows are
        those of the groups; further ones belong to groups without rows. Such a factor is always in the root.
    """

    Z: np.ndarray
    codes: np.ndarray
    size: int
    label: str
    relationship: np.ndarray | None = None

    @property
    def columns(self) -> int:
        """Number of its random effects."""
        return self.size * self.Z.shape[1]

    @property
    def all_levels(self) -> int:
        """Number of groups with those without rows."""
        return self.size if self.relationship is None else len(self.relationship)


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of the factors among those given.

    Attributes
    ----------
    chain : tuple of int
        Eliminated, finest first, each nested in the next.
    root : tuple of int
        In the dense root.
    """

    chain: tuple[int, ...]
    root: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The chain's factors, then the root's: the order of the statistics' levels."""
        return (*self.chain, *self.root)


def is_plain(grouping: Grouping) -> bool:
    """Whether the groups are unrelated and alike: a relationship matrix is a multiple of the identity."""
    if grouping.relationship is None:
        return True
    return relatedness.is_plain(grouping.relationship[: grouping.size, : grouping.size])


def contains(grouping: Grouping, codes: np.ndarray) -> bool:
    """Whether rows with the same code lie in one group."""
    owner = np.empty(int(codes.max()) + 1, dtype=grouping.codes.dtype)
    owner[codes] = grouping.codes
    return bool(np.array_equal(owner[codes], grouping.codes))


def is_nested(fine: Grouping, coarse: Grouping) -> bool:
    """Whether every group of `fine` lies within one group of `coarse`."""
    return fine.size >= coarse.size and contains(coarse, fine.codes)


def _chains(above: list[list[int]], start: int) -> Iterator[tuple[int, ...]]:
    """Chains from a factor to the coarsest that contain it, as long as can be."""
    if not above[start]:
        yield (start,)
    for coarser in above[start]:
        for chain in _chains(above, coarser):
            yield (start, *chain)


def _expected_pairs(grouping: Grouping, columns: int, effects: int) -> int:
    """At most so many pairs of root columns meet in the groups of a factor."""
    rows = np.bincount(grouping.codes, minlength=grouping.size)
    meeting = np.minimum(rows * effects, columns).astype(float)
    return int(min(np.sum(meeting * (meeting + 1) / 2), 2.0**62))


class _Remaining(NamedTuple):
    """The factors that a chain leaves to the root, their levels' effects, and their effects on a row."""

    factors: list[Grouping]
    columns: int
    effects: int


def _remaining(chain: Sequence[int], groupings: Sequence[Grouping]) -> _Remaining:
    others = [grouping for number, grouping in enumerate(groupings) if number not in chain]
    columns = sum(grouping.columns for grouping in others)
    return _Remaining(others, columns, sum(grouping.Z.shape[1] for grouping in others))


def _cost(chain: Sequence[int], groupings: Sequence[Grouping]) -> tuple[float, int]:
    """Rough seconds of an evaluation when a chain is eliminated, and the size of the root that remains."""
    others, columns, effects = _remaining(chain, groupings)
    seconds = 4.0 * float(columns) ** 3 * PRODUCT_COST
    for number in chain if others else ():
        own = groupings[number]
        pairs = _expected_pairs(own, columns, effects)
        seconds += min(fill_cost(pairs, own.size, own.Z.shape[1], columns))
    return seconds, columns


def arrange(groupings: Sequence[Grouping], correlated: np.ndarray | None = None) -> Layout:
    """Choose the chain to eliminate.

    Parameters
    ----------
    groupings : sequence of Grouping
        Distinct factors, by falling number of groups. Those with a known relationship join the root.
    correlated : (n,) int array, optional
        Groups of rows with correlated residuals. Factors in whose levels these do not lie join the root.

    Returns
    -------
    Layout

    Raises
    ------
    DesignError
        If the root does not fit into memory.

    Examples
    --------
    >>> one = np.ones((4, 1))
    >>> crossed = [Grouping(one, np.array(c), 2, "ab"[i]) for i, c in enumerate([[0, 0, 1, 1], [0, 1, 0, 1]])]
    >>> arrange(crossed)
    Layout(chain=(0,), root=(1,))
    """
    if not groupings:
        return Layout((), ())
    count = len(groupings)
    independent = [
        number
        for number, grouping in enumerate(groupings)
        if grouping.relationship is None and (correlated is None or contains(grouping, correlated))
    ]
    # Of two factors that define the same groups, the first counts as the finer one.
    within = [
        [
            j
            for j in independent
            if (groupings[j].size, -j) < (groupings[i].size, -i) and is_nested(groupings[i], groupings[j])
        ]
        for i in range(count)
    ]
    # Only the next coarser factors: those that are not reached through another one.
    above = [[j for j in within[i] if not any(j in within[k] for k in within[i])] for i in range(count)]
    chains = [chain for start in independent for chain in _chains(above, start)]
    best = min(chains, key=lambda chain: (*_cost(chain, groupings), -len(chain)), default=())
    layout = Layout(best, tuple(number for number in range(count) if number not in best))
    _check_memory(layout, groupings)
    return layout


def available_memory() -> float:
    """Bytes that can be had without swapping, or infinity where the system does not say."""
    limits = []
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        limits += [1024.0 * float(parts[1]) for parts in lines if parts[0] == "MemAvailable:"]
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
        limits += [] if text == "max" else [max(float(text) - used, 0.0)]
    except (OSError, ValueError, IndexError):
        pass  # another system: what is known so far has to do
    return min(limits, default=np.inf)


def root_bytes(layout: Layout, groupings: Sequence[Grouping]) -> float:
    """Memory that the root takes: matrices of its order, and the lists of pairs."""
    _, columns, effects = _remaining(layout.chain, groupings)
    pairs = sum(_expected_pairs(groupings[number], columns, effects) for number in layout.chain)
    known = sum(
        BASIS_COPIES * float(own.all_levels) ** 2 for own in groupings if own.relationship is not None
    )
    return 8.0 * (ROOT_COPIES * float(columns) ** 2 + known) + PAIR_BYTES * min(pairs, LARGEST_PAIRS)


def _check_memory(layout: Layout, groupings: Sequence[Grouping]) -> None:
    """Refuse a root that would not fit, in seconds and in words."""
    if not layout.root:
        return
    needed, free = root_bytes(layout, groupings), available_memory()
    if needed <= free:
        return
    factors, columns, _ = _remaining(layout.chain, groupings)
    others = sorted(factors, key=lambda grouping: -grouping.columns)
    chain = " and ".join(repr(groupings[number].label) for number in layout.chain)
    if any(other.relationship is not None for other in factors):
        remedy = "A known relationship makes a factor dense: keep fewer of its levels in the data"
    else:
        remedy = (
            f"The cause is {others[0].label!r}: merge or drop its rarely seen levels, make it coarser, or "
            "leave it out"
        )
    sizes = ", ".join(
        f"{other.label!r} ({other.size:,} levels × {other.Z.shape[1]} effect{'s'[: other.Z.shape[1] > 1]})"
        for other in others
    )
    raise DesignError(
        f"These {'crossed ' if chain else ''}grouping factors need about {needed / 1e9:,.1f} GB "
        f"({needed:,.0f} bytes), and {free / 1e9:,.1f} GB are available. "
        + (f"{chain} would be eliminated; {sizes} then form" if chain else f"{sizes} form")
        + f" a dense matrix of {columns:,} columns, {8 * columns**2 / 1e9:,.1f} GB each time it is stored. "
        f"{remedy}."
    )

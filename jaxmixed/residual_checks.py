"""Refusals of residual structures that data cannot determine, naming the column, group or time at fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.errors import DataError, DesignError, listed
from jaxmixed.grouping import level_labels
from jaxmixed.residuals import (
    AR,
    ARMA,
    MA,
    AnteDependence,
    Banded,
    Exchangeable,
    Exponential,
    Independent,
    Labelled,
    Toeplitz,
    Unstructured,
)

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame
    from jaxmixed.residual_columns import Coded, Times
    from jaxmixed.residual_groups import ResidualDesign
    from jaxmixed.residuals import ResidualStructure

MOST_PARAMETERS = 2_000
"""Most free parameters of a residual structure: 62 labels of an unstructured one."""


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A residual structure with the rows and the labels of its parts.

    Attributes
    ----------
    spec : ResidualStructure
    design : ResidualDesign
    frame : ModelFrame
    groups : Coded or None
    times : Times
    levels, strata : Coded or None
    """

    spec: ResidualStructure
    design: ResidualDesign
    frame: ModelFrame
    groups: Coded | None
    times: Times
    levels: Coded | None
    strata: Coded | None

    def group_name(self, code: int) -> str:
        """A group, in quotes, and its column."""
        assert self.groups is not None
        return f"{level_labels(self.groups.coding.levels[[code]])[0]!r} of {self.groups.label!r}"

    def of_stratum(self, stratum: int) -> str:
        """The words that limit a message to a stratum."""
        if self.strata is None:
            return ""
        return f" of {self.strata.label} {self.strata.texts[stratum]!r}"

    def row(self, position: int) -> int:
        """Number of a row used in the data, counting from 0."""
        return int(np.flatnonzero(self.frame.kept)[position])


def check_bound(own: Bound) -> None:
    """Refuse a structure that the rows cannot determine.

    Parameters
    ----------
    own : Bound

    Raises
    ------
    DataError, DesignError
        Naming the group, time, level or stratum at fault.
    """
    _check_size(own)
    _check_strata(own)
    _check_distinct(own)
    _check_cells(own)
    if isinstance(own.spec, Independent):
        return
    _check_together(own)
    if isinstance(own.spec, Labelled):
        _check_labels(own)
    elif not isinstance(own.spec, Exchangeable):
        _check_lags(own)


def _check_size(own: Bound) -> None:
    """Refuse structures of too many parameters."""
    count = own.design.covariance.num_params
    if count <= MOST_PARAMETERS:
        return
    cause = ""
    if isinstance(own.spec, Labelled) and own.times.labels is not None:
        number = len(own.times.labels.coding.levels)
        cause = f": the time {own.times.column!r} has {number:,} different values"
    elif own.levels is not None:
        cause = f": {own.levels.label!r} has {len(own.levels.coding.levels):,} levels"
    raise DesignError(
        f"{own.spec.text} would have {count:,} parameters{cause}, more than the {MOST_PARAMETERS:,} allowed; "
        "use a structure of few parameters, such as AR for whole times or Exponential for any"
    )


def _check_strata(own: Bound) -> None:
    """Refuse groups that lie in several strata."""
    if own.strata is None or own.groups is None:
        return
    design = own.design
    owner = np.empty(design.size, dtype=np.int64)
    owner[design.codes] = design.stratum
    odd = np.flatnonzero(owner[design.codes] != design.stratum)
    if not len(odd):
        return
    row = int(odd[0])
    code = int(design.codes[row])
    one, other = own.strata.texts[design.stratum[row]], own.strata.texts[owner[code]]
    columns = (*own.strata.coding.columns, *own.groups.coding.columns)
    raise DataError(
        f"the group {own.group_name(code)} lies in several strata of by={own.strata.label!r}, {one!r} and "
        f"{other!r}, and the residual parameters of a group are those of one; if its name is used again in "
        f"another stratum, give group={columns!r}"
    )


def _check_distinct(own: Bound) -> None:
    """Refuse groups with two rows at one time."""
    groups, times = own.groups, own.times
    if groups is None or times.column is None:
        return
    order = np.lexsort((times.values, groups.codes))
    codes, values = groups.codes[order], times.values[order]
    same = np.flatnonzero((np.diff(codes) == 0) & (np.diff(values) == 0))
    if not len(same):
        return
    first, second = sorted(own.row(row) for row in order[[same[0], same[0] + 1]])
    code = int(codes[same[0]])
    others = len(np.unique(codes[same])) - 1
    more = f", and {others:,} more group{'s have' if others > 1 else ' has'} such rows" if others else ""
    raise DataError(
        f"the group {own.group_name(code)} has several rows "
        f"at {times.column} {times.text(values[same[0]])} (rows {first} and {second}, counting from "
        f"0){more}; rows of a group need different times: check group= (several columns may be needed, "
        "such as group=('site', 'id')), or make one row of them"
    )


def _check_cells(own: Bound) -> None:
    """Refuse standard deviations without rows, or whose rows are fitted exactly whatever they are."""
    if own.levels is None and own.strata is None:
        return
    design, X = own.design, own.frame.X
    V, S = design.covariance.levels, design.covariance.strata
    cells = design.stratum * V + design.levels
    counts = np.bincount(cells, minlength=S * V)
    for cell in np.flatnonzero(counts <= X.shape[1]):
        stratum, level = divmod(int(cell), V)
        where = "" if own.levels is None else f" at {own.levels.label} {own.levels.texts[level]!r}"
        where = f"{own.of_stratum(stratum)}{where}"
        if counts[cell] == 0:
            raise DesignError(
                f"no row used{where}, so its residual standard deviation cannot be estimated; leave out by= "
                "or variance_by=, or merge levels"
            )
        exact = np.linalg.matrix_rank(X[cells == cell]) == counts[cell]
        if exact and not own.frame.groups:
            rows = "one row" if counts[cell] == 1 else f"{counts[cell]} rows"
            raise DesignError(
                f"{rows}{where} only, which the fixed effects fit exactly, so the residual standard "
                "deviation there would be zero and the likelihood infinite; merge levels of by= or "
                "variance_by=, leave them out, or drop fixed effects"
            )


def _check_together(own: Bound) -> None:
    """Refuse strata, or data, in which every group has one row."""
    design = own.design
    assert own.groups is not None
    sizes = np.bincount(design.codes, minlength=design.size)
    owner = np.empty(design.size, dtype=np.int64)
    owner[design.codes] = design.stratum
    several = np.bincount(owner[sizes > 1], minlength=design.covariance.strata)
    alone = np.flatnonzero(several == 0)
    if len(alone):
        everywhere = "every group" if own.strata is None else f"every group{own.of_stratum(int(alone[0]))}"
        raise DesignError(
            f"{everywhere} of {own.groups.label!r} has one row, so {own.spec.text} has no correlation to "
            "estimate; give the column of the subjects as group=, one whose values repeat"
        )


def _check_labels(own: Bound) -> None:
    """Refuse correlations of labels that no group has both."""
    design, spec = own.design, own.spec
    assert own.times.labels is not None
    texts = own.times.labels.texts
    T = len(texts)
    band = spec.order if isinstance(spec, Banded | AnteDependence) else T - 1
    assert isinstance(spec, Banded | AnteDependence | Unstructured)
    if T < 2:
        raise DesignError(
            f"the time {own.times.column!r} has one value in the rows used, {texts[0]!r}; {spec.text} needs "
            "at least two"
        )
    stratum = np.empty(design.size, dtype=np.int64)
    stratum[design.codes] = design.stratum
    present = np.zeros((design.size, T))
    present[design.codes, design.times.astype(np.int64)] = 1.0
    for s in range(design.covariance.strata):
        seen = present[stratum == s]
        together = seen.T @ seen
        if isinstance(spec, AnteDependence):
            missing = _undetermined_steps(together)
        else:
            missing = [(i, j) for j in range(T) for i in range(max(0, j - band), j) if not together[i, j]]
        if missing:
            pairs = ", ".join(f"{texts[i]!r} and {texts[j]!r}" for i, j in missing[:5])
            pairs += f" (and {len(missing) - 5} more pairs)" if len(missing) > 5 else ""
            raise DesignError(
                f"no group{own.of_stratum(s)} was observed at both {own.times.column} {pairs}, so their "
                f"correlation cannot be estimated; use a structure with fewer correlations than {spec.text}, "
                "such as AR, or merge times"
            )
        width = min(band, T - 1) + 1
        if not own.frame.groups and _too_few(own, stratum == s, seen, width):
            raise DesignError(
                f"{spec.text} has free correlations between {width} values of {own.times.column!r}, and "
                f"there are {len(seen)} groups{own.of_stratum(s)}: with so few the estimated correlation "
                "matrix is singular and the likelihood infinite; use a structure with fewer parameters"
            )


def _too_few(own: Bound, groups: np.ndarray, seen: np.ndarray, width: int) -> bool:
    """Whether some combination of the residuals at all labels is zero in every group.

    That is so if there are fewer groups than labels; or as many, where fixed effects differ by label and fit
    some of the groups exactly, which least squares shows if all groups are complete.
    """
    X = own.frame.X
    if len(seen) < width:
        return True
    if width < seen.shape[1] or len(seen) > width + X.shape[1] or not seen.all():
        return False
    y = own.frame.y_less_offset
    residuals = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    design = own.design
    table = np.zeros((design.size, width))
    table[design.codes, design.times.astype(np.int64)] = residuals
    return bool(np.linalg.matrix_rank(table[groups]) < width)


def _undetermined_steps(together: np.ndarray) -> list[tuple[int, int]]:
    """Neighbouring labels whose correlation no products of correlations determine.

    The correlation of labels i < j is the product of those of the steps between, so the logarithms of those
    observed are sums over the steps; a step is determined if it is in their span.
    """
    T = len(together)
    i, j = np.nonzero(np.triu(together, 1))
    steps = np.arange(T - 1)
    rows = ((steps >= i[:, None]) & (steps < j[:, None])).astype(float)
    if len(rows) and np.linalg.matrix_rank(rows) == T - 1:
        return []
    known = rows.T @ np.linalg.pinv(rows.T) if len(rows) else np.zeros((T - 1, T - 1))
    return [(int(s), int(s) + 1) for s in steps if known[s, s] < 1 - 1e-9]


def _check_lags(own: Bound) -> None:
    """Refuse structures over lags with fewer different lags than parameters, or without those they need."""
    spec, design = own.spec, own.design
    needed: set[int] = set()
    number = design.covariance.family.num_params
    if isinstance(spec, MA):
        needed = set(range(1, spec.order + 1))
    elif isinstance(spec, Toeplitz):
        order = spec.order
        if order is None:
            order = max(int(lag) for lags in _distinct_lags(design, None) for lag in lags)
        needed = set(range(1, order + 1))
    elif not isinstance(spec, AR | ARMA | Exponential):
        return
    for s, lags in enumerate(_distinct_lags(design, len(needed) if needed else number, needed)):
        absent = sorted(needed - {int(lag) for lag in lags})
        if absent:
            spaced = f"; the smallest is {min(lags):g}" if min(lags) > 1 else ""
            raise DesignError(
                f"no two rows of a group{own.of_stratum(s)} are {listed(absent, 5)} apart in "
                f"{own.times.column!r}{spaced}, so {spec.text} has correlations that cannot be estimated; "
                "number the times 0, 1, 2, ..., choose another order, or use Exponential or Unstructured"
            )
        if len(lags) < number:
            raise DesignError(
                f"rows of a group{own.of_stratum(s)} are {listed(f'{lag:g}' for lag in sorted(lags))} apart "
                f"in {own.times.column!r}: too few different lags for the {number} parameters of "
                f"{spec.text}; choose a smaller order"
            )


def _distinct_lags(
    design: ResidualDesign, enough: int | None, needed: set[int] | None = None
) -> list[set[float]]:
    """Different times between rows of a group, by stratum; some of them, where so many, or those, do."""
    order = np.lexsort((design.times, design.codes))
    codes, times, stratum = design.codes[order], design.times[order], design.stratum[order]
    found: list[set[float]] = [set() for _ in range(design.covariance.strata)]
    for step in range(1, int(np.bincount(codes).max())):
        same = codes[step:] == codes[:-step]
        lags, of = (times[step:] - times[:-step])[same], stratum[step:][same]
        for s, own in enumerate(found):
            own.update(np.unique(lags[of == s]).tolist())
        if enough is not None and all(needed <= own if needed else len(own) >= enough for own in found):
            break
    return found

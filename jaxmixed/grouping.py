"""Levels of one column, and of combinations of columns such as ``school:class``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, printable
from jaxmixed.ingest import DataColumn, Table, example_value


@dataclass(frozen=True, slots=True, eq=False)
class GroupCoding:
    """Levels of a grouping: of each column, and the observed combinations as sorted keys."""

    columns: tuple[str, ...]
    column_levels: tuple[pd.Index, ...]
    keys: tuple[np.ndarray, ...]
    levels: pd.Index

    def parts(self) -> tuple[np.ndarray, ...]:
        """For every column the number of its level in each of the levels of the grouping."""
        parts: tuple[np.ndarray, ...] = (np.arange(len(self.column_levels[0])),)
        for levels, key in zip(self.column_levels[1:], self.keys, strict=True):
            left, right = np.divmod(key, len(levels))
            parts = (*(part[left] for part in parts), right)
        return parts


def factorize(column: DataColumn, kept: np.ndarray | None) -> tuple[np.ndarray, pd.Index]:
    """Codes and levels of a column at the kept rows; no value may be missing there.

    Levels are those observed, ordered as R's ``factor`` orders them: categories in their own order, other
    values sorted (text by code point), and by appearance where values cannot be compared (1 and "1").
    """
    values = column.rows(kept)
    if column.kind == "category":
        present, codes = _observed(values.codes, 0, len(values.categories))
        return codes, values.categories if len(present) == len(values.categories) else values.categories[
            present
        ]
    if column.kind == "boolean":
        present, codes = _observed(values.view(np.int8), 0, 2)
        return codes, pd.Index(np.array([False, True])[present])
    if column.kind == "number" and values.dtype.kind in "iu" and values.size:
        low, high = int(values.min()), int(values.max())
        if high - low < 4 * values.size + 1024 and high <= np.iinfo(np.int64).max:
            present, codes = _observed(values, low, high - low + 1)
            return codes, pd.Index((present + low).astype(values.dtype))
    try:
        codes, uniques = pd.factorize(values)
    except TypeError:
        raise DataError(
            f"column {column.name!r} names groups with values that cannot be compared, e.g. "
            f"{example_value(column, kept)}; convert it to text"
        ) from None
    return _in_order(codes, uniques)


def _observed(codes: np.ndarray, low: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct integers (minus ``low``) and the codes that number them, by counting."""
    shifted = (
        codes.astype(np.int64) if low == 0 else np.subtract(codes, low, dtype=np.int64, casting="unsafe")
    )
    present = np.flatnonzero(np.bincount(shifted, minlength=size))
    if len(present) == size:
        return present, shifted
    rank = np.empty(size, dtype=np.int64)
    rank[present] = np.arange(len(present))
    return present, rank[shifted]


def _in_order(codes: np.ndarray, uniques: Any) -> tuple[np.ndarray, pd.Index]:
    """Sort the levels when they can be compared, and renumber the codes."""
    if isinstance(uniques, np.ndarray) and uniques.dtype != object:
        order = np.argsort(uniques, kind="stable")
    else:
        objects = np.asarray(uniques, dtype=object)
        try:
            order = np.array(sorted(range(len(objects)), key=objects.__getitem__), dtype=np.int64)
        except TypeError:
            return codes.astype(np.int64, copy=False), pd.Index(uniques)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[codes], pd.Index(uniques[order])


def level_labels(levels: pd.Index) -> tuple[str, ...]:
    """Levels as R prints them (1.0 as ``1``, True as ``TRUE``); distinct levels get distinct labels."""
    labels = tuple(_label(level) for level in levels.tolist())
    if len(set(labels)) < len(labels):
        return tuple(repr(level) for level in levels.tolist())
    return labels


def _label(level: Any) -> str:
    if isinstance(level, str):
        return level
    if isinstance(level, bool):
        return "TRUE" if level else "FALSE"
    if isinstance(level, float):
        return f"{level:.15g}"
    if isinstance(level, pd.Timestamp) and level == level.normalize() and level.tz is None:
        return level.date().isoformat()
    return str(level)


def check_order(levels: pd.Index, label: str) -> None:
    """Refuse levels whose order as texts is not that of the numbers in them, where their order matters.

    Raises
    ------
    DataError
        Naming the column and two of the levels.

    Examples
    --------
    >>> check_order(pd.Index(["week 1", "week 2"]), "visit")
    >>> try:
    ...     check_order(pd.Index(["week 1", "week 10", "week 2"]), "visit")
    ... except DataError as problem:
    ...     print(str(problem)[:48])
    the order of the levels of 'visit' is not known:
    """

    def natural(text: str) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]

    for before, after in pairwise(str(level) for level in levels):
        if natural(before) > natural(after):
            raise DataError(
                f"the order of the levels of {label!r} is not known: as texts {before!r} comes before "
                f"{after!r}; make the column an ordered categorical, e.g. pd.Categorical(values, "
                "categories=[...], ordered=True)"
            )


def level_positions(levels: pd.Index, wanted: Iterable[Any], label: str) -> np.ndarray:
    """Positions of some levels of a grouping, matched by value, then as they are printed.

    Parameters
    ----------
    levels : pandas.Index
    wanted : iterable
    label : str
        Name of the grouping.

    Returns
    -------
    (k,) int64 array

    Raises
    ------
    DataError
        Naming a level that the grouping does not have, or that is asked for twice.

    Examples
    --------
    >>> level_positions(pd.Index(["a", "b", "7"]), ["b", 7], "school").tolist()
    [1, 2]
    """
    asked = list(wanted)
    by_label: dict[str, int] = {}
    found = []
    for value in asked:
        position = int(levels.get_indexer(pd.Index([value]))[0]) if pd.api.types.is_scalar(value) else -1
        if position < 0:
            by_label = by_label or {text: place for place, text in enumerate(level_labels(levels))}
            position = by_label.get(str(value), -1)
        if position < 0:
            near = difflib.get_close_matches(str(value), list(by_label), n=3)
            known = near or list(by_label)[:3]
            raise DataError(
                f"{printable(label)} has no level {printable(value)!r} among its {len(levels):,}; "
                f"{'did you mean' if near else 'the first are'} "
                f"{', '.join(repr(printable(name)) for name in known)}{'?' if near else ''}"
            )
        if position in found:
            raise DataError(f"the level {printable(value)!r} of {printable(label)} is given twice")
        found.append(position)
    return np.array(found, dtype=np.int64)


def code_group(
    columns: tuple[str, ...], table: Table, kept: np.ndarray | None
) -> tuple[np.ndarray, GroupCoding]:
    """Codes and levels of a grouping; of several columns only the observed combinations are levels."""
    codes, levels = factorize(table.columns[columns[0]], kept)
    if len(columns) == 1:
        return codes, GroupCoding(columns, (levels,), (), levels)
    column_levels: list[pd.Index] = [levels]
    keys: list[np.ndarray] = []
    for name in columns[1:]:
        further, further_levels = factorize(table.columns[name], kept)
        combined = codes * len(further_levels) + further
        codes, observed = factorize(DataColumn(name, "number", combined, None), None)
        column_levels.append(further_levels)
        keys.append(observed.to_numpy())
    coding = GroupCoding(columns, tuple(column_levels), tuple(keys), pd.Index([]))
    return codes, replace(coding, levels=_combination_labels(coding))


def _combination_labels(coding: GroupCoding) -> pd.Index:
    """Labels "a:b"; where two combinations would read alike the parts are quoted."""
    parts = coding.parts()
    labels = _joined([level_labels(levels) for levels in coding.column_levels], parts)
    if labels.is_unique:
        return labels
    return _joined(
        [tuple(repr(level) for level in levels.tolist()) for levels in coding.column_levels], parts
    )


def _joined(texts: list[tuple[str, ...]], parts: tuple[np.ndarray, ...]) -> pd.Index:
    joined = np.array(texts[0], dtype=object)[parts[0]]
    for text, part in zip(texts[1:], parts[1:], strict=True):
        joined = joined + ":" + np.array(text, dtype=object)[part]
    return pd.Index(joined)


def known_groups(
    coding: GroupCoding, table: Table, kept: np.ndarray | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Training codes of new groups (-1 where unknown) and the labels of the unknown ones."""
    codes: np.ndarray | None = None
    labels: list[np.ndarray] = []
    for position, (name, levels) in enumerate(zip(coding.columns, coding.column_levels, strict=True)):
        new_codes, uniques = factorize(table.columns[name], kept)
        labels.append(np.array(level_labels(uniques), dtype=object)[new_codes])
        matched = levels.get_indexer(uniques)[new_codes].astype(np.int64)
        if codes is None:
            codes = matched
            continue
        keys = coding.keys[position - 1]
        combined = codes * len(levels) + matched
        place = np.minimum(np.searchsorted(keys, combined), len(keys) - 1)
        codes = np.where((codes >= 0) & (matched >= 0) & (keys[place] == combined), place, -1)
    assert codes is not None  # a grouping has at least one column
    unknown = np.flatnonzero(codes < 0)
    joined = (":".join(part[row] for part in labels) for row in unknown)
    return codes, tuple(dict.fromkeys(joined))

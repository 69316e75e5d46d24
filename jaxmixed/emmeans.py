"""Estimated marginal means and slopes of a fit, and joint tests of its terms on the reference grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import DataError, DesignError
from jaxmixed.formatting import NotedFrame
from jaxmixed.marginal_means import MarginalMeans, as_names
from jaxmixed.reference_grid import ReferenceGrid, averaged, factor_coding, reference_grid

if TYPE_CHECKING:
    from jaxmixed.fixed_inference import FixedInference
    from jaxmixed.frame import ModelFrame

OVERALL = "1"
_PIECES = re.compile(r"`([^`]+)`|([^*:+,|`]+)|([*:+,|])")
_WEIGHTING = {
    "equal": "equally weighted",
    "proportional": "weighted by their numbers of rows",
    "outer": "weighted by the products of their numbers of rows",
    "cells": "weighted by the numbers of rows of the cells",
    "flat": "cells with rows equally weighted",
}


def parse_spec(
    spec: str | Sequence[str], by: str | Sequence[str] | None, names: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Variables of the means, and those of their groups.

    Parameters
    ----------
    spec : str or sequence of str
        ``"a"``, ``["a", "b"]``, ``"a * b"``, ``"a | b"``, ``"~ a | b"``; ``"1"`` for the overall mean.
    by : str or sequence of str, optional
        Further groups.
    names : sequence of str
        Variables of the reference grid.

    Returns
    -------
    primary, by : tuple of str

    Raises
    ------
    DataError
        Naming what is no variable.

    Examples
    --------
    >>> parse_spec("a * b | c", None, ["a", "b", "c"])
    (('a', 'b'), ('c',))
    """
    primary, groups = _split(spec, names)
    groups += [] if by is None else as_names("by", by)
    for name in (*primary, *groups):
        if name not in names:
            known = ", ".join(map(repr, names)) or "none"
            raise DataError(
                f"{name!r} is no column of the fixed effects, so there are no means by it; these columns are"
                f" {known}"
            )
    groups = list(dict.fromkeys(groups))
    primary = [name for name in dict.fromkeys(primary) if name not in groups]
    return tuple(primary), tuple(groups)


def _split(spec: str | Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    if not isinstance(spec, str):
        return as_names("spec", spec), []
    if spec in names:
        return [spec], []
    left, tilde, right = spec.rpartition("~")
    if tilde and left.strip():
        raise DataError(
            f"{spec!r} asks for means and contrasts at once; write .emmeans({right.strip()!r})"
            f".contrast({left.strip()!r})"
        )
    sides: list[list[str]] = [[]]
    for quoted, plain, separator in _PIECES.findall(right):
        if separator == "|":
            sides.append([])
        elif quoted or plain.strip():
            sides[-1].append(quoted or plain.strip())
    if len(sides) > 2:
        raise DataError(f"{spec!r} has several bars; write the groups together: 'a | b * c'")
    wanted = [name for name in sides[0] if name != OVERALL]
    if not sides[0]:
        raise DataError(f"{spec!r} names no column; give one, several ('a * b'), or '1' for the overall mean")
    return wanted, sides[1] if len(sides) > 1 else []


def marginal_means(
    frame: ModelFrame,
    inference: FixedInference,
    spec: str | Sequence[str],
    by: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
    weights: str,
    level: float,
    slope_of: str | None = None,
) -> MarginalMeans:
    """Marginal means, or slopes in a column; see `MixedResults.emmeans` and `MixedResults.emtrends`."""
    normal_quantile(level)
    _check_at(at)
    if slope_of is not None:
        _check_slope(frame, slope_of)
    grid = reference_grid(frame, at, slope_of)
    primary, groups = parse_spec(spec, by, grid.names)
    return _means(grid, inference, primary, groups, weights, level, slope_of)


def _check_at(at: Any) -> None:
    if not (at is None or isinstance(at, Mapping)):
        raise DataError(f"at is {at!r}; give values by column, such as {{'x': [0, 1]}}")


def _check_slope(frame: ModelFrame, column: str) -> None:
    if column not in frame.columns:
        known = ", ".join(map(repr, frame.columns)) or "none"
        raise DataError(f"{column!r} is no column of the fixed effects, so it has no slope; they are {known}")
    if factor_coding(frame, column) is not None:
        raise DesignError(f"{column!r} is a factor, so it has no slope; compare its levels by emmeans")


def _means(
    grid: ReferenceGrid,
    inference: FixedInference,
    primary: tuple[str, ...],
    by: tuple[str, ...],
    weights: str,
    level: float,
    slope_of: str | None,
) -> MarginalMeans:
    levels, L, offset = averaged(grid, (*primary, *by), weights)
    if not primary:
        levels.insert(0, OVERALL, "overall")
    return MarginalMeans(
        inference=inference,
        levels=levels,
        L=L,
        offset=offset,
        by=by,
        level=level,
        what="means" if slope_of is None else "slopes",
        notes=tuple(_notes(grid, (*primary, *by), weights, slope_of)),
    )


def _notes(grid: ReferenceGrid, kept: Sequence[str], weights: str, slope_of: str | None) -> list[str]:
    """How the means came about."""
    notes = [] if slope_of is None else [f"slopes in {slope_of}"]
    over = [own.name for own in grid.variables if len(own.levels) > 1 and own.name not in kept]
    if over:
        notes.append(f"averaged over the levels of {', '.join(over)}, {_WEIGHTING[weights]}")
    linear = {
        own.name: float(own.levels[0]) for own in grid.variables if own.at_mean and own.name not in kept
    }
    if linear:
        notes.append("at the means " + ", ".join(f"{name} = {value:.6g}" for name, value in linear.items()))
    if grid.offset.any() and slope_of is None:
        notes.append(f"with an offset of {grid.offset.mean():.6g} on average")
    inside = {*kept} if slope_of is None else {*kept, slope_of}
    both = [
        name
        for name in over
        if any(name in columns and inside & columns for columns in _term_columns(grid.frame))
    ]
    if both:
        notes.append(
            f"averages over {', '.join(both)} may hide differences, for the model has interactions with them"
        )
    return notes


def _term_columns(frame: ModelFrame) -> list[set[str]]:
    """Columns of each fixed-effects term."""
    return [{name for expr in term.factors for name in expr.columns} for term in frame.encoding.fixed.terms]


def joint_tests(
    frame: ModelFrame,
    inference: FixedInference,
    by: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
    weights: str,
) -> pd.DataFrame:
    """Joint tests of the terms on the reference grid; see `MixedResults.joint_tests`."""
    _check_at(at)
    grid = reference_grid(frame, at, None, spread=1.0)
    _, groups = parse_spec([], by, grid.names)
    terms = _term_columns(frame)
    compared = [own.name for own in grid.variables if len(own.levels) > 1 and own.name not in groups]
    if not compared:
        raise DesignError("no variable has several levels in the reference grid, so there is nothing to test")
    found = []
    for size in range(1, len(compared) + 1):
        for variables in itertools.combinations(compared, size):
            if not any(set(variables) <= columns for columns in terms):
                continue
            means = _means(grid, inference, variables, groups, weights, 0.95, None)
            table = means.contrast("consec", interaction=True).test(joint=True)
            table.insert(0, "term", ":".join(variables))
            found.append(table)
    result = NotedFrame(pd.concat(found, ignore_index=True))
    notes = {str(table.attrs["note"]) for table in found if "note" in table.attrs}
    left = result[result["num_df"] == 0]["term"].drop_duplicates()
    if len(left):
        notes.add(f"nothing of these terms can be tested, for cells have no rows: {', '.join(left)}")
    result = NotedFrame(result[result["num_df"] > 0].set_index(["term", *groups] if groups else "term"))
    numbers = [own.name for own in grid.variables if own.coding is None and own.around_mean]
    if numbers:
        notes.add(f"numbers at one below and above their means: {', '.join(numbers)}")
    if notes:
        result.attrs["note"] = "; ".join(sorted(notes))
    return result

"""The grid of a power analysis: what `vary` asks for, as designs, effects, and points that combine them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed.errors import DataError, printable
from jaxmixed.power_results import COLUMNS, PowerAxis
from jaxmixed.resizing import container, every_row, grouping, innermost

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

KINDS = ("groups", "size", "effects", "design")
"""What a grid can vary."""

_MAX_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class RawAxis:
    """An axis before there is a model: its kind, what it is of (None: the only one), and its values."""

    kind: str
    key: str | None
    values: tuple[Any, ...]

    @property
    def text(self) -> str:
        """How the user wrote it."""
        return f"vary[{self.kind!r}]" + ("" if self.key is None else f"[{self.key!r}]")

    def columns(self, frame: ModelFrame) -> tuple[str, ...]:
        """The grouping whose number of levels, or of rows in each, varies."""
        if self.key is not None:
            columns = grouping(frame, self.key, self.text)
            if self.kind == "groups":
                _check_not_an_effect(frame, columns[-1], self.text)
            return columns
        if self.kind == "size":
            return innermost(frame, self.text)
        labels = list(dict.fromkeys(group.label for group in frame.groups))
        if len(labels) != 1:
            known = ", ".join(map(repr, labels)) or "none"
            raise DataError(f"{self.text} must say which grouping it counts; the model has {known}")
        columns = grouping(frame, labels[0], self.text)
        _check_not_an_effect(frame, columns[-1], self.text)
        return columns


@dataclass(frozen=True, slots=True)
class DesignPoint:
    """One design of the grid: values of the axes that are no effects."""

    axes: tuple[RawAxis, ...]
    values: tuple[Any, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the function that makes the data."""
        return {str(axis.key): value for axis, value in self._of("design")}

    def groups(self, frame: ModelFrame) -> list[tuple[tuple[str, ...], int]]:
        """Groupings and their numbers of levels, coarse ones first."""
        found = [(axis.columns(frame), value) for axis, value in self._of("groups")]
        return sorted(found, key=lambda item: len(item[0]))

    def size(self, frame: ModelFrame) -> list[tuple[tuple[str, ...], int]]:
        """The grouping whose rows are counted, and their number; empty if that does not vary."""
        return [(axis.columns(frame), value) for axis, value in self._of("size")]

    def _of(self, kind: str) -> list[tuple[RawAxis, Any]]:
        pairs = zip(self.axes, self.values, strict=True)
        return [(axis, value) for axis, value in pairs if axis.kind == kind]


@dataclass(frozen=True, slots=True)
class Grid:
    """All points: the combinations of the values of all axes, the last axis fastest.

    Attributes
    ----------
    axes : tuple of RawAxis
    points : tuple of tuples
        Values of the axes at each point.
    designs : tuple of DesignPoint
    effects : tuple of dict
        Coefficients by name.
    places : tuple of (int, int)
        Design and effects of each point, by number.
    """

    axes: tuple[RawAxis, ...]
    points: tuple[tuple[Any, ...], ...]
    designs: tuple[DesignPoint, ...]
    effects: tuple[dict[str, float], ...]
    places: tuple[tuple[int, int], ...]

    @property
    def effect_names(self) -> tuple[str, ...]:
        """Coefficients that vary."""
        return tuple(str(axis.key) for axis in self.axes if axis.kind == "effects")

    def describe(self, number: int) -> str:
        """A design in words, for messages."""
        design = self.designs[number]
        pairs = zip(design.axes, design.values, strict=True)
        return ", ".join(f"{axis.text} = {printable(value)}" for axis, value in pairs)

    def named(self, frame: ModelFrame) -> tuple[PowerAxis, ...]:
        """The axes with their names in the table and on a plot."""
        found: list[PowerAxis] = []
        for axis in self.axes:
            name, label = _names(axis, frame)
            while name in COLUMNS or any(name == other.name for other in found):
                name += "_"
            found.append(PowerAxis(name, axis.kind, label, axis.values))
        return tuple(found)


def grid_of(vary: Any, has_function: bool) -> Grid:
    """Read `vary`.

    Parameters
    ----------
    vary : mapping or None
    has_function : bool
        Whether the data come from a function.

    Returns
    -------
    Grid

    Raises
    ------
    DataError
        Naming the entry at fault.

    Examples
    --------
    >>> grid = grid_of({"groups": {"school": [10, 20]}, "effects": {"x": [0, 0.5]}}, False)
    >>> grid.points
    ((10, 0.0), (10, 0.5), (20, 0.0), (20, 0.5))
    >>> len(grid.designs), grid.places
    (2, ((0, 0), (0, 1), (1, 0), (1, 1)))
    """
    axes = _axes(vary)
    if has_function != any(axis.kind == "design" for axis in axes):
        raise DataError(
            'vary["design"] and a function as data= belong together: the one holds the arguments of the other'
        )
    points = tuple(product(*(axis.values for axis in axes)))
    if len(points) > _MAX_POINTS:
        raise DataError(f"vary= has {len(points):,} points, too many; leave some values out")
    of_effects = [axis.kind == "effects" for axis in axes]
    own = tuple(axis for axis, effect in zip(axes, of_effects, strict=True) if not effect)
    designs: dict[tuple[Any, ...], int] = {}
    effects: dict[tuple[Any, ...], int] = {}
    places = []
    for point in points:
        one = tuple(value for value, effect in zip(point, of_effects, strict=True) if not effect)
        two = tuple(value for value, effect in zip(point, of_effects, strict=True) if effect)
        places.append((designs.setdefault(one, len(designs)), effects.setdefault(two, len(effects))))
    names = [str(axis.key) for axis in axes if axis.kind == "effects"]
    return Grid(
        axes,
        points,
        tuple(DesignPoint(own, values) for values in designs),
        tuple(dict(zip(names, values, strict=True)) for values in effects),
        tuple(places),
    )


def _axes(vary: Any) -> tuple[RawAxis, ...]:
    if vary is None:
        return ()
    if not isinstance(vary, Mapping):
        raise DataError(
            f'vary={vary!r} must be a mapping such as {{"groups": {{"school": [20, 40]}}}}; its keys are'
            f" {', '.join(map(repr, KINDS))}"
        )
    axes: list[RawAxis] = []
    for kind, entry in vary.items():
        if kind not in KINDS:
            raise DataError(f"vary= has {kind!r}; its keys are {', '.join(map(repr, KINDS))}")
        if not isinstance(entry, Mapping):
            if kind in ("effects", "design"):
                what = "coefficients" if kind == "effects" else "arguments of the function data="
                raise DataError(f"vary[{kind!r}] must map names of {what} to lists of values")
            axes.append(_axis(kind, None, entry))
            continue
        if kind == "size" and len(entry) != 1:
            raise DataError(f"vary['size'] must name one grouping, not {len(entry)}")
        axes += [_axis(kind, key, values) for key, values in entry.items()]
    return tuple(axes)


def _axis(kind: str, key: Any, given: Any) -> RawAxis:
    axis = RawAxis(kind, key, ())
    if key is not None and not isinstance(key, str):
        raise DataError(f"{axis.text}: names are texts")
    if isinstance(given, str | int | float | np.number) or not hasattr(given, "__iter__"):
        given = [given]
    values = list(given)
    if not values:
        raise DataError(f"{axis.text} is empty; give a list of values")
    if len(values) > _MAX_POINTS:
        raise DataError(f"{axis.text} has {len(values):,} points, too many; leave some values out")
    if kind != "design":
        values = [_number(axis, value) for value in values]
    if any(value == other for i, value in enumerate(values) for other in values[:i]):
        raise DataError(f"{axis.text} has a value twice: {values}")
    return RawAxis(kind, key, tuple(values))


def _number(axis: RawAxis, value: Any) -> float | int:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if axis.kind == "effects":
        if not number or not np.isfinite(value):
            raise DataError(f"{axis.text} has {value!r}; effects are finite numbers")
        return float(value)
    if not number or value < 1 or int(value) != value:
        raise DataError(f"{axis.text} has {value!r}; give positive whole numbers")
    return int(value)


def _names(axis: RawAxis, frame: ModelFrame) -> tuple[str, str]:
    """Name of an axis in the table, and on a plot."""
    if axis.kind == "effects":
        return str(axis.key), f"Effect of {printable(axis.key)}"
    if axis.kind == "design":
        return str(axis.key), printable(axis.key)
    columns = axis.columns(frame)
    if axis.kind == "groups":
        name = axis.key or ":".join(columns)
        above = container(frame, every_row(frame), columns)
        inner = f", in each {printable(above[-1])}" if above else ""
        return name, f"Number of groups: {printable(columns[-1])}{inner}"
    if not columns:
        return "size", "Number of rows"
    return "size", f"Rows in each {printable(columns[-1])}"


def _check_not_an_effect(frame: ModelFrame, column: str, what: str) -> None:
    """Refuse to make new levels of a column that has effects of its own."""
    parts = (frame.formula.fixed, *(term.effects for term in frame.formula.random))
    if any(column in effects.columns for effects in parts):
        raise DataError(
            f"{what}: {column!r} has effects in the model, so it cannot get new levels; vary another grouping"
        )

"""Sampling weights and frequency weights of a model's rows and groups, as users give them.

Weights are conditional: of a row given that its group is in the sample, of a group given that the next
coarser one is, as Stata's ``pweight()`` and ``fweight()`` options take them.

References
----------
Rabe-Hesketh & Skrondal (2006), Journal of the Royal Statistical Society A 169(4), 805-827, section 4;
Pfeffermann, Skinner, Holmes, Goldstein & Rasbash (1998), Journal of the Royal Statistical Society B 60(1),
23-40, section 3 (scaling methods 2 and 1); Graubard & Korn (1996), Statistical Methods in Medical Research
5(3), 263-281.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxmixed.errors import DataError, DesignError, FormulaError, printable
from jaxmixed.ingest import DataColumn, example_value, numbers

if TYPE_CHECKING:
    from jaxmixed.frame import GroupDesign, ModelFrame

ROWS = "obs"
"""What the weights of the rows themselves are given under."""

SCALINGS = ("size", "effective", "gk")
"""Scalings of sampling weights, as in Stata's ``pwscale()``."""

_SCALED = {
    "size": "scaled to add up to the number of units in each group",
    "effective": "scaled to add up to the effective number of units in each group",
    "gk": "of each group the mean of its rows' products, of rows none (Graubard and Korn)",
}


@dataclass(frozen=True, slots=True)
class WeightsRequest:
    """Weights that a user asks for, before there are data.

    Attributes
    ----------
    kind : str
        ``"sampling"`` or ``"frequency"``.
    columns : mapping of str to str
        Column of the weights, by grouping; ``"obs"`` for those of the rows.
    scaling : str or None
    """

    kind: Literal["sampling", "frequency"]
    columns: Mapping[str, str]
    scaling: str | None

    @property
    def argument(self) -> str:
        """Name of the argument, for messages."""
        return f"{self.kind}_weights"

    @property
    def arguments(self) -> list[str]:
        """The arguments of :func:`jaxmixed.mixed` as they are written."""
        found = [f"{self.argument}={dict(self.columns)!r}"]
        return found if self.scaling is None else [*found, f"weight_scaling={self.scaling!r}"]


@dataclass(frozen=True, slots=True, eq=False)
class SamplingFrame:
    """Weights of the rows used and of their groups, scaled.

    Attributes
    ----------
    request : WeightsRequest
        Its keys are labels of groupings.
    rows : (n,) array
        Weight of each row within its finest group.
    groups : mapping of str to (m,) array
        Of the groups of each grouping within the next coarser one; groupings without weights are left out.
    """

    request: WeightsRequest
    rows: np.ndarray
    groups: Mapping[str, np.ndarray]

    @property
    def text(self) -> str:
        """Columns of the weights and what they belong to, for tables."""
        of = {ROWS: "rows"}
        shown = [f"{column} ({of.get(key, key)})" for key, column in self.request.columns.items()]
        scaling = "" if self.request.scaling is None else f"; {_SCALED[self.request.scaling]}"
        return f"{', '.join(shown)}{scaling}"


def weights_request(
    sampling_weights: Any, frequency_weights: Any, weight_scaling: Any, method: str, others: Mapping[str, Any]
) -> WeightsRequest | None:
    """Check what :func:`jaxmixed.mixed` was given, as far as that goes without data.

    Parameters
    ----------
    sampling_weights, frequency_weights : str, mapping or None
        Column of the rows' weights, or columns by grouping.
    weight_scaling : str or None
    method : str
    others : mapping
        Other arguments that do not go with weights, by name.

    Returns
    -------
    WeightsRequest or None

    Raises
    ------
    DataError, DesignError
        Naming the argument.

    Examples
    --------
    >>> weights_request({"obs": "w1", "school": "w2"}, None, "size", "ml", {}).columns["school"]
    'w2'
    """
    if weight_scaling is not None and (sampling_weights is None or weight_scaling not in SCALINGS):
        known = ", ".join(map(repr, SCALINGS))
        raise DataError(
            f"weight_scaling={weight_scaling!r} needs sampling_weights="
            if sampling_weights is None
            else f"weight_scaling={weight_scaling!r} is not known; choose one of {known}, or None"
        )
    if sampling_weights is None and frequency_weights is None:
        return None
    if sampling_weights is not None and frequency_weights is not None:
        raise DataError("give sampling_weights= or frequency_weights=, not both")
    given = frequency_weights if sampling_weights is None else sampling_weights
    request = WeightsRequest(
        "frequency" if sampling_weights is None else "sampling", _columns_by_key(given), weight_scaling
    )
    if not request.columns:
        raise DataError(f"{request.argument}= names no column; it takes e.g. {{'obs': 'w1', 'school': 'w2'}}")
    if method != "ml":
        raise DesignError(
            f"{request.argument}= needs method='ml': the restricted likelihood has no version in which rows"
            " and groups count other than once"
        )
    for name, other in others.items():
        if other is not None:
            raise DesignError(f"{request.argument}= does not go with {name}=: {_CLASHES[name]}")
    return request


_CLASHES = {
    "weights": "a weight of a row would be both a number of rows and the precision of one",
    "residuals": (
        "with correlated residuals the rows of a group do not enter the likelihood one by one, so that they"
        " cannot be weighted one by one"
    ),
}


def _columns_by_key(given: Any) -> dict[str, str]:
    if isinstance(given, str):
        return {ROWS: given}
    if not isinstance(given, Mapping):
        raise DataError(
            f"weights are given as {type(given).__name__}; they are the name of a column or a mapping such as"
            " {'obs': 'w1', 'school': 'w2'} (put arrays into the data as columns)"
        )
    for key, column in given.items():
        if not isinstance(key, str) or not isinstance(column, str):
            raise DataError(
                f"the weights of {key!r} are given as {type(column).__name__}; give the name of a column (put"
                " arrays into the data)"
            )
    return dict(given)


def sampling_frame(request: WeightsRequest | None, frame: ModelFrame) -> SamplingFrame | None:
    """Weights of the rows used and of their groups.

    Parameters
    ----------
    request : WeightsRequest or None
    frame : ModelFrame
        With the columns of the weights in ``frame.also``.

    Returns
    -------
    SamplingFrame or None

    Raises
    ------
    DataError, DesignError, FormulaError
        Naming the column, grouping or level at fault.
    """
    if request is None:
        return None
    groups = _nested_groups(request, frame)
    columns = {_resolved(key, groups, request): column for key, column in request.columns.items()}
    if len(columns) < len(request.columns):
        raise DataError(f"{request.argument}= gives weights of one grouping twice: {dict(request.columns)}")
    request = WeightsRequest(request.kind, columns, request.scaling)
    values = {key: _weights(request, frame.also[column]) for key, column in columns.items()}
    rows = values.pop(ROWS, np.ones(len(frame.y)))
    by_group = {
        group.label: _of_groups(group, values[group.label], columns[group.label])
        for group in groups
        if group.label in values
    }
    if request.scaling is None:
        return SamplingFrame(request, rows, by_group)
    return SamplingFrame(request, *_scaled(request.scaling, groups, rows, by_group))


def _nested_groups(request: WeightsRequest, frame: ModelFrame) -> list[GroupDesign]:
    """Groupings, finest first, each nested in the next."""
    groups = sorted(
        {group.label: group for group in frame.groups}.values(), key=lambda own: -own.num_recorded
    )
    what = f"{request.argument}="
    if not groups:
        raise DesignError(f"{what} needs random effects: the model {frame.formula.text} has none")
    for group in groups:
        if group.relationship is not None:
            raise DesignError(
                f"{what} needs independent levels, and those of {printable(group.label)!r} are related by a"
                " known matrix"
            )
    for fine, coarse in pairwise(groups):
        owner = np.empty(fine.num_recorded, dtype=np.int64)
        owner[fine.codes] = coarse.codes
        if not np.array_equal(owner[fine.codes], coarse.codes):
            raise DesignError(
                f"{what} needs nested groups, and {printable(fine.label)!r} is crossed with"
                f" {printable(coarse.label)!r}: a weight of a level of one would have to count effects of the"
                " other"
            )
    return groups


def _resolved(key: str, groups: list[GroupDesign], request: WeightsRequest) -> str:
    """Label of the grouping that a key means; "obs" for the rows."""
    labels = [group.label for group in groups]
    if key == ROWS:
        if ROWS in labels:
            raise DataError(f"{ROWS!r} means the rows, and a grouping has that name; rename its column")
        return key
    if key in labels:
        return key
    # Of a nested grouping, "school:class", the column that only it has.
    found = []
    for number, group in enumerate(groups):
        coarser = {name for other in groups[number + 1 :] for name in other.columns}
        if key in group.columns and key not in coarser:
            found.append(group.label)
    if len(found) != 1:
        known = ", ".join(repr(printable(name)) for name in (ROWS, *labels))
        raise FormulaError(
            f"{request.argument}= has weights of {key!r}, which "
            + ("the formula does not group by" if not found else "several groupings contain")
            + f"; give them for {known}"
        )
    return found[0]


def _weights(request: WeightsRequest, column: DataColumn) -> np.ndarray:
    """Positive numbers of a column, whole ones as frequencies."""
    what = f"the {request.kind} weights {column.name!r}"
    if column.kind != "number":
        raise DataError(f"{what} hold {column.phrase}, e.g. {example_value(column, None)}; give numbers")
    values = np.array(numbers(column, None, f"{request.kind} weights"), dtype=np.float64)
    lowest = float(values.min())
    if lowest <= 0:
        raise DataError(
            f"{what} contain {lowest:g}; weights must be positive"
            + (": leave rows of weight zero out of the data" if lowest == 0 else "")
        )
    fractions = values != np.rint(values)
    if request.kind == "frequency" and fractions.any():
        raise DataError(
            f"{what} contain {values[fractions][0]:g}; frequencies are whole numbers (inverse probabilities"
            " of selection are sampling_weights=)"
        )
    return values


def _of_groups(group: GroupDesign, values: np.ndarray, column: str) -> np.ndarray:
    """One weight per group of weights that are the same in all its rows."""
    own = np.empty(group.num_recorded)
    own[group.codes] = values
    astray = np.flatnonzero(own[group.codes] != values)
    if len(astray):
        code = group.codes[astray[0]]
        raise DataError(
            f"the weights {column!r} of {printable(group.label)!r} differ within"
            f" {printable(str(group.levels[code]))}:"
            f" {values[astray[0]]:g} and {own[code]:g}; a group has one weight"
        )
    return own


def scaled_weights(weights: np.ndarray, codes: np.ndarray, scaling: str) -> np.ndarray:
    """Weights of units scaled within the groups that hold them.

    Parameters
    ----------
    weights : (n,) array
    codes : (n,) int array
        Group of each unit.
    scaling : {"size", "effective"}
        So that they add up to the number of the group's units, or to their effective number
        ``(sum w)**2 / sum w**2``.

    Returns
    -------
    (n,) array

    Examples
    --------
    >>> w, codes = np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1])
    >>> scaled_weights(w, codes, "size"), scaled_weights(w, codes, "effective")
    (array([0.5, 1.5, 1. ]), array([0.4, 1.2, 1. ]))
    """
    sums = np.bincount(codes, weights)
    if scaling == "size":
        factor = np.bincount(codes) / np.where(sums > 0, sums, 1.0)
    else:
        squares = np.bincount(codes, weights**2)
        factor = sums / np.where(squares > 0, squares, 1.0)
    return np.asarray(weights * factor[codes])


def _scaled(
    scaling: str, groups: list[GroupDesign], rows: np.ndarray, by_group: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weights of rows and groups, each scaled within the next coarser grouping; the coarsest are left."""
    finest = groups[0]
    if scaling == "gk":
        if len(groups) > 1:
            labels = ", ".join(printable(group.label) for group in groups)
            raise DesignError(
                f"weight_scaling='gk' is for models of one grouping, not {labels}: use 'size' or 'effective'"
            )
        own = by_group.get(finest.label, np.ones(finest.num_recorded))
        means = np.bincount(finest.codes, rows) / np.bincount(finest.codes) * own
        return np.ones(len(rows)), {finest.label: means}
    found = dict(by_group)
    for fine, coarse in pairwise(groups):
        if fine.label in found:
            owner = np.empty(fine.num_recorded, dtype=np.int64)
            owner[fine.codes] = coarse.codes
            found[fine.label] = scaled_weights(found[fine.label], owner, scaling)
    return scaled_weights(rows, finest.codes, scaling), found

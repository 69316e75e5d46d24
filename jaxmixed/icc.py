"""Intraclass correlations: how alike two observations of one group are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.formatting import NotedFrame
from jaxmixed.tables import distinct_groups

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame
    from jaxmixed.inference import VarianceInference

Kind = Literal["correlation", "share"]
_INTERCEPT = "(Intercept)"


@dataclass(frozen=True, slots=True)
class _Level:
    """A grouping and the positions of its intercept variances among the variance parameters."""

    group: GroupDesign
    positions: tuple[int, ...]


def intraclass_correlation(
    frame: ModelFrame, estimates: Estimates, inference: VarianceInference, kind: Kind, level: float
) -> pd.DataFrame:
    """Table of intraclass correlations, outermost grouping first.

    See `MixedResults.icc`, which calls this.
    """
    if kind not in ("correlation", "share"):
        raise DataError(
            f"kind is {kind!r}; icc() gives kind='correlation' (of two observations of a group) or 'share'"
        )
    half_width = normal_quantile(level)
    if not estimates.terms:
        raise DesignError(
            "a linear model has no groups, so there is no intraclass correlation; add a term such as (1 |"
            " school)"
        )
    levels = _levels(frame, estimates, inference)
    if kind == "correlation":
        _require_nested(levels)
    num_values = len(inference.values)
    involved = sorted({position for item in levels for position in item.positions} | {num_values - 1})
    rows = []
    for i, item in enumerate(levels):
        inside = (
            [p for other in levels[: i + 1] for p in other.positions]
            if kind == "correlation"
            else list(item.positions)
        )
        rows.append(_share(inference, inside, involved, half_width))
    index = pd.Index([item.group.label for item in levels], name="group")
    table = NotedFrame(
        rows, index=index, columns=["estimate", "std_error", "conf_low", "conf_high"], dtype=np.float64
    )
    note = _note(frame, estimates)
    if note:
        table.attrs["note"] = note
    return table


def _levels(frame: ModelFrame, estimates: Estimates, inference: VarianceInference) -> list[_Level]:
    """Groupings from the fewest levels to the most, with their intercept variances."""
    positions: dict[str, list[int]] = {}
    for position, (number, i, j) in enumerate(inference.index):
        if number < 0 or i != j:
            continue
        term = estimates.terms[number]
        # A structure with one common variance lists it once, under its first effect.
        common = term.structure in ("identity", "exchangeable") and _INTERCEPT in term.names and i == 0
        if term.names[i] == _INTERCEPT or common:
            positions.setdefault(term.group, []).append(position)
    groups = distinct_groups(frame, estimates)
    for group in groups:
        if group.label not in positions:
            raise DesignError(
                f"the random effects of {printable(group.label)} have no intercept, so the variance that its"
                " levels share is not defined at one point; add an intercept to the term, e.g. (1 +"
                f" {printable(group.names[-1])} | {printable(group.label)})"
            )
    found = [_Level(group, tuple(positions[group.label])) for group in groups]
    return sorted(found, key=lambda item: len(item.group.levels))


def _require_nested(levels: list[_Level]) -> None:
    for outer, inner in pairwise(levels):
        image = np.zeros(len(inner.group.levels), dtype=np.int64)
        image[inner.group.codes] = outer.group.codes
        if not np.array_equal(image[inner.group.codes], outer.group.codes):
            names = f"{printable(outer.group.label)} and {printable(inner.group.label)}"
            raise DesignError(
                f"{names} are crossed, so neither correlation contains the other; the share of each in the"
                " variance is defined: icc(kind='share')"
            )


def _share(
    inference: VarianceInference, inside: list[int], involved: list[int], half_width: float
) -> tuple[float, float, float, float]:
    """Some variances over all, with delta-method standard error and limits from the logit scale."""
    values = inference.values
    total, part = float(values[involved].sum()), float(values[inside].sum())
    estimate = part / total
    gradient = np.zeros(len(values))
    gradient[involved] = -part / total**2
    gradient[inside] += 1 / total
    # A variance on the boundary is held there, as it is in the standard errors of the other parameters.
    free = ~inference.on_boundary
    gradient[~free] = 0.0
    held = all(inference.on_boundary[p] for p in inside)
    covariance = np.where(np.outer(free, free), inference.covariance, 0.0)
    variance = float(gradient @ covariance @ gradient)
    if held or not variance > 0 or not 0 < estimate < 1:
        return estimate, math.nan, math.nan, math.nan
    std_error = math.sqrt(variance)
    logit, step = math.log(part / (total - part)), half_width * std_error / (estimate * (1 - estimate))
    return estimate, std_error, _expit(logit - step), _expit(logit + step)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _note(frame: ModelFrame, estimates: Estimates) -> str:
    notes = []
    if any(name != _INTERCEPT for term in estimates.terms for name in term.names):
        notes.append("at zero of the covariates that have random effects")
    if frame.weights is not None:
        notes.append("for rows of weight 1")
    if any(group.relationship is not None for group in frame.groups):
        notes.append("for levels whose diagonal element in the relationship matrix is 1")
    return " and ".join(notes)

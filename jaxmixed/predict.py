"""Predictions on the fitted rows and on new data: Xβ̂ plus offset plus predicted random effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.encoding import encode_fixed, encode_random
from jaxmixed.errors import DataError, printable

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates, TermEstimate
    from jaxmixed.frame import GroupDesign, ModelFrame

Modes = Callable[[], Sequence[np.ndarray]]
_MAX_LISTED = 10


def linear_predictor(X: np.ndarray, beta: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """Xβ plus offset; a dropped (NaN) coefficient counts as zero, as in the model without its column."""
    values = X @ np.where(np.isnan(beta), 0.0, beta)
    return values if offset is None else values + offset


def group_contribution(Z: np.ndarray, codes: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Z b of one term by rows; a code of -1 contributes zero. Costs n q, whatever the number of groups."""
    total = np.zeros(len(codes))
    unseen = codes < 0
    for j in range(Z.shape[1]):
        total += Z[:, j] * np.where(unseen, 0.0, modes[codes, j])
    return total


def fitted_values(frame: ModelFrame, estimates: Estimates, modes: Sequence[np.ndarray]) -> np.ndarray:
    """Conditional fitted values of the model's own rows."""
    total = linear_predictor(frame.X, estimates.beta, frame.offset)
    for term, values in zip(estimates.terms, modes, strict=True):
        group = frame.groups[term.frame_index]
        total += group_contribution(group.Z, group.codes, values)
    return total


def predict(
    frame: ModelFrame,
    estimates: Estimates,
    modes: Modes,
    newdata: Any,
    random: bool | str,
    allow_new_levels: bool,
    offset: Any,
) -> pd.Series:
    """Predictions by row; see `MixedResults.predict`, which gives ``modes`` lazily."""
    chosen = _chosen_terms(frame, estimates, random)
    if newdata is None:
        if offset is not None:
            raise DataError(
                "offset= is for new data; predictions of the fitted rows use the offset of the fit"
            )
        total = linear_predictor(frame.X, estimates.beta, frame.offset)
        for i in chosen:
            group = frame.groups[estimates.terms[i].frame_index]
            total = total + group_contribution(group.Z, group.codes, modes()[i])
        return pd.Series(total, index=frame.index, name="predicted")
    X, row_ok, new_offset = encode_fixed(frame.encoding, newdata, offset=offset)
    total = linear_predictor(X, estimates.beta, new_offset)
    total[~row_ok] = np.nan
    unseen: dict[str, tuple[str, ...]] = {}
    for i in chosen:
        term = estimates.terms[i]
        Z, codes, unknown = encode_random(frame.encoding, newdata, term.frame_index)
        if unknown:
            unseen[term.group] = unknown
        # A row with a missing group or covariate has NaN in Z, and so in the prediction.
        total += group_contribution(Z, codes, modes()[i])
    if unseen and not allow_new_levels:
        raise _unseen_levels(unseen)
    return pd.Series(total, index=_row_labels(newdata, len(total)), name="predicted")


def _chosen_terms(frame: ModelFrame, estimates: Estimates, random: bool | str) -> list[int]:
    """Positions of the terms that a prediction includes."""
    if isinstance(random, bool | np.bool_):
        return list(range(len(estimates.terms))) if random else []
    labels = list(dict.fromkeys(term.group for term in estimates.terms))
    if not isinstance(random, str) or random not in labels:
        names = ", ".join(repr(printable(label)) for label in labels) or "none: this is a linear model"
        raise DataError(
            f"random is {random!r}; give True, False (population) or a group of the model ({names})"
        )
    deepest = next(frame.groups[term.frame_index] for term in estimates.terms if term.group == random)
    return [i for i, term in enumerate(estimates.terms) if _contains(term, frame, deepest)]


def _contains(term: TermEstimate, frame: ModelFrame, inner: GroupDesign) -> bool:
    """Whether each level of a grouping lies within one level of the term's grouping (or is that level)."""
    codes = frame.groups[term.frame_index].codes
    if codes is inner.codes:
        return True
    image = np.zeros(len(inner.levels), dtype=np.int64)
    image[inner.codes] = codes
    return np.array_equal(image[inner.codes], codes)


def _unseen_levels(unseen: dict[str, tuple[str, ...]]) -> DataError:
    pieces = []
    for group, levels in unseen.items():
        shown = ", ".join(printable(level) for level in levels[:_MAX_LISTED])
        more = f" and {len(levels) - _MAX_LISTED} more" if len(levels) > _MAX_LISTED else ""
        pieces.append(f"{printable(group)}: {shown}{more}")
    return DataError(
        f"newdata have levels that the model was not fitted to ({'; '.join(pieces)}); their random effects"
        " are unknown: pass allow_new_levels=True to take them as zero, or random=False for population"
        " predictions"
    )


def _row_labels(newdata: Any, num_rows: int) -> pd.Index:
    """Index of the new rows: that of a pandas frame, or of the Series in a dict; else positions."""
    if isinstance(newdata, pd.DataFrame):
        return newdata.index
    if isinstance(newdata, dict):
        for values in newdata.values():
            if isinstance(values, pd.Series):
                return values.index
    return pd.RangeIndex(num_rows)

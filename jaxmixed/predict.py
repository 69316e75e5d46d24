"""Rows to predict: Xβ̂ plus offset plus predicted random effects, for the fitted rows and for new data.

A prediction is a linear combination of the fixed effects and of the random effects of the chosen terms;
:class:`PredictionRows` holds the combinations, from which estimates, their standard errors and their
derivatives are all made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.encoding import encode_effects, encode_fixed, encode_random
from jaxmixed.errors import DataError, printable

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates, TermEstimate
    from jaxmixed.frame import GroupDesign, ModelFrame

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


class TermRows(NamedTuple):
    """What a random-effects term contributes to rows.

    Attributes
    ----------
    term : int
        Its position among the terms of the estimates.
    Z : (n, q) array
        Values of the effects; NaN in rows with a missing value.
    codes : (n,) int array
        Levels; -1 for those that the model was not fitted to, and in rows with a missing value.
    """

    term: int
    Z: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class PredictionRows:
    """Rows to predict.

    Attributes
    ----------
    X : (n, p) array
        NaN in rows with a missing value.
    offset : (n,) array or None
    terms : tuple of TermRows
        Of the terms that the predictions include.
    index : pandas.Index
        Labels of the rows.
    """

    X: np.ndarray
    offset: np.ndarray | None
    terms: tuple[TermRows, ...]
    index: pd.Index

    def values(self, beta: np.ndarray, modes: Sequence[np.ndarray]) -> np.ndarray:
        """Predictions (n,), offset included, NaN in rows with a missing value.

        Parameters
        ----------
        beta : (p,) array
            A NaN, of a dropped coefficient, counts as zero.
        modes : sequence of (m, q) arrays
            Of all terms.
        """
        total = linear_predictor(self.X, beta, self.offset)
        for own in self.terms:
            total += group_contribution(own.Z, own.codes, modes[own.term])
        return total

    def at(self, rows: slice | np.ndarray) -> PredictionRows:
        """Some of the rows, by position."""
        offset = None if self.offset is None else self.offset[rows]
        terms = tuple(TermRows(own.term, own.Z[rows], own.codes[rows]) for own in self.terms)
        return PredictionRows(self.X[rows], offset, terms, self.index[rows])


def fitted_rows(frame: ModelFrame, estimates: Estimates, random: bool | str = True) -> PredictionRows:
    """The model's own rows, with the chosen terms; views of its arrays.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    random : bool or str
        See `MixedResults.predict`.
    """
    designs = [
        (i, frame.groups[estimates.terms[i].frame_index]) for i in chosen_terms(frame, estimates, random)
    ]
    terms = tuple(TermRows(i, group.Z, group.codes) for i, group in designs)
    return PredictionRows(frame.X, frame.offset, terms, frame.index)


def fitted_values(frame: ModelFrame, estimates: Estimates, modes: Sequence[np.ndarray]) -> np.ndarray:
    """Conditional fitted values of the model's own rows."""
    return fitted_rows(frame, estimates).values(estimates.beta, modes)


def prediction_rows(
    frame: ModelFrame,
    estimates: Estimates,
    newdata: Any = None,
    random: bool | str = True,
    allow_new_levels: bool = False,
    offset: Any = None,
) -> PredictionRows:
    """Rows to predict, of the fit or of new data encoded alike.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    newdata, random, allow_new_levels, offset
        See `MixedResults.predict`.

    Returns
    -------
    PredictionRows

    Raises
    ------
    DataError
        Naming the argument, column or level at fault.
    """
    if newdata is None:
        if offset is not None:
            raise DataError(
                "offset= is for new data; predictions of the fitted rows use the offset of the fit"
            )
        return fitted_rows(frame, estimates, random)
    chosen = chosen_terms(frame, estimates, random)
    X, row_ok, new_offset = encode_fixed(frame.encoding, newdata, offset=offset)
    new_offset[~row_ok] = np.nan
    unseen: dict[str, tuple[str, ...]] = {}
    terms = []
    for i in chosen:
        term = estimates.terms[i]
        Z, codes, unknown = encode_random(frame.encoding, newdata, term.frame_index)
        if unknown:
            unseen[term.group] = unknown
        terms.append(TermRows(i, Z, codes))
    if unseen and not allow_new_levels:
        raise _unseen_levels(unseen)
    return PredictionRows(X, new_offset, tuple(terms), _row_labels(newdata, len(X)))


def effects_of_new_groups(
    frame: ModelFrame, estimates: Estimates, rows: PredictionRows, newdata: Any
) -> list[tuple[int, np.ndarray]]:
    """Positions and designs (n, q) of the terms that predictions leave out.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    rows : PredictionRows
    newdata : table or None
        What the rows were made from; grouping columns of these terms are not needed.
    """
    included = {own.term for own in rows.terms}
    left_out = [(i, term.frame_index) for i, term in enumerate(estimates.terms) if i not in included]
    if newdata is None:
        return [(i, frame.groups[k].Z) for i, k in left_out]
    return [(i, encode_effects(frame.encoding, newdata, k)) for i, k in left_out]


def chosen_terms(frame: ModelFrame, estimates: Estimates, random: bool | str) -> list[int]:
    """Positions of the terms that a prediction includes: all, none, or down to a grouping."""
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

r"""Covariance of the responses of one group that a model implies: of random effects and residuals together.

.. math:: V = \sum_k Z_k (A_k \otimes G_k) Z_k' + \sigma^2 W^{-1/2} R W^{-1/2}

over the rows of the group, with A the relationship of the levels of a grouping (the identity where they are
independent). Stata's ``estat wcorrelation``; nlme's ``getVarCov(type = "marginal")``.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.formatting import counted
from jaxmixed.grouping import level_labels, level_positions
from jaxmixed.residual_predictions import residual_variances
from jaxmixed.residual_whitening import relative_covariances

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

MOST_ROWS = 5_000
"""Of a covariance matrix: 200 MB."""

SHOWN_COLUMNS = 13
"""Of a printed table; the outer ones of a larger one."""


@dataclass(frozen=True, slots=True)
class WithinCorrelation:
    """Covariance of the responses of one group, from `MixedResults.wcorrelation`.

    Attributes
    ----------
    group : str
        Grouping.
    level : str
        Which of its levels.
    covariance : pandas.DataFrame
        In squared units of the response; rows and columns by time, or as the rows of the data are labelled.
    """

    group: str
    level: str
    covariance: pd.DataFrame

    @property
    def sd(self) -> pd.Series:
        """Standard deviations of the responses."""
        values = np.sqrt(np.diagonal(self.covariance.to_numpy()))
        return pd.Series(values, index=self.covariance.index, name="sd")

    @property
    def correlation(self) -> pd.DataFrame:
        """Correlations of the responses."""
        sd = self.sd.to_numpy()
        return self.covariance / sd[:, None] / sd[None, :]

    @property
    def _heading(self) -> str:
        rows = counted(len(self.covariance), "row")
        return f"Standard deviations and correlations of {rows}: {self.group} = {self.level}"

    def _table(self) -> pd.DataFrame:
        table = self.correlation.round(3)
        above = np.triu(np.ones(table.shape, dtype=bool), 1)
        texts = table.map(lambda value: f"{value:.3f}").mask(above, "")
        texts.insert(0, "SD", [f"{value:.4g}" for value in self.sd], allow_duplicates=True)
        return texts.rename_axis(columns=None)

    def __repr__(self) -> str:
        table = self._table().to_string(max_rows=pd.get_option("display.max_rows"), max_cols=SHOWN_COLUMNS)
        return f"{printable(self._heading)}\n{table}"

    def _repr_html_(self) -> str | None:
        return f"<p>{html.escape(printable(self._heading))}</p>{self._table()._repr_html_()}"  # type: ignore[operator]


def within_correlation(
    frame: ModelFrame, estimates: Estimates, level: Any, group: str | None
) -> WithinCorrelation:
    """Covariance of the responses of a group; see `MixedResults.wcorrelation`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    level : label or None
    group : str or None

    Returns
    -------
    WithinCorrelation
    """
    label, codes, levels = _grouping(frame, estimates, group)
    if level is None:
        sizes = np.bincount(codes, minlength=len(levels))
        largest = sizes[codes] == sizes.max()
        chosen = int(codes[np.argmax(largest)])  # the first of the largest ones in the data
    else:
        chosen = int(level_positions(levels, [level], label)[0])
    rows = np.flatnonzero(codes == chosen)
    name = level_labels(levels[chosen : chosen + 1])[0]
    if not len(rows):
        raise DataError(f"{printable(label)} = {printable(name)!r} has no rows among those used")
    if len(rows) > MOST_ROWS:
        raise DataError(
            f"{printable(label)} = {printable(name)!r} has {len(rows):,} rows, and a covariance matrix is of "
            f"{MOST_ROWS:,} at most; choose another group by level=, or a grouping within it by group="
        )
    if frame.residual is not None:
        rows = rows[np.argsort(frame.residual.design.times[rows], kind="stable")]
    covariance = response_covariance(frame, estimates, rows)
    names = _row_names(frame, rows)
    return WithinCorrelation(label, name, pd.DataFrame(covariance, index=names, columns=names))


def response_covariance(frame: ModelFrame, estimates: Estimates, rows: np.ndarray) -> np.ndarray:
    """Covariance (r, r) of the responses of some of the rows used.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    rows : (r,) int array
    """
    total = np.diag(residual_variances(frame, estimates)[rows])
    for term in estimates.terms:
        own = frame.groups[term.frame_index]
        codes, Z = own.codes[rows], own.Z[rows]
        if own.relationship is None:
            between = (codes[:, None] == codes[None, :]).astype(np.float64)
        else:
            between = own.relationship.matrix[np.ix_(codes, codes)]
        total += (Z @ term.cov @ Z.T) * between
    if estimates.residual is not None:
        design = frame.residual.design.take(rows)
        root = np.ones(len(rows)) if frame.weights is None else np.sqrt(frame.weights[rows])
        for pattern, R in relative_covariances(design, estimates.residual.free):
            off = R - np.diag(np.diagonal(R))
            for own_rows in pattern.rows:
                scale = estimates.sigma / root[own_rows]
                total[np.ix_(own_rows, own_rows)] += scale[:, None] * off * scale[None, :]
    return total


def _grouping(frame: ModelFrame, estimates: Estimates, group: str | None) -> tuple[str, np.ndarray, pd.Index]:
    """Label, codes (n,) and levels of a grouping: by default that of the residuals, or the finest."""
    found = {
        term.group: (frame.groups[term.frame_index].codes, frame.groups[term.frame_index].levels)
        for term in estimates.terms
    }
    residual = frame.residual
    if residual is not None and residual.labels.group is not None:
        found.setdefault(residual.labels.group, (residual.design.codes, residual.group_levels))
    if not found:
        raise DesignError(
            "the model has no groups: its responses are uncorrelated, with the variance of the residual"
        )
    if group is None:
        group = residual.labels.group if residual is not None else None
        group = group or max(found, key=lambda label: len(found[label][1]))
    if group not in found:
        names = ", ".join(repr(printable(label)) for label in found)
        raise DataError(f"group is {group!r}; the groupings of the model are {names}")
    return (group, *found[group])


def _row_names(frame: ModelFrame, rows: np.ndarray) -> pd.Index:
    """Times of the rows where these tell them apart, or else their labels in the data."""
    residual = frame.residual
    if residual is not None and residual.times.column is not None:
        times = residual.design.times[rows]
        if len(np.unique(times)) == len(times):
            texts = [residual.times.text(value) for value in times]
            return pd.Index(texts, name=residual.times.column)
    return frame.index[rows]

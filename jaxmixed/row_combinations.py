"""Linear combinations of the rows of a fit, as rows to predict: what whitening and forecasts make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.predict import TermRows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame


def combined_rows(
    frame: ModelFrame, estimates: Estimates, coefficients: csr_array, terms: Sequence[int]
) -> tuple[np.ndarray, tuple[TermRows, ...]]:
    """Combinations of the fixed-effects columns and of the random effects of the rows of a fit.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    coefficients : sparse (n, N) array
        A combination of the N rows in every row.
    terms : sequence of int
        Positions of terms among the estimates'.

    Returns
    -------
    X : (n, p) array
    terms : tuple of TermRows
        A term occurs as often as a combination meets different levels of it.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> from scipy.sparse import csr_array
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> means = csr_array(np.kron(np.eye(18), np.full(10, 0.1)))  # of every subject
    >>> X, (effects,) = combined_rows(fit.frame, fit.estimates, means, [0])
    >>> X[0].round(6).tolist(), effects.Z[0].round(6).tolist(), effects.codes[:3].tolist()
    ([1.0, 4.5], [1.0], [0, 1, 2])
    """
    found: list[TermRows] = []
    entries = coefficients.tocoo()
    row, column = entries.coords
    for i in terms:
        group = frame.groups[estimates.terms[i].frame_index]
        levels = len(group.levels)
        pairs, of = np.unique(row.astype(np.int64) * levels + group.codes[column], return_inverse=True)
        rows, codes = np.divmod(pairs, levels)
        sums = np.stack(
            [np.bincount(of, entries.data * own[column], len(pairs)) for own in group.Z.T], axis=1
        )
        starts = np.flatnonzero(np.r_[True, np.diff(rows) != 0]) if len(rows) else np.zeros(0, dtype=np.int64)
        turn = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
        for number in range(int(turn.max(initial=-1)) + 1):
            own = turn == number
            Z = np.zeros((coefficients.shape[0], group.Z.shape[1]))
            level = np.zeros(len(Z), dtype=np.int64)
            Z[rows[own]], level[rows[own]] = sums[own], codes[own]
            found.append(TermRows(i, Z, level))
    return np.asarray(coefficients @ frame.X), tuple(found)

"""What any test of linear functions of the fixed effects needs: estimates, a covariance, degrees of freedom.

A :class:`FixedInference` joins the estimates with a :class:`Reference`, which says how statistics are
distributed: normally, or with denominator degrees of freedom of some method. Tables of coefficients, tests,
marginal means and contrasts are all made from it, so that each of them has every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed._distributions import f_p_value, t_p_values, t_quantiles
from jaxmixed.denominators import Reference
from jaxmixed.formatting import NotedFrame
from jaxmixed.linalg import independent_columns

ESTIMABLE = 1e-8
"""A linear function whose component outside the row space of X is smaller than this share of it is in it."""


class JointTest(NamedTuple):
    """A test of several linear functions at once.

    Attributes
    ----------
    num_df : int
        Number of linearly independent functions.
    den_df : float
        Denominator degrees of freedom; infinite for the chi-squared test, whose statistic is ``num_df`` times
        this one.
    statistic : float
        F.
    p_value : float
    """

    num_df: int
    den_df: float
    statistic: float
    p_value: float


@dataclass(frozen=True, eq=False)
class FixedInference:
    """Inference on linear functions L beta of the fixed effects.

    Attributes
    ----------
    names : tuple of str
        Of all p coefficients, dropped (aliased) ones included.
    beta : (p,) array
        NaN where aliased.
    cov : (p, p) array
        The covariance that tests use; NaN where aliased.
    ddf : str
        Method of the degrees of freedom, or the kind of the robust covariance.
    reference : Reference
        The distribution of statistics, for functions of the coefficients that are not aliased.
    aliases : (d, p) array
        A basis of the directions of beta that X does not see.
    title : str
        Where the standard errors and degrees of freedom come from, in a few words for the heading of a table;
        empty for the model's own with normal tests.
    """

    names: tuple[str, ...]
    beta: np.ndarray
    cov: np.ndarray
    ddf: str
    reference: Reference
    aliases: np.ndarray
    title: str = ""

    @cached_property
    def kept(self) -> np.ndarray:
        """Mask (p,) of the coefficients that are not aliased."""
        return ~np.isnan(self.beta)

    @property
    def of_kept(self) -> FixedInference:
        """The same for coefficients as the table prints them: of the model without the dropped columns.

        A function of a dropped coefficient has no value here; elsewhere a function has one if it is the same
        whichever of the dependent columns are dropped.
        """
        return replace(self, aliases=np.eye(len(self.names))[~self.kept])

    def estimable(self, L: np.ndarray) -> np.ndarray:
        """Mask (c,) of the functions, rows of L (c, p), that have a value: in the row space of X."""
        size = np.abs(L).max(axis=1, initial=0.0)
        if not len(self.aliases):
            return np.isfinite(size)
        outside = np.abs(L @ self.aliases.T).max(axis=1, initial=0.0)
        return np.isfinite(size) & (outside <= ESTIMABLE * np.maximum(size, np.finfo(float).tiny))

    def estimate(self, L: np.ndarray) -> np.ndarray:
        """Estimates (c,); NaN where not estimable."""
        values = L[:, self.kept] @ self.beta[self.kept]
        return np.where(self.estimable(L), values, np.nan)

    def covariance(self, L: np.ndarray) -> np.ndarray:
        """Covariance (c, c) of the estimates; NaN where not estimable."""
        rows, good = L[:, self.kept], self.estimable(L)
        values = rows @ self.cov[np.ix_(self.kept, self.kept)] @ rows.T
        return np.where(good[:, None] & good[None, :], (values + values.T) / 2, np.nan)

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of the test of each function by itself; NaN where not estimable."""
        good = self.estimable(L)
        found = np.full(len(L), np.nan)
        found[good] = self.reference.df(L[good][:, self.kept])
        return found

    def joint_test(self, L: np.ndarray, rhs: np.ndarray | None = None) -> JointTest:
        """Test of ``L beta = rhs``, all rows at once.

        Parameters
        ----------
        L : (c, p) array
            Rows that depend on others are taken out.
        rhs : (c,) array, optional
            By default zero.

        Returns
        -------
        JointTest
            NaN where a row is not estimable, or no row is left.
        """
        if not len(L) or not self.estimable(L).all():
            return JointTest(0 if not len(L) else int(np.linalg.matrix_rank(L)), np.nan, np.nan, np.nan)
        rows = L[:, self.kept]
        values = rows @ self.beta[self.kept] - (0.0 if rhs is None else np.asarray(rhs))
        chosen = independent_rows(rows)
        num_df = len(chosen)
        if not num_df:
            return JointTest(0, np.nan, np.nan, np.nan)
        statistic, den_df = self.reference.joint(rows[chosen], values[chosen])
        return JointTest(num_df, den_df, statistic, f_p_value(statistic, num_df, den_df))


def independent_rows(L: np.ndarray) -> np.ndarray:
    """Positions of rows of L that are linearly independent and span all others', the first ones first."""
    return independent_columns(L.T, ESTIMABLE * np.linalg.norm(L, axis=1))


def alias_basis(X: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Directions (d, p) of beta that X does not see: one for each aliased column, by the kept ones.

    Parameters
    ----------
    X : (n, p) array
    kept : (p,) bool array

    Returns
    -------
    (d, p) array
    """
    aliased = np.flatnonzero(~kept)
    basis = np.zeros((len(aliased), len(kept)))
    if len(aliased):
        # In units of the columns, so that none of them is drowned.
        scale = np.abs(X).max(axis=0)
        scale[scale == 0] = 1.0
        on_kept = np.linalg.lstsq(X[:, kept] / scale[kept], X[:, aliased] / scale[aliased])[0]
        basis[:, kept] = -(on_kept * scale[aliased] / scale[kept][:, None]).T
        basis[np.arange(len(aliased)), aliased] = 1.0
    return basis


def linear_table(
    inference: FixedInference,
    L: np.ndarray,
    rhs: np.ndarray | None = None,
    level: float = 0.95,
    index: Sequence[Any] | pd.Index | None = None,
) -> pd.DataFrame:
    """Table of linear functions of the fixed effects, each with its own test and interval.

    Parameters
    ----------
    inference : FixedInference
    L : (c, p) array
    rhs : (c,) array, optional
        Values under the hypotheses, by default zero. Estimates and intervals are of ``L beta``.
    level : float
        Level of the intervals.
    index : sequence, optional
        Names of the rows.

    Returns
    -------
    pandas.DataFrame
        Columns ``estimate, std_error, df, statistic, p_value, conf_low, conf_high``.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    >>> linear_table(fit.fixed_inference(), np.array([[1.0, 5.0]]))["estimate"].round(2).tolist()
    [303.74]
    """
    estimate = inference.estimate(L)
    std_error = np.sqrt(np.maximum(np.diagonal(inference.covariance(L)), 0.0))
    df = inference.df(L)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (estimate - (0.0 if rhs is None else np.asarray(rhs))) / std_error
    half = t_quantiles(level, df) * std_error
    columns = {
        "estimate": estimate,
        "std_error": std_error,
        "df": df,
        "statistic": statistic,
        "p_value": t_p_values(statistic, df),
        "conf_low": estimate - half,
        "conf_high": estimate + half,
    }
    return NotedFrame(columns, index=None if index is None else pd.Index(index))

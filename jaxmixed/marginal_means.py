"""Estimated marginal means, slopes and contrasts of them: a table of linear functions with its families.

See `MixedResults.emmeans` and `MixedResults.emtrends`, which make them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.contrast_families import contrasts
from jaxmixed.errors import DataError, printable
from jaxmixed.fixed_inference import FixedInference, JointTest, linear_table
from jaxmixed.formatting import NotedFrame, Table, number, p_number, wrapped
from jaxmixed.grouping import level_labels
from jaxmixed.simultaneous import Adjusted, Family, adjust_family, check_method

_PHRASES = {
    "tukey": "Tukey's method",
    "sidak": "Sidak's method",
    "bonferroni": "Bonferroni's method",
    "holm": "Holm's method (limits: Bonferroni's)",
    "scheffe": "Scheffe's method",
    "fdr": "the false discovery rate (limits: Bonferroni's method)",
    "fdr_bh": "the false discovery rate (limits: Bonferroni's method)",
    "fdr_by": "the false discovery rate under dependence (limits: Bonferroni's method)",
    "mvt": "the multivariate t distribution",
}
_DDF = {
    "none": "tests are normal",
    "satterthwaite": "degrees of freedom are Satterthwaite's",
    "kenward-roger": "standard errors and degrees of freedom are Kenward and Roger's",
}
_MAX_NOTED = 6


@dataclass(frozen=True, eq=False)
class MarginalMeans:
    """Marginal means (or slopes, or contrasts of either), in groups that are judged together.

    Parameters
    ----------
    inference : FixedInference
        Of the model.
    levels : pandas.DataFrame
        What each of c rows is the mean of.
    L : (c, p) array
        Linear functions of the coefficients; NaN where there is none.
    offset : (c,) array
        Known part of the estimates.
    by : tuple of str
        Columns of `levels` whose combinations are families of their own.
    level : float
        Level of the limits.
    adjust : str
        Adjustment of p-values and limits for the size of a family.
    what : str
        ``"means"``, ``"slopes"`` or ``"contrasts"``.
    compared : int or None
        Of all pairwise comparisons, the number of means in a family.
    notes : tuple of str
        How the numbers came about.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("yield ~ Variety + nitro + (1 | Block)", jm.datasets.load("oats"))
    >>> means = fit.emmeans("Variety", ddf="none")
    >>> means.pairs().table[["contrast", "estimate", "p_value"]].round(2).values.tolist()[0]
    ['Golden Rain - Marvellous', -5.29, 0.46]
    """

    inference: FixedInference
    levels: pd.DataFrame
    L: np.ndarray
    offset: np.ndarray
    by: tuple[str, ...]
    level: float
    adjust: str = "none"
    what: str = "means"
    compared: int | None = None
    notes: tuple[str, ...] = ()

    # Numbers

    @cached_property
    def _plain(self) -> pd.DataFrame:
        """Estimates with unadjusted tests and limits."""
        table = linear_table(self.inference, self.L, rhs=-self.offset, level=self.level)
        for name in ("estimate", "conf_low", "conf_high"):
            table[name] += self.offset
        return table

    @cached_property
    def _adjusted(self) -> list[tuple[np.ndarray, Adjusted]]:
        """Rows of each family, and what the adjustment gives for them."""
        covariance = self.inference.covariance(self.L)
        error = self._plain["std_error"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = covariance / np.outer(error, error)
        statistic, df = self._plain["statistic"].to_numpy(), self._plain["df"].to_numpy()
        return [
            (
                rows,
                adjust_family(
                    Family(statistic[rows], df[rows], correlation[np.ix_(rows, rows)], self.compared),
                    self.adjust,
                    self.level,
                ),
            )
            for rows in self._families
        ]

    @cached_property
    def _families(self) -> list[np.ndarray]:
        return families(self.levels, self.by)

    @property
    def table(self) -> pd.DataFrame:
        """Levels, and ``estimate, std_error, df, statistic, p_value, conf_low, conf_high`` of each row.

        P-values are of a value of zero; they and the limits are adjusted within each group of ``by``.
        """
        columns = self._plain.copy()
        for rows, found in self._adjusted:
            half = found.critical * columns["std_error"].to_numpy()[rows]
            estimate = columns["estimate"].to_numpy()[rows]
            columns.loc[rows, "p_value"] = found.p_values
            columns.loc[rows, "conf_low"] = estimate - half
            columns.loc[rows, "conf_high"] = estimate + half
        return pd.concat([self.levels, columns], axis=1)

    @property
    def linear_functions(self) -> pd.DataFrame:
        """The rows as linear functions of the coefficients, (c, p)."""
        return pd.DataFrame(self.L, index=self.levels.index, columns=pd.Index(self.inference.names))

    def cov(self) -> pd.DataFrame:
        """Covariance (c, c) of the estimates."""
        names = pd.Index(self._names())
        return pd.DataFrame(self.inference.covariance(self.L), index=names, columns=names)

    # What can be made of them

    def adjusted(self, adjust: str, level: float | None = None) -> MarginalMeans:
        """The same estimates with another adjustment of p-values and limits.

        Parameters
        ----------
        adjust : str
            ``"none"``, ``"tukey"``, ``"sidak"``, ``"bonferroni"``, ``"holm"``, ``"scheffe"``, ``"fdr"``
            (``"fdr_bh"``), ``"fdr_by"`` or ``"mvt"``: see :mod:`jaxmixed.simultaneous`.
        level : float, optional
            Level of the limits.

        Returns
        -------
        MarginalMeans
        """
        chosen = self.level if level is None else level
        normal_quantile(chosen)
        return replace(self, adjust=check_method(adjust), level=chosen)

    def contrast(
        self,
        method: Any,
        by: str | Sequence[str] | None = None,
        adjust: str | None = None,
        level: float | None = None,
        *,
        ref: Any = None,
        interaction: bool = False,
    ) -> MarginalMeans:
        """Contrasts of these means within each group of ``by``.

        Parameters
        ----------
        method : str, mapping or array
            ``"pairwise"``, ``"revpairwise"``, ``"trt.vs.ctrl"``, ``"eff"``, ``"del.eff"``, ``"consec"``,
            ``"mean_chg"``, ``"poly"``, ``"opoly"``, ``"helmert"``, ``"identity"`` (see
            :mod:`jaxmixed.contrast_families`), a mapping from names to weights of the means of a group, or
            an array or DataFrame with a row of weights for each contrast. With ``interaction=True`` also a
            mapping from variables to methods.
        by : str or sequence of str, optional
            Groups, by default those of these means; ``[]`` for none.
        adjust : str, optional
            See `adjusted`. By default that of the method: ``"tukey"`` for all pairs, ``"mvt"`` against a
            control and for consecutive means, ``"fdr"`` for deviations from the mean, else ``"none"``.
        level : float, optional
            Of the limits.
        ref : str or list of str, optional
            Control of ``"trt.vs.ctrl"``, by default the first mean.
        interaction : bool
            Contrasts of the first variable of contrasts of the next one, and so on.

        Returns
        -------
        MarginalMeans
            Contrasts can be contrasted again.

        Raises
        ------
        DataError
            If the method or its weights do not fit.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("yield ~ Variety + nitro + (1 | Block)", jm.datasets.load("oats"))
        >>> means = fit.emmeans("Variety", ddf="none")
        >>> means.contrast({"Victory - others": [-0.5, -0.5, 1]}).table["estimate"].round(2).tolist()
        [-9.52]
        """
        groups = self.by if by is None else self._columns(by)
        if interaction:
            return self._interaction(method, groups, adjust, level)
        found = self._contrast(method, groups, ref, _fresh("contrast", self.levels.columns), enhance=True)
        return found.adjusted(found.adjust if adjust is None else adjust, level)

    def pairs(
        self,
        by: str | Sequence[str] | None = None,
        adjust: str = "tukey",
        level: float | None = None,
        *,
        reverse: bool = False,
    ) -> MarginalMeans:
        """All pairwise differences within each group of ``by``.

        Parameters
        ----------
        by : str or sequence of str, optional
            Groups, by default those of these means; ``[]`` for none.
        adjust : str
            See `adjusted`.
        level : float, optional
            Of the limits.
        reverse : bool
            Later means less earlier ones.

        Returns
        -------
        MarginalMeans
        """
        return self.contrast("revpairwise" if reverse else "pairwise", by, adjust, level)

    def test(
        self, null: float = 0.0, *, joint: bool = False, by: str | Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Tests that all of these have a value.

        Parameters
        ----------
        null : float
            The value.
        joint : bool
            One F test for each group, instead of a test for each row.
        by : str or sequence of str, optional
            Groups, by default those of these means; ``[]`` for none.

        Returns
        -------
        pandas.DataFrame
            Of joint tests, a row for each group with ``num_df, den_df, statistic, p_value`` (an F statistic;
            with infinite `den_df` its `num_df`-fold is chi-squared). Else the columns of `table` but for the
            limits.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("yield ~ Variety + nitro + (1 | Block)", jm.datasets.load("oats"))
        >>> fit.emmeans("Variety", ddf="none").pairs().test(joint=True)["num_df"].tolist()
        [2]
        """
        if isinstance(null, bool) or not isinstance(null, int | float | np.number) or not np.isfinite(null):
            raise DataError(f"null is {null!r}; give the number that the estimates are compared with")
        groups = self.by if by is None else self._columns(by)
        if not joint:
            moved = replace(self, offset=self.offset - float(null), by=groups)
            table = moved.table.drop(columns=["conf_low", "conf_high"])
            table["estimate"] += float(null)
            return table
        rows, notes, kept = [], [], families(self.levels, groups)
        for group in kept:
            test, reduced = self._joint(group, float(null))
            rows.append(test)
            notes += ["linear functions that are not estimable are left out"] if reduced else []
        tests = pd.DataFrame(rows, columns=list(JointTest._fields), dtype=object)
        tests = tests.astype({"num_df": np.int64, "den_df": float, "statistic": float, "p_value": float})
        first = [group[0] for group in kept]
        heads = self.levels.loc[first, list(groups)].reset_index(drop=True)
        table = NotedFrame(pd.concat([heads, tests], axis=1))
        if notes:
            table.attrs["note"] = notes[0]
        return table

    def _joint(self, rows: np.ndarray, null: float) -> tuple[JointTest, bool]:
        """Joint test of some rows, and whether only some combinations of them are estimable."""
        L, target = self.L[rows], null - self.offset[rows]
        if self.inference.estimable(L).all():
            return self.inference.joint_test(L, target), False
        there = ~np.isnan(L).any(axis=1)
        L, target = L[there], target[there]
        outside = L @ self.inference.aliases.T
        outside /= np.maximum(np.abs(L).max(axis=1, initial=0.0, keepdims=True), np.finfo(float).tiny)
        # Combinations of the rows that see no direction of the coefficients without data.
        left, sizes, _ = np.linalg.svd(outside, full_matrices=True)
        free = left[:, int((sizes > 1e-8).sum()) :].T
        free[np.abs(free) < 1e-12] = 0.0
        scale = np.abs(L).max(axis=1, initial=0.0)
        mixed = free / np.where(scale > 0, scale, 1.0)
        return self.inference.joint_test(mixed @ L, mixed @ target), True

    def _columns(self, by: str | Sequence[str]) -> tuple[str, ...]:
        names = tuple(as_names("by", by))
        unknown = [name for name in names if name not in self.levels.columns]
        if unknown:
            raise DataError(
                f"by= names {unknown[0]!r}; these {self.what} are by"
                f" {', '.join(map(repr, self.levels.columns)) or 'nothing'}"
            )
        return names

    def _labels(
        self, rows: np.ndarray, columns: Sequence[str], enhance: bool = False, between: str = ", "
    ) -> list[str]:
        """Text of each row: its levels, those that are numbers with the name of the variable."""
        texts = []
        for name in columns:
            labels = level_texts(self.levels[name])
            if enhance and all(map(_is_number, labels)):
                labels = [f"{name}{label}" for label in labels]
            texts.append([labels[row] for row in rows])
        return (
            [between.join(parts) for parts in zip(*texts, strict=True)] if texts else ["overall"] * len(rows)
        )

    def _names(self) -> list[str]:
        return self._labels(np.arange(len(self.levels)), list(self.levels.columns))

    def _contrast(
        self, method: Any, by: tuple[str, ...], ref: Any, name: str, enhance: bool
    ) -> MarginalMeans:
        primary = [column for column in self.levels.columns if column not in by]
        missing = np.isnan(self.L).any(axis=1)
        known = np.where(missing[:, None], 0.0, self.L)
        texts: list[str] = []
        L, offset, first, found = [], [], [], None
        for rows in families(self.levels, by):
            found = contrasts(method, self._labels(rows, primary, enhance, " "), ref=ref)
            own = found.weights @ known[rows]
            own[(found.weights[:, missing[rows]] != 0).any(axis=1)] = np.nan
            texts += found.names
            L.append(own)
            offset.append(found.weights @ self.offset[rows])
            first += [rows[0]] * len(own)
        if found is None:
            raise DataError("there are no means to compare")
        heads = self.levels.loc[first, list(by)].reset_index(drop=True)
        heads.insert(0, name, pd.Series(texts, dtype=object))
        return replace(
            self,
            levels=heads,
            L=np.concatenate(L),
            offset=np.concatenate(offset),
            by=by,
            adjust=found.adjust,
            what="contrasts",
            compared=found.compared,
        )

    def _interaction(
        self, method: Any, by: tuple[str, ...], adjust: str | None, level: float | None
    ) -> MarginalMeans:
        primary = [column for column in self.levels.columns if column not in by]
        methods = dict(method) if isinstance(method, Mapping) else dict.fromkeys(primary, method)
        if set(methods) != set(primary):
            raise DataError(
                f"interaction contrasts need a method for each of {', '.join(map(repr, primary))}; those"
                f" given are for {', '.join(map(repr, methods)) or 'none'}"
            )
        found = self
        for variable in reversed(primary):
            own = methods[variable]
            others = tuple(column for column in found.levels.columns if column != variable)
            name = _fresh(f"{variable}_{own if isinstance(own, str) else 'custom'}", found.levels.columns)
            found = found._contrast(own, others, None, name, enhance=False)
        found = replace(found, by=by, compared=None)
        return found.adjusted("none" if adjust is None else adjust, level)

    # Printing

    def _all_notes(self) -> list[str]:
        notes = list(self.notes)
        ddf = self.inference.ddf
        notes.append(_DDF.get(ddf, f"degrees of freedom: {ddf}"))
        methods = {found.method for _, found in self._adjusted}
        each = " in each group" if len(self._adjusted) > 1 else ""
        for method in sorted(methods - {"none"}):
            size = max(len(rows) for rows, found in self._adjusted if found.method == method)
            of = f"{self.compared} means" if method == "tukey" else f"{size} {self.what}"
            notes.append(f"p-values and limits are adjusted by {_PHRASES[method]} for {of}{each}")
        if self.adjust == "tukey" and "sidak" in methods:
            notes.append("Tukey's method is for all pairwise comparisons; Sidak's has taken its place")
        error = max((found.error for _, found in self._adjusted), default=0.0)
        if error > 0:
            notes.append(f"standard error of the adjusted p-values, integrals by sampling: {error:.0e}")
        lost = np.flatnonzero(self._plain["estimate"].isna())
        if len(lost):
            names = self._names()
            shown = "; ".join(names[row] for row in lost[:_MAX_NOTED])
            more = f" and {len(lost) - _MAX_NOTED} more" if len(lost) > _MAX_NOTED else ""
            advice = " (weights='flat' or 'cells' averages over those that have some)"
            notes.append(
                f"not estimable, since some cells have no rows: {shown}{more}"
                f"{advice if self.what == 'means' else ''}"
            )
        return [note[0].upper() + note[1:] for note in notes]

    def _printed(self) -> Table:
        table, primary = self.table, [name for name in self.levels.columns if name not in self.by]
        normal = bool(np.isinf(self._plain["df"]).all())
        letter = "z" if normal else "t"
        interval = (f"[{100 * self.level:.12g}% conf.", "interval]")
        header = (", ".join(map(printable, primary)), "Estimate", "Std. error", *(() if normal else ("df",)))
        rows: list[tuple[str, ...]] = []
        texts = self._labels(np.arange(len(table)), primary)
        for group in self._families:
            if self.by:
                head = self.levels.iloc[group[0]]
                rows.append((printable(", ".join(f"{name} = {text_of(head[name])}" for name in self.by)),))
            for row in group:
                value = table.iloc[row]
                cells = [number(value["estimate"]), number(value["std_error"])]
                cells += [] if normal else [_decimals(value["df"])]
                cells += [_decimals(value["statistic"]), p_number(value["p_value"])]
                cells += [number(value["conf_low"]), number(value["conf_high"])]
                rows.append((("  " if self.by else "") + printable(texts[row]), *cells))
        title = {"means": "Marginal means", "slopes": "Marginal slopes", "contrasts": "Contrasts"}[self.what]
        return Table(title, (*header, letter, f"P>|{letter}|", *interval), tuple(rows))

    def __str__(self) -> str:
        notes = [wrapped(printable(note), first="Note: ", indent="      ") for note in self._all_notes()]
        return "\n".join([self._printed().text(), *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p><em>Note:</em> {html.escape(printable(note))}</p>" for note in self._all_notes())
        return self._printed().html() + notes


def families(levels: pd.DataFrame, by: Sequence[str]) -> list[np.ndarray]:
    """Rows of each combination of the columns `by`, in the order of their first rows."""
    if not by:
        return [np.arange(len(levels))]
    codes = levels.groupby(list(by), sort=False, dropna=False, observed=True).ngroup().to_numpy()
    return [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]


def as_names(argument: str, given: Any) -> list[str]:
    """Names of columns, given as one or several."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple | pd.Index) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{argument} is {given!r}; give the name of a column, or a list of names")
    return list(names)


def level_texts(values: pd.Series) -> list[str]:
    """Levels as text."""
    distinct = pd.Index(values.unique())
    texts = dict(zip(distinct, level_labels(distinct), strict=True))
    return [texts[value] for value in values]


def text_of(value: Any) -> str:
    """A level as text."""
    return level_labels(pd.Index([value]))[0]


def _fresh(name: str, taken: Sequence[str] | pd.Index) -> str:
    """The name, with a number where it is taken."""
    numbers = [name, *(f"{name}{number}" for number in range(1, len(taken) + 1))]
    return next(one for one in numbers if one not in taken)


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def _decimals(value: float) -> str:
    return "." if np.isnan(value) else f"{value:.2f}" if abs(value) < 1e6 else number(value)

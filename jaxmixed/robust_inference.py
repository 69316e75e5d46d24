"""Cluster-robust inference on the fixed effects of a fit: which clusters, which kind, and what it prints."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.coefficient_names import Coefficients
from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.fitting import spread_columns
from jaxmixed.fixed_inference import FixedInference, alias_basis, linear_table
from jaxmixed.formatting import Table, count, number, p_number, wrapped
from jaxmixed.grouping import factorize
from jaxmixed.ingest import DataColumn
from jaxmixed.linear_tests import joint_hypothesis
from jaxmixed.predict import linear_predictor
from jaxmixed.robust import KINDS, ClusterReference, Kind, WorkingModel, cluster_sums, information
from jaxmixed.row_values import given_column
from jaxmixed.weighted_samples import refuse_sampling_weights, refuse_weighted_sample

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame

METHODS = ("satterthwaite", "clusters", "none")
_NAMES = {
    "satterthwaite": "Satterthwaite's",
    "clusters": "number of clusters - 1",
    "none": "none (normal tests)",
}
_KINDS = {
    "CR0": "sandwich",
    "CR1": "sandwich times m / (m - 1)",
    "CR1S": "sandwich times m (n - 1) / ((m - 1)(n - p))",
    "CR2": "bias-reduced, Bell and McCaffrey",
    "CR3": "jackknife of clusters",
}
_FEW = 2


class Clusters(NamedTuple):
    """Clusters of the rows used.

    Attributes
    ----------
    label : str
        Name for messages and tables.
    codes : (n,) int array
        ``0 .. m-1``, all present.
    levels : pandas.Index
    """

    label: str
    codes: np.ndarray
    levels: pd.Index


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RobustInference(FixedInference):
    """Inference with a cluster-robust covariance: what `MixedResults.robust` returns.

    Takes the place of the model's own covariance wherever a test takes ``vcov=``.

    Attributes
    ----------
    kind : str
        ``"CR0"``, ``"CR1"``, ``"CR1S"``, ``"CR2"`` or ``"CR3"``.
    df_method : str
        ``"satterthwaite"``, ``"clusters"`` or ``"none"``.
    cluster : str
        Name of the clusters.
    cluster_sizes : (m,) array
        Rows of each cluster.
    coefficients : Coefficients
        What `test` may name.
    """

    kind: Kind
    df_method: str
    cluster: str
    cluster_sizes: np.ndarray
    coefficients: Coefficients

    @property
    def num_clusters(self) -> int:
        """Number of clusters m."""
        return len(self.cluster_sizes)

    def cov_params(self) -> pd.DataFrame:
        """Robust covariance matrix of the coefficients; NaN where dropped."""
        names = pd.Index(self.names)
        return pd.DataFrame(self.cov.copy(), index=names, columns=names)

    def coef_table(self, level: float = 0.95) -> pd.DataFrame:
        """Table of the fixed effects with robust standard errors.

        Parameters
        ----------
        level : float
            Level of the intervals.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, df, statistic, p_value, conf_low, conf_high`` by coefficient.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.robust().coef_table().loc["Days", ["estimate", "std_error", "df"]].round(3).tolist()
        [10.467, 1.546, 17.0]
        """
        return linear_table(self.of_kept, np.eye(len(self.names)), level=level, index=self.names)

    def test(self, hypothesis: Any, rhs: Any = None) -> pd.DataFrame:
        """Test of linear hypotheses with the robust covariance; see `MixedResults.test`.

        Parameters
        ----------
        hypothesis : str, sequence of str, or (c, p) array
        rhs : float or (c,) array, optional

        Returns
        -------
        pandas.DataFrame
            Columns ``num_df, den_df, statistic, p_value``.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> fit.robust().test("Days = 10")[["den_df", "statistic"]].round(4).values.tolist()
        [[17.0, 0.0914]]
        """
        return joint_hypothesis(self, self.coefficients, hypothesis, rhs)

    def _heading(self) -> tuple[str, list[tuple[str, str]]]:
        sizes = self.cluster_sizes
        rows = f"min {count(int(sizes.min()))}, average {sizes.mean():,.1f}, max {count(int(sizes.max()))}"
        facts = [
            ("Covariance", f"{self.kind} ({_KINDS[self.kind]})"),
            ("Clusters", f"{count(self.num_clusters)} {printable(self.cluster)}; rows in each: {rows}"),
            ("Degrees of freedom", _NAMES[self.df_method]),
        ]
        return "Cluster-robust inference on the fixed effects", facts

    def _table(self) -> Table:
        table = self.coef_table()
        normal = self.df_method == "none"
        rows = []
        for name, row in zip(self.names, table.to_dict("records"), strict=True):
            if np.isnan(row["estimate"]):
                rows.append((printable(name), "dropped", *[""] * (5 if normal else 6)))
                continue
            df = [] if normal else ["." if np.isnan(row["df"]) else f"{row['df']:.2f}"]
            statistic = f"{row['statistic']:.2f}" if np.isfinite(row["statistic"]) else "."
            limits = (number(row["conf_low"]), number(row["conf_high"]))
            cells = (number(row["estimate"]), number(row["std_error"]), *df, statistic)
            rows.append((printable(name), *cells, p_number(row["p_value"]), *limits))
        tests = ("z", "P>|z|") if normal else ("df", "t", "P>|t|")
        header = ("", "Estimate", "Robust SE", *tests, "[95% conf.", "interval]")
        return Table("", header, tuple(rows))

    def _note(self) -> str:
        m, p = self.num_clusters, int(self.kept.sum())
        if m > p:
            return ""
        return (
            f"the covariance of {p} coefficients from {m} clusters is singular: at most {m - 1} functions of"
            " them can be tested together."
        )

    def __str__(self) -> str:
        title, facts = self._heading()
        width = max(len(label) for label, _ in facts)
        lines = [
            wrapped(value, first=f"{label.ljust(width)}  ", indent=" " * (width + 2))
            for label, value in facts
        ]
        note = self._note()
        ending = [wrapped(note, first="Note: ", indent="      ")] if note else []
        return "\n".join([title, "", *lines, "", self._table().text(), *ending])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Fragment for notebooks: every name is escaped."""
        title, facts = self._heading()
        rows = "".join(
            f'<tr><th style="text-align:left;font-weight:normal">{html.escape(label)}</th>'
            f"<td>{html.escape(value)}</td></tr>"
            for label, value in facts
        )
        note = f"<p><em>Note:</em> {html.escape(self._note())}</p>" if self._note() else ""
        return (
            f'<div class="jaxmixed-summary"><h4>{html.escape(title)}</h4><table>{rows}</table>'
            f"{self._table().html()}{note}</div>"
        )


def robust_inference(
    frame: ModelFrame, estimates: Estimates, state: Any, kind: str, cluster: Any, df: str | None
) -> RobustInference:
    """Cluster-robust inference; see `MixedResults.robust`, which calls this."""
    known = _known_kind(kind)
    method = ("satterthwaite" if known in ("CR2", "CR3") else "none") if df is None else df
    if method not in METHODS:
        raise DataError(f"df is {df!r}; choose one of {', '.join(map(repr, METHODS))}")
    _check_weights(estimates, known)
    clusters = resolve_clusters(frame, cluster)
    require_independent(frame, clusters)
    predicted = linear_predictor(frame.X, estimates.beta, frame.offset)
    model = WorkingModel(state, estimates, frame.y - predicted, clusters.codes)
    found = information(model)
    alone = found.alone()
    if known == "CR3" and alone is not None:
        raise DesignError(
            f"CR3 leaves out one cluster at a time, and without {_shown(clusters.levels[alone])} of"
            f" {printable(clusters.label)!r} some coefficients cannot be estimated: use kind='CR2'"
        )
    sums = cluster_sums(model, found, known)
    kept = ~np.isnan(estimates.beta)
    label = printable(clusters.label)
    heading = {"satterthwaite": ", Satterthwaite's df", "clusters": ", df from clusters", "none": ""}[method]
    return RobustInference(
        names=frame.x_names,
        beta=estimates.beta,
        cov=spread_columns(sums.covariance[None], np.flatnonzero(kept), len(kept))[0],
        ddf=f"{_NAMES[method]}; standard errors: {known} by {label}",
        reference=ClusterReference(sums, method),
        aliases=alias_basis(frame.X, kept),
        title=f"{known} by {label}{heading}",
        kind=known,
        df_method=method,
        cluster=clusters.label,
        cluster_sizes=model.sizes,
        coefficients=Coefficients.of(frame),
    )


def _check_weights(estimates: Estimates, kind: Kind) -> None:
    """Refuse adjustments that take the fitted covariance of rows that count once for granted."""
    own = estimates.sampling
    if own is None:
        return
    if own.kind == "frequency":
        refuse_weighted_sample(estimates, "robust()", "its clusters would be the copies")
    if kind not in ("CR0", "CR1"):
        why = "it adjusts for the leverages of rows that count once"
        refuse_sampling_weights(estimates, f"kind={kind!r}", why, "use kind='CR1', as Stata, or 'CR0'")


def _known_kind(kind: str) -> Kind:
    for known in KINDS:
        if kind == known:
            return known
    raise DataError(f"kind is {kind!r}; robust covariances are of the kinds {', '.join(map(repr, KINDS))}")


def _distinct(frame: ModelFrame) -> list[GroupDesign]:
    """One design per grouping, fewest levels first."""
    found = {group.label: group for group in frame.groups}
    return sorted(found.values(), key=lambda group: group.num_recorded)


def _correlated_groups(frame: ModelFrame) -> Clusters | None:
    """Groups within which the residuals are correlated; None if there are none."""
    residual = frame.residual
    if residual is None or residual.groups is None:
        return None
    return Clusters(residual.groups.label, residual.groups.codes, residual.group_levels)


def resolve_clusters(frame: ModelFrame, cluster: Any, argument: str = "cluster") -> Clusters:
    """Clusters that a user asks for: by default the coarsest grouping, else by name or as values.

    Without random effects the default are the groups of correlated residuals.

    Parameters
    ----------
    frame : ModelFrame
    cluster : None, str, or array_like
        Values of the rows used, or of the data.
    argument : str
        Name of the argument, for messages.

    Returns
    -------
    Clusters

    Raises
    ------
    DataError, DesignError
    """
    groups = _distinct(frame)
    if cluster is None:
        correlated = _correlated_groups(frame)
        if not groups and correlated is not None:
            return correlated
        if not groups:
            raise DesignError(
                "a linear model has no groups: give the clusters, e.g. cluster=data['school'] (for errors"
                " that are heteroscedastic only, every row is a cluster: cluster=range(len(data)))"
            )
        coarsest = groups[0]
        return Clusters(coarsest.label, coarsest.codes, coarsest.levels[: coarsest.num_recorded])
    if isinstance(cluster, str):
        return _named_clusters(frame, groups, cluster, argument)
    column, rows = given_column(frame, cluster, argument)
    return _coded(column.name, column, rows, argument)


def _named_clusters(frame: ModelFrame, groups: list[GroupDesign], name: str, argument: str) -> Clusters:
    for group in groups:
        if group.label == name:
            return Clusters(name, group.codes, group.levels[: group.num_recorded])
    for group in groups:
        if name in group.columns:
            place = group.columns.index(name)
            coding = frame.encoding.groups[group.columns]
            part = coding.parts()[place][group.codes]
            return Clusters(name, part, coding.column_levels[place])
    correlated = _correlated_groups(frame)
    if correlated is not None and correlated.label == name:
        return correlated
    if name in frame.columns:
        return _coded(name, frame.columns[name], None, argument)
    more = [] if correlated is None else [correlated.label]
    known = dict.fromkeys([*(group.label for group in groups), *more, *frame.columns])
    raise DataError(
        f"the fit has no column {name!r} (it keeps {', '.join(map(repr, known)) or 'none'}): give the values"
        f" themselves, {argument}=data[{name!r}]"
    )


def _coded(label: str, column: DataColumn, rows: np.ndarray | None, argument: str) -> Clusters:
    if column.missing is not None:
        missing = column.missing if rows is None else column.missing[rows]
        if missing.any():
            raise DataError(
                f"the {argument} {label!r} is missing in {np.count_nonzero(missing)} of the rows used; leave"
                f" these rows out of the data before the fit, or give them a {argument}"
            )
    codes, levels = factorize(column, rows)
    return Clusters(label, codes, levels)


def require_independent(frame: ModelFrame, clusters: Clusters) -> None:
    """Refuse clusters that the model has as correlated, and fewer than two.

    Parameters
    ----------
    frame : ModelFrame
    clusters : Clusters

    Raises
    ------
    DesignError
        Naming the group and a level at fault.
    """
    m, label = len(clusters.levels), clusters.label
    if m < _FEW:
        raise DesignError(
            f"all rows used are in one cluster, {_shown(clusters.levels[0])} of {label!r}; a cluster-robust"
            " covariance needs several, and for good tests some twenty or more"
        )
    for group in _distinct(frame):
        if group.relationship is not None:
            raise DesignError(
                f"the levels of {group.label!r} are related by a known matrix, so that rows of different"
                " clusters are correlated; a cluster-robust covariance needs independent clusters"
            )
        image = np.empty(group.num_recorded, dtype=np.int64)
        image[group.codes] = clusters.codes
        astray = np.flatnonzero(image[group.codes] != clusters.codes)
        if len(astray):
            raise _spanning(frame, clusters, group, int(astray[0]), int(image[group.codes[astray[0]]]))
    correlated = _correlated_groups(frame)
    if correlated is not None:
        _require_whole(clusters, correlated)


def _require_whole(clusters: Clusters, correlated: Clusters) -> None:
    """Refuse clusters that cut groups of correlated residuals."""
    image = np.empty(len(correlated.levels), dtype=np.int64)
    image[correlated.codes] = clusters.codes
    astray = np.flatnonzero(image[correlated.codes] != clusters.codes)
    if not len(astray):
        return
    row = int(astray[0])
    code = correlated.codes[row]
    own, theirs = (_shown(clusters.levels[number]) for number in (clusters.codes[row], image[code]))
    raise DesignError(
        f"{_shown(correlated.levels[code])} of {correlated.label!r} has rows in several clusters of"
        f" {clusters.label!r}, such as {theirs} and {own}; their residuals are correlated, and with them"
        f" these clusters: cluster by {correlated.label!r}, or by a column that contains its levels"
    )


def _spanning(frame: ModelFrame, clusters: Clusters, group: GroupDesign, row: int, other: int) -> DesignError:
    label, level = clusters.label, _shown(group.levels[group.codes[row]])
    own, theirs = _shown(clusters.levels[clusters.codes[row]]), _shown(clusters.levels[other])
    fault = (
        f"the level {level} of {group.label!r} has rows in several clusters of {label!r}, such as {theirs}"
        f" and {own}; their common random effect makes these clusters correlated"
    )
    others = [one.label for one in _distinct(frame) if one.label != group.label]
    if label in others:
        return DesignError(
            f"{fault}: {label!r} and {group.label!r} are crossed; give with cluster= a column each value of"
            " which contains whole levels of both, if there is one"
        )
    return DesignError(f"{fault}: cluster by {group.label!r}, or by a column that contains its levels")


def _shown(level: Any) -> str:
    """A level in a message."""
    return repr(level.item() if isinstance(level, np.generic) else level)

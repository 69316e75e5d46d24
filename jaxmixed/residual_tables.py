"""The residual structure of a fit in tables: its parameters, what the summary shows, and its description."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DesignError, printable
from jaxmixed.formatting import Table, count, counted, number
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.residual_groups import Pattern, ResidualLabels, pattern_matrices, patterns_of
from jaxmixed.residual_inference import (
    MeanVariance,
    ResidualInference,
    has_sds,
    mean_variance,
    residual_inference,
    residual_intervals,
)

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates, ResidualEstimate
    from jaxmixed.frame import ModelFrame

MOST_ROWS = 21
"""Of a structure with more parameters (six correlated times have 21) the summary shows a matrix."""

MOST_TIMES = 12
"""Labels of times that a matrix of correlations has room for."""

_COLUMNS = ("estimate", "std_error", "conf_low", "conf_high")


class ResidualTables:
    """Methods of `MixedResults` about the structure of correlated residuals."""

    frame: ModelFrame
    estimates: Estimates

    @cached_property
    def _residual_inference(self) -> ResidualInference:
        return residual_inference(self.estimates)

    @property
    def residual_parameters(self) -> pd.Series:
        """Parameters of the residual structure on natural scales, by name; empty without a structure.

        ``phi1``, ``theta1`` (autoregressive, moving average), ``rho`` (correlation), ``range``, ``nugget``,
        ``corr[a,b]`` (of two times), ``sd[level]`` (standard deviations in the units of the response, where
        there are several; a single one is `sigma`), ``delta`` (exponent of a variance function). With `by`
        each stratum has its own, ``phi1[stratum]``.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> pigs = jm.datasets.load("pig")
        >>> fit = jm.mixed("weight ~ week", pigs, residuals="ar1(week | id)", method="ml")
        >>> fit.residual_parameters.round(4).to_dict()
        {'phi1': 0.9446}
        """
        found = self._residual_inference
        return pd.Series(np.array(found.values), index=_index(found), name="estimate", dtype=np.float64)

    def residual_table(self, level: float = 0.95) -> pd.DataFrame:
        """Parameters of the residual structure with standard errors and limits.

        Parameters
        ----------
        level : float
            Level of the intervals.

        Returns
        -------
        pandas.DataFrame
            Columns ``estimate, std_error, conf_low, conf_high`` by parameter, named as in
            `residual_parameters`. Standard errors are from the exact Hessian. Limits are symmetric on the
            atanh scale of correlations, the log scale of ranges and standard deviations, the logit scale of
            a nugget, and on the scale itself of coefficients that are no correlations. A parameter at the
            end of its range has no standard error and no limits (NaN).

        Raises
        ------
        DataError
            If `level` is not between 0 and 1.

        Examples
        --------
        >>> import jaxmixed as jm
        >>> pigs = jm.datasets.load("pig")
        >>> fit = jm.mixed("weight ~ week", pigs, residuals="ar1(week | id)", method="ml")
        >>> fit.residual_table().round(4)
                   estimate  std_error  conf_low  conf_high
        parameter
        phi1         0.9446     0.0102    0.9208     0.9614
        """
        return parameter_table(self._residual_inference, level)


def _index(found: ResidualInference) -> pd.Index:
    return pd.Index(found.names, name="parameter", dtype=object)


def parameter_table(found: ResidualInference, level: float) -> pd.DataFrame:
    """Table of the natural parameters of a residual structure."""
    return pd.DataFrame(residual_intervals(found, level), index=_index(found), columns=list(_COLUMNS))


def residual_group(frame: ModelFrame, estimates: Estimates) -> tuple[str, np.ndarray] | None:
    """Label of the groups of correlated rows, and the numbers of rows in them; None if there are none."""
    own = frame.residual
    if own is None or estimates.residual is None or estimates.residual.labels.group is None:
        return None
    return estimates.residual.labels.group, np.bincount(own.design.codes, minlength=own.design.size)


def mean_residual(frame: ModelFrame, estimates: Estimates) -> MeanVariance:
    """Mean over the rows of their residual variances, relative to sigma squared."""
    return mean_variance(estimates.residual, None if frame.residual is None else frame.residual.design)


def mean_residual_note(estimates: Estimates) -> str:
    """What a share of the variance takes for the residual variance, where there are several; or nothing."""
    own = estimates.residual
    several = own is not None and (has_sds(own.covariance) or own.covariance.function != "none")
    return "with the mean of the residual variances over the rows" if several else ""


def require_independent(estimates: Estimates, what: str) -> None:
    """Refuse what has no meaning beside correlated residuals.

    Raises
    ------
    DesignError
    """
    own = estimates.residual
    if own is not None and own.covariance.family.num_params:
        raise DesignError(
            f"{what} takes rows to be alike only by their random effects, but the residuals are correlated "
            f"({printable(own.labels.text)}); wcorrelation() gives the correlations of a group's rows"
        )


def structure_text(labels: ResidualLabels, covariance: ResidualCovariance) -> str:
    """A residual structure in words: its family and what its parameters differ by."""
    text = labels.text
    if labels.by is not None:
        text += f", its own for each {labels.by}"
    if labels.variance_by is not None:
        text += f", variances by {labels.variance_by}"
    if labels.covariate is not None:
        form = "a power" if covariance.function == "power" else "an exponential function"
        text += f", variances as {form} of {labels.covariate}"
    return text


def structure_in_words(frame: ModelFrame, estimates: Estimates) -> str:
    """The residual structure, its groups and how many are unlike, in a line; empty without one."""
    own = estimates.residual
    if own is None:
        return ""
    text = structure_text(own.labels, own.covariance)
    grouped = residual_group(frame, estimates)
    if grouped is not None and frame.residual is not None:
        sizes = grouped[1]
        low, high = int(sizes.min()), int(sizes.max())
        rows = counted(high, "row") if low == high else f"{count(low)} to {counted(high, 'row')}"
        patterns = counted(len(patterns_of(frame.residual.design)), "pattern")
        text += f"; {counted(len(sizes), 'group')} of {rows}, {patterns}"
    return printable(text)


def sigma_label(own: ResidualEstimate | None) -> str:
    """What the row of the residual variance is called where there are several: whose it is."""
    if own is None or not has_sds(own.covariance):
        return "Residual"
    stratum = own.labels.strata[:1] if own.covariance.strata > 1 else ()
    level = own.labels.levels[:1] if own.covariance.levels > 1 else ()
    return printable(f"Residual ({', '.join((*stratum, *level))})")


def summary_tables(estimates: Estimates, level: float) -> list[Table]:
    """Tables of the residual parameters for the summary; none without a structure.

    Parameters
    ----------
    estimates : Estimates
    level : float
        Level of the intervals.

    Returns
    -------
    list of Table
        One of all parameters with intervals or, where they are many and most of them correlations between
        labelled times, one matrix of correlations for each stratum, with the standard deviations.
    """
    own = estimates.residual
    if own is None:
        return []
    found = residual_inference(estimates)
    labels = own.labels
    if not found.names:
        return []
    if len(found.names) > MOST_ROWS and 0 < len(labels.times) <= MOST_TIMES:
        return [_matrix_table(estimates, own, stratum) for stratum in range(own.covariance.strata)]
    table = parameter_table(found, level)
    records = table.itertuples(index=True, name=None)
    rows = tuple((printable(name), *map(number, cells)) for name, *cells in records)
    left_out = len(rows) - MOST_ROWS
    if left_out > MOST_ROWS:
        rows = (*rows[:MOST_ROWS], (f"and {count(left_out)} more: residual_table()",))
    limits = f"[{100 * level:.12g}% conf."
    return [Table("Residual parameters", ("", "Estimate", "Std. error", limits, "interval]"), rows)]


def residual_notes(estimates: Estimates) -> list[str]:
    """What a reader should know about the numbers of a residual structure."""
    own = estimates.residual
    if own is None or own.covariance.function == "none":
        return []
    name = printable(own.labels.covariate or "")
    where = f"{name} is 1" if own.covariance.function == "power" else f"{name} is 0"
    return [f"the residual variance and standard deviations are those of rows in which {where}."]


def _matrix_table(estimates: Estimates, own: ResidualEstimate, stratum: int) -> Table:
    """Correlations between all times of one stratum, below the diagonal, and standard deviations."""
    covariance, labels = own.covariance, own.labels
    T = len(labels.times)
    by_time = covariance.levels == T and labels.levels == labels.times
    at = Occasions(
        times=np.arange(float(T))[:, None],
        levels=(np.arange(T) if by_time else np.zeros(T, dtype=np.int64))[:, None],
        covariate=np.ones((T, 1)),
        present=np.ones((T, 1), dtype=bool),
        stratum=np.array([stratum]),
    )
    (R,) = pattern_matrices(covariance, own.free, [Pattern(np.zeros((1, T), int), np.zeros(1, int), at)])
    sd = np.sqrt(np.diagonal(R))
    corr = R / np.outer(sd, sd)
    rows: list[tuple[str, ...]] = [
        (
            printable(name),
            number(estimates.sigma * sd[i], 5, 8),
            *(f"{value:.3f}" for value in corr[i, :i]),
            *("" for _ in range(i, T - 1)),
        )
        for i, name in enumerate(labels.times)
    ]
    if covariance.levels > 1 and not by_time:
        rows.append(("standard deviations of other levels: residual_table()",))
    where = f", {printable(labels.strata[stratum])}" if covariance.strata > 1 else ""
    header = (printable(labels.time or ""), "SD", *(printable(name) for name in labels.times[:-1]))
    title = f"Residual correlations{where} (standard errors and limits: residual_table())"
    return Table(title, header, tuple(rows))


def residual_document(frame: ModelFrame, estimates: Estimates, table: pd.DataFrame) -> dict[str, Any] | None:
    """The residual structure, and the table of its parameters, for a JSON document; None without one."""
    own = estimates.residual
    if own is None:
        return None
    labels, grouped = own.labels, residual_group(frame, estimates)
    return {
        "structure": own.covariance.family.name,
        "text": labels.text,
        "group": labels.group,
        "groups": None if grouped is None else len(grouped[1]),
        "time": labels.time,
        "times": labels.times,
        "by": labels.by,
        "strata": labels.strata if own.covariance.strata > 1 else (),
        "variance_by": labels.variance_by,
        "levels": labels.levels if own.covariance.levels > 1 else (),
        "covariate": labels.covariate,
        "parameters": table.reset_index().to_dict("records"),
    }

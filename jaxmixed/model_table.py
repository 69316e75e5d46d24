"""The table of several models: size, criterion and test of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxmixed.errors import printable
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import NotedFrame, Table, number, p_number, wrapped
from jaxmixed.residual_tables import structure_text

_METHODS = {"ml": "maximum likelihood (ML)", "reml": "restricted maximum likelihood (REML)"}
_SHOWN = {"formula", "method", "num_params", "llf", "aic", "bic"}


def model_rows(fits: Sequence[Fitted]) -> pd.DataFrame:
    """What a comparison says of each model by itself.

    Parameters
    ----------
    fits : sequence of MixedResults

    Returns
    -------
    pandas.DataFrame
        Columns ``formula, method, num_params, llf, deviance, aic, bic, residuals``; the last is the residual
        structure in words, empty for independent residuals with one variance.
    """
    rows = []
    for fit in fits:
        found, own = fit.estimates, fit.estimates.residual
        rows.append(
            {
                "formula": fit.frame.formula.text,
                "method": found.method,
                "num_params": found.num_params,
                "llf": found.llf,
                "deviance": found.deviance,
                "aic": found.deviance + 2 * found.num_params,
                "bic": found.deviance + np.log(found.nobs) * found.num_params,
                "residuals": "" if own is None else structure_text(own.labels, own.covariance),
            }
        )
    return pd.DataFrame(rows)


def described(row: pd.Series) -> str:
    """Formula and residual structure of a row of `model_rows`."""
    residuals = row.get("residuals", "")
    return printable(f"{row['formula']}; residuals {residuals}" if residuals else row["formula"])


class ModelTable(NotedFrame):
    """A row per model, printed with the formulas above the numbers and a note below them.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> fits = [jm.mixed(f"Reaction ~ Days + ({t} | Subject)", data) for t in ("1", "1 + Days")]
    >>> print(jm.compare(fits[0], fits[1]).drop(columns="p_value").columns.tolist()[:3])
    ['formula', 'method', 'num_params']
    """

    def __repr__(self) -> str:
        if not set(self.columns) >= _SHOWN:
            return super().__repr__()
        method = str(self["method"].iloc[0]) if len(self) else ""
        lines = [f"Models fitted by {_METHODS.get(method, method)}"]
        names = [str(name) for name in self.index]
        for name, (_, row) in zip(names, self.iterrows(), strict=True):
            lines.append(wrapped(described(row), first=f"  {name}  ", indent=" " * (len(name) + 4)))
        header = ["", "params", "log lik.", "AIC", "BIC"]
        columns = [[f"{int(size):,}" for size in self["num_params"]]]
        columns += [[number(value) for value in self[name]] for name in ("llf", "aic", "bic")]
        if {"statistic", "p_value", "distribution"} <= set(self.columns):
            header += ["LR", "distribution", "p"]
            tested = ~self["statistic"].isna()
            shown = [[number(value, 6) for value in self["statistic"]], [*map(str, self["distribution"])]]
            shown.append([p_number(value) for value in self["p_value"]])
            columns += [
                [cell if own else "" for cell, own in zip(column, tested, strict=True)] for column in shown
            ]
        rows = tuple(zip(names, *columns, strict=True))
        lines.append(Table("", tuple(header), rows).text())
        note = self.attrs.get("note")
        return "\n".join([*lines, *([wrapped(f"Note: {note}")] if note else [])])

    __str__ = __repr__

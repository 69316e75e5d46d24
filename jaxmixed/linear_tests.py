"""Tests and estimates of linear functions of the coefficients that a user writes down.

A coefficient whose column was dropped because others determine it is held at zero, as everywhere in the
results: a function of the others is what the fitted parametrisation says, and one that gives weight to the
dropped coefficient is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.coefficient_names import Coefficients
from jaxmixed.errors import DataError, FormulaError, printable
from jaxmixed.fixed_inference import ESTIMABLE, FixedInference, independent_rows, linear_table
from jaxmixed.formatting import NotedFrame
from jaxmixed.linear_expressions import LinearFunctions, linear_functions

_MOST_NAMED = 5


def joint_hypothesis(
    inference: FixedInference, coefficients: Coefficients, hypothesis: Any, rhs: Any = None
) -> pd.DataFrame:
    """Joint test of linear hypotheses; see `MixedResults.test`."""
    functions, dropped = _with_values(linear_functions(hypothesis, coefficients), inference, rhs)
    chosen = independent_rows(functions.L)
    redundant = _redundant(functions, chosen)
    found = inference.of_kept.joint_test(functions.L[chosen], functions.rhs[chosen])
    chi2 = math.isinf(found.den_df)
    statistic = found.statistic * found.num_df if chi2 else found.statistic
    table = NotedFrame(
        [(found.num_df, found.den_df, statistic, found.p_value)],
        columns=["num_df", "den_df", "statistic", "p_value"],
    )
    table.attrs["hypotheses"] = [_equation(functions, i) for i in chosen]
    table.attrs["distribution"] = "chi2" if chi2 else "F"
    table.attrs["note"] = _note(table, inference, redundant, dropped)
    return table


def linear_combinations(
    inference: FixedInference, coefficients: Coefficients, expressions: Any, level: float = 0.95
) -> pd.DataFrame:
    """Estimates of linear functions; see `MixedResults.lincom`."""
    functions = linear_functions(expressions, coefficients)
    if functions.equations.any():
        first = printable(functions.labels[int(functions.equations.argmax())])
        raise FormulaError(
            f"lincom() estimates expressions, and {first!r} is an equation: test() tests it; to estimate the "
            "difference of its sides, write '-' for '='"
        )
    _refuse_dropped(functions, inference)
    table = linear_table(inference.of_kept, functions.L, functions.rhs, level, functions.labels)
    for column in ("estimate", "conf_low", "conf_high"):
        table[column] -= functions.rhs  # minus the constants
    return table


def _with_values(
    functions: LinearFunctions, inference: FixedInference, rhs: Any
) -> tuple[LinearFunctions, list[str]]:
    """The functions with the values of ``rhs=``, without the dropped coefficients of whole terms."""
    if rhs is not None:
        if functions.equations.any():
            raise DataError("rhs= is for hypotheses without an equals sign; the text has one")
        functions = functions._replace(rhs=functions.rhs + _values(rhs, len(functions.rhs)))
    dropped = functions.of_terms & functions.L[:, ~inference.kept].any(axis=1)
    names = [label for label, one in zip(functions.labels, dropped, strict=True) if one]
    if dropped.all():
        raise _all_dropped(names)
    stay = np.flatnonzero(~dropped)
    functions = functions._replace(
        L=functions.L[stay],
        rhs=functions.rhs[stay],
        labels=tuple(functions.labels[i] for i in stay),
        of_terms=functions.of_terms[stay],
        equations=functions.equations[stay],
    )
    _refuse_dropped(functions, inference)
    return functions, names


def _values(rhs: Any, count: int) -> np.ndarray:
    """One number for each hypothesis."""
    try:
        values = np.asarray(rhs, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if not np.isfinite(values).all() or values.shape not in ((), (1,), (count,)):
        raise DataError(
            f"rhs={rhs!r:.80} does not fit: give one finite number, or one for each of {count} rows"
        )
    return np.broadcast_to(values, (count,))


def _refuse_dropped(functions: LinearFunctions, inference: FixedInference) -> None:
    """Refuse functions of coefficients that have no estimate."""
    involved = functions.L.any(axis=0) & ~inference.kept
    if involved.any():
        raise _all_dropped([inference.names[j] for j in np.flatnonzero(involved)])


def _all_dropped(names: list[str]) -> DataError:
    shown = ", ".join(repr(printable(name)) for name in names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return DataError(
        f"no estimate of {shown}{more}: the other columns determine what was dropped, so it says nothing of "
        "its own; leave it out"
    )


def _redundant(functions: LinearFunctions, chosen: np.ndarray) -> list[str]:
    """Hypotheses that follow from the others.

    Raises
    ------
    DataError
        If they contradict the others.
    """
    names, L = [], functions.L
    for i in sorted(set(range(len(L))) - set(chosen.tolist())):
        earlier = chosen[chosen < i]
        weights = np.linalg.lstsq(L[earlier].T, L[i])[0]
        parts = weights * functions.rhs[earlier]
        size = abs(functions.rhs[i]) + np.abs(parts).sum()
        label = _equation(functions, i)
        if abs(parts.sum() - functions.rhs[i]) > ESTIMABLE * size:
            used = earlier[np.abs(weights) > ESTIMABLE * np.abs(weights).max()]
            others = " and ".join(repr(_equation(functions, j)) for j in used)
            raise DataError(
                f"the hypotheses contradict each other: {label!r} cannot hold together with {others}"
            )
        names.append(label)
    return names


def _equation(functions: LinearFunctions, i: int) -> str:
    """Hypothesis i in full."""
    complete = functions.equations[i] and not functions.of_terms[i]
    return printable(functions.labels[i] if complete else f"{functions.labels[i]} = {functions.rhs[i]:.6g}")


def _note(table: pd.DataFrame, inference: FixedInference, redundant: list[str], dropped: list[str]) -> str:
    """What was tested, the distribution of the statistic, and what was left out."""
    (num_df, den_df), hypotheses = table.iloc[0, :2], table.attrs["hypotheses"]
    more = f" and {len(hypotheses) - _MOST_NAMED} more" if len(hypotheses) > _MOST_NAMED else ""
    chi2 = table.attrs["distribution"] == "chi2"
    law = f"chi-squared({num_df:g})" if chi2 else f"F({num_df:g}, {den_df:.6g})"
    parts = [f"H0: {', '.join(hypotheses[:_MOST_NAMED])}{more}", f"statistic: {law}"]
    if inference.title:
        parts.append(inference.title)
    if redundant:
        parts.append(f"left out, since the others imply it: {', '.join(redundant[:_MOST_NAMED])}")
    if dropped:
        parts.append(f"left out, since dropped from the model: {', '.join(dropped[:_MOST_NAMED])}")
    return printable("; ".join(parts))

"""Tables of groups: their coefficients, and the joint covariance of their predicted effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.errors import DataError, printable
from jaxmixed.formatting import counted
from jaxmixed.grouping import level_positions
from jaxmixed.plot_effects import choose_group

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame
    from jaxmixed.prediction_error import ErrorModel

BETAS = ("known", "estimated")
"""Whether errors of predicted effects count those of the fixed effects: ``"estimated"``."""

MOST_EFFECTS = 5_000
"""Of a joint covariance matrix: 200 MB."""


def check_beta(beta: str) -> None:
    """Refuse what is neither ``"known"`` nor ``"estimated"``.

    Raises
    ------
    DataError
    """
    if beta not in BETAS:
        raise DataError(f"beta is {beta!r}; errors take the fixed effects as 'known' or as 'estimated'")


def by_group(
    frame: ModelFrame, estimates: Estimates, arrays: Sequence[np.ndarray]
) -> dict[str, pd.DataFrame]:
    """Tables (level by effect) of arrays (m, q) of the terms, those of one grouping side by side.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    arrays : sequence of (m, q) arrays
        Of every term.
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    for term, values in zip(estimates.terms, arrays, strict=True):
        levels = frame.groups[term.frame_index].levels.rename(term.group)
        table = pd.DataFrame(np.array(values, dtype=np.float64), index=levels, columns=list(term.names))
        tables.setdefault(term.group, []).append(table)
    return {
        group: found[0] if len(found) == 1 else pd.concat(found, axis=1) for group, found in tables.items()
    }


def group_coefficients(params: pd.Series, effects: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Sums of fixed and random effects by group; see `MixedResults.coef`, which calls this.

    Parameters
    ----------
    params : pandas.Series
        Fixed effects.
    effects : dict of str to pandas.DataFrame
        Predicted random effects by grouping.

    Returns
    -------
    dict of str to pandas.DataFrame
    """
    tables = {}
    for group, own in effects.items():
        names = [*params.index, *own.columns.difference(params.index, sort=False)]
        fixed = params.reindex(names)
        # A dropped coefficient counts as zero, and one that is not among the fixed effects has mean zero.
        fixed[fixed.index.isin(own.columns)] = fixed[fixed.index.isin(own.columns)].fillna(0.0)
        values = np.tile(fixed.to_numpy(), (len(own), 1))
        values[:, fixed.index.get_indexer(own.columns)] += own.to_numpy()
        tables[group] = pd.DataFrame(values, index=own.index, columns=names)
    return tables


def effects_covariance(
    frame: ModelFrame,
    estimates: Estimates,
    errors: ErrorModel,
    effects: dict[str, pd.DataFrame],
    group: str | None,
    levels: Any,
) -> pd.DataFrame:
    """Joint covariance of errors of predicted effects; see `MixedResults.ranef_cov`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    errors : ErrorModel
        With fixed effects known or estimated.
    effects : dict of str to pandas.DataFrame
        Predicted effects by grouping.
    group : str or None
    levels : iterable, one level, or None

    Returns
    -------
    pandas.DataFrame
    """
    if group is None and len(effects) > 1:
        labels = ", ".join(repr(printable(label)) for label in effects)
        raise DataError(f"the model has several groupings; say of which by group=, one of {labels}")
    label = choose_group(effects, group)
    index = effects[label].index
    if pd.api.types.is_scalar(levels) and levels is not None:
        levels = [levels]
    chosen = np.arange(len(index)) if levels is None else level_positions(index, levels, label)
    terms = [(i, term) for i, term in enumerate(estimates.terms) if term.group == label]
    names = [(i, j, name) for i, term in terms for j, name in enumerate(term.names)]
    size = len(chosen) * len(names)
    if size > MOST_EFFECTS:
        raise DataError(
            f"the joint covariance of {counted(len(names), 'effect')} of {counted(len(chosen), 'level')} of"
            f" {printable(label)!r} is a matrix of order {size:,} ({8 * size**2 / 1e9:,.1f} GB); choose some"
            f" by levels=, at most {MOST_EFFECTS // len(names):,}"
        )
    codes = np.repeat(chosen, len(names))
    rows = []
    for i, term in terms:
        Z = np.zeros((len(chosen), len(names), len(term.names)))
        for place, (owner, j, _) in enumerate(names):
            if owner == i:
                Z[:, place, j] = 1.0
        rows.append((i, Z.reshape(size, len(term.names)), codes))
    pairs = pd.MultiIndex.from_product([index[chosen], [name for *_, name in names]], names=[label, "effect"])
    return pd.DataFrame(errors.rows(None, rows).covariance(), index=pairs, columns=pairs)

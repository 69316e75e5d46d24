"""What grouping does to samples: design effects, and how reliably a group's own data tell its effects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxmixed import effects
from jaxmixed.formatting import NotedFrame
from jaxmixed.icc import WEIGHTED, nested_order, require_groups
from jaxmixed.residual_tables import mean_residual, require_independent
from jaxmixed.variance_parts import mean_moment, variance_parts

if TYPE_CHECKING:
    from jaxmixed.crossproducts import Reduction
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame


def design_effects(frame: ModelFrame, estimates: Estimates) -> pd.DataFrame:
    """Table of design effects; see `Marginal.design_effect`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates

    Returns
    -------
    pandas.DataFrame
    """
    require_groups(estimates)
    require_independent(estimates, "design_effect()")
    residual = mean_residual(frame, estimates)
    designs = [frame.groups[term.frame_index] for term in estimates.terms]
    num_rows = len(frame.y)
    within = variance_parts(estimates, [mean_moment(group) for group in designs], residual).values
    # Variance of the sum of all rows over n: a level's covariates are summed before they are squared.
    moments = [_summed_moment(group) / num_rows for group in designs]
    summed = variance_parts(estimates, moments, residual).values
    variance, rows = float(within.sum()), []
    groups = nested_order(frame, estimates)
    for group in groups:
        own = [i for i, term in enumerate(estimates.terms) if term.group == group.label]
        sizes = np.bincount(group.codes).astype(np.float64)
        mean, kish = float(sizes[sizes > 0].mean()), float(sizes @ sizes / num_rows)
        share = float(within[own].sum()) / variance
        excess = float(summed[own].sum() - within[own].sum()) / variance
        rows.append((share, mean, kish, (mean - 1) * share, excess))
    parts = np.array(rows)
    total = (float(parts[:, 0].sum()), np.nan, np.nan, *parts[:, 3:].sum(axis=0).tolist())
    columns = ["icc", "mean_size", "kish_size", "deff_mean", "deff"]
    index = pd.Index([*(group.label for group in groups), "total"], name="group")
    table = NotedFrame([*rows, total], index=index, columns=columns, dtype=np.float64)
    table[["deff_mean", "deff"]] += 1.0
    table["effective_n"] = num_rows / table["deff"]
    if frame.weights is not None:
        table.attrs["note"] = WEIGHTED
    return table


def _summed_moment(group: GroupDesign) -> np.ndarray:
    """Sum (q, q) over levels of the outer products of their summed covariates, or over related pairs."""
    sums = np.stack([np.bincount(group.codes, column) for column in group.Z.T], axis=1)
    if group.relationship is None:
        return np.asarray(sums.T @ sums)
    related = group.relationship.matrix[: len(sums), : len(sums)]
    return np.asarray(sums.T @ related @ sums)


def reliabilities(frame: ModelFrame, estimates: Estimates, state: Reduction) -> dict[str, pd.DataFrame]:
    """Tables of reliabilities by grouping; see `Marginal.reliability`, which calls this.

    Parameters
    ----------
    frame : ModelFrame
    estimates : Estimates
    state : Reduction

    Returns
    -------
    dict of str to pandas.DataFrame
    """
    tables: dict[str, list[pd.DataFrame]] = {}
    if not estimates.terms:
        return {}
    covariances = effects.random_effects_covariance(state, estimates, beta="known")
    for term, values in zip(estimates.terms, covariances, strict=True):
        group = frame.groups[term.frame_index]
        prior = np.broadcast_to(np.diagonal(term.cov), (len(group.levels), len(term.names)))
        if group.relationship is not None:
            prior = prior * np.diagonal(group.relationship.matrix)[:, None]
        left = np.einsum("mii->mi", values)
        with np.errstate(all="ignore"):
            found = np.where(prior > 0, np.clip(1 - left / prior, 0.0, 1.0), np.nan)
        table = pd.DataFrame(found, index=group.levels.rename(term.group), columns=list(term.names))
        tables.setdefault(term.group, []).append(table)
    return {
        label: found[0] if len(found) == 1 else pd.concat(found, axis=1) for label, found in tables.items()
    }

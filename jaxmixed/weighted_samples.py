"""Fits whose rows and groups count other than once: what they report, and what they refuse by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed.errors import DesignError, printable
from jaxmixed.predict import linear_predictor
from jaxmixed.pseudo_likelihood import sandwich

if TYPE_CHECKING:
    from jaxmixed.crossproducts import Reduction
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame


NO_ERRORS = "the model's variances are those of rows that count once, and weights are not numbers of rows"
"""Why predictions have no standard errors."""


NO_CRITERIA = "it is defined by a likelihood, and this is a pseudo-likelihood"
"""Why there are no information criteria."""


AVERAGES = "it averages over rows or groups as if each counted once"
"""Why there are no averages over the data."""


def with_robust_covariances(frame: ModelFrame, reduction: Reduction, estimates: Estimates) -> Estimates:
    """Estimates with the robust covariances that sampling weights imply; others as they are.

    Parameters
    ----------
    frame : ModelFrame
    reduction : Reduction
    estimates : Estimates

    Returns
    -------
    Estimates
    """
    if not is_pseudo_likelihood(estimates):
        return estimates
    residual = frame.y - linear_predictor(frame.X, estimates.beta, frame.offset)
    return sandwich(reduction, estimates, residual)


def is_pseudo_likelihood(estimates: Estimates) -> bool:
    """Whether sampling weights were given."""
    return estimates.sampling is not None and estimates.sampling.kind == "sampling"


def total_frequencies(frame: ModelFrame) -> np.ndarray | None:
    """How often each row (n,) stands in the data, copies of its groups included; None for once."""
    if frame.sampling is None:
        return None
    found = np.array(frame.sampling.rows)
    for group in {group.label: group for group in frame.groups}.values():
        own = frame.sampling.groups.get(group.label)
        found = found if own is None else found * own[group.codes]
    return found


def robust_title(estimates: Estimates) -> str:
    """What the heading of a table of coefficients says of robust standard errors; empty without them."""
    own = estimates.sampling
    if own is None or own.kind == "frequency":
        return ""
    return f"robust standard errors, {own.num_clusters:,} clusters of {printable(own.cluster)}"


def weights_notes(estimates: Estimates, num_rows: int) -> list[str]:
    """What a summary says of weights by which rows and groups count.

    Parameters
    ----------
    estimates : Estimates
    num_rows : int
        Rows of the data that are used.
    """
    own = estimates.sampling
    if own is None:
        return []
    if own.kind == "frequency":
        stand = f"{num_rows:,} rows stand for {own.size:,.0f}"
        return [f"frequency weights: {printable(own.text)}; {stand}."]
    return [
        f"sampling weights: {printable(own.text)}.",
        f"standard errors are robust to {own.num_clusters:,} clusters of {printable(own.cluster)}; those of"
        " variances, too.",
    ]


def refuse_sampling_weights(estimates: Estimates, what: str, why: str, instead: str = "") -> None:
    """Refuse a fit by maximum pseudo-likelihood.

    Parameters
    ----------
    estimates : Estimates
    what : str
        What was asked for.
    why : str
        What it takes for granted, as a clause.
    instead : str
        What to do, as a clause; nothing if there is nothing.

    Raises
    ------
    DesignError

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy").assign(w=2.0)
    >>> fit = jm.mixed("Reaction ~ Days + (1 | Subject)", data, method="ml", sampling_weights="w")
    >>> refuse_sampling_weights(fit.estimates, "lrtest()", "it needs a likelihood", "use test()")
    Traceback (most recent call last):
        ...
    jaxmixed.errors.DesignError: lrtest() is not for fits with sampling weights: it needs a likelihood; \
use test()
    """
    own = estimates.sampling
    if own is not None and own.kind == "sampling":
        ending = f"; {instead}" if instead else ""
        raise DesignError(f"{what} is not for fits with sampling weights: {why}{ending}")


def refuse_weighted_sample(estimates: Estimates, what: str, why: str) -> None:
    """Refuse a fit whose rows or groups count other than once; parameters as `refuse_sampling_weights`.

    Raises
    ------
    DesignError
    """
    own = estimates.sampling
    if own is None:
        return
    copied = "; copy the rows and groups in the data instead" if own.kind == "frequency" else ""
    raise DesignError(f"{what} is not for fits with {own.kind} weights: {why}{copied}")

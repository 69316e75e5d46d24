"""Tables of simulated responses: from a fit, or from any model with all its parameters."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.draws import (
    EffectsSource,
    ResidualSource,
    ResponseSource,
    check_seed,
    effects_source,
    simulate_responses,
)
from jaxmixed.encoding import memory_limit
from jaxmixed.errors import DataError
from jaxmixed.predict import linear_predictor
from jaxmixed.residual_whitening import relative_covariances
from jaxmixed.weighted_samples import refuse_weighted_sample

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame

_LABEL_BYTES = 100  # of a column's name, roughly


def term_source(group: GroupDesign, cov: np.ndarray) -> EffectsSource:
    """Source of the effects of one term with the covariance ``cov`` (q, q) of a level's effects."""
    size, known = group.num_recorded, group.relationship
    relationship = None if known is None else known.matrix[:size, :size]
    return effects_source(group.Z, group.codes, size, cov, relationship)


def residual_sources(frame: ModelFrame, estimates: Estimates) -> tuple[ResidualSource, ...]:
    """Sources of correlated residuals; none where they are independent and alike."""
    if estimates.residual is None:
        return ()
    found = relative_covariances(frame.residual.design, estimates.residual.free)
    return tuple(ResidualSource(pattern.rows, np.linalg.cholesky(R)) for pattern, R in found)


def response_source(frame: ModelFrame, estimates: Estimates) -> ResponseSource:
    """The fitted model as a source of responses with new random effects.

    Terms stand in the order of the formula, so that draws do not depend on the order of the estimates.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> response_source(fit.frame, fit.estimates).terms[0].num_effects
    36
    """
    terms = []
    for term in sorted(estimates.terms, key=lambda term: term.frame_index):
        group = frame.groups[term.frame_index]
        terms.append(term_source(group, term.cov))
    mean = linear_predictor(frame.X, estimates.beta, frame.offset)
    residuals = residual_sources(frame, estimates)
    return ResponseSource(mean, tuple(terms), float(estimates.sigma), frame.weights, residuals)


def simulate_fit(
    frame: ModelFrame,
    estimates: Estimates,
    fitted: Callable[[], np.ndarray],
    n: Any,
    seed: Any,
    random: Any,
) -> pd.DataFrame:
    """Responses of a fitted model; see `MixedResults.simulate`, which gives ``fitted`` lazily."""
    if not isinstance(random, str) or random not in ("new", "fitted"):
        raise DataError(
            f"random is {random!r}; simulate() draws 'new' random effects, or keeps the predicted ones of the"
            " 'fitted' groups"
        )
    refuse_weighted_sample(estimates, "simulate()", "each of its rows stands for several, and is drawn once")
    check_number(n, len(frame.index))
    if random == "fitted":
        residuals = residual_sources(frame, estimates)
        source = ResponseSource(fitted(), (), float(estimates.sigma), frame.weights, residuals)
    else:
        source = response_source(frame, estimates)
    return replicate_table(source, frame.index, n, seed)


def replicate_table(source: ResponseSource, index: pd.Index, n: Any, seed: Any) -> pd.DataFrame:
    """Table of n responses, a column for each; ``attrs["seed"]`` repeats it.

    Parameters
    ----------
    source : ResponseSource
    index : pandas.Index
        Labels of the rows.
    n : int
    seed : int or None
        None takes a fresh one.

    Raises
    ------
    DataError
        If ``n`` is not a positive integer, or the table would not fit into half of the memory.

    Examples
    --------
    >>> source = ResponseSource(np.zeros(4), (), 1.0)
    >>> list(replicate_table(source, pd.RangeIndex(4), 2, 1))
    ['sim_1', 'sim_2']
    """
    n = check_number(n, len(index))
    seed = secrets.randbits(63) if seed is None else check_seed(seed)  # fits into a signed 64-bit column
    values = simulate_responses(source, seed, 0, n)
    columns = [f"sim_{number}" for number in range(1, n + 1)]
    table = pd.DataFrame(values, index=index, columns=columns, copy=False)
    table.attrs["seed"] = seed
    return table


def check_number(n: Any, num_rows: int) -> int:
    """Number of responses as an integer; refuses what is none, and what would not fit into memory."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"n is {n!r}; give the number of simulated responses, a positive integer")
    size, limit = int(n) * (8 * num_rows + _LABEL_BYTES), memory_limit()
    if size > limit:
        raise DataError(
            f"n={n:,} simulated responses of {num_rows:,} rows need {size / 1e9:,.1f} GB, more than half of"
            f" the memory ({limit / 1e9:,.1f} GB); draw fewer at a time, each time with another seed"
        )
    return int(n)

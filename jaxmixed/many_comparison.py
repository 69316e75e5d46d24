"""Likelihood-ratio tests of two models for each of many data sets."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed import comparison
from jaxmixed._distributions import chi2_p_values
from jaxmixed.basis import column_basis
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, user_level
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.multiplicity import Adjustment, adjusted_p_values
from jaxmixed.nesting import nesting_of
from jaxmixed.nulls import likelihood_ratios

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class TermOfMany:
    """What a comparison asks of a random-effects term."""

    group: str
    names: tuple[str, ...]
    structure: str
    frame_index: int


@dataclass(frozen=True, slots=True)
class EstimatesOfMany:
    """What a comparison asks of estimates, where it depends on the model and not on the response."""

    method: str
    beta: np.ndarray
    terms: tuple[TermOfMany, ...]


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One side of a comparison.

    Attributes
    ----------
    frame : ModelFrame
        Of all rows.
    many : ManyEstimates
    signature : (m, 3) array
        Sums over the rows of each data set.
    """

    frame: ModelFrame
    many: ManyEstimates
    signature: np.ndarray

    @property
    def estimates(self) -> EstimatesOfMany:
        """The model, without the numbers of any one fit."""
        beta = np.full(self.frame.X.shape[1], np.nan)
        beta[column_basis(self.frame.X, self.frame.weights).keep] = 0.0
        terms = tuple(
            TermOfMany(label.group, label.names, covariance.name, label.frame_index)
            for label, covariance in zip(self.many.labels, self.many.covariances, strict=True)
        )
        return EstimatesOfMany(self.many.method, beta, terms)

    @property
    def num_params(self) -> int:
        """Parameters that the whole data would have."""
        k = sum(covariance.num_params for covariance in self.many.covariances)
        return int(np.count_nonzero(~np.isnan(self.estimates.beta))) + k + 1


def lrtest_columns(
    a: ComparedModel, b: ComparedModel, *, mixture: bool, adjust: Adjustment
) -> dict[str, np.ndarray | str]:
    """Tests of the smaller of two models in the larger one, for every data set.

    The rules are those of :func:`jaxmixed.comparison.lrtest`.

    Parameters
    ----------
    a, b : ComparedModel
        In either order.
    mixture : bool
    adjust : str
        How p-values are adjusted for the number of models.

    Returns
    -------
    dict
        ``statistic``, ``df``, ``p_value``, ``p_adjusted``: (m,) arrays, NaN where one of the models has no
        estimates; ``distribution`` and ``note``.
    """
    _check_same(a, b)
    small, large = (a, b) if a.num_params <= b.num_params else (b, a)
    one: Any = small
    two: Any = large
    comparison.require_same_criterion(one, two)
    df_design = large.num_params - small.num_params
    if df_design == 0:
        raise DesignError(
            f"both models have {small.num_params} parameters, so neither is a special case of the other"
        )
    nesting = nesting_of(one, two)
    if nesting.obstacle:
        raise DesignError(f"the models are not nested: {nesting.obstacle}")
    more = nesting.more_effects
    if mixture and more != 1:
        raise DesignError(
            f"mixture=True is for a model with exactly one more random effect; here there are {more} more"
        )
    statistic = likelihood_ratios(small.many.llf, large.many.llf)
    df = (large.many.num_params - small.many.num_params).astype(np.float64)
    df[np.isnan(statistic)] = np.nan
    p_value = chi2_p_values(statistic, df)
    distribution, note = f"chi2({df_design})", ""
    if more > 0 and (df_design == 1 or (more == 1 and mixture)):
        half = 0.5 * chi2_p_values(statistic, df - 1) + 0.5 * p_value
        p_value = np.where(statistic <= 0, 1.0, half)
        single = df_design == 1
        distribution = "chibar2(01)" if single else f"0.5 chi2({df_design - 1}) + 0.5 chi2({df_design})"
    elif more > 0:
        note = comparison.CONSERVATIVE
    lower = int(np.count_nonzero(statistic < 0))
    if lower:
        warnings.warn(
            f"lrtest: in {lower:,} of {len(statistic):,} models the larger model has the lower likelihood, "
            "so at least one of the two fits has not converged.",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    return {
        "statistic": statistic,
        "df": df,
        "p_value": p_value,
        "p_adjusted": adjusted_p_values(p_value, adjust),
        "distribution": distribution,
        "note": note,
    }


def _check_same(a: ComparedModel, b: ComparedModel) -> None:
    """Refuse models that were not fitted to the same data sets."""
    if len(a.many) != len(b.many):
        raise DataError(
            f"there are {len(a.many):,} and {len(b.many):,} models, which cannot be compared one by one"
        )
    if len(a.frame.X) != len(b.frame.X):
        raise DataError(
            f"the models use {len(a.frame.X):,} and {len(b.frame.X):,} rows, so their likelihoods cannot be "
            "compared; fit both to the same rows"
        )
    for what, one, two in (
        ("weights", a.frame.weights, b.frame.weights),
        ("offsets", a.frame.offset, b.frame.offset),
    ):
        neutral = 1.0 if what == "weights" else 0.0
        if not np.array_equal(neutral if one is None else one, neutral if two is None else two) and not (
            all(values is None or (values == neutral).all() for values in (one, two))
        ):
            raise DataError(
                f"the models have different {what}, so a likelihood ratio would not compare their effects "
                "alone"
            )
    both = a.many.fitted & b.many.fitted
    sizes = np.abs(a.signature)
    sizes[:, 0] += np.sqrt(np.maximum(a.many.nobs, 1) * sizes[:, 1])  # a sum may cancel
    close = np.abs(a.signature - b.signature) <= _SAME * sizes
    differ = both & ((a.many.nobs != b.many.nobs) | ~close.all(axis=1))
    if differ.any():
        raise DataError(
            f"{np.count_nonzero(differ):,} of the models (the first is number {int(np.argmax(differ))}, from "
            "0) were fitted to other responses or rows, so their likelihoods cannot be compared"
        )

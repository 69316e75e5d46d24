"""Null distributions that are simulated: of likelihood ratios, and under permuted group labels.

A p-value is ``(1 + c) / (1 + n)``, with c the number of n simulated statistics that are no smaller than the
observed one: the test holds its level exactly when the null model's parameters are known, and for any n
(Davison & Hinkley 1997, Bootstrap Methods and their Application, section 4.2).
"""

from __future__ import annotations

import secrets
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxmixed import fitting, many_estimates, resampling
from jaxmixed._distributions import binomial_interval
from jaxmixed.crossproducts import reduce_rows
from jaxmixed.draws import Draws, check_seed
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, printable, user_level
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import counted, p_phrase, wrapped
from jaxmixed.layout import arrange, is_nested
from jaxmixed.resampling import Rows, by_designs, refitter_of, run_blocks
from jaxmixed.residual_refusals import refuse_residual_structure
from jaxmixed.weighted_samples import refuse_weighted_sample

LABELS_STREAM = "permuted labels"
"""Stream of the random orders of group labels."""

# Relative to the log-likelihood: how far below the smaller model's an optimiser may leave the larger model's,
# and how far above it rounding may put it when both are the same model.
LR_OPTIMISER, LR_ROUNDING = 1e-7, 1e-11

_TIE = 1e-8  # statistics this close, relative to 1 + their size, are equal


def likelihood_ratios(llf_small: Any, llf_large: Any) -> np.ndarray:
    """Twice the differences of log-likelihoods, 0 where they are only numerical error.

    Examples
    --------
    >>> likelihood_ratios(np.array([-100.0, -100.0]), np.array([-98.0, -100.0 - 1e-9])).tolist()
    [4.0, 0.0]
    """
    statistic = 2 * (np.asarray(llf_large) - np.asarray(llf_small))
    size = np.maximum(1.0, np.abs(llf_large))
    return np.where((-LR_OPTIMISER * size <= statistic) & (statistic <= LR_ROUNDING * size), 0.0, statistic)


@dataclass(frozen=True, slots=True, eq=False)
class NullDistribution:
    """A statistic, and what it was in data that were made under the null hypothesis.

    Parameters
    ----------
    statistic
        That of the data.
    statistics
        Those of the replicates that could be fitted, (n_ok,).
    how
        How the replicates were made.
    seed
        Seed of the random numbers.
    requested
        Number of replicates that were asked for.
    reasons
        Why replicates failed, in words, with their numbers; these are left out.

    Examples
    --------
    >>> null = NullDistribution(np.float64(3.0), np.arange(4.0), "by hand", 1, 4, {})
    >>> null.p_value, null.n_ok
    (0.4, 4)
    """

    statistic: np.float64
    statistics: np.ndarray
    how: str
    seed: int
    requested: int
    reasons: dict[str, int]

    @property
    def n_ok(self) -> int:
        """Number of replicates in the distribution."""
        return len(self.statistics)

    @property
    def n_failed(self) -> int:
        """Number of replicates that failed and were left out."""
        return sum(self.reasons.values())

    @property
    def n_extreme(self) -> int:
        """Number of replicates whose statistic is no smaller than that of the data."""
        return int((self.statistics >= self.statistic - _TIE * (1 + abs(self.statistic))).sum())

    @property
    def p_value(self) -> float:
        """``(1 + n_extreme) / (1 + n_ok)``."""
        return (1 + self.n_extreme) / (1 + self.n_ok)

    def conf_int(self, level: float = 0.95) -> tuple[float, float]:
        """Exact limits of the p-value that infinitely many replicates would give (Clopper-Pearson)."""
        return binomial_interval(self.n_extreme, self.n_ok, level)

    def quantile(self, level: float = 0.95) -> float:
        """Critical value: a quantile of the simulated statistics."""
        return float(np.quantile(self.statistics, level)) if self.n_ok else np.nan

    def __str__(self) -> str:
        low, high = self.conf_int()
        lines = [
            wrapped(f"Null distribution of {counted(self.n_ok, 'replicate')}, {self.how}, seed {self.seed}"),
            f"statistic = {self.statistic:.4f}, {p_phrase(self.p_value)} (95% Monte-Carlo limits {low:.4f} to"
            f" {high:.4f})",
        ]
        if self.n_ok + self.n_failed < self.requested:
            lines.append(f"Interrupted: {self.requested:,} replicates were asked for.")
        return "\n".join([*lines, *([wrapped(_failures(self))] if self.n_failed else [])])

    __repr__ = __str__


def _failures(null: NullDistribution) -> str:
    reasons = "; ".join(f"{count:,}: {text}" for text, count in null.reasons.items())
    return f"{null.n_failed:,} replicates failed and are left out ({reasons})."


def _distribution(
    statistic: float, arrays: dict[str, np.ndarray], how: str, seed: int, requested: int
) -> NullDistribution:
    """The null distribution of replicates with their statistics and reasons."""
    reason = arrays["reason"]
    null = NullDistribution(
        np.float64(statistic),
        arrays["statistic"][reason == many_estimates.OK],
        how,
        seed,
        requested,
        resampling.reason_counts(reason),
    )
    if null.n_failed:
        warnings.warn(_failures(null), ConvergenceWarning, stacklevel=user_level())
    return null


def _seed(seed: Any) -> int:
    return secrets.randbits(63) if seed is None else check_seed(seed)


def simulated_null(
    small: Fitted,
    large: Fitted,
    n: Any,
    seed: Any = None,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> NullDistribution:
    """Likelihood ratios of two nested models in responses drawn from the smaller one.

    Parameters
    ----------
    small, large : MixedResults
        Fits to the same rows by the same method, with the same offset.
    n : int
        Number of responses.
    seed : int, optional
    devices, mesh, progress
        As for `MixedResults.bootstrap`.

    Returns
    -------
    NullDistribution

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> fits = [jm.mixed(f"Reaction ~ Days + ({t} | Subject)", data) for t in ("1", "Days")]
    >>> simulated_null(*fits, 99, seed=1).p_value
    0.01
    """
    n, seed = resampling.check_count(n, "simulate"), _seed(seed)
    responses = resampling.parametric(small, seed)
    one, other = refitter_of(small), refitter_of(large)

    def work(first: int, last: int) -> dict[str, np.ndarray]:
        Y = responses(first, last)
        null, found = one.fit(Y), other.fit(Y)
        reason = np.where(null.reason != many_estimates.OK, null.reason, found.reason)
        return {"statistic": likelihood_ratios(null.llf, found.llf), "reason": reason}

    arrays, _ = run_blocks(work, n, large, devices, mesh, progress)
    observed = likelihood_ratios(small.estimates.llf, large.estimates.llf)
    return _distribution(float(observed), arrays, "simulated from the smaller model", seed, n)


# Permutation of group labels


@dataclass(frozen=True, slots=True, eq=False)
class _Shuffle:
    """What changes places in a permutation of a grouping's labels.

    Attributes
    ----------
    position : int
        Of the tested factor among the design's (chain, then root).
    unit : (n,) int array
        The unit of each row, ``0 .. u-1``: a row, or a group of the next finer grouping.
    label : (u,) int array
        Level of the tested grouping that each unit is in.
    block : (u,) int array
        Units change places only within their block: a cell of all coarser and crossed groupings.
    """

    position: int
    unit: np.ndarray
    label: np.ndarray
    block: np.ndarray


def _chosen(fit: Fitted, group: Any) -> int:
    """Position of the tested factor among the design's (chain, then root)."""
    design = fit.state.design
    labels = [factor.label for factor in (*design.groupings, *design.root)]
    names = ", ".join(repr(printable(label)) for label in labels)
    if not labels:
        raise DesignError("a linear model has no group labels to permute")
    if group is None:
        if len(labels) > 1:
            raise DataError(f"group= must say which labels are permuted: {names}")
        return 0
    if not isinstance(group, str) or group not in labels:
        raise DataError(f"group is {group!r}; the groupings of the model are {names}")
    return labels.index(group)


def _shuffle(fit: Fitted, position: int) -> _Shuffle:
    """Units and blocks of the permutations of one grouping's labels.

    Raises
    ------
    DesignError
        If nothing can change places, or a unit would have to stand in two blocks.
    """
    design = fit.state.design
    factors = (*design.groupings, *design.root)
    tested = factors[position]
    others = [factor for number, factor in enumerate(factors) if number != position]
    finer = [factor for factor in others if factor.size > tested.size and is_nested(factor, tested)]
    outer = [factor for factor in others if not any(factor is other for other in finer)]
    unit, units = np.arange(len(tested.codes)), len(tested.codes)
    if finer:
        coarsest = min(finer, key=lambda factor: factor.size)
        unit, units = coarsest.codes, coarsest.size
    block = np.zeros(len(unit), dtype=np.int64)
    if outer:
        cells = np.column_stack([factor.codes for factor in outer])
        block = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    label, own = np.empty(units, dtype=np.int64), np.empty(units, dtype=np.int64)
    label[unit], own[unit] = tested.codes, block
    name = printable(tested.label)
    if not np.array_equal(own[unit], block):
        raise DesignError(
            f"the groups within {name!r} lie in more than one group of a crossed grouping, so they cannot"
            " change places; use a simulated likelihood ratio instead: fit.lrtest(smaller, simulate=999)"
        )
    pairs = np.unique(np.column_stack([own, label]), axis=0)
    if len(pairs) == len(np.unique(own)):
        raise DesignError(
            f"no label of {name!r} can change places with another: within each group of the other groupings"
            " there is only one"
        )
    return _Shuffle(position, unit, label, own)


def _permuted(fit: Fitted, shuffle: _Shuffle, seed: int) -> resampling.Designs:
    """Data with the labels of the tested grouping permuted among its units."""
    design, draws = fit.state.design, Draws(seed, LABELS_STREAM)
    codes = tuple(factor.codes for factor in (*design.groupings, *design.root))
    everyone = np.arange(len(design.X))

    def designs(first: int, last: int) -> list[Rows]:
        orders = draws.permutations(first, last - first, len(shuffle.label), shuffle.block)
        found = []
        for order in orders.T:
            own = list(codes)
            own[shuffle.position] = shuffle.label[order][shuffle.unit]
            found.append(Rows(everyone, tuple(own)))
        return found

    return designs


def _without(fit: Fitted, position: int) -> float:
    """Log-likelihood of the model without the random effects of one grouping."""
    estimates, design, stats = fit.estimates, fit.state.design, fit.state.stats
    others = [number for number in range(len(stats.frames)) if number != position]
    if not others:
        return float(estimates.linear_llf)
    factors = (*design.groupings, *design.root)
    layout = arrange([factors[number] for number in others])
    order = [others[i] for i in layout.order]
    chain, root = ([factors[others[i]] for i in part] for part in (layout.chain, layout.root))
    kept = [number for number, term in enumerate(stats.terms) if term.level != position]
    terms = tuple(replace(stats.terms[i], level=order.index(stats.terms[i].level)) for i in kept)
    labels = resampling.labels_of(estimates)
    reduction = reduce_rows(fit.frame.y_less_offset, design.X, chain, terms, design.weights, root)
    smaller = fitting.fit(
        reduction,
        tuple(labels[i] for i in kept),
        fit.frame.x_names,
        method=estimates.method,  # type: ignore[arg-type]
        weighted=design.weights is not None,
    )
    return float(smaller.llf)


def permutation_test(
    fit: Fitted,
    group: Any = None,
    n: int = 999,
    seed: Any = None,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> NullDistribution:
    """Permutation test of a grouping; arguments as for `MixedResults.permutation_test`."""
    n, seed = resampling.check_count(n), _seed(seed)
    position = _chosen(fit, group)
    refuse_weighted_sample(fit.estimates, "permutation_test()", "labels change places between single rows")
    refuse_residual_structure(
        fit.estimates,
        "labels change places between rows as if the residuals of these were exchangeable",
        "use lrtest(smaller, simulate=999) for a test",
    )
    resampling.refuse_related((*fit.state.design.groupings, *fit.state.design.root))
    shuffle = _shuffle(fit, position)
    fits = by_designs(fit, _permuted(fit, shuffle, seed))
    without = _without(fit, position)

    def work(first: int, last: int) -> dict[str, np.ndarray]:
        found = fits(first, last)
        return {"statistic": likelihood_ratios(without, found.llf), "reason": found.reason}

    arrays, _ = run_blocks(work, n, fit, devices, mesh, progress, resampling.MOST_LARGE)
    observed = likelihood_ratios(without, fit.estimates.llf)
    label = (*fit.state.design.groupings, *fit.state.design.root)[position].label
    how = f"labels of {printable(label)} permuted"
    return _distribution(float(observed), arrays, how, seed, n)

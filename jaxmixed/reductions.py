"""Fits of many data sets, each with a design of its own: by group of the data, by weights, by missing rows.

The statistics of models of the same structure are padded to common sizes and stand side by side; what
differs in structure (the order of the levels, aliased columns, a root) goes into batches of its own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmixed import fitting, optim
from jaxmixed.covariance import Covariance
from jaxmixed.crossproducts import Reduction
from jaxmixed.diagnosis import TermLabel
from jaxmixed.errors import DesignError
from jaxmixed.fitting import Units, ungrouped, units_of
from jaxmixed.lanes import LaneRunner, lane_count
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import PERFECT, ManyEstimates, Models, blank, estimates_of, place
from jaxmixed.refits import OneByOne, dependent_terms
from jaxmixed.search import search
from jaxmixed.starts import moment_start
from jaxmixed.statistics import SufficientStatistics, pad_alike

SIZE_CLASS = 4
"""Data sets whose numbers of groups differ by less than this factor stand side by side, padded."""

FEW_GROUPS = 32
"""Up to so many of the finest groups are not compressed: one program then serves all data sets."""


def fit_reductions(
    reductions: Sequence[Reduction | None],
    labels: tuple[TermLabel, ...],
    x_names: tuple[str, ...],
    covariances: tuple[Covariance, ...],
    *,
    method: Method = "reml",
    max_evaluations: int = optim.MAX_ITERATIONS,
    start: np.ndarray | None = None,
    one_by_one: bool = False,
) -> ManyEstimates:
    """Fit data sets of one formula that have designs of their own.

    Parameters
    ----------
    reductions : sequence of Reduction or None
        None for a data set that was refused before; it keeps its row.
    labels : tuple of TermLabel
        In the order of the statistics' terms.
    x_names : tuple of str
        Names of all fixed-effect columns, aliased ones included.
    covariances : tuple of Covariance
        Structure of each term.
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run of the optimiser.
    start : (k,) array, optional
        Parameters in the units of the data, terms in their order, from which all are fitted; by default each
        starts from its own moments.
    one_by_one : bool
        Fit one after the other: for a few, where the program for one is there already and that for many side
        by side would have to be compiled.

    Returns
    -------
    ManyEstimates
        A row for each, in order.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> labels = tuple(TermLabel(t.group, t.names, t.frame_index, 18) for t in fit.estimates.terms)
    >>> covariances = tuple(t.covariance for t in fit.estimates.terms)
    >>> many = fit_reductions([fit.state, None], labels, fit.frame.x_names, covariances)
    >>> many.llf.round(4)
    array([-871.8141,       nan])
    """
    found = blank(len(reductions), labels, x_names, covariances, method)
    batches: dict[Any, list[int]] = {}
    for number, reduction in enumerate(reductions):
        if reduction is None:
            continue
        if not _varies(reduction, method):
            found.reason[number] = PERFECT
            continue
        batches.setdefault(structure_of(reduction, labels), []).append(number)
    for members in batches.values():
        own = [one for one in (reductions[number] for number in members) if one is not None]
        batch = _Batch(own, labels, x_names, method, max_evaluations, one_by_one)
        part = batch.fit(start)
        found = place(found, np.array(members), part)
    return found


def _varies(reduction: Reduction, method: Method) -> bool:
    """Whether the response varies inside the finest groups."""
    stats = reduction.stats
    if not stats.num_params:
        return True
    try:
        fitting.check_within(stats, ungrouped(stats), method)
    except DesignError:
        return False
    return True


def _size_class(groups: int) -> int:
    return int(np.ceil(np.log(max(groups, 1)) / np.log(SIZE_CLASS)))


def statistics_of(reduction: Reduction) -> SufficientStatistics:
    """Statistics to optimise with: compressed where there are many groups."""
    levels = reduction.stats.levels
    return reduction.stats if levels and len(levels[0].count) <= FEW_GROUPS else reduction.compact


def structure_of(reduction: Reduction, labels: tuple[TermLabel, ...]) -> tuple[Any, ...]:
    """What data sets that stand side by side have in common; those with a root stand alone."""
    stats = statistics_of(reduction)
    sizes = tuple(_size_class(len(level.count)) for level in stats.levels)
    compressed = bool(stats.levels) and stats.levels[0].cross is None
    keep = tuple(reduction.fixed.columns.keep.tolist())
    dependent = dependent_terms(labels, reduction)
    return stats.terms, stats.root is not None, dependent, keep, sizes, compressed


class _Batch:
    """Data sets of one structure."""

    def __init__(
        self,
        reductions: Sequence[Reduction],
        labels: tuple[TermLabel, ...],
        x_names: tuple[str, ...],
        method: Method,
        max_evaluations: int,
        one_by_one: bool,
    ) -> None:
        self.reductions, self.max_evaluations, self.one_by_one = reductions, max_evaluations, one_by_one
        first = reductions[0]
        terms = first.stats.terms
        every = [units_of(reduction.stats) for reduction in reductions]
        self.models = Models(
            method=method,
            terms=terms,
            labels=labels,
            dependent=dependent_terms(labels, first),
            frames=tuple(
                np.linalg.inv(np.stack([reduction.columns[t].basis for reduction in reductions]))
                for t in range(len(terms))
            ),
            x_names=x_names,
            keep=first.fixed.columns.keep,
            units=Units(*(np.stack(values) for values in zip(*every, strict=True))),
            whole=np.stack([ungrouped(reduction.stats) for reduction in reductions]),
        )

    def _runner(self) -> LaneRunner | OneByOne:
        compact = [statistics_of(reduction) for reduction in self.reductions]
        method, limit = self.models.method, self.max_evaluations
        if compact[0].root is None and not self.one_by_one:
            compact = pad_alike(compact)
            if lane_count(len(compact), compact[0]) > 1:
                own = jax.tree.map(lambda *values: np.stack(values, axis=-1), *compact)
                return LaneRunner(own, None, compact[0], method, limit)
        return OneByOne(compact.__getitem__, len(compact), compact[0].structures, method, limit)

    def _starts(self, theta: np.ndarray) -> np.ndarray:
        """Parameters of the data's columns in the standardised coordinates of each data set, (m, k)."""
        parts, first = [], 0
        for number, term in enumerate(self.models.terms):
            own = theta[first : first + term.covariance.num_params]
            bases = np.stack([reduction.columns[number].basis for reduction in self.reductions])
            parts.append(term.covariance.transformed(np.broadcast_to(own, (len(bases), len(own))), bases))
            first += len(own)
        return np.concatenate(parts, axis=1)

    def fit(self, start: np.ndarray | None = None) -> ManyEstimates:
        """Optimise, judge, and bring to natural scales."""
        if not self.models.terms:
            nothing = np.zeros(len(self.reductions), dtype=np.int64)
            return estimates_of(self.models, self.models.linear_optima(), nothing)
        run = self._runner()
        if start is None:
            starts = np.stack([moment_start(statistics_of(own)) for own in self.reductions])
        else:
            starts = self._starts(start)
        found = search(run, starts)
        return estimates_of(self.models, found, run.evaluations)

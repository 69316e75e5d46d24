"""Fits without each of many cases: rows, or groups of rows.

Where the model is nested and the cases are rows or whole groups, what a case adds is subtracted from the
statistics of the fit (:mod:`jaxmixed.removal`); otherwise, and where that would cost digits, the rows that
remain are reduced. Every search starts from the optimum of the fit, from where it needs one to three steps;
if that is on the boundary, from its own moments, as a fresh fit does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxmixed import optim, schedule
from jaxmixed.crossproducts import Reduction
from jaxmixed.fitted import Fitted
from jaxmixed.lanes import LaneRunner, lane_count
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import INTERRUPTED, ManyEstimates, Models, estimates_of, place
from jaxmixed.many_fits import blocks_of, design_of_fit, run_models
from jaxmixed.many_results import ManyResults
from jaxmixed.missingness import Outcome, SeparateFits
from jaxmixed.refits import OneByOne, dependent_terms
from jaxmixed.removal import GroupRemoval, Remaining, RowRemoval, holds_whole_groups
from jaxmixed.resampling import correlated_refits, labels_of, picked, reduced
from jaxmixed.search import search
from jaxmixed.starts import moment_start
from jaxmixed.statistics import SufficientStatistics

FEW_CASES = 1000
"""Up to so many cases are fitted one after the other by the program that fitted the model: compiling the one
that has many side by side takes longer."""

COPIES = 6
"""Arrays of the size of its statistics that a case takes while it is fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedCases:
    """What is left out, one at a time.

    Attributes
    ----------
    label : str
        Name of the cases: "rows", or a grouping.
    names : pandas.Index
        Of each case.
    codes : (n,) int array
        Case of each row, ``0 .. c-1``, all present.
    are_rows : bool
        Whether every row is a case, in order.
    """

    label: str
    names: pd.Index
    codes: np.ndarray
    are_rows: bool

    def __len__(self) -> int:
        return len(self.names)


class Deletions:
    """Fits of a model without each case.

    Parameters
    ----------
    fit : Fitted
    cases : NamedCases
    """

    def __init__(self, fit: Fitted, cases: NamedCases) -> None:
        self.fit, self.cases, self.y = fit, cases, fit.frame.y_less_offset
        self.method: Method = "reml" if fit.estimates.method == "reml" else "ml"
        design = design_of_fit(fit.frame, fit.estimates, fit.state)
        self.few = len(cases) <= FEW_CASES
        # On the boundary every search would start from where it might stay.
        self.inside = bool(fit.estimates.free.all())
        self.separate = SeparateFits(design, method=self.method, one_by_one=self.few)
        self.removal: RowRemoval | GroupRemoval | None = None
        self.correlated = correlated_refits(fit)
        if self.correlated is None and holds_whole_groups(fit.state, cases.codes):
            self.removal = GroupRemoval(fit.state, self.y, cases.codes)
        if self.correlated is None and cases.are_rows and not fit.state.design.root:
            self.removal = RowRemoval(fit.state, self.y)
        self.order = np.argsort(cases.codes, kind="stable")
        self.ends = np.cumsum(np.bincount(cases.codes))

    @property
    def bytes_each(self) -> float:
        """Memory of one case while it is fitted."""
        rows = 8.0 * self.fit.state.design.X.size
        return COPIES * (rows if self.removal is None else self.removal.bytes_each)

    def work(self, first: int, last: int) -> Outcome:
        """Fit without each of the cases ``first .. last - 1``."""
        if self.correlated is not None:
            design = self.fit.state.design
            parts = [picked(design, self.rows_without(case)) for case in range(first, last)]
            own = self.correlated.fit_reductions([reduced(self.fit, self.y, part) for part in parts])
            return Outcome(own, {}, np.zeros((last - first, 3)))
        found, subtracted = self.separate.blank(last - first), np.zeros(0, dtype=np.int64)
        if self.removal is not None:
            cases, remaining = self.removal.take_out(first, last)
            subtracted = cases - first
            if len(cases):
                found = place(found, subtracted, self._fit_remaining(remaining))
        others = np.setdiff1d(np.arange(last - first), subtracted)
        details: dict[int, str] = {}
        if len(others):
            kept = [self.rows_without(first + int(case)) for case in others]
            models: list[Any] = [(self.y[rows], rows, None) for rows in kept]
            start = self.fit.estimates.theta if self.inside else None
            part, problems = self.separate.fit(models, start)
            found = place(found, others, part)
            details = {int(others[number]): text for number, text in problems.items()}
        return Outcome(found, details, np.zeros((last - first, 3)))

    def rows_without(self, case: int) -> np.ndarray:
        """Numbers of the rows that remain without a case."""
        start = self.ends[case - 1] if case else 0
        left = np.ones(len(self.y), dtype=bool)
        left[self.order[start : self.ends[case]]] = False
        return np.flatnonzero(left)

    def _fit_remaining(self, remaining: Remaining) -> ManyEstimates:
        """Fit statistics that stand side by side."""
        fit, count = self.fit, len(remaining.whole)
        state: Reduction = fit.state
        labels = labels_of(fit.estimates)
        models = Models(
            method=self.method,
            terms=state.stats.terms,
            labels=labels,
            dependent=dependent_terms(labels, state),
            frames=tuple(np.linalg.inv(columns.basis) for columns in state.columns),
            x_names=fit.frame.x_names,
            keep=state.fixed.columns.keep,
            units=remaining.units,
            whole=remaining.whole,
        )
        if not models.terms:
            return estimates_of(models, models.linear_optima(), np.zeros(count, dtype=np.int64))
        run = _runner(remaining.stats, count, self.method, few=self.few)
        if self.inside:
            start = np.concatenate([term.standard for term in fit.estimates.terms])
            starts = np.tile(start, (count, 1))
        else:
            starts = np.stack([moment_start(_one(remaining.stats, case)) for case in range(count)])
        found = search(run, starts)
        return estimates_of(models, found, run.evaluations)


def _one(stats: SufficientStatistics, model: int) -> SufficientStatistics:
    """Statistics of one of the models along the last axis."""
    found: SufficientStatistics = jax.tree.map(lambda values: np.array(values[..., model], order="C"), stats)
    return found


def _runner(stats: SufficientStatistics, count: int, method: Method, few: bool) -> LaneRunner | OneByOne:
    """Runs of the optimiser for models along the last axis of their statistics."""
    example = _one(stats, 0)
    if not few and lane_count(count, example) > 1:
        return LaneRunner(stats, None, example, method, optim.MAX_ITERATIONS)
    return OneByOne(partial(_one, stats), count, stats.structures, method, optim.MAX_ITERATIONS)


def delete_cases(
    fit: Fitted,
    cases: NamedCases,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> Outcome:
    """Fit a model without each of many cases.

    Parameters
    ----------
    fit : Fitted
        Its variance parameters are where the searches start.
    cases : NamedCases
    devices, mesh, progress
        As for :func:`jaxmixed.schedule.assemble` and :func:`jaxmixed.schedule.run`.

    Returns
    -------
    Outcome
        `estimates` of every case, and in `details` what is wrong where rows do not identify the model. After
        an interrupt the cases that are not done have that as their reason.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> group = fit.frame.groups[0]
    >>> cases = NamedCases("Subject", group.levels, group.codes, are_rows=False)
    >>> delete_cases(fit, cases).estimates.beta[:2].round(2)
    array([[251.83,   9.8 ],
           [254.13,  10.95]])
    """
    crew = schedule.assemble(devices, mesh)
    deletions = Deletions(fit, cases)
    blocks = blocks_of(len(cases), deletions.bytes_each, None, crew)
    blank = deletions.separate.blank if deletions.correlated is None else deletions.correlated.blank
    found = run_models(deletions.work, blocks, crew, blank, progress)
    if not found.estimates.fitted.any() and (found.estimates.reason == INTERRUPTED).any():
        raise KeyboardInterrupt
    return found


def refits_of(fit: Fitted, cases: NamedCases, outcome: Outcome) -> ManyResults:
    """Tables of the fits without each case.

    Parameters
    ----------
    fit : Fitted
    cases : NamedCases
    outcome : Outcome
        From :func:`delete_cases`.

    Returns
    -------
    ManyResults
    """

    def designs(first: int, last: int) -> Iterator[tuple[np.ndarray, Reduction]]:
        deletions = Deletions(fit, cases)
        return deletions.separate.designs([(deletions.rows_without(k), None) for k in range(first, last)])

    return ManyResults(
        frame=fit.frame,
        estimates=outcome.estimates,
        names=cases.names,
        details=outcome.details,
        signature=outcome.signature,
        designs=designs,
    )

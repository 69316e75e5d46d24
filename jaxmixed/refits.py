"""Many fits at once: the responses of one design, to arrays of estimates.

A model that cannot be fitted keeps its row, of NaN, with the reason; its neighbours do not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxmixed import optim
from jaxmixed.covariance import Parameterised
from jaxmixed.crossproducts import Reduction
from jaxmixed.diagnosis import TermLabel, dependent_columns
from jaxmixed.fitting import ungrouped, units_of
from jaxmixed.lanes import LaneRunner, lane_count
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import (
    CONSTANT,
    MAGNITUDE,
    MISSING,
    OK,
    PERFECT,
    ManyEstimates,
    Models,
    blank,
    estimates_of,
    place,
)
from jaxmixed.precision import double_precision
from jaxmixed.responses import ResponsePass, Responses, attach, pad_responses
from jaxmixed.schedule import check_interrupt
from jaxmixed.search import Optimum, SingleRunner, search
from jaxmixed.starts import moment_starts
from jaxmixed.statistics import SufficientStatistics, pad

_CODES = np.array([OK, MISSING, CONSTANT, PERFECT, MAGNITUDE], dtype=np.uint8)
"""Reasons by the codes of `responses`: OK, NOT_FINITE, CONSTANT, PERFECT, MAGNITUDE."""


class OneByOne:
    """Runs of the optimiser for models that do not stand side by side (:class:`jaxmixed.search.Runner`).

    Parameters
    ----------
    statistics_of : callable
        Statistics of a model, by its number; on the host.
    models : int
    structures : tuple of Parameterised
        Owners of successive parameters.
    method : {"reml", "ml"}
    max_evaluations : int

    Attributes
    ----------
    evaluations : (m,) int array
        Evaluations of each model so far.
    """

    def __init__(
        self,
        statistics_of: Callable[[int], SufficientStatistics],
        models: int,
        structures: tuple[Parameterised, ...],
        method: Method,
        max_evaluations: int,
    ) -> None:
        self.statistics_of, self.structures = statistics_of, structures
        self.method, self.limit = method, max_evaluations
        self.evaluations = np.zeros(models, dtype=np.int64)

    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        """One after the other."""
        runs = []
        for model, start in zip(models.tolist(), starts, strict=True):
            check_interrupt()
            run = SingleRunner(self.statistics_of(model), self.method, self.limit)
            runs.append(run(np.zeros(1, dtype=np.int64), start[None]))
            self.evaluations[model] += run.evaluations
        return Optimum(*(np.concatenate(values) for values in zip(*runs, strict=True)))


def dependent_terms(labels: Sequence[TermLabel], reduction: Reduction) -> tuple[bool, ...]:
    """For each term, whether its random-effects columns are linearly dependent."""
    return tuple(
        dependent_columns(label, columns) is not None
        for label, columns in zip(labels, reduction.columns, strict=True)
    )


class Refitter:
    """Fits of many responses to one design.

    Parameters
    ----------
    reduction : Reduction
        Of any response on the design.
    labels : tuple of TermLabel
    x_names : tuple of str
        Names of all fixed-effect columns, aliased ones included.
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run of the optimiser.
    """

    def __init__(
        self,
        reduction: Reduction,
        labels: tuple[TermLabel, ...],
        x_names: tuple[str, ...],
        *,
        method: Method = "reml",
        max_evaluations: int = optim.MAX_ITERATIONS,
    ) -> None:
        self.method, self.max_evaluations = method, max_evaluations
        self.rows = ResponsePass(reduction, method=method)
        self.padded = pad(self.rows.shared)
        self.models = Models(
            method=method,
            terms=reduction.stats.terms,
            labels=labels,
            dependent=dependent_terms(labels, reduction),
            frames=tuple(np.linalg.inv(columns.basis) for columns in reduction.columns),
            x_names=x_names,
            keep=reduction.fixed.columns.keep,
            units=units_of(reduction.stats),
            whole=ungrouped(reduction.stats)[None],
        )

    def fit(self, Y: np.ndarray, starts: np.ndarray | None = None) -> ManyEstimates:
        """Fit every response.

        Parameters
        ----------
        Y : (n, m) array
            Responses less any offset, in the order of the design's rows. Not modified.
        starts : (k,) or (m, k) array, optional
            Standardised parameters to start from; by default each model's own moments.

        Returns
        -------
        ManyEstimates
        """
        own, problem = self.rows.reduce(Y)
        reason = _CODES[problem]
        good = np.flatnonzero(reason == OK)
        if len(good) < len(reason):
            own = jax.tree.map(lambda values: np.ascontiguousarray(values[..., good]), own)
        units = self.models.units._replace(origin=np.asarray(own.origin).T, scale=np.asarray(own.scale))
        models = self.models._replace(units=units, whole=self._ungrouped(own))
        found, evaluations = models.linear_optima(), np.zeros(len(good), dtype=np.int64)
        if models.terms:
            run = self._runner(pad_responses(own))
            begin = moment_starts(self.rows.shared, own)
            if starts is not None:
                begin = np.broadcast_to(starts, (len(reason), starts.shape[-1]))[good]
            found, evaluations = search(run, begin), run.evaluations
        estimates = estimates_of(models, found, evaluations)
        if len(good) == len(reason):
            return estimates
        whole = blank(len(reason), models.labels, models.x_names, estimates.covariances, models.method)
        whole.reason[:], whole.nobs[:], whole.rank[:] = reason, int(units.nobs), len(models.keep)
        return replace(place(whole, good, estimates), frames=models.frames)

    def _ungrouped(self, own: Responses) -> np.ndarray:
        """``[X y]'[X y]`` of every response, (m, r, r): their residuals are orthogonal to X."""
        r = self.models.whole.shape[-1]
        squares = np.array(own.total[-1])
        if own.gram is not None:
            squares += np.einsum("aaum->m", np.asarray(own.gram[1]))
        elif own.levels:
            finest = np.asarray(own.levels[0])
            squares += np.einsum("aum,aum->m", finest, finest)
        whole = np.zeros((len(squares), r, r))
        whole[:, :-1, :-1] = self.models.whole[0, :-1, :-1]
        whole[:, -1, -1] = squares
        return whole

    def _runner(self, own: Responses) -> LaneRunner | OneByOne:
        m, limit = len(own.scale), self.max_evaluations
        if m == 0 or lane_count(m, self.padded) > 1:
            return LaneRunner(own, self.padded, self.padded, self.method, limit)

        def statistics_of(model: int) -> SufficientStatistics:
            with double_precision():
                whole = attach(self.padded, jax.tree.map(lambda values: values[..., model], own))
                return jax.tree.map(np.asarray, whole)

        return OneByOne(statistics_of, m, self.padded.structures, self.method, limit)

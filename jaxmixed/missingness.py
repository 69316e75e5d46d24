"""Fits of many responses to one design, those with missing values to the rows that they have.

Responses that miss the same rows have the same design. Where some share one it is prepared for all of them;
a response whose rows nobody else has is reduced on its own, and such models are fitted side by side.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxmixed import optim
from jaxmixed.covariance import Covariance
from jaxmixed.crossproducts import Reduction
from jaxmixed.errors import JaxMixedError
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import (
    CONSTANT,
    MAGNITUDE,
    MISSING,
    PERFECT,
    REFUSED,
    ManyEstimates,
    blank,
    place,
)
from jaxmixed.reductions import fit_reductions
from jaxmixed.refits import Refitter
from jaxmixed.responses import LARGEST_MAGNITUDE
from jaxmixed.schedule import check_interrupt
from jaxmixed.subdesigns import WholeDesign

SHARED = 6
"""Responses that miss the same rows are fitted as responses of one design when there are so many of them."""

KEPT_DESIGNS = 32
"""Prepared designs that are kept for later blocks."""


class Outcome(NamedTuple):
    """Estimates of some models, and what numbers cannot say.

    Attributes
    ----------
    estimates : ManyEstimates
    details : dict of int to str
        Why a model was refused, by its position, where `REASONS` is not specific.
    signature : (m, 3) array
        Sums over the rows of each model, which tell data sets apart.
    """

    estimates: ManyEstimates
    details: dict[int, str]
    signature: np.ndarray


def signature(Y: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Sums over the rows of each column, by which two sets of fits know that their data differ.

    Parameters
    ----------
    Y : (n, m) array
        Missing values count as zero.
    counts : (n, m) array, optional
        How often rows count.

    Returns
    -------
    (m, 3) array
        A weighted sum, the sum of squares, and the weighted sum of the rows present.
    """
    n = len(Y)
    pattern = 1.5 + np.sin(np.arange(n, dtype=np.float64) ** 2 % 6.25)
    with np.errstate(over="ignore", invalid="ignore"):
        complete = bool(np.isfinite(Y.sum()))
        known = Y if complete else np.nan_to_num(Y, nan=0.0, posinf=0.0, neginf=0.0)
        squares = np.einsum("nm,nm->m", known, known)
        if counts is None:
            rows = np.full(len(squares), pattern.sum()) if complete else pattern @ ~np.isnan(Y)
            return np.stack([pattern @ known, squares, rows], axis=1)
        squares = np.broadcast_to(squares, counts.shape[1])
        return np.stack([pattern @ (known * counts), squares, pattern @ counts], axis=1)


def unusable(y: np.ndarray) -> int:
    """Reason code of a response without missing values that cannot be fitted, or 0."""
    low, high = float(y.min()), float(y.max())
    largest = max(high, -low)
    if not (np.isfinite(low) and np.isfinite(high)):
        return MISSING
    if low == high:
        return CONSTANT
    return MAGNITUDE if largest > LARGEST_MAGNITUDE or largest < 1 / LARGEST_MAGNITUDE else 0


class SeparateFits:
    """Fits of models that have rows of their own.

    Parameters
    ----------
    design : WholeDesign
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run of the optimiser.
    one_by_one : bool
        As for :func:`jaxmixed.reductions.fit_reductions`.
    """

    def __init__(
        self,
        design: WholeDesign,
        *,
        method: Method = "reml",
        max_evaluations: int = optim.MAX_ITERATIONS,
        one_by_one: bool = False,
    ) -> None:
        self.design, self.method, self.max_evaluations = design, method, max_evaluations
        self.one_by_one = one_by_one
        self.covariances: tuple[Covariance, ...] = tuple(term.covariance for term in design.terms)

    def blank(self, models: int, reason: int = REFUSED) -> ManyEstimates:
        """Estimates of models none of which has been fitted."""
        own = self.design
        return blank(models, own.labels, own.x_names, self.covariances, self.method, reason)

    def fit(
        self,
        models: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]],
        start: np.ndarray | None = None,
    ) -> tuple[ManyEstimates, dict[int, str]]:
        """Fit models given as (response, rows, counts), the arguments of :meth:`WholeDesign.reduce`.

        Parameters
        ----------
        models : list
        start : (k,) array, optional
            As for :func:`jaxmixed.reductions.fit_reductions`.

        Returns
        -------
        ManyEstimates
        dict of int to str
            What was wrong with those that were refused.
        """
        reductions: list[Reduction | None] = []
        reasons, details = np.zeros(len(models), dtype=np.uint8), {}
        for number, (y, rows, counts) in enumerate(models):
            check_interrupt()
            reduction, reason = None, REFUSED if len(y) == 0 else unusable(y)
            if reason == 0:
                try:
                    reduction = self.design.reduce(y, rows, counts)
                except JaxMixedError as problem:
                    exact = str(problem).startswith("The residual variance is zero")
                    reason = PERFECT if exact else REFUSED
                    details[number] = str(problem)
            elif len(y) == 0:
                details[number] = "no row is left"
            reductions.append(reduction)
            reasons[number] = reason
        found = fit_reductions(
            reductions,
            self.design.labels,
            self.design.x_names,
            self.covariances,
            method=self.method,
            max_evaluations=self.max_evaluations,
            start=start,
            one_by_one=self.one_by_one,
        )
        found.reason[reasons > 0] = reasons[reasons > 0]
        found.nobs[reasons > 0] = [len(models[number][0]) for number in np.flatnonzero(reasons)]
        return found, details

    def designs(
        self, models: list[tuple[np.ndarray | None, np.ndarray | None]]
    ) -> Iterator[tuple[np.ndarray, Reduction]]:
        """Designs of models given as (rows, counts); those that would be refused are left out.

        Parameters
        ----------
        models : list

        Yields
        ------
        (1,) int array, Reduction
            Position of a model, and its design with any response.
        """
        for number, (rows, counts) in enumerate(models):
            size = len(self.design.X) if rows is None else len(rows)
            if size == 0:
                continue
            check_interrupt()
            own = None if counts is None else counts[counts > 0]
            try:
                yield np.array([number]), self.design.reduce(any_response(size), rows, own)
            except JaxMixedError:
                continue


class ResponseFits:
    """Fits of responses to one design.

    Parameters
    ----------
    design : WholeDesign
    reduction : Reduction
        Of all its rows, with any response.
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run of the optimiser.
    """

    def __init__(
        self,
        design: WholeDesign,
        reduction: Reduction,
        *,
        method: Method = "reml",
        max_evaluations: int = optim.MAX_ITERATIONS,
    ) -> None:
        self.design, self.method, self.max_evaluations = design, method, max_evaluations
        self.reduction = reduction
        self.complete = self._refitter(reduction)
        self.separate = SeparateFits(design, method=method, max_evaluations=max_evaluations)
        self._prepared: OrderedDict[bytes, Refitter | str] = OrderedDict()
        self._lock = threading.Lock()

    def _refitter(self, reduction: Reduction) -> Refitter:
        return Refitter(
            reduction,
            self.design.labels,
            self.design.x_names,
            method=self.method,
            max_evaluations=self.max_evaluations,
        )

    def fit(self, Y: np.ndarray) -> Outcome:
        """Fit every response.

        Parameters
        ----------
        Y : (n, m) array
            Responses less any offset; NaN where one misses a row. Not modified.

        Returns
        -------
        Outcome
        """
        sums = signature(Y)
        missing = np.isnan(Y)
        holes = missing.any(axis=0)
        if not holes.any():
            return Outcome(self.complete.fit(Y), {}, sums)
        found, details = self.separate.blank(Y.shape[1]), dict[int, str]()
        whole = np.flatnonzero(~holes)
        if len(whole):
            found = place(found, whole, self.complete.fit(Y[:, whole]))
        alone: list[int] = []
        for key, models in _patterns(missing, np.flatnonzero(holes)):
            rows = np.flatnonzero(~missing[:, models[0]])
            if len(rows) == 0:
                found.reason[models], found.nobs[models] = MISSING, 0
                details.update(dict.fromkeys(models, "the response is missing in every row"))
            elif len(models) < SHARED:
                alone += models
            else:
                found = self._fit_pattern(key, rows, np.array(models), Y, found, details)
        if alone:
            given = [np.flatnonzero(~missing[:, model]) for model in alone]
            part, problems = self.separate.fit(
                [(Y[rows, model], rows, None) for rows, model in zip(given, alone, strict=True)]
            )
            found = place(found, np.array(alone), part)
            details.update((alone[number], text) for number, text in problems.items())
        return Outcome(found, details, sums)

    def designs(self, Y: np.ndarray) -> Iterator[tuple[np.ndarray, Reduction]]:
        """Designs of responses: which of them have one, and it.

        Parameters
        ----------
        Y : (n, m) array
            NaN where one misses a row.

        Yields
        ------
        (B,) int array, Reduction
        """
        missing = np.isnan(Y)
        holes = missing.any(axis=0)
        yield np.flatnonzero(~holes), self.reduction
        for _, models in _patterns(missing, np.flatnonzero(holes)):
            rows = np.flatnonzero(~missing[:, models[0]])
            for _, reduction in self.separate.designs([(rows, None)]):
                yield np.array(models), reduction

    def _fit_pattern(
        self,
        key: bytes,
        rows: np.ndarray,
        models: np.ndarray,
        Y: np.ndarray,
        found: ManyEstimates,
        details: dict[int, str],
    ) -> ManyEstimates:
        """Fit responses that miss the same rows, and put the estimates in their places."""
        refitter = self._pattern(key, rows)
        if isinstance(refitter, Refitter):
            return place(found, models, refitter.fit(Y[np.ix_(rows, models)]))
        found.reason[models], found.nobs[models] = REFUSED, len(rows)
        details.update(dict.fromkeys(models.tolist(), refitter))
        return found

    def _pattern(self, key: bytes, rows: np.ndarray) -> Refitter | str:
        """Refitter of some rows, from an earlier block if it is still there; or why there is none."""
        with self._lock:
            if key in self._prepared:
                self._prepared.move_to_end(key)
                return self._prepared[key]
        try:
            made: Refitter | str = self._refitter(self.design.reduce(any_response(len(rows)), rows))
        except JaxMixedError as problem:
            made = str(problem)
        with self._lock:
            self._prepared[key] = made
            while len(self._prepared) > KEPT_DESIGNS:
                self._prepared.popitem(last=False)
        return made


def any_response(n: int) -> np.ndarray:
    """A response that no design explains: what prepares a design for others.

    Examples
    --------
    >>> any_response(2).round(3)
    array([ 0.126, -0.132])
    """
    return np.random.default_rng(0).standard_normal(n)


def _patterns(missing: np.ndarray, models: np.ndarray) -> list[tuple[bytes, list[int]]]:
    """Models that miss the same rows, by these rows."""
    packed = np.ascontiguousarray(np.packbits(missing[:, models], axis=0).T)
    found: dict[bytes, list[int]] = {}
    for model, bits in zip(models.tolist(), packed, strict=True):
        found.setdefault(bits.tobytes(), []).append(model)
    return list(found.items())

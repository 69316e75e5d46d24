"""Satterthwaite's degrees of freedom for many models of one formula, side by side.

What :func:`jaxmixed.denominators.satterthwaite` does for one fit: the precision of the fixed effects and its
derivatives for many values of the parameters in one program, with the sampling covariance of the parameters
from each model's exact Hessian.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmixed.crossproducts import Reduction
from jaxmixed.denominators import Satterthwaite
from jaxmixed.errors import DesignError
from jaxmixed.inference import parameter_covariance
from jaxmixed.lanes import lane_count
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.reductions import statistics_of, structure_of
from jaxmixed.statistics import SufficientStatistics, pad, pad_alike
from jaxmixed.variation import precision_slopes, precision_slopes_of_each

MOST = 512
"""Models whose derivatives are held at a time."""

Designs = Callable[[int, int], Iterable[tuple[np.ndarray, Reduction]]]
"""Of models ``first .. last - 1``: those that have one design, by their positions from `first` on, and it."""


@dataclass(frozen=True, eq=False)
class ManySatterthwaite:
    """Degrees of freedom of B models, from the sampling variance of each estimated variance.

    Attributes
    ----------
    back : (B, p, p) array
        Coefficients that are not aliased from those of the statistics' coordinates.
    covariance : (B, p, p) array
        Of the coefficients in the statistics' coordinates.
    slopes : (B, k + 1, p, p) array
        Its derivatives in the parameters of the factors and, last, log sigma.
    parameter_covariance : (B, k + 1, k + 1) array
        Of these.
    """

    back: np.ndarray
    covariance: np.ndarray
    slopes: np.ndarray
    parameter_covariance: np.ndarray

    def __len__(self) -> int:
        return len(self.covariance)

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (B, c) of each row of L, (c, p)."""
        rows = L @ self.back
        variance = np.einsum("bci,bij,bcj->bc", rows, self.covariance, rows, optimize=True)
        gradient = np.einsum("bci,bkij,bcj->bck", rows, self.slopes, rows, optimize=True)
        spread = np.einsum("bck,bkl,bcl->bc", gradient, self.parameter_covariance, gradient, optimize=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(2 * variance**2 / spread)

    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F statistics and denominator degrees of freedom of ``L beta = 0``.

        Parameters
        ----------
        L : (c, p) array
            Linearly independent rows.
        values : (B, c) array
            Estimates of ``L beta``.

        Returns
        -------
        statistic, df : (B,) arrays
        """
        if len(L) == 1:
            row = (L @ self.back)[:, 0]
            with np.errstate(divide="ignore", invalid="ignore"):
                statistic = values[:, 0] ** 2 / np.einsum("bi,bij,bj->b", row, self.covariance, row)
            return statistic, self.df(L)[:, 0]
        found = np.full((len(self), 2), np.nan)
        for model, own in enumerate(values):
            if np.isfinite(self.covariance[model]).all() and np.isfinite(own).all():
                found[model] = self.model(model).joint(L, own)
        return found[:, 0], found[:, 1]

    def model(self, number: int) -> Satterthwaite:
        """One of the models."""
        return Satterthwaite(
            self.back[number],
            self.covariance[number],
            self.slopes[number],
            self.parameter_covariance[number],
        )


def _in_lanes(standard: np.ndarray, stats: SufficientStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Precision and slopes of models of one design, as many at a time as one program is compiled for."""
    k, p = standard.shape[1], stats.total.shape[0] - 1
    if not k:
        value = np.broadcast_to(np.asarray(stats.total)[:-1, :-1], (len(standard), p, p))
        return value, np.zeros((len(standard), 0, p, p))
    lanes = lane_count(len(standard), pad(stats))
    values, slopes = np.empty((len(standard), p, p)), np.empty((len(standard), k, p, p))
    for start in range(0, len(standard), lanes):
        part = standard[start : start + lanes]
        filled = np.concatenate([part, np.repeat(part[:1], lanes - len(part), axis=0)])
        found = precision_slopes(filled, stats)
        values[start : start + lanes], slopes[start : start + lanes] = (own[: len(part)] for own in found)
    return values, slopes


def _side_by_side(
    standard: np.ndarray, designs: Sequence[SufficientStatistics]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and slopes of models that have designs of their own, of one structure."""
    if designs[0].root is not None or not standard.shape[1] or len(designs) == 1:
        found = [_in_lanes(own[None], stats) for own, stats in zip(standard, designs, strict=True)]
        values, slopes = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return values, slopes
    alike = pad_alike(designs)
    lanes = lane_count(len(alike), alike[0])
    parts = []
    for start in range(0, len(alike), lanes):
        members = alike[start : start + lanes]
        rest = lanes - len(members)
        stacked: Any = jax.tree.map(lambda *leaves: np.stack(leaves, axis=-1), *members, *[members[0]] * rest)
        own = standard[start : start + lanes]
        filled = np.concatenate([own, np.repeat(own[:1], rest, axis=0)])
        parts.append([values[: len(own)] for values in precision_slopes_of_each(filled, stacked)])
    values, slopes = (np.concatenate(own) for own in zip(*parts, strict=True))
    return values, slopes


def _joined(
    estimates: ManyEstimates,
    models: np.ndarray,
    value: np.ndarray,
    slopes: np.ndarray,
    basis: np.ndarray,
) -> ManySatterthwaite:
    """Degrees of freedom from the precision of the fixed effects and its slopes."""
    parameters = estimates.variance_parameters(models)
    square = estimates.sigma[models, None, None] ** 2
    phi = np.linalg.inv(value)
    covariance = square * (phi + np.swapaxes(phi, 1, 2)) / 2
    along = -covariance[:, None] @ slopes @ covariance[:, None] / square[:, None]
    back = np.broadcast_to(np.linalg.inv(basis), value.shape)
    return ManySatterthwaite(
        back=back,
        covariance=covariance,
        slopes=np.concatenate([along, 2 * covariance[:, None]], axis=1),
        parameter_covariance=parameter_covariance(parameters),
    )


def satterthwaite_of(estimates: ManyEstimates, models: np.ndarray, reduction: Reduction) -> ManySatterthwaite:
    """Degrees of freedom of fitted models of one design.

    Parameters
    ----------
    estimates : ManyEstimates
    models : (B,) int array
        Which of them, all with estimates.
    reduction : Reduction
        Of their design, with any response.

    Returns
    -------
    ManySatterthwaite
        For functions of the coefficients that are not aliased.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> from jaxmixed.resampling import refitter_of
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> many = refitter_of(fit).fit(fit.frame.y[:, None])
    >>> satterthwaite_of(many, np.array([0]), fit.state).df(np.eye(2)).round(3)
    array([[17., 17.]])
    """
    value, slopes = _in_lanes(estimates.standard[models], reduction.compact)
    return _joined(estimates, models, value, slopes, np.asarray(reduction.stats.basis))


def _of_own_designs(
    estimates: ManyEstimates, models: np.ndarray, reductions: Sequence[Reduction]
) -> Iterable[tuple[np.ndarray, np.ndarray, ManySatterthwaite]]:
    """Models by structure: their numbers, which columns they keep, and degrees of freedom."""
    batches: dict[Any, list[int]] = {}
    for position, reduction in enumerate(reductions):
        batches.setdefault(structure_of(reduction, estimates.labels), []).append(position)
    for members in batches.values():
        own = [reductions[position] for position in members]
        chosen = models[members]
        value, slopes = _side_by_side(estimates.standard[chosen], [statistics_of(one) for one in own])
        basis = np.stack([np.asarray(one.stats.basis) for one in own])
        keep = own[0].fixed.columns.keep
        yield chosen, keep, _joined(estimates, chosen, value, slopes, basis)


def satterthwaite_df(estimates: ManyEstimates, designs: Designs) -> np.ndarray:
    """Satterthwaite's degrees of freedom of every coefficient of every model.

    Parameters
    ----------
    estimates : ManyEstimates
    designs : callable
        Gives the designs of models (see `Designs`).

    Returns
    -------
    (m, p) array
        NaN where a coefficient is aliased or a model has no estimates.

    Raises
    ------
    DesignError
        If residuals are correlated.
    """
    if estimates.residual is not None:
        raise DesignError(
            "degrees of freedom of many models are those of independent residuals; for a model with a"
            " residual structure ask a fit of mixed()"
        )
    found = np.full(estimates.beta.shape, np.nan)
    for first in range(0, len(estimates), MOST):
        alone: list[tuple[int, Reduction]] = []
        for positions, reduction in designs(first, min(first + MOST, len(estimates))):
            models = first + positions
            models = models[estimates.fitted[models]]
            if len(models) == 1:
                alone.append((int(models[0]), reduction))
            elif len(models):
                keep = reduction.fixed.columns.keep
                own = satterthwaite_of(estimates, models, reduction)
                found[np.ix_(models, keep)] = own.df(np.eye(len(keep)))
        if alone:
            numbers = np.array([number for number, _ in alone])
            for models, keep, own in _of_own_designs(estimates, numbers, [one for _, one in alone]):
                found[np.ix_(models, keep)] = own.df(np.eye(len(keep)))
    return found

r"""Errors of the estimated fixed effects and of the predicted random effects, jointly.

The errors :math:`e_\beta = \hat\beta - \beta` and :math:`e_b = \hat b - b` of a fit at known variance
parameters obey the recursion of :mod:`jaxmixed.recursion`. A linear function :math:`x' e_\beta + z' e_b` is
pulled back through it, the finest level first, to one of independent innovations, which gives its variance
and its covariance with others. A row of data touches a group of each level (and the columns of the root that
these meet), so that rows are sparse, and nothing of the order of rows times groups, or of groups times
groups, is made. Joint draws follow the recursion forwards.

The covariances are blocks of the inverse of Henderson's mixed model equations: Henderson (1975), Biometrics
31, 423-447; Robinson (1991), Statistical Science 6(1), 15-32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmixed import recursion
from jaxmixed.crossproducts import Reduction
from jaxmixed.draws import Draws
from jaxmixed.effects import Beta, root_rows
from jaxmixed.estimates import Estimates
from jaxmixed.precision import double_precision, to_host
from jaxmixed.recursion import Recursion, given_beta, standard_factors
from jaxmixed.root import semidefinite_root
from jaxmixed.sparse_rows import (
    BLOCK_NUMBERS,
    block_diagonal,
    block_rows,
    known_rows,
    quadratic_diagonal,
    touched_columns,
)
from jaxmixed.statistics import Level, SufficientStatistics, pad

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RowTerm = tuple[int, np.ndarray, np.ndarray]
"""Position of a term among the estimates', its columns Z (n, q), and the level of each row (n,)."""

ERRORS_STREAM = "errors of predictions"
"""Stream of the standard normal numbers behind draws of errors."""


@dataclass(frozen=True)
class ErrorModel:
    """Joint distribution of the errors of a fit, at its variance parameters.

    Attributes
    ----------
    reduction : Reduction
        Of the fitted data.
    stats : SufficientStatistics
        Padded, one entry per group.
    x : (k,) array
        Parameters of the standardised columns.
    sigma : float
        Residual standard deviation.
    parts : Recursion
        Host arrays.
    beta : str
        Whether the fixed effects are "estimated" or taken as "known": with a covariance of zero.
    """

    reduction: Reduction
    stats: SufficientStatistics
    x: np.ndarray
    sigma: float
    parts: Recursion[np.ndarray]
    beta: Beta = "estimated"

    def given_beta(self) -> ErrorModel:
        """The same with the fixed effects taken as known."""
        return replace(self, parts=given_beta(self.parts), beta="known")

    def tangent(self, direction: np.ndarray) -> Recursion[np.ndarray]:
        """Derivative of the recursion along a direction (k,) of the standardised parameters."""
        parts = recursion.tangent(self.x, direction, self.stats)
        return parts if self.beta == "estimated" else given_beta(parts)

    @cached_property
    def priors(self) -> tuple[np.ndarray, ...]:
        """Relative covariance of the effects of every level, (q, q), standardised columns."""
        with double_precision():
            factors = to_host(tuple(standard_factors(jnp.asarray(self.x), self.stats)))
        return tuple(T @ T.T for T in factors)

    @cached_property
    def root_rows(self) -> list[np.ndarray]:
        """Where the effects of each of the root's factors stand, (q, m) each."""
        return [] if self.stats.root is None else root_rows(self.stats.root)

    @cached_property
    def beyond(self) -> tuple[np.ndarray | None, ...]:
        """For each of the root's factors, the share of a level's variance that related levels leave, (m,).

        None for factors of independent levels, which have none.
        """
        if self.stats.root is None:
            return ()
        bases = self.stats.root.bases or (None,) * len(self.root_rows)
        rests = [None if basis is None else np.asarray(basis.rest) for basis in bases]
        return tuple(None if rest is None or not rest.any() else rest for rest in rests)

    def standard_columns(self, X: np.ndarray) -> np.ndarray:
        """Fixed-effects columns (n, p_full) in the coordinates of the statistics; aliased ones count nothing.

        The columns need not be rows of a design: any linear function of the coefficients will do.
        """
        columns = self.reduction.fixed.columns
        kept = X[:, columns.keep]
        # Where the columns were centred, basis is R (I + e s'), s the shift and e the constant column.
        shifted = columns.solve @ columns.basis - np.eye(len(columns.keep))
        at = int(np.argmax(np.abs(shifted).sum(axis=1))) if columns.shift.any() else None
        if at is not None:
            largest = int(np.argmax(np.abs(columns.shift)))
            constant = columns.shift[largest] / shifted[at, largest]
            kept = kept - np.outer(kept[:, at] / constant, columns.shift)
        return kept @ columns.solve

    def effect_columns(self, position: int) -> tuple[slice, np.ndarray]:
        """Where a term's columns stand among its level's, and the (q, q) map of them to standardised ones."""
        term = self.stats.terms[position]
        part = slice(term.start, term.start + term.covariance.q)
        return part, np.linalg.inv(self.stats.frames[term.level][part, part])

    def rows(self, X: np.ndarray | None, terms: Sequence[RowTerm]) -> RowErrors:
        """Linear functions ``x'(beta_hat - beta) + z'(b_hat - b)``, a row for each.

        Parameters
        ----------
        X : (n, p_full) array or None
            Columns of the fixed effects; None for functions of the random effects alone.
        terms : sequence of (int, (n, q) array, (n,) int array)
            Position of a term among the estimates' terms, its columns, and the level of every row; -1 for a
            level that the fit does not know, whose effect has its prior variance and is independent of those
            of other rows. Terms that are not among them are no part of the functions. A term may occur more
            than once: its rows then add up.

        Returns
        -------
        RowErrors
        """
        from scipy import sparse

        n = len(X) if X is not None else len(terms[0][2])
        beta = np.zeros((n, len(self.parts.beta))) if X is None else self.standard_columns(X)
        chain = len(self.stats.levels)
        sizes = [own.shape[0] * own.shape[2] for own in self.parts.own]
        found = [sparse.csr_array((n, size)) for size in sizes]
        root = sparse.csr_array((n, len(self.parts.root)))
        prior = np.zeros(n)
        beyond: dict[int, Any] = {}
        for position, Z, codes in terms:
            level, known = self.stats.terms[position].level, codes >= 0
            part, to_standard = self.effect_columns(position)
            standard = Z @ to_standard
            new = standard[~known]
            prior[~known] += np.einsum("ni,ij,nj->n", new, self.priors[level][part, part], new)
            if level < chain:
                entries = self.reduction.positions[level][codes[known]]
                columns = (np.arange(part.start, part.stop) * self.parts.own[level].shape[2]) + entries[
                    :, None
                ]
                found[level] = found[level] + known_rows(standard[known], columns, known, sizes[level])
                continue
            factor = level - chain
            rows = self.root_rows[factor][part]
            entries = self.reduction.positions[level][codes[known]]
            root = root + known_rows(standard[known], rows[:, entries].T, known, len(self.parts.root))
            rest = self.beyond[factor]
            if rest is not None:
                columns = np.arange(part.start, part.stop) * len(rest) + entries[:, None]
                size = len(self.priors[level]) * len(rest)
                own = known_rows(standard[known], columns, known, size)
                beyond[factor] = beyond[factor] + own if factor in beyond else own
        pull = _Pull(found, root, beta)
        for depth in range(chain):
            pull.through(depth, found[depth], self.parts, self.stats)
        pull.through_root(pull.root, self.parts)
        return RowErrors(self, tuple(found), tuple(beyond.items()), pull.root, pull.beta, prior)

    def row_tangent(self, rows: RowErrors, tangent: Recursion[np.ndarray]) -> RowErrors:
        """Derivative of the functions' combinations of innovations along a tangent of the recursion."""
        from scipy import sparse

        moved = _Pull(
            [sparse.csr_array(own.shape) for own in rows.levels],
            sparse.csr_array(rows.root.shape),
            np.zeros_like(rows.beta),
        )
        for depth, own in enumerate(rows.levels):
            moved.through(depth, own, tangent, self.stats)
            moved.through(depth, moved.levels[depth], self.parts, self.stats)
        moved.through_root(rows.root, tangent)
        moved.through_root(moved.root, self.parts)
        return RowErrors(self, tuple(moved.levels), (), moved.root, moved.beta, np.zeros_like(rows.prior))

    def draws(self, seed: int, num: int) -> Iterator[Draw]:
        """Errors drawn from their joint distribution, by the recursion; replicate i is always the same.

        Parameters
        ----------
        seed : int
        num : int
            Number of replicates.

        Yields
        ------
        Draw
        """
        numbers = Draws(seed, ERRORS_STREAM)
        p, R = len(self.parts.beta), len(self.parts.root)
        sizes = [own.shape[0] * own.shape[2] for own in self.parts.own]
        beyond = [0 if rest is None else rest.size for rest in self.beyond]
        wide = [size * len(rows) for size, rows in zip(beyond, self.root_rows, strict=True)]
        ends = np.cumsum([p, R, *sizes, *wide])
        chunk = max(1, min(num, BLOCK_NUMBERS // max(int(ends[-1]), 1)))
        for first in range(0, num, chunk):
            count = min(chunk, num - first)
            parts = np.split(numbers.normal(first, count, int(ends[-1])), ends[:-1])
            effects, beta = self._forward(parts, count)
            for replicate in range(count):
                yield Draw(tuple(values[..., replicate] for values in effects), beta[:, replicate])

    @cached_property
    def _roots(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Roots of the covariances of beta, of the root's innovations and of every level's."""
        levels = []
        for own in self.parts.own:
            values, vectors = np.linalg.eigh(np.moveaxis(own, -1, 0))
            levels.append(np.moveaxis(vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :], 0, -1))
        of_beta, root = self.parts.of_beta, self.parts.root
        return (
            semidefinite_root(of_beta)[0] if of_beta.any() else of_beta,
            semidefinite_root(root)[0] if root.any() else root,
            levels,
        )

    def _forward(self, numbers: list[np.ndarray], count: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Errors of the terms' effects, (m, q, count) each, and of beta from standard normal numbers."""
        of_beta, of_root, of_levels = self._roots
        chain = len(self.stats.levels)
        beta = of_beta @ numbers[0]
        root = of_root @ numbers[1] - self.parts.root_on @ beta
        levels: list[np.ndarray] = []
        for depth in range(chain - 1, -1, -1):
            L, on, level = of_levels[depth], self.parts.on[depth], self.stats.levels[depth]
            q, _, m = L.shape
            error = np.einsum("abm,bmc->amc", L, numbers[2 + depth].reshape(q, m, count))
            start = 0
            for coarser, parent in zip(levels, level.parents, strict=True):
                width = coarser.shape[0]
                error -= np.einsum(
                    "awm,wmc->amc", on[:, start : start + width], coarser[:, np.asarray(parent)]
                )
                start += width
            error -= np.einsum("apm,pc->amc", on[:, start:], beta)
            if len(self.parts.linked):
                linked = _link_rows(self.parts.linked[depth], level, np.arange(q * m), m, len(root))
                error -= (linked @ root).reshape(q, m, count)
            levels.insert(0, error)
        for factor, rows in enumerate(self.root_rows):
            error = root[rows]
            rest = self.beyond[factor]
            if rest is not None:
                free = numbers[2 + chain + factor].reshape(len(rows), len(rest), count)
                own = semidefinite_root(self.priors[chain + factor])[0]
                error = error + np.einsum("ab,bmc->amc", own, free * np.sqrt(rest)[:, None])
            levels.append(error)
        return [self._of_term(position, levels) for position in range(len(self.stats.terms))], self.sigma * (
            np.linalg.solve(self.reduction.fixed.columns.basis, beta)
        )

    def _of_term(self, position: int, levels: list[np.ndarray]) -> np.ndarray:
        level = self.stats.terms[position].level
        part, back = self.effect_columns(position)
        own = levels[level][part][:, self.reduction.positions[level]]
        return np.einsum("ab,bmc->mac", self.sigma * back, own)


class _Pull:
    """Coefficients of the effects that are still to be replaced by their innovations; changed in place."""

    def __init__(self, levels: list[csr_array], root: csr_array, beta: np.ndarray) -> None:
        self.levels, self.root, self.beta = levels, root, beta

    def through(
        self, depth: int, own: csr_array, parts: Recursion[np.ndarray], stats: SufficientStatistics
    ) -> None:
        """Pass a level's coefficients on to what its effects depend on."""
        if not own.nnz:
            return
        on, level = parts.on[depth], stats.levels[depth]
        touched, local = touched_columns(own)
        effect, entry = np.divmod(touched, on.shape[2])
        start = 0
        for above, parent in enumerate(level.parents, depth + 1):
            q, _, m = parts.own[above].shape
            A = block_rows(on[effect, start : start + q, entry], np.asarray(parent)[entry], m)
            self.levels[above] = self.levels[above] - local @ A
            start += q
        self.beta -= local @ on[effect, start:, entry]
        if len(parts.linked):
            linked = _link_rows(parts.linked[depth], level, touched, on.shape[2], self.root.shape[1])
            self.root = self.root - local @ linked

    def through_root(self, root: csr_array, parts: Recursion[np.ndarray]) -> None:
        """Pass the root's coefficients on to the fixed effects."""
        if root.nnz:
            self.beta -= root @ parts.root_on


class Draw(NamedTuple):
    """One draw of the errors, estimate minus truth.

    Attributes
    ----------
    effects : tuple of (m, q) arrays
        Of each term, in the order of the estimates' terms.
    beta : (p,) array
        Of the fixed effects that are not aliased.
    """

    effects: tuple[np.ndarray, ...]
    beta: np.ndarray


@dataclass(frozen=True)
class RowErrors:
    """Linear functions of the errors as combinations of independent innovations; see `ErrorModel.rows`.

    Attributes
    ----------
    model : ErrorModel
    levels : tuple of sparse (n, q m) arrays
        Of every level of the chain, effect by effect.
    beyond : tuple of (int, sparse array)
        Of what a known relationship leaves independent, by the position of the root's factor.
    root : sparse (n, R) array
    beta : (n, p) array
    prior : (n,) array
        Relative variance of unknown levels, independent of everything else.
    """

    model: ErrorModel
    levels: tuple[csr_array, ...]
    beyond: tuple[tuple[int, csr_array], ...]
    root: csr_array
    beta: np.ndarray
    prior: np.ndarray

    def variance(self) -> np.ndarray:
        """Variance of each function, (n,), in squared units of the response."""
        return self.covariance_with(self) + self.model.sigma**2 * self.prior

    def covariance_with(self, other: RowErrors) -> np.ndarray:
        """Covariance of each function with the same row's of another set, unknown levels apart, (n,)."""
        return self.model.sigma**2 * self.product(other, self.model.parts)

    def product(self, other: RowErrors, parts: Recursion[np.ndarray]) -> np.ndarray:
        """Relative covariances, row by row, if the innovations had the covariances of `parts`, (n,)."""
        total = np.einsum("ni,ni->n", self.beta @ parts.of_beta, other.beta)
        for W, own, others in self._independent(other, parts):
            total += (own @ W).multiply(others).sum(axis=1)
        if self.root.nnz and other.root.nnz:
            total += quadratic_diagonal(self.root, parts.root, other.root)
        return total

    def covariance(self) -> np.ndarray:
        """Joint covariance matrix of the functions, (n, n)."""
        total = self.beta @ self.model.parts.of_beta @ self.beta.T + np.diag(self.prior)
        for W, own, _ in self._independent(self, self.model.parts):
            total += (own @ W @ own.T).toarray()
        if self.root.nnz:
            total += (self.root @ (self.root @ self.model.parts.root.T).T).T
        return self.model.sigma**2 * total

    def _independent(
        self, other: RowErrors, parts: Recursion[np.ndarray]
    ) -> Iterator[tuple[csr_array, csr_array, csr_array]]:
        """Covariance of independent innovations, and both sets' combinations of them."""
        for values, own, others in zip(parts.own, self.levels, other.levels, strict=True):
            if own.nnz and others.nnz:
                yield block_diagonal(values), own, others
        chain, known = len(self.levels), dict(other.beyond)
        for factor, own in self.beyond:
            rest = self.model.beyond[factor]
            if factor in known and rest is not None:
                prior = self.model.priors[chain + factor]
                yield block_diagonal(prior[:, :, None] * rest), own, known[factor]


def error_model(state: Reduction, estimates: Estimates) -> ErrorModel:
    """Joint distribution of the errors of a fit, the fixed effects estimated.

    Parameters
    ----------
    state : Reduction
        Statistics of the fitted data.
    estimates : Estimates

    Returns
    -------
    ErrorModel
        Its `given_beta` takes the fixed effects as known.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("wm ~ 1 + (1 | id)", jm.datasets.load("mini_wright"))
    >>> errors = error_model(fit.state, fit.estimates)
    >>> own = errors.rows(np.ones((1, 1)), [(0, np.ones((1, 1)), np.array([0]))])
    >>> np.sqrt(own.variance()).round(6).tolist()
    [13.972648]
    """
    stats, x = pad(state.stats), estimates.standard
    return ErrorModel(state, stats, x, estimates.sigma, recursion.evaluate(x, stats))


def _link_rows(linked: np.ndarray, level: Level, touched: np.ndarray, m: int, size: int) -> csr_array:
    """``L V`` of the touched effects of a level's groups as sparse rows, a column for each of the root's."""
    from scipy import sparse

    assert level.links is not None
    q = len(linked)
    rows = np.arange(q)[:, None] * m + np.asarray(level.links.group)
    columns = np.broadcast_to(np.asarray(level.links.column), rows.shape)
    whole = sparse.csr_array((linked.ravel(), (rows.ravel(), columns.ravel())), shape=(q * m, size))
    return whole[touched]

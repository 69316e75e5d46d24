r"""Cluster-robust (sandwich) covariances of the fixed effects, and how their tests are distributed.

With independent clusters c of covariance :math:`V_c` (the fitted one, relative to sigma squared),
:math:`M = (\sum_c X_c' V_c^{-1} X_c)^{-1}` and the marginal residuals e,

.. math:: V^R = M \Big( \sum_c E_c e_c e_c' E_c' \Big) M, \qquad E_c = X_c' V_c^{-1} A_c .

====== ==========================================================================================
kind   adjustment
====== ==========================================================================================
CR0    none: :math:`A_c = I` (Liang and Zeger 1986, Biometrika 73, 13-22)
CR1    CR0 times m / (m - 1), with m clusters, as Stata's ``vce(cluster)``
CR1S   CR0 times m (n - 1) / ((m - 1) (n - p))
CR2    such that :math:`V^R` is unbiased if the fitted covariance is the true one (Bell and McCaffrey
       2002, Survey Methodology 28, 169-181): :math:`A_c = D_c' B_c^{+1/2} D_c` with
       :math:`D_c' D_c = V_c` and :math:`B_c = D_c (V_c - X_c M X_c') D_c'`
CR3    :math:`A_c = (I - X_c M X_c' V_c^{-1})^{-1}`: the sum over clusters of the squared changes of the
       estimates when a cluster is left out, the covariance held
====== ==========================================================================================

(Pustejovsky and Tipton 2018, Journal of Business and Economic Statistics 36, 672-683, for CR2 with an
arbitrary working covariance.) Nothing of size n x n is formed. With :math:`M = L L'` and a function
:math:`\tilde l = L' l`, the robust variance of :math:`l' \hat\beta` is a quadratic form in the response whose
distribution under the working covariance depends on the eigenvalues of the matrix of order m

.. math:: P_{cd} = \delta_{cd}\, \tilde l' \tilde S_c \tilde l - h_c' h_d, \quad h_c = \tilde K_c' \tilde l,
   \quad \tilde S_c = L' E_c V_c E_c' L, \quad \tilde K_c = L' E_c X_c L,

so that sums over clusters of matrices of order p give its first two moments, and with them Satterthwaite's
degrees of freedom :math:`(\operatorname{tr} P)^2 / \operatorname{tr} P^2` (Bell and McCaffrey) and those of
Hotelling's approximation for several functions (Pustejovsky and Tipton 2018, section 3.2, "AHT").

With sampling weights, columns and residuals are multiplied as in :mod:`jaxmixed.frequencies`: CR1 is then the
covariance of maximum pseudo-likelihood; the other kinds have no meaning there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxmixed.crossproducts import Reduction
from jaxmixed.estimates import Estimates
from jaxmixed.robust_residuals import CorrelatedResiduals

Kind = Literal["CR0", "CR1", "CR1S", "CR2", "CR3"]
KINDS: tuple[Kind, ...] = ("CR0", "CR1", "CR1S", "CR2", "CR3")

LEVERAGE = 1e-10
"""A direction whose leverage falls short of one by less is determined by its cluster alone."""

DEPENDENT = 1e-8
"""Scores whose smallest singular value is below this share of the largest one do not span the functions."""

LARGE = 100
"""Clusters of more rows with weights that differ are treated one by one, rows of one weight together."""

BATCH_ELEMENTS = 1 << 22
"""Numbers in the largest array of a batch of clusters."""


class _Batch(NamedTuple):
    """Clusters of one size, and their rows, (clusters, size)."""

    clusters: np.ndarray
    rows: np.ndarray


class Solved(NamedTuple):
    """Of a batch: ``X' V^{-1} X`` (b, p, p) and ``X' V^{-1} e`` (b, p)."""

    information: np.ndarray
    scores: np.ndarray


class Spectrum(NamedTuple):
    """Of a batch: coordinates in which the covariance of a cluster is diagonal.

    They span the columns of X and of the random effects; what lies outside them plays no part.

    Attributes
    ----------
    variances : (b, d) array
        Eigenvalues of V.
    X : (b, d, p) array
    residual : (b, d) array
    """

    variances: np.ndarray
    X: np.ndarray
    residual: np.ndarray


class WorkingModel:
    """The fitted covariance of the rows, cluster by cluster, relative to sigma squared.

    All that this module knows of the covariance is here. Columns are those of the statistics: X centred and
    orthonormal, the effects standardised.

    Parameters
    ----------
    state : Reduction
    estimates : Estimates
    residual : (n,) array
        Response less offset and fixed effects.
    clusters : (n,) int array
        Cluster of each row, ``0 .. m-1``, all present; every group of the random effects, and of correlated
        residuals, lies within one.
    """

    def __init__(
        self, state: Reduction, estimates: Estimates, residual: np.ndarray, clusters: np.ndarray
    ) -> None:
        self.state, self.residual, self.clusters = state, residual, clusters
        self.weights = state.design.weights
        frequencies = state.design.frequencies
        self.copies = None if frequencies is None else frequencies.within(state.design.groupings)
        self.factors = (*state.design.groupings, *state.design.root)
        self.correlated = _correlated(state, estimates)
        self.nested = not state.design.root and self._whole_groups()
        self.roots = [term.covariance.factor(np.asarray(term.standard)) for term in estimates.terms]
        self.sizes = np.bincount(clusters)
        keys = [factor.codes for factor in self.factors]
        # Clusters, and within them the groups of nested factors, stand together.
        self.order = np.lexsort((*keys, clusters))
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.local, self.levels = self._local_levels()
        self.uneven = self._uneven()

    @property
    def num_columns(self) -> int:
        """Number p of linearly independent columns of X."""
        return len(self.state.fixed.columns.keep)

    def _local_levels(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each factor: number of each level within its cluster, and of levels in each cluster."""
        local, counts = [], []
        for factor in self.factors:
            owner = np.empty(factor.size, dtype=np.int64)
            owner[factor.codes] = self.clusters
            count = np.bincount(owner, minlength=len(self.sizes))
            order = np.argsort(owner, kind="stable")
            number = np.empty(factor.size, dtype=np.int64)
            number[order] = np.arange(factor.size) - np.repeat(np.cumsum(count) - count, count)
            local.append(number)
            counts.append(count)
        return local, counts

    def _whole_groups(self) -> bool:
        """Whether correlated rows lie within the groups of the finest factor."""
        if self.correlated is None or not self.factors:
            return True
        codes, finest = self.correlated.codes, self.factors[0].codes
        owner = np.empty(int(codes.max()) + 1, dtype=np.int64)
        owner[codes] = finest
        return bool((owner[codes] == finest).all())

    def _uneven(self) -> np.ndarray:
        """Mask (m,) of the clusters whose rows have different weights, or are correlated."""
        if self.correlated is not None:
            return np.ones(len(self.sizes), dtype=bool)
        if self.weights is None:
            return np.zeros(len(self.sizes), dtype=bool)
        ordered = self.weights[self.order]
        lowest = np.minimum.reduceat(ordered, self.starts)
        return np.asarray(lowest < np.maximum.reduceat(ordered, self.starts))

    def batches(self) -> Iterator[_Batch]:
        """All clusters, those of one size (and with even or uneven weights) together."""
        p = self.num_columns
        effects = sum(
            count * factor.Z.shape[1] for count, factor in zip(self.levels, self.factors, strict=True)
        )
        widths = np.broadcast_to(effects, self.sizes.shape)
        order = np.lexsort((widths, self.uneven, self.sizes))
        key = 2 * self.sizes[order] + self.uneven[order]
        for alike in np.split(order, np.flatnonzero(np.diff(key)) + 1):
            size = int(self.sizes[alike[0]])
            most = size * (size if self.uneven[alike[0]] else int(widths[alike].max()) + p + 1)
            step = max(BATCH_ELEMENTS // max(most, p * p, 1), 1)
            if self.uneven[alike[0]] and size > LARGE:
                step = 1
            for first in range(0, len(alike), step):
                clusters = alike[first : first + step]
                yield _Batch(clusters, self.order[self.starts[clusters][:, None] + np.arange(size)])

    def columns(self, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
        """X (b, size, p) and residuals (b, size), times the roots of their frequencies."""
        rows = batch.rows
        X = self.state.fixed.columns.standardise(self.state.design.X, rows.ravel())
        X, residual = X.reshape(*rows.shape, -1), self.residual[rows]
        if self.copies is None:
            return X, residual
        root = np.sqrt(self.copies[-1][rows])
        return X * root[..., None], residual * root

    def _effects(self, rows: np.ndarray, level: int) -> np.ndarray:
        """Columns of a factor's effects times the root of their covariance, (rows, q)."""
        blocks = []
        for term, columns, root in zip(self.state.stats.terms, self.state.columns, self.roots, strict=True):
            if term.level == level:
                Z = self.factors[level].Z[:, term.start : term.start + term.covariance.q]
                blocks.append(columns.standardise(Z, rows) @ root)
        found = np.concatenate(blocks, axis=1)
        return found if self.copies is None else found * np.sqrt(self.copies[level][rows])[:, None]

    def solved(self, batch: _Batch) -> Solved:
        """Cross-products of X and the residuals in the inverse of V.

        With nested factors V is inverted group by group, from the finest factor on: what is left of the
        coarser columns, X and the residuals is carried along.
        """
        if not self.nested:
            spectrum = self.spectrum(batch)
            weighted = np.swapaxes(spectrum.X / spectrum.variances[..., None], -1, -2)
            return Solved(weighted @ spectrum.X, _apply(weighted, spectrum.residual))
        X, residual = self.columns(batch)
        rows, (b, size, p) = batch.rows.ravel(), X.shape
        effects = [self._effects(rows, level) for level in range(len(self.factors))]
        raw = np.concatenate([*effects, X.reshape(b * size, p), residual.reshape(-1, 1)], axis=1)
        if self.correlated is None:
            left = raw if self.weights is None else raw * self.weights[rows, None]
        else:
            raw = left = self.correlated.whitened(rows, raw)
            X = raw[:, -p - 1 : -1].reshape(b, size, p)
            widths = np.cumsum([own.shape[1] for own in effects])
            effects = np.split(raw[:, : raw.shape[1] - p - 1], widths[:-1], axis=1) if effects else []
        for own, factor in zip(effects, self.factors, strict=True):
            q = own.shape[1]
            codes = factor.codes[rows]
            first = np.flatnonzero(np.diff(codes, prepend=-1))
            ours, rest, raw = left[:, :q], left[:, q:], raw[:, q:]
            pivot = np.eye(q) + _sums(own, ours, first)
            through = np.linalg.solve(pivot, _sums(ours, raw, first))
            number = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(rows))))
            left = rest - sum(ours[:, [a]] * through[number, a] for a in range(q))
        products = np.swapaxes(X, -1, -2) @ left.reshape(b, size, p + 1)
        return Solved(products[..., :p], products[..., p])

    def spectrum(self, batch: _Batch) -> Spectrum:
        """Coordinates in which V is diagonal.

        V is a multiple of the identity outside the span of the effects unless the weights of a cluster
        differ: then it is so only among rows of one weight; nor is it where residuals are correlated.
        """
        X, residual = self.columns(batch)
        K = self._wide(batch)
        if self.correlated is not None:
            return _diagonal(
                K @ np.swapaxes(K, -1, -2) + self.correlated.covariances(batch.rows), X, residual
            )
        if self.uneven[batch.clusters[0]]:
            assert self.weights is not None
            weights = self.weights[batch.rows]
            if len(K) == 1:
                K, X, residual, weights = (
                    found[None] for found in _condensed(K[0], X[0], residual[0], weights[0])
                )
            V = K @ np.swapaxes(K, -1, -2)
            size = V.shape[-1]
            V[:, range(size), range(size)] += 1 / weights
            return _diagonal(V, X, residual)
        weight = np.ones(len(K)) if self.weights is None else self.weights[batch.rows[:, 0]]
        if K.shape[1] > K.shape[2] + X.shape[2]:
            axes = np.swapaxes(np.linalg.qr(np.concatenate([K, X], axis=2))[0], -1, -2)
            K, X, residual = axes @ K, axes @ X, _apply(axes, residual)
        variances = np.ones(K.shape[:2])
        if K.shape[2]:
            axes, values, _ = np.linalg.svd(K * np.sqrt(weight)[:, None, None])
            variances[:, : values.shape[1]] += values**2
            axes = np.swapaxes(axes, -1, -2)
            X, residual = axes @ X, _apply(axes, residual)
        return Spectrum(variances / weight[:, None], X, residual)

    def _wide(self, batch: _Batch) -> np.ndarray:
        """K (b, size, effects of a cluster) with ``V = W^{-1} + K K'``; zeros where others have more."""
        b, size = batch.rows.shape
        blocks = []
        for level, factor in enumerate(self.factors):
            values = self._effects(batch.rows.ravel(), level).reshape(b, size, -1)
            block = np.zeros((b, size, int(self.levels[level][batch.clusters].max()), values.shape[2]))
            place = self.local[level][factor.codes[batch.rows]]
            block[np.arange(b)[:, None], np.arange(size), place] = values
            blocks.append(block.reshape(b, size, -1))
        return np.concatenate(blocks, axis=2) if blocks else np.zeros((b, size, 0))


def _correlated(state: Reduction, estimates: Estimates) -> CorrelatedResiduals | None:
    """The residuals' covariance, where they have a structure."""
    design = state.design
    if design.residual is None or estimates.residual is None:
        return None
    return CorrelatedResiduals(design.residual, estimates.residual.free, design.weights)


def _diagonal(V: np.ndarray, X: np.ndarray, residual: np.ndarray) -> Spectrum:
    """Coordinates in which matrices V (b, d, d) are diagonal."""
    variances, axes = np.linalg.eigh(V)
    axes = np.swapaxes(axes, -1, -2)
    return Spectrum(variances, axes @ X, _apply(axes, residual))


def _condensed(
    K: np.ndarray, X: np.ndarray, residual: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one weight in the coordinates of the span of their columns, where these are fewer."""
    columns = np.concatenate([K, X], axis=1)
    values, number = np.unique(weights, return_inverse=True)
    if len(values) * columns.shape[1] >= len(weights):
        return K, X, residual, weights
    parts = []
    for code, value in enumerate(values):
        rows = np.flatnonzero(number == code)
        own, left = columns[rows], residual[rows]
        if len(rows) > columns.shape[1]:
            axes = np.linalg.qr(own)[0].T
            own, left = axes @ own, axes @ left
        parts.append((own, left, np.full(len(left), value)))
    own, left, each = (np.concatenate(part) for part in zip(*parts, strict=True))
    return own[:, : K.shape[1]], own[:, K.shape[1] :], left, each


def _apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.asarray((matrices @ vectors[..., None])[..., 0])


def _sums(left: np.ndarray, right: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Cross-products (groups, a, b) of rows (n, a) and (n, b) that stand together, by their first rows."""
    found = np.empty((len(first), left.shape[1], right.shape[1]))
    for a in range(left.shape[1]):
        found[:, a] = np.add.reduceat(left[:, [a]] * right, first, axis=0)
    return found


@dataclass(frozen=True, eq=False)
class ClusterSums:
    r"""What clusters contribute to the covariance, in coordinates in which the model's own is the identity.

    Attributes
    ----------
    root : (p, p) array
        R with ``beta = R beta~``: ``R R' sigma**2`` is the model's covariance of the coefficients.
    scores : (m, p) array
        Rows :math:`L' E_c e_c`.
    variances : (m, p, p) array
        :math:`\tilde S_c`.
    crosses : (m, p, p) array
        :math:`\tilde K_c`.
    factor : float
        By which the sum of the scores' squares is multiplied.
    """

    root: np.ndarray
    scores: np.ndarray
    variances: np.ndarray
    crosses: np.ndarray
    factor: float

    @property
    def covariance(self) -> np.ndarray:
        """Robust covariance (p, p) of the coefficients."""
        on_data = self.scores @ self.root.T
        return np.asarray(self.factor * (on_data.T @ on_data))

    def moments(self, functions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The parts of P for functions (c, p) in these coordinates.

        Returns
        -------
        own : (c, c, m) array
            ``f' S f``.
        shared : (c, m, p) array
            ``h``.
        """
        own = np.moveaxis(functions @ self.variances @ functions.T, 0, -1)
        return own, np.swapaxes(functions @ self.crosses, 0, 1)

    def satterthwaite(self, functions: np.ndarray) -> float:
        """Degrees of freedom of one function, (p,); NaN if one cluster alone determines it."""
        own, shared = self.moments(functions[None])
        a, h = own[0, 0], shared[0]
        lengths = np.einsum("mi,mi->m", h, h)
        mean = float(np.sum(a - lengths))
        if not mean > LEVERAGE * float(functions @ functions):
            return np.nan
        products = h.T @ h
        return mean**2 / float(np.sum(a * (a - 2 * lengths)) + np.sum(products * products))

    def hotelling(self, functions: np.ndarray) -> float:
        """Degrees of freedom of the Wishart distribution that approximates the covariance of some functions.

        Its total variance is that of the covariance under the working model.

        Parameters
        ----------
        functions : (c, p) array
            Orthonormal rows.
        """
        own, shared = self.moments(functions)
        mean = own.sum(axis=-1) - np.einsum("smi,tmi->st", shared, shared)
        values, axes = np.linalg.eigh(mean)
        if not values.min() > LEVERAGE:
            return np.nan
        whitening = (axes / np.sqrt(values)) @ axes.T
        own = np.einsum("as,bt,stm->abm", whitening, whitening, own)
        shared = np.einsum("as,smi->ami", whitening, shared)
        total, c = 0.0, len(functions)
        lengths = np.einsum("smi,smi->sm", shared, shared)
        for s in range(c):
            for t in range(c):
                between = np.einsum("mi,mi->m", shared[s], shared[t])
                products = shared[s].T @ shared[t]
                total += float(
                    np.sum(own[s, t] * (own[s, t] - 2 * between))
                    + np.sum(products * products.T)
                    + np.sum(own[s, s] * own[t, t] - own[s, s] * lengths[t] - own[t, t] * lengths[s])
                    + np.sum(products * products)
                )
        return c * (c + 1) / total


@dataclass(frozen=True, eq=False)
class ClusterReference:
    """Distribution of statistics that use a cluster-robust covariance.

    Attributes
    ----------
    sums : ClusterSums
    method : str
        ``"satterthwaite"``; ``"clusters"``: one less than the number of clusters; ``"none"``: normal.
    """

    sums: ClusterSums
    method: str

    def _plain(self) -> float:
        return np.inf if self.method == "none" else float(len(self.sums.scores) - 1)

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom (c,) of each row of L, (c, p)."""
        if self.method != "satterthwaite":
            return np.full(len(L), self._plain())
        return np.array([self.sums.satterthwaite(row) for row in L @ self.sums.root], dtype=np.float64)

    def joint(self, L: np.ndarray, values: np.ndarray) -> tuple[float, float]:
        """F statistic and denominator degrees of freedom; NaN if the clusters are too few for all rows."""
        c = len(L)
        axes, triangle = np.linalg.qr((L @ self.sums.root).T)
        scores = self.sums.scores @ axes
        left, singular, right = np.linalg.svd(scores, full_matrices=False)
        if len(left) < c or not singular[-1] > DEPENDENT * singular[0]:
            return np.nan, np.nan if self.method == "satterthwaite" else self._plain()
        standard = (right @ np.linalg.solve(triangle.T, values)) / singular
        statistic = float(standard @ standard) / (self.sums.factor * c)
        if self.method != "satterthwaite":
            return statistic, self._plain()
        df = self.sums.hotelling(axes.T)
        den_df = df - c + 1
        return (statistic * den_df / df, den_df) if den_df > 0 else (np.nan, den_df)


class Information(NamedTuple):
    """Contributions of the clusters to the information about the coefficients.

    Attributes
    ----------
    root : (p, p) array
        L, a root of the inverse of their sum; coordinates of the statistics.
    shares : (m, p, p) array
        ``L' X' V^{-1} X L``, which add up to the identity.
    scores : (m, p) array
        ``L' X' V^{-1} e``, which add up to zero.
    step : (p,) array
        What is to be added to the coefficients for that, by which the residuals miss.
    """

    root: np.ndarray
    shares: np.ndarray
    scores: np.ndarray
    step: np.ndarray

    def alone(self) -> int | None:
        """A cluster without which the coefficients have no estimates."""
        left = 1 - np.linalg.eigvalsh(self.shares)[:, -1]
        cluster = int(np.argmin(left))
        return cluster if left[cluster] < LEVERAGE else None


def information(model: WorkingModel) -> Information:
    """Contributions of the clusters to the information.

    Parameters
    ----------
    model : WorkingModel

    Returns
    -------
    Information
    """
    m, p = len(model.sizes), model.num_columns
    shares, scores = np.empty((m, p, p)), np.empty((m, p))
    for batch in model.batches():
        solved = model.solved(batch)
        shares[batch.clusters], scores[batch.clusters] = solved
    shares = (shares + np.swapaxes(shares, -1, -2)) / 2
    root = np.linalg.inv(np.linalg.cholesky(shares.sum(axis=0))).T
    shares, scores = root.T @ shares @ root, scores @ root
    step = scores.sum(axis=0)
    return Information(root, shares, scores - _apply(shares, step[None]), root @ step)


def cluster_sums(model: WorkingModel, found: Information, kind: Kind) -> ClusterSums:
    """Contributions of the clusters to a robust covariance.

    Parameters
    ----------
    model : WorkingModel
    found : Information
    kind : str
        ``"CR0"``, ``"CR1"``, ``"CR1S"``, ``"CR2"`` or ``"CR3"``; the last one needs coefficients that are
        estimable without any one cluster.

    Returns
    -------
    ClusterSums
    """
    n, (m, p) = len(model.clusters), found.scores.shape
    root = np.linalg.solve(model.state.fixed.columns.basis, found.root)
    shares, factor = found.shares, 1.0
    if kind == "CR2":
        return ClusterSums(root, *_bias_reduced(model, found), factor)
    if kind == "CR3":
        adjustment = np.linalg.inv(np.eye(p) - shares)
        crosses = adjustment @ shares
        variances = crosses @ np.swapaxes(adjustment, -1, -2)
        return ClusterSums(root, _apply(adjustment, found.scores), variances, crosses, factor)
    if kind == "CR1":
        factor = m / (m - 1)
    elif kind == "CR1S":
        factor = m * (n - 1) / ((m - 1) * (n - p))
    return ClusterSums(root, found.scores, shares, shares, factor)


def _bias_reduced(model: WorkingModel, found: Information) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Scores, variances and crosses of CR2.

    With :math:`T = V^{-1/2} X L`, the root of :math:`B = V^{1/2} (V - X M X') V^{1/2} = F F'` is found from
    :math:`F = V (I - T T')^{1/2}`, whose condition is the root of that of B. Directions that the cluster
    alone determines are no part of it.
    """
    m, p = found.scores.shape
    scores, variances, crosses = np.empty((m, p)), np.empty((m, p, p)), np.empty((m, p, p))
    for batch in model.batches():
        v, X, residual = model.spectrum(batch)
        residual = residual - X @ found.step
        T = X @ found.root / np.sqrt(v)[..., None]
        share, axes = np.linalg.eigh(np.swapaxes(T, -1, -2) @ T)
        rest = np.where(1 - share > LEVERAGE, 1 - share, 0.0)
        along = T @ axes
        F = -(along / (1 + np.sqrt(rest))[:, None]) @ np.swapaxes(along, -1, -2)
        d = F.shape[-1]
        F[:, range(d), range(d)] += 1
        left, singular, _ = np.linalg.svd(v[..., None] * F)
        kept = np.arange(d) < d - np.count_nonzero(rest == 0, axis=1)[:, None]
        inverse = np.divide(1.0, singular, out=np.zeros_like(singular), where=kept)
        half = (np.swapaxes(T, -1, -2) @ left * inverse[:, None]) @ np.swapaxes(left, -1, -2)
        spread = half * v[:, None]
        scores[batch.clusters] = _apply(half, np.sqrt(v) * residual)
        variances[batch.clusters] = spread @ np.swapaxes(spread, -1, -2)
        crosses[batch.clusters] = spread @ T
    return scores, variances, crosses

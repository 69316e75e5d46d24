"""Residual correlations between labelled times (visits): looked up by pairs of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.autocorrelations import limited
from jaxmixed.residual_family import MODERATE, Family, Scale, observed, on_scale

_FLOOR = 1e-3  # of the eigenvalues of correlations to start from


# From and to canonical partial correlations


def correlations_of(partial: Float[Array, "T T"]) -> Float[Array, "T T"]:
    r"""Correlations from hyperbolic arctangents of canonical partial correlations.

    The correlation of labels i > j given the labels before j is :math:`z_{ij} = \tanh u_{ij}`; the factor
    :math:`L_{ij} = z_{ij} \prod_{l < j} \sqrt{1 - z_{il}^2}` has rows of unit length (Lewandowski, Kurowicka
    and Joe 2009, section 2.4). Where u is zero in all columns left of a band, so is L, and so is L L' outside
    of it.

    Parameters
    ----------
    partial : (T, T) array
        u below the diagonal; not looked at elsewhere.

    Returns
    -------
    (T, T) array

    Examples
    --------
    >>> float(correlations_of(jnp.arctanh(jnp.array([[0.0, 0.0], [0.5, 0.0]])))[0, 1])
    0.5
    """
    size = partial.shape[0]
    below = np.tri(size, k=-1, dtype=bool)
    u = jnp.where(below, partial, 0)
    # The roots are reciprocals of hyperbolic cosines, smooth where they are small too.
    left = jnp.cumsum(-jnp.log(jnp.cosh(u)), axis=1)
    before = jnp.concatenate([jnp.zeros((size, 1), u.dtype), left[:, :-1]], axis=1)
    L = jnp.where(below, jnp.tanh(u), jnp.eye(size, dtype=u.dtype)) * jnp.exp(before)
    return L @ L.T


def canonical_partial(correlations: np.ndarray) -> np.ndarray:
    """Hyperbolic arctangents of canonical partial correlations, on the host: inverse of `correlations_of`.

    Parameters
    ----------
    correlations : (T, T) array
        Positive definite.

    Returns
    -------
    (T, T) array
        Zero on and above the diagonal.

    Examples
    --------
    >>> np.tanh(canonical_partial(np.array([[1.0, 0.5], [0.5, 1.0]]))).round(6).tolist()
    [[0.0, 0.0], [0.5, 0.0]]
    """
    L = np.tril(np.linalg.cholesky(correlations))
    left = np.cumsum(L**2, axis=1) - L**2
    rest = np.sqrt(np.maximum(np.diagonal(correlations)[:, None] - left, np.finfo(float).tiny))
    return np.arctanh(limited(np.tril(L / rest, -1)))


# Starting values


def _filled(times: np.ndarray, products: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """Correlations of all labels: where two were not observed together, the mean of those as far apart."""
    C, weights = np.zeros((size, size)), np.zeros((size, size))
    at = np.ix_(times.astype(np.int64), times.astype(np.int64))
    C[at], weights[at] = observed(products, counts)
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    known = (weights > 0) & (apart > 0)
    everywhere = np.average(C[known], weights=weights[known]) if known.any() else 0.0
    for lag in range(1, size):
        there = known & (apart == lag)
        mean = np.average(C[there], weights=weights[there]) if there.any() else everywhere
        C[(apart == lag) & ~known] = mean
    np.fill_diagonal(C, 1.0)
    return (C + C.T) / 2


def _made_definite(C: np.ndarray) -> np.ndarray:
    """Correlations with small eigenvalues raised."""
    values, vectors = np.linalg.eigh(C)
    if values[0] >= _FLOOR:
        return C
    raised = (vectors * np.maximum(values, _FLOOR)) @ vectors.T
    sd = np.sqrt(np.diagonal(raised))
    return np.asarray(raised / sd[:, None] / sd)


# Families


class _Labelled(Family):
    """Correlations between T labels: tables are (T, T)."""

    size: int
    time_kind = "label"

    def look_up(
        self,
        tables: Float[Array, "S T T"],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        del present
        at = jnp.asarray(times).astype(jnp.int32)
        return tables[stratum, at[:, None], at[None, :]]


def _banded_pairs(size: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the elements below the diagonal and in the band, by rows."""
    rows, columns = np.tril_indices(size, -1)
    near = rows - columns <= order
    return rows[near], columns[near]


def _pair_names(labels: Sequence[str], order: int) -> tuple[str, ...]:
    rows, columns = _banded_pairs(len(labels), order)
    return tuple(f"corr[{labels[j]},{labels[i]}]" for i, j in zip(rows, columns, strict=True))


@dataclass(frozen=True)
class Banded(_Labelled):
    """A free correlation for every two labels no farther apart than an order, none beyond.

    Free parameters are hyperbolic arctangents of canonical partial correlations (`correlations_of`), by rows
    below the diagonal.

    Attributes
    ----------
    order : int
        Labels between which there is correlation are so far apart at most; at least 1.
    size : int
        Number T of labels.

    Examples
    --------
    >>> Banded(1, 3).names(["1", "2", "3"])
    ('corr[1,2]', 'corr[2,3]')
    """

    order: int
    size: int

    @property
    def name(self) -> str:
        return f"banded({self.order})"

    @property
    def num_params(self) -> int:
        return len(_banded_pairs(self.size, self.order)[0])

    @property
    def scales(self) -> tuple[Scale, ...]:
        return on_scale("atanh", self.num_params)

    def table(self, free: Float[Array, " k"]) -> Float[Array, "T T"]:
        position = np.full((self.size, self.size), self.num_params)
        position[_banded_pairs(self.size, self.order)] = np.arange(self.num_params)
        return correlations_of(jnp.concatenate([free, jnp.zeros(1, free.dtype)])[position])

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return self.table(free)[_banded_pairs(self.size, self.order)]

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return _pair_names(labels, self.order)

    def initial(self) -> np.ndarray:
        return np.zeros(self.num_params)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        # Nearer to the optimum than the correlations of the band, made positive definite without the others.
        C = _made_definite(_filled(times, products, counts, self.size))
        return canonical_partial(C)[_banded_pairs(self.size, self.order)]


@dataclass(frozen=True)
class Unstructured(_Labelled):
    """A free correlation for every two labels; parameters as for :class:`Banded`.

    Attributes
    ----------
    size : int
        Number T of labels.

    Examples
    --------
    >>> Unstructured(3).names(["1", "2", "3"])
    ('corr[1,2]', 'corr[1,3]', 'corr[2,3]')
    """

    size: int
    name = "unstructured"

    @property
    def num_params(self) -> int:
        return self.size * (self.size - 1) // 2

    @property
    def scales(self) -> tuple[Scale, ...]:
        return on_scale("atanh", self.num_params)

    def table(self, free: Float[Array, " k"]) -> Float[Array, "T T"]:
        return Banded(self.size, self.size).table(free)

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return Banded(self.size, self.size).natural(free)

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return _pair_names(labels, self.size)

    def initial(self) -> np.ndarray:
        return np.zeros(self.num_params)

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return Banded(self.size, self.size).start(times, products, counts)


@dataclass(frozen=True)
class AnteDependence(_Labelled):
    r"""Antedependence of order 1: given the label before, a label does not depend on earlier ones.

    Correlations are products, :math:`\prod_{k=i}^{j-1} \rho_k`, of those of neighbouring labels (Gabriel
    1962, Annals of Mathematical Statistics 33, 201-212); AR(1) with a coefficient for every step. Free
    parameters are their hyperbolic arctangents.

    Attributes
    ----------
    size : int
        Number T of labels.

    Examples
    --------
    >>> family = AnteDependence(3)
    >>> family.correlation(jnp.arctanh(jnp.array([0.5, 0.5])), jnp.arange(3.0))[0].tolist()
    [1.0, 0.5, 0.25]
    """

    size: int
    name = "antedependence"

    @property
    def is_markov(self) -> bool:
        return True

    @property
    def num_params(self) -> int:
        return self.size - 1

    @property
    def scales(self) -> tuple[Scale, ...]:
        return on_scale("atanh", self.num_params)

    def table(self, free: Float[Array, " k"]) -> Float[Array, "T T"]:
        # The step to a label belongs to products that begin before it.
        earlier = np.tri(self.size, self.size - 1, -1, dtype=bool)
        steps = jnp.where(earlier, 1, jnp.tanh(free)[None, :])
        one = jnp.ones((self.size, 1), free.dtype)
        later = jnp.concatenate([one, jnp.cumprod(steps, axis=1)], axis=1)
        upper = np.tri(self.size, k=-1, dtype=bool).T
        return jnp.where(upper, later, jnp.where(upper.T, later.T, 1))

    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        return jnp.tanh(free)

    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"corr[{a},{b}]" for a, b in pairwise(labels))

    def initial(self) -> np.ndarray:
        return np.full(self.num_params, np.arctanh(MODERATE))

    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return np.arctanh(limited(np.diagonal(_filled(times, products, counts, self.size), 1)))

r"""Random-effects covariance structures: from free parameters to a relative factor.

A term's random effects have covariance :math:`\sigma^2 G`, :math:`G = T T'`. Every structure here makes the
factor linear in its free parameters, :math:`T(\theta) = \sum_a \theta_a E_a`, with signed diagonals: the
likelihood is even in the sign of each column, so a variance of zero is an interior point of the parameter
space and needs no bound (Bates et al. 2015, Journal of Statistical Software 67(1), section 3, for the
relative factor).

A new structure is a frozen dataclass with the methods of :class:`Covariance`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed.linalg import qr_triangle

PIVOT_TOLERANCE = 1e-14
"""A pivot this small, relative to its diagonal element, is rounding."""


class Covariance(Protocol):
    """What the likelihood and the tables ask of a covariance structure.

    Structures are static: hashable, equal when they have the same fields, and free of arrays.
    """

    q: int

    @property
    @abstractmethod
    def name(self) -> str:
        """Name by which users ask for the structure."""
        ...

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of free parameters."""
        ...

    @abstractmethod
    def factor(self, theta: Float[Array, " k"]) -> Float[Array, "q q"]:
        """Relative factor T of the covariance, ``G = T T'``, in the dtype of `theta`."""
        ...

    @abstractmethod
    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """Where a step of an optimiser leads: ``theta + step``, or a path equal to it to first order."""
        ...

    @abstractmethod
    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivatives ``dT / dtheta_a`` stacked as (k, q, q), on the host."""
        ...

    @abstractmethod
    def initial(self) -> np.ndarray:
        """Starting values: the parameters of ``G = I``."""
        ...

    @abstractmethod
    def from_factor(self, factor: np.ndarray) -> np.ndarray:
        """Canonical parameters whose covariance is ``factor @ factor.T``, without forming the product.

        For any leading axes of `factor`.
        """
        ...

    @abstractmethod
    def bounds(self) -> list[tuple[float, float]]:
        """Range of each parameter in its canonical form (non-negative diagonals)."""
        ...

    @abstractmethod
    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Readable name of each free parameter."""
        ...

    @abstractmethod
    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        """Canonical parameters (non-negative diagonals) whose covariance is `G`, for any leading axes of it.

        A variance, or a pivot given the effects before it, that is at most ``max(tolerance * G[j, j],
        floor)`` becomes exactly zero.
        """
        ...

    @abstractmethod
    def on_boundary(self, theta: np.ndarray) -> np.ndarray:
        """Mask of the parameters that a singular canonical `theta`, (..., k), holds at zero."""
        ...

    @abstractmethod
    def elements(self) -> tuple[tuple[int, int], ...]:
        """Lower-triangle elements (i, j) of G, columnwise, that the tables show."""
        ...


@dataclass(frozen=True, slots=True)
class _Linear:
    """A factor that is a fixed linear map of the parameters; subclasses give the basis ``E_a``."""

    q: int

    def basis(self) -> np.ndarray:
        raise NotImplementedError

    def factor(self, theta: Float[Array, " k"]) -> Float[Array, "q q"]:
        basis = jnp.asarray(_basis(self), dtype=theta.dtype)
        return jnp.sum(theta[:, None, None] * basis, axis=0)  # no dot: accelerators round those to fewer bits

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        return theta + step

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        del theta
        return _basis(self)

    @property
    def num_params(self) -> int:
        return len(_basis(self))

    def on_boundary(self, theta: np.ndarray) -> np.ndarray:
        return theta == 0


@cache
def _lower_triangle(q: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle, column by column."""
    columns, rows = np.triu_indices(q)
    return rows, columns


@cache
def _basis(structure: "_Linear") -> np.ndarray:
    basis = structure.basis()
    basis.flags.writeable = False
    return basis


def _roots(variances: np.ndarray, floor: float | np.ndarray) -> np.ndarray:
    return np.sqrt(np.where(variances > floor, variances, 0.0))


def _crossproduct(factor: np.ndarray) -> np.ndarray:
    return factor @ np.swapaxes(factor, -1, -2)


def semidefinite_cholesky(
    G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
) -> np.ndarray:
    """Lower Cholesky factor of a positive *semi*definite matrix, its columns exactly zero where a pivot is.

    Parameters
    ----------
    G : (..., q, q) array
    tolerance, floor : float
        A pivot at most ``max(tolerance * G[j, j], floor)`` counts as zero.

    Returns
    -------
    T : (..., q, q) array, ``T @ T.T == G`` up to the pivots dropped

    Examples
    --------
    >>> semidefinite_cholesky(np.array([[4.0, 2.0], [2.0, 1.0]]))
    array([[2., 0.],
           [1., 0.]])
    """
    q = G.shape[-1]
    T = np.zeros(G.shape)
    for j in range(q):
        row = T[..., j, :j]
        pivot = G[..., j, j] - (row * row).sum(axis=-1)
        kept = pivot > np.maximum(tolerance * G[..., j, j], floor)
        root = np.sqrt(np.where(kept, pivot, 0.0))
        T[..., j, j] = root
        if j + 1 < q:
            below = G[..., j + 1 :, j] - (T[..., j + 1 :, :j] * row[..., None, :]).sum(axis=-1)
            T[..., j + 1 :, j] = below / np.where(kept, root, np.inf)[..., None]
    return T


@dataclass(frozen=True, slots=True)
class Unstructured(_Linear):
    """Free variances and covariances: T lower triangular, parameters columnwise as in lme4."""

    name = "unstructured"

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        return _lower_triangle(self.q)

    def basis(self) -> np.ndarray:
        rows, columns = self._positions()
        E = np.zeros((len(rows), self.q, self.q))
        E[np.arange(len(rows)), rows, columns] = 1.0
        return E

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """Turn the rows of T instead of stretching them, where a step is shorter than the row.

        With a variance near zero the likelihood depends on the rows after it only through their lengths: it
        is flat along circles, on which straight steps crawl.
        """
        if self.q == 1:
            return theta + step
        rows, _ = self._positions()
        member = np.asarray(rows[None, :] == np.arange(self.q)[:, None])

        def per_row(products: Float[Array, " k"]) -> Float[Array, " k"]:
            sums = jnp.sum(jnp.where(member, products[None, :], 0), axis=1)
            return jnp.sum(jnp.where(member, sums[:, None], 0), axis=0)  # back to the row's elements

        moved = theta + step
        square, along = per_row(theta * theta), per_row(theta * step)
        size, new_size = jnp.sqrt(square), jnp.sqrt(per_row(moved * moved))
        wanted = size + along / jnp.where(size > 0, size, 1)
        short = (per_row(step * step) < square) & (wanted > 0) & (new_size > 0)
        return jnp.where(short, moved * wanted / jnp.where(short, new_size, 1), moved)

    @property
    def num_params(self) -> int:
        return self.q * (self.q + 1) // 2

    def initial(self) -> np.ndarray:
        rows, columns = self._positions()
        return (rows == columns).astype(float)

    def from_factor(self, factor: np.ndarray) -> np.ndarray:
        # The factor's rows are turned, their products never formed.
        triangle = np.swapaxes(qr_triangle(np.swapaxes(factor, -1, -2)), -1, -2)
        pivots = np.diagonal(triangle, axis1=-2, axis2=-1)
        rows, columns = self._positions()
        theta = (triangle * np.sign(pivots)[..., None, :])[..., rows, columns]
        singular = (np.abs(pivots) <= 1e-12 * np.sqrt((factor * factor).sum(axis=-1))).any(axis=-1)
        if singular.any():
            theta[singular] = self.from_covariance(_crossproduct(factor[singular]))
        return theta

    def bounds(self) -> list[tuple[float, float]]:
        return [(0.0 if i == j else -np.inf, np.inf) for i, j in zip(*self._positions(), strict=True)]

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        rows, cols = self._positions()
        return tuple(
            columns[i] if i == j else f"{columns[i]}.{columns[j]}" for i, j in zip(rows, cols, strict=True)
        )

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        rows, columns = self._positions()
        return semidefinite_cholesky(G, tolerance, floor)[..., rows, columns]

    def on_boundary(self, theta: np.ndarray) -> np.ndarray:
        rows, columns = self._positions()
        return (theta[..., rows == columns] == 0)[..., columns]

    def elements(self) -> tuple[tuple[int, int], ...]:
        rows, columns = self._positions()
        return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True))


@dataclass(frozen=True, slots=True)
class Independent(_Linear):
    """One variance per effect and no covariances."""

    name = "independent"

    def basis(self) -> np.ndarray:
        E = np.zeros((self.q, self.q, self.q))
        E[np.arange(self.q), np.arange(self.q), np.arange(self.q)] = 1.0
        return E

    def initial(self) -> np.ndarray:
        return np.ones(self.q)

    def from_factor(self, factor: np.ndarray) -> np.ndarray:
        return np.sqrt((factor * factor).sum(axis=-1))

    def bounds(self) -> list[tuple[float, float]]:
        return [(0.0, np.inf)] * self.q

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return columns

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        return _roots(np.diagonal(G, axis1=-2, axis2=-1), floor)

    def elements(self) -> tuple[tuple[int, int], ...]:
        return tuple((j, j) for j in range(self.q))


@dataclass(frozen=True, slots=True)
class Identity(_Linear):
    """One common variance and no covariances."""

    name = "identity"

    def basis(self) -> np.ndarray:
        return np.eye(self.q)[None]

    def initial(self) -> np.ndarray:
        return np.ones(1)

    def from_factor(self, factor: np.ndarray) -> np.ndarray:
        return np.sqrt((factor * factor).sum(axis=-1).mean(axis=-1, keepdims=True))

    def bounds(self) -> list[tuple[float, float]]:
        return [(0.0, np.inf)]

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return (" ".join(columns),)

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        return _roots(np.diagonal(G, axis1=-2, axis2=-1).mean(axis=-1, keepdims=True), floor)

    def elements(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),)


@dataclass(frozen=True, slots=True)
class Exchangeable(_Linear):
    r"""One common variance and one common covariance (compound symmetry).

    The factor is the symmetric root, :math:`T = \theta_1 \bar J + \theta_2 (I - \bar J)` with :math:`\bar J`
    the averaging matrix, whose squared parameters are the two eigenvalues of G.
    """

    name = "exchangeable"

    def basis(self) -> np.ndarray:
        average = np.full((self.q, self.q), 1 / self.q)
        return np.stack([average, np.eye(self.q) - average])

    def initial(self) -> np.ndarray:
        return np.ones(2)

    def from_factor(self, factor: np.ndarray) -> np.ndarray:
        return self.from_covariance(_crossproduct(factor))

    def bounds(self) -> list[tuple[float, float]]:
        return [(0.0, np.inf)] * 2

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        label = " ".join(columns)
        return (f"mean({label})", f"contrasts({label})")

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        total, trace = G.sum(axis=(-2, -1)) / self.q, np.trace(G, axis1=-2, axis2=-1)
        eigenvalues = np.stack([total, (trace - total) / (self.q - 1)], axis=-1)
        return _roots(eigenvalues, np.maximum(tolerance * trace / self.q, floor)[..., None])

    def elements(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0), (1, 0))


STRUCTURES: dict[str, type[_Linear]] = {
    cls.name: cls for cls in (Unstructured, Independent, Identity, Exchangeable)
}


def covariance_structure(name: str, q: int) -> Covariance:
    """Structure called `name` for `q` effects; with one effect every structure is a single variance."""
    cls = STRUCTURES[name] if q > 1 or name == "independent" else Unstructured
    return cls(q)  # type: ignore[return-value]

r"""Random-effects covariance structures: from free parameters to a relative factor.

A term's random effects have covariance :math:`\sigma^2 G`, :math:`G = T T'`. Every structure here makes the
factor linear in its free parameters, :math:`T(\theta) = \sum_a \theta_a E_a`, with signed diagonals: the
likelihood is even in the sign of each column, so a variance of zero is an interior point of the parameter
space and needs no bound (Bates et al. 2015, Journal of Statistical Software 67(1), section 3, for the
relative factor).

A new structure is a frozen dataclass with the methods of :class:`Covariance`.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jaxmixed._types import SameArray

PIVOT_TOLERANCE = 1e-14
"""A pivot this small, relative to its diagonal element, is rounding."""


_NUMPY = (np.ndarray, np.generic)

Coordinates = Literal["any", "columns", "scale", "none"]
"""Changes of the columns' coordinates under which a structure stays what it is: any invertible one that keeps
their order (a triangular matrix), a unit for each column, one common unit, or none."""


class Parameterised(Protocol):
    """What a search asks of the owner of some of its parameters; documented in :class:`Covariance`."""

    @property
    def num_params(self) -> int:
        """Number of free parameters, k."""
        ...

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """Where a step of an optimiser leads."""
        ...

    def even(self) -> np.ndarray:
        """Mask (k,) of the parameters whose sign alone does not matter."""
        ...

    def initial(self) -> np.ndarray:
        """Starting values (k,) for want of better ones."""
        ...

    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        """Starting values beside `theta`, (a, ..., k)."""
        ...

    def canonical(self, theta: np.ndarray, tolerance: float = ..., floor: float = ...) -> np.ndarray:
        """Canonical parameters of the same covariance."""
        ...

    def on_boundary(self, theta: np.ndarray) -> np.ndarray:
        """Mask of the parameters that a singular `theta` holds."""
        ...


@runtime_checkable
class Covariance(Protocol):
    """What the likelihood and the tables ask of the covariance of a term's q effects.

    Structures are static: hashable, equal when they have the same fields, and free of arrays. Their methods
    take numpy arrays and give numpy arrays, with any leading axes; those marked "traced" also take JAX
    arrays, inside a trace or outside, and then give those. The canonical form of parameters is the one of
    those with the same covariance in which the even ones are not negative.
    """

    @property
    @abstractmethod
    def q(self) -> int:
        """Number of effects."""
        ...

    @property
    @abstractmethod
    def name(self) -> str:
        """Name by which users ask for the structure."""
        ...

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of free parameters, k."""
        ...

    @property
    @abstractmethod
    def coordinates(self) -> Coordinates:
        """Changes of coordinates that the structure is closed under."""
        ...

    @property
    @abstractmethod
    def homogeneous(self) -> bool:
        """Whether all effects have one variance by construction."""
        ...

    @abstractmethod
    def factor(self, theta: Float[SameArray, "*m k"]) -> Float[SameArray, "*m q q"]:
        """Relative factor T of the covariance, ``G = T T'``, in the dtype of `theta` (traced).

        A smooth function; traced parameters need have no leading axes.
        """
        ...

    @abstractmethod
    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivatives ``dT / dtheta_a``, (..., k, q, q); without leading axes where they are constant."""
        ...

    @abstractmethod
    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """Where a step of an optimiser leads: ``theta + step``, or a path equal to it to first order."""
        ...

    @abstractmethod
    def even(self) -> np.ndarray:
        """Mask (k,) of the parameters whose sign alone does not matter: G is an even function of each."""
        ...

    @abstractmethod
    def initial(self) -> np.ndarray:
        """Starting values (k,) for want of better ones, of unit variances."""
        ...

    @abstractmethod
    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        """Starting values beside `theta`, (a, ..., k), of a search for the highest of several maxima."""
        ...

    @abstractmethod
    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Readable name of each free parameter."""
        ...

    @abstractmethod
    def canonical(
        self, theta: Float[SameArray, "*m k"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        """Canonical parameters of the same covariance G (traced).

        A variance, or a pivot given the effects before it, that is at most ``max(tolerance * G[j, j],
        floor)`` becomes exactly zero.
        """
        ...

    @abstractmethod
    def transformed(
        self, theta: Float[SameArray, "*m k"], frame: Float[SameArray, "*m q q"]
    ) -> Float[SameArray, "*m k"]:
        """Canonical parameters of the covariance of ``frame @ b`` where b has that of `theta` (traced).

        Exactly so where `frame`, (..., q, q), is a change of coordinates that the structure is closed under;
        the products of the factor are not formed, which would lose half of its digits.
        """
        ...

    @abstractmethod
    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        """Canonical parameters whose covariance is `G`, or near it if it does not have the structure.

        What counts as zero is as for `canonical`.
        """
        ...

    @abstractmethod
    def on_boundary(self, theta: Float[SameArray, "*m k"]) -> Bool[SameArray, "*m k"]:
        """Mask of the parameters that a singular canonical `theta` holds (traced)."""
        ...

    @abstractmethod
    def elements(self) -> tuple[tuple[int, int], ...]:
        """Lower-triangle elements (i, j) of G, columnwise, that the tables show."""
        ...

    @property
    @abstractmethod
    def natural_names(self) -> tuple[str, ...]:
        """Names of the parameters that the tables show beside elements of G; mostly none."""
        ...

    @abstractmethod
    def natural(self, theta: np.ndarray) -> "Natural":
        """Those parameters, by the names of `natural_names`."""
        ...


class Natural(NamedTuple):
    """Parameters of a structure as its tables show them.

    Attributes
    ----------
    value : (..., a) array
    slope : (..., a) array
        Derivative of each in its number on the scale of `scaled`.
    scaled : (..., a) array
        The parameters on the scales on which their intervals are symmetric.
    jacobian : (..., a, k) array
        Derivatives of `scaled` in the free parameters.
    inverse : callable
        From numbers on the scale of `scaled`, (..., a), to values.
    """

    value: np.ndarray
    slope: np.ndarray
    scaled: np.ndarray
    jacobian: np.ndarray
    inverse: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class _Linear:
    """A factor that is a fixed linear map of the parameters; subclasses give the basis ``E_a``."""

    q: int
    homogeneous = False

    def basis(self) -> np.ndarray:
        raise NotImplementedError

    def from_factor(self, factor: Float[SameArray, "*m q q"]) -> Float[SameArray, "*m k"]:
        """Canonical parameters whose covariance is ``factor @ factor.T``."""
        raise NotImplementedError

    def from_covariance(
        self, G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        raise NotImplementedError

    def factor(self, theta: Float[SameArray, "*m k"]) -> Float[SameArray, "*m q q"]:
        basis = _basis(self).astype(theta.dtype, copy=False)
        if isinstance(theta, np.ndarray):
            flat = theta @ basis.reshape(len(basis), -1)
            return flat.reshape(*theta.shape[:-1], self.q, self.q)
        return jnp.sum(theta[..., None, None] * basis, axis=-3)  # no dot: accelerators round those

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        return theta + step

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        del theta
        return _basis(self)

    def even(self) -> np.ndarray:
        return _even(self)

    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        return theta[None][:0]

    @property
    def num_params(self) -> int:
        return len(_basis(self))

    def canonical(
        self, theta: Float[SameArray, "*m k"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        return self.from_covariance(_crossproduct(self.factor(theta)), tolerance, floor)

    def transformed(
        self, theta: Float[SameArray, "*m k"], frame: Float[SameArray, "*m q q"]
    ) -> Float[SameArray, "*m k"]:
        return self.from_factor(frame @ self.factor(theta))

    def on_boundary(self, theta: Float[SameArray, "*m k"]) -> Bool[SameArray, "*m k"]:
        return theta == 0

    @property
    def natural_names(self) -> tuple[str, ...]:
        return ()

    def natural(self, theta: np.ndarray) -> Natural:
        none = theta[..., :0]
        return Natural(none, none, none, none[..., None] * theta[..., None, :], lambda values: values)


@cache
def lower_triangle(q: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the lower triangle of a q x q matrix, column by column.

    Examples
    --------
    >>> rows, columns = lower_triangle(2)
    >>> rows.tolist(), columns.tolist()
    ([0, 1, 1], [0, 0, 1])
    """
    columns, rows = np.triu_indices(q)
    return rows.astype(np.int32), columns.astype(np.int32)  # the integers of either precision


@cache
def _basis(structure: "_Linear") -> np.ndarray:
    basis = structure.basis()
    basis.flags.writeable = False
    return basis


@cache
def _even(structure: "_Linear") -> np.ndarray:
    """The covariance is a sum of products of parameters: all those of an even one with others vanish."""
    E = _basis(structure)
    products = np.einsum("aij,bkj->abik", E, E)
    size = np.abs(products + np.swapaxes(products, 2, 3)).max(axis=(2, 3))
    even = (size - np.diag(np.diagonal(size)) <= 1e-12).all(axis=1)
    even.flags.writeable = False
    return even


def namespace(values: Any) -> Any:
    """The functions of arrays of this kind."""
    return np if isinstance(values, _NUMPY) else jnp


def roots(variances: SameArray, floor: Any) -> SameArray:
    """Square roots of what exceeds the floor, else zero; derivatives are finite."""
    xp = namespace(variances)
    kept = variances > floor
    return xp.where(kept, xp.sqrt(xp.where(kept, variances, 1.0)), 0.0)


def _crossproduct(factor: SameArray) -> SameArray:
    return factor @ namespace(factor).swapaxes(factor, -1, -2)


def semidefinite_cholesky(
    G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
) -> Float[SameArray, "*m q q"]:
    """Lower Cholesky factor of a positive semidefinite matrix, its columns exactly zero where a pivot is.

    Parameters
    ----------
    G : (..., q, q) array
        Of numpy or, possibly traced, of JAX; the factor is of the same kind.
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
    columns: Any = _cholesky_columns(G, tolerance, floor)
    return namespace(G).stack([_below_zeros(column, j) for j, column in enumerate(columns)], axis=-1)


def _below_zeros(column: Any, rows: int) -> Any:
    """A column that starts with so many zeros."""
    xp = namespace(column)
    return xp.concatenate([xp.zeros((*column.shape[:-1], rows), column.dtype), column], axis=-1)


def _cholesky_columns(
    G: Float[SameArray, "*m q q"], tolerance: float, floor: float
) -> list[Float[SameArray, "*m qj"]]:
    """Columns of the factor from their diagonal elements on."""
    xp, rest, pieces = namespace(G), G, []
    for j in range(G.shape[-1]):
        smallest = xp.maximum(tolerance * G[..., j, j], floor)[..., None]
        root = roots(rest[..., 0, :1], smallest)
        below = rest[..., 1:, 0] / xp.where(root > 0, root, xp.inf)
        pieces.append(xp.concatenate([root, below], axis=-1))
        rest = rest[..., 1:, 1:] - below[..., :, None] * below[..., None, :]
    return pieces


def _triangle_columns(factor: Float[SameArray, "*m q q"]) -> list[Float[SameArray, "*m qj"]]:
    """Columns, from their diagonal elements on, of the lower triangle T with ``T T' = factor factor'``.

    The rows are turned, by modified Gram-Schmidt, and no product of rows is squared: no digits are lost. What
    rounding leaves of a row that depends on those before it is zero.
    """
    xp, rest, pieces = namespace(factor), factor, []
    rounding = max(1e-12, 4 * factor.shape[-1] * float(np.finfo(factor.dtype).eps))
    smallest = rounding**2 * (factor * factor).sum(axis=-1)
    for j in range(factor.shape[-1]):
        row, below = rest[..., 0, :], rest[..., 1:, :]
        size = roots((row * row).sum(axis=-1), smallest[..., j])[..., None]
        unit = (row / xp.where(size > 0, size, xp.inf))[..., None, :]
        along = (below * unit).sum(axis=-1)
        pieces.append(xp.concatenate([size, along], axis=-1))
        rest = below - along[..., None] * unit
    return pieces


@dataclass(frozen=True, slots=True)
class Unstructured(_Linear):
    """Free variances and covariances: T lower triangular, parameters columnwise as in lme4."""

    name = "unstructured"
    coordinates = "any"

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        return lower_triangle(self.q)

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

    def from_factor(self, factor: Float[SameArray, "*m q q"]) -> Float[SameArray, "*m k"]:
        return namespace(factor).concatenate(_triangle_columns(factor), axis=-1)

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        rows, cols = self._positions()
        return tuple(
            columns[i] if i == j else f"{columns[i]}.{columns[j]}" for i, j in zip(rows, cols, strict=True)
        )

    def from_covariance(
        self, G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        return namespace(G).concatenate(_cholesky_columns(G, tolerance, floor), axis=-1)

    def on_boundary(self, theta: Float[SameArray, "*m k"]) -> Bool[SameArray, "*m k"]:
        rows, columns = self._positions()
        return (theta[..., rows == columns] == 0)[..., columns]

    def elements(self) -> tuple[tuple[int, int], ...]:
        rows, columns = self._positions()
        return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True))


@dataclass(frozen=True, slots=True)
class Independent(_Linear):
    """One variance per effect and no covariances."""

    name = "independent"
    coordinates = "columns"

    def basis(self) -> np.ndarray:
        E = np.zeros((self.q, self.q, self.q))
        E[np.arange(self.q), np.arange(self.q), np.arange(self.q)] = 1.0
        return E

    def initial(self) -> np.ndarray:
        return np.ones(self.q)

    def from_factor(self, factor: Float[SameArray, "*m q q"]) -> Float[SameArray, "*m k"]:
        return roots((factor * factor).sum(axis=-1), 0.0)

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return columns

    def from_covariance(
        self, G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        return roots(namespace(G).diagonal(G, axis1=-2, axis2=-1), floor)

    def elements(self) -> tuple[tuple[int, int], ...]:
        return tuple((j, j) for j in range(self.q))


@dataclass(frozen=True, slots=True)
class Identity(_Linear):
    """One common variance and no covariances."""

    name = "identity"
    coordinates = "scale"
    homogeneous = True

    def basis(self) -> np.ndarray:
        return np.eye(self.q)[None]

    def initial(self) -> np.ndarray:
        return np.ones(1)

    def from_factor(self, factor: Float[SameArray, "*m q q"]) -> Float[SameArray, "*m k"]:
        return roots((factor * factor).sum(axis=-1).mean(axis=-1, keepdims=True), 0.0)

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        return (" ".join(columns),)

    def from_covariance(
        self, G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        return roots(namespace(G).diagonal(G, axis1=-2, axis2=-1).mean(axis=-1, keepdims=True), floor)

    def elements(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),)


@dataclass(frozen=True, slots=True)
class Exchangeable(_Linear):
    r"""One common variance and one common covariance (compound symmetry).

    The factor is the symmetric root, :math:`T = \theta_1 \bar J + \theta_2 (I - \bar J)` with :math:`\bar J`
    the averaging matrix, whose squared parameters are the two eigenvalues of G.
    """

    name = "exchangeable"
    coordinates = "scale"
    homogeneous = True

    def basis(self) -> np.ndarray:
        average = np.full((self.q, self.q), 1 / self.q)
        return np.stack([average, np.eye(self.q) - average])

    def initial(self) -> np.ndarray:
        return np.ones(2)

    def from_factor(self, factor: Float[SameArray, "*m q q"]) -> Float[SameArray, "*m k"]:
        return self.from_covariance(_crossproduct(factor))

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        label = " ".join(columns)
        return (f"mean({label})", f"contrasts({label})")

    def from_covariance(
        self, G: Float[SameArray, "*m q q"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        xp = namespace(G)
        total, trace = G.sum(axis=(-2, -1)) / self.q, xp.trace(G, axis1=-2, axis2=-1)
        eigenvalues = xp.stack([total, (trace - total) / (self.q - 1)], axis=-1)
        return roots(eigenvalues, xp.maximum(tolerance * trace / self.q, floor)[..., None])

    def elements(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0), (1, 0))


STRUCTURES: dict[str, type[_Linear]] = {
    cls.name: cls for cls in (Unstructured, Independent, Identity, Exchangeable)
}


def covariance_structure(name: str, q: int) -> Covariance:
    """Structure called `name` for `q` effects; with one effect every structure is a single variance."""
    cls = STRUCTURES[name] if q > 1 or name == "independent" else Unstructured
    return cls(q)  # type: ignore[return-value]

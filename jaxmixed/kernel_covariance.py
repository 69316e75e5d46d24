r"""Covariance functions as structures of random effects; those that are built in are in `kernels`.

.. math:: G = \tau^2 K(\phi; s_1, \dots, s_q), \qquad T = \tau\, K(\phi)^{1/2}

References
----------
Rasmussen & Williams (2006), Gaussian Processes for Machine Learning, chapter 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from jaxmixed._types import AnyArray, SameArray
from jaxmixed.covariance import PIVOT_TOLERANCE, STRUCTURES, Coordinates, Natural, namespace, roots
from jaxmixed.errors import DesignError
from jaxmixed.linalg import pivoted_cholesky
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.sizes import grid_size
from jaxmixed.supports import Fixed, Support

LARGEST_STEP = 2.0
"""How far an optimiser's step moves a free parameter of a kernel: a length by a factor of 7 at most."""

_TRIALS = (-3.0, -2.0, -1.0, 1.0, 2.0)  # distances of free parameters at which a better start is sought
_APART = (-1.5, 1.5, 3.0)  # the same, of a search that a start of its own begins
_SEEN = (0.3, 3.0)  # relative standard deviations of such a start
_ROUNDING = 1e-8  # of a function's own arithmetic, in the checks of its matrix


# Kernels

Function = Callable[[dict[str, Any], Any], Any]


@dataclass(frozen=True, slots=True, repr=False)
class Kernel:
    """A covariance function with the supports of its parameters, not bound to positions.

    Hashable; kernels are equal when they have the same function object, parameters and options.

    Attributes
    ----------
    function : callable
        ``(params, positions) -> (t, t)``, where `params` is a dict of scalars and `positions` is (t,) or (t,
        d).
    parameters : tuple of (name, support)
    name : str
    unit_variance : bool
        Whether the function gives correlations, with ones on the diagonal.
    integer_positions : bool
        Whether positions must be whole numbers.
    """

    function: Function
    parameters: tuple[tuple[str, Support | Fixed], ...]
    name: str
    unit_variance: bool = True
    integer_positions: bool = False

    def __repr__(self) -> str:
        # The address of a function that is not the library's keeps programs with it out of other processes.
        module = self.function.__module__ if hasattr(self.function, "__module__") else None
        own = str(module).startswith("jaxmixed.")
        function = "" if own else f" at {id(self.function):#x}"
        options = f", unit_variance={self.unit_variance}, integer_positions={self.integer_positions}"
        return f"Kernel({self.name!r}, {dict(self.parameters)!r}{options}{function})"

    def matrix(self, params: Mapping[str, Any], positions: Float[AnyArray, "t ..."]) -> Float[Array, "t t"]:
        """Correlations at positions; a pure function of both, traced or not.

        Parameters
        ----------
        params : mapping from name to scalar
            Natural parameters; those that are `Fixed` may be left out.
        positions : (t,) or (t, d) array

        Returns
        -------
        (t, t) array

        Examples
        --------
        >>> from jaxmixed.kernels import squared_exponential
        >>> K = squared_exponential().matrix({"length": 1.0}, jnp.arange(2.0))
        >>> round(float(K[0, 1]), 4)
        0.6065
        """
        known = {name: own.value for name, own in self.parameters if isinstance(own, Fixed)}
        return jnp.asarray(self.function({**known, **params}, positions))

    def at(self, positions: Any) -> "KernelCovariance":
        """Covariance structure of effects at these positions, one for each.

        Parameters
        ----------
        positions : (q,) or (q, d) array
            Different from each other.

        Returns
        -------
        KernelCovariance

        Raises
        ------
        DesignError
            If positions are not distinct finite numbers, or the function gives no covariance matrix there.

        Examples
        --------
        >>> from jaxmixed.kernels import exponential
        >>> exponential().at([0, 1, 4]).q
        3
        """
        structure = KernelCovariance(self, static_positions(self, positions))
        _check_matrix(structure)
        return structure


@dataclass(frozen=True, slots=True)
class KernelCovariance:
    """A kernel at the positions of a term's q effects: ``G = tau**2 K(phi)``, theta = (tau, phi).

    Attributes
    ----------
    kernel : Kernel
    positions : tuple
        Of q numbers, or of q tuples of d numbers.
    """

    kernel: Kernel
    positions: tuple[Any, ...]

    @property
    def q(self) -> int:
        """Number of effects."""
        return len(self.positions)

    @property
    def name(self) -> str:
        return self.kernel.name

    @property
    def coordinates(self) -> Coordinates:
        return "scale"

    @property
    def homogeneous(self) -> bool:
        return self.kernel.unit_variance

    @property
    def free_parameters(self) -> tuple[tuple[str, Support], ...]:
        """Parameters of the kernel that are estimated."""
        return tuple((name, own) for name, own in self.kernel.parameters if isinstance(own, Support))

    @property
    def num_params(self) -> int:
        return 1 + len(self.free_parameters)

    def matrix(self, theta: Float[Array, " k"]) -> Float[Array, "q q"]:
        """K, from the free parameters, in their dtype."""
        positions = jnp.asarray(self.positions, theta.dtype)
        return self.kernel.matrix(self.parameter_values(theta), positions).astype(theta.dtype)

    def parameter_values(self, theta: Float[Array, " k"]) -> dict[str, Any]:
        """Parameters of the kernel that are estimated, from the free parameters (traced)."""
        free = self._limited(theta[1:])
        return {name: own.natural(free[a]) for a, (name, own) in enumerate(self.free_parameters)}

    def factor(self, theta: Float[SameArray, "*m k"]) -> Float[SameArray, "*m q q"]:
        if isinstance(theta, np.ndarray):
            return on_host(FACTORS, self, theta)
        if theta.ndim > 1:
            return jax.vmap(self.factor)(theta)
        return theta[0] * pivoted_cholesky(self.matrix(theta))

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        return on_host(JACOBIANS, self, theta)

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """The step, but not far in the kernel's parameters, whose likelihood is no parabola."""
        return theta + jnp.append(step[:1], jnp.clip(step[1:], -LARGEST_STEP, LARGEST_STEP))

    def even(self) -> np.ndarray:
        return np.arange(self.num_params) == 0

    def initial(self) -> np.ndarray:
        positions = np.asarray(self.positions)
        return np.array([1.0, *(own.free(own.start_at(positions)) for _, own in self.free_parameters)])

    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        """Each parameter of the kernel well below and above its start, where a variance can be seen."""
        moves = [step * np.eye(self.num_params)[a] for a in range(1, self.num_params) for step in _APART]
        start = np.broadcast_to(self.initial(), theta.shape).copy()
        start[..., 0] = np.clip(theta[..., 0], *_SEEN)
        return np.stack([start + move for move in moves]) if moves else theta[None][:0]

    def names(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        del columns
        return (self.name, *self.natural_names)

    def canonical(
        self, theta: Float[SameArray, "*m k"], tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> Float[SameArray, "*m k"]:
        del tolerance
        tau = roots(theta[..., :1] ** 2, floor)
        return namespace(theta).concatenate([tau, self._limited(theta[..., 1:])], axis=-1)

    def transformed(
        self, theta: Float[SameArray, "*m k"], frame: Float[SameArray, "*m q q"]
    ) -> Float[SameArray, "*m k"]:
        xp = namespace(theta)
        tau = xp.abs(theta[..., :1] * frame[..., 0, :1])  # a common unit
        return xp.concatenate([tau, theta[..., 1:]], axis=-1)

    def from_covariance(
        self, G: np.ndarray, tolerance: float = PIVOT_TOLERANCE, floor: float = 0.0
    ) -> np.ndarray:
        """The nearest to `G` (least squares) of parameters around the kernel's starting values."""
        trials = _trials(self)
        K = on_host(MATRICES, self, trials)
        K = np.where(np.isfinite(K), K, 0.0)
        products = np.einsum("...ij,aij->...a", G, K)
        squares = np.maximum(np.einsum("aij,aij->a", K, K), np.finfo(float).tiny)
        variance = np.maximum(products, 0.0) / squares
        # What is left of G's sum of squares beside that of the trial: the largest reduction is the best.
        best = np.argmax(variance * products, axis=-1)
        tau = np.sqrt(np.take_along_axis(variance, best[..., None], axis=-1))
        return self.canonical(np.concatenate([tau, trials[best][..., 1:]], axis=-1), tolerance, floor)

    def on_boundary(self, theta: Float[SameArray, "*m k"]) -> Bool[SameArray, "*m k"]:
        xp = namespace(theta)
        return xp.broadcast_to(theta[..., :1] == 0, theta.shape)

    def elements(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),) if self.homogeneous else tuple((j, j) for j in range(self.q))

    @property
    def natural_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.free_parameters)

    def natural(self, theta: np.ndarray) -> Natural:
        """Parameters of the kernel; without any variance there is nothing that they could be of: NaN."""
        nothing = theta[..., :1] == 0
        free = self._limited(theta[..., 1:])
        value = np.where(nothing, np.nan, self._constrained(free))
        slopes = [own.slope(free[..., a]) for a, (_, own) in enumerate(self.free_parameters)]
        slope = np.stack(slopes, axis=-1) if slopes else free
        own_axes = np.eye(self.num_params)[1:]
        jacobian = np.broadcast_to(own_axes, (*theta.shape[:-1], *own_axes.shape))
        return Natural(value, slope, theta[..., 1:], jacobian, self._constrained)

    def _limited(self, free: SameArray) -> SameArray:
        """Free parameters of the kernel no farther from their starts than their supports allow."""
        if not self.free_parameters:
            return free
        start = self.initial()[1:].astype(free.dtype)
        reach = np.array([own.farthest for _, own in self.free_parameters], free.dtype)
        return namespace(free).clip(free, start - reach, start + reach)

    def _constrained(self, free: np.ndarray) -> np.ndarray:
        parts = [own.natural(free[..., a]) for a, (_, own) in enumerate(self.free_parameters)]
        return np.stack(parts, axis=-1) if parts else free


def _matrices(thetas: Float[Array, "m k"], *, structure: KernelCovariance) -> tuple[Array]:
    return (jax.vmap(structure.matrix)(thetas),)


def _factors(thetas: Float[Array, "m k"], *, structure: KernelCovariance) -> tuple[Array]:
    return (jax.vmap(structure.factor)(thetas),)


def _jacobians(thetas: Float[Array, "m k"], *, structure: KernelCovariance) -> tuple[Array]:
    return (jnp.moveaxis(jax.vmap(jax.jacfwd(structure.factor))(thetas), -1, 1),)


MATRICES, FACTORS, JACOBIANS = Program(_matrices), Program(_factors), Program(_jacobians)
"""K, T and its derivatives at many parameters, (m, k), compiled once per structure."""


def on_host(program: Program, structure: KernelCovariance, theta: np.ndarray) -> np.ndarray:
    """A program at parameters with any leading axes."""
    rows = theta.reshape(-1, theta.shape[-1]).astype(np.float64, copy=False)
    # Padded to sizes that calls with other numbers of models share.
    padded = rows[np.minimum(np.arange(grid_size(len(rows))), len(rows) - 1)]
    with double_precision():
        found = to_host(program(padded, structure=structure))[0][: len(rows)]
    return found.reshape(*theta.shape[:-1], *found.shape[1:]).astype(theta.dtype, copy=False)


@lru_cache(maxsize=128)
def _trials(structure: KernelCovariance) -> np.ndarray:
    """Parameters at which a start is sought: the kernel's own start, and others along each axis."""
    start = structure.initial()
    moves = np.eye(len(start))[1:, None] * np.array(_TRIALS)[:, None]
    return start + np.concatenate([np.zeros((1, len(start))), moves.reshape(-1, len(start))])


def static_positions(kernel: Kernel, positions: Any) -> tuple[Any, ...]:
    """Positions as nested tuples of numbers."""
    try:
        values = np.asarray(positions, dtype=np.float64)
    except (TypeError, ValueError):
        raise DesignError(f"the positions of the kernel {kernel.name!r} must be numbers") from None
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise DesignError(
            f"the positions of the kernel {kernel.name!r} must be finite numbers, (q,) or (q, d); they have "
            f"the shape {values.shape}"
        )
    if len(np.unique(values, axis=0)) < len(values):
        raise DesignError(
            f"two positions of the kernel {kernel.name!r} are the same, so their effects would be one; give "
            "each position once"
        )
    if kernel.integer_positions and (values != np.rint(values)).any():
        raise DesignError(
            f"the kernel {kernel.name!r} takes whole numbers as positions; use jm.kernels.exponential() for "
            "others"
        )
    if values.ndim == 1:
        return tuple(values.tolist())
    return tuple(tuple(row) for row in values.tolist())


def _check_matrix(structure: "KernelCovariance") -> None:
    """Refuse a function that gives no covariance matrix at the starting values."""
    kernel, q = structure.kernel, structure.q
    shape = jax.eval_shape(structure.matrix, jnp.ones(structure.num_params)).shape
    if shape != (q, q):
        raise DesignError(
            f"the function of the kernel {kernel.name!r} gives an array of shape {shape} for {q} positions; "
            f"it must give ({q}, {q})"
        )
    K = on_host(MATRICES, structure, structure.initial())
    problem = None
    if not np.isfinite(K).all():
        problem = "has elements that are not finite"
    elif np.abs(K - K.T).max() > _ROUNDING * np.abs(K).max():
        problem = "is not symmetric"
    elif np.linalg.eigvalsh(K)[0] < -_ROUNDING * np.abs(K).max():
        problem = "is not positive semidefinite"
    elif kernel.unit_variance and np.abs(np.diagonal(K) - 1).max() > _ROUNDING:
        problem = (
            f"has {np.diagonal(K).flat[np.abs(np.diagonal(K) - 1).argmax()]:.6g} on its diagonal, not 1; "
            "declare the kernel with unit_variance=False if variances differ"
        )
    if problem:
        raise DesignError(
            f"the matrix of the kernel {kernel.name!r} at its starting values "
            f"{_starting_values(structure)} {problem}"
        )


def _starting_values(structure: KernelCovariance) -> dict[str, float]:
    values = structure.natural(structure.initial()).value.tolist()
    return {name: round(value, 6) for name, value in zip(structure.natural_names, values, strict=True)}


def kernel(
    function: Function,
    parameters: Mapping[str, Support | Fixed],
    name: str | None = None,
    *,
    unit_variance: bool = True,
    integer_positions: bool = False,
) -> Kernel:
    """A covariance function as a structure for random effects.

    Parameters
    ----------
    function : callable
        ``(params, positions) -> (t, t)`` in ``jax.numpy``; see the module's documentation.
    parameters : mapping from name to support
        :class:`Positive`, :class:`Length`, :class:`Correlation`, :class:`Unit`, :class:`Real` with starting
        values, or :class:`Fixed`.
    name : str, optional
        What tables call it; by default the function's name.
    unit_variance : bool
        Whether the function gives correlations (the default), so that all effects have the variance
        ``tau**2``. Otherwise that multiplies what the function gives.
    integer_positions : bool
        Whether positions must be whole numbers.

    Returns
    -------
    Kernel

    Raises
    ------
    DesignError
        If a parameter has no support, or the function cannot be called.

    Examples
    --------
    >>> from jaxmixed.supports import Positive
    >>> def cosine(params, positions):
    ...     return jnp.cos((positions[:, None] - positions[None, :]) / params["period"])
    >>> kernel(cosine, {"period": Positive(2.0)}).at([0.0, 1.0]).num_params
    2
    """
    if not callable(function):
        raise DesignError(f"the function of a kernel is {function!r}, which cannot be called")
    for key, own in parameters.items():
        if not isinstance(own, Support | Fixed):
            raise DesignError(
                f"the parameter {key!r} of a kernel is {own!r}; give its support and starting value, such as "
                f"jm.kernels.Positive(1.0), or jm.kernels.Fixed(...) if it is known"
            )
    label = name if name is not None else function.__name__ if hasattr(function, "__name__") else "kernel"
    if label in STRUCTURES:
        raise DesignError(f"a kernel cannot be called {label!r}, the name of a structure that there is")
    return Kernel(function, tuple(parameters.items()), label, unit_variance, integer_positions)

r"""One parameter held: where the others are free, and how the likelihood's own parameters follow.

The likelihood has parameters z = (theta, s), :math:`s = \log \sigma`, of factors ``F @ T(theta)`` with
constant frames F. A constraint is a smooth map :math:`z(y; c)` from as many free numbers y, of which some are
idle, and the held parameter's coordinate c:

===================================  =======================================================================
coefficient                          all free: the constraint is on the response (:class:`Regression`)
:math:`\sigma`                       s = log c
sd of an effect, T triangular with   :math:`T_{11} = c\,e^{-s}`
this effect first
correlation of two effects, these    :math:`T_{11} = u^2`, row 2 of T :math:`= w^2 (\sin c, \cos c)`
two first
a single variance of a term          its root, as :math:`T_{11}`
exchangeable effects                 root eigenvalues of G :math:`\propto r (\cos \phi, \sin \phi)`; r or
                                     :math:`\phi` is held
kernel parameter                     its free coordinate
residual parameter                   its free coordinate; of a standard deviation, the sum of those that its
                                     logarithm consists of
===================================  =======================================================================

A standard deviation of zero and a correlation of +-1 are ordinary points of these maps. Squares keep the sign
of a correlation: with a negative :math:`T_{11}` it would be another one.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from jaxmixed.covariance import Covariance, Exchangeable, Identity, Independent, Unstructured
from jaxmixed.errors import DesignError
from jaxmixed.kernels import KernelCovariance
from jaxmixed.toeplitz import ToeplitzCovariance

_STEP = 1e-4  # of differences for curvatures that steer the search and decide nothing

Curve = tuple[int, int, int, float]
"""Second derivative of z[a] along y[i] and y[j]."""


class Placed(NamedTuple):
    """A point of the constrained set.

    Attributes
    ----------
    z : (k + 1,) array
    slope : (k + 1, k + 1) array
        Derivatives of z along y.
    curves : list of (a, i, j, value)
        Second derivatives that are not zero.
    along : (k + 1,) array
        Derivative of z along the held coordinate.
    idle : (k + 1,) bool array
        Components of y that nothing depends on.
    """

    z: np.ndarray
    slope: np.ndarray
    curves: list[Curve]
    along: np.ndarray
    idle: np.ndarray


class Map(Protocol):
    """How (theta, log sigma) follow from free numbers and the held coordinate."""

    @abstractmethod
    def place(self, c: float, y: np.ndarray) -> Placed:
        """The likelihood's parameters and their derivatives."""
        ...

    @abstractmethod
    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Held coordinate and free numbers of a point, the inverse of `place`."""
        ...

    @abstractmethod
    def at_end(self, y: np.ndarray) -> list[np.ndarray]:
        """Free numbers to start from at an end of the coordinate's range, from those of an ordinary point.

        The first is the point's own where nothing is idle at the end that is not idle elsewhere.
        """
        ...


def _whole(y: np.ndarray) -> Placed:
    size = len(y)
    return Placed(y.copy(), np.eye(size), [], np.zeros(size), np.zeros(size, dtype=bool))


class _Plain:
    """The numbers that are free at an end are those elsewhere."""

    __slots__ = ()

    def at_end(self, y: np.ndarray) -> list[np.ndarray]:
        return [y]


@dataclass(frozen=True, slots=True)
class Everything(_Plain):
    """Nothing of (theta, log sigma) is held."""

    def place(self, c: float, y: np.ndarray) -> Placed:
        del c
        return _whole(y)

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        return 0.0, z.copy()


@dataclass(frozen=True, slots=True)
class Holding(_Plain):
    """One component is the coordinate itself: log sigma, or a kernel's free parameter.

    Attributes
    ----------
    slot : int
    """

    slot: int

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed = _whole(y)
        placed.z[self.slot], placed.slope[self.slot, self.slot] = c, 0.0
        placed.along[self.slot], placed.idle[self.slot] = 1.0, True
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        return float(z[self.slot]), z.copy()


@dataclass(frozen=True, slots=True)
class Combination(_Plain):
    """The coordinate is a sum of components, as the logarithm of a residual standard deviation is.

    Attributes
    ----------
    slot : int
        The one that follows from the others.
    others : tuple of int
    """

    slot: int
    others: tuple[int, ...]

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed, others = _whole(y), list(self.others)
        placed.z[self.slot] = c - y[others].sum()
        placed.slope[self.slot, self.slot], placed.slope[self.slot, others] = 0.0, -1.0
        placed.along[self.slot], placed.idle[self.slot] = 1.0, True
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        return float(z[self.slot] + z[list(self.others)].sum()), z.copy()


@dataclass(frozen=True, slots=True)
class Deviation:
    """A standard deviation c in units of the response: ``z[slot] = c exp(-s)``.

    Attributes
    ----------
    slot : int
    q : int
        Effects of a triangular factor of which this is the first diagonal element. Where c is zero, the rest
        of its first column only repeats the columns after it, and is idle.
    """

    slot: int
    q: int = 1

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed, last = _whole(y), len(y) - 1
        size = np.exp(-y[last])
        placed.z[self.slot], placed.slope[self.slot, self.slot] = c * size, 0.0
        placed.slope[self.slot, last] = -c * size
        placed.curves.append((self.slot, last, last, c * size))
        placed.along[self.slot], placed.idle[self.slot] = size, True
        if c == 0:
            column = list(range(self.slot + 1, self.slot + self.q))
            placed.z[column], placed.slope[column, column], placed.idle[column] = 0.0, 0.0, True
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        return float(abs(z[self.slot]) * np.exp(z[-1])), z.copy()

    def at_end(self, y: np.ndarray) -> list[np.ndarray]:
        """The other effects keep their covariance."""
        end, size = y.copy(), self.q * (self.q + 1) // 2
        if self.q > 1:
            T = Unstructured(self.q).factor(y[self.slot : self.slot + size])
            end[self.slot + 1 : self.slot + self.q] = 0.0
            end[self.slot + self.q : self.slot + size] = Unstructured(self.q - 1).from_covariance(
                T[1:] @ T[1:].T
            )
        return [end]


@dataclass(frozen=True, slots=True)
class Angle(_Plain):
    """The correlation ``sin c`` of the first two effects of a triangular factor.

    Attributes
    ----------
    first, below, own : int
        Positions of T[0, 0], T[1, 0] and T[1, 1].
    """

    first: int
    below: int
    own: int

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed = _whole(y)
        z, slope, (a, b, d) = placed.z, placed.slope, (self.first, self.below, self.own)
        root, size, sine, cosine = y[a], y[d], np.sin(c), np.cos(c)
        z[a], slope[a, a] = root**2, 2 * root
        z[b], z[d] = size**2 * sine, size**2 * cosine
        slope[b, b], slope[b, d], slope[d, d] = 0.0, 2 * size * sine, 2 * size * cosine
        placed.curves.extend([(a, a, a, 2.0), (b, d, d, 2 * sine), (d, d, d, 2 * cosine)])
        placed.along[b], placed.along[d], placed.idle[b] = size**2 * cosine, -(size**2) * sine, True
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        y = z.copy()
        c = float(np.arctan2(z[self.below] * np.sign(z[self.first] or 1.0), abs(z[self.own])))
        y[self.first] = np.sqrt(abs(z[self.first]))
        y[self.own], y[self.below] = np.sqrt(np.hypot(z[self.below], z[self.own])), 0.0
        return c, y

    def at_end(self, y: np.ndarray) -> list[np.ndarray]:
        """Also without variance of one of the effects: then their correlation may be anything."""
        starts = [y]
        for slot in (self.first, self.own):
            starts.append(y.copy())
            starts[-1][slot] = 0.0
        return starts


@dataclass(frozen=True, slots=True)
class CommonDeviation(_Plain):
    """The standard deviation c of q exchangeable effects, in units of the response.

    Attributes
    ----------
    slot : int
        Position of the root eigenvalue of their mean; that of their contrasts follows.
    q : int
    """

    slot: int
    q: int

    @property
    def scales(self) -> np.ndarray:
        """Root eigenvalues when the variance of all effects is due to one of them."""
        return np.array([np.sqrt(self.q), np.sqrt(self.q / (self.q - 1))])

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed, last, a = _whole(y), len(y) - 1, self.slot
        at = np.array([np.cos(y[a]), np.sin(y[a])]) * self.scales
        turned = np.array([-np.sin(y[a]), np.cos(y[a])]) * self.scales
        size = np.exp(-y[last])
        for slot, value, tangent in zip((a, a + 1), at, turned, strict=True):
            placed.z[slot], placed.slope[slot] = c * size * value, 0.0
            placed.slope[slot, a], placed.slope[slot, last] = c * size * tangent, -c * size * value
            placed.along[slot] = size * value
            placed.curves.extend(
                [
                    (slot, a, a, -c * size * value),
                    (slot, a, last, -c * size * tangent),
                    (slot, last, last, c * size * value),
                ]
            )
        placed.idle[a + 1] = True
        placed.idle[a] = c == 0
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        y, pair = z.copy(), z[self.slot : self.slot + 2] / self.scales
        # Without any variance neither share is distinguished; one of zero would be a stationary point.
        y[self.slot] = np.arctan2(abs(pair[1]), abs(pair[0])) if pair.any() else np.pi / 4
        y[self.slot + 1] = 0.0
        return float(np.hypot(*pair) * np.exp(z[-1])), y


@dataclass(frozen=True, slots=True)
class CommonAngle(_Plain):
    """The correlation of exchangeable effects, by the angle of their two root eigenvalues.

    The coordinate is pi/2 for effects that are all the same, and 0 for those that add up to zero.

    Attributes
    ----------
    slot : int
        Position of the first.
    """

    slot: int

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed, a = _whole(y), self.slot
        placed.z[a], placed.z[a + 1] = y[a] * np.sin(c), y[a] * np.cos(c)
        placed.slope[a, a], placed.slope[a + 1, a], placed.slope[a + 1, a + 1] = np.sin(c), np.cos(c), 0.0
        placed.along[a], placed.along[a + 1] = y[a] * np.cos(c), -y[a] * np.sin(c)
        placed.idle[a + 1] = True
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        y, (mean, contrast) = z.copy(), np.abs(z[self.slot : self.slot + 2])
        y[self.slot], y[self.slot + 1] = np.hypot(mean, contrast), 0.0
        return float(np.arctan2(mean, contrast)), y


@dataclass(frozen=True, slots=True)
class KernelDeviation(_Plain):
    """The standard deviation c of one effect of a kernel whose variances differ.

    Attributes
    ----------
    slot : int
        Position of tau; the kernel's free parameters follow.
    structure : KernelCovariance
    effect : int
    """

    slot: int
    structure: KernelCovariance
    effect: int

    def _log_size(self, phi: np.ndarray) -> tuple[float, np.ndarray]:
        """Log standard deviation of the effect at tau = 1, and its derivatives along phi."""
        theta = np.concatenate([[1.0], phi])[None]
        row = self.structure.factor(theta)[0, self.effect]
        slopes = self.structure.jacobian(theta)[0, 1:, self.effect]
        square = row @ row
        return 0.5 * float(np.log(square)), slopes @ row / square

    def place(self, c: float, y: np.ndarray) -> Placed:
        placed, last, a = _whole(y), len(y) - 1, self.slot
        own = slice(a + 1, a + self.structure.num_params)
        log_size, slope = self._log_size(y[own])
        tau = c * np.exp(-y[last] - log_size)
        toward = np.zeros(len(y))
        toward[own], toward[last] = -slope, -1.0
        placed.z[a], placed.slope[a] = tau, tau * toward
        placed.along[a], placed.idle[a] = np.exp(-y[last] - log_size), True
        bend = tau * np.outer(toward, toward)
        for j in range(own.start, own.stop):
            step = np.zeros(own.stop - own.start)
            step[j - own.start] = _STEP
            up, down = self._log_size(y[own] + step)[1], self._log_size(y[own] - step)[1]
            bend[j, own] -= tau * (up - down) / (2 * _STEP)
        bend = (bend + bend.T) / 2
        used = [last, *range(own.start, own.stop)]
        placed.curves.extend((a, i, j, bend[i, j]) for i in used for j in used if i <= j)
        return placed

    def lift(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        own = slice(self.slot + 1, self.slot + self.structure.num_params)
        return float(abs(z[self.slot]) * np.exp(z[-1] + self._log_size(z[own])[0])), z.copy()


@dataclass(frozen=True, slots=True)
class Held:
    """A variance parameter that is held: its map, the frames that it needs and its own scale.

    Attributes
    ----------
    map : Map
    frame : (q, q) array or None
        Left factor of its term's T; None for the identity.
    into : (q, q) array or None
        What turns effects of the standardised columns into those of the map's T.
    value : callable
        From the coordinate to the parameter; increasing.
    low, high : float
        Ends of the coordinate's range; infinite ones are never reached.
    ends : (float, float)
        The parameter there.
    known_ends : bool
        Whether the criterion at finite ends can be had from `Map.at_end`.
    """

    map: Map
    frame: np.ndarray | None
    into: np.ndarray | None
    value: Callable[[float], float]
    low: float = -np.inf
    high: float = np.inf
    ends: tuple[float, float] = (-np.inf, np.inf)
    known_ends: bool = True


def held_element(
    covariance: Covariance, frame: np.ndarray, start: int, element: tuple[int, int], scale: float
) -> Held:
    """The constraint that holds a standard deviation or a correlation of a term.

    Parameters
    ----------
    covariance : Covariance
        Structure of the term.
    frame : (q, q) array
        Effects of the data's columns from those of the standardised ones.
    start : int
        Position of its parameters in theta.
    element : (i, j)
        Of its covariance matrix, ``i >= j``.
    scale : float
        Unit of the response.

    Returns
    -------
    Held

    Raises
    ------
    DesignError
        For a structure that is not known here.
    """
    i, j = element
    structure: object = covariance
    if isinstance(structure, Unstructured):
        return _of_triangle(structure, frame, start, element, scale)
    if isinstance(structure, Exchangeable):
        return _of_exchangeable(structure.q, float(frame[0, 0]) * scale, start, i == j)
    if isinstance(structure, Independent | Identity | KernelCovariance):
        unit = abs(float(frame[j, j])) * scale
        slot = start + (j if isinstance(structure, Independent) else 0)
        own: Map = Deviation(slot)
        if isinstance(structure, KernelCovariance) and not structure.homogeneous:
            own = KernelDeviation(slot, structure, j)
        return Held(own, None, None, lambda c: c * unit, low=0.0, ends=(0.0, np.inf))
    raise DesignError(
        f"profile likelihoods of the structure {covariance.name!r} are not available; leave its standard "
        "deviations and correlations out with which=, or use method='boot'"
    )


def _of_triangle(
    covariance: Unstructured, frame: np.ndarray, start: int, element: tuple[int, int], scale: float
) -> Held:
    """The effects concerned come first, in units in which all effects contribute alike to the response."""
    i, j = element
    q = covariance.q
    order = [j, i] if i != j else [j]
    order += [effect for effect in range(q) if effect not in order]
    basis = np.linalg.inv(frame)
    sizes = 1 / np.sqrt((basis**2).sum(axis=0))[order]
    into = frame[order] / sizes[:, None]
    back = basis @ np.eye(q)[:, order] * sizes
    if i != j:
        ends = (-np.pi / 2, np.pi / 2)
        return Held(Angle(start, start + 1, start + q), back, into, _sine, *ends, ends=(-1.0, 1.0))
    unit = float(sizes[0]) * scale
    return Held(Deviation(start, q), back, into, lambda c: c * unit, low=0.0, ends=(0.0, np.inf))


def _sine(c: float) -> float:
    return float(np.sin(c)) if abs(c) < np.pi / 2 else float(np.sign(c))


def _of_exchangeable(q: int, unit: float, start: int, deviation: bool) -> Held:
    if deviation:
        own = CommonDeviation(start, q)
        return Held(own, None, None, lambda c: c * abs(unit), low=0.0, ends=(0.0, np.inf))

    def correlation(c: float) -> float:
        mean, contrasts = np.sin(c) ** 2, np.cos(c) ** 2
        return float((mean - contrasts) / (mean + (q - 1) * contrasts))

    return Held(CommonAngle(start), None, None, correlation, 0.0, np.pi / 2, ends=(-1 / (q - 1), 1.0))


def held_natural(covariance: Covariance, start: int, number: int) -> Held:
    """The constraint that holds a structure's own parameter, such as a kernel's length.

    Parameters
    ----------
    covariance : Covariance
    start : int
        Position of its parameters in theta.
    number : int
        Among its `natural_names`.

    Returns
    -------
    Held

    Raises
    ------
    DesignError
        For a parameter that depends on several free ones.
    """
    theta = covariance.initial()
    natural = covariance.natural(theta)
    (positions,) = np.nonzero(natural.jacobian[number])
    if isinstance(covariance, ToeplitzCovariance) and number > 0:
        raise DesignError(
            f"profile likelihoods of the correlations of the structure {covariance.name!r} beyond the first "
            f"({', '.join(covariance.natural_names[1:])}) are not available; name other parameters with "
            "which=, or use method='boot'"
        )
    position = int(positions[0])

    def value(c: float) -> float:
        free = natural.scaled.copy()
        free[number] = c
        return float(natural.inverse(free)[number])

    reach = np.inf
    if isinstance(covariance, KernelCovariance):
        reach = covariance.free_parameters[number][1].farthest
    low, high = theta[position] - reach, theta[position] + reach
    ends = _limit(value, low, -1), _limit(value, high, 1)
    return Held(Holding(start + position), None, None, value, low, high, ends, known_ends=False)


def _limit(value: Callable[[float], float], c: float, side: int) -> float:
    """What the parameter tends to at the end of its range: beyond it the likelihood is flat."""
    with np.errstate(all="ignore"):
        return value(1e4 * side) if np.isfinite(c) else side * np.inf

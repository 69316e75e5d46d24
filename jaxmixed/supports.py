"""Where parameters lie: smooth maps from the whole real line, which is where optimisers work.

Intervals are symmetric on the free scale. Where the likelihood rises for ever, as a length goes to infinity,
a parameter stops far from its start, and the likelihood is flat beyond.
"""

from dataclasses import dataclass

import numpy as np

from jaxmixed._types import SameArray
from jaxmixed.covariance import namespace
from jaxmixed.errors import DesignError

FARTHEST = 9.0
"""How far from its start a free parameter goes: a length by a factor of 8000, as good as infinite."""


@dataclass(frozen=True, slots=True)
class Support:
    """Where a parameter of a kernel lies: a smooth map from the whole real line; and where a search starts.

    Parameters
    ----------
    start : float
        Starting value, on the parameter's own scale.
    """

    start: float
    low, high = -np.inf, np.inf
    farthest = FARTHEST

    def __post_init__(self) -> None:
        if not self.low < self.start < self.high:
            raise DesignError(
                f"the starting value {self.start!r} of a kernel's parameter is not between {self.low:g} and "
                f"{self.high:g}"
            )

    def start_at(self, positions: np.ndarray) -> float:
        """Starting value for positions, (t,) or (t, d)."""
        del positions
        return float(self.start)

    def natural(self, free: SameArray) -> SameArray:
        """The parameter, from a free real number."""
        raise NotImplementedError

    def slope(self, free: np.ndarray) -> np.ndarray:
        """Derivative of `natural`."""
        raise NotImplementedError

    def free(self, natural: float) -> float:
        """The inverse of `natural`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Positive(Support):
    """A positive parameter, free on the log scale; `start` is its starting value."""

    low = 0.0

    def natural(self, free: SameArray) -> SameArray:
        return namespace(free).exp(free)

    def slope(self, free: np.ndarray) -> np.ndarray:
        return self.natural(free)

    def free(self, natural: float) -> float:
        return float(np.log(natural))


@dataclass(frozen=True, slots=True)
class Length(Positive):
    """A positive parameter in the unit of the positions, free on the log scale.

    Parameters
    ----------
    start : float, optional
        Starting value; by default a quarter of the range of the positions.
    """

    start: float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.start is not None:
            super(Length, self).__post_init__()  # slots: the class that super() would find is another

    def start_at(self, positions: np.ndarray) -> float:
        if self.start is not None:
            return float(self.start)
        extent = float(np.sqrt(np.sum(np.ptp(positions, axis=0) ** 2)))
        return extent / 4 if extent > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Correlation(Support):
    """A parameter between -1 and 1, free on the scale of its inverse hyperbolic tangent."""

    start: float = 0.3
    low, high = -1.0, 1.0

    def natural(self, free: SameArray) -> SameArray:
        return namespace(free).tanh(free)

    def slope(self, free: np.ndarray) -> np.ndarray:
        return np.asarray(1 / np.cosh(free) ** 2)

    def free(self, natural: float) -> float:
        return float(np.arctanh(natural))


@dataclass(frozen=True, slots=True)
class Unit(Support):
    """A parameter between 0 and 1, free on the logit scale."""

    start: float = 0.5
    low, high = 0.0, 1.0

    def natural(self, free: SameArray) -> SameArray:
        return (1 + namespace(free).tanh(free / 2)) / 2

    def slope(self, free: np.ndarray) -> np.ndarray:
        return np.asarray(0.25 / np.cosh(free / 2) ** 2)

    def free(self, natural: float) -> float:
        return float(np.log(natural) - np.log1p(-natural))


@dataclass(frozen=True, slots=True)
class Real(Support):
    """A parameter anywhere on the real line."""

    start: float = 0.0
    farthest = np.inf

    def natural(self, free: SameArray) -> SameArray:
        return free

    def slope(self, free: np.ndarray) -> np.ndarray:
        return np.ones_like(free)

    def free(self, natural: float) -> float:
        return float(natural)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A known parameter, which is not estimated.

    Parameters
    ----------
    value : float
    """

    value: float

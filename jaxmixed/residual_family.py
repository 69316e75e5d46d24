"""What a family of residual correlations is (:mod:`jaxmixed.residual_families`), and what families share."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.autocorrelations import limited

Scale = Literal["atanh", "log", "logit", "identity"]
"""Scale on which the interval of a natural parameter is symmetric."""

TimeKind = Literal["unused", "label", "whole", "real"]
"""What a family takes as times: nothing, numbers of labels ``0 .. T-1``, whole numbers, or any."""

FARTHEST = 12.0
"""How far from zero a free parameter goes: a correlation of one but for 1e-10."""

LOGIT_FARTHEST = 20.0
"""How far the logit of a share goes: 2e-9 from zero or one."""

MODERATE = 0.3
"""A correlation to start from for want of a better one."""


@runtime_checkable
class Family(Protocol):
    """What the likelihood and the tables ask of a family of correlations.

    The first k natural parameters determine the free ones; those that follow are functions of them.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the family in tables, "AR(1)"."""
        ...

    @property
    @abstractmethod
    def num_params(self) -> int:
        """Number of free parameters, k."""
        ...

    @property
    @abstractmethod
    def scales(self) -> tuple[Scale, ...]:
        """Scale of the interval of each natural parameter."""
        ...

    @property
    @abstractmethod
    def time_kind(self) -> TimeKind:
        """What the family takes as times."""
        ...

    @property
    def is_markov(self) -> bool:
        """Whether the correlation of two rows is the product of those of the successive rows between them."""
        return False

    @property
    def farthest(self) -> tuple[float, ...]:
        """How far from zero each free parameter goes, (k,)."""
        return (FARTHEST,) * self.num_params

    @abstractmethod
    def table(self, free: Float[Array, " k"]) -> Float[Array, "..."]:
        """What correlations are looked up in, whatever the times; traced, smooth in `free`."""
        ...

    @abstractmethod
    def look_up(
        self,
        tables: Float[Array, "S ..."],
        stratum: Int[AnyArray, ""],
        times: Float[AnyArray, " t"],
        present: Bool[AnyArray, " t"],
    ) -> Float[Array, "t t"]:
        """Correlations between times, with ones on the diagonal; traced, smooth in the tables.

        Parameters
        ----------
        tables : (S, ...) array
            Of every stratum.
        stratum : int
            Of the group.
        times : (t,) array
            Different from each other. Rows that only pad a group have any number (zero), and what is
            returned for them is not used, but is finite.
        present : (t,) bool array
            Rows that do not pad.
        """
        ...

    def correlation(self, free: Float[Array, " k"], times: Float[AnyArray, " t"]) -> Float[Array, "t t"]:
        """Correlations between times of one group (traced)."""
        everyone = jnp.ones(len(times), dtype=bool)
        return self.look_up(self.table(free)[None], jnp.zeros((), jnp.int32), times, everyone)

    @abstractmethod
    def natural(self, free: Float[Array, " k"]) -> Float[Array, " a"]:
        """Natural parameters; traced, smooth."""
        ...

    @abstractmethod
    def names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names of the natural parameters; `labels` are the texts of labelled times."""
        ...

    @abstractmethod
    def initial(self) -> np.ndarray:
        """Free parameters (k,) to start from for want of better ones."""
        ...

    @abstractmethod
    def start(self, times: np.ndarray, products: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Free parameters (k,) near the correlations that residuals show.

        Parameters
        ----------
        times : (d,) array
            Of a family of labels the numbers of the labels, 0 to T - 1. Of any other family distinct lags,
            larger than zero (all in one, where times are unused).
        products : (d, d) or (d,) array
            Mean products of standardised residuals of one group: at two labels, or so far apart. NaN where
            there are none.
        counts : (d, d) or (d,) array
            How many products each is the mean of.

        Returns
        -------
        (k,) array
            Of finite numbers, whatever the products are.
        """
        ...


def apart(times: Float[AnyArray, " t"]) -> Float[Array, "t t"]:
    """Distances between times."""
    values = jnp.asarray(times)
    return jnp.abs(values[:, None] - values[None, :])


def observed(products: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products limited to correlations, those of few rows more so, and their counts."""
    there = np.isfinite(products) & (counts > 0)
    weights = np.where(there, counts, 0.0)
    most = weights / (weights + 1)
    return limited(np.clip(np.where(there, products, 0.0), -most, most)), weights


def mean_correlation(products: np.ndarray, counts: np.ndarray) -> float:
    """Weighted mean of correlations; a moderate one if there are none."""
    values, weights = observed(products, counts)
    return float(np.average(values, weights=weights)) if weights.sum() > 0 else MODERATE


def on_scale(scale: Scale, count: int) -> tuple[Scale, ...]:
    """One scale for several parameters."""
    return (scale,) * count


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """Names of parameters with a number each, from 1."""
    return tuple(f"{prefix}{k}" for k in range(1, count + 1))

r"""Covariance of the residuals of one group: correlations times standard deviations, by stratum.

Relative to sigma squared, of rows with times t, levels v, covariate values z in stratum s,

.. math:: R_{ij} = d_i d_j\, C_s(t_i, t_j), \qquad d_i = \tau_s\, \lambda_{s, v_i}\, g(z_i; \delta_s),

with C a family of correlations (:mod:`jaxmixed.residual_families`), :math:`\lambda` one ratio of standard
deviations for each level of a column (nlme's varIdent), g a variance function (varPower, varExp) and
:math:`\tau` the ratios between strata. The first level of the first stratum has ratio one: sigma is its
standard deviation.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.linalg import inverse_and_logdet
from jaxmixed.residual_families import FARTHEST, Family

LARGEST_STEP = 2.0
"""How far an optimiser's step moves a free parameter."""

NEAR_END = 5.0
"""A free parameter this far from zero (a correlation of 0.9999) is compared with the end of its range."""

FEW_ROWS = 16
"""Matrices of groups with no more rows are inverted side by side."""

VarianceFunction = Literal["none", "power", "exp"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Occasions:
    """When, and under which conditions, the rows of groups were observed; u groups, or patterns, last.

    Attributes
    ----------
    times : (t, u) array
        Times, or numbers of labels; zero where a group has no such row.
    levels : (t, u) int array
        Level of the column that standard deviations differ by.
    covariate : (t, u) array
        Of the variance function; one if there is none.
    present : (t, u) bool array
        Whether the group has such a row; padding has none.
    stratum : (u,) int array
    """

    times: Float[AnyArray, "t u"]
    levels: Int[AnyArray, "t u"]
    covariate: Float[AnyArray, "t u"]
    present: Bool[AnyArray, "t u"]
    stratum: Int[AnyArray, " u"]


class Parts(NamedTuple):
    """Free parameters by what they are of.

    Attributes
    ----------
    family : (S, k) array
    log_sd : (S, V) array
        Logarithms of the standard deviations relative to sigma, of each stratum and level.
    exponent : (S,) array
        Of the variance function; zero if there is none.
    """

    family: Float[AnyArray, "S k"]
    log_sd: Float[AnyArray, "S V"]
    exponent: Float[AnyArray, " S"]


@dataclass(frozen=True, slots=True)
class ResidualCovariance:
    """Residual structure bound to data, without these: static and hashable.

    Attributes
    ----------
    family : Family
    levels : int
        Number V of levels that standard deviations differ by.
    strata : int
        Number S of strata, each with parameters of its own.
    function : str
        Variance function of a covariate.
    """

    family: Family
    levels: int = 1
    strata: int = 1
    function: VarianceFunction = "none"

    @property
    def _per_stratum(self) -> int:
        return self.family.num_params + self.levels - 1 + (self.function != "none")

    @property
    def num_params(self) -> int:
        """Number of free parameters: of each stratum, then the ratios of the strata's standard deviations."""
        return self.strata * self._per_stratum + self.strata - 1

    def parts(self, free: Float[Array, " k"]) -> Parts:
        """Free parameters by what they are of (traced).

        Beyond the farthest that a parameter goes the likelihood does not change: a search for an optimum at
        the end of a range settles there.
        """
        k, S = self.family.num_params, self.strata
        free = jnp.clip(free, -self.farthest, self.farthest)
        block = free[: S * self._per_stratum].reshape(S, self._per_stratum)
        between = jnp.concatenate([jnp.zeros(1, free.dtype), free[S * self._per_stratum :]])
        ratios = jnp.concatenate([jnp.zeros((S, 1), free.dtype), block[:, k : k + self.levels - 1]], axis=1)
        exponent = jnp.zeros(S, free.dtype) if self.function == "none" else block[:, -1]
        return Parts(block[:, :k], ratios + between[:, None], exponent)

    def matrices(self, free: Float[Array, " k"], at: Occasions) -> Float[Array, "t t u"]:
        """Relative covariances R; the identity for rows that are not there (traced)."""
        parts = self.parts(free)
        tables = jax.vmap(self.family.table)(jnp.asarray(parts.family))

        def one(
            times: AnyArray, levels: AnyArray, covariate: AnyArray, present: AnyArray, stratum: AnyArray
        ) -> Array:
            C = self.family.look_up(tables, stratum, times.astype(free.dtype), present)
            sd = jnp.exp(self._log_sd(parts, levels, covariate, stratum))
            R = sd[:, None] * C * sd[None, :]
            both = present[:, None] & present[None, :]
            return jnp.where(both, R, jnp.eye(len(times), dtype=free.dtype))

        axes = (1, 1, 1, 1, 0)
        return jax.vmap(one, in_axes=axes, out_axes=-1)(
            at.times, at.levels, at.covariate, at.present, at.stratum
        )

    def log_sds(
        self,
        free: Float[Array, " k"],
        levels: Int[AnyArray, " n"],
        covariate: Float[AnyArray, " n"],
        stratum: Int[AnyArray, " n"],
    ) -> Float[Array, " n"]:
        """Logarithms of the standard deviations of rows relative to sigma (traced)."""
        return self._log_sd(self.parts(free), levels, covariate, stratum)

    def steps(
        self, free: Float[Array, " k"], times: Float[AnyArray, "2 n"], stratum: Int[AnyArray, " n"]
    ) -> Float[Array, " n"]:
        """Correlations of n pairs of rows at two times of a group (traced)."""
        tables = jax.vmap(self.family.table)(jnp.asarray(self.parts(free).family))
        both = jnp.ones(2, dtype=bool)

        def one(pair: AnyArray, stratum: AnyArray) -> Array:
            return self.family.look_up(tables, stratum, pair.astype(free.dtype), both)[0, 1]

        return jax.vmap(one, in_axes=(1, 0))(times, stratum)

    def _log_sd(self, parts: Parts, levels: AnyArray, covariate: AnyArray, stratum: AnyArray) -> Array:
        of_function = self._log_function(parts.exponent[stratum], covariate)
        return jnp.asarray(parts.log_sd)[stratum, levels] + of_function

    def _log_function(self, exponent: AnyArray, covariate: AnyArray) -> Array:
        """Logarithm of the variance function's standard deviations."""
        if self.function == "power":
            return jnp.asarray(exponent) * jnp.log(jnp.abs(jnp.asarray(covariate)))
        if self.function == "exp":
            return jnp.asarray(exponent) * jnp.asarray(covariate)
        return jnp.zeros_like(covariate)

    def precisions(
        self, free: Float[Array, " k"], at: Occasions
    ) -> tuple[Float[Array, "t t u"], Float[Array, " u"]]:
        """Inverses of R, zero for rows that are not there, and log-determinants (traced)."""
        R = self.matrices(free, at)
        if len(R) > FEW_ROWS:  # matrix by matrix, in products that large matrices are worth
            inverse, logdet = jax.vmap(inverse_and_logdet, in_axes=-1, out_axes=(-1, 0))(R)
        else:
            inverse, logdet = inverse_and_logdet(R)
        both = at.present[:, None] & at.present[None, :]
        return jnp.where(both, inverse, 0.0), logdet

    # What the optimiser asks, as of a term's covariance

    def even(self) -> np.ndarray:
        """No parameter's sign is without meaning."""
        return np.zeros(self.num_params, dtype=bool)

    def retract(self, theta: Float[Array, " k"], step: Float[Array, " k"]) -> Float[Array, " k"]:
        """The step, but not far: the likelihood is no parabola."""
        farthest = self.farthest
        # What may go anywhere has no scale of its own that a step could be long on.
        longest = np.where(np.isinf(farthest), np.inf, LARGEST_STEP)
        return jnp.clip(theta + jnp.clip(step, -longest, longest), -farthest - 1, farthest + 1)

    @property
    def farthest(self) -> np.ndarray:
        """How far from zero each parameter goes, (k,)."""
        block = np.full(self._per_stratum, FARTHEST)
        block[: self.family.num_params] = self.family.farthest
        return np.concatenate([np.tile(block, self.strata), np.full(self.strata - 1, FARTHEST)])

    def initial(self) -> np.ndarray:
        """Starting values (k,) for want of better ones."""
        of_family = self.family.initial()
        block = np.concatenate([of_family, np.zeros(self._per_stratum - len(of_family))])
        return np.concatenate([np.tile(block, self.strata), np.zeros(self.strata - 1)])

    def further_starts(self, theta: np.ndarray) -> np.ndarray:
        """None."""
        return theta[None][:0]

    def canonical(self, theta: np.ndarray, tolerance: float = 0.0, floor: float = 0.0) -> np.ndarray:
        """The parameters themselves; with a floor, those that go to the end of their range at that end.

        A likelihood that is stationary at the end, as of moving averages, slopes ever less on the way there.
        """
        del tolerance
        far = np.isfinite(self.farthest) & (np.abs(theta) >= NEAR_END)
        return np.where(far & (floor > 0), np.sign(theta) * (self.farthest + 1), theta)

    def on_boundary(self, theta: np.ndarray) -> np.ndarray:
        """Mask of the parameters at the end of their range."""
        return np.asarray(np.abs(theta) >= self.farthest)

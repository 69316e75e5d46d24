r"""Sufficient statistics of rows whose residuals are correlated within groups.

With R block-diagonal over groups of rows, everything that the likelihood needs is a cross-product in the
metric of :math:`R^{-1}`, and these are the statistics of an ordinary model with independent residuals
(:meth:`whitened`). Two forms hold the data:

:class:`PatternMoments`
    Per *pattern* of times u the cross-moments :math:`M_u[t, s] = \sum_i x_{it} x_{is}'` of the rows x of [X
    y], so that :math:`[X\,y]'R^{-1}[X\,y] = \sum_u \sum_{ts} R_u^{-1}[t, s]\, M_u[t, s]`: the cost does not
    depend on the number of groups. Random effects may vary between the same groups if their columns are those
    of the pattern.

:class:`CorrelatedRows`
    The rows themselves, in batches of groups of similar sizes. For any nested random effects in whose groups
    the correlated rows lie.

:class:`SuccessiveRows`
    The same for families in which a row depends on the earlier ones through the last of them (AR(1),
    exponential, ante-dependence): each is taken less its regression on that one, and no matrix of a group is
    formed, so that long series cost no more than short ones.

Rows are premultiplied by the square roots of their precision weights in both, and standardised as elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.linalg import matmul, transpose
from jaxmixed.residual_covariance import FEW_ROWS, Occasions, ResidualCovariance
from jaxmixed.residual_root import RootRows, no_sums, put_sums, with_rows
from jaxmixed.statistics import Level, SufficientStatistics

Precisions = Callable[[Occasions], tuple[Float[Array, "t t u"], Float[Array, " u"]]]
"""Inverses of the relative covariances of the rows of patterns, and their log-determinants."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class PatternMoments:
    """Cross-moments of the rows of every pattern.

    Attributes
    ----------
    covariance : ResidualCovariance
        Static.
    at : Occasions
    count : (u,) array
        Number of groups of each pattern; 0 for padding.
    moments : (t, t, u, p + 1, p + 1) array
        Sums over the groups of a pattern of the outer products of their rows of [X y].
    Z : (t, q, u) array
        Random-effects columns of every group of a pattern; q = 0 without random effects.
    """

    covariance: ResidualCovariance = field(metadata={"static": True})
    at: Occasions
    count: Float[AnyArray, " u"]
    moments: Float[AnyArray, "t t u r r"]
    Z: Float[AnyArray, "t q u"]

    def whitened(self, free: Float[Array, " k"], stats: SufficientStatistics) -> SufficientStatistics:
        """Statistics of the model with independent residuals at free residual parameters."""
        return self.whitened_by(partial(self.covariance.precisions, free), stats)

    def whitened_by(self, precisions: Precisions, stats: SufficientStatistics) -> SufficientStatistics:
        """The same with any precisions of the rows of each pattern."""
        P, logdet = precisions(self.at)
        found = replace(
            stats,
            residual=None,
            total=jnp.tensordot(P, self.moments, axes=3),
            sum_log_weights=stats.sum_log_weights - jnp.sum(self.count * logdet),
        )
        if not self.Z.shape[1]:
            return found
        PZ = matmul(P, self.Z)
        half = jnp.einsum("tau,tsuij->asuij", PZ, self.moments)
        level = Level(
            root=matmul(transpose(self.Z), PZ),
            cross=None,
            gram=jnp.einsum("sbu,asuij->abuij", PZ, half),
            count=self.count,
            parents=(),
            form="moments",
        )
        return replace(found, levels=(level,))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class RowBatch:
    """Groups of similar sizes.

    Attributes
    ----------
    at : Occasions
        Of their patterns.
    count : (u,) array
        Number of groups of each pattern.
    pattern : (g,) int array
        Pattern of each group.
    columns : (t, c, g) array
        Rows of every group: random-effects columns of all levels of the chain, X, y; zero for padding.
    entries : tuple of (g,) int arrays
        Entry of every level of the chain that holds each group.
    root : RootRows or None
        The dense root's columns in the rows, those of the first time first.
    """

    at: Occasions
    count: Float[AnyArray, " u"]
    pattern: Int[AnyArray, " g"]
    columns: Float[AnyArray, "t c g"]
    entries: tuple[Int[AnyArray, " g"], ...]
    root: RootRows | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class CorrelatedRows:
    """The rows of all groups.

    Attributes
    ----------
    covariance : ResidualCovariance
        Static.
    batches : tuple of RowBatch
    """

    covariance: ResidualCovariance = field(metadata={"static": True})
    batches: tuple[RowBatch, ...]

    def whitened(self, free: Float[Array, " k"], stats: SufficientStatistics) -> SufficientStatistics:
        """Statistics of the model with independent residuals at free residual parameters."""
        return self.whitened_by(partial(self.covariance.precisions, free), stats)

    def whitened_by(self, precisions: Precisions, stats: SufficientStatistics) -> SufficientStatistics:
        """The same with any precisions of the rows of each pattern."""
        r, depth = stats.total.shape[0], len(stats.levels)
        widths = stats.widths[:depth]
        total = jnp.zeros((r, r), stats.total.dtype)
        logdet = jnp.zeros((), stats.total.dtype)
        blocks = [
            jnp.zeros((q, sum(widths[d:]) + r, len(level.count)), total.dtype)
            for d, (q, level) in enumerate(zip(widths, stats.levels, strict=True))
        ]
        of_root = no_sums(stats)
        for batch in self.batches:
            P, logdets = precisions(batch.at)
            logdet = logdet + jnp.sum(batch.count * logdets)
            PA = _times_columns(P, batch)
            flat = jnp.moveaxis(PA, 1, 0).reshape(PA.shape[1], -1)
            of_root = with_rows(of_root, batch.root, P.ravel(), flat)
            start = 0
            for d, q in enumerate(widths):
                own = matmul(transpose(batch.columns[:, start : start + q]), PA[:, start:])
                blocks[d] = blocks[d] + _into_entries(own, batch.entries[d], blocks[d].shape[-1])
                start += q
            Xy = batch.columns[:, start:]
            total = total + jnp.tensordot(Xy, PA[:, start:], axes=((0, 2), (0, 2)))
        levels = tuple(
            replace(level, root=block[:, :q], cross=block[:, q:], gram=None, form="moments")
            for level, block, q in zip(stats.levels, blocks, widths, strict=True)
        )
        return replace(
            put_sums(stats, levels, of_root),
            residual=None,
            total=total,
            sum_log_weights=stats.sum_log_weights - logdet,
        )


def _times_columns(P: Float[Array, "t t u"], batch: RowBatch) -> Float[Array, "t c g"]:
    """Product of each group's precision with its rows."""
    if P.shape[-1] == 1:
        return jnp.tensordot(P[:, :, 0], jnp.asarray(batch.columns), axes=1)
    if P.shape[0] <= FEW_ROWS:
        return matmul(P[:, :, batch.pattern], batch.columns)
    return jnp.einsum("tsg,scg->tcg", P[:, :, batch.pattern], batch.columns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class SuccessiveRows:
    """The rows of all groups, each group's together and by time; n rows, padding included, last.

    Attributes
    ----------
    covariance : ResidualCovariance
        Static; of a Markov family.
    times : (2, n) array
        Time of the row before, and of the row.
    first : (n,) bool array
        Whether a row is the first of its group, or pads.
    count : (n,) array
        One; zero for padding.
    levels, stratum : (n,) int arrays
    covariate : (n,) array
        As in Occasions.
    columns : (c, n) array
        Random-effects columns of all levels of the chain, X, y; zero for padding.
    entries : tuple of (n,) int arrays
        Entry of every level of the chain that holds each row.
    root : RootRows or None
        The dense root's columns in the rows; its places are in the diagonal of the precision, then in what
        stands beside that.
    """

    covariance: ResidualCovariance = field(metadata={"static": True})
    times: Float[AnyArray, "2 n"]
    first: Bool[AnyArray, " n"]
    count: Float[AnyArray, " n"]
    levels: Int[AnyArray, " n"]
    stratum: Int[AnyArray, " n"]
    covariate: Float[AnyArray, " n"]
    columns: Float[AnyArray, "c n"]
    entries: tuple[Int[AnyArray, " n"], ...]
    root: RootRows | None = None

    def whitened(self, free: Float[Array, " k"], stats: SufficientStatistics) -> SufficientStatistics:
        """Statistics of the model with independent residuals at free residual parameters."""
        log_sd = self.covariance.log_sds(free, self.levels, self.covariate, self.stratum)
        rho = jnp.where(self.first, 0.0, self.covariance.steps(free, self.times, self.stratum))
        left = 1 - rho * rho
        scaled = self.columns * jnp.exp(-log_sd)
        W = (scaled - rho * jnp.roll(scaled, 1, axis=1)) / jnp.sqrt(left)
        widths = stats.widths[: len(stats.levels)]
        levels, start = [], 0
        for level, entry, q in zip(stats.levels, self.entries, widths, strict=True):
            products = W[start : start + q, None] * W[None, start:]
            block = _into_entries(products, entry, len(level.count))
            levels.append(replace(level, root=block[:, :q], cross=block[:, q:], gram=None, form="moments"))
            start += q
        of_root = no_sums(stats)
        if of_root is not None:
            of_root = with_rows(of_root, self.root, *_banded(W, rho, jnp.exp(-log_sd)))
        return replace(
            put_sums(stats, tuple(levels), of_root),
            residual=None,
            total=jnp.matmul(W[start:], W[start:].T),
            sum_log_weights=stats.sum_log_weights - jnp.sum(self.count * (2 * log_sd + jnp.log(left))),
        )


def _banded(
    W: Float[AnyArray, "c n"], rho: Float[Array, " n"], inverse_sd: Float[Array, " n"]
) -> tuple[Float[Array, " k"], Float[Array, "c n"]]:
    """Precision of rows that depend on the one before, (2 n,), and its product with their columns.

    Parameters
    ----------
    W : (c, n) array
        Columns less their regression on the row before, of unit variance.
    rho : (n,) array
        Correlation with the row before; zero where a group starts.
    inverse_sd : (n,) array
    """
    left = 1 - rho * rho
    share, after = 1 / left, jnp.roll(rho / left, -1)
    diagonal = (share + jnp.roll(rho, -1) * after) * inverse_sd**2
    beside = -after * inverse_sd * jnp.roll(inverse_sd, -1)
    step = jnp.asarray(W) / jnp.sqrt(left)
    product = (step - jnp.roll(rho * step, -1, axis=1)) * inverse_sd
    return jnp.concatenate([diagonal, beside]), product


def _into_entries(
    values: Float[AnyArray, "a b g"], entry: Int[AnyArray, " g"], size: int
) -> Float[Array, "a b m"]:
    """Sums over the groups of every entry of a level."""
    sums = jax.ops.segment_sum(
        jnp.moveaxis(jnp.asarray(values), -1, 0), jnp.asarray(entry), num_segments=size
    )
    return jnp.moveaxis(sums, 0, -1)

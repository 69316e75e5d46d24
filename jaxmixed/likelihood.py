r"""The marginal likelihood of a Gaussian mixed model as pure functions of parameters and statistics.

With :math:`V = \sigma^2 (W^{-1} + \sum_k Z_k G_k Z_k')`, every level of grouping is eliminated from the
finest to the coarsest. For one entry with relative factor T and (orthogonal form) :math:`Z = QR`,

.. math::
    \Omega = (I + R T T' R')^{-1}, \qquad S \leftarrow S + D' \Omega D, \qquad
    \log|V| \leftarrow \log|V| - \log|\Omega|,

and (moments form) :math:`N = Z'Z`, :math:`\Omega = -T (I + T' N T)^{-1} T'`. Factors that are not nested
in this chain remain in a dense root, eliminated last (:mod:`jaxmixed.root`). What is left is the Schur
complement :math:`S = [X\,y]' V^{-1} [X\,y]` of order p + 1, from which the profiled estimates follow (Bates
et al. 2015, Journal of Statistical Software 67(1), sections 2.3 and 3.4; Pinheiro & Bates 2000, chapter 2).
The cost is O(entries q^3), and O(R^3) with a root of R columns; no matrix of the order of n is ever formed.
Group covariances enter through T alone, so singular ones are ordinary.

Everything here follows the dtype of its inputs, raises nothing on values (outside the domain they give NaN)
and composes with jit, grad, jvp, vjp, hessian, vmap and sharding, in any order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.linalg import identity, inverse_and_logdet, matmul, resolvent, transpose
from jaxmixed.links import Links, column_sums, outer_sum, per_entry, projected
from jaxmixed.root import Root, eliminate_root, reflect
from jaxmixed.statistics import Level, SufficientStatistics, listed, summarise

Method = Literal["reml", "ml"]
LOG_2PI = 1.8378770664093453


class Profile(NamedTuple):
    """The likelihood maximised over the fixed effects and the residual variance at a given theta.

    Attributes
    ----------
    deviance : scalar
        -2 log-likelihood, or the REML criterion; all constants included.
    log_rss : scalar
        Logarithm of the penalised residual sum of squares ``r'V^{-1}r`` (relative V, natural units).
    schur : (p + 1, p + 1) array
        ``[X y]' V^{-1} [X y]`` in the coordinates of the statistics.
    """

    deviance: Float[Array, ""]
    log_rss: Float[Array, ""]
    schur: Float[Array, "r r"]


def level_factors(theta: Float[Array, " k"], stats: SufficientStatistics) -> list[Float[Array, "q q"]]:
    """Relative factor of each level, block-diagonal over its terms, in the coordinates of the statistics."""
    factors = [
        term.covariance.factor(part) for term, part in zip(stats.terms, stats.split(theta), strict=True)
    ]
    return [jnp.matmul(frame, T) for frame, T in zip(stats.frames, stats.assemble(factors), strict=True)]


def middle(
    T: Float[Array, "q q"], root: Float[AnyArray, "q q m"], form: str
) -> tuple[Float[Array, "q q m"], Float[Array, " m"]]:
    r"""The matrix :math:`\Omega` of the module's docstring and the entry's contribution to log|V|."""
    one = identity(T.shape[0], T.dtype)
    if form == "orthogonal":
        F = jnp.sum(root[:, :, None, :] * T[None, :, :, None], axis=1)
        return inverse_and_logdet(one + matmul(F, transpose(F)))
    NT = jnp.sum(root[:, :, None, :] * T[None, :, :, None], axis=1)
    M = one + jnp.sum(T[:, :, None, None] * NT[:, None, :, :], axis=0)
    inverse, logdet = inverse_and_logdet(M)
    TA = jnp.sum(T[:, :, None, None] * inverse[None, :, :, :], axis=1)
    return -jnp.sum(TA[:, :, None, :] * transpose(T[:, :, None])[None, :, :, :], axis=1), logdet


def covariance_middle(
    G: Float[Array, "q q"], root: Float[AnyArray, "q q m"], form: str
) -> tuple[Float[Array, "q q m"], Float[Array, " m"]]:
    """:func:`middle` of the relative covariance itself, smooth where that is singular."""
    if form == "orthogonal":
        R = jnp.asarray(root)
        GR = jnp.sum(G[:, :, None, None] * transpose(R)[None], axis=1)
        return inverse_and_logdet(identity(R.shape[0], R.dtype) + matmul(R, GR))
    A, _, logdet = resolvent(G, jnp.asarray(root))
    return -A, logdet


def _update_per_entry(
    omega: Float[Array, "q q m"], level: Level, rows: slice, columns: slice
) -> Float[Array, "a b m"]:
    """Rows and columns of ``C' Omega C`` for each entry."""
    if level.cross is not None:
        half = matmul(omega, level.cross[:, columns])
        return matmul(transpose(level.cross[:, rows]), half)
    assert level.gram is not None  # a level has one of the two
    block = level.gram[:, :, :, rows, columns]
    return jnp.moveaxis(jnp.sum(omega[:, :, :, None, None] * block, axis=(0, 1)), 0, -1)


def _update_total(omega: Float[Array, "q q m"], level: Level, columns: slice) -> Float[Array, "r r"]:
    """Sum over the entries of ``C' Omega C``, without merging axes: entries may be spread over devices."""
    if level.cross is not None:
        C = level.cross[:, columns]
        return jnp.tensordot(C, matmul(omega, C), axes=((0, 2), (0, 2)))
    assert level.gram is not None
    return jnp.tensordot(omega, level.gram[:, :, :, columns, columns], axes=3)


def _scatter(
    update: Float[Array, "a b m"], parent: Int[AnyArray, " m"], size: int
) -> Float[Array, "a b parents"]:
    """Sum the entries' updates into their parents."""
    a, b, m = update.shape
    rows = jnp.moveaxis(update, -1, 0).reshape(m, a * b)
    sums = jax.ops.segment_sum(rows, parent, num_segments=size)
    return jnp.moveaxis(sums.reshape(size, a, b), 0, -1)


class Elimination(NamedTuple):
    """What the elimination of every level leaves behind.

    Attributes
    ----------
    logdet : scalar
        log|V| of the relative covariance (without the weights' part).
    schur : (p + 1, p + 1) array
        ``[X y]' V^{-1} [X y]``.
    levels : tuple of Level
        The levels as they were when their turn came: coarser ones include the updates of the finer ones.
    omegas : tuple of (q, q, m) arrays
        Their middle matrices.
    """

    logdet: Float[Array, ""]
    schur: Float[Array, "r r"]
    levels: tuple[Level, ...]
    omegas: tuple[Float[Array, "q q m"], ...]


def _fills(chain: Elimination, root: Root) -> Iterator[tuple[Links, Array, Array]]:
    """For each level: its links, the middle of the fill of the root's `gram`, and the update of `cross`."""
    size, r = root.cross.shape
    for level, omega in zip(chain.levels, chain.omegas, strict=True):
        assert level.links is not None
        assert level.cross is not None  # beside a root nothing is compressed
        # The root's Gram matrix is whole, not what is orthogonal to the groups: hence Omega - I.
        middle = omega - identity(omega.shape[0], omega.dtype) if level.form == "orthogonal" else omega
        half = per_entry(omega, level.links)
        yield level.links, middle, column_sums(half, level.cross[:, -r:], level.links, size)


def remaining_root(chain: Elimination, root: Root) -> Root:
    """The root after the elimination of the chain, in its reflected coordinates."""
    gram, cross = jnp.asarray(root.gram), jnp.asarray(root.cross)
    for links, fill, update in _fills(chain, root):
        gram = gram + outer_sum(fill, links, len(gram))
        cross = cross + update
    return reflect(replace(root, gram=gram, cross=cross))


def inner_product(
    chain: Elimination, root: Root, gram: Float[Array, "R R"], cross: Float[Array, "R r"]
) -> Float[Array, ""]:
    """Inner product of :func:`remaining_root` with given matrices, less a constant, without making it.

    Its derivatives along the chain's parameters need one product with the whole of `gram`, not one each.
    """

    def reflected(g: Array, h: Array) -> tuple[Array, Array]:
        found = reflect(replace(root, gram=g, cross=h))
        return jnp.asarray(found.gram), jnp.asarray(found.cross)

    of_gram, of_cross = jax.linear_transpose(reflected, gram, cross)((gram, cross))
    of_gram = (of_gram + of_gram.T) / 2
    total = jnp.zeros((), gram.dtype)
    for links, fill, update in _fills(chain, root):
        total = total + jnp.sum(fill * projected(of_gram, links, fill.shape[-1])) + jnp.sum(of_cross * update)
    return total


def _link_parent(
    parent: Level, half: Float[Array, "q e"], cross: Float[AnyArray, "q a m"], links: Links, above: int
) -> Links:
    """Links of a coarser level with the updates of a finer one."""
    assert parent.links is not None
    update = per_entry(transpose(cross), links, half)
    count = parent.links.values.shape[1]
    sums = jax.ops.segment_sum(update.T, links.parents[above], num_segments=count)
    return replace(parent.links, values=parent.links.values + sums.T)


def eliminate_chain(
    factors: Sequence[Float[Array, "q q"]],
    stats: SufficientStatistics,
    middle: Callable[..., tuple[Array, Array]] = middle,
) -> Elimination:
    """Eliminate the random effects of the nested levels one by one, the finest first; not the root's.

    Parameters
    ----------
    factors : sequence of (q, q) arrays
        Relative factor of each level of the chain (the root's, if they follow, are not used).
    stats : SufficientStatistics
    middle : callable
        Makes the middle matrices of a level from its factor; from whatever `factors` are, if not factors.

    Returns
    -------
    Elimination
    """
    r = stats.total.shape[0]
    schur, logdet = jnp.asarray(stats.total), jnp.zeros((), stats.total.dtype)
    levels, omegas = list(stats.levels), []
    for depth, T in enumerate(factors[: len(levels)]):
        level = levels[depth]
        omega, logdets = middle(T, level.root, level.form)
        omegas.append(omega)
        logdet = logdet + jnp.sum(level.count * logdets)
        width = r + sum(coarse.root.shape[0] for coarse in levels[depth + 1 :])
        start = 0
        for above, parent in enumerate(level.parents, depth + 1):
            coarse = levels[above]
            assert coarse.cross is not None  # only the finest level is ever compressed
            q, m = coarse.root.shape[1:]
            update = _scatter(
                _update_per_entry(omega, level, slice(start, start + q), slice(start, width)), parent, m
            )
            levels[above] = Level(
                root=coarse.root + update[:, :q],
                cross=coarse.cross + update[:, q:],
                gram=None,
                count=coarse.count,
                parents=coarse.parents,
                form="moments",
                links=None
                if level.links is None or level.cross is None
                else _link_parent(
                    coarse,
                    per_entry(omega, level.links),
                    level.cross[:, start : start + q],
                    level.links,
                    above - depth - 1,
                ),
            )
            start += q
        schur = schur + _update_total(omega, level, slice(width - r, width))
    return Elimination(logdet, schur, tuple(levels), tuple(omegas))


def eliminate(factors: Sequence[Float[Array, "q q"]], stats: SufficientStatistics) -> Elimination:
    """Eliminate all random effects: the chain, then the root.

    Parameters
    ----------
    factors : sequence of (q, q) arrays
        Relative factor of each level of the chain and of each factor of the root.
    stats : SufficientStatistics

    Returns
    -------
    Elimination
    """
    chain = eliminate_chain(factors, stats)
    if stats.root is None:
        return chain
    root = remaining_root(chain, stats.root)
    logdet, schur = eliminate_root(factors[len(stats.levels) :], root, chain.schur)
    return chain._replace(logdet=chain.logdet + logdet, schur=schur)


def degrees_of_freedom(stats: SufficientStatistics, method: Method) -> Float[Array, ""]:
    """N for ML, n - p for REML."""
    return jnp.asarray(stats.nobs) - (stats.total.shape[0] - 1 if method == "reml" else 0)


def profile(
    factors: list[Float[Array, "q q"]], stats: SufficientStatistics, *, method: Method = "reml"
) -> Profile:
    """Deviance at given factors with the fixed effects and sigma profiled out, and what it was made from.

    Parameters
    ----------
    factors : list of (q, q) arrays
        Relative factor of each level in the coordinates of the statistics (:func:`level_factors`).
    stats : SufficientStatistics
    method : {"reml", "ml"}

    Returns
    -------
    Profile
    """
    logdet, schur, *_ = eliminate(factors, stats)
    return profile_schur(logdet, schur, stats, method)


def profile_schur(
    logdet: Float[Array, ""], schur: Float[Array, "r r"], stats: SufficientStatistics, method: Method
) -> Profile:
    """Deviance from log|V| and the Schur complement of an elimination.

    Parameters
    ----------
    logdet : scalar
    schur : (p + 1, p + 1) array
    stats : SufficientStatistics
        For its constants.
    method : {"reml", "ml"}

    Returns
    -------
    Profile
    """
    p = schur.shape[0] - 1
    inverse, logdet_x = inverse_and_logdet(schur[:p, :p])
    rss = schur[p, p] - schur[p, :p] @ (inverse @ schur[:p, p])
    df = degrees_of_freedom(stats, method)
    log_rss = jnp.log(rss) + 2 * jnp.log(stats.scale)
    value = logdet - stats.sum_log_weights + df * (1 + LOG_2PI + log_rss - jnp.log(df))
    if method == "reml":
        value = value + logdet_x + stats.log_det_basis
    return Profile(value, log_rss, schur)


def deviance(
    theta: Float[Array, " k"], stats: SufficientStatistics, *, method: Method = "reml"
) -> Float[Array, ""]:
    """Profiled deviance: -2 log-likelihood (ML) or REML criterion, all constants included, as lme4 prints it.

    Parameters
    ----------
    theta : (k,) array
        Parameters of the relative factors (lme4's theta for unstructured terms): standard deviations relative
        to sigma.
    stats : SufficientStatistics
    method : {"reml", "ml"}

    Returns
    -------
    scalar
        Deviance; NaN where the covariance or the design is not numerically positive definite.

    References
    ----------
    Bates, Maechler, Bolker & Walker (2015), Journal of Statistical Software 67(1), equations 34 and 42.

    Examples
    --------
    >>> from jaxmixed.statistics import summarise
    >>> y, one = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> stats = summarise(y, one, one, jnp.array([0, 0, 1, 1]), num_groups=2)
    >>> round(float(deviance(jnp.array([1.0]), stats, method="ml")), 3)
    17.345
    """
    theta = jnp.asarray(theta)
    return profile(level_factors(theta, stats), stats.at(theta), method=method).deviance


class Parameters(NamedTuple):
    """Parameters of the unprofiled likelihood, on natural scales.

    Attributes
    ----------
    beta : (p,) array
        Fixed effects.
    theta : (k,) array
        Parameters of the relative factors.
    sigma : scalar
        Residual standard deviation (of a row of weight 1).
    """

    beta: Float[Array, " p"]
    theta: Float[Array, " k"]
    sigma: Float[Array, ""]


def loglik(params: Parameters, stats: SufficientStatistics, *, method: Method = "ml") -> Float[Array, ""]:
    """Log-likelihood at any parameters, nothing profiled out.

    Parameters
    ----------
    params : Parameters
        Natural scales. Under REML `beta` is ignored: the restricted likelihood does not depend on it.
    stats : SufficientStatistics
    method : {"ml", "reml"}

    Returns
    -------
    scalar
        Not finite where `sigma` is not positive.

    Examples
    --------
    >>> from jaxmixed.statistics import summarise
    >>> y, one = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> stats = summarise(y, one, one, jnp.array([0, 0, 1, 1]), num_groups=2)
    >>> params = Parameters(jnp.array([3.5]), jnp.array([1.0]), jnp.array(1.6))
    >>> round(float(loglik(params, stats)), 3)
    -8.673
    """
    beta, theta, sigma = params
    theta = jnp.asarray(theta)
    plain = stats.at(theta)
    logdet, schur, *_ = eliminate(level_factors(theta, stats), plain)
    return _log_density(beta, sigma, logdet, schur, plain, method)


def _log_density(
    beta: Float[Array, " p"],
    sigma: Float[Array, ""],
    logdet: Float[Array, ""],
    schur: Float[Array, "r r"],
    stats: SufficientStatistics,
    method: Method,
) -> Float[Array, ""]:
    """Log-likelihood on natural scales from log|V| and the Schur complement of an elimination."""
    p = schur.shape[0] - 1
    beta, sigma = jnp.asarray(beta), jnp.asarray(sigma)
    constants = logdet - stats.sum_log_weights
    if method == "reml":
        inverse, logdet_x = inverse_and_logdet(schur[:p, :p])
        rss = schur[p, p] - schur[p, :p] @ (inverse @ schur[:p, p])
        constants = constants + logdet_x + stats.log_det_basis
    else:
        v = jnp.append(-(stats.basis @ (beta - stats.origin)) / stats.scale, jnp.ones((), schur.dtype))
        rss = v @ schur @ v
    df = degrees_of_freedom(stats, method)
    # The logarithm of sigma, not of its square: a negative one is outside the domain.
    return -0.5 * (constants + df * (LOG_2PI + 2 * jnp.log(sigma)) + rss * (stats.scale / sigma) ** 2)


def _count_groups(codes: Sequence[Int[AnyArray, " n"]]) -> list[int]:
    """Number of groups of each factor, from codes that are known when a program is traced."""
    if any(isinstance(code, jax.core.Tracer) for code in codes):
        raise TypeError(
            "num_groups is needed: the group codes are traced, so their largest is not known while the "
            "program is made. Give num_groups (an int, or one per factor), or codes from outside the trace."
        )
    return [int(np.max(np.asarray(code), initial=-1)) + 1 for code in codes]


def marginal_loglik(
    y: Float[Array, " n"],
    X: Float[Array, "n p"],
    Z: Sequence[Float[Array, "n q"]] | Float[Array, "n q"],
    groups: Sequence[Int[AnyArray, " n"]] | Int[AnyArray, " n"],
    beta: Float[Array, " p"],
    G: Sequence[Float[Array, "q q"]] | Float[Array, "q q"],
    sigma: Float[Array, ""],
    *,
    num_groups: Sequence[int] | int | None = None,
    weights: Float[Array, " n"] | None = None,
) -> Float[Array, ""]:
    r"""Log-density of y with the random effects integrated out, everything on natural, absolute scales.

    .. math:: y \sim N\Bigl(X\beta,\; \sum_k Z_k (I \otimes G_k) Z_k' + \sigma^2 W^{-1}\Bigr)

    Parameters
    ----------
    y : (n,) array
        Response.
    X : (n, p) array
        Fixed-effects columns, of any rank; p may be 0.
    Z : (n, q) array, or a sequence of them
        Random-effects columns of each grouping factor, the finest factor first.
    groups : (n,) int array, or a sequence of them
        Codes ``0 .. num_groups - 1`` of each factor, in any order; each factor nested in the next.
    beta : (p,) array
        Fixed effects.
    G : (q, q) positive semidefinite array, or a sequence of them
        Covariance of a group's random effects, factor by factor: *absolute*, in squared units of y per
        squared unit of Z, not relative to sigma. Only its symmetric part is seen.
    sigma : scalar
        Residual standard deviation, of a row of weight 1.
    num_groups : int, or a sequence of int, optional
        Number of groups of each factor; static. Left out, it is read off the codes, unless they are traced.
    weights : (n,) array, optional
        Precision weights: ``Var(e_i) = sigma**2 / w_i``. Positive.

    Returns
    -------
    scalar
        In the dtype of `y`. NaN where a covariance is indefinite by more than rounding; not finite where
        `sigma` or a weight is not positive.

    Raises
    ------
    TypeError
        If `num_groups` is left out and the codes are traced.

    Notes
    -----
    Every array but the codes may be traced and may come out of traced code, a neural network's features for
    instance. The density is smooth in y, X, Z, beta, sigma and the weights, and in G on all of its domain:
    derivatives of any order are finite and right where G is singular or zero, since V depends on G linearly
    (there they describe the moves that keep G positive semidefinite). A *parametrisation* of G may be less
    smooth than that: a standard deviation has derivative 0 at 0, and a Cholesky factor of a singular G has
    none. Parameters of the relative factor go into :func:`loglik`.

    The cost is O(n q (q + p)) for the sums over rows and O(groups q^3) for the rest.

    References
    ----------
    Pinheiro & Bates (2000), Mixed-Effects Models in S and S-PLUS, section 2.2.

    Examples
    --------
    >>> y, one = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.ones((4, 1))
    >>> groups, beta = jnp.array([0, 0, 1, 1]), jnp.array([3.5])
    >>> value = marginal_loglik(y, one, one, groups, beta, jnp.eye(1), 1.0, num_groups=2)
    >>> round(float(value), 3)
    -9.941

    At a variance of zero, its derivative is still there:

    >>> def of_variance(G):
    ...     return marginal_loglik(y, one, one, groups, beta, G, 1.0, num_groups=2)
    >>> round(float(jax.grad(of_variance)(jnp.zeros((1, 1)))[0, 0]), 3)
    14.0
    """
    codes = listed(groups)
    counts = _count_groups(codes) if num_groups is None else num_groups
    stats = summarise(y, X, listed(Z), codes, num_groups=counts, weights=weights)
    precision = 1 / jnp.asarray(sigma) ** 2
    relative = []
    for frame, cov in zip(stats.frames, listed(G), strict=True):
        turned = jnp.asarray(frame) @ (jnp.asarray(cov) * precision) @ jnp.asarray(frame).T
        relative.append((turned + turned.T) / 2)
    logdet, schur, *_ = eliminate_chain(relative, stats, covariance_middle)
    return _log_density(beta, sigma, logdet, schur, stats, "ml")

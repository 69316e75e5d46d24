r"""Batched small-matrix kernels, polynomial in their derivatives.

A batch of small matrices is stored with the batch axis **last** (``"q q m"``), so that every operation is an
elementwise expression over contiguous memory: XLA fuses it into a few loops, no LAPACK call is made, and
``vmap`` over models costs nothing extra. The one factorisation is :func:`inverse_and_logdet`; its derivative
rule uses only the inverse already computed,

.. math:: d M^{-1} = -M^{-1}\, dM\, M^{-1}, \qquad d \log|M| = \operatorname{tr}(M^{-1} dM),

so derivatives of any order contain products alone.

Functions of host matrices (numpy) stand at the end.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from jaxmixed._types import AnyArray

UNROLL_LIMIT = 8
"""Largest order whose elimination is written out step by step; beyond it a loop bounds the compile time."""

BLOCK = 128
"""Largest order of a single matrix that is eliminated pivot by pivot; a larger one is halved."""

INDEFINITE = 100
"""What is left of a diagonal element may be negative by so many times the share that counts as rounding."""

BLOCK_MULTIPLE = 64
"""Sizes of the halves are multiples of this, which suits the products' kernels."""


def matmul(a: Float[AnyArray, "i j m"], b: Float[AnyArray, "j k m"]) -> Float[Array, "i k m"]:
    """Product of two batches of small matrices, batch axis last."""
    return jnp.sum(a[:, :, None, :] * b[None, :, :, :], axis=1)


def transpose(a: Float[AnyArray, "i j m"]) -> Float[Array, "j i m"]:
    """Transpose of each matrix of a batch."""
    return jnp.swapaxes(a, 0, 1)


def identity(q: int, dtype: jnp.dtype) -> Float[Array, "q q 1"]:
    """Identity matrix that broadcasts over a batch."""
    return jnp.eye(q, dtype=dtype)[:, :, None]


def _sweep(
    k: int | Array, M: Float[Array, "q q *m"], logdet: Float[Array, "*m"]
) -> tuple[Float[Array, "q q *m"], Float[Array, "*m"]]:
    """One Gauss-Jordan step on pivot ``k`` of each symmetric matrix (Goodnight 1979, Am. Statistician 33)."""
    at = jnp.arange(M.shape[0]) == k
    at_row = at.reshape(-1, *(1,) * (M.ndim - 1))
    at_column = at.reshape(1, -1, *(1,) * (M.ndim - 2))
    pivot, column = M[k, k], M[:, k]
    row = M[k] / pivot
    outside = jnp.where(at_column, -column[:, None] / pivot, M - column[:, None] * row[None])
    inside = jnp.where(at_column, 1 / pivot, row[None])
    return jnp.where(at_row, inside, outside), logdet + jnp.log(pivot)


def _halve(M: Float[Array, "q q"]) -> tuple[Float[Array, "q q"], Float[Array, ""]]:
    """Inverse and log-determinant of one large matrix by halves: 4/3 q^3 operations, nearly all in products.

    A Cholesky factor and the inverse from it take 4/3 q^3 too, but a third of them run at the speed of a
    triangular solve, and through LAPACK, whose routines a kept program cannot call.
    """
    q = M.shape[0]
    if q <= BLOCK:
        return _sweep_all(M)
    half = -(-q // (2 * BLOCK_MULTIPLE)) * BLOCK_MULTIPLE
    # B' is taken from the lower triangle, for a product with a transposed left side is several times slower.
    A, B, B_transposed, D = M[:half, :half], M[:half, half:], M[half:, :half], M[half:, half:]
    A_inverse, logdet = _halve(A)
    AB = A_inverse @ B
    S_inverse, logdet_schur = _halve(D - B_transposed @ AB)
    ABS = AB @ S_inverse
    inverse = jnp.block([[A_inverse + ABS @ AB.T, -ABS], [-ABS.T, S_inverse]])
    return inverse, logdet + logdet_schur


def _sweep_all(M: Float[Array, "q q *m"]) -> tuple[Float[Array, "q q *m"], Float[Array, "*m"]]:
    """Sweep every pivot: the inverse of each matrix takes its place."""
    logdet = jnp.zeros(M.shape[2:], M.dtype)
    if M.shape[0] <= UNROLL_LIMIT:
        for k in range(M.shape[0]):
            M, logdet = _sweep(k, M, logdet)
        return M, logdet
    return jax.lax.fori_loop(0, M.shape[0], lambda k, state: _sweep(k, *state), (M, logdet))


def _invert(M: Float[Array, "q q *m"]) -> tuple[Float[Array, "q q *m"], Float[Array, "*m"]]:
    q = M.shape[0]
    if q > BLOCK and M.ndim == 2:
        # Scaled to a unit diagonal, a matrix is nearly as well conditioned as any scaling makes it.
        scale = 1 / jnp.sqrt(jnp.diagonal(M))
        inverse, logdet = _halve(M * scale[:, None] * scale)
        return inverse * scale[:, None] * scale, logdet - 2 * jnp.sum(jnp.log(scale))
    if q == 1:
        return 1 / M, jnp.log(M[0, 0])
    return _sweep_all(M)


@jax.custom_jvp
def inverse_and_logdet(M: Float[Array, "q q *m"]) -> tuple[Float[Array, "q q *m"], Float[Array, "*m"]]:
    """Inverse and log-determinant of symmetric positive definite matrices, batch axis (if any) last.

    Gauss-Jordan elimination on the diagonal, stable without pivoting for positive definite matrices. A matrix
    that is not positive definite yields NaN in its log-determinant and nothing is raised: callers check.

    Parameters
    ----------
    M : (q, q) or (q, q, m) array

    Returns
    -------
    inverse : array shaped as `M`
    logdet : scalar or (m,) array

    Examples
    --------
    >>> inverse, logdet = inverse_and_logdet(2.0 * jnp.eye(2))
    >>> float(inverse[0, 0]), round(float(logdet), 4)
    (0.5, 1.3863)
    """
    return _invert(M)


@inverse_and_logdet.defjvp
def _inverse_and_logdet_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (M,), (dM,) = primals, tangents
    inverse, logdet = inverse_and_logdet(M)
    product = jnp.matmul if M.ndim == 2 else matmul
    d_inverse = -product(product(inverse, dM), inverse)
    d_logdet = jnp.sum(inverse * jnp.swapaxes(dM, 0, 1), axis=(0, 1))
    return (inverse, logdet), (d_inverse, d_logdet)


@jax.custom_jvp
def solve_and_logdet(
    M: Float[Array, "q q"], B: Float[Array, "q r"]
) -> tuple[Float[Array, "q r"], Float[Array, ""]]:
    """Solve ``M X = B``, and the log-determinant of the symmetric positive definite M, by one factorisation.

    Its derivative rule needs products with the r columns of X alone, where that of the inverse itself would
    multiply whole matrices: a gradient costs no more than the value.

    Parameters
    ----------
    M : (q, q) array
    B : (q, r) array

    Returns
    -------
    X : (q, r) array
    logdet : scalar
        NaN where M is not positive definite.

    Examples
    --------
    >>> X, logdet = solve_and_logdet(2.0 * jnp.eye(2), jnp.ones((2, 1)))
    >>> float(X[0, 0]), round(float(logdet), 4)
    (0.5, 1.3863)
    """
    inverse, logdet = inverse_and_logdet(M)
    return inverse @ B, logdet


@solve_and_logdet.defjvp
def _solve_and_logdet_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (M, B), (dM, dB) = primals, tangents
    inverse, logdet = inverse_and_logdet(M)
    X = inverse @ B
    return (X, logdet), (inverse @ (dB - dM @ X), jnp.sum(inverse * dM.T))


def _diagonalised(
    G: Float[Array, "q q"],
) -> tuple[Float[Array, "q q"], Float[Array, " q"], Float[Array, "q q"]]:
    """Invertible L and d >= 0 with ``G = L diag(d) L'``, and the inverse of L; d is NaN if G is indefinite.

    By the eigenvalues of the correlations, so that units do not matter; those within rounding of zero are.
    """
    q = G.shape[0]
    size = jnp.abs(jnp.diagonal(G))
    scale = jnp.where(size > 0, jnp.sqrt(size), 1)
    correlations = G / (scale[:, None] * scale)
    values, vectors = jnp.linalg.eigh(correlations) if q > 1 else (correlations[0], jnp.ones_like(G))
    rounding = 4 * q * jnp.finfo(G.dtype).eps
    d = jnp.where(values < -rounding, jnp.nan, jnp.where(values <= rounding, 0, values))
    return scale[:, None] * vectors, d, vectors.T / scale


@jax.custom_jvp
def resolvent(
    G: Float[Array, "q q"], N: Float[Array, "q q m"]
) -> tuple[Float[Array, "q q m"], Float[Array, "q q m"], Float[Array, " m"]]:
    r"""``K = (I + G N)^{-1}``, ``A = K G`` and ``log|I + G N|`` for positive *semi*definite G and N.

    With G itself, not a root of it, the three are as smooth where G is singular as anywhere else. Their
    derivatives consist of products of themselves, with nothing subtracted that is nearly equal:

    .. math:: dA = K\, dG\, K' - A\, dN A, \qquad dK = -K\, dG\, N K - A\, dN K,
        \qquad d\log|I + G N| = \operatorname{tr}(N K\, dG) + \operatorname{tr}(A\, dN).

    Parameters
    ----------
    G : (q, q) array
        All three are NaN where it is indefinite by more than rounding.
    N : (q, q, m) array

    Returns
    -------
    A, K : (q, q, m) arrays
    logdet : (m,) array

    Examples
    --------
    >>> A, K, logdet = resolvent(jnp.diag(jnp.array([3.0, 0.0])), jnp.ones((2, 2, 1)))
    >>> float(A[0, 0, 0]), float(K[0, 1, 0]), round(float(logdet[0]), 4)
    (0.75, -0.75, 1.3863)
    """
    L, d, L_inverse = _diagonalised(G)
    root = jnp.sqrt(d)
    N_turned = matmul(matmul(L.T[:, :, None], N), L[:, :, None])
    one = identity(G.shape[0], G.dtype)
    inverse, logdet = inverse_and_logdet(one + root[:, None, None] * N_turned * root[None, :, None])
    half = root[:, None, None] * inverse
    A_turned = half * root[None, :, None]
    # Column by column, whichever subtracts nothing.
    safe = jnp.where(root > 0, root, 1)[None, :, None]
    K_turned = jnp.where(root[None, :, None] > 0, half / safe, one - matmul(A_turned, N_turned))
    A = matmul(matmul(L[:, :, None], A_turned), L.T[:, :, None])
    return A, matmul(matmul(L[:, :, None], K_turned), L_inverse[:, :, None]), logdet


@resolvent.defjvp
def _resolvent_jvp(primals, tangents):  # type: ignore[no-untyped-def]
    (G, N), (dG, dN) = primals, tangents
    A, K, logdet = resolvent(G, N)
    K_dG, A_dN, NK = matmul(K, dG[:, :, None]), matmul(A, dN), matmul(N, K)
    dA = matmul(K_dG, transpose(K)) - matmul(A_dN, A)
    dK = -matmul(K_dG, NK) - matmul(A_dN, K)
    # The trace of a product with N K is that of K dG with N.
    d_logdet = jnp.sum(transpose(K_dG) * N + transpose(A) * dN, axis=(0, 1))
    return (A, K, logdet), (dA, dK, d_logdet)


def pivoted_cholesky(M: Float[Array, "q q"]) -> Float[Array, "q q"]:
    """Root T of a symmetric positive *semi*definite matrix, ``T T' = M``, without LAPACK.

    By elimination, the row that the earlier ones leave the largest share of first: T is a lower triangle but
    for the order of its rows. Where nothing but rounding is left, columns are zero, with derivatives of zero;
    T is NaN where the matrix is indefinite. Products and roots alone, so that it has derivatives of any order
    in either mode, and T T' has those of M to rounding, however nearly singular M is.

    Parameters
    ----------
    M : (q, q) array

    Returns
    -------
    (q, q) array

    References
    ----------
    Higham (2002), Accuracy and Stability of Numerical Algorithms, 2nd edition, section 10.3.

    Examples
    --------
    >>> pivoted_cholesky(jnp.array([[4.0, 2.0], [2.0, 1.0]]))
    Array([[2., 0.],
           [1., 0.]], dtype=float32)
    """
    q, index = M.shape[0], jnp.arange(M.shape[0])
    size = jax.lax.stop_gradient(jnp.diagonal(M))
    size = jnp.where(size == 0, 1, size)
    rounding = 4 * q * jnp.finfo(M.dtype).eps

    def step(k, state):  # type: ignore[no-untyped-def]
        rest, left, T = state
        share = jnp.where(left, jax.lax.stop_gradient(jnp.diagonal(rest)) / size, -jnp.inf)
        at = jnp.argmax(share) == index
        column = jnp.sum(jnp.where(at, rest, 0), axis=1)
        nothing = jnp.max(share) <= rounding
        root = jnp.sqrt(jnp.where(nothing, 1, jnp.sum(jnp.where(at, column, 0))))
        own = jnp.where(nothing | ~left, 0, jnp.where(at, root, column / root))
        indefinite = jnp.min(jnp.where(left, share, 0)) < -INDEFINITE * rounding
        own = jnp.where(indefinite, jnp.nan, own)
        return rest - own[:, None] * own, left & (nothing | ~at), jnp.where(index == k, own[:, None], T)

    state = (M, jnp.ones(q, bool), jnp.zeros_like(M))
    if q <= UNROLL_LIMIT:
        for k in range(q):
            state = step(k, state)
    else:
        state = jax.lax.fori_loop(0, q, step, state)
    return state[2]


def qr_triangle(X: np.ndarray) -> np.ndarray:
    """R of the QR decomposition of a host matrix, without Q.

    Examples
    --------
    >>> np.abs(qr_triangle(np.array([[3.0], [4.0]]))).round(12)
    array([[5.]])
    """
    return np.linalg.qr(X, mode="r")  # type: ignore[return-value] # NumPy's stubs give every mode a pair


def stacked_qr_triangle(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """R of the QR decomposition of host matrices on top of each other, of which one at a time is in memory.

    Parameters
    ----------
    blocks : iterable of (n_i, p) arrays
        At least one.

    Returns
    -------
    (min(n, p), p) array

    Examples
    --------
    >>> np.abs(stacked_qr_triangle([np.array([[3.0]]), np.array([[4.0]])])).round(12)
    array([[5.]])
    """
    factors = [qr_triangle(block) for block in blocks]
    return factors[0] if len(factors) == 1 else qr_triangle(np.concatenate(factors))


def independent_columns(X: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Positions of columns of a host matrix that are not combinations of earlier ones, and span all others.

    Orthogonalised in the order given rather than by pivoting (Gram and Schmidt's method, twice each: Giraud,
    Langou & Rozloznik 2005, Computers & Mathematics with Applications 50, 1069-1075), so that of columns that
    depend on each other the later ones are left out.

    Parameters
    ----------
    X : (n, p) array
    floors : (p,) array
        Of a column that depends on earlier ones, no more than this length is orthogonal to them.

    Returns
    -------
    int array

    Examples
    --------
    >>> X = np.array([[1.0, 2.0, 0.0], [1.0, 2.0, 1.0]])
    >>> independent_columns(X, 1e-9 * np.linalg.norm(X, axis=0))
    array([0, 2])
    """
    basis, chosen = np.zeros((len(X), 0)), []
    for position, column in enumerate(X.T):
        rest = column - basis @ (basis.T @ column)
        rest -= basis @ (basis.T @ rest)  # the second time removes what rounding left of the first
        length = np.sqrt(rest @ rest)
        if length > floors[position]:
            basis = np.column_stack([basis, rest / length])
            chosen.append(position)
    return np.array(chosen, dtype=np.int64)


def is_positive_definite(M: np.ndarray) -> np.ndarray:
    """Whether all pivots of symmetric host matrices, (m, k, k), are positive; not where they are not finite.

    By elimination, a column of all matrices at a time.

    Examples
    --------
    >>> is_positive_definite(np.stack([np.eye(2), np.ones((2, 2)) - 2 * np.eye(2)]))
    array([ True, False])
    """
    rest, definite = M, np.ones(len(M), dtype=bool)
    for _ in range(M.shape[-1]):
        pivot, row = rest[:, 0, 0], rest[:, 0, 1:]
        definite &= pivot > 0
        safe = np.where(definite, pivot, 1.0)
        rest = rest[:, 1:, 1:] - row[:, :, None] * (row / safe[:, None])[:, None, :]
    return definite


def solve_modified(
    H: Float[Array, "k k"], g: Float[Array, " k"], floor: Float[Array, ""]
) -> Float[Array, " k"]:
    """Solve ``(H + E) x = g`` with a diagonal E that makes the matrix positive definite.

    A pivot of the LDL' elimination, the largest in magnitude first, is replaced by its magnitude, and by
    `floor` where it is smaller: x'g is positive whatever the symmetric matrix H, and H is left as it is where
    it is positive definite.

    Parameters
    ----------
    H : (k, k) symmetric array
    g : (k,) array
    floor : scalar
        Positive.

    Returns
    -------
    (k,) array

    References
    ----------
    Nocedal & Wright (2006), Numerical Optimization, 2nd edition, section 3.4 (modified factorisations).

    Examples
    --------
    >>> solve_modified(jnp.diag(jnp.array([2.0, -4.0])), jnp.ones(2), jnp.array(1e-6))
    Array([0.5 , 0.25], dtype=float32)
    """
    k = H.shape[0]
    A = jnp.concatenate([H, g[:, None]], axis=1)

    def step(_, state):  # type: ignore[no-untyped-def]
        A, left = state
        diagonal = jnp.diagonal(A[:, :k])
        at = jnp.argmax(jnp.where(left, jnp.abs(diagonal), -1.0)) == jnp.arange(k)
        pivot = jnp.maximum(jnp.abs(jnp.sum(jnp.where(at, diagonal, 0))), floor)
        row, column = (
            jnp.sum(jnp.where(at[:, None], A, 0), axis=0),
            jnp.sum(jnp.where(at, A[:, :k], 0), axis=1),
        )
        row = jnp.append(jnp.where(at, pivot, row[:k]), row[k]) / pivot
        return jnp.where(at[:, None], row[None], A - column[:, None] * row[None]), left & ~at

    A, _ = jax.lax.fori_loop(0, k, step, (A, jnp.ones(k, dtype=bool)))
    return A[:, k]

"""Random numbers of numbered replicates, and the responses that a mixed model draws with them.

Replicate i of a seed is the same numbers whatever the order, the chunk, the thread or the process that draws
it: the counter of a Philox generator (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*,
SC11) is set for every replicate, under a key made of the seed and the name of the stream. The reset takes
1.3 µs beside the 10 ns of each normal number, so replicates are drawn one by one and none is drawn in vain.
What follows the draws is arithmetic element by element, without matrix products, whose rounding depends on
their width: equal replicates are equal to the last bit.

NumPy promises the same numbers from the same version of NumPy; those of other versions have been the same so
far. Its global random state is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxmixed.covariance import semidefinite_cholesky
from jaxmixed.errors import DataError
from jaxmixed.root import semidefinite_root

EFFECTS_STREAM = "random effects"
"""Stream of the standard normal numbers behind random effects: terms in order, levels, effects fastest."""

RESIDUAL_STREAM = "residuals"
"""Stream of the standard normal numbers behind residuals, in the order of the rows."""

_CHUNK_NUMBERS = 2**16
_MAX_CHUNK = 256


def check_seed(seed: object) -> int:
    """Return a seed as an integer, or refuse it.

    Raises
    ------
    DataError
        If it is not a non-negative integer.

    Examples
    --------
    >>> check_seed(7)
    7
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed must be a non-negative integer, such as 1; it is {seed!r}")
    return int(seed)


class Draws:
    """Random numbers of numbered replicates.

    Parameters
    ----------
    seed : int
        Non-negative.
    stream : str
        Purpose of the numbers. Streams of one seed are independent of each other.

    Raises
    ------
    DataError
        If the seed is not a non-negative integer.

    Notes
    -----
    Every method takes the number of the first replicate and how many there are, and gives an array whose
    column j belongs to replicate ``first + j``. Methods may run in several threads at once.

    Examples
    --------
    >>> draws = Draws(1, "residuals")
    >>> whole = draws.normal(0, 5, 3)
    >>> bool((draws.normal(2, 2, 3) == whole[:, 2:4]).all())
    True
    """

    def __init__(self, seed: int, stream: str = "") -> None:
        self.seed = check_seed(seed)
        self.stream = stream
        sequence = np.random.SeedSequence(self.seed, spawn_key=tuple(stream.encode()))
        self._key = sequence.generate_state(2, np.uint64)

    def __repr__(self) -> str:
        return f"Draws({self.seed}, {self.stream!r})"

    def _rows(
        self, first: int, count: int, size: int, draw: Callable[[np.random.Generator, np.ndarray], object]
    ) -> np.ndarray:
        """Numbers (count, size) of one replicate per row, each from its own range of the counter."""
        out = np.empty((count, size))
        bits = np.random.Philox(key=self._key)
        generator = np.random.Generator(bits)
        state = bits.state
        counter = state["state"]["counter"]
        for number in range(count):
            counter[1] = first + number  # the lowest word counts within the replicate
            bits.state = state
            draw(generator, out[number])
        return out

    def normal(self, first: int, count: int, size: int) -> np.ndarray:
        """Standard normal numbers, (size, count)."""
        return np.ascontiguousarray(self._rows(first, count, size, _normal).T)

    def uniform(self, first: int, count: int, size: int) -> np.ndarray:
        """Numbers uniform on [0, 1), (size, count)."""
        return np.ascontiguousarray(self._rows(first, count, size, _uniform).T)

    def signs(self, first: int, count: int, size: int) -> np.ndarray:
        """Numbers 1.0 and -1.0 with equal probabilities, (size, count)."""
        return np.where(self.uniform(first, count, size) < 0.5, 1.0, -1.0)

    def indices(
        self, first: int, count: int, size: int, population: int | np.ndarray | None = None
    ) -> np.ndarray:
        """Draws with replacement from 0, ..., population - 1, as int64 (size, count).

        Parameters
        ----------
        first, count, size : int
        population : int or (size,) array, optional
            Positive, below 2**53; ``size`` by default, as for a bootstrap of ``size`` things. An array holds
            the population of each draw, e.g. the size of the cluster that a row stands in.

        Returns
        -------
        (size, count) int64 array

        Examples
        --------
        >>> picked = Draws(1, "clusters").indices(0, 1000, 18)
        >>> picked.shape, int(picked.min()), int(picked.max())
        ((18, 1000), 0, 17)
        """
        sizes = np.broadcast_to(np.asarray(size if population is None else population), (size,))
        if size and sizes.min() < 1:
            raise DataError("nothing can be drawn from an empty population")
        # The largest uniform, 1 - 2**-53, times an integer rounds to less than that integer.
        return (self.uniform(first, count, size) * sizes[:, None]).astype(np.int64)

    def permutations(self, first: int, count: int, size: int, within: np.ndarray | None = None) -> np.ndarray:
        """Random orders of 0, ..., size - 1, as int64 (size, count).

        Parameters
        ----------
        first, count, size : int
        within : (size,) integer array, optional
            Group of each position: positions change places only with those of their own group.

        Returns
        -------
        (size, count) int64 array

        Examples
        --------
        >>> orders = Draws(1, "permutations").permutations(0, 3, 4, within=np.array([0, 1, 0, 1]))
        >>> np.sort(orders[[0, 2]], axis=0)[:, 0].tolist()
        [0, 2]
        """
        keys = self._rows(first, count, size, _uniform)
        order = np.argsort(keys, axis=1, kind="stable")
        if within is not None:
            groups = np.asarray(within)
            # Positions sorted by group take, in that order, the shuffled positions sorted by group.
            by_group = np.argsort(groups, kind="stable")
            shuffled = np.take_along_axis(order, np.argsort(groups[order], axis=1, kind="stable"), axis=1)
            order = np.empty_like(shuffled)
            order[:, by_group] = shuffled
        return np.ascontiguousarray(order.T)


def _normal(generator: np.random.Generator, out: np.ndarray) -> None:
    generator.standard_normal(out=out)


def _uniform(generator: np.random.Generator, out: np.ndarray) -> None:
    generator.random(out=out)


@dataclass(frozen=True, slots=True, eq=False)
class EffectsSource:
    """Where the random effects of one term come from.

    Attributes
    ----------
    Z : (n, q) array
        Values of the effects' columns.
    codes : (n,) integer array
        Level of each row, from 0 to ``num_levels - 1``.
    num_levels : int
    factor : (q, q) array
        Lower-triangular root of the covariance of one level's effects, in the units of the response.
    between : (num_levels, num_levels) array or None
        Root of the relationship matrix of the levels, where they are related.
    """

    Z: np.ndarray
    codes: np.ndarray
    num_levels: int
    factor: np.ndarray
    between: np.ndarray | None = None

    @property
    def num_effects(self) -> int:
        """Number of random effects of all levels."""
        return self.num_levels * len(self.factor)


@dataclass(frozen=True, slots=True, eq=False)
class ResidualSource:
    """Where the residuals of groups come from that are alike.

    Attributes
    ----------
    rows : (g, t) int array
        Rows of each group.
    factor : (t, t) array
        Lower-triangular root of the residuals' covariance in one group, relative to sigma squared.
    """

    rows: np.ndarray
    factor: np.ndarray

    def correlate(self, errors: np.ndarray) -> None:
        """Replace independent numbers (n, count) of these rows by correlated ones, element by element."""
        own = errors[self.rows]
        found = np.zeros_like(own)
        for j in range(len(self.factor)):
            found[:, j:] += self.factor[j:, j][None, :, None] * own[:, j][:, None, :]
        errors[self.rows] = found


@dataclass(frozen=True, slots=True, eq=False)
class ResponseSource:
    """A mixed model with all its parameters, from which responses can be drawn.

    ``y = mean + sum_k Z_k b_k + e``, with ``b_k[level] ~ N(0, factor_k factor_k')``, independent between
    levels unless these are related, and ``e_i ~ N(0, sigma**2 / w_i)``, correlated within groups if there is
    such a structure.

    Attributes
    ----------
    mean : (n,) array
        Fixed part, with offset.
    terms : tuple of EffectsSource
    sigma : float
        Residual standard deviation of a row of weight 1.
    weights : (n,) array or None
    residuals : tuple of ResidualSource
        Of all rows, where residuals are correlated or their variances differ.
    """

    mean: np.ndarray
    terms: tuple[EffectsSource, ...]
    sigma: float
    weights: np.ndarray | None = None
    residuals: tuple[ResidualSource, ...] = ()

    @property
    def residual_sd(self) -> np.ndarray:
        """Residual standard deviation of each row, (n,), but for what `residuals` have."""
        if self.weights is None:
            return np.full(len(self.mean), float(self.sigma))
        return self.sigma / np.sqrt(self.weights)


def effects_source(
    Z: np.ndarray,
    codes: np.ndarray,
    num_levels: int,
    cov: np.ndarray,
    relationship: np.ndarray | None = None,
) -> EffectsSource:
    """Source of effects with the covariance ``cov`` (q, q), positive semidefinite and in absolute units.

    With a relationship matrix A (num_levels, num_levels) the covariance of all effects is ``kron(A, cov)``.

    Examples
    --------
    >>> source = effects_source(np.ones((4, 1)), np.array([0, 0, 1, 1]), 2, np.array([[9.0]]))
    >>> source.factor
    array([[3.]])
    """
    factor = semidefinite_cholesky(np.asarray(cov, dtype=np.float64))
    between = None if relationship is None else semidefinite_root(relationship)[0]
    return EffectsSource(Z, codes, num_levels, factor, between)


def _related(between: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Effects of related levels from those of independent ones, (levels, q, count), element by element."""
    found = np.zeros_like(own)
    for column, value in zip(between.T, own, strict=True):
        found += column[:, None, None] * value
    return found


def random_effects(
    terms: Sequence[EffectsSource], draws: Draws, first: int, count: int
) -> tuple[np.ndarray, ...]:
    """Random effects of every term for replicates ``first``, ..., ``first + count - 1``.

    Parameters
    ----------
    terms : sequence of EffectsSource
    draws : Draws
        Of the stream `EFFECTS_STREAM`, unless other numbers are wanted.
    first, count : int

    Returns
    -------
    tuple of (q, num_levels, count) arrays

    Examples
    --------
    >>> source = effects_source(np.ones((4, 1)), np.array([0, 0, 1, 1]), 2, np.array([[9.0]]))
    >>> random_effects([source], Draws(1, EFFECTS_STREAM), 0, 10)[0].shape
    (1, 2, 10)
    """
    standard = draws.normal(first, count, sum(term.num_effects for term in terms))
    found = []
    start = 0
    for term in terms:
        q = len(term.factor)
        own = standard[start : start + term.num_effects].reshape(term.num_levels, q, count)
        start += term.num_effects
        if term.between is not None:
            own = _related(term.between, own)
        effects = np.zeros((q, term.num_levels, count))
        for i, j in zip(*np.nonzero(term.factor), strict=True):
            effects[i] += term.factor[i, j] * own[:, j]
        found.append(effects)
    return tuple(found)


def random_part(
    terms: Sequence[EffectsSource], num_rows: int, draws: Draws, first: int, count: int
) -> np.ndarray:
    """Sum of ``Z_k b_k`` over the terms, rows by replicates.

    Parameters
    ----------
    terms : sequence of EffectsSource
    num_rows : int
        Number of rows n, which no term tells when there is none.
    draws : Draws
    first, count : int

    Returns
    -------
    (n, count) array

    Examples
    --------
    >>> source = effects_source(np.ones((4, 1)), np.array([0, 0, 1, 1]), 2, np.array([[9.0]]))
    >>> part = random_part([source], 4, Draws(1), 0, 3)
    >>> bool((part[0] == part[1]).all() and (part[1] != part[2]).all())
    True
    """
    total = np.zeros((num_rows, count))
    for term, effects in zip(terms, random_effects(terms, draws, first, count), strict=True):
        for j, effect in enumerate(effects):
            column = term.Z[:, j]
            rows = effect[term.codes]
            if not (column == 1.0).all():
                rows *= column[:, None]
            total += rows
    return total


def simulate_responses(source: ResponseSource, seed: int, first: int, count: int) -> np.ndarray:
    """Responses of replicates ``first``, ..., ``first + count - 1`` of a seed.

    Random effects come from the stream `EFFECTS_STREAM` and residuals from `RESIDUAL_STREAM`, so that two
    models that differ only in their random effects have the same residuals.

    Parameters
    ----------
    source : ResponseSource
    seed, first, count : int

    Returns
    -------
    (n, count) array
        Column j is replicate ``first + j``, whatever the chunk it was drawn in.

    Raises
    ------
    DataError
        If the seed is not a non-negative integer.

    Examples
    --------
    >>> source = ResponseSource(np.arange(5.0), (), 0.1)
    >>> simulate_responses(source, 1, 0, 10).shape
    (5, 10)
    """
    effects, residuals = Draws(seed, EFFECTS_STREAM), Draws(seed, RESIDUAL_STREAM)
    num_rows = len(source.mean)
    sd = source.residual_sd[:, None]
    out = np.empty((num_rows, count))
    chunk = min(max(_CHUNK_NUMBERS // max(num_rows, 1), 1), _MAX_CHUNK)  # what fits in a core's cache
    for start in range(0, count, chunk):
        width = min(chunk, count - start)
        errors = residuals.normal(first + start, width, num_rows)
        for own in source.residuals:
            own.correlate(errors)
        errors *= sd
        errors += source.mean[:, None]
        if source.terms:
            errors += random_part(source.terms, num_rows, effects, first + start, width)
        out[:, start : start + width] = errors
    return out

"""Where the replicates of a bootstrap or of a test come from, and how they are fitted.

A replicate is either a further response on the design of the fit, or a design of its own: rows of the data,
possibly in new groups. Replicate i of a seed is the same whatever the block that it is made in, so blocks can
be shared out over devices and processes (:mod:`jaxmixed.schedule`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmixed import effects, many_estimates, schedule
from jaxmixed.correlated_refits import CorrelatedRefits
from jaxmixed.covariance import semidefinite_cholesky
from jaxmixed.crossproducts import Design, Reduction, reduce_rows, same_memory
from jaxmixed.diagnosis import TermLabel
from jaxmixed.draws import Draws, simulate_responses
from jaxmixed.errors import DataError, DesignError, printable
from jaxmixed.fitted import Fitted
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import Method
from jaxmixed.many_estimates import ManyEstimates, arrays_of
from jaxmixed.predict import fitted_values, linear_predictor
from jaxmixed.reductions import fit_reductions
from jaxmixed.refits import Refitter
from jaxmixed.replicates import response_source
from jaxmixed.residual_refusals import refuse_residual_structure
from jaxmixed.weighted_samples import refuse_weighted_sample

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates

LEVELS_STREAM, ROWS_STREAM = "resampled levels", "resampled rows"
"""Streams of random numbers: which levels of the groupings, and which rows, are drawn."""

MOST, MOST_LARGE = schedule.BLOCK, 128
"""Replicates in a block at most: of models that are fitted side by side, and of those that take longer, which
are reduced from their rows or have crossed groupings."""

_NO_RESIDUALS = 1e-12  # root mean square beside sigma


Responses = Callable[[int, int], np.ndarray]
"""Responses less any offset, (n, count), of replicates ``first .. last - 1``."""

Designs = Callable[[int, int], Sequence["Rows"]]
"""Data of replicates ``first .. last - 1``."""

Fits = Callable[[int, int], ManyEstimates]
"""Fits of replicates ``first .. last - 1``."""


def labels_of(estimates: Estimates) -> tuple[TermLabel, ...]:
    """What the terms of a fit are called."""
    return tuple(
        TermLabel(term.group, term.names, term.frame_index, term.num_levels) for term in estimates.terms
    )


def correlated_refits(fit: Fitted) -> CorrelatedRefits | None:
    """Further fits of a model with correlated residuals; None where these are independent and alike."""
    residual = fit.estimates.residual
    if residual is None:
        return None
    method: Method = "reml" if fit.estimates.method == "reml" else "ml"
    return CorrelatedRefits(fit.state, labels_of(fit.estimates), fit.frame.x_names, residual, method=method)


def refitter_of(fit: Fitted) -> Refitter | CorrelatedRefits:
    """Fits of further responses to the design of a fit.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> again = refitter_of(fit).fit(fit.frame.y[:, None])
    >>> bool(abs(again.llf[0] - fit.llf) < 1e-8)
    True
    """
    correlated = correlated_refits(fit)
    if correlated is not None:
        return correlated
    method: Method = "reml" if fit.estimates.method == "reml" else "ml"
    return Refitter(fit.state, labels_of(fit.estimates), fit.frame.x_names, method=method)


# Further responses


def parametric(fit: Fitted, seed: int) -> Responses:
    """Responses with new random effects and residuals at the estimates; those of `MixedResults.simulate`."""
    why = "each row would be drawn as one, with independent effects of its groups"
    refuse_weighted_sample(fit.estimates, "a simulation of responses", why)
    mean = linear_predictor(fit.frame.X, fit.estimates.beta, None)
    source = replace(response_source(fit.frame, fit.estimates), mean=mean)
    return lambda first, last: simulate_responses(source, seed, first, last - first)


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Predicted effects of a grouping's levels, reflated, to draw levels from.

    Attributes
    ----------
    Z : (n, q) array
    codes : (n,) int array
    modes : (q, m) array
    """

    Z: np.ndarray
    codes: np.ndarray
    modes: np.ndarray


def reflated(modes: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Centred effects (m, q), turned and stretched so that their mean products (divisor m) are `cov`.

    Predicted effects vary less than the effects that they predict; drawn as they are, they would give
    replicates with too small variances. Directions in which they do not vary at all stay so.

    References
    ----------
    Carpenter, Goldstein & Rasbash (2003), A novel bootstrap procedure for assessing the relationship between
    class size and achievement, Applied Statistics 52, 431-443.

    Examples
    --------
    >>> found = reflated(np.array([[1.0], [2.0], [3.0]]), np.array([[6.0]]))
    >>> found.round(6).ravel().tolist()
    [-3.0, 0.0, 3.0]
    """
    sd = np.sqrt(np.diagonal(cov))
    varies = sd > 0
    found = np.zeros(modes.shape)
    if not varies.any():
        return found
    unit = sd[varies]
    factor = semidefinite_cholesky(cov[np.ix_(varies, varies)] / np.outer(unit, unit))
    factor = factor[:, factor.any(axis=0)]
    centred = (modes - modes.mean(axis=0))[:, varies] / unit
    coordinates = np.linalg.lstsq(factor, centred.T, rcond=None)[0]  # those of the cov's own root
    triangle = semidefinite_cholesky(coordinates @ coordinates.T / len(modes))
    spherical = np.linalg.lstsq(triangle, coordinates, rcond=None)[0]
    found[:, varies] = (factor @ spherical).T * unit
    return found


def _pools(fit: Fitted) -> list[_Pool]:
    """Predicted effects by grouping, those of its terms side by side."""
    by_grouping: dict[int, list[tuple[Any, np.ndarray, np.ndarray]]] = {}
    modes = effects.random_effects(fit.state, fit.estimates) if fit.estimates.terms else ()
    known = sorted(
        zip(fit.estimates.terms, modes, strict=True), key=lambda pair: pair[0].frame_index
    )  # as written, so that draws do not depend on the order of the estimates
    for term, own in known:
        group = fit.frame.groups[term.frame_index]
        by_grouping.setdefault(id(group.codes), []).append((group, own, term.cov))
    pools = []
    for members in by_grouping.values():
        widths = np.cumsum([0, *(len(cov) for _, _, cov in members)])
        whole = np.zeros((widths[-1], widths[-1]))
        for (_, _, cov), first, last in zip(members, widths[:-1], widths[1:], strict=True):
            whole[first:last, first:last] = cov
        Z = np.column_stack([group.Z for group, _, _ in members])
        stacked = np.column_stack([own for _, own, _ in members])
        pools.append(_Pool(Z, members[0][0].codes, np.ascontiguousarray(reflated(stacked, whole).T)))
    return pools


OTHER_BOOTSTRAPS = "use kind='parametric', or kind='cluster' for whole groups"


def residual(fit: Fitted, seed: int) -> Responses:
    """Responses from predicted effects and residuals, reflated and drawn with replacement.

    Raises
    ------
    DesignError
        If there are no residuals to draw from.
    """
    frame, estimates = fit.frame, fit.estimates
    why = "residuals are drawn as if they were alike and independent"
    refuse_residual_structure(estimates, why, OTHER_BOOTSTRAPS)
    refuse_related((*fit.state.design.groupings, *fit.state.design.root))
    mean = linear_predictor(frame.X, estimates.beta, None)
    modes = effects.random_effects(fit.state, estimates) if estimates.terms else ()
    root = np.ones(len(mean)) if frame.weights is None else np.sqrt(frame.weights)
    errors = root * (frame.y - fitted_values(frame, estimates, modes))
    errors = errors - errors.mean()
    size = float(np.sqrt(np.mean(errors**2)))
    if not size > _NO_RESIDUALS * estimates.sigma:
        raise DesignError(
            "the fit reproduces every row, so there are no residuals to draw from; use kind='parametric'"
        )
    errors *= estimates.sigma / size
    pools = _pools(fit)
    levels = np.concatenate([np.zeros(0, int), *(np.full(p.modes.shape[1], p.modes.shape[1]) for p in pools)])
    of_levels, of_rows = Draws(seed, LEVELS_STREAM), Draws(seed, ROWS_STREAM)

    def responses(first: int, last: int) -> np.ndarray:
        count = last - first
        found = errors[of_rows.indices(first, count, len(mean))]
        found /= root[:, None]
        found += mean[:, None]
        drawn, start = of_levels.indices(first, count, len(levels), levels), 0
        for pool in pools:
            own = drawn[start : start + pool.modes.shape[1]]
            start += len(own)
            for column, effect in zip(pool.Z.T, pool.modes, strict=True):
                found += column[:, None] * effect[own][pool.codes]
        return found

    return responses


# Further designs


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Data of a replicate: rows of the fit's, and the groups that they are in.

    Attributes
    ----------
    rows : (n,) int array
    codes : tuple of (n,) int arrays
        For each factor (groups of correlated residuals, chain, root) the group of each row, ``0 .. m-1``, all
        present.
    """

    rows: np.ndarray
    codes: tuple[np.ndarray, ...]


def _numbered(codes: np.ndarray) -> np.ndarray:
    """Codes without gaps."""
    return np.unique(codes, return_inverse=True)[1]


def refuse_related(factors: Sequence[Grouping]) -> None:
    """Refuse to resample groups that a known relationship ties to each other.

    Raises
    ------
    DesignError
        Naming the grouping.
    """
    for factor in factors:
        if factor.relationship is not None:
            raise DesignError(
                f"the levels of {printable(factor.label)!r} are related (a known relationship matrix), so"
                " neither they, their effects nor their rows can be drawn independently or change places; use"
                " kind='parametric' for a bootstrap (for BCa intervals: another method), and"
                " fit.lrtest(smaller, simulate=999) for a test"
            )


def picked(design: Design, rows: np.ndarray) -> Rows:
    """Some rows, in their own groups; groups without rows are left out.

    Examples
    --------
    >>> g = Grouping(np.ones((4, 1)), np.array([0, 0, 1, 2]), 3, "g")
    >>> picked(Design(np.ones((4, 1)), (g,), (), None), np.array([3, 0, 3])).codes
    (array([1, 0, 1]),)
    """
    factors = (*_residual_groups(design), *design.groupings, *design.root)
    return Rows(rows, tuple(_numbered(factor.codes[rows]) for factor in factors))


def _residual_groups(design: Design) -> tuple[Grouping, ...]:
    """The groups of correlated residuals as a grouping without effects, if there are any."""
    own = design.residual
    if own is None:
        return ()
    return (Grouping(np.zeros((len(own.codes), 0)), own.codes, own.size, "correlated residuals"),)


class Clusters:
    """The coarsest groups of a nested design, to be drawn or left out whole.

    Parameters
    ----------
    design : Design

    Raises
    ------
    DesignError
        If there are no groups, or groupings are crossed, so that no group stands alone.
    """

    def __init__(self, design: Design) -> None:
        refuse_related((*design.groupings, *design.root))
        if design.root:
            crossed = " and ".join(
                repr(printable(factor.label)) for factor in (*design.groupings[-1:], *design.root)
            )
            raise DesignError(
                f"the groupings {crossed} are crossed, so no group can be drawn without parts of others; use"
                " kind='parametric' or 'residual' (for BCa intervals: another method)"
            )
        chain = (*_residual_groups(design), *design.groupings)
        if not chain or (not design.groupings and chain[-1].size == len(design.X)):
            raise DesignError("a model without random effects has no groups to draw; use kind='case'")
        self.label, self.size = chain[-1].label, chain[-1].size
        coarse = chain[-1].codes
        self.order = np.argsort(coarse, kind="stable")
        self.sizes = np.bincount(coarse, minlength=self.size)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.local, self.counts = [], []
        for factor in chain[:-1]:
            owner = np.empty(factor.size, dtype=np.int64)
            owner[factor.codes] = coarse
            counts = np.bincount(owner, minlength=self.size)
            within = np.empty(factor.size, dtype=np.int64)
            within[np.argsort(owner, kind="stable")] = np.arange(factor.size) - np.repeat(
                np.cumsum(counts) - counts, counts
            )
            self.local.append(within[factor.codes])
            self.counts.append(counts)

    def take(self, groups: np.ndarray) -> Rows:
        """Rows of the given groups, each of which becomes a group of its own, repeated or not."""
        sizes = self.sizes[groups]
        copy = np.repeat(np.arange(len(groups)), sizes)
        within = np.arange(len(copy)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = self.order[np.repeat(self.starts[groups], sizes) + within]
        codes = []
        for local, counts in zip(self.local, self.counts, strict=True):
            own = counts[groups]
            codes.append((np.cumsum(own) - own)[copy] + local[rows])
        return Rows(rows, (*codes, copy))


def cluster(fit: Fitted, seed: int) -> Designs:
    """Groups of the coarsest grouping drawn with replacement, with all their rows."""
    clusters, draws = Clusters(fit.state.design), Draws(seed, LEVELS_STREAM)

    def designs(first: int, last: int) -> list[Rows]:
        drawn = draws.indices(first, last - first, clusters.size)
        return [clusters.take(groups) for groups in drawn.T]

    return designs


def case(fit: Fitted, seed: int) -> Designs:
    """Rows drawn with replacement, each with its groups."""
    design, draws = fit.state.design, Draws(seed, ROWS_STREAM)
    why = "rows are drawn as if no two could be alike in group and time"
    refuse_residual_structure(fit.estimates, why, OTHER_BOOTSTRAPS)
    refuse_related((*design.groupings, *design.root))

    def designs(first: int, last: int) -> list[Rows]:
        drawn = draws.indices(first, last - first, len(design.X))
        return [picked(design, np.ascontiguousarray(rows)) for rows in drawn.T]

    return designs


def leave_one_out(fit: Fitted) -> tuple[int, Designs]:
    """How many parts the data have, and the data without each: coarsest groups, or rows where there are none.

    Raises
    ------
    DesignError
        If groupings are crossed.
    """
    design = fit.state.design
    if not (design.groupings or design.root or design.residual):
        everyone = np.arange(len(design.X))
        return len(everyone), lambda first, last: [
            picked(design, np.delete(everyone, row)) for row in range(first, last)
        ]
    clusters = Clusters(design)
    everyone = np.arange(clusters.size)
    return clusters.size, lambda first, last: [
        clusters.take(np.delete(everyone, group)) for group in range(first, last)
    ]


def reduced(fit: Fitted, y: np.ndarray, own: Rows) -> Reduction | None:
    """Sufficient statistics of a replicate's rows; `y` is the response of the fit less any offset.

    None if the fixed effects reproduce the rows.
    """
    design = fit.state.design
    X = design.X[own.rows]

    def regrouped(factor: Grouping, codes: np.ndarray) -> Grouping:
        Z = X if same_memory(factor.Z, design.X) else factor.Z[own.rows]
        return Grouping(Z, codes, int(codes.max()) + 1, factor.label)

    residual, codes_of = None, list(own.codes)
    if design.residual is not None:
        codes = codes_of.pop(0)
        residual = replace(
            design.residual.take(own.rows), codes=codes, size=int(codes.max()) + 1 if len(codes) else 0
        )
    factors = [
        regrouped(factor, codes)
        for factor, codes in zip((*design.groupings, *design.root), codes_of, strict=True)
    ]
    depth = len(design.groupings)
    weights = None if design.weights is None else design.weights[own.rows]
    terms = fit.state.stats.terms
    try:
        return reduce_rows(y[own.rows], X, factors[:depth], terms, weights, factors[depth:], residual)
    except DesignError:
        return None


# Fits


def by_responses(fit: Fitted, responses: Responses) -> Fits:
    """Fits of replicates that are further responses; they start from their own moments.

    From there they take five evaluations (sleepstudy), from the estimates of the fit eight.
    """
    refitter = refitter_of(fit)
    return lambda first, last: refitter.fit(responses(first, last))


def by_designs(fit: Fitted, designs: Designs) -> Fits:
    """Fits of replicates that are designs of their own."""
    estimates, x_names = fit.estimates, fit.frame.x_names
    y, labels = fit.frame.y_less_offset, labels_of(estimates)
    covariances = tuple(term.covariance for term in estimates.terms)
    method: Method = "reml" if estimates.method == "reml" else "ml"
    correlated = correlated_refits(fit)

    def fits(first: int, last: int) -> ManyEstimates:
        reductions = [reduced(fit, y, own) for own in designs(first, last)]
        if correlated is not None:
            return correlated.fit_reductions(reductions)
        return fit_reductions(reductions, labels, x_names, covariances, method=method)

    return fits


def fit_all(
    fits: Fits,
    count: int,
    fit: Fitted,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
    most: int = MOST,
) -> tuple[ManyEstimates, np.ndarray]:
    """Fit numbered replicates in blocks, over the devices.

    Parameters
    ----------
    fits : callable
        From `by_responses` or `by_designs`.
    count : int
    fit : Fitted
    devices, mesh, progress
        As for :func:`jaxmixed.schedule.assemble` and :func:`jaxmixed.schedule.run`.
    most : int
        Replicates in a block, at most.

    Returns
    -------
    ManyEstimates, (m,) int array
        Of the replicates that were done before any interruption, and their numbers.
    """
    kept: list[ManyEstimates] = []

    def work(first: int, last: int) -> dict[str, np.ndarray]:
        found = fits(first, last)
        kept[:] = [found]  # what is the same for all
        arrays = arrays_of(found)
        if any(frame.ndim == 3 for frame in found.frames):
            arrays.update((f"frame {t}", frame) for t, frame in enumerate(found.frames))
        return arrays

    arrays, numbers = run_blocks(work, count, fit, devices, mesh, progress, most)
    template = kept[0]
    frames = tuple(arrays.pop(f"frame {t}", frame) for t, frame in enumerate(template.frames))
    return replace(template, **dict[str, Any](arrays), frames=frames), numbers


def run_blocks(
    work: Callable[[int, int], dict[str, np.ndarray]],
    count: int,
    fit: Fitted,
    devices: Any,
    mesh: Any,
    progress: bool | None,
    most: int = MOST,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Arrays with a row for each replicate that was done, and the replicates' numbers.

    Raises
    ------
    KeyboardInterrupt
        If the user interrupts before anything is done.
    """
    crew = schedule.assemble(devices, mesh)
    most = MOST_LARGE if fit.state.stats.root is not None else most
    bytes_each = max(32 * len(fit.frame.y), schedule.BLOCK_MEMORY / most)
    blocks = schedule.bounds(count, bytes_each, crew)
    if crew.is_shared and len(blocks) < crew.total:  # too little to share: each process does everything
        crew = schedule.Crew(crew.devices, tuple(range(len(crew.devices))), len(crew.devices))
    done, parts = [], []
    for number, part in schedule.run(work, blocks, crew, label="replicates", progress=progress):
        done.append(np.arange(*blocks[number]))
        parts.append(part)
    if not parts:
        raise KeyboardInterrupt
    numbers = np.concatenate(done)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return schedule.gather(crew, arrays, numbers)


def check_count(n: Any, what: str = "n") -> int:
    """A number of replicates as an integer.

    Raises
    ------
    DataError
        If it is not a positive integer.

    Examples
    --------
    >>> check_count(1000)
    1000
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"{what} is {n!r}; give the number of replicates, a positive integer")
    return int(n)


def reason_counts(reason: np.ndarray) -> dict[str, int]:
    """How many models failed, by the reason in words; the most frequent first.

    Examples
    --------
    >>> reason_counts(np.array([0, many_estimates.CONSTANT, 0], dtype=np.uint8))
    {'the response is constant': 1}
    """
    codes, counts = np.unique(reason[reason != many_estimates.OK], return_counts=True)
    return {many_estimates.REASONS[int(codes[i])]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}

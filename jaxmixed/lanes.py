"""Many models side by side: the optimiser vectorised over lanes, which are refilled as models finish.

Under a plain ``vmap`` the slowest model holds the whole batch. Here a compiled program advances a fixed
number of *lanes* until most have finished; their models are taken out, the next ones put in, and the others
go on where they were. What a model costs is then what it alone needs, one program serves any number of
models, and a model's path does not depend on its neighbours.

The model axis is the **last** of every array that enters the program: the kernels then work on contiguous
memory.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxmixed import optim
from jaxmixed.likelihood import Method
from jaxmixed.optim import CONVERGED, RUNNING, Evaluation, State
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.responses import Responses, attach
from jaxmixed.schedule import check_interrupt
from jaxmixed.search import Optimum, evaluation, even_parameters, retraction
from jaxmixed.statistics import SufficientStatistics

LANES = (16, 64, 256, 512)
"""Numbers of lanes that programs are compiled for: the smallest that holds the models, within the cache."""

LANE_CACHE = 2**22
"""Bytes that more than the fewest lanes may take, roughly. Measured: half as many fits a second, or fewer,
where what an iteration makes does not stay in a processor's caches."""

LANE_MEMORY = 2**28
"""Bytes that the fewest lanes may take, roughly; beyond, models are fitted one by one."""

REFILL = 4
"""Lanes are refilled when no more than one in so many is still running."""


def _shapes(k: int, r: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the numbers in a state (:class:`jaxmixed.optim.State`), in the order of its leaves."""
    at = ((), (k,), (k, k), (), (r, r), (k,))
    return ((k,), *at, (k,), (), (), ())


def _unpacked(numbers: Any, counts: Any, k: int, r: int) -> State:
    """State of lanes from one array of its numbers (F, L), and evaluations and status (2, L).

    The host handles lanes as columns of these two: the fewer arrays, the less it does between two programs.
    """
    parts, start = [], 0
    for shape in _shapes(k, r):
        stop = start + math.prod(shape)
        parts.append(numbers[start:stop].reshape(*shape, numbers.shape[1]))
        start = stop
    theta, value, gradient, hessian, log_rss, schur, tangents, *rest = parts
    return State(theta, Evaluation(value, gradient, hessian, (log_rss, schur), tangents), *rest, *counts)


def _packed(state: State) -> tuple[Array, Array]:
    *numbers, evaluations, status = jax.tree.leaves(state)
    rows = [leaf.reshape(-1, leaf.shape[-1]) for leaf in numbers]
    return jnp.concatenate(rows), jnp.stack([evaluations, status])


def _advance(
    numbers: Array,
    counts: Array,
    own: Any,
    shared: SufficientStatistics | None,
    max_evaluations: Array,
    enough: Array,
    *,
    method: Method,
) -> tuple[Array, ...]:
    """Advance every running lane until no more than `enough` are left running."""
    design = own if shared is None else shared

    def one(state: State, own: Any) -> State:
        stats = own if shared is None else attach(shared, own)
        new = optim.advance(
            partial(evaluation, stats=stats, method=method),
            state,
            max_evaluations=max_evaluations,
            even=even_parameters(stats.structures),
            retract=retraction(stats.structures),
        )
        running = state.status == RUNNING
        return jax.tree.map(lambda moved, kept: jnp.where(running, moved, kept), new, state)

    all_lanes = jax.vmap(one, in_axes=-1, out_axes=-1)
    begun = _unpacked(numbers, counts, design.num_params, design.total.shape[0])
    state = jax.lax.while_loop(
        lambda s: jnp.sum(s.status == RUNNING) > enough, lambda s: all_lanes(s, own), begun
    )
    return _packed(state)


PROGRAM = Program(_advance)
"""The compiled lanes, one executable per structure, size and number of lanes."""

FUSED_PROGRAM = Program(_advance, options={})
"""The same from XLA's usual code generator. Measured: up to twice as fast where second derivatives are few or
in closed form (a root), up to twice as slow with six parameters."""

FEW_PARAMETERS = 3
"""Up to this many parameters, or with a root, the lanes run the latter."""


def _fresh(starts: np.ndarray, r: int) -> np.ndarray:
    """Numbers of lanes at their starts, (m, k): nothing evaluated yet (:func:`jaxmixed.optim.begin`)."""
    m, k = starts.shape
    numbers = np.zeros((sum(math.prod(shape) for shape in _shapes(k, r)), m))
    state: Any = _unpacked(numbers, np.zeros((2, m)), k, r)  # views
    state.theta[...] = state.trial[...] = starts.T
    state.at.value[...] = np.inf
    return numbers


def lane_count(models: int, stats: SufficientStatistics) -> int:
    """Lanes to compile for, given how many models there are and what one of them needs.

    Parameters
    ----------
    models : int
    stats : SufficientStatistics
        Of one model, padded.

    Returns
    -------
    int
    """
    # Positions, which are integers, are the same for all lanes; a tangent of every number goes with it.
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(stats) if np.asarray(leaf).dtype.kind == "f")
    bytes_each = 8 * (stats.num_params + 2) * (size + 4 * stats.total.size)
    if LANES[0] * bytes_each > LANE_MEMORY or stats.num_params > optim.NEWTON_LIMIT:
        return 1
    fitting = [lanes for lanes in LANES if lanes * bytes_each <= LANE_CACHE] or [LANES[0]]
    return next((lanes for lanes in fitting if lanes >= models), fitting[-1])


class LaneRunner:
    """Runs of the optimiser for many models of one shape (:class:`jaxmixed.search.Runner`).

    Parameters
    ----------
    own : Responses or SufficientStatistics
        What differs between the models, along a last axis; padded, on the host.
    shared : SufficientStatistics or None
        What they share, padded; None where `own` is everything.
    example : SufficientStatistics
        Of one model, for its shapes.
    method : {"reml", "ml"}
    max_evaluations : int
        Limit of one run of one model.

    Attributes
    ----------
    evaluations : (m,) int array
        Evaluations of each model so far.
    """

    def __init__(
        self,
        own: Responses | SufficientStatistics,
        shared: SufficientStatistics | None,
        example: SufficientStatistics,
        method: Method,
        max_evaluations: int,
    ) -> None:
        self.own, self.shared, self.method = own, shared, method
        self.structures, self.r = example.structures, example.total.shape[0]
        fused = example.root is not None or example.num_params <= FEW_PARAMETERS
        self.program = FUSED_PROGRAM if fused else PROGRAM
        self.max_evaluations = np.asarray(max_evaluations)
        models = jax.tree.leaves(own)[0].shape[-1]
        self.lanes = lane_count(models, example)
        self.evaluations = np.zeros(models, dtype=np.int64)

    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        """Fill the lanes, advance them, take out what has finished, and so on."""
        tasks, k = starts.shape
        # Empty lanes hold the first model at rest, which is harmless.
        example, rest = (starts[:1], models[:1]) if tasks else (np.zeros((1, k)), np.zeros(1, np.int64))
        numbers = np.repeat(_fresh(example, self.r), self.lanes, axis=1)
        counts = np.full((2, self.lanes), CONVERGED)
        own = _columns(self.own, np.repeat(rest, self.lanes)) if tasks else None
        found, ends = np.empty((len(numbers), tasks)), np.empty((2, tasks), dtype=np.int64)
        held, entered = np.full(self.lanes, -1), 0  # the task in each lane
        while entered < tasks or (held >= 0).any():
            slots = np.flatnonzero(held < 0)[: tasks - entered]
            entering = np.arange(entered, entered + len(slots))
            numbers[:, slots], counts[:, slots] = _fresh(starts[entering], self.r), [[0], [RUNNING]]
            _insert(own, slots, _columns(self.own, models[entering]))
            held[slots], entered = entering, entered + len(slots)
            check_interrupt()
            enough = self.lanes // REFILL if entered < tasks else 0
            numbers, counts = self._advance(numbers, counts, own, enough)
            done = np.flatnonzero((held >= 0) & (counts[1] != RUNNING))
            found[:, held[done]], ends[:, held[done]] = numbers[:, done], counts[:, done]
            held[done] = -1
        np.add.at(self.evaluations, models, ends[0])
        return _optimum(found, ends, k, self.r)

    def _advance(self, numbers: np.ndarray, counts: np.ndarray, own: Any, enough: int) -> list[np.ndarray]:
        with double_precision():
            found = self.program(
                numbers,
                counts,
                own,
                self.shared,
                self.max_evaluations,
                np.asarray(enough),
                method=self.method,
            )
            return [np.array(values) for values in to_host(found)]  # copies that can be written on


def _columns(own: Any, models: np.ndarray) -> Any:
    """What some of the models have of their own."""
    return jax.tree.map(lambda values: np.take(values, models, axis=-1), own)


def _insert(own: Any, slots: np.ndarray, entering: Any) -> None:
    for values, new in zip(jax.tree.leaves(own), jax.tree.leaves(entering), strict=True):
        values[..., slots] = new


def _optimum(numbers: np.ndarray, counts: np.ndarray, k: int, r: int) -> Optimum:
    """Answers of all tasks, the model axis first."""
    state: Any = _unpacked(numbers, counts, k, r)

    def rows(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(values, -1, 0))

    at = state.at
    return Optimum(
        x=rows(state.theta),
        value=rows(at.value),
        gradient=rows(at.gradient),
        hessian=rows(at.hessian),
        schur=rows(at.aux[1]),
        log_rss_gradient=rows(at.aux_tangents),
        evaluations=rows(state.evaluations),
        status=rows(state.status),
    )

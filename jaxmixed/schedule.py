"""Who fits which models: blocks of models shared out over devices, threads and processes.

Models are independent, so scaling out is a matter of handing out blocks. A model's numbers do not depend on
its neighbours, and random numbers belong to models, not to workers: the result does not depend on how many
workers there are. On a CPU a worker is a thread that runs compiled programs; with several devices (or a mesh
of them) every device has one; with several processes (:mod:`jax.distributed`), each of which makes the same
call, every process does the blocks of its own devices, and :func:`gather` gives all results to all.
"""

import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmixed.errors import DataError, InterruptedWarning, JaxMixedError, user_level
from jaxmixed.precision import double_precision

Result = TypeVar("Result")

BLOCK = 4096
"""Models in a block, at most."""

SMALLEST_BLOCK = 256
"""Models in a block that is not made smaller only to have more of them."""

BLOCK_MEMORY = 2**27
"""Bytes of responses in a block, at most."""

_ROUNDS = 2  # blocks for each worker, when there are models enough; each fills and empties its lanes
_SIGNAL_INTERVAL = 0.2  # seconds between looks at the keyboard, where waiting does not hear it
_STOPS: ContextVar[tuple[threading.Event, ...]] = ContextVar("stops", default=())


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of this process, and their numbers among those of all processes.

    Attributes
    ----------
    devices : tuple of jax.Device or None
        One per worker; None is the default device.
    numbers : tuple of int
    total : int
    """

    devices: tuple[Any, ...]
    numbers: tuple[int, ...]
    total: int

    @property
    def is_shared(self) -> bool:
        """Whether other processes work, too."""
        return self.total > len(self.numbers)


class Abandoned(BaseException):
    """The work of which this thread did a part is no longer wanted; no handler of errors should catch it."""


def check_interrupt() -> None:
    """Leave a worker's thread when its work is no longer wanted; called between compiled programs."""
    if any(stop.is_set() for stop in _STOPS.get()):
        raise Abandoned


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def assemble(devices: Any = None, mesh: Any = None) -> Crew:
    """Workers that the user asks for.

    Parameters
    ----------
    devices : int, sequence of jax.Device, or None
        How many workers, or which devices. By default every accelerator; on a CPU its devices, or as many
        threads as there are cores.
    mesh : jax.sharding.Mesh, optional
        All devices of a mesh, which may span several processes.

    Returns
    -------
    Crew

    Raises
    ------
    DataError
        If there are no such devices.
    """
    if mesh is not None:
        if devices is not None:
            raise DataError("give devices= or mesh=, not both")
        return _of_mesh(mesh)
    local = _usual_devices()
    threads = local[0].platform == "cpu" and len(local) == 1
    if devices is None:
        return _local(local * available_cores() if threads else local)
    if isinstance(devices, bool) or not isinstance(devices, int | Sequence) or isinstance(devices, str):
        raise DataError(f"devices={devices!r} must be a positive integer or a sequence of jax devices")
    if not isinstance(devices, int):
        return _local(_checked(devices))
    if devices < 1:
        raise DataError(f"devices={devices} must be at least 1")
    if devices > len(local) and not threads:
        raise DataError(f"devices={devices}, but jax sees {len(local)} of them ({local[0].platform})")
    return _local(local * devices if threads else local[:devices])


def _usual_devices() -> list[Any]:
    """Those of the process, or the one that the user has made the default (in this thread, perhaps)."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        return jax.local_devices()
    return jax.local_devices(backend=chosen) if isinstance(chosen, str) else [chosen]


def _checked(devices: Sequence[Any]) -> list[Any]:
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise DataError(f"devices={list(devices)!r} must be jax devices, as jax.devices() lists them")
    return list(devices)


def _local(devices: Sequence[Any]) -> Crew:
    return Crew(tuple(devices), tuple(range(len(devices))), len(devices))


def _of_mesh(mesh: Any) -> Crew:
    if not isinstance(mesh, jax.sharding.Mesh):
        raise DataError(f"mesh={mesh!r} must be a jax.sharding.Mesh")
    everyone = mesh.devices.ravel().tolist()
    here = jax.process_index()
    own = [number for number, device in enumerate(everyone) if device.process_index == here]
    if not own:
        raise DataError("the mesh has no device of this process")
    processes = {device.process_index for device in everyone}
    if 1 < len(processes) < jax.process_count():
        raise DataError(
            f"the mesh spans {len(processes)} of {jax.process_count()} processes: it must have devices of "
            "one process, or of all, which exchange their results"
        )
    return Crew(tuple(everyone[number] for number in own), tuple(own), len(everyone))


def bounds(models: int, bytes_each: float, crew: Crew | None = None) -> list[tuple[int, int]]:
    """First and last model of every block.

    Parameters
    ----------
    models : int
    bytes_each : float
        Size of one model's response.
    crew : Crew, optional
        Makes the blocks small enough, and of such a number, that all workers have their share.

    Returns
    -------
    list of (first, last)

    Examples
    --------
    >>> bounds(10, 8.0)
    [(0, 10)]
    >>> bounds(4, BLOCK_MEMORY / 3)
    [(0, 2), (2, 4)]
    """
    largest = int(np.clip(BLOCK_MEMORY / max(bytes_each, 1.0), 1, BLOCK))
    count, workers = math.ceil(models / largest), 1 if crew is None else crew.total
    if workers > 1:
        count = max(count, min(_ROUNDS * workers, models // SMALLEST_BLOCK))
    if count > 1:
        count = min(models, workers * math.ceil(count / workers))
    edges = [models * number // max(count, 1) for number in range(count + 1)]
    return list(pairwise(edges))


def run(
    work: Callable[[int, int], Result],
    blocks: Sequence[tuple[int, int]],
    crew: Crew,
    *,
    label: str = "models",
    progress: bool | None = None,
) -> Iterator[tuple[int, Result]]:
    """Do the blocks that fall to this process, and yield their results in order.

    No more blocks are under way than there are workers, and one more result is held for each: memory does not
    grow with the number of blocks. On an interrupt (Ctrl-C) the blocks that are finished are kept, those
    under way are abandoned between two compiled programs, and a warning says how many models there are; a
    second one is an ordinary KeyboardInterrupt. An error in a block is raised when its turn comes, in every
    process.

    Parameters
    ----------
    work : callable
        ``work(first, last)`` for models ``first .. last - 1``; called in threads, with the worker's device as
        JAX's default.
    blocks : sequence of (first, last)
    crew : Crew
    label : str
        What the progress bar counts.
    progress : bool, optional
        Show a progress bar on the error stream; by default when that is a terminal.

    Yields
    ------
    int, result
        Number of the block, and what `work` made of it.

    Warns
    -----
    InterruptedWarning

    Examples
    --------
    >>> crew = assemble(devices=2)
    >>> [result for _, result in run(lambda first, last: last - first, [(0, 3), (3, 7)], crew)]
    [3, 4]
    """
    own = [number for number in range(len(blocks)) if number % crew.total in crew.numbers]
    sizes = {number: blocks[number][1] - blocks[number][0] for number in own}
    done = 0
    with _hearing() as interrupted, _bar(sum(sizes.values()), label, progress) as bar, _together(crew):
        for number, result in _in_threads(work, blocks, own, crew, interrupted):
            done += sizes[number]
            bar.update(sizes[number])
            yield number, result
            del result  # the consumer alone decides how long it lives
    if interrupted.is_set():
        warnings.warn(
            f"interrupted: {done:,} of {sum(sizes.values()):,} models were finished and are kept.",
            InterruptedWarning,
            stacklevel=user_level(),
        )


def _in_threads(
    work: Callable[[int, int], Result],
    blocks: Sequence[tuple[int, int]],
    own: list[int],
    crew: Crew,
    interrupted: threading.Event,
) -> Iterator[tuple[int, Result]]:
    idle, lock, unwanted = list(crew.devices), threading.Lock(), threading.Event()
    stops = (*_STOPS.get(), interrupted, unwanted)

    def on_a_device(number: int) -> Result:
        with lock:
            device = idle.pop()
        _STOPS.set(stops)
        try:
            check_interrupt()
            with jax.default_device(device):
                return work(*blocks[number])
        finally:
            with lock:
                idle.append(device)

    waiting, running = own[::-1], dict[int, Future[Result]]()
    pool = ThreadPoolExecutor(len(crew.devices), thread_name_prefix="jaxmixed")
    patient = True
    try:
        for number in own:
            while waiting and len(running) < 2 * len(crew.devices) and not interrupted.is_set():
                following = waiting.pop()
                # The caller's context (NumPy's treatment of floating-point errors, say) holds in the thread.
                running[following] = pool.submit(copy_context().run, on_a_device, following)
            _await(running.get(number), interrupted)
            if interrupted.is_set():
                break
            yield number, running.pop(number).result()
        for number, future in running.items():  # there are any only after an interrupt
            future.cancel()
            _await(future)
            if not future.cancelled() and future.exception() is None:
                yield number, future.result()
    except KeyboardInterrupt:
        patient = False
        raise
    finally:  # also when no more results are wanted
        unwanted.set()
        pool.shutdown(wait=patient, cancel_futures=True)


def _await(future: "Future[Any] | None", interrupted: threading.Event | None = None) -> None:
    """Wait for a result, or for an interrupt."""
    try:
        while future is not None and not future.done() and not (interrupted and interrupted.is_set()):
            wait([future], timeout=_SIGNAL_INTERVAL)  # without end, it would not hear the keyboard everywhere
    except KeyboardInterrupt:  # from another handler of signals than ours
        if interrupted is None or interrupted.is_set():
            raise
        interrupted.set()


@contextmanager
def _hearing() -> Iterator[threading.Event]:
    """Event that the first Ctrl-C sets, instead of raising KeyboardInterrupt wherever the program stands.

    Where that is not ours to arrange (in another thread, or when the user has a handler of the signal) the
    event is set if the exception finds the program waiting for results.
    """
    interrupted = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield interrupted
        return

    def on_first(number: int, frame: Any) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, on_first)
    try:
        yield interrupted
    finally:
        if signal.getsignal(signal.SIGINT) is on_first:
            signal.signal(signal.SIGINT, usual)


@contextmanager
def _bar(total: int, label: str, progress: bool | None) -> Iterator[Any]:
    """Progress bar, which appears after a second of work; or one that does nothing."""
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty() and jax.process_index() == 0
    if not progress:
        yield _NoBar()
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=f" {label}", delay=1.0, leave=False, dynamic_ncols=True) as bar:
        yield bar


class _NoBar:
    def update(self, n: int) -> None:
        """Show nothing."""


@contextmanager
def _together(crew: Crew) -> Iterator[None]:
    """Let a failure in one process end the work in all, which would wait for its results in vain."""
    if not crew.is_shared:
        yield
        return
    try:
        yield
    except (Exception, GeneratorExit):
        _in_any_process(True)
        raise
    if _in_any_process(False):
        raise JaxMixedError("another process of the mesh has failed, and reports why")


def _in_any_process(condition: bool) -> bool:
    return bool(np.any(multihost_utils.process_allgather(np.asarray(condition))))


def gather(
    crew: Crew, arrays: dict[str, np.ndarray], rows: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What every process has done, in order, given to all.

    Parameters
    ----------
    crew : Crew
    arrays : dict of (done, ...) arrays
        This process's rows.
    rows : (done,) int array
        Which models they are.

    Returns
    -------
    arrays : dict of (all done, ...) arrays
    rows : (all done,) int array
        Ascending; fewer than there are models after an interrupt.

    Examples
    --------
    >>> arrays, rows = gather(assemble(), {"twice": np.array([6, 2])}, np.array([3, 1]))
    >>> arrays["twice"].tolist(), rows.tolist()
    ([2, 6], [1, 3])
    """
    rows = np.asarray(rows, dtype=np.int64)
    if crew.is_shared:
        with double_precision():
            counts = np.asarray(multihost_utils.process_allgather(np.asarray(len(rows)))).ravel()
            arrays = {name: _from_all(values, counts) for name, values in arrays.items()}
            rows = _from_all(rows, counts)
    order = np.argsort(rows, kind="stable")
    return {name: values[order] for name, values in arrays.items()}, rows[order]


def _from_all(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of one process after the other's; all send equally many, of which `counts` mean something."""
    sent = np.zeros((counts.max(), *values.shape[1:]), values.dtype)
    if not sent.size:
        return np.zeros((counts.sum(), *values.shape[1:]), values.dtype)
    sent[: len(values)] = values
    received = np.asarray(multihost_utils.process_allgather(sent))
    return np.concatenate([part[:count] for part, count in zip(received, counts, strict=True)])

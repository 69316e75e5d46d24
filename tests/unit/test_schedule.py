"""Blocks of models shared out: who does what, in which order, what is kept, and what ends it."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing

import jax
import numpy as np
import pytest

from jaxmixed import schedule
from jaxmixed.errors import DataError, InterruptedWarning, user_level
from jaxmixed.precision import double_precision
from jaxmixed.programs import Program
from jaxmixed.schedule import Abandoned, Crew, assemble, bounds, check_interrupt, gather, run
from tests.support.processes import on_a_terminal, run_python

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and terminals of POSIX")

PATIENCE = 30.0
"""Seconds after which a test that waits for another thread gives up; all is over in a few hundredths."""


@pytest.fixture(autouse=True)
def _no_worker_outlives_its_run() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jaxmixed")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def ones(count: int) -> list[tuple[int, int]]:
    """Blocks of one model each."""
    return [(first, first + 1) for first in range(count)]


def until_abandoned(*_: object) -> None:
    """Work that goes on until somebody stops it, as the lanes do between two programs."""
    for _ in range(int(PATIENCE / 0.005)):
        check_interrupt()
        threading.Event().wait(0.005)
    pytest.fail("nobody stopped the work")


# Crews


def test_on_a_processor_workers_are_threads() -> None:
    cpu = jax.local_devices()[0]
    assert assemble(devices=3) == Crew((cpu, cpu, cpu), (0, 1, 2), 3)
    assert len(assemble().devices) == schedule.available_cores()
    assert not assemble(devices=3).is_shared


def test_chosen_devices_and_a_mesh_have_a_worker_each() -> None:
    cpu = jax.local_devices()[0]
    assert assemble(devices=[cpu, cpu]) == Crew((cpu, cpu), (0, 1), 2)
    assert assemble(mesh=jax.sharding.Mesh(np.array([cpu]), ("models",))) == Crew((cpu,), (0,), 1)


def test_the_users_default_device_is_the_default() -> None:
    cpu = jax.local_devices()[0]
    for chosen in (cpu, "cpu"):
        with jax.default_device(chosen):
            assert set(assemble().devices) == {cpu}


@pytest.mark.parametrize("devices", [0, -1, True, 1.5, "cpu", [], ["cpu"], [0], {}])
def test_a_crew_of_nothing_is_refused(devices: object) -> None:
    with pytest.raises(DataError, match="devices="):
        assemble(devices=devices)


def test_a_crew_has_one_source() -> None:
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("models",))
    with pytest.raises(DataError, match="not both"):
        assemble(devices=1, mesh=mesh)
    with pytest.raises(DataError, match="Mesh"):
        assemble(mesh=[1, 2])


# Blocks


@pytest.mark.parametrize("models", [0, 1, 2, 255, 256, 1000, 4097, 10_000, 123_457])
@pytest.mark.parametrize("workers", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("bytes_each", [0.0, 1440.0, 1e6, 1e12])
def test_blocks_hold_every_model_once_and_fit_into_memory(
    models: int, workers: int | None, bytes_each: float
) -> None:
    crew = None if workers is None else assemble(devices=workers)
    blocks = bounds(min(models, 5000) if bytes_each > 1e9 else models, bytes_each, crew)
    held = [model for first, last in blocks for model in range(first, last)]
    assert held == list(range(len(held)))
    assert len(held) == (min(models, 5000) if bytes_each > 1e9 else models)
    sizes = [last - first for first, last in blocks]
    assert all(size == 1 or size * bytes_each <= schedule.BLOCK_MEMORY for size in sizes)
    assert max(sizes, default=0) <= schedule.BLOCK


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("models", [600, 1000, 5000, 10_000, 100_000])
def test_every_worker_has_its_share(models: int, workers: int) -> None:
    blocks = bounds(models, 1440.0, assemble(devices=workers))
    shares = [sum(last - first for first, last in blocks[own::workers]) for own in range(workers)]
    if len(blocks) > 1:
        assert max(shares) <= 1.02 * min(shares)


def test_few_models_stay_together() -> None:
    assert bounds(200, 1440.0, assemble(devices=8)) == [(0, 200)]


# Work


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_each_once(workers: int) -> None:
    def work(first: int, last: int) -> range:
        threading.Event().wait(0.002 * ((7 * first) % 5))  # the later are often the earlier
        return range(first, last)

    blocks = [(first, first + 3) for first in range(0, 90, 3)]
    found = list(run(work, blocks, assemble(devices=workers)))
    assert [number for number, _ in found] == list(range(30))
    assert [model for _, models in found for model in models] == list(range(90))


def test_nothing_to_do_is_done() -> None:
    assert list(run(until_abandoned, [], assemble(devices=2))) == []


def test_workers_work_at_the_same_time() -> None:
    barrier = threading.Barrier(3)  # passed only by three at once
    found = list(run(lambda *_: barrier.wait(PATIENCE), ones(6), assemble(devices=3)))
    assert sorted(place for _, place in found) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("workers", [1, 3])
def test_few_blocks_are_ahead_of_the_one_that_is_read(workers: int) -> None:
    begun = itertools.count()
    started = [0]

    def work(first: int, last: int) -> int:
        started[0] = next(begun) + 1
        return first

    for number, _ in run(work, ones(40), assemble(devices=workers)):
        threading.Event().wait(0.005)  # time enough to run ahead
        assert started[0] <= number + 2 * workers


def test_float64_and_the_device_hold_in_every_thread() -> None:
    program = Program(lambda x: (x / 3,))
    ready = threading.Barrier(2)

    def work(first: int, last: int) -> tuple[np.dtype, object, object]:
        ready.wait(PATIENCE)  # both ask for the same program at the same time
        with double_precision():
            (third,) = program(np.ones(last - first))
            return third.dtype, third.devices(), jax.config.jax_default_device

    cpu = jax.local_devices()[0]
    for _, found in run(work, ones(4), assemble(devices=2)):
        assert found == (np.dtype("float64"), {cpu}, cpu)
    assert program.compiled <= 1  # 0: kept from an earlier process


def test_the_callers_context_holds_in_every_thread() -> None:
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        list(run(lambda *_: np.ones(1) / 0, ones(3), assemble(devices=2)))


def test_a_run_within_a_run_is_done() -> None:
    crew = assemble(devices=2)

    def work(first: int, last: int) -> list[int]:
        return [inner for _, inner in run(lambda a, b: 10 * first + a, ones(3), crew)]

    assert [inner for _, inner in run(work, ones(3), crew)] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]


# Ends


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_in_its_turn_and_ends_the_rest(workers: int) -> None:
    def work(first: int, last: int) -> int:
        if first == 2:
            raise ZeroDivisionError("in block 2")
        return until_abandoned() if first > 2 else first  # type: ignore[func-returns-value]

    results = run(work, ones(30), assemble(devices=workers))
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError, match="in block 2"):
        next(results)


def test_what_is_not_read_is_not_done() -> None:
    done = []

    def work(first: int, last: int) -> None:
        done.append(first)
        if first > 1:
            until_abandoned()

    with closing(run(work, ones(100), assemble(devices=2))) as results:
        next(results)
    assert len(done) <= 4


def test_outside_a_run_nothing_interrupts() -> None:
    check_interrupt()


def test_no_handler_of_errors_catches_what_abandons_a_thread() -> None:
    assert not issubclass(Abandoned, Exception)


def interrupted_after(
    count: int, work: Callable[[int, int], int], interrupt: Callable[[], None]
) -> tuple[list[int], str]:
    """What is kept when the interrupt comes with the result of a block, and what the warning says."""
    kept = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number, _ in run(work, ones(50), assemble(devices=2)):
            kept.append(number)
            if len(kept) == count:
                interrupt()
    assert [warning.category for warning in said] == [InterruptedWarning]
    assert said[0].filename == __file__  # the user's line, not one of the package
    return kept, str(said[0].message)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_keeps_what_is_finished() -> None:
    later = threading.Event()

    def work(first: int, last: int) -> int:
        if first == 4:
            later.set()
        if first == 3:
            until_abandoned()
        return first

    def interrupt() -> None:
        assert later.wait(PATIENCE)
        press_ctrl_c()

    kept, said = interrupted_after(3, work, interrupt)
    assert kept[:3] == [0, 1, 2]
    assert 3 not in kept
    assert kept == sorted(kept)
    assert f"{len(kept)} of 50 models" in said


@on_posix
def test_an_interrupt_is_heard_while_waiting() -> None:
    def work(first: int, last: int) -> int:
        if first == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        if first >= 4:
            until_abandoned()
        return first

    kept, _ = interrupted_after(-1, work, press_ctrl_c)
    assert kept == [0, 1, 2, 3]


@on_posix
def test_a_handler_of_the_users_is_left_alone_and_its_interrupt_heard() -> None:
    calls = []

    def own(number: int, frame: object) -> None:
        calls.append(number)
        raise KeyboardInterrupt

    def work(first: int, last: int) -> int:
        if first == 5:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        if first >= 4:
            until_abandoned()
        return first

    signal.signal(signal.SIGINT, own)
    try:
        kept, _ = interrupted_after(-1, work, press_ctrl_c)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert calls == [signal.SIGINT]
    assert kept == [0, 1, 2, 3]


def test_the_second_interrupt_is_an_ordinary_one() -> None:
    results = run(lambda *_: None, ones(50), assemble(devices=2))
    next(results)
    press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    with pytest.warns(InterruptedWarning):
        assert len(list(results)) < 49


def test_an_error_after_an_interrupt_costs_only_its_own_block() -> None:
    pressed = threading.Event()

    def work(first: int, last: int) -> int:
        if first == 2:
            assert pressed.wait(PATIENCE)
            raise ZeroDivisionError
        return first

    def interrupt() -> None:
        press_ctrl_c()
        pressed.set()

    kept, _ = interrupted_after(2, work, interrupt)
    assert 2 not in kept


def test_runs_in_other_threads_leave_the_keyboard_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def elsewhere() -> None:
        seen.extend(
            signal.getsignal(signal.SIGINT) for _ in run(lambda *_: None, ones(3), assemble(devices=2))
        )

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(PATIENCE)
    assert seen == [before] * 3


# Progress


def test_no_progress_is_shown_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    list(run(lambda *_: threading.Event().wait(0.3), ones(5), assemble(devices=1)))
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    work = [threading.Event().wait, 0.3]
    list(run(lambda *_: work[0](work[1]), ones(5), assemble(devices=1), label="fits", progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert " fits" in err
    assert "/5" in err


SLOW_RUN = """
import threading
from jaxmixed import schedule
wait = lambda first, last: threading.Event().wait(0.3)
list(schedule.run(wait, [(n, n + 1) for n in range(5)], schedule.assemble(devices=1), progress={progress}))
"""


@on_posix
def test_progress_is_shown_on_a_terminal() -> None:
    shown = on_a_terminal(SLOW_RUN.format(progress=None))
    assert "models" in shown
    assert "/5" in shown


@on_posix
def test_progress_is_hidden_on_a_terminal_when_not_wanted() -> None:
    assert on_a_terminal(SLOW_RUN.format(progress=False)) == ""


def test_the_bar_is_not_even_loaded_when_nothing_is_shown() -> None:
    code = (
        "import sys\nfrom jaxmixed import schedule\n"
        "list(schedule.run(range, [(0, 1)], schedule.assemble()))\nprint('tqdm' in sys.modules)"
    )
    assert run_python(code) == "False\n"


# All together


def test_one_process_gathers_what_it_has() -> None:
    arrays = {"a": np.array([[3.0], [1.0], [2.0]]), "b": np.array([True, False, True])}
    found, rows = gather(assemble(), arrays, np.array([7, 0, 4]))
    assert rows.tolist() == [0, 4, 7]
    assert found["a"].tolist() == [[1.0], [2.0], [3.0]]
    assert found["b"].tolist() == [False, True, True]


def test_a_warning_points_to_the_users_line() -> None:
    assert user_level() == 1  # this test is no part of the package

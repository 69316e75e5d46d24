"""Programs that tests run in processes of their own: several devices, several processes, an interrupt.

python -m tests.support.scaling devices FILE
python -m tests.support.scaling process FILE PORT NUMBER [fail]
python -m tests.support.scaling interrupt
"""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path

import jax
import numpy as np

from jaxmixed import schedule
from jaxmixed.many_estimates import ManyEstimates, arrays_of, concatenate
from jaxmixed.schedule import Crew, assemble
from tests.support.refitting import refitter, responses

MODELS = 100
BLOCK = 11
"""Models in a block, so that every worker has several, and the last one is smaller."""

NAMES = ("deviance", "theta", "beta", "cov_beta", "sigma", "reason", "singular", "evaluations")


def blocks() -> list[tuple[int, int]]:
    """The blocks of all these programs."""
    return [(first, min(first + BLOCK, MODELS)) for first in range(0, MODELS, BLOCK)]


def fits(crew: Crew) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Estimates by the workers of a crew, of all processes, and which models they are of."""
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", MODELS)

    def work(first: int, last: int) -> ManyEstimates:
        return engine.fit(Y[:, first:last])

    parts, rows = [], []
    for number, part in schedule.run(work, blocks(), crew):
        parts.append(part)
        rows.append(np.arange(*blocks()[number]))
    found = arrays_of(concatenate(parts))
    return schedule.gather(crew, {name: found[name] for name in NAMES}, np.concatenate(rows))


def mesh_of(devices: list[jax.Device]) -> jax.sharding.Mesh:
    """Mesh with an axis of models."""
    return jax.sharding.Mesh(np.array(devices), ("models",))


def devices(file: Path) -> None:
    """Fit by one, two and all devices, and by a mesh of them."""
    everyone = jax.devices()
    crews = {
        "one": assemble(devices=1),
        "two": assemble(devices=2),
        "all": assemble(),
        "chosen": assemble(devices=everyone[2:]),
        "mesh": assemble(mesh=mesh_of(everyone)),
    }
    results, used = {}, {}
    for name, crew in crews.items():
        found, rows = fits(crew)
        assert rows.tolist() == list(range(MODELS))
        results |= {f"{name}.{key}": values for key, values in found.items()}
        used[name] = [device.id for device in crew.devices]
    from jaxmixed import lanes

    programs = [*lanes.PROGRAM._executables, *lanes.FUSED_PROGRAM._executables]
    np.savez(file, **results)
    print(used, sorted({key[-1].id for key in programs}))


def process(file: Path, port: str, number: str, *fail: str) -> None:
    """Fit as one of two processes."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
    crew = assemble(mesh=mesh_of(jax.devices()))
    assert crew.is_shared
    assert len(crew.devices) == len(jax.local_devices())
    if fail:

        def work(first: int, last: int) -> None:
            if number == "1" and first >= MODELS // 2:
                raise ZeroDivisionError("in process 1")

        try:
            list(schedule.run(work, blocks(), crew))
        except Exception as problem:
            print(type(problem).__name__, problem)
        return
    found, rows = fits(crew)
    assert rows.tolist() == list(range(MODELS))
    np.savez(file, **found)
    print(crew.numbers, crew.total)


def interrupt() -> None:
    """Work on more blocks than anybody waits for; say what was kept when the user has had enough."""

    def work(first: int, last: int) -> int:
        for _ in range(200):
            schedule.check_interrupt()
            threading.Event().wait(0.001)
        return first

    kept = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number, _ in schedule.run(work, [(n, n + 1) for n in range(1000)], assemble(devices=2)):
            kept.append(number)
            print("done", number, flush=True)
    print("kept", kept == list(range(len(kept))), len(kept), said[0].message, flush=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "interrupt":
        interrupt()
    elif command == "devices":
        devices(Path(arguments[0]))
    else:
        process(Path(arguments[0]), *arguments[1:])

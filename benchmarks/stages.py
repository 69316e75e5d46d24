"""Where a call of ``jaxmixed.mixed`` spends its time."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

from benchmarks.timing import milliseconds, table

# The last is part of the one before it, including the wait for the compiled program.
STAGES = {
    "model frame (formula and data to arrays)": ("model", "build_frame"),
    "pass over the rows (arrays to statistics)": ("model", "reduce_rows"),
    "fit (statistics to checked estimates)": ("model", "fit"),
    "- of which the optimisation (compiled)": ("search", "SingleRunner.__call__"),
}


@contextmanager
def recorded() -> Iterator[dict[str, float]]:
    """Seconds spent in each stage by the calls made inside this context."""
    seconds = dict.fromkeys(STAGES, 0.0)

    def timed(name: str, function: Callable) -> Callable:
        def wrapper(*arguments: object, **named: object) -> object:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[name] += time.perf_counter() - began

        return wrapper

    with ExitStack() as stack:
        for name, (module, path) in STAGES.items():
            owner = import_module(f"jaxmixed.{module}")
            *parents, attribute = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            replacement = timed(name, getattr(owner, attribute))
            stack.enter_context(patch.object(owner, attribute, replacement))
        yield seconds


def stage_table(fit: Callable[[], object], rounds: int) -> str:
    """Median time of every stage over repeated warm calls."""
    fit()
    samples: dict[str, list[float]] = {name: [] for name in ("whole call", *STAGES)}
    for _ in range(rounds):
        with recorded() as seconds:
            began = time.perf_counter()
            fit()
            samples["whole call"].append(time.perf_counter() - began)
        for name, spent in seconds.items():
            samples[name].append(spent)
    rows = [[name, milliseconds(statistics.median(sample))] for name, sample in samples.items()]
    return table(["jaxmixed, warm", "median ms"], rows)

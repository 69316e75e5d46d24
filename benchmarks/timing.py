"""Measuring and printing: interleaved repeats, medians, ratios, tables."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleave(
    calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 2, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    Every round runs every call `repeats` times in a row and takes their mean, each round starting with
    another one, so that slow drifts of the machine fall on all alike and rounds can be compared pairwise.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(-warmup, rounds):
        start = round_number % len(names)
        for name in names[start:] + names[:start]:
            began = time.perf_counter()
            for _ in range(repeats):
                calls[name]()
            elapsed = (time.perf_counter() - began) / repeats
            if round_number >= 0:
                seconds[name].append(elapsed)
    return seconds


def paired_ratio(seconds: Sequence[float], baseline: Sequence[float]) -> float:
    """Median over the rounds of one call's time relative to another's."""
    return statistics.median(a / b for a, b in zip(seconds, baseline, strict=True))


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column to the left, the others to the right."""
    widths = [max(len(str(row[j])) for row in [header, *rows]) for j in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (str(cell) for cell in cells)
        padded = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def version(distribution: str) -> str:
    """Installed version of a distribution, or an empty string."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def machine() -> str:
    """One line that says what the numbers were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{processor()}, {cores} core(s)", f"Python {platform.python_version()}"]
    parts += [f"{name} {version(name)}" for name in ("jax", "numpy", "pandas", "jaxmixed") if version(name)]
    return "; ".join(parts)


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (ln.split(":", 1)[1].strip() for ln in lines if ln.startswith("model name")), platform.machine()
    )

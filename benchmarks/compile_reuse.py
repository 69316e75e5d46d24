"""How many programs XLA compiles for the first fit of a process, and for later fits of similar shape."""

import os
import time
from collections import Counter

import jax
import numpy as np
import pandas as pd

from benchmarks.timing import milliseconds, table

COMPILATION = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs compiled from its creation on, by name."""

    def __init__(self) -> None:
        self.programs: Counter[str] = Counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, _seconds: float, **details: object) -> None:
        if event == COMPILATION:
            self.programs[str(details.get("fun_name", "unnamed"))] += 1

    def take(self) -> Counter[str]:
        """Programs since the last call."""
        programs, self.programs = self.programs, Counter()
        return programs


def simulated(rows_per_group: int, groups: int, seed: int, unbalanced: bool = False) -> pd.DataFrame:
    """Rows with a random intercept and slope in each group."""
    rng = np.random.default_rng(seed)
    low = max(3, rows_per_group // 2) if unbalanced else rows_per_group
    group = np.repeat(np.arange(groups), rng.integers(low, rows_per_group + 1, groups))
    x = rng.normal(size=group.size)
    intercept, slope = rng.normal(size=(2, groups))
    y = 1 + 2 * x + intercept[group] + 0.5 * slope[group] * x + rng.normal(size=group.size)
    return pd.DataFrame({"y": y, "x": x, "g": group})


CASES = {
    "first fit of the process: 40 groups": simulated(12, 40, 1, unbalanced=True),
    "same shape, other numbers": simulated(12, 40, 2, unbalanced=True),
    "38 groups, other sizes": simulated(14, 38, 3, unbalanced=True),
    "39 groups, balanced": simulated(10, 39, 4),
    "2,000 groups": simulated(12, 2000, 5, unbalanced=True),
    "1,900 groups": simulated(12, 1900, 6, unbalanced=True),
}


def run() -> str:
    """Table of compiled programs and wall time, one fit after the other in one process."""
    os.environ["JAXMIXED_CACHE_DIR"] = ""  # nothing may come from earlier processes
    import jaxmixed as jm

    counter, rows = Compilations(), []
    for label, data in CASES.items():
        began = time.perf_counter()
        jm.mixed("y ~ x + (x | g)", data).summary()
        elapsed = time.perf_counter() - began
        programs = counter.take()
        names = ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in programs.items())
        rows.append([label, str(programs.total()), milliseconds(elapsed), names or "-"])
    header = ["data set", "compiled", "ms", "programs"]
    return "`y ~ x + (x | g)` with its summary, data sets in turn.\n\n" + table(header, rows)


if __name__ == "__main__":
    print(run())

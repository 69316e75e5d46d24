"""Large data: 10⁶ rows in 10⁴ groups with a random slope, and 10⁶ groups with a random intercept.

Each package runs in a process of its own, so that its memory can be measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.memory import forget_peak, memory
from benchmarks.peers import PEERS, Problem, absent, available
from benchmarks.stages import stage_table
from benchmarks.timing import table

SLOW = {"lme4", "statsmodels"}  # minutes; only with --slow-peers


def slopes(rows: int = 1_000_000, groups: int = 10_000) -> Problem:
    rng = np.random.default_rng(7)
    group = rng.integers(0, groups, rows)
    x = rng.normal(size=rows)
    intercept, slope = rng.normal(size=(2, groups))
    y = 1 + 2 * x + intercept[group] + 0.5 * slope[group] * x + rng.normal(size=rows)
    return Problem("slopes", pd.DataFrame({"y": y, "x": x, "g": group}), "y ~ x", "x", "g")


def intercepts(groups: int = 1_000_000) -> Problem:
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    x = rng.normal(size=group.size)
    y = 1 + 2 * x + rng.normal(size=groups)[group] + rng.normal(size=group.size)
    return Problem("intercepts", pd.DataFrame({"y": y, "x": x, "g": group}), "y ~ x", "1", "g")


PROBLEMS: dict[str, Callable[..., Problem]] = {"slopes": slopes, "intercepts": intercepts}


def measure(package: str, name: str, repeats: int) -> dict[str, Any]:
    """Times and peak memory of one package on one problem, in this process."""
    small = {"slopes": lambda: slopes(3000, 100), "intercepts": lambda: intercepts(1000)}[name]()
    PEERS[package](small)()  # libraries loaded, thread pools started
    problem = PROBLEMS[name]()
    fit = PEERS[package](problem)
    forget_peak()
    before = memory("VmRSS")
    seconds = []
    for repeat in range(repeats):
        began = time.perf_counter()
        loglik = fit().loglik
        seconds.append(time.perf_counter() - began)
        if repeat == 0:
            used = memory("VmHWM") - before
    columns = problem.data.memory_usage(index=False).sum()
    return {
        "stages": stage_table(fit, repeats) if package == "jaxmixed" else "",
        "first": seconds[0],
        "later": statistics.median(seconds[1:] or seconds),
        "loglik": loglik,
        "memory": used / columns,
        "megabytes": used / 1e6,
        "columns": columns / 1e6,
        "rows": len(problem.data),
    }


def in_own_process(package: str, name: str, repeats: int) -> dict[str, Any]:
    arguments = ["--package", package, "--problem", name, "--repeats", str(repeats)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks.large", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{package} on {name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(repeats: int = 3, slow_peers: bool = False) -> str:
    """One table per problem, and where jaxmixed spends its time."""
    found = available()
    parts = []
    for name in PROBLEMS:
        rows, sizes, stages = [], {}, ""
        for package in found:
            if package in SLOW and not slow_peers:
                continue
            try:
                result = in_own_process(package, name, 1 if package in SLOW else repeats)
            except RuntimeError as error:
                rows.append([package, "failed", "", "", "", ""])
                parts.append(str(error))
                continue
            sizes, stages = result, stages or result["stages"]
            in_r = package == "lme4"  # its memory is another process's
            rows.append(
                [
                    f"{package} {found[package]}",
                    f"{result['first']:.2f}",
                    f"{result['later']:.2f}",
                    f"{result['loglik']:.6f}",
                    "-" if in_r else f"{result['megabytes']:.0f}",
                    "-" if in_r else f"{result['memory']:.1f}",
                ]
            )
        header = ["package", "first fit, s", "later, s", "log-likelihood", "peak MB", "× columns"]
        title = f"{name}: {sizes['rows']:,.0f} rows, three columns of {sizes['columns']:.0f} MB together."
        parts.append(title + " Peak: memory added by the first fit.\n\n" + table(header, rows))
        parts += [stages] if stages else []
    left_out = sorted(SLOW & set(found)) if not slow_peers else []
    note = f"Left out without --slow-peers: {', '.join(left_out)}." if left_out else ""
    return "\n\n".join([*parts, " ".join([absent(found), note]).strip()]).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", choices=list(PEERS), required=True)
    parser.add_argument("--problem", choices=list(PROBLEMS), required=True)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.package, arguments.problem, arguments.repeats)))


if __name__ == "__main__":
    main()

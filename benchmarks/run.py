"""Run the benchmarks, print their tables and write them to ``benchmarks/results``.

``python -m benchmarks.run`` runs all; ``--only single_fit cold_start`` runs some.
"""

import argparse
import os
import subprocess
import sys
from datetime import date

from benchmarks.timing import RESULTS, machine

TITLES = {
    "single_fit": "One warm fit",
    "cold_start": "A fresh process",
    "compile_reuse": "Programs compiled",
    "large": "Large data",
    "crossed": "Crossed groupings",
    "many": "Many models",
    "many_stream": "A million responses",
    "derivatives": "Derivatives of a fit",
    "inference": "Degrees of freedom and intervals",
    "influence": "Influence of rows and groups",
    "residuals": "Correlated residuals",
    "prediction": "Predictions and ranks",
    "coverage": "Coverage of intervals and size of tests",
    "prediction_coverage": "Coverage of intervals of predictions",
}
SLOW = {"large", "crossed"}  # benchmarks that have peers which take minutes


def one(name: str, slow_peers: bool) -> str:
    """The text of one benchmark, run in a process of its own."""
    call = "run(slow_peers=True)" if slow_peers and name in SLOW else "run()"
    code = f"from benchmarks import {name}; print({name}.{call})"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=list(TITLES), default=list(TITLES), help="which benchmarks"
    )
    parser.add_argument(
        "--slow-peers", action="store_true", help="peers that take minutes on large data, too"
    )
    parser.add_argument("--cores", type=int, help="run everything on this many cores (Linux)")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only:
        text = f"# {TITLES[name]}\n\n{one(name, arguments.slow_peers)}\n\n{machine()}; {date.today()}.\n"
        print(text, flush=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""A fresh process that imports the package, reads a CSV file, fits the sleep study and prints the summary."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import absent, available
from benchmarks.single_fit import sleepstudy
from benchmarks.timing import table

FORMULA = "Reaction ~ Days + (Days | Subject)"
READ = (
    "import sys, warnings, pandas as pd; warnings.simplefilter('ignore'); data = pd.read_csv(sys.argv[1]); "
)
STATSMODELS_LIKE = "mixedlm('Reaction ~ Days', data, groups='Subject', re_formula='~Days').fit().summary())"
PROGRAMS = {
    "jaxmixed": f"{READ} import jaxmixed as jm; print(jm.mixed({FORMULA!r}, data).summary())",
    "lme-python": "import sys, lme_python, polars as pl; data = pl.read_csv(sys.argv[1], schema_overrides="
    f"{{'Subject': pl.String}}); print(lme_python.lmer({FORMULA!r}, data=data, reml=True).summary())",
    "mixedlm": f"{READ} import mixedlm; print(mixedlm.lmer({FORMULA!r}, data).summary())",
    "mixedlm-rs": f"{READ} from mixedlm_rs import mixedlm; print({STATSMODELS_LIKE}",
    "statsmodels": f"{READ} from statsmodels.formula.api import mixedlm; print({STATSMODELS_LIKE}",
}
R_PROGRAM = (
    "suppressPackageStartupMessages(library(lme4)); data <- read.csv(commandArgs(TRUE)[1]); "
    f"print(summary(lmer({FORMULA}, data)))"
)


def command(name: str, path: Path) -> list[str]:
    if name == "jaxmixed, command line":
        return [sys.executable, "-m", "jaxmixed", "fit", str(path), FORMULA]
    if name == "lme4":
        return ["Rscript", "--vanilla", "-e", R_PROGRAM, str(path)]
    return [sys.executable, "-c", PROGRAMS[name], str(path)]


def seconds_of(name: str, path: Path, cache: Path) -> float:
    """Wall time of one process; ``cache`` is where the user's caches live for it."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    began = time.perf_counter()
    subprocess.run(command(name, path), env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def run(rounds: int = 5) -> str:
    """Medians of fresh processes: with an empty cache folder, then with the one that the first has left."""
    found = available()
    names = ["jaxmixed, command line", *found]
    first: dict[str, list[float]] = {name: [] for name in names}
    later: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sleepstudy.csv"
        sleepstudy().data.to_csv(path, index=False)
        for name in names:
            seconds_of(name, path, Path(folder) / "warm-up")  # files of the packages into the system's memory
        for round_number in range(rounds):
            for name in names:
                cache = Path(folder) / f"{name}-{round_number}"
                first[name].append(seconds_of(name, path, cache))
                later[name].append(seconds_of(name, path, cache))
    rows = [
        [
            f"{name} {found.get(name, found['jaxmixed'])}",
            f"{statistics.median(first[name]):.2f}",
            f"{statistics.median(later[name]):.2f}",
        ]
        for name in sorted(names, key=lambda name: statistics.median(later[name]))
    ]
    lines = [
        f"Fresh process, medians of {rounds}: import, read a CSV file, fit `{FORMULA}`, print the summary.",
        '"First": nothing in the user\'s cache folder. "Later": another process after it.',
        "",
        table(["package", "first, s", "later, s"], rows),
        "",
        absent(found),
    ]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(run())

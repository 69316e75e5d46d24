"""A million responses of the sleep study, from a memory-mapped file to a Parquet file: time and memory."""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import jaxmixed as jm
from benchmarks.many import brief
from benchmarks.memory import forget_peak, memory
from benchmarks.refit_peers import Many, sleepstudy
from benchmarks.timing import table
from jaxmixed.streaming import ManyFile

RESPONSES = 1_000_000
CHUNK = 50_000  # responses drawn and written at a time
LIMIT = 4.0  # GiB


class Watch:
    """The largest amount of memory of this process that is no copy of a file, looked at every 20 ms."""

    def __enter__(self) -> "Watch":
        self.peak, self._done = memory("RssAnon"), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, memory("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def write(many: Many, path: Path, count: int) -> None:
    """Draw responses into a file of doubles, one response after the other."""
    with path.open("wb") as file:
        for first in range(0, count, CHUNK):
            file.write(many.simulate(min(CHUNK, count - first), first).tobytes(order="F"))


def run(count: int = RESPONSES) -> str:
    """Table of the time and of the peak of memory."""
    many = sleepstudy()
    formula = many.problem.formula.partition("~")[2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "responses"
        write(many, path, count)
        Y = np.memmap(path, dtype=np.float64, mode="r", shape=(count, len(many.X))).T

        def stream(responses: np.ndarray) -> ManyFile:
            out = Path(folder) / "fits.parquet"
            return jm.fit_many(f"~ {formula}", many.problem.data, responses=responses, out=out)

        began = time.perf_counter()
        stream(Y[:, :CHUNK])
        first = time.perf_counter() - began
        before = memory("VmRSS")
        forget_peak()
        with Watch() as watch:
            began = time.perf_counter()
            fits = stream(Y)
            seconds = time.perf_counter() - began
        peak = memory("VmHWM")
    gib = 2.0**30
    rows = [
        ["responses", f"{count:,}"],
        ["file of responses, GiB", f"{8 * count * len(many.X) / gib:.2f}"],
        ["seconds", brief(seconds)],
        ["fits a second", brief(count / seconds)],
        ["converged", f"{fits.converged:,}"],
        ["singular", f"{fits.singular:,}"],
        [f"first call, {CHUNK:,} responses, with compilation, s", brief(first)],
        ["memory of the process before, GiB", f"{before / gib:.2f}"],
        ["peak, pages of the mapped file included, GiB", f"{peak / gib:.2f}"],
        ["peak without the pages of files, GiB", f"{watch.peak / gib:.2f}"],
        [f"asked: peak below {LIMIT:g} GiB", "met" if peak < LIMIT * gib else "not met"],
    ]
    problem = many.problem
    text = f"`{problem.formula}`, REML, {len(many.X)} rows; responses in a mapped file, results to Parquet."
    return text + "\n\n" + table(["jaxmixed", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=RESPONSES)
    print(run(parser.parse_args().responses))


if __name__ == "__main__":
    main()

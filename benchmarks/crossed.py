"""Crossed groupings: data sets of the field and simulated ones, jaxmixed against the peers.

Each package runs in a process of its own, with an empty cache folder, so that its memory and its very first
fit can be measured. A package that cannot fit a problem, or not in time, is reported with the reason.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from typing import IO

from benchmarks.crossed_problems import PROBLEMS
from benchmarks.memory import forget_peak, limit_memory, memory
from benchmarks.peers import PEERS, Crossed, Fit, Fitted, NotRun, absent, available
from benchmarks.timing import table

TIME_LIMIT = 60.0  # seconds for one fit
SLOW = {("lme4", "movielens-1m"), ("mixedlm", "movielens-1m")}  # with --slow-peers they get all the time
SLOW_LIMIT = 7200.0  # that they could need
MEMORY_SHARE = 0.85  # of the machine's memory that a package may ask for
ENOUGH_SECONDS, FEW_FITS, MANY_FITS = 10.0, 3, 50
MOST_SECONDS, LONG = 30.0, 100.0  # a fit that takes long is not repeated: its later time is its first
CRITERION = 237733.834  # REML, three crossed factors, as lme4 prints it
EQUAL = 1e-6  # of a log-likelihood: sums in another order differ by less


@dataclass(frozen=True)
class Result:
    """One package on one problem; what was not measured is NaN."""

    first: float = nan  # seconds of the first fit of the process
    later: float = nan  # median of the next ones
    loglik: float = nan
    evaluations: int | None = None
    added: float = nan  # MB that the first fit added to the process at its peak
    peak: float = nan  # MB of the whole process then
    reason: str = ""  # why there is no fit, or no later one


def timed(fit: Fit, limit: float) -> tuple[Fitted, float]:
    """A fit and its seconds. The alarm ends this process, whatever compiled code it is in."""
    signal.setitimer(signal.ITIMER_REAL, limit)
    began = time.perf_counter()
    fitted = fit()
    elapsed = time.perf_counter() - began
    signal.setitimer(signal.ITIMER_REAL, 0)
    return fitted, elapsed if fitted.seconds is None else fitted.seconds


def enough(seconds: list[float]) -> bool:
    """Whether the later fits suffice for a median."""
    few = len(seconds) < FEW_FITS
    return len(seconds) >= MANY_FITS or sum(seconds) >= (MOST_SECONDS if few else ENOUGH_SECONDS)


def measure(package: str, name: str, limit: float) -> None:
    """Fit one problem with one package in this process; print a line after the first fit and at the end."""

    def say(result: Result) -> None:
        print(json.dumps(asdict(result)), flush=True)

    limit_memory(MEMORY_SHARE)
    try:
        fit = PEERS[package](PROBLEMS[name]())
        forget_peak()
        before = memory("VmRSS")
        fitted, first = timed(fit, limit)
        inside = fitted.seconds is None  # this process, not another, did the work
        peak = memory("VmHWM")
        added = (peak - before) / 1e6 if inside else fitted.megabytes
        result = Result(first, nan, fitted.loglik, fitted.evaluations, added, peak / 1e6 if inside else nan)
        say(result)
        seconds: list[float] = []
        while first < LONG and not enough(seconds):
            seconds.append(timed(fit, limit)[1])
        say(replace(result, later=statistics.median(seconds or [first])))
    except NotRun as reason:
        say(Result(reason=f"not run: {reason}"))
    except BaseException as error:  # a panic of compiled code is not an Exception
        message = (str(error).strip() or "no message").splitlines()[0]
        say(Result(reason=f"failed: {type(error).__name__}: {message}"))


def ending(returncode: int, errors: IO[str], limit: float) -> str:
    """Why a process ended before it could say so itself."""
    if returncode == -signal.SIGALRM:
        return f"not finished: no fit in {limit:,.0f} s"
    errors.seek(0)
    lines = [line.strip() for line in errors if line.strip() and not line.startswith("note:")]
    last = lines[-1] if lines else "no message"
    how = f"ended by {signal.Signals(-returncode).name}" if returncode < 0 else "failed"
    return f"{how}: {last}"


def in_own_process(package: str, name: str, limit: float) -> Result:
    """The measurement of one package in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.crossed", "--measure", package, name]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as errors:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "JAXMIXED_CACHE_DIR": cache,
        }
        child = subprocess.Popen(
            [*command, "--time-limit", str(limit)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            lines = [line for line in child.communicate()[0].splitlines() if line.startswith("{")]
        finally:
            with suppress(ProcessLookupError):  # R, where it goes on after its caller's end
                os.killpg(child.pid, signal.SIGKILL)
        result = Result(**json.loads(lines[-1])) if lines else Result()
        if child.returncode == 0:
            return result
        return replace(result, reason=ending(child.returncode, errors, limit))


def brief(seconds: float) -> str:
    """Seconds to three digits."""
    if isnan(seconds):
        return "-"
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"


def row(title: str, result: Result, baseline: Result | None, best: float) -> list[str]:
    if isnan(result.loglik):
        return [title, result.reason.split(":")[0], *[""] * 6]
    ratio = result.later / baseline.later if baseline else nan
    return [
        title,
        brief(result.first),
        brief(result.later),
        brief(ratio),
        f"{result.loglik:.6f}",
        f"{best - result.loglik:.1e}",
        "-" if result.evaluations is None else str(result.evaluations),
        "-" if isnan(result.added) else f"{result.added:.0f}",
    ]


HEADER = [
    "package",
    "first fit, s",
    "later, s",
    "× jaxmixed",
    "log-likelihood",
    "below the best",
    "evaluations",
    "peak MB",
]


def describe(problem: Crossed) -> str:
    levels = " × ".join(f"{count:,}" for count in problem.levels)
    method = "REML" if problem.reml else "ML"
    return f"{problem.name}: {len(problem.data):,} rows, {levels} levels. `{problem.formula}`, {method}."


def problem_table(name: str, results: dict[str, Result], found: dict[str, str]) -> str:
    """The table of one problem, fastest first, and the reasons for what it lacks."""
    best = max((result.loglik for result in finished(results).values()), default=nan)
    order = sorted(results, key=lambda package: (isnan(results[package].loglik), results[package].later))
    rows = [
        row(f"{package} {found[package]}", results[package], results.get("jaxmixed"), best)
        for package in order
    ]
    reasons = [
        f"- {package} {results[package].reason.rstrip('.')}." for package in order if results[package].reason
    ]
    parts = [describe(PROBLEMS[name]()), table(HEADER, rows), "\n".join(reasons)]
    return "\n\n".join(part for part in parts if part)


def finished(results: dict[str, Result]) -> dict[str, Result]:
    """The packages that did fit a problem."""
    return {package: result for package, result in results.items() if not isnan(result.loglik)}


def goal(ours: Result, what: str, asked: str, value: float, form: str, met: bool) -> list[str]:
    """A row of the table of goals; a fit of jaxmixed's that there is not misses them."""
    if isnan(value) and isnan(ours.loglik) and ours.reason:
        return [what, asked, ours.reason.split(":")[0], "no"]
    if isnan(value):
        return [what, asked, "not measured", ""]
    return [what, asked, format(value, form), "yes" if met else "no"]


def insteval_goals(results: dict[str, Result]) -> list[list[str]]:
    """Ratios of times with three crossed factors, and the optimum that they were reached at."""
    ours, lme4 = results.get("jaxmixed", Result()), results.get("lme4", Result())
    peers = {package: r for package, r in finished(results).items() if package != "jaxmixed"}
    rivals = {package: r for package, r in peers.items() if package != "lme4" and not isnan(r.later)}
    rival = min(rivals, key=lambda package: rivals[package].later, default="none finished")
    to_rival = rivals.get(rival, Result()).later / ours.later
    to_lme4, first = lme4.later / ours.later, lme4.first / ours.first
    criterion = -2 * ours.loglik
    ahead = ours.loglik - max((r.loglik for r in peers.values()), default=nan)
    return [
        goal(ours, "insteval, later fits: lme4 / jaxmixed", "≥ 10", to_lme4, ".1f", to_lme4 >= 10),
        goal(
            ours,
            f"insteval, later fits: {rival}, the fastest other from pip, / jaxmixed",
            "≥ 3",
            to_rival,
            ".1f",
            to_rival >= 3,
        ),
        goal(
            ours,
            "insteval, first fits: lme4 / jaxmixed, compilation included",
            "> 1",
            first,
            ".1f",
            first > 1,
        ),
        goal(
            ours,
            "insteval, REML criterion of jaxmixed",
            f"≤ {CRITERION}",
            criterion,
            ".6f",
            criterion < CRITERION + 5e-4,
        ),
        goal(
            ours,
            "insteval, log-likelihood: jaxmixed - best peer",
            f"≥ -{EQUAL:.0e}",
            ahead,
            ".1e",
            ahead >= -EQUAL,
        ),
    ]


def goals(measured: dict[str, dict[str, Result]]) -> str:
    """Table of what jaxmixed is to reach on crossed designs, and what was measured."""
    ours = {name: results["jaxmixed"] for name, results in measured.items() if "jaxmixed" in results}
    films = ours.get("movielens-1m", Result())
    gibibytes = films.peak * 1e6 / 2**30
    counts = {name: result.evaluations for name, result in ours.items() if result.evaluations is not None}
    name = max(counts, key=lambda name: counts[name], default="none")
    most = float(counts.get(name, nan))
    rows = [
        *insteval_goals(measured.get("insteval", {})),
        goal(films, "movielens-1m, first fit of jaxmixed, s", "< 30", films.first, ".1f", films.first < 30),
        goal(films, "movielens-1m, later fit of jaxmixed, s", "< 30", films.later, ".1f", films.later < 30),
        goal(films, "movielens-1m, peak of jaxmixed's process, GiB", "< 4", gibibytes, ".2f", gibibytes < 4),
        goal(Result(), f"most evaluations in a fit of jaxmixed ({name})", "≤ 12", most, ".0f", most <= 12),
    ]
    return table(["goal", "asked", "measured", "met"], rows)


INTRODUCTION = """\
The whole call, from formula and data to the fitted model, REML; every package in a process of its own, with
its own defaults. First fit: the first of a process with an empty cache folder, compilation included, imports
not. Later: median of the next ones. × jaxmixed: ratio of the later times. Peak: memory that the first fit
added."""


def run(
    slow_peers: bool = False,
    problems: Sequence[str] = tuple(PROBLEMS),
    packages: Sequence[str] = tuple(PEERS),
    time_limit: float = TIME_LIMIT,
) -> str:
    """One table per problem, then the goals."""
    available_here = available()
    found = {package: release for package, release in available_here.items() if package in packages}
    measured: dict[str, dict[str, Result]] = {}
    for name in problems:
        measured[name] = {}
        for package in found:
            limit = SLOW_LIMIT if slow_peers and (package, name) in SLOW else time_limit
            print(f"{name}: {package}", file=sys.stderr, flush=True)  # it takes long
            measured[name][package] = in_own_process(package, name, limit)
    tables = [problem_table(name, results, found) for name, results in measured.items()]
    left_out = [package for package in available_here if package not in packages]
    note = f"Not asked for: {', '.join(left_out)}." if left_out else ""
    last = " ".join(part for part in [absent(available_here), note] if part)
    return "\n\n".join(part for part in [INTRODUCTION, *tables, goals(measured), last] if part)


def names(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """Reads names separated by commas."""

    def read(text: str) -> list[str]:
        parts = [part.strip() for part in text.split(",")]
        unknown = [part for part in parts if part not in known]
        if unknown:
            message = f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return parts

    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-problems", type=names(PROBLEMS), default=list(PROBLEMS), metavar="A,B")
    parser.add_argument("--packages", type=names(PEERS), default=list(PEERS), metavar="A,B")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds for one fit")
    parser.add_argument("--slow-peers", action="store_true", help="give the slow ones time for movielens-1m")
    parser.add_argument("--measure", nargs=2, metavar=("PACKAGE", "PROBLEM"), help="one, in this process")
    given = parser.parse_args()
    if given.measure:
        package, name = given.measure
        measure(package, name, given.time_limit)
    else:
        print(run(given.slow_peers, given.only_problems, given.packages, given.time_limit))


if __name__ == "__main__":
    main()

"""Many responses of one design, and the parametric bootstrap: jaxmixed's batches against the peers' loops."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import isnan, nan

import numpy as np

from benchmarks.peers import absent
from benchmarks.refit_peers import (
    BOOT_PEERS,
    CORES,
    MODULES,
    PEERS,
    Array,
    Booted,
    BootPeer,
    Many,
    Refit,
    RefitPeer,
    Refitted,
    covariate,
    found_here,
    jaxmixed,
    one_thread,
    sleepstudy,
)
from benchmarks.timing import interleave, paired_ratio, table

ROUNDS = 3
SECONDS = 2.0  # of every peer in every round
REPLICATES = 10_000
BOOT_ROUNDS = 5
SCALING_ROUNDS = 5


@dataclass
class Measured:
    """A peer's rounds on one design; a reason if it failed."""

    peer: RefitPeer
    refit: Refit | None = None
    first: float = nan  # seconds of the first call, which compiles where something compiles
    rounds: list[Refitted] = field(default_factory=list)
    cores: float = nan  # processor time by wall time
    reason: str = ""

    def attempt(self, step: Callable[[], object]) -> object:
        """Run a step unless an earlier one failed; note why it fails."""
        if self.reason:
            return None
        try:
            return step()
        except BaseException as error:  # a panic of compiled code is not an Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            message = (str(error).strip() or "no message").splitlines()[0]
            self.reason = f"failed: {type(error).__name__}: {message}"
            return None

    def rates(self) -> list[float]:
        """Fits a second, round by round."""
        return [] if self.reason else [len(done.loglik) / done.seconds for done in self.rounds]

    def rate(self) -> float:
        """The median of the rounds, NaN without any."""
        return statistics.median(self.rates()) if self.rates() else nan

    def count(self) -> int:
        """Fits of all rounds."""
        return sum(len(done.loglik) for done in self.rounds)


def measure(many: Many, found: dict[str, str], rounds: int, seconds: float) -> list[Measured]:
    """All peers on the same responses, round by round, each round starting with another one."""
    results = [Measured(peer) for peer in PEERS if peer.package in found]
    first = many.simulate(many.per_round, 0)
    for result in results:
        result.refit = result.attempt(lambda result=result: result.peer.prepare(many))
        began = time.perf_counter()
        result.attempt(lambda result=result: result.refit(first, 0.0))
        result.first = time.perf_counter() - began
    for number in range(rounds):
        Y = many.simulate(many.per_round, 1 + number)
        start = number % len(results)
        for result in results[start:] + results[:start]:
            wall, processor = time.perf_counter(), time.process_time()
            done = result.attempt(lambda result=result, Y=Y: result.refit(Y, seconds))
            if done is not None:
                result.rounds.append(done)
                result.cores = (time.process_time() - processor) / (time.perf_counter() - wall)
    return results


def shortfalls(results: list[Measured]) -> dict[str, Array]:
    """How far every log-likelihood is below the best of that response, where at least two peers fitted it."""
    below: dict[str, list[Array]] = {result.peer.call: [] for result in results}
    complete = [result for result in results if result.rounds and not result.reason]
    for number in range(min((len(result.rounds) for result in complete), default=0)):
        logliks = {result.peer.call: result.rounds[number].loglik for result in complete}
        compared = sorted(len(loglik) for loglik in logliks.values())[-2] if len(logliks) > 1 else 0
        best = np.full(compared, -np.inf)
        for loglik in logliks.values():
            count = min(compared, len(loglik))
            best[:count] = np.fmax(best[:count], loglik[:count])
        for call, loglik in logliks.items():
            count = min(compared, len(loglik))
            below[call].append(best[:count] - loglik[:count])
    return {call: np.concatenate(parts) if parts else np.empty(0) for call, parts in below.items()}


def brief(number: float) -> str:
    """A number to three digits, with separators."""
    if isnan(number):
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def speedup(results: list[Measured], call: str) -> float:
    """Median over the rounds of jaxmixed's rate by another's."""
    rates = {result.peer.call: result.rates() for result in results}
    ours, theirs = rates.get(PEERS[0].call, []), rates.get(call, [])
    return paired_ratio(ours, theirs) if ours and len(ours) == len(theirs) else nan


def refit_table(many: Many, results: list[Measured], found: dict[str, str]) -> str:
    """Rates, ratios and optima on one design, fastest first."""
    below = shortfalls(results)
    rows = []
    for result in sorted(results, key=lambda result: (isnan(result.rate()), -result.rate())):
        peer, short = result.peer, below[result.peer.call]
        title = f"{peer.package} {found[peer.package]}"
        if isnan(result.rate()):
            rows.append([title, peer.call, "failed", *[""] * 4])
            continue
        optima = [f"{np.mean(short):.1e}", f"{np.max(short):.1e}"] if short.size else ["-", "-"]
        ratio = brief(speedup(results, peer.call))
        rows.append([title, peer.call, brief(result.rate()), ratio, f"{result.count():,}", *optima])
    header = ["package", "call", "fits a second", "jaxmixed is × faster", "fits timed"]
    problem, n = many.problem, len(many.X)
    parts = [
        f"{problem.name}: `{problem.formula}`, REML, {n} rows in {many.groups} groups.",
        table([*header, "below the best, mean", "at most"], rows),
        "\n".join(f"- {result.peer.call} {result.reason}" for result in results if result.reason),
        batch_sentence(results[0]) if results[0].peer is PEERS[0] else "",
    ]
    return "\n\n".join(part for part in parts if part)


def batch_sentence(result: Measured) -> str:
    """What the table does not say of jaxmixed's batches."""
    if isnan(result.rate()):
        return ""
    converged = min(done.converged for done in result.rounds)
    singular = statistics.mean(done.singular for done in result.rounds)
    batch, first = len(result.rounds[0].loglik), brief(result.first)
    return (
        f"jaxmixed in batches of {batch:,}: {converged:.4%} converged (the worst round), "
        f"{singular:.1%} singular, {result.cores:.1f} cores busy; first call, with compilation, {first} s."
    )


# ---------------------------------------------------------------------------------------------- the bootstrap


def boot_once(peer: BootPeer, many: Many) -> tuple[Booted, str]:
    """The median of warm rounds of jaxmixed, one round of a peer, or why there is none."""
    try:
        boot = peer.prepare(many)
        if peer.package != "jaxmixed":
            with one_thread() if peer.cores == 1 else nullcontext():
                boot(10, 1, 1)
                return boot(peer.replicates, 2, peer.cores), ""
        boot(peer.replicates, 0, peer.cores)
        done = [boot(peer.replicates, 1 + number, peer.cores) for number in range(BOOT_ROUNDS)]
        return sorted(done, key=lambda each: each.seconds)[len(done) // 2], ""
    except Exception as error:
        message = (str(error).strip() or "no message").splitlines()[0]
        return Booted(0, nan), f"failed: {type(error).__name__}: {message}"


def bootstrap_table(many: Many, found: dict[str, str]) -> tuple[str, float]:
    """Seconds for 10,000 replicates, and those of jaxmixed."""
    rows, reasons, ours = [], [], nan
    for peer in BOOT_PEERS:
        if peer.package not in found:
            continue
        done, reason = boot_once(peer, many)
        seconds = done.seconds * REPLICATES / done.replicates if done.replicates else nan
        if peer.package == "jaxmixed":
            ours = seconds
        if reason:
            reasons.append(f"- {peer.call} {reason}")
        limits = "-" if isnan(done.limits[0]) else f"{done.limits[0]:.2f} to {done.limits[1]:.2f}"
        title, measured = f"{peer.package} {found[peer.package]}", f"{done.replicates:,}"
        cells = [brief(seconds), brief(seconds / ours), measured, str(peer.cores), limits]
        rows.append([title, peer.call, *cells])
    header = ["package", "call", f"s for {REPLICATES:,}", "× jaxmixed", "replicates timed", "cores"]
    lines = [
        f"Parametric bootstrap of {many.problem.name}, warm, with simulation and 95% percentile intervals.",
        "Peers are timed on fewer replicates, in proportion; the start of their processes is part of it.",
    ]
    text = "\n".join(lines) + "\n\n" + table([*header, f"95% of {many.coefficient}"], rows)
    return "\n\n".join([text, *(["\n".join(reasons)] if reasons else [])]), ours


# ------------------------------------------------------------------------------------------------- goals, run


def scaling_of(many: Many) -> tuple[list[str], float]:
    """Rates with one and with two devices as a row of the table, and their ratio within rounds."""
    Y = many.simulate(many.per_round, 99)

    def call(devices: int) -> Callable[[], object]:
        refit = jaxmixed(many, devices=devices)
        return lambda: refit(Y, 0.0)

    seconds = interleave({"1": call(1), "2": call(2)}, SCALING_ROUNDS, warmup=1)
    ratio = paired_ratio(seconds["1"], seconds["2"])
    rates = [brief(many.per_round / statistics.median(seconds[name])) for name in ("1", "2")]
    return [many.problem.name, *rates, f"{ratio:.2f}"], ratio


def scaling_table(designs: list[Many]) -> tuple[str, float]:
    """Rates with one and with two devices, and the smallest ratio."""
    if CORES < 2:
        return "Scaling to two devices: one core only, not measured.", nan
    try:
        rows, ratios = zip(*map(scaling_of, designs), strict=True)
    except Exception as error:
        return f"Scaling to two devices: failed: {type(error).__name__}: {error}", nan
    return table(["jaxmixed", "fits a second, devices=1", "devices=2", "ratio"], rows), min(ratios)


def fastest_rival(results: list[Measured]) -> Measured | None:
    """The fastest of the packages other than jaxmixed and lme4."""
    rivals = [result for result in results if result.peer.package not in ("jaxmixed", "lme4")]
    return max((r for r in rivals if not isnan(r.rate())), key=Measured.rate, default=None)


def worst_shortfall(designs: list[list[Measured]]) -> float:
    """The largest shortfall of jaxmixed's batches, infinite if a log-likelihood is not finite."""
    parts = [shortfalls(results).get(PEERS[0].call, np.empty(0)) for results in designs]
    below = np.concatenate(parts)
    return float(np.max(np.where(np.isfinite(below), below, np.inf))) if below.size else nan


def goals(sleep: list[Measured], covariates: list[Measured], boot: float, scaling: float) -> str:
    """Table of what jaxmixed is to reach, and what was measured."""
    ours = next((result for result in sleep if result.peer is PEERS[0]), Measured(PEERS[0]))
    rate, converged = ours.rate(), min((done.converged for done in ours.rounds), default=nan)
    to_lme4, covariates_to_lme4 = speedup(sleep, PEERS[2].call), speedup(covariates, PEERS[2].call)
    rival, below = fastest_rival(sleep), worst_shortfall([sleep, covariates])
    to_rival = speedup(sleep, rival.peer.call) if rival else nan
    named = f"sleepstudy: × {rival.peer.package if rival else 'none'}, the fastest other package"
    measured = [
        ("sleepstudy, fits a second", "≥ 60,000", rate, ",.0f", rate >= 60_000),
        ("sleepstudy, share converged", "1", converged, ".6f", converged == 1),
        ("both: log-likelihood below the best, at most", "≤ 1e-08", below, ".1e", below <= 1e-8),
        ("sleepstudy: × lme4's refit()", "≥ 1,000", to_lme4, ",.0f", to_lme4 >= 1000),
        (named, "≥ 70", to_rival, ".1f", to_rival >= 70),
        (f"{REPLICATES:,} bootstrap replicates, s", "≤ 2", boot, ".2f", boot <= 2),
        ("covariate: × lme4's refit()", "≥ 100", covariates_to_lme4, ",.0f", covariates_to_lme4 >= 100),
        ("devices=2 by devices=1, the smaller", "≥ 1.7", scaling, ".2f", scaling >= 1.7),
    ]
    rows = [
        [
            what,
            asked,
            *(["not measured", ""] if isnan(value) else [format(value, form), "yes" if met else "no"]),
        ]
        for what, asked, value, form, met in measured
    ]
    return table(["goal", "asked", "measured", "met"], rows)


INTRODUCTION = f"""\
Responses drawn from the model, fitted by REML on an already loaded data frame, warm, each package in the
fastest way that it offers. Medians of {ROUNDS} rounds: jaxmixed in one batch on all cores, peers for
{SECONDS:g} s each, on one core unless it says otherwise. Below the best: log-likelihood of a response below
the best of all packages; of lme4 and pyblmm it is evaluated at their estimates (the REML refit() of lme4
1.1-31 divides by n - 1 instead of n - p and so ends beside the optimum). lme4 is timed inside R, with its
check of convergence by finite differences as it comes, and without. Slow packages make few fits in their
time: their rates are of these."""


def run(rounds: int = ROUNDS, seconds: float = SECONDS) -> str:
    """Both designs, the bootstrap, the scaling, and the goals."""
    found = found_here()
    designs = [sleepstudy(), covariate()]
    results = [measure(many, found, rounds, seconds) for many in designs]
    tables = [refit_table(*pair, found) for pair in zip(designs, results, strict=True)]
    bootstrap, seconds_ours = bootstrap_table(designs[0], found)
    scaling, ratio = scaling_table(designs)
    others = [name for name in ("pyblmm", "threadpoolctl") if find_spec(MODULES.get(name, name)) is None]
    note = f"Nor are: {', '.join(others)}." if others else ""
    missing = " ".join(part for part in [absent(found), note] if part)
    parts = [INTRODUCTION, *tables, bootstrap, scaling, goals(*results, seconds_ours, ratio), missing]
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    print(run())

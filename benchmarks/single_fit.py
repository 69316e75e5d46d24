"""A warm fit of the sleep study, the whole call with the formula, against the peers; its optimisation."""

import statistics

import pandas as pd

from benchmarks.peers import PEERS, Problem, absent, available
from benchmarks.stages import stage_table
from benchmarks.timing import interleave, milliseconds, paired_ratio, table


def sleepstudy() -> Problem:
    """Reaction times of 18 subjects over ten days; the subject is text, as in most files."""
    import jaxmixed as jm

    data = pd.DataFrame(jm.datasets.load("sleepstudy"))[["Reaction", "Days", "Subject"]]
    return Problem("sleepstudy", data.astype({"Subject": str}), "Reaction ~ Days", "Days", "Subject")


REPEATS = 10


def run(rounds: int = 60) -> str:
    """Table of median times, ratios to jaxmixed within rounds, and log-likelihoods reached."""
    problem, found = sleepstudy(), available()
    fits = {name: PEERS[name](problem) for name in found}
    loglik = {name: fit().loglik for name, fit in fits.items()}
    in_turn = interleave(fits, rounds, warmup=3)
    seconds = interleave(fits, rounds // 3, warmup=1, repeats=REPEATS)
    best = max(loglik.values())
    rows = [
        [
            f"{name} {found[name]}",
            milliseconds(statistics.median(seconds[name])),
            milliseconds(statistics.median(in_turn[name])),
            f"{paired_ratio(seconds[name], seconds['jaxmixed']):.2f}",
            f"{loglik[name]:.10f}",
            f"{best - loglik[name]:.1e}",
        ]
        for name in sorted(found, key=lambda name: statistics.median(seconds[name]))
    ]
    header = ["package", "in a row, ms", "in turn, ms", "× jaxmixed", "log-likelihood", "below the best"]
    lines = [
        f"`{problem.formula}`, REML, {len(problem.data)} rows: the whole call, from formula and data to",
        "the fitted model, warm, in one process (lme4 in R beside it), medians of interleaved rounds.",
        f"In a row: {REPEATS} calls of each package before the next one's, as in a loop; ratios are",
        "of these. In turn: one call each, which finds the processor's caches full of the others' code.",
        "",
        table(header, rows),
        *(["", absent(found)] if absent(found) else []),
        "",
        stage_table(fits["jaxmixed"], rounds),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(run())

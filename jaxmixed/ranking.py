"""Ranks of the levels of a grouping, with what the data leave open about them.

The ranks of predicted effects look certain and are not: sampling errors move most levels past many others. So
the effects of all levels are drawn jointly from their distribution given the data (the predicted effects,
with the joint covariance of their errors), every draw is ranked, and the ranks are summarised (Laird & Louis
1989; Goldstein & Spiegelhalter 1996; Lockwood, Louis & McCaffrey 2002; Lin, Louis, Paddock & Ridgeway 2006).
An error that all levels share, such as that of the intercept, leaves ranks as they are; a difference of two
levels has its standard error from the same joint covariance.

Draws are ranked a few at a time and added up. Quantiles of ranks need only the draws beyond them: for each
level the smallest and the largest few ranks are kept, exact quantiles of the draws, and where these are too
many the draws are made again for further blocks of levels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed._distributions import normal_quantile
from jaxmixed.errors import DataError, SingularFitWarning, printable, user_level
from jaxmixed.formatting import NotedFrame, counted, number
from jaxmixed.grouping import level_positions
from jaxmixed.plot_effects import choose_effect, choose_group

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.prediction_error import Draw, ErrorModel, RowErrors

FEWEST_DRAWS = 10
KEPT_NUMBERS = 2**27
"""Ranks kept at a time for quantiles: half a gigabyte of 32-bit integers."""

_RANKED_NUMBERS = 2**20
_MOST_COMPARED = 200
_INTERCEPT = "(Intercept)"
_NOTHING = 1e-12
"""A variance of a combination so small beside the variances that it is made of is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class LevelEffect:
    """One number for each level of a grouping: a random effect, or a linear combination of several.

    Attributes
    ----------
    label : str
        The grouping.
    words : str
        The combination: ``"(Intercept) + 0.5 ses"``.
    levels : pandas.Index
        The m levels.
    weights : tuple of (int, (q,) array)
        Position of each term of the grouping, and the coefficients of its effects.
    estimate : (m,) array
        Predicted.
    variance : float
        Of the combination between levels; zero where the fit is singular in its direction.
    """

    label: str
    words: str
    levels: pd.Index
    weights: tuple[tuple[int, np.ndarray], ...]
    estimate: np.ndarray
    variance: float

    def rows(self, errors: ErrorModel, positions: np.ndarray) -> RowErrors:
        """Errors of the predictions of some levels."""
        terms = [(k, np.broadcast_to(own, (len(positions), len(own))), positions) for k, own in self.weights]
        return errors.rows(None, terms)

    def drawn(self, draws: Iterable[Draw]) -> Iterator[np.ndarray]:
        """Values of all levels, (m,), in each draw."""
        for draw in draws:
            value = self.estimate.copy()
            for k, own in self.weights:
                value -= draw.effects[k] @ own
            yield value


def level_effect(
    estimates: Estimates,
    effects: dict[str, pd.DataFrame],
    modes: Sequence[np.ndarray],
    group: str | None,
    effect: str | None,
    at: Mapping[str, float] | None,
) -> LevelEffect:
    """The effect asked for, or its default: the intercept of the grouping with the fewest levels.

    Parameters
    ----------
    estimates : Estimates
    effects : dict of str to DataFrame
        Predicted random effects by grouping.
    modes : sequence of (m, q) arrays
        The same, term by term.
    group, effect : str, optional
    at : mapping of str to float, optional
        Values of the effects' columns, instead of one effect: the intercept counts 1 unless it is named, what
        is not named counts 0.

    Returns
    -------
    LevelEffect

    Raises
    ------
    DataError
        If the model has no such grouping or effect.
    """
    label = choose_group(effects, group)
    table = effects[label]
    if at is None:
        named = {choose_effect(table, label, effect): 1.0}
    elif effect is not None:
        raise DataError("effect= names one random effect, at= a combination of them; give one of the two")
    else:
        named = _combination(at, table, label)
    weights, variance, size = [], 0.0, 0.0
    for k, term in enumerate(estimates.terms):
        if term.group == label:
            own = np.array([named.get(name, 0.0) for name in term.names])
            weights.append((k, own))
            variance += float(own @ term.cov @ own)
            size += float(np.abs(own) @ np.abs(term.cov) @ np.abs(own))
    estimate = np.sum([modes[k] @ own for k, own in weights], axis=0)
    variance = variance if variance > _NOTHING * size else 0.0
    return LevelEffect(label, _words(named), table.index, tuple(weights), estimate, variance)


def _combination(at: Mapping[str, float], table: pd.DataFrame, label: str) -> dict[str, float]:
    if not isinstance(at, Mapping) or not at:
        raise DataError(f"at is {at!r}; give values of the effects' columns, such as {{'ses': 1}}")
    named = {_INTERCEPT: 1.0} if _INTERCEPT in table.columns else {}
    given: Mapping[str, Any] = at
    for name, value in given.items():
        choose_effect(table, label, name)
        if not isinstance(value, int | float | np.number) or not np.isfinite(value):
            raise DataError(f"at= gives {value!r} for {printable(name)!r}; give a number")
        named[name] = float(value)
    if not any(named.values()):
        raise DataError("at= gives zero for every effect, so all levels are equal; name one that counts")
    return named


def _words(named: dict[str, float]) -> str:
    pieces = [
        printable(name) if value == 1 else f"{value:.6g} {printable(name)}"
        for name, value in named.items()
        if value
    ]
    return " + ".join(pieces)


def ranks(
    chosen: LevelEffect,
    errors: ErrorModel,
    *,
    level: float,
    top: float,
    ascending: bool,
    num_draws: int,
    seed: int,
) -> pd.DataFrame:
    """Table of ranks; see `MixedResults.ranks`.

    Parameters
    ----------
    chosen : LevelEffect
    errors : ErrorModel
        Joint distribution of the errors of the predictions.
    level, top, ascending, num_draws, seed
        See there.

    Returns
    -------
    pandas.DataFrame
        In the order of the expected ranks.

    Raises
    ------
    DataError
        If an argument is out of its range.
    """
    normal_quantile(level)  # refuses what is no level
    m = len(chosen.estimate)
    if isinstance(num_draws, bool) or not isinstance(num_draws, int | np.integer) or num_draws < FEWEST_DRAWS:
        raise DataError(f"num_draws must be an integer of {FEWEST_DRAWS} or more; it is {num_draws!r}")
    num_top = _number_at_top(top, m)
    variance = chosen.rows(errors, np.arange(m)).variance()
    columns = {"estimate": chosen.estimate, "std_error": np.sqrt(np.maximum(variance, 0.0))}
    index = chosen.levels
    if chosen.variance == 0:
        table = NotedFrame({**columns, **_all_equal(m, num_top)}, index=index)
        return _with_facts(table, chosen, num_top, _say_equal(chosen))
    sign = 1.0 if ascending else -1.0
    columns["rank"] = _average_ranks(sign * chosen.estimate)
    found = rank_draws(
        lambda: (sign * value for value in chosen.drawn(errors.draws(seed, int(num_draws)))),
        m,
        int(num_draws),
        level,
        num_top,
    )
    columns |= {
        "expected": found.expected,
        "rank_low": found.low,
        "rank_high": found.high,
        "p_top": found.p_top,
        "p_best": found.p_best,
    }
    table = NotedFrame(columns, index=index)
    order = np.lexsort((table["rank"], table["expected"]))
    note = _note(chosen, found, level, num_top, ascending, seed)
    return _with_facts(NotedFrame(table.iloc[order]), chosen, num_top, note)


def _with_facts(table: NotedFrame, chosen: LevelEffect, num_top: int, note: str) -> pd.DataFrame:
    """The table with its note, and what a picture of it needs to know."""
    table.attrs |= {"note": note, "group": chosen.label, "effect": chosen.words, "num_top": num_top}
    return table


def _number_at_top(top: float, m: int) -> int:
    """How many levels are at the top: a number of them, or a share of all, rounded down, but one at least."""
    if isinstance(top, int | np.integer) and not isinstance(top, bool) and 1 <= top < m:
        return int(top)
    if isinstance(top, float | np.floating) and 0 < top < 1:
        return max(1, math.floor(float(top) * m + 1e-9))
    raise DataError(
        f"top is {top!r}; give a share between 0 and 1, such as 0.1 for the top 10%, or a whole number of"
        f" levels below {m:,}"
    )


def _average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from the smallest, equal values sharing the mean of theirs."""
    return pd.Series(values).rank(method="average").to_numpy()


def _all_equal(m: int, num_top: int) -> dict[str, np.ndarray]:
    """Ranks where the model says that all levels are equal: chance alone."""
    values = {
        "rank": (m + 1) / 2,
        "expected": (m + 1) / 2,
        "rank_low": 1,
        "rank_high": m,
        "p_top": num_top / m,
        "p_best": 1 / m,
    }
    return {name: np.full(m, value) for name, value in values.items()}


def _say_equal(chosen: LevelEffect) -> str:
    message = (
        f"the estimated variance of {chosen.words} between the levels of {printable(chosen.label)} is zero,"
        f" so all {len(chosen.levels):,} are predicted to be equal and no rank means anything"
    )
    warnings.warn(message, SingularFitWarning, stacklevel=user_level())
    return f"{message}; p_top and p_best are those of a draw by lot"


@dataclass(frozen=True, slots=True, eq=False)
class RankSummary:
    """What draws say about ranks, 1 being the smallest value.

    Attributes
    ----------
    num_draws : int
    expected, sd : (m,) arrays
        Mean and standard deviation of the rank.
    low, high : (m,) int arrays
        Quantiles of the rank.
    p_top, p_best : (m,) arrays
        Shares of draws in which a level is among the first ``num_top``, or the first.
    """

    num_draws: int
    expected: np.ndarray
    sd: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_top: np.ndarray
    p_best: np.ndarray


def rank_draws(
    draws: Any, m: int, num_draws: int, level: float, num_top: int, kept_numbers: int = KEPT_NUMBERS
) -> RankSummary:
    """Rank every draw from the smallest value and summarise the ranks of each level.

    Parameters
    ----------
    draws : callable
        Without arguments; gives an iterator over the draws, (m,) arrays, the same at every call.
    m, num_draws : int
    level : float
        Part of the draws between the quantiles. They are the values of ranks at which the distribution
        function of the draws reaches (1 - level) / 2 and (1 + level) / 2.
    num_top : int
    kept_numbers : int
        Ranks kept at a time; more of them are made in several passes over the draws.

    Returns
    -------
    RankSummary

    Notes
    -----
    Memory is O(m) and at most 4 ``kept_numbers`` bytes (or what one level needs) for any number of draws.

    Examples
    --------
    >>> values = np.array([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    >>> found = rank_draws(lambda: iter(values), 3, 2, 0.95, 1)
    >>> found.expected.tolist(), found.p_best.tolist(), found.low.tolist(), found.high.tolist()
    ([3.0, 1.5, 1.5], [0.0, 0.5, 0.5], [3, 1, 1], [3, 2, 2])
    """
    tail = (1 - level) / 2
    below = math.ceil(num_draws * tail - 1e-9)
    above = num_draws - math.ceil(num_draws * (1 - tail) - 1e-9) + 1
    most = max(below, above)
    # New ranks are collected until they are as many as those kept: a selection then costs as much as filling.
    waiting = min(num_draws, max(most, _RANKED_NUMBERS // m, 1))
    block = max(1, min(m, kept_numbers // (below + above + waiting)))
    low, high = np.zeros(m, dtype=np.int64), np.zeros(m, dtype=np.int64)
    total, squares, best, at_top = (np.zeros(m) for _ in range(4))
    for start in range(0, m, block):
        part = slice(start, min(start + block, m))
        tails = _Tails(below, above, part)
        for ranked in _ranked(draws(), m, waiting, part if start else None):
            if not start:
                total += ranked.sum(axis=0)
                squares += np.sum(np.square(ranked - (m + 1) / 2), axis=0)
                at_top += np.count_nonzero(ranked <= num_top, axis=0)
                best += np.count_nonzero(ranked == 1, axis=0)
                ranked = ranked[:, part]
            tails.add(ranked)
        low[part], high[part] = tails.quantiles()
    expected = total / num_draws
    sd = np.sqrt(np.maximum(squares / num_draws - (expected - (m + 1) / 2) ** 2, 0.0))
    return RankSummary(num_draws, expected, sd, low, high, at_top / num_draws, best / num_draws)


def _ranked(draws: Iterator[np.ndarray], m: int, waiting: int, part: slice | None) -> Iterator[np.ndarray]:
    """Ranks of so many draws at a time, (draws, levels) 32-bit integers, of all levels or a part."""
    size = m if part is None else part.stop - part.start
    rank = np.empty(m, dtype=np.int32)
    out = np.empty((waiting, size), dtype=np.int32)
    filled = 0
    for value in draws:
        rank[np.argsort(value)] = np.arange(1, m + 1, dtype=np.int32)
        out[filled] = rank if part is None else rank[part]
        filled += 1
        if filled == waiting:
            yield out
            filled = 0
    if filled:
        yield out[:filled]


class _Tails:
    """The smallest and the largest ranks of each level of a block."""

    def __init__(self, below: int, above: int, part: slice) -> None:
        self.below, self.above = below, above
        self.low = np.empty((0, part.stop - part.start), dtype=np.int32)
        self.high = self.low

    def add(self, ranked: np.ndarray) -> None:
        """Take further ranks (draws, levels) into account."""
        self.low = np.concatenate([self.low, ranked])
        if len(self.low) > self.below:
            self.low = np.partition(self.low, self.below - 1, axis=0)[: self.below].copy()
        self.high = np.concatenate([self.high, ranked])
        if len(self.high) > self.above:
            at = len(self.high) - self.above
            self.high = np.partition(self.high, at, axis=0)[at:].copy()

    def quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """The ranks at which the tails end."""
        return self.low.max(axis=0), self.high.min(axis=0)


def _note(
    chosen: LevelEffect, found: RankSummary, level: float, num_top: int, ascending: bool, seed: int
) -> str:
    """What the table shows and how far the draws may be off."""
    draws = found.num_draws
    probability = math.sqrt(float(np.max(found.p_top * (1 - found.p_top))) / draws)
    expected = float(found.sd.max()) / math.sqrt(draws)
    return (
        f"{chosen.words} of {len(chosen.levels):,} levels of {printable(chosen.label)}; rank 1 is the"
        f" {'lowest' if ascending else 'highest'}, p_top counts {counted(num_top, 'rank')}. Expected ranks,"
        f" {100 * level:.12g}% intervals of ranks and probabilities are from {draws:,} joint draws (seed"
        f" {seed}) at the estimated variances; their Monte-Carlo standard errors are at most"
        f" {number(expected, 2)} ranks and {number(probability, 2)}"
    )


def compare_levels(
    chosen: LevelEffect, errors: ErrorModel, wanted: Sequence[Any], level: float
) -> pd.DataFrame:
    """Differences of all pairs of some levels; see `MixedResults.compare_levels`.

    Parameters
    ----------
    chosen : LevelEffect
    errors : ErrorModel
    wanted : sequence
        Levels.
    level : float
        Of the intervals.

    Returns
    -------
    pandas.DataFrame
        A row for each pair.

    Raises
    ------
    DataError
        If fewer than two levels are given, too many, or one that the grouping does not have.
    """
    from scipy.special import ndtr

    half = normal_quantile(level)
    if not 2 <= len(wanted) <= _MOST_COMPARED:
        raise DataError(
            f"compare_levels() compares 2 to {_MOST_COMPARED} levels of {printable(chosen.label)}; it was"
            f" given {len(wanted):,}"
        )
    positions = level_positions(chosen.levels, wanted, chosen.label)
    covariance = chosen.rows(errors, positions).covariance()
    first, second = (np.array(side) for side in zip(*combinations(range(len(positions)), 2), strict=True))
    estimate = chosen.estimate[positions[first]] - chosen.estimate[positions[second]]
    variance = np.diagonal(covariance)
    # Rounding can leave a variance of a difference that is zero at -1e-30.
    squared = np.maximum(variance[first] + variance[second] - 2 * covariance[first, second], 0.0)
    error = np.sqrt(squared)
    with np.errstate(divide="ignore", invalid="ignore"):
        probability = np.where(error > 0, ndtr(estimate / error), np.where(estimate == 0, 0.5, estimate > 0))
    names = [printable(level) for level in chosen.levels[positions]]
    index = pd.Index([f"{names[i]} - {names[j]}" for i, j in zip(first, second, strict=True)])
    columns = {
        "estimate": estimate,
        "std_error": error,
        "conf_low": estimate - half * error,
        "conf_high": estimate + half * error,
        "p_greater": probability,
    }
    table = NotedFrame(columns, index=index)
    table.attrs["note"] = (
        f"differences in {chosen.words} of {printable(chosen.label)}, with standard errors from the joint"
        f" covariance of the predictions; {100 * level:.12g}% intervals for one pair at a time; p_greater is"
        " the probability that the first is the larger one, given the data and the estimated variances"
    )
    return table

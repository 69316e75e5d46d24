"""Crossed designs: data sets of the field, and simulated ones in the shape of others."""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from benchmarks.peers import Crossed

DATA = Path(__file__).parents[1] / "tests" / "reference" / "data"


def penicillin() -> Crossed:
    """Every sample on every plate: completely crossed."""
    data = pd.read_csv(DATA / "Penicillin.csv")
    return Crossed("penicillin", data, "diameter ~ 1", ("plate", "sample"))


def pastes() -> Crossed:
    """Samples within batches, which the names of the samples do not say to whoever does not look."""
    data = pd.read_csv(DATA / "Pastes.csv")[["strength", "batch", "sample"]]
    return Crossed("pastes", data, "strength ~ 1", ("sample", "batch"))


def insteval() -> Crossed:
    """Students' ratings of lecturers in departments: partially crossed."""
    data = pd.read_csv(DATA / "InstEval.csv.gz")[["y", "service", "s", "d", "dept"]]
    return Crossed("insteval", data, "y ~ service", ("s", "d", "dept"))


def insteval_inter() -> Crossed:
    """The same, with an effect of each department's own and of its service courses."""
    return Crossed("insteval-inter", insteval().data, "y ~ service", ("s", "d", "dept:service"))


def unbalanced(rng: np.random.Generator, levels: int, rows: int, spread: float) -> np.ndarray:
    """A factor whose levels have lognormal shares of the rows, each at least one."""
    shares = rng.lognormal(sigma=spread, size=levels)
    drawn = rng.choice(levels, rows - levels, p=shares / shares.sum())
    return rng.permutation(np.concatenate([np.arange(levels), drawn]))


def three_factors(rows: int = 100_000, subjects: int = 5000, items: int = 400, raters: int = 60) -> Crossed:
    """Subjects, items and raters that meet at random, in unequal numbers, and a covariate."""
    rng = np.random.default_rng(9)
    subject = unbalanced(rng, subjects, rows, 0.5)
    item = unbalanced(rng, items, rows, 0.8)
    rater = unbalanced(rng, raters, rows, 0.8)
    x = rng.normal(size=rows)
    effects = [sd * rng.normal(size=size) for sd, size in ((0.8, subjects), (0.5, items), (0.3, raters))]
    y = 1 + 0.5 * x + effects[0][subject] + effects[1][item] + effects[2][rater] + rng.normal(size=rows)
    data = pd.DataFrame({"y": y, "x": x, "subject": subject, "item": item, "rater": rater})
    return Crossed("three-factors", data, "y ~ x", ("subject", "item", "rater"))


def quantiles(size: int) -> np.ndarray:
    """Standard normal quantiles at evenly spaced probabilities."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / size) for i in range(size)])


def long_tailed(size: int, total: int, least: int, most: int, spread: float) -> np.ndarray:
    """Lognormal counts, ascending, from `least` to `most`, that add up to `total`."""
    shape = np.exp(spread * quantiles(size))
    shape -= shape[0]

    def counts(scale: float) -> np.ndarray:
        return np.minimum(least + np.floor(scale * shape), most).astype(int)

    low, high = 0.0, float(total)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() <= total else (low, middle)
    found = counts(low)
    below = np.flatnonzero(found < most)
    found[below[below.size - (total - found.sum()) :]] += 1
    return found


def items_of_users(rng: np.random.Generator, counts: np.ndarray, items: int) -> np.ndarray:
    """For each user in turn as many distinct items as counted, the popular ones more often; every item once.

    Adding Gumbel noise to log weights and taking the largest draws without replacement. The quadratic term
    bends the lognormal weights: the most popular film is known to half the users, not to all, and the tail is
    long.
    """
    normal = rng.permutation(quantiles(items))
    log_weights = 1.7 * normal - 0.14 * normal**2
    chosen = [
        np.argpartition(log_weights + rng.gumbel(size=items), items - count)[items - count :]
        for count in counts
    ]
    item = np.concatenate(chosen)
    rated = np.bincount(item, minlength=items)
    missing = np.flatnonzero(rated == 0)
    top = np.argmax(rated)  # whoever chose it gives it up for one that nobody chose: counts stay, pairs too
    item[rng.choice(np.flatnonzero(item == top), missing.size, replace=False)] = missing
    return item


def movielens(name: str, users: int, items: int, ratings: int, most: int) -> Crossed:
    """Ratings of films by users in the shape of the MovieLens data: long tails on both sides."""
    rng = np.random.default_rng(10)
    counts = rng.permutation(long_tailed(users, ratings, 20, most, 1.14))
    user = np.repeat(np.arange(users), counts)
    item = items_of_users(rng, counts, items)
    user_effect = 0.45 * rng.normal(size=users)
    item_effect = 0.6 * rng.normal(size=items)
    y = 3.6 + user_effect[user] + item_effect[item] + 0.9 * rng.normal(size=ratings)
    data = pd.DataFrame({"y": y, "user": user, "item": item})
    return Crossed(name, data, "y ~ 1", ("user", "item"))


def movielens_100k() -> Crossed:
    return movielens("movielens-100k", 943, 1682, 100_000, 737)


def movielens_1m() -> Crossed:
    return movielens("movielens-1m", 6040, 3706, 1_000_209, 2314)


PROBLEMS: dict[str, Callable[[], Crossed]] = {
    "penicillin": penicillin,
    "pastes": pastes,
    "insteval": insteval,
    "insteval-inter": insteval_inter,
    "three-factors": three_factors,
    "movielens-100k": movielens_100k,
    "movielens-1m": movielens_1m,
}

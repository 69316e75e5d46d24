"""Random small designs of nested mixed models: a data frame and a formula, and the same model as arrays.

The arrays are written out by hand here (treatment contrasts, labels as in R), so that they also check what
the library makes of the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.support.dense import Array, Block, DenseModel

FACTOR_LEVELS = ("a", "b", "c")

# Right-hand sides without the intercept's name: formula text -> names of the columns, as R calls them.
FIXED = {
    "1": ("(Intercept)",),
    "x": ("(Intercept)", "x"),
    "x + z": ("(Intercept)", "x", "z"),
    "f + x": ("(Intercept)", "fb", "fc", "x"),
    "x * f": ("(Intercept)", "x", "fb", "fc", "x:fb", "x:fc"),
    "0 + f + z": ("fa", "fb", "fc", "z"),
}
RANDOM = {
    "1": ("(Intercept)",),
    "0 + x": ("x",),
    "1 + x": ("(Intercept)", "x"),
    "1 + x + z": ("(Intercept)", "x", "z"),
    "0 + f": ("fa", "fb", "fc"),
    "1 + x + f": ("(Intercept)", "x", "fb", "fc"),
}


@dataclass(frozen=True)
class RandomTerm:
    """One bar of the formula: its text, the label and columns of its group, the names of its effects."""

    text: str
    label: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    levels: tuple[str, ...]  # label of code 0, 1, ...


@dataclass(frozen=True)
class Design:
    """A data frame with a formula, and the same model as arrays."""

    data: pd.DataFrame
    formula: str
    weights: str | None
    offset: str | None
    x_names: tuple[str, ...]
    terms: tuple[RandomTerm, ...]
    model: DenseModel

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `jaxmixed.mixed` beyond formula and data."""
        return {"weights": self.weights, "offset": self.offset}


def random_design(
    seed: int,
    *,
    depth: int | None = None,
    max_effects: int = 4,
    weights: bool | None = None,
    offset: bool | None = None,
) -> Design:
    """Draw an unbalanced design of nested groups, some of them with a single row.

    Parameters
    ----------
    seed : int
        Same seed and arguments, same design.
    depth : int, optional
        Number of nested levels with a random term, 1 to 3; drawn if not given.
    max_effects : int
        Largest number of effects in a term, 1 to 4.
    weights, offset : bool, optional
        Whether to have them; drawn if not given.
    """
    rng = np.random.default_rng(seed)
    depth = int(rng.integers(1, 4)) if depth is None else depth
    weights = bool(rng.random() < 0.3) if weights is None else weights
    offset = bool(rng.random() < 0.3) if offset is None else offset
    while True:
        data = _rows(rng, depth)
        fixed = str(rng.choice(list(FIXED)))
        X = _columns(data, FIXED[fixed])
        if _proper(data, depth) and np.linalg.matrix_rank(X) == X.shape[1]:
            break
    drawn = [_term(rng, data, level, max_effects) for level in range(depth)]
    order = rng.permutation(depth)
    terms = tuple(drawn[k][0] for k in order)
    blocks = tuple(drawn[k][1] for k in order)
    if weights:
        data["w"] = np.round(rng.uniform(0.3, 3.0, len(data)), 2)
    if offset:
        data["off"] = np.round(rng.normal(size=len(data)), 2)
    data["y"] = _response(rng, data, X, blocks)
    model = DenseModel(
        y=data["y"].to_numpy(),
        X=X,
        blocks=blocks,
        weights=data["w"].to_numpy() if weights else None,
        offset=data["off"].to_numpy() if offset else None,
    )
    formula = " + ".join([f"y ~ {fixed}", *(term.text for term in terms)])
    names = FIXED[fixed]
    return Design(data, formula, "w" if weights else None, "off" if offset else None, names, terms, model)


def random_covariances(rng: np.random.Generator, design: Design) -> tuple[Array, ...]:
    """One well-conditioned covariance matrix per term."""
    covs = []
    for block in design.model.blocks:
        root = np.tril(rng.normal(scale=0.5, size=(block.num_effects, block.num_effects)))
        np.fill_diagonal(root, rng.uniform(0.3, 1.5, block.num_effects))
        covs.append(root @ root.T)
    return tuple(covs)


def _rows(rng: np.random.Generator, depth: int) -> pd.DataFrame:
    """Rows of nested groups g1 > g2 > g3, shuffled, with two covariates and a factor."""
    groups = np.arange(rng.integers(5, 9))[:, None]
    for _ in range(depth - 1):
        children = rng.integers(1, 4, size=len(groups))
        inner = np.concatenate([np.arange(count) for count in children])
        groups = np.column_stack([np.repeat(groups, children, axis=0), inner])
    counts = rng.integers(1, 13 if depth == 1 else 7, size=len(groups))
    counts[rng.integers(len(groups))] = 1
    groups = np.repeat(groups, counts, axis=0)
    groups = groups[rng.permutation(len(groups))]
    n = len(groups)
    data = pd.DataFrame({"x": np.round(rng.normal(size=n), 3), "z": np.round(rng.uniform(-2, 2, size=n), 3)})
    data["f"] = rng.permutation(np.resize(FACTOR_LEVELS, n))
    for level in range(depth):
        data[f"g{level + 1}"] = groups[:, level] + 10
        # The same partition under identifiers of its own, to be written without a colon.
        data[f"u{level + 1}"] = ["u" + "_".join(str(code) for code in row[: level + 1]) for row in groups]
    return data


def _proper(data: pd.DataFrame, depth: int) -> bool:
    """Enough rows, and no two levels of nesting that are the same partition, nor one that is the rows."""
    counts = [data[f"u{level + 1}"].nunique() for level in range(depth)]
    return len(data) >= 25 and len(set(counts)) == depth and counts[-1] < 0.8 * len(data)


def _term(
    rng: np.random.Generator, data: pd.DataFrame, level: int, max_effects: int
) -> tuple[RandomTerm, Block]:
    """A random term at one level of nesting, with fewer effects in all than there are rows."""
    columns = tuple(f"g{k + 1}" for k in range(level + 1)) if rng.random() < 0.5 else (f"u{level + 1}",)
    labels = data[list(columns)].astype(str).agg(":".join, axis=1)
    codes, levels = pd.factorize(labels, sort=True)
    fitting = [
        e for e, n in RANDOM.items() if len(n) <= max_effects and len(n) * len(levels) < 0.8 * len(data)
    ]
    effects = str(rng.choice(fitting))
    names = RANDOM[effects]
    label = ":".join(columns)
    term = RandomTerm(f"({effects} | {label})", label, columns, names, tuple(levels))
    return term, Block(_columns(data, names), codes.astype(np.int64))


def _columns(data: pd.DataFrame, names: tuple[str, ...]) -> Array:
    """Design columns by their R names; an interaction multiplies its factors."""
    return np.column_stack([_column(data, name) for name in names])


def _column(data: pd.DataFrame, name: str) -> NDArray[np.float64]:
    product = np.ones(len(data))
    for factor in name.split(":"):
        if factor in ("x", "z"):
            product = product * data[factor].to_numpy()
        elif factor != "(Intercept)":
            product = product * (data["f"] == factor[1:]).to_numpy()
    return product


def _response(rng: np.random.Generator, data: pd.DataFrame, X: Array, blocks: tuple[Block, ...]) -> Array:
    y = X @ rng.normal(size=X.shape[1]) + 3.0
    for block in blocks:
        effects = rng.normal(scale=1.2, size=(block.num_levels, block.num_effects))
        y = y + np.sum(block.Z * effects[block.codes], axis=1)
    noise = rng.normal(size=len(data))
    if "w" in data:
        noise = noise / np.sqrt(data["w"].to_numpy())
    if "off" in data:
        y = y + data["off"].to_numpy()
    return np.round(y + noise, 4)

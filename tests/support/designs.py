"""Random small designs of mixed models: a data frame and a formula, and the same model as arrays.

The arrays are written out by hand here (treatment contrasts, labels as in R), so that they also check what
the library makes of the formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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
    structure: str = "unstructured"


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
    bars = [term.text for term in terms]
    return _completed(rng, data, fixed, bars, terms, blocks, (weights, offset), [1.2] * depth)


def random_covariances(rng: np.random.Generator, design: Design) -> tuple[Array, ...]:
    """One well-conditioned covariance matrix per term, diagonal where the term's is."""
    covs = []
    for term, block in zip(design.terms, design.model.blocks, strict=True):
        root = np.tril(rng.normal(scale=0.5, size=(block.num_effects, block.num_effects)))
        np.fill_diagonal(root, rng.uniform(0.3, 1.5, block.num_effects))
        covs.append(np.diag(np.diag(root) ** 2) if term.structure == "independent" else root @ root.T)
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
    codes, levels = _coded(data, columns)
    fitting = [
        e for e, n in RANDOM.items() if len(n) <= max_effects and len(n) * len(levels) < 0.8 * len(data)
    ]
    effects = str(rng.choice(fitting))
    names = RANDOM[effects]
    label = ":".join(columns)
    term = RandomTerm(f"({effects} | {label})", label, columns, names, levels)
    return term, Block(_columns(data, names), codes)


def _coded(data: pd.DataFrame, columns: tuple[str, ...]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Level numbers of the rows and the levels' labels, of the observed combinations of columns."""
    labels = data[list(columns)].astype(str).agg(":".join, axis=1)
    codes, levels = pd.factorize(labels, sort=True)
    return codes.astype(np.int64), tuple(levels)


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


def _completed(
    rng: np.random.Generator,
    data: pd.DataFrame,
    fixed: str,
    bars: list[str],
    terms: tuple[RandomTerm, ...],
    blocks: tuple[Block, ...],
    weights_and_offset: tuple[bool, bool],
    scales: list[float],
) -> Design:
    """Add weights, offset and response to the data, and write the formula."""
    X = _columns(data, FIXED[fixed])
    weights, offset = weights_and_offset
    if weights:
        data["w"] = np.round(rng.uniform(0.3, 3.0, len(data)), 2)
    if offset:
        data["off"] = np.round(rng.normal(size=len(data)), 2)
    data["y"] = _response(rng, data, X, blocks, scales)
    model = DenseModel(
        y=data["y"].to_numpy(),
        X=X,
        blocks=blocks,
        weights=data["w"].to_numpy() if weights else None,
        offset=data["off"].to_numpy() if offset else None,
    )
    formula = " + ".join([f"y ~ {fixed}", *bars])
    names = FIXED[fixed]
    return Design(data, formula, "w" if weights else None, "off" if offset else None, names, terms, model)


def _response(
    rng: np.random.Generator, data: pd.DataFrame, X: Array, blocks: tuple[Block, ...], scales: list[float]
) -> Array:
    y = X @ rng.normal(size=X.shape[1]) + 3.0
    for block, scale in zip(blocks, scales, strict=True):
        effects = rng.normal(scale=scale, size=(block.num_levels, block.num_effects))
        y = y + np.sum(block.Z * effects[block.codes], axis=1)
    noise = rng.normal(size=len(data))
    if "w" in data:
        noise = noise / np.sqrt(data["w"].to_numpy())
    if "off" in data:
        y = y + data["off"].to_numpy()
    return np.round(y + noise, 4)


# Crossed designs


class Bar(NamedTuple):
    """A bar of a formula, and the terms that it stands for: columns of the group, names of the effects."""

    text: str
    terms: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    structure: str = "unstructured"


ONE, SLOPE = ("(Intercept)",), ("(Intercept)", "x")
BAR_A, BAR_B, BAR_C = (Bar(f"(1 | {name})", (((name,), ONE),)) for name in "abc")

CROSSED = {
    "balanced": (BAR_A, BAR_B),
    "unbalanced": (BAR_A, BAR_B),
    "empty cells": (BAR_A, BAR_B),
    "pupils who change school": (BAR_A, BAR_B),
    "disconnected": (BAR_A, BAR_B),
    "three factors": (BAR_A, BAR_B, BAR_C),
    "interaction": (BAR_A, BAR_B, Bar("(1 | a:b)", ((("a", "b"), ONE),))),
    "nested and crossed": (Bar("(1 | a/b)", ((("a",), ONE), (("a", "b"), ONE))), BAR_C),
    "two nestings": (
        Bar("(1 | a/b)", ((("a",), ONE), (("a", "b"), ONE))),
        Bar("(1 | c/d)", ((("c",), ONE), (("c", "d"), ONE))),
    ),
    "slopes": (Bar("(1 + x | a)", ((("a",), SLOPE),)), Bar("(1 + x | b)", ((("b",), SLOPE),))),
    "independent slopes": (
        Bar("(1 + x || a)", ((("a",), SLOPE),), "independent"),
        Bar("(0 + f | b)", ((("b",), ("fa", "fb", "fc")),)),
    ),
    "two terms on one factor": (
        BAR_A,
        Bar("(1 + z | b)", ((("b",), ("(Intercept)", "z")),)),
        Bar("(0 + x | a)", ((("a",), ("x",)),)),
    ),
    "slopes in a nesting": (
        Bar("(1 + x | a/b)", ((("a",), SLOPE), (("a", "b"), SLOPE))),
        Bar("(1 + z | c)", ((("c",), ("(Intercept)", "z")),)),
    ),
}
"""Random parts by the name of the kind of design."""


def random_crossed_design(
    seed: int, *, kind: str | None = None, weights: bool | None = None, offset: bool | None = None
) -> Design:
    """Draw a small design (40 to 160 rows) with factors of which none or not all are nested.

    Parameters
    ----------
    seed : int
        Same seed and arguments, same design.
    kind : str, optional
        A key of `CROSSED`; drawn if not given.
    weights, offset : bool, optional
        Whether to have them; drawn if not given.
    """
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(CROSSED))) if kind is None else kind
    weights = bool(rng.random() < 0.3) if weights is None else weights
    offset = bool(rng.random() < 0.3) if offset is None else offset
    bars = [CROSSED[kind][k] for k in rng.permutation(len(CROSSED[kind]))]
    while True:
        data = _crossed_rows(rng, kind)
        fixed = str(rng.choice(list(FIXED)))
        drawn = [_crossed_term(data, bar, *term) for bar in bars for term in bar.terms]
        if _identified(_columns(data, FIXED[fixed]), drawn):
            break
    terms, blocks = tuple(term for term, _ in drawn), tuple(block for _, block in drawn)
    # Effects of size zero, too: their estimates lie on the boundary or near it.
    scales = rng.choice([0.0, 0.4, 1.2, 1.2], size=len(terms)).tolist()
    return _completed(rng, data, fixed, [bar.text for bar in bars], terms, blocks, (weights, offset), scales)


def _crossed_term(
    data: pd.DataFrame, bar: Bar, columns: tuple[str, ...], names: tuple[str, ...]
) -> tuple[RandomTerm, Block]:
    codes, levels = _coded(data, columns)
    term = RandomTerm(bar.text, ":".join(columns), columns, names, levels, bar.structure)
    return term, Block(_columns(data, names), codes)


def _identified(X: Array, drawn: list[tuple[RandomTerm, Block]]) -> bool:
    """Full rank of X, no two groupings alike, and rows to spare for the residual variance."""
    if not 40 <= len(X) <= 160 or np.linalg.matrix_rank(X) < X.shape[1]:
        return False
    if any(block.num_levels * block.num_effects >= 0.8 * len(X) for _, block in drawn):
        return False
    codes = list({term.columns: block.codes for term, block in drawn}.values())
    if any(_alike(one, two) for k, one in enumerate(codes) for two in codes[:k]):
        return False
    everything = np.column_stack([X, *(block.wide() for _, block in drawn)])
    return bool(np.linalg.matrix_rank(everything) <= len(X) - 8)


def _alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    """Whether two groupings split the rows alike."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == a.max() + 1 == b.max() + 1


def _crossed_rows(rng: np.random.Generator, kind: str) -> pd.DataFrame:
    """Rows of the factors a, b, c, d, shuffled, with two covariates and a factor."""
    make = {
        "balanced": _grid,
        "unbalanced": _grid,
        "empty cells": _grid,
        "interaction": _grid,
        "pupils who change school": _changes,
        "disconnected": _islands,
    }.get(kind, _encounters)
    codes = make(rng, kind)
    codes = codes[rng.permutation(len(codes))]
    n = len(codes)
    data = pd.DataFrame({"x": np.round(rng.normal(size=n), 3), "z": np.round(rng.uniform(-2, 2, size=n), 3)})
    data["f"] = rng.permutation(np.resize(FACTOR_LEVELS, n))
    for position, name in enumerate("abcd"[: codes.shape[1]]):
        # Numbers and texts by turns; the labels of an inner factor start again in every outer level.
        data[name] = (
            codes[:, position] + 7 if position % 2 == 0 else [f"{name}{k}" for k in codes[:, position]]
        )
    return data


def _grid(rng: np.random.Generator, kind: str) -> NDArray[np.int64]:
    """Cells of two factors, equally or unequally filled."""
    a, b = int(rng.integers(5, 9)), int(rng.integers(4, 7))
    cells = np.stack(np.meshgrid(np.arange(a), np.arange(b), indexing="ij"), axis=-1).reshape(-1, 2)
    counts = {
        "balanced": lambda: np.full(len(cells), rng.integers(1, 4)),
        "unbalanced": lambda: rng.integers(1, 6, size=len(cells)),
        "empty cells": lambda: rng.poisson(1.5, size=len(cells)),
        "interaction": lambda: rng.integers(0, 6, size=len(cells)),
    }[kind]()
    return np.repeat(cells, counts, axis=0)


def _changes(rng: np.random.Generator, kind: str) -> NDArray[np.int64]:
    """Occasions of pupils in schools, some of whom go on to another school; a few are seen once."""
    schools = int(rng.integers(4, 8))
    rows = []
    for pupil in range(int(rng.integers(18, 27))):
        school = rng.integers(schools)
        for _ in range(int(rng.integers(1, 7))):
            rows.append((pupil, school))
            school = rng.integers(schools) if rng.random() < 0.3 else school
    return np.array(rows)


def _islands(rng: np.random.Generator, kind: str) -> NDArray[np.int64]:
    """Two factors in two or three islands: no level of either occurs in two of them."""
    rows, first = [], np.zeros(2, dtype=np.int64)
    for _ in range(int(rng.integers(2, 4))):
        sizes = rng.integers(3, 5, size=2)
        count = int(rng.integers(18, 30))
        rows.append(first + np.column_stack([rng.integers(size, size=count) for size in sizes]))
        first = first + sizes
    return np.concatenate(rows)


def _encounters(rng: np.random.Generator, kind: str) -> NDArray[np.int64]:
    """Levels of two to four factors that meet at random; b may be nested in a, and d in c."""
    inner = {"nested and crossed": 5, "slopes in a nesting": 3, "two nestings": 3}.get(kind)
    n = int(rng.integers(90, 160))
    a, c = rng.integers(rng.integers(5, 8), size=n), rng.integers(rng.integers(4, 7), size=n)
    b = rng.integers(rng.integers(5, 9) if inner is None else inner, size=n)
    d = rng.integers(2, size=n)
    return np.column_stack([a, b, c, d])

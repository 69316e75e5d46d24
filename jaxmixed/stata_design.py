"""Effects of a Stata command as columns of numbers, under the names and labels that Stata gives them.

Levels are those of the estimation sample; the base level is left out where the rest of the list makes it
redundant, so that ``i.a#c.x`` has a slope for each level without ``c.x`` in the list, and else differences.

References
----------
StataCorp, Stata User's Guide, section 11.4.3 (Factor variables), 26 (Working with categorical data).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jaxmixed.stata_factors import Factor, Term
from jaxmixed.stata_syntax import Statement

MAX_COLUMNS = 5_000
"""Most columns of one list of effects."""

_LARGEST_LEVEL = 2**31

CONSTANT = "_cons"


@dataclass(frozen=True, slots=True)
class Piece:
    """A variable of a column: the indicator of a level, or (None) its values."""

    name: str
    level: float | None = None

    @property
    def text(self) -> str:
        """As in ``2.race`` and ``c.age``."""
        return f"c.{self.name}" if self.level is None else f"{self.level:.10g}.{self.name}"

    def values(self, frame: pd.DataFrame) -> np.ndarray:
        """Numbers in each row."""
        own = frame[self.name].to_numpy(dtype=np.float64)
        return own if self.level is None else np.where(np.isnan(own), np.nan, own == self.level)


@dataclass(frozen=True, slots=True)
class DesignColumn:
    """One column: a product of pieces, its name in ``_b[]`` and its label in a table."""

    pieces: tuple[Piece, ...]
    label: str
    is_empty: bool = False

    @property
    def name(self) -> str:
        """Stata's name, ``2.race#c.age``."""
        first = self.pieces[0]
        if len(self.pieces) == 1 and first.level is None:
            return first.name
        return "#".join(piece.text for piece in self.pieces)

    def values(self, frame: pd.DataFrame) -> np.ndarray:
        """Numbers in each row of data, NaN where a variable is missing."""
        product = self.pieces[0].values(frame)
        for piece in self.pieces[1:]:
            product = product * piece.values(frame)
        return product


@dataclass(frozen=True, slots=True)
class DesignTerm:
    """Columns of one effect; ``title`` is what stands above them in a table."""

    factors: tuple[Factor, ...]
    title: str
    columns: tuple[DesignColumn, ...]
    is_labelled: bool

    @property
    def has_title(self) -> bool:
        """Whether a table has a line for the title."""
        levels = [piece for column in self.columns for piece in column.pieces if piece.level is not None]
        if not levels:
            return False
        return self.is_labelled or len(self.columns) > 1 or len(self.factors) > 1


@dataclass(frozen=True)
class Design:
    """All effects of a list.

    Attributes
    ----------
    terms : tuple of DesignTerm
    constant : bool
    levels : mapping of str to tuple of float
        Of each factor variable, in the estimation sample.
    bases : mapping of str to float or None
        Base level of each factor variable.
    labels : mapping
        Labels of levels by variable.
    """

    terms: tuple[DesignTerm, ...]
    constant: bool
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    bases: Mapping[str, float | None] = field(default_factory=dict)
    labels: Mapping[str, Mapping[float, str]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[DesignColumn, ...]:
        """Columns that are not empty, without the constant."""
        return tuple(column for term in self.terms for column in term.columns if not column.is_empty)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients, the constant last."""
        return (*(column.name for column in self.columns), *((CONSTANT,) if self.constant else ()))

    @property
    def variables(self) -> tuple[str, ...]:
        """Variables of the list, each once."""
        return tuple(dict.fromkeys(factor.name for term in self.terms for factor in term.factors))

    def matrix(self, frame: pd.DataFrame) -> np.ndarray:
        """Columns (n, p) in the order of `names` at rows of data."""
        columns = [column.values(frame) for column in self.columns]
        columns += [np.ones(len(frame))] if self.constant else []
        return np.column_stack(columns) if columns else np.zeros((len(frame), 0))


def variables_of(terms: Iterable[Term]) -> list[str]:
    """Variables of terms, each once."""
    return list(dict.fromkeys(factor.name for term in terms for factor in term.factors))


def design_of(
    statement: Statement,
    terms: Sequence[Term],
    frame: pd.DataFrame,
    labels: Mapping[str, Mapping[float, str]],
    constant: bool = True,
) -> Design:
    """The columns of a list of effects.

    Parameters
    ----------
    statement : Statement
        For errors.
    terms : sequence of Term
    frame : DataFrame
        Rows of the estimation sample.
    labels : mapping
        Labels of values by variable.
    constant : bool

    Returns
    -------
    Design

    Raises
    ------
    StataError
        If a factor variable holds texts or other values than whole numbers, or there are too many columns.

    Examples
    --------
    >>> from jaxmixed.stata_factors import terms
    >>> from jaxmixed.stata_frame import Variables
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("mixed y i.g##c.x")[0]
    >>> data = pd.DataFrame({"g": [1.0, 2, 3], "x": [0.5, 1, 2]})
    >>> found = design_of(line, terms(line, line.arguments[1:], Variables(line, ("y", "g", "x"))), data, {})
    >>> found.names
    ('2.g', '3.g', 'x', '2.g#c.x', '3.g#c.x', '_cons')
    """
    levels: dict[str, tuple[float, ...]] = {}
    asked: dict[str, float | str | None] = {}
    for term in terms:
        for factor in term.factors:
            _check_numeric(statement, term, factor, frame)
            if factor.categorical:
                levels.setdefault(factor.name, _levels(statement, term, factor, frame))
                if asked.get(factor.name) is None:
                    asked[factor.name] = factor.base
    bases = {
        name: _base(own, asked[name], frame[name].to_numpy(dtype=np.float64)) for name, own in levels.items()
    }
    for term in terms:
        for factor in term.factors:
            if (
                factor.categorical
                and isinstance(factor.base, float)
                and factor.base not in levels[factor.name]
            ):
                raise statement.error(
                    term.tokens, f"the base {factor.base:g} is no value of '{factor.name}' in the sample"
                )
    present = {_signature(term.factors) for term in terms}
    found, total = [], 0
    for term in terms:
        chosen = _chosen_levels(term, levels, bases, present)
        total += int(np.prod([max(1, len(own)) for own in chosen]))
        if total > MAX_COLUMNS:
            raise statement.error(term.tokens, f"this makes more than {MAX_COLUMNS:,} columns")
        found.append(_columns(term, chosen, bases, frame, labels, constant))
    known = {name: labels[name] for name in levels if name in labels}
    return Design(tuple(found), constant, levels, bases, known)


def _check_numeric(statement: Statement, term: Term, factor: Factor, frame: pd.DataFrame) -> None:
    if frame[factor.name].dtype.kind != "f":
        raise statement.error(
            term.tokens,
            f"'{factor.name}' holds texts: make numbers of them, as in egen number = group({factor.name})",
        )


def _levels(statement: Statement, term: Term, factor: Factor, frame: pd.DataFrame) -> tuple[float, ...]:
    values = frame[factor.name].to_numpy(dtype=np.float64)
    own = np.unique(values[~np.isnan(values)])
    if (own != np.floor(own)).any() or (len(own) and (own[0] < 0 or own[-1] >= _LARGEST_LEVEL)):
        raise statement.error(
            term.tokens,
            f"a factor variable holds whole numbers from 0, and '{factor.name}' does not: write"
            f" c.{factor.name} for its values, or make a number for each of them by egen group()",
        )
    return tuple(float(value) for value in own)


def _base(levels: tuple[float, ...], asked: float | str | None, values: np.ndarray) -> float | None:
    if asked == "none" or not levels:
        return None
    if isinstance(asked, float):
        return asked
    if asked == "last":
        return levels[-1]
    if asked == "freq":
        return max(levels, key=lambda level: (np.count_nonzero(values == level), -level))
    return levels[0]


def _signature(factors: Iterable[Factor]) -> tuple[tuple[str, bool], ...]:
    return tuple(sorted((factor.name, factor.categorical) for factor in factors))


def _chosen_levels(
    term: Term,
    levels: Mapping[str, tuple[float, ...]],
    bases: Mapping[str, float | None],
    present: set[tuple[tuple[str, bool], ...]],
) -> list[tuple[float | None, ...]]:
    """Levels of each factor that make columns; (None,) for values."""
    chosen: list[tuple[float | None, ...]] = []
    for at, factor in enumerate(term.factors):
        if not factor.categorical:
            chosen.append((None,))
            continue
        if factor.levels:
            chosen.append(factor.levels)
            continue
        others = _signature([*term.factors[:at], *term.factors[at + 1 :]])
        redundant = factor.base != "none" and (not others or others in present)
        own = levels[factor.name]
        chosen.append(tuple(level for level in own if not (redundant and level == bases[factor.name])))
    return chosen


def _columns(
    term: Term,
    chosen: Sequence[tuple[float | None, ...]],
    bases: Mapping[str, float | None],
    frame: pd.DataFrame,
    labels: Mapping[str, Mapping[float, str]],
    constant: bool,
) -> DesignTerm:
    order = sorted(range(len(term.factors)), key=lambda at: not term.factors[at].categorical)
    factors = tuple(term.factors[at] for at in order)
    names = [factor.name for factor in factors if factor.categorical]
    labelled = any(labels.get(name) for name in names)
    title = "#".join(factor.name if factor.categorical else f"c.{factor.name}" for factor in factors)
    if len(factors) == 1:
        title = factors[0].name
    base_cell = tuple(bases[name] for name in names)
    whole = constant and len(names) == len(factors) > 1 and None not in base_cell
    found = []
    for cell in itertools.product(*(chosen[at] for at in order)):
        if whole and cell == base_cell:
            continue  # with the constant, all cells of an interaction are one too many
        pieces = tuple(Piece(factor.name, level) for factor, level in zip(factors, cell, strict=True))
        is_empty = bool(names) and not _indicator(pieces, frame).any()
        found.append(DesignColumn(pieces, _label(pieces, labels, labelled) or title, is_empty))
    return DesignTerm(factors, title, tuple(found), labelled)


def _indicator(pieces: tuple[Piece, ...], frame: pd.DataFrame) -> np.ndarray:
    """Rows in which all indicators of a column are one."""
    rows = np.ones(len(frame), dtype=bool)
    for piece in pieces:
        if piece.level is not None:
            rows &= piece.values(frame) == 1
    return rows


def _label(pieces: tuple[Piece, ...], labels: Mapping[str, Mapping[float, str]], labelled: bool) -> str:
    texts = [
        labels.get(piece.name, {}).get(piece.level, f"{piece.level:.10g}")
        for piece in pieces
        if piece.level is not None
    ]
    return ("#" if labelled else " ").join(texts)

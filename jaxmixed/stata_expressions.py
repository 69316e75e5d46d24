"""Stata's expressions: numbers and texts, missing values, subscripts, results in r(), e(), _b[] and _se[].

A missing number is larger than any number, and as a condition it is true (Stata User's Guide, 12.2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jaxmixed.errors import listed
from jaxmixed.stata_frame import Variables
from jaxmixed.stata_functions import FUNCTIONS, REFUSED, compare, finite, is_text, texts, truth
from jaxmixed.stata_syntax import Statement, Tokens, split, suggestion
from jaxmixed.stata_tokens import Token
from jaxmixed.stata_trees import BINDING, Node, read

Value = np.ndarray
"""(n,) or, of what is the same in each row, (1,): floats, or objects of str."""

_MAX_ROWS_ONE_BY_ONE = 100_000


@dataclass
class Rows:
    """What an expression may look at.

    Attributes
    ----------
    statement : Statement
        For errors.
    frame : DataFrame
    groups : tuple of str
        Variables of a ``by`` prefix, by which the rows are sorted: ``_n``, ``_N``, subscripts and ``sum()``
        then are within groups.
    scalars, r, e, b, se : mapping
        Values by name; ``e``, ``b`` and ``se`` are None without estimates.
    sample : (n,) bool array or None
        ``e(sample)``.
    coefficients : bool
        Whether names are coefficients (their values are looked up in ``b``), not variables.
    changed : dict
        Columns that stand for those of the frame.
    only : int or None
        The one row to be evaluated.
    """

    statement: Statement
    frame: pd.DataFrame
    groups: tuple[str, ...] = ()
    scalars: Mapping[str, float | str] = field(default_factory=dict)
    r: Mapping[str, float | str] = field(default_factory=dict)
    e: Mapping[str, float | str] | None = None
    b: Mapping[str, float] | None = None
    se: Mapping[str, float] | None = None
    sample: np.ndarray | None = None
    coefficients: bool = False
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    only: int | None = None

    def __post_init__(self) -> None:
        self.size = len(self.frame)
        self.first, self.count = _runs(self.frame, self.groups)
        self.variables = Variables(self.statement, tuple(self.frame.columns))

    def of_rows(self, values: np.ndarray) -> Value:
        """Values of the rows that are evaluated."""
        return values if self.only is None else values[self.only : self.only + 1]

    def column(self, name: str) -> np.ndarray:
        """All values of a variable."""
        found = self.changed.get(name)
        return self.frame[name].to_numpy() if found is None else found

    def number(self) -> np.ndarray:
        """``_n``: the position of each row in its group, from one."""
        return np.arange(self.size, dtype=float) - self.first + 1

    def spread(self, value: Value, at_least: int = 0) -> np.ndarray:
        """A value for each row (for ``at_least`` rows, where there are fewer)."""
        size = max(self.size, at_least)
        if len(value) == size:
            return value
        if len(value) == 1:
            return np.repeat(value, size)
        return texts([""] * size) if is_text(value) else np.full(size, np.nan)

    def range(self, tokens: Tokens) -> np.ndarray:
        """Rows of ``in 1/10``, ``in 5``, ``in -3/l``.

        Returns
        -------
        (n,) bool array
        """
        if self.groups:
            raise self.statement.error(tokens, "'in' cannot be combined with by")
        ends = [self._row(part, tokens) for part in split(tokens, "/")]
        if len(ends) > 2:
            raise self.statement.error(tokens, "a range of rows is written in 1/10, in 5, or in -3/l")
        first, last = ends[0], ends[-1]
        if not 1 <= first <= last <= self.size:
            raise self.statement.error(tokens, f"there are {self.size:,} rows: the range must be within them")
        numbers = np.arange(1, self.size + 1)
        return (numbers >= first) & (numbers <= last)

    def _row(self, part: Tokens, tokens: Tokens) -> int:
        values = [token.value for token in part]
        negative = values[:1] == ["-"]
        word = values[1:] if negative else values
        if len(word) == 1 and word[0] in ("f", "F", "l", "L") and not negative:
            return 1 if word[0] in "fF" else self.size
        if len(word) != 1 or not word[0].isdecimal():
            raise self.statement.error(tokens, "a range of rows is written in 1/10, in 5, or in -3/l")
        number = int(word[0][:18])
        return self.size - number + 1 if negative else number


def _runs(frame: pd.DataFrame, groups: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Position of the first row of each row's group, and how many rows it has."""
    size = len(frame)
    if not groups or not size:
        return np.zeros(size, dtype=int), np.full(size, float(size))
    starts = np.zeros(size, dtype=bool)
    starts[0] = True
    for name in groups:
        codes, _ = pd.factorize(frame[name])
        starts[1:] |= codes[1:] != codes[:-1]
    number = np.cumsum(starts) - 1
    return np.flatnonzero(starts)[number], np.bincount(number).astype(float)[number]


def evaluate(rows: Rows, tokens: Tokens) -> Value:
    """Values of an expression.

    Raises
    ------
    StataError
        If the expression cannot be read, a name is unknown, or texts meet numbers.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("generate z = x[_n-1] + 1 > 2")[0]
    >>> evaluate(Rows(line, pd.DataFrame({"x": [1.0, 2.0, 3.0]})), line.arguments[2:])
    array([1., 0., 1.])
    """
    with np.errstate(all="ignore"):
        return value_of(rows, read(rows.statement, tokens))


def is_true(rows: Rows, value: Value, tokens: Tokens) -> np.ndarray:
    """A condition in each row; a missing number is true.

    Returns
    -------
    (n,) bool array
    """
    if is_text(value):
        raise rows.statement.error(
            tokens, 'a condition is a number: compare the text with another, as in x == "a"'
        )
    return truth(rows.spread(value))


def value_of(rows: Rows, node: Node) -> Value:
    """Values of a node; to be called with numpy's warnings off."""
    return _EVALUATORS[node.kind](rows, node)


def uses_itself(node: Node, name: str, variables: Variables) -> bool:
    """Whether an expression looks at other rows of a variable, so that replacing it goes row by row."""
    if node.kind == "subscript" and variables.find(node.operators[0]) == name:
        return True
    if node.kind == "call" and node.value == "sum" and _mentions(node, name, variables):
        return True
    return any(uses_itself(child, name, variables) for child in node.children)


def _mentions(node: Node, name: str, variables: Variables) -> bool:
    if node.kind == "name" and variables.find(node.tokens[0]) == name:
        return True
    return any(_mentions(child, name, variables) for child in node.children)


def one_by_one(rows: Rows, node: Node, name: str, kept: np.ndarray) -> np.ndarray:
    """New values of a variable that depend on its values in other rows, each row after those above it.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("replace x = x[_n-1] * 2 in 2/4")[0]
    >>> rows = Rows(line, pd.DataFrame({"x": [1.0, np.nan, np.nan, np.nan]}))
    >>> one_by_one(rows, read(line, line.arguments[2:]), "x", rows.range(line.in_range))
    array([1., 2., 4., 8.])
    """
    where = np.flatnonzero(kept)
    if len(where) > _MAX_ROWS_ONE_BY_ONE:
        raise rows.statement.error(
            node.tokens,
            f"a variable that depends on its own other rows has at most {_MAX_ROWS_ONE_BY_ONE:,} rows",
        )
    column = rows.column(name).copy()
    rows.changed[name] = column
    with np.errstate(all="ignore"):
        for row in where:
            rows.only = int(row)
            value = value_of(rows, node)
            if is_text(value) != is_text(column):
                raise rows.statement.error(node.tokens, "texts and numbers cannot be mixed in one variable")
            column[row] = value[0]
    rows.only = None
    return column


def _constant(value: float | str) -> Value:
    return texts([value]) if isinstance(value, str) else np.array([float(value)])


def _name(rows: Rows, node: Node) -> Value:
    token, name = node.tokens[0], node.value
    if rows.coefficients and (rows.b is not None) and name in rows.b:
        return _constant(rows.b[name])
    if rows.coefficients:
        raise rows.statement.error(token, f"there is no coefficient '{name}'{_known(rows.b)}")
    if name in ("_n", "_N"):
        return rows.of_rows(rows.number() if name == "_n" else rows.count)
    if name == "_pi":
        return _constant(np.pi)
    if name not in rows.frame.columns and name in rows.scalars:
        return _constant(rows.scalars[name])
    return rows.of_rows(rows.column(rows.variables.one(token)))


def _known(names: Mapping[str, object] | None) -> str:
    return f"; there are {listed(names, 30)}" if names else ": there are no estimates"


def _coefficient(rows: Rows, node: Node) -> Value:
    table = rows.se if node.operators and node.operators[0].value == "_se" else rows.b
    if not node.operators and not rows.coefficients:
        raise rows.statement.error(
            node.tokens, f"write the indicator '{node.value}' as a comparison, as in (race == 2)"
        )
    name = "".join(node.value.split())
    if table is None or name not in table:
        raise rows.statement.error(node.tokens, f"there is no coefficient '{name}'{_known(table)}")
    return _constant(table[name])


def _result(rows: Rows, node: Node) -> Value:
    kind = node.operators[0].value
    if kind == "e" and node.value == "sample":
        if rows.sample is None:
            raise rows.statement.error(node.tokens, "there is no e(sample): fit a model first")
        return rows.of_rows(rows.sample.astype(float))
    table = rows.e if kind == "e" else rows.r
    if not table or node.value not in table:
        held = f"; there are {listed(table, 40)}" if table else f": {kind}() is empty"
        raise rows.statement.error(node.tokens, f"there is no {kind}({node.value}){held}")
    return _constant(table[node.value])


def _subscript(rows: Rows, node: Node) -> Value:
    name = rows.variables.one(node.operators[0])
    position = value_of(rows, node.children[0])
    if is_text(position):
        raise rows.statement.error(node.children[0].tokens, "a row is a number")
    column = rows.column(name)
    first, count = rows.of_rows(rows.first), rows.of_rows(rows.count)
    position, _ = np.broadcast_arrays(np.trunc(position), first)
    inside = (position >= 1) & (position <= count)
    where = np.where(inside, first + np.where(inside, position, 1) - 1, 0).astype(int)
    if not len(column):
        return column[:0]
    if is_text(column):
        return texts([column[w] if i else "" for w, i in zip(where, inside, strict=True)])
    return np.where(inside, column[where], np.nan)


def _call(rows: Rows, node: Node) -> Value:
    name, token = node.value, node.operators[0]
    if name == "sum":
        return _running_sum(rows, node)
    function = FUNCTIONS.get(name)
    if function is None:
        problem = REFUSED.get(name)
        why = f": {problem}" if problem else suggestion(name, FUNCTIONS)
        raise rows.statement.error(
            token,
            f"{name}() is not a supported function{why}. Supported are {', '.join(sorted(FUNCTIONS))}, sum",
        )
    count, most = len(node.children), len(function.kinds)
    if count < function.fewest or (count > most and not function.repeats):
        needed = str(function.fewest) if function.fewest == most else f"{function.fewest} to {most}"
        needed = f"at least {function.fewest}" if function.repeats else needed
        needed += " argument" + ("" if needed == "1" else "s")
        raise rows.statement.error(node.tokens, f"{name}() takes {needed}, not {count}")
    values = [value_of(rows, child) for child in node.children]
    kinds = (function.kinds + function.kinds[-1] * count)[:count]
    either: bool | None = None
    for kind, value, child in zip(kinds, values, node.children, strict=True):
        found = is_text(value)
        if kind == "a" and name not in ("missing", "mi"):
            either = found if either is None else either
        wanted = {"n": False, "s": True}.get(kind, either)
        if wanted is not None and wanted != found:
            have, need = ("text", "number") if found else ("number", "text")
            raise rows.statement.error(child.tokens, f"{name}() needs a {need} here, and this is a {have}")
    values = list(np.broadcast_arrays(*values))
    return function.call(*values)


def _running_sum(rows: Rows, node: Node) -> Value:
    """Sum down to each row within its group; missing numbers count as 0."""
    if len(node.children) != 1:
        raise rows.statement.error(node.tokens, "sum() takes one argument: it is the sum down to each row")
    only, rows.only = rows.only, None
    value = rows.spread(value_of(rows, node.children[0]))
    rows.only = only
    if is_text(value):
        raise rows.statement.error(node.children[0].tokens, "sum() needs a number here, and this is a text")
    if not rows.groups:
        return rows.of_rows(np.cumsum(np.nan_to_num(value)))
    by_group = pd.Series(np.nan_to_num(value)).groupby(rows.first).cumsum()
    return rows.of_rows(by_group.to_numpy())


def _sign(rows: Rows, node: Node) -> Value:
    value = value_of(rows, node.children[0])
    if is_text(value):
        raise rows.statement.error(node.tokens, f"a text cannot have a sign '{node.value}'")
    return -value if node.value == "-" else value


def _not(rows: Rows, node: Node) -> Value:
    value = value_of(rows, node.children[0])
    if is_text(value):
        raise rows.statement.error(node.tokens, "a text is neither true nor false")
    return (~truth(value)).astype(float)


def _chain(rows: Rows, node: Node) -> Value:
    left = value_of(rows, node.children[0])
    for operator, child in zip(node.operators, node.children[1:], strict=True):
        left = _operated(rows, operator, left, value_of(rows, child))
    return left


def _operated(rows: Rows, operator: Token, left: Value, right: Value) -> Value:
    kind = operator.kind
    left, right = np.broadcast_arrays(left, right)
    if is_text(left) != is_text(right):
        hint = "; put a text in quotation marks" if kind in ("==", "!=", "~=") else ""
        raise rows.statement.error(operator, f"'{kind}' stands between a text and a number{hint}")
    if BINDING[kind] == 3:
        return compare(kind, left, right)
    if is_text(left):
        if kind == "+":
            return texts([a + b for a, b in zip(left, right, strict=True)])
        raise rows.statement.error(operator, f"'{kind}' cannot stand between texts")
    if kind in "&|":
        true = truth(left) & truth(right) if kind == "&" else truth(left) | truth(right)
        return true.astype(float)
    if kind == "^":
        return finite(np.where(np.isnan(left) | np.isnan(right), np.nan, np.power(left, right)))
    return finite({"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[kind](left, right))


_EVALUATORS = {
    "number": lambda rows, node: _constant(float(node.value)),
    "text": lambda rows, node: texts([node.value]),
    "missing": lambda rows, node: _constant(np.nan),
    "name": _name,
    "coefficient": _coefficient,
    "result": _result,
    "subscript": _subscript,
    "call": _call,
    "sign": _sign,
    "not": _not,
    "chain": _chain,
}

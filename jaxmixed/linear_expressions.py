"""Linear functions of coefficients, and hypotheses about them, as text: ``"x1 - x2/3 = 1.5"``.

Grammar
-------
Nothing is ever evaluated as code. The operators have their usual precedence; white space may stand anywhere
between two of them. ::

    hypotheses  = equation { "," equation }
    equation    = sum { ("=" | "==") sum }                a = b = 0 is a = b and b = 0
    sum         = ["+" | "-"] product { ("+" | "-") product }
    product     = operand { ("*" | "/") operand }         at most one factor with coefficients, never divisor
    operand     = number | coefficient | "(" sum ")"
    coefficient = its name as it is printed | "`" its name "`" | "_b[" its name "]"

Names are as printed, e.g. ``(Intercept)``, ``recipeB:temperature185``, ``I(x^2)``, ``C(f)b``, and where names
begin alike the longest one is read. Blanks within a name, and ``**`` for ``^``, do not matter. ``_cons`` is
the intercept where no column is called so. A term of the formula that stands alone, as in ``"recipe"`` or
``"recipe = 0"``, means each of its coefficients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed._tokens import MAX_LENGTH, MAX_TERMS, Node, SyntaxReader, Token, error, tokenize
from jaxmixed.coefficient_names import Coefficients, NameFinder
from jaxmixed.errors import DataError, FormulaError, listed

_LONGEST_LABEL = 60
_REFUSED = {
    "~": "'~' is for formulas: write '='",
    "|": "a bar is for formulas",
    "||": "a bar is for formulas",
    "%in%": "'%in%' is for formulas",
    ":": "':' stands only inside the name of a coefficient: write '*' for a product with a number",
    "^": "a power is not linear in the coefficients",
    "text": "write names without quotation marks, or in backquotes",
}


class LinearFunctions(NamedTuple):
    """Linear functions ``L beta`` with the values that they are compared with.

    Attributes
    ----------
    L : (c, p) array
    rhs : (c,) array
        Values under the hypotheses; of expressions that are no equations, minus their constants.
    labels : tuple of str
        What the user wrote of each.
    of_terms : (c,) bool array
        Rows that stand for the coefficients of a whole term.
    equations : (c,) bool array
        Rows for which an equals sign was written.
    """

    L: np.ndarray
    rhs: np.ndarray
    labels: tuple[str, ...]
    of_terms: np.ndarray
    equations: np.ndarray


class _Affine(NamedTuple):
    """A linear function of the coefficients plus a constant; the rows of a whole term make several."""

    rows: np.ndarray
    constant: float
    of_term: bool = False


class _Reader:
    """Gives the syntax of one text its meaning."""

    def __init__(self, text: str, coefficients: Coefficients) -> None:
        if len(text) > MAX_LENGTH:
            raise FormulaError(
                f"the text has {len(text):,} characters, more than the {MAX_LENGTH:,} allowed: give a matrix"
            )
        self.text = text
        self.coefficients = coefficients
        self.tokens = tokenize(text, NameFinder(text, coefficients).at)
        self.rows: list[np.ndarray] = []
        self.rhs: list[float] = []
        self.labels: list[str] = []
        self.of_terms: list[bool] = []
        self.equations: list[bool] = []

    def read(self, label: str | None = None) -> LinearFunctions:
        """All that the text says; a label may stand for what was written."""
        if len(self.tokens) == 1:
            raise FormulaError("the text is empty: write one such as 'x1 = x2'")
        for piece in self._split(self.tokens, ","):
            sides = self._split(piece, "=")
            values = [self._side(side) for side in sides]
            if len(sides) == 1:
                self._add(values[0], None, sides[0], sides[0], label)
            for number in range(len(sides) - 1):
                self._add(values[number], values[number + 1], sides[number], sides[number + 1], label)
        return LinearFunctions(
            np.array(self.rows),
            np.array(self.rhs),
            tuple(self.labels),
            np.array(self.of_terms),
            np.array(self.equations),
        )

    def _split(self, tokens: list[Token], kind: str) -> list[list[Token]]:
        """Pieces between the tokens of a kind, each closed by an end token."""
        pieces: list[list[Token]] = [[]]
        depth, last_mark = 0, -1
        for token in tokens[:-1]:
            depth += {"(": 1, ")": -1}.get(token.kind, 0)
            if token.kind in _REFUSED:
                raise self._fail(token, _REFUSED[token.kind])
            if token.kind in ",=" and depth > 0:
                raise self._fail(token, f"'{token.value}' cannot stand between parentheses here")
            if token.kind != kind:
                pieces[-1].append(token)
            elif kind == "=" and token.start == last_mark:  # the second character of ==
                last_mark = -1
            else:
                pieces[-1].append(Token("end", "", token.start, token.start))
                pieces.append([])
                last_mark = token.end
        pieces[-1].append(tokens[-1])
        for number, piece in enumerate(pieces):
            if len(piece) == 1 and len(pieces) > 1:
                edge = piece[0].start if number + 1 < len(pieces) else max(piece[0].start - 1, 0)
                mark = {",": "','", "=": "'='"}[kind]
                raise error(self.text, edge, edge + 1, f"nothing stands on one side of the {mark}")
        return pieces

    def _side(self, tokens: list[Token]) -> _Affine:
        """What one side of an equation, or an expression, means."""
        inner = [token for token in tokens if token.kind not in ("(", ")", "end")]
        node = SyntaxReader(self.text, tokens).only_expression()
        while node.kind == "paren":
            node = node.children[0]
        if len(inner) == 1 and node.kind == "quoted" and node.value not in self.coefficients.exact:
            positions = self.coefficients.terms[node.value]
            return _Affine(np.eye(len(self.coefficients.names))[list(positions)], 0.0, True)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            value = self._value(node)
        if not (np.isfinite(value.rows).all() and np.isfinite(value.constant)):
            raise self._fail(node, "a number here is too large for float64")
        return value

    def _value(self, node: Node) -> _Affine:
        if node.kind == "quoted":
            return self._coefficient(node)
        if node.kind == "number":
            return _Affine(np.zeros((1, len(self.coefficients.names))), float(node.value))
        if node.kind == "paren":
            return self._value(node.children[0])
        if node.kind == "sign":
            value = self._value(node.children[0])
            return _scaled(value, -1.0 if node.value == "-" else 1.0)
        result = self._value(node.children[0])
        for operator, child in zip(node.operators, node.children[1:], strict=True):
            value = self._value(child)
            if node.kind == "product":
                result = self._product(node, operator, result, value)
            else:
                sign = -1.0 if operator.kind == "-" else 1.0
                result = _Affine(result.rows + sign * value.rows, result.constant + sign * value.constant)
        return result

    def _coefficient(self, node: Node) -> _Affine:
        found = self.coefficients.exact.get(node.value)
        if found is None:
            names = [self.coefficients.names[j] for j in self.coefficients.terms[node.value]]
            raise self._fail(
                node,
                f"{node.value!r} is a term, which can only stand alone; its coefficients are {listed(names)}",
            )
        row = np.zeros((1, len(self.coefficients.names)))
        row[0, found[0]] = 1.0
        return _Affine(row, 0.0)

    def _product(self, node: Node, operator: Token, left: _Affine, right: _Affine) -> _Affine:
        if operator.kind == "/":
            if right.rows.any():
                raise self._fail(
                    operator, "division by a coefficient is not linear: nlcom() takes such ratios"
                )
            if right.constant == 0:
                raise self._fail(operator, "division by zero")
            return _Affine(left.rows / right.constant, left.constant / right.constant)
        if left.rows.any() and right.rows.any():
            raise self._fail(
                operator,
                "a product of coefficients is not linear: the name of an interaction has ':', and nlcom() "
                "takes such products",
            )
        if right.rows.any():
            left, right = right, left
        return _scaled(left, right.constant)

    def _add(
        self, left: _Affine, right: _Affine | None, first: list[Token], last: list[Token], label: str | None
    ) -> None:
        """Add the rows of an expression, or of an equation."""
        start, end = first[0].start, last[-2].end
        if left.of_term or (right is not None and right.of_term):
            self._add_term(left, right, start, end)
            return
        row = left.rows[0] - (0.0 if right is None else right.rows[0])
        if not row.any():
            raise error(
                self.text, start, end, "no coefficient is left here: name one that does not cancel out"
            )
        constant = left.constant - (0.0 if right is None else right.constant)
        label = label or _one_line(self.text[start:end])
        self._append(row, 0.0 - constant, label, False, right is not None)

    def _add_term(self, left: _Affine, right: _Affine | None, start: int, end: int) -> None:
        """Add the coefficients of a whole term, each compared with the same number."""
        if right is not None and right.of_term:
            left, right = right, left
        if right is not None and (right.of_term or right.rows.any()):
            raise error(self.text, start, end, "a whole term can only be compared with a number")
        for row in left.rows:
            self._append(
                row,
                0.0 if right is None else right.constant,
                self.coefficients.names[int(np.flatnonzero(row)[0])],
                True,
                right is not None,
            )

    def _append(self, row: np.ndarray, rhs: float, label: str, of_term: bool, equation: bool) -> None:
        if len(self.rows) == MAX_TERMS:
            raise FormulaError(f"more than {MAX_TERMS:,} linear functions in one text: give a matrix")
        self.rows.append(row)
        self.rhs.append(rhs)
        self.labels.append(label)
        self.of_terms.append(of_term)
        self.equations.append(equation)

    def _fail(self, node: Node | Token, problem: str) -> FormulaError:
        return error(self.text, node.start, node.end, problem)


def _scaled(value: _Affine, factor: float) -> _Affine:
    return _Affine(factor * value.rows, factor * value.constant)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def linear_functions(spec: Any, coefficients: Coefficients) -> LinearFunctions:
    """Linear functions of the coefficients, from whatever a user gives.

    Parameters
    ----------
    spec : str, list of str, mapping, pandas.Series, pandas.DataFrame or array_like
        Text in the grammar of this module; a list of such texts; ``{coefficient: weight}``, or several of
        these in a list; ``{label: text}``; a table whose columns are coefficients, those absent having weight
        0; an array (c, p) or (p,) with a column for each coefficient.
    coefficients : Coefficients
        What there is.

    Returns
    -------
    LinearFunctions

    Raises
    ------
    FormulaError
        If a text cannot be read; the message shows where.
    DataError
        If names or shapes do not fit the model.

    Examples
    --------
    >>> names = Coefficients(("(Intercept)", "x", "fb", "fc"), {"x": (1,), "f": (2, 3)})
    >>> found = linear_functions("fb - fc/2 = 3, x", names)
    >>> found.L.tolist(), found.rhs.tolist(), found.labels
    ([[0.0, 0.0, 1.0, -0.5], [0.0, 1.0, 0.0, 0.0]], [3.0, 0.0], ('fb - fc/2 = 3', 'x'))
    >>> linear_functions("f", names).labels
    ('fb', 'fc')
    """
    if isinstance(spec, str):
        return _Reader(spec, coefficients).read()
    if isinstance(spec, pd.DataFrame):
        labels = None if isinstance(spec.index, pd.RangeIndex) else tuple(map(str, spec.index))
        return _weighted([dict(row) for _, row in spec.iterrows()], coefficients, labels)
    if isinstance(spec, pd.Series):
        spec = spec.to_dict()
    if isinstance(spec, Mapping):
        if spec and all(isinstance(value, str) for value in spec.values()):
            return _labelled(spec, coefficients)
        return _weighted([spec], coefficients)
    if isinstance(spec, Sequence) and spec and all(isinstance(one, str) for one in spec):
        return _joined([_Reader(one, coefficients).read() for one in spec])
    if isinstance(spec, Sequence) and spec and all(isinstance(one, Mapping | pd.Series) for one in spec):
        return _weighted([dict(one) for one in spec], coefficients)
    return _matrix(spec, coefficients)


def _joined(several: list[LinearFunctions]) -> LinearFunctions:
    return LinearFunctions(
        np.vstack([one.L for one in several]),
        np.concatenate([one.rhs for one in several]),
        tuple(label for one in several for label in one.labels),
        np.concatenate([one.of_terms for one in several]),
        np.concatenate([one.equations for one in several]),
    )


def _labelled(texts: Mapping[str, str], coefficients: Coefficients) -> LinearFunctions:
    """One function for each label."""
    several = []
    for label, text in texts.items():
        found = _Reader(text, coefficients).read(str(label))
        if len(found.labels) != 1:
            raise DataError(f"{label!r}: {text!r} is {len(found.labels)} linear functions; give one each")
        several.append(found._replace(labels=(str(label),)))
    return _joined(several)


def _weighted(
    rows: Sequence[Mapping[Any, Any]], coefficients: Coefficients, labels: tuple[str, ...] | None = None
) -> LinearFunctions:
    """Functions given by the weights of named coefficients."""
    L = np.zeros((len(rows), len(coefficients.names)))
    for number, row in enumerate(rows):
        for name, weight in row.items():
            L[number, coefficients.position(name)] += _weight(name, weight)
    return _from_matrix(L, coefficients, labels)


def _weight(name: object, weight: object) -> float:
    try:
        value = float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise DataError(f"the weight of {name!r} is {weight!r}; give a finite number")
    return value


def _matrix(spec: Any, coefficients: Coefficients) -> LinearFunctions:
    """Functions given by a matrix or a vector."""
    p = len(coefficients.names)
    wanted = (
        "give a text such as 'x1 = x2', a list of names, weights by name, or an array with a column for each "
        f"of the {p} coefficients"
    )
    try:
        L = np.atleast_2d(np.asarray(spec, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"{type(spec).__name__} {spec!r:.80} says no linear functions: {wanted}") from None
    if L.ndim != 2 or not L.size or L.shape[1] != p:
        names = listed(coefficients.names)
        raise DataError(f"an array of shape {np.shape(spec)} does not fit: {wanted} ({names})")
    if not np.isfinite(L).all():
        raise DataError("the array of linear functions has values that are not finite")
    return _from_matrix(L, coefficients, None)


def _from_matrix(
    L: np.ndarray, coefficients: Coefficients, labels: tuple[str, ...] | None
) -> LinearFunctions:
    empty = np.flatnonzero(~L.any(axis=1))
    if len(empty) or not len(L):
        which = f"row {empty[0]} (counting from 0) has" if len(empty) else "there are"
        raise DataError(f"{which} no weights but zero, so nothing is said about any coefficient")
    if labels is None:
        labels = tuple(written(row, coefficients.names, number) for number, row in enumerate(L))
    none = np.zeros(len(L), dtype=bool)
    return LinearFunctions(L, np.zeros(len(L)), labels, none, none)


def written(row: np.ndarray, names: Iterable[str], number: int = 0) -> str:
    """A linear function as text, or its number where that is long.

    Examples
    --------
    >>> written(np.array([1.0, 0.0, -0.5]), ["x", "z", "w"])
    'x - 0.5*w'
    """
    text = ""
    for weight, name in zip(row, names, strict=True):
        if weight != 0:
            size = "" if abs(weight) == 1 else f"{abs(weight):.6g}*"
            sign = (" - " if weight < 0 else " + ") if text else ("-" if weight < 0 else "")
            text += sign + size + name
    return text if len(text) <= _LONGEST_LABEL else f"row {number}"

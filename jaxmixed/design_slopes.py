"""Derivatives of design matrices in a column of the data, by the rules of differentiation.

The formula is a tree of a few operations, so its derivative is another one (forward mode, as in Griewank &
Walther 2008, Evaluating Derivatives, chapter 3): exact through arithmetic, elementwise functions,
polynomials, splines and products of variables. Functions of the caller are differenced.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxmixed.encoding import Encoding, Evaluator, NumericVariable, design_matrix
from jaxmixed.errors import DataError, DesignError
from jaxmixed.ingest import DataColumn, Table, numbers
from jaxmixed.terms import Binary, Call, Column, Expr, Number, Text, Unary
from jaxmixed.transforms import ELEMENTWISE, SLOPES, STATEFUL

STEP = 1e-3
"""Steps of differences, relative to the value or to the standard deviation of the column."""

_STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))


def fixed_evaluator(encoding: Encoding, table: Table) -> Evaluator:
    """Evaluator of a fitted model's formula on a table without missing values.

    Parameters
    ----------
    encoding : Encoding
    table : Table
        With the columns of the fixed effects; its number of rows counts where there are none.

    Returns
    -------
    Evaluator
    """
    return Evaluator(table, None, encoding.functions, {}, encoding)


def fixed_design(encoding: Encoding, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Design matrix (n, p) of the fixed effects and sum (n,) of the formula's offsets, of a table.

    Parameters
    ----------
    encoding : Encoding
    table : Table
        Without missing values.

    Returns
    -------
    X : (n, p) array
    offset : (n,) array
    """
    evaluator = fixed_evaluator(encoding, table)
    offset = np.zeros(evaluator.num_rows)
    for expr in encoding.formula.offsets:
        offset += evaluator.vector(expr, f"offset({expr.label})")
    return design_matrix(encoding.fixed, evaluator), offset


def fixed_slope(encoding: Encoding, table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives of `fixed_design` in a numeric column.

    Parameters
    ----------
    encoding : Encoding
    table : Table
        Without missing values.
    column : str
        Name of the column. Functions of the caller are taken to act row by row; their derivatives are
        differences of fourth order, right to about ten digits.

    Returns
    -------
    slope : (n, p) array
        Derivatives of the columns of X.
    offset_slope : (n,) array

    Raises
    ------
    DesignError
        If the column is coded as a factor somewhere in the formula.
    DataError
        If it does not hold numbers, or a derivative is not finite (such as that of ``sqrt(x)`` at zero).

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> from jaxmixed.ingest import read_columns
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0], "x": [1.0, 2.0, 4.0, 8.0]}
    >>> frame = build_frame("y ~ log(x) + I(x^2)", data)
    >>> fixed_slope(frame.encoding, read_columns(data, ["x"]), "x")[0].tolist()
    [[0.0, 1.0, 2.0], [0.0, 0.5, 4.0], [0.0, 0.25, 8.0], [0.0, 0.125, 16.0]]
    """
    evaluator, coding = fixed_evaluator(encoding, table), encoding.fixed
    numbers(table.columns[column], None, f"a derivative in {column!r}")
    slopes = _Slopes(encoding, table, evaluator, column)
    total = np.zeros((evaluator.num_rows, len(coding.names)), order="F")
    variables = {
        label: factor
        for term in coding.terms
        for factor, label in zip(term.factors, term.labels, strict=True)
    }
    assign = np.array(coding.assign, dtype=np.int64)
    for label, expr in variables.items():
        if column not in expr.columns:
            continue
        if label in encoding.factors:
            raise DesignError(
                f"{column!r} is a factor in {label} and a number elsewhere in the formula, so it has no"
                " marginal effect"
            )
        # The product rule: each variable that depends on the column in turn gives way to its derivative.
        matrix = design_matrix(coding, evaluator.replaced(label, slopes.variable(expr, label)))
        with_label = [number for number, term in enumerate(coding.terms, start=1) if label in term.labels]
        touched = np.isin(assign, with_label)
        total[:, touched] += matrix[:, touched]
    offset = np.zeros(evaluator.num_rows)
    for expr in encoding.formula.offsets:
        own = slopes.slope(expr)
        if own is not None:
            offset += own
    return total, offset


class _Slopes:
    """Derivatives of expressions in one column; None where they do not depend on it."""

    def __init__(self, encoding: Encoding, table: Table, evaluator: Evaluator, column: str) -> None:
        self.encoding = encoding
        self.table = table
        self.evaluator = evaluator
        self.column = column

    def variable(self, expr: Expr, label: str) -> NumericVariable:
        """Derivatives of a variable of a term, in its shape."""
        if isinstance(expr, Call) and expr.name in STATEFUL:
            values = self._stateful(expr)
            if values is not None and values.ndim == 2:
                return NumericVariable(label, tuple(values.T), True)
        values = self.slope(expr)
        if values is None:
            values = np.zeros(self.evaluator.num_rows)
        if not np.isfinite(values).all():
            raise DataError(
                f"the derivative of {label} in {self.column!r} is not a finite number in"
                f" {int((~np.isfinite(values)).sum())} of {len(values)} rows; choose values with at= or rows"
                " with newdata= where it is"
            )
        return NumericVariable(label, (values,), False)

    def slope(self, expr: Expr) -> np.ndarray | None:
        """Derivative (n,) of a numeric expression."""
        if isinstance(expr, Number | Text) or self.column not in expr.columns:
            return None
        with np.errstate(all="ignore"):  # what is not finite is reported with the variable
            if isinstance(expr, Column):
                return np.ones(self.evaluator.num_rows)
            if isinstance(expr, Unary):
                inner = self._inner(expr.operand)
                return -inner if expr.op == "-" else inner
            if isinstance(expr, Binary):
                return self._binary(expr)
            return self._call(expr)

    def _inner(self, expr: Expr) -> np.ndarray:
        found = self.slope(expr)
        return np.zeros(self.evaluator.num_rows) if found is None else found

    def _value(self, expr: Expr) -> np.ndarray:
        return self.evaluator.vector(expr, expr.label)

    def _binary(self, expr: Binary) -> np.ndarray:
        a, b = self._value(expr.left), self._value(expr.right)
        da, db = self.slope(expr.left), self.slope(expr.right)
        total = np.zeros(self.evaluator.num_rows)
        if da is not None:
            outer = {
                "+": lambda: 1.0,
                "-": lambda: 1.0,
                "*": lambda: b,
                "/": lambda: 1 / b,
                "^": lambda: np.where(b == 0, 0.0, b * a ** (b - 1)),
            }
            total += outer[expr.op]() * da
        if db is not None:
            outer = {
                "+": lambda: 1.0,
                "-": lambda: -1.0,
                "*": lambda: a,
                "/": lambda: -a / b**2,
                "^": lambda: np.where(a == 0, 0.0, a**b * np.log(a)),
            }
            total += outer[expr.op]() * db
        return total

    def _call(self, expr: Call) -> np.ndarray:
        if expr.name in self.encoding.functions:
            return self._differences(expr)
        if expr.name in ELEMENTWISE:
            argument = expr.args[0]
            return SLOPES[expr.name](self._value(argument)) * self._inner(argument)
        if expr.name in STATEFUL:
            found = self._stateful(expr)
            return np.zeros(self.evaluator.num_rows) if found is None else found
        return self._inner(expr.args[0])  # I(...)

    def _stateful(self, expr: Call) -> np.ndarray | None:
        inner = self.slope(expr.args[0])
        if inner is None:
            return None
        slope = self.encoding.transforms[expr.label].slope(self._value(expr.args[0]))
        return slope * inner if slope.ndim == 1 else slope * inner[:, None]

    def _differences(self, expr: Call) -> np.ndarray:
        """Central differences of fourth order."""
        own = self.table.columns[self.column]
        x = np.asarray(own.values, dtype=np.float64)
        size, spread = np.abs(x), float(x.std())
        if spread <= STEP**2 * size.max(initial=0.0):
            spread = 0.0  # all rows at one value, but for rounding: it is no scale
        step = STEP * np.where(size > 0, np.minimum(size, spread or np.inf), spread or 1.0)
        total = np.zeros(len(x))
        for times, weight in _STENCIL:
            moved = DataColumn(own.name, "number", x + times * step, None)
            table = replace(self.table, columns={**self.table.columns, self.column: moved})
            total += weight * fixed_evaluator(self.encoding, table).vector(expr, expr.label)
        return total / step

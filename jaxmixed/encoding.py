"""From terms and columns to design matrices, and the stored specification that encodes new data alike.

Coding follows R's ``model.matrix``: a factor in a term is coded by contrasts when the term without it is
(part of) an earlier term, and by a dummy variable per level otherwise; without an intercept the first factor
of the first term that has one gets all its dummy variables; in an interaction the first variable varies
fastest. Booleans are factors with the levels FALSE and TRUE. Ordered categoricals get polynomial contrasts,
other factors treatment contrasts, unless the caller asks otherwise.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from jaxmixed.contrasts import FactorCoding, known_codes, learn_factor
from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.grouping import GroupCoding, known_groups
from jaxmixed.ingest import DataColumn, Table, column_from_values, numbers, read_columns
from jaxmixed.terms import Binary, Call, Column, Effects, Expr, Formula, Number, Text, Unary
from jaxmixed.transforms import ELEMENTWISE, STATEFUL, State, fit_transform

INTERCEPT = "(Intercept)"
_FACTOR_CALLS = frozenset({"C", "factor"})
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "^": np.power,
}
_DEFAULT_MEMORY = 64 * 2**30
UserFunctions = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, slots=True)
class TermPlan:
    """A term with the labels that naming and coding need again and again."""

    label: str
    factors: tuple[Expr, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What depends on the formula alone: columns by role, and terms."""

    columns: tuple[str, ...]
    fixed_columns: tuple[str, ...]
    fixed: tuple[TermPlan, ...]
    random: tuple[tuple[TermPlan, ...], ...]


@lru_cache(maxsize=256)
def plan_of(formula: Formula) -> Plan:
    """Column plan of a formula (cached)."""
    offsets = tuple(name for expr in formula.offsets for name in expr.columns)
    fixed_columns = tuple(dict.fromkeys(formula.fixed.columns + offsets))
    random = tuple(_term_plans(term.effects) for term in formula.random)
    return Plan(formula.columns, fixed_columns, _term_plans(formula.fixed), random)


def _term_plans(effects: Effects) -> tuple[TermPlan, ...]:
    return tuple(
        TermPlan(term.label, term.factors, tuple(factor.label for factor in term.factors))
        for term in effects.terms
    )


@dataclass(frozen=True, slots=True)
class EffectsCoding:
    """Columns of a design matrix: which factors get all their dummies, names, term numbers."""

    intercept: bool
    terms: tuple[TermPlan, ...]
    full: tuple[tuple[bool, ...], ...]
    names: tuple[str, ...]
    assign: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Encoding:
    """Everything needed to encode new data as the training data were encoded.

    ``offset_source`` tells where the offset argument came from: ``"none"``, ``"array"``, or ``"column"`` with
    the column's name in ``offset_column``.
    """

    formula: Formula
    factors: dict[str, FactorCoding]
    transforms: dict[str, State]
    fixed: EffectsCoding
    random: tuple[EffectsCoding, ...]
    groups: dict[tuple[str, ...], GroupCoding]
    offset_source: str = "none"
    offset_column: str = ""
    functions: UserFunctions = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class NumericVariable:
    """A numeric variable of a term: one unnamed column, or several numbered ones."""

    label: str
    columns: tuple[np.ndarray, ...]
    numbered: bool

    def names(self, full: bool) -> list[str]:
        """Names of the columns."""
        return (
            [f"{self.label}{j}" for j in range(1, len(self.columns) + 1)] if self.numbered else [self.label]
        )

    def width(self, full: bool) -> int:
        """Number of columns."""
        return len(self.columns)

    def column(self, j: int, full: bool) -> np.ndarray:
        """Values of column j."""
        return self.columns[j]


@dataclass(frozen=True, slots=True, eq=False)
class FactorVariable:
    """A factor of a term: level numbers and their coding."""

    codes: np.ndarray
    coding: FactorCoding

    def names(self, full: bool) -> list[str]:
        """Names of the dummy variables, or of the contrasts."""
        return self.coding.names(full)

    def width(self, full: bool) -> int:
        """Number of columns."""
        return self.coding.width(full)

    def column(self, j: int, full: bool) -> np.ndarray:
        """Values of column j."""
        return self.coding.column(self.codes, j, full)


Variable = NumericVariable | FactorVariable


class Evaluator:
    """Gives the expressions of a formula their values on the kept rows of a table.

    In training, factors and transforms not met before are learnt and recorded in ``factors`` and
    ``transforms``; for new data they are looked up there.
    """

    def __init__(
        self,
        table: Table,
        kept: np.ndarray | None,
        functions: UserFunctions,
        contrasts: Mapping[str, str],
        trained: Encoding | None = None,
    ) -> None:
        self.table = table
        self.kept = kept
        self.num_rows = table.num_rows if kept is None else int(np.count_nonzero(kept))
        self.functions = functions
        self.contrasts = contrasts
        self.training = trained is None
        self.factors: dict[str, FactorCoding] = {} if trained is None else trained.factors
        self.transforms: dict[str, State] = {} if trained is None else trained.transforms
        self.contrasts_used: set[str] = set()
        self._variables: dict[str, Variable] = {}

    def variable(self, expr: Expr, label: str) -> Variable:
        """Variable of a term: numeric columns, or a factor."""
        found = self._variables.get(label)
        if found is None:
            found = self._factor(expr, label) if self._is_factor(expr, label) else self._numeric(expr, label)
            self._variables[label] = found
        return found

    def replaced(self, label: str, variable: Variable) -> Evaluator:
        """The same with another variable of that label."""
        other = copy.copy(self)
        other._variables = {**self._variables, label: variable}
        return other

    def vector(self, expr: Expr, purpose: str) -> np.ndarray:
        """Value of a numeric expression as one float64 per row."""
        value = np.asarray(self._number(expr, purpose), dtype=np.float64)
        return np.full(self.num_rows, value) if value.ndim == 0 else value

    def _is_factor(self, expr: Expr, label: str) -> bool:
        if not self.training:
            return label in self.factors
        if isinstance(expr, Column):
            return self.table.columns[expr.name].kind not in ("number", "complex")
        return isinstance(expr, Call) and expr.name in _FACTOR_CALLS

    def _numeric(self, expr: Expr, label: str) -> NumericVariable:
        if isinstance(expr, Column):
            column = self.table.columns[expr.name]
            return NumericVariable(label, (numbers(column, self.kept, "this model"),), False)
        if isinstance(expr, Call) and expr.name in STATEFUL:
            values = self._stateful(expr)
            if values.ndim == 2:
                return NumericVariable(label, tuple(values.T), True)
            return NumericVariable(label, (values,), False)
        return NumericVariable(label, (self.vector(expr, label),), False)

    def _factor(self, expr: Expr, label: str) -> FactorVariable:
        column, kept = self.table.columns[expr.columns[0]], self.kept  # f, factor(f) and C(f, ...) have one
        if not self.training:
            coding = self.factors[label]
            return FactorVariable(known_codes(column, kept, coding), coding)
        if column.kind == "mixed" or (isinstance(expr, Column) and column.kind == "datetime"):
            raise DataError(
                f"column {column.name!r} holds {column.phrase}, which is neither numeric nor a factor; "
                "convert it to numbers, or to text if its values are levels"
            )
        key = next((key for key in (label, column.name) if key in self.contrasts), None)
        if key is not None:
            self.contrasts_used.add(key)
        codes, coding = learn_factor(expr, label, column, kept, None if key is None else self.contrasts[key])
        self.factors[label] = coding
        return FactorVariable(codes, coding)

    def _number(self, expr: Expr, purpose: str) -> Any:
        if isinstance(expr, Column):
            return np.asarray(numbers(self.table.columns[expr.name], self.kept, purpose), dtype=np.float64)
        if isinstance(expr, Number):
            return np.float64(expr.value)
        if isinstance(expr, Text):
            raise FormulaError(f"text {expr.label} has no place in the arithmetic of {purpose}")
        with np.errstate(all="ignore"):  # what is not finite is reported below, with its expression
            value = self._operation(expr, purpose)
        if not np.isfinite(value).all():
            raise self._not_finite(expr, np.broadcast_to(value, self.num_rows))
        return value

    def _operation(self, expr: Unary | Binary | Call, purpose: str) -> Any:
        if isinstance(expr, Unary):
            value = self._number(expr.operand, purpose)
            return -value if expr.op == "-" else value
        if isinstance(expr, Binary):
            return _ARITHMETIC[expr.op](self._number(expr.left, purpose), self._number(expr.right, purpose))
        if expr.name in self.functions:
            return self._user_function(expr, purpose)
        if expr.name == "I":
            return self._number(expr.args[0], purpose)
        if expr.name in ELEMENTWISE:
            return ELEMENTWISE[expr.name](self._number(expr.args[0], purpose))
        if expr.name in STATEFUL:
            value = self._stateful(expr)
            if value.ndim == 1:
                return value
        raise FormulaError(
            f"{expr.label} gives no single number per row, so it cannot be used inside {purpose}"
        )

    def _stateful(self, expr: Call) -> np.ndarray:
        label = expr.label
        x = self.vector(expr.args[0], label)
        state = self.transforms.get(label)
        if state is None:
            names = ("center", "scale", "degree", "raw", "df")
            given = {name: value for name in names if (value := _option(expr, name)) is not None}
            state = self.transforms[label] = fit_transform(expr.name, label, x, given)
        with np.errstate(all="ignore"):
            values = state.apply(x)
        if not np.isfinite(values).all():
            raise self._not_finite(expr, values if values.ndim == 1 else values.sum(axis=1))
        return values

    def _user_function(self, expr: Call, purpose: str) -> np.ndarray:
        def argument(value: Expr) -> Any:
            if isinstance(value, Text):
                return value.value
            return np.array(self._number(value, purpose))  # a copy: the function may write to it

        try:
            result = self.functions[expr.name](
                *map(argument, expr.args), **{name: argument(value) for name, value in expr.kwargs}
            )
            values = np.asarray(result, dtype=np.float64)
        except (DataError, FormulaError):
            raise
        except Exception as error:
            raise DataError(
                f"the function given for {expr.label} failed: {type(error).__name__}: {error}"
            ) from error
        if values.shape != (self.num_rows,):
            raise DataError(
                f"{expr.label} returned an array of shape {values.shape}; one number for each of "
                f"{self.num_rows} rows is needed"
            )
        return values

    def _not_finite(self, expr: Expr, values: np.ndarray) -> DataError:
        bad = np.flatnonzero(~np.isfinite(values))
        row = int(bad[0]) if self.kept is None else int(np.flatnonzero(self.kept)[bad[0]])
        inputs = ", ".join(f"{name} = {self.table.columns[name].values[row]}" for name in expr.columns)
        where = f", first in row {row} (counting from 0) where {inputs}" if inputs else ""
        return DataError(
            f"{expr.label} is not a finite number in {len(bad)} of {self.num_rows} complete rows{where}; "
            "remove or recode these rows, or change the transform"
        )


def _option(expr: Call, name: str) -> float | bool | None:
    """Argument of a stateful transform as a number, or as a boolean when it is a flag."""
    value = expr.argument(name)
    if isinstance(value, Text):
        return value.value == "TRUE"
    return value.value if isinstance(value, Number) else None


def code_effects(intercept: bool, terms: tuple[TermPlan, ...], evaluator: Evaluator) -> EffectsCoding:
    """Decide the coding of every term, and name the columns."""
    variables = [
        [evaluator.variable(*pair) for pair in zip(term.factors, term.labels, strict=True)] for term in terms
    ]
    full = _marginality(intercept, terms, variables)
    widths = [
        math.prod(variable.width(whole) for variable, whole in zip(term_variables, term_full, strict=True))
        for term_variables, term_full in zip(variables, full, strict=True)
    ]
    _refuse_too_wide(int(intercept), widths, terms, evaluator.num_rows)
    names = [INTERCEPT] if intercept else []
    assign = [0] if intercept else []
    for number, (term_variables, term_full) in enumerate(zip(variables, full, strict=True), start=1):
        pieces = [variable.names(whole) for variable, whole in zip(term_variables, term_full, strict=True)]
        columns = [":".join(reversed(combination)) for combination in itertools.product(*reversed(pieces))]
        names += columns
        assign += [number] * len(columns)
    return EffectsCoding(intercept, terms, full, tuple(names), tuple(assign))


def _refuse_too_wide(intercept: int, widths: list[int], terms: tuple[TermPlan, ...], num_rows: int) -> None:
    """Stop before names and columns are made that no data set could support or no memory could hold."""
    total = intercept + sum(widths)
    size, limit = 8 * total * num_rows, memory_limit()
    if total <= num_rows and size <= limit:
        return
    widest = max(range(len(widths)), key=widths.__getitem__, default=-1)
    culprit = f"; the term {terms[widest].label} alone has {widths[widest]}" if widest >= 0 else ""
    why = (
        "so the coefficients are not identified"
        if total > num_rows
        else f"which need {size / 2**30:.0f} GiB, more than half of the memory ({limit / 2**30:.0f} GiB)"
    )
    raise DesignError(
        f"the design has {total} columns for {num_rows} rows{culprit}, {why}; a factor with many levels "
        "belongs in a random-effects term such as (1 | f)"
    )


def memory_limit() -> int:
    """Half of the machine's memory in bytes, where the system tells it."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _DEFAULT_MEMORY


def _marginality(
    intercept: bool, terms: tuple[TermPlan, ...], variables: list[list[Variable]]
) -> tuple[tuple[bool, ...], ...]:
    """Whether each variable of each term gets all its dummies (True) or contrasts (False), as in R."""
    full: list[list[bool]] = []
    for number, (term, term_variables) in enumerate(zip(terms, variables, strict=True)):
        row = []
        for label, variable in zip(term.labels, term_variables, strict=True):
            margin = set(term.labels) - {label}
            earlier = not margin or any(margin <= set(other.labels) for other in terms[:number])
            row.append(isinstance(variable, FactorVariable) and not earlier)
        full.append(row)
    if not intercept:
        positions = (
            (number, place)
            for number, term_variables in enumerate(variables)
            for place, variable in enumerate(term_variables)
            if isinstance(variable, FactorVariable)
        )
        first = next(positions, None)
        if first is not None:
            full[first[0]][first[1]] = True
    return tuple(tuple(row) for row in full)


def design_matrix(coding: EffectsCoding, evaluator: Evaluator) -> np.ndarray:
    """Design matrix, (n, p) float64 in column order, filled column by column."""
    out = np.empty((evaluator.num_rows, len(coding.names)), order="F")
    position = 0
    if coding.intercept:
        out[:, 0] = 1.0
        position = 1
    for term, full in zip(coding.terms, coding.full, strict=True):
        variables = [evaluator.variable(*pair) for pair in zip(term.factors, term.labels, strict=True)]
        widths = [range(variable.width(whole)) for variable, whole in zip(variables, full, strict=True)]
        start = position
        for reversed_choice in itertools.product(*reversed(widths)):
            pieces = [
                v.column(j, w) for v, j, w in zip(variables, reversed(reversed_choice), full, strict=True)
            ]
            _product(pieces, out[:, position])
            position += 1
        if len(variables) > 1 and not np.isfinite(out[:, start:position]).all():
            raise DataError(
                f"products in the term {term.label} are too large for floating point; rescale its variables"
            )
    return out


def _product(pieces: list[np.ndarray], out: np.ndarray) -> None:
    """Product of columns in float64, whatever their dtypes: small integers must not overflow."""
    out[:] = pieces[0]
    with np.errstate(over="ignore"):
        for piece in pieces[1:]:
            np.multiply(out, piece, out=out)


def matching_columns(wide: EffectsCoding, narrow: EffectsCoding) -> slice | None:
    """Where the columns of one coding stand, in the same order and side by side, among those of another."""
    wide_keys, narrow_keys = _column_keys(wide), _column_keys(narrow)
    if not narrow_keys or narrow_keys[0] not in wide_keys:
        return None
    start = wide_keys.index(narrow_keys[0])
    same = wide_keys[start : start + len(narrow_keys)] == narrow_keys
    return slice(start, start + len(narrow_keys)) if same else None


def _column_keys(coding: EffectsCoding) -> list[tuple[str, Any]]:
    return [
        (name, (coding.terms[number - 1].labels, coding.full[number - 1]) if number else None)
        for name, number in zip(coding.names, coding.assign, strict=True)
    ]


def _present(table: Table, names: Sequence[str]) -> np.ndarray | None:
    """Rows without a missing value in the named columns; None when these are all rows."""
    masks = [mask for name in names if (mask := table.columns[name].missing) is not None]
    return ~np.logical_or.reduce(masks) if masks else None


def encode_fixed(
    encoding: Encoding, newdata: Any, *, offset: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fixed-effects design and offset of new data, coded as the training data were.

    Parameters
    ----------
    encoding
        Encoding of the fitted model.
    newdata
        Table with the columns of the fixed effects and offsets; grouping columns and the response are not
        needed.
    offset
        Offset of the new rows, an array, for a model whose ``offset`` argument was an array.

    Returns
    -------
    X : numpy.ndarray of shape (m, p)
        NaN in rows with a missing value.
    row_ok : numpy.ndarray of bool
        False in rows with a missing value.
    offset : numpy.ndarray of shape (m,)
        Sum of the offsets, NaN where missing.

    Raises
    ------
    DataError
        If a column is missing, has a level that the model does not know, or holds text where numbers are
        needed.
    """
    plan = plan_of(encoding.formula)
    names = plan.fixed_columns
    if encoding.offset_source == "column" and offset is None:
        names = tuple(dict.fromkeys((*names, encoding.offset_column)))
    if encoding.offset_source == "array" and offset is None:
        raise DataError(
            "the model was fitted with an array as offset, so new data need their own: give offset=, one per "
            "row"
        )
    table = read_columns(newdata, names)
    num_rows = table.num_rows if names else _count_rows(newdata)
    table = Table(table.columns, table.index, num_rows, table.kind)
    extra = None if offset is None else _new_offset(offset, num_rows)
    kept = _present(table, names)
    if extra is not None and extra.missing is not None:
        kept = ~extra.missing if kept is None else kept & ~extra.missing
    evaluator = Evaluator(table, kept, encoding.functions, {}, encoding)
    X = design_matrix(encoding.fixed, evaluator)
    total = np.zeros(evaluator.num_rows)
    for expr in encoding.formula.offsets:
        total += evaluator.vector(expr, f"offset({expr.label})")
    if encoding.offset_source == "column" and extra is None:
        extra = table.columns[encoding.offset_column]
    if extra is not None:
        total += numbers(extra, kept, "the offset")
    if kept is None:
        return X, np.ones(num_rows, dtype=bool), total
    return _spread(X, kept), kept, _spread(total, kept)


def _new_offset(offset: Any, num_rows: int) -> DataColumn:
    column = column_from_values("offset", offset)
    if len(column.values) != num_rows:
        raise DataError(f"offset has {len(column.values)} values for {num_rows} rows of new data")
    return column


def _count_rows(newdata: Any) -> int:
    """Rows of a table of which no column is needed (a model with an intercept alone)."""
    if isinstance(newdata, Mapping):
        first = next(iter(newdata), None)
        return 0 if first is None else read_columns(newdata, [first]).num_rows
    return int(newdata.shape[0])


def _spread(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Put the kept rows back in their places, NaN elsewhere."""
    out = np.full((len(kept), *values.shape[1:]), np.nan)
    out[kept] = values
    return out


def encode_random(encoding: Encoding, newdata: Any, k: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Random-effects design and group codes of new data for random term number k.

    Parameters
    ----------
    encoding
        Encoding of the fitted model.
    newdata
        Table with the columns of the term's effects and of its grouping.
    k
        Position of the term in the formula.

    Returns
    -------
    Z : numpy.ndarray of shape (m, q)
        NaN in rows with a missing value (of an effect or of the grouping).
    codes : numpy.ndarray of shape (m,)
        Level numbers of the training data; -1 for levels that it does not have, and in rows with a missing
        value.
    unseen : tuple of str
        The levels that the training data do not have, each once, in order of appearance.
    """
    term = encoding.formula.random[k]
    Z, table, kept = _encode_effects(encoding, newdata, k, term.columns)
    codes, unseen = known_groups(encoding.groups[term.group], table, kept)
    if kept is None:
        return Z, codes, unseen
    all_codes = np.full(table.num_rows, -1, dtype=np.int64)
    all_codes[kept] = codes
    return Z, all_codes, unseen


def encode_effects(encoding: Encoding, newdata: Any, k: int) -> np.ndarray:
    """Design (m, q) of random term number k for new data of unknown groups; NaN in rows with missing values.

    As :func:`encode_random` without the grouping, whose columns are not needed.
    """
    names = encoding.formula.random[k].effects.columns
    Z = _encode_effects(encoding, newdata, k, names)[0]
    return Z if names else np.ones((_count_rows(newdata), Z.shape[1]))


def _encode_effects(
    encoding: Encoding, newdata: Any, k: int, names: tuple[str, ...]
) -> tuple[np.ndarray, Table, np.ndarray | None]:
    """Design of a random term, the named columns, and the rows without a missing value in them."""
    table = read_columns(newdata, names)
    kept = _present(table, names)
    Z = design_matrix(encoding.random[k], Evaluator(table, kept, encoding.functions, {}, encoding))
    return Z if kept is None else _spread(Z, kept), table, kept

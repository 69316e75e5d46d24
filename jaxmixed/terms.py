"""What a formula means: expressions, terms, random-effects terms, and the closed table of functions.

Everything here is immutable and hashable data. Nothing is evaluated; `jaxmixed.encoding` gives expressions
their numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

from jaxmixed._tokens import MAX_DEPTH, MAX_EXPONENT, Node, Token, error, is_plain_name
from jaxmixed.errors import FormulaError

STRUCTURES = {
    "us": "unstructured",
    "diag": "independent",
    "homdiag": "identity",
    "cs": "exchangeable",
    "ar1": "ar1",
    "toeplitz": "toeplitz",
    "homtoep": "toeplitz",
}
"""Covariance structure of each wrapper of a random-effects term."""

ORDERED = frozenset({"ar1", "toeplitz"})
"""Structures of the effects of the levels of one factor, whose distances matter."""

FEW_PARAMETERS = frozenset({"ar1"})
"""Structures whose effects may outnumber the rows: they are told from the residuals by few parameters."""

FUTURE_STRUCTURES = frozenset({"hetar1", "toep", "ou", "rr"})
"""Wrappers that other systems have and that are refused by name."""

CONTRASTS = ("treatment", "sum", "helmert", "poly")
"""Contrasts of a factor, as in R's ``contr.treatment`` and so on."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument of a function after the first.

    ``kind`` is ``"integer"`` (a positive whole number), ``"flag"`` (TRUE or FALSE), ``"shift"`` (TRUE, FALSE
    or a number), ``"contrast"`` (one of `CONTRASTS`) or ``"level"`` (a quoted text, or a number). A
    ``positional`` argument is kept in `Call.args` however it was written, another one in `Call.kwargs`.
    """

    name: str
    kind: str
    required: bool = False
    positional: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the grammar.

    ``kind`` is ``"elementwise"`` (one number per row, from that row alone), ``"stateful"`` (one number per
    row, with constants learnt from the data), ``"columns"`` (several columns, learnt from the data) or
    ``"factor"``.
    """

    kind: str
    parameters: tuple[Parameter, ...] = ()


_ELEMENTWISE = ("I", "log", "log2", "log10", "log1p", "exp", "expm1", "sqrt", "abs", "sin", "cos", "tan")
FUNCTIONS: dict[str, Function] = {
    **{name: Function("elementwise") for name in _ELEMENTWISE},
    "scale": Function("stateful", (Parameter("center", "shift"), Parameter("scale", "shift"))),
    "center": Function("stateful"),
    "poly": Function("columns", (Parameter("degree", "integer", True, True), Parameter("raw", "flag"))),
    "bs": Function("columns", (Parameter("df", "integer", True, True), Parameter("degree", "integer"))),
    "ns": Function("columns", (Parameter("df", "integer", True, True),)),
    "C": Function(
        "factor",
        (
            Parameter("contrast", "contrast", False, True),
            Parameter("base", "integer"),
            Parameter("ref", "level"),
        ),
    ),
    "factor": Function("factor"),
}
"""The functions that a formula may call; further ones only by name through ``functions=``."""

ALIASES = {"standardize": "scale", "as.factor": "factor"}
"""Other names of functions in `FUNCTIONS`."""

_FLAGS = {"TRUE": "TRUE", "True": "TRUE", "T": "TRUE", "FALSE": "FALSE", "False": "FALSE", "F": "FALSE"}
_LEVEL = {"+": 1, "-": 1, "*": 2, "/": 2, "^": 4}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the data, by name (without backquotes)."""

    name: str

    @property
    def label(self) -> str:
        """The name, in backquotes where the grammar needs them."""
        return self.name if is_plain_name(self.name) else f"`{self.name}`"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used: this one."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric constant."""

    value: float

    @property
    def label(self) -> str:
        """The shortest decimal text of the number (``pi`` for that number)."""
        if self.value == math.pi:
            return "pi"
        return (
            str(int(self.value)) if self.value.is_integer() and abs(self.value) < 1e15 else repr(self.value)
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used: none."""
        return ()


@dataclass(frozen=True, slots=True)
class Text:
    """A text given to a function: a contrast, a level, or a flag (``Text("TRUE")`` or ``Text("FALSE")``)."""

    value: str

    @property
    def label(self) -> str:
        """The text in quotation marks."""
        return f"'{self.value}'" if '"' in self.value else f'"{self.value}"'

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used: none."""
        return ()


@dataclass(frozen=True, slots=True)
class Unary:
    """A sign before an expression; ``op`` is ``"-"`` or ``"+"``."""

    op: str
    operand: Expr

    @property
    def label(self) -> str:
        """Text as R writes it."""
        operand = self.operand
        wrap = isinstance(operand, Unary) or (isinstance(operand, Binary) and _LEVEL[operand.op] == 1)
        return f"{self.op}({operand.label})" if wrap else self.op + _atom(operand)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used."""
        return self.operand.columns


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic on two expressions; ``op`` is ``+``, ``-``, ``*``, ``/`` or ``^``."""

    op: str
    left: Expr
    right: Expr

    @property
    def label(self) -> str:
        """Text as R writes it, with no more parentheses than needed."""
        level, left, right = _LEVEL[self.op], self.left, self.right
        wrap_left = isinstance(left, Unary) and level > 1
        if isinstance(left, Binary):
            wrap_left = _LEVEL[left.op] < level or self.op == left.op == "^"
        wrap_right = isinstance(right, Unary) and isinstance(right.operand, Unary | Binary)
        if isinstance(right, Binary):
            wrap_right = _LEVEL[right.op] <= level and not self.op == right.op == "^"
        first = f"({left.label})" if wrap_left else _atom(left)
        second = f"({right.label})" if wrap_right else _atom(right)
        return f"{first}{self.op}{second}" if self.op in "/^" else f"{first} {self.op} {second}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, in order of appearance."""
        return _distinct(self.left.columns + self.right.columns)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of a column or of an expression.

    Arguments are in canonical form. For the functions of `FUNCTIONS`, ``args`` holds the data argument and
    then the arguments marked positional there, ``kwargs`` the others in the order of the table, only those
    that the user gave: ``poly(x, degree=2)`` is ``Call("poly", (Column("x"), Number(2.0)), ())``. A function
    of the user keeps its arguments as written.
    """

    name: str
    args: tuple[Expr, ...]
    kwargs: tuple[tuple[str, Expr], ...] = ()

    @property
    def label(self) -> str:
        """Text as R writes it, for example ``poly(x, 2)`` or ``C(f, sum)``."""
        parts = [self._argument(argument, "") for argument in self.args]
        parts += [f"{name} = {self._argument(value, name)}" for name, value in self.kwargs]
        return f"{self.name}({', '.join(parts)})"

    def _argument(self, argument: Expr, keyword: str) -> str:
        """Text of an argument: contrasts and flags are bare words, levels and users' texts quoted."""
        bare = isinstance(argument, Text) and self.name in FUNCTIONS and keyword != "ref"
        return argument.value if bare and isinstance(argument, Text) else argument.label

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, in order of appearance."""
        values = (*self.args, *(value for _, value in self.kwargs))
        return _distinct(tuple(name for value in values for name in value.columns))

    def argument(self, name: str) -> Expr | None:
        """Return an argument of a function of `FUNCTIONS` by name, or None if the user gave none.

        Examples
        --------
        >>> Call("poly", (Column("x"), Number(2.0))).argument("degree")
        Number(value=2.0)
        """
        positional = [parameter.name for parameter in FUNCTIONS[self.name].parameters if parameter.positional]
        return dict(zip(positional, self.args[1:], strict=False)).get(name, dict(self.kwargs).get(name))


Expr: TypeAlias = Column | Number | Text | Unary | Binary | Call


def _atom(expression: Expr) -> str:
    """Text of an operand; a column named pi is quoted, because bare ``pi`` there is the constant."""
    return "`pi`" if expression == Column("pi") else expression.label


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Term:
    """An interaction of expressions; without factors, the intercept."""

    factors: tuple[Expr, ...]

    @property
    def label(self) -> str:
        """Labels of the factors joined by ``:``; ``"1"`` for the intercept."""
        return ":".join(factor.label for factor in self.factors) or "1"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, in order of appearance."""
        return _distinct(tuple(name for factor in self.factors for name in factor.columns))


@dataclass(frozen=True, slots=True)
class Effects:
    """An intercept or none, and terms sorted as in R: by degree, then by appearance."""

    intercept: bool
    terms: tuple[Term, ...]

    @property
    def label(self) -> str:
        """Text of the effects, for example ``"1 + x + x:f"``."""
        return " + ".join(["1" if self.intercept else "0", *(term.label for term in self.terms)])

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, in order of appearance."""
        return _distinct(tuple(name for term in self.terms for name in term.columns))


@dataclass(frozen=True, slots=True)
class RandomTerm:
    """Effects that vary over the levels of a grouping: ``(effects | group)``.

    ``group`` names the columns whose combinations are the groups. ``structure`` is one of the values of
    `STRUCTURES`. ``text`` is canonical, for messages: ``"(1 + x | school:class)"``.
    """

    effects: Effects
    group: tuple[str, ...]
    structure: str
    text: str

    @property
    def group_label(self) -> str:
        """The grouping columns joined by ``:``."""
        return ":".join(self.group)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns used, effects first."""
        return _distinct(self.effects.columns + self.group)


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula; two are equal when their parts are, however they were spaced or written."""

    response: Expr
    fixed: Effects
    offsets: tuple[Expr, ...]
    random: tuple[RandomTerm, ...]
    text: str = field(compare=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns used: of the response, fixed effects, offsets, random effects and their groups."""
        parts = (self.response, self.fixed, *self.offsets, *self.random)
        return _distinct(tuple(name for part in parts for name in part.columns))

    def __str__(self) -> str:
        """Return the user's text on one line."""
        return self.text


class ExpressionReader:
    """Turns the syntax of a function's call, or of arithmetic inside one, into an expression."""

    def __init__(self, text: str, functions: frozenset[str]) -> None:
        self.text = text
        self.functions = functions
        self.num_operations = 0

    def term(self, node: Node) -> Call:
        """Return the call that makes a term of its own, or the response."""
        self.num_operations = 0
        result = self._call(node, inside=False)
        if not result.columns:
            raise self._fail(
                node, f"{node.value}() names no column, so it is a constant: name a column in it"
            )
        return result

    def offset(self, node: Node, argument: Node) -> Expr:
        """Return the expression inside ``offset()``."""
        self.num_operations = 0
        result = self.arithmetic(argument)
        if not result.columns:
            raise self._fail(node, "offset() names no column, so it is a constant: name a column in it")
        return result

    def _fail(self, node: Node | Token, problem: str) -> FormulaError:
        return error(self.text, node.start, node.end, problem)

    def arithmetic(self, node: Node, operand: bool = False) -> Expr:
        """Return an expression inside a function; ``operand`` when an operator stands beside it."""
        if node.kind in ("name", "quoted"):
            constant = operand and node.kind == "name" and node.value == "pi"
            return Number(math.pi) if constant else Column(node.value)
        if node.kind == "number":
            return Number(float(node.value))
        if node.kind == "paren":
            return self.arithmetic(node.children[0], operand)
        if node.kind == "call":
            return self._call(node, inside=True)
        if node.kind == "sign":
            self._count_operation(node)
            return Unary(node.value, self.arithmetic(node.children[0], True))
        if node.kind in ("sum", "product"):
            result = self.arithmetic(node.children[0], True)
            for operator, child in zip(node.operators, node.children[1:], strict=True):
                self._count_operation(operator)
                result = Binary(operator.kind, result, self.arithmetic(child, True))
            return result
        if node.kind == "power":
            self._count_operation(node)
            base, exponent = (self.arithmetic(child, True) for child in node.children)
            self._check_exponent(node.children[1], exponent)
            return Binary("^", base, exponent)
        problem = {
            "bar": "a random-effects term cannot stand inside a function: add it to the formula by '+'",
            "text": "a text is not a number: name a column",
        }.get(node.kind, "':' and '%in%' join terms and are not arithmetic: write '*' for a product")
        raise self._fail(node.operators[0] if node.operators else node, problem)

    def _count_operation(self, node: Node | Token) -> None:
        self.num_operations += 1
        if self.num_operations > MAX_DEPTH:
            raise self._fail(
                node, f"more than {MAX_DEPTH} operations in one expression: make a column of the result"
            )

    def _check_exponent(self, node: Node, exponent: Expr) -> None:
        """Refuse a constant exponent that is a power itself or large."""
        if exponent.columns:
            return
        value = _constant(exponent)
        if value is None or not abs(value) <= MAX_EXPONENT:
            raise self._fail(
                node, f"a constant exponent must be a plain number of at most {MAX_EXPONENT} in size"
            )

    def _call(self, node: Node, inside: bool) -> Call:
        """Return a call of a known function, its arguments in canonical form."""
        self._count_operation(node)
        name = ALIASES.get(node.value, node.value)
        if name in self.functions:
            result = Call(name, *self._user_arguments(node))
        elif name in FUNCTIONS:
            kind = FUNCTIONS[name].kind
            if inside and kind in ("columns", "factor"):
                raise self._fail(
                    node, f"{name}() makes columns of its own and cannot stand inside another function"
                )
            result = Call(name, *self._arguments(node, name))
        else:
            raise self._unknown(node)
        return result

    def _user_arguments(self, node: Node) -> tuple[tuple[Expr, ...], tuple[tuple[str, Expr], ...]]:
        args: list[Expr] = []
        kwargs: dict[str, Expr] = {}
        for keyword, child in zip(node.keywords, node.children, strict=True):
            value = Text(child.value) if child.kind == "text" else self.arithmetic(child)
            if keyword is None and not kwargs:
                args.append(value)
            elif keyword is None or keyword.value in kwargs:
                problem = "arguments by position come first, and each keyword once"
                raise self._fail(child if keyword is None else keyword, problem)
            else:
                kwargs[keyword.value] = value
        return tuple(args), tuple(kwargs.items())

    def _arguments(self, node: Node, name: str) -> tuple[tuple[Expr, ...], tuple[tuple[str, Expr], ...]]:
        """Return the arguments of a function of the table: data first, then in the order of the table."""
        parameters = FUNCTIONS[name].parameters
        if node.keywords[0] is not None:
            raise self._fail(
                node.keywords[0], f"the first argument of {name}() is the data: write {name}(x, ...)"
            )
        data = self._data_argument(node.children[0], name)
        given: dict[str, tuple[Node, Expr]] = {}
        for place, (keyword, child) in enumerate(zip(node.keywords[1:], node.children[1:], strict=True)):
            if keyword is None and (place >= len(parameters) or any(node.keywords[: place + 1])):
                raise self._fail(child, f"{name}() has no such argument by position: write {_usage(name)}")
            matching = [p for p in parameters if keyword is not None and p.name == keyword.value]
            if keyword is not None and (not matching or keyword.value in given):
                raise self._fail(
                    keyword, f"{name}() takes no (further) argument {keyword.value!r}: write {_usage(name)}"
                )
            parameter = matching[0] if matching else parameters[place]
            given[parameter.name] = child, self._argument(child, name, parameter)
        missing = [p.name for p in parameters if p.required and p.name not in given]
        if missing:
            raise self._fail(node, f"{name}() needs {' and '.join(missing)}: write {_usage(name)}")
        if name == "C":
            self._check_contrast(given)
        args = tuple(given[p.name][1] for p in parameters if p.positional and p.name in given)
        kwargs = tuple((p.name, given[p.name][1]) for p in parameters if not p.positional and p.name in given)
        return (data, *args), kwargs

    def _data_argument(self, node: Node, name: str) -> Expr:
        """Return the first argument: arithmetic, or for a factor a column."""
        if FUNCTIONS[name].kind != "factor":
            return self.arithmetic(node)
        while node.kind == "paren":
            node = node.children[0]
        if name == "C" and node.kind == "call" and ALIASES.get(node.value, node.value) == "factor":
            return self.term(node).args[0]
        if node.kind not in ("name", "quoted"):
            raise self._fail(node, f"{name}() takes the name of a column, as in {name}(f)")
        return Column(node.value)

    def _argument(self, node: Node, name: str, parameter: Parameter) -> Expr:
        """Return an argument after the first, which is a literal of the kind that the table asks for."""
        kind, value = parameter.kind, node.value
        if kind == "integer" and node.kind == "number" and float(value) in range(1, 101):
            return Number(float(value))
        if kind in ("flag", "shift") and node.kind == "name" and value in _FLAGS:
            return Text(_FLAGS[value])
        if kind == "shift" and node.kind == "number":
            return Number(float(value))
        if kind == "shift" and node.kind == "sign" and node.children[0].kind == "number":
            return Number(float(value + node.children[0].value))
        if kind == "contrast" and node.kind in ("name", "text") and value.removeprefix("contr.") in CONTRASTS:
            return Text(value.removeprefix("contr."))
        if kind == "level" and node.kind == "text":
            return Text(value)
        if kind == "level" and node.kind == "number":
            return Number(float(value))
        wanted = {
            "integer": "a whole number from 1 to 100",
            "flag": "TRUE or FALSE",
            "shift": "TRUE, FALSE or a number",
            "contrast": "one of " + ", ".join(CONTRASTS),
            "level": 'a level in quotation marks, as in ref = "a", or a number',
        }[kind]
        raise self._fail(node, f"{parameter.name} of {name}() must be {wanted}")

    def _check_contrast(self, given: dict[str, tuple[Node, Expr]]) -> None:
        """Refuse a reference level where the contrast has none, or two of them."""
        contrast = given["contrast"][1] if "contrast" in given else Text("treatment")
        for name in ("base", "ref"):
            if name in given and contrast != Text("treatment"):
                raise self._fail(
                    given[name][0], f"only treatment contrasts have a reference level: take out {name}"
                )
        if "base" in given and "ref" in given:
            raise self._fail(given["ref"][0], "base and ref both choose the reference level: keep one")

    def _unknown(self, node: Node) -> FormulaError:
        """Return the error for a function that the grammar does not have."""
        name = node.value
        if name in STRUCTURES or name in FUTURE_STRUCTURES:
            return self._fail(
                node, f"{name}() goes around a random-effects term, added by '+': {name}(1 + x | g)"
            )
        if name == "offset":
            return self._fail(
                node, "offset() stands on its own among the fixed effects, added by '+': + offset(x)"
            )
        if node.children[0].kind == "bar":
            bar = self.text[node.children[0].start : node.children[0].end]
            return self._fail(node, f"an operator is missing: write {name} + ({bar})")
        known = [*FUNCTIONS, *sorted(self.functions)]
        last = name.rpartition(".")[2]
        close = [last] if last in known else get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]}()?)" if close else ""
        end = node.start + len(name) if self.text.startswith(name, node.start) else node.end
        return error(
            self.text,
            node.start,
            end,
            f"unknown function {name!r}{hint}; use one of {', '.join(known)}, or pass "
            f"your own as functions={{{name!r}: ...}}",
        )


def _constant(expression: Expr) -> float | None:
    """Return the value of a constant exponent made of numbers and + - * /, or None."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Unary):
        value = _constant(expression.operand)
        return None if value is None else -value if expression.op == "-" else value
    if isinstance(expression, Binary) and expression.op != "^":
        left, right = _constant(expression.left), _constant(expression.right)
        if left is None or right is None or (expression.op == "/" and right == 0.0):
            return None
        results = {"+": left + right, "-": left - right, "*": left * right}
        return results[expression.op] if expression.op in results else left / right
    return None


def _usage(name: str) -> str:
    """Return how to call a function of the table, for messages."""
    data = "f" if FUNCTIONS[name].kind == "factor" else "x"
    parts = [p.name if p.positional else f"{p.name}=" for p in FUNCTIONS[name].parameters]
    return f"{name}({', '.join([data, *parts])})"

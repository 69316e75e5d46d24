"""Syntax trees of Stata's expressions.

Of the operators ``!`` binds most tightly, then ``^``, the sign, ``* /``, ``+ -``, the comparisons, ``&``, and
``|``; operators of one rank are taken from left to right (Stata User's Guide, section 13.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxmixed.errors import StataError
from jaxmixed.stata_syntax import Statement, Tokens
from jaxmixed.stata_tokens import MAX_NESTING, Token

BINDING = {
    "|": 1, "&": 2, "==": 3, "!=": 3, "~=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3, "+": 4, "-": 4,
    "*": 5, "/": 5, "^": 7,
}  # fmt: skip
_SIGN = 6
"""Ranks of the operators that stand between two values."""

_RESULTS = ("e", "r")
_COEFFICIENTS = {"_b": "b", "_coef": "b", "_se": "se"}


@dataclass(frozen=True)
class Node:
    """A piece of an expression.

    ``kind`` is ``"number"``, ``"text"``, ``"missing"``, ``"name"``, ``"call"``, ``"result"`` (``e()``,
    ``r()``), ``"coefficient"`` (``_b[]``, ``_se[]``, or ``2.race``), ``"subscript"``, ``"sign"``, ``"not"``,
    or ``"chain"`` with ``operators`` of one rank between its ``children``.
    """

    kind: str
    value: str
    tokens: Tokens
    children: tuple[Node, ...] = ()
    operators: Tokens = ()


def read(statement: Statement, tokens: Tokens) -> Node:
    """The expression that all tokens make.

    Raises
    ------
    StataError
        At the first token that cannot stand where it stands.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("generate z = -x^2 + 3*y")[0]
    >>> node = read(line, line.arguments[2:])
    >>> node.kind, [child.kind for child in node.children]
    ('chain', ['sign', 'chain'])
    """
    if not tokens:
        raise statement.error(None, "an expression is missing")
    reader = _Reader(statement, tokens)
    node = reader.expression(1, 0)
    if (token := reader.next()) is not None:
        problem = {"=": "'=' cannot stand here: equality is written =="}.get(
            token.kind,
            f"'{token.value}' cannot stand here: an operator is missing before it, or it is too much",
        )
        raise statement.error(token, problem)
    return node


def read_first(statement: Statement, tokens: Tokens) -> tuple[Node, Tokens]:
    """The longest expression that tokens start with, and what follows it.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("display 1 + 2 3")[0]
    >>> [token.value for token in read_first(line, line.arguments)[1]]
    ['3']
    """
    reader = _Reader(statement, tokens)
    return reader.expression(1, 0), tokens[reader.at :]


class _Reader:
    def __init__(self, statement: Statement, tokens: Tokens) -> None:
        self.statement = statement
        self.tokens = tokens
        self.at = 0

    def next(self, further: int = 0) -> Token | None:
        at = self.at + further
        return self.tokens[at] if at < len(self.tokens) else None

    def _kind(self, further: int = 0) -> str:
        token = self.next(further)
        return "" if token is None else token.kind

    def expression(self, minimum: int, depth: int) -> Node:
        """The longest expression whose operators bind at least as tightly as ``minimum``."""
        if depth > MAX_NESTING:
            raise self._error("the expression is nested too deeply: generate variables for its parts")
        start = self.at
        left = self._operand(depth)
        rank = 0
        while (binding := BINDING.get(self._kind(), 0)) >= minimum:
            operator = self.tokens[self.at]
            self.at += 1
            right = self._operand(depth) if binding == 7 else self.expression(binding + 1, depth + 1)
            tokens = self.tokens[start : self.at]
            if rank == binding and left.kind == "chain":
                children, operators = (*left.children, right), (*left.operators, operator)
            else:
                children, operators = (left, right), (operator,)
            left, rank = Node("chain", "", tokens, children, operators), binding
        return left

    def _operand(self, depth: int) -> Node:
        start = self.at
        token = self.next()
        if token is None:
            last = self.tokens[-1]
            raise self.statement.error(last, f"nothing follows the '{last.value}': write a value there")
        if depth > MAX_NESTING:
            raise self._error("the expression is nested too deeply: generate variables for its parts")
        self.at += 1
        if token.kind in ("-", "+"):
            inner = self.expression(_SIGN, depth + 1)
            return Node("sign", token.kind, self.tokens[start : self.at], (inner,))
        if token.kind in ("!", "~"):
            inner = self._operand(depth + 1)
            return Node("not", token.kind, self.tokens[start : self.at], (inner,))
        if token.kind == "(":
            inner = self.expression(1, depth + 1)
            self._close(token)
            return inner
        if token.kind == "number":
            if self._kind() == "." and self._touching():
                return self._factor(start)
            if self._kind() == "name" and self._touching():
                raise self.statement.error(
                    self.tokens[start : self.at + 1],
                    "a number runs into a name: put an operator between them",
                )
            return Node("number", token.value, (token,))
        if token.kind == "text":
            return Node("text", token.value, (token,))
        if token.kind == ".":
            if self._kind() == "name" and self._touching():
                raise self.statement.error(
                    self.tokens[start : self.at + 1],
                    "missing values .a to .z are not told apart: write . (a period)",
                )
            return Node("missing", ".", (token,))
        if token.kind == "name":
            return self._named(token, start, depth)
        raise self.statement.error(token, f"'{token.value}' cannot stand here: a value is needed")

    def _touching(self) -> bool:
        return self.tokens[self.at - 1].end == self.tokens[self.at].start

    def _named(self, token: Token, start: int, depth: int) -> Node:
        kind = self._kind()
        if kind == "(":
            return self._call(token, start, depth)
        if kind == "[":
            return self._subscript(token, start, depth)
        if kind in (".", "#") and self._touching():
            return self._factor(start)
        return Node("name", token.value, (token,))

    def _factor(self, start: int) -> Node:
        """``2.race`` or ``2.race#c.x``: tokens that touch each other."""
        while self._kind() in ("name", "number", ".", "#") and self._touching():
            self.at += 1
        tokens = self.tokens[start : self.at]
        return Node("coefficient", self.statement.source(tokens), tokens)

    def _subscript(self, token: Token, start: int, depth: int) -> Node:
        opening = self.tokens[self.at]
        self.at += 1
        if token.value in _COEFFICIENTS:
            first = self.at
            while self._kind() not in ("]", ""):
                self.at += 1
            inside = self.tokens[first : self.at]
            self._close(opening)
            if not inside:
                raise self.statement.error(opening, "name a coefficient between the brackets")
            name = "".join(piece.value for piece in inside)
            return Node("coefficient", name, self.tokens[start : self.at], operators=(token,))
        inner = self.expression(1, depth + 1)
        self._close(opening)
        return Node("subscript", token.value, self.tokens[start : self.at], (inner,), (token,))

    def _call(self, name: Token, start: int, depth: int) -> Node:
        opening = self.tokens[self.at]
        self.at += 1
        if name.value in _RESULTS:
            key = self.next()
            if key is None or key.kind != "name":
                raise self.statement.error(
                    key or opening, f"write the name of a result, as in {name.value}(N)"
                )
            self.at += 1
            self._close(opening)
            return Node("result", key.value, self.tokens[start : self.at], operators=(name,))
        children: list[Node] = []
        while self._kind() != ")":
            children.append(self.expression(1, depth + 1))
            if self._kind() != ",":
                break
            self.at += 1
            if self._kind() == ")":
                raise self.statement.error(self.tokens[self.at], "nothing stands before this ')'")
        self._close(opening)
        return Node("call", name.value, self.tokens[start : self.at], tuple(children), (name,))

    def _close(self, opening: Token) -> None:
        closing = {"(": ")", "[": "]"}[opening.kind]
        token = self.next()
        if token is None:
            raise self.statement.error(opening, f"this '{opening.kind}' is never closed")
        if token.kind != closing:
            raise self.statement.error(
                token, f"'{token.value}' cannot stand here: an operator or '{closing}' is needed"
            )
        self.at += 1

    def _error(self, problem: str) -> StataError:
        return self.statement.error(self.tokens[min(self.at, len(self.tokens) - 1)], problem)

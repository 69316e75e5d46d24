"""Lists of effects with factor variables: ``i.race##c.(age income)``, ``ib2.arm#visit``, ``2.race``.

The list is expanded as Stata expands it: ``a##b`` is ``a b a#b``, parentheses distribute, and nothing is
repeated. Which levels there are is for whoever has the data.

References
----------
StataCorp, Stata User's Guide, section 11.4.3 (Factor variables).
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from jaxmixed.stata_frame import Variables
from jaxmixed.stata_syntax import Statement, Tokens
from jaxmixed.stata_tokens import MAX_NESTING, Token

MAX_TERMS = 1_000
"""Most terms that a list may expand to."""

_PREFIX = re.compile(r"(?P<kind>i|c|ib|b|ibn|bn|io|o)(?P<number>[0-9]*)\Z")
_LEVEL_SUFFIX = ("b", "bn", "o")


@dataclass(frozen=True)
class Factor:
    """One variable of a term.

    Attributes
    ----------
    name : str
        Full name of the variable.
    categorical : bool
        Whether its levels (True) or its values (False) enter.
    base : float, str or None
        Level left out: a value, ``"first"`` (as None: nothing was said), ``"last"``, ``"freq"``, ``"none"``.
    levels : tuple of float
        The only levels that enter, as in ``2.race`` and ``i(2 3).race``; all if empty.
    bare : bool
        Whether the name stood without ``i.`` or ``c.``; in an interaction it is then categorical.
    """

    name: str
    categorical: bool
    base: float | str | None = None
    levels: tuple[float, ...] = ()
    bare: bool = False


@dataclass(frozen=True)
class Term:
    """An effect: one variable, or the interaction of several; ``tokens`` are for errors only."""

    factors: tuple[Factor, ...]
    tokens: Tokens

    @property
    def key(self) -> frozenset[tuple[str, bool, tuple[float, ...], int]]:
        """What makes two terms the same."""
        names = [(factor.name, factor.categorical, factor.levels) for factor in self.factors]
        return frozenset((*name, names.count(name)) for name in names)


def terms(statement: Statement, tokens: Tokens, variables: Variables) -> list[Term]:
    """The effects of a list, expanded, none twice.

    Parameters
    ----------
    statement : Statement
        For errors.
    tokens : tuple of Token
        The list, as ``statement.arguments[1:]`` of ``mixed y i.race##c.age``.
    variables : Variables
        The variables of the data.

    Raises
    ------
    StataError
        If the list cannot be read, or names no variable of the data.

    Examples
    --------
    >>> from jaxmixed.stata_syntax import parse
    >>> line = parse("mixed y i.race##c.age ib2.arm")[0]
    >>> found = terms(line, line.arguments[1:], Variables(line, ("y", "race", "age", "arm")))
    >>> ["#".join(factor.name for factor in term.factors) for term in found]
    ['race', 'age', 'race#age', 'arm']
    """
    reader = _Reader(statement, tokens, variables)
    found: dict[object, Term] = {}
    for term in reader.sequence(0):
        found.setdefault(term.key, term)
    if reader.at < len(tokens):
        raise statement.error(tokens[reader.at], f"'{tokens[reader.at].value}' cannot stand here")
    return list(found.values())


class _Reader:
    def __init__(self, statement: Statement, tokens: Tokens, variables: Variables) -> None:
        self.statement = statement
        self.tokens = tokens
        self.variables = variables
        self.at = 0

    def _next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def sequence(self, depth: int) -> list[Term]:
        """Terms up to a closing parenthesis."""
        found: list[Term] = []
        while (token := self._next()) is not None and token.kind != ")":
            if token.kind in ("#", "##"):
                raise self.statement.error(token, f"nothing stands before the '{token.kind}'")
            found += self._interaction(depth)
            self._check_size(found, token)
        return found

    def _interaction(self, depth: int) -> list[Term]:
        start = self.at
        left = self._operand(depth)
        while (token := self._next()) is not None and token.kind in ("#", "##"):
            self.at += 1
            if (following := self._next()) is None or following.kind in ("#", "##", ")"):
                raise self.statement.error(token, f"nothing follows the '{token.kind}'")
            right = self._operand(depth)
            piece = self.tokens[start : self.at]
            self._check_size(left * len(right), token)
            crossed = [
                Term(_interacting((*a.factors, *b.factors)), piece) for a, b in itertools.product(left, right)
            ]
            mains = [Term(_interacting(term.factors), term.tokens) for term in (*left, *right)]
            left = [*mains, *crossed] if token.kind == "##" else crossed
            self._check_size(left, token)
        return left

    def _check_size(self, found: list[Term], token: Token) -> None:
        if len(found) > MAX_TERMS:
            raise self.statement.error(token, f"the list expands to more than {MAX_TERMS:,} terms")

    def _operand(self, depth: int) -> list[Term]:
        """A name or a parenthesis, with or without what stands before its period."""
        if depth > MAX_NESTING:
            raise self.statement.error(
                self.tokens[self.at], f"more than {MAX_NESTING} parentheses are nested"
            )
        start = self.at
        marks = self._marks()
        token = self._next()
        if token is None:
            raise self.statement.error(
                self.tokens[start:], "the name of a variable is missing after the period"
            )
        if token.kind == "(":
            self.at += 1
            inner = self.sequence(depth + 1)
            self.at += 1
            if not inner:
                raise self.statement.error(token, "empty parentheses: write variables between them")
            return [self._marked(term, marks) for term in inner] if marks else inner
        names = self._names(bare=marks is None)
        piece = self.tokens[start : self.at]
        plain = [Term((Factor(name, False, bare=True),), piece) for name in names]
        return [self._marked(term, marks) for term in plain] if marks else plain

    def _names(self, bare: bool) -> list[str]:
        """The variables of a name, a pattern or a range at the position."""
        start = self.at
        kinds = ("name", "number", "*", "?")
        self.at += 1
        while (token := self._next()) is not None:
            before = self.tokens[self.at - 1]
            touching = before.end == token.start and token.kind in kinds and before.kind in kinds
            if not (touching or (bare and (token.kind == "-" or before.kind == "-"))):
                break
            self.at += 1
        return [name for name, _ in self.variables.existing(self.tokens[start : self.at])]

    def _marks(self) -> Factor | None:
        """What stands before a period: ``i``, ``c``, ``ib2``, ``i(2 3)``, ``ib(last)``, ``2``, ``2b``."""
        token = self._next()
        rest = self.tokens[self.at :]
        if token is None or token.kind not in ("name", "number"):
            return None
        length = 1
        if token.kind == "number" and len(rest) > 1 and rest[1].value in _LEVEL_SUFFIX:
            length = 2 if rest[1].start == token.end else 1
        if len(rest) > 1 and rest[1].kind == "(" and rest[1].start == token.end and token.kind == "name":
            length = 1 + next(n for n, t in enumerate(rest[1:], 1) if t.kind == ")")
        if len(rest) <= length or rest[length].kind != "." or rest[length].start != rest[length - 1].end:
            if token.kind == "number":
                raise self.statement.error(token, f"a variable is needed here, not {token.value}")
            return None
        self.at += length + 1
        if token.kind == "number":
            suffix = rest[1].value if length == 2 else ""
            return self._level(token, suffix)
        return self._prefix(token, rest[2 : length - 1] if length > 1 else ())

    def _level(self, token: Token, suffix: str) -> Factor:
        value = float(token.value)
        if suffix == "o":
            raise self.statement.error(token, "omitted levels ('o.') cannot be chosen: leave the level out")
        return Factor("", True, "none" if suffix == "bn" else None, (value,))

    def _prefix(self, token: Token, inside: Tokens) -> Factor:
        match = _PREFIX.match(token.value)
        if match is None or match.group("kind") in ("o", "io"):
            problem = (
                f"'{token.value}.' is not supported: write i., c., ib#., ib(last)., ibn. or a level as in 2."
            )
            if token.value.rstrip("0123456789").upper() in ("L", "F", "D", "S"):
                problem = f"time-series operators ('{token.value}.') are not supported: generate the variable"
            raise self.statement.error(token, problem)
        kind, number = match.group("kind"), match.group("number")
        if kind == "c":
            if number or inside:
                raise self.statement.error(token, "'c.' takes no level")
            return Factor("", False)
        if kind == "i":
            levels = (float(number),) if number else self._levels(token, inside)
            return Factor("", True, None, levels)
        if kind in ("ibn", "bn"):
            return Factor("", True, "none")
        if number:
            return Factor("", True, float(number))
        return Factor("", True, self._base(token, inside))

    def _levels(self, token: Token, inside: Tokens) -> tuple[float, ...]:
        """Values of ``i(1 2/4).x``."""
        found: list[float] = []
        at = 0
        while at < len(inside):
            here = inside[at]
            if here.kind != "number":
                raise self.statement.error(here, "levels are numbers, as in i(1 3 5/7).x")
            if at + 2 < len(inside) and inside[at + 1].kind == "/" and inside[at + 2].kind == "number":
                first, last = float(here.value), float(inside[at + 2].value)
                if not (first.is_integer() and 0 <= last - first < MAX_TERMS):
                    raise self.statement.error(
                        here, f"a range of levels a/b has at most {MAX_TERMS:,} levels"
                    )
                found += [first + step for step in range(int(last - first) + 1)]
                at += 3
            else:
                found.append(float(here.value))
                at += 1
        return tuple(dict.fromkeys(found))

    def _base(self, token: Token, inside: Tokens) -> float | str:
        if (
            len(inside) == 1
            and inside[0].kind == "name"
            and inside[0].value in ("first", "last", "freq", "none")
        ):
            return inside[0].value
        if len(inside) == 1 and inside[0].kind == "number":
            return float(inside[0].value)
        raise self.statement.error(
            inside or token, "write a base as ib2., ib(first)., ib(last)., ib(freq). or ibn."
        )

    def _marked(self, term: Term, marks: Factor) -> Term:
        """A term whose bare names get what stood before the period."""
        return Term(
            tuple(
                Factor(f.name, marks.categorical, marks.base, marks.levels) if f.bare else f
                for f in term.factors
            ),
            term.tokens,
        )


def _interacting(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    """Variables of an interaction: a bare name is categorical there."""
    return tuple(Factor(f.name, True, bare=True) if f.bare else f for f in factors)

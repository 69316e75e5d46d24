"""Stata's one syntax: prefixes, command, arguments, if, in, weights, using, options, random-effects levels.

    [by varlist:] [quietly] command [arguments] [using file] [if exp] [in range] [weight] [, options]
        [|| levelvar: [varlist] [, options]] ...

Everything keeps its tokens, so that whoever gives them a meaning can point at the piece at fault. What the
commands mean is no part of this module.

References
----------
StataCorp, Stata User's Guide, chapter 11 (Language syntax); Multilevel Mixed-Effects Reference Manual, mixed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

from jaxmixed.errors import StataError
from jaxmixed.stata_tokens import MAX_NESTING, Script, Token, statements

Tokens = tuple[Token, ...]

WEIGHTS = {"fweight": "fw", "pweight": "pw", "aweight": "aw", "iweight": "iw"}
"""Kinds of weights with their shortest spellings."""

PREFIXES = {"quietly": "qui", "noisily": "n", "by": "by", "bysort": "bys", "version": "vers"}
"""Prefixes that are understood, with their shortest spellings."""

_REFUSED_PREFIXES = {
    "capture": ("cap", "an error always stops the script"),
    "xi": ("xi", "write factor variables instead, as in i.group"),
    "svy": ("svy", "give sampling weights as [pweight=w] and pweight() of the levels"),
    "bootstrap": ("bootstrap", "use the bootstrap of the fitted model from Python"),
    "jackknife": ("jackknife", "use the deletion diagnostics of the fitted model from Python"),
    "permute": ("permute", "it is not part of the subset"),
    "simulate": ("simulate", "use jaxmixed.simulate from Python"),
    "statsby": ("statsby", "it is not part of the subset"),
    "mi": ("mi", "multiple imputation is not part of the subset"),
    "bayes": ("bayes", "it is not part of the subset"),
    "foreach": ("foreach", "loops are not part of the subset: write out the commands"),
    "forvalues": ("forv", "loops are not part of the subset: write out the commands"),
    "while": ("while", "loops are not part of the subset: write out the commands"),
    "if": ("if", "conditions around commands are not part of the subset; 'if' stands after the arguments"),
}
_MAX_TOKENS = 20_000  # of one statement
_FREE = {"display": "di"}  # commands that read all that follows them
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_SECTIONS = ("if", "in", "using")


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its name (in full once the command is known), and what stands in its parentheses."""

    name: str
    token: Token
    argument: Tokens | None


@dataclass(frozen=True, slots=True)
class Weight:
    """``[fweight=exp]`` and its like; ``kind`` is the full name."""

    kind: str
    token: Token
    expression: Tokens


@dataclass(frozen=True, slots=True)
class Level:
    """One ``|| levelvar: effects, options``: ``name`` is what stands before the colon."""

    bar: Token
    name: Tokens
    arguments: Tokens
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Prefix:
    """``by varlist, options:``, ``quietly`` and their like, by their full names."""

    name: str
    token: Token
    arguments: Tokens
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """One command as it was written.

    ``arguments`` are the tokens between the command and what follows it; ``condition``, ``in_range`` and
    ``using`` are the tokens after ``if``, ``in`` and ``using``; each of these is None where it is absent.
    """

    script: Script
    tokens: Tokens
    prefixes: tuple[Prefix, ...]
    command: str
    name_token: Token
    arguments: Tokens
    condition: Tokens | None = None
    in_range: Tokens | None = None
    using: Tokens | None = None
    weight: Weight | None = None
    options: tuple[Option, ...] = ()
    levels: tuple[Level, ...] = ()

    @property
    def text(self) -> str:
        """The statement on one line, as it is echoed.

        Examples
        --------
        >>> parse("mixed y x  ///" + chr(10) + "   || school:")[0].text
        'mixed y x || school:'
        """
        pieces: list[str] = []
        position = self.tokens[0].start
        for token in self.tokens:
            pieces.append(" " if token.start > position else "")
            pieces.append(self.script.text[token.start : token.end])
            position = token.end
        return "".join(pieces).rstrip()

    def error(self, tokens: Token | Tokens | None, problem: str) -> StataError:
        """A `StataError` that points at tokens of the statement, at its command if there are none."""
        return self.script.at(tokens or self.name_token, problem)

    def source(self, tokens: Tokens) -> str:
        """What some tokens look like in the script."""
        return self.script.source(tokens)

    def option(self, name: str) -> Option | None:
        """The option of a full name (the last, if it is repeated), or None."""
        return next((option for option in reversed(self.options) if option.name == name), None)

    def has(self, *names: str) -> bool:
        """Whether any of the options is there."""
        return any(option.name in names for option in self.options)

    def number(self, name: str, default: float) -> float:
        """The number in an option's parentheses, the default without the option.

        Examples
        --------
        >>> parse("regress y x, level(90)")[0].number("level", 95)
        90.0
        """
        option = self.option(name)
        if option is None:
            return default
        return number_of(self.script, option.token, option.argument or ())

    def prefix(self, *names: str) -> Prefix | None:
        """The first prefix of any of the names, or None."""
        return next((prefix for prefix in self.prefixes if prefix.name in names), None)


def number_of(script: Script, owner: Token, tokens: Tokens) -> float:
    """The value of tokens that are one number, perhaps with a sign.

    Examples
    --------
    >>> script = Script("level(-2.5)")
    >>> line = next(statements(script))
    >>> number_of(script, line[0], line[2:4])
    -2.5
    """
    sign = -1.0 if tokens and tokens[0].kind == "-" else 1.0
    rest = tokens[1:] if tokens and tokens[0].kind in "+-" else tokens
    if len(rest) != 1 or rest[0].kind != "number":
        raise script.at(tokens or owner, f"a number is needed here, as in {owner.value}(95)")
    return sign * float(rest[0].value)


def parse(text: str) -> list[Statement]:
    """The statements of a script.

    Raises
    ------
    StataError
        At the first piece that is not of the language.

    Examples
    --------
    >>> line = parse("quietly mixed y x if z > 1 [pw=w] || school: x, cov(un) reml")[0]
    >>> line.command, [token.value for token in line.arguments], line.weight.kind, line.prefixes[0].name
    ('mixed', ['y', 'x'], 'pweight', 'quietly')
    >>> [(option.name, option.argument and option.argument[0].value) for option in line.levels[0].options]
    [('cov', 'un'), ('reml', None)]
    """
    script = Script(text)
    return [_Reader(script, tokens).statement() for tokens in statements(script)]


class _Head(TypedDict, total=False):
    """Fields of a statement that stand before its levels."""

    arguments: Tokens
    condition: Tokens
    in_range: Tokens
    using: Tokens
    weight: Weight
    options: tuple[Option, ...]


class _Reader:
    """Reads one statement."""

    def __init__(self, script: Script, tokens: Tokens) -> None:
        self.script = script
        self.whole = tokens[:-1]
        self.tokens = tokens

    def statement(self) -> Statement:
        if len(self.whole) > _MAX_TOKENS:
            raise self.script.at(self.whole[0], f"a statement has at most {_MAX_TOKENS:,} pieces")
        self._refuse(self.whole[0])
        check_brackets(self.script, self.whole)
        prefixes, rest = self._prefixes(self.whole)
        if not rest:
            raise self.script.at(self.whole, "a command is needed after the prefix")
        name, rest = rest[0], rest[1:]
        if name.kind != "name":
            raise self.script.at(
                name, f"a statement starts with the name of a command, not with '{name.value}'"
            )
        if abbreviated(name.value, _FREE):
            return Statement(self.script, self.whole, prefixes, name.value, name, rest)
        first, *others = split(rest, "||")
        head = self._head(first)
        levels = self._levels(others, [token for token in outermost(rest) if token.kind == "||"])
        return Statement(self.script, self.whole, prefixes, name.value, name, levels=levels, **head)

    def _refuse(self, token: Token) -> None:
        """Raise a `StataError` at a prefix or a loop that is not of the subset."""
        for full, (shortest, advice) in _REFUSED_PREFIXES.items():
            if is_abbreviation(token.value, full, shortest):
                raise self.script.at(token, f"'{full}' is not supported: {advice}")

    def _prefixes(self, tokens: Tokens) -> tuple[tuple[Prefix, ...], Tokens]:
        found: list[Prefix] = []
        while tokens and tokens[0].kind == "name":
            self._refuse(tokens[0])
            full = abbreviated(tokens[0].value, PREFIXES)
            if full is None:
                break
            prefix, tokens = self._prefix(full, tokens)
            if prefix is None:
                break
            found.append(prefix)
        return tuple(found), tokens

    def _prefix(self, full: str, tokens: Tokens) -> tuple[Prefix | None, Tokens]:
        """The prefix that tokens start with, and what follows it."""
        colon = next((token for token in outermost(tokens) if token.kind in (":", "||")), None)
        at = tokens.index(colon) if colon is not None and colon.kind == ":" else None
        if full in ("quietly", "noisily"):
            after = tokens[2:] if tokens[1:] and tokens[1].kind == ":" else tokens[1:]
            return Prefix(full, tokens[0], (), ()), after
        if at is None:
            if full == "version":
                return None, tokens
            example = "by school: generate n = _N"
            raise self.script.at(tokens[0], f"'{full}' needs a colon before the command, as in '{example}'")
        arguments, options = self._with_options(tokens[1:at])
        if full in ("by", "bysort") and not arguments:
            raise self.script.at(tokens[0], f"'{full}' needs variables, as in 'bysort school: ...'")
        return Prefix(full, tokens[0], arguments, options), tokens[at + 1 :]

    def _with_options(self, tokens: Tokens) -> tuple[Tokens, tuple[Option, ...]]:
        first, *others = split(tokens, ",", most=1)
        return first, (read_options(self.script, others[0]) if others else ())

    def _head(self, tokens: Tokens) -> _Head:
        """What stands before the first level."""
        body, options = self._with_options(tokens)
        marks = [
            position
            for position, token in positions(body)
            if (token.kind == "name" and token.value in _SECTIONS) or self._opens_weight(body, position)
        ]
        head: _Head = {"arguments": body[: marks[0]] if marks else body, "options": options}
        for start, end in zip(marks, [*marks, len(body)][1:], strict=True):
            mark, piece = body[start], body[start + 1 : end]
            seen = {"if": "condition", "in": "in_range", "using": "using", "[": "weight"}[mark.value]
            if seen in head:
                raise self.script.at(mark, f"a second '{mark.value}': combine them in one")
            if not piece:
                raise self.script.at(mark, f"nothing follows the '{mark.value}'")
            if mark.value == "if":
                head["condition"] = piece
            elif mark.value == "in":
                head["in_range"] = piece
            elif mark.value == "using":
                head["using"] = piece
            else:
                head["weight"] = self._weight(body[start:end])
        return head

    def _opens_weight(self, tokens: Tokens, position: int) -> bool:
        """Whether a ``[`` starts a weight: a name and ``=`` stand in it, and no name touches it."""
        here, after = tokens[position], tokens[position + 1 : position + 3]
        if here.kind != "[" or [token.kind for token in after] != ["name", "="]:
            return False
        return position == 0 or tokens[position - 1].kind != "name" or tokens[position - 1].end < here.start

    def _weight(self, tokens: Tokens) -> Weight:
        name = tokens[1]
        close = next((at for at, token in positions(tokens) if token.kind == "]"), len(tokens) - 1)
        if tokens[close + 1 :]:
            raise self.script.at(tokens[close + 1 :], "this stands after the weight: put it before the '['")
        kind = abbreviated(name.value, WEIGHTS)
        if kind is None:
            raise self.script.at(
                name, "weights are [fweight=exp], [pweight=exp], [aweight=exp], [iweight=exp]"
            )
        if not tokens[3:close]:
            raise self.script.at(tokens[:close], "nothing follows the '='")
        return Weight(kind, name, tokens[3:close])

    def _levels(self, pieces: list[Tokens], bars: list[Token]) -> tuple[Level, ...]:
        levels = []
        for bar, tokens in zip(bars, pieces, strict=True):
            body, options = self._with_options(tokens)
            colon = next((at for at, token in positions(body) if token.kind == ":"), None)
            if not colon:
                raise self.script.at(
                    (bar, *body), "a level is '|| variable: effects': the variable and its colon are needed"
                )
            for at, token in positions(body):
                if (token.value in _SECTIONS and token.kind == "name") or self._opens_weight(body, at):
                    raise self.script.at(
                        token, "if, in and weights stand before the first '||', with the fixed part"
                    )
            levels.append(Level(bar, body[:colon], body[colon + 1 :], options))
        return tuple(levels)


def read_options(script: Script, tokens: Tokens) -> tuple[Option, ...]:
    """Options from the tokens after a comma.

    Examples
    --------
    >>> script = Script("cov(un) reml")
    >>> [option.name for option in read_options(script, next(statements(script))[:-1])]
    ['cov', 'reml']
    """
    options: list[Option] = []
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == ",":
            raise script.at(token, "one comma stands before all options: take this one out")
        if token.kind != "name":
            raise script.at(token, f"the name of an option is needed here, not '{token.value}'")
        at += 1
        argument = None
        if at < len(tokens) and tokens[at].kind == "(":
            close = closing(tokens, at)
            argument = tokens[at + 1 : close]
            at = close + 1
        options.append(Option(token.value, token, argument))
    return tuple(options)


def nested(script: Script, tokens: Tokens) -> tuple[Tokens, tuple[Option, ...]]:
    """What an option's parentheses hold, before and after their comma, as in ``residuals(ar 1, t(week))``."""
    first, *others = split(tokens, ",", most=1)
    return first, (read_options(script, others[0]) if others else ())


def check_brackets(script: Script, tokens: Tokens) -> None:
    """Raise a `StataError` at the first bracket that is not closed, or closes nothing."""
    opened: list[Token] = []
    for token in tokens:
        if token.kind in _CLOSING:
            opened.append(token)
        elif token.kind in _CLOSING.values():
            if not opened or _CLOSING[opened[-1].kind] != token.kind:
                raise script.at(token, f"this '{token.kind}' closes nothing")
            opened.pop()
        if len(opened) > MAX_NESTING:
            raise script.at(token, f"brackets are nested more than {MAX_NESTING} deep")
        if token.kind in "{}":
            raise script.at(token, "braces (loops, programs) are not part of the subset")
    if opened:
        raise script.at(
            opened[-1], f"this '{opened[-1].kind}' is never closed: add the '{_CLOSING[opened[-1].kind]}'"
        )


def positions(tokens: Tokens) -> Iterable[tuple[int, Token]]:
    """The tokens outside all brackets (a closing bracket is outside), with their positions."""
    depth = 0
    for position, token in enumerate(tokens):
        if token.kind in _CLOSING.values():
            depth -= 1
        if depth <= 0:
            yield position, token
        if token.kind in _CLOSING:
            depth += 1


def closing(tokens: Tokens, opening: int) -> int:
    """Position of the bracket that closes the one at a position.

    Examples
    --------
    >>> closing(next(statements(Script("f(a(b), c) d"))), 1)
    8
    """
    return opening + next(
        n for n, token in positions(tokens[opening:]) if n and token.kind in _CLOSING.values()
    )


def outermost(tokens: Tokens) -> list[Token]:
    """The tokens outside all brackets."""
    return [token for _, token in positions(tokens)]


def split(tokens: Tokens, kind: str, most: int | None = None) -> list[Tokens]:
    """Parts between the operators of one kind that stand outside all brackets.

    Examples
    --------
    >>> line = next(statements(Script("a, f(b, c), d")))[:-1]
    >>> [len(part) for part in split(line, ",")]
    [1, 6, 1]
    """
    at = [position for position, token in positions(tokens) if token.kind == kind][:most]
    return [tokens[start + 1 : end] for start, end in zip([-1, *at], [*at, len(tokens)], strict=True)]


def is_abbreviation(word: str, full: str, shortest: str) -> bool:
    """Whether a word abbreviates a full name, and is no shorter than its shortest spelling.

    Examples
    --------
    >>> is_abbreviation("summ", "summarize", "su"), is_abbreviation("s", "summarize", "su")
    (True, False)
    """
    return full.startswith(word) and len(word) >= len(shortest)


def abbreviated(word: str, table: Mapping[str, str]) -> str | None:
    """The full name that a word abbreviates in a table from full names to their shortest spellings.

    Examples
    --------
    >>> abbreviated("pw", WEIGHTS), abbreviated("p", WEIGHTS)
    ('pweight', None)
    """
    if word in table:
        return word
    return next((full for full, least in table.items() if is_abbreviation(word, full, least)), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``: did you mean 'mixed'?`` for a word that resembles a known one, or nothing.

    Examples
    --------
    >>> suggestion("mixd", ["mixed", "regress"])
    ": did you mean 'mixed'?"
    """
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def resolved(
    statement: Statement,
    options: tuple[Option, ...],
    table: Mapping[str, tuple[str, bool | None]],
    owner: str,
) -> tuple[Option, ...]:
    """Options under their full names.

    Parameters
    ----------
    statement : Statement
        For errors.
    options : tuple of Option
    table : mapping
        From the full name to its shortest spelling and whether parentheses must (True), must not (False) or
        may (None) follow.
    owner : str
        Who has these options, for errors.

    Raises
    ------
    StataError
        At an option that is unknown or repeated, lacks its parentheses or must not have them.
    """
    found: dict[str, Option] = {}
    shortest = {name: least for name, (least, _) in table.items()}
    for option in options:
        full = abbreviated(option.name, shortest)
        if full is None:
            supported = ", ".join(f"{name}()" if takes else name for name, (_, takes) in table.items())
            hint = suggestion(option.name, table)
            raise statement.error(
                option.token,
                f"'{option.name}' is not a supported option of {owner}{hint or '.'}"
                + (f" Supported are {supported}" if table else " It has none"),
            )
        takes = table[full][1]
        if takes is True and not option.argument:
            raise statement.error(option.token, f"option {full}() needs something in parentheses")
        if takes is False and option.argument is not None:
            raise statement.error(option.token, f"option {full} takes nothing in parentheses")
        if full in found:
            raise statement.error(option.token, f"option {full} is given twice")
        found[full] = replace(option, name=full)
    return tuple(found.values())

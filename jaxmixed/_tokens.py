"""Tokens of a formula, the limits on its size, and errors that show where it went wrong.

The scanner is one regular expression over a closed alphabet: ASCII operators, decimal numbers, quoted texts,
Unicode names, and names in backquotes. Whatever else is met (an operator that only looks like an ASCII one, a
control or invisible character, brackets of other languages) is refused at its position.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxmixed.errors import FormulaError

MAX_LENGTH = 10_000
"""Longest formula, in characters."""

MAX_DEPTH = 100
"""Deepest nesting of parentheses and operators, and most operations in one arithmetic expression."""

MAX_TERMS = 2_000
"""Most terms that a formula may expand to."""

MAX_PRODUCTS = 200_000
"""Most pairs of terms multiplied while a formula is expanded (bounds the time, MAX_TERMS the result)."""

MAX_EXPONENT = 100
"""Largest exponent, of an interaction power and of a constant power in arithmetic."""

_WINDOW = 100  # characters of a long line shown around the offending piece

_SCANNER = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?L?)
    |(?P<name>[A-Za-z_.\x80-\U0010ffff][A-Za-z0-9_.\x80-\U0010ffff]*)
    |(?P<quoted>`[^`]*`)
    |(?P<text>"[^"]*"|'[^']*')
    |(?P<operator>\*\*|\|\||%in%|[-+*/:^|~(),=])""",
    re.VERBOSE,
)
_ASCII_NAME = re.compile(r"(?:[A-Za-z_]|\.(?![0-9.]*\Z)(?![0-9]))[A-Za-z0-9_.]*\Z")

_LOOK_ALIKES = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\ufe63": "-",
    "\uff0d": "-", "\uff0b": "+", "\u00d7": "*", "\u2217": "*", "\u22c5": "*", "\u00b7": "*", "\u0387": "*",
    "\uff0a": "*", "\u2715": "*", "\u00f7": "/", "\u2044": "/", "\u2215": "/", "\uff0f": "/", "\u223c": "~",
    "\u02dc": "~", "\uff5e": "~", "\u301c": "~", "\u2223": "|", "\uff5c": "|", "\u01c0": "|", "\u2758": "|",
    "\u00a6": "|", "\u2225": "||", "\u2016": "||", "\uff1a": ":", "\u2236": ":", "\ua789": ":", "\uff08": "(",
    "\uff09": ")", "\uff0c": ",", "\uff1d": "=", "\uff3e": "^", "\u02c6": "^", "\u00b2": "^2", "\u00b3": "^3",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00b4": "`", "\u02cb": "`",
}  # fmt: skip
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\u2800")
_INVISIBLE |= {chr(code) for code in range(0xFE00, 0xFE10)}  # variation selectors
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_COMPARISON = "comparisons are not part of the grammar; make a column of the result and name it"
_BRACKET = "only round brackets are part of the grammar"
_HINTS = {
    "<": _COMPARISON, ">": _COMPARISON, "!": _COMPARISON, "&": _COMPARISON,
    "[": _BRACKET, "]": _BRACKET, "{": _BRACKET, "}": _BRACKET,
    "$": "write the name of the column alone",
    "@": "write the name of the column alone",
    "%": "the only operator written with '%' is '%in%'",
    ";": "give one formula at a time",
    "#": "comments are not part of the grammar; take it out, or put the column's name in backquotes",
    "`": "this backquote is never closed; write `name of the column`",
    '"': "this quotation mark is never closed",
    "'": "this quotation mark is never closed",
    "\\": "take it out, or put the column's name in backquotes",
}  # fmt: skip


@dataclass(slots=True)
class Token:
    """A piece of the formula: its kind, its value, and where it stands in the text.

    ``kind`` is ``"name"``, ``"quoted"`` (a name in backquotes), ``"number"``, ``"text"``, ``"end"``, or the
    operator itself (``"**"`` is written ``"^"``).
    """

    kind: str
    value: str
    start: int
    end: int


def error(text: str, start: int, end: int, problem: str) -> FormulaError:
    """Return a `FormulaError` whose first line says all and whose next lines point at ``text[start:end]``.

    Examples
    --------
    >>> print(error("y ~ x +", 6, 7, "nothing follows the '+'"))
    nothing follows the '+' (character 7, at '+')
      y ~ x +
            ^
    """
    place, lines = pointed(text, start, end)
    return FormulaError(f"{problem} (character {start + 1}, {place})\n{lines}")


def pointed(text: str, start: int, end: int) -> tuple[str, str]:
    """Return where ``text[start:end]`` stands, in words, and its line above a pointer to it.

    Examples
    --------
    >>> place, lines = pointed("y ~ x +", 6, 7)
    >>> print(place + chr(10) + lines)
    at '+'
      y ~ x +
            ^
    """
    end = max(end, start + 1)
    piece = _shown(text[start:end])
    piece = piece if len(piece) <= 40 else piece[:37] + "..."
    place = f"at {piece!r}" if piece.strip() else "at the end" if start >= len(text) else "at a blank"
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", start)
    last = len(text) if last < 0 else last
    left = first if last - first <= _WINDOW else max(first, start - _WINDOW // 2)
    right = min(last, left + _WINDOW)
    before = ("..." if left > first else "") + _shown(text[left:start])
    line = before + _shown(text[start:right]) + ("..." if right < last else "")
    pointer = " " * _width(before) + "^" * max(1, _width(_shown(text[start : min(end, right)])))
    return place, f"  {line}\n  {pointer}"


def look_alike(character: str) -> str | None:
    """Return the ASCII text that a character only looks like, or None.

    Examples
    --------
    >>> look_alike(chr(0x2212)), look_alike("a")
    ('-', None)
    """
    return _LOOK_ALIKES.get(character)


def _shown(text: str) -> str:
    """Return text fit for a terminal: what cannot be printed becomes one replacement character."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() and c not in _INVISIBLE else " " if c == "\t" else "\ufffd" for c in text
    )


def _width(text: str) -> int:
    """Return the number of terminal columns that printable text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def is_plain_name(name: str) -> bool:
    """Tell whether a column's name can be written in a formula without backquotes.

    Examples
    --------
    >>> is_plain_name("x.1"), is_plain_name("body mass"), is_plain_name("größe")
    (True, False, True)
    """
    if name.isascii():
        return _ASCII_NAME.match(name) is not None
    if name[0] == "." and name[1].isdecimal():
        return False
    return (
        name.replace(".", "_").isidentifier()
        and odd_character(name) < 0
        and unicodedata.is_normalized("NFC", name)
    )


def odd_character(name: str) -> int:
    """Return the position of the first character that may not stand in a bare name, or -1.

    Examples
    --------
    >>> odd_character("größe"), odd_character("x" + chr(0x200B))
    (-1, 1)
    """
    for position, character in enumerate(name):
        if character.isascii():
            continue
        usable = ("_" + character).isidentifier() and unicodedata.category(character) != "Cf"
        if not usable or character in _INVISIBLE or character in _LOOK_ALIKES:
            return position
    return -1


def tokenize(text: str, known: Callable[[int], Token | None] | None = None) -> list[Token]:
    """Return the tokens of a formula, an ``"end"`` token last.

    Parameters
    ----------
    text : str
        The formula.
    known : callable, optional
        Finds the token that begins at a position, before the grammar is asked; None leaves it to the grammar.

    Raises
    ------
    FormulaError
        At the first character that is not of the grammar.

    Examples
    --------
    >>> [token.value for token in tokenize("y ~ x**2")]
    ['y', '~', 'x', '^', '2', '']
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(
            f"the formula has {len(text):,} characters, more than the {MAX_LENGTH:,} allowed: "
            "make columns of its longer parts"
        )
    tokens: list[Token] = []
    position, size = 0, len(text)
    while position < size:
        token = None if known is None else known(position)
        if token is not None:
            tokens.append(token)
            position = token.end
            continue
        match = _SCANNER.match(text, position)
        if match is None:
            raise _unexpected(text, position)
        kind, start, position = match.lastgroup, position, match.end()
        if kind == "operator":
            value = match.group()
            value = "^" if value == "**" else value
            tokens.append(Token(value, value, start, position))
        elif kind == "name":
            tokens.append(Token("name", _bare_name(text, start, position), start, position))
        elif kind == "number":
            tokens.append(Token("number", _number(text, start, position), start, position))
        elif kind != "space":
            tokens.append(Token(str(kind), _between_quotes(text, start, position), start, position))
    tokens.append(Token("end", "", size, size))
    return tokens


def one_line(text: str, tokens: list[Token]) -> str:
    """Return the formula on one line: every run of white space between two tokens becomes one blank.

    Examples
    --------
    >>> source = "y  ~ x +" + chr(10) + " z"
    >>> one_line(source, tokenize(source))
    'y ~ x + z'
    """
    pieces: list[str] = []
    position = tokens[0].start
    for token in tokens[:-1]:
        pieces.append(" " if token.start > position else "")
        pieces.append(text[token.start : token.end])
        position = token.end
    return "".join(pieces)


def _bare_name(text: str, start: int, end: int) -> str:
    """Return a name without backquotes in Unicode normal form C."""
    name = text[start:end]
    if not name.strip("."):
        raise error(
            text,
            start,
            end,
            "'.' (all other columns) is not available, because it changes with the data: name the columns",
        )
    if name.isascii():
        return name
    odd = odd_character(name)
    if odd >= 0:
        raise _unexpected(text, start + odd)
    if not name.replace(".", "_").isidentifier():
        raise error(text, start, end, "a name starts with a letter or '_': put the name in backquotes")
    return unicodedata.normalize("NFC", name)


def _number(text: str, start: int, end: int) -> str:
    """Return the digits of a number that stands apart from what follows and is finite."""
    following = text[end : end + 1]
    if following and (following.isalnum() or following in "_."):
        raise error(
            text,
            start,
            end + 1,
            "a number runs into a name: put an operator between them, or the column's name in backquotes",
        )
    value = text[start:end].rstrip("L")
    if float(value) == float("inf"):
        raise error(text, start, end, "this number is too large for float64")
    return value


def _between_quotes(text: str, start: int, end: int) -> str:
    """Return what stands between backquotes or quotation marks."""
    value = text[start + 1 : end - 1]
    if not value and text[start] == "`":
        raise error(text, start, end, "empty backquotes name no column: write the column's name between them")
    if not (value.isascii() and value.isprintable()):
        for offset, character in enumerate(value, start + 1):
            if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
                raise _unexpected(text, offset)
    return value


def _unexpected(text: str, position: int) -> FormulaError:
    """Return the error for a character that is not of the grammar."""
    character = text[position]
    code = f"U+{ord(character):04X}"
    if character in _LOOK_ALIKES:
        name = unicodedata.name(character, code)
        problem = f"{name} ({code}) only looks like '{_LOOK_ALIKES[character]}': type the ASCII character"
        if character in "\u00b2\u00b3":
            problem = f"{name} ({code}) is not an operator: write I(x{_LOOK_ALIKES[character]})"
    elif character in _HINTS:
        problem = f"'{character}' cannot stand here: {_HINTS[character]}"
    elif character.isprintable() and character not in _INVISIBLE:
        problem = f"unexpected character '{character}' ({code}): put a name that contains it in backquotes"
    else:
        problem = f"invisible or control character {code}: take it out, or use a plain blank"
    return error(text, position, position + 1, problem)


@dataclass(slots=True)
class Node:
    """A piece of syntax, before it has a meaning.

    ``kind`` is ``"name"``, ``"quoted"``, ``"number"``, ``"text"``; ``"call"`` (``value`` is the function,
    ``keywords`` stand beside ``children``); ``"paren"``; ``"sign"``; ``"power"``; ``"bar"`` (``value`` is
    ``|`` or ``||``); or a chain of operators of one precedence: ``"sum"``, ``"product"``, ``"in"``,
    ``"interaction"``, with ``operators`` between ``children``.
    """

    kind: str
    value: str
    start: int
    end: int
    children: list[Node] = field(default_factory=list)
    operators: list[Token] = field(default_factory=list)
    keywords: list[Token | None] = field(default_factory=list)


_BINDING = {"|": 1, "||": 1, "+": 2, "-": 2, "*": 3, "/": 3, "%in%": 4, ":": 5, "^": 7}
_CHAIN = {2: "sum", 3: "product", 4: "in", 5: "interaction"}
_OPERANDS = ("name", "quoted", "number", "text")


class SyntaxReader:
    """Precedence parser (Pratt): tokens in, one `Node` for each side of the ``~`` out.

    Recursion grows only with the nesting of the formula, and stops at `MAX_DEPTH`; chains of one operator are
    read in a loop.
    """

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.position = 0

    def formula(self) -> tuple[Node, Node]:
        """Return the two sides of the only ``~``."""
        tildes = [token for token in self.tokens if token.kind == "~"]
        if len(self.tokens) == 1:
            raise FormulaError("the formula is empty: write one such as 'y ~ x + (1 | g)'")
        if not tildes:
            equals = next((token for token in self.tokens if token.kind == "="), self.tokens[-1])
            raise self._error(
                equals, "a formula needs a '~' between response and effects, as in 'y ~ x + (1 | g)'"
            )
        if len(tildes) > 1:
            raise self._error(tildes[1], "a second '~': a formula has one, between response and effects")
        if self.tokens[0].kind == "~":
            raise self._error(tildes[0], "no response before the '~': write 'y ~ ...'")
        if self.tokens[-2].kind == "~":
            raise self._error(
                tildes[0], "nothing follows the '~': write effects there, or 1 for a mean alone"
            )
        left = self.expression(1, 1)
        self._expect("~", None)
        right = self.expression(1, 1)
        self._expect("end", None)
        return left, right

    def only_expression(self) -> Node:
        """Return the expression that all tokens make."""
        node = self.expression(1, 1)
        self._expect("end", None)
        return node

    def expression(self, minimum: int, depth: int) -> Node:
        """Return the longest expression whose operators bind at least as tightly as ``minimum``."""
        if depth > MAX_DEPTH:
            raise self._error(
                self.tokens[self.position],
                f"parentheses or operators are nested more than {MAX_DEPTH} deep: simplify, or make a column",
            )
        left = self._operand(minimum, depth)
        while True:
            token = self.tokens[self.position]
            binding = _BINDING.get(token.kind, 0)
            if binding == 0 or binding < minimum:
                return left
            self.position += 1
            right = self.expression(7 if binding == 7 else binding + 1, depth + 1)
            left = self._joined(left, token, right, binding)

    def _joined(self, left: Node, token: Token, right: Node, binding: int) -> Node:
        """Return the node of two operands, or the longer chain."""
        if binding in _CHAIN:
            if left.kind != _CHAIN[binding]:
                left = Node(_CHAIN[binding], "", left.start, left.end, [left])
            left.children.append(right)
            left.operators.append(token)
            left.end = right.end
            return left
        if left.kind == "bar":
            problem = (
                "a second bar: a random-effects term is (effects | group), each in parentheses of its own"
            )
            raise self._error(token, problem)
        kind = "power" if binding == 7 else "bar"
        return Node(kind, token.kind, left.start, right.end, [left, right], [token])

    def _operand(self, minimum: int, depth: int) -> Node:
        """Return a name, number, text, call, parenthesis or signed expression."""
        token = self.tokens[self.position]
        self.position += 1
        if token.kind == "name" and self.tokens[self.position].kind == "(":
            return self._call(token, depth)
        if token.kind in _OPERANDS:
            return Node(token.kind, token.value, token.start, token.end)
        if token.kind == "(":
            inner = self.expression(1, depth + 1)
            closing = self._expect(")", token)
            return Node("paren", "", token.start, closing.end, [inner])
        if token.kind in "+-":
            # A sign that opens a sum covers a whole product; after an operator, less than a product.
            operand = self.expression(3 if minimum <= 2 else max(4, minimum), depth + 1)
            return Node("sign", token.kind, token.start, operand.end, [operand])
        raise self._missing(token)

    def _call(self, name: Token, depth: int) -> Node:
        """Return a call; the position is at its opening parenthesis."""
        opening = self.tokens[self.position]
        self.position += 1
        node = Node("call", name.value, name.start, name.end)
        if self.tokens[self.position].kind == ")":
            raise self._error(name, f"{name.value}() needs an argument", self.tokens[self.position].end)
        while True:
            token = self.tokens[self.position]
            keyword = token if token.kind == "name" and self.tokens[self.position + 1].kind == "=" else None
            self.position += 2 if keyword else 0
            node.children.append(self.expression(1, depth + 1))
            node.keywords.append(keyword)
            if self.tokens[self.position].kind != ",":
                break
            self.position += 1
        node.end = self._expect(")", opening).end
        return node

    def _expect(self, kind: str, opening: Token | None) -> Token:
        """Return the next token if it is of the kind that must come, or say what is wrong with it."""
        token = self.tokens[self.position]
        if token.kind == kind:
            self.position += 1
            return token
        if opening is not None and token.kind in ("end", "~"):
            raise self._error(opening, "this parenthesis is never closed: add the ')'")
        if token.kind in _OPERANDS or token.kind == "(":
            raise self._error(
                token, "an operator is missing here: write '+' or another one between two terms"
            )
        problem = {
            ")": "this ')' closes nothing: take it out, or add the '('",
            ",": "a comma stands only between the arguments of a function: separate terms by '+'",
            "=": "'=' stands only before the value of an argument: write '~'; a comparison needs a column",
        }[token.kind]
        raise self._error(token, problem)

    def _missing(self, token: Token) -> FormulaError:
        """Return the error for a token where an operand must stand."""
        before = self.tokens[self.position - 2] if self.position > 1 else token
        if token.kind in ("end", ")", ",", "~") and before.kind == "(":
            if token.kind == ")":
                return self._error(before, "empty parentheses: write a term between them", token.end)
            return self._error(before, "this parenthesis is never closed: add what it holds and the ')'")
        if token.kind in ("end", ")", ",", "~") and before.kind != "~" and before is not token:
            return self._error(
                before, f"nothing follows the '{before.value}': write an operand, or take it out"
            )
        return self._error(
            token, f"nothing stands before the '{token.value}': write an operand, or take it out"
        )

    def _error(self, token: Token, problem: str, end: int | None = None) -> FormulaError:
        return error(self.text, token.start, token.end if end is None else end, problem)

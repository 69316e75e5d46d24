"""Tokens of Stata's language: statements without comments and continuations, each piece with its place.

The scanner knows Stata's four comments (``*`` at the start of a statement, ``//`` after a blank, ``///`` that
joins lines, nested ``/* */``), both delimiters (``#delimit ;`` and ``#delimit cr``), texts in plain and in
compound quotation marks, and the numbers of factor levels (``2.race``). Macros are not expanded: a backquote
or a dollar sign outside a text is refused where it stands.

References
----------
StataCorp, Stata User's Guide, chapter 11 (Language syntax) and chapter 16 (Do-files).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from jaxmixed._tokens import look_alike, odd_character, pointed
from jaxmixed.errors import StataError

MAX_SCRIPT = 1_000_000
"""Longest script, in characters."""

MAX_NESTING = 100
"""Deepest nesting of parentheses, comments and operators."""

_SCANNER = re.compile(
    r"""(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)
    |(?P<operator>\|\||>=|<=|==|!=|~=|\#\#|[-+*/^&|!~<>=()\[\]{},:.\#?%@\\;])""",
    re.VERBOSE,
)
_MACRO = "macros are not part of the subset: write out what `{}' stands for"


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a statement: its kind, its value, and where it stands in the script.

    ``kind`` is ``"name"``, ``"number"``, ``"text"`` (``value`` without its quotation marks), ``"end"``, or
    the operator itself. ``start`` and ``end`` are positions in the whole script.
    """

    kind: str
    value: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Script:
    """The text of a do-file, and its errors.

    Examples
    --------
    >>> script = Script("sort x" + chr(10) + "mixd y x")
    >>> print(script.error(7, 11, "no command is named 'mixd'"))
    line 2, column 1: no command is named 'mixd'
      mixd y x
      ^^^^
    """

    text: str

    def place(self, start: int) -> tuple[int, int]:
        """Line and column of a position, counted from one."""
        before = self.text[:start]
        return before.count("\n") + 1, start - (before.rfind("\n") + 1) + 1

    def error(self, start: int, end: int, problem: str) -> StataError:
        """A `StataError` whose first line says all and whose next lines point at ``text[start:end]``."""
        newline = self.text.find("\n", start)
        end = min(end, newline) if newline > start else end
        line, column = self.place(start)
        _, lines = pointed(self.text, start, end)
        return StataError(f"line {line}, column {column}: {problem}\n{lines}", line, column)

    def at(self, tokens: Token | tuple[Token, ...], problem: str) -> StataError:
        """The same for one token, or from the first to the last of several."""
        pieces = (tokens,) if isinstance(tokens, Token) else tokens
        return self.error(pieces[0].start, pieces[-1].end, problem)

    def source(self, tokens: tuple[Token, ...]) -> str:
        """The text from the first to the last of some tokens as it was written; empty without tokens."""
        return self.text[tokens[0].start : tokens[-1].end] if tokens else ""


def statements(script: Script) -> Iterator[tuple[Token, ...]]:
    """Tokens of each statement that is not empty, an ``"end"`` token last.

    Raises
    ------
    StataError
        At the first character that is not of the language.

    Examples
    --------
    >>> text = "* a comment" + chr(10) + "mixed y x ///" + chr(10) + "  || school:  // two lines"
    >>> [[token.value for token in line] for line in statements(Script(text))]
    [['mixed', 'y', 'x', '||', 'school', ':', '']]
    """
    if len(script.text) > MAX_SCRIPT:
        raise script.error(0, 1, f"a script has at most {MAX_SCRIPT:,} characters")
    yield from _Scanner(script).statements()


class _Scanner:
    """Walks through a script once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.text = script.text
        self.size = len(script.text)
        self.position = 0
        self.delimiter = "\n"
        self.tokens: list[Token] = []

    def statements(self) -> Iterator[tuple[Token, ...]]:
        while self.position < self.size:
            if not self.tokens and self._delimit():
                continue
            if not self._piece() and self.tokens:
                yield self._finished(self.position - 1)
        if self.tokens:
            if self.delimiter == ";":
                last = self.tokens[-1]
                raise self.script.at(
                    last, "this statement is never ended: add the ';' that #delimit ; asks for"
                )
            yield self._finished(self.size)

    def _finished(self, end: int) -> tuple[Token, ...]:
        whole = (*self.tokens, Token("end", "", end, end))
        self.tokens = []
        return whole

    def _delimit(self) -> bool:
        """Read ``#delimit`` at the start of a statement."""
        match = re.compile(r"[ \t]*#d(?:elimit|elimi|elim|eli|el|e)?\b[ \t]*(;|cr\b)?").match(
            self.text, self.position
        )
        if match is None:
            return False
        if match.group(1) is None:
            raise self.script.error(match.start(), match.end(), "write '#delimit ;' or '#delimit cr'")
        self.delimiter = ";" if match.group(1) == ";" else "\n"
        self.position = match.end()
        return True

    def _piece(self) -> bool:
        """Read what stands at the position; False at the end of a statement."""
        text, position = self.text, self.position
        character = text[position]
        if character == self.delimiter:
            self.position += 1
            return False
        if character in " \t\r\n\f\ufeff":
            self.position += 1
        elif text.startswith("/*", position):
            self._block_comment()
        elif text.startswith("//", position) and (position == 0 or text[position - 1].isspace()):
            self._line_comment(joins=text.startswith("///", position))
        elif character == "*" and not self.tokens:
            self._star_comment()
        elif character == '"' or text.startswith('`"', position):
            self.tokens.append(self._quoted())
        else:
            self.tokens.append(self._token())
        return True

    def _block_comment(self) -> None:
        opening, depth = self.position, 0
        for match in re.compile(r"/\*|\*/").finditer(self.text, opening):
            depth += 1 if match.group() == "/*" else -1
            if depth == 0:
                self.position = match.end()
                return
        raise self.script.error(opening, opening + 2, "this comment is never closed: add the */")

    def _line_comment(self, joins: bool) -> None:
        newline = self.text.find("\n", self.position)
        if newline < 0:
            self.position = self.size
        else:
            self.position = newline + 1 if joins or self.delimiter == ";" else newline

    def _star_comment(self) -> None:
        """Skip to the end of the statement; ``///`` and ``/* */`` continue it."""
        ending = re.compile(r"/\*|(?<=\s)///|" + re.escape(self.delimiter))
        while (match := ending.search(self.text, self.position)) is not None:
            self.position = match.start()
            if match.group() == "/*":
                self._block_comment()
            elif match.group() == "///":
                self._line_comment(joins=True)
            else:
                return
        self.position = self.size

    def _quoted(self) -> Token:
        """A text in plain or in compound quotation marks, which may hold further ones."""
        start = self.position
        if self.text[start] == '"':
            end = re.compile(r'["\n]').search(self.text, start + 1)
            if end is None or end.group() == "\n":
                raise self.script.error(start, start + 1, "this quotation mark is never closed on its line")
            self.position = end.end()
            return self._text(start, start + 1, end.start())
        depth = 0
        for match in re.compile(r'`"|"\'|\n').finditer(self.text, start):
            if match.group() == "\n":
                break
            depth += 1 if match.group() == '`"' else -1
            if depth == 0:
                self.position = match.end()
                return self._text(start, start + 2, match.start())
        raise self.script.error(start, start + 2, 'this `" is never closed on its line: add the "\'')

    def _text(self, start: int, first: int, last: int) -> Token:
        value = self.text[first:last]
        for offset, character in enumerate(value, first):
            if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character != "\t":
                raise self._unexpected(offset)
        macro = re.search(r"`[A-Za-z0-9_]+'|\$[A-Za-z_{]", value)
        if macro:
            raise self.script.error(
                first + macro.start(), first + macro.end(), _MACRO.format(macro.group().strip("`'$"))
            )
        return Token("text", value, start, self.position)

    def _token(self) -> Token:
        match = _SCANNER.match(self.text, self.position)
        if match is None:
            raise self._unexpected(self.position)
        start, end = match.span()
        kind, value = str(match.lastgroup), match.group()
        if kind == "level":
            kind = "number"
        elif kind == "number":
            end = self._number_end(start, end)
            value = self.text[start:end]
        elif kind == "name":
            odd = -1 if value.isascii() else odd_character(value)
            if odd >= 0 or not value.isidentifier():
                raise self._unexpected(start + max(odd, 0))
            value = unicodedata.normalize("NFC", value)
        elif value == ";":
            raise self.script.error(start, end, "';' ends a statement only after #delimit ;: take it out")
        else:
            kind = value
        self.position = end
        return Token(kind, value, start, end)

    def _number_end(self, start: int, end: int) -> int:
        """A number ends before the period of ``2.race``, and is finite."""
        value = self.text[start:end]
        name_follows = self.text[end : end + 1].isalpha() or self.text[end : end + 1] == "_"
        if value.endswith(".") and name_follows:
            end -= 1
        if float(self.text[start:end]) == float("inf"):
            raise self.script.error(start, end, "this number is too large")
        return end

    def _unexpected(self, position: int) -> StataError:
        character = self.text[position]
        code = f"U+{ord(character):04X}"
        alike = look_alike(character)
        if alike is not None:
            name = unicodedata.name(character, code)
            problem = f"{name} ({code}) only looks like '{alike}': type the ASCII character"
        elif character in "`$'":
            problem = "macros are not part of the subset: write out what they stand for"
        elif character.isprintable():
            problem = f"unexpected character '{character}' ({code})"
        else:
            problem = f"invisible or control character {code}: take it out, or use a plain blank"
        return self.script.error(position, position + 1, problem)

"""Names of coefficients: what there is, where one stands in a text, and what a wrong one may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from jaxmixed._tokens import Token, error
from jaxmixed.encoding import INTERCEPT
from jaxmixed.errors import DataError, FormulaError, listed, printable

if TYPE_CHECKING:
    from jaxmixed.frame import ModelFrame

_STATA_INTERCEPT = "_cons"
_NUMBER = re.compile(r"\.?[0-9]")
_OPERATORS = frozenset("+-*/=,<>")


@dataclass(frozen=True, eq=False)
class Coefficients:
    """What expressions may name.

    Attributes
    ----------
    names : tuple of str
        Of the p coefficients, as they are printed.
    terms : mapping
        Positions of the coefficients of each term of the formula.
    """

    names: tuple[str, ...]
    terms: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, frame: ModelFrame) -> Coefficients:
        """Those of a model."""
        columns: dict[str, list[int]] = {label: [] for label in frame.term_labels}
        for position, term in enumerate(frame.x_assign):
            if term:
                columns[frame.term_labels[term - 1]].append(position)
        return cls(frame.x_names, {label: tuple(found) for label, found in columns.items()})

    @cached_property
    def exact(self) -> dict[str, tuple[int, ...]]:
        """Positions of the coefficients of each name."""
        found: dict[str, tuple[int, ...]] = {}
        for position, name in enumerate(self.names):
            found[name] = (*found.get(name, ()), position)
        if INTERCEPT in found:
            found.setdefault(_STATA_INTERCEPT, found[INTERCEPT])
        return found

    @cached_property
    def known(self) -> dict[str, tuple[str, ...]]:
        """Names of coefficients and terms, by themselves without what is optional in them."""
        found: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys((*self.exact, *self.terms)):
            key = Squeezed(name).text
            found[key] = (*found.get(key, ()), name)
        return found

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the keys of `known`, the longest first."""
        return tuple(sorted({len(key) for key in self.known}, reverse=True))

    def position(self, name: object) -> int:
        """Position of a coefficient.

        Raises
        ------
        DataError
            If there is none, or several.
        """
        candidates = self.known.get(Squeezed(name).text, ()) if isinstance(name, str) else ()
        named = name if name in candidates else candidates[0] if len(candidates) == 1 else None
        found = self.exact.get(named, ()) if isinstance(named, str) else ()
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(_shared_name(str(name)))
        raise DataError(f"there is no coefficient {name!r}{self.hint(str(name))}")

    def hint(self, name: str) -> str:
        """Names like the one that was not found, or what there is."""
        known = list(dict.fromkeys((*self.names, *self.terms)))
        parts = sorted(Squeezed(name).text.split(":"))
        close = [other for other in known if sorted(Squeezed(other).text.split(":")) == parts]
        if name.lower() in ("intercept", "const", "constant", "cons", "1", _STATA_INTERCEPT):
            close += [other for other in known if other == INTERCEPT]
        close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        if close:
            return f"; did you mean {' or '.join(repr(printable(other)) for other in close)}?"
        several = [label for label in self.terms if label not in self.exact]
        terms = f"; terms {listed(several)}" if several else ""
        return f"; the model has {listed(self.names)}{terms}" if self.names else "; the model has none"


def _shared_name(name: str) -> str:
    return f"several coefficients are called {name!r}: give a matrix, or rename a column or a level"


class Squeezed:
    """A text without optional blanks, ``**`` written ``^``, and one kind of quotation marks.

    Attributes
    ----------
    text : str
    at : dict
        Its characters by their place in the source.
    ends : list of int
        Where what each character stands for ended there.

    Examples
    --------
    >>> Squeezed("I( x ** 2 ) + a  b").text
    'I(x^2)+a b'
    """

    def __init__(self, source: str) -> None:
        kept: list[str] = []
        self.at: dict[int, int] = {}
        self.ends: list[int] = []
        position = 0
        while position < len(source):
            character, start = source[position], position
            position += 1
            if character.isspace():
                while position < len(source) and source[position].isspace():
                    position += 1
                following = source[position : position + 1]
                if not (kept and _in_word(kept[-1]) and following and _in_word(following)):
                    continue
                character = " "
            elif source.startswith("**", start):
                character, position = "^", start + 2
            self.at[start] = len(kept)
            self.ends.append(position)
            kept.append("'" if character == '"' else character)
        self.text = "".join(kept)


def _in_word(character: str) -> bool:
    return character.isalnum() or character in "_."


class NameFinder:
    """Finds names of coefficients in one text."""

    def __init__(self, text: str, coefficients: Coefficients) -> None:
        self.text = text
        self.coefficients = coefficients
        self.squeezed = Squeezed(text)

    def at(self, start: int) -> Token | None:
        """The name that begins at a position, or None where something else than a name begins.

        Raises
        ------
        FormulaError
            If a name begins there that nothing has, or that is ambiguous.
        """
        first = self.text[start]
        if first in "<>!;":
            equation = "a hypothesis is an equation: write '='"
            problem = "separate hypotheses by commas" if first == ";" else equation
            raise error(self.text, start, start + 1, problem)
        if first.isspace() or first in "+-*/=,)" or _NUMBER.match(self.text, start):
            return None
        if first == "`" and (closing := self.text.find("`", start + 1)) > 0:
            quoted = self._quoted(start, closing + 1, self.text[start + 1 : closing])
            if quoted is not None:
                return quoted
        if self.text.startswith("_b[", start) and (closing := self.text.find("]", start)) > 0:
            quoted = self._quoted(start, closing + 1, self.text[start + 3 : closing].strip())
            if quoted is None:
                raise self._unknown(start)
            return quoted
        found = self._longest(start)
        if found:
            return self._unambiguous(start, found)
        if first == "`" or _in_word(first):
            raise self._unknown(start)
        return None

    def _quoted(self, start: int, end: int, name: str) -> Token | None:
        """A name that stands between two marks, if there is such a coefficient."""
        names = self.coefficients.known.get(Squeezed(name).text, ())
        following = self.text[end : end + 1]
        if not names or (following and (_in_word(following) or following in ":`")):
            return None
        return self._token(names, name, start, end)

    def _longest(self, start: int) -> list[tuple[int, str]]:
        """Ends and keys of all names that begin here, the longest first."""
        index, squeezed = self.squeezed.at.get(start), self.squeezed
        found: list[tuple[int, str]] = []
        if index is None:
            return found
        for length in self.coefficients.lengths:
            key = squeezed.text[index : index + length]
            if len(key) == length and key in self.coefficients.known and self._ends(index + length):
                found.append((squeezed.ends[index + length - 1], key))
        return found

    def _ends(self, index: int) -> bool:
        """Whether a name may end before this character of the squeezed text."""
        following = self.squeezed.text[index : index + 1]
        return not (following and (_in_word(following) or following in ":`("))

    def _unambiguous(self, start: int, found: list[tuple[int, str]]) -> Token:
        """The longest name, unless it could also be read as an expression of a shorter one."""
        end, key = found[0]
        for shorter, _ in found[1:]:
            rest = self.text[shorter:end].lstrip()
            if rest[:1] in _OPERATORS:
                problem = (
                    f"this is a coefficient, and {self.text[start:shorter].strip()!r} is another one: put "
                    "the name that is meant in backquotes"
                )
                raise error(self.text, start, end, problem)
        return self._token(self.coefficients.known[key], self.text[start:end], start, end)

    def _token(self, names: tuple[str, ...], written: str, start: int, end: int) -> Token:
        """The token of a name; of several that differ by blanks alone, the one written just so."""
        if len(names) > 1 and written not in names:
            raise error(
                self.text, start, end, f"this can be {' or '.join(map(repr, names))}: write it as printed"
            )
        name = written if written in names else names[0]
        if len(self.coefficients.exact.get(name, ())) > 1:
            raise error(self.text, start, end, _shared_name(name))
        return Token("quoted", name, start, end)

    def _unknown(self, start: int) -> FormulaError:
        """The error for a name that no coefficient has; the name ends where an operator may stand."""
        text, end, depth, closing = self.text, start, 0, ""
        while end < len(text):
            character = text[end]
            if closing:
                closing = "" if character == closing else closing
            elif character in "`[":
                closing = "]" if character == "[" else "`"
            elif character == "(":
                depth += 1
            elif character == ")" and depth:
                depth -= 1
            elif not depth and not (_in_word(character) or character == ":"):
                break
            end += 1
        end = max(end, start + 1)
        name = text[start:end].strip("`")
        return error(text, start, end, f"there is no coefficient {name!r}{self.coefficients.hint(name)}")

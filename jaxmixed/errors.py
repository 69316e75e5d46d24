"""Exceptions and warnings, one tree each, told apart by the stage that raises them."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def printable(text: object) -> str:
    r"""Text without control, formatting (bidirectional marks) and line-breaking characters.

    Names come from data, and a terminal obeys what they contain.

    Examples
    --------
    >>> printable("a\x1b[31mb")
    'a[31mb'
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(
        " " if c in "\t\n" else c for c in plain if c in "\t\n" or unicodedata.category(c) not in _HIDDEN
    )


def listed(values: Iterable[object], most: int = 10) -> str:
    """The first of some values in a message, strings in quotes; empty if there are none.

    Examples
    --------
    >>> listed(["x", "z", 3]), listed("abc", most=1)
    ("'x', 'z', 3", "'a' and 2 more")
    """
    every = list(values)
    shown = [repr(printable(v)) if isinstance(v, str) else printable(v) for v in every[:most]]
    return ", ".join(shown) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def user_level() -> int:
    """`stacklevel` at which a warning points to the user's line, whatever calls lie between in this package.

    Returns
    -------
    int
        To be passed to ``warnings.warn`` in the function that asks.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level


class JaxMixedError(Exception):
    """Root of every exception that jaxmixed raises on purpose; its text is safe to print."""

    def __init__(self, message: str = "") -> None:
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class FormulaError(JaxMixedError, ValueError):
    """The formula cannot be read, or asks for something that is not a model."""


class StataError(FormulaError):
    """A Stata command that cannot be read, is not of the subset, or failed.

    Parameters
    ----------
    message : str
        The whole text, with the line, the column and a pointer.
    line, column : int or None
        Place in the script, counted from one.
    """

    def __init__(self, message: str = "", line: int | None = None, column: int | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class DataError(JaxMixedError, ValueError):
    """A column, weight, offset or level cannot be used as the model asks."""


class DesignError(JaxMixedError, ValueError):
    """The design is not identifiable, or too large to be fitted."""


class PrecisionError(JaxMixedError, ValueError):
    """Float64 arithmetic was needed where it is not available."""


class JaxMixedWarning(UserWarning):
    """Root of every warning that jaxmixed emits."""


class ConvergenceWarning(JaxMixedWarning):
    """The optimiser's answer failed a check of convergence."""


class SingularFitWarning(JaxMixedWarning):
    """An estimated random-effects covariance matrix is singular."""


class RankDeficientWarning(JaxMixedWarning):
    """Columns of the fixed-effects design were dropped, or are nearly collinear."""


class InterruptedWarning(JaxMixedWarning):
    """Work on many models was interrupted; what was finished is kept."""

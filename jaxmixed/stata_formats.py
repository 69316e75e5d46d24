"""Numbers and names as Stata's tables show them: ``%9.0g``, ``%8.2f``, abbreviated names.

References
----------
StataCorp, Stata User's Guide, section 12.5 (Formats: Controlling how data are displayed).
"""

from __future__ import annotations

import math
from typing import SupportsFloat

_SMALLEST_FIXED = 1e-5
"""Numbers below this have an exponent."""


def general(value: SupportsFloat | str | None, width: int = 9) -> str:
    """A number as ``%#.0g`` shows it, without leading blanks: as many digits as fit.

    Parameters
    ----------
    value : float or None
        A period stands for None and NaN.
    width : int
        Of the format: one character is for the sign and one for the period.

    Returns
    -------
    str

    Examples
    --------
    >>> [general(v) for v in (0.5633697, -0.1317107, 12.25, 2042.5712, 1e-7, 23456789.5, float("nan"))]
    ['.5633697', '-.1317107', '12.25', '2042.571', '1.00e-07', '2.35e+07', '.']
    >>> general(-14024.7994, 10), general(0.0000182)
    ('-14024.799', '.0000182')
    """
    number = math.nan if value is None else float(value)
    if not math.isfinite(number):
        return "."
    if number == 0:
        return "0"
    size, sign = abs(number), "-" if number < 0 else ""
    digits = width - 2
    if size == int(size) and size < 10 ** (width - 1):
        return f"{sign}{size:.0f}"
    if size >= 10**digits - 0.5 or size < _SMALLEST_FIXED:
        return sign + _with_exponent(size, width)
    decimals = digits - max(0, math.floor(math.log10(size)) + 1)
    text = f"{size:.{decimals}f}"
    if len(text.lstrip("0")) > digits + 1:  # rounded up to one digit more
        text = f"{size:.{max(0, decimals - 1)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return sign + (text.removeprefix("0") if text != "0" else text)


def _with_exponent(size: float, width: int) -> str:
    exponent = math.floor(math.log10(size))
    decimals = max(0, width - (7 if abs(exponent) < 100 else 8))
    return f"{size:.{decimals}e}"


def fixed(value: SupportsFloat | str | None, decimals: int, most: int = 10) -> str:
    """A number with fixed decimals, and in general notation where it would be too long.

    Examples
    --------
    >>> fixed(159.178, 2), fixed(float("nan"), 3), fixed(123456789.25, 2)
    ('159.18', '.', '1.23e+08')
    """
    number = math.nan if value is None else float(value)
    if not math.isfinite(number):
        return "."
    text = f"{number:.{decimals}f}"
    return text if len(text) <= most else general(number)


def count(value: SupportsFloat | str) -> str:
    """A whole number with commas between thousands.

    Examples
    --------
    >>> count(4059)
    '4,059'
    """
    return f"{float(value):,.0f}"


def significant(value: SupportsFloat | str, digits: int = 5) -> str:
    """A number with so many significant digits, as regress shows its root MSE.

    Examples
    --------
    >>> significant(3.40711), significant(0.495741), significant(2623.653)
    ('3.4071', '.49574', '2623.7')
    """
    number = float(value)
    if not math.isfinite(number):
        return "."
    text = f"{number:.{digits}g}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def abbreviated_name(name: str, width: int = 12) -> str:
    """A name in at most so many characters: its beginning, a tilde, its last character.

    Examples
    --------
    >>> abbreviated_name("log_retail_emp"), abbreviated_name("weight")
    ('log_retail~p', 'weight')
    """
    return name if len(name) <= width else f"{name[: width - 2]}~{name[-1]}"

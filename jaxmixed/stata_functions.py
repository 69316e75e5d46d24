"""Functions of Stata's expressions, with Stata's missing values.

Numbers are float arrays with NaN for a missing one, which is larger than any number in comparisons; texts are
object arrays of str. What overflows or is undefined is missing.

References
----------
StataCorp, Stata Functions Reference Manual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxmixed.stata_formats import general

NUMBER, TEXT, ANY = "n", "s", "a"
MANY = 255


@dataclass(frozen=True)
class Function:
    """A function of expressions.

    Attributes
    ----------
    kinds : str
        Kind of each argument: ``n`` a number, ``s`` a text, ``a`` either (but the same kind throughout).
    call : callable
        Takes the arrays, all of one length.
    fewest : int
        Arguments that must be given.
    repeats : bool
        Whether the last argument may be repeated.
    """

    kinds: str
    call: Callable[..., np.ndarray]
    fewest: int
    repeats: bool = False


def is_text(value: np.ndarray) -> bool:
    """Whether an array holds texts.

    Examples
    --------
    >>> is_text(np.array([1.0])), is_text(np.array(["a"], dtype=object))
    (False, True)
    """
    return value.dtype.kind == "O"


def ordered(value: np.ndarray) -> np.ndarray:
    """Numbers as they compare: a missing one is larger than all.

    Examples
    --------
    >>> ordered(np.array([1.0, np.nan]))
    array([ 1., inf])
    """
    return np.where(np.isnan(value), np.inf, value)


def truth(value: np.ndarray) -> np.ndarray:
    """Numbers as conditions: zero is false, a missing one true.

    Examples
    --------
    >>> truth(np.array([0.0, 2.0, np.nan]))
    array([False,  True,  True])
    """
    return ~(value == 0)


def finite(value: np.ndarray) -> np.ndarray:
    """Numbers, missing where they are infinite.

    Examples
    --------
    >>> finite(np.array([1.0, np.inf]))
    array([ 1., nan])
    """
    return np.where(np.isfinite(value), value, np.nan)


def texts(values: list[str]) -> np.ndarray:
    """Texts as an object array, also if there are none."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def compare(operator: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """0 and 1 for a comparison of two numbers or of two texts.

    Examples
    --------
    >>> compare(">", np.array([np.nan]), np.array([1e300]))
    array([1.])
    """
    if is_text(left):
        pairs = [
            (a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
            for a, b in zip(left, right, strict=True)
        ]
        order = np.array([(a > b) - (a < b) for a, b in pairs], dtype=float)
    else:
        a, b = ordered(left), ordered(right)
        order = (a > b).astype(float) - (a < b)
    true = {
        "==": order == 0, "!=": order != 0, "~=": order != 0, "<": order < 0, "<=": order <= 0,
        ">": order > 0, ">=": order >= 0,
    }[operator]  # fmt: skip
    return true.astype(float)


def _numeric(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """A numpy function whose infinite values are missing."""
    return lambda *arrays: finite(np.asarray(function(*arrays), dtype=float))


def _round(x: np.ndarray, unit: np.ndarray | None = None) -> np.ndarray:
    if unit is None:
        return np.floor(x + 0.5)
    return np.where(unit == 0, x, np.floor(x / unit + 0.5) * unit)


def _mod(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(y > 0, x - y * np.floor(x / y), np.nan)


def _largest(*arrays: np.ndarray) -> np.ndarray:
    """The maximum of what is not missing."""
    found: np.ndarray = np.fmax.reduce(arrays)
    return found


def _smallest(*arrays: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.fmin.reduce(arrays)
    return found


def _missing(*arrays: np.ndarray) -> np.ndarray:
    found = np.zeros(len(arrays[0]), dtype=bool)
    for array in arrays:
        found |= (array == "") if is_text(array) else np.isnan(array)
    return found.astype(float)


def _in_list(value: np.ndarray, *others: np.ndarray) -> np.ndarray:
    found = np.zeros(len(value), dtype=float)
    for other in others:
        found = np.maximum(found, compare("==", value, other))
    return found


def _in_range(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Ends included; a missing low end is minus infinity and a missing high end plus infinity."""
    if is_text(value):
        return compare(">=", value, low) * compare("<=", value, high)
    above = np.isnan(low) | (value >= low)
    below = np.isnan(high) | (value <= high)
    return (above & below & ~np.isnan(value)).astype(float)


def _cond(
    condition: np.ndarray, yes: np.ndarray, no: np.ndarray, missing: np.ndarray | None = None
) -> np.ndarray:
    chosen = np.where(truth(condition), yes, no)
    return chosen if missing is None else np.where(np.isnan(condition), missing, chosen)


def _by_text(function: Callable[..., str]) -> Callable[..., np.ndarray]:
    """A function of texts and numbers, row by row."""
    return lambda *arrays: texts([function(*values) for values in zip(*arrays, strict=True)])


def _substr(text: str, start: float, length: float) -> str:
    """Characters from a position counted from one, from the end if negative; all without a length."""
    if np.isnan(start):
        return ""
    first = int(start) - 1 if start > 0 else len(text) + int(start)
    if first < 0 or start == 0 or length < 0:
        return ""
    return text[first:] if np.isnan(length) else text[first : first + int(length)]


def _subinstr(text: str, old: str, new: str, most: float) -> str:
    if not old or most < 0:
        return text
    return text.replace(old, new) if np.isnan(most) else text.replace(old, new, int(min(most, 2**31)))


def _real(text: str) -> float:
    try:
        value = float(text.strip())
    except ValueError:
        return np.nan
    return value if np.isfinite(value) and "_" not in text else np.nan


def _strpos(text: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array([a.find(b) + 1 if b else 0 for a, b in zip(text, other, strict=True)], dtype=float)


def _special(name: str) -> Callable[..., np.ndarray]:
    """A distribution function of scipy."""

    def call(*arrays: np.ndarray) -> np.ndarray:
        from scipy import special

        table: dict[str, Callable[..., np.ndarray]] = {
            "normal": lambda x: special.ndtr(x),
            "invnormal": lambda p: np.where((p > 0) & (p < 1), special.ndtri(p), np.nan),
            "chi2": lambda d, x: np.where(x > 0, special.chdtr(d, x), np.where(x <= 0, 0.0, np.nan)),
            "chi2tail": lambda d, x: np.where(x > 0, special.chdtrc(d, x), np.where(x <= 0, 1.0, np.nan)),
            "invchi2": lambda d, p: special.chdtri(d, 1 - p),
            "invchi2tail": lambda d, p: special.chdtri(d, p),
            "t": lambda d, x: special.stdtr(d, x),
            "ttail": lambda d, x: special.stdtr(d, -x),
            "invt": lambda d, p: special.stdtrit(d, p),
            "invttail": lambda d, p: -special.stdtrit(d, p),
            "F": lambda a, b, x: np.where(x > 0, special.fdtr(a, b, x), np.where(x <= 0, 0.0, np.nan)),
            "Ftail": lambda a, b, x: np.where(x > 0, special.fdtrc(a, b, x), np.where(x <= 0, 1.0, np.nan)),
            "lngamma": lambda x: special.gammaln(x),
        }
        return finite(np.asarray(table[name](*arrays), dtype=float))

    return call


def _normal_density(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)


def _invlogit(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


_ONE: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs, "ceil": np.ceil, "floor": np.floor, "int": np.trunc, "trunc": np.trunc, "sqrt": np.sqrt,
    "exp": np.exp, "ln": np.log, "log": np.log, "log10": np.log10, "ln1p": np.log1p, "expm1": np.expm1,
    "sign": np.sign, "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "atanh": np.arctanh,
    "logit": lambda p: np.where((p > 0) & (p < 1), np.log(p) - np.log1p(-p), np.nan), "invlogit": _invlogit,
    "normalden": _normal_density, "float": lambda x: x.astype(np.float32).astype(float),
}  # fmt: skip

FUNCTIONS: dict[str, Function] = {
    **{name: Function(NUMBER, _numeric(call), 1) for name, call in _ONE.items()},
    "round": Function("nn", _numeric(_round), 1),
    "mod": Function("nn", _numeric(_mod), 2),
    "atan2": Function("nn", _numeric(np.arctan2), 2),
    "max": Function("n", _largest, 2, repeats=True),
    "min": Function("n", _smallest, 2, repeats=True),
    "missing": Function("a", _missing, 1, repeats=True),
    "mi": Function("a", _missing, 1, repeats=True),
    "inlist": Function("a", _in_list, 2, repeats=True),
    "inrange": Function("aaa", _in_range, 3),
    "cond": Function("naaa", _cond, 3),
    **{
        name: Function(NUMBER * count, _special(name), count)
        for name, count in {
            "normal": 1, "invnormal": 1, "lngamma": 1, "chi2": 2, "chi2tail": 2, "invchi2": 2,
            "invchi2tail": 2, "t": 2, "ttail": 2, "invt": 2, "invttail": 2, "F": 3, "Ftail": 3,
        }.items()
    },
    "strlen": Function("s", lambda s: np.array([len(text) for text in s], dtype=float), 1),
    "length": Function("s", lambda s: np.array([len(text) for text in s], dtype=float), 1),
    "lower": Function("s", _by_text(str.lower), 1),
    "strlower": Function("s", _by_text(str.lower), 1),
    "upper": Function("s", _by_text(str.upper), 1),
    "strupper": Function("s", _by_text(str.upper), 1),
    "trim": Function("s", _by_text(str.strip), 1),
    "strtrim": Function("s", _by_text(str.strip), 1),
    "substr": Function("snn", _by_text(_substr), 3),
    "subinstr": Function("sssn", _by_text(_subinstr), 4),
    "strpos": Function("ss", _strpos, 2),
    "string": Function("n", _by_text(general), 1),
    "real": Function("s", lambda s: np.array([_real(text) for text in s], dtype=float), 1),
}  # fmt: skip

_RANDOM = "random numbers of Stata are not reproduced: make the variable in Python"
REFUSED = dict.fromkeys(("runiform", "rnormal", "uniform", "runiformint", "rbinomial", "rpoisson"), _RANDOM)
"""Functions that are refused for a reason."""

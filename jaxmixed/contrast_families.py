"""Families of contrasts of a few means: all pairs, against a control, against the average, polynomials.

================ ==================================== ================ ============================
method           compares                             adjusts by       also called
================ ==================================== ================ ============================
pairwise         each mean with each later one        tukey            tukey
revpairwise      each mean with each earlier one      tukey
trt.vs.ctrl      each other mean with a control       mvt              dunnett
eff              each mean with the mean of all       fdr
del.eff          each mean with the mean of the other fdr
                 ones
consec           each mean with the one before        mvt
mean_chg         means after a point with means up to mvt
                 it
poly             orthogonal polynomials of the        none
                 position, smallest whole numbers
opoly            the same, of length one              none
helmert          each mean with all earlier ones      none
identity         nothing: the means themselves        none
================ ==================================== ================ ============================

Names, signs, scales and default adjustments are those of R's emmeans, but for ``trt.vs.ctrl``, which
adjusts by the multivariate t distribution itself, Dunnett's, where emmeans approximates it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxmixed.contrasts import contrast_matrix, orthogonal_polynomials
from jaxmixed.errors import DataError

_ALIASES = {"tukey": "pairwise", "dunnett": "trt.vs.ctrl", "trt_vs_ctrl": "trt.vs.ctrl", "del_eff": "del.eff"}
DEFAULT_ADJUST = {
    "pairwise": "tukey",
    "revpairwise": "tukey",
    "trt.vs.ctrl": "mvt",
    "eff": "fdr",
    "del.eff": "fdr",
    "consec": "mvt",
    "mean_chg": "mvt",
    "poly": "none",
    "opoly": "none",
    "helmert": "none",
    "identity": "none",
}
"""Adjustment of each family, unless the caller asks for another."""

MAX_DEGREE = 6
_DEGREES = ("linear", "quadratic", "cubic", "quartic")
_MIN_MEANS = {"identity": 1}
_OPERATORS = frozenset("+-*/")
_SUM = 1e-9


class Contrasts(NamedTuple):
    """A family of contrasts of k means.

    Attributes
    ----------
    names : tuple of str
    weights : (c, k) array
        A row for each contrast.
    adjust : str
        Adjustment that belongs to it.
    compared : int or None
        Number of means of which these are all pairwise comparisons.
    """

    names: tuple[str, ...]
    weights: np.ndarray
    adjust: str
    compared: int | None = None

    @property
    def sums_to_zero(self) -> bool:
        """Whether all of them are contrasts indeed."""
        size = np.abs(self.weights).max(initial=1.0)
        return bool(np.abs(self.weights.sum(axis=1)).max(initial=0.0) <= _SUM * size)


def contrasts(method: Any, labels: Sequence[str], *, ref: Any = None) -> Contrasts:
    """The contrasts of a method for means of these labels.

    Parameters
    ----------
    method : str, mapping, array or DataFrame
        A name of the module's table; or the weights themselves: a mapping from names to k weights, an array
        (c, k) with a row for each contrast, or a DataFrame of that shape whose index names them.
    labels : sequence of str
        Of the k means.
    ref : str or sequence of str, optional
        Label of the control of ``"trt.vs.ctrl"``, by default the first mean; of several, their average is the
        control.

    Returns
    -------
    Contrasts

    Raises
    ------
    DataError
        If the method is not known, weights do not fit, or there is nothing to compare.

    Examples
    --------
    >>> found = contrasts("pairwise", ["a", "b", "c"])
    >>> found.names
    ('a - b', 'a - c', 'b - c')
    >>> contrasts("poly", ["1", "2", "3", "4"]).weights.tolist()
    [[-3.0, -1.0, 1.0, 3.0], [1.0, -1.0, -1.0, 1.0], [-1.0, 3.0, -3.0, 1.0]]
    """
    if not isinstance(method, str):
        _refuse_ref(ref, "weights of your own")
        return _own(method, len(labels))
    name = _ALIASES.get(method, method)
    if name not in DEFAULT_ADJUST:
        known = ", ".join(map(repr, DEFAULT_ADJUST))
        raise DataError(
            f"the contrast {method!r} is not known; choose one of {known}, or give weights: a dict of names"
            " and weights, or an array with a row for each contrast"
        )
    if name != "trt.vs.ctrl":
        _refuse_ref(ref, repr(method))
    if len(labels) < _MIN_MEANS.get(name, 2):
        raise DataError(
            f"the contrast {method!r} needs at least two means in each group, and there is"
            f" {'one' if labels else 'none'}; use fewer by= variables"
        )
    names, rows = _named(name, tuple(labels), ref)
    compared = len(labels) if name in ("pairwise", "revpairwise") else None
    return Contrasts(tuple(names), np.asarray(rows, dtype=np.float64), DEFAULT_ADJUST[name], compared)


def _refuse_ref(ref: Any, method: str) -> None:
    if ref is not None:
        raise DataError(f"ref= is the control of 'trt.vs.ctrl'; {method} has none")


def _named(name: str, labels: tuple[str, ...], ref: Any) -> tuple[Sequence[str], Any]:
    """Names and weights of a family of the table."""
    k = len(labels)
    safe = [parenthesised(label) for label in labels]
    unit = np.eye(k)
    if name in ("pairwise", "revpairwise"):
        pairs = list(itertools.combinations(range(k), 2))
        if name == "revpairwise":
            pairs = [(j, i) for j in range(1, k) for i in range(j)]
        return [f"{safe[i]} - {safe[j]}" for i, j in pairs], [unit[i] - unit[j] for i, j in pairs]
    if name == "consec":
        return [f"{safe[i + 1]} - {safe[i]}" for i in range(k - 1)], np.diff(unit, axis=0)
    if name == "trt.vs.ctrl":
        return _against_control(labels, safe, ref)
    if name in ("eff", "del.eff"):
        rows = unit - 1 / k
        return [f"{label} effect" for label in safe], rows * (k / (k - 1) if name == "del.eff" else 1.0)
    if name == "mean_chg":
        steps = [np.repeat([-1 / i, 1 / (k - i)], [i, k - i]) for i in range(1, k)]
        return [f"{labels[i]}|{labels[i + 1]}" for i in range(k - 1)], steps
    if name == "helmert":
        return [f"{label} vs earlier" for label in labels[1:]], contrast_matrix("helmert", k).T
    if name == "identity":
        return labels, unit
    degrees = range(1, min(MAX_DEGREE, k - 1) + 1)
    names = [_DEGREES[d - 1] if d <= len(_DEGREES) else f"degree {d}" for d in degrees]
    if name == "opoly":
        return names, orthogonal_polynomials(np.arange(1.0, k + 1.0), degrees[-1])[0].T
    return names, whole_polynomials(k, degrees[-1])


def _against_control(
    labels: tuple[str, ...], safe: Sequence[str], ref: Any
) -> tuple[Sequence[str], list[np.ndarray]]:
    asked = [labels[0]] if ref is None else list(ref) if isinstance(ref, list | tuple) else [ref]
    texts = [str(one) for one in asked]
    unknown = [one for one in texts if one not in labels]
    if unknown or not texts or len(set(texts)) == len(labels):
        what = f"{unknown[0]!r} is none of the means" if unknown else "nothing is left to compare with it"
        raise DataError(f"ref= names the control: {what}; they are {', '.join(map(repr, labels))}")
    places = [labels.index(one) for one in dict.fromkeys(texts)]
    control = np.zeros(len(labels))
    control[places] = 1 / len(places)
    title = safe[places[0]] if len(places) == 1 else f"avg({','.join(labels[place] for place in places)})"
    others = [i for i in range(len(labels)) if i not in places]
    return [f"{safe[i]} - {title}" for i in others], [np.eye(len(labels))[i] - control for i in others]


def whole_polynomials(k: int, degree: int) -> np.ndarray:
    """Orthogonal polynomials of the positions 1 to k, in the smallest whole numbers.

    Parameters
    ----------
    k : int
    degree : int
        The highest one, below k.

    Returns
    -------
    (degree, k) array
        As tables of them print it (Fisher & Yates 1938, table 23).

    Examples
    --------
    >>> whole_polynomials(5, 2).tolist()
    [[-2.0, -1.0, 0.0, 1.0, 2.0], [2.0, -1.0, -2.0, -1.0, 2.0]]
    """
    # Gram and Schmidt's method in fractions: exact, so the common denominator is.
    basis: list[list[Fraction]] = [[Fraction(1)] * k]
    for power in range(1, degree + 1):
        own = [Fraction(i) ** power for i in range(1, k + 1)]
        for other in basis:
            share = sum((a * b for a, b in zip(own, other, strict=True)), start=Fraction(0))
            share /= sum((b * b for b in other), start=Fraction(0))
            own = [a - share * b for a, b in zip(own, other, strict=True)]
        common = math.lcm(*(value.denominator for value in own))
        whole = [int(value * common) for value in own]
        divisor = math.gcd(*whole)
        basis.append([Fraction(value, divisor) for value in whole])
    return np.array([[float(value) for value in row] for row in basis[1:]])


def parenthesised(label: str) -> str:
    """A label in parentheses where it would be misread beside a minus sign.

    Examples
    --------
    >>> parenthesised("a - b"), parenthesised("a")
    ('(a - b)', 'a')
    """
    return f"({label})" if _OPERATORS & set(label) else label


def _own(method: Any, k: int) -> Contrasts:
    """Weights that the caller gives."""
    if isinstance(method, pd.DataFrame):
        names: Sequence[str] | None = [str(name) for name in method.index]
        given: Any = method.to_numpy()
    elif isinstance(method, Mapping):
        names, given = [str(name) for name in method], list(method.values())
    else:
        names, given = None, method
    try:
        weights = np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"weights of contrasts are numbers, {k} for each contrast; the contrasts given are not"
            " (or differ in length)"
        ) from error
    if weights.ndim == 1 and names is None:
        weights = weights[None]
    if weights.ndim != 2 or weights.shape[1] != k or not len(weights):
        raise DataError(
            f"each contrast needs {k} weights, one for each mean of a group; the contrasts given have shape"
            f" {weights.shape}"
        )
    if not np.isfinite(weights).all():
        raise DataError("weights of contrasts are finite numbers; some of those given are not")
    if names is None:
        names = [f"contrast {number}" for number in range(1, len(weights) + 1)]
    return Contrasts(tuple(names), weights, "none")

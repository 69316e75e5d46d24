"""Parameters that a user states instead of estimating them: coefficients, covariances by group, sigma.

``beta`` goes by the names of the design's columns, or by their order. ``random`` goes by group label; for
each term it takes

=============================  ===========================================================================
``0.5``                        standard deviation of the only effect (of every effect of ``homdiag()``)
``{"sd": s, "corr": r}``       standard deviations (by name or in order), correlations (matrix, or one for
                               all pairs; none: independent). One ``sd`` for all in ``homdiag()``, ``cs()``
``[[v1, c], [c, v2]]``         covariance matrix; a data frame goes by its labels
list of these                  one for each term, when a group has several
=============================  ===========================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed.covariance import STRUCTURES, covariance_structure
from jaxmixed.errors import DataError, listed
from jaxmixed.terms import ORDERED

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import GroupDesign, ModelFrame

_KEYS = ("beta", "random", "sigma")
_COMMON_SD = ("identity", "exchangeable", *ORDERED)
_MAX_LISTED = 30
_TOLERANCE = 1e-8  # of correlations, for matrices that were computed or typed in single precision
_INDEFINITE = -1e-10  # an eigenvalue of correlations below this is more than rounding


@dataclass(frozen=True, slots=True, eq=False)
class ModelParameters:
    """All parameters of a mixed model.

    Attributes
    ----------
    beta : (p,) array
        Coefficients in the order of the design's columns.
    covariances : tuple of (q, q) arrays
        Covariance of the effects of one level, in the units of the response, terms in the order of the frame.
    sigma : float
        Residual standard deviation of a row of weight 1.
    """

    beta: np.ndarray
    covariances: tuple[np.ndarray, ...]
    sigma: float


def stated_parameters(frame: ModelFrame, params: Any, *, any_structure: bool = False) -> ModelParameters:
    """Parameters of a frame's model from a mapping with ``"beta"``, ``"random"`` and ``"sigma"``.

    Parameters
    ----------
    frame : ModelFrame
    params : mapping
        The module's documentation has the forms.
    any_structure : bool
        Whether covariances may differ from the structure that the formula names.

    Returns
    -------
    ModelParameters

    Raises
    ------
    DataError
        Naming the coefficient, group or effect at fault, and those that there are.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "g": [1, 2, 1, 2, 1, 2]}
    >>> frame = jm.frame.build_frame("y ~ 1 + (1 | g)", data)
    >>> stated = stated_parameters(frame, {"beta": [3], "random": {"g": 0.5}, "sigma": 1})
    >>> stated.covariances
    (array([[0.25]]),)
    """
    if not isinstance(params, Mapping):
        raise DataError(
            f"params is a {type(params).__name__}; give a mapping with 'beta', 'random' and 'sigma', or a fit"
        )
    needed = [key for key, used in zip(_KEYS, (frame.x_names, frame.groups, True), strict=True) if used]
    _check_names("params", params, needed, _KEYS, "parts")
    beta = _by_name("params['beta']", params.get("beta", ()), frame.x_names, "coefficients")
    covariances = _covariances(params.get("random", {}), frame.groups, any_structure)
    sigma = _number("params['sigma']", params["sigma"])
    if sigma <= 0:
        raise DataError(f"params['sigma'] is {sigma:g}; the residual standard deviation must be positive")
    return ModelParameters(beta, covariances, sigma)


def fitted_parameters(frame: ModelFrame, x_names: Sequence[str], estimates: Estimates) -> ModelParameters:
    """Estimates of a fit as parameters of another frame, matched by the names of columns and groups.

    Dropped (NaN) coefficients count as zero.
    """
    random: dict[str, list[pd.DataFrame]] = {}
    for term in sorted(estimates.terms, key=lambda term: term.frame_index):
        table = pd.DataFrame(term.cov, index=list(term.names), columns=list(term.names))
        random.setdefault(term.group, []).append(table)
    params = {
        "beta": dict(zip(x_names, np.nan_to_num(estimates.beta).tolist(), strict=True)),
        "random": {label: tables[0] if len(tables) == 1 else tables for label, tables in random.items()},
        "sigma": float(estimates.sigma),
    }
    return stated_parameters(frame, params, any_structure=True)


def _covariances(random: Any, groups: tuple[GroupDesign, ...], any_structure: bool) -> tuple[np.ndarray, ...]:
    """Covariance of every term, in the order of the frame."""
    what = "params['random']"
    if not isinstance(random, Mapping):
        raise DataError(
            f"{what} is a {type(random).__name__}; give a mapping from group labels to standard deviations or"
            " covariances"
        )
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group.label, []).append(number)
    _check_names(what, random, members, members, "groups")
    found: dict[int, np.ndarray] = {}
    for label, numbers in members.items():
        entry, place = random[label], f"{what}[{label!r}]"
        if len(numbers) == 1:
            found[numbers[0]] = _covariance(place, entry, groups[numbers[0]], any_structure)
            continue
        if not isinstance(entry, list | tuple) or len(entry) != len(numbers):
            texts = ", ".join(groups[number].term.text for number in numbers)
            raise DataError(
                f"the group {label!r} has {len(numbers)} terms ({texts}): {place} must be a list with one"
                " entry for each"
            )
        for k, number in enumerate(numbers):
            found[number] = _covariance(f"{place}[{k}]", entry[k], groups[number], any_structure)
    return tuple(found[number] for number in range(len(groups)))


def _covariance(what: str, entry: Any, group: GroupDesign, any_structure: bool) -> np.ndarray:
    """Covariance matrix of one term from any of its forms."""
    names, q = group.names, len(group.names)
    if isinstance(entry, Mapping):
        cov = _from_sd_and_corr(what, entry, group)
    elif isinstance(entry, pd.DataFrame):
        cov = _labelled(what, entry, names)
    else:
        values = _array(what, entry)
        if values.ndim == 0 and (q == 1 or group.structure == "identity"):
            cov = _positive(what, np.full(q, values), names) ** 2 * np.eye(q)
        elif values.shape == (q, q):
            cov = values
        else:
            given = "a number" if values.ndim == 0 else f"an array of shape {values.shape}"
            single = "a standard deviation or " if q == 1 else ""
            raise DataError(
                f"{what} is {given}; the term {group.term.text} has {_counted(q, 'effect')}"
                f" ({_listed(names)}): give {single}a {q} × {q} covariance matrix, or"
                ' {"sd": [...], "corr": ...}'
            )
    _check_semidefinite(what, cov, names)
    cov = (cov + cov.T) / 2
    if not any_structure:
        _check_structure(what, cov, group)
    return cov


def _from_sd_and_corr(what: str, entry: Mapping[Any, Any], group: GroupDesign) -> np.ndarray:
    """Covariance matrix from ``{"sd": ..., "corr": ...}``."""
    names, q = group.names, len(group.names)
    _check_names(what, entry, ("sd",), ("sd", "corr"), "parts")
    place = f"{what}['sd']"
    common = q == 1 or group.structure in _COMMON_SD
    if common and isinstance(entry["sd"], int | float | np.number):
        sd = np.full(q, _number(place, entry["sd"]))
    else:
        sd = _by_name(place, entry["sd"], names, "effects")
    _positive(place, sd, names)
    place = f"{what}['corr']"
    corr = _labelled(place, entry["corr"], names) if isinstance(entry.get("corr"), pd.DataFrame) else None
    if corr is None:
        corr = np.eye(q) if entry.get("corr") is None else _array(place, entry["corr"])
    if corr.ndim == 0 and q > 1:
        corr = np.where(np.eye(q) > 0, 1.0, corr)
    if corr.shape != (q, q):
        shape = "a number" if corr.ndim == 0 else f"of shape {corr.shape}"
        raise DataError(
            f"{place} is {shape}; the term {group.term.text} has {_counted(q, 'effect')} ({_listed(names)}): "
            + ("leave it out" if q == 1 else f"give one number for all pairs, or a {q} × {q} matrix")
        )
    if np.abs(np.diagonal(corr) - 1).max() > _TOLERANCE or np.abs(corr).max() > 1 + _TOLERANCE:
        raise DataError(
            f"{place} is no correlation matrix: its diagonal must be 1, its other elements between -1 and 1"
        )
    _check_semidefinite(place, corr, names)
    return sd[:, None] * corr * sd


def _check_semidefinite(what: str, cov: np.ndarray, names: Sequence[str]) -> None:
    """Refuse a matrix that is no covariance: of a negative variance, not symmetric, or indefinite."""
    variances = np.diagonal(cov)
    negative = np.flatnonzero(variances < 0)
    if len(negative):
        j = int(negative[0])
        raise DataError(
            f"{what} gives {names[j]!r} the variance {variances[j]:g}; variances cannot be negative"
        )
    sd = np.sqrt(variances)
    scale = np.where(sd > 0, sd, 1.0)
    corr = cov / scale[:, None] / scale
    if np.abs(corr - corr.T).max() > _TOLERANCE:
        i, j = (int(k) for k in np.unravel_index(np.abs(corr - corr.T).argmax(), cov.shape))
        raise DataError(
            f"{what} is not symmetric: {cov[i, j]:g} for {names[i]!r}, {names[j]!r}, but {cov[j, i]:g} for"
            f" {names[j]!r}, {names[i]!r}"
        )
    smallest = float(np.linalg.eigvalsh((corr + corr.T) / 2)[0])
    if smallest < _INDEFINITE:
        raise DataError(
            f"{what} is not positive semidefinite: the correlations of {_listed(names)} that it implies have"
            f" the eigenvalue {smallest:.3g}, which no random effects can have"
        )


def _check_structure(what: str, cov: np.ndarray, group: GroupDesign) -> None:
    """Refuse a covariance that the structure in the formula excludes."""
    if group.structure == "unstructured" or group.structure not in STRUCTURES:
        return  # a covariance function: any covariance may be stated
    structure = covariance_structure(group.structure, len(cov))
    factor = structure.factor(structure.from_covariance(cov))
    scale = np.diagonal(cov).max(initial=0.0)
    if np.abs(factor @ factor.T - cov).max(initial=0.0) > 10 * _TOLERANCE * scale:
        meaning = {
            "independent": "without correlations",
            "identity": "with one variance and without correlations",
            "exchangeable": "with one variance and one correlation",
        }[group.structure]
        raise DataError(
            f"{what} does not have the structure of the term {group.term.text}, whose effects are"
            f" {group.structure}, {meaning}; change one of the two"
        )


def _by_name(what: str, given: Any, names: Sequence[str], noun: str) -> np.ndarray:
    """Finite numbers in the order of the names, from a mapping or Series by name, or from a sequence."""
    if isinstance(given, pd.Series):
        given = dict(zip(given.index, given, strict=True))
    if isinstance(given, Mapping):
        _check_names(what, given, names, names, noun)
        return np.array([_number(f"{what}[{name!r}]", given[name]) for name in names])
    values = _array(what, given)
    if values.shape != (len(names),):
        held = "one number" if values.ndim == 0 else f"an array of shape {values.shape}"
        raise DataError(
            f"{what} is {held}; give a number for each of {len(names)} {noun}, in this order or by name:"
            f" {_listed(names)}"
        )
    return values


def _labelled(what: str, table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Matrix of a data frame whose rows and columns are the effects, in any order."""
    for labels in (table.index, table.columns):
        _check_names(what, labels, names, names, "effects")
    if table.shape != (len(names), len(names)):
        raise DataError(f"{what} names an effect twice; its effects are {_listed(names)}")
    return _array(what, table.loc[list(names), list(names)].to_numpy())


def _check_names(
    what: str, given: Iterable[Any], needed: Iterable[str], valid: Iterable[str], noun: str
) -> None:
    """Refuse names that are not known, with the nearest that are, and names that are left out."""
    given, known = list(given), list(valid)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=2, cutoff=0.6)
            hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
            raise DataError(f"{what} has {name!r}{hint}; its {noun} are {_listed(known)}")
    missing = [name for name in needed if name not in given]
    if missing:
        raise DataError(f"{what} lacks {_listed(missing)}; its {noun} are {_listed(known)}")


def _positive(what: str, sd: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Standard deviations, none of them negative."""
    negative = np.flatnonzero(sd < 0)
    if len(negative):
        j = int(negative[0])
        raise DataError(
            f"{what} gives {names[j]!r} the standard deviation {sd[j]:g}; standard deviations cannot be"
            " negative"
        )
    return sd


def _number(what: str, value: Any) -> float:
    """One finite number."""
    values = _array(what, value)
    if values.ndim:
        raise DataError(f"{what} is {value!r}; give one number")
    return float(values)


def _array(what: str, values: Any) -> np.ndarray:
    """Finite numbers as float64."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise DataError(f"{what} has rows of different lengths") from None
    if array.dtype.kind not in "iuf" and array.size:
        raise DataError(f"{what} must be a number or numbers, not {str(values)[:60]!r}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise DataError(f"{what} must be finite; it holds {array[~np.isfinite(array)].flat[0]}")
    return array


def _counted(number: int, noun: str) -> str:
    return f"one {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: Iterable[str]) -> str:
    return listed(names, _MAX_LISTED) or "none"

"""Which models are special cases of which: fixed effects by their span, random effects term by term.

A random term is contained in one of the larger model with the same grouping, where the structure of that term
allows its covariances; effects of ``g:f`` are effects of ``g`` for each level of f.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jaxmixed import relatedness
from jaxmixed.covariance import STRUCTURES, Covariance
from jaxmixed.errors import printable
from jaxmixed.fitted import Fitted
from jaxmixed.kernels import KernelCovariance, ar1, exponential, matern32, squared_exponential
from jaxmixed.residual_nesting import has_exchangeable, residual_obstacle
from jaxmixed.toeplitz import ToeplitzCovariance

if TYPE_CHECKING:
    from jaxmixed.relationship import Relationship

_SPAN_TOLERANCE = 1e-7
# Functions of distances alone, whose matrices at whole-numbered positions are Toeplitz.
_OF_DISTANCES = {own().function for own in (ar1, exponential, matern32, squared_exponential)}
# Structures that a covariance matrix of the same effects may take as a special case of the key.
_SPECIAL_CASES = {
    "unstructured": {"unstructured", "independent", "identity", "exchangeable"},
    "independent": {"independent", "identity"},
    "exchangeable": {"exchangeable", "identity"},
    "identity": {"identity"},
}


def _kept_columns(fit: Fitted) -> np.ndarray:
    """Fixed-effects columns without the dropped ones."""
    return np.asarray(fit.frame.X)[:, ~np.isnan(fit.estimates.beta)]


def same_columns(a: Fitted, b: Fitted) -> bool:
    """Whether two fits have the same fixed-effects columns, in any order."""
    if a.frame.X is b.frame.X:
        return True
    one, two = _kept_columns(a), _kept_columns(b)
    if one.shape != two.shape:
        return False
    return all((two == one[:, [j]]).all(axis=0).any() for j in range(one.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class TermOnRows:
    """A random-effects term on the rows: its grouping, its effects and their structure.

    ``parts`` holds for every grouping column the number of its level in each level of the grouping.
    """

    columns: tuple[str, ...]
    parts: tuple[np.ndarray, ...]
    codes: np.ndarray
    Z: np.ndarray
    structure: str | Covariance
    relationship: Relationship | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Containment:
    """A term of the smaller model, or one of its effects, and the term of the larger one that contains it.

    Attributes
    ----------
    small, large : int
        Positions of the two among the estimates' terms.
    column : int or None
        The effect, where those of the smaller model's term lie in several terms of the larger one.
    Z : (n, a) array
        Columns of the effects with the grouping of the larger model's term: those of the smaller one's, or
        for each further level (of f in ``g:f``) a copy of them, independent of the others.
    """

    small: int
    large: int
    column: int | None
    Z: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Nesting:
    """Whether a model is a special case of another, and how.

    Attributes
    ----------
    obstacle : str
        Why it is none; empty if it is.
    more_effects : int
        Random effects that only the larger model has, counted as dimensions of the random effects of a group:
        a random intercept of ``g`` and one of ``g:f`` give full variance to all levels of f, so ``(0 + f |
        g)`` has no effect more than the two of them, and nothing is tested on the boundary.
    contained : tuple of Containment
        Where the smaller model's random effects are.
    """

    obstacle: str
    more_effects: int = 0
    contained: tuple[Containment, ...] = ()


def _terms(fit: Fitted) -> list[TermOnRows]:
    terms = []
    for term in fit.estimates.terms:
        group = fit.frame.groups[term.frame_index]
        parts = fit.frame.encoding.groups[group.columns].parts()
        Z, related = np.asarray(group.Z), group.relationship
        structure = term.structure if term.structure in STRUCTURES else term.covariance
        terms.append(TermOnRows(group.columns, parts, group.codes, Z, structure, related))
    return terms


def nesting_of(small: Fitted, large: Fitted) -> Nesting:
    """How one model is a special case of another, or why it is none.

    Parameters
    ----------
    small, large : Fitted

    Returns
    -------
    Nesting
    """
    wide, narrow = _kept_columns(large), _kept_columns(small)
    outside = _outside_span(narrow, wide)
    if outside.any():
        names = np.asarray(small.frame.x_names)[~np.isnan(small.estimates.beta)][outside]
        return Nesting(f"the larger model lacks the fixed effect {printable(names[0])}")
    available, represented, contained = _terms(large), [], []
    for position, (estimate, term) in enumerate(zip(small.estimates.terms, _terms(small), strict=True)):
        found = _as_special_case(term, available)
        if found is None and _is_in_residuals(term, small, large):
            continue
        if found is None:
            group, effects = printable(estimate.group), printable(", ".join(estimate.names))
            return Nesting(f"the larger model has no random term for {group} that contains ({effects})")
        regrouped, places = found
        represented.append(regrouped)
        for column, place in places:
            Z = regrouped.Z if column is None else regrouped.Z[:, [column]]
            contained.append(Containment(position, place, column, Z))
    obstacle = residual_obstacle(small.frame.residual, large.frame.residual)
    if obstacle:
        return Nesting(obstacle)
    more = _num_effects(available) - _num_effects(represented)
    return Nesting("", more, tuple(contained))


def _is_in_residuals(term: TermOnRows, small: Fitted, large: Fitted) -> bool:
    """Whether a term is a random intercept whose correlation the larger model's residuals have."""
    residual = large.frame.residual
    if small.frame.residual is not None or residual is None or large.frame.weights is not None:
        return False
    constant = term.Z.shape[1] == 1 and term.relationship is None and bool(np.ptp(term.Z) == 0)
    return constant and _same_partition(term.codes, residual.design.codes) and has_exchangeable(residual)


def _num_effects(terms: list[TermOnRows]) -> int:
    """Dimension of the random effects of a group, summed over the groupings."""
    total, rest = 0, terms
    while rest:
        alike = [term for term in rest if _same_grouping(rest[0], term)]
        rest = [term for term in rest if not _same_grouping(rest[0], term)]
        total += _basis(np.column_stack([term.Z for term in alike])).shape[1]
    return total


def _same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two groupings divide the rows alike, whatever their labels."""
    if a is b:
        return True
    if a.max() != b.max():
        return False
    image = np.full(a.max() + 1, -1, dtype=np.int64)
    image[a] = b
    return bool((image[a] == b).all())


def _same_grouping(term: TermOnRows, other: TermOnRows) -> bool:
    """Whether two terms divide the rows alike and relate the groups alike."""
    own, theirs = term.relationship, other.relationship
    if not _same_partition(term.codes, other.codes):
        return False
    if own is None or theirs is None:
        return own is theirs
    image = np.empty(own.recorded, dtype=np.int64)
    image[term.codes] = other.codes
    return relatedness.alike(own.among_recorded, theirs.among_recorded[np.ix_(image, image)])


Places = list[tuple[int | None, int]]
"""Effects of a term, None for all together, and positions of the terms that contain them."""


def _as_special_case(term: TermOnRows, available: list[TermOnRows]) -> tuple[TermOnRows, Places] | None:
    """The term with the grouping of an available term that has it as a special case; None if none has."""
    candidates = [
        (found, position)
        for position, other in enumerate(available)
        if (found := _regrouped(term, other)) is not None
    ]
    for found, position in candidates:
        other = available[position]
        if _is_special_case(found.Z, found.structure, other.structure, other.Z):
            return found, [(None, position)]
    # Independent effects may lie in separate terms of the larger model.
    if term.structure not in ("independent", "identity") or term.Z.shape[1] == 1:
        return None
    same = [position for found, position in candidates if found is term]
    places: Places = []
    for column in range(term.Z.shape[1]):
        Z = term.Z[:, [column]]
        for position in same:
            other = available[position]
            if _is_special_case(Z, term.structure, other.structure, other.Z):
                places.append((column, position))
                break
        else:
            return None
    return term, places


def _regrouped(term: TermOnRows, other: TermOnRows) -> TermOnRows | None:
    """The term as one with the grouping of another, which must be the same or a coarser one; None otherwise.

    Effects that are independent between the levels of g:f are effects of g: their products with the dummy
    variables of f, independent between the levels of f.
    """
    if _same_grouping(term, other):
        return term
    if term.relationship is not None or other.relationship is not None:
        return None
    named = list(zip(term.columns, term.parts, strict=True))
    shared = [part for name, part in named if name in other.columns]
    further = [part for name, part in named if name not in other.columns]
    if not shared or not further or not _same_partition(_combined(shared)[term.codes], other.codes):
        return None
    labels = _combined(further)
    if labels.max() >= other.Z.shape[1]:  # more dummy variables than effects
        return None
    dummies = labels[term.codes][:, None] == np.arange(labels.max() + 1)
    products = (dummies[:, :, None] * term.Z[:, None, :]).reshape(len(term.Z), -1)
    structure: str | Covariance = "identity"
    if term.Z.shape[1] > 1:  # blocks of covariances, one per level of f, are no exchangeable matrix
        divides = term.structure in ("independent", "identity")
        structure = term.structure if divides else "unstructured"
    return replace(term, codes=other.codes, Z=products, structure=structure)


def _combined(codes: list[np.ndarray]) -> np.ndarray:
    """Numbers, from 0 and without gaps, of the observed combinations of codes."""
    _, numbers = np.unique(np.column_stack(codes), axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _is_special_case(
    Z: np.ndarray, structure: str | Covariance, kind: str | Covariance, wide: np.ndarray
) -> bool:
    """Whether a term of the structure ``kind`` has this term as a special case; both have one grouping."""
    if kind == "unstructured":
        return not _outside_span(Z, wide).any()
    if not isinstance(kind, str):  # a covariance function of these very positions
        return (structure == kind or _is_special_kernel(structure, kind)) and np.array_equal(Z, wide)
    # One effect that is the sum of the others: all their correlations are 1.
    if kind == "exchangeable" and Z.shape[1] == 1 and np.array_equal(Z[:, 0], wide.sum(axis=1)):
        return True
    # The other structures hold for these very columns only.
    matches = [j for column in Z.T for j in range(wide.shape[1]) if np.array_equal(column, wide[:, j])]
    if len(matches) < Z.shape[1]:
        return False
    if Z.shape[1] == 1 and wide.shape[1] == 1:
        return True
    if kind == "independent" and Z.shape[1] == 1:
        return True
    return structure in _SPECIAL_CASES[kind] and (kind == "independent" or Z.shape[1] == wide.shape[1])


def _is_special_kernel(structure: str | Covariance, kind: Covariance) -> bool:
    """Whether a covariance function has a structure of the same effects as a special case."""
    if not isinstance(kind, KernelCovariance):
        return False
    if not isinstance(kind, ToeplitzCovariance):
        return structure == "identity" and kind.kernel.function == ar1().function  # no correlation
    if isinstance(structure, KernelCovariance):
        return structure.kernel.function in _OF_DISTANCES and structure.positions == kind.positions
    return structure in ("identity", "exchangeable")


def _outside_span(columns: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Which columns are no linear combination of the wide matrix's."""
    scale = np.sqrt(np.einsum("ij,ij->j", columns, columns))
    basis = _basis(wide)
    rest = columns - basis @ (basis.T @ columns)
    return np.sqrt(np.einsum("ij,ij->j", rest, rest)) > _SPAN_TOLERANCE * scale


def _basis(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the span of the columns."""
    if columns.shape[1] == 0:
        return columns
    basis, triangle = np.linalg.qr(columns / np.maximum(np.abs(columns).max(axis=0), np.finfo(float).tiny))
    rotation, singular, _ = np.linalg.svd(triangle)
    return basis @ rotation[:, singular > _SPAN_TOLERANCE * singular[0]]

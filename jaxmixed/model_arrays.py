"""From a formula and a data frame to arrays that traced code can use: :func:`arrays`."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed._types import AnyArray
from jaxmixed.basis import column_basis
from jaxmixed.covariance import Covariance
from jaxmixed.errors import DesignError, RankDeficientWarning, user_level
from jaxmixed.layout import Grouping, arrange
from jaxmixed.model import frame_of, structures_of, terms_of
from jaxmixed.statistics import SufficientStatistics, summarise

SINGULAR = 1e-13
"""Smallest eigenvalue of a regular relationship matrix, relative to the largest."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """The arrays of a model with n rows: a pytree, whose labels are static.

    Attributes
    ----------
    y : (n,) array
        Response, less any offset.
    X : (n, p) array
        Fixed-effects columns, without those that depend on others.
    Z : tuple of (n, q) arrays
        Random-effects columns of each grouping factor, finest first; those of several terms side by side.
    groups : tuple of (n,) int arrays
        Codes of each factor.
    weights : (n,) array or None
        Precision weights.
    relationships : tuple of (m, m) arrays or None
        Known relationships between the levels of each factor.
    num_groups : tuple of int
        Static.
    structures : tuple of tuple of Covariance
        Static. Of each factor's terms.
    crossed : bool
        Static. Whether the factors are not nested in each other.
    x_names : tuple of str
        Static.
    group_names : tuple of str
        Static. Label of each factor.
    """

    y: Float[AnyArray, " n"]
    X: Float[AnyArray, "n p"]
    Z: tuple[Float[AnyArray, "n q"], ...]
    groups: tuple[Int[AnyArray, " n"], ...]
    weights: Float[AnyArray, " n"] | None
    relationships: tuple[Float[AnyArray, "m m"] | None, ...]
    num_groups: tuple[int, ...] = field(metadata={"static": True})
    structures: tuple[tuple[Covariance, ...], ...] = field(metadata={"static": True})
    crossed: bool = field(metadata={"static": True})
    x_names: tuple[str, ...] = field(metadata={"static": True})
    group_names: tuple[str, ...] = field(metadata={"static": True})

    def summarise(
        self,
        *,
        y: Float[Array, " n"] | None = None,
        X: Float[Array, "n p"] | None = None,
        Z: Sequence[Float[Array, "n q"]] | None = None,
        weights: Float[Array, " n"] | None = None,
        frequencies: Sequence[Float[Array, " m"] | None] | Float[Array, " n"] | None = None,
    ) -> SufficientStatistics:
        """Sufficient statistics, some of the arrays replaced by others, traced ones for example.

        Parameters
        ----------
        y, X, Z, weights : arrays, optional
            Instead of the model's own.
        frequencies : (n,) array, or a sequence, optional
            How often rows and groups count (:func:`jaxmixed.statistics.summarise`).

        Returns
        -------
        SufficientStatistics
            Smooth in all of these.
        """
        return summarise(
            self.y if y is None else y,
            self.X if X is None else X,
            self.Z if Z is None else tuple(Z),
            self.groups,
            num_groups=self.num_groups,
            weights=self.weights if weights is None else weights,
            frequencies=frequencies,
            structures=self.structures,
            crossed=self.crossed,
            relationships=self.relationships,
        )


def _known(grouping: Grouping) -> np.ndarray | None:
    """Known relationship between the groups with rows."""
    if grouping.relationship is None:
        return None
    A = grouping.relationship[: grouping.size, : grouping.size]
    eigenvalues = np.linalg.eigvalsh(A)
    if eigenvalues[0] <= SINGULAR * eigenvalues[-1]:
        raise DesignError(
            f"The relationship matrix of {grouping.label!r} is singular among the {grouping.size} levels of "
            "the data, and traced statistics need its Cholesky factor. Add a small number to its diagonal, "
            "or use jaxmixed.mixed, which takes it as it is."
        )
    return A


def arrays(
    formula: str,
    data: Any,
    *,
    covariance: Any = None,
    weights: Any = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Arrays:
    """Arrays of a model, for code that is written in JAX: the way from a data frame to `solve`.

    Parameters
    ----------
    formula, data, covariance, weights, offset, missing, contrasts, functions
        As for :func:`jaxmixed.mixed`.

    Returns
    -------
    Arrays
        NumPy arrays in float64 (JAX makes them float32 unless its 64-bit types are enabled). Crossed factors
        are marked as such: their statistics have a dense root of all levels.

    Raises
    ------
    FormulaError, DataError, DesignError
        As :func:`jaxmixed.mixed` does.

    Warns
    -----
    RankDeficientWarning
        Fixed-effects columns that depend on others are left out.

    Examples
    --------
    >>> import jax, jaxmixed as jm
    >>> model = jm.arrays("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> @jax.jit
    ... def slope(y):
    ...     return jm.solve(model.summarise(y=y)).beta[1]
    >>> round(float(slope(model.y)), 3)
    10.467
    """
    frame, covariance = frame_of(
        formula, data, covariance, contrasts, functions, weights=weights, offset=offset, missing=missing
    )
    groupings, terms, _ = terms_of(frame.groups, structures_of(frame.groups, covariance))
    layout = arrange(groupings)
    keep = column_basis(frame.X, frame.weights).keep
    names = tuple(frame.x_names[j] for j in keep)
    if len(keep) < len(frame.x_names):
        left_out = [name for name in frame.x_names if name not in set(names)]
        warnings.warn(
            f"The fixed-effects columns are linearly dependent: {', '.join(left_out)} left out.",
            RankDeficientWarning,
            stacklevel=user_level(),
        )
    factors = [groupings[factor] for factor in layout.order]
    known = [_known(grouping) for grouping in factors]
    return Arrays(
        y=frame.y_less_offset,
        X=frame.X[:, keep],
        Z=tuple(grouping.Z for grouping in factors),
        groups=tuple(grouping.codes for grouping in factors),
        weights=frame.weights,
        relationships=tuple(known),
        num_groups=tuple(grouping.size for grouping in factors),
        structures=tuple(
            tuple(term.covariance for term in terms if term.level == factor) for factor in layout.order
        ),
        crossed=bool(layout.root),
        x_names=names,
        group_names=tuple(grouping.label for grouping in factors),
    )

"""Which residual structures are special cases of which, on the rows of one data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxmixed import residual_families as families
from jaxmixed.residual_tables import structure_text

if TYPE_CHECKING:
    from jaxmixed.residual_families import Family
    from jaxmixed.residual_frame import ResidualFrame


def residual_obstacle(small: ResidualFrame | None, large: ResidualFrame | None) -> str:
    """Why a residual structure is no special case of another one; empty if it is one.

    Parameters
    ----------
    small, large : ResidualFrame or None
        On the same rows; None for independent residuals with one variance.

    Returns
    -------
    str

    Notes
    -----
    Structures that are special cases only of some parameters (an exponential correlation of an
    autoregressive one with a positive coefficient) or only at their limits (one exponential correlation of
    one with a nugget of zero) count as such if the larger one has them inside its range or at its end.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("orthodont")
    >>> frames = [
    ...     jm.mixed("distance ~ age", data, residuals=f"{own}(age | Subject)").frame.residual
    ...     for own in ("cs", "us")
    ... ]
    >>> residual_obstacle(*frames), residual_obstacle(None, frames[0])
    ('', '')
    >>> residual_obstacle(*reversed(frames))[:65]
    'the residual structure Exchangeable within Subject does not conta'
    """
    if small is None:
        return ""
    if large is None:
        return f"the larger model lacks the residual structure {_text(small)}"
    missing = f"the residual structure {_text(large)} does not contain {_text(small)}"
    if not _same_variances(small, large):
        return missing
    own, theirs = small.design, large.design
    if isinstance(own.covariance.family, families.Independent):
        return ""
    if not _is_function(theirs.codes, own.codes) or not _is_function(own.codes, theirs.codes):
        return f"{missing}: the groups of correlated rows are others"
    if not _is_function(theirs.stratum, own.stratum):
        return missing
    return "" if _contains(small, large) else missing


def _text(residual: ResidualFrame) -> str:
    return structure_text(residual.labels, residual.design.covariance)


def _is_function(fine: np.ndarray, coarse: np.ndarray) -> bool:
    """Whether rows with the same value of one column have the same of another."""
    _, codes = np.unique(fine, return_inverse=True)
    image = np.empty(int(codes.max()) + 1, dtype=coarse.dtype)
    image[codes] = coarse
    return bool((image[codes] == coarse).all())


def _same_variances(small: ResidualFrame, large: ResidualFrame) -> bool:
    """Whether the larger structure has a variance for all rows to which the smaller one gives one."""
    own, theirs = small.design, large.design
    if own.covariance.function != "none":
        same = own.covariance.function == theirs.covariance.function
        if not same or not np.array_equal(own.covariate, theirs.covariate):
            return False
    sizes = own.covariance.levels, theirs.covariance.levels
    cells = (
        design.stratum * size + design.levels for design, size in zip((theirs, own), sizes[::-1], strict=True)
    )
    return _is_function(*cells)


def _contains(small: ResidualFrame, large: ResidualFrame) -> bool:
    """Whether the larger structure's family of correlations has the smaller one's."""
    own, wide = small.design.covariance.family, large.design.covariance.family
    if not isinstance(own, families.Exchangeable) and not _same_times(small, large):
        return False
    if isinstance(wide, families.Unstructured) or own == wide:
        return True
    if isinstance(wide, families.Banded):
        return isinstance(own, families.Banded) and own.order <= wide.order
    if isinstance(wide, families.Toeplitz):
        return _is_toeplitz(own, wide)
    if isinstance(wide, families.AnteDependence):
        return own.is_markov
    if isinstance(wide, families.Exponential):
        return isinstance(own, families.Exponential) and wide.nugget
    found, most = _orders(own), _orders(wide)
    return found is not None and most is not None and found[0] <= most[0] and found[1] <= most[1]


def has_exchangeable(large: ResidualFrame) -> bool:
    """Whether a structure has one correlation between all rows of a group, with one variance, as a case."""
    family = large.design.covariance.family
    full = isinstance(family, families.Toeplitz) and family.order >= family.longest
    return full or isinstance(family, families.Exchangeable | families.Unstructured)


def _same_times(small: ResidualFrame, large: ResidualFrame) -> bool:
    """Whether what the smaller structure sees of the times, the larger one sees, too."""
    own, theirs = small.design.times, large.design.times
    if large.times.labels is not None:
        return _is_function(theirs, own)
    return bool(np.ptp(own - theirs) == 0)


def _is_toeplitz(own: Family, wide: families.Toeplitz) -> bool:
    """Whether correlations are functions of the lag, and zero where those of the larger structure are."""
    full = wide.order >= wide.longest
    if isinstance(own, families.Toeplitz):
        return full or own.order <= wide.order
    if isinstance(own, families.MovingAverage):
        return full or own.order <= wide.order
    of_lags = families.Exchangeable | families.Autoregressive | families.AutoregressiveMovingAverage
    return full and isinstance(own, of_lags)


def _orders(family: Family) -> tuple[int, int] | None:
    """Orders of an autoregressive moving average; None for what is none."""
    if isinstance(family, families.Autoregressive):
        return family.order, 0
    if isinstance(family, families.MovingAverage):
        return 0, family.order
    if isinstance(family, families.AutoregressiveMovingAverage):
        return family.ar, family.ma
    return None

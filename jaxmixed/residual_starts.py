"""Starting values of residual parameters from the correlations that least-squares residuals show."""

import numpy as np

from jaxmixed.residual_groups import ResidualDesign, patterns_of

SMALLEST_RATIO = 0.05
"""Start no standard deviation at a smaller share of the first level's."""

SHARE = 0.5
"""With random effects, so much of the correlation that is seen is taken for the residuals' own."""

LONG = 50
"""Of longer series only rows that are no farther apart are looked at: correlations begin at short lags."""

MOST_PRODUCTS = 4_000_000
"""Products of two rows looked at; of many groups, those of the first ones."""


def _log_ratios(values: np.ndarray, of: np.ndarray, size: int) -> np.ndarray:
    """Logarithms of the standard deviations of levels relative to the first one."""
    counts = np.bincount(of, minlength=size)
    squares = np.bincount(of, values**2, minlength=size) / np.maximum(counts, 1)
    squares = np.where((counts > 0) & (squares > 0), squares, max(float(np.mean(values**2)), 1e-300))
    return np.asarray(
        np.clip(np.log(squares / squares[0]) / 2, np.log(SMALLEST_RATIO), -np.log(SMALLEST_RATIO))
    )


def _pairs(
    design: ResidualDesign, values: np.ndarray, labelled: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times of two rows of a group, the earlier first, and the products of their values."""
    found, looked_at = [], 0
    for pattern in patterns_of(design):
        size = pattern.rows.shape[1]
        if size < 2 or looked_at > MOST_PRODUCTS:
            continue
        i, j = np.triu_indices(size, 1)
        if size > LONG and not labelled:
            near = j - i < LONG
            i, j = i[near], j[near]
        rows = pattern.rows[: max(MOST_PRODUCTS // len(i), 1)]
        looked_at += len(rows) * len(i)
        own = values[rows]
        sums = np.einsum("gi,gi->i", own[:, i], own[:, j])
        times = np.asarray(pattern.at.times)[:, 0]
        found.append(np.stack([times[i], times[j], sums, np.full(len(i), float(len(rows)))]))
    joined = np.concatenate(found, axis=1) if found else np.zeros((4, 0))
    return joined[:2], joined[2], joined[3]


def _of_family(design: ResidualDesign, values: np.ndarray) -> np.ndarray:
    """Free parameters of the family from standardised residuals."""
    family = design.covariance.family
    times, sums, counts = _pairs(design, values, family.time_kind == "label")
    if not counts.size:
        return family.initial()
    if family.time_kind == "label":
        size = int(design.times.max()) + 1
        at = (times[0] * size + times[1]).astype(np.int64)
        total = np.bincount(at, sums, size * size).reshape(size, size)
        number = np.bincount(at, counts, size * size).reshape(size, size)
        total, number = total + total.T, number + number.T
        distinct = np.arange(float(size))
    else:
        distinct, at = np.unique(np.abs(times[1] - times[0]), return_inverse=True)
        total, number = np.bincount(at.ravel(), sums), np.bincount(at.ravel(), counts)
    products = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    if family.time_kind == "label":
        np.fill_diagonal(products, 1.0)
    start = family.start(distinct, products, number)
    return start if np.isfinite(start).all() else family.initial()


def residual_start(design: ResidualDesign, residual: np.ndarray, random: bool) -> np.ndarray:
    """Free residual parameters to start from.

    Parameters
    ----------
    design : ResidualDesign
    residual : (n,) array
        Least-squares residuals, times the square roots of the weights; of any scale.
    random : bool
        Whether there are random effects, which share in what is seen.

    Returns
    -------
    (k,) array

    Examples
    --------
    >>> from jaxmixed.residual_covariance import ResidualCovariance
    >>> from jaxmixed.residual_families import Independent
    >>> zero = np.zeros(4, dtype=int)
    >>> level = np.array([0, 0, 1, 1])
    >>> covariance = ResidualCovariance(Independent(), levels=2)
    >>> design = ResidualDesign(covariance, np.arange(4), 4, np.zeros(4), level, np.ones(4), zero)
    >>> residual_start(design, np.array([1.0, -1.0, 2.0, -2.0]), False).round(4)
    array([0.6931])
    """
    covariance, V = design.covariance, design.covariance.levels
    between = _log_ratios(residual, design.stratum, covariance.strata)
    blocks = []
    for s in range(covariance.strata):
        rows = np.flatnonzero(design.stratum == s)
        own = design.take(rows)
        ratios = _log_ratios(residual[rows], own.levels, V)
        sd = np.exp(ratios)[own.levels]
        values = residual[rows] / sd
        values = values / max(float(np.sqrt(np.mean(values**2))), 1e-300)
        of_family = covariance.family.initial() if random else _of_family(own, values)
        shown = SHARE * ratios if random else ratios
        blocks.append(np.concatenate([of_family, shown[1:], np.zeros(int(covariance.function != "none"))]))
        if s:  # the ratio is of the first levels
            between[s] += np.mean(ratios[own.levels])
    return np.concatenate([*blocks, (SHARE if random else 1.0) * between[1:]])

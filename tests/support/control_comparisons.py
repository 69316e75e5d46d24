"""Dunnett's comparisons with a control: SciPy's test, and the distribution by quadrature."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def scipy_dunnett(others: Sequence[np.ndarray], control: np.ndarray) -> Any:
    """SciPy's test with a generator of its own, whatever this version calls that argument."""
    name = "rng" if "rng" in inspect.signature(stats.dunnett).parameters else "random_state"
    return stats.dunnett(*others, control=control, **{name: np.random.default_rng(1)})


def two_sided_tail(c: float, df: float, sizes: Sequence[int], control_size: int) -> float:
    """P(max |T_i| > c) of comparisons with a control.

    Their correlations are products l_i l_j with l_i^2 = n_i / (n_i + n_0), so that given one common normal
    variable and the pooled variance they are independent (Dunnett 1955, Journal of the American Statistical
    Association 50, 1096-1121): an integral in two dimensions.
    """
    share = np.sqrt([size / (size + control_size) for size in sizes])
    z, z_weight = np.polynomial.legendre.leggauss(120)
    z, z_weight = 9 * z, 9 * z_weight * stats.norm.pdf(9 * z)
    low, high = stats.chi2.ppf([1e-14, 1 - 1e-14], df)
    u, u_weight = np.polynomial.legendre.leggauss(120)
    u = (high - low) / 2 * u + (high + low) / 2
    u_weight = (high - low) / 2 * u_weight * stats.chi2.pdf(u, df)
    limit = c * np.sqrt(u / df)
    inside = np.ones((len(u), len(z)))
    for own in share:
        rest = np.sqrt(1 - own**2)
        upper, lower = ((own * z + sign * limit[:, None]) / rest for sign in (1, -1))
        inside *= stats.norm.cdf(upper) - stats.norm.cdf(lower)
    return 1 - float(u_weight @ inside @ z_weight)

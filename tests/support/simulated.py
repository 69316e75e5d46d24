"""Simulated data of fixed shapes (so that one compiled program serves many fits), and their closed forms."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxmixed as jm


def students(
    seed: int = 0,
    *,
    groups: int = 30,
    size: int = 5,
    between: float = 1.0,
    slope: float = 0.0,
) -> pd.DataFrame:
    """Balanced two-level data ``y, x, g``; sd: intercepts `between`, slopes `slope`, residuals 1."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), size)
    x = rng.normal(size=len(g))
    y = 1 + 2 * x + between * rng.normal(size=groups)[g] + rng.normal(size=len(g))
    return pd.DataFrame({"y": y + slope * rng.normal(size=groups)[g] * x, "x": x, "g": g})


class OneWay(NamedTuple):
    """Balanced one-way data with chosen mean squares."""

    data: pd.DataFrame
    between: float  # mean square between groups
    within: float  # mean square within groups
    groups: int
    size: int

    def variances(self, method: str) -> tuple[float, float]:
        """Closed-form (restricted) maximum likelihood: variance between groups and residual variance."""
        m, k = self.groups, self.size
        df = m - 1 if method == "reml" else m
        between = self.between * (m - 1) / df
        if between > self.within:
            return (between - self.within) / k, self.within
        pooled = (self.between * (m - 1) + self.within * m * (k - 1)) / (df + m * (k - 1))
        return 0.0, pooled


def one_way(ratio: float, *, groups: int = 10, size: int = 8, seed: int = 0, unit: float = 1.0) -> OneWay:
    """Balanced one-way data whose REML estimate of the variance ratio is exactly `ratio` (negative: zero)."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=groups)
    means = (means - means.mean()) / means.std(ddof=1)
    noise = rng.normal(size=(groups, size))
    noise -= noise.mean(axis=1, keepdims=True)
    noise /= np.sqrt((noise**2).sum() / (groups * (size - 1)))
    y = unit * (np.sqrt(ratio + 1 / size) * means[:, None] + noise)
    data = pd.DataFrame({"y": y.ravel(), "g": np.repeat(np.arange(groups), size)})
    centred = y - y.mean(axis=1, keepdims=True)
    within = (centred**2).sum() / (groups * (size - 1))
    between = size * ((y.mean(axis=1) - y.mean()) ** 2).sum() / (groups - 1)
    return OneWay(data, float(between), float(within), groups, size)


class Outcome(NamedTuple):
    """What a call ended in: a fit with its warnings, or an error of the library."""

    fit: jm.MixedResults | None
    error: jm.JaxMixedError | None
    warnings: tuple[str, ...]

    @property
    def text(self) -> str:
        """All that the user was told."""
        return "\n".join((*([str(self.error)] if self.error else []), *self.warnings))


def outcome(formula: str, data: Any, **options: Any) -> Outcome:
    """Fit and use every method; errors and warnings of other classes pass through and fail the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", jm.JaxMixedWarning)
        try:
            fit = jm.mixed(formula, data, **options)
            use_everything(fit)
        except jm.JaxMixedError as error:
            return Outcome(None, error, ())
    return Outcome(fit, None, tuple(str(item.message) for item in caught))


def use_everything(fit: jm.MixedResults) -> None:
    """Call what a user would look at: none of it may fail after any fit."""
    text = str(fit.summary())
    assert text == str(fit.summary())
    fit.summary(scale="sd")._repr_html_()
    fit.tidy(), fit.glance(), fit.augment(), fit.conf_int(), fit.group_sizes(), repr(fit)
    fit.ranef(), fit.ranef_se(), fit.ranef_se("estimated"), fit.predict(random=False)
    assert np.isfinite(fit.fittedvalues).all()
    for term in fit.random_terms:
        cov = term.cov.to_numpy()
        assert np.isfinite(cov).all()
        assert np.linalg.eigvalsh(cov)[0] >= -1e-12 * max(np.trace(cov), np.finfo(float).tiny)
    pairs = fit.varcorr.dropna(subset=["effect2"])
    assert (pairs["sd_or_corr"].dropna().abs() <= 1).all()

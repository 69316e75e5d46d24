"""Many responses of one design and lme4's fit of each: the sets in ``data/refits``, and how to read them.

    from tests.reference import refits

    stored = refits.load("sleepstudy")      # one of refits.NAMES
    stored.formula, stored.data             # for jm.mixed; stored.data holds the first response
    stored.Y                                # (n, B), exactly what was fitted; NaN: no row of a response
    stored.fits["reml"].loglik              # (B,); also "ml"; criterion, sigma, singular, theta, beta, se
    stored.fits["reml"].covariances         # per random term (B, q, q), absolute; stored.terms names them
    stored.frame(17)                        # the data with response 17, for a fit of its own
    refits.bootstrap()["reml"]              # percentile intervals of 10,000 parametric replicates

| set | responses | what |
| --- | --- | --- |
| sleepstudy | 300 | drawn from the REML fit of ``Reaction ~ Days + (Days | Subject)`` |
| sleepstudy_slope1 | 100 | its slopes have a standard deviation of 1: half of the fits are singular |
| sleepstudy_slope0 | 100 | its slopes do not vary: most fits are singular |
| sleepstudy_gaps | 50 | 0 to 37 complete, 38 to 42 with gaps of their own, 43 to 47 with the same gaps, |
| | | 48 without one subject, 49 without half of the rows |
| covariate | 100 | ``y ~ x + z + (1 + x | g)``, 50 groups of 20, continuous covariates, no groups alike |
| penicillin | 50 | ``diameter ~ 1 + (1 | plate) + (1 | sample)``: crossed |
| pastes | 50 | ``strength ~ 1 + (1 | batch / cask)``: three levels, a third of the fits singular |

Responses are drawn with fixed seeds and rounded, so that the files hold exactly what was fitted. Every fit is
a fresh one (lme4 1.1-31's `refit` of a REML fit divides by n - 1 instead of n - p): the best of two
optimizers, exactly on the boundary where nothing is lost by it, polished by Newton steps until the predicted
gain of the deviance is below 1e-15. Criteria are good to some 1e-12 (what sums round to), `beta` to 1e-10
of a standard error, `se` relatively to 1e-9, `covariances` to 1e-8 of sigma². Where a variance is zero,
`theta` is not unique: compare `covariances`. `singular` is lme4's ``isSingular(fit, tol = 1e-4)``.
``make/refits.R`` makes all files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.reference.cases import HERE, read_data

Array = NDArray[np.float64]

FOLDER = HERE / "data" / "refits"
METHODS = ("reml", "ml")


@dataclass(frozen=True)
class Term:
    """A random-effects term as lme4 orders them: by falling number of levels."""

    group: str  # lme4's label: cask:batch where jaxmixed has batch:cask
    effects: tuple[str, ...]

    @property
    def size(self) -> int:
        """Entries of theta: the lower triangle of the relative factor, column by column."""
        q = len(self.effects)
        return q * (q + 1) // 2


@dataclass(frozen=True)
class Fits:
    """lme4's fits of all responses of a set by one method; the first axis is the response."""

    criterion: Array  # (B,) -2 log-likelihood, with all constants
    sigma: Array  # (B,)
    singular: NDArray[np.bool_]  # (B,)
    theta: Array  # (B, k) lme4's
    beta: Array  # (B, p)
    se: Array  # (B, p)
    terms: tuple[Term, ...]

    @property
    def loglik(self) -> Array:
        return -0.5 * self.criterion

    @property
    def covariances(self) -> list[Array]:
        """Covariance matrix of the effects of every term, (B, q, q), absolute."""
        result, start = [], 0
        for term in self.terms:
            q = len(term.effects)
            columns, rows = np.triu_indices(q)  # column-major lower triangle
            factor = np.zeros((len(self.sigma), q, q))
            factor[:, rows, columns] = self.theta[:, start : start + term.size]
            factor *= self.sigma[:, None, None]
            result.append(factor @ factor.swapaxes(1, 2))
            start += term.size
        return result


@dataclass(frozen=True)
class RefitSet:
    """A design, its responses and their stored fits."""

    name: str
    formula: str
    response: str
    data: pd.DataFrame  # with the first response; grouping columns are text
    Y: Array  # (n, B)
    fixed: tuple[str, ...]  # names of beta
    terms: tuple[Term, ...]
    fits: dict[str, Fits]

    @property
    def count(self) -> int:
        return self.Y.shape[1]

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which responses lack no row, (B,)."""
        return np.isfinite(self.Y).all(axis=0)

    def frame(self, response: int) -> pd.DataFrame:
        """The data with one of the responses, NaN where it lacks a row."""
        return self.data.assign(**{self.response: self.Y[:, response]})


@cache
def _designs() -> dict[str, Any]:
    return json.loads((FOLDER / "designs.json").read_text(encoding="utf-8"))["sets"]


NAMES = tuple(_designs())


@cache
def load(name: str) -> RefitSet:
    """Read a set; its arrays are shared by all callers and cannot be written to."""
    design = _designs()[name]
    responses = pd.read_csv(FOLDER / f"{name}.responses.csv.gz").to_numpy(dtype=float)
    assert responses.shape == (design["rows"], design["responses"])
    responses.setflags(write=False)
    terms = _terms(design["theta"])
    table = pd.read_csv(FOLDER / f"{name}.fits.csv.gz")
    data = read_data(f"data/{design['data']}").assign(**{design["response"]: responses[:, 0]})
    fits = {method: _fits(table[table["method"] == method], terms) for method in METHODS}
    return RefitSet(
        name, design["formula"], design["response"], data, responses, tuple(design["fixed"]), terms, fits
    )


@cache
def bootstrap() -> dict[str, Any]:
    """Parametric bootstrap of sleepstudy by lme4, 10,000 replicates by REML ("reml") and by ML ("ml").

    Each has `how`, `replicates`, `singular_share` and its standard error, `corr_undefined`, `corr_at_1`,
    `corr_at_minus_1`, and `parameters`: for "(Intercept)", "Days", "sd (Intercept)", "sd Days", "corr" and
    "sigma" the `estimate`, the replicates' `mean` and `sd`, the limits `lower` and `upper` of the 95 %
    percentile interval, and `quantiles` at `levels` with their Monte-Carlo standard errors `quantile_se`.
    A difference between two bootstraps has the variance of both.
    """
    return json.loads((FOLDER / "bootstrap.json").read_text(encoding="utf-8"))


def _terms(theta_names: list[str]) -> tuple[Term, ...]:
    """Terms from lme4's names of theta, "group|effect" on the diagonal and "group|effect2.effect1" below."""
    effects: dict[str, list[str]] = {}
    for name in theta_names:
        group, effect = name.split("|")
        if "." not in effect:
            effects.setdefault(group, []).append(effect)
    terms = tuple(Term(group, tuple(names)) for group, names in effects.items())
    assert sum(term.size for term in terms) == len(theta_names)
    return terms


def _fits(table: pd.DataFrame, terms: tuple[Term, ...]) -> Fits:
    def matrix(prefix: str) -> Array:
        columns = [name for name in table.columns if name.rstrip("0123456789") == prefix]
        return _frozen(table[columns].to_numpy(dtype=float))

    assert list(table["response"]) == list(range(1, len(table) + 1))
    criterion, sigma = (_frozen(table[name].to_numpy(dtype=float)) for name in ("criterion", "sigma"))
    singular = table["singular"].to_numpy() == 1
    return Fits(criterion, sigma, singular, matrix("theta"), matrix("beta"), matrix("se"), terms)


def _frozen(values: Array) -> Array:
    values = values.copy()
    values.setflags(write=False)
    return values

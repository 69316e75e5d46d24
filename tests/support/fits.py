"""Fits that several test files ask about, each made once in a process."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

import jaxmixed as jm


@cache
def fit(name: str, formula: str, method: str = "reml", covariance: str | None = None) -> jm.MixedResults:
    """A fit to a bundled data set; verdicts are read from the result, not from warnings."""
    return quietly(formula, jm.datasets.load(name), method=method, covariance=covariance)


def quietly(formula: str, data: Any, **options: Any) -> jm.MixedResults:
    """A fit whose warnings are not the subject of the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.JaxMixedWarning)
        return jm.mixed(formula, data, **options)


def sleepstudy(formula: str = "Reaction ~ Days + (Days | Subject)", method: str = "reml") -> jm.MixedResults:
    """The sleep study with random intercepts and slopes."""
    return fit("sleepstudy", formula, method)


def sleepstudy_dropping(*rows: int) -> pd.DataFrame:
    """The sleep study with missing reactions in some rows, and a column that doubles Days."""
    data = jm.datasets.load("sleepstudy")
    data.loc[list(rows), "Reaction"] = np.nan
    return data.assign(Days2=2 * data["Days"])


@cache
def two_terms() -> jm.MixedResults:
    """Two random terms for one grouping, written apart."""
    return quietly("Reaction ~ Days + (1 | Subject) + (0 + Days | Subject)", jm.datasets.load("sleepstudy"))


@cache
def aliased() -> jm.MixedResults:
    """A fit with a dropped column and dropped rows."""
    return quietly("Reaction ~ Days + Days2 + (Days | Subject)", sleepstudy_dropping(3, 17))


@cache
def with_kernel() -> jm.MixedResults:
    """An exponential covariance function of the days of the sleep study."""
    return quietly(
        "Reaction ~ Days + (0 + C(Days) | Subject)",
        jm.datasets.load("sleepstudy"),
        covariance={"Subject": jm.kernels.exponential()},
    )


@cache
def mares() -> pd.DataFrame:
    """Follicles of five mares with gaps, the rows out of order, and weights."""
    data = jm.datasets.load("ovary")
    data = data[data["Mare"].isin(["1", "2", "3", "4", "5"]) & (data["occasion"] % 5 != 3)]
    data = data.sample(frac=1, random_state=1).reset_index(drop=True)
    return data.assign(w=np.random.default_rng(1).uniform(0.5, 2, len(data)))


@cache
def autoregressive(formula: str = "follicles ~ Time") -> jm.MixedResults:
    """A fit to these with residuals of an AR(1) in occasion within a mare."""
    return quietly(formula, mares(), residuals="ar1(occasion | Mare)")

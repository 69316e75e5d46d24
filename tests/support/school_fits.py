"""Fits to simulated pupils: nested and crossed groups, weights, a singular fit, related levels."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

import jaxmixed as jm
from tests.support.fits import fit, quietly


@cache
def schools() -> pd.DataFrame:
    """Pupils in classes in schools, and items that all of them meet."""
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"school": rng.integers(0, 6, 160)})
    data["class"] = data["school"] * 4 + rng.integers(0, 4, 160)
    data["item"], data["x"] = rng.integers(0, 7, 160), rng.normal(size=160)
    data["w"] = rng.uniform(0.5, 3.0, 160)
    slopes = rng.normal(size=6)[data["school"]] * data["x"]
    data["y"] = data["x"] + slopes + rng.normal(size=24)[data["class"]] + rng.normal(size=7)[data["item"]]
    data["y"] += rng.normal(size=160)
    return data


@cache
def nested() -> jm.MixedResults:
    return quietly("y ~ x + (x || school) + (1 | class)", schools(), weights="w")


@cache
def crossed() -> jm.MixedResults:
    return quietly("y ~ x + (1 | school) + (1 | class) + (x | item)", schools())


@cache
def singular() -> jm.MixedResults:
    return fit("dyestuff2", "Yield ~ 1 + (1 | Batch)")


@cache
def related() -> jm.MixedResults:
    distance = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    A = pd.DataFrame(0.6**distance, index=range(8), columns=range(8))  # item 7 has no rows
    return quietly("y ~ x + (1 | school) + (1 | item)", schools(), covariance={"item": jm.known(A)})

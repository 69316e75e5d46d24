"""Which residual structures contain which, and likelihood-ratio tests of models that have them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.chi_bar_square import chi_bar_square
from jaxmixed.errors import DesignError
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame
from jaxmixed.residual_columns import residual_columns
from jaxmixed.residual_frame import ResidualFrame, residual_frame
from jaxmixed.residual_nesting import residual_obstacle
from tests.support.dense_residual_tests import curved_model, natural_residual
from tests.support.dense_residuals import Structure
from tests.support.fits import quietly

R = jm.residuals


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    g, t = np.repeat(np.arange(15), 5), np.tile(np.arange(5), 15)
    sex = np.where(g % 3, "F", "M")
    e = np.zeros((15, 5))
    for k in range(5):
        e[:, k] = 0.5 * e[:, k - 1] * (k > 0) + rng.normal(size=15)
    y = 1 + 0.3 * t + e.ravel() + 0.9 * rng.normal(size=15)[g]
    return pd.DataFrame({"y": y, "g": g, "t": t, "twice": 2 * t, "sex": sex, "coarse": g // 3})


@cache
def frame(text: str) -> ResidualFrame | None:
    """A structure on the rows, without a fit."""
    spec = STRUCTURES[text]
    formula = parse("y ~ t")
    return residual_frame(spec, build_frame(formula, data(), also=residual_columns(spec, formula)))


OWN = {"time": "t", "group": "g"}
STRUCTURES = {
    "none": None,
    "by level": R.Independent(variance_by="t"),
    "by sex": R.Independent(variance_by="sex"),
    "exp of twice": R.Independent(variance=R.Exp("twice")),
    "cs": R.Exchangeable(**OWN),
    "ar1": R.AR(1, **OWN),
    "ar2": R.AR(2, **OWN),
    "ma1": R.MA(1, **OWN),
    "arma11": R.ARMA(1, 1, **OWN),
    "exp": R.Exponential(**OWN),
    "nugget": R.Exponential(nugget=True, **OWN),
    "toep": R.Toeplitz(**OWN),
    "toep2": R.Toeplitz(2, **OWN),
    "band1": R.Banded(1, **OWN),
    "ad": R.AnteDependence(**OWN),
    "ad homogeneous": R.AnteDependence(variance_by=None, **OWN),
    "us": R.Unstructured(**OWN),
    "us homogeneous": R.Unstructured(variance_by=None, **OWN),
    "us by sex": R.Unstructured(by="sex", **OWN),
    "ar1 by sex": R.AR(1, by="sex", **OWN),
    "cs coarse": R.Exchangeable(group="coarse"),
    "ar1 twice": R.AR(1, time="twice", group="g"),
}

CONTAINED = {
    "none": set(STRUCTURES),
    "by level": {"by level", "band1", "ad", "us", "us by sex"},
    "by sex": {"by sex", "us by sex", "ar1 by sex"},
    "exp of twice": {"exp of twice"},
    "cs": {"cs", "toep", "us", "us homogeneous", "us by sex"},
    "ar1": {"ar1", "ar2", "arma11", "toep", "ad", "ad homogeneous", "us", "us homogeneous", "us by sex"}
    | {"ar1 by sex"},
    "ar2": {"ar2", "toep", "us", "us homogeneous", "us by sex"},
    "ma1": {"ma1", "arma11", "toep", "toep2", "us", "us homogeneous", "us by sex"},
    "arma11": {"arma11", "toep", "us", "us homogeneous", "us by sex"},
    "exp": {"exp", "nugget", "ad", "ad homogeneous", "us", "us homogeneous", "us by sex"},
    "nugget": {"nugget", "us", "us homogeneous", "us by sex"},
    "toep": {"toep", "us", "us homogeneous", "us by sex"},
    "toep2": {"toep", "toep2", "us", "us homogeneous", "us by sex"},
    "band1": {"band1", "us", "us by sex"},
    "ad": {"ad", "us", "us by sex"},
    "ad homogeneous": {"ad", "ad homogeneous", "us", "us homogeneous", "us by sex"},
    "us": {"us", "us by sex"},
    "us homogeneous": {"us", "us homogeneous", "us by sex"},
    "us by sex": {"us by sex"},
    "ar1 by sex": {"ar1 by sex", "us by sex"},
    "cs coarse": {"cs coarse"},
    # An autoregression over doubled times has the square of a coefficient: none of the others that know the
    # times as numbers is told so, but labels are.
    "ar1 twice": {"ar1 twice", "ad", "ad homogeneous", "us", "us homogeneous", "us by sex"},
}


@pytest.mark.parametrize("small", STRUCTURES)
def test_a_structure_contains_its_special_cases_and_no_others(small: str) -> None:
    found = {large for large in STRUCTURES if not residual_obstacle(frame(small), frame(large))}
    assert found == CONTAINED[small]


def test_what_is_in_the_way_is_named() -> None:
    assert residual_obstacle(frame("cs"), None) == (
        "the larger model lacks the residual structure Exchangeable within g"
    )
    expected = "AR(1) in t within g, its own for each sex does not contain AR(2) in t within g"
    assert residual_obstacle(frame("ar2"), frame("ar1 by sex")).endswith(expected)


@cache
def fit(formula: str, residuals: object) -> jm.MixedResults:
    return quietly(formula, data(), residuals=residuals)


def test_likelihood_ratios_of_residual_structures() -> None:
    plain, ar1 = fit("y ~ t", None), fit("y ~ t", STRUCTURES["ar1"])
    test = jm.lrtest(ar1, plain)
    np.testing.assert_allclose(test.statistic, 2 * (ar1.llf - plain.llf), rtol=1e-12)
    assert (test.df, test.distribution, test.note) == (1, "chi2(1)", "")
    assert "residuals AR(1) in t within g" in str(test)
    # A random intercept is an exchangeable correlation, and none of an autoregression.
    intercept, cs = fit("y ~ t + (1 | g)", None), fit("y ~ t", STRUCTURES["cs"])
    np.testing.assert_allclose(intercept.llf, cs.llf, rtol=1e-9)
    with pytest.raises(DesignError, match="no random term for g"):
        jm.lrtest(intercept, quietly("y ~ t", data(), residuals=STRUCTURES["ar2"]))
    table = jm.compare(plain, ar1, cs)
    assert table["residuals"].tolist() == ["", "AR(1) in t within g", "Exchangeable within g"]


@pytest.mark.slow
def test_the_mixture_takes_residual_parameters_for_nuisance() -> None:
    """Of two variances at zero, weights by the information that is left of the autoregression's."""
    small, large = (fit(formula, STRUCTURES["ar1"]) for formula in ("y ~ t", "y ~ t + (t || g)"))
    test = jm.lrtest(small, large, mixture=True)
    t, same = data()["t"].to_numpy(), data()["g"].to_numpy()[:, None] == data()["g"].to_numpy()
    effects = [(same * 1.0, 0.0), (same * np.outer(t, t).astype(float), 0.0)]
    names = ["phi1", "sigma2"]
    residual = natural_residual(Structure("ar", group="g", time="t"), data(), names)
    at = np.array([small.residual_parameters["phi1"], small.sigma**2])
    model = curved_model(np.asarray(small.frame.X), small.frame.y, effects, residual, at)
    inverse = np.linalg.inv(model.V)
    XV = model.X.T @ inverse
    P = inverse - XV.T @ np.linalg.solve(XV @ model.X, XV)
    information = np.array([[np.trace(P @ a @ P @ b) / 2 for b in model.parts] for a in model.parts])
    own = information[:2, :2] - information[:2, 2:] @ np.linalg.solve(
        information[2:, 2:], information[2:, :2]
    )
    expected = chi_bar_square(own, (1, 1), 0).weights
    np.testing.assert_allclose(test.weights.to_numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(test.weights.sum(), 1.0)

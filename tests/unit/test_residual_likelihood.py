"""Every residual structure on small data against the dense likelihood: its value, and that it is a maximum.

Data are drawn from the structure itself, by the oracle's covariance matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.frame import build_frame
from tests.support.dense import Block
from tests.support.dense_residuals import DenseResidualModel, Structure
from tests.support.fits import quietly

SIGMA = 1.5
LABELS = ("1", "2", "3", "5")
res = jm.residuals


@cache
def visits(times: tuple[float, ...] = (1, 2, 3, 5), subjects: int = 24) -> pd.DataFrame:
    """Visits of subjects in two arms and six sites; some are missed, some subjects come once."""
    rng = np.random.default_rng(11)
    subject = np.repeat(np.arange(subjects), len(times))
    data = pd.DataFrame({"id": subject, "visit": np.tile(times, subjects), "site": subject % 6})
    data["arm"] = np.where(data["site"] % 2 == 0, "drug", "none")
    data["x"] = rng.uniform(0.5, 3, len(data))
    data["w"] = rng.choice([0.5, 1.0, 2.0], len(data))
    missed = rng.uniform(size=len(data)) < 0.15
    data["item"] = rng.integers(0, 5, len(data))
    missed |= (subject < 2) & (data["visit"] > times[0])
    kept = data[~missed.to_numpy()]
    return kept.sample(frac=1, random_state=1).reset_index(drop=True)


@dataclass(frozen=True)
class Example:
    """A structure as users write it, the oracle's, true parameters, and the rest of the model."""

    spec: Any
    structure: Structure
    true: dict[str, float]
    random: str = ""
    method: str = "reml"
    times: tuple[float, ...] = (1, 2, 3, 5)
    subjects: int = 24
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def formula(self) -> str:
        return "y ~ x + arm" + self.random

    def data(self) -> pd.DataFrame:
        """Data drawn from the model, with a random intercept of sd one for each term."""
        data = visits(self.times, self.subjects)
        rng = np.random.default_rng(3)
        V = SIGMA**2 * self.structure.relative(data, self.true, SIGMA)
        y = data["x"] + rng.multivariate_normal(np.zeros(len(data)), V)
        for column in ("site", "id", "item"):
            if f"| {column}" in self.random or f"/{column}" in self.random:
                y += rng.normal(size=data[column].max() + 1)[data[column]]
        return data.assign(y=y + data["x"] if "offset" in self.options else y)


def four_sds(*names: str) -> dict[str, float]:
    return dict(zip([f"sd[{name}]" for name in names], (1.5, 1.2, 2.0, 1.7), strict=True))


def by_pair(decay: float) -> dict[str, float]:
    """Correlations of all pairs of visits that fall with their distance."""
    where = [(i, j) for j in range(4) for i in range(j)]
    return {f"corr[{LABELS[i]},{LABELS[j]}]": decay ** (j - i) for i, j in where}


def neighbours(*values: float) -> dict[str, float]:
    pairs = zip(LABELS[:-1], LABELS[1:], values, strict=True)
    return {f"corr[{a},{b}]": value for a, b, value in pairs}


def both(**parameters: float) -> dict[str, float]:
    """The same parameters, a little apart, in both arms."""
    drug = {f"{name}[drug]": value for name, value in parameters.items()}
    return drug | {f"{name}[none]": 0.7 * value for name, value in parameters.items()}


def by_visit_of_both() -> dict[str, float]:
    return {f"sd[{arm},{visit}]": sd for arm, sd in (("drug", 1.5), ("none", 1.0)) for visit in LABELS}


AT = {"time": "visit", "group": "id"}
IN = {"group": "id", "time": "visit"}

EXAMPLES: dict[str, Example] = {
    "independent by arm": Example(
        res.Independent(variance_by="arm"),
        Structure("independent", variance_by="arm"),
        {"sd[drug]": 1.5, "sd[none]": 0.8},
        method="ml",
    ),
    "power": Example(
        res.Independent(variance=res.Power("x")), Structure("independent", power="x"), {"delta": 0.8}
    ),
    "exp": Example(res.Independent(variance=res.Exp("x")), Structure("independent", exp="x"), {"delta": 0.3}),
    "exchangeable by arm": Example(
        res.Exchangeable(by="arm", **AT),
        Structure("exchangeable", by="arm", **IN),
        both(rho=0.5) | {"sd[drug]": 1.5, "sd[none]": 1.0},
    ),
    "ar1, weights": Example(
        res.AR(1, **AT), Structure("ar", weights="w", **IN), {"phi1": 0.6}, options={"weights": "w"}
    ),
    "ar1, power, sites": Example(
        res.AR(1, variance=res.Power("x"), **AT),
        Structure("ar", power="x", **IN),
        {"phi1": 0.5, "delta": 0.5},
        random=" + (1 | site)",
    ),
    "ar1, crossed, offset": Example(
        res.AR(1, **AT),
        Structure("ar", **IN),
        {"phi1": 0.5},
        random=" + (1 | site) + (1 | item)",
        options={"offset": "x"},
    ),
    "exponential by arm, sites": Example(
        res.Exponential(by="arm", variance_by="visit", **AT),
        Structure("exponential", by="arm", variance_by="visit", **IN),
        both(range=1.5) | both(rho=np.exp(-1 / 1.5)) | by_visit_of_both(),
        random=" + (1 | site)",
        method="ml",
        subjects=60,
    ),
    "ar2": Example(res.AR(2, **AT), Structure("ar", **IN), {"phi1": 0.5, "phi2": 0.2}, method="ml"),
    "ma1, nested": Example(
        res.MA(1, **AT), Structure("ma", **IN), {"theta1": 0.5}, random=" + (1 | site/id)", method="ml"
    ),
    "arma11": Example(res.ARMA(1, 1, **AT), Structure("arma", **IN), {"phi1": 0.6, "theta1": -0.2}),
    "exponential with nugget": Example(
        res.Exponential(nugget=True, **AT),
        Structure("exponential", **IN),
        {"range": 2.5, "nugget": 0.2, "rho": np.exp(-1 / 2.5)},
        times=(0.0, 0.5, 1.3, 4.0),
    ),
    "toeplitz": Example(
        res.Toeplitz(**AT), Structure("toeplitz", **IN), {f"rho{k}": 0.6**k for k in range(1, 5)}
    ),
    "toeplitz of order two": Example(
        res.Toeplitz(2, variance_by="visit", **AT),
        Structure("toeplitz", variance_by="visit", **IN),
        {"rho1": 0.5, "rho2": 0.2} | four_sds("1", "2", "3", "4"),
        times=(1, 2, 3, 4),
    ),
    "banded": Example(
        res.Banded(1, **AT),
        Structure("banded", variance_by="visit", **IN),
        neighbours(0.4, 0.3, 0.5) | four_sds(*LABELS),
        method="ml",
    ),
    "unstructured": Example(
        res.Unstructured(**AT),
        Structure("unstructured", variance_by="visit", **IN),
        by_pair(0.6) | four_sds(*LABELS),
    ),
    "unstructured, one sd": Example(
        res.Unstructured(variance_by=None, **AT), Structure("unstructured", **IN), by_pair(0.6)
    ),
    "antedependence": Example(
        res.AnteDependence(**AT),
        Structure("antedependence", variance_by="visit", **IN),
        neighbours(0.4, 0.7, 0.5) | four_sds(*LABELS),
    ),
}

QUICK = ("exchangeable by arm", "ar1, power, sites", "toeplitz", "antedependence")
"""Every example compiles programs of its own."""


@cache
def fitted(name: str) -> tuple[Example, pd.DataFrame, jm.MixedResults]:
    example = EXAMPLES[name]
    data = example.data()
    fit = quietly(example.formula, data, method=example.method, residuals=example.spec, **example.options)
    return example, data, fit


def examples() -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in EXAMPLES]
    return pytest.mark.parametrize("name", marked)


def dense(
    example: Example, data: pd.DataFrame, parameters: dict[str, float], sigma: float
) -> DenseResidualModel:
    frame = build_frame(example.formula, data, offset=example.options.get("offset"))
    blocks = tuple(Block(np.asarray(group.Z), group.codes) for group in frame.groups)
    relative = example.structure.relative(data, parameters, sigma)
    return DenseResidualModel(frame.y, np.asarray(frame.X), blocks, offset=frame.offset, relative=relative)


def covariances(fit: jm.MixedResults) -> tuple[np.ndarray, ...]:
    """Of the random effects, in the order of the formula's terms."""
    by_group = {term.group: term.cov.to_numpy() for term in fit.random_terms}
    return tuple(by_group[group.label] for group in fit.frame.groups)


def loglik(
    example: Example, data: pd.DataFrame, fit: jm.MixedResults
) -> Callable[[dict[str, float], float], float]:
    """Dense log-likelihood as a function of the parameters of the residuals, and sigma."""
    covs = covariances(fit)

    def at(parameters: dict[str, float], sigma: float) -> float:
        return dense(example, data, parameters, sigma).loglik(covs, sigma, example.method)

    return at


@examples()
def test_the_likelihood_is_the_dense_one_at_the_reported_parameters(name: str) -> None:
    example, data, fit = fitted(name)
    parameters, sigma = fit.residual_parameters.to_dict(), float(fit.sigma)
    assert set(parameters) == set(example.true)
    assert fit.converged
    assert fit.llf == pytest.approx(loglik(example, data, fit)(parameters, sigma), rel=1e-10)
    covs = covariances(fit)
    model = dense(example, data, parameters, sigma)
    gls = model.gls(model.covariance(covs, sigma))
    np.testing.assert_allclose(fit.params, gls.beta, rtol=1e-7)
    np.testing.assert_allclose(fit.cov_params(), gls.cov, rtol=1e-7)


@examples()
def test_the_dense_likelihood_is_flat_there(name: str) -> None:
    """Its slope, in units of the parameters' standard errors."""
    example, data, fit = fitted(name)
    at, table, sigma = loglik(example, data, fit), fit.residual_table(), float(fit.sigma)
    parameters = fit.residual_parameters.to_dict()
    derived = {"rho", "rho[drug]", "rho[none]"} if example.structure.family == "exponential" else set()
    for key, value in parameters.items():
        if key in derived:  # from the range
            continue
        step = 1e-3 * table.loc[key, "std_error"]
        up, down = (at(parameters | {key: value + sign * step}, sigma) for sign in (1, -1))
        assert abs(up - down) / 2e-3 < 1e-4, key
        assert up + down < 2 * fit.llf, key
    if not any(key.startswith("sd[") for key in parameters):
        up, down = (at(parameters, sigma * (1 + sign * 1e-4)) for sign in (1, -1))
        assert abs(up - down) / 2e-4 < 1e-3


@examples()
def test_sigma_is_the_standard_deviation_of_the_first_level(name: str) -> None:
    _, _, fit = fitted(name)
    sds = [value for key, value in fit.residual_parameters.items() if key.startswith("sd[")]
    if sds:
        assert fit.sigma == pytest.approx(sds[0], rel=1e-12)

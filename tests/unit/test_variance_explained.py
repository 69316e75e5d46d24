"""R-squared of mixed models against the definition row by row, and standard errors by another route."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed.nonlinear import Parameters
from tests.support.fits import aliased, fit, quietly, sleepstudy, with_kernel

EXACT = 1e-8
"""Relative difference of two exact routes to one number."""

COLUMNS = ["estimate", "std_error", "conf_low", "conf_high"]


def parts(model: jm.MixedResults) -> dict[str, float]:
    """Variance of the fixed predictions, of each grouping (a sum over the rows), and of the residuals."""
    found = {"fixed": float(model.predict(random=False).var(ddof=1))}
    for term, own in zip(model.random_terms, model.estimates.terms, strict=True):
        Z, G = model.frame.groups[own.frame_index].Z, term.cov.to_numpy()
        variance = sum(float(z @ G @ z) for z in Z) / len(Z)
        found[term.group] = found.get(term.group, 0.0) + variance
    return {**found, "residual": float(model.sigma**2)}


@pytest.mark.parametrize(
    "model",
    [
        sleepstudy,
        aliased,
        with_kernel,
        lambda: fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance="exchangeable"),
        lambda: fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        lambda: fit("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml"),
    ],
    ids=["slopes", "dropped", "kernel", "exchangeable", "crossed", "nested"],
)
def test_the_shares_are_those_of_the_parts(model: Any) -> None:
    found, expected = model().r2()["estimate"], parts(model())
    total = sum(expected.values())
    assert found["marginal"] == pytest.approx(expected["fixed"] / total, rel=EXACT, abs=1e-15)
    assert found["conditional"] == pytest.approx(1 - expected["residual"] / total, rel=EXACT)
    for label in model().ngroups:
        assert found[label] == pytest.approx(expected[label] / total, rel=EXACT)


def test_standard_errors_and_limits_by_automatic_derivatives() -> None:
    model = sleepstudy()
    X, Z = (np.asarray(a) for a in (model.frame.X, model.frame.groups[0].Z))
    S, M = np.cov(X.T), Z.T @ Z / len(Z)

    def shares(p: Parameters) -> dict[str, Any]:
        fixed, random = p.beta @ S @ p.beta, jnp.sum(M * p.cov("Subject"))
        total = fixed + random + p.sigma**2
        return {"marginal": fixed / total, "conditional": 1 - p.sigma**2 / total, "Subject": random / total}

    expected = model.nlcom(shares, scale="logit")
    np.testing.assert_allclose(model.r2()[COLUMNS], expected[COLUMNS], rtol=EXACT)
    narrow, wide = (model.r2(level)["conf_high"] for level in (0.8, 0.95))
    assert (narrow < wide).all()


def test_an_intercept_explains_nothing() -> None:
    row = fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)").r2().loc["marginal"]
    assert row["estimate"] == 0.0
    assert row[COLUMNS[1:]].isna().all()


def test_a_linear_model_has_the_share_of_its_predictions() -> None:
    model = fit("sleepstudy", "Reaction ~ Days")
    found = model.r2()
    assert list(found.index) == ["marginal", "conditional"]
    explained = model.fittedvalues.var()
    expected = explained / (explained + model.sigma**2)
    np.testing.assert_allclose(found["estimate"], expected, rtol=EXACT)


def test_weights_are_noted() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=2.0)
    model = jm.mixed("Reaction ~ Days + (1 | Subject)", data, weights="w")
    assert "for rows of weight 1" in repr(model.r2())


def test_related_levels_count_by_their_diagonals() -> None:
    data = jm.datasets.load("sleepstudy")
    labels = sorted(data["Subject"].unique())
    A = np.diag(np.linspace(0.5, 2.0, 18)) + 0.1
    model = quietly("Reaction ~ Days + (1 | Subject)", data, covariance={"Subject": jm.known(A, labels)})
    diagonal = dict(zip(labels, np.diagonal(A), strict=True))
    mean = np.mean([diagonal[subject] for subject in data["Subject"]])
    variance = mean * model.random_terms[0].cov.iloc[0, 0]
    fixed = model.predict(random=False).var(ddof=1)
    assert model.r2().loc["Subject", "estimate"] == pytest.approx(
        variance / (variance + fixed + model.sigma**2), rel=EXACT
    )

"""Hypotheses by coefficient, term and smaller model, and the register of tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed import power_analysis
from jaxmixed.frame import ModelFrame, build_frame
from jaxmixed.hypotheses import (
    KINDS,
    Evidence,
    Hypothesis,
    KindOfTest,
    coefficients_hypothesis,
    likelihood_ratio,
    nested_hypothesis,
    wald,
)
from jaxmixed.resampling import refitter_of
from tests.support.fits import aliased, sleepstudy


def frame(formula: str = "y ~ f * x + (1 | g)", covariates: str = "") -> ModelFrame:
    table = jm.study({"g": 8}, size=6, within={"f": list("abc"), "x": "normal", "z": "normal"})
    return build_frame(formula, table.assign(y=np.arange(48.0)))


def evidence(beta: Any, cov: Any) -> Evidence:
    found: Any = SimpleNamespace(beta=np.array(beta, dtype=float), cov_beta=np.array(cov, dtype=float))
    return Evidence(found, None, None)  # type: ignore[arg-type]


def test_terms_stand_for_all_their_coefficients() -> None:
    for test, names in (
        ("x", ["x"]),
        ("f", ["fb", "fc"]),
        ("f:x", ["fb:x", "fc:x"]),
        (["x", "f:x"], ["x", "fb:x", "fc:x"]),
        (["fc", "f"], ["fb", "fc"]),
        ("(Intercept)", ["(Intercept)"]),
    ):
        found = coefficients_hypothesis(frame(), test, KINDS["wald"])
        assert [frame().x_names[j] for j in found.columns] == names
        assert found.reduced is None


def test_the_reduced_model_lacks_the_tested_columns() -> None:
    full = frame()
    found = coefficients_hypothesis(full, "f:x", KINDS["lr"])
    assert found.reduced is not None
    assert found.reduced.x_names == ("(Intercept)", "fb", "fc", "x")
    np.testing.assert_array_equal(found.reduced.X, full.X[:, :4])


def test_a_formula_tests_what_it_leaves_out() -> None:
    full = frame("y ~ x + z + (x | g)")
    for smaller, columns, effects in (
        ("y ~ x + (x | g)", (2,), 0),
        ("y ~ x + z + (1 | g)", (), 1),
        ("y ~ z + (1 | g)", (1,), 1),
        ("y ~ x + z", (), 2),
    ):
        found = nested_hypothesis(full, frame(smaller), KINDS["lr"])
        assert (found.columns, found.more_effects) == (columns, effects)
    assert nested_hypothesis(full, frame("y ~ x + (x | g)"), KINDS["wald"]).columns == (2,)
    with pytest.raises(jm.DesignError, match="more than coefficients"):
        nested_hypothesis(full, frame("y ~ x + z + (1 | g)"), KINDS["wald"])
    with pytest.raises(jm.DesignError, match=r"no special case of the model: .*fixed effect fb"):
        nested_hypothesis(full, frame("y ~ f + (1 | g)"), KINDS["lr"])


def test_models_of_different_rows_are_not_compared() -> None:
    table = pd.DataFrame({"y": [1.0, 2, 3, 5, 4, 6], "x": [1, 2, np.nan, 2, 1, 0]})
    full, small = build_frame("y ~ x", table), build_frame("y ~ 1", table)
    with pytest.raises(jm.DataError, match="uses 6 rows and the model 5"):
        nested_hypothesis(full, small, KINDS["lr"])


def test_wald_is_z_for_one_coefficient_and_chi_squared_for_several() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(5, 3, 3))
    cov, beta = root @ root.swapaxes(1, 2), rng.normal(size=(5, 3))
    single = wald(evidence(beta, cov), Hypothesis("b", (1,)))
    z = beta[:, 1] / np.sqrt(cov[:, 1, 1])
    np.testing.assert_allclose(single, 2 * stats.norm.sf(np.abs(z)), rtol=1e-10)
    joint = wald(evidence(beta, cov), Hypothesis("a, c", (0, 2)))
    for i in range(5):
        part, kept = cov[i][np.ix_([0, 2], [0, 2])], beta[i, [0, 2]]
        assert joint[i] == pytest.approx(stats.chi2.sf(kept @ np.linalg.solve(part, kept), 2))


def test_models_without_estimates_have_no_p_value() -> None:
    beta, cov = np.array([[1.0, 2], [np.nan, np.nan]]), np.array([np.eye(2), np.full((2, 2), np.nan)])
    found = wald(evidence(beta, cov), Hypothesis("b", (0, 1)))
    assert np.isnan(found).tolist() == [False, True]
    many: Any = SimpleNamespace(llf=np.array([0.0, np.nan]), num_params=np.array([4, 4]))
    fewer: Any = SimpleNamespace(llf=np.array([-3.0, 1.0]), num_params=np.array([3, 3]))
    found = likelihood_ratio(Evidence(many, fewer, None), Hypothesis("b", (1,)))  # type: ignore[arg-type]
    assert found[0] == pytest.approx(stats.chi2.sf(6, 1))
    assert np.isnan(found[1])
    with pytest.raises(ValueError, match="reduced"):
        likelihood_ratio(Evidence(many, None, None), Hypothesis("b", (1,)))  # type: ignore[arg-type]


def test_a_variance_has_the_mixture_and_rounding_is_no_evidence() -> None:
    many: Any = SimpleNamespace(llf=np.array([1000.0, 1000.0, 1000.0]), num_params=np.array([4, 4, 4]))
    llf = np.array([997.0, 1000.0, 1000.0 + 1e-12])
    fewer: Any = SimpleNamespace(llf=llf, num_params=np.array([3, 3, 3]))
    found = likelihood_ratio(Evidence(many, fewer, None), Hypothesis("v", (), None, 1))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, [0.5 * stats.chi2.sf(6, 1), 1.0, 1.0])


@pytest.mark.parametrize(("kind", "ddf"), [("satterthwaite",) * 2, ("kenward-roger",) * 2])
@pytest.mark.parametrize("test", ["Days", ["(Intercept)", "Days"]])
def test_small_sample_tests_are_those_of_each_fit(kind: str, ddf: str, test: Any) -> None:
    fit = sleepstudy()
    Y = np.array(fit.simulate(4, seed=6), dtype=float)
    Y[:40, 3] *= 1.5
    hypothesis = coefficients_hypothesis(fit.frame, test, KINDS[kind])
    found = KINDS[kind].p_values(Evidence(refitter_of(fit).fit(Y), None, fit.state), hypothesis)
    L = np.eye(2)[list(hypothesis.columns)]
    for model in range(4):
        expected = fit.refit(Y[:, model]).fixed_inference(ddf).joint_test(L)
        assert found[model] == pytest.approx(expected.p_value, rel=1e-6)


def test_small_sample_tests_leave_out_what_was_not_fitted_and_what_is_aliased() -> None:
    fit = aliased()
    Y = np.array(fit.simulate(2, seed=1), dtype=float)
    Y[:, 1] = 3.0
    hypothesis = coefficients_hypothesis(fit.frame, "Days", KINDS["satterthwaite"])
    for kind in ("satterthwaite", "kenward-roger"):
        found = KINDS[kind].p_values(Evidence(refitter_of(fit).fit(Y), None, fit.state), hypothesis)
        assert 0 < found[0] < 1
        assert np.isnan(found[1])


def test_a_further_test_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(evidence: Evidence, hypothesis: Hypothesis) -> np.ndarray:
        assert evidence.reduced is None
        assert evidence.reduction.stats.nobs == 16
        return np.zeros(len(evidence.full))

    monkeypatch.setitem(KINDS, "always", KindOfTest("test that rejects", False, always))
    table = jm.study({"g": 8}, size=2, between={"x": [0, 1]})
    stated = {"beta": [0, 0], "random": {"g": 1}, "sigma": 1}
    found = power_analysis.power("y ~ x + (1 | g)", table, stated, kind="always", n=3, seed=1)
    assert found.table["power"].tolist() == [1.0]
    assert "test that rejects" in str(found.summary())

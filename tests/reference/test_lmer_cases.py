"""Every stored lme4 case, with nested and with crossed groups, quantity by quantity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import jaxmixed as jm
from tests.reference import comparisons
from tests.reference import tolerances as tol
from tests.reference.cases import (
    CASE_IDS,
    Fitted,
    covariance_of,
    load_case,
    mixed_quietly,
    our_label,
    varcorr_row,
    with_quantity,
)
from tests.reference.comparisons import aligned, assert_loglik_not_short, assert_within, reference_sds

pytestmark = pytest.mark.reference

CROSSED = tuple(case_id for case_id in CASE_IDS if "crossed" in load_case(case_id).tags)
SLOW = ("insteval_inter.reml",)
"""The quick tests have the same data, and as large a root, in another case."""

MOST_EVALUATIONS = 12
"""Of the likelihood with its exact derivatives, from the start to the checked optimum."""


def cases(ids: list[str] | tuple[str, ...] = CASE_IDS) -> pytest.MarkDecorator:
    """Run the test on these cases, each fitted once."""
    marked = [pytest.param(case_id, marks=[pytest.mark.slow] * (case_id in SLOW)) for case_id in ids]
    return pytest.mark.parametrize("fitted", marked, indirect=True)


@cases()
def test_the_fit_converges_and_warns_exactly_when_it_should(fitted: Fitted) -> None:
    expected: set[type[Warning]] = set()
    if fitted.case.expected["is_singular"]:
        expected.add(jm.SingularFitWarning)
    if fitted.case.has("dropped_columns"):
        expected.add(jm.RankDeficientWarning)
    assert fitted.fit.converged
    assert set(fitted.warnings) == expected
    assert len(fitted.warnings) == len(expected)
    assert fitted.fit.is_singular == fitted.case.expected["is_singular"]


@cases()
def test_few_evaluations_of_the_likelihood_are_enough(fitted: Fitted) -> None:
    # A variance of zero is found twice: another maximum might be higher.
    searches = 2 if fitted.fit.is_singular else 1
    assert 0 < fitted.fit.diagnostics.evaluations <= searches * MOST_EVALUATIONS


@cases()
def test_counts(fitted: Fitted) -> None:
    expected, fit = fitted.case.expected, fitted.fit
    assert fit.nobs == expected["nobs"]
    assert fit.method == fitted.case.method
    assert len(fit.ngroups) == len(expected["ngroups"])
    for label, count in expected["ngroups"].items():
        assert fit.ngroups[our_label(fitted, label)] == count


@cases()
def test_loglik_is_not_short_and_not_off_by_a_constant(fitted: Fitted) -> None:
    comparisons.assert_loglik(fitted)


@cases()
def test_criterion_aic_and_bic_follow_from_the_loglik(fitted: Fitted) -> None:
    comparisons.assert_criteria(fitted)


@cases()
def test_fixed_effects(fitted: Fitted) -> None:
    comparisons.assert_fixed_effects(fitted)


@cases()
def test_covariance_of_fixed_effects(fitted: Fitted) -> None:
    comparisons.assert_covariance_of_fixed_effects(fitted)


@cases()
def test_sigma_and_random_effect_covariances(fitted: Fitted) -> None:
    comparisons.assert_variances(fitted)


@cases()
def test_terms_share_no_covariance_beyond_those_of_lme4(fitted: Fitted) -> None:
    theirs = {
        (our_label(fitted, t["group"]), name) for t in fitted.case.expected["varcorr"] for name in t["names"]
    }
    ours = [(term.group, name) for term in fitted.fit.random_terms for name in term.names]
    assert len(ours) == len(set(ours))
    assert set(ours) == theirs


@cases([i for i in CASE_IDS if not load_case(i).expected["is_singular"]])
def test_theta(fitted: Fitted) -> None:
    expected = fitted.case.expected
    norms: list[float] = []
    for term in expected["varcorr"]:
        q = len(term["names"])
        relative = np.array(term["sd"]) / expected["sigma"]
        norms += [relative[i] for j in range(q) for i in range(j, q)]
    assert_within(fitted.fit.theta, expected["theta"], tol.theta(expected["theta"], norms), "theta")


@cases()
def test_conditional_modes_and_their_sds(fitted: Fitted) -> None:
    comparisons.assert_conditional_modes(fitted)


@cases()
@pytest.mark.parametrize("quantity", ["fitted", "residuals", "predict_population"])
def test_values_for_the_rows(fitted: Fitted, quantity: str) -> None:
    comparisons.assert_values_for_the_rows(fitted, quantity)


@cases()
def test_standard_errors_of_population_predictions(fitted: Fitted) -> None:
    comparisons.assert_errors_of_population_predictions(fitted)


@cases(with_quantity("predict_newdata"))
def test_predictions_for_new_data(fitted: Fitted) -> None:
    block, each = fitted.case.expected["predict_newdata"], tol.fitted(fitted.case.expected["sigma"])
    newdata = pd.DataFrame(block["newdata"])
    population = fitted.fit.predict(newdata, random=False)
    conditional = fitted.fit.predict(newdata, allow_new_levels=True)
    assert_within(population, block["population"], each, "population predictions")
    assert_within(conditional, block["conditional"], each, "conditional predictions")
    with pytest.raises(jm.DataError, match="new"):
        fitted.fit.predict(newdata)


@cases([case_id for case_id in with_quantity("icc") if case_id not in CROSSED])
def test_icc_accumulates_lme4s_shares_from_the_outermost_level_inwards(fitted: Fitted) -> None:
    block, counts = fitted.case.expected["icc"], fitted.case.expected["ngroups"]
    table = fitted.fit.icc()
    outermost_first = sorted(block["by_group"], key=lambda label: counts[label])
    accumulated = 0.0
    assert len(table) == len(outermost_first)
    for label in outermost_first:
        accumulated += block["by_group"][label]
        row = table.loc[our_label(fitted, label)]
        assert_within(row["estimate"], accumulated, tol.icc(), f"icc of {label}")
    assert accumulated == pytest.approx(block["total"], abs=1e-9)
    if block.get("se") is not None:
        assert_within(row["std_error"], block["se"], tol.vc_standard_error(block["se"]), "se of the icc")


@cases(with_quantity("icc"))
def test_shares_of_the_variance_are_lme4s(fitted: Fitted) -> None:
    block = fitted.case.expected["icc"]
    shares = fitted.fit.icc("share")
    assert len(shares) == len(block["by_group"])
    for label, share in block["by_group"].items():
        assert_within(shares.loc[our_label(fitted, label), "estimate"], share, tol.icc(), f"share of {label}")
    assert_within(shares["estimate"].sum(), block["total"], tol.icc(), "sum of the shares")


@cases(CROSSED)
def test_crossed_groups_have_no_correlation_that_contains_another(fitted: Fitted) -> None:
    with pytest.raises(jm.DesignError, match=r"are crossed.*kind='share'"):
        fitted.fit.icc()


@cases(with_quantity("lrt_lm"))
def test_likelihood_ratio_against_the_linear_model(fitted: Fitted) -> None:
    case, block = fitted.case, fitted.case.expected["lrt_lm"]
    used = case.data.loc[fitted.fit.resid.index]  # a missing group drops a row from the mixed model alone
    linear, _ = mixed_quietly(case.formula_without_bars, used, **case.arguments)
    assert linear.llf == pytest.approx(block["logLik_lm"], abs=tol.loglik(block["logLik_lm"]))
    for test in (jm.lrtest(linear, fitted.fit), fitted.fit.lrtest(linear)):
        slack = tol.lr_statistic(block["chisq"], block["logLik_lm"], case.expected["logLik"])
        assert_within(test.statistic, block["chisq"], slack, "LR statistic")
        assert test.statistic >= 0
        assert test.df == block["df"]
        # One variance on its boundary: a half-and-half mixture, for which a statistic of 0 has p = 1.
        p = block["p_chisq"] if block["p_chibar"] is None else block["p_chibar"]
        p = 1.0 if block["p_chibar"] is not None and block["chisq"] == 0 else p
        assert_within(test.p_value, p, tol.p_value(p), "p value")


@cases(with_quantity("lrt_nested"))
def test_likelihood_ratio_against_nested_models(fitted: Fitted) -> None:
    case = fitted.case
    for block in case.expected["lrt_nested"]:
        smaller, _ = mixed_quietly(block["formula0"], case.data, **case.arguments)
        assert_loglik_not_short(smaller.llf, block["logLik0"])
        test = jm.lrtest(smaller, fitted.fit)
        slack = tol.lr_statistic(block["chisq"], block["logLik0"], case.expected["logLik"])
        assert_within(test.statistic, block["chisq"], slack, f"LR statistic against {block['formula0']}")
        assert test.df == block["df"]


@cases(with_quantity("vc_se"))
def test_standard_errors_and_limits_of_variance_parameters(fitted: Fitted) -> None:
    for entry in fitted.case.expected["vc_se"]["natural"]:
        comparisons.assert_variance_parameter(fitted, entry)


@cases(with_quantity("vc_se"))
def test_varcorr_has_one_row_per_parameter_with_the_residual_last(fitted: Fitted) -> None:
    natural = [e for e in fitted.case.expected["vc_se"]["natural"] if e["type"] != "corr"]
    varcorr = fitted.fit.varcorr
    assert len(varcorr) == len(natural)
    assert varcorr["group"].iloc[-1] == "Residual"
    variances = varcorr[varcorr["effect2"].isna()]
    assert_allclose(variances["sd_or_corr"] ** 2, variances["estimate"], rtol=1e-12)


@cases([i for i in CASE_IDS if load_case(i).expected["is_singular"]])
def test_a_variance_on_the_boundary_is_exactly_zero_and_has_no_standard_error(fitted: Fitted) -> None:
    for (group, name), sd in reference_sds(fitted).items():
        if sd == 0:
            row = varcorr_row(fitted.fit.varcorr, our_label(fitted, group), name, None)
            assert row["estimate"] == 0.0
            assert np.isnan(row["std_error"])
    assert np.isfinite(fitted.fit.bse).all()
    assert np.any(np.asarray(fitted.fit.theta) == 0.0)


@cases()
def test_both_optima_are_exact_to_the_gate_for_a_release(fitted: Fitted) -> None:
    expected = fitted.case.expected
    names, est, se = aligned(fitted)
    assert fitted.fit.llf == pytest.approx(expected["logLik"], rel=tol.GATE_LOGLIK)
    scale = np.maximum(np.abs(est), se)
    assert_within(fitted.fit.params[names], est, tol.GATE_FIXEF * scale, "coefficients")
    assert fitted.fit.sigma**2 == pytest.approx(expected["sigma"] ** 2, rel=tol.GATE_VARIANCE)
    for (group, name), sd in reference_sds(fitted).items():
        variance = covariance_of(fitted, group, [name])[0, 0]
        assert variance == pytest.approx(sd**2, rel=tol.GATE_VARIANCE), f"{name} | {group}"


@pytest.mark.slow
def test_the_restricted_criterion_of_three_crossed_factors_of_the_insteval_data() -> None:
    # lme4 1.1-31: 237733.834128, its optimiser's steps down to 1e-9.
    data = load_case("insteval.ml").data
    fit, categories = mixed_quietly("y ~ service + (1 | s) + (1 | d) + (1 | dept)", data, method="reml")
    assert categories == ()
    assert f"{fit.deviance:.3f}" == "237733.834"
    assert fit.diagnostics.evaluations <= MOST_EVALUATIONS
    assert_allclose(fit.theta, [0.2764958825, 0.4373650247, 0.0706063751], atol=2e-6)
    assert fit.sigma == pytest.approx(1.17749750634, rel=1e-7)

"""Comparisons of a fit with the results that a case stores, quantity by quantity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

from tests.reference import tolerances as tol
from tests.reference.cases import Fitted, covariance_of, our_label, our_levels, varcorr_row


def assert_within(actual: object, expected: object, tolerance: object, what: str) -> None:
    """Compare elementwise with an absolute tolerance that may differ by element."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    assert actual.shape == expected.shape, what
    excess = np.abs(actual - expected) / np.maximum(np.asarray(tolerance, dtype=float), 1e-300)
    same = actual == expected
    worst = float(np.max(np.where(same, 0.0, excess), initial=0.0))
    assert worst <= 1.0, f"{what}: {worst:.3g} tolerances apart; {actual.tolist()} != {expected.tolist()}"


def assert_loglik_not_short(actual: float, expected: float) -> None:
    assert actual >= expected - tol.loglik(expected), f"log-likelihood {actual} falls short of {expected}"


def aligned(fitted: Fitted) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, estimates and standard errors of the coefficients that R reports."""
    block = fitted.case.expected["fixef"]
    return block["names"], np.array(block["est"]), np.array(block["se"])


def reference_sds(fitted: Fitted) -> dict[tuple[str, str], float]:
    """Standard deviation of every random effect: (lme4's group, effect) -> sd."""
    terms = fitted.case.expected["varcorr"]
    return {(t["group"], name): sd for t in terms for name, sd in zip(t["names"], t["sd"], strict=True)}


def estimates_agree(fitted: Fitted) -> bool:
    names, est, se = aligned(fitted)
    expected = fitted.case.expected
    same_beta = np.all(np.abs(fitted.fit.params[names] - est) <= tol.fixef(se))
    same_sigma = abs(fitted.fit.sigma - expected["sigma"]) <= tol.sigma(expected["sigma"])
    same_sds = all(
        abs(covariance_of(fitted, group, [name])[0, 0] - sd**2) <= tol.variance(sd, expected["sigma"])
        for (group, name), sd in reference_sds(fitted).items()
    )
    return bool(same_beta and same_sigma and same_sds)


def assert_loglik(fitted: Fitted) -> None:
    """Not short; and higher only at other estimates."""
    reference = fitted.case.expected["logLik"]
    assert_loglik_not_short(fitted.fit.llf, reference)
    if fitted.fit.llf > reference + tol.loglik(reference):
        assert not estimates_agree(fitted), "same estimates, other log-likelihood: a constant is wrong"


def assert_criteria(fitted: Fitted) -> None:
    """Criterion, AIC and BIC follow from the log-likelihood, and are not worse."""
    expected, fit = fitted.case.expected, fitted.fit
    criterion, npar = -2 * fit.llf, expected["npar"]
    assert fit.deviance == pytest.approx(criterion, rel=1e-12)
    assert fit.aic == pytest.approx(criterion + 2 * npar, rel=1e-12)
    assert fit.bic == pytest.approx(criterion + np.log(expected["nobs"]) * npar, rel=1e-12)
    slack = 2 * tol.loglik(expected["logLik"])
    assert fit.deviance <= expected["criterion"] + slack
    assert fit.aic <= expected["AIC"] + slack
    assert fit.bic <= expected["BIC"] + slack


def assert_fixed_effects(fitted: Fitted) -> None:
    """Names, estimates and standard errors of the coefficients."""
    names, est, se = aligned(fitted)
    dropped = fitted.case.expected.get("dropped_columns") or []
    params, bse = fitted.fit.params, fitted.fit.bse
    assert sorted(params.index) == sorted([*names, *dropped])
    assert [name for name in params.index if name not in dropped] == names
    assert_within(params[names], est, tol.fixef(se), "coefficients")
    assert_within(bse[names], se, tol.standard_error(se), "standard errors")
    assert params[dropped].isna().all()
    assert bse[dropped].isna().all()


def assert_covariance_of_fixed_effects(fitted: Fitted) -> None:
    """The whole matrix, and its names."""
    names, _, se = aligned(fitted)
    cov = fitted.fit.cov_params()
    assert list(cov.index) == list(cov.columns) == list(fitted.fit.params.index)
    assert_within(cov.loc[names, names], fitted.case.expected["vcov"], tol.vcov(se), "vcov")


def assert_variances(fitted: Fitted) -> None:
    """Sigma, and variances and correlations of the random effects."""
    expected = fitted.case.expected
    sigma = expected["sigma"]
    assert_within(fitted.fit.sigma, sigma, tol.sigma(sigma), "sigma")
    for term in expected["varcorr"]:
        cov = covariance_of(fitted, term["group"], term["names"])
        for i, sd in enumerate(term["sd"]):
            what = f"variance of {term['names'][i]} | {term['group']}"
            assert_within(cov[i, i], term["cov"][i][i], tol.variance(sd, sigma), what)
            for j in range(i):
                corr = cov[i, j] / np.sqrt(cov[i, i] * cov[j, j])
                assert_within(corr, term["corr"][i][j], tol.correlation(), f"correlation in {term['group']}")


def assert_conditional_modes(fitted: Fitted) -> None:
    """Conditional modes and their standard deviations, of ten levels; sums of squares, of all."""
    expected = fitted.case.expected
    sigma, singular = expected["sigma"], expected["is_singular"]
    modes, sds = fitted.fit.ranef(), fitted.fit.ranef_se(beta="known")
    all_sds = reference_sds(fitted)
    for block in expected["ranef"]:
        label = our_label(fitted, block["group"])
        levels = our_levels(block["group"], label, block["levels"])
        ours = modes[label].set_axis(modes[label].index.astype(str))
        ours_sd = sds[label].set_axis(sds[label].index.astype(str))
        sd = np.array([all_sds[block["group"], name] for name in block["terms"]])
        assert len(ours) == block["nlevels"]
        assert ours.index.is_unique
        each = tol.random_effect(sd, sigma, singular)
        assert_within(ours.loc[levels, block["terms"]], block["values"], each, f"modes of {label}")
        condsd = tol.conditional_sd(sd, sigma, singular)
        assert_within(ours_sd.loc[levels, block["terms"]], block["condsd"], condsd, f"condsd of {label}")
        for name, sumsq, one in zip(block["terms"], block["sumsq"], each, strict=True):
            slack = tol.sum_of_squares(float(one), sumsq, len(ours))
            assert_within((ours[name] ** 2).sum(), sumsq, slack, f"sum of squares of {name} | {label}")


def assert_errors_of_population_predictions(fitted: Fitted) -> None:
    """Standard errors of the mean of the first rows."""
    block = fitted.case.expected["predict_population"]
    table = fitted.fit.predictions(random=False)
    expected = np.array(block["se_linear"])
    ours = table.loc[block["rows"], "std_error"]
    assert_within(ours, expected, tol.standard_error(expected), "standard errors of predictions")


def assert_values_for_the_rows(fitted: Fitted, quantity: str) -> None:
    """Fitted values, residuals or population predictions: of the first rows, and the sum of all squares."""
    block, fit = fitted.case.expected[quantity], fitted.fit
    each = tol.fitted(fitted.case.expected["sigma"])
    if quantity == "fitted":
        ours = fit.fittedvalues
        assert_allclose(fit.predict(), ours, rtol=1e-12)
    elif quantity == "residuals":
        ours = fit.resid
        assert_allclose(fit.residuals("response"), ours, rtol=1e-12)
    else:
        ours = fit.predict(random=False)
    assert isinstance(ours, pd.Series)
    assert len(ours) == block["n"]
    assert_within(ours.loc[block["rows"]], block["values"], each, quantity)
    slack = tol.sum_of_squares(each, block["sumsq"], block["n"])
    assert_within((ours**2).sum(), block["sumsq"], slack, f"sum of squares of {quantity}")


def assert_variance_parameter(fitted: Fitted, entry: dict[str, Any]) -> None:
    """Estimate, standard error and limits of a variance, a covariance or a correlation in `varcorr`."""
    sds, varcorr = reference_sds(fitted), fitted.fit.varcorr
    kind, est, se = entry["type"], entry["est"], entry["se"]
    group = entry["group"] if kind == "residual_var" else our_label(fitted, entry["group"])
    row = varcorr_row(varcorr, group, entry["name1"], entry["name2"])
    what = f"{kind} of {entry['name1']}, {entry['name2']} | {group}"
    prefix = "sd_or_corr" if kind == "corr" else "estimate"
    column = {
        name: f"sd_or_corr_{name}" if kind == "corr" else name
        for name in ("std_error", "conf_low", "conf_high")
    }
    assert_within(row[column["std_error"]], se, tol.vc_standard_error(se), f"se of {what}")
    limits = np.array([row[column["conf_low"]], row[column["conf_high"]]], dtype=float)
    expected = np.array([entry["lower"], entry["upper"]])
    if kind in ("var", "residual_var"):
        assert_within(row[prefix], est, 1e-3 * est, what)
        slack = [tol.variance_limit(limit, est, se) for limit in expected]
    elif kind == "cov":
        sd1, sd2 = (sds[entry["group"], entry[key]] for key in ("name1", "name2"))
        assert_within(row[prefix], est, tol.covariance(sd1, sd2, est), what)
        slack = [tol.covariance_limit(sd1, sd2, est, se)] * 2
    else:
        assert_within(row[prefix], est, tol.correlation(), what)
        limits, expected = np.arctanh(limits), np.arctanh(expected)
        slack = [tol.atanh_correlation_limit(est, se)] * 2
    assert_within(limits, expected, slack, f"limits of {what}")

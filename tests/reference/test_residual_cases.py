"""Every stored case of nlme's gls and lme with structured residuals, quantity by quantity.

nlme stops early in none of them: the stored optima, polished on a dense likelihood, are less than 1e-9 higher
than what nlme reports. Its standard errors by maximum likelihood are larger by a known factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import jaxmixed as jm
from tests.reference import comparisons, residual_cases
from tests.reference import tolerances as tol
from tests.reference.cases import Case, Fitted, mixed_quietly, our_label
from tests.reference.comparisons import assert_within
from tests.reference.residual_cases import CASE_IDS, is_structured, load, natural

pytestmark = pytest.mark.reference

QUICK = (
    "gls_orthodont_mmrm_missing.reml",
    "gls_ovary_ar1.reml",
    "gls_sleepstudy_expnug.reml",
    "lme_orthodont_slope_varident.reml",
    "lme_ovary_arma11.reml",
    "lme_pastes_nested.reml",
)
"""Every structure is a program to compile: these have each kind of family, of pattern and of engine once."""

STRUCTURED = tuple(case_id for case_id in CASE_IDS if is_structured(load(case_id)))
RANDOM = tuple(case_id for case_id in CASE_IDS if load(case_id).spec["random"])
ROBUST = 1e-6
"""Cluster-robust errors, relative: theirs are at nlme's own optimum."""

UNBOUNDED = ("range", "phi", "theta")
"""Beginnings of names of parameters that tolerances are relative for."""


@pytest.fixture
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """The fit of the case named by the test's parameter; each case is fitted once per process."""
    return residual_cases.fit(request.param)


def cases(ids: tuple[str, ...] = CASE_IDS) -> pytest.MarkDecorator:
    """Run the test on these cases."""
    marked = [pytest.param(case_id, marks=[pytest.mark.slow] * (case_id not in QUICK)) for case_id in ids]
    return pytest.mark.parametrize("fitted", marked, indirect=True)


def having(quantity: str, ids: tuple[str, ...] = CASE_IDS) -> tuple[str, ...]:
    return tuple(case_id for case_id in ids if load(case_id).has(quantity))


def numbers(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


# The oracle


@pytest.mark.parametrize("case_id", CASE_IDS)
def test_the_dense_oracle_has_nlmes_likelihood_at_nlmes_estimates(case_id: str) -> None:
    case = load(case_id)
    sigma = case.expected["sigma"]
    oracle = residual_cases.dense(case, natural(case), sigma)
    found = oracle.loglik(residual_cases.stored_covariances(case), sigma, case.method)
    assert found == pytest.approx(case.expected["logLik"], rel=1e-12)


# Convergence, likelihood, fixed effects, random effects, rows


@cases()
def test_the_fit_converges_without_a_warning_in_few_evaluations(fitted: Fitted) -> None:
    assert fitted.fit.converged
    assert fitted.warnings == ()
    assert not fitted.fit.is_singular
    assert 0 < fitted.fit.diagnostics.evaluations <= 12


@cases()
def test_counts(fitted: Fitted) -> None:
    expected, fit = fitted.case.expected, fitted.fit
    assert fit.nobs == expected["nobs"]
    assert fit.num_params == expected["npar"]
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
def test_nlme_prints_errors_that_are_larger_by_maximum_likelihood(fitted: Fitted) -> None:
    stored, n, p = fitted.case.expected["fixef"]["se_nlme"], fitted.fit.nobs, len(fitted.fit.params)
    factor = np.sqrt(n / (n - p)) if fitted.case.method == "ml" else 1.0
    assert_within(fitted.fit.bse * factor, stored, tol.standard_error(stored), "nlme's standard errors")


@cases()
def test_covariance_of_fixed_effects(fitted: Fitted) -> None:
    comparisons.assert_covariance_of_fixed_effects(fitted)


@cases()
def test_sigma_and_random_effect_covariances(fitted: Fitted) -> None:
    comparisons.assert_variances(fitted)


@cases(RANDOM)
def test_conditional_modes_and_their_sds(fitted: Fitted) -> None:
    comparisons.assert_conditional_modes(fitted)


@cases()
@pytest.mark.parametrize("quantity", ["fitted", "residuals", "predict_population"])
def test_values_for_the_rows(fitted: Fitted, quantity: str) -> None:
    comparisons.assert_values_for_the_rows(fitted, quantity)


@cases()
def test_standard_errors_of_population_predictions(fitted: Fitted) -> None:
    comparisons.assert_errors_of_population_predictions(fitted)


# Parameters of the residuals


def allowed(name: str, value: float) -> float:
    """Tolerance of a parameter: relative for sds and unbounded ones, absolute for correlations."""
    if name.startswith("sd"):
        return 1e-3 * value
    return 2e-3 * abs(value) if name.startswith(UNBOUNDED) else tol.correlation()


@cases(STRUCTURED)
def test_parameters_of_the_residuals(fitted: Fitted) -> None:
    expected, found = natural(fitted.case), fitted.fit.residual_parameters
    assert set(found.index) == set(expected)
    assert found.index.is_unique
    for name, value in expected.items():
        assert_within(found[name], value, allowed(name, value), name)


@cases(STRUCTURED)
def test_the_likelihood_is_that_of_the_dense_oracle_at_the_reported_parameters(fitted: Fitted) -> None:
    case, fit = fitted.case, fitted.fit
    parameters = fit.residual_parameters
    covs = tuple(term.cov.to_numpy() for term in fit.random_terms)
    oracle = residual_cases.dense(case, parameters.to_dict(), fit.sigma)
    assert fit.llf == pytest.approx(oracle.loglik(covs, fit.sigma, case.method), rel=1e-10)
    np.testing.assert_allclose(fit.params, oracle.gls(oracle.covariance(covs, fit.sigma)).beta, rtol=1e-8)


def our_name(case: Case, entry: dict[str, Any]) -> str | None:
    """Row of `residual_table` that a row of a case's table of standard errors is in."""
    first, second = entry["name1"], entry["name2"]
    if entry["type"] == "rescorr":
        renamed = residual_cases.RENAMED.get(case.spec["residual"]["structure"], {})
        return f"corr[{first},{second}]" if second else renamed.get(first, first)
    if entry["type"] == "residual_var" and (by_level := case.expected["residual"].get("variance")):
        return f"sd[{first or by_level['levels'][0]}]"
    return None


def as_ours(entry: dict[str, Any]) -> tuple[float, float, list[float | None]]:
    """Estimate, standard error and limits: of standard deviations, not of variances."""
    est, se, limits = entry["est"], entry["se"], [entry["lower"], entry["upper"]]
    if entry["type"] == "residual_var":
        return np.sqrt(est), se / (2 * np.sqrt(est)), [np.sqrt(limit) for limit in limits]
    return est, se, limits


@cases(STRUCTURED)
def test_standard_errors_and_limits_of_variance_parameters(fitted: Fitted) -> None:
    case, table = fitted.case, fitted.fit.residual_table()
    compared = []
    for entry in case.expected["vc_se"]["natural"]:
        if entry["type"] in ("var", "cov", "corr") or (entry["type"], entry["name1"]) == (
            "residual_var",
            None,
        ):
            comparisons.assert_variance_parameter(fitted, entry)
        name = our_name(case, entry)
        if name is None:
            continue
        compared.append(name)
        est, se, limits = as_ours(entry)
        assert_within(table.loc[name, "estimate"], est, allowed(name, est), name)
        assert_within(table.loc[name, "std_error"], se, tol.vc_standard_error(se), f"se of {name}")
        slack = allowed(name, est) + tol.NORMAL_975 * tol.vc_standard_error(se)
        for column, limit in zip(("conf_low", "conf_high"), limits, strict=True):
            if limit is not None:
                assert_within(table.loc[name, column], limit, slack, f"{column} of {name}")
    ours_alone = {"rho": "range", "range": "rho"}  # the one is a function of the other: rho = exp(-1 / range)
    assert all(ours_alone.get(name) in compared for name in set(table.index) - set(compared))
    assert list(table.index) == list(fitted.fit.residual_parameters.index)


# Inference


@cases(having("satterthwaite", STRUCTURED))
def test_satterthwaite(fitted: Fitted) -> None:
    expected = fitted.case.expected["satterthwaite"]
    table = fitted.fit.coef_table("satterthwaite")
    np.testing.assert_allclose(table["df"], numbers(expected["df"]), rtol=tol.DF)
    np.testing.assert_allclose(table["statistic"], numbers(expected["t"]), rtol=tol.STATISTIC)
    np.testing.assert_allclose(table["p_value"], numbers(expected["p"]), rtol=tol.P_VALUE, atol=tol.P_FLOOR)


@cases(having("robust"))
def test_cluster_robust_errors_are_clubsandwichs(fitted: Fitted) -> None:
    # By maximum likelihood its sandwich has nlme's inflated covariance on both sides of the residuals'.
    expected, n, p = fitted.case.expected["robust"], fitted.fit.nobs, len(fitted.fit.params)
    factor = n / (n - p) if fitted.case.method == "ml" else 1.0
    for kind in ("CR0", "CR1", "CR2"):
        found = fitted.fit.robust(kind, cluster=expected["cluster"])
        assert found.num_clusters == expected["nclusters"]
        se, cov = numbers(expected[kind]["se"]) / factor, numbers(expected[kind]["vcov"]) / factor**2
        np.testing.assert_allclose(found.coef_table()["std_error"], se, rtol=ROBUST)
        assert (np.abs(found.cov_params() - cov) <= ROBUST * np.outer(se, se)).all(axis=None)


@cases(having("lrt_independent_residual"))
def test_likelihood_ratio_against_independent_residuals(fitted: Fitted) -> None:
    case, block = fitted.case, fitted.case.expected["lrt_independent_residual"]
    independent, _ = mixed_quietly(case.formula, case.data, method=case.method)
    comparisons.assert_loglik_not_short(independent.llf, block["logLik0"])
    test = jm.lrtest(independent, fitted.fit)
    slack = tol.lr_statistic(block["chisq"], block["logLik0"], case.expected["logLik"])
    assert_within(test.statistic, block["chisq"], slack, "LR statistic")
    assert test.df == block["df"]
    if not _at_its_limit(case):
        assert_within(test.p_value, block["p"], tol.p_value(block["p"]), "p value")


def _at_its_limit(case: Case) -> bool:
    """Whether independence is a limit of the structure: a range of zero, whose p value is not nlme's."""
    return case.spec["residual"]["structure"] in ("car1", "exponential", "exponential_nugget")


@cases(having("nlme_df", STRUCTURED))
def test_between_within_degrees_of_freedom_are_nlmes(fitted: Fitted) -> None:
    # nlme counts the intercept as a column within the innermost groups.
    df = fitted.fit.coef_table("between-within")["df"]
    assert df.drop("(Intercept)").tolist() == fitted.case.expected["nlme_df"][1:]


@cases()
def test_both_optima_are_exact_to_the_gate_for_a_release(fitted: Fitted) -> None:
    case, fit = fitted.case, fitted.fit
    expected = case.expected
    names, est, se = comparisons.aligned(fitted)
    assert fit.llf == pytest.approx(expected["logLik"], rel=tol.GATE_LOGLIK)
    scale = np.maximum(np.abs(est), se)
    assert_within(fit.params[names], est, tol.GATE_FIXEF * scale, "coefficients")
    assert fit.sigma**2 == pytest.approx(expected["sigma"] ** 2, rel=tol.GATE_VARIANCE)
    if is_structured(case):
        for name, value in natural(case).items():
            assert fit.residual_parameters[name] == pytest.approx(value, rel=tol.GATE_VARIANCE), name

"""Bootstraps: replicates equal single fits; closed forms; lme4's intervals; what fails is counted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed import bootstrap as module
from jaxmixed import intervals, refits, resampling, schedule
from jaxmixed.bootstrap import INTERVALS, KINDS, Bootstrap
from jaxmixed.crossproducts import Design
from jaxmixed.draws import Draws
from jaxmixed.layout import Grouping
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.parameter_values import all_values, variance_errors, variance_values
from jaxmixed.resampling import LEVELS_STREAM, ROWS_STREAM
from tests.reference import refits as stored
from tests.support.fits import quietly, sleepstudy
from tests.support.simulated import one_way

LOGLIK = 1e-8
"""Log-likelihoods of two routes to one optimum."""

PARAMETERS = 1e-5
"""Parameters of two routes to one optimum, in units of their size: the root of what the criterion has."""

MONTE_CARLO = 4.0
"""Combined standard errors that two simulated quantities may be apart."""

SMALLEST_P = 1e-4
"""A test of a fixed seed against a known distribution fails below this."""

SD, CORR = "sd((Intercept) | Subject)", "corr((Intercept), Days | Subject)"


@cache
def parametric(n: int = 100) -> Bootstrap:
    """A bootstrap of the sleep study."""
    return sleepstudy().bootstrap(n, seed=7)


def nested() -> pd.DataFrame:
    """Three levels: 8 schools, 3 classes in each, of 3 to 5 pupils, whose rows are shuffled."""
    rng = np.random.default_rng(5)
    classes = np.repeat(np.arange(24), 3 + np.arange(24) % 3)
    x = rng.normal(size=len(classes))
    y = 1 + x + rng.normal(size=8)[classes // 3] + rng.normal(size=24)[classes] + rng.normal(size=len(x))
    data = pd.DataFrame(
        {"y": y, "x": x, "school": classes // 3, "group": classes, "w": rng.uniform(1, 3, len(x))}
    )
    return data.sample(frac=1, random_state=3, ignore_index=True)


THREE_LEVELS = "y ~ x + (x | school) + (1 | school:group)"


def weighted(data: pd.DataFrame) -> jm.MixedResults:
    """A fit of three levels with weights and an offset."""
    return quietly(THREE_LEVELS, data.assign(o=3 * data["x"]), weights="w", offset="o")


@cache
def three_levels() -> jm.MixedResults:
    """That of the nested data."""
    return weighted(nested())


def assert_same_fit(boot: Bootstrap, row: int, other: jm.MixedResults) -> None:
    assert boot.llf.iloc[row] == pytest.approx(other.llf, abs=LOGLIK)
    np.testing.assert_allclose(boot.params.iloc[row], other.params, rtol=PARAMETERS)
    assert boot.sigma.iloc[row] == pytest.approx(other.sigma, rel=PARAMETERS)
    expected = other.varcorr["estimate"].to_numpy()
    np.testing.assert_allclose(
        boot.varcorr.iloc[row], expected, rtol=PARAMETERS, atol=PARAMETERS * expected.max()
    )


# Replicates


def test_parametric_replicates_are_fits_to_the_simulated_responses_of_the_same_seed() -> None:
    boot, model = parametric(), sleepstudy()
    responses = model.simulate(100, seed=7)
    for row in (0, 41, 99):
        data = jm.datasets.load("sleepstudy").assign(Reaction=responses.iloc[:, row])
        assert_same_fit(boot, row, quietly("Reaction ~ Days + (Days | Subject)", data))


@pytest.mark.slow
def test_offsets_and_weights_enter_every_replicate() -> None:
    model = three_levels()
    boot = model.bootstrap(20, seed=1)
    response = model.simulate(20, seed=1)
    for row in (0, 19):
        assert_same_fit(boot, row, weighted(nested().assign(y=response.iloc[:, row])))


def test_cluster_replicates_are_fits_to_whole_groups_that_become_new_groups() -> None:
    data = nested()
    boot = quietly_bootstrap(three_levels(), 20, "cluster", 4)
    drawn = Draws(4, LEVELS_STREAM).indices(0, 20, 8)
    assert any(len(np.unique(groups)) < 8 for groups in drawn.T)
    for row in (0, 11):
        parts = [data[data["school"] == school].assign(school=i) for i, school in enumerate(drawn[:, row])]
        assert_same_fit(boot, row, weighted(pd.concat(parts, ignore_index=True)))


def test_case_replicates_are_fits_to_rows_with_their_groups() -> None:
    data = nested()
    boot = quietly_bootstrap(three_levels(), 20, "case", 4)
    drawn = Draws(4, ROWS_STREAM).indices(0, 20, len(data))
    for row in (0, 11):
        assert_same_fit(boot, row, weighted(data.iloc[drawn[:, row]].reset_index(drop=True)))


@pytest.mark.slow
def test_cases_of_crossed_groupings_are_drawn() -> None:
    data = nested().assign(rater=lambda d: np.arange(len(d)) % 4)
    formula = "y ~ x + (1 | school) + (1 | rater)"
    boot = quietly_bootstrap(quietly(formula, data), 3, "case", 2)
    drawn = Draws(2, ROWS_STREAM).indices(0, 3, len(data))
    assert_same_fit(boot, 1, quietly(formula, data.iloc[drawn[:, 1]].reset_index(drop=True)))


def quietly_bootstrap(model: jm.MixedResults, n: int, kind: module.BootstrapKind, seed: int) -> Bootstrap:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.ConvergenceWarning)
        return model.bootstrap(n, kind, seed)


@pytest.mark.slow
def test_the_jackknife_leaves_out_each_group_of_the_coarsest_grouping() -> None:
    data = nested()
    count, designs = resampling.leave_one_out(three_levels())
    found = resampling.by_designs(three_levels(), designs)(0, count)
    assert count == 8
    for school in (0, 7):
        assert found.llf[school] == pytest.approx(weighted(data[data["school"] != school]).llf, abs=LOGLIK)


# Reproducibility


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("cluster", "case"))) for kind in KINDS]
)
def test_replicates_do_not_depend_on_devices_blocks_or_their_number(
    kind: module.BootstrapKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sleepstudy()
    whole = all_values(model.bootstrap(100, kind, 3, devices=1).replicates)
    monkeypatch.setattr(schedule, "BLOCK", 30)
    monkeypatch.setattr(schedule, "SMALLEST_BLOCK", 25)
    shared = all_values(model.bootstrap(100, kind, 3, devices=2).replicates)
    fewer = all_values(model.bootstrap(45, kind, 3, devices=1).replicates)
    np.testing.assert_allclose(shared, whole, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fewer, whole[:45], rtol=1e-10, atol=1e-12)


def test_what_is_too_little_to_share_every_process_does_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "assemble", lambda devices, mesh: schedule.Crew((None,), (1,), 2))
    boot = sleepstudy().bootstrap(100, seed=7)
    np.testing.assert_allclose(boot.params, parametric().params, rtol=1e-9)


def test_a_fresh_seed_is_told_and_repeats_the_result() -> None:
    model = sleepstudy()
    first = model.bootstrap(20)
    again, other = model.bootstrap(20, seed=first.seed), model.bootstrap(20)
    np.testing.assert_array_equal(first.params, again.params)
    assert not np.array_equal(first.params, other.params)


# Distributions


@pytest.mark.reference
@pytest.mark.parametrize("method", ["reml", pytest.param("ml", marks=pytest.mark.slow)])
def test_percentile_intervals_of_the_sleep_study_agree_with_lme4(method: str) -> None:
    reference = stored.bootstrap()[method]
    boot = sleepstudy(method=method).bootstrap(10_000, seed=1)
    limits = boot.conf_int()
    names = {"sd (Intercept)": SD, "sd Days": "sd(Days | Subject)", "corr": CORR, "sigma": "sd(Residual)"}
    for name, theirs in reference["parameters"].items():
        own = names.get(name, name)
        at = dict(zip(theirs["levels"], theirs["quantile_se"], strict=True))
        # Both have the Monte-Carlo error of 10,000 replicates.
        assert abs(limits.loc[own, "conf_low"] - theirs["lower"]) < MONTE_CARLO * 2**0.5 * at[0.025], name
        assert abs(limits.loc[own, "conf_high"] - theirs["upper"]) < MONTE_CARLO * 2**0.5 * at[0.975], name
        spread = theirs["sd"] / 100
        mean = boot.table().loc[own, ["estimate", "bias"]].sum()
        assert abs(mean - theirs["mean"]) < MONTE_CARLO * 2**0.5 * spread, name
    share, error = reference["singular_share"], reference["singular_share_se"]
    assert abs(boot.n_singular / 10_000 - share) < MONTE_CARLO * 2**0.5 * error
    assert (boot.n_ok, boot.n_failed) == (10_000, 0)


def test_mean_squares_of_balanced_data_have_their_chi_squared_distributions() -> None:
    balanced = one_way(4.0, groups=12, size=6)
    model = quietly("y ~ 1 + (1 | g)", balanced.data)
    boot = model.bootstrap(1000, seed=5)
    assert boot.n_singular == 0  # so the estimates are functions of the mean squares
    within = boot.varcorr["var(Residual)"]
    between = within + 6 * boot.varcorr["var((Intercept) | g)"]
    assert stats.kstest(within * 60 / balanced.within, stats.chi2(60).cdf).pvalue > SMALLEST_P
    assert stats.kstest(between * 11 / balanced.between, stats.chi2(11).cdf).pvalue > SMALLEST_P
    mean = (boot.params["(Intercept)"] - model.params["(Intercept)"]) / np.sqrt(balanced.between / 72)
    assert stats.kstest(mean, stats.norm.cdf).pvalue > SMALLEST_P


def test_studentized_limits_of_a_linear_model_are_those_of_the_t_distribution() -> None:
    rng = np.random.default_rng(2)
    data = {"y": rng.normal(size=9), "x": np.arange(9.0)}
    model = quietly("y ~ x", data)
    n = 4000
    limits = model.bootstrap(n, seed=1).conf_int(method="studentized").loc["x"]
    t = stats.t(7)
    error = np.sqrt(0.025 * 0.975 / n) / t.pdf(t.ppf(0.975))  # of a quantile
    for found, expected in ((limits["conf_low"], t.ppf(0.025)), (limits["conf_high"], t.ppf(0.975))):
        assert abs((found - model.params["x"]) / model.bse["x"] - expected) < MONTE_CARLO * error


def test_residual_replicates_have_the_covariance_of_the_model() -> None:
    data, model, count = nested(), three_levels(), 20_000
    Y = resampling.residual(model, 3)(0, count)
    assert len(data) == 96
    effects = {term.group: term.cov.to_numpy() for term in model.random_terms}
    blocks = {"school": np.column_stack([np.ones(96), data["x"]]), "school:group": np.ones((96, 1))}
    V = np.diag(model.sigma**2 / data["w"].to_numpy())
    for group, Z in blocks.items():
        codes = data[group.split(":")[-1]].to_numpy()
        V += np.where(codes[:, None] == codes, Z @ effects[group] @ Z.T, 0.0)
    scale = np.sqrt(np.diagonal(V))
    fixed = model.predict(random=False).to_numpy() - 3 * data["x"]  # without the offset
    assert np.abs((Y.mean(axis=1) - fixed) / scale).max() < (MONTE_CARLO + 1) / np.sqrt(count)  # of 96 rows
    # Residuals and effects of a few groups are no normal variables: their products vary more.
    assert np.abs((np.cov(Y) - V) / np.outer(scale, scale)).max() < 10 / np.sqrt(count)


def test_reflated_effects_have_the_estimated_covariance() -> None:
    rng = np.random.default_rng(1)
    modes = rng.normal(size=(20, 3)) * [1.0, 1e-6, 1e6]
    root = np.tril(rng.normal(size=(3, 3)))
    cov = root @ root.T * np.outer([1.0, 1e-6, 1e6], [1.0, 1e-6, 1e6])
    found = resampling.reflated(modes, cov)
    scale = np.sqrt(np.diagonal(cov))
    np.testing.assert_allclose(found.mean(axis=0) / scale, 0, atol=1e-12)
    np.testing.assert_allclose(
        found.T @ found / 20 / np.outer(scale, scale), cov / np.outer(scale, scale), atol=1e-10
    )


def test_reflated_effects_of_singular_fits_stay_in_their_range() -> None:
    rng = np.random.default_rng(1)
    one = rng.normal(size=(10, 1))
    perfect = np.array([[4.0, 2.0], [2.0, 1.0]])  # correlation 1
    found = resampling.reflated(one * [2.0, 1.0], perfect)
    np.testing.assert_allclose(found.T @ found / 10, perfect, atol=1e-10)
    zero = resampling.reflated(one * [0.0, 1.0], np.diag([0.0, 9.0]))
    np.testing.assert_allclose(zero.T @ zero / 10, np.diag([0.0, 9.0]), atol=1e-10)
    assert not resampling.reflated(np.zeros((5, 2)), np.zeros((2, 2))).any()
    few = resampling.reflated(rng.normal(size=(2, 3)), np.eye(3))  # two levels span one direction
    assert np.isfinite(few).all()
    assert np.linalg.matrix_rank(few) == 1


# Limits


def test_percentile_basic_and_normal_limits_are_their_formulas() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=999)
    ordered = np.sort(values)
    low, high = intervals.percentile(values, 0.95)
    assert (low, high) == pytest.approx((ordered[24], ordered[974]))  # the 25th and the 975th of 999
    assert intervals.basic(2.0, values, 0.95) == pytest.approx((4 - high, 4 - low))
    half = 1.959963984540054 * values.std(ddof=1)
    assert intervals.normal(2.0, values, 0.95) == pytest.approx(
        (4 - values.mean() - half, 4 - values.mean() + half)
    )
    with_gaps = np.insert(values, 5, np.nan)
    assert intervals.percentile(with_gaps, 0.95) == (low, high)
    assert np.isnan(intervals.percentile(np.array([np.nan]), 0.95)).all()
    assert np.isnan(intervals.normal(1.0, np.array([2.0]), 0.95)).all()


def test_bca_limits_are_those_of_scipy() -> None:
    sample = np.random.default_rng(4).gamma(1.0, size=25)
    theirs = stats.bootstrap((sample,), np.var, n_resamples=2999, method="BCa", rng=np.random.default_rng(1))
    jackknife = np.array([np.var(np.delete(sample, i)) for i in range(25)])
    low, high = intervals.bca(np.var(sample), theirs.bootstrap_distribution, jackknife, 0.95)
    # Quantiles that interpolate in another way differ by less than a step of the order statistics.
    steps = np.diff(np.sort(theirs.bootstrap_distribution))
    assert low == pytest.approx(theirs.confidence_interval.low, abs=2 * np.median(steps) * 5)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=2 * steps[-100:].max())


def test_bca_limits_do_not_exist_where_all_replicates_lie_on_one_side() -> None:
    values = np.arange(1.0, 100.0)
    assert np.isnan(intervals.bca(0.0, values, np.arange(5.0), 0.9)).all()
    assert np.isnan(intervals.bca(50.0, values, np.array([1.0]), 0.9)).all()
    half = np.where(np.arange(100) < 60, 0.0, np.arange(100))  # the estimate is the mass at zero
    assert intervals.bca(0.0, half, np.arange(5.0), 0.9)[0] == 0.0


@pytest.mark.parametrize("method", INTERVALS)
def test_every_method_gives_limits_of_every_parameter(method: module.Interval) -> None:
    boot = parametric()
    limits = boot.conf_int(0.9, method)
    assert list(limits.columns) == ["conf_low", "conf_high", "n_used"]
    assert list(limits.index) == [
        *("(Intercept)", "Days", SD, CORR, "sd(Days | Subject)", "sd(Residual)"),
        *(
            "var((Intercept) | Subject)",
            "cov((Intercept), Days | Subject)",
            "var(Days | Subject)",
            "var(Residual)",
        ),
    ]
    assert (limits["conf_low"] < limits["conf_high"]).all()
    wide = boot.conf_int(0.95, method)
    assert (wide["conf_low"] <= limits["conf_low"]).all()
    assert (wide["conf_high"] >= limits["conf_high"]).all()
    assert (limits.loc[limits.index.str.contains("sd|var"), "conf_low"] >= 0).all()
    assert limits.loc[CORR].iloc[:2].between(-1, 1).all()
    if method in ("percentile", "studentized", "bca"):  # these respect transformations
        deviation, variance = limits.loc["sd(Residual)"], limits.loc["var(Residual)"]
        np.testing.assert_allclose(variance.iloc[:2], deviation.iloc[:2] ** 2, rtol=1e-2)


def test_values_and_errors_of_the_parameters_are_those_of_the_fit() -> None:
    model = sleepstudy()
    again = resampling.refitter_of(model).fit(np.tile(model.frame.y[:, None], 20))
    table = model.varcorr
    sd_corr, variances = variance_values(again)
    np.testing.assert_allclose(sd_corr[0], table["sd_or_corr"], rtol=PARAMETERS)
    np.testing.assert_allclose(variances[0], table["estimate"], rtol=PARAMETERS)
    errors = variance_errors(again)[0]
    np.testing.assert_allclose(errors[4:], table["std_error"], rtol=1e-4)
    half = np.log(table["sd_or_corr_conf_high"] / table["sd_or_corr"]) / 1.959963984540054
    np.testing.assert_allclose(errors[[0, 2, 3]], half[[0, 2, 3]], rtol=1e-4)


def test_studentized_limits_use_each_replicate_s_own_error() -> None:
    boot = parametric()
    errors = np.sqrt(np.diagonal(boot.replicates.cov_beta, axis1=1, axis2=2))[:, 1]
    model = sleepstudy()
    ratios = np.sort((boot.params["Days"] - model.params["Days"]) / errors)
    low, high = np.quantile(ratios, [0.05, 0.95], method="weibull")
    expected = model.params["Days"] - np.array([high, low]) * model.bse["Days"]
    np.testing.assert_allclose(boot.conf_int(0.9, "studentized").loc["Days"].iloc[:2], expected)


def test_the_table_holds_bias_and_error_of_the_replicates() -> None:
    boot = parametric()
    table = boot.table()
    days = boot.params["Days"]
    assert table.loc["Days", "bias"] == pytest.approx(days.mean() - sleepstudy().params["Days"])
    assert table.loc["Days", "std_error"] == pytest.approx(days.std())
    assert table.loc[SD, ["kind", "group"]].tolist() == ["sd", "Subject"]
    np.testing.assert_array_equal(
        table[["conf_low", "conf_high"]], boot.conf_int()[["conf_low", "conf_high"]]
    )


def test_a_statistic_of_the_parameters_has_limits() -> None:
    boot = parametric()
    found = boot.statistic(lambda p: p["Days"] / p["sd(Residual)"], level=0.9)
    ratio = boot.params["Days"] / boot.sigma
    assert found["estimate"] == pytest.approx(sleepstudy().params["Days"] / sleepstudy().sigma)
    assert (found["conf_low"], found["conf_high"]) == pytest.approx(
        intervals.percentile(ratio.to_numpy(), 0.9)
    )
    same = boot.statistic(lambda p: p["Days"], method="normal")
    np.testing.assert_allclose(
        same[["conf_low", "conf_high"]], boot.conf_int(method="normal").loc["Days"].iloc[:2]
    )
    with pytest.raises(jm.DataError, match=r"shape \(\).*one number for each row"):
        boot.statistic(lambda p: p["Days"].mean())


def test_conf_int_of_a_fit_makes_the_bootstrap() -> None:
    model = sleepstudy()
    limits = model.conf_int(0.9, "boot", n=100, seed=7, interval="basic")
    pd.testing.assert_frame_equal(limits, parametric().conf_int(0.9, "basic"))
    assert limits.attrs["seed"] == 7
    assert list(model.conf_int(0.9).index) == ["(Intercept)", "Days"]
    with pytest.raises(jm.DataError, match=r"'exact'.*'wald', 'profile'.*'boot'"):
        model.conf_int(method="exact")
    with pytest.raises(jm.DataError, match="method='boot'"):
        model.conf_int(interval="bca")
    with pytest.raises(jm.DataError, match="interval is 'exact'"):
        model.conf_int(method="boot", interval="exact")


# Boundaries and failures


def test_limits_of_a_variance_of_zero_begin_at_zero() -> None:
    model = quietly("Yield ~ 1 + (1 | Batch)", stored_dyestuff2())
    assert model.is_singular
    boot = model.bootstrap(100, seed=1)
    name = "sd((Intercept) | Batch)"
    assert boot.n_singular > 30
    for method in ("percentile", "basic", "bca"):
        low, high = boot.conf_int(method=method).loc[name, ["conf_low", "conf_high"]]
        assert low == 0.0, method
        assert high > 0.0 or method == "basic"
    assert boot.conf_int(method="studentized").loc[name].isna().sum() == 2
    assert boot.conf_int(method="studentized").loc[name, "n_used"] == 0
    assert f"{boot.n_singular} replicates singular" in str(boot)
    residual = model.bootstrap(50, kind="residual", seed=1)
    assert residual.conf_int().loc[name, "conf_low"] == 0.0


def stored_dyestuff2() -> pd.DataFrame:
    return pd.read_csv(stored.HERE / "data" / "Dyestuff2.csv")


def test_a_correlation_that_a_replicate_lacks_does_not_count() -> None:
    noise = np.random.default_rng(3).normal(size=180)
    data = jm.datasets.load("sleepstudy").assign(Reaction=noise)
    model = quietly("Reaction ~ Days + (Days | Subject)", data)
    boot = quietly_bootstrap(model, 100, "parametric", 1)
    assert 0 < boot.sd[CORR].isna().sum() < 100
    if not np.isnan(boot.table().loc[CORR, "estimate"]):
        assert boot.conf_int().loc[CORR, "n_used"] == boot.sd[CORR].notna().sum()


def test_an_aliased_coefficient_stays_aliased() -> None:
    data = jm.datasets.load("sleepstudy").assign(Days2=lambda d: 2 * d["Days"])
    boot = quietly("Reaction ~ Days + Days2 + (Days | Subject)", data).bootstrap(20, seed=1)
    assert boot.params["Days2"].isna().all()
    assert boot.params["Days"].notna().all()
    for method in ("percentile", "basic", "studentized"):
        limits = boot.conf_int(method=method)
        assert limits.loc["Days2", ["conf_low", "conf_high"]].isna().all()
        assert limits.loc["Days2", "n_used"] == 0
        assert limits.drop(index="Days2")[["conf_low", "conf_high"]].notna().all(axis=None)


def test_failures_are_counted_said_and_left_out() -> None:
    data = {"y": [1.0, 2.1, 4.3, 3.0, 7.0], "x": [0.0, 1.0, 2.0, 3.0, 4.0]}
    model = quietly("y ~ x", data)
    with pytest.warns(jm.ConvergenceWarning, match=r"replicates failed and are left out \(\d+: the rows"):
        boot = model.bootstrap(200, kind="case", seed=1)
    drawn = Draws(1, ROWS_STREAM).indices(0, 200, 5)
    perfect = np.array([len(np.unique(rows)) <= 2 for rows in drawn.T])
    assert perfect.any()
    np.testing.assert_array_equal(boot.reason != "", perfect)
    assert (boot.n_failed, boot.n_ok) == (perfect.sum(), 200 - perfect.sum())
    assert sum(boot.reasons.values()) == boot.n_failed
    assert boot.params[perfect].isna().all(axis=None)
    assert boot.conf_int().loc["x", "n_used"] == boot.n_ok
    assert boot.bias["x"] == pytest.approx(boot.params["x"][~perfect].mean() - model.params["x"])
    assert f"{boot.n_failed} of 200 replicates failed" in str(boot)
    assert f"{boot.n_failed} failed" in repr(boot)


def test_fits_that_fail_a_check_are_left_out_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sleepstudy()
    fit_of = refits.Refitter.fit

    def with_failures(self: refits.Refitter, Y: Any) -> ManyEstimates:
        found = fit_of(self, Y)
        found.reason[::10] = 3
        found.beta[::10] = 1e9
        return found

    monkeypatch.setattr(refits.Refitter, "fit", with_failures)
    boot = quietly_bootstrap(model, 100, "parametric", 7)
    assert boot.n_failed == 10
    assert list(boot.reasons.items()) == [("the gradient is not zero at the solution", 10)]
    assert boot.conf_int().loc["Days", "conf_high"] < 100
    assert boot.std_error["Days"] < 100


def test_an_interruption_keeps_the_replicates_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sleepstudy()
    run = schedule.run

    def interrupted(work, blocks, crew, **options):  # type: ignore[no-untyped-def]
        found = list(run(work, blocks, crew, **options))
        yield from found[1:2]

    monkeypatch.setattr(schedule, "BLOCK", 40)
    monkeypatch.setattr(schedule, "run", interrupted)
    boot = model.bootstrap(80, seed=7, devices=1)
    assert (len(boot), boot.requested) == (40, 80)
    assert list(boot.params.index) == list(range(40, 80))
    np.testing.assert_allclose(boot.params, parametric().params.iloc[40:80], rtol=1e-9)
    assert "40 replicates of 80" in repr(boot)
    assert "Interrupted: 40 of 80" in str(boot)
    monkeypatch.setattr(schedule, "run", lambda *arguments, **options: iter(()))
    with pytest.raises(KeyboardInterrupt):
        model.bootstrap(10)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0; give the number of replicates"),
        ({"n": True}, "n is True"),
        ({"n": 2.5}, "n is 2.5"),
        ({"kind": "wild"}, "kind is 'wild'; choose 'parametric', 'residual', 'cluster', 'case'"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"devices": 0}, "devices=0"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().bootstrap(**{"n": 5, "seed": 1, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "value"), [("level", 1.0), ("level", 95), ("method", "exact"), ("method", 1)]
)
def test_limits_of_no_level_or_method_are_refused(argument: str, value: object) -> None:
    with pytest.raises(jm.DataError, match=f"{argument} is {value!r}"):
        parametric().conf_int(**{argument: value})  # type: ignore[arg-type]


def test_clusters_need_groups_that_stand_alone() -> None:
    one = np.ones((8, 1))
    school = Grouping(one, np.arange(8) // 2, 4, "school")
    rater = Grouping(one, np.arange(8) % 2, 2, "rater")
    crossed = SimpleNamespace(state=SimpleNamespace(design=Design(one, (school,), (rater,), None)))
    for draw in (lambda: resampling.cluster(crossed, 1), lambda: resampling.leave_one_out(crossed)):
        with pytest.raises(jm.DesignError, match=r"'school' and 'rater' are crossed.*BCa"):
            draw()
    with pytest.raises(jm.DesignError, match="no groups to draw; use kind='case'"):
        quietly("y ~ x", nested()).bootstrap(5, kind="cluster")


def test_a_linear_model_is_bootstrapped() -> None:
    data = nested()
    boot = quietly("y ~ x", data).bootstrap(100, kind="residual", seed=1)
    assert boot.params.shape == (100, 2)
    assert boot.sd.columns.tolist() == ["sd(Residual)"]
    limits = boot.conf_int(method="bca")  # the jackknife leaves out rows
    assert limits.notna().all(axis=None)


def test_nothing_can_be_drawn_from_residuals_that_are_zero() -> None:
    model = sleepstudy()
    rows = model.frame.y - model.fittedvalues.to_numpy()

    frame = replace(model.frame, y=model.frame.y - rows)
    exact = SimpleNamespace(frame=frame, estimates=model.estimates, state=model.state)
    with pytest.raises(jm.DesignError, match="no residuals to draw"):
        resampling.residual(exact, 1)


def test_replicates_are_handed_out_as_copies() -> None:
    boot = parametric()
    for table in (boot.params, boot.sd, boot.varcorr):
        table.iloc[:] = 0.0
    boot.theta[:] = 0.0
    assert boot.params["Days"].ne(0).all()
    assert boot.sd[SD].ne(0).all()
    assert boot.theta.any()


def test_the_numbers_of_the_printed_table_are_those_of_the_table() -> None:
    boot = parametric()
    text = str(boot)
    assert "Parametric bootstrap, 100 replicates, seed 7" in text
    assert "[95% conf. interval]" in " ".join(text.split())
    assert f"{boot.table().loc['Days', 'estimate']:.3f}" in text
    assert max(len(line) for line in text.splitlines()) <= 79

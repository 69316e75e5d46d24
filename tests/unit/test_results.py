"""What a fit tells: names, shapes, values and that nothing it hands out can change it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import effects, inference
from jaxmixed.results import MixedResults
from tests.support.fits import aliased, fit, quietly, sleepstudy, two_terms

# lme4 1.1-31, sleepstudy, REML.
FIXEF = {"(Intercept)": 251.4051048485, "Days": 10.4672859596}
SE = {"(Intercept)": 6.824556532064, "Days": 1.545788896295}


def test_construction_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = sleepstudy()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("computed at construction")

    monkeypatch.setattr(effects, "random_effects", fail)
    monkeypatch.setattr("jaxmixed.results.variance_inference", fail)
    made = MixedResults(frame=source.frame, estimates=source.estimates, state=source.state)
    assert set(vars(made)) == {"frame", "estimates", "state"}
    assert made.nobs == 180


def test_fixed_effects_are_those_of_lme4() -> None:
    found = sleepstudy()
    for name in FIXEF:
        assert found.params[name] == pytest.approx(FIXEF[name], abs=1e-4 * SE[name])
        assert found.bse[name] == pytest.approx(SE[name], rel=1e-5)
    assert list(found.params.index) == ["(Intercept)", "Days"]
    np.testing.assert_allclose(np.diag(found.cov_params()), found.bse**2)
    np.testing.assert_allclose(found.tvalues, found.params / found.bse)


def test_p_values_are_two_sided_normal_tails() -> None:
    # 2 (1 - Phi(6.7715)), from the error function.
    assert sleepstudy().pvalues["Days"] == pytest.approx(1.2746e-11, rel=1e-3)


def test_intervals_are_symmetric_and_widen_with_the_level() -> None:
    found = sleepstudy()
    limits = found.conf_int()
    np.testing.assert_allclose(limits["conf_high"] - found.params, 1.9599639845 * found.bse)
    np.testing.assert_allclose(limits.mean(axis=1), found.params)
    assert (found.conf_int(level=0.99)["conf_low"] < limits["conf_low"]).all()


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, "0.95", None, float("nan"), True])
def test_a_level_outside_zero_and_one_is_refused(level: object) -> None:
    for ask in (sleepstudy().conf_int, sleepstudy().summary, sleepstudy().icc, sleepstudy().variance_table):
        with pytest.raises(jm.DataError, match="between 0 and 1"):
            ask(level=level)  # type: ignore[operator]


def test_the_coefficient_table_has_the_columns_of_the_contract() -> None:
    table = sleepstudy().coef_table()
    columns = ["estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high"]
    assert list(table.columns) == columns
    assert np.isinf(table["df"]).all()
    assert (table.dtypes == np.float64).all()


def test_facts_of_the_fit_follow_their_formulas() -> None:
    found = sleepstudy()
    assert (found.nobs, found.n_dropped, found.ngroups, found.df_resid) == (180, 0, {"Subject": 18}, 178)
    assert found.deviance == pytest.approx(1743.628271958, rel=1e-9)
    assert found.llf == -found.deviance / 2
    assert found.aic == pytest.approx(1755.628271958, rel=1e-9)
    assert found.bic == pytest.approx(1774.786013064, rel=1e-9)
    assert found.sigma == pytest.approx(25.59181562673, rel=1e-5)
    np.testing.assert_allclose(found.theta, [0.9667329518638, 0.01516905427061, 0.2309095947606], atol=1e-5)
    assert found.method == "reml"
    assert found.converged is True
    assert found.is_singular is False
    assert found.num_params == 6


@pytest.mark.parametrize("name", ["llf", "deviance", "aic", "bic", "sigma"])
def test_numbers_are_numpy_float64(name: str) -> None:
    found = sleepstudy()
    values = {
        "llf": found.llf,
        "deviance": found.deviance,
        "aic": found.aic,
        "bic": found.bic,
        "sigma": found.sigma,
    }
    assert type(values[name]) is np.float64


def test_the_random_term_has_covariance_correlation_and_standard_deviations() -> None:
    (term,) = sleepstudy().random_terms
    assert (term.group, term.names, term.structure) == ("Subject", ("(Intercept)", "Days"), "unstructured")
    assert term.cov.loc["Days", "(Intercept)"] == pytest.approx(9.604333316811, rel=1e-3)
    assert term.sd["(Intercept)"] == pytest.approx(24.74045146438, rel=1e-5)
    assert term.corr.loc["Days", "(Intercept)"] == pytest.approx(0.06555131965547, abs=1e-5)
    assert term.corr.loc["Days", "Days"] == 1.0


def test_a_zero_variance_has_no_correlation() -> None:
    (term,) = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").random_terms
    assert term.sd.tolist() == [0.0]
    assert np.isnan(term.corr.iloc[0, 0])


def test_varcorr_has_a_row_per_parameter_and_the_residual_last() -> None:
    table = sleepstudy().varcorr
    assert table["group"].tolist() == ["Subject", "Subject", "Subject", "Residual"]
    assert [(a, b) for a, b in zip(table["effect"], table["effect2"], strict=True)][1] == (
        "(Intercept)",
        "Days",
    )
    assert table["effect2"].isna().tolist() == [True, False, True, True]
    row = table.iloc[0]
    assert row["std_error"] == pytest.approx(288.7826538558, rel=1e-4)
    assert row["conf_low"] == pytest.approx(242.7841164345, rel=1e-4)
    assert row["conf_high"] == pytest.approx(1543.157346998, rel=1e-4)
    assert row["sd_or_corr"] == pytest.approx(24.74045146438, rel=1e-5)


def test_random_effects_come_by_group_with_the_original_levels() -> None:
    table = sleepstudy().ranef()["Subject"]
    assert table.shape == (18, 2)
    assert table.index.name == "Subject"
    assert table.index[0] == "308"
    np.testing.assert_allclose(table.loc["308"], [2.25856554982, 9.198971879515], atol=1e-3)
    np.testing.assert_allclose(sleepstudy().ranef_se()["Subject"].loc["308"], [12.0708, 2.30484], rtol=1e-4)


def test_terms_for_one_group_stand_side_by_side() -> None:
    separate = two_terms()
    joint = fit("sleepstudy", "Reaction ~ Days + (Days || Subject)")
    tables = separate.ranef()
    assert list(tables) == ["Subject"]
    assert sorted(tables["Subject"].columns) == ["(Intercept)", "Days"]
    expected = joint.ranef()["Subject"][list(tables["Subject"].columns)]
    np.testing.assert_allclose(tables["Subject"], expected, atol=1e-4)


def test_prediction_errors_of_a_balanced_design_follow_their_closed_form() -> None:
    found = fit("mini_wright", "wm ~ 1 + (1 | id)")
    variance, residual = float(found.random_terms[0].cov.iloc[0, 0]), float(found.sigma) ** 2
    shrinkage = variance / (variance + residual / 2)
    known = variance * (1 - shrinkage)
    estimated = known + shrinkage**2 * float(found.cov_params().iloc[0, 0])
    np.testing.assert_allclose(found.ranef_se()["id"], np.sqrt(known), rtol=1e-9)
    np.testing.assert_allclose(found.ranef_se("estimated")["id"], np.sqrt(estimated), rtol=1e-9)
    with pytest.raises(jm.DataError, match="'known' or as 'estimated'"):
        found.ranef_se("both")  # type: ignore[arg-type]


def test_fitted_values_and_residuals_add_up_to_the_response() -> None:
    found = sleepstudy()
    np.testing.assert_allclose(found.fittedvalues + found.resid, found.frame.y)
    np.testing.assert_allclose(found.fittedvalues.iloc[:2], [253.6636703983, 273.3299282374], atol=0.02)
    assert (found.fittedvalues.index == found.frame.index).all()


def test_kinds_of_residuals_differ_by_weight_and_sigma() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=lambda d: 1.0 + d["Days"])
    found = jm.mixed("Reaction ~ Days + (1 | Subject)", data, weights="w")
    weighted = found.resid * np.sqrt(data["w"])
    np.testing.assert_allclose(found.residuals("pearson"), weighted)
    np.testing.assert_allclose(found.residuals("standardized"), weighted / found.sigma)
    with pytest.raises(jm.DataError, match="'response', 'working', 'pearson'"):
        found.residuals("raw")


def test_a_dropped_coefficient_is_nan_in_full_length_output() -> None:
    found = aliased()
    assert list(found.params.index) == ["(Intercept)", "Days", "Days2"]
    for values in (found.params, found.bse, found.tvalues, found.pvalues, found.cov_params().loc["Days2"]):
        assert np.isnan(values["Days2"])
        assert np.isfinite(values.iloc[0]) or values.name == "Days2"
    assert np.isfinite(found.fittedvalues).all()
    assert found.df_resid == 178 - 2


def test_dropped_rows_are_counted_and_absent_from_the_index() -> None:
    found = aliased()
    assert (found.nobs, found.n_dropped, found.dropped_by) == (178, 2, {"Reaction": 2})
    assert not {3, 17} & set(found.fittedvalues.index)


def test_editing_what_was_handed_out_changes_no_later_answer() -> None:
    found = sleepstudy()
    before = found.predict().to_numpy().copy()
    tables = [found.params, found.ranef()["Subject"], found.fittedvalues, found.cov_params()]
    tables += [found.random_terms[0].cov, found.varcorr[["estimate"]]]
    for table in tables:
        table.iloc[:] = 0.0
        assert not table.to_numpy().any()
    found.theta[:] = 0.0
    found.dropped_by["x"] = 1
    np.testing.assert_array_equal(found.predict(), before)
    np.testing.assert_array_equal(found.fittedvalues, before)
    assert found.params["Days"] > 10
    assert found.theta[0] > 0.9
    assert (found.varcorr["estimate"] > 0).all()
    assert found.random_terms[0].sd["Days"] > 5
    assert found.dropped_by == {}


def test_results_are_read_only() -> None:
    with pytest.raises(AttributeError, match="read-only"):
        sleepstudy().sigma = 1.0  # type: ignore[misc]


def test_the_repr_is_one_short_line_that_names_bad_verdicts() -> None:
    assert (
        repr(sleepstudy()) == "<MixedResults: Reaction ~ Days + (Days | Subject); REML, 180 rows, 18 Subject>"
    )
    assert repr(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)")).endswith("6 Batch; singular>")


def test_a_fit_that_did_not_converge_says_so_everywhere() -> None:
    data = jm.datasets.load("sleepstudy")
    found = quietly("Reaction ~ Days + (Days | Subject)", data, max_iterations=1)
    assert found.converged is False
    assert "NOT CONVERGED" in repr(found)
    assert str(found.summary()).splitlines()[2].startswith("WARNING: ")
    assert not found.glance()["converged"].item()


def test_tidy_lists_every_parameter_once() -> None:
    table = sleepstudy().tidy()
    assert table["term"].tolist() == [
        "(Intercept)",
        "Days",
        "var((Intercept))",
        "cov((Intercept), Days)",
        "var(Days)",
        "var(Residual)",
    ]
    assert table["effect"].tolist() == ["fixed"] * 2 + ["random"] * 4
    assert table.loc[2:, "p_value"].isna().all()
    assert table.loc[0, "estimate"] == sleepstudy().params.iloc[0]
    assert table.loc[5, "estimate"] == pytest.approx(float(sleepstudy().sigma) ** 2)


def test_glance_is_one_row() -> None:
    table = sleepstudy().glance()
    assert len(table) == 1
    assert table.loc[0, "bic"] == sleepstudy().bic
    assert bool(table.loc[0, "converged"])


def test_augment_keeps_rows_groups_and_index() -> None:
    table = aliased().augment()
    assert list(table.columns) == ["Reaction", "Subject", ".fitted", ".fixed", ".resid", ".std_resid"]
    assert len(table) == 178
    np.testing.assert_allclose(table[".fitted"] + table[".resid"], table["Reaction"])
    data = jm.datasets.load("sleepstudy")
    assert table["Subject"].tolist() == data.loc[table.index, "Subject"].tolist()
    np.testing.assert_allclose(table[".fixed"], aliased().predict(random=False))


def test_group_sizes_are_counted() -> None:
    table = fit("exam", "normexam ~ 1 + (1 | school)").group_sizes()
    assert table.loc["school", ["levels", "min", "max"]].tolist() == [65, 2, 198]
    assert table.loc["school", "mean"] == pytest.approx(62.446, abs=1e-3)


def test_a_linear_model_has_no_random_parts() -> None:
    found = fit("sleepstudy", "Reaction ~ Days")
    assert (found.ngroups, found.ranef(), found.ranef_se(), found.random_terms) == ({}, {}, {}, ())
    assert found.varcorr["group"].tolist() == ["Residual"]
    assert len(found.theta) == 0
    np.testing.assert_allclose(found.fittedvalues, found.predict(random=False))
    slope, intercept = np.polyfit(found.frame.X[:, 1], found.frame.y, 1)
    np.testing.assert_allclose(found.params, [intercept, slope])


def test_the_index_of_the_data_is_kept_even_when_labels_repeat() -> None:
    data = jm.datasets.load("sleepstudy")
    data.index = pd.MultiIndex.from_arrays([data["Subject"], [0] * len(data)])
    found = jm.mixed("Reaction ~ Days + (1 | Subject)", data)
    assert found.resid.index.equals(data.index)


def test_variance_inference_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = sleepstudy()
    made = MixedResults(frame=source.frame, estimates=source.estimates, state=source.state)
    calls = []

    def counted(parameters: inference.VarianceParameters) -> inference.VarianceInference:
        calls.append(parameters)
        return inference.variance_inference(parameters)

    monkeypatch.setattr("jaxmixed.results.variance_inference", counted)
    made.summary()
    made.icc()
    made.tidy()
    assert len(calls) == 1

"""Power by simulation: closed forms, single fits, grids, pilots, seeds and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed import power_analysis
from jaxmixed.diagnosis import STOPPED
from tests.support.fits import fit, quietly, sleepstudy

SIGMAS = 4.0
"""Monte-Carlo standard errors that a simulated power may be away from the closed form."""

SAME = 1e-6
"""Between p-values of a model fitted among many and alone: two optimisers that stop at a decrease of 1e-9."""

TAU, SIGMA = 0.5, 1.0
FORMULA = "y ~ treatment + (1 | school)"


def trial(schools: int = 24, size: int = 10) -> pd.DataFrame:
    """Half of the schools are treated."""
    return jm.study({"school": schools}, size=size, between={"treatment": [0, 1]})


def params(effect: float = 0.4) -> dict[str, Any]:
    return {
        "beta": {"(Intercept)": 1, "treatment": effect},
        "random": {"school": TAU},
        "sigma": SIGMA,
    }


def check(power: np.ndarray, expected: np.ndarray, n: int) -> None:
    """Simulated proportions agree with probabilities."""
    errors = (power - expected) / np.sqrt(expected * (1 - expected) / n)
    assert np.abs(errors).max() < SIGMAS, errors


def noncentrality(effect: np.ndarray, schools: np.ndarray, size: float) -> np.ndarray:
    """Effect over its standard deviation: Var = 4 (tau² + sigma²/n) / J."""
    return effect / np.sqrt(4 * (TAU**2 + SIGMA**2 / size) / schools)


def two_tailed(critical: np.ndarray, df: np.ndarray, ncp: np.ndarray) -> np.ndarray:
    return stats.nct.sf(critical, df, ncp) + stats.nct.cdf(-critical, df, ncp)


# Closed forms. With balanced groups and REML the z statistic of a treatment of groups is the t statistic of
# the group means, with J - 2 degrees of freedom, unless the variance between groups is estimated as zero,
# which happens less than once in 100,000 replicates here.


def test_power_and_false_rejections_of_a_cluster_randomised_trial() -> None:
    vary = {"groups": {"school": [20, 24]}, "effects": {"treatment": [0, 0.4, 0.8]}}
    found = jm.power(FORMULA, trial(24, 40), params(), vary=vary, n=3000, seed=11).table
    J, effect = found["school"].to_numpy(), found["treatment"].to_numpy()
    check(found["power"].to_numpy(), two_tailed(1.959963984540054, J - 2, noncentrality(effect, J, 40)), 3000)
    assert found["rows"].tolist() == (40 * J).tolist()
    assert (found["n_used"] == 3000).all()


@pytest.mark.slow
def test_power_of_the_likelihood_ratio_test() -> None:
    found = jm.power(
        FORMULA, trial(24, 40), params(), kind="lr", vary={"effects": {"treatment": [0, 0.6]}}, n=2000, seed=3
    )
    assert found.setting.method == "ml"
    # ML in a balanced design: the statistic is J log(1 + t² / (J - 2)).
    critical = np.sqrt(22 * np.expm1(stats.chi2.isf(0.05, 1) / 24))
    effect = found.table["treatment"].to_numpy()
    check(found.table["power"].to_numpy(), two_tailed(critical, 22, noncentrality(effect, 24, 40)), 2000)


def test_power_of_a_joint_test() -> None:
    table = jm.study({"school": 30}, size=20, between={"arm": ["a", "b", "c"]})
    stated = {"beta": [0, 0.3, 0.6], "random": {"school": TAU}, "sigma": SIGMA}
    found = jm.power("y ~ arm + (1 | school)", table, stated, test="arm", n=2000, seed=4)
    ncp = 10 * 0.18 / (TAU**2 + SIGMA**2 / 20)  # J/3 sum of squared deviations from the mean
    expected = stats.ncf.sf(stats.chi2.isf(0.05, 2) / 2, 2, 27, ncp)
    check(found.table["power"].to_numpy(), np.array([expected]), 2000)
    listed = jm.power("y ~ arm + (1 | school)", table, stated, test=["armb", "armc"], n=2000, seed=4)
    np.testing.assert_array_equal(listed.p_values, found.p_values)


def test_power_of_a_linear_model_is_that_of_a_t_statistic() -> None:
    table = jm.study({"g": 1}, size=30, within={"treatment": [0, 1]})
    stated = {"beta": [0, 1], "sigma": 1.0}
    vary = {"size": [10, 30, 50]}
    found = jm.power("y ~ treatment", table, stated, vary=vary, n=2000, seed=5).table
    rows = np.array([10, 30, 50])
    assert found["rows"].tolist() == rows.tolist()
    check(found["power"].to_numpy(), two_tailed(1.959963984540054, rows - 2, np.sqrt(rows) / 2), 2000)


# Every replicate is a fit that can be made alone


def single_p_values(table: pd.DataFrame, formula: str, test: Any, seed: int, n: int) -> list[float]:
    responses = jm.simulate(formula, table, params(), n=n, seed=seed)
    found = []
    for name in responses:
        data = table.assign(y=responses[name])
        found.append(test(data))
    return found


def test_p_values_are_those_of_single_fits() -> None:
    table = trial(8, 3)
    found = jm.power(FORMULA, table, params(), n=6, seed=6)
    alone = single_p_values(table, FORMULA, lambda d: quietly(FORMULA, d).pvalues["treatment"], 6, 6)
    np.testing.assert_allclose(found.p_values[0], alone, rtol=SAME)


@pytest.mark.parametrize(
    "smaller", ["y ~ 1 + (1 | school)", pytest.param("~ treatment", marks=pytest.mark.slow)]
)
def test_likelihood_ratios_are_those_of_single_fits(smaller: str) -> None:
    table = trial(8, 3)
    found = jm.power(FORMULA, table, params(), test=smaller, kind="lr", n=6, seed=7)
    method = "ml" if "school" in smaller else "reml"
    assert found.setting.method == method

    def test(data: pd.DataFrame) -> float:
        text = smaller if smaller.startswith("y") else f"y {smaller}"
        return jm.lrtest(quietly(text, data, method=method), quietly(FORMULA, data, method=method)).p_value

    np.testing.assert_allclose(found.p_values[0], single_p_values(table, FORMULA, test, 7, 6), rtol=SAME)


def test_more_groups_are_copies_with_labels_of_their_own() -> None:
    table = trial(4, 4).assign(x=np.linspace(-1, 1, 16) ** 2)
    twice = pd.concat([table, table.assign(school=table["school"].astype(str) + " again")])
    twice["school"] = pd.Categorical(twice["school"], categories=twice["school"].unique())
    formula = "y ~ treatment + x + (1 | school)"
    stated = {"beta": [0, 0.5, 1], "random": {"school": TAU}, "sigma": SIGMA}
    one = jm.power(formula, table, stated, test="x", vary={"groups": {"school": [8]}}, n=16, seed=1)
    two = jm.power(formula, twice.reset_index(drop=True), stated, test="x", n=16, seed=1)
    np.testing.assert_array_equal(one.p_values, two.p_values)


# Grids


def test_the_grid_has_every_combination_and_its_last_axis_runs_fastest() -> None:
    vary = {"size": [4, 6], "groups": {"school": [8, 7]}, "effects": {"treatment": [0, 1]}}
    found = jm.power(FORMULA, trial(8, 4), params(), vary=vary, n=5, seed=1)
    expected = [(size, school, e) for size in (4, 6) for school in (8, 7) for e in (0.0, 1.0)]
    columns = ["size", "school", "treatment"]
    assert list(found.table[columns].itertuples(index=False, name=None)) == expected
    assert list(found.table.columns[:3]) == columns
    assert found.table["rows"].tolist() == [size * school for size, school, _ in expected]


def test_effects_of_one_design_are_those_of_separate_calls() -> None:
    vary = {"effects": {"treatment": [0, 0.9]}}
    for kind in ("wald", "lr"):
        together = jm.power(FORMULA, trial(8, 4), params(), kind=kind, vary=vary, n=12, seed=2)
        for row, effect in enumerate((0, 0.9)):
            alone = jm.power(
                FORMULA, trial(8, 4), params(), kind=kind, effects={"treatment": effect}, n=12, seed=2
            )
            np.testing.assert_allclose(together.p_values[row], alone.p_values[0], rtol=SAME, atol=1e-12)


def test_a_function_makes_the_design_of_each_point() -> None:
    def make(dropout: float, arms: str) -> pd.DataFrame:
        table = trial(8, 10)
        table["treatment"] = table["treatment"] * (2 if arms == "two" else 1)
        return table[table.index % 10 >= 10 * dropout]

    vary = {"design": {"dropout": [0, 0.5], "arms": ["one", "two"]}, "groups": {"school": [8, 7]}}
    found = jm.power(FORMULA, make, params(), vary=vary, n=10, seed=1)
    assert found.table["rows"].tolist() == [80, 70, 80, 70, 40, 35, 40, 35]
    assert found.table["arms"].tolist() == ["one", "one", "two", "two"] * 2
    assert (found.p_values[2] != found.p_values[0]).all()


def test_classes_and_pupils_vary_in_their_schools() -> None:
    table = jm.study({"school": 8, "class": 3}, size=4, between={"treatment": [0, 1]})
    stated = {"beta": [0, 0.5], "random": {"school": 0.3, "school:class": 0.3}, "sigma": 1}
    vary = {"groups": {"class": [2]}, "size": [4, 5]}
    formula = "y ~ treatment + (1 | school/class)"
    found = jm.power(formula, table, stated, vary=vary, n=4, seed=1)
    assert found.table["rows"].tolist() == [64, 80]
    assert [axis.label for axis in found.axes] == [
        "Number of groups: class, in each school",
        "Rows in each class",
    ]


def test_names_that_the_table_needs_are_kept_apart() -> None:
    table = trial(8, 4).rename(columns={"treatment": "power"})
    stated = {"beta": [0, 1], "random": {"school": TAU}, "sigma": SIGMA}
    vary = {"effects": {"power": [0, 1]}}
    found = jm.power("y ~ power + (1 | school)", table, stated, vary=vary, n=4, seed=1)
    assert found.table.columns[0] == "power_"
    assert found.table.columns.is_unique


# Pilots


def test_a_pilot_gives_design_and_parameters() -> None:
    pilot = sleepstudy()
    vary = {"groups": {"Subject": [18, 20]}, "size": [5, 10], "effects": {"Days": [0, 4]}}
    found = jm.power(fit=pilot, test="Days", vary=vary, n=16, seed=1)
    assert found.table["rows"].tolist() == [90, 90, 180, 180, 100, 100, 200, 200]
    plain = jm.power(fit=pilot, effects={"Days": 4}, n=16, seed=1)
    np.testing.assert_allclose(found.p_values[3], plain.p_values[0], rtol=SAME)
    responses = pilot.simulate(3, seed=1)
    data = jm.datasets.load("sleepstudy")
    shift = (4 - pilot.params["Days"]) * data["Days"]
    alone = [
        quietly(pilot.formula, data.assign(Reaction=responses[name] + shift)).pvalues["Days"]
        for name in responses
    ]
    np.testing.assert_allclose(plain.p_values[0, :3], alone, rtol=SAME)


def test_a_pilot_without_the_treatment_serves_for_a_trial() -> None:
    pilot = fit("hsb82", "mathach ~ ses + (1 | school)")
    table = jm.study({"school": 8}, size=8, between={"treatment": [0, 1]}, within={"ses": "normal"})
    formula = "mathach ~ treatment + ses + (1 | school)"
    found = jm.power(formula, table, fit=pilot, effects={"treatment": 3}, test="treatment", n=10, seed=1)
    stated = {
        "beta": {**pilot.params.to_dict(), "treatment": 3},
        "random": {"school": float(pilot.random_terms[0].sd.iloc[0])},
        "sigma": float(pilot.sigma),
    }
    same = jm.power(formula, table, stated, test="treatment", n=10, seed=1)
    np.testing.assert_allclose(found.p_values, same.p_values, rtol=1e-9)


@pytest.mark.slow
def test_the_structure_and_method_of_the_pilot_are_kept() -> None:
    data = jm.datasets.load("sleepstudy")
    pilot = quietly("Reaction ~ Days + (Days | Subject)", data, covariance="independent", method="ml")
    found = jm.power(fit=pilot, n=3, seed=1)
    assert found.setting.method == "ml"
    responses = pilot.simulate(3, seed=1)
    alone = [
        quietly(pilot.formula, data.assign(Reaction=responses[c]), covariance="independent", method="ml")
        for c in responses
    ]
    np.testing.assert_allclose(found.p_values[0], [one.pvalues["Days"] for one in alone], rtol=SAME)
    other = jm.power(fit=pilot, data=data, n=3, seed=1)
    np.testing.assert_allclose(other.p_values, found.p_values, rtol=1e-9)


def test_weights_and_offsets_enter() -> None:
    table = trial(8, 6).assign(w=np.tile([1.0, 4.0], 24), shift=np.linspace(-50, 50, 48))
    formula = FORMULA.replace("treatment", "treatment + offset(shift)", 1)
    found = jm.power(formula, table, params(), test="treatment", weights="w", n=3, seed=1)
    responses = jm.simulate(formula, table, params(), n=3, seed=1, weights="w")
    alone = [
        quietly(formula, table.assign(y=responses[c]), weights="w").pvalues["treatment"] for c in responses
    ]
    np.testing.assert_allclose(found.p_values[0], alone, rtol=SAME)


# Seeds, workers, failures


def test_results_depend_on_the_seed_alone() -> None:
    vary = {"groups": {"school": [8, 7]}}
    one, two, other = (
        jm.power(FORMULA, trial(8, 5), params(), vary=vary, n=12, seed=seed, devices=devices)
        for seed, devices in ((3, 1), (3, 2), (4, 1))
    )
    np.testing.assert_allclose(one.p_values, two.p_values, rtol=1e-9)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert (one.p_values != other.p_values).all()
    more = jm.power(FORMULA, trial(8, 5), params(), vary=vary, n=16, seed=3, devices=1)
    np.testing.assert_allclose(more.p_values[:, :12], one.p_values, rtol=1e-9)
    fresh = jm.power(FORMULA, trial(8, 5), params(), n=2)
    again = jm.power(FORMULA, trial(8, 5), params(), n=2, seed=fresh.seed)
    np.testing.assert_array_equal(fresh.p_values, again.p_values)


def test_failed_fits_are_left_out_counted_and_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = power_analysis.Refitter.fit

    def failing(self: Any, Y: np.ndarray, starts: Any = None) -> Any:
        found = fitted(self, Y, starts)
        found.reason[::4] = STOPPED
        return found

    monkeypatch.setattr(power_analysis.Refitter, "fit", failing)
    with pytest.warns(jm.ConvergenceWarning, match=r"power: 4 of 16 fits failed .*stopped.* \(4\)"):
        found = jm.power(FORMULA, trial(8, 5), params(), n=16, seed=3)
    table = found.table.iloc[0]
    assert (table["n_used"], table["n_failed"], table["converged"]) == (12, 4, 0.75)
    kept = found.p_values[0][np.arange(16) % 4 > 0]
    assert table["n_rejected"] == (kept <= 0.05).sum()
    assert found.failures()[["reason", "n"]].to_numpy().tolist() == [
        ["the optimiser stopped before it converged", 4]
    ]


def test_an_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(work: Any, blocks: Any, crew: Any, **options: Any) -> Any:
        yield 0, work(*blocks[0])

    monkeypatch.setattr(power_analysis, "run", interrupted)
    vary = {"groups": {"school": [8, 7]}}
    found = jm.power(FORMULA, trial(8, 5), params(), vary=vary, n=16, seed=3, devices=1)
    assert found.table["n_used"].tolist() == [16, 0]
    assert found.table["power"].isna().tolist() == [False, True]
    assert any("16 of 32 replicates were not fitted" in text for text in found.warnings())


@pytest.mark.slow
def test_crossed_designs_and_variances_of_their_terms() -> None:
    table = jm.study({"plate": 6}, size=4, within={"sample": list("ABCD")})
    stated = {"beta": [20], "random": {"plate": 1, "sample": 1.5}, "sigma": 0.5}
    formula = "y ~ 1 + (1 | plate) + (1 | sample)"
    found = jm.power(formula, table, stated, test="~ 1 + (1 | sample)", kind="lr", n=4, seed=1)
    assert found.table["n_used"].tolist() == [4]
    assert (found.p_values < 0.05).all()
    assert found.setting.test == "~ 1 + (1 | sample)"


# Refusals


def test_with_six_groups_small_sample_tests_hold_the_level_and_the_wald_test_does_not() -> None:
    """The difference of two means of three groups has a t distribution with 4 degrees of freedom."""
    study = jm.study({"school": 6}, size=8, between={"treatment": ["no", "yes"]})
    null = {"beta": [0.0, 0.0], "random": {"school": 4.0}, "sigma": 1.0}
    rejected = {}
    for kind in ("wald", "satterthwaite", "kenward-roger"):
        n = 200 if kind == "kenward-roger" else 2000
        table = jm.power("y ~ treatment + (1 | school)", study, null, kind=kind, n=n, seed=3).table
        rejected[kind] = float(table["power"].iloc[0])
        expected = 2 * stats.t.sf(stats.norm.isf(0.025), 4) if kind == "wald" else 0.05
        assert abs(rejected[kind] - expected) <= 4 * np.sqrt(expected * (1 - expected) / n), kind
    assert rejected["wald"] > 0.1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kind": "t"}, jm.DataError, r"kind='t' is no test; choose one of 'wald', 'satterthwaite'"),
        ({"alpha": 0}, jm.DataError, "alpha is 0; give a number between 0 and 1"),
        ({"alpha": True}, jm.DataError, "alpha is True"),
        ({"level": 95}, jm.DataError, "level is 95"),
        ({"n": 0}, jm.DataError, "n is 0; give the number of replicates"),
        ({"n": 10.0}, jm.DataError, "n is 10.0"),
        ({"seed": -1}, jm.DataError, "seed must be a non-negative integer"),
        ({"method": "REML"}, jm.DesignError, "choose 'reml' or 'ml'"),
        ({"kind": "lr", "method": "reml"}, jm.DesignError, 'say method="ml"'),
        ({"kind": "kenward-roger", "method": "ml"}, jm.DesignError, "defined for REML fits"),
        ({"test": "treat"}, jm.DataError, r"no fixed effect 'treat'; choose coefficients .*'treatment'"),
        ({"test": []}, jm.DataError, r"test=\[\] must be a coefficient"),
        ({"test": 3}, jm.DataError, "test=3 must be a coefficient"),
        ({"test": "~ treatment"}, jm.DesignError, 'use kind="lr"'),
        ({"test": "~ z + (1 | school)", "kind": "lr"}, jm.DataError, "'z'"),
        ({"test": "~ size + (1 | school)", "kind": "lr"}, jm.DesignError, "lacks the fixed effect size"),
        ({"formula": "y ~ (1 | school)", "params": {"beta": [1], "random": {"school": 1}, "sigma": 1}},
         jm.DataError, r"test= must say what is tested: coefficients '\(Intercept\)'"),
        ({"params": None}, jm.DataError, "parameters as params=, or a pilot fit as fit="),
        ({"fit": 3}, jm.DataError, "fit= must be a result of mixed"),
        ({"data": None}, jm.DataError, "data= is missing"),
        ({"formula": None}, jm.DataError, "formula of the model is missing"),
        ({"params": {"beta": [0, 1], "random": {"class": 1}, "sigma": 1}}, jm.DataError, "'school'"),
        ({"effects": {"treat": 1}}, jm.DataError, r"effects name 'treat', .*it has .*'treatment'"),
        ({"effects": {"treatment": "big"}}, jm.DataError, r"effects\['treatment'\] is 'big'"),
        ({"vary": [1]}, jm.DataError, r"vary=\[1\] must be a mapping"),
        ({"vary": {"schools": [1]}}, jm.DataError, "vary= has 'schools'; its keys are 'groups', 'size'"),
        ({"vary": {"groups": {"class": [4]}}}, jm.DataError, "'class', which is no grouping .*'school'"),
        ({"vary": {"groups": {"school": [4, 2.5]}}}, jm.DataError, r"vary\['groups'\]\['school'\] has 2.5"),
        ({"vary": {"groups": {"school": [4, 4]}}}, jm.DataError, "a value twice"),
        ({"vary": {"groups": {"school": []}}}, jm.DataError, "is empty"),
        ({"vary": {"groups": {"school": [1]}}}, jm.DesignError, r"^at .*\['school'\] = 1: .*one level"),
        ({"vary": {"size": [1]}}, jm.DesignError, r"^at .*\['size'\] = 1: .*cannot be told from the resid"),
        ({"vary": {"size": {"school": [2], "class": [3]}}}, jm.DataError, "must name one grouping"),
        ({"vary": {"size": ["a"]}}, jm.DataError, r"vary\['size'\] has 'a'; give positive whole numbers"),
        ({"vary": {"effects": [1]}}, jm.DataError, "must map names of coefficients"),
        ({"vary": {"effects": {"treatment": [np.inf]}}}, jm.DataError, "effects are finite numbers"),
        ({"vary": {"effects": {"z": [1]}}}, jm.DataError, "effects name 'z'"),
        ({"vary": {"design": {"a": [1]}}}, jm.DataError, "a function as data= belong together"),
        ({"vary": {"effects": {"treatment": range(20_000)}}}, jm.DataError, "20,000 points, too many"),
        ({"devices": 0}, jm.DataError, "devices=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "formula": FORMULA,
        "data": trial(8, 4).assign(size=np.arange(32.0)),
        "params": params(),
        "n": 3,
        "seed": 1,
    } | changes
    with pytest.raises(error, match=message):
        jm.power(**arguments)


def test_a_coefficient_that_a_design_cannot_estimate_is_named_with_the_point() -> None:
    table = jm.study({"school": 6}, size=4, between={"arm": ["a", "b", "c"]})
    stated = {"beta": [0, 1, 1], "random": {"school": 1}, "sigma": 1}
    with pytest.raises(jm.DesignError, match=r"at vary\['groups'\]\['school'\] = 2: the coefficient 'arm"):
        jm.power(
            "y ~ arm + (1 | school)", table, stated, vary={"groups": {"school": [6, 2]}}, test="arm", n=2
        )


def test_a_pilot_is_given_as_fit_and_a_formula_test_needs_its_data() -> None:
    pilot = sleepstudy()
    with pytest.raises(jm.DataError, match="give the pilot fit as fit="):
        jm.power(pilot, test="Days", n=2)
    with pytest.raises(jm.DataError, match=r"needs the pilot's data: pass them as data="):
        jm.power(fit=pilot, test="~ Days + (1 | Subject)", kind="lr", n=2)
    with pytest.raises(jm.DataError, match="not both"):
        jm.power(fit=pilot, params=params(), n=2)
    with pytest.raises(jm.DataError, match="weights= is for data="):
        jm.power(fit=pilot, weights="w", n=2)
    crossed = jm.study({"person": 6}, size=4, within={"item": list("abcd"), "x": "normal"})
    stated = {"beta": [0, 1], "random": {"person": 1, "item": 1}, "sigma": 1}
    with pytest.raises(jm.DataError, match="must say which grouping"):
        jm.power("y ~ x + (1 | person) + (1 | item)", crossed, stated, vary={"groups": [4]}, n=2)


def test_a_grouping_with_effects_of_its_own_gets_no_new_levels() -> None:
    table = jm.study({"school": 6}, size=6, within={"item": list("abc"), "x": "normal"})
    stated = {"beta": [0, 1, 1], "random": {"school:item": 1}, "sigma": 1}
    vary = {"groups": {"item": [2]}}
    with pytest.raises(jm.DataError, match="'item' has effects in the model, so it cannot get new levels"):
        jm.power("y ~ item + (1 | school:item)", table, stated, vary=vary, test="item", n=2)

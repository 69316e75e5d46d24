"""The gallery runs, and what its text says is what lme4, Stata and theory say."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "gallery"

pytestmark = pytest.mark.slow

LME4 = 2e-5
"""Relative: lme4's optimum is as good as its optimiser's tolerance."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The names that a script of the gallery leaves behind; what it writes goes to a folder of its own."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)

    def script(name: str) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "More than 20 figures", RuntimeWarning)
            return runpy.run_path(str(FOLDER / f"{name}.py"))

    yield script
    pyplot.close("all")


def test_schools_are_those_of_lme4(run: Any, tmp_path: Path) -> None:
    names = run("1_schools")
    # lmer(mathach ~ (meanses + sector) * cses + (cses | school)), lme4 1.1-31
    expected = [12.127931, 5.332872, 1.226580, 2.945045, 1.039251, -1.642682]
    np.testing.assert_allclose(names["fit"].params, expected, rtol=LME4)
    assert names["fit"].llf == pytest.approx(-23251.83143, abs=1e-4)
    assert names["null"].icc().loc["school", "estimate"] == pytest.approx(8.614 / (8.614 + 39.148), abs=1e-4)
    contextual = names["context"].lincom("meanses - cses", ddf="satterthwaite").iloc[0]
    # lmerTest::contest1D(fit, c(0, -1, 1))
    assert contextual[["estimate", "std_error", "df"]].tolist() == pytest.approx(
        [3.675002, 0.3776705, 182.2863], rel=LME4
    )


def test_growth_is_that_of_lme4(run: Any) -> None:
    names = run("2_growth")
    of_308 = names["fit"].coef()["Subject"].loc["308"]
    assert of_308.tolist() == pytest.approx([253.66, 19.67], abs=0.005)  # coef() of lme4
    wide = names["bands"]["a new person"]["std_error"]
    narrow = names["bands"]["population mean"]["std_error"]
    # VarCorr() of lme4
    variance = 612.10 + 2 * 9.604 * names["days"] + 35.072 * names["days"] ** 2 + 654.94
    np.testing.assert_allclose(np.sqrt(variance + narrow**2), wide, rtol=1e-4)


def test_crossed_groups_are_those_of_the_analysis_of_variance(run: Any) -> None:
    names = run("3_crossed")
    found = names["fit"].varcorr["estimate"].to_numpy()
    # A complete design of one row in each cell: REML's variances are those of the mean squares.
    cells = names["plates"].pivot(index="plate", columns="sample", values="diameter").to_numpy(dtype=float)
    rows, columns = cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - rows[:, None] - columns + cells.mean()
    within = (rest**2).sum() / (23 * 5)
    expected = [rows.var(ddof=1) - within / 6, columns.var(ddof=1) - within / 24, within]
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    # Two samples: the difference of independent effects, given that of the means of 24 rows each.
    of_means, prior = 2 * within / 24, 2 * expected[1]
    std_error = names["fit"].compare_levels("sample", "A", "F")["std_error"].iloc[0]
    assert std_error == pytest.approx(np.sqrt(1 / (1 / of_means + 1 / prior)), rel=1e-6)


def test_the_experiment_is_that_of_the_textbook(run: Any) -> None:
    names = run("4_experiment")
    found = names["fit"].anova(ddf="kenward-roger")
    # Venables & Ripley (2002), section 10.2; lmerTest and pbkrtest
    assert found["statistic"].tolist() == pytest.approx([1.48534, 37.6857, 0.30282], rel=LME4)
    assert found["den_df"].tolist() == pytest.approx([10, 45, 45])
    by_machine = names["by_machine"].emmeans("Machine").pairs(adjust="none").table
    assert by_machine["std_error"].tolist() == pytest.approx([2.42, 1.54, 2.45], abs=0.005)  # R's emmeans
    assert by_machine["df"].tolist() == pytest.approx([5, 5, 5], rel=1e-3)


def test_influence_is_that_of_lme4(run: Any) -> None:
    names = run("5_influence")
    found = names["people"].dfbetas.loc[["335", "308", "309"]].to_numpy()
    # dfbetas(influence(fit, "Subject")) of lme4 1.1-31
    expected = [[0.0949854, -0.5559562], [-0.0587249, 0.4489274], [-0.4108749, -0.3098969]]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert names["worst"] == 59
    # lmer(Reaction ~ Days + (Days | Subject), sleepstudy[-60, ])
    assert names["without"].params.tolist() == pytest.approx([250.26876, 10.89342], rel=LME4)
    assert names["without"].bse.tolist() == pytest.approx([6.801330, 1.593946], rel=1e-3)


def test_discoveries_are_those_of_benjamini_and_hochberg(run: Any) -> None:
    names = run("6_many_models")
    adjusted = stats.false_discovery_control(names["slopes"]["p_value"], method="bh")
    np.testing.assert_array_equal(names["found"], adjusted < 0.05)
    assert names["found"].sum() > 100
    assert (names["found"] & ~names["true"]).sum() / names["found"].sum() < 0.1


def test_power_is_that_of_the_formula_for_two_arms(run: Any) -> None:
    names = run("7_power")
    pilot, points = names["pilot"], names["curve"].table
    between, within = pilot.varcorr["estimate"]
    std_error = np.sqrt(4 * (between + within / 25) / points["school"])
    expected = stats.norm.cdf(1.5 / std_error - 1.96)
    # Four binomial standard errors; normal tests of few schools reject too often, hence the 0.03.
    assert (np.abs(points["power"] - expected) < 0.03 + 4 * np.sqrt(0.25 / 400)).all()


def test_the_tables_of_stata_users_are_those_of_its_manual(run: Any) -> None:
    fit = run("8_stata")["fit"]
    # Stata, [ME] mixed: weight on week, id: week, covariance(unstructured), maximum likelihood
    assert fit.llf == pytest.approx(-868.96185, abs=1e-5)
    assert fit.params.tolist() == pytest.approx([19.35561, 6.209896], rel=1e-6)
    assert fit.bse.tolist() == pytest.approx([0.3996387, 0.0910745], rel=1e-6)
    variances = fit.random_terms[0].cov.to_numpy()
    assert variances[[0, 0, 1], [0, 1, 1]] == pytest.approx([6.823363, -0.0984378, 0.3715251], rel=1e-4)


def test_the_trial_is_that_of_nlme_and_of_kenward_and_roger(run: Any) -> None:
    names = run("9_longitudinal")
    fit, curve, alike = names["fit"], names["curve"], names["alike"]
    # gls(change ~ baseline*visit + arm*visit, correlation = corSymm(form = ~ v | patient),
    #     weights = varIdent(form = ~ 1 | visit)), nlme 3.1-162, polished by Newton steps
    assert fit.llf == pytest.approx(-2169.283895, abs=1e-4)
    assert names["implied"].sd.tolist() == pytest.approx(
        [3.5044498, 4.5223297, 5.4514486, 6.0888171, 6.6303835], rel=1e-4
    )
    assert names["implied"].correlation.loc["W6", "W8"] == pytest.approx(0.7254225, abs=1e-4)
    # correlation = corExp(form = ~ week | patient, nugget = TRUE)
    assert curve.llf == pytest.approx(-2175.97912, abs=1e-4)
    assert names["parameters"][["range", "nugget"]].tolist() == pytest.approx(
        [11.317933, 0.10142878], rel=1e-3
    )
    # Kenward & Roger (1997), section 2 and 3.2, with dense matrices in R and the expected information
    last = names["effects"].table.iloc[-1]
    assert last[["estimate", "std_error"]].tolist() == pytest.approx([-2.1107347, 1.0587858], rel=1e-4)
    assert last["df"] == pytest.approx(162.72298, rel=1e-2)
    # lme(change ~ baseline*visit + arm*visit, random = ~ 1 | patient); its compound symmetry by gls
    assert alike.llf == pytest.approx(-2292.52308, abs=1e-4)

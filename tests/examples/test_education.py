"""The do-file of the multilevel workflow: its tables are those of `jaxmixed.mixed` and of lme4."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from tests.support.examples import FOLDER

pytestmark = pytest.mark.slow

LME4 = 1e-6
"""Relative: nine digits were printed, of an optimum found without exact derivatives."""

FORMULAS = {
    "mixed test_score ses parental_educ || school:": "test_score ~ ses + parental_educ + (1 | school)",
    "mixed test_score ses parental_educ || school: ses, covariance(unstructured)":
        "test_score ~ ses + parental_educ + (ses | school)",
    "mixed test_score ses teacher_exp || school: || classroom:":
        "test_score ~ ses + teacher_exp + (1 | school/classroom)",
}  # fmt: skip


@pytest.fixture(scope="module")
def pupils() -> pd.DataFrame:
    return jm.datasets.load("classrooms")


@pytest.fixture(scope="module")
def output(pupils: pd.DataFrame) -> jm.StataOutput:
    pytest.importorskip("matplotlib").use("Agg")
    return jm.stata((FOLDER / "education.do").read_text(encoding="utf-8"), pupils)


def printed(output: jm.StataOutput, command: str) -> str:
    """What a command of the script printed, the first time that it stands there."""
    return output.text.split(f". {command}\n", 1)[1].split("\n. ", 1)[0]


def row(text: str, name: str) -> list[float]:
    """Numbers of a row of a table; its name as it is printed."""
    line = next(line for line in text.splitlines() if line.split("|")[0].strip() == name)
    return [float(number) for number in re.findall(r"-?[0-9]*\.[0-9]+(?:e[-+][0-9]+)?", line.split("|")[1])]


@pytest.mark.parametrize("command", FORMULAS)
def test_each_model_is_the_one_of_its_formula(
    command: str, output: jm.StataOutput, pupils: pd.DataFrame
) -> None:
    fit = jm.mixed(FORMULAS[command], pupils, method="ml")
    text = printed(output, command)
    assert float(re.search(r"Log likelihood = (\S+)", text)[1]) == pytest.approx(fit.llf, abs=1e-4)  # type: ignore[index]
    names = {"ses": "ses", "teacher_exp": "teacher_exp", "parental_educ": "parental_e~c"}
    table = fit.coef_table()
    for term in fit.params.index:
        estimate, error, z, p, low, high = row(text, names.get(term, "_cons"))
        mine = table.loc[term]
        assert [estimate, error] == pytest.approx([mine["estimate"], mine["std_error"]], rel=1e-6)
        assert [low, high] == pytest.approx([mine["conf_low"], mine["conf_high"]], rel=1e-5)
        assert z == pytest.approx(mine["statistic"], abs=0.005)
        assert p == pytest.approx(mine["p_value"], abs=0.0005)
    assert row(text, "var(Residual)")[0] == pytest.approx(fit.sigma**2, rel=1e-6)
    assert jm.from_stata(command)[1] == {"method": "ml"}


def test_the_three_models_are_those_of_lme4(output: jm.StataOutput) -> None:
    # lmer(..., REML = FALSE), lme4 1.1-31, bobyqa to 1e-9
    likelihoods = [float(text) for text in re.findall(r"Log likelihood = (\S+)", output.text)]
    assert likelihoods == pytest.approx([-9186.643268, -9184.620549, -9152.492743], abs=6e-5)
    slopes = printed(output, list(FORMULAS)[1])
    assert row(slopes, "var(ses)")[0] == pytest.approx(0.478944485, rel=2e-6)
    assert row(slopes, "cov(ses,_cons)")[0] == pytest.approx(1.763143198, rel=2e-6)
    rooms = printed(output, list(FORMULAS)[2])
    assert "classroom |        168          8       15.4         24" in rooms
    variances = re.findall(r"var\(_cons\) \| +(\S+)", rooms)
    assert [float(text) for text in variances] == pytest.approx([17.314660694, 6.600605844], rel=LME4)


def test_what_follows_the_models(output: jm.StataOutput, pupils: pd.DataFrame) -> None:
    share = 20.684375053 / (20.684375053 + 68.836937453)  # lme4's variances
    assert row(printed(output, "estat icc"), "school")[0] == pytest.approx(share, rel=LME4)
    # 2 * (logLik(lmer) - logLik(lm)) in R; of ols and ri only the first has one variance
    assert "LR chi2(1) = 539.64" in printed(output, "lrtest ri ols")
    assert set(output.fits) == {"ri", "ols"}
    assert output.fits["ri"].llf - output.fits["ols"].llf == pytest.approx(539.635999 / 2, abs=1e-5)
    assert stats.chi2.sf(539.635999, 1) < 5e-5


def test_the_schools_are_ranked_by_their_predicted_effects(output: jm.StataOutput) -> None:
    schools = output.data[output.data["pickone"] == 1].set_index("school")
    assert schools["rank"].tolist() == list(range(1, 51))
    assert (np.diff(schools["u_school"]) > 0).all()
    # as.data.frame(ranef(fit)), condval and condsd
    found = schools.loc[["s09", "s12", "s29", "s13"], ["u_school", "u_se"]]
    expected = [[-8.674710, 1.616971], [-8.583994, 1.026505], [8.695944, 1.0863564], [10.744860, 0.8827986]]
    np.testing.assert_allclose(found, expected, rtol=LME4)
    (figure,) = output.figures
    (axes,) = figure.axes
    bars = axes.containers[0]
    np.testing.assert_allclose(bars.lines[0].get_ydata(), schools["u_school"])
    low, high = np.array(bars.lines[2][0].get_segments())[0, :, 1]
    assert (high - low) / 2 == pytest.approx(1.96 * 1.616971, rel=LME4)

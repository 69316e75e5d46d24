"""Stata's commands after a fit: published outputs, closed forms, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from jaxmixed import datasets
from jaxmixed.errors import StataError
from jaxmixed.stata_commands import COMMANDS
from jaxmixed.stata_formats import general
from jaxmixed.stata_session import Session
from tests.reference.test_stata import assert_printed

REFFECTS = """63.55 -30.91 59.13 -17.63 45.35 156.05 -41.24 -67.81 192.95 -15.17 -27.47 159.00 -207.04 17.80
-187.36 -92.41 -6.80"""
DERIVATIVE = 1e-6
"""Relative error of central differences with steps of 1e-5."""

ROUNDING = 1e-9


def wright() -> Session:
    return Session(COMMANDS, datasets.load("mini_wright"))


@pytest.fixture(scope="module")
def reml() -> Session:
    session = wright()
    session.run("mixed wm || id:, reml")
    return session


@pytest.fixture(scope="module")
def schools() -> Session:
    data = datasets.load("exam")
    frame = pd.DataFrame({"school": data["school"], "y": 10 * data["normexam"], "x1": 10 * data["standLRT"]})
    session = Session(COMMANDS, frame)
    session.run(
        "gen g = mod(_n, 3)\nquietly mixed y x1 i.g || school:\nestimates store factors\n"
        "quietly regress y x1\nestimates store ols\n"
        "quietly mixed y x1 || school:\nestimates store ri\n"
        "quietly mixed y x1 || school: x1, cov(un)\nestimates store rs"
    )
    return session


def again(session: Session, script: str) -> tuple[str, Session]:
    """What a script prints; the session is as before afterwards, but for results."""
    copy = Session(session.commands)
    copy.state = session._copy()
    return copy.run(script), copy


# predict ---------------------------------------------------------------------------------------------


def test_reffects_are_the_published_ones(reml: Session) -> None:
    _, session = again(reml, "predict u, reffects")
    found = session.frame["u"].to_numpy().reshape(17, 2)
    assert (found[:, 0] == found[:, 1]).all()
    for value, text in zip(found[:, 0], REFFECTS.split(), strict=True):
        assert_printed(value, text)


def test_reses_after_ml_take_the_mean_as_known() -> None:
    session = wright()
    session.run("quietly mixed wm || id:\npredict se, reses")
    for value in session.frame["se"]:
        assert_printed(value, "13.958868")


def test_reses_after_reml_are_those_that_stata_prints() -> None:
    # 2.13 by xtmixed, reml and predict, reses (stats.stackexchange.com/questions/48254).
    g = [12, 8, 22, 10, 10, 6, 8, 4, 14, 6, 2, 22, 12, 7, 24, 14, 8, 4, 5, 6, 14, 5, 5, 16]
    session = Session(COMMANDS, pd.DataFrame({"id": [i % 12 + 1 for i in range(24)], "g": g}))
    session.run("quietly mixed g || id:, reml\npredict u, reffects reses(se)")
    for value in session.frame["se"]:
        assert_printed(value, "2.13")


def test_predictions_go_with_their_rows_when_the_data_are_sorted(reml: Session) -> None:
    text, session = again(
        reml,
        "predict f, fitted\npredict u, reffects\npredict r, residuals\nsort wm\npredict f2, fitted\n"
        "predict u2, reffects\npredict r2, residuals\npredict s, rstandard\npredict xb",
    )
    frame = session.frame
    for name in "fur":
        assert np.allclose(frame[name], frame[f"{name}2"], rtol=0, atol=ROUNDING)
    assert np.allclose(frame["wm"], frame["xb"] + frame["u"] + frame["r"], rtol=ROUNDING)
    assert np.allclose(frame["s"] * 19.910826, frame["r"], rtol=1e-6)
    assert text == "(option xb assumed)\n"


def test_fitted_values_outside_of_the_sample_are_those_of_known_groups() -> None:
    session = wright()
    text = session.run(
        "quietly mixed wm if !(id == 17 | (id == 1 & occasion == 2)) || id:\n"
        "predict f, fitted\npredict u, reffects\npredict s, stdp"
    )
    frame = session.frame
    assert frame["f"].isna().tolist() == [False] * 32 + [True] * 2
    assert frame["f"][0] == frame["f"][1]
    assert frame["u"].isna().sum() == 3
    assert np.ptp(frame["s"]) == 0
    assert text == "(2 missing values generated)\n(3 missing values generated)\n"


def test_effects_of_a_level_are_slopes_then_the_constant(schools: Session) -> None:
    _, session = again(
        schools, "predict b*, reffects\npredict se1 se2, reses\npredict f, fitted\npredict xb, xb"
    )
    frame = session.frame
    assert np.allclose(frame["f"], frame["xb"] + frame["b1"] * frame["x1"] + frame["b2"], rtol=0, atol=1e-9)
    assert abs(frame["b1"]).max() < 1 < abs(frame["b2"]).max()
    assert (frame["se1"] < frame["se2"]).all()


def test_relevel_adds_the_effects_down_to_a_level() -> None:
    data = datasets.load("pastes")
    data = data.assign(cask=data["cask"].astype("category").cat.codes + 1.0)
    data["batch"] = data["batch"].astype("category").cat.codes + 1.0
    session = Session(COMMANDS, data[["strength", "batch", "cask"]])
    session.run(
        "quietly mixed strength || batch: || cask:\npredict u v, reffects\npredict all, fitted\n"
        "predict outer, fitted relevel(batch)\npredict w, reffects relevel(cask)\npredict xb, xb"
    )
    frame = session.frame
    assert np.allclose(frame["all"], frame["xb"] + frame["u"] + frame["v"], rtol=ROUNDING)
    assert np.allclose(frame["outer"], frame["xb"] + frame["u"], rtol=ROUNDING)
    assert (frame["w"] == frame["v"]).all()
    assert frame.groupby("batch")["u"].nunique().max() == 1 < frame.groupby("batch")["v"].nunique().min()


def _cluster_llf(y: np.ndarray, parameters: np.ndarray) -> float:
    """Log-likelihood of one subject from its definition."""
    mean, log_sd, log_sigma = parameters
    V = np.exp(2 * log_sd) + np.exp(2 * log_sigma) * np.eye(len(y))
    r = y - mean
    return float(-0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ np.linalg.solve(V, r)))


def test_scores_are_derivatives_of_each_groups_log_likelihood() -> None:
    session = wright()
    session.run("quietly mixed wm || id:\npredict s*, scores")
    assert session.estimates is not None
    at = [session.estimates.b["_cons"], np.log(107.0464), np.log(19.910826)]
    fit = session.estimates.fit
    at[1:] = np.log(np.sqrt(fit.estimates.terms[0].cov[0, 0])), np.log(fit.sigma)
    steps = 1e-5 * np.diag([100.0, 1.0, 1.0])
    for _, own in session.frame.groupby("id"):
        y = own["wm"].to_numpy()
        expected = [
            (_cluster_llf(y, at + step) - _cluster_llf(y, at - step)) / (2 * step.sum()) for step in steps
        ]
        assert own[["s1", "s2", "s3"]].iloc[0].isna().all()
        np.testing.assert_allclose(
            own[["s1", "s2", "s3"]].iloc[1], expected, rtol=DERIVATIVE, atol=DERIVATIVE
        )


# estat ---------------------------------------------------------------------------------------------


def test_estat_icc_prints_the_published_line(reml: Session) -> None:
    text, _ = again(reml, "estat icc")
    assert text.splitlines()[1:] == [
        "Intraclass correlation",
        "",
        "-" * 78,
        "                       Level |        ICC   Std. err.     [95% conf. interval]",
        "-----------------------------+------------------------------------------------",
        "                          id |   .9684963    .015274      .9201564    .9879528",
        "-" * 78,
    ]


def test_estat_prints_matrices_and_sizes(schools: Session) -> None:
    text, session = again(schools, "estat recovariance\nestat recovariance, corr\nestat group\nestat sd")
    assert session.estimates is not None
    cov = session.estimates.fit.estimates.terms[0].cov
    # Slopes stand before the constant.
    assert f"          x1 | {general(cov[1, 1]):>9}\n       _cons | {general(cov[0, 1]):>9}" in text
    assert re.search(r"          x1 |         1\n       _cons \|  \.4975\d\d\d          1\n", text)
    assert "         school |         65          2       62.4        198" in text
    assert re.search(r"corr\(x1,_cons\) \| +\.4975", text)


def test_wcorrelation_is_that_of_a_random_slope(schools: Session) -> None:
    text, session = again(schools, "keep if school == 6\nestat recov")
    assert session.estimates is not None
    message = "no longer in the data"
    with pytest.raises(StataError, match=message):
        session.run("estat wcorrelation, at(school = 6)")
    _, session = again(schools, "estat wcorrelation, at(school = 48) format(%9.6f)")
    fit = session.estimates.fit  # type: ignore[union-attr]
    own = session.frame.loc[session.frame["school"] == 48, "x1"].to_numpy()
    Z = np.column_stack([np.ones(len(own)), own])
    V = Z @ fit.estimates.terms[0].cov @ Z.T + fit.sigma**2 * np.eye(len(own))
    sd = np.sqrt(np.diagonal(V))
    text, _ = again(schools, "estat wcorrelation, at(school = 48) format(%9.6f)")
    assert f"          sd | {sd[0]:9.6f}  {sd[1]:9.6f}" in text
    assert f"           2 | {V[1, 0] / sd[0] / sd[1]:9.6f}   1.000000" in text


def test_information_criteria_count_all_parameters(schools: Session) -> None:
    text, session = again(schools, "estat ic\nestimates stats ri ols")
    ll = float(session.estimates.e["ll"])  # type: ignore[union-attr]
    assert float(session.r["AIC"]) == pytest.approx(-2 * ll + 12, rel=ROUNDING)
    assert "          ri |      4,059          .  -14024.81       4   28057.63   28082.86" in text


def test_estat_df_prints_kenward_rogers() -> None:
    session = wright()
    text = session.run("quietly mixed wm || id:, reml dfmethod(kroger)\nestat df\nestat df, method(res sat)")
    assert "       _cons |            16" in text
    assert "       _cons |            33             16" in text


# estimates and lrtest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["lrtest ri rs", "lrtest ri", "lrtest rs ri"])
def test_lrtest_is_the_published_one(schools: Session, command: str) -> None:
    text, session = again(schools, command)
    assert " LR chi2(2) =  40.37\nProb > chi2 = 0.0000\n" in text
    assert "Note: The reported degrees of freedom assumes" in text
    assert session.r["df"] == 2


def test_lrtest_against_regress_counts_one_parameter(schools: Session) -> None:
    text, _ = again(schools, "lrtest ri ols")
    assert "Assumption: ols nested within ri\n\n LR chi2(1) = 403.27\n" in text


def test_estimates_are_restored_and_dropped(schools: Session) -> None:
    text, session = again(
        schools, "estimates restore ri\npredict u, reffects\nestimates drop ri\nestimates dir"
    )
    assert text.startswith("(results ri are active now)\n")
    assert list(session.stored) == ["factors", "ols", "rs"]
    assert "          rs | mixed     y                   6  Mixed-effects regression" in text


def test_a_table_of_estimates_stands_side_by_side(schools: Session) -> None:
    text, _ = again(schools, "estimates table ri ols, se stats(N)")
    lines = text.splitlines()
    assert lines[1] == "-" * 40
    assert lines[2] == "    Variable |     ri           ols"
    assert lines[4] == "y            |"
    assert re.fullmatch(r" {10}x1 \| {3}\.56337\d+ {4}\.59505\d+", lines[5])
    assert lines[-3] == "           N |        4059         4059"
    text, _ = again(schools, "estimates table rs, star keep(x1)")
    assert re.search(r"x1 \| +\.5567\d+\*\*\*", text)


# test, testparm, lincom, nlcom -------------------------------------------------------------------------


def test_a_wald_test_is_the_square_of_z(schools: Session) -> None:
    text, session = again(schools, "estimates restore ri\ntest x1")
    assert " ( 1)  [y]x1 = 0\n\n           chi2(  1) = 2042.5" in text
    own = session.estimates
    assert own is not None
    assert session.r["chi2"] == pytest.approx((own.b["x1"] / own.se["x1"]) ** 2, rel=ROUNDING)


def test_hypotheses_that_follow_from_others_are_dropped(schools: Session) -> None:
    script = "estimates restore factors\ntest (x1 = 1) ([y]2.g = 1.g) (2*x1 = 2)"
    text, session = again(schools, script)
    assert " ( 2)  - [y]1.g + [y]2.g = 0\n ( 3)  2*[y]x1 = 2\n       Constraint 3 dropped\n" in text
    assert session.r["df"] == 2
    first, _ = again(schools, "estimates restore factors\ntestparm i.g")
    second, _ = again(schools, "estimates restore factors\ntest 1.g 2.g")
    assert first == second


def test_regress_has_f_tests(schools: Session) -> None:
    text, session = again(schools, "estimates restore ols\ntest x1\nlincom 2*x1 - _cons")
    assert "       F(  1,  4057) = 2185" in text
    assert " ( 1)  2*x1 - _cons = 0" in text
    own = session.estimates
    assert own is not None
    assert session.r["estimate"] == pytest.approx(2 * own.b["x1"] - own.b["_cons"], rel=ROUNDING)


def test_nlcom_of_the_icc_is_estat_icc(schools: Session) -> None:
    variances = "exp(2*_b[lns1_1_1:_cons])", "exp(2*[lnsig_e]_cons)"
    script = f"estimates restore ri\nestat icc\nnlcom (icc: {variances[0]}/({variances[0]} + {variances[1]}))"
    text, session = again(schools, script)
    numbers = re.search(r"school \| +(\.\d+) +(\.\d+)", text)
    assert numbers is not None
    assert f"         icc |   {numbers[1]}   {numbers[2]}" in text
    assert float(session.r["b_icc"]) == pytest.approx(float(numbers[1]), abs=1e-7)


def test_lincom_of_a_difference_has_its_covariance(schools: Session) -> None:
    _, session = again(schools, "estimates restore factors\nlincom 2.g - 1.g + 0*0.g")
    own = session.estimates
    assert own is not None
    cov = own.fit.cov_params().to_numpy()
    names = list(own.more["names"])
    a, b = names.index("2.g"), names.index("1.g")
    expected = np.sqrt(cov[a, a] + cov[b, b] - 2 * cov[a, b])
    assert session.r["se"] == pytest.approx(expected, rel=ROUNDING)


# Refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "column", "message"),
    [
        ("predict y, xb", 9, "exists already"),
        ("predict a b, xb", 9, "makes 1 new variable"),
        ("predict a, reffects", 9, "makes 2 new variables"),
        ("predict a, rstudent", 12, "not a supported option of predict"),
        ("predict a, xb stdp", 15, "one statistic at a time"),
        ("predict a, fitted relevel(pupil)", 27, "no level of the model"),
        ("predict a, xb relevel(school)", 15, "relevel"),
        ("predict", 1, "name of a new variable"),
        ("estat icc, level(3)", 12, "from 10 to 99.99"),
        ("estat icx", 7, "did you mean 'ic'"),
        ("estat wcorrelation, at(x1 = 3)", 24, "level variables"),
        ("estat wcorrelation, at(school = 3333)", 24, "no row"),
        ("estat df", 1, "reml"),
        ("estimates restore zz", 19, "no estimates are stored"),
        ("estimates store", 1, "takes one name"),
        ("estimates table rs, b(%s)", 23, "formats"),
        ("lrtest a b c", 8, "one or two stored"),
        ("lrtest rs factors", 1, "neither is nested"),
        ("test zz", 6, "no coefficient 'zz'"),
        ("test x1*_cons", 6, "not linear"),
        ("test (x1 = 0) (x1 = 1)", 6, "contradicts"),
        ("test x1, mtest", 10, "not a supported option of test"),
        ("testparm school", 10, "no coefficients"),
        ("lincom x1^2", 8, "not linear"),
        ("lincom x1, small", 12, "dfmethod"),
        ("nlcom 3", 7, "no parameter"),
        ("nlcom ln(-_b[x1])", 7, "no value"),
        ("serrbar y x1", 9, "three variables"),
    ],
)
def test_what_cannot_be_done_is_refused_where_it_stands(
    schools: Session, command: str, column: int, message: str
) -> None:
    with pytest.raises(StataError, match=re.escape(message)) as caught:
        again(schools, f"estimates restore rs\n{command}")
    assert (caught.value.line, caught.value.column) == (2, column)


@pytest.mark.parametrize("command", ["estat icc", "test x", "lincom x", "lrtest a", "estimates store a"])
def test_commands_after_a_fit_need_a_fit(command: str) -> None:
    with pytest.raises(StataError):
        wright().run(command)


def test_restricted_likelihoods_of_different_fixed_parts_are_not_compared(schools: Session) -> None:
    script = "mixed y || school:, reml\nest store a\nmixed y x1 || school: x1, reml\nlrtest a"
    with pytest.raises(StataError, match="the fixed parts differ"):
        again(schools, script)
    with pytest.raises(StataError, match="one model is fitted by REML"):
        again(schools, "mixed y || school:, reml\nest store a\nlrtest a ri")


def test_serrbar_draws_estimates_and_errors(reml: Session) -> None:
    close = pytest.importorskip("matplotlib.pyplot").close
    _, session = again(
        reml,
        "predict u, reffects\npredict se, reses\nsort u\ngen rank = sum(occasion == 1)\n"
        'serrbar u se rank if occasion == 1, scale(1.96) yline(0) ytitle("effect")',
    )
    (figure,) = session.state.figures
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rank", "effect")
    points, _, (bars,) = ax.containers[0]
    assert np.allclose(sorted(points.get_ydata()), sorted(session.frame["u"][session.frame["occasion"] == 1]))
    segment = bars.get_segments()[0]
    assert segment[1][1] - segment[0][1] == pytest.approx(2 * 1.96 * session.frame["se"][0], rel=ROUNDING)
    close(figure)


@pytest.mark.parametrize(
    "script",
    [
        "drop x1\npredict a",
        "clear\npredict a",
        "rename school s\npredict a, fitted",
        "drop y\nestat summarize",
    ],
)
def test_data_that_are_no_longer_those_of_the_fit_are_refused(schools: Session, script: str) -> None:
    with pytest.raises(StataError, match=r"gone|others than those"):
        again(schools, script)


@pytest.mark.parametrize(
    "command", ["estimates restore _all", "estimates store _all", "lrtest _all", "estat ic, n(0)"]
)
def test_names_and_numbers_that_mean_nothing_are_refused(schools: Session, command: str) -> None:
    with pytest.raises(StataError):
        again(schools, command)


def test_robust_errors_of_coefficients_and_variances_are_not_mixed(schools: Session) -> None:
    script = "quietly mixed y x1 || school:, vce(robust)\n"
    text, session = again(schools, script + "lincom x1\nestat vce\nnlcom exp(_b[lnsig_e:_cons])")
    assert "Robust" in text
    assert "robust standard errors are not listed" in text
    with pytest.raises(StataError, match="cannot stand in one expression"):
        session.run("nlcom _b[x1]/exp(_b[lnsig_e:_cons])")
    with pytest.raises(StataError, match="not valid with robust"):
        session.run("lrtest ri")


def test_correlated_residuals_are_whitened_in_rstandard() -> None:
    data = datasets.load("orthodont")
    frame = data.assign(id=data["Subject"].cat.codes + 1.0)[["distance", "age", "id"]]
    session = Session(COMMANDS, frame)
    session.run(
        "quietly mixed distance age || id:, residuals(ar 1, t(age))\n"
        "predict s, rstandard\npredict r, residuals"
    )
    assert session.estimates is not None
    fit, own = session.estimates.fit, session.frame
    rho = float(fit.residual_parameters.iloc[0])
    first = own.groupby("id").head(1).index
    assert np.allclose(own["s"][first], own["r"][first] / fit.sigma, rtol=ROUNDING)
    previous = own.groupby("id")["r"].shift()
    # Rows are two years apart, so that neighbours correlate by rho squared.
    step = rho**2
    later = (own["r"] - step * previous) / fit.sigma / np.sqrt(1 - step**2)
    rest = previous.notna()
    assert np.allclose(own["s"][rest], later[rest], rtol=1e-8)
    with pytest.raises(StataError, match="not available with residuals"):
        session.run("estat icc")

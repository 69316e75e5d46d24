"""Outputs of Stata that are in print, pasted as command lines and compared with what is printed here.

A number printed with fewer digits than here (Stata can be told to) is compared to the digits that it has.
Digits that an exact optimum cannot reproduce, since the program that printed them stopped a little short of
its own, are compared to a relative tolerance that is named.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

import jaxmixed as jm
from tests.reference.cases import read_data

pytestmark = pytest.mark.reference

STOPPED = 1e-5
"""Relative: Stata's iterations stop where the log-likelihood is known well enough, and variances less."""

WEAK = 1e-4
"""Relative: of variances of few groups, whose maximum is flat."""

ROUNDED = 4e-4
"""Of a standard error: the examination data that are public were rounded after Stata's output was made."""

_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]\d+)?")


def numbers(output: str, label: str) -> list[str]:
    """Numbers of the first line of a table whose name is `label`."""
    lines = [line.split("|", 1)[1] for line in output.splitlines() if line.split("|")[0].strip() == label]
    return _NUMBER.findall(lines[0])


def agree(shown: list[str], printed: str) -> None:
    """Each number, rounded to the digits that are printed, is the printed one."""
    expected = printed.split()
    assert len(shown) == len(expected)
    for own, text in zip(shown, expected, strict=True):
        decimals = len(text.partition(".")[2])
        assert f"{float(own):.{decimals}f}" == f"{float(text):.{decimals}f}", f"{own} is not {text}"


def close(shown: list[str], printed: str, rel: float) -> None:
    """The same to a relative tolerance."""
    expected = [float(text) for text in printed.split()]
    assert [float(own) for own in shown] == pytest.approx(expected, rel=rel)


# --- Mini-Wright peak flow (Bland & Altman 1986) --------------------------------------------------------


@cache
def wright(command: str) -> str:
    return str(jm.stata(command, jm.datasets.load("mini_wright")))


HEADER = """
Mixed-effects ML regression                             Number of obs    =  34
Group variable: id                                      Number of groups =  17
                                                        Obs per group:
                                                                     min =   2
                                                                     avg = 2.0
                                                                     max =   2
                                                        Wald chi2(0)     =   .
Log likelihood = -184.57839                             Prob > chi2      =   .

------------------------------------------------------------------------------
          wm | Coefficient  Std. err.      z    P>|z|     [95% conf. interval]
-------------+----------------------------------------------------------------
"""

RANDOM = """
------------------------------------------------------------------------------
  Random-effects parameters  |   Estimate   Std. err.     [95% conf. interval]
-----------------------------+------------------------------------------------
id: Identity                 |
"""


def test_the_layout_is_statas_character_by_character() -> None:
    output = wright("mixed wm || id:, stddeviations")
    assert output.startswith(HEADER)
    assert RANDOM in output
    assert output.endswith("LR test vs. linear model: chibar2(01) = 46.27         Prob >= chibar2 = 0.0000\n")
    assert max(map(len, output.splitlines())) == 78


def test_peak_flow_by_maximum_likelihood() -> None:
    output = wright("mixed wm || id:, stddeviations")
    agree(numbers(output, "_cons"), "453.91 26.19 17.33 0.000 402.59 505.24")
    agree(numbers(output, "sd(_cons)"), "107.05 18.68 76.04 150.69")
    agree(numbers(output, "sd(Residual)"), "19.91 3.41 14.23 27.87")


def test_peak_flow_by_restricted_maximum_likelihood() -> None:
    output = wright("mixed wm || id:, reml stddeviations")
    assert "Log restricted-likelihood = -180.37921                  Prob > chi2      =   .\n" in output
    agree(numbers(output, "_cons"), "453.91 26.99 16.82 0.000 401.01 506.82")
    agree(numbers(output, "sd(_cons)"), "110.40 19.84 77.63 157.00")
    agree(numbers(output, "sd(Residual)"), "19.91 3.41 14.23 27.87")
    assert "chibar2(01) = 46.96         Prob >= chibar2 = 0.0000\n" in output


def test_peak_flow_by_kenward_and_roger() -> None:
    output = wright("mixed wm || id:, reml dfmethod(kroger) stddeviations")
    assert (
        "DF method: Kenward–Roger                              DF:          min = 16.00\n"
        "                                                                   avg = 16.00\n"
        "                                                                   max = 16.00\n"
    ) in output
    agree(numbers(output, "_cons"), "453.91 26.99 16.82 0.000 396.69 511.13")


def test_peak_flow_by_xtreg() -> None:
    output = wright("xtset id\nquietly xtreg wm, re\nxttest0\nxtreg wm, mle\nxtreg wm, fe")
    agree(numbers(output, "e"), "396.4412 19.91083")
    agree(numbers(output, "u"), "12187.51 110.397")
    agree(numbers(output, "wm"), "12214.63 110.5198")
    assert (
        "                     chibar2(01) =    15.88\n                  Prob > chibar2 =   0.0000\n" in output
    )
    agree(numbers(output, "/sigma_u"), "107.05 18.68 76.04 150.69")
    agree(numbers(output, "rho"), "0.97 0.02 0.92 0.99")
    assert "    sigma_u |  111.29118\n" in output
    assert "    sigma_e |  19.910831\n" in output
    assert "        rho |  .96898482   (fraction of variance due to u_i)\n" in output
    assert "F test that all u_i=0: F(16, 17) = 62.48                     Prob > F = 0.0000\n" in output
    fixed_effects = output[output.index(". xtreg wm, fe") :]
    agree(numbers(fixed_effects, "_cons"), "453.91 3.41 132.93 0.000 446.71 461.12")


def test_the_interval_of_xtregs_rho_is_symmetric_on_the_probit_scale() -> None:
    # xtreg in the manual: rho .4204033 (.0074828) [.4057959, .4351212].
    from jaxmixed.stata_panels import with_probit_limits

    found = with_probit_limits(0.4204033, 0.0074828, 0.95)
    assert [f"{value:.6f}" for value in found[2:]] == ["0.405796", "0.435121"]


# --- GCSE scores in inner London -------------------------------------------------------------------------


@cache
def gcse(command: str) -> str:
    data = jm.datasets.load("exam")
    return str(jm.stata(command, data.assign(y=10 * data["normexam"], x1=10 * data["standLRT"])))


@pytest.mark.parametrize(
    ("command", "lr", "rows"),
    [
        (
            "mixed y || school:, mle stddeviations",
            "chibar2(01) = 498.72",
            {
                "_cons": "-.1317107 .5362734",
                "sd(_cons)": "4.106565 .3999182 3.393004 4.970191",
                "sd(Residual)": "9.207356 .1030214 9.007636 9.411505",
            },
        ),
        (
            "mixed y x1 || school:, stddeviations",
            "chibar2(01) = 403.27",
            {
                "x1": ".5633697 .0124654",
                "_cons": ".0238706 .4002255",
                "sd(_cons)": "3.035269 .3052513 2.492261 3.696587",
                "sd(Residual)": "7.521481 .0841759",
            },
        ),
        (
            "mixed y x1 || school: x1, covariance(unstructured) stddeviations",
            "chi2(3) = 443.64",
            {
                "x1": ".556729 .0199368",
                "_cons": "-.115085 .3978346",
                "sd(x1)": ".1205646 .0189827 .0885522 .1641498",
                "sd(_cons)": "3.007444 .3044148 2.466258 3.667385",
                "corr(x1,_cons)": ".4975415 .1487427 .1572768 .7322094",
                "sd(Residual)": "7.440787 .0839482 7.278058 7.607155",
            },
        ),
    ],
)
def test_examination_scores(command: str, lr: str, rows: dict[str, str]) -> None:
    output = gcse(command)
    assert f"LR test vs. linear model: {lr} " in output
    assert "Number of obs    = " in output
    assert "4,059\n" in output
    for label, printed in rows.items():
        shown = numbers(output, label)
        if label in ("x1", "_cons"):
            shown = shown[:2]
        expected = [float(text) for text in printed.split()]
        tolerance = ROUNDED * expected[1]
        assert [float(own) for own in shown][: len(expected)] == pytest.approx(expected, abs=tolerance)


def test_wald_tests_and_the_sizes_of_schools_are_printed_exactly() -> None:
    output = gcse("mixed y x1 || school:, stddeviations")
    for label, value in {
        "Number of groups": "65", "min": "2", "avg": "62.4", "max": "198",
        "Wald chi2(1)    ": "2042.57", "Prob > chi2     ": "0.0000",
    }.items():  # fmt: skip
        assert re.search(rf"{re.escape(label)} = +{re.escape(value)}\n", output)
    output = gcse("mixed y x1 || school: x1, covariance(unstructured) stddeviations")
    assert re.search(r"Wald chi2\(1\)     = 779.79\n", output)
    assert "Note: LR test is conservative and provided only for reference.\n" in output


# --- Weights of pigs (Diggle et al. 2002; examples 1 to 3 of the manual's entry of mixed) ----------------


@cache
def pigs(command: str) -> str:
    return str(jm.stata(command, read_data("data/pig.csv")))


@pytest.mark.parametrize(
    ("command", "likelihood", "lr", "rows"),
    [
        (
            "mixed weight week || id:",
            "-1014.9268",
            "chibar2(01) = 472.65",
            {
                "week": "6.209896 .0390124 159.18 0.000 6.133433 6.286359",
                "_cons": "19.35561 .5974059 32.40 0.000 18.18472 20.52651",
                "var(_cons)": "14.81751 3.124226 9.801716 22.40002",
                "var(Residual)": "4.383264 .3163348 3.805112 5.04926",
            },
        ),
        (
            "mixed weight week || id: week",
            "-869.03825",
            "chi2(2) = 764.42",
            {
                "week": "6.209896 .0906819 68.48 0.000 6.032163 6.387629",
                "_cons": "19.35561 .3979159 48.64 0.000 18.57571 20.13551",
                "var(week)": ".3680668 .0801181 .2402389 .5639103",
                "var(_cons)": "6.756364 1.543503 4.317721 10.57235",
                "var(Residual)": "1.598811 .1233988 1.374358 1.85992",
            },
        ),
        (
            "mixed weight week || id: week, covariance(unstructured)",
            "-868.96185",
            "chi2(3) = 764.58",
            {
                "week": "6.209896 .0910745 68.18 0.000 6.031393 6.388399",
                "_cons": "19.35561 .3996387 48.43 0.000 18.57234 20.13889",
                "var(week)": ".3715251 .0812958 .2419532 .570486",
                "var(_cons)": "6.823363 1.566194 4.351297 10.69986",
                "cov(week,_cons)": "-.0984378 .2545767 -.5973991 .4005234",
                "var(Residual)": "1.596829 .123198 1.372735 1.857505",
            },
        ),
    ],
)
def test_pigs(command: str, likelihood: str, lr: str, rows: dict[str, str]) -> None:
    output = pigs(command)
    assert f"Log likelihood = {likelihood} " in output
    assert f"LR test vs. linear model: {lr} " in output
    for label, printed in rows.items():
        close(numbers(output, label), printed, STOPPED)


def test_least_squares_has_the_analysis_of_variance_above() -> None:
    output = pigs("regress weight week")
    # R's lm: the same sums of squares, F, R squared and residual standard error.
    assert output.startswith(
        """
      Source |       SS           df       MS      Number of obs   =       432
-------------+----------------------------------   F(1, 430)       =   5757.41
       Model |  111060.882         1  111060.882   Prob > F        =    0.0000
    Residual |  8294.72677       430  19.2900622   R-squared       =    0.9305
-------------+----------------------------------   Adj R-squared   =    0.9303
       Total |  119355.609       431  276.927167   Root MSE        =     4.392
"""
    )


# --- Sleepstudy with sampling weights, three levels ------------------------------------------------------


def test_sampling_weights_at_three_levels() -> None:
    data = jm.datasets.load("sleepstudy").rename(columns=str.lower)
    subject = data["subject"].astype(str).astype(int)
    groups = {2: (310, 309, 349, 335), 3: (330, 352, 337, 369), 4: (331, 332, 334, 372)}
    group = subject.map({code: number for number, codes in groups.items() for code in codes}).fillna(1)
    data = data.assign(
        group=group,
        c1=np.where((subject == 308) & (data["days"] <= 3), 2, 1),
        c2=np.where(subject == 308, 2, 1),
        c3=np.where(group == 1, 2, 1),
    )
    output = str(
        jm.stata("mixed reaction days [pw=c1] || group:, pweight(c3) || subject:, pweight(c2)", data)
    )
    assert "Log pseudolikelihood = -1389.0983 " in output
    assert "                                  (Std. err. adjusted for 4 clusters in group)\n" in output
    agree(numbers(output, "days")[:2], "12.67954 2.468474")
    close(numbers(output, "_cons")[:2], "243.6831 11.68881", STOPPED)
    close(numbers(output, "var(_cons)")[:1], "756.5857", WEAK)
    close(numbers(output[output.index("subject: Identity") :], "var(_cons)")[:1], "360.97", WEAK)
    close(numbers(output, "var(Residual)")[:1], "1153.704", WEAK)
    assert "LR test" not in output

"""The printed summary, its numbers, verdicts, notes and HTML; numbers and names as text."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import numpy as np
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed._distributions import chi2_p_value, normal_p_values, normal_quantile
from jaxmixed.errors import printable
from jaxmixed.formatting import Table, counted, display_width, number, p_number, p_phrase
from tests.support.fits import aliased, fit, quietly, sleepstudy, sleepstudy_dropping

SLEEPSTUDY = """\
Linear mixed model fitted by restricted maximum likelihood (REML)

Formula: Reaction ~ Days + (Days | Subject)

Observations                180           Log restricted-likelihood  -871.81414
Rows dropped                  0           REML criterion              1743.6283
Parameters                    6           AIC                         1755.6283
Wald chi2(1)              45.85           BIC                         1774.7860
Prob > chi2              <0.001
"""
FIXED = """\
Reaction        Estimate   Std. error       z    P>|z|   [95% conf.   interval]
-------------------------------------------------------------------------------
(Intercept)     251.4051     6.824557   36.84   <0.001     238.0292    264.7810
Days            10.46729     1.545789    6.77   <0.001     7.437595    13.49698
"""
RANDOM = """\
                        (Co)var.  Std. error  [95% conf.  interval]  SD / corr.
-------------------------------------------------------------------------------
Subject
  (Intercept)           612.0899    288.7827    242.7841   1543.157    24.74045
"""
ENDING = """\
LR test against the linear model: chi2(3) = 150.04, p < 0.0001
Note: the LR test is conservative: it tests variances at their boundary, zero."""


def test_the_summary_of_the_sleep_study() -> None:
    text = str(sleepstudy().summary())
    assert text.startswith(SLEEPSTUDY)
    assert FIXED in text
    assert RANDOM in text
    assert text.endswith(ENDING)
    assert "Subject                             18                     10       10.0     10" in text


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("hsb82", "mathach ~ ses + sector + (1 + ses | school)"),
        ("egsingle", "math ~ year + black + hispanic + (year | schoolid/childid)"),
        ("sleepstudy", "Reaction ~ Days"),
    ],
)
def test_ordinary_summaries_fit_a_terminal_of_80_columns(name: str, formula: str) -> None:
    for scale in ("variance", "sd"):
        lines = str(fit(name, formula).summary(scale=scale)).splitlines()
        assert max(map(len, lines)) <= 79
        assert not any(line != line.rstrip() for line in lines)


def test_the_sd_scale_puts_standard_deviations_first() -> None:
    text = str(fit("mini_wright", "wm ~ 1 + (1 | id)", "ml").summary(scale="sd"))
    printed = next(line for line in text.splitlines() if line.startswith("  (Intercept)")).split()
    # Stata prints 107.05 (18.68) [76.04, 150.69].
    assert [round(float(value), 2) for value in printed[1:5]] == [107.05, 18.68, 76.04, 150.69]
    assert "chibar2(01) = 46.27" in text


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(jm.DataError, match="'variance' or 'sd'"):
        sleepstudy().summary(scale="stddeviations")  # type: ignore[arg-type]


def test_the_level_is_printed_and_used() -> None:
    text = str(sleepstudy().summary(level=0.9))
    assert "[90% conf." in text
    low = sleepstudy().conf_int(0.9)["conf_low"]["Days"]
    assert number(low) in text


def test_bad_verdicts_come_before_everything_but_the_title() -> None:
    singular = str(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").summary())
    assert singular.splitlines()[2].startswith("WARNING: the fit is singular: Batch")
    dropped = str(aliased().summary())
    assert "dropped: Days2" in " ".join(dropped.split("Formula:")[0].split())


def test_a_parameter_on_the_boundary_has_points_and_a_note() -> None:
    lines = str(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").summary()).splitlines()
    row = [line for line in lines if line.startswith("  (Intercept)")]
    assert row[0].split() == ["(Intercept)", "0", ".", ".", ".", "0"]
    assert "no standard error and no" in "\n".join(lines)
    assert "chibar2(01) = 0.00, p = 1.0000" in "\n".join(lines)


def test_dropped_coefficients_and_rows_are_shown() -> None:
    text = str(aliased().summary())
    assert "Days2            dropped" in text
    assert "Rows dropped                  2 " in text
    assert "2 rows dropped for missing values (Reaction 2)." in text


def test_few_levels_weights_and_offsets_are_noted() -> None:
    data = sleepstudy_dropping()
    data = data[data["Subject"].isin(["308", "309", "310", "330"])].assign(w=2.0)
    found = quietly("Reaction ~ offset(Days) + (1 | Subject)", data, weights="w")
    text = " ".join(str(found.summary()).split())
    assert "Subject has only 4 levels" in text
    assert "weighted: the residual variance of a row" in text
    assert "an offset is part of the linear predictor" in text
    assert "has only" not in str(sleepstudy().summary())


def test_structures_that_restrict_covariances_are_named() -> None:
    text = str(fit("sleepstudy", "Reaction ~ Days + (Days || Subject)").summary())
    assert "\nSubject (independent)\n" in text
    text = str(
        fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance="exchangeable").summary()
    )
    assert "\nWorker (exchangeable: MachineA, MachineB, MachineC)\n  Common variance" in text
    assert "\n  Common covariance" in text


def test_a_linear_model_says_so_and_has_no_groups() -> None:
    text = str(fit("sleepstudy", "Reaction ~ Days").summary())
    assert text.startswith("Linear model fitted by")
    assert "Residual variance" in text
    assert "LR test" not in text
    assert "Group " not in text


def test_the_wald_test_is_the_published_one() -> None:
    data = jm.datasets.load("exam").assign(y=lambda d: 10 * d["normexam"], x1=lambda d: 10 * d["standLRT"])
    intercept = jm.mixed("y ~ x1 + (1 | school)", data, method="ml").summary()
    slope = jm.mixed("y ~ x1 + (x1 | school)", data, method="ml").summary()
    assert dict(intercept.facts[0])["Wald chi2(1)"] == "2042.57"
    assert dict(slope.facts[0])["Wald chi2(1)"] == "779.79"


def test_a_model_of_the_intercept_alone_has_no_wald_test() -> None:
    assert "Wald" not in str(fit("mini_wright", "wm ~ 1 + (1 | id)").summary())


class _Balanced(HTMLParser):
    """Collects text and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = "<script>alert(1)</script>"


def hostile() -> jm.MixedResults:
    data = jm.datasets.load("sleepstudy").rename(columns={"Days": HOSTILE, "Subject": "a <i>"})
    data["f"] = np.where(data[HOSTILE] > 4, "\x1b[31mred\u202e", "other")
    return jm.mixed(f"Reaction ~ `{HOSTILE}` + f + (1 | `a <i>`)", data)


def test_html_is_well_formed_and_shows_the_same_numbers() -> None:
    page = sleepstudy().summary()._repr_html_()
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert parser.seen.count("table") == 4
    for value in ("251.4051", "612.0899", "chi2(3) = 150.04", "1743.6283"):
        assert value in page


def test_names_from_the_data_cannot_inject_markup_or_control_the_terminal() -> None:
    found = hostile()
    page = found.summary()._repr_html_()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for text in (str(found.summary()), repr(found), page):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_long_names_are_not_cut() -> None:
    name = "a_rather_long_name_of_a_column_that_nobody_would_like_to_type_twice"
    data = jm.datasets.load("sleepstudy").rename(columns={"Days": name})
    assert f"\n{name} " in str(jm.mixed(f"Reaction ~ {name} + (1 | Subject)", data).summary())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (251.40510484, "251.4051"),
        (0.5633697, "0.5633697"),
        (-0.1317107, "-0.1317107"),
        (-0.01317107, "-0.0131711"),
        (1e7, "1.0000e+07"),
        (12345678.0, "1.2346e+07"),
        (1234567.0, "1234567"),
        (0.0, "0"),
        (-0.0, "0"),
        (float("nan"), "."),
        (float("inf"), "inf"),
        (-float("inf"), "-inf"),
        (1.23456789e-200, "1.235e-200"),
    ],
)
def test_numbers_have_seven_significant_digits_within_ten_columns(value: float, text: str) -> None:
    assert number(value) == text
    assert len(number(value)) <= 10


def test_p_values_as_text() -> None:
    assert [p_number(p) for p in (0.00049, 0.0005, 0.0494, 1.0, math.nan)] == [
        "<0.001",
        "0.001",
        "0.049",
        "1.000",
        ".",
    ]
    assert [p_phrase(p) for p in (0.00004, 0.00006, 0.5)] == ["p < 0.0001", "p = 0.0001", "p = 0.5000"]


def test_counts_are_singular_or_plural() -> None:
    assert [counted(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]


def test_printable_text_keeps_letters_of_all_scripts() -> None:
    assert printable("école 学校 ß") == "école 学校 ß"
    assert printable("a\x00b\u2028c\nd") == "abc d"


def test_wide_characters_count_twice() -> None:
    assert display_width("学校") == 4
    assert display_width("e\u0301") == 1
    lines = Table("", ("", "n"), (("学校", "1"), ("ab", "22"))).text().splitlines()
    assert {display_width(line) for line in lines} == {79}


@pytest.mark.parametrize("df", [1, 2, 3, 6, 9, 40, 301])
@pytest.mark.parametrize("x", [1e-9, 0.1, 1.0, 5.0, 60.0, 1300.0])
def test_chi_squared_tails_equal_those_of_scipy(df: int, x: float) -> None:
    assert chi2_p_value(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-11, abs=1e-300)


def test_chi_squared_tails_at_the_edges() -> None:
    assert chi2_p_value(0.0, 3) == 1.0
    assert chi2_p_value(1.0, 0) == 0.0
    assert chi2_p_value(1e6, 3) == 0.0
    assert math.isnan(chi2_p_value(math.nan, 1))


def test_normal_quantiles_and_tails_equal_those_of_scipy() -> None:
    for level in (0.5, 0.8, 0.95, 0.99, 1 - 1e-12):
        assert normal_quantile(level) == pytest.approx(stats.norm.isf((1 - level) / 2), rel=1e-9)
    z = np.array([0.0, -1.5, 8.0, 30.0, np.nan])
    np.testing.assert_allclose(normal_p_values(z), 2 * stats.norm.sf(np.abs(z)), rtol=1e-12)

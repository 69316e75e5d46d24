"""Intraclass correlations: Stata's printed digits, nested and crossed groupings, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.icc import intraclass_correlation
from jaxmixed.inference import VarianceParameters, variance_inference
from tests.support.fits import fit, sleepstudy


def test_the_published_intraclass_correlation_of_the_peak_flow_meter() -> None:
    row = fit("mini_wright", "wm ~ 1 + (1 | id)").icc().loc["id"]
    printed = {"estimate": 0.9684963, "std_error": 0.015274, "conf_low": 0.9201564, "conf_high": 0.9879528}
    for name, value in printed.items():
        assert row[name] == pytest.approx(value, abs=6e-7), name


@pytest.mark.parametrize(
    ("name", "formula", "method", "estimate", "std_error"),
    [
        ("sleepstudy", "Reaction ~ Days + (1 | Subject)", "ml", 0.5760288109227, 0.09212585395598),
        ("pig", "weight ~ week + (1 | id)", "reml", 0.7750520335876, 0.03933671410037),
        ("dyestuff", "Yield ~ 1 + (1 | Batch)", "reml", 0.4184874412757, 0.216204992798),
    ],
)
def test_reference_values_and_standard_errors(
    name: str, formula: str, method: str, estimate: float, std_error: float
) -> None:
    (row,) = fit(name, formula, method).icc().itertuples()
    assert row.estimate == pytest.approx(estimate, abs=1e-5)
    assert row.std_error == pytest.approx(std_error, rel=1e-3)


def test_an_inner_grouping_accumulates_the_outer_variances() -> None:
    found = fit("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml")
    table, shares = found.icc(), found.icc(kind="share")
    assert list(table.index) == ["schoolid", "schoolid:childid"]
    assert table.loc["schoolid", "estimate"] == pytest.approx(0.1458578157781, abs=1e-4)
    assert table.loc["schoolid:childid", "estimate"] == pytest.approx(0.7086034282463, abs=1e-4)
    assert shares.loc["schoolid:childid", "estimate"] == pytest.approx(0.5627456124682, abs=1e-4)
    assert (table["conf_low"] < table["estimate"]).all()
    assert (table["estimate"] < table["conf_high"]).all()


def test_with_slopes_the_value_holds_at_zero_and_says_so() -> None:
    table = sleepstudy().icc()
    variances = sleepstudy().varcorr["estimate"]
    expected = variances[0] / (variances[0] + variances[3])
    assert table.loc["Subject", "estimate"] == pytest.approx(expected)
    assert table.attrs["note"] == "at zero of the covariates that have random effects"
    assert "Note: at zero of the covariates" in repr(table)
    assert "Note: at zero of the covariates" in str(table._repr_html_())


def test_the_note_of_a_random_intercept_model_is_empty() -> None:
    assert fit("pig", "weight ~ week + (1 | id)").icc().attrs == {}


def test_a_variance_of_zero_has_no_standard_error() -> None:
    row = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").icc().loc["Batch"]
    assert row["estimate"] == 0.0
    assert row[["std_error", "conf_low", "conf_high"]].isna().all()


def test_a_common_variance_counts_as_that_of_the_intercept() -> None:
    found = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)", covariance="identity")
    common, residual = found.varcorr["estimate"]
    assert found.icc().loc["Subject", "estimate"] == pytest.approx(common / (common + residual))


def test_a_linear_model_is_refused() -> None:
    with pytest.raises(jm.DesignError, match="linear model has no groups"):
        fit("sleepstudy", "Reaction ~ Days").icc()


def test_random_effects_without_an_intercept_are_refused() -> None:
    with pytest.raises(jm.DesignError, match="random effects of Worker have no intercept"):
        fit("machines", "score ~ Machine + (0 + Machine | Worker)").icc()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(jm.DataError, match="kind='correlation'"):
        sleepstudy().icc(kind="total")  # type: ignore[arg-type]


def test_weights_are_noted() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=2.0)
    table = jm.mixed("Reaction ~ Days + (1 | Subject)", data, weights="w").icc()
    assert table.attrs["note"] == "for rows of weight 1"


def test_the_table_is_a_data_frame_of_floats() -> None:
    table = sleepstudy().icc()
    assert isinstance(table, pd.DataFrame)
    assert (table.dtypes == np.float64).all()
    assert table.index.name == "group"


def test_crossed_groupings_have_shares_only() -> None:
    found = fit("egsingle", "math ~ year + size + female + (1 | schoolid/childid)", "ml")
    outer, inner = sorted(found.frame.groups, key=lambda group: len(group.levels))
    crossed = replace(outer, codes=np.arange(found.nobs) % len(outer.levels), label="school")
    groups = tuple(crossed if group is outer else inner for group in found.frame.groups)
    frame = replace(found.frame, groups=groups)
    inference = variance_inference(VarianceParameters.of(found.estimates)).model(0)
    terms = tuple(
        replace(t, group="school" if t.group == "schoolid" else t.group) for t in found.estimates.terms
    )
    estimates = replace(found.estimates, terms=terms)
    with pytest.raises(jm.DesignError, match=r"school and schoolid:childid are crossed.*kind='share'"):
        intraclass_correlation(frame, estimates, inference, "correlation", 0.95)
    shares = intraclass_correlation(frame, estimates, inference, "share", 0.95)["estimate"]
    np.testing.assert_allclose(shares, found.icc(kind="share")["estimate"])

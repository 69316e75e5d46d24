"""NIST's one-way data sets, whose ML and REML fits have a closed form: correct digits, up to 13 leading ones.

Correct digits are LRE = -log10(|x - c| / |c|), at most 15. `ieee754` is the exact answer for the numbers
rounded to float64; `times10` holds ten times the numbers, integers without any rounding.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.reference.cases import mixed_quietly

pytestmark = pytest.mark.reference

HERE = Path(__file__).parent / "nist"
REFERENCE = json.loads((HERE / "reference.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Digits:
    """Correct digits required of a data set."""

    residual_variance: int
    group_variance: int
    loglik: int


def required(name: str) -> Digits:
    """Digits that centring in float64 before forming any cross-product makes attainable."""
    if name in ("AtmWtAg", "SiRstv"):
        return Digits(10, 9, 12)
    number = int(name.removeprefix("SmLs"))
    return (Digits(11, 10, 12), Digits(11, 9, 11), Digits(10, 8, 10))[(number - 1) // 3]


RUNS = [
    (name, variant, method)
    for name in REFERENCE
    for variant in ("ieee754", "times10")
    if variant in REFERENCE[name]
    for method in ("ml", "reml")
]
BOUNDARY = [run for run in RUNS if REFERENCE[run[0]][run[1]][run[2].upper()]["boundary"]]
INTERIOR = [run for run in RUNS if run not in BOUNDARY]


@cache
def data_of(name: str, variant: str) -> pd.DataFrame:
    with gzip.open(HERE / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    factor = 10 if variant == "times10" else 1
    y = [float(Decimal(row["y"]) * factor) for row in rows]
    return pd.DataFrame({"g": [row["g"] for row in rows], "y": y})


@cache
def fit_of(name: str, variant: str, method: str) -> tuple[Any, tuple[type[Warning], ...]]:
    return mixed_quietly("y ~ 1 + (1 | g)", data_of(name, variant), method=method)


def exact(run: tuple[str, str, str]) -> dict[str, Any]:
    name, variant, method = run
    return REFERENCE[name][variant][method.upper()]


def correct_digits(value: float, reference: str, scale: str | None = None) -> float:
    """LRE of a value; relative to `scale` where the reference itself may be close to zero."""
    error = abs(Decimal(float(value)) - Decimal(reference))
    if error == 0:
        return 15.0
    return min(15.0, float(-(error / abs(Decimal(scale or reference))).log10()))


def variance_row(fit: Any, group: str) -> pd.Series:
    varcorr = fit.varcorr
    return varcorr[varcorr["group"] == group].iloc[0]


def test_all_twenty_float64_variants_are_here() -> None:
    assert len(RUNS) == 40
    assert BOUNDARY == [("SiRstv", "ieee754", "ml")]


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_residual_variance_and_loglik(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference, digits = exact(run), required(run[0])
    assert fit.converged
    assert correct_digits(fit.sigma**2, reference["sigma2_e"]) >= digits.residual_variance
    assert correct_digits(fit.llf, reference["loglik"]) >= digits.loglik
    assert correct_digits(fit.deviance, reference["minus2ll"]) >= digits.loglik


@pytest.mark.parametrize("run", INTERIOR, ids="-".join)
def test_group_variance_and_its_functions(run: tuple[str, str, str]) -> None:
    fit, categories = fit_of(*run)
    reference, digits = exact(run), required(run[0]).group_variance
    assert categories == ()
    assert not fit.is_singular
    assert correct_digits(variance_row(fit, "g")["estimate"], reference["sigma2_a"]) >= digits
    assert correct_digits(fit.theta[0], reference["theta"]) >= digits
    assert correct_digits(fit.icc().loc["g", "estimate"], reference["icc"]) >= digits


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_mean_and_its_standard_error(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference = exact(run)
    assert correct_digits(fit.params["(Intercept)"], reference["beta"]) >= 14
    assert correct_digits(fit.bse["(Intercept)"], reference["se_beta"]) >= required(run[0]).group_variance


@pytest.mark.parametrize("run", INTERIOR, ids="-".join)
def test_standard_errors_of_the_variances(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference, digits = exact(run), required(run[0]).group_variance - 1
    group, residual = variance_row(fit, "g"), variance_row(fit, "Residual")
    assert correct_digits(group["std_error"], reference["se_sigma2_a"]) >= digits
    assert correct_digits(residual["std_error"], reference["se_sigma2_e"]) >= digits


@pytest.mark.parametrize("run", INTERIOR, ids="-".join)
def test_conditional_modes_and_their_variances(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference, digits = exact(run), required(run[0]).group_variance
    modes, sds = fit.ranef()["g"]["(Intercept)"], fit.ranef_se(beta="known")["g"]["(Intercept)"]
    assert list(modes.index.astype(str)) == list(reference["blup"])
    largest = max(reference["blup"].values(), key=lambda text: abs(Decimal(text)))
    for level, blup in reference["blup"].items():
        assert correct_digits(modes[level], blup, largest) >= digits
        assert correct_digits(sds[level] ** 2, reference["cond_var_given_beta"]) >= digits


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_fitted_values_by_group(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference, digits = exact(run), required(run[0]).group_variance
    groups = data_of(*run[:2])["g"]
    for level, value in reference["fitted_by_group"].items():
        fitted = fit.fittedvalues[groups == level]
        assert fitted.nunique() == 1
        # The mean is right to rounding, the conditional mode to the digits of the group variance.
        allowed = Decimal("1e-14") * abs(Decimal(value)) + abs(Decimal(reference["blup"][level])).scaleb(
            -digits
        )
        assert abs(Decimal(float(fitted.iloc[0])) - Decimal(value)) <= allowed


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_likelihood_ratio_against_the_linear_model(run: tuple[str, str, str]) -> None:
    fit, _ = fit_of(*run)
    reference = exact(run)
    linear, _ = mixed_quietly("y ~ 1", data_of(*run[:2]), method=run[2])
    digits = required(run[0]).loglik
    assert correct_digits(linear.deviance, reference["minus2ll_no_random_effect"]) >= digits
    statistic = jm.lrtest(linear, fit).statistic
    # A difference of two criteria has the absolute accuracy of the larger one.
    criteria = (reference["minus2ll"], reference["minus2ll_no_random_effect"])
    larger = max(criteria, key=lambda text: abs(Decimal(text)))
    assert correct_digits(statistic, reference["lrt_vs_linear"], larger) >= digits
    assert statistic >= 0


@pytest.mark.parametrize("run", BOUNDARY, ids="-".join)
def test_the_boundary_is_reached_exactly_and_flagged(run: tuple[str, str, str]) -> None:
    fit, categories = fit_of(*run)
    assert categories == (jm.SingularFitWarning,)
    assert fit.is_singular
    assert fit.converged
    row = variance_row(fit, "g")
    assert row["estimate"] == 0.0
    assert np.isnan(row["std_error"])
    assert np.all(np.asarray(fit.theta) == 0.0)
    assert (fit.ranef()["g"] == 0.0).all(axis=None)
    assert (fit.ranef_se(beta="known")["g"] == 0.0).all(axis=None)


@pytest.mark.parametrize("run", INTERIOR, ids="-".join)
def test_degrees_of_freedom_of_the_mean(run: tuple[str, str, str]) -> None:
    """In a balanced one-way layout the variance of the mean is a chi-squared with I - 1 (REML) or I (ML)."""
    fit, _ = fit_of(*run)
    reml = run[2] == "reml"
    expected, digits = str(fit.ngroups["g"] - reml), required(run[0]).group_variance - 1
    assert correct_digits(fit.coef_table("satterthwaite")["df"].iloc[0], expected) >= digits
    if reml:
        table = fit.coef_table("kenward-roger")
        assert correct_digits(table["df"].iloc[0], expected) >= digits
        assert correct_digits(table["std_error"].iloc[0], exact(run)["se_beta"]) >= digits

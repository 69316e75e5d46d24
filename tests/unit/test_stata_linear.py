"""`regress` and `xtreg` against their formulas."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.errors import StataError
from jaxmixed.stata_commands import StataOutput

SAME = 1e-6
"""Relative: numbers of a table have seven digits."""


def panels() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 7, 30)
    firm = np.repeat(np.arange(30), sizes)
    x = rng.normal(size=len(firm)) + rng.normal(size=30)[firm]
    kind = (rng.random(len(firm)) < 0.4) + 1
    fixed = rng.normal(size=30)[firm]
    y = 1 + 0.8 * x + 0.4 * (kind == 2) + fixed + rng.normal(size=30)[firm] + rng.normal(size=len(firm))
    return pd.DataFrame({"y": y, "x": x, "kind": kind, "fixed": fixed, "firm": firm + 1.0})


@cache
def run(command: str) -> StataOutput:
    return jm.stata(command, panels(), echo=False)


def row(output: StataOutput, label: str) -> list[float]:
    """Numbers of the first line of a table with a label."""
    lines = [line for line in str(output).splitlines() if line.split("|")[0].strip() == label]
    return [float(text) for text in re.findall(r"-?(?:\d+\.?\d*|\.\d+)(?:e[+-]\d+)?", lines[0].split("|")[1])]


def design(data: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([data["x"], data["kind"] == 2, np.ones(len(data))]), data["y"].to_numpy()


LABELS = ("x", "2.kind", "_cons")


def test_least_squares_has_t_tests() -> None:
    X, y = design(panels())
    beta, rss, *_ = np.linalg.lstsq(X, y, rcond=None)
    s2 = rss[0] / (len(y) - 3)
    errors = np.sqrt(np.diagonal(np.linalg.inv(X.T @ X)) * s2)
    output = run("regress y x i.kind")
    for label, b, se in zip(LABELS, beta, errors, strict=True):
        assert row(output, label)[:2] == pytest.approx([b, se], rel=SAME)
    assert output.results["e(rmse)"] == pytest.approx(np.sqrt(s2))
    total = ((y - y.mean()) ** 2).sum()
    assert output.results["e(F)"] == pytest.approx((total - rss[0]) / 2 / s2)
    assert output.results["e(ll)"] == pytest.approx(-len(y) / 2 * (np.log(2 * np.pi * rss[0] / len(y)) + 1))


@pytest.mark.parametrize("clustered", [False, True])
def test_robust_standard_errors_of_least_squares(clustered: bool) -> None:
    data = panels()
    X, y = design(data)
    (n, p), bread = X.shape, np.linalg.inv(X.T @ X)
    scores = X * (y - X @ np.linalg.lstsq(X, y, rcond=None)[0])[:, None]
    factor = n / (n - p)
    if clustered:
        scores = pd.DataFrame(scores).groupby(data["firm"]).sum().to_numpy()
        factor = 30 / 29 * (n - 1) / (n - p)
    errors = np.sqrt(np.diagonal(bread @ scores.T @ scores @ bread) * factor)
    output = run("regress y x i.kind, vce(cluster firm)" if clustered else "regress y x i.kind, robust")
    for label, se in zip(LABELS, errors, strict=True):
        assert row(output, label)[1] == pytest.approx(se, rel=SAME)
    assert output.results["e(df_r)"] == (29 if clustered else n - p)
    assert ("adjusted for 30 clusters in firm" in str(output)) == clustered


def test_random_effects_are_generalised_least_squares_at_swamy_and_aroras_variances() -> None:
    data = panels()
    X, y = design(data)
    output = run("xtreg y x i.kind, re i(firm)")
    u2, e2 = float(output.results["e(sigma_u)"]) ** 2, float(output.results["e(sigma_e)"]) ** 2
    V = e2 * np.eye(len(y)) + u2 * (data["firm"].to_numpy()[:, None] == data["firm"].to_numpy())
    inverse = np.linalg.inv(V)
    A = np.linalg.inv(X.T @ inverse @ X)
    beta = A @ X.T @ inverse @ y
    scale = (y - X @ beta) @ inverse @ (y - X @ beta) / (len(y) - 3)
    for label, b, se in zip(LABELS, beta, np.sqrt(np.diagonal(A) * scale), strict=True):
        assert row(output, label)[:2] == pytest.approx([b, se], rel=1e-5)
    groups = data.assign(k=data["kind"] == 2).groupby("firm")[["y", "x", "k"]]
    means, sizes = groups.mean(), groups.size()
    between = np.linalg.lstsq(
        np.column_stack([np.ones(30), means[["x", "k"]].astype(float)]), means["y"], rcond=None
    )
    harmonic = 30 / (1 / sizes).sum()
    assert u2 == pytest.approx(between[1][0] / (30 - 3) - e2 / harmonic)


def test_fixed_effects_are_least_squares_with_a_constant_for_each_panel() -> None:
    data = panels()
    X, y = design(data)
    dummies = pd.get_dummies(data["firm"]).to_numpy(dtype=float)
    D = np.column_stack([X[:, :2], dummies])
    beta, rss, *_ = np.linalg.lstsq(D, y, rcond=None)
    s2 = rss[0] / (len(y) - D.shape[1])
    errors = np.sqrt(np.diagonal(np.linalg.inv(D.T @ D)) * s2)
    output = run("xtreg y x i.kind fixed, fe i(firm)")
    for label, b, se in zip(LABELS[:2], beta, errors, strict=False):
        assert row(output, label)[:2] == pytest.approx([b, se], rel=SAME)
    assert output.results["e(sigma_e)"] == pytest.approx(np.sqrt(s2))
    assert str(output).startswith("note: fixed omitted because of collinearity.\n")
    # The constant is what makes the panels' effects add up to zero over the rows.
    constant = (dummies @ beta[2:]).mean()
    assert row(output, "_cons")[0] == pytest.approx(constant, rel=SAME)
    assert output.results["e(sigma_u)"] == pytest.approx((beta[2:] - constant).std(ddof=1))


def test_maximum_likelihood_is_mixed_with_a_random_intercept() -> None:
    output, mixed = run("xtset firm\nxtreg y x i.kind, mle"), run("mixed y x i.kind || firm:, stddeviations")
    assert output.fit.llf == pytest.approx(mixed.fit.llf, abs=1e-9)
    assert row(output, "/sigma_u") == pytest.approx(row(mixed, "sd(_cons)"), rel=SAME)
    assert row(output, "/sigma_e") == pytest.approx(row(mixed, "sd(Residual)"), rel=SAME)
    null = jm.mixed("y ~ 1 + (1 | firm)", panels(), method="ml")
    assert output.results["e(chi2)"] == pytest.approx(2 * (mixed.fit.llf - null.llf), rel=1e-6)


def test_breusch_and_pagans_test_weighs_panels_of_different_sizes() -> None:
    # Baltagi & Li (1990): LM = (sum T)^2 / (2 (sum T^2 - sum T)) (sum (sum e)^2 / sum e^2 - 1)^2.
    data = panels()
    X, y = design(data)
    e = pd.Series(y - X @ np.linalg.lstsq(X, y, rcond=None)[0])
    sums, sizes = e.groupby(data["firm"]).sum(), data.groupby("firm").size()
    excess = (sums**2).sum() / (e**2).sum() - 1
    expected = len(y) ** 2 / 2 / ((sizes**2).sum() - len(y)) * excess**2
    output = run("quietly xtreg y x i.kind, re i(firm)\nxttest0")
    assert output.results["r(lm)"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("regress", "needs a response"),
        ("regress y x, vce(hc3)", "vce() takes"),
        ("xtreg y x, fe", "needs the panel variable"),
        ("xtreg y x, fe re i(firm)", "exclude each other"),
        ("xtreg y x, be i(firm)", "not a supported option"),
        ("xttest0", "no estimation results"),
        ("quietly regress y x\nxttest0", "not available after regress"),
        ("quietly xtreg y x, fe i(firm)\nxttest0", "after xtreg with the option re"),
        ("regress y x if x > 100", "no rows are left"),
    ],
)
def test_what_is_not_supported_is_refused(command: str, problem: str) -> None:
    with pytest.raises(StataError, match=re.escape(problem)):
        jm.stata(command, panels())

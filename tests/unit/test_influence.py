"""Influence of rows and groups: against refits by the front end, closed forms, and numbers from R."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.influence import Influence
from jaxmixed.influence_measures import usual_limits
from tests.support.fits import fit, quietly, sleepstudy

matplotlib.use("Agg")

REFIT = 1e-7
"""Relative to the largest of its kind: two searches that agree in a maximum agree to far more digits."""

FROM_R = 3e-6
"""Relative: lme4's optimiser stops where the deviance still rises by 1e-9 or so."""

SLOPES = "Reaction ~ Days + (Days | Subject)"
INTERCEPTS = "Reaction ~ Days + (1 | Subject)"


def close(found: object, expected: object) -> None:
    expected = np.asarray(expected, dtype=np.float64)
    scale = np.nanmax(np.abs(expected), initial=0)
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), expected, rtol=REFIT, atol=REFIT * scale)


def variances(found: jm.MixedResults) -> np.ndarray:
    return found.varcorr["estimate"].to_numpy()


def assert_like_refits(
    whole: jm.MixedResults,
    data: pd.DataFrame,
    cases: pd.Series,
    found: Influence,
    which: list,
    **options: str,
) -> None:
    """All measures of some cases, from their definitions and fits of the front end."""
    b, C, v = whole.params.to_numpy(), whole.cov_params().to_numpy(), variances(whole)
    p = len(b)
    for case in which:
        m = quietly(whole.formula, data[(cases != case).to_numpy()], method=whole.method, **options)
        d, own = b - m.params.to_numpy(), m.cov_params().to_numpy()
        ratio = np.linalg.solve(C, own)
        row = found.table.loc[case]
        measured = [d @ np.linalg.solve(C, d) / p, d @ np.linalg.solve(own, d) / p]
        measured += [np.linalg.det(ratio), abs(np.trace(ratio) - p)]
        close(row[["cooks_distance", "mdffits", "covratio", "covtrace"]], measured)
        close(found.dfbetas.loc[case], d / np.sqrt(np.diagonal(own)))
        assert found.deletion is not None
        close(found.deletion.dfbeta.loc[case], -d)
        with np.errstate(invalid="ignore"):
            close(found.rvc.loc[case], variances(m) / v - 1)
        refits = found.refits
        assert refits is not None
        close(refits.params.loc[case], m.params)
        close(refits.theta.loc[case], m.theta)
        close(refits.sigma.loc[case], m.sigma)
        close(refits.deviance.loc[case], m.deviance)
        assert refits.nobs.loc[case] == m.nobs


@pytest.fixture(scope="module")
def of_subjects() -> Influence:
    return sleepstudy(SLOPES).influence("Subject")


@pytest.fixture(scope="module")
def of_rows() -> Influence:
    return sleepstudy(SLOPES).influence("rows")


def test_deleted_subjects_are_refits(of_subjects: Influence, sleepstudy: pd.DataFrame) -> None:
    whole = fit("sleepstudy", SLOPES)
    assert_like_refits(whole, sleepstudy, sleepstudy["Subject"], of_subjects, list(of_subjects.names))


def test_deleted_rows_are_refits(of_rows: Influence, sleepstudy: pd.DataFrame) -> None:
    rows = pd.Series(sleepstudy.index)
    assert_like_refits(fit("sleepstudy", SLOPES), sleepstudy, rows, of_rows, [0, 56, 59, 130])


def test_weights_maximum_likelihood_and_an_offset(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(w=np.linspace(0.5, 2, 180), start=sleepstudy["Days"] ** 2)
    formula = "Reaction ~ Days + offset(start) + (1 | Subject)"
    whole = quietly(formula, data, method="ml", weights="w")
    for cases, column, which in (
        ("Subject", data["Subject"], ["308", "335"]),
        ("rows", pd.Series(data.index), [0, 59]),
    ):
        assert_like_refits(whole, data, column, whole.influence(cases), which, weights="w")


@pytest.mark.parametrize(
    ("cases", "which"), [("batch", ["A", "H"]), ("batch:cask", ["A:a", "I:b"]), ("rows", [0, 31])]
)
def test_nested_groups(cases: str, which: list) -> None:
    data = jm.datasets.load("pastes")
    pair = data["batch"].astype(str) + ":" + data["cask"].astype(str)
    columns = {"batch": data["batch"], "batch:cask": pair, "rows": pd.Series(data.index)}
    whole = fit("pastes", "strength ~ 1 + (1 | batch/cask)")
    found = whole.influence(cases)
    assert_like_refits(whole, data, columns[cases], found, which)


@pytest.mark.parametrize(("cases", "which"), [("plate", ["a", "m"]), ("rows", [0, 100])])
def test_crossed_groups(cases: str, which: list) -> None:
    data = jm.datasets.load("penicillin")
    whole = fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)")
    column = pd.Series(data.index) if cases == "rows" else data[cases]
    assert_like_refits(whole, data, column, whole.influence(cases), which)


@pytest.mark.slow
def test_levels_of_the_smaller_of_two_crossed_factors() -> None:
    data = jm.datasets.load("penicillin")
    whole = fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)")
    assert_like_refits(whole, data, data["sample"], whole.influence("sample"), ["A", "F"])


def test_values_of_lme4(of_subjects: Influence, of_rows: Influence) -> None:
    # R 4.2.2, lme4 1.1-31, by the formulas of HLMdiag; m <- update(fit, data = sleepstudy[keep, ])
    # fit <- lmer(Reaction ~ Days + (Days | Subject), sleepstudy,
    #             control = lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-12)))
    # d <- fixef(fit) - fixef(m); C <- vcov(fit); Ci <- vcov(m)
    # c(d / sqrt(diag(Ci)), d %*% solve(C, d) / 2, d %*% solve(Ci, d) / 2,
    #   abs(sum(diag(solve(C, Ci))) - 2), det(Ci) / det(C), vc(m) / vc(fit) - 1)
    expected = {
        "308": (-0.058725022, 0.44892965, 0.09241704, 0.10077518, 0.042061752, 1.0316944, 0.13402539),
        "335": (0.094985573, -0.55597523, 0.1294805, 0.15531409, 0.04133099, 0.93787756, 0.053542894),
        56: (0.022420414, 0.097934921, 0.0055361806, 0.0054786302, 0.010644239, 1.0105046, 0.070747862),
        59: (0.16708561, -0.26734296, 0.046424343, 0.044084338, 0.053708102, 1.0530802, 0.042578824),
    }
    for case, values in expected.items():
        found = of_rows if isinstance(case, int) else of_subjects
        row = found.table.loc[case]
        measured = [*found.dfbetas.loc[case], *row[["cooks_distance", "mdffits", "covtrace", "covratio"]]]
        measured.append(found.rvc.loc[case].iloc[0])
        np.testing.assert_allclose(np.array(measured, dtype=float), values, rtol=FROM_R, atol=1e-6)
    # tapply(hatvalues(fit), sleepstudy$Subject, sum)["308"]; hatvalues(fit)[60]
    np.testing.assert_allclose(of_subjects.leverage["308"], 1.612337, rtol=1e-6)
    np.testing.assert_allclose(of_rows.leverage[59], 0.29317698, rtol=1e-6)


def test_rows_of_a_regression_have_the_closed_forms(sleepstudy: pd.DataFrame) -> None:
    found = fit("sleepstudy", "Reaction ~ Days").influence()
    y, X = sleepstudy["Reaction"].to_numpy(), np.column_stack([np.ones(180), sleepstudy["Days"]])
    hat = np.einsum("ij,jk,ik->i", X, np.linalg.inv(X.T @ X), X)
    e = y - X @ np.linalg.lstsq(X, y)[0]
    s2 = e @ e / 178
    own = (e @ e - e**2 / (1 - hat)) / 177
    table = found.table
    close(table["leverage"], hat)
    close(table["cooks_distance"], e**2 * hat / (2 * s2 * (1 - hat) ** 2))
    close(table["covratio"], (own / s2) ** 2 / (1 - hat))
    close(found.rvc["var(Residual)"], own / s2 - 1)
    close(table["cooks_distance_approx"], e**2 * hat / (2 * s2))
    assert not table["disagree"].any()


def test_first_order_of_subjects_in_a_balanced_design(of_subjects: Influence) -> None:
    """Fixed effects are means of the subjects' own: their deletion divides by m - 1, the derivative by m."""
    first, true = of_subjects.approximate, of_subjects.deletion
    assert first is not None
    assert true is not None
    close(first.dfbeta, true.dfbeta * 17 / 18)
    close(first.cooks_distance, true.cooks_distance * (17 / 18) ** 2)
    assert (np.abs(first.rvc - true.rvc).max() < 0.2 * np.abs(true.rvc).max()).all()
    assert not of_subjects.disagree.any()


def test_under_maximum_likelihood_the_estimates_do_not_depend_on_how_often_all_cases_count() -> None:
    found = sleepstudy(INTERCEPTS, "ml")
    of_rows = found.influence("rows", "approximate").approximate
    of_groups = found.influence("Subject", "approximate").approximate
    assert of_rows is not None
    assert of_groups is not None
    assert np.abs(of_rows.dfbeta.sum()).max() < 1e-8
    assert np.abs(of_groups.dfbeta.sum()).max() < 1e-8
    assert np.abs(of_groups.rvc.sum()).max() < 1e-8


def test_cases_of_whole_groups_count_with_their_effects() -> None:
    found = sleepstudy(INTERCEPTS)
    of_each = found.influence("Subject", "approximate").approximate
    pairs = np.arange(180) // 20
    of_pairs = found.influence(pairs, "approximate").approximate
    assert of_each is not None
    assert of_pairs is not None
    close(of_pairs.rvc, of_each.rvc.to_numpy().reshape(9, 2, -1).sum(axis=1))
    close(of_pairs.dfbeta, of_each.dfbeta.to_numpy().reshape(9, 2, -1).sum(axis=1))


def test_a_column_of_the_formula_names_cases(sleepstudy: pd.DataFrame) -> None:
    whole = fit("sleepstudy", INTERCEPTS)
    found = whole.influence("Days", "deletion")
    np.testing.assert_array_equal(found.names, np.arange(10))
    assert_like_refits(whole, sleepstudy, sleepstudy["Days"], found, [3, 9])


def test_an_outlier_is_named_and_its_first_order_misleads(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.copy()
    data.loc[59, "Reaction"] += 400
    found = quietly(SLOPES, data).influence()
    assert found.cooks_distance.idxmax() == 59
    assert found.disagree.nlargest(2).index.tolist() == [58, 59]  # two of one subject
    assert found.disagree.sum() == 2
    assert "disagree materially for 2 (59, 58)" in repr(found)


def test_a_coefficient_that_a_case_alone_determines(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.assign(odd=(sleepstudy["Subject"] == "308") * 1.0, twice=2 * sleepstudy["Days"])
    found = quietly("Reaction ~ Days + odd + twice + (1 | Subject)", data).influence("Subject")
    row = found.table.loc["308"]
    assert row["reason"] == "no estimate of odd"
    assert row["disagree"]
    assert np.isnan(row["cooks_distance"])
    assert found.dfbetas.loc["308"].isna().tolist() == [False, False, True, True]
    assert found.dfbetas.loc["309"].isna().tolist() == [False, False, False, True]
    m = quietly("Reaction ~ Days + (1 | Subject)", data[data["Subject"] != "308"])
    assert found.refits is not None
    close(found.refits.params.loc["308"].dropna(), m.params)
    assert "no estimate of odd: 1 (308)" in repr(found)


def test_what_cannot_be_fitted_is_said(rng: np.random.Generator) -> None:
    g = np.repeat([0, 1], 8)
    whole = quietly("y ~ 1 + (1 | g)", {"y": rng.normal(size=16) + 3 * g, "g": g})
    with pytest.warns(jm.ConvergenceWarning, match="2 of 2 models failed"):
        found = whole.influence("g")
    assert found.table["reason"].str.contains("has one level").all()
    assert found.disagree.all()
    assert found.cooks_distance.isna().all()
    with pytest.raises(jm.DataError, match="no Cook's distance"):
        found.plot()


def test_a_variance_of_zero_has_no_relative_change() -> None:
    found = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").influence("Batch")
    assert found.rvc["var((Intercept) | Batch)"].isna().all()
    assert found.approximate is not None
    assert found.approximate.rvc["var((Intercept) | Batch)"].isna().all()
    assert found.rvc["var(Residual)"].notna().all()


def test_only_one_of_the_ways() -> None:
    whole = sleepstudy(INTERCEPTS)
    first, true = whole.influence("Subject", "approximate"), whole.influence("Subject", "deletion")
    assert first.deletion is None
    assert first.refits is None
    assert true.approximate is None
    assert "cooks_distance" not in first.table
    assert "cooks_distance_approx" not in true.table
    assert not first.disagree.any()
    close(first.leverage, true.leverage)
    assert first.covratio.name == "covratio"
    assert first.mdffits.isna().all()


def test_questions_that_make_no_sense() -> None:
    whole = sleepstudy(INTERCEPTS)
    with pytest.raises(jm.DataError, match=r"'aprox'.*'both', 'approximate', 'deletion'"):
        whole.influence(method="aprox")  # type: ignore[arg-type]
    with pytest.raises(jm.DataError, match=r"no column 'subject'.*cases=data\['subject'\]"):
        whole.influence("subject")
    with pytest.raises(jm.DataError, match="cases has 5 values"):
        whole.influence(np.arange(5))
    with pytest.raises(jm.DataError, match="cases is None"):
        whole.influence(None)
    with pytest.raises(jm.DesignError, match="all rows used are in one case"):
        whole.influence(np.ones(180))


def test_what_it_prints(of_subjects: Influence) -> None:
    text = repr(of_subjects)
    assert text.startswith("Influence of 18 levels of Subject: fits without each of them")
    assert "Cook's distance > 4/c = 0.222: none" in text
    assert "|DFBETAS| > 2/sqrt(c) = 0.471: 1 (335)" in text
    assert "var(Days | Subject) -27% without 335" in " ".join(text.split())
    assert usual_limits(18, 2).covratio == 6 / 18


def test_names_are_escaped_in_notebooks(sleepstudy: pd.DataFrame) -> None:
    data = sleepstudy.rename(columns={"Subject": "<b>"})
    data["<b>"] = data["<b>"].astype(str).str.replace("309", "<i>309</i>")
    found = quietly("Reaction ~ Days + (1 | `<b>`)", data).influence("<b>", "approximate")
    page = found._repr_html_()
    assert "&lt;i&gt;309" in page
    assert "<i>" not in page
    assert "<b>" not in page


def test_tables_are_copies(of_subjects: Influence) -> None:
    table, dfbetas, rvc = of_subjects.table, of_subjects.dfbetas, of_subjects.rvc
    for own in (table, dfbetas, rvc):
        own.iloc[:, 0] = 0
    assert of_subjects.table["rows"].min() == 10
    assert np.abs(of_subjects.dfbetas.iloc[:, 0]).max() > 0.1
    assert np.abs(of_subjects.rvc.iloc[:, 0]).max() > 0.1


class TestPictures:
    @pytest.mark.parametrize("kind", ["index", "bubble", "agreement"])
    def test_the_most_influential_are_named(self, of_rows: Influence, kind: str) -> None:
        ax = of_rows.plot(kind, mark=2)  # type: ignore[arg-type]
        assert "59" in [text.get_text() for text in ax.texts]
        assert len(ax.texts) <= 2
        assert ax.get_title(loc="left").strip() == "Influence of rows"

    def test_the_facade(self) -> None:
        ax = sleepstudy(SLOPES).plot.influence("Subject", "bubble")
        assert ax.get_title(loc="left").strip() == "Influence of Subject"
        assert ax.get_xlabel() == "Leverage, summed over rows"

    def test_of_many_cases_the_largest(self, rng: np.random.Generator) -> None:
        x = rng.normal(size=6000)
        whole = quietly("y ~ x", {"y": x + rng.normal(size=6000), "x": x})
        ax = whole.plot.influence()
        assert "the 5,000 largest of 6,000" in ax.get_title(loc="right")
        assert sum(len(points.get_offsets()) for points in ax.collections) == 5000

    def test_what_cannot_be_drawn(self, of_rows: Influence) -> None:
        with pytest.raises(jm.DataError, match="'index', 'bubble', 'agreement'"):
            of_rows.plot("pie")  # type: ignore[arg-type]
        with pytest.raises(jm.DataError, match="use method='both'"):
            sleepstudy(SLOPES).plot.influence("Subject", "agreement")

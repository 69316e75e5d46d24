"""Cluster-robust inference against its definition with n x n matrices, closed forms, and clubSandwich."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import robust
from jaxmixed.errors import DataError, DesignError
from jaxmixed.robust import KINDS, WorkingModel, cluster_sums, information
from tests.support.dense_residuals import Structure
from tests.support.designs import random_design

EXACT = 1e-10
"""Relative difference of two routes to one number, both in float64."""

PRINTED = 1e-6
"""Two programs, each at its own optimum: clubSandwich after lme4, or after nlme at its closest tolerances."""

DATA = Path(__file__).parents[1] / "reference" / "data"


class Fitted(NamedTuple):
    """A fit, its clusters, and the model as arrays: X of full rank, V of the estimates."""

    fit: jm.MixedResults
    clusters: np.ndarray
    X: np.ndarray
    V: np.ndarray
    response: np.ndarray


def fitted(fit: jm.MixedResults, clusters: np.ndarray) -> Fitted:
    frame = fit.frame
    n = len(frame.y)
    V = np.diag(fit.sigma**2 / (np.ones(n) if frame.weights is None else frame.weights))
    for term in fit.estimates.terms:
        group = frame.groups[term.frame_index]
        V += (group.codes[:, None] == group.codes) * (group.Z @ term.cov @ group.Z.T)
    offset = 0.0 if frame.offset is None else frame.offset
    return Fitted(fit, clusters, frame.X[:, fit.params.notna().to_numpy()], V, frame.y - offset)


def mixed(formula: str, data: pd.DataFrame, **arguments: object) -> jm.MixedResults:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jm.mixed(formula, data, **arguments)


@cache
def nested(seed: int) -> Fitted:
    """Nested groups of unequal sizes, some of one row; with every third seed clusters coarser than all."""
    design = random_design(seed, max_effects=2)
    fit = mixed(design.formula, design.data, method="ml" if seed % 2 else "reml", **design.arguments)
    clusters = design.data["g1"].to_numpy()
    return fitted(fit, clusters % 3 if seed % 3 == 0 else clusters)


@cache
def crossed() -> Fitted:
    """Raters crossed with children within schools, as random effects without one of the schools; weights."""
    rng = np.random.default_rng(3)
    n = 90
    school = rng.integers(0, 6, n)
    rater, child = school * 3 + rng.integers(0, 3, n), school * 4 + rng.integers(0, 4, n)
    x, w = rng.normal(size=n), np.where(school < 3, 2.0, rng.choice([0.5, 1.0, 3.0], n))
    y = x + rng.normal(size=18)[rater] + rng.normal(size=24)[child] + rng.normal(size=n) / np.sqrt(w)
    data = pd.DataFrame({"y": y, "x": x, "rater": rater, "child": child, "w": w})
    return fitted(mixed("y ~ x + (1 | rater) + (1 | child)", data, weights="w"), school)


@cache
def alone() -> Fitted:
    """Unequal clusters, one of a single row; an aliased column, and one that a cluster alone determines."""
    rng = np.random.default_rng(8)
    g = np.repeat(np.arange(9), [1, 2, 3, 5, 5, 7, 8, 4, 6])
    x = rng.normal(size=len(g))
    data = pd.DataFrame({"g": g, "x": x, "twice": 2 * x + 1, "seventh": (g == 7) * 1.0})
    data["y"] = x + rng.normal(size=9)[g] + rng.normal(size=len(g)) * (1 + (g == 3))
    return fitted(mixed("y ~ x + twice + seventh + (1 | g)", data), g)


class Dense(NamedTuple):
    """The definition: rows (m, p, n) whose products with y are the terms of the sum, and the factor."""

    rows: np.ndarray
    factor: float

    def cov(self, y: np.ndarray) -> np.ndarray:
        each = self.rows @ y
        return self.factor * each.T @ each

    def spread(self, V: np.ndarray) -> np.ndarray:
        """(p, p, m, m): covariances of the terms."""
        return np.einsum("cin,nk,djk->ijcd", self.rows, V, self.rows, optimize=True)


def dense(model: Fitted, kind: str) -> Dense:
    X, V = model.X, model.V
    n, p = X.shape
    levels = np.unique(model.clusters)
    m, inverse = len(levels), np.linalg.inv(V)
    M = np.linalg.inv(X.T @ inverse @ X)
    maker = np.eye(n) - X @ M @ X.T @ inverse
    rows = np.zeros((m, p, n))
    for c, level in enumerate(levels):
        at = np.flatnonzero(model.clusters == level)
        own, Vc = X[at], V[np.ix_(at, at)]
        A = np.eye(len(at))
        if kind == "CR2":
            D = np.linalg.cholesky(Vc).T
            values, axes = np.linalg.eigh(D @ (Vc - own @ M @ own.T) @ D.T)
            big = values > 1e-9 * values.max()
            A = D.T @ (axes[:, big] / np.sqrt(values[big])) @ axes[:, big].T @ D
        elif kind == "CR3":
            A = np.linalg.inv(np.eye(len(at)) - own @ M @ own.T @ np.linalg.inv(Vc))
        rows[c] = M @ own.T @ np.linalg.inv(Vc) @ A @ maker[at]
    factors = {"CR1": m / (m - 1), "CR1S": m * (n - 1) / ((m - 1) * (n - p))}
    return Dense(rows, factors.get(kind, 1.0))


def check_against_definition(model: Fitted, kind: str) -> None:
    """Covariance, degrees of freedom of each coefficient, and those of two functions together."""
    kept = model.fit.params.notna().to_numpy()
    found, expected = model.fit.robust(kind, model.clusters, df="satterthwaite"), dense(model, kind)
    cov = expected.cov(model.response)
    close = {"rtol": 0, "atol": EXACT * np.sqrt(np.outer(np.diag(cov), np.diag(cov))).max()}
    np.testing.assert_allclose(found.cov[np.ix_(kept, kept)], cov, **close)

    spread = expected.spread(model.V)
    p = len(cov)
    determined = np.array([np.trace(spread[j, j]) > 1e-12 * model.V[0, 0] for j in range(p)])
    df = np.array([np.trace(spread[j, j]) ** 2 / np.sum(spread[j, j] ** 2) for j in range(p)])
    np.testing.assert_allclose(found.coef_table()["df"][kept], np.where(determined, df, np.nan), rtol=EXACT)

    rng = np.random.default_rng(p)
    free = np.flatnonzero(determined)
    L = np.zeros((min(2, len(free)), p))
    L[:, free] = rng.normal(size=(len(L), len(free)))
    q, value = len(L), L @ model.fit.params[kept].to_numpy()
    omega = np.einsum("si,tj,ijcc->st", L, L, spread)
    # Any root serves: the total variance does not change when the functions are rotated.
    whitened = np.linalg.inv(np.linalg.cholesky(omega)) @ L
    P = np.einsum("si,tj,ijcd->stcd", whitened, whitened, spread)
    total = np.einsum("stcd,tscd->", P, P) + np.einsum("sscd,ttcd->", P, P)
    eta = q * (q + 1) / total
    statistic, den_df = found.reference.joint(L, value)
    if eta - q + 1 > 0:
        wald = value @ np.linalg.solve(L @ cov @ L.T, value) / q
        np.testing.assert_allclose(den_df, eta - q + 1, rtol=EXACT)
        np.testing.assert_allclose(statistic, wald * (eta - q + 1) / eta, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "seed",
    [
        0,  # three levels, weights, singular, coarser clusters
        1,
        *[pytest.param(s, marks=pytest.mark.slow) for s in (4, 9, 12, 17)],
        *[
            pytest.param(s, marks=[pytest.mark.slow, pytest.mark.exhaustive])
            for s in (2, 3, *range(5, 9), 10, 11, *range(18, 24))
        ],
    ],
)
def test_nested_groups_agree_with_the_definition(seed, kind):
    model = nested(seed)
    if len(np.unique(model.clusters)) > 1:
        check_against_definition(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_crossed_groups_within_clusters_agree_with_the_definition(kind):
    check_against_definition(crossed(), kind)


@pytest.mark.parametrize("kind", ["CR0", "CR1", "CR1S", "CR2"])
def test_a_column_of_one_cluster_and_an_aliased_one_agree_with_the_definition(kind):
    model = alone()
    assert np.isnan(model.fit.params["twice"])
    check_against_definition(model, kind)
    table = model.fit.robust(kind, df="satterthwaite").coef_table()
    assert np.isnan(table.loc["twice"]).all()
    # The mean of that cluster is determined by it alone: there is nothing to judge its error by.
    found, x = model.fit.robust(kind, df="satterthwaite"), model.fit.frame.X[:, 1]
    mean = np.array([[1, x[model.clusters == 7].mean(), 0, 1]])
    assert np.isnan(found.of_kept.df(mean)).all()
    assert found.of_kept.covariance(mean)[0, 0] < 1e-14 * model.V[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CR0", "CR2"])
@pytest.mark.parametrize(
    ("term", "structure"),
    [("(0 + C(Days) | Subject)", jm.kernels.squared_exponential()), ("cs(Days | Subject)", None)],
    ids=["kernel", "exchangeable"],
)
def test_structured_effects_agree_with_the_definition(term, structure, kind):
    data = jm.datasets.load("sleepstudy").drop(index=LEFT_OUT)
    fit = mixed(f"Reaction ~ Days + {term}", data, covariance=structure)
    check_against_definition(fitted(fit, fit.frame.groups[0].codes), kind)


def test_cr2_keeps_its_digits_where_groups_differ_much_more_than_rows():
    rng = np.random.default_rng(1)
    g, x = np.repeat(np.arange(7), [4, 3, 4, 5, 2, 4, 3]), rng.normal(size=25)
    data = pd.DataFrame({"g": g, "x": x})
    data["y"] = x + 1e4 * rng.normal(size=7)[g] + rng.normal(size=25)
    # From the definition in arithmetic of 60 digits, whose condition is that of V squared, 1e18.
    expected = 0.10769097166007383
    found = mixed("y ~ x + (1 | g)", data).robust().coef_table().loc["x", "std_error"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_cr3_refuses_clusters_that_cannot_be_left_out():
    with pytest.raises(DesignError, match="without 7 of 'g'"):
        alone().fit.robust("CR3")


def test_cr3_adds_up_the_changes_when_a_cluster_is_left_out():
    model = nested(1)
    X, V, y, total = model.X, model.V, model.response, 0.0
    for level in np.unique(model.clusters):
        rest = np.flatnonzero(model.clusters != level)
        inverse = np.linalg.inv(V[np.ix_(rest, rest)])
        beta = np.linalg.solve(X[rest].T @ inverse @ X[rest], X[rest].T @ inverse @ y[rest])
        total = total + np.outer(beta - model.fit.params, beta - model.fit.params)
    found = model.fit.robust("CR3", model.clusters).cov
    np.testing.assert_allclose(found, total, rtol=1e-7, atol=1e-9 * np.abs(total).max())


@pytest.mark.parametrize("name", ["nested", "crossed and weighted"])
def test_cr2_is_unbiased_if_the_fitted_covariance_is_true(name):
    model = nested(1) if name == "nested" else crossed()
    X, V = model.X, model.V
    inverse = np.linalg.inv(V)
    M = np.linalg.inv(X.T @ inverse @ X)
    values, axes = np.linalg.eigh(V - X @ M @ X.T)
    _, codes = np.unique(model.clusters, return_inverse=True)
    expectation = np.zeros_like(M)
    # E[ee'] is the sum of the outer products of these columns, and the covariance is linear in ee'.
    for residual in (axes * np.sqrt(np.maximum(values, 0))).T:
        working = WorkingModel(model.fit.state, model.fit.estimates, residual, codes)
        expectation += cluster_sums(working, information(working), "CR2").covariance
    np.testing.assert_allclose(expectation, M, rtol=0, atol=1e-9 * np.abs(M).max())


def test_rows_as_clusters_of_a_linear_model_are_the_hc_covariances():
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"x": rng.normal(size=40)})
    data["y"] = data["x"] + rng.normal(size=40) * np.exp(data["x"])
    fit = jm.mixed("y ~ x", data)
    X = fit.frame.X
    M = np.linalg.inv(X.T @ X)
    leverage, squares = np.einsum("ij,jk,ik->i", X, M, X), fit.resid.to_numpy() ** 2
    for kind, power in (("CR0", 0), ("CR2", 1), ("CR3", 2)):
        meat = X.T * (squares / (1 - leverage) ** power) @ X
        cov = fit.robust(kind, range(40)).cov_params()
        np.testing.assert_allclose(cov, M @ meat @ M, rtol=EXACT)


# Printed by clubSandwich 0.5.8: kind, standard errors and df of some coefficients, F and its den_df of all
# but the intercept. Rows of lme4's sleepstudy are left out, so that nothing is balanced.
LEFT_OUT = [3, 5, 17, 18, 19, 44, 60, 61, 62, 63, 64, 65, 66, 101]
AFTER_LMER = {
    "CR0": (11.56707739374699, 15.6697029806517, 12.5730559846845, 12.1589433444917),
    "CR1S": (12.08696916097831, 15.6697029806517, 11.5147179393486, 12.1589433444918),
    "CR2": (11.94536867689562, 15.6584219763247, 11.8059001200178, 12.1547615454353),
    "CR3": (12.33665494737830, 15.6473251293666, 11.0742137865725, 12.1505976325028),
}
AFTER_LME_WITH_VARFIXED = {
    "CR0": (11.19804434266686, 15.5341655899939, 10.28482329059348, 12.13427937046278),
    "CR2": (11.57407125847497, 15.5299905976634, 9.68689068049296, 12.1304231265509),
    "CR3": (11.95025599462683, 15.5259492887451, 9.05571871139584, 12.1265595433176),
}


@cache
def unbalanced(weights: bool) -> jm.MixedResults:
    data = pd.read_csv(DATA / "sleepstudy.csv").drop(index=[row - 1 for row in LEFT_OUT])
    data["w"] = 1 + data["Days"] % 3
    return jm.mixed("Reaction ~ phase * Days + (1 | Subject)", data, weights="w" if weights else None)


@pytest.mark.parametrize("weights", [False, True])
def test_functions_together_agree_with_clubsandwich(weights):
    for kind, printed in (AFTER_LME_WITH_VARFIXED if weights else AFTER_LMER).items():
        found = unbalanced(weights).robust(kind, df="satterthwaite")
        row = found.coef_table().loc["phaseearly"]
        joint = found.joint_test(np.eye(6)[1:])
        ours = (row["std_error"], row["df"], joint.statistic, joint.den_df)
        np.testing.assert_allclose(ours, printed, rtol=PRINTED)


def test_one_function_is_tested_alike_alone_and_jointly():
    fit = unbalanced(False)
    for df in ("satterthwaite", "clusters", "none"):
        found = fit.robust(df=df)
        row = found.coef_table().loc["Days"]
        joint = found.joint_test(np.eye(6)[[3]])
        np.testing.assert_allclose(joint[1:], (row["df"], row["statistic"] ** 2, row["p_value"]), rtol=EXACT)
    assert fit.robust(df="clusters").coef_table().loc["Days", "df"] == 17
    np.testing.assert_array_equal(found.coef_table()["df"], np.inf)


def test_kinds_have_their_usual_degrees_of_freedom():
    fit = unbalanced(False)
    assert {kind: fit.robust(kind).df_method for kind in KINDS} == {
        "CR0": "none",
        "CR1": "none",
        "CR1S": "none",
        "CR2": "satterthwaite",
        "CR3": "satterthwaite",
    }


def test_large_clusters_with_few_weights_are_condensed_exactly(monkeypatch):
    monkeypatch.setattr(robust, "LARGE", 5)
    condensed = unbalanced(True).robust()
    monkeypatch.undo()
    whole = unbalanced(True).robust()
    np.testing.assert_allclose(condensed.cov, whole.cov, rtol=EXACT)
    monkeypatch.setattr(robust, "BATCH_ELEMENTS", 1)
    np.testing.assert_allclose(unbalanced(True).robust().cov, whole.cov, rtol=EXACT)


def test_more_functions_than_clusters_have_no_joint_test():
    fit, four = unbalanced(False), np.eye(6)[1:]
    coarse = (fit.frame.groups[0].codes % 3).tolist()
    joint = fit.robust("CR1", coarse).joint_test(four)
    assert (joint.num_df, joint.den_df) == (5, np.inf)
    assert np.isnan(joint.statistic)
    assert np.isnan(fit.robust(cluster=coarse).joint_test(four).p_value)
    assert "at most 2 functions" in " ".join(str(fit.robust(cluster=coarse)).split())


# Arguments


def test_clusters_are_given_by_name_or_by_values():
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"a": np.repeat(list("pqrst"), 8), "b": np.tile(np.repeat([1, 2, 3, 4], 2), 5)})
    data["x"] = np.where(np.arange(40) == 3, np.nan, rng.normal(size=40))
    data["group"] = np.where(data["a"] < "r", "low", "high")
    data["y"] = rng.normal(size=40) + rng.normal(size=5)[data["a"].map("pqrst".index)]
    data.index = data.index[::-1] + 7
    fit = mixed("y ~ x + group + (1 | a:b)", data)
    kept = data["x"].notna()
    by_a = fit.robust(cluster="a")
    assert (by_a.cluster, by_a.num_clusters, by_a.cluster_sizes.tolist()) == ("a", 5, [7, 8, 8, 8, 8])
    for given in (
        data["a"],
        data["a"][kept],
        data["a"].tolist(),
        data["a"][kept].to_numpy(),
        data["a"].array,
    ):
        np.testing.assert_array_equal(fit.robust(cluster=given).cov, by_a.cov)
    assert fit.robust().cluster == "a:b"
    assert fit.robust(cluster="group").num_clusters == 2
    for given, message in (
        ("c", r"no column 'c' \(it keeps 'a:b', 'x', 'group'\)"),
        (data["a"].tolist()[1:9], "8 values, and the fit has 39 rows .40 in the data."),
        (data["a"][::-1], "index of cluster does not match"),
        (data["a"].where(data["a"] != "q"), "'a' is missing in 8 of the rows used"),
        (["p"] * 40, "all rows used are in one cluster, 'p'"),
        (list(range(40)), "level 'p:1' of 'a:b' has rows in several clusters of 'cluster', such as 1 and 0"),
    ):
        with pytest.raises((DataError, DesignError), match=message):
            fit.robust(cluster=given)
    with pytest.raises(DataError, match="kind is 'HC3'"):
        fit.robust("HC3")
    with pytest.raises(DataError, match="df is 'kenward-roger'"):
        fit.robust(df="kenward-roger")


def test_correlated_clusters_are_refused():
    with pytest.raises(DesignError, match="'rater' and 'child' are crossed"):
        crossed().fit.robust()
    with pytest.raises(DesignError, match="a linear model has no groups"):
        jm.mixed("Reaction ~ Days", jm.datasets.load("sleepstudy")).robust()


def test_related_levels_are_refused():
    data = jm.datasets.load("sleepstudy")
    related = jm.known(np.eye(18) + 0.1, data["Subject"].unique())
    fit = mixed("Reaction ~ Days + (1 | Subject)", data, covariance={"Subject": related})
    with pytest.raises(DesignError, match="related by a known matrix"):
        fit.robust()


# In other tables


def test_other_tests_take_the_robust_covariance():
    fit = unbalanced(False)
    found = fit.robust()
    pd.testing.assert_frame_equal(fit.coef_table(vcov=found), found.coef_table())
    table = found.test("phase = 0")
    joint = found.joint_test(np.eye(6)[1:3])
    np.testing.assert_allclose(table.iloc[0], [2, joint.den_df, joint.statistic, joint.p_value], rtol=EXACT)
    with pytest.raises(DataError, match="another fit"):
        unbalanced(True).coef_table(vcov=found)


def test_it_prints_clusters_kind_and_degrees_of_freedom():
    found = unbalanced(False).robust()
    text = str(found)
    assert "18 Subject; rows in each: min 4, average 9.2, max 10" in " ".join(text.split())
    assert "CR2 (bias-reduced" in text
    assert "Satterthwaite" in text
    assert "Robust SE" in found._repr_html_()
    assert "z" in str(unbalanced(False).robust("CR1"))


@pytest.mark.slow
def test_many_clusters_need_little_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(5000), rng.integers(1, 40, 5000))
    data = pd.DataFrame({"g": g, "x": rng.normal(size=len(g)), "t": rng.normal(size=5000)[g]})
    data["y"] = data["x"] + rng.normal(size=5000)[g] + rng.normal(size=len(g))
    fit = jm.mixed("y ~ x + t + (x | g)", data)
    tracemalloc.start()
    found = fit.robust()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
    # With that many clusters, of a true model, both covariances estimate the same.
    np.testing.assert_allclose(found.coef_table()["std_error"], fit.bse, rtol=0.05)


class Correlated(NamedTuple):
    """A model with correlated residuals."""

    formula: str
    residuals: object
    structure: Structure
    weights: str | None = None
    clusters: str = "g"


CORRELATED = {
    "ar1": Correlated(
        "y ~ x + t",
        jm.residuals.AR(time="t", group="g"),
        Structure("ar", group="g", time="t"),
        clusters="half",
    ),
    "unstructured, weights": Correlated(
        "y ~ x + t",
        jm.residuals.Unstructured(time="t", group="g"),
        Structure("unstructured", group="g", time="t", variance_by="t", weights="w"),
        "w",
    ),
    "ar1 within a coarser group": Correlated(
        "y ~ x + t + (1 | half)",
        jm.residuals.AR(time="t", group="g"),
        Structure("ar", group="g", time="t"),
        clusters="half",
    ),
    "exchangeable around finer groups": Correlated(
        "y ~ x + t + (1 | pair)",
        jm.residuals.Exchangeable(group="g", time="t"),
        Structure("exchangeable", group="g", time="t"),
    ),
    "variances": Correlated(
        "y ~ x + t + (x || g)",
        jm.residuals.Independent(variance_by="t"),
        Structure("independent", variance_by="t"),
    ),
}


@cache
def correlated(name: str) -> Fitted:
    """Twelve groups of rows at up to four times, in six coarser ones, cut in two by finer ones."""
    rng = np.random.default_rng(4)
    g, t = np.repeat(np.arange(12), 4), np.tile(np.arange(4), 12)
    e = np.cumsum(rng.normal(size=(12, 4)), axis=1).ravel()
    data = pd.DataFrame({"g": g, "t": t, "x": rng.normal(size=48), "half": g // 2, "pair": 2 * g + t // 2})
    data["w"] = np.round(rng.uniform(0.5, 2, 48), 1)
    data["y"] = data["x"] + 0.5 * t + e + rng.normal(size=6)[data["half"]] + rng.normal(size=24)[data["pair"]]
    data = data[rng.uniform(size=48) < 0.9].reset_index(drop=True)
    model = CORRELATED[name]
    fit = mixed(model.formula, data, residuals=model.residuals, weights=model.weights)
    found = fitted(fit, data[model.clusters].to_numpy())
    plain = fit.sigma**2 / (1.0 if model.weights is None else data["w"].to_numpy())
    relative = model.structure.relative(data, dict(fit.residual_parameters), fit.sigma)
    V = found.V - np.diag(np.broadcast_to(plain, len(data))) + fit.sigma**2 * relative
    return found._replace(V=V)


@pytest.mark.parametrize("kind", ["CR1", "CR2", "CR3"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "ar1")) for name in CORRELATED]
)
def test_correlated_residuals_agree_with_the_definition(name: str, kind: str) -> None:
    check_against_definition(correlated(name), kind)


def test_clusters_do_not_cut_correlated_residuals() -> None:
    fit = correlated("ar1").fit
    with pytest.raises(DesignError, match="0 of 'g' has rows in several clusters of 't', such as 3 and 1"):
        fit.robust(cluster="t")
    # By default the clusters are the groups of correlated rows, also by name.
    np.testing.assert_array_equal(fit.robust().cov, fit.robust(cluster="g").cov)

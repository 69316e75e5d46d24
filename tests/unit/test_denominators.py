"""Degrees of freedom and adjusted covariances against the definitions through n x n matrices."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.denominators import FixedDf, covariance_variation, expected_information
from tests.support.dense_tests import DenseModel, dense_model, kenward_roger_test, satterthwaite_df
from tests.support.fits import quietly

SAME = 1e-6
"""Relative, of degrees of freedom at estimates that have about ten digits."""

N = 84
"""Rows in 28 groups: padded to 32, as those of other test files, these share their programs."""


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(28), 3)
    x, z = rng.normal(size=N), rng.normal(size=28)[g]
    b = rng.normal(size=(28, 2)) @ np.array([[1.0, 0.4], [0.0, 0.8]])
    h, c = g // 7, rng.permutation(np.arange(N) % 7)
    y = 1 + x + b[g, 0] + x * b[g, 1] + 1.2 * rng.normal(size=4)[h] + rng.normal(size=N)
    y = y + 0.8 * rng.normal(size=7)[c] + 0.9 * rng.normal(size=7)[c] * x
    weights = np.round(rng.uniform(0.5, 2, N), 2)
    return pd.DataFrame({"y": y, "x": x, "z": z, "x2": 2 * x, "g": g, "h": h, "c": c, "w": weights})


MODELS: dict[str, tuple[str, str | None]] = {
    "intercept": ("y ~ x + z + (1 | g)", None),
    "slope": ("y ~ x + z + (x | g)", None),
    "independent": ("y ~ x + z + (x || g)", None),
    "identity": ("y ~ x + z + (x | g)", "identity"),
    "exchangeable": ("y ~ x + z + (x | g)", "exchangeable"),
    "nested": ("y ~ x + z + (x | g) + (1 | h)", None),
    "crossed": ("y ~ x + z + (1 | g) + (1 | c)", None),
    "crossed slopes": ("y ~ x + z + (1 | g) + (x | c)", None),
    "aliased": ("y ~ x + x2 + z + (1 | g)", None),
    "linear": ("y ~ x + z", None),
}
SLOW = ("crossed slopes", "nested", "independent")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]


@cache
def fitted(name: str, method: str = "reml", weights: str | None = None) -> jm.MixedResults:
    formula, covariance = MODELS[name]
    return quietly(formula, data(), method=method, covariance=covariance, weights=weights)


@cache
def dense(name: str, method: str = "reml", weights: str | None = None) -> DenseModel:
    return dense_model(fitted(name, method, weights))


def functions(model: DenseModel) -> np.ndarray:
    p = model.X.shape[1]
    return np.vstack([np.eye(p), np.linspace(-1, 2, p)])


def kept_functions(fit: jm.MixedResults, L: np.ndarray) -> np.ndarray:
    """Among all coefficients, dropped ones included."""
    full = np.zeros((len(L), len(fit.params)))
    full[:, ~fit.params.isna().to_numpy()] = L
    return full


@pytest.mark.parametrize("method", ["reml", pytest.param("ml", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_satterthwaite_is_its_definition(name: str, method: str) -> None:
    fit, model = fitted(name, method), dense(name, method)
    L = functions(model)[1:]
    inference = fit.fixed_inference("satterthwaite")
    full = kept_functions(fit, L)
    expected = satterthwaite_df(model, L, method)
    np.testing.assert_allclose(inference.of_kept.df(full), expected, rtol=SAME)
    # What depends on which of two equal columns is dropped has no value for itself.
    told = inference.estimable(full)
    assert told.all() == (name != "aliased")
    np.testing.assert_allclose(inference.df(full)[told], expected[told], rtol=SAME)
    assert np.isnan(inference.df(full)[~told]).all()


@pytest.mark.parametrize("name", CASES)
def test_kenward_roger_is_its_definition(name: str) -> None:
    fit, model = fitted(name), dense(name)
    inference = fit.fixed_inference("kenward-roger")
    kept = inference.kept
    one_by_one = functions(model)
    for L in (one_by_one[:1], one_by_one[1:2], one_by_one[-1:], one_by_one[1:3]):
        expected = kenward_roger_test(model, L, fit.params.dropna().to_numpy())
        np.testing.assert_allclose(
            inference.cov[np.ix_(kept, kept)], expected.adjusted, rtol=SAME, atol=1e-12
        )
        found = inference.reference.joint(L, L @ fit.params.dropna().to_numpy())
        np.testing.assert_allclose(found, (expected.statistic, expected.df), rtol=SAME)
        if len(L) == 1:
            np.testing.assert_allclose(inference.reference.df(L), expected.df, rtol=SAME)


def test_precision_weights_are_part_of_both() -> None:
    fit, model = fitted("slope", "reml", "w"), dense("slope", "reml", "w")
    L = np.eye(3)
    expected = satterthwaite_df(model, L, "reml")
    np.testing.assert_allclose(fit.fixed_inference("satterthwaite").df(L), expected, rtol=SAME)
    adjusted = kenward_roger_test(model, L, fit.params.to_numpy()).adjusted
    np.testing.assert_allclose(fit.fixed_inference("kenward-roger").cov, adjusted, rtol=SAME, atol=1e-12)


def test_a_known_relationship_is_part_of_both() -> None:
    rng = np.random.default_rng(3)
    B = rng.normal(size=(28, 40))
    A = pd.DataFrame(B @ B.T / 40, index=range(28), columns=range(28))
    fit = quietly("y ~ x + z + (1 | g)", data(), covariance={"g": jm.known(A)})
    g = data()["g"]
    model = dense_model(fit)._replace(parts=[A.to_numpy()[np.ix_(g, g)], np.eye(N)])
    L = np.eye(3)
    expected = satterthwaite_df(model, L, "reml")
    np.testing.assert_allclose(fit.fixed_inference("satterthwaite").df(L), expected, rtol=SAME)
    adjusted = kenward_roger_test(model, L, fit.params.to_numpy()).adjusted
    np.testing.assert_allclose(fit.fixed_inference("kenward-roger").cov, adjusted, rtol=SAME, atol=1e-12)


@pytest.mark.slow
def test_a_kernel_is_bent_in_its_length_and_kenward_roger_knows() -> None:
    rng = np.random.default_rng(5)
    t = np.tile(np.arange(6.0), 20)
    g = np.repeat(np.arange(20), 6)
    K = np.exp(-0.5 * (np.arange(6)[:, None] - np.arange(6)) ** 2 / 1.5**2)
    effects = rng.multivariate_normal(np.zeros(6), K, size=20)
    table = pd.DataFrame({"t": t, "g": g, "y": 0.3 * t + effects.ravel() + 0.6 * rng.normal(size=120)})
    kernel = jm.kernels.squared_exponential()
    formula = "y ~ t + (0 + C(t) | g)"
    fit = quietly(formula, table, covariance={"g": kernel.at(np.arange(6.0))})
    length = float(fit.random_terms[0].parameters["estimate"].iloc[0])
    variance, same = fit.random_terms[0].cov.iloc[0, 0], g[:, None] == g[None, :]

    def part(size: float) -> np.ndarray:
        return same * np.exp(-0.5 * (t[:, None] - t[None, :]) ** 2 / size**2)

    h = 1e-3 * length
    slope = (part(length + h) - part(length - h)) / (2 * h)
    bend = (part(length + h) - 2 * part(length) + part(length - h)) / h**2
    whole = DenseModel(
        X=np.asarray(fit.frame.X),
        y=fit.frame.y,
        parts=[part(length), variance * slope, np.eye(120)],
        # V itself is the sum of the first and the last.
        parameters=np.array([variance, 0.0, fit.sigma**2]),
        curvatures={(0, 1): slope, (1, 0): slope, (1, 1): variance * bend},
    )
    L = np.eye(2)
    expected = kenward_roger_test(whole, L[1:], fit.params.to_numpy())
    inference = fit.fixed_inference("kenward-roger")
    np.testing.assert_allclose(inference.cov, expected.adjusted, rtol=1e-5)
    np.testing.assert_allclose(inference.df(L)[1], expected.df, rtol=1e-5)


def test_the_information_is_the_expected_one() -> None:
    fit, model = fitted("slope"), dense("slope")
    inverse = np.linalg.inv(model.V)
    hat = inverse @ model.X @ np.linalg.inv(model.X.T @ inverse @ model.X) @ model.X.T @ inverse
    projected = [(inverse - hat) @ part for part in model.parts]
    expected = np.array([[np.trace(a @ b) / 2 for b in projected] for a in projected])
    found = expected_information(covariance_variation(fit.estimates, fit.state.compact)[0])
    # Standardised columns, relative to sigma squared: another basis of the same covariances.
    basis = fit.state.columns[0].basis
    change = np.zeros((4, 4))
    for position, (i, j) in enumerate([(0, 0), (1, 0), (1, 1)]):
        D = np.zeros((2, 2))
        D[i, j] = D[j, i] = 1.0
        own = basis @ D @ basis.T
        change[:3, position] = own[0, 0], own[1, 0], own[1, 1]
    change[3, 3] = 1.0
    np.testing.assert_allclose(change.T @ found @ change / fit.sigma**4, expected, rtol=1e-8)


def test_an_effect_of_variance_zero_changes_no_test() -> None:
    table = data().copy()
    table["k"] = np.tile(np.arange(12), 7)
    table["y"] -= table.groupby("k")["y"].transform("mean")
    without = quietly("y ~ x + z + (1 | g)", table)
    with_zero = quietly("y ~ x + z + (1 | g) + (1 | k)", table)
    assert with_zero.random_terms[1].cov.iloc[0, 0] == 0
    for ddf in ("satterthwaite", "kenward-roger"):
        pd.testing.assert_frame_equal(with_zero.coef_table(ddf), without.coef_table(ddf), rtol=1e-5)


def test_a_correlation_of_one_leaves_both_methods_finite() -> None:
    rng = np.random.default_rng(1)
    u, noise = rng.normal(size=28), rng.normal(size=N)
    table = data().assign(y=lambda d: d["x"] + (1 + 0.4 * d["x"]) * u[d["g"]] + noise)
    found = quietly("y ~ x + z + (x | g)", table)
    assert found.is_singular
    assert (found.random_terms[0].sd > 0).all()
    for ddf in ("satterthwaite", "kenward-roger"):
        table = found.coef_table(ddf)
        assert np.isfinite(table).all().all()
        assert (table["df"] > 0).all()
    adjusted = kenward_roger_test(dense_model(found), np.eye(3)[1:2], found.params.to_numpy()).adjusted
    np.testing.assert_allclose(found.fixed_inference("kenward-roger").cov, adjusted, rtol=SAME, atol=1e-12)


def test_balanced_one_way_layouts_have_their_exact_df() -> None:
    fit = quietly("y ~ 1 + (1 | g)", data())
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_allclose(fit.coef_table(ddf)["df"], 27, rtol=1e-8)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_a_linear_model_has_the_residual_df(ddf: str) -> None:
    table = fitted("linear").coef_table(ddf)
    np.testing.assert_allclose(table["df"], N - 3, rtol=1e-10)
    np.testing.assert_allclose(table["std_error"], fitted("linear").bse, rtol=1e-10)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_units_do_not_matter(ddf: str) -> None:
    fit = fitted("slope")
    moved = data().assign(y=lambda d: 1e6 * d["y"] + 3e8, x=lambda d: 1e-5 * d["x"] + 7)
    other = quietly(MODELS["slope"][0], moved).coef_table(ddf)
    own = fit.coef_table(ddf)
    columns = ["df", "statistic", "p_value"]
    np.testing.assert_allclose(other.loc[["x", "z"], columns], own.loc[["x", "z"], columns], rtol=1e-5)


def test_kenward_roger_is_for_reml() -> None:
    with pytest.raises(jm.DesignError, match='method="reml"'):
        fitted("intercept", "ml").coef_table("kenward-roger")


def test_a_method_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(jm.DataError, match=r"'kr'; choose one of 'none', 'satterthwaite'"):
        fitted("intercept").coef_table("kr")


def test_a_function_has_the_fewest_df_of_its_coefficients() -> None:
    reference = FixedDf(np.eye(3), np.array([5.0, 10.0, 20.0]))
    L = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    assert reference.df(L).tolist() == [10.0, 5.0, 20.0]
    assert reference.joint(L[[0, 2]], np.array([1.0, 2.0]))[1] == 10.0


@pytest.mark.parametrize("rows", [4, 6])
def test_the_poles_of_the_general_formula_are_none_of_one_function(rows: int) -> None:
    """With 2 or 4 degrees of freedom its parts are infinite, and their limit is finite."""
    x = np.arange(float(rows))
    table = pd.DataFrame({"x": x, "y": x + np.array([0.3, -0.1, -0.4, 0.5, 0.2, -0.3])[:rows]})
    found = quietly("y ~ x", table).coef_table("kenward-roger")
    np.testing.assert_allclose(found["df"], rows - 2, rtol=1e-9)

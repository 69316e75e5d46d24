"""Random effects of ordered levels, AR(1) and Toeplitz, against the dense likelihood and nlme."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import toeplitz as dense_toeplitz

import jaxmixed as jm
from jaxmixed import kernels
from jaxmixed.errors import DataError, DesignError, FormulaError
from jaxmixed.frame import build_frame
from jaxmixed.model import covariance_of
from jaxmixed.nesting import _is_special_case
from jaxmixed.terms import Call, Column
from jaxmixed.toeplitz import ToeplitzCovariance, lags_between
from jaxmixed.variation import metric
from tests.support.dense import Block, DenseModel

ROUNDING = 1e-10
"""Of log-likelihoods by two routes, relative."""

DIFFERENCES = 2e-5
"""Of second derivatives by central differences of the dense log-likelihood."""

TIMES = np.arange(3.0)
RHO = np.array([0.7, 0.2])


def draw(times: np.ndarray, rho: np.ndarray, groups: int = 40, seed: int = 11) -> pd.DataFrame:
    """Groups seen up to twice at each time."""
    rng = np.random.default_rng(seed)
    G = dense_toeplitz(np.append(1.0, rho))
    effects = 1.2 * rng.multivariate_normal(np.zeros(len(times)), G, size=groups)
    rows = [
        (g, t, 1 + 0.2 * t + effects[g, k] + 0.7 * rng.normal())
        for g in range(groups)
        for k, t in enumerate(times)
        for _ in range(2)
        if rng.random() < 0.8
    ]
    return pd.DataFrame(rows, columns=["g", "t", "y"])


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return draw(TIMES, RHO)


@pytest.fixture(scope="module")
def fit(data: pd.DataFrame) -> jm.MixedResults:
    return jm.mixed("y ~ t + toeplitz(0 + t | g)", data)


def group_of(formula: str, data: pd.DataFrame):
    return build_frame(formula, data).groups[0]


# The structure


def structure(positions=(0, 1, 2, 3)) -> ToeplitzCovariance:
    found = kernels.toeplitz().at(positions)
    assert isinstance(found, ToeplitzCovariance)
    return found


def test_any_parameters_give_a_positive_definite_toeplitz_matrix_of_the_correlations_shown() -> None:
    rng, own = np.random.default_rng(0), structure()
    theta = rng.normal(scale=2.0, size=(5, 2, 4))
    T, natural = own.factor(theta), own.natural(theta)
    G = T @ np.swapaxes(T, -1, -2)
    assert (np.linalg.eigvalsh(G) > 0).all()
    for at in np.ndindex(5, 2):
        expected = theta[at][0] ** 2 * dense_toeplitz(np.append(1.0, natural.value[at]))
        np.testing.assert_allclose(G[at], expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(natural.inverse(natural.scaled), natural.value, rtol=1e-11)


def test_the_derivatives_of_the_correlations_are_those_of_differences() -> None:
    own, theta, h = structure(), np.array([1.2, 0.6, -0.9, 0.3]), 1e-6
    natural = own.natural(theta)
    for a, step in enumerate(h * np.eye(4)):
        up, down = own.natural(theta + step), own.natural(theta - step)
        np.testing.assert_allclose(
            natural.jacobian[:, a], (up.scaled - down.scaled) / (2 * h), rtol=1e-7, atol=1e-9
        )
        numeric = (up.value - down.value) / (2 * h)
        np.testing.assert_allclose(natural.slope * natural.jacobian[:, a], numeric, rtol=1e-7, atol=1e-9)


def test_a_covariance_gives_the_parameters_it_was_made_of_and_any_other_a_start() -> None:
    own, theta = structure(), np.array([[1.3, 0.4, -0.2, 0.7], [0.2, -1.0, 0.5, 0.0]])
    T = own.factor(theta)
    np.testing.assert_allclose(own.from_covariance(T @ np.swapaxes(T, 1, 2)), theta, rtol=1e-9, atol=1e-12)
    rough = own.from_covariance(np.diag([1.0, 2.0, 3.0, 4.0]) + 3.0)
    assert np.isfinite(rough).all()
    assert own.from_covariance(np.zeros((4, 4)))[0] == 0


def test_a_variance_of_zero_has_no_correlations() -> None:
    own = structure()
    natural = own.natural(np.array([0.0, 0.4, 0.1, 0.0]))
    assert np.isnan(natural.value).all()
    assert np.isfinite(natural.jacobian).all()
    assert metric(own, np.array([0.0, 0.4, 0.1, 0.0])).slopes.shape == (0, 4, 4)


def test_the_metric_of_its_tests_is_that_of_the_autocovariances() -> None:
    found = metric(structure(), np.array([1.2, 0.4, 0.1, 0.0]))
    assert found.curvatures is None
    np.testing.assert_array_equal(found.slopes, [dense_toeplitz(row) for row in np.eye(4)])


def test_lags_are_named_in_the_unit_of_the_positions() -> None:
    assert structure((14, 8, 12, 10)).natural_names == ("rho2", "rho4", "rho6")
    assert structure((0, 1, 4, 6)).natural_names == tuple(f"rho{lag}" for lag in range(1, 7))
    assert lags_between((3, 1, 10)) == (2, 7, 9)
    with pytest.raises(DesignError, match=r"'toeplitz' are 2 apart.*distances that occur are 1, 4, 5\. "):
        structure((5, 0, 1))
    with pytest.raises(DesignError, match="whole numbers"):
        structure((0, 0.5, 1))
    with pytest.raises(DesignError, match="at least two positions"):
        structure((4,))
    with pytest.raises(DesignError, match="one number for each effect"):
        structure([[0, 1], [1, 1]])


def test_what_a_toeplitz_matrix_contains() -> None:
    Z, own = np.eye(4), structure()
    for inside in (
        kernels.ar1().at(range(4)),
        kernels.exponential().at(range(4)),
        "exchangeable",
        "identity",
    ):
        assert _is_special_case(Z, inside, own, Z)
    outside = ("unstructured", "independent", kernels.ar1().at([0, 1, 2, 4]))
    assert not any(_is_special_case(Z, other, own, Z) for other in outside)
    assert _is_special_case(Z, "identity", kernels.ar1().at(range(4)), Z)
    assert not _is_special_case(Z, "exchangeable", kernels.ar1().at(range(4)), Z)
    assert _is_special_case(Z, own, "unstructured", Z)


# Formulas and data


@pytest.mark.parametrize("wrapper", ["ar1", "toeplitz"])
def test_a_column_within_the_wrapper_stands_for_its_levels(wrapper: str, data: pd.DataFrame) -> None:
    for column in ("t", "C(t)", "factor(t)"):
        group = group_of(f"y ~ t + {wrapper}(0 + {column} | g)", data)
        assert group.structure == wrapper
        assert isinstance(group.term.effects.terms[0].factors[0], Call)
        assert group.Z.shape[1] == 3
    assert group_of(f"y ~ t + {wrapper}(0 + t | g)", data).term.text == f"{wrapper}(0 + C(t) | g)"
    plain = group_of("y ~ t + (0 + t | g)", data)
    assert plain.term.effects.terms[0].factors == (Column("t"),)


@pytest.mark.parametrize(
    "term",
    ["ar1(t | g)", "ar1(1 | g)", "toeplitz(0 + t:x | g)", "ar1(0 + log(t) | g)", "toeplitz(t + x | g)"],
)
def test_what_is_not_the_levels_of_one_column_is_refused(term: str) -> None:
    with pytest.raises(
        FormulaError, match=r"levels of one column, without an intercept: write \w+\(0 \+ \w+ \| g\)"
    ):
        jm.formula.parse(f"y ~ x + {term}")


def test_positions_are_the_numbers_of_the_levels_or_the_places_of_ordered_categories(
    data: pd.DataFrame,
) -> None:
    visits = ["before", "first", "none here", "last"]
    names = data["t"].map(dict(enumerate(["before", "first", "last"])))
    for ordered in (True, False):
        table = data.assign(t=pd.Categorical(names, categories=visits, ordered=ordered))
        group = group_of("y ~ 1 + ar1(0 + t | g)", table)
        if ordered:  # the visit that nobody made counts as a step
            assert covariance_of("ar1", group).positions == (0.0, 1.0, 3.0)
            continue
        with pytest.raises(FormulaError, match=r"no numbers: 'before', 'first', 'last'.*ordered=True"):
            covariance_of("ar1", group)
    numbers = data.assign(t=pd.Categorical(2 * data["t"] + 1, ordered=True))
    assert covariance_of("toeplitz", group_of("y ~ 1 + ar1(0 + t | g)", numbers)).positions == (1.0, 3.0, 5.0)


def test_effects_that_are_seen_once_are_told_from_the_residuals_by_a_few_parameters_only(
    data: pd.DataFrame,
) -> None:
    once = data.drop_duplicates(["g", "t"])
    assert group_of("y ~ t + ar1(0 + t | g)", once).Z.shape[1] == 3
    with pytest.raises(DesignError, match="cannot be told from the residuals"):
        build_frame("y ~ t + toeplitz(0 + t | g)", once)
    for own in ("ar1", kernels.ar1(), kernels.exponential(), ["ar1"]):
        assert build_frame("y ~ t + (0 + C(t) | g)", once, covariance={"g": own}).groups[0].Z.shape[1] == 3
    given = {"g": kernels.toeplitz()}
    with pytest.raises(DesignError, match="cannot be told from the residuals"):
        build_frame("y ~ t + (0 + C(t) | g)", once, covariance=given)


def test_a_name_that_does_not_exist_is_refused_with_those_that_do(data: pd.DataFrame) -> None:
    with pytest.raises(FormulaError, match=r"'hetar1' is not known.*'ar1', 'toeplitz'"):
        jm.mixed("y ~ t + (0 + C(t) | g)", data, covariance={"g": "hetar1"})
    with pytest.raises(FormulaError, match=r"write the term as \(0 \+ C\(time\) \| g\)"):
        jm.mixed("y ~ t + (0 + t | g)", data, covariance={"g": "ar1"})


# Fits


def dense(data: pd.DataFrame, times: np.ndarray = TIMES) -> DenseModel:
    y, t = data["y"].to_numpy(), data["t"].to_numpy()
    Z = (t[:, None] == times).astype(float)
    return DenseModel(y, np.column_stack([np.ones_like(y), t]), (Block(Z, data["g"].to_numpy()),))


def second_differences(function, x: np.ndarray, h: float) -> np.ndarray:
    """Second derivatives by central differences of the fourth order."""
    found = np.zeros((len(x), len(x)))

    def crossed(a: np.ndarray, b: np.ndarray) -> float:
        up, down = function(x + a + b) - function(x + a - b), function(x - a + b) - function(x - a - b)
        return (up - down) / 4

    for i, a in enumerate(h * np.eye(len(x))):
        for j, b in enumerate(h * np.eye(len(x))):
            found[i, j] = (4 * crossed(a, b) - crossed(2 * a, 2 * b) / 4) / (3 * h**2)
    return found


def test_a_toeplitz_fit_is_a_maximum_of_the_dense_likelihood_with_its_errors(
    data: pd.DataFrame, fit: jm.MixedResults
) -> None:
    """In log standard deviations and the inverse hyperbolic tangents of the correlations."""
    assert fit.converged
    model, table = dense(data), fit.random_terms[0].parameters
    assert table.index.tolist() == ["rho1", "rho2"]

    def value(x: np.ndarray) -> float:
        G = np.exp(2 * x[0]) * dense_toeplitz(np.append(1.0, np.tanh(x[1:3])))
        return model.loglik((G,), float(np.exp(x[3])), "reml")

    sd, rho = np.sqrt(fit.varcorr["estimate"].to_numpy()), table["estimate"].to_numpy()
    x = np.concatenate([np.log(sd[:1]), np.arctanh(rho), np.log(sd[1:])])
    assert value(x) == pytest.approx(fit.llf, rel=ROUNDING)
    slopes = [(value(x + step) - value(x - step)) / 2e-4 for step in 1e-4 * np.eye(4)]
    np.testing.assert_allclose(slopes, 0, atol=1e-5)
    errors = np.sqrt(np.diagonal(np.linalg.inv(-second_differences(value, x, 1e-3))))
    np.testing.assert_allclose(table["std_error"], (1 - rho**2) * errors[1:3], rtol=DIFFERENCES)
    for column, side in (("conf_low", -1), ("conf_high", 1)):
        limits = np.tanh(np.arctanh(rho) + side * 1.959963984540054 * errors[1:3])
        np.testing.assert_allclose(table[column], limits, rtol=DIFFERENCES)
    np.testing.assert_allclose(fit.varcorr["std_error"], 2 * sd**2 * errors[[0, 3]], rtol=DIFFERENCES)
    G = np.asarray(fit.random_terms[0].cov)
    np.testing.assert_allclose(G, sd[0] ** 2 * dense_toeplitz(np.append(1.0, rho)), rtol=1e-9)
    effects = model.blups(0, (G,), float(fit.sigma))
    np.testing.assert_allclose(fit.ranef()["g"], effects, atol=1e-7)


def test_tables_and_predictions_know_a_toeplitz_structure(data: pd.DataFrame, fit: jm.MixedResults) -> None:
    assert "g (toeplitz: C(t)0, C(t)1, C(t)2)" in str(fit.summary())
    assert fit.tidy()["term"].tolist()[-2:] == ["rho1", "rho2"]
    rows = pd.DataFrame({"g": [0, 0, 0], "t": TIMES})
    expected = np.array([np.ones(3), TIMES]).T @ fit.params.to_numpy() + fit.ranef()["g"].loc[0].to_numpy()
    np.testing.assert_allclose(fit.predict(rows), expected, rtol=1e-12)
    assert fit.coef_table(ddf="kenward-roger")["df"].notna().all()
    with pytest.raises(DesignError, match=r"beyond the first \(rho2\)"):
        fit.conf_int(method="profile")


def test_a_name_and_the_wrapper_are_the_same_model(data: pd.DataFrame, fit: jm.MixedResults) -> None:
    named = jm.mixed("y ~ t + (0 + C(t) | g)", data, covariance={"g": "toeplitz"})
    assert named.llf == fit.llf
    assert named.random_terms[0].structure == fit.random_terms[0].structure == "toeplitz"


@pytest.mark.slow
def test_models_within_a_toeplitz_matrix_are_compared_with_it(
    data: pd.DataFrame, fit: jm.MixedResults
) -> None:
    for smaller, df in (("ar1(0 + t | g)", 1), ("cs(0 + C(t) | g)", 1), ("homdiag(0 + C(t) | g)", 2)):
        small = jm.mixed(f"y ~ t + {smaller}", data)
        assert small.llf <= fit.llf + 1e-9
        test = jm.lrtest(small, fit)
        assert test.df == df
        assert test.statistic == pytest.approx(2 * (fit.llf - small.llf), rel=1e-12)
    two = data[data["t"] < 2]
    one, other = (jm.mixed(f"y ~ t + {term}(0 + C(t) | g)", two) for term in ("toeplitz", "cs"))
    assert one.llf == pytest.approx(other.llf, rel=ROUNDING)  # with two levels there is one correlation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = jm.mixed("y ~ t + us(0 + C(t) | g)", data)
    assert jm.lrtest(fit, free).df == 3


NLME = {
    ("orthodont", "ml"): (-221.292948874, [16.7804205, 0.6595374], 42.94667118, 0.26291954, 2.518925436),
    ("orthodont", "reml"): (
        -223.015399336,
        [16.782755985, 0.659453261],
        39.82573276,
        0.25192355,
        2.560908159,
    ),
    ("sleepstudy", "ml"): (-871.530932787, [253.8480465, 10.4488552], 7.74770915, 0.09845496, 48.5339757),
}
"""Log-likelihood, coefficients, range, nugget and standard deviation by nlme 3.1 in R 4.2.2: ``gls(y ~ time,
correlation = corExp(c(5, 0.1), ~ time | group, nugget = TRUE), control = glsControl(maxIter = 200, msMaxIter
= 500, tolerance = 1e-10, msTol = 1e-12))``. The random effects of the times are its correlation, the
residuals its nugget."""

OPTIMISER = 1e-4
"""How far nlme's parameters are from its optimum, relative, where the likelihood is flat."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), NLME)
def test_autoregressive_effects_of_single_rows_are_nlmes_exponential_correlation_with_a_nugget(
    name: str, method: str
) -> None:
    formula = {
        "orthodont": "distance ~ age + ar1(0 + age | Subject)",
        "sleepstudy": "Reaction ~ Days + ar1(0 + Days | Subject)",
    }[name]
    fit = jm.mixed(formula, jm.datasets.load(name), method=method)
    llf, beta, reach, nugget, sd = NLME[name, method]
    assert fit.llf == pytest.approx(llf, abs=1e-8)
    np.testing.assert_allclose(fit.params, beta, rtol=1e-6)
    variances = fit.varcorr["estimate"].to_numpy()
    assert -1 / np.log(fit.random_terms[0].parameters["estimate"].iloc[0]) == pytest.approx(
        reach, rel=OPTIMISER
    )
    assert variances[1] / variances.sum() == pytest.approx(nugget, rel=OPTIMISER)
    assert np.sqrt(variances.sum()) == pytest.approx(sd, rel=OPTIMISER)


@pytest.mark.slow
def test_many_models_and_power_take_ordered_effects(data: pd.DataFrame, fit: jm.MixedResults) -> None:
    rng = np.random.default_rng(2)
    responses = pd.DataFrame(data["y"].to_numpy()[:, None] + 0.1 * rng.normal(size=(len(data), 3)))
    many = fit.refit_many(responses.to_numpy())
    one = jm.mixed("y ~ t + toeplitz(0 + t | g)", data.assign(y=responses[1]))
    assert many.llf.iloc[1] == pytest.approx(one.llf, rel=1e-9)
    bad = {"beta": [1, 0.1], "random": {"g": {"sd": 1.0, "corr": -0.9}}, "sigma": 1.0}
    with pytest.raises(DataError, match="positive semidefinite"):
        jm.simulate("y ~ t + ar1(0 + t | g)", data, bad)

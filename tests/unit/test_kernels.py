"""Kernels as random-effects structures, against the dense likelihood and each other."""

import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import jaxmixed as jm
from jaxmixed import kernels
from jaxmixed.covariance import covariance_structure
from jaxmixed.errors import ConvergenceWarning, DesignError, FormulaError, SingularFitWarning
from jaxmixed.model import covariance_of, structures_of
from jaxmixed.nesting import _is_special_case
from jaxmixed.precision import double_precision
from jaxmixed.programs import Program
from jaxmixed.results import MixedResults
from tests.support.compilation import QUICKLY
from tests.support.dense import Block, DenseModel

WEEKS = np.array([0.0, 1.0, 2.0, 4.0, 7.0])
FORMULA = "y ~ week + (0 + C(week) | subject)"
BUILT_IN = {
    "squared_exponential": kernels.squared_exponential(),
    "exponential": kernels.exponential(),
    "matern32": kernels.matern32(),
    "ar1": kernels.ar1(),
}
ROUNDING = 1e-9
"""Of log-likelihoods by two routes, relative."""

DIFFERENCES = 2e-5
"""Of second derivatives by central differences of the dense log-likelihood."""


def compound_symmetry(params, positions):
    """All pairs have one correlation, wherever they are."""
    same = positions[:, None] == positions[None, :]
    return jnp.where(same, 1.0, params["rho"])


EQUAL = kernels.kernel(compound_symmetry, {"rho": kernels.Correlation(0.2)}, "equal")


def separations(weeks: np.ndarray) -> np.ndarray:
    return np.abs(weeks[:, None] - weeks)


def by_hand(name: str, value: float, weeks: np.ndarray = WEEKS) -> np.ndarray:
    """Correlations from the definition, in numpy."""
    d = separations(weeks)
    if name == "squared_exponential":
        return np.exp(-(d**2) / (2 * value**2))
    if name == "exponential":
        return np.exp(-d / value)
    if name == "matern32":
        return (1 + np.sqrt(3) * d / value) * np.exp(-np.sqrt(3) * d / value)
    return np.where(d == 0, 1.0, np.power(value, d))


def draw(seed: int, correlation: np.ndarray, sd: float, subjects: int = 30, repeats: int = 2) -> pd.DataFrame:
    """Subjects seen in most of the weeks, mostly twice a week."""
    rng = np.random.default_rng(seed)
    effects = sd * rng.multivariate_normal(np.zeros(len(WEEKS)), correlation, size=subjects)
    rows = [
        (subject, week, 1 + 0.2 * week + effects[subject, k] + 0.7 * rng.normal())
        for subject in range(subjects)
        for k, week in enumerate(WEEKS)
        for _ in range(repeats)
        if rng.random() < 0.8
    ]
    return pd.DataFrame(rows, columns=["subject", "week", "y"])


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    return draw(3, by_hand("matern32", 2.5), 1.2)


def fitted(data: pd.DataFrame, kernel: object, **options: object) -> MixedResults:
    return jm.mixed(FORMULA, data, covariance={"subject": kernel}, **options)


@pytest.fixture(scope="module")
def matern(data: pd.DataFrame) -> MixedResults:
    return fitted(data, BUILT_IN["matern32"])


def dense(data: pd.DataFrame) -> DenseModel:
    y, week = data["y"].to_numpy(), data["week"].to_numpy()
    Z = (week[:, None] == WEEKS).astype(float)
    return DenseModel(y, np.column_stack([np.ones_like(y), week]), (Block(Z, data["subject"].to_numpy()),))


def hessian(function, x: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """Second derivatives by central differences of the fourth order along each pair of axes."""
    k, steps, found = len(x), np.eye(len(x)) * h, np.zeros((len(x), len(x)))

    def mixed(i: int, j: int, scale: float) -> float:
        a, b = scale * steps[i], scale * steps[j]
        up, down = function(x + a + b) - function(x + a - b), function(x - a + b) - function(x - a - b)
        return (up - down) / (4 * (scale * h) ** 2)

    for i in range(k):
        for j in range(k):
            found[i, j] = (4 * mixed(i, j, 1.0) - mixed(i, j, 2.0)) / 3
    return found


def log_likelihood(data: pd.DataFrame, name: str, method: str = "reml"):
    """Dense log-likelihood of (log tau, free parameter of the kernel, log sigma)."""
    model = dense(data)
    back = np.tanh if name == "ar1" else np.exp

    def value(x: np.ndarray) -> float:
        G = np.exp(2 * x[0]) * by_hand(name, float(back(x[1])))
        return model.loglik((G,), float(np.exp(x[2])), method)

    return value


def free_values(fit: MixedResults) -> np.ndarray:
    own = fit.random_terms[0].parameters["estimate"].iloc[0]
    forth = np.arctanh if fit.random_terms[0].structure == "ar1" else np.log
    return np.array([0.5 * np.log(fit.varcorr["estimate"].iloc[0]), forth(own), np.log(fit.sigma)])


# The kernels themselves


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_kernel_is_its_formula(name: str) -> None:
    parameter = "rho" if name == "ar1" else "length"
    with double_precision():
        for value in (0.4, 0.9):
            found = BUILT_IN[name].matrix({parameter: value}, jnp.asarray(WEEKS))
            np.testing.assert_allclose(found, by_hand(name, value), rtol=1e-13)


def test_a_negative_autocorrelation_alternates() -> None:
    with double_precision():
        found = kernels.ar1().matrix({"rho": -0.5}, jnp.arange(4.0))
        slope = jax.jacfwd(lambda rho: kernels.ar1().matrix({"rho": rho}, jnp.arange(4.0)))(0.0)
    np.testing.assert_allclose(found[0], [1, -0.5, 0.25, -0.125])
    np.testing.assert_allclose(slope[0], [0, 1, 0, 0])  # finite at zero, too


def test_distances_in_the_plane_are_euclidean() -> None:
    with double_precision():
        K = kernels.exponential().matrix({"length": 2.0}, jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(K[0, 1], np.exp(-2.5), rtol=1e-14)


def test_derivatives_in_the_positions_are_finite_where_they_meet() -> None:
    slope = jax.jacfwd(lambda s: kernels.matern32().matrix({"length": 1.0}, s))(jnp.array([0.0, 1.0]))
    assert np.isfinite(slope).all()


def test_equal_kernels_are_equal_and_others_are_not() -> None:
    one, twin = (kernels.matern32().at(WEEKS) for _ in range(2))
    assert one == twin
    assert hash(one) == hash(twin)
    assert one != kernels.matern32(3.0).at(WEEKS)
    assert one != kernels.matern32().at(WEEKS[1:])
    assert one != kernels.exponential().at(WEEKS)
    copy = kernels.kernel(lambda p, s: compound_symmetry(p, s), {"rho": kernels.Correlation(0.2)}, "equal")
    assert copy != EQUAL  # functions are compared by identity


# As covariance structures


@pytest.fixture(params=[*BUILT_IN, "equal"])
def structure(request: pytest.FixtureRequest) -> kernels.KernelCovariance:
    return {**BUILT_IN, "equal": EQUAL}[request.param].at(WEEKS)


def test_a_kernel_answers_the_questions_of_a_covariance(structure: kernels.KernelCovariance) -> None:
    theta = np.array([1.3, 0.4])
    T = structure.factor(theta)
    K = np.asarray(structure.factor(np.array([1.0, 0.4])))
    np.testing.assert_allclose(T @ T.T, 1.69 * (K @ K.T), rtol=1e-13)
    assert structure.even().tolist() == [True, False]
    np.testing.assert_allclose(structure.canonical(np.array([-1.3, 0.4])), theta)
    assert structure.canonical(np.array([1e-4, 0.4]), floor=1e-6).tolist() == [0.0, 0.4]
    assert structure.on_boundary(np.array([[0.0, 0.4], [0.1, 0.4]])).tolist() == [[True] * 2, [False] * 2]
    turned = structure.transformed(theta, -2.0 * np.eye(5))
    np.testing.assert_allclose(structure.factor(turned), 2.0 * T, rtol=1e-14)
    assert len(structure.names(("a",) * 5)) == len(structure.initial()) == structure.num_params == 2
    many = np.stack([theta, 2 * theta, [0.0, -0.3]]).reshape(3, 1, 2)
    np.testing.assert_allclose(structure.factor(many)[1, 0], structure.factor(2 * theta), rtol=1e-14)


def test_the_jacobian_of_a_kernel_agrees_with_differences(structure: kernels.KernelCovariance) -> None:
    thetas, h = np.array([[1.3, 0.4], [-0.2, 0.1]]), 1e-6
    jacobian = structure.jacobian(thetas)
    assert jacobian.shape == (2, 2, 5, 5)
    for a in range(2):
        step = h * np.eye(2)[a]
        numeric = (structure.factor(thetas + step) - structure.factor(thetas - step)) / (2 * h)
        np.testing.assert_allclose(jacobian[:, a], numeric, atol=1e-8)


def test_a_kernel_is_traced_in_the_dtype_of_its_parameters(structure: kernels.KernelCovariance) -> None:
    theta = np.array([1.3, 0.4])

    def every(theta, step):
        kept = structure.canonical(theta), structure.on_boundary(theta), structure.retract(theta, step)
        return structure.factor(theta), jax.vmap(structure.factor)(jnp.stack([theta, theta])), *kept

    traced = jax.jit(every, compiler_options=QUICKLY)
    single, lanes, *_ = traced(theta.astype(np.float32), np.zeros(2, np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, structure.factor(theta), atol=1e-6)
    np.testing.assert_allclose(lanes[1], single, atol=1e-6)
    _, _, canonical, boundary, moved = traced(*np.array([[-1.0, 0.5], [9.0, -9.0]], np.float32))
    assert canonical.tolist() == [1.0, 0.5]
    assert boundary.tolist() == [False, False]
    assert moved.tolist() == [8.0, -1.5]
    assert traced(*np.array([[0.0, 0.5], [0.0, 0.0]], np.float32))[3].tolist() == [True, True]


def test_the_start_is_found_near_the_covariance(structure: kernels.KernelCovariance) -> None:
    trial = structure.initial() + np.array([0.5, 1.0])
    T = structure.factor(trial)
    np.testing.assert_allclose(structure.from_covariance(T @ T.T), trial, rtol=1e-10)
    assert (structure.from_covariance(np.zeros((3, 5, 5)))[:, 0] == 0).all()


@pytest.mark.slow
def test_third_derivatives_of_the_factor_are_those_of_differences() -> None:
    structure = kernels.squared_exponential().at(np.arange(11.0) / 4)  # a loop, and ill-conditioned

    def total(phi):
        T = structure.factor(jnp.stack([jnp.asarray(1.0), phi]))
        return jnp.sum(jnp.sin(T @ T.T))

    with double_precision():
        second = jax.jit(jax.grad(jax.grad(total)), compiler_options=QUICKLY)
        third = jax.jit(jax.grad(jax.grad(jax.grad(total))), compiler_options=QUICKLY)
        numeric = (second(0.3 + 1e-4) - second(0.3 - 1e-4)) / 2e-4
        np.testing.assert_allclose(third(0.3), numeric, rtol=1e-6)


# Fits, against the dense likelihood


@pytest.fixture(scope="module")
def autoregression(data: pd.DataFrame) -> MixedResults:
    return fitted(data, BUILT_IN["ar1"])


def check_maximum(fit: MixedResults, data: pd.DataFrame, forth, back, slope: float) -> None:
    """Value, gradient and standard errors of a fit with one parameter, by differences of the dense model."""
    assert fit.converged
    value, x = log_likelihood(data, fit.random_terms[0].structure), free_values(fit)
    assert value(x) == pytest.approx(fit.llf, rel=ROUNDING)
    slopes = [(value(x + step) - value(x - step)) / 2e-4 for step in 1e-4 * np.eye(3)]
    np.testing.assert_allclose(slopes, 0, atol=1e-5)
    errors = np.sqrt(np.diagonal(np.linalg.inv(-hessian(value, x))))
    table, variance = fit.random_terms[0].parameters.iloc[0], fit.varcorr.iloc[0]
    assert table["std_error"] == pytest.approx(slope * errors[1], rel=DIFFERENCES)
    limits = back(forth(table["estimate"]) + np.array([-1, 1]) * 1.959963984540054 * errors[1])
    np.testing.assert_allclose([table["conf_low"], table["conf_high"]], limits, rtol=DIFFERENCES)
    assert variance["std_error"] == pytest.approx(2 * variance["estimate"] * errors[0], rel=DIFFERENCES)
    model = dense(data)
    V = model.covariance((np.asarray(fit.random_terms[0].cov),), float(fit.sigma))
    np.testing.assert_allclose(fit.params, model.gls(V).beta, rtol=1e-9)


def test_a_fit_is_a_maximum_of_the_dense_likelihood(data: pd.DataFrame, matern: MixedResults) -> None:
    check_maximum(matern, data, np.log, np.exp, matern.random_terms[0].parameters["estimate"].iloc[0])


def test_autoregression_is_what_brute_force_finds(data: pd.DataFrame, autoregression: MixedResults) -> None:
    value = log_likelihood(data, "ar1")
    options = {"xatol": 1e-7, "fatol": 1e-11, "maxiter": 2000}
    found = minimize(lambda x: -value(x), [0.0, 1.0, 0.0], method="Nelder-Mead", options=options)
    np.testing.assert_allclose(free_values(autoregression), found.x, atol=2e-5)
    assert autoregression.llf >= -found.fun - 1e-9
    rho = autoregression.random_terms[0].parameters["estimate"].iloc[0]
    check_maximum(autoregression, data, np.arctanh, np.tanh, 1 - rho**2)


@pytest.mark.slow
def test_an_exponential_kernel_is_autoregression_of_positive_correlation(
    data: pd.DataFrame, autoregression: MixedResults
) -> None:
    exponential = fitted(data, BUILT_IN["exponential"])
    assert exponential.llf == pytest.approx(autoregression.llf, rel=1e-10)
    rho, length = (
        fit.random_terms[0].parameters["estimate"].iloc[0] for fit in (autoregression, exponential)
    )
    assert rho == pytest.approx(np.exp(-1 / length), rel=1e-5)


def test_equal_correlations_are_the_exchangeable_structure(data: pd.DataFrame) -> None:
    own, linear = fitted(data, EQUAL), fitted(data, "exchangeable")
    assert own.llf == pytest.approx(linear.llf, rel=1e-11)
    np.testing.assert_allclose(own.random_terms[0].cov, linear.random_terms[0].cov, rtol=1e-6)
    correlation = linear.varcorr.iloc[1]
    table = own.random_terms[0].parameters.loc["rho"]
    for mine, theirs in (
        ("estimate", "sd_or_corr"),
        ("std_error", "sd_or_corr_std_error"),
        ("conf_low", "sd_or_corr_conf_low"),
        ("conf_high", "sd_or_corr_conf_high"),
    ):
        assert table[mine] == pytest.approx(correlation[theirs], rel=1e-5)
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    np.testing.assert_allclose(
        own.varcorr[columns].to_numpy(float), linear.varcorr[columns].iloc[[0, 2]].to_numpy(float), rtol=1e-5
    )
    np.testing.assert_allclose(own.ranef()["subject"], linear.ranef()["subject"], atol=1e-6)


def test_a_kernel_of_fixed_parameters_is_a_linear_structure(data: pd.DataFrame) -> None:
    fixed = kernels.kernel(compound_symmetry, {"rho": kernels.Fixed(0.0)})
    own, linear = fitted(data, fixed), fitted(data, "identity")
    assert own.llf == pytest.approx(linear.llf, rel=1e-12)
    assert own.num_params == linear.num_params
    assert own.random_terms[0].parameters.empty
    np.testing.assert_allclose(
        own.varcorr.drop(columns=["group", "effect", "effect2"]).to_numpy(float),
        linear.varcorr.drop(columns=["group", "effect", "effect2"]).to_numpy(float),
        rtol=1e-6,
    )


def test_positions_are_the_levels_unless_they_are_given(data: pd.DataFrame, matern: MixedResults) -> None:
    group, kernel = matern.frame.groups[0], kernels.matern32()
    assert covariance_of(kernel, group) == kernel.at(WEEKS)
    assert covariance_of(kernel.at(10 * WEEKS), group) == kernel.at(10 * WEEKS)
    assert structures_of(matern.frame.groups, kernel) == [kernel]
    assert matern.estimates.terms[0].covariance == kernel.at(WEEKS)


@pytest.mark.slow
def test_several_terms_of_a_group_take_a_list(data: pd.DataFrame) -> None:
    data = data.assign(y=data["y"] + 3 * np.sin(data["subject"]))
    both = {"subject": ["unstructured", kernels.squared_exponential()]}
    fit = jm.mixed("y ~ week + (1 | subject) + (0 + C(week) | subject)", data, covariance=both)
    assert [term.structure for term in fit.random_terms] == ["unstructured", "squared_exponential"]
    model = dense(data)
    blocks = (Block(np.ones((len(data), 1)), data["subject"].to_numpy()), *model.blocks)
    whole = DenseModel(model.y, model.X, blocks)
    covs = tuple(np.asarray(term.cov) for term in fit.random_terms)
    value = whole.loglik(covs, float(fit.sigma), "reml")
    assert value == pytest.approx(fit.llf, rel=ROUNDING)
    for scale in (0.98, 1.02):
        length = scale * fit.random_terms[1].parameters.loc["length", "estimate"]
        moved = covs[1][0, 0] * by_hand("squared_exponential", length)
        assert whole.loglik((scale * covs[0], covs[1]), float(fit.sigma), "reml") < value
        assert whole.loglik((covs[0], moved), float(fit.sigma), "reml") < value


# After the fit


def test_a_variance_of_zero_leaves_the_kernel_without_parameters() -> None:
    data = draw(7, np.eye(5), 0.0, subjects=29)
    with pytest.warns(SingularFitWarning, match="is estimated as zero"):
        fit = fitted(data, BUILT_IN["matern32"])
    assert fit.is_singular
    assert fit.converged
    assert fit.estimates.theta[0] == 0
    assert fit.random_terms[0].parameters.isna().all(axis=None)
    assert np.isnan(fit.varcorr["std_error"].iloc[0])
    assert np.isfinite(fit.varcorr["std_error"].iloc[1])
    assert "length" in str(fit.summary())
    assert (fit.ranef()["subject"] == 0).all(axis=None)
    assert fit.llf == pytest.approx(jm.mixed("y ~ week", data).llf, rel=1e-12)


def test_predicted_effects_and_their_errors_are_those_of_the_dense_model(
    data: pd.DataFrame, matern: MixedResults
) -> None:
    model, covs = dense(data), (np.asarray(matern.random_terms[0].cov),)
    np.testing.assert_allclose(
        matern.ranef()["subject"], model.blups(0, covs, float(matern.sigma)), rtol=1e-7, atol=1e-9
    )
    for beta in ("known", "estimated"):
        expected = np.sqrt(np.einsum("mii->mi", model.blup_cov(0, covs, float(matern.sigma), beta)))
        np.testing.assert_allclose(matern.ranef_se(beta)["subject"], expected, rtol=1e-7)
    effects = matern.ranef()["subject"].to_numpy()
    place = np.searchsorted(WEEKS, data["week"])
    expected = model.X @ matern.params + effects[data["subject"], place]
    np.testing.assert_allclose(matern.predict(data), expected, rtol=1e-9)


def test_simulated_responses_have_the_covariance_of_the_fit(data: pd.DataFrame, matern: MixedResults) -> None:
    y = matern.simulate(4000, seed=1).to_numpy()
    model = dense(data)
    V = model.covariance((np.asarray(matern.random_terms[0].cov),), float(matern.sigma))
    first = data["subject"].to_numpy() == 0
    found = np.cov(y[first])
    np.testing.assert_allclose(found, V[np.ix_(first, first)], atol=0.25)


@pytest.mark.slow
def test_many_fits_with_a_kernel_are_those_of_each(data: pd.DataFrame, matern: MixedResults) -> None:
    Y = matern.simulate(3, seed=5)
    many = jm.fit_many(
        "~ week + (0 + C(week) | subject)", data, Y, covariance={"subject": kernels.matern32()}
    )
    alone = fitted(data.assign(y=Y.iloc[:, 1]), kernels.matern32())
    assert many.llf.iloc[1] == pytest.approx(alone.llf, rel=1e-10)
    np.testing.assert_allclose(many.theta.iloc[1], alone.theta, rtol=1e-5)
    wide, table = many.to_frame(), alone.random_terms[0].parameters.loc["length"]
    assert wide["estimate[subject: length]"].iloc[1] == pytest.approx(table["estimate"], rel=1e-5)
    assert wide["std_error[subject: length]"].iloc[1] == pytest.approx(table["std_error"], rel=1e-4)
    again = matern.refit(Y.iloc[:, 1])
    assert again.llf == pytest.approx(alone.llf, rel=1e-10)


@pytest.mark.slow
def test_a_bootstrap_shows_the_parameters_of_the_kernel(matern: MixedResults) -> None:
    table = matern.bootstrap(12, seed=2).table(method="percentile")
    row = table.loc["length(matern32 | subject)"]
    assert row["kind"] == "kernel"
    assert row["estimate"] == matern.random_terms[0].parameters.loc["length", "estimate"]
    assert row["conf_low"] < row["estimate"] * 1.5
    assert row["n_used"] > 6
    studentized = matern.bootstrap(12, seed=2).conf_int(method="studentized")
    assert np.isfinite(studentized.loc["length(matern32 | subject)", "conf_low"])


def test_a_kernel_is_compared_with_models_that_it_contains(data: pd.DataFrame, matern: MixedResults) -> None:
    test = jm.lrtest(jm.mixed("y ~ week", data), matern)
    assert test.df == 2
    assert "kernel has no parameters" in test.note
    Z = matern.frame.groups[0].Z
    own, other = kernels.matern32().at(WEEKS), kernels.exponential().at(WEEKS)
    assert _is_special_case(Z, own, own, Z)
    assert _is_special_case(Z, own, "unstructured", Z)
    assert not _is_special_case(Z, "identity", own, Z)
    assert not _is_special_case(Z, other, own, Z)
    assert not _is_special_case(Z[:, ::-1], own, own, Z)


def test_the_summary_shows_the_variance_and_the_length(matern: MixedResults) -> None:
    text = str(matern.summary())
    assert "subject (matern32: C(week)0 ... C(week)7)" in text
    assert "Common variance" in text
    assert "  length " in text
    assert "lrtest(a, b, simulate=1000)" in text
    tidy = matern.tidy()
    assert tidy["term"].tolist()[-1] == "length"
    assert tidy["estimate"].iloc[-1] == matern.random_terms[0].parameters.loc["length", "estimate"]


# Traced likelihoods


def test_the_traced_likelihood_takes_a_kernel_and_differentiates_it(data: pd.DataFrame) -> None:
    model = dense(data)
    structure = kernels.matern32().at(WEEKS)
    with double_precision():
        stats = jm.statistics.summarise(
            jnp.asarray(model.y),
            jnp.asarray(model.X),
            jnp.asarray(model.blocks[0].Z),
            jnp.asarray(model.blocks[0].codes),
            num_groups=model.blocks[0].num_levels,
            structures=structure,
        )
        deviance = partial(jm.likelihood.deviance, stats=stats, method="reml")
        both = jax.jit(jax.value_and_grad(deviance), compiler_options=QUICKLY)
        theta = jnp.array([0.8, 0.6])
        value, slope = both(theta)
        steps = [1e-5 * np.eye(2)[a] for a in range(2)]
        numeric = [(both(theta + step)[0] - both(theta - step)[0]) / 2e-5 for step in steps]
    G = 0.64 * by_hand("matern32", float(np.exp(0.6)))
    assert float(value) == pytest.approx(-2 * model.profiled((G,), "reml").llf, rel=1e-10)
    np.testing.assert_allclose(slope, numeric, atol=1e-5)


def test_a_length_that_goes_to_infinity_is_reported_as_undetermined() -> None:
    data = draw(17, np.eye(5), 0.0)
    with pytest.warns(ConvergenceWarning, match="flat along subject: length"):
        fit = fitted(data, BUILT_IN["matern32"])
    assert fit.llf == pytest.approx(jm.mixed("y ~ week + (1 | subject)", data).llf, abs=1e-6)
    assert np.isnan(fit.random_terms[0].parameters.loc["length", "std_error"])
    assert np.isfinite(fit.varcorr["std_error"].iloc[1])


# What is refused


def test_a_program_with_a_function_of_the_users_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("jaxmixed.programs.cache_directory", lambda: tmp_path)
    device = jax.devices("cpu")[0]
    path = Program(lambda x: (x,))._path
    for kernel, kept in ((kernels.matern32(), True), (EQUAL, False)):
        tree = jax.tree.structure(jm.statistics.Term(0, 0, kernel.at(WEEKS)))
        assert (path((tree, (("terms", kernel.at(WEEKS)),), (), device)) is not None) == kept


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (["a", "b"], "must be numbers"),
        ([0.0, np.nan], "finite numbers"),
        ([0.0, 1.0, 0.0], "two positions"),
        ([0.0, 0.5], "whole numbers"),
    ],
)
def test_positions_that_make_no_sense_are_refused(positions: list, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        kernels.ar1().at(positions)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, s: s, "shape"),
        (lambda p, s: p["a"] * jnp.eye(2), "2 on its diagonal"),
        (lambda p, s: jnp.array([[1.0, 2.0], [2.0, 1.0]]), "semidefinite"),
        (lambda p, s: jnp.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda p, s: jnp.full((2, 2), jnp.nan), "finite"),
    ],
)
def test_a_function_that_gives_no_correlations_is_refused(function: object, message: str) -> None:
    with pytest.raises(DesignError, match=message):
        kernels.kernel(function, {"a": kernels.Positive(2.0)}, "mine").at([0.0, 1.0])


@pytest.mark.slow
def test_variances_may_differ_when_that_is_declared(data: pd.DataFrame) -> None:
    def growing(params, positions):
        size = jnp.exp(params["rate"] * positions)
        return jnp.diag(size * size)

    own = kernels.kernel(growing, {"rate": kernels.Real(0.1)}, unit_variance=False)
    fit = fitted(data, own)
    variances = fit.varcorr["estimate"].to_numpy()[:-1]
    rate = fit.random_terms[0].parameters.loc["rate", "estimate"]
    np.testing.assert_allclose(variances / variances[0], np.exp(2 * rate * WEEKS), rtol=1e-9)
    assert fit.llf == pytest.approx(
        dense(data).loglik((np.diag(variances),), float(fit.sigma), "reml"), rel=ROUNDING
    )


def test_parameters_need_supports_with_starts_inside() -> None:
    with pytest.raises(DesignError, match="'length' of a kernel is"):
        kernels.kernel(compound_symmetry, {"length": 1.0})
    with pytest.raises(DesignError, match="between -1 and 1"):
        kernels.Correlation(1.0)
    with pytest.raises(DesignError, match="cannot be called"):
        kernels.kernel("exp", {})
    with pytest.raises(DesignError, match="name of a structure"):
        kernels.kernel(compound_symmetry, {}, "unstructured")


@pytest.mark.parametrize(
    ("formula", "covariance", "message"),
    [
        ("y ~ week + (week | subject)", kernels.matern32(), "needs a position for each effect"),
        ("y ~ week + (0 + C(kind) | subject)", kernels.matern32(), "no numbers: 'a', 'b'"),
        (FORMULA, kernels.matern32().at([0, 1]), "is of 2 effects, and the term"),
        (FORMULA, {"subject": ["unstructured", "identity"]}, "2 structures for the 1 terms"),
        (FORMULA, {"subject": 3}, "is not known"),
        (FORMULA, {"pupil": kernels.matern32()}, "does not have"),
        (FORMULA, 3, "must be the name of a structure"),
    ],
)
def test_a_kernel_that_does_not_fit_the_term_is_refused(
    data: pd.DataFrame, formula: str, covariance: object, message: str
) -> None:
    kinds = np.where(data.index % 2, "b", "a")
    with pytest.raises(FormulaError, match=message):
        jm.mixed(formula, data.assign(kind=kinds), covariance=covariance)


@pytest.mark.slow
def test_effects_may_outnumber_the_rows() -> None:
    data = draw(4, by_hand("matern32", 2.5), 1.2, subjects=12, repeats=1).sample(34, random_state=1)
    with pytest.raises(DesignError, match="cannot be told from the residuals"):
        jm.mixed(FORMULA, data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fitted(data, kernels.matern32())
    codes = np.unique(data["subject"], return_inverse=True)[1]
    model = dense(data.assign(subject=codes))
    cov = np.asarray(fit.random_terms[0].cov)
    assert model.loglik((cov,), float(fit.sigma), "reml") == pytest.approx(fit.llf, rel=ROUNDING)


def test_linear_structures_are_untouched() -> None:
    assert covariance_structure("exchangeable", 3).homogeneous
    assert not covariance_structure("unstructured", 3).natural_names

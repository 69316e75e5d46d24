"""Fits from reduced data: closed forms, the boundary, saddles, limits, and the verdict."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.diagnosis import TermLabel
from jaxmixed.errors import DesignError
from jaxmixed.estimates import Estimates
from jaxmixed.fitting import fit
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import deviance
from jaxmixed.precision import double_precision
from jaxmixed.search import SingleRunner, search
from jaxmixed.statistics import SufficientStatistics, Term
from tests.support.compilation import LIKE_FITS
from tests.support.dense import DenseModel
from tests.support.designs import random_design
from tests.support.fits import quietly

M, K = 10, 5
N = M * K
METHODS = ("ml", "reml")

compiled = partial(jax.jit, compiler_options=LIKE_FITS)


def reduce_one_way(y: np.ndarray, X: np.ndarray | None = None) -> Reduction:
    """Rows of `y` are the groups of a one-way design."""
    m, k = y.shape
    one = np.ones((m * k, 1))
    terms = (Term(0, 0, covariance_structure("unstructured", 1)),)
    return reduce_rows(
        y.ravel(), one if X is None else X, [Grouping(one, np.repeat(np.arange(m), k), m, "g")], terms
    )


def fit_one_way(y: np.ndarray, method: str, **options: int) -> Estimates:
    labels = (TermLabel("g", ("(Intercept)",), 0, len(y)),)
    return fit(reduce_one_way(y), labels, ("(Intercept)",), method=method, **options)  # type: ignore[arg-type]


def closed_form(y: np.ndarray, method: str) -> tuple[float, float, float]:
    """Variance ratio, sigma squared and deviance of the balanced one-way model (Searle et al. 1992, 3.7)."""
    m, k = y.shape
    n, restricted = m * k, method == "reml"
    means = y.mean(axis=1)
    within, between = np.sum((y - means[:, None]) ** 2), k * np.sum((means - means.mean()) ** 2)
    mean_square = between / (m - 1 if restricted else m)
    sigma2 = within / (n - m)
    ratio = (mean_square / sigma2 - 1) / k
    if ratio <= 0:
        ratio, sigma2 = 0.0, (within + between) / (n - restricted)
    inflation = 1 + k * ratio
    df = n - restricted
    value = m * np.log(inflation) + df * np.log(2 * np.pi * sigma2) + (within + between / inflation) / sigma2
    return ratio, sigma2, value + restricted * np.log(n / inflation)


def at_the_edge(excess: float, method: str, seed: int) -> np.ndarray:
    """Responses whose closed-form variance ratio is ``excess / K`` where that is positive."""
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(M, K))
    errors -= errors.mean(axis=1, keepdims=True)
    effects = rng.normal(size=(M, 1))
    effects -= effects.mean()
    sigma2 = np.sum(errors**2) / (N - M)
    mean_square = K * np.sum(effects**2) / (M - 1 if method == "reml" else M)
    return 5 + errors + effects * np.sqrt((1 + excess) * sigma2 / mean_square)


EXCESSES = [sign * 10.0**-power for power in range(1, 7) for sign in (1, -1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("excess", EXCESSES)
def test_balanced_fits_near_the_boundary_equal_the_closed_form(excess: float, method: str) -> None:
    for seed in range(5):
        y = at_the_edge(excess, method, seed)
        ratio, sigma2, value = closed_form(y, method)
        found = fit_one_way(y, method)
        assert (found.theta[0] == 0) == (excess < 0), "a false zero or a false positive"
        assert found.theta[0] ** 2 == pytest.approx(ratio, rel=1e-3, abs=1e-9)
        assert found.sigma**2 == pytest.approx(sigma2, rel=1e-9)
        assert found.deviance == pytest.approx(value, rel=1e-13)
        assert found.diagnostics.converged, found.diagnostics.messages
        assert found.diagnostics.singular == (excess < 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [1e-3, 0.5, 30.0, 2e4, 1e8])
def test_balanced_fits_inside_equal_the_closed_form(ratio: float, method: str) -> None:
    y = at_the_edge(K * ratio, method, seed=1)
    expected, sigma2, value = closed_form(y, method)
    found = fit_one_way(y, method)
    assert found.theta[0] ** 2 == pytest.approx(expected, rel=1e-6)
    assert found.sigma**2 == pytest.approx(sigma2, rel=1e-9)
    assert found.deviance == pytest.approx(value, rel=1e-12)
    assert found.diagnostics.converged, found.diagnostics.messages
    assert not found.diagnostics.singular


@pytest.mark.parametrize(("depth", "method"), [(1, "ml"), (3, "reml")])
def test_a_fit_equals_the_dense_profile_at_its_estimates(depth: int, method: str) -> None:
    design = random_design(depth, depth=depth, weights=True, offset=True, max_effects=2)
    result = quietly(design.formula, design.data, method=method, **design.arguments)
    terms = sorted(result.estimates.terms, key=lambda term: term.frame_index)
    relative = tuple(term.factor @ term.factor.T for term in terms)
    dense = design.model.profiled(relative, method)  # type: ignore[arg-type]
    found = result.estimates
    assert found.llf == pytest.approx(dense.llf, rel=1e-10)
    assert found.sigma == pytest.approx(dense.sigma, rel=1e-9)
    np.testing.assert_allclose(found.beta, dense.beta, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.cov_beta, dense.cov_beta, rtol=1e-7, atol=1e-10)
    bare = DenseModel(design.model.y, design.model.X, (), design.model.weights, design.model.offset)
    assert found.linear_llf == pytest.approx(bare.profiled((), method).llf, rel=1e-11)  # type: ignore[arg-type]
    assert found.linear_llf <= found.llf


@pytest.mark.parametrize("method", METHODS)
def test_no_nearby_parameters_have_a_smaller_deviance(method: str) -> None:
    data = jm.datasets.load("sleepstudy")
    result = quietly("Reaction ~ Days + (Days | Subject)", data, method=method)
    theta, stats = result.estimates.theta, result.state.stats
    rng = np.random.default_rng(0)
    with double_precision():
        value = compiled(lambda t: deviance(t, stats, method=method))  # type: ignore[arg-type]
        assert value(theta) == pytest.approx(result.deviance, rel=1e-13)
        for size in (1e-1, 1e-2, 1e-3):
            assert all(value(theta + size * rng.normal(size=3)) > result.deviance for _ in range(20))


def test_dyestuff2_is_exactly_on_the_boundary() -> None:
    data = pd.read_csv(Path(__file__).parents[1] / "reference" / "data" / "Dyestuff2.csv")
    found = fit_one_way(data.sort_values("Batch")["Yield"].to_numpy().reshape(6, 5), "ml")
    assert found.deviance == pytest.approx(162.87303665382575, rel=1e-14)
    assert found.theta[0] == 0
    assert found.sigma == pytest.approx(3.6532313513746537, rel=1e-14)
    assert np.sqrt(found.cov_beta[0, 0]) == pytest.approx(0.6669857396443264, rel=1e-14)
    assert found.diagnostics.converged
    assert found.diagnostics.singular
    assert found.diagnostics.singular_terms == ("g: the variance of (Intercept) is estimated as zero",)


def slopes(seed: int = 0, m: int = 27, effects: np.ndarray | None = None) -> pd.DataFrame:
    """Groups of four rows with an intercept and a slope whose root covariance is `effects`."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(m), 4)
    x = rng.normal(size=len(g))
    b = rng.normal(size=(m, 2)) @ (np.eye(2) if effects is None else effects).T
    return pd.DataFrame({"y": 1 + x + b[g, 0] + x * b[g, 1] + rng.normal(size=len(g)), "x": x, "g": g})


SLOPE = "y ~ x + (x | g)"


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_a_fit_that_was_stopped_early_says_so(seed: int, limit: int) -> None:
    data = slopes(seed)
    with pytest.warns(jm.ConvergenceWarning, match="limit on iterations"):
        stopped = jm.mixed(SLOPE, data, max_iterations=limit)
    checks = stopped.estimates.diagnostics
    assert not stopped.converged
    assert not checks.converged
    assert checks.messages
    assert checks.status.startswith("not converged")


@pytest.mark.parametrize("seed", range(8))
def test_an_ordinary_fit_raises_no_alarm(seed: int) -> None:
    found = jm.mixed(SLOPE, slopes(seed)).estimates.diagnostics
    assert found.converged
    assert found.messages == ()
    assert found.gradient_norm < 1e-6
    assert found.newton_decrement < 1e-9
    assert (found.hessian_eigenvalues > 0).all()
    assert found.status.startswith("converged")
    assert 0 < found.iterations < 15


def test_the_limit_bounds_the_work() -> None:
    stopped = quietly(SLOPE, slopes(), max_iterations=2)
    assert stopped.estimates.diagnostics.evaluations <= 2 * 8


def test_estimates_do_not_depend_on_the_signs_that_the_optimiser_ended_with() -> None:
    for seed in range(8):
        found = quietly(SLOPE, slopes(seed)).estimates
        factor = found.terms[0].factor
        assert (np.diagonal(factor) >= 0).all()
        np.testing.assert_allclose(found.terms[0].cov, found.sigma**2 * factor @ factor.T, rtol=1e-12)
        np.testing.assert_array_equal(factor[np.tril_indices(2)], found.theta)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.01, 1.0, 100.0])
def test_a_search_from_the_saddle_at_zero_escapes_to_the_minimum(ratio: float, method: str) -> None:
    y = at_the_edge(K * ratio, method, seed=2)
    expected, _, value = closed_form(y, method)
    stats = reduce_one_way(y).stats
    found = search(SingleRunner(stats, method, 100), np.zeros((1, 1))).take(0)  # type: ignore[arg-type]
    assert found.value == pytest.approx(value, rel=1e-12)
    assert (found.x[0] / stats.frames[0][0, 0]) ** 2 == pytest.approx(expected, rel=1e-6)


@compiled
def minimum_from(start: jax.Array, stats: SufficientStatistics) -> jax.Array:
    return jm.optim.newton(lambda theta: (deviance(theta, stats), None), start).evaluation.value


@pytest.mark.parametrize("seed", range(6))
def test_no_other_start_finds_a_better_optimum(seed: int) -> None:
    """Small samples with a strong correlation, where saddles and the boundary are near."""
    data = slopes(seed, m=7, effects=np.array([[1.0, 0.0], [-0.9, 0.1]]))
    result = quietly(SLOPE, data)
    stats, rng = result.state.stats, np.random.default_rng(seed)
    with double_precision():
        values = [
            float(minimum_from(rng.normal(size=3) * scale, stats))
            for scale in (0.1, 0.5, 1, 2, 5)
            for _ in range(4)
        ]
    assert result.deviance <= np.nanmin(values) + 1e-8
    assert result.converged


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_correlation_of_one_is_exact_and_named(sign: float) -> None:
    root = np.array([[1.0, 0.0], [2.0 * sign, 0.0]])
    fits = [quietly(SLOPE, slopes(seed, effects=root)) for seed in range(8)]
    flagged = [found for found in fits if found.is_singular]
    assert len(flagged) >= 2, "too few of the seeds gave a singular fit"
    for found in flagged:
        cov = found.estimates.terms[0].cov
        assert found.theta[2] == 0
        assert cov[1, 0] / np.sqrt(cov[0, 0] * cov[1, 1]) == pytest.approx(sign, abs=1e-12)
        assert np.linalg.eigvalsh(cov)[0] >= -1e-14 * np.trace(cov)
        sentence = "g: the correlation of x and (Intercept) is estimated as +-1"
        assert found.estimates.diagnostics.singular_terms == (sentence,)
        assert found.converged


def three_effects(seed: int = 0) -> pd.DataFrame:
    """Three effects of which one is the sum of the others."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(27), 8)
    x, z = rng.normal(size=(2, len(g)))
    b = rng.normal(size=(27, 2))
    effects = b[g, 0] + x * b[g, 1] + z * (b[g, 0] + b[g, 1])
    return pd.DataFrame({"y": effects + rng.normal(size=len(g)), "x": x, "z": z, "g": g})


def test_a_matrix_of_rank_two_names_its_direction() -> None:
    singular = [quietly("y ~ x + (x + z | g)", three_effects(seed)) for seed in range(4)]
    flagged = [found for found in singular if found.is_singular]
    assert flagged, "none of the seeds gave a singular fit"
    for found in flagged:
        (sentence,) = found.estimates.diagnostics.singular_terms
        assert sentence.startswith("g: ")
        assert "rank 2 of 3" in sentence
        assert all(f"*{name}" in sentence for name in ("(Intercept)", "x", "z"))
        weights = np.array(
            [float(part.split("*")[0]) for part in sentence.split("combination ")[1].split(" has")[0].split()]
        )
        cov = found.estimates.terms[0].cov
        assert weights @ cov @ weights < 1e-4 * np.trace(cov)  # the sentence prints three digits
        assert found.converged
        assert (np.diagonal(cov) > 0).all()


@pytest.mark.parametrize("structure", ["independent", "identity", "exchangeable"])
def test_restricted_structures_stay_what_they_are(structure: str) -> None:
    result = quietly(SLOPE, slopes(1), covariance=structure)
    cov = result.estimates.terms[0].cov
    full = quietly(SLOPE, slopes(1))
    assert result.llf <= full.llf + 1e-9
    if structure != "exchangeable":
        assert cov[1, 0] == 0
    if structure != "independent":
        assert cov[0, 0] == pytest.approx(cov[1, 1], rel=1e-12)


def test_many_parameters_are_fitted_too() -> None:
    rng = np.random.default_rng(0)
    q, m = 8, 60
    g = np.repeat(np.arange(m), 20)
    x = rng.normal(size=(len(g), q))
    data = pd.DataFrame(x, columns=[f"x{i}" for i in range(q)])
    data["g"], data["y"] = g, np.sum(x * rng.normal(size=(m, q))[g], axis=1) + rng.normal(size=len(g))
    found = jm.mixed("y ~ 1 + (0 + x0 + x1 + x2 + x3 + x4 + x5 + x6 + x7 | g)", data)
    assert found.converged
    assert len(found.theta) == 36


def test_a_model_without_random_effects_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    X = np.column_stack([np.ones(30), rng.normal(size=30)])
    y = rng.normal(size=30)
    for method in METHODS:
        found = fit(reduce_rows(y, X, (), ()), (), ("(Intercept)", "x"), method=method)  # type: ignore[arg-type]
        dense = DenseModel(y, X).profiled((), method)  # type: ignore[arg-type]
        assert found.llf == pytest.approx(dense.llf, rel=1e-13)
        assert found.llf == pytest.approx(found.linear_llf, rel=1e-15)
        np.testing.assert_allclose(found.beta, dense.beta, rtol=1e-12)
        np.testing.assert_allclose(found.cov_beta, dense.cov_beta, rtol=1e-12)
        assert found.diagnostics.converged
        assert found.num_params == 3


def test_aliased_columns_are_nan_in_full_length_output() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=(M, K)) + rng.normal(size=(M, 1))
    x = rng.normal(size=N)
    X = np.column_stack([np.ones(N), x, 2 * x, np.zeros(N)])
    labels = (TermLabel("g", ("(Intercept)",), 0, M),)
    found = fit(reduce_one_way(y, X), labels, ("(Intercept)", "x", "twice", "none"))
    alone = fit(reduce_one_way(y, X[:, :2]), labels, ("(Intercept)", "x"))
    assert found.diagnostics.rank_deficient == ("twice", "none")
    assert found.rank == 2
    assert np.isnan(found.beta[2:]).all()
    assert np.isnan(found.cov_beta[2:]).all()
    assert np.isnan(found.cov_beta[:, 2:]).all()
    np.testing.assert_allclose(found.beta[:2], alone.beta, rtol=1e-12)
    np.testing.assert_allclose(found.cov_beta[:2, :2], alone.cov_beta, rtol=1e-10)
    assert found.deviance == pytest.approx(alone.deviance, rel=1e-13)


def test_no_variation_within_groups_is_refused() -> None:
    y = np.repeat(np.random.default_rng(3).normal(size=(M, 1)), K, axis=1)
    with pytest.raises(DesignError, match="residual variance is zero"):
        fit_one_way(y, "reml")


def test_counts_of_rows_ranks_and_parameters() -> None:
    result = quietly(SLOPE, slopes(2))
    found = result.estimates
    assert (found.nobs, found.rank, found.num_theta, found.num_params) == (108, 2, 3, 6)
    assert found.df == 106
    assert quietly(SLOPE, slopes(2), method="ml").estimates.df == 108
    assert found.free.all()
    assert found.hessian.shape == (3, 3)

"""The dense oracle agrees with SciPy's densities, Henderson's equations, and stored fits of lme4."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import null_space
from scipy.stats import multivariate_normal

from tests.reference.cases import Case, load_case
from tests.support.dense import Array, Block, DenseModel
from tests.support.designs import Design, random_covariances, random_design

SEEDS = range(12)


def drawn(seed: int) -> tuple[Design, tuple[Array, ...], float]:
    design = random_design(seed)
    rng = np.random.default_rng(1000 + seed)
    return design, random_covariances(rng, design), float(rng.uniform(0.5, 2.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_ml_loglik_is_the_density_of_y(seed: int) -> None:
    design, covs, sigma = drawn(seed)
    model = design.model
    beta = np.linspace(-1, 1, model.X.shape[1])
    mean = model.X @ beta + (0 if model.offset is None else model.offset)
    V = np.diag(sigma**2 / (np.ones_like(model.y) if model.weights is None else model.weights))
    for block, cov in zip(model.blocks, covs, strict=True):
        V += block.wide() @ np.kron(np.eye(block.num_levels), cov) @ block.wide().T
    expected = multivariate_normal(mean, V).logpdf(model.y)
    assert model.loglik(covs, sigma, "ml", beta=beta) == pytest.approx(expected, rel=1e-11)
    np.testing.assert_allclose(model.covariance(covs, sigma), V, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_profiling_the_fixed_effects_maximises_over_them(seed: int) -> None:
    design, covs, sigma = drawn(seed)
    model = design.model
    fit = model.gls(model.covariance(covs, sigma))
    best = model.loglik(covs, sigma, "ml")
    assert best == pytest.approx(model.loglik(covs, sigma, "ml", beta=fit.beta), rel=1e-12)
    for j, se in enumerate(np.sqrt(np.diag(fit.cov))):
        for step in (-0.1, 0.1):
            beta = fit.beta + step * se * np.eye(len(fit.beta))[j]
            assert model.loglik(covs, sigma, "ml", beta=beta) < best


@pytest.mark.parametrize("seed", SEEDS)
def test_reml_loglik_is_the_density_of_error_contrasts(seed: int) -> None:
    design, covs, sigma = drawn(seed)
    model = design.model
    K = null_space(model.X.T)
    contrasts = multivariate_normal(np.zeros(K.shape[1]), K.T @ model.covariance(covs, sigma) @ K)
    expected = contrasts.logpdf(K.T @ model.response) - 0.5 * np.linalg.slogdet(model.X.T @ model.X)[1]
    assert model.loglik(covs, sigma, "reml") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("seed", SEEDS)
def test_profiling_sigma_maximises_over_it(seed: int, method: str) -> None:
    design, covs, _ = drawn(seed)
    assert method in ("ml", "reml")
    profile = design.model.profiled(covs, method)
    for factor in (0.98, 1.02):
        other = factor * profile.sigma
        scaled = tuple(other**2 * cov for cov in covs)
        assert design.model.loglik(scaled, other, method) < profile.llf


@pytest.mark.parametrize("seed", SEEDS)
def test_effects_and_their_covariances_solve_hendersons_equations(seed: int) -> None:
    design, covs, sigma = drawn(seed)
    model = design.model
    weights = np.ones_like(model.y) if model.weights is None else model.weights
    C = np.column_stack([model.X, *(block.wide() for block in model.blocks)])
    p = model.X.shape[1]
    left = (C.T * weights) @ C / sigma**2
    starts = [p]
    for block, cov in zip(model.blocks, covs, strict=True):
        here = slice(starts[-1], starts[-1] + block.num_levels * block.num_effects)
        left[here, here] += np.kron(np.eye(block.num_levels), np.linalg.inv(cov))
        starts.append(here.stop)
    solution = np.linalg.solve(left, C.T @ (weights * model.response) / sigma**2)
    error, given_beta = np.linalg.inv(left), np.linalg.inv(left[p:, p:])
    fit = model.gls(model.covariance(covs, sigma))
    np.testing.assert_allclose(fit.beta, solution[:p], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fit.cov, error[:p, :p], rtol=1e-8, atol=1e-10)
    for k, block in enumerate(model.blocks):
        q = block.num_effects
        effects = solution[starts[k] : starts[k + 1]].reshape(-1, q)
        np.testing.assert_allclose(model.blups(k, covs, sigma), effects, rtol=1e-7, atol=1e-9)
        estimated = model.blup_cov(k, covs, sigma, "estimated")
        known = model.blup_cov(k, covs, sigma, "known")
        for i in range(block.num_levels):
            here = slice(starts[k] + i * q, starts[k] + (i + 1) * q)
            inner = slice(here.start - p, here.stop - p)
            np.testing.assert_allclose(estimated[i], error[here, here], rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(known[i], given_beta[inner, inner], rtol=1e-7, atol=1e-9)


def test_integer_weights_are_means_of_repeated_rows() -> None:
    # A row with weight 2 carries the same information on the effects as two equal rows with weight 1.
    Z, codes = np.ones((4, 1)), np.array([0, 0, 1, 1])
    X, y = np.ones((4, 1)), np.array([1.0, 2.0, 4.0, 3.0])
    weighted = DenseModel(y, X, (Block(Z, codes),), weights=np.full(4, 2.0))
    repeated = DenseModel(
        np.repeat(y, 2), np.repeat(X, 2, axis=0), (Block(np.ones((8, 1)), np.repeat(codes, 2)),)
    )
    covs = (np.array([[0.7]]),)
    np.testing.assert_allclose(weighted.blups(0, covs, 1.3), repeated.blups(0, covs, 1.3), rtol=1e-12)


def dense_model(case: Case, columns: list[str], terms: list[tuple[list[str], list[str]]]) -> DenseModel:
    """Intercept and numeric columns as fixed effects; terms as (numeric columns, grouping columns)."""

    def design(names: list[str]) -> Array:
        return np.column_stack([np.ones(len(case.data)), *(case.data[name] for name in names)])

    blocks = []
    for names, group in terms:
        labels = case.data[group].astype(str).agg(":".join, axis=1)
        _, codes = np.unique(labels, return_inverse=True)
        blocks.append(Block(design(names), codes))
    weights = case.spec["weights"]
    response = case.formula.split("~")[0].strip()
    return DenseModel(
        case.data[response].to_numpy(),
        design(columns),
        tuple(blocks),
        weights=case.data[weights].to_numpy() if weights else None,
    )


@pytest.mark.reference
@pytest.mark.parametrize(
    ("case_id", "columns", "terms"),
    [
        ("sleepstudy_slope.reml", ["Days"], [(["Days"], ["Subject"])]),
        ("sleepstudy_weights.ml", ["Days"], [(["Days"], ["Subject"])]),
        ("pastes_nested.ml", [], [([], ["cask", "batch"]), ([], ["batch"])]),
    ],
)
def test_stored_fits_of_lme4(
    case_id: str, columns: list[str], terms: list[tuple[list[str], list[str]]]
) -> None:
    case = load_case(case_id)
    expected = case.expected
    model = dense_model(case, columns, terms)
    covs = tuple(np.array(term["cov"]) for term in expected["varcorr"])
    sigma, method = expected["sigma"], case.method
    assert model.loglik(covs, sigma, method) == pytest.approx(expected["logLik"], abs=1e-8)
    profile = model.profiled(tuple(cov / sigma**2 for cov in covs), method)
    assert profile.llf == pytest.approx(expected["logLik"], abs=1e-8)
    assert profile.sigma == pytest.approx(sigma, rel=1e-10)
    np.testing.assert_allclose(profile.beta, expected["fixef"]["est"], rtol=1e-10)
    np.testing.assert_allclose(profile.cov_beta, expected["vcov"], rtol=1e-8)
    for k, block in enumerate(expected["ranef"]):
        shown = len(block["levels"])
        modes, known = model.blups(k, covs, sigma), model.blup_cov(k, covs, sigma, "known")
        np.testing.assert_allclose(modes[:shown], block["values"], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(np.sum(modes**2, axis=0), block["sumsq"], rtol=1e-8)
        sds = np.sqrt(np.diagonal(known, axis1=1, axis2=2))
        np.testing.assert_allclose(sds[:shown], block["condsd"], rtol=1e-7)

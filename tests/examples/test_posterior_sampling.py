"""The sampled posterior against one integrated by other means: dense covariances and importance sampling."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxmixed import arrays, datasets
from jaxmixed.precision import double_precision
from tests.support.dense import Array, Block, DenseModel
from tests.support.examples import load

pytest.importorskip("blackjax")
example = load("posterior_sampling")

pytestmark = pytest.mark.slow

ERRORS = 4.5
"""Monte-Carlo standard errors within which two means must agree: once in 100,000 they do not."""


PRIORS = [
    stats.halfnorm(scale=example.SD_SCALE[0]),
    stats.halfnorm(scale=example.SD_SCALE[1]),
    stats.beta(example.LKJ, example.LKJ, loc=-1, scale=2),  # the LKJ prior of two effects
    stats.halfnorm(scale=example.SIGMA_SCALE),
]


class Moments(NamedTuple):
    """Posterior means and standard deviations in the order of the example's table, and the sample's worth."""

    mean: Array
    sd: Array
    size: float


def log_weights(y: Array, X: Array, sd: Array, r: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """Log-likelihood with beta integrated out under its prior, and the mean and covariance of beta.

    Of many variance parameters at once: sd (k, 2), r (k,), sigma (k,); y (subjects, days), X (days, 2) is the
    design of every subject, for fixed and for random effects.
    """
    G = sd[:, :, None] * sd[:, None, :] * np.where(np.eye(2) == 1, 1.0, r[:, None, None])
    V = X @ G @ X.T + sigma[:, None, None] ** 2 * np.eye(len(X))
    inverse = np.linalg.inv(V)
    location, scale = np.asarray(example.BETA_LOCATION), np.asarray(example.BETA_SCALE)
    residual = y - X @ location
    precision = np.diag(1 / scale**2) + len(y) * X.T @ inverse @ X
    h = (X.T @ inverse) @ residual.sum(axis=0)
    covariance = np.linalg.inv(precision)
    step = np.einsum("kab,kb->ka", covariance, h)
    quadratic = np.einsum("ij,kjl,il->k", residual, inverse, residual) - np.sum(h * step, axis=1)
    logdet = len(y) * np.linalg.slogdet(V)[1] + np.linalg.slogdet(precision)[1]
    return -0.5 * (quadratic + logdet), location + step, covariance


@pytest.fixture(scope="module")
def integrated() -> Moments:
    data = datasets.load("sleepstudy").sort_values(["Subject", "Days"])
    y = data["Reaction"].to_numpy().reshape(18, 10)
    X = np.column_stack([np.ones(10), np.arange(10.0)])
    rng = np.random.default_rng(7)
    size = 100_000
    # Wide proposals on the natural scale, so that no Jacobian enters.
    proposals = [
        stats.lognorm(s=0.35, scale=26.0),
        stats.lognorm(s=0.3, scale=6.4),
        stats.beta(5, 5, loc=-1, scale=2),
        stats.lognorm(s=0.08, scale=25.8),
    ]
    draws = np.stack([proposal.rvs(size, random_state=rng) for proposal in proposals], axis=1)
    loglik, location, covariance = log_weights(y, X, draws[:, :2], draws[:, 2], draws[:, 3])
    for k, (prior, proposal) in enumerate(zip(PRIORS, proposals, strict=True)):
        loglik = loglik + prior.logpdf(draws[:, k]) - proposal.logpdf(draws[:, k])
    weights = np.exp(loglik - loglik.max())
    weights /= weights.sum()
    values = np.concatenate([location, draws], axis=1)
    mean = weights @ values
    variance = weights @ (values - mean) ** 2
    variance[:2] += weights @ np.diagonal(covariance, axis1=1, axis2=2)
    return Moments(mean, np.sqrt(variance), float(1 / np.sum(weights**2)))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return example.main(warmup=300, draws=3000, chains=4, seed=0)


def test_the_log_density_is_that_of_dense_likelihood_priors_and_change_of_variables() -> None:
    data = datasets.load("sleepstudy")
    X = np.column_stack([np.ones(180), data["Days"]])
    model = DenseModel(
        data["Reaction"].to_numpy(), X, (Block(X, data["Subject"].cat.codes.to_numpy(np.int64)),)
    )

    def flat(vector: Array) -> Array:
        """Natural parameters of a vector of unbounded ones."""
        position = example.Position(vector[:2], vector[2:4], vector[4], vector[5])
        return np.concatenate([np.ravel(part) for part in example.natural(position)])

    def expected(vector: Array) -> float:
        beta, (sd0, sd1, r, sigma) = flat(vector)[:2], flat(vector)[2:]
        G = np.array([[sd0**2, r * sd0 * sd1], [r * sd0 * sd1, sd1**2]])
        value = model.loglik((G,), sigma, "ml", beta)
        value += np.sum(stats.norm(example.BETA_LOCATION, example.BETA_SCALE).logpdf(beta))
        value += sum(prior.logpdf(x) for prior, x in zip(PRIORS, (sd0, sd1, r, sigma), strict=True))
        step = 1e-5
        columns = [(flat(vector + h) - flat(vector - h)) / (2 * step) for h in step * np.eye(6)]
        return value + np.log(np.abs(np.linalg.det(np.array(columns))))

    with double_precision():
        statistics = arrays(example.FORMULA, data).summarise()

        @jax.jit
        def found(vector: jax.Array) -> jax.Array:
            position = example.Position(vector[:2], vector[2:4], vector[4], vector[5])
            return example.log_likelihood(position, statistics) + example.log_prior(position)

        at = [
            np.array([250.0, 10.0, 3.2, 1.8, 0.1, 3.2]),
            np.array([230.0, 14.0, 2.5, 2.4, -0.8, 3.5]),
            np.array([270.0, 3.0, 3.9, 1.1, 1.2, 2.9]),
        ]
        differences = [float(found(v) - found(at[0])) for v in at]
        wanted = [expected(v) - expected(at[0]) for v in at]  # constants differ
    np.testing.assert_allclose(differences, wanted, rtol=1e-8, atol=1e-8)


def test_means_and_standard_deviations_are_those_of_the_posterior(
    table: pd.DataFrame, integrated: Moments
) -> None:
    assert integrated.size > 10_000
    size = 1 / (1 / table["ESS"] + 1 / integrated.size)
    error = (table["mean"] - integrated.mean) / (integrated.sd / np.sqrt(size))
    assert error.abs().max() < ERRORS, error
    # The variance of a squared deviation is about three times that of a normal one: the tails are heavier.
    ratio = np.log(table["sd"] / integrated.sd) * np.sqrt(2 * size / 3)
    assert ratio.abs().max() < ERRORS, ratio


def test_chains_have_mixed(table: pd.DataFrame) -> None:
    assert table["R-hat"].max() < 1.01
    assert table["ESS"].min() > 5000


def test_fixed_effects_are_those_of_reml_and_deviations_between_subjects_above_them(
    table: pd.DataFrame,
) -> None:
    fixed = table.loc[["(Intercept)", "Days"]]
    assert ((fixed["mean"] - fixed["REML"]).abs() < 0.2 * fixed["SE"]).all()
    assert (fixed["sd"] > fixed["SE"]).all()  # which takes the variances as known
    deviations = table.loc[["sd (Intercept)", "sd Days", "sigma"]]
    assert (deviations["mean"] > deviations["REML"]).all()
    assert ((table["5%"] < table["REML"]) & (table["REML"] < table["95%"])).all()

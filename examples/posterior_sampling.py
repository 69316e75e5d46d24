r"""The posterior of a mixed model's variance parameters and fixed effects, under priors of one's own.

The random effects are integrated out in closed form. What is sampled is the *marginal* (collapsed) posterior
of the fixed effects, the standard deviations and the correlation, with :func:`jaxmixed.likelihood.loglik` of
the sufficient statistics in its log-density: an evaluation with its gradient costs nothing in the number of
rows, and there is no funnel between effects and their variances, as where these are sampled together. The
sampler is NUTS of BlackJAX; any other takes the same function.

Here: reaction times of 18 subjects over ten days (sleepstudy), half-normal priors of the standard deviations,
an LKJ prior of the correlation. The table compares the posterior with the REML estimates: standard deviations
between few subjects have posteriors that are skewed to the right, with means above the estimates.

    pip install "jaxmixed[examples]"
    python examples/posterior_sampling.py

References
----------
Gelman (2006), Prior distributions for variance parameters in hierarchical models, Bayesian Analysis 1(3),
515-534; Lewandowski, Kurowicka & Joe (2009), Journal of Multivariate Analysis 100(9), 1989-2001 (LKJ);
Hoffman & Gelman (2014), The No-U-Turn sampler, Journal of Machine Learning Research 15, 1593-1623.
"""

from functools import partial
from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.scipy.stats import norm

import jaxmixed as jm
from jaxmixed.model_arrays import Arrays

FORMULA = "Reaction ~ Days + (Days | Subject)"
NAMES = ("(Intercept)", "Days", "sd (Intercept)", "sd Days", "correlation", "sigma")

# Priors in the units of the data: milliseconds, and milliseconds a day.
BETA_LOCATION, BETA_SCALE = (250.0, 0.0), (100.0, 50.0)  # normal: the fixed effects
SD_SCALE = (50.0, 20.0)  # half-normal: standard deviations between subjects, of intercepts and of slopes
SIGMA_SCALE = 50.0  # half-normal: standard deviation of the residuals
LKJ = 2.0  # concentration: the density of a correlation r is proportional to (1 - r^2)^(LKJ - 1)


class Position(NamedTuple):
    """Where the sampler is: unbounded parameters."""

    beta: jax.Array
    log_sd: jax.Array
    atanh_correlation: jax.Array
    log_sigma: jax.Array


def natural(position: Position) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Fixed effects, standard deviations of the subjects' effects, their correlation, and sigma."""
    beta, log_sd, atanh_correlation, log_sigma = position
    return beta, jnp.exp(log_sd), jnp.tanh(atanh_correlation), jnp.exp(log_sigma)


def log_likelihood(position: Position, stats: jm.statistics.SufficientStatistics) -> jax.Array:
    """Of the marginal model, at ``theta``: the Cholesky factor of G over sigma, column by column."""
    beta, sd, r, sigma = natural(position)
    factor = jnp.stack([sd[0], sd[1] * r, sd[1] * jnp.sqrt(1 - r**2)])
    return jm.likelihood.loglik(jm.likelihood.Parameters(beta, factor / sigma, sigma), stats)


def log_prior(position: Position) -> jax.Array:
    """Priors of the natural parameters, and the Jacobian of the map to them; up to a constant."""
    beta, sd, r, sigma = natural(position)
    prior = (
        jnp.sum(norm.logpdf(beta, jnp.asarray(BETA_LOCATION), jnp.asarray(BETA_SCALE)))
        + jnp.sum(norm.logpdf(sd / jnp.asarray(SD_SCALE)))
        + norm.logpdf(sigma / SIGMA_SCALE)
        + (LKJ - 1) * jnp.log1p(-(r**2))
    )
    return prior + jnp.sum(position.log_sd) + jnp.log1p(-(r**2)) + position.log_sigma


@partial(jax.jit, static_argnames=("warmup", "draws", "chains"))
def sample(key: jax.Array, model: Arrays, start: Position, warmup: int, draws: int, chains: int) -> Position:
    """Draws of all chains, (chains, draws, ...): each adapts its step size and scales, then runs."""
    stats = model.summarise()  # once: below this line there are no rows any more

    def log_density(position: Position) -> jax.Array:
        return log_likelihood(position, stats) + log_prior(position)

    def chain(key: jax.Array) -> Position:
        of_start, of_warmup, of_draws = jax.random.split(key, 3)
        noise = 0.5 * jax.random.normal(of_start, (6,))
        first = Position(
            start.beta + noise[:2] * jnp.asarray(SD_SCALE),
            start.log_sd + noise[2:4],
            start.atanh_correlation + noise[4],
            start.log_sigma + noise[5],
        )
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, tuned), _ = adaptation.run(of_warmup, first, warmup)
        kernel = blackjax.nuts(log_density, **tuned).step

        def step(state, key):
            state, _ = kernel(key, state)
            return state, state.position

        return jax.lax.scan(step, state, jax.random.split(of_draws, draws))[1]

    return jax.vmap(chain)(jax.random.split(key, chains))


def main(warmup: int = 500, draws: int = 2000, chains: int = 4, seed: int = 0) -> pd.DataFrame:
    """Sample, and compare with the REML estimates.

    Parameters
    ----------
    warmup, draws : int
        Of each chain.
    chains : int
    seed : int

    Returns
    -------
    DataFrame
        A row per parameter: posterior mean, standard deviation, 5% and 95% quantiles, effective sample size,
        split R-hat; REML estimate and standard error.
    """
    data = jm.datasets.load("sleepstudy")
    fit = jm.mixed(FORMULA, data)
    (term,) = fit.random_terms
    sd, r = term.sd.to_numpy(), term.corr.to_numpy()[1, 0]
    start = Position(fit.params.to_numpy(), np.log(sd), np.arctanh(r), np.log(fit.sigma))
    with jm.precision.double_precision():
        found = natural(sample(jax.random.key(seed), jm.arrays(FORMULA, data), start, warmup, draws, chains))
        found = np.concatenate([np.asarray(x).reshape(chains, draws, -1) for x in found], axis=2)
        table = pd.DataFrame(
            {
                "mean": found.mean(axis=(0, 1)),
                "sd": found.std(axis=(0, 1)),
                "5%": np.quantile(found, 0.05, axis=(0, 1)),
                "95%": np.quantile(found, 0.95, axis=(0, 1)),
                "ESS": np.asarray(blackjax.diagnostics.effective_sample_size(found)),
                "R-hat": np.asarray(blackjax.diagnostics.potential_scale_reduction(found)),
                "REML": [*fit.params, *sd, r, fit.sigma],
                "SE": [*fit.bse, *[np.nan] * 4],
            },
            index=NAMES,
        )
    print(table.to_string(float_format="{:.3f}".format))
    return table


if __name__ == "__main__":
    main()

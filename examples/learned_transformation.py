r"""Learning what goes into a mixed model, through its fit: a transformation, and a kernel between groups.

:func:`jaxmixed.solve` is a differentiable function of the data, so the parameters of whatever makes the data
are found by gradient ascent with the mixed model as the last layer. The first two criteria here are maximised
log-likelihoods: by the envelope theorem their gradients are those at fixed estimates. The third one is a
prediction error of the fitted model, whose gradient goes through the estimates: a bilevel problem.

1. *A power transformation of the response* (Box & Cox 1964; for mixed models Gurka et al. 2006),

   .. math:: z(\lambda) = \frac{y^\lambda - 1}{\lambda \dot y^{\lambda - 1}},

   :math:`\dot y` the geometric mean, so that its Jacobian is one and likelihoods are comparable. For the
   reaction times of sleepstudy the interval of lambda has the reciprocal in it, that is speed, but neither
   the times themselves nor their logarithm.

2. *A kernel between the levels of a grouping factor*: sites in a plane, whose effects are alike the nearer
   the sites are, with covariance :math:`\tau^2 \exp(-d^2 / 2\ell^2)`; the length l maximises the likelihood
   of the observed sites.

3. *The same length by the error at other sites*, that of the predictions of their effects (kriging): l
   minimises what the fit to the observed sites gets wrong elsewhere.

Each is compared with a grid of the parameter, a fit at every point of it.

    python examples/learned_transformation.py

References
----------
Box & Cox (1964), An analysis of transformations, Journal of the Royal Statistical Society B 26(2), 211-252;
Gurka, Edwards, Muller & Kupper (2006), Extending the Box-Cox transformation to the linear mixed model,
Journal of the Royal Statistical Society A 169(2), 273-288; Franceschi, Frasconi, Salzo, Grazzi & Pontil
(2018), Bilevel programming for hyperparameter optimization and meta-learning, ICML.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array

import jaxmixed as jm
from jaxmixed.model_arrays import Arrays

CHI2_95 = 3.841458820694124  # of one degree of freedom

Criterion = Callable[[Array], tuple[Array, Array]]
"""A function of one parameter, and its derivative."""


def ascend(criterion: Criterion, start: float, steps: int, rate: float = 0.2) -> Array:
    """Maximise by Adam; the model is fitted again at every step."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def step(at: Array, moments: optax.OptState, slope: Array) -> tuple[Array, optax.OptState]:
        updates, moments = optimiser.update(-slope, moments)
        return optax.apply_updates(at, updates), moments

    at = jnp.asarray(start, float)  # with its dtype stated it compiles as what comes of it does
    moments = optimiser.init(at)
    for _ in range(steps):
        at, moments = step(at, moments, criterion(at)[1])
    return at


# A power of the response


def power(y: Array, lam: Array) -> Array:
    """Box-Cox transformation of positive values with a Jacobian of one; smooth at zero, the logarithm."""
    mean = jnp.exp(jnp.mean(jnp.log(y)))
    t = lam * jnp.log(y)
    # The derivative of expm1(t) / t at zero would be 0/0.
    small = jnp.abs(t) < 1e-4
    ratio = jnp.where(small, 1 + t / 2 + t**2 / 6, jnp.expm1(t) / jnp.where(small, 1, t))
    return jnp.log(y) * ratio * mean ** (1 - lam)


@jax.jit
@jax.value_and_grad
def transformed_loglik(lam: Array, model: Arrays) -> Array:
    """Maximised log-likelihood of the response's power."""
    return jm.solve(model.summarise(y=power(model.y, lam)), method="ml").loglik


def crossing(criterion: Criterion, level: Array, start: Array) -> Array:
    """Where a criterion crosses a level, by Newton's method."""
    at = start
    for _ in range(20):
        value, slope = criterion(at)
        step = (value - level) / slope
        at -= step
        if abs(step) < 1e-8:
            break
    return at


def learned_power(model: Arrays, steps: int, grid: np.ndarray) -> tuple[dict[str, float], pd.Series]:
    """Power, its profile-likelihood interval, and the log-likelihood on a grid."""

    def criterion(lam: Array) -> tuple[Array, Array]:
        return transformed_loglik(lam, model)

    best = ascend(criterion, 1.0, steps)
    top, _ = criterion(best)
    width = (criterion(best - 0.1)[1] - criterion(best + 0.1)[1]) / 0.2  # minus the second derivative
    reach = jnp.sqrt(CHI2_95 / width)
    lower, upper = (crossing(criterion, top - CHI2_95 / 2, best + side * reach) for side in (-1, 1))
    found = {"lambda": best, "lower": lower, "upper": upper, "log-likelihood": top}
    profile = [float(criterion(jnp.asarray(lam, float))[0]) for lam in grid]
    return {name: float(value) for name, value in found.items()}, pd.Series(profile, grid)


# A kernel between sites


class Field(NamedTuple):
    """Samples of sites in a plane.

    Attributes
    ----------
    places : (m, 2) array
    site : (n,) int array
        Sorted.
    X : (n, p) array
    y : (n,) array
    observed : (n,) array
        One for the samples of observed sites, zero for those of the others.
    """

    places: Array
    site: Array
    X: Array
    y: Array
    observed: Array


LENGTH, TAU, SIGMA = 1.5, 1.0, 0.7


def simulate(sites: int, samples: int, seed: int) -> Field:
    """Sites in a square whose side is ten, every third of them not observed."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(0, 10, (sites, 2))
    with jm.precision.double_precision():
        root = np.linalg.cholesky(np.asarray(between(jnp.asarray(np.log(LENGTH)), jnp.asarray(places))))
    site = np.repeat(np.arange(sites), samples)
    x = rng.normal(size=len(site))
    y = 2 + 0.5 * x + TAU * (root @ rng.normal(size=sites))[site] + SIGMA * rng.normal(size=len(site))
    return Field(places, site, np.column_stack([np.ones_like(x), x]), y, np.where(site % 3 == 0, 0.0, 1.0))


def between(log_length: Array, places: Array) -> Array:
    """Correlations of the sites' effects. A little of its own for each site keeps the matrix definite."""
    K = jm.kernels.squared_exponential().matrix({"length": jnp.exp(log_length)}, places)
    return (K + 1e-4 * jnp.eye(len(places))) / (1 + 1e-4)


class Criteria(NamedTuple):
    """What a length is judged by."""

    loglik: Array
    error: Array


@jax.jit
def criteria(log_length: Array, field: Field) -> tuple[Criteria, Criteria]:
    """Both criteria of one fit, and their derivatives: a single parameter's, so forward."""

    def of_length(log_length: Array) -> Criteria:
        stats = jm.statistics.summarise(
            field.y,
            field.X,
            jnp.ones((len(field.y), 1)),
            field.site,
            num_groups=len(field.places),
            frequencies=field.observed,
            relationships=between(log_length, field.places),
        )
        fit = jm.solve(stats)
        # Effects of sites without observed samples are predicted from the others'.
        predicted = field.X @ fit.beta + fit.effects[0][0, field.site]
        elsewhere = 1 - field.observed
        return Criteria(fit.loglik, elsewhere @ (field.y - predicted) ** 2 / jnp.sum(elsewhere))

    return jax.jvp(of_length, (log_length,), (jnp.ones_like(log_length),))


def learned_length(field: Field, steps: int, grid: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Length by each criterion, with both criteria there, and both on a grid of lengths."""

    def loglik(log_length: Array) -> tuple[Array, Array]:
        value, slope = criteria(log_length, field)
        return value.loglik, slope.loglik

    def precision(log_length: Array) -> tuple[Array, Array]:
        value, slope = criteria(log_length, field)
        return -value.error, -slope.error

    def at(log_length: Array) -> dict[str, float]:
        value, _ = criteria(log_length, field)
        return {"length": float(jnp.exp(log_length))} | {k: float(v) for k, v in value._asdict().items()}

    lines = {}
    for name, criterion in (("likelihood", loglik), ("error at other sites", precision)):
        lines[name] = at(ascend(criterion, 0.0, steps))
    profile = [at(jnp.asarray(np.log(length), float)) for length in grid]
    return pd.DataFrame(lines).T, pd.DataFrame(profile).set_index("length")


def main(
    steps: int = 300, sites: int = 90, samples: int = 3, points: int = 61, seed: int = 0
) -> dict[str, dict[str, float] | pd.Series | pd.DataFrame]:
    """Learn a power and a length.

    Parameters
    ----------
    steps : int
        Of the optimiser.
    sites, samples : int
        Of the simulated field: sites, and samples of each.
    points : int
        Of the grids.
    seed : int

    Returns
    -------
    dict
        ``"power"``, a dict, and ``"powers"``, the log-likelihood on a grid; ``"lengths"``, a row for each
        criterion, and ``"field"``, both criteria on a grid of lengths.
    """
    sleepstudy = jm.arrays("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    field = simulate(sites, samples, seed)
    with jm.precision.double_precision():
        power, powers = learned_power(sleepstudy, steps, np.linspace(-2, 1, points))
        lengths, profile = learned_length(field, steps, np.geomspace(0.3, 6, points))
    print("Power of the reaction times")
    print(f"  learned {power['lambda']:.4f}, log-likelihood {power['log-likelihood']:.4f}")
    print(f"  on a grid {powers.idxmax():.4f}, log-likelihood {powers.max():.4f}")
    print(f"  95% interval {power['lower']:.4f} to {power['upper']:.4f}\n")
    print(f"Length of the kernel between {sites} sites (true: {LENGTH})")
    lengths.insert(0, "on a grid", [profile["loglik"].idxmax(), profile["error"].idxmin()])
    print(lengths.to_string(float_format="{:.4f}".format))
    return {"power": power, "powers": powers, "lengths": lengths, "field": profile}


if __name__ == "__main__":
    main()

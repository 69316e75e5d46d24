r"""A neural network for the mean, random effects for the schools, trained together.

.. math:: y_{ij} = f(x_{ij}) + z_{ij}' b_j + e_{ij}, \qquad b_j \sim N(0, G), \quad e_{ij} \sim N(0, \sigma^2)

with f a network: a semiparametric mixed model. The school effects are integrated out, so that the loss is
minus the exact marginal log-likelihood, and f, G and sigma are found together by stochastic gradients. A
minibatch is a set of *whole schools*: students of one school are dependent, schools are not, so that m / m'
times the log-likelihood of m' schools drawn out of m is an unbiased estimate of the log-likelihood of all.

The table compares, on held-out students of schools that were seen in training ("known") and on schools that
were not ("new"), the linear mixed model, the same network without random effects, the network with them, and
what nobody can beat: the mean and the covariances that made the data. A known school's effects are the best
linear unbiased predictions (BLUPs) from its training students; a new school's are zero, with covariance G.
The simulated mean is far from linear. That of the real data, in a second table, is not: there the network
gains nothing over the linear mixed model, and only the school effects matter.

    pip install "jaxmixed[examples]"
    python examples/neural_network_mean.py

References
----------
Simchoni & Rosset (2023), Integrating random effects in deep neural networks, Journal of Machine Learning
Research 24(156), 1-57.
"""

from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

import jaxmixed as jm

TRAIN, KNOWN, NEW = (
    0,
    1,
    2,
)  # what a row is for: training, or a held-out student of a known or of a new school
G, SIGMA = np.array([[1.0, 0.3], [0.3, 0.5]]), 1.0  # of the simulated schools


def _roles(school: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    held_out = np.where(rng.random(len(school)) < 0.25, KNOWN, TRAIN)
    return np.where(school < (school.max() + 1) // 5, NEW, held_out)


class Data(NamedTuple):
    """Students by rows: codes of their schools, inputs, random-effects columns, response, role."""

    school: np.ndarray
    inputs: np.ndarray
    Z: np.ndarray
    y: np.ndarray
    role: np.ndarray


def simulate(num_schools: int, seed: int, spread: float = 1.0) -> tuple[Data, np.ndarray]:
    """Schools of 10 to 30 students, and the mean of each: no sum or product of columns comes near it.

    A fifth of the schools is new; of the others, about every fourth student is held out. `spread` multiplies
    the standard deviations of the school effects.
    """
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(num_schools), rng.integers(10, 31, num_schools))
    inputs = rng.normal(size=(len(school), 2))
    mean = 2 * np.sin(2 * inputs[:, 0]) * inputs[:, 1]
    Z = np.column_stack([np.ones(len(school)), inputs[:, 0]])
    effects = spread * rng.multivariate_normal(np.zeros(2), G, num_schools)
    y = mean + np.sum(Z * effects[school], axis=1) + SIGMA * rng.normal(size=len(school))
    return Data(school, inputs, Z, y, _roles(school, rng)), mean


def high_school_and_beyond(seed: int) -> Data:
    """Mathematics achievement of 7185 students of 160 schools, standardised; their levels differ."""
    rng = np.random.default_rng(seed)
    frame = jm.datasets.load("hsb82")
    catholic = frame["sector"] == "Catholic"
    inputs = np.column_stack([frame[["ses", "minority", "female", "meanses"]], catholic]).astype(float)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    codes = frame["school"].cat.codes.to_numpy(np.int64)
    school = rng.permutation(codes.max() + 1)[codes]
    y = frame["mathach"].to_numpy()
    return Data(school, inputs, np.ones((len(y), 1)), (y - y.mean()) / y.std(), _roles(school, rng))


class Model(eqx.Module):
    """A network for the mean, and the head that holds the parameters of G and sigma."""

    network: eqx.nn.MLP
    head: jm.nn.RandomEffects

    def mean(self, inputs: jax.Array) -> jax.Array:
        """Output of each row, (n,)."""
        return jax.vmap(self.network)(inputs)


def rows_by_school(data: Data) -> np.ndarray:
    """Training rows of each school that has any, (m, largest school), filled up with -1."""
    training = data.role == TRAIN
    members = [np.flatnonzero(training & (data.school == code)) for code in np.unique(data.school[training])]
    rows = np.full((len(members), max(map(len, members))), -1)
    for j, own in enumerate(members):
        rows[j, : len(own)] = own
    return rows


@eqx.filter_jit
def train(model: Model, data: Data, rows: np.ndarray, batch: int, steps: int, key: jax.Array) -> Model:
    """Adam on minibatches of `batch` whole schools."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimiser = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    num_schools, largest = rows.shape

    def loss(parameters: Model, schools: jax.Array) -> jax.Array:
        model = eqx.combine(parameters, static)
        own = rows[schools].ravel()
        return model.head.loss(
            model.mean(data.inputs[own]),
            data.y[own],
            data.Z[own],
            jnp.repeat(jnp.arange(batch), largest),
            num_groups=batch,
            frequencies=jnp.where(own >= 0, 1.0, 0.0),  # what fills up the smaller schools does not count
            scale=num_schools / batch,
        )

    def step(state: tuple, key: jax.Array) -> tuple[tuple, None]:
        parameters, moments = state
        schools = jax.random.choice(key, num_schools, (batch,), replace=False)
        updates, moments = optimiser.update(jax.grad(loss)(parameters, schools), moments)
        return (optax.apply_updates(parameters, updates), moments), None

    start = (parameters, optimiser.init(parameters))
    (parameters, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
    return eqx.combine(parameters, static)


class Predictions(NamedTuple):
    """Mean and variance of the response of every row, given the training rows."""

    mean: np.ndarray
    variance: np.ndarray


@eqx.filter_jit
def predict(head: jm.nn.RandomEffects, mean: np.ndarray, data: Data, num_schools: int) -> Predictions:
    """Output of the network plus the effects of the school, which are those of its training students.

    New schools need no special case: without training students their effects are zero, with covariance G.
    """
    stats = head.summarise(
        data.y - mean,
        data.Z,
        data.school,
        num_groups=num_schools,
        frequencies=jnp.where(data.role == TRAIN, 1.0, 0.0),
    )
    effects = jm.effects.blup(head.theta, stats)
    (covariance,) = jm.effects.blup_covariance(head.theta, stats)  # relative to sigma squared
    of_effects = jnp.einsum("na,abn,nb->n", data.Z, covariance[:, :, data.school], data.Z)
    return Predictions(head.predict(mean, effects, data.Z, data.school), head.sigma**2 * (1 + of_effects))


def scores(found: Predictions, data: Data) -> dict[str, float]:
    """Root mean squared error and mean log predictive density (a student at a time) of each held-out set."""
    error, variance = data.y - np.asarray(found.mean), np.asarray(found.variance)
    density = -0.5 * (np.log(2 * np.pi * variance) + error**2 / variance)
    table = {}
    for name, role in (("known", KNOWN), ("new", NEW)):
        own = data.role == role
        table[f"RMSE, {name}"] = float(np.sqrt(np.mean(error[own] ** 2)))
        table[f"log density, {name}"] = float(np.mean(density[own]))
    return table


Fitted = tuple[jm.nn.RandomEffects, np.ndarray]
"""Covariances, and the mean of every row without its school's effects."""


def linear_mixed_model(data: Data) -> Fitted:
    """By REML, with all inputs and their products; as a head and a mean, to be scored as the networks are."""
    inputs = {f"x{k}": column for k, column in enumerate(data.inputs.T)}
    effects = {f"z{k}": column for k, column in enumerate(data.Z.T)}
    frame = pd.DataFrame(inputs | effects | {"school": data.school, "y": data.y})
    formula = f"y ~ ({' + '.join(inputs)})^2 + (0 + {' + '.join(effects)} | school)"
    found = jm.mixed(formula, frame[data.role == TRAIN])
    head = jm.nn.RandomEffects.init(len(effects), sigma=found.sigma)
    return replace(head, theta=jnp.asarray(found.theta)), found.predict(frame, random=False).to_numpy()


def networks(data: Data, batch: int, steps: int, width: int, seed: int) -> dict[str, Fitted]:
    """One network, without and with random effects: the same start, the same minibatches."""
    of_network, of_batches = jax.random.split(jax.random.key(seed))
    inputs = data.inputs.shape[1]
    network = eqx.nn.MLP(inputs, "scalar", width, 2, activation=jax.nn.tanh, key=of_network)
    effects = jm.nn.RandomEffects.init(data.Z.shape[1], sigma=float(np.std(data.y)))
    # At theta = 0 the gradient along theta is zero: there it stays, and no school has an effect.
    none = replace(effects, theta=jnp.zeros_like(effects.theta))
    rows, fitted = rows_by_school(data), {}
    for name, head in (("network", none), ("network + random effects", effects)):
        model = train(Model(network, head), data, rows, batch, steps, of_batches)
        fitted[name] = (model.head, np.asarray(model.mean(jnp.asarray(data.inputs))))
    return fitted


def table(fitted: dict[str, Fitted], data: Data) -> pd.DataFrame:
    """Scores and standard deviations of every model."""
    lines = {}
    for name, (head, mean) in fitted.items():
        found = predict(head, mean, data, int(data.school.max()) + 1)
        deviations = np.sqrt(np.diagonal(head.covariances()[0]))
        named = {f"sd {k}": float(value) for k, value in enumerate(deviations)}
        lines[name] = scores(found, data) | named | {"sigma": float(head.sigma)}
    return pd.DataFrame(lines).T


def show(title: str, found: pd.DataFrame) -> None:
    """Print a table."""
    print(title, found.to_string(float_format="{:.3f}".format), sep="\n", end="\n\n")


def main(
    num_schools: int = 200, batch: int = 20, steps: int = 3000, width: int = 32, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare the models on simulated schools, and on those of High School and Beyond.

    Parameters
    ----------
    num_schools : int
        Of the simulated data.
    batch : int
        Schools of a minibatch.
    steps : int
        Of the optimiser, on the simulated data; a tenth on the real ones.
    width : int
        Of the network's two hidden layers; a quarter for the real data.
    seed : int

    Returns
    -------
    simulated, real : DataFrame
        A row per model.
    """
    data, mean = simulate(num_schools, seed)
    truth = jm.nn.RandomEffects.init(2, sigma=SIGMA)
    truth = replace(truth, theta=jnp.asarray(truth.structures[0].from_covariance(G / SIGMA**2)))
    fitted = {"linear mixed model": linear_mixed_model(data), **networks(data, batch, steps, width, seed)}
    simulated = table(fitted | {"truth": (truth, mean)}, data)
    show(f"{num_schools} simulated schools", simulated)
    data = high_school_and_beyond(seed)
    fitted = {
        "linear mixed model": linear_mixed_model(data),
        **networks(data, batch, steps // 10, width // 4, seed),
    }
    real = table(fitted, data)
    show("High School and Beyond", real)
    return simulated, real


if __name__ == "__main__":
    main()

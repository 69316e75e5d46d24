"""The random-effects head of networks against dense normal densities."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import jaxmixed as jm
from jaxmixed.nn import RandomEffects
from jaxmixed.precision import double_precision
from tests.support.dense import Array, Block

VALUE = 1e-9
"""Relative, in float64: the dense density solves with V."""

SINGLE = 2e-5
"""Relative, in float32: a few hundred roundings of 6e-8."""

DIFFERENCE = 1e-6
"""Relative error of central differences with steps of 1e-5 in float64."""

SCHOOLS, CLASSES, N = 4, 9, 60


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


class Case(NamedTuple):
    """Students in classes in schools: intercept and slope by class, intercept by school."""

    head: RandomEffects
    mean: Array
    y: Array
    Z: list[Array]
    groups: list[Array]
    weights: Array

    def loss(self, head: RandomEffects, mean: jax.Array) -> jax.Array:
        counts = [CLASSES, SCHOOLS]
        return head.loss(mean, self.y, self.Z, self.groups, num_groups=counts, weights=self.weights)

    def covariance(self, head: RandomEffects) -> Array:
        """V from the definition of the parameters, not through the head's methods."""
        theta, sigma = np.asarray(head.theta), np.exp(float(head.log_sigma))
        factors = [np.array([[theta[0], 0], [theta[1], theta[2]]]), theta[3:, None]]
        V = np.diag(sigma**2 / self.weights)
        for block, code, T in zip(self.Z, self.groups, factors, strict=True):
            V += Block(block, code).covariance(sigma**2 * T @ T.T)
        return V

    def dense_loss(self, head: RandomEffects, mean: Array) -> float:
        return -float(multivariate_normal(cov=self.covariance(head)).logpdf(self.y - mean))


@jax.jit
def loss_and_gradient(case: Case, mean: Array) -> tuple[jax.Array, tuple[RandomEffects, jax.Array]]:
    return jax.value_and_grad(lambda head, mean: case.loss(head, mean), argnums=(0, 1))(case.head, mean)


@pytest.fixture
def case(rng: np.random.Generator) -> Case:
    of_class = rng.permutation(np.arange(N) % CLASSES)
    of_school = np.sort(np.arange(CLASSES) % SCHOOLS)[of_class]
    Z = [np.column_stack([np.ones(N), rng.normal(size=N)]), np.ones((N, 1))]
    head = replace(
        RandomEffects.init([2, 1]), theta=jnp.array([0.8, -0.3, 0.5, 1.2]), log_sigma=jnp.array(0.4)
    )
    mean, y = rng.normal(size=N), rng.normal(size=N)
    return Case(head, mean, y, Z, [of_class, of_school], rng.uniform(0.5, 2, N))


def test_the_loss_is_minus_the_dense_log_density_and_its_gradient_that_of_finite_differences(
    case: Case,
) -> None:
    loss, (of_head, of_mean) = loss_and_gradient(case, case.mean)
    assert float(loss) == pytest.approx(case.dense_loss(case.head, case.mean), rel=VALUE)
    step = 1e-5

    def slope(up: tuple[RandomEffects, Array], down: tuple[RandomEffects, Array]) -> float:
        return (case.dense_loss(*up) - case.dense_loss(*down)) / (2 * step)

    for k in range(4):
        ends = [replace(case.head, theta=case.head.theta.at[k].add(h)) for h in (step, -step)]
        expected = slope((ends[0], case.mean), (ends[1], case.mean))
        assert float(of_head.theta[k]) == pytest.approx(expected, rel=DIFFERENCE, abs=DIFFERENCE)
    ends = [replace(case.head, log_sigma=case.head.log_sigma + h) for h in (step, -step)]
    assert float(of_head.log_sigma) == pytest.approx(
        slope((ends[0], case.mean), (ends[1], case.mean)), rel=DIFFERENCE
    )
    # By the definition of the normal density: minus V^{-1} times the residual.
    expected = -np.linalg.solve(case.covariance(case.head), case.y - case.mean)
    np.testing.assert_allclose(of_mean, expected, rtol=VALUE, atol=VALUE)


def test_effects_are_the_conditional_means_of_the_dense_model(case: Case) -> None:
    residual = case.y - case.mean
    found = jax.jit(partial(case.head.effects, num_groups=[CLASSES, SCHOOLS]))(
        residual, case.Z, case.groups, weights=case.weights
    )
    scores = np.linalg.solve(case.covariance(case.head), residual)
    covariances = case.head.covariances()
    for block, code, G, modes in zip(case.Z, case.groups, covariances, found, strict=True):
        m = code.max() + 1
        expected = (Block(block, code).wide().T @ scores).reshape(m, -1) @ np.asarray(G)
        np.testing.assert_allclose(modes.T, expected, rtol=1e-8, atol=1e-10)
    predicted = case.head.predict(jnp.asarray(case.mean), found, case.Z, case.groups)
    # V b-hat + e-hat = residual, e-hat = W^{-1} sigma^2 V^{-1} residual.
    noise = np.exp(2 * 0.4) / case.weights * scores
    np.testing.assert_allclose(predicted, case.y - noise, rtol=1e-8, atol=1e-10)


def test_a_new_group_is_predicted_without_effects() -> None:
    head, Z = RandomEffects.init(2), jnp.ones((3, 2))
    effects = (jnp.array([[1.0, 2.0], [10.0, 20.0]]),)
    found = head.predict(jnp.zeros(3), effects, Z, jnp.array([1, -1, 0]))
    assert found.tolist() == [22.0, 0.0, 11.0]


def test_losses_of_batches_of_whole_groups_add_up_and_rows_of_frequency_zero_pad_them(
    case: Case,
) -> None:
    head = RandomEffects.init(2, "independent", sigma=0.7)
    Z, groups = case.Z[0], case.groups[0]
    whole = jax.jit(partial(head.loss, num_groups=CLASSES))(case.mean, case.y, Z, groups)
    size = max(np.bincount(groups))

    @jax.jit
    def loss(rows: jax.Array, scale: float) -> jax.Array:
        codes = jnp.repeat(jnp.arange(3), size)
        frequencies = jnp.where(rows >= 0, 1.0, 0.0)
        mean, y, own = jnp.asarray(case.mean)[rows], jnp.asarray(case.y)[rows], jnp.asarray(Z)[rows]
        return head.loss(mean, y, own, codes, num_groups=3, frequencies=frequencies, scale=scale)

    batches = np.full((CLASSES, size), -1)
    for code in range(CLASSES):
        own = np.flatnonzero(groups == code)
        batches[code, : len(own)] = own
    parts = [float(loss(jnp.asarray(rows.ravel()), 1.0)) for rows in batches.reshape(3, 3, size)]
    assert sum(parts) == pytest.approx(float(whole), rel=VALUE)
    assert float(loss(jnp.asarray(batches[:3].ravel()), 3.0)) == pytest.approx(3 * parts[0], rel=VALUE)


def test_at_zero_variance_the_gradient_vanishes_and_the_loss_is_that_of_independent_rows(case: Case) -> None:
    head = replace(case.head, theta=jnp.zeros(4))
    loss, (gradient, _) = loss_and_gradient(case._replace(head=head), case.mean)
    assert np.all(np.asarray(gradient.theta) == 0)
    assert float(loss) == pytest.approx(case.dense_loss(head, case.mean), rel=VALUE)


def test_it_is_a_pytree_of_two_arrays_inside_an_equinox_module_and_works_in_float32(case: Case) -> None:
    class Model(eqx.Module):
        network: eqx.nn.Linear
        head: RandomEffects

    x = np.column_stack([case.y**2, case.mean])
    with jax.enable_x64(False):
        data = Case(*jax.tree.map(jnp.asarray, tuple(case)))
        head = jax.tree.map(partial(jnp.asarray, dtype=np.float32), case.head)
        assert len(jax.tree.leaves(head)) == 2
        model = Model(eqx.nn.Linear(2, "scalar", key=jax.random.key(1)), head)

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def loss(model: Model, data: Case, x: jax.Array) -> jax.Array:
            return data.loss(model.head, jax.vmap(model.network)(x))

        value, gradient = loss(model, data, jnp.asarray(x))
        assert value.dtype == gradient.head.theta.dtype == gradient.network.weight.dtype == np.float32
        weight, bias = np.asarray(model.network.weight, float), float(model.network.bias[0])
    mean = x @ weight.ravel() + bias
    assert float(value) == pytest.approx(case.dense_loss(case.head, mean), rel=SINGLE)
    by_mean = -np.linalg.solve(case.covariance(case.head), case.y - mean)
    expected = by_mean @ x
    np.testing.assert_allclose(gradient.network.weight.ravel(), expected, rtol=10 * SINGLE, atol=1e-3)


def test_structures_start_at_the_standard_deviation_of_the_residuals() -> None:
    head = RandomEffects.init([2, 3], ["exchangeable", "independent"], sigma=1.5)
    for G, q in zip(head.covariances(), (2, 3), strict=True):
        np.testing.assert_allclose(G, 1.5**2 * np.eye(q), rtol=1e-12, atol=1e-12)


def test_a_column_for_a_mean_is_refused_before_it_is_broadcast(case: Case) -> None:
    with pytest.raises(jm.DataError, match=r"shape \(60, 60\).*take its column 0"):
        case.head.loss(case.mean[:, None], case.y, case.Z, case.groups, num_groups=[CLASSES, SCHOOLS])

"""Derivatives along the covariance against their definitions through n x n matrices."""

import numpy as np
import pytest

from jaxmixed.covariance import Exchangeable, Identity, Independent, Unstructured
from jaxmixed.kernels import squared_exponential
from jaxmixed.variation import linear_directions, metric, precision_slopes, vary
from tests.unit.test_denominators import fitted

NAMES = ["slope", pytest.param("nested", marks=pytest.mark.slow), "crossed"]


def standard_columns(name: str):  # type: ignore[no-untyped-def]
    """X, and the standardised Z and groups of each term: what the statistics are cross-products of."""
    fit = fitted(name)
    state = fit.state
    X = np.asarray(fit.frame.X) @ np.linalg.inv(np.asarray(state.stats.basis))
    blocks = []
    for term, columns in zip(fit.estimates.terms, state.columns, strict=True):
        group = fit.frame.groups[term.frame_index]
        same = group.codes[:, None] == group.codes[None, :]
        blocks.append((same, np.asarray(group.Z) @ np.linalg.inv(columns.basis)))
    return fit, X, blocks


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_along_lines_are_products_of_dense_matrices(name: str) -> None:
    fit, X, blocks = standard_columns(name)
    directions, parts = [], []
    factors = [term.covariance.factor(term.standard) for term in fit.estimates.terms]
    V = np.eye(len(X))
    for number, ((same, Z), T) in enumerate(zip(blocks, factors, strict=True)):
        V += same * (Z @ T @ T.T @ Z.T)
        for D in linear_directions(fit.estimates.terms[number].covariance):
            directions.append({number: D})
            parts.append(same * (Z @ D @ Z.T))
    found = vary(factors, directions, fit.state.compact)
    inverse = np.linalg.inv(V)
    np.testing.assert_allclose(found.value, X.T @ inverse @ X, rtol=1e-9, atol=1e-9)
    for a, first in enumerate(parts):
        product = inverse @ first @ inverse
        np.testing.assert_allclose(found.first[a], -X.T @ product @ X, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.logdet_first[a], np.trace(inverse @ first), rtol=1e-9)
        for b, other in enumerate(parts):
            twice = X.T @ (product @ other @ inverse + inverse @ other @ product) @ X
            np.testing.assert_allclose(found.second[a, b], twice, rtol=1e-7, atol=1e-9)
            trace = -np.trace(inverse @ first @ inverse @ other)
            np.testing.assert_allclose(found.logdet_second[a, b], trace, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_slopes_in_the_parameters_are_differences(name: str) -> None:
    fit, X, blocks = standard_columns(name)
    covariances = [term.covariance for term in fit.estimates.terms]
    standard = np.concatenate([term.standard for term in fit.estimates.terms])

    def precision(x: np.ndarray) -> np.ndarray:
        V, start = np.eye(len(X)), 0
        for (same, Z), own in zip(blocks, covariances, strict=True):
            T = own.factor(x[start : start + own.num_params])
            V, start = V + same * (Z @ T @ T.T @ Z.T), start + own.num_params
        return X.T @ np.linalg.solve(V, X)

    several = np.stack([standard, 1.3 * standard])
    value, slopes = precision_slopes(several, fit.state.compact)
    for row, own in enumerate(several):
        np.testing.assert_allclose(value[row], precision(own), rtol=1e-9, atol=1e-9)
        for a, step in enumerate(1e-5 * np.eye(len(own))):
            difference = (precision(own + step) - precision(own - step)) / 2e-5
            np.testing.assert_allclose(slopes[row, a], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("structure", [Unstructured(3), Independent(3), Identity(3), Exchangeable(3)])
def test_directions_span_the_covariances_of_a_structure(structure) -> None:  # type: ignore[no-untyped-def]
    directions = linear_directions(structure)
    assert len(directions) == structure.num_params
    rng = np.random.default_rng(0)
    for _ in range(3):
        T = structure.factor(rng.normal(size=structure.num_params))
        G = (T @ T.T).ravel()
        rows = directions.reshape(len(directions), -1)
        left = G - rows.T @ np.linalg.lstsq(rows.T, G)[0]
        assert np.abs(left).max() < 1e-12 * np.abs(G).max()


def test_what_is_zero_stays_zero() -> None:
    assert len(metric(Unstructured(2), np.array([1.0, 0.5, 0.0])).slopes) == 3  # a correlation of one
    assert len(metric(Unstructured(2), np.array([1.0, 0.0, 0.0])).slopes) == 1
    assert len(metric(Independent(3), np.array([0.0, 1.0, 2.0])).slopes) == 2
    assert len(metric(Exchangeable(2), np.zeros(2)).slopes) == 0
    kernel = squared_exponential().at(np.arange(3.0))
    assert len(metric(kernel, np.array([0.0, 0.3])).slopes) == 0


def test_a_kernel_has_its_natural_parameters() -> None:
    kernel = squared_exponential().at(np.arange(4.0))
    theta = np.array([1.7, 0.4])
    length = float(kernel.natural(theta).value[0])
    distance = np.abs(np.arange(4.0)[:, None] - np.arange(4.0))

    def G(variance: float, length: float) -> np.ndarray:
        return variance * np.exp(-0.5 * (distance / length) ** 2)

    found, v, h = metric(kernel, theta), 1.7**2, 1e-4
    assert found.curvatures is not None
    by_length = (G(v, length + h) - G(v, length - h)) / (2 * h)
    np.testing.assert_allclose(found.slopes, [G(1.0, length), by_length], atol=1e-7)
    np.testing.assert_allclose(found.curvatures[0, 1], by_length / v, atol=1e-7)
    bend = (G(v, length + h) - 2 * G(v, length) + G(v, length - h)) / h**2
    np.testing.assert_allclose(found.curvatures[1, 1], bend, atol=1e-6)
    assert not found.curvatures[0, 0].any()

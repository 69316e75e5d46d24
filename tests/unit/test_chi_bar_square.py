"""The chi-bar-squared distribution: closed forms, units, accuracy far out, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jaxmixed.chi_bar_square import CONVERGED, ChiBarSquare, _balanced, _projections, chi_bar_square

POINTS = (0.5, 3.0, 8.0, 40.0)
STANDARD_ERRORS = 4.0
"""Monte-Carlo averages and their values lie no further apart."""


def mixture(weights: list[float], statistic: float, free: int = 0) -> float:
    return sum(w * stats.chi2.sf(statistic, free + j) for j, w in enumerate(weights) if free + j)


def agrees(found: ChiBarSquare, weights: list[float], free: int = 0) -> bool:
    pairs = [(found.p_value(t), mixture(weights, t, free)) for t in POINTS]
    return all(abs(p - exact) <= STANDARD_ERRORS * error for (p, error), exact in pairs)


def spread(m: int, seed: int) -> np.ndarray:
    """A positive definite matrix whose diagonal spans many units."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(m, m + 2)) * 10.0 ** rng.uniform(-3, 3, size=(m, 1))
    return np.asarray(root @ root.T)


@pytest.mark.parametrize("free", [0, 1, 4])
def test_one_variance_has_an_equal_mixture_of_two(free: int) -> None:
    found = chi_bar_square(np.array([[7.0]]), (1,), free)
    for t in POINTS:
        p_value, error = found.p_value(t)
        assert p_value == pytest.approx(mixture([0.5, 0.5], t, free), rel=1e-12)
        assert error == 0


@pytest.mark.parametrize("rho", [0.0, 0.6, -0.9])
def test_two_variances_have_the_weights_of_the_angle_between_them(rho: float) -> None:
    covariance = np.array([[4.0, 2e3 * rho], [2e3 * rho, 1e6]])
    found = chi_bar_square(np.linalg.inv(covariance), (1, 1))
    none = math.acos(rho) / (2 * math.pi)  # Self & Liang 1987, case 7
    assert found.weights == pytest.approx([none, 0.5, 0.5 - none], abs=1e-12)


def test_three_variances_have_the_weights_of_a_trihedral_angle() -> None:
    H = spread(3, 5)
    found = chi_bar_square(H, (1, 1, 1))
    covariance = np.linalg.inv(H)
    scale = np.sqrt(np.diagonal(covariance))
    r = covariance / np.outer(scale, scale)

    def partial(i: int, j: int, k: int) -> float:
        return float((r[i, j] - r[i, k] * r[j, k]) / math.sqrt((1 - r[i, k] ** 2) * (1 - r[j, k] ** 2)))

    top = (2 * math.pi - sum(math.acos(r[i, j]) for i, j in ((0, 1), (0, 2), (1, 2)))) / (4 * math.pi)
    angles = sum(math.acos(partial(*order)) for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    second = (3 * math.pi - angles) / (4 * math.pi)
    exact = [0.5 - second, 0.5 - top, second, top]
    assert agrees(found, exact)
    assert found.weights is not None
    error = np.sqrt(0.25 / 20_000)
    assert np.abs(found.weights - exact).max() <= STANDARD_ERRORS * error


@pytest.mark.parametrize("m", [4, 6])
def test_uncorrelated_variances_have_binomial_weights(m: int) -> None:
    exact = [math.comb(m, j) / 2**m for j in range(m + 1)]
    assert agrees(chi_bar_square(np.diag(np.geomspace(1e-4, 1e4, m)), (1,) * m, free=2), exact, free=2)


@pytest.mark.parametrize("free", [0, 3])
def test_a_matrix_of_order_two_in_its_own_metric_is_a_circular_cone_of_a_right_angle(free: int) -> None:
    top = (1 - math.cos(math.pi / 4)) / 2
    # Frobenius' length counts the element off the diagonal twice; units of the two effects differ.
    units = np.array([1.0, 30.0, 900.0])
    found = chi_bar_square(np.diag([1.0, 2.0, 1.0]) / np.outer(units, units), (2,), free)
    assert agrees(found, [top, 0.5 - top, 0.5 - top, top], free)
    assert found.weights is None


def test_blocks_whose_information_is_unrelated_add_up() -> None:
    top = (1 - math.cos(math.pi / 4)) / 2
    cone = [top, 0.5 - top, 0.5 - top, top]
    together = np.convolve(cone, [0.5, 0.5]).tolist()
    assert agrees(chi_bar_square(np.diag([1.0, 2.0, 1.0, 5.0]), (2, 1)), together)


@pytest.mark.parametrize("orders", [(3,), (2, 1, 2)])
def test_what_is_left_of_a_projection_is_in_the_polar_cone(orders: tuple[int, ...]) -> None:
    """Moreau: x = P(x) + N(x) with <P, N>_H = 0 and N polar, by the conditions of optimality."""
    m = sum(r * (r + 1) // 2 for r in orders)
    H, cone = _balanced(spread(m, 11), orders)
    z = np.random.default_rng(3).normal(size=(200, m)) @ np.linalg.inv(np.linalg.cholesky(H))
    found = _projections(z, H, cone)
    normal = (z - found) @ H
    size = np.sqrt(np.einsum("ni,ij,nj->n", z, H, z))
    slack = 1e3 * CONVERGED * np.linalg.cond(H)
    assert np.abs(cone(found) - found).max() <= 1e-12 * np.abs(found).max()
    assert (np.abs((found * normal).sum(axis=1)) <= slack * size**2).all()
    assert (np.abs(cone(normal)).max(axis=1) <= slack * size * np.sqrt(np.abs(H).max())).all()


def test_the_seed_fixes_the_average() -> None:
    one, two, other = (chi_bar_square(spread(3, 2), (2,), seed=seed).p_value(4.0)[0] for seed in (1, 1, 2))
    assert one == two != other


def test_a_statistic_of_zero_has_p_one_and_none_has_none() -> None:
    found = chi_bar_square(np.eye(3), (2,))
    assert found.p_value(0.0) == (1.0, 0.0)
    assert np.isnan(found.p_value(np.nan)).all()


@pytest.mark.parametrize("information", [np.ones((3, 3)), np.diag([1.0, 0.0, 1.0])])
def test_variances_that_are_not_told_apart_are_refused(information: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the information"):
        chi_bar_square(information, (1, 1, 1))

"""The search with a parameter held: its maps, its criterion, its optima against the dense density."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

import jaxmixed as jm
from jaxmixed.covariance import Exchangeable, Identity, Independent, Unstructured
from jaxmixed.errors import DesignError
from jaxmixed.kernels import exponential, kernel
from jaxmixed.profile_constraints import (
    Angle,
    CommonAngle,
    CommonDeviation,
    Deviation,
    Everything,
    Holding,
    KernelDeviation,
    Map,
    held_element,
    held_natural,
)
from jaxmixed.profile_likelihood import Criterion, everything
from jaxmixed.profile_search import solve
from jaxmixed.profiles import targets_of
from tests.support.dense import Block, DenseModel
from tests.support.fits import quietly, sleepstudy

STEP = 1e-5
DIFFERENCES = 1e-8  # of central differences with that step, relative to numbers of order one
ROUNDING = 1e-9


def growing(params, positions):
    """Variances that grow with the position."""
    apart = positions[:, None] - positions[None]
    size = 1 + params["growth"] * positions**2
    return size[:, None] * size * np.e ** -(apart**2)


GROWING = kernel(growing, {"growth": jm.kernels.Positive(0.3)}, unit_variance=False).at([0.0, 1.0, 2.5])

MAPS: dict[str, tuple[Map, int]] = {
    "a coefficient": (Everything(), 4),
    "sigma": (Holding(3), 4),
    "the deviation of the first of two effects": (Deviation(0, 2), 4),
    "the deviation of one effect": (Deviation(1), 4),
    "a correlation": (Angle(0, 1, 2), 4),
    "a common deviation": (CommonDeviation(1, 3), 4),
    "a common correlation": (CommonAngle(1), 4),
    "a deviation of a kernel": (KernelDeviation(1, GROWING, 2), 4),
}


@pytest.mark.parametrize("name", MAPS)
class TestEachMap:
    def test_its_derivatives_are_differences(self, name: str) -> None:
        own, size = MAPS[name]
        c, y = 0.7, np.array([0.8, 0.6, 0.5, -0.2])[:size]
        placed = own.place(c, y)
        along = (own.place(c + STEP, y).z - own.place(c - STEP, y).z) / (2 * STEP)
        np.testing.assert_allclose(placed.along, along, atol=DIFFERENCES)
        curves = np.zeros((size, size, size))
        for a, i, j, value in placed.curves:
            curves[a, i, j] += value
            curves[a, j, i] += value if i != j else 0.0
        for j in range(size):
            step = STEP * np.eye(size)[j]
            up, down = own.place(c, y + step), own.place(c, y - step)
            np.testing.assert_allclose(placed.slope[:, j], (up.z - down.z) / (2 * STEP), atol=DIFFERENCES)
            bend = (up.slope - down.slope) / (2 * STEP)
            # The second derivatives of a kernel's own variance are themselves differences.
            np.testing.assert_allclose(curves[:, :, j], bend, atol=1e-6 if "kernel" in name else DIFFERENCES)
        assert not placed.slope[:, placed.idle].any()

    def test_it_finds_its_numbers_again(self, name: str) -> None:
        own, size = MAPS[name]
        z = np.array([0.9, 0.4, 0.7, -0.3])[:size]
        c, y = own.lift(z)
        np.testing.assert_allclose(own.place(c, y).z, z, atol=1e-12)


FRAME = np.array([[1.3, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.2, 0.3, 2.0]])
SCALE = 4.0


@pytest.mark.parametrize("element", Unstructured(3).elements())
def test_an_element_of_a_triangular_factor_is_what_its_coordinate_says(element: tuple[int, int]) -> None:
    """Whatever order the effects stand in: the covariance itself does not change."""
    structure = Unstructured(3)
    theta, s = np.array([0.9, 0.3, -0.2, 0.7, 0.4, 0.5]), -0.3
    T = FRAME @ structure.factor(theta)
    G = SCALE**2 * np.exp(2 * s) * T @ T.T
    held = held_element(structure, FRAME, 0, element, SCALE)
    assert held.into is not None
    assert held.frame is not None
    c, y = held.map.lift(np.append(structure.transformed(theta, held.into), s))
    i, j = element
    sd = np.sqrt(np.diagonal(G))
    expected = sd[i] if i == j else G[i, j] / (sd[i] * sd[j])
    assert held.value(c) == pytest.approx(expected, rel=1e-12)
    z = held.map.place(c, y).z
    again = FRAME @ held.frame @ structure.factor(z[:-1])
    np.testing.assert_allclose(SCALE**2 * np.exp(2 * z[-1]) * again @ again.T, G, atol=1e-10)


@pytest.mark.parametrize("structure", [Independent(2), Identity(2), Exchangeable(2), Exchangeable(4)])
def test_an_element_of_a_restricted_covariance_is_what_its_coordinate_says(structure) -> None:
    theta, s = np.array([0.9, 0.4])[: structure.num_params], -0.3
    unit = 1.7
    T = unit * structure.factor(theta)
    G = SCALE**2 * np.exp(2 * s) * T @ T.T
    for i, j in structure.elements():
        held = held_element(structure, unit * np.eye(structure.q), 0, (i, j), SCALE)
        c, _ = held.map.lift(np.append(theta, s))
        expected = np.sqrt(G[i, i]) if i == j else G[i, j] / np.sqrt(G[i, i] * G[j, j])
        assert held.value(c) == pytest.approx(expected, rel=1e-12)
        assert held.value(held.low) == pytest.approx(held.ends[0], abs=1e-12)


def test_a_kernels_parameter_lies_within_its_support() -> None:
    structure = exponential(2.0).at([0.0, 1.0, 3.0])
    held = held_natural(structure, 0, 0)
    assert held.value(np.log(5.0)) == pytest.approx(5.0)
    assert held.ends == (0.0, np.inf)
    assert held.low < np.log(2.0) < held.high


def test_a_structure_that_is_not_known_is_refused_by_name() -> None:
    class Toeplitz:
        name = "toeplitz"

    with pytest.raises(DesignError, match="'toeplitz' are not available"):
        held_element(Toeplitz(), np.eye(2), 0, (0, 0), 1.0)  # type: ignore[arg-type]


# The criterion


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_the_criterion_is_the_deviance_of_the_fit_with_its_derivatives(method: str) -> None:
    fit = sleepstudy(method=method)
    criterion = Criterion(fit.state, fit.estimates)
    lane, z = everything(criterion), criterion.estimate
    found = criterion([lane], z[None], np.zeros(1))
    assert found.value[0] == pytest.approx(fit.deviance, rel=1e-12)
    points = z + np.array([0.2, -0.1, 0.15, 0.1])
    steps = np.concatenate([STEP * np.eye(4), -STEP * np.eye(4)])
    around = criterion([lane] * 9, points + np.concatenate([np.zeros((1, 4)), steps]), np.zeros(9))
    gradient = (around.value[1:5] - around.value[5:]) / (2 * STEP)
    hessian = (around.gradient[1:5] - around.gradient[5:]) / (2 * STEP)
    np.testing.assert_allclose(around.gradient[0], gradient, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(around.hessian[0], hessian, rtol=1e-6, atol=1e-5)


def dense(fit: jm.MixedResults, column: int | None = None, value: float = 0.0) -> DenseModel:
    """The model of a fit as a density; with a coefficient held, without its column."""
    frame = fit.frame
    y, X = frame.y, frame.X
    if column is not None:
        y, X = y - value * X[:, column], np.delete(X, column, axis=1)
    blocks = []
    for term in fit.estimates.terms:
        group = frame.groups[term.frame_index]
        blocks.append(Block(np.asarray(group.Z), np.asarray(group.codes)))
    return DenseModel(y, X, tuple(blocks), frame.weights)


def covariances(fit: jm.MixedResults, row: pd.Series) -> tuple[np.ndarray, ...]:
    """Covariances of the effects from the standard deviations and correlations of a table's row."""
    found = []
    for term in fit.estimates.terms:
        names = term.names
        sd = np.array([row[f"sd({name} | {term.group})"] for name in names])
        corr = np.eye(len(names))
        for i, j in term.covariance.elements():
            if i != j:
                corr[i, j] = corr[j, i] = np.nan_to_num(row[f"corr({names[j]}, {names[i]} | {term.group})"])
        found.append(sd[:, None] * corr * sd)
    return tuple(found)


def unbalanced(groups: int = 14, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rng.integers(2, 7, groups))
    x, h = rng.normal(size=len(g)), rng.integers(0, 4, len(g))
    effects = rng.normal(size=(groups, 2)) * [1.5, 0.8]
    y = 1 + 0.5 * x + effects[g, 0] + effects[g, 1] * x + rng.normal(size=4)[h] + rng.normal(size=len(g))
    w = rng.uniform(0.5, 2.0, len(g))
    return pd.DataFrame({"y": y, "x": x, "w": w, "g": g.astype(str), "h": h.astype(str)})


MODELS = {
    "correlated effects": "y ~ x + (x | g)",
    "crossed": "y ~ x + (x | g) + (1 | h)",
    "no correlation": "y ~ x + (x || g)",
}


class Constrained:
    """The dense deviance around a row of a profile's table, in (theta, log sigma)."""

    def __init__(self, fit: jm.MixedResults, name: str, row: pd.Series) -> None:
        self.fit, self.name, self.row = fit, name, row
        self.column = list(fit.frame.x_names).index(name) if name in fit.frame.x_names else None
        self.model = dense(fit, self.column, row["value"])
        sigma = row["sd(Residual)"]
        parts = [
            term.covariance.from_covariance(cov / sigma**2)
            for term, cov in zip(fit.estimates.terms, covariances(fit, row), strict=True)
        ]
        self.theta = np.append(np.concatenate(parts), np.log(sigma))

    def natural(self, theta: np.ndarray) -> dict[str, float]:
        sigma, values, start = np.exp(theta[-1]), {}, 0
        for term in self.fit.estimates.terms:
            stop = start + term.covariance.num_params
            T = sigma * term.covariance.factor(theta[start:stop])
            G, start = T @ T.T, stop
            for i, j in term.covariance.elements():
                one, other = term.names[j], term.names[i]
                if i == j:
                    values[f"sd({one} | {term.group})"] = float(np.sqrt(G[i, i]))
                else:
                    corr = G[i, j] / np.sqrt(G[i, i] * G[j, j])
                    values[f"corr({one}, {other} | {term.group})"] = float(corr)
        return {**values, "sd(Residual)": float(sigma)}

    def deviance(self, theta: np.ndarray, beta: np.ndarray | None = None) -> float:
        """Minus twice the log-likelihood, maximised over the coefficients unless they are given."""
        sigma, covs, start = float(np.exp(theta[-1])), [], 0
        for term in self.fit.estimates.terms:
            T = sigma * term.covariance.factor(theta[start : start + term.covariance.num_params])
            covs.append(T @ T.T)
            start += term.covariance.num_params
        return -2 * self.model.loglik(tuple(covs), sigma, self.fit.method, beta)

    def along_the_constraint(self) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and Hessian, by differences, of the deviance with the held parameter held."""
        size, step = len(self.theta), 1e-4
        free = np.eye(size)
        slope = np.zeros(size)
        if self.column is None:
            slope = np.array(
                [
                    self.natural(self.theta + d)[self.name] - self.natural(self.theta - d)[self.name]
                    for d in step * free
                ]
            )
            _, _, vectors = np.linalg.svd(slope[None])
            free = vectors[1:]

        def at(point: np.ndarray) -> float:
            """The deviance where a point of the tangent space is brought back to the constraint."""
            theta = self.theta + point @ free
            for _ in range(4 if self.column is None else 0):
                off = self.natural(theta)[self.name] - self.row["value"]
                theta = theta - off * slope * (2 * step) / (slope @ slope)
            return self.deviance(theta)

        n = len(free)
        moves = step * np.eye(n)
        gradient = np.array([at(d) - at(-d) for d in moves]) / (2 * step)
        hessian = np.array([[at(a + b) - at(a - b) - at(b - a) + at(-a - b) for b in moves] for a in moves])
        return gradient, hessian / (4 * step**2)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("correlated effects", "reml"),
        pytest.param("no correlation", "ml", marks=pytest.mark.slow),
        pytest.param("correlated effects", "ml", marks=pytest.mark.slow),
        pytest.param("crossed", "reml", marks=pytest.mark.slow),
    ],
)
def test_points_of_a_profile_are_constrained_minima_of_the_dense_deviance(model: str, method: str) -> None:
    """The deviance is that of the parameters beside it; with the parameter held, no move lowers it."""
    fit = quietly(MODELS[model], unbalanced(), method=method, weights="w")
    table = fit.profile().table
    spread = [name for name in table.columns if name.startswith("sd(")]
    related = [name for name in table.columns if name.startswith("corr(")]
    # Where a covariance is singular, natural parameters have no derivatives to differ by.
    regular = (table[spread] > 0.2).all(axis=1) & (table[related].abs() < 0.9).all(axis=1)
    for number, (name, own) in enumerate(table[regular].groupby("parameter")):
        assert len(own) > 4
        row = own.iloc[-(number % 2)]
        point = Constrained(fit, str(name), row)
        others = [other for other in fit.frame.x_names if other != name]
        beta = row[others].to_numpy(float) if method == "ml" else None
        assert row["deviance"] == pytest.approx(point.deviance(point.theta, beta), abs=1e-7)
        gradient, hessian = point.along_the_constraint()
        np.testing.assert_allclose(gradient, 0, atol=1e-4 * np.sqrt(np.abs(hessian).max()))
        assert np.linalg.eigvalsh(hessian)[0] > -1e-3


def test_the_lower_of_two_branches_is_taken() -> None:
    """Far from its estimate the coefficient's best correlation is not on the branch that leaves it."""
    rng = np.random.default_rng(0)
    g, x = np.repeat(np.arange(12), 5), rng.normal(size=60)
    rng.normal(size=60)
    b = rng.normal(size=(12, 3)) * [1, 0.5, 0.4]
    h, w = rng.integers(0, 4, 60), np.zeros(60)
    y = 1 + 0.5 * x + b[g, 0] + b[g, 1] * x + b[g, 2] * w + rng.normal(size=60) + 0.7 * rng.normal(size=4)[h]
    fit = quietly("y ~ x + (x | g)", pd.DataFrame({"y": y, "x": x, "g": g.astype(str)}))
    table = fit.profile("x").table
    for place in (0, 1, len(table) - 1):
        row = table.iloc[place]
        held = Constrained(fit, "x", row)
        best = min(
            minimize(held.deviance, start, method="Nelder-Mead", options={"fatol": 1e-8, "xatol": 1e-6}).fun
            for start in ([0.8, -0.4, 0.3, 0.3], [0.8, 0.4, 0.3, 0.3])
        )
        assert row["deviance"] < best + 1e-6


def test_a_search_leaves_a_stationary_point_that_is_no_minimum() -> None:
    """At theta = 0 every derivative along theta vanishes, and the deviance is far from its minimum."""
    fit = sleepstudy()
    criterion = Criterion(fit.state, fit.estimates)
    start = criterion.estimate
    start[:-1] = 0.0
    found = solve(criterion, [everything(criterion)], np.zeros(1), start[None])
    assert found.deviance[0] == pytest.approx(fit.deviance, abs=1e-8)


def test_each_profile_begins_at_the_estimate() -> None:
    fit = sleepstudy()
    criterion = Criterion(fit.state, fit.estimates)
    for target in targets_of(fit, criterion):
        assert target.track is not None
        assert target.value(target.track.c) == pytest.approx(target.estimate, rel=1e-12)

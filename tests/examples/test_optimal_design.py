"""The designs found by gradient ascent against closed forms, dense covariances and another optimiser."""

from __future__ import annotations

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from jaxmixed.precision import double_precision
from tests.support.examples import load

example = load("optimal_design")

pytestmark = pytest.mark.slow

FOUND = 1e-4
"""Relative, of an optimum after 600 steps."""


@pytest.fixture(scope="module")
def designs() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    return example.main(steps=600)


def test_the_information_is_that_of_the_students_one_by_one() -> None:
    tau, sigma = np.array([0.4, 0.7]), np.array([1.0, 1.5])
    arm, students, schools = np.array([0, 0, 1]), np.array([3, 5, 4]), np.array([2, 1, 3])
    X = np.column_stack([np.ones(3), arm, [0.5, -1.0, 0.3]])
    with double_precision():
        found = jax.jit(example.information)(X, arm, students * 1.0, schools * 1.0, tau, sigma)
    precision = np.zeros((3, 3))
    for kind in np.repeat(np.arange(3), schools):
        n, a = students[kind], arm[kind]
        V = tau[a] ** 2 * np.ones((n, n)) + sigma[a] ** 2 * np.eye(n)
        rows = np.tile(X[kind], (n, 1))
        precision += rows.T @ np.linalg.solve(V, rows)
    assert float(found) == pytest.approx(1 / np.linalg.inv(precision)[1, 1], rel=1e-12)


def test_the_best_trials_are_those_of_the_closed_forms(designs: tuple) -> None:
    table = designs[0]
    for name in ("students", "schools"):
        np.testing.assert_allclose(table[name], table[f"{name}, closed form"], rtol=FOUND)
    assert (table["efficiency of equal shares"] < 0.99).all()


def test_equal_arms_have_the_size_of_the_textbook(designs: tuple) -> None:
    icc, ratio = 0.05, 50
    found = designs[0].loc[f"icc {icc:g}, a school costs {ratio:g} students"]
    np.testing.assert_allclose(found["students"], np.sqrt(ratio * (1 - icc) / icc), rtol=FOUND)
    np.testing.assert_allclose(
        found["schools"].sum() * (ratio + found["students"]), example.BUDGET, rtol=FOUND
    )


def test_four_times_the_costs_halve_the_schools_of_an_arm(designs: tuple) -> None:
    schools = designs[0].loc["treatment is costly", "schools"]
    assert schools["control"] / schools["treated"] == pytest.approx(2, rel=FOUND)


def test_students_of_given_schools_have_equal_margins(designs: tuple) -> None:
    table = designs[1]
    np.testing.assert_allclose(table["students, plain"], table["closed form, plain"], rtol=FOUND)


@pytest.mark.parametrize(("name", "columns"), [("plain", 2), ("adjusted", 3)])
def test_students_of_given_schools_by_another_optimiser(designs: tuple, name: str, columns: int) -> None:
    _, table, efficiency = designs
    schools = example.SCHOOLS
    X = np.column_stack([np.ones(10), schools.arm, schools.covariate])[:, :columns]

    def variance(students: np.ndarray) -> float:
        # Only covariates of the schools: all is in the schools' means.
        of_means = example.TAU**2 + example.SIGMA**2 / students
        return float(np.linalg.inv(X.T @ (X / of_means[:, None]))[1, 1])

    equal = np.full(10, example.STUDENTS_BUDGET / schools.cost.sum())
    best = minimize(
        lambda students: 100 * variance(students),
        equal,
        method="SLSQP",
        bounds=[(0.1, None)] * 10,
        constraints={"type": "eq", "fun": lambda students: schools.cost @ students - example.STUDENTS_BUDGET},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    found = table[f"students, {name}"].to_numpy()
    assert variance(found) == pytest.approx(variance(best.x), rel=1e-6)
    np.testing.assert_allclose(found, best.x, rtol=0.01)
    assert efficiency[name] == pytest.approx(variance(best.x) / variance(equal), rel=1e-6)

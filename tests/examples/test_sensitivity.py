"""Predicted changes against closed forms, finite differences of whole refits, and true deletion."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.precision import double_precision
from tests.support.closeness import assert_close_to_the_largest
from tests.support.examples import load

example = load("sensitivity")

pytestmark = pytest.mark.slow

STEP = 1e-3
"""Of the frequencies: central differences then err by some 1e-6 of the derivatives, by truncation."""

REFIT = 1e-6
"""Relative: two searches agree in a flat maximum."""

SUBJECTS, DAYS = 18, 10


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    return example.main(top=1)


@pytest.fixture(scope="module")
def model() -> object:
    return jm.arrays("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))


@pytest.fixture(scope="module")
def changes(model: object) -> tuple[np.ndarray, tuple]:
    with double_precision():
        return example.changes(model)


def refitted(data: pd.DataFrame) -> np.ndarray:
    """The estimates in the order of the example, by the front end."""
    data = data.assign(Subject=data["Subject"].cat.remove_unused_categories())
    fit = jm.mixed("Reaction ~ Days + (Days | Subject)", data)
    G = np.asarray(fit.random_terms[0].cov)
    sd = np.sqrt(np.diagonal(G))
    return np.array([*fit.params, *sd, G[1, 0] / sd.prod(), fit.sigma, fit.llf])


def test_a_row_and_a_subject_truly_left_out(changes: tuple, sleepstudy: pd.DataFrame) -> None:
    estimate, found = changes
    names = len(example.NAMES)
    np.testing.assert_allclose(estimate[:names], refitted(sleepstudy), rtol=REFIT)
    without_row = refitted(sleepstudy.drop(index=57))
    np.testing.assert_allclose((estimate + found.true[57])[:names], without_row, rtol=REFIT)
    subject = sleepstudy["Subject"].cat.categories[4]
    without_subject = refitted(sleepstudy[sleepstudy["Subject"] != subject])
    np.testing.assert_allclose((estimate + found.true[180 + 4])[:names], without_subject, rtol=REFIT)


def test_in_a_balanced_design_fixed_effects_are_means_of_each_subjects_own(
    changes: tuple, sleepstudy: pd.DataFrame
) -> None:
    _, found = changes
    y = sleepstudy["Reaction"].to_numpy().reshape(SUBJECTS, DAYS)
    own = np.polyfit(np.arange(DAYS), y.T, 1)[::-1].T
    from_mean = own.mean(axis=0) - own
    of_subjects = np.s_[SUBJECTS * DAYS :, :2]
    m = SUBJECTS
    assert_close_to_the_largest(found.linear[of_subjects], from_mean / m, 1e-8)
    assert_close_to_the_largest(found.quadratic[of_subjects], from_mean / m * (1 + 1 / m), 1e-8)
    assert_close_to_the_largest(found.true[of_subjects], from_mean / (m - 1), 1e-8)


def test_both_derivatives_are_those_of_refits_at_nearby_frequencies(model: object, changes: tuple) -> None:
    estimate, found = changes
    with double_precision():
        unit = jnp.eye(SUBJECTS * (DAYS + 1))
        up, down = (np.asarray(example.expand(model, 1 + step * unit, unit).value) for step in (STEP, -STEP))
    first = (up - down) / (2 * STEP)
    for k in range(len(estimate)):
        assert_close_to_the_largest(-found.linear[:, k], first[:, k], 1e-5)
        second = (up + down - 2 * estimate)[:, k] / STEP**2
        assert_close_to_the_largest(2 * (found.quadratic - found.linear)[:, k], second, 1e-3)


def test_deletions_are_predicted_and_better_with_the_second_term(tables: tuple) -> None:
    table = tables[1]
    assert list(table.loc["row"].index) == [*example.NAMES, "BLUPs"]
    assert (table["r, linear"] > 0.95).all()
    assert (table["r, quadratic"] > table["r, linear"] - 1e-12).all()
    assert (table["error, quadratic"] < 0.5 * table["error, linear"]).all()
    balanced = table.loc["subject"].loc[["(Intercept)", "Days"]]
    np.testing.assert_allclose(balanced["error, linear"], 1 / SUBJECTS, rtol=1e-6)
    np.testing.assert_allclose(balanced["error, quadratic"], 1 / SUBJECTS**2, rtol=1e-4)


def test_the_influential_cases_are_known_ones(tables: tuple) -> None:
    # The two gross outliers of these data, and the subject they belong to.
    deleted = tables[0]["deleted"]
    assert deleted["row", "sigma"] == "332, day 6"
    assert deleted["row", "sd Days"] == "308, day 7"
    assert deleted["subject", "sigma"] == "332"

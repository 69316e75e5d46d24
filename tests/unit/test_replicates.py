"""Responses simulated from fits: what is drawn, what is kept, labels, seeds and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.draws import RESIDUAL_STREAM, Draws, simulate_responses
from jaxmixed.replicates import response_source
from tests.support.dense import Block, DenseModel
from tests.support.fits import aliased, fit, quietly, sleepstudy, two_terms

SIGMAS = 5.0
"""Standard errors that a Monte Carlo mean may be away from what it estimates."""


def dense_covariance(found: jm.MixedResults) -> np.ndarray:
    """Covariance matrix of the response at the estimates, from the definition."""
    frame, estimates = found.frame, found.estimates
    groups = [frame.groups[term.frame_index] for term in estimates.terms]
    blocks = tuple(Block(group.Z, group.codes) for group in groups)
    model = DenseModel(frame.y, frame.X, blocks, frame.weights, frame.offset)
    return model.covariance(tuple(term.cov for term in estimates.terms), estimates.sigma)


def check_moments(values: np.ndarray, mean: np.ndarray, V: np.ndarray) -> None:
    """Means and covariances over the columns are those given, within Monte Carlo error."""
    count, variances = values.shape[1], np.diagonal(V)
    assert (np.abs(values.mean(axis=1) - mean) / np.sqrt(variances / count)).max() < SIGMAS
    centred = values - mean[:, None]
    errors = np.sqrt((np.outer(variances, variances) + V**2) / count)
    assert (np.abs(centred @ centred.T / count - V) / errors).max() < SIGMAS


# What is drawn


def test_new_random_effects_give_the_marginal_distribution_of_the_fit() -> None:
    found = sleepstudy()
    values = found.simulate(5000, seed=1).to_numpy()
    check_moments(values, found.predict(random=False).to_numpy(), dense_covariance(found))


def test_the_random_effects_of_all_terms_are_drawn() -> None:
    found = two_terms()
    values = found.simulate(4000, seed=3).to_numpy()
    check_moments(values, found.predict(random=False).to_numpy(), dense_covariance(found))


@pytest.mark.slow
def test_the_random_effects_of_nested_groups_are_drawn() -> None:
    data = jm.datasets.load("egsingle")
    data = data[data["schoolid"].isin(data["schoolid"].unique()[:4])].iloc[:200]
    found = quietly("math ~ year + (1 | schoolid/childid)", data, method="ml")
    values = found.simulate(4000, seed=3).to_numpy()
    check_moments(values, found.predict(random=False).to_numpy(), dense_covariance(found))
    pd.testing.assert_frame_equal(
        jm.simulate(found.formula, data, found, n=2, seed=3), found.simulate(2, seed=3)
    )


def test_draws_do_not_depend_on_the_order_of_the_estimates() -> None:
    found = two_terms()
    turned = replace(found.estimates, terms=found.estimates.terms[::-1])
    sources = [response_source(found.frame, estimates) for estimates in (found.estimates, turned)]
    np.testing.assert_array_equal(*[simulate_responses(source, 1, 0, 2) for source in sources])


def test_weights_and_offset_enter_the_residuals_and_the_mean() -> None:
    data = jm.datasets.load("sleepstudy").iloc[:100].assign(w=np.linspace(0.1, 4, 100))
    data["shift"] = np.linspace(-300, 300, 100)
    found = quietly("Reaction ~ Days + (1 | Subject)", data, weights="w", offset="shift")
    values = found.simulate(5000, seed=2).to_numpy()
    check_moments(values, found.predict(random=False).to_numpy(), dense_covariance(found))
    kept = found.simulate(5000, seed=2, random="fitted").to_numpy()
    check_moments(kept, found.fittedvalues.to_numpy(), np.diag(found.sigma**2 / data["w"].to_numpy()))


def test_fitted_random_effects_are_kept_and_residuals_are_those_of_the_seed() -> None:
    found = sleepstudy()
    drawn = found.simulate(7, seed=4, random="fitted")
    standard = drawn.sub(found.fittedvalues, axis=0) / found.sigma
    np.testing.assert_allclose(standard, Draws(4, RESIDUAL_STREAM).normal(0, 7, 180), atol=1e-12)


def test_a_linear_model_draws_residuals_alone() -> None:
    found = quietly("Reaction ~ Days", jm.datasets.load("sleepstudy"))
    np.testing.assert_array_equal(found.simulate(3, seed=1), found.simulate(3, seed=1, random="fitted"))
    check_moments(
        found.simulate(5000, seed=1).to_numpy(), found.fittedvalues.to_numpy(), found.sigma**2 * np.eye(180)
    )


def test_a_singular_fit_draws_from_its_singular_distribution() -> None:
    found = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)")
    assert found.is_singular
    np.testing.assert_allclose(
        found.simulate(3, seed=1), found.simulate(3, seed=1, random="fitted"), rtol=1e-12
    )
    covs = [term.factor @ term.factor.T for term in response_source(found.frame, found.estimates).terms]
    np.testing.assert_array_equal(covs, [[[0.0]]])


def test_dropped_columns_count_as_zero_and_dropped_rows_are_left_out() -> None:
    found = aliased()
    drawn = found.simulate(2, seed=1)
    assert drawn.index.equals(found.fittedvalues.index)
    assert len(drawn) == 178
    assert np.isfinite(drawn.to_numpy()).all()


# Seeds and labels


def test_response_i_of_a_seed_is_the_same_whatever_their_number() -> None:
    found = sleepstudy()
    many = found.simulate(300, seed=9)
    assert list(many)[:2] == ["sim_1", "sim_2"]
    assert list(many)[-1] == "sim_300"
    np.testing.assert_array_equal(found.simulate(4, seed=9), many.iloc[:, :4])
    assert not np.allclose(found.simulate(1, seed=10), many.iloc[:, :1])


def test_the_seed_is_told_and_repeats_the_draws() -> None:
    found = sleepstudy()
    assert found.simulate(1, seed=np.int64(5)).attrs == {"seed": 5}
    fresh, other = found.simulate(), found.simulate()
    assert fresh.shape == (180, 1)
    assert fresh.attrs["seed"] != other.attrs["seed"]
    np.testing.assert_array_equal(found.simulate(seed=fresh.attrs["seed"]), fresh)


def test_numpys_global_random_state_is_neither_used_nor_changed() -> None:
    found = sleepstudy()
    before = np.random.get_state()
    found.simulate(3, seed=1)
    found.simulate(3)
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_the_result_is_the_callers_to_change() -> None:
    found = sleepstudy()
    drawn = found.simulate(2, seed=1)
    drawn.iloc[:, :] = 0.0
    assert found.simulate(2, seed=1).to_numpy().min() > 50
    assert found.simulate(2, seed=1, random="fitted").to_numpy().min() > 50


# Refusals


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None, "2"], ids=repr)
def test_a_number_of_responses_that_is_none_is_refused(n: object) -> None:
    with pytest.raises(jm.DataError, match="number of simulated responses, a positive integer"):
        sleepstudy().simulate(n, seed=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("random", [True, False, None, "old", "Subject", ["new"]], ids=repr)
def test_an_unknown_treatment_of_random_effects_is_refused(random: object) -> None:
    with pytest.raises(jm.DataError, match=r"draws 'new' random effects, or keeps .* 'fitted' groups"):
        sleepstudy().simulate(1, seed=1, random=random)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True], ids=repr)
def test_a_seed_that_is_none_is_refused(seed: object) -> None:
    with pytest.raises(jm.DataError, match="seed must be a non-negative integer"):
        sleepstudy().simulate(1, seed=seed)  # type: ignore[arg-type]


def test_more_responses_than_memory_holds_are_refused_at_once() -> None:
    with pytest.raises(jm.DataError, match=r"n=100,000,000,000 .* 180 rows need 154,000\.0 GB.* memory \("):
        sleepstudy().simulate(10**11, seed=1)

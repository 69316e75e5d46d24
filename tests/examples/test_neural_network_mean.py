"""The network with random effects wins where, and only where, random effects and a nonlinear mean are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.examples import load

pytest.importorskip("equinox")
example = load("neural_network_mean")

pytestmark = pytest.mark.slow

SIZES = {"batch": 16, "steps": 600, "width": 16, "seed": 0}
LINEAR, NETWORK, BOTH, TRUTH = "linear mixed model", "network", "network + random effects", "truth"

SINGLE = 1e-3
"""In float32, of a response of unit size."""


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    return example.main(num_schools=80, **SIZES)


@pytest.fixture(scope="module")
def simulated(tables: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    return tables[0]


def test_for_known_schools_it_comes_close_to_the_truth_and_the_others_do_not(simulated: pd.DataFrame) -> None:
    error, density = simulated["RMSE, known"], simulated["log density, known"]
    assert error[BOTH] < 1.1 * error[TRUTH]
    assert error[NETWORK] > 1.3 * error[TRUTH]
    assert error[LINEAR] > 1.3 * error[TRUTH]
    assert density[BOTH] > max(density[NETWORK], density[LINEAR]) + 0.2


def test_of_one_network_the_effects_explain_what_the_true_ones_do(simulated: pd.DataFrame) -> None:
    data, mean = example.simulate(80, SIZES["seed"])
    _, output = example.networks(data, **SIZES)[BOTH]

    def explained(mean: np.ndarray, error: float) -> float:
        return np.mean((data.y - mean)[data.role == example.KNOWN] ** 2) - error**2

    error = simulated["RMSE, known"]
    assert explained(output, error[BOTH]) == pytest.approx(explained(mean, error[TRUTH]), rel=0.1)


def test_for_new_schools_a_network_is_needed_and_effects_change_little(simulated: pd.DataFrame) -> None:
    error = simulated["RMSE, new"]
    assert error[BOTH] == pytest.approx(error[NETWORK], rel=0.05)
    assert max(error[BOTH], error[NETWORK]) < 0.9 * error[LINEAR]


def test_the_covariances_that_made_the_data_are_found(simulated: pd.DataFrame) -> None:
    # 64 schools: a standard error of 9% or so of a standard deviation.
    for name in ("sd 0", "sd 1"):
        assert simulated.loc[BOTH, name] == pytest.approx(simulated.loc[TRUTH, name], rel=0.25)
    assert simulated.loc[BOTH, "sigma"] == pytest.approx(example.SIGMA, rel=0.08)
    assert (simulated.loc[NETWORK, ["sd 0", "sd 1"]] == 0).all()


def test_where_schools_do_not_differ_random_effects_gain_nothing() -> None:
    data, _ = example.simulate(80, SIZES["seed"], spread=0.0)
    found = example.table(example.networks(data, **SIZES), data)
    assert found.loc[BOTH, "RMSE, known"] == pytest.approx(found.loc[NETWORK, "RMSE, known"], rel=0.02)
    assert found.loc[BOTH, "sd 0"] < 0.3


def test_on_real_data_with_a_nearly_linear_mean_only_the_effects_matter(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    error = tables[1]["RMSE, known"]
    assert error[BOTH] < error[NETWORK]
    assert error[BOTH] == pytest.approx(error[LINEAR], rel=0.01)


def test_scored_as_a_head_the_linear_mixed_model_predicts_what_its_own_results_do() -> None:
    data, _ = example.simulate(80, SIZES["seed"])
    head, mean = example.linear_mixed_model(data)
    found = example.predict(head, mean, data, 80)
    frame = pd.DataFrame(
        {"y": data.y, "x0": data.inputs[:, 0], "x1": data.inputs[:, 1], "school": data.school}
    )
    fit = jm.mixed("y ~ x0 * x1 + (1 + x0 | school)", frame[data.role == example.TRAIN])
    expected = fit.predict(frame, allow_new_levels=True)
    np.testing.assert_allclose(found.mean, expected, atol=SINGLE)
    new = data.role == example.NEW
    G = fit.random_terms[0].cov.to_numpy()
    variance = np.einsum("na,ab,nb->n", data.Z, G, data.Z) + fit.sigma**2
    np.testing.assert_allclose(np.asarray(found.variance)[new], variance[new], rtol=SINGLE)
    known = ~new
    assert (np.asarray(found.variance)[known] < variance[known]).all()

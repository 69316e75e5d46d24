"""The verdict on convergence: no false alarm on well-posed fits, no miss on fits that were stopped early."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.fits import quietly
from tests.support.simulated import students

INTERCEPTS, SLOPES, NESTED = "y ~ x + (1 | g)", "y ~ x + (x | g)", "y ~ x + (1 | h/g)"
MODELS = (INTERCEPTS, SLOPES, NESTED, "y ~ x + (x || g)")


def simulate(seed: int) -> pd.DataFrame:
    """Data of one shape with parameters, units and origins drawn at random."""
    rng = np.random.default_rng([2024, seed])
    data = students(seed, groups=32, size=8, between=rng.uniform(0.5, 2), slope=rng.uniform(0.3, 1))
    data["h"] = data["g"] // 4
    data["y"] += rng.uniform(0.5, 2) * rng.normal(size=8)[data["h"]]
    data["y"] = 10 ** rng.uniform(-3, 3) * (data["y"] + rng.uniform(-50, 50))
    data["x"] = 10 ** rng.uniform(-2, 2) * (data["x"] + rng.uniform(-3, 3))
    return data


def alarms(seeds: range) -> list[tuple[int, str, str]]:
    """Fits that did not converge or that warned of anything but singularity."""
    found = []
    for seed in seeds:
        formula, method = MODELS[seed % len(MODELS)], ("ml", "reml")[seed // len(MODELS) % 2]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = jm.mixed(formula, simulate(seed), method=method)
        others = [str(item.message) for item in caught if item.category is not jm.SingularFitWarning]
        if others or not fit.converged:
            found.append((seed, formula, "; ".join(others)))
    return found


def misses(seeds: range) -> tuple[list[tuple[int, str, int, float]], int]:
    """Fits stopped short of the optimum that claim convergence, and how many were stopped short."""
    found, stopped = [], 0
    for seed in seeds:
        formula, limit = MODELS[seed % len(MODELS)], 1 + seed // len(MODELS) % 3
        data = simulate(seed)
        full, early = quietly(formula, data), quietly(formula, data, max_iterations=limit)
        assert full.converged
        assert early.llf <= full.llf + 1e-7, "the full fit was not at the optimum"
        if early.llf < full.llf - 1e-7:
            stopped += 1
            if early.converged:
                found.append((seed, formula, limit, full.llf - early.llf))
    return found, stopped


def test_no_false_alarm_in_thirty_fits():
    assert alarms(range(30)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_false_alarm_in_a_thousand_fits():
    assert alarms(range(1000)) == []


def test_no_miss_in_thirty_fits_stopped_early():
    found, stopped = misses(range(30))
    assert found == []
    assert stopped >= 15


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_miss_in_a_thousand_fits_stopped_early():
    found, stopped = misses(range(1000))
    assert found == []
    assert stopped >= 500


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_fit_stopped_early_warns(limit):
    with pytest.warns(jm.ConvergenceWarning, match="not converged"):
        jm.mixed(SLOPES, simulate(1), max_iterations=limit)

"""Many responses of one design: each as fitted alone, and a reason where there is no fit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed import lanes, refits
from jaxmixed.many_estimates import (
    CONSTANT,
    MAGNITUDE,
    MISSING,
    OK,
    PERFECT,
    REASONS,
    ManyEstimates,
    arrays_of,
    concatenate,
)
from tests.support.fits import quietly
from tests.support.refitting import DESIGNS, fitted, refitter, responses

SAME = 1e-8
"""Of a log-likelihood: what the contract asks for; both are good to some 1e-10."""

MODELS = 20
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("continuous", "weighted", "nested", "crossed", "machines")
]


def single(name: str, y: np.ndarray, method: str = "reml") -> jm.MixedResults:
    """Fit of its own of one response."""
    formula, data, weights = DESIGNS[name]()
    return quietly(formula, data.assign(**{formula.split(" ~ ")[0]: y}), method=method, weights=weights)


def assert_equal(many: ManyEstimates, model: int, fit: jm.MixedResults) -> None:
    own = fit.estimates
    assert abs(many.llf[model] - fit.llf) <= SAME
    assert bool(many.converged[model]) == fit.converged
    assert bool(many.singular[model]) == fit.is_singular
    np.testing.assert_allclose(many.sigma[model], own.sigma, rtol=1e-6)
    np.testing.assert_allclose(many.beta[model], own.beta, rtol=1e-5, atol=1e-6 * own.sigma)
    np.testing.assert_allclose(many.cov_beta[model], own.cov_beta, rtol=1e-4, atol=1e-8 * own.sigma**2)
    np.testing.assert_allclose(many.theta[model], fit.theta, rtol=1e-4, atol=1e-5)
    assert many.df[model] == own.df
    assert many.rank[model] == own.rank
    assert many.nobs[model] == fit.nobs


def assert_same(found: ManyEstimates, other: ManyEstimates) -> None:
    for name, values in arrays_of(found).items():
        np.testing.assert_array_equal(values, arrays_of(other)[name], err_msg=name)


@pytest.mark.parametrize("method", ["reml", pytest.param("ml", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["sleepstudy", *SLOW])
def test_each_estimate_equals_that_of_a_single_fit(name: str, method: str) -> None:
    Y = responses(name, MODELS)
    many = refitter(name, method).fit(Y)  # type: ignore[arg-type]
    assert many.converged.all()
    assert many.singular.any()
    assert not many.singular.all()
    for model in range(0, MODELS, 1 if name == "sleepstudy" else 3):
        assert_equal(many, model, single(name, Y[:, model], method))


def test_what_cannot_be_fitted_has_a_reason_and_no_neighbour_notices() -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", MODELS).copy()
    clean = engine.fit(Y)
    days = fitted("sleepstudy").frame.X[:, 1]
    spoiled = {
        2: (np.where(days == 3, np.nan, Y[:, 2]), MISSING),
        5: (np.where(days == 4, np.inf, Y[:, 5]), MISSING),
        6: (np.full(len(Y), 7.0), CONSTANT),
        11: (1.0 + 3.0 * days, PERFECT),
        13: (1e300 * Y[:, 13], MAGNITUDE),
    }
    for model, (y, _) in spoiled.items():
        Y[:, model] = y
    before = Y.copy()
    found = engine.fit(Y)
    np.testing.assert_array_equal(Y, before)
    for model, (_, reason) in spoiled.items():
        assert found.reason[model] == reason
        assert REASONS[reason]
        assert np.isnan(found.deviance[model])
        assert np.isnan(found.beta[model]).all()
        assert not found.fitted[model]
    rest = np.setdiff1d(np.arange(MODELS), list(spoiled))
    assert (found.reason[rest] == OK).all()
    for name, values in arrays_of(found).items():
        np.testing.assert_allclose(
            values[rest], arrays_of(clean)[name][rest], rtol=1e-9, atol=1e-9, err_msg=name
        )


def test_when_nothing_can_be_fitted_there_are_only_reasons() -> None:
    found = refitter("sleepstudy").fit(np.full((180, 3), np.nan))
    assert (found.reason == MISSING).all()
    assert np.isnan(found.sigma).all()
    assert not found.converged.any()


def test_no_responses_are_no_models() -> None:
    found = refitter("sleepstudy").fit(np.zeros((180, 0)))
    assert len(found) == 0
    assert found.beta.shape == (0, 2)
    assert found.cov_beta.shape == (0, 2, 2)


def test_one_response_is_one_model() -> None:
    found = refitter("sleepstudy").fit(fitted("sleepstudy").frame.y[:, None])
    assert_equal(found, 0, fitted("sleepstudy"))


def test_shift_and_scale_of_each_response_change_nothing_else() -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", MODELS)
    scale = 10.0 ** np.linspace(-9, 9, MODELS).round()
    plain, scaled = engine.fit(Y), engine.fit(Y * scale)
    assert (scaled.reason == plain.reason).all()
    np.testing.assert_allclose(scaled.sigma, scale * plain.sigma, rtol=1e-7)
    np.testing.assert_allclose(scaled.theta, plain.theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scaled.llf, plain.llf - plain.df * np.log(scale), rtol=1e-9)


def test_a_start_may_be_shared_or_own() -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", MODELS)
    usual = engine.fit(Y)
    for starts in (np.array([1.0, 0.0, 1.0]), usual.standard + 0.1):
        found = engine.fit(Y, starts)
        np.testing.assert_allclose(found.llf, usual.llf, atol=SAME)


def test_parts_are_joined() -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", MODELS)
    parts = [engine.fit(Y[:, :7]), engine.fit(Y[:, 7:8]), engine.fit(Y[:, 8:])]
    joined, together = concatenate(parts), engine.fit(Y)
    assert len(joined) == MODELS
    assert joined.frames is parts[0].frames
    for name, values in arrays_of(joined).items():
        np.testing.assert_allclose(values, arrays_of(together)[name], rtol=1e-9, atol=1e-9, err_msg=name)
    assert concatenate(parts[:1]) is parts[0]


def test_a_design_too_large_for_lanes_is_fitted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", 6)
    side_by_side = engine.fit(Y)
    monkeypatch.setattr(refits, "lane_count", lambda models, stats: 1)
    assert isinstance(engine._runner(engine.rows.reduce(Y)[0]), refits.OneByOne)
    found = engine.fit(Y)
    np.testing.assert_allclose(found.llf, side_by_side.llf, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.theta, side_by_side.theta, rtol=1e-6, atol=1e-6)
    assert (found.evaluations > 0).all()


def test_nothing_is_printed_or_warned_and_every_number_is_in_float64() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = refitter("sleepstudy").fit(responses("sleepstudy", MODELS))
    floats = [values for values in arrays_of(found).values() if values.dtype.kind == "f"]
    assert {values.dtype for values in floats} == {np.dtype("float64")}


def test_more_models_than_lanes_and_fewer_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, Y = refitter("sleepstudy"), responses("sleepstudy", 40)
    monkeypatch.setattr(lanes, "LANES", (16,))
    refilled = engine.fit(Y)
    few = concatenate([engine.fit(Y[:, first : first + 10]) for first in range(0, 40, 10)])
    np.testing.assert_allclose(refilled.llf, few.llf, rtol=0, atol=1e-10)
    assert refilled.reason.tolist() == few.reason.tolist()


MANY = 20_000
RARE = 1e-4
"""Share of responses that may need more than the first start."""


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.0], ids=["effects as estimated", "no effects"])
def test_hardly_a_response_needs_another_start_and_none_is_lost(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = fitted("sleepstudy")
    simulated = fit.simulate(MANY, seed=5).to_numpy()
    noise = fit.sigma * np.random.default_rng(6).standard_normal(simulated.shape)
    Y = share * simulated + (1 - share) * noise
    first_runs: list[np.ndarray] = []
    run = lanes.LaneRunner.__call__

    def watched(self: lanes.LaneRunner, models: np.ndarray, starts: np.ndarray) -> lanes.Optimum:
        found = run(self, models, starts)
        if not first_runs:
            first_runs.append(found.is_stationary)
        return found

    monkeypatch.setattr(lanes.LaneRunner, "__call__", watched)
    many = refitter("sleepstudy", "reml").fit(Y)
    assert len(first_runs[0]) == MANY
    assert np.mean(~first_runs[0]) < RARE
    assert many.converged.all()
    assert many.singular.any()

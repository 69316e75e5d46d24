"""Many models side by side: each ends where it ends alone, whatever stands beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmixed import lanes, optim, schedule
from jaxmixed.lanes import LaneRunner, lane_count
from jaxmixed.optim import CONVERGED, ITERATION_LIMIT, MAX_ITERATIONS, NOT_FINITE
from jaxmixed.programs import Program
from jaxmixed.responses import Responses, pad_responses
from jaxmixed.schedule import Abandoned
from jaxmixed.search import Optimum, SingleRunner, search
from jaxmixed.starts import moment_starts
from jaxmixed.statistics import SufficientStatistics
from tests.support.refitting import refitter, responses, whole

SAME = 1e-9
"""Of a deviance: the lanes' program sums in another order than that of one data set."""

MODELS = 40
"""More than the lanes (16 in all tests), so that these are refilled."""

QUICK = ["intercepts", "sleepstudy"]
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("continuous", "weighted", "nested", "crossed", "machines")
]


def reduced(name: str, count: int = MODELS) -> tuple[Responses, np.ndarray, SufficientStatistics]:
    """Responses, padded, their starts, and the statistics of the design."""
    engine = refitter(name)
    own, reasons = engine.rows.reduce(responses(name, count))
    assert not reasons.any()
    return pad_responses(own), moment_starts(engine.rows.shared, own), engine.padded


def runner(name: str, own: Responses | None = None, limit: int = MAX_ITERATIONS) -> LaneRunner:
    found, _, shared = reduced(name)
    return LaneRunner(found if own is None else own, shared, shared, "reml", limit)


def assert_same(found: Optimum, other: Optimum) -> None:
    for name, values, expected in zip(Optimum._fields, found, other, strict=True):
        np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_each_lane_ends_where_it_ends_alone(name: str) -> None:
    own, starts, shared = reduced(name)
    found = search(runner(name), starts)
    zeros = (found.x == 0).any(axis=1)
    assert zeros.any()  # the responses without group effects
    assert not zeros.all()
    for model in range(MODELS):
        alone = search(SingleRunner(whole(shared, own, model), "reml", MAX_ITERATIONS), starts[[model]])
        assert alone.is_stationary[0]
        assert found.is_stationary[model]
        assert abs(found.value[model] - alone.value[0]) <= SAME
        np.testing.assert_array_equal(found.x[model] == 0, alone.x[0] == 0)
        np.testing.assert_allclose(found.x[model], alone.x[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.schur[model], alone.schur[0], rtol=1e-5, atol=1e-6)


def test_the_usual_code_generator_gives_the_same_answers() -> None:
    """Users run it for few parameters; the tests' programs come from one that compiles faster."""
    run, (_, starts, _) = runner("intercepts"), reduced("intercepts")
    assert run.program is lanes.FUSED_PROGRAM
    found = run(np.arange(MODELS), starts)
    run.program = Program(lanes._advance, options={})
    expected = run(np.arange(MODELS), starts)
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_allclose(found.value, expected.value, rtol=0, atol=SAME)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-5, atol=1e-6)


def test_the_neighbours_do_not_matter() -> None:
    run, (_, starts, _) = runner("sleepstudy"), reduced("sleepstudy")
    everyone = run(np.arange(MODELS), starts)
    order = np.random.default_rng(3).permutation(MODELS)
    assert_same(run(order, starts[order]), everyone.take(order))
    assert_same(run(np.array([17]), starts[[17]]), everyone.take(np.array([17])))


def test_a_model_may_be_run_from_several_starts() -> None:
    run, (_, starts, _) = runner("sleepstudy"), reduced("sleepstudy")
    twice = run(np.array([5, 5, 9]), np.stack([starts[5], 3 * starts[5], starts[9]]))
    assert (twice.status == CONVERGED).all()
    np.testing.assert_allclose(twice.value[0], twice.value[1], atol=SAME)
    assert abs(twice.value[2] - twice.value[0]) > 1


def test_what_is_not_a_number_spoils_only_its_own_lane() -> None:
    own, starts, _ = reduced("sleepstudy")
    good = runner("sleepstudy")(np.arange(MODELS), starts)
    bad = np.array([0, 3, 20, 39])

    def spoil(values: np.ndarray) -> np.ndarray:
        spoiled = values.copy()
        spoiled[..., bad] = np.nan
        return spoiled

    found = runner("sleepstudy", jax.tree.map(spoil, own))(np.arange(MODELS), starts)
    assert (found.status[bad] == NOT_FINITE).all()
    rest = np.setdiff1d(np.arange(MODELS), bad)
    assert_same(found.take(rest), good.take(rest))


def test_the_limit_holds_for_each_model() -> None:
    _, starts, _ = reduced("sleepstudy")
    run = runner("sleepstudy", limit=3)
    found = run(np.arange(MODELS), starts)
    assert (found.status == ITERATION_LIMIT).all()
    assert (found.evaluations == 3).all()


def test_evaluations_are_counted_per_model_over_all_runs() -> None:
    run, (_, starts, _) = runner("sleepstudy"), reduced("sleepstudy")
    first = run(np.arange(MODELS), starts)
    second = run(np.array([2, 2, 30]), starts[[2, 2, 30]])
    expected = first.evaluations.copy()
    expected[2] += second.evaluations[:2].sum()
    expected[30] += second.evaluations[2]
    assert run.evaluations.tolist() == expected.tolist()


def test_no_tasks_are_no_work() -> None:
    run = runner("sleepstudy")
    found = run(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    assert [len(values) for values in found] == [0] * len(found)
    assert found.hessian.shape == (0, 3, 3)


def test_answers_may_be_written_on() -> None:
    run, (_, starts, _) = runner("sleepstudy"), reduced("sleepstudy")
    before = starts.copy()
    for values in run(np.arange(20), starts[:20]):
        values[...] = 0
    np.testing.assert_array_equal(starts, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sleepstudy", "crossed"])
def test_whole_statistics_stand_side_by_side_as_responses_do(name: str) -> None:
    own, starts, shared = reduced(name)
    each = [whole(shared, own, model) for model in range(MODELS)]
    stacked = jax.tree.map(lambda *values: np.stack(values, axis=-1), *each)
    found = LaneRunner(stacked, None, each[0], "reml", MAX_ITERATIONS)(np.arange(MODELS), starts)
    expected = runner(name)(np.arange(MODELS), starts)
    np.testing.assert_allclose(found.value, expected.value, atol=SAME)
    np.testing.assert_allclose(found.x, expected.x, rtol=1e-5, atol=1e-6)


def test_lanes_are_left_when_the_work_is_no_longer_wanted() -> None:
    run, (_, starts, _) = runner("sleepstudy"), reduced("sleepstudy")
    stop = threading.Event()
    stop.set()
    token = schedule._STOPS.set((stop,))
    try:
        with pytest.raises(Abandoned):
            run(np.arange(MODELS), starts)
    finally:
        schedule._STOPS.reset(token)


# How many lanes


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, SufficientStatistics], int]:
    """Numbers of lanes that programs are made for."""
    monkeypatch.undo()
    return lane_count


def test_the_fewest_lanes_that_hold_the_models(usual: Callable[[int, SufficientStatistics], int]) -> None:
    small = refitter("intercepts").padded
    assert [usual(models, small) for models in (1, 16, 17, 64, 300, 10**6)] == [16, 16, 64, 64, 512, 512]


def test_fewer_lanes_for_larger_designs(usual: Callable[[int, SufficientStatistics], int]) -> None:
    stats = refitter("continuous").padded
    counts = []
    for factor in (1, 10, 100, 1000, 10_000):
        level = stats.levels[0]
        larger = replace(level, root=np.zeros((2, 2, 10 * factor)))
        counts.append(usual(10**6, replace(stats, levels=(larger,))))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 512
    assert set(counts[1:]) <= {1, 16, 64, 256}


def test_what_does_not_fit_side_by_side_is_done_one_by_one(
    usual: Callable[[int, SufficientStatistics], int],
) -> None:
    stats = refitter("continuous").padded
    huge = replace(stats.levels[0], root=np.zeros((2, 2, 10**6)))
    assert usual(1000, replace(stats, levels=(huge,))) == 1


def test_newtons_method_is_not_asked_of_too_many_parameters(
    usual: Callable[[int, SufficientStatistics], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = refitter("continuous").padded
    monkeypatch.setattr(optim, "NEWTON_LIMIT", 2)
    assert usual(1000, stats) == 1

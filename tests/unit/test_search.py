"""The search over many models: who is run again, from where, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxmixed import optim
from jaxmixed.covariance import STRUCTURES, Parameterised, covariance_structure
from jaxmixed.search import SNAP, Optimum, even_parameters, scaled_gradient, search

ONE = (covariance_structure("unstructured", 1),)


@dataclass
class Quartics:
    """Runs on ``height + x**4 / 4 + slope x**2 / 2``, whose stationary points are known.

    With a slope below zero the minima are at plus and minus its root, and zero is a maximum: the optimiser
    stays there if it begins there. `precision` is where it stops beside a minimum at zero.
    """

    slopes: np.ndarray
    precision: float = 1e-7
    fails: dict[int, int] = field(default_factory=dict)  # model: how many of its runs fail, from the first
    structures: tuple[Parameterised, ...] = ONE
    calls: list[tuple[list[int], list[float]]] = field(default_factory=list)

    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        self.calls.append((models.tolist(), starts[:, 0].tolist()))
        slope, x = self.slopes[models], starts[:, 0]
        minimum = np.sign(x) * np.where(slope < 0, np.sqrt(np.abs(slope)), self.precision)
        status = np.full(len(x), optim.CONVERGED)
        for row, model in enumerate(models):
            if self.fails.get(int(model), 0):
                self.fails[int(model)] -= 1
                minimum[row], status[row] = x[row], optim.NO_DESCENT
        return self.at(np.where(x == 0, 0.0, minimum), models, status)

    def at(self, x: np.ndarray, models: np.ndarray, status: np.ndarray) -> Optimum:
        slope = self.slopes[models]
        gradient = (x**3 + slope * x)[:, None]
        return Optimum(
            x=x[:, None].copy(),
            value=x**4 / 4 + slope * x**2 / 2,
            gradient=gradient,
            hessian=(3 * x**2 + slope)[:, None, None],
            schur=np.zeros((len(x), 2, 2)),
            log_rss_gradient=gradient.copy() + x[:, None],
            evaluations=np.ones(len(x), dtype=np.int64),
            status=status,
        )


def starts(*x: float) -> np.ndarray:
    return np.array(x)[:, None]


def test_what_converges_is_run_once() -> None:
    run = Quartics(np.array([-1.0, -4.0]))
    found = search(run, starts(0.5, 0.5))
    assert run.calls == [([0, 1], [0.5, 0.5])]
    assert found.x[:, 0].tolist() == [1.0, 2.0]


def test_only_what_failed_is_run_again_from_elsewhere() -> None:
    run = Quartics(np.array([-1.0, -4.0, -9.0]), fails={1: 2, 2: 1})
    found = search(run, starts(0.5, 0.5, 0.5))
    assert run.calls == [([0, 1, 2], [0.5] * 3), ([1, 2], [0.1, 0.1]), ([1], [2.0])]
    assert found.x[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_when_every_start_fails_the_lowest_point_is_kept() -> None:
    run = Quartics(np.array([-1.0, -4.0]), fails={1: 99})
    found = search(run, starts(0.5, 0.5))
    tried = [x for models, xs in run.calls for model, x in zip(models, xs, strict=True) if model == 1]
    assert found.x[0, 0] == 1.0
    assert found.value[1] == min(x**4 / 4 - 2 * x**2 for x in tried)
    assert found.status.tolist() == [optim.CONVERGED, optim.NO_DESCENT]


def test_any_number_is_better_than_none() -> None:
    class Undefined(Quartics):
        def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
            found = super().__call__(models, starts)
            if len(self.calls) == 1:
                found.value[1], found.status[1] = np.nan, optim.NOT_FINITE
                found.gradient[1] = found.hessian[1] = np.nan
            return found

    found = search(Undefined(np.array([-1.0, -4.0])), starts(0.5, 0.5))
    assert found.value.tolist() == [-0.25, -4.0]


def test_a_maximum_is_left_and_signs_are_made_positive() -> None:
    run = Quartics(np.array([-4.0, -1.0]))
    found = search(run, starts(0.0, -0.5))
    assert found.x[:, 0].tolist() == [2.0, 1.0]
    assert run.calls[1][0] == [0, 0]  # both ways, and nobody else
    assert sorted(np.sign(run.calls[1][1])) == [-1.0, 1.0]


def test_derivatives_change_sign_with_their_parameter() -> None:
    run = Quartics(np.array([-1.0]))
    assert (
        search(run, starts(-0.5)).log_rss_gradient.tolist()
        == search(run, starts(0.5)).log_rss_gradient.tolist()
    )


def test_a_minimum_at_zero_is_exactly_zero() -> None:
    run = Quartics(np.array([1.0, -1.0]))
    found = search(run, starts(0.5, 0.5))
    assert found.x[:, 0].tolist() == [0.0, 1.0]
    assert run.calls[1:] == [([0], [1.0]), ([0], [0.0])]  # from elsewhere, then compared with zero


class Wells(Quartics):
    """Beside the minimum at zero a lower one at 3, where runs end that start beyond 0.7."""

    def __call__(self, models: np.ndarray, starts: np.ndarray) -> Optimum:
        found = super().__call__(models, starts)
        far = starts[:, 0] > 0.7
        found.x[far], found.value[far], found.gradient[far] = 3.0, -5.0, 0.0
        return found


def test_a_minimum_at_zero_is_left_for_a_lower_one_elsewhere() -> None:
    run = Wells(np.array([1.0]))
    found = search(run, starts(0.5))
    assert (found.x[0, 0], found.value[0]) == (3.0, -5.0)
    assert run.calls == [([0], [0.5]), ([0], [1.0])]


def test_a_minimum_beside_zero_is_not() -> None:
    beside = (0.5 * SNAP) ** 2
    found = search(Quartics(np.array([-beside])), starts(0.5))
    np.testing.assert_allclose(found.x[0, 0], 0.5 * SNAP, rtol=1e-12)


def test_no_models_are_no_trouble() -> None:
    assert len(search(Quartics(np.zeros(0)), np.zeros((0, 1))).x) == 0


def test_models_side_by_side_are_found_as_each_alone() -> None:
    slopes = np.array([1.0, -1.0, 0.5, -9.0, -(1e-5**2)])
    begin = starts(0.3, 0.0, -2.0, -0.1, 0.7)
    together = search(Quartics(slopes), begin)
    for model in range(len(slopes)):
        alone = search(Quartics(slopes[[model]]), begin[[model]])
        for values, own in zip(together.take([model]), alone, strict=True):  # type: ignore[arg-type]
            np.testing.assert_array_equal(values, own)


# Answers of several models


def test_curvature_is_that_of_every_hessian(rng: np.random.Generator) -> None:
    halves = rng.normal(size=(50, 3, 3))
    hessian = halves + np.swapaxes(halves, 1, 2)
    hessian[::3] = halves[::3] @ np.swapaxes(halves[::3], 1, 2) + np.eye(3)
    hessian[7] = np.nan
    found = Quartics(np.zeros(50)).at(np.zeros(50), np.arange(50), np.zeros(50, dtype=int))
    found = found._replace(hessian=hessian, x=np.zeros((50, 3)))
    curvature, direction = found.smallest_curvature
    for model in range(50):
        if model == 7 or (values := np.linalg.eigvalsh(hessian[model]))[0] >= 0:
            assert curvature[model] == 0
        else:
            np.testing.assert_allclose(curvature[model], values[0])
            along = direction[model] @ hessian[model] @ direction[model]
            np.testing.assert_allclose(along, values[0])


def test_rows_are_taken_and_put_back() -> None:
    found = Quartics(np.array([-1.0, -4.0, -9.0]))(np.arange(3), starts(1.0, 1.0, 1.0))
    last, first = found.take([2]), found.take([0])  # type: ignore[arg-type]
    found.put(np.array([0]), last)
    assert found.x[:, 0].tolist() == [3.0, 2.0, 3.0]
    assert first.x[0, 0] == 1.0  # a copy


def test_a_gradient_is_measured_by_its_own_curvature() -> None:
    hessian = np.array([np.diag([4.0, 100.0]), np.zeros((2, 2))])
    gradient = np.array([[0.2, -0.5], [1e-6, 0.0]])
    np.testing.assert_allclose(scaled_gradient(gradient, hessian), [0.1, 1e-2])
    assert scaled_gradient(np.zeros((3, 0)), np.zeros((3, 0, 0))).tolist() == [0.0, 0.0, 0.0]


def test_where_the_gradient_is_zero_the_status_does_not_matter() -> None:
    status = np.array([optim.NO_DESCENT, optim.NO_DESCENT, optim.CONVERGED])
    found = Quartics(np.ones(3)).at(np.array([0.0, 0.5, 0.5]), np.arange(3), status)
    assert found.is_stationary.tolist() == [True, False, True]


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("q", [1, 2, 3])
def test_parameters_are_even_where_the_covariance_does_not_see_their_sign(
    name: str, q: int, rng: np.random.Generator
) -> None:
    structures = (covariance_structure(name, q), ONE[0])
    theta = rng.normal(size=sum(own.num_params for own in structures))

    def covariance(theta: np.ndarray) -> np.ndarray:
        own = structures[0]
        T = np.tensordot(theta[: own.num_params], own.jacobian(theta[: own.num_params]), axes=1)
        return np.append((T @ T.T).ravel(), theta[-1] ** 2)

    signs = 1 - 2 * np.eye(len(theta))
    seen = [np.allclose(covariance(flip * theta), covariance(theta), atol=1e-12) for flip in signs]
    assert even_parameters(structures).tolist() == seen

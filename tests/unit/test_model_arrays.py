"""The door from a formula and a data frame to arrays."""

import jax
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.precision import double_precision
from tests.support.fits import quietly


@pytest.fixture
def pupils(rng: np.random.Generator) -> pd.DataFrame:
    school, room = np.repeat(np.arange(6), 12), np.repeat(np.arange(18), 4)
    data = pd.DataFrame(
        {"x": rng.normal(size=72), "school": school, "room": room, "teacher": np.arange(72) % 7}
    )
    data["y"] = rng.normal(size=72) + rng.normal(size=6)[school]
    return data


def deviance(model: jm.Arrays, fit: jm.MixedResults) -> float:
    """At the fit's own parameters, in the order of the arrays."""
    theta = []
    for label, structures in zip(model.group_names, model.structures, strict=True):
        own = [term for term in fit.estimates.terms if term.group == label]
        assert [term.covariance for term in own] == list(structures)
        theta += [term.theta for term in own]
    with double_precision():
        return float(jm.likelihood.deviance(np.concatenate(theta), model.summarise()))


@pytest.mark.parametrize(
    ("formula", "names", "crossed"),
    [
        ("y ~ x + (1 | school/room)", ("school:room", "school"), False),
        ("y ~ x + (1 | school) + (0 + x | school)", ("school",), False),
        ("y ~ x + (1 | school) + (1 | teacher)", ("teacher", "school"), True),
    ],
    ids=["nested", "terms", "crossed"],
)
def test_their_deviance_is_that_of_the_fit(
    pupils: pd.DataFrame, formula: str, names: tuple[str, ...], crossed: bool
) -> None:
    model = jm.arrays(formula, pupils)
    assert set(model.group_names) == set(names)
    assert model.crossed is crossed
    fit = quietly(formula, pupils)
    np.testing.assert_allclose(deviance(model, fit), fit.deviance, rtol=1e-10)


def test_an_offset_is_taken_from_the_response_and_weights_are_kept(pupils: pd.DataFrame) -> None:
    model = jm.arrays("y ~ x + (1 | school)", pupils, offset=np.full(72, 2.0), weights=np.full(72, 3.0))
    np.testing.assert_allclose(model.y, pupils["y"] - 2)
    np.testing.assert_array_equal(model.weights, np.full(72, 3.0))


def test_columns_that_depend_on_others_are_left_out_aloud(pupils: pd.DataFrame) -> None:
    pupils["twice"] = 2 * pupils["x"]
    with pytest.warns(jm.RankDeficientWarning, match="twice left out"):
        model = jm.arrays("y ~ x + twice + (1 | school)", pupils)
    assert model.x_names == ("(Intercept)", "x")
    assert model.X.shape == (72, 2)


def test_rows_with_missing_values_are_dropped_as_by_a_fit(pupils: pd.DataFrame) -> None:
    pupils.loc[3, "x"] = np.nan
    assert jm.arrays("y ~ x + (1 | school)", pupils).X.shape == (71, 2)


def test_they_are_a_pytree_with_static_labels(pupils: pd.DataFrame) -> None:
    model = jm.arrays("y ~ x + (1 | school)", pupils)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(model))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model)
    assert doubled.x_names == model.x_names
    np.testing.assert_array_equal(doubled.y, 2 * model.y)


def test_replaced_arrays_take_the_place_of_the_models_own(pupils: pd.DataFrame) -> None:
    model = jm.arrays("y ~ x + (1 | school)", pupils)
    with double_precision():
        own = model.summarise(y=model.y + 1, frequencies=np.full(72, 2.0))
        assert own.nobs == 144
        np.testing.assert_allclose(own.origin[0] - model.summarise().origin[0], 1, rtol=1e-12)


def test_a_known_relationship_goes_along_unless_it_is_singular(pupils: pd.DataFrame) -> None:
    A = np.eye(6) + 0.3
    model = jm.arrays("y ~ x + (1 | school)", pupils, covariance={"school": jm.known(A, range(6))})
    np.testing.assert_array_equal(model.relationships[0], A)
    A[0] = A[:, 0] = A[1]
    A[0, 0] = A[1, 1]
    A[0, 1] = A[1, 0] = A[1, 1]
    with pytest.raises(jm.DesignError, match=r"'school' is singular among the 6 levels.*jaxmixed\.mixed"):
        jm.arrays("y ~ x + (1 | school)", pupils, covariance={"school": jm.known(A, range(6))})

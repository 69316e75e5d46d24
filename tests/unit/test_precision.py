"""Float64 inside, whatever the user's setting, and nothing changed outside."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.errors import JaxMixedError, PrecisionError
from jaxmixed.precision import double_precision, to_host
from tests.support.fits import quietly

SLEEP = "Reaction ~ Days + (Days | Subject)"


def settings() -> dict[str, Any]:
    return dict(jax.config.values)


@pytest.fixture(scope="module")
def fit() -> jm.MixedResults:
    return jm.mixed(SLEEP, jm.datasets.load("sleepstudy"))


PUBLIC: dict[str, Callable[[jm.MixedResults], Any]] = {
    "mixed": lambda fit: jm.mixed(SLEEP, jm.datasets.load("sleepstudy")),
    "ml": lambda fit: jm.mixed(SLEEP, jm.datasets.load("sleepstudy"), method="ml"),
    "linear": lambda fit: jm.mixed("Reaction ~ Days", jm.datasets.load("sleepstudy")),
    "summary": lambda fit: fit.summary(),
    "varcorr": lambda fit: fit.varcorr,
    "ranef": lambda fit: fit.ranef(),
    "ranef_se": lambda fit: (fit.ranef_se(), fit.ranef_se(beta="estimated")),
    "predict": lambda fit: fit.predict(),
    "icc": lambda fit: fit.icc(),
    "tables": lambda fit: (fit.tidy(), fit.glance(), fit.augment()),
}


def test_importing_leaves_x64_off() -> None:
    assert not jax.config.jax_enable_x64
    assert jnp.ones(2).dtype == jnp.float32


@pytest.mark.parametrize("name", PUBLIC)
def test_no_public_call_changes_jax_settings(name: str, fit: jm.MixedResults) -> None:
    before = settings()
    PUBLIC[name](fit)
    assert settings() == before
    assert jnp.ones(2).dtype == jnp.float32


def test_an_error_inside_leaves_the_settings_alone() -> None:
    before = settings()
    data = jm.datasets.load("sleepstudy")
    with pytest.raises(JaxMixedError):
        jm.mixed(SLEEP, data.assign(Reaction=2.0 * data["Days"]))
    assert settings() == before


@pytest.mark.parametrize("enabled", [False, True])
def test_the_users_setting_does_not_change_the_numbers(enabled: bool, fit: jm.MixedResults) -> None:
    with jax.enable_x64(enabled):
        again = jm.mixed(SLEEP, jm.datasets.load("sleepstudy"))
        assert again.deviance == fit.deviance
        np.testing.assert_array_equal(again.theta, fit.theta)
        np.testing.assert_array_equal(again.ranef()["Subject"], fit.ranef()["Subject"])


def test_results_are_numpy_float64_with_x64_off(fit: jm.MixedResults) -> None:
    estimates = fit.estimates
    arrays = [estimates.beta, estimates.cov_beta, estimates.theta, estimates.hessian, estimates.terms[0].cov]
    assert all(type(array) is np.ndarray and array.dtype == np.float64 for array in arrays)
    assert fit.ranef()["Subject"].to_numpy().dtype == np.float64
    assert type(estimates.deviance) is float


def test_float32_data_are_fitted_in_float64(fit: jm.MixedResults) -> None:
    data = jm.datasets.load("sleepstudy")
    data["Reaction"] = data["Reaction"].astype(np.float32)
    rounded = data.assign(Reaction=data["Reaction"].astype(np.float64))
    assert jm.mixed(SLEEP, data).deviance == jm.mixed(SLEEP, rounded).deviance
    assert jm.mixed(SLEEP, data).deviance == pytest.approx(fit.deviance, rel=1e-6)


def test_the_scope_ends_after_an_error() -> None:
    def fail() -> None:
        with double_precision():
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert jnp.ones(2).dtype == jnp.float32


def test_the_scope_may_be_nested() -> None:
    with double_precision():
        with double_precision():
            assert jnp.ones(2).dtype == jnp.float64
        assert jnp.ones(2).dtype == jnp.float64


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_the_scope_is_refused_inside_a_trace(transform: Callable[..., Any]) -> None:
    def inside(x: jax.Array) -> jax.Array:
        with double_precision():
            return jnp.sum(x)

    argument = jnp.ones(3) if transform is jax.vmap else jnp.float32(1.0)
    with pytest.raises(PrecisionError, match=r"jaxmixed\.likelihood"):
        transform(inside)(argument)
    assert jnp.ones(2).dtype == jnp.float32


@pytest.mark.parametrize("call", ["mixed", "ranef", "ranef_se"])
def test_public_calls_are_refused_inside_a_trace(call: str) -> None:
    fresh = quietly(SLEEP, jm.datasets.load("sleepstudy"))

    def inside(x: jax.Array) -> jax.Array:
        PUBLIC[call](fresh)
        return x

    with pytest.raises(PrecisionError):
        jax.jit(inside)(jnp.float32(1.0))


def test_arrays_keep_their_dtype_on_the_way_out() -> None:
    with double_precision():
        values = to_host((jnp.arange(2.0), jnp.arange(2), jnp.ones(2, jnp.float32)))
    assert [value.dtype for value in values] == [np.float64, np.int64, np.float32]
    assert all(type(value) is np.ndarray for value in values)


def test_numbers_beyond_float32_survive() -> None:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(20), 5)
    noise = rng.normal(size=100)
    data = pd.DataFrame({"y": 1e6 + 1e-3 * (noise + rng.normal(size=20)[g]), "g": g})
    unit = pd.DataFrame({"y": (data["y"] - 1e6) * 1e3, "g": g})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large, small = jm.mixed("y ~ 1 + (1 | g)", data), jm.mixed("y ~ 1 + (1 | g)", unit)
    np.testing.assert_allclose(large.theta, small.theta, rtol=1e-6)
    assert large.sigma * 1e3 == pytest.approx(small.sigma, rel=1e-6)


@pytest.fixture(autouse=True)
def _no_x64_left_behind() -> Iterator[None]:
    yield
    assert not jax.config.jax_enable_x64

"""Natural parameters of residual structures, with their derivatives, names and intervals."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed.estimates import ResidualEstimate
from jaxmixed.precision import double_precision
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.residual_families import (
    AnteDependence,
    Autoregressive,
    AutoregressiveMovingAverage,
    Exchangeable,
    Exponential,
    Independent,
    MovingAverage,
    Toeplitz,
    Unstructured,
)
from jaxmixed.residual_groups import ResidualDesign, ResidualLabels
from jaxmixed.residual_inference import (
    ResidualInference,
    free_names,
    held_naturals,
    mean_variance,
    natural_names,
    natural_scales,
    natural_values,
    residual_intervals,
)

LABELS = ResidualLabels(
    "any", times=("1", "2", "3"), strata=("F", "M"), levels=("a", "b", "c"), covariate="x"
)

STRUCTURES = {
    "ar1 by stratum": ResidualCovariance(Autoregressive(1, 3), strata=2),
    "ar2": ResidualCovariance(Autoregressive(2, 3)),
    "ma2": ResidualCovariance(MovingAverage(2, 3)),
    "arma": ResidualCovariance(AutoregressiveMovingAverage(1, 1, 3)),
    "toeplitz": ResidualCovariance(Toeplitz(2, 2), levels=3),
    "cs by stratum, power": ResidualCovariance(Exchangeable(4), strata=2, function="power"),
    "exponential with nugget": ResidualCovariance(Exponential(nugget=True, unit=4.0), levels=3),
    "unstructured by stratum": ResidualCovariance(Unstructured(3), levels=3, strata=2),
    "ante-dependence": ResidualCovariance(AnteDependence(3), levels=3, function="exp"),
    "independent": ResidualCovariance(Independent(), levels=3, strata=2),
}

SMALL = [name for name in STRUCTURES if name in ("ar1 by stratum", "cs by stratum, power", "toeplitz")]


def free_of(covariance: ResidualCovariance) -> np.ndarray:
    return np.linspace(-0.7, 0.8, covariance.num_params)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_parameter_has_a_name_a_scale_and_a_value(name: str) -> None:
    covariance = STRUCTURES[name]
    free = free_of(covariance)
    values, slopes = natural_values(covariance, free, 2.0)
    names = natural_names(covariance, LABELS)
    assert len(names) == len(set(names)) == len(natural_scales(covariance)) == len(values)
    assert slopes.shape == (len(values), len(free) + 1)
    assert len(free_names(covariance, LABELS)) == len(set(free_names(covariance, LABELS))) == len(free)


@pytest.mark.parametrize("name", SMALL)
def test_slopes_are_the_finite_differences_of_the_values(name: str) -> None:
    covariance = STRUCTURES[name]
    at, step = np.append(free_of(covariance), np.log(2.0)), 1e-6
    _, slopes = natural_values(covariance, at[:-1], 2.0)
    for k in range(len(at)):
        up, down = at.copy(), at.copy()
        up[k], down[k] = at[k] + step, at[k] - step
        ends = [natural_values(covariance, end[:-1], np.exp(end[-1]))[0] for end in (up, down)]
        np.testing.assert_allclose(slopes[:, k], (ends[0] - ends[1]) / (2 * step), rtol=1e-7, atol=1e-8)


def test_natural_parameters_make_up_the_covariance_matrix() -> None:
    covariance, sigma = STRUCTURES["unstructured by stratum"], 3.0
    free = free_of(covariance)
    named = dict(
        zip(natural_names(covariance, LABELS), natural_values(covariance, free, sigma)[0], strict=True)
    )
    at = Occasions(
        times=np.arange(3.0)[:, None],
        levels=np.arange(3)[:, None],
        covariate=np.ones((3, 1)),
        present=np.ones((3, 1), dtype=bool),
        stratum=np.array([1]),
    )
    with double_precision():
        V = sigma**2 * np.asarray(covariance.matrices(jnp.asarray(free), at))[:, :, 0]
    sd = np.array([named[f"sd[M,{level}]"] for level in "abc"])
    np.testing.assert_allclose(np.sqrt(np.diagonal(V)), sd, rtol=1e-12)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        rho = named[f"corr[{i + 1},{j + 1}][M]"]
        np.testing.assert_allclose(V[i, j], rho * sd[i] * sd[j], rtol=1e-12)
    assert named["sd[F,a]"] == pytest.approx(sigma)


def test_names_of_strata_and_levels() -> None:
    assert natural_names(STRUCTURES["cs by stratum, power"], LABELS) == (
        *("rho[F]", "rho[M]", "sd[F]", "sd[M]"),
        *("delta[F]", "delta[M]"),
    )
    assert natural_names(STRUCTURES["exponential with nugget"], LABELS) == (
        *("range", "nugget", "rho"),
        *("sd[a]", "sd[b]", "sd[c]"),
    )
    assert free_names(STRUCTURES["exponential with nugget"], LABELS) == (
        *("range", "nugget"),
        *("sd ratio[b]", "sd ratio[c]"),
    )
    assert natural_names(ResidualCovariance(Autoregressive(1, 2)), LABELS) == ("phi1",)


def test_what_a_held_parameter_holds() -> None:
    def held(name: str, *free: str) -> list[str]:
        covariance = STRUCTURES[name]
        mask = np.array([own in free for own in free_names(covariance, LABELS)])
        assert mask.sum() == len(free)
        names = natural_names(covariance, LABELS)
        return [names[a] for a in np.flatnonzero(held_naturals(covariance, mask))]

    assert held("unstructured by stratum", "corr[1,3][M]") == ["corr[1,3][M]"]
    assert held("unstructured by stratum", "sd ratio[F,b]") == ["sd[F,b]"]
    assert held("unstructured by stratum", "sd ratio[M]") == ["sd[M,a]", "sd[M,b]", "sd[M,c]"]
    assert held("exponential with nugget", "nugget") == ["nugget"]
    assert held("cs by stratum, power", "delta[M]") == ["delta[M]"]


def test_limits_are_symmetric_on_the_scale_of_each_parameter() -> None:
    scales, values = ("atanh", "log", "logit", "identity"), np.array([0.5, 2.0, 0.2, -0.3])
    errors = np.array([0.1, 0.4, 0.05, 0.2])
    found = ResidualInference(("a", "b", "c", "d"), scales, values, np.diag(errors**2), np.zeros((4, 1)))
    table = residual_intervals(found, 0.95)
    z = 1.959963984540054
    low, high = table["conf_low"], table["conf_high"]
    half = z * errors[0] / (1 - 0.5**2)
    assert (np.arctanh(low[0]), np.arctanh(high[0])) == pytest.approx(
        (np.arctanh(0.5) - half, np.arctanh(0.5) + half)
    )
    assert low[1] * high[1] == pytest.approx(4.0)
    assert np.log(high[1] / 2) == pytest.approx(z * 0.2)
    logits = np.log(np.array([low[2], high[2]]) / (1 - np.array([low[2], high[2]])))
    assert logits.mean() == pytest.approx(np.log(0.25))
    assert (low[3], high[3]) == pytest.approx((-0.3 - z * 0.2, -0.3 + z * 0.2))
    np.testing.assert_allclose(table["std_error"], errors)


def test_a_parameter_at_the_end_of_its_range_has_no_limits() -> None:
    found = ResidualInference(
        ("a", "b"), ("atanh", "logit"), np.array([1.0, 0.0]), np.eye(2), np.zeros((2, 1))
    )
    table = residual_intervals(found)
    assert np.isnan([*table["conf_low"], *table["conf_high"]]).all()


def test_the_mean_residual_variance_is_that_of_the_rows() -> None:
    rng = np.random.default_rng(5)
    covariance = STRUCTURES["cs by stratum, power"]
    n, free = 37, free_of(covariance)
    stratum, x = rng.integers(0, 2, n), rng.uniform(0.5, 2.0, n).round(1)
    zero = np.zeros(n, dtype=int)
    design = ResidualDesign(covariance, np.arange(n), n, np.arange(float(n)), zero, x, stratum)
    own = ResidualEstimate(covariance, free, LABELS, np.zeros(len(free), dtype=bool))

    def directly(free: np.ndarray) -> float:
        delta, ratio = (
            free[[1, 3]],
            np.exp([0.0, free[4]]),
        )  # (rho, delta) of each stratum, ratio of the second
        return float(np.mean((ratio[stratum] * x ** delta[stratum]) ** 2))

    found = mean_variance(own, design)
    assert found.value == pytest.approx(directly(free), rel=1e-12)
    steps = 1e-6 * np.eye(len(free))
    slopes = [(directly(free + step) - directly(free - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(found.slopes, slopes, rtol=1e-6, atol=1e-9)

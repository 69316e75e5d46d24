"""Functions of the parameters against closed forms, the tables' own standard errors, and differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed.inference import VarianceParameters, parameter_covariance
from jaxmixed.nonlinear import Parameters
from jaxmixed.precision import double_precision
from tests.support.fits import aliased, fit, quietly, sleepstudy, two_terms, with_kernel

EXACT = 1e-8
"""Relative difference of two exact routes to one number."""

DIFFERENCED = 1e-6
"""Relative error of central differences of step 1e-5."""

Z = 1.959963984540054


@cache
def machines(structure: str) -> jm.MixedResults:
    return fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance=structure)


def of_the_table(model: jm.MixedResults) -> Callable[[Parameters], dict[str, Any]]:
    """The parameters that `varcorr` shows, by its rows, on both of its scales."""
    rows = [
        (group, None if effect != effect else effect, None if effect2 != effect2 else effect2)
        for group, effect, effect2 in model.varcorr[["group", "effect", "effect2"]].itertuples(index=False)
    ]

    def values(p: Parameters) -> dict[str, Any]:
        found = {}
        for number, (group, effect, effect2) in enumerate(rows):
            if group == "Residual":
                variance, shown = p.sigma**2, p.sigma
            else:
                # A variance in common is named after all its effects.
                names = p.effects(group)
                i = names.index(effect) if effect in names else 0
                j = i if effect2 is None else names.index(effect2) if effect2 in names else 1
                variance = p.cov(group, i, j)
                shown = p.sd(group, i) if i == j else p.corr(group, i, j)
            found[f"estimate{number}"], found[f"sd_or_corr{number}"] = variance, shown
        return found

    return values


def differenced(model: jm.MixedResults, fn: Callable[[Parameters], Any], num_values: int) -> np.ndarray:
    """Standard errors (m,) with derivatives by central differences in all parameters."""
    found, names = model.estimates, model.frame.x_names
    pieces = [found.beta, *(term.standard for term in found.terms), [np.log(found.sigma)]]
    at, ends = np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])[:-1]

    def value(parameters: np.ndarray) -> np.ndarray:
        with double_precision():
            beta, *standard, log_sigma = (jnp.asarray(piece) for piece in np.split(parameters, ends))
            p = Parameters(names, found.terms, beta, standard, jnp.exp(log_sigma[0]))
            return np.asarray(list(fn(p).values()), dtype=np.float64)

    jacobian = np.empty((num_values, len(at)))
    for j in range(len(at)):
        step = 1e-5 * max(1.0, abs(at[j])) * np.eye(len(at))[j]
        jacobian[:, j] = (value(at + step) - value(at - step)) / (2 * step[j])
    p = len(found.beta)
    covariance = np.zeros((len(at), len(at)))
    covariance[:p, :p] = found.cov_beta
    covariance[p:, p:] = parameter_covariance(VarianceParameters.of(found))[0]
    return np.sqrt(np.einsum("ai,ij,aj->a", jacobian, covariance, jacobian))


# Coefficients


def test_a_ratio_of_coefficients_has_the_closed_delta_method() -> None:
    model = sleepstudy()
    a, b = model.params
    gradient = np.array([-b / a**2, 1 / a])
    error = np.sqrt(gradient @ model.cov_params().to_numpy() @ gradient)
    row = model.nlcom(lambda p: p["Days"] / p["(Intercept)"]).loc["value"]
    assert row["estimate"] == pytest.approx(b / a, rel=EXACT)
    assert row["std_error"] == pytest.approx(error, rel=EXACT)
    assert row["statistic"] == pytest.approx(b / a / error, rel=EXACT)
    assert row["conf_low"] == pytest.approx(b / a - Z * error, rel=EXACT)


def test_linear_functions_have_the_tables_tests_and_degrees_of_freedom() -> None:
    model = sleepstudy()
    found = model.nlcom(lambda p: p.beta, names=list(model.params.index), ddf="satterthwaite")
    np.testing.assert_allclose(found, model.coef_table("satterthwaite"), rtol=EXACT)
    mixed = model.nlcom(lambda p: p["Days"] / p.sigma, ddf="satterthwaite")
    assert mixed["df"].tolist() == [np.inf]


def test_a_dropped_coefficient_makes_what_it_enters_unknown_and_nothing_else() -> None:
    found = aliased().nlcom(lambda p: {"kept": p["Days"] ** 2, "dropped": p["Days2"] + p["Days"]})
    assert found["estimate"].isna().tolist() == [False, True]
    expected = 2 * aliased().params["Days"] * aliased().bse["Days"]
    assert found.loc["kept", "std_error"] == pytest.approx(expected, rel=EXACT)


# Variance parameters


@pytest.mark.parametrize(
    "model",
    [
        sleepstudy,
        two_terms,
        lambda: sleepstudy(method="ml"),
        lambda: fit("pastes", "strength ~ 1 + (1 | batch/cask)"),
        pytest.param(lambda: machines("independent"), marks=pytest.mark.slow),
        pytest.param(lambda: machines("identity"), marks=pytest.mark.slow),
        lambda: machines("exchangeable"),
        with_kernel,
    ],
    ids=["slopes", "two terms", "ml", "nested", "independent", "identity", "exchangeable", "kernel"],
)
def test_variance_parameters_have_the_standard_errors_of_their_table(model: Any) -> None:
    model = model()
    found, table = model.nlcom(of_the_table(model)), model.varcorr
    for column, error in (("estimate", "std_error"), ("sd_or_corr", "sd_or_corr_std_error")):
        own = found.loc[[f"{column}{i}" for i in range(len(table))]]
        np.testing.assert_allclose(own["estimate"], table[column], rtol=EXACT)
        np.testing.assert_allclose(own["std_error"], table[error], rtol=EXACT)


def test_a_kernels_parameter_has_the_limits_of_its_table() -> None:
    found = with_kernel().nlcom(lambda p: p.kernel("Subject"), scale="log").loc["length"]
    expected = with_kernel().random_terms[0].parameters.loc["length"]
    for column in ("estimate", "std_error", "conf_low", "conf_high"):
        assert found[column] == pytest.approx(expected[column], rel=EXACT)


def test_theta_is_that_of_the_fit() -> None:
    for model in (sleepstudy(), machines("exchangeable"), with_kernel()):
        np.testing.assert_allclose(model.nlcom(lambda p: p.theta)["estimate"], model.theta, rtol=EXACT)


@pytest.mark.parametrize("scale", ["log", "atanh"])
def test_limits_on_other_scales_are_those_of_the_table(scale: Any) -> None:
    model, row = sleepstudy(), {"log": 2, "atanh": 1}[scale]
    found = model.nlcom(
        lambda p: p.sd("Subject", "Days") if scale == "log" else p.corr("Subject", "Days", "(Intercept)"),
        scale=scale,
    ).loc["value"]
    expected = model.varcorr.loc[row]
    for end in ("conf_low", "conf_high"):
        assert found[end] == pytest.approx(expected[f"sd_or_corr_{end}"], rel=EXACT)
    assert np.isnan(found["statistic"])
    assert np.isnan(found["p_value"])


@pytest.mark.parametrize("nested", [False, True])
def test_an_intraclass_correlation_is_that_of_icc(nested: bool) -> None:
    if nested:
        model = fit("pastes", "strength ~ 1 + (1 | batch/cask)")
    else:
        model = fit("mini_wright", "wm ~ 1 + (1 | id)")

    def correlations(p: Parameters) -> dict[str, Any]:
        found, inside = {}, 0.0
        labels = ["batch", "batch:cask"] if nested else ["id"]
        total = p.sigma**2 + sum(p.var(label) for label in labels)
        for label in labels:
            inside = inside + p.var(label)
            found[label] = inside / total
        return found

    found = model.nlcom(correlations, scale="logit")
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    np.testing.assert_allclose(found[columns], model.icc()[columns], rtol=EXACT)


def test_derivatives_are_those_of_differences() -> None:
    def values(p: Parameters) -> dict[str, Any]:
        z = jnp.array([1.0, 4.0])
        between = z @ p.cov("Subject") @ z
        return {
            "reliability": between / (between + p.sigma**2 / 3),
            "standardised": p["Days"] / p.sd("Subject", "Days"),
            "turning": -p.cov("Subject", 0, 1) / p.var("Subject", "Days"),
            "theta": jnp.sum(p.theta**2) * p.sigma,
            "predicted": jnp.exp(0.01 * (p.beta @ z)),
        }

    model = sleepstudy()
    found = model.nlcom(values)
    np.testing.assert_allclose(found["std_error"], differenced(model, values, 5), rtol=DIFFERENCED)


# The boundary


def test_a_variance_of_zero_is_held() -> None:
    model = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)")
    found = model.nlcom(
        lambda p: {
            "sd": p.sd("Batch", 0),
            "share": p.var("Batch") / (p.var("Batch") + p.sigma**2),
            "s": p.sigma,
        }
    )
    assert found["estimate"].tolist()[:2] == [0.0, 0.0]
    assert found.loc[["sd", "share"], "std_error"].isna().all()
    residual = model.varcorr.iloc[-1]
    assert found.loc["s", "std_error"] == pytest.approx(residual["sd_or_corr_std_error"], rel=EXACT)


def test_beside_a_correlation_of_one_other_parameters_are_known() -> None:
    data = jm.datasets.load("sleepstudy")
    few = data[data["Subject"].isin(sorted(data["Subject"].unique())[:3])]
    model = quietly("Reaction ~ Days + (Days | Subject)", few, method="ml")
    table = model.varcorr
    assert table.loc[1, "sd_or_corr"] == pytest.approx(1.0, abs=1e-12)
    found = model.nlcom(of_the_table(model))
    for column, error in (("estimate", "std_error"), ("sd_or_corr", "sd_or_corr_std_error")):
        own = found.loc[[f"{column}{i}" for i in range(len(table))], "std_error"]
        np.testing.assert_allclose(own, table[error], rtol=EXACT)


# Results and refusals


def test_arrays_and_dicts_name_their_values() -> None:
    found = sleepstudy().nlcom(lambda p: {"cov": p.cov("Subject"), "sigma": p.sigma})
    assert list(found.index) == ["cov[0, 0]", "cov[0, 1]", "cov[1, 0]", "cov[1, 1]", "sigma"]
    np.testing.assert_allclose(
        found["estimate"].iloc[:4], sleepstudy().random_terms[0].cov.to_numpy().ravel()
    )

    def relative(p: Parameters) -> Any:
        return p.sd("Subject") / p.sigma

    assert list(sleepstudy().nlcom(relative).index) == ["relative[0]", "relative[1]"]
    assert list(sleepstudy().nlcom(relative, names=["a", "b"]).index) == ["a", "b"]


def test_a_linear_model_has_functions_too() -> None:
    row = fit("sleepstudy", "Reaction ~ Days").nlcom(lambda p: p.sigma, scale="log").loc["value"]
    assert row["std_error"] == pytest.approx(row["estimate"] / np.sqrt(2 * 178), rel=EXACT)


def test_parameters_say_what_they_are() -> None:
    seen: list[Any] = []

    def look(p: Parameters) -> Any:
        seen.extend([repr(p), list(p), len(p), p.effects("Subject")])
        return p.sigma

    sleepstudy().nlcom(look)
    assert seen[:4] == [
        "<Parameters: 2 coefficients; groupings 'Subject'>",
        ["(Intercept)", "Days"],
        2,
        ("(Intercept)", "Days"),
    ]


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (lambda p: p["day"], {}, "no coefficient 'day'; the coefficients are"),
        (lambda p: p.var("School"), {}, "no grouping 'School'; the groupings are 'Subject'"),
        (lambda p: p.sd("Subject", "day"), {}, "no single 'day'; they are"),
        (lambda p: p.kernel("Subject"), {}, "no term of 'Subject' has a kernel"),
        (lambda p: np.sqrt(p.sigma), {}, "cannot be differentiated by JAX: write it in jax.numpy"),
        (lambda p: p.sigma if p.sigma > 1 else 0.0, {}, "cannot be differentiated by JAX"),
        (lambda p: "sigma", {}, "returned a str for 'value'"),
        (lambda p: {}, {}, "returned nothing"),
        (lambda p: p.beta, {"names": ["a"]}, "names= has 1 names for 2 values"),
        (lambda p: p.sigma, {"scale": "probit"}, "scale is 'probit'"),
        (lambda p: p.sigma, {"level": 95}, "level is 95"),
        (lambda p: p.sigma, {"scale": "logit"}, r"'value' is 25.5918, outside of the range of the scale"),
        ("Days / 2", {}, "takes a function of the parameters"),
    ],
)
def test_what_cannot_be_is_refused(fn: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((jm.DataError, jm.DesignError), match=message):
        sleepstudy().nlcom(fn, **options)


def test_an_ambiguous_effect_is_asked_for_by_position() -> None:
    data = jm.datasets.load("sleepstudy")
    model = quietly("Reaction ~ 1 + (1 | Subject) + (0 + Days | Subject)", data)
    found = model.nlcom(lambda p: {"a": p.var("Subject"), "b": p.cov("Subject", 0)})
    assert found["estimate"].iloc[0] == found["estimate"].iloc[1]


def test_nothing_outside_changes() -> None:
    sleepstudy().nlcom(lambda p: p.sigma)
    assert jnp.ones(1).dtype == jnp.float32

"""The certificate of convergence: what it says of an optimum, by other routes to the same numbers."""

from __future__ import annotations

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import fitting, optim
from jaxmixed.certificate_advice import ADVICE, plain_number
from jaxmixed.diagnosis import falls_inwards
from jaxmixed.document import document
from jaxmixed.formatting import WIDTH
from jaxmixed.precision import double_precision
from jaxmixed.search import Optimum, SingleRunner, evaluation
from tests.support.dense import Block, DenseModel
from tests.support.fits import aliased, fit, quietly, sleepstudy
from tests.support.simulated import students

STEP = 1e-5  # of finite differences of the dense deviance, whose rounding is 1e-10 of its values of 1000
DIFFERENCES = 2e-4  # one-sided: the step times the second derivative, relative to the first


# The optimum


def test_a_good_fit_has_its_checks_and_nothing_to_advise() -> None:
    found = sleepstudy().certificate()
    assert found.converged
    assert not found.singular
    assert found.gradient_norm < 1e-6
    assert found.parameters["scaled_gradient"].abs().max() == pytest.approx(found.gradient_norm)
    assert (found.hessian_eigenvalues > 0.1).all()
    assert found.condition_number == found.hessian_eigenvalues[-1] / found.hessian_eigenvalues[0]
    assert found.findings == ()
    assert found.boundary == ()
    assert found.is_best is None
    text = str(found)
    assert "Verdict              an optimum\n" in text
    assert "Scaled gradient      below 1e-08 (tolerance 1e-06)" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_linear_model_has_a_certificate_too() -> None:
    found = fit("sleepstudy", "Reaction ~ Days").certificate(starts=4)
    assert "closed form" in str(found)
    assert found.agreement is None
    assert found.weakest is None
    assert np.isnan(found.condition_number)
    assert "Optimum:" not in str(fit("sleepstudy", "Reaction ~ Days").summary())


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("hsb82", "mathach ~ ses + sector + (1 + ses | school)"),
        ("pastes", "strength ~ 1 + (1 | batch/cask)"),
    ],
)
def test_no_combination_of_variance_parameters_is_less_certain_than_the_weakest(
    name: str, formula: str
) -> None:
    found = fit(name, formula)
    weak = found.certificate().weakest
    covariance = found._inference.log_covariance  # inverted, and compared with Stata's tables elsewhere
    directions = np.random.default_rng(1).normal(size=(500, len(covariance)))
    errors = np.sqrt(np.einsum("di,ij,dj->d", directions, covariance, directions))
    assert (errors / np.linalg.norm(directions, axis=1)).max() <= weak.std_error
    assert weak.std_error == pytest.approx(np.sqrt(weak.weights @ covariance @ weak.weights), rel=1e-9)
    assert np.linalg.norm(weak.weights) == pytest.approx(1)
    assert len(weak.names) == len(covariance)


def test_the_weakest_direction_is_named_in_the_users_parameters() -> None:
    weak = sleepstudy().certificate().weakest
    assert weak.names == (
        "ln sd(Subject (Intercept))",
        "atanh cor(Subject (Intercept), Days)",
        "ln sd(Subject Days)",
        "ln sd(Residual)",
    )
    assert "0.93 atanh cor(Subject (Intercept), Days) - 0.29 ln" in str(sleepstudy().certificate())


def test_a_structures_own_parameters_are_among_the_directions() -> None:
    rng = np.random.default_rng(7)
    g, t = np.divmod(np.arange(240), 8)
    apart = np.abs(np.arange(8)[:, None] - np.arange(8)[None])
    b = rng.multivariate_normal(np.zeros(8), np.exp(-apart / 3), size=30)
    data = pd.DataFrame({"y": b[g, t] + 0.5 * rng.normal(size=240), "t": t, "g": g})
    found = quietly("y ~ 1 + (0 + C(t) | g)", data, covariance={"g": jm.kernels.ar1()})
    weak = found.certificate().weakest
    assert weak.names[-1] == "rho(g)"
    # Squared standard errors on the scales of the intervals are those of single parameters.
    assert weak.std_error >= 0.99 * max(
        np.sqrt(np.diagonal(found._inference.log_covariance)).max(),
        np.ptp(np.arctanh(found.random_terms[0].parameters[["conf_low", "conf_high"]].to_numpy())) / 3.92,
    )


# The boundary


def dense_slope(found: jm.MixedResults, dense: DenseModel, change: np.ndarray) -> float:
    """Derivative of the dense profiled deviance along a change of the only term's relative covariance."""
    G = found.random_terms[0].cov.to_numpy() / found.sigma**2
    at = [dense.profiled((G + step * change,), found.method).llf for step in (0.0, STEP)]
    return float(-2 * (at[1] - at[0]) / STEP)


def dense_of(data: pd.DataFrame, columns: tuple[str, ...]) -> DenseModel:
    Z = np.column_stack([np.ones(len(data)), *(data[name] for name in columns)])
    X = np.column_stack([np.ones(len(data)), data["x"]])
    return DenseModel(data["y"].to_numpy(), X, (Block(Z, data["g"].to_numpy()),))


@cache
def singular(seed: int, structure: str | None = None) -> tuple[pd.DataFrame, jm.MixedResults]:
    data = students(seed, groups=32)
    return data, quietly("y ~ x + (x | g)", data, covariance=structure)


@cache
def fits_on_the_boundary() -> dict[str, tuple[pd.DataFrame, jm.MixedResults]]:
    """The first of twelve simulated fits of each kind."""
    found = {}
    for seed in range(12):
        for structure in (None, "independent"):
            data, result = singular(seed, structure)
            for own in result.certificate().boundary:
                found.setdefault(f"{structure} {own.kind}", (data, result))
    return found


@cache
def shared_on_the_boundary() -> dict[str, tuple[pd.DataFrame, jm.MixedResults]]:
    """Exchangeable effects without variance, and with a correlation of +-1."""
    found = {}
    for seed in range(12):
        data = students(seed, groups=32, between=(0.0, 0.5)[seed % 2])
        result = quietly("y ~ x + (x | g)", data, covariance="exchangeable")
        for own in result.certificate().boundary:
            found.setdefault(own.kind, (data, result))
    return found


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_the_derivative_at_a_variance_of_zero_is_that_of_the_dense_likelihood(method: str) -> None:
    found = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)", method)
    (own,) = found.certificate().boundary
    data = jm.datasets.load("dyestuff2")
    one = np.ones((len(data), 1))
    dense = DenseModel(data["Yield"].to_numpy(float), one, (Block(one, data["Batch"].cat.codes.to_numpy()),))
    slope = dense_slope(found, dense, np.ones((1, 1))) / found.sigma**2
    assert own.derivative == pytest.approx(slope, rel=DIFFERENCES)
    assert own.kind == "variance"
    assert own.parameter == "var(Batch (Intercept))"
    assert own.is_minimum


def test_the_derivative_of_a_slopes_variance_is_in_the_units_of_the_data() -> None:
    data, found = fits_on_the_boundary()["independent variance"]
    shifted = data.assign(x=10 * data["x"])
    (own,) = quietly("y ~ x + (x || g)", shifted).certificate().boundary
    (base,) = quietly("y ~ x + (x || g)", data).certificate().boundary
    assert base.effects == own.effects == ("x",)
    assert own.derivative == pytest.approx(100 * base.derivative, rel=1e-6)
    slope = dense_slope(found, dense_of(data, ("x",)), np.diag([0.0, 1.0])) / found.sigma**2
    assert base.derivative == pytest.approx(slope, rel=DIFFERENCES)


def test_the_derivative_at_a_correlation_of_one_is_that_of_the_dense_likelihood() -> None:
    data, found = fits_on_the_boundary()["None correlation"]
    (own,) = found.certificate().boundary
    sd = found.random_terms[0].sd.to_numpy() / found.sigma
    inwards = -own.value * sd[0] * sd[1] * np.array([[0.0, 1.0], [1.0, 0.0]])
    slope = -own.value * dense_slope(found, dense_of(data, ("x",)), inwards)
    assert own.derivative == pytest.approx(slope, rel=DIFFERENCES)
    assert own.derivative * own.value < 0, "a minimum at +1 is approached falling"
    assert own.is_minimum
    assert own.parameter == "cor(g (Intercept), x)"


@pytest.mark.parametrize("kind", ["variance", "correlation"])
def test_derivatives_of_what_effects_share_are_those_of_the_dense_likelihood(kind: str) -> None:
    data, found = shared_on_the_boundary()[kind]
    (own,) = found.certificate().boundary
    if kind == "variance":
        change, per = np.eye(2), found.sigma**2
    else:
        variance = found.random_terms[0].cov.iloc[0, 0] / found.sigma**2
        change, per = -own.value * variance * np.array([[0.0, 1.0], [1.0, 0.0]]), -own.value
    slope = dense_slope(found, dense_of(data, ("x",)), change) / per
    assert own.derivative == pytest.approx(slope, rel=DIFFERENCES)
    assert own.is_minimum


def test_a_combination_without_variance_has_its_derivative() -> None:
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(32), 10)
    x, z = rng.normal(size=(2, 320))
    b = rng.normal(size=(32, 2)) @ np.array([[1.0, 0.5, 0.8], [0.0, 0.9, -0.7]])
    y = 1 + x + b[g, 0] + b[g, 1] * x + b[g, 2] * z + 0.5 * rng.normal(size=320)
    data = pd.DataFrame({"y": y, "x": x, "z": z, "g": g})
    found = quietly("y ~ x + (x + z | g)", data)
    (own,) = found.certificate().boundary
    assert own.kind == "rank"
    eigenvalues, vectors = np.linalg.eigh(found.random_terms[0].cov)
    assert eigenvalues[0] < 1e-9
    weights = vectors[:, 0] / vectors[np.abs(vectors[:, 0]).argmax(), 0]
    into = weights / (weights @ weights)
    slope = dense_slope(found, dense_of(data, ("x", "z")), np.outer(into, into)) / found.sigma**2
    assert own.derivative == pytest.approx(slope, rel=DIFFERENCES)
    assert "leave an effect out of (1 + x + z | g)" in found.certificate().findings[0].advice


def at_zero(run: SingleRunner, starts: np.ndarray) -> Optimum:
    """A search that takes the stationary point at zero for its end."""
    with double_precision():
        x = jnp.zeros(starts.shape[1])
        at = jax.tree.map(np.asarray, jax.jit(partial(evaluation, method=run.method))(x, run.stats))
    ends = (at.value, at.gradient, at.hessian, at.aux[1], at.aux_tangents, 1, optim.CONVERGED)
    return Optimum(*(np.asarray(values)[None] for values in (np.zeros(len(x)), *ends)))


def test_a_variance_that_is_wrongly_zero_is_no_minimum_and_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = students(1)
    expected = quietly("y ~ x + (1 | g)", data)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "search", at_zero)
        stuck = quietly("y ~ x + (1 | g)", data)
    assert stuck.random_terms[0].cov.iloc[0, 0] == 0
    assert not stuck.converged
    assert stuck.diagnostics.problems == ("boundary",)
    assert "the deviance falls inwards from there" in stuck.diagnostics.messages[0]
    assert "where the deviance has NO minimum" in " ".join(str(stuck.summary()).split())
    with pytest.warns(jm.ConvergenceWarning, match="not the best"):
        found = stuck.certificate(starts=3)
    assert "NOT A MINIMUM" in str(found)
    assert found.is_best is False
    assert found.findings[0].kind == "better_start"
    again = found.refit()
    assert again.converged
    assert again.llf == pytest.approx(expected.llf, abs=1e-8)
    assert again.sigma == pytest.approx(expected.sigma, rel=1e-6)


@pytest.mark.parametrize(
    ("hessian", "held", "falls"),
    [
        ([[-1.0, 0.0], [0.0, 2.0]], [True, False], True),
        ([[1.0, 0.0], [0.0, -2.0]], [True, False], False),
        ([[1.0, 2.0], [2.0, 1.0]], [True, True], True),
        ([[0.0, 0.0], [0.0, 5.0]], [True, True], False),
        ([[-1e-9, 0.0], [0.0, 5.0]], [True, True], False),
        ([[np.nan, 0.0], [0.0, 5.0]], [True, True], False),
        ([[-1.0, 0.0], [0.0, -5.0]], [False, False], False),
    ],
)
def test_negative_curvature_in_what_is_held_means_no_minimum(hessian, held, falls) -> None:
    assert falls_inwards(np.array([hessian]), np.array([held])).tolist() == [falls]


# Advice, summaries, documents


@pytest.mark.parametrize(
    ("name", "formula", "covariance", "says"),
    [
        (
            "dyestuff2",
            "Yield ~ 1 + (1 | Batch)",
            None,
            "The model without (1 | Batch) has the same likelihood",
        ),
        (
            "sleepstudy",
            "Reaction ~ Days + I(2 * Days) + (1 | Subject)",
            None,
            "Leave them out of the formula",
        ),
    ],
)
def test_each_finding_has_its_advice(name: str, formula: str, covariance: str | None, says: str) -> None:
    found = fit(name, formula, covariance=covariance).certificate()
    assert says in " ".join(own.advice for own in found.findings)
    assert says in " ".join(str(found).split())


def test_a_zero_variance_among_others_names_what_to_leave_out() -> None:
    _, found = fits_on_the_boundary()["independent variance"]
    assert (
        "Leaving x out of (1 + x | g) leaves the likelihood as it is"
        in found.certificate().findings[0].advice
    )


def test_the_advice_on_a_correlation_is_the_uncorrelated_term() -> None:
    _, found = fits_on_the_boundary()["None correlation"]
    text = " ".join(str(found.summary()).split())
    assert "compare with (1 + x || g), whose correlation is 0" in text
    assert "32 levels of g do not tell these effects apart" in text


def test_the_simpler_model_that_is_advised_has_the_same_likelihood() -> None:
    data, found = fits_on_the_boundary()["independent variance"]
    assert found.llf == pytest.approx(quietly("y ~ x + (1 | g)", data).llf, rel=1e-12)


def test_a_fit_stopped_early_is_no_optimum_and_every_problem_has_advice() -> None:
    found = quietly("y ~ x + (x | g)", students(2), max_iterations=1)
    certificate = found.certificate()
    assert found.diagnostics.problems[0] == "iteration_limit"
    assert "not_stationary" in found.diagnostics.problems
    assert len(found.diagnostics.problems) == len(found.diagnostics.messages)
    assert "NOT CONVERGED" in str(certificate)
    assert {own.kind for own in certificate.findings} >= set(found.diagnostics.problems)
    assert set(found.diagnostics.problems) <= set(ADVICE)


def test_the_summary_says_in_two_lines_what_was_checked() -> None:
    text = " ".join(str(sleepstudy().summary()).split())
    assert (
        "Optimum: scaled gradient below 1e-08, Newton decrement below 1e-12, "
        "Hessian eigenvalues 0.458 to 1.57" in text
    )
    assert "1 parameter on the boundary, where the deviance has its minimum" in " ".join(
        str(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").summary()).split()
    )


def test_rounding_is_not_printed_as_if_it_were_a_number() -> None:
    assert plain_number(3e-15, 1e-8) == plain_number(0.0, 1e-8) == "below 1e-08"
    assert plain_number(0.25, 1e-8) == "0.25"


def test_documents_hold_the_certificate() -> None:
    found = document(fit("dyestuff2", "Yield ~ 1 + (1 | Batch)"))["diagnostics"]
    json.dumps(found, allow_nan=False)
    assert found["boundary"][0]["parameter"] == "var(Batch (Intercept))"
    assert found["boundary"][0]["is_minimum"] is True
    assert found["problems"] == []
    assert len(found["advice"]) == 1
    weights = document(sleepstudy())["diagnostics"]["weakest_direction"]["weights"]
    assert sum(value**2 for value in weights.values()) == pytest.approx(1)
    assert document(aliased())["diagnostics"]["advice"] == [
        "Leave them out of the formula: nothing else changes."
    ]


def test_hostile_names_reach_neither_page_nor_terminal() -> None:
    data = students(0, groups=32).rename(columns={"g": "<script>alert(1)</script>", "x": "a <b>"})
    found = quietly("y ~ `a <b>` + (`a <b>` | `<script>alert(1)</script>`)", data).certificate(starts=2)
    page, text = found._repr_html_(), str(found)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page + text

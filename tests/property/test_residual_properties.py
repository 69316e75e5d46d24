"""Residual structures: what must not change an answer does not; what contains another has its likelihood.

Data keep one shape, so that a structure compiles once; what is random is the data and the transformation.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import jaxmixed as jm
from jaxmixed.likelihood import deviance
from jaxmixed.precision import double_precision
from tests.support.fits import quietly
from tests.support.invariances import short_and_long

pytestmark = pytest.mark.property
res = jm.residuals

SUBJECTS = 18
FIXED = "y ~ x + arm"
AT = {"time": "t", "group": "id"}


def draw(seed: int, decay: float = 0.6) -> tuple[pd.DataFrame, np.random.Generator]:
    """Four visits of subjects in two arms, of which each of the same few rows is missing."""
    rng = np.random.default_rng(seed)
    t = np.tile([1, 2, 3, 5], SUBJECTS)
    subject = np.repeat(np.arange(SUBJECTS), 4)
    lags = np.abs(t[:4, None] - t[None, :4])
    e = rng.multivariate_normal(np.zeros(4), decay**lags, SUBJECTS).ravel() * np.where(t == 3, 1.4, 1.0)
    data = pd.DataFrame({"id": subject, "t": t, "x": rng.normal(size=len(t)), "e": e})
    data["arm"] = np.where(subject % 2 == 0, "drug", "none")
    data["y"] = 2 + 0.5 * data["x"] + (data["arm"] == "drug") + e
    return data.drop(index=[1, 6, 7, 20, 33, 34, 35, 71]).reset_index(drop=True), rng


def fit(data: pd.DataFrame, residuals: Any, formula: str = FIXED, method: str = "reml") -> jm.MixedResults:
    return quietly(formula, data, residuals=residuals, method=method)


def assert_same(one: jm.MixedResults, other: jm.MixedResults) -> None:
    """The same answer, to the accuracy that the optimum is found with."""
    assert_allclose(one.llf, other.llf, rtol=1e-9, atol=1e-8)
    assert_allclose(one.params, other.params, rtol=1e-5, atol=1e-6)
    assert_allclose(one.bse, other.bse, rtol=1e-5)
    assert_allclose(one.sigma, other.sigma, rtol=1e-5)
    assert_allclose(one.residual_parameters, other.residual_parameters, rtol=1e-4, atol=1e-5)


# What must not change an answer


def rows_and_groups_in_any_order(seed: int) -> None:
    data, rng = draw(seed)
    names = [f"s{k}" for k in rng.permutation(SUBJECTS)]
    moved = data.assign(id=[names[k] for k in data["id"]]).sample(frac=1, random_state=seed % 2**31)
    base, other = fit(data, res.Unstructured(**AT)), fit(moved, res.Unstructured(**AT))
    assert_same(other, base)
    assert list(other.residual_parameters.index) == list(base.residual_parameters.index)
    assert_allclose(other.fittedvalues.sort_index(), base.fittedvalues, rtol=1e-5, atol=1e-5)


def times_shifted(seed: int) -> None:
    data, rng = draw(seed)
    later = data.assign(t=data["t"] + int(rng.integers(-2000, 2000)))
    assert_same(fit(later, res.AR(1, **AT)), fit(data, res.AR(1, **AT)))


def times_in_another_unit(seed: int) -> None:
    data, rng = draw(seed)
    unit, shift = float(10 ** rng.uniform(-4, 4)), float(rng.normal(scale=10))
    base = fit(data, res.Exponential(**AT))
    moved = fit(data.assign(t=unit * (data["t"] + shift)), res.Exponential(**AT))
    assert_allclose(moved.llf, base.llf, rtol=1e-9, atol=1e-8)
    neighbours = np.exp(-unit / moved.residual_parameters["range"])  # the range may be zero
    assert_allclose(neighbours, base.residual_parameters["rho"], rtol=1e-4, atol=1e-6)
    assert_allclose(moved.bse, base.bse, rtol=1e-5)


def response_in_another_unit(seed: int) -> None:
    data, rng = draw(seed)
    unit = float(10 ** rng.uniform(-6, 6)) * rng.choice([-1, 1])
    structure = res.AR(1, variance_by="t", **AT)
    base, moved = fit(data, structure), fit(data.assign(y=unit * (data["y"] + 3)), structure)
    df = base.nobs - len(base.params)
    assert_allclose(moved.llf, base.llf - df * np.log(abs(unit)), rtol=1e-9, atol=1e-7)
    scale = [abs(unit) if name.startswith("sd") else 1.0 for name in base.residual_parameters.index]
    assert_allclose(moved.residual_parameters / scale, base.residual_parameters, rtol=1e-4, atol=1e-5)
    assert_allclose(moved.bse, base.bse * abs(unit), rtol=1e-5)


test_rows_and_groups_in_any_order, test_rows_and_groups_in_any_order_of_500 = short_and_long(
    rows_and_groups_in_any_order, (0, 1)
)
test_times_shifted, test_times_shifted_of_500 = short_and_long(times_shifted, (0, 1, 2))
test_times_in_another_unit, test_times_in_another_unit_of_500 = short_and_long(times_in_another_unit, (0, 1))
test_response_in_another_unit, test_response_in_another_unit_of_500 = short_and_long(
    response_in_another_unit, (0, 1)
)


# What is the same model


def test_compound_symmetry_is_a_random_intercept() -> None:
    data, _ = draw(5, decay=0.8)
    marginal = fit(data, res.Exchangeable(group="id"))
    random = quietly(FIXED + " + (1 | id)", data)
    assert_allclose(marginal.llf, random.llf, rtol=1e-10)
    assert_allclose(marginal.params, random.params, rtol=1e-6)
    assert_allclose(marginal.cov_params(), random.cov_params(), rtol=1e-6)
    between = float(random.random_terms[0].cov.iloc[0, 0])
    assert_allclose(marginal.sigma**2, random.sigma**2 + between, rtol=1e-6)
    rho = marginal.residual_parameters["rho"]
    assert_allclose(rho, between / (between + random.sigma**2), rtol=1e-5)


def exponential_is_autoregressive(seed: int) -> None:
    data, _ = draw(seed)
    continuous, whole = fit(data, res.Exponential(**AT)), fit(data, res.AR(1, **AT))
    phi = whole.residual_parameters["phi1"]
    if phi < 0.01:  # not in continuous time
        assert continuous.llf <= whole.llf + 1e-8
        return
    assert_allclose(continuous.llf, whole.llf, rtol=1e-9, atol=1e-8)
    assert_allclose(np.exp(-1 / continuous.residual_parameters["range"]), phi, rtol=1e-4)
    assert_allclose(continuous.cov_params(), whole.cov_params(), rtol=1e-5)


test_exponential_is_autoregressive, test_exponential_is_autoregressive_of_500 = short_and_long(
    exponential_is_autoregressive, (0, 1, 2)
)


@pytest.mark.parametrize("structure", [res.AR(1, **AT), res.Unstructured(**AT)])
def test_without_correlation_the_likelihood_is_that_of_independent_residuals(structure: Any) -> None:
    data, _ = draw(3)
    independent, correlated = quietly(FIXED, data), fit(data, structure)
    free = np.zeros(correlated.num_params - independent.num_params)
    with double_precision():
        at_zero = float(deviance(free, correlated.state.compact, method="reml"))
    assert_allclose(at_zero, independent.deviance, rtol=1e-12)
    assert correlated.deviance < independent.deviance


def test_strata_of_all_parameters_are_separate_models() -> None:
    data, _ = draw(7)
    structure = {"time": "t", "group": "id"}
    whole = fit(data, res.AR(1, by="arm", **structure), "y ~ arm * x")
    parts = [fit(data[data["arm"] == arm], res.AR(1, **structure), "y ~ x") for arm in ("drug", "none")]
    assert_allclose(whole.llf, sum(part.llf for part in parts), rtol=1e-9)
    for arm, part in zip(("drug", "none"), parts, strict=True):
        assert_allclose(whole.residual_parameters[f"sd[{arm}]"], part.sigma, rtol=1e-5)
        phi = whole.residual_parameters[f"phi1[{arm}]"]
        assert_allclose(phi, part.residual_parameters["phi1"], rtol=1e-4)


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_complete_data_with_a_mean_for_each_cell_have_the_sample_covariance(method: str) -> None:
    # Multivariate normal samples of two arms: the pooled covariance (Anderson 2003, sec. 8.8).
    rng = np.random.default_rng(2)
    n, times = 20, 4
    A = rng.normal(size=(times, times))
    Y = rng.normal(size=(n, times)) @ A + rng.normal(size=times)
    arm = np.arange(n) % 2
    centred = Y - np.stack([Y[arm == k].mean(axis=0) for k in (0, 1)])[arm]
    expected = centred.T @ centred / (n - 2 if method == "reml" else n)
    data = pd.DataFrame(
        {"y": Y.ravel(), "visit": np.tile(list("abcd"), n), "id": np.repeat(np.arange(n), times)}
    )
    data["arm"] = np.where(arm[data["id"]] == 1, "drug", "none")
    found = fit(data, "us(visit | id)", "y ~ arm * visit", method).residual_parameters
    sds = np.array([found[f"sd[{label}]"] for label in "abcd"])
    assert_allclose(sds, np.sqrt(np.diag(expected)), rtol=1e-6)
    for i, a in enumerate("abcd"):
        for j, b in enumerate("abcd"[:i]):
            correlation = expected[i, j] / np.sqrt(expected[i, i] * expected[j, j])
            assert_allclose(found[f"corr[{b},{a}]"], correlation, rtol=1e-5, atol=1e-6)


# What contains another model


CONTAINED = {
    "independent": None,
    "exchangeable": res.Exchangeable(group="id"),
    "ar1": res.AR(1, **AT),
    "toeplitz": res.Toeplitz(**AT),
    "heterogeneous ar1": res.AR(1, variance_by="t", **AT),
    "antedependence": res.AnteDependence(**AT),
    "banded": res.Banded(1, **AT),
    "unstructured, one sd": res.Unstructured(variance_by=None, **AT),
    "unstructured": res.Unstructured(**AT),
}

WITHIN = [
    ("independent", "exchangeable"),
    ("independent", "ar1"),
    ("exchangeable", "toeplitz"),
    ("ar1", "toeplitz"),
    ("toeplitz", "unstructured, one sd"),
    ("ar1", "heterogeneous ar1"),
    ("independent", "banded"),
    ("banded", "unstructured"),
    ("antedependence", "unstructured"),
    ("unstructured, one sd", "unstructured"),
]


@pytest.mark.slow
def test_a_structure_that_contains_another_has_the_higher_likelihood() -> None:
    # Ante-dependence contains AR(1) where the visits are one apart; here they are not quite.
    for seed in range(3):
        data, _ = draw(seed)
        fits = {name: fit(data, structure) for name, structure in CONTAINED.items()}
        for smaller, larger in WITHIN:
            assert fits[larger].llf >= fits[smaller].llf - 1e-8, (smaller, larger)
            assert fits[larger].num_params > fits[smaller].num_params


@pytest.mark.slow
def test_with_two_visits_all_heterogeneous_structures_are_unstructured() -> None:
    data, _ = draw(4)
    data = data[data["t"] <= 2]
    structures = [
        res.Unstructured(**AT),
        res.Banded(1, **AT),
        res.AnteDependence(**AT),
        res.Exchangeable(variance_by="t", **AT),
        res.AR(1, variance_by="t", **AT),
        res.Toeplitz(variance_by="t", **AT),
    ]
    first, *others = [fit(data, structure) for structure in structures]
    for other in others:
        assert_allclose(other.llf, first.llf, rtol=1e-9)
        assert_allclose(other.cov_params(), first.cov_params(), rtol=1e-5)
        values = sorted(other.residual_parameters)
        assert_allclose(values, sorted(first.residual_parameters), rtol=1e-4)


# What the size of the data changes


def trial(subjects: int, visits: int, patterns: int) -> pd.DataFrame:
    """Subjects with one of some sets of visits, as many for any number of subjects."""
    rng = np.random.default_rng(visits)
    sets = rng.permutation(2 ** (visits - 1))[:patterns]  # of later visits: bits of numbers
    seen = np.concatenate([np.ones((patterns, 1), int), sets[:, None] >> np.arange(visits - 1) & 1], axis=1)
    seen[0] = 1
    subject, visit = np.nonzero(seen[np.arange(subjects) % patterns])
    e = rng.normal(size=(subjects, visits)).cumsum(axis=1)
    arm = np.array(["drug", "none"])[rng.integers(0, 2, subjects)]
    columns = {"id": subject, "visit": np.array(list("abcdefghij"))[visit], "arm": arm[subject]}
    return pd.DataFrame({**columns, "y": visit + e[subject, visit]})


@pytest.mark.parametrize(
    ("sizes", "visits", "patterns"),
    [((150, 1_500), 4, 5), pytest.param((1_000, 100_000), 10, 30, marks=pytest.mark.slow)],
)
def test_the_cost_of_an_evaluation_does_not_depend_on_the_subjects(
    sizes: tuple[int, int], visits: int, patterns: int
) -> None:
    # What is evaluated has the same arrays, so that it is the same program; and not more often.
    fits = [fit(trial(n, visits, patterns), "us(visit | id)", "y ~ arm + visit") for n in sizes]
    few, many = ([leaf.shape for leaf in jax.tree.leaves(found.state.compact)] for found in fits)
    assert few == many
    assert sum(map(np.prod, many)) < 100 * visits**2 * patterns * (visits + 2) ** 2
    assert all(found.converged for found in fits)
    assert fits[1].diagnostics.evaluations <= fits[0].diagnostics.evaluations + 2

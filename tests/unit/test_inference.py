"""Standard errors of variance parameters against the numerical Hessian of the dense likelihood."""

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.estimates import Estimates
from jaxmixed.inference import (
    VarianceInference,
    VarianceParameters,
    parameter_covariance,
    variance_inference,
    variance_table,
    variance_tables,
)
from tests.support.dense import Array, Block, DenseModel
from tests.support.fits import fit, quietly

STEP = 1e-2
SAME = 1e-5
"""Relative: what Richardson extrapolation leaves of the truncation error of second differences."""

METHODS = ("ml", "reml")

N = 84
"""Rows in 28 groups: padded to 32, as those of other test files, these share their programs."""


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(28), 3)
    x = rng.normal(size=N)
    b = rng.normal(size=(28, 2)) @ np.array([[1.0, 0.4], [0.0, 0.8]])
    h = g // 7
    y = 1 + x + b[g, 0] + x * b[g, 1] + 1.2 * rng.normal(size=4)[h] + rng.normal(size=N)
    return pd.DataFrame({"y": y, "x": x, "g": g, "h": h, "w": np.round(rng.uniform(0.5, 2, N), 2)})


MODELS: dict[str, tuple[str, str | None]] = {
    "intercept": ("y ~ x + (1 | g)", None),
    "slope": ("y ~ x + (x | g)", None),
    "independent": ("y ~ x + (x || g)", None),
    "identity": ("y ~ x + (x | g)", "identity"),
    "exchangeable": ("y ~ x + (x | g)", "exchangeable"),
    "two levels": ("y ~ x + (x | g) + (1 | h)", None),
}


def inference_of(found: jm.MixedResults) -> VarianceInference:
    return variance_inference(VarianceParameters.of(found.estimates)).model(0)


@cache
def fitted(name: str, method: str) -> tuple[jm.MixedResults, VarianceInference]:
    formula, covariance = MODELS[name]
    found = quietly(formula, data(), method=method, covariance=covariance, weights="w")
    assert found.converged
    assert not found.is_singular
    return found, inference_of(found)


def dense_model(found: jm.MixedResults) -> DenseModel:
    """Blocks in the order of the estimates' terms."""
    d = data()
    blocks = []
    for term in found.estimates.terms:
        Z = np.column_stack([np.ones(N) if name == "(Intercept)" else d[name] for name in term.names])
        blocks.append(Block(Z, d[term.group].to_numpy()))
    X = np.column_stack([np.ones(N), d["x"]])
    return DenseModel(d["y"].to_numpy(), X, tuple(blocks), d["w"].to_numpy())


def transformed(found: jm.MixedResults, vi: VarianceInference) -> Array:
    """Parameters as log standard deviations and atanh correlations, the residual last."""
    diagonal = np.array([i == j for _, i, j in vi.index])
    return np.where(
        diagonal, np.log(np.where(diagonal, vi.sd_corr, 1)), np.arctanh(np.where(diagonal, 0, vi.sd_corr))
    )


def covariances(found: jm.MixedResults, vi: VarianceInference, z: Array) -> tuple[tuple[Array, ...], float]:
    """Absolute covariance of each term, and sigma, from those parameters."""
    covs = []
    for number, term in enumerate(found.estimates.terms):
        own = {(i, j): value for (t, i, j), value in zip(vi.index, z, strict=True) if t == number}
        q = len(term.names)
        common = term.structure in ("identity", "exchangeable")
        sd = np.exp([own[0, 0] if common else own[j, j] for j in range(q)])
        correlation = np.eye(q)
        for i in range(q):
            for j in range(i):
                rho = np.tanh(own.get((1, 0) if common else (i, j), 0.0))
                correlation[i, j] = correlation[j, i] = rho
        covs.append(correlation * np.outer(sd, sd))
    return tuple(covs), float(np.exp(z[-1]))


def numerical_hessian(function: Callable[[Array], float], x: Array) -> Array:
    def differences(h: float) -> Array:
        k = len(x)
        E, H = h * np.eye(k), np.empty((k, k))
        for a in range(k):
            for b in range(a + 1):
                corners = [function(x + s * E[a] + t * E[b]) * s * t for s in (1, -1) for t in (1, -1)]
                H[a, b] = H[b, a] = sum(corners) / (4 * h * h)
        return H

    return (4 * differences(STEP / 2) - differences(STEP)) / 3


@cache
def oracle(name: str, method: str) -> Array:
    """Covariance of (log sd, atanh corr, log sigma): minus the inverse Hessian of the log-likelihood."""
    found, vi = fitted(name, method)
    model = dense_model(found)

    def loglik(z: Array) -> float:
        covs, sigma = covariances(found, vi, z)
        return model.loglik(covs, sigma, method)  # type: ignore[arg-type]

    z = transformed(found, vi)
    assert loglik(z) == pytest.approx(found.llf, rel=1e-9)
    return np.linalg.inv(-numerical_hessian(loglik, z))


# The method enters through the criterion, a structure through its own derivatives: each structure takes one.
each = pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in ("intercept", "slope", "two levels") for method in METHODS),
        *((name, "reml") for name in ("independent", "identity", "exchangeable")),
    ],
)


def close(found: Array, expected: Array) -> None:
    scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_allclose(found / scale, expected / scale, atol=SAME)


@each
def test_the_covariance_on_the_log_and_atanh_scale_is_that_of_the_dense_likelihood(
    name: str, method: str
) -> None:
    _, vi = fitted(name, method)
    close(vi.log_covariance, oracle(name, method))


@each
def test_standard_deviations_and_correlations_follow_by_the_delta_method(name: str, method: str) -> None:
    _, vi = fitted(name, method)
    diagonal = np.array([i == j for _, i, j in vi.index])
    slope = np.where(diagonal, vi.sd_corr, 1 - vi.sd_corr**2)
    close(vi.sd_corr_covariance, oracle(name, method) * np.outer(slope, slope))


@each
def test_variances_and_covariances_follow_by_the_delta_method(name: str, method: str) -> None:
    found, vi = fitted(name, method)

    def values(z: Array) -> Array:
        covs, sigma = covariances(found, vi, z)
        return np.array([*(covs[number][i, j] for number, i, j in vi.index[:-1]), sigma**2])

    z, h = transformed(found, vi), 1e-6
    np.testing.assert_allclose(values(z), vi.values, rtol=1e-10)
    J = np.column_stack([(values(z + e) - values(z - e)) / (2 * h) for e in h * np.eye(len(z))])
    close(vi.covariance, J @ oracle(name, method) @ J.T)


@each
def test_values_are_those_of_the_terms(name: str, method: str) -> None:
    found, vi = fitted(name, method)
    for (number, i, j), value, shown in zip(vi.index[:-1], vi.values, vi.sd_corr, strict=False):
        cov = found.estimates.terms[number].cov
        assert value == pytest.approx(cov[i, j], rel=1e-12)
        expected = np.sqrt(cov[i, i]) if i == j else cov[i, j] / np.sqrt(cov[i, i] * cov[j, j])
        assert shown == pytest.approx(expected, rel=1e-12)
    assert vi.index[-1] == (-1, 0, 0)
    assert vi.values[-1] == pytest.approx(found.sigma**2, rel=1e-14)
    assert vi.sd_corr[-1] == pytest.approx(found.sigma, rel=1e-14)
    assert not vi.on_boundary.any()


def test_parameters_are_listed_columnwise_term_by_term() -> None:
    _, vi = fitted("two levels", "reml")
    assert vi.index == ((0, 0, 0), (0, 1, 0), (0, 1, 1), (1, 0, 0), (-1, 0, 0))
    _, vi = fitted("independent", "reml")
    assert vi.index == ((0, 0, 0), (0, 1, 1), (-1, 0, 0))
    _, vi = fitted("identity", "reml")
    assert vi.index == ((0, 0, 0), (-1, 0, 0))
    _, vi = fitted("exchangeable", "reml")
    assert vi.index == ((0, 0, 0), (0, 1, 0), (-1, 0, 0))


def test_the_covariance_of_the_parameters_is_symmetric_and_positive_definite() -> None:
    found, _ = fitted("two levels", "ml")
    (C,) = parameter_covariance(VarianceParameters.of(found.estimates))
    assert C.shape == (5, 5)
    np.testing.assert_allclose(C, C.T, rtol=1e-10)
    assert np.linalg.eigvalsh(C)[0] > 0


def test_balanced_one_way_standard_errors_have_their_closed_form() -> None:
    m, k = 12, 4
    rng = np.random.default_rng(1)
    y = rng.normal(size=(m, k)) + rng.normal(size=(m, 1))
    found = quietly("y ~ 1 + (1 | g)", pd.DataFrame({"y": y.ravel(), "g": np.repeat(np.arange(m), k)}))
    vi = inference_of(found)
    within = found.sigma**2
    between = within + k * found.estimates.terms[0].cov[0, 0]
    # Two independent mean squares with m (k - 1) and m - 1 degrees of freedom.
    var_within, var_between = 2 * within**2 / (m * (k - 1)), 2 * between**2 / (m - 1)
    expected = [[(var_between + var_within) / k**2, -var_within / k], [-var_within / k, var_within]]
    np.testing.assert_allclose(vi.covariance, expected, rtol=1e-8)


# The boundary


def zero_variance() -> jm.MixedResults:
    rng = np.random.default_rng(2)
    y = rng.normal(size=(10, 5))
    y -= 0.9 * y.mean(axis=1, keepdims=True)
    found = quietly("y ~ 1 + (1 | g)", pd.DataFrame({"y": y.ravel(), "g": np.repeat(np.arange(10), 5)}))
    assert found.theta[0] == 0
    return found


def test_a_zero_variance_has_no_standard_error_and_the_residual_that_of_the_linear_model() -> None:
    found = zero_variance()
    vi = inference_of(found)
    assert vi.on_boundary.tolist() == [True, False]
    assert vi.values[0] == 0
    for covariance in (vi.covariance, vi.sd_corr_covariance, vi.log_covariance):
        assert np.isnan(covariance[0]).all()
        assert np.isnan(covariance[:, 0]).all()
    df = 49
    assert vi.covariance[1, 1] == pytest.approx(2 * found.sigma**4 / df, rel=1e-10)
    assert vi.log_covariance[1, 1] == pytest.approx(1 / (2 * df), rel=1e-10)


@cache
def perfectly_correlated() -> jm.MixedResults:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        g = np.repeat(np.arange(28), 5)
        x = rng.normal(size=140)
        b = rng.normal(size=28)[g]
        d = pd.DataFrame({"y": b * (1 + 2 * x) + rng.normal(size=140), "x": x, "g": g})
        found = quietly("y ~ x + (x | g)", d)
        if found.is_singular:
            return found
    raise AssertionError("none of the seeds gave a correlation of one")


def test_a_correlation_of_one_has_no_standard_error_and_the_variances_keep_theirs() -> None:
    found = perfectly_correlated()
    vi = inference_of(found)
    assert vi.on_boundary.tolist() == [False, True, False, False]
    assert vi.sd_corr[1] == pytest.approx(1.0, abs=1e-12)
    assert abs(vi.sd_corr[1]) <= 1
    for covariance in (vi.sd_corr_covariance, vi.log_covariance):
        assert np.isnan(covariance[1]).all()
        inside = covariance[np.ix_([0, 2, 3], [0, 2, 3])]
        assert np.linalg.eigvalsh(inside)[0] > 0


def test_tables_on_the_boundary_have_nan_and_raise_no_warning() -> None:
    for found in (zero_variance(), perfectly_correlated()):
        vi = inference_of(found)
        table = pd.DataFrame(variance_table(vi, found.estimates))
        held = vi.on_boundary
        assert table.loc[held, "sd_or_corr_std_error"].isna().all()
        assert table.loc[held, ["sd_or_corr_conf_low", "sd_or_corr_conf_high"]].isna().all(axis=None)
        assert table.loc[~held, "std_error"].notna().all()
        assert table["estimate"].notna().all()


# Tables


def table(found: jm.MixedResults, **options: Any) -> pd.DataFrame:
    return pd.DataFrame(variance_table(inference_of(found), found.estimates, **options))


def test_the_table_has_the_columns_of_the_contract_and_the_residual_last() -> None:
    found, _ = fitted("two levels", "reml")
    shown = table(found)
    assert shown["group"].tolist() == ["g", "g", "g", "h", "Residual"]
    assert shown["effect"].tolist()[:4] == ["(Intercept)", "(Intercept)", "x", "(Intercept)"]
    assert [value if isinstance(value, str) else None for value in shown["effect2"]] == [
        None,
        "x",
        None,
        None,
        None,
    ]
    assert set(shown.columns) == {
        *("group", "effect", "effect2", "estimate", "std_error", "conf_low", "conf_high"),
        *("sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high"),
    }


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.959963984540054), (0.9, 1.6448536269514722)])
def test_intervals_are_symmetric_on_the_scales_of_stata(level: float, z: float) -> None:
    found, vi = fitted("two levels", "ml")
    shown = table(found, level=level)
    half = z * np.sqrt(np.diagonal(vi.log_covariance))
    variance = np.array([i == j for _, i, j in vi.index])
    for column, power in (("estimate", 2), ("sd_or_corr", 1)):
        prefix = "" if column == "estimate" else "sd_or_corr_"
        low, high = (
            shown.loc[variance, f"{prefix}conf_{end}"].to_numpy(dtype=float) for end in ("low", "high")
        )
        estimate = shown.loc[variance, column].to_numpy(dtype=float)
        np.testing.assert_allclose(np.log(high / estimate), power * half[variance], rtol=1e-12)
        np.testing.assert_allclose(np.log(estimate / low), power * half[variance], rtol=1e-12)
    row = shown.loc[1]
    assert np.arctanh(row["sd_or_corr_conf_high"]) - np.arctanh(row["sd_or_corr"]) == pytest.approx(half[1])
    assert row["conf_high"] - row["estimate"] == pytest.approx(z * row["std_error"])
    assert row["estimate"] - row["conf_low"] == pytest.approx(z * row["std_error"])


def test_common_variances_are_named_by_all_their_effects() -> None:
    found, _ = fitted("exchangeable", "reml")
    shown = table(found)
    assert shown["effect"].tolist()[:2] == ["(Intercept) x", "(Intercept) x"]
    assert shown["effect2"].tolist()[1] == "(Intercept) x"


def test_sleepstudy_by_maximum_likelihood_has_published_standard_errors() -> None:
    """Against profile curvature by finite differences of the fit's own criterion at a coarse step."""
    found = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)", "ml")
    vi = inference_of(found)
    d = jm.datasets.load("sleepstudy")
    Z = np.column_stack([np.ones(180), d["Days"]])
    model = DenseModel(
        d["Reaction"].to_numpy(), Z, (Block(Z, pd.factorize(d["Subject"])[0].astype(np.int64)),)
    )

    def loglik(z: Array) -> float:
        covs, sigma = covariances(found, vi, z)
        return model.loglik(covs, sigma, "ml")

    expected = np.linalg.inv(-numerical_hessian(loglik, transformed(found, vi)))
    close(vi.log_covariance, expected)


# Many models

SAME_ALONE = 1e-12
"""Relative: a model in a batch goes through the same operations as alone."""


def together(estimates: list[Estimates]) -> VarianceParameters:
    """Models of one structure as a batch; each has columns of its own."""
    single = [VarianceParameters.of(found) for found in estimates]
    return VarianceParameters(
        hessian=np.concatenate([found.hessian for found in single]),
        log_rss_gradient=np.concatenate([found.log_rss_gradient for found in single]),
        free=np.concatenate([found.free for found in single]),
        determined=np.concatenate([found.determined for found in single]),
        df=np.concatenate([found.df for found in single]),
        sigma=np.concatenate([found.sigma for found in single]),
        covariances=single[0].covariances,
        standard=tuple(
            np.concatenate(parts) for parts in zip(*(found.standard for found in single), strict=True)
        ),
        frames=tuple(np.stack(parts) for parts in zip(*(found.frames for found in single), strict=True)),
    )


def with_standard(found: Estimates, *standard: float) -> Estimates:
    """The estimates of one term with other parameters, and those that they hold on the boundary."""
    (term,), theta = found.terms, np.array(standard)
    return replace(found, terms=(replace(term, standard=theta),), free=~term.covariance.on_boundary(theta))


def flattened(found: Estimates, *direction: float) -> Estimates:
    """The estimates with a Hessian without curvature along a direction."""
    v = np.array(direction)
    slope = found.hessian @ v
    return replace(found, hessian=found.hessian - np.outer(slope, slope) / (v @ slope))


@cache
def differing() -> dict[str, Estimates]:
    ordinary = fitted("slope", "reml")[0].estimates
    nothing = np.full((3, 3), np.nan)
    return {
        "not finite": replace(ordinary, hessian=nothing),
        "ordinary": ordinary,
        "by ML": fitted("slope", "ml")[0].estimates,
        "infinite": replace(ordinary, log_rss_gradient=np.array([1e200, 0, 0])),
        "correlation of one": perfectly_correlated().estimates,
        "no slope": with_standard(ordinary, 0.7, 0.0, 0.0),
        "one direction": with_standard(ordinary, 0.0, 0.0, 0.4),
        "neither": with_standard(ordinary, 0.0, 0.0, 0.0),
        "flat": flattened(ordinary, 0.0, 1.0, -1.0),
        "no minimum": replace(
            ordinary, hessian=ordinary.hessian - 2 * np.diag(np.diagonal(ordinary.hessian))
        ),
        "undetermined": replace(ordinary, determined=np.array([True, False, True])),
        "not fitted": replace(
            with_standard(ordinary, *[np.nan] * 3),
            hessian=nothing,
            sigma=np.nan,
            free=np.zeros(3, dtype=bool),
        ),
    }


def test_each_of_many_models_has_the_inference_that_it_has_alone() -> None:
    models = differing()
    batch = variance_inference(together(list(models.values())))
    assert batch.values.shape == (len(models), 4)
    for number, found in enumerate(models.values()):
        alone = variance_inference(VarianceParameters.of(found))
        for field in fields(VarianceInference)[1:]:
            expected = vars_of(alone)[field.name][0]
            np.testing.assert_allclose(vars_of(batch)[field.name][number], expected, rtol=SAME_ALONE)
        assert batch.model(number).index == alone.index == batch.index


def vars_of(vi: VarianceInference) -> dict[str, Array]:
    return {
        "values": vi.values,
        "covariance": vi.covariance,
        "sd_corr": vi.sd_corr,
        "sd_corr_covariance": vi.sd_corr_covariance,
        "log_covariance": vi.log_covariance,
        "on_boundary": vi.on_boundary,
    }


def test_models_among_unlike_ones_agree_with_the_dense_likelihood() -> None:
    models = differing()
    batch = variance_inference(together(list(models.values())))
    for name, method in (("ordinary", "reml"), ("by ML", "ml")):
        close(batch.log_covariance[list(models).index(name)], oracle("slope", method))


def test_what_is_wrong_with_a_model_decides_which_standard_errors_it_lacks() -> None:
    models = differing()
    batch = variance_inference(together(list(models.values())))
    known = {name: ~np.isnan(np.diagonal(batch.covariance[n])) for n, name in enumerate(models)}
    # Intercept, their covariance, slope, residual.
    assert known["ordinary"].all()
    assert known["correlation of one"].all()
    assert known["no slope"].tolist() == [True, False, False, True]
    assert known["one direction"].all()
    assert known["neither"].tolist() == [False, False, False, True]
    for name in ("not finite", "infinite", "not fitted"):
        assert not known[name].any()
    at = list(models).index("not fitted")
    assert np.isnan(batch.values[at]).all()
    assert np.isnan(batch.sd_corr[at]).all()
    assert not batch.on_boundary[at].any()
    assert np.isnan(batch.log_covariance[at]).all()
    held = dict(zip(models, batch.on_boundary.tolist(), strict=True))
    assert held["ordinary"] == held["flat"] == held["not finite"] == [False] * 4
    assert held["correlation of one"] == held["one direction"] == [False, True, False, False]
    assert held["no slope"] == [False, True, True, False]
    assert held["neither"] == [True, True, True, False]


def test_columns_common_to_all_models_are_given_once() -> None:
    found = fitted("slope", "reml")[0].estimates
    each_own = together([found, with_standard(found, 0.7, -0.2, 0.3)])
    common = replace(each_own, frames=tuple(term.frame for term in found.terms))
    expected, shared = variance_inference(each_own), variance_inference(common)
    np.testing.assert_allclose(shared.covariance, expected.covariance, rtol=SAME_ALONE)
    np.testing.assert_allclose(shared.values, expected.values, rtol=SAME_ALONE)


def test_the_tables_of_many_models_are_those_of_each() -> None:
    models = differing()
    tables = variance_tables(variance_inference(together(list(models.values()))), level=0.9)
    for number, found in enumerate(models.values()):
        alone = variance_inference(VarianceParameters.of(found)).model(0)
        rows = variance_table(alone, found, level=0.9)
        assert set(rows) == {"group", "effect", "effect2", *tables}
        for name, columns in tables.items():
            np.testing.assert_allclose(columns[number], np.array(rows[name]), rtol=SAME_ALONE)


def parameters(hessian: Array, gradient: Array, free: Array, determined: Array, df: Array) -> Any:
    """Optima as `parameter_covariance` reads them: without terms."""
    return VarianceParameters(hessian, gradient, free, determined, df, np.ones(len(df)), (), (), ())


@pytest.mark.parametrize("k", [0, 1, 3, 8, 100])
def test_the_covariance_of_the_parameters_is_twice_the_inverse_hessian_of_those_that_are_free(
    k: int,
) -> None:
    rng = np.random.default_rng(k)
    B = 7
    root = rng.normal(size=(B, k, 2 * k + 1))
    H, u, df = root @ root.swapaxes(1, 2), 0.1 * rng.normal(size=(B, k)), rng.integers(5, 50, B)
    free, determined = rng.random((B, k)) < 0.8, rng.random((B, k)) < 0.9
    found = parameter_covariance(parameters(H, u, free, determined, df))
    for b in range(B):
        # In (theta, log sigma), from the gradient of 2 df log sigma + rss / sigma**2 at the optimum.
        full = np.block(
            [
                [H[b] + df[b] * np.outer(u[b], u[b]), -2 * df[b] * u[b][:, None]],
                [-2 * df[b] * u[b][None], np.array([[4.0 * df[b]]])],
            ]
        )
        keep = np.append(free[b] & determined[b], True)
        expected = np.zeros((k + 1, k + 1))
        expected[np.ix_(keep, keep)] = 2 * np.linalg.inv(full[np.ix_(keep, keep)])
        unknown = np.flatnonzero(free[b] & ~determined[b])
        expected[unknown, unknown] = np.nan
        np.testing.assert_allclose(found[b], expected, rtol=1e-9, atol=1e-13)


def test_a_flat_direction_takes_the_standard_errors_of_what_it_moves_in_its_model_only() -> None:
    # The first two parameters have unit curvatures and a smallest eigenvalue e; the third stands alone.
    smallest = np.array([1e-3, 2e-8, 0.5e-8, 0.0, -0.1, 0.5])
    H = np.zeros((6, 3, 3))
    H[:, 0, 0] = H[:, 1, 1] = 1
    H[:, 0, 1] = H[:, 1, 0] = 1 - smallest
    H[:, 2, 2] = 8
    every = np.ones((6, 3), dtype=bool)
    found = parameter_covariance(parameters(H, np.zeros((6, 3)), every, every, np.full(6, 10)))
    for e, C in zip(smallest, found, strict=True):
        assert C[2, 2] == pytest.approx(2 / 8)
        assert C[3, 3] == pytest.approx(2 / 40)
        assert C[2, 3] == pytest.approx(0, abs=1e-12)
        if e < 1e-8:
            assert np.isnan(C[:2]).all()
            assert np.isnan(C[:, :2]).all()
            continue
        inverse = np.array([[1, e - 1], [e - 1, 1]]) / (e * (2 - e))
        np.testing.assert_allclose(C[:2, :2], 2 * inverse, rtol=1e-6)


def test_hessians_beyond_numbers_give_nan_without_a_warning_and_spare_their_neighbours() -> None:
    H = np.tile(np.diag([2.0, 4.0]), (7, 1, 1))
    H[0, 0, 0] = np.nan
    H[1, 1, 1] = np.inf
    H[2] = np.diag([1e308, 1e308])
    H[3, 0, 1] = H[3, 1, 0] = -np.inf
    H[4] *= 0
    H[5, 0, 0] = -np.inf
    every = np.ones((7, 2), dtype=bool)
    u = np.zeros((7, 2))
    u[2] = 1e308
    found = parameter_covariance(parameters(H, u, every, every, np.full(7, 5)))
    for lost in (0, 1, 2, 3, 5):
        assert np.isnan(found[lost]).all()
    assert np.isnan(found[4, :2, :2]).all()
    assert found[4, 2, 2] == pytest.approx(2 / 20)
    np.testing.assert_allclose(found[6], np.diag([1.0, 0.5, 0.1]), rtol=1e-14)


@pytest.mark.parametrize("count", [0, 3])
def test_linear_models_have_a_residual_variance_only(count: int) -> None:
    none = np.zeros((count, 0))
    df, sigma = np.arange(10, 10 + count), np.linspace(1, 2, count)
    batch = variance_inference(
        VarianceParameters(np.zeros((count, 0, 0)), none, none > 0, none > 0, df, sigma, (), (), ())
    )
    assert batch.index == ((-1, 0, 0),)
    np.testing.assert_allclose(batch.values[:, 0], sigma**2)
    np.testing.assert_allclose(batch.covariance[:, 0, 0], 2 * sigma**4 / df)
    np.testing.assert_allclose(batch.log_covariance[:, 0, 0], 1 / (2 * df))


def test_no_models_at_all_give_empty_arrays() -> None:
    structure = covariance_structure("unstructured", 2)
    none = np.zeros((0, 3))
    batch = variance_inference(
        VarianceParameters(
            *(np.zeros((0, 3, 3)), none, none > 0, none > 0, np.zeros(0), np.zeros(0)),
            *((structure,), (none,), (np.eye(2),)),
        )
    )
    assert batch.covariance.shape == (0, 4, 4)
    assert variance_tables(batch)["conf_low"].shape == (0, 4)

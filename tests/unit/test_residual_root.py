"""Crossed random effects beside correlated residuals, against the dense likelihood."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import residual_pass
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.frame import build_frame
from jaxmixed.layout import arrange
from jaxmixed.likelihood import deviance
from jaxmixed.model import structures_of, terms_of
from jaxmixed.precision import double_precision
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_families import AnteDependence, Autoregressive, Family, Toeplitz, Unstructured
from jaxmixed.residual_groups import ResidualDesign
from jaxmixed.residual_root import pairs_of_groups
from jaxmixed.residual_statistics import CorrelatedRows, SuccessiveRows
from jaxmixed.statistics import SufficientStatistics, pad
from tests.support.compilation import QUICKLY
from tests.support.dense import Array, Block
from tests.support.dense_residuals import DenseResidualModel

ROUNDING = 1e-10
"""Of deviances by two routes, relative."""

TIMES = 4


@cache
def data() -> pd.DataFrame:
    """Patients, in centres, seen at up to four times by raters of whom each sees many."""
    rng = np.random.default_rng(4)
    rows = [
        (patient, time, rng.integers(5), rng.normal(), rng.uniform(0.5, 2.0))
        for patient in range(16)
        for time in range(TIMES)
        if rng.random() < 0.8
    ]
    table = pd.DataFrame(rows, columns=["patient", "time", "rater", "x", "w"])
    table["centre"] = table["patient"] % 4
    n, apart = len(table), np.subtract.outer(*[table["time"].to_numpy()] * 2)
    same = table["patient"].to_numpy()[:, None] == table["patient"].to_numpy()
    e = np.linalg.cholesky(np.where(same, 0.6 ** np.abs(apart), 0.0)) @ rng.normal(size=n)
    table["y"] = 1 + 0.5 * table["x"] + rng.normal(size=5)[table["rater"]] + e
    return table.sample(frac=1, random_state=1, ignore_index=True)


FAMILIES: dict[str, Family] = {
    "ar1": Autoregressive(1, TIMES - 1),
    "toeplitz": Toeplitz(TIMES - 1, TIMES - 1),
    "unstructured": Unstructured(TIMES),
    "antedependence": AnteDependence(TIMES),
}


def design(family: Family) -> ResidualDesign:
    """Within patients, with a standard deviation for each time and parameters of their own in two strata."""
    table = data()
    patient, time = table["patient"].to_numpy(), table["time"].to_numpy()
    covariance = ResidualCovariance(family, levels=TIMES, strata=2)
    stratum = (patient % 2).astype(np.int64)
    return ResidualDesign(covariance, patient, 16, time.astype(float), time, np.ones(len(table)), stratum)


@cache
def reduction(effects: str, family: str, weighted: bool) -> Reduction:
    own = design(FAMILIES[family])
    frame = build_frame(f"y ~ x + {effects}", data(), weights="w" if weighted else None)
    groupings, terms, _ = terms_of(frame.groups, structures_of(frame.groups, None))
    layout = arrange(groupings, own.codes)
    levels = {factor: level for level, factor in enumerate(layout.order)}
    return reduce_rows(
        frame.y,
        frame.X,
        [groupings[factor] for factor in layout.chain],
        tuple(replace(term, level=levels[term.level]) for term in terms),
        frame.weights,
        [groupings[factor] for factor in layout.root],
        own,
    )


def dense(found: Reduction) -> tuple[DenseResidualModel, ResidualDesign]:
    table, own = data(), found.design.residual
    assert own is not None
    groupings = (*found.design.groupings, *found.design.root)
    blocks = tuple(
        Block(groupings[t.level].Z[:, t.start : t.start + t.covariance.q], groupings[t.level].codes)
        for t in found.stats.terms
    )
    X = np.column_stack([np.ones(len(table)), table["x"]])
    return DenseResidualModel(table["y"].to_numpy(), X, blocks), own


def dense_deviance(found: Reduction, theta: Array, method: str = "reml") -> float:
    """From the covariance of all rows, each pair's correlation by the family's function of two times."""
    model, own = dense(found)
    k = own.covariance.num_params
    with double_precision():
        parts = own.covariance.parts(jnp.asarray(theta[len(theta) - k :]))
        every = [own.covariance.family.correlation(free, jnp.arange(TIMES * 1.0)) for free in parts.family]
        C, sds = np.stack([np.asarray(one) for one in every]), np.exp(np.asarray(parts.log_sd))
    n, R = len(model.y), np.zeros((len(model.y),) * 2)
    for group in range(own.size):
        rows = np.flatnonzero(own.codes == group)
        stratum, at = int(own.stratum[rows[0]]), own.levels[rows]
        sd = sds[stratum][at]
        R[np.ix_(rows, rows)] = sd[:, None] * C[stratum][np.ix_(at, at)] * sd
    weights = np.ones(n) if found.design.weights is None else found.design.weights
    R /= np.sqrt(np.outer(weights, weights))
    whole = DenseResidualModel(model.y, model.X, model.blocks, relative=R)
    covs, start = [], 0
    for term in found.stats.terms:
        T = term.covariance.factor(theta[start : start + term.covariance.num_params])
        covs.append(T @ T.T)
        start += term.covariance.num_params
    return -2 * whole.profiled(tuple(covs), method).llf  # type: ignore[arg-type]


def parameters(stats: SufficientStatistics) -> Array:
    return 0.4 * np.random.default_rng(stats.num_params).normal(size=stats.num_params)


CASES = [
    ("(1 + x | patient) + (1 | rater)", "ar1", True, SuccessiveRows, (1, 1)),
    ("(1 | centre/patient) + (1 + x | rater)", "antedependence", False, SuccessiveRows, (2, 1)),
    ("(1 | patient) + (1 | rater) + (1 | time)", "toeplitz", True, CorrelatedRows, (1, 2)),
    ("(1 | centre) + (1 + x | rater)", "unstructured", True, CorrelatedRows, (1, 1)),
    ("(1 | rater)", "unstructured", False, CorrelatedRows, (0, 1)),
]
QUICK = (CASES[0], CASES[3])


@pytest.mark.parametrize(
    ("effects", "family", "weighted", "kind", "levels"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_the_deviance_is_that_of_the_dense_model(
    effects: str, family: str, weighted: bool, kind: type, levels: tuple[int, int]
) -> None:
    found = reduction(effects, family, weighted)
    assert (len(found.design.groupings), len(found.design.root)) == levels
    assert isinstance(found.compact.residual, kind)
    assert isinstance(found.stats.residual, CorrelatedRows)
    theta = parameters(found.stats)
    expected = dense_deviance(found, theta)
    forms = [pad(found.compact)] + ([found.stats] if kind is SuccessiveRows else [])
    with double_precision():
        for stats in forms:
            value = jax.jit(deviance, compiler_options=QUICKLY)(theta, stats)
            assert float(value) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.slow
def test_the_derivatives_are_those_of_the_dense_model() -> None:
    found = reduction(*CASES[2][:3])
    theta, h = parameters(found.stats), 1e-5
    with double_precision():
        gradient = np.asarray(jax.jit(jax.grad(deviance), compiler_options=QUICKLY)(theta, found.compact))
    steps = h * np.eye(len(theta))
    numeric = [dense_deviance(found, theta + e) - dense_deviance(found, theta - e) for e in steps]
    np.testing.assert_allclose(gradient, np.array(numeric) / (2 * h), rtol=1e-6, atol=1e-6)


def test_long_series_list_no_pairs_of_distant_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    effects, family, weighted, *_ = CASES[1]
    few = reduction(effects, family, weighted)
    monkeypatch.setattr(residual_pass, "MOST_PAIRS", 10)
    own = reduction.__wrapped__(effects, family, weighted)
    assert isinstance(own.stats.residual, SuccessiveRows)
    assert isinstance(few.stats.residual, CorrelatedRows)
    assert own.stats.residual.root is not None
    n, slots = len(data()), 3
    assert np.count_nonzero(own.stats.residual.root.weight) <= 2 * n * slots**2


def test_each_pair_of_rows_of_a_group_is_listed_once() -> None:
    left, right, place = pairs_of_groups(np.array([[3, 5, 4], [0, 2, 1]]), 3, 2, 1)
    assert list(zip(left.tolist(), right.tolist(), strict=True))[:6] == [
        (3, 3), (3, 5), (3, 4), (5, 5), (5, 4), (4, 4)
    ]  # fmt: skip
    assert left[6:].tolist() == [0, 0, 0, 2, 2, 1]
    P = np.arange(18).reshape(3, 3, 2)
    assert P.ravel()[place[:6]].tolist() == P[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2], 1].tolist()
    assert (place[:6] == place[6:]).all()


@pytest.fixture(scope="module")
def fit() -> jm.MixedResults:
    return jm.mixed(
        "y ~ x + (1 | patient) + (1 | rater)", data(), residuals="ar1(time | patient)", weights="w"
    )


@cache
def same_patient() -> tuple[Array, Array]:
    patient, time = data()["patient"].to_numpy(), data()["time"].to_numpy()
    return patient[:, None] == patient, np.abs(time[:, None] - time)


@pytest.mark.slow
def test_a_fit_with_crossed_effects_is_a_maximum_of_the_dense_likelihood(fit: jm.MixedResults) -> None:
    """Value, gradient, effects and their errors, degrees of freedom, and the adjusted standard errors."""
    assert fit.converged
    (same, lag), w = same_patient(), data()["w"].to_numpy()
    found = reduction(*CASES[0][:3])  # only for its X
    X, y = dense(found)[0].X, data()["y"].to_numpy()
    blocks = [Block(np.ones((len(y), 1)), data()[name].to_numpy()) for name in ("patient", "rater")]
    Z = [block.covariance(np.eye(1)) for block in blocks]
    estimates = fit.varcorr["estimate"].to_numpy()
    x = np.append(estimates, fit.residual_parameters["phi1"])
    assert fit.varcorr["group"].tolist() == ["patient", "rater", "Residual"]
    weight = np.sqrt(np.outer(w, w))

    def slopes(x: Array) -> list[Array]:
        """Derivatives of V in the two variances, sigma squared and phi; the last one's in the last two."""
        phi = x[3]
        R = np.where(same, phi**lag, 0.0) / weight
        first = np.where(same & (lag > 0), lag * phi ** np.maximum(lag - 1.0, 0), 0.0) / weight
        second = np.where(same & (lag > 1), lag * (lag - 1) * phi ** np.maximum(lag - 2.0, 0), 0.0) / weight
        return [*Z, R, x[2] * first, first, x[2] * second]

    D = slopes(x)
    model = DenseResidualModel(y, X, tuple(blocks), relative=D[2])
    covs, sigma = (x[:1, None], x[1:2, None]), float(np.sqrt(x[2]))
    assert model.loglik(covs, sigma, "reml") == pytest.approx(fit.llf, rel=1e-12)
    V = model.covariance(covs, sigma)
    gls, inverse = model.gls(V), np.linalg.inv(V)
    P = inverse - inverse @ X @ gls.cov @ X.T @ inverse
    u = P @ y
    np.testing.assert_allclose([np.trace(P @ A) - u @ A @ u for A in D[:4]], 0, atol=1e-5)
    np.testing.assert_allclose(fit.params, gls.beta, rtol=1e-9)
    for k, name in enumerate(("patient", "rater")):
        np.testing.assert_allclose(fit.ranef()[name], model.blups(k, covs, sigma), atol=1e-9)
        known = np.sqrt(model.blup_cov(k, covs, sigma, "known")[:, 0])
        np.testing.assert_allclose(fit.ranef_se()[name], known, rtol=1e-8)

    bent = {(2, 3): D[4], (3, 2): D[4], (3, 3): D[5]}
    expected = np.array([[np.trace(P @ A @ P @ B) / 2 for B in D[:4]] for A in D[:4]])
    observed = np.array([[u @ A @ P @ B @ u for B in D[:4]] for A in D[:4]]) - expected
    for (i, j), A in bent.items():
        observed[i, j] += (np.trace(P @ A) - u @ A @ u) / 2
    first = [inverse @ X @ gls.cov[:, a] for a in range(2)]
    gradients = np.array([[own @ A @ own for A in D[:4]] for own in first])
    errors = np.linalg.inv(observed)
    df = 2 * np.diagonal(gls.cov) ** 2 / np.einsum("ai,ij,aj->a", gradients, errors, gradients)
    np.testing.assert_allclose(fit.coef_table(ddf="satterthwaite")["df"], df, rtol=1e-5)

    # Kenward & Roger (1997), Biometrics 53, section 2: with the second derivatives of V.
    W, XV, total = np.linalg.inv(expected), inverse @ X, np.zeros((2, 2))
    for i, A in enumerate(D[:4]):
        for j, B in enumerate(D[:4]):
            Q = XV.T @ A @ inverse @ B @ XV - (XV.T @ A @ XV) @ gls.cov @ (XV.T @ B @ XV)
            Q = Q - XV.T @ bent[i, j] @ XV / 4 if (i, j) in bent else Q
            total += W[i, j] * Q
    adjusted = np.sqrt(np.diagonal(gls.cov + 2 * gls.cov @ total @ gls.cov))
    np.testing.assert_allclose(fit.coef_table(ddf="kenward-roger")["std_error"], adjusted, rtol=1e-7)

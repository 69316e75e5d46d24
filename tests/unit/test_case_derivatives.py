"""Derivatives in how often cases count, against differences of dense likelihoods with frequencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.case_derivatives import CaseDerivatives, Cases, Rows, case_derivatives
from jaxmixed.predict import group_contribution
from jaxmixed.prediction_error import error_model


def fitted_rows(fit: jm.MixedResults) -> Rows:
    groups = [fit.frame.groups[term.frame_index] for term in fit.estimates.terms]
    terms = [(i, group.Z, group.codes) for i, group in enumerate(groups)]
    modes = fit._modes
    return Rows(
        X=fit.frame.X,
        terms=terms,
        weights=np.ones(fit.nobs) if fit.frame.weights is None else fit.frame.weights,
        resid=fit.resid.to_numpy(),
        contributions=[group_contribution(Z, codes, modes[i]) for i, Z, codes in terms],
    )


def cases_of(fit: jm.MixedResults, grouping: str | None) -> Cases:
    if grouping is None:
        return Cases(np.arange(fit.nobs), fit.nobs)
    position = next(i for i, term in enumerate(fit.estimates.terms) if term.group == grouping)
    group = fit.frame.groups[fit.estimates.terms[position].frame_index]
    level = fit.state.stats.terms[position].level
    return Cases(group.codes, len(group.levels), level, np.asarray(fit.state.positions[level]))


def derivatives(fit: jm.MixedResults, cases: Cases) -> CaseDerivatives:
    return case_derivatives(error_model(fit.state, fit.estimates), fit.estimates, fitted_rows(fit), cases)


class Found(NamedTuple):
    """What a dense model gives at variance parameters x, the fixed effects and sigma profiled out."""

    deviance: float
    log_sigma: float
    beta: np.ndarray
    log_det_cov: float


class Dense:
    """Dense likelihood in which each case counts so often, its own effects copied with it."""

    def __init__(self, fit: jm.MixedResults, cases: Cases) -> None:
        self.fit, self.cases, rows = fit, cases, fitted_rows(fit)
        frame, estimates = fit.frame, fit.estimates
        self.kept = ~np.isnan(estimates.beta)
        self.y = frame.y if frame.offset is None else frame.y - frame.offset
        self.X, self.weights = frame.X[:, self.kept], rows.weights
        self.wide, self.own = [], []
        chain = len(fit.state.stats.levels)
        for position, Z, codes in rows.terms:
            m = int(codes.max()) + 1
            wide = np.zeros((len(Z), m, Z.shape[1]))
            wide[np.arange(len(Z)), codes] = Z
            self.wide.append(wide.reshape(len(Z), -1))
            level, case = fit.state.stats.terms[position].level, cases.level
            inside = case is not None and (level <= case if case < chain else level == case)
            self.own.append(inside)

    def relative(self, x: np.ndarray) -> list[np.ndarray]:
        """Relative factor of every term, in the units of the data."""
        found, start = [], 0
        for term in self.fit.estimates.terms:
            stop = start + term.covariance.num_params
            found.append(term.frame @ np.asarray(term.covariance.factor(x[start:stop])))
            start = stop
        return found

    def __call__(self, x: np.ndarray, f: np.ndarray) -> Found:
        factors = self.relative(x)
        spherical = [
            wide @ np.kron(np.eye(wide.shape[1] // len(T)), T)
            for wide, T in zip(self.wide, factors, strict=True)
        ]
        n = len(self.y)
        own = np.hstack(
            [np.zeros((n, 0)), *(Z for Z, is_own in zip(spherical, self.own, strict=True) if is_own)]
        )
        rest = np.hstack(
            [np.zeros((n, 0)), *(Z for Z, is_own in zip(spherical, self.own, strict=True) if not is_own)]
        )
        columns = np.column_stack([rest, self.X, self.y])
        products, logdet = np.zeros((columns.shape[1],) * 2), 0.0
        for case in range(self.cases.count):
            at = self.cases.codes == case
            V = np.diag(1 / self.weights[at]) + own[at] @ own[at].T
            products += f[case] * columns[at].T @ np.linalg.solve(V, columns[at])
            logdet += f[case] * (np.linalg.slogdet(V)[1])
        R, p = rest.shape[1], self.X.shape[1]
        M = np.eye(R) + products[:R, :R]
        S = products[R:, R:] - products[R:, :R] @ np.linalg.solve(M, products[:R, R:])
        logdet += np.linalg.slogdet(M)[1]
        beta = np.linalg.solve(S[:p, :p], S[:p, p])
        rss = S[p, p] - S[p, :p] @ beta
        nobs = np.bincount(self.cases.codes) @ f
        df = nobs - p if self.fit.method == "reml" else nobs
        deviance = logdet + df * (1 + np.log(2 * np.pi * rss / df))
        logdet_x = np.linalg.slogdet(S[:p, :p])[1]
        if self.fit.method == "reml":
            deviance += logdet_x
        log_sigma = 0.5 * np.log(rss / df)
        return Found(deviance, log_sigma, beta, 2 * p * log_sigma - logdet_x)

    def moves(self, case: int) -> Found:
        """Derivatives of the estimates, those of the variance parameters by the implicit function theorem."""
        x = np.concatenate([np.zeros(0), *(term.standard for term in self.fit.estimates.terms)])
        free = np.flatnonzero(self.fit.estimates.free)
        at = np.append(x[free], 1.0)

        def evaluate(point: np.ndarray) -> Found:
            theta, f = x.copy(), np.ones(self.cases.count)
            theta[free], f[case] = point[:-1], point[-1]
            return self(theta, f)

        H = second_differences(lambda point: evaluate(point).deviance, at)
        self.direction = np.zeros(len(x))
        self.direction[free] = -np.linalg.solve(H[:-1, :-1], H[:-1, -1])
        along = np.append(self.direction[free], 1.0)
        h = 1e-4
        ends = [evaluate(at + step * h * along) for step in (1, -1)]
        slopes = [(high - low) / (2 * h) for high, low in zip(*ends, strict=True)]
        return Found(*slopes)


def second_differences(f: Callable[[np.ndarray], float], at: np.ndarray, h: float = 2e-3) -> np.ndarray:
    """Hessian by central differences, extrapolated once."""

    def hessian(step: float) -> np.ndarray:
        k = len(at)
        found, moves = np.empty((k, k)), step * np.eye(k)
        for i in range(k):
            for j in range(k):
                corners = [a * b * f(at + a * moves[i] + b * moves[j]) for a in (1, -1) for b in (1, -1)]
                found[i, j] = sum(corners) / (4 * step**2)
        return found

    return (4 * hessian(h) - hessian(2 * h)) / 3


def nested_and_crossed(seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 72
    school = np.repeat(np.arange(6), 12)
    data = pd.DataFrame({"school": school, "room": school * 3 + np.tile(np.repeat(np.arange(3), 4), 6)})
    data["item"], data["x"] = rng.integers(0, 5, n), rng.normal(size=n)
    data["w"] = rng.uniform(0.5, 2.0, n)
    effects = (
        1.5 * rng.normal(size=6)[school]
        + rng.normal(size=18)[data["room"]]
        + rng.normal(size=5)[data["item"]]
    )
    data["y"] = 1 + data["x"] * (1 + rng.normal(size=6)[school]) + effects + rng.normal(size=n)
    return data.iloc[rng.permutation(n)[:66]].reset_index(drop=True)


MODELS: dict[str, tuple[str, dict[str, Any], Sequence[str | None]]] = {
    "slopes": ("y ~ x + (x | school)", {}, (None, "school")),
    "nested": ("y ~ x + (1 | school/room)", {"weights": "w"}, (None, "school:room", "school")),
    "crossed": (
        "y ~ x + (1 | school) + (1 | room) + (1 + x || item)",
        {"method": "ml"},
        (None, "room", "school", "item"),
    ),
    "linear": ("y ~ x", {}, (None,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_dense_likelihood(name: str) -> None:
    formula, options, groupings = MODELS[name]
    fit = jm.mixed(formula, nested_and_crossed(), **options)
    for grouping in groupings:
        cases = cases_of(fit, grouping)
        found, dense = derivatives(fit, cases), Dense(fit, cases)
        for case in (0, cases.count - 1):
            want = dense.moves(case)
            scale = 1e-5
            np.testing.assert_allclose(found.standard[case], dense.direction, rtol=scale, atol=scale)
            np.testing.assert_allclose(found.beta[case], want.beta, rtol=scale, atol=scale)
            np.testing.assert_allclose(found.log_sigma[case], want.log_sigma, rtol=scale, atol=scale)
            np.testing.assert_allclose(found.log_det_cov[case], want.log_det_cov, rtol=scale, atol=scale)
            np.testing.assert_allclose(found.deviance[case], want.deviance, rtol=scale)


def test_a_copy_of_every_case_is_a_larger_sample() -> None:
    # Doubling all groups halves Cov(beta) and leaves the ML estimates as they are.
    fit = jm.mixed("y ~ x + (1 | school)", nested_and_crossed(), method="ml")
    found = derivatives(fit, cases_of(fit, "school"))
    np.testing.assert_allclose(found.standard.sum(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(found.beta.sum(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(found.log_sigma.sum(), 0, atol=1e-8)
    np.testing.assert_allclose(found.log_det_cov.sum(), -2, atol=1e-8)
    np.testing.assert_allclose(found.deviance.sum(), fit.deviance, rtol=1e-12)


def test_leverages_add_up_to_the_effective_number_of_parameters() -> None:
    data = nested_and_crossed()
    fit = jm.mixed("y ~ x + (1 | school/room)", data, weights="w")
    frame, sigma = fit.frame, fit.sigma
    Z = np.column_stack([pd.get_dummies(data[name]).to_numpy(float) for name in ("room", "school")])
    variances = {term.group: term.cov[0, 0] for term in fit.estimates.terms}
    precision = np.repeat([variances["school:room"], variances["school"]], [18, 6])
    columns, W = np.column_stack([frame.X, Z]), np.diag(frame.weights)
    penalty = np.diag(np.append(np.zeros(2), sigma**2 / precision))
    hat = columns @ np.linalg.solve(columns.T @ W @ columns + penalty, columns.T @ W)
    found = derivatives(fit, cases_of(fit, None))
    np.testing.assert_allclose(found.leverage, np.diag(hat), rtol=1e-8)
    by_school = derivatives(fit, cases_of(fit, "school"))
    assert by_school.leverage.sum() == pytest.approx(np.trace(hat))


def test_parameters_on_the_boundary_stay_there() -> None:
    with pytest.warns(jm.SingularFitWarning):
        fit = jm.mixed("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"))
    found = derivatives(fit, cases_of(fit, "Batch"))
    assert not found.standard.any()
    ols = jm.mixed("Yield ~ 1", jm.datasets.load("dyestuff2"))
    rows, alone = derivatives(fit, cases_of(fit, None)), derivatives(ols, cases_of(ols, None))
    np.testing.assert_allclose(rows.beta, alone.beta, atol=1e-12)
    np.testing.assert_allclose(rows.log_sigma, alone.log_sigma, atol=1e-12)

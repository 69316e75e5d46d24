"""Residuals of every kind and leverages: dense matrices, R's lme4 and lm."""

from __future__ import annotations

import numpy as np
import pytest

import jaxmixed as jm
from tests.support.dense import Array
from tests.support.dense_predictions import DensePredictions, dense_predictions
from tests.support.fits import fit, quietly, sleepstudy, two_terms
from tests.support.school_fits import crossed, nested, related, schools, singular

ROUNDING = 1e-8
ROWS = [0, 9, 56]

OPTIMA = 1e-6
"""Relative: what two optima leave, R's with its optimiser's steps down to 1e-12."""


def residual_covariance(found: DensePredictions, terms: list[int]) -> Array:
    """Covariance of y less its prediction from some terms, as a linear function of y."""
    model, V = found.model, found.model.covariance(found.covs, found.sigma)
    inverse = np.linalg.inv(V)
    to_beta = found.model.gls(V).cov @ model.X.T @ inverse
    rest = inverse @ (np.eye(len(V)) - model.X @ to_beta)
    hat = model.X @ to_beta
    for i in terms:
        hat = hat + model.blocks[i].covariance(found.covs[i]) @ rest
    keep = np.eye(len(V)) - hat
    return keep @ V @ keep.T


def test_leverages_are_lme4s() -> None:
    # lme4 1.1-31: hatvalues(lmer(Reaction ~ Days + (Days | Subject), sleepstudy)), then weights 1, 2, 4, ...
    found = sleepstudy().leverage()
    np.testing.assert_allclose(found.sum(), 29.0220672578, rtol=OPTIMA)
    np.testing.assert_allclose(
        found.iloc[ROWS], [0.229303002393, 0.293176980144, 0.121876227806], rtol=OPTIMA
    )
    np.testing.assert_allclose(weighted().leverage().sum(), 27.1111842341, rtol=OPTIMA)
    expected = [0.0932693145568, 0.1300010253390, 0.1875743374394]
    np.testing.assert_allclose(weighted().leverage().iloc[ROWS], expected, rtol=OPTIMA)


def weighted() -> jm.MixedResults:
    data = jm.datasets.load("sleepstudy").assign(w=np.tile([1.0, 2.0, 4.0], 60))
    return quietly("Reaction ~ Days + (Days | Subject)", data, weights="w")


def test_studentized_residuals_are_lme4s_rstudent() -> None:
    # rstudent(lmer(...)), which studentizes internally
    found = sleepstudy().residuals("studentized").iloc[ROWS]
    np.testing.assert_allclose(found, [-0.182654175038, 1.658948128107, 5.527001091988], rtol=OPTIMA)
    found = weighted().residuals("studentized").iloc[ROWS]
    np.testing.assert_allclose(found, [-0.117048711957, 0.826486922698, 6.982025280008], rtol=OPTIMA)


def test_working_and_deviance_residuals_are_lme4s() -> None:
    # residuals(m, type = ...), the weights' roots being 1, sqrt(2) and 2
    working, deviance = (weighted().residuals(kind).iloc[:4] for kind in ("working", "deviance"))
    np.testing.assert_allclose(
        working, [-4.71709035222, -15.51132539129, -43.35436043036, 7.34590453057], rtol=1e-6
    )
    expected = working * np.sqrt([1.0, 2.0, 4.0, 1.0])
    np.testing.assert_allclose(deviance, expected, rtol=1e-12)


def test_a_linear_model_has_rs_residuals_and_leverages() -> None:
    # R 4.2.2: rstandard, rstudent, hatvalues of lm(Reaction ~ Days, sleepstudy), unweighted and weighted
    data = jm.datasets.load("sleepstudy").assign(w=np.tile([1.0, 2.0, 4.0], 60))
    plain, by_weight = fit("sleepstudy", "Reaction ~ Days"), quietly("Reaction ~ Days", data, weights="w")
    for found, standard, student, hat in (
        (plain, [-0.0390460094553, 2.9435466281963], [-0.0389363419221, 3.0094248521923], 0.00707070707071),
        (
            by_weight,
            [-0.0323557318176, 3.7602202371035],
            [-0.0322648118022, 3.9080710856606],
            0.01212121212121,
        ),
    ):
        np.testing.assert_allclose(found.residuals("studentized").iloc[[0, 56]], standard, rtol=1e-9)
        np.testing.assert_allclose(found.residuals("deleted").iloc[[0, 56]], student, rtol=1e-9)
        np.testing.assert_allclose(found.leverage().iloc[56], hat, rtol=1e-9)
    same = plain.residuals("standardized")
    np.testing.assert_allclose(plain.residuals("scaled"), same, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "random"),
    [
        (nested, True),
        (nested, "school"),
        (nested, False),
        (crossed, True),
        (crossed, False),
        (singular, True),
    ],
)
def test_studentized_residuals_are_divided_by_their_own_standard_deviation(make, random: bool | str) -> None:
    found = dense_predictions(make())
    groups = {True: {"school", "class", "item", "Batch"}, "school": {"school"}, False: set()}[random]
    terms = [i for i, term in enumerate(make().estimates.terms) if term.group in groups]
    expected = make().residuals(random=random) / np.sqrt(np.diagonal(residual_covariance(found, terms)))
    np.testing.assert_allclose(make().residuals("studentized", random), expected, rtol=ROUNDING)
    np.testing.assert_allclose(
        make().residuals(random=random), make().frame.y - make().predict(random=random), atol=1e-12
    )


def test_marginal_standardized_residuals_are_divided_by_the_standard_deviation_of_the_response() -> None:
    found = dense_predictions(nested())
    V = found.model.covariance(found.covs, found.sigma)
    expected = nested().residuals(random=False) / np.sqrt(np.diagonal(V))
    np.testing.assert_allclose(nested().residuals("standardized", False), expected, rtol=1e-12)


def test_deleted_residuals_are_those_of_fits_without_the_row_at_the_same_relative_variances() -> None:
    found = dense_predictions(nested())
    relative, y = tuple(cov / found.sigma**2 for cov in found.covs), nested().frame.y
    V = found.model.covariance(relative, 1.0)
    n, p = found.model.X.shape
    deleted, conditional = nested().residuals("deleted"), nested().residuals()
    hat = nested().leverage()
    for row in (0, 7, 100):
        keep = np.arange(n) != row
        X, rest = found.model.X[keep], V[np.ix_(keep, keep)]
        inverse = np.linalg.inv(rest)
        beta = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ y[keep])
        r = y[keep] - X @ beta
        sigma = np.sqrt(r @ inverse @ r / (n - 1 - p))
        expected = conditional.iloc[row] / (sigma * np.sqrt((1 - hat.iloc[row]) / schools()["w"][row]))
        assert deleted.iloc[row] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("make", [nested, two_terms, singular], ids=lambda make: make.__name__)
def test_scaled_residuals_are_solved_by_choleskys_factor(make) -> None:
    found, fitted = dense_predictions(make()), make()
    # Rows by outermost group, those of an inner group together, else in their own order.
    codes = {group.label: group.codes for group in fitted.frame.groups}
    keys = [np.arange(fitted.nobs), *(codes[label] for label in fitted.ngroups)]
    order = np.lexsort(keys)
    V = found.model.covariance(found.covs, found.sigma)[np.ix_(order, order)]
    marginal = fitted.residuals(random=False).to_numpy()[order]
    expected = np.linalg.solve(np.linalg.cholesky(V), marginal)
    np.testing.assert_allclose(fitted.residuals("scaled").to_numpy()[order], expected, atol=1e-9)


def test_scaled_residuals_sum_to_the_generalised_residual_sum_of_squares() -> None:
    found = sleepstudy()
    df = found.estimates.df  # of sigma, whose estimate makes the sum equal to them
    assert (found.residuals("scaled") ** 2).sum() == pytest.approx(df, rel=1e-9)


@pytest.mark.parametrize("make", [crossed, related], ids=lambda make: make.__name__)
def test_scaled_residuals_of_crossed_or_related_groups_are_refused(make) -> None:
    with pytest.raises(jm.DesignError, match=r"need nested groups of independent levels: .*'item'"):
        make().residuals("scaled")


def test_a_row_that_is_fitted_exactly_has_no_studentized_residual() -> None:
    data = jm.datasets.load("sleepstudy").assign(first=lambda d: np.arange(len(d)) == 0)
    found = quietly("Reaction ~ Days + first + (1 | Subject)", data)
    assert found.leverage().iloc[0] == pytest.approx(1.0)
    for kind in ("studentized", "deleted"):
        assert np.isnan(found.residuals(kind).iloc[0])
        assert found.residuals(kind).iloc[1:].notna().all()


def test_mistakes_are_named() -> None:
    with pytest.raises(jm.DataError, match=r"residuals\(\) gives 'response', 'working', 'pearson'"):
        sleepstudy().residuals("partial")
    with pytest.raises(
        jm.DataError, match="deleted residuals are of conditional residuals and take no random="
    ):
        sleepstudy().residuals("deleted", random=False)
    with pytest.raises(jm.DataError, match="scaled residuals are made from marginal"):
        sleepstudy().residuals("scaled", random="Subject")
    with pytest.raises(jm.DataError, match="random is 'school'"):
        sleepstudy().residuals(random="school")

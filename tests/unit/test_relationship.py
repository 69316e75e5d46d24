"""Known relationships between levels, against a dense likelihood with A ⊗ G, and published values."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import layout
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.draws import EFFECTS_STREAM, Draws, random_effects
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, FormulaError
from jaxmixed.frame import build_frame
from jaxmixed.layout import Grouping
from jaxmixed.model import structures_of, terms_of
from jaxmixed.precision import double_precision
from jaxmixed.relationship import known
from jaxmixed.replicates import response_source
from jaxmixed.root import Root, level_basis, reflect_both, reflect_rows, to_levels
from tests.support.dense import Block, DenseModel

EXACT = 1e-9
"""Relative difference of two routes to one number, both in float64 and well conditioned."""

FLAT = 2e-6
"""Largest slope of the dense deviance at an optimum, by central differences of step 1e-4 (error 1e-8) and
less than the optimiser's tolerance."""

BY_DIFFERENCES = 2e-4
"""Relative error of standard errors from second differences of the dense deviance."""

PRINTED = 0.0006
"""Half a unit of the last printed digit of three, and its rounding."""


def additive(sire: list[int | None], dam: list[int | None]) -> np.ndarray:
    """Additive relationships of a pedigree, parents before offspring (the tabular method)."""
    A = np.zeros((len(sire), len(sire)))
    for i, parents in enumerate(zip(sire, dam, strict=True)):
        present = [p for p in parents if p is not None]
        for j in range(i):
            A[i, j] = A[j, i] = 0.5 * sum(A[j, p] for p in present)
        A[i, i] = 1 + (0.5 * A[parents[0], parents[1]] if len(present) == 2 else 0)
    return A


@cache
def pedigree() -> np.ndarray:
    """Four founders and twelve descendants, some of them inbred."""
    rng = np.random.default_rng(5)
    parents = [sorted(rng.choice(i, 2, replace=False).tolist()) for i in range(4, 16)]
    return additive([None] * 4 + [p[0] for p in parents], [None] * 4 + [p[1] for p in parents])


IDS = [f"id{number:02d}" for number in range(16)]


@cache
def clones() -> np.ndarray:
    """A singular matrix: the last two of the sixteen are copies of the two before."""
    A = pedigree()
    order = [*range(14), 12, 13]
    return A[np.ix_(order, order)]


def data_of(repeats: int, A: np.ndarray | None = None, seed: int = 0) -> pd.DataFrame:
    """Records of the twelve descendants, in herds and litters, with effects drawn from the model."""
    rng = np.random.default_rng(seed)
    animal = np.tile(np.arange(4, 16), repeats)
    root = np.linalg.cholesky((pedigree() if A is None else A) + 1e-9 * np.eye(16))
    herd = rng.permutation(np.arange(len(animal)) % 4)
    litter = rng.integers(0, 3, len(animal))
    x = rng.normal(size=len(animal))
    a, slopes = root @ rng.normal(size=16), root @ rng.normal(size=16)
    y = (
        3
        + x
        + 1.5 * a[animal]
        + 0.7 * slopes[animal] * x
        + rng.normal(size=4)[herd]
        + rng.normal(size=len(x))
    )
    return pd.DataFrame(
        {
            "y": y,
            "x": x,
            "animal": np.array(IDS)[animal],
            "copy": animal,
            "herd": herd,
            "litter": [f"{h}.{k}" for h, k in zip(herd, litter, strict=True)],
        }
    )


def dense_of(fit: jm.MixedResults) -> DenseModel:
    frame = fit.frame
    blocks = tuple(
        Block(group.Z, group.codes, None if group.relationship is None else group.relationship.matrix)
        for group in (frame.groups[term.frame_index] for term in fit.estimates.terms)
    )
    return DenseModel(frame.y, frame.X, blocks, frame.weights)


def relative_covariances(fit: jm.MixedResults, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    found, start = [], 0
    for term in fit.estimates.terms:
        q = len(term.names)
        T = np.zeros((q, q))
        columns, rows = np.triu_indices(q)
        T[rows, columns] = theta[start : start + len(rows)]
        start += len(rows)
        found.append(T @ T.T)
    return tuple(found)


def check_fit(fit: jm.MixedResults) -> None:
    """Deviance, a flat dense deviance at the optimum, fixed effects, BLUPs and their variances."""
    dense, method, sigma = dense_of(fit), fit.method, float(fit.sigma)
    theta = np.asarray(fit.theta)

    def deviance(at: np.ndarray) -> float:
        return -2 * dense.profiled(relative_covariances(fit, at), method).llf

    at = dense.profiled(relative_covariances(fit, theta), method)
    assert fit.deviance == pytest.approx(-2 * at.llf, rel=EXACT)
    assert sigma == pytest.approx(at.sigma, rel=EXACT)
    np.testing.assert_allclose(fit.params, at.beta, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(fit.cov_params(), at.cov_beta, rtol=1e-8)
    for j, step in enumerate(1e-4 * np.eye(len(theta))):
        slope = (deviance(theta + step) - deviance(theta - step)) / 2e-4
        assert abs(slope) < FLAT or theta[j] == 0
    covs = tuple(np.asarray(term.cov) for term in fit.estimates.terms)
    modes, errors, prediction = fit.ranef(), fit.ranef_se("known"), fit.ranef_se("estimated")
    for k, term in enumerate(fit.estimates.terms):
        expected = dense.blups(k, covs, sigma)
        scale = np.abs(expected).max()
        columns = list(term.names)
        np.testing.assert_allclose(modes[term.group][columns], expected, atol=1e-8 * scale, rtol=1e-7)
        for table, beta in ((errors, "known"), (prediction, "estimated")):
            variances = np.diagonal(dense.blup_cov(k, covs, sigma, beta), axis1=1, axis2=2)  # type: ignore[arg-type]
            np.testing.assert_allclose(table[term.group][columns], np.sqrt(variances), rtol=1e-6)


def fitted(formula: str, data: pd.DataFrame, A: np.ndarray | None = None, **options: Any) -> jm.MixedResults:
    own = known(pedigree() if A is None else A, IDS)
    return jm.mixed(formula, data, covariance={"animal": own}, **options)


@cache
def repeated() -> jm.MixedResults:
    return fitted("y ~ x + (1 | animal)", data_of(3))


# The likelihood


def test_repeated_records_with_ancestors_that_have_none() -> None:
    fit = repeated()
    check_fit(fit)
    assert fit.ranef()["animal"].index.tolist() == IDS[4:] + IDS[:4]
    assert (fit.ranef_se()["animal"] > 0).all(axis=None)


def test_one_record_for_each_animal() -> None:
    check_fit(fitted("y ~ x + (1 | animal)", data_of(1, seed=20), method="ml"))


def test_a_singular_matrix_gives_clones_the_same_effects() -> None:
    fit = fitted("y ~ x + (1 | animal)", data_of(3, clones()), clones())
    check_fit(fit)
    modes = fit.ranef()["animal"]["(Intercept)"]
    assert modes["id12"] == pytest.approx(modes["id14"], rel=EXACT)


def test_weights_enter_as_for_independent_levels() -> None:
    data = data_of(3)
    check_fit(fitted("y ~ x + (1 | animal)", data, weights=np.linspace(0.5, 3, len(data))))


def test_a_genomic_matrix_of_few_markers_has_no_shared_direction() -> None:
    markers = np.random.default_rng(1).normal(size=(16, 6))
    markers -= markers.mean(axis=0)
    check_fit(fitted("y ~ x + (1 | animal)", data_of(3), markers @ markers.T / 6))


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_the_unit_of_the_matrix_only_changes_that_of_the_variance(scale: float) -> None:
    fit = fitted("y ~ x + (1 | animal)", data_of(3), scale * pedigree())
    assert float(fit.llf) == pytest.approx(float(repeated().llf), rel=EXACT)
    assert fit.theta[0] * np.sqrt(scale) == pytest.approx(repeated().theta[0], rel=1e-6)


@pytest.mark.slow
def test_two_crossed_groupings_that_are_both_related() -> None:
    neighbours = np.array([[1, 0.5, 0, 0], [0.5, 1, 0.5, 0], [0, 0.5, 1, 0.5], [0, 0, 0.5, 1]])
    own = {"animal": known(pedigree(), IDS), "herd": known(neighbours, range(4))}
    check_fit(jm.mixed("y ~ x + (1 | animal) + (1 | herd)", data_of(3), covariance=own))


@pytest.mark.slow
def test_the_permanent_environment_of_the_same_animals() -> None:
    fit = fitted("y ~ x + (1 | animal) + (1 | copy)", data_of(4, seed=7))
    check_fit(fit)
    smaller = fitted("y ~ x + (1 | animal)", data_of(4, seed=7))
    plain = jm.mixed("y ~ x + (1 | copy)", data_of(4, seed=7))
    for small in (smaller, plain):
        assert jm.lrtest(small, fit).df == 1
    with pytest.raises(DesignError, match="neither is a special case of the other"):
        jm.lrtest(plain, smaller)


@pytest.mark.slow
def test_beside_a_nested_chain() -> None:
    check_fit(fitted("y ~ x + (1 | animal) + (1 | herd) + (1 | litter)", data_of(4, seed=7)))


@pytest.mark.slow
def test_slopes_are_related_as_intercepts_are() -> None:
    check_fit(fitted("y ~ x + (x | animal)", data_of(6)))


def test_the_identity_is_the_ordinary_model() -> None:
    data = data_of(3)
    plain = jm.mixed("y ~ x + (1 | animal)", data)
    fit = fitted("y ~ x + (1 | animal)", data, 2 * np.eye(16))
    assert fit.deviance == pytest.approx(plain.deviance, rel=EXACT)
    assert fit.theta[0] * np.sqrt(2) == pytest.approx(plain.theta[0], rel=1e-6)
    expected = plain.ranef()["animal"]
    np.testing.assert_allclose(fit.ranef()["animal"].loc[expected.index], expected, rtol=1e-5, atol=1e-6)
    assert (fit.ranef()["animal"].loc[IDS[:4]].abs() < 1e-12).all(axis=None)


def test_standard_errors_of_the_variances_are_those_of_the_dense_likelihood() -> None:
    fit = repeated()
    dense = dense_of(fit)
    values = np.array([fit.estimates.terms[0].cov[0, 0], float(fit.sigma) ** 2])

    def deviance(at: np.ndarray) -> float:
        return -2 * dense.loglik((np.array([[at[0]]]),), float(np.sqrt(at[1])), "reml")

    steps = 1e-3 * values
    hessian = np.empty((2, 2))
    for i in range(2):
        for j in range(2):
            a, b = np.eye(2)[i] * steps, np.eye(2)[j] * steps
            hessian[i, j] = (
                deviance(values + a + b)
                - deviance(values + a - b)
                - deviance(values - a + b)
                + deviance(values - a - b)
            ) / (4 * steps[i] * steps[j])
    expected = np.sqrt(np.diagonal(np.linalg.inv(hessian / 2)))
    table = fit.variance_table()
    np.testing.assert_allclose(table["std_error"], expected, rtol=BY_DIFFERENCES)


def mrode() -> tuple[Reduction, pd.Index]:
    """Mrode (2014), Linear Models for the Prediction of Animal Breeding Values, example 3.1."""
    A = additive([None, None, None, 0, 2, 0, 3, 2], [None, None, None, None, 1, 1, 4, 5])
    data = {"gain": [4.5, 2.9, 3.9, 3.5, 5.0], "sex": list("MFFMM"), "calf": [4, 5, 6, 7, 8]}
    frame = build_frame("gain ~ 0 + sex + (1 | calf)", data, relationships={"calf": known(A, range(1, 9))})
    groupings, terms, _ = terms_of(frame.groups, structures_of(frame.groups, None))
    return reduce_rows(frame.y, frame.X, [], terms, None, groupings), frame.groups[0].levels


def test_published_breeding_values() -> None:
    reduction, levels = mrode()
    with double_precision():
        theta = np.array([np.sqrt(20 / 40)])

        @jax.jit
        def both(stats: Any) -> tuple[Any, Any]:
            covariances = jm.effects.blup_covariance(theta, stats, beta="estimated")
            return jm.effects.blup(theta, stats)[0][0], covariances[0][0, 0]

        modes, errors = (np.asarray(values) for values in both(reduction.stats))
    published = [0.098, -0.019, -0.041, -0.009, -0.186, 0.177, -0.249, 0.183]
    np.testing.assert_allclose(modes[np.argsort(levels)], published, atol=PRINTED)
    # Diagonal of the inverse of the coefficient matrix, in example 3.1's accuracies.
    published = [0.471, 0.492, 0.456, 0.428, 0.428, 0.442, 0.442, 0.422]
    np.testing.assert_allclose(errors[np.argsort(levels)], published, atol=PRINTED)


# Further responses, draws and predictions


def test_simulated_effects_have_the_covariance_of_the_model() -> None:
    fit = repeated()
    [source] = response_source(fit.frame, fit.estimates).terms
    [drawn] = random_effects([source], Draws(1, EFFECTS_STREAM), 0, 20_000)
    related = fit.frame.groups[0].relationship
    assert related is not None
    expected = related.matrix[:12, :12] * fit.estimates.terms[0].cov
    error = np.cov(drawn[0]) - expected
    spread = np.sqrt((expected**2 + np.outer(np.diagonal(expected), np.diagonal(expected))) / 20_000)
    assert np.abs(error / spread).max() < 4.5  # 78 numbers


def test_simulated_responses_do_not_depend_on_their_block() -> None:
    fit = repeated()
    many, few = fit.simulate(7, seed=3), fit.simulate(3, seed=3)
    np.testing.assert_array_equal(many.iloc[:, :3], few)


def test_a_fit_simulates_related_effects_on_another_design() -> None:
    fit = repeated()
    again = jm.simulate("y ~ x + (1 | animal)", data_of(3), fit, n=4, seed=2)
    np.testing.assert_allclose(again, fit.simulate(4, seed=2), rtol=1e-12)


@pytest.mark.slow
def test_further_responses_are_fitted_as_single_ones() -> None:
    fit = repeated()
    responses = fit.simulate(3, seed=1)
    many = fit.refit_many(responses)
    for j in range(3):
        single = fit.refit(responses.iloc[:, j])
        assert many.llf.iloc[j] == pytest.approx(float(single.llf), rel=1e-8)
        check = dense_of(single).profiled(relative_covariances(single, np.asarray(single.theta)), "reml")
        assert float(single.llf) == pytest.approx(check.llf, rel=EXACT)


def test_predictions_know_the_levels_without_records() -> None:
    fit = repeated()
    new = pd.DataFrame({"x": [0.0, 0.0], "animal": ["id00", "id07"]})
    modes = fit.ranef()["animal"]["(Intercept)"]
    expected = fit.params["(Intercept)"] + modes[["id00", "id07"]].to_numpy()
    np.testing.assert_allclose(fit.predict(new), expected, rtol=EXACT)
    with pytest.raises(DataError, match="stranger"):
        fit.predict(pd.DataFrame({"x": [0.0], "animal": ["stranger"]}))


def test_the_summary_names_the_relationship() -> None:
    text = str(repeated().summary())
    assert "animal (known relationship)" in text
    assert "diagonal element" in text


def test_a_precision_matrix_is_another_way_to_say_it() -> None:
    own = known(np.linalg.inv(pedigree()), IDS, precision=True)
    np.testing.assert_allclose(own.matrix, pedigree(), rtol=1e-9, atol=1e-10)


def test_a_table_brings_its_labels() -> None:
    own = known(pd.DataFrame(pedigree(), index=IDS, columns=IDS))
    assert own.levels.tolist() == IDS


@pytest.mark.slow
def test_models_of_some_rows_use_the_levels_that_these_have() -> None:
    data = data_of(4).assign(part=lambda d: np.arange(len(d)) % 2)
    own = known(pedigree(), IDS)
    many = jm.fit_many("y ~ x + (1 | animal)", data, by="part", covariance={"animal": own})
    for part in range(2):
        single = jm.mixed("y ~ x + (1 | animal)", data[data["part"] == part], covariance={"animal": own})
        assert many.llf.loc[part] == pytest.approx(float(single.llf), rel=1e-8)


# Changes of basis


def test_the_root_of_a_matrix_gives_it_back() -> None:
    for A in (pedigree(), clones()):
        basis, shared = level_basis(A[4:, 4:], 12)
        np.testing.assert_allclose(basis.matrix @ basis.matrix.T, A[4:, 4:], atol=1e-12)
        assert shared
        np.testing.assert_allclose(basis.matrix[:, 0], basis.matrix[0, 0], rtol=1e-12)
    centred = np.eye(12) - 1 / 12  # effects that add up to zero have no sum
    basis, shared = level_basis(centred, 12)
    assert not shared
    np.testing.assert_allclose(basis.matrix @ basis.matrix.T, centred, atol=1e-12)


def test_levels_without_rows_are_regressed_on_the_others() -> None:
    order = [*range(4, 16), *range(4)]
    A = pedigree()[np.ix_(order, order)]
    basis, _ = level_basis(A, 12)
    B, rest = np.asarray(basis.matrix), np.asarray(basis.rest)
    np.testing.assert_allclose(B[12:] @ B[:12].T, A[12:, :12], atol=1e-12)
    np.testing.assert_allclose((B[12:] ** 2).sum(axis=1) + rest[12:], np.diagonal(A)[12:], atol=1e-12)
    assert (rest[:12] == 0).all()


def test_related_and_independent_factors_change_their_bases_side_by_side() -> None:
    rng = np.random.default_rng(2)
    basis, _ = level_basis(pedigree()[4:, 4:], 12)
    shapes, bases = ((3, 1), (12, 2)), (None, basis)
    A = rng.normal(size=(30, 30))
    A = A + A.T
    with double_precision():
        change = np.asarray(to_levels(np.eye(30), shapes, bases))
        np.testing.assert_allclose(reflect_rows(A, shapes, bases), change.T @ A, atol=1e-12)
        np.testing.assert_allclose(reflect_both(A, shapes, bases), change.T @ A @ change, atol=1e-12)
    np.testing.assert_allclose(change[27:], np.eye(30)[27:], atol=1e-15)  # padding stays as it is
    np.testing.assert_allclose(change[:3, :3] @ change[:3, :3].T, np.eye(3), atol=1e-12)
    expected = np.kron(np.eye(2), pedigree()[4:, 4:])
    np.testing.assert_allclose(change[3:27, 3:27] @ change[3:27, 3:27].T, expected, atol=1e-12)
    assert Root.__dataclass_fields__["bases"].default == ()


# What is refused


def test_matrices_that_are_no_covariances_are_refused_with_numbers() -> None:
    A = pedigree()
    skewed, broken, indefinite = A.copy(), A.copy(), A - 0.9 * np.eye(16)
    skewed[2, 7] += 0.25
    broken[1, 1] = np.nan
    cases: list[tuple[Any, Any, str]] = [
        (skewed, IDS, r"not symmetric: 0\.25 between 'id02' and 'id07', but 0 the other way"),
        (broken, IDS, r"1 missing or infinite values, the first between 'id01' and 'id01'"),
        (indefinite, IDS, r"smallest eigenvalue is -0\.\d+"),
        (A, IDS[:-1], r"16 rows, but levels= names 15"),
        (A, [*IDS[:-1], "id00"], r"repeat 'id00'"),
        (A, [*IDS[:-1], None], r"1 missing labels, the first at 15"),
        (A[:, :4], IDS, r"square; its shape is \(16, 4\)"),
        (A, None, r"levels="),
        (pd.DataFrame(A, index=IDS), None, r"labelled differently"),
        ([["a"]], ["a"], r"must hold numbers"),
    ]
    for matrix, levels, message in cases:
        with pytest.raises(DataError, match=message):
            known(matrix, levels)
    with pytest.raises(DataError, match=r"not positive definite.*proper"):
        known(np.diag([1.0, 0.0]), ["a", "b"], precision=True)


def test_levels_of_the_data_must_all_be_in_the_matrix() -> None:
    data = data_of(2)
    with pytest.raises(DataError, match=r"2 of the 12 levels of 'animal' are not in .*: 'id14', 'id15'"):
        jm.mixed("y ~ x + (1 | animal)", data, covariance={"animal": known(pedigree()[:14, :14], IDS[:14])})
    texts = known(pedigree(), [str(number) for number in range(16)])
    with pytest.raises(DataError, match=r"another type, e.g. '0' beside"):
        jm.mixed("y ~ x + (1 | copy)", data, covariance={"copy": texts})


def test_a_relationship_needs_its_group() -> None:
    own = known(pedigree(), IDS)
    with pytest.raises(FormulaError, match="say of which"):
        jm.mixed("y ~ x + (1 | animal)", data_of(2), covariance=own)
    with pytest.raises(FormulaError, match="'cow', which the formula does not have; its groups are 'animal'"):
        jm.mixed("y ~ x + (1 | animal)", data_of(2), covariance={"cow": own})


def test_related_levels_form_a_dense_root_whose_memory_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.repeat(np.arange(12), 2)
    related = Grouping(np.ones((24, 1)), codes, 12, "animal", pedigree())
    plain = Grouping(np.ones((24, 1)), codes, 12, "copy")
    assert layout.arrange([related]) == layout.Layout((), (0,))
    assert layout.arrange([related, plain]) == layout.Layout((1,), (0,))
    monkeypatch.setattr(layout, "available_memory", lambda: 1e4)
    with pytest.raises(DesignError, match=r"'animal' \(12 levels × 1 effect\) form a dense .* keep fewer"):
        layout.arrange([related])


def test_unrelated_levels_with_one_record_each_are_refused() -> None:
    with pytest.raises(DesignError, match="multiple of the identity"):
        fitted("y ~ x + (1 | animal)", data_of(1), 3 * np.eye(16))


def test_the_same_relationship_twice_is_refused() -> None:
    own = {"animal": known(pedigree(), IDS), "copy": known(2 * pedigree(), range(16))}
    with pytest.raises(DesignError, match="cannot be told apart"):
        jm.mixed("y ~ x + (1 | animal) + (1 | copy)", data_of(3), covariance=own)


@pytest.mark.parametrize("kind", ["residual", "cluster", "case"])
def test_related_groups_are_not_resampled(kind: str) -> None:
    with pytest.raises(DesignError, match="'animal' are related"):
        repeated().bootstrap(n=5, kind=kind, seed=1)


def test_related_groups_are_neither_permuted_nor_resized() -> None:
    with pytest.raises(DesignError, match="'animal' are related"):
        repeated().permutation_test(n=9, seed=1)
    with pytest.raises(DesignError, match="'animal' are related"):
        jm.power(fit=repeated(), test="x", n=9, seed=1)


@pytest.mark.slow
def test_a_heritability_of_one_is_said_to_be_one() -> None:
    A = additive([None, None, None, 0, 2, 0, 3, 2], [None, None, None, None, 1, 1, 4, 5])
    data = {"gain": [4.5, 2.9, 3.9, 3.5, 5.0], "sex": list("MFFMM"), "calf": [4, 5, 6, 7, 8]}
    with pytest.warns(ConvergenceWarning, match="residual variance goes to zero"):
        jm.mixed("gain ~ 0 + sex + (1 | calf)", data, covariance={"calf": known(A, range(1, 9))})

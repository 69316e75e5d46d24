"""Data sets with designs of their own, side by side: padding and stacking change nothing."""

from functools import cache, partial

import jax
import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.diagnosis import TermLabel
from jaxmixed.fitting import fit
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import profile
from jaxmixed.many_estimates import NOT_FITTED, PERFECT, REFUSED, arrays_of, blank, place
from jaxmixed.precision import double_precision
from jaxmixed.reductions import fit_reductions
from jaxmixed.statistics import SufficientStatistics, Term, pad_alike
from jaxmixed.subdesigns import WholeDesign
from tests.support.compilation import LIKE_FITS

COVARIANCE = covariance_structure("unstructured", 1)
TERMS = (Term(0, 0, COVARIANCE), Term(1, 0, COVARIANCE))
LABELS = (TermLabel("class", ("(Intercept)",), 0, 20), TermLabel("school", ("(Intercept)",), 1, 5))
NAMES = ("(Intercept)", "x", "z")
LLF = 1e-9


@cache
def whole(seed: int = 0) -> tuple[WholeDesign, np.ndarray]:
    """Five schools of four classes of five, two covariates."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(20), 5)
    X = np.column_stack([np.ones(100), rng.normal(size=(100, 2))])
    one = np.ones((100, 1))
    groupings = (Grouping(one, classes, 20, "class"), Grouping(one, classes // 4, 5, "school"))
    y = rng.normal(size=100) + rng.normal(size=20)[classes] + rng.normal(size=5)[classes // 4]
    return WholeDesign(X, NAMES, groupings, TERMS, LABELS, (1, 1), None), y


def some_rows(count: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(100)[: rng.integers(50, 99)]) for _ in range(count)]


def fitted(reductions: list[Reduction | None], **options):
    return fit_reductions(reductions, LABELS, NAMES, (COVARIANCE, COVARIANCE), **options)


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_each_is_fitted_as_it_is_alone(method):
    design, y = whole()
    reductions = [design.reduce(y[rows], rows) for rows in some_rows(6)]
    many = fitted(reductions, method=method)
    for number, reduction in enumerate(reductions):
        own = fit(reduction, LABELS, NAMES, method=method)
        assert abs(many.llf[number] - own.llf) < LLF
        np.testing.assert_allclose(many.beta[number], own.beta, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(many.cov_beta[number], own.cov_beta, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(many.sigma[number], own.sigma, rtol=1e-7)
        np.testing.assert_allclose(many.theta[number], own.theta, rtol=1e-5, atol=1e-7)
        assert many.singular[number] == own.diagnostics.singular
        assert many.nobs[number] == own.nobs
        assert abs(-many.linear_deviance[number] / 2 - own.linear_llf) < LLF


def test_a_design_that_was_refused_and_a_response_without_variation_keep_their_rows():
    design, y = whole()
    flat = np.round(y)[design.groupings[0].codes * 5]  # one value in a class
    many = fitted([None, design.reduce(y), design.reduce(flat)])
    assert many.reason.tolist() == [REFUSED, 0, PERFECT]
    assert np.isfinite(many.llf).tolist() == [False, True, False]
    assert many.fitted.tolist() == [False, True, False]


def test_counts_are_rows_written_so_often():
    design, y = whole()
    counts = np.random.default_rng(2).integers(0, 4, size=100)
    rows = np.flatnonzero(counts)
    written = np.repeat(np.arange(100), counts)
    factors = design.groupings
    copied = WholeDesign(
        design.X[written],
        NAMES,
        tuple(Grouping(f.Z[written], f.codes[written], f.size, f.label) for f in factors),
        TERMS,
        LABELS,
        (1, 1),
        None,
    )
    many = fitted([design.reduce(y[rows], rows, counts[rows].astype(float)), copied.reduce(y[written])])
    np.testing.assert_allclose(many.llf[0], many.llf[1], rtol=0, atol=LLF)
    np.testing.assert_allclose(many.cov_beta[0], many.cov_beta[1], rtol=1e-6)
    assert many.nobs.tolist() == [counts.sum()] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.arange(20), "'school' has one level"),
        (np.arange(0, 100, 5), "'class' has 20 random effects for 20 rows"),
        (np.r_[0:5, 20:25, 40:45], "split the rows used into the same 3 groups"),
    ],
)
def test_rows_that_do_not_identify_the_model_are_refused(rows, message):
    design, y = whole()
    with pytest.raises(jm.DesignError, match=message):
        design.reduce(y[rows], rows)


def test_counts_that_add_up_to_too_little_are_refused():
    design, y = whole()
    with pytest.raises(jm.DesignError, match="add up to 2, no more than the 3"):
        design.reduce(y, None, np.full(100, 0.02))


def test_statistics_padded_alike_have_the_shapes_of_each_other_and_the_likelihood_of_themselves():
    design, y = whole()
    reductions = [design.reduce(y[rows], rows).compact for rows in some_rows(2)]
    padded = pad_alike(reductions)
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(stats)) for stats in padded}
    assert len(shapes) == 1
    factors = [np.array([[0.7]]), np.array([[0.4]])]

    @partial(jax.jit, compiler_options=LIKE_FITS)
    def value(own: SufficientStatistics) -> jax.Array:
        return profile(own.assemble(factors), own, method="reml").deviance

    with double_precision():
        for before, after in zip(reductions, padded, strict=True):
            values = [float(value(own)) for own in (before, after)]
            assert values[0] == pytest.approx(values[1], rel=1e-14)


def test_parts_are_put_in_their_places():
    design, y = whole()
    part = fitted([design.reduce(y)])
    into = blank(3, LABELS, NAMES, (COVARIANCE, COVARIANCE), "reml")
    found = place(into, np.array([1]), part)
    for name, values in arrays_of(found).items():
        np.testing.assert_array_equal(values[1], arrays_of(part)[name][0])
    assert (found.reason[[0, 2]] >= NOT_FITTED).all()
    np.testing.assert_array_equal(found.frames[0][1], part.frames[0][0])


def test_an_empty_list_is_no_model():
    assert len(fitted([])) == 0


def test_a_column_that_some_data_sets_lack_is_dropped_there_alone():
    design, y = whole()
    X = design.X.copy()
    X[20:, 2] = 0.0
    partly = WholeDesign(X, NAMES, design.groupings, TERMS, LABELS, (1, 1), None)
    rows = np.arange(20, 100)
    many = fitted([partly.reduce(y), partly.reduce(y[rows], rows)])
    assert np.isnan(many.beta).tolist() == [[False, False, False], [False, False, True]]
    assert many.rank.tolist() == [3, 2]


@pytest.mark.slow
def test_the_order_of_levels_may_differ():
    """Rows of which the coarser factor is the finer one: other programs, the same answers."""
    rng = np.random.default_rng(4)
    a, b = np.repeat(np.arange(6), 12), np.tile(np.repeat(np.arange(4), 3), 6)
    one = np.ones((72, 1))
    groupings = (Grouping(one, a, 6, "a"), Grouping(one, b, 4, "b"))
    labels = (TermLabel("a", ("(Intercept)",), 0, 6), TermLabel("b", ("(Intercept)",), 1, 4))
    design = WholeDesign(np.ones((72, 1)), ("(Intercept)",), groupings, TERMS, labels, (1, 1), None)
    y = rng.normal(size=72) + rng.normal(size=6)[a] + rng.normal(size=4)[b]
    nested = np.flatnonzero(b == a % 2 + 2 * (a >= 3))  # every a in one b
    reductions = [design.reduce(y), design.reduce(y[nested], nested)]
    assert [reduction.stats.root is None for reduction in reductions] == [False, True]
    many = fit_reductions(reductions, labels, ("(Intercept)",), (COVARIANCE, COVARIANCE))
    for number, reduction in enumerate(reductions):
        own = fit(reduction, labels, ("(Intercept)",))
        assert abs(many.llf[number] - own.llf) < LLF


def test_a_reduction_of_all_rows_is_that_of_the_arrays():
    design, y = whole()
    found = design.reduce(y)
    expected = reduce_rows(y, design.X, design.groupings, TERMS)
    for one, two in zip(jax.tree.leaves(found.compact), jax.tree.leaves(expected.compact), strict=True):
        np.testing.assert_array_equal(one, two)

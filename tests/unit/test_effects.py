"""Conditional modes and their covariances against the dense formulas."""

from collections.abc import Iterator
from functools import cache, partial
from typing import Literal

import jax
import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import reduce_rows
from jaxmixed.effects import blup, blup_covariance, random_effects, random_effects_covariance
from jaxmixed.layout import Grouping
from jaxmixed.precision import double_precision
from jaxmixed.statistics import Term, pad, summarise
from tests.support.compilation import LIKE_FITS
from tests.support.dense import Array, Block, DenseModel
from tests.support.designs import Design, random_design
from tests.support.fits import quietly

VALUE = 1e-8
"""Relative to the largest: the dense formulas solve with V twice."""

Beta = Literal["known", "estimated"]
SEEDS = [(1, 11), (1, 12), (2, 21), (3, 31)]

compiled = partial(jax.jit, compiler_options=LIKE_FITS)
modes_of = compiled(blup)
covariances_of = compiled(blup_covariance, static_argnames="beta")
summarised = compiled(summarise, static_argnames="num_groups")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


@cache
def drawn(depth: int, seed: int) -> tuple[Design, jm.MixedResults]:
    design = random_design(seed, depth=depth, max_effects=3)
    return design, quietly(design.formula, design.data, **design.arguments)


def dense(design: Design, found: jm.MixedResults) -> tuple[tuple[Array, ...], float]:
    """Covariances in the order of the design's blocks, and sigma."""
    by_block = sorted(found.estimates.terms, key=lambda term: term.frame_index)
    return tuple(term.cov for term in by_block), found.sigma


def close(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, rtol=VALUE, atol=VALUE * max(np.abs(expected).max(), 1e-6))


def in_order_of_the_block(design: Design, found: jm.MixedResults, k: int, rows: Array) -> Array:
    """Rows of a term's output in the order of the dense block's codes."""
    levels = [str(level) for level in found.frame.groups[k].levels]
    return rows[[levels.index(label) for label in design.terms[k].levels]]


@pytest.mark.parametrize(("depth", "seed"), SEEDS)
def test_conditional_modes_are_those_of_the_dense_model(depth: int, seed: int) -> None:
    design, found = drawn(depth, seed)
    covs, sigma = dense(design, found)
    for term, modes in zip(found.estimates.terms, random_effects(found.state, found.estimates), strict=True):
        expected = design.model.blups(term.frame_index, covs, sigma)
        close(in_order_of_the_block(design, found, term.frame_index, modes), expected)


@pytest.mark.parametrize("beta", ["known", "estimated"])
@pytest.mark.parametrize(("depth", "seed"), SEEDS)
def test_their_covariances_are_those_of_the_dense_model(depth: int, seed: int, beta: Beta) -> None:
    design, found = drawn(depth, seed)
    covs, sigma = dense(design, found)
    every = random_effects_covariance(found.state, found.estimates, beta)
    for term, covariance in zip(found.estimates.terms, every, strict=True):
        expected = design.model.blup_cov(term.frame_index, covs, sigma, beta)
        close(in_order_of_the_block(design, found, term.frame_index, covariance), expected)


@pytest.mark.parametrize(("depth", "seed"), [(1, 11), (3, 31)])
def test_covariances_are_symmetric_and_grow_when_beta_is_estimated(depth: int, seed: int) -> None:
    _, found = drawn(depth, seed)
    known = random_effects_covariance(found.state, found.estimates, "known")
    estimated = random_effects_covariance(found.state, found.estimates, "estimated")
    for term, small, large in zip(found.estimates.terms, known, estimated, strict=True):
        np.testing.assert_allclose(small, small.transpose(0, 2, 1), atol=1e-12 * np.abs(small).max())
        scale = np.trace(term.cov)
        assert (np.linalg.eigvalsh(small) >= -1e-10 * scale).all()
        assert (np.linalg.eigvalsh(large - small) >= -1e-10 * scale).all()
        assert (np.linalg.eigvalsh(term.cov - small) >= -1e-10 * scale).all()


def chain(seed: int = 0):  # type: ignore[no-untyped-def]
    """Three levels with an own random theta, as rows, statistics in both forms, and a dense model."""
    rng = np.random.default_rng(seed)
    n, sizes = 60, (18, 7, 3)
    fine = rng.permutation(np.concatenate([np.arange(18), rng.integers(2, 18, n - 18)]))
    owner, top = rng.permutation(np.resize(np.arange(7), 18)), rng.permutation(np.resize(np.arange(3), 7))
    codes = [fine, owner[fine], top[owner[fine]]]
    Z = [np.column_stack([np.ones(n), rng.normal(size=n)]), np.ones((n, 1)), rng.normal(size=(n, 2))]
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    y = 3 + rng.normal(size=n) + rng.normal(size=18)[fine]
    terms = tuple(
        Term(d, 0, covariance_structure("unstructured", block.shape[1])) for d, block in enumerate(Z)
    )
    groupings = [Grouping(*one, f"g{d}") for d, one in enumerate(zip(Z, codes, sizes, strict=True))]
    reduction = reduce_rows(y, X, groupings, terms)
    moments = summarised(y, X, Z, codes, num_groups=sizes)
    theta = rng.normal(size=7)
    covs, start = [], 0
    for term in terms:
        k = term.covariance.num_params
        T = np.tensordot(theta[start : start + k], term.covariance.jacobian(theta[start : start + k]), axes=1)
        covs.append(T @ T.T)
        start += k
    model = DenseModel(y, X, tuple(Block(*one) for one in zip(Z, codes, strict=True)))
    return theta, reduction, moments, model, tuple(covs)


def test_both_forms_of_the_statistics_give_the_same_modes_at_any_theta() -> None:
    theta, reduction, moments, model, covs = chain()
    orthogonal, plain = modes_of(theta, reduction.stats), modes_of(theta, moments)
    for depth in range(3):
        expected = model.blups(depth, covs, 1.0)
        close(np.asarray(orthogonal[depth]).T[reduction.positions[depth]], expected)
        close(np.asarray(plain[depth]).T, expected)


@pytest.mark.parametrize("beta", ["known", "estimated"])
def test_both_forms_of_the_statistics_give_the_same_covariances_at_any_theta(beta: Beta) -> None:
    theta, reduction, moments, model, covs = chain(1)
    orthogonal = covariances_of(theta, reduction.stats, beta=beta)
    plain = covariances_of(theta, moments, beta=beta)
    for depth in range(3):
        expected = model.blup_cov(depth, covs, 1.0, beta)
        close(np.moveaxis(orthogonal[depth], -1, 0)[reduction.positions[depth]], expected)
        close(np.moveaxis(plain[depth], -1, 0), expected)


def test_padding_changes_no_mode() -> None:
    theta, reduction, *_ = chain(2)
    padded = modes_of(theta, pad(reduction.stats))
    for a, b in zip(padded, modes_of(theta, reduction.stats), strict=True):
        np.testing.assert_allclose(a[:, : b.shape[1]], b, rtol=1e-12, atol=1e-13)
        assert (np.asarray(a)[:, b.shape[1] :] == 0).all()


def test_without_variances_every_mode_is_zero() -> None:
    theta, reduction, *_ = chain(3)
    zero = np.zeros_like(theta)
    assert all((np.asarray(modes) == 0).all() for modes in modes_of(zero, reduction.stats))
    every = covariances_of(zero, reduction.stats, beta="estimated")
    assert all((np.asarray(cov) == 0).all() for cov in every)


def test_modes_are_linear_in_the_response() -> None:
    theta, _, _, model, _ = chain(4)
    Z, codes = [block.Z for block in model.blocks], [jax.numpy.asarray(block.codes) for block in model.blocks]

    def modes(y: jax.Array) -> tuple[jax.Array, ...]:
        return blup(theta, summarise(y, model.X, Z, codes, num_groups=(18, 7, 3)))

    of = compiled(modes)
    y, other = model.y, np.random.default_rng(4).normal(size=len(model.y))
    for together, a, b in zip(of(2 * y - other), of(y), of(other), strict=True):
        np.testing.assert_allclose(together, 2 * a - b, rtol=1e-9, atol=1e-10)
    shifted = of(y + model.X @ [5.0, -3.0])  # fixed effects take up what is linear in X
    for a, b in zip(shifted, of(y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


def test_modes_are_numpy_arrays_in_the_order_of_the_levels() -> None:
    found = quietly("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy").iloc[::-1])
    (modes,) = random_effects(found.state, found.estimates)
    assert type(modes) is np.ndarray
    assert modes.shape == (18, 2)
    forwards = quietly("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    np.testing.assert_allclose(
        found.ranef()["Subject"].loc["308"], forwards.ranef()["Subject"].loc["308"], rtol=1e-8
    )

"""Many responses on one design: what the pass makes of each one alone, and none disturbs another."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed import fitting, groupsums, responses
from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.errors import DataError, DesignError
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import deviance
from jaxmixed.precision import double_precision
from jaxmixed.responses import (
    CONSTANT,
    MAGNITUDE,
    NOT_FINITE,
    OK,
    PERFECT,
    ResponsePass,
    Responses,
    attach,
    pad_responses,
    response_of,
)
from jaxmixed.statistics import SufficientStatistics, Term, pad
from tests.support.compilation import LIKE_FITS
from tests.support.dense import Block, DenseModel

ROUNDING = 1e-12
"""Relative to the largest number of an array, or 1, the order of what is not zero but for rounding: sums in
another order."""

VALUE = 1e-10
"""Relative; the dense likelihood loses a digit or two to the conditioning of V."""

LANES = 7


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision(), np.errstate(over="raise", invalid="raise", divide="raise"):
        yield


def codes_of(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Every group has rows, one of them a single one; in no order."""
    return rng.permutation(np.concatenate([np.arange(m), rng.integers(1, m, n - m)]))


def term(level: int, q: int, start: int = 0, structure: str = "unstructured") -> Term:
    return Term(level, start, covariance_structure(structure, q))


def columns(rng: np.random.Generator, n: int, q: int) -> np.ndarray:
    return np.column_stack([np.ones(n), rng.normal(size=(n, q - 1))])


def one_level(rng: np.random.Generator, q: int = 2, weights: bool = False) -> tuple[Any, ...]:
    n = 70
    w = rng.uniform(0.3, 3, n) if weights else None
    return columns(rng, n, 3), [Grouping(columns(rng, n, q), codes_of(rng, 12, n), 12, "g")], [term(0, q)], w


def balanced(rng: np.random.Generator) -> tuple[Any, ...]:
    X = np.column_stack([np.ones(120), np.tile(np.arange(4.0), 30)])
    return X, [Grouping(X, np.repeat(np.arange(30), 4), 30, "g")], [term(0, 2)]


def patterns(rng: np.random.Generator) -> tuple[Any, ...]:
    codes = rng.permutation(np.repeat(np.arange(80), np.resize([2, 5, 3, 2, 1], 80)))
    one = np.ones((len(codes), 1))
    return columns(rng, len(codes), 2), [Grouping(one, codes, 80, "g")], [term(0, 1)]


def patterns_of_two_levels(rng: np.random.Generator) -> tuple[Any, ...]:
    codes, times = np.repeat(np.arange(90), 4), np.tile(np.arange(4.0), 90)
    Z, w = np.column_stack([np.ones(360), times]), np.tile([1.0, 2.0, 1.0, 0.5], 90)
    upper = Grouping(np.ones((360, 1)), codes % 3, 3, "h")
    return Z, [Grouping(Z, codes, 90, "g"), upper], [term(0, 2), term(1, 1)], w


def three_levels(rng: np.random.Generator, weights: bool = False) -> tuple[Any, ...]:
    n, fine = 110, codes_of(rng, 24, 110)
    middle, top = rng.permutation(np.resize(np.arange(8), 24)), rng.permutation(np.resize(np.arange(3), 8))
    chain = [
        Grouping(columns(rng, n, 2), fine, 24, "class"),
        Grouping(columns(rng, n, 3), middle[fine], 8, "school"),
        Grouping(np.ones((n, 1)), top[middle[fine]], 3, "district"),
    ]
    terms = [term(0, 2), term(1, 1, 0), term(1, 2, 1, "independent"), term(2, 1)]
    return columns(rng, n, 3), chain, terms, rng.uniform(0.3, 3, n) if weights else None


def crossed(rng: np.random.Generator, weights: bool = False) -> tuple[Any, ...]:
    n, fine = 90, codes_of(rng, 20, 90)
    chain = [
        Grouping(columns(rng, n, 2), fine, 20, "pupil"),
        Grouping(np.ones((n, 1)), fine % 4, 4, "school"),
    ]
    root = [
        Grouping(columns(rng, n, 2), codes_of(rng, 6, n), 6, "item"),
        Grouping(np.ones((n, 1)), codes_of(rng, 3, n), 3, "judge"),
    ]
    terms = [term(0, 2), term(1, 1), term(2, 2), term(3, 1)]
    return columns(rng, n, 2), chain, terms, rng.uniform(0.3, 3, n) if weights else None, root


def rank_deficient(rng: np.random.Generator) -> tuple[Any, ...]:
    X, *others = one_level(rng)
    return np.column_stack([X[:, 0], X[:, 1], 2 * X[:, 1] - 3, X[:, 2]]), *others


def no_constant(rng: np.random.Generator) -> tuple[Any, ...]:
    X, *others = one_level(rng)
    return X[:, 1:], *others


def no_columns(rng: np.random.Generator) -> tuple[Any, ...]:
    X, *others = three_levels(rng)
    return X[:, :0], *others


def patterns_without_columns(rng: np.random.Generator) -> tuple[Any, ...]:
    X, *others = patterns(rng)
    return X[:, :0], *others


def linear(rng: np.random.Generator) -> tuple[Any, ...]:
    return columns(rng, 40, 3), [], [], rng.uniform(0.3, 3, 40)


def far_from_the_origin(rng: np.random.Generator) -> tuple[Any, ...]:
    """Years as they are: within a group the columns are nearly dependent."""
    X, chain, *_ = one_level(rng)
    years = np.column_stack([np.ones(len(X)), 1e6 + X[:, 1]])
    return X, [replace(chain[0], Z=years)], [term(0, 1, 0), term(0, 1, 1)]


DESIGNS: dict[str, Callable[[np.random.Generator], tuple[Any, ...]]] = {
    "one level": one_level,
    "three effects": lambda rng: one_level(rng, 3),
    "weights": lambda rng: one_level(rng, 2, weights=True),
    "balanced": balanced,
    "patterns": patterns,
    "patterns of two levels": patterns_of_two_levels,
    "three levels": three_levels,
    "three weighted levels": lambda rng: three_levels(rng, weights=True),
    "crossed": crossed,
    "crossed and weighted": lambda rng: crossed(rng, weights=True),
    "rank deficient": rank_deficient,
    "no constant": no_constant,
    "no columns": no_columns,
    "patterns without columns": patterns_without_columns,
    "linear": linear,
    "far from the origin": far_from_the_origin,
}
COMPRESSED = ("balanced", "patterns", "patterns of two levels", "patterns without columns")
WITHOUT_CONSTANT = ("no constant", "no columns", "patterns without columns")


def reduce_design(design: tuple[Any, ...], y: np.ndarray) -> Reduction:
    X, groupings, terms, *others = design
    return reduce_rows(y, X, groupings, tuple(terms), *others)


@cache
def design_of(name: str) -> tuple[Any, ...]:
    return DESIGNS[name](np.random.default_rng(sum(map(ord, name))))


def responses_of(design: tuple[Any, ...], seed: int, count: int = LANES) -> np.ndarray:
    """Responses with effects of the groups."""
    X, groupings, _, *others = design
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(len(X), count)) + X @ rng.normal(size=(X.shape[1], count))
    for grouping in (*groupings, *(others[1] if len(others) > 1 else ())):
        Y += rng.normal(size=(grouping.size, count))[grouping.codes]
    return Y


@cache
def reduction_of(name: str) -> Reduction:
    return reduce_design(design_of(name), responses_of(design_of(name), 99, 1)[:, 0])


def lane(own: Responses, number: int) -> Responses:
    return jax.tree_util.tree_map(lambda part: part[..., number], own)


def assert_same(found: SufficientStatistics, expected: SufficientStatistics, tolerance: float) -> None:
    left, right = jax.tree_util.tree_flatten(found), jax.tree_util.tree_flatten(expected)
    assert left[1] == right[1]
    assert found.scale == expected.scale
    parts = [(found.origin / found.scale, expected.origin / expected.scale)]
    parts += [(a, b) for a, b in zip(left[0], right[0], strict=True) if a is not found.origin]
    for a, b in parts:
        assert np.shape(a) == np.shape(b)
        size = max(np.abs(b).max(initial=0.0), 1.0)
        np.testing.assert_allclose(np.asarray(a), b, rtol=0, atol=tolerance * size)


def assert_agrees(name: str, Y: np.ndarray, tolerance: float = ROUNDING) -> None:
    """Each response's statistics are those of the pass over the rows with it alone."""
    passing = ResponsePass(reduction_of(name))
    own, reasons = passing.reduce(Y)
    assert reasons.tolist() == [OK] * Y.shape[1]
    for number, y in enumerate(Y.T):
        expected = reduce_design(design_of(name), np.ascontiguousarray(y)).compact
        assert_same(attach(passing.shared, lane(own, number)), expected, tolerance)


# Agreement with the pass


@pytest.mark.parametrize("name", DESIGNS)
def test_each_response_has_the_statistics_of_the_pass(name: str) -> None:
    assert (reduction_of(name).compact is not reduction_of(name).stats) == (name in COMPRESSED)
    assert_agrees(name, responses_of(design_of(name), 1))


@pytest.mark.parametrize("name", DESIGNS)
def test_each_response_has_its_own_unit(name: str) -> None:
    Y = responses_of(design_of(name), 2) * [1e-9, 3e-4, 1.0, 2e3, 1e9, 1e-30, 1e30]
    assert_agrees(name, Y)


@pytest.mark.parametrize("name", [name for name in DESIGNS if name not in WITHOUT_CONSTANT])
def test_each_response_has_its_own_offset(name: str) -> None:
    Y = responses_of(design_of(name), 3)
    Y += np.array([1e9, -1e9, 1e6, 0.0, 1e12, -3.0, 1e5])
    assert_agrees(name, Y)


def test_nothing_of_the_columns_is_left_however_large_their_effects() -> None:
    X = design_of("linear")[0]
    Y = responses_of(design_of("linear"), 4) + 1e9 * X @ np.random.default_rng(4).normal(size=(3, LANES))
    own, _ = ResponsePass(reduction_of("linear")).reduce(Y)
    np.testing.assert_allclose(own.total[:-1], 0.0, atol=1e-13)


def test_effects_of_groups_may_be_huge() -> None:
    codes = design_of("one level")[1][0].codes
    Y = responses_of(design_of("one level"), 4) + 1e5 * np.random.default_rng(4).normal(size=12)[codes, None]
    assert_agrees("one level", Y)


def test_numbers_with_few_digits_left_are_treated_as_in_the_pass() -> None:
    """As in NIST's data sets SmLs07 to SmLs09: thirteen constant leading digits."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(9), 21)
    one = np.ones((189, 1))
    design = one, [Grouping(one, codes, 9, "g")], [term(0, 1)]
    Y = 1e12 + np.round(10 * (0.1 * codes[:, None] + rng.normal(size=(189, 4)))) / 10
    passing = ResponsePass(reduce_design(design, Y[:, 0]))
    own, _ = passing.reduce(Y)
    for number, y in enumerate(Y.T):
        expected = reduce_design(design, y.copy()).compact
        assert_same(attach(passing.shared, lane(own, number)), expected, ROUNDING)


def test_columns_nearly_dependent_within_a_group_are_removed_one_after_the_other() -> None:
    """Gram-Schmidt's columns are then not orthonormal, and the statistics depend on the order of removal."""
    rng = np.random.default_rng(6)
    codes = np.repeat(np.arange(10), 6)
    Z = np.column_stack([np.ones(60), 1 + 1e-7 * rng.normal(size=60), rng.normal(size=60)])
    design = np.ones((60, 1)), [Grouping(Z, codes, 10, "g")], [term(0, 1, j) for j in range(3)]
    Y = responses_of(design, 6)
    passing = ResponsePass(reduce_design(design, Y[:, 0]))
    own, _ = passing.reduce(Y)
    for number, y in enumerate(Y.T):
        expected = reduce_design(design, y.copy()).stats
        assert_same(attach(passing.shared, lane(own, number)), expected, ROUNDING)
    Q = passing._finest.columns[0]  # type: ignore[union-attr]
    off = np.abs(np.swapaxes(Q, 1, 2) @ Q - np.eye(3)).max()
    assert off > 1e3 * ROUNDING  # or this test would show nothing


def test_the_deviance_of_a_lane_is_that_of_the_dense_likelihood() -> None:
    X, chain, _, weights = design_of("weights")
    Y = responses_of(design_of("weights"), 7, 3)
    passing = ResponsePass(reduction_of("weights"))
    own, _ = passing.reduce(Y)
    theta = np.array([0.9, -0.4, 0.6])
    T = np.array([[0.9, 0.0], [-0.4, 0.6]])

    @partial(jax.jit, compiler_options=LIKE_FITS)
    def values(own: Responses) -> jax.Array:
        return jax.vmap(lambda one: deviance(theta, attach(passing.shared, one)), in_axes=-1)(own)

    for found, y in zip(values(own), Y.T, strict=True):
        dense = DenseModel(y=y, X=X, blocks=(Block(chain[0].Z, chain[0].codes),), weights=weights)
        np.testing.assert_allclose(found, -2 * dense.profiled((T @ T.T,), "reml").llf, rtol=VALUE)


# Responses that cannot be fitted

NAME = "three levels"


def check(reduction: Reduction, method: Any = "reml") -> None:
    """What a single fit does before it searches."""
    fitting.check_within(reduction.stats, fitting.ungrouped(reduction.stats), method)


def spoilt(kind: str, seed: int = 8) -> np.ndarray:
    """A response that cannot be fitted."""
    X, chain, *_ = design_of(NAME)
    rng = np.random.default_rng(seed)
    y = responses_of(design_of(NAME), seed, 1)[:, 0]
    if kind in ("nan", "inf", "-inf"):
        y[7] = float(kind)
    if kind == "both infinities":
        y[[3, 8]] = np.inf, -np.inf
    if kind == "constant":
        y[:] = 0.1
    if kind == "zero":
        y[:] = 0.0
    if kind == "huge constant":
        y[:] = 1e300
    if kind in ("large", "small"):
        y *= 1e37 if kind == "large" else 1e-39
    if kind == "largest":
        y *= 1e308 / np.abs(y).max()
    if kind == "of the columns":
        y = 5 + X @ [3.0, 2.0, -1.0]
    if kind == "of the finest groups":
        y = rng.normal(size=24)[chain[0].codes]
    if kind == "of both":
        y = rng.normal(size=24)[chain[0].codes] + X @ [3.0, 2.0, -1.0]
    return y


BAD = {
    "nan": NOT_FINITE,
    "inf": NOT_FINITE,
    "-inf": NOT_FINITE,
    "both infinities": NOT_FINITE,
    "constant": CONSTANT,
    "zero": CONSTANT,
    "huge constant": MAGNITUDE,
    "large": MAGNITUDE,
    "largest": MAGNITUDE,
    "small": MAGNITUDE,
    "of the columns": PERFECT,
    "of the finest groups": PERFECT,
}


def test_the_reason_why_a_response_cannot_be_fitted_is_given() -> None:
    Y = np.column_stack([spoilt(kind) for kind in BAD])
    own, reasons = ResponsePass(reduction_of(NAME)).reduce(Y)
    assert dict(zip(BAD, reasons.tolist(), strict=True)) == BAD
    assert reasons.dtype == np.int8
    assert all(np.isfinite(part).all() for part in jax.tree_util.tree_leaves(own))


@pytest.mark.parametrize("name", ["one level", "patterns of two levels", "crossed", "linear"])
def test_a_bad_response_disturbs_no_other(name: str) -> None:
    good = responses_of(design_of(name), 9, 6)
    bad = good.copy()
    bad[3, 1], bad[:, 2], bad[:, 4] = np.nan, 7.0, 1e300
    passing = ResponsePass(reduction_of(name))
    expected, _ = passing.reduce(good)
    found, reasons = passing.reduce(bad)
    assert reasons.tolist() == [OK, NOT_FINITE, CONSTANT, OK, MAGNITUDE, OK]
    for number in (0, 3, 5):
        jax.tree_util.tree_map(np.testing.assert_array_equal, lane(found, number), lane(expected, number))
    for number in (1, 2, 4):  # harmless numbers: those of the reduction's own response
        jax.tree_util.tree_map(
            np.testing.assert_array_equal, lane(found, number), response_of(passing.shared)
        )


@pytest.mark.parametrize("kind", ["of the columns", "of the finest groups"])
def test_a_perfect_response_is_refused_alone_as_well(kind: str) -> None:
    with pytest.raises(DesignError, match="residual variance is zero"):
        check(reduce_design(design_of(NAME), spoilt(kind)))


@pytest.mark.parametrize(("size", "refused"), [(1e-9, False), (1e-11, False), (1e-13, True), (1e-15, True)])
def test_variation_within_groups_counts_as_none_where_it_does_alone(size: float, refused: bool) -> None:
    rng = np.random.default_rng(10)
    codes, one = np.repeat(np.arange(9), 5), np.ones((45, 1))
    design = one, [Grouping(one, codes, 9, "g")], [term(0, 1)]
    Y = rng.normal(size=(9, 4))[codes] + size * rng.normal(size=(45, 4))
    _, reasons = ResponsePass(reduce_design(design, rng.normal(size=45))).reduce(Y)
    assert reasons.tolist() == [PERFECT if refused else OK] * 4
    for y in Y.T:
        reduction = reduce_design(design, y.copy())
        if refused:
            with pytest.raises(DesignError):
                check(reduction)
        else:
            check(reduction)


@pytest.mark.parametrize(("size", "refused"), [(1e-6, False), (1e-12, True), (0.0, True)])
def test_what_cancels_when_the_columns_are_removed_within_groups_is_no_variation(
    size: float, refused: bool
) -> None:
    rng = np.random.default_rng(10)
    effects, noise = rng.normal(size=(24, 50))[design_of(NAME)[1][0].codes], rng.normal(size=(110, 50))
    _, reasons = ResponsePass(reduction_of(NAME)).reduce(effects + size * noise)
    assert reasons.tolist() == [PERFECT if refused else OK] * 50


@pytest.mark.parametrize(("method", "reason"), [("reml", OK), ("ml", PERFECT)])
def test_a_saturated_design_has_a_restricted_likelihood_only(method: str, reason: int) -> None:
    rng = np.random.default_rng(11)
    codes = np.repeat(np.arange(10), 2)
    Z = np.column_stack([np.ones(20), np.tile([0.0, 1.0], 10)])
    design = Z, [Grouping(Z, codes, 10, "g")], [term(0, 2, structure="independent")]
    Y = rng.normal(size=(20, 3))
    reduction = reduce_design(design, Y[:, 0])
    _, reasons = ResponsePass(reduction, method=method).reduce(Y)  # type: ignore[arg-type]
    assert reasons.tolist() == [reason] * 3
    if reason:
        with pytest.raises(DesignError):
            check(reduction, "ml")


def test_a_linear_model_needs_no_variation_within_groups() -> None:
    Y = responses_of(design_of("linear"), 12)
    Y[:, 2] = design_of("linear")[0] @ [1.0, 2.0, 3.0]
    _, reasons = ResponsePass(reduction_of("linear")).reduce(Y)
    assert reasons.tolist() == [OK, OK, PERFECT, OK, OK, OK, OK]


# Arrays and shapes


@pytest.mark.parametrize("name", ["three levels", "patterns of two levels", "crossed"])
def test_chunks_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Y = responses_of(design_of(name), 13)
    Y[:, 5] = 1.0
    passing = ResponsePass(reduction_of(name))
    expected, reasons = passing.reduce(Y)
    monkeypatch.setattr(responses, "CHUNK_CELLS", 1)
    for width in (1, 3):
        monkeypatch.setattr(responses, "SMALLEST_CHUNK", width)
        found, same = passing.reduce(Y)
        np.testing.assert_array_equal(same, reasons)
        for a, b in zip(jax.tree_util.tree_leaves(found), jax.tree_util.tree_leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING * max(np.abs(b).max(), 1.0))
            assert a.flags.c_contiguous


@pytest.mark.parametrize("name", ["balanced", "one level"])
def test_the_responses_are_not_modified_and_may_have_any_layout_and_type(name: str) -> None:
    Y = np.round(100 * responses_of(design_of(name), 14))
    copy = Y.copy()
    Y.flags.writeable = False
    passing = ResponsePass(reduction_of(name))
    expected, _ = passing.reduce(Y)
    np.testing.assert_array_equal(Y, copy)
    wide = np.repeat(Y, 2, axis=1)[:, ::2]
    for other in (np.asfortranarray(Y), Y.astype(int), Y.astype(np.float32), wide, jnp.asarray(Y)):
        found, _ = passing.reduce(other)  # type: ignore[arg-type]
        jax.tree_util.tree_map(np.testing.assert_array_equal, found, expected)


def test_no_response_gives_empty_arrays() -> None:
    own, reasons = ResponsePass(reduction_of("crossed")).reduce(np.zeros((90, 0)))
    assert reasons.shape == (0,)
    assert all(part.shape[-1] == 0 for part in jax.tree_util.tree_leaves(own))


@pytest.mark.parametrize("shape", [(89, 2), (90,), (2, 90)])
def test_responses_of_another_length_are_refused_with_both_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"90 rows"):
        ResponsePass(reduction_of("crossed")).reduce(np.zeros(shape))


def test_the_reduction_holds_the_design_itself() -> None:
    design, reduction = design_of("crossed and weighted"), reduction_of("crossed and weighted")
    X, chain, _, weights, root = design
    assert reduction.design.X is X
    assert reduction.design.weights is weights
    assert reduction.design.groupings == tuple(chain)
    assert reduction.design.root == tuple(root)


# Attaching


@pytest.mark.parametrize("name", DESIGNS)
def test_attaching_the_own_response_changes_nothing(name: str) -> None:
    compact = reduction_of(name).compact
    assert_same(attach(compact, response_of(compact)), compact, 0.0)


@pytest.mark.parametrize("name", DESIGNS)
def test_padding_before_attaching_is_padding_after_it(name: str) -> None:
    passing = ResponsePass(reduction_of(name))
    own, _ = passing.reduce(responses_of(design_of(name), 15, 2))
    padded = pad_responses(own)
    for number in range(2):
        whole = jax.tree_util.tree_map(np.asarray, attach(passing.shared, lane(own, number)))
        assert_same(attach(pad(passing.shared), lane(padded, number)), pad(whole), 0.0)
        assert_same(attach(pad(passing.shared), pad_responses(lane(own, number))), pad(whole), 0.0)


@pytest.mark.parametrize("name", ["three levels", "patterns of two levels", "crossed", "linear"])
def test_attaching_maps_over_models_and_compiles(name: str) -> None:
    passing = ResponsePass(reduction_of(name))
    own, _ = passing.reduce(responses_of(design_of(name), 16))
    together = jax.vmap(lambda one: attach(passing.shared, one), in_axes=-1)
    both = jax.tree_util.tree_map(np.asarray, jax.jit(together, compiler_options=LIKE_FITS)(own))
    for number in range(LANES):
        mine = jax.tree_util.tree_map(lambda part, at=number: part[at], both)
        assert_same(mine, attach(passing.shared, lane(own, number)), 0.0)


def test_a_product_by_slices_is_the_product(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, B = rng.normal(size=(3, 20)), rng.normal(size=(20, 50))
    monkeypatch.setattr(groupsums, "SERIAL_PRODUCT", 60 * 7)
    np.testing.assert_allclose(groupsums.product(A, B), A @ B, rtol=ROUNDING, atol=ROUNDING)
    assert groupsums.product(A[:0], B).shape == (0, 50)
    assert groupsums.product(A, B[:, :0]).shape == (3, 0)

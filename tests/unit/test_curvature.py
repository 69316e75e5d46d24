"""The closed forms of the deviance's derivatives against automatic differentiation of the dense density."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed.covariance import covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.curvature import SAFE_DIVISOR, evaluate
from jaxmixed.layout import Grouping
from jaxmixed.likelihood import Method
from jaxmixed.optim import Evaluation
from jaxmixed.precision import double_precision
from jaxmixed.statistics import SufficientStatistics, Term, pad
from tests.support.compilation import QUICKLY

DERIVATIVE = 1e-9
"""Relative to the largest element: both sides lose some digits to the condition of V."""

N = 84
METHODS: tuple[Method, ...] = ("ml", "reml")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


class Factor(NamedTuple):
    """A grouping factor: its codes, and the structure and number of its effects."""

    codes: np.ndarray
    structure: str = "unstructured"
    effects: int = 1


class Design(NamedTuple):
    """Random rows, dense and reduced."""

    y: np.ndarray
    X: np.ndarray
    factors: tuple[Factor, ...]
    Z: tuple[np.ndarray, ...]
    weights: np.ndarray | None
    reduction: Reduction

    @property
    def stats(self) -> SufficientStatistics:
        return self.reduction.stats

    @property
    def in_root(self) -> np.ndarray:
        """Which parameters are the root's."""
        depth = len(self.stats.levels)
        return np.concatenate([np.full(t.covariance.num_params, t.level >= depth) for t in self.stats.terms])


# Sizes of the chain's factors and of the root's, structures, effects. A root of 33 or 66 columns is padded.
DESIGNS = {
    "two intercepts": (((40,),), ((33,),)),
    "vectors on both sides": (((40, "unstructured", 2),), ((33, "exchangeable", 2),)),
    "three levels beside two factors": (((18,), (6,), (2,)), ((5, "unstructured", 2), (3,))),
}


@cache
def drawn(name: str, weights: bool) -> Design:
    """Rows at random in crossed factors; the root's terms come first, as in a formula that names them so."""
    rng = np.random.default_rng(list(DESIGNS).index(name))
    chain, root = DESIGNS[name]
    fine = rng.permutation(np.resize(np.arange(chain[0][0]), N))
    factors = [Factor(fine * size // chain[0][0], *rest) for size, *rest in chain]  # type: ignore[arg-type]
    factors += [Factor(rng.permutation(np.resize(np.arange(size), N)), *rest) for size, *rest in root]  # type: ignore[arg-type]
    x = rng.normal(size=N)
    X, y = np.column_stack([np.ones(N), x]), 3 + x + rng.normal(size=N)
    groupings, terms = [], []
    for level, factor in enumerate(factors):
        size = factor.codes.max() + 1
        y += rng.normal(size=size)[factor.codes]
        Z = np.column_stack([np.ones(N), x])[:, : factor.effects]
        groupings.append(Grouping(Z, factor.codes, int(size), str(level)))
        terms.append(Term(level, 0, covariance_structure(factor.structure, factor.effects)))
    w = rng.uniform(0.3, 3, N) if weights else None
    depth = len(chain)
    order = [*range(depth, len(factors)), *range(depth)]
    reduction = reduce_rows(
        y, X, groupings[:depth], tuple(terms[k] for k in order), w, root=groupings[depth:]
    )
    columns = [found.standardise(groupings[k].Z, slice(None)) for k, found in zip(order, reduction.columns)]  # noqa: B905
    return Design(y, X, tuple(factors[k] for k in order), tuple(columns), w, reduction)


closed = jax.jit(evaluate, static_argnames="method", compiler_options=QUICKLY)


@cache
def dense_derivatives(name: str):  # type: ignore[no-untyped-def]
    """The profiled deviance and its parts from V, with all derivatives, for a design's shape."""
    factors, terms = drawn(name, False).factors, drawn(name, False).stats.terms
    same = [np.equal.outer(factor.codes, factor.codes) for factor in factors]

    def parts(x: jax.Array, y: Any, X: Any, Z: Any, weights: Any, fixed: Any) -> dict[str, Any]:
        V, start = jnp.diag(1 / weights), 0
        for term, together, columns in zip(terms, same, Z, strict=True):
            T = term.covariance.factor(x[start : start + term.covariance.num_params])
            start += term.covariance.num_params
            V += jnp.where(together, columns @ T @ T.T @ columns.T, 0.0)
        inverse, logdet = jnp.linalg.inv(V), jnp.linalg.slogdet(V)[1]
        information = X.T @ inverse @ X
        residual = y - X @ jnp.linalg.solve(information, X.T @ inverse @ y)
        log_rss = jnp.log(residual @ inverse @ residual)
        found: dict[str, Any] = {"aux": (log_rss, fixed.T @ inverse @ fixed)}
        for method in METHODS:
            df = N if method == "ml" else N - X.shape[1]
            value = logdet + df * (1 + jnp.log(2 * jnp.pi) + log_rss - jnp.log(df))
            found[method] = value + (jnp.linalg.slogdet(information)[1] if method == "reml" else 0.0)
        return found

    def slopes(x: jax.Array, *data: Any):  # type: ignore[no-untyped-def]
        found = jax.jacfwd(parts)(x, *data)
        return found, (found, parts(x, *data))

    return jax.jit(jax.jacfwd(slopes, has_aux=True), compiler_options=QUICKLY)


@cache
def dense(name: str, weights: bool, case: str) -> dict[str, Evaluation]:
    design = drawn(name, weights)
    theta = thetas(design)[case]
    fixed = design.reduction.fixed
    Xy = np.column_stack(
        [fixed.columns.standardise(design.X, slice(None)), (design.y - design.X @ fixed.origin) / fixed.scale]
    )
    w = np.ones(N) if design.weights is None else design.weights
    curve, (slope, value) = dense_derivatives(name)(theta, design.y, design.X, design.Z, w, Xy)
    tangents = jax.tree.map(lambda leaf: np.moveaxis(leaf, -1, 0), slope["aux"])
    return {m: Evaluation(value[m], slope[m], curve[m], value["aux"], tangents) for m in METHODS}


def thetas(design: Design) -> dict[str, np.ndarray]:
    """Ordinary parameters of either sign, singular factors, and factors on both sides of the safe divisor."""
    of_root = design.in_root
    ordinary = np.random.default_rng(8).normal(size=len(of_root))
    small = np.sign(ordinary) * np.maximum(np.abs(ordinary), 0.5)
    return {
        "ordinary": ordinary,
        "large": 20 * ordinary,
        "one element of the root at zero": np.where(np.arange(len(of_root)) == 0, 0.0, ordinary),
        "the root at zero": np.where(of_root, 0.0, ordinary),
        "the chain at zero": np.where(of_root, ordinary, 0.0),
        "everything at zero": 0 * ordinary,
        "a tiny root": np.where(of_root, 1e-2 * SAFE_DIVISOR * small, ordinary),
        "a root just above the safe divisor": np.where(of_root, 4 * SAFE_DIVISOR * small, ordinary),
    }


CASES = tuple(thetas(drawn("two intercepts", False)))


def assert_same(found: Evaluation, expected: Evaluation) -> None:
    for name, a, b in zip(Evaluation._fields, found, expected, strict=True):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            theirs = np.asarray(theirs)
            assert np.isfinite(theirs).all()
            limit = DERIVATIVE * max(np.abs(theirs).max(), 1e-6)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize(
    ("name", "method", "padded"),
    [
        ("two intercepts", "ml", False),
        ("two intercepts", "reml", True),
        ("vectors on both sides", "ml", True),
        pytest.param("three levels beside two factors", "reml", False, marks=pytest.mark.slow),
    ],
)
def test_the_closed_forms_are_the_derivatives_of_the_dense_density(
    name: str, method: Method, padded: bool, weights: bool, case: str
) -> None:
    design = drawn(name, weights)
    stats, theta = pad(design.stats) if padded else design.stats, thetas(design)[case]
    assert stats.root is not None
    assert (len(stats.root.gram) > sum(m * q for m, q in stats.root.shapes)) == padded
    assert_same(closed(theta, stats, method=method), dense(name, weights, case)[method])


def test_the_hessian_is_symmetric() -> None:
    design = drawn("vectors on both sides", True)
    at = closed(thetas(design)["ordinary"], pad(design.stats), method="ml")
    limit = 1e-12 * np.abs(at.hessian).max()
    np.testing.assert_allclose(at.hessian, np.asarray(at.hessian).T, rtol=0, atol=limit)


def test_the_deviance_is_even_in_a_singular_root() -> None:
    design = drawn("vectors on both sides", True)
    of_root = design.in_root
    at = closed(thetas(design)["the root at zero"], pad(design.stats), method="ml")
    gradient, hessian = np.asarray(at.gradient), np.asarray(at.hessian)
    assert (gradient[of_root] == 0).all()
    assert (hessian[np.ix_(of_root, ~of_root)] == 0).all()
    assert (np.diagonal(hessian)[of_root] != 0).all()

"""Crossed groupings of every kind: fits are those of the dense likelihood, and what must not matter does not.

Each drawn structure has a shape of its own and compiles anew; the invariances keep one shape, so that a few
compiled programs serve many designs. Each invariance has a short run and one over 500 designs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support import invariances
from tests.support.dense import Array, Block, DenseModel
from tests.support.designs import CROSSED, Design, random_covariances, random_crossed_design
from tests.support.fits import quietly
from tests.support.invariances import Case, short_and_long

pytestmark = pytest.mark.property

VALUE = 1e-9
"""Relative: the dense formulas solve with V, the library eliminates; both in float64."""

EFFECT = 1e-8
"""Relative to the largest: the dense formulas of the random effects solve with V twice."""

STATIONARY = 2e-6
"""Gradient in units of the square root of its own curvature: twice what a converged fit may have."""

METHODS = ("reml", "ml")
Beta = Literal["known", "estimated"]


def close(found: object, expected: Array, tolerance: float = VALUE) -> None:
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * max(np.abs(expected).max(), 1e-6)
    )


# The dense likelihood at and around the estimate


@dataclass(frozen=True)
class Drawn:
    """A random design with its fit; covariances stand in the order of the design's terms."""

    design: Design
    fit: jm.MixedResults
    rng: np.random.Generator

    @property
    def order(self) -> list[int]:
        """Number of the design's term, by term of the fit."""
        return [term.frame_index for term in self.fit.estimates.terms]

    @property
    def covs(self) -> tuple[Array, ...]:
        by_block = sorted(self.fit.estimates.terms, key=lambda term: term.frame_index)
        return tuple(term.cov for term in by_block)

    @property
    def relative(self) -> tuple[Array, ...]:
        return tuple(cov / self.fit.sigma**2 for cov in self.covs)

    def factors(self, theta: Array) -> tuple[Array, ...]:
        """Relative factors from theta: columns of lower triangles, or diagonals, term by term."""
        found: dict[int, Array] = {}
        start = 0
        for k in self.order:
            q = self.design.model.blocks[k].num_effects
            root = np.zeros((q, q))
            if self.design.terms[k].structure == "independent":
                rows = columns = np.arange(q)
            else:
                columns, rows = np.triu_indices(q)
            root[rows, columns] = theta[start : start + len(rows)]
            start += len(rows)
            found[k] = root
        assert start == len(theta)
        return tuple(found[k] for k in sorted(found))

    def dense_deviance(self, theta: Array) -> float:
        relative = tuple(root @ root.T for root in self.factors(theta))
        return -2 * self.design.model.profiled(relative, self.fit.method).llf


@cache
def drawn(kind: str, seed: int, method: str | None = None) -> Drawn:
    design = random_crossed_design(seed, kind=kind)
    method = METHODS[seed % 2] if method is None else method
    fit = quietly(design.formula, design.data, method=method, **design.arguments)
    return Drawn(design, fit, np.random.default_rng(seed))


def the_likelihood_is_the_dense_one(case: Drawn) -> None:
    fit, here = case.fit, case.design.model.profiled(case.relative, case.fit.method)
    assert fit.converged, fit.diagnostics.messages
    assert fit.llf == pytest.approx(here.llf, rel=VALUE)
    assert fit.deviance == pytest.approx(-2 * here.llf, rel=VALUE)
    assert fit.sigma == pytest.approx(here.sigma, rel=VALUE)


def fixed_effects_are_generalised_least_squares(case: Drawn) -> None:
    here = case.design.model.profiled(case.relative, case.fit.method)
    assert case.fit.params.index.tolist() == list(case.design.x_names)
    close(case.fit.params, here.beta, EFFECT)
    close(case.fit.cov_params(), here.cov_beta, EFFECT)
    close(case.fit.bse, np.sqrt(np.diagonal(here.cov_beta)), EFFECT)


def theta_is_the_factor_of_the_covariances(case: Drawn) -> None:
    for root, relative in zip(case.factors(case.fit.theta), case.relative, strict=True):
        np.testing.assert_allclose(root @ root.T, relative, rtol=1e-9, atol=1e-12)
    sizes = [case.design.model.blocks[k].num_levels for k in case.order]
    assert sizes == sorted(sizes, reverse=True)  # as in lme4, whatever was eliminated first


def the_dense_gradient_vanishes(case: Drawn) -> None:
    theta = case.fit.theta
    middle = case.dense_deviance(theta)
    for j in range(len(theta)):
        h = 1e-3 * max(0.1, abs(theta[j]))
        step = h * np.eye(len(theta))[j]
        far, near, after, beyond = (case.dense_deviance(theta + s * step) for s in (-2, -1, 1, 2))
        slope = (far - 8 * near + 8 * after - beyond) / (12 * h)
        curvature = abs(near - 2 * middle + after) / h**2
        assert abs(slope) <= STATIONARY * max(1.0, np.sqrt(curvature)) + 1e-11 * abs(middle) / h, (j, slope)


def no_nearby_covariances_are_better(case: Drawn) -> None:
    theta = case.fit.theta
    scale = np.maximum(np.abs(theta), 0.1 * max(1.0, np.abs(theta).max()))
    for size in (1e-3, 1e-2, 0.1, 0.5):
        for _ in range(3):
            moved = theta + size * scale * case.rng.normal(size=len(theta))
            assert case.dense_deviance(moved) >= case.fit.deviance - 1e-9 * abs(case.fit.deviance)


def no_drawn_covariances_are_better(case: Drawn) -> None:
    for _ in range(5):
        elsewhere = case.design.model.profiled(random_covariances(case.rng, case.design), case.fit.method)
        assert elsewhere.llf <= case.fit.llf + 1e-9 * abs(case.fit.llf)


def in_the_order_of_the_block(case: Drawn, k: int, table: dict[str, pd.DataFrame]) -> Array:
    """Rows and columns of a table of random effects as the dense block numbers them."""
    term = case.design.terms[k]
    found = table[term.label].rename(index=str)
    assert found.index.is_unique
    return found.loc[list(term.levels), list(term.names)].to_numpy()


def conditional_modes_are_the_dense_ones(case: Drawn) -> None:
    modes = case.fit.ranef()
    assert set(modes) == {term.label for term in case.design.terms}
    for k in range(len(case.design.terms)):
        expected = case.design.model.blups(k, case.covs, case.fit.sigma)
        close(in_the_order_of_the_block(case, k, modes), expected, EFFECT)


def their_standard_errors_are_the_dense_ones(case: Drawn, beta: Beta) -> None:
    errors = case.fit.ranef_se(beta=beta)
    for k in range(len(case.design.terms)):
        full = case.design.model.blup_cov(k, case.covs, case.fit.sigma, beta)
        variances = np.maximum(np.einsum("mii->mi", full), 0.0)
        found = in_the_order_of_the_block(case, k, errors)
        close(found**2, variances, EFFECT)


def fitted_values_add_up(case: Drawn) -> None:
    model = case.design.model
    total = model.X @ case.fit.params.to_numpy() + (0.0 if model.offset is None else model.offset)
    for k, block in enumerate(model.blocks):
        modes = in_the_order_of_the_block(case, k, case.fit.ranef())
        total = total + np.sum(block.Z * modes[block.codes], axis=1)
    close(case.fit.fittedvalues, total)
    close(case.fit.predict(case.design.data), total)


CHECKS: tuple[Callable[[Drawn], None], ...] = (
    the_likelihood_is_the_dense_one,
    fixed_effects_are_generalised_least_squares,
    theta_is_the_factor_of_the_covariances,
    the_dense_gradient_vanishes,
    no_nearby_covariances_are_better,
    no_drawn_covariances_are_better,
    conditional_modes_are_the_dense_ones,
    lambda case: their_standard_errors_are_the_dense_ones(case, "known"),
    lambda case: their_standard_errors_are_the_dense_ones(case, "estimated"),
    fitted_values_add_up,
)


QUICK = "two terms on one factor"


@pytest.mark.parametrize(
    "kind", [kind if kind == QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in CROSSED]
)
def test_a_crossed_structure_of_every_kind_equals_the_dense_oracle(kind: str) -> None:
    case = drawn(kind, list(CROSSED).index(kind))
    for check in CHECKS:
        check(case)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CROSSED)
def test_four_structures_of_every_kind_equal_the_dense_oracle(kind: str, method: str) -> None:
    # Each of these has a shape of its own and compiles anew, hence only four.
    for seed in range(100, 104):
        for check in CHECKS:
            check(drawn(kind, seed, method))


# Invariances

MODELS = ("y ~ x + (1 | h/a) + (1 | b)", "y ~ x + (x | a) + (1 | b)", "y ~ x + f + (1 | a) + (1 | b)")
SHORT = (1, 6)
"""Seeds of the short runs: the second and the first model, both by REML."""


def case(seed: int) -> Case:
    """Unbalanced data of 180 rows: 24 levels of a in 8 of h, crossed with 6 of b, some cells empty."""
    rng = np.random.default_rng(seed)
    a = rng.permutation(np.repeat(np.arange(24), 1 + rng.multinomial(156, np.full(24, 1 / 24))))
    b = rng.permutation(np.repeat(np.arange(6), 1 + rng.multinomial(174, np.full(6, 1 / 6))))
    x = rng.normal(size=180)
    f = rng.permutation(np.resize(list("uvw"), 180))
    y = x + rng.choice([0.3, 1, 2]) * rng.normal(size=24)[a] + rng.normal(size=8)[a // 3]
    y += rng.choice([0.0, 0.5, 1.5]) * rng.normal(size=6)[b]
    y += rng.choice([0.0, 0.5, 1]) * rng.normal(size=24)[a] * x + rng.normal(size=180)
    data = pd.DataFrame({"y": y, "x": x, "f": f, "a": a, "b": b, "h": a // 3})
    return Case(data, MODELS[seed % 3], METHODS[seed // 3 % 2], rng)


def assert_same(fit: jm.MixedResults, other: jm.MixedResults) -> None:
    """The same answer, to the accuracy that the optimum is found with."""
    assert fit.converged == other.converged
    np.testing.assert_allclose(fit.llf, other.llf, rtol=1e-9, atol=1e-8)
    if not fit.converged:
        return
    assert fit.ngroups == other.ngroups
    np.testing.assert_allclose(fit.sigma, other.sigma, rtol=1e-6)
    np.testing.assert_allclose(fit.params[other.params.index], other.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fit.bse[other.bse.index], other.bse, rtol=1e-5)
    np.testing.assert_allclose(np.sort(fit.fittedvalues), np.sort(other.fittedvalues), rtol=1e-5, atol=1e-5)


def assert_same_effects(fit: jm.MixedResults, other: jm.MixedResults) -> None:
    for group, table in other.ranef().items():
        np.testing.assert_allclose(fit.ranef()[group].loc[table.index], table, rtol=1e-4, atol=2e-5)
        for beta in ("known", "estimated"):
            errors = other.ranef_se(beta)[group]
            np.testing.assert_allclose(
                fit.ranef_se(beta)[group].loc[table.index], errors, rtol=1e-4, atol=2e-5
            )


def rows_in_any_order(seed: int) -> None:
    c = case(seed)
    base, moved = c.fit(), c.fit(c.data.iloc[c.rng.permutation(len(c.data))])
    assert_same(moved, base)
    assert_same_effects(moved, base)
    np.testing.assert_allclose(
        moved.fittedvalues.sort_index(), base.fittedvalues.sort_index(), rtol=1e-5, atol=1e-5
    )


def groups_under_any_name(seed: int) -> None:
    """New names put the levels of both factors into another order."""
    c = case(seed)
    names = [f"a{k}" for k in c.rng.permutation(24)]
    items = 10.0 ** c.rng.permutation(6)
    renamed = c.data.assign(a=[names[k] for k in c.data["a"]], b=items[c.data["b"]])
    base, moved = c.fit(), c.fit(renamed)
    assert_same(moved, base)
    np.testing.assert_allclose(
        moved.ranef()["b"].loc[items].to_numpy(), base.ranef()["b"].loc[np.arange(6)].to_numpy(), atol=2e-5
    )
    label = next(group for group in base.ranef() if group.endswith("a"))
    np.testing.assert_allclose(
        np.sort(moved.ranef()[label].iloc[:, 0]), np.sort(base.ranef()[label].iloc[:, 0]), atol=2e-5
    )


def terms_in_any_order(seed: int) -> None:
    c = case(seed)
    fixed, *bars = c.formula.split(" + (")
    bars = [f"({bar}" for bar in bars]
    names = list(c.rng.permutation(fixed.removeprefix("y ~ ").split(" + ")))
    base, moved = c.fit(), c.fit(formula=f"y ~ {' + '.join([*reversed(bars), *names])}")
    assert_same(moved, base)
    assert_same_effects(moved, base)
    assert [term.group for term in moved.random_terms] == [term.group for term in base.random_terms]
    np.testing.assert_allclose(moved.theta, base.theta, rtol=1e-4, atol=1e-5)


def response_in_any_unit(seed: int) -> None:
    invariances.response_in_any_unit(case(seed))


def predictor_in_any_unit(seed: int) -> None:
    invariances.predictor_in_any_unit(case(seed))


def constant_weights(seed: int) -> None:
    c = case(seed)
    weight = float(10 ** c.rng.uniform(-4, 4))
    base, weighted = c.fit(), c.fit(weights=np.full(180, weight))
    np.testing.assert_allclose(weighted.llf, base.llf, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(weighted.sigma**2, base.sigma**2 * weight, rtol=1e-6)
    np.testing.assert_allclose(weighted.params, base.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weighted.bse, base.bse, rtol=1e-5)
    assert_same_effects(weighted, base)


def response_plus_fixed_effects(seed: int) -> None:
    """Adding X b to the response adds b to the coefficients and leaves the rest; an offset undoes it."""
    c = case(seed)
    b = c.rng.normal(size=2) * 10
    added = b[0] + b[1] * c.data["x"]
    base, moved = c.fit(), c.fit(c.data.assign(y=c.data["y"] + added))
    names = ["(Intercept)", "x"]
    np.testing.assert_allclose(moved.params[names] - b, base.params[names], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved.llf, base.llf, rtol=1e-9, atol=1e-7)
    undone = c.fit(c.data.assign(y=c.data["y"] + added, o=added), f"{c.formula} + offset(o)")
    np.testing.assert_allclose(undone.params, base.params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(undone.llf, base.llf, rtol=1e-9, atol=1e-7)


def nesting_in_any_spelling(seed: int) -> None:
    """Labels of a are unique, so that nesting in h need not be declared."""
    c = case(seed)
    base = c.fit(formula=MODELS[0])
    for bars in ("(1 | a) + (1 | b) + (1 | h)", "(1 | b) + (1 | h) + (1 | h:a)"):
        moved = c.fit(formula=f"y ~ x + {bars}")
        np.testing.assert_allclose(moved.llf, base.llf, rtol=1e-9, atol=1e-8)
        same = {label.removeprefix("h:"): cov for label, cov in invariances.covariances(moved).items()}
        for label, cov in invariances.covariances(base).items():
            np.testing.assert_allclose(
                same[label.removeprefix("h:")], cov, rtol=1e-4, atol=1e-5 * base.sigma**2
            )
        np.testing.assert_allclose(moved.fittedvalues, base.fittedvalues, rtol=1e-5, atol=1e-5)


def a_larger_model_has_no_smaller_likelihood(seed: int) -> None:
    c = case(seed)
    small = [c.fit(formula=f"y ~ x + {bars}") for bars in ("(1 | a)", "(1 | b)")]
    middle = c.fit(formula="y ~ x + (1 | a) + (1 | b)")
    slack = 1e-9 * abs(middle.llf)
    assert middle.llf >= max(fit.llf for fit in small) - slack
    assert min(c.fit(formula=larger).llf for larger in MODELS[:2]) >= middle.llf - slack


test_rows_in_any_order, test_rows_in_any_order_500 = short_and_long(rows_in_any_order, SHORT)
test_groups_under_any_name, test_groups_under_any_name_500 = short_and_long(groups_under_any_name, SHORT)
test_terms_in_any_order, test_terms_in_any_order_500 = short_and_long(terms_in_any_order, SHORT)
test_response_in_any_unit, test_response_in_any_unit_500 = short_and_long(response_in_any_unit, SHORT)
test_predictor_in_any_unit, test_predictor_in_any_unit_500 = short_and_long(predictor_in_any_unit, SHORT)
test_constant_weights, test_constant_weights_500 = short_and_long(constant_weights, SHORT)
test_nesting_in_any_spelling, test_nesting_in_any_spelling_500 = short_and_long(
    nesting_in_any_spelling, SHORT[1:]
)
test_response_plus_fixed_effects, test_response_plus_fixed_effects_500 = short_and_long(
    response_plus_fixed_effects, SHORT
)
_, test_larger_models_500 = short_and_long(a_larger_model_has_no_smaller_likelihood, SHORT)


# One shape, many data: the dense oracle


def fixed_shape_equals_the_dense_oracle(seed: int) -> None:
    c = case(seed)
    fit, data = c.fit(), c.data
    one = np.ones((180, 1))
    columns = [data["x"], *([data["f"] == "v", data["f"] == "w"] if c.formula == MODELS[2] else [])]
    X = np.column_stack([one[:, 0], *columns]).astype(float)
    block_b = Block(one, data["b"].to_numpy())
    slopes = Block(np.column_stack([one[:, 0], data["x"]]), data["a"].to_numpy())
    intercepts = Block(one, data["a"].to_numpy())
    blocks = {
        MODELS[0]: {"h:a": intercepts, "h": Block(one, data["h"].to_numpy()), "b": block_b},
        MODELS[1]: {"a": slopes, "b": block_b},
        MODELS[2]: {"a": intercepts, "b": block_b},
    }[c.formula]
    model = DenseModel(data["y"].to_numpy(), X, tuple(blocks.values()))
    covs = tuple(invariances.covariances(fit)[label] for label in blocks)
    here = model.profiled(tuple(cov / fit.sigma**2 for cov in covs), fit.method)
    assert fit.converged, fit.diagnostics.messages
    np.testing.assert_allclose(fit.llf, here.llf, rtol=VALUE)
    np.testing.assert_allclose(fit.sigma, here.sigma, rtol=VALUE)
    close(fit.params, here.beta, EFFECT)
    close(fit.cov_params(), here.cov_beta, EFFECT)
    for k, label in enumerate(blocks):
        names = [f"{a // 3}:{a}" for a in range(24)] if label == "h:a" else range(blocks[label].num_levels)
        found = fit.ranef()[label].loc[list(names)].to_numpy()
        expected = model.blups(k, covs, fit.sigma)
        close(found, expected, EFFECT)
    for size in (1e-3, 1e-2, 0.1):
        moved = []
        for cov in covs:
            root = np.linalg.cholesky(cov / fit.sigma**2 + 1e-12 * np.eye(len(cov)))
            root += size * np.tril(c.rng.normal(size=root.shape)) * max(1.0, np.abs(root).max())
            moved.append(root @ root.T)
        assert model.profiled(tuple(moved), fit.method).llf <= fit.llf + 1e-9 * abs(fit.llf)


test_fixed_shape, test_fixed_shape_500 = short_and_long(fixed_shape_equals_the_dense_oracle, SHORT)

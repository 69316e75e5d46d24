"""What must not change an answer does not: order, names, units, spelling; and the answer is the dense one.

Designs keep a few fixed shapes, so that one compiled program serves many of them; what is random is the data,
the parameters and the transformation. Each property has a short run and one over 500 designs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support import invariances
from tests.support.dense import Block, DenseModel
from tests.support.designs import random_design
from tests.support.fits import quietly
from tests.support.invariances import Case, short_and_long

pytestmark = pytest.mark.property

MODELS = ("y ~ x + z + (1 | g)", "y ~ x + z + (x | g)", "y ~ x + f + (1 | h/g)")
METHODS = ("reml", "ml")

# Seeds of the short runs: these make few pairs of a model and a method, each a program to compile.
SHORT = (0, 4, 2, 6, 10, 8)
"""The first and the third model by REML, the second by ML."""

BY_REML = (0, 1, 2, 6, 7, 8)
BY_BOTH = (0, 3, 1, 4, 2, 5)


def case(seed: int) -> Case:
    """Unbalanced data of 120 rows in 24 groups in 6 larger ones."""
    rng = np.random.default_rng(seed)
    sizes = 1 + rng.multinomial(96, np.full(24, 1 / 24))
    g = rng.permutation(np.repeat(np.arange(24), sizes))
    x, z = rng.normal(size=(2, 120))
    f = rng.permutation(np.resize(list("abc"), 120))
    y = x - 0.5 * z + rng.choice([0.3, 1, 2]) * rng.normal(size=24)[g] + rng.normal(size=6)[g // 4]
    y += rng.choice([0.0, 0.5, 1]) * rng.normal(size=24)[g] * x + rng.normal(size=120)
    data = pd.DataFrame({"y": y, "x": x, "z": z, "f": f, "g": g, "h": g // 4})
    return Case(data, MODELS[seed % 3], METHODS[seed // 3 % 2], rng)


def assert_same(fit: jm.MixedResults, other: jm.MixedResults, *, rows: bool = True) -> None:
    """The same answer, to the accuracy that the optimum is found with."""
    assert fit.converged == other.converged
    np.testing.assert_allclose(fit.llf, other.llf, rtol=1e-9, atol=1e-8)
    if not fit.converged:
        return
    np.testing.assert_allclose(fit.sigma, other.sigma, rtol=1e-6)
    if set(fit.params.index) == set(other.params.index):
        np.testing.assert_allclose(fit.params[other.params.index], other.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(fit.bse[other.bse.index], other.bse, rtol=1e-5)
    if rows:
        np.testing.assert_allclose(
            np.sort(fit.fittedvalues), np.sort(other.fittedvalues), rtol=1e-5, atol=1e-5
        )


def rows_in_any_order(seed: int) -> None:
    c = case(seed)
    order = c.rng.permutation(len(c.data))
    base, moved = c.fit(), c.fit(c.data.iloc[order])
    assert_same(moved, base)
    np.testing.assert_allclose(
        moved.fittedvalues.sort_index(), base.fittedvalues.sort_index(), rtol=1e-5, atol=1e-5
    )


def groups_under_any_name(seed: int) -> None:
    c = case(seed)
    names = [f"g{k}" for k in c.rng.permutation(24)]
    outer = 10.0 ** c.rng.permutation(6)
    renamed = c.data.assign(g=[names[k] for k in c.data["g"]], h=outer[c.data["h"]])
    base, moved = c.fit(), c.fit(renamed)
    assert_same(moved, base)
    label = next(group for group in base.ranef() if group.endswith("g"))
    np.testing.assert_allclose(
        np.sort(moved.ranef()[label].iloc[:, 0]), np.sort(base.ranef()[label].iloc[:, 0]), atol=2e-5
    )


def levels_in_any_order(seed: int) -> None:
    """The reference level changes the coefficients but neither likelihood (ML) nor fitted values."""
    c = case(seed)
    formula = MODELS[2]
    reordered = c.data.assign(f=pd.Categorical(c.data["f"], list(c.rng.permutation(list("abcd")))))
    base, moved = c.fit(formula=formula), c.fit(reordered, formula)
    np.testing.assert_allclose(moved.fittedvalues, base.fittedvalues, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved.sigma, base.sigma, rtol=1e-6)
    # |det A| of the change of contrasts is 1, so that even the REML criterion stays.
    np.testing.assert_allclose(moved.llf, base.llf, rtol=1e-9)


def response_in_any_unit(seed: int) -> None:
    invariances.response_in_any_unit(case(seed))


def predictor_in_any_unit(seed: int) -> None:
    invariances.predictor_in_any_unit(case(seed))


def predictor_in_whole_units(seed: int) -> None:
    """Integers times a whole number, stored as integers of the narrowest type or as floats."""
    c = case(seed)
    whole = np.round(2 * c.data["x"]).astype(int)
    factor = int(c.rng.integers(2, 10))
    base = c.fit(c.data.assign(x=whole.astype(float)))
    narrow = c.fit(c.data.assign(x=(factor * whole).astype("int8")))
    wide = c.fit(c.data.assign(x=factor * whole.astype(float)))
    assert narrow.llf == wide.llf
    jacobian = np.log(factor) if c.method == "reml" else 0.0
    np.testing.assert_allclose(wide.llf, base.llf - jacobian, rtol=1e-9, atol=1e-7)


def terms_in_any_order(seed: int) -> None:
    c = case(seed)
    left, bars = c.formula.split(" + (")[0], c.formula.split(" + (")[1]
    fixed = list(c.rng.permutation(left.removeprefix("y ~ ").split(" + ")))
    assert_same(c.fit(formula=f"y ~ ({bars} + {' + '.join(fixed)}"), c.fit())


def nesting_in_any_spelling(seed: int) -> None:
    c = case(seed)
    base = c.fit(formula="y ~ x + f + (1 | h/g)")
    for bars in ("(1 | h:g) + (1 | h)", "(1 | g) + (1 | h)", "(1 | h) + (1 | h:g)"):
        assert_same(c.fit(formula=f"y ~ x + f + {bars}"), base)


def constant_weights(seed: int) -> None:
    c = case(seed)
    weight = float(10 ** c.rng.uniform(-4, 4))
    base, weighted = c.fit(), c.fit(weights=np.full(120, weight))
    np.testing.assert_allclose(weighted.llf, base.llf, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(weighted.sigma**2, base.sigma**2 * weight, rtol=1e-6)
    np.testing.assert_allclose(weighted.params, base.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weighted.bse, base.bse, rtol=1e-5)


def labels_of_rows(seed: int) -> None:
    c = case(seed)
    labelled = c.data.set_index(pd.Index(c.rng.integers(5, size=120)))
    base, moved = c.fit(), c.fit(labelled)
    assert moved.llf == base.llf
    assert moved.fittedvalues.index.equals(labelled.index)
    np.testing.assert_array_equal(moved.fittedvalues, base.fittedvalues.to_numpy())


def unused_categories(seed: int) -> None:
    c = case(seed)
    used = sorted(set(c.data["f"]))
    padded = c.data.assign(
        f=pd.Categorical(c.data["f"], ["0", *used, "zz"]), g=pd.Categorical(c.data["g"], range(-3, 40))
    )
    assert c.fit(padded).llf == c.fit().llf


def double_bars(seed: int) -> None:
    c = case(seed)
    base = c.fit(formula="y ~ x + (x || g)")
    assert_same(c.fit(formula="y ~ x + (1 | g) + (0 + x | g)"), base)
    assert_same(c.fit(formula="y ~ x + (x | g)", covariance="independent"), base)


def fixed_effects_in_any_basis(seed: int) -> None:
    """X -> X A: the REML criterion moves by log|det A|, its estimates not at all."""
    c = case(seed)
    A = c.rng.normal(size=(2, 2)) + 2 * np.eye(2)
    mixed = c.data[["x", "z"]].to_numpy() @ A
    data = c.data.assign(u=mixed[:, 0] + c.rng.normal(), v=mixed[:, 1] + c.rng.normal())
    base, moved = c.fit(formula=MODELS[0]), c.fit(data, "y ~ u + v + (1 | g)")
    jacobian = np.log(abs(np.linalg.det(A))) if c.method == "reml" else 0.0
    np.testing.assert_allclose(moved.llf, base.llf - jacobian, rtol=1e-9, atol=1e-7)
    np.testing.assert_allclose(moved.sigma, base.sigma, rtol=1e-6)
    np.testing.assert_allclose(moved.fittedvalues, base.fittedvalues, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(A @ moved.params[["u", "v"]], base.params[["x", "z"]], rtol=1e-4, atol=1e-5)


def response_plus_fixed_effects(seed: int) -> None:
    """Adding X b to the response adds b to the coefficients and leaves the rest; an offset undoes it."""
    c = case(seed)
    b = c.rng.normal(size=3) * 10
    added = b[0] + b[1] * c.data["x"] + b[2] * c.data["z"]
    formula = MODELS[seed % 2]
    base, moved = c.fit(formula=formula), c.fit(c.data.assign(y=c.data["y"] + added), formula)
    np.testing.assert_allclose(moved.params - b, base.params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moved.llf, base.llf, rtol=1e-9, atol=1e-7)
    undone = c.fit(c.data.assign(y=c.data["y"] + added, o=added), f"{formula} + offset(o)")
    np.testing.assert_allclose(undone.params, base.params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(undone.llf, base.llf, rtol=1e-9, atol=1e-7)


test_rows_in_any_order, test_rows_in_any_order_500 = short_and_long(rows_in_any_order, SHORT)
test_groups_under_any_name, test_groups_under_any_name_500 = short_and_long(groups_under_any_name, SHORT)
test_levels_in_any_order, test_levels_in_any_order_500 = short_and_long(levels_in_any_order, BY_REML)
test_response_in_any_unit, test_response_in_any_unit_500 = short_and_long(response_in_any_unit, SHORT)
test_predictor_in_any_unit, test_predictor_in_any_unit_500 = short_and_long(predictor_in_any_unit, SHORT)
test_predictor_in_whole_units, test_predictor_in_whole_units_500 = short_and_long(
    predictor_in_whole_units, SHORT
)
test_terms_in_any_order, test_terms_in_any_order_500 = short_and_long(terms_in_any_order, SHORT)
test_nesting_in_any_spelling, test_nesting_in_any_spelling_500 = short_and_long(
    nesting_in_any_spelling, BY_REML
)
test_constant_weights, test_constant_weights_500 = short_and_long(constant_weights, SHORT)
test_labels_of_rows, test_labels_of_rows_500 = short_and_long(labels_of_rows, SHORT)
test_unused_categories, test_unused_categories_500 = short_and_long(unused_categories, SHORT)
test_double_bars, test_double_bars_500 = short_and_long(double_bars, BY_REML)
test_fixed_effects_in_any_basis, test_fixed_effects_in_any_basis_500 = short_and_long(
    fixed_effects_in_any_basis, BY_BOTH
)
test_response_plus_fixed_effects, test_response_plus_fixed_effects_500 = short_and_long(
    response_plus_fixed_effects, (0, 2, 3, 5, 6, 9)
)


# The dense oracle


def assert_dense(
    fit: jm.MixedResults, model: DenseModel, blocks: dict[str, int], rng: np.random.Generator
) -> None:
    """The fit is what the dense likelihood says at its variances, and no nearby variances are better."""
    relative = [np.zeros((0, 0))] * len(model.blocks)
    for term in fit.random_terms:
        relative[blocks[term.group]] = term.cov.to_numpy() / fit.sigma**2
    here = model.profiled(tuple(relative), fit.method)
    np.testing.assert_allclose(fit.llf, here.llf, rtol=1e-10)
    np.testing.assert_allclose(fit.sigma, here.sigma, rtol=1e-9)
    np.testing.assert_allclose(fit.params, here.beta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.bse, np.sqrt(np.diagonal(here.cov_beta)), rtol=1e-6)
    absolute = tuple(fit.sigma**2 * cov for cov in relative)
    for term in fit.random_terms:
        expected = model.blups(blocks[term.group], absolute, fit.sigma)
        np.testing.assert_allclose(fit.ranef()[term.group], expected, rtol=1e-6, atol=1e-7)
    for size in (1e-3, 1e-2, 0.1):
        moved = []
        for cov in relative:
            root = np.linalg.cholesky(cov + 1e-12 * np.eye(len(cov)))
            root += size * np.tril(rng.normal(size=root.shape)) * max(1.0, np.abs(root).max())
            moved.append(root @ root.T)
        assert model.profiled(tuple(moved), fit.method).llf <= fit.llf + 1e-7


def equals_the_dense_oracle(seed: int) -> None:
    c = case(seed)
    fit = c.fit()
    data = c.data
    one = np.ones((120, 1))
    columns = [data["x"], data["z"]]
    if c.formula == MODELS[2]:
        columns = [data["x"], data["f"] == "b", data["f"] == "c"]
    X = np.column_stack([one[:, 0], *columns]).astype(float)
    slopes = np.column_stack([one[:, 0], data["x"]])
    blocks = {
        MODELS[0]: {"g": Block(one, data["g"].to_numpy())},
        MODELS[1]: {"g": Block(slopes, data["g"].to_numpy())},
        MODELS[2]: {"h:g": Block(one, data["g"].to_numpy()), "h": Block(one, data["h"].to_numpy())},
    }[c.formula]
    model = DenseModel(data["y"].to_numpy(), X, tuple(blocks.values()))
    assert_dense(fit, model, {label: k for k, label in enumerate(blocks)}, c.rng)


test_equals_the_dense_oracle, test_equals_the_dense_oracle_500 = short_and_long(
    equals_the_dense_oracle, SHORT
)


def random_structure_equals_the_dense_oracle(seed: int, *methods: str) -> None:
    design = random_design(seed)
    for method in methods:
        fit = quietly(design.formula, design.data, method=method, **design.arguments)
        assert fit.params.index.tolist() == list(design.x_names)
        blocks = {term.label: k for k, term in enumerate(design.terms)}
        assert_dense(fit, design.model, blocks, np.random.default_rng(seed))


@pytest.mark.parametrize(("seed", "method"), [(3, "reml"), (8, "ml")])
def test_a_random_structure_equals_the_dense_oracle(seed, method):
    random_structure_equals_the_dense_oracle(seed, method)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(1000, 1040, 4))
def test_forty_random_structures_equal_the_dense_oracle(first):
    # Each of these has a shape of its own and compiles anew, hence only forty.
    for seed in range(first, first + 4):
        random_structure_equals_the_dense_oracle(seed, *METHODS)

"""Degrees of freedom from the design: classical layouts, ranks of dense matrices, refusals."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmixed as jm
from jaxmixed.design_df import coefficient_df
from jaxmixed.frame import ModelFrame, build_frame
from tests.support.fits import fit


def df(kind: str, formula: str, data: pd.DataFrame) -> dict[str, float]:
    """Degrees of freedom by coefficient, of a model that needs no fit; X must have full rank."""
    frame = build_frame(formula, data)
    estimates: Any = SimpleNamespace(beta=np.zeros(len(frame.x_names)))
    return dict(zip(frame.x_names, coefficient_df(kind, frame, estimates).tolist(), strict=True))


def oats() -> pd.DataFrame:
    return jm.datasets.load("oats").assign(nitro=lambda table: table["nitro"].astype(str))


@pytest.mark.parametrize("kind", ["between-within", "containment"])
def test_a_balanced_split_plot_has_the_strata_of_its_analysis_of_variance(kind: str) -> None:
    found = df(kind, "yield ~ Variety * nitro + (1 | Block/Variety)", oats())
    assert found["(Intercept)"] == 5
    by_term = {name: value for name, value in found.items() if name != "(Intercept)"}
    for name, value in by_term.items():
        assert value == (10 if name.startswith("Variety") and ":" not in name else 45), name


def test_random_slopes_contain_their_fixed_slope() -> None:
    data = jm.datasets.load("sleepstudy")
    assert list(df("containment", "Reaction ~ Days + (Days | Subject)", data).values()) == [17, 17]
    assert list(df("containment", "Reaction ~ Days + (1 | Subject)", data).values()) == [17, 161]
    assert list(df("containment", "Reaction ~ Days + (0 + Days | Subject)", data).values()) == [161, 17]
    assert list(df("between-within", "Reaction ~ Days + (Days | Subject)", data).values()) == [17, 161]
    assert list(df("residual", "Reaction ~ Days + (Days | Subject)", data).values()) == [178, 178]


def test_a_factor_with_random_effects_counts_as_one_effect() -> None:
    """The interaction of 6 workers and 3 machines has 10 degrees of freedom beside both."""
    data = jm.datasets.load("machines")
    for random in ("(1 | Worker/Machine)", "(1 | Worker) + (0 + Machine || Worker)", "(Machine | Worker)"):
        found = df("containment", f"score ~ Machine + {random}", data)
        assert (found["MachineB"], found["MachineC"]) == (10, 10), random


def test_crossed_factors_have_their_own_contributions() -> None:
    found = df("containment", "diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin"))
    assert found == {"(Intercept)": 5}  # of 6 samples; the 24 plates contribute 23
    with pytest.raises(jm.DesignError, match=r"'plate' is crossed with 'sample'.*ddf=\"containment\""):
        df("between-within", "diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin"))


@pytest.mark.parametrize("coding", ["f", "0 + f", "C(f, sum)", "C(f, helmert)"])
def test_the_coding_of_a_factor_does_not_matter_between_and_within(coding: str) -> None:
    data = pd.DataFrame({"g": np.repeat(np.arange(8), 6), "f": np.tile(list("abc"), 16)})
    data["b"] = (data["g"] % 2).astype(float)
    data["y"] = np.random.default_rng(1).normal(size=48)
    found = df("between-within", f"y ~ {coding} + b + (1 | g)", data)
    within = {value for name, value in found.items() if name not in ("(Intercept)", "b")}
    assert found["b"] == 8 - 2
    assert within == {48 - 8 - 2}


def test_three_levels_have_three_strata() -> None:
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"a": np.repeat(np.arange(5), 12), "b": np.repeat(np.arange(20), 3)})
    data["xa"], data["xb"] = rng.normal(size=5)[data["a"]], rng.normal(size=20)[data["b"]]
    data["x"], data["y"] = rng.normal(size=60), rng.normal(size=60)
    found = df("between-within", "y ~ xa + xb + x + (1 | a/b)", data)
    assert list(found.values()) == [3, 3, 20 - 5 - 1, 60 - 20 - 1]


def test_a_column_that_hardly_varies_within_groups_is_within_them() -> None:
    """A year of birth in seconds, with a millionth of its spread within groups."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 4), "y": rng.normal(size=40)})
    data["x"] = 1e9 + 1e7 * rng.normal(size=10)[data["g"]]
    assert df("between-within", "y ~ x + (1 | g)", data)["x"] == 8
    assert df("containment", "y ~ x + (1 | g)", data)["x"] == 8
    data["x"] += 1e3 * rng.normal(size=40)
    assert df("between-within", "y ~ x + (1 | g)", data)["x"] == 29
    assert df("containment", "y ~ x + (1 | g)", data)["x"] == 29


def test_a_saturated_stratum_has_none() -> None:
    data = pd.DataFrame({"g": np.repeat(np.arange(3), 5), "y": np.random.default_rng(1).normal(size=15)})
    data["b"] = pd.Categorical(data["g"])
    assert set(df("between-within", "y ~ b + (1 | g)", data).values()) == {0}
    assert set(df("containment", "y ~ b + (1 | g)", data).values()) == {0}


def test_tables_of_coefficients_use_them() -> None:
    found = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)").coef_table(ddf="containment")
    assert found["df"].tolist() == [17, 17]
    linear = fit("sleepstudy", "Reaction ~ Days")
    for kind in ("residual", "between-within", "containment"):
        assert linear.coef_table(ddf=kind)["df"].tolist() == [178, 178]


def test_aliased_coefficients_have_none() -> None:
    data = jm.datasets.load("sleepstudy").assign(Twice=lambda table: 2 * table["Days"])
    with pytest.warns(jm.RankDeficientWarning):
        found = jm.mixed("Reaction ~ Days + Twice + (1 | Subject)", data).coef_table(ddf="containment")
    assert np.isnan(found.loc["Twice", "df"])
    assert found.loc["Days", "df"] == 161


# Ranks by dense matrices


def effects_of(frame: ModelFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """Columns and codes of every random effect, a factor's together."""
    found = []
    for group, coding in zip(frame.groups, frame.encoding.random, strict=True):
        assign = np.array(coding.assign)
        found += [(np.asarray(group.Z)[:, assign == t], group.codes) for t in sorted(set(coding.assign))]
    return found


def wide(Z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    dummies = codes[:, None] == np.arange(codes.max() + 1)
    return np.asarray((dummies[:, :, None] * Z[:, None, :]).reshape(len(Z), -1))


def rank(*blocks: np.ndarray) -> int:
    matrix = np.column_stack(blocks)
    sizes = np.sqrt((matrix**2).sum(axis=0))
    return int(np.linalg.matrix_rank(matrix[:, sizes > 0] / sizes[sizes > 0], tol=1e-7))


def dense_containment(frame: ModelFrame) -> np.ndarray:
    """The definition, with n x n matrices."""
    X = np.asarray(frame.X)
    blocks = [wide(*effect) for effect in effects_of(frame)]

    def contains(outer: np.ndarray, inner: np.ndarray) -> bool:
        return rank(outer, inner) == rank(outer)

    found = np.full(X.shape[1], float(len(X) - rank(X, *blocks)))
    for j, (k, own) in itertools.product(range(X.shape[1]), enumerate(blocks)):
        if not contains(own, X[:, [j]]):
            continue
        others = [
            other
            for i, other in enumerate(blocks)
            if i != k and (not contains(other, own) or (i < k and contains(own, other)))
        ]
        contribution = rank(X, *others, own) - rank(X, *others)
        holders = sum(contains(blocks[i], X[:, [j]]) for i in range(k))
        found[j] = min(found[j], contribution) if holders else contribution
    return found


RANDOM = [
    "(1 | a)",
    "(x | a)",
    "(x + f | a)",
    "(1 | a/b)",
    "(1 | a) + (1 | c)",
    "(x || a) + (1 | c)",
    "(1 | a/b) + (0 + f | c)",
    "(1 | b) + (x | c) + (1 | d)",
    "(1 | a:c) + (1 | c)",
]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(RANDOM), st.sampled_from(["x", "u", "f", "x + f * u"]))
def test_contributions_are_ranks_of_dense_matrices(seed: int, random: str, fixed: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(14, 40))
    data = pd.DataFrame({"b": rng.integers(0, 8, n), "c": rng.integers(0, 4, n), "d": rng.integers(0, 3, n)})
    data["a"] = data["b"] // 2
    data["f"] = rng.permutation(np.resize(list("pqr"), n))
    data["x"], data["y"] = rng.normal(size=n), rng.normal(size=n)
    data["u"] = rng.normal(size=8)[data["a"]]
    try:
        frame = build_frame(f"y ~ {fixed} + {random}", data)
    except jm.DesignError:
        return
    X = np.asarray(frame.X)
    if rank(X) < X.shape[1]:
        return
    estimates: Any = SimpleNamespace(beta=np.zeros(X.shape[1]))
    assert coefficient_df("containment", frame, estimates).tolist() == dense_containment(frame).tolist()


@pytest.mark.slow
def test_a_million_rows_take_seconds() -> None:
    """Ranks come from groups: nothing of the order of rows by groups is made."""
    rng = np.random.default_rng(0)
    n, m = 1_000_000, 50_000
    data = pd.DataFrame({"g": rng.integers(0, m, n), "x": rng.normal(size=n), "y": rng.normal(size=n)})
    data["h"] = data["g"] % 500
    data["z"] = rng.normal(size=m)[data["g"]]
    found = df("containment", "y ~ x + z + (x | g) + (1 | h)", data)
    assert found["x"] == m - 1
    assert found["z"] == m - 500 - 1
    assert found["(Intercept)"] == 499
    within = df("between-within", "y ~ x + z + (x | g) + (1 | h)", data)
    assert (within["x"], within["z"]) == (n - m - 1, m - 500 - 1)

"""Every error comes in seconds, before anything large is allocated, and names what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import jaxmixed as jm
from tests.support.simulated import outcome, students

LIMIT = 5.0


def rows(n: int, **columns: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"y": rng.normal(size=n), "x": rng.normal(size=n), **columns}


def crossed(n: int = 300_000, levels: int = 60_000) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return rows(n, a=rng.integers(levels, size=n), b=rng.integers(levels, size=n))


def levels(n: int, count: int, groups: int = 10) -> dict[str, Any]:
    return rows(n, f=np.array([f"level {i % count}" for i in range(n)]), g=np.arange(n) % groups)


def many_columns() -> dict[str, Any]:
    return {**{f"v{i}": np.arange(50.0) ** (1 + i / 50) for i in range(24)}, **rows(50, g=np.arange(50) % 5)}


def unusable(**columns: Any) -> Callable[[], Any]:
    return lambda: students().assign(**columns)


TOO_LONG = "y ~ " + " + ".join(f"x{i}" for i in range(5000)) + " + (1 | g)"

CASES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    # Formulas
    ("y ~ " + "(" * 5000 + "x" + ")" * 5000 + " + (1 | g)", students, jm.FormulaError, "10,000"),
    ("y ~ " + "(" * 4900 + "x" + ")" * 4900 + " + (1 | g)", students, jm.FormulaError, "nest"),
    (f"y ~ ({' + '.join(f'v{i}' for i in range(24))})^24 + (1 | g)", many_columns, jm.FormulaError, "terms"),
    (f"y ~ ({' + '.join(f'v{i}' for i in range(24))})**24 + (1 | g)", many_columns, jm.FormulaError, "terms"),
    ("y ~ " + " * ".join(f"v{i}" for i in range(24)) + " + (1 | g)", many_columns, jm.FormulaError, "terms"),
    ("y ~ I(x^9^9^9^9) + (1 | g)", students, jm.FormulaError, "exponent"),
    ("y ~ I(9^9^9^9) + (1 | g)", students, jm.FormulaError, "exponent"),
    ("y ~ poly(x, 100000) + (1 | g)", students, jm.FormulaError, "degree"),
    (TOO_LONG, students, jm.FormulaError, "long"),
    ("y ~ " + "-" * 9000 + "x", students, jm.FormulaError, ""),
    ("y ~ x + (1 | " + "/".join(f"g{i}" for i in range(500)) + ")", students, jm.JaxMixedError, "g"),
    ("y x (1 | g)", students, jm.FormulaError, "~"),
    ("y ~ x + (1 | g", students, jm.FormulaError, "("),
    ("y ~ x + 1 | g", students, jm.FormulaError, "parenthes"),
    ("y ~ x * (1 | g)", students, jm.FormulaError, "(1 | g)"),
    ("y ~ x + (0 | g)", students, jm.FormulaError, "g"),
    ("y ~ x + (g | g)", students, jm.FormulaError, "g"),
    ("y ~ y + (1 | g)", students, jm.FormulaError, "y"),
    ("y ~ . + (1 | g)", students, jm.FormulaError, "."),
    # Columns
    ("y ~ days + (1 | subject)", students, jm.DataError, "'days'"),
    ("y ~ x + (1 | g)", unusable(y=1.0), jm.DataError, "constant"),
    ("y ~ x + (1 | g)", unusable(y="text"), jm.DataError, "'y'"),
    ("y ~ x + (1 | g)", unusable(x=np.inf), jm.DataError, "'x'"),
    ("y ~ x + (1 | g)", unusable(x=np.nan), jm.DataError, "x"),
    ("y ~ log(x) + (1 | g)", unusable(x=-1.0), jm.DataError, "log(x)"),
    ("y ~ x + (1 | g)", unusable(g=1), jm.DataError, "'g'"),
    ("y ~ x + (1 | g)", unusable(g=np.arange(150)), jm.DesignError, "150"),
    ("y ~ x + (1 | g)", lambda: rows(10**6, g=np.arange(10**6)), jm.DesignError, "1,000,000|1000000"),
    (
        "y ~ x + (1 | g)",
        lambda: rows(10**6, g=np.random.default_rng(2).normal(size=10**6)),
        jm.DesignError,
        "g",
    ),
    # Size
    ("y ~ 1 + (1 | a) + (1 | b)", crossed, jm.DesignError, "'a'"),
    ("y ~ f + (1 | g)", lambda: levels(90_000, 30_000), jm.DesignError, "f"),
    ("y ~ f * x + (1 | g)", lambda: levels(90_000, 30_000), jm.DesignError, "f"),
    ("y ~ 1 + (f | g)", lambda: levels(9_000, 624), jm.DesignError, "195000|195,000"),
    ("y ~ 1 + (0 + f || g)", lambda: levels(90_000, 9_000), jm.DesignError, "f"),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "make", "error", "says"), CASES, ids=[case[0][:60] for case in CASES])
def test_an_error_takes_less_than_five_seconds(formula, make, error, says):
    data = make()
    start = time.perf_counter()
    found = outcome(formula, data)
    seconds = time.perf_counter() - start
    assert isinstance(found.error, error), found.text
    assert any(piece in found.text for piece in says.split("|"))
    assert seconds < LIMIT


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "mle"}, "'mle'"),
        ({"weights": np.ones(3)}, "3"),
        ({"weights": np.zeros(150)}, "0"),
        ({"weights": -np.ones(150)}, "-1"),
        ({"offset": np.full(150, np.inf)}, "offset"),
        ({"missing": "keep"}, "'keep'"),
        ({"covariance": "ar1"}, "'ar1'"),
    ],
)
def test_a_wrong_option_is_found_before_the_work(options, says):
    start = time.perf_counter()
    found = outcome("y ~ x + (1 | g)", students(), **options)
    assert found.error is not None
    assert says in found.text
    assert time.perf_counter() - start < LIMIT

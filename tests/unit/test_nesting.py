"""Which models are special cases of which, by their fixed effects, groupings and covariance structures."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.frame import build_frame
from jaxmixed.nesting import nesting_of
from tests.support.fits import quietly, sleepstudy

INTERCEPT = "Reaction ~ Days + (1 | Subject)"


@cache
def noise() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    data = pd.DataFrame({"g": np.repeat(np.arange(24), 8), "h": np.tile(np.arange(4), 48)})
    data["x"], data["z"], data["y"] = rng.normal(size=(3, 192))
    return data


def unfitted(random: str, fixed: str = "x + z") -> Any:
    """What nesting asks of a fit, without one."""
    frame = build_frame(f"y ~ {fixed} + {random}", noise())
    terms = [
        SimpleNamespace(
            frame_index=number,
            structure=group.structure,
            covariance=covariance_structure(group.structure, len(group.names)),
            group=group.label,
            names=group.names,
        )
        for number, group in enumerate(frame.groups)
    ]
    return SimpleNamespace(
        frame=frame, estimates=SimpleNamespace(beta=np.zeros(len(frame.x_names)), terms=terms)
    )


@pytest.mark.parametrize(
    ("small", "large", "message"),
    [
        (("(1 | g)", "x"), ("(1 + x | g)", "z"), "lacks the fixed effect x"),
        (
            ("(1 + z | g)", "x + z"),
            ("(1 + x || g) + (1 | g:h)", "x * z"),
            r"no random term for g that contains",
        ),
        (("(1 | g:h)", "x + z"), ("(1 + x | g)", "x + z"), r"no random term for g:h"),
        (("(1 + x | g)", "x + z"), ("(1 + x + z || g)", "x * z"), r"no random term for g"),
        (("homdiag(1 + x | g)", "x + z"), ("cs(1 + x + z | g)", "x + z"), r"no random term for g"),
    ],
)
def test_models_that_are_not_nested_have_an_obstacle(
    small: tuple[str, str], large: tuple[str, str], message: str
) -> None:
    assert re.search(message, nesting_of(unfitted(*small), unfitted(*large)).obstacle)


@pytest.mark.parametrize(
    ("small", "large", "df"),
    [
        ("homdiag(1 + x | g)", "(1 + x || g)", 1),
        ("homdiag(1 + x | g)", "cs(1 + x | g)", 1),
        ("cs(1 + x | g)", "(1 + x | g)", 1),
        ("(1 + x || g)", "(1 | g) + (0 + x | g) + (0 + z | g)", 1),
        ("(0 + x | g)", "(1 + x || g)", 1),
        ("(1 | g)", "(x | g)", 2),
    ],
)
def test_special_cases_of_a_structure_are_nested(small: str, large: str, df: int) -> None:
    one, two = unfitted(small), unfitted(large)
    nesting = nesting_of(one, two)
    assert nesting.obstacle == ""
    sizes = [sum(term.covariance.num_params for term in fit.estimates.terms) for fit in (one, two)]
    assert sizes[1] - sizes[0] == df
    assert nesting_of(two, one).obstacle
    places = {(part.small, part.column) for part in nesting.contained}
    assert {term for term, _ in places} == set(range(len(one.estimates.terms)))


MACHINES = "score ~ Machine + "
COMPOUND_SYMMETRY = "(1 | Worker) + (1 | Worker:Machine)"


@pytest.mark.parametrize(
    ("small", "large", "df", "distribution"),
    [
        # Two variances fill the covariance of the three machines: nothing is tested on the boundary.
        (COMPOUND_SYMMETRY, "(0 + Machine | Worker)", 4, "chi2(4)"),
        (COMPOUND_SYMMETRY, "(Machine | Worker)", 4, "chi2(4)"),
        (COMPOUND_SYMMETRY, "(0 + C(Machine, sum) | Worker)", 4, "chi2(4)"),
        ("(1 | Worker:Machine)", "(0 + Machine | Worker)", 5, "chi2(5)"),
        ("(1 | Worker:Machine)", "(0 + Machine || Worker)", 2, "chi2(2)"),
        ("(1 | Machine:Worker)", "cs(0 + Machine | Worker)", 1, "chi2(1)"),
        ("(1 | Worker)", "cs(0 + Machine | Worker)", 1, "chibar2(01)"),
        ("(1 | Worker)", "(0 + Machine | Worker)", 5, "chi2(5)"),
    ],
)
def test_levels_within_groups_are_a_special_case_of_effects_of_the_groups(
    small: str, large: str, df: int, distribution: str
) -> None:
    data = jm.datasets.load("machines")
    test = jm.lrtest(quietly(MACHINES + small, data), quietly(MACHINES + large, data))
    assert (test.df, test.distribution) == (df, distribution)
    assert test.statistic > 0
    assert bool(test.note) == ("Machine" not in small and df > 1)


def test_compound_symmetry_written_in_two_ways_has_one_likelihood() -> None:
    data = jm.datasets.load("machines")
    variances = quietly(MACHINES + COMPOUND_SYMMETRY, data)
    exchangeable = quietly(MACHINES + "cs(0 + Machine | Worker)", data)
    assert exchangeable.llf == pytest.approx(variances.llf, rel=1e-9)
    table = jm.compare(variances, exchangeable, quietly(MACHINES + "(0 + Machine | Worker)", data))
    assert table["distribution"].tolist() == ["", "", "chi2(4)"]


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (COMPOUND_SYMMETRY, "(0 + Machine || Worker)"),
        ("(1 | Worker:Machine)", "(1 + first | Worker)"),
        ("(1 | Worker:Machine) + (1 | Worker)", "(1 + first + second || Worker)"),
        ("(1 + second | Worker:Machine)", "(0 + Machine | Worker)"),
        ("(1 | Worker:Machine)", "cs(1 + first + second | Worker)"),
    ],
)
def test_effects_that_do_not_span_the_levels_within_groups_are_not_nested(small: str, large: str) -> None:
    data = jm.datasets.load("machines")
    data = data.assign(first=(data["Machine"] == "A").astype(float), second=np.tile([0.0, 1.0, 2.0], 18))
    small_fit, large_fit = quietly(MACHINES + small, data), quietly(MACHINES + large, data)
    with pytest.raises(jm.DesignError, match="has no random term for Worker"):
        jm.lrtest(small_fit, large_fit)


def test_labels_of_groups_do_not_matter() -> None:
    data = jm.datasets.load("sleepstudy")
    renamed = data.assign(Subject=["s" + str(label) for label in data["Subject"]])
    assert jm.lrtest(jm.mixed(INTERCEPT, renamed), sleepstudy()).df == 2


def test_independent_effects_that_lie_in_several_terms_are_found_one_by_one() -> None:
    nesting = nesting_of(unfitted("(1 + x || g)"), unfitted("(0 + x | g) + (1 | g) + (0 + z | g)"))
    assert {(part.column, part.large) for part in nesting.contained} == {(0, 1), (1, 0)}
    assert nesting.more_effects == 1

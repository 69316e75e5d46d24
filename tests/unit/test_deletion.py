"""Fits without each case: shared out in blocks, side by side, interrupted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import deletion, schedule
from jaxmixed.deletion import NamedCases, delete_cases, refits_of
from jaxmixed.many_estimates import INTERRUPTED
from tests.support.fits import fit

SAME = 1e-9
"""Relative: two searches from one start."""


@pytest.fixture(scope="module")
def whole() -> jm.MixedResults:
    return fit("sleepstudy", "Reaction ~ Days + (1 | Subject)")


@pytest.fixture(scope="module")
def cases(whole: jm.MixedResults) -> NamedCases:
    group = whole.frame.groups[0]
    return NamedCases("Subject", group.levels, group.codes, are_rows=False)


@pytest.fixture(scope="module")
def expected(whole: jm.MixedResults, cases: NamedCases) -> pd.DataFrame:
    return refits_of(whole, cases, delete_cases(whole, cases)).params


def test_blocks_do_not_matter(
    whole: jm.MixedResults, cases: NamedCases, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "BLOCK", 5)
    found = delete_cases(whole, cases, devices=2)
    np.testing.assert_array_equal(found.estimates.beta, expected)


@pytest.mark.slow
def test_side_by_side_they_are_the_same(
    whole: jm.MixedResults, cases: NamedCases, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "FEW_CASES", 0)
    np.testing.assert_allclose(delete_cases(whole, cases).estimates.beta, expected, rtol=SAME)


def test_an_interrupt_keeps_what_is_finished(
    whole: jm.MixedResults, cases: NamedCases, expected: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "BLOCK", 5)
    original = schedule.run

    def interrupted(work, blocks, crew, **options):  # type: ignore[no-untyped-def]
        yield next(iter(original(work, blocks[:1], crew, **options)))

    monkeypatch.setattr(schedule, "run", interrupted)
    found = delete_cases(whole, cases, devices=1).estimates
    done = found.reason != INTERRUPTED
    assert 0 < done.sum() < len(cases)
    np.testing.assert_array_equal(found.beta[done], expected[done])
    assert np.isnan(found.beta[~done]).all()
    with pytest.warns(jm.ConvergenceWarning, match="interrupted"):
        partly = whole.influence("Subject", devices=1)
    assert not partly.disagree[~done].any()
    assert partly.cooks_distance.isna().to_numpy().tolist() == (~done).tolist()


def test_an_interrupt_before_anything_is_done(
    whole: jm.MixedResults, cases: NamedCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "run", lambda *given, **options: iter(()))
    with pytest.raises(KeyboardInterrupt):
        delete_cases(whole, cases)


def test_the_refits_have_tables_and_their_designs(whole: jm.MixedResults, cases: NamedCases) -> None:
    refits = refits_of(whole, cases, delete_cases(whole, cases))
    own = jm.datasets.load("sleepstudy").query("Subject != '309'")
    alone = jm.mixed("Reaction ~ Days + (1 | Subject)", own)
    df = refits.coef_table("(Intercept)", ddf="satterthwaite").loc["309", "df"]
    np.testing.assert_allclose(df, alone.coef_table("satterthwaite").loc["(Intercept)", "df"], rtol=1e-6)

"""Coefficients of groups and the joint covariance of their effects: lme4's coef, dense matrices."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
import jaxmixed.group_effects as module
from tests.support.dense_predictions import dense_predictions
from tests.support.fits import aliased, fit, quietly, sleepstudy, two_terms
from tests.support.school_fits import crossed, nested

OPTIMA = 2e-6
"""Of the response: what two optima leave of predictions, R's with its steps down to 1e-12."""


def test_coefficients_of_groups_are_lme4s() -> None:
    # lme4 1.1-31: coef(lmer(Reaction ~ Days + (Days | Subject), sleepstudy))$Subject[1:2, ]
    table = sleepstudy().coef()["Subject"].iloc[:2]
    np.testing.assert_allclose(table, [[253.66367102, 19.66625774], [211.00652557, 1.84758313]], atol=OPTIMA)
    assert list(table.columns) == ["(Intercept)", "Days"]
    assert list(table.index) == ["308", "309"]


def test_effects_without_a_fixed_counterpart_have_mean_zero() -> None:
    # coef(lmer(Reaction ~ 1 + (Days | Subject), sleepstudy)) with lme4's columns in our order
    found = quietly("Reaction ~ 1 + (Days | Subject)", jm.datasets.load("sleepstudy"))
    table = found.coef()["Subject"].iloc[:2]
    np.testing.assert_allclose(table, [[249.45723003, 20.60102237], [218.35995425, 0.21348782]], atol=OPTIMA)


def test_coefficients_add_up_to_fixed_plus_random_effects() -> None:
    tables, effects = nested().coef(), nested().ranef()
    assert set(tables) == {"school", "class"}
    for group, table in tables.items():
        for name in table.columns:
            expected = nested().params[name] + effects[group].get(name, 0.0)
            np.testing.assert_allclose(table[name], expected * np.ones(len(table)))
    assert aliased().coef()["Subject"]["Days2"].isna().all()
    assert fit("sleepstudy", "Reaction ~ Days").coef() == {}


@pytest.mark.parametrize("beta", ["known", "estimated"])
def test_joint_covariances_are_those_of_hendersons_equations(beta: str) -> None:
    for found, group in ((sleepstudy(), None), (nested(), "school"), (crossed(), "item")):
        table = found.ranef_cov(group, beta=beta)  # type: ignore[arg-type]
        dense = dense_predictions(found)
        label = group or "Subject"
        own = [i for i, term in enumerate(found.estimates.terms) if term.group == label]
        names = [(i, j) for i in own for j in range(len(found.estimates.terms[i].names))]
        m = dense.model.blocks[own[0]].num_levels
        rows = []
        for i in own:
            q = len(found.estimates.terms[i].names)
            Z = np.zeros((m, len(names), q))
            for place, (owner, j) in enumerate(names):
                Z[:, place, j] = float(owner == i)
            rows.append((i, Z.reshape(-1, q), np.repeat(np.arange(m), len(names))))
        expected = dense.covariance(None, rows, beta)
        np.testing.assert_allclose(table, expected, atol=1e-9 * expected.max())
        se = found.ranef_se(beta)[label]  # type: ignore[arg-type]
        np.testing.assert_allclose(np.sqrt(np.diagonal(table)), se.to_numpy().ravel(), rtol=1e-7)


def test_levels_and_effects_label_both_sides() -> None:
    table = two_terms().ranef_cov(levels=["309", "308"])
    pairs = [(level, effect) for level in ("309", "308") for effect in ("(Intercept)", "Days")]
    assert list(table.index) == list(table.columns) == pairs
    assert table.index.names == ["Subject", "effect"]
    whole = two_terms().ranef_cov()
    pd.testing.assert_frame_equal(table, whole.loc[pairs, pairs])


def test_mistakes_and_sizes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        jm.DataError, match=r"several groupings; say of which by group=, one of 'class', 'scho"
    ):
        nested().ranef_cov()
    with pytest.raises(jm.DataError, match=r"no level '399'"):
        sleepstudy().ranef_cov(levels=["399"])
    with pytest.raises(jm.DataError, match="no grouping 'school'"):
        sleepstudy().ranef_cov("school")
    with pytest.raises(jm.DataError, match="beta is 'unknown'"):
        sleepstudy().ranef_cov(beta="unknown")  # type: ignore[arg-type]
    with pytest.raises(jm.DataError, match="a linear model has no random effects"):
        fit("sleepstudy", "Reaction ~ Days").ranef_cov()
    monkeypatch.setattr(module, "MOST_EFFECTS", 20)
    with pytest.raises(jm.DataError, match=r"2 effects of 18 levels .* order 36 .* levels=, at most 10"):
        sleepstudy().ranef_cov()
    assert sleepstudy().ranef_cov(levels="308").shape == sleepstudy().ranef_cov(levels=308).shape == (2, 2)
    assert sleepstudy().ranef_cov(levels=[]).shape == (0, 0)

"""Satterthwaite's degrees of freedom of many models against those of each fit by itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.many_denominators import satterthwaite_of
from jaxmixed.resampling import refitter_of
from tests.support.fits import quietly, sleepstudy

CLOSE = 1e-8
"""Two optimisers' last steps apart."""


@cache
def responses() -> np.ndarray:
    """Of the sleep study; some miss rows, and the last two have no variance between subjects."""
    Y = np.array(sleepstudy().simulate(12, seed=1), dtype=float)
    Y[0, 3] = np.nan
    Y[5:9, 4] = np.nan
    Y[[2, 50], 5:11] = np.nan  # enough that these are prepared as one design
    noise = np.random.default_rng(2).normal(size=(180, 2))
    means = noise.reshape(18, 10, 2).mean(axis=1)
    Y[:, 10:] = 300 + noise - np.repeat(means, 10, axis=0)
    return Y


@cache
def many() -> jm.ManyResults:
    return jm.fit_many("~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), responses())


def single(formula: str, data: pd.DataFrame, ddf: str = "satterthwaite", **options: Any) -> pd.DataFrame:
    return quietly(formula, data, **options).coef_table(ddf=ddf)


@pytest.mark.parametrize("model", [0, 3, 4, 5, 9, 11])
def test_every_response_has_what_its_own_fit_has(model: int) -> None:
    data = jm.datasets.load("sleepstudy").assign(y=responses()[:, model])
    expected = single("y ~ Days + (Days | Subject)", data)
    for name in ("(Intercept)", "Days"):
        found = many().coef_table(name, ddf="satterthwaite").iloc[model]
        for column in ("df", "statistic", "conf_low", "conf_high"):
            assert found[column] == pytest.approx(expected.loc[name, column], rel=CLOSE), column
        assert found["p_value"] == pytest.approx(expected.loc[name, "p_value"], rel=1e-6)


def test_groups_of_the_data_have_designs_of_their_own() -> None:
    """Sizes and columns differ: one group lacks a level of f, and its column."""
    rng = np.random.default_rng(5)
    n = 260
    data = pd.DataFrame({"part": rng.integers(0, 4, n), "g": rng.integers(0, 9, n), "x": rng.normal(size=n)})
    data["f"] = rng.choice(list("abc"), n)
    data.loc[(data["part"] == 2) & (data["f"] == "c"), "f"] = "a"
    data["y"] = data["x"] + rng.normal(size=9)[data["g"]] + rng.normal(size=n)
    data = data.iloc[:-40]
    found = jm.fit_many("y ~ x + f + (1 | g)", data, by="part", ddf="satterthwaite")
    for number, part in enumerate(found.names):
        own = single("y ~ x + f + (1 | g)", data[data["part"] == part])
        for name in ("x", "fb", "fc"):
            assert found.coef_table(name)["df"].iloc[number] == pytest.approx(
                own["df"].get(name, np.nan), rel=CLOSE, nan_ok=True
            )
    assert np.isnan(found.coef_table("fc")["df"].iloc[2])


def test_rows_that_count_twice_are_two_rows() -> None:
    data = jm.datasets.load("sleepstudy")
    counts = np.random.default_rng(3).integers(0, 3, (180, 3)).astype(float)
    found = jm.fit_many("Reaction ~ Days + (1 | Subject)", data, row_weights=counts)
    for model in range(3):
        copies = data.loc[np.repeat(np.arange(180), counts[:, model].astype(int))].reset_index(drop=True)
        own = single("Reaction ~ Days + (1 | Subject)", copies)["df"]
        for name in own.index:
            table = found.coef_table(name, ddf="satterthwaite")
            assert table["df"].iloc[model] == pytest.approx(own[name], rel=CLOSE)


@pytest.mark.slow
def test_crossed_groupings_and_several_coefficients_at_once() -> None:
    data = jm.datasets.load("penicillin")
    data = data.assign(x=np.random.default_rng(1).normal(size=len(data)), f=np.arange(len(data)) % 3)
    data["f"] = data["f"].map(dict(enumerate("abc")))
    fit = quietly("diameter ~ x + f + (1 | plate) + (1 | sample)", data)
    Y = np.array(fit.simulate(3, seed=4), dtype=float)
    own = refitter_of(fit).fit(Y)
    found = satterthwaite_of(own, np.arange(3), fit.state)
    L = np.eye(4)[[1, 2, 3]]
    statistic, df = found.joint(L, own.beta[:, 1:])
    for model in range(3):
        expected = fit.refit(Y[:, model]).fixed_inference("satterthwaite").joint_test(L)
        assert statistic[model] == pytest.approx(expected.statistic, rel=1e-7)
        assert df[model] == pytest.approx(expected.den_df, rel=1e-6)
        assert found.df(L)[model] == pytest.approx(
            fit.refit(Y[:, model]).fixed_inference("satterthwaite").df(L), rel=1e-6
        )


def test_a_linear_model_has_its_residual_degrees_of_freedom() -> None:
    found = jm.fit_many("~ Days", jm.datasets.load("sleepstudy"), responses()[:, :5], ddf="satterthwaite")
    assert found.coef_table("Days")["df"].tolist() == pytest.approx([178, 178, 178, 177, 174])
    assert found.coef_table("Days", ddf="residual")["df"].tolist() == [178, 178, 178, 177, 174]


def test_the_degrees_of_freedom_of_the_call_are_those_of_all_tables() -> None:
    data, Y = jm.datasets.load("sleepstudy"), responses()[:, :3]
    told = jm.fit_many("~ Days + (Days | Subject)", data, Y, ddf="satterthwaite")
    asked = many().coef_table("Days", ddf="satterthwaite").iloc[:3]
    assert told.coef_table("Days")["df"].tolist() == asked["df"].tolist()
    assert told.pvalues["Days"].tolist() == pytest.approx(asked["p_value"].tolist())
    assert told.conf_int()[("Days", "conf_low")].tolist() == pytest.approx(asked["conf_low"].tolist())
    fixed = told.tidy().query("term == 'Days'")
    assert fixed["p_value"].tolist() == pytest.approx(asked["p_value"].tolist())
    normal = told.coef_table("Days", ddf="none")
    assert np.isinf(normal["df"]).all()
    assert (normal["p_value"] < told.coef_table("Days")["p_value"]).all()


def test_models_without_estimates_have_none() -> None:
    Y = responses()[:, :3].copy()
    Y[:, 1] = 5.0
    with pytest.warns(jm.ConvergenceWarning, match="1 of 3 models failed"):
        found = jm.fit_many("~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), Y)
    df = found.coef_table("Days", ddf="satterthwaite")["df"]
    assert np.isnan(df).tolist() == [False, True, False]

"""Many models at once: each is what it would be alone, whatever stands beside it."""

import json
import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.errors import ConvergenceWarning, InterruptedWarning
from jaxmixed.many_estimates import REASONS
from jaxmixed.many_results import ManyResults
from tests.reference import refits
from tests.support.fits import quietly
from tests.support.interrupts import interrupt_in_block

LLF = 1e-8
"""How far log-likelihoods of a batch may be from single fits: the issue's limit. Measured: 1e-12."""

RELATIVE = 1e-7
"""Estimates at an optimum that is exact in the criterion to 1e-12 are good to the root of it."""

SLEEP = "Reaction ~ Days + (Days | Subject)"
RIGHT = "~ Days + (Days | Subject)"


@cache
def sleep() -> pd.DataFrame:
    return jm.datasets.load("sleepstudy")


@cache
def fit() -> jm.MixedResults:
    return jm.mixed(SLEEP, sleep())


@cache
def responses(m: int = 12) -> np.ndarray:
    """Regular responses, and after them some that have singular fits."""
    singular = refits.load("sleepstudy_slope0").Y[:, : m // 2]
    Y = np.column_stack([fit().simulate(m - m // 2, seed=1).to_numpy(), singular])
    Y.setflags(write=False)
    return Y


def silently(call, *args, **options) -> ManyResults:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return call(*args, **options)


def assert_like_single(many: ManyResults, position: int, single: jm.MixedResults) -> None:
    """One model of many is the fit of its own, in all that is reported."""
    assert abs(many.llf.iloc[position] - single.llf) < LLF
    assert many.nobs.iloc[position] == single.nobs
    assert many.is_singular.iloc[position] == single.is_singular
    assert many.converged.iloc[position] == single.converged
    scale = single.bse.to_numpy()
    np.testing.assert_allclose(many.bse.iloc[position], scale, rtol=RELATIVE)
    np.testing.assert_allclose(
        many.params.iloc[position] / scale, single.params / scale, rtol=0, atol=RELATIVE
    )
    np.testing.assert_allclose(many.sigma.iloc[position], single.sigma, rtol=RELATIVE)
    size = len(single.varcorr)
    own = many.varcorr.iloc[position * size : (position + 1) * size]
    for column in ("estimate", "std_error"):
        expected = single.varcorr[column].to_numpy()
        np.testing.assert_allclose(own[column], expected, rtol=1e-5, atol=1e-6 * single.sigma**2)
    for name in ("aic", "bic", "deviance"):
        values = {"aic": many.aic, "bic": many.bic, "deviance": many.deviance}[name]
        assert abs(values.iloc[position] - single.glance()[name].iloc[0]) < 2 * LLF


# Responses of one design


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_every_response_has_the_fit_that_it_has_alone(method):
    own = quietly(SLEEP, sleep(), method=method)
    many = own.refit_many(responses())
    assert many.is_singular.any()
    assert not many.is_singular.all()
    for position in range(len(many)):
        single = quietly(SLEEP, sleep().assign(Reaction=responses()[:, position]), method=method)
        assert_like_single(many, position, single)


def test_refit_is_a_fresh_fit():
    y = responses()[:, 0]
    again = fit().refit(y)
    fresh = jm.mixed(SLEEP, sleep().assign(Reaction=y))
    assert again.llf == fresh.llf
    pd.testing.assert_frame_equal(again.varcorr, fresh.varcorr)
    pd.testing.assert_series_equal(again.params, fresh.params)
    np.testing.assert_array_equal(again.frame.y, y)
    assert fit().llf == jm.mixed(SLEEP, sleep()).llf


def test_refit_keeps_weights_offset_and_the_rows_used():
    data = sleep().assign(w=1.0 + sleep()["Days"] % 3, o=np.arange(180.0))
    data.loc[[3, 50], "Days"] = np.nan
    own = jm.mixed(SLEEP, data, weights="w", offset="o")
    y = responses()[:, 1]
    fresh = jm.mixed(SLEEP, data.assign(Reaction=y), weights="w", offset="o")
    assert own.refit(y).llf == fresh.llf
    assert own.refit(y[own.frame.kept]).llf == fresh.llf
    assert own.refit(pd.Series(y[own.frame.kept], index=own.frame.index, name="z")).frame.response_name == "z"
    many = own.refit_many(y[:, None])
    assert_like_single(many, 0, fresh)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.ones(179), "179 rows"),
        (np.where(np.arange(180) == 4, np.nan, np.arange(180.0)), "missing or infinite in 1 of 180"),
        (np.full(180, 2.0), "constant"),
        (1e40 * np.arange(180.0), "magnitude"),
        (np.ones((180, 2)), "shape"),
    ],
)
def test_refit_refuses_what_is_no_response(y, message):
    with pytest.raises(jm.DataError, match=message):
        fit().refit(y)


def poisons() -> dict[int, tuple[np.ndarray, str]]:
    """Responses that cannot be fitted, at the positions where they go, and the reasons."""
    y = responses()[:, 0]
    infinite, x = y.copy(), sleep()["Days"].to_numpy(dtype=float)
    infinite[17] = -np.inf
    return {
        0: (np.full(180, np.nan), "the response is missing in every row"),
        2: (infinite, "the response has missing or infinite values"),
        3: (np.full(180, 250.0), "the response is constant"),
        5: (3 + 2 * x, "the residual variance is zero, so the likelihood is unbounded"),
        8: (1e40 * y, "the response is too large or too small for its variance to be representable"),
        11: (1e-300 * y, "the response is too large or too small for its variance to be representable"),
    }


def test_a_model_that_cannot_be_fitted_says_why_and_touches_no_other():
    clean = fit().refit_many(responses())
    Y = responses().copy()
    for position, (y, _) in poisons().items():
        Y[:, position] = y
    with pytest.warns(ConvergenceWarning, match=r"6 of 12 models failed \(0: .*; and 1 more\)") as caught:
        many = fit().refit_many(Y)
    assert len(caught) == 1
    bad = list(poisons())
    assert many.reason.iloc[bad].tolist() == [reason for _, reason in poisons().values()]
    assert many.params.iloc[bad].isna().all(axis=None)
    assert many.llf.iloc[bad].isna().all()
    assert not many.converged.iloc[bad].any()
    good = np.setdiff1d(np.arange(12), bad)
    assert (many.reason.iloc[good] == "").all()
    np.testing.assert_array_equal(many.llf.iloc[good], clean.llf.iloc[good])
    np.testing.assert_array_equal(many.params.iloc[good], clean.params.iloc[good])
    np.testing.assert_array_equal(many.theta.iloc[good], clean.theta.iloc[good])


def test_models_none_of_which_can_be_fitted_have_tables_all_the_same():
    Y = np.column_stack([y for y, _ in poisons().values()])
    many = silently(fit().refit_many, Y)
    assert many.reason.tolist() == [reason for _, reason in poisons().values()]
    assert many.tidy().shape == (6 * 6, 12)
    assert many.coef_table("Days")["p_adjusted"].isna().all()
    assert "without estimates: 6" in many.summary()


def test_no_response_at_all_is_no_model():
    many = fit().refit_many(np.zeros((180, 0)))
    assert len(many) == 0
    assert many.params.shape == (0, 2)
    assert many.tidy().shape == (0, 12)
    assert "0 models" in repr(many)


def test_responses_of_any_size_are_fitted_on_their_own_scale():
    scales = 10.0 ** np.array([-9, 9, -6, 3, 0, 6, -3, 9, -9, 1, -1, 2])
    many = fit().refit_many(responses() * scales)
    plain = fit().refit_many(responses())
    df = 178
    np.testing.assert_allclose(many.llf + df * np.log(scales), plain.llf, rtol=0, atol=LLF)
    np.testing.assert_allclose(many.params / scales[:, None], plain.params, rtol=RELATIVE)
    np.testing.assert_allclose(many.sigma / scales, plain.sigma, rtol=RELATIVE)


def test_estimates_do_not_depend_on_blocks_or_workers():
    base = jm.fit_many(RIGHT, sleep(), responses())
    for options in ({"block": 5}, {"devices": 2, "block": 4}, {"devices": 1}, {"block": 1}):
        other = jm.fit_many(RIGHT, sleep(), responses(), **options)
        np.testing.assert_allclose(other.llf, base.llf, rtol=1e-13)
        np.testing.assert_allclose(other.params, base.params, rtol=1e-9)


def test_weights_and_offset_mean_what_they_mean_for_one():
    data = sleep().assign(w=1.0 + sleep()["Days"] % 3, o=np.linspace(-50, 50, 180))
    many = jm.fit_many(RIGHT, data, responses()[:, :2], weights="w", offset="o")
    for position in range(2):
        own = data.assign(Reaction=responses()[:, position])
        assert_like_single(many, position, quietly(SLEEP, own, weights="w", offset="o"))


@pytest.mark.slow
def test_crossed_groupings_are_fitted_too():
    stored = refits.load("penicillin")
    many = jm.fit_many("~ 1 + (1 | plate) + (1 | sample)", stored.data, stored.Y[:, :2])
    for position in range(2):
        assert_like_single(many, position, quietly(stored.formula, stored.frame(position)))


def test_a_linear_model_needs_no_search():
    many = jm.fit_many("~ Days", sleep(), responses())
    for position in range(3):
        own = sleep().assign(Reaction=responses()[:, position])
        single = jm.mixed("Reaction ~ Days", own)
        np.testing.assert_allclose(many.llf.iloc[position], single.llf, rtol=1e-13)
        np.testing.assert_allclose(many.bse.iloc[position], single.bse, rtol=1e-10)


def test_a_dropped_column_stays_dropped():
    many = jm.fit_many("~ Days + I(2 * Days) + (Days | Subject)", sleep(), responses())
    assert many.params["I(2 * Days)"].isna().all()
    plain = jm.fit_many(RIGHT, sleep(), responses())
    np.testing.assert_allclose(many.llf, plain.llf, rtol=1e-12)
    assert (many.glance()["num_params"] == 6).all()


# Responses that lack rows


def with_gaps() -> np.ndarray:
    """Twelve responses: gaps of their own, a gap that seven share, without two subjects, complete."""
    Y = responses().copy()
    rng = np.random.default_rng(3)
    Y[rng.permutation(180)[:20], 0] = np.nan
    Y[rng.permutation(180)[:60], 1] = np.nan
    Y[:20, 2] = np.nan
    Y[5:9, 4:11] = np.nan
    return Y


@pytest.mark.parametrize(
    "random", ["(1 | Subject)", pytest.param("(Days | Subject)", marks=pytest.mark.slow)]
)
def test_a_response_with_gaps_is_fitted_to_the_rows_that_it_has(random):
    many = jm.fit_many(f"~ Days + {random}", sleep(), with_gaps())
    assert many.nobs.tolist() == [160, 120, 160, 180, *[176] * 7, 180]
    for position in (0, 1, 2, 3, 10, 11):
        own = sleep().assign(Reaction=with_gaps()[:, position])
        assert_like_single(many, position, quietly(f"Reaction ~ Days + {random}", own))


def test_gaps_that_responses_share_do_not_change_their_fits():
    Y, right = with_gaps(), "~ Days + (1 | Subject)"
    together = jm.fit_many(right, sleep(), Y)
    alone = jm.fit_many(right, sleep(), Y, block=1)
    np.testing.assert_allclose(together.llf, alone.llf, rtol=0, atol=LLF)
    np.testing.assert_allclose(together.bse, alone.bse, rtol=RELATIVE)


def test_rows_that_do_not_identify_the_model_are_told_in_words():
    Y = responses()[:, :4].copy()
    Y[10:, 0] = np.nan  # one subject
    Y[2:, 1] = np.nan
    Y[np.arange(180) % 10 > 1, 2] = np.nan  # two rows and two effects for each subject
    many = silently(jm.fit_many, RIGHT, sleep(), Y)
    assert many.nobs.tolist() == [10, 2, 36, 180]
    assert "'Subject' has one level" in many.reason.iloc[0]
    assert "'Subject' has one level" in many.reason.iloc[1]
    assert "36 random effects for 36 rows" in many.reason.iloc[2]
    assert many.converged.tolist() == [False, False, False, True]


def test_a_factor_keeps_the_levels_of_the_whole_data():
    data = sleep().assign(f=np.where(sleep()["Days"] < 3, "a", np.where(sleep()["Days"] < 6, "b", "c")))
    Y = responses()[:, :2].copy()
    Y[(data["f"] == "b").to_numpy(), 0] = np.nan
    many = jm.fit_many("~ f + (1 | Subject)", data, Y)
    assert many.params["fb"].isna().tolist() == [True, False]
    own = quietly("y ~ f + (1 | Subject)", data.assign(y=Y[:, 0]))
    np.testing.assert_allclose(many.llf.iloc[0], own.llf, rtol=1e-12)
    np.testing.assert_allclose(many.params["fc"].iloc[0], own.params["fc"], rtol=1e-9)


# Groups of the data


def pigs() -> pd.DataFrame:
    pig = jm.datasets.load("pig")
    number = pig["id"].cat.codes.to_numpy()
    return pig.assign(litter=np.array(["d", "a", "c", "b", "a"])[number % 5], pen=number % 2)


def test_every_group_of_the_data_has_the_fit_that_it_has_alone():
    data = pigs()
    many = jm.fit_many("weight ~ week + (week | id)", data, by="litter")
    assert many.names.tolist() == ["a", "b", "c", "d"]
    assert many.names.name == "litter"
    for position, level in enumerate(many.names):
        own = data[data["litter"] == level].assign(id=lambda d: d["id"].astype(str))
        assert_like_single(many, position, quietly("weight ~ week + (week | id)", own))


def test_groups_by_two_columns_leave_out_rows_without_a_group():
    data = pigs().astype({"pen": float})
    data.loc[data.index[:9], "pen"] = np.nan
    many = jm.fit_many("weight ~ week + (1 | id)", data, by=["litter", "pen"])
    assert many.names.tolist()[:2] == ["a:0", "a:1"]
    assert many.nobs.sum() == len(data) - 9
    own = data[(data["litter"] == "a") & (data["pen"] == 1)].assign(id=lambda d: d["id"].astype(str))
    assert_like_single(many, 1, quietly("weight ~ week + (1 | id)", own))
    with pytest.raises(jm.DataError, match="by= is missing in 9 of"):
        jm.fit_many("weight ~ week + (1 | id)", data, by=["litter", "pen"], missing="raise")


def test_a_group_that_cannot_be_fitted_keeps_its_row():
    data = pigs()
    lone = data[data["id"] == data["id"].iloc[0]].assign(litter="z")
    flat = data[data["litter"] == "b"].assign(litter="y", weight=20.0)
    data = pd.concat([data[data["litter"].isin(["a", "b"])], lone, flat])
    many = silently(jm.fit_many, "weight ~ week + (1 | id)", data, by="litter")
    assert many.converged.tolist() == [True, True, False, False]
    assert many.reason.tolist()[2:] == [
        "the response is constant",
        "the grouping 'id' has one level in the rows used; a variance between groups needs at least two",
    ]


def test_groups_of_very_different_sizes_are_padded_exactly():
    rng = np.random.default_rng(0)
    sizes = [3, 4, 9, 40, 41, 5]
    site = np.repeat(np.arange(6), 5 * np.array(sizes))
    school = np.concatenate([np.repeat(np.arange(size), 5) for size in sizes])
    y = rng.normal(size=len(site)) + rng.normal(size=50)[school]
    data = pd.DataFrame({"site": site, "school": school, "y": y, "x": rng.normal(size=len(site))})
    many = jm.fit_many("y ~ x + (1 | school)", data, by="site")
    for position in range(6):
        assert_like_single(many, position, quietly("y ~ x + (1 | school)", data[site == position]))


# Row weights


def test_a_row_of_weight_two_counts_as_two_rows():
    rng = np.random.default_rng(1)
    W = rng.poisson(1.0, size=(180, 3))
    data = sleep().assign(p=1.0 + sleep()["Days"] % 2)
    many = jm.fit_many(SLEEP, data, row_weights=W, weights="p")
    for position in range(3):
        own = data.iloc[np.repeat(np.arange(180), W[:, position])]
        assert_like_single(many, position, quietly(SLEEP, own, weights="p"))


def test_weights_that_are_not_whole_add_up_to_the_number_of_rows():
    W = np.column_stack([np.full(180, 1.0), np.full(180, 0.5), np.zeros(180)])
    many = silently(jm.fit_many, SLEEP, sleep(), row_weights=W)
    assert many.nobs.tolist() == [180, 90, 0]
    assert_like_single(many, 0, fit())
    # The criterion of half a row each: half of the sums of squares, and of n.
    half = silently(jm.fit_many, "Reaction ~ Days", sleep(), row_weights=W[:, :2], method="ml")
    np.testing.assert_allclose(half.llf.iloc[1], half.llf.iloc[0] / 2, rtol=1e-12)
    np.testing.assert_allclose(half.bse.iloc[1], half.bse.iloc[0] * np.sqrt(2), rtol=1e-12)
    assert many.reason.iloc[2] == "no row is left"


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_row_weights_are_finite_and_not_negative(value):
    W = np.ones((180, 2))
    W[3, 1] = value
    with pytest.raises(jm.DataError, match="row_weights must be finite and not negative"):
        jm.fit_many(SLEEP, sleep(), row_weights=W)


# What may be asked


def test_exactly_one_argument_says_what_the_models_are():
    with pytest.raises(jm.DataError, match=r"needs responses=, by= or row_weights="):
        jm.fit_many(RIGHT, sleep())
    with pytest.raises(jm.DataError, match="not responses and by"):
        jm.fit_many(RIGHT, sleep(), responses(), by="Days")


@pytest.mark.parametrize("formula", [SLEEP, "log(Reaction) ~ Days + (Days | Subject)"])
def test_a_left_side_beside_responses_is_refused_with_the_formula_to_write(formula):
    with pytest.raises(jm.FormulaError, match=r'write "~ Days \+ \(Days \| Subject\)"'):
        jm.fit_many(formula, sleep(), responses())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block": 0}, jm.DataError, "block=0"),
        ({"block": 2.5}, jm.DataError, "block=2.5"),
        ({"ddf": "kenward"}, jm.DataError, "ddf is 'kenward'.*'satterthwaite'"),
        ({"ddf": "residual", "out": "x.parquet"}, jm.DataError, "writes estimates and no tests"),
        ({"method": "mle"}, jm.DesignError, "method='mle'"),
        ({"max_iterations": 0}, jm.DesignError, "max_iterations=0"),
        ({"covariance": "hetar1"}, jm.FormulaError, "'hetar1' is not known"),
        ({"devices": 0}, jm.DataError, "devices=0"),
        ({"out": "no/such/folder/x.parquet"}, jm.DataError, "there is no folder"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(options, error, message):
    with pytest.raises(error, match=message):
        jm.fit_many(RIGHT, sleep(), responses(), **options)


def test_by_is_one_or_more_names_of_columns():
    with pytest.raises(jm.DataError, match="by=3 must be"):
        jm.fit_many(SLEEP, sleep(), by=3)
    with pytest.raises(jm.DataError, match="no column 'Day'"):
        jm.fit_many(SLEEP, sleep(), by="Day")


def test_an_interrupt_keeps_what_is_finished(monkeypatch):
    interrupt_in_block(3, monkeypatch)
    with pytest.warns((InterruptedWarning, ConvergenceWarning)):
        many = jm.fit_many(RIGHT, sleep(), responses(), block=4, devices=1)
    assert many.converged.tolist() == [True] * 8 + [False] * 4
    assert set(many.reason.iloc[8:]) == {"interrupted before this model was fitted"}
    monkeypatch.undo()
    whole = jm.fit_many(RIGHT, sleep(), responses(), block=4)
    np.testing.assert_array_equal(many.llf.iloc[:8], whole.llf.iloc[:8])


def test_every_reason_is_a_sentence_without_an_end():
    texts = [text for text in REASONS.values() if text]
    assert len(set(texts)) == len(texts)
    assert json.dumps(texts).isprintable()
    assert not any(text.endswith(".") or text[0].isupper() for text in texts)


# Large batches


@pytest.mark.slow
def test_a_thousand_responses_have_the_likelihoods_that_they_have_alone():
    Y = fit().simulate(1000, seed=7).to_numpy()
    many = fit().refit_many(Y)
    single = np.array([quietly_refit(y) for y in Y.T])
    assert many.converged.all()
    assert np.abs(many.llf.to_numpy() - single).max() < LLF


def quietly_refit(y: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.JaxMixedWarning)
        return float(fit().refit(y).llf)


@pytest.mark.slow
def test_one_poisoned_response_in_a_hundred_touches_none_of_ten_thousand():
    Y = fit().simulate(10_000, seed=8).to_numpy()
    clean = fit().refit_many(Y)
    poisoned, kinds = Y.copy(), list(poisons().values())
    for number, position in enumerate(range(50, 10_000, 100)):
        poisoned[:, position] = kinds[number % len(kinds)][0]
    many = silently(fit().refit_many, poisoned)
    bad = np.zeros(10_000, dtype=bool)
    bad[50::100] = True
    assert not many.converged[bad].any()
    assert many.converged[~bad].all()
    np.testing.assert_allclose(many.llf[~bad], clean.llf[~bad], rtol=0, atol=LLF)
    np.testing.assert_allclose(many.params[~bad], clean.params[~bad], rtol=1e-8)

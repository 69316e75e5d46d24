"""Ranks of levels and their differences, against closed forms and draws from the dense joint covariance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy.special import ndtr

import jaxmixed as jm
from jaxmixed.comparison_intervals import MOST_PAIRED, comparison_factor
from jaxmixed.ranking import rank_draws
from tests.support.dense_predictions import dense_predictions
from tests.support.fits import aliased, fit, sleepstudy, two_terms

ROUNDING = 1e-8
"""Relative: two routes to one number, one through inverses of the order of n."""

MONTE_CARLO = 5.0
"""Standard errors of a mean of draws that chance may take, over a few hundred comparisons."""

DRAWS = 4000


def pastes() -> jm.MixedResults:
    return fit("pastes", "strength ~ 1 + (1 | batch/cask)")


def penicillin() -> jm.MixedResults:
    return fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)")


Case = tuple[Callable[[], jm.MixedResults], str, dict[str, float]]

CASES: list[Case] = [
    (aliased, "Subject", {"(Intercept)": 1.0, "Days": 5.0}),
    (two_terms, "Subject", {"(Intercept)": 1.0, "Days": -3.0}),
    (pastes, "batch:cask", {"(Intercept)": 1.0}),
    (penicillin, "plate", {"(Intercept)": 1.0}),
]
IDS = [case[0].__name__ for case in CASES]


@cache
def joint(number: int, beta: str = "estimated") -> tuple[np.ndarray, np.ndarray, pd.Index]:
    """Predicted combinations of all levels and the joint covariance of their errors, from dense matrices."""
    make, group, at = CASES[number]
    found = dense_predictions(make())
    terms, rows = [], None
    start = len(found.kept)
    estimates = found.estimates()
    for i, (term, block) in enumerate(zip(found.fit.estimates.terms, found.model.blocks, strict=True)):
        m, q = block.num_levels, block.num_effects
        if term.group == group:
            own = np.array([at.get(name, 0.0) for name in term.names])
            terms.append((i, np.tile(own, (m, 1)), np.arange(m)))
            value = estimates[start : start + m * q].reshape(m, q) @ own
            rows = value if rows is None else rows + value
            levels = found.fit.frame.groups[term.frame_index].levels
        start += m * q
    assert rows is not None
    return rows, found.covariance(None, terms, beta), levels


@cache
def table(number: int) -> pd.DataFrame:
    make, group, at = CASES[number]
    return make().ranks(group, at=at, num_draws=DRAWS, seed=3)


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_estimates_and_standard_errors_are_those_of_the_dense_model(number: int) -> None:
    mean, cov, levels = joint(number)
    found = table(number).loc[levels]
    np.testing.assert_allclose(found["estimate"], mean, rtol=0, atol=ROUNDING * np.abs(mean).max())
    np.testing.assert_allclose(found["std_error"], np.sqrt(np.diag(cov)), rtol=ROUNDING)
    np.testing.assert_array_equal(found["estimate"].rank(ascending=False), found["rank"])


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_expected_ranks_are_sums_of_pairwise_probabilities(number: int) -> None:
    # 1 + sum over j of P(b_j > b_i), by the normal distribution of the difference.
    mean, cov, levels = joint(number)
    variance = np.diag(cov)
    sd = np.sqrt(np.maximum(variance[:, None] + variance - 2 * cov, 0))
    np.fill_diagonal(sd, 1.0)
    above = ndtr((mean[None, :] - mean[:, None]) / sd)
    np.fill_diagonal(above, 0.0)
    found = table(number).loc[levels]
    rank_sd = np.sqrt((above * (1 - above)).sum(axis=1)) + 1.0  # events are dependent: about this
    limit = MONTE_CARLO * rank_sd / np.sqrt(DRAWS)
    assert (np.abs(found["expected"] - (1 + above.sum(axis=1))) < limit).all()
    assert found["expected"].sum() == pytest.approx(len(mean) * (len(mean) + 1) / 2)


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_probabilities_and_quantiles_are_those_of_dense_draws(number: int) -> None:
    mean, cov, levels = joint(number)
    values, vectors = np.linalg.eigh(cov)
    root = vectors * np.sqrt(np.maximum(values, 0))
    drawn = mean + np.random.default_rng(8).normal(size=(5 * DRAWS, len(mean))) @ root.T
    ranks = len(mean) - drawn.argsort(axis=1).argsort(axis=1)
    found = table(number).loc[levels]
    top = max(1, len(mean) // 10)
    assert table(number).attrs["num_top"] == top
    for name, event in (("p_top", ranks <= top), ("p_best", ranks == 1)):
        p = event.mean(axis=0)
        limit = MONTE_CARLO * np.sqrt((p * (1 - p) + 1 / DRAWS) * 1.2 / DRAWS)
        assert (np.abs(found[name] - p) < limit).all(), name
    # A quantile of ranks may fall on either side of a step of their distribution function.
    for name, share in (("rank_low", 0.025), ("rank_high", 0.975)):
        slack = 4 * np.sqrt(share * (1 - share) / DRAWS)
        lowest, highest = np.quantile(ranks, [share - slack, share + slack], axis=0, method="inverted_cdf")
        assert ((found[name] >= lowest) & (found[name] <= highest)).all(), name


@pytest.mark.parametrize(("num_draws", "level", "kept"), [(40, 0.95, 10**9), (97, 0.8, 200), (501, 0.5, 1)])
def test_ranks_are_summed_up_as_from_a_table_of_all_of_them(num_draws: int, level: float, kept: int) -> None:
    m, num_top = 13, 3
    values = np.random.default_rng(4).normal(size=(num_draws, m)) + np.linspace(0, 2, m)
    ranks = values.argsort(axis=1).argsort(axis=1) + 1
    found = rank_draws(lambda: iter(values), m, num_draws, level, num_top, kept)
    np.testing.assert_allclose(found.expected, ranks.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.sd, ranks.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(found.p_top, (ranks <= num_top).mean(axis=0))
    np.testing.assert_array_equal(found.p_best, (ranks == 1).mean(axis=0))
    tail = round((1 - level) / 2, 12)
    for own, share in ((found.low, tail), (found.high, 1 - tail)):
        expected = np.quantile(ranks, share, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(own, expected)


def test_the_same_seed_gives_the_same_table() -> None:
    one, two, other = (sleepstudy().ranks(effect="Days", num_draws=100, seed=seed) for seed in (5, 5, 6))
    pd.testing.assert_frame_equal(one, two)
    assert not one["expected"].equals(other["expected"])


def test_an_error_that_all_levels_share_changes_no_rank() -> None:
    known, estimated = (
        penicillin().ranks("plate", num_draws=100, beta=beta) for beta in ("known", "estimated")
    )
    # In balanced data the error of the intercept is the same in every level.
    assert (known["std_error"] < estimated["std_error"] - 1e-3).all()
    columns = ["rank", "expected", "rank_low", "rank_high", "p_top", "p_best"]
    pd.testing.assert_frame_equal(known[columns], estimated[columns])


def test_rank_one_is_the_highest_or_the_lowest() -> None:
    down = sleepstudy().ranks(effect="Days", num_draws=100, top=3)
    up = sleepstudy().ranks(effect="Days", num_draws=100, top=15, ascending=True)
    assert down.index[0] == up.index[-1] == "308"
    up = up.loc[down.index]
    np.testing.assert_allclose(up["expected"], 19 - down["expected"])
    np.testing.assert_allclose(up["rank"], 19 - down["rank"])
    np.testing.assert_allclose(up["p_top"], 1 - down["p_top"])  # in the lowest 15, unless in the highest 3
    assert "rank 1 is the highest" in down.attrs["note"].replace("\n", " ")
    assert "rank 1 is the lowest" in up.attrs.get("note", sleepstudy().ranks(ascending=True).attrs["note"])


def test_the_table_is_sorted_by_the_expected_rank_and_prints_its_note() -> None:
    found = sleepstudy().ranks(effect="Days", num_draws=100)
    assert found["expected"].is_monotonic_increasing
    assert found.columns.tolist() == [
        "estimate", "std_error", "rank", "expected", "rank_low", "rank_high", "p_top", "p_best",
    ]  # fmt: skip
    text = " ".join(repr(found).split())
    assert "Days of 18 levels of Subject" in text
    assert "100 joint draws (seed 0)" in text
    assert "Monte-Carlo standard errors" in text


def test_a_combination_counts_the_intercept_once() -> None:
    own = sleepstudy().ranks(at={"Days": 2.0}, num_draws=20)
    effects = sleepstudy().ranef()["Subject"].loc[own.index]
    np.testing.assert_allclose(own["estimate"], effects["(Intercept)"] + 2 * effects["Days"])
    assert own.attrs["effect"] == "(Intercept) + 2 Days"
    slope = sleepstudy().ranks(at={"(Intercept)": 0, "Days": 1}, num_draws=20)
    pd.testing.assert_frame_equal(slope, sleepstudy().ranks(effect="Days", num_draws=20))


def test_levels_without_variance_between_them_are_all_equal() -> None:
    singular = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)")
    with pytest.warns(jm.SingularFitWarning, match=r"variance of \(Intercept\) between the levels of Batch"):
        found = singular.ranks()
    for name, value in {"rank": 3.5, "expected": 3.5, "rank_low": 1, "rank_high": 6}.items():
        assert (found[name] == value).all()
    np.testing.assert_allclose(found["p_top"], 1 / 6)
    assert "no rank means anything" in repr(found).replace("\n  ", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "Class"}, "no grouping 'Class'; it has 'Subject'"),
        ({"effect": "days"}, "no random effect 'days'"),
        ({"at": {"days": 1}}, "no random effect 'days'"),
        ({"at": {"Days": "1"}}, "'1' for 'Days'; give a number"),
        ({"at": {"(Intercept)": 0}}, "zero for every effect"),
        ({"at": {}}, "give values of the effects' columns"),
        ({"effect": "Days", "at": {"Days": 1}}, "give one of the two"),
        ({"top": 0}, "top is 0;"),
        ({"top": 18}, "top is 18;"),
        ({"top": 1.5}, "top is 1.5;"),
        ({"top": True}, "top is True;"),
        ({"num_draws": 5}, "num_draws must be an integer of 10 or more"),
        ({"seed": -1}, "seed must be a non-negative integer"),
        ({"beta": "fixed"}, "beta is 'fixed'"),
        ({"level": 95}, "level"),
    ],
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(jm.DataError, match=message.replace("(", r"\(").replace(")", r"\)")):
        sleepstudy().ranks(**options)


def test_a_linear_model_has_no_levels_to_rank() -> None:
    with pytest.raises(jm.DataError, match="no random effects"):
        fit("sleepstudy", "Reaction ~ Days").ranks()


@pytest.mark.parametrize("beta", ["estimated", "known"])
@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_differences_have_the_errors_of_the_joint_covariance(number: int, beta: str) -> None:
    make, group, at = CASES[number]
    mean, cov, levels = joint(number, beta)
    found = make().compare_levels(group, *levels[[4, 0, 2]], at=at, beta=beta, level=0.9)
    assert found.index.tolist() == [f"{levels[i]} - {levels[j]}" for i, j in ((4, 0), (4, 2), (0, 2))]
    for row, (i, j) in zip(found.itertuples(), ((4, 0), (4, 2), (0, 2)), strict=True):
        error = np.sqrt(cov[i, i] + cov[j, j] - 2 * cov[i, j])
        difference = mean[i] - mean[j]
        scale = ROUNDING * np.abs(mean).max()
        assert row.estimate == pytest.approx(difference, abs=scale)
        assert row.std_error == pytest.approx(error, rel=ROUNDING)
        assert row.conf_high == pytest.approx(difference + 1.6448536269514722 * error, abs=scale)
        assert row.conf_low == pytest.approx(difference - 1.6448536269514722 * error, abs=scale)
        assert row.p_greater == pytest.approx(ndtr(difference / error), abs=ROUNDING)


def test_equal_levels_are_greater_than_each_other_half_the_time() -> None:
    found = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").compare_levels("Batch", "A", "B")
    assert found[["estimate", "std_error", "p_greater"]].to_numpy().tolist() == [[0.0, 0.0, 0.5]]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["308"], "compares 2 to 200 levels of Subject; it was given 1"),
        (["308", "3O9"], "no level '3O9' among its 18; did you mean"),
        (["308", 308], "the level '308' of Subject is given twice"),
        ([["308", "309"]], "given 1"),
    ],
)
def test_levels_to_compare_are_checked(levels: list, message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().compare_levels("Subject", *levels)


def test_levels_are_found_as_they_are_printed() -> None:
    by_number = sleepstudy().compare_levels("Subject", 308, 309)
    pd.testing.assert_frame_equal(by_number, sleepstudy().compare_levels("Subject", "308", "309"))


# Intervals that may be compared


@pytest.mark.parametrize("number", [0, 2], ids=[IDS[0], IDS[2]])
def test_comparison_intervals_of_equal_levels_are_apart_as_often_as_they_should(number: int) -> None:
    make, group, at = CASES[number]
    _, cov, levels = joint(number)
    found = make().comparison_intervals(group, at=at, level=0.9)
    half = (found["compare_high"] - found["estimate"]).loc[levels].to_numpy()
    # Errors of levels that are truly equal, drawn from the dense joint covariance: how often are pairs apart?
    values, vectors = np.linalg.eigh(cov)
    errors = (
        np.random.default_rng(1).normal(size=(DRAWS, len(cov))) @ (vectors * np.sqrt(np.maximum(values, 0))).T
    )
    first, second = np.triu_indices(len(cov), 1)
    apart = np.abs(errors[:, first] - errors[:, second]) > half[first] + half[second]
    rates = apart.mean(axis=1)
    assert abs(rates.mean() - 0.1) < MONTE_CARLO * rates.std() / np.sqrt(DRAWS)


def test_comparison_intervals_know_no_error_that_all_levels_share() -> None:
    known, estimated = (
        penicillin().comparison_intervals("plate", beta=beta) for beta in ("known", "estimated")
    )
    columns = ["compare_low", "compare_high"]
    pd.testing.assert_frame_equal(known[columns], estimated[columns], rtol=1e-6)
    # All pairs are alike here, so that half widths add up to the interval of the difference.
    pair = penicillin().compare_levels("plate", "a", "b")
    widths = (estimated["compare_high"] - estimated["estimate"]).loc[["a", "b"]]
    assert widths.sum() == pytest.approx((pair["conf_high"] - pair["estimate"]).iloc[0], rel=1e-6)


def test_many_levels_are_compared_by_some_of_their_pairs() -> None:
    covariance = np.diag(np.linspace(1.0, 2.0, 2000) ** 2)
    picked = np.unique(np.linspace(0, 1999, MOST_PAIRED).astype(int))
    whole, some = (comparison_factor(cov, 0.95) for cov in (covariance, covariance[np.ix_(picked, picked)]))
    assert some == pytest.approx(whole, abs=1e-3)


def test_equal_levels_have_comparison_intervals_of_no_width() -> None:
    found = fit("dyestuff2", "Yield ~ 1 + (1 | Batch)").comparison_intervals(beta="known")
    assert (found == 0).all(axis=None)


def test_the_caterpillar_shows_comparison_intervals() -> None:
    with mpl.rc_context({"backend": "Agg"}):
        ax = sleepstudy().plot.caterpillar(effect="Days", intervals="comparison")
        lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
        drawn = np.concatenate([np.array(c.get_segments()).reshape(-1, 2, 2) for c in lines])
        plt.close("all")
    found = sleepstudy().comparison_intervals(effect="Days", beta="known").sort_values("estimate")
    np.testing.assert_allclose(drawn[:, :, 0], found[["compare_low", "compare_high"]])
    with pytest.raises(jm.DataError, match="intervals is 'pairs'"):
        sleepstudy().plot.caterpillar(intervals="pairs")

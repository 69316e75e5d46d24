"""Pictures of groups: what is drawn of ranks, shrinkage and lines along a covariate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import jaxmixed as jm
from jaxmixed.plot_ranks import draw_ranks
from jaxmixed.plot_shrinkage import OwnEstimates, draw_shrinkage, own_estimates
from jaxmixed.trajectories import Trajectories, trajectories
from tests.support.fits import aliased, fit, quietly, sleepstudy, two_terms

ROUNDING = 1e-9
"""Relative: the same least squares by two factorisations, the same line by two routes."""


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


@cache
def schools() -> pd.DataFrame:
    """Pupils in classes in schools: a treatment of schools, a weight and an offset; two odd classes."""
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"school": np.repeat(np.arange(8), 30)})
    data["class"] = np.repeat(np.arange(24), 10)
    data["t"] = np.tile(np.arange(10.0), 24) + rng.normal(size=240) / 10
    data["arm"] = np.where(data["school"] % 2 == 0, "old", "new")
    data["sex"] = rng.choice(["f", "m"], 240)
    data["age"], data["w"] = rng.normal(12, 1, 240), rng.uniform(0.5, 2, 240)
    data["start"] = rng.normal(size=240)
    noise = rng.normal(size=24)[data["class"]] + rng.normal(size=8)[data["school"]] * data["t"] / 3
    data["y"] = data["t"] + 0.1 * data["t"] ** 2 + data["age"] + data["start"] + noise + rng.normal(size=240)
    one_row = (data["class"] == 5) & (data.groupby("class").cumcount() > 0)
    data.loc[data["class"] == 7, "t"] = 4.0
    return data[~one_row].reset_index(drop=True)


@cache
def nested() -> jm.MixedResults:
    formula = "y ~ arm * t + I(t^2) + sex + age + offset(0.5 * age) + (t | school) + (t | class)"
    return quietly(formula, schools(), weights="w", offset="start")


# Shrinkage


def own(found: jm.MixedResults, label: str) -> OwnEstimates:
    return own_estimates(found.frame, found.estimates, found._modes, label)


def test_own_estimates_of_a_growth_model_are_the_regressions_of_each_subject() -> None:
    data = jm.datasets.load("sleepstudy")
    lines = [np.polyfit(part["Days"], part["Reaction"], 1)[::-1] for _, part in data.groupby("Subject")]
    for found in (own(sleepstudy(), "Subject"), own(two_terms(), "Subject")):
        assert found.names == ("(Intercept)", "Days")
        np.testing.assert_allclose(found.own + found.population, lines, rtol=1e-8)


def test_own_estimates_leave_the_rest_of_the_model_as_it_is() -> None:
    data, found = schools(), nested()
    classes = own(found, "class")
    rest = data["y"] - found.predict(random="school")  # of which class is no part
    for level in (0, 11, 23):
        rows = (data["class"] == level).to_numpy()
        root = np.sqrt(data["w"][rows])
        Z = np.column_stack([np.ones(rows.sum()), data["t"][rows]])
        expected = np.linalg.lstsq(Z * root.to_numpy()[:, None], rest[rows] * root, rcond=None)[0]
        np.testing.assert_allclose(classes.own[level], expected, rtol=1e-7)
    # One row in class 5, one value of t in class 7: no slope of their own.
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(classes.own).any(axis=1)), [5, 7])
    np.testing.assert_array_equal(classes.predicted, found.ranef()["class"])


def test_arrows_lead_from_own_estimates_to_predictions() -> None:
    ax = sleepstudy().plot.shrinkage()
    found = own(sleepstudy(), "Subject")
    (arrows,) = (c for c in ax.collections if isinstance(c, mpl.quiver.Quiver))
    np.testing.assert_allclose(arrows.get_offsets(), found.own + found.population)
    np.testing.assert_allclose(np.column_stack([arrows.U, arrows.V]), found.predicted - found.own)
    assert {text.get_text() for text in ax.texts} == set(found.levels)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("(Intercept)", "Days")
    assert ax.get_title(loc="right") == "18 groups"
    swapped = sleepstudy().plot.shrinkage(effects=("Days", "(Intercept)"))
    assert (swapped.get_xlabel(), swapped.get_ylabel()) == ("Days", "(Intercept)")


def test_groups_without_own_estimates_are_counted() -> None:
    ax = nested().plot.shrinkage("class")
    assert ax.get_title(loc="right").startswith("22 groups, 2 without an own estimate left out")


def test_one_effect_is_drawn_against_its_own_estimate() -> None:
    model = fit("sleepstudy", "Reaction ~ Days + (1 | Subject)")
    ax = model.plot.shrinkage()
    (points,) = ax.collections
    data = jm.datasets.load("sleepstudy")
    means = (data["Reaction"] - model.predict(random=False)).groupby(data["Subject"]).mean()
    np.testing.assert_allclose(
        points.get_offsets(), np.column_stack([means, model.ranef()["Subject"]["(Intercept)"]]), rtol=1e-8
    )
    # The line of no shrinkage: y equals x.
    line = next(line for line in ax.lines if line.get_label() == "no shrinkage")
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert ax.get_title(loc="left") == "Subject: (Intercept)"


def test_own_estimates_far_out_do_not_widen_the_picture() -> None:
    found = own(sleepstudy(), "Subject")
    found.own[3] = [1e6, 0.0]
    ax = draw_shrinkage(found, "Subject", None, None)
    assert ax.get_xlim()[1] < 1e3
    assert "1 own estimate beyond the frame" in ax.get_title(loc="right")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "Class"}, "no grouping 'Class'"),
        ({"effects": "days"}, "no random effect 'days'"),
        ({"effects": ["Days", "Days"]}, "one, or two different ones"),
    ],
)
def test_shrinkage_names_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().plot.shrinkage(**options)


# Lines along a covariate


def lines_of(found: jm.MixedResults, x: str, group: str | None = None, **options: object) -> Trajectories:
    choice = {"groups": None, "max_groups": 24, "seed": 0, **options}
    return trajectories(found.frame, found.estimates, found._modes, x, group, **choice)  # type: ignore[arg-type]


def test_lines_of_a_growth_model_pass_through_its_fitted_values() -> None:
    found = lines_of(sleepstudy(), "Days")
    assert found.levels.tolist() == sleepstudy().ranef()["Subject"].index.tolist()
    for place in (0, 17):
        days = found.x[found.rows[place]]
        for line, fitted in (
            (found.conditional, sleepstudy().fittedvalues),
            (found.population, sleepstudy().predict(random=False)),
        ):
            expected = fitted.to_numpy()[found.rows[place]]
            np.testing.assert_allclose(
                np.interp(days, found.grid[place], line[place]), expected, rtol=ROUNDING
            )


def test_other_covariates_are_at_values_of_the_group() -> None:
    data, model = schools(), nested()
    found = lines_of(model, "t")
    assert (found.label, len(found.levels)) == ("class", 24)  # the most levels within which t varies
    for place in (0, 5, 16):
        own_rows = data[data["class"] == place]
        size = found.grid.shape[1]
        new = pd.DataFrame({"t": found.grid[place], "class": place, "school": own_rows["school"].iloc[0]})
        new["arm"], new["age"] = own_rows["arm"].iloc[0], own_rows["age"].mean()
        new["sex"], new["start"] = own_rows["sex"].mode()[0], own_rows["start"].mean()
        assert len(new) == size
        np.testing.assert_allclose(found.conditional[place], model.predict(new), rtol=ROUNDING)
        np.testing.assert_allclose(found.population[place], model.predict(new, random=False), rtol=ROUNDING)
    by_school = lines_of(model, "t", "school")
    np.testing.assert_array_equal(by_school.rows[2], np.flatnonzero(data["school"] == 2))


def test_lines_of_a_wider_grouping_leave_out_those_within_it() -> None:
    data, model = schools(), nested()
    found = lines_of(model, "t", "school", groups=[3])
    own_rows = data[data["school"] == 3]
    new = pd.DataFrame({"t": found.grid[0], "school": 3, "arm": "new", "age": own_rows["age"].mean()})
    new["sex"], new["start"] = own_rows["sex"].mode()[0], own_rows["start"].mean()
    np.testing.assert_allclose(found.conditional[0], model.predict(new, random="school"), rtol=ROUNDING)


def test_lines_stay_within_the_range_of_the_group() -> None:
    found = lines_of(nested(), "t")
    spread = np.ptp(schools()["t"])
    for place, own_rows in enumerate(found.rows):
        low, high = found.x[own_rows].min(), found.x[own_rows].max()
        if high - low > 0.1 * spread:
            np.testing.assert_allclose(found.grid[place, [0, -1]], [low, high])
        else:  # one row, or one value: a short line around it
            np.testing.assert_allclose(found.grid[place].mean(), low)
            np.testing.assert_allclose(np.ptp(found.grid[place]), 0.05 * spread)


def test_an_offset_given_as_an_array_is_at_its_mean_in_the_group() -> None:
    data = schools()
    own_offset = quietly("y ~ t + offset(age) + (1 | class)", data, offset=data["start"].to_numpy())
    found = lines_of(own_offset, "t", groups=[1])
    part = data[data["class"] == 1]
    intercept, slope = own_offset.params
    expected = intercept + slope * found.grid[0] + part["age"].mean() + part["start"].mean()
    np.testing.assert_allclose(found.population[0], expected, rtol=ROUNDING)


def test_levels_of_a_factor_stand_side_by_side() -> None:
    model = fit("machines", "score ~ Machine + (0 + Machine | Worker)")
    found = lines_of(model, "Machine")
    assert found.ticks == ("A", "B", "C")
    new = pd.DataFrame({"Machine": ["A", "B", "C"], "Worker": found.levels[4]})
    np.testing.assert_allclose(found.conditional[4], model.predict(new))
    panels = model.plot.trajectories("Machine")
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == ["A", "B", "C"]


def test_a_choice_of_groups_is_the_same_every_time() -> None:
    choices = (lines_of(sleepstudy(), "Days", max_groups=6, seed=seed).levels for seed in (1, 1, 2))
    one, two, other = choices
    assert len(one) == 6
    assert one.equals(two)
    assert not one.equals(other)
    assert one.tolist() == sorted(one)


def test_panels_show_rows_and_lines_on_common_scales() -> None:
    panels = sleepstudy().plot.trajectories("Days", groups=["335", "308"])
    data = jm.datasets.load("sleepstudy")
    for ax, level in zip(panels, ("335", "308"), strict=True):
        assert ax.get_title(loc="left") == level
        part = data[data["Subject"] == level]
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), part[["Days", "Reaction"]])
        assert [line.get_label() for line in ax.lines] == ["population", "group"]
    assert panels[0].get_ylim() == panels[1].get_ylim()
    assert panels[0].get_ylim()[1] > data.loc[data["Subject"] == "308", "Reaction"].max()
    assert panels[0].figure.get_suptitle() == "Subject: 2 of 18 groups"


def test_given_panels_are_used() -> None:
    _, axes = plt.subplots(1, 2)
    panels = sleepstudy().plot.trajectories("Days", groups=["308", "309"], axes=axes)
    assert panels.tolist() == axes.tolist()
    with pytest.raises(jm.DataError, match="needs 18, one for each group"):
        sleepstudy().plot.trajectories("Days", axes=axes)


def test_one_panel_shows_all_lines_and_their_mean() -> None:
    ax = sleepstudy().plot.spaghetti("Days")
    (lines,) = ax.collections
    assert len(lines.get_segments()) == 18
    beta = sleepstudy().params
    population = ax.lines[-1]
    np.testing.assert_allclose(population.get_ydata(), beta.iloc[0] + beta.iloc[1] * population.get_xdata())
    assert ax.get_title(loc="right") == "18 groups"
    some = sleepstudy().plot.spaghetti("Days", max_groups=5)
    assert some.get_title(loc="right") == "5 of 18 groups"


def test_groups_are_told_apart_by_a_factor() -> None:
    data, model = schools(), nested()
    ax = model.plot.spaghetti("t", "class", by="arm")
    old = np.array([set(part["arm"]) == {"old"} for _, part in data.groupby("class")])
    assert [len(lines.get_segments()) for lines in ax.collections] == [24 - old.sum(), old.sum()]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["new", "old"]
    found = lines_of(model, "t", "class", by="arm")
    np.testing.assert_array_equal(found.kind, old)
    (drawn,) = (line for line in ax.lines if line.get_label() == "old")
    np.testing.assert_array_equal(drawn.get_ydata(), found.means[1])
    # The mean over the classes of that arm, each at its own mean age, start and most frequent sex.
    beta, heights = model.params, []
    for _, part in data[data["arm"] == "old"].groupby("class"):
        fixed = beta["(Intercept)"] + beta["armold"] + beta["sexm"] * (part["sex"].mode()[0] == "m")
        heights.append(fixed + ((0.5 + beta["age"]) * part["age"] + part["start"]).mean())
    t = found.mean_x
    curve = (beta["t"] + beta["armold:t"]) * t + beta["I(t^2)"] * t**2
    np.testing.assert_allclose(found.means[1], np.mean(heights) + curve, rtol=ROUNDING)
    with pytest.raises(jm.DataError, match=r"by is 'age', a number with 2.. values"):
        model.plot.spaghetti("t", by="age")


def test_a_dropped_column_counts_nothing() -> None:
    found = lines_of(aliased(), "Days", groups=["308"])
    days = found.x[found.rows[0]]
    expected = aliased().predict(random=False).to_numpy()[found.rows[0]]
    drawn = np.interp(days, found.grid[0], found.population[0])
    np.testing.assert_allclose(drawn, expected, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": "days"}, "x is 'days', which is no column of the fixed effects; these are 'Days'"),
        ({"x": "Days", "group": "Class"}, "no grouping 'Class'; it has 'Subject'"),
        ({"x": "Days", "groups": ["1"]}, "no level '1' among its 18"),
        ({"x": "Days", "groups": []}, "names no level"),
        ({"x": "Days", "max_groups": 0}, "max_groups must be a positive integer"),
    ],
)
def test_trajectories_name_what_is_wrong(options: dict, message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().plot.trajectories(**options)
    with pytest.raises(jm.DataError, match="no groups"):
        fit("sleepstudy", "Reaction ~ Days").plot.spaghetti("Days")


def test_random_effects_of_other_columns_are_at_their_mean_unless_x_is_among_theirs() -> None:
    model = quietly("y ~ t + (age | class)", schools())
    found = lines_of(model, "t", groups=[0])
    mean = schools()["age"][schools()["class"] == 0].mean()
    new = pd.DataFrame({"t": found.grid[0], "class": 0, "age": mean})
    np.testing.assert_allclose(found.conditional[0], model.predict(new), rtol=ROUNDING)
    with pytest.raises(
        jm.DataError, match="depend on 'age' as well, which is no column of the fixed effects"
    ):
        lines_of(quietly("y ~ t + (I(t * age) | class)", schools()), "t")


# Ranks


def rank_table(m: int, num_top: int) -> pd.DataFrame:
    """Ranks made up for a plot."""
    expected = np.linspace(1.5, m - 0.5, m)
    columns = {
        "expected": expected,
        "rank_low": np.maximum(expected - 3, 1),
        "rank_high": np.minimum(expected + 3, m),
        "p_top": np.linspace(0.9, 0.0, m),
    }
    table = pd.DataFrame(columns, index=[f"s{i}" for i in range(m)])
    table.attrs |= {"group": "school", "effect": "ses", "num_top": num_top}
    return table


def segments(ax: plt.Axes) -> np.ndarray:
    lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    return np.concatenate([np.array(c.get_segments()).reshape(-1, 2, 2) for c in lines])


@pytest.mark.parametrize("m", [20, 100, 1000])
def test_every_level_has_its_interval_of_ranks(m: int) -> None:
    table = rank_table(m, 2)
    ax = draw_ranks(table, 0.9, False)
    along, across = (0, 1) if m == 20 else (1, 0)
    drawn = segments(ax)
    drawn = drawn[np.argsort(drawn[:, 0, across])]
    np.testing.assert_allclose(drawn[:, :, along], table[["rank_low", "rank_high"]])
    dark = [c for c in ax.collections if isinstance(c, mpl.collections.PathCollection)][1]
    assert len(dark.get_offsets()) == (table["p_top"] > 0.5).sum()
    low, high = ax.get_ylim()
    assert low > high  # the first on top
    assert ax.get_title(loc="left") == "school: ses"
    assert ax.get_title(loc="right").startswith("90% intervals of ranks; top 2 shaded")


def test_ranks_of_a_fit_are_drawn_in_order_with_the_probability_of_the_top() -> None:
    ax = sleepstudy().plot.ranks(effect="Days", num_draws=200, top=3)
    table = sleepstudy().ranks(effect="Days", num_draws=200, top=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == table.index.tolist()
    shown = [text.get_text() for text in ax.texts]
    assert shown == [f"{p:.2f}" for p in table["p_top"] if p >= 0.005] + ["P(top 3)"]
    assert sleepstudy().plot.ranks(num_draws=20, ascending=True).get_xlabel() == "Rank (1 is the lowest)"

"""Caterpillar plots: what is drawn, for which group and effect, and how names are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import jaxmixed as jm
from jaxmixed.plots import Plots, save_caterpillar
from tests.support.fits import fit, sleepstudy, two_terms


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


class Made:
    """Random effects made up for a plot."""

    def __init__(self, values: np.ndarray, half: float, levels: list[str] | None = None) -> None:
        index = pd.Index(range(len(values)) if levels is None else levels)
        self.values = pd.DataFrame({"(Intercept)": values}, index=index)
        self.errors = pd.DataFrame({"(Intercept)": np.full(len(values), half)}, index=index)

    def ranef(self) -> dict[str, pd.DataFrame]:
        return {"g": self.values}

    def ranef_se(self, beta: str = "known") -> dict[str, pd.DataFrame]:
        return {"g": self.errors if beta == "known" else 2 * self.errors}


def intervals(ax: plt.Axes) -> np.ndarray:
    """Segments of all intervals, n x 2 points x 2 coordinates."""
    lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    return np.concatenate([np.array(c.get_segments()).reshape(-1, 2, 2) for c in lines])


def test_levels_are_sorted_and_named_with_intervals_around_their_effects() -> None:
    ax = sleepstudy().plot.caterpillar()
    effects = sleepstudy().ranef()["Subject"]["(Intercept)"].sort_values()
    assert [label.get_text() for label in ax.get_yticklabels()] == effects.index.tolist()
    segments = intervals(ax)
    segments = segments[np.argsort(segments[:, 0, 1])]
    np.testing.assert_allclose(segments[:, :, 0].mean(axis=1), effects, atol=1e-9)
    half = 1.959964 * sleepstudy().ranef_se()["Subject"]["(Intercept)"].loc[effects.index]
    np.testing.assert_allclose(np.diff(segments[:, :, 0])[:, 0] / 2, half, rtol=1e-6)


def test_the_title_counts_the_intervals_that_exclude_zero() -> None:
    ax = Plots(Made(np.array([-3.0, -0.5, 0.4, 2.5, 4.0]), half=1.0)).caterpillar()
    assert ax.get_title(loc="left") == "g: (Intercept)"
    assert ax.get_title(loc="right") == "95% intervals; 3 of 5 exclude zero"
    wide = Plots(Made(np.array([-3.0, -0.5, 0.4, 2.5, 4.0]), half=1.0)).caterpillar(
        beta="estimated", level=0.9
    )
    assert wide.get_title(loc="right") == "90% intervals; 1 of 5 exclude zero"


def test_intervals_that_exclude_zero_have_their_own_colour() -> None:
    ax = Plots(Made(np.array([-3.0, -0.5, 0.4, 2.5]), half=1.0)).caterpillar()
    lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    assert [len(c.get_segments()) for c in lines] == [2, 2]
    assert not np.allclose(lines[0].get_color(), lines[1].get_color())


def test_there_is_a_line_at_zero() -> None:
    few, many = (Plots(Made(np.arange(n) - n / 2, 1.0)).caterpillar() for n in (5, 100))
    assert set(few.lines[0].get_xdata()) == {0}
    assert set(many.lines[0].get_ydata()) == {0}


@pytest.mark.parametrize("n", [61, 160, 1000])
def test_many_levels_are_ranked_without_names(n: int) -> None:
    ax = Plots(Made(np.random.default_rng(1).normal(size=n), 0.7)).caterpillar()
    assert ax.get_xlabel() == "Rank"
    assert len(intervals(ax)) == n
    assert len(ax.get_xticklabels()) < 15
    points = np.concatenate(
        [c.get_offsets() for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    )
    assert (np.diff(points[np.argsort(points[:, 0])][:, 1]) >= 0).all()


def test_the_default_group_has_the_fewest_levels_and_the_default_effect_is_the_intercept() -> None:
    ax = fit("egsingle", "math ~ year + (year | schoolid/childid)").plot.caterpillar()
    assert ax.get_title(loc="left") == "schoolid: (Intercept)"
    ax = fit("machines", "score ~ Machine + (0 + Machine | Worker)").plot.caterpillar()
    assert ax.get_title(loc="left") == "Worker: MachineA"


def test_group_and_effect_can_be_chosen() -> None:
    assert sleepstudy().plot.caterpillar("Subject", "Days").get_title(loc="left") == "Subject: Days"
    with pytest.raises(jm.DataError, match="no grouping 'School'; it has 'Subject'"):
        sleepstudy().plot.caterpillar("School")
    with pytest.raises(jm.DataError, match=r"no random effect 'days'; it has '\(Intercept\)', 'Days'"):
        sleepstudy().plot.caterpillar(effect="days")


def test_a_linear_model_has_nothing_to_plot() -> None:
    with pytest.raises(jm.DataError, match="no random effects"):
        fit("sleepstudy", "Reaction ~ Days").plot.caterpillar()


def test_given_axes_are_used() -> None:
    _, ax = plt.subplots()
    assert sleepstudy().plot.caterpillar(ax=ax) is ax
    assert len(plt.get_fignums()) == 1


def test_names_are_neither_mathematics_nor_control_characters() -> None:
    levels = ["$x_1^$", "a\x1bb", "n" * 100]
    ax = Plots(Made(np.array([1.0, 2.0, 3.0]), 1.0, levels)).caterpillar()
    ax.figure.canvas.draw()
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown[:2] == ["$x_1^$", "ab"]
    assert len(shown[2]) == 28


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_plot_is_saved_without_a_window(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    save_caterpillar(sleepstudy(), path, 0.95)
    assert path.stat().st_size > 5_000
    assert plt.get_fignums() == []


def test_a_missing_matplotlib_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(jm.JaxMixedError, match=r"pip install 'jaxmixed\[plot\]'"):
        sleepstudy().plot.caterpillar()


def test_levels_may_stay_in_their_order() -> None:
    ax = sleepstudy().plot.caterpillar(sort=False)
    levels = [str(level) for level in sleepstudy().ranef()["Subject"].index]
    assert [label.get_text() for label in ax.get_yticklabels()] == levels[::-1]  # the first on top
    many = Plots(Made(np.arange(100.0)[::-1], 1.0)).caterpillar(sort=False)
    assert many.get_xlabel() == "Level, in the order of the data"
    points = np.concatenate(
        [c.get_offsets() for c in many.collections if isinstance(c, mpl.collections.PathCollection)]
    )
    np.testing.assert_array_equal(points[np.argsort(points[:, 0])][:, 1], np.arange(100.0)[::-1])


def test_names_are_left_out_where_there_is_no_room_for_them() -> None:
    _, low = plt.subplots(figsize=(4, 2.4))
    assert sleepstudy().plot.caterpillar(ax=low).get_xlabel() == "Rank"


def test_pairs_of_effects_stand_in_the_ellipse_of_their_covariance() -> None:
    ax = sleepstudy().plot.pairs()
    np.testing.assert_allclose(ax.collections[0].get_offsets(), sleepstudy().ranef()["Subject"])
    edge = np.c_[ax.lines[0].get_data()]
    squared = np.einsum("ni,ni->n", edge, np.linalg.solve(sleepstudy().estimates.terms[0].cov, edge.T).T)
    np.testing.assert_allclose(squared, 2 * np.log(2), rtol=1e-6)  # half of two normal numbers lie within
    assert "estimated correlation 0.07" in ax.get_title(loc="right")


def test_effects_of_two_terms_are_uncorrelated_in_the_ellipse() -> None:
    ax = two_terms().plot.pairs("Subject", ("Days", "(Intercept)"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Days", "(Intercept)")
    assert "estimated correlation 0.00" in ax.get_title(loc="right")


def test_pairs_need_two_effects_of_one_grouping() -> None:
    with pytest.raises(jm.DataError, match=r"id has one random effect alone, '\(Intercept\)'"):
        fit("mini_wright", "wm ~ 1 + (1 | id)").plot.pairs()
    with pytest.raises(jm.DataError, match="give the names of two random effects"):
        sleepstudy().plot.pairs(effects=("Days", "Days"))


def oats() -> jm.MixedResults:
    return fit("oats", "yield ~ Variety * nitro + (1 | Block)")


def test_marginal_means_along_a_number_are_lines_in_bands() -> None:
    ax = oats().plot.margins("nitro", by="Variety", at={"nitro": [0, 0.3, 0.6]}, level=0.9, ddf="none")
    table = oats().emmeans(["nitro", "Variety"], at={"nitro": [0, 0.3, 0.6]}, level=0.9, ddf="none").table
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    for level, own in table.groupby("Variety", observed=True):
        np.testing.assert_allclose(np.c_[lines[level].get_data()], own[["nitro", "estimate"]])
    lowest = min(c.get_paths()[0].vertices[:, 1].min() for c in ax.collections)
    assert lowest == table["conf_low"].min()
    assert ax.get_title(loc="right") == "pointwise 90% bands"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("nitro", "Predicted yield")
    whole = oats().plot.margins("nitro")
    assert len(whole.lines[0].get_xdata()) == 60
    assert sorted(set(whole.lines[1].get_xdata())) == [0, 0.2, 0.4, 0.6]  # where the data are


def test_marginal_means_of_a_factor_are_points_with_intervals() -> None:
    ax = oats().plot.margins("Variety", by="nitro", at={"nitro": [0, 0.6]})
    table = oats().emmeans(["Variety", "nitro"], at={"nitro": [0, 0.6]}).table
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Golden Rain", "Marvellous", "Victory"]
    for line, (_, own) in zip(ax.lines, table.groupby("nitro"), strict=True):
        np.testing.assert_allclose(line.get_ydata(), own["estimate"])
    np.testing.assert_allclose(
        sorted(intervals(ax)[:, :, 1].ravel()), sorted(table[["conf_low", "conf_high"]].to_numpy().ravel())
    )


def test_slopes_and_robust_errors_are_passed_on() -> None:
    robust = oats().robust()
    ax = oats().plot.margins("Variety", slope="nitro", vcov=robust)
    table = oats().emtrends("Variety", "nitro", vcov=robust).table
    np.testing.assert_allclose(ax.lines[0].get_ydata(), table["estimate"])
    np.testing.assert_allclose(intervals(ax)[:, :, 1], table[["conf_low", "conf_high"]])
    assert ax.get_ylabel() == "Slope of nitro"


def test_numbers_that_lines_are_drawn_for_have_few_values() -> None:
    found = fit("sleepstudy", "Reaction ~ Days + (1 | Subject)")
    ax = fit("hsb82", "mathach ~ ses * meanses").plot.margins("ses", by="meanses")
    assert len(ax.get_legend().get_texts()) == 3
    with pytest.raises(jm.DataError, match="no column 'days'; it has 'Days'"):
        found.plot.margins("days")
    with pytest.raises(jm.DataError, match="by= names 'Days', which is the horizontal axis"):
        found.plot.margins("Days", by="Days")
    with pytest.raises(jm.DataError, match=r"the plot would have 9 lines; choose up to 8 of them with at="):
        oats().plot.margins("Variety", by="nitro", at={"nitro": [v / 10 for v in range(9)]})

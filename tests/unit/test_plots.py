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
from tests.support.fits import fit, sleepstudy


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

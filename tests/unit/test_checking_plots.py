"""Plots that check a fit, and their panel: what is drawn, for which model, and in which words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

import jaxmixed as jm
from jaxmixed import plot_style
from jaxmixed.envelopes import (
    plotting_positions,
    quantile_limits,
    replicated,
    replicated_modes,
    replicated_residuals,
)
from tests.support.fits import fit, quietly, sleepstudy
from tests.support.school_fits import schools, singular


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def linear() -> jm.MixedResults:
    return fit("sleepstudy", "Reaction ~ Days")


def points(ax: plt.Axes) -> np.ndarray:
    """Points of all scatters, in the order of x."""
    drawn = [c.get_offsets() for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    found = np.concatenate(drawn)
    return found[np.argsort(found[:, 0], kind="stable")]


def band(ax: plt.Axes) -> np.ndarray:
    """Corners of the filled band."""
    (found,) = (
        c for c in ax.collections if type(c).__name__ in ("PolyCollection", "FillBetweenPolyCollection")
    )
    return found.get_paths()[0].vertices


@pytest.mark.parametrize(
    ("random", "title"), [(True, "Conditional residuals"), (False, "Marginal residuals")]
)
def test_residuals_stand_against_the_predictions_that_they_are_left_by(random: bool, title: str) -> None:
    ax = sleepstudy().plot.residuals("pearson", random)
    expected = np.c_[sleepstudy().predict(random=random), sleepstudy().residuals("pearson", random)]
    drawn = ax.collections[0].get_offsets()
    np.testing.assert_allclose(drawn, expected)
    assert (ax.get_title(loc="left"), ax.get_ylabel()) == (title, "Pearson residual")
    smooth = max(ax.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(
        np.c_[smooth.get_data()], np.c_[plot_style.local_means(*expected.T)], rtol=1e-12
    )


def test_scaled_residuals_stand_against_population_predictions() -> None:
    ax = sleepstudy().plot.residuals("scaled")
    expected = np.c_[sleepstudy().predict(random=False), sleepstudy().residuals("scaled")]
    np.testing.assert_allclose(ax.collections[0].get_offsets(), expected)
    assert ax.get_title(loc="left") == "Scaled residuals"


def test_the_largest_residuals_carry_the_names_of_their_rows() -> None:
    named = [text.get_text() for text in sleepstudy().plot.residuals(mark=3).texts]
    assert named == ["56", "7", "59"]
    assert not sleepstudy().plot.residuals(mark=0).texts


def test_names_that_would_lie_on_each_other_are_left_out() -> None:
    data = jm.datasets.load("sleepstudy")
    data.loc[[56, 57], "Reaction"] = [700.0, 705.0]
    shown = quietly("Reaction ~ 1", data).plot.residuals(mark=2)
    assert [text.get_text() for text in shown.texts] == ["57"]


def test_the_spread_is_the_root_of_absolute_residuals_with_their_median() -> None:
    ax = sleepstudy().plot.scale_location()
    roots = np.sqrt(sleepstudy().residuals("standardized").abs())
    np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 1], roots)
    assert set(ax.lines[0].get_ydata()) == {roots.median()}
    assert ax.get_title(loc="right") == "dashed: median"


def test_quantiles_of_residuals_have_the_band_of_simulated_ones() -> None:
    ax = sleepstudy().plot.qq(simulations=39, seed=4)
    values = np.sort(sleepstudy().residuals("standardized"))
    np.testing.assert_allclose(points(ax), np.c_[plotting_positions(180, np.arange(180)), values])
    drawn = np.sort(
        np.concatenate(list(replicated_residuals(sleepstudy(), replicated(sleepstudy(), 39, 4))), axis=1),
        axis=0,
    )
    low, high = quantile_limits(drawn, 0.95)
    corners = band(ax)
    assert (corners[:, 1].min(), corners[:, 1].max()) == (low[0], high[-1])
    outside = int(((values < low) | (values > high)).sum())
    assert ax.get_title(loc="right") == f"{outside} of 180 outside the pointwise 95% band"
    assert ax.get_xlabel() == "Normal quantile (band: 39 simulations)"
    np.testing.assert_array_equal(points(ax), points(sleepstudy().plot.qq(simulations=39, seed=4)))


def test_quantiles_of_effects_are_those_of_the_grouping_asked_for() -> None:
    ax = sleepstudy().plot.qq("Subject", "Days", simulations=39)
    np.testing.assert_allclose(points(ax)[:, 1], np.sort(sleepstudy().ranef()["Subject"]["Days"]))
    assert ax.get_title(loc="left") == "Subject: Days"
    drawn = np.sort(
        np.concatenate(list(replicated_modes(replicated(sleepstudy(), 39, 1), 0, 1)), axis=1), axis=0
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(drawn, axis=1))


def test_without_simulations_a_line_goes_through_the_quartiles() -> None:
    ax = linear().plot.qq(simulations=0)
    (line,) = ax.lines
    at = np.interp([-0.6744897501960817, 0.6744897501960817], *points(ax).T)
    np.testing.assert_allclose(np.interp([-0.6744897501960817, 0.6744897501960817], *line.get_data()), at)
    assert ax.get_title(loc="right") == "180 values, line through the quartiles"


def test_quantiles_of_what_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(jm.DataError, match="what is 'School'; quantiles are of 'residuals', 'Subject'"):
        sleepstudy().plot.qq("School")
    with pytest.raises(jm.DataError, match="Subject has no random effect 'days'"):
        sleepstudy().plot.qq("Subject", "days")
    with pytest.raises(jm.DataError, match="effect='Days' is of a grouping"):
        sleepstudy().plot.qq(effect="Days")


def test_autocorrelations_are_bars_in_the_steps_of_their_limits() -> None:
    ax = sleepstudy().plot.autocorrelation(time="Days", simulations=39)
    table = sleepstudy().autocorrelation(time="Days", simulations=39).iloc[1:]
    np.testing.assert_allclose(points(ax), table[["lag", "autocorrelation"]])
    np.testing.assert_allclose([bar.get_y() for bar in ax.patches], table["low"])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in ax.patches], table["high"])
    assert (ax.get_xlabel(), ax.get_title(loc="left").strip()) == (
        "Lag (Days)",
        "Autocorrelation within Subject",
    )
    assert "810 pairs" in ax.get_title(loc="right")


def test_a_variogram_is_a_line_within_its_limits() -> None:
    ax = sleepstudy().plot.variogram("Days", simulations=39)
    table = sleepstudy().variogram("Days", simulations=39)
    np.testing.assert_allclose(np.c_[ax.lines[0].get_data()], table[["distance", "semivariance"]])
    assert band(ax)[:, 1].max() == table["high"].max()
    free = linear().plot.variogram(max_distance=5, simulations=0)
    assert free.get_xlabel() == "Distance (rows, in the order of the data)"
    assert free.get_title(loc="right") == "885 pairs"


@pytest.mark.parametrize(
    ("made", "titles"),
    [
        (sleepstudy, ["Subject: (Intercept)", "Subject: Days", "Subject: (Intercept)"]),
        (singular, ["Batch: (Intercept)", "Batch: (Intercept)"]),
        (linear, []),
    ],
)
def test_the_panel_has_pictures_for_what_the_model_has(made, titles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = made().plot.diagnostics(simulations=39)
        axes[0].figure.canvas.draw()
    assert [ax.get_title(loc="left").strip() for ax in axes] == [
        "Conditional residuals",
        "Spread of residuals",
        "Residuals",
        *titles,
    ]


@pytest.mark.slow
def test_the_panel_of_crossed_groups_shows_each() -> None:
    found = quietly("y ~ x + (1 | class) + (1 | item)", schools())
    _, own = plt.subplots(2, 3)
    axes = found.plot.diagnostics(simulations=0, axes=own)
    assert list(axes) == list(own.ravel())
    assert [ax.get_title(loc="left").strip() for ax in axes[3:]] == [
        "class: (Intercept)",
        "item: (Intercept)",
        "item: (Intercept)",
    ]
    with pytest.raises(jm.DataError, match="axes= has 3 axes; the diagnostics of this model need 6"):
        found.plot.diagnostics(simulations=0, axes=own[0])


def test_effects_without_variance_are_not_outside_of_their_band() -> None:
    ax = singular().plot.qq("Batch", simulations=39)
    assert ax.get_title(loc="right") == "0 of 6 outside the pointwise 95% band"


def test_given_axes_are_used() -> None:
    _, ax = plt.subplots()
    plots = linear().plot
    assert plots.residuals(ax=ax) is ax
    assert plots.scale_location(ax=ax) is ax
    assert plots.qq(simulations=0, ax=ax) is ax
    assert plots.autocorrelation(simulations=0, ax=ax) is ax
    assert plots.variogram(simulations=0, ax=ax) is ax
    assert len(plt.get_fignums()) == 1

"""What all pictures share: the smoother against R's, points that become counts, titles, names."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt

import jaxmixed as jm
from jaxmixed import plot_style

PRINTED = 5e-9
"""R printed nine digits of numbers between 1 and 4."""

Y = np.array([1.0, 1.9, 1.2, 2.8, 2.1, 12.0, 3.6, 3.1, 4.9, 4.2, 3.0, 2.2])


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def test_the_smoother_is_rs_lowess() -> None:
    x = np.array([0.3, 1.1, 1.4, 2.2, 2.9, 3.3, 4.1, 4.6, 5.8, 6.0, 7.5, 9.0])
    # R 4.2.2: lowess(x, y, delta = 0)$y
    expected = [1.07561516222438, 1.54851612974564, 1.72168957718994, 2.16281313235242, 2.57416495209785]
    expected += [2.78484211346654, 3.22310227184546, 3.53673098159301, 3.78383069661623, 3.78260740044742]
    expected += [3.10360282665261, 2.35831288122352]
    shuffled = np.random.default_rng(1).permutation(12)
    grid, values = plot_style.local_means(x[shuffled], Y[shuffled])
    np.testing.assert_array_equal(grid, x)
    np.testing.assert_allclose(values, expected, atol=PRINTED, rtol=0)


def test_the_smoother_takes_more_ties_than_it_has_neighbours() -> None:
    grid, values = plot_style.local_means(np.r_[np.ones(9), 2.0, 3.0, 4.0], Y)
    np.testing.assert_array_equal(grid, [1, 2, 3, 4])
    # R 4.2.2: lowess(c(rep(1, 9), 2, 3, 4), y, delta = 0)$y[9:12]
    expected = [2.43806448526039, 4.2, 3.11461477013741, 2.15212829263482]
    np.testing.assert_allclose(values, expected, atol=PRINTED, rtol=0)


def test_the_smoother_of_many_points_follows_their_line() -> None:
    x = np.random.default_rng(2).normal(size=50_000)
    grid, values = plot_style.local_means(x, 3 - 2 * x)
    assert 50 < len(grid) <= 100
    np.testing.assert_allclose(values, 3 - 2 * grid, atol=1e-9)


def test_few_values_of_x_have_no_curve() -> None:
    ax = plot_style.new_axes()
    plot_style.draw_smoother(ax, np.array([1.0, 1.0, 2.0, 3.0]), np.arange(4.0))
    plot_style.draw_smoother(ax, np.zeros(4), np.arange(4.0))
    assert not ax.lines


def test_many_points_are_counted_in_hexagons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot_style, "MOST_POINTS", 500)
    x, y = np.random.default_rng(3).normal(size=(2, 501))
    few, many = plot_style.new_axes(), plot_style.new_axes()
    assert plot_style.scatter(few, x[:500], y[:500]) == ""
    assert plot_style.scatter(many, x, y) == "501 rows, counted in hexagons"
    assert len(few.collections[0].get_offsets()) == 500
    assert many.collections[0].get_array().sum() == 501


def test_facts_stand_beside_the_title_or_below_it_where_they_do_not_fit() -> None:
    wide, narrow = plot_style.new_axes((8, 3)), plot_style.new_axes((3, 3))
    for ax in (wide, narrow):
        plot_style.entitle(ax, "Residuals", ["pointwise 95% band", "", "12 of 180 outside"])
    assert wide.get_title(loc="left") == "Residuals"
    assert wide.get_title(loc="right") == "pointwise 95% band, 12 of 180 outside"
    lines = narrow.get_title(loc="right").count("\n") + 1
    assert narrow.get_title(loc="left") == "Residuals" + "\n" * lines


def test_names_are_short_printable_and_numbers_plain() -> None:
    assert plot_style.short("a\x1bb") == "ab"
    assert len(plot_style.short("n" * 100)) == 28
    assert plot_style.short(np.float64(0.1) * 3) == "0.3"


def test_too_few_axes_are_refused() -> None:
    with pytest.raises(jm.DataError, match="axes= has 1 axes; the panel needs 2"):
        plot_style.given_panels(plot_style.new_axes(), 2, "the panel needs 2")

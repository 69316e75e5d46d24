"""Tables, needed sizes, pictures and summaries of power, from p-values made up for the purpose."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import NormalDist
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy import stats

import jaxmixed as jm
from jaxmixed.diagnosis import STOPPED
from jaxmixed.many_estimates import CONSTANT
from jaxmixed.power_results import NOT_DONE, PowerAxis, PowerResult, PowerSetting

NORMAL = NormalDist()


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def made(
    rejected: Sequence[int], axes: Sequence[PowerAxis], n: int = 1000, null: Sequence[bool] | None = None
) -> PowerResult:
    """A result with given numbers of rejections among n replicates."""
    names = [axis.name for axis in axes]
    grid = list(product(*(axis.values for axis in axes)))
    points = pd.DataFrame(grid, columns=names) if names else pd.DataFrame(index=range(1))
    p_values = np.where(np.arange(n) < np.array(rejected)[:, None], 0.01, 0.5)
    setting = PowerSetting("y ~ x + (1 | g)", "x", "Wald test", "reml", 0.05, 0.95, n, 7)
    flags = np.zeros(p_values.shape, dtype=np.uint8)
    is_null = np.zeros(len(p_values), dtype=bool) if null is None else np.array(null)
    rows = 10 * np.arange(1, len(p_values) + 1)
    return PowerResult(setting, tuple(axes), points, rows, is_null, p_values, flags, flags.astype(bool))


def groups(*values: int) -> PowerAxis:
    return PowerAxis("school", "groups", "Number of groups: school", values)


def effects(*values: float) -> PowerAxis:
    return PowerAxis("x", "effects", "Effect of x", values)


# Table


def test_the_table_counts_what_was_used() -> None:
    found = made([500, 900], [groups(10, 20)])
    found.reasons[0, :100] = STOPPED
    found.reasons[0, 990:] = CONSTANT
    found.p_values[0, 990:] = np.nan
    found.reasons[1, 950:] = NOT_DONE
    found.p_values[1, 950:] = np.nan
    found.singular[:, :200] = True
    table = found.table
    assert table["school"].tolist() == [10, 20]
    assert table["n_rejected"].tolist() == [400, 900]
    assert table["n_used"].tolist() == [890, 950]
    assert table["n_failed"].tolist() == [110, 0]
    assert table["n_singular"].tolist() == [100, 200]
    np.testing.assert_allclose(table["power"], [400 / 890, 900 / 950])
    np.testing.assert_allclose(table["converged"], [0.89, 1.0])
    for row in table.itertuples():
        limits = stats.binomtest(row.n_rejected, row.n_used).proportion_ci(0.95, "exact")
        np.testing.assert_allclose([row.conf_low, row.conf_high], limits, rtol=1e-10)
    assert found.warnings() == (
        (
            "110 of 1,000 fits failed at school = 10 and are left out: the optimiser stopped before it"
            " converged (100); the response is constant (10)"
        ),
        "interrupted: 50 of 2,000 replicates were not fitted",
    )
    failures = found.failures()
    assert failures["n"].tolist() == [100, 10]
    assert failures["school"].tolist() == [10, 10]


def test_a_point_without_replicates_has_no_power() -> None:
    found = made([5, 5], [groups(10, 20)], n=10)
    found.reasons[1] = NOT_DONE
    assert found.table["power"].tolist()[0] == 0.5
    assert found.table[["power", "conf_low", "conf_high"]].isna().all(axis=1).tolist() == [False, True]
    assert ".  " in str(found.summary())
    assert found.needed(0.4)["note"].tolist() == ["power > 0.4 at 10"]
    found = made([5, 5], [groups(10, 20)], n=10)
    found.reasons[:] = NOT_DONE
    assert repr(found).endswith("power nan>")
    assert found.needed(0.4)["needed"].isna().all()


def test_tables_are_handed_out_as_copies() -> None:
    found = made([5, 6], [groups(10, 20)], n=10)
    table = found.table
    table.loc[0, "power"] = 99
    assert found.table.loc[0, "power"] == 0.5


# Needed sizes


def normal_power(x: np.ndarray) -> np.ndarray:
    """Power of a one-sided normal test with noncentrality sqrt(x) / 2."""
    return np.array([NORMAL.cdf(0.5 * np.sqrt(value) - 1.96) for value in x])


def test_the_needed_number_follows_the_normal_curve_between_points() -> None:
    sizes = np.array([10, 20, 40, 80])
    n = 10**6
    found = made((n * normal_power(sizes)).round().astype(int).tolist(), [groups(*sizes.tolist())], n=n)
    exact = (2 * (1.96 + NORMAL.inv_cdf(0.8))) ** 2
    assert found.needed(0.8)["needed"].tolist() == [int(np.ceil(exact))]
    wide = made([int(v) for v in 500 * normal_power(sizes)], [groups(*sizes.tolist())], n=500).needed(0.8)
    assert (wide["conf_low"] < exact).all()
    assert (wide["conf_high"] > exact).all()
    assert wide["conf_high"].iloc[0] - wide["conf_low"].iloc[0] < 12


def test_limits_hold_the_truth_as_often_as_they_say() -> None:
    sizes, rng = [10, 20, 30, 40], np.random.default_rng(1)
    exact = (2 * (1.96 + NORMAL.inv_cdf(0.8))) ** 2
    held = 0
    for _ in range(200):
        rejected = rng.binomial(300, normal_power(np.array(sizes)))
        row = made(rejected.tolist(), [groups(*sizes)], n=300).needed(0.8).iloc[0]
        low = 0 if pd.isna(row["conf_low"]) else row["conf_low"]
        high = np.inf if pd.isna(row["conf_high"]) else row["conf_high"]
        held += low <= np.ceil(exact) and exact <= high
    assert held >= 186  # 95% of 200, less three standard errors


def test_a_decrease_is_smoothed_away() -> None:
    found = made([100, 520, 480, 900], [groups(10, 20, 30, 40)])
    assert found.needed(0.5)["needed"].tolist() == [20]
    low, high = found.needed(0.5).loc[0, ["conf_low", "conf_high"]]
    assert 10 < low <= 20
    assert 30 <= high < 40


def test_the_note_says_where_the_grid_ends() -> None:
    found = made([100, 200, 900, 950], [effects(0.1, 0.2), groups(10, 20)])
    table = found.needed(0.8, along="school")
    assert table["x"].tolist() == [0.1, 0.2]
    assert table["note"].tolist() == ["power < 0.8 at 20", "power > 0.8 at 10"]
    assert table[["needed", "conf_low", "conf_high"]].isna().all(axis=None)


@pytest.mark.parametrize("sign", [1, -1])
def test_effects_are_taken_by_their_size(sign: int) -> None:
    values = [0.0, 0.2, 0.4]
    rejected = [50, 500, 950]
    if sign < 0:
        values, rejected = [-0.4, -0.2, 0.0], rejected[::-1]
    row = made(rejected, [effects(*values)]).needed(0.5).iloc[0]
    assert row["needed"] == pytest.approx(0.2 * sign)
    assert row["conf_low"] < row["needed"] < row["conf_high"]


def test_what_cannot_be_interpolated_is_refused() -> None:
    with pytest.raises(jm.DataError, match="negative and positive effects"):
        made([900, 50, 900], [effects(-1, 0, 1)]).needed()
    with pytest.raises(jm.DataError, match="nothing along which the power changes"):
        made([900], []).needed()
    with pytest.raises(jm.DataError, match=r"no numbers along 'size'; it has 'school'"):
        made([1, 2], [groups(10, 20)]).needed(along="size")
    for power in (0, 1, True, "0.8"):
        with pytest.raises(jm.DataError, match="power is"):
            made([1, 2], [groups(10, 20)]).needed(power)  # type: ignore[arg-type]


# Pictures


def test_a_plot_has_a_line_and_a_band_for_each_combination() -> None:
    found = made([100, 200, 300, 500, 600, 900], [groups(10, 20, 40), effects(0.1, 0.2)])
    ax = found.plot()
    curves = [line for line in ax.get_lines() if len(line.get_xdata()) == 3]
    assert [line.get_label() for line in curves] == ["x = 0.1", "x = 0.2"]
    assert curves[0].get_xdata().tolist() == [10, 20, 40]
    np.testing.assert_allclose(curves[0].get_ydata(), [0.1, 0.3, 0.6])
    np.testing.assert_allclose(curves[1].get_ydata(), [0.2, 0.5, 0.9])
    bands = [c for c in ax.collections if isinstance(c, mpl.collections.PolyCollection)]
    table = found.table
    for band, x in zip(bands, (0.1, 0.2), strict=True):
        inside = band.get_paths()[0].vertices
        rows = table[table["x"] == x]
        assert {tuple(v) for v in zip(rows["school"], rows["conf_low"], strict=True)} <= set(
            map(tuple, inside)
        )
        assert {tuple(v) for v in zip(rows["school"], rows["conf_high"], strict=True)} <= set(
            map(tuple, inside)
        )
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Number of groups: school", "Power")
    assert ax.get_title(loc="left") == "Test of x"
    assert ax.get_title(loc="right") == "95% intervals, 1,000 replicates"
    assert [text.get_text() for text in ax.texts] == ["0.8 wanted"]
    assert ax.get_ylim() == (0, 1.02)


def test_a_plot_is_drawn_on_the_axes_given_along_the_axis_asked_for() -> None:
    found = made([50, 400, 60, 900], [groups(10, 20), effects(0, 0.2)], null=[True, False, True, False])
    _, ax = plt.subplots()
    assert found.plot("x", ax=ax, power=None, at={"school": 20}) is ax
    curves = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in curves] == [[0.06, 0.9]]
    assert ax.get_legend() is None
    assert ax.get_title(loc="right") == "school = 20, 95% intervals, 1,000 replicates"
    assert [text.get_text() for text in ax.texts] == ["0.05 level of the test"]
    assert ax.get_xlabel() == "Effect of x"


def test_what_cannot_be_drawn_is_refused() -> None:
    found = made(list(range(20)), [groups(10, 20), effects(*np.arange(1.0, 11))])
    with pytest.raises(jm.DataError, match=r"would have 10 lines; choose up to 8 of them with at=\{'x': "):
        found.plot()
    with pytest.raises(jm.DataError, match="at= names 'size'; the other axes are 'x'"):
        found.plot(at={"size": 3})
    with pytest.raises(jm.DataError, match="the grid has no x of 77"):
        found.plot(at={"x": 77})
    with pytest.raises(jm.DataError, match="no numbers along 'z'"):
        found.plot("z")


def test_without_matplotlib_a_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(jm.JaxMixedError, match=r"pip install 'jaxmixed\[plot\]'"):
        made([1, 2], [groups(10, 20)]).plot()


# Text


def test_the_summary_says_what_was_asked_and_found() -> None:
    found = made([50, 800], [effects(0, 0.2)], null=[True, False])
    text = str(found.summary())
    for part in (
        "Power of a Wald test by simulation, REML fits",
        "Formula: y ~ x + (1 | g)",
        "Test of               x ",
        "Replicates per point  1,000",
        "Seed                      7",
        "0.2",
        "0.800         0.774        0.824",
        "the power is the rate of false",
    ):
        assert part in text, text
    assert max(map(len, text.splitlines())) <= 79
    assert "<table>" in found.summary()._repr_html_()
    assert repr(found) == "<PowerResult: x; 2 points, 1,000 replicates, power 0.05 to 0.80>"
    assert found.seed == 7
    assert found.describe(1) == "x = 0.2"


def test_a_single_point_has_a_summary_too() -> None:
    found = made([800], [])
    assert "as given" in str(found.summary())
    assert found.table.columns[0] == "rows"
    assert repr(found) == "<PowerResult: x; 1 point, 1,000 replicates, power 0.80>"


def test_warnings_stand_at_the_top_of_the_summary() -> None:
    found = made([5, 5], [groups(10, 20)], n=10)
    found.reasons[1, :4] = STOPPED
    assert "\nWARNING: 4 of 10 fits failed at school = 20 and are left out" in str(found.summary())


def test_names_from_data_are_printed_safely() -> None:
    nasty: Any = PowerAxis("x\x1b[31m", "effects", "Effect of x\x1b[31m", (0.0, 1.0))
    text = str(made([1, 2], [nasty], n=10).summary())
    assert "\x1b" not in text

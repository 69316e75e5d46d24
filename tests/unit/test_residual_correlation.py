"""Correlation of residuals within groups: against loops over all pairs, and against nlme."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed import residual_correlation as correlation
from jaxmixed._distributions import normal_quantile
from jaxmixed.residual_correlation import (
    autocorrelation_table,
    default_max_lag,
    lags_of,
    pairs_of,
    series_of,
    variogram_table,
)
from tests.support.fits import fit, quietly, sleepstudy

PRINTED = 1e-8
"""nlme's two optimisers differ by 5e-9 in these numbers, of which nine digits are printed."""


def irregular() -> tuple[jm.MixedResults, pd.DataFrame, np.ndarray]:
    """Groups of 1 to 9 rows in random order, with gaps in their times; a fit, and numbers for residuals."""
    rng = np.random.default_rng(4)
    rows = [(g, 0.5 * t + 2) for g in range(12) for t in np.sort(rng.choice(20, rng.integers(1, 10), False))]
    data = pd.DataFrame(rows, columns=["g", "t"]).sample(frac=1, random_state=5).reset_index(drop=True)
    data["y"] = rng.normal(size=len(data)) + rng.normal(size=12)[data["g"]]
    return quietly("y ~ t + (1 | g)", data), data, rng.normal(size=len(data))


def test_autocorrelations_are_means_of_products_over_the_pairs_of_a_group() -> None:
    found, data, r = irregular()
    series = series_of(found.frame, "g", "t")
    lags = lags_of(series)
    table = autocorrelation_table(r, series, lags, 12, 0.9, None).set_index("lag")
    assert lags.step == 0.5
    g, t = data["g"].to_numpy(), data["t"].to_numpy()
    for lag in range(1, 13):
        at = [(i, j) for i in range(len(r)) for j in range(len(r)) if g[i] == g[j] and t[j] - t[i] == lag / 2]
        assert table.loc[lag, "pairs"] == len(at)
        if at:
            value = np.mean([r[i] * r[j] for i, j in at]) / np.mean(r**2)
            np.testing.assert_allclose(table.loc[lag, "autocorrelation"], value, rtol=1e-12)
            np.testing.assert_allclose(table.loc[lag, "high"], normal_quantile(0.9) / np.sqrt(len(at)))
            assert table.loc[lag, "low"] == -table.loc[lag, "high"]
        else:
            assert table.loc[lag, ["autocorrelation", "low", "high"]].isna().all()
    assert table.loc[0, "autocorrelation"] == 1
    assert table.loc[0, "pairs"] == len(r)


def test_times_on_no_grid_are_counted_and_said_to_be() -> None:
    found, data, r = irregular()
    times = data["t"] + np.random.default_rng(6).uniform(0, 0.1, len(data))
    series = series_of(found.frame, "g", times.rename("hour"))
    table = autocorrelation_table(r, series, lags_of(series), 2, 0.95, None)
    ordered = [r[own.sort_values().index] for _, own in times.groupby(data["g"])]
    pairs = [own[:-2] * own[2:] for own in ordered if len(own) > 2]
    assert table.loc[2, "pairs"] == sum(map(len, pairs))
    np.testing.assert_allclose(table.loc[2, "autocorrelation"], np.concatenate(pairs).mean() / np.mean(r**2))
    assert found.plot.autocorrelation("g", times.rename("hour"), simulations=0).get_xlabel() == (
        "Lag (rows, in the order of hour)"
    )


def test_semivariances_are_half_mean_squared_differences() -> None:
    found, data, r = irregular()
    series = series_of(found.frame, "g", "t", "x")
    pairs = pairs_of(series, 4.0, seed=1)
    table = variogram_table(r, series, pairs, 20, 0.95, None)
    g, t = data["g"].to_numpy(), data["t"].to_numpy()
    squares: dict[float, list[float]] = {}
    for i in range(len(r)):
        for j in range(i):
            if g[i] == g[j] and abs(t[i] - t[j]) <= 4:
                squares.setdefault(abs(t[i] - t[j]), []).append((r[i] - r[j]) ** 2 / 2)
    expected = pd.Series({d: np.mean(own) for d, own in squares.items()}).sort_index()
    np.testing.assert_array_equal(table["distance"], expected.index)
    np.testing.assert_allclose(table["semivariance"], expected, rtol=1e-12)
    assert table["pairs"].tolist() == [len(squares[d]) for d in expected.index]
    assert table[["low", "high"]].isna().all(axis=None)


def test_many_distances_are_put_in_bins_of_about_as_many_pairs() -> None:
    found, data, r = irregular()
    x = np.random.default_rng(7).normal(size=len(data))
    series = series_of(found.frame, "g", x, "x")
    pairs = pairs_of(series, None, seed=1)
    table = variogram_table(r, series, pairs, 5, 0.95, None)
    cut = pd.qcut(pairs.distance, 5)
    ordered = r[series.order]
    squares = pd.Series((ordered[pairs.first] - ordered[pairs.second]) ** 2 / 2)
    np.testing.assert_allclose(table["semivariance"], squares.groupby(cut.codes).mean(), rtol=1e-12)
    np.testing.assert_allclose(table["distance"], pd.Series(pairs.distance).groupby(cut.codes).median())
    assert table["pairs"].sum() == pairs.total


def test_of_too_many_pairs_some_are_drawn_each_with_the_same_probability(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(correlation, "MOST_PAIRS", 30_000)
    sizes = [1, 2, 30, 300]
    data = pd.DataFrame({"g": np.repeat(range(4), sizes)})
    data["y"] = np.random.default_rng(8).normal(size=len(data))
    series = series_of(quietly("y ~ 1 + (1 | g)", data).frame, None, None)
    pairs = pairs_of(series, None, seed=1)
    assert pairs.total == 1 + 435 + 44_850
    assert len(pairs.distance) == 30_000
    assert (series.codes[pairs.first] == series.codes[pairs.second]).all()
    assert (pairs.distance >= 1).all()
    of_third = int((series.codes[pairs.first] == 2).sum())
    assert abs(of_third - 30_000 * 435 / 45_286) < 4 * np.sqrt(288)
    # Within the largest group: distance d has 300 - d pairs.
    own = pairs.distance[series.codes[pairs.first] == 3]
    assert abs(own.mean() - 301 / 3) < 4 * 70.7 / np.sqrt(len(own))  # the mean, and its standard error


@pytest.mark.reference
def test_autocorrelation_and_variogram_are_nlmes() -> None:
    # R 4.2.2, nlme 3.1-162: m = lme(Reaction ~ Days, sleepstudy, ~ Days | Subject, control = lmeControl(
    # msTol = 1e-15, tolerance = 1e-14, niterEM = 500, msMaxIter = 500)); ACF(m); Variogram(m, form = ~ Days)
    acf = [1, 0.116116018, -0.167093113, -0.336343192, -0.138292847, -0.16715673, -0.294346265]
    acf += [-0.0637733795, 0.243645263, 0.641372467]
    variog = [0.71812301, 1.00560742, 1.1529227, 0.909046544, 0.97897172, 1.1542267, 0.81749006]
    variog += [0.527648607, 0.51004639]
    found = sleepstudy().autocorrelation(time="Days", simulations=0)
    np.testing.assert_allclose(found["autocorrelation"], acf, atol=PRINTED)
    assert found["pairs"].tolist() == [180, 162, 144, 126, 108, 90, 72, 54, 36, 18]
    found = sleepstudy().variogram("Days", simulations=0)
    np.testing.assert_allclose(found["semivariance"], variog, atol=PRINTED)
    assert found["distance"].tolist() == list(range(1, 10))


def test_default_lags_are_rs() -> None:
    series = series_of(sleepstudy().frame, None, None)
    assert (series.group, default_max_lag(lags_of(series))) == ("Subject", 9)
    series = series_of(fit("sleepstudy", "Reaction ~ Days").frame, None, None)
    assert (series.group, default_max_lag(lags_of(series))) == (None, int(10 * np.log10(180)))


def test_simulated_limits_follow_what_estimation_does_to_residuals() -> None:
    free = sleepstudy().autocorrelation(time="Days", simulations=0)
    found = sleepstudy().autocorrelation(time="Days", simulations=39, seed=2)
    assert found.attrs["note"] == "pointwise 95% limits of 39 simulations"
    assert free.attrs["note"] == "95% limits of independent residuals"
    first = found.iloc[1]
    # With two effects estimated for each subject, its residuals alternate.
    assert first["low"] + first["high"] < -0.1
    assert first["autocorrelation"] > first["high"]
    pd.testing.assert_frame_equal(found, sleepstudy().autocorrelation(time="Days", simulations=39, seed=2))
    by_distance = sleepstudy().variogram("Days", simulations=39)
    assert ((by_distance["low"] < 1) & (by_distance["low"] < by_distance["high"])).all()


def test_arguments_that_make_no_sense_are_refused() -> None:
    nested = fit("egsingle", "math ~ year + (year | schoolid/childid)")
    with pytest.raises(jm.DataError, match=r"several rows of one level of 'schoolid' have the same 'year'"):
        nested.autocorrelation("schoolid", "year")
    with pytest.raises(jm.DataError, match=r"no column 'yr'.*give the values themselves, time=data\['yr'\]"):
        nested.autocorrelation(time="yr")
    with pytest.raises(jm.DataError, match=r"no column 'child'.*group=data\['child'\]"):
        nested.autocorrelation("child")
    with pytest.raises(jm.DataError, match="max_lag is 0; the longest series has lags from 1 to 5"):
        nested.autocorrelation(time="year", max_lag=0)
    with pytest.raises(jm.DataError, match="x has 3 values, and the fit has 7230 rows"):
        nested.variogram([1, 2, 3])
    with pytest.raises(jm.DataError, match=r"within max_distance=0.5 of each other; the nearest are 1 apart"):
        nested.variogram("year", max_distance=0.5)
    with pytest.raises(jm.DataError, match="bins is 0"):
        nested.variogram("year", bins=0)
    alone = series_of(nested.frame, "schoolid", None)
    assert alone.group == "schoolid"
    with pytest.raises(jm.DataError, match="no level of 'row' has two rows"):
        series_of(nested.frame, pd.Series(range(7230), name="row"), None)


def test_missing_times_are_refused_and_dropped_rows_may_have_any() -> None:
    data = jm.datasets.load("sleepstudy")
    data.loc[[3, 17], "Reaction"] = np.nan
    found = quietly("Reaction ~ Days + (1 | Subject)", data)
    times = data["Days"].astype(float)
    times[3] = np.nan
    assert len(series_of(found.frame, None, times).at) == 178
    times[4] = np.nan
    with pytest.raises(jm.DataError, match=r"time= \('Days'\) is missing in 1 of the rows used"):
        series_of(found.frame, None, times)

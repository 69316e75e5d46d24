"""Profile likelihoods as users see them: limits in closed form, at boundaries, tables, plots, arguments."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

import jaxmixed as jm
from jaxmixed import profile_search
from tests.support.fits import aliased, fit, quietly, sleepstudy

Z = 1.959963984540054
LIMIT = 1e-6  # of the interval's width: what the search for a limit promises


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def assert_limits(found: pd.Series, expected: tuple[float, float]) -> None:
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=LIMIT * width)


# Closed forms


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_linear_model_has_its_limits_in_closed_form(method: str) -> None:
    """Of a coefficient: df log(1 + t² / (n - p)) = z², with df = n under ML and n - p + 1 under REML."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(2, 30))
    data = pd.DataFrame({"y": 1 + x + rng.normal(size=30), "x": x, "w": w})
    found = quietly("y ~ x + w", data, method=method)
    limits = found.conf_int(method="profile")
    n, p = 30, 3
    X = np.column_stack([np.ones(n), x, w])
    beta, rss, *_ = np.linalg.lstsq(X, data["y"].to_numpy(), rcond=None)
    se = np.sqrt(np.diagonal(np.linalg.inv(X.T @ X)) * rss[0] / (n - p))
    df = n if method == "ml" else n - p + 1
    t = np.sqrt((n - p) * np.expm1(Z**2 / df))
    for j, name in enumerate(["(Intercept)", "x", "w"]):
        assert_limits(limits.loc[name], (beta[j] - t * se[j], beta[j] + t * se[j]))
    df = n if method == "ml" else n - p
    low, high = limits.loc["sd(Residual)"] / np.sqrt(rss[0] / df)
    for ratio in (low, high):
        assert df * (2 * np.log(ratio) + ratio**-2 - 1) == pytest.approx(Z**2, abs=1e-5)


@cache
def one_way() -> tuple[pd.DataFrame, np.ndarray]:
    """A balanced one-way layout, 8 groups of 5."""
    rng = np.random.default_rng(2)
    y = 3 + np.repeat(2 * rng.normal(size=8), 5) + rng.normal(size=40)
    return pd.DataFrame({"y": y, "g": np.repeat(list("abcdefgh"), 5)}), y.reshape(8, 5)


def test_the_mean_of_a_balanced_one_way_layout_has_its_limits_in_closed_form() -> None:
    """Under ML only the sum of squares between groups depends on the mean: m log(SSA(b) / SSA) = z²."""
    data, y = one_way()
    limits = quietly("y ~ 1 + (1 | g)", data, method="ml").conf_int(method="profile").loc["(Intercept)"]
    between = 5 * ((y.mean(axis=1) - y.mean()) ** 2).sum()
    half = np.sqrt(between * np.expm1(Z**2 / 8) / 40)
    assert_limits(limits, (y.mean() - half, y.mean() + half))


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_sigma_of_a_balanced_one_way_layout_has_its_limits_in_closed_form(method: str) -> None:
    """As long as the other variance can give way: (N - m)(log r + 1/r - 1) = z², r a ratio of squares."""
    data, y = one_way()
    limits = quietly("y ~ 1 + (1 | g)", data, method=method).conf_int(method="profile", which="sigma")
    within = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum() / 32
    for limit in limits.loc["sd(Residual)"]:
        ratio = limit**2 / within
        assert 32 * (np.log(ratio) + 1 / ratio - 1) == pytest.approx(Z**2, abs=1e-5)


# What users get


@cache
def profile_of_sleepstudy() -> jm.profiles.Profile:
    return sleepstudy(method="ml").profile()


def test_limits_alone_are_those_of_the_profile_at_every_level() -> None:
    profile = profile_of_sleepstudy()
    for level in (0.5, 0.95, 0.9999):  # the last beyond the profile's own
        alone = sleepstudy(method="ml").conf_int(level, method="profile")
        np.testing.assert_allclose(profile.conf_int(level), alone, rtol=1e-7)


def test_limits_are_where_the_profile_crosses() -> None:
    """The points next to a limit lie on either side of it."""
    table, limits = profile_of_sleepstudy().table, profile_of_sleepstudy().conf_int()
    for name, own in table.groupby("parameter"):
        outside = own["zeta"].abs() > Z
        beyond = (own["value"] < limits.loc[name, "conf_low"]) | (
            own["value"] > limits.loc[name, "conf_high"]
        )
        np.testing.assert_array_equal(outside, beyond)


def test_the_table_holds_all_parameters_along_the_way() -> None:
    table = profile_of_sleepstudy().table
    assert list(table.columns[:4]) == ["parameter", "value", "zeta", "deviance"]
    assert list(table.columns[4:]) == list(profile_of_sleepstudy().conf_int().index)
    for name, own in table.groupby("parameter"):
        np.testing.assert_allclose(own["value"], own[name], rtol=1e-12)
        assert (np.diff(own["value"]) > 0).all()
        assert (np.diff(own["zeta"]) > 0).all()
        assert (own["zeta"].diff().abs().dropna() < 1.0).all()
        rise = own["deviance"] - sleepstudy(method="ml").deviance
        np.testing.assert_allclose(own["zeta"] ** 2, rise, atol=1e-7)
    centre = table[table["zeta"] == 0]
    for name in table.columns[4:]:
        np.testing.assert_allclose(centre[name], centre[name].iloc[0], rtol=1e-5, atol=1e-6)


def test_a_restricted_likelihoods_coefficient_is_centred_near_its_estimate() -> None:
    """Not at it: theta is that of the model without the column."""
    fitted = fit("pig", "weight ~ week + (week | id)")
    own = fitted.profile("week").table
    centre = float(own.loc[own["zeta"] == 0, "value"].iloc[0])
    assert abs(centre - fitted.params["week"]) < 1e-3 * fitted.bse["week"]


def test_the_summary_shows_estimates_and_limits_by_group() -> None:
    text = str(profile_of_sleepstudy())
    lines = text.splitlines()
    assert lines[0] == "Profile likelihood"
    assert "Subject" in lines
    row = next(line for line in lines if line.startswith("  sd(Days)"))
    assert row.split() == ["sd(Days)", "5.7168", "3.8012", "8.7534"]
    assert "REML" in str(sleepstudy().profile("Days"))
    assert repr(sleepstudy().profile("Days")).startswith("<Profile: Days; ")


# Boundaries


@cache
def noise(seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    y, x = rng.normal(size=(2, 60))
    return pd.DataFrame({"y": y, "x": x, "g": np.repeat(list("abcdefghij"), 6)})


def test_a_standard_deviation_of_zero_has_zero_as_its_lower_limit() -> None:
    fitted = quietly("y ~ x + (1 | g)", noise())
    assert fitted.random_terms[0].cov.iloc[0, 0] == 0
    low, high = fitted.conf_int(method="profile").loc["sd((Intercept) | g)"]
    assert low == 0
    assert 0 < high < 2
    held = fitted.profile("sd((Intercept) | g)", level=0.95).table
    assert held["value"].iloc[0] == 0
    assert held["zeta"].iloc[0] == 0


def test_a_lower_limit_is_zero_where_zero_is_within_the_level() -> None:
    """As for lme4's batches of paste, whose estimate is not zero."""
    rng = np.random.default_rng(4)
    data = noise().assign(y=noise()["y"] + np.repeat(0.45 * rng.normal(size=10), 6))
    fitted = quietly("y ~ x + (1 | g)", data)
    name = "sd((Intercept) | g)"
    assert fitted.random_terms[0].cov.iloc[0, 0] > 0
    table = fitted.profile(name).table
    assert 0.3 < -table["zeta"].iloc[0] < Z
    assert fitted.profile(name).conf_int().loc[name, "conf_low"] == 0
    level = 0.1
    assert fitted.conf_int(level, method="profile").loc[name, "conf_low"] > 0


def test_a_correlation_of_effects_without_variance_may_be_anything() -> None:
    fitted = quietly("y ~ x + (x | g)", noise())
    limits = fitted.conf_int(method="profile")
    assert limits.loc["corr((Intercept), x | g)"].tolist() == [-1.0, 1.0]
    assert limits.loc["sd(x | g)", "conf_low"] == 0
    assert limits.notna().all(axis=None)
    axes = fitted.profile().plot()
    assert [text.get_text() for text in axes[3].texts] == ["not determined"]


def test_nearly_singular_fits_have_limits_around_their_estimates() -> None:
    """Where variances vanish the likelihood has ridges and several branches: nothing fails or is missed."""
    first = quietly("y ~ x + (x | g)", noise())
    rng = np.random.default_rng(7)
    codes = np.repeat(np.arange(10), 6)
    for spread in (0.1, 0.2, 0.4, 0.6):
        effects = spread * rng.normal(size=(10, 2))
        y = effects[codes, 0] + effects[codes, 1] * noise()["x"].to_numpy() + rng.normal(size=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jm.SingularFitWarning)
            fitted = first.refit(y)
        limits = fitted.conf_int(method="profile")
        profile = fitted.profile()
        np.testing.assert_allclose(profile.conf_int(), limits, rtol=1e-5, atol=1e-6)
        estimates = [*fitted.params, *fitted.varcorr["sd_or_corr"]]
        inside = (limits["conf_low"] <= estimates) & (estimates <= limits["conf_high"])
        assert (inside | np.isnan(estimates)).all()
        for _, own in profile.table.groupby("parameter"):
            assert (np.diff(own["zeta"]) > -1e-4).all()


def test_a_dropped_coefficient_has_no_limits() -> None:
    limits = aliased().conf_int(method="profile")
    assert limits.loc["Days2"].isna().all()
    assert limits.drop("Days2").notna().all(axis=None)


def test_two_groups_leave_a_wide_but_finite_limit() -> None:
    data = noise().assign(g=np.tile(["a", "b"], 30))
    data["y"] += np.where(data["g"] == "a", 3.0, 0.0)
    low, high = quietly("y ~ x + (1 | g)", data).conf_int(method="profile").loc["sd((Intercept) | g)"]
    # One degree of freedom: log(sd^2) + 1/sd^2 in units of the estimate rises by z^2 where sd is 11 of them.
    assert 0.3 < low < 1.5
    assert 15 < high < 40


# What fails is said


def test_a_search_that_fails_gives_nan_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_search, "MAX_EVALUATIONS", 1)
    with pytest.warns(jm.ConvergenceWarning, match="along the profile of Days failed"):
        limits = sleepstudy().conf_int(method="profile", which="Days")
    assert limits.loc["Days"].isna().all()


def test_a_better_optimum_than_the_estimates_is_reported() -> None:
    fitted = sleepstudy()
    worse = replace(fitted.estimates, deviance=fitted.estimates.deviance + 0.5)
    other = jm.MixedResults(frame=fitted.frame, estimates=worse, state=fitted.state)
    with pytest.warns(
        jm.ConvergenceWarning, match=r"lower by 0\.5 than at the estimates where sd\(Residual\)"
    ):
        other.profile("sigma")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("Dayz", r"no parameter 'Dayz' \(did you mean 'Days'\?\)"),
        (
            ["Days", "sd(Days|Subject)"],
            r"no parameter 'sd\(Days\|Subject\)' \(did you mean 'sd\(Days \| Subj",
        ),
        ([], "which is empty"),
        (3, "which is 3; give the name"),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest(which: object, message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        sleepstudy().profile(which)  # type: ignore[arg-type]


def test_arguments_of_other_methods_are_refused() -> None:
    with pytest.raises(jm.DataError, match="are of the bootstrap"):
        sleepstudy().conf_int(method="profile", seed=1)
    with pytest.raises(jm.DataError, match="which= is of profiles"):
        sleepstudy().conf_int(which="Days")
    with pytest.raises(jm.DataError, match="'wald', 'profile'"):
        sleepstudy().conf_int(method="score")
    with pytest.raises(jm.DataError, match="level is 95"):
        sleepstudy().conf_int(95, method="profile")
    with pytest.raises(jm.DataError, match="level is 2"):
        sleepstudy().profile(level=2)


# Plots


def test_the_zeta_plot_has_a_panel_for_each_parameter_with_its_interval_shaded() -> None:
    profile = profile_of_sleepstudy()
    axes = profile.plot(level=0.9)
    limits = profile.conf_int(0.9)
    assert [ax.get_title(loc="left") for ax in axes] == list(limits.index)
    for ax, (low, high) in zip(axes, limits.to_numpy(), strict=True):
        shaded = [patch.get_extents() for patch in ax.patches]
        data = ax.transData.inverted().transform(shaded[0].get_points())[:, 0]
        np.testing.assert_allclose(data, [low, high], rtol=1e-6, atol=1e-9)
        x, zeta = ax.lines[-2].get_data()
        assert np.interp(low, x, zeta) == pytest.approx(-1.645, abs=0.01)


def test_a_density_integrates_to_one() -> None:
    axes = sleepstudy(method="ml").plot.profile(["Days", "sigma"], kind="density")
    for ax in axes:
        x, density = ax.lines[0].get_data()
        assert np.trapezoid(density, x) == pytest.approx(1.0, abs=2e-3)


def test_plots_take_axes_and_refuse_what_they_cannot_draw() -> None:
    _, own = plt.subplots(1, 2)
    axes = profile_of_sleepstudy().plot
    assert list(sleepstudy().profile(["Days", "sigma"]).plot(axes=own)) == list(own)
    with pytest.raises(jm.DataError, match="axes= has 2 axes; the profile needs 6"):
        axes(axes=own)
    with pytest.raises(jm.DataError, match="drawn as 'zeta' or 'density'"):
        axes("splom")  # type: ignore[arg-type]


def test_nothing_is_said_of_a_profile_without_trouble() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sleepstudy().profile()

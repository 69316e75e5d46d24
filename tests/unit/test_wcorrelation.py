"""Standard deviations and correlations of one group's responses that a model implies."""

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.dense_forecasts import dense_forecasts
from tests.support.dense_residuals import Structure
from tests.support.fits import autoregressive, fit, mares, quietly

ROUNDING = 1e-10
# nlme's optimum is found to about seven digits.
NLME = 2e-6


def test_the_covariance_is_that_of_random_effects_and_residuals_together() -> None:
    found = autoregressive("follicles ~ Time + (1 | Mare)")
    structure = Structure("ar", group="Mare", time="occasion")
    dense = dense_forecasts(found, mares(), mares()[:0], ("Time",), structure)
    rows = mares().assign(row=np.arange(len(mares()))).query("Mare == '4'").sort_values("occasion")
    at = rows["row"].to_numpy()
    own = found.wcorrelation("4")
    expected = dense.covariance[np.ix_(at, at)]
    np.testing.assert_allclose(own.covariance, expected, rtol=ROUNDING)
    np.testing.assert_allclose(own.sd, np.sqrt(np.diagonal(expected)), rtol=ROUNDING)
    scale = np.sqrt(np.outer(np.diagonal(expected), np.diagonal(expected)))
    np.testing.assert_allclose(own.correlation, expected / scale, rtol=ROUNDING)
    assert own.covariance.index.tolist() == [str(value) for value in rows["occasion"]]
    assert own.covariance.index.name == "occasion"


@pytest.mark.slow
def test_the_covariance_is_that_of_nlme() -> None:
    # R 4.2.2, nlme 3.1-162, Ovary: lme(follicles ~ Time, random = ~1 | Mare, correlation = corAR1(form =
    # ~occasion | Mare)) and gls(., weights = varPower(form = ~occasion)); getVarCov(type = "marginal") of 4
    data = jm.datasets.load("ovary")
    mixed = jm.mixed("follicles ~ Time + (1 | Mare)", data, residuals="ar1(occasion | Mare)")
    found = mixed.wcorrelation("4").covariance.iloc[0, :3]
    np.testing.assert_allclose(found, [25.94273075, 20.51140160, 16.54921595], rtol=NLME)
    power = jm.residuals.AR(time="occasion", group="Mare", variance=jm.residuals.Power("occasion"))
    gls = jm.mixed("follicles ~ Time", data, residuals=power)
    found = gls.wcorrelation("4").covariance.to_numpy()[:2, :2]
    expected = [[21.37209985, 17.26397613], [17.26397613, 22.48746680]]
    np.testing.assert_allclose(found, expected, rtol=NLME)


def test_random_slopes_alone_make_correlations_too() -> None:
    found = fit("sleepstudy", "Reaction ~ Days + (Days | Subject)")
    Z = np.column_stack([np.ones(10), np.arange(10.0)])
    expected = Z @ found.random_terms[0].cov.to_numpy() @ Z.T + found.sigma**2 * np.eye(10)
    np.testing.assert_allclose(found.wcorrelation(308).covariance, expected, rtol=ROUNDING)


def test_weights_divide_variances_and_known_relationships_correlate_levels() -> None:
    data = jm.datasets.load("sleepstudy").assign(w=np.tile([1.0, 4.0], 90))
    found = quietly("Reaction ~ Days", data, residuals="cs(Subject)", weights="w")
    own = found.wcorrelation("308")
    np.testing.assert_allclose(own.sd, found.sigma / np.sqrt(data["w"][:10]), rtol=ROUNDING)
    rho = found.residual_parameters["rho"]
    np.testing.assert_allclose(own.correlation.to_numpy()[~np.eye(10, dtype=bool)], rho, rtol=ROUNDING)


def test_the_first_of_the_largest_groups_is_shown_and_its_table_is_printed() -> None:
    found = autoregressive()
    sizes = mares()["Mare"].value_counts()
    own = found.wcorrelation()
    assert sizes[own.level] == sizes.max()
    assert own.level == mares()["Mare"][mares()["Mare"].isin(sizes.index[sizes == sizes.max()])].iloc[0]
    text = repr(own)
    assert text.startswith(f"Standard deviations and correlations of {sizes.max()} rows: Mare = {own.level}")
    assert "SD" in text
    assert "..." in text  # too many columns for a line
    assert max(map(len, text.splitlines())) < 160
    assert "<table" in str(own._repr_html_())


def test_groups_that_do_not_exist_are_named() -> None:
    found = autoregressive()
    with pytest.raises(jm.DataError, match="Mare has no level '99'"):
        found.wcorrelation(99)
    with pytest.raises(jm.DataError, match="the groupings of the model are 'Mare'"):
        found.wcorrelation(group="horse")
    linear = fit("sleepstudy", "Reaction ~ Days")
    with pytest.raises(jm.DesignError, match="the model has no groups"):
        linear.wcorrelation()


def test_a_group_of_very_many_rows_is_refused() -> None:
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"y": rng.normal(size=6000), "g": np.repeat([0, 1], [5500, 500])})
    found = quietly("y ~ 1 + (1 | g)", data)
    with pytest.raises(jm.DataError, match="5,500 rows, and a covariance matrix is of 5,000 at most"):
        found.wcorrelation()
    assert len(found.wcorrelation(1).sd) == 500

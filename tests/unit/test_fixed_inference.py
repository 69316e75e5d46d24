"""Linear functions of the fixed effects: estimates, tests, what has a value and what has none."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed.denominators import FixedDf
from jaxmixed.fixed_inference import FixedInference, alias_basis, independent_rows, linear_table
from tests.support.fits import aliased, quietly, sleepstudy


def made(df: float = np.inf) -> FixedInference:
    """Two correlated estimates of very different size."""
    cov = np.array([[4e12, 1e6], [1e6, 1.0]])
    reference = FixedDf(cov, np.full(2, df))
    return FixedInference(("a", "b"), np.array([4e6, 3.0]), cov, "residual", reference, np.zeros((0, 2)))


def test_a_table_has_estimates_tests_and_intervals() -> None:
    table = linear_table(made(7.0), np.array([[0.0, 2.0]]), rhs=np.array([1.0]), level=0.9, index=["2b"])
    row = table.loc["2b"]
    assert row["estimate"] == 6.0
    assert row["std_error"] == 2.0
    assert row["df"] == 7.0
    assert row["statistic"] == 2.5
    assert row["p_value"] == pytest.approx(2 * stats.t.sf(2.5, 7))
    assert row["conf_high"] == pytest.approx(6 + 2 * stats.t.ppf(0.95, 7))


@pytest.mark.parametrize("df", [5.0, np.inf])
def test_joint_tests_take_columns_of_any_size(df: float) -> None:
    found = made(df).joint_test(np.eye(2))
    z, rho = np.array([2.0, 3.0]), 0.5
    chi2 = (z @ np.linalg.solve([[1, rho], [rho, 1]], z)) / 2
    assert found.statistic == pytest.approx(chi2, rel=1e-12)
    expected = stats.chi2.sf(2 * chi2, 2) if np.isinf(df) else stats.f.sf(chi2, 2, df)
    assert found == (2, df, found.statistic, pytest.approx(expected, rel=1e-10))


def test_rows_that_depend_on_others_do_not_count() -> None:
    L = np.array([[1.0, 0.0], [2.0, 0.0], [1e-9, 1e-9], [0.0, 0.0]])
    assert independent_rows(L).tolist() == [0, 2]
    assert made().joint_test(L).num_df == 2


def test_a_test_of_nothing_has_no_value() -> None:
    found = made().joint_test(np.zeros((0, 2)))
    assert found.num_df == 0
    assert np.isnan(found.p_value)


def test_what_the_design_cannot_tell_has_no_value() -> None:
    """Of two proportional columns only one combination is determined."""
    table = pd.DataFrame({"y": [1.0, 3.0, 2.0, 5.0, 4.0, 6.5], "x": [1.0, 2, 3, 4, 5, 7]})
    table["twice"] = 2 * table["x"]
    inference = quietly("y ~ x + twice", table).fixed_inference("satterthwaite")
    L = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, 6.0]])
    assert inference.estimable(L).tolist() == [False, True, True]
    slope = np.polyfit(table["x"], table["y"], 1)
    found = linear_table(inference, L)
    np.testing.assert_allclose(found["estimate"], [np.nan, slope[0], slope[1] + 3 * slope[0]])
    assert np.isnan(inference.joint_test(L).p_value)
    assert inference.of_kept.estimable(L).tolist() == [True, False, False]


def test_aliases_are_directions_that_the_design_does_not_see() -> None:
    fit = aliased()
    X, kept = np.asarray(fit.frame.X), fit.params.notna().to_numpy()
    basis = alias_basis(X, kept)
    assert len(basis) == (~kept).sum() > 0
    np.testing.assert_allclose(X @ basis.T, 0, atol=1e-10 * np.abs(X).max())


def test_robust_covariances_only_where_they_are_asked_for() -> None:
    with pytest.raises(jm.DataError, match=r"vcov= takes what fit.robust\(\) returns, not str"):
        sleepstudy().coef_table(vcov="CR2")


def test_the_summary_shows_what_was_asked_for() -> None:
    text = str(sleepstudy().summary(ddf="kenward-roger"))
    assert "Fixed effects (Kenward-Roger standard errors and df)" in text
    assert "F(1, 17.00)                      45.85" in text
    assert "DF: min, avg, max  17.00, 17.00, 17.00" in text
    assert "17.00   6.77  <0.001    7.205956   13.72862" in text
    assert "P>|z|" in str(sleepstudy().summary())

"""Variance inflation factors against closed forms and the definition by the columns of the design."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.support.fits import aliased, fit, quietly

EXACT = 1e-9
"""Relative difference of two routes to one number."""


def table(num_rows: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    x = rng.normal(size=num_rows)
    data = pd.DataFrame({"x": x, "z": 0.8 * x + rng.normal(size=num_rows), "g": np.arange(num_rows) % 9})
    data["f"] = np.select([data["z"] > 1, data["z"] < -0.7], ["c", "a"], "b")
    data["y"] = data["x"] - data["z"] + rng.normal(size=9)[data["g"]] + rng.normal(size=num_rows)
    return data


def test_two_covariates_inflate_each_other_by_their_correlation() -> None:
    data = table()
    r = np.corrcoef(data["x"], data["z"])[0, 1]
    found = jm.mixed("y ~ x + z", data).vif()
    np.testing.assert_allclose(found["gvif"], 1 / (1 - r**2), rtol=EXACT)
    np.testing.assert_allclose(found["gvif_adj"], (1 - r**2) ** -0.5, rtol=EXACT)
    assert found.index.tolist() == ["x", "z"]
    assert found["df"].tolist() == [1, 1]


def test_factors_have_the_volume_ratio_of_the_columns_of_the_design() -> None:
    data = table()
    model = jm.mixed("y ~ x + f + z", data)
    R = np.corrcoef(model.frame.X[:, 1:].T)
    blocks = {"x": [0], "f": [1, 2], "z": [3]}
    for term, own in blocks.items():
        others = [j for j in range(4) if j not in own]
        inside, outside = R[np.ix_(own, own)], R[np.ix_(others, others)]
        expected = np.linalg.det(inside) * np.linalg.det(outside) / np.linalg.det(R)
        row = model.vif().loc[term]
        assert row["gvif"] == pytest.approx(expected, rel=EXACT)
        assert row["gvif_adj"] == pytest.approx(expected ** (1 / (2 * len(own))), rel=EXACT)


def test_an_orthogonal_design_inflates_nothing() -> None:
    found = fit("oats", "yield ~ Variety + nitro + (1 | Block/Variety)").vif()
    np.testing.assert_allclose(found[["gvif", "gvif_adj"]], 1.0, rtol=1e-7)


def test_a_mixed_model_inflates_by_the_covariance_of_its_estimates() -> None:
    model = quietly("y ~ x + f + (1 | g)", table())
    cov = model.cov_params().to_numpy()[1:, 1:]
    expected = np.linalg.det(cov[:1, :1]) * np.linalg.det(cov[1:, 1:]) / np.linalg.det(cov)
    np.testing.assert_allclose(model.vif()["gvif"], expected, rtol=EXACT)


def test_the_units_of_columns_do_not_matter() -> None:
    data = table()
    expected = jm.mixed("y ~ x + f + z", data).vif()
    scaled = jm.mixed("y ~ x + f + z", data.assign(x=1e-6 * data["x"] + 3, z=1e5 * data["z"])).vif()
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_dropped_coefficients_are_left_out_and_noted() -> None:
    found = aliased().vif()
    assert list(found.index) == ["Days"]
    assert found.loc["Days", "gvif"] == pytest.approx(1.0)
    assert "dropped coefficients are left out" in repr(found)


def test_a_model_without_an_intercept_is_noted() -> None:
    found = jm.mixed("y ~ 0 + x + z", table()).vif()
    assert "without an intercept" in repr(found)


def test_an_intercept_alone_is_refused() -> None:
    with pytest.raises(jm.DesignError, match="no terms beside the intercept"):
        fit("dyestuff", "Yield ~ 1 + (1 | Batch)").vif()

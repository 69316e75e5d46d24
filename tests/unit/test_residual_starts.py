"""Starting values lie near the parameters that made the residuals."""

import numpy as np
import pytest

from jaxmixed.label_families import Unstructured
from jaxmixed.lag_families import Autoregressive
from jaxmixed.precision import double_precision
from jaxmixed.residual_covariance import ResidualCovariance
from jaxmixed.residual_families import Independent
from jaxmixed.residual_groups import ResidualDesign
from jaxmixed.residual_starts import residual_start


def design_of(covariance: ResidualCovariance, groups: int, times: int, stratum=None) -> ResidualDesign:
    codes, time = np.repeat(np.arange(groups), times), np.tile(np.arange(times), groups)
    level = time if covariance.levels > 1 else np.zeros_like(time)
    own = np.zeros_like(codes) if stratum is None else stratum[codes]
    return ResidualDesign(covariance, codes, groups, time.astype(float), level, np.ones(len(codes)), own)


def draws(R: np.ndarray, groups: int) -> np.ndarray:
    L = np.linalg.cholesky(R)
    return np.random.default_rng(5).normal(size=(groups, len(R))) @ L.T


def test_an_autocorrelation_is_seen_at_short_lags_of_a_long_series():
    times = np.arange(600)
    R = 0.6 ** np.abs(np.subtract.outer(times, times))
    design = design_of(ResidualCovariance(Autoregressive(1, 768)), 2, 600)
    start = residual_start(design, draws(R, 2).ravel(), random=False)
    assert np.tanh(start)[0] == pytest.approx(0.6, abs=0.1)


def test_an_unstructured_matrix_is_seen_in_the_residuals_of_many_groups():
    C = np.array([[1, 0.6, 0.2], [0.6, 1, 0.5], [0.2, 0.5, 1]])
    sd = np.array([1.0, 2.0, 0.5])
    covariance = ResidualCovariance(Unstructured(3), levels=3)
    design = design_of(covariance, 2_000, 3)
    start = residual_start(design, draws(C * np.outer(sd, sd), 2_000).ravel(), random=False)
    np.testing.assert_allclose(np.exp(start[3:]), [2.0, 0.5], rtol=0.1)
    with double_precision():
        natural = np.asarray(covariance.family.natural(start[:3]))
    np.testing.assert_allclose(natural, C[np.tril_indices(3, -1)], atol=0.1)


def test_strata_start_from_standard_deviations_of_their_own():
    stratum = np.arange(400) % 2
    design = design_of(ResidualCovariance(Independent(), strata=2), 400, 3, stratum)
    values = draws(np.eye(3), 400) * np.where(stratum, 3.0, 1.0)[:, None]
    start = residual_start(design, values.ravel(), random=False)
    np.testing.assert_allclose(np.exp(start), [3.0], rtol=0.1)


def test_with_random_effects_the_correlation_that_is_seen_is_not_all_the_residuals_own():
    design = design_of(ResidualCovariance(Autoregressive(1, 4)), 300, 4)
    values = draws(np.full((4, 4), 0.9) + 0.1 * np.eye(4), 300).ravel()
    with_effects = residual_start(design, values, random=True)
    assert abs(np.tanh(with_effects[0])) < 0.5 < np.tanh(residual_start(design, values, random=False)[0])


def test_groups_of_one_row_leave_a_family_at_its_initial_values():
    covariance = ResidualCovariance(Autoregressive(1, 4))
    design = design_of(covariance, 20, 1)
    start = residual_start(design, np.arange(20.0), random=False)
    assert start.tolist() == covariance.family.initial().tolist()

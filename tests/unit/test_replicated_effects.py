"""Effects and residuals of further responses, against the dense model; quantile plots and their limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import jaxmixed as jm
from jaxmixed import envelopes
from jaxmixed.envelopes import quantile_limits, quantile_plot, replicated, replicated_modes, shown_ranks
from jaxmixed.replicated_effects import LANES
from jaxmixed.resampling import parametric
from tests.support import school_fits
from tests.support.dense import DenseModel
from tests.support.dense_predictions import dense_predictions
from tests.support.fits import aliased, fit, quietly

ROUNDING = 1e-8
"""Two routes to the same solution of well-conditioned equations; effects and residuals are of order one."""


def linear() -> jm.MixedResults:
    return fit("sleepstudy", "Reaction ~ Days")


def errors_of(
    found: jm.MixedResults, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], float]:
    """Standardized residuals, beta, modes and sigma of a response at the fit's relative variances."""
    dense = dense_predictions(found)
    own = dense.model
    model = DenseModel(y, own.X, own.blocks, own.weights)
    relative = tuple(cov / found.sigma**2 for cov in dense.covs)
    profile = model.profiled(relative, found.method)
    modes = [model.blups(k, dense.covs, dense.sigma) for k in range(len(model.blocks))]
    resid = y - model.X @ profile.beta
    for block, mode in zip(model.blocks, modes, strict=True):
        resid = resid - block.wide() @ mode.ravel()
    root = 1.0 if model.weights is None else np.sqrt(model.weights)
    return root * resid / profile.sigma, profile.beta, modes, profile.sigma


@pytest.mark.parametrize(
    "fitted",
    [
        pytest.param(school_fits.nested, id="nested, weighted", marks=pytest.mark.slow),
        pytest.param(school_fits.crossed, id="crossed", marks=pytest.mark.slow),
        pytest.param(school_fits.related, id="related and crossed"),
        pytest.param(aliased, id="aliased"),
        pytest.param(linear, id="linear"),
    ],
)
def test_effects_of_further_responses_are_those_of_the_dense_model(
    fitted: Callable[[], jm.MixedResults],
) -> None:
    found = fitted()
    kept = ~np.isnan(found.estimates.beta)
    pairs = list(replicated(found, LANES + 2, seed=3))
    drawn = np.concatenate([Y for Y, _ in pairs], axis=1)
    np.testing.assert_array_equal(drawn, parametric(found, 3)(0, LANES + 2))
    residuals = np.concatenate(list(envelopes.replicated_residuals(found, pairs)), axis=1)
    for number in (0, LANES + 1):  # of the first block, and of one whose lanes are not full
        block, lane = divmod(number, LANES)
        effects = pairs[block][1]
        resid, beta, modes, sigma = errors_of(found, drawn[:, number])
        unit = np.abs(drawn[:, number]).max()
        np.testing.assert_allclose(effects.beta[lane][kept], beta, atol=ROUNDING * unit)
        assert np.isnan(effects.beta[lane][~kept]).all()
        np.testing.assert_allclose(effects.sigma[lane], sigma, rtol=ROUNDING)
        for own, expected in zip(effects.modes, modes, strict=True):
            np.testing.assert_allclose(own[lane], expected, atol=ROUNDING * unit)
        np.testing.assert_allclose(residuals[:, number], resid, atol=ROUNDING * unit / sigma)


def test_an_offset_changes_no_residual() -> None:
    data = school_fits.schools().assign(known=lambda d: 3 * d["x"] + 5)
    plain, moved = (quietly(f"y ~ x{extra} + (1 | class)", data) for extra in ("", " + offset(known)"))
    ours, theirs = (
        next(envelopes.replicated_residuals(one, replicated(one, 2, 1))) for one in (plain, moved)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # of two optima


def test_a_variance_of_zero_leaves_no_effects() -> None:
    assert not next(replicated_modes(replicated(school_fits.singular(), 2, seed=1), 0, 0)).any()


def test_limits_are_at_whole_ranks() -> None:
    drawn = np.random.default_rng(1).permuted(np.arange(1.0, 120.0)[None], axis=1)
    low, high = quantile_limits(drawn, 0.95)
    # Ranks (119 + 1) * 0.025 = 3 from either end.
    np.testing.assert_allclose([low[0], high[0]], [3, 117], rtol=1e-12)
    with pytest.raises(
        jm.DataError, match=r"simulations=38 are too few for limits of level 0\.95; it takes 39"
    ):
        quantile_limits(drawn[:, :38], 0.95)
    with pytest.raises(jm.DataError, match="it takes 199 or more"):
        quantile_limits(drawn, 0.99)


def test_a_quantile_plot_orders_values_and_replicates_alike() -> None:
    values = np.array([3.0, 1.0, 2.0])
    blocks = [np.array([[1.0, 9], [0, 7], [2, 8]])] * 20
    found = quantile_plot(values, iter(blocks), 0.95)
    np.testing.assert_array_equal(found.observed, [1, 2, 3])
    np.testing.assert_array_equal(found.low, [0, 1, 2])
    np.testing.assert_array_equal(found.high, [7, 8, 9])
    np.testing.assert_array_equal(found.centre, [3.5, 4.5, 5.5])
    assert (found.num_values, found.simulations) == (3, 40)


def test_positions_are_rs() -> None:
    # R 4.2.2: qqnorm(1:12)$x[1:3], qnorm(ppoints(10))[1:2]
    twelve = envelopes.plotting_positions(12, np.arange(3))
    np.testing.assert_allclose(twelve, [-1.73166439612225, -1.15034938037601, -0.812217801499913])
    from scipy.special import ndtr

    np.testing.assert_allclose(
        ndtr(envelopes.plotting_positions(10, np.arange(2))), [0.0609756098, 0.1585365854]
    )


def test_of_many_values_all_extremes_and_some_others_are_shown() -> None:
    ranks = shown_ranks(100_000)
    assert 900 < len(ranks) <= 1000
    assert set(range(100)) <= set(ranks.tolist())
    assert set(range(99_900, 100_000)) <= set(ranks.tolist())
    steps = np.diff(envelopes.plotting_positions(100_000, ranks))[100:-100]
    assert steps.max() < 0.02  # nowhere a gap
    np.testing.assert_array_equal(shown_ranks(1000), np.arange(1000))


@pytest.mark.parametrize("bad", [-1, 2.5, True, "many"])
def test_what_is_no_number_of_simulations_is_refused(bad: object) -> None:
    with pytest.raises(jm.DataError, match="simulations is"):
        envelopes.check_simulations(bad, 10)

"""Searches from random starts: agreement where there is one optimum, and what is said where there are two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import OptimizeResult, minimize_scalar

import jaxmixed as jm
from jaxmixed import fitting
from jaxmixed.multistart import random_starts, search_from_random_starts
from tests.support.fits import fit, quietly, sleepstudy


@dataclass(frozen=True)
class OneWay:
    """Groups of one row far from the others, and large groups near each other: within groups, variance 1."""

    sizes: np.ndarray
    means: np.ndarray

    def data(self) -> pd.DataFrame:
        parts = []
        for size, mean in zip(self.sizes, self.means, strict=True):
            noise = np.resize([1.0, -1.0], size) - np.resize([1.0, -1.0], size).mean()
            if size > 1:
                noise *= np.sqrt((size - 1) / (noise @ noise))
            parts.append(mean + noise)
        levels = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return pd.DataFrame({"y": np.concatenate(parts), "g": levels})

    def deviance(self, ratio: float) -> float:
        """Closed form: REML criterion at a ratio of the variances, with its constants."""
        n, within = self.sizes.sum(), float((self.sizes - 1).sum())
        weights = self.sizes / (1 + ratio * self.sizes)
        mean = weights @ self.means / weights.sum()
        rss = within + weights @ (self.means - mean) ** 2
        log_dets = np.log1p(ratio * self.sizes).sum() + np.log(weights.sum())
        return float(log_dets + (n - 1) * (1 + np.log(2 * np.pi * rss / (n - 1))))

    def minimum(self, low: float, high: float) -> OptimizeResult:
        options = {"xatol": 1e-10}
        return minimize_scalar(self.deviance, bounds=(low, high), method="bounded", options=options)


ZERO = OneWay(
    np.array([1, 1, 1, 146, 228, 113, 22]), np.array([4.907, -0.636, 5.087, 0.144, 0.052, -0.022, 0.175])
)
"""A maximum of the restricted likelihood at zero, and a higher one inside."""

INSIDE = OneWay(
    np.array([1, 1, 1, 1, 63, 225, 195, 197]),
    np.array([1.907, 2.515, 1.163, -3.158, -0.048, -0.136, -0.207, 0.073]),
)
"""Two maxima inside."""

BEST = ZERO.minimum(1.0, 20.0)


def stuck_at_zero(monkeypatch: pytest.MonkeyPatch) -> jm.MixedResults:
    """The fit that a search from zero alone ends with."""
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "search", lambda run, starts: run(np.zeros(1, dtype=int), 0 * starts))
        return quietly("y ~ 1 + (1 | g)", ZERO.data())


def test_the_restricted_likelihoods_of_the_examples_have_two_maxima() -> None:
    assert ZERO.deviance(1e-6) > ZERO.deviance(0.0) > BEST.fun + 18
    assert ZERO.deviance(1.0) > BEST.fun
    low, high = INSIDE.minimum(1e-4, 0.1), INSIDE.minimum(1.0, 20.0)
    assert max(low.fun, high.fun) < INSIDE.deviance(0.5) - 0.2


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)"),
        ("dyestuff2", "Yield ~ 1 + (1 | Batch)"),
        ("pastes", "strength ~ 1 + (1 | batch/cask)"),
        ("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
    ],
)
def test_every_start_leads_to_the_only_optimum(name: str, formula: str) -> None:
    found = fit(name, formula).certificate(starts=8)
    assert found.agreement.reached.all()
    assert found.agreement.same_parameters.all()
    assert found.is_best
    assert len(found.optima()) == 1
    assert "8 of 8 random starts reached the deviance of the fit, all with its parameters" in " ".join(
        str(found).split()
    )


def test_a_fit_at_the_worse_optimum_is_told_loudly_and_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = stuck_at_zero(monkeypatch)
    assert stuck.deviance == pytest.approx(ZERO.deviance(0.0), rel=1e-12)
    assert stuck.converged, "it is a minimum, though not the lowest one"
    with pytest.warns(jm.ConvergenceWarning, match=r"lower by 18\.71.*refit\(\) fits from there"):
        found = stuck.certificate(starts=8, seed=0)
    assert found.agreement.improvement == pytest.approx(ZERO.deviance(0.0) - BEST.fun, abs=1e-6)
    assert "NOT THE BEST" in str(found)
    assert "refit() of this certificate" in found.findings[0].advice
    again = found.refit()
    assert again.deviance == pytest.approx(BEST.fun, abs=1e-6)
    assert again.theta[0] == pytest.approx(np.sqrt(BEST.x), rel=1e-5)
    assert again.certificate(starts=8).is_best


def test_other_optima_are_listed_with_what_they_cost() -> None:
    low, high = sorted((INSIDE.minimum(1e-4, 0.1), INSIDE.minimum(1.0, 20.0)), key=lambda found: found.fun)
    own = quietly("y ~ 1 + (1 | g)", INSIDE.data())
    assert own.deviance == pytest.approx(low.fun, abs=1e-6)
    found = own.certificate(starts=16)
    table = found.optima()
    assert len(table) == 2
    assert table["starts"].sum() == 16
    assert table["above_fit"].tolist() == pytest.approx([0.0, high.fun - low.fun], abs=1e-6)
    assert table["same_parameters"].tolist() == [table["starts"].iloc[0], 0]
    assert found.is_best
    assert f"Another optimum      deviance {high.fun:.4f}" in str(found)
    assert "1.772 above the fit's" in " ".join(str(found).split())


def test_starts_are_those_of_their_seed_and_number() -> None:
    own = sleepstudy()
    few, many = (random_starts(own.state, own.estimates, num, 5) for num in (3, 6))
    np.testing.assert_array_equal(few, many[:3])
    assert not np.array_equal(few, random_starts(own.state, own.estimates, 3, 6))
    again = search_from_random_starts(own.state, own.estimates, 3, 5)
    np.testing.assert_array_equal(
        again.deviance, search_from_random_starts(own.state, own.estimates, 3, 5).deviance
    )


def test_starts_are_dispersed_around_estimates_of_any_size() -> None:
    own = sleepstudy()
    starts = random_starts(own.state, own.estimates, 200, 0)
    T = own.estimates.terms[0].covariance.factor(starts)
    sd = np.sqrt((T * T).sum(axis=2))
    assert sd.min() < 0.1
    assert sd.max() > 10
    correlation = (T[:, 0] * T[:, 1]).sum(axis=1) / (sd[:, 0] * sd[:, 1])
    assert correlation.min() < -0.9
    assert correlation.max() > 0.9


def test_a_fit_stopped_early_is_said_to_be_no_optimum() -> None:
    found = quietly("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"), max_iterations=1)
    with pytest.warns(jm.ConvergenceWarning, match="not the best"):
        certificate = found.certificate(starts=2)
    assert certificate.findings[0].finding.endswith("the fit is no optimum")
    assert certificate.refit().llf == pytest.approx(sleepstudy().llf, abs=1e-8)


@pytest.mark.parametrize("starts", [-1, 2.5, "8", True, 10**6, None])
def test_a_number_of_starts_that_is_none_is_refused(starts: object) -> None:
    with pytest.raises(jm.DataError, match="starts must be an integer"):
        sleepstudy().certificate(starts=starts)  # type: ignore[arg-type]


def test_a_seed_that_is_none_is_refused() -> None:
    with pytest.raises(jm.DataError, match="seed"):
        sleepstudy().certificate(starts=2, seed=-1)


def test_optima_and_refits_need_starts() -> None:
    for ask in (sleepstudy().certificate().optima, sleepstudy().certificate().refit):
        with pytest.raises(jm.DataError, match="no further starts were made"):
            ask()

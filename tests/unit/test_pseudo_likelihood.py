"""Sampling and frequency weights against the definition of the pseudo-likelihood, copied data and Stata."""

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

import jaxmixed as jm
from jaxmixed.likelihood import Parameters, loglik
from jaxmixed.pseudo_likelihood import variance_scores
from tests.support.dense_pseudo_likelihood import DensePseudoLikelihood

THREE = "y ~ x + (1 | g/s)"
WEIGHTS = {"obs": "w1", "s": "w2", "g": "w3"}


def three_levels(seed: int = 5, whole: bool = False) -> pd.DataFrame:
    """8 groups of 2 to 4 subgroups of 2 to 5 rows, in disorder, with weights of every level."""
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(8):
        a, wg = rng.normal(0, 1.0), rng.integers(1, 4)
        for s in range(rng.integers(2, 5)):
            b, ws = rng.normal(0, 0.8), rng.integers(1, 3)
            for _ in range(rng.integers(2, 6)):
                x = rng.normal()
                rows.append((g, s, x, 10 + 0.5 * x + a + b + rng.normal(), rng.integers(1, 4), ws, wg))
    data = pd.DataFrame(rows, columns=["g", "s", "x", "y", "w1", "w2", "w3"])
    if not whole:
        data[["w1", "w2", "w3"]] *= [1.3, 0.7, 2.1]
    return data.sample(frac=1, random_state=1).reset_index(drop=True)


def copied(data: pd.DataFrame) -> pd.DataFrame:
    """Rows and groups copied as often as their weights say."""
    parts = []
    for g, group in data.groupby("g"):
        for i in range(int(group.w3.iloc[0])):
            for s, own in group.groupby("s"):
                for j in range(int(own.w2.iloc[0])):
                    rows = own.loc[own.index.repeat(own.w1.astype(int))]
                    parts.append(rows.assign(g=f"{g}.{i}", s=f"{s}.{j}", original_g=g, original_s=s))
    return pd.concat(parts, ignore_index=True)


def oracle_of(data: pd.DataFrame) -> DensePseudoLikelihood:
    """Levels: subgroups within groups, then groups."""
    s, _ = pd.factorize(data.g * 100 + data.s)
    own = data.groupby(s)[["w2"]].first().w2.to_numpy(float)
    one = np.ones((len(data), 1))
    return DensePseudoLikelihood(
        data.y.to_numpy(),
        np.column_stack([np.ones(len(data)), data.x]),
        (one, one),
        (s, data.g.to_numpy()),
        data.w1.to_numpy(float),
        (own, data.groupby("g").w3.first().to_numpy(float)),
    )


def variances_of(fit):
    """Of the subgroups, of the groups, and sigma."""
    found = fit.varcorr.set_index("group").estimate
    return [np.array([[found["g:s"]]]), np.array([[found["g"]]])], float(fit.sigma)


@pytest.fixture(scope="module")
def sampled():
    data = three_levels()
    return data, jm.mixed(THREE, data, method="ml", sampling_weights=WEIGHTS)


class TestTheDefinition:
    def test_the_oracle_is_the_nested_integral(self):
        """Two groups of two subgroups of two rows, by the trapezoidal rule."""
        data = pd.DataFrame({"g": np.repeat([0, 1], 4), "s": np.tile([0, 0, 1, 1], 2)})
        data["y"], data["x"] = [1.0, 2.0, 0.5, -1.0, 3.0, 2.5, 4.0, 1.0], np.arange(8.0) / 8
        data["w1"], data["w2"] = [1.0, 2.0, 0.5, 1.5, 1.0, 1.0, 0.7, 2.0], np.repeat([1.5, 0.6, 2.0, 1.0], 2)
        data["w3"] = np.repeat([0.8, 1.7], 4)
        beta, inner, outer, sigma = np.array([1.0, 0.5]), 0.7, 1.2, 0.9
        residual = (data.y - beta[0] - beta[1] * data.x).to_numpy()
        grid, expected = np.linspace(-12, 12, 801), 0.0
        b, c = grid[:, None], grid[None, :]
        for g in (0, 1):
            total = stats.norm.logpdf(grid, scale=np.sqrt(outer))
            for s in (0, 1):
                own = ((data.g == g) & (data.s == s)).to_numpy()
                log = stats.norm.logpdf(c, scale=np.sqrt(inner))
                for r, w in zip(residual[own], data.w1[own], strict=True):
                    log = log + w * stats.norm.logpdf(r - b - c, scale=sigma)
                inside = integrate.trapezoid(np.exp(log), grid, axis=1)
                total = total + data.w2[own].iloc[0] * np.log(np.maximum(inside, 1e-300))
            expected += data.w3[data.g == g].iloc[0] * np.log(integrate.trapezoid(np.exp(total), grid))
        found = oracle_of(data).value(beta, [np.array([[inner]]), np.array([[outer]])], sigma)
        assert found == pytest.approx(expected, rel=1e-9)

    def test_the_maximum_has_the_value_of_the_definition(self, sampled):
        data, fit = sampled
        value = oracle_of(data).value(fit.params.to_numpy(), *variances_of(fit))
        assert fit.llf == pytest.approx(value, rel=1e-12)

    def test_it_is_a_maximum_of_the_definition(self, sampled):
        """Central differences in every parameter vanish; the second ones are negative."""
        data, fit = sampled
        oracle, (covs, sigma) = oracle_of(data), variances_of(fit)
        at = np.array([*fit.params, np.log(covs[0][0, 0]), np.log(covs[1][0, 0]), np.log(sigma)])

        def value(p):
            return oracle.value(p[:2], [np.exp(p[[2]])[None], np.exp(p[[3]])[None]], float(np.exp(p[4])))

        for j in range(5):
            h = 1e-4 * np.eye(5)[j]
            low, middle, high = value(at - h), value(at), value(at + h)
            assert abs(high - low) / 2e-4 < 1e-5
            assert high - 2 * middle + low < 0

    def test_the_likelihood_at_other_parameters(self, sampled):
        data, fit = sampled
        params = Parameters(np.array([9.0, 0.2]), np.array([0.5, 1.4]), np.array(1.3))
        with jm.precision.double_precision():
            found = float(loglik(params, fit.state.stats))
        expected = oracle_of(data).value(
            np.array([9.0, 0.2]), [np.array([[0.65**2]]), np.array([[1.82**2]])], 1.3
        )
        assert found == pytest.approx(expected, rel=1e-12)


class TestTheSandwich:
    def test_scores_of_the_variances_are_slopes_of_the_clusters(self, sampled):
        data, fit = sampled
        oracle, (covs, sigma) = oracle_of(data), variances_of(fit)
        theta, beta = np.sqrt([covs[0][0, 0], covs[1][0, 0]]) / sigma, fit.params.to_numpy()

        def clusters(p):
            scale = np.exp(p[2])
            return oracle.clusters(
                beta, [np.array([[(p[0] * scale) ** 2]]), np.array([[(p[1] * scale) ** 2]])], scale
            )

        at = np.array([*theta, np.log(sigma)])
        expected = np.stack([(clusters(at + h) - clusters(at - h)) / 2e-5 for h in 1e-5 * np.eye(3)], axis=1)
        found = variance_scores(fit.state, fit.estimates, fit.residuals(random=False).to_numpy())
        units = np.append([float(term.standard[0] / term.theta[0]) for term in fit.estimates.terms], 1.0)
        np.testing.assert_allclose(found * units, expected, atol=1e-7)

    def test_covariance_of_the_coefficients(self, sampled):
        """A by second differences of the definition, B by its clusters' first ones."""
        data, fit = sampled
        oracle, (covs, sigma) = oracle_of(data), variances_of(fit)
        beta, h = fit.params.to_numpy(), 1e-3 * np.eye(2)

        def at(step):
            return oracle.clusters(beta + step, covs, sigma)

        # A quadratic function: its differences are exact.
        scores = np.stack([(at(own) - at(-own)) / 2e-3 for own in h], axis=1)
        A = np.array([[-(at(a + b) - at(a) - at(b) + at(0 * a)).sum() / 1e-6 for b in h] for a in h])
        m = len(scores)
        inverse = np.linalg.inv(A)
        expected = m / (m - 1) * inverse @ scores.T @ scores @ inverse
        np.testing.assert_allclose(fit.cov_params(), expected, rtol=1e-5)

    def test_covariance_of_the_variances(self, sampled):
        """A by second differences of the definition, the coefficients profiled out."""
        data, fit = sampled
        oracle, (covs, sigma) = oracle_of(data), variances_of(fit)
        at = np.array([covs[0][0, 0], covs[1][0, 0], sigma**2])

        def clusters(p, beta):
            return oracle.clusters(beta, [p[[0]][None], p[[1]][None]], float(np.sqrt(p[2])))

        def profiled(p):
            beta, h = fit.params.to_numpy(), 1e-3 * np.eye(2)
            slope = np.array([(clusters(p, beta + own) - clusters(p, beta - own)).sum() / 2e-3 for own in h])
            values = [[clusters(p, beta + a + b).sum() for b in h] for a in h]
            single = [clusters(p, beta + a).sum() for a in h]
            base = clusters(p, beta).sum()
            A = -(np.array(values) - np.add.outer(single, single) + base) / 1e-6
            return base + 0.5 * slope @ np.linalg.solve(A, slope)

        step = 2e-3 * np.diag(at)
        beta = fit.params.to_numpy()
        slopes = [(clusters(at + h, beta) - clusters(at - h, beta)) / (2 * h.sum()) for h in step]
        scores, A = np.stack(slopes, axis=1), np.empty((3, 3))
        for i, a in enumerate(step):
            for j, b in enumerate(step):
                four = (
                    profiled(at + a + b) - profiled(at + a - b) - profiled(at - a + b) + profiled(at - a - b)
                )
                A[i, j] = -four / (4 * a.sum() * b.sum())
        m, inverse = len(scores), np.linalg.inv(A)
        expected = np.sqrt(np.diagonal(m / (m - 1) * inverse @ scores.T @ scores @ inverse))
        np.testing.assert_allclose(fit.varcorr.std_error, expected, rtol=1e-3)

    def test_units_of_the_coarsest_weights_and_order_of_the_rows_do_not_matter(self, sampled):
        data, fit = sampled
        other = data.assign(w3=1e5 * data.w3, twice=2 * data.x).sample(frac=1, random_state=2)
        with pytest.warns(jm.RankDeficientWarning):
            found = jm.mixed("y ~ x + twice + (1 | g/s)", other, method="ml", sampling_weights=WEIGHTS)
        assert found.llf == pytest.approx(1e5 * fit.llf, rel=1e-12)
        assert found.diagnostics.evaluations < 9  # the start is as good
        np.testing.assert_allclose(found.params[["(Intercept)", "x"]], fit.params, rtol=1e-8)
        np.testing.assert_allclose(found.cov_params().iloc[:2, :2], fit.cov_params(), rtol=1e-6)
        np.testing.assert_allclose(found.varcorr.std_error, fit.varcorr.std_error, rtol=1e-6)

    def test_it_is_that_of_robust(self, sampled):
        _, fit = sampled
        np.testing.assert_allclose(fit.robust("CR1", df="none").cov, fit.cov_params(), rtol=1e-12)


@pytest.fixture(scope="module")
def frequent():
    data = three_levels(whole=True)
    full = copied(data)
    one = jm.mixed(THREE, data, method="ml", frequency_weights=WEIGHTS)
    return data, one, full, jm.mixed(THREE, full, method="ml")


class TestCopies:
    """Whole weights are copies of rows and groups."""

    def test_estimates(self, frequent):
        _, one, full, other = frequent
        assert one.nobs == len(full) == other.nobs
        assert one.llf == pytest.approx(other.llf, rel=1e-11)
        np.testing.assert_allclose(one.params, other.params, rtol=1e-9)
        np.testing.assert_allclose(one.varcorr.estimate, other.varcorr.estimate, rtol=1e-8)
        assert (one.aic, one.bic) == pytest.approx((other.aic, other.bic))

    def test_standard_errors(self, frequent):
        _, one, _, other = frequent
        np.testing.assert_allclose(one.cov_params(), other.cov_params(), rtol=1e-8)
        columns = ["std_error", "conf_low", "conf_high"]
        np.testing.assert_allclose(one.varcorr[columns], other.varcorr[columns], rtol=1e-6)
        np.testing.assert_allclose(one.profile("x").conf_int(), other.profile("x").conf_int(), rtol=1e-6)

    def test_effects_and_their_errors(self, frequent):
        data, one, full, other = frequent
        first = full.drop_duplicates(["original_g", "original_s"])
        places = {
            "g": (data.g.unique(), first.drop_duplicates("original_g").set_index("original_g").g),
            "g:s": (
                [f"{g}:{s}" for g, s in data[["g", "s"]].drop_duplicates().to_numpy()],
                {
                    f"{a}:{b}": f"{g}:{s}"
                    for a, b, g, s in first[["original_g", "original_s", "g", "s"]].to_numpy()
                },
            ),
        }
        for label, (levels, of) in places.items():
            for ours, theirs in (
                (one.ranef(), other.ranef()),
                (one.ranef_se(), other.ranef_se()),
                (one.ranef_se(beta="estimated"), other.ranef_se(beta="estimated")),
            ):
                index = ours[label].index
                named = dict(zip(index.astype(str), ours[label].iloc[:, 0], strict=True))
                for level in levels:
                    assert named[str(level)] == pytest.approx(theirs[label].iloc[:, 0][of[level]], rel=1e-7)

    def test_predictions(self, frequent):
        _, one, full, other = frequent
        first = full.drop_duplicates(["original_g", "original_s"]).head(6)
        ours = one.predictions(first.assign(g=first.original_g, s=first.original_s))
        np.testing.assert_allclose(ours, other.predictions(first), rtol=1e-7)

    def test_the_test_against_the_linear_model(self, frequent):
        _, one, _, other = frequent
        line = "LR test against the linear model"
        found = [next(row for row in str(fit.summary()).splitlines() if line in row) for fit in (one, other)]
        assert found[0] == found[1]

    def test_sampling_weights_give_the_same_estimates(self, frequent):
        data, one, _, _ = frequent
        fit = jm.mixed(THREE, data, method="ml", sampling_weights=WEIGHTS)
        assert fit.llf == pytest.approx(one.llf, rel=1e-12)
        np.testing.assert_allclose(fit.params, one.params, rtol=1e-12)
        assert fit.nobs == len(data)
        for label, own in fit.ranef().items():
            np.testing.assert_allclose(own, one.ranef()[label], rtol=1e-10)

    def test_weights_of_one_change_nothing(self, frequent):
        data, *_ = frequent
        plain = jm.mixed(THREE, data, method="ml")
        fit = jm.mixed(THREE, data.assign(one=1), method="ml", frequency_weights={"obs": "one", "s": "one"})
        assert fit.llf == pytest.approx(plain.llf, rel=1e-13)
        np.testing.assert_allclose(fit.cov_params(), plain.cov_params(), rtol=1e-10)

    def test_slopes_and_patterns(self):
        """Random slopes; 60 groups of one design, which share entries of the statistics."""
        rng = np.random.default_rng(3)
        g, x = np.repeat(np.arange(60), 4), np.tile(np.arange(4.0), 60)
        y = 1 + x * (1 + rng.normal(size=60)[g]) + rng.normal(size=60)[g] + rng.normal(size=240)
        data = pd.DataFrame({"g": g, "x": x, "y": y, "w": rng.integers(1, 4, 60)[g]})
        own = jm.mixed("y ~ x + (x | g)", data, method="ml", frequency_weights={"g": "w"})
        assert len(own.state.compact.levels[0].count) == 1  # one pattern, which counts as all copies
        parts = [data[data.w > i].assign(g=lambda d, i=i: d.g + 100 * i) for i in range(3)]
        full = jm.mixed("y ~ x + (x | g)", pd.concat(parts), method="ml")
        assert own.llf == pytest.approx(full.llf, rel=1e-11)
        np.testing.assert_allclose(own.cov_params(), full.cov_params(), rtol=1e-8)
        np.testing.assert_allclose(own.ranef()["g"], full.ranef()["g"].loc[:59], rtol=1e-7, atol=1e-10)


@pytest.fixture(scope="module")
def sleep():
    data = jm.datasets.load("sleepstudy")
    subject = data.Subject.astype(int)
    data["Group"] = np.select(
        [subject.isin(own) for own in ([310, 309, 349, 335], [330, 352, 337, 369], [331, 332, 334, 372])],
        [2, 3, 4],
        1,
    )
    data["c1"] = np.where((subject == 308) & (data.Days <= 3), 2.0, 1.0)
    data["c2"] = np.where(subject == 308, 2.0, 1.0)
    data["c3"] = np.where(data.Group == 1, 2.0, 1.0)
    return data


PUBLISHED = {"obs": "c1", "Subject": "c2", "Group": "c3"}


class TestStata:
    """Printed by Stata's mixed; its optimiser stops within about 5e-5 of the weakly identified variances."""

    def test_random_intercepts(self, sleep):
        """mixed reaction days [pw=c1] || group:, pweight(c3) || subject:, pweight(c2)."""
        fit = jm.mixed(
            "Reaction ~ Days + (1 | Group/Subject)", sleep, method="ml", sampling_weights=PUBLISHED
        )
        assert fit.llf == pytest.approx(-1389.0983, abs=5e-5)
        np.testing.assert_allclose(fit.params, [243.6831, 12.67954], rtol=1e-6)
        np.testing.assert_allclose(fit.bse, [11.68881, 2.468474], rtol=2e-6)
        np.testing.assert_allclose(fit.varcorr.estimate, [360.97, 756.5857, 1153.704], rtol=1e-4)

    def test_an_independent_slope(self, sleep):
        """The same with || group: days, pweight(c3)."""
        formula = "Reaction ~ Days + (1 | Group:Subject) + (1 | Group) + (0 + Days | Group)"
        fit = jm.mixed(formula, sleep, method="ml", sampling_weights=PUBLISHED)
        assert fit.llf == pytest.approx(-1377.6876, abs=5e-5)
        np.testing.assert_allclose(fit.params, [247.6234, 11.71211], rtol=1e-6)
        np.testing.assert_allclose(fit.bse, [9.97378, 2.60348], rtol=1e-6)
        np.testing.assert_allclose(fit.varcorr.estimate, [397.6301, 220.4182, 16.86835, 1022.88], rtol=1e-4)

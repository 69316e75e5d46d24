"""Weights as users give them: scaling, checks, and what results refuse."""

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.sampling import SCALINGS, scaled_weights
from tests.unit.test_pseudo_likelihood import THREE, WEIGHTS, three_levels

TWO = "y ~ x + (1 | g)"


@pytest.fixture(scope="module")
def data():
    return three_levels()


def fitted(data, formula=THREE, **changed):
    arguments = {"method": "ml", "sampling_weights": WEIGHTS, **changed}
    return jm.mixed(formula, data, **arguments)


@pytest.fixture(scope="module")
def fit(data):
    return fitted(data)


class TestScaling:
    def test_size_and_effective_size(self):
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 5, 60)
        w = rng.uniform(0.2, 4, 60)
        for code in range(5):
            own = codes == code
            size = scaled_weights(w, codes, "size")[own]
            effective = scaled_weights(w, codes, "effective")[own]
            np.testing.assert_allclose(size, w[own] * own.sum() / w[own].sum())
            np.testing.assert_allclose(effective, w[own] * w[own].sum() / (w[own] ** 2).sum())
            assert size.sum() == pytest.approx(own.sum())
            assert effective.sum() == pytest.approx(w[own].sum() ** 2 / (w[own] ** 2).sum())

    @pytest.mark.parametrize("scaling", SCALINGS)
    def test_two_levels(self, data, scaling):
        """The same as weights that are scaled before."""
        n, total = data.groupby("g").w1.transform("size"), data.groupby("g").w1.transform("sum")
        squares = (data.w1**2).groupby(data.g).transform("sum")
        rows = {"size": data.w1 * n / total, "effective": data.w1 * total / squares, "gk": 1.0}
        groups = data.w3 if scaling != "gk" else (data.w1 * data.w3).groupby(data.g).transform("mean")
        before = data.assign(w1=rows[scaling], w3=groups)
        weights = {"obs": "w1", "g": "w3"}
        found = fitted(data, TWO, sampling_weights=weights, weight_scaling=scaling)
        expected = fitted(before, TWO, sampling_weights=weights)
        assert found.llf == pytest.approx(expected.llf, rel=1e-12)
        np.testing.assert_allclose(found.cov_params(), expected.cov_params(), rtol=1e-9)

    def test_three_levels_within_the_next_coarser_one(self, data):
        one = data.drop_duplicates(["g", "s"]).copy()
        one["w2"] = scaled_weights(one.w2.to_numpy(), one.g.to_numpy(), "size")
        codes, _ = pd.factorize(data.g * 100 + data.s)
        before = data.assign(w1=scaled_weights(data.w1.to_numpy(), codes, "size")).drop(columns="w2")
        before = before.merge(one[["g", "s", "w2"]], on=["g", "s"])
        found, expected = fitted(data, weight_scaling="size"), fitted(before)
        assert found.llf == pytest.approx(expected.llf, rel=1e-12)

    def test_constant_factors_of_scaled_weights_cancel(self, data):
        found = fitted(data, weight_scaling="effective")
        other = fitted(data.assign(w1=7 * data.w1, w2=0.1 * data.w2), weight_scaling="effective")
        assert found.llf == pytest.approx(other.llf, rel=1e-11)


class TestArguments:
    def test_a_name_alone_is_of_the_rows(self, data):
        one, other = (fitted(data, TWO, sampling_weights=own) for own in ("w1", {"obs": "w1"}))
        assert one.llf == other.llf

    def test_groups_by_label_or_by_their_own_column(self, data, fit):
        other = fitted(data, sampling_weights={"g": "w3", "g:s": "w2", "obs": "w1"})
        assert other.llf == fit.llf

    def test_rows_without_a_weight_are_dropped_and_counted(self, data):
        found = fitted(data.assign(w1=data.w1.where(data.index > 4)))
        assert (found.n_dropped, found.dropped_by) == (5, {"w1": 5})
        assert found.llf == pytest.approx(fitted(data[5:]).llf, rel=1e-12)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"method": "reml"}, "sampling_weights= needs method='ml'"),
            ({"frequency_weights": "w1"}, "not both"),
            ({"weights": "w1"}, "does not go with weights="),
            ({"residuals": "cs(s)"}, "does not go with residuals="),
            ({"weight_scaling": "sise"}, "'sise' is not known; choose one of 'size', 'effective', 'gk'"),
            ({"sampling_weights": None, "weight_scaling": "size"}, "needs sampling_weights="),
            (
                {"sampling_weights": None, "frequency_weights": "w3", "weight_scaling": "size"},
                "needs sampling_weights=",
            ),
            ({"weight_scaling": "gk"}, "'gk' is for models of one grouping, not g:s, g"),
            (
                {"sampling_weights": {"school": "w3"}},
                "'school', which the formula does not group by.*'g:s', 'g'",
            ),
            ({"sampling_weights": {"obs": "w9"}}, "no column 'w9'"),
            ({"sampling_weights": {"obs": [1.0, 2.0]}}, "'obs' are given as list; give the name of a column"),
            ({"sampling_weights": np.ones(3)}, "given as ndarray"),
            ({"sampling_weights": {}}, "names no column"),
            ({"sampling_weights": {"g": "w1"}}, "'w1' of 'g' differ within 6: 2.6 and 1.3"),
            ({"sampling_weights": {"s": "w2", "g:s": "w2"}}, "one grouping twice"),
            ({"sampling_weights": None, "frequency_weights": "w1"}, "contain 2.6; frequencies are whole"),
            ({"formula": "y ~ x + (1 | g) + (1 | s)"}, "needs nested groups, and 'g' is crossed with 's'"),
            ({"formula": "y ~ x"}, "needs random effects"),
        ],
    )
    def test_refused(self, data, changed, message):
        with pytest.raises(jm.JaxMixedError, match=message):
            fitted(data, **changed)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (0.0, "contain 0; weights must be positive: leave rows of weight zero out"),
            (-1.0, "contain -1; weights must be positive"),
            (np.inf, "is infinite"),
            ("a", "hold text, e.g. 'a'"),
        ],
    )
    def test_values_that_are_no_weights(self, data, values, message):
        with pytest.raises(jm.DataError, match=message):
            fitted(data.assign(w1=values))

    def test_a_known_relationship_is_refused(self, data):
        known = jm.known(0.5 * np.eye(8) + 0.5, range(8))
        with pytest.raises(jm.DesignError, match="levels, and those of 'g' are related"):
            fitted(data, TWO, covariance={"g": known}, sampling_weights="w1")


class TestResults:
    def test_the_summary_says_what_it_is(self, fit):
        text = str(fit.summary())
        assert "maximum pseudo-likelihood (sampling weights)" in text
        assert "Log pseudolikelihood" in text
        assert "AIC" not in text
        assert "Fixed effects (robust standard errors, 8 clusters of g)" in text
        assert "sampling weights: w1 (rows), w2 (g:s), w3 (g)." in text
        assert "LR test" not in text

    def test_the_summary_of_frequencies(self, data):
        whole = three_levels(whole=True)
        fit = fitted(whole, TWO, sampling_weights=None, frequency_weights={"obs": "w1", "g": "w3"})
        total = int((whole.w1 * whole.w3).sum())
        assert f"{len(whole)} rows stand for {total}." in str(fit.summary()).replace("\n      ", " ")
        assert fit.nobs == total

    def test_tables_use_the_robust_covariance(self, fit):
        error = fit.bse["x"]
        assert fit.coef_table().std_error["x"] == error
        assert fit.lincom("x").std_error.iloc[0] == pytest.approx(error)
        assert fit.nlcom(lambda p: p["x"]).std_error.iloc[0] == pytest.approx(error)
        assert fit.nlcom(lambda p: p.sigma).std_error.iloc[0] == pytest.approx(
            fit.varcorr.sd_or_corr_std_error.iloc[-1]
        )
        assert fit.emmeans("x", ddf="none", at={"x": [0, 1]}) is not None
        assert np.isnan(fit.glance()[["aic", "bic"]].to_numpy()).all()

    def test_clusters_of_clusters(self, data, fit):
        """Primary sampling units that hold groups."""
        found = fit.robust("CR1", cluster=data.g // 2)
        assert found.num_clusters == 4
        assert found.coef_table().std_error["x"] != fit.bse["x"]

    def test_another_fit_of_the_same_response(self, fit):
        again = fit.refit(fit.frame.y)
        np.testing.assert_allclose(again.cov_params(), fit.cov_params(), rtol=1e-8)
        np.testing.assert_allclose(again.varcorr.std_error, fit.varcorr.std_error, rtol=1e-6)

    @pytest.mark.parametrize(
        ("method", "name"),
        [
            (lambda fit: fit.coef_table(ddf="satterthwaite"), "ddf='satterthwaite'"),
            (lambda fit: fit.coef_table(ddf="residual"), "ddf='residual'"),
            (lambda fit: fit.robust(), "kind='CR2'"),
            (lambda fit: fit.lrtest(fit), "lrtest"),
            (lambda fit: jm.compare(fit, fit), "compare"),
            (lambda fit: fit.profile("x"), "a profile"),
            (lambda fit: fit.conf_int(method="profile"), "a profile"),
            (lambda fit: fit.bootstrap(5), "bootstrap"),
            (lambda fit: fit.simulate(1, seed=1), "simulate"),
            (lambda fit: jm.simulate(THREE, fit.frame.fixed_data, fit), "simulate"),
            (lambda fit: jm.power(fit=fit, test="x", n=3), "power"),
            (lambda fit: fit.refit_many(np.ones((89, 2))), "refit_many"),
            (lambda fit: fit.permutation_test("g", n=5), "permutation_test"),
            (lambda fit: fit.influence("g"), "influence"),
            (lambda fit: fit.ranef_se(), "ranef_se"),
            (lambda fit: fit.ranef_cov("g"), "the error of a prediction"),
            (lambda fit: fit.predictions(), "the error of a prediction"),
            (lambda fit: fit.leverage(), "the error of a prediction"),
            (lambda fit: fit.residuals("scaled"), "residuals\\('scaled'\\)"),
            (lambda fit: fit.aic, "aic"),
            (lambda fit: fit.bic, "bic"),
            (lambda fit: fit.margins("x"), "margins"),
            (lambda fit: fit.r2(), "r2"),
            (lambda fit: fit.design_effect(), "design_effect"),
            (lambda fit: fit.reliability(), "reliability"),
            (lambda fit: fit.vif(), "vif"),
        ],
    )
    def test_what_does_not_hold_is_refused_by_name(self, fit, method, name):
        with pytest.raises(jm.DesignError, match=f"{name}.* is not for fits with sampling weights: "):
            method(fit)

    def test_pictures_and_the_report_leave_out_what_does_not_hold(self, fit, tmp_path):
        pytest.importorskip("matplotlib").use("Agg")
        page = tmp_path / "report.html"
        fit.report(page, figures=False)
        text = page.read_text(encoding="utf-8")
        assert "The estimates maximise the pseudo-likelihood" in text
        assert "sampling_weights=" in text
        assert len(fit.plot.diagnostics()) == 5  # no caterpillar plot
        with pytest.raises(jm.DesignError, match="a simulation of responses is not for fits with sampling"):
            fit.plot.qq(simulations=19)

"""Marginal means, slopes and contrasts: by hand from cell means, against SciPy and predictions."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from jaxmixed.emmeans import parse_spec
from jaxmixed.marginal_means import MarginalMeans
from tests.support.control_comparisons import scipy_dunnett
from tests.support.fits import quietly

SIZES = (5, 7, 9, 4)
GROUPS = np.repeat(list("abcd"), SIZES)


@cache
def one_way() -> tuple[jm.MixedResults, list[np.ndarray]]:
    """A linear model of four groups of unequal size, and their values."""
    rng = np.random.default_rng(5)
    y = rng.normal(size=len(GROUPS)) + np.select([GROUPS == "b", GROUPS == "d"], [0.5, 1.6])
    return quietly("y ~ g", {"y": y, "g": GROUPS}), [y[name == GROUPS] for name in "abcd"]


@cache
def layout() -> pd.DataFrame:
    """An unbalanced layout of two factors, a covariate, a number of two values and a known part."""
    rng = np.random.default_rng(8)
    n = 90
    data = pd.DataFrame(
        {
            "a": rng.choice(["a1", "a2"], n, p=[0.7, 0.3]),
            "b": rng.choice(["b1", "b2", "b3"], n, p=[0.5, 0.3, 0.2]),
            "x": rng.uniform(1, 9, n),
            "z": rng.choice([0.0, 4.0], n),
            "w": rng.uniform(0.5, 2, n),
            "id": rng.integers(0, 12, n),
        }
    )
    signal = (data["a"] == "a2") + 2 * (data["b"] == "b3") * (data["a"] == "a1") + 0.4 * data["x"]
    data["y"] = signal + rng.normal(size=12)[data["id"]] + rng.normal(size=n)
    return data


@cache
def fitted(formula: str, **options: Any) -> jm.MixedResults:
    return quietly(formula, layout(), **options)


@cache
def with_empty_cell() -> jm.MixedResults:
    data = layout()
    return quietly("y ~ a * b", data[(data["a"] != "a2") | (data["b"] != "b3")])


def cell_means(values: str = "y") -> pd.DataFrame:
    return layout().groupby(["a", "b"])[values].mean().unstack()


def counts() -> pd.DataFrame:
    return layout().groupby(["a", "b"]).size().unstack()


class TestOneWay:
    def test_means_and_their_errors_are_those_of_the_groups(self) -> None:
        fit, groups = one_way()
        table = fit.emmeans("g").table
        df = len(GROUPS) - 4
        sigma = np.sqrt(sum(((own - own.mean()) ** 2).sum() for own in groups) / df)
        mean, error = np.array([own.mean() for own in groups]), sigma / np.sqrt(SIZES)
        assert table["g"].tolist() == list("abcd")
        np.testing.assert_allclose(table["estimate"], mean, rtol=1e-10)
        np.testing.assert_allclose(table["std_error"], error, rtol=1e-8)
        np.testing.assert_allclose(table["df"], df, rtol=1e-6)
        np.testing.assert_allclose(table["statistic"], mean / error, rtol=1e-8)
        np.testing.assert_allclose(table["p_value"], 2 * stats.t.sf(np.abs(mean / error), df), rtol=1e-6)
        half = stats.t.ppf(0.975, df) * error
        np.testing.assert_allclose(table["conf_low"], mean - half, rtol=1e-7)
        np.testing.assert_allclose(table["conf_high"], mean + half, rtol=1e-7)

    def test_all_pairs_are_tukeys_test(self) -> None:
        fit, groups = one_way()
        expected = stats.tukey_hsd(*groups)
        limits = expected.confidence_interval()
        order = tuple(np.transpose(list(combinations(range(4), 2))))
        table = fit.emmeans("g").pairs().table
        assert table["contrast"].tolist() == ["a - b", "a - c", "a - d", "b - c", "b - d", "c - d"]
        np.testing.assert_allclose(table["estimate"], expected.statistic[order], rtol=1e-10)
        np.testing.assert_allclose(table["p_value"], expected.pvalue[order], rtol=1e-5)
        np.testing.assert_allclose(table["conf_low"], limits.low[order], rtol=1e-5)
        np.testing.assert_allclose(table["conf_high"], limits.high[order], rtol=1e-5)

    def test_comparisons_with_a_control_are_dunnetts_test(self) -> None:
        fit, groups = one_way()
        others = [groups[0], groups[2], groups[3]]
        expected = scipy_dunnett(others, groups[1])
        table = fit.emmeans("g").contrast("trt.vs.ctrl", ref="b").table
        assert table["contrast"].tolist() == ["a - b", "c - b", "d - b"]
        np.testing.assert_allclose(table["p_value"], expected.pvalue, atol=3e-4)

    def test_the_joint_test_of_contrasts_is_the_analysis_of_variance(self) -> None:
        fit, groups = one_way()
        expected = stats.f_oneway(*groups)
        for test in (
            fit.emmeans("g").pairs().test(joint=True).iloc[0],  # six contrasts, three of them independent
            fit.emmeans("g").contrast("helmert").test(joint=True).iloc[0],
            fit.joint_tests().loc["g"],
        ):
            assert test["num_df"] == 3
            assert test["den_df"] == pytest.approx(len(GROUPS) - 4)
            assert test["statistic"] == pytest.approx(expected.statistic, rel=1e-8)
            assert test["p_value"] == pytest.approx(expected.pvalue, rel=1e-6)

    def test_the_overall_mean_and_its_weighted_sibling(self) -> None:
        fit, groups = one_way()
        equal = fit.emmeans("1").table["estimate"].item()
        assert equal == pytest.approx(np.mean([own.mean() for own in groups]))
        by_rows = fit.emmeans("1", weights="proportional").table["estimate"].item()
        assert by_rows == pytest.approx(np.concatenate(groups).mean())

    def test_a_test_of_another_value_than_zero(self) -> None:
        fit, _ = one_way()
        table = fit.emmeans("g").test(0.5)
        plain = fit.emmeans("g").table
        np.testing.assert_allclose(table["estimate"], plain["estimate"])
        np.testing.assert_allclose(table["statistic"], (plain["estimate"] - 0.5) / plain["std_error"])
        joint = fit.emmeans("g").test(0.5, joint=True).iloc[0]
        assert joint["statistic"] == pytest.approx(
            (table["statistic"] ** 2).mean()
        )  # the means are independent

    def test_the_covariance_is_that_of_the_coefficients(self) -> None:
        fit, _ = one_way()
        means = fit.emmeans("g")
        L = means.linear_functions.to_numpy()
        np.testing.assert_allclose(means.cov(), L @ fit.cov_params().to_numpy() @ L.T, rtol=1e-10, atol=1e-16)


class TestPublished:
    """Output of other programs, to its printed digits."""

    def test_tukeys_comparisons_of_paper_strength(self) -> None:
        """Montgomery's bags by emmeans (fndemarqui.github.io/planex, article multcomp)."""
        strength = [
            7,
            8,
            15,
            11,
            9,
            10,
            12,
            17,
            13,
            18,
            19,
            15,
            14,
            18,
            19,
            17,
            16,
            18,
            19,
            25,
            22,
            23,
            18,
            20,
        ]
        fit = quietly("y ~ C(conc)", {"y": strength, "conc": np.repeat([5, 10, 15, 20], 6)})
        means = fit.emmeans("conc").table
        np.testing.assert_allclose(means["estimate"], [10.0, 15.7, 17.0, 21.2], atol=0.05)
        np.testing.assert_allclose(means["std_error"], 1.04, atol=0.005)
        np.testing.assert_allclose(means["conf_low"], [7.83, 13.49, 14.83, 18.99], atol=0.005)
        pairs = fit.emmeans("conc").pairs().table
        assert pairs["contrast"][0] == "conc5 - conc10"
        np.testing.assert_allclose(
            pairs["statistic"], [-3.847, -4.753, -7.581, -0.905, -3.734, -2.829], atol=0.0005
        )
        printed = [0.0051, 0.0007, 0.0000, 0.8022, 0.0066, 0.0470]
        np.testing.assert_allclose(pairs["p_value"], printed, atol=0.00005)

    def test_joint_tests_are_those_of_sas(self) -> None:
        """Type III tests of PROC GLM for the example of emmeans' joint_tests; female as two numbers."""
        data = {
            "treat": ["A"] * 4 + ["B"] * 6,
            "female": [1, 0, 0, 1, 0, 0, 0, 1, 1, 0],
            "resp": [17, 12, 14, 19, 28, 26, 26, 34, 33, 27],
        }
        for formula in ("resp ~ treat * female", "resp ~ treat * C(female)"):
            tests = quietly(formula, data).joint_tests()
            np.testing.assert_allclose(tests["statistic"], [404.60, 65.29, 1.45], atol=0.005)
            np.testing.assert_allclose(tests["p_value"], [0.0000, 0.0002, 0.2741], atol=0.00005)
            assert (tests["num_df"] == 1).all()


class TestAverages:
    @pytest.mark.parametrize(
        ("weights", "share"),
        [
            ("equal", lambda n: np.ones(n.shape)),
            ("proportional", lambda n: np.tile(n.sum(axis=0), (len(n), 1))),
            ("outer", lambda n: np.tile(n.sum(axis=0), (len(n), 1))),
            ("cells", lambda n: n),
            ("flat", lambda n: (n > 0).astype(float)),
        ],
    )
    def test_means_of_a_factor_average_the_cells(self, weights: str, share: Any) -> None:
        table = fitted("y ~ a * b").emmeans("a", weights=weights).table
        own = share(counts().to_numpy(dtype=float))
        expected = (cell_means().to_numpy() * own).sum(axis=1) / own.sum(axis=1)
        np.testing.assert_allclose(table["estimate"], expected, rtol=1e-9)

    def test_weights_by_cells_give_the_means_of_the_rows(self) -> None:
        table = fitted("y ~ a * b").emmeans("b", weights="cells").table
        np.testing.assert_allclose(table["estimate"], layout().groupby("b")["y"].mean(), rtol=1e-9)

    def test_outer_weights_are_products_of_margins(self) -> None:
        """Three factors, of which two are averaged over: dependent ones, so that a product is no count."""
        data = layout().assign(c=lambda d: np.where(d["x"] > np.where(d["a"] == "a1", 4, 7), "u", "v"))
        fit = quietly("y ~ a * c + b", data)
        found = fit.emmeans("b", weights="outer").table["estimate"]
        cells = pd.MultiIndex.from_product([["a1", "a2"], ["b1", "b2", "b3"], ["u", "v"]], names=list("abc"))
        grid = cells.to_frame(index=False)
        grid["mean"] = fit.predict(grid, random=False).to_numpy()
        share = {name: data[name].value_counts(normalize=True) for name in "ac"}
        grid["share"] = grid["a"].map(share["a"]) * grid["c"].map(share["c"])
        expected = (grid["mean"] * grid["share"]).groupby(grid["b"]).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        by_rows = fit.emmeans("b", weights="proportional").table["estimate"]
        assert np.abs(by_rows - found).max() > 1e-4

    def test_precision_weights_count_as_rows(self) -> None:
        data, fit = layout(), fitted("y ~ a * b", weights="w")
        table = fit.emmeans("a", weights="cells").table
        expected = (data["y"] * data["w"]).groupby(data["a"]).sum() / data.groupby("a")["w"].sum()
        np.testing.assert_allclose(table["estimate"], expected, rtol=1e-9)

    def test_combinations_vary_the_first_variable_fastest_and_groups_last(self) -> None:
        fit = fitted("y ~ a * b")
        table = fit.emmeans("b | a").table
        assert table["b"].tolist() == ["b1", "b2", "b3"] * 2
        assert table["a"].tolist() == ["a1"] * 3 + ["a2"] * 3
        np.testing.assert_allclose(table["estimate"], cell_means().to_numpy().ravel(), rtol=1e-9)
        np.testing.assert_allclose(
            fit.emmeans(["a", "b"]).table["estimate"], cell_means().to_numpy().ravel(order="F"), rtol=1e-9
        )

    def test_a_number_stands_at_its_mean_and_functions_of_it_there(self) -> None:
        for formula in ("y ~ a + log(x)", "y ~ a * poly(x, 2)", "y ~ a + x + I(x^2)", "y ~ a + ns(x, 3)"):
            fit = fitted(formula)
            rows = pd.DataFrame({"a": ["a1", "a2"], "x": layout()["x"].mean()})
            found = fit.emmeans("a").table["estimate"]
            np.testing.assert_allclose(found, fit.predict(rows, random=False), rtol=1e-9, err_msg=formula)

    def test_values_can_be_chosen(self) -> None:
        fit = fitted("y ~ a * x + b")
        rows = pd.DataFrame({"x": [2.0, 5.0, 2.0, 5.0], "a": ["a1", "a1", "a2", "a2"], "b": "b2"})
        table = fit.emmeans("x * a", at={"x": [2, 5], "b": "b2"}).table
        np.testing.assert_allclose(table["estimate"], fit.predict(rows, random=False), rtol=1e-9)
        assert table["x"].tolist() == [2, 5, 2, 5]
        some = fit.emmeans("b", at={"b": ["b3", "b1"]}).table
        assert some["b"].tolist() == ["b3", "b1"]

    def test_a_number_of_two_values_has_both_and_they_weigh_alike(self) -> None:
        fit = fitted("y ~ a + z")
        table = fit.emmeans("z").table
        assert table["z"].tolist() == [0.0, 4.0]
        rows = pd.DataFrame({"a": ["a1", "a2"], "z": 2.0})  # halfway, however the rows are divided
        np.testing.assert_allclose(fit.emmeans("a").table["estimate"], fit.predict(rows, random=False))
        rows = rows.assign(z=layout()["z"].mean())
        found = fit.emmeans("a", weights="proportional").table["estimate"]
        np.testing.assert_allclose(found, fit.predict(rows, random=False))

    def test_booleans_and_numbers_as_factors_have_all_their_levels(self) -> None:
        data = layout().assign(large=lambda d: d["x"] > 5, half=lambda d: d["x"].round())
        fit = quietly("y ~ large + C(half)", data)
        assert fit.emmeans("large").table["large"].tolist() == [False, True]
        assert fit.emmeans("half").table["half"].tolist() == sorted(set(data["half"]))
        names = fit.emmeans("half", at={"half": [1, 2]}).pairs().table["contrast"].tolist()
        assert names == ["half1 - half2"]

    def test_offsets_are_part_of_the_means(self) -> None:
        data = layout()
        fit = fitted("y ~ a + offset(2 * x)", offset="w")
        rows = pd.DataFrame({"a": ["a1", "a2"], "x": data["x"].mean(), "w": data["w"].mean()})
        means = fit.emmeans("a")
        np.testing.assert_allclose(means.table["estimate"], fit.predict(rows, random=False), rtol=1e-10)
        statistic = means.table["estimate"] / means.table["std_error"]
        np.testing.assert_allclose(means.table["statistic"], statistic, rtol=1e-10)
        assert means.pairs().table["estimate"].item() == pytest.approx(-fit.params["aa2"])
        assert "offset of" in str(means)
        array = quietly("y ~ a", data, offset=data["w"].to_numpy())
        expected = array.params["(Intercept)"] + data["w"].mean()
        assert array.emmeans("a").table["estimate"][0] == pytest.approx(expected)

    def test_only_the_rows_used_make_the_grid(self) -> None:
        data = layout().copy()
        data.loc[data["x"] > 6, "y"] = np.nan
        fit = quietly("y ~ a + x", data)
        rows = pd.DataFrame({"a": ["a1", "a2"], "x": data.loc[data["y"].notna(), "x"].mean()})
        np.testing.assert_allclose(fit.emmeans("a").table["estimate"], fit.predict(rows, random=False))

    def test_later_changes_of_the_data_change_no_mean(self) -> None:
        data = layout().copy()
        fit = quietly("y ~ a + x", data)
        before = fit.emmeans("a", weights="proportional").table["estimate"].to_numpy()
        data["x"] = 0.0
        data["a"] = "a1"
        np.testing.assert_array_equal(fit.emmeans("a", weights="proportional").table["estimate"], before)

    def test_the_model_says_nothing_of_random_effects_in_the_means(self) -> None:
        fit = fitted("y ~ a * b + (1 | id)")
        means = fit.emmeans("a", ddf="none")
        V = fit.cov_params().to_numpy()
        L = np.array([means.linear_functions.loc[row] for row in (0, 1)])
        by_hand = np.zeros((2, len(fit.params)))
        by_hand[:, 0] = 1
        by_hand[1, fit.params.index.get_loc("aa2")] = 1
        by_hand[:, [fit.params.index.get_loc(name) for name in ("bb2", "bb3")]] = 1 / 3
        by_hand[1, [fit.params.index.get_loc(name) for name in ("aa2:bb2", "aa2:bb3")]] = 1 / 3
        np.testing.assert_allclose(L, by_hand, atol=1e-12)
        error = np.sqrt(np.diagonal(by_hand @ V @ by_hand.T))
        np.testing.assert_allclose(means.table["std_error"], error, rtol=1e-10)
        assert np.isinf(means.table["df"]).all()


class TestEmptyCells:
    def test_an_average_over_a_cell_without_rows_does_not_exist(self) -> None:
        means = with_empty_cell().emmeans("a")
        assert means.table["estimate"].isna().tolist() == [False, True]
        assert means.table.loc[1, ["std_error", "df", "p_value", "conf_low"]].isna().all()
        assert "Not estimable, since some cells have no rows: a2" in str(means)
        assert means.pairs().table["estimate"].isna().all()

    def test_what_the_data_tell_is_kept(self) -> None:
        fit = with_empty_cell()
        table = fit.emmeans("b | a").pairs().table
        assert table["estimate"].isna().tolist() == [False] * 4 + [True] * 2
        for weights in ("cells", "flat"):
            assert not fit.emmeans("a", weights=weights).table["estimate"].isna().any()
        alone = fit.emmeans("a * b", weights="cells").table
        assert alone["estimate"].isna().sum() == 1

    def test_estimable_functions_are_those_in_the_row_space_of_the_design(self) -> None:
        fit = with_empty_cell()
        means = fit.emmeans("a * b")
        X = fit.frame.X
        for row, L in enumerate(means.linear_functions.to_numpy()):
            inside = np.linalg.matrix_rank(np.vstack([X, L])) == np.linalg.matrix_rank(X)
            assert inside == (not np.isnan(means.table["estimate"][row]))

    def test_joint_tests_take_the_combinations_that_exist(self) -> None:
        fit = with_empty_cell()
        tests = fit.joint_tests()
        assert tests["num_df"].to_dict() == {"b": 1, "a:b": 1}
        assert (
            "cannot" in tests.attrs["note"] or "nothing of these terms can be tested" in tests.attrs["note"]
        )
        # All that can be compared among five cells with rows: four differences.
        joint = fit.emmeans("a * b").contrast("pairwise").test(joint=True)
        assert joint["num_df"].item() == 4
        present = fit.emmeans("a * b", at={"a": "a1"}).pairs().test(joint=True)
        assert present["num_df"].item() == 2

    def test_columns_dropped_for_collinearity_change_nothing(self) -> None:
        data = layout().assign(x2=lambda d: 3 * d["x"] - 1)
        fit = quietly("y ~ a + x + x2", data)
        plain = fitted("y ~ a + x")
        columns = ["estimate", "std_error", "df"]
        np.testing.assert_allclose(
            fit.emmeans("a").table[columns], plain.emmeans("a").table[columns], rtol=1e-5
        )
        assert fit.emtrends("a", "x").table["estimate"].isna().all()


class TestSlopes:
    @pytest.mark.parametrize("formula", ["y ~ a * log(x)", "y ~ a * poly(x, 3)", "y ~ a * I(x^2) + bs(x, 4)"])
    def test_slopes_are_differences_of_predictions(self, formula: str) -> None:
        fit, step = fitted(formula), 1e-4
        for x in (2.0, 5.5):
            low, high = (
                fit.predict(pd.DataFrame({"a": ["a1", "a2"], "x": x + move}), random=False).to_numpy()
                for move in (-step, step)
            )
            found = fit.emtrends("a", "x", at={"x": x}).table["estimate"]
            np.testing.assert_allclose(found, (high - low) / (2 * step), rtol=1e-6, atol=1e-9)

    def test_slopes_of_a_line_in_each_group_and_their_difference(self) -> None:
        fit = fitted("y ~ a * x + (1 | id)")
        trends = fit.emtrends("a", "x")
        slope, change = fit.params["x"], fit.params["aa2:x"]
        np.testing.assert_allclose(trends.table["estimate"], [slope, slope + change], rtol=1e-10)
        row = trends.pairs(adjust="none").table.iloc[0]
        own = fit.coef_table("satterthwaite").loc["aa2:x"]
        assert row["estimate"] == pytest.approx(-own["estimate"])
        for name in ("std_error", "df", "p_value"):
            assert row[name] == pytest.approx(own[name], rel=1e-8)
        assert "Slopes in x" in str(trends)

    def test_functions_of_the_callers_own_have_slopes(self) -> None:
        fit = quietly("y ~ a + cube(x)", layout(), functions={"cube": lambda x: x**3})
        expected = 3 * layout()["x"].mean() ** 2 * fit.params["cube(x)"]
        assert fit.emtrends("1", "x").table["estimate"].item() == pytest.approx(expected, rel=1e-8)

    def test_a_known_part_has_a_slope_too(self) -> None:
        fit = fitted("y ~ a * x + offset(3 * x)")
        assert fit.emtrends("a", "x").table["estimate"][0] == pytest.approx(fit.params["x"] + 3)


class TestContrasts:
    def test_families_in_groups_are_adjusted_within_each(self) -> None:
        means = fitted("y ~ a * b").emmeans("b | a")
        whole = means.pairs().table
        for name in ("a1", "a2"):
            alone = fitted("y ~ a * b").emmeans("b", at={"a": name}).pairs().table
            part = whole[whole["a"] == name].reset_index(drop=True)
            columns = ["estimate", "std_error", "p_value", "conf_low", "conf_high"]
            np.testing.assert_allclose(part[columns], alone[columns], rtol=1e-6)

    def test_groups_can_be_dissolved_and_changed(self) -> None:
        means = fitted("y ~ a * b").emmeans("b | a")
        assert len(means.pairs(by=[]).table) == 15
        changed = means.pairs(by="b")
        assert changed.table["contrast"].tolist() == ["a1 - a2"] * 3
        assert len(means.pairs(reverse=True).table) == 6
        np.testing.assert_allclose(
            changed.table["estimate"], cell_means().loc["a1"] - cell_means().loc["a2"], rtol=1e-8
        )

    def test_contrasts_of_contrasts_are_the_interaction(self) -> None:
        fit = fitted("y ~ a * b")
        cells = cell_means()
        expected = [
            (cells.loc["a1", u] - cells.loc["a2", u]) - (cells.loc["a1", v] - cells.loc["a2", v])
            for u, v in combinations(cells.columns, 2)
        ]
        twice = fit.emmeans("a | b").contrast("pairwise").contrast("pairwise", by=[])
        np.testing.assert_allclose(twice.table["estimate"], expected, rtol=1e-8)
        assert twice.table["contrast1"][0] == "(a1 - a2 b1) - (a1 - a2 b2)"
        at_once = fit.emmeans("a * b").contrast("pairwise", interaction=True)
        np.testing.assert_allclose(at_once.table["estimate"], expected, rtol=1e-8)
        assert at_once.table.columns[:2].tolist() == ["a_pairwise", "b_pairwise"]
        mixed = fit.emmeans("a * b").contrast({"a": "pairwise", "b": "consec"}, interaction=True)
        assert mixed.table["estimate"][0] == pytest.approx(-expected[0])
        with pytest.raises(jm.DataError, match="a method for each of 'a', 'b'"):
            fit.emmeans("a * b").contrast({"a": "pairwise"}, interaction=True)

    def test_joint_tests_of_factors_are_tests_of_type_three(self) -> None:
        """Wald tests of coefficients in sum-to-zero coding: hypotheses of type III are blocks of those."""
        fit = fitted("y ~ a * b + (1 | id)")
        coded = quietly("y ~ a * b + (1 | id)", layout(), contrasts={"a": "sum", "b": "sum"})
        beta, V, names = coded.params.to_numpy(), coded.cov_params().to_numpy(), list(coded.params.index)
        blocks = {"a": ["a1"], "b": ["b1", "b2"], "a:b": ["a1:b1", "a1:b2"]}
        tests = fit.joint_tests(ddf="none")
        for term, own in blocks.items():
            at = [names.index(name) for name in own]
            wald = beta[at] @ np.linalg.solve(V[np.ix_(at, at)], beta[at])
            assert tests.loc[term, "statistic"] * len(at) == pytest.approx(wald, rel=1e-6)
            assert tests.loc[term, "p_value"] == pytest.approx(stats.chi2.sf(wald, len(at)), rel=1e-5)

    def test_numbers_are_tested_by_their_slopes_and_groups_apart(self) -> None:
        fit = fitted("y ~ a * x")
        tests = fit.joint_tests()
        assert list(tests.index) == ["a", "x", "a:x"]
        interaction = fit.coef_table("satterthwaite").loc["aa2:x"]
        assert tests.loc["a:x", "statistic"] == pytest.approx(interaction["statistic"] ** 2, rel=1e-8)
        apart = fit.joint_tests(by="a")
        slopes = fit.emtrends("a", "x").table
        np.testing.assert_allclose(apart["statistic"], slopes["statistic"] ** 2, rtol=1e-8)

    def test_another_adjustment_and_level_of_the_same_estimates(self) -> None:
        means = one_way()[0].emmeans("g")
        plain = means.pairs(adjust="none")
        again = means.pairs().adjusted("bonferroni", 0.9)
        np.testing.assert_allclose(
            again.table["p_value"], (6 * plain.table["p_value"]).clip(upper=1), rtol=1e-8
        )
        half = (again.table["conf_high"] - again.table["conf_low"]) / 2
        expected = stats.t.ppf(1 - 0.1 / 12, len(GROUPS) - 4) * plain.table["std_error"]
        np.testing.assert_allclose(half, expected, rtol=1e-6)
        assert "Sidak's has taken its\n" in str(means.contrast("trt.vs.ctrl", adjust="tukey"))

    def test_another_covariance_takes_the_place_of_the_models(self) -> None:
        fit = fitted("y ~ a * b + (1 | id)")
        given = fit.fixed_inference("none")
        pd.testing.assert_frame_equal(fit.emmeans("a", vcov=given).table, fit.emmeans("a", ddf="none").table)


class TestWhatUsersSee:
    def test_text_and_page_show_groups_numbers_and_how_they_came_about(self) -> None:
        means = fitted("y ~ a * b + x").emmeans("b | a").pairs()
        text = str(means)
        assert text.splitlines()[0] == "Contrasts"
        for piece in ("a = a1", "  b1 - b2", "df", "P>|t|", "[95% conf.", "Note: At the means x = "):
            assert piece in text
        assert "adjusted by Tukey's method for 3 means in each\n      group" in text
        assert repr(means) == text
        page = means._repr_html_()
        assert page.startswith("<table>")
        assert "<em>Note:</em>" in page
        normal = str(fitted("y ~ a * b + x").emmeans("a", ddf="none"))
        assert "P>|z|" in normal
        assert " df " not in normal
        assert "Averages over b may hide differences" in normal

    def test_names_from_data_carry_no_markup_and_no_control_characters(self) -> None:
        data = layout().assign(a=lambda d: np.where(d["a"] == "a1", "<b>x</b>", "\x1b[31my"))
        means = quietly("y ~ a", data).emmeans("a").pairs()
        assert "\x1b" not in str(means)
        assert "<b>" not in means._repr_html_()

    def test_a_table_is_handed_out_as_a_copy(self) -> None:
        means = one_way()[0].emmeans("g")
        table = means.table
        table["estimate"] = 0.0
        assert (means.table["estimate"] != 0).all()
        assert isinstance(means, MarginalMeans)

    @pytest.mark.parametrize(
        ("spec", "by", "expected"),
        [
            ("a", None, (("a",), ())),
            ("a * b", None, (("a", "b"), ())),
            ("~ a:b | c", None, (("a", "b"), ("c",))),
            ("a", "c", (("a",), ("c",))),
            (["a", "b"], ["b", "c"], (("a",), ("b", "c"))),
            ("a | b", "c", (("a",), ("b", "c"))),
            ("1", None, ((), ())),
            ("log x", None, (("log x",), ())),
            ("`log x` + a", None, (("log x", "a"), ())),
            ("`a*b` + a", None, None),
        ],
    )
    def test_specifications(self, spec: Any, by: Any, expected: Any) -> None:
        names = ["a", "b", "c", "log x"]
        if expected is None:
            with pytest.raises(jm.DataError, match="no column of the fixed effects"):
                parse_spec(spec, by, names)
        else:
            assert parse_spec(spec, by, names) == expected

    @pytest.mark.parametrize(
        ("ask", "message"),
        [
            (lambda fit: fit.emmeans("q"), "'q' is no column of the fixed effects.*'a', 'b', 'x'"),
            (lambda fit: fit.emmeans("id"), "'id' is no column of the fixed effects"),
            (lambda fit: fit.emmeans("pairwise ~ a"), r"write .emmeans\('a'\).contrast\('pairwise'\)"),
            (lambda fit: fit.emmeans("a | b | x"), "several bars"),
            (lambda fit: fit.emmeans(""), "names no column"),
            (lambda fit: fit.emmeans(3), "spec is 3"),
            (lambda fit: fit.emmeans("a", by=3), "by is 3"),
            (lambda fit: fit.emmeans("a", weights="rows"), "weights is 'rows'; choose one of 'equal'"),
            (lambda fit: fit.emmeans("a", at={"q": 1}), "at= names 'q'"),
            (lambda fit: fit.emmeans("a", at=3), "at is 3; give values by column"),
            (lambda fit: fit.emmeans("a", at={"b": "b9"}), "at= asks for b = 'b9'; its levels are 'b1'"),
            (lambda fit: fit.emmeans("a", at={"b": []}), "at= gives no level of 'b'"),
            (lambda fit: fit.emmeans("a", at={"x": "high"}), "at= gives 'high' for 'x', which is numeric"),
            (lambda fit: fit.emmeans("a", at={"x": [1, np.inf]}), "which is numeric"),
            (lambda fit: fit.emmeans("a", at={"x": range(10**5)}), "200,000|300,000|600,000"),
            (lambda fit: fit.emmeans("a", level=95), "level is 95"),
            (lambda fit: fit.emmeans("a", ddf="kr"), "ddf is 'kr'"),
            (lambda fit: fit.emmeans("a").pairs(by="b"), "by= names 'b'; these means are by 'a'"),
            (lambda fit: fit.emmeans("a").pairs(adjust="scheff"), "adjust is 'scheff'"),
            (lambda fit: fit.emmeans("a").test("0"), "null is '0'"),
            (lambda fit: fit.emmeans("1").pairs(), "at least two means"),
            (lambda fit: fit.emtrends("a", "q"), "'q' is no column of the fixed effects, so it has no slope"),
            (lambda fit: fit.emtrends("a", "b"), "'b' is a factor, so it has no slope"),
            (lambda fit: fit.joint_tests(by=["a", "b", "x"]), "nothing to test"),
        ],
    )
    def test_what_cannot_be_answered_is_refused_in_words(self, ask: Any, message: str) -> None:
        with pytest.raises((jm.DataError, jm.DesignError), match=message):
            ask(fitted("y ~ a * b + x"))

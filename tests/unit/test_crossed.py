"""Crossed groupings at the front door: designs, what a fit tells, predictions, comparisons, plots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import jaxmixed as jm
from jaxmixed.document import document
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame
from tests.support.designs import CROSSED, random_crossed_design
from tests.support.fits import fit as bundled
from tests.support.fits import quietly

PENICILLIN = "diameter ~ 1 + (1 | plate) + (1 | sample)"
SCHOOLS = "y ~ x + (1 | school/pupil) + (1 | item)"


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


@cache
def _schools() -> pd.DataFrame:
    rng = np.random.default_rng(31)
    pupil, item = (codes.ravel() for codes in np.meshgrid(np.arange(24), np.arange(6), indexing="ij"))
    kept = rng.permutation(np.flatnonzero((pupil >= 3) | (item > 0)))[:115]  # no item 0 in school 0
    pupil, item = np.repeat(pupil[kept], 2), np.repeat(item[kept], 2)
    x = rng.normal(size=len(pupil))
    y = 1 + x + rng.normal(size=8)[pupil // 3] + rng.normal(size=24)[pupil] + 0.8 * rng.normal(size=6)[item]
    return pd.DataFrame(
        {
            "y": y + rng.normal(size=len(pupil)),
            "x": x,
            "school": [f"school {k}" for k in pupil // 3],
            "pupil": pupil % 3,
            "item": [f"item {k}" for k in item],
        }
    )


def schools() -> pd.DataFrame:
    """Pupils (numbered anew in every school) who answer most of six items twice."""
    return _schools().copy()


@cache
def schools_fit() -> jm.MixedResults:
    return quietly(SCHOOLS, schools())


# The random designs


@pytest.mark.parametrize("kind", CROSSED)
@pytest.mark.parametrize("seed", range(6))
def test_the_encoded_formula_equals_the_arrays_written_by_hand(kind: str, seed: int) -> None:
    design = random_crossed_design(seed, kind=kind)
    frame = build_frame(parse(design.formula), design.data, weights=design.weights, offset=design.offset)
    assert frame.x_names == design.x_names
    np.testing.assert_array_equal(frame.X, design.model.X)
    np.testing.assert_array_equal(frame.y, design.model.y)
    assert len(frame.groups) == len(design.terms)
    for group, term, block in zip(frame.groups, design.terms, design.model.blocks, strict=True):
        assert (group.label, group.columns, group.names) == (term.label, term.columns, term.names)
        assert group.structure == term.structure
        np.testing.assert_array_equal(group.Z, block.Z)
        labels = [str(group.levels[code]) for code in group.codes]
        assert labels == [term.levels[code] for code in block.codes]


def test_same_seed_same_design() -> None:
    first, second = random_crossed_design(7), random_crossed_design(7)
    assert first.formula == second.formula
    assert first.data.equals(second.data)


@pytest.mark.parametrize("kind", CROSSED)
def test_designs_of_every_kind_are_small_and_crossed(kind: str) -> None:
    designs = [random_crossed_design(seed, kind=kind) for seed in range(10)]
    for design in designs:
        assert 40 <= len(design.data) <= 160
        fewest = min(design.model.blocks, key=lambda block: block.num_levels)
        pairs = [set(zip(block.codes, fewest.codes, strict=True)) for block in design.model.blocks]
        assert any(
            len(pair) > block.num_levels for pair, block in zip(pairs, design.model.blocks, strict=True)
        )
    assert {design.weights is None for design in designs} == {True, False}
    assert {design.offset is None for design in designs} == {True, False}


def cells(kind: str, seed: int) -> np.ndarray:
    """Rows in every cell of the factors a and b."""
    data = random_crossed_design(seed, kind=kind).data
    return pd.crosstab(data["a"], data["b"]).to_numpy()


@pytest.mark.parametrize("seed", range(5))
def test_cells_are_filled_as_the_kind_says(seed: int) -> None:
    assert len(np.unique(cells("balanced", seed))) == 1
    unbalanced = cells("unbalanced", seed)
    assert 1 <= unbalanced.min() < unbalanced.max()
    assert cells("empty cells", seed).min() == 0
    pupils = cells("pupils who change school", seed)
    schools_seen = (pupils > 0).sum(axis=1)
    assert {1, 2} <= set(schools_seen)
    islands = cells("disconnected", seed)
    above = np.hstack([np.zeros((len(islands),) * 2), islands])
    below = np.hstack([islands.T, np.zeros((islands.shape[1],) * 2)])
    assert connected_components(coo_array(np.vstack([above, below])))[0] >= 2


# What a fit tells


def test_the_published_fit_of_the_penicillin_data() -> None:
    # Bates (2010), lme4: Mixed-effects modeling with R, section 2.1.
    reml = bundled("penicillin", PENICILLIN)
    assert f"{reml.deviance:.4f}" == "330.8606"
    variances = {term.group: f"{term.cov.iloc[0, 0]:.4f}" for term in reml.random_terms}
    assert variances == {"plate": "0.7169", "sample": "3.7309"}
    assert f"{reml.sigma**2:.4f}" == "0.3024"
    assert f"{reml.params.iloc[0]:.4f}" == "22.9722"
    assert f"{reml.bse.iloc[0]:.4f}" == "0.8086"


def test_terms_stand_by_falling_number_of_levels_whatever_their_order_in_the_formula() -> None:
    base = bundled("penicillin", PENICILLIN)
    turned = quietly("diameter ~ 1 + (1 | sample) + (1 | plate)", jm.datasets.load("penicillin"))
    for fit in (base, turned):
        assert list(fit.ngroups.items()) == [("plate", 24), ("sample", 6)]
        assert [term.group for term in fit.random_terms] == ["plate", "sample"]
        assert fit.varcorr["group"].tolist() == ["plate", "sample", "Residual"]
    np.testing.assert_allclose(turned.theta, base.theta, rtol=1e-7)
    assert turned.llf == pytest.approx(base.llf, rel=1e-12)
    assert list(schools_fit().ngroups.items()) == [("school:pupil", 24), ("school", 8), ("item", 6)]


def test_the_summary_prints_all_groups() -> None:
    text = str(schools_fit().summary())
    lines = [line.split() for line in text.splitlines()]
    for label, count in schools_fit().ngroups.items():
        assert [label] in lines  # heading of its variances
        (row,) = [words for words in lines if words[:2] == [label, str(count)]]
        sizes = schools_fit().group_sizes().loc[label]
        assert row[2:] == [str(int(sizes["min"])), f"{sizes['mean']:.1f}", str(int(sizes["max"]))]
    assert "chi2(3)" in text
    assert "WARNING" not in text
    assert all(f"{label}<" in schools_fit().summary()._repr_html_() for label in schools_fit().ngroups)
    assert repr(schools_fit()).endswith(f"REML, {len(schools())} rows, 24 school:pupil, 8 school, 6 item>")


@pytest.mark.slow
def test_terms_of_one_factor_stand_together_also_beside_a_factor_with_as_many_levels() -> None:
    data = schools()
    data["room"] = np.arange(len(data)) % 6
    fit = quietly("y ~ x + (1 | room) + (1 | item) + (0 + x | room)", data)
    lines = str(fit.summary()).splitlines()
    assert lines.count("room") == lines.count("item") == 1
    assert list(fit.ranef()["room"].columns) == ["(Intercept)", "x"]
    assert list(fit.ngroups) == list(fit.ranef()) == list(fit.ranef_se())
    assert fit.ngroups == {"room": 6, "item": 6}


def test_random_effects_have_the_levels_of_their_factor_in_order() -> None:
    modes, errors = schools_fit().ranef(), schools_fit().ranef_se()
    assert list(modes) == list(errors) == ["school:pupil", "school", "item"]
    assert modes["item"].index.tolist() == [f"item {k}" for k in range(6)]
    assert modes["school"].index.tolist() == [f"school {k}" for k in range(8)]
    assert set(modes["school:pupil"].index) == {f"school {k}:{j}" for k in range(8) for j in range(3)}
    for label, table in modes.items():
        assert list(table.columns) == ["(Intercept)"]
        assert errors[label].index.equals(table.index)


def test_uncertain_fixed_effects_add_to_the_errors_of_every_factor() -> None:
    known, estimated = schools_fit().ranef_se("known"), schools_fit().ranef_se("estimated")
    for label in known:
        sd = next(term.sd.iloc[0] for term in schools_fit().random_terms if term.group == label)
        assert (known[label] > 0).all(axis=None)
        assert (known[label] < sd).all(axis=None)
        assert (estimated[label] > known[label]).all(axis=None)


def test_rows_tables_and_documents_hold_all_factors() -> None:
    fit, data = schools_fit(), schools()
    rows = fit.augment()
    assert rows["item"].tolist() == data["item"].tolist()
    assert rows["school"].tolist() == data["school"].tolist()
    np.testing.assert_allclose(rows[".fitted"] + rows[".resid"], data["y"])
    assert fit.tidy()["group"].dropna().tolist() == ["school:pupil", "school", "item", "Residual"]
    contents = json.loads(json.dumps(document(fit), allow_nan=False))
    assert [group["group"] for group in contents["groups"]] == ["school:pupil", "school", "item"]
    assert contents["linear_model_test"]["df"] == 3
    assert contents["diagnostics"]["converged"]


def test_rows_with_a_missing_level_of_either_factor_are_dropped_from_all() -> None:
    data = schools()
    data.loc[3, "item"] = None
    data.loc[[5, 8], "school"] = None
    fit = quietly(SCHOOLS, data)
    assert (fit.nobs, fit.n_dropped) == (len(data) - 3, 3)
    assert fit.dropped_by == {"school": 2, "item": 1}
    complete = quietly(SCHOOLS, data.dropna())
    assert fit.llf == pytest.approx(complete.llf, rel=1e-13)
    assert fit.ngroups == complete.ngroups


def test_a_refit_of_the_same_rows_in_another_order_is_the_same_fit() -> None:
    data = jm.datasets.load("penicillin")
    base = bundled("penicillin", PENICILLIN)
    for order in (data.index[::-1], np.random.default_rng(33).permutation(len(data))):
        moved = quietly(PENICILLIN, data.loc[order])
        assert moved.llf == pytest.approx(base.llf, rel=1e-12)
        np.testing.assert_allclose(moved.theta, base.theta, rtol=1e-7)
        np.testing.assert_allclose(moved.fittedvalues.sort_index(), base.fittedvalues, rtol=1e-8)
        for group, table in base.ranef().items():
            np.testing.assert_allclose(moved.ranef()[group].loc[table.index], table, rtol=1e-6, atol=1e-8)


def test_the_same_call_twice_gives_the_same_bits() -> None:
    again = quietly(SCHOOLS, schools())
    assert again.llf == schools_fit().llf
    np.testing.assert_array_equal(again.theta, schools_fit().theta)
    np.testing.assert_array_equal(again.fittedvalues, schools_fit().fittedvalues)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["independent", {"a": "independent"}, {"a": "exchangeable"}])
def test_structures_can_be_asked_for_by_factor(covariance: str | dict[str, str]) -> None:
    rng = np.random.default_rng(34)
    a, b = rng.integers(12, size=150), rng.integers(7, size=150)
    x = rng.normal(size=150)
    y = rng.normal(size=12)[a] + rng.normal(size=12)[a] * x + rng.normal(size=7)[b] + rng.normal(size=150)
    fit = quietly("y ~ x + (x | a) + (x | b)", {"y": y, "x": x, "a": a, "b": b}, covariance=covariance)
    asked = {"a": covariance, "b": covariance} if isinstance(covariance, str) else covariance
    for term in fit.random_terms:
        assert term.structure == asked.get(term.group, "unstructured")
        if term.structure == "independent":
            assert term.cov.iloc[0, 1] == 0
    assert fit.converged


# Nesting is found in the data


def test_nesting_is_detected_without_a_declaration() -> None:
    data = schools()
    data["child"] = data["school"] + "/" + data["pupil"].astype(str)
    found = quietly("y ~ x + (1 | child) + (1 | school)", data)
    declared = quietly("y ~ x + (1 | school/pupil)", data)
    assert found.llf == pytest.approx(declared.llf, rel=1e-13)
    np.testing.assert_allclose(found.theta, declared.theta, rtol=1e-9)
    assert found.icc().index.tolist() == ["school", "child"]
    np.testing.assert_allclose(found.icc(), declared.icc(), rtol=1e-6)


def test_nesting_is_detected_beside_a_crossed_factor() -> None:
    data = schools()
    data["child"] = data["school"] + "/" + data["pupil"].astype(str)
    for bars in ("(1 | child) + (1 | school) + (1 | item)", "(1 | school) + (1 | child) + (1 | item)"):
        found = quietly(f"y ~ x + {bars}", data)
        assert found.llf == pytest.approx(schools_fit().llf, rel=1e-12)
        np.testing.assert_allclose(found.theta, schools_fit().theta, rtol=1e-7)
        np.testing.assert_allclose(
            found.predict(random="child"), schools_fit().predict(random="school:pupil")
        )


@pytest.mark.slow
def test_labels_that_start_again_are_crossed_unless_the_formula_says_otherwise() -> None:
    data = schools()
    crossed = quietly("y ~ x + (1 | school) + (1 | pupil) + (1 | item)", data)
    assert crossed.ngroups == {"school": 8, "item": 6, "pupil": 3}
    assert crossed.llf < schools_fit().llf


# Intraclass correlations


def test_crossed_groupings_have_shares_of_the_variance_but_no_correlations() -> None:
    fit = bundled("penicillin", PENICILLIN)
    with pytest.raises(jm.DesignError, match=r"sample and plate are crossed.*kind='share'"):
        fit.icc()
    shares = fit.icc("share")
    assert shares.index.tolist() == ["sample", "plate"]
    # lme4 1.1-31 and the R package performance.
    np.testing.assert_allclose(shares["estimate"], [0.7854164471672, 0.1509203727522], rtol=1e-6)
    assert (shares["conf_low"] < shares["estimate"]).all()
    assert (shares["estimate"] < shares["conf_high"]).all()


def test_a_nesting_beside_a_crossed_factor_has_shares_only() -> None:
    with pytest.raises(jm.DesignError, match="are crossed"):
        schools_fit().icc()
    shares = schools_fit().icc("share")["estimate"]
    variances = {term.group: term.cov.iloc[0, 0] for term in schools_fit().random_terms}
    total = sum(variances.values()) + schools_fit().sigma ** 2
    assert {label: pytest.approx(value / total) for label, value in variances.items()} == shares.to_dict()


# Predictions


def test_predictions_of_the_data_as_new_data_are_the_fitted_values() -> None:
    fit = schools_fit()
    np.testing.assert_allclose(fit.predict(), fit.fittedvalues, rtol=1e-12)
    np.testing.assert_allclose(fit.predict(schools()), fit.fittedvalues, rtol=1e-10)


def effect_of(label: str, level: str) -> float:
    return float(schools_fit().ranef()[label].loc[level, "(Intercept)"])


def population(x: float) -> float:
    return float(schools_fit().params["(Intercept)"] + x * schools_fit().params["x"])


def new_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "x": [0.5, 0.5, 0.5, 0.5],
            "school": ["school 2", "school 2", "elsewhere", "school 2"],
            "pupil": [1, 99, 1, 1],
            "item": ["item 3", "item 3", "item 3", "item 99"],
        }
    )


def test_a_new_level_of_one_factor_keeps_the_effects_of_the_others() -> None:
    with pytest.raises(jm.DataError) as caught:
        schools_fit().predict(new_rows())
    for piece in (
        "item: item 99",
        "school: elsewhere",
        "school 2:99",
        "elsewhere:1",
        "allow_new_levels=True",
    ):
        assert piece in str(caught.value)
    item, school, pupil = effect_of("item", "item 3"), effect_of("school", "school 2"), "school 2:1"
    expected = [item + school + effect_of("school:pupil", pupil), item + school, item]
    expected.append(school + effect_of("school:pupil", pupil))
    found = schools_fit().predict(new_rows(), allow_new_levels=True)
    np.testing.assert_allclose(found, population(0.5) + np.array(expected), rtol=1e-10)


def test_a_group_label_takes_the_groupings_that_contain_it_and_leaves_out_crossed_ones() -> None:
    row = new_rows().iloc[[0]].drop(columns="item")
    school, pupil = effect_of("school", "school 2"), effect_of("school:pupil", "school 2:1")
    expected = {"school": school, "school:pupil": school + pupil}
    for label, effect in expected.items():
        found = schools_fit().predict(row, random=label)
        np.testing.assert_allclose(found, population(0.5) + effect, rtol=1e-10)
    item = schools_fit().predict(new_rows().iloc[[0]][["x", "item"]], random="item")
    np.testing.assert_allclose(item, population(0.5) + effect_of("item", "item 3"), rtol=1e-10)
    with pytest.raises(jm.DataError, match="no column 'item'"):
        schools_fit().predict(row)
    with pytest.raises(jm.DataError, match="'school:pupil', 'school', 'item'"):
        schools_fit().predict(row, random="pupil")


@pytest.mark.slow
def test_the_cells_of_two_factors_contain_the_effects_of_both() -> None:
    rng = np.random.default_rng(35)
    a, b = rng.integers(8, size=150), rng.integers(6, size=150)
    cell = rng.normal(size=(8, 6))[a, b]
    y = rng.normal(size=8)[a] + rng.normal(size=6)[b] + cell + 0.5 * rng.normal(size=150)
    data = pd.DataFrame({"y": y, "a": a, "b": b})
    fit = quietly("y ~ 1 + (1 | a) + (1 | b) + (1 | a:b)", data)
    np.testing.assert_allclose(fit.predict(random="a:b"), fit.fittedvalues, rtol=1e-10)
    modes, row = fit.ranef(), {"a": [3], "b": [2]}
    expected = fit.params.iloc[0] + modes["a"].loc[3, "(Intercept)"]
    np.testing.assert_allclose(fit.predict(row, random="a"), expected, rtol=1e-10)
    new = fit.predict({"a": [3], "b": [77]}, allow_new_levels=True)
    np.testing.assert_allclose(new, expected, rtol=1e-10)


# Comparisons


def test_one_factor_more_has_the_mixture_of_zero_and_one() -> None:
    data = jm.datasets.load("penicillin")
    both = bundled("penicillin", PENICILLIN)
    plates, samples = (quietly(f"diameter ~ 1 + (1 | {g})", data) for g in ("plate", "sample"))
    test = jm.lrtest(plates, both)
    # lme4 1.1-31: 282.3954.
    assert f"{test.statistic:.4f}" == "282.3954"
    assert (test.df, test.distribution) == (1, "chibar2(01)")
    assert both.lrtest(samples).df == 1
    linear = jm.lrtest(quietly("diameter ~ 1", data), both)
    assert f"{linear.statistic:.4f}" == "282.5695"
    assert (linear.df, linear.distribution) == (2, "chi2(2)")


def test_two_crossed_factors_are_no_special_cases_of_each_other() -> None:
    data = jm.datasets.load("penicillin")
    plates, samples = (quietly(f"diameter ~ 1 + (1 | {g})", data) for g in ("plate", "sample"))
    with pytest.raises(jm.DesignError, match="both models have 3 parameters"):
        jm.lrtest(plates, samples)
    items = quietly("y ~ x + (1 | item)", schools())
    with pytest.raises(jm.DesignError, match="no random term for item"):
        jm.lrtest(items, quietly("y ~ x + (1 | school/pupil)", schools()))


def test_a_table_of_crossed_models_tests_neighbours() -> None:
    data = jm.datasets.load("penicillin")
    formulas = ["diameter ~ 1", "diameter ~ 1 + (1 | sample)"]
    fits = [quietly(formula, data) for formula in formulas]
    table = jm.compare(bundled("penicillin", PENICILLIN), *fits)
    assert table.index.tolist() == [2, 3, 1]
    assert table["num_params"].tolist() == [2, 3, 4]
    assert table["distribution"].tolist() == ["", "chibar2(01)", "chibar2(01)"]
    assert (np.diff(table["llf"]) > 0).all()
    np.testing.assert_allclose(table["statistic"].iloc[1:], 2 * np.diff(table["llf"]))


# Plots


def test_every_factor_has_its_caterpillar() -> None:
    fit = schools_fit()
    assert fit.plot.caterpillar().get_title(loc="left").strip() == "item: (Intercept)"
    for label, table in fit.ranef().items():
        ax = fit.plot.caterpillar(label)
        assert ax.get_title(loc="left").strip() == f"{label}: (Intercept)"
        assert f"of {len(table)} exclude zero" in ax.get_title(loc="right")
        order = table["(Intercept)"].sort_values(kind="stable").index
        assert [text.get_text() for text in ax.get_yticklabels()] == list(order)

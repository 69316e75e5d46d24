"""Tests and estimates of linear functions of coefficients: closed forms, redundancy, contradictions."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jaxmixed as jm
from tests.support.fits import aliased, fit, quietly, sleepstudy

P = 4


@cache
def oats() -> jm.MixedResults:
    """Coefficients: (Intercept), VarietyMarvellous, VarietyVictory, nitro."""
    return fit("oats", "yield ~ Variety + nitro + (1 | Block/Variety)")


def wald(L: np.ndarray, rhs: np.ndarray | float) -> float:
    """The quadratic form by the inverse of the covariance."""
    found = oats()
    values = L @ found.params.to_numpy() - rhs
    return float(values @ np.linalg.inv(L @ found.cov_params().to_numpy() @ L.T) @ values)


@pytest.mark.parametrize(
    ("hypothesis", "L", "rhs"),
    [
        ("nitro", [[0, 0, 0, 1]], 0),
        ("nitro = 60", [[0, 0, 0, 1]], 60),
        ("Variety", np.eye(P)[1:3], 0),
        ("VarietyVictory = VarietyMarvellous = 0", np.eye(P)[1:3], 0),
        ("(Intercept) = 80, nitro/2 = 35", np.eye(P)[[0, 3]], [80, 70]),
        ("2*VarietyVictory - nitro = -100, _cons + nitro = 150", [[0, 0, 2, -1], [1, 0, 0, 1]], [-100, 150]),
    ],
)
def test_the_statistic_is_the_quadratic_form(hypothesis: str, L: object, rhs: object) -> None:
    matrix, values = np.asarray(L, dtype=float), np.asarray(rhs, dtype=float)
    (row,) = oats().test(hypothesis).itertuples()
    chi2 = wald(matrix, values)
    assert row.num_df == len(matrix)
    assert row.den_df == np.inf
    assert row.statistic == pytest.approx(chi2, rel=1e-9)
    assert row.p_value == pytest.approx(stats.chi2.sf(chi2, len(matrix)), rel=1e-9)
    assert oats().test(matrix, rhs=values).iloc[0].tolist() == pytest.approx(list(row[1:]), rel=1e-9)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_one_function_is_tested_by_the_square_of_t(ddf: str) -> None:
    table = oats().coef_table(ddf).loc["nitro"]
    found = oats().test("nitro", ddf=ddf)
    assert found.attrs["distribution"] == "F"
    assert found["num_df"].item() == 1
    assert found["den_df"].item() == pytest.approx(table["df"], rel=1e-9)
    assert found["statistic"].item() == pytest.approx(table["statistic"] ** 2, rel=1e-9)
    assert found["p_value"].item() == pytest.approx(table["p_value"], rel=1e-7)


def test_equivalent_forms_are_one_test() -> None:
    expected = oats().test("VarietyMarvellous = VarietyVictory, nitro = 70").iloc[0]
    forms: list[tuple[object, object]] = [
        (["VarietyMarvellous - VarietyVictory", "nitro - 70"], None),
        ([{"VarietyMarvellous": 1, "VarietyVictory": -1}, {"nitro": 1}], [0, 70]),
        (pd.DataFrame({"VarietyMarvellous": [1, 0], "VarietyVictory": [-1, 0], "nitro": [0, 2]}), [0, 140]),
        (np.array([[0, 1e6, -1e6, 0], [0, 0, 0, 1e-6]]), [0, 7e-5]),
        ("nitro - 70, 3*VarietyVictory = 3*VarietyMarvellous + nitro - 70", None),
    ]
    for hypothesis, rhs in forms:
        found = oats().test(hypothesis, rhs=rhs).iloc[0]
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-7)


def test_what_the_others_imply_is_left_out_and_told() -> None:
    found = oats().test(
        "VarietyVictory = 0, VarietyMarvellous = 0, VarietyVictory = VarietyMarvellous, nitro"
    )
    assert found["num_df"].item() == 3
    assert found.attrs["hypotheses"] == ["VarietyVictory = 0", "VarietyMarvellous = 0", "nitro = 0"]
    assert "left out, since the others imply it: VarietyVictory = VarietyMarvellous" in found.attrs["note"]
    alone = oats().test("Variety, nitro")
    assert found.iloc[0].tolist() == pytest.approx(alone.iloc[0].tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("hypothesis", "named"),
    [
        ("nitro = 1, nitro = 2", ["nitro = 2", "nitro = 1"]),
        ("Variety = 0, nitro = 1, VarietyVictory = nitro", ["VarietyVictory = nitro", "nitro = 1"]),
        (["nitro", "2*nitro = 1e-9"], ["2*nitro = 1e-9", "nitro = 0"]),
    ],
)
def test_contradictions_are_refused_by_name(hypothesis: object, named: list[str]) -> None:
    with pytest.raises(jm.DataError, match="contradict each other") as caught:
        oats().test(hypothesis)
    assert all(repr(name) in str(caught.value) for name in named)
    assert "VarietyMarvellous" not in str(caught.value)


def test_thirds_do_not_contradict_themselves() -> None:
    assert oats().test("nitro/3 = 0.1, nitro = 0.3, 10*nitro = 1 + 1 + 1")["num_df"].item() == 1


@pytest.mark.parametrize(
    ("rhs", "message"),
    [
        ([1, 2], "one for each of 1 rows"),
        ("a", "one finite number"),
        (np.nan, "one finite number"),
        ([[1.0]], "one finite number"),
    ],
)
def test_values_that_do_not_fit_are_refused(rhs: object, message: str) -> None:
    with pytest.raises(jm.DataError, match=message):
        oats().test("nitro", rhs=rhs)
    with pytest.raises(jm.DataError, match="rhs= is for hypotheses without an equals sign"):
        oats().test("nitro = 1", rhs=1)


def test_the_printed_test_says_what_it_is() -> None:
    assert repr(oats().test("Variety")).endswith(
        "Note: H0: VarietyMarvellous = 0, VarietyVictory = 0; statistic: chi-squared(2)"
    )
    text = " ".join(repr(oats().test("nitro = 70", ddf="satterthwaite")).split())
    assert "H0: nitro = 70; statistic: F(1, 53)" in text
    assert "Satterthwaite" in text


def test_robust_errors_take_the_place_of_the_models() -> None:
    robust = oats().robust("CR2")
    table = oats().coef_table(vcov=robust)
    row = oats().test("nitro = 70", vcov=robust).iloc[0]
    expected = (table.loc["nitro", "estimate"] - 70) / table.loc["nitro", "std_error"]
    assert row["statistic"] == pytest.approx(expected**2, rel=1e-9)
    assert oats().lincom("nitro", vcov=robust).iloc[0].tolist() == pytest.approx(table.loc["nitro"].tolist())


# Dropped columns


def test_coefficients_beside_a_dropped_one_keep_their_tests() -> None:
    found = aliased()
    table = found.coef_table("satterthwaite").loc["Days"]
    test = found.test("Days", ddf="satterthwaite")
    assert test["statistic"].item() == pytest.approx(table["statistic"] ** 2)
    assert test["den_df"].item() == pytest.approx(table["df"])
    assert found.lincom("Days", ddf="satterthwaite").iloc[0].tolist() == pytest.approx(table.tolist())


def test_a_dropped_coefficient_cannot_be_tested() -> None:
    for ask in (aliased().test, aliased().lincom):
        for spec in ("Days2", "Days - Days2", [[0.0, 0.0, 1.0]]):
            with pytest.raises(jm.DataError, match="no estimate of 'Days2'"):
                ask(spec)


def test_of_a_term_what_was_not_dropped_is_tested() -> None:
    data = jm.datasets.load("sleepstudy")
    data["phase"] = pd.cut(data["Days"], [-1, 2, 5, 9], labels=["a", "b", "c"]).astype(str)
    data["late"] = 1.0 * (data["phase"] == "c")
    found = quietly("Reaction ~ late + phase + (1 | Subject)", data)
    test = found.test("phase")
    assert test["num_df"].item() == 1
    assert "left out, since dropped from the model: phasec" in " ".join(test.attrs["note"].split())
    assert test["statistic"].item() == pytest.approx(found.test("phaseb")["statistic"].item())


# Linear combinations


def test_single_coefficients_are_rows_of_the_table() -> None:
    table = oats().coef_table("satterthwaite", level=0.9)
    found = oats().lincom(list(table.index), level=0.9, ddf="satterthwaite")
    pd.testing.assert_frame_equal(found, table)


def test_a_combination_by_hand() -> None:
    weights = np.array([1.0, 0, 0.5, 2])
    row = oats().lincom("(Intercept) + VarietyVictory/2 + 2*nitro").iloc[0]
    estimate = weights @ oats().params.to_numpy()
    std_error = np.sqrt(weights @ oats().cov_params().to_numpy() @ weights)
    assert row["estimate"] == pytest.approx(estimate)
    assert row["std_error"] == pytest.approx(std_error)
    assert row["statistic"] == pytest.approx(estimate / std_error)
    assert row["conf_high"] == pytest.approx(estimate + stats.norm.ppf(0.975) * std_error)


def test_a_constant_shifts_the_estimate_and_what_is_tested() -> None:
    plain, shifted = oats().lincom("nitro").iloc[0], oats().lincom("2*nitro - 140").iloc[0]
    for column in ("estimate", "conf_low", "conf_high"):
        assert shifted[column] == pytest.approx(2 * plain[column] - 140)
    assert shifted["std_error"] == pytest.approx(2 * plain["std_error"])
    assert shifted["statistic"] ** 2 == pytest.approx(oats().test("nitro = 70")["statistic"].item())


def test_expressions_have_the_labels_they_were_given() -> None:
    found = sleepstudy().lincom({"on day 5": "_cons + 5*Days", "per week": "7*Days"}, ddf="satterthwaite")
    assert list(found.index) == ["on day 5", "per week"]
    assert found.loc["per week", "estimate"] == pytest.approx(7 * sleepstudy().params["Days"])
    assert list(sleepstudy().lincom("_cons  + 5*Days, Days").index) == ["_cons + 5*Days", "Days"]


def test_an_equation_is_sent_to_test() -> None:
    with pytest.raises(jm.FormulaError, match=r"'nitro = 3' is an equation: test\(\) tests it"):
        oats().lincom("Variety, nitro = 3")
    with pytest.raises(jm.FormulaError, match="is an equation"):
        oats().lincom("Variety = 3")

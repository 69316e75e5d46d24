"""Analysis of variance: against comparisons of models, the definition of each type, and other codings."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.linalg import null_space

import jaxmixed as jm
from jaxmixed import anova, basis
from jaxmixed.anova import indicator_maps, triangular_factor
from jaxmixed.frame import build_frame
from tests.support.fits import fit, quietly, sleepstudy

THREE_WAY = {
    **{"a": {"a:b", "a:c", "a:b:c"}, "b": {"a:b", "b:c", "a:b:c"}, "c": {"a:c", "b:c", "a:b:c"}},
    **{"a:b": {"a:b:c"}, "a:c": {"a:b:c"}, "b:c": {"a:b:c"}},
}
CODINGS = ({}, {"a": "sum", "b": "helmert"}, {"a": "poly", "b": "sum"})


@cache
def unbalanced() -> pd.DataFrame:
    """Two factors, a boolean, two covariates and a group; every cell of a, b and c occurs, none as often."""
    rng = np.random.default_rng(5)
    a, b, c = (np.array(values) for values in zip(*product("123", "1234", [False, True]), strict=True))
    more = rng.choice(24, 126, p=np.arange(1, 25) / 300)  # of each cell at least one
    cell = np.concatenate([np.arange(24), more])
    n = len(cell)
    data = pd.DataFrame(
        {
            "a": np.char.add("a", a)[cell],
            "b": np.char.add("b", b)[cell],
            "c": c[cell],
            "x": rng.normal(size=n),
            "z": rng.uniform(0, 50, n),
            "g": [f"g{i % 15}" for i in range(n)],
        }
    )
    group = rng.normal(size=15)
    data["y"] = data["x"] + data["a"].str[1].astype(float) + group[np.arange(n) % 15] + rng.normal(size=n)
    return data


def without_cells(data: pd.DataFrame) -> pd.DataFrame:
    """No rows in three cells of a and b, among them the first."""
    empty = [("a1", "b1"), ("a3", "b4"), ("a3", "b1")]
    return data[[cell not in empty for cell in zip(data["a"], data["b"], strict=True)]]


@cache
def linear(formula: str, cells: str = "all", coding: int = 0) -> jm.MixedResults:
    data = unbalanced() if cells == "all" else without_cells(unbalanced())
    used = {name: kind for name, kind in CODINGS[coding].items() if name in formula}
    return quietly(formula, data, contrasts=used)


def residual_sum(X: np.ndarray, y: np.ndarray) -> float:
    rest = y - X @ np.linalg.lstsq(X, y)[0]
    return float(rest @ rest)


def statistics(table: pd.DataFrame) -> np.ndarray:
    return table[["sum_sq", "mean_sq", "num_df", "statistic", "p_value"]].to_numpy()


# Sums of squares of linear models are differences of residual sums of squares


@pytest.mark.parametrize(
    ("formula", "containing"),
    [
        ("y ~ a * b", {"a": {"a:b"}, "b": {"a:b"}}),
        ("y ~ a + b + x + z", {}),
        ("y ~ x * a + z", {"x": {"x:a"}}),
        ("y ~ a * c", {"a": {"a:c"}, "c": {"a:c"}}),
        ("y ~ (a + c) * x", {"x": {"a:x", "c:x"}}),
        ("y ~ a * b * c", THREE_WAY),
    ],
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 2])
def test_sums_of_squares_of_types_1_and_2_compare_nested_models(
    formula: str, containing: dict[str, set[str]], number: int
) -> None:
    found = linear(formula)
    frame = found.frame
    assign, labels = np.array(frame.x_assign), list(frame.term_labels)
    table = found.anova(number, ddf="none")
    assert list(table.index) == labels
    for position, label in enumerate(labels, start=1):
        others = containing.get(label, set())
        before = [
            k
            for k, other in enumerate(labels, start=1)
            if (k < position if number == 1 else k != position and other not in others)
        ]
        without = frame.X[:, np.isin(assign, [0, *before])]
        with_term = frame.X[:, np.isin(assign, [0, *before, position])]
        expected = residual_sum(without, frame.y) - residual_sum(with_term, frame.y)
        row = table.loc[label]
        assert row["sum_sq"] == pytest.approx(expected, rel=1e-7), label
        assert row["mean_sq"] == pytest.approx(expected / row["num_df"], rel=1e-7)
        assert row["statistic"] == pytest.approx(row["mean_sq"] / found.sigma**2, rel=1e-9)
        assert row["num_df"] == np.sum(assign == position)


@pytest.mark.parametrize("formula", ["y ~ a * b", "y ~ a * b * x", "y ~ a * b * c", "y ~ 0 + a * b + x"])
def test_sums_of_squares_of_type_3_drop_the_columns_of_sum_coding(formula: str) -> None:
    names = [name for name in "abc" if name in formula]
    coded = build_frame(formula, unbalanced(), contrasts=dict.fromkeys(names, "sum"))
    table = linear(formula).anova(3, ddf="none")
    for position, label in enumerate(coded.term_labels, start=1):
        if "0" in formula and label == "a":  # its columns make the intercept as well
            continue
        own = np.array(coded.x_assign) == position
        expected = residual_sum(coded.X[:, ~own], coded.y) - residual_sum(coded.X, coded.y)
        assert table.loc[label, "sum_sq"] == pytest.approx(expected, rel=1e-7), label


# The definition: estimable functions of the parameters of all cells


def indicators(data: pd.DataFrame, labels: tuple[str, ...]) -> np.ndarray:
    """Indicators of all combinations of levels, times the numeric variables."""
    pieces = []
    for label in labels:
        values = data[label]
        if values.dtype == np.float64:
            pieces.append(values.to_numpy()[:, None])
        else:
            pieces.append(np.stack([values == level for level in sorted(values.unique())], axis=1) * 1.0)
    return np.stack(
        [np.prod(columns, axis=0) for columns in product(*(p.T for p in reversed(pieces)))], axis=1
    )


def within(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Basis of the combinations of rows that are zero outside some positions."""
    outside = np.delete(rows, positions, axis=1)
    return null_space(outside.T, rcond=1e-9).T @ rows if outside.size else rows


def type_3_by_definition(
    data: pd.DataFrame, terms: list[tuple[str, ...]], found: jm.MixedResults
) -> dict[str, tuple[int, float]]:
    """Number of functions and chi-squared of each term, from the parameters of all cells."""
    blocks = [np.ones((len(data), 1)), *(indicators(data, term) for term in terms)]
    D = np.hstack(blocks)
    edges = np.cumsum([block.shape[1] for block in blocks])
    places = [np.arange(stop - block.shape[1], stop) for stop, block in zip(edges, blocks, strict=True)][1:]
    X, params = found.frame.X, found.params.to_numpy()
    kept = ~np.isnan(params)
    to_beta = np.linalg.lstsq(X[:, kept], D)[0]  # beta = to_beta theta
    cov = found.cov_params().to_numpy()[np.ix_(kept, kept)]
    numeric = [{label for label in term if data[label].dtype == np.float64} for term in terms]
    results = {}
    for number, term in enumerate(terms):
        above = [
            places[k]
            for k, other in enumerate(terms)
            if set(term) < set(other) and numeric[k] == numeric[number]
        ]
        higher = np.concatenate(above) if above else np.zeros(0, dtype=int)
        functions = within(to_beta, np.concatenate([places[number], higher]))
        if len(higher):
            basis = np.linalg.svd(within(to_beta, higher), full_matrices=False)[2]
            basis = basis[: np.linalg.matrix_rank(within(to_beta, higher), tol=1e-8)]
            functions = functions - functions @ basis.T @ basis
        _, sizes, directions = np.linalg.svd(functions, full_matrices=False)
        hypotheses = directions[sizes > 1e-8 * max(1.0, sizes.max(initial=0.0))]
        # A function h of theta is the function w of beta with w to_beta = h.
        L = np.linalg.lstsq(to_beta.T, hypotheses.T)[0].T
        values = L @ params[kept]
        chi2 = values @ np.linalg.solve(L @ cov @ L.T, values) if len(L) else np.nan
        results[":".join(term)] = len(L), float(chi2)
    return results


@pytest.mark.parametrize("coding", range(len(CODINGS)))
@pytest.mark.parametrize("cells", ["all", "some"])
@pytest.mark.parametrize(
    ("formula", "terms"),
    [
        ("y ~ a * b", [("a",), ("b",), ("a", "b")]),
        ("y ~ a / b", [("a",), ("a", "b")]),
        ("y ~ x * a + a * b", [("x",), ("a",), ("b",), ("x", "a"), ("a", "b")]),
        ("y ~ x + a:x", [("x",), ("x", "a")]),
    ],
)
def test_type_3_is_what_its_definition_says_in_every_coding(
    formula: str, terms: list[tuple[str, ...]], cells: str, coding: int
) -> None:
    data = unbalanced() if cells == "all" else without_cells(unbalanced())
    found = linear(formula, cells, coding)
    table = found.anova(3, ddf="none")
    expected = type_3_by_definition(data, terms, found)
    assert list(table["num_df"]) == [num_df for num_df, _ in expected.values()]
    chi2 = table["statistic"] * table["num_df"]
    np.testing.assert_allclose(chi2, [value for _, value in expected.values()], rtol=1e-6)


# Mixed models


@cache
def two_factors(coding: int, method: str = "reml") -> jm.MixedResults:
    return quietly("y ~ a * b + x + (1 | g)", unbalanced(), contrasts=CODINGS[coding], method=method)


@pytest.mark.parametrize("ddf", ["none", "kenward-roger"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_coding_of_factors_does_not_matter(number: int, ddf: str) -> None:
    expected = two_factors(0).anova(number, ddf)
    for coding in (1, 2):
        found = two_factors(coding).anova(number, ddf)
        np.testing.assert_allclose(statistics(found), statistics(expected), rtol=1e-5)
        np.testing.assert_allclose(found["den_df"], expected["den_df"], rtol=1e-5)


def test_the_first_level_does_not_matter_with_empty_cells() -> None:
    data = without_cells(unbalanced())
    other = data.assign(
        a=pd.Categorical(data["a"], ["a3", "a1", "a2"]), b=pd.Categorical(data["b"], ["b2", "b4", "b3", "b1"])
    )
    tables = [quietly("y ~ a * b + x + (1 | g)", one).anova(3, "none") for one in (data, other)]
    assert list(tables[0]["num_df"]) == [2, 3, 1, 3]
    assert "columns of a:b were dropped (empty cells?)" in tables[0].attrs["note"]
    np.testing.assert_allclose(statistics(tables[0]), statistics(tables[1]), rtol=1e-5)


def test_terms_that_none_contains_compare_generalised_least_squares_fits() -> None:
    found = two_factors(0)
    frame = found.frame
    same_group = frame.groups[0].codes[:, None] == frame.groups[0].codes
    V = found.sigma**2 * np.eye(len(frame.y)) + found.random_terms[0].cov.iloc[0, 0] * same_group
    root = np.linalg.cholesky(V)
    X, y = np.linalg.solve(root, frame.X), np.linalg.solve(root, frame.y)
    table = found.anova(2, ddf="none")
    for label in ("x", "a:b"):
        own = np.array(frame.x_assign) == frame.term_labels.index(label) + 1
        expected = residual_sum(X[:, ~own], y) - residual_sum(X, y)
        assert table.loc[label, "statistic"] * own.sum() == pytest.approx(expected, rel=1e-6)


def test_of_balanced_data_all_types_are_one() -> None:
    data = jm.datasets.load("oats").assign(nitro=lambda d: d["nitro"].astype(str))
    found = quietly("yield ~ Variety * nitro + (1 | Block/Variety)", data)
    tables = [found.anova(number) for number in ("I", 2, "3")]
    for table in tables[1:]:
        np.testing.assert_allclose(table.to_numpy(), tables[0].to_numpy(), rtol=1e-7)
    # The classical split-plot analysis.
    np.testing.assert_allclose(tables[0]["den_df"], [10, 45, 45], rtol=1e-5)
    np.testing.assert_allclose(tables[0]["statistic"], [1.48534, 37.68565, 0.30282], atol=2e-4)


def test_one_degree_of_freedom_is_the_square_of_t() -> None:
    for ddf in ("satterthwaite", "kenward-roger", "none"):
        coefficient = sleepstudy().coef_table(ddf).loc["Days"]
        row = sleepstudy().anova(ddf=ddf).loc["Days"]
        assert row["statistic"] == pytest.approx(coefficient["statistic"] ** 2)
        assert row["den_df"] == pytest.approx(coefficient["df"])
        assert row["p_value"] == pytest.approx(coefficient["p_value"])


@pytest.mark.parametrize("ddf", ["residual", "between-within", "containment"])
def test_a_term_has_the_degrees_of_freedom_of_its_own_coefficients(ddf: str) -> None:
    found = fit("oats", "yield ~ nitro * Variety + (1 | Block/Variety)")
    own = found.coef_table(ddf)["df"]
    for number in (1, 3):
        table = found.anova(number, ddf)
        assert table.loc["nitro", "den_df"] == own["nitro"]
        assert table.loc["Variety", "den_df"] == own["VarietyVictory"]
        assert table.loc["nitro:Variety", "den_df"] == own["nitro:VarietyVictory"]
        expected = stats.f.sf(table["statistic"], table["num_df"], table["den_df"])
        np.testing.assert_allclose(table["p_value"], expected, rtol=1e-9)


def test_robust_errors_take_the_place_of_the_models() -> None:
    found = sleepstudy()
    robust = found.robust("CR0")
    row = found.anova(vcov=robust).loc["Days"]
    coefficient = found.coef_table(vcov=robust).loc["Days"]
    assert row["statistic"] == pytest.approx(coefficient["statistic"] ** 2)


def test_weights_and_offset_leave_the_hypotheses_alone() -> None:
    data = unbalanced().assign(w=lambda d: 1 + d["z"], o=lambda d: 3 * d["x"])
    found = quietly("y ~ a * b", data, weights="w", offset="o")
    plain = linear("y ~ a * b")
    for number in (1, 2, 3):
        table = found.anova(number, ddf="none")
        matrices = anova.term_hypotheses(plain.frame, plain.fixed_inference(), number)
        for L, statistic in zip(matrices, table["statistic"] * table["num_df"], strict=True):
            assert found.test(L)["statistic"].item() == pytest.approx(statistic, rel=1e-8)


# What is missing from a model


def test_a_model_without_terms_has_an_empty_table() -> None:
    for formula in ("Yield ~ 1 + (1 | Batch)", "Yield ~ 0 + (1 | Batch)"):
        table = quietly(formula, jm.datasets.load("dyestuff")).anova(ddf="none")
        assert table.shape == (0, 6)
        assert list(table.columns) == ["sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value"]
        assert "Type III" in repr(table)


def test_a_term_that_was_dropped_has_an_empty_row() -> None:
    data = jm.datasets.load("sleepstudy").assign(Days2=lambda d: 2 * d["Days"])
    found = quietly("Reaction ~ Days + Days2 + (Days | Subject)", data)
    for number in (1, 2, 3):
        table = found.anova(number)
        assert list(table["num_df"]) == [1, 0]
        assert table.loc["Days2"].drop("num_df").isna().all()
        expected = sleepstudy().anova(number).loc["Days"]
        np.testing.assert_allclose(table.loc["Days"].to_numpy(), expected.to_numpy(), rtol=1e-5)


def test_without_an_intercept_all_means_are_tested() -> None:
    table = fit("machines", "score ~ 0 + Machine + (1 | Worker)").anova(ddf="none")
    found = fit("machines", "score ~ 0 + Machine + (1 | Worker)")
    assert table.loc["Machine", "num_df"] == 3
    assert table.loc["Machine", "statistic"] * 3 == pytest.approx(found.test("Machine")["statistic"].item())


@pytest.mark.parametrize("wrong", [0, 4, "IV", None, True, 3.5, [3]])
def test_other_types_are_refused(wrong: object) -> None:
    with pytest.raises(jm.DataError, match=r"type is .*; choose 1 \(sequential\), 2 or 3"):
        sleepstudy().anova(wrong)  # type: ignore[arg-type]


def test_the_printed_table_says_what_it_is() -> None:
    assert "Note: Type III; Satterthwaite's df" in repr(sleepstudy().anova())
    assert "Note: Type I; statistic: chi-squared over num_df" in repr(sleepstudy().anova(1, "none"))
    assert sleepstudy().anova().index.name == "term"


# Pieces


FORMULAS = [
    "y ~ a * b * c",
    "y ~ a / b / c",
    "y ~ a:b",
    "y ~ a + a:b",
    "y ~ 0 + a + b",
    "y ~ 0 + a:b + a:c",
    "y ~ 0 + x + a:x",
    "y ~ a * x + b:x",
    "y ~ x * z * a",
    "y ~ (a + b + c)^2 + x",
    "y ~ a + b + a:b:c",
]


@pytest.mark.parametrize("coding", range(len(CODINGS)))
@pytest.mark.parametrize("formula", FORMULAS)
def test_indicators_of_cells_are_combinations_of_the_columns(formula: str, coding: int) -> None:
    data = unbalanced()
    used = {name: kind for name, kind in CODINGS[coding].items() if name in formula.split("~")[1]}
    frame = build_frame(formula, data, contrasts=used)
    maps = indicator_maps(frame.encoding.fixed, frame.encoding.factors)
    assert maps is not None
    for one in maps:
        if one.term:
            expected = indicators(data, one.labels)
            np.testing.assert_allclose(
                frame.X @ one.values, expected, atol=1e-12, err_msg=":".join(one.labels)
            )


def test_numeric_variables_of_several_columns_count_as_such() -> None:
    data = unbalanced()
    frame = build_frame("y ~ poly(x, 2) * a", data, contrasts={"a": "sum"})
    maps = indicator_maps(frame.encoding.fixed, frame.encoding.factors)
    assert maps is not None
    basis = build_frame("y ~ poly(x, 2)", data).X[:, 1:]
    expected = indicators(data, ("a",))[:, :, None] * basis[:, None, :]
    np.testing.assert_allclose(frame.X @ maps[-1].values, expected.reshape(len(data), -1), atol=1e-12)


def test_where_a_margin_is_missing_each_term_is_tested_as_it_is_coded() -> None:
    found = linear("y ~ x:z + x:a")  # as R, contrasts of a, although no term has x alone
    assert indicator_maps(found.frame.encoding.fixed, found.frame.encoding.factors) is None
    table = found.anova(3, ddf="none")
    for position, label in enumerate(table.index, start=1):
        own = [
            name for name, k in zip(found.frame.x_names, found.frame.x_assign, strict=True) if k == position
        ]
        chi2 = found.test(own)["statistic"].item()
        assert table.loc[label, "statistic"] * table.loc[label, "num_df"] == pytest.approx(chi2)


def test_the_triangular_factor_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(1).normal(size=(50, 4)) * [1, 1e6, 1e-6, 1]
    monkeypatch.setattr(basis, "BLOCK_ROWS", 7)
    factor, scale = triangular_factor(X, np.array([0, 1, 3]))
    gram = (factor * scale).T @ (factor * scale)
    np.testing.assert_allclose(gram, X[:, [0, 1, 3]].T @ X[:, [0, 1, 3]], rtol=1e-10)
    assert (np.tril(factor, -1) == 0).all()

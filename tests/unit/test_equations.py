"""The model as mathematics: well-formed MathML with the right symbols, indices and numbers."""

from __future__ import annotations

import warnings
from xml.etree.ElementTree import Element, fromstring

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.equations import constant_within, equations, index_key
from tests.support.fits import aliased, fit, quietly, sleepstudy

CORE = {
    "math",
    "mrow",
    "mi",
    "mn",
    "mo",
    "mtext",
    "mspace",
    "msub",
    "msup",
    "msubsup",
    "mtable",
    "mtr",
    "mtd",
}


def text_of(element: Element) -> str:
    """A formula as a line of text, rows of a matrix separated by semicolons."""
    parts = [text_of(child) for child in element]
    match element.tag:
        case "mi" | "mn" | "mtext":
            return element.text or ""
        case "mo":
            return f" {element.text} "
        case "mspace":
            return " "
        case "msub":
            return f"{parts[0]}_{parts[1]}"
        case "msup":
            return f"{parts[0]}^{parts[1]}"
        case "msubsup":
            return f"{parts[0]}_{parts[1]}^{parts[2]}"
        case "mtr":
            return " , ".join(parts)
        case "mtable":
            return " ; ".join(parts)
    return "".join(parts)


def written(found: jm.MixedResults) -> dict[str, list[str]]:
    """Lines of every equation by its title, without needless blanks."""
    lines = {}
    for title, mathml in equations(found):
        (table,) = fromstring(mathml)
        lines[title] = [" ".join("".join(text_of(cell) for cell in row).split()) for row in table]
    return lines


FITS = [
    ("sleepstudy", "Reaction ~ Days", None),
    ("sleepstudy", "Reaction ~ Days + (Days || Subject)", None),
    ("egsingle", "math ~ year + female + (year | schoolid/childid)", None),
    ("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)", None),
    ("machines", "score ~ Machine + (0 + Machine | Worker)", "exchangeable"),
    ("machines", "score ~ Machine + (0 + Machine | Worker)", "identity"),
    ("hsb82", "mathach ~ ses * sector + (1 + ses | school)", None),
]


@pytest.mark.parametrize(("name", "formula", "covariance"), FITS)
def test_equations_are_mathml_core(name: str, formula: str, covariance: str | None) -> None:
    for equation in equations(fit(name, formula, covariance=covariance)):
        root = fromstring(equation.mathml)
        assert root.tag == "math"
        assert {element.tag for element in root.iter()} <= CORE
        for element in root.iter():
            assert len(element) == {"msub": 2, "msup": 2, "msubsup": 3}.get(element.tag, len(element))
            assert not (element.tag in {"mi", "mn", "mo", "mtext"} and len(element)), "tokens hold text alone"


@pytest.mark.parametrize(("name", "formula", "covariance"), FITS)
def test_the_estimates_stand_in_the_estimated_equation(
    name: str, formula: str, covariance: str | None
) -> None:
    found = fit(name, formula, covariance=covariance)
    root = fromstring(equations(found)[-2].mathml)
    numbers = [float(element.text) for element in root.iter("mn") if "." in (element.text or "")]
    np.testing.assert_allclose(numbers, found.params.abs(), rtol=5e-4)
    variances = [float(element.text) for element in fromstring(equations(found)[-1].mathml).iter("mn")]
    for term in found.random_terms:
        for value in np.abs(term.cov.to_numpy()).ravel():
            assert np.isclose(variances, value, rtol=5e-4).any()
    assert np.isclose(variances, found.sigma**2, rtol=5e-4).any()


def test_two_levels_are_written_as_in_the_textbook() -> None:
    lines = written(sleepstudy())
    assert lines["Level 1: rows"] == ["Reaction_ij = β_0j + β_1j Days_ij + ε_ij"]
    assert lines["Level 2: Subject"] == ["β_0j = β_0 + u_0j", "β_1j = β_1 + u_1j"]
    assert lines["In one equation"] == ["Reaction_ij = β_0 + β_1 Days_ij + u_0j + u_1j Days_ij + ε_ij"]
    assert lines["Random effects and residuals"] == [
        "( u_0j ; u_1j ) ∼ N ( 0 , ( τ_u0^2 , τ_u01 ; τ_u01 , τ_u1^2 ) )",
        "ε_ij ∼ N ( 0 , σ^2 )",
    ]
    assert lines["Estimated"] == ["Reaction_ij = 251.4 + 10.47 Days_ij + u_0j + u_1j Days_ij + ε_ij"]
    assert index_key(sleepstudy()) == "i: row; j: Subject"


def test_covariates_of_a_level_explain_its_intercepts_and_slopes() -> None:
    lines = written(fit("hsb82", "mathach ~ ses * sector + (1 + ses | school)"))
    assert lines["Level 1: rows"] == ["mathach_ij = β_0j + β_1j ses_ij + ε_ij"]
    assert lines["Level 2: school"] == [
        "β_0j = β_0 + β_2 sectorCatholic_j + u_0j",
        "β_1j = β_1 + β_3 sectorCatholic_j + u_1j",
    ]


def test_three_levels_hand_each_coefficient_upwards() -> None:
    lines = written(fit("egsingle", "math ~ year + female + (year | schoolid/childid)"))
    assert lines["Level 1: rows"] == ["math_ijk = β_0jk + β_1jk year_ijk + ε_ijk"]
    assert lines["Level 2: schoolid:childid"][0] == "β_0jk = β_0k + β_2 female_jk + u_0jk"
    assert lines["Level 3: schoolid"] == ["β_0k = β_0 + v_0k", "β_1k = β_1 + v_1k"]
    assert " ".join(lines["Estimated"]).startswith("math_ijk = − 0.7892 + 0.7632 year_ijk")


def test_crossed_groupings_have_indices_of_their_own_and_no_levels() -> None:
    lines = written(fit("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"))
    assert "Level 1: rows" not in lines
    assert lines["In one equation"] == ["diameter_i(jk) = β_0 + u_0j + v_0k + ε_i(jk)"]


@pytest.mark.parametrize(
    ("covariance", "matrix"),
    [("exchangeable", "τ_u^2 [ ( 1 − ρ ) I + ρJ ]"), ("identity", "τ_u^2I")],
)
def test_structures_are_written_as_such(covariance: str, matrix: str) -> None:
    lines = written(fit("machines", "score ~ Machine + (0 + Machine | Worker)", covariance=covariance))
    assert lines["Random effects and residuals"][0].endswith(f"∼ N ( 0 , {matrix} )")


def test_independent_effects_have_zeros_between_them() -> None:
    lines = written(fit("sleepstudy", "Reaction ~ Days + (Days || Subject)"))
    assert "( τ_u0^2 , 0 ; 0 , τ_u1^2 )" in lines["Random effects and residuals"][0]


def test_aliased_columns_are_left_out_and_weights_and_offsets_written() -> None:
    assert "Days2" not in str(written(aliased()))
    data = jm.datasets.load("sleepstudy").assign(w=2.0)
    lines = written(quietly("Reaction ~ offset(Days) + (1 | Subject)", data, weights="w"))
    assert lines["Level 1: rows"] == ["Reaction_ij = β_0j + offset_ij + ε_ij"]
    assert lines["Random effects and residuals"][-1] == "ε_ij ∼ N ( 0 , σ^2 / w_ij )"


def test_many_columns_and_effects_are_shortened() -> None:
    rng = np.random.default_rng(0)
    columns = {f"x{j}": rng.normal(size=300) for j in range(30)}
    data = pd.DataFrame({"y": rng.normal(size=300), "g": np.arange(300) % 20, **columns})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = jm.mixed(f"y ~ {' + '.join(columns)} + (1 | g)", data)
    lines = written(found)
    assert "⋯" in " ".join(lines["In one equation"])
    assert max(map(len, lines["In one equation"])) < 110


def test_names_are_text_never_markup() -> None:
    hostile = "<script>alert(1)</script>"
    data = jm.datasets.load("sleepstudy").rename(columns={"Days": hostile, "Subject": "a&b <i>"})
    found = jm.mixed(f"Reaction ~ `{hostile}` + (1 | `a&b <i>`)", data)
    page = "".join(equation.mathml for equation in equations(found))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert hostile in str(written(found))


def test_constancy_within_levels_is_exact() -> None:
    codes = np.array([0, 0, 1, 1])
    assert constant_within(np.array([1.0, 1.0, 2.0, 2.0]), codes)
    assert not constant_within(np.array([1.0, 1.0 + 1e-12, 2.0, 2.0]), codes)

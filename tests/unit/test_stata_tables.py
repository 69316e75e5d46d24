"""Stata's layouts, compared with tables that Stata printed."""

from jaxmixed.stata_design import Design, DesignColumn, DesignTerm, Piece
from jaxmixed.stata_factors import Factor
from jaxmixed.stata_tables import (
    Row,
    coefficient_table,
    effect_lines,
    ends,
    group_sizes,
    grouping_table,
    header,
    note,
)


def factor(name: str, *levels: tuple[float, str], labelled: bool = True) -> DesignTerm:
    columns = tuple(DesignColumn((Piece(name, level),), label) for level, label in levels)
    return DesignTerm((Factor(name, True),), name, columns, labelled)


def plain(name: str) -> DesignTerm:
    return DesignTerm((Factor(name, False),), name, (DesignColumn((Piece(name),), name),), False)


def table(*terms: DesignTerm, response: str = "y", omitted: tuple[str, ...] = ()) -> list[str]:
    design = Design(terms, True)
    row = (0.5, 0.25, 2.0, 0.0455, 0.01, 0.99)
    rows = {name: Row(name, *row) for name in design.names if name not in omitted}
    return [line.split("|")[0] for line in coefficient_table(response, effect_lines(design, rows, omitted))]


def test_factors_stand_under_their_names_with_blank_lines_around_them() -> None:
    # Stata's melogit c_use i.urban age i.children: one level has no blank line after it, several have.
    found = table(
        factor("urban", (1, "Urban")), plain("age"), factor("children", (1, "1 child"), (2, "2 children"))
    )
    assert [line.strip() for line in found[3:-1]] == [
        "urban", "Urban", "age", "", "children", "1 child", "2 children", "", "_cons",
    ]  # fmt: skip
    assert found[4] == "      Urban  "
    assert found[5] == "         age "


def test_a_single_level_without_a_label_has_one_line() -> None:
    found = table(factor("block", (2, "2"), labelled=False))
    assert [line.strip() for line in found[3:-1]] == ["2.block", "_cons"]


def test_products_have_blank_lines_around_them() -> None:
    age = (Factor("age", False), Factor("age", False))
    squared = DesignTerm(
        age, "c.age#c.age", (DesignColumn((Piece("age"), Piece("age")), "c.age#c.age"),), False
    )
    found = table(plain("age"), squared, plain("ttl_exp"))
    assert [line.strip() for line in found[3:-1]] == ["age", "", "c.age#c.age", "", "ttl_exp", "_cons"]


def test_long_products_are_broken_after_the_sign() -> None:
    pieces = (Factor("ttl_exp", False), Factor("ttl_exp", False))
    column = DesignColumn((Piece("ttl_exp"), Piece("ttl_exp")), "c.ttl_exp#c.ttl_exp")
    found = table(DesignTerm(pieces, "c.ttl_exp#c.ttl_exp", (column,), False))
    # As Stata prints c.weight#c.weight: the sign touches the line.
    assert found[3:5] == ["   c.ttl_exp#", "   c.ttl_exp "]


def test_long_names_are_shortened_and_long_labels_cut() -> None:
    assert table(plain("log_retail_emp"))[3].strip() == "log_retail~p"
    assert table(factor("children", (3, "3 or more children")))[4].strip() == "3 or more c.."


def test_tables_of_factors_are_as_wide_as_their_labels_need() -> None:
    # Stata's mixed sleep i.group##i.month: Medication#2 makes the table one character wider.
    group = (Factor("group", True), Factor("month", True))
    column = DesignColumn((Piece("group", 1), Piece("month", 2)), "Medication#2")
    found = coefficient_table("sleep", effect_lines(
        Design((DesignTerm(group, "group#month", (column,), True),), False),
        {"1.group#2.month": Row("", 41.98, 11.93, 3.52, 0.0, 18.58, 65.37)},
    ))  # fmt: skip
    assert found[0] == "-" * 79
    assert found[2] == "-" * 14 + "+" + "-" * 64
    assert found[4] == ("Medication#2  |      41.98      11.93     3.52   0.000        18.58       65.37")


def test_omitted_coefficients_are_zero() -> None:
    design = Design((plain("black"), plain("x")), True)
    rows = {
        "x": Row("x", 1.0, 0.5, 2.0, 0.0455, 0.0, 2.0),
        "_cons": Row("_cons", 1.0, 0.5, 2.0, 0.0455, 0.0, 2.0),
    }
    assert "       black |          0  (omitted)" in coefficient_table(
        "y", effect_lines(design, rows, ["black"])
    )


def test_robust_standard_errors_are_announced() -> None:
    found = coefficient_table(
        "lwage", [Row("union", 0.1, 0.05, 2.0, 0.0455, 0.0, 0.2)], statistic="t", robust=True
    )
    assert found[1:3] == [
        "             |               Robust",
        "       lwage | Coefficient  std. err.      t    P>|t|     [95% conf. interval]",
    ]


def test_headers_align_labels_and_values_on_the_right() -> None:
    # As Stata printed it: mixed score i.block || part_id:
    found = header(
        ["Mixed-effects ML regression", "Group variable: part_id", *[""] * 5, "Log likelihood = -571.16866"],
        [("Number of obs", "320"), ("Number of groups", "40"), *group_sizes(8, 8.0, 8),
         ("Wald chi2(1)", "1.52"), ("Prob > chi2", "0.2173")],
    )  # fmt: skip
    assert found == [
        "Mixed-effects ML regression                          Number of obs    =    320",
        "Group variable: part_id                              Number of groups =     40",
        "                                                     Obs per group:",
        "                                                                  min =      8",
        "                                                                  avg =    8.0",
        "                                                                  max =      8",
        "                                                     Wald chi2(1)     =   1.52",
        "Log likelihood = -571.16866                          Prob > chi2      = 0.2173",
    ]


def test_several_groupings_have_a_table() -> None:
    assert grouping_table([("region", 9, 51, 90.667, 136), ("state", 48, 17, 17.0, 17)]) == [
        "        Grouping information",
        "        -------------------------------------------------------------",
        "                        |     No. of       Observations per group",
        "         Group variable |     groups    Minimum    Average    Maximum",
        "        ----------------+--------------------------------------------",
        "                 region |          9         51       90.7        136",
        "                  state |         48         17       17.0         17",
        "        -------------------------------------------------------------",
    ]


def test_the_line_of_the_test_ends_at_the_right_margin() -> None:
    found = ends("LR test vs. linear model: chi2(3) = 0.28", "Prob > chi2 = 0.9636")
    assert found == "LR test vs. linear model: chi2(3) = 0.28                  Prob > chi2 = 0.9636"


def test_notes_are_wrapped_below_their_first_word() -> None:
    found = note("Note: " + "word " * 20)
    assert len(found) == 2
    assert found[1].startswith("      word")
    assert max(map(len, found)) <= 78

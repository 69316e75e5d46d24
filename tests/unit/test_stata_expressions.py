"""Stata's expressions: precedence, missing values, texts, subscripts, results; against Python and R."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmixed.errors import StataError
from jaxmixed.stata_expressions import Rows, evaluate, one_by_one, uses_itself
from jaxmixed.stata_syntax import parse
from jaxmixed.stata_trees import read

FRAME = pd.DataFrame(
    {
        "g": [1.0, 1.0, 2.0, 2.0, 2.0],
        "x": [1.0, 2.0, np.nan, 4.0, 5.0],
        "name": pd.Series(["a", "b", "", "ab", "ä"], dtype=object),
    }
)


def rows_of(text, **more):
    line = parse(f"replace z = {text}")[0]
    return Rows(line, FRAME, **more), line.arguments[2:]


def value(text, **more):
    rows, tokens = rows_of(text, **more)
    return rows.spread(evaluate(rows, tokens))


def number(text, **more):
    """An expression that is the same in all rows; None if missing."""
    found = float(value(text, **more)[0])
    return None if math.isnan(found) else found


class TestOperators:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("-2^2", -4),
            ("2^-1", 0.5),
            ("2^3^2", 64),
            ("!0^2", 1),
            ("-2*-3", 6),
            ("1 - 2 - 3", -4),
            ("8/2/2", 2),
            ("8/2*4", 16),
            ("2 + 3*4^2", 50),
            ("1 + 1 == 2", 1),
            ("1 < 2 < 2", 1),
            ("1 | 0 & 0", 1),
            ("!1 | 1", 1),
            ("~(1 == 2)", 1),
            ("1 != 2 & 1 ~= 1", 0),
            ("3 > 2 == 1", 1),
            ("(1 + 2)*3", 9),
            ("1e3 + .5", 1000.5),
            ("-(-3)", 3),
            ("+3", 3),
            ("_pi", math.pi),
        ],
    )
    def test_precedence(self, text, expected):
        assert number(text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (". == .", 1),
            (". > 1e300", 1),
            (". >= .", 1),
            ("1 < .", 1),
            ("!.", 0),
            (". & 1", 1),
            ("0 | .", 1),
            ("1 + .", None),
            ("-.", None),
            (".^0", None),
            ("1/0", None),
            ("0/0", None),
            ("10^400", None),
            ("(-8)^(1/3)", None),
            ("log(0)", None),
            ("sqrt(-1)", None),
            ("max(1, .)", 1),
            ("min(., .)", None),
            ("missing(1, .)", 1),
            ("cond(., 1, 2)", 1),
            ("cond(., 1, 2, 3)", 3),
            ("inrange(., 1, 2)", 0),
            ("inrange(5, 1, .)", 1),
            ("inlist(., 1, .)", 1),
        ],
    )
    def test_missing_numbers(self, text, expected):
        assert number(text) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("int(-2.7)", -2),
            ("floor(-2.7)", -3),
            ("ceil(-2.7)", -2),
            ("round(5.2)", 5),
            ("round(-5.2, 1)", -5),
            ("round(2.5)", 3),
            ("round(17, 5)", 15),
            ("round(1.2345, .01)", 1.23),
            ("mod(7, 3)", 1),
            ("mod(-7, 3)", 2),
            ("mod(7, 0)", None),
            ("abs(-1.5)", 1.5),
            ("sign(-3)", -1),
            ("ln(exp(2))", 2),
            ("log10(1000)", 3),
            # R: pnorm(1.96), qnorm(.975), pchisq(3.84, 1, lower=FALSE), pt(-2, 10),
            # pf(4, 2, 20, lower=FALSE), qt(.975, 9), qchisq(.95, 2), dnorm(1), plogis(-2)
            ("normal(1.96)", 0.9750021048517795),
            ("invnormal(.975)", 1.959963984540054),
            ("chi2tail(1, 3.84)", 0.05004352124870519),
            ("ttail(10, 2)", 0.03669401738537018),
            ("Ftail(2, 20, 4)", 0.03457161303360777),
            ("invttail(9, .025)", 2.2621571627982049),
            ("invchi2(2, .95)", 5.991464547107979),
            ("normalden(1)", 0.2419707245191434),
            ("invlogit(-2)", 0.11920292202211755),
        ],
    )
    def test_functions(self, text, expected):
        found = number(text)
        assert found == expected or found == pytest.approx(expected, rel=1e-12)

    def test_texts(self):
        assert value('name + "!"').tolist() == ["a!", "b!", "!", "ab!", "ä!"]
        assert value('name == "a"').tolist() == [1, 0, 0, 0, 0]
        assert value('name < "b"').tolist() == [1, 0, 1, 1, 0]
        assert value("missing(name)").tolist() == [0, 0, 1, 0, 0]
        assert value("strlen(name)").tolist() == [1, 1, 0, 2, 1]
        assert value('cond(x > 2, "many", name)').tolist() == ["a", "b", "many", "many", "many"]
        assert value("substr(name, -1, 1)").tolist() == ["a", "b", "", "b", "ä"]
        assert value('substr("abcdef", 2, 3)')[0] == "bcd"
        assert value('substr("abcdef", 3, .)')[0] == "cdef"
        assert value("string(x)").tolist() == ["1", "2", ".", "4", "5"]
        assert value('real("2.5") + real("a")')[0] != value('real("2.5")')[0] == 2.5
        assert value('upper(subinstr("a-b-c", "-", "", 1))')[0] == "AB-C"
        assert value('strpos("school", "oo")')[0] == 4

    @pytest.mark.parametrize(
        ("text", "column", "message"),
        [
            ("1 +", 15, "nothing follows the '+'"),
            ("1 2", 15, "an operator is missing"),
            ("1 = 2", 15, "equality is written =="),
            ("(1 + 2", 13, "never closed"),
            ("* 2", 13, "'*' cannot stand here"),
            ("2x", 13, "a number runs into a name"),
            ("nothing + 1", 13, "there is no variable 'nothing'"),
            ('x + "a"', 15, "between a text and a number"),
            ('x == "a"', 15, "between a text and a number"),
            ("name == a", 21, "there is no variable 'a'"),
            ("name*2", 17, "between a text and a number"),
            ("-name", 13, "cannot have a sign"),
            ("!name", 13, "neither true nor false"),
            ("lgo(x)", 13, "lgo() is not a supported function: did you mean 'log'?"),
            ("runiform()", 13, "random numbers of Stata are not reproduced"),
            ("log(x, 2)", 13, "log() takes 1 argument, not 2"),
            ("log(name)", 17, "log() needs a number here, and this is a text"),
            ('cond(x, "a", 2)', 26, "cond() needs a text here"),
            ("substr(x, 1, 1)", 20, "needs a text here"),
            ("log(x,)", 19, "nothing stands before this ')'"),
            (".a", 13, "not told apart"),
            ("r(mean)", 13, "r() is empty"),
            ("e(N)", 13, "e() is empty"),
            ("_b[x]", 13, "there are no estimates"),
            ("2.g", 13, "write the indicator '2.g' as a comparison"),
            ("e(sample)", 13, "fit a model first"),
        ],
    )
    def test_errors_point_at_the_piece(self, text, column, message):
        with pytest.raises(StataError) as caught:
            value(text)
        assert message in str(caught.value)
        assert caught.value.column == column


class TestRows:
    def test_numbers_of_rows_and_subscripts(self):
        assert value("_n").tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(value("x[_n-1]"), [np.nan, 1, 2, np.nan, 4])
        np.testing.assert_array_equal(value("x[_N]"), [5] * 5)
        np.testing.assert_array_equal(value("x[0]"), [np.nan] * 5)
        assert value("name[_n+1]").tolist() == ["b", "", "ab", "ä", ""]

    def test_within_groups(self):
        assert value("_n", groups=("g",)).tolist() == [1, 2, 1, 2, 3]
        assert value("_N", groups=("g",)).tolist() == [2, 2, 3, 3, 3]
        np.testing.assert_array_equal(value("x[_n-1]", groups=("g",)), [np.nan, 1, np.nan, np.nan, 4])
        np.testing.assert_array_equal(value("x[_N]", groups=("g",)), [2, 2, 5, 5, 5])
        assert value("sum(x)", groups=("g",)).tolist() == [1, 3, 0, 4, 9]
        assert value("sum(x)").tolist() == [1, 3, 3, 7, 12]

    def test_replacing_by_its_own_other_rows_goes_row_by_row(self):
        rows, tokens = rows_of("cond(missing(x), x[_n-1], x)")
        assert uses_itself(read(rows.statement, tokens), "x", rows.variables)
        found = one_by_one(rows, read(rows.statement, tokens), "x", np.ones(5, bool))
        assert found.tolist() == [1, 2, 2, 4, 5]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("1/3", [1, 2, 3]), ("2", [2]), ("-2/l", [4, 5]), ("f/2", [1, 2]), ("l", [5]), ("-1", [5])],
    )
    def test_ranges(self, text, expected):
        line = parse(f"list in {text}")[0]
        assert (np.flatnonzero(Rows(line, FRAME).range(line.in_range)) + 1).tolist() == expected

    @pytest.mark.parametrize("text", ["0", "1/6", "3/2", "1/2/3", "1.5", "a", "x/2", "-9"])
    def test_ranges_outside_the_rows_are_refused(self, text):
        line = parse(f"list in {text}")[0]
        with pytest.raises(StataError, match="range"):
            Rows(line, FRAME).range(line.in_range)

    def test_results_and_coefficients(self):
        more = {
            "r": {"mean": 2.0}, "e": {"ll": -3.0, "cmd": "mixed"},
            "b": {"x": 1.5, "2.g": 4.0, "2.g#c.x": 7.0},
            "se": {"x": 0.5}, "scalars": {"a": 9.0}, "sample": np.array([True, False, True, False, True]),
        }  # fmt: skip
        assert number("r(mean) + e(ll)", **more) == -1
        assert value("e(cmd)", **more)[0] == "mixed"
        assert number("_b[x]/_se[x] + _b[2.g] + _coef[2.g#c.x]", **more) == 14
        assert number("a*2", **more) == 18
        assert value("e(sample)", **more).tolist() == [1, 0, 1, 0, 1]
        with pytest.raises(StataError, match=r"there is no coefficient 'z'; there are 'x', '2\.g'"):
            value("_b[z]", **more)

    def test_names_may_be_coefficients(self):
        rows, tokens = rows_of(
            "x + 2*2.g - 2.g#c.x", b={"x": 1.5, "2.g": 4.0, "2.g#c.x": 7.0}, coefficients=True
        )
        assert evaluate(rows, tokens)[0] == 2.5
        assert evaluate(replace(rows, b={"x": 0.0, "2.g": 1.0, "2.g#c.x": 0.0}), tokens)[0] == 2
        with pytest.raises(StataError, match="there is no coefficient 'g'"):
            evaluate(*rows_of("g", b={"x": 1.0}, coefficients=True))

    def test_no_rows(self):
        line = parse("generate z = x[_n-1] + 1")[0]
        rows = Rows(line, FRAME.iloc[:0])
        assert rows.spread(evaluate(rows, line.arguments[2:])).shape == (0,)


LEAVES = st.sampled_from(["0", "1", "2.5", "-3", ".", "7e2"])
TWO = ["+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">=", "&", "|"]


def trees():
    return st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(TWO), inner), st.tuples(st.sampled_from(["-", "!"]), inner)
        ),
        max_leaves=12,
    )


def written(tree):
    if isinstance(tree, str):
        return f"({tree})"
    return f"({''.join(piece if piece in (*TWO, '!') else written(piece) for piece in tree)})"


def meaning(tree):
    """The value of a tree by Stata's rules, without arrays: None is missing."""
    if isinstance(tree, str):
        return None if tree == "." else float(tree)
    if len(tree) == 2:
        inner = meaning(tree[1])
        if tree[0] == "!":
            return float(inner == 0)
        return None if inner is None else -inner
    left, operator, right = meaning(tree[0]), tree[1], meaning(tree[2])
    if operator in "&|":
        return float((left != 0 and right != 0) if operator == "&" else (left != 0 or right != 0))
    if operator in ("+", "-", "*", "/"):
        if left is None or right is None or (operator == "/" and right == 0):
            return None
        return {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1)}[operator]
    a, b = (math.inf if side is None else side for side in (left, right))
    table = {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}
    return float(table[operator])


@settings(max_examples=200, deadline=None)
@given(trees())
def test_any_expression_has_the_value_that_the_rules_give(tree):
    assert number(written(tree)) == meaning(tree)

"""Stata's language: comments, delimiters, the parts of a command, factor variables, errors that point."""

import random

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxmixed import stata_data, stata_describe, stata_egen
from jaxmixed.errors import FormulaError, StataError
from jaxmixed.stata_factors import terms
from jaxmixed.stata_frame import Variables
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import nested, number_of, parse
from jaxmixed.stata_tokens import Script, statements

NAMES = ("y", "ses", "race", "age", "arm", "x1", "x2", "x3", "school")


def words(text):
    return [[token.value for token in line[:-1]] for line in statements(Script(text))]


def fitted_levels(session, statement):
    """Stands for mixed: reads its lists and writes what it found."""
    variables = session.variables(statement)
    terms(statement, statement.arguments[1:], variables)
    rows = session.sample(statement)
    for level in statement.levels:
        terms(statement, level.arguments, variables)
    names = [statement.source(level.name) for level in statement.levels]
    session.write(f"{int(rows.sum())} rows, levels {names}, level {statement.number('level', 95):g}")


COMMANDS = {
    **stata_data.COMMANDS,
    **stata_egen.COMMANDS,
    **stata_describe.COMMANDS,
    "mixed": CommandSpec(
        "mixed",
        fitted_levels,
        options={"reml": ("reml", False), "level": ("l", True)},
        level_options={"covariance": ("cov", True), "noconstant": ("nocons", False)},
        condition=True,
        levels=True,
        weights=("pweight",),
    ),
    "estat icc": CommandSpec("estat icc", lambda session, statement: session.write("icc")),
    "estat ic": CommandSpec("estat ic", lambda session, statement: session.write("ic")),
}
DATA = pd.DataFrame(
    {
        "school": [1, 1, 2, 2, 2, 3],
        "y": [1.5, 2.5, 3.25, None, 4, 1e6],
        "name": ["a", "b", "b", None, "c", "ä"],
        "x1": range(6),
        "x2": [0, 1] * 3,
    }
)


class TestTokens:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("* comment\nsort x", [["sort", "x"]]),
            ("sort x // the rest", [["sort", "x"]]),
            ("sort /* inside /* nested */ */ x", [["sort", "x"]]),
            ("sort x ///\n  y", [["sort", "x", "y"]]),
            ("sort x /*\n*/ y", [["sort", "x", "y"]]),
            ("* comment ///\n that goes on\nsort x", [["sort", "x"]]),
            (
                "#delimit ;\nsort\n x;\n* a\n b; sort y;\n#delimit cr\nsort z",
                [["sort", "x"], ["sort", "y"], ["sort", "z"]],
            ),
            ("use http://a//b", [["use", "http", ":", "/", "/", "a", "/", "/", "b"]]),
            ('display "a // b" `"c "d" e"\'', [["display", "a // b", 'c "d" e']]),
            ("test 2.race 1.e5 .5 3.", [["test", "2", ".", "race", "1.e5", ".5", "3."]]),
            ("a||b != c ~= d ## e >= f", [["a", "||", "b", "!=", "c", "~=", "d", "##", "e", ">=", "f"]]),
            ("\r\nsort x\r\n\r\nsort größe\r\n", [["sort", "x"], ["sort", "größe"]]),
            ("", []),
        ],
    )
    def test_comments_delimiters_and_continuations(self, text, expected):
        assert words(text) == expected

    @pytest.mark.parametrize(
        ("text", "line", "column", "message"),
        [
            ("sort x\ngenerate z = `x'", 2, 14, "macros are not part of the subset"),
            ("display $x", 1, 9, "macros"),
            ('display "a `b\' c"', 1, 12, "write out what `b' stands for"),
            ("sort x\n/* open", 2, 1, "never closed: add the */"),
            ('display "open\nsort x', 1, 9, "never closed on its line"),
            ("#delimit ;\nsort x", 2, 6, "add the ';'"),
            ("sort x; sort y", 1, 7, "only after #delimit ;"),
            ("gen z = x \u2212 1", 1, 11, "MINUS SIGN (U+2212) only looks like '-'"),
            ("sort x\x00", 1, 7, "control character U+0000"),
            ("gen z = 1e999", 1, 9, "too large"),
        ],
    )
    def test_what_is_not_of_the_language_is_refused_where_it_stands(self, text, line, column, message):
        with pytest.raises(StataError) as caught:
            parse(text)
        assert message in str(caught.value)
        assert (caught.value.line, caught.value.column) == (line, column)

    def test_the_pointer_stands_under_the_piece(self):
        with pytest.raises(StataError) as caught:
            parse("sort x\n  mixed y (x || school:")
        first, shown, pointer = str(caught.value).split("\n")
        assert first.startswith("line 2, column 11: this '(' is never closed")
        assert shown[pointer.index("^")] == "("
        assert isinstance(caught.value, FormulaError)


class TestStatements:
    def test_all_parts_of_mixed(self):
        line = parse(
            "quietly mixed y ses if age > 2 & y < . in 1/10 [pw=w1*2], noconstant"
            " || school: ses, covariance(un) pweight(w2) || _all: R.race || class:, reml"
            " res(ar 1, t(week) by(x))"
        )[0]
        assert line.command == "mixed"
        assert [prefix.name for prefix in line.prefixes] == ["quietly"]
        assert line.source(line.arguments) == "y ses"
        assert line.source(line.condition) == "age > 2 & y < ."
        assert line.source(line.in_range) == "1/10"
        assert (line.weight.kind, line.source(line.weight.expression)) == ("pweight", "w1*2")
        assert [line.source(level.name) for level in line.levels] == ["school", "_all", "class"]
        assert [line.source(level.arguments) for level in line.levels] == ["ses", "R.race", ""]
        assert [option.name for option in line.options] == ["noconstant"]
        assert [option.name for option in line.levels[2].options] == ["reml", "res"]
        head, inner = nested(line.script, line.levels[2].options[1].argument)
        assert line.source(head) == "ar 1"
        assert [(option.name, line.source(option.argument)) for option in inner] == [
            ("t", "week"),
            ("by", "x"),
        ]

    def test_subscripts_and_coefficients_are_not_weights(self):
        line = parse("generate z = x[_n-1] + _b[ses] if [lns1]_cons > x[1]")[0]
        assert line.weight is None
        assert line.source(line.arguments) == "z = x[_n-1] + _b[ses]"

    def test_prefixes(self):
        line = parse("quietly: bysort school (time): generate n = _n")[0]
        assert [prefix.name for prefix in line.prefixes] == ["quietly", "bysort"]
        assert line.source(line.prefixes[1].arguments) == "school (time)"
        assert parse("by school, sort: gen n = _N")[0].prefixes[0].options[0].name == "sort"
        assert parse("version 17: sort x")[0].command == "sort"
        assert parse("version 17")[0].command == "version"

    def test_an_echoed_statement_is_on_one_line(self):
        assert parse("mixed y x  /* fixed */ ///\n    || school:")[0].text == "mixed y x || school:"

    def test_numbers_of_options(self):
        line = parse("mixed y, level(90) || school:")[0]
        assert line.number("level", 95) == 90
        assert line.number("other", 95) == 95
        with pytest.raises(StataError, match="a number is needed"):
            number_of(line.script, line.name_token, line.arguments)

    @pytest.mark.parametrize(
        ("text", "column", "message"),
        [
            ("capture mixed y x", 1, "'capture' is not supported: an error always stops"),
            ("xi: mixed y i.x", 1, "write factor variables"),
            ("svy: mixed y x", 1, "pweight"),
            ("foreach x of varlist a b {", 1, "loops are not part"),
            ("by school generate x = 1", 1, "needs a colon"),
            ("bysort : generate x = 1", 1, "needs variables"),
            ("quietly", 1, "a command is needed"),
            ("= 3", 1, "starts with the name of a command"),
            ("mixed y x || school", 11, "the variable and its colon"),
            ("mixed y x || : x", 11, "the variable and its colon"),
            ("mixed y x || school: if x > 2", 22, "before the first '||'"),
            ("mixed y x if a if b", 16, "a second 'if'"),
            ("mixed y x in", 11, "nothing follows the 'in'"),
            ("mixed y [zw=x]", 10, "weights are"),
            ("mixed y [pw=x] z", 16, "stands after the weight"),
            ("mixed y, reml, level(95)", 14, "one comma stands before all options"),
            ("mixed y, 95", 10, "the name of an option"),
            ("mixed y (x]", 11, "closes nothing"),
            ("mixed y )", 9, "closes nothing"),
            ("if x > 2 sort y", 1, "'if' stands after"),
        ],
    )
    def test_what_cannot_be_read_is_shown(self, text, column, message):
        with pytest.raises(StataError) as caught:
            parse(text)
        assert message in str(caught.value)
        assert (caught.value.line, caught.value.column) == (1, column)


class TestVariables:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("y ses", ["y", "ses"]),
            ("rac scho", ["race", "school"]),
            ("x*", ["x1", "x2", "x3"]),
            ("x? y", ["x1", "x2", "x3", "y"]),
            ("ses-arm", ["ses", "race", "age", "arm"]),
            ("ses - race x1", ["ses", "race", "x1"]),
            ("_all", list(NAMES)),
            ("x1 x*", ["x1", "x2", "x3"]),
        ],
    )
    def test_lists(self, text, expected):
        line = parse(f"sort {text}")[0]
        assert [name for name, _ in Variables(line, NAMES).existing(line.arguments)] == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x", "'x' is ambiguous: it abbreviates 'x1', 'x2', 'x3'"),
            ("schol", "did you mean 'school'"),
            ("z*", "there is no variable 'z\\*'"),
            ("arm-ses", "stands before"),
            ("-x1", "between two variables"),
            ("x1 + x2", "names of variables are needed here, not '\\+'"),
        ],
    )
    def test_what_names_no_variable_is_refused(self, text, message):
        line = parse(f"sort {text}")[0]
        with pytest.raises(StataError, match=message):
            Variables(line, NAMES).existing(line.arguments)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("y", "exists already"), ("_cons", "reserved"), ("str8", "reserved"), ("a" * 33, "at most 32")],
    )
    def test_new_names(self, name, message):
        line = parse(f"generate {name} = 1")[0]
        with pytest.raises(StataError, match=message):
            Variables(line, NAMES).new(line.arguments[0])


class TestFactorVariables:
    def expanded(self, text):
        line = parse(f"mixed {text}")[0]
        found = terms(line, line.arguments, Variables(line, NAMES))
        return ["#".join(f"{'i' if f.categorical else 'c'}.{f.name}" for f in term.factors) for term in found]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("ses i.race", ["c.ses", "i.race"]),
            ("i.race##c.age", ["i.race", "c.age", "i.race#c.age"]),
            ("race#arm", ["i.race#i.arm"]),
            ("race##arm", ["i.race", "i.arm", "i.race#i.arm"]),
            ("c.age#c.age", ["c.age#c.age"]),
            ("c.age##c.age", ["c.age", "c.age#c.age"]),
            ("i.(race arm)", ["i.race", "i.arm"]),
            ("i.race#c.(age ses)", ["i.race#c.age", "i.race#c.ses"]),
            ("c.x*", ["c.x1", "c.x2", "c.x3"]),
            ("x1-x3 i.arm", ["c.x1", "c.x2", "c.x3", "i.arm"]),
            ("i.race#i.arm i.arm#i.race", ["i.race#i.arm"]),
            (
                "i.race##i.arm##c.age",
                [
                    "i.race",
                    "i.arm",
                    "i.race#i.arm",
                    "c.age",
                    "i.race#c.age",
                    "i.arm#c.age",
                    "i.race#i.arm#c.age",
                ],
            ),
        ],
    )
    def test_expansion(self, text, expected):
        assert self.expanded(text) == expected

    @pytest.mark.parametrize(
        ("text", "base", "levels"),
        [
            ("i.race", None, ()),
            ("ib3.race", 3.0, ()),
            ("b3.race", 3.0, ()),
            ("ib(last).race", "last", ()),
            ("ib(2).race", 2.0, ()),
            ("ibn.race", "none", ()),
            ("2.race", None, (2.0,)),
            ("i2.race", None, (2.0,)),
            ("i(1 3/5).race", None, (1.0, 3.0, 4.0, 5.0)),
        ],
    )
    def test_bases_and_levels(self, text, base, levels):
        line = parse(f"mixed {text}")[0]
        factor = terms(line, line.arguments, Variables(line, NAMES))[0].factors[0]
        assert (factor.name, factor.categorical, factor.base, factor.levels) == ("race", True, base, levels)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("i.race#", "nothing follows the '#'"),
            ("#race", "nothing stands before"),
            ("L.ses", "time-series operators"),
            ("q.ses", "'q.' is not supported"),
            ("i.()", "empty parentheses"),
            ("i.", "missing after the period"),
            ("2", "a variable is needed here, not 2"),
            ("ib(x).race", "write a base as"),
            ("i(1/99999999).race", "at most 1,000 levels"),
            ("2o.race", "omitted levels"),
            ("##".join(["(x1 x2 x3 y ses)"] * 12), "more than 1,000 terms"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text, message):
        line = parse(f"mixed {text}")[0]
        with pytest.raises(StataError, match=message):
            terms(line, line.arguments, Variables(line, NAMES))


class TestSession:
    def test_options_after_a_level_reach_the_command(self):
        text = "mixed y x1 if x2 == 1 || school: x1, cov(un) l(90) reml || _all: i.x2, nocons"
        assert Session(COMMANDS, DATA).run(text) == "3 rows, levels ['school', '_all'], level 90\n"

    def test_a_subcommand_is_found_by_its_name_and_then_by_its_beginning(self):
        assert (
            Session(COMMANDS).run("estat icc\nestat ic", echo=True)
            == ". estat icc\nicc\n\n. estat ic\nic\n\n"
        )

    def test_quietly_prints_nothing_and_keeps_the_results(self):
        session = Session(COMMANDS, DATA)
        assert session.run("quietly summarize x1") == ""
        assert session.r["mean"] == 2.5

    def test_nothing_runs_if_a_later_statement_is_unknown(self):
        session = Session(COMMANDS, DATA)
        with pytest.raises(
            StataError, match="'mixd' is not a supported command: did you mean 'mixed'"
        ) as caught:
            session.run("generate z = 1\ndisplay 1\nmixd y x1 || school:")
        assert (caught.value.line, caught.value.column) == (3, 1)
        assert "z" not in session.frame
        assert session.text == ""

    def test_a_failure_restores_data_results_and_output(self):
        session = Session(COMMANDS, DATA)
        session.run("summarize x1")
        before, text, results = session.frame, session.text, dict(session.r)
        with pytest.raises(StataError, match=r"line 4, column 14: there is no variable 'nothing'"):
            session.run('drop if x1 > 2\nsort x2\nlabel variable y "score"\ngenerate z = nothing')
        pd.testing.assert_frame_equal(session.frame, before)
        assert (session.text, session.r, session.state.variable_labels) == (text, results, {})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("mixed y || school: x1, covarance(un)", "did you mean 'covariance'"),
            ("mixed y, cov(un) || school:", "'cov' is not a supported option of mixed"),
            ("mixed y || school:, level", r"option level\(\) needs something in parentheses"),
            ("mixed y || school:, reml(1)", "option reml takes nothing"),
            ("mixed y || school:, level(95) l(90)", "option level is given twice"),
            ("mixed y [fw=x1] || school:", "does not support fweights; it supports 'pweight'"),
            ("sort y if x1 > 2", "sort takes no 'if'"),
            ("sort y || school:", "levels belong to mixed"),
            ("sort y using a", "takes no 'using'"),
            ("by school: sort y", "cannot be run by groups"),
            ("estat foo", "estat needs one of its subcommands: ?.*icc"),
            ("estat", "estat needs one of its subcommands"),
            ("local a = 3", "macros, loops and programs are not part"),
            ("xtmixed y x1 || school:", "write mixed"),
            ("melogit y x1 || school:", "Gaussian"),
        ],
    )
    def test_what_is_not_supported_is_refused_with_what_is(self, text, message):
        with pytest.raises(StataError, match=message):
            Session(COMMANDS, DATA).run(text)

    def test_samples_of_estimates_follow_the_rows(self):
        session = Session(COMMANDS, DATA)
        line = parse("mixed y")[0]
        session.estimates = Estimation("mixed", line, None, session.frame["x1"].to_numpy() >= 3)
        session.stored["m"] = session.estimates
        assert session.run("gsort -x1\nkeep if x1 > 1\ncount if e(sample)\ndisplay e(sample)") == (
            "(2 observations deleted)\n  3\n1\n"
        )
        assert session.stored["m"] is session.estimates
        assert session.estimates.position.tolist() == [2, 1, 0, -1]
        session.run("use sleepstudy, clear")
        assert session.estimates.sample.tolist() == [False] * 180


LINES = [
    "gen z = y^2 if y < 5",
    "list school y in 1/3",
    "bysort school (y): gen n = _n",
    "by school, sort: egen m = mean(y)",
    "egen sd = sd(y), by(school)",
    "egen byte p = tag(school x1)",
    "egen q = pctile(y), p(90) by(school)",
    "gen lag = y[_n-1]",
    "replace y = y[_n-1] + 1 in 2/l",
    "su y x*, d",
    'display r(p50) " and " %9.2f r(sd) as text "x" _col(10) 2+3, -2',
    "tab name, m gen(d)",
    "xtset school x1",
    'drop if y >= . | inlist(name, "a", "b")',
    "encode name, gen(code)",
    'label define yn 0 "no" 1 "yes", replace',
    "gsort -y +x1",
    "rename (y x1) (yy xx)",
    "scalar a = cond(1>2, 3, .) + min(1, 2, .)",
    "mixed y i.school##c.(x1 x2) if y > 1 [pw=x2+1], reml || school: x1, cov(un) || _all: i.x2",
    'gen str5 t = substr(name, 1, 2) + string(x1) if strpos(name, "a") == 1',
    "quietly: su y if school == 2, meanonly",
]
PIECES = [
    *[
        "",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "=",
        "==",
        "!=",
        "&",
        "|",
        "||",
        "+",
        "-",
        "*",
        "/",
        "^",
        "!",
        ".",
        "#",
        "##",
        ";",
        "@",
        "$",
        "'",
        '"',
        "`",
        ".",
        "-",
    ],
    *(
        "\n",
        "\t",
        "\x00",
        "\u2212",
        "é",
        '`"a"\'',
        "/*",
        "*/",
        "//",
        "///",
        "#delimit ;",
        "if",
        "in",
        "using",
    ),
    *("1e400", "2.x1", "_n", "_b[y]", "r(mean)", "[pw=y]", "by school:", "%9.2f", "x*", "_all", "3", "1/3"),
]


@st.composite
def scripts(draw):
    """Lines of the language, here and there cut, doubled or mixed with other pieces."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    lines = []
    for line in rng.sample(LINES, rng.randint(1, 3)):
        letters = list(line)
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(len(letters) + 1)
            if rng.random() < 0.5:
                letters[at : at + rng.randint(1, 4)] = []
            else:
                letters.insert(at, rng.choice(PIECES))
        lines.append("".join(letters))
    return "\n".join(lines)


class TestAnyText:
    @settings(max_examples=150, deadline=None)
    @given(
        st.one_of(scripts(), st.lists(st.sampled_from(PIECES + LINES), max_size=8).map(" ".join), st.text())
    )
    @example("gen z = " + "(" * 5_000)
    @example("gen z = " + "-" * 5_000 + "1")
    @example("gen z = " + "!" * 5_000 + "1")
    @example("mixed y " + "i.(" * 500 + "x1" + ")" * 500)
    @example("/*" * 5_000)
    def test_it_runs_or_is_a_stata_error_that_leaves_all_as_it_was(self, text):
        session = Session(COMMANDS, DATA)
        before = session.frame
        problem = None
        try:
            session.run(text)
        except StataError as caught:
            problem = caught
        if problem is not None:
            assert min(problem.line, problem.column) >= 1
            assert str(problem).startswith(f"line {problem.line}, column {problem.column}: ")
            pd.testing.assert_frame_equal(session.frame, before)
            assert (session.text, session.r) == ("", {})
        assert list(session.frame.index) == list(range(len(session.frame)))

    def test_long_chains_are_evaluated(self):
        session = Session(COMMANDS, DATA)
        assert session.run("display " + " + ".join(["1"] * 9_000)) == "9000\n"
        with pytest.raises(StataError, match="at most 20,000 pieces"):
            session.run("sort " + "x1 " * 20_000)

"""Commands on data: against Stata's manuals, pandas, and hand-made tables."""

import numpy as np
import pandas as pd
import pytest

from jaxmixed import stata_data, stata_describe, stata_egen
from jaxmixed.errors import DataError, StataError
from jaxmixed.stata_frame import as_stata_frame
from jaxmixed.stata_session import Session

COMMANDS = {**stata_data.COMMANDS, **stata_egen.COMMANDS, **stata_describe.COMMANDS}

# Mileage of the 74 cars of Stata's auto data: value and how often.
MPG = {
    12: 2, 14: 6, 15: 2, 16: 4, 17: 4, 18: 9, 19: 8, 20: 3, 21: 5, 22: 5, 23: 3, 24: 4, 25: 5, 26: 3, 28: 3,
    29: 1, 30: 2, 31: 1, 34: 1, 35: 2, 41: 1,
}  # fmt: skip
AUTO = pd.DataFrame({"mpg": [value for value, times in MPG.items() for _ in range(times)]})
# Repair records of the same cars; five are missing.
AUTO["rep78"] = [1] * 2 + [2] * 8 + [3] * 30 + [4] * 18 + [5] * 11 + [None] * 5

PUPILS = pd.DataFrame(
    {
        "school": [2, 1, 1, 2, 3],
        "y": [1.0, 2.0, None, 4.0, 6.0],
        "ses": [3.0, 1.0, 2.0, 5.0, 4.0],
        "name": ["b", "a", None, "b", "c"],
    }
)


def session(data=PUPILS):
    return Session(COMMANDS, data)


def after(text, name, data=PUPILS):
    """A variable after some commands, None where it is missing."""
    run = session(data)
    run.run(text)
    return [None if isinstance(v, float) and np.isnan(v) else v for v in run.frame[name]]


class TestData:
    def test_two_types(self):
        frame, labels = as_stata_frame(
            pd.DataFrame(
                {
                    "b": pd.array([True, None], dtype="boolean"),
                    "i": pd.array([1, None], dtype="Int64"),
                    "t": ["a", None],
                    "c": pd.Categorical(["lo", "hi"], categories=["lo", "hi"]),
                    "d": pd.to_datetime(["1960-01-02", None]),
                    "o": pd.Series([1, 2.5], dtype=object),
                    "n": pd.Series([None, None], dtype=object),
                }
            )
        )
        assert frame.dtypes.map(lambda dtype: dtype.kind).tolist() == ["f", "f", "O", "f", "f", "f", "f"]
        assert frame.loc[0, ["b", "i", "t", "c", "d", "o"]].tolist() == [1, 1, "a", 1, 1, 1]
        assert frame.loc[1].isna().tolist() == [True, True, False, False, True, False, True]
        assert frame.loc[1, "t"] == ""
        assert labels == {"c": {1.0: "lo", 2.0: "hi"}}

    def test_a_stata_file_keeps_its_codes(self, tmp_path):
        path = tmp_path / "pupils.dta"
        data = pd.DataFrame({"y": [1.5, 2.5, None], "female": [0, 1, 0]})
        data.to_stata(path, write_index=False, value_labels={"female": {0: "no", 1: "yes"}})
        run = session(None)
        run.run(f'use "{path}"')
        assert run.frame["female"].tolist() == [0, 1, 0]
        assert run.labels == {"female": {0.0: "no", 1.0: "yes"}}

    @pytest.mark.parametrize(
        "data", [{"x": [1, "a"]}, {"x": [object()]}, {"x": [1, 2], "y": [1]}, 3, "nofile.csv"]
    )
    def test_other_data_are_refused(self, data):
        with pytest.raises(DataError):
            as_stata_frame(data)

    def test_the_users_data_are_not_changed(self):
        data = PUPILS.copy()
        session(data).run("replace y = 0\ndrop ses\nsort school\ngenerate z = 1")
        pd.testing.assert_frame_equal(data, PUPILS)

    def test_import_delimited(self, tmp_path):
        path = tmp_path / "some data.csv"
        path.write_text("School ID,Test Score,name\n1,2.5,a\n2,,b\n")
        run = session(None)
        assert run.run(f'import delimited "{path}"') == "(3 vars, 2 obs)\n"
        assert list(run.frame.columns) == ["schoolid", "testscore", "name"]
        run.run(f'import delimited using "{path}", clear case(preserve) varnames(1)')
        assert list(run.frame.columns) == ["SchoolID", "TestScore", "name"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("use sleepstudy", "there are data already"),
            ("use nowhere, clear", "there is no file 'nowhere.dta'"),
            ("import delimited nowhere, clear", "there is no file 'nowhere.csv'"),
            ("use a b, clear", "put a file name with blanks in quotation marks"),
            ("use, clear", "the name of a file is missing"),
            ("import delimited a.csv, varnames(nonames)", r"varnames\(\) can only be 1"),
            ("use Days using sleepstudy, clear\nsummarize Reaction", "there is no variable 'Reaction'"),
        ],
    )
    def test_what_cannot_be_read(self, text, message):
        with pytest.raises(StataError, match=message):
            session().run(text)

    def test_use_of_some_variables_and_rows(self):
        run = session(None)
        run.run("use Days Subject using sleepstudy if Days < 2\ncount")
        assert run.text == "  36\n"
        assert list(run.frame.columns) == ["Days", "Subject"]


class TestGenerate:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("generate z = y^2", [1, 4, None, 16, 36]),
            ("gen z = y if ses > 2", [1, None, None, 4, 6]),
            ("gen z = 1 in 2/3", [None, 1, 1, None, None]),
            ("gen byte z = ses/2", [1, 0, 1, 2, 2]),
            ("gen byte z = 1000", [None] * 5),
            ("gen float z = .1", [0.10000000149011612] * 5),
            ("gen double z = .1", [0.1] * 5),
            ("gen z = y > 3", [0, 0, 1, 1, 1]),
            ("gen z = y > 3 if !missing(y)", [0, 0, None, 1, 1]),
            ('gen str3 z = name + "x"', ["bx", "ax", "x", "bx", "cx"]),
            ("bysort school (ses): gen z = _n", [1, 2, 1, 2, 1]),
            ("bysort school (ses): gen z = ses - ses[1]", [0, 1, 0, 2, 0]),
            ("sort school\nby school: gen z = _N", [2, 2, 2, 2, 1]),
            ("gen z = .\nreplace z = ses in 1\nreplace z = z[_n-1] + 1 in 2/l", [3, 4, 5, 6, 7]),
            ("gen z = y\nreplace z = 0 if missing(z)", [1, 2, 0, 4, 6]),
            ("gen z = sum(ses)", [3, 4, 6, 11, 15]),
        ],
    )
    def test_new_values(self, text, expected):
        assert after(text, "z") == expected

    @pytest.mark.parametrize(
        ("text", "printed"),
        [
            ("gen z = y", "(1 missing value generated)\n"),
            ("gen z = .", "(5 missing values generated)\n"),
            ("gen z = 1", ""),
            ("replace y = 3 if y < 3", "(2 real changes made)\n"),
            ("replace y = 2 if ses == 1", "(0 real changes made)\n"),
            ("replace y = . in 1/2", "(2 real changes made, 2 to missing)\n"),
            ("replace y = 9 in 1", "(1 real change made)\n"),
            ("drop if y > 3", "(3 observations deleted)\n"),
            ("keep in 1/4", "(1 observation deleted)\n"),
            ("bysort school: keep if _n == 1", "(2 observations deleted)\n"),
            ("count if y < .", "  4\n"),
        ],
    )
    def test_notes(self, text, printed):
        assert session().run(text) == printed

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("generate y = 1", "variable 'y' exists already"),
            ("generate z", "as in 'generate z = x \\+ 1'"),
            ("generate z =", "as in 'generate z = x \\+ 1'"),
            ("generate z w = 1", "the name of the new variable is needed here"),
            ("generate byte z = name", "texts, which storage type byte does not hold"),
            ("replace z = 1", "there is no variable 'z'"),
            ("replace y = name", "'y' holds numbers, and these are texts"),
            ("replace name = 1", "'name' holds texts, and these are numbers"),
            ("generate z = 1 if name", "a condition is a number"),
            ("by school: generate z = 1", "not sorted so"),
            ("by school: generate z = 1 in 1", "not sorted so"),
            ("bysort school: generate z = 1 in 1", "'in' cannot be combined with by"),
            ("keep", "either 'keep variables' or 'keep if"),
            ("drop y if ses > 1", "either 'drop variables' or 'drop if"),
            ("assert y < 5", "false in 2 observations"),
            ("xtset name", "holds texts where numbers are needed"),
            ("set level 90", "this setting is not supported"),
        ],
    )
    def test_errors(self, text, message):
        with pytest.raises(StataError, match=message):
            session().run(text)


class TestOrder:
    def test_sort_puts_missing_numbers_last_and_keeps_ties(self):
        assert after("sort y", "ses") == [3, 1, 5, 4, 2]
        assert after("sort school", "ses") == [1, 2, 3, 5, 4]
        assert after("sort name school", "name") == ["", "a", "b", "b", "c"]
        assert after("gsort -y", "ses") == [4, 5, 1, 3, 2]
        assert after("gsort school -ses", "ses") == [2, 1, 5, 3, 4]

    def test_by_needs_the_order_and_replacing_loses_it(self):
        with pytest.raises(StataError, match="not sorted"):
            session().run("sort school\nreplace school = 4 - school\nby school: gen z = 1")

    def test_keep_drop_rename_order(self):
        run = session()
        run.run("keep school y-ses\nrename (y ses) (score status)\norder status\nrename school id")
        assert list(run.frame.columns) == ["status", "id", "score"]
        with pytest.raises(StataError, match="exists already"):
            run.run("rename id score")

    def test_labels_and_codes(self):
        run = session()
        run.run(
            'encode name, generate(code)\nlabel define s 1 "one" 2 "two"\nlabel values school s\n'
            'label variable y "Score"\nrename school id'
        )
        assert run.frame["code"].fillna(-1).tolist() == [2, 1, -1, 2, 3]
        assert run.labels == {"code": {1.0: "a", 2.0: "b", 3.0: "c"}, "id": {1.0: "one", 2.0: "two"}}
        assert run.state.variable_labels == {"y": "Score"}

    def test_destring(self):
        assert after("destring t, replace", "t", {"t": ["1", " 2.5", ""]}) == [1, 2.5, None]
        with pytest.raises(StataError, match="no numbers, as 'a'"):
            session({"t": ["1", "a"]}).run("destring t, replace")
        assert after("destring t, replace force", "t", {"t": ["1", "a"]}) == [1, None]

    @pytest.mark.parametrize(
        ("text", "printed"),
        [
            ("xtset school", "\nPanel variable: school (unbalanced)\n"),
            (
                "bysort school: gen t = _n\nxtset school t",
                "\nPanel variable: school (unbalanced)\n Time variable: t, 1 to 2\n         Delta: 1 unit\n",
            ),
            (
                "keep if school < 3\nbysort school: gen t = 2*_n\nqui xtset school t\nxtset",
                "(1 observation deleted)\n\nPanel variable: school (strongly balanced)\n"
                " Time variable: t, 2 to 4, but with gaps\n         Delta: 1 unit\n",
            ),
        ],
    )
    def test_xtset(self, text, printed):
        assert session().run(text) == printed

    def test_xtset_refuses_repeated_times(self):
        with pytest.raises(StataError, match="school 1 has t 1 twice"):
            session().run("gen t = 1\nxtset school t")


class TestEgen:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("egen z = mean(y)", [3.25] * 5),
            ("egen z = mean(y), by(school)", [2.5, 2, 2, 2.5, 6]),
            ("bysort school: egen z = total(y)", [2, 2, 5, 5, 6]),
            ("egen z = sd(ses), by(school)", [2**0.5, 0.5**0.5, 0.5**0.5, 2**0.5, None]),
            ("egen z = median(ses)", [3] * 5),
            ("egen z = min(y), by(school)", [1, 2, 2, 1, 6]),
            ("egen z = max(ses - y)", [2] * 5),
            ("egen z = count(y), by(school)", [2, 1, 1, 2, 1]),
            ("egen z = mean(y) if school == 2", [2.5, None, None, 2.5, None]),
            ("egen z = std(ses)", list((PUPILS["ses"] - 3) / 2.5**0.5)),
            ("egen z = std(ses), mean(10) sd(2)", list(10 + 2 * (PUPILS["ses"] - 3) / 2.5**0.5)),
            ("egen z = rank(y)", [1, 2, None, 3, 4]),
            ("gen t = min(ses, 3)\negen z = rank(t)", [4, 1, 2, 4, 4]),
            ("gen t = min(ses, 3)\negen z = rank(t), field", [1, 5, 4, 1, 1]),
            ("gen t = min(ses, 3)\negen z = rank(t), track", [3, 1, 2, 3, 3]),
            ("egen z = rank(ses), by(school)", [1, 1, 2, 2, 1]),
            ("egen z = group(school)", [2, 1, 1, 2, 3]),
            ("egen z = group(name school)", [2, 1, None, 2, 3]),
            ("egen z = tag(school)", [1, 1, 0, 0, 1]),
            ("egen z = tag(name)", [1, 1, 0, 0, 1]),
            ("egen z = pctile(ses), p(25)", [2] * 5),
            ("egen z = rowmean(y ses)", [2, 1.5, 2, 4.5, 5]),
            ("egen z = rowtotal(y ses)", [4, 3, 2, 9, 10]),
            ("egen z = rowmiss(y-ses)", [0, 0, 1, 0, 0]),
        ],
    )
    def test_values(self, text, expected):
        found = after(text, "z")
        assert [v is None for v in found] == [v is None for v in expected]
        assert [v for v in found if v is not None] == pytest.approx([v for v in expected if v is not None])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("egen z = maen(y)", r"egen has no function maen\(\): did you mean 'mean'"),
            ("egen z = mean(y) + 1", "egen needs one function"),
            ("egen z = mean(name)", "needs numbers, and these are texts"),
            ("egen z = mean()", "needs something in parentheses"),
            ("egen z = mean(y), field", r"option field does not belong to mean\(\)"),
            ("egen z = std(y), by(school)", "cannot be combined with by"),
            ("bysort school: egen z = tag(school)", "cannot be combined with by"),
            ("egen z = pctile(y), p(0)", "between 0 and 100"),
            ("egen y = mean(ses)", "exists already"),
        ],
    )
    def test_errors(self, text, message):
        with pytest.raises(StataError, match=message):
            session().run(text)


class TestDescribe:
    def test_summarize_as_the_manual_prints_it(self):
        assert session(AUTO).run("summarize mpg") == (
            "\n"
            "    Variable |        Obs        Mean    Std. dev.       Min        Max\n"
            "-------------+---------------------------------------------------------\n"
            "         mpg |         74     21.2973    5.785503         12         41\n"
        )

    def test_summarize_detail_as_the_manual_prints_it(self):
        run = session(AUTO)
        assert run.run('label variable mpg "Mileage (mpg)"\nsummarize mpg, detail') == (
            "\n"
            "                        Mileage (mpg)\n"
            "-------------------------------------------------------------\n"
            "      Percentiles      Smallest\n"
            " 1%           12             12\n"
            " 5%           14             12\n"
            "10%           14             14       Obs                  74\n"
            "25%           18             14       Sum of wgt.          74\n"
            "\n"
            "50%           20                      Mean            21.2973\n"
            "                        Largest       Std. dev.      5.785503\n"
            "75%           25             34\n"
            "90%           29             35       Variance       33.47205\n"
            "95%           34             35       Skewness       .9487176\n"
            "99%           41             41       Kurtosis       3.975005\n"
        )
        assert run.run("display r(p75) - r(p25)") == "7\n"

    def test_tabulate_as_the_manual_prints_it(self):
        assert session(AUTO).run("tabulate rep78") == (
            "\n"
            "      rep78 |      Freq.     Percent        Cum.\n"
            "------------+-----------------------------------\n"
            "          1 |          2        2.90        2.90\n"
            "          2 |          8       11.59       14.49\n"
            "          3 |         30       43.48       57.97\n"
            "          4 |         18       26.09       84.06\n"
            "          5 |         11       15.94      100.00\n"
            "------------+-----------------------------------\n"
            "      Total |         69      100.00\n"
        )

    def test_indicators_of_tabulate(self):
        run = session(AUTO)
        run.run("quietly tabulate rep78, generate(r)")
        assert [int(run.frame[f"r{k}"].sum()) for k in range(1, 6)] == [2, 8, 30, 18, 11]
        assert run.frame["r1"].isna().sum() == 5

    @pytest.mark.parametrize(
        ("text", "printed"),
        [
            ("display 2 + 2", "4"),
            ('display "ratio = " 1/3', "ratio = .33333333"),
            ("display %9.2f 3.14159", "     3.14"),
            ('display %5.3f .25 " and " %12.0fc 1234567', "0.250 and    1,234,567"),
            ('display as text "a" _skip(2) as result 1 _newline "b" _col(4) "c"', "a  1\nb  c"),
            ("display -1/8, 10^10, 1e-7, 123456.789, .", "-.125 1.000e+10 1.000e-07 123456.79 ."),
            ('display "a" + "b" == "ab"', "1"),
            ("display y[2] ses", "23"),
        ],
    )
    def test_display(self, text, printed):
        assert session().run(text) == printed + "\n"

    def test_list(self):
        assert session().run("list school y name in 2/4") == (
            "\n"
            "     +-------------------+\n"
            "     | school   y   name |\n"
            "     |-------------------|\n"
            "  2. |      1   2   a    |\n"
            "  3. |      1   .        |\n"
            "  4. |      2   4   b    |\n"
            "     +-------------------+\n"
        )

    def test_results(self):
        run = session()
        run.run("summarize y if school < 3")
        assert run.r["N"] == 3
        assert run.r["sum"] == 7
        assert run.r["sd"] == pytest.approx(np.std([1, 2, 4], ddof=1))
        run.run("summarize y if school > 9")
        assert run.r == {"N": 0.0, "sum_w": 0.0, "sum": 0.0}

    def test_describe_and_by(self):
        text = session().run("describe\nbysort school: summarize y")
        assert "name            str1    %9s" in text
        assert text.count("-> school = ") == 3

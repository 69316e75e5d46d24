"""Any text is answered soon by a formula or a FormulaError, and formulas read back equal."""

import itertools
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmixed.errors import FormulaError, JaxMixedWarning
from jaxmixed.formula import parse

TOKENS = (
    "y", "x", "z", "f", "g", "x.1", "_x", "`a b`", "é", "log", "I", "pi", "0", "1", "2", "9", ".5", "1e3",
    "+", "-", "*", "/", ":", "^", "**", "%in%", "|", "||", "~", "(", ")", ",", "=", "log(", "I(", "poly(",
    "C(", "factor(", "scale(", "offset(", "us(", "cs(", "ar1(", "foo(", "degree=", "ref='a'", "'t'", '"u"',
    ".", " ", "\n", "`", "'", "\u2212", "\x00", "(1 | g)", "(x || g)", "y ~", "sum", "TRUE",
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "c", "x.1", "_x", "`a b`", "log", "pi", "größe"])
NUMBERS = st.sampled_from(["1", "2", "0.5", "1e-3", "pi"])


def arithmetic():
    return st.recursive(
        NAMES | NUMBERS,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda p: f"({p[0]}){p[1]}({p[2]})"),
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
            st.tuples(inner, st.sampled_from(["2", "-1", "(1/3)", "a"])).map(lambda p: f"({p[0]})^{p[1]}"),
            inner.map(lambda text: f"-({text})"),
            inner.map(lambda text: f"log({text})"),
        ),
        max_leaves=8,
    )


def factors():
    return st.one_of(
        NAMES,
        arithmetic().map(lambda text: f"I(a + {text})"),
        st.sampled_from(
            ["poly(a, 2)", "scale(b, scale=FALSE)", "C(c, sum)", "C(c, ref='u v')", "ns(log(a), df=3)"]
        ),
    )


def sums():
    return st.recursive(
        factors(),
        lambda inner: st.tuples(inner, st.sampled_from([" + ", " - ", ":", "*", "/", " %in% "]), inner).map(
            lambda parts: f"{parts[0]}{parts[1]}({parts[2]})" if parts[1] != " - " else " + ".join(parts[::2])
        ),
        max_leaves=4,
    )


def formulas():
    bars = st.tuples(sums(), st.sampled_from(["|", "||"]), st.sampled_from(["g", "g/h", "g:h", "`g h`"]))
    return st.tuples(sums(), bars).map(lambda parts: f"y ~ {parts[0]} + ({' '.join(parts[1])})")


def factor_sets(effects):
    """The terms without the order of their factors, which follows the first appearance of each."""
    return {frozenset(term.factors) for term in effects.terms}


def answer(text):
    """The formula, or None where the parser refuses the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JaxMixedWarning)
        try:
            return parse(text)
        except FormulaError:
            return None


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_a_formula_error(text):
    answer(text)
    answer(f"y ~ {text}")


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=20), st.sampled_from(["", " "]))
def test_any_sequence_of_tokens_is_a_formula_or_a_formula_error(tokens, between):
    answer(between.join(tokens))
    formula = answer("y ~ " + between.join(tokens))
    if formula is not None:
        assert answer(str(formula)) == formula


@settings(derandomize=True, max_examples=200, deadline=None)
@given(formulas())
def test_formulas_and_the_labels_of_their_parts_read_back_equal(text):
    formula = parse(text)
    assert parse(str(formula)) == formula
    for term in formula.fixed.terms:
        assert term.label
        for factor in term.factors:
            ((read,),) = (again.factors for again in parse(f"y ~ {factor.label}").fixed.terms)
            assert read == factor
    for term in formula.random:
        (read,) = parse(f"y ~ {term.text}").random
        assert (read.group, read.structure) == (term.group, term.structure)
        assert read.effects.intercept == term.effects.intercept
        assert factor_sets(read.effects) == factor_sets(term.effects)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(formulas(), st.sampled_from(["  ", "\n", " \t "]))
def test_white_space_between_tokens_changes_nothing(text, blanks):
    quoted = text.split("`")
    spaced = "`".join(piece.replace(" ", blanks) if i % 2 == 0 else piece for i, piece in enumerate(quoted))
    assert parse(spaced.replace("'u" + blanks + "v'", "'u v'")) == parse(text)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(sums())
def test_adding_terms_twice_changes_nothing(text):
    assert parse(f"y ~ {text} + ({text})").fixed == parse(f"y ~ {text}").fixed


@pytest.mark.parametrize(
    ("character", "code"),
    [
        ("\x00", "U+0000"),
        ("\x1b", "U+001B"),
        ("\x0b", "U+000B"),
        ("\x7f", "U+007F"),
        ("\u00a0", "U+00A0"),
        ("\u200b", "U+200B"),
        ("\u200d", "U+200D"),
        ("\u202e", "U+202E"),
        ("\ufeff", "U+FEFF"),
        ("\u3164", "U+3164"),
        ("\ufe0f", "U+FE0F"),
        ("\ud800", "U+D800"),
    ],
)
def test_control_and_invisible_characters_are_refused_by_their_code(character, code):
    with pytest.raises(FormulaError) as caught:
        parse(f"y ~ x{character}+ z")
    message = str(caught.value)
    assert code in message
    assert "(character 6, " in message
    assert character not in message


def test_control_characters_are_refused_in_backquotes_too():
    with pytest.raises(FormulaError, match=r"U\+001B.*\(character 7, "):
        parse("y ~ `a\x1b[2J`")


COLUMNS = [f"column_{i}" for i in range(24)]
SHORT_NAMES = ["".join(letters) for letters in itertools.product("abcdefghijklm", repeat=3)]
TOO_MUCH = [
    ("y ~ (" + " + ".join(COLUMNS) + ")**24", "more than 2,000 terms"),
    ("y ~ " + "*".join(COLUMNS), "more than 2,000 terms"),
    ("y ~ " + "*".join(["(a*b*c*d*e*f*g*h*i*j)"] * 300), "more than 2,000 terms"),
    ("y ~ " + "/".join(f"a{i}" for i in range(1500)), "more than 2,000 terms"),
    ("y ~ " + "+".join(SHORT_NAMES[:2001]), "more than 2,000 terms"),
    ("y ~ " + " + ".join(f"(a*b*c*d*e*f*g*h|g{i})" for i in range(10)), "more than 2,000 terms"),
    ("y ~ (1|" + "/".join(f"a{i}" for i in range(200)) + ")", "more than 100 grouping columns"),
    ("y ~ " + "(" * 4000 + "x" + ")" * 4000, "nested more than 100 deep"),
    ("y ~ " + "(" * 5000, "nested more than 100 deep"),
    ("y ~ " + "(" * 5000 + "x" + ")" * 5000, "more than the 10,000 allowed"),
    ("y ~ " + "-" * 5000 + "x", "nested more than 100 deep"),
    ("y ~ " + "log(" * 1000 + "x" + ")" * 1000, "nested more than 100 deep"),
    ("y ~ " + "^".join(["x"] * 4000), "nested more than 100 deep"),
    ("y ~ I(" + "+".join(["x"] * 4000) + ")", "more than 100 operations"),
    ("y ~ " + "x" * 10_000, "more than the 10,000 allowed"),
]


@pytest.mark.parametrize(("text", "says"), TOO_MUCH)
def test_formulas_that_grow_beyond_the_limits_are_refused(text, says):
    with pytest.raises(FormulaError, match=says):
        parse(text)


def test_formulas_within_the_limits_are_read():
    assert len(parse("y ~ " + "+".join(SHORT_NAMES[:2000])).fixed.terms) == 2000
    assert len(parse("y ~ (" + "+".join(f"a{i}" for i in range(60)) + ")^2").fixed.terms) == 1830
    assert parse("y ~ " + "+".join(["a"] * 4900)).fixed.label == "1 + a"
    assert parse("y ~ " + "(" * 99 + "x" + ")" * 99).fixed.label == "1 + x"
    deepest = parse("y ~ " + "log(" * 98 + "x" + ")" * 98)
    assert deepest.columns == ("y", "x")
    assert parse(f"y ~ {deepest.fixed.label}") == deepest
    assert len(parse("y ~ (1|" + "/".join(f"a{i}" for i in range(100)) + ")").random) == 100

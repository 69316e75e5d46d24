"""The formula parser: what each piece of the grammar means, and how each mistake is reported."""

import dataclasses
import math
import warnings

import pytest

from jaxmixed.errors import FormulaError, JaxMixedWarning
from jaxmixed.formula import Binary, Call, Column, Number, Text, Unary, parse


def fixed(text, **options):
    """The fixed effects as R would print them."""
    return parse(text, **options).fixed.label


def random(text):
    return [term.text for term in parse(text).random]


def expression(text, **options):
    """The expression of a formula's only fixed term."""
    (term,) = parse(f"y ~ {text}", **options).fixed.terms
    (factor,) = term.factors
    return factor


def pointed_at(text, message):
    """The piece of a one-line formula over the carets of an error message."""
    _, line, pointer = message.split("\n")
    start, end = pointer.index("^"), pointer.rindex("^") + 1
    assert set(pointer[start:end]) == {"^"}
    assert set(pointer[:start]) <= {" "}
    assert line == "  " + text
    return start - 2, text[start - 2 : end - 2]


FIXED = [
    ("y ~ 1", "1"),
    ("y ~ x", "1 + x"),
    ("y~x", "1 + x"),
    ("  y\t~\n x\r\n", "1 + x"),
    ("y ~ 0 + x", "0 + x"),
    ("y ~ x - 1", "0 + x"),
    ("y ~ -1 + x", "0 + x"),
    ("y ~ x + 0", "0 + x"),
    ("y ~ x + -1", "0 + x"),
    ("y ~ 0 + x + 1", "1 + x"),
    ("y ~ x - 0", "1 + x"),
    ("y ~ 0 + x - 0", "1 + x"),
    ("y ~ x + 1 - 1", "0 + x"),
    ("y ~ + x", "1 + x"),
    ("y ~ a + b - b", "1 + a"),
    ("y ~ a - b", "1 + a"),
    ("y ~ -a + b", "1 + b"),
    ("y ~ x - (1 + z)", "0 + x"),
    ("y ~ a + b + c - (a + c)", "1 + b"),
    ("y ~ a + b - (a - b)", "1 + b"),
    ("y ~ x + x", "1 + x"),
    ("y ~ a*b + b:a + a", "1 + a + b + a:b"),
    ("y ~ (x)", "1 + x"),
    ("y ~ ((0 + x))", "0 + x"),
    ("y ~ a:b", "1 + a:b"),
    ("y ~ a:a", "1 + a"),
    ("y ~ a:b:c", "1 + a:b:c"),
    ("y ~ a*b", "1 + a + b + a:b"),
    ("y ~ a*b*c", "1 + a + b + c + a:b + a:c + b:c + a:b:c"),
    ("y ~ a*b*c - a:b:c", "1 + a + b + c + a:b + a:c + b:c"),
    ("y ~ (a + b)*c", "1 + a + b + c + a:c + b:c"),
    ("y ~ (a + b):c", "1 + a:c + b:c"),
    ("y ~ (a + b):(c + d)", "1 + a:c + a:d + b:c + b:d"),
    ("y ~ (a + b + c)^2", "1 + a + b + c + a:b + a:c + b:c"),
    ("y ~ (a + b + c)**2", "1 + a + b + c + a:b + a:c + b:c"),
    ("y ~ (a + b + c)^9", "1 + a + b + c + a:b + a:c + b:c + a:b:c"),
    ("y ~ (a + b)^(2)", "1 + a + b + a:b"),
    ("y ~ (a + b)^1", "1 + a + b"),
    ("y ~ x^1", "1 + x"),
    ("y ~ (a + b)^2 - b", "1 + a + a:b"),
    ("y ~ a/b", "1 + a + a:b"),
    ("y ~ a/b/c", "1 + a + a:b + a:b:c"),
    ("y ~ (a + b)/c", "1 + a + b + a:b:c"),
    ("y ~ a/(b + c)", "1 + a + a:b + a:c"),
    ("y ~ a %in% b", "1 + a:b"),
    ("y ~ a + b %in% a", "1 + a + a:b"),
    ("y ~ a %in% (b + c)", "1 + a:b:c"),
    ("y ~ b:a + a", "1 + a + b:a"),
    ("y ~ a:b + c", "1 + c + a:b"),
    ("y ~ a*b:c", "1 + a + b:c + a:b:c"),
    ("y ~ log(x):f + I(x^2)", "1 + I(x^2) + log(x):f"),
    ("y ~ log(x) + log( x )", "1 + log(x)"),
    ("y ~ poly(x, degree = 2) + poly(x, 2)", "1 + poly(x, 2)"),
    ("y ~ x + offset(z)", "1 + x"),
    ("y ~ x.1 + _x + .x + x_2", "1 + x.1 + _x + .x + x_2"),
    ("y ~ log + C + I + Intercept", "1 + log + C + I + Intercept"),
    ("y ~ offset + us + pi + poly", "1 + offset + us + pi + poly"),
    ("y ~ if + class + lambda + None + TRUE + in", "1 + if + class + lambda + None + TRUE + in"),
    ("y ~ log:C + log(log)", "1 + log(log) + log:C"),
    ("y ~ `body mass` + `x`", "1 + `body mass` + x"),
    ("y ~ `a+b`:`1st` + `.5é`:`1é`", "1 + `a+b`:`1st` + `.5é`:`1é`"),
    ("y ~ größe + 年齢 + Δt", "1 + größe + 年齢 + Δt"),
    ("y ~ cafe\u0301 + caf\u00e9", "1 + caf\u00e9"),
    ("y ~ " + "long_name_" * 500, "1 + " + "long_name_" * 500),
]  # fmt: skip


@pytest.mark.parametrize(("text", "label"), FIXED)
def test_fixed_effects_expand_as_in_r(text, label):
    assert fixed(text) == label


LABELS = [
    ("I(x**2)", "I(x^2)"),
    ("I( x ^ 2 )", "I(x^2)"),
    ("I(x+1)", "I(x + 1)"),
    ("I((x+1)*2)", "I((x + 1) * 2)"),
    ("I(x+(1*2))", "I(x + 1 * 2)"),
    ("I(x-(z-1))", "I(x - (z - 1))"),
    ("I(x/z/2)", "I(x/z/2)"),
    ("I(x/(z*2))", "I(x/(z * 2))"),
    ("I(-x^2)", "I(-x^2)"),
    ("I((-x)^2)", "I((-x)^2)"),
    ("I(-(x+1))", "I(-(x + 1))"),
    ("I(x^-1)", "I(x^-1)"),
    ("I(x * -2)", "I(x * -2)"),
    ("I(x^z^2)", "I(x^z^2)"),
    ("I((x^z)^2)", "I((x^z)^2)"),
    ("I(2^x)", "I(2^x)"),
    ("I(x^(1/3))", "I(x^(1/3))"),
    ("I(0.50 * x + 1e3)", "I(0.5 * x + 1000)"),
    ("I(x * 1e-7)", "I(x * 1e-07)"),
    ("I(x + 2L)", "I(x + 2)"),
    ("log(x + 1)", "log(x + 1)"),
    ("sqrt(abs(x))", "sqrt(abs(x))"),
    ("log1p(x)", "log1p(x)"),
    ("expm1(x)", "expm1(x)"),
    ("log2(x)", "log2(x)"),
    ("log10(x)", "log10(x)"),
    ("exp(x)", "exp(x)"),
    ("tan(x)", "tan(x)"),
    ("sin(2*pi*t)", "sin(2 * pi * t)"),
    ("cos(pi)", "cos(pi)"),
    ("I(`pi` * 2)", "I(`pi` * 2)"),
    ("I(scale(x)^2)", "I(scale(x)^2)"),
    ("scale(x)", "scale(x)"),
    ("scale(x, FALSE)", "scale(x, center = FALSE)"),
    ("scale(x, scale=F, center=10)", "scale(x, center = 10, scale = FALSE)"),
    ("scale(x, center=-1.5)", "scale(x, center = -1.5)"),
    ("standardize(x)", "scale(x)"),
    ("center(log(x))", "center(log(x))"),
    ("poly(x, 2)", "poly(x, 2)"),
    ("poly(log(x), degree=3, raw=True)", "poly(log(x), 3, raw = TRUE)"),
    ("bs(x, 4)", "bs(x, 4)"),
    ("bs(x, df=5, degree=2)", "bs(x, 5, degree = 2)"),
    ("ns(x, 3)", "ns(x, 3)"),
    ("C(f)", "C(f)"),
    ("C(f, sum)", "C(f, sum)"),
    ("C(f, 'sum')", "C(f, sum)"),
    ("C(f, contr.helmert)", "C(f, helmert)"),
    ("C(factor(f), contrast=poly)", "C(f, poly)"),
    ("C(f, treatment, base=2)", "C(f, treatment, base = 2)"),
    ("C(f, ref='b c')", 'C(f, ref = "b c")'),
    ("C(f, ref='say \"b\"')", "C(f, ref = 'say \"b\"')"),
    ("C(f, ref=3)", "C(f, ref = 3)"),
    ("factor((`odd name`))", "factor(`odd name`)"),
    ("as.factor(f)", "factor(f)"),
]


@pytest.mark.parametrize(("text", "label"), LABELS)
def test_labels_are_canonical_and_mean_the_same_when_read_again(text, label):
    parsed = expression(text)
    assert parsed.label == label
    assert expression(label) == parsed


EXPRESSIONS = [
    ("x", Column("x")),
    ("`pi`", Column("pi")),
    ("I(x^2)", Call("I", (Binary("^", Column("x"), Number(2.0)),))),
    ("I(-x * 2)", Call("I", (Unary("-", Binary("*", Column("x"), Number(2.0))),))),
    ("I(a - b - c)", Call("I", (Binary("-", Binary("-", Column("a"), Column("b")), Column("c")),))),
    ("I(a^b^c)", Call("I", (Binary("^", Column("a"), Binary("^", Column("b"), Column("c"))),))),
    ("I(pi * x)", Call("I", (Binary("*", Number(math.pi), Column("x")),))),
    ("poly(x, degree=2)", Call("poly", (Column("x"), Number(2.0)))),
    ("C(f, sum)", Call("C", (Column("f"), Text("sum")))),
    ("C(f, ref='b')", Call("C", (Column("f"),), (("ref", Text("b")),))),
    ("scale(x, T, F)", Call("scale", (Column("x"),), (("center", Text("TRUE")), ("scale", Text("FALSE"))))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tree"), EXPRESSIONS)
def test_expressions_have_the_tree_of_r_precedence(text, tree):
    assert expression(text) == tree


def test_an_argument_is_found_by_name_wherever_it_is_kept():
    call = expression("poly(x, 2, raw=TRUE)")
    assert call.argument("degree") == Number(2.0)
    assert call.argument("raw") == Text("TRUE")
    assert expression("C(f)").argument("contrast") is None


RANDOM = [
    ("y ~ (1 | g)", ["(1 | g)"]),
    ("y ~ (x | g)", ["(1 + x | g)"]),
    ("y ~ (1 + x | g)", ["(1 + x | g)"]),
    ("y ~ (0 + x | g)", ["(0 + x | g)"]),
    ("y ~ (x - 1 | g)", ["(0 + x | g)"]),
    ("y ~ (x || g)", ["(1 + x || g)"]),
    ("y ~ (1|g) + (0+x|g)", ["(1 | g)", "(0 + x | g)"]),
    ("y ~ (1|a) + (1|b)", ["(1 | a)", "(1 | b)"]),
    ("y ~ (1|a:b)", ["(1 | a:b)"]),
    ("y ~ (1|a/b)", ["(1 | a)", "(1 | a:b)"]),
    ("y ~ (1|a/b/c)", ["(1 | a)", "(1 | a:b)", "(1 | a:b:c)"]),
    ("y ~ (1|a/(b/c))", ["(1 | a)", "(1 | a:b)", "(1 | a:b:c)"]),
    ("y ~ (1|(a/b)/c)", ["(1 | a)", "(1 | a:b)", "(1 | a:b:c)"]),
    ("y ~ (1|a:b/c)", ["(1 | a:b)", "(1 | a:b:c)"]),
    ("y ~ (1|a/b:c)", ["(1 | a)", "(1 | a:b:c)"]),
    ("y ~ (1|(g))", ["(1 | g)"]),
    ("y ~ (1|factor(g))", ["(1 | g)"]),
    ("y ~ (1|as.factor(a):b)", ["(1 | a:b)"]),
    ("y ~ (1|a) + (1|a:b)", ["(1 | a)", "(1 | a:b)"]),
    ("y ~ (x|a/b) + (0+z|a)", ["(1 + x | a)", "(1 + x | a:b)", "(0 + z | a)"]),
    ("y ~ (a*b | g)", ["(1 + a + b + a:b | g)"]),
    ("y ~ (log(t) + I(t^2) || g)", ["(1 + log(t) + I(t^2) || g)"]),
    ("y ~ us(1 + x | g)", ["(1 + x | g)"]),
    ("y ~ diag(1 + x | g)", ["(1 + x || g)"]),
    ("y ~ cs(1 + x | g)", ["cs(1 + x | g)"]),
    ("y ~ homdiag(0 + f | g)", ["homdiag(0 + f | g)"]),
    ("y ~ cs((x | a/b))", ["cs(1 + x | a)", "cs(1 + x | a:b)"]),
    ("y ~ ((1|g))", ["(1 | g)"]),
    ("y ~ (x + (1|g))", ["(1 | g)"]),
    ("y ~ (1|`school id`)", ["(1 | `school id`)"]),
    ("y ~ (g | h) + (h | g)", ["(1 + g | h)", "(1 + h | g)"]),
    ("y ~ x", []),
]


@pytest.mark.parametrize(("text", "terms"), RANDOM)
def test_random_effects_terms_read_as_in_lme4(text, terms):
    assert random(text) == terms


@pytest.mark.parametrize("text", [text for text, terms in RANDOM if terms])
def test_the_text_of_a_random_effects_term_reads_as_that_term(text):
    for term in parse(text).random:
        assert parse(f"y ~ {term.text}").random == (term,)


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("(x | g)", "unstructured"),
        ("us(x | g)", "unstructured"),
        ("(x || g)", "independent"),
        ("diag(x | g)", "independent"),
        ("cs(x | g)", "exchangeable"),
        ("homdiag(x | g)", "identity"),
    ],
)
def test_wrappers_and_the_double_bar_name_the_structure(text, structure):
    (term,) = parse(f"y ~ {text}").random
    assert term.structure == structure
    assert term.effects.intercept
    assert [effect.label for effect in term.effects.terms] == ["x"]


def test_a_grouping_is_its_columns_and_their_joint_label():
    outer, inner = parse("y ~ (1 | school/`class room`)").random
    assert (outer.group, outer.group_label) == (("school",), "school")
    assert (inner.group, inner.group_label) == (("school", "class room"), "school:class room")


def test_columns_are_listed_once_response_first():
    formula = parse("log(y) ~ x*f + I(x^2 + z) + offset(log(n)) + (1 + w | a/b)")
    assert formula.columns == ("y", "x", "f", "z", "n", "w", "a", "b")


def test_offsets_are_kept_apart_from_the_effects():
    formula = parse("y ~ x + offset(z) + offset(log(n) * 2)")
    assert [offset.label for offset in formula.offsets] == ["z", "log(n) * 2"]
    assert formula.fixed.label == "1 + x"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("y ~ x", "y"),
        ("(y) ~ x", "y"),
        ("`my y` ~ x", "`my y`"),
        ("log(y) ~ x", "log(y)"),
        ("scale(y) ~ x", "scale(y)"),
        ("I(y / 100) ~ x", "I(y/100)"),
        ("I(y - baseline) ~ baseline", "I(y - baseline)"),
    ],
)
def test_the_response_is_a_column_or_a_function(text, label):
    assert parse(text).response.label == label


def test_a_removed_response_is_no_longer_on_the_right():
    assert fixed("y ~ x + y - y") == "1 + x"


def test_formulas_are_equal_whatever_their_spacing_and_spelling():
    first = parse("y~x**1*f+(x|g)")
    second = parse("y ~ x + f + x:f + (1 + x | g)")
    assert first == second
    assert hash(first) == hash(second)
    assert first != parse("y ~ x*f + (x || g)")


def test_a_formula_prints_on_one_line_and_reads_back_equal():
    formula = parse(" y ~  `a  b` +\n   C(f, ref='u  v') + (1 |\tg) ")
    assert str(formula) == "y ~ `a  b` + C(f, ref='u  v') + (1 | g)"
    assert parse(str(formula)) == formula


def test_a_formula_cannot_be_changed():
    formula = parse("y ~ x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        formula.response = Column("z")


def test_the_same_text_is_parsed_once():
    assert parse("y ~ cached + (1 | g)") is parse("y ~ cached + (1 | g)")


def test_user_functions_are_known_by_name_only_when_given():
    call = expression("logit(x, 0.5, kind='a', shift=z + 1)", functions={"logit"})
    assert call.label == 'logit(x, 0.5, kind = "a", shift = z + 1)'
    assert call.columns == ("x", "z")
    assert expression(call.label, functions=frozenset({"logit"})) == call
    assert expression("I(logit(x) + 1)", functions={"logit": math.exp}).label == "I(logit(x) + 1)"
    with pytest.raises(FormulaError, match="unknown function 'logit'"):
        parse("y ~ logit(x)")


@pytest.mark.parametrize("name", ["log", "offset", "us", "a b", "", "1x", "standardize"])
def test_user_functions_have_plain_names_of_their_own(name):
    with pytest.raises(FormulaError, match="plain name"):
        parse("y ~ x", functions={name})


@pytest.mark.parametrize("arguments", ["k=1, x", "x, k=1, k=2"])
def test_user_functions_take_each_keyword_once_and_last(arguments):
    with pytest.raises(FormulaError, match="by position come first"):
        parse(f"y ~ f({arguments})", functions={"f"})


@pytest.mark.parametrize(
    ("text", "advice"),
    [("y ~ x**2", "I(x**2)"), ("y ~ z + log(x)^2", "I(log(x)^2)"), ("y ~ (x**2 | g)", "I(x**2)")],
)
def test_a_power_of_one_term_warns_each_time_and_means_the_term(text, advice):
    for _ in range(2):
        with pytest.warns(JaxMixedWarning) as caught:
            formula = parse(text)
        assert f"use {advice}" in str(caught[0].message)
    assert "x^2" not in str([term.label for term in formula.fixed.terms])


def test_a_power_of_several_terms_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse("y ~ (a + b)^2 + I(x**2)")


# Formula, the piece under the carets, and what the message must say.
ERRORS = [
    ("y", "", "needs a '~'"),
    ("y x", "", "needs a '~'"),
    ("1|g", "", "needs a '~'"),
    ("y = x", "=", "needs a '~'"),
    ("y ~", "~", "nothing follows the '~'"),
    ("~ x", "~", "no response"),
    ("y ~ x ~ z", "~", "a second '~'"),
    ("y ~ (x", "(", "never closed"),
    ("y ~ (x + (z)", "(", "never closed"),
    ("(y ~ x)", "(", "never closed"),
    ("y ~ (", "(", "never closed"),
    ("y ~ I(x", "(", "never closed"),
    ("y ~ I(", "(", "never closed"),
    ("y ~ x)", ")", "closes nothing"),
    ("y ~ ()", "()", "empty parentheses"),
    ("y ~ x +", "+", "nothing follows the '+'"),
    ("y ~ (x + )", "+", "nothing follows the '+'"),
    ("y ~ x **", "**", "nothing follows"),
    ("y ~ * x", "*", "nothing stands before the '*'"),
    ("y ~ x + * z", "*", "nothing stands before the '*'"),
    ("y ~ x // z", "/", "nothing stands before"),
    ("y ~ %in% x", "%in%", "nothing stands before"),
    ("y ~ a b", "b", "an operator is missing"),
    ("y ~ log(x) log(z)", "log", "an operator is missing"),
    ("y ~ `a`(x)", "(", "an operator is missing"),
    ("y ~ x (1|g)", "x (1|g)", "write x + (1|g)"),
    ("y ~ x, z", ",", "a comma stands only"),
    ("y ~ x = 2", "=", "'='"),
    ("y ~ x == 2", "=", "comparison"),
    ("y ~ x > 2", ">", "comparisons are not part"),
    ("y ~ x != 2", "!", "comparisons are not part"),
    ("y ~ x[1]", "[", "round brackets"),
    ("y ~ {x}", "{", "round brackets"),
    ("y ~ d$x", "$", "name of the column alone"),
    ("y ~ x %% 2", "%", "'%in%'"),
    ("y ~ x; z", ";", "one formula at a time"),
    ("y ~ x # note", "#", "comments"),
    ("y ~ `x", "`", "never closed"),
    ("y ~ 'x", "'", "never closed"),
    ("y ~ ``", "``", "empty backquotes"),
    ("y ~ 'a'", "'a'", "a text is not a term"),
    ("y ~ 2x", "2x", "runs into a name"),
    ("y ~ 0x10", "0x", "runs into a name"),
    ("y ~ 1e999", "1e999", "too large"),
    ("y ~ x \u2212 z", "\u2212", "only looks like '-'"),
    ("y ~ x\u00d7z", "\u00d7", "only looks like '*'"),
    ("y \u223c x", "\u223c", "only looks like '~'"),
    ("y ~ a\u00b7b", "\u00b7", "only looks like '*'"),
    ("y ~ (1 \u01c0 g)", "\u01c0", "only looks like '|'"),
    ("y ~ x\u00b2", "\u00b2", "write I(x^2)"),
    ("y ~ x?", "?", "unexpected character"),
    ("y ~ x\u20ac", "\u20ac", "unexpected character"),
    ("y ~ .", ".", "name the columns"),
    ("y ~ . - x", ".", "name the columns"),
    ("y ~ ..", "..", "name the columns"),
    ("y ~ 2", "2", "other than 0 and 1"),
    ("y ~ x + 0.5", "0.5", "other than 0 and 1"),
    ("y ~ 0", "0", "no effect at all"),
    ("y ~ x - x - 1", "x - x - 1", "no effect at all"),
    ("y ~ x:1", "1", "an intercept cannot be part"),
    ("y ~ (0 + x):f", "0", "an intercept cannot be part"),
    ("y ~ a:-b", "b", "cannot be removed inside"),
    ("y ~ (a - b)*c", "b", "cannot be removed inside"),
    ("y ~ x^0.5", "0.5", "I(x^0.5)"),
    ("y ~ x^-1", "-1", "I(x^-1)"),
    ("y ~ x^z", "z", "whole number from 1 to 100"),
    ("y ~ (a + b)^0", "0", "whole number from 1 to 100"),
    ("y ~ (a + b)^101", "101", "whole number from 1 to 100"),
    ("y ~ 9**9**9**9", "9", "other than 0 and 1"),
    ("y ~ I(9**9**9**9)", "9**9", "constant exponent"),
    ("y ~ I(x**9**9)", "9**9", "constant exponent"),
    ("y ~ I(x^1000)", "1000", "constant exponent"),
    ("y ~ I(x^(1/0))", "(1/0)", "constant exponent"),
    ("y ~ I(x^(50*3-1+9))", "(50*3-1+9)", "constant exponent"),
    # bars
    ("y ~ 1|g", "1|g", "in parentheses: (1 | g)"),
    ("y ~ x + 1|g", "1|g", "in parentheses: (1 | g)"),
    ("y ~ x + z||g + w", "z||g", "in parentheses: (z || g)"),
    ("y ~ x + 1|g + 1|h", "|", "a second bar"),
    ("y ~ (1|g|h)", "|", "a second bar"),
    ("y ~ (|g)", "|", "nothing stands before the '|'"),
    ("y ~ (1|)", "|", "nothing follows the '|'"),
    ("y ~ x*(1|g)", "(1|g)", "part of an interaction"),
    ("y ~ x:(1|g)", "(1|g)", "part of an interaction"),
    ("y ~ x:cs(1|g)", "cs(1|g)", "part of an interaction"),
    ("y ~ (x + (1|g))^2", "(1|g)", "part of an interaction"),
    ("y ~ x - (1|g)", "(1|g)", "cannot be removed"),
    ("y ~ ((1|g)|h)", "(1|g)", "inside another"),
    ("y ~ (1|(1|g))", "1|g", "made of columns"),
    ("y ~ log(1|g)", "|", "cannot stand inside a function"),
    ("(1|g) ~ x", "1|g", "left of '~'"),
    ("cs(1|g) ~ x", "cs(1|g)", "left of '~'"),
    ("y ~ (0|g)", "(0|g)", "has no effect"),
    ("y ~ (x - x - 1|g)", "(x - x - 1|g)", "has no effect"),
    ("y ~ (f|f)", "(f|f)", "both sides of the bar"),
    ("y ~ (log(t)|g:t)", "(log(t)|g:t)", "both sides of the bar"),
    ("y ~ (b|a/b)", "(b|a/b)", "both sides of the bar"),
    ("y ~ (1|1)", "1", "a number cannot be a group"),
    ("y ~ (1|'g')", "'g'", "a text cannot be a group"),
    ("y ~ (1|g+h)", "g+h", "(1 | a) + (1 | b)"),
    ("y ~ (1|g*h)", "g*h", "(1 | a) + (1 | b) + (1 | a:b)"),
    ("y ~ (1|log(g))", "log(g)", "columns joined by ':' or '/'"),
    ("y ~ (1|g^2)", "g^2", "columns joined by ':' or '/'"),
    ("y ~ (1|-g)", "-g", "columns joined by ':' or '/'"),
    ("y ~ (1|a %in% b)", "a %in% b", "columns joined by ':' or '/'"),
    ("y ~ (1|a:(b/c))", "a:(b/c)", "'/' cannot stand inside ':'"),
    ("y ~ (1|a/a)", "a/a", "twice"),
    ("y ~ (1|a:b:a)", "a:b:a", "twice"),
    ("y ~ (1|g)+(1|g)", "(1|g)", "not identifiable; keep one"),
    ("y ~ (1|g)+(1+x|g)", "(1+x|g)", "not identifiable; write (0 + x | g)"),
    ("y ~ (x|g)+(x+z||g)", "(x+z||g)", "write (0 + z || g)"),
    ("y ~ (x|g)+(0+x|g)", "(0+x|g)", "a random effect of x by g is already"),
    ("y ~ (a:b|g)+(0+b:a|g)", "(0+b:a|g)", "not identifiable"),
    ("y ~ (1|a/b)+(1|a)", "(1|a)", "a random intercept by a is already"),
    ("y ~ (1|a:b)+(1|b:a)", "(1|b:a)", "not identifiable"),
    ("y ~ us(x||g)", "||", "'||' already means diag()"),
    ("y ~ cs(x)", "cs(x)", "goes around a random-effects term"),
    ("y ~ cs(1|g, 2)", "cs(1|g, 2)", "goes around a random-effects term"),
    ("y ~ hetar1(0 + t | g)", "hetar1(0 + t | g)", "not available yet"),
    ("y ~ toep(1 | g)", "toep(1 | g)", "not available yet"),
    # the response
    ("y ~ y", "y", "the response 'y' also stands on the right"),
    ("y ~ x + y:z", "y", "the response 'y'"),
    ("log(y) ~ x + y", "y", "the response 'y'"),
    ("y ~ x + (1|y)", "y", "the response 'y'"),
    ("y ~ (y|g)", "y", "the response 'y'"),
    ("y ~ offset(y)", "y", "the response 'y'"),
    ("I(y - z) ~ I(y-z)", "I(y-z)", "the response I(y - z)"),
    ("y/2 ~ x", "y/2", "I(y/2) ~"),
    ("y + z ~ x", "y + z", "I(y + z) ~"),
    ("2 ~ x", "2", "the response must be a column"),
    ("'y' ~ x", "'y'", "the response must be a column"),
    ("poly(y, 2) ~ x", "poly(y, 2)", "poly() cannot be the response"),
    ("C(y) ~ x", "C(y)", "C() cannot be the response"),
    ("offset(y) ~ x", "offset(y)", "offset() stands on its own"),
    # functions
    ("y ~ foo(x)", "foo", "unknown function 'foo'"),
    ("y ~ logg(x)", "logg", "did you mean log()?"),
    ("y ~ np.log(x)", "np.log", "did you mean log()?"),
    ("y ~ x.to_csv('a')", "x.to_csv", "unknown function"),
    ("y ~ __import__('os')", "__import__", "unknown function"),
    ("y ~ I(eval('1'))", "eval", "unknown function"),
    ("y ~ log()", "log()", "log() needs an argument"),
    ("y ~ log(x, 2)", "2", "write log(x)"),
    ("y ~ log(x=z)", "x", "first argument of log() is the data"),
    ("y ~ log('x')", "'x'", "a text is not a number"),
    ("y ~ I(2)", "I(2)", "names no column"),
    ("y ~ log(2 * pi)", "log(2 * pi)", "names no column"),
    ("y ~ I(x:z)", ":", "write '*' for a product"),
    ("y ~ I(x %in% z)", "%in%", "write '*' for a product"),
    ("y ~ I(poly(x, 2))", "poly(x, 2)", "cannot stand inside another function"),
    ("y ~ log(factor(f))", "factor(f)", "cannot stand inside another function"),
    ("y ~ factor(x + 1)", "x + 1", "takes the name of a column"),
    ("y ~ C(poly(f, 2))", "poly(f, 2)", "takes the name of a column"),
    ("y ~ poly(x)", "poly(x)", "needs degree"),
    ("y ~ ns(x)", "ns(x)", "needs df"),
    ("y ~ poly(x, 0)", "0", "whole number from 1 to 100"),
    ("y ~ poly(x, 1.5)", "1.5", "whole number from 1 to 100"),
    ("y ~ poly(x, z)", "z", "whole number from 1 to 100"),
    ("y ~ poly(x, 2, 3)", "3", "raw of poly() must be TRUE or FALSE"),
    ("y ~ poly(x, degree=2, 3)", "3", "no such argument by position"),
    ("y ~ poly(x, 2, degree=3)", "degree", "'degree'"),
    ("y ~ poly(x, degre=2)", "degre", "'degre'"),
    ("y ~ scale(x, center=-z)", "-z", "TRUE, FALSE or a number"),
    ("y ~ C(f, foo)", "foo", "treatment, sum, helmert, poly"),
    ("y ~ C(f, sum, base=2)", "2", "only treatment contrasts"),
    ("y ~ C(f, helmert, ref='a')", "'a'", "only treatment contrasts"),
    ("y ~ C(f, base=2, ref='a')", "'a'", "keep one"),
    ("y ~ C(f, ref=b)", "b", "in quotation marks"),
    ("y ~ offset(2)", "offset(2)", "names no column"),
    ("y ~ offset(x, z)", "offset(x, z)", "one column or expression"),
    ("y ~ x:offset(z)", "offset(z)", "added by '+'"),
    ("y ~ x - offset(z)", "offset(z)", "added by '+'"),
    ("y ~ (offset(z)|g)", "offset(z)", "added by '+'"),
    ("y ~ log(offset(z))", "offset(z)", "added by '+'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "piece", "says"), ERRORS)
def test_every_mistake_is_pointed_at_with_advice(text, piece, says):
    with pytest.raises(FormulaError) as caught:
        parse(text)
    message = str(caught.value)
    start, found = pointed_at(text, message)
    assert found == piece
    assert f"(character {start + 1}, " in message
    assert says in message.split("\n")[0]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_formula_is_an_error(text):
    with pytest.raises(FormulaError, match="the formula is empty"):
        parse(text)


@pytest.mark.parametrize("thing", [None, 3, b"y ~ x", ["y ~ x"], parse("y ~ x")])
def test_a_formula_that_is_not_a_text_is_an_error(thing):
    with pytest.raises(FormulaError, match=f"not {type(thing).__name__}"):
        parse(thing)


def test_a_name_that_starts_with_a_combining_mark_is_refused():
    with pytest.raises(FormulaError, match="starts with a letter"):
        parse("y ~ \u0301x")


def test_the_caret_stays_under_the_piece_after_wide_and_combining_characters():
    with pytest.raises(FormulaError) as caught:
        parse("年齢 ~ e\u0301 + foo(x)")
    _, line, pointer = str(caught.value).split("\n")
    assert line == "  年齢 ~ e\u0301 + foo(x)"
    assert pointer == " " * 13 + "^^^"


def test_only_the_line_of_the_mistake_is_shown():
    with pytest.raises(FormulaError) as caught:
        parse("y ~ x +\n    foo(z) +\n    w")
    assert str(caught.value).split("\n")[1:] == ["      foo(z) +", "      ^^^"]


def test_a_long_line_is_shown_around_the_mistake():
    left, right = "+".join(f"a{i}" for i in range(500)), "+".join(f"b{i}" for i in range(500))
    with pytest.raises(FormulaError) as caught:
        parse(f"y ~ {left}+foo(x)+{right}")
    _, line, pointer = str(caught.value).split("\n")
    assert len(line) < 120
    assert line[pointer.index("^") :].startswith("foo(x)+")
    assert line.startswith("  ...")
    assert line.endswith("...")

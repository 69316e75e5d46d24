"""Formulas in lme4's grammar: text in, immutable parts out. Nothing in a formula is ever evaluated.

Grammar
-------
The loosest operators come first; all are left-associative but the power, which is right-associative. White
space and line breaks may stand between any two tokens. ``**`` and ``^`` are the same operator. ::

    formula     = response "~" sum
    response    = column | call | "(" response ")"
    sum         = ["+" | "-"] product { ("+" | "-") product }       add and remove terms
    product     = nested { ("*" | "/") nested }                     a*b = a + b + a:b;  a/b = a + a:b
    nested      = interaction { "%in%" interaction }                a %in% b = a:b
    interaction = power { ":" power }
    power       = primary [ ("^" | "**") power ]                    (a + b + c)^2 = all interactions of two
    primary     = "0" | "1" | column | call | "(" sum ")" | random | "offset" "(" arithmetic ")"
    random      = "(" bar ")" | wrapper "(" bar ")"
    wrapper     = "us" | "diag" | "cs" | "homdiag" | "ar1" | "toeplitz" | "homtoep"
    bar         = sum ("|" | "||") grouping
    grouping    = crossed { "/" crossed }                           a/b = a and a:b
    crossed     = group { ":" group }
    group       = column | "factor" "(" column ")" | "(" grouping ")"
    call        = function "(" argument { "," argument } ")"
    argument    = [ keyword "=" ] ( arithmetic | text )
    arithmetic  = numbers, columns, "pi", calls, and + - * / ^ ** with the usual precedence
    column      = name | "`" any printable characters but the backquote "`"
    name        = letter or "_" or ".", then letters, digits, "_", "."      Unicode, read in normal form C

The functions are those of `jaxmixed.terms.FUNCTIONS`: ``I log log2 log10 log1p exp expm1 sqrt abs sin cos
tan``, ``scale(x, center=, scale=)`` (also ``standardize``), ``center(x)``, ``poly(x, degree, raw=)``, ``bs(x,
df, degree=)``, ``ns(x, df)``, ``C(f, contrast, base=, ref=)`` and ``factor(f)`` (also ``as.factor``); the
user's own ones enter by name through ``functions=``. A name is a function only before a parenthesis, so
columns may be called ``log``, ``C`` or ``I``.

Meaning
-------
As in R [1]_ and lme4 [2]_: the intercept is implicit (``0 +``, ``- 1`` and ``+ 0`` remove it, the last word
wins), a term written twice counts once, terms are sorted by degree and then by appearance, the factors of an
interaction by their first appearance. Each random-effects term has an implicit intercept of its own. ``(x ||
g)`` is one term with independent effects. ``ar1(0 + t | g)`` and ``toeplitz(0 + t | g)`` are about the levels
of t, in their order, whether t is a factor or numbers: ``ar1(0 + C(t) | g)``.

Deliberate differences, each an error here that says what to write: a bar outside parentheses (R takes all
that stands before it); ``.``; arithmetic as response outside ``I()``; the response on the right side (R
drops it); an intercept inside an interaction; terms that cannot be told apart, as in ``(1 | g) + (x | g)``;
an effect that is also its own grouping. ``x**2`` outside ``I()`` means ``x`` as in R, with a warning. In
arithmetic a bare ``pi`` beside an operator is the constant; write the column in backquotes.

A formula may have 10,000 characters, 100 levels of nesting, 100 operations in one arithmetic expression,
2,000 terms after expansion, and exponents up to 100; what is larger is refused.

References
----------
.. [1] R Core Team. *R: A Language and Environment for Statistical Computing*. Help page ``formula`` of the
   package stats.
.. [2] Bates, D., Mächler, M., Bolker, B. and Walker, S. (2015). Fitting linear mixed-effects models using
   lme4. *Journal of Statistical Software*, 67(1), section 2. https://doi.org/10.18637/jss.v067.i01
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import lru_cache, reduce
from operator import or_

from jaxmixed._tokens import (
    MAX_DEPTH,
    MAX_EXPONENT,
    MAX_PRODUCTS,
    MAX_TERMS,
    Node,
    SyntaxReader,
    Token,
    error,
    is_plain_name,
    one_line,
    tokenize,
)
from jaxmixed.errors import FormulaError, JaxMixedWarning
from jaxmixed.terms import (
    ALIASES,
    FUNCTIONS,
    FUTURE_STRUCTURES,
    ORDERED,
    STRUCTURES,
    Binary,
    Call,
    Column,
    Effects,
    Expr,
    ExpressionReader,
    Formula,
    Number,
    RandomTerm,
    Term,
    Text,
    Unary,
)

__all__ = [
    "Binary",
    "Call",
    "Column",
    "Effects",
    "Expr",
    "Formula",
    "Number",
    "RandomTerm",
    "Term",
    "Text",
    "Unary",
    "parse",
]

_RESERVED = frozenset({*FUNCTIONS, *ALIASES, *STRUCTURES, *FUTURE_STRUCTURES, "offset"})


def parse(text: str, functions: Collection[str] = frozenset()) -> Formula:
    """Return the parts of a formula.

    Results are kept, so that parsing the same text again costs one look-up.

    Parameters
    ----------
    text : str
        A formula such as ``"y ~ x + (1 + x | school)"``; the module's documentation has the grammar.
    functions : collection of str
        Names of the user's own functions that the formula may call.

    Returns
    -------
    Formula
        Response, fixed effects, offsets and random-effects terms.

    Raises
    ------
    FormulaError
        If the text is not a formula or not a model; the message shows where, and says what to write instead.

    Warns
    -----
    JaxMixedWarning
        If ``x**2`` stands outside ``I()``, where it means ``x`` alone.

    Examples
    --------
    >>> formula = parse("log(y) ~ x * f + (1 + x | school/class)")
    >>> formula.response.label, [term.label for term in formula.fixed.terms]
    ('log(y)', ['x', 'f', 'x:f'])
    >>> [term.text for term in formula.random]
    ['(1 + x | school)', '(1 + x | school:class)']
    >>> formula.columns
    ('y', 'x', 'f', 'school', 'class')
    """
    if not isinstance(text, str):
        raise FormulaError(f"a formula must be a text such as 'y ~ x + (1 | g)', not {type(text).__name__}")
    formula, notes = _parse(str(text), frozenset(functions))
    for note in notes:
        warnings.warn(note, JaxMixedWarning, stacklevel=2)
    return formula


@lru_cache(maxsize=512)
def _parse(text: str, functions: frozenset[str]) -> tuple[Formula, tuple[str, ...]]:
    """Return the formula and the warnings to be given each time it is asked for."""
    for name in functions:
        if not is_plain_name(str(name)) or name in _RESERVED:
            raise FormulaError(
                f"functions={{{name!r}: ...}}: give the function a plain name that the grammar does not use"
            )
    tokens = tokenize(text)
    left, right = SyntaxReader(text, tokens).formula()
    reader = _Reader(text, tokens, functions)
    return reader.formula(left, right), tuple(reader.notes)


class _Reader:
    """Gives syntax its meaning, and holds what one formula accumulates."""

    def __init__(self, text: str, tokens: list[Token], functions: frozenset[str]) -> None:
        self.text = text
        self.tokens = tokens
        self.expressions = ExpressionReader(text, functions)
        self.notes: list[str] = []
        self.offsets: list[Expr] = []
        self.random: list[RandomTerm] = []
        self.seen: set[tuple[frozenset[str], frozenset[Expr]]] = set()
        self.num_terms = 0
        self.num_products = 0

    def fail(self, node: Node | Token, problem: str) -> FormulaError:
        return error(self.text, node.start, node.end, problem)

    def source(self, node: Node) -> str:
        return self.text[node.start : node.end]

    def formula(self, left: Node, right: Node) -> Formula:
        """Return the formula of two sides."""
        response = self._response(left)
        algebra = _Algebra(self, fixed=True)
        fixed = algebra.effects(right)
        if not (fixed.intercept or fixed.terms or self.offsets or self.random):
            raise self.fail(right, "the right side leaves no effect at all: write 1 for a mean alone")
        formula = Formula(
            response, fixed, tuple(self.offsets), tuple(self.random), one_line(self.text, self.tokens)
        )
        self._check_response(formula, right, algebra)
        return formula

    def _response(self, node: Node) -> Expr:
        """Return the response: a column or a function of columns."""
        if node.kind == "paren":
            return self._response(node.children[0])
        if node.kind in ("name", "quoted"):
            return Column(node.value)
        if node.kind == "bar" or (node.kind == "call" and node.value in STRUCTURES):
            raise self.fail(
                node, "a random-effects term cannot stand on the left of '~': move it to the right"
            )
        if node.kind == "call":
            response = self.expressions.term(node)
            kind = FUNCTIONS[response.name].kind if response.name in FUNCTIONS else "user"
            if kind in ("columns", "factor"):
                raise self.fail(
                    node, f"{response.name}() cannot be the response, which is one column of numbers"
                )
            return response
        if node.kind in ("number", "text"):
            raise self.fail(node, "the response must be a column, or a function of columns such as log(y)")
        raise self.fail(node, f"write an expression as response inside I(): I({self.source(node)}) ~ ...")

    def _check_response(self, formula: Formula, right: Node, algebra: _Algebra) -> None:
        """Refuse a right side that contains the response."""
        response = formula.response
        if len(response.columns) > 1:
            if response in algebra.factors:
                raise self.fail(
                    right, f"the response {response.label} also stands on the right of '~': take it out there"
                )
            return
        name = response.columns[0]
        parts = (formula.fixed, *formula.offsets, *formula.random)
        if any(name in part.columns for part in parts):
            found = [
                token
                for token, following in zip(self.tokens, self.tokens[1:], strict=False)
                if token.start >= right.start and token.kind in ("name", "quoted") and token.value == name
                if following.kind != "("
            ]
            raise self.fail(
                found[0], f"the response {name!r} also stands on the right of '~': take it out there"
            )

    # Random-effects terms

    def random_terms(self, place: Node, bar: Node, wrapper: str | None) -> None:
        """Add the random-effects terms of ``(effects | group)``; a nested grouping makes several."""
        if wrapper is not None and bar.value == "||":
            raise self.fail(
                bar.operators[0], f"'||' already means diag(): write a single bar inside {wrapper}()"
            )
        structure = "independent" if bar.value == "||" else STRUCTURES[wrapper or "us"]
        effects = _Algebra(self, fixed=False).effects(bar.children[0])
        if not (effects.intercept or effects.terms):
            raise self.fail(place, "this random-effects term has no effect: write (1 | g) or (0 + x | g)")
        if structure in ORDERED:
            effects = self._levels_in_order(place, effects, wrapper or structure)
        groups = self._groups(bar.children[1])
        if len(groups[-1]) > MAX_DEPTH:
            raise self.fail(
                bar.children[1], f"more than {MAX_DEPTH} grouping columns in one term: make a column of them"
            )
        self.count_terms(place, len(groups) * (len(effects.terms) + 1))
        used = set(effects.columns)
        for group in groups:
            both = [name for name in group if name in used]
            if both:
                raise self.fail(
                    place,
                    f"{both[0]!r} stands on both sides of the bar: it is constant within its own groups, "
                    "so its effect cannot vary between them; take it out of one side",
                )
            term = RandomTerm(effects, group, structure, _random_text(effects, group, structure))
            self._check_new(place, term)
            self.random.append(term)

    def _levels_in_order(self, place: Node, effects: Effects, wrapper: str) -> Effects:
        """Return the effects of a structure over ordered levels: those of the levels of one column."""
        factors = [factor for term in effects.terms for factor in term.factors]
        own = factors[0] if len(factors) == 1 else None
        if isinstance(own, Column):
            own = Call("C", (own,))
        if effects.intercept or not (isinstance(own, Call) and own.name in ("C", "factor")):
            raise self.fail(
                place,
                f"{wrapper}() is about the levels of one column, without an intercept: write "
                f"{wrapper}(0 + {effects.columns[0] if effects.columns else 'time'} | g)",
            )
        return Effects(False, (Term((own,)),))

    def _check_new(self, place: Node, term: RandomTerm) -> None:
        """Refuse an effect that an earlier term already lets vary over the same groups."""
        group, effects = frozenset(term.group), term.effects
        keys = {each: (group, frozenset(each.factors)) for each in effects.terms}
        if effects.intercept:
            keys = {Term(()): (group, frozenset()), **keys}
        twice = [each for each, key in keys.items() if key in self.seen]
        if twice:
            left = Effects(
                effects.intercept and Term(()) not in twice,
                tuple(each for each in effects.terms if each not in twice),
            )
            remedy = "keep one of the two"
            if left.intercept or left.terms:
                remedy = f"write {_random_text(left, term.group, term.structure)}"
            what = f"effect of {twice[0].label}" if twice[0].factors else "intercept"
            raise self.fail(
                place,
                f"term {term.text}: a random {what} by {term.group_label} is already in the formula, "
                f"so the two variances are not identifiable; {remedy}",
            )
        self.seen.update(keys.values())

    def _groups(self, node: Node) -> list[tuple[str, ...]]:
        """Return the groupings, coarsest first: ``a/b`` is ``a`` and ``a:b``."""
        if node.kind == "paren":
            return self._groups(node.children[0])
        if node.kind in ("name", "quoted"):
            return [(node.value,)]
        if node.kind == "call" and ALIASES.get(node.value, node.value) == "factor":
            return [(self.expressions.term(node).columns[0],)]
        slashes = node.kind == "product" and all(operator.kind == "/" for operator in node.operators)
        if node.kind == "interaction" or slashes:
            groups = self._groups(node.children[0])
            for child in node.children[1:]:
                finer = [groups[-1] + group for group in self._groups(child)]
                if not slashes and len(groups) + len(finer) > 2:
                    raise self.fail(
                        node, "'/' cannot stand inside ':' in a grouping: write the terms one by one"
                    )
                groups = groups + finer if slashes else finer
            if len(set(groups[-1])) < len(groups[-1]):
                raise self.fail(node, "a grouping names the same column twice: keep it once")
            return groups
        problem = {
            "number": "a number cannot be a group: name the grouping column, as in (1 | school)",
            "text": "a text cannot be a group: name the grouping column without quotation marks",
            "sum": "'+' cannot stand in a grouping: write one term for each, (1 | a) + (1 | b)",
            "product": "'*' cannot stand in a grouping: write (1 | a) + (1 | b) + (1 | a:b)",
        }.get(node.kind, "a grouping is made of columns joined by ':' or '/': make a column, and name it")
        raise self.fail(node, problem)

    def count_terms(self, place: Node, number: int, products: int = 0) -> None:
        """Count terms and the work to make them; refuse what grows beyond the limits."""
        self.num_terms += number
        self.num_products += products
        if self.num_terms > MAX_TERMS or self.num_products > MAX_PRODUCTS:
            raise self.fail(
                place, f"the formula expands to more than {MAX_TERMS:,} terms: use fewer '*' and '^'"
            )


class _Algebra:
    """Expands one sum of terms as R does; a term is a set of factors, kept as the bits of an integer."""

    def __init__(self, reader: _Reader, fixed: bool) -> None:
        self.reader = reader
        self.fixed = fixed
        self.factors: dict[Expr, int] = {}
        self.intercept = True

    def effects(self, node: Node) -> Effects:
        """Return the intercept and the terms, by degree and appearance."""
        masks = sorted(self._expand(node, 1, True), key=int.bit_count)
        self.reader.count_terms(node, len(masks))
        factors = list(self.factors)
        return Effects(self.intercept, tuple(Term(_chosen(factors, mask)) for mask in masks))

    def _expand(self, node: Node, sign: int, additive: bool) -> dict[int, None]:
        """Return the terms of a node; ``additive`` while only sums and parentheses stand around it."""
        kind = node.kind
        if kind in ("sum", "sign"):
            return self._sum(node, sign, additive)
        if kind in ("name", "quoted"):
            return {self._bit(Column(node.value)): None}
        if kind == "paren":
            if node.children[0].kind == "bar":
                return self._bar(node, node.children[0], None, sign, additive)
            return self._expand(node.children[0], sign, additive)
        if kind == "call":
            return self._call(node, sign, additive)
        if kind == "number":
            return self._number(node, sign, additive)
        if kind == "power":
            return self._power(node, sign)
        if kind == "bar":
            raise self._unparenthesised(node)
        if kind == "text":
            raise self.reader.fail(node, "a text is not a term: name a column, in backquotes if need be")
        left = self._expand(node.children[0], sign, False)
        for operator, child in zip(node.operators, node.children[1:], strict=True):
            left = self._combine(operator.kind, left, self._expand(child, sign, False), node)
        return left

    def _combine(
        self, operator: str, left: dict[int, None], right: dict[int, None], node: Node
    ) -> dict[int, None]:
        """Return the terms of two sets of terms joined by ``:``, ``*``, ``/`` or ``%in%``."""
        crossing = operator in ":*"
        self.reader.count_terms(node, 0, len(left) * len(right) if crossing else len(left) + len(right))
        if operator == "/":
            below = reduce(or_, left, 0)
            return left | {below | mask: None for mask in right}
        if operator == "%in%":
            around = reduce(or_, right, 0)
            return {mask | around: None for mask in left}
        crossed = {first | second: None for first in left for second in right}
        result = crossed if operator == ":" else left | right | crossed
        if len(result) > MAX_TERMS:
            self.reader.count_terms(node, len(result))
        return result

    def _sum(self, node: Node, sign: int, additive: bool) -> dict[int, None]:
        """Add terms, and remove those after a minus."""
        result: dict[int, None] = {}
        children = node.children
        signs = [operator.kind for operator in node.operators]
        signs.insert(0, node.value if node.kind == "sign" else "+")
        for operator, child in zip(signs, children, strict=True):
            direction = -1 if operator == "-" else 1
            while child.kind == "sign":
                direction = -direction if child.value == "-" else direction
                child = child.children[0]
            if not additive and direction < 0:
                raise self.reader.fail(
                    child, "terms cannot be removed inside an interaction: remove them from the whole sum"
                )
            terms = self._expand(child, sign * direction, additive)
            if direction > 0:
                result.update(terms)
            else:
                for mask in terms:
                    result.pop(mask, None)
        return result

    def _power(self, node: Node, sign: int) -> dict[int, None]:
        """Return all interactions of up to so many terms."""
        base_node, exponent_node = node.children
        base = self._expand(base_node, sign, False)
        while exponent_node.kind == "paren":
            exponent_node = exponent_node.children[0]
        value = float(exponent_node.value) if exponent_node.kind == "number" else 0.0
        if not (value.is_integer() and 1 <= value <= MAX_EXPONENT):
            raise self.reader.fail(
                exponent_node,
                f"the power of an interaction is a whole number from 1 to {MAX_EXPONENT}; "
                f"for arithmetic write I({self.reader.source(node)})",
            )
        if len(base) == 1 and value > 1:
            written, alone = self.reader.source(node), self.reader.source(base_node)
            self.reader.notes.append(
                f"'{written}' in a formula is the interaction of '{alone}' with itself, "
                f"which is '{alone}' alone: for arithmetic use I({written})"
            )
        result = base
        for _ in range(int(value) - 1):
            larger = self._combine(":", result, base, node)
            if len(larger) == len(result):
                break
            result = larger
        return result

    def _number(self, node: Node, sign: int, additive: bool) -> dict[int, None]:
        """Set the intercept."""
        value = float(node.value)
        if value not in (0.0, 1.0):
            raise self.reader.fail(
                node, "a number other than 0 and 1 is not a term: put arithmetic inside I(), as in I(2 * x)"
            )
        if not additive:
            raise self.reader.fail(
                node, "an intercept cannot be part of an interaction: write it outside, added by '+'"
            )
        self.intercept = (value == 1.0) == (sign > 0)
        return {}

    def _call(self, node: Node, sign: int, additive: bool) -> dict[int, None]:
        """Return a transformed column, or note an offset or a random-effects term."""
        name, reader = node.value, self.reader
        argument = node.children[0]
        while argument.kind == "paren":
            argument = argument.children[0]
        if name in FUTURE_STRUCTURES:
            raise reader.fail(
                node,
                f"the structure {name}() is not available yet: the wrappers are {'(), '.join(STRUCTURES)}()",
            )
        if (
            name in STRUCTURES
            and argument.kind == "bar"
            and len(node.children) == 1
            and node.keywords == [None]
        ):
            return self._bar(node, argument, name, sign, additive)
        if name == "offset" and self.fixed and additive and sign > 0:
            if node.keywords != [None]:
                raise reader.fail(node, "offset() takes one column or expression, as in offset(log(x))")
            reader.offsets.append(reader.expressions.offset(node, argument))
            return {}
        return {self._bit(reader.expressions.term(node)): None}

    def _bar(self, place: Node, bar: Node, wrapper: str | None, sign: int, additive: bool) -> dict[int, None]:
        """Note a random-effects term where one may stand."""
        if not self.fixed:
            raise self.reader.fail(
                place, "a random-effects term cannot stand inside another: add the two by '+'"
            )
        if not additive:
            raise self.reader.fail(
                place, "a random-effects term cannot be part of an interaction: add it by '+'"
            )
        if sign < 0:
            raise self.reader.fail(place, "a random-effects term cannot be removed by '-': leave it out")
        self.reader.random_terms(place, bar, wrapper)
        return {}

    def _unparenthesised(self, bar: Node) -> FormulaError:
        """Return the error for a bar outside parentheses, with what was probably meant."""
        left, right = bar.children
        effects = left.children[-1] if left.kind == "sum" else left
        group = right.children[0] if right.kind == "sum" else right
        source = self.reader.source
        return error(
            self.reader.text,
            effects.start,
            group.end,
            f"put the term in parentheses: ({source(effects)} {bar.value} {source(group)})",
        )

    def _bit(self, factor: Expr) -> int:
        return self.factors.setdefault(factor, 1 << len(self.factors))


def _chosen(factors: list[Expr], mask: int) -> tuple[Expr, ...]:
    """Return the factors whose bits are set, in the order of their first appearance."""
    if mask.bit_count() == 1:
        return (factors[mask.bit_length() - 1],)
    chosen = []
    while mask:
        lowest = mask & -mask
        chosen.append(factors[lowest.bit_length() - 1])
        mask ^= lowest
    return tuple(chosen)


def _random_text(effects: Effects, group: tuple[str, ...], structure: str) -> str:
    """Return the canonical text of a random-effects term."""
    wrapper = {"identity": "homdiag", "exchangeable": "cs", "ar1": "ar1", "toeplitz": "toeplitz"}.get(
        structure, ""
    )
    bar = "||" if structure == "independent" else "|"
    return f"{wrapper}({effects.label} {bar} {':'.join(Column(name).label for name in group)})"

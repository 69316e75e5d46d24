r"""The fitted model as mathematics, in MathML: by level where groupings are nested, and in one equation.

Written as XML elements, never as text, so that names from data cannot be markup. Rows have the index i, the
groupings j, k, ... from the finest to the coarsest; random effects of the first are called u, then v, w; the
numbers of effects are those of the coefficients that they vary around:

.. math::

    y_{ij} = \beta_{0j} + \beta_{1j} x_{ij} + \varepsilon_{ij}, \qquad
    \beta_{0j} = \beta_0 + u_{0j}, \quad \beta_{1j} = \beta_1 + u_{1j}, \quad u_j \sim N(0, \Sigma_u).

References
----------
Raudenbush & Bryk (2002), Hierarchical Linear Models, 2nd edition (equations by level).
W3C (2025), MathML Core.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from xml.etree.ElementTree import Element, tostring

import numpy as np

from jaxmixed.errors import printable
from jaxmixed.formatting import number
from jaxmixed.residual_families import Autoregressive, Exchangeable, Exponential
from jaxmixed.residual_inference import has_sds, natural_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxmixed.estimates import Estimates, ResidualEstimate, TermEstimate
    from jaxmixed.fitted import Fitted
    from jaxmixed.frame import GroupDesign, ModelFrame

_LETTERS, _EFFECTS = "jklmnopq", "uvwabcde"
_INTERCEPT = "(Intercept)"
_LINE = 58
_MOST_COLUMNS = 24
_MOST_ELEMENTS = 5
_DIGITS = 4


class Equation(NamedTuple):
    """A line of mathematics under its heading.

    Attributes
    ----------
    title : str
        In words, e.g. ``"Level 2: Subject"``.
    mathml : str
        A ``<math>`` element.
    """

    title: str
    mathml: str


# Elements


def _element(tag: str, *children: Element, text: str | None = None, **attributes: str) -> Element:
    made = Element(tag, attributes)
    made.text = text
    made.extend(children)
    return made


def _mi(text: str) -> Element:
    return _element("mi", text=text)


def _mo(text: str) -> Element:
    return _element("mo", text=text)


def _mn(value: float) -> Element:
    return _element("mn", text=number(abs(value), _DIGITS).rstrip("."))


def _whole(value: int) -> Element:
    return _element("mn", text=str(value))


def _name(text: str) -> Element:
    """A name of a column, in upright letters."""
    return _element("mtext", text=printable(text))


def _row(*children: Element) -> Element:
    return children[0] if len(children) == 1 else _element("mrow", *children)


def _sub(base: Element, subscript: str) -> Element:
    """A base with an index of one character each."""
    if not subscript:
        return base
    marks = [_element("mn" if mark.isdigit() else "mi", text=mark) for mark in _marks(subscript)]
    return _element("msub", base, _row(*marks))


def _marks(subscript: str) -> list[str]:
    """Letters and whole numbers of an index, and parentheses."""
    marks: list[str] = []
    for mark in subscript:
        if mark.isdigit() and marks and marks[-1].isdigit():
            marks[-1] += mark
        else:
            marks.append(mark)
    return marks


def _matrix(rows: Sequence[Sequence[Element]]) -> Element:
    if len(rows) == len(rows[0]) == 1:
        return rows[0][0]
    table = _element("mtable", *[_element("mtr", *[_element("mtd", cell) for cell in row]) for row in rows])
    return _row(_mo("("), table, _mo(")"))


def _signed(value: float) -> Element:
    return _row(_mo("−"), _mn(value)) if value < 0 else _mn(value)


@dataclass(frozen=True, slots=True)
class _Term:
    """A summand: what is before it, its factors, and how wide it is."""

    factors: tuple[Element, ...]
    width: int
    negative: bool = False


def _sum(terms: Sequence[_Term]) -> list[Element]:
    """A sum broken into lines."""
    lines: list[list[Element]] = [[]]
    used = 0
    for position, term in enumerate(terms):
        if used and used + term.width > _LINE:
            lines.append([])
            used = 0
        sign = "−" if term.negative else "+"
        if position or term.negative:
            lines[-1].append(_mo(sign))
        lines[-1] += term.factors
        used += term.width + 3
    return [_row(*line) if line else _whole(0) for line in lines]


def _math(lines: Sequence[tuple[Element | None, str, Element]]) -> str:
    """Lines of an equation, aligned at their relation signs."""
    empty = _element("mrow")
    rows = [
        _element(
            "mtr",
            _element("mtd", empty if left is None else left, style="text-align: right"),
            _element("mtd", _mo(sign) if sign else empty),
            _element("mtd", right, style="text-align: left"),
        )
        for left, sign, right in lines
    ]
    math = _element("math", _element("mtable", *rows), display="block")
    return tostring(math, encoding="unicode")


def _equation(
    left: Element, terms: Sequence[_Term], sign: str = "="
) -> list[tuple[Element | None, str, Element]]:
    first, *rest = _sum(terms)
    return [(left, sign, first), *((None, "", line) for line in rest)]


# The model


@dataclass(frozen=True)
class _Notation:
    """Symbols of a fit."""

    frame: ModelFrame
    estimates: Estimates

    @cached_property
    def groups(self) -> list[GroupDesign]:
        """Distinct groupings, the finest first."""
        found: dict[str, GroupDesign] = {}
        for term in self.estimates.terms:
            found.setdefault(term.group, self.frame.groups[term.frame_index])
        return list(found.values())

    @cached_property
    def is_nested(self) -> bool:
        """Whether every grouping is nested in the next."""
        return all(
            constant_within(coarse.codes, fine.codes)
            for fine, coarse in zip(self.groups[:-1], self.groups[1:], strict=True)
        )

    @cached_property
    def columns(self) -> list[int]:
        """Columns of the fixed effects that are not aliased."""
        return np.flatnonzero(~np.isnan(self.estimates.beta)).tolist()

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of every effect: of coefficients from 0 (the intercept), then of random effects alone."""
        names = [self.frame.x_names[j] for j in self.columns]
        start = 0 if _INTERCEPT in names else 1
        found = {name: start + position for position, name in enumerate(names)}
        for term in self.estimates.terms:
            for name in term.names:
                found.setdefault(name, 0 if name == _INTERCEPT else max([start - 1, *found.values()]) + 1)
        return found

    def position(self, group: str) -> int:
        return [own.label for own in self.groups].index(group)

    def index(self, position: int) -> str:
        """Index of a grouping: its letter, and those of the groupings that contain it."""
        letters = _LETTERS[position : len(self.groups)] if self.is_nested else _LETTERS[position]
        return letters

    @property
    def residual_letter(self) -> str:
        """Index of the groups of correlated rows."""
        residual = self.estimates.residual
        label = None if residual is None else residual.labels.group
        labels = [own.label for own in self.groups]
        return self.index(labels.index(label)) if label in labels else _LETTERS[len(labels)]

    @property
    def row(self) -> str:
        """Index of a row."""
        letters = _LETTERS[: len(self.groups)]
        return f"i{letters}" if self.is_nested else f"i({letters})"

    def covariate(self, name: str, values: np.ndarray) -> Element:
        """A column with the index of the coarsest grouping that it is constant in, or of the row."""
        for position in reversed(range(len(self.groups))):
            if constant_within(values, self.groups[position].codes):
                return _sub(_name(name), self.index(position))
        return _sub(_name(name), self.row)

    def level_of(self, column: int) -> int | None:
        """Coarsest grouping with a random intercept in which a column of X is constant."""
        for position in reversed(range(len(self.groups))):
            own = self.groups[position]
            has_intercept = any(
                term.group == own.label and _INTERCEPT in term.names for term in self.estimates.terms
            )
            if has_intercept and constant_within(self.frame.X[:, column], own.codes):
                return position
        return None

    def product_at(self, column: int, candidates: Sequence[int]) -> tuple[str, int, int] | None:
        """Effect, grouping and column whose product a column of X is: a slope explained by its grouping."""
        for term in self.estimates.terms:
            for name in term.names:
                for other in candidates if name != _INTERCEPT else ():
                    product = self.values(term, name) * self.frame.X[:, other]
                    if self.level_of(other) == self.position(term.group) and np.array_equal(
                        product, self.frame.X[:, column]
                    ):
                        return name, self.position(term.group), other
        return None

    def varies_at(self, name: str) -> list[int]:
        """Groupings that an effect varies between, the finest first."""
        return [self.position(term.group) for term in self.estimates.terms if name in term.names]

    def effect(self, name: str, position: int) -> Element:
        return _sub(_mi(_EFFECTS[position]), f"{self.numbers[name]}{self.index(position)}")

    def summand(self, coefficient: Element, name: str, values: np.ndarray | None) -> _Term:
        """A coefficient or random effect, times its column."""
        if name == _INTERCEPT or values is None:
            return _Term((coefficient,), 3)
        space = _element("mspace", width="0.2em")
        return _Term((coefficient, space, self.covariate(name, values)), 5 + len(name))

    def values(self, term: TermEstimate, name: str) -> np.ndarray:
        return self.frame.groups[term.frame_index].Z[:, term.names.index(name)]

    def tail(self) -> list[_Term]:
        """Offset and residual."""
        offset = [] if self.frame.offset is None else [_Term((_sub(_name("offset"), self.row),), 8)]
        return [*offset, _Term((_sub(_mi("ε"), self.row),), 3)]


def constant_within(values: np.ndarray, codes: np.ndarray) -> bool:
    """Whether values are equal for all rows of each level.

    Examples
    --------
    >>> constant_within(np.array([1, 1, 2]), np.array([0, 0, 1]))
    True
    >>> constant_within(np.array([1, 2, 2]), np.array([0, 0, 1]))
    False
    """
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return bool((values == values[first][inverse]).all())


def _level_equations(own: _Notation) -> list[Equation]:
    """One equation for the rows, and one for each coefficient that varies, level by level."""
    frame, numbers = own.frame, own.numbers
    moved = {j: own.level_of(j) for j in own.columns if frame.x_names[j] != _INTERCEPT}
    candidates = [j for j, level in moved.items() if level is not None]
    products = {
        j: product
        for j, level in moved.items()
        if level is None and (product := own.product_at(j, candidates)) is not None
    }
    fixed = [
        j
        for j in own.columns
        if j not in products and (moved.get(j) is None or own.varies_at(frame.x_names[j]))
    ]
    names = [frame.x_names[j] for j in fixed]
    first = []
    for term in own.estimates.terms:
        names += [name for name in term.names if name not in names]
    for name in names:
        levels = own.varies_at(name)
        index = own.index(levels[0]) if levels else ""
        values = next(
            (own.values(term, name) for term in own.estimates.terms if name in term.names),
            frame.X[:, frame.x_names.index(name)] if name in frame.x_names else None,
        )
        first.append(own.summand(_sub(_mi("β"), f"{numbers[name]}{index}"), name, values))
    response = _sub(_name(frame.response_name), own.row)
    found = [Equation("Level 1: rows", _math(_equation(response, [*first, *own.tail()])))]
    for position, group in enumerate(own.groups):
        lines: list[tuple[Element | None, str, Element]] = []
        for name in [name for name in names if position in own.varies_at(name)]:
            further = [level for level in own.varies_at(name) if level > position]
            summands = []
            if further or name in frame.x_names:
                index = own.index(further[0]) if further else ""
                summands.append(_Term((_sub(_mi("β"), f"{numbers[name]}{index}"),), 3))
            if name == _INTERCEPT:
                summands += [
                    own.summand(
                        _sub(_mi("β"), str(numbers[frame.x_names[j]])), frame.x_names[j], frame.X[:, j]
                    )
                    for j in own.columns
                    if moved.get(j) == position and j not in fixed
                ]
            summands += [
                own.summand(
                    _sub(_mi("β"), str(numbers[frame.x_names[j]])), frame.x_names[other], frame.X[:, other]
                )
                for j, (effect, level, other) in products.items()
                if (effect, level) == (name, position)
            ]
            summands.append(_Term((own.effect(name, position),), 4))
            lines += _equation(_sub(_mi("β"), f"{numbers[name]}{own.index(position)}"), summands)
        found.append(Equation(f"Level {position + 2}: {printable(group.label)}", _math(lines)))
    return found


def _random_summands(own: _Notation) -> list[_Term]:
    return [
        own.summand(own.effect(name, own.position(term.group)), name, own.values(term, name))
        for term in own.estimates.terms
        for name in (term.names if len(term.names) <= _MOST_ELEMENTS else ())
    ] + [
        _Term(
            (
                _sub(_mi("z"), own.row),
                _mo("′"),
                _sub(_mi(_EFFECTS[own.position(term.group)]), own.index(own.position(term.group))),
            ),
            6,
        )
        for term in own.estimates.terms
        if len(term.names) > _MOST_ELEMENTS
    ]


def _combined(own: _Notation, *, estimated: bool) -> Equation:
    """Everything in one equation, with symbols or with the estimates as coefficients."""
    frame, shown = own.frame, own.columns[:_MOST_COLUMNS]
    summands = []
    for j in shown:
        name, value = frame.x_names[j], float(own.estimates.beta[j])
        symbol = _mn(value) if estimated else _sub(_mi("β"), str(own.numbers[name]))
        summand = own.summand(symbol, name, frame.X[:, j])
        width = summand.width + (5 if estimated else 0)
        summands.append(_Term(summand.factors, width, estimated and value < 0))
    if len(own.columns) > len(shown):
        summands.append(_Term((_mo("⋯"),), 2))
    response = _sub(_name(frame.response_name), own.row)
    title = "Estimated" if estimated else "In one equation" if own.groups else "Model"
    return Equation(title, _math(_equation(response, [*summands, *_random_summands(own), *own.tail()])))


def _covariance_symbols(own: _Notation, term: TermEstimate) -> Element:
    """The covariance matrix of a term's effects in symbols, as its structure has it."""
    letter, q = _EFFECTS[own.position(term.group)], len(term.names)
    square = _element("msubsup", _mi("τ"), _mi(letter), _element("mn", text="2"))
    identity = _mi("I")
    if term.covariance.name == "identity" and q > 1:
        return _row(square, identity)
    if term.covariance.name == "exchangeable":
        both = _row(_mo("("), _whole(1), _mo("−"), _mi("ρ"), _mo(")"), identity, _mo("+"), _mi("ρ"), _mi("J"))
        return _row(square, _mo("["), both, _mo("]"))
    if term.covariance.natural_names:
        names = [_mi(printable(name)) for name in term.covariance.natural_names]
        commas = [part for name in names for part in (_mo(","), name)][1:]
        return _row(square, _mi("K"), _mo("("), *commas, _mo(")"))
    if q > _MOST_ELEMENTS:
        return _sub(_mi("Σ"), letter)
    numbers = [own.numbers[name] for name in term.names]
    diagonal = term.covariance.name == "independent"
    return _matrix(
        [
            [
                _whole(0)
                if diagonal and a != b
                else _element("msubsup", _mi("τ"), _row(_mi(letter), _whole(a)), _element("mn", text="2"))
                if a == b
                else _sub(_mi("τ"), f"{letter}{min(a, b)}{max(a, b)}")
                for b in numbers
            ]
            for a in numbers
        ]
    )


def _distributions(own: _Notation, *, estimated: bool) -> Equation:
    """What random effects and residuals are drawn from."""
    lines: list[tuple[Element | None, str, Element]] = []
    for term in own.estimates.terms:
        position = own.position(term.group)
        small = len(term.names) <= _MOST_ELEMENTS
        vector = (
            _matrix([[own.effect(name, position)] for name in term.names])
            if small
            else _sub(_mi(_EFFECTS[position]), own.index(position))
        )
        if estimated and not small:
            continue
        matrix = _covariance_symbols(own, term)
        if estimated:
            matrix = _matrix([[_signed(float(value)) for value in row] for row in term.cov])
        if own.frame.groups[term.frame_index].relationship is not None:
            matrix = _row(matrix, _mo("⊗"), _mi("A"))
        lines.append((vector, "∼", _row(_mi("N"), _mo("("), _whole(0), _mo(","), matrix, _mo(")"))))
    lines += _residual_lines(own, estimated)
    what = "Random effects and residuals" if own.groups else "Residuals"
    return Equation(f"{what}, estimated" if estimated else what, _math(lines))


def _residual_lines(own: _Notation, estimated: bool) -> list[tuple[Element | None, str, Element]]:
    """Distribution of the residuals, and the correlation of two of a group."""
    residual = own.estimates.residual
    several = residual is not None and has_sds(residual.covariance)
    squared = _element("mn", text="2")
    variance = _element("msup", _mi("σ"), squared)
    if several:
        variance = _element("msubsup", _mi("σ"), _row(*map(_mi, own.row)), squared)
    elif estimated:
        variance = _mn(own.estimates.sigma**2)
    if residual is not None and residual.covariance.function != "none":
        name = _sub(_name(residual.labels.covariate or ""), own.row)
        power = residual.covariance.function == "power"
        exponent = _row(_whole(2), _mi("δ"), *([] if power else [name]))
        base = _row(_mo("|"), name, _mo("|")) if power else _mi("e")
        variance = _row(variance, _element("msup", base, exponent))
    if own.frame.weights is not None:
        variance = _row(variance, _mo("/"), _sub(_mi("w"), own.row))
    normal = _row(_mi("N"), _mo("("), _whole(0), _mo(","), variance, _mo(")"))
    lines: list[tuple[Element | None, str, Element]] = [(_sub(_mi("ε"), own.row), "∼", normal)]
    if residual is not None and residual.covariance.family.num_params:
        s, t = (_sub(_mi("ε"), f"{which}{own.residual_letter}") for which in "st")
        pair = _row(_mi("Cor"), _mo("("), s, _mo(","), t, _mo(")"))
        lines.append((pair, "=", _correlation(residual, estimated)))
    return lines


def _correlation(residual: ResidualEstimate, estimated: bool) -> Element:
    """Correlation of the residuals at the times s and t of a group, as the family has it."""
    covariance = residual.covariance
    lag = _row(_mo("|"), _mi("s"), _mo("−"), _mi("t"), _mo("|"))
    family = covariance.family
    values = natural_values(covariance, residual.free, 1.0)[0]
    by_number = estimated and covariance.strata == 1
    if isinstance(family, Autoregressive) and family.order == 1:
        base = _row(_mo("("), _signed(values[0]), _mo(")")) if by_number else _mi("φ")
        return _element("msup", base, lag)
    if isinstance(family, Exchangeable):
        return _signed(values[0]) if by_number else _mi("ρ")
    if isinstance(family, Exponential):
        length = _mn(values[0]) if by_number else _mi("r")
        decay = _element("msup", _mi("e"), _row(_mo("−"), lag, _mo("/"), length))
        if not family.nugget:
            return decay
        share = _mn(values[1]) if by_number else _mi("ν")
        return _row(_mo("("), _whole(1), _mo("−"), share, _mo(")"), decay)
    if family.time_kind == "label":
        return _element("msub", _mi("ρ"), _row(_mi("s"), _mi("t")))
    return _element("msub", _mi("ρ"), lag)


def equations(fit: Fitted) -> tuple[Equation, ...]:
    """The model of a fit in mathematics, in symbols and with its estimates.

    Parameters
    ----------
    fit : MixedResults

    Returns
    -------
    tuple of Equation
        By level where all groupings are nested, then in one equation, the distributions, and the last two
        with the estimates.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> [line.title for line in equations(fit)][:3]
    ['Level 1: rows', 'Level 2: Subject', 'In one equation']
    """
    own = _Notation(fit.frame, fit.estimates)
    by_level = _level_equations(own) if own.groups and own.is_nested and _is_short(own) else []
    symbols = [*by_level, _combined(own, estimated=False), _distributions(own, estimated=False)]
    return (*symbols, _combined(own, estimated=True), _distributions(own, estimated=True))


def _is_short(own: _Notation) -> bool:
    return len(own.columns) <= _MOST_COLUMNS and all(
        len(term.names) <= _MOST_ELEMENTS for term in own.estimates.terms
    )


def index_key(fit: Fitted) -> str:
    """What the indices of the equations stand for, in a sentence.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> index_key(fit)
    'i: row; j: Subject'
    """
    own = _Notation(fit.frame, fit.estimates)
    named = [f"{_LETTERS[k]}: {printable(group.label)}" for k, group in enumerate(own.groups)]
    residual = fit.estimates.residual
    if residual is not None and residual.covariance.family.num_params:
        time = "times" if residual.labels.time is None else f"values of {printable(residual.labels.time)}"
        group = printable(residual.labels.group or "")
        if own.residual_letter == _LETTERS[len(own.groups)]:
            named.append(f"{own.residual_letter}: {group}")
        named.append(f"s, t: {time} within {group}")
    return "; ".join(["i: row", *named])

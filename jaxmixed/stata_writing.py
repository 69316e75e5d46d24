"""A fitted model in Stata's notation: the `mixed` command that fits the same model.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed; User's Guide, section 11.4.3 (Factor
variables).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxmixed import residuals
from jaxmixed.errors import StataError, printable
from jaxmixed.residuals import BY_TIME
from jaxmixed.sampling import ROWS
from jaxmixed.stata_frame import is_new_name
from jaxmixed.terms import Binary, Call, Column, Expr, Number

if TYPE_CHECKING:
    from jaxmixed.contrasts import FactorCoding
    from jaxmixed.encoding import EffectsCoding
    from jaxmixed.frame import GroupDesign, ModelFrame

_STRUCTURES = ("unstructured", "independent", "identity", "exchangeable")
_MAX_GROUPINGS = 10
_LARGEST_LEVEL = 2**31
_WRITTEN = re.compile(r"(?:[0-9]+|c)\.\w+(?:#(?:[0-9]+|c)\.\w+)*")


def stata_command(frame: ModelFrame, method: str) -> str:
    """The `mixed` command of a model.

    Parameters
    ----------
    frame : ModelFrame
    method : {"ml", "reml"}

    Returns
    -------
    str

    Raises
    ------
    StataError
        Naming the part of the model that Stata's `mixed` does not have.
    """
    for what, value, instead in (
        ("precision weights", frame.weights, "has none"),
        ("an offset", frame.offset, "has none: subtract it from the response"),
    ):
        if value is not None:
            raise _refused(what, instead)
    response = frame.formula.response
    if not isinstance(response, Column):
        raise _refused(f"the response {printable(response.label)}", "takes a variable: make a column of it")
    writer = _EffectsWriter(frame)
    fixed, constant = writer.effects(frame.encoding.fixed), frame.encoding.fixed.intercept
    levels, lone = _levels(frame, writer)
    options = ["reml"] if method == "reml" else []
    if frame.residual is not None:
        levels = _with_residual_groups(frame, levels)
        options.append(_residuals(frame))
    sampling = frame.sampling
    head = ["mixed", _variable(response.name), *fixed]
    if sampling is not None:
        columns = dict(sampling.request.columns)
        kind = "pweight" if sampling.request.kind == "sampling" else "fweight"
        if ROWS in columns:
            head.append(f"[{kind}={_variable(columns.pop(ROWS))}]")
        levels = [own.weighted(kind, columns) for own in levels]
        if sampling.request.scaling is not None:
            options.append(f"pwscale({sampling.request.scaling})")
    own = [] if constant else ["noconstant"]
    pieces = [" ".join(head), *lone, *(level.text for level in levels)]
    if len(pieces) == 1:
        own, options = own + options, []
    pieces[0] += _after_comma(own)
    if options:
        pieces[-1] += (" " if "," in pieces[-1].split(":", 1)[1] else ", ") + " ".join(options)
    return " || ".join(pieces)


def _refused(what: str, why: str) -> StataError:
    return StataError(f"the model has {what}, and Stata's mixed {why}")


def _after_comma(options: Sequence[str]) -> str:
    return f", {' '.join(options)}" if options else ""


def _variable(name: str) -> str:
    if not is_new_name(name):
        raise StataError(
            f"{printable(name)!r} cannot be the name of a variable in Stata (letters, digits, underscores; at"
            " most 32; no reserved word): rename the column"
        )
    return name


# Effects. -------------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """A variable of a term: its marks before the period (empty for values alone), and its name."""

    marks: str
    name: str


class _EffectsWriter:
    """Writes lists of effects of one model."""

    def __init__(self, frame: ModelFrame) -> None:
        self.frame = frame
        self.factors = frame.encoding.factors

    def effects(self, coding: EffectsCoding) -> list[str]:
        """The effects in Stata's notation, ``a##b`` for an interaction whose parts are all there."""
        terms = {
            tuple(plan.labels): [
                piece
                for expr, label, full in zip(plan.factors, plan.labels, flags, strict=True)
                for piece in self._pieces(expr, label, full and len(plan.factors) == 1)
            ]
            for plan, flags in zip(coding.terms, coding.full, strict=True)
        }
        for plan, flags in zip(coding.terms, coding.full, strict=True):
            self._check_interaction(plan.labels, flags, terms)
        covered: set[frozenset[str]] = set()
        present = {frozenset(labels) for labels in terms}
        joined: dict[tuple[str, ...], str] = {}
        for labels in sorted(terms, key=len, reverse=True):
            if frozenset(labels) in covered:
                continue
            parts = [frozenset(part) for size in range(1, len(labels)) for part in combinations(labels, size)]
            whole = bool(parts) and all(part in present for part in parts)
            covered.update(parts if whole else ())
            joined[labels] = _joined(terms[labels], "##" if whole else "#")
        return [joined[labels] for labels in terms if labels in joined and frozenset(labels) not in covered]

    def _check_interaction(
        self, labels: Sequence[str], flags: Sequence[bool], terms: dict[tuple[str, ...], list[_Piece]]
    ) -> None:
        """Refuse an interaction that Stata codes in another way than R."""
        if len(labels) == 1:
            return
        factors = [label for label in labels if label in self.factors]
        alone = [terms.get((label,), []) for label in factors]
        if any(own and own[0].marks == "ibn" for own in alone):
            raise StataError(
                f"{printable(':'.join(labels))} without an intercept is coded in other ways in Stata: fit the"
                " model with an intercept"
            )
        if len(factors) > 1 and any(flags):
            raise StataError(
                f"{printable(':'.join(labels))} without its main effects is coded in other ways in Stata: fit"
                " the model with them"
            )

    def _pieces(self, expr: Expr, label: str, full: bool) -> list[_Piece]:
        """One variable of a term; a power is that many."""
        if label in self.factors:
            return [_Piece(self._marks(self.factors[label], expr, full), _variable(expr.columns[0]))]
        if isinstance(expr, Column):
            # Fits of jaxmixed.stata have columns that are called as in Stata's own notation: 2.arm#c.week.
            written = _WRITTEN.fullmatch(expr.name)
            return [_Piece("", expr.name if written else _variable(expr.name))]
        power = _power_of_column(expr)
        if power is None:
            raise _refused(f"the term {printable(label)}", "has no functions: make a column of its values")
        return [_Piece("", _variable(expr.columns[0]))] * power

    def _marks(self, coding: FactorCoding, expr: Expr, full: bool) -> str:
        """``i``, ``ib2`` or ``ibn``."""
        name = printable(coding.label)
        numeric = all(isinstance(level, int | float | np.number | np.bool_) for level in coding.levels)
        if numeric and any(
            float(level) != int(level) or not 0 <= level < _LARGEST_LEVEL for level in coding.levels
        ):
            raise StataError(
                f"{name} has levels that Stata's factor variables cannot have: number them from 1 as whole"
                " numbers"
            )
        if full:
            return "ibn"
        if coding.contrast != "treatment":
            raise StataError(
                f"{name} has {coding.contrast} contrasts, and Stata's i. is treatment contrasts: fit the"
                f" model with C({printable(expr.columns[0])}, treatment)"
            )
        if coding.base == 0:
            return "i"
        level = coding.levels[coding.base]
        return f"ib{int(level)}" if numeric else f"ib{self._code(expr.columns[0], level, coding.base)}"

    def _code(self, name: str, level: object, position: int) -> int:
        """Stata's number of a level that is a text: categories, or texts in their order, from 1."""
        column = self.frame.columns.get(name)
        if column is not None and column.kind == "category":
            return int(column.values.categories.get_loc(level)) + 1
        return position + 1


def _power_of_column(expr: Expr) -> int | None:
    """The exponent of ``I(x^2)``, None for other expressions."""
    if not (isinstance(expr, Call) and expr.name == "I"):
        return None
    inside = expr.args[0]
    if isinstance(inside, Column):
        return 1
    if isinstance(inside, Binary) and inside.op == "^" and isinstance(inside.left, Column):
        exponent = inside.right
        if isinstance(exponent, Number) and exponent.value in (2.0, 3.0, 4.0):
            return int(exponent.value)
    return None


def _joined(pieces: Sequence[_Piece], by: str) -> str:
    if len(pieces) == 1:
        return f"{pieces[0].marks}.{pieces[0].name}" if pieces[0].marks else pieces[0].name
    # c.x##c.x##c.x would add lower powers that need not be there.
    repeated = len({piece.name for piece in pieces}) < len(pieces)
    return ("#" if repeated else by).join(f"{piece.marks or 'c'}.{piece.name}" for piece in pieces)


# Levels. --------------------------------------------------------------------------------------------


class _Level(NamedTuple):
    """One equation of a level: its variable, the label of its grouping, effects, options."""

    name: str
    label: str
    effects: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def text(self) -> str:
        """As it stands after ``||``."""
        return " ".join([f"{self.name}:", *self.effects]) + _after_comma(self.options)

    def weighted(self, kind: str, columns: dict[str, str]) -> _Level:
        """The level with its weights, which are taken out of `columns`."""
        name = columns.pop(self.label, None)
        if name is None:
            return self
        return self._replace(options=(*self.options, f"{kind}({_variable(name)})"))


def _levels(frame: ModelFrame, writer: _EffectsWriter) -> tuple[list[_Level], list[str]]:
    """Equations of the nested levels, outermost first; those of crossed factors, ``_all: R.item``."""
    own: dict[str, list[int]] = {}
    for number, group in enumerate(frame.groups):
        own.setdefault(group.label, []).append(number)
    if len(own) > _MAX_GROUPINGS:
        raise _refused(f"{len(own)} groupings", f"is written for at most {_MAX_GROUPINGS} here")
    firsts = {label: frame.groups[numbers[0]] for label, numbers in own.items()}
    chain = _chain(frame, own, firsts)
    lone = [f"_all: R.{_variable(group.columns[0])}" for label, group in firsts.items() if label not in chain]
    levels: list[_Level] = []
    above: tuple[str, ...] = ()
    for label in chain:
        name = _level_variable(firsts[label], above)
        above = (*above, name)
        levels += [_equation(frame, writer, number, name) for number in own[label]]
    return levels, lone


def _chain(frame: ModelFrame, own: dict[str, list[int]], firsts: dict[str, GroupDesign]) -> tuple[str, ...]:
    """Labels of nested groupings, outermost first; the other ones are single variances of one column."""
    order = sorted(firsts, key=lambda label: len(firsts[label].levels))
    for size in range(len(order), 0, -1):
        # Of crossed factors Stata is quicker with the smaller one in _all.
        for chain in sorted(combinations(order, size), key=lambda c: [-order.index(label) for label in c]):
            others = [label for label in order if label not in chain]
            if all(
                len(own[label]) == 1
                and len(firsts[label].columns) == 1
                and frame.groups[own[label][0]].names == ("(Intercept)",)
                for label in others
            ) and all(
                _is_nested(firsts[fine].codes, firsts[coarse].codes) for coarse, fine in pairwise(chain)
            ):
                return chain
    if not order:
        return ()
    raise _refused(
        f"the crossed groupings {printable(', '.join(order))}",
        "can have one variance (_all: R.factor) for all but one nested set of them",
    )


def _is_nested(fine: np.ndarray, coarse: np.ndarray) -> bool:
    """Whether each group of the finer grouping lies in one of the coarser."""
    pairs = np.unique(np.column_stack([fine, coarse]), axis=0)
    return len(pairs) == len(np.unique(fine))


def _level_variable(group: GroupDesign, above: tuple[str, ...]) -> str:
    """The variable that a grouping adds to those of the outer levels."""
    new = [name for name in group.columns if name not in above]
    if len(new) != 1:
        raise StataError(
            f"the grouping {printable(group.label)} adds more than one variable at once, and a level of"
            " Stata's mixed has one: make one column of them"
        )
    return _variable(new[0])


def _equation(frame: ModelFrame, writer: _EffectsWriter, number: int, name: str) -> _Level:
    group, coding = frame.groups[number], frame.encoding.random[number]
    if group.relationship is not None:
        raise _refused(f"a known relationship between the levels of {printable(group.label)}", "has none")
    if group.structure not in _STRUCTURES:
        raise _refused(
            f"the structure {printable(str(group.structure))} of the effects of {printable(group.label)}",
            f"has {', '.join(_STRUCTURES)}",
        )
    options = [] if coding.intercept else ["noconstant"]
    if len(group.names) > 1 and group.structure != "independent":
        options.append(f"covariance({group.structure})")
    return _Level(name, group.label, tuple(writer.effects(coding)), tuple(options))


# Residuals. -----------------------------------------------------------------------------------------


def _with_residual_groups(frame: ModelFrame, levels: list[_Level]) -> list[_Level]:
    """The levels, and one without effects where correlated rows are of finer groups than the innermost."""
    residual = frame.residual
    assert residual is not None
    if residual.groups is None:
        if not levels:
            raise _refused("residuals with different variances and no levels", "needs a level for them")
        return levels
    codes = residual.groups.codes
    innermost = next((group for group in frame.groups if levels and group.label == levels[-1].label), None)
    if innermost is not None:
        if not _is_nested(codes, innermost.codes):
            raise _refused(
                f"correlated residuals within {printable(residual.groups.label)}",
                "correlates the rows of the innermost level",
            )
        if _is_nested(innermost.codes, codes):
            return levels
    above = tuple(dict.fromkeys(level.name for level in levels))
    new = [name for name in residual.groups.coding.columns if name not in above]
    if len(new) != 1:
        raise StataError(
            f"the groups {printable(residual.groups.label)} of correlated residuals are of more than one"
            " variable: make one column of them"
        )
    return [*levels, _Level(_variable(new[0]), "", (), ("noconstant",))]


def _residuals(frame: ModelFrame) -> str:
    """The option residuals()."""
    residual = frame.residual
    assert residual is not None
    spec = residual.spec
    what = f"the residual structure {spec.text}"
    if spec.variance is not None:
        raise _refused(f"{what} with a variance function", "has none")
    by = spec.by
    if isinstance(spec, residuals.Independent):
        if by is not None and spec.variance_by is not None:
            raise _refused(f"{what} with both by and variance_by", "has one of them")
        name, by = "independent", by or (None if spec.variance_by is BY_TIME else spec.variance_by)
    else:
        name = _structure_name(spec, what)
    further = []
    if spec.time is not None and name != "exchangeable":
        further.append(f"t({_variable(spec.time)})")
    if by is not None:
        names = (by,) if isinstance(by, str) else tuple(by)
        if len(names) > 1:
            raise _refused(f"{what} by {printable(', '.join(names))}", "takes one variable in by()")
        further.append(f"by({_variable(names[0])})")
    return f"residuals({name}{_after_comma(further)})"


def _structure_name(spec: residuals.ResidualStructure, what: str) -> str:
    """Name of the structure with its number, once the variances are those that Stata has."""
    labelled = isinstance(spec, residuals.Unstructured | residuals.Banded)
    by_time = spec.variance_by is BY_TIME or (spec.variance_by is not None and spec.variance_by == spec.time)
    if not (by_time if labelled else spec.variance_by is None):
        raise _refused(
            f"{what} with {'one variance' if spec.variance_by is None else 'variances by levels'}",
            "has variances by time with unstructured and banded, and else one",
        )
    if isinstance(spec, residuals.Exchangeable):
        return "exchangeable"
    if isinstance(spec, residuals.AR | residuals.MA):
        return f"{type(spec).__name__.lower()} {spec.order}"
    if isinstance(spec, residuals.Toeplitz):
        return "toeplitz" if spec.order is None else f"toeplitz {spec.order}"
    if isinstance(spec, residuals.Banded):
        return f"banded {spec.order}"
    if isinstance(spec, residuals.Unstructured):
        return "unstructured"
    if isinstance(spec, residuals.Exponential) and not spec.nugget:
        return "exponential"
    raise _refused(what, "does not have it")

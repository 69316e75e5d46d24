"""Residual structures as text, ``"us(visit | id)"``, in the notation of mmrm, glmmTMB and SAS."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from jaxmixed._tokens import Node, SyntaxReader, error, tokenize
from jaxmixed.errors import FormulaError
from jaxmixed.residuals import (
    AR,
    ARMA,
    MA,
    AnteDependence,
    Banded,
    Columns,
    Exchangeable,
    Exponential,
    Independent,
    ResidualStructure,
    Toeplitz,
    Unstructured,
)


@dataclass(frozen=True, slots=True)
class _Name:
    """What a name asks for.

    Attributes
    ----------
    family : type
    numbers : tuple of str
        Fields that the numbers before the time are.
    fixed : tuple of (str, value)
        Fields that the name gives.
    by_time : bool or None
        Whether variances differ by time; None leaves the family's default.
    required : int
        How many numbers must be given.
    """

    family: type[ResidualStructure]
    numbers: tuple[str, ...] = ()
    fixed: tuple[tuple[str, Any], ...] = ()
    by_time: bool | None = None
    required: int = 0


def _with_h(names: dict[str, _Name]) -> dict[str, _Name]:
    """The names, and those with an h for variances that differ by time."""
    h = {
        f"{name}h": _Name(own.family, own.numbers, own.fixed, True, own.required)
        for name, own in names.items()
    }
    return {**names, **h}


_ORDER = ("order",)
_NAMES = {
    "iid": _Name(Independent),
    "independent": _Name(Independent),
    "diag": _Name(Independent, by_time=True),
    "exchangeable": _Name(Exchangeable),
    **_with_h(
        {
            "cs": _Name(Exchangeable),
            "ar1": _Name(AR, (), (("order", 1),)),
            "ar": _Name(AR, _ORDER, required=1),
            "ma1": _Name(MA, (), (("order", 1),)),
            "ma": _Name(MA, _ORDER, required=1),
            "arma": _Name(ARMA, ("ar", "ma"), required=2),
            "toep": _Name(Toeplitz, _ORDER),
            "ad": _Name(AnteDependence, by_time=False),
        }
    ),
    "toeplitz": _Name(Toeplitz, _ORDER),
    "exp": _Name(Exponential),
    "sp_exp": _Name(Exponential),
    "ou": _Name(Exponential),
    "exponential": _Name(Exponential),
    "banded": _Name(Banded, _ORDER, required=1),
    "us": _Name(Unstructured),
    "un": _Name(Unstructured),
    "unstructured": _Name(Unstructured),
    "antedependence": _Name(AnteDependence),
}
_EXAMPLE = "write for example 'us(visit | id)' or 'ar1(week | id)'"


def as_structure(residuals: Any) -> ResidualStructure | None:
    """The residual structure that an argument asks for.

    Parameters
    ----------
    residuals : ResidualStructure, str or None

    Returns
    -------
    ResidualStructure or None

    Raises
    ------
    FormulaError
        If it is neither, or a text that cannot be read; the message shows the place.

    Examples
    --------
    >>> as_structure("ar1(week | id)")
    AR(time='week', group='id', by=None, variance_by=None, variance=None, order=1)
    """
    if residuals is None or isinstance(residuals, ResidualStructure):
        return residuals
    if isinstance(residuals, str):
        return parse_structure(residuals)
    if isinstance(residuals, type) and issubclass(residuals, ResidualStructure):
        raise FormulaError(
            f"residuals= is the class {residuals.__name__}; call it, with the columns it is about: "
            f"jm.residuals.{residuals.__name__}(time=..., group=...)"
        )
    raise FormulaError(
        f"residuals={residuals!r} is no residual structure; give one of jm.residuals, such as "
        "jm.residuals.AR(1, time='week', group='id'), or a text such as 'ar1(week | id)'"
    )


def parse_structure(text: str) -> ResidualStructure:
    """Read a residual structure.

    Parameters
    ----------
    text : str
        See :mod:`jaxmixed.residuals`.

    Returns
    -------
    ResidualStructure

    Raises
    ------
    FormulaError
        Pointing at what cannot be read.

    Examples
    --------
    >>> parse_structure("toep(2, week | school:class)").group
    ('school', 'class')
    >>> parse_structure("us(visit | arm/id)").by
    'arm'
    """
    if not text.strip():
        raise FormulaError(f"residuals= is an empty text: {_EXAMPLE}")
    return _Reader(text).structure()


class _Reader:
    """From the syntax of one structure to the structure."""

    def __init__(self, text: str) -> None:
        self.text = text

    def structure(self) -> ResidualStructure:
        node = SyntaxReader(self.text, tokenize(self.text)).only_expression()
        if node.kind not in ("name", "call"):
            raise self.error(node, f"a residual structure is a name with columns: {_EXAMPLE}")
        own = self.named(node)
        options = self.arguments(node, own)
        if own.by_time is not None and "variance_by" not in options:
            options["variance_by"] = options.get("time") if own.by_time else None
            if own.by_time and options["variance_by"] is None:
                raise self.error(
                    node, f"{node.value}() has a variance for each time: write {node.value}(time | group)"
                )
        if own.family is Independent:
            options.pop("time", None)
            if options.pop("group", None) is not None:
                raise self.error(
                    node, "independent residuals have no groups: leave out the '|' and what follows"
                )
        return own.family(**dict(own.fixed), **options)

    def named(self, node: Node) -> _Name:
        """What the name asks for."""
        own = _NAMES.get(node.value.lower())
        if own is not None:
            return own
        near = difflib.get_close_matches(node.value.lower(), _NAMES, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise self.error(
            node,
            f"'{node.value}' is no residual structure; {meant}there are {', '.join(_NAMES)}",
            node.start + len(node.value),
        )

    def arguments(self, node: Node, own: _Name) -> dict[str, Any]:
        """Fields from the arguments of a call: numbers, then time and group, then options."""
        options: dict[str, Any] = {}
        numbers: list[int] = []
        columns: Node | None = None
        for child, keyword in zip(node.children, node.keywords, strict=True):
            if keyword is not None:
                if keyword.value not in ("by", "variance_by"):
                    raise error(
                        self.text,
                        keyword.start,
                        keyword.end,
                        f"'{keyword.value}=' is no option of a residual structure: there are by= and "
                        "variance_by=, and nugget",
                    )
                options[keyword.value] = self.columns(child)
            elif child.kind == "number" and columns is None:
                numbers.append(self.number(child))
            elif child.kind == "name" and child.value == "nugget" and columns is not None:
                if own.family is not Exponential:
                    raise self.error(child, f"{node.value}() has no nugget; exp() has")
                options["nugget"] = True
            elif columns is None:
                columns = child
            else:
                raise self.error(
                    child, "one more argument than there can be: numbers come first, then time | group"
                )
        self.check_numbers(node, own, numbers)
        options.update(zip(own.numbers, numbers, strict=False))
        return options if columns is None else {**options, **self.time_and_group(columns, own, options)}

    def check_numbers(self, node: Node, own: _Name, numbers: list[int]) -> None:
        if own.required <= len(numbers) <= len(own.numbers):
            return
        most = len(own.numbers)
        needs = (
            "needs no number"
            if not most
            else f"needs {most} number{'s' if most > 1 else ''} before the time"
            if own.required
            else f"needs at most {most} number"
        )
        first = ", ".join(("2",) if most == 1 else ("1",) * most)
        example = f"{node.value}({first}{', ' if most else ''}time | group)"
        raise self.error(node, f"{node.value}() {needs}: write {example}")

    def time_and_group(self, node: Node, own: _Name, options: dict[str, Any]) -> dict[str, Any]:
        """Fields of ``time | group``."""
        found: dict[str, Any] = {}
        if node.kind != "bar":
            # Without a bar there is one column: the time, or the group where no time is needed.
            alone = self.columns(node)
            needs_time = own.family is not Exchangeable or own.by_time
            if needs_time and isinstance(alone, tuple):
                raise self.error(node, "the time is one column")
            return {"time" if needs_time else "group": alone}
        if node.value != "|":
            raise self.error(node, "write a single '|' between time and group")
        left, right = node.children
        time = self.columns(left)
        if not isinstance(time, str):
            raise self.error(left, "the time is one column")
        found["time"] = time
        if right.kind == "product" and [operator.kind for operator in right.operators] == ["/"]:
            stratum, right = right.children
            if "by" in options:
                raise self.error(stratum, "strata are given twice, here and by by=")
            found["by"] = self.columns(stratum)
        found["group"] = self.columns(right)
        return found

    def columns(self, node: Node) -> Columns:
        """A column, or several joined by ``:``."""
        if node.kind in ("name", "quoted"):
            return node.value
        if node.kind == "interaction" and all(child.kind in ("name", "quoted") for child in node.children):
            return tuple(child.value for child in node.children)
        raise self.error(node, "the name of a column must stand here (a:b for combinations of two)")

    def number(self, node: Node) -> int:
        if not node.value.isdecimal() or int(node.value) < 1:
            raise self.error(node, "a positive whole number must stand here")
        return int(node.value)

    def error(self, node: Node, problem: str, end: int | None = None) -> FormulaError:
        return error(self.text, node.start, node.end if end is None else end, problem)

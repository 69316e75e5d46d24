"""Matrices as Stata's `matlist` lists them: names on the left, lower triangles, blocks of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxmixed.stata_formats import abbreviated_name, general

LINE = 80
"""Characters of a line; wider matrices are listed in blocks of columns."""

_NAME = 12


def matrix_lines(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    corner: str = "",
    symmetric: bool = False,
    width: int = 9,
    text: Callable[[float], str] = general,
    equations: Sequence[str] | None = None,
) -> list[str]:
    """A matrix with its names.

    Parameters
    ----------
    values : (r, c) array
    rows, columns : sequences of str
    corner : str
        What stands above the names of the rows.
    symmetric : bool
        Leave out what is above the diagonal.
    width : int
        Characters of a number.
    text : callable
        Of a number.
    equations : sequence of str, optional
        Equation of each row and column of a symmetric matrix; a rule is drawn between equations.

    Returns
    -------
    list of str

    Examples
    --------
    >>> for line in matrix_lines(
    ...     np.array([[0.25, 1], [1, 4]]), ["x", "_cons"], ["x", "_cons"], symmetric=True
    ... ):
    ...     print(line)
                 |         x      _cons
    -------------+----------------------
               x |       .25
           _cons |         1          4
    """
    per_block = max(1, (LINE - _NAME - 2) // (width + (2 if equations is None else 3)))
    lines: list[str] = []
    for start in range(0, len(columns), per_block):
        block = range(start, min(start + per_block, len(columns)))
        first = start if symmetric else 0
        shown = [at for at in range(len(rows)) if at >= first]
        lines += [""] if lines else []
        lines += _block(values, rows, columns, block, shown, corner, symmetric, width, text, equations)
    return lines


def _block(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    block: range,
    shown: Sequence[int],
    corner: str,
    symmetric: bool,
    width: int,
    text: Callable[[float], str],
    equations: Sequence[str] | None,
) -> list[str]:
    starts = {
        at for at in block if equations is not None and at > block[0] and equations[at] != equations[at - 1]
    }

    def line(head: str, cells: Sequence[str], fill: str = " ", cross: str = "|") -> str:
        pieces = [
            (cross if at in starts else "") + f"{fill}{cell:{fill}>{width}}{fill}"
            for at, cell in zip(block, cells, strict=True)
        ]
        return (head + cross + "".join(pieces)).rstrip()

    names = [abbreviated_name(columns[at], width) for at in block]
    rule = line("-" * (_NAME + 1), [""] * len(block), "-", "+")
    lines = []
    if equations is not None:
        heads = [
            abbreviated_name(equations[at], width) if at == block[0] or at in starts else "" for at in block
        ]
        cells = [f"{head:<{width}}" for head in heads]
        lines.append(line(f"{'':{_NAME + 1}}", cells))
    lines += [line(f"{corner:>{_NAME}} ", names), rule]
    previous = None
    for at in shown:
        if equations is not None and equations[at] != previous:
            lines += [rule] if previous is not None else []
            previous = equations[at]
            lines.append(line(f"{abbreviated_name(previous, _NAME):<{_NAME}} ", [""] * len(block)))
        cells = ["" if symmetric and column > at else text(values[at, column]) for column in block]
        lines.append(line(f"{abbreviated_name(rows[at], _NAME):>{_NAME}} ", cells))
    return lines

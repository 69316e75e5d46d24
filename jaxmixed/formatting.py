"""Numbers, names and tables as text for the terminal and as HTML for notebooks.

Names of columns and levels come from data, so they may hold anything: control characters never reach the
terminal, markup never reaches a page.
"""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

WIDTH = 79


def display_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def number(value: float, digits: int = 7, width: int = 10) -> str:
    """Significant digits as Stata prints them, fewer where the width is short; ``.`` for a missing number.

    Examples
    --------
    >>> [number(v) for v in (251.40510484, 0.0, 1.5e-13, float("nan"))]
    ['251.4051', '0', '1.5000e-13', '.']
    """
    value = float(value)
    if np.isnan(value):
        return "."
    if value == 0 or np.isinf(value):
        return "0" if value == 0 else ("inf" if value > 0 else "-inf")
    for significant in range(digits, 1, -1):
        text = f"{value:#.{significant}g}".removesuffix(".")
        if len(text) <= width:
            return text
    return text


def p_number(p_value: float) -> str:
    """A p-value in a table: three decimals, or ``<0.001``."""
    if np.isnan(p_value):
        return "."
    return "<0.001" if p_value < 0.0005 else f"{p_value:.3f}"


def p_phrase(p_value: float) -> str:
    """A p-value in a sentence: ``p = 0.0312``, or ``p < 0.0001``.

    Examples
    --------
    >>> p_phrase(0.03124), p_phrase(1e-9)
    ('p = 0.0312', 'p < 0.0001')
    """
    return "p < 0.0001" if p_value < 0.00005 else f"p = {p_value:.4f}"


def count(value: int) -> str:
    """A whole number with thousands separated."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """A number of things, in the singular or the plural.

    Examples
    --------
    >>> counted(1, "row"), counted(7185, "row")
    ('1 row', '7,185 rows')
    """
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def wrapped(text: str, first: str = "", indent: str = "  ") -> str:
    """A sentence on lines of at most `WIDTH` columns; the first line begins with ``first``."""
    return textwrap.fill(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


@dataclass(frozen=True, slots=True)
class Table:
    """A small table of cells that are already text.

    Parameters
    ----------
    title
        Heading above the table.
    header
        Column headings; the first belongs to the row names.
    rows
        Cells; a row with the name alone is a subheading that spans the table.
    ruled
        Whether to draw rules in text.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ruled: bool = True

    def text(self) -> str:
        """The table, names to the left and numbers to the right."""
        cells = [self.header, *self.rows]
        num_columns = len(self.header)
        name_width = max(display_width(row[0]) for row in cells if len(row) > 1)
        widths = [
            max([len(row[j]) for row in cells if len(row) > j], default=0) for j in range(1, num_columns)
        ]
        # Spread the columns over the page, but never squeeze two of them together; names take what is left.
        spare = WIDTH - name_width - sum(widths)
        gap = min(4, max(2, spare // max(1, num_columns - 1)))
        total = max(WIDTH, name_width + sum(widths) + gap * (num_columns - 1))
        name_width = total - sum(widths) - gap * (num_columns - 1)
        rule = ["-" * total] if self.ruled else []
        title = [self.title] if self.title else []
        header, *rows = [self._line(row, name_width, widths, gap) for row in cells]
        return "\n".join([*title, *rule, header, *rule, *rows, *rule])

    @staticmethod
    def _line(row: Sequence[str], name_width: int, widths: Sequence[int], gap: int) -> str:
        if len(row) == 1:
            return row[0]
        name = row[0] + " " * (name_width - display_width(row[0]))
        numbers = (" " * gap + cell.rjust(width) for cell, width in zip(row[1:], widths, strict=False))
        return (name + "".join(numbers)).rstrip()

    def html(self) -> str:
        """The table as an HTML fragment; every cell is escaped."""
        head = "".join(f'<th style="text-align:right">{html.escape(cell)}</th>' for cell in self.header[1:])
        lines = [f'<tr><th style="text-align:left">{html.escape(self.header[0])}</th>{head}</tr>']
        for row in self.rows:
            name = html.escape(row[0].lstrip())
            indent = len(row[0]) - len(row[0].lstrip())
            span = f' colspan="{len(self.header)}"' if len(row) == 1 else ""
            cells = "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row[1:])
            lines.append(
                f"<tr><th{span}"
                f' style="text-align:left;font-weight:normal;padding-left:{indent / 2 + 0.5}em">{name}</th>'
                f"{cells}</tr>"
            )
        caption = (
            f'<caption style="text-align:left;font-weight:bold">{html.escape(self.title)}</caption>'
            if self.title
            else ""
        )
        return f"<table>{caption}<thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


class NotedFrame(pd.DataFrame):
    """A data frame that prints all its columns, and ``attrs["note"]`` below; operations on it drop both."""

    def __repr__(self) -> str:
        note = self.attrs.get("note")
        table = self.to_string(max_rows=pd.get_option("display.max_rows"))
        return table + (f"\n{wrapped('Note: ' + note)}" if note else "")

    def _repr_html_(self) -> str | None:
        table = super()._repr_html_()  # type: ignore[misc]
        note = self.attrs.get("note")
        return f"{table}<p>Note: {html.escape(note)}</p>" if note and table else table

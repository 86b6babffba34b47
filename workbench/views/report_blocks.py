"""Describes the pieces of a self-contained page: tables of estimates, figures, and blocks with a heading and a remark above a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import plotly.graph_objects as go
from markupsafe import Markup

from workbench.views.static_figure import static_svg
from workbench.views.style import VERDICTS


class Cell(NamedTuple):
    """The text of one cell of a table.

    Attributes:
        text: the number or the words.
        interval: the ends of its interval, such as ``[0.1, 0.3]``; empty without one.
        is_words: True for words, which are aligned to the left.
        meaning: definition, shown when the pointer rests on the cell.
        sign: sign in front of a verdict, and its hue; empty elsewhere.
        hue: hue of the sign.
    """

    text: str
    interval: str = ""
    is_words: bool = False
    meaning: str = ""
    sign: str = ""
    hue: str = ""


@dataclass(frozen=True)
class Column:
    """Describes a column of a table.

    Attributes:
        title: heading.
        value: key of the rows.
        scale: factor; 100 for shares.
        digits: after the point, or the key of the rows that says how many.
        low: key of the lower end of its interval, "" without one.
        high: key of the upper end.
        meaning: definition, shown when the pointer rests on the heading.
        meanings: definitions of the words in this column; words that are a verdict have its sign.
    """

    title: str
    value: str
    scale: float = 1
    digits: int | str = 3
    low: str = ""
    high: str = ""
    meaning: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Returns the cell of a row: an estimate with its interval, whole numbers and words as they are, ``-`` for an unknown value."""
        value, low, high = (row.get(name) if name else None for name in (self.value, self.low, self.high))
        if value is None or value != value:
            return Cell("-")
        if isinstance(value, str):
            colour, _, sign = VERDICTS.get(value, ("", "", ""))
            return Cell(value, is_words=True, meaning=self.meanings.get(value, ""), sign=sign, hue=colour)
        if not isinstance(value, float):
            return Cell(str(value))
        digits = row[self.digits] if isinstance(self.digits, str) else self.digits
        ends = [self._number(end, digits) for end in (low, high) if end is not None]
        return Cell(self._number(value, digits), f"[{ends[0]}, {ends[1]}]" if len(ends) == 2 else "")

    def _number(self, value: float, digits: int) -> str:
        return f"{value * self.scale:,.{digits}f}"


class Table(NamedTuple):
    """Rows and the columns in which they are shown."""

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]

    def of_words(self, column: Column) -> bool:
        """Returns True if a column holds words, whose heading is aligned as they are."""
        return any(column.cell(row).is_words for row in self.rows)


class Block(NamedTuple):
    """A table with a heading and a remark above it, each left out where it is empty."""

    table: Table | None = None
    heading: str = ""
    note: str = ""


class Figure(NamedTuple):
    """A figure as HTML, and what it shows."""

    html: Markup
    caption: str


def share(title: str, value: str, low: str = "low", high: str = "high") -> Column:
    """Returns a column of shares or AP with their intervals, in percent."""
    return Column(title, value, 100, 1, low, high)


def figure(drawn: go.Figure, caption: str) -> Figure:
    """Returns a figure as SVG, for a page without scripts; names in it stay text."""
    return Figure(Markup(static_svg(drawn, caption)), caption)

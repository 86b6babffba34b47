"""Describes the pieces of a self-contained page: tables of estimates, figures, and blocks with a heading and a remark above a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go
from markupsafe import Markup


class Cell(NamedTuple):
    """The text of one cell of a table.

    Attributes:
        text: the number or the words.
        interval: the ends of its interval, such as ``[0.1, 0.3]``; empty without one.
        is_words: True for words, which are aligned to the left.
    """

    text: str
    interval: str = ""
    is_words: bool = False


@dataclass(frozen=True)
class Column:
    """Describes a column of a table.

    Attributes:
        title: heading.
        value: key of the rows.
        scale: factor; 100 for shares.
        digits: after the point.
        low: key of the lower end of its interval, "" without one.
        high: key of the upper end.
        meaning: definition, shown when the pointer rests on the heading.
    """

    title: str
    value: str
    scale: float = 1
    digits: int = 3
    low: str = ""
    high: str = ""
    meaning: str = ""

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """Returns the cell of a row: an estimate with its interval, whole numbers and words as they are, ``-`` for an unknown value."""
        value, low, high = (row.get(name) if name else None for name in (self.value, self.low, self.high))
        if value is None or value != value:
            return Cell("-")
        if not isinstance(value, float):
            return Cell(str(value), is_words=isinstance(value, str))
        ends = [self._number(end) for end in (low, high) if end is not None]
        return Cell(self._number(value), f"[{ends[0]}, {ends[1]}]" if len(ends) == 2 else "")

    def _number(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f}"


class Table(NamedTuple):
    """Rows and the columns in which they are shown."""

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]


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
    """Returns a figure for a page that holds plotly's script once; plotly writes ``<`` in names as an escape of JSON."""
    html = drawn.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return Figure(Markup(html), caption)

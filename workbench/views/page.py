"""Pieces of a page that needs nothing else: style, tables of estimates, figures. Names from data are shown as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --line: #ddd; --ground: #fff; --error: #a83200; --warning: #8a6100 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #aaa; --line: #3a3a3a; --ground: #141414; --error: #ff8a5c;
  --warning: #e6b34d } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1200px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem } h3 { font-size: 1rem; margin-bottom: .2rem }
h4 { font-size: .9rem; margin: .8rem 0 .1rem } summary { cursor: pointer; font-weight: 600; margin: .5rem 0 }
div.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px } th, td { padding: .25rem .6rem; text-align: right }
th, td { border-bottom: 1px solid var(--line); white-space: nowrap } td.text, th.text { text-align: left; white-space: normal }
p.note, small { color: var(--soft); font-size: 13px } li { margin: .3rem 0 }
.error { color: var(--error) } .warning { color: var(--warning) }
.js-plotly-plot .main-svg > g:not(.hoverlayer) text, .js-plotly-plot .infolayer text { fill: var(--ink) !important }
"""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: as shown.
        value: key of the rows.
        scale: factor; 100 for shares.
        digits: behind the point.
        low: key of the lower end of its interval, "" without.
        high: of the upper end.
    """

    title: str
    value: str
    scale: float = 1
    digits: int = 3
    low: str = ""
    high: str = ""


def share(title: str, value: str, low: str = "low", high: str = "high") -> Column:
    """A column of shares or AP with their intervals, in percent."""
    return Column(title, value, 100, 1, low, high)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as a table; whole numbers and text as they are, an estimate with its interval in one cell."""
    if not rows:
        return "<p class=note>nothing to show</p>"
    heads = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(row, column) for column in columns) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{heads}</tr>{body}</table></div>"


def figure(drawn: go.Figure, caption: str) -> str:
    """A figure and what it shows; plotly itself is to be on the page once."""
    html = drawn.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f"{html}<p class=note>{escape(caption)}</p>"


def names(runs: Sequence[str]) -> str:
    """Names of runs as text."""
    return escape(", ".join(runs))


def cell(value: Any, digits: int | None) -> str:
    """One cell: a number with so many digits, or a whole number or text where ``digits`` is None; ``-`` for what is not known."""
    if value is None or value != value:
        return "<td>-</td>"
    if isinstance(value, str):
        return f"<td class=text>{escape(value)}</td>"
    return f"<td>{value:,.{digits}f}</td>" if digits is not None else f"<td>{escape(str(value))}</td>"


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value, low, high = (row.get(name) if name else None for name in (column.value, column.low, column.high))
    if not isinstance(value, float) or value != value:
        return cell(value, None)
    ends = [f"{end * column.scale:,.{column.digits}f}" for end in (low, high) if end is not None]
    between = f" <small>[{ends[0]}, {ends[1]}]</small>" if len(ends) == 2 else ""
    return f"<td>{value * column.scale:,.{column.digits}f}{between}</td>"

"""Holds what every figure shares: colours that colour-blind readers can tell apart, a quiet layout, and names shown as text."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

# Four of Okabe and Ito, 2008 (jfly.uni-koeln.de/color), and two more: each stands out from a white and from a dark page by 3 to 1 (the
# least of WCAG 2.2 for marks), and colour-blind readers tell all six apart as well as those of Okabe and Ito
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B03A46", "#824DFF")
INFERNO = ("0,0,4", "40,11,84", "101,21,110", "159,42,99", "212,72,66", "245,125,21", "250,193,39", "252,230,120", "252,255,220")
GREY = "#8C8C8C"  # of everything that is not a run: teachers, references; too faint for text, which takes the page's ink


class VerdictStyle(NamedTuple):
    """How a verdict is drawn.

    Attributes:
        colour: a hue that no run has; it stands out from light and dark pages.
        symbol: mark in a figure, so that the hue is not all that tells verdicts apart.
        sign: the same mark as a letter.
    """

    colour: str
    symbol: str
    sign: str


VERDICTS: Mapping[str, VerdictStyle] = {
    "better": VerdictStyle("#7B61D9", "triangle-up", "▲"),
    "worse": VerdictStyle("#9C6B1E", "triangle-down", "▼"),
    "not distinguishable": VerdictStyle(GREY, "circle", "●"),
}
DASHES = ("solid", "dash", "dot", "dashdot")
GRID = "rgba(128,128,128,0.22)"
AXIS = "rgba(128,128,128,0.55)"
_FEW_LINES = 4
_AXES: dict[str, Any] = {
    "gridcolor": GRID, "zeroline": False, "linecolor": AXIS, "ticks": "outside", "tickcolor": AXIS, "ticklen": 3,
    "title": {"standoff": 6, "font": {"size": 12}}, "tickfont": {"size": 11},
}  # fmt: skip
_LETTER = 6.4  # average width in pixels of a letter in a tick label
_LONGEST = 40  # letters of the longest name that a margin makes room for
_ROW = 60  # letters that fit in one row of the legend above the narrowest figure
SCALE = 84  # width in pixels of a colour scale at the right of a figure
# Plotly reads a subset of HTML, entities, $formulas$ and %{templates} in every text it draws.
_MEANT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;", "\n": " ", "\r": " ", "\t": " "})


class Chart(go.Figure):
    """A figure that sends its numbers to the browser as lists.

    plotly.js treats every typed array as new, even if its values are unchanged. A page that hands over its figures twice, as Streamlit's
    does, would draw each of them twice.
    """

    def to_dict(self) -> dict[str, Any]:
        traces: Any = self.data
        return {"data": [_listed(trace.to_plotly_json()) for trace in traces], "layout": _listed(self.layout.to_plotly_json())}


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            unknown = ~np.isfinite(value)
            value = value.astype(object)
            value[unknown] = None
        return value.tolist()
    if isinstance(value, dict):
        return {name: _listed(own) for name, own in value.items()}
    # long lists hold only numbers and text
    return [_listed(own) for own in value] if isinstance(value, list | tuple) and value and isinstance(value[0], dict) else value


def interval(ends: Sequence[np.ndarray], colour: str = GREY) -> dict[str, Any]:
    """Returns ``error_x`` or ``error_y`` of a trace whose values have intervals; ``ends`` are value, low and high."""
    value, low, high = ends
    return {"type": "data", "array": high - value, "arrayminus": value - low, "color": colour, "thickness": 1.4, "width": 4}


def plain(text: object) -> str:
    """Returns ``text`` escaped so that plotly draws its characters and never reads them as markup, a formula or a template."""
    return str(text).translate(_MEANT)


def run_style(position: int) -> tuple[str, str]:
    """Returns colour and dash of the n-th run of a figure; the dash changes when the colours are used up."""
    return COLOURS[position % len(COLOURS)], DASHES[position // len(COLOURS) % len(DASHES)]


def faded(colour: str, opacity: float) -> str:
    """Returns a ``#RRGGBB`` colour made translucent."""
    return f"rgba({','.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def quiet(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """Applies a transparent ground, a thin grid and a legend above, readable on light and dark pages, whose text colour it takes."""
    own: dict[str, Any] = {
        "height": height, "margin": {"l": 56, "r": 12, "t": 56, "b": 44}, "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "font": {"size": 12}, "hovermode": "closest", "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.1, "xanchor": "left", "x": 0, "title": {"text": ""},
                   "itemsizing": "trace", "bgcolor": "rgba(0,0,0,0)"},
    }  # fmt: skip
    laid_out(figure, **own)
    for axis in (*figure.select_xaxes(), *figure.select_yaxes()):
        figure.layout[axis.plotly_name] = _over(axis.to_plotly_json(), _AXES)
    figure.update_annotations(font_size=12)
    if layout:
        figure.update_layout(**layout)
    # one row of names fits above any figure; without this hint the browser measures them and draws the figure twice
    traces: Any = figure.data
    figure.layout.margin.autoexpand = sum(len(trace.name or "") + 7 for trace in traces if trace.showlegend is not False) > _ROW
    return figure


def saying(text: str, height: int = 160) -> go.Figure:
    """Returns a figure that holds one sentence in place of a drawing, for a number that is not defined."""
    figure = quiet(Chart(), height, margin={"l": 12, "r": 12, "t": 12, "b": 12})
    figure.update_xaxes(visible=False, range=[0, 1]).update_yaxes(visible=False, range=[0, 1])
    return say(figure, text)


def noted(figure: go.Figure, text: str) -> go.Figure:
    """Writes a sentence below a figure, such as which of its numbers are not defined for a run; nothing if ``text`` is empty."""
    if not text:
        return figure
    lines = textwrap.wrap(plain(text), 120)
    margin = figure.layout.margin.to_plotly_json()
    room = 16 * len(lines) + 8
    figure.add_annotation(x=0, y=0, xref="paper", yref="paper", xanchor="left", yanchor="top", yshift=-margin["b"], align="left",
                          text="<br>".join(lines), showarrow=False)  # fmt: skip
    return laid_out(figure, height=figure.layout.height + room, margin={**margin, "b": margin["b"] + room})


def say(figure: go.Figure, text: str, row: int | None = None, column: int | None = None) -> go.Figure:
    """Writes a sentence into the middle of a figure, or of one of its small plots, in lines of about 40 letters."""
    lines = "<br>".join(textwrap.wrap(plain(text), 40 if row is not None else 110))
    place: dict[str, Any] = {} if row is None else {"row": row, "col": column}
    return figure.add_annotation(x=0.5, y=0.5, xref="x domain", yref="y domain", text=lines, showarrow=False, **place)


def with_lines(figure: go.Figure) -> go.Figure:
    """Returns a narrow figure with room for the names of many lines, stacked above it; a figure of few lines is left as it is."""
    lines = sum(1 for _ in figure.select_traces({"showlegend": True}))
    if lines <= _FEW_LINES:
        return figure
    room = 19 * lines + 16
    legend = {**figure.layout.legend.to_plotly_json(), "y": 1, "orientation": "v", "maxheight": room}
    return laid_out(figure, height=figure.layout.height - figure.layout.margin.t + room, legend=legend,
                    margin={**figure.layout.margin.to_plotly_json(), "t": room})  # fmt: skip


def reach(*values: np.ndarray, zero: bool = False) -> list[float]:
    """Returns the ends of an axis that shows all finite numbers with a little room, and ``zero`` too if asked.

    The browser draws a figure only once if all its axes have ends, see ``app/lib/page.py``.
    """
    known = np.concatenate([np.asarray(own, float).ravel() for own in values])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    room = max(0.05 * (high - low), 1e-9 * max(abs(low), abs(high))) or 0.5
    ends = [low - room, high + room]
    return [min(ends[0], 0) if low < 0 else 0, max(ends[1], 0)] if zero else ends


def with_names(figure: go.Figure, names: Sequence[str]) -> go.Figure:
    """Returns a figure with the names at 0, 1, ... of its y axis, from the top, and a left margin that fits them.

    The margin is computed here because a browser that has to measure names draws the figure twice. Unusually long names are measured
    nevertheless.
    """
    longest = max(map(len, names), default=0)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=list(names), range=[max(len(names), 1) - 0.5, -0.5],
                        automargin=longest > _LONGEST)  # fmt: skip
    return laid_out(figure, margin={**figure.layout.margin.to_plotly_json(), "l": 20 + int(_LETTER * min(longest, _LONGEST))})


def laid_out(figure: go.Figure, **layout: Any) -> go.Figure:
    """Sets whole properties of the layout. ``update_layout`` merges into them and takes ten times as long; a page has eight figures."""
    for name, value in layout.items():
        figure.layout[name] = value
    return figure


def _over(own: dict[str, Any], style: dict[str, Any]) -> dict[str, Any]:
    """Returns ``own`` with the properties of ``style``; nested objects are merged property by property."""
    return own | {name: _over(own.get(name, {}), value) if isinstance(value, dict) else value for name, value in style.items()}

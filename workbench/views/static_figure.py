"""Draws a figure of this package as static SVG for a page without scripts, so that dashboard and report compose each figure once.

It knows what our figures of lines, marks and intervals consist of: scatter traces with error bars, subplots on linear and logarithmic axes,
a legend, lines as shapes, and annotations. What it does not know raises an error, so that no part of a figure is left out unseen.
"""

import hashlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox, BboxTransformTo, ScaledTranslation, Transform, TransformedBbox, blended_transform_factory

from workbench.views.style import AXIS, GRID

WIDTH = 1160  # pixels
_INK = "#010203"  # stands for the colour of the page's text, which only the browser knows
_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "workbench", "text.parse_math": False, "axes.unicode_minus": False,
                             "figure.dpi": 72, "savefig.dpi": 72, "path.simplify": True}  # fmt: skip
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1.2, 2)), "dashdot": (0, (5, 2, 1.2, 2))}
_SYMBOLS = {"circle": "o", "circle-open": "o", "diamond": "D", "square": "s", "triangle-up": "^", "triangle-down": "v", "x-thin": "x"}
_ANCHORS = {"left": "left", "center": "center", "right": "right", "top": "top", "middle": "center", "bottom": "bottom"}
_LEGEND_ROW, _HANDLE, _GAP, _LONGEST = 19, 26, 18, 90  # pixels, the last one letters
_TITLE_ROOM = 22  # pixels above the plots for their titles
_ILLEGAL = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML cannot hold


class _Room(NamedTuple):
    """Pixels of the figure and of the area of its plots: from left and bottom, width and height."""

    width: float
    height: float
    left: float
    bottom: float
    across: float
    up: float


def static_svg(figure: go.Figure, label: str = "", width: int = WIDTH) -> str:
    """Returns the figure as one ``svg`` element for an HTML page; equal figures give equal text.

    Text takes the colour of the page. Names are drawn as the characters that they consist of.

    Args:
        figure: figure of ``workbench.views``.
        label: what the figure shows, for screen readers.
        width: pixels; the element shrinks with the page and never grows beyond.

    Raises:
        ValueError: the figure holds something that this module does not draw.
    """
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has letters that the font for measuring lacks
        canvas, height = _canvas(figure, width)
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _embedded(out.getvalue(), label, width, height)


def _canvas(figure: go.Figure, width: float) -> tuple[Figure, float]:
    """Returns the drawn figure and its height in pixels."""
    layout: Any = figure.layout
    data: Any = figure.data
    traces: list[Any] = [trace for trace in data if trace.visible is not False]
    for trace in traces:
        _check(trace)
    margin = {side: layout.margin[side] if layout.margin[side] is not None else 60 for side in "lrtb"}
    rows = _legend_rows(_named(traces, layout), width - margin["l"] - margin["r"])
    annotations = [one for one in layout.annotations if one.visible is not False]
    titled = any(one.yref == "paper" and one.yanchor == "bottom" for one in annotations)
    top = 8 + _LEGEND_ROW * len(rows) + (_TITLE_ROOM if titled else 0)
    height = (layout.height or 450) - margin["t"] + top
    room = _Room(width, height, margin["l"], margin["b"], width - margin["l"] - margin["r"], height - top - margin["b"])
    canvas = Figure(figsize=(width / 72, height / 72))
    FigureCanvasSVG(canvas)
    axes = {name: _axes(canvas, room, layout, *name, traces) for name in _subplots(layout)}
    for trace in traces:
        _draw(axes[trace.xaxis or "x", trace.yaxis or "y"], trace)
    for shape in layout.shapes:
        _draw_line(canvas, room, axes, shape)
    for one in annotations:
        _write(canvas, room, axes, one)
    _draw_legend(canvas, room, rows)
    return canvas, height


def _check(trace: Any) -> None:
    """Raises a ValueError if a trace has a part that is not drawn."""
    known = trace.type == "scatter" and trace.mode in ("lines", "markers", "lines+markers") and trace.fill in (None, "none")
    if not known:
        raise ValueError(f"a trace of type '{trace.type}' whose mode or fill is not known cannot be drawn as static SVG")


def _subplots(layout: Any) -> list[tuple[str, str]]:
    """Returns the names of the x and y axis of each plot."""
    names = [name.replace("axis", "") for name in layout.to_plotly_json() if name.startswith("xaxis")]
    return [(name, layout[_long(name)].anchor or "y") for name in names] or [("x", "y")]


def _long(name: str) -> str:
    """Returns what the layout calls an axis that traces call ``x2``."""
    return f"{name[0]}axis{name[1:]}"


def _axes(canvas: Figure, room: _Room, layout: Any, x: str, y: str, traces: Sequence[Any]) -> Axes:
    """Adds one plot with its ends, ticks and titles."""
    sides = {"x": layout[_long(x)], "y": layout[_long(y)]}
    (x0, x1), (y0, y1) = (side.domain or (0, 1) for side in sides.values())
    place = ((room.left + x0 * room.across) / room.width, (room.bottom + y0 * room.up) / room.height,
             (x1 - x0) * room.across / room.width, (y1 - y0) * room.up / room.height)  # fmt: skip
    ax = canvas.add_axes(place)
    ax.patch.set_visible(False)
    for edge in ("top", "right"):
        ax.spines[edge].set_visible(False)
    for edge in ("left", "bottom"):
        ax.spines[edge].set_color(_colour(AXIS))
    ax.grid(True, color=_colour(GRID), linewidth=1)
    ax.set_axisbelow(True)
    ax.set_xlim(_ends(layout, x, traces))
    ax.set_ylim(_ends(layout, y, traces))
    _ticks(ax.xaxis, sides["x"], (x1 - x0) * room.across / 70)
    _ticks(ax.yaxis, sides["y"], (y1 - y0) * room.up / 40)
    if any(side.visible is False for side in sides.values()):
        ax.set_axis_off()
    return ax


def _ticks(axis: Any, side: Any, most: float) -> None:
    axis.set_tick_params(which="both", color=_colour(AXIS), labelcolor=_INK, labelsize=11, length=3)
    axis.set_label_text(_text(side.title.text or ""), color=_INK, fontsize=12)
    if side.type == "log":
        axis._set_axes_scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most > 4 else (1,), numticks=max(3, int(most) + 1)))
        axis.set_minor_locator(NullLocator())
    elif side.tickvals is not None:
        axis.set_major_locator(FixedLocator(list(side.tickvals)))
    else:
        axis.set_major_locator(MaxNLocator(max(2, min(9, int(most))), steps=[1, 2, 2.5, 5, 10]))
    if side.showticklabels is False:
        axis.set_major_formatter(NullFormatter())
    elif side.ticktext is not None:
        names: dict[Any, str] = dict(zip(side.tickvals or (), map(_text, side.ticktext), strict=True))
        axis.set_major_formatter(FuncFormatter(lambda value, _: names.get(value, "")))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def _ends(layout: Any, name: str, traces: Sequence[Any]) -> tuple[float, float]:
    """Returns the ends of an axis: those that the figure states, else around all values of the axes that match it."""
    root = layout[_long(name)].matches or name
    group = [one for one in _names(layout, name[0]) if root in (one, layout[_long(one)].matches)]
    stated = next((layout[_long(one)].range for one in (name, *group) if layout[_long(one)].range is not None), None)
    logarithmic = layout[_long(name)].type == "log"
    if stated is not None:
        low, high = (10**end if logarithmic else end for end in stated)
        return low, high
    own = [trace for trace in traces if (trace[f"{name[0]}axis"] or name[0]) in group]
    values = np.concatenate([np.zeros(0), *(value for trace in own for value in _reached(trace, name[0]))])
    values = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
    if not len(values):
        return (0.1, 10.0) if logarithmic else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        return low / 1.3, high * 1.3
    space = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    zero = any(layout[_long(one)].rangemode == "tozero" for one in group)
    return (0.0 if zero and low >= 0 else low - space), (0.0 if zero and high <= 0 and low < 0 else high + space)


def _names(layout: Any, letter: str) -> list[str]:
    return [name.replace("axis", "") for name in layout.to_plotly_json() if name.startswith(f"{letter}axis")] or [letter]


def _reached(trace: Any, letter: str) -> list[np.ndarray]:
    """Returns the values of a trace along an axis, and the ends of their intervals."""
    values, error = _numbers(trace[letter]), trace[f"error_{letter}"]
    if error.array is None:
        return [values]
    below = error.arrayminus if error.arrayminus is not None else error.array
    return [values, values + np.nan_to_num(_numbers(error.array)), values - np.nan_to_num(_numbers(below))]


def _draw(ax: Axes, trace: Any) -> None:
    x, y = _numbers(trace.x), _numbers(trace.y)
    for letter in ("x", "y"):
        error = trace[f"error_{letter}"]
        if error.array is not None:
            below = error.arrayminus if error.arrayminus is not None else error.array
            both = np.clip(np.nan_to_num(np.stack([_numbers(below), _numbers(error.array)])), 0, None)
            across, up = (both, None) if letter == "x" else (None, both)
            ax.errorbar(x, y, up, across, fmt="none", ecolor=_colour(error.color), elinewidth=error.thickness,
                        capsize=error.width, capthick=error.thickness)  # fmt: skip
    if "lines" in trace.mode:
        ax.plot(x, y, **_line(trace.line), drawstyle="steps-post" if trace.line.shape == "hv" else "default", solid_joinstyle="round")
    if "markers" in trace.mode:
        for chosen, style in _marks(trace, len(x)):
            ax.plot(x[chosen], y[chosen], linestyle="none", clip_on=False, zorder=3, **style)


def _line(line: Any) -> dict[str, Any]:
    return {"color": _colour(line.color), "linewidth": line.width or 2, "linestyle": _DASHES[line.dash or "solid"]}


def _marks(trace: Any, count: int) -> Iterable[tuple[list[int], dict[str, Any]]]:
    """Yields the places of marks that look alike, with how they look."""
    marker = trace.marker
    colours = marker.color if isinstance(marker.color, list | tuple | np.ndarray) else [marker.color or trace.line.color] * count
    symbol = marker.symbol or "circle"
    for colour in dict.fromkeys(colours):
        places = [place for place, own in enumerate(colours) if own == colour]
        hollow = symbol.endswith("-open")
        yield places, {
            "marker": _SYMBOLS[symbol], "markersize": marker.size or 6, "color": _colour(colour), "alpha": marker.opacity,
            "markerfacecolor": "none" if hollow else _colour(colour),
            "markeredgewidth": marker.line.width or 1.4 if hollow or symbol == "x-thin" else 0,
        }  # fmt: skip


def _transform(canvas: Figure, room: _Room, axes: dict[tuple[str, str], Axes], xref: str, yref: str) -> Transform:
    """Returns the transform of the two references of a shape or annotation: an axis, its domain, or the paper."""
    area = Bbox.from_bounds(room.left / room.width, room.bottom / room.height, room.across / room.width, room.up / room.height)
    paper = BboxTransformTo(TransformedBbox(area, canvas.transSubfigure))

    def one(ref: str, place: int) -> Transform:
        if ref == "paper":
            return paper
        ax = next(ax for name, ax in axes.items() if name[place] == ref.removesuffix(" domain"))
        return ax.transAxes if ref.endswith(" domain") else ax.transData

    return blended_transform_factory(one(xref, 0), one(yref, 1))


def _draw_line(canvas: Figure, room: _Room, axes: dict[tuple[str, str], Axes], shape: Any) -> None:
    if shape.type != "line":
        raise ValueError(f"a shape of type '{shape.type}' cannot be drawn as static SVG")
    transform = _transform(canvas, room, axes, shape.xref or "x", shape.yref or "y")
    canvas.add_artist(Line2D([shape.x0, shape.x1], [shape.y0, shape.y1], transform=transform, **_line(shape.line)))


def _write(canvas: Figure, room: _Room, axes: dict[tuple[str, str], Axes], one: Any) -> None:
    if one.showarrow is not False:
        raise ValueError("an annotation with an arrow cannot be drawn as static SVG")
    across = _ANCHORS[one.xanchor if one.xanchor in _ANCHORS else "center"]
    up = _ANCHORS[one.yanchor if one.yanchor in _ANCHORS else "middle"]
    shift = ScaledTranslation((one.xshift or 0) / 72, (one.yshift or 0) / 72, canvas.dpi_scale_trans)
    canvas.text(
        one.x, one.y, _text(one.text), transform=_transform(canvas, room, axes, one.xref or "x", one.yref or "y") + shift,
        ha=across, va=up, multialignment=one.align or "center", fontsize=one.font.size or 12, color=_colour(one.font.color),
    )  # fmt: skip


def _named(traces: Sequence[Any], layout: Any) -> list[tuple[str, Any]]:
    """Returns the names of the legend and their traces; plotly gives a lone trace no legend unless it asks for one."""
    found = [(_shortened(_text(trace.name)), trace) for trace in traces if trace.showlegend is not False and trace.name]
    alone = len(traces) == 1 and traces[0].showlegend is None
    return [] if layout.showlegend is False or alone else found


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _legend_rows(named: Sequence[tuple[str, Any]], width: float) -> list[list[tuple[float, str, Any]]]:
    """Returns the rows of the legend: of each entry the pixels from the left of the plots, its name and its trace."""
    rows: list[list[tuple[float, str, Any]]] = []
    reached = width
    font = FontProperties(size=12)
    for name, trace in named:
        long = _HANDLE + 6 + text_to_path.get_text_width_height_descent(name, font, ismath=False)[0] + _GAP
        if reached + long > width or not rows:
            rows.append([])
            reached = 0.0
        rows[-1].append((reached, name, trace))
        reached += long
    return rows


def _draw_legend(canvas: Figure, room: _Room, rows: Sequence[Sequence[tuple[float, str, Any]]]) -> None:
    for row, entries in enumerate(rows):
        y = (room.height - 4 - _LEGEND_ROW * (row + 0.5)) / room.height
        for start, name, trace in entries:
            x = room.left + start
            if "lines" in trace.mode:
                canvas.add_artist(Line2D([x / room.width, (x + _HANDLE) / room.width], [y, y], **_line(trace.line)))
            if "markers" in trace.mode:
                _, style = next(iter(_marks(trace, 1)))
                canvas.add_artist(Line2D([(x + _HANDLE / 2) / room.width], [y], linestyle="none", **style))
            canvas.text((x + _HANDLE + 6) / room.width, y, name, va="center", ha="left", fontsize=12, color=_INK)


def _numbers(values: Any) -> np.ndarray:
    """Returns values as floats, NaN for unknown ones."""
    return np.array([np.nan if value is None else value for value in ([] if values is None else values)], float)


def _colour(colour: Any) -> Any:
    """Returns a colour as matplotlib takes it; text without a colour of its own takes the page's."""
    if colour is None:
        return _INK
    found = re.fullmatch(r"rgba?\(([^)]*)\)", str(colour))
    if not found:
        return str(colour)
    numbers = [float(part) for part in found[1].split(",")]
    return (*(part / 255 for part in numbers[:3]), numbers[3] if len(numbers) > 3 else 1.0)


def _text(text: str) -> str:
    """Returns the characters that a text of a figure shows: line ends for ``<br>``, and no entities (``style.plain``)."""
    return _ILLEGAL.sub("", html.unescape(re.sub(r"</?(b|i|sub|sup)>", "", text.replace("<br>", "\n"))))


def _embedded(drawn: str, label: str, width: float, height: float) -> str:
    """Returns a drawing as an element of an HTML page: short, in the page's colour, and with ids and classes that no other figure has."""
    root = ElementTree.fromstring(drawn)
    own = f"f{hashlib.sha256(drawn.encode()).hexdigest()[:6]}"
    ids: dict[str, str] = {}
    styles: dict[str, str] = {}
    # the style sheet of matplotlib would hold for the whole page
    _without(root, lambda element: element.tag.endswith(("}metadata", "}style")))
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        values = {name.partition("}")[2] or name: value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in values.items():
            if name == "style":
                element.set("class", styles.setdefault(_style(value), f"{own}{_letters(len(styles))}"))
            elif name == "id" and element.tag != "g":
                element.set("id", ids.setdefault(value, f"{own}-{len(ids)}"))
            elif name == "href" or value.startswith("url("):
                target = value.removeprefix("url(").removesuffix(")").removeprefix("#")
                found = f"#{ids.setdefault(target, f'{own}-{len(ids)}')}"
                element.set(name, found if name == "href" else f"url({found})")
            elif name != "id" and not value.startswith("rotate(-0 "):
                element.set(name, _rounded(value, 1))
        element.tail = None
        if element.tag != "text":
            element.text = None
    _unwrap(root)
    root.attrib.clear()
    root.attrib |= {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": _ILLEGAL.sub("", label), "class": own}
    sheet = ElementTree.Element("style")
    sheet.text = f".{own}{{width:100%;max-width:{width:g}px;stroke-linejoin:round}}"
    sheet.text += "".join(f".{name}{{{style}}}" for style, name in styles.items())
    root.insert(0, sheet)
    return ElementTree.tostring(root, encoding="unicode")


def _without(root: ElementTree.Element, unwanted: Callable[[ElementTree.Element], bool]) -> None:
    for parent in root.iter():
        for child in list(parent):
            if unwanted(child):
                parent.remove(child)


def _unwrap(parent: ElementTree.Element) -> None:
    """Puts the children of groups that say nothing in their place."""
    children: list[ElementTree.Element] = []
    for child in list(parent):
        _unwrap(child)
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = [child for child in children if child.tag not in ("g", "defs") or len(child)]


def _style(value: str) -> str:
    """Returns a style without what the page says itself: the family of the letters, and the colour of its text."""
    parts = [part.strip() for part in value.split(";")]
    kept = []
    for part in parts:
        name, _, found = part.partition(":")
        if name == "font":
            name, found = "font-size", found.strip().partition(" ")[0]
        if name and name != "font-family":
            kept.append(f"{name}:{_rounded(found.strip(), 2)}")
    return ";".join(kept).replace(_INK, "currentColor")


def _rounded(value: str, digits: int) -> str:
    """Returns a value with its numbers rounded."""
    return " ".join(re.sub(r"-?\d+\.\d+", lambda found: f"{round(float(found[0]), digits):g}", value).split())


def _letters(number: int) -> str:
    return chr(97 + number % 26) + (str(number // 26) if number >= 26 else "")

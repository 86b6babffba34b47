"""Draws a scatter plot of any number of points as one picture of counts per pixel, so that a million points keep the page light."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from workbench.views.box_drawing import png
from workbench.views.style import COLOURS, Chart, quiet

WIDTH, HEIGHT = 480, 320  # pixels of the picture
FEW = 5_000  # points up to which each is drawn as a mark
_CELLS = 24, 16  # cells of the grid for hovering and selecting: each is a mark that the browser draws
# viridis from its second tenth: sparse points stay visible on a white page, dense ones on a dark page
_COLOURS = np.array([(72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121), (110, 206, 88),
                     (181, 222, 43), (253, 231, 37)], float)  # fmt: skip


class Bounds(NamedTuple):
    """Holds the limits of the plane that is drawn."""

    x0: float
    x1: float
    y0: float
    y1: float


def bounds_of(x: np.ndarray, y: np.ndarray) -> Bounds:
    """Returns the limits just around all points; a side without extent is widened."""
    ends: list[float] = []
    for values in (x, y):
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        room = 0.02 * (high - low) or 0.5
        ends += [low - room, high + room]
    return Bounds(*ends)


def counted(x: np.ndarray, y: np.ndarray, bounds: Bounds, width: int, height: int) -> np.ndarray:
    """Returns the number of points in each cell, ``[height, width]`` with row 0 at the top; points outside are not counted."""
    column = (x - bounds.x0) * (width / (bounds.x1 - bounds.x0))
    row = (bounds.y1 - y) * (height / (bounds.y1 - bounds.y0))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
    return np.bincount(cell, minlength=width * height).reshape(height, width)


def coloured(counts: np.ndarray) -> np.ndarray:
    """Returns colours ``[h, w, 4]`` uint8: each pixel is coloured by the rank of its count, and empty pixels are transparent.

    Ranks show the shape of both dense and sparse regions, whatever the number of points.
    """
    filled = counts > 0
    rank = np.zeros(counts.shape)
    if filled.any():
        values, place, times = np.unique(counts[filled], return_inverse=True, return_counts=True)
        share = (np.cumsum(times) - times) / max(filled.sum() - times[-1], 1)
        rank[filled] = share[place].clip(0, 1) if len(values) > 1 else 0.5
    position = rank * (len(_COLOURS) - 1)
    low = np.minimum(position.astype(int), len(_COLOURS) - 2)
    part = (position - low)[..., None]
    colours = _COLOURS[low] * (1 - part) + _COLOURS[low + 1] * part
    return np.concatenate([colours, np.where(filled, 255, 0)[..., None]], axis=-1).round().astype(np.uint8)


def with_box(figure: go.Figure, box: Sequence[float] | None) -> go.Figure:
    """Draws a box ``x0, x1, y0, y1`` that was not drawn by hand but restored, cut at the ends of the axes; None draws nothing."""
    if box is not None:
        (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
        x, y = np.clip(box[:2], left, right).tolist(), np.clip(box[2:], low, high).tolist()
        figure.add_shape(type="rect", x0=x[0], x1=x[1], y0=y[0], y1=y[1], line={"color": COLOURS[1], "width": 2, "dash": "dot"})
    return figure


def raster_figure(x: np.ndarray, y: np.ndarray, x_title: str, y_title: str, height: int = 420) -> go.Figure:
    """Draws points as a picture (few points as marks) under a grid of cells that show their counts and can be selected with a box.

    Args:
        x: ``[N]`` finite.
        y: ``[N]`` finite.
        x_title: title of the x axis.
        y_title: title of the y axis.
        height: height of the figure in pixels.
    """
    bounds = bounds_of(x, y)
    figure = Chart()
    if len(x) <= FEW:
        figure.add_scatter(x=x, y=y, mode="markers", marker={"size": 5, "color": COLOURS[0], "opacity": 0.45}, hoverinfo="skip",
                           selected={"marker": {"color": COLOURS[1], "opacity": 0.8}}, showlegend=False)  # fmt: skip
    else:
        source = png(coloured(counted(x, y, bounds, WIDTH, HEIGHT)))
        figure.add_layout_image(source=source, x=bounds.x0, y=bounds.y1, sizex=bounds.x1 - bounds.x0,
                                sizey=bounds.y1 - bounds.y0, xref="x", yref="y", sizing="stretch", layer="below")  # fmt: skip
    columns, rows = _CELLS
    grid = counted(x, y, bounds, columns, rows)
    row, column = np.nonzero(grid)
    figure.add_scatter(
        x=bounds.x0 + (column + 0.5) * (bounds.x1 - bounds.x0) / columns, y=bounds.y1 - (row + 0.5) * (bounds.y1 - bounds.y0) / rows,
        mode="markers", marker={"size": 18, "color": "rgba(0,0,0,0)", "symbol": "square"}, customdata=grid[row, column], showlegend=False,
        selected={"marker": {"color": "rgba(213,94,0,0.25)"}}, unselected={"marker": {"opacity": 0}},
        hovertemplate="%{customdata} points around<br>%{x:.3g}, %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text=x_title, range=[bounds.x0, bounds.x1])
    figure.update_yaxes(title_text=y_title, range=[bounds.y0, bounds.y1])
    return quiet(figure, height, dragmode="select", margin={"l": 56, "r": 12, "t": 12, "b": 44})

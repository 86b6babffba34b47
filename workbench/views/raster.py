"""Scatter of any number of points as one picture: how many fall into each pixel, so that a page stays as light with a million of them."""

from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from workbench.views.box_drawing import png
from workbench.views.style import COLOURS, Chart, quiet

WIDTH, HEIGHT = 480, 320  # pixels of the picture
FEW = 5_000  # points that are drawn one by one
_CELLS = 24, 16  # of the grid that can be pointed at and selected: each is a mark that the browser draws
# viridis from its second tenth: few points show on a white page, many on a dark one
_COLOURS = np.array([(72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121), (110, 206, 88),
                     (181, 222, 43), (253, 231, 37)], float)  # fmt: skip


class Bounds(NamedTuple):
    """What part of the plane is drawn."""

    x0: float
    x1: float
    y0: float
    y1: float


def bounds_of(x: np.ndarray, y: np.ndarray) -> Bounds:
    """Just around all points; a side of no extent gets one."""
    ends: list[float] = []
    for values in (x, y):
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        room = 0.02 * (high - low) or 0.5
        ends += [low - room, high + room]
    return Bounds(*ends)


def counted(x: np.ndarray, y: np.ndarray, bounds: Bounds, width: int, height: int) -> np.ndarray:
    """How many points lie in each cell, ``[height, width]``, row 0 at the top; those outside count nowhere."""
    column = (x - bounds.x0) * (width / (bounds.x1 - bounds.x0))
    row = (bounds.y1 - y) * (height / (bounds.y1 - bounds.y0))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = row[inside].astype(np.int64) * width + column[inside].astype(np.int64)
    return np.bincount(cell, minlength=width * height).reshape(height, width)


def coloured(counts: np.ndarray) -> np.ndarray:
    """``[h, w, 4]`` uint8: a pixel's colour is the rank of its count among those that occur, and none where nothing is.

    By rank, dense and sparse regions both show their shape whatever the number of points.
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


def raster_figure(x: np.ndarray, y: np.ndarray, x_title: str, y_title: str, height: int = 420) -> go.Figure:
    """Points as a picture (few as themselves), with a grid of cells that tell how many they hold and can be selected with a box.

    Args:
        x: ``[N]`` finite.
        y: ``[N]`` finite.
        x_title: of the axis.
        y_title: of the axis.
        height: of the figure.
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

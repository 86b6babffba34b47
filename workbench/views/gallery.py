"""Draws many images as thumbnails with boxes, in one figure in which each can be clicked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageDraw

from workbench.views.box_drawing import png
from workbench.views.sheet import COLOURS
from workbench.views.style import Chart, laid_out, plain

SIDE = 132  # pixels of the side of a thumbnail's square
_GAP, _TITLE = 8, 20
FRAME = "#D55E00"
_HALO = (0, 0, 0)


class Thumbnail(NamedTuple):
    """Describes one image of a gallery.

    Attributes:
        image: ``[H, W, 3]`` uint8.
        image_id: what a click on it carries.
        title: text below it.
        boxes: by kind of ``sheet.COLOURS``: boxes ``[N, 4]`` x1 y1 x2 y2 in pixels of the image.
    """

    image: np.ndarray
    image_id: int
    title: str
    boxes: Mapping[str, np.ndarray]


def gallery_figure(thumbnails: Sequence[Thumbnail], columns: int, chosen: int | None = None) -> go.Figure:
    """Draws thumbnails in rows, in the order given; the chosen one has a frame. The figure is only as high as its rows.

    Args:
        thumbnails: the images.
        columns: number of thumbnails in a row.
        chosen: id of the image with a frame.
    """
    rows = max(-(-len(thumbnails) // columns), 1)
    drawn = [_drawn(thumbnail) for thumbnail in thumbnails]
    tall = max((image.shape[0] for image in drawn), default=SIDE)
    step = tall + _GAP + _TITLE
    width, height = columns * (SIDE + _GAP), rows * step
    sheet = np.zeros((height, width, 4), dtype=np.uint8)
    corners = [(number % columns * (SIDE + _GAP), number // columns * step) for number in range(len(thumbnails))]
    for (x, y), image in zip(corners, drawn, strict=True):
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    figure = Chart()
    figure.add_layout_image(source=png(sheet), x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below")
    middle = [(x + SIDE / 2, y + tall / 2) for x, y in corners]
    figure.add_scatter(
        x=[x for x, _ in middle], y=[y for _, y in middle], mode="markers", showlegend=False, hoverinfo="text",
        text=[f"image {one.image_id}: {plain(one.title)}" for one in thumbnails], customdata=[[one.image_id] for one in thumbnails],
        marker={"size": tall, "symbol": "square", "color": "rgba(0,0,0,0)"}, selected={"marker": {"color": "rgba(0,0,0,0)"}},
        unselected={"marker": {"opacity": 0}},
    )  # fmt: skip
    figure.add_scatter(x=[x for x, _ in corners], y=[y + tall + 2 for _, y in corners], mode="text", hoverinfo="skip", showlegend=False,
                       text=[plain(one.title) for one in thumbnails], textposition="bottom right", textfont={"size": 11})  # fmt: skip
    shapes = [{"type": "rect", "x0": x, "x1": x + image.shape[1], "y0": y, "y1": y + image.shape[0], "line": {"color": FRAME, "width": 4}}
              for (x, y), image, one in zip(corners, drawn, thumbnails, strict=True) if one.image_id == chosen]  # fmt: skip
    axis: dict[str, Any] = {"visible": False, "fixedrange": True}
    return laid_out(
        figure, shapes=shapes, height=height, margin={"l": 0, "r": 0, "t": 2, "b": 0}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", hovermode="closest", clickmode="event+select", dragmode="pan", showlegend=False,
        xaxis={"range": [0, width], "constrain": "domain", "constraintoward": "left", **axis},
        yaxis={"range": [height, 0], "constrain": "domain", "constraintoward": "top", "scaleanchor": "x", **axis},
    )  # fmt: skip


def _drawn(thumbnail: Thumbnail) -> np.ndarray:
    """Returns the image at most ``SIDE`` high and wide with its boxes, ``[h, w, 3]`` uint8."""
    rows, columns = thumbnail.image.shape[:2]
    scale = SIDE / max(rows, columns)
    size = (max(round(columns * scale), 1), max(round(rows * scale), 1))
    image = Image.fromarray(np.ascontiguousarray(thumbnail.image)).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for kind, boxes in thumbnail.boxes.items():
        for x1, y1, x2, y2 in np.clip(np.asarray(boxes, float) * scale, 0, [*size, *size]).tolist():
            low, high = (x1, y1), (max(x2, x1) - 1, max(y2, y1) - 1)
            if high[0] > low[0] and high[1] > low[1]:
                draw.rectangle([low[0] - 1, low[1] - 1, high[0] + 1, high[1] + 1], outline=_HALO, width=4)
                draw.rectangle([*low, *high], outline=COLOURS[kind], width=2)
    return np.asarray(image)

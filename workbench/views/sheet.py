"""Several images in a row, each with boxes: what a selection of queries looks like, as one figure that is drawn quickly."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from workbench.datasets.base import Record
from workbench.views.boxes import CORNERS, STUDENT, TARGET, TEACHER, add_boxes, class_name, in_pixels, photograph, target_rows
from workbench.views.style import laid_out, plain

_SIDE = 320  # pixels that an image is drawn with at most
_GAP = 0.03  # between images, of their height
COLOURS = {"target": TARGET, "teacher": TEACHER, "student": STUDENT}


class Picture(NamedTuple):
    """One image of a sheet.

    Attributes:
        image: ``[H, W, 3]`` uint8.
        title: text above it.
        boxes: kind of ``COLOURS`` to its boxes: ``x1 y1 x2 y2`` in pixels of the image, and ``text``.
    """

    image: np.ndarray
    title: str
    boxes: Mapping[str, pd.DataFrame]


def answer(image: np.ndarray, record: Record, classes: Sequence[str], target: int, title: str, rows: Mapping[str, pd.DataFrame]) -> Picture:
    """One target and the boxes that models answer it with.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: label -> name.
        target: which one.
        title: of the picture.
        rows: ``teacher`` or ``student`` to its rows of the query table.
    """
    own = target_rows(record).iloc[[target]]
    boxes = {"target": own.assign(text=[class_name(classes, label) for label in own["label"]])}
    for model, found in rows.items():
        text = [f"{query} · {score:.2f}" for query, score in zip(found["query"], found["score"], strict=True)]
        boxes[model] = in_pixels(found, image.shape[1], image.shape[0]).assign(text=text)
    return Picture(image, title, boxes)


def sheet_figure(pictures: Sequence[Picture], height: int = 250) -> go.Figure:
    """The images side by side, all of one height, on one pair of axes: targets dotted, each box with its text."""
    figure = go.Figure()
    left = 0.0
    placed: dict[str, list[pd.DataFrame]] = {}
    titles: list[tuple[float, str]] = []
    for picture in pictures:
        rows, columns = picture.image.shape[:2]
        width = columns / rows
        figure.add_layout_image(source=_small(picture.image), x=left, y=0, sizex=width, sizey=1, xref="x", yref="y", sizing="stretch",
                                layer="below")  # fmt: skip
        for kind, boxes in picture.boxes.items():
            moved = boxes[[*CORNERS, "text"]].copy()
            moved[["x1", "x2"]] = moved[["x1", "x2"]] / rows + left
            moved[["y1", "y2"]] = moved[["y1", "y2"]] / rows
            placed.setdefault(kind, []).append(moved)
        titles.append((left, plain(picture.title)))
        left += width + _GAP
    for kind, colour in COLOURS.items():
        if kind in placed:
            own = pd.concat(placed[kind], ignore_index=True)
            corner, position = (("x1", "y2"), "bottom right") if kind != "student" else (("x1", "y1"), "top right")
            texts = [plain(text) for text in own["text"]]
            add_boxes(figure, kind, colour, own, texts, corner, [position] * len(own), dash="dot" if kind == "target" else "solid")
    figure.add_scatter(x=[x for x, _ in titles], y=[-0.01] * len(titles), mode="text", text=[text for _, text in titles],
                       textposition="top right", textfont={"size": 11}, hoverinfo="skip", showlegend=False)  # fmt: skip
    axis = {"visible": False, "constrain": "domain"}
    return laid_out(
        figure, xaxis={"range": [0, max(left - _GAP, 1)], "constraintoward": "left", **axis},
        yaxis={"range": [1, -0.12], "constraintoward": "top", "scaleanchor": "x", **axis},
        height=height, margin={"l": 0, "r": 0, "t": 4, "b": 0}, paper_bgcolor="rgba(0,0,0,0)", showlegend=False,
        plot_bgcolor="rgba(0,0,0,0)", dragmode="pan", hovermode="closest",
    )  # fmt: skip


def _small(image: np.ndarray) -> str:
    shrunk = Image.fromarray(np.ascontiguousarray(image))
    shrunk.thumbnail((_SIDE, _SIDE))
    return photograph(np.asarray(shrunk))

"""Draws several images with boxes in a row, as one figure that shows a selection of queries and is quick to draw."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from workbench.datasets.base import Record
from workbench.views.box_drawing import BOX, CORNERS, STUDENT, TARGET, TEACHER, add_boxes, class_name, photograph
from workbench.views.style import Chart, laid_out, plain

_SIDE = 320  # largest side of an image in pixels
_GAP = 0.03  # gap between images, as a share of their height
COLOURS = {"target": TARGET, "teacher": TEACHER, "student": STUDENT}


class Picture(NamedTuple):
    """Describes one image of a sheet.

    Attributes:
        image: ``[H, W, 3]`` uint8.
        title: text above the image.
        boxes: by kind of ``COLOURS``: boxes ``[N, 4]`` x1 y1 x2 y2 in pixels of the image, and a text for each.
    """

    image: np.ndarray
    title: str
    boxes: Mapping[str, tuple[np.ndarray, Sequence[str]]]


def answer(image: np.ndarray, record: Record, classes: Sequence[str], target: int, title: str, rows: Mapping[str, pd.DataFrame]) -> Picture:
    """Returns one target with the boxes of the queries that models matched to it.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: name by label.
        target: index of the target.
        title: title of the picture.
        rows: rows of the query table by model, ``teacher`` or ``student``.
    """
    height, width = image.shape[:2]
    size = np.array([width, height, width, height])
    boxes = {"target": (np.asarray(record.boxes[[target]], float), [class_name(classes, record.labels[target])])}
    for model, found in rows.items():
        middle, reach = np.split(found[BOX].to_numpy(float), 2, axis=1)
        corners = (np.concatenate([middle - reach / 2, middle + reach / 2], axis=1) * size).clip(0, size)
        boxes[model] = corners, [f"{query} · {score:.2f}" for query, score in zip(found["query"], found["score"], strict=True)]
    return Picture(image, title, boxes)


def sheet_figure(pictures: Sequence[Picture], height: int = 250) -> go.Figure:
    """Draws the images side by side at one height on one pair of axes; targets are dotted and each box has its text."""
    figure = Chart()
    left = 0.0
    images: list[dict[str, Any]] = []
    placed: dict[str, list[np.ndarray]] = {}
    texts: dict[str, list[str]] = {}
    for picture in pictures:
        rows, columns = picture.image.shape[:2]
        images.append({"source": _small(picture.image), "x": left, "y": 0, "sizex": columns / rows, "sizey": 1, "xref": "x", "yref": "y",
                       "sizing": "stretch", "layer": "below"})  # fmt: skip
        for kind, (corners, own) in picture.boxes.items():
            placed.setdefault(kind, []).append(corners / rows + [left, 0, left, 0])
            texts.setdefault(kind, []).extend(own)
        left += columns / rows + _GAP
    for kind, colour in COLOURS.items():
        if kind in placed:
            own = pd.DataFrame(np.concatenate(placed[kind]), columns=CORNERS)
            corner, position = (("x1", "y2"), "bottom right") if kind != "student" else (("x1", "y1"), "top right")
            add_boxes(figure, kind, colour, own, [plain(text) for text in texts[kind]], corner, [position] * len(own),
                      dash="dot" if kind == "target" else "solid")  # fmt: skip
    figure.add_scatter(
        x=[image["x"] for image in images], y=[-0.01] * len(images), mode="text", text=[plain(picture.title) for picture in pictures],
        textposition="top right", textfont={"size": 11}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    axis = {"visible": False, "constrain": "domain"}
    return laid_out(
        figure, images=images, xaxis={"range": [0, max(left - _GAP, 1)], "constraintoward": "left", **axis},
        yaxis={"range": [1, -0.12], "constraintoward": "top", "scaleanchor": "x", **axis},
        height=height, margin={"l": 0, "r": 0, "t": 4, "b": 0}, paper_bgcolor="rgba(0,0,0,0)", showlegend=False,
        plot_bgcolor="rgba(0,0,0,0)", dragmode="pan", hovermode="closest",
    )  # fmt: skip


def _small(image: np.ndarray) -> str:
    shrunk = Image.fromarray(np.ascontiguousarray(image))
    shrunk.thumbnail((_SIDE, _SIDE))
    return photograph(np.asarray(shrunk))

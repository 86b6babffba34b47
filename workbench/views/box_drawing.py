"""What figures over an image share: the picture, boxes with their labels over a dark halo, and how a class is called."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from workbench.datasets.base import Record
from workbench.views.style import Chart, laid_out

# Okabe-Ito colours that show on most pictures; the legend lies on a dark strip, so that they show there too.
TARGET, TEACHER, STUDENT, PAIR = "#F0E442", "#56B4E9", "#E69F00", "#CC79A7"
BOX = ["cx", "cy", "w", "h"]
CORNERS = ["x1", "y1", "x2", "y2"]
HALO = "rgba(0,0,0,0.6)"
_EXACT_PIXELS = 1 << 16


def picture(image: np.ndarray, height: int, key: object) -> go.Figure:
    """A figure whose axes are the pixels of an image, ``[H, W, 3]`` uint8, which lies below everything.

    Zoom starts anew with another ``key``; what the legend shows does not.
    """
    figure = Chart()
    rows, columns = image.shape[:2]
    source = photograph(image)
    figure.add_layout_image(source=source, x=0, y=0, sizex=columns, sizey=rows, xref="x", yref="y", sizing="stretch", layer="below")
    axis: dict[str, Any] = {"visible": False, "constrain": "domain", "uirevision": str(key)}
    return laid_out(
        figure, xaxis={"range": [0, columns], "constraintoward": "left", **axis},
        yaxis={"range": [rows, 0], "constraintoward": "top", "scaleanchor": "x", **axis},
        height=height, margin={"l": 0, "r": 0, "t": 32, "b": 0}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest", dragmode="pan", uirevision="marks",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.005, "x": 0, "bgcolor": "#262730", "font": {"color": "#FAFAFA"}},
    )  # fmt: skip


def png(image: np.ndarray) -> str:
    """``[H, W, 3 or 4]`` uint8 as a data address."""
    return _address(image, "png")


def photograph(image: np.ndarray) -> str:
    """``[H, W, 3]`` uint8 as a data address: exact where it is small, else a JPEG, which is made and sent in a tenth of the time."""
    return png(image) if image.shape[0] * image.shape[1] <= _EXACT_PIXELS else _address(image, "jpeg", quality=85)


def _address(image: np.ndarray, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def class_name(classes: Sequence[str], label: Any) -> str:
    """Name of a label; one that the data does not have is called by its number."""
    return classes[int(label)] if 0 <= int(label) < len(classes) else f"label {int(label)}"


def in_pixels(rows: pd.DataFrame, width: int, height: int) -> pd.DataFrame:
    """Rows of the query table with centre ``x y`` and corners ``x1 y1 x2 y2`` in pixels, the corners inside the image as for detections."""
    x, y, w, h = rows[BOX].to_numpy().T
    return rows.assign(
        x=x * width, y=y * height, x1=((x - w / 2) * width).clip(0, width), x2=((x + w / 2) * width).clip(0, width),
        y1=((y - h / 2) * height).clip(0, height), y2=((y + h / 2) * height).clip(0, height),
    )  # fmt: skip


def target_rows(record: Record) -> pd.DataFrame:
    """Corners and labels of an image's targets, in file order."""
    frame = pd.DataFrame(record.boxes, columns=["x1", "y1", "x2", "y2"])
    frame["label"] = record.labels
    return frame


def add_boxes(
    figure: go.Figure,
    name: str,
    colour: str,
    rows: pd.DataFrame,
    labels: list[str],
    corner: tuple[str, str],
    position: list[str],
    dash: str = "solid",
) -> None:
    """Outlines and labels over a dark halo, so that they show on any picture; one entry in the legend."""
    corners = rows[["x1", "y1", "x2", "y1", "x2", "y2", "x1", "y2", "x1", "y1"]].to_numpy(float).reshape(-1, 5, 2)
    path = broken(corners)
    group: dict[str, Any] = {"legendgroup": name, "hoverinfo": "skip"}
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": HALO, "width": 4.5}, showlegend=False, **group)
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": colour, "width": 2, "dash": dash}, name=name, **group)
    texts = [f"\u00a0{label}\u00a0" for label in labels]
    font = {"color": colour, "size": 12, "weight": 700, "shadow": "0 0 2px #000, 0 0 3px #000, 0 0 4px #000"}
    figure.add_scatter(x=rows[corner[0]], y=rows[corner[1]], mode="text", text=texts, textposition=position, textfont=font,
                       showlegend=False, **group)  # fmt: skip


def broken(lines: np.ndarray) -> np.ndarray:
    """``[N, P, 2]`` polylines as one path with gaps, ``[N * (P + 1), 2]``: one trace draws them all.

    Without any it is one gap, because plotly leaves a trace without points out of the legend.
    """
    if not len(lines):
        return np.full((1, 2), np.nan)
    return np.concatenate([lines, np.full((len(lines), 1, 2), np.nan)], axis=1).reshape(-1, 2)

"""Draws what figures over an image share: the picture, boxes with labels over a dark halo, and the names of classes."""

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

# Okabe-Ito colours that show on most pictures. The legend lies on a dark strip, so that they show there too.
TARGET, TEACHER, STUDENT, PAIR = "#F0E442", "#56B4E9", "#E69F00", "#CC79A7"
BOX = ["cx", "cy", "w", "h"]
CORNERS = ["x1", "y1", "x2", "y2"]
HALO = "rgba(0,0,0,0.6)"
_EXACT_PIXELS = 1 << 16
_SMOOTH = 360  # pixels


def picture(image: np.ndarray, height: int, key: object) -> go.Figure:
    """Returns a figure whose axes are the pixels of an image, ``[H, W, 3]`` uint8, which lies below everything.

    The zoom is reset when ``key`` changes; what the legend shows is kept.
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
    """Returns an image, ``[H, W, 3 or 4]`` uint8, as the data address of a PNG."""
    return _address(image, "png")


def photograph(image: np.ndarray) -> str:
    """Returns an image, ``[H, W, 3]`` uint8, as a data address: a PNG if it is small, otherwise a JPEG, made and sent ten times faster."""
    return png(image) if image.shape[0] * image.shape[1] <= _EXACT_PIXELS else _address(image, "jpeg", quality=85)


def smoothed(image: np.ndarray, least: int = _SMOOTH) -> str:
    """Returns an image, ``[H, W, 3]`` uint8, as a data address with at least ``least`` pixels on its longer side.

    A small image is enlarged with a smooth filter, because browsers draw it as blocks, or each in its own way.
    """
    rows, columns = image.shape[:2]
    times = -(-least // max(rows, columns))
    if times <= 1:
        return photograph(image)
    large = Image.fromarray(np.ascontiguousarray(image)).resize((columns * times, rows * times), Image.Resampling.LANCZOS)
    return _address(np.asarray(large), "jpeg", quality=90)


def _address(image: np.ndarray, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def class_name(classes: Sequence[str], label: Any) -> str:
    """Returns the name of a label; a label that the data does not have is called by its number."""
    return classes[int(label)] if 0 <= int(label) < len(classes) else f"label {int(label)}"


def in_pixels(rows: pd.DataFrame, width: int, height: int) -> pd.DataFrame:
    """Returns rows of the query table with centre ``x y`` and corners ``x1 y1 x2 y2`` in pixels; corners are clipped to the image."""
    x, y, w, h = rows[BOX].to_numpy().T
    return rows.assign(
        x=x * width, y=y * height, x1=((x - w / 2) * width).clip(0, width), x2=((x + w / 2) * width).clip(0, width),
        y1=((y - h / 2) * height).clip(0, height), y2=((y + h / 2) * height).clip(0, height),
    )  # fmt: skip


def target_rows(record: Record) -> pd.DataFrame:
    """Returns corners and labels of an image's targets, in file order."""
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
    """Draws outlines and labels over a dark halo, so that they show on any picture. They share one entry of the legend."""
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
    """Joins polylines ``[N, P, 2]`` to one path with gaps, ``[N * (P + 1), 2]``, so that one trace draws them all.

    Without polylines the path is one gap, because plotly leaves a trace without points out of the legend.
    """
    if not len(lines):
        return np.full((1, 2), np.nan)
    return np.concatenate([lines, np.full((len(lines), 1, 2), np.nan)], axis=1).reshape(-1, 2)

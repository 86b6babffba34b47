"""Draws the selection masks of teacher and student over one image, and where they differ."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.datasets.base import Record
from workbench.views.box_drawing import HALO, TARGET, TEACHER, broken, class_name, in_pixels, photograph, target_rows
from workbench.views.style import INFERNO, Chart, plain

CAPTION = (
    "The selection mask psi shows where a model's queries look, each weighted by its quality. The teacher's mask weights each cell of the "
    "feature loss. Each mask is divided by its largest cell. The difference is student minus teacher."
)
_SEEN = [(i / 8, f"rgba({colour},{i / 8})") for i, colour in enumerate(INFERNO)]
# Brewer's PuOr, which colour-blind readers can tell apart; transparent where the masks agree
_DIFFERENCE = [(0, "rgba(84,39,136,1)"), (0.25, "rgba(153,142,195,0.8)"), (0.5, "rgba(255,255,255,0)"), (0.75, "rgba(241,163,64,0.8)"),
               (1, "rgba(179,88,6,1)")]  # fmt: skip


def normalised(mask: np.ndarray) -> np.ndarray:
    """Returns ``mask`` divided by its largest cell; an empty mask stays empty."""
    largest = float(mask.max(initial=0))
    return mask / largest if largest > 0 else np.zeros_like(mask)


def difference(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Returns student minus teacher, both normalised, ``[h, w]`` of the finer of the two; cells of the coarser mask are repeated."""
    first, second = normalised(teacher), normalised(student)
    height, width = np.maximum(first.shape, second.shape)

    def spread(mask: np.ndarray) -> np.ndarray:
        rows = np.arange(height) * mask.shape[0] // height
        columns = np.arange(width) * mask.shape[1] // width
        return mask[np.ix_(rows, columns)]

    return spread(second) - spread(first)


def masks_figure(
    image: np.ndarray, record: Record, masks: Mapping[str, np.ndarray], opacity: float, query: pd.DataFrame | None = None
) -> go.Figure:
    """Draws the image once per mask, side by side; the panels zoom together.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets, drawn dotted.
        masks: mask ``[h, w]`` by title; the one titled ``difference`` has its own colours.
        opacity: opacity of the largest cell.
        query: a row of the query table, whose box is drawn in every panel.
    """
    height, width = image.shape[:2]
    figure = make_subplots(1, max(len(masks), 1), subplot_titles=[plain(title) for title in masks], horizontal_spacing=0.02,
                           figure=Chart())  # fmt: skip
    source = photograph(image)
    outlines = [("targets", TARGET, target_rows(record), "dot")]
    if query is not None:
        outlines.append(("query", TEACHER, in_pixels(query, width, height), "solid"))
    for column, (title, mask) in enumerate(masks.items(), 1):
        diverging = title == "difference"
        place: dict[str, Any] = {"row": 1, "col": column}
        x, y = (f"{side}{column if column > 1 else ''}" for side in "xy")
        figure.add_layout_image(source=source, x=0, y=0, sizex=width, sizey=height, xref=x, yref=y, sizing="stretch", layer="below")
        dx, dy = width / mask.shape[1], height / mask.shape[0]
        figure.add_heatmap(
            z=mask if diverging else normalised(mask), x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, opacity=opacity, showscale=False,
            zmin=-1 if diverging else 0, zmax=1, colorscale=_DIFFERENCE if diverging else _SEEN,
            hovertemplate=f"{plain(title)} %{{z:.2f}}<extra></extra>", **place,
        )  # fmt: skip
        for name, colour, rows, dash in outlines:
            path = broken(rows[["x1", "y1", "x2", "y1", "x2", "y2", "x1", "y2", "x1", "y1"]].to_numpy(float).reshape(-1, 5, 2))
            for line in ({"color": HALO, "width": 4}, {"color": colour, "width": 2, "dash": dash}):
                figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line=line, name=name, showlegend=False, hoverinfo="skip",
                                   **place)  # fmt: skip
        figure.update_xaxes(range=[0, width], visible=False, constrain="domain", matches="x", uirevision=str(record.image_id), **place)
        figure.update_yaxes(range=[height, 0], visible=False, scaleanchor=x, constrain="domain", matches="y",
                            uirevision=str(record.image_id), **place)  # fmt: skip
    return figure.update_layout(height=520, margin={"l": 0, "r": 0, "t": 28, "b": 0}, paper_bgcolor="rgba(0,0,0,0)",
                                plot_bgcolor="rgba(0,0,0,0)", dragmode="pan", hovermode="closest")  # fmt: skip


def ranked_queries(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Returns queries of one layer in the order of their weight in the mask, best quality first.

    Args:
        rows: rows of the query table, of one model, layer and image.
        classes: name by label.

    Returns:
        The rows with ``class`` and ``place`` (from 1).
    """
    ranked = rows.sort_values(["quality", "score"], ascending=False, ignore_index=True)
    names = [class_name(classes, label) for label in ranked["label"]]
    return ranked.assign(**{"class": names, "place": range(1, len(ranked) + 1)})

"""One image with its targets, the boxes of teacher and student, the pairs between them and the selection mask."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from workbench.datasets.base import Record
from workbench.views.style import plain

# Okabe-Ito colours that show on most pictures; the legend lies on a dark strip, so that they show there too.
TARGET, TEACHER, STUDENT, PAIR = "#F0E442", "#56B4E9", "#E69F00", "#CC79A7"
BOX = ["cx", "cy", "w", "h"]
HALO = "rgba(0,0,0,0.6)"
CAPTION = (
    "A mate is the teacher query that a Hungarian assignment over all queries of both models gives to a student query "
    "(cost: class + 5 L1 + 2 GIoU); lines join the centres of mates."
)
MASK_CAPTION = (
    "Selection mask psi: where the teacher's queries look, each weighted by its quality; it weights the feature loss cell by cell."
)
# inferno, transparent where the mask is low
_INFERNO = ("0,0,4", "40,11,84", "101,21,110", "159,42,99", "212,72,66", "245,125,21", "250,193,39", "252,230,120", "252,255,220")
_MASK_SCALE = [(i / 8, f"rgba({colour},{i / 8})") for i, colour in enumerate(_INFERNO)]


def image_figure(
    image: np.ndarray,
    record: Record,
    classes: Sequence[str],
    student: pd.DataFrame,
    teacher: pd.DataFrame,
    threshold: float,
    mask: np.ndarray | None = None,
    mask_opacity: float = 0.6,
) -> go.Figure:
    """Draws the image; every kind of mark is switched on and off in the legend.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: its targets.
        classes: label -> name.
        student: rows of the query table, one layer of this image.
        teacher: likewise, of the layer the student's mates are in; may be empty.
        threshold: queries of a lower score are left out, and pairs of which one end is.
        mask: ``[h, w]`` selection mask over the whole image, any cell size.
        mask_opacity: of the mask's largest value.
    """
    height, width = image.shape[:2]
    figure = go.Figure()
    figure.add_layout_image(source=_png(image), x=0, y=0, sizex=width, sizey=height, xref="x", yref="y", sizing="stretch", layer="below")
    if mask is not None:
        figure.add_trace(_mask_trace(mask, width, height, mask_opacity))
    student, teacher = (_shown(rows, threshold, width, height) for rows in (student, teacher))
    targets = _targets(record)
    names = [plain(_name(classes, label)) for label in targets["label"]]
    _add_boxes(figure, "targets", TARGET, targets, names, ("x1", "y2"), ["top right"] * len(targets), dash="dot")
    # a label lies outside its box, the teacher's below and the student's above, unless it would leave the picture there
    below = ["top left" if y2 > 0.95 * height else "bottom left" for y2 in teacher["y2"]]
    above = ["bottom right" if y1 < 0.05 * height else "top right" for y1 in student["y1"]]
    for name, colour, rows, corner, position in (
        ("teacher", TEACHER, teacher, ("x2", "y2"), below),
        ("student", STUDENT, student, ("x1", "y1"), above),
    ):
        labels = [f"{plain(_name(classes, row['label']))} {row['score']:.2f}" for row in rows.to_dict("records")]
        _add_boxes(figure, name, colour, rows, labels, corner, position)
    _add_pairs(figure, student, teacher)
    for name, colour, rows in (("teacher", TEACHER, teacher), ("student", STUDENT, student)):
        _add_centres(figure, name, colour, rows, classes)
    # zoom starts anew with another image, what the legend shows does not
    axis: dict[str, Any] = {"visible": False, "constrain": "domain", "uirevision": record.image_id}
    figure.update_xaxes(range=[0, width], constraintoward="left", **axis)
    figure.update_yaxes(range=[height, 0], constraintoward="top", scaleanchor="x", **axis)
    return figure.update_layout(
        height=640, margin={"l": 0, "r": 0, "t": 32, "b": 0}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest", dragmode="pan", uirevision="marks",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.005, "x": 0, "bgcolor": "#262730", "font_color": "#FAFAFA"},
    )  # fmt: skip


def mate_table(student: pd.DataFrame, teacher: pd.DataFrame, classes: Sequence[str], threshold: float) -> pd.DataFrame:
    """One row per pair of mates of which either query reaches the threshold, best student score first.

    Args:
        student: rows of one layer of one image.
        teacher: rows of the layer the mates are in.
        classes: label -> name.
        threshold: on the score.

    Returns:
        Queries, names and scores of both, the IoU of their boxes, the three unweighted parts of the pair's cost, and their weighted sum
        ``cost``.
    """
    pairs = student[student["mate"] >= 0].merge(teacher, left_on="mate", right_on="query", suffixes=("", "_teacher"))
    pairs = pairs[(pairs["score"] >= threshold) | (pairs["score_teacher"] >= threshold)].sort_values("score", ascending=False)
    class_cost, l1_cost, giou_cost = (pairs[f"mate_cost_{part}"].astype(float) for part in ("class", "bbox", "giou"))
    table: dict[str, Any] = {}
    for model, suffix in (("student", ""), ("teacher", "_teacher")):
        table[f"{model}_query"] = pairs[f"query{suffix}"].astype(int)
        table[f"{model}_class"] = [_name(classes, label) for label in pairs[f"label{suffix}"]]
        table[f"{model}_score"] = pairs[f"score{suffix}"].astype(float)
    table["iou"] = box_iou(pairs[BOX].to_numpy(float), pairs[[f"{name}_teacher" for name in BOX]].to_numpy(float))
    table |= {"class_cost": class_cost, "l1_cost": l1_cost, "giou_cost": giou_cost, "cost": class_cost + 5 * l1_cost + 2 * giou_cost}
    return pd.DataFrame(table).reset_index(drop=True)


def target_table(record: Record, classes: Sequence[str], student: pd.DataFrame, teacher: pd.DataFrame) -> pd.DataFrame:
    """One row per target: its name and size, and the query that each model matched to it, with score and IoU (null = not matched).

    Args:
        record: the image's targets.
        classes: label -> name.
        student: rows of one layer of the image.
        teacher: likewise, may be empty.
    """
    size = record.boxes[:, 2:] - record.boxes[:, :2]
    kind = np.where(record.ignore, "ignore region", np.where(record.crowd, "crowd", ""))
    table = pd.DataFrame({
        "target": np.arange(len(record.boxes)),
        "class": [kind[i] or _name(classes, label) for i, label in enumerate(record.labels)],
        "width": size[:, 0], "height": size[:, 1],
    })  # fmt: skip
    for model, rows in (("student", student), ("teacher", teacher)):
        matched = rows[rows["match"] >= 0].set_index("match")[["query", "score", "match_iou"]].astype(float)
        for name, column in (("query", "query"), ("score", "score"), ("iou", "match_iou")):
            table[f"{model}_{name}"] = matched[column].reindex(table["target"]).to_numpy()
        table[f"{model}_query"] = table[f"{model}_query"].astype("Int64")
    return table


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of ``[N, 4]`` cxcywh boxes, row by row; ``workbench.boxes`` would bring torch into the dashboard."""
    low = np.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    overlap = (high - low).clip(min=0).prod(1)
    union = a[:, 2:].prod(1) + b[:, 2:].prod(1) - overlap
    return np.divide(overlap, union, out=np.zeros(len(a)), where=union > 0)


def _png(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _name(classes: Sequence[str], label: Any) -> str:
    return classes[int(label)] if 0 <= int(label) < len(classes) else f"label {int(label)}"


def _shown(rows: pd.DataFrame, threshold: float, width: int, height: int) -> pd.DataFrame:
    """Rows at or above the threshold with centre and corners in pixels, the corners inside the image as for detections."""
    rows = rows[rows["score"] >= threshold]
    corners = {
        "x1": (rows["cx"] - rows["w"] / 2) * width, "x2": (rows["cx"] + rows["w"] / 2) * width,
        "y1": (rows["cy"] - rows["h"] / 2) * height, "y2": (rows["cy"] + rows["h"] / 2) * height,
    }  # fmt: skip
    clipped = {name: values.clip(0, width if name[0] == "x" else height) for name, values in corners.items()}
    return rows.assign(x=rows["cx"] * width, y=rows["cy"] * height, **clipped)


def _targets(record: Record) -> pd.DataFrame:
    frame = pd.DataFrame(record.boxes, columns=["x1", "y1", "x2", "y2"])
    frame["label"] = record.labels
    return frame


def _add_boxes(
    figure: go.Figure,
    name: str,
    colour: str,
    rows: pd.DataFrame,
    labels: list[str],
    corner: tuple[str, str],
    position: list[str],
    dash: str = "solid",
) -> None:
    """Outlines and labels over a dark halo, so that they show on any picture."""
    corners = rows[["x1", "y1", "x2", "y1", "x2", "y2", "x1", "y2", "x1", "y1"]].to_numpy(float).reshape(-1, 5, 2)
    path = _broken(corners)
    group: dict[str, Any] = {"legendgroup": name, "hoverinfo": "skip"}
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": HALO, "width": 4.5}, showlegend=False, **group)
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": colour, "width": 2, "dash": dash}, name=name, **group)
    texts = [f"\u00a0{label}\u00a0" for label in labels]
    font = {"color": colour, "size": 12, "weight": 700, "shadow": "0 0 2px #000, 0 0 3px #000, 0 0 4px #000"}
    figure.add_scatter(x=rows[corner[0]], y=rows[corner[1]], mode="text", text=texts, textposition=position, textfont=font,
                       showlegend=False, **group)  # fmt: skip


def _broken(lines: np.ndarray) -> np.ndarray:
    """``[N, P, 2]`` polylines as one path with gaps, ``[N * (P + 1), 2]``: one trace draws them all.

    Without any it is one gap, because plotly leaves a trace without points out of the legend.
    """
    if not len(lines):
        return np.full((1, 2), np.nan)
    return np.concatenate([lines, np.full((len(lines), 1, 2), np.nan)], axis=1).reshape(-1, 2)


def _add_centres(figure: go.Figure, name: str, colour: str, rows: pd.DataFrame, classes: Sequence[str]) -> None:
    text = [
        f"{name} query {row['query']}, layer {row['layer']}<br>{plain(_name(classes, row['label']))}, score {row['score']:.3f}<br>"
        + (f"matched to target {row['match']}, IoU {row['match_iou']:.2f}" if row["match"] >= 0 else "unmatched")
        + f", quality {row['quality']:.2f}"
        for row in rows.to_dict("records")
    ]
    figure.add_scatter(
        x=rows["x"], y=rows["y"], mode="markers", text=text, hoverinfo="text", legendgroup=name, showlegend=False,
        marker={"color": colour, "size": 8, "line": {"color": "rgba(0,0,0,0.7)", "width": 1}},
    )  # fmt: skip


def _add_pairs(figure: go.Figure, student: pd.DataFrame, teacher: pd.DataFrame) -> None:
    pairs = student.merge(teacher[["query", "x", "y"]], left_on="mate", right_on="query", suffixes=("", "_teacher"), how="inner")
    ends = pairs[["x", "y", "x_teacher", "y_teacher"]].to_numpy(float).reshape(-1, 2, 2)
    path = _broken(ends)
    group: dict[str, Any] = {"legendgroup": "mates", "hoverinfo": "skip"}
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": HALO, "width": 4}, showlegend=False, **group)
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": PAIR, "width": 1.5}, name="mates", **group)


def _mask_trace(mask: np.ndarray, width: int, height: int, opacity: float) -> go.Heatmap:
    rows, columns = mask.shape
    dx, dy = width / columns, height / rows
    return go.Heatmap(
        z=mask, x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, colorscale=_MASK_SCALE, opacity=opacity, name="mask", showlegend=True,
        colorbar={"title": {"text": "psi", "side": "right"}, "thickness": 10, "len": 0.6, "outlinewidth": 0, "x": 1.0},
        hovertemplate="psi %{z:.3g}<extra></extra>",
    )  # fmt: skip

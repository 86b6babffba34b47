"""Draws one image with its targets, the boxes of teacher and student, the pairs between them and the selection mask."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.datasets.base import Record
from workbench.overlap import centred_iou
from workbench.views.box_drawing import (
    BOX,
    HALO,
    PAIR,
    STUDENT,
    TARGET,
    TEACHER,
    add_boxes,
    broken,
    class_name,
    in_pixels,
    picture,
    target_rows,
)  # fmt: skip
from workbench.views.style import GREY, INFERNO, Chart, plain, quiet, reach

CAPTION = (
    "Lines join paired queries. A Hungarian assignment over all queries of both models pairs each student query with one teacher query "
    "(cost: class + 5 L1 + 2 GIoU)."
)
COST_CAPTION = "Parts of each pair's cost: class, 5 L1 and -2 GIoU. The dash marks their sum. The best student score comes first."
MOST_PAIRS = 24  # drawn
MOST_BOXES = 30  # drawn of each model; more could not be read and would be slow to draw
COST_PARTS = (("class", "class_cost", 1, "#0072B2"), ("5 L1", "l1_cost", 5, "#D55E00"), ("2 GIoU", "giou_cost", 2, "#009E73"))
MASK_CAPTION = (
    "The selection mask psi shows where the teacher's queries look, each weighted by its quality. It weights each cell of the feature loss."
)
# transparent where the mask is low
_MASK_SCALE = [(i / 8, f"rgba({colour},{i / 8})") for i, colour in enumerate(INFERNO)]


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
    """Draws the image; the legend switches each kind of mark on and off.

    Args:
        image: ``[H, W, 3]`` uint8.
        record: the image's targets.
        classes: name by label.
        student: rows of the query table, of one layer of this image.
        teacher: rows of the teacher's layer with which this student layer is paired; may be empty.
        threshold: least score. Queries below it are left out, as are those beyond the best ``MOST_BOXES`` of a model and every pair that
            loses one of its queries.
        mask: ``[h, w]`` selection mask over the whole image, of any cell size.
        mask_opacity: opacity of the mask's largest value.
    """
    height, width = image.shape[:2]
    figure = picture(image, 640, record.image_id)
    if mask is not None:
        figure.add_trace(_mask_trace(mask, width, height, mask_opacity))
    student, teacher = (
        in_pixels(rows[rows["score"] >= threshold].nlargest(MOST_BOXES, "score"), width, height) for rows in (student, teacher)
    )
    targets = target_rows(record)
    names = [plain(class_name(classes, label)) for label in targets["label"]]
    add_boxes(figure, "targets", TARGET, targets, names, ("x1", "y2"), ["top right"] * len(targets), dash="dot")
    # labels lie outside their boxes, the teacher's below and the student's above, unless they would leave the picture there
    below = ["top left" if y2 > 0.95 * height else "bottom left" for y2 in teacher["y2"]]
    above = ["bottom right" if y1 < 0.05 * height else "top right" for y1 in student["y1"]]
    for name, colour, rows, corner, position in (
        ("teacher", TEACHER, teacher, ("x2", "y2"), below),
        ("student", STUDENT, student, ("x1", "y1"), above),
    ):
        labels = [f"{plain(class_name(classes, row['label']))} {row['score']:.2f}" for row in rows.to_dict("records")]
        add_boxes(figure, name, colour, rows, labels, corner, position)
    _add_pairs(figure, student, teacher)
    for name, colour, rows in (("teacher", TEACHER, teacher), ("student", STUDENT, student)):
        _add_centres(figure, name, colour, rows, classes)
    return figure


def cost_figure(mates: pd.DataFrame) -> go.Figure:
    """Draws the parts of each pair's cost, one bar per pair, best student score first.

    Args:
        mates: rows of ``mate_table``; at most the first ``MOST_PAIRS`` are drawn.
    """
    mates = mates.head(MOST_PAIRS)
    names = [f"{row['student_query']} – {row['teacher_query']}" for row in mates.to_dict("records")]
    place = list(range(len(names)))
    figure = Chart()
    for title, column, weight, colour in COST_PARTS:
        values = mates[column] * weight
        figure.add_bar(x=place, y=values, name=title, hovertext=names, marker={"color": colour, "line_width": 0},
                       hovertemplate=f"pair %{{hovertext}}<br>{title}: %{{y:.3f}}<extra></extra>")  # fmt: skip
    figure.add_scatter(x=place, y=mates["cost"], mode="markers", name="cost", hovertext=names,
                       marker={"symbol": "line-ew-open", "size": 12, "color": GREY, "line": {"width": 2, "color": GREY}},
                       hovertemplate="pair %{hovertext}<br>cost %{y:.3f}<extra></extra>")  # fmt: skip
    parts = np.stack([weight * mates[column].to_numpy(float) for _, column, weight, _ in COST_PARTS])
    many = len(names) > 12
    figure.update_xaxes(title_text="student query – teacher query", tickvals=place, ticktext=names, range=[-0.5, max(len(names), 1) - 0.5],
                        tickangle=-90 if many else 0)  # fmt: skip
    figure.update_yaxes(title_text="weighted cost", range=reach(parts.clip(min=0).sum(0), parts.clip(max=0).sum(0), zero=True))
    return quiet(figure, 300, barmode="relative", bargap=0.35, margin={"l": 56, "r": 12, "t": 56, "b": 84 if many else 44})


def mate_table(student: pd.DataFrame, teacher: pd.DataFrame, classes: Sequence[str], threshold: float) -> pd.DataFrame:
    """Returns one row per pair in which at least one query reaches the threshold, best student score first.

    Args:
        student: rows of one layer of one image.
        teacher: rows of the teacher's layer with which the student's is paired.
        classes: name by label.
        threshold: least score.

    Returns:
        Queries, class names and scores of both, the IoU of their boxes, the three unweighted parts of the pair's cost, and their weighted
        sum ``cost``.
    """
    pairs = student[student["mate"] >= 0].merge(teacher, left_on="mate", right_on="query", suffixes=("", "_teacher"))
    pairs = pairs[(pairs["score"] >= threshold) | (pairs["score_teacher"] >= threshold)].sort_values("score", ascending=False)
    class_cost, l1_cost, giou_cost = (pairs[f"mate_cost_{part}"].astype(float) for part in ("class", "bbox", "giou"))
    table: dict[str, Any] = {}
    for model, suffix in (("student", ""), ("teacher", "_teacher")):
        table[f"{model}_query"] = pairs[f"query{suffix}"].astype(int)
        table[f"{model}_class"] = [class_name(classes, label) for label in pairs[f"label{suffix}"]]
        table[f"{model}_score"] = pairs[f"score{suffix}"].astype(float)
    table["iou"] = centred_iou(pairs[BOX].to_numpy(float), pairs[[f"{name}_teacher" for name in BOX]].to_numpy(float))
    table |= {"class_cost": class_cost, "l1_cost": l1_cost, "giou_cost": giou_cost, "cost": class_cost + 5 * l1_cost + 2 * giou_cost}
    return pd.DataFrame(table).reset_index(drop=True)


def target_table(
    record: Record, classes: Sequence[str], student: pd.DataFrame, teacher: pd.DataFrame, several: Collection[str] = ()
) -> pd.DataFrame:
    """Returns one row per target: its name and size, and each model's matched query with score and IoU (null if not matched).

    A model with a many-to-one assignment has the number of the target's positive candidates, ``<model>_positives``, in the place of the
    query, and the highest score and IoU among them.

    Args:
        record: the image's targets.
        classes: name by label.
        student: rows of one layer of the image.
        teacher: rows of one layer of the image; may be empty.
        several: models whose assignment is many-to-one.
    """
    size = record.boxes[:, 2:] - record.boxes[:, :2]
    kind = np.where(record.ignore, "ignore region", np.where(record.crowd, "crowd", ""))
    table = pd.DataFrame({
        "target": np.arange(len(record.boxes)),
        "class": [kind[i] or class_name(classes, label) for i, label in enumerate(record.labels)],
        "width": size[:, 0], "height": size[:, 1],
    })  # fmt: skip
    for model, rows in (("student", student), ("teacher", teacher)):
        own = rows[rows["match"] >= 0].astype({"query": float, "score": float, "match_iou": float}).groupby("match")
        number = "positives" if model in several else "query"
        count = own.size() if model in several else own["query"].first()
        for name, values in ((number, count), ("score", own["score"].max()), ("iou", own["match_iou"].max())):
            table[f"{model}_{name}"] = values.reindex(table["target"]).to_numpy()
        table[f"{model}_{number}"] = table[f"{model}_{number}"].astype("Int64")
    return table


def _without_target(match: int) -> str:
    """Returns what a query without a target is called; one that is ignored in training is neither positive nor background."""
    return "unmatched" if match == -1 else "ignored in training"


def _add_centres(figure: go.Figure, name: str, colour: str, rows: pd.DataFrame, classes: Sequence[str]) -> None:
    text = [
        f"{name} query {row['query']}, layer {row['layer']}<br>{plain(class_name(classes, row['label']))}, score {row['score']:.3f}<br>"
        + (f"matched to target {row['match']}, IoU {row['match_iou']:.2f}" if row["match"] >= 0 else _without_target(row["match"]))
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
    path = broken(ends)
    group: dict[str, Any] = {"legendgroup": "pairs", "hoverinfo": "skip"}
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": HALO, "width": 4}, showlegend=False, **group)
    figure.add_scatter(x=path[:, 0], y=path[:, 1], mode="lines", line={"color": PAIR, "width": 1.5}, name="pairs", **group)


def _mask_trace(mask: np.ndarray, width: int, height: int, opacity: float) -> go.Heatmap:
    rows, columns = mask.shape
    dx, dy = width / columns, height / rows
    return go.Heatmap(
        z=mask, x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, colorscale=_MASK_SCALE, opacity=opacity, name="mask", showlegend=True,
        colorbar={"title": {"text": "psi", "side": "right"}, "thickness": 10, "len": 0.6, "outlinewidth": 0, "x": 1.0},
        hovertemplate="psi %{z:.3g}<extra></extra>",
    )  # fmt: skip

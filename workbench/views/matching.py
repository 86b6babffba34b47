"""Draws one image of a comparison: the query matched to each target over evaluations and layers, and the costs of the pairs."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.defined import undefined_of
from workbench.analysis.rows_of_run import image_rows, in_last_layer
from workbench.datasets.base import Dataset
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run
from workbench.store.states import masked_images, read_masks
from workbench.views.image import cost_figure, image_figure, mate_table
from workbench.views.stability import held, matrix_figure, target_rows_of
from workbench.views.style import saying

MOST_TARGETS = 40  # drawn


def image_figures(run: Run, split: str, step: int, data: Dataset, index: int, threshold: float = 0.3) -> dict[str, go.Figure]:
    """Returns figures about one image by title; figures for which the run keeps no data are left out.

    Args:
        run: the run whose student and teacher are shown.
        split: split, as the run calls it.
        step: evaluation of the student.
        data: the split's dataset.
        index: index of the record.
        threshold: least score of boxes and pairs.
    """
    record = data.records[index]
    evaluations = run.query_steps(split)
    student, teacher = image_rows(run, split, evaluations, record.image_id)
    last = student["layer"].max()
    now = student[(student["step"] == step) & (student["layer"] == last)]
    teacher = in_last_layer(teacher)
    found: dict[str, go.Figure] = {}
    mask, title = None, "boxes and pairs"
    if record.image_id in masked_images(run, split, TEACHER_STEP):
        masks = read_masks(run, split, TEACHER_STEP, record.image_id)
        mask, title = masks[max(masks)], "boxes, pairs and the teacher's selection mask"
    found[title] = image_figure(data.image(index), record, data.classes, now, teacher, threshold, mask)
    if why := undefined_of([run], "agreement") if len(teacher) else "":
        found["pairs of student and teacher query"] = saying(why)
    elif len(mates := mate_table(now, teacher, data.classes, threshold)):
        found["cost of each pair of student and teacher query"] = cost_figure(mates)
    if why := undefined_of([run], "churn"):
        return {**found, "query matched to each target": saying(why)}
    matched = student[student["match"] >= 0]
    over_steps = matched[matched["layer"] == last]
    if len(over_steps):
        found["query matched to each target, by evaluation"] = _matrix(over_steps, evaluations, "step")
    # slots identify queries here, because the encoder cell of a query is the same at all layers
    over_layers = matched[matched["step"] == step].drop(columns="step").rename(columns={"layer": "step"}).assign(source=-1)
    if len(over_layers):
        found["query matched to each target, by decoder layer"] = _matrix(over_layers, sorted(over_layers["step"].unique()), "layer")
    return found


def plain_json(figure: go.Figure) -> dict[str, Any]:
    """Returns a figure as lists and numbers: plotly.js before version 2.35 cannot read the packed arrays that plotly 6 writes."""
    return _unpacked(figure.to_dict())


def _matrix(rows: pd.DataFrame, moments: list[int], name: str) -> go.Figure:
    return matrix_figure(target_rows_of(held(rows), 0, MOST_TARGETS), moments).update_xaxes(title_text=name)


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) >= {"bdata", "dtype"}:
            array = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
            shape = [int(side) for side in str(value.get("shape", len(array))).split(",")]
            return _unpacked(array.reshape(shape).tolist())
        return {key: _unpacked(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_unpacked(inner) for inner in value]
    if isinstance(value, np.generic):
        return _unpacked(value.item())
    return None if isinstance(value, float) and not np.isfinite(value) else value

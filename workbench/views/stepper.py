"""Provides a notebook widget that steps through the evaluations and decoder layers of one image.

The widget reads everything once, when it is made: the best queries of every evaluation and layer, the teacher's, their pairs and the
targets. A saved notebook keeps only a picture of its last evaluation.
"""

import base64
import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw

from workbench.analysis.of_run import open_data
from workbench.analysis.rows_of_run import paired_layer
from workbench.errors import MissingExtraError, pip_install
from workbench.store.run import Run
from workbench.views.box_drawing import PAIR, STUDENT, TARGET, TEACHER, class_name, photograph, target_rows
from workbench.views.figures import image_rows

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise MissingExtraError(f"the image stepper needs {error.name}. Install it with {pip_install('notebooks')}.") from error

MOST = 60
LEAST_SCORE = 0.3
_SIDE = 480


class Stepper(anywidget.AnyWidget):
    """The widget; ``scene`` comes from ``scene_of``."""

    _esm = Path(__file__).with_name("stepper.js")
    _css = Path(__file__).with_name("stepper.css")
    scene = traitlets.Dict().tag(sync=True)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Returns the widget together with a still picture, for viewers of saved notebooks that do not run widgets."""
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "image/jpeg": still(self.scene)}, metadata


def stepper(run: Run, number: int = 1, split: str = "val") -> Stepper:
    """Returns a widget with sliders over the evaluations, decoder layers and least score of one image.

    Args:
        run: a run that keeps queries of this image.
        number: number of the image, counted from 1 in the order of the split.
        split: split of the data.

    Raises:
        MissingExtraError: anywidget is not installed.
        RunError: the run keeps no queries of this image.
    """
    return Stepper(scene=scene_of(run, number, split))


def still(scene: dict[str, Any]) -> str:
    """Returns the last evaluation and layer as the widget first draws it, as base64 of a JPEG."""
    picture = Image.open(io.BytesIO(base64.b64decode(scene["image"].partition(",")[2]))).convert("RGB")
    factor = _SIDE / max(picture.size)
    picture = picture.resize((round(picture.width * factor), round(picture.height * factor)))
    pen, colours, moment = ImageDraw.Draw(picture), scene["colours"], scene["steps"][-1]["layers"][-1]
    for model in ("target", "teacher", "student"):
        for found in scene["targets"] if model == "target" else moment[model]:
            if found.get("score", 1.0) >= LEAST_SCORE:
                cx, cy, w, h = found["box"]
                x, y = picture.size
                pen.rectangle(((cx - w / 2) * x, (cy - h / 2) * y, (cx + w / 2) * x, (cy + h / 2) * y), outline=colours[model], width=2)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def scene_of(run: Run, number: int, split: str = "val") -> dict[str, Any]:
    """Returns what the widget draws, as plain values.

    Returns:
        ``image`` (a data address), ``width`` and ``height`` in pixels, ``colours``, ``layers`` (their number), ``targets`` (``box``
        cxcywh in 0..1, ``words``) and ``steps``. Each step has ``step`` and, by layer, the best ``MOST`` ``student`` and ``teacher``
        queries with ``box``, ``score`` and ``words``. A student query has ``mate``, the centre of its paired query's box, or None.
    """
    data = open_data(run.info(), split)
    record = data.records[number - 1]
    moments, layers = [], 0
    for step in run.query_steps(split):
        student, teacher = image_rows(run, record.image_id, step, split)
        own = sorted(int(layer) for layer in student["layer"].unique())
        layers = max(layers, len(own))
        moments.append({"step": step, "layers": [_moment(*paired_layer(student, teacher, layer), data.classes) for layer in own]})
    size = [record.width, record.height] * 2
    targets = target_rows(record)[["x1", "y1", "x2", "y2"]].to_numpy(float) / size
    return {
        "image": photograph(data.image(number - 1)),
        "width": record.width,
        "height": record.height,
        "colours": {"target": TARGET, "teacher": TEACHER, "student": STUDENT, "mate": PAIR},
        "layers": layers,
        "targets": [
            {"box": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], "words": f"target {index}: {class_name(data.classes, label)}"}
            for index, ((x1, y1, x2, y2), label) in enumerate(zip(targets.tolist(), record.labels, strict=True))
        ],
        "steps": moments,
    }


def _moment(student: pd.DataFrame, teacher: pd.DataFrame, classes: Any) -> dict[str, Any]:
    """Returns the queries of one evaluation and layer."""
    places = teacher[["query", "cx", "cy"]].to_numpy(float)
    centre = {int(query): [round(x, 4), round(y, 4)] for query, x, y in places.tolist()}
    return {
        "student": [{**_query(row, "student", classes), "mate": centre.get(int(row["mate"]))} for row in _best(student)],
        "teacher": [_query(row, "teacher", classes) for row in _best(teacher)],
    }


def _best(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    return list(rows.nlargest(MOST, "score").fillna({"mate": -1}).to_dict("records"))


def _query(row: dict[Any, Any], model: str, classes: Any) -> dict[str, Any]:
    served = f"target {int(row['match'])}" if row["match"] >= 0 else "no target" if row["match"] == -1 else "ignored in training"
    return {
        "box": [round(float(row[name]), 4) for name in ("cx", "cy", "w", "h")],
        "score": round(float(row["score"]), 3),
        "words": f"{model} query {int(row['query'])}: {class_name(classes, row['label'])} {row['score']:.2f}, {served}",
    }

"""Reads from a run what the checks need, each piece once."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.defined import Model, Number, many_to_one, undefined
from workbench.analysis.diagnosis.findings import Beyond, Measurement, NotJudged
from workbench.analysis.diagnosis.statistics import Estimate
from workbench.analysis.of_run import open_data
from workbench.analysis.queries.query_detections import query_detections, without_duplicates
from workbench.analysis.rows_of_run import last_layer, layers, student_over_steps
from workbench.analysis.stability.explained import explained_changes
from workbench.analysis.stability.grouped import target_changes
from workbench.errors import WorkbenchError
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run

LOCALISED = 0.5  # least IoU of a query that is about a target, as in AP50
_COLUMNS = (
    "image_id", "query", "label", "score", "cx", "cy", "w", "h", "match", "match_iou", "best_target", "best_iou", "quality", "selected",
)  # fmt: skip


class Material:
    """Files of one run in the form that the checks need. Every property raises ``NotJudged`` if the run does not hold it.

    Args:
        run: run, finished or in progress.
        split: split whose queries are read, as the run calls it.
    """

    def __init__(self, run: Run, split: str = "val"):
        self.run, self.split = run, split
        self.measures: list[Measurement] = []  # of the check that looks at it now

    def compare(self, what: str, estimate: Estimate, threshold: float, beyond: Beyond) -> Estimate:
        """Notes a number that a check compares with its threshold, so that it can be shown whatever the outcome, and returns it."""
        low, high = (None if math.isnan(end) else end for end in (estimate.low, estimate.high))
        self.measures.append(Measurement(what, estimate.value, low, high, threshold, beyond))
        return estimate

    def compare_ap(self, what: str, estimate: Estimate, threshold: float, beyond: Beyond) -> None:
        """Notes an AP, or a difference of two, that a check compares with its threshold.

        Args:
            what: description of the number.
            estimate: the number from 0 to 1, as evaluations hold it; it is noted in points, from 0 to 100.
            threshold: the threshold from 0 to 1.
            beyond: the side of the threshold on which the cause lies.
        """
        value, low, high = (100 * end for end in (estimate.value, estimate.low, estimate.high))
        self.compare(what, Estimate(value, low, high, estimate.n), 100 * threshold, beyond)
        self.measures[-1] = dataclasses.replace(self.measures[-1], points=True)

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        return self.run.info()

    def require(self, number: Number) -> None:
        """Raises ``NotJudged`` if a many-to-one assignment does not define the number."""
        if why := undefined(self.run, number):
            raise NotJudged(f"what it looks at is {why}")

    @property
    def methods(self) -> list[dict[str, Any]]:
        """Configurations of the run's methods, from its recipe."""
        found = self.info.get("recipe", {}).get("methods") or []
        if not found:
            raise NotJudged("the run is not distilled")
        return found

    def measured(self, kind: str) -> dict[str, list[float]]:
        """Returns the values of every term that has a weight, in the order of their steps.

        Args:
            kind: prefix in metrics.jsonl: share, cosine, raw or weighted.
        """
        weights = self.info.get("term_weights") or {}
        found: dict[str, list[float]] = {}
        for line in self.metrics:
            for key, value in line.items():
                prefix, _, term = key.partition("/")
                if prefix == kind and weights.get(term, 1.0) > 0:
                    found.setdefault(term, []).append(float(value))
        if not found:
            self.methods  # noqa: B018 - raises that the run is not distilled, if that is the reason
            raise NotJudged(f"metrics.jsonl holds no '{kind}' of any term yet")
        return found

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.run.metrics()

    @functools.cached_property
    def detection_loss(self) -> dict[int, float]:
        """Weighted detection loss of every logged step: the minimised loss without the distillation terms."""
        return {
            line["step"]: line["loss"] - sum(value for key, value in line.items() if key.startswith("weighted/")) for line in self.metrics
        }

    @property
    def steps(self) -> list[int]:
        """Steps of the evaluations whose queries were kept."""
        found = self.run.query_steps(self.split)
        if not found:
            raise NotJudged("the run has no evaluation with queries yet")
        return found

    @property
    def result_step(self) -> int:
        """Step of the chosen checkpoint's evaluation, or of the last evaluation if none was chosen."""
        best = self.info.get("best_step")
        return best if best in self.steps else self.steps[-1]

    @functools.cached_property
    def teacher(self) -> pd.DataFrame:
        """Rows of the teacher's last layer."""
        if not is_complete(self.run.queries_path(self.split, TEACHER_STEP)):
            raise NotJudged("the run keeps no queries of a teacher")
        return last_layer(self.run, self.split, TEACHER_STEP, "teacher", _COLUMNS)

    @functools.cached_property
    def student(self) -> pd.DataFrame:
        """Rows of the student's last layer at ``result_step``."""
        return last_layer(self.run, self.split, self.result_step, "student", _COLUMNS)

    @property
    def teacher_detections(self) -> pd.DataFrame:
        """Rows of ``teacher`` as detections, one each; of a many-to-one detector without duplicates."""
        return self._detections(self.teacher, "teacher")

    @property
    def student_detections(self) -> pd.DataFrame:
        """Rows of ``student`` as detections, one each; of a many-to-one detector without duplicates."""
        return self._detections(self.student, "student")

    def _detections(self, rows: pd.DataFrame, model: Model) -> pd.DataFrame:
        return query_detections(without_duplicates(rows) if many_to_one(self.run, model) else rows, self.data)

    @functools.cached_property
    def changes(self) -> pd.DataFrame:
        """Targets matched at an evaluation and at the one before, last layer: ``step``, ``image_id`` and ``changed`` (True if the query is
        another one by ``rows_of_run.identity_over_steps``).
        """
        run, split, steps = self.run, self.split, self.steps
        rows, identity = student_over_steps(run, split, layer=max(layers(run, split, steps[-1]), default=0))
        changes = target_changes(rows, identity=identity).dropna(subset=["changed"])
        return changes[["step", "image_id", "changed"]].astype({"changed": bool})

    @functools.cached_property
    def explained(self) -> pd.DataFrame:
        """Changes of the last layer with their causes: ``change_causes.explain_changes``, between all evaluations."""
        layer = max(layers(self.run, self.split, self.steps[-1]), default=0)
        return explained_changes(self.run, self.split, layer, self.targets)

    @functools.cached_property
    def data(self) -> Any:
        """Dataset of the split."""
        try:
            return open_data(self.info, self.split)
        except (WorkbenchError, KeyError, TypeError) as error:
            raise NotJudged(f"the run's data cannot be opened: {error}") from error

    @functools.cached_property
    def targets(self) -> pd.DataFrame:
        """Targets that can be matched: ``image_id``, ``target``, ``label``, ``x1 y1 x2 y2`` (0..1 of the image), ``area`` (pixels of the
        original image).
        """
        frames = []
        for record in self.data.records:
            if len(record.boxes):
                corners = record.boxes / np.array([record.width, record.height] * 2)
                frame = pd.DataFrame(corners, columns=["x1", "y1", "x2", "y2"])
                frame = frame.assign(image_id=record.image_id, target=np.arange(len(frame)), label=record.labels, area=record.areas)
                frames.append(frame[record.trainable])
        if not frames:
            raise NotJudged(f"split '{self.split}' has no targets")
        return pd.concat(frames, ignore_index=True)

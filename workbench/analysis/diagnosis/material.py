"""What the checks read of a run, each piece once."""

import functools
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.diagnosis.findings import NotJudged
from workbench.analysis.of_run import open_data
from workbench.errors import WorkbenchError
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run

LOCALISED = 0.5  # IoU from which a query is about a target, as in AP50
_COLUMNS = (
    "image_id", "query", "label", "score", "cx", "cy", "w", "h", "match", "match_iou", "best_target", "best_iou", "quality", "selected",
)  # fmt: skip


class Material:
    """Files of one run as the checks want them; every property raises ``NotJudged`` where the run does not hold it.

    Args:
        run: finished or in progress.
        split: whose queries are looked at, as the run calls it.
    """

    def __init__(self, run: Run, split: str = "val"):
        self.run, self.split = run, split

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        return self.run.info()

    @property
    def methods(self) -> list[dict[str, Any]]:
        """Configurations of the run's methods as its recipe has them."""
        found = self.info.get("recipe", {}).get("methods") or []
        if not found:
            raise NotJudged("the run is not distilled")
        return found

    def measured(self, kind: str) -> dict[str, list[float]]:
        """Numbers of every term that has a weight, in order of their steps.

        Args:
            kind: prefix in metrics.jsonl: share, cosine, raw, weighted.
        """
        weights = self.info.get("term_weights") or {}
        found: dict[str, list[float]] = {}
        for line in self.metrics:
            for key, value in line.items():
                prefix, _, term = key.partition("/")
                if prefix == kind and weights.get(term, 1.0) > 0:
                    found.setdefault(term, []).append(float(value))
        if not found:
            self.methods  # noqa: B018 - says that the run is not distilled where that is the reason
            raise NotJudged(f"metrics.jsonl holds no '{kind}' of any term yet")
        return found

    @functools.cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return self.run.metrics()

    @functools.cached_property
    def detection_loss(self) -> dict[int, float]:
        """Weighted detection loss of every logged step: what is minimised, without the distillation terms."""
        return {
            line["step"]: line["loss"] - sum(value for key, value in line.items() if key.startswith("weighted/")) for line in self.metrics
        }

    @property
    def steps(self) -> list[int]:
        """Evaluations whose queries were kept."""
        found = self.run.query_steps(self.split)
        if not found:
            raise NotJudged("no evaluation yet")
        return found

    @property
    def result_step(self) -> int:
        """The evaluation of the checkpoint that was chosen, else the last one."""
        best = self.info.get("best_step")
        return best if best in self.steps else self.steps[-1]

    @functools.cached_property
    def teacher(self) -> pd.DataFrame:
        """Rows of the teacher's last layer."""
        if not is_complete(self.run.queries_path(self.split, TEACHER_STEP)):
            raise NotJudged("the run keeps no queries of a teacher")
        return self._last_layer(TEACHER_STEP, "teacher")

    @functools.cached_property
    def student(self) -> pd.DataFrame:
        """Rows of the student's last layer at ``result_step``."""
        return self._last_layer(self.result_step, "student")

    @functools.cached_property
    def changes(self) -> pd.DataFrame:
        """Targets matched at an evaluation and at the one before, last layer: ``step``, ``image_id``, ``changed`` (its query is another:
        another slot or, where queries are selected per image, another encoder cell).
        """
        steps = self.steps
        columns = ["step", "image_id", "query", "source", "match"]
        where = "model = 'student' and layer = $layer"
        rows = read_queries(self.run, self.split, steps, columns, where, {"layer": self._depth(steps[-1]) - 1}, matched=True)
        # slots count down from -1, so that they never meet an encoder cell
        rows["identity"] = rows["source"].astype("int64").where(rows["source"] >= 0, -1 - rows["query"].astype("int64"))
        rows["moment"] = np.searchsorted(steps, rows["step"])
        before = rows[["moment", "image_id", "match", "identity"]].assign(moment=rows["moment"] + 1)
        both = rows.merge(before, on=["moment", "image_id", "match"], suffixes=("", "_before"))
        return both.assign(changed=both["identity"] != both["identity_before"])[["step", "image_id", "changed"]]

    @functools.cached_property
    def data(self) -> Any:
        """The split's dataset."""
        try:
            return open_data(self.info, self.split)
        except (WorkbenchError, KeyError, TypeError) as error:
            raise NotJudged(f"the run's data cannot be opened: {error}") from error

    @functools.cached_property
    def targets(self) -> pd.DataFrame:
        """Targets that may be matched: ``image_id``, ``target``, ``label``, ``x1 y1 x2 y2`` (0..1 of the image), ``area`` (pixels of the
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

    def _last_layer(self, step: int, model: str) -> pd.DataFrame:
        where = "model = $model and layer = $layer"
        return read_queries(self.run, self.split, [step], _COLUMNS, where, {"model": model, "layer": self._depth(step) - 1})

    def _depth(self, step: int) -> int:
        """Number of decoder layers."""
        first = read_queries(self.run, self.split, [step], ["layer"], "query = 0")
        return int(first["layer"].max()) + 1 if len(first) else 0

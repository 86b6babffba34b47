"""Provides results about the matching over all evaluations of a split, and about pairs of runs that differ in their seed."""

import pandas as pd

from workbench.analysis import rows_of_run
from workbench.analysis.of_run import RunAt, RunSplit
from workbench.analysis.results.detections import DetectionResults
from workbench.analysis.rows_of_run import in_last_layer, matched_rows, student_over_steps
from workbench.analysis.stability.agreement import agreement_by, teacher_agreement
from workbench.analysis.stability.churn import NEEDED, Identity
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by
from workbench.analysis.stability.same_box import BOX
from workbench.analysis.stability.seeds import found_by_both

_FOUND = ("model", "image_id", "layer", "match", "label", "match_iou")


class StabilityResults(DetectionResults):
    """Results about which query is matched to which target over training."""

    def matched_over_steps(self, split: RunSplit) -> tuple[pd.DataFrame, Identity]:
        """Returns the matched rows of the student at every evaluation, and what identifies a query across them."""
        return student_over_steps(split.run, split.split, (*NEEDED, *BOX))

    def churn_by_layer(self, split: RunSplit) -> pd.DataFrame:
        """Returns churn between evaluations by step and decoder layer."""
        rows, identity = self.matched_over_steps(split)
        return stability_by(image_counts(rows, layers="all", identity=identity))

    def churn_by(self, split: RunSplit, by: str) -> pd.DataFrame:
        """Returns churn between evaluations of the last layer by class (``by`` label) or size of the targets, all evaluations together."""
        rows, identity = self.matched_over_steps(split)
        return pooled_by(image_counts(rows, identity=identity, targets=self.targets(split.data), by=by), by)

    def agreement_by(self, split: RunSplit, by: str) -> pd.DataFrame:
        """Returns agreement with the teacher at the last evaluation and layer, by class or size; empty without a teacher."""
        rows = matched_rows(split.run, split.split, NEEDED, split.run.query_steps(split.split)[-1])
        if not (rows["model"] == "teacher").any():
            return pd.DataFrame(columns=["step", "layer", by, "agreement", "low", "high", "n", "images"])
        return agreement_by(in_last_layer(teacher_agreement(rows)), by, self.targets(split.data))

    def found_by_both(self, first: RunAt, second: RunAt) -> pd.DataFrame:
        """Returns how many targets both runs find: ``seeds.found_by_both``."""
        rows = [matched_rows(at.run, at.split, _FOUND, at.step) for at in (first, second)]
        first_rows, second_rows = (own[own["model"] == "student"] for own in rows)
        return found_by_both(first_rows, second_rows, self.targets(first.data))

    def student_layers(self, split: RunSplit) -> list[int]:
        """Returns the decoder layers of the student, in order."""
        return rows_of_run.layers(split.run, split.split, split.run.query_steps(split.split)[-1])

    def held_rows(self, split: RunSplit, layer: int) -> pd.DataFrame:
        """Returns the rows of the queries of one layer that were matched to a target, at every evaluation."""
        return student_over_steps(split.run, split.split, ("score", "match_iou"), layer)[0]

    def holders(self, split: RunSplit, image_id: int, target: int, layer: int) -> pd.DataFrame:
        """Returns the rows of the queries that were matched to one target, by step."""
        return rows_of_run.holders(split.run, split.split, image_id, target, layer)

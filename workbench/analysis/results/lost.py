"""Provides results about what a student lost of what its teacher found, read from the query tables of both."""

import numpy as np
import pandas as pd

from workbench.analysis.defined import many_to_one
from workbench.analysis.detection.lost import (
    LEAST_SCORE,
    Cell,
    cell_table,
    compare_lost,
    compared_targets,
    images_of,
    inside_slice,
    lost_shares,
    nearest_boxes,
    outcome_table,
    part_of,
)  # fmt: skip
from workbench.analysis.of_run import RunAt, last_with_queries
from workbench.analysis.queries.query_detections import query_detections, without_duplicates
from workbench.analysis.results.detections import DetectionResults
from workbench.analysis.rows_of_run import Model, last_layer
from workbench.errors import RunError
from workbench.store.queries import TEACHER_STEP, complete_steps
from workbench.store.run import Run

_COLUMNS = ("image_id", "query", "label", "score", "cx", "cy", "w", "h")


class LostResults(DetectionResults):
    """Results that set a student beside its teacher.

    Both sides are the candidates of the last layer, each with its best class, because a run keeps no more of its teacher. Of a many-to-one
    detector duplicates are left out. FiftyOne shows the same boxes.
    """

    def boxes(self, at: RunAt, model: Model) -> pd.DataFrame:
        """Returns the detections of a model from its query table, one class a candidate: ``query_detections``.

        Raises:
            RunError: the run keeps no queries of the model.
        """
        if model == "teacher":
            require_teacher(at.run, at.split)
        else:
            last_with_queries(at.run, at.split, at.step)
        rows = last_layer(at.run, at.split, at.step, model, _COLUMNS)
        rows = without_duplicates(rows) if many_to_one(at.run, model) else rows
        return query_detections(rows, self.dataset(at.data))

    def compared_images(self, at: RunAt, taught: RunAt) -> np.ndarray:
        """Returns the ids, ascending, of the images of which both the student of ``at`` and the teacher of ``taught`` were recorded."""
        student, teacher = self.boxes(at, "student"), self.boxes(taught, "teacher")
        return np.intersect1d(student["image_id"], teacher["image_id"])

    def compared_targets(self, at: RunAt, taught: RunAt, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns which targets the student of an evaluation and a teacher found: ``lost.compared_targets``.

        Args:
            at: evaluation of the student.
            taught: evaluation of the run that keeps the teacher's outputs, on the same data; usually ``at``.
            least_score: least score of a detection that counts.

        Raises:
            RunError: there are no queries of the student at this step, or none of the teacher.
        """
        images = self.compared_images(at, taught)
        part = part_of(self.truth(at.data), images)
        teacher, student = (boxes[boxes["image_id"].isin(images)] for boxes in (self.boxes(taught, "teacher"), self.boxes(at, "student")))
        return compared_targets(part, teacher, student, least_score)

    def without_teacher(self, at: RunAt) -> str:
        """Returns why the student cannot be set beside its teacher, and what to do about it; "" if it can be."""
        try:
            require_teacher(at.run, at.split)
            last_with_queries(at.run, at.split, at.step)
        except RunError as reason:
            return str(reason)
        return ""

    def cell_targets(self, at: RunAt, taught: RunAt, least_score: float, cell: Cell, by: str = "all", name: str = "all") -> pd.DataFrame:
        """Returns the targets of one cell and slice of ``found_cells``, in the columns of ``compared_targets``."""
        own = inside_slice(self.compared_targets(at, taught, least_score), by, name)
        return own[own["cell"] == cell]

    def cell_images(self, at: RunAt, taught: RunAt, least_score: float, cell: Cell, by: str = "all", name: str = "all") -> pd.DataFrame:
        """Returns the images with targets of one cell and slice, those with most first: ``image_id``, ``n``."""
        return images_of(self.cell_targets(at, taught, least_score, cell, by, name), cell)

    def found_cells(self, at: RunAt, taught: RunAt, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns the two by two table of what teacher and student found: ``lost.cell_table``."""
        return cell_table(self.compared_targets(at, taught, least_score), self.compared_images(at, taught))

    def lost_shares(self, at: RunAt, taught: RunAt, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns the share of the teacher's targets that the student lost: ``lost.lost_shares``."""
        return lost_shares(self.compared_targets(at, taught, least_score), self.compared_images(at, taught))

    def lost_outcomes(self, at: RunAt, taught: RunAt, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns what became in the student of the targets that the teacher found: ``lost.outcome_table``."""
        return outcome_table(self.compared_targets(at, taught, least_score), self.compared_images(at, taught))

    def compared_lost(self, baseline: RunAt, at: RunAt, taught: RunAt, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns how two students differ in what they lost of the same teacher: ``lost.compare_lost``.

        Raises:
            DataError: they were recorded on other images.
        """
        sides = [self.compared_targets(one, taught, least_score) for one in (baseline, at)]
        return compare_lost(sides[0], sides[1], self.compared_images(at, taught))

    def nearest_boxes(self, at: RunAt, taught: RunAt, image_id: int, least_score: float = LEAST_SCORE) -> pd.DataFrame:
        """Returns the box of the teacher and that of the student nearest to every target of an image.

        Returns:
            The columns of ``lost.nearest_boxes``, and ``model``: ``teacher`` (among detections of the least score) or ``student``.
        """
        targets = self.compared_targets(at, taught, least_score)
        targets = targets[targets["image_id"] == image_id]
        teacher, student = self.boxes(taught, "teacher"), self.boxes(at, "student")
        sides = {"teacher": teacher[teacher["score"] >= least_score], "student": student}
        near = [nearest_boxes(targets, boxes[boxes["image_id"] == image_id]).assign(model=model) for model, boxes in sides.items()]
        return pd.concat(near, ignore_index=True)


def require_teacher(run: Run, split: str) -> None:
    """Does nothing if the run keeps its teacher's outputs on the split.

    Raises:
        RunError: it does not; the message says how to make them.
    """
    if TEACHER_STEP in complete_steps(run, split):
        return
    if not (run.info().get("recipe") or {}).get("teacher"):
        raise RunError(f"Run '{run.name}' has no teacher, so there is nothing that it could have lost.")
    raise RunError(
        f"Run '{run.name}' keeps no outputs of its teacher on split '{split}'. Make them with: workbench record {run.name} --split {split}"
    )

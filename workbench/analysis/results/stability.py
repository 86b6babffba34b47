"""Provides results about the matching over all evaluations of a split, and about pairs of runs that differ in their seed."""

import pandas as pd

from workbench.analysis import rows_of_run
from workbench.analysis.defined import many_to_one, require
from workbench.analysis.derived import kept_frame
from workbench.analysis.detection.matches import match_detections
from workbench.analysis.of_run import RunAt, RunSplit, one_evaluation
from workbench.analysis.results.detections import DetectionResults
from workbench.analysis.rows_of_run import found_by_identity, in_last_layer, last_layer, matched_rows, student_over_steps
from workbench.analysis.stability.agreement import agreement_by, teacher_agreement
from workbench.analysis.stability.change_causes import cause_table, churn_by_cause, unsettled_targets
from workbench.analysis.stability.churn import NEEDED, Identity
from workbench.analysis.stability.explained import explained_changes, in_units
from workbench.analysis.stability.found_by import FINDERS, FoundBy, finders, found_by_changes, found_by_churn, pooled_found_by_churn
from workbench.analysis.stability.grouped import image_counts, pooled_by, stability_by
from workbench.analysis.stability.same_box import BOX
from workbench.analysis.stability.seeds import found_by_both
from workbench.store.manifest import content_hash

_FOUND = ("model", "image_id", "layer", "match", "label", "match_iou")


class StabilityResults(DetectionResults):
    """Results about which query is matched to which target over training, and about which candidate detects it.

    All but those named ``found_by`` raise ``NotDefined`` where the assignment is many-to-one.
    """

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
        require(split.run, "agreement")
        rows = matched_rows(split.run, split.split, NEEDED, split.run.query_steps(split.split)[-1])
        if not (rows["model"] == "teacher").any():
            return pd.DataFrame(columns=["step", "layer", by, "agreement", "low", "high", "n", "images"])
        return agreement_by(in_last_layer(teacher_agreement(rows)), by, self.targets(split.data))

    def found_by_both(self, first: RunAt, second: RunAt) -> pd.DataFrame:
        """Returns how many targets both runs find: ``seeds.found_by_both``."""
        rows = [matched_rows(at.run, at.split, _FOUND, at.step) for at in (first, second)]
        first_rows, second_rows = (own[own["model"] == "student"] for own in rows)
        return found_by_both(first_rows, second_rows, self.targets(first.data))

    def finders(self, at: RunAt) -> pd.DataFrame:
        """Returns the candidate that detects each target at one evaluation: ``found_by.finders``."""
        run, split = at.run, at.split

        def made() -> pd.DataFrame:
            # the candidates of a many-to-one detector are not known by an encoder cell
            there = at.step in run.query_steps(split) and not many_to_one(run)
            sources = last_layer(run, split, at.step, columns=("image_id", "query", "source")) if there else None
            return finders(match_detections(self.truth(at.data), self.detections(at)), sources)

        # one file an evaluation, so that a run in progress adds to what is kept of it
        return kept_frame(run, f"found-by-{split}-{at.step}", self.inputs(at), made)

    def all_finders(self, split: RunSplit) -> tuple[pd.DataFrame, list[int]]:
        """Returns ``finders`` of every evaluation that keeps both detections and candidates, with their ``step``, and these steps."""
        run = split.run
        steps = sorted(set(run.detection_steps(split.split)) & set(run.query_steps(split.split)))
        frames = [self.finders(one_evaluation(run, split.split, step)).assign(step=step) for step in steps]
        return pd.concat([pd.DataFrame(columns=["step", *FINDERS]), *frames][bool(frames) :], ignore_index=True), steps

    def found_by_identity(self, split: RunSplit) -> FoundBy:
        """Returns what identifies the candidate of a detection in this run: ``rows_of_run.found_by_identity``."""
        return found_by_identity(split.run, split.split, self.all_finders(split)[0])

    def found_by_changes(self, split: RunSplit, identity: FoundBy | None = None) -> pd.DataFrame:
        """Returns which candidate detects each target at every evaluation: ``found_by.found_by_changes``.

        Args:
            split: run and split.
            identity: what makes a candidate the same at two evaluations; None for what does in this run.
        """
        found, steps = self.all_finders(split)
        return found_by_changes(found, steps, identity or self.found_by_identity(split))

    def found_by_churn(self, split: RunSplit) -> pd.DataFrame:
        """Returns found-by churn by evaluation, with intervals; defined for every detector."""
        return found_by_churn(self.found_by_changes(split))

    def found_by_churn_by(self, split: RunSplit, by: str | None) -> pd.DataFrame:
        """Returns found-by churn of all evaluations together, by class (``by`` label), by size, or (None) of all targets."""
        return pooled_found_by_churn(self.found_by_changes(split), by, self.targets(split.data))

    def student_layers(self, split: RunSplit) -> list[int]:
        """Returns the decoder layers of the student, in order."""
        return rows_of_run.layers(split.run, split.split, split.run.query_steps(split.split)[-1])

    def explained_changes(self, split: RunSplit, layer: int | None = None) -> pd.DataFrame:
        """Returns every change of a target's query with its cause: ``change_causes.explain_changes`` over all pairs of evaluations.

        Args:
            split: run and split.
            layer: decoder layer of the student; the last by default.
        """
        require(split.run, "churn")
        run, name = split.run, split.split
        layer = self.student_layers(split)[-1] if layer is None else layer

        def made() -> pd.DataFrame:
            targets = in_units(self.targets(split.data), self.dataset(split.data))
            return explained_changes(run, name, layer, targets)

        inputs = [self.dataset(split.data).hash(), content_hash([run.queries_path(name, step) for step in run.query_steps(name)])]
        return kept_frame(run, f"changes-{name}-{layer}", inputs, made)

    def churn_by_cause(self, split: RunSplit, by: str | None = None, layer: int | None = None) -> pd.DataFrame:
        """Returns churn split by cause (``change_causes.churn_by_cause``): of each step, or by label or size of all evaluations."""
        explained = self.explained_changes(split, layer)
        return churn_by_cause(explained, ["step"] if by is None else [], by, self.targets(split.data))

    def unsettled_targets(self, split: RunSplit, layer: int | None = None) -> pd.DataFrame:
        """Returns the targets that changed their query with the cause of most of their changes: ``change_causes.unsettled_targets``."""
        return unsettled_targets(self.explained_changes(split, layer))

    def unsettled_causes(self, split: RunSplit, layer: int | None = None) -> pd.DataFrame:
        """Returns how many targets changed their query for each cause: ``change_causes.cause_table``."""
        return cause_table(self.unsettled_targets(split, layer))

    def held_rows(self, split: RunSplit, layer: int) -> pd.DataFrame:
        """Returns the rows of the queries of one layer that were matched to a target, at every evaluation."""
        return student_over_steps(split.run, split.split, ("score", "match_iou"), layer)[0]

    def holders(self, split: RunSplit, image_id: int, target: int, layer: int) -> pd.DataFrame:
        """Returns the rows of the queries that were matched to one target, by step."""
        return rows_of_run.holders(split.run, split.split, image_id, target, layer)

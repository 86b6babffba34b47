"""Provides all results: those about detections, queries and stability, and those about whole runs (causes, verdicts, summary)."""

import numpy as np
import pandas as pd

from workbench.analysis.derived import diagnosis_inputs, kept_frame, kept_json
from workbench.analysis.detection.ap_tests import Verdict, compare_ap
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.analysis.of_run import RunAt, RunSplit
from workbench.analysis.results.queries import QueryResults
from workbench.analysis.results.query_tests import compare_queries
from workbench.analysis.results.stability import StabilityResults
from workbench.analysis.rows_of_run import common_identity, image_rows, matched_rows
from workbench.analysis.stability.churn import NEEDED
from workbench.analysis.stability.same_box import BOX
from workbench.errors import RunError
from workbench.store.states import read_masks

Side = tuple[tuple[int, RunAt], ...]  # seed and last evaluation of each run
_COLUMNS = (*NEEDED, *BOX, "score", "match_iou")


class Results(QueryResults, StabilityResults):
    """Every result that is shown of runs, computed from keys of ``of_run``."""

    def diagnosis(self, split: RunSplit, baseline: RunSplit | None) -> Diagnosis:
        """Returns the diagnosis of a run: every cause was looked for."""
        inputs = [diagnosis_inputs(one.run, one.split) for one in (split, baseline) if one]
        run, against = split.run, baseline.run if baseline else None
        found = kept_json(run, f"diagnosis-{split.split}", inputs, lambda: diagnose(run, against, split.split).to_json())
        return Diagnosis.from_json(found)

    def verdicts(self, baseline: Side, other: Side) -> pd.DataFrame:
        """Returns verdicts on AP and on the matching of some runs against others, paired by seed: ``verdict_table``."""
        inputs = [[[seed, diagnosis_inputs(at.run, at.split), self.inputs(at)] for seed, at in side] for side in (baseline, other)]
        first = other[0][1]
        return kept_frame(first.run, f"verdicts-{first.split}", inputs, lambda: verdict_table("", self._verdicts(baseline, other)))

    def _verdicts(self, baseline: Side, other: Side) -> list[Verdict]:
        truth = self.truth(baseline[0][1].data)
        sides = [{seed: self.detections(at) for seed, at in side} for side in (baseline, other)]
        found = [compare_ap(truth, sides[0], sides[1])]
        runs = {at.path: at for side in (baseline, other) for _, at in side}
        if not all(at.run.query_steps(at.split) for at in runs.values()):
            return found
        rows = {path: matched_rows(at.run, at.split, _COLUMNS) for path, at in runs.items()}
        identity = common_identity([(at.run, rows[path]) for path, at in runs.items()], baseline[0][1].split)
        queries = [{seed: rows[at.path] for seed, at in side} for side in (baseline, other)]
        return found + compare_queries(queries[0], queries[1], [image["id"] for image in truth["images"]], identity)

    def image_queries(self, at: RunAt, image_id: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns all rows of one image, of the student at one evaluation and of the teacher: ``rows_of_run.image_rows``."""
        return image_rows(at.run, at.split, [at.step], image_id)

    def image_masks(self, at: RunAt, image_id: int) -> dict[tuple[int, int], np.ndarray]:
        """Returns the selection masks of one image by layer and level, of the student or of ``at.teacher``; empty if none were kept."""
        try:
            return read_masks(at.run, at.split, at.step, image_id)
        except RunError:
            return {}


def verdict_table(arm: str, verdicts: list[Verdict]) -> pd.DataFrame:
    """Returns one row per verdict: ``arm``, ``quantity``, ``verdict``, ``about``, ``baseline``, ``other``, ``difference``, ``low``,
    ``high``, ``images``, ``sentence``; numbers are in the unit that the sentence shows.
    """
    rows = [verdict.to_json() for verdict in verdicts]
    scales = [verdict.quantity.scale for verdict in verdicts]
    frame = pd.DataFrame(rows).assign(arm=arm)
    for name in ("baseline", "other", "difference", "low", "high"):
        frame[name] = frame[name].astype(float) * scales
    return frame[["arm", "quantity", "verdict", "about", "baseline", "other", "difference", "low", "high", "images", "sentence"]]

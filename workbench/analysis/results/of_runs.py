"""Provides all results: those about detections, queries and stability, and those about whole runs (causes, verdicts, summary)."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from workbench.analysis.derived import diagnosis_inputs, kept_frame, kept_json
from workbench.analysis.detection.ap_tests import INSTABILITY, Quantity, Verdict, compare_ap
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.diagnosis.findings import Diagnosis
from workbench.analysis.of_run import RunAt, RunSplit, all_evaluations
from workbench.analysis.results.lost import LostResults
from workbench.analysis.results.queries import QueryResults
from workbench.analysis.results.query_tests import compare_found_by, compare_queries, undefined_quantities, undefined_verdict
from workbench.analysis.results.stability import StabilityResults
from workbench.analysis.rows_of_run import common_identity, image_rows, matched_rows
from workbench.analysis.stability.churn import NEEDED
from workbench.analysis.stability.same_box import BOX
from workbench.errors import RunError
from workbench.store.states import read_masks

Side = tuple[tuple[int, RunAt], ...]  # seed and last evaluation of each run
_COLUMNS = (*NEEDED, *BOX, "score", "match_iou")


class Results(QueryResults, StabilityResults, LostResults):
    """Every result that is shown of runs, computed from keys of ``of_run``."""

    def diagnosis(self, split: RunSplit, baseline: RunSplit | None) -> Diagnosis:
        """Returns the diagnosis of a run: every cause was looked for."""
        inputs = [diagnosis_inputs(one.run, one.split) for one in (split, baseline) if one]
        run, against = split.run, baseline.run if baseline else None
        # what was kept by earlier code has no measures, or has AP from 0 to 1
        found = kept_json(
            run, f"diagnosis-{split.split}", [*inputs, "measures in points"], lambda: diagnose(run, against, split.split).to_json()
        )
        return Diagnosis.from_json(found)

    def verdicts(self, baseline: Side, other: Side) -> pd.DataFrame:
        """Returns verdicts on AP and on the matching of some runs against others, paired by seed: ``verdict_table``."""
        inputs = [[[seed, diagnosis_inputs(at.run, at.split), self.inputs(at)] for seed, at in side] for side in (baseline, other)]
        first = other[0][1]
        masks = self.have_object_masks(at for side in (baseline, other) for _, at in side)

        def made() -> pd.DataFrame:
            left_out = undefined_quantities([at.run for side in (baseline, other) for _, at in side])
            return verdict_table("", self._verdicts(baseline, other, left_out, masks), left_out)

        # tables of earlier versions have no found-by churn
        found = kept_frame(first.run, f"verdicts-{first.split}", [*inputs, "found-by churn", *["mask AP"] * masks], made)
        # and may call instability by DN-DETR's letters
        former = found["quantity"] == "IS"
        words = found["sentence"].str.replace(r"^IS\b", INSTABILITY.name, regex=True)
        return found.assign(quantity=found["quantity"].mask(former, INSTABILITY.name), sentence=found["sentence"].mask(former, words))

    def _verdicts(self, baseline: Side, other: Side, left_out: Collection[Quantity], masks: bool) -> list[Verdict]:
        truth = self.truth(baseline[0][1].data)
        sides = [{seed: self.detections(at) for seed, at in side} for side in (baseline, other)]
        found = [compare_ap(truth, sides[0], sides[1])]
        if masks:
            found.append(compare_ap(self.mask_truth(baseline[0][1].data), sides[0], sides[1], iou="mask"))
        runs = {at.path: at for side in (baseline, other) for _, at in side}
        if not all(at.run.query_steps(at.split) for at in runs.values()):
            return found
        rows = {path: matched_rows(at.run, at.split, _COLUMNS) for path, at in runs.items()}
        identity = common_identity([(at.run, rows[path]) for path, at in runs.items()], baseline[0][1].split)
        queries = [{seed: rows[at.path] for seed, at in side} for side in (baseline, other)]
        images = [image["id"] for image in truth["images"]]
        found += compare_queries(queries[0], queries[1], images, identity, leave_out=left_out)
        changes = [{seed: all_evaluations(at.run, at.split) for seed, at in side} for side in (baseline, other)]
        return found + self.found_by_verdict(changes[0], changes[1], images)

    def found_by_verdict(self, baseline: Mapping[int, RunSplit], other: Mapping[int, RunSplit], images: Sequence[int]) -> list[Verdict]:
        """Returns the verdict on found-by churn of some runs against others, by seed; empty where a run has only one evaluation.

        If the candidates of one run are known by their boxes, those of all runs are, so that the numbers mean the same.
        """
        everyone = [*baseline.values(), *other.values()]
        by_box = any(self.found_by_identity(split) == "box" for split in everyone)
        sides = [
            {seed: self.found_by_changes(split, "box" if by_box else None) for seed, split in side.items()} for side in (baseline, other)
        ]
        return compare_found_by(sides[0], sides[1], images)

    def image_queries(self, at: RunAt, image_id: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns all rows of one image, of the student at one evaluation and of the teacher: ``rows_of_run.image_rows``."""
        return image_rows(at.run, at.split, [at.step], image_id)

    def image_masks(self, at: RunAt, image_id: int) -> dict[tuple[int, int], np.ndarray]:
        """Returns the selection masks of one image by layer and level, of the student or of ``at.teacher``; empty if none were kept."""
        try:
            return read_masks(at.run, at.split, at.step, image_id)
        except RunError:
            return {}


def verdict_table(arm: str, verdicts: list[Verdict], undefined: Mapping[Quantity, str] | None = None) -> pd.DataFrame:
    """Returns one row per verdict: ``arm``, ``quantity``, ``verdict``, ``about``, ``baseline``, ``other``, ``difference``, ``low``,
    ``high``, ``images``, ``sentence``; numbers are in the unit that the sentence shows.

    Args:
        arm: name of the arm.
        verdicts: the verdicts.
        undefined: numbers without a verdict because they are not defined, with the reason; their rows come last and have no numbers.
    """
    rows = [verdict.to_json() for verdict in verdicts]
    scales = [verdict.quantity.scale for verdict in verdicts] + [1.0] * len(undefined or {})
    images = max((verdict.images for verdict in verdicts), default=0)
    rows += [undefined_verdict(quantity, why, images) for quantity, why in (undefined or {}).items()]
    frame = pd.DataFrame(rows).assign(arm=arm)
    for name in ("baseline", "other", "difference", "low", "high"):
        frame[name] = frame[name].astype(float) * scales
    return frame[["arm", "quantity", "verdict", "about", "baseline", "other", "difference", "low", "high", "images", "sentence"]]

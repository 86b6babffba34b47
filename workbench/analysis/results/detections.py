"""Provides results about the detections of an evaluation: errors and their cost, confusion, slices, calibration, AP's interval."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from workbench.analysis.derived import evaluation_hash, kept_frame
from workbench.analysis.detection.ap_tests import AP, SAMPLES, Verdict, changed_targets, compare_errors, judge
from workbench.analysis.detection.bootstrap import draws, interval, weighted_ap, with_all
from workbench.analysis.detection.calibration import reliability
from workbench.analysis.detection.confusion import THRESHOLD, compare_confusion, confusion_matrix, confusion_pairs
from workbench.analysis.detection.kitti_ap import is_kitti, kitti_ap
from workbench.analysis.detection.matches import Matches
from workbench.analysis.detection.slices import slices
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import Error, Errors, error_table, find_errors, images_behind, queries_behind, rows_behind
from workbench.analysis.of_run import RunAt, RunData, open_data
from workbench.datasets.base import Dataset
from workbench.store.detections import has_object_masks, read_detections
from workbench.store.run import Run

Hold = Callable[[Callable[..., Any]], Callable[..., Any]]
_DATA = ("opened", "opened_truth", "opened_mask_truth")  # results that all others about the same data are computed from
KITTI_SAMPLES = 300  # resamples of the images for the intervals of KITTI's AP


def data_held(most: int = 4) -> dict[str, Hold]:
    """Returns the ``hold`` of results that remember the data that they opened last, of at most so many splits."""
    return {name: lru_cache(maxsize=most) for name in _DATA}


class DetectionResults:
    """Results about detections, each a function of a key from ``of_run``.

    Results are computed from each other: the cost of errors is computed from the errors. A caller that asks for several of them holds the
    shared ones in memory.

    Example:
        >>> results = Results({"errors": functools.lru_cache(maxsize=4)})
        >>> results.error_costs(one_evaluation(run, "val", 300))

    Args:
        hold: by name of a method, a decorator that makes it remember its results, such as ``functools.lru_cache``; all arguments are
            hashable.
    """

    def __init__(self, hold: Mapping[str, Hold] | None = None):
        for name, remembering in (hold or {}).items():
            setattr(self, name, remembering(getattr(self, name)))

    def dataset(self, data: RunData) -> Dataset:
        """Returns the dataset of the split; the same object for all runs on the same data."""
        return self.opened(self.described(data), data.split)

    def truth(self, data: RunData) -> dict[str, Any]:
        """Returns the COCO ground truth of the split."""
        return self.opened_truth(self.described(data), data.split)

    def mask_truth(self, data: RunData) -> dict[str, Any]:
        """Returns the COCO ground truth of the split with the masks of the targets."""
        return self.opened_mask_truth(self.described(data), data.split)

    def targets(self, data: RunData) -> pd.DataFrame:
        """Returns the targets of the split in the columns of ``targets.target_frame``."""
        return target_frame(self.truth(data))

    def described(self, data: RunData) -> str:
        """Returns what determines the data of a run, as JSON; equal for all runs on the same data."""
        info = data.run.info()
        what = {"recipe": {"data": info["recipe"]["data"]}, "classes": info["classes"], "dataset_hash": info.get("dataset_hash")}
        return json.dumps(what, sort_keys=True)

    def opened(self, described: str, split: str) -> Dataset:
        """Returns the data that ``described`` determines."""
        return open_data(json.loads(described), split)

    def opened_truth(self, described: str, split: str) -> dict[str, Any]:
        """Returns the COCO ground truth of that data."""
        return self.opened(described, split).coco()

    def opened_mask_truth(self, described: str, split: str) -> dict[str, Any]:
        """Returns the same with masks, which are read from the files of the data."""
        return open_data(json.loads(described), split, masks=True).coco()

    def inputs(self, at: RunAt) -> list[str]:
        """Returns hashes of everything that results about an evaluation depend on: the data and what the run wrote."""
        return [self.dataset(at.data).hash(), evaluation_hash(at.run, at.split, at.step)]

    def detections(self, at: RunAt) -> pd.DataFrame:
        """Returns what ``store.detections`` keeps of the evaluation."""
        return read_detections(at.run, at.split, at.step)

    def have_object_masks(self, evaluations: Iterable[RunAt]) -> bool:
        """True if the detections of every evaluation have masks."""
        return all(has_object_masks(at.run, at.split, at.step) for at in evaluations)

    def errors(self, at: RunAt) -> Errors:
        """Returns detections and targets with their error types."""
        return find_errors(self.truth(at.data), self.detections(at))

    def error_costs(self, at: RunAt) -> pd.DataFrame:
        """Returns the cost of each error type: ``tide.error_table``."""
        return self._kept(at, "errors", lambda: error_table(self.errors(at)))

    def compared_errors(self, baseline: RunAt, other: RunAt) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns verdicts on every error type (``ap_tests.compare_errors``), and the targets whose state changed."""
        first, second = self.errors(baseline), self.errors(other)
        # each side is one run, so the seeds only name them
        seeds = (seed_of(baseline.run), seed_of(other.run))
        verdicts = kept_frame(
            other.run, f"errors-against-{other.split}-{other.step}", [seeds, self.inputs(baseline), self.inputs(other)],
            lambda: compare_errors({seeds[0]: first}, {seeds[1]: second}),
        )  # fmt: skip
        return verdicts, changed_targets(first, second)

    def confident_errors(self, at: RunAt, least_score: float) -> Errors:
        """Returns the error types among the detections of a score, without the others: a target that only those found is not found."""
        found = self.detections(at)
        return find_errors(self.truth(at.data), found[found["score"] >= least_score])

    def behind(self, at: RunAt, error: Error, least_score: float = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns the images, and the query slots, with errors of a type, most errors first.

        Args:
            at: the evaluation.
            error: type of ``tide``.
            least_score: see ``confident_errors``; 0 for all detections.
        """
        found = self.confident_errors(at, least_score) if least_score else self.errors(at)
        return images_behind(found, error), queries_behind(found, error)

    def wrong(self, at: RunAt, error: Error, image_id: int, least_score: float = 0) -> pd.DataFrame:
        """Returns the errors of a type in one image, the best scores first."""
        return rows_behind(self.confident_errors(at, least_score) if least_score else self.errors(at), error, image_id)

    def class_pairs(self, at: RunAt, least_score: float = THRESHOLD) -> pd.DataFrame:
        """Returns pairs of target and detection (``confusion.confusion_pairs``), the best scores first."""
        pairs = confusion_pairs(self.truth(at.data), self.detections(at), least_score)
        return pairs.sort_values("score", ascending=False, ignore_index=True)

    def cell_pairs(self, at: RunAt, truth: int, predicted: int, least_score: float = THRESHOLD) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Returns the pairs of one cell of the confusion, the best scores first, and its images with their number ``n``, most first.

        Args:
            at: the evaluation.
            truth: category id of the targets, or ``confusion.BACKGROUND``.
            predicted: the same of the detections.
            least_score: least score of a detection.
        """
        pairs = self.class_pairs(at, least_score)
        own = pairs[(pairs["truth"] == truth) & (pairs["predicted"] == predicted)]
        images = own.groupby("image_id").size().rename("n").reset_index()
        return own, images.sort_values(["n", "image_id"], ascending=[False, True], ignore_index=True)

    def confusion(self, at: RunAt, least_score: float = THRESHOLD) -> pd.DataFrame:
        """Returns counts by class of the target and of the detection."""
        return confusion_matrix(self.class_pairs(at, least_score), self.errors(at).classes)

    def compared_confusion(self, baseline: RunAt, other: RunAt, least_score: float = THRESHOLD) -> pd.DataFrame:
        """Returns how the confusion of classes differs from the baseline's: ``confusion.compare_confusion``."""
        found = self.errors(other)
        sides = [self.class_pairs(at, least_score) for at in (baseline, other)]
        return compare_confusion(sides[0], sides[1], found.classes, found.images.tolist())

    def slices(self, at: RunAt) -> pd.DataFrame:
        """Returns AP and recall by size, crowding and overlap."""
        return self._kept(at, "slices", lambda: slices(self.truth(at.data), self.detections(at)))

    def kitti(self, at: RunAt) -> pd.DataFrame | None:
        """Returns KITTI's AP by class and difficulty, or None if the data is not KITTI's."""
        if not is_kitti(self.dataset(at.data)):
            return None
        return self._kept(at, "kitti", lambda: kitti_ap(self.dataset(at.data), self.detections(at), samples=KITTI_SAMPLES))

    def calibration(self, at: RunAt) -> pd.DataFrame:
        """Returns score against precision: ``calibration.reliability``."""
        return reliability(self.matches(at))

    def matches(self, at: RunAt) -> Matches:
        """Returns detections matched to targets."""
        found = self.errors(at)
        return Matches(found.detections, found.targets, found.images, found.classes)

    def ap_interval(self, at: RunAt) -> tuple[float, float]:
        """Returns the ends of the 95 % interval of AP, 0..1."""

        def made() -> pd.DataFrame:
            found = interval(self.ap_resamples(at), len(self.truth(at.data)["images"]))
            return pd.DataFrame({"low": [found.low], "high": [found.high]})

        low, high = self._kept(at, "ap-interval", made).iloc[0]
        return float(low), float(high)

    def ap_resamples(self, at: RunAt) -> np.ndarray:
        """Returns ``[S + 1]`` AP (0..1) on all images and on every resample, which are the same for all runs on the data.

        ``ap_tests.judge`` makes a verdict of these of several runs.
        """

        def made() -> pd.DataFrame:
            truth = self.truth(at.data)
            counts = with_all(draws(len(truth["images"]), SAMPLES, seed=0))
            return pd.DataFrame({"ap": weighted_ap(truth, self.detections(at), counts)})

        return self._kept(at, "ap-resamples", made)["ap"].to_numpy(float)

    def ap_difference(self, baseline: RunAt, other: RunAt) -> Verdict:
        """Returns the verdict on the AP of one run against another, both evaluated on the same split."""
        return judge(AP, {0: self.ap_resamples(baseline)}, {0: self.ap_resamples(other)}, len(self.truth(other.data)["images"]))

    def _kept(self, at: RunAt, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return kept_frame(at.run, f"{name}-{at.split}-{at.step}", self.inputs(at), make)


def seed_of(run: Run) -> int:
    """Returns the seed that identifies a run among the runs of its arm."""
    info = run.info()
    return int((info.get("group") or {}).get("seed", info.get("seed") or 0))

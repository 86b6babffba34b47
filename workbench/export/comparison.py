"""Checks that an exported model gives the detector's outputs: runs both on the same images and refuses an export that differs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.of_run import open_data
from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.opening import open_dataset
from workbench.detectors.detector import Detector
from workbench.detectors.output import probability
from workbench.detectors.query_detector import best_detections
from workbench.errors import ExportError
from workbench.export.interface import transform_of
from workbench.store.run import Run
from workbench.training.evaluation import DETECTIONS, collect_detections

BATCH = 8
AP_TOLERANCE = 0.001  # AP is 0..1 here: a tenth of a point
# rounding may change which query is the last one selected by its encoder score; more changes mean a different model
RESELECTED_SHARE = 0.1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Agreement:
    """Differences between an export and its detector.

    Attributes:
        images: Number of images that both were run on.
        split: Split of these images.
        boxes: Largest difference of a box coordinate, as a share of the image's side.
        scores: Largest difference of a class probability.
        reselected: Number of images for which rounding selected another query; their boxes and scores are not compared.
        ap: AP of the detector, 0..1.
        exported_ap: AP of the export, 0..1.
    """

    images: int
    split: str
    boxes: float
    scores: float
    reselected: int
    ap: float
    exported_ap: float

    def __str__(self) -> str:
        apart = f", other queries selected on {self.reselected}" if self.reselected else ""
        largest = f"boxes differ by up to {self.boxes:.1e} and scores by up to {self.scores:.1e}"
        return f"{self.images} images of {self.split}: {largest}{apart}; AP {100 * self.exported_ap:.2f} against {100 * self.ap:.2f}"

    def holds(self, boxes: float, scores: float) -> bool:
        """True if the differences are within these tolerances; a NaN never is."""
        same_ap = abs(self.ap - self.exported_ap) <= AP_TOLERANCE
        return self.boxes <= boxes and self.scores <= scores and same_ap and self.reselected <= RESELECTED_SHARE * self.images


def evaluation_split(run: Run | None, data: str | None) -> Dataset:
    """Opens the images to compare on: the run's test split, or its validation split if it has none; shapes without a run or data."""
    if run is None or data is not None:
        return open_dataset(data or "shapes", "val")
    info = run.info()
    return open_data(info, "test" if info["recipe"]["data"].get("test") else "val")


@torch.no_grad()
def compare(
    detector: Detector, dataset: Dataset, height: int, width: int, exported: Callable[..., Any], progress: Progress | None
) -> Agreement:
    """Runs both models on every image of a dataset, on the same pixels, and returns their differences.

    Args:
        detector: the detector that was exported.
        dataset: the images.
        height: height of the export's input in pixels.
        width: width of the export's input in pixels.
        exported: the export; maps images, uint8 ``[B, H, W, 3]``, and their batch to scores ``[B, N, C]``, boxes ``[B, N, 4]`` and
            the encoder cells of the queries ``[B, N]``, None if the export does not give them.
        progress: called with the number of images done and the total.
    """
    transform, done, box, score, reselected = transform_of(detector), 0, 0.0, 0.0, 0
    ours, theirs = [], []
    spec = detector.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for small in evaluation_batches(dataset, transform, BATCH):
        batch = _on_canvas(small, height, width)
        pixels = ((batch.images * std + mean) * 255).masked_fill(batch.padding[:, None], 0).round().to(torch.uint8)
        output = detector(batch.images, batch.padding)
        scores, boxes = probability(output, -1), output.boxes[-1]
        other_scores, other_boxes, source = exported(pixels.permute(0, 2, 3, 1).contiguous(), batch)
        ours.append((batch, best_detections(scores, boxes, batch.sizes, DETECTIONS)))
        theirs.append((batch, best_detections(other_scores, other_boxes, batch.sizes, DETECTIONS)))
        if source is not None:
            here, there = output.queries.source.sort(1), source.sort(1)
            scores, boxes = (_reordered(values, here.indices) for values in (scores, boxes))
            other_scores, other_boxes = (_reordered(values, there.indices) for values in (other_scores, other_boxes))
            same = (here.values == there.values).all(1)
            scores, boxes, other_scores, other_boxes = scores[same], boxes[same], other_scores[same], other_boxes[same]
            reselected += int((~same).sum())
        box, score = max(box, _largest(boxes - other_boxes)), max(score, _largest(scores - other_scores))
        done += len(batch.image_ids)
        if progress is not None:
            progress(done, len(dataset))
    truth = dataset.coco()
    ap, other_ap = (float(coco_ap(truth, collect_detections(dataset, found, spec.classes).to_pandas()).ap) for found in (ours, theirs))
    return Agreement(done, dataset.split, box, score, reselected, ap, other_ap)


def refuse(what: str, agreement: Agreement, boxes: float, scores: float) -> None:
    """Raises ``ExportError`` if an export differs from its detector by more than these tolerances of boxes and scores."""
    if not agreement.holds(boxes, scores):
        raise ExportError(
            f"{what} differs from the model it was made from. {agreement}. Allowed are {boxes:g} for boxes, {scores:g} for scores, other "
            f"queries on {RESELECTED_SHARE:.0%} of the images and {100 * AP_TOLERANCE:g} AP. Nothing was written."
        )


def _on_canvas(batch: Batch, height: int, width: int) -> Batch:
    """Returns the batch padded to the input size of the export."""
    right, below = width - batch.images.shape[-1], height - batch.images.shape[-2]
    if not right and not below:
        return batch
    images = nn.functional.pad(batch.images, (0, right, 0, below))
    return Batch(images, nn.functional.pad(batch.padding, (0, right, 0, below), value=True), batch.targets, batch.image_ids, batch.sizes,
                 batch.ops)  # fmt: skip


def _reordered(values: Tensor, order: Tensor) -> Tensor:
    return values.gather(1, order[..., None].expand_as(values))


def _largest(difference: Tensor) -> float:
    """Returns 0 for an empty tensor, and infinity if it contains NaN, which ``max`` could pass over."""
    return float(difference.abs().nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0

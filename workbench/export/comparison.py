"""Checks that an exported model gives the detector's outputs: runs both on the same images and refuses an export that differs."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.of_run import open_data
from workbench.datasets.base import Dataset
from workbench.datasets.batches import Batch, evaluation_batches
from workbench.datasets.object_masks import decoded
from workbench.datasets.opening import open_dataset
from workbench.detectors.detector import Detections, Detector
from workbench.detectors.mask_pasting import pasted
from workbench.detectors.output import DetectorOutput, QueryOutput, TwoStageOutput, valid_scores
from workbench.detectors.query_detector import best_detections
from workbench.detectors.suppression import Suppression, suppressed
from workbench.errors import ExportError
from workbench.export.interface import transform_of
from workbench.store.run import Run
from workbench.training.evaluation import DETECTIONS, collect_detections

BATCH = 8
AP_TOLERANCE = 0.001  # AP is 0..1 here: a tenth of a point
# rounding may change which query is the last one selected by its encoder score; more changes mean a different model
RESELECTED_SHARE = 0.1
# rounding may change which of two boxes a suppression leaves, whose IoU is its threshold; more changes mean a different model
OTHER_SHARE = 0.01
# rounding may put a pixel on the other side of one half; more such pixels mean a different model
OTHER_PIXELS = 0.001

SHARED = 0.01  # difference of scores, and of box coordinates as a share of the image's side, up to which two detections are one

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scored:
    """Answer of an export that leaves the choice of detections to its user.

    Attributes:
        scores: ``[B, N, C]``.
        boxes: ``[B, N, 4]`` cxcywh in 0..1, or ``[B, N, C, 4]`` with a box for each class.
        source: ``[B, N]`` encoder cells of the queries, None if the export does not give them.
        rule: How detections are chosen; None takes the best pairs.
    """

    scores: Tensor
    boxes: Tensor
    source: Tensor | None = None
    rule: Suppression | None = None


@dataclass(frozen=True)
class Found:
    """Answer of an export with the suppression inside, see ``chosen_detections``.

    Attributes:
        scores: ``[B, D]``.
        labels: ``[B, D]``.
        boxes: ``[B, D, 4]`` xyxy in 0..1.
        count: ``[B]`` number of detections.
        masks: ``[B, D, M, M]`` in 0..1 over the boxes; None if the export gives none.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    count: Tensor
    masks: Tensor | None = None


Answer = Scored | Found


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
        detections: Number of detections of the detector, if the export chooses them or its proposals itself; 0 otherwise.
        other: Number of detections that only one of the two has; their boxes and scores are not compared.
        masks: Share of the pixels of all masks of shared detections that only one of the two has; None if the export gives no masks.
        masks_left_out: True if the detector gives masks and the export none.
    """

    images: int
    split: str
    boxes: float
    scores: float
    reselected: int
    ap: float
    exported_ap: float
    detections: int = 0
    other: int = 0
    masks: float | None = None
    masks_left_out: bool = False

    def __str__(self) -> str:
        apart = f", other queries selected on {self.reselected}" if self.reselected else ""
        apart += f", {self.other} of {self.detections} detections are not shared" if self.detections else ""
        apart += f", masks differ in {self.masks:.1e} of their pixels" if self.masks is not None else ""
        apart += ", its masks are left out (--nms adds them)" if self.masks_left_out else ""
        largest = f"boxes differ by up to {self.boxes:.1e} and scores by up to {self.scores:.1e}"
        return f"{self.images} images of {self.split}: {largest}{apart}; AP {100 * self.exported_ap:.2f} against {100 * self.ap:.2f}"

    def holds(self, boxes: float, scores: float) -> bool:
        """True if the differences are within these tolerances; a NaN never is."""
        same_ap = abs(self.ap - self.exported_ap) <= AP_TOLERANCE
        few = self.reselected <= RESELECTED_SHARE * self.images and self.other <= OTHER_SHARE * self.detections
        same_masks = self.masks is None or self.masks <= OTHER_PIXELS
        return self.boxes <= boxes and self.scores <= scores and same_ap and few and same_masks


def evaluation_split(run: Run | None, data: str | None) -> Dataset:
    """Opens the images to compare on: the run's test split, or its validation split if it has none; shapes without a run or data."""
    if run is None or data is not None:
        return open_dataset(data or "shapes", "val")
    info = run.info()
    return open_data(info, "test" if info["recipe"]["data"].get("test") else "val")


@torch.no_grad()
def compare(
    detector: Detector, dataset: Dataset, height: int, width: int, exported: Callable[[Tensor, Batch], Answer], progress: Progress | None
) -> Agreement:
    """Runs both models on every image of a dataset, on the same pixels, and returns their differences.

    Args:
        detector: the detector that was exported.
        dataset: the images.
        height: height of the export's input in pixels.
        width: width of the export's input in pixels.
        exported: the export; maps images, uint8 ``[B, H, W, 3]``, and their batch to its answer.
        progress: called with the number of images done and the total.
    """
    transform, done, apart = transform_of(detector), 0, _Differences()
    ours: list[tuple[Batch, list[Detections]]] = []
    theirs: list[tuple[Batch, list[Detections]]] = []
    spec = detector.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for small in evaluation_batches(dataset, transform, BATCH):
        batch = _on_canvas(small, height, width)
        pixels = ((batch.images * std + mean) * 255).masked_fill(batch.padding[:, None], 0).round().to(torch.uint8)
        output = detector(batch.images, batch.padding)
        answer = exported(pixels.permute(0, 2, 3, 1).contiguous(), batch)
        own, other = detector.detections(output, batch.sizes, DETECTIONS), _detections(answer, batch.sizes)
        ours.append((batch, own))
        theirs.append((batch, other))
        # proposals are chosen inside the file, so they are not the same one by one
        if isinstance(answer, Scored) and not isinstance(output, TwoStageOutput):
            apart.add_scored(output, answer)
        else:
            apart.add_found(own, other, batch.sizes)
        done += len(batch.image_ids)
        if progress is not None:
            progress(done, len(dataset))
    truth = dataset.coco()
    ap, other_ap = (float(coco_ap(truth, collect_detections(dataset, found, spec.classes).to_pandas()).ap) for found in (ours, theirs))
    masked, exported_masked = (any(one.masks is not None for _, found in of for one in found) for of in (ours, theirs))
    return Agreement(
        done, dataset.split, apart.box, apart.score, apart.reselected, ap, other_ap, apart.detections, apart.other, apart.masks,
        masked and not exported_masked,
    )  # fmt: skip


def _detections(answer: Answer, sizes: Tensor) -> list[Detections]:
    if isinstance(answer, Found):
        scale = sizes[:, None, [1, 0, 1, 0]].float()
        # a file with the suppression inside does not say which candidate a detection is
        rows = zip(answer.count.tolist(), answer.labels, answer.scores, answer.boxes * scale, strict=True)
        found = [Detections(torch.full((n,), -1), label[:n], score[:n], box[:n]) for n, label, score, box in rows]
        if answer.masks is None:
            return found
        images = zip(found, answer.masks, sizes.tolist(), strict=True)
        return [replace(own, masks=pasted(mask[: len(own.boxes)], own.boxes, *size)) for own, mask, size in images]
    if answer.rule is not None:
        return suppressed(answer.scores, answer.boxes, sizes, answer.rule, DETECTIONS)
    return best_detections(answer.scores, answer.boxes, sizes, DETECTIONS)


@dataclass
class _Differences:
    """Collects the largest differences of all batches; see ``Agreement``."""

    box: float = 0.0
    score: float = 0.0
    reselected: int = 0
    detections: int = 0
    other: int = 0
    pixels: int | None = None
    other_pixels: int = 0

    @property
    def masks(self) -> float | None:
        """Returns ``Agreement.masks``."""
        return None if self.pixels is None else self.other_pixels / max(self.pixels, 1)

    def add_scored(self, output: DetectorOutput, answer: Scored) -> None:
        """Compares scores and boxes candidate by candidate; queries that are selected per image by their encoder cell."""
        scores, boxes = valid_scores(output, -1), output.boxes[-1]
        other_scores, other_boxes = answer.scores, answer.boxes
        if answer.source is not None and isinstance(output, QueryOutput):
            here, there = output.queries.source.sort(1), answer.source.sort(1)
            scores, boxes = (_reordered(values, here.indices) for values in (scores, boxes))
            other_scores, other_boxes = (_reordered(values, there.indices) for values in (other_scores, other_boxes))
            same = (here.values == there.values).all(1)
            scores, boxes, other_scores, other_boxes = scores[same], boxes[same], other_scores[same], other_boxes[same]
            self.reselected += int((~same).sum())
        self._largest(boxes - other_boxes, scores - other_scores)

    def add_found(self, own: list[Detections], other: list[Detections], sizes: Tensor) -> None:
        """Compares the detections that both have: of the same class at the same place. Nearly equal scores may be in another order."""
        for here, there, size in zip(own, other, sizes[:, [1, 0, 1, 0]].float(), strict=True):
            boxes = ((here.boxes[:, None] - there.boxes) / size).abs().amax(-1)
            scores = (here.scores[:, None] - there.scores).abs()
            apart = torch.maximum(boxes, scores).clamp(max=1).masked_fill(here.labels[:, None] != there.labels, 1.0).nan_to_num(nan=1.0)
            row, column = map(torch.from_numpy, linear_sum_assignment(apart.numpy()))
            shared = apart[row, column] <= SHARED
            row, column = row[shared], column[shared]
            self.detections += len(here.scores)
            self.other += len(here.scores) + len(there.scores) - 2 * len(row)
            self._largest(boxes[row, column], scores[row, column])
            if here.masks is not None and there.masks is not None:
                self._add_masks([here.masks[i] for i in row.tolist()], [there.masks[i] for i in column.tolist()], size.tolist())

    def _add_masks(self, own: list[bytes], other: list[bytes], size: list[float]) -> None:
        """Counts the pixels of two masks of each detection, and those that only one has; ``size`` begins with width and height."""
        width, height = int(size[0]), int(size[1])
        both = [(decoded(a, height, width), decoded(b, height, width)) for a, b in zip(own, other, strict=True)]
        self.pixels = (self.pixels or 0) + sum(int((a | b).sum()) for a, b in both)
        self.other_pixels += sum(int((a ^ b).sum()) for a, b in both)

    def _largest(self, boxes: Tensor, scores: Tensor) -> None:
        self.box, self.score = max(self.box, _largest(boxes)), max(self.score, _largest(scores))


def refuse(what: str, agreement: Agreement, boxes: float, scores: float) -> None:
    """Raises ``ExportError`` if an export differs from its detector by more than these tolerances of boxes and scores."""
    if not agreement.holds(boxes, scores):
        raise ExportError(
            f"{what} differs from the model it was made from. {agreement}. Allowed are {boxes:g} for boxes, {scores:g} for scores, other "
            f"queries on {RESELECTED_SHARE:.0%} of the images, {OTHER_SHARE:.0%} other detections and {100 * AP_TOLERANCE:g} AP. "
            "Nothing was written."
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

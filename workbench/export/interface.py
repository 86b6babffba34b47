"""Describes the inputs and outputs of an export: image size, padding mask and classes, and what is left to do with the outputs."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from workbench.datasets.base import Dataset
from workbench.datasets.transforms import ShortestSide, Transform, TransformConfig
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.detector import Detector
from workbench.detectors.mask_rcnn import MaskRcnn
from workbench.detectors.output import DenseOutput, QueryOutput, TwoStageOutput
from workbench.detectors.suppression import Suppression
from workbench.detectors.two_stage_detector import TwoStageDetector
from workbench.errors import ExportError
from workbench.export.two_stage_graph import traceable_stages


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of an exported file; stored in its metadata as JSON.

    Attributes:
        family: Family of the detector.
        classes: Class names, by column of the scores.
        height: Input height in pixels.
        width: Input width in pixels.
        padding: True if the file takes a padding mask; without one, images are resized to exactly ``height`` x ``width``.
        resize: Resize rule of images, as in a recipe; None keeps their size.
        source: True if the file also gives each query's encoder cell, for families that select their queries per image.
        suppression: Fields of the ``Suppression`` that makes detections of scores and boxes; None for families without duplicates.
        nms: True if the suppression is inside the file, which then gives detections; otherwise it is left to the user.
        class_boxes: True if a candidate has a box for each class.
        mask_side: Sides of the mask that the file gives over the box of each detection; None if it gives none.
    """

    family: str
    classes: tuple[str, ...]
    height: int
    width: int
    padding: bool
    resize: dict[str, Any] | None
    source: bool
    suppression: dict[str, Any] | None = None
    nms: bool = False
    class_boxes: bool = False
    mask_side: int | None = None

    @property
    def inputs(self) -> list[str]:
        return ["images", "padding"] if self.padding else ["images"]

    @property
    def outputs(self) -> list[str]:
        if self.nms:
            return ["scores", "labels", "boxes", "count", *(["masks"] if self.mask_side else [])]
        return ["scores", "boxes", "source"] if self.source else ["scores", "boxes"]

    @property
    def rule(self) -> Suppression | None:
        """Returns ``suppression`` as the library takes it."""
        return None if self.suppression is None else Suppression(**{**self.suppression, "counts": tuple(self.suppression["counts"])})


def interface_of(detector: Detector, dataset: Dataset, nms: bool = False) -> Interface:
    """Returns the inputs and outputs of an export of ``detector``, for images such as those of ``dataset``.

    Args:
        detector: the detector to export.
        dataset: images such as it will see.
        nms: put the suppression of duplicates into the file.

    Raises:
        ExportError: the images come in several sizes and the model ignores padding; or ``nms`` of a family without duplicates.
    """
    spec = detector.spec
    transform = transform_of(detector)
    resize = transform.config.resize
    prepared = {_prepared(transform, record.width, record.height) for record in dataset.records}
    padding = len(prepared) > 1
    width, height = max(w for w, _ in prepared), max(h for _, h in prepared)
    if padding and isinstance(resize, ShortestSide):
        width = height = resize.longest
    step = detector.side_multiple
    if (padding and not detector.reads_padding) or width % step or height % step:
        sides = f" with sides of multiples of {step}" if step > 1 else ""
        raise ExportError(
            f"{detector.family} takes images of one size only{sides}, but those of '{dataset.name}' come in "
            f"{len(prepared)} (up to {width}x{height}). Train it with data.transform.resize: {{height: H, width: W}}."
        )
    with torch.no_grad():
        output = detector.blank_output()
        selected = isinstance(output, QueryOutput) and bool((output.queries.source >= 0).all())
        rule, class_boxes = _suppression(detector, height, width)
    if nms and rule is None:
        raise ExportError(f"{detector.family} has no duplicates to suppress. Export it without --nms.")
    mask_side = 2 * detector.config.mask_cells if nms and isinstance(detector, MaskRcnn) else None
    return Interface(detector.family, spec.classes, height, width, padding, spec.resize, selected, rule, nms, class_boxes, mask_side)


def _suppression(detector: Detector, height: int, width: int) -> tuple[dict[str, Any] | None, bool]:
    """Returns how detections are chosen among the outputs for images of this size, None if they have no duplicates; and whether boxes are
    those of classes.
    """
    if not isinstance(detector, DenseDetector | TwoStageDetector):
        return None, False
    with traceable_stages(detector):
        output = detector(torch.zeros(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool))
    if isinstance(output, DenseOutput) and isinstance(detector, DenseDetector):
        return asdict(detector.suppression(output.grid)), False
    assert isinstance(output, TwoStageOutput) and isinstance(detector, TwoStageDetector)
    return asdict(detector.suppression(output.proposals.shape[1], max(height, width))), output.class_boxes is not None


def transform_of(detector: Detector) -> Transform:
    """Returns the transform that prepares images for a detector."""
    spec = detector.spec
    return Transform(TransformConfig.model_validate({"resize": spec.resize, "mean": spec.mean, "std": spec.std}))


def _prepared(transform: Transform, width: int, height: int) -> tuple[int, int]:
    ops = transform.evaluation_ops(width, height)
    return (ops[0]["width"], ops[0]["height"]) if ops else (width, height)

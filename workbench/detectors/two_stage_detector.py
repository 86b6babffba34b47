"""Defines what detectors have that propose boxes first and classify them afterwards: sampling, assignment, suppression of duplicates."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from workbench.datasets.targets import TargetBatch
from workbench.detectors.backbone import Backbone
from workbench.detectors.dense_detector import IGNORED, pixel_boxes, relative_boxes, with_ignored
from workbench.detectors.detector import Detections, InputSpec
from workbench.detectors.iou_matching import matched
from workbench.detectors.output import DenseOutput, DetectorOutput, TwoStageOutput, probability, two_stage_output
from workbench.detectors.own_model import OwnModel
from workbench.detectors.pyramid import Pyramid, levels_with_padding
from workbench.detectors.region_proposals import RegionProposals, drawn
from workbench.detectors.suppression import Suppression
from workbench.matching import Activation

OVERLAP = 0.5  # IoU with a target from which on a proposal is positive
POSITIVE_SHARE = 0.25
SMALLEST = 1e-2  # shortest side of a detection in input pixels


@dataclass(frozen=True)
class RoiContext:
    """Holds what the second stage reads again.

    Attributes:
        levels: Levels of the pyramid that the second stage reads, ``[B, width, h, w]`` each.
        sides: ``[B, 2]`` width and height of the un-padded images in input pixels.
        rois: ``[B, N, 4]`` the proposals as xyxy in input pixels.
        numbers: ``[B, N, ...]`` what the second stage predicts for the boxes of ``rois``.
        anchors: ``[B, A]`` the sample of anchors that the step learns from (``RegionProposals.sample``); None outside training.
    """

    levels: tuple[Tensor, ...]
    sides: Tensor
    rois: Tensor
    numbers: Tensor
    anchors: Tensor | None


class TwoStageDetector(OwnModel):
    """A detector whose candidates are proposals: boxes that a region proposal network finds, and a second stage classifies and moves.

    A family gives the second stage (``read``), how a box is decoded, and its losses.

    Args:
        config: the model's architecture.
        spec: what the model is trained to see.
    """

    assignment: ClassVar[Literal["one", "many"]] = "many"
    geometric: ClassVar[bool] = False
    activation: Activation = "softmax"
    provides = frozenset({"neck", "backbone", "head", "rois"})

    def __init__(self, config: Any, spec: InputSpec):
        super().__init__(config, spec)
        self.backbone = Backbone(config.backbone)
        self.neck = Pyramid(config, self.backbone.channels)
        self.rpn = RegionProposals(config)
        self.matcher = Matcher(OVERLAP, OVERLAP)
        self.sampler = BalancedPositiveNegativeSampler(config.samples, POSITIVE_SHARE)

    @property
    def num_stages(self) -> int:
        """Returns 1: the proposals are no prediction of classes."""
        return 1

    @abstractmethod
    def read(self, levels: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the second stage.

        Args:
            levels: levels of the pyramid that belong to the backbone's.
            rois: ``[B, N, 4]`` xyxy in input pixels.

        Returns:
            Logits ``[B, N, C + 1]``, no-object last, and the numbers from which boxes are decoded ``[B, N, C, 4]``.
        """

    @abstractmethod
    def decode_boxes(self, numbers: Tensor, rois: Tensor) -> Tensor:
        """Returns the box of each class ``[B, N, C, 4]`` as xyxy in input pixels; the arguments are those of ``read``."""

    def classify(self, boxes: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Classifies and moves boxes of the images in ``context``, which is that of an output of this detector.

        Args:
            boxes: ``[B, N, 4]`` cxcywh in 0..1 of the un-padded images.
            context: ``TwoStageOutput.context``.

        Returns:
            Logits ``[B, N, C + 1]``, no-object last, and the box of each one's best class ``[B, N, 4]`` cxcywh.
        """
        rois = pixel_boxes(boxes, context.sides)
        logits, numbers = self.read(context.levels, rois)
        return logits, _of_best(logits, self._class_boxes(numbers, rois, context.sides))

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> TwoStageOutput:
        """See ``Detector.forward``. In training with ``targets``, anchors and proposals are drawn from torch's global generator."""
        features = self.backbone(images)
        pyramid = self.neck(features)
        first, anchor_boxes = self.rpn(pyramid, padding)
        backbone = levels_with_padding(features, self.backbone.strides, padding)
        rois, valid = self.propose(first, anchor_boxes)
        anchors = None
        if self.training and targets is not None:
            anchors = self.rpn.sample(first, targets)
            rois, valid = self._sample(rois, valid, targets, first.sides)
        levels = tuple(pyramid[: len(features)])
        logits, numbers = self.read(levels, rois)
        class_boxes = self._class_boxes(numbers, rois, first.sides)
        return TwoStageOutput(
            logits=logits[None],
            boxes=_of_best(logits, class_boxes)[None],
            activation=self.activation,
            valid=valid,
            neck=first.neck,
            backbone=backbone,
            first=replace(first, backbone=backbone),
            proposals=relative_boxes(rois, first.sides),
            class_boxes=class_boxes,
            pooled=self.backbone.strides,
            context=RoiContext(levels, first.sides, rois, numbers, anchors),
        )

    def propose(self, first: DenseOutput, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the proposals ``[B, N, 4]`` as xyxy in input pixels, best first, and which of them do not only fill up the batch.

        Args:
            first: output of the first stage.
            boxes: ``[B, A, 4]`` its boxes as xyxy in input pixels.
        """
        return _padded(self.rpn.propose(first, boxes), first.sides)

    def _class_boxes(self, numbers: Tensor, rois: Tensor, sides: Tensor) -> Tensor:
        pixels = self.decode_boxes(numbers, rois)
        return relative_boxes(pixels.flatten(1, 2), sides).view(pixels.shape)

    @torch.no_grad()
    def _sample(self, rois: Tensor, valid: Tensor, targets: TargetBatch, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the proposals that the second stage learns from, drawn from the given ones and the targets' own boxes."""
        own = pixel_boxes(targets.boxes, sides)
        usable = targets.valid & (own[..., 2:] > own[..., :2]).all(-1)
        rois, valid = torch.cat([rois, own], 1), torch.cat([valid, usable], 1)
        chosen = drawn(self.sampler, self._matched(rois, valid, targets, sides)) > IGNORED
        return _padded([rois[image, drawn_here] for image, drawn_here in enumerate(chosen)], sides)

    def _matched(self, rois: Tensor, valid: Tensor, targets: TargetBatch, sides: Tensor) -> Tensor:
        match = matched(self.matcher, rois, valid, pixel_boxes(targets.boxes, sides), targets.valid)
        return with_ignored(match, (rois[..., :2] + rois[..., 2:]) / 2, valid, targets, sides)

    @torch.no_grad()
    def assign(self, output: DetectorOutput, targets: TargetBatch) -> Tensor:
        """See ``Detector.assign``. A proposal learns the target with which its IoU is highest, if it is at least 0.5."""
        own = two_stage_output(output)
        assert own.valid is not None
        return self._matched(own.context.rois, own.valid, targets, own.context.sides)[None]

    def suppression(self, proposals: int, side: int) -> Suppression:
        """Returns the rule of ``detections``, as near as shares of the image can say it, for a number of proposals and an image of ``side``
        pixels.
        """
        config, classes = self.config, len(self.spec.classes)
        return Suppression(config.score_threshold, config.nms_threshold, proposals * classes, (proposals,), SMALLEST / side)

    @torch.no_grad()
    def detections(self, output: DetectorOutput, sizes: Tensor, k: int = 300) -> list[Detections]:
        """Returns the pairs that are left after non-maximum suppression within each class, best first. See ``Detector.detections``."""
        own = two_stage_output(output)
        found, sides = probability(own, -1), own.first.sides
        boxes = own.boxes[-1][:, :, None].expand(*found.shape, 4) if own.class_boxes is None else own.class_boxes
        if own.valid is not None:
            found = found.masked_fill(~own.valid[..., None], 0.0)
        pixels = pixel_boxes(boxes.float().flatten(1, 2), sides)
        scale = sizes.to(found.device)[:, [1, 0]].float() / sides
        return [self._of_image(found[image], pixels[image], sides[image], scale[image], k) for image in range(len(found))]

    def _of_image(self, found: Tensor, boxes: Tensor, sides: Tensor, scale: Tensor, k: int) -> Detections:
        """Selects in input pixels, as torchvision does, and scales the boxes that are left to the original image."""
        pair = (found.flatten() > self.config.score_threshold).nonzero()[:, 0]
        width, height = sides.int().tolist()
        clipped = clip_boxes_to_image(boxes[pair], (height, width))
        large = remove_small_boxes(clipped, SMALLEST)
        pair, clipped = pair[large], clipped[large]
        score, candidate, label = found.flatten()[pair], pair // found.shape[-1], pair % found.shape[-1]
        best = batched_nms(clipped, score, label, self.config.nms_threshold)[:k]
        return Detections(candidate[best].cpu(), label[best].cpu(), score[best].cpu(), (clipped[best] * scale.repeat(2)).cpu())


def _of_best(logits: Tensor, class_boxes: Tensor) -> Tensor:
    """Returns ``[B, N, 4]``: of the boxes ``[B, N, C, 4]``, that of the class with the highest logit, no-object left out."""
    best = logits[..., :-1].argmax(-1)[..., None, None]
    return class_boxes.gather(2, best.expand(*best.shape[:3], 4))[:, :, 0]


def _padded(boxes: list[Tensor], sides: Tensor) -> tuple[Tensor, Tensor]:
    """Returns boxes as ``[B, N, 4]``, filled up with the whole image to the largest number, at least 1; and which are not filling."""
    most = max(1, *(len(own) for own in boxes))
    whole = torch.cat([torch.zeros_like(sides), sides], -1)
    padded = torch.stack([torch.cat([own, whole[image].expand(most - len(own), 4)]) for image, own in enumerate(boxes)])
    counts = torch.tensor([len(own) for own in boxes], device=sides.device)
    return padded, torch.arange(most, device=sides.device) < counts[:, None]

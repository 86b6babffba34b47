"""Implements Faster R-CNN with a feature pyramid (Ren et al., NeurIPS 2015; Lin et al., CVPR 2017), with torchvision's parts and losses."""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import IGNORED, at_positives, pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import DetectorOutput, two_stage_output
from workbench.detectors.region_proposals import BETA, ProposalConfig
from workbench.detectors.two_stage_detector import TwoStageDetector
from workbench.detectors.whole_batch import over_processes

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # factors on the centre and size that the second stage regresses
SAMPLING = 2  # points of bilinear sampling along each side of a pooled cell


class FasterRcnnModelConfig(ProposalConfig):
    """Describes the architecture of a Faster R-CNN that starts from random weights."""

    family: Literal["faster_rcnn"] = "faster_rcnn"
    """Selects the family."""
    extra_levels: int = Field(1, ge=0, le=4)
    """Number of coarser levels behind the backbone's, each of half the size. They only propose; the second stage reads the others."""
    extra_from: Literal["backbone", "pyramid", "pool"] = "pool"
    """How the extra levels are made. Convolutions of stride 2 make the first one of the last level of the ``backbone`` or of the
    ``pyramid``. ``pool`` takes every second cell of the level before, without a weight.
    """
    head_convs: int = Field(1, ge=0, le=8)
    """Number of 3x3 convolutions of the region proposal network before its predictions."""
    head_norm: Literal["none", "group", "batch"] = "none"
    """Normalisation behind each of these convolutions: GroupNorm, BatchNorm (with statistics of its own for each level), or none."""
    nms_threshold: float = Field(0.5, gt=0, le=1)
    """IoU above which the worse of two detections of one class is suppressed."""
    candidates: int = Field(1000, gt=0)
    """Highest number of anchors of each level that go into the suppression of proposals in inference."""
    samples: int = Field(512, gt=0)
    """Number of proposals of an image that the second stage learns from in a step, at most a quarter of them positive."""
    roi_cells: int = Field(7, gt=0)
    """Cells along each side of the map that is pooled from a proposal."""
    roi_width: int = Field(1024, gt=0)
    """Width of the two fully connected layers that read the pooled map."""
    roi_scale: float = Field(224.0, gt=0)
    """Side in pixels from which on a proposal is pooled at stride 16. Half of it is pooled at stride 8, and so on (FPN, equation 1)."""


def roi_pool(cells: int, strides: Sequence[int], scale: float) -> MultiScaleRoIAlign:
    """Returns the pooling of maps of ``cells`` x ``cells`` from the levels of these strides; ``scale`` is ``roi_scale``."""
    pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], cells, SAMPLING)
    # torchvision infers the scales from the first image that it sees, wrongly if its sides are no multiples of the strides
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])), scale)  # pyright: ignore
    return pool


class FasterRcnn(TwoStageDetector):
    """Faster R-CNN whose second stage predicts a box for each class.

    ``DetectorOutput.boxes`` holds the box of each proposal's best class, and ``TwoStageOutput.class_boxes`` all of them, from which
    ``detections`` are made.
    """

    family = "faster_rcnn"
    config_class = FasterRcnnModelConfig
    config: FasterRcnnModelConfig

    def __init__(self, config: FasterRcnnModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        strides, classes = config.backbone.strides, len(spec.classes)
        self.pool = roi_pool(config.roi_cells, strides, config.roi_scale)
        self.roi_head = TwoMLPHead(config.width * config.roi_cells**2, config.roi_width)
        self.class_head, self.box_head = nn.Linear(config.roi_width, classes + 1), nn.Linear(config.roi_width, 4 * classes)
        self.coder = BoxCoder(BOX_WEIGHTS)

    def read(self, levels: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """See ``TwoStageDetector.read``."""
        features = self.roi_head(self.pooled(levels, rois))
        logits, numbers = self.class_head(features).float(), self.box_head(features).float()
        return logits.view(*rois.shape[:2], -1), numbers.view(*rois.shape[:2], -1, 4)

    def pooled(self, levels: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Returns the map of each proposal ``[B * N, width, roi_cells, roi_cells]``, pooled from the level of its size."""
        return self.pool({str(index): level for index, level in enumerate(levels)}, list(rois), [])

    def decode_boxes(self, numbers: Tensor, rois: Tensor) -> Tensor:
        """See ``TwoStageDetector.decode_boxes``."""
        return self.coder.decode_single(numbers.flatten(2).flatten(0, 1), rois.flatten(0, 1)).view(numbers.shape)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {"class": 1.0, "bbox": 1.0, "objectness": 1.0, "rpn_bbox": 1.0}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``. The sample is that of ``forward``; for an output of inference, anchors are drawn here.

        Returns:
            ``class`` (cross-entropy) and ``bbox`` (smooth L1) of the second stage, each divided by the number of its proposals, and
            ``objectness`` and ``rpn_bbox`` of the first.
        """
        own = two_stage_output(output)
        context = own.context
        assigned = (self.assign(output, targets) if match is None else match)[0].to(own.logits.device)
        counted = assigned > IGNORED
        count = over_processes(counted.sum(), least=1)
        image, candidate, boxes = at_positives(assigned, pixel_boxes(targets.boxes, context.sides))
        label = targets.labels[image, assigned[image, candidate]]
        labels = assigned.new_full(assigned.shape, own.logits.shape[-1] - 1)
        labels[image, candidate] = label
        wanted = self.coder.encode_single(boxes, context.rois[image, candidate])
        box = F.smooth_l1_loss(context.numbers[image, candidate, label], wanted, beta=BETA, reduction="sum")
        anchors = self.rpn.sample(own.first, targets) if context.anchors is None else context.anchors
        return {
            "class": F.cross_entropy(own.logits[0][counted], labels[counted], reduction="sum") / count,
            "bbox": box / count,
            **self.rpn.losses(own.first, anchors, targets),
        }

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``. Boxes are predicted by class, so their layer is made anew as well."""
        device, width, classes = self.class_head.weight.device, self.config.roi_width, len(spec.classes)
        self.class_head, self.box_head = nn.Linear(width, classes + 1).to(device), nn.Linear(width, 4 * classes).to(device)
        self.spec = spec
        return [name for name, _ in self.named_parameters() if name.startswith(("class_head.", "box_head."))]

"""Implements RetinaNet (Lin et al., ICCV 2017) with the anchors, targets and losses of torchvision's ``RetinaNet``."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, sigmoid_focal_loss

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import DenseDetector, at_positives, class_indicator, pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.grid import anchor_grid, flat
from workbench.detectors.iou_matching import matched
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, dense_output
from workbench.detectors.pyramid import CLASS_PRIOR, PyramidConfig, Tower, prediction
from workbench.detectors.whole_batch import images_over_processes

ANCHOR_STRIDES = 4  # side of the smallest anchor of a level, in strides (section 4: 32 to 512 pixels at strides 8 to 128)
POSITIVE_IOU, BACKGROUND_IOU = 0.5, 0.4  # an anchor between the two is ignored (section 4)


class RetinaNetModelConfig(PyramidConfig):
    """Describes the architecture of a RetinaNet that starts from random weights."""

    family: Literal["retinanet"] = "retinanet"
    """Selects the family."""
    extra_from: Literal["backbone", "pyramid", "pool"] = "backbone"
    """How the extra levels are made. Convolutions of stride 2 make the first one of the last level of the ``backbone`` or of the
    ``pyramid``. ``pool`` takes every second cell of the level before, without a weight.
    """
    head_norm: Literal["none", "group", "batch"] = "none"
    """Normalisation behind each convolution of the head: GroupNorm, BatchNorm (with statistics of its own for each level), or none."""
    nms_threshold: float = Field(0.5, gt=0, le=1)
    """IoU above which the worse of two boxes of one class is suppressed."""
    anchor_sizes: tuple[Annotated[float, Field(ge=1)], ...] = ()
    """Side in pixels of the smallest square anchor of each level, one number a level. Empty takes four strides."""
    octave_scales: int = Field(3, gt=0)
    """Number of anchor sizes of a level, each 2^(1/number) times the one before."""
    anchor_ratios: tuple[Annotated[float, Field(gt=0)], ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Heights of anchors divided by their widths. Each size has an anchor of each ratio, all of the same area."""

    @model_validator(mode="after")
    def _anchors(self) -> "RetinaNetModelConfig":
        if self.anchor_sizes and len(self.anchor_sizes) != len(self.strides):
            raise ValueError(f"anchor_sizes has {len(self.anchor_sizes)} numbers, but there are levels of strides {list(self.strides)}")
        smallest = min(float(anchors.abs().min()) for anchors in self.generator().cell_anchors)
        if not smallest:
            raise ValueError("anchor_sizes and anchor_ratios make an anchor without area. Choose larger sizes or ratios nearer to 1")
        return self

    def generator(self) -> AnchorGenerator:
        """Returns torchvision's generator of the anchors of all levels."""
        smallest = self.anchor_sizes or tuple(ANCHOR_STRIDES * stride for stride in self.strides)
        # whole pixels, as torchvision's and Detectron's published anchors have them
        sizes = tuple(tuple(int(size * 2 ** (k / self.octave_scales)) for k in range(self.octave_scales)) for size in smallest)
        return AnchorGenerator(sizes, (self.anchor_ratios,) * len(sizes))  # pyright: ignore[reportArgumentType] - its hint says one tuple


class RetinaNet(DenseDetector):
    """RetinaNet with focal loss and L1 loss on the deltas between anchors and boxes.

    An anchor is positive for the target that it overlaps most, from an IoU of 0.5 on. The anchors that overlap a target more than all
    others do are positive as well. Below 0.4 an anchor is background, and between the two it is ignored.
    """

    family = "retinanet"
    config_class = RetinaNetModelConfig
    config: RetinaNetModelConfig
    uncovered = f"overlap no anchor by an IoU of {POSITIVE_IOU}, so that only their nearest anchors learn them"

    def __init__(self, config: RetinaNetModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        levels = len(config.strides)
        self.generator = config.generator()
        self.shapes = self.generator.num_anchors_per_location()[0]
        self.class_tower, self.box_tower = Tower(config, levels), Tower(config, levels)
        self.class_head = prediction(config.width, self.shapes * len(spec.classes), CLASS_PRIOR)
        self.box_head = prediction(config.width, self.shapes * 4)
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(POSITIVE_IOU, BACKGROUND_IOU, allow_low_quality_matches=True)

    def class_heads(self) -> list[tuple[nn.Module, str, int, float | None]]:
        """See ``DenseDetector.class_heads``."""
        return [(self, "class_head", self.shapes, CLASS_PRIOR)]

    def predict(self, levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        """See ``DenseDetector.predict``. The four numbers are deltas: shift of the centre in sides of the anchor, log of the scale."""
        return tuple(
            HeadMap(stride, self.class_head(self.class_tower(level, index)), self.box_head(self.box_tower(level, index)))
            for index, (stride, level) in enumerate(zip(self.config.strides, levels, strict=True))
        )

    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """See ``DenseDetector.grid``. The candidates are the anchors of all cells."""
        return anchor_grid(self.generator, self.config.strides, sizes, device)

    def decode_boxes(self, numbers: Tensor, grid: Grid) -> Tensor:
        """See ``DenseDetector.decode_boxes``."""
        anchors = grid.anchors.expand(numbers.shape)
        return self.coder.decode_single(numbers.reshape(-1, 4), anchors.reshape(-1, 4)).view(numbers.shape)

    def positives(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """See ``DenseDetector.positives``. Anchors of the padding do not compete for a target."""
        assert output.valid is not None
        anchors = output.grid.anchors.expand(len(boxes), -1, -1)
        return matched(self.matcher, anchors, output.valid, boxes, targets.valid)

    def covered_by(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """See ``DenseDetector.covered_by``. The anchors that are positive only because no other is nearer do not count."""
        overlap = torch.stack([box_iou(own, output.grid.anchors) for own in boxes])
        assert output.valid is not None
        return overlap.masked_fill(~output.valid[:, None], 0.0).amax(-1) >= POSITIVE_IOU

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {"class": 1.0, "bbox": 1.0}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            ``class`` (focal loss) and ``bbox`` (L1 loss of the deltas), each divided by the positives of its image and averaged over
            images.
        """
        dense = dense_output(output)
        assigned = (self.assign(output, targets) if match is None else match)[0].to(output.logits.device)
        positives = (assigned >= 0).sum(1).clamp(min=1)
        images = images_over_processes(len(assigned), assigned.device)
        logits = dense.logits[0]
        focal = sigmoid_focal_loss(logits, class_indicator(logits, assigned, targets.labels), reduction="none").sum(-1)
        image, candidate, boxes = at_positives(assigned, pixel_boxes(targets.boxes, dense.sides))
        wanted = self.coder.encode_single(boxes, dense.grid.anchors[candidate])
        numbers = flat([level.boxes for level in dense.maps], 4)[image, candidate].float()
        return {
            "class": ((focal * (assigned > -2)).sum(1) / positives).sum() / images,
            "bbox": ((numbers - wanted).abs().sum(-1) / positives[image]).sum() / images,
        }

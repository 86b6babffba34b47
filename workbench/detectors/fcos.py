"""Implements FCOS (Tian et al., ICCV 2019; the improvements of TPAMI 2020) with the targets and losses of torchvision's ``FCOS``."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from workbench.datasets.targets import TargetBatch
from workbench.detectors.dense_detector import BACKGROUND, DenseDetector, at_positives, class_indicator, pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.grid import flat, point_grid
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, dense_output
from workbench.detectors.pyramid import CLASS_PRIOR, PyramidConfig, Tower, prediction
from workbench.detectors.whole_batch import over_processes

SCALE = 4  # a level finds targets whose farthest edge is 4 to 8 strides away (section 3.2: 64, 128, 256, 512 pixels at strides 8 to 128)


class FcosModelConfig(PyramidConfig):
    """Describes the architecture of an FCOS that starts from random weights."""

    family: Literal["fcos"] = "fcos"
    """Selects the family."""
    radius: float = Field(1.5, gt=0)
    """Half the side, in strides, of the square around a target's centre whose points are positive."""
    giou_weight: float = Field(1.0, gt=0)
    """Weight of the box loss. 2 is common where boxes are small."""


class Fcos(DenseDetector):
    """FCOS with centre sampling, GIoU loss and centreness beside the boxes.

    A point is positive for the smallest target in which it lies, at most ``radius`` strides from the centre, and of the level's range of
    sizes. Scores are the geometric mean of class probability and centreness.
    """

    family = "fcos"
    config_class = FcosModelConfig
    config: FcosModelConfig

    def __init__(self, config: FcosModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        levels = len(config.strides)
        self.class_tower, self.box_tower = Tower(config, levels), Tower(config, levels)
        self.class_head = prediction(config.width, len(spec.classes), CLASS_PRIOR)
        self.box_head, self.centreness_head = prediction(config.width, 4), prediction(config.width, 1)

    def class_heads(self) -> list[tuple[nn.Module, str, int, float | None]]:
        """See ``DenseDetector.class_heads``."""
        return [(self, "class_head", 1, CLASS_PRIOR)]

    def predict(self, levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        """See ``DenseDetector.predict``. The four numbers are the distances to the edges, in strides and not negative."""
        maps: list[HeadMap] = []
        for index, (stride, level) in enumerate(zip(self.config.strides, levels, strict=True)):
            near = self.box_tower(level, index)
            logits = self.class_head(self.class_tower(level, index))
            maps.append(HeadMap(stride, logits, F.relu(self.box_head(near)), self.centreness_head(near)))
        return tuple(maps)

    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """See ``DenseDetector.grid``. The candidates are the centres of the cells."""
        return point_grid(self.config.strides, sizes, device)

    def decode_boxes(self, numbers: Tensor, grid: Grid) -> Tensor:
        """See ``DenseDetector.decode_boxes``."""
        return boxes_around(grid.centres, numbers * grid.stride[:, None])

    def positives(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """See ``DenseDetector.positives``."""
        return centre_assignment(output.grid, boxes, targets.valid, self.config.radius)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {"class": 1.0, "giou": self.config.giou_weight, "centreness": 1.0}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            ``class`` (focal loss), ``giou`` and ``centreness`` (cross-entropy), each divided by the number of positives.
        """
        dense = dense_output(output)
        assigned = (self.assign(output, targets) if match is None else match)[0].to(output.logits.device)
        count = over_processes((assigned >= 0).sum(), least=1)
        logits = dense.logits[0]
        counted = (assigned > -2)[..., None]
        focal = sigmoid_focal_loss(logits, class_indicator(logits, assigned, targets.labels), reduction="none")
        image, candidate, boxes = at_positives(assigned, pixel_boxes(targets.boxes, dense.sides))
        points, strides = dense.grid.centres[candidate], dense.grid.stride[candidate][:, None]
        numbers = flat([level.boxes for level in dense.maps], 4)[image, candidate].float()
        giou = generalized_box_iou_loss(boxes_around(points, numbers * strides), boxes, reduction="sum")
        assert dense.quality is not None
        centreness = F.binary_cross_entropy_with_logits(
            dense.quality[0, image, candidate], centreness_of(distances_to(points, boxes)), reduction="sum"
        )
        return {"class": (focal * counted).sum() / count, "giou": giou / count, "centreness": centreness / count}


def boxes_around(points: Tensor, distances: Tensor) -> Tensor:
    """Returns xyxy boxes of points ``[..., 2]`` and the distances to the left, top, right and bottom edge ``[..., 4]``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def distances_to(points: Tensor, boxes: Tensor) -> Tensor:
    """Returns the distances of points ``[..., 2]`` to the left, top, right and bottom edge of xyxy boxes ``[..., 4]``."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def centreness_of(distances: Tensor) -> Tensor:
    """Returns the root of min/max of the horizontal distances times that of the vertical ones (FCOS, equation 3)."""
    across, down = distances[..., 0::2], distances[..., 1::2]
    return ((across.amin(-1) / across.amax(-1)) * (down.amin(-1) / down.amax(-1))).sqrt()


def centre_assignment(grid: Grid, boxes: Tensor, valid: Tensor, radius: float) -> Tensor:
    """Returns the target of each point ``[B, N]``, -1 for background: the smallest that it may find.

    Args:
        grid: the points.
        boxes: ``[B, G, 4]`` xyxy in input pixels.
        valid: ``[B, G]`` bool, targets that may be assigned.
        radius: half the side, in strides, of the square around a target's centre.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid.cell)), BACKGROUND, device=boxes.device)
    points, stride = grid.centres[:, None], grid.stride[:, None]
    distances = distances_to(points, boxes[:, None])
    centres = (boxes[..., :2] + boxes[..., 2:])[:, None] / 2
    near = (points - centres).abs().amax(-1) < radius * stride
    farthest = distances.amax(-1)
    lower = (SCALE * stride).masked_fill(grid.level[:, None] == 0, 0.0)
    upper = (2 * SCALE * stride).masked_fill(grid.level[:, None] == len(grid.strides) - 1, torch.inf)
    finds = near & (distances.amin(-1) > 0) & (farthest > lower) & (farthest < upper) & valid[:, None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[:, None].expand(finds.shape)
    smallest, target = area.masked_fill(~finds, torch.inf).min(-1)
    return target.masked_fill(smallest.isinf(), BACKGROUND)

"""Implements GFL (Li et al., NeurIPS 2020, "Generalized Focal Loss"): class scores that say how good a box is, edges as distributions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from workbench.boxes import iou_and_giou
from workbench.datasets.targets import TargetBatch
from workbench.detectors.atss import atss_assignment
from workbench.detectors.dense_detector import IGNORED, DenseDetector, at_positives, pixel_boxes
from workbench.detectors.detector import InputSpec
from workbench.detectors.fcos import boxes_around, distances_to
from workbench.detectors.grid import point_grid
from workbench.detectors.output import DenseOutput, DetectorOutput, Grid, HeadMap, dense_output
from workbench.detectors.pyramid import CLASS_PRIOR, PyramidConfig, Tower, prediction
from workbench.detectors.whole_batch import over_processes

QUALITY_BETA = 2.0
BELOW_LAST = 0.1  # bins that the true distance of an edge stays below the last one, as in the released code
LEAST_WEIGHT = 1e-6  # of all positives together, so that a batch without one has no box loss


class GflModelConfig(PyramidConfig):
    """Describes the architecture of a GFL that starts from random weights."""

    family: Literal["gfl"] = "gfl"
    """Selects the family."""
    reg_max: int = Field(16, ge=1)
    """Largest distance of an edge from its anchor's centre, in strides. A distribution has one bin for each whole stride from 0."""
    anchor_scale: float = Field(8.0, gt=0)
    """Side of a cell's square anchor, in strides."""


class Gfl(DenseDetector):
    """GFL with ATSS assignment, quality focal loss, distribution focal loss and GIoU loss.

    A cell has one anchor, centred at its first pixel, which only decides the assignment. Each edge is the expectation of a distribution
    over its distance from that centre. A class score is trained towards the IoU of the box with its target, so scores need no centreness.
    """

    family = "gfl"
    config_class = GflModelConfig
    config: GflModelConfig
    provides = DenseDetector.provides | {"box_distribution"}

    def __init__(self, config: GflModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        levels = len(config.strides)
        self.numbers = 4 * (config.reg_max + 1)
        self.class_tower, self.box_tower = Tower(config, levels), Tower(config, levels)
        self.class_head = prediction(config.width, len(spec.classes), CLASS_PRIOR)
        self.box_head = prediction(config.width, self.numbers)
        self.scales = nn.Parameter(torch.ones(levels))

    def class_heads(self) -> list[tuple[nn.Module, str, int, float | None]]:
        """See ``DenseDetector.class_heads``."""
        return [(self, "class_head", 1, CLASS_PRIOR)]

    def predict(self, levels: Sequence[Tensor]) -> tuple[HeadMap, ...]:
        """See ``DenseDetector.predict``. The numbers are the bins' logits of the left, top, right and bottom edge."""
        maps: list[HeadMap] = []
        for index, (stride, level) in enumerate(zip(self.config.strides, levels, strict=True)):
            numbers = self.box_head(self.box_tower(level, index)) * self.scales[index]
            maps.append(HeadMap(stride, self.class_head(self.class_tower(level, index)), numbers))
        return tuple(maps)

    def grid(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Grid:
        """See ``DenseDetector.grid``. The candidates are square anchors."""
        points = point_grid(self.config.strides, sizes, device, place=0.0)
        half = points.stride[:, None] * self.config.anchor_scale / 2
        return replace(points, anchors=torch.cat([points.centres - half, points.centres + half], -1))

    def decode_boxes(self, numbers: Tensor, grid: Grid) -> Tensor:
        """See ``DenseDetector.decode_boxes``."""
        return boxes_around(grid.centres, expected_distances(numbers.unflatten(-1, (4, -1))) * grid.stride[:, None])

    def more_output(self, numbers: Tensor, grid: Grid, sides: Tensor) -> dict[str, Any]:
        """See ``DenseDetector.more_output``. The distributions are over distances from the centre of the anchor, in strides."""
        return {"box_distribution": numbers.unflatten(-1, (4, -1))[None]}

    def positives(self, output: DenseOutput, boxes: Tensor, targets: TargetBatch) -> Tensor:
        """See ``DenseDetector.positives``."""
        assert output.valid is not None
        return atss_assignment(output.grid, output.valid, boxes, targets.valid)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``."""
        return {"class": 1.0, "giou": 2.0, "dfl": 0.25}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``.

        Returns:
            ``class`` (quality focal loss) is divided by the number of positives. ``giou`` and ``dfl`` (distribution focal loss, averaged
            over edges) weigh each positive by its highest class probability and are divided by the sum of these weights.
        """
        dense = dense_output(output)
        assert dense.box_distribution is not None
        assigned = (self.assign(output, targets) if match is None else match)[0].to(output.logits.device)
        logits = dense.logits[0]
        image, candidate, boxes = at_positives(assigned, pixel_boxes(targets.boxes, dense.sides))
        points, strides = dense.grid.centres[candidate], dense.grid.stride[candidate][:, None]
        distribution = dense.box_distribution[0, image, candidate]
        iou, giou = iou_and_giou(boxes_around(points, expected_distances(distribution) * strides), boxes)
        distances = (distances_to(points, boxes) / strides).clamp(0, self.config.reg_max - BELOW_LAST)
        quality = torch.zeros_like(logits)
        quality[image, candidate, targets.labels[image, assigned[image, candidate]]] = iou.detach()
        weight = logits[image, candidate].detach().sigmoid().amax(-1)
        count = over_processes((assigned >= 0).sum(), least=1)
        whole = over_processes(weight.sum(), least=LEAST_WEIGHT)
        return {
            "class": (quality_focal_loss(logits, quality) * (assigned > IGNORED)[..., None]).sum() / count,
            "giou": ((1 - giou) * weight).sum() / whole,
            "dfl": (distribution_focal_loss(distribution, distances).mean(-1) * weight).sum() / whole,
        }


def expected_distances(distribution: Tensor) -> Tensor:
    """Returns the expectation ``[...]``, in bins, of distributions given as logits ``[..., bins]`` (equation 4)."""
    return distribution.softmax(-1) @ torch.arange(distribution.shape[-1], dtype=distribution.dtype, device=distribution.device)


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Returns |q - p|^2 times the binary cross-entropy of p with q (equation 5); both are ``[...]``, and q is 0 away from positives."""
    return (quality - logits.sigmoid()).abs() ** QUALITY_BETA * F.binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(distribution: Tensor, distances: Tensor) -> Tensor:
    """Returns the cross-entropy with the two bins around a distance, each weighted by how near it is (equation 6), ``[...]``.

    Args:
        distribution: ``[..., bins]`` logits.
        distances: ``[...]`` in bins, at least 0 and below the last.
    """
    low = distances.long()
    share = distances - low
    found = distribution.log_softmax(-1).gather(-1, torch.stack([low, low + 1], -1))
    return -((1 - share) * found[..., 0] + share * found[..., 1])

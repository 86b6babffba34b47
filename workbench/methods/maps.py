"""Holds what the methods that compare feature maps level by level share."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.methods.context import Pairing
from workbench.methods.levels import Adaptor, Compared, Feature, compared_levels, feature_needs, levels_of, paired_levels
from workbench.methods.method import BaseMethodConfig, Method


class MapConfig(BaseMethodConfig, frozen=True):
    """Holds the fields of a method that compares feature maps.

    The published methods compare the feature pyramid that the detection head reads. In a DETR the decoder reads the memory instead.
    """

    feature: Feature = "auto"
    """Which feature maps are compared. ``memory`` is the encoder's output. ``neck`` is a feature pyramid, or in a DETR the backbone's
    levels projected to its width. ``backbone`` is the backbone's own output. ``head`` is what the prediction head reads: the memory of a
    DETR, the feature pyramid of a detector without an encoder. ``auto`` takes the memory where both detectors have one, the neck where both
    or neither have queries, and ``head`` otherwise.
    """

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({feature_needs(self.feature)})

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``. No class score is read."""
        return False


@dataclass(frozen=True)
class MapPair:
    """One level of student and teacher, float32, 0 where the cell is padding.

    Attributes:
        student: ``[B, D, H, W]`` in the teacher's width.
        teacher: ``[B, D, H, W]``.
        inside: ``[B, 1, H, W]`` bool, False for padding.
        stride: Input pixels per cell.
    """

    student: Tensor
    teacher: Tensor
    inside: Tensor
    stride: int

    @property
    def cells(self) -> Tensor:
        """Returns ``[B]``, the number of cells that are not padding."""
        return self.inside.sum((1, 2, 3))


class MapMethod(Method):
    """A method on feature maps. Levels are paired by stride, and an adaptor equalises their widths.

    Attributes:
        compared: Kind, strides and widths of the levels.
        widths: Channels of the teacher's level at each stride that both have.
    """

    def __init__(self, config: MapConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.compared = self.compare(config.feature, student, teacher)
        other = self.compared.teacher
        self.widths = {stride: other[stride] for stride in self.compared.student if stride in other}
        self.adaptor = self.make_adaptor()

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Method.notes``."""
        return (f"{self.name} compares {self.compared.text()}",)

    def compare(self, feature: Feature, student: Detector, teacher: Detector) -> Compared:
        """Returns the levels that are compared, through a 1x1 convolution where widths differ."""
        return compared_levels(self.name, feature, student, teacher)

    def make_adaptor(self) -> torch.nn.Module:
        """Builds the module that maps a student level to the teacher's width."""
        return Adaptor(self.compared)

    def map_pairs(self, student: DetectorOutput, teacher: DetectorOutput) -> list[MapPair]:
        """Returns the levels that both have."""
        pairs: list[MapPair] = []
        for own, other in paired_levels(levels_of(student, self.compared.feature), levels_of(teacher, self.compared.feature)):
            outside = own.padding[:, None]
            # before and after the adaptor: values of padded cells must not reach others through a kernel, and no bias may remain in them
            adapted = self.adaptor(replace(own, features=own.features.masked_fill(outside, 0.0))).float().masked_fill(outside, 0.0)
            pairs.append(MapPair(adapted, other.features.detach().float().masked_fill(outside, 0.0), ~outside, own.stride))
        return pairs


def boxes_in_cells(targets: TargetBatch, inside: Tensor) -> Tensor:
    """Returns target boxes ``[B, G, 4]`` as xyxy in cells of a level. Boxes are relative to the un-padded image, so to the cells inside.

    Args:
        targets: targets of the B images.
        inside: ``[B, 1, H, W]`` bool.
    """
    height, width = inside[:, 0].any(2).sum(1), inside[:, 0].any(1).sum(1)
    size = torch.stack([width, height], -1)[:, None].to(targets.boxes.dtype)
    centre, half = targets.boxes[..., :2] * size, targets.boxes[..., 2:] * size / 2
    return torch.cat([centre - half, centre + half], -1)

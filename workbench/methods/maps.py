"""What the methods that compare feature maps level by level share."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.errors import IncompatibleError
from workbench.methods.context import Pairing
from workbench.methods.levels import Adaptor, Feature, Resolved, feature_needs, levels_of, paired_levels, resolve_feature
from workbench.methods.method import BaseMethodConfig, Method


class MapConfig(BaseMethodConfig, frozen=True):
    """Holds the fields of a method that compares feature maps.

    The published methods compare the feature pyramid that the detection head reads; in a DETR the decoder reads the memory.
    """

    feature: Feature = "auto"
    """Which feature maps are compared. ``memory`` is the encoder's output, ``neck`` is the backbone's levels projected to the detector's
    width, and ``backbone`` is the backbone's own output; ``auto`` takes the memory where both detectors have one, else the neck.
    """

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({feature_needs(self.feature)})

    @property
    def needs_all_classes(self) -> bool:
        """See ``BaseMethodConfig``; no class score is read."""
        return False


@dataclass(frozen=True)
class MapPair:
    """One level of both, float32, 0 where the cell is padding.

    Attributes:
        student: ``[B, D, H, W]`` in the teacher's width.
        teacher: ``[B, D, H, W]``.
        inside: ``[B, 1, H, W]`` bool, False = padding.
        stride: input pixels per cell.
    """

    student: Tensor
    teacher: Tensor
    inside: Tensor
    stride: int

    @property
    def cells(self) -> Tensor:
        """``[B]`` cells that are no padding."""
        return self.inside.sum((1, 2, 3))


class MapMethod(Method):
    """A method on feature maps: levels pair by stride, widths meet in an adaptor.

    Attributes:
        feature: memory, neck or backbone.
        widths: channels of the teacher's level at each stride that both have.
    """

    def __init__(self, config: MapConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.feature: Resolved = resolve_feature(config.feature, student, teacher)
        own, other = student.level_channels(self.feature), teacher.level_channels(self.feature)
        self.widths = {stride: other[stride] for stride in own if stride in other}
        if not self.widths:
            raise IncompatibleError(
                f"method '{self.name}': {self.feature} levels of the student ({student.family}) have strides "
                f"{sorted(own)}, the teacher's ({teacher.family}) {sorted(other)}: none in common."
            )
        self.adaptor = self.make_adaptor(student, teacher)

    def make_adaptor(self, student: Detector, teacher: Detector) -> torch.nn.Module:
        """Takes a student level into the teacher's width; a 1x1 convolution where widths differ."""
        return Adaptor(student, teacher, self.feature)

    def map_pairs(self, student: DetectorOutput, teacher: DetectorOutput) -> list[MapPair]:
        """Levels that both have."""
        pairs: list[MapPair] = []
        for own, other in paired_levels(levels_of(student, self.feature), levels_of(teacher, self.feature)):
            outside = own.padding[:, None]
            # before and after the adaptor: what padded cells hold must not reach others through a kernel, nor a bias stay in them
            adapted = self.adaptor(replace(own, features=own.features.masked_fill(outside, 0.0))).float().masked_fill(outside, 0.0)
            pairs.append(MapPair(adapted, other.features.detach().float().masked_fill(outside, 0.0), ~outside, own.stride))
        return pairs


def boxes_in_cells(targets: TargetBatch, inside: Tensor) -> Tensor:
    """Target boxes ``[B, G, 4]`` xyxy in cells of a level; boxes are relative to the un-padded image, so to the cells inside.

    Args:
        targets: of the B images.
        inside: ``[B, 1, H, W]`` bool.
    """
    height, width = inside[:, 0].any(2).sum(1), inside[:, 0].any(1).sum(1)
    size = torch.stack([width, height], -1)[:, None].to(targets.boxes.dtype)
    centre, half = targets.boxes[..., :2] * size, targets.boxes[..., 2:] * size / 2
    return torch.cat([centre - half, centre + half], -1)

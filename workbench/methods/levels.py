"""Pairs the feature levels of student and teacher: which kind, which level with which, and the adaptor between widths."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.errors import IncompatibleError

Feature = Literal["auto", "head", "memory", "neck", "backbone"]
Resolved = Literal["head", "memory", "neck", "backbone"]


def feature_needs(feature: Feature) -> str:
    """Returns the need that a choice of feature implies; ``auto`` works for every pair."""
    return "memory|neck|head" if feature == "auto" else feature


def resolve_feature(feature: Feature, student: Detector, teacher: Detector) -> Resolved:
    """Returns the kind of level at which a checked pair is compared.

    ``auto`` is the memory if both detectors have one. Otherwise it is the neck of two detectors of one kind, with queries or without, and
    the levels that the head reads for two of different kinds.
    """
    if feature != "auto":
        return feature
    if "memory" in student.provides & teacher.provides:
        return "memory"
    return "neck" if ("queries" in student.provides) == ("queries" in teacher.provides) else "head"


def levels_of(output: DetectorOutput, feature: Resolved) -> tuple[Level, ...]:
    """Returns the levels of one kind."""
    return {"head": output.head, "memory": output.memory, "neck": output.neck, "backbone": output.backbone}[feature]


def paired_levels(student: tuple[Level, ...], teacher: tuple[Level, ...]) -> list[tuple[Level, Level]]:
    """Returns the pairs of levels with the same stride and shape.

    Raises:
        IncompatibleError: no stride is shared, or the shapes at a shared stride differ.
    """
    by_stride = {level.stride: level for level in teacher}
    pairs = [(level, by_stride[level.stride]) for level in student if level.stride in by_stride]
    if not pairs:
        raise IncompatibleError(
            f"the student's levels have strides {[v.stride for v in student]} and the teacher's have {sorted(by_stride)}. Levels pair by "
            "stride, and these share none."
        )
    for s, t in pairs:
        if s.features.shape[-2:] != t.features.shape[-2:]:
            raise IncompatibleError(
                f"at stride {s.stride} the student's level has height and width {tuple(s.features.shape[-2:])}, but the teacher's has "
                f"{tuple(t.features.shape[-2:])}."
            )
    return pairs


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution computed as a matrix product, which is faster on maps as small as an encoder's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Adaptor(nn.Module):
    """Maps student features to the teacher's width: the identity where widths are equal, else a 1x1 convolution per stride.

    Args:
        student: detector whose levels are adapted.
        teacher: detector whose width they get. Strides that only one side has are not adapted.
        feature: kind of level, resolved.
        always: True uses a convolution even where widths are equal.
    """

    def __init__(self, student: Detector, teacher: Detector, feature: Resolved, always: bool = False):
        super().__init__()
        wanted = teacher.level_channels(feature)
        self.convolutions = nn.ModuleDict({
            str(stride): _Pointwise(width, wanted[stride], 1)
            for stride, width in student.level_channels(feature).items()
            if stride in wanted and (always or width != wanted[stride])
        })  # fmt: skip

    def forward(self, level: Level) -> Tensor:
        """Maps a student level ``[B, D_S, H, W]`` to ``[B, D_T, H, W]``."""
        key = str(level.stride)
        return self.convolutions[key](level.features) if key in self.convolutions else level.features

"""Feature levels of a pair: which kind, which of the student's with which of the teacher's, and the adaptor between widths."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.errors import IncompatibleError

Feature = Literal["auto", "memory", "neck", "backbone"]
Resolved = Literal["memory", "neck", "backbone"]


def feature_needs(feature: Feature) -> str:
    """The choice as a need: ``auto`` is memory where both have it, else neck."""
    return "memory|neck" if feature == "auto" else feature


def resolve_feature(feature: Feature, student: Detector, teacher: Detector) -> Resolved:
    """The kind of level that a checked pair is compared at."""
    if feature != "auto":
        return feature
    return "memory" if "memory" in student.provides & teacher.provides else "neck"


def levels_of(output: DetectorOutput, feature: Resolved) -> tuple[Level, ...]:
    """Levels of one kind."""
    return {"memory": output.memory, "neck": output.neck, "backbone": output.backbone}[feature]


def paired_levels(student: tuple[Level, ...], teacher: tuple[Level, ...]) -> list[tuple[Level, Level]]:
    """Levels of the same stride and shape.

    Raises:
        IncompatibleError: no stride is shared, or shapes differ at one that is.
    """
    by_stride = {level.stride: level for level in teacher}
    pairs = [(level, by_stride[level.stride]) for level in student if level.stride in by_stride]
    if not pairs:
        raise IncompatibleError(
            f"student levels have strides {[v.stride for v in student]}, the teacher's {sorted(by_stride)}: none in common."
        )
    for s, t in pairs:
        if s.features.shape[-2:] != t.features.shape[-2:]:
            raise IncompatibleError(
                f"at stride {s.stride} the student's level is {tuple(s.features.shape[-2:])}, the teacher's {tuple(t.features.shape[-2:])}."
            )
    return pairs


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution as the product of matrices that it is: faster on maps as small as an encoder's."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Adaptor(nn.Module):
    """Student features in the teacher's width: nothing where widths are equal, else a 1x1 convolution per stride.

    Args:
        student: whose levels are adapted.
        teacher: whose width they get; strides that only one side has are not adapted.
        feature: resolved.
        always: a convolution even where widths are equal.
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
        """``[B, D_T, H, W]`` of a student level ``[B, D_S, H, W]``."""
        key = str(level.stride)
        return self.convolutions[key](level.features) if key in self.convolutions else level.features

"""Pairs the feature levels of student and teacher: which kind, which level with which, and the adaptor between widths."""

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Compared:
    """The levels that a method compares, as it says before training.

    Attributes:
        feature: Kind of level.
        student: Channels of the student's levels of this kind, by stride.
        teacher: Channels of the teacher's.
        kernel: Side of the convolution between unequal widths.
        always: True if there is a convolution even between equal widths.
    """

    feature: Resolved
    student: dict[int, int]
    teacher: dict[int, int]
    kernel: int = 1
    always: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Returns the strides that both have, ascending."""
        return tuple(sorted(set(self.student) & set(self.teacher)))

    def text(self) -> str:
        """Returns one line, such as ``head levels of strides 8, 16 (student 64 channels to the teacher's 256 by a 1x1 convolution)``."""
        own, other = ([widths[stride] for stride in self.strides] for widths in (self.student, self.teacher))
        by = f"a {self.kernel}x{self.kernel} convolution" + ("" if len(self.strides) == 1 else " each")
        if own != other:
            widths = f"student {_each(own)} channels to the teacher's {_each(other)} by {by}"
        else:
            widths = f"{_each(own)} channels on both sides" + (f" and {by}" if self.always else "")
        alone = [
            f"stride{'' if len(left) == 1 else 's'} {_listed(left)} of the {side} alone"
            for side, left in (("student", set(self.student) - set(self.teacher)), ("teacher", set(self.teacher) - set(self.student)))
            if left
        ]
        levels = f"{self.feature} level{'' if len(self.strides) == 1 else 's'} of stride{'' if len(self.strides) == 1 else 's'}"
        return f"{levels} {_listed(self.strides)} ({'; '.join([widths, *alone])})"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers))


def _each(widths: list[int]) -> str:
    """Returns one number if all levels have it, else that of each level."""
    return str(widths[0]) if len(set(widths)) == 1 else ", ".join(str(width) for width in widths)


def compared_levels(
    method: str, feature: Feature, student: Detector, teacher: Detector, *, kernel: int = 1, always: bool = False
) -> Compared:
    """Returns the levels that a checked pair is compared at.

    Args:
        method: name of the method, for the error.
        feature: choice of the recipe.
        student: detector whose levels learn.
        teacher: detector whose levels teach.
        kernel: see ``Compared``.
        always: see ``Compared``.

    Raises:
        IncompatibleError: the two share no stride.
    """
    kind = resolve_feature(feature, student, teacher)
    found = Compared(kind, student.level_channels(kind), teacher.level_channels(kind), kernel, always)
    if not found.strides:
        raise IncompatibleError(
            f"method '{method}': the student's {kind} levels ({student.family}) have strides {sorted(found.student)} and the "
            f"teacher's ({teacher.family}) have {sorted(found.teacher)}. Levels pair by stride, and these share none. "
            "Choose another 'feature:'."
        )
    return found


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
        compared: levels of both. Strides that only one side has are not adapted.
    """

    def __init__(self, compared: Compared):
        super().__init__()
        own, wanted = compared.student, compared.teacher
        self.convolutions = nn.ModuleDict({
            str(stride): _Pointwise(width, wanted[stride], 1)
            for stride, width in own.items()
            if stride in wanted and (compared.always or width != wanted[stride])
        })  # fmt: skip

    def forward(self, level: Level) -> Tensor:
        """Maps a student level ``[B, D_S, H, W]`` to ``[B, D_T, H, W]``."""
        key = str(level.stride)
        return self.convolutions[key](level.features) if key in self.convolutions else level.features

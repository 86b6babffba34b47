"""Implements the distances of DetKDS, as released and corrected, and computes the loss of a formula.

As released, ``cos`` is a similarity, so that minimising it drives the student away; ``kl`` takes both sides after the same transformation,
so that one of them is no probability or no logarithm; ``cor`` is a logarithm without a lower bound. Corrected, every distance is 0 or
larger and smallest where student and teacher are equal.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from workbench.boxes import iou_and_giou
from workbench.methods.detkds.genotype import Distance, Genotype, Mode, Third
from workbench.methods.detkds.knowledge import TINY, Knowledge, count, inverse_norm, log_softmax, total_mean
from workbench.methods.detkds.operations import THIRD, axes_of, beginning
from workbench.methods.detkds.ssim import ssim

ROUNDING = 1e-6
COR_POWER = 2.02  # (c - 1)^2 to the power of 1.01, as released
# axis of the distribution that each third transformation names; the others, and all at rank 2 that name HW, stand for C
_NAMED_AXIS = {
    "norm_HW": "HW", "softmax_HW": "HW", "logsoftmax_HW": "HW", "channel": "HW", "norm_N": "N", "softmax_N": "N", "logsoftmax_N": "N",
}  # fmt: skip
_LOGARITHMS: Mapping[Third, Third] = {
    "softmax_N": "logsoftmax_N", "softmax_C": "logsoftmax_C", "softmax_HW": "logsoftmax_HW", "logsoftmax_N": "logsoftmax_N",
    "logsoftmax_C": "logsoftmax_C", "logsoftmax_HW": "logsoftmax_HW",
}  # fmt: skip


def formula_loss(
    genotype: Genotype,
    student: Knowledge,
    teacher: Knowledge,
    mode: Mode,
    seed: int = 0,
    weight: Tensor | None = None,
    tied: bool | None = None,
) -> Tensor:
    """Computes the loss of a formula.

    Args:
        genotype: the formula.
        student: values with gradient, of the teacher's shape and with its mask.
        teacher: values without gradient.
        mode: ``official`` computes the released distances. Its ``Knowledge`` has no mask.
        seed: seed of random masks.
        weight: ``[N]``, weights of the first axis; corrected mode alone.
        tied: hide the same cells of both sides; None does in corrected mode and draws a mask for each side in official mode.
    """
    own = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(seed) if (mode == "corrected" if tied is None else tied) else own
    third = THIRD[genotype.t3]
    begun = beginning(genotype, student, mode, own)
    with torch.no_grad():
        wanted = beginning(genotype, teacher, mode, other)
    if mode == "official":
        with torch.no_grad():
            taught = third(wanted).values
        return RELEASED[genotype.distance](third(begun).values, taught).mean()
    if genotype.distance == "kl":
        return _divergence(genotype, begun, wanted, weight)
    with torch.no_grad():
        taught = third(wanted)
    return CORRECTED[genotype.distance](third(begun), taught, weight)


def pearson_released(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns one minus Pearson's correlation along the second axis, with 1e-8 beside the product of the norms."""
    own, other = (values - values.mean(1, keepdim=True) for values in (student, teacher))
    return 1 - (own * other).sum(1) / (own.norm(dim=1) * other.norm(dim=1) + 1e-8)


def correlation_released(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns log2 of the summed differences of every entry's correlation over the batch from 1."""
    own, other = ((values - values.mean(0)) / values.std(0) for values in (student, teacher))
    correlation = (own * other).flatten(1).sum(0) / len(own)
    return torch.log2((correlation - 1).abs().pow(COR_POWER).sum())


RELEASED: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": lambda student, teacher: F.l1_loss(student, teacher, reduction="none"),
    "l2": lambda student, teacher: F.mse_loss(student, teacher, reduction="none"),
    "kl": lambda student, teacher: F.kl_div(student, teacher, reduction="none"),
    "smooth_l1": lambda student, teacher: F.smooth_l1_loss(student, teacher, reduction="none"),
    "cos": lambda student, teacher: F.cosine_similarity(student, teacher, dim=1),
    "pear": pearson_released,
    "cor": correlation_released,
}


def _elementwise(name: Distance) -> Callable[[Knowledge, Knowledge, Tensor | None], Tensor]:
    def distance(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
        return total_mean(RELEASED[name](student.values, teacher.values), student.inside, weight)

    return distance


def _reduced(knowledge: Knowledge, axis: int) -> Tensor | None:
    """Returns the mask of what is left when an axis has been summed over."""
    return None if knowledge.inside is None else knowledge.inside.any(axis, keepdim=True)


class _Correlation(Function):
    """The cosine along an axis, of centred values or as they are, in fewer passes over memory than operations on all values take."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, inside: Tensor | None, cells: Tensor | int, axis: int, centred: bool) -> Tensor:
        units: list[Tensor] = []
        scales: list[Tensor] = []
        for side in (student, teacher):
            made, least = side.clone(), TINY
            if centred:
                made.sub_(side.sum(axis, keepdim=True) / cells)
                if inside is not None:
                    made.masked_fill_(~inside, 0.0)
                # what rounding leaves of a constant vector is no direction
                least = ROUNDING * torch.linalg.vector_norm(side, dim=axis, keepdim=True) + TINY
            scales.append(inverse_norm(made, (axis,), least))
            units.append(made.mul_(scales[-1]))
        cosine = torch.linalg.vecdot(*units, dim=axis).unsqueeze(axis)
        ctx.save_for_backward(*units, scales[0], cosine)
        return cosine

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        own, other, scale, cosine = ctx.saved_tensors
        slope = slopes[0] * scale
        # both units are centred and 0 under the mask, so that their difference is too
        return (other * slope).addcmul_(own, slope * cosine, value=-1), None, None, None, None, None


def _correlation(student: Knowledge, teacher: Knowledge, axis: int, centred: bool) -> Tensor:
    """Returns the cosine of student and teacher along an axis, or Pearson's correlation; 0 beside a vector of zeros."""
    # norms without a constant beside them: with one, a longer student would be nearer
    found = _Correlation.apply(student.values, teacher.values, student.inside, count(student, (axis,)), axis, centred)
    return cast(Tensor, found)


def cosine(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
    """Returns one minus the cosine along the second axis (``cos``)."""
    return total_mean(1 - _correlation(student, teacher, 1, centred=False), _reduced(student, 1), weight)


def pearson(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
    """Returns one minus Pearson's correlation along the second axis (``pear``)."""
    return total_mean(1 - _correlation(student, teacher, 1, centred=True), _reduced(student, 1), weight)


def batch_correlation(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
    """Returns one minus Pearson's correlation along the first axis, to the power of 2.02 (``cor``)."""
    missing = (1 - _correlation(student, teacher, 0, centred=True)).clamp(min=0)
    return total_mean(missing.pow(COR_POWER), _reduced(student, 0))


def _overlap(place: int) -> Callable[[Knowledge, Knowledge, Tensor | None], Tensor]:
    def distance(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
        return total_mean(1 - iou_and_giou(student.values, teacher.values)[place], None, weight)

    return distance


CORRECTED: Mapping[Distance, Callable[[Knowledge, Knowledge, Tensor | None], Tensor]] = {
    "l1": _elementwise("l1"),
    "l2": _elementwise("l2"),
    "smooth_l1": _elementwise("smooth_l1"),
    "cos": cosine,
    "pear": pearson,
    "cor": batch_correlation,
    "ssim": ssim,
    "iou": _overlap(0),
    "giou": _overlap(1),
}


def _divergence(genotype: Genotype, student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
    """Returns the Kullback-Leibler divergence from student to teacher (``kl``), the sum over one axis, averaged over the others.

    A softmax of the chain, or its logarithm, is the distribution itself. Any other third transformation is followed by a softmax over the
    axis that it names: HW or N if its name says so, else C, which behind ``batch`` is everything that an image has.
    """
    own = _distribution(genotype, student)
    with torch.no_grad():
        other = _distribution(genotype, teacher)
    axis = _axis(genotype, own.values)
    lost = own.replaced(other.values.exp() * (other.values - own.values)).values.sum(axis, keepdim=True)
    return total_mean(lost, _reduced(own, axis), weight if axis else None)


def _distribution(genotype: Genotype, begun: Knowledge) -> Knowledge:
    """Returns the logarithm of the distribution that a divergence compares."""
    logarithm = _LOGARITHMS.get(genotype.t3)
    if logarithm is not None and not (logarithm == "logsoftmax_HW" and begun.values.ndim == 2):
        return THIRD[logarithm](begun)
    done = THIRD[genotype.t3](begun)
    if _NAMED_AXIS.get(genotype.t3) == "HW" and done.values.ndim == 4:
        done = done.flattened(2)
    return log_softmax(done, _axis(genotype, done.values))


def _axis(genotype: Genotype, values: Tensor) -> int:
    return (axes_of(_NAMED_AXIS.get(genotype.t3, "C"), values) or (1,))[0]

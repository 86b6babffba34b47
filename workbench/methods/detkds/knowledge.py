"""Holds a tensor on its way through a formula, with the entries that count, and sums over these entries alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from workbench.detectors.whole_batch import divisions, over_processes

TINY = 1e-12  # norms below it count as zero
SHORT = 15  # the longest axis that a softmax moves to the front; torch's kernel for the last axis takes 16 values at once
_NEVER = -1e30  # finite, so that a row without any entry that counts gives no NaN


@dataclass(frozen=True)
class Knowledge:
    """Values of student or teacher.

    Attributes:
        values: ``[N, C]``, ``[N, C, M]`` or ``[N, C, H, W]``; 0 where an entry does not count.
        inside: bool, broadcasts to ``values``; False for entries that do not count, such as padding. None if all count.
    """

    values: Tensor
    inside: Tensor | None = None

    def replaced(self, values: Tensor) -> "Knowledge":
        """Returns new values of the same shape, 0 where an entry does not count."""
        return Knowledge(values if self.inside is None else values.masked_fill(~self.inside, 0.0), self.inside)

    def flattened(self, start: int) -> "Knowledge":
        """Returns the same entries with all axes from ``start`` on as one."""
        inside = self.inside
        if inside is not None:
            inside = (inside.expand_as(self.values) if start == 1 else inside).flatten(start)
        return Knowledge(self.values.flatten(start), inside)


def count(knowledge: Knowledge, axes: tuple[int, ...]) -> Tensor | int:
    """Returns how many entries count along some axes, which stay as axes of length 1."""
    values, inside = knowledge.values, knowledge.inside
    whole = 1
    for axis in axes:
        whole *= values.shape[axis]
    if inside is None:
        return whole
    # an axis along which the mask is broadcast counts with its full length
    own = 1
    for axis in axes:
        own *= inside.shape[axis]
    return inside.sum(axes, keepdim=True).clamp(min=1) * (whole // own)


def mean(knowledge: Knowledge, axes: tuple[int, ...]) -> Tensor:
    """Returns the mean along some axes, which stay as axes of length 1; 0 where no entry counts."""
    return knowledge.values.sum(axes, keepdim=True) / count(knowledge, axes)


def extremes(knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest value of the whole tensor."""
    values, inside = knowledge.values, knowledge.inside
    if inside is None:
        return values.min(), values.max()
    if not values.requires_grad and inside.shape[1] == 1:
        # the mask is the same for all channels, so that they can be left out of what is masked
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        return low.masked_fill(~inside, torch.inf).min(), high.masked_fill(~inside, -torch.inf).max()
    return values.masked_fill(~inside, torch.inf).min(), values.masked_fill(~inside, -torch.inf).max()


def log_softmax(knowledge: Knowledge, axis: int) -> Knowledge:
    """Returns the logarithm of the softmax over the entries of an axis that count."""
    values, inside = knowledge.values, knowledge.inside
    return knowledge.replaced(_along(axis, Tensor.log_softmax, values if inside is None else values.masked_fill(~inside, _NEVER)))


def softmax(knowledge: Knowledge, axis: int) -> Knowledge:
    """Returns the softmax over the entries of an axis that count."""
    values, inside = knowledge.values, knowledge.inside
    return knowledge.replaced(_along(axis, Tensor.softmax, values if inside is None else values.masked_fill(~inside, _NEVER)))


def _along(axis: int, function: Callable[[Tensor, int], Tensor], values: Tensor) -> Tensor:
    """Applies a softmax along an axis. A short one goes first: torch takes up to ten times as long where it is last."""
    if values.shape[axis] > SHORT:
        return function(values, axis)
    return function(values.movedim(axis, 0), 0).movedim(0, axis)


def unit(values: Tensor, axes: tuple[int, ...], least: Tensor | float = TINY) -> Tensor:
    """Divides values by their Euclidean norm along some axes.

    Args:
        values: any shape.
        axes: axes that a vector lies along.
        least: norm up to which a vector counts as zero: it becomes zero and has no gradient, which would be as large as its norm is small.
    """
    return values * inverse_norm(values, axes, least)


def inverse_norm(values: Tensor, axes: tuple[int, ...], least: Tensor | float) -> Tensor:
    """Returns one over the Euclidean norm of values along some axes; 0 for a norm up to ``least``."""
    norm = torch.linalg.vector_norm(values, dim=axes, keepdim=True)
    return torch.where(norm > least, 1 / torch.clamp(norm, min=least), 0.0)


def standardised(knowledge: Knowledge, eps: float = 1e-5) -> Knowledge:
    """Returns values with mean 0 and variance 1 over all axes but the second, as a fresh batch norm in training computes them."""
    values = knowledge.values
    axes = (0, *range(2, values.ndim))
    if knowledge.inside is None and count(knowledge, axes) != 1:
        return Knowledge(F.batch_norm(values, None, None, training=True, eps=eps))
    if knowledge.inside is not None:
        return Knowledge(cast(Tensor, _Standardised.apply(values, knowledge.inside, count(knowledge, axes), axes, eps)), knowledge.inside)
    centred = knowledge.replaced(values - mean(knowledge, axes))
    variance = mean(knowledge.replaced(centred.values.square()), axes)
    return knowledge.replaced(centred.values / (variance + eps).sqrt())


class _Standardised(Function):
    """What ``standardised`` does under a mask, in fewer passes over memory than operations on all values take."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, inside: Tensor, cells: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        made = (values - values.sum(axes, keepdim=True) / cells).masked_fill_(~inside, 0.0)
        variance = torch.linalg.vector_norm(made, dim=axes, keepdim=True).square() / cells
        scale = (variance + eps).rsqrt()
        made.mul_(scale)
        ctx.axes = axes
        ctx.save_for_backward(made, inside, cells, scale)
        return made

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        made, inside, cells, scale = ctx.saved_tensors
        slope = slopes[0].masked_fill(~inside, 0.0)
        mean, along = slope.sum(ctx.axes, keepdim=True) / cells, (slope * made).sum(ctx.axes, keepdim=True) / cells
        return slope.sub_(mean).addcmul_(made, along, value=-1).mul_(scale), None, None, None, None


def total_mean(values: Tensor, inside: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Returns the mean of the entries that count, weighted if weights are given.

    Args:
        values: any shape.
        inside: see ``Knowledge``; of the same number of axes as ``values``.
        weight: ``[N]``, weights of the first axis.
    """
    if weight is not None:
        share = weight.view(-1, *[1] * (values.ndim - 1))
        # without a box there is no entry of an axis to count, and nothing to divide
        return (values * share).sum() / over_processes(weight.sum() * (values.numel() // max(len(weight), 1)), least=TINY)
    if inside is None:
        return values.mean() if divisions() == 1 else values.sum() / over_processes(values.new_full((), values.numel()))
    return (values * inside).sum() / over_processes(inside.sum() * (values.numel() // inside.numel()), least=1)

"""Implements the three tables of transformations of DetKDS (``mmdet/distillation/losses/operations.py`` of lliai/DetKDS).

A transformation takes values of rank 4 ``[N, C, H, W]``, 3 ``[N, C, M]`` or 2 ``[N, C]``; the axis called HW is M at rank 3 and missing at
rank 2. Without a mask they compute what the released code computes. With one, padding enters no sum, norm, softmax, maximum or mean.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.methods.detkds.genotype import First, Genotype, Mode, Second, Third
from workbench.methods.detkds.knowledge import Knowledge, count, extremes, log_softmax, mean, softmax, standardised, unit

TEMPERATURE = 0.5
KEPT = 0.35  # probability that a cell passes the mask
_LEAST_SHARE = 1e-30  # keeps the gradient of the root finite where a softmax is 0


def unchanged(knowledge: Knowledge) -> Knowledge:
    """Returns its argument (``no``)."""
    return knowledge


def spatial_attention(knowledge: Knowledge) -> Knowledge:
    """Multiplies by the root of the cells' attention, a softmax of the mean absolute value that has mean 1 (``satt``); rank 4 alone."""
    if knowledge.values.ndim < 4:
        return knowledge
    sizes = Knowledge(knowledge.values.abs().mean(1, keepdim=True) / TEMPERATURE, knowledge.inside)
    share = softmax(sizes.flattened(2), 2).values.view_as(sizes.values)
    return knowledge.replaced(knowledge.values * (count(sizes, (2, 3)) * share).clamp(min=_LEAST_SHARE).sqrt())


def batch_attention(knowledge: Knowledge) -> Knowledge:
    """Replaces values by their softmax over the first axis, times its length (``natt``)."""
    # where an entry does not count the values are 0, before and after
    shares = softmax(Knowledge(knowledge.values / TEMPERATURE, knowledge.inside), 0)
    return Knowledge(count(knowledge, (0,)) * shares.values, knowledge.inside)


def channel_attention(knowledge: Knowledge) -> Knowledge:
    """Multiplies by the root of the channels' attention, or at ranks 2 and 3 replaces values by their softmax (``catt``)."""
    channels = knowledge.values.shape[1]
    if knowledge.values.ndim < 4:
        shares = softmax(knowledge.replaced(knowledge.values / TEMPERATURE), 1)
        return knowledge.replaced(channels * shares.values)
    sizes = mean(knowledge.replaced(knowledge.values.abs()), (2, 3)) / TEMPERATURE
    return knowledge.replaced(knowledge.values * (channels * sizes.softmax(1)).clamp(min=_LEAST_SHARE).sqrt())


def random_cells(knowledge: Knowledge, generator: torch.Generator) -> Knowledge:
    """Keeps each cell with a probability of 0.35 and sets the others to 0 (``mask``); rank 4 alone."""
    values = knowledge.values
    if values.ndim < 4:
        return knowledge
    drawn = torch.rand((len(values), 1, *values.shape[2:]), generator=generator)
    return knowledge.replaced(values * (drawn <= KEPT).to(values))


def pooled(knowledge: Knowledge, side: int, border: bool) -> Knowledge:
    """Returns the largest value of each window of ``side`` x ``side`` cells (``scale_r2``, ``multi_scale_r4``); rank 4 alone.

    Args:
        knowledge: maps.
        side: side of a window and of the step between windows.
        border: fill a map up with zeros to a multiple of ``side``, which enter the maximum (released code), or leave them out.
    """
    values, inside = knowledge.values, knowledge.inside
    if values.ndim < 4:
        return knowledge
    if border:
        return Knowledge(F.max_pool2d(_filled(values, side), side))
    if inside is None:
        return Knowledge(F.max_pool2d(values, side, ceil_mode=True))
    most = F.max_pool2d(values.masked_fill(~inside, -torch.inf), side, ceil_mode=True)
    some = F.max_pool2d(inside.to(values), side, ceil_mode=True) > 0
    return Knowledge(most.masked_fill(~some, 0.0), some)


def patches(knowledge: Knowledge, side: int, border: bool) -> Knowledge:
    """Cuts maps into patches of ``side`` x ``side`` cells, each of which becomes a channel (``local_s1``, ``_s2``, ``_s4``); rank 4 alone.

    Args:
        knowledge: maps.
        side: side of a patch.
        border: count the zeros that fill a map up to a multiple of ``side`` (released code), or leave them out.
    """
    values, inside = knowledge.values, knowledge.inside
    if values.ndim < 4:
        return knowledge
    if inside is None and not border and any(length % side for length in values.shape[2:]):
        inside = torch.ones_like(values[:, :1], dtype=torch.bool)
    cut = _cut(_filled(values, side), side)
    if inside is None:
        return Knowledge(cut)
    kept = inside.expand(-1, values.shape[1], -1, -1)
    return Knowledge(cut, _cut(_filled(kept, side), side))


def halved(knowledge: Knowledge) -> Knowledge:
    """Returns (x + 1) / 2 (``scale``)."""
    return knowledge.replaced((knowledge.values + 1.0) / 2.0)


def by_image(knowledge: Knowledge) -> Knowledge:
    """Flattens to one row for each image (``batch``)."""
    return knowledge.flattened(1)


def by_channel(knowledge: Knowledge) -> Knowledge:
    """Flattens the cells of maps (``channel``)."""
    return knowledge.flattened(2) if knowledge.values.ndim == 4 else knowledge


def norm_over(axis: str) -> Callable[[Knowledge], Knowledge]:
    """Returns the transformation that divides by the Euclidean norm along N, C or HW (``norm_N``, ``norm_C``, ``norm_HW``)."""

    def norm(knowledge: Knowledge) -> Knowledge:
        axes = axes_of(axis, knowledge.values)
        return Knowledge(unit(knowledge.values, axes), knowledge.inside) if axes else knowledge

    return norm


def softmax_over(axis: str, logarithm: bool = False) -> Callable[[Knowledge], Knowledge]:
    """Returns the softmax along N, C or HW, or its logarithm; maps lose their shape if it is HW (``softmax_N``, ``logsoftmax_N``, ...)."""
    function = log_softmax if logarithm else softmax

    def share(knowledge: Knowledge) -> Knowledge:
        if axis == "HW" and knowledge.values.ndim == 2:
            return knowledge
        flat = by_channel(knowledge) if axis == "HW" else knowledge
        return function(flat, axes_of(axis, flat.values)[0])

    return share


def min_max(knowledge: Knowledge) -> Knowledge:
    """Maps the smallest value of the whole tensor to 0 and the largest to 1 (``min_max_normalize``)."""
    low, high = extremes(knowledge)
    return knowledge.replaced((knowledge.values - low) / (high - low + 1e-9))


def squared(knowledge: Knowledge) -> Knowledge:
    """Returns the square (``pow2``)."""
    return Knowledge(knowledge.values.square(), knowledge.inside)


FIRST: Mapping[First, Callable[[Knowledge, torch.Generator], Knowledge]] = {
    "no": lambda knowledge, _: knowledge,
    "satt": lambda knowledge, _: spatial_attention(knowledge),
    "natt": lambda knowledge, _: batch_attention(knowledge),
    "catt": lambda knowledge, _: channel_attention(knowledge),
    "mask": random_cells,
}
SECOND: Mapping[Second, Callable[[Knowledge, bool], Knowledge]] = {
    "no": lambda knowledge, _: knowledge,
    "scale_r1": lambda knowledge, _: knowledge,  # the largest of one value is that value
    "scale_r2": lambda knowledge, border: pooled(knowledge, 2, border),
    "multi_scale_r4": lambda knowledge, border: pooled(knowledge, 4, border),
    "local_s1": lambda knowledge, border: patches(knowledge, 1, border),
    "local_s2": lambda knowledge, border: patches(knowledge, 2, border),
    "local_s4": lambda knowledge, border: patches(knowledge, 4, border),
    "scale": lambda knowledge, _: halved(knowledge),
}
THIRD: Mapping[Third, Callable[[Knowledge], Knowledge]] = {
    "no": unchanged,
    "batch": by_image,
    "channel": by_channel,
    "norm_HW": norm_over("HW"),
    "norm_C": norm_over("C"),
    "norm_N": norm_over("N"),
    "softmax_N": softmax_over("N"),
    "softmax_C": softmax_over("C"),
    "softmax_HW": softmax_over("HW"),
    "logsoftmax_N": softmax_over("N", logarithm=True),
    "logsoftmax_C": softmax_over("C", logarithm=True),
    "logsoftmax_HW": softmax_over("HW", logarithm=True),
    "min_max_normalize": min_max,
    "batchnorm": standardised,
    "pow2": squared,
}


def beginning(genotype: Genotype, knowledge: Knowledge, mode: Mode, generator: torch.Generator) -> Knowledge:
    """Applies the first two transformations of a formula; ``generator`` draws the mask, if there is one."""
    return SECOND[genotype.t2](FIRST[genotype.t1](knowledge, generator), mode == "official")


def chain(genotype: Genotype, knowledge: Knowledge, mode: Mode, generator: torch.Generator) -> Knowledge:
    """Applies the three transformations of a formula. The arguments are those of ``beginning``."""
    return THIRD[genotype.t3](beginning(genotype, knowledge, mode, generator))


def axes_of(axis: str, values: Tensor) -> tuple[int, ...]:
    """Returns the axes of ``values`` that N, C or HW stands for; none for HW at rank 2."""
    return {"N": (0,), "C": (1,), "HW": tuple(range(2, values.ndim))}[axis]


def _filled(values: Tensor, side: int) -> Tensor:
    """Adds zeros at the right and at the bottom, up to a multiple of ``side``."""
    height, width = values.shape[2:]
    return F.pad(values, (0, -width % side, 0, -height % side)) if height % side or width % side else values


def _cut(values: Tensor, side: int) -> Tensor:
    images, channels, height, width = values.shape
    tiles = values.view(images, channels, height // side, side, width // side, side)
    # long axes last in memory: what follows is then three to ten times as fast as with the few cells of a patch there
    return tiles.permute(3, 5, 0, 1, 2, 4).reshape(side, side, images, -1).permute(2, 3, 0, 1)

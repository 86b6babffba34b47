"""Computes the structural similarity of maps, and its gradient, a few maps at a time.

A map of a large picture has 17,000 cells, and there are hundreds of them. Written as operations on all of them, the dozens of passes over
memory cost more than the windows do. Here the values of a few maps stay near the processor from the first pass to the gradient.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from workbench.detectors.whole_batch import over_processes
from workbench.methods.detkds.knowledge import TINY, Knowledge, extremes

SIDE, SIGMA = 11, 1.5
CONSTANTS = (0.01, 0.03)
_CELLS = 2**18  # of the maps that a processor works on together; a GPU takes an image at once


def ssim(student: Knowledge, teacher: Knowledge, weight: Tensor | None) -> Tensor:
    """Returns one minus the structural similarity (Wang et al., 2004) of each channel, with windows of 11 x 11 cells (``ssim``).

    The dynamic range is the teacher's. Windows that reach over the border of the image hold the cells inside alone.

    Args:
        student: ``[N, C, H, W]``, with gradient.
        teacher: the same without gradient, with the same mask.
        weight: is not used.
    """
    low_end, high_end = extremes(teacher)
    low, high = (constant**2 * (high_end - low_end).square().clamp(min=TINY) for constant in CONSTANTS)
    return _Ssim.apply(student.values, teacher.values, teacher.inside, low, high)  # pyright: ignore[reportReturnType]


class _Ssim(Function):
    """The mean of one minus the similarity of all cells inside, whose gradient is computed with it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor, inside: Tensor | None, low: Tensor, high: Tensor) -> Tensor:
        with torch.autocast(own.device.type, enabled=False):
            kept = own.new_ones((1, 1, *own.shape[2:])) if inside is None else inside.to(own)
            bands = tuple(_band(length).to(own) for length in own.shape[2:])
            shares = 1 / _blurred(kept, bands).clamp(min=TINY)
            # cells that count, each once for every map that the mask is broadcast to
            cells = over_processes(kept.sum() * (own.numel() // kept.numel()), least=1)
            weights = kept / cells
            gradient = torch.empty_like(own) if ctx.needs_input_grad[0] else None
            total = own.new_zeros(())
            images, channels, height, width = own.shape
            together = max(1, _CELLS // (height * width)) if own.device.type == "cpu" else channels
            for image in range(images):
                for first in range(0, channels, together):
                    place = (image, slice(first, first + together))
                    window = _Windows(bands, _of(shares, place), _of(weights, place))
                    lost, slope = _similarity(own[place], other[place], window, low, high, gradient is not None)
                    total += lost
                    if gradient is not None and slope is not None:
                        gradient[place] = slope
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * slopes[0], None, None, None, None


class _Windows:
    """Takes Gaussian means over the cells of each window that count.

    Args:
        bands: weights of rows and of columns (``_band``).
        shares: one over the weight of the cells that count in each window, broadcasts to the maps.
        weights: weight of each cell in the loss, 0 where it does not count.
    """

    def __init__(self, bands: tuple[Tensor, ...], shares: Tensor, weights: Tensor):
        self._bands, self._shares, self.weights = bands, shares, weights

    def mean(self, values: Tensor) -> Tensor:
        """Returns the mean in the window around each cell."""
        return _blurred(values, self._bands).mul_(self._shares)

    def back(self, slopes: Tensor) -> Tensor:
        """Returns the gradient of values, of whose means these are the gradients; ``slopes`` are overwritten."""
        return _blurred(slopes.mul_(self._shares), self._bands)


def _similarity(own: Tensor, other: Tensor, windows: _Windows, low: Tensor, high: Tensor, slopes: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the weighted sum of one minus the similarity of maps ``[C, H, W]``, and its gradient if it is asked for."""
    own, other = own.contiguous(), other.contiguous()
    mean_own, mean_other = windows.mean(own), windows.mean(other)
    product, squares = mean_own * mean_other, (mean_own * mean_own).addcmul_(mean_other, mean_other)
    covariance = windows.mean(own * other).sub_(product)
    variances = windows.mean((own * own).addcmul_(other, other)).sub_(squares)
    spread = variances > 0
    means, sizes = product.mul_(2).add_(low), squares.add_(low)
    shared, all_spread = covariance.mul_(2).add_(high), variances.clamp_(min=0).add_(high)
    one_over = (sizes * all_spread).reciprocal_()
    likeness = (means * shared).mul_(one_over)
    lost = ((1 - likeness) * windows.weights).sum()
    if not slopes:
        return lost, None
    one_over.mul_(windows.weights)
    likeness.mul_(windows.weights)
    by_squares = likeness.div(all_spread).mul_(spread)
    # the mean is in all four factors
    by_mean = mean_own.mul_(likeness.div_(sizes).sub_(by_squares)).sub_(mean_other.mul_(shared.sub_(means)).mul_(one_over)).mul_(2)
    by_product = means.mul_(one_over).mul_(-2)
    slope = windows.back(by_mean)
    slope.addcmul_(windows.back(by_product), other)
    return lost, slope.addcmul_(windows.back(by_squares), own, value=2)


def _of(values: Tensor, place: tuple[int, slice]) -> Tensor:
    """Returns the part of a mask that belongs to some maps; its axes may have length 1."""
    image, channels = place
    return values[image if len(values) > 1 else 0, channels if values.shape[1] > 1 else slice(None)]


def _blurred(values: Tensor, bands: tuple[Tensor, ...]) -> Tensor:
    """Returns the Gaussian sum of each window, with zeros beyond the border."""
    # products with two band matrices take a tenth of the time of a convolution with one channel
    rows, columns = bands
    return rows @ (values @ columns)


def _band(length: int) -> Tensor:
    """Returns ``[length, length]``: the weight of each cell in the Gaussian window around each cell of a row."""
    place = torch.arange(length, dtype=torch.float64)
    apart = place[:, None] - place
    return (-(apart**2) / (2 * SIGMA**2)).exp().masked_fill(apart.abs() > SIDE // 2, 0.0)

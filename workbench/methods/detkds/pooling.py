"""Pools maps in boxes by products of matrices: torchvision's ``roi_align`` on a CPU takes several times as long, most of it backwards."""

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 14


@dataclass(frozen=True)
class BoxPooling:
    """Pools maps of one size in boxes to 14 x 14 cells, as ``torchvision.ops.roi_align(maps, boxes, 14)`` does.

    A pooled cell is a mean of bilinear samples on a regular grid, so it is a product of the weights of rows, the map and the weights of
    columns. The weights serve both detectors.

    Attributes:
        rows: ``[boxes, 14, h]``, weights of the rows of a map in those of its pooled one.
        columns: ``[boxes, 14, w]``, the same of columns.
        counts: number of boxes in each image.
    """

    rows: Tensor
    columns: Tensor
    counts: list[int]

    @classmethod
    def of(cls, boxes: Tensor, counts: list[int], size: tuple[int, int]) -> "BoxPooling":
        """Makes the weights.

        Args:
            boxes: ``[boxes, 4]`` xyxy in cells, the boxes of all images in a row.
            counts: number of boxes in each image.
            size: height and width of a map in cells.
        """
        return cls(_weights(boxes[:, 1], boxes[:, 3], size[0]), _weights(boxes[:, 0], boxes[:, 2], size[1]), counts)

    def __call__(self, maps: Tensor) -> Tensor:
        """Returns ``[boxes, C, 14, 14]`` of maps ``[B, C, h, w]``."""
        channels, height, width = maps.shape[1:]
        pooled: list[Tensor] = []
        rows, columns = (weights.to(maps).split(self.counts) for weights in (self.rows, self.columns))
        for image, down, across in zip(maps, rows, columns, strict=True):
            if len(down):
                by_row = down.reshape(-1, height) @ image.transpose(0, 1).reshape(height, -1)
                both = by_row.view(-1, SIDE * channels, width) @ across.transpose(1, 2)
                pooled.append(both.view(-1, SIDE, channels, SIDE).transpose(1, 2))
        return torch.cat(pooled) if pooled else maps.new_zeros(0, channels, SIDE, SIDE)


def _weights(low: Tensor, high: Tensor, length: int) -> Tensor:
    """Returns the weights of a map's rows (or columns) in the pooled ones, ``[boxes, 14, length]``.

    Samples lie in the middle of equal parts of a pooled cell, at most one cell of the map long. One that lies more than a cell outside of
    the map is 0.
    """
    cell = (high - low).clamp(min=1.0)[:, None, None] / SIDE
    samples = cell.ceil()
    number = torch.arange(int(samples.max()) if len(samples) else 1).to(low)
    first = low[:, None, None] + torch.arange(SIDE).to(low)[:, None] * cell
    at = first + (number + 0.5) * (cell / samples)
    counts = (number < samples) & (at >= -1) & (at <= length)
    near = 1 - (at.clamp(0, length - 1)[..., None] - torch.arange(length).to(low)).abs()
    return (near.clamp(min=0) * counts[..., None]).sum(2) / samples

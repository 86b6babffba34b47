"""Pools maps in boxes by products of matrices: torchvision's ``roi_align`` on a CPU takes several times as long, most of it backwards."""

import torch
from torch import Tensor

SIDE = 14


def pooled_in_boxes(values: Tensor, boxes: Tensor) -> Tensor:
    """Returns the maps of each box pooled to 14 x 14 cells, as ``torchvision.ops.roi_align(values, boxes, 14)`` does.

    A pooled cell is a mean of bilinear samples on a regular grid, so it is a product of the weights of rows, the map and the weights of
    columns.

    Args:
        values: ``[B, C, h, w]``.
        boxes: ``[boxes, 5]``: the image of each box, in ascending order, and its x0, y0, x1, y1 in cells.

    Returns:
        ``[boxes, C, 14, 14]``
    """
    channels, height, width = values.shape[1:]
    rows, columns = _weights(boxes[:, 2], boxes[:, 4], height), _weights(boxes[:, 1], boxes[:, 3], width)
    counts = torch.bincount(boxes[:, 0].long(), minlength=len(values)).tolist()
    made: list[Tensor] = []
    for image, down, across in zip(values, rows.to(values).split(counts), columns.to(values).split(counts), strict=True):
        if not len(down):
            continue
        by_row = down.reshape(-1, height) @ image.transpose(0, 1).reshape(height, -1)
        both = by_row.view(-1, SIDE * channels, width) @ across.transpose(1, 2)
        made.append(both.view(-1, SIDE, channels, SIDE).transpose(1, 2))
    return torch.cat(made) if made else values.new_zeros(0, channels, SIDE, SIDE)


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

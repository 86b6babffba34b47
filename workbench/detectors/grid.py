"""Places the candidates of dense detectors on the cells of their levels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

from workbench.detectors.output import Grid

Sizes = Sequence[tuple[int, int]]


def point_grid(strides: tuple[int, ...], sizes: Sizes, device: torch.device, place: float = 0.5) -> Grid:
    """Returns one point of every cell.

    Args:
        strides: stride of each level in input pixels.
        sizes: height and width of each level in cells.
        device: device of the grid.
        place: where the point lies in its cell; 0.5 is the centre, 0 the first pixel.
    """
    points: list[Tensor] = []
    for stride, (height, width) in zip(strides, sizes, strict=True):
        y = (torch.arange(height, device=device) + place) * stride
        x = (torch.arange(width, device=device) + place) * stride
        points.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2))
    return make_grid(strides, sizes, torch.cat([torch.cat([level, level], -1) for level in points]), 1)


def anchor_grid(generator: AnchorGenerator, strides: tuple[int, ...], sizes: Sizes, device: torch.device) -> Grid:
    """Returns torchvision's anchors: those of a cell are centred at its first pixel. The arguments are those of ``point_grid``."""
    generator.set_cell_anchors(torch.float32, device)
    steps = [[torch.tensor(stride, device=device)] * 2 for stride in strides]
    anchors = generator.grid_anchors([list(size) for size in sizes], steps)
    return make_grid(strides, sizes, torch.cat(anchors), generator.num_anchors_per_location()[0])


def make_grid(strides: tuple[int, ...], sizes: Sizes, anchors: Tensor, shapes: int) -> Grid:
    """Returns the grid of anchors that lie in the order of a grid. The arguments are its fields."""
    device = anchors.device
    counts = [height * width * shapes for height, width in sizes]
    level = torch.cat([torch.full((count,), index, device=device) for index, count in enumerate(counts)])
    cell = torch.arange(sum(counts), device=device) // shapes
    return Grid(level, cell, anchors, strides, tuple((int(h), int(w)) for h, w in sizes), shapes)


def flat(maps: Sequence[Tensor], numbers: int) -> Tensor:
    """Returns maps ``[B, A * numbers, h, w]`` of all levels as ``[B, N, numbers]``, in the order of the grid."""
    rows = [level.unflatten(1, (-1, numbers)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in maps]
    return torch.cat(rows, 1)

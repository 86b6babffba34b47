"""Where DINO's encoder cells lie: their centres, the boxes proposed around them, and sine embeddings of positions and boxes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROPOSAL_SIZE = 0.05


@dataclass(frozen=True)
class Memory:
    """Encoder cells of all levels in a row, and what deformable attention needs to find them again.

    Attributes:
        cells: ``[B, S, D]``.
        inside: ``[B, S]`` bool, False = padding.
        shapes: height and width of each level.
        ratios: ``[B, levels, 2]`` share of the width and height that is not padding.
    """

    cells: Tensor
    inside: Tensor
    shapes: list[tuple[int, int]]
    ratios: Tensor

    def centres(self) -> Tensor:
        """``[B, S, 2]``: x and y of each cell's centre in 0..1 of the un-padded image."""
        device, centres = self.cells.device, []
        for (height, width), ratio in zip(self.shapes, self.ratios.unbind(1), strict=True):
            y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
            cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5
            centres.append(cells / (ratio * ratio.new_tensor([width, height]))[:, None])
        return torch.cat(centres, dim=1)

    def anchors(self) -> Tensor:
        """``[B, S, 4]``: a box of ``PROPOSAL_SIZE`` around each centre, twice as large on each further level."""
        sizes = [torch.full((height * width, 2), PROPOSAL_SIZE * 2.0**level) for level, (height, width) in enumerate(self.shapes)]
        centres = self.centres()
        return torch.cat([centres, torch.cat(sizes).to(centres.device).expand(len(centres), -1, -1)], dim=-1)

    def arguments(self) -> dict[str, Any]:
        """Shapes in the three forms that the layers want."""
        sizes = torch.tensor(self.shapes, device=self.cells.device)
        starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
        return {"spatial_shapes": sizes, "spatial_shapes_list": self.shapes, "level_start_index": starts}


def sine_embedding(coordinates: Tensor, features: int, temperature: float) -> Tensor:
    """Sine embedding of numbers in 0..1, sines and cosines alternating (DAB-DETR, Liu et al., ICLR 2022, equation 4 and section 4.4).

    Args:
        coordinates: ``[..., K]``.
        features: of each coordinate, even.
        temperature: longest wavelength, in units of 2 pi.

    Returns:
        ``[..., K * features]``.
    """
    exponent = torch.arange(0, features, 2, dtype=torch.float32, device=coordinates.device) / features
    angle = coordinates.float()[..., None] * (2 * math.pi) / temperature**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def relative_positions(padding: Tensor) -> Tensor:
    """``[B, H, W, 2]``: y and x of each cell, 1 at the last one that is not padding."""
    inside = ~padding
    y, x = inside.cumsum(1, dtype=torch.float32), inside.cumsum(2, dtype=torch.float32)
    return torch.stack([y / (y[:, -1:] + 1e-6), x / (x[:, :, -1:] + 1e-6)], dim=-1)


def valid_ratio(padding: Tensor) -> Tensor:
    """``[B, 2]``: share of the width and of the height that is not padding."""
    return torch.stack([(~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)], dim=-1)

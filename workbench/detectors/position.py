"""Computes position embeddings that several families share."""

import math

import torch
from torch import Tensor


def sine_embedding(coordinates: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """Embeds numbers in 0..1 as alternating sines and cosines.

    See DETR (Carion et al., ECCV 2020, appendix A.4) and DAB-DETR (Liu et al., ICLR 2022, equation 4 and section 4.4).

    Args:
        coordinates: ``[..., K]``.
        features: number of features of each coordinate, even.
        temperature: longest wavelength, in units of 2 pi.

    Returns:
        ``[..., K * features]``.
    """
    exponent = torch.arange(0, features, 2, dtype=torch.float32, device=coordinates.device) / features
    angle = coordinates.float()[..., None] * (2 * math.pi) / temperature**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)

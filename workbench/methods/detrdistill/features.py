"""Computes target-aware feature distillation (DETRDistill, equations 6 to 9), also with the mask of the released code."""

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.detectors.output import DetectorOutput, Level, query_output
from workbench.detectors.whole_batch import over_processes
from workbench.methods.context import MethodContext
from workbench.methods.detrdistill.config import FeaturesConfig
from workbench.methods.levels import Adaptor
from workbench.methods.query_masks import selection_masks


def features_term(
    config: FeaturesConfig,
    adaptor: Adaptor,
    pairs: list[tuple[Level, Level]],
    weights: list[Tensor],
) -> Tensor:
    """Computes equation 9: each cell's error weighted by the mask, averaged over cells and summed over levels.

    Args:
        config: switches of the features part.
        adaptor: module that maps student levels to the teacher's width.
        pairs: pairs of student and teacher level.
        weights: ``[B, H, W]`` weights of each pair's cells, see ``cell_weights``.
    """
    total = pairs[0][0].features.new_zeros(())
    for (own, other), weight in zip(pairs, weights, strict=True):
        error = F.mse_loss(adaptor(own).float(), other.features.float(), reduction="none").mean(1)
        inside = (~own.padding).float() if config.mask_padding else torch.ones_like(error)
        total = total + (weight * error * inside).sum() / over_processes(inside.sum(), least=1)
    return total


@torch.no_grad()
def cell_weights(
    config: FeaturesConfig, teacher: DetectorOutput, levels: list[Level], layers: list[int], selected: Tensor, context: MethodContext
) -> list[Tensor]:
    """Returns the weight of every cell's squared error, ``[B, H, W]`` per level, without gradient.

    For ``product`` it is w(x) = 1/M sum_i q_i (F(x) . Q_i)^2, averaged over layers. This is equation 9 with the square of the mask taken
    into one sum, which gives the same number without a map per query. For ``cosine`` it is the sum over layers of psi(x)^2.
    """
    if config.mask == "uniform":
        return [level.features.new_ones(level.padding.shape) for level in levels]
    layers = layers if config.layers == "all" else layers[-1:]
    masks = [selection_masks(config.query_mask, query_output(teacher), level, layers, context, selected) for level in levels]
    if config.mask == "cosine":
        return [mask.square().sum(0) for mask in masks]
    return [mask.sum(0) / len(layers) for mask in masks]

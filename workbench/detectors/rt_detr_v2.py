"""Adapts RT-DETRv2 (Lv et al., 2024) from transformers: an RT-DETR with its own number of sampling points in each level."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import RTDetrV2Config, RTDetrV2ForObjectDetection

from workbench.detectors.attention import sampled_map
from workbench.detectors.detector import InputSpec
from workbench.detectors.rt_detr import HybridModelConfig, RtDetr


class RtDetrV2ModelConfig(HybridModelConfig):
    """Describes the architecture of an RT-DETRv2."""

    family: Literal["rt_detr_v2"] = "rt_detr_v2"
    """Selects the family."""
    # transformers ties the heads of later layers to the first layer's, and finds nothing to tie in a decoder of one layer
    decoder_layers: int = Field(6, ge=2)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    points: int = Field(4, ge=1)
    """Number of points that each head of the deformable attention samples in each level."""

    def transformers_config(self, classes: tuple[str, ...]) -> RTDetrV2Config:
        """Returns the transformers configuration of this model."""
        arguments = self.shared_arguments(classes)
        return RTDetrV2Config(**arguments, decoder_n_points=self.points, decoder_n_levels=len(self.backbone.levels))


class RtDetrV2(RtDetr):
    """Adapter around ``RTDetrV2ForObjectDetection``."""

    family = "rt_detr_v2"
    model_class: ClassVar[type] = RTDetrV2ForObjectDetection

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        if model.config.decoder_method != "default":
            # points that snap to cells have no map of bilinear weights
            self.provides = self.provides - {"attentions"}

    @staticmethod
    def cross_map(module: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        """See ``sampled_points_map``."""
        return sampled_points_map(module, module.n_points_list, arguments, output[1])


def sampled_points_map(module: Any, points: Sequence[int], arguments: dict[str, Any], weights: Tensor) -> Tensor:
    """Returns where an attention with its own number of points in each level reads: ``[B, 1, N, S]``.

    Args:
        module: the attention module.
        points: number of points in each level.
        arguments: keyword arguments of its call.
        weights: ``[B, N, H, sum of points]``.
    """
    hidden, reference = arguments["hidden_states"], arguments["reference_points"]
    if arguments.get("position_embeddings") is not None:
        hidden = hidden + arguments["position_embeddings"]
    shapes = [(int(height), int(width)) for height, width in arguments["spatial_shapes_list"]]
    scale = hidden.new_tensor([1 / count for count in points for _ in range(count)])[:, None] * module.offset_scale
    offsets = module.sampling_offsets(hidden).view(*weights.shape, 2)
    locations = reference[:, :, None, :, :2] + offsets * scale * reference[:, :, None, :, 2:]
    most, sizes = max(points), list(points)
    # levels with fewer points are filled up with points of weight 0
    placed = [F.pad(part, (0, 0, 0, most - part.shape[3])) for part in locations.split(sizes, dim=3)]
    weighted = [F.pad(part, (0, most - part.shape[3])) for part in weights.split(sizes, dim=3)]
    return sampled_map(torch.stack(placed, 3), torch.stack(weighted, 3), shapes)

"""Adapts DEIMv2 (Huang et al., 2025) from transformers.

It is D-FINE with a matchability-aware class loss and gated feed-forward layers.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import Deimv2Config, Deimv2ForObjectDetection

from workbench.detectors.d_fine import DFine, RefinedModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level
from workbench.detectors.quality_losses import MATCHABILITY_GAMMA, matchability_loss
from workbench.detectors.transformers_adapter import padding_at, stride_of


class Deimv2ModelConfig(RefinedModelConfig):
    """Describes the architecture of a DEIMv2 with the hybrid encoder.

    The backbone ``transformers/dinov3_vit`` gets the published adapter, which makes levels of strides 8, 16 and 32 from it. Every
    other backbone is used as it is.
    """

    family: Literal["deimv2"] = "deimv2"
    """Selects the family."""

    def transformers_config(self, classes: tuple[str, ...]) -> Deimv2Config:
        """Returns the transformers configuration of this model."""
        return Deimv2Config(**self.refined_arguments(classes), focal_loss_gamma=MATCHABILITY_GAMMA)


class Deimv2(DFine):
    """Adapter around ``Deimv2ForObjectDetection``."""

    family = "deimv2"
    model_class: ClassVar[type] = Deimv2ForObjectDetection
    quality_loss = staticmethod(matchability_loss)

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token"):
                # used only in a ViT's pre-training; it gets no gradient here, and distributed training fails on such parameters
                parameter.requires_grad_(False)

    @staticmethod
    def conv_encoder(model: Any) -> nn.Module:
        """See ``TransformersDetector.conv_encoder``."""
        encoder = model.model.conv_encoder
        return encoder if hasattr(encoder, "model") else nn.ModuleDict({"model": encoder.backbone})

    def watch_features(self) -> None:
        """See ``RtDetr.watch_features``."""
        encoder = self.model.model.conv_encoder
        vit = not hasattr(encoder, "model")
        if not vit:
            self.model.config.encoder_in_channels = list(encoder.intermediate_channel_sizes)
        self.keep_output("backbone", encoder.backbone if vit else encoder.model)
        for index, projection in enumerate(encoder.fusion_proj if vit else encoder.encoder_input_proj):
            self.keep_output(f"neck{index}", projection)

    def features(self, seen: dict[str, Any], images: Tensor, padding: Tensor) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """See ``RtDetr.features``. All layers of a ViT have one size, so the last one is returned as the backbone level."""
        maps = seen["backbone"].feature_maps
        if not hasattr(self.model.model.conv_encoder, "model"):
            maps = maps[-1:]
        neck = [seen[name] for name in sorted(seen) if name.startswith("neck")]
        backbone, projected = (
            tuple(Level(f, stride_of(images, f), padding_at(padding, f.shape[-2:])) for f in features) for features in (maps, neck)
        )
        return backbone, projected

    @torch.no_grad()
    def reset_heads(self) -> None:
        """See ``RtDetr.reset_heads``. Gated feed-forward layers start as published."""
        super().reset_heads()
        for layer in self.model.model.decoder.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    @property
    def shares_matching(self) -> bool:
        """See ``DFine.shares_matching``. The smallest published models match every layer by itself."""
        return bool(self.model.config.use_dense_one_to_one)

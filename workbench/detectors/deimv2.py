"""Adapts DEIMv2 (Huang et al., 2025) from transformers.

It is D-FINE with a matchability-aware class loss and with boxes matched across layers.
"""

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Deimv2Config, Deimv2ForObjectDetection

from workbench.datasets.targets import TargetBatch
from workbench.detectors.criterion import set_loss
from workbench.detectors.d_fine import DFine, RefinedModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import DetectorOutput, Level
from workbench.detectors.quality_losses import MATCHABILITY_GAMMA, matchability_loss
from workbench.detectors.transformers_adapter import padding_at, stride_of
from workbench.matching import match_targets


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

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``. All box terms except denoising's use the union of all layers' matchings (D-FINE, section 4.2)."""
        if match is None:
            match = match_targets(output.logits, output.boxes, targets, output.activation)
        if not self.model.config.use_dense_one_to_one:
            return super().losses(output, targets, num_boxes, match)
        own = {group.name: match_targets(group.logits, group.boxes, targets) for group in output.aux if group.match is None}
        union = united(torch.cat([match, *own.values()]), targets.labels.shape[1])
        pairs = _mean_over_processes((union >= 0).sum().to(output.logits))
        common = [replace(group, match=_spread(union, group.logits)) for group in output.aux if group.name in own]
        everywhere = replace(output, aux=tuple(common))
        terms = super().losses(everywhere, targets, pairs, _spread(union, output.logits))
        denoising = replace(output, aux=tuple(group for group in output.aux if group.name not in own))
        fixed = super().losses(denoising, targets, num_boxes, match)
        terms |= {name: value for name, value in fixed.items() if "_denoising" in name}
        for name, group, matched in (("class", output, match), *((f"class_{g.name}", g, own[g.name]) for g in common)):
            terms[name] = set_loss(group.logits, group.boxes, matched, targets, num_boxes, quality_loss=matchability_loss)["class"]
        return terms


def united(match: Tensor, targets: int) -> Tensor:
    """Merges several matchings: every query that any of them matches gets the target that most of them give it.

    Args:
        match: ``[K, B, N]`` int64, target index or -1.
        targets: number of targets.

    Returns:
        ``[B, N]`` int64. Among targets with equally many votes the first wins.
    """
    if targets == 0:
        return match[0]
    columns = torch.arange(targets, device=match.device)
    votes, best = (match[..., None] == columns).sum(0).max(-1)
    return torch.where(votes > 0, best, -1)


def _spread(match: Tensor, logits: Tensor) -> Tensor:
    """Repeats a matching for every layer of ``logits``."""
    return match.expand(len(logits), -1, -1)


def _mean_over_processes(count: Tensor) -> Tensor:
    """Averages a count over the processes that train together; the result is at least 1."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)

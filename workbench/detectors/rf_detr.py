"""Adapts RF-DETR (Robinson et al., 2025) from transformers: an LW-DETR with a DINOv2 backbone and one feature level."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from transformers import RfDetrConfig, RfDetrForObjectDetection
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from workbench.detectors.detector import InputSpec
from workbench.detectors.lw_detr import GroupedModelConfig, LwDetr, ViTConfig


class RfDetrModelConfig(GroupedModelConfig):
    """Describes the architecture of an RF-DETR."""

    family: Literal["rf_detr"] = "rf_detr"
    """Selects the family."""
    backbone: ViTConfig = ViTConfig(side=560, patch=14, width=384, heads=6, depth=12, windows=4, levels=(2, 5, 8, 11))
    """The DINOv2 backbone. It attends globally in the layers of ``levels``, so ``windowed`` must be left out."""

    @model_validator(mode="after")
    def _windows_follow_levels(self) -> "RfDetrModelConfig":
        if self.backbone.windowed is not None:
            raise ValueError("backbone.windowed follows from backbone.levels in this family: leave it out")
        return self

    def transformers_config(self, classes: tuple[str, ...]) -> RfDetrConfig:
        """Returns the transformers configuration of this model."""
        vit = self.backbone
        backbone = RfDetrDinov2Config(
            image_size=vit.side,
            patch_size=vit.patch,
            hidden_size=vit.width,
            num_attention_heads=vit.heads,
            num_hidden_layers=vit.depth,
            num_windows=vit.windows,
            out_features=[f"stage{level}" for level in vit.levels],  # pyright: ignore[reportCallIssue]
        )
        return RfDetrConfig(**self.shared_arguments(classes), backbone_config=backbone)


class RfDetr(LwDetr):
    """Adapter around ``RfDetrForObjectDetection``."""

    family = "rf_detr"
    model_class: ClassVar[type] = RfDetrForObjectDetection

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool = True):
        super().__init__(model, spec)
        # used only in a ViT's pre-training; it gets no gradient here, and distributed training fails on such parameters
        model.model.backbone.backbone.embeddings.mask_token.requires_grad_(False)

    @staticmethod
    def windows(backbone: Any) -> int:
        """See ``LwDetr.windows``. This family's configuration holds the number along a side directly."""
        return int(backbone.num_windows)

    def scales(self) -> tuple[float, ...]:
        """See ``LwDetr.scales``. The one level has the resolution of the patches."""
        return (1.0,)

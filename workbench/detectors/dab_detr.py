"""Adapts DAB-DETR (Liu et al., ICLR 2022) from transformers."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DabDetrConfig, DabDetrForObjectDetection

from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Queries
from workbench.detectors.single_level import SingleLevelDetector, SingleLevelModelConfig
from workbench.detectors.transformers_adapter import fresh_box_head, fresh_class_head, label_names


class DabDetrModelConfig(SingleLevelModelConfig):
    """Describes the architecture of a DAB-DETR that starts from random weights."""

    family: Literal["dab_detr"] = "dab_detr"
    """Selects the family."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of encoder and decoder in training."""
    patterns: int = Field(0, ge=0)
    """Number of content embeddings that each anchor is combined with, which multiplies the queries. 0 uses one content of zeros."""
    temperature: int = Field(20, gt=0)
    """Temperature of the sine embedding of positions in the image."""

    def transformers_config(self, classes: tuple[str, ...]) -> DabDetrConfig:
        """Returns the transformers configuration of this model."""
        return DabDetrConfig(
            **self.common_fields(),
            **label_names(classes),
            hidden_size=self.width,
            num_patterns=self.patterns,
            temperature_height=self.temperature,
            temperature_width=self.temperature,
        )


class DabDetr(SingleLevelDetector):
    """Adapter around ``DabDetrForObjectDetection``. Queries are anchor boxes that every layer refines."""

    family = "dab_detr"
    model_class: ClassVar[type] = DabDetrForObjectDetection
    provides = frozenset(
        {"memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "learned_queries", "attentions"}
    )

    def __init__(self, model: DabDetrForObjectDetection, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        self.num_queries = model.config.num_queries * max(model.config.num_patterns, 1)

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``: 1 / 5 / 2 (official code, whose matching costs are 2 / 5 / 2)."""
        return {"class": 1.0, "bbox": 5.0, "giou": 2.0}

    @staticmethod
    def conv_encoder(model: Any) -> nn.Module:
        """See ``TransformersDetector.conv_encoder``."""
        return model.model.backbone.conv_encoder

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Sets the class bias to the prior of the focal loss and lets boxes start at their anchor (official code)."""
        fresh_class_head(self.model.class_embed)
        fresh_box_head(self.model.bbox_predictor)

    def class_heads(self) -> list[tuple[nn.Module, str]]:
        """See ``TransformersDetector.class_heads``."""
        return [(self.model, "class_embed")]

    def query_table(self) -> nn.Embedding:
        """See ``SingleLevelDetector.query_table``. The table holds anchors before the sigmoid."""
        return self.model.model.query_refpoint_embeddings

    def reference_of(self, decoded: Any) -> Tensor:
        """See ``SingleLevelDetector.reference_of``."""
        return decoded.reference_points[0]

    def call_decoder(self, arguments: dict[str, Any], queries: Queries, own: Queries) -> Any:
        """See ``SingleLevelDetector.call_decoder``. ``queries.reference`` is required, with four numbers."""
        arguments["inputs_embeds"] = queries.content
        if queries.reference is not own.reference:
            assert queries.reference is not None
            arguments["query_position_embeddings"] = torch.logit(queries.reference, eps=1e-5)
        return self.model.model.decoder(**arguments)

    def attention_modules(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """See ``SingleLevelDetector.attention_modules``."""
        return layer.self_attn.self_attn, layer.cross_attn.cross_attn

    def states_of(self, decoded: Any, seen: dict[str, Any]) -> Tensor:
        """See ``SingleLevelDetector.states_of``."""
        return decoded.intermediate_hidden_states

    def boxes_of(self, states: Tensor, decoded: Any) -> Tensor:
        """See ``SingleLevelDetector.boxes_of``: sigmoid(head(state l) + inverse sigmoid of anchor l) (section 4.4)."""
        start = torch.logit(decoded.reference_points.clamp(0, 1), eps=1e-5)
        return (self.model.bbox_predictor(states) + start).sigmoid()

"""Adapts DETR (Carion et al., ECCV 2020) from transformers."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection

from workbench.detectors.output import Queries
from workbench.detectors.single_level import SingleLevelDetector, SingleLevelModelConfig, normed_states
from workbench.detectors.transformers_adapter import label_names


class DetrModelConfig(SingleLevelModelConfig):
    """Describes the architecture of a DETR that starts from random weights."""

    family: Literal["detr"] = "detr"
    """Selects the family."""
    queries: int = Field(100, ge=1)
    """Number of queries, each of which predicts at most one object of an image."""

    def transformers_config(self, classes: tuple[str, ...]) -> DetrConfig:
        """Returns the transformers configuration of this model."""
        return DetrConfig(**self.common_fields(), **label_names(classes), d_model=self.width)


class Detr(SingleLevelDetector):
    """Adapter around ``DetrForObjectDetection``. It has a softmax head with no-object, and its queries are position embeddings."""

    family = "detr"
    model_class: ClassVar[type] = DetrForObjectDetection
    activation = "softmax"
    provides = frozenset({"memory", "neck", "backbone", "head", "queries", "states", "decode", "learned_queries", "attentions"})

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``: 1 / 5 / 2 (official code)."""
        return {"class": 1.0, "bbox": 5.0, "giou": 2.0}

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Re-initialises every layer with torch's defaults (official code)."""
        for layer in [self.model.class_labels_classifier, *self.model.bbox_predictor.layers]:
            layer.reset_parameters()

    def class_heads(self) -> list[tuple[nn.Module, str]]:
        """See ``TransformersDetector.class_heads``."""
        return [(self.model, "class_labels_classifier")]

    def query_table(self) -> nn.Embedding:
        """See ``SingleLevelDetector.query_table``."""
        return self.model.model.query_position_embeddings

    def reference_of(self, decoded: Any) -> None:
        """See ``SingleLevelDetector.reference_of``."""
        return None

    def call_decoder(self, arguments: dict[str, Any], queries: Queries, own: Queries) -> Any:
        """See ``SingleLevelDetector.call_decoder``. ``queries.position`` is required; a reference is not used."""
        arguments |= {"inputs_embeds": queries.content, "object_queries_position_embeddings": queries.position}
        return self.model.model.decoder(**arguments)

    def attention_modules(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """See ``SingleLevelDetector.attention_modules``."""
        return layer.self_attn, layer.encoder_attn

    def states_of(self, decoded: Any, seen: dict[str, Any]) -> Tensor:
        """See ``SingleLevelDetector.states_of``."""
        return normed_states(self.model.model.decoder, decoded, seen)

    def boxes_of(self, states: Tensor, decoded: Any) -> Tensor:
        """See ``SingleLevelDetector.boxes_of``."""
        return self.model.bbox_predictor(states).sigmoid()

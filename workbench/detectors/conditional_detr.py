"""Adapts Conditional DETR (Meng et al., ICCV 2021) from transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import ConditionalDetrConfig, ConditionalDetrForObjectDetection

from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Queries
from workbench.detectors.single_level import SingleLevelDetector, SingleLevelModelConfig, normed_states
from workbench.detectors.transformers_adapter import fresh_box_head, fresh_class_head, label_names


class ConditionalDetrModelConfig(SingleLevelModelConfig):
    """Describes the architecture of a Conditional DETR that starts from random weights."""

    family: Literal["conditional_detr"] = "conditional_detr"
    """Selects the family."""

    def transformers_config(self, classes: tuple[str, ...]) -> ConditionalDetrConfig:
        """Returns the transformers configuration of this model."""
        return ConditionalDetrConfig(**self.common_fields(), **label_names(classes), d_model=self.width)


class ConditionalDetr(SingleLevelDetector):
    """Adapter around ``ConditionalDetrForObjectDetection``. Queries are position embeddings, and their points are computed from them."""

    family = "conditional_detr"
    model_class: ClassVar[type] = ConditionalDetrForObjectDetection
    provides = frozenset({
        "memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "learned_queries", "attentions",
        "reference_from_position",
    })  # fmt: skip

    def __init__(self, model: ConditionalDetrForObjectDetection, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        # published models use no layer dropout, and hooks must see every layer
        model.model.decoder.layerdrop = 0.0
        self._points: Tensor | None = None
        model.model.decoder.ref_point_head.register_forward_hook(self._replace_points)

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Sets the class bias to the prior of the focal loss and lets boxes start at their reference (official code)."""
        fresh_class_head(self.model.class_labels_classifier)
        fresh_box_head(self.model.bbox_predictor)

    def class_heads(self) -> list[tuple[nn.Module, str]]:
        """See ``TransformersDetector.class_heads``."""
        return [(self.model, "class_labels_classifier")]

    def query_table(self) -> nn.Embedding:
        """See ``SingleLevelDetector.query_table``."""
        return self.model.model.query_position_embeddings

    def reference_of(self, decoded: Any) -> Tensor:
        """See ``SingleLevelDetector.reference_of``."""
        return decoded.reference_points.transpose(0, 1)

    def call_decoder(self, arguments: dict[str, Any], queries: Queries, own: Queries) -> Any:
        """See ``SingleLevelDetector.call_decoder``. ``queries.position`` is required; a missing ``queries.reference`` is computed from it.

        Only the centre of a reference with four numbers is used.
        """
        arguments |= {"inputs_embeds": queries.content, "object_queries_position_embeddings": queries.position}
        given = queries.reference if queries.reference is not own.reference else None
        with self._points_given(given):
            return self.model.model.decoder(**arguments)

    def attention_modules(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """See ``SingleLevelDetector.attention_modules``."""
        return layer.self_attn, layer.encoder_attn

    def states_of(self, decoded: Any, seen: dict[str, Any]) -> Tensor:
        """See ``SingleLevelDetector.states_of``."""
        return normed_states(self.model.model.decoder, decoded, seen)

    def boxes_of(self, states: Tensor, decoded: Any) -> Tensor:
        """See ``SingleLevelDetector.boxes_of``: sigmoid(head(state) + inverse sigmoid of the point) (section 3.3)."""
        start = torch.logit(decoded.reference_points.transpose(0, 1), eps=1e-5)
        delta = self.model.bbox_predictor(states)
        return torch.cat([delta[..., :2] + start, delta[..., 2:]], dim=-1).sigmoid()

    @contextmanager
    def _points_given(self, points: Tensor | None) -> Iterator[None]:
        """Makes the decoder use these points ``[B, N, 2 or 4]`` during the block, instead of those it computes from the positions."""
        self._points = points
        try:
            yield
        finally:
            self._points = None

    def _replace_points(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return None if self._points is None else torch.logit(self._points[..., :2], eps=1e-5)

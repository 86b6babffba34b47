"""Holds what DETR, Conditional DETR and DAB-DETR share: one feature level, a dense encoder, and heads that all decoder layers share."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import Recorded, hiding, recording
from workbench.detectors.backbone import BackboneConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level, Queries, QueryOutput
from workbench.detectors.transformers_adapter import TransformersDetector, split_levels, stride_of


class SingleLevelModelConfig(BaseModel):
    """Describes the architecture of a detector on one feature level."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: BackboneConfig
    """The backbone, with exactly one level."""
    width: int = Field(256, gt=0, multiple_of=4)
    """Channels of encoder and decoder. They are a multiple of 4: sine and cosine of two coordinates."""
    heads: int = Field(8, gt=0)
    """Number of attention heads; ``width`` must be a multiple of it."""
    ffn: int = Field(2048, gt=0)
    """Hidden channels of the feed-forward layers."""
    encoder_layers: int = Field(6, ge=1)
    """Number of encoder layers."""
    decoder_layers: int = Field(6, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(300, ge=1)
    """Number of queries, each of which predicts at most one object of an image."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of encoder and decoder in training."""
    dilation: bool = False
    """Dilates the last stage instead of striding it (DC5), which halves the stride of its level. Only timm backbones can do this."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if len(self.backbone.levels) != 1:
            raise ValueError(
                f"this family has one feature level, not the backbone's {list(self.backbone.levels)}: set backbone.levels to "
                "[2] for stride 8, [3] for 16, [4] for 32"
            )
        if self.dilation and self.backbone.library != "timm":
            raise ValueError("dilation needs a timm backbone such as timm/resnet50: transformers' own backbones cannot dilate")
        return self

    def common_fields(self) -> dict[str, Any]:
        """Returns the fields that the three families' transformers configurations have in common."""
        backbone = self.backbone.transformers_config()
        if self.dilation:
            backbone.output_stride = self.backbone.strides[-1] // 2
        return {
            "backbone_config": backbone,
            "num_queries": self.queries,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "encoder_attention_heads": self.heads,
            "decoder_attention_heads": self.heads,
            "encoder_ffn_dim": self.ffn,
            "decoder_ffn_dim": self.ffn,
            "dropout": self.dropout,
            "dilation": self.dilation,
            # this flag adds a norm between layers; the released weights of DETR and Conditional DETR were trained without it
            "auxiliary_loss": False,
        }


class SingleLevelDetector(TransformersDetector):
    """An adapter around a transformers model with one feature level. Hooks read its layers, whatever ``auxiliary_loss`` says."""

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        config, inner = model.config, model.model
        self.num_layers = config.decoder_layers
        self.num_queries = config.num_queries
        self.width = config.hidden_size
        self.keep_inputs("decoder", inner.decoder)
        self.keep_output("backbone", self.conv_encoder(model))
        self.keep_output("neck", inner.input_projection)
        for index, layer in enumerate(inner.decoder.layers):
            self.keep_output(f"layer{index}", layer)

    @classmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        """See ``TransformersDetector.build``. Encoder, decoder and queries also start as in the published code.

        transformers draws every matrix and the queries with standard deviation 0.02. The published code of all three families draws the
        matrices of encoder and decoder by Xavier's rule and the queries from the standard normal distribution. Without that, all queries
        look at the same place and the AP hardly leaves zero.
        """
        detector = super().build(config, spec)
        inner = detector.model.model
        for parameter in [*inner.encoder.parameters(), *inner.decoder.parameters()]:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        inner.input_projection.reset_parameters()
        detector.query_table().reset_parameters()
        detector.reset_heads()
        return detector

    @abstractmethod
    def query_table(self) -> nn.Embedding:
        """Returns the learned queries."""

    @abstractmethod
    def reference_of(self, decoded: Any) -> Tensor | None:
        """Returns the references ``[B, N, 2 or 4]`` that the decoder started from, read from its result ``decoded``."""

    @abstractmethod
    def call_decoder(self, arguments: dict[str, Any], queries: Queries, own: Queries) -> Any:
        """Calls the decoder with ``queries``.

        Args:
            arguments: keyword arguments of the call with the ``own`` queries.
            queries: the extra group, or the own queries again.
            own: the queries of inference.
        """

    @abstractmethod
    def boxes_of(self, states: Tensor, decoded: Any) -> Tensor:
        """Returns boxes ``[L, B, N, 4]`` from the states ``[L, B, N, D]`` that the heads see."""

    @abstractmethod
    def states_of(self, decoded: Any, seen: dict[str, Any]) -> Tensor:
        """Returns the decoder states ``[L, B, N, D]`` as the heads see them."""

    @abstractmethod
    def attention_modules(self, layer: Any) -> tuple[nn.Module, nn.Module]:
        """Returns the self- and cross-attention modules of a decoder layer, whose second output is the attention map."""

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. These families have no denoising, so ``targets`` is not used."""
        # DAB-DETR returns no maps without this flag; the other families ignore it
        options = {"output_attentions": True} if self.wants_attentions else {}
        with self.watching() as seen, self._recording() as recorded:
            decoded = self.model.model(images, pixel_mask=(~padding).to(torch.int64), return_dict=True, **options)
        arguments = seen["decoder"]
        backbone = tuple(Level(f, stride_of(images, f), ~m) for f, m in seen["backbone"])
        last = backbone[-1]
        shape = tuple(last.features.shape[-2:])
        memory = split_levels(arguments["encoder_hidden_states"], [shape], last.padding.flatten(1), images)
        neck = (Level(seen["neck"], last.stride, last.padding),)
        content = arguments["inputs_embeds"]
        source = torch.full(content.shape[:2], -1, dtype=torch.int64, device=content.device)
        queries = Queries(content, arguments.get("object_queries_position_embeddings"), self.reference_of(decoded), source)
        context = {"arguments": arguments, "memory": memory, "neck": neck, "backbone": backbone, "queries": queries}
        return self._output(decoded, seen, queries, context, recorded)

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """See ``Detector.decode``."""
        arguments = context["arguments"] | {"output_attentions": self.wants_attentions}
        hidden = hiding(queries.valid, [layer.self_attn for layer in self.model.model.decoder.layers])
        with self.watching() as seen, self._recording() as recorded, hidden:
            decoded = self.call_decoder(arguments, queries, context["queries"])
        if queries.reference is None:
            queries = replace(queries, reference=self.reference_of(decoded))
        return self._output(decoded, seen, queries, context, recorded)

    def _recording(self) -> AbstractContextManager[Recorded]:
        modules = [self.attention_modules(layer) for layer in self.model.model.decoder.layers]
        return recording(self.wants_attentions, self.model.config, [own for own, _ in modules], [cross for _, cross in modules])

    def _output(self, decoded: Any, seen: dict[str, Any], queries: Queries, context: dict[str, Any], recorded: Recorded) -> QueryOutput:
        states = self.states_of(decoded, seen)
        ((owner, name), *_) = self.class_heads()
        return QueryOutput(
            logits=getattr(owner, str(name))(states).float(),
            boxes=self.boxes_of(states, decoded).float(),
            states=states,
            queries=queries,
            memory=context["memory"],
            neck=context["neck"],
            backbone=context["backbone"],
            context=context,
            activation=self.activation,
            attentions=recorded.attentions(),
        )


def normed_states(decoder: Any, decoded: Any, seen: dict[str, Any]) -> Tensor:
    """Returns the states ``[L, B, N, D]`` after the norm, for the decoders of DETR and Conditional DETR.

    With ``auxiliary_loss`` transformers also feeds the normed state into the next layer and applies the norm to the last state twice. The
    hooks and the last state reproduce either behaviour.
    """
    hidden = [seen[f"layer{index}"] for index in range(len(decoder.layers))]
    return torch.stack([*(decoder.layernorm(state) for state in hidden[:-1]), decoded.last_hidden_state])

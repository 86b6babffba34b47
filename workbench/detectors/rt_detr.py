"""Adapts RT-DETR (Zhao et al., CVPR 2024) from transformers, and holds what its successors share with it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import Recorded, deformable_map, hiding, recording
from workbench.detectors.backbone import BackboneConfig, bare_backbone
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Attentions, AuxGroup, Level, Queries, QueryOutput
from workbench.detectors.quality_losses import varifocal_loss
from workbench.detectors.transformers_adapter import (
    TransformersDetector,
    fresh_class_head,
    label_names,
    padding_at,
    split_levels,
    stride_of,
)

QUALITY_WEIGHTS = {"class": 1.0, "bbox": 5.0, "giou": 2.0}
# references are kept this far from 0 and 1, so that their inverse sigmoid is finite
EDGE = 1e-7


class HybridModelConfig(BaseModel):
    """Describes the architecture of a detector with a hybrid encoder that starts from random weights; the defaults are RT-DETR-R50's."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: BackboneConfig
    """The backbone; each of its levels is a level of encoder and decoder."""
    width: int = Field(256, gt=0, multiple_of=4)
    """Channels of encoder and decoder; a multiple of 4 (position embeddings) and of ``heads``."""
    heads: int = Field(8, gt=0)
    """Number of attention heads; ``width`` must be a multiple of it."""
    ffn: int = Field(1024, gt=0)
    """Hidden channels of the feed-forward layers."""
    expansion: float = Field(1.0, gt=0, le=1)
    """Hidden channels of the encoder's fusion blocks, as a share of ``width``."""
    encoder_layers: int = Field(1, ge=0)
    """Number of self-attention layers on the last level. 0 leaves self-attention out of the encoder."""
    decoder_layers: int = Field(6, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(300, ge=1)
    """Number of queries, which are made from the encoder cells with the best class scores."""
    denoising: int = Field(100, ge=0)
    """Number of noisy copies of targets per image in training. 0 turns denoising off."""

    @model_validator(mode="after")
    def _divisible(self) -> "HybridModelConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    def shared_arguments(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns the arguments that the configurations of all these models have in common."""
        levels = len(self.backbone.levels)
        return {
            **label_names(classes),
            "backbone_config": self.backbone.transformers_config(),
            "feat_strides": list(self.backbone.strides),
            # only the number of levels matters here; the model takes the channels from the backbone
            "encoder_in_channels": [self.width] * levels,
            "decoder_in_channels": [self.width] * levels,
            "encode_proj_layers": [levels - 1],
            "num_feature_levels": levels,
            "encoder_hidden_dim": self.width,
            "d_model": self.width,
            "encoder_attention_heads": self.heads,
            "decoder_attention_heads": self.heads,
            "encoder_ffn_dim": self.ffn,
            "decoder_ffn_dim": self.ffn,
            "hidden_expansion": self.expansion,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "num_queries": self.queries,
            "num_denoising": self.denoising,
            "initializer_bias_prior_prob": 0.01,
            "auxiliary_loss": True,
        }


class RtDetrModelConfig(HybridModelConfig):
    """Describes the architecture of an RT-DETR."""

    family: Literal["rt_detr"] = "rt_detr"
    """Selects the family."""
    points: int = Field(4, ge=1)
    """Number of points that each head of the deformable attention samples in each level."""

    def transformers_config(self, classes: tuple[str, ...]) -> RTDetrConfig:
        """Returns the transformers configuration of this model."""
        return RTDetrConfig(**self.shared_arguments(classes), decoder_n_points=self.points)


@dataclass(frozen=True)
class Layers:
    """The decoder's predictions for all its queries, ``[L, B, denoising + N, ...]``."""

    states: Tensor
    logits: Tensor
    boxes: Tensor


class RtDetr(TransformersDetector):
    """Adapter around ``RTDetrForObjectDetection``. In training, denoising queries come first; they are returned in ``aux``."""

    family = "rt_detr"
    model_class: ClassVar[type] = RTDetrForObjectDetection
    provides = frozenset({"memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "attentions"})
    reads_padding = False
    quality_loss = staticmethod(varifocal_loss)

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        config = model.config
        self.num_layers = config.decoder_layers
        self.num_queries = config.num_queries
        self.width = config.d_model
        # the encoder doubles the size of maps and concatenates them with the next finer ones
        self.side_multiple = max(config.feat_strides) if len(config.feat_strides) > 1 else 1
        while sum((self.probe_side // stride) ** 2 for stride in config.feat_strides) < self.num_queries:
            self.probe_side *= 2
        self.keep_inputs("decoder", model.model.decoder)
        self.watch_features()

    def watch_features(self) -> None:
        """Registers the hooks that ``features`` reads from."""
        inner = self.model.model
        self.model.config.encoder_in_channels = list(inner.backbone.intermediate_channel_sizes)
        self.keep_output("backbone", inner.backbone)
        for index, projection in enumerate(inner.encoder_input_proj):
            self.keep_output(f"neck{index}", projection)

    def features(self, seen: dict[str, Any], images: Tensor, padding: Tensor) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
        """Returns the backbone levels and the projected levels."""
        backbone = tuple(Level(f, stride_of(images, f), ~m.bool()) for f, m in seen["backbone"])
        return backbone, tuple(Level(seen[f"neck{index}"], level.stride, level.padding) for index, level in enumerate(backbone))

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Initialises every layer after the backbone as the published code does.

        transformers draws all of them with standard deviation 0.01, even the scales of BatchNorm, and such a model hardly trains.
        """
        inner = self.model.model
        backbone = {id(module) for module in bare_backbone(self.conv_encoder(self.model)).modules()}
        for name, module in self.model.named_modules():
            own_start = id(module) in backbone or name.endswith(("sampling_offsets", "attention_weights"))
            if isinstance(module, nn.Linear | nn.Conv2d | nn.BatchNorm2d) and not own_start:
                module.reset_parameters()
        for head in [inner.enc_score_head, *inner.decoder.class_embed]:
            fresh_class_head(head)
        for head in [inner.enc_bbox_head, *inner.decoder.bbox_embed]:
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)

    def class_heads(self) -> list[tuple[nn.Module, int | str]]:
        """See ``TransformersDetector.class_heads``."""
        inner = self.model.model
        owners = [getattr(self.model, "class_embed", None), inner.decoder.class_embed]
        heads: list[tuple[nn.Module, int | str]] = [(owner, i) for owner in owners if owner is not None for i in range(len(owner))]
        return [*heads, (inner, "enc_score_head")]

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``. The embedding of noisy labels is reset too."""
        fresh = super().reset_classes(spec)
        if self.model.config.num_denoising > 0:
            classes = len(spec.classes)
            embedding = nn.Embedding(classes + 1, self.width, padding_idx=classes)
            nn.init.xavier_uniform_(embedding.weight)
            self.model.model.denoising_class_embed = embedding
            fresh.append("model.denoising_class_embed.weight")
        return fresh

    def label_table(self) -> Tensor | None:
        """See ``Detector.label_table``. The last row of the embedding stands for no class and is left out."""
        return self.model.model.denoising_class_embed.weight[:-1] if self.model.config.num_denoising > 0 else None

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``. The encoder's proposals and denoising queries have the weight of a decoder layer."""
        ends = ["", "_encoder", *(["_denoising"] if self.model.config.num_denoising > 0 else [])]
        return {f"{name}{end}": weight for end in ends for name, weight in QUALITY_WEIGHTS.items()}

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. The model itself does not see ``padding``."""
        denoises = self.training and targets is not None and self.model.config.num_denoising > 0
        labels = _labels(targets) if denoises and targets is not None else None
        with self.watching() as seen, self._recording() as recorded, self.every_layer():
            inner = self.model.model(images, pixel_mask=(~padding).to(torch.int64), labels=labels)
        arguments = seen["decoder"]
        noisy = arguments["inputs_embeds"].shape[1] - self.num_queries
        shapes = [(int(height), int(width)) for height, width in arguments["spatial_shapes_list"]]
        masks = torch.cat([padding_at(padding, shape).flatten(1) for shape in shapes], 1)
        memory = split_levels(arguments["encoder_hidden_states"], shapes, masks, images)
        backbone, neck = self.features(seen, images, padding)
        queries = Queries(
            content=arguments["inputs_embeds"][:, noisy:],
            position=None,
            reference=arguments["reference_points"][:, noisy:].sigmoid(),
            source=inner.enc_outputs_class.max(-1).values.topk(self.num_queries, dim=1)[1],
        )
        context = {"arguments": arguments, "memory": memory, "neck": neck, "backbone": backbone}
        layers = self.layers_of(inner)
        aux: tuple[AuxGroup, ...] = ()
        if self.training:
            aux = (AuxGroup("encoder", inner.enc_topk_logits[None].float(), inner.enc_topk_bboxes[None].float(), match=None),)
        if denoises and targets is not None:
            aux += self.denoising_groups(layers, inner.denoising_meta_values, targets)
        return self.output_of(layers, queries, context, recorded, aux)

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs decoder and heads again; ``queries.reference`` is required."""
        assert queries.reference is not None
        arguments = dict(context["arguments"])
        arguments["inputs_embeds"] = queries.content
        arguments["reference_points"] = torch.logit(queries.reference.clamp(0, 1), eps=EDGE)
        # this mask keeps denoising queries apart, but the queries here are one group
        arguments["encoder_attention_mask"] = None
        own = [layer.self_attn for layer in self.model.model.decoder.layers]
        with self._recording() as recorded, self.every_layer(), hiding(queries.valid, own):
            found = self.model.model.decoder(**arguments)
        return self.output_of(self.layers_of(found), queries, context, recorded)

    def every_layer(self) -> AbstractContextManager[None]:
        """Makes the decoder return all layers while the block runs. This family's decoder always does."""
        return nullcontext()

    def layers_of(self, found: Any) -> Layers:
        """Returns the decoder's predictions. ``found`` is its output, or the whole model's output with the same names."""
        states, logits, boxes = found.intermediate_hidden_states, found.intermediate_logits, found.intermediate_reference_points
        return Layers(states.transpose(0, 1), logits.transpose(0, 1).float(), boxes.transpose(0, 1).float())

    def output_of(self, layers: Layers, queries: Queries, context: Any, recorded: Recorded, aux: tuple[AuxGroup, ...] = ()) -> QueryOutput:
        """Returns the output for the queries of inference, which are the last ones."""
        noisy = layers.states.shape[2] - queries.content.shape[1]
        attentions = recorded.attentions()
        if attentions is not None:
            own, cross = attentions.self_attention, attentions.cross_attention
            attentions = Attentions(own[..., noisy:, noisy:], cross[..., noisy:, :])
        return QueryOutput(
            logits=layers.logits[:, :, noisy:],
            boxes=layers.boxes[:, :, noisy:],
            states=layers.states[:, :, noisy:],
            queries=queries,
            memory=context["memory"],
            neck=context["neck"],
            backbone=context["backbone"],
            context=context,
            aux=aux,
            attentions=attentions,
        )

    def denoising_groups(self, layers: Layers, meta: dict[str, Any] | None, targets: TargetBatch) -> tuple[AuxGroup, ...]:
        """Returns the denoising queries with the targets that they must restore. The group is empty if no image has a target.

        Args:
            layers: predictions of the decoder.
            meta: what transformers returns about the groups, ``dn_positive_idx`` and ``dn_num_group``; None without targets.
            targets: targets of the batch.
        """
        if meta is None:
            # an empty group still gives every parameter a gradient in every step, as distributed training requires
            nothing = layers.logits[:, :, :0] + 0 * self.model.model.denoising_class_embed.weight.sum()
            return (AuxGroup("denoising", nothing, layers.boxes[:, :, :0], nothing.new_zeros(nothing.shape[:3], dtype=torch.int64)),)
        noisy, copies = layers.logits.shape[2] - self.num_queries, int(meta["dn_num_group"])
        match = torch.full((len(targets.labels), noisy), -1, device=targets.labels.device)
        for row, (positive, valid) in enumerate(zip(meta["dn_positive_idx"], targets.valid, strict=True)):
            match[row, positive] = valid.nonzero()[:, 0].repeat(copies)
        match = match.expand(len(layers.logits), -1, -1)
        return (AuxGroup("denoising", layers.logits[:, :, :noisy], layers.boxes[:, :, :noisy], match, copies=copies),)

    def _recording(self) -> AbstractContextManager[Recorded]:
        layers: list[Any] = list(self.model.model.decoder.layers)
        own, cross = [layer.self_attn for layer in layers], [layer.encoder_attn for layer in layers]
        return recording(self.wants_attentions, self.model.config, own, cross, type(self).cross_map)

    @staticmethod
    def cross_map(module: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        """Returns where a cross-attention of the decoder reads, ``[B, 1, N, S]``."""
        return deformable_map(module, arguments, output)


def _labels(targets: TargetBatch) -> list[dict[str, Tensor]]:
    """Returns the targets that may be matched, in the format of transformers."""
    rows = zip(targets.labels, targets.boxes, targets.valid, strict=True)
    return [{"class_labels": labels[valid], "boxes": boxes[valid]} for labels, boxes, valid in rows]

"""Adapts LW-DETR (Chen et al., 2024) from transformers, and holds what RF-DETR shares with it: ViT, projector and query groups."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import LwDetrConfig, LwDetrForObjectDetection, LwDetrViTConfig

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import Recorded, deformable_map, recording
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import AuxGroup, DetectorOutput, Level, Queries, QueryOutput
from workbench.detectors.quality_losses import iou_aware_loss
from workbench.detectors.query_mask import hiding_by_attention
from workbench.detectors.rt_detr import QUALITY_WEIGHTS
from workbench.detectors.transformers_adapter import TransformersDetector, fresh_class_head, label_names, padding_at, split_levels

SCALES = (0.5, 1.0, 2.0)


class ViTConfig(BaseModel):
    """Describes a plain vision transformer whose attention stays inside windows, except in a few layers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    side: int = Field(1024, gt=0)
    """Side in pixels of the square images that the position embeddings are made for. Other sizes interpolate them."""
    patch: int = Field(16, gt=0)
    """Side of a patch in pixels."""
    width: int = Field(192, gt=0)
    """Channels of a patch; a multiple of ``heads``."""
    heads: int = Field(12, gt=0)
    """Number of attention heads; ``width`` must be a multiple of it."""
    depth: int = Field(10, gt=0)
    """Number of transformer layers."""
    windows: int = Field(4, gt=0)
    """Number of windows along each side of an image."""
    levels: tuple[int, ...] = (2, 4, 5, 9)
    """Layers whose outputs go on to the projector, counted from 1 and ascending."""
    windowed: tuple[int, ...] | None = None
    """Layers whose attention stays inside windows, counted from 0. Null takes all layers that are not in ``levels``."""

    @model_validator(mode="after")
    def _consistent(self) -> "ViTConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or not 1 <= self.levels[0] <= self.levels[-1] <= self.depth:
            raise ValueError(f"levels {list(self.levels)} must be ascending layers between 1 and {self.depth}")
        if self.side % (self.patch * self.windows):
            raise ValueError(f"side {self.side} is not a multiple of patch times windows, {self.patch * self.windows}")
        return self

    @property
    def local(self) -> list[int]:
        """Returns the 0-based indices of the layers whose attention stays inside windows."""
        if self.windowed is not None:
            return list(self.windowed)
        return [layer for layer in range(self.depth) if layer + 1 not in self.levels]


class GroupedModelConfig(BaseModel):
    """Describes the architecture of a detector whose decoder trains several groups of queries at once and keeps the first."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    backbone: ViTConfig
    """The vision transformer that reads the image."""
    width: int = Field(256, gt=0, multiple_of=4)
    """Channels of the decoder; a multiple of 4, of ``heads`` and of ``cross_heads``."""
    heads: int = Field(8, gt=0)
    """Number of heads of the decoder's self-attention."""
    cross_heads: int = Field(16, gt=0)
    """Number of heads of the deformable cross-attention."""
    ffn: int = Field(2048, gt=0)
    """Hidden channels of the feed-forward layers."""
    decoder_layers: int = Field(3, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(300, ge=1)
    """Number of queries in each group."""
    points: int = Field(2, ge=1)
    """Number of points that each head of the deformable attention samples in each level."""
    groups: int = Field(13, ge=1)
    """Number of query groups in training. Inference uses the first group alone."""

    @model_validator(mode="after")
    def _divisible(self) -> "GroupedModelConfig":
        for name in ("heads", "cross_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        return self

    def shared_arguments(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Returns the arguments that the configurations of both models have in common."""
        return {
            **label_names(classes),
            "d_model": self.width,
            "decoder_self_attention_heads": self.heads,
            "decoder_cross_attention_heads": self.cross_heads,
            "decoder_ffn_dim": self.ffn,
            "decoder_layers": self.decoder_layers,
            "num_queries": self.queries,
            "decoder_n_points": self.points,
            "group_detr": self.groups,
            "dropout": 0.0,
            "auxiliary_loss": True,
        }


class LwDetrModelConfig(GroupedModelConfig):
    """Describes the architecture of an LW-DETR; the defaults are LW-DETR-small's."""

    family: Literal["lw_detr"] = "lw_detr"
    """Selects the family."""
    # transformers' own default has no scales, and its model then fails because it has no levels to concatenate
    scales: tuple[float, ...] = Field((1.0,), min_length=1)
    """Size of each feature level relative to the grid of patches: 0.5, 1 or 2."""

    @model_validator(mode="after")
    def _known_scales(self) -> "LwDetrModelConfig":
        if unknown := [scale for scale in self.scales if scale not in SCALES]:
            raise ValueError(f"scales {unknown} are not among {list(SCALES)}")
        return self

    def transformers_config(self, classes: tuple[str, ...]) -> LwDetrConfig:
        """Returns the transformers configuration of this model."""
        vit = self.backbone
        backbone = LwDetrViTConfig(
            image_size=vit.side,
            pretrain_image_size=vit.side,
            patch_size=vit.patch,
            hidden_size=vit.width,
            num_attention_heads=vit.heads,
            num_hidden_layers=vit.depth,
            num_windows=vit.windows**2,
            window_block_indices=vit.local,
            out_features=[f"stage{level}" for level in vit.levels],  # pyright: ignore[reportCallIssue]
        )
        return LwDetrConfig(**self.shared_arguments(classes), backbone_config=backbone, projector_scale_factors=list(self.scales))


class LwDetr(TransformersDetector):
    """Adapter around ``LwDetrForObjectDetection``. Groups after the first train the shared weights and are returned in ``aux``.

    The decoder reads the projector's output, which is ``neck`` because no encoder follows it.
    """

    family = "lw_detr"
    model_class: ClassVar[type] = LwDetrForObjectDetection
    provides = frozenset({"neck", "backbone", "head", "queries", "states", "decode", "references", "attentions"})
    quality_loss = staticmethod(iou_aware_loss)

    def __init__(self, model: Any, spec: InputSpec, trainable_norm: bool = True):
        # the ViT has no BatchNorm to freeze
        super().__init__(model, spec, trainable_norm=True)
        config = model.config
        self.num_layers = config.decoder_layers
        self.num_queries = config.num_queries
        self.width = config.d_model
        patch = config.backbone_config.patch_size
        self.side_multiple = patch * self.windows(config.backbone_config)
        # enough cells even in a level at half the patches' resolution, whose border yields no proposals
        needed = 2 * patch * (math.isqrt(self.num_queries) + 3)
        self.probe_side = -(-max(self.probe_side, needed) // self.side_multiple) * self.side_multiple
        inner = model.model
        self.keep_inputs("decoder", inner.decoder)
        self.keep_output("backbone", inner.backbone.backbone)
        self.keep_output("scores", inner.enc_out_class_embed[0])

    @staticmethod
    def windows(backbone: Any) -> int:
        """Returns the number of windows along each side of an image, from the configuration of the ViT."""
        return math.isqrt(backbone.num_windows)

    def scales(self) -> tuple[float, ...]:
        """Returns the resolution of each level relative to the grid of patches."""
        return tuple(self.model.config.projector_scale_factors)

    @classmethod
    def build(cls, config: Any, spec: InputSpec) -> Self:
        """See ``Detector.build``. This family has no ImageNet weights to load."""
        detector = cls(cls.model_class(config.transformers_config(spec.classes)), spec)
        detector.reset_heads()
        return detector

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Sets the class bias to the prior of the focal loss and lets boxes start at their reference (official code)."""
        inner = self.model.model
        for head in [self.model.class_embed, *inner.enc_out_class_embed]:
            fresh_class_head(head)
        for head in [self.model.bbox_embed, *inner.enc_out_bbox_embed]:
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)

    def class_heads(self) -> list[tuple[nn.Module, int | str]]:
        """See ``TransformersDetector.class_heads``."""
        proposals = self.model.model.enc_out_class_embed
        return [(self.model, "class_embed"), *((proposals, index) for index in range(len(proposals)))]

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``."""
        fresh = super().reset_classes(spec)
        self.keep_output("scores", self.model.model.enc_out_class_embed[0])
        return fresh

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``. Proposals and further groups have the weight of the first group."""
        ends = ["", "_encoder", *(["_groups"] if self.model.config.group_detr > 1 else [])]
        return {f"{name}{end}": weight for end in ends for name, weight in QUALITY_WEIGHTS.items()}

    def losses(
        self, output: DetectorOutput, targets: TargetBatch, num_boxes: Tensor | float, match: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See ``Detector.losses``. All terms are divided by the number of groups, because every target counts once in each group."""
        groups = self.model.config.group_detr if output.aux else 1
        return super().losses(output, targets, num_boxes * groups, match)

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. This family has no denoising, so ``targets`` is not used."""
        with self.watching() as seen, self._recording() as recorded:
            inner = self.model.model(images, pixel_mask=(~padding).to(torch.int64))
        arguments, count = seen["decoder"], self.num_queries
        shapes = [(int(height), int(width)) for height, width in arguments["spatial_shapes_list"]]
        masked = ~arguments["encoder_attention_mask"].bool()
        levels = split_levels(arguments["encoder_hidden_states"], shapes, masked, images)
        # the side of a patch need not be a power of two
        patch = self.model.config.backbone_config.patch_size
        neck = tuple(replace(level, stride=round(patch / scale)) for level, scale in zip(levels, self.scales(), strict=True))
        last = seen["backbone"].feature_maps[-1]
        # all layers of a ViT have one size, so the last one is the backbone level
        backbone = (Level(last, patch, padding_at(padding, last.shape[-2:])),)
        _, _, invalid = self.model.model.gen_encoder_output_proposals(arguments["encoder_hidden_states"], masked, shapes)
        scores = seen["scores"].masked_fill(invalid, float("-inf")).amax(-1)
        queries = Queries(
            content=arguments["inputs_embeds"][:, :count],
            position=None,
            reference=arguments["reference_points"][:, :count],
            source=scores.topk(count, dim=1)[1],
        )
        context = {"arguments": arguments, "neck": neck, "backbone": backbone}
        logits, boxes = self._heads(inner)
        aux = self._groups(inner, logits, boxes) if self.training else ()
        return self._output(inner, logits, boxes, queries, context, recorded, aux)

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs decoder and heads again; ``queries.reference`` is required."""
        arguments = dict(context["arguments"])
        arguments["inputs_embeds"] = queries.content
        arguments["reference_points"] = queries.reference
        config = self.model.config
        with self._recording() as recorded, _one_group(config), hiding_by_attention(queries.valid, config):
            found = self.model.model.decoder(**arguments)
        return self._output(found, *self._heads(found), queries, context, recorded)

    def _heads(self, found: Any) -> tuple[Tensor, Tensor]:
        """Returns class logits and boxes of every layer. All layers predict offsets from the first reference."""
        states, reference = found.intermediate_hidden_states, found.intermediate_reference_points
        shift = self.model.bbox_embed(states).float()
        centre, sides = reference[..., :2], reference[..., 2:]
        boxes = torch.cat([shift[..., :2] * sides + centre, shift[..., 2:].exp() * sides], -1)
        return self.model.class_embed(states).float(), boxes

    def _groups(self, inner: Any, logits: Tensor, boxes: Tensor) -> tuple[AuxGroup, ...]:
        """Returns the encoder's proposals of every group, and the groups after the first. Groups lie along the first axis."""
        count, heads = self.num_queries, self.model.model.enc_out_class_embed
        features = inner.enc_outputs_class.split(count, dim=1)
        proposed = torch.stack([head(part) for head, part in zip(heads, features, strict=True)]).float()
        places = torch.stack(inner.enc_outputs_coord_logits.split(count, dim=1)).float()
        aux = (AuxGroup("encoder", proposed, places, match=None),)
        if logits.shape[2] == count:
            return aux
        further_logits, further_boxes = torch.cat(logits.split(count, 2)[1:]), torch.cat(boxes.split(count, 2)[1:])
        return (*aux, AuxGroup("groups", further_logits, further_boxes, match=None))

    def _output(
        self, found: Any, logits: Tensor, boxes: Tensor, queries: Queries, context: Any, recorded: Recorded,
        aux: tuple[AuxGroup, ...] = (),
    ) -> QueryOutput:  # fmt: skip
        """Returns the predictions of the first group."""
        count = queries.content.shape[1]
        return QueryOutput(
            logits=logits[:, :, :count],
            boxes=boxes[:, :, :count],
            states=found.intermediate_hidden_states[:, :, :count],
            queries=queries,
            memory=(),
            neck=context["neck"],
            backbone=context["backbone"],
            context=context,
            aux=aux,
            attentions=recorded.attentions() if logits.shape[2] == count else None,
        )

    def _recording(self) -> AbstractContextManager[Recorded]:
        layers: list[Any] = list(self.model.model.decoder.layers)
        own, cross = [layer.self_attn for layer in layers], [layer.cross_attn for layer in layers]
        return recording(self.wants_attentions, self.model.config, own, cross, deformable_map)


@contextmanager
def _one_group(config: Any) -> Iterator[None]:
    """Makes the decoder's self-attention treat its queries as one group; in training it splits them by ``group_detr``."""
    before, config.group_detr = config.group_detr, 1
    try:
        yield
    finally:
        config.group_detr = before

"""Adapts Deformable DETR (Zhu et al., ICLR 2021) from transformers, one- or two-stage, with or without box refinement."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import Recorded, deformable_map, hiding, recording
from workbench.detectors.backbone import BackboneConfig
from workbench.detectors.criterion import SET_LOSS_WEIGHTS
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import AuxGroup, Level, Queries, QueryOutput
from workbench.detectors.transformers_adapter import TransformersDetector, fresh_class_head, label_names, split_levels, stride_of, unique


class DeformableDetrModelConfig(BaseModel):
    """Describes the architecture of a Deformable DETR that starts from random weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    family: Literal["deformable_detr"] = "deformable_detr"
    """Selects the family."""
    backbone: BackboneConfig
    """The backbone, whose levels become the first feature levels."""
    width: int = Field(256, gt=0, multiple_of=32)
    """Channels of encoder and decoder. They are a multiple of 32, because the neck's GroupNorm has 32 groups."""
    heads: int = Field(8, gt=0)
    """Number of attention heads; ``width`` must be a multiple of it."""
    ffn: int = Field(1024, gt=0)
    """Hidden channels of the feed-forward layers."""
    encoder_layers: int = Field(6, ge=1)
    """Number of encoder layers."""
    decoder_layers: int = Field(6, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(300, ge=1)
    """Number of queries, each of which predicts at most one object of an image."""
    levels: int = Field(4, ge=1)
    """Number of feature levels. Those beyond the backbone's are made by convolutions of stride 2."""
    points: int = Field(4, ge=1)
    """Number of points that each head of the deformable attention samples in each level."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate of encoder and decoder in training."""
    box_refine: bool = False
    """Lets every decoder layer refine the boxes of the layer before it."""
    two_stage: bool = False
    """Makes the queries from the encoder cells with the best class scores instead of learning them. It needs ``box_refine``."""

    @model_validator(mode="after")
    def _consistent(self) -> "DeformableDetrModelConfig":
        if self.two_stage and not self.box_refine:
            raise ValueError("two_stage needs box_refine: true")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.levels < len(self.backbone.levels) or (self.levels == 1 and len(self.backbone.levels) > 1):
            raise ValueError(f"levels {self.levels} is less than the backbone's {len(self.backbone.levels)}")
        return self

    def transformers_config(self, classes: tuple[str, ...]) -> DeformableDetrConfig:
        """Returns the transformers configuration of this model."""
        return DeformableDetrConfig(
            backbone_config=self.backbone.transformers_config(),
            **label_names(classes),
            d_model=self.width,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=self.ffn,
            decoder_ffn_dim=self.ffn,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            num_queries=self.queries,
            two_stage_num_proposals=self.queries,
            num_feature_levels=self.levels,
            encoder_n_points=self.points,
            decoder_n_points=self.points,
            dropout=self.dropout,
            with_box_refine=self.box_refine,
            two_stage=self.two_stage,
            auxiliary_loss=True,
        )


class _Model(DeformableDetrForObjectDetection):
    """Transformers' model, made buildable with a single decoder layer, for which tying the heads of later layers fails."""

    def __init__(self, config: DeformableDetrConfig):
        if config.decoder_layers == 1 and not config.two_stage:
            self._tied_weights_keys = {}
        super().__init__(config)


# the name that config.json gets: the weights are those of transformers' own class
_Model.__name__ = DeformableDetrForObjectDetection.__name__


class DeformableDetr(TransformersDetector):
    """Adapter around ``DeformableDetrForObjectDetection``. Hooks read what transformers does not return."""

    family = "deformable_detr"
    model_class: ClassVar[type] = _Model
    provides = frozenset({
        "memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "learned_queries", "attentions",
        "reference_from_position",
    })  # fmt: skip

    def __init__(self, model: DeformableDetrForObjectDetection, spec: InputSpec, trainable_norm: bool):
        super().__init__(model, spec, trainable_norm)
        config = model.config
        self.num_layers = config.decoder_layers
        self.num_queries = config.two_stage_num_proposals if config.two_stage else config.num_queries
        self.width = config.d_model
        self.two_stage = bool(config.two_stage)
        if self.two_stage:
            self.provides = self.provides - {"learned_queries", "reference_from_position"}
        inner = model.model
        self.keep_inputs("decoder", inner.decoder)
        self.keep_output("backbone", inner.backbone)
        for index, projection in enumerate(inner.input_proj):
            self.keep_output(f"neck{index}", projection)

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Sets the class bias to the prior of the focal loss and lets boxes start small and at their reference (official code)."""
        for head in unique([*self.model.class_embed, *(self.model.model.decoder.class_embed or [])]):
            fresh_class_head(head)
        for head in unique([*self.model.bbox_embed, *(self.model.model.decoder.bbox_embed or [])]):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
            head.layers[-1].bias[2:] = -2.0

    def class_heads(self) -> list[tuple[nn.ModuleList, int]]:
        """See ``TransformersDetector.class_heads``."""
        decoder = self.model.model.decoder
        owners = [self.model.class_embed, *([decoder.class_embed] if decoder.class_embed is not None else [])]
        return [(owner, index) for owner in owners for index in range(len(owner))]

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``. The encoder's proposals have the weight of a decoder layer (official code)."""
        proposals = {f"{name}_encoder": weight for name, weight in SET_LOSS_WEIGHTS.items()} if self.two_stage else {}
        return SET_LOSS_WEIGHTS | proposals

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. This family has no denoising, so ``targets`` is not used."""
        with self.watching() as seen, self._recording() as recorded:
            inner = self.model.model(images, pixel_mask=(~padding).to(torch.int64), return_dict=True)
        arguments = seen["decoder"]
        shapes = [tuple(int(v) for v in shape) for shape in arguments["spatial_shapes_list"]]
        memory = split_levels(inner.encoder_last_hidden_state, shapes, ~arguments["encoder_attention_mask"].bool(), images)
        neck = tuple(Level(seen[f"neck{index}"], level.stride, level.padding) for index, level in enumerate(memory))
        backbone = tuple(Level(f, stride_of(images, f), ~m.bool()) for f, m in seen["backbone"])
        source, aux = self._selection(inner, arguments)
        queries = Queries(
            content=arguments["inputs_embeds"],
            position=arguments["object_queries_position_embeddings"],
            reference=inner.init_reference_points,
            source=source,
        )
        context = {"arguments": arguments, "memory": memory, "neck": neck, "backbone": backbone}
        return self._heads(inner, queries, context, aux, recorded)

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs decoder and heads again; ``queries.position`` is required.

        Without ``queries.reference``, the model's own layer computes it from the position. Two-stage models have no such layer.
        """
        if queries.reference is None:
            queries = replace(queries, reference=self.model.model.reference_points(queries.position).sigmoid())
        arguments = dict(context["arguments"])
        arguments["inputs_embeds"] = queries.content
        arguments["object_queries_position_embeddings"] = queries.position
        arguments["reference_points"] = queries.reference
        with self._recording() as recorded, hiding(queries.valid, [layer.self_attn for layer in self.model.model.decoder.layers]):
            inner = self.model.model.decoder(**arguments)
        inner.init_reference_points = queries.reference
        return self._heads(inner, queries, context, (), recorded)

    def queries_of_boxes(self, output: QueryOutput, boxes: Tensor, content: Tensor) -> Queries:
        """See ``Detector.queries_of_boxes``. A two-stage model computes positions from boxes, as it does for its own proposals."""
        queries = super().queries_of_boxes(output, boxes, content)
        if not self.two_stage:
            return queries
        inner: Any = self.model.model
        made = inner.pos_trans_norm(inner.pos_trans(inner.get_proposal_pos_embed(torch.logit(boxes, eps=1e-5))))
        return replace(queries, position=made[..., : self.width])

    def _recording(self) -> AbstractContextManager[Recorded]:
        layers: list[Any] = list(self.model.model.decoder.layers)
        own, cross = [layer.self_attn for layer in layers], [layer.encoder_attn for layer in layers]
        return recording(self.wants_attentions, self.model.config, own, cross, deformable_map)

    def _heads(self, inner: Any, queries: Queries, context: Any, aux: tuple[AuxGroup, ...], recorded: Recorded) -> QueryOutput:
        """Applies class and box heads of every layer: box l = sigmoid(head(state l) + inverse sigmoid of reference l-1)."""
        states = inner.intermediate_hidden_states.transpose(0, 1)
        references = [inner.init_reference_points, *inner.intermediate_reference_points.unbind(1)[:-1]]
        logits, boxes = [], []
        for layer, (state, reference) in enumerate(zip(states, references, strict=True)):
            logits.append(self.model.class_embed[layer](state))
            delta = self.model.bbox_embed[layer](state)
            start = torch.logit(reference.clamp(0, 1), eps=1e-5)
            if start.shape[-1] == 2:
                start = torch.cat([start, torch.zeros_like(start)], dim=-1)
            boxes.append((delta + start).sigmoid())
        return QueryOutput(
            logits=torch.stack(logits).float(),
            boxes=torch.stack(boxes).float(),
            states=states,
            queries=queries,
            memory=context["memory"],
            neck=context["neck"],
            backbone=context["backbone"],
            context=context,
            aux=aux,
            attentions=recorded.attentions(),
        )

    def _selection(self, inner: Any, arguments: dict[str, Any]) -> tuple[Tensor, tuple[AuxGroup, ...]]:
        """Returns the encoder cell of each two-stage query, and the encoder's proposals as a training-only group."""
        shape = arguments["reference_points"].shape[:2]
        if not self.two_stage:
            return torch.full(shape, -1, dtype=torch.int64, device=arguments["reference_points"].device), ()
        source = inner.enc_outputs_class[..., 0].topk(shape[1], dim=1)[1]
        boxes = inner.enc_outputs_coord_logits.sigmoid()
        proposals = AuxGroup("encoder", inner.enc_outputs_class[None].float(), boxes[None].float(), match=None, any_class=True)
        return source, (proposals,) if self.training else ()

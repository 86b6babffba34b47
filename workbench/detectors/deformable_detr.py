"""Deformable DETR (Zhu et al., ICLR 2021) through transformers, one- or two-stage, with or without box refinement."""

import functools
import math
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from workbench.detectors.backbone import BackboneConfig, make_trainable
from workbench.detectors.base import Detector, InputSpec
from workbench.detectors.criterion import SET_LOSS_WEIGHTS
from workbench.detectors.output import AuxGroup, DetectorOutput, Level, Queries
from workbench.detectors.storage import load_plain, load_weights, plain_spec, read_config, read_spec, save_weights
from workbench.matching import TargetBatch

CLASS_PRIOR = 0.01


class DeformableDetrModelConfig(BaseModel):
    """Architecture of a Deformable DETR trained from random weights.

    Attributes:
        width: channels of encoder and decoder, a multiple of 32 (the neck's GroupNorm has 32 groups).
        levels: feature levels; those beyond the backbone's are made by stride-2 convolutions.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["deformable_detr"] = "deformable_detr"
    backbone: BackboneConfig
    width: int = Field(256, gt=0, multiple_of=32)
    heads: int = Field(8, gt=0)
    ffn: int = Field(1024, gt=0)
    encoder_layers: int = Field(6, ge=1)
    decoder_layers: int = Field(6, ge=1)
    queries: int = Field(300, ge=1)
    levels: int = Field(4, ge=1)
    points: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    box_refine: bool = False
    two_stage: bool = False

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
        """The same model in transformers' words."""
        return DeformableDetrConfig(
            backbone_config=self.backbone.transformers_config(),
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
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


class DeformableDetr(Detector):
    """Adapter around ``DeformableDetrForObjectDetection``; hooks read what transformers does not return."""

    family = "deformable_detr"
    provides = frozenset({"memory", "neck", "backbone", "states", "decode", "references", "learned_queries"})

    def __init__(self, model: DeformableDetrForObjectDetection, spec: InputSpec, trainable_norm: bool):
        super().__init__()
        self.model = model
        self.spec = spec
        self.trainable_norm = trainable_norm
        if trainable_norm:
            make_trainable(model.model.backbone)
        config = model.config
        self.num_layers = config.decoder_layers
        self.num_queries = config.two_stage_num_proposals if config.two_stage else config.num_queries
        self.width = config.d_model
        self.two_stage = bool(config.two_stage)
        if self.two_stage:
            self.provides = self.provides - {"learned_queries"}
        self._seen: dict[str, Any] = {}
        inner = model.model
        inner.decoder.register_forward_pre_hook(self._see_decoder, with_kwargs=True)
        inner.backbone.register_forward_hook(self._see_backbone)
        for index, projection in enumerate(inner.input_proj):
            # a partial, unlike a closure, follows the module into a deep copy
            projection.register_forward_hook(functools.partial(self._see_neck, index))

    @classmethod
    def build(cls, config: DeformableDetrModelConfig, spec: InputSpec) -> "DeformableDetr":
        """A model with random weights from torch's global generator, initialised as the published code does."""
        model = DeformableDetrForObjectDetection(config.transformers_config(spec.classes))
        detector = cls(model, spec, trainable_norm=config.backbone.norm == "batch")
        detector.reset_heads()
        return detector

    @torch.no_grad()
    def reset_heads(self) -> None:
        """Class prior of the focal loss on the bias, and boxes that start small and at their reference (official code)."""
        for head in _unique([*self.model.class_embed, *(self.model.model.decoder.class_embed or [])]):
            nn.init.normal_(head.weight, std=0.02)
            nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
        for head in _unique([*self.model.bbox_embed, *(self.model.model.decoder.bbox_embed or [])]):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)
            head.layers[-1].bias[2:] = -2.0

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """Gives the model a fresh class head for ``spec.classes``; returns the names of the re-initialised weights."""
        config = self.model.config
        config.id2label = dict(enumerate(spec.classes))
        config.label2id = {name: index for index, name in enumerate(spec.classes)}
        decoder = self.model.model.decoder
        fresh: dict[int, nn.Linear] = {}
        for owner in [self.model.class_embed, *([decoder.class_embed] if decoder.class_embed is not None else [])]:
            for index, head in enumerate(owner):
                if id(head) not in fresh:
                    fresh[id(head)] = nn.Linear(head.in_features, len(spec.classes))
                    nn.init.normal_(fresh[id(head)].weight, std=0.02)
                    nn.init.constant_(fresh[id(head)].bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
                owner[index] = fresh[id(head)]
        self.spec = spec
        self.model.tie_weights()
        return [name for name, _ in self.model.named_parameters() if "class_embed" in name]

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``; proposals of the encoder weigh as much as a decoder layer (official code)."""
        proposals = {f"{name}_encoder": weight for name, weight in SET_LOSS_WEIGHTS.items()} if self.two_stage else {}
        return SET_LOSS_WEIGHTS | proposals

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DetectorOutput:
        """See ``Detector.forward``; this family has no denoising, ``targets`` is not used."""
        seen = self._seen = {"neck": {}}
        inner = self.model.model(images, pixel_mask=(~padding).to(torch.int64), return_dict=True)
        arguments = seen["decoder"]
        shapes = [tuple(int(v) for v in shape) for shape in arguments["spatial_shapes_list"]]
        valid = arguments["encoder_attention_mask"].split([h * w for h, w in shapes], dim=1)
        masks = [~mask.unflatten(1, shape).bool() for mask, shape in zip(valid, shapes, strict=True)]
        strides = [_stride(images, shape) for shape in shapes]
        memory = inner.encoder_last_hidden_state.split([h * w for h, w in shapes], dim=1)
        memory = tuple(
            Level(cells.transpose(1, 2).unflatten(2, shape), stride, mask)
            for cells, shape, stride, mask in zip(memory, shapes, strides, masks, strict=True)
        )
        neck = tuple(Level(seen["neck"][i], stride, mask) for i, (stride, mask) in enumerate(zip(strides, masks, strict=True)))
        backbone = tuple(Level(f, _stride(images, tuple(f.shape[-2:])), ~m.bool()) for f, m in seen["backbone"])
        source, aux = self._selection(inner, arguments)
        queries = Queries(
            content=arguments["inputs_embeds"],
            position=arguments["object_queries_position_embeddings"],
            reference=inner.init_reference_points,
            source=source,
        )
        context = {"arguments": arguments, "memory": memory, "neck": neck, "backbone": backbone}
        self._seen = {}
        return self._heads(inner, queries, context, aux)

    def decode(self, queries: Queries, context: Any) -> DetectorOutput:
        """Second call of decoder and heads; ``queries.position`` and ``queries.reference`` are needed."""
        arguments = dict(context["arguments"])
        arguments["inputs_embeds"] = queries.content
        arguments["object_queries_position_embeddings"] = queries.position
        arguments["reference_points"] = queries.reference
        inner = self.model.model.decoder(**arguments)
        self._seen = {}
        inner.init_reference_points = queries.reference
        return self._heads(inner, queries, context, ())

    def _heads(self, inner: Any, queries: Queries, context: Any, aux: tuple[AuxGroup, ...]) -> DetectorOutput:
        """Class and box heads of every layer: box l = sigmoid(head(state l) + inverse sigmoid of reference l-1)."""
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
        return DetectorOutput(
            logits=torch.stack(logits).float(),
            boxes=torch.stack(boxes).float(),
            states=states,
            queries=queries,
            memory=context["memory"],
            neck=context["neck"],
            backbone=context["backbone"],
            context=context,
            aux=aux,
        )

    def _selection(self, inner: Any, arguments: dict[str, Any]) -> tuple[Tensor, tuple[AuxGroup, ...]]:
        """Where two-stage queries came from, and the encoder's proposals as a training-only group."""
        shape = arguments["reference_points"].shape[:2]
        if not self.two_stage:
            return torch.full(shape, -1, dtype=torch.int64, device=arguments["reference_points"].device), ()
        source = inner.enc_outputs_class[..., 0].topk(shape[1], dim=1)[1]
        boxes = inner.enc_outputs_coord_logits.sigmoid()
        proposals = AuxGroup("encoder", inner.enc_outputs_class[None].float(), boxes[None].float(), match=None, any_class=True)
        return source, (proposals,) if self.training else ()

    def save(self, folder: Path) -> None:
        """Writes a plain transformers folder (plus our ``workbench.json``)."""
        save_weights(folder, self.model, self.family, self.spec, {"trainable_norm": self.trainable_norm})

    @classmethod
    def load(cls, folder: Path) -> "DeformableDetr":
        """See ``Detector.load``; also reads a transformers folder without our ``workbench.json`` (ImageNet mean and std)."""
        written_here = read_spec(folder)
        if written_here is None:
            model = load_plain(folder, DeformableDetrForObjectDetection)
            return cls(model, plain_spec(model.config), trainable_norm=False)
        spec, extra = written_here
        model = DeformableDetrForObjectDetection(read_config(folder, DeformableDetrConfig))
        load_weights(folder, model)
        return cls(model, spec, trainable_norm=bool(extra.get("trainable_norm", False)))

    def _see_decoder(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._seen["decoder"] = dict(kwargs)

    def _see_backbone(self, module: nn.Module, args: Any, output: Any) -> None:
        self._seen["backbone"] = output

    def _see_neck(self, index: int, module: nn.Module, args: Any, output: Tensor) -> None:
        self._seen.setdefault("neck", {})[index] = output


def _stride(images: Tensor, shape: tuple[int, ...]) -> int:
    """Input pixels per cell: every halving rounds up, so it is the least power of two that is not below the ratio of the sides."""
    return 1 << (-(-max(images.shape[-2:]) // max(shape)) - 1).bit_length()


def _unique(modules: list[Any]) -> list[Any]:
    return list({id(module): module for module in modules}.values())



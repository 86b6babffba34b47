"""AdaMixer (Gao et al., CVPR 2022): queries that sample and mix backbone features themselves; there is no encoder.

The defaults are those of the released R50 1x model (github.com/MCG-NJU/AdaMixer at a50e33d,
configs/adamixer/adamixer_r50_1x_coco.py).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from workbench.detectors.adamixer_decoder import DecoderLayer, box_to_xyzr, refine, xyzr_to_box
from workbench.detectors.backbone import Backbone, BackboneConfig
from workbench.detectors.base import Detector, InputSpec
from workbench.detectors.output import DetectorOutput, Level, Queries
from workbench.detectors.pretrained import load_backbone_weights
from workbench.detectors.storage import load_weights, read_own, save_own
from workbench.matching import TargetBatch

NORM_GROUPS = 32


class AdaMixerModelConfig(BaseModel):
    """Architecture of an AdaMixer.

    Attributes:
        backbone: every level of it is sampled from.
        width: channels of the queries and of the sampled features, a multiple of 32 (the neck's GroupNorm has 32 groups).
        groups: parts of the channels that sample and mix on their own.
        in_points: points sampled for a group; ``out_points``: points that the spatial mixing makes of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Literal["adamixer"] = "adamixer"
    backbone: BackboneConfig = BackboneConfig.model_validate({"name": "resnet50", "levels": (1, 2, 3, 4), "norm": "frozen"})
    width: int = Field(256, gt=0, multiple_of=NORM_GROUPS)
    heads: int = Field(8, gt=0)
    ffn: int = Field(2048, gt=0)
    decoder_layers: int = Field(6, ge=1)
    queries: int = Field(100, ge=1)
    groups: int = Field(4, gt=0)
    in_points: int = Field(32, gt=0)
    out_points: int = Field(128, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> "AdaMixerModelConfig":
        for name in ("heads", "groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        return self


@dataclass(frozen=True)
class _Context:
    """What ``decode`` needs again; ``sides [B, 1, 4]``: width, height, width, height of each un-padded image in pixels."""

    neck: tuple[Level, ...]
    backbone: tuple[Level, ...]
    sides: Tensor


class Neck(nn.Module):
    """A 1x1 convolution a level, then one GroupNorm that all levels share."""

    def __init__(self, channels: tuple[int, ...], width: int):
        super().__init__()
        convolutions = [nn.Conv2d(count, width, 1) for count in channels]
        self.projections = nn.ModuleList(convolutions)
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        for projection in convolutions:
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """``[B, channels, H, W]`` a level to ``[B, width, H, W]``."""
        return [self.norm(projection(level)) for projection, level in zip(self.projections, features, strict=True)]


class AdaMixer(Detector):
    """AdaMixer behind the common interface.

    References are the family's own: ``Queries.reference [B, N, 4]`` is xyzr, with x and y in pixels of the input (see
    ``adamixer_decoder``). Boxes are not bounded: one may reach out of the image. Padding is read like any other pixels, as the
    released code does; only the size of the un-padded image enters, in the boxes and in the first reference.

    Args:
        config: architecture.
        spec: what the model is trained to see.
    """

    family = "adamixer"
    provides = frozenset({"neck", "backbone", "states", "decode", "references", "learned_queries"})
    reference_form = "xyzr"
    initial_boxes: Tensor

    def __init__(self, config: AdaMixerModelConfig, spec: InputSpec):
        super().__init__()
        self.config, self.spec = config, spec
        self.num_layers, self.num_queries, self.width = config.decoder_layers, config.queries, config.width
        self.backbone = Backbone(config.backbone)
        self.neck = Neck(self.backbone.channels, config.width)
        self.initial_content = nn.Parameter(torch.randn(config.queries, config.width))
        # not trained: every query starts with the whole image
        self.register_buffer("initial_boxes", torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(config.queries, 1))
        self.layers: Any = nn.ModuleList(
            DecoderLayer(
                width=config.width,
                heads=config.heads,
                ffn=config.ffn,
                groups=config.groups,
                in_points=config.in_points,
                out_points=config.out_points,
                classes=len(spec.classes),
                dropout=config.dropout,
            )
            for _ in range(config.decoder_layers)
        )

    @classmethod
    def build(cls, config: AdaMixerModelConfig, spec: InputSpec) -> "AdaMixer":
        """A model with random weights from torch's global generator, initialised as the released code does."""
        detector = cls(config, spec)
        load_backbone_weights(detector.backbone, config.backbone)
        return detector

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``."""
        for head in (layer.class_head for layer in self.layers):
            head.out = nn.Linear(head.out.in_features, len(spec.classes), device=head.out.weight.device)
            head.reset_to_prior()
        self.spec = spec
        return [name for name, _ in self.named_parameters() if ".class_head.out." in name]

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> DetectorOutput:
        """See ``Detector.forward``; this family has no denoising, ``targets`` is not used."""
        features = self.backbone(images)
        backbone = self._levels(features, padding)
        neck = self._levels(self.neck(features), padding)
        height, width = (~padding[:, :, 0]).sum(1), (~padding[:, 0]).sum(1)
        sides = torch.stack([width, height, width, height], dim=-1)[:, None].float()
        content = F.layer_norm(self.initial_content, self.initial_content.shape[-1:]).expand(len(images), -1, -1)
        reference = box_to_xyzr(self.initial_boxes * sides)
        source = torch.full(content.shape[:2], -1, dtype=torch.int64, device=images.device)
        return self.decode(Queries(content, None, reference, source), _Context(neck, backbone, sides))

    def decode(self, queries: Queries, context: Any) -> DetectorOutput:
        """Decoder and heads, of the own queries and of an extra group alike.

        Args:
            queries: ``reference [B, N, 4]`` is xyzr; ``position`` is not used.
            context: of a forward.

        Raises:
            ValueError: the queries have no such reference.
        """
        content, xyzr = queries.content, queries.reference
        if xyzr is None or xyzr.shape[-1] != 4:
            raise ValueError("AdaMixer decodes queries whose reference is xyzr")
        logits, boxes, states = [], [], []
        for layer in self.layers:
            content, scores, delta = layer(context.neck, content, xyzr, queries.valid)
            place = refine(xyzr, delta)
            logits.append(scores)
            boxes.append(xyzr_to_box(place) / context.sides)
            states.append(content)
            # as in the released code a layer is not trained through the places that it hands on
            xyzr = place.detach()
        return DetectorOutput(
            logits=torch.stack(logits).float(),
            boxes=torch.stack(boxes).float(),
            states=torch.stack(states),
            queries=queries,
            memory=(),
            neck=context.neck,
            backbone=context.backbone,
            context=context,
        )

    def queries_of_boxes(self, output: DetectorOutput, boxes: Tensor, content: Tensor) -> Queries:
        """See ``Detector.queries_of_boxes``; the references are xyzr."""
        queries = super().queries_of_boxes(output, boxes, content)
        return replace(queries, reference=box_to_xyzr(boxes * output.context.sides))

    def _levels(self, features: list[Tensor], padding: Tensor) -> tuple[Level, ...]:
        return tuple(
            Level(level, stride, F.interpolate(padding[:, None].float(), size=level.shape[-2:])[:, 0].bool())
            for level, stride in zip(features, self.backbone.strides, strict=True)
        )

    def save(self, folder: Path) -> None:
        """See ``Detector.save``; transformers has no such model, only the workbench loads the folder."""
        save_own(folder, self, self.family, self.spec, self.config)

    @classmethod
    def load(cls, folder: Path) -> "AdaMixer":
        """See ``Detector.load``."""
        config, spec = read_own(folder, AdaMixerModelConfig)
        model = cls(config, spec)
        load_weights(folder, model)
        return model

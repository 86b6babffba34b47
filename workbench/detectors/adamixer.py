"""Implements AdaMixer (Gao et al., CVPR 2022), whose queries sample and mix the backbone's features directly, without an encoder.

The defaults are those of the released R50 1x model (github.com/MCG-NJU/AdaMixer at a50e33d,
configs/adamixer/adamixer_r50_1x_coco.py).

Shapes: B images, N queries, D width, G groups, P points sampled for a group, K points mixed out of them. A query's position is
``xyzr``: centre in pixels of the input, z = log2 of the geometric mean of its sides, r = log2 of height over width. Hence
width = 2^(z - r/2) and height = 2^(z + r/2) (section 3.1; the released code halves r, the paper does not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from workbench.datasets.targets import TargetBatch
from workbench.detectors.backbone import Backbone, BackboneConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level, Queries, QueryOutput
from workbench.detectors.own_model import OwnModel
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.transformers_adapter import CLASS_PRIOR

NORM_GROUPS = 32
LEVEL_TEMPERATURE = 2.0
IOF_EPSILON = 1e-7


def xyzr_to_box(xyzr: Tensor) -> Tensor:
    """Converts xyzr to cxcywh in pixels, both ``[..., 4]``."""
    x, y, z, r = xyzr.unbind(-1)
    return torch.stack([x, y, torch.exp2(z - r / 2), torch.exp2(z + r / 2)], dim=-1)


def box_to_xyzr(box: Tensor) -> Tensor:
    """Converts cxcywh in pixels to xyzr, both ``[..., 4]``. Sides are clamped to at least a hundredth of a pixel."""
    x, y = box[..., 0], box[..., 1]
    w, h = box[..., 2:].clamp(min=0.01).unbind(-1)
    return torch.stack([x, y, (w.log2() + h.log2()) / 2, h.log2() - w.log2()], dim=-1)


def refine(xyzr: Tensor, delta: Tensor) -> Tensor:
    """Moves positions by the box head's output: the centre in units of 2^z pixels, z and r by addition (section 3.4)."""
    return torch.cat([xyzr[..., :2] + delta[..., :2] * torch.exp2(xyzr[..., 2:3]), xyzr[..., 2:] + delta[..., 2:]], dim=-1)


def position_embedding(xyzr: Tensor, width: int) -> Tensor:
    """Returns a sine embedding ``[B, N, width]``, with a quarter of the channels each for x / 1000, y / 1000, z and r."""
    quarter = width // 4
    index = torch.arange(quarter, dtype=torch.float32, device=xyzr.device)
    wavelength = 10000 ** (2 * (index // 2) / quarter)
    angle = (xyzr / xyzr.new_tensor([1000.0, 1000.0, 1.0, 1.0]))[..., None] / wavelength
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(2)


def intersection_over_foreground(xyzr: Tensor) -> Tensor:
    """Returns ``[B, N, N]``, the share of each query's box that each other query's box covers (section 3.4)."""
    box = xyzr_to_box(xyzr)
    low, high = box[..., :2] - box[..., 2:] / 2, box[..., :2] + box[..., 2:] / 2
    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(low[:, :, None], low[:, None])
    return overlap.clamp(min=0).prod(-1) / box[..., 2:].prod(-1)[..., None].clamp(min=1e-6)


def sample_3d(levels: Sequence[Level], points: Tensor) -> Tensor:
    """Reads features at points of the three-dimensional space (x, y, z) (section 3.2, adaptive location sampling).

    Sampling is bilinear within each level and reads 0 outside it. Levels are then averaged with the weights
    softmax_j(-(z - log2 stride_j)^2 / tau), tau = 2 (equation 6).

    Args:
        levels: feature levels of D channels each; group g reads channels g D/G to (g + 1) D/G.
        points: ``[B, N, G, P, 3]``; x and y in pixels of the input, z = log2 of a size in pixels.

    Returns:
        ``[B, N, G, P, D / G]``.
    """
    batch, queries, groups, count, _ = points.shape
    centre = points.new_tensor([math.log2(level.stride) for level in levels])
    weight = (-((points[..., 2:] - centre) ** 2) / LEVEL_TEMPERATURE).softmax(-1)
    grid = points[..., :2].transpose(1, 2).flatten(0, 1)
    total: Tensor | None = None
    for index, level in enumerate(levels):
        height, width = level.features.shape[-2:]
        place = grid / points.new_tensor([width * level.stride, height * level.stride]) * 2 - 1
        cells = level.features.reshape(batch * groups, -1, height, width)
        read = F.grid_sample(cells, place, mode="bilinear", padding_mode="zeros", align_corners=False)
        read = read * weight[..., index].transpose(1, 2).reshape(batch * groups, 1, queries, count)
        total = read if total is None else total + read
    if total is None:
        raise ValueError("sample_3d needs at least one feature level")
    return total.view(batch, groups, -1, queries, count).permute(0, 3, 1, 4, 2)


class AdaptiveMixing(nn.Module):
    """Mixes sampled features with matrices that are computed from the query (section 3.3, adaptive content decoding).

    Per group: x <- ReLU(LN(x M)) over channels, M ``[D/G, D/G]``; x <- ReLU(LN(S x)) over points, S ``[K, P]``. All groups together
    are then projected to the query's width and added to it. LN has no parameters and spans points and channels.
    """

    def __init__(self, width: int, groups: int, in_points: int, out_points: int):
        super().__init__()
        self.groups, self.in_points, self.out_points = groups, in_points, out_points
        self.channels = width // groups
        self.matrices = nn.Linear(width, groups * (self.channels**2 + out_points * in_points))
        self.projection = nn.Linear(groups * out_points * self.channels, width)

    def forward(self, sampled: Tensor, content: Tensor) -> Tensor:
        """Mixes ``sampled [B, N, G, P, D / G]`` into ``content [B, N, D]`` and returns ``[B, N, D]``."""
        made = self.matrices(content).unflatten(-1, (self.groups, -1))
        channel, spatial = made.split([self.channels**2, self.out_points * self.in_points], dim=-1)
        mixed = sampled @ channel.unflatten(-1, (self.channels, self.channels))
        mixed = F.layer_norm(mixed, mixed.shape[-2:]).relu()
        mixed = spatial.unflatten(-1, (self.out_points, self.in_points)) @ mixed
        mixed = F.layer_norm(mixed, mixed.shape[-2:]).relu()
        return content + self.projection(mixed.flatten(2))


class PlacedSelfAttention(nn.Module):
    """Self-attention that is biased by how much the queries' boxes overlap (section 3.4).

    It computes softmax(Q K^T / sqrt(d) + tau_h log(IoF + 1e-7)) V with one learned tau_h for each head. As in the released code, the
    position embedding is also added to the values and to the residual branch.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_projection = nn.Linear(width, 3 * width)
        self.out_projection = nn.Linear(width, width)
        self.iof_scale = nn.Parameter(torch.ones(heads))

    def forward(self, content: Tensor, xyzr: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps ``content [B, N, D]`` and ``xyzr [B, N, 4]`` to ``[B, N, D]``. Queries that are False in ``valid [B, N]`` are hidden."""
        place = xyzr.detach()
        bias = (intersection_over_foreground(place) + IOF_EPSILON).log()[:, None] * self.iof_scale[:, None, None]
        if valid is not None:
            bias = bias.masked_fill(~valid[:, None, None, :], torch.finfo(torch.float16).min)
        content = content + position_embedding(place, content.shape[-1])
        query, key, value = self.in_projection(content).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), dropout)
        attended = self.out_projection(attended.transpose(1, 2).flatten(2))
        return content + F.dropout(attended, self.dropout, self.training)


class Head(nn.Module):
    """A prediction head: linear, LN, ReLU, linear."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)

    def reset_to_prior(self) -> None:
        """Draws random weights for the last layer and sets its bias so that every class starts at the prior of the focal loss."""
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.constant_(self.out.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, states: Tensor) -> Tensor:
        """Maps ``[B, N, D]`` to ``[B, N, outputs]``."""
        return self.out(self.norm(self.hidden(states)).relu())


class DecoderLayer(nn.Module):
    """A decoder layer of attention, sampling, mixing and feed-forward network, with its own heads. Layers share no weights."""

    def __init__(self, width: int, heads: int, ffn: int, groups: int, in_points: int, out_points: int, classes: int, dropout: float):
        super().__init__()
        self.groups, self.in_points = groups, in_points
        self.attention = PlacedSelfAttention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.sampling_offsets = nn.Linear(width, groups * in_points * 3)
        self.mixing = AdaptiveMixing(width, groups, in_points, out_points)
        self.mixing_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn, width), nn.Dropout(dropout))
        self.ffn_norm = nn.LayerNorm(width)
        self.class_head = Head(width, classes)
        self.box_head = Head(width, 4)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draws weights as the released code does: boxes start at their reference, and all queries mix alike at first."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        # query, key and value are drawn as one matrix; their biases start at zero
        nn.init.zeros_(self.attention.in_projection.bias)
        nn.init.uniform_(self.attention.iof_scale, 0.0, 4.0)
        nn.init.zeros_(self.mixing.matrices.weight)
        nn.init.zeros_(self.sampling_offsets.weight)
        offsets = self.sampling_offsets.bias.view(self.groups, self.in_points, 3)
        side = math.isqrt(self.in_points)
        if side**2 == self.in_points:
            steps = (torch.arange(side) + 0.5) / side - 0.5
            offsets[..., :2] = torch.cartesian_prod(steps, steps)
        else:
            offsets[..., :2].uniform_(-0.5, 0.5)
        offsets[..., 2] = -1.0
        self.class_head.reset_to_prior()
        nn.init.zeros_(self.box_head.out.weight)
        nn.init.zeros_(self.box_head.out.bias)

    def forward(self, levels: Sequence[Level], content: Tensor, xyzr: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer.

        Args:
            levels: feature levels of D channels.
            content: ``[B, N, D]``.
            xyzr: ``[B, N, 4]``.
            valid: ``[B, N]`` bool, True for queries that the others may attend to. Defaults to all.

        Returns:
            The state ``[B, N, D]`` that the heads read, class logits ``[B, N, C]``, and the change of position ``[B, N, 4]``.
        """
        content = self.attention_norm(self.attention(content, xyzr, valid))
        sampled = sample_3d(levels, self.sampling_points(content, xyzr))
        content = self.mixing_norm(self.mixing(sampled, content))
        content = self.ffn_norm(content + self.ffn(content))
        return content, self.class_head(content), self.box_head(content)

    def sampling_points(self, content: Tensor, xyzr: Tensor) -> Tensor:
        """Returns ``[B, N, G, P, 3]``: points around each query, at offsets in units of its sides and in octaves (section 3.2)."""
        offset = self.sampling_offsets(content).unflatten(-1, (self.groups, self.in_points, 3))
        place = xyzr[:, :, None, None]
        sides = xyzr_to_box(place)[..., 2:]
        return torch.cat([place[..., :2] + offset[..., :2] * sides, place[..., 2:3] + offset[..., 2:]], dim=-1)


class AdaMixerModelConfig(BaseModel):
    """Describes the architecture of an AdaMixer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    family: Literal["adamixer"] = "adamixer"
    """Selects the family."""
    backbone: BackboneConfig = BackboneConfig.model_validate({"name": "resnet50", "levels": (1, 2, 3, 4), "norm": "frozen"})
    """The backbone; queries sample from all of its levels."""
    width: int = Field(256, gt=0, multiple_of=NORM_GROUPS)
    """Channels of the queries and of the sampled features. They are a multiple of 32, because the neck's GroupNorm has 32 groups."""
    heads: int = Field(8, gt=0)
    """Number of heads of the self-attention; ``width`` must be a multiple of it."""
    ffn: int = Field(2048, gt=0)
    """Hidden channels of the feed-forward layers."""
    decoder_layers: int = Field(6, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(100, ge=1)
    """Number of queries, each of which predicts at most one object of an image."""
    groups: int = Field(4, gt=0)
    """Number of parts that the channels are split into; each part samples and mixes separately."""
    in_points: int = Field(32, gt=0)
    """Number of points that each group samples."""
    out_points: int = Field(128, gt=0)
    """Number of points that the spatial mixing makes from the sampled ones."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of the decoder in training."""

    @model_validator(mode="after")
    def _consistent(self) -> "AdaMixerModelConfig":
        for name in ("heads", "groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        return self


@dataclass(frozen=True)
class _Context:
    """Inputs that ``decode`` reuses; ``sides [B, 1, 4]``: width, height, width, height of each un-padded image in pixels."""

    neck: tuple[Level, ...]
    backbone: tuple[Level, ...]
    sides: Tensor


class Neck(nn.Module):
    """A 1x1 convolution for each level, followed by one GroupNorm that all levels share."""

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
        """Maps one ``[B, channels, H, W]`` per level to one ``[B, width, H, W]`` per level."""
        return [self.norm(projection(level)) for projection, level in zip(self.projections, features, strict=True)]


class AdaMixer(OwnModel, QueryDetector):
    """AdaMixer behind the common interface.

    References have the family's own form: ``Queries.reference [B, N, 4]`` is xyzr, with x and y in pixels of the input (see the
    docstring of this module). Boxes are not bounded and may reach out of the image. As in the released code, padding is read like any
    other pixels; only the boxes and the first reference use the size of the un-padded image.

    Args:
        config: architecture.
        spec: what the model is trained to see.
    """

    config_class = AdaMixerModelConfig
    parts = {  # noqa: RUF012
        "backbone": r"backbone\.",
        "neck": r"neck\.",
        "decoder": r"layers\.\d+\.(?!(class|box)_head\.)",
        "head": r"layers\.\d+\.(class|box)_head\.",
        "queries": r"initial_",
    }
    decoder_layer = r"^layers\.(\d+)\."
    family = "adamixer"
    provides = frozenset({"neck", "backbone", "head", "queries", "states", "decode", "references", "learned_queries"})
    reference_form = "xyzr"
    initial_boxes: Tensor

    def __init__(self, config: AdaMixerModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        self.num_layers, self.num_queries, self.width = config.decoder_layers, config.queries, config.width
        self.backbone = Backbone(config.backbone)
        self.neck = Neck(self.backbone.channels, config.width)
        self.initial_content = nn.Parameter(torch.randn(config.queries, config.width))
        # not trained: every query starts with the whole image as its box
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

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``."""
        for head in (layer.class_head for layer in self.layers):
            head.out = nn.Linear(head.out.in_features, len(spec.classes), device=head.out.weight.device)
            head.reset_to_prior()
        self.spec = spec
        return [name for name, _ in self.named_parameters() if ".class_head.out." in name]

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. This family has no denoising, so ``targets`` is not used."""
        features = self.backbone(images)
        backbone = self._levels(features, padding)
        neck = self._levels(self.neck(features), padding)
        height, width = (~padding[:, :, 0]).sum(1), (~padding[:, 0]).sum(1)
        sides = torch.stack([width, height, width, height], dim=-1)[:, None].float()
        content = F.layer_norm(self.initial_content, self.initial_content.shape[-1:]).expand(images.shape[0], -1, -1)
        reference = box_to_xyzr(self.initial_boxes * sides)
        source = torch.full(content.shape[:2], -1, dtype=torch.int64, device=images.device)
        return self.decode(Queries(content, None, reference, source), _Context(neck, backbone, sides))

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs decoder and heads on the model's own queries or on an extra group.

        Args:
            queries: ``reference [B, N, 4]`` is xyzr; ``position`` is not used.
            context: the ``context`` of an earlier forward.

        Raises:
            ValueError: the queries have no xyzr reference.
        """
        content, xyzr = queries.content, queries.reference
        if xyzr is None or xyzr.shape[-1] != 4:
            raise ValueError("AdaMixer can only decode queries whose reference is xyzr, of four numbers")
        logits, boxes, states = [], [], []
        for layer in self.layers:
            content, scores, delta = layer(context.neck, content, xyzr, queries.valid)
            place = refine(xyzr, delta)
            logits.append(scores)
            boxes.append(xyzr_to_box(place) / context.sides)
            states.append(content)
            # as in the released code, a layer gets no gradient through the positions that it passes on
            xyzr = place.detach()
        return QueryOutput(
            logits=torch.stack(logits).float(),
            boxes=torch.stack(boxes).float(),
            states=torch.stack(states),
            queries=queries,
            memory=(),
            neck=context.neck,
            backbone=context.backbone,
            context=context,
        )

    def queries_of_boxes(self, output: QueryOutput, boxes: Tensor, content: Tensor) -> Queries:
        """See ``Detector.queries_of_boxes``; the references are xyzr."""
        queries = super().queries_of_boxes(output, boxes, content)
        return replace(queries, reference=box_to_xyzr(boxes * output.context.sides))

    def _levels(self, features: list[Tensor], padding: Tensor) -> tuple[Level, ...]:
        return tuple(
            Level(level, stride, F.interpolate(padding[:, None].float(), size=level.shape[-2:])[:, 0].bool())
            for level, stride in zip(features, self.backbone.strides, strict=True)
        )

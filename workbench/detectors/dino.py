"""Implements DINO (Zhang et al., ICLR 2023) on the layers of transformers' Deformable DETR.

The reference is github.com/IDEA-Research/DINO at faa8520, config/DINO/DINO_4scale.py, whose training script sets embed_init_tgt and box
noise 1.0. Parts that this configuration switches off are not implemented.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoderLayer,
    DeformableDetrMLPPredictionHead,
    DeformableDetrMultiscaleDeformableAttention,
)

from workbench.datasets.targets import TargetBatch
from workbench.detectors.attention import deformable_map, recording
from workbench.detectors.backbone import Backbone, BackboneConfig
from workbench.detectors.denoising import NoisedTargets, noised_targets, visible
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Attentions, AuxGroup, Level, Queries, QueryOutput
from workbench.detectors.own_model import OwnModel
from workbench.detectors.position import sine_embedding
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import ConfigError, IncompatibleError

CLASS_PRIOR = 0.01
LOSS_WEIGHTS = {"class": 1.0, "bbox": 5.0, "giou": 2.0}
POSITION_TEMPERATURE, BOX_TEMPERATURE = 20.0, 10000.0
INVERSE_SIGMOID_EPSILON = 1e-3
PROPOSAL_SIZE = 0.05


@dataclass(frozen=True)
class Memory:
    """Encoder cells of all levels in a row, with what deformable attention needs to locate them.

    Attributes:
        cells: ``[B, S, D]``.
        inside: ``[B, S]`` bool, False for padding.
        shapes: Height and width of each level.
        ratios: ``[B, levels, 2]``, the share of the width and height that is not padding.
    """

    cells: Tensor
    inside: Tensor
    shapes: list[tuple[int, int]]
    ratios: Tensor

    def centres(self) -> Tensor:
        """Returns ``[B, S, 2]``: x and y of each cell's centre in 0..1 of the un-padded image."""
        device, centres = self.cells.device, []
        for (height, width), ratio in zip(self.shapes, self.ratios.unbind(1), strict=True):
            y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
            cells = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5
            centres.append(cells / (ratio * ratio.new_tensor([width, height]))[:, None])
        return torch.cat(centres, dim=1)

    def anchors(self) -> Tensor:
        """Returns ``[B, S, 4]``: a box of ``PROPOSAL_SIZE`` around each centre, twice as large on each further level."""
        sizes = [torch.full((height * width, 2), PROPOSAL_SIZE * 2.0**level) for level, (height, width) in enumerate(self.shapes)]
        centres = self.centres()
        return torch.cat([centres, torch.cat(sizes).to(centres.device).expand(centres.shape[0], -1, -1)], dim=-1)

    def arguments(self) -> dict[str, Any]:
        """Returns the shapes in the three forms that the layers need."""
        sizes = torch.tensor(self.shapes, device=self.cells.device)
        starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
        return {"spatial_shapes": sizes, "spatial_shapes_list": self.shapes, "level_start_index": starts}


def relative_positions(padding: Tensor) -> Tensor:
    """Returns ``[B, H, W, 2]``: y and x of each cell, 1 at the last one that is not padding."""
    inside = ~padding
    y, x = inside.cumsum(1, dtype=torch.float32), inside.cumsum(2, dtype=torch.float32)
    return torch.stack([y / (y[:, -1:] + 1e-6), x / (x[:, :, -1:] + 1e-6)], dim=-1)


def valid_ratio(padding: Tensor) -> Tensor:
    """Returns ``[B, 2]``: the share of the width and of the height that is not padding."""
    return torch.stack([(~padding[:, 0]).float().mean(1), (~padding[:, :, 0]).float().mean(1)], dim=-1)


class DinoModelConfig(BaseModel):
    """Describes the architecture of a DINO that starts from random weights; the defaults are as published (ResNet-50, four scales)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    family: Literal["dino"] = "dino"
    """Selects the family."""
    backbone: BackboneConfig
    """The backbone, whose levels become the first feature levels."""
    width: int = Field(256, gt=0, multiple_of=32)
    """Channels of encoder and decoder. They are a multiple of 32, because the neck's GroupNorm has 32 groups."""
    heads: int = Field(8, gt=0)
    """Number of attention heads; ``width`` must be a multiple of it."""
    ffn: int = Field(2048, gt=0)
    """Hidden channels of the feed-forward layers."""
    encoder_layers: int = Field(6, ge=1)
    """Number of encoder layers."""
    decoder_layers: int = Field(6, ge=1)
    """Number of decoder layers. Each of them predicts classes and boxes."""
    queries: int = Field(900, ge=1)
    """Number of queries. Their boxes start at the encoder cells with the best class scores; their contents are learned."""
    levels: int = Field(4, ge=1, le=5)
    """Number of feature levels. Those beyond the backbone's are made by convolutions of stride 2."""
    points: int = Field(4, ge=1)
    """Number of points that each head of the deformable attention samples in each level."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate of encoder and decoder in training."""
    share_heads: bool = True
    """Uses one class head and one box head for all decoder layers."""
    denoising: int = Field(100, ge=0)
    """Pairs of denoising queries in training (``dn_number``). 0 turns denoising off."""
    label_noise: float = Field(0.5, ge=0, le=1)
    """Strength of the class noise. A denoising query gets a random class with half this probability."""
    box_noise: float = Field(1.0, ge=0)
    """Strength of the box noise. Each edge moves by up to this many halves of the box's side, and by up to twice as much in negatives."""

    @model_validator(mode="after")
    def _consistent(self) -> "DinoModelConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.levels < len(self.backbone.levels):
            raise ValueError(f"levels {self.levels} is less than the backbone's {len(self.backbone.levels)}")
        return self

    def layer_config(self) -> DeformableDetrConfig:
        """Returns the configuration that transformers' encoder and decoder layers read."""
        config = DeformableDetrConfig(
            d_model=self.width,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=self.ffn,
            decoder_ffn_dim=self.ffn,
            num_feature_levels=self.levels,
            encoder_n_points=self.points,
            decoder_n_points=self.points,
            dropout=self.dropout,
            attention_dropout=self.dropout,
            activation_dropout=self.dropout,
        )
        config._attn_implementation = "sdpa"
        return config


@dataclass(frozen=True)
class _Context:
    """Inputs that ``Dino.decode`` reuses."""

    encoded: Memory
    memory: tuple[Level, ...]
    neck: tuple[Level, ...]
    backbone: tuple[Level, ...]


@dataclass(frozen=True)
class _Decoded:
    """Logits, boxes and states of every layer, ``[L, B, Q, ...]``, with attention maps if they were asked for."""

    logits: Tensor
    boxes: Tensor
    states: Tensor
    attentions: Attentions | None

    def output(self, queries: Queries, context: _Context, aux: tuple[AuxGroup, ...] = ()) -> QueryOutput:
        """Returns the last N queries as the detector's output. Those before them belong to denoising groups."""
        first = self.logits.shape[2] - queries.content.shape[1]
        maps = self.attentions
        if maps is not None and first:
            maps = Attentions(maps.self_attention[..., first:, first:], maps.cross_attention[..., first:, :])
        return QueryOutput(
            logits=self.logits[:, :, first:],
            boxes=self.boxes[:, :, first:],
            states=self.states[:, :, first:],
            queries=queries,
            memory=context.memory,
            neck=context.neck,
            backbone=context.backbone,
            context=context,
            aux=aux,
            attentions=maps,
        )


class Dino(OwnModel, QueryDetector):
    """DINO with mixed query selection, contrastive denoising and look forward twice."""

    config_class = DinoModelConfig
    family = "dino"
    provides = frozenset({"memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "attentions"})
    parts = {  # noqa: RUF012
        "backbone": r"backbone\.",
        "neck": r"neck\.",
        "encoder": r"encoder\.|level_embedding",
        "decoder": r"decoder\.|decoder_norm\.|position_head\.",
        "head": r"(class|box)_heads\.",
        # what chooses queries among the encoder's cells, and the label table of denoising, stand for learned queries
        "queries": r"proposal|content\.|label_embedding\.",
    }
    decoder_layer = r"^(?:decoder|class_heads|box_heads)\.(\d+)\."

    def __init__(self, config: DinoModelConfig, spec: InputSpec):
        super().__init__(config, spec)
        self.num_layers, self.num_queries, self.width = config.decoder_layers, config.queries, config.width
        width, classes = config.width, len(spec.classes)
        self.backbone = Backbone(config.backbone)
        self.neck = _neck(self.backbone.channels, width, config.levels)
        strides = [*self.backbone.strides, *(self.backbone.strides[-1] << level for level in range(1, config.levels))][: config.levels]
        while sum((self.probe_side // stride) ** 2 for stride in strides) < config.queries:
            self.probe_side *= 2
        self.level_embedding = nn.Parameter(torch.empty(config.levels, width))
        self.layer_config = layers = config.layer_config()
        self.encoder = nn.ModuleList(DeformableDetrEncoderLayer(layers) for _ in range(config.encoder_layers))
        self.proposal = nn.Linear(width, width)
        self.proposal_norm = nn.LayerNorm(width)
        self.proposal_class = nn.Linear(width, classes)
        self.proposal_box = DeformableDetrMLPPredictionHead(width, width, 4, 3)
        self.content = nn.Embedding(config.queries, width)
        # one row more than there are classes, as published; nothing reads it
        self.label_embedding = nn.Embedding(classes + 1, width)
        self.decoder = nn.ModuleList(DeformableDetrDecoderLayer(layers) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.position_head = DeformableDetrMLPPredictionHead(2 * width, width, width, 2)
        self.class_heads, self.box_heads = nn.ModuleList(), nn.ModuleList()
        for index in range(config.decoder_layers):
            new = index == 0 or not config.share_heads
            self.class_heads.append(nn.Linear(width, classes) if new else self.class_heads[0])
            self.box_heads.append(DeformableDetrMLPPredictionHead(width, width, 4, 3) if new else self.box_heads[0])
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in (self.encoder, self.decoder, self.proposal, self.content, self.position_head):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                _initialise_sampling(module)
        for convolution, _ in self.neck:  # pyright: ignore[reportGeneralTypeIssues]
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.level_embedding)
        for head in (self.proposal_box, *self.box_heads):
            nn.init.zeros_(head.layers[-1].weight)  # pyright: ignore
            nn.init.zeros_(head.layers[-1].bias)  # pyright: ignore
        for head in (self.proposal_class, *self.class_heads):
            nn.init.constant_(head.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))  # pyright: ignore

    def reset_classes(self, spec: InputSpec) -> list[str]:
        """See ``Detector.reset_classes``. Resets the class heads of decoder and encoder, and the denoising queries' label embedding."""
        fresh = type(self)(self.config, spec)
        self.class_heads, self.proposal_class, self.label_embedding = fresh.class_heads, fresh.proposal_class, fresh.label_embedding
        self.spec = spec
        return [name for name, _ in self.named_parameters() if name.startswith(("class_heads", "proposal_class", "label_embedding"))]

    @property
    def loss_weights(self) -> dict[str, float]:
        """See ``Detector.loss_weights``. Every group has the weight of a decoder layer (``interm_loss_coef`` and the ``_dn`` terms)."""
        groups = ("", "_encoder", "_denoising") if self.config.denoising else ("", "_encoder")
        return {f"{name}{group}": weight for group in groups for name, weight in LOSS_WEIGHTS.items()}

    def forward(self, images: Tensor, padding: Tensor, targets: TargetBatch | None = None) -> QueryOutput:
        """See ``Detector.forward``. In training mode with ``targets``, the decoder also restores noisy targets.

        Raises:
            ConfigError: the images have fewer encoder cells than the model has queries.
        """
        maps = self.backbone(images)
        backbone = tuple(Level(map_, stride, _shrunk(padding, map_)) for map_, stride in zip(maps, self.backbone.strides, strict=True))
        neck = self._project(backbone, padding)
        encoded = self._encode(neck)
        sizes = [height * width for height, width in encoded.shapes]
        memory = tuple(
            Level(cells.transpose(1, 2).unflatten(2, shape), level.stride, level.padding)
            for cells, shape, level in zip(encoded.cells.split(sizes, dim=1), encoded.shapes, neck, strict=True)
        )
        context = _Context(encoded, memory, neck, backbone)
        source, proposed_logits, proposed = self._select(encoded)
        # mixed query selection (section 3.3): boxes come from the encoder, without its gradient; contents are learned
        start = proposed.detach()
        queries = Queries(self.content.weight[None].expand(images.shape[0], -1, -1), None, start, source)
        aux = (AuxGroup("encoder", proposed_logits[None], proposed[None], match=None),) if self.training else ()
        if not self.training or targets is None or not self.config.denoising:
            return self._run_decoder(queries.content, start, encoded).output(queries, context, aux)
        noised = noised_targets(targets, len(self.spec.classes), self.config.denoising, self.config.label_noise, self.config.box_noise)
        content, reference = self._denoising_queries(noised)
        size = content.shape[1]
        decoded = self._run_decoder(
            torch.cat([content, queries.content], dim=1),
            torch.cat([reference, start], dim=1),
            encoded,
            visible(size, noised.groups, self.num_queries, images.device)[None],
        )
        match = noised.match[None].expand(self.num_layers, -1, -1)
        denoising = AuxGroup("denoising", decoded.logits[:, :, :size], decoded.boxes[:, :, :size], match, copies=noised.groups)
        return decoded.output(queries, context, (denoising, *aux))

    def decode(self, queries: Queries, context: Any) -> QueryOutput:
        """Runs decoder and heads again. ``queries.reference`` is required; ``queries.position`` is computed from it.

        Raises:
            IncompatibleError: the queries have no reference boxes of four numbers.
        """
        if queries.reference is None or queries.reference.shape[-1] != 4:
            raise IncompatibleError("dino can only decode queries with reference boxes (cx, cy, w, h), and these queries have none.")
        # every query sees the valid ones
        seen = None if queries.valid is None else queries.valid[:, None].expand(-1, queries.valid.shape[1], -1)
        return self._run_decoder(queries.content, queries.reference, context.encoded, seen).output(queries, context)

    def label_table(self) -> Tensor:
        """See ``Detector.label_table``. The last row of the embedding belongs to no class and is left out."""
        return self.label_embedding.weight[:-1]

    def _project(self, backbone: tuple[Level, ...], padding: Tensor) -> tuple[Level, ...]:
        """Applies the neck: 1x1 convolutions, then stride-2 convolutions, the first of them on the last backbone level."""
        levels: list[Level] = []
        for index, projection in enumerate(self.neck):
            if index < len(backbone):
                levels.append(Level(projection(backbone[index].features), backbone[index].stride, backbone[index].padding))
                continue
            map_ = projection(backbone[-1].features if index == len(backbone) else levels[-1].features)
            levels.append(Level(map_, 2 * levels[-1].stride, _shrunk(padding, map_)))
        return tuple(levels)

    def _encode(self, neck: tuple[Level, ...]) -> Memory:
        """Runs the deformable encoder over all levels."""
        positions = [
            sine_embedding(relative_positions(level.padding), self.width // 2, POSITION_TEMPERATURE).flatten(1, 2) + embedding
            for level, embedding in zip(neck, self.level_embedding, strict=True)
        ]
        memory = Memory(
            cells=torch.cat([level.features.flatten(2).transpose(1, 2) for level in neck], dim=1),
            inside=torch.cat([~level.padding.flatten(1) for level in neck], dim=1),
            shapes=[(level.features.shape[2], level.features.shape[3]) for level in neck],
            ratios=torch.stack([valid_ratio(level.padding) for level in neck], dim=1),
        )
        arguments = memory.arguments() | {
            "spatial_position_embeddings": torch.cat(positions, dim=1),
            "reference_points": memory.centres()[:, :, None] * memory.ratios[:, None],
        }
        cells = memory.cells
        for layer in self.encoder:
            cells = layer(cells, memory.inside, **arguments)
        return replace(memory, cells=cells)

    def _select(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Selects the N cells with the best class scores: indices ``[B, N]``, logits ``[B, N, C]`` and boxes ``[B, N, 4]``."""
        cells, count = memory.cells, memory.cells.shape[1]
        if count < self.num_queries:
            raise ConfigError(
                f"the images have {count} encoder cells, fewer than the {self.num_queries} queries to select from them. "
                "Use larger images, more levels or fewer queries."
            )
        anchors = memory.anchors()
        usable = memory.inside & ((anchors > 0.01) & (anchors < 0.99)).all(-1)
        cells = self.proposal_norm(self.proposal(cells.masked_fill(~usable[..., None], 0.0)))
        logits = self.proposal_class(cells)
        source = logits.amax(-1).topk(self.num_queries, dim=1).indices
        at = source[..., None]
        # as published, a cell that cannot hold a box proposes the corner
        start = torch.logit(anchors).masked_fill(~usable[..., None], math.inf).gather(1, at.expand(-1, -1, 4))
        delta = self.proposal_box(cells.gather(1, at.expand(-1, -1, self.width)))
        return source, logits.gather(1, at.expand(-1, -1, logits.shape[-1])).float(), (delta.float() + start).sigmoid()

    def _denoising_queries(self, noised: NoisedTargets) -> tuple[Tensor, Tensor]:
        """Returns content ``[B, M, D]`` and reference ``[B, M, 4]``. Empty slots are 0 before the sigmoid, as published."""
        real = noised.real[..., None]
        return self.label_embedding(noised.labels) * real, _inverse_sigmoid(noised.boxes).where(real, 0.0).sigmoid()

    def _run_decoder(self, content: Tensor, reference: Tensor, memory: Memory, allowed: Tensor | None = None) -> _Decoded:
        """Runs the decoder with look forward twice (section 3.4): box l keeps the gradient of box l - 1, the input of layer l does not.

        Args:
            content: ``[B, Q, D]``.
            reference: ``[B, Q, 4]``, after the sigmoid.
            memory: result of the encoder.
            allowed: ``[1 or B, Q, Q]`` bool, True where the row may attend to the column. None allows all.
        """
        arguments = memory.arguments() | {
            "encoder_hidden_states": memory.cells,
            "encoder_attention_mask": memory.inside,
            "attention_mask": None if allowed is None else _additive(allowed, content.dtype),
        }
        ratios = memory.ratios.repeat(1, 1, 2)[:, None]
        state, start, logits, boxes, states = content, reference, [], [], []
        own, cross = [layer.self_attn for layer in self.decoder], [layer.encoder_attn for layer in self.decoder]
        with recording(self.wants_attentions, self.layer_config, own, cross, deformable_map) as recorded:  # pyright: ignore
            for layer, class_head, box_head in zip(self.decoder, self.class_heads, self.box_heads, strict=True):
                sampled = reference[:, :, None] * ratios
                # y before x, as in the position embedding of the cells
                position = self.position_head(sine_embedding(sampled[:, :, 0, [1, 0, 2, 3]], self.width // 2, BOX_TEMPERATURE))
                state = layer(state, object_queries_position_embeddings=position, reference_points=sampled, **arguments)
                seen = self.decoder_norm(state)
                states.append(seen)
                logits.append(class_head(seen))
                boxes.append((box_head(seen).float() + _inverse_sigmoid(start)).sigmoid())
                # the next reference comes from the state before the norm, as published
                start = (box_head(state).float() + _inverse_sigmoid(reference)).sigmoid()
                reference = start.detach()
        return _Decoded(torch.stack(logits).float(), torch.stack(boxes), torch.stack(states), recorded.attentions())


def _shrunk(padding: Tensor, map_: Tensor) -> Tensor:
    """Returns ``[B, H, W]`` bool at the size of a feature map. A cell is padding if its first pixel is."""
    return F.interpolate(padding[None].float(), size=map_.shape[-2:])[0].bool()


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns ``[1 or B, 1, Q, Q]`` to add to attention scores. It avoids minus infinity, which gives NaN in a row that allows nothing."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float16).min)[:, None]


def _inverse_sigmoid(boxes: Tensor) -> Tensor:
    """Returns the logit of numbers in 0..1, finite at both ends as published (``util/misc.py``)."""
    boxes = boxes.clamp(0, 1)
    return torch.log(boxes.clamp(min=INVERSE_SIGMOID_EPSILON) / (1 - boxes).clamp(min=INVERSE_SIGMOID_EPSILON))


def _neck(channels: tuple[int, ...], width: int, levels: int) -> nn.ModuleList:
    """Builds one projection per level: 1x1 for levels of the backbone, 3x3 with stride 2 for the rest."""
    inputs = [*channels, channels[-1], *[width] * levels][:levels]
    return nn.ModuleList(
        nn.Sequential(
            nn.Conv2d(size, width, 1) if index < len(channels) else nn.Conv2d(size, width, 3, stride=2, padding=1),
            nn.GroupNorm(32, width),
        )
        for index, size in enumerate(inputs)
    )


@torch.no_grad()
def _initialise_sampling(attention: Any) -> None:
    """Initialises sampling offsets on rays, one per head, with point k at distance k, and equal attention (Deformable DETR, A.4)."""
    angle = torch.arange(attention.n_heads) * (2 * math.pi / attention.n_heads)
    ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
    ray = ray / ray.abs().amax(-1, keepdim=True)
    distance = torch.arange(1, attention.n_points + 1)[None, None, :, None]
    nn.init.zeros_(attention.sampling_offsets.weight)
    attention.sampling_offsets.bias.copy_((ray[:, None, None] * distance).expand(-1, attention.n_levels, -1, -1).flatten())
    nn.init.zeros_(attention.attention_weights.weight)
    for layer in (attention.attention_weights, attention.value_proj, attention.output_proj):
        nn.init.zeros_(layer.bias)

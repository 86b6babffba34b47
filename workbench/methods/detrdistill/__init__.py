"""DETRDistill (Chang et al., ICCV 2023): Hungarian-matching logits and target-aware feature distillation.

Two profiles: ``paper`` (equations as printed) and ``official_code`` (the released Deformable DETR code). Every difference is one
switch below; where the paper is silent the choice is named beside the switch. Layers are 0-based.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from workbench.boxes import cxcywh_to_xyxy, iou_and_giou, pairwise_iou_and_giou, xyxy_to_cxcywh
from workbench.detectors.base import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.matching import QUERY_COST, TargetBatch, assign, query_cost
from workbench.methods.base import ClassTeachingConfig, Method, gather_queries
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.features import Adaptor, Feature, Resolved, feature_needs, levels_of, paired_levels, resolve_feature

MASK_FLOOR = 0.01
TOP_PAIRS = 100


class LogitsConfig(BaseModel):
    """Hungarian-matching logits distillation.

    Attributes:
        split: match teacher queries with an object and the others apart (paper) or all together (official code).
        negatives: what unmatched teacher queries teach: box only (paper), class and box (official code), nothing.
        weights: of class, L1 and GIoU (official code; the paper gives none).
        layers: all, or the last student layer only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    split: bool = True
    negatives: Literal["box", "class_and_box", "off"] = "box"
    weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    layers: Literal["all", "last"] = "all"

    @model_validator(mode="after")
    def _joint_keeps_negatives(self) -> "LogitsConfig":
        if not self.split and self.negatives != "class_and_box":
            raise ValueError("a joint matching (split: false) trains class_and_box on every query")
        return self


class FeaturesConfig(BaseModel):
    """Target-aware feature distillation.

    Attributes:
        feature: memory (encoder output), neck, or auto: memory where both have it, else neck.
        mask: product: equation 9, un-normalised F Q^T squared, weighted by quality; cosine: official code, one mixture of cosines over
            the 100 best (query, class) pairs, floor 0.01, divided by its maximum; uniform: every cell counts 1 (FitNet).
        quality: paper: score^gamma IoU^(1-gamma) with the matched target, 0 if unmatched (equation 8); official_code: score times
            the largest IoU with any target, the score alone where there is none.
        gamma: of equation 8; the paper gives no value.
        layers: teacher layers whose queries make the mask: all taught ones, or the last.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    feature: Feature = "auto"
    mask: Literal["product", "cosine", "uniform"] = "product"
    quality: Literal["paper", "official_code"] = "paper"
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.5
    layers: Literal["all", "last"] = "last"


_PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"logits": {}, "features": {}},
    "official_code": {
        "logits": {"split": False, "negatives": "class_and_box"},
        "features": {"feature": "neck", "mask": "cosine", "quality": "official_code", "layers": "all"},
    },
}


class DETRDistillConfig(ClassTeachingConfig, frozen=True):
    """Switches of DETRDistill; ``logits: null`` or ``features: null`` leaves a part out."""

    method: Literal["detrdistill"] = "detrdistill"
    profile: Literal["paper", "official_code"] = "paper"
    logits: LogitsConfig | None = LogitsConfig()
    features: FeaturesConfig | None = FeaturesConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for part, defaults in _PROFILES.get(values.get("profile", "paper"), {}).items():
            given = values.get(part, {})
            if isinstance(given, dict):
                filled[part] = {**defaults, **given}
        return filled

    @model_validator(mode="after")
    def _something(self) -> "DETRDistillConfig":
        if self.logits is None and self.features is None:
            raise ValueError("logits and features are both null: nothing to distil")
        return self

    @property
    def term_names(self) -> tuple[str, ...]:
        """Terms this configuration trains, in order."""
        names: list[str] = []
        if self.logits is not None:
            names += ["logits_positive"] if self.logits.split else ["logits"]
            if self.logits.split and self.logits.negatives != "off":
                names.append("logits_negative")
        return (*names, "features") if self.features is not None else tuple(names)

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        if self.features is None:
            return frozenset()
        return frozenset({feature_needs(self.features.feature)} | ({"states"} if self.features.mask != "uniform" else set()))

    @property
    def teaches_classes(self) -> bool:
        """See ``ClassTeachingConfig``."""
        return self.logits is not None


class DETRDistill(Method):
    """Terms: ``logits`` (joint) or ``logits_positive`` and ``logits_negative`` (split); ``features``."""

    name = "detrdistill"
    Config = DETRDistillConfig
    terms = "logits, or logits_positive and logits_negative; features"
    source = "DETRDistill, ICCV 2023, equations 3-9; released code BIVLab-USTC/DETRDistill"
    config: DETRDistillConfig

    def __init__(self, config: DETRDistillConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        if config.features is not None:
            self.feature: Resolved = resolve_feature(config.features.feature, student, teacher)
            self.adaptor = Adaptor(student, teacher, self.feature)

    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext
    ) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        terms: dict[str, Tensor] = {}
        if self.config.logits is not None:
            terms |= self._logits(self.config.logits, student, teacher, context)
        if self.config.features is not None:
            terms["features"] = self._features(self.config.features, student, teacher, targets, context)
        return terms

    def _logits(
        self, config: LogitsConfig, student: DetectorOutput, teacher: DetectorOutput, context: MethodContext
    ) -> dict[str, Tensor]:
        """Equations 3 and 4, or the joint form of the released code; mean over the teacher layers of a student layer, sum over these."""
        student_layers, teacher_layers = self.pairing.pairs()
        if config.layers == "last":
            first = student_layers.index(student_layers[-1])
            student_layers, teacher_layers = student_layers[first:], teacher_layers[first:]
        share = torch.tensor([1.0 / student_layers.count(layer) for layer in student_layers], device=student.logits.device)
        logits, boxes = student.logits[student_layers], student.boxes[student_layers]
        wanted = context.teacher_probability(teacher)[teacher_layers]
        # the released code clamps teacher boxes to the image before matching and regression
        wanted_boxes = xyxy_to_cxcywh(cxcywh_to_xyxy(teacher.boxes[teacher_layers]).clamp(0, 1))
        parts = query_cost(logits, boxes, wanted, wanted_boxes)
        cost = (QUERY_COST.class_ * parts[0] + QUERY_COST.bbox * parts[1] + QUERY_COST.giou * parts[2]).cpu()
        prediction = (logits, boxes, wanted, wanted_boxes)
        if not config.split:
            mate = assign(cost)
            loss, count = _pair_loss(*prediction, mate, config.weights, with_class=True)
            return {"logits": (loss / count.clamp(min=1) * share).sum()}
        positive = context.teacher_match(teacher)[teacher_layers] >= 0
        mate = assign(cost, columns=positive)
        loss, count = _pair_loss(*prediction, mate, config.weights, with_class=True)
        terms = {"logits_positive": (loss / count.clamp(min=1) * share).sum()} if bool(count.sum()) else {}
        if config.negatives != "off":
            # students taken by the positives are out, which keeps the whole one-to-one
            mate = assign(cost, columns=~positive, rows=mate < 0)
            loss, count = _pair_loss(*prediction, mate, config.weights, with_class=config.negatives == "class_and_box")
            terms["logits_negative"] = (loss / count.clamp(min=1) * share).sum()
        return terms

    def _features(
        self, config: FeaturesConfig, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext
    ) -> Tensor:
        """Equation 9: error of each cell weighted by the mask, mean over cells that are not padding, sum over levels."""
        total = student.logits.new_zeros(())
        pairs = paired_levels(levels_of(student, self.feature), levels_of(teacher, self.feature))
        weights = cell_weights(config, teacher, [level for _, level in pairs], targets, context, self.pairing)
        for (own, other), weight in zip(pairs, weights, strict=True):
            error = (other.features.float() - self.adaptor(own).float()).square().mean(1)
            inside = (~own.padding).float()
            total = total + (weight * error * inside).sum() / inside.sum().clamp(min=1)
        return total


def cell_weights(
    config: FeaturesConfig, teacher: DetectorOutput, levels: list[Level], targets: TargetBatch, context: MethodContext, pairing: Pairing
) -> list[Tensor]:
    """Weight of the squared error of every cell, ``[B, H, W]`` per level; no gradient flows into it.

    product: w(x) = 1/M sum_i q_i (F(x) . Q_i)^2, equation 9 with the square of the mask drawn into one sum (the same number without a
    map per query); cosine: sum over layers of psi(x)^2.
    """
    if config.mask == "uniform":
        return [level.features.new_ones(level.padding.shape) for level in levels]
    with torch.no_grad():
        taught = sorted({t for group in pairing.layer_map for t in group})
        layers = taught if config.layers == "all" else taught[-1:]
        masks = [selection_masks(config, teacher, level, layers, targets, context) for level in levels]
        if config.mask == "cosine":
            return [mask.square().sum(0) for mask in masks]
        return [mask.sum(0) / len(layers) for mask in masks]


@torch.no_grad()
def selection_masks(
    config: FeaturesConfig, teacher: DetectorOutput, level: Level, layers: list[int], targets: TargetBatch, context: MethodContext
) -> Tensor:
    """Where the teacher's queries look: ``[len(layers), B, H, W]``.

    product: sum over queries of q_i psi_i^2 / M with psi_i = F Q_i^T (equations 7 and 9); cosine: psi in (0, 1], largest cell 1.
    """
    states = teacher.states[layers].float()
    cells = level.features.float().flatten(2)
    shape = level.features.shape[-2:]
    if config.mask == "product":
        quality = query_quality(config, teacher, layers, targets, context)
        product = torch.einsum("lbnd,bdx->lbnx", states, cells)
        return torch.einsum("lbn,lbnx->lbx", quality, product.square()).unflatten(-1, shape) / states.shape[2]
    query, quality = _best_pairs(config, teacher, layers, targets, context)
    # a quality-weighted sum of cosines is one dot product with the quality-weighted sum of unit queries
    units = gather_queries(F.normalize(states, dim=-1), query)
    mixture = torch.einsum("lbk,lbkd->lbd", quality, units)
    raw = torch.einsum("lbd,bdx->lbx", mixture, F.normalize(cells, dim=1)).clamp(min=MASK_FLOOR)
    raw = raw.masked_fill(level.padding.flatten(1), MASK_FLOOR)
    return (raw / raw.amax(-1, keepdim=True)).unflatten(-1, shape)


def query_quality(
    config: FeaturesConfig, teacher: DetectorOutput, layers: list[int], targets: TargetBatch, context: MethodContext
) -> Tensor:
    """``[len(layers), B, N]`` quality of every teacher query (equation 8, or the released code with the query's best class)."""
    probability = context.teacher_probability(teacher)[layers]
    ious = _target_ious(teacher, layers, targets)
    if config.quality == "official_code":
        return probability.amax(-1) * _largest_iou(ious, targets)
    match = context.teacher_match(teacher)[layers].to(probability.device)
    if not targets.labels.shape[1]:
        return torch.zeros_like(probability[..., 0])
    column = match.clamp(min=0)
    image = torch.arange(match.shape[1], device=match.device)[None, :, None]
    score = probability.gather(-1, targets.labels[image, column][..., None])[..., 0]
    iou = ious.gather(-1, column[..., None])[..., 0]
    return (score**config.gamma * iou ** (1 - config.gamma)).where(match >= 0, 0.0)


def _best_pairs(
    config: FeaturesConfig, teacher: DetectorOutput, layers: list[int], targets: TargetBatch, context: MethodContext
) -> tuple[Tensor, Tensor]:
    """Query index and quality ``[len(layers), B, K]`` of the 100 best (query, class) pairs, as the released code picks them."""
    probability = context.teacher_probability(teacher)[layers]
    classes = probability.shape[-1]
    score, index = probability.flatten(2).topk(min(TOP_PAIRS, probability.shape[2] * classes), dim=-1)
    query = index // classes
    if config.quality == "official_code":
        return query, score * _largest_iou(_target_ious(teacher, layers, targets), targets).gather(-1, query)
    return query, query_quality(config, teacher, layers, targets, context).gather(-1, query)


def _target_ious(teacher: DetectorOutput, layers: list[int], targets: TargetBatch) -> Tensor:
    iou, _ = pairwise_iou_and_giou(cxcywh_to_xyxy(teacher.boxes[layers].float()), cxcywh_to_xyxy(targets.boxes))
    return iou.masked_fill(~targets.valid[None, :, None, :], 0.0)


def _largest_iou(ious: Tensor, targets: TargetBatch) -> Tensor:
    """Largest IoU with any target; 1 in images without targets, so that quality is the score alone."""
    if not targets.labels.shape[1]:
        return ious.new_ones(ious.shape[:-1])
    empty = ~targets.valid.any(1)
    return ious.amax(-1).masked_fill(empty[None, :, None], 1.0)


def _pair_loss(
    logits: Tensor, boxes: Tensor, wanted: Tensor, wanted_boxes: Tensor, mate: Tensor, weights: tuple[float, float, float], with_class: bool
) -> tuple[Tensor, Tensor]:
    """Summed loss of matched pairs and their number, each ``[P]`` for P pairs of layers.

    The class term is binary cross-entropy with the teacher's probability as target, less the teacher's own entropy: a constant that
    carries no gradient and makes a perfect copy cost 0.
    """
    pair, image, query = (mate >= 0).nonzero(as_tuple=True)
    other = mate[pair, image, query]
    pair, image, query, other = (index.to(logits.device) for index in (pair, image, query, other))
    predicted, target = boxes[pair, image, query], wanted_boxes[pair, image, other]
    _, giou = iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    loss = weights[1] * (predicted - target).abs().sum(-1) + weights[2] * (1 - giou)
    if with_class:
        z, t = logits[pair, image, query], wanted[pair, image, other]
        entropy = -(torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t))
        loss = loss + weights[0] * (F.binary_cross_entropy_with_logits(z, t, reduction="none") - entropy).sum(-1)
    count = torch.bincount(pair, minlength=logits.shape[0])
    return loss.new_zeros(logits.shape[0]).index_add(0, pair, loss), count

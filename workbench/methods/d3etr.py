"""Implements D3ETR (Chen et al., IJCAI 2024), decoder distillation with adaptive and fixed matching."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.output import Attentions, Queries, QueryOutput
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.whole_batch import images_over_processes
from workbench.errors import IncompatibleError
from workbench.matching import QUERY_COST, assign
from workbench.methods.classes import box_loss, class_divergence, class_targets, pair_costs
from workbench.methods.context import LayerPairs, MethodContext, Pairing
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.method import ClassTeachingConfig, Method, gather_queries


class D3ETRConfig(ClassTeachingConfig, frozen=True):
    """Configures D3ETR, which distils predictions and attention maps of the decoder, by an adaptive and by a fixed matching.

    The authors released no code. Weights, matching cost and the squared error of attention maps are those of the one public
    implementation that was found (xingyitong1/TPRD@bb8ed01,
    projects/deformable_detr/cfg_distill/D3DETR/models/deformable_detr_r50_distll_r18.py).
    """

    published_weights: ClassVar[dict[str, float]] = {
        f"{matching}_{name}": weight
        for matching in ("adaptive", "fixed")
        for name, weight in (("prediction", 1.0), ("self_attention", 1e4), ("cross_attention", 1e3))
    }
    method: Literal["d3etr"] = "d3etr"
    """Selects the method."""
    prediction_weights: tuple[float, float, float] = (1.0, 5.0, 2.0)
    """Weights of the class, L1 and GIoU part of a prediction term."""

    @property
    def term_names(self) -> tuple[str, ...]:
        """See ``BaseMethodConfig``."""
        return tuple(self.published_weights)

    @property
    def needs(self) -> frozenset[str]:
        """See ``BaseMethodConfig``."""
        return frozenset({"queries", "attentions", "memory"})

    @property
    def needs_student(self) -> frozenset[str]:
        """See ``BaseMethodConfig``. The teacher's queries go through the student's decoder."""
        return self.needs | {"decode"}


class D3ETR(Method[QueryOutput]):
    """D3ETR, with three terms for each of two matchings, computed layer by layer.

    ``adaptive`` is a Hungarian matching between all queries, computed anew at each layer (cost and loss 1 class, 5 L1, 2 GIoU). For
    ``fixed``, the teacher's queries go through the student's decoder as a group of their own, and query n is compared with query n.

    - ``prediction``: class divergence, L1 and GIoU, averaged over pairs.
    - ``self_attention``: squared error of the maps between paired queries, averaged over heads and both queries.
    - ``cross_attention``: squared error of the maps over memory cells, averaged over heads and cells, summed over queries.

    All terms are averaged over images and over the teacher layers of a student layer, and summed over layers. If the numbers of heads
    differ, maps are averaged over heads first. Deformable cross-attention is compared as the map of its sampling points
    (``Attentions.cross_attention``). The public implementation sums cross-attention over queries before it compares. Here each query is
    compared on its own, which is the purpose of the matching.
    """

    name = "d3etr"
    Config = D3ETRConfig
    terms = ", ".join(D3ETRConfig.published_weights)
    citation = "D3ETR, IJCAI 2024; re-implementation, no code released by the authors; weights of xingyitong1/TPRD@bb8ed01"
    config: D3ETRConfig

    def __init__(self, config: D3ETRConfig, student: QueryDetector, teacher: QueryDetector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        own, other = sorted(student.level_channels("memory")), sorted(teacher.level_channels("memory"))
        if own != other:
            raise IncompatibleError(
                f"method '{self.name}' compares attention over memory cells, but the student ({student.family}) has "
                f"levels of stride {own} and the teacher ({teacher.family}) of stride {other}."
            )
        self.group = TeacherQueries(self.name, student, teacher)
        self.layers = LayerPairs.of(pairing.layer_map, "mean")

    def forward(self, student: QueryOutput, teacher: QueryOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        wanted, mate = self._adaptive(student, teacher, context)
        (pairs, images, _), device = mate.shape, wanted.device
        rows = (mate >= 0).nonzero()[:, 2].view(pairs, images, -1).to(device)
        columns = mate[mate >= 0].view(pairs, images, -1).to(device)
        terms = self._terms("adaptive", student, teacher, wanted, rows, columns)
        group = context.query_student.decode(self.teacher_group(teacher, context), student.context)
        same = torch.arange(wanted.shape[2], device=device).expand(pairs, images, -1)
        return terms | self._terms("fixed", group, teacher, wanted, same, same)

    def train_mates(self, student: QueryOutput, teacher: QueryOutput, context: MethodContext) -> Tensor:
        """See ``Method.train_mates``. Returns the adaptive matching."""
        return self.layers.last_of_each(self._adaptive(student, teacher, context)[1], student.logits.shape[0])

    @property
    def sends_queries(self) -> bool:
        """See ``Method.sends_queries``."""
        return True

    def teacher_group(self, teacher: QueryOutput, context: MethodContext) -> Queries:
        """See ``Method.teacher_group``."""
        return self.group(teacher.queries)

    def _adaptive(self, student: QueryOutput, teacher: QueryOutput, context: MethodContext) -> tuple[Tensor, Tensor]:
        """Returns class targets ``[P, B, N_T, C]`` of P layer pairs, and ``[P, B, N_S]`` teacher query of each student query or -1."""
        own, other = self.layers.student, self.layers.teacher
        wanted = class_targets(teacher, student.activation, context, self.config.no_object)[other]
        class_cost, box_cost = pair_costs(
            student.logits[own], student.boxes[own], wanted, teacher.boxes[other], student.activation, QUERY_COST
        )
        return wanted, assign(class_cost + box_cost)

    def _terms(
        self, matching: str, student: QueryOutput, teacher: QueryOutput, wanted: Tensor, rows: Tensor, columns: Tensor
    ) -> dict[str, Tensor]:
        """Computes the terms of one matching.

        Args:
            matching: prefix of the terms' names.
            student: the student's output for the matched group.
            teacher: the teacher's output.
            wanted: ``[P, B, N_T, C]`` class targets, for P pairs of layers.
            rows: ``[P, B, M]`` student queries.
            columns: ``[P, B, M]`` teacher query of each student query.
        """
        own, other = self.layers.student, self.layers.teacher
        share = torch.tensor(self.layers.share, device=rows.device)
        images = len(rows[0]) / images_over_processes(len(rows[0]), rows.device)
        classes = class_divergence(gather_queries(student.logits[own], rows), gather_queries(wanted, columns), student.activation)
        l1, giou = box_loss(gather_queries(student.boxes[own], rows), gather_queries(teacher.boxes[other].detach(), columns))
        weights = self.config.prediction_weights
        prediction = (weights[0] * classes + weights[1] * l1 + weights[2] * giou).mean((1, 2))
        inside = ~torch.cat([level.padding.flatten(1) for level in teacher.memory], 1)
        own_maps, other_maps = maps_of(student.attentions, own, rows), maps_of(teacher.attentions, other, columns)
        between, over = (_error(a, b) for a, b in zip(own_maps, other_maps, strict=True))
        over = (over * inside[:, None]).sum(-1) / inside.sum(-1)[:, None]
        values = {"prediction": prediction, "self_attention": between.mean((1, 2, 3)), "cross_attention": over.sum(2).mean(1)}
        return {f"{matching}_{name}": (value * share).sum() * images for name, value in values.items()}


def maps_of(attentions: Attentions | None, layers: list[int], queries: Tensor) -> tuple[Tensor, Tensor]:
    """Returns self-attention ``[P, B, H, M, M]`` among chosen queries, and their cross-attention ``[P, B, H, M, S]``.

    Args:
        attentions: attention maps of an output that collected them.
        layers: layer of each of P pairs.
        queries: ``[P, B, M]``.
    """
    assert attentions is not None, "the step collects attention maps for methods that need them"
    rows = queries[:, :, None, :, None]
    between = torch.take_along_dim(torch.take_along_dim(attentions.self_attention[layers], rows, 3), rows.transpose(3, 4), 4)
    return between, torch.take_along_dim(attentions.cross_attention[layers], rows, 3)


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the squared difference, averaged over heads: ``[P, B, H, ...]`` to ``[P, B, ...]``."""
    if student.shape[2] != teacher.shape[2]:
        student, teacher = student.mean(2, keepdim=True), teacher.mean(2, keepdim=True)
    return (student.float() - teacher.detach().float()).square().mean(2)

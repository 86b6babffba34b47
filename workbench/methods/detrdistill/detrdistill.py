"""Implements DETRDistill (Chang et al., ICCV 2023): logits, target-aware features and query-prior assignment, each in its own file.

There are two profiles: ``paper`` (equations as printed) and ``official_code`` (the released Deformable DETR code). Every difference is
one switch in ``config``. Where the paper does not say, the choice is documented with the switch. Layers are counted from 0.
"""

from typing import cast

from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level, Queries, QueryOutput, query_output
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import ConfigError, IncompatibleError
from workbench.files import hash_json
from workbench.methods.context import LayerPairs, MethodContext, Pairing
from workbench.methods.detrdistill.assignment import assignment_term
from workbench.methods.detrdistill.config import (
    DETRDistillConfig,
)
from workbench.methods.detrdistill.contrastive import ContrastiveHead
from workbench.methods.detrdistill.features import cell_weights, features_term
from workbench.methods.detrdistill.logits import logits_mates, logits_terms
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.levels import Adaptor, Compared, compared_levels, levels_of, paired_levels
from workbench.methods.method import Method
from workbench.methods.query_masks import visible_masks
from workbench.methods.selection import selected_queries


class DETRDistill(Method):
    """DETRDistill with the terms ``features``, ``assignment`` and ``contrastive``, and ``logits`` (joint) or ``logits_positive`` and
    ``logits_negative`` (split).

    The features alone (``logits: null``, ``assignment: null``) need no queries of the student, and with ``mask: uniform`` none of the
    teacher either.
    """

    name = "detrdistill"
    Config = DETRDistillConfig
    terms = "logits, or logits_positive and logits_negative; features; assignment; contrastive"
    citation = "DETRDistill, ICCV 2023, equations 3-10; released code BIVLab-USTC/DETRDistill"
    config: DETRDistillConfig

    def __init__(self, config: DETRDistillConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        layer_map = pairing.layer_map
        if config.depth == "first":
            if student.num_stages > teacher.num_stages:
                raise ConfigError(
                    f"method 'detrdistill' with depth: first pairs layers by index, but the student has {student.num_stages} "
                    f"decoder layers and the teacher {teacher.num_stages}. Set 'depth: groups' and declare 'layer_map:'."
                )
            layer_map = tuple((layer,) for layer in range(student.num_stages))
        self.layer_map = layer_map
        self.taught = sorted({t for group in layer_map for t in group})
        self.pairs = LayerPairs.of(layer_map, config.depth_reduce)
        if config.logits is not None and config.logits.layers == "last":
            self.pairs = self.pairs.last()
        self.compared: Compared | None = None
        if config.features is not None:
            always = config.features.adaptor == "always"
            self.compared = compared_levels(self.name, config.features.feature, student, teacher, always=always)
            self.adaptor = Adaptor(self.compared)
            widths = set(self.compared.teacher.values())
            if config.features.mask != "uniform" and widths != {own := cast(QueryDetector, teacher).width}:
                raise IncompatibleError(
                    f"method 'detrdistill': the teacher's {self.compared.feature} ({teacher.family}) has {sorted(widths)} "
                    f"channels and its queries have {own}, so no mask can be made from both. Set 'mask: uniform', "
                    "or take another feature."
                )
        if config.contrastive is not None:
            self.contrastive = ContrastiveHead(config.contrastive, *(cast(QueryDetector, side).width for side in (student, teacher)))
        if config.assignment is not None:
            # ``check`` has found queries on both sides
            pair = cast(QueryDetector, student), cast(QueryDetector, teacher)
            self.group = TeacherQueries(self.name, *pair, config.assignment.reference)

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Method.notes``."""
        return (f"{self.name} compares {self.compared.text()}",) if self.compared is not None else ()

    @property
    def state_layers(self) -> tuple[int, ...]:
        """See ``Method.state_layers``. A mask of the last layer reads no other."""
        layers: set[int] = set()
        features = self.config.features
        if features is not None and features.mask != "uniform":
            layers |= set(self.taught if features.layers == "all" else self.taught[-1:])
        if self.config.contrastive is not None:
            layers |= set(self.pairs.teacher)
        return tuple(sorted(layers))

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        config = self.config
        terms: dict[str, Tensor] = {}
        selected = selected_queries(config.selection, teacher, context)
        if config.logits is not None:
            found, mate = logits_terms(config.logits, self.pairs, student, teacher, selected, context, config.no_object)
            terms |= found
            if config.contrastive is not None:
                value = self.contrastive(query_output(student).states, query_output(teacher).states, self.pairs, mate)
                terms |= {"contrastive": value} if value is not None else {}
        if config.features is not None and self.compared is not None:
            pairs = paired_levels(levels_of(student, self.compared.feature), levels_of(teacher, self.compared.feature))
            known = context.prepared(self.prepared_by) or self._weights([level for _, level in pairs], teacher, selected, context)
            weights = [known[f"weights/{level.stride}"] for _, level in pairs]
            terms["features"] = features_term(config.features, self.adaptor, pairs, weights)
        if config.assignment is not None:
            layers = [group[-1] for group in self.layer_map]
            own, other = query_output(student), query_output(teacher)
            terms["assignment"] = assignment_term(config.assignment, self.group, layers, own, other, selected, context)
        return terms

    @property
    def prepared_by(self) -> str | None:
        """See ``Method.prepared_by``. Nothing can be prepared if queries are drawn anew in every step."""
        features, selection = self.config.features, self.config.selection
        if features is None or self.compared is None or features.mask == "uniform" or selection.rule == "random_k":
            return None
        decides = [features.model_dump(mode="json"), selection.model_dump(mode="json"), self.taught, self.pairing.class_map]
        return hash_json([*decides, self.compared.feature, self.compared.strides])[:16]

    def prepare(self, teacher: DetectorOutput, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.prepare``. Returns the weight of every cell, ``weights/STRIDE [B, H, W]``."""
        if self.prepared_by is None or self.compared is None:
            return {}
        levels = [level for level in levels_of(teacher, self.compared.feature) if level.stride in self.compared.strides]
        return self._weights(levels, teacher, selected_queries(self.config.selection, teacher, context), context)

    def _weights(self, levels: list[Level], teacher: DetectorOutput, selected: Tensor, context: MethodContext) -> dict[str, Tensor]:
        assert self.config.features is not None
        weights = cell_weights(self.config.features, teacher, levels, self.taught, selected, context)
        return {f"weights/{level.stride}": weight for level, weight in zip(levels, weights, strict=True)}

    def selected(self, teacher: DetectorOutput, context: MethodContext) -> Tensor | None:
        """See ``Method.selected``. Without queries of the teacher there is nothing to choose among."""
        return None if not isinstance(teacher, QueryOutput) else selected_queries(self.config.selection, teacher, context)

    @property
    def mask_layers(self) -> tuple[int, ...]:
        """See ``Method.mask_layers``."""
        features = self.config.features
        if features is None or features.mask == "uniform":
            return ()
        return tuple(self.taught if features.layers == "all" else self.taught[-1:])

    def masks(
        self, teacher: DetectorOutput, layers: list[int], context: MethodContext, selected: Tensor | None
    ) -> list[tuple[Level, Tensor]]:
        """See ``Method.masks``."""
        assert self.config.features is not None
        return visible_masks(self.config.features.query_mask, query_output(teacher), layers, context, selected)

    def student_masks(self, student: DetectorOutput, layers: list[int], context: MethodContext) -> list[tuple[Level, Tensor]]:
        """See ``Method.student_masks``. All queries of the student count: the selection is one among the teacher's."""
        assert self.config.features is not None
        return visible_masks(self.config.features.query_mask, student, layers, context) if isinstance(student, QueryOutput) else []

    def train_mates(self, student: DetectorOutput, teacher: DetectorOutput, context: MethodContext) -> Tensor | None:
        """See ``Method.train_mates``. Returns the matching of the logits terms."""
        if self.config.logits is None:
            return None
        selected = selected_queries(self.config.selection, teacher, context)
        mate = logits_mates(self.config.logits, self.pairs, student, teacher, selected, context, self.config.no_object)
        return self.pairs.last_of_each(mate, student.logits.shape[0])

    @property
    def sends_queries(self) -> bool:
        """See ``Method.sends_queries``."""
        return self.config.assignment is not None

    def teacher_group(self, teacher: DetectorOutput, context: MethodContext) -> Queries:
        """See ``Method.teacher_group``. As in ``assignment_term``, the last layer's selection applies."""
        selected = selected_queries(self.config.selection, teacher, context)[self.layer_map[-1][-1]]
        return self.group(query_output(teacher).queries, None if bool(selected.all()) else selected)

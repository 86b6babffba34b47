"""Implements CLoCKDistill (Lan and Tian, arXiv 2502.10683): memory weighted by target locations, and logits of queries made from targets.

This is a re-implementation that was not checked against the authors' code: the abstract names a repository, lanqz7766/CLoCKDistill, that
could not be read here. Three facts are first-hand, from the abstract: the encoder's output is distilled rather than backbone features; it
is enriched by the locations of objects; queries made from ground truth go through both decoders. Equations and weights are second-hand.
``docs/methods.md`` lists each of them, and what is not known at all.
"""

from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput
from workbench.errors import IncompatibleError
from workbench.methods.clockdistill.config import CLoCKDistillConfig
from workbench.methods.clockdistill.logits import TargetContents, target_logits_term
from workbench.methods.clockdistill.memory import EMBEDDING_UNIT, memory_terms
from workbench.methods.context import LayerPairs, MethodContext, Pairing
from workbench.methods.levels import Adaptor, Resolved, levels_of, paired_levels, resolve_feature
from workbench.methods.method import Method


class CLoCKDistill(Method):
    """CLoCKDistill with the terms ``memory_foreground``, ``memory_background`` and ``logits``."""

    name = "clockdistill"
    without_live_teacher = "Set 'logits: null' to train without queries made from targets, or remove 'cache:' from the recipe."
    Config = CLoCKDistillConfig
    terms = "memory_foreground, memory_background; logits"
    citation = "re-implementation of CLoCKDistill, arXiv 2502.10683 (WACV 2026), sections 3.1 and 3.2"
    config: CLoCKDistillConfig

    def __init__(self, config: CLoCKDistillConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        if config.memory is not None:
            self.feature: Resolved = resolve_feature(config.memory.feature, student, teacher)
            self.adaptor = Adaptor(student, teacher, self.feature, always=config.memory.adaptor == "always")
            widths = sorted(set(teacher.level_channels(self.feature).values()))
            if config.memory.position_embedding and any(width % EMBEDDING_UNIT for width in widths):
                raise IncompatibleError(
                    f"method '{self.name}': the teacher's {self.feature} ({teacher.family}) has {widths} channels, and the embedding of a "
                    f"box needs a multiple of {EMBEDDING_UNIT}. Set 'position_embedding: false'."
                )
        if config.logits is not None:
            self.contents = TargetContents(student, teacher, config.logits.seed)
            pairs = LayerPairs.of(pairing.layer_map, "mean")
            self.pairs = pairs.last() if config.logits.layers == "last" else pairs

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        terms: dict[str, Tensor] = {}
        if self.config.memory is not None:
            pairs = paired_levels(levels_of(student, self.feature), levels_of(teacher, self.feature))
            terms |= memory_terms(self.config.memory, self.adaptor, pairs, targets)
        if self.config.logits is not None:
            value = target_logits_term(self.config.logits, self.contents, self.pairs, student, teacher, context, self.config.no_object)
            terms |= {"logits": value} if value is not None else {}
        return terms

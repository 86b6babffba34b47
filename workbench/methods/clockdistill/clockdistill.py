"""Implements CLoCKDistill (Lan and Tian, arXiv 2502.10683): memory weighted by target locations, and logits of queries made from targets.

This is a re-implementation that was not checked against the authors' code: the abstract names a repository, lanqz7766/CLoCKDistill, that
could not be read here. Three facts are first-hand, from the abstract: the encoder's output is distilled rather than backbone features; it
is enriched by the locations of objects; queries made from ground truth go through both decoders. Equations and weights are second-hand.
``docs/methods.md`` lists each of them, and what is not known at all.
"""

from typing import cast

from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, query_output
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import IncompatibleError
from workbench.methods.clockdistill.config import CLoCKDistillConfig
from workbench.methods.clockdistill.logits import TargetContents, target_logits_term
from workbench.methods.clockdistill.memory import EMBEDDING_UNIT, memory_terms
from workbench.methods.context import LayerPairs, MethodContext, Pairing
from workbench.methods.levels import Adaptor, Compared, compared_levels, levels_of, paired_levels
from workbench.methods.method import Method


class CLoCKDistill(Method):
    """CLoCKDistill with the terms ``memory_foreground``, ``memory_background`` and ``logits``.

    The memory terms read no query, so that with ``logits: null`` they serve every pair of detectors.
    """

    name = "clockdistill"
    without_live_teacher = "Set 'logits: null' to train without queries made from targets, or remove 'cache:' from the recipe."
    Config = CLoCKDistillConfig
    terms = "memory_foreground, memory_background; logits"
    citation = "re-implementation of CLoCKDistill, arXiv 2502.10683 (WACV 2026), sections 3.1 and 3.2"
    config: CLoCKDistillConfig

    def __init__(self, config: CLoCKDistillConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.compared: Compared | None = None
        if config.memory is not None:
            always = config.memory.adaptor == "always"
            self.compared = compared_levels(self.name, config.memory.feature, student, teacher, always=always)
            self.adaptor = Adaptor(self.compared)
            widths = sorted(set(self.compared.teacher.values()))
            if config.memory.position_embedding and any(width % EMBEDDING_UNIT for width in widths):
                raise IncompatibleError(
                    f"method '{self.name}': the teacher's {self.compared.feature} ({teacher.family}) has {widths} channels, and the "
                    f"embedding of a box needs a multiple of {EMBEDDING_UNIT}. Set 'position_embedding: false'."
                )
        if config.logits is not None:
            # ``check`` has found decoders on both sides
            self.contents = TargetContents(cast(QueryDetector, student), cast(QueryDetector, teacher), config.logits.seed)
            pairs = LayerPairs.of(pairing.layer_map, "mean")
            self.pairs = pairs.last() if config.logits.layers == "last" else pairs

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Method.notes``."""
        return (f"{self.name} compares {self.compared.text()}",) if self.compared is not None else ()

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``."""
        terms: dict[str, Tensor] = {}
        if self.config.memory is not None and self.compared is not None:
            pairs = paired_levels(levels_of(student, self.compared.feature), levels_of(teacher, self.compared.feature))
            terms |= memory_terms(self.config.memory, self.adaptor, pairs, targets)
        if self.config.logits is not None:
            own, other = query_output(student), query_output(teacher)
            value = target_logits_term(self.config.logits, self.contents, self.pairs, own, other, context, self.config.no_object)
            terms |= {"logits": value} if value is not None else {}
        return terms

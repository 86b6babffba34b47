"""Implements DetKDS (ICML 2024): knowledge distillation by searched formulas on up to five inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Queries, QueryOutput, TwoStageOutput, query_output, two_stage_output
from workbench.detectors.query_detector import QueryDetector
from workbench.detectors.two_stage_detector import TwoStageDetector
from workbench.detectors.whole_batch import divisions, over_processes
from workbench.errors import IncompatibleError
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.distances import formula_loss
from workbench.methods.detkds.genotype import Genotype, Input, refusal
from workbench.methods.detkds.inputs import (
    Compared,
    QueryPairs,
    answered,
    cell_boxes,
    cell_logits,
    first_stage,
    foreground_maps,
    instances,
    matched_queries,
    proposal_logits,
    query_boxes,
    query_logits,
    released_instance_loss,
    same_queries,
    whole_maps,
)
from workbench.methods.extra_group import TeacherQueries
from workbench.methods.levels import Adaptor, compared_levels, levels_of, paired_levels
from workbench.methods.maps import MapPair
from workbench.methods.method import Method


@dataclass
class _Sums:
    """Adds up the terms of a step over levels and layers, each formula with a seed of its own.

    Attributes:
        config: formulas and mode.
        seeds: gives the seed of each random mask.
        terms: what has been added so far, by name.
        device: device of the terms.
    """

    config: DetKDSConfig
    seeds: torch.Generator
    terms: dict[str, Tensor]
    device: torch.device

    def seed(self) -> int:
        return int(torch.randint(2**31, (), generator=self.seeds))

    def add(self, term: str, value: Tensor) -> None:
        self.terms[term] = self.terms[term] + value if term in self.terms else value

    def skip(self) -> None:
        """Takes part where the other processes make the mean of a term that this one leaves out."""
        if self.config.mode == "corrected" and divisions() > 1:
            over_processes(torch.zeros((), device=self.device))

    def compare(self, input: Input, compared: Compared, term: str | None = None) -> None:
        """Adds the loss of an input's formula, unless a batch has too few boxes for it."""
        genotype = self.config.genotypes[input]
        rows = len(compared.student.values)
        if rows < genotype.least_rows or not rows:
            if input in ("instance", "localization"):
                self.skip()
                return
            raise IncompatibleError(f"method 'detkds': {genotype} cannot work: {refusal(genotype, self.config.mode, rows)}")
        loss = formula_loss(genotype, compared.student, compared.teacher, self.config.mode, self.seed(), compared.weight)
        self.add(term or input, loss)


class DetKDS(Method):
    """DetKDS with the terms ``global``, ``foreground`` and ``background``, ``instance``, ``logits`` and ``localization``.

    Each input of the configuration passes through the same three transformations on both sides, and a distance compares the results
    (``workbench.methods.detkds.genotype``). Levels are paired by stride and summed; so are decoder layers. Background has the formula of
    foreground and half its weight.

    Class scores and boxes of two dense detectors are compared cell by cell, those of two two-stage detectors at the first stage, and those
    of two DETRs query by query (``correspondence``). ``logits_of`` compares the class scores of two second stages on shared proposals
    instead. Detectors of different kinds share feature maps alone.

    The released code differs in its distances (``workbench.methods.detkds.distances``), draws the masks of both sides apart, lets padding
    into every sum, stretches boxes over the padded map and pools instances behind the chain. ``mode: official`` does all of it.
    """

    name = "detkds"
    Config = DetKDSConfig
    terms = "global, foreground, background, instance, logits, localization"
    citation = "DetKDS, ICML 2024; released code lliai/DetKDS@a7d2127 (operations and formulas), boxes and DETRs are ours"
    without_live_teacher = "Set 'logits_of: teacher_proposals', which a cache can keep, or remove 'cache:' from the recipe."
    config: DetKDSConfig

    def __init__(self, config: DetKDSConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        if config.reads_features:
            self.compared = compared_levels(self.name, config.feature, student, teacher)
            self.adaptor = Adaptor(self.compared)
        self.queries = "queries" in student.provides & teacher.provides
        if config.reads_responses:
            if self.queries:
                self._check_classes(len(student.spec.classes), student)
            elif config.shares_proposals:
                self._check_classes(len(student.spec.classes), student)
            if not self.queries and (config.localization is not None or not config.shares_proposals):
                self._check_cells(student, teacher)
        if config.sends_queries:
            self.group = TeacherQueries(self.name, cast(QueryDetector, student), cast(QueryDetector, teacher))
        # masks are a pure function of (run's seed, step), so that a resumed run repeats them and no other random stream is disturbed
        self.random_seed = int(torch.randint(2**31, ()))

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Method.notes``."""
        return (f"{self.name} compares {self.compared.text()}",) if self.config.reads_features else ()

    def weight_of(self, term: str) -> float:
        """See ``Method.weight_of``. The published weight of a term stands beside its formula."""
        return self.config.weight * self.config.weights.get(term, self.config.published_weight[term])

    def forward(self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """See ``Method.forward``. Terms about targets are left out if the batch has none."""
        config = self.config
        sums = _Sums(config, torch.Generator().manual_seed(self.random_seed + context.training.step), {}, student.logits.device)
        if config.reads_features:
            for pair in self._map_pairs(student, teacher):
                self._compare_maps(sums, pair, targets)
        if config.reads_responses and self.queries:
            answer, pairs = self._query_pairs(query_output(student), query_output(teacher), context)
            for one in pairs:
                if config.logits is not None:
                    sums.compare("logits", query_logits(answer, query_output(teacher), one, context))
                if config.localization is not None:
                    sums.compare("localization", query_boxes(answer, query_output(teacher), one, context))
        elif config.reads_responses:
            if config.shares_proposals:
                sums.compare("logits", self._proposal_logits(two_stage_output(student), two_stage_output(teacher), context))
            elif config.logits is not None:
                for compared in cell_logits(student, teacher, self.pairing, config.mode):
                    sums.compare("logits", compared)
            if config.localization is not None:
                sums.compare("localization", cell_boxes(student, teacher))
        return {term: sums.terms[term] for term in self.term_names if term in sums.terms}

    def _compare_maps(self, sums: _Sums, pair: MapPair, targets: TargetBatch) -> None:
        config = self.config
        if config.global_ is not None:
            sums.compare("global", whole_maps(pair, config.mode))
        some = targets.any_valid
        if config.foreground is not None:
            foreground, background = foreground_maps(pair, targets, config.mode)
            # images without targets count in the mean of a batch that has some, wherever they are
            if some or divisions() > 1:
                sums.compare("foreground", foreground)
            sums.compare("foreground", background, "background")
        if config.instance is not None and some:
            if config.mode == "official":
                sums.add("instance", released_instance_loss(config.genotypes["instance"], pair, targets, sums.seed()))
            else:
                sums.compare("instance", instances(pair, targets))
        elif config.instance is not None:
            sums.skip()

    def _map_pairs(self, student: DetectorOutput, teacher: DetectorOutput) -> Iterator[MapPair]:
        """Yields the levels that both have, the student's in the teacher's width; as released, padding is a part of the map."""
        for own, other in paired_levels(levels_of(student, self.compared.feature), levels_of(teacher, self.compared.feature)):
            if self.config.mode == "official":
                everywhere = torch.ones_like(own.padding)[:, None]
                yield MapPair(self.adaptor(own).float(), other.features.detach().float(), everywhere, own.stride)
                continue
            outside = own.padding[:, None]
            # before and after the adaptor: values of padded cells must not reach others through a kernel, and no bias may remain in them
            adapted = self.adaptor(replace(own, features=own.features.masked_fill(outside, 0.0))).float().masked_fill(outside, 0.0)
            yield MapPair(adapted, other.features.detach().float().masked_fill(outside, 0.0), ~outside, own.stride)

    def _proposal_logits(self, student: TwoStageOutput, teacher: TwoStageOutput, context: MethodContext) -> Compared:
        """Returns the class probabilities that both second stages give to the same boxes."""
        if self.config.logits_of == "teacher_proposals":
            boxes, valid = teacher.proposals, teacher.valid
            own = answered(student, cast(TwoStageDetector, context.student), boxes.detach(), valid)
            return proposal_logits(own, teacher, context, self.config.mode)
        with torch.no_grad():
            other = answered(teacher, cast(TwoStageDetector, context.live_teacher), student.proposals, student.valid)
        return proposal_logits(student, other, context, self.config.mode)

    def _layers(self) -> list[tuple[int, int]]:
        """Returns the compared layers of the student, each with the last of the teacher's layers that teach it."""
        layers = list(enumerate(self.pairing.last_layers()))
        return layers if self.config.layers == "all" else layers[-1:]

    def _query_pairs(self, student: QueryOutput, teacher: QueryOutput, context: MethodContext) -> tuple[QueryOutput, list[QueryPairs]]:
        """Returns the student's output whose queries are compared, and which of them with which of the teacher's."""
        if self.config.correspondence == "match":
            return student, matched_queries(student, teacher, context, self._layers())[0]
        answer = context.query_student.decode(self.teacher_group(teacher, context), student.context)
        return answer, same_queries(teacher, self._layers())

    def train_mates(self, student: DetectorOutput, teacher: DetectorOutput, context: MethodContext) -> Tensor | None:
        """See ``Method.train_mates``. Returns the matching of ``correspondence: match``."""
        if not (self.config.reads_responses and self.queries and self.config.correspondence == "match"):
            return None
        own, other = query_output(student), query_output(teacher)
        _, found = matched_queries(own, other, context, self._layers())
        mates = torch.full((len(own.logits), *found.shape[1:]), -1)
        mates[[s for s, _ in self._layers()]] = found
        return mates

    @property
    def sends_queries(self) -> bool:
        """See ``Method.sends_queries``."""
        return self.config.sends_queries

    def teacher_group(self, teacher: DetectorOutput, context: MethodContext) -> Queries:
        """See ``Method.teacher_group``."""
        return self.group(query_output(teacher).queries)

    def _check_cells(self, student: Detector, teacher: Detector) -> None:
        """Checks that two detectors predict the same numbers at the same cells."""
        own, other = first_stage(student.blank_output()), first_stage(teacher.blank_output())
        strides = [tuple(level.stride for level in side.maps) for side in (own, other)]
        shared = set(strides[0]) & set(strides[1])
        both = self.config.localization is not None and strides[0] != strides[1]
        if own.grid.shapes != other.grid.shapes or not shared or both:
            raise IncompatibleError(
                f"method '{self.name}' compares class scores and boxes cell by cell, but the student ({student.family}) predicts "
                f"{own.grid.shapes} boxes at each cell of strides {list(strides[0])}, and the teacher ({teacher.family}) "
                f"{other.grid.shapes} of strides {list(strides[1])}. Compare feature maps alone (logits: null, localization: null), or "
                "take another teacher."
            )
        if not self.config.shares_proposals:
            self._check_classes(own.maps[0].logits.shape[1], student)

    def _check_classes(self, channels: int, student: Detector) -> None:
        """Checks that the formula of the class scores works with so few of them."""
        genotype: Genotype | None = self.config.genotypes.get("logits")
        reason = refusal(genotype, self.config.mode, channels=channels) if genotype is not None else None
        if reason is not None:
            raise IncompatibleError(f"method '{self.name}': {genotype} cannot work with {student.family}: {reason}")

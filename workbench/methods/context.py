"""Defines what a method receives besides the two outputs: the pair of detectors and the state of one training step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, probability
from workbench.detectors.query_detector import QueryDetector
from workbench.errors import ConfigError, IncompatibleError
from workbench.matching import Activation, match_targets


@dataclass(frozen=True)
class Pairing:
    """How the layers and classes of a teacher and a student correspond; declared or derived once, before training.

    Attributes:
        layer_map: For each student layer, the teacher layers that teach it.
        class_map: ``[C_S]`` teacher class index of each student class, or None if both have the same classes.
    """

    layer_map: tuple[tuple[int, ...], ...]
    class_map: tuple[int, ...] | None

    def pairs(self) -> tuple[list[int], list[int]]:
        """Returns the student layers and the teacher layers of all pairs, as two flat lists."""
        flat = [(s, t) for s, group in enumerate(self.layer_map) for t in group]
        return [s for s, _ in flat], [t for _, t in flat]

    def in_student_classes(self, logits: Tensor, activation: Activation) -> Tensor:
        """Reorders the teacher's logits ``[..., C_T]`` to ``[..., C_S]``. No-object of a softmax head stays last."""
        if self.class_map is None:
            return logits
        return logits[..., [*self.class_map, *([logits.shape[-1] - 1] if activation == "softmax" else [])]]

    def last_layers(self) -> tuple[int, ...]:
        """Returns, for each student layer, the last of its teacher layers, whose paired queries are shown."""
        return tuple(group[-1] for group in self.layer_map)


@dataclass(frozen=True)
class LayerPairs:
    """The teacher layer that teaches each student layer, as a list of pairs.

    Attributes:
        student: Student layer of each of P pairs.
        teacher: Teacher layer of each pair.
        share: Weight of each pair, ``1 / r`` if the r teacher layers of a student layer are averaged.
    """

    student: list[int]
    teacher: list[int]
    share: list[float]

    @classmethod
    def of(cls, layer_map: tuple[tuple[int, ...], ...], reduce: Literal["mean", "sum"]) -> "LayerPairs":
        """Returns the pairs of a layer map."""
        flat = [(s, t, 1.0 / len(group) if reduce == "mean" else 1.0) for s, group in enumerate(layer_map) for t in group]
        return cls([s for s, _, _ in flat], [t for _, t, _ in flat], [share for _, _, share in flat])

    def last_of_each(self, values: Tensor, layers: int) -> Tensor:
        """Maps ``values [P, ...]`` to ``[layers, ...]``: of each student layer's last teacher layer, -1 for layers without a teacher."""
        result = torch.full((layers, *values.shape[1:]), -1, dtype=values.dtype, device=values.device)
        for place, layer in enumerate(self.student):
            result[layer] = values[place]
        return result

    def last(self) -> "LayerPairs":
        """Returns the pairs of the last student layer."""
        first = self.student.index(self.student[-1])
        return LayerPairs(self.student[first:], self.teacher[first:], self.share[first:])


def divide_layers(student: int, teacher: int) -> tuple[tuple[int, ...], ...]:
    """Divides the teacher's layers evenly among the student's, in order and the last to the last.

    With r times as many of them, r teach each student layer (DETRDistill, Fig. 5). Without a whole ratio some teach one more than others.
    A student with more layers than its teacher has neighbours learn from the same one.

    Args:
        student: number of the student's layers.
        teacher: number of the teacher's layers.
    """
    if student > teacher:
        return tuple(((layer + 1) * teacher // student - 1 + (((layer + 1) * teacher) % student > 0),) for layer in range(student))
    return tuple(tuple(range(layer * teacher // student, (layer + 1) * teacher // student)) for layer in range(student))


def make_pairing(student: Detector, teacher: Detector, layer_map: tuple[tuple[int, ...], ...] | None) -> Pairing:
    """Derives the layer map of unequal depths (``divide_layers``) and the class map by name.

    If one of the two is no DETR, each layer of the student learns from the last stage of the teacher.

    Raises:
        ConfigError: the declared ``layer_map`` does not fit.
        IncompatibleError: the student has a class that the teacher lacks.
    """
    depths = (student.num_stages, teacher.num_stages)
    if layer_map is None and not ("queries" in student.provides and "queries" in teacher.provides):
        # the one prediction of a detector without decoder layers answers to the last one of the other, which is its result
        layer_map = ((depths[1] - 1,),) * depths[0]
    layer_map = layer_map or divide_layers(*depths)
    if len(layer_map) != depths[0] or not all(layer_map) or any(not 0 <= t < depths[1] for g in layer_map for t in g):
        raise ConfigError(
            f"layer_map {[list(g) for g in layer_map]} does not fit: it must list, for each of {depths[0]} student layers, "
            f"teacher layers between 0 and {depths[1] - 1}."
        )
    missing = [name for name in student.spec.classes if name not in teacher.spec.classes]
    if missing:
        raise IncompatibleError(
            f"the teacher does not know {', '.join(map(repr, missing))}; it knows "
            f"{', '.join(map(repr, teacher.spec.classes))}. If it has another name for one of them, set 'class_map: "
            "{teacher class: class of the data}'. Otherwise train it on these classes (head: reset)."
        )
    index = tuple(teacher.spec.classes.index(name) for name in student.spec.classes)
    return Pairing(layer_map, None if index == tuple(range(len(teacher.spec.classes))) else index)


@dataclass(frozen=True, kw_only=True)
class TeacherAnswer:
    """What is known of the teacher's output for a batch.

    Attributes:
        output: The live teacher's output, or the one stored in a cache.
        match: ``[L, B, N_T]`` the matching of the teacher's queries to the targets, from a cache that computed it from the unrounded
            output. None if it must be computed when a method asks for it.
        prepared: Results of ``Method.prepare`` by ``Method.prepared_by``, as far as a cache holds them.
    """

    output: DetectorOutput
    match: Tensor | None = None
    prepared: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The current position in training.

    Attributes:
        step: Index of the step, from 0.
        epoch: Index of the epoch, from 0.
        num_boxes: Number of matchable targets in the batch, averaged over processes, at least 1.
    """

    step: int
    epoch: int
    num_boxes: Tensor | float


@dataclass(kw_only=True)
class MethodContext:
    """The pair of detectors, the targets of a batch and, in training, the current progress.

    To run a second pass through a decoder, call ``context.query_student.decode(queries, output.context)``, or the same of the teacher
    under ``torch.no_grad()``.

    Attributes:
        student: The student module.
        pairing: Correspondence of layers and classes.
        targets: Targets of the batch.
        teacher: The teacher module, without gradient and in eval mode; None if its outputs come from a cache.
        answer: What is known of the teacher besides its output; None if nothing is.
        progress: Progress of training; None while queries are recorded or a cache is built, where there is no step.
        student_match: ``[S, B, N]`` the student's assignment in this step (``Detector.assign``); None outside training.
    """

    student: Detector
    pairing: Pairing
    targets: TargetBatch
    teacher: Detector | None = None
    answer: TeacherAnswer | None = None
    progress: Progress | None = None
    student_match: Tensor | None = None
    _kept: dict[tuple[str, int], tuple[DetectorOutput, Tensor]] = field(default_factory=dict)

    @property
    def query_student(self) -> QueryDetector:
        """Returns the student, for a method that states the need for ``queries`` or ``decode``, so that no other student reaches it."""
        return cast(QueryDetector, self.student)

    @property
    def live_teacher(self) -> Detector:
        """Returns the live teacher, for a method whose configuration says that it asks it (``BaseMethodConfig.asks_teacher``).

        Raises:
            RuntimeError: the teacher's outputs come from a cache.
        """
        if self.teacher is None:
            raise RuntimeError("the teacher is not live: its outputs come from a cache")
        return self.teacher

    @property
    def query_teacher(self) -> QueryDetector:
        """Returns the live teacher, for a method that states the need for ``queries`` or ``decode`` of the teacher.

        Raises:
            RuntimeError: the teacher's outputs come from a cache.
        """
        return cast(QueryDetector, self.live_teacher)

    @property
    def training(self) -> Progress:
        """Returns the current progress of training.

        Raises:
            RuntimeError: there is no training, because a loss term was asked for while queries are recorded.
        """
        if self.progress is None:
            raise RuntimeError("this context has no progress: loss terms are only computed in training")
        return self.progress

    def prepared(self, settings: str | None) -> dict[str, Tensor] | None:
        """Returns the cached result of ``Method.prepare`` for these settings (``Method.prepared_by``); None if there is none."""
        return self.answer.prepared.get(settings) if self.answer is not None and settings is not None else None

    def teacher_probability(self, output: DetectorOutput) -> Tensor:
        """Returns a teacher output's class probabilities ``[L, B, N_T, C_S]`` in the student's classes, without no-object.

        They are computed once a step.
        """

        def compute() -> Tensor:
            values = probability(output)
            return values if self.pairing.class_map is None else values[..., list(self.pairing.class_map)]

        return self._once("probability", output, compute)

    def teacher_match(self, output: DetectorOutput) -> Tensor:
        """Returns ``[L, B, N_T]``, the one-to-one matching of a teacher's queries to the targets, with the detection cost.

        It is computed once a step or read from a cache. Only methods that state the need for ``queries`` may ask for it: candidates of
        other detectors are not assigned this way.
        """
        if self.answer is not None and self.answer.match is not None and self.answer.output is output:
            return self.answer.match

        def compute() -> Tensor:
            logits = self.pairing.in_student_classes(output.logits, output.activation)
            return match_targets(logits, output.boxes, self.targets, output.activation)

        return self._once("match", output, compute)

    def _once(self, name: str, output: DetectorOutput, compute: Callable[[], Tensor]) -> Tensor:
        key = (name, id(output))
        if key not in self._kept:
            # the output is kept with its value, because an id is unique only while the object lives
            self._kept[key] = (output, compute())
        return self._kept[key][1]

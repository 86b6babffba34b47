"""What a method sees besides the two outputs: the pair it serves and one step of training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, probability
from workbench.errors import ConfigError, IncompatibleError
from workbench.matching import Activation, match_targets


@dataclass(frozen=True)
class Pairing:
    """How a teacher and a student fit together; declared or derived once, before training.

    Attributes:
        layer_map: for each student layer the teacher layers that teach it.
        class_map: ``[C_S]`` teacher class index of each student class, or None when they are the same.
    """

    layer_map: tuple[tuple[int, ...], ...]
    class_map: tuple[int, ...] | None

    def pairs(self) -> tuple[list[int], list[int]]:
        """Student and teacher layer of every pair, flat."""
        flat = [(s, t) for s, group in enumerate(self.layer_map) for t in group]
        return [s for s, _ in flat], [t for _, t in flat]

    def in_student_classes(self, logits: Tensor, activation: Activation) -> Tensor:
        """Logits ``[..., C_T]`` of the teacher as ``[..., C_S]``; no-object of a softmax head stays last."""
        if self.class_map is None:
            return logits
        return logits[..., [*self.class_map, *([logits.shape[-1] - 1] if activation == "softmax" else [])]]

    def last_layers(self) -> tuple[int, ...]:
        """Teacher layer whose mates are shown for each student layer: the last of its group."""
        return tuple(group[-1] for group in self.layer_map)


@dataclass(frozen=True)
class LayerPairs:
    """Which teacher layer teaches which student layer.

    Attributes:
        student: layer of each of P pairs.
        teacher: layer of each pair.
        share: weight of each pair, ``1 / r`` where the r teacher layers of a student layer are averaged.
    """

    student: list[int]
    teacher: list[int]
    share: list[float]

    @classmethod
    def of(cls, layer_map: tuple[tuple[int, ...], ...], reduce: Literal["mean", "sum"]) -> "LayerPairs":
        """Pairs of a layer map."""
        flat = [(s, t, 1.0 / len(group) if reduce == "mean" else 1.0) for s, group in enumerate(layer_map) for t in group]
        return cls([s for s, _, _ in flat], [t for _, t, _ in flat], [share for _, _, share in flat])

    def last_of_each(self, values: Tensor, layers: int) -> Tensor:
        """``values [P, ...]`` of the pairs as ``[layers, ...]``: of the last teacher layer of each student layer, -1 where none teaches."""
        result = torch.full((layers, *values.shape[1:]), -1, dtype=values.dtype, device=values.device)
        for place, layer in enumerate(self.student):
            result[layer] = values[place]
        return result

    def last(self) -> "LayerPairs":
        """Those of the last student layer."""
        first = self.student.index(self.student[-1])
        return LayerPairs(self.student[first:], self.teacher[first:], self.share[first:])


def make_pairing(student: Detector, teacher: Detector, layer_map: tuple[tuple[int, ...], ...] | None) -> Pairing:
    """Layer map of unequal depths (DETRDistill Fig. 5: r teacher layers a student layer) and class map by name.

    Raises:
        ConfigError: the depths have no integer ratio and no ``layer_map`` is declared, or a declared one does not fit.
        IncompatibleError: the student has a class the teacher lacks.
    """
    if layer_map is None:
        if teacher.num_layers % student.num_layers:
            raise ConfigError(
                f"the teacher has {teacher.num_layers} decoder layers, the student {student.num_layers}: no whole ratio. Declare "
                "'layer_map:', for each student layer the list of teacher layers, such as [[0, 1], [2]]."
            )
        ratio = teacher.num_layers // student.num_layers
        layer_map = tuple(tuple(range(k * ratio, (k + 1) * ratio)) for k in range(student.num_layers))
    if len(layer_map) != student.num_layers or not all(layer_map) or any(not 0 <= t < teacher.num_layers for g in layer_map for t in g):
        raise ConfigError(
            f"layer_map {[list(g) for g in layer_map]} must list, for each of {student.num_layers} student layers, teacher "
            f"layers between 0 and {teacher.num_layers - 1}."
        )
    missing = [name for name in student.spec.classes if name not in teacher.spec.classes]
    if missing:
        raise IncompatibleError(
            f"the teacher does not know {', '.join(map(repr, missing))}; it knows "
            f"{', '.join(map(repr, teacher.spec.classes))}. Where one has another name, say so with 'class_map: "
            "{teacher class: class of the data}'; otherwise train it on these classes (head: reset)."
        )
    index = tuple(teacher.spec.classes.index(name) for name in student.spec.classes)
    return Pairing(layer_map, None if index == tuple(range(len(teacher.spec.classes))) else index)


@dataclass(frozen=True, kw_only=True)
class TeacherAnswer:
    """What the teacher said of a batch.

    Attributes:
        output: live, or as a cache keeps it.
        match: ``[L, B, N_T]`` the teacher's own matching to the targets, from a cache, where it was computed with the unrounded output;
            None: it is computed when a method asks for it.
        prepared: what ``Method.prepare`` gives, by ``Method.prepared_by``, as far as a cache has it.
    """

    output: DetectorOutput
    match: Tensor | None = None
    prepared: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where training stands.

    Attributes:
        step: 0-based.
        epoch: 0-based.
        num_boxes: matchable targets of the batch, averaged over processes, at least 1.
    """

    step: int
    epoch: int
    num_boxes: Tensor | float


@dataclass(kw_only=True)
class MethodContext:
    """The pair, the targets of a batch, and in training where it stands.

    A second pass through a decoder is ``context.student.decode(queries, output.context)``, and for the teacher the same under
    ``torch.no_grad()``.

    Attributes:
        student: the module.
        pairing: layers and classes.
        targets: of the batch.
        teacher: the module, without gradient and in eval mode; None when its answers come from a cache.
        answer: what is known of the teacher's answer beside its output; None: nothing.
        progress: of training; None when queries are recorded or a cache is built, where there is no step.
        student_match: ``[L, B, N]`` of this step; None outside training.
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
    def training(self) -> Progress:
        """Where training stands.

        Raises:
            RuntimeError: there is no training; a loss term was asked for while queries are recorded.
        """
        if self.progress is None:
            raise RuntimeError("this context has no progress: terms are computed in training alone")
        return self.progress

    def prepared(self, settings: str | None) -> dict[str, Tensor] | None:
        """What a cache has of ``Method.prepare`` for these settings (``Method.prepared_by``); None if it has nothing."""
        return self.answer.prepared.get(settings) if self.answer is not None and settings is not None else None

    def teacher_probability(self, output: DetectorOutput) -> Tensor:
        """``[L, B, N_T, C_S]`` of an output of the teacher in the student's classes, without no-object; computed once a step."""

        def compute() -> Tensor:
            values = probability(output)
            return values if self.pairing.class_map is None else values[..., list(self.pairing.class_map)]

        return self._once("probability", output, compute)

    def teacher_match(self, output: DetectorOutput) -> Tensor:
        """``[L, B, N_T]`` the teacher's own matching to the targets, with the detection cost; computed once a step, or from a cache."""
        if self.answer is not None and self.answer.match is not None and self.answer.output is output:
            return self.answer.match

        def compute() -> Tensor:
            logits = self.pairing.in_student_classes(output.logits, output.activation)
            return match_targets(logits, output.boxes, self.targets, output.activation)

        return self._once("match", output, compute)

    def _once(self, name: str, output: DetectorOutput, compute: Callable[[], Tensor]) -> Tensor:
        key = (name, id(output))
        if key not in self._kept:
            # the output is kept with its value: an id is its own only while the object lives
            self._kept[key] = (output, compute())
        return self._kept[key][1]


def over_processes(count: Tensor) -> Tensor:
    """Mean of a normaliser over processes, so that a term is that of the whole batch; every process must ask for it, in the same order."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()

"""What a distillation method is: a frozen configuration and a module that returns named loss terms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from workbench.detectors.base import Detector, probability
from workbench.detectors.output import DetectorOutput, Level
from workbench.errors import ConfigError, IncompatibleError
from workbench.matching import TargetBatch, match_targets

Share = Annotated[float, Field(ge=0)]


class BaseMethodConfig(BaseModel):
    """Fields every method has.

    Attributes:
        weight: factor on every term of the method.
        balance: share of the detection loss's gradient norm that a term starts with (one number for all, or by term); the term's
            weight is measured before the first step. Not given: the published weights as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weight: float = Field(1.0, ge=0)
    balance: Share | dict[str, Share] | None = None


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

    def last_layers(self) -> tuple[int, ...]:
        """Teacher layer whose mates are shown for each student layer: the last of its group."""
        return tuple(group[-1] for group in self.layer_map)


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
        raise ConfigError(f"layer_map {[list(g) for g in layer_map]} must list, for each of {student.num_layers} student layers, teacher "
                          f"layers between 0 and {teacher.num_layers - 1}.")
    missing = [name for name in student.spec.classes if name not in teacher.spec.classes]
    if missing:
        raise IncompatibleError(f"the teacher does not know {', '.join(map(repr, missing))}; it knows "
                                f"{', '.join(map(repr, teacher.spec.classes))}. Train it on these classes (head: reset), or rename them.")
    index = tuple(teacher.spec.classes.index(name) for name in student.spec.classes)
    return Pairing(layer_map, None if index == tuple(range(len(teacher.spec.classes))) else index)


@dataclass
class MethodContext:
    """What a method sees besides the two outputs, for one step.

    Attributes:
        student: the module.
        teacher: the module, None when its answers come from a cache.
        pairing: layers and classes.
        targets: of the batch.
        num_boxes: matchable targets of the batch, averaged over processes, at least 1.
        step: 0-based.
        student_match: ``[L, B, N]`` of this step.
    """

    student: Detector
    teacher: Detector | None
    pairing: Pairing
    targets: TargetBatch
    num_boxes: Tensor | float
    step: int
    student_match: Tensor
    _kept: dict[str, Any] = field(default_factory=dict)

    def teacher_probability(self, output: DetectorOutput) -> Tensor:
        """``[L, B, N_T, C_S]`` in the student's classes, without no-object; computed once a step."""
        if "probability" not in self._kept:
            values = probability(output)
            self._kept["probability"] = values if self.pairing.class_map is None else values[..., list(self.pairing.class_map)]
        return self._kept["probability"]

    def teacher_match(self, output: DetectorOutput) -> Tensor:
        """``[L, B, N_T]`` the teacher's own matching to the targets, with the detection cost; computed once a step."""
        if "match" not in self._kept:
            logits = output.logits
            if self.pairing.class_map is not None:
                kept = list(self.pairing.class_map) + ([logits.shape[-1] - 1] if output.activation == "softmax" else [])
                logits = logits[..., kept]
            self._kept["match"] = match_targets(logits, output.boxes, self.targets, output.activation)
        return self._kept["match"]


class Method(nn.Module, ABC):
    """A distillation method; adapters it holds are optimised and checkpointed, never exported.

    Attributes:
        name: registry name.
        source: paper and equations.
        terms: every term it can return, for people.
        needs: of ``Detector.provides``, from both sides.
        teaches_classes: whether a term compares class predictions.
        weight: of the configuration.
        balance: of the configuration.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    terms: ClassVar[str]
    needs: frozenset[str]
    teaches_classes: bool

    def __init__(self, config: BaseMethodConfig):
        super().__init__()
        self.weight, self.balance = config.weight, config.balance

    @property
    @abstractmethod
    def term_names(self) -> tuple[str, ...]:
        """Terms this configuration trains, in order."""

    @abstractmethod
    def forward(
        self, student: DetectorOutput, teacher: DetectorOutput, targets: TargetBatch, context: MethodContext
    ) -> dict[str, Tensor]:
        """Unweighted loss terms by name; a term without eligible targets in this batch is left out."""

    def check(self, student: Detector, teacher: Detector) -> None:
        """Refuses a pair the method cannot serve.

        Raises:
            IncompatibleError: names the side and the missing property.
        """
        for side, detector in (("student", student), ("teacher", teacher)):
            missing = self.needs - detector.provides
            if missing:
                raise IncompatibleError(f"method '{self.name}' needs {', '.join(sorted(missing))}, which the {side} "
                                        f"({detector.family}) does not provide.")
        if self.teaches_classes and student.activation == "softmax" and teacher.activation == "sigmoid":
            raise IncompatibleError(f"method '{self.name}': a softmax student cannot learn class logits from a sigmoid teacher.")


def paired_levels(student: tuple[Level, ...], teacher: tuple[Level, ...]) -> list[tuple[Level, Level]]:
    """Levels of the same stride and shape.

    Raises:
        IncompatibleError: no stride is shared, or shapes differ at one that is.
    """
    by_stride = {level.stride: level for level in teacher}
    pairs = [(level, by_stride[level.stride]) for level in student if level.stride in by_stride]
    if not pairs:
        raise IncompatibleError(
            f"student levels have strides {[v.stride for v in student]}, the teacher's {sorted(by_stride)}: none in common."
        )
    for s, t in pairs:
        if s.features.shape[-2:] != t.features.shape[-2:]:
            raise IncompatibleError(f"at stride {s.stride} the student's level is {tuple(s.features.shape[-2:])}, the teacher's "
                                    f"{tuple(t.features.shape[-2:])}.")
    return pairs


def gather_queries(values: Tensor, index: Tensor) -> Tensor:
    """``values [..., N, D]`` at ``index [..., K]`` to ``[..., K, D]``."""
    return torch.gather(values, -2, index[..., None].expand(*index.shape, values.shape[-1]))

"""Defines what a distillation method is: a frozen configuration and a module that returns named loss terms."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal

import torch
import yaml
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from typing_extensions import TypeVar

from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level, Queries
from workbench.errors import IncompatibleError
from workbench.methods.context import MethodContext, Pairing

NotNegative = Annotated[float, Field(ge=0)]


class BaseMethodConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """Holds the fields that every method has.

    A method's own configuration (``class MyConfig(BaseMethodConfig, frozen=True)``) narrows ``method`` to ``Literal["its name"] = "its
    name"``, adds its switches, each with a default and a line of documentation below it, and says which terms it trains and what it needs.
    """

    published_weights: ClassVar[dict[str, float]] = {}
    alone: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings that keep one part of the method, by the part's name: it serves pairs that the whole method cannot."""

    method: str
    """Selects the method by its registered name."""
    weight: NotNegative = 1.0
    """Factor on every term of the method."""
    weights: dict[str, NotNegative] = {}
    """Weights of single terms by name, in place of the published ones."""
    balance: NotNegative | dict[str, NotNegative] | None = None
    """Gradient norm that a term starts with, as a share of the detection loss's: one number for all terms, or one by name. Each weight is
    measured before the first step, and ``weights`` does not count. Null uses the weights as they are.
    """

    @property
    def term_names(self) -> tuple[str, ...]:
        """Returns the names of the terms that this configuration trains, in order."""
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Returns the names from ``Detector.provides`` that both sides must provide.

        ``memory|neck|head`` means that one of them is enough, if it is the same on both sides. A method whose code takes ``QueryOutput``
        needs ``queries``.
        """
        return frozenset()

    @property
    def needs_student(self) -> frozenset[str]:
        """Returns what the student must provide."""
        return self.needs

    @property
    def needs_teacher(self) -> frozenset[str]:
        """Returns what the teacher must provide. With ``decode`` among it the teacher must be live; a cache is not enough."""
        return self.needs

    @property
    def asks_teacher(self) -> str:
        """Returns what the live teacher is asked in every step, as a clause; empty if a cache of its outputs is enough."""
        return "sends its own queries through the teacher's decoder" if "decode" in self.needs_teacher else ""

    @property
    def needs_all_classes(self) -> bool:
        """True if a term reads more of the teacher's class scores than the best few, so that a cache must hold all of them."""
        return True

    @property
    def least_images(self) -> int:
        """Returns the smallest number of images with which the terms have a gradient: 1 unless a term compares the images of a batch."""
        return 1

    @model_validator(mode="after")
    def _known_terms(self) -> "BaseMethodConfig":
        for key in ("weights", "balance"):
            given = getattr(self, key)
            unknown = sorted(set(given) - set(self.term_names)) if isinstance(given, dict) else []
            if unknown:
                raise ValueError(f"{key} names {', '.join(unknown)}; the terms are {', '.join(self.term_names)}")
        return self


class ClassTeachingConfig(BaseMethodConfig, frozen=True):
    """Holds the fields of a method that compares class predictions."""

    no_object: Literal["1-max"] | None = None
    """How a softmax student learns from a sigmoid teacher, which has no no-object class. ``1-max`` gives no-object what the best class
    leaves, and the classes share the rest in proportion. Null refuses such a pair.
    """

    @property
    def teaches_classes(self) -> bool:
        """True if a term compares class predictions."""
        return True


Output = TypeVar("Output", bound=DetectorOutput, default=DetectorOutput)


class Method(nn.Module, ABC, Generic[Output]):
    """A distillation method. Its adapters are optimised and checkpointed, but never exported.

    Example:
        A method that pulls the boxes of the student's last layer towards the teacher's::

            class CopyConfig(BaseMethodConfig, frozen=True):
                method: Literal["copy"] = "copy"

                @property
                def term_names(self) -> tuple[str, ...]:
                    return ("boxes",)

            class Copy(Method):
                name, Config, terms, citation = "copy", CopyConfig, "boxes", "an example"

                def forward(self, student, teacher, targets, context):
                    return {"boxes": (student.boxes[-1] - teacher.boxes[-1]).abs().mean()}

    Args:
        config: Configuration of the class ``Config``.
        student: Student as built, for widths and depths. It is not kept.
        teacher: Teacher as built. It is not kept.
        pairing: Correspondence of layers and classes.

    Attributes:
        name: Name in the registry.
        Config: Class of its configuration; ``Config()`` is the method as published.
        citation: Paper and equations, and whether it is a re-implementation.
        terms: Every term that it can return, as text to show.
        without_live_teacher: Sentence that says what to change if the method needs the live teacher and the recipe has a cache.

    Raises:
        IncompatibleError: the method cannot serve this pair.
    """

    name: ClassVar[str]
    without_live_teacher: ClassVar[str] = "Remove 'cache:' from the recipe."
    Config: ClassVar[type[BaseMethodConfig]]
    citation: ClassVar[str]
    terms: ClassVar[str]

    def __init__(self, config: BaseMethodConfig, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__()
        self.config = config
        self.pairing = pairing
        self.check(student, teacher)

    @property
    def term_names(self) -> tuple[str, ...]:
        """Returns the names of the terms that this configuration trains, in order."""
        return self.config.term_names

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns sentences about the choices that the method made for this pair, which are logged before training."""
        return ()

    @property
    def state_layers(self) -> tuple[int, ...]:
        """Returns the teacher layers whose decoder states the terms read, which a cache must therefore hold."""
        return tuple(sorted({t for group in self.pairing.layer_map for t in group})) if "states" in self.config.needs_teacher else ()

    @classmethod
    def needs_text(cls) -> str:
        """Returns what the method needs with its published settings, as text to show."""
        config = cls.Config()  # pyright: ignore[reportCallIssue]
        both = config.needs_student & config.needs_teacher
        parts = [_listed(sorted(both))] if both else []
        for side, needs in (("student", config.needs_student), ("teacher", config.needs_teacher)):
            parts += [f"{_listed(sorted(needs - both))} ({side})"] if needs - both else []
        return "; ".join(parts)

    def weight_of(self, term: str) -> float:
        """Returns the factor of an unweighted term that is not balanced."""
        own = self.config.weights.get(term, self.config.published_weights.get(term, 1.0))
        return self.config.weight * own

    @abstractmethod
    def forward(self, student: Output, teacher: Output, targets: TargetBatch, context: MethodContext) -> dict[str, Tensor]:
        """Computes the unweighted loss terms by name. A term without eligible targets in this batch is left out."""

    @property
    def prepared_by(self) -> str | None:
        """Returns a hash of all settings that affect ``prepare``, besides teacher, classes and image; None if nothing is prepared."""
        return None

    def prepare(self, teacher: Output, context: MethodContext) -> dict[str, Tensor]:
        """Computes what the terms derive from the teacher's output and the targets alone, ``[B, ...]`` by name and without gradient.

        It is the same in every step on the same images, so a cache can hold it and a step that reads the cache need not compute it.
        """
        return {}

    def selected(self, teacher: Output, context: MethodContext) -> Tensor | None:
        """Returns which of the teacher's queries teach, for the query table of a run.

        Returns:
            ``[L_T, B, N_T]`` bool; None if the method makes no choice among queries.
        """
        return None

    @property
    def mask_layers(self) -> tuple[int, ...]:
        """Returns the teacher layers whose queries make the masks that weight the features; empty if the method has no such masks."""
        return ()

    def masks(self, teacher: Output, layers: list[int], context: MethodContext, selected: Tensor | None) -> list[tuple[Level, Tensor]]:
        """Computes the masks that weight the features, for display. It is only called for a method that has ``mask_layers``.

        Args:
            teacher: output of the teacher.
            layers: teacher layers, one mask each.
            context: context that holds the targets of the batch.
            selected: result of ``selected``; None counts all queries.

        Returns:
            Levels of the teacher's output, each with its masks ``[len(layers), B, H, W]``.
        """
        raise NotImplementedError

    def student_masks(self, student: Output, layers: list[int], context: MethodContext) -> list[tuple[Level, Tensor]]:
        """Computes the student's masks, made of its own queries as ``masks`` are of the teacher's, for display beside them.

        Args:
            student: output of the student.
            layers: student layers, one mask each.
            context: context that holds the targets of the batch, in which the student's classes are the only ones.

        Returns:
            Levels of the student's output, each with its masks ``[len(layers), B, H, W]``; empty if the method's masks have no such sense.
        """
        return []

    def train_mates(self, student: Output, teacher: Output, context: MethodContext) -> Tensor | None:
        """Returns the teacher query that each of the student's own queries is trained on, for the query table of a run.

        Returns:
            ``[L_S, B, N_S]`` int64 on the CPU, -1 for none. If several teacher layers teach a student layer, it is that of the last one.
            None if the method pairs no queries.
        """
        return None

    @property
    def sends_queries(self) -> bool:
        """True if the method sends the teacher's queries through the student's decoder."""
        return False

    def teacher_group(self, teacher: Output, context: MethodContext) -> Queries:
        """Converts the teacher's queries for the student's decoder, if the method ``sends_queries``.

        Slot n holds the teacher's query n. Queries that the method leaves out are not ``valid``.
        """
        raise NotImplementedError

    @classmethod
    def lacks(cls, student: frozenset[str], teacher: frozenset[str], part: str | None = None) -> list[str]:
        """Returns the missing requirements of two detectors that provide these properties; empty if the method can serve them.

        The requirements are those of the method with its published settings, or of one part of it (``BaseMethodConfig.alone``).
        """
        config = cls.Config.model_validate({"method": cls.name} | dict(cls.Config.alone[part] if part is not None else {}))
        own = {need for need in config.needs_student if not set(need.split("|")) & student}
        other = {need for need in config.needs_teacher if not set(need.split("|")) & teacher}
        apart = {need for need in config.needs - own - other if not set(need.split("|")) & student & teacher}
        return sorted([_listed([need]) for need in own | other] + [f"{_listed([need])} in common" for need in apart])

    def check(self, student: Detector, teacher: Detector) -> None:
        """Checks that the method can serve a pair.

        Raises:
            IncompatibleError: it cannot; the message names the side and the missing property.
        """
        config = self.config
        for side, detector, needs in (("student", student, config.needs_student), ("teacher", teacher, config.needs_teacher)):
            missing = sorted(need for need in needs if not set(need.split("|")) & detector.provides)
            if missing:
                raise IncompatibleError(
                    f"method '{self.name}' needs {_listed(missing)}, which the {side} ({detector.family}) does not provide."
                    f"{self._part_that_serves(student, teacher)}"
                )
        for need in sorted(config.needs):
            if not set(need.split("|")) & student.provides & teacher.provides:
                raise IncompatibleError(
                    f"method '{self.name}' needs {_listed([need])} from both sides, but {student.family} and "
                    f"{teacher.family} have none of these in common."
                )
        if (
            isinstance(config, ClassTeachingConfig)
            and config.teaches_classes
            and config.no_object is None
            and (student.activation, teacher.activation) == ("softmax", "sigmoid")
        ):
            raise IncompatibleError(
                f"method '{self.name}': a softmax student ({student.family}) cannot learn class logits from a sigmoid "
                f"teacher ({teacher.family}), which has no no-object class. Set 'no_object: 1-max', or take another teacher."
            )

    def _part_that_serves(self, student: Detector, teacher: Detector) -> str:
        """Returns a sentence that names the part of the method that can serve a pair, empty if there is none."""
        for part, settings in self.Config.alone.items():
            if not self.lacks(student.provides, teacher.provides, part):
                shown = yaml.safe_dump(dict(settings), default_flow_style=True, sort_keys=False).strip()
                return f" Only its {part} can serve this pair: set {shown}."
        return ""


def _listed(needs: list[str]) -> str:
    return ", ".join(need.replace("|", " or ") for need in needs)


def gather_queries(values: Tensor, index: Tensor) -> Tensor:
    """Gathers ``values [..., N, D]`` at ``index [..., K]`` and returns ``[..., K, D]``."""
    return torch.gather(values, -2, index[..., None].expand(*index.shape, values.shape[-1]))

"""Starts parts of a student from the weights of its teacher, and says of every tensor whether it was copied."""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model
from torch import Tensor

from workbench.detectors.detector import Detector, InputSpec, Part, kind_of
from workbench.errors import IncompatibleError
from workbench.methods.context import Pairing

STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

# the key is a word of Python, so it cannot be written as a field
_FROM: Any = {"from": (Literal["teacher"], Field(description="Whose weights they are: ``teacher``."))}
_WithFrom = create_model("_WithFrom", __config__=STRICT, **_FROM)


class InheritConfig(_WithFrom):
    """Names the parts of the student that start from the teacher's weights. The two must be detectors of one kind."""

    parts: tuple[Part, ...] = Field(min_length=1)
    """Parts whose weights are copied: ``backbone``, ``neck``, ``encoder``, ``decoder``, ``head`` and ``queries``. Tensors of another shape
    or without a counterpart are left out and named. A decoder layer starts from the last of the teacher's layers that teach it.
    """


class InheritingConfig(BaseModel):
    """Adds a key to the architecture of a student."""

    model_config = STRICT
    inherit: InheritConfig | None = None
    """Starts parts of the student from the teacher's weights. Only a student that is described by its family takes it."""


@functools.cache
def inheriting(architecture: type[BaseModel]) -> type[BaseModel]:
    """Returns the configuration of a family with the key ``inherit`` beside its own."""
    return create_model(architecture.__name__, __base__=(InheritingConfig, architecture), __doc__=architecture.__doc__)


def architecture_of(student: BaseModel) -> Any:
    """Returns the configuration of a student's family alone, as a detector is built from it."""
    if not isinstance(student, InheritingConfig):
        return student
    _, architecture = type(student).__bases__
    return architecture.model_validate(student.model_dump(exclude={"inherit"}))


def bare(architecture: Any) -> Any:
    """Returns an architecture that starts from random weights, whatever weights of the backbone it names."""
    return architecture.model_copy(update={"backbone": architecture.backbone.model_copy(update={"weights": None})})


def inherit_parts(
    config: InheritConfig, student: Detector, teacher: Detector, pairing: Pairing, build: Callable[[InputSpec], Detector]
) -> list[str]:
    """Copies the teacher's weights into parts of the student.

    Args:
        config: the parts.
        student: detector that is changed.
        teacher: detector whose weights are taken.
        pairing: pairing of layers and classes.
        build: builds the student for other classes, to find the weights that belong to classes.

    Returns:
        Sentences that name every tensor of these parts: copied, or left out and why.

    Raises:
        IncompatibleError: the two are of different kinds, or nothing can be copied for a part.
    """
    kinds = [kind_of(detector.provides) for detector in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise IncompatibleError(
            f"student.inherit: the student ({student.family}) is a {kinds[0]} detector and the teacher ({teacher.family}) a {kinds[1]} "
            "one, so their parts do not correspond. Remove 'inherit:', or take a teacher of the student's kind."
        )
    # classes in another order have other weights of the same shape
    apart = _class_tensors(build, student.spec) if pairing.class_map is not None else frozenset[str]()
    notes = [note for part in config.parts for note in _copy(part, student, teacher, pairing, apart)]
    layers = pairing.last_layers()
    if "decoder" in config.parts or ("head" in config.parts and kinds[0] == "query"):
        starts = ", ".join(f"{own} from {other}" for own, other in enumerate(layers))
        notes.append(f"inherited decoder layers, the student's from the teacher's: {starts}")
    return notes


@torch.no_grad()
def _copy(part: Part, student: Detector, teacher: Detector, pairing: Pairing, apart: frozenset[str]) -> list[str]:
    own = {name: value for name, value in student.state_dict().items() if student.part_of(name) == part}
    other = teacher.state_dict()
    if not own:
        has = dict.fromkeys(student.part_of(name) for name in student.state_dict())
        raise IncompatibleError(f"student.inherit: the student ({student.family}) has no {part}. Its parts are {', '.join(has)}.")
    copied: list[str] = []
    left: dict[str, list[str]] = {}
    taken: set[str] = set()
    for name, value in own.items():
        source = _source(name, student, pairing)
        reason = _reason(name, value, other.get(source), apart)
        taken.add(source)
        if reason is None:
            value.copy_(other[source])
            copied.append(name)
        else:
            left.setdefault(reason, []).append(name)
    said = [f"{len(names)} {reason}: {', '.join(folded(names))}" for reason, names in left.items()]
    if not copied:
        raise IncompatibleError(
            f"student.inherit: nothing of the teacher's {part} ({teacher.family}) fits the student's ({student.family}). Of its tensors, "
            f"{'; '.join(said)}. Take '{part}' out of the parts, or give both the same sizes."
        )
    unused = [name for name in other if teacher.part_of(name) == part and name not in taken]
    notes = [f"inherited from the teacher, {part}: {len(copied)} of {len(own)} tensors: {', '.join(folded(copied))}"]
    notes += [f"not inherited, {part}: {text}" for text in said]
    notes += [f"left over of the teacher's {part}: {len(unused)} tensors: {', '.join(folded(unused))}"] if unused else []
    return notes


def _source(name: str, student: Detector, pairing: Pairing) -> str:
    """Returns the teacher's name of a tensor: the same, but for the number of a decoder layer."""
    found = re.search(student.decoder_layer, name)
    if found is None:
        return name
    layer, last = int(found[1]), pairing.last_layers()
    # heads behind the last layer belong to the encoder's proposals, and are the last of the teacher's too
    start = last[layer] if layer < len(last) else last[-1] + 1 + layer - len(last)
    return f"{name[: found.start(1)]}{start}{name[found.end(1) :]}"


def _reason(name: str, value: Tensor, other: Tensor | None, apart: frozenset[str]) -> str | None:
    """Returns why a tensor cannot be copied; None if it can."""
    if other is None:
        return "without a counterpart in the teacher"
    if value.shape != other.shape:
        return "of another shape in the teacher"
    return "of classes that the teacher has in another order" if name in apart else None


def _class_tensors(build: Callable[[InputSpec], Detector], spec: InputSpec) -> frozenset[str]:
    """Returns the names of the tensors whose shape depends on the number of classes."""
    more = replace(spec, classes=(*spec.classes, "one more"))
    with torch.random.fork_rng([]), torch.device("meta"):
        own, other = (build(each).state_dict() for each in (spec, more))
    return frozenset(name for name, value in own.items() if value.shape != other[name].shape)


def folded(names: Iterable[str]) -> list[str]:
    """Returns dotted names in a short form: ``a.{0-2}.{bias, weight}`` stands for six of them."""
    return _folded([tuple(name.split(".")) for name in names])


def _folded(paths: list[tuple[str, ...]]) -> list[str]:
    rests: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in paths:
        rests.setdefault(first, []).append(tuple(rest))
    groups: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for first, rest in rests.items():
        groups.setdefault(frozenset(rest), []).append(first)
    lines: list[str] = []
    for rest, firsts in groups.items():
        ends = _folded(sorted(path for path in rest if path))
        label = _set(firsts)
        lines += [label] if () in rest else []
        lines += [f"{label}.{ends[0]}"] if len(ends) == 1 else [f"{label}.{{{', '.join(ends)}}}"] if ends else []
    return lines


def _set(names: list[str]) -> str:
    """Returns one name as it is and several in braces, consecutive numbers as a range."""
    if len(names) == 1:
        return names[0]
    if all(name.isdigit() for name in names):
        numbers = sorted(map(int, names))
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{{{numbers[0]}-{numbers[-1]}}}"
    return f"{{{', '.join(sorted(names))}}}"

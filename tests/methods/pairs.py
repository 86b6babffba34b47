"""A method with two outputs that no model made."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tests.examples import SPEC
from workbench.datasets.targets import TargetBatch
from workbench.detectors.detector import Detector, InputSpec
from workbench.detectors.output import Attentions, Queries, QueryOutput
from workbench.methods.context import MethodContext, Progress, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import build_method, find_method

ALL = frozenset({
    "memory", "neck", "backbone", "head", "queries", "states", "decode", "references", "learned_queries", "attentions", "box_distribution",
})  # fmt: skip


def stub(output: QueryOutput, classes: Sequence[str] = SPEC.classes, **changes: Any) -> Detector:
    """What a method asks of the detector that gave ``output``."""
    values: dict[str, Any] = {
        "family": "stub", "provides": ALL, "activation": output.activation, "num_stages": len(output.logits),
        "num_layers": len(output.logits),
        "num_queries": output.logits.shape[2], "width": output.states.shape[-1],
        "spec": InputSpec(tuple(classes), SPEC.mean, SPEC.std),
        "level_channels": lambda feature: {level.stride: level.features.shape[1] for level in getattr(output, feature)},
        "blank_output": lambda: output, "reference_form": "boxes",
    }  # fmt: skip
    return cast(Detector, SimpleNamespace(**values | changes))


def build_for(name: str, student: QueryOutput, teacher: QueryOutput, seed: int = 0, **config: Any) -> Method:
    """The method for the detectors of two outputs, with adapters of a seed."""
    own, other = stub(student), stub(teacher)
    torch.manual_seed(seed)
    return build_method(find_method(name).Config(**config), own, other, make_pairing(own, other, None))  # pyright: ignore


def answering(*answers: QueryOutput) -> tuple[Detector, list[Queries]]:
    """A detector whose decoder gives these answers in turn, and the queries it was asked about."""
    asked: list[Queries] = []

    def decode(queries: Queries, context: Any) -> QueryOutput:
        asked.append(queries)
        return answers[len(asked) - 1]

    return cast(Detector, SimpleNamespace(decode=decode)), asked


def attended(output: QueryOutput, heads: int = 2, seed: int = 0) -> QueryOutput:
    """``output`` with random attention maps; cells of padding get some as well."""
    generator = torch.Generator().manual_seed(seed)
    layers, images, queries = output.logits.shape[:3]
    cells = sum(level.padding[0].numel() for level in output.memory)
    own, cross = (torch.randn(layers, images, heads, queries, n, generator=generator).softmax(-1) for n in (queries, cells))
    return replace(output, attentions=Attentions(own, cross))


def distributed(output: QueryOutput, bins: int = 5, seed: int = 0) -> QueryOutput:
    """``output`` with random box distributions."""
    generator = torch.Generator().manual_seed(seed)
    return replace(output, box_distribution=2 * torch.randn(*output.boxes.shape, bins, generator=generator))


def step_context(
    student: Any, teacher: Detector | None, pairing: Any, targets: TargetBatch, num_boxes: Any = 1.0, step: int = 0, match: Any = None
) -> MethodContext:
    """A step of training."""
    progress = Progress(step=step, epoch=0, num_boxes=num_boxes)
    return MethodContext(student=student, teacher=teacher, pairing=pairing, targets=targets, progress=progress, student_match=match)


def context_for(
    method: Method, targets: TargetBatch, step: int = 0, student: Detector | None = None, teacher: Detector | None = None
) -> MethodContext:
    """A step of training."""
    return step_context(student, teacher, method.pairing, targets, step=step)


def run(method: Method, student: QueryOutput, teacher: QueryOutput, targets: TargetBatch, step: int = 0) -> dict[str, Tensor]:
    """Terms of one step."""
    return method(student, teacher, targets, context_for(method, targets, step))

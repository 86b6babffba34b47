"""Measures what each method costs relative to (student step + teacher forward).

The pair is Deformable DETR, R50 from R101, with 640x640 pixels, 300 queries, 80 classes, 6 decoder layers and batch 4, on one thread.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Figure, interleaved
from workbench.datasets.targets import TargetBatch
from workbench.detectors.deformable_detr import DeformableDetr, DeformableDetrModelConfig
from workbench.detectors.detector import InputSpec
from workbench.detectors.output import Level, QueryOutput
from workbench.errors import IncompatibleError
from workbench.matching import match_targets
from workbench.methods.context import MethodContext, Progress, make_pairing
from workbench.methods.registry import build_method, find_method, method_names

SIDE, BATCH, CLASSES, TARGETS, REPEATS = 640, 4, 80, 7, 3
SPEC = InputSpec(tuple(f"class {i}" for i in range(CLASSES)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# part of DETRDistill: its configuration, and its target as a share of (student step + teacher forward)
PARTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "detrdistill logits and features": ({"assignment": None}, "<= 0.10"),
    "detrdistill logits, top 50 negatives": ({"assignment": None, "features": None, "logits": {"negatives": "top_k"}}, None),
    "detrdistill assignment": ({"logits": None, "features": None}, None),
    "detrdistill as released": ({"profile": "official_code"}, None),
}


def figures() -> Iterator[Figure]:
    """Yields the seconds of the two models, and the cost of each method as a share of them.

    The cost is that of the method's forward pass and of its backward pass as far as the outputs that it receives.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student, teacher = _detector("resnet50").train(), _detector("resnet101").eval().requires_grad_(False)
    images, padding = torch.randn(BATCH, 3, SIDE, SIDE), torch.zeros(BATCH, SIDE, SIDE, dtype=torch.bool)
    targets = _targets()
    pairing = make_pairing(student, teacher, None)
    with torch.no_grad():
        answer = teacher(images, padding)
        output = student(images, padding)
    match = match_targets(output.logits, output.boxes, targets)

    def one_step() -> None:
        student.zero_grad()
        predicted = student(images, padding)
        terms = student.losses(predicted, targets, float(BATCH * TARGETS))
        torch.stack([student.loss_weights[name] * value for name, value in terms.items()]).sum().backward()

    def forward() -> QueryOutput:
        with torch.no_grad():
            return teacher(images, padding)

    def cost_of(method: Any) -> Callable[[], None]:
        def run() -> None:
            leaves = _leaves(output)
            context = MethodContext(
                student=student,
                pairing=pairing,
                targets=targets,
                teacher=teacher,
                student_match=match,
                progress=Progress(step=0, epoch=0, num_boxes=float(BATCH * TARGETS)),
            )
            torch.stack(list(method(leaves, answer, targets, context).values())).sum().backward()

        return run

    def extra_pass() -> None:
        leaves = _leaves(output)
        group = student.decode(answer.queries, leaves.context)
        given = match_targets(answer.logits, answer.boxes, targets)
        terms = student.losses(group, targets, float(BATCH * TARGETS), given)
        torch.stack(list(terms.values())).sum().backward()

    functions: dict[str, Callable[[], object]] = {"student step": one_step, "teacher forward": forward, "extra decoder pass": extra_pass}
    for name, (config, _) in PARTS.items():
        settings = find_method("detrdistill").Config.model_validate({"method": "detrdistill", **config})
        functions[name] = cost_of(build_method(settings, student, teacher, pairing).train())
    for name in method_names():
        try:
            method = build_method(find_method(name).Config.model_validate({"method": name}), student, teacher, pairing)
        except IncompatibleError:
            continue
        if "attentions" not in method.config.needs:
            functions[name] = cost_of(method.train())
    seconds = interleaved(functions, REPEATS, clock=time.process_time)
    median = {name: float(torch.tensor(values).median()) for name, values in seconds.items()}
    whole = median["student step"] + median["teacher forward"]
    for name in ("student step", "teacher forward", "extra decoder pass"):
        yield Figure(name, median[name], "s", repeats=REPEATS)
    for name in functions:
        if name not in ("student step", "teacher forward", "extra decoder pass"):
            target = PARTS[name][1] if name in PARTS else None
            yield Figure(f"{name} / (student step + teacher forward)", median[name] / whole, "x", target, repeats=REPEATS)
    ratio = median["detrdistill assignment"] / median["extra decoder pass"]
    yield Figure("detrdistill assignment / extra decoder pass with its set loss", ratio, "x", "<= 1.10", repeats=REPEATS)


def _detector(backbone: str) -> DeformableDetr:
    config = {"family": "deformable_detr", "backbone": {"name": backbone, "norm": "frozen"}}
    return DeformableDetr.build(DeformableDetrModelConfig.model_validate(config), SPEC)


def _targets() -> TargetBatch:
    sides = 0.05 + 0.4 * torch.rand(BATCH, TARGETS, 2)
    centres = sides / 2 + (1 - sides) * torch.rand(BATCH, TARGETS, 2)
    labels = torch.randint(CLASSES, (BATCH, TARGETS))
    return TargetBatch(torch.cat([centres, sides], -1), labels, torch.ones(BATCH, TARGETS, dtype=torch.bool))


def _leaves(output: QueryOutput) -> QueryOutput:
    """Returns the output with new leaf tensors, so that a backward pass ends at the inputs of the method."""

    def leaf(value: Tensor) -> Tensor:
        return value.detach().requires_grad_()

    def levels(given: tuple[Level, ...]) -> tuple[Level, ...]:
        return tuple(dataclasses.replace(level, features=leaf(level.features)) for level in given)

    return dataclasses.replace(
        output, logits=leaf(output.logits), boxes=leaf(output.boxes), states=leaf(output.states),
        memory=levels(output.memory), neck=levels(output.neck),
    )  # fmt: skip

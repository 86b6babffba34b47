"""Gradients of one step whose batch is divided over processes, or over passes of one process."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from safetensors.torch import save_file
from torch import Tensor

from tests.examples import batch_of, images_of
from tests.families import tiny
from tests.flows import DISTILLED, tiny_recipe
from workbench.detectors.detector import Detector
from workbench.detectors.whole_batch import Parts, divisions, over_processes
from workbench.files import write_json
from workbench.methods.context import Progress, TeacherAnswer, make_pairing
from workbench.methods.registry import build_method, find_method
from workbench.recipe.setup import build
from workbench.store.run import Run
from workbench.training.balance import term_gradients
from workbench.training.evaluation import BATCH, Evaluator
from workbench.training.spread import is_first
from workbench.training.step import DistillStep, Terms

# images of the whole batch and their targets; the last process or pass of three has none
COUNTS = (3, 1, 2, 2, 4, 0, 0)
DIVISIONS = {2: ((0, 3), (3, 7)), 3: ((0, 3), (3, 5), (5, 7))}
# family of both models and configuration of the method; without a method the family's own loss is compared
CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    **{name: (name, None) for name in ("deformable_detr", "detr", "d_fine", "retinanet", "gfl", "fcos", "reppoints")},
    **{name: ("deformable_detr", {"method": name}) for name in ("cwd", "d3etr", "fgd", "fgfi", "fitnet", "fkd", "kd_detr", "pkd")},
    "clockdistill": ("deformable_detr", {"method": "clockdistill"}),
    "clockdistill, sums": (
        "deformable_detr", {"method": "clockdistill", "memory": {"batch_reduce": "sum"}, "logits": {"norm": "count", "layers": "last"}},
    ),
    "detrdistill": ("deformable_detr", {"method": "detrdistill"}),
    "detrdistill as released": ("deformable_detr", {"method": "detrdistill", "profile": "official_code", "contrastive": None}),
    "detrdistill on softmax heads": ("detr", {"method": "detrdistill"}),
    "ld": ("d_fine", {"method": "ld"}),
    "ld on cells": ("gfl", {"method": "ld"}),
    # what is drawn at random differs between processes, and no cell is hidden here
    "mgd": ("deformable_detr", {"method": "mgd", "mask_ratio": 0.0}),
    "detkds": (
        "gfl",
        {
            "method": "detkds", "global_": {"t1": "catt", "t2": "scale_r2", "t3": "norm_C", "distance": "l1"},
            "foreground": {"t3": "norm_HW", "distance": "cos"}, "instance": {"distance": "l2"}, "logits": {"distance": "kl"},
            "localization": {"distance": "giou"},
        },
    ),
}  # fmt: skip


@cache
def models(family: str) -> tuple[Detector, Detector]:
    """A teacher and a student."""
    return tiny(family, 1), tiny(family, 2)


def step_of(case: str, first: int, end: int, around: Callable[[], Any] = nullcontext) -> tuple[DistillStep, Terms]:
    """The step's module, and the terms of a part of the batch with what ``around`` says of the rest."""
    family, config = CASES[case]
    teacher, student = models(family)
    images, padding = (values[first:end] for values in images_of(*[(64, 64)] * len(COUNTS)))
    targets = batch_of(COUNTS, 3, torch.Generator().manual_seed(2))[first:end]
    pairing, methods = make_pairing(student, teacher, None), []
    if config is not None:
        torch.manual_seed(0)
        methods = [build_method(find_method(config["method"]).Config.model_validate(config), student, teacher, pairing)]
    step = DistillStep(student, methods, pairing, teacher).eval()
    answer = None
    if methods:
        with torch.no_grad(), teacher.collecting_attentions("attentions" in teacher.provides):
            answer = TeacherAnswer(output=teacher(images, padding))
    with around():
        progress = Progress(step=0, epoch=0, num_boxes=over_processes(targets.valid.sum().float(), least=1))
        return step, step(images, padding, targets, progress=progress, teacher=answer)


def gradient(case: str, first: int, end: int, around: Callable[[], Any] = nullcontext) -> Tensor:
    """The gradient of a part of the batch in every parameter that is trained: of the method's terms, or of the family's without one."""
    step, terms = step_of(case, first, end, around)
    terms_alone = list((terms.distillation if step.term_names else terms.detection).values())
    parameters = [p for p in step.parameters() if p.requires_grad]
    # a part without targets may have no term at all
    total = torch.stack([*terms_alone, parameters[0].sum() * 0]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, parameters, strict=True)])


@cache
def whole(case: str) -> Tensor:
    """The gradient of the whole batch."""
    return gradient(case, 0, len(COUNTS))


def in_passes(case: str, parts: Sequence[tuple[int, int]]) -> Tensor:
    """The mean gradient of parts that go through one after another."""
    divided = Parts(len(parts))
    for first, end in parts:
        gradient(case, first, end, divided.noting)
    return torch.stack([gradient(case, *part, lambda place=place: divided.learning(place)) for place, part in enumerate(parts)]).mean(0)


def shares(first: int, end: int) -> dict[str, tuple[float, float]]:
    """What the monitor logs of the gradients of a part of the batch."""
    step, terms = step_of("detrdistill", first, end)
    return term_gradients(terms, step.student.loss_weights, [p for p in step.student.parameters() if p.requires_grad])


def evaluation(root: Path, name: str) -> dict[str, Any]:
    """Evaluates a student and its teacher on three batches, the last of which is smaller, and returns what the first process says."""
    recipe = tiny_recipe(DISTILLED, {"data": {"options": {"train": 4, "val": 2 * BATCH + 3, "test": 4}}})
    setup = build(recipe, "shapes_teacher")
    run = Run.create(name, {"recipe": {}}, root) if is_first() else Run(root / name)
    line = Evaluator(setup, run, torch.device("cpu")).evaluate(setup.val, "val", 1, states=True)
    return {**line, "shares": shares(0, len(COUNTS)) if divisions() == 1 else {}}


def each_process(rank: int, folder: str) -> None:
    """Writes the mean gradients of two and of three processes, their shares, and what they say of an evaluation together."""
    torch.set_num_threads(1)
    for count, parts in DIVISIONS.items():
        if rank >= count:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/{count}", rank=rank, world_size=count)
        assert divisions() == count
        found: dict[str, Tensor] = {}
        for case in CASES:
            found[case] = gradient(case, *parts[rank])
            dist.all_reduce(found[case])
        line = evaluation(Path(folder), f"of{count}")
        found_shares = shares(*parts[rank])
        if rank == 0:
            write_json(Path(folder, f"{count}.json"), {**line, "shares": found_shares})
            save_file({case: values / count for case, values in found.items()}, Path(folder, f"{count}.safetensors"))
        dist.barrier()
        dist.destroy_process_group()
        PartialState._reset_state()  # accelerate keeps its first number of processes

"""One training step of the demo pair: live distillation against its parts, and our set loss against transformers' own."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

from benchmarks.harness import Figure, interleaved, median_ratio
from workbench.config import Recipe, load_recipe
from workbench.datasets.loader import Batch, TrainLoader
from workbench.matching import TargetBatch
from workbench.training.launch import recipe_path
from workbench.training.optim import make_optimizer
from workbench.training.setup import Setup, build
from workbench.training.step import DistillStep, weighted_sum

REPEATS = 40
IMAGES = ["data.options.train=64", "data.options.val=16", "data.options.test=16"]


def figures() -> Iterator[Figure]:
    """Ratios of the demo pair's step, at batch 16 on one thread."""
    torch.set_num_threads(1)
    recipe = load_recipe(recipe_path("shapes"), IMAGES)
    setup = build(recipe, "shapes_teacher")
    batch = TrainLoader(setup.train, setup.transform, recipe.train.batch_size, 0).batch(0)
    setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    distilled = _step(setup, recipe, batch, with_methods=True)
    plain = _step(setup, recipe, batch, with_methods=False)
    theirs = _transformers_step(setup, recipe, batch)
    functions = {"distilled": distilled, "student": plain, "teacher": _teacher(setup, batch), "transformers": theirs}
    # process seconds of one thread: what other processes do meanwhile does not count
    seconds = interleaved(functions, REPEATS, warmup=3, clock=time.process_time)
    names = {"distilled": "live distillation step", "student": "student step", "teacher": "teacher forward",
             "transformers": "student step with transformers' loss"}  # fmt: skip
    for key, values in seconds.items():
        yield Figure(names[key], float(torch.tensor(values).median()) * 1000, "ms", repeats=REPEATS)
    ratio = median_ratio(seconds["distilled"], seconds["student"] + seconds["teacher"])
    yield Figure("live distillation step / (student step + teacher forward)", ratio.value, "x", "<= 1.10", (ratio.low, ratio.high), REPEATS)
    ratio = median_ratio(seconds["student"], seconds["transformers"])
    yield Figure("student step / the same with transformers' loss", ratio.value, "x", None, (ratio.low, ratio.high), REPEATS)
    yield Figure("its upper 95 % bound", ratio.high, "x", "<= 1.02", repeats=REPEATS)


def _step(setup: Setup, recipe: Recipe, batch: Batch, with_methods: bool) -> Callable[[], None]:
    module = DistillStep(setup.student, setup.methods if with_methods else [], setup.pairing)
    optimizer = make_optimizer(setup.student, module.methods, recipe.train)
    detection = setup.student.loss_weights | ({"class": recipe.train.class_weight} if recipe.train.class_weight else {})
    weights = dict.fromkeys(module.term_names, 1.0)

    def run() -> None:
        module.train()
        optimizer.zero_grad()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        targets = TargetBatch.of(batch.targets)
        answer = setup.teacher(images, batch.padding) if with_methods and setup.teacher is not None else None
        terms = module(images, batch.padding, targets, answer, targets.valid.sum().float(), 0)
        weighted_sum(terms, detection, weights).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return run


def _teacher(setup: Setup, batch: Batch) -> Callable[[], Any]:
    assert setup.teacher is not None
    teacher = setup.teacher
    return lambda: teacher(batch.images.contiguous(memory_format=torch.channels_last), batch.padding)


def _transformers_step(setup: Setup, recipe: Recipe, batch: Batch) -> Callable[[], None]:
    """The same student, optimiser and batch, with the loss that transformers computes itself."""
    student = setup.student
    model: Any = student.model
    optimizer = make_optimizer(student, torch.nn.ModuleList(), recipe.train)
    labels = [{"class_labels": t.labels[t.valid], "boxes": t.boxes[t.valid]} for t in batch.targets]

    def run() -> None:
        student.train()
        optimizer.zero_grad()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        output = student(images, batch.padding)
        computed = DeformableDetrForObjectDetectionLoss(
            output.logits[-1], labels, images.device, output.boxes[-1], model.config, output.logits, output.boxes
        )
        torch.as_tensor(computed[0]).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return run

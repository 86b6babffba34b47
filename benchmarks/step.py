"""Measures one training step: live distillation against its parts, our set loss against that of transformers, and the teacher cache."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

from benchmarks.harness import Figure, interleaved, median_ratio, temporary_runs
from workbench.datasets.batches import Batch
from workbench.detectors.registry import FAMILIES
from workbench.methods.context import Progress, TeacherAnswer
from workbench.methods.method import Method
from workbench.methods.registry import build_method, find_method
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import Setup, build, input_spec, open_split
from workbench.teacher_cache.build import Builder, Estimate
from workbench.teacher_cache.fields import fields_of
from workbench.teacher_cache.key import cache_folder
from workbench.teacher_cache.read import TeacherCache
from workbench.training.loader import TrainBatch, TrainLoader
from workbench.training.optim import make_optimizer
from workbench.training.step import DistillStep, weighted_sum

REPEATS = 40
IMAGES = ["data.options.train=64", "data.options.val=16", "data.options.test=16"]
# Deformable DETR at its published settings, but with ResNet-18 in both models and three layers in the student
R18_SIDE, R18_BATCH, R18_REPEATS = 320, 4, 7
# parts of DETRDistill: configuration, and target of the ratio of their step to the undistilled one
PARTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "logits and features": ({"assignment": None}, "<= 1.10"),
    "query-prior assignment alone": ({"logits": None, "features": None}, None),
}


def figures() -> Iterator[Figure]:
    """Yields ratios of a step on one thread, for the demo pair at batch 16 and for a ResNet-18 pair at 320 pixels."""
    torch.set_num_threads(1)
    yield from _live()
    with temporary_runs():
        yield from _from_cache("demo pair", _demo_recipe(), "shapes_teacher", REPEATS)
        with tempfile.TemporaryDirectory() as folder:
            recipe = _r18_recipe()
            yield from _from_cache(f"ResNet-18 at {R18_SIDE} pixels", recipe, _r18_teacher(Path(folder)), R18_REPEATS)


def _live() -> Iterator[Figure]:
    """Yields the figures of the demo pair without a cache."""
    recipe = load_recipe(recipe_path("shapes"), IMAGES)
    setup = build(recipe, "shapes_teacher")
    batch = TrainLoader(setup.train, setup.transform, recipe.train.batch_size, 0).batch(0)
    setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    live, undistilled = step_of(setup, recipe, setup.methods), step_of(setup, recipe, [])
    theirs = _transformers_step(setup, recipe, batch)
    functions = {
        "distilled": lambda: live(batch), "student": lambda: undistilled(batch), "teacher": _teacher(setup, batch), "transformers": theirs,
    }  # fmt: skip
    # process time of one thread, so that other processes do not count
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


def _from_cache(name: str, recipe: Recipe, teacher: str, repeats: int) -> Iterator[Figure]:
    """Yields the ratios of one pair's steps from the cache, reading included, to its undistilled step."""
    setup = build(recipe, teacher, record_teacher=False)
    setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert setup.teacher is not None and setup.pairing is not None
    cache, _ = whole_cache(setup)
    batch = TrainLoader(setup.train, setup.transform, recipe.train.batch_size, 0, variants=setup.variants).batch(0)
    undistilled, live = step_of(setup, recipe, []), step_of(setup, recipe, setup.methods)
    functions: dict[str, Callable[[], object]] = {"undistilled": lambda: undistilled(batch), "live": lambda: live(batch)}
    for part, (config, _) in PARTS.items():
        settings = find_method("detrdistill").Config.model_validate({"method": "detrdistill", **config})
        methods = [build_method(settings, setup.student, setup.teacher.detector, setup.pairing)]
        functions[part] = cached_step(setup, recipe, methods, cache, batch)
    seconds = interleaved(functions, repeats, warmup=2, clock=time.process_time)
    milliseconds = float(torch.tensor(seconds["undistilled"]).median()) * 1000
    yield Figure(f"{name}: undistilled student step on a cached variant", milliseconds, "ms", repeats=repeats)
    ratio = median_ratio(seconds["live"], seconds["undistilled"])
    yield Figure(f"{name}: live distillation, all parts / undistilled step", ratio.value, "x", None, (ratio.low, ratio.high), repeats)
    for part, (_, target) in PARTS.items():
        ratio = median_ratio(seconds[part], seconds["undistilled"])
        yield Figure(f"{name}: {part} from the cache / undistilled step", ratio.value, "x", target, (ratio.low, ratio.high), repeats)


def whole_cache(setup: Setup) -> tuple[TeacherCache, Estimate]:
    """Builds the cache of a setup; returns it with the estimate made before."""
    builder = Builder(setup)
    estimate = builder.estimate()
    builder.build(estimate, accept=True)
    return TeacherCache(cache_folder(setup.recipe)), estimate


def cached_step(setup: Setup, recipe: Recipe, methods: Sequence[Method], cache: TeacherCache, batch: Batch) -> Callable[[], None]:
    """Returns a step that reads the teacher's outputs for a batch of the first variant and trains on them."""
    assert setup.teacher is not None
    source = TeacherCache(cache.folder, fields_of(methods, setup.student, setup.teacher.detector, cache.kept.precision))
    index_of = {record.image_id: index for index, record in enumerate(setup.train.records)}
    indices, step = [index_of[image] for image in batch.image_ids], step_of(setup, recipe, methods)
    return lambda: step(TrainBatch.of(batch, source.read(indices, 0, batch.ops)))


def step_of(setup: Setup, recipe: Recipe, methods: Sequence[Method]) -> Callable[[Batch], None]:
    """Returns a whole training step; the teacher runs live if the batch brings no cached outputs."""
    module = DistillStep(setup.student, list(methods), setup.pairing)
    optimizer = make_optimizer(setup.student, module.methods, recipe.train)
    detection = setup.student.loss_weights | ({"class": recipe.train.class_weight} if recipe.train.class_weight else {})
    weights = dict.fromkeys(module.term_names, 1.0)

    def run(batch: Batch) -> None:
        module.train()
        optimizer.zero_grad()
        images = batch.images.contiguous(memory_format=torch.channels_last)
        targets, answer = batch.targets, None
        if isinstance(batch, TrainBatch) and batch.teacher is not None:
            answer = batch.teacher.answer()
        elif methods and setup.teacher is not None:
            answer = TeacherAnswer(output=setup.teacher(images, batch.padding))
        progress = Progress(step=0, epoch=0, num_boxes=targets.valid.sum().float())
        terms = module(images, batch.padding, targets, progress=progress, teacher=answer)
        weighted_sum(terms, detection, weights).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return run


def _demo_recipe() -> Recipe:
    """Returns the recipe of the demo pair with every part of DETRDistill."""
    whole = "methods=[{method: detrdistill}]"
    return load_recipe(recipe_path("shapes"), [*IMAGES, "cache.variants=1", "cache.name=demo", whole])


def _r18_recipe() -> Recipe:
    student = {"family": "deformable_detr", "backbone": {"name": "resnet18", "norm": "frozen"}, "encoder_layers": 3, "decoder_layers": 3}
    recipe = load_recipe(recipe_path("shapes"), [
        f"data.options.train={R18_BATCH}", "data.options.val=1", "data.options.test=1", f"train.batch_size={R18_BATCH}",
        f"data.transform.resize={{height: {R18_SIDE}, width: {R18_SIDE}}}", "cache.variants=1", "cache.name=r18",
        "methods=[{method: detrdistill}]",
    ])  # fmt: skip
    config = FAMILIES["deformable_detr"].config.model_validate(student)
    return recipe.model_copy(update={"student": config})


def _r18_teacher(folder: Path) -> str:
    """Saves a teacher with random weights and returns its folder; the weights do not affect the cost."""
    torch.manual_seed(0)
    config = FAMILIES["deformable_detr"].config.model_validate(
        {"family": "deformable_detr", "backbone": {"name": "resnet18", "norm": "frozen"}}
    )
    recipe = _r18_recipe()
    detector = FAMILIES["deformable_detr"].detector.build(config, input_spec(recipe, open_split(recipe, "train")))
    detector.save(folder)
    return str(folder)


def _teacher(setup: Setup, batch: Batch) -> Callable[[], Any]:
    assert setup.teacher is not None
    teacher = setup.teacher
    return lambda: teacher(batch.images.contiguous(memory_format=torch.channels_last), batch.padding)


def _transformers_step(setup: Setup, recipe: Recipe, batch: Batch) -> Callable[[], None]:
    """Returns a step with the same student, optimiser and batch, but with the loss of transformers."""
    student = setup.student
    model: Any = student.model
    optimizer = make_optimizer(student, torch.nn.ModuleList(), recipe.train)
    labels = [
        {"class_labels": labels[valid], "boxes": boxes[valid]}
        for labels, boxes, valid in zip(batch.targets.labels, batch.targets.boxes, batch.targets.valid, strict=True)
    ]

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

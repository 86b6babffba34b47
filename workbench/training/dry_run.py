"""Runs one step of a recipe without its data: do the models build, do the methods fit the pair, and what will training cost?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.datasets.base import Dataset
from workbench.datasets.targets import TargetBatch, Targets
from workbench.datasets.transforms import FixedSize, TransformConfig
from workbench.detectors.detector import InputSpec
from workbench.errors import ConfigError, NonFiniteError
from workbench.methods.context import Progress, TeacherAnswer, make_pairing
from workbench.methods.method import Method
from workbench.methods.registry import build_method
from workbench.recipe.pair import untrained
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import FrozenTeacher, inherited, open_split
from workbench.training.launch import teacher_of
from workbench.training.optim import make_optimizer, optimizer_copies
from workbench.training.step import DistillStep, weighted_sum

# number of classes of each format's published dataset, used when the data is not available
STAND_IN_CLASSES = {"coco": 80, "kitti": 8, "voc": 20}
TARGETS = 7  # average number of objects in a COCO image
MEASURED_IMAGES = 2
COPIES = 2  # weights and gradients


@dataclass(frozen=True)
class DryRun:
    """Measurements of one training step on generated images of the largest size.

    Attributes:
        recipe: Name of the recipe.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        batch_size: Batch size of the recipe, split into parts of ``images``.
        images: Number of images that one forward and backward pass holds at a time in training.
        student_parameters: Number of parameters of the student.
        teacher_parameters: Number of parameters of the teacher, 0 without one.
        terms: Unweighted value of every loss term.
        memory_gb: Weights, gradients, the optimiser's moments and what the graph of ``images`` images keeps, in GB of 1e9 bytes.
        seconds_per_step: Time of a step on this machine; the measured images are scaled to the batch size.
        hours: Time of all steps on this machine.
        classes: Number of classes of the data, or of the stand-in for it.
    """

    recipe: str
    height: int
    width: int
    batch_size: int
    images: int
    student_parameters: int
    teacher_parameters: int
    terms: dict[str, float]
    memory_gb: float
    seconds_per_step: float
    hours: float
    classes: int

    def row(self) -> dict[str, Any]:
        """Returns the measurements as plain values."""
        return asdict(self)


def dry_run(recipe: Recipe, folder: Path | None = None) -> DryRun:
    """Builds the models from random weights and does one step on generated images; writes and downloads nothing.

    Args:
        recipe: a validated recipe; its data may be missing.
        folder: folder of the recipe file, where a teacher recipe may lie beside it.

    Raises:
        WorkbenchError: a problem that would stop the run before its second step, except one with the data.
    """
    torch.manual_seed(recipe.seed)
    data = _data(recipe)
    classes = data.classes if data is not None else _stand_ins(recipe)
    transform = recipe.data.transform
    spec = InputSpec(classes, transform.mean, transform.std)
    student = untrained(recipe.student, spec)
    made = teacher_of(recipe, folder)
    if made is not None:
        teacher = untrained(made[0].student, spec)
    else:
        teacher = untrained(recipe.teacher, spec) if recipe.teacher is not None else None
    pairing = make_pairing(student, teacher, recipe.layer_map) if teacher is not None else None
    methods: list[Method] = []
    if teacher is not None and pairing is not None:
        inherited(recipe, student, teacher, pairing)
        methods = [build_method(config, student, teacher, pairing) for config in recipe.methods]
    frozen = FrozenTeacher(teacher, student.spec) if teacher is not None else None
    if frozen is not None:
        frozen.attentions = any("attentions" in method.config.needs_teacher for method in methods)
    step = DistillStep(student, methods, pairing if methods else None, teacher).train()
    optimizer = make_optimizer(student, step.methods, recipe.train)
    height, width = largest_size(transform, data)
    images, padding, targets = _batch(height, width, len(classes), torch.Generator().manual_seed(recipe.seed))
    weights = {k: recipe.train.class_weight or v if k.startswith("class") else v for k, v in student.loss_weights.items()}
    start = time.perf_counter()
    answer = TeacherAnswer(output=frozen(images, padding)) if frozen is not None and methods else None
    with kept_by_the_graph(step) as kept:
        progress = Progress(step=0, epoch=0, num_boxes=targets.valid.sum().float())
        terms = step(images, padding, targets, progress=progress, teacher=answer)
        scale = {f"{m.name}.{term}": m.weight_of(term) for m in methods for term in m.term_names}
        weighted_sum(terms, weights, scale).backward()
    if recipe.train.clip_norm:
        nn.utils.clip_grad_norm_(step.parameters(), recipe.train.clip_norm)
    optimizer.step()
    seconds = (time.perf_counter() - start) * recipe.train.batch_size / MEASURED_IMAGES
    values = {name: float(value.detach()) for name, value in (terms.detection | terms.distillation).items()}
    broken = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if broken:
        raise NonFiniteError(f"the first step of recipe '{recipe.name}' gives a NaN or infinite {', '.join(broken)}.")
    part = recipe.train.batch_size // recipe.train.accumulate
    own, other = _count(step), _count(teacher) if teacher is not None else 0
    memory = 4 * ((COPIES + optimizer_copies(recipe.train)) * own + other) + kept[0] * part / MEASURED_IMAGES
    return DryRun(
        recipe.name, height, width, recipe.train.batch_size, part, _count(student), other, values, memory / 1e9, seconds,
        seconds * recipe.train.steps / 3600, len(classes),
    )  # fmt: skip


def largest_size(transform: TransformConfig, data: Dataset | None) -> tuple[int, int]:
    """Returns height and width of the largest image that a batch can hold.

    Raises:
        ConfigError: the images are not resized and not available, so their size is unknown.
    """
    if isinstance(transform.resize, FixedSize):
        return transform.resize.height, transform.resize.width
    if transform.resize is not None:
        return max(transform.resize.shortest), transform.resize.longest
    if data is None:
        raise ConfigError("a dry run needs the size of the images. Give --data PATH, or set data.transform.resize.")
    return max(record.height for record in data.records), max(record.width for record in data.records)


@contextmanager
def kept_by_the_graph(module: nn.Module) -> Iterator[list[int]]:
    """Counts the bytes that operations inside the block keep for the backward pass; weights are left out, a storage counts once."""
    kept, own, seen = [0], {p.untyped_storage().data_ptr() for p in module.parameters()}, set[int]()

    def pack(value: Tensor) -> Tensor:
        place = value.untyped_storage().data_ptr()
        if place not in own and place not in seen:
            seen.add(place)
            kept[0] += value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield kept


def _data(recipe: Recipe) -> Dataset | None:
    """Returns the training split, or None if the data is not available."""
    path = recipe.data.path
    return open_split(recipe, recipe.data.train) if path is not None and (path == "shapes" or Path(path).exists()) else None


def _stand_ins(recipe: Recipe) -> tuple[str, ...]:
    """Returns as many class names as the published dataset of the recipe's format has."""
    return tuple(f"class {index}" for index in range(STAND_IN_CLASSES.get(recipe.data.format, 80)))


def _batch(height: int, width: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, TargetBatch]:
    images = torch.randn(MEASURED_IMAGES, 3, height, width, generator=generator)
    padding = torch.zeros(MEASURED_IMAGES, height, width, dtype=torch.bool)
    targets: list[Targets] = []
    for _ in range(MEASURED_IMAGES):
        sides = 0.05 + 0.4 * torch.rand(TARGETS, 2, generator=generator)
        centres = sides / 2 + (1 - sides) * torch.rand(TARGETS, 2, generator=generator)
        labels = torch.randint(classes, (TARGETS,), generator=generator)
        targets.append(Targets(torch.cat([centres, sides], -1), labels, torch.ones(TARGETS, dtype=torch.bool)))
    return images, padding, TargetBatch.of(targets)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

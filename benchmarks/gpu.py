"""Measures distillation on one GPU: a student's step, its teacher's forward, a live and a cached distillation step, in fp32 and bf16.

It runs on a CPU too, on small models, to show that it works. Figures of a CPU say nothing about a GPU; each carries the machine.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Figure, interleaved, median_ratio, temporary_runs
from benchmarks.synchronisations import counted
from workbench.detectors.registry import FAMILIES
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import Setup, build, input_spec, open_split
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.fields import fields_of
from workbench.teacher_cache.key import cache_folder
from workbench.teacher_cache.read import TeacherCache
from workbench.training.learner import Learner
from workbench.training.loader import TrainBatch

SECONDS = 480.0  # of the whole benchmark on one card
REPEATS, WARM_UP = 15, 3
IMAGES = Path(__file__).resolve().parents[1] / "gpu" / "images"  # of a bundle
Step = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Two detectors to measure.

    Attributes:
        name: Name of the pair in the figures.
        student: Configuration of the student; None takes the recipe's.
        teacher: Configuration of the teacher, whose weights are random; None takes the embedded one.
        side: Height and width of an image.
        batch: Images in a batch.
        method: Configuration of the method.
    """

    name: str
    student: dict[str, Any] | None
    teacher: dict[str, Any] | None
    side: tuple[int, int]
    batch: int
    method: str


def _backbone(name: str) -> dict[str, Any]:
    return {"backbone": {"name": name, "norm": "frozen"}}


DETRDISTILL, PKD = "{method: detrdistill}", "{method: pkd}"
DEMO = Pair("demo pair", None, None, (96, 96), 16, DETRDISTILL)
PAIRS = (
    Pair(
        "Deformable DETR R50 <- R101", {"family": "deformable_detr", **_backbone("resnet50")},
        {"family": "deformable_detr", **_backbone("resnet101")}, (800, 1066), 4, DETRDISTILL,
    ),
    Pair(
        "D-FINE R18 <- R50", {"family": "d_fine", **_backbone("resnet18"), "decoder_layers": 3},
        {"family": "d_fine", **_backbone("resnet50")}, (640, 640), 16, DETRDISTILL,
    ),
    Pair(
        "RetinaNet R50 <- R101", {"family": "retinanet", **_backbone("resnet50")}, {"family": "retinanet", **_backbone("resnet101")},
        (800, 1066), 4, PKD,
    ),
    DEMO,
)  # fmt: skip
_SMALL = {"backbone": {"stem": 8, "widths": [8, 16], "depths": [1, 1], "levels": [1, 2]}, "width": 16}
# what a CPU can do: the same code on models of a few thousand weights
CPU_PAIRS = (
    Pair(
        "small RetinaNet", {"family": "retinanet", **_SMALL, "extra_levels": 1, "head_convs": 1},
        {"family": "retinanet", **_SMALL, "extra_levels": 1, "head_convs": 1}, (64, 64), 2, PKD,
    ),
    Pair("demo pair, small batch", None, None, (96, 96), 2, DETRDISTILL),
)  # fmt: skip


def figures() -> Iterator[Figure]:
    """Yields the figures of every pair that fits into the time; a pair that does not is named on the standard error."""
    end = time.monotonic() + SECONDS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from _decoding()
    with temporary_runs():
        for pair in PAIRS if device.type == "cuda" else CPU_PAIRS:
            if time.monotonic() > end - SECONDS / 5:
                print(f"benchmarks gpu: no time is left for {pair.name}", file=sys.stderr, flush=True)
                continue
            with tempfile.TemporaryDirectory() as folder:
                yield from of_pair(pair, device, Path(folder))


def of_pair(pair: Pair, device: torch.device, folder: Path) -> Iterator[Figure]:
    """Yields the figures of one pair. ``folder`` keeps the teacher."""
    repeats = REPEATS if device.type == "cuda" else 1
    recipe = _recipe(pair)
    teacher = _teacher(pair, recipe, folder)
    fp32 = _steps(recipe, teacher, device)
    seconds = interleaved({name: _waited(step, device) for name, step in fp32.items()}, repeats, min(WARM_UP, repeats))
    for name, values in seconds.items():
        yield Figure(f"{pair.name}: {name}", float(np.median(values)) * 1000, "ms", repeats=repeats)
    live = median_ratio(seconds["live step"], seconds["student step"] + seconds["teacher forward"])
    yield _ratio(f"{pair.name}: live step / (student step + teacher forward)", live, "<= 1.05", repeats)
    cached = median_ratio(seconds["step from the cache"], seconds["student step"])
    yield _ratio(f"{pair.name}: step from the cache / student step", cached, "<= 1.03", repeats)
    for name in ("student step", "live step", "step from the cache"):
        with counted(device) as places:
            fp32[name]()
        target = "<= 1" if device.type == "cuda" else None
        yield Figure(f"{pair.name}: synchronisations of a {name}", float(sum(places.values())), "", target)
        print(f"benchmarks gpu: {pair.name}, {name}: {dict(places)}", file=sys.stderr, flush=True)
    if device.type == "cuda":
        for name in ("student step", "live step"):
            torch.cuda.reset_peak_memory_stats()
            fp32[name]()
            yield Figure(f"{pair.name}: peak memory of a {name}", torch.cuda.max_memory_allocated() / 1e9, "GB")
            yield Figure(f"{pair.name}: share of a {name} in which the GPU is idle", _idle(fp32[name]), "", "<= 0.05")
    del fp32
    bf16 = _steps(recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "bf16"})}), teacher, device)
    halves = interleaved({name: _waited(bf16[name], device) for name in ("student step", "live step")}, repeats, min(WARM_UP, repeats))
    for name, values in halves.items():
        yield _ratio(f"{pair.name}: {name} in bf16 / in fp32", median_ratio(values, seconds[name]), None, repeats)


def _recipe(pair: Pair) -> Recipe:
    height, width = pair.side
    recipe = load_recipe(recipe_path("shapes"), [
        f"data.options.train={pair.batch}", "data.options.val=1", "data.options.test=1", f"train.batch_size={pair.batch}",
        f"data.transform.resize={{height: {height}, width: {width}}}", "cache.variants=1", "cache.name=gpu", "train.steps=1000000",
        "train.log_every=1000000", f"methods=[{pair.method}]",
    ])  # fmt: skip
    if pair.student is None:
        return recipe
    return recipe.model_copy(update={"student": FAMILIES[pair.student["family"]].config.model_validate(pair.student)})


def _teacher(pair: Pair, recipe: Recipe, folder: Path) -> str:
    """Returns the teacher's name or folder; random weights cost what trained ones do."""
    if pair.teacher is None:
        return "shapes_teacher"
    torch.manual_seed(0)
    family = FAMILIES[pair.teacher["family"]]
    family.detector.build(family.config.model_validate(pair.teacher), input_spec(recipe, open_split(recipe, "train"))).save(folder)
    return str(folder)


def _steps(recipe: Recipe, teacher: str, device: torch.device) -> dict[str, Step]:
    """Returns a training step without a teacher, its teacher's forward, a step with the live teacher, and one from the cache."""
    name = str(device)
    alone = Learner(build(recipe.model_copy(update={"methods": []}), teacher), name)
    live, setup = Learner(build(recipe, teacher), name), build(recipe, teacher)
    builder = Builder(setup, device)
    if not cache_folder(recipe).exists():
        builder.build(builder.estimate(), accept=True)
    cached = Learner(setup, name, _fitting(setup, TeacherCache(cache_folder(recipe))))
    for learner in (live, cached):
        learner.term_weights = dict.fromkeys(learner.accelerator.unwrap_model(learner.step_module).term_names, 1.0)
    batch: TrainBatch = live.loader.batch(0).to(device)
    images = batch.images.contiguous(memory_format=torch.channels_last)
    assert live.teacher is not None
    frozen = live.teacher

    def forward() -> object:
        with torch.no_grad(), live.accelerator.autocast():
            return frozen(images, batch.padding)

    return {
        "student step": lambda: alone._train_step(batch, 0, False),
        "teacher forward": forward,
        "live step": lambda: live._train_step(batch, 0, False),
        "step from the cache": lambda: cached._train_step(cached.loader.batch(0).to(device), 0, False),
    }


def _fitting(setup: Setup, cache: TeacherCache) -> TeacherCache:
    assert setup.teacher is not None
    return TeacherCache(cache.folder, fields_of(setup.methods, setup.student, setup.teacher.detector, cache.kept.precision))


def _waited(step: Step, device: torch.device) -> Step:
    """Returns a step that ends when the device is done."""

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def _idle(step: Step, steps: int = 5) -> float:
    """Returns the share of the time between the first and the last kernel of some steps in which no kernel ran."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    spans = sorted((event.time_range.start, event.time_range.end) for event in profiler.events() or () if event.device_type.name == "CUDA")
    return idle_share(spans)


def idle_share(spans: list[tuple[float, float]]) -> float:
    """Returns the share of the whole time that no span covers.

    Args:
        spans: begin and end of each kernel, by begin.
    """
    if not spans:
        return 1.0
    busy, covered = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, covered))
        covered = max(covered, end)
    return 1 - busy / (covered - spans[0][0]) if covered > spans[0][0] else 0.0


def _decoding() -> Iterator[Figure]:
    """Yields what decoding a JPEG costs, if a bundle has brought some."""
    paths = sorted(IMAGES.glob("*.jpg"))[:50]
    if not paths:
        return

    def decode() -> None:
        for path in paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB"))

    seconds = interleaved({"decode": decode}, 3)["decode"]
    yield Figure("decoding a JPEG of the bundle, one core", float(np.median(seconds)) / len(paths) * 1000, "ms", repeats=3)


def _ratio(name: str, ratio: Any, target: str | None, repeats: int) -> Figure:
    return Figure(name, ratio.value, "x", target, (ratio.low, ratio.high), repeats)

"""Measures the teacher cache of the demo pair: its bytes, the memory of a build, the cost of reading, and when building pays off."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Figure, interleaved, median_ratio, temporary_runs
from benchmarks.step import cached_step, step_of, whole_cache
from workbench.datasets.base import Dataset
from workbench.datasets.transforms import Transform
from workbench.datasets.variants import Variants
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.setup import build
from workbench.teacher_cache.build import Builder
from workbench.teacher_cache.read import TeacherCache
from workbench.training.loader import TrainLoader

IMAGES, VARIANTS, REPEATS = 512, 2, 7
FEW, MANY = 1_000, 100_000
STUDENTS = (1, 3, 10)


def figures() -> Iterator[Figure]:
    """Yields all figures of the cache except the training step, which ``benchmarks.step`` measures."""
    torch.set_num_threads(1)
    with temporary_runs():
        yield from _demo_pair()
    yield from _memory()


def _demo_pair() -> Iterator[Figure]:
    recipe = load_recipe(recipe_path("shapes"), [
        f"data.options.train={IMAGES}", "data.options.val=16", "data.options.test=16", f"cache.variants={VARIANTS}",
    ])  # fmt: skip
    setup = build(recipe, "shapes_teacher", record_teacher=False)
    setup.student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    start = time.process_time()
    cache, estimate = whole_cache(setup)
    seconds = time.process_time() - start
    rows = IMAGES * VARIANTS
    on_disk = sum(path.stat().st_size for path in cache.folder.iterdir())
    raw = sum(value.nbytes for name in cache.manifest.shards for value in cache.tensors(name).values())
    yield Figure("demo pair: bytes of an image and variant", raw / rows, "B")
    yield Figure("demo pair: bytes on disk / raw size of what is stored", on_disk / raw, "x", "<= 1.10")
    yield Figure("demo pair: bytes estimated beforehand / on disk", estimate.bytes / on_disk, "x", ">= 0.90")
    yield Figure("demo pair: answers made in a second of the processor", rows / seconds, "1/s")

    loader = TrainLoader(setup.train, setup.transform, recipe.train.batch_size, 0, variants=setup.variants)
    plain = step_of(setup, recipe, [])
    index_of = {record.image_id: index for index, record in enumerate(setup.train.records)}
    epoch = [(loader.batch(step).image_ids, loader.batch(step).ops) for step in range(loader.steps_per_epoch)]
    asked = [([index_of[image] for image in images], ops) for images, ops in epoch]

    def train() -> None:
        for step in range(loader.steps_per_epoch):
            plain(loader.batch(step))

    def read(source: TeacherCache) -> None:
        for indices, ops in asked:
            source.read(indices, 0, ops).output()

    # a copy that no process has mapped, because mapped pages stay in memory
    cold_folder = Path(shutil.copytree(cache.folder, cache.folder.with_name("cold")))

    def cold() -> None:
        forget(cold_folder)
        read(TeacherCache(cold_folder, cache.wanted))  # compares the hashes again

    # wall time, because waiting for the disk counts
    seconds_of = interleaved({"plain": train, "warm": lambda: read(cache), "cold": cold}, REPEATS)
    for name in ("warm", "cold"):
        ratio, what = median_ratio(seconds_of[name], seconds_of["plain"]), f"demo pair: reading {name} / an epoch of plain training"
        yield Figure(what, ratio.value, "x", "<= 0.05", (ratio.low, ratio.high), REPEATS)
    # with a process that loads ahead, reading happens while the student computes
    for name, answers in (("without", None), ("with", cache.read)):
        ahead = TrainLoader(setup.train, setup.transform, recipe.train.batch_size, 0, 1, variants=setup.variants, read_teacher=answers)
        stream = ahead.iterate(0)
        next(stream)  # the process has started
        start = time.perf_counter()
        for _ in range(loader.steps_per_epoch):
            plain(next(stream))
        yield Figure(f"demo pair: an epoch of plain training with one loading process, {name} reading", time.perf_counter() - start, "s")

    batch = loader.batch(0)
    live = step_of(setup, recipe, setup.methods)
    functions = {"live": lambda: live(batch), "cached": cached_step(setup, recipe, setup.methods, cache, batch)}
    steps = {name: float(np.median(values)) for name, values in interleaved(functions, REPEATS, clock=time.process_time).items()}
    full = load_recipe(recipe_path("shapes_cached"))
    assert full.cache is not None
    build_seconds = 2000 * full.cache.variants * seconds / rows
    yield Figure(f"building for 2000 images x {full.cache.variants} variants", build_seconds, "s")
    for count in STUDENTS:
        shared = (build_seconds / count + full.train.steps * steps["cached"]) / (full.train.steps * steps["live"])
        yield Figure(f"(building / {count} students + distilling from the cache) / distilling live", shared, "x")


def _memory() -> Iterator[Figure]:
    """Yields the peak memory of builds for 1,000 and 100,000 images, each in its own process."""
    peaks: dict[int, float] = {}
    for count in (FEW, MANY):
        done = subprocess.run([sys.executable, "-m", "benchmarks.cache", str(count)], stdout=subprocess.PIPE, text=True, check=True)
        peaks[count] = float(done.stdout)
        yield Figure(f"peak memory of building for {count} images", peaks[count] / 1e6, "MB")
    yield Figure(f"peak memory: {MANY} images / {FEW} images", peaks[MANY] / peaks[FEW], "x", "<= 1.05")


def build_repeated(count: int) -> int:
    """Builds a cache of one small image that is repeated; returns the peak memory of this process in bytes."""
    torch.set_num_threads(1)
    # an image of 32 pixels, because the teacher is fast on it, while the stored outputs for 100,000 images are still large
    recipe = load_recipe(recipe_path("shapes"), [
        "data.options.train=1", "data.options.val=1", "data.options.test=1", "cache.variants=1", "cache.name=repeated",
        "data.transform.resize={height: 32, width: 32}", "data.transform.augment=[flip]",
    ])  # fmt: skip
    setup = build(recipe, "shapes_teacher", record_teacher=False)
    record, image = setup.train.records[0], setup.train.image(0)
    setup.train = Dataset("repeated", "train", setup.train.classes, setup.train.category_ids, [record] * count, [image] * count)
    setup.variants = Variants(setup.train, Transform(recipe.data.transform), 1)
    with temporary_runs():
        builder = Builder(setup)
        builder.build(builder.estimate(), accept=True)
    # not ru_maxrss, because a process started with vfork begins with its parent's value
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def forget(folder: Path) -> None:
    """Removes the files of a folder from the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.stdout.write(f"{build_repeated(int(sys.argv[1]))}\n")

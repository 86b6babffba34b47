"""Measures the query store at the size of COCO's validation split, 9 million rows per step, for one step and for ten, on two cores."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.harness import Figure
from benchmarks.store_rows import IMAGES, LAYERS, QUERIES, query_chunks
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.stability.churn import CHURN_NEEDED, churn_over_layers
from workbench.errors import WorkbenchError
from workbench.store.queries import query_writer, read_queries
from workbench.store.run import Run

STEPS = 10
ROWS = IMAGES * LAYERS * QUERIES
REPEATS = 5
_BYTES_PER_ROW = 64
_STUDENT = "model = 'student'"
_GAIN_COLUMNS = ("step", "model", "image_id", "layer", "query", "match", "score", "match_iou")


def figures() -> Iterator[Figure]:
    """Writes ten steps into a temporary folder, reads them and removes them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    pa.set_cpu_count(2)
    folder = Path(tempfile.mkdtemp(prefix="workbench-store-"))
    try:
        if shutil.disk_usage(folder).free < 1.2 * STEPS * ROWS * _BYTES_PER_ROW:
            raise WorkbenchError(f"{folder} has too little space for {STEPS * ROWS * _BYTES_PER_ROW / 1e9:.0f} GB of rows. Set TMPDIR.")
        run, baseline = Run.create("distilled", {}, folder), Run.create("baseline", {}, folder)
        rates = [ROWS / _write(run, step) for step in range(1, STEPS + 1)]
        size = sum(path.stat().st_size for path in run.queries_path("val", 1).iterdir())
        yield Figure("rows written a second", float(np.median(rates)), "1/s", ">= 1e6", repeats=STEPS)
        yield Figure("bytes a row", size / ROWS, "B")
        for step in range(1, STEPS + 1):  # the same rows at other steps act as the matchings of another run and need not be written again
            shutil.copytree(run.queries_path("val", step), baseline.queries_path("val", step % STEPS + 1), copy_function=os.link)
        yield from _read(run, baseline)
    finally:
        shutil.rmtree(folder)


def _write(run: Run, step: int) -> float:
    """Returns the seconds spent on writing, including the manifest with its hashes and the sync to disk."""
    seconds = 0.0
    with query_writer(run, "val", step) as writer:
        for rows in query_chunks(step):
            start = time.perf_counter()
            writer.write(rows)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
    return seconds + time.perf_counter() - start


def _read(run: Run, baseline: Run) -> Iterator[Figure]:
    every = list(range(1, STEPS + 1))
    images = iter(np.random.default_rng(0).permutation(IMAGES).tolist())

    def one_image(steps: list[int]) -> None:
        found = read_queries(run, "val", where="image_id = $image", parameters={"image": 113 * next(images) + 139}, steps=steps)
        assert len(found) == len(steps) * LAYERS * QUERIES

    def churn(steps: list[int]) -> None:
        found = churn_over_layers(read_queries(run, "val", steps, CHURN_NEEDED, _STUDENT, matched=True))
        assert len(found) == len(steps) * LAYERS

    def value(steps: list[int]) -> None:
        rows = read_queries(run, "val", steps, [*_GAIN_COLUMNS, "quality"], _STUDENT, matched=True)
        others = read_queries(baseline, "val", steps, _GAIN_COLUMNS, f"{_STUDENT} and layer = {LAYERS - 1}", matched=True)
        assert len(rows.groupby(["step", "query"])["quality"].mean()) == len(steps) * QUERIES
        for step in steps:
            gains = target_gain(rows[rows["step"] == step], others[others["step"] == step], step)
            assert len(gains.groupby("query")["gain"].mean()) == QUERIES

    what: list[tuple[str, Callable[[list[int]], None], str, int]] = [
        ("one image", one_image, "<= 0.02", 10 * REPEATS),
        ("churn of every layer", churn, "<= 0.3", REPEATS),
        ("mean quality and gain of every slot", value, "<= 0.5", REPEATS),
    ]
    for name, function, target, repeats in what:
        yield _figure(f"{name}, 9 million rows", lambda function=function: function(every[:1]), target, repeats)
        yield _figure(f"{name}, 90 million rows", lambda function=function: function(every), "<= 3", REPEATS)


def _figure(name: str, function: Callable[[], None], target: str, repeats: int) -> Figure:
    function()
    seconds = np.empty(repeats)
    for index in range(repeats):
        start = time.perf_counter()
        function()
        seconds[index] = time.perf_counter() - start
    return Figure(name, float(np.median(seconds)), "s", target, (float(seconds.min()), float(seconds.max())), repeats)

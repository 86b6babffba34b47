"""Measures a comparison in FiftyOne at the size of COCO's validation split.

The comparison has 5,000 images with the best 100 boxes of teacher, student and baseline. FiftyOne's own way to the same fields runs on
fewer images, because it takes minutes. Set `WORKBENCH_BENCHMARK_IMAGES` to a smaller number for a trial of the first part.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa

from benchmarks.app import make_runs
from benchmarks.harness import Figure
from benchmarks.store_rows import IMAGES, query_chunks
from workbench.analysis.of_run import open_data
from workbench.analysis.report.inspection import BOXES, inspect
from workbench.datasets.base import Dataset
from workbench.services import mongo
from workbench.store.queries import query_writer, read_queries
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run
from workbench.views.fiftyone.connection import connected

COMPARED_IMAGES = 100  # with 100 boxes each; FiftyOne's own way takes about a minute here, and took 594 s on 1,000 images
OURS_ALONE_IMAGES = 1_000
T = TypeVar("T")


def figures() -> Iterator[Figure]:
    """Makes runs and a database in a temporary folder, writes the comparison, writes it again, and removes everything."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory(prefix="workbench-fiftyone-") as name:
        folder = Path(name)
        mongo.set_up()
        with connected(folder / "mongo"):
            yield from _at_scale(folder / "whole", int(os.environ.get("WORKBENCH_BENCHMARK_IMAGES", IMAGES)))
            (folder / "less").mkdir()
            yield from _against_their_own(folder / "less")


def _at_scale(folder: Path, images: int) -> Iterator[Figure]:
    from workbench.views.fiftyone.dataset import open_comparison

    run, baseline = _runs(folder, images)
    peak = _Peak()
    seconds, dataset = _timed(lambda: open_comparison(run, baseline))
    boxes = sum(dataset.count(f"{role}.detections") for role in ("teacher", "student", "baseline"))
    yield Figure(f"{images} images and {boxes} boxes of three models in FiftyOne, analysis included", seconds, "s", "<= 300")
    yield Figure("memory of the process and of MongoDB at most", peak.stop() / 1e9, "GB", "<= 4")
    for number, own in enumerate((run, baseline)):
        _add_step(own, 300, images, number)
    seconds, dataset = _timed(lambda: open_comparison(run, baseline))
    yield Figure("the same after a newer evaluation of both students", seconds, "s", "<= 300")
    seconds, dataset = _timed(lambda: open_comparison(run, baseline))
    yield Figure("the same when nothing is new", seconds, "s")


def _against_their_own(folder: Path) -> Iterator[Figure]:
    from workbench.views.fiftyone.dataset import write

    data, inspection = _one_model(folder / "both", COMPARED_IMAGES)
    paths = [Path(path) for path in data.paths or ()]
    ours, dataset = _timed(lambda: write(inspection(), "ours", {}, paths))
    theirs, other = _timed(lambda: _their_own(data, inspection().boxes["student"], paths))
    yield Figure(f"ours, {COMPARED_IMAGES} images x {BOXES} boxes with error types and all attributes", ours, "s")
    yield Figure(f"FiftyOne's add_samples and evaluate_detections, {COMPARED_IMAGES} x {BOXES}", theirs, "s")
    yield Figure("theirs over ours", theirs / ours, "x")
    different, n = _differences(dataset, other)
    yield Figure(f"boxes of {n} and their targets whose TP, FP or FN, match or IoU differ", different, "boxes", "<= 0")
    data, inspection = _one_model(folder / "ours", OURS_ALONE_IMAGES)
    paths = [Path(path) for path in data.paths or ()]
    seconds, _ = _timed(lambda: write(inspection(), "ours alone", {}, paths))
    yield Figure(f"ours, {OURS_ALONE_IMAGES} images x {BOXES} boxes", seconds, "s", "<= 30")


def _runs(folder: Path, images: int) -> tuple[Run, Run]:
    """Returns the runs of the dashboard's benchmark: a student with its teacher and a student without one, on the same data."""
    folder.mkdir()
    make_runs(folder, images)
    return Run.open("distilled", folder / "runs"), Run.open("undistilled", folder / "runs")


def _add_step(run: Run, step: int, images: int, seed: int) -> None:
    with query_writer(run, "val", step) as writer:
        for rows in query_chunks(step + seed, images):
            writer.write(rows)


def _one_model(folder: Path, images: int) -> tuple[Dataset, Callable[[], Any]]:
    """Returns data and the inspection of a student whose boxes lie near the targets, so that some of them match."""
    _, run = _runs(folder, images)
    data = open_data(run.info())
    rng = np.random.default_rng(0)
    step = run.query_steps("val")[-1]
    rows = read_queries(run, "val", where="layer = 5", steps=[step]).drop(columns="step")
    boxes, labels = rows[["cx", "cy", "w", "h"]].to_numpy(copy=True), rows["label"].to_numpy(copy=True)
    places = rows.groupby("image_id").indices
    for record in data.records:
        place = places[record.image_id]
        if len(record.boxes):
            aim = rng.integers(0, len(record.boxes), len(place))
            box = record.boxes[aim]
            box = box + rng.normal(0, 0.15, box.shape) * np.tile(box[:, 2:] - box[:, :2], 2)
            box = (np.sort(box.reshape(-1, 2, 2), axis=1).reshape(-1, 4) / ([record.width, record.height] * 2)).clip(0, 1)
            boxes[place] = np.hstack([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2] + 0.001])
            labels[place] = record.labels[aim]
    rows[["cx", "cy", "w", "h"]], rows["label"] = boxes, labels
    with query_writer(run, "val", step) as writer:
        writer.write(pa.Table.from_pandas(rows, QUERY_SCHEMA, preserve_index=False))
    return data, lambda: inspect(data, run)


def _their_own(data: Dataset, boxes: pd.DataFrame, paths: list[Path]) -> Any:
    """Writes the same with samples and ``evaluate_detections`` at IoU 0.5 under COCO's protocol, separately for each class."""
    import fiftyone as fo

    dataset: Any = fo.Dataset("theirs")
    own = dict(list(boxes.groupby("image_id")))
    samples = []
    for record, path in zip(data.records, paths, strict=True):
        size = np.array([record.width, record.height] * 2)
        targets = [
            fo.Detection(label=data.classes[label], bounding_box=[*corners[:2], *(corners[2:] - corners[:2])], target=number, iscrowd=False)
            for number, (label, corners) in enumerate(zip(record.labels, record.boxes / size, strict=True))
        ]
        found = [
            fo.Detection(label=data.classes[row["label"]], confidence=row["score"], query=row["query"], bounding_box=_cut(row))
            for row in own.get(record.image_id, boxes.iloc[:0]).to_dict("records")
        ]
        samples.append(fo.Sample(filepath=str(path), image_id=record.image_id, targets=fo.Detections(detections=targets),
                                 student=fo.Detections(detections=found)))  # fmt: skip
    dataset.add_samples(samples, dynamic=True)
    dataset.evaluate_detections("student", gt_field="targets", eval_key="eval", method="coco", iou=0.5, classwise=True)
    return dataset


def _cut(row: dict[Any, Any]) -> list[float]:
    x, y, w, h = (row[name] for name in ("cx", "cy", "w", "h"))
    x1, y1, x2, y2 = (float(np.clip(side, 0, 1)) for side in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    return [x1, y1, x2 - x1, y2 - y1]


def _differences(ours: Any, theirs: Any) -> tuple[int, int]:
    """Returns the number of boxes and targets whose outcome differs, and the number of boxes."""
    fields = ["image_id", "student.detections.query", "student.detections.error", "student.detections.target", "student.detections.iou"]
    mine = {(image, query): (error == "correct", target if error == "correct" else None, overlap if error == "correct" else None)
            for image, *columns in zip(*ours.values(fields), strict=True)
            for query, error, target, overlap in zip(*columns, strict=True)}  # fmt: skip
    indices = theirs.values(["targets.detections.id", "targets.detections.target"])
    number = {identifier: target for ids, targets in zip(*indices, strict=True)
              for identifier, target in zip(ids or (), targets or (), strict=True)}  # fmt: skip
    fields = ["image_id", "student.detections.query", *(f"student.detections.{name}" for name in ("eval", "eval_id", "eval_iou"))]
    different = 0
    for image, *columns in zip(*theirs.values(fields), strict=True):
        for query, outcome, match, overlap in zip(*columns, strict=True):
            hit, target, iou = mine[image, query]
            same = hit == (outcome == "tp") and (not hit or (target == number[match] and abs(iou - overlap) < 1e-4))
            different += not same
    ours_found = [state == "found" for states in ours.values("targets.detections.student_error") for state in states or ()]
    theirs_found = [outcome == "tp" for outcomes in theirs.values("targets.detections.eval") for outcome in outcomes or ()]
    different += sum(a != b for a, b in zip(ours_found, theirs_found, strict=True))
    return different, len(mine)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


class _Peak:
    """Records the largest resident memory of this process and its children, sampled four times a second until ``stop``."""

    def __init__(self) -> None:
        import threading

        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._ended.wait(0.25):
            family = [own, *own.children(recursive=True)]
            sizes = []
            for process in family:
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, sum(sizes))

    def stop(self) -> int:
        """Ends the sampling and returns the largest size in bytes."""
        self._ended.set()
        self._thread.join()
        return self.most

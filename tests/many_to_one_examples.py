"""Runs of dense and two-stage detectors on the embedded images, made up without a training: a target has several positive candidates.

All evaluations of a run hold the same rows and the same detections, so whatever changes between them is an error of the reader.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tests.inspection_examples import answers
from workbench.analysis.stability.same_box import BOX
from workbench.datasets.base import Dataset, Record
from workbench.datasets.opening import open_dataset
from workbench.overlap import centred_iou
from workbench.store.detections import write_detections
from workbench.store.queries import TEACHER_STEP, query_facts, query_writer
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run

IMAGES, STEPS = 8, (10, 20, 30)
OPTIONS: dict[str, Any] = {"train": 2, "val": IMAGES, "test": 4}
SIDE, SHAPES, BEST = 12, 2, 20  # cells along a side, anchors a cell, rows of the best background
GRID = {"strides": [8], "sizes_differ": False, "shapes": SHAPES, "levels": 1}
DENSE: dict[str, Any] = {"assignment": "many", "geometric": True, "rows": "top", "grid": GRID}
PROPOSALS: dict[str, Any] = {"assignment": "many", "rows": "top"}
# student, teacher, arm and seed of each run: a DETR has no facts
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str, int]] = {
    "dense": (DENSE, DENSE, "distilled", 0),
    "dense-again": (DENSE, DENSE, "distilled", 1),
    "dense-undistilled": (DENSE, None, "undistilled", 0),
    "proposals": (PROPOSALS, DENSE, "two-stage", 0),
    "detr-of-dense": ({}, DENSE, "mixed", 0),
    "dense-of-detr": (DENSE, {}, "mixed back", 0),
}


def make_data(split: str = "val") -> Dataset:
    return open_dataset("shapes", split, **OPTIONS)


def make_runs(root: Path) -> dict[str, Run]:
    """One run of each kind, by name."""
    return {name: make_run(root, name) for name in KINDS}


def make_run(root: Path, name: str) -> Run:
    student, teacher, arm, seed = KINDS[name]
    data = make_data()
    group = {"recipe": "made up", "arm": arm, "seed": seed, "schedule": "equal steps"}
    recipe = {"name": "made up", "train": {"steps": STEPS[-1]}, "methods": [] if teacher is None else [{"method": "fgd"}],
              "data": {"path": "shapes", "format": "auto", "val": "val", "test": "test", "options": OPTIONS}}  # fmt: skip
    run = Run.create(name, {
        "recipe": recipe, "group": group, "classes": list(data.classes), "state": "done", "seed": seed, "device": "cpu",
        "teacher": None if teacher is None else "teacher", "teacher_hash": "t", "dataset_hash": data.hash(), "best_step": STEPS[-1],
    }, root)  # fmt: skip
    if teacher is not None:
        write(run, TEACHER_STEP, rows_of(data, "teacher", teacher, 7), teacher)
    rows = rows_of(data, "student", student, 1)
    for step in STEPS:
        write(run, step, rows, student)
        write_detections(run, "val", step, detections_of(data, rows))
    tested = make_data("test")
    write_detections(run, "test", STEPS[-1], detections_of(tested, rows_of(tested, "student", student, 2)))
    lines = [line(data, step, "val") for step in STEPS] + [line(tested, STEPS[-1], "test")]
    (run.path / "evaluations.jsonl").write_text("".join(json.dumps(value) + "\n" for value in lines))
    logged = [{"step": step, "loss": 1.0 / step, "learning_rate": 1e-3, "gradient_norm": 1.0, "detection/class": 0.5} for step in STEPS]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(value) + "\n" for value in logged))
    (run.path / "timings.jsonl").write_text(json.dumps({"step": STEPS[-1], "cpu": 9.0, "wall": 9.0}) + "\n")
    return run


def rows_of(data: Dataset, model: str, facts: dict[str, Any], seed: int) -> pd.DataFrame:
    """Rows of one model at one evaluation: of a DETR if there are no facts."""
    rng = np.random.default_rng(seed)
    if not facts:
        rows = answers(rng, data, model, 0.02, 0.97)
        score = np.where(rows["match"] >= 0, 0.5 + 0.5 * rows["score"], 0.3 * rows["score"])
        return rows.assign(score=score, mate=None, mate_layer=None, mate_cost_class=None, mate_cost_bbox=None, mate_cost_giou=None)
    return pd.concat([_candidates(rng, record, len(data.classes), model, facts) for record in data.records], ignore_index=True)


def positives(targets: int) -> np.ndarray:
    """How many positive candidates each target of an image has."""
    return 3 + np.arange(targets) % 4


def _candidates(rng: np.random.Generator, record: Record, classes: int, model: str, facts: dict[str, Any]) -> pd.DataFrame:
    """The positive candidates of an image, ignored ones, and the best of the background; candidate 0 has no row."""
    size = np.array([record.width, record.height] * 2)
    corners = record.boxes / size
    targets = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
    match = np.concatenate([np.repeat(np.arange(len(targets)), positives(len(targets))), np.full(4, -2), np.full(BEST, -1)])
    count = len(match)
    query = np.sort(rng.choice(np.arange(1, SIDE * SIDE * SHAPES), count, replace=False))
    boxes = np.concatenate([rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.05, 0.3, (count, 2))], axis=1)
    positive = match >= 0
    boxes[positive] = targets[match[positive]] + rng.normal(0, 0.006, (positive.sum(), 4))
    boxes[:, 2:] = boxes[:, 2:].clip(0.02)
    label = np.where(positive & (rng.random(count) < 0.9), record.labels[match.clip(0)], rng.integers(0, classes, count))
    score = np.where(positive, rng.uniform(0.3, 0.95, count), rng.uniform(0.02, 0.3, count))
    iou = centred_iou(boxes[:, None], targets[None])
    match_iou = np.where(positive, iou[np.arange(count), match.clip(0)], 0)
    return pd.DataFrame({
        "epoch": 0, "image_id": record.image_id, "model": model, "layer": 0, "query": query,
        "source": query // SHAPES if facts.get("grid") else -1, "label": label, "score": score,
        **{name: boxes[:, k] for k, name in enumerate(BOX)}, "match": match, "match_iou": match_iou,
        "best_target": np.where(iou.max(1) > 0, iou.argmax(1), -1), "best_iou": iou.max(1), "quality": np.sqrt(score * match_iou),
        "loss_class": rng.random(count), "loss_bbox": rng.random(count), "loss_giou": rng.random(count),
    })  # fmt: skip


def detections_of(data: Dataset, rows: pd.DataFrame) -> pa.Table:
    """The candidates of the last layer as detections, each with its best class; duplicates stay, which is as good for a reader."""
    rows = rows[rows["layer"] == rows["layer"].max()]
    size = {record.image_id: (record.width, record.height) for record in data.records}
    width, height = (np.array([size[image][side] for image in rows["image_id"]]) for side in (0, 1))
    frame = pd.DataFrame({
        "image_id": rows["image_id"], "query": rows["query"], "category_id": np.asarray(data.category_ids)[rows["label"].to_numpy()],
        "score": rows["score"], "x1": (rows["cx"] - rows["w"] / 2) * width, "y1": (rows["cy"] - rows["h"] / 2) * height,
        "x2": (rows["cx"] + rows["w"] / 2) * width, "y2": (rows["cy"] + rows["h"] / 2) * height,
    })  # fmt: skip
    return pa.Table.from_pandas(frame, preserve_index=False)


def write(run: Run, step: int, rows: pd.DataFrame, facts: dict[str, Any]) -> None:
    own = rows.reindex(columns=QUERY_SCHEMA.names)
    with query_writer(run, "val", step, facts=query_facts(IMAGES, False, "one size", **facts)) as writer:
        writer.write(pa.Table.from_pandas(own, QUERY_SCHEMA, preserve_index=False))


def line(data: Dataset, step: int, split: str) -> dict[str, Any]:
    """A line of evaluations.jsonl; nobody reads more of it than AP."""
    coco = {"ap": 0.25, "ap50": 0.5, "ap75": 0.2, "ap_small": 0.1, "ap_medium": 0.3, "ap_large": None}
    classes = {name: {"ap": 0.25, "ap50": 0.5, "targets": 3} for name in data.classes}
    return {"step": step, "split": split, "coco": coco, "per_class": classes}

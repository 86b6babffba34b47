"""Two runs on the embedded images with made-up answers: a teacher that is mostly right, students that are less so and change their mind."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from workbench.analysis.stability.same_box import BOX
from workbench.datasets.base import Dataset
from workbench.datasets.opening import open_dataset
from workbench.overlap import centred_iou
from workbench.store.queries import TEACHER_STEP, query_writer
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run
from workbench.store.states import states_writer

IMAGES, QUERIES, LAYERS, WIDTH = 8, 12, 2, 6
STEPS = (10, 20, 30)


def make_data() -> Dataset:
    return open_dataset("shapes", "val", train=2, val=IMAGES, test=2)


def make_runs(root: Path, data: Dataset) -> tuple[Run, Run]:
    """The runs ``distilled``, with a teacher, decoder states and masks, and ``undistilled``."""
    info = {
        "recipe": {"data": {"path": "shapes", "format": "auto", "val": "val", "options": {"train": 2, "val": IMAGES, "test": 2}},
                   "train": {"steps": STEPS[-1]}},
        "classes": list(data.classes), "state": "done",
        "group": {"recipe": "made up", "arm": "distilled", "seed": 0, "schedule": "equal steps"},
    }  # fmt: skip
    distilled = Run.create("distilled", info, root)
    undistilled = Run.create("undistilled", {**info, "group": {**info["group"], "arm": "undistilled"}}, root)
    rng = np.random.default_rng(5)
    teacher = answers(rng, data, "teacher", 0.04, 0.9)
    write(distilled, TEACHER_STEP, teacher)
    for step in STEPS:
        add_evaluation(distilled, data, step, 0.10, 0.8)
    for step in STEPS:
        write(undistilled, step, answers(np.random.default_rng(step + 1), data, "student", 0.16, 0.6))
    for step in (TEACHER_STEP, STEPS[-1]):
        write_states(distilled, data, step)
    return distilled, undistilled


def add_evaluation(run: Run, data: Dataset, step: int, noise: float = 0.10, right: float = 0.8) -> None:
    write(run, step, answers(np.random.default_rng(step), data, "student", noise, right))


def write_states(run: Run, data: Dataset, step: int) -> None:
    """Of the first half of the images."""
    rng = np.random.default_rng(step + 2)
    with states_writer(run, "val", step) as writer:
        for record in data.records[: IMAGES // 2]:
            masks = {(LAYERS - 1, 0): rng.random((6, 6))} if step == TEACHER_STEP else None
            writer.write(record.image_id, masks=masks, states=rng.normal(size=(LAYERS, QUERIES, WIDTH)))


def answers(rng: np.random.Generator, data: Dataset, model: str, noise: float, right: float) -> pd.DataFrame:
    """Rows of one model at one step: queries near targets and others anywhere, matched by IoU."""
    frames = []
    for record in data.records:
        size = np.array([record.width, record.height] * 2)
        corners = record.boxes / size
        targets = np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], axis=1)
        near = np.arange(QUERIES) % max(len(targets), 1)
        aimed = (np.arange(QUERIES) < QUERIES - 3) & (len(targets) > 0)
        if model == "student":  # students look past one target of every image
            aimed &= near != record.image_id % max(len(targets), 1)
        for layer in range(LAYERS):
            boxes = np.concatenate([rng.uniform(0.2, 0.8, (QUERIES, 2)), rng.uniform(0.1, 0.3, (QUERIES, 2))], axis=1)
            labels = rng.integers(0, len(data.classes), QUERIES)
            if len(targets):
                boxes[aimed] = targets[near[aimed]] + rng.normal(0, noise * 0.2, (aimed.sum(), 4))
                labels = np.where(aimed & (rng.random(QUERIES) < right), record.labels[near], labels)
            boxes[:, 2:] = boxes[:, 2:].clip(0.02)
            iou = centred_iou(boxes[:, None], targets[None]) if len(targets) else np.zeros((QUERIES, 0))
            query, target = linear_sum_assignment(iou, maximize=True)
            match = np.full(QUERIES, -1)
            match[query] = target
            match_iou = np.where(match >= 0, iou[np.arange(QUERIES), match], 0) if len(targets) else np.zeros(QUERIES)
            score = rng.uniform(0.05, 0.95, QUERIES)
            rows = {
                "epoch": 0, "image_id": record.image_id, "model": model, "layer": layer, "query": np.arange(QUERIES), "source": -1,
                "label": labels, "score": score, **{name: boxes[:, k] for k, name in enumerate(BOX)}, "match": match,
                "match_iou": match_iou, "best_target": -1, "best_iou": 0.0, "quality": np.sqrt(score * match_iou),
                "loss_class": rng.random(QUERIES),
                "loss_bbox": rng.random(QUERIES), "loss_giou": rng.random(QUERIES),
            }  # fmt: skip
            if model == "student":
                costs = {f"mate_cost_{part}": rng.random(QUERIES) for part in ("class", "bbox", "giou")}
                rows |= {"mate": rng.permutation(QUERIES) if layer == 0 else np.arange(QUERIES), "mate_layer": layer, **costs}
            frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)


def write(run: Run, step: int, rows: pd.DataFrame) -> None:
    own = rows.reindex(columns=QUERY_SCHEMA.names)
    with query_writer(run, "val", step) as writer:
        writer.write(pa.Table.from_pandas(own, QUERY_SCHEMA, preserve_index=False))

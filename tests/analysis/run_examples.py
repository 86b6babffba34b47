"""Run directories without a training."""

import json
from typing import Any

import pandas as pd
import pyarrow as pa

from tests.analysis.query_examples import random_queries
from workbench.store.queries import query_writer
from workbench.store.query_schema import QUERY_SCHEMA
from workbench.store.run import Run


def line(step: int, split: str, ap: float, **more: Any) -> dict[str, Any]:
    """A line of evaluations.jsonl."""
    classes = {"a|b": {"ap": ap + 0.1, "ap50": 0.9, "targets": 5}, "<i>c": {"ap": None, "ap50": None, "targets": 0}}
    numbers = {"ap": ap, "ap50": ap + 0.2, "ap75": ap - 0.1, "ap_small": None}
    return {"step": step, "split": split, "coco": numbers, "per_class": classes, **more}


def write_lines(run: Run, name: str, lines: list[dict[str, Any]]) -> None:
    (run.path / name).write_text("".join(json.dumps(value) + "\n" for value in lines))


def write_queries(run: Run, queries: pd.DataFrame, split: str = "val") -> None:
    """Writes rows of ``random_queries``; columns it lacks are null."""
    for step, rows in queries.groupby("step"):
        own = rows.drop(columns="step").reindex(columns=QUERY_SCHEMA.names)
        with query_writer(run, split, int(str(step))) as writer:
            writer.write(pa.Table.from_pandas(own, QUERY_SCHEMA, preserve_index=False))


def finished_run(name: str, seed: int = 0, arm: str = "distilled", teacher: str | None = "big", **info: Any) -> tuple[Run, pd.DataFrame]:
    """A run of 30 steps with three evaluations, a test, query tables of student and teacher; and their rows."""
    run = Run.create(name, {
        "recipe": {"name": "demo", "train": {"steps": 30}},
        "group": {"recipe": "demo", "arm": arm, "seed": seed, "schedule": "equal steps"},
        "seed": seed, "commit": "abc", "state": "done", "device": "cpu",
        "teacher": teacher, "teacher_hash": teacher and f"hash of {teacher}", **info,
    })  # fmt: skip
    cost = {"parameters": 120_000, "flops": 40_000_000, "ms_per_image": 5.25}
    tested = line(30, "test", 0.4, **cost)
    if teacher is not None:
        tested["teacher"] = {**line(0, "test", 0.6), "parameters": 500_000, "flops": 90_000_000, "ms_per_image": 9.0}
    write_lines(run, "evaluations.jsonl", [line(10, "val", 0.1), line(20, "val", 0.5), line(30, "val", 0.45), tested])
    write_lines(run, "timings.jsonl", [{"step": 15, "cpu": 50.0, "wall": 70.0}, {"step": 30, "cpu": 100.5, "wall": 130.0}])
    queries = random_queries(seed, steps=3, teacher_layers=4 if teacher is not None else 0)
    write_queries(run, queries)
    return run, queries

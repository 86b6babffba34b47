"""Frames about a run's matching, computed from its query table once and kept in ``derived/`` until the table changes."""

import logging
from collections.abc import Callable
from typing import Literal

import pandas as pd

from workbench.analysis.same_box import BOX
from workbench.analysis.stability import CHURN_NEEDED, Identity, agreement, churn_over_layers, churn_over_steps, mean_quality
from workbench.cache.manifest import content_hash
from workbench.cache.queries import complete_steps, read_facts, read_queries
from workbench.errors import WorkbenchError
from workbench.files import hash_json, replacing
from workbench.runs import Run

logger = logging.getLogger(__name__)

DEFINITIONS = 1  # raised when a definition changes, so that older results are made anew
Name = Literal["churn_steps", "churn_layers", "teacher_churn_layers", "agreement", "quality", "teacher_quality"]
_QUALITY = ("step", "model", "layer", "match", "quality")
# what makes a frame, and the columns it is made of: a column less is a fifth of the time
_FRAMES: dict[Name, tuple[Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
    "churn_layers": (churn_over_layers, CHURN_NEEDED),
    "teacher_churn_layers": (lambda rows: churn_over_layers(rows, model="teacher"), CHURN_NEEDED),
    "agreement": (agreement, (*CHURN_NEEDED, "mate", "mate_layer")),
    "quality": (lambda rows: mean_quality(rows, "student"), _QUALITY),
    "teacher_quality": (mean_quality, _QUALITY),
}


def match_frame(run: Run, name: Name, split: str = "val") -> pd.DataFrame:
    """One frame of ``analysis.stability`` over all evaluations of a run.

    Args:
        run: finished or in progress.
        name: ``churn_steps`` (last layer), ``churn_layers`` of the student, ``teacher_churn_layers``, ``agreement``, ``quality`` of the
            student, ``teacher_quality``.
        split: of the query table.

    Returns:
        Empty where the run has no query table of that split.
    """
    steps = complete_steps(run, split)
    if not steps:
        return pd.DataFrame(columns=["step", "layer"])
    key = hash_json([DEFINITIONS, content_hash([run.queries_path(split, step) for step in steps])])[:16]
    path = run.derived_path(f"{name}-{split}", key, "parquet")
    if path.is_file():
        with path.open("rb") as file:
            return pd.read_parquet(file)
    if name == "churn_steps":
        rows = read_queries(run, split, steps, step_columns(run, split), matched=True)
        frame = churn_over_steps(rows, identity=identity_over_steps(run, split, rows))
    else:
        make, columns = _FRAMES[name]
        frame = make(read_queries(run, split, steps, columns, matched=True))
    try:
        with replacing(path) as temporary:
            frame.to_parquet(temporary)
        for other in set(path.parent.glob(f"{name}-{split}-*.parquet")) - {path}:
            other.unlink(missing_ok=True)
    except WorkbenchError as error:
        logger.debug("not kept: %s", error)  # someone else's run may be read without being written to
    return frame


def step_columns(run: Run, split: str) -> tuple[str, ...]:
    """Columns of the query table that recognise a query from one evaluation to the next."""
    return (*CHURN_NEEDED, *BOX) if _inputs_differ(run, split) else CHURN_NEEDED


def identity_over_steps(run: Run, split: str, rows: pd.DataFrame) -> Identity:
    """What makes a query the same at two evaluations: slot or encoder cell, or the box where cells of two evaluations are other places.

    Args:
        run: whose rows.
        split: of the data.
        rows: of the query table, with ``step_columns``.
    """
    return "box" if (rows["source"] >= 0).any() and _inputs_differ(run, split) else "source"


def _inputs_differ(run: Run, split: str) -> bool:
    """Whether encoder cells of two evaluations are other places of the image."""
    return len({read_facts(run, split, step)["input"] for step in run.query_steps(split)} - {None}) > 1

"""Goes through the query tables of a run and explains every change between two evaluations."""

import numpy as np
import pandas as pd

from workbench.analysis.rows_of_run import student_over_steps
from workbench.analysis.stability.change_causes import NEEDED, explain_changes
from workbench.analysis.stability.grouped import target_changes
from workbench.analysis.stability.same_box import BOX
from workbench.datasets.base import Dataset
from workbench.store.queries import read_queries
from workbench.store.run import Run

_CORNERS = ["x1", "y1", "x2", "y2"]


def in_units(targets: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Returns targets whose ``x1 y1 x2 y2`` are in pixels with corners in 0..1 of their image."""
    sizes = {record.image_id: (record.width, record.height) for record in dataset.records}
    size = np.array([sizes[image] * 2 for image in targets["image_id"]], float).reshape(-1, 4)
    found = targets.copy()
    found[_CORNERS] = targets[_CORNERS].to_numpy(float) / size
    return found


def explained_changes(run: Run, split: str, layer: int, targets: pd.DataFrame, until: int | None = None) -> pd.DataFrame:
    """Returns every change of a target's query with its cause: ``change_causes.explain_changes`` over all pairs of evaluations.

    Args:
        run: run of the tables.
        split: split of the data.
        layer: decoder layer of the student.
        targets: targets that can be matched: ``image_id``, ``target``, ``label``, ``x1 y1 x2 y2`` in 0..1 of the image.
        until: last evaluation that is read.

    Raises:
        NotDefined: the assignment is many-to-one.
    """
    matched, identity = student_over_steps(run, split, ("model",), layer, until)
    changes = target_changes(matched, identity=identity)
    corners = targets[_CORNERS].to_numpy(float)
    targets = targets[["image_id", "target", "label"]].assign(
        **dict(zip(BOX, [*((corners[:, :2] + corners[:, 2:]) / 2).T, *(corners[:, 2:] - corners[:, :2]).T], strict=True))
    )
    nothing = pd.DataFrame(columns=list(NEEDED))
    frames = [explain_changes(nothing, nothing, changes[:0], targets)]
    before = None
    for step in (step for step in run.query_steps(split) if until is None or step <= until):  # two evaluations are in memory at a time
        now = read_queries(run, split, [step], NEEDED, "model = 'student' and layer = $layer", {"layer": layer})
        if before is not None:
            frames.append(explain_changes(before, now, changes[changes["step"] == step], targets, identity))
        before = now
    return pd.concat(frames[1:] or frames, ignore_index=True)

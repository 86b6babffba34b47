"""Goes through the query tables of a run and explains every change between two evaluations."""

import pandas as pd

from workbench.analysis.rows_of_run import student_over_steps
from workbench.analysis.stability.change_causes import NEEDED, explain_changes
from workbench.analysis.stability.grouped import target_changes
from workbench.analysis.stability.same_box import BOX
from workbench.store.queries import read_queries
from workbench.store.run import Run

_CORNERS = ["x1", "y1", "x2", "y2"]


def explained_changes(run: Run, split: str, layer: int, targets: pd.DataFrame) -> pd.DataFrame:
    """Returns every change of a target's query with its cause: ``change_causes.explain_changes`` over all pairs of evaluations.

    Args:
        run: run of the tables.
        split: split of the data.
        layer: decoder layer of the student.
        targets: targets that can be matched: ``image_id``, ``target``, ``label``, ``x1 y1 x2 y2`` in 0..1 of the image.

    Raises:
        NotDefined: the assignment is many-to-one.
    """
    matched, identity = student_over_steps(run, split, ("model",), layer)
    changes = target_changes(matched, identity=identity)
    corners = targets[_CORNERS].to_numpy(float)
    targets = targets[["image_id", "target", "label"]].assign(
        **dict(zip(BOX, [*((corners[:, :2] + corners[:, 2:]) / 2).T, *(corners[:, 2:] - corners[:, :2]).T], strict=True))
    )
    nothing = pd.DataFrame(columns=list(NEEDED))
    frames = [explain_changes(nothing, nothing, changes[:0], targets)]
    before = None
    for step in run.query_steps(split):  # two evaluations are in memory at a time
        now = read_queries(run, split, [step], NEEDED, "model = 'student' and layer = $layer", {"layer": layer})
        if before is not None:
            frames.append(explain_changes(before, now, changes[changes["step"] == step], targets, identity))
        before = now
    return pd.concat(frames[1:] or frames, ignore_index=True)

"""Reads rows of the query table, and says which layer is meant and what identifies a query.

A query at two evaluations is identified by its slot, its encoder cell or its box; ``identity_over_steps`` says which. For detections it is
``found_by_identity``, because those of a dense detector come from candidates that may share a cell. What needs one query a target raises
``NotDefined`` for a many-to-one table (``analysis.defined``).
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from workbench.analysis.defined import Model, many_to_one, require
from workbench.analysis.stability.churn import CHURN_NEEDED, Identity
from workbench.analysis.stability.found_by import FoundBy
from workbench.analysis.stability.same_box import BOX
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, complete_steps, read_facts, read_layers, read_queries
from workbench.store.run import Run


def layers(run: Run, split: str, step: int, model: Model = "student") -> list[int]:
    """Returns the decoder layers of a model in the query table, in order; empty if the run keeps none of its queries at this step.

    Args:
        run: run of the table.
        split: split of the data.
        step: step of the student's weights; the teacher's rows are found at any step.
        model: model whose layers are listed.
    """
    step = TEACHER_STEP if model == "teacher" else step
    if not is_complete(run.queries_path(split, step)):
        return []
    return read_layers(run, split, step, model)


def last_layer(
    run: Run, split: str, step: int, model: Model = "student", columns: Sequence[str] | None = None, matched: bool = False
) -> pd.DataFrame:
    """Reads the rows of the last decoder layer of one model at one evaluation.

    Args:
        run: run of the table.
        split: split of the data.
        step: step of the student's weights; the teacher's rows are found at any step.
        model: model whose rows are read.
        columns: columns of the query table, all by default.
        matched: True to read only queries with a target.

    Returns:
        The rows; empty if the run keeps no queries of a teacher.

    Raises:
        RunError: the run keeps no queries of its student at this step.
    """
    found = layers(run, split, step, model)
    if model == "teacher" and not found:
        return pd.DataFrame(columns=list(columns or ()))
    step = TEACHER_STEP if model == "teacher" else step
    known = {"model": model, "layer": max(found, default=0)}
    return read_queries(run, split, [step], columns, "model = $model and layer = $layer", known, matched)


def has_all_rows(run: Run, split: str, step: int, model: Model = "student") -> bool:
    """Returns True if every candidate of a model has a row; False if only the positive ones and the best by score have."""
    return read_facts(run, split, TEACHER_STEP if model == "teacher" else step)["rows"] == "all"


def in_last_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps the rows of the deepest layer among these."""
    return rows[rows["layer"] == rows["layer"].max()]


def at_last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps the rows of the latest evaluation among these."""
    return rows[rows["step"] == rows["step"].max()]


def image_rows(run: Run, split: str, steps: Sequence[int], image_id: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads all rows of one image: the student's at these evaluations, and the teacher's, empty if there is no teacher.

    Raises:
        RunError: no queries were recorded at one of these steps.
    """
    teacher = [TEACHER_STEP] if is_complete(run.queries_path(split, TEACHER_STEP)) else []
    rows = read_queries(run, split, [*teacher, *steps], where="image_id = $image", parameters={"image": image_id})
    return rows[rows["model"] == "student"], rows[rows["model"] == "teacher"]


def paired_layer(student: pd.DataFrame, teacher: pd.DataFrame, layer: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keeps one layer of the student, by default the last, and the teacher's layer with which it is paired.

    Where no query of the student is paired with one of the teacher, because an assignment is many-to-one, it is the teacher's last layer.
    """
    if student["mate_layer"].isna().all():
        teacher = in_last_layer(teacher)
        return student[student["layer"] == (student["layer"].max() if layer is None else layer)], teacher
    student = student[student["layer"] == (student["layer"].max() if layer is None else layer)]
    paired = student["mate_layer"].dropna()
    return student, teacher[teacher["layer"] == (int(paired.iloc[0]) if len(paired) else -1)]


def taught_layers(run: Run, student: pd.DataFrame) -> dict[int, int]:
    """Returns, by layer of the teacher, the student's layer that learns from it; the last one if there are several.

    The rows name the last teacher layer of each group. Where a recipe declares no groups, each begins after the one before.

    Args:
        run: run of the rows.
        student: rows of the student, of all its layers.
    """
    declared = run.info()["recipe"].get("layer_map")
    pairs = student.dropna(subset=["mate_layer"])[["layer", "mate_layer"]].drop_duplicates().astype(int).sort_values("layer")
    found: dict[int, int] = {}
    first = 0
    for layer, last in pairs.to_numpy(int).tolist():
        taught: Iterable[int] = declared[layer] if declared else range(min(first, last), last + 1)
        found.update(dict.fromkeys(taught, int(layer)))
        first = last + 1
    return found


def student_over_steps(
    run: Run, split: str, columns: Sequence[str] = (), layer: int | None = None, until: int | None = None
) -> tuple[pd.DataFrame, Identity]:
    """Reads the matched rows of the student at every evaluation, and says what identifies a query across them.

    Args:
        run: run of the table.
        split: split of the data.
        columns: columns to read besides those that identify a query.
        layer: one decoder layer, by default all.
        until: last evaluation that is read.

    Raises:
        NotDefined: the assignment is many-to-one.
    """
    require(run, "churn")
    steps = [step for step in run.query_steps(split) if until is None or step <= until]
    where = "model = 'student'" + ("" if layer is None else " and layer = $layer")
    wanted = list(dict.fromkeys([*step_columns(run, split), *columns]))
    rows = read_queries(run, split, steps, wanted, where, {} if layer is None else {"layer": layer}, matched=True)
    return rows, identity_over_steps(run, split, rows)


def holders(run: Run, split: str, image_id: int, target: int, layer: int) -> pd.DataFrame:
    """Reads the rows of the student's queries that were matched to one target, by step.

    Raises:
        NotDefined: the assignment is many-to-one.
    """
    require(run, "churn")
    where = "model = 'student' and image_id = $image and match = $target and layer = $layer"
    return read_queries(run, split, run.query_steps(split), None, where, {"image": image_id, "target": target, "layer": layer})


def matched_rows(run: Run, split: str, columns: Sequence[str], step: int | None = None) -> pd.DataFrame:
    """Reads the matched rows of all models at one evaluation, by default at every one, together with the teacher's.

    Raises:
        RunError: the run has no query table of the split.
    """
    steps = [number for number in complete_steps(run, split) if step is None or number in (TEACHER_STEP, step)]
    return read_queries(run, split, steps, columns, matched=True)


def step_columns(run: Run, split: str) -> tuple[str, ...]:
    """Returns the columns of the query table that identify a query from one evaluation to the next."""
    return (*CHURN_NEEDED, *BOX) if _inputs_differ(run, split) else CHURN_NEEDED


def identity_over_steps(run: Run, split: str, rows: pd.DataFrame) -> Identity:
    """Returns what identifies a query at two evaluations: its slot or encoder cell, or its box if the cells of two evaluations are
    different places.

    Args:
        run: run of the rows.
        split: split of the data.
        rows: rows of the query table, with ``step_columns``.
    """
    return "box" if (rows["source"] >= 0).any() and _inputs_differ(run, split) else "source"


def common_identity(rows: Iterable[tuple[Run, pd.DataFrame]], split: str) -> Identity:
    """Returns what identifies a query in all of these runs, so that their numbers mean the same."""
    return "box" if any(identity_over_steps(run, split, own) == "box" for run, own in rows) else "source"


def found_by_identity(run: Run, split: str, found: pd.DataFrame) -> FoundBy:
    """Returns what identifies the candidate of a detection at two evaluations.

    Args:
        run: run of the detections.
        split: split of the data.
        found: frame of ``found_by.finders``.

    Returns:
        ``query`` for learned queries, and for a dense detector, whose candidates are places of a grid; ``source`` for queries that are
        selected per image, which are known by their encoder cell; ``box`` where these places differ between evaluations because the input
        has another size, and for the proposals of a two-stage detector, whose numbers mean nothing.
    """
    steps = run.query_steps(split)
    dense = any(read_facts(run, split, step)["grid"] is not None for step in steps[-1:])
    if many_to_one(run) and not dense:
        return "box"
    if not dense and not (found["source"] >= 0).any():
        return "query"
    return "box" if _inputs_differ(run, split) else "query" if dense else "source"


def _inputs_differ(run: Run, split: str) -> bool:
    """Returns True if the encoder cells of two evaluations are different places of the image."""
    return len({read_facts(run, split, step)["input"] for step in run.query_steps(split)} - {None}) > 1

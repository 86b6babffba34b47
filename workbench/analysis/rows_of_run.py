"""Says which rows of the query table, which layer and which identity of a query is meant, and reads them.

A query is the same at two evaluations by its slot, its encoder cell or its box: ``identity_over_steps`` says which.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import pandas as pd

from workbench.analysis.stability.churn import CHURN_NEEDED, Identity
from workbench.analysis.stability.same_box import BOX
from workbench.store.manifest import is_complete
from workbench.store.queries import TEACHER_STEP, complete_steps, read_facts, read_queries
from workbench.store.run import Run

Model = Literal["student", "teacher"]


def layers(run: Run, split: str, step: int, model: Model = "student") -> list[int]:
    """Decoder layers of a model in the query table, in order; none where the run keeps none of its queries at this step.

    Args:
        run: whose table.
        split: of the data.
        step: of the student's weights; the teacher's rows are found whatever it is.
        model: whose layers.
    """
    step = TEACHER_STEP if model == "teacher" else step
    if not is_complete(run.queries_path(split, step)):
        return []
    # every layer has a query 0: the layers are known without the other rows, which would fill the memory
    rows = read_queries(run, split, [step], ["layer"], "model = $model and query = 0", {"model": model})
    return sorted(int(layer) for layer in rows["layer"].unique())


def last_layer(
    run: Run, split: str, step: int, model: Model = "student", columns: Sequence[str] | None = None, matched: bool = False
) -> pd.DataFrame:
    """Reads the rows of the last decoder layer of one model at one evaluation.

    Args:
        run: whose table.
        split: of the data.
        step: of the student's weights; the teacher's rows are found whatever it is.
        model: whose rows.
        columns: of the query table, all by default.
        matched: only queries with a target.

    Returns:
        Empty where the run keeps no queries of a teacher.

    Raises:
        RunError: the run keeps no queries of its student at this step.
    """
    found = layers(run, split, step, model)
    if model == "teacher" and not found:
        return pd.DataFrame(columns=list(columns or ()))
    step = TEACHER_STEP if model == "teacher" else step
    known = {"model": model, "layer": max(found, default=0)}
    return read_queries(run, split, [step], columns, "model = $model and layer = $layer", known, matched)


def in_last_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps the rows of the deepest layer among these."""
    return rows[rows["layer"] == rows["layer"].max()]


def at_last_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Keeps the rows of the latest evaluation among these."""
    return rows[rows["step"] == rows["step"].max()]


def image_rows(run: Run, split: str, steps: Sequence[int], image_id: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads all rows of one image: of the student at these evaluations, and of the teacher, empty without one.

    Raises:
        RunError: no queries were recorded at one of these steps.
    """
    teacher = [TEACHER_STEP] if is_complete(run.queries_path(split, TEACHER_STEP)) else []
    rows = read_queries(run, split, [*teacher, *steps], where="image_id = $image", parameters={"image": image_id})
    return rows[rows["model"] == "student"], rows[rows["model"] == "teacher"]


def paired_layer(student: pd.DataFrame, teacher: pd.DataFrame, layer: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Keeps one layer of the student, the last by default, and the teacher's layer that its mates are in."""
    student = student[student["layer"] == (student["layer"].max() if layer is None else layer)]
    paired = student["mate_layer"].dropna()
    return student, teacher[teacher["layer"] == (int(paired.iloc[0]) if len(paired) else -1)]


def student_over_steps(
    run: Run, split: str, columns: Sequence[str] = (), layer: int | None = None, until: int | None = None
) -> tuple[pd.DataFrame, Identity]:
    """Reads the matched rows of the student at every evaluation, and says what makes a query the same at two of them.

    Args:
        run: whose table.
        split: of the data.
        columns: read besides those that recognise a query.
        layer: one decoder layer, by default all.
        until: the last evaluation that is read.
    """
    steps = [step for step in run.query_steps(split) if until is None or step <= until]
    where = "model = 'student'" + ("" if layer is None else " and layer = $layer")
    wanted = list(dict.fromkeys([*step_columns(run, split), *columns]))
    rows = read_queries(run, split, steps, wanted, where, {} if layer is None else {"layer": layer}, matched=True)
    return rows, identity_over_steps(run, split, rows)


def holders(run: Run, split: str, image_id: int, target: int, layer: int) -> pd.DataFrame:
    """Reads the rows of the student's queries that held one target, by step."""
    where = "model = 'student' and image_id = $image and match = $target and layer = $layer"
    return read_queries(run, split, run.query_steps(split), None, where, {"image": image_id, "target": target, "layer": layer})


def matched_rows(run: Run, split: str, columns: Sequence[str], step: int | None = None) -> pd.DataFrame:
    """Reads the matched rows of all models at one evaluation, by default at every one, and those of the teacher.

    Raises:
        RunError: the run has no query table of the split.
    """
    steps = [number for number in complete_steps(run, split) if step is None or number in (TEACHER_STEP, step)]
    return read_queries(run, split, steps, columns, matched=True)


def step_columns(run: Run, split: str) -> tuple[str, ...]:
    """Columns of the query table that recognise a query from one evaluation to the next."""
    return (*CHURN_NEEDED, *BOX) if _inputs_differ(run, split) else CHURN_NEEDED


def identity_over_steps(run: Run, split: str, rows: pd.DataFrame) -> Identity:
    """Says what makes a query the same at two evaluations: its slot or encoder cell, or its box where cells of two evaluations are
    different places.

    Args:
        run: whose rows.
        split: of the data.
        rows: of the query table, with ``step_columns``.
    """
    return "box" if (rows["source"] >= 0).any() and _inputs_differ(run, split) else "source"


def common_identity(rows: Iterable[tuple[Run, pd.DataFrame]], split: str) -> Identity:
    """Says what makes a query the same in all of these runs, so that their numbers mean the same."""
    return "box" if any(identity_over_steps(run, split, own) == "box" for run, own in rows) else "source"


def _inputs_differ(run: Run, split: str) -> bool:
    """Whether encoder cells of two evaluations are different places of the image."""
    return len({read_facts(run, split, step)["input"] for step in run.query_steps(split)} - {None}) > 1

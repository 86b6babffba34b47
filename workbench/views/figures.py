"""Figures straight from runs, as notebooks show them: each reads what it needs and draws it with the other modules of this package.

Images are counted from 1, in the order of the validation split; a step that is not named is the run's last evaluation.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.detection.ap_tests import compare_errors
from workbench.analysis.detection.bootstrap import bootstrap_ap
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.detection.tide import error_table, find_errors
from workbench.analysis.of_run import open_data
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.value import ap_drops
from workbench.analysis.stability.grouped import image_counts, stability_by
from workbench.errors import RunError
from workbench.store.detections import read_detections
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.store.states import masked_images, read_masks
from workbench.views import error_types as error_views
from workbench.views import image as image_views
from workbench.views import masks as mask_views
from workbench.views import overview, stability, training, value
from workbench.views.catalog import VALIDATION, catalog


def progress(*runs: Run) -> go.Figure:
    """AP, churn and instability of the runs over training."""
    points = pd.concat([overview.progress_points(run) for run in runs], ignore_index=True)
    return overview.progress_figure(points, [run.name for run in runs])


def losses(run: Run) -> go.Figure:
    """What a run logged over training: loss, every term, gradients."""
    return training.training_figure(training.thinned(training.training_lines(run))[0])


def results(*runs: Run) -> go.Figure:
    """AP of finished runs by arm, a mark a seed, with intervals over resampled images and the teacher as a line."""
    names = {run.name for run in runs}
    entries = [entry for entry in catalog(runs[0].path.parent) if entry.run.name in names]
    points = overview.result_points(entries)
    ends = []
    for row in points.to_dict("records"):
        run = next(run for run in runs if run.name == row["run"])
        found = bootstrap_ap(_truth(run, row["split"]), read_detections(run, row["split"], int(row["step"])))
        ends.append({"ap_low": found.low, "ap_high": found.high})
    return overview.results_figure(pd.concat([points.reset_index(drop=True), pd.DataFrame(ends)], axis=1))


def seeds(*runs: Run) -> go.Figure:
    """AP, churn and instability over training, a mean and a band over seeds for each arm."""
    names = {run.name for run in runs}
    entries = [entry for entry in catalog(runs[0].path.parent) if entry.run.name in names]
    points = pd.concat([overview.progress_points(run) for run in runs], ignore_index=True)
    return stability.arm_figure(stability.arm_points(points, entries))


def layers(*runs: Run) -> go.Figure:
    """How many targets change their query from one decoder layer to the next, students and their teacher."""
    points = pd.concat([overview.layer_points(run) for run in runs], ignore_index=True)
    return overview.layers_figure(points, [run.name for run in runs])


def agreement(*runs: Run) -> go.Figure:
    """How many of the targets are held by mates, teacher's query and student's, over training."""
    points = pd.concat([stability.agreement_points(run) for run in runs], ignore_index=True)
    return stability.agreement_figure(points, [run.name for run in runs])


def churn_by_layer(run: Run) -> go.Figure:
    """Churn from one evaluation to the next, a line a decoder layer, with intervals over resampled images."""
    rows = read_queries(run, VALIDATION, run.query_steps(VALIDATION), None, "model = 'student'", matched=True)
    return stability.by_layer_figure(stability_by(image_counts(rows, layers="all")))


def holders(run: Run, targets: int = 20) -> go.Figure:
    """Which query held which target at which evaluation, the targets that changed most often first.

    Args:
        run: with at least two evaluations.
        targets: drawn.
    """
    steps = run.query_steps(VALIDATION)
    rows = read_queries(run, VALIDATION, steps, None, "model = 'student'", matched=True)
    held = stability.held(rows[rows["layer"] == rows["layer"].max()])
    return stability.matrix_figure(stability.target_rows_of(held, 0, targets), steps)


def image(
    run: Run, number: int = 1, step: int | None = None, layer: int | None = None, score: float = 0.3, mask: bool = False
) -> go.Figure:
    """One image: targets, boxes of teacher and student, and lines between mates.

    Args:
        run: with queries of this image.
        number: of the image.
        step: of the student.
        layer: of the student; the last by default.
        score: boxes below it are left out.
        mask: lay the teacher's selection mask over the image.
    """
    data = open_data(run.info(), VALIDATION)
    record = data.records[number - 1]
    student, teacher = image_rows(run, record.image_id, step)
    student, teacher = of_layer(student, teacher, layer)
    seen = read_masks(run, VALIDATION, TEACHER_STEP, record.image_id) if mask else {}
    drawn = seen[max(seen)] if seen else None
    return image_views.image_figure(data.image(number - 1), record, data.classes, student, teacher, score, drawn)


def masks(run: Run, number: int = 1, step: int | None = None) -> go.Figure:
    """The selection mask of the teacher's queries over an image, the student's, and their difference.

    Args:
        run: of a method with a selection mask.
        number: of the image.
        step: of the student.

    Raises:
        RunError: no masks of this image were kept.
    """
    data = open_data(run.info(), VALIDATION)
    record = data.records[number - 1]
    teacher = read_masks(run, VALIDATION, TEACHER_STEP, record.image_id)
    place = max(teacher)
    shown = {"teacher": teacher[place]}
    at = _step(run, step)
    if record.image_id in masked_images(run, VALIDATION, at):
        student = read_masks(run, VALIDATION, at, record.image_id)
        own = max(student)
        shown |= {"student": student[own], "difference": mask_views.difference(teacher[place], student[own])}
    return mask_views.masks_figure(data.image(number - 1), record, shown, 0.7)


def slot_values(run: Run) -> go.Figure:
    """AP drop of every query slot, exact, with a jackknife over image blocks."""
    drops = ap_drops(_truth(run), read_detections(run, VALIDATION, _step(run)))
    return value.slots_figure(drops, "ap_drop", None)


def predictors(run: Run, baseline: Run) -> go.Figure:
    """What predicts where distillation gains: rank correlations of each property of a target with its gain over the baseline."""
    at = _step(run)
    taught, alone = last_layer(run, "student", at), last_layer(baseline, "student", at)
    gains = target_gain(taught, alone, at)
    properties = target_properties(gains, last_layer(run, "teacher", at), alone, target_frame(_truth(run)))
    return value.correlation_figure(rank_correlations(properties))


def costs(*runs: Run) -> go.Figure:
    """What each type of error costs, with intervals over resampled images."""
    return error_views.costs_figure({run.name: error_table(_errors(run)) for run in runs})


def cost_differences(run: Run, baseline: Run) -> go.Figure:
    """By how much each type of error costs less, or more, than in the baseline, with intervals and verdicts."""
    return error_views.difference_figure(compare_errors({0: _errors(baseline)}, {0: _errors(run)}))


def image_rows(run: Run, image_id: int, step: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Query rows of one image, of the student at a step and of the teacher.

    Raises:
        RunError: the image was not traced at this step.
    """
    steps = [_step(run, step), *([TEACHER_STEP] if run.queries_path(VALIDATION, TEACHER_STEP).exists() else [])]
    rows = read_queries(run, VALIDATION, steps, where="image_id = $image", parameters={"image": image_id})
    student = rows[rows["model"] == "student"]
    if student.empty:
        raise RunError(
            f"run '{run.name}' keeps no queries of image {image_id} at step {steps[0]}; choose another, or trace it with "
            f"'workbench record {run.name}'."
        )
    return student, rows[rows["model"] == "teacher"]


def of_layer(student: pd.DataFrame, teacher: pd.DataFrame, layer: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of one layer of the student, the last by default, and of the teacher's layer that its mates are in."""
    student = student[student["layer"] == (student["layer"].max() if layer is None else layer)]
    paired = student["mate_layer"].dropna()
    return student, teacher[teacher["layer"] == (int(paired.iloc[0]) if len(paired) else -1)]


def last_layer(run: Run, model: str, step: int) -> pd.DataFrame:
    """Query rows of the last decoder layer of a model."""
    rows = read_queries(run, VALIDATION, [TEACHER_STEP if model == "teacher" else step], None, "model = $model", {"model": model})
    return rows[rows["layer"] == rows["layer"].max()]


def _step(run: Run, step: int | None = None) -> int:
    """The step that is asked for, or the last with queries."""
    steps = [number for number in run.query_steps(VALIDATION) if number != TEACHER_STEP]
    if not steps or step not in (None, *steps):
        raise RunError(f"run '{run.name}' keeps queries of the steps {', '.join(map(str, steps)) or 'none'}, not of {step}.")
    return steps[-1] if step is None else step


def _truth(run: Run, split: str = VALIDATION) -> Mapping[str, Any]:
    return open_data(run.info(), split).coco()


def _errors(run: Run) -> Any:
    return find_errors(_truth(run), read_detections(run, VALIDATION, _step(run)))

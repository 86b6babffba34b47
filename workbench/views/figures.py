"""Figures straight from runs, as notebooks show them: each reads what it needs and draws it with the other modules of this package.

Images are counted from 1, in the order of the split, which is validation unless another is named; a step that is not named is the run's
last evaluation.
"""

import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.of_run import all_evaluations, last_with_detections, last_with_queries, one_evaluation, open_data
from workbench.analysis.results.of_runs import Results
from workbench.analysis.rows_of_run import paired_layer
from workbench.errors import RunError
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run
from workbench.store.states import read_masks
from workbench.views import error_types as error_views
from workbench.views import image as image_views
from workbench.views import masks as mask_views
from workbench.views import overview, stability, training, value
from workbench.views.catalog import catalog

RESULTS = Results()


def progress(*runs: Run, split: str = "val") -> go.Figure:
    """AP, churn and instability of the runs over training."""
    points = pd.concat([overview.progress_points(run, split) for run in runs], ignore_index=True)
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
        low, high = RESULTS.ap_interval(one_evaluation(run, row["split"], int(row["step"])))
        ends.append({"ap_low": low, "ap_high": high})
    return overview.results_figure(pd.concat([points.reset_index(drop=True), pd.DataFrame(ends)], axis=1))


def seeds(*runs: Run, split: str = "val") -> go.Figure:
    """AP, churn and instability over training, a mean and a band over seeds for each arm."""
    names = {run.name for run in runs}
    entries = [entry for entry in catalog(runs[0].path.parent) if entry.run.name in names]
    points = pd.concat([overview.progress_points(run, split) for run in runs], ignore_index=True)
    return stability.arm_figure(stability.arm_points(points, entries))


def layers(*runs: Run, split: str = "val") -> go.Figure:
    """How many targets change their query from one decoder layer to the next, students and their teacher."""
    points = pd.concat([overview.layer_points(run, split) for run in runs], ignore_index=True)
    return overview.layers_figure(points, [run.name for run in runs])


def agreement(*runs: Run, split: str = "val") -> go.Figure:
    """How many of the targets are held by mates, teacher's query and student's, over training."""
    points = pd.concat([stability.agreement_points(run, split) for run in runs], ignore_index=True)
    return stability.agreement_figure(points, [run.name for run in runs])


def churn_by_layer(run: Run, split: str = "val") -> go.Figure:
    """Churn from one evaluation to the next, a line a decoder layer, with intervals over resampled images."""
    return stability.by_layer_figure(RESULTS.churn_by_layer(all_evaluations(run, split)))


def holders(run: Run, targets: int = 20, split: str = "val") -> go.Figure:
    """Which query held which target at which evaluation, the targets that changed most often first.

    Args:
        run: with at least two evaluations.
        targets: drawn.
        split: of the data.
    """
    evaluations = all_evaluations(run, split)
    held = stability.held(RESULTS.held_rows(evaluations, RESULTS.student_layers(evaluations)[-1]))
    return stability.matrix_figure(stability.target_rows_of(held, 0, targets), run.query_steps(split))


def image(
    run: Run,
    number: int = 1,
    step: int | None = None,
    layer: int | None = None,
    score: float = 0.3,
    mask: bool = False,
    split: str = "val",
) -> go.Figure:
    """One image: targets, boxes of teacher and student, and lines between mates.

    Args:
        run: with queries of this image.
        number: of the image.
        step: of the student.
        layer: of the student; the last by default.
        score: boxes below it are left out.
        mask: lay the teacher's selection mask over the image.
        split: of the data.
    """
    data = open_data(run.info(), split)
    record = data.records[number - 1]
    student, teacher = image_rows(run, record.image_id, step, split)
    student, teacher = paired_layer(student, teacher, layer)
    seen = RESULTS.image_masks(last_with_queries(run, split, step).teacher, record.image_id) if mask else {}
    drawn = seen[max(seen)] if seen else None
    return image_views.image_figure(data.image(number - 1), record, data.classes, student, teacher, score, drawn)


def masks(run: Run, number: int = 1, step: int | None = None, split: str = "val") -> go.Figure:
    """The selection mask of the teacher's queries over an image, the student's, and their difference.

    Args:
        run: of a method with a selection mask.
        number: of the image.
        step: of the student.
        split: of the data.

    Raises:
        RunError: no masks of this image were kept.
    """
    data = open_data(run.info(), split)
    record = data.records[number - 1]
    teacher = read_masks(run, split, TEACHER_STEP, record.image_id)
    place = max(teacher)
    shown = {"teacher": teacher[place]}
    if student := RESULTS.image_masks(last_with_queries(run, split, step), record.image_id):
        own = max(student)
        shown |= {"student": student[own], "difference": mask_views.difference(teacher[place], student[own])}
    return mask_views.masks_figure(data.image(number - 1), record, shown, 0.7)


def slot_values(run: Run, split: str = "val") -> go.Figure:
    """AP drop of every query slot, exact, with a jackknife over image blocks."""
    return value.slots_figure(RESULTS.slot_drops(last_with_queries(run, split)), "ap_drop", None)


def predictors(run: Run, baseline: Run, split: str = "val") -> go.Figure:
    """What predicts where distillation gains: rank correlations of each property of a target with its gain over the baseline."""
    at = last_with_queries(run, split)
    return value.correlation_figure(RESULTS.correlations(at, last_with_queries(baseline, split, at.step)))


def costs(*runs: Run, split: str = "val") -> go.Figure:
    """What each type of error costs, with intervals over resampled images."""
    return error_views.costs_figure({run.name: RESULTS.error_costs(last_with_detections(run, split)) for run in runs})


def cost_differences(run: Run, baseline: Run, split: str = "val") -> go.Figure:
    """By how much each type of error costs less, or more, than in the baseline, with intervals and verdicts."""
    pair = [last_with_detections(one, split) for one in (baseline, run)]
    return error_views.difference_figure(RESULTS.compared_errors(*pair)[0])


def image_rows(run: Run, image_id: int, step: int | None = None, split: str = "val") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Query rows of one image, of the student at a step and of the teacher.

    Raises:
        RunError: the image was not traced at this step.
    """
    at = last_with_queries(run, split, step)
    student, teacher = RESULTS.image_queries(at, image_id)
    if student.empty:
        raise RunError(
            f"run '{run.name}' keeps no queries of image {image_id} at step {at.step}; choose another, or record it with "
            f"'workbench record {run.name} --split {split}'."
        )
    return student, teacher

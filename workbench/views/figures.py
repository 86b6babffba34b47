"""Draws figures straight from runs, as notebooks show them. Each function reads what it needs and draws it with this package.

Images are counted from 1 in the order of the split. The split is validation unless another is named; the step is the run's last
evaluation unless another is given. A number that a many-to-one assignment does not define is replaced by a sentence that says so.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec

import pandas as pd
import plotly.graph_objects as go

from workbench.analysis.defined import LAYER_NUMBERS, NotDefined, undefined_of
from workbench.analysis.detection.lost import LEAST_SCORE
from workbench.analysis.of_run import all_evaluations, last_with_detections, last_with_queries, one_evaluation, open_data
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.of_runs import Results
from workbench.analysis.rows_of_run import paired_layer, taught_layers
from workbench.errors import RunError
from workbench.store.queries import TEACHER_STEP
from workbench.store.run import Run
from workbench.store.states import read_masks
from workbench.views import error_types as error_views
from workbench.views import image as image_views
from workbench.views import lost as lost_views
from workbench.views import masks as mask_views
from workbench.views import overview, stability, training, unsettled, value
from workbench.views import search as search_views
from workbench.views.catalog import catalog
from workbench.views.style import noted, saying

RESULTS = Results(data_held())
P = ParamSpec("P")


def or_says_why(draw: Callable[P, go.Figure]) -> Callable[P, go.Figure]:
    """Makes a function return a figure with the sentence of ``NotDefined`` where its number is not defined."""

    @functools.wraps(draw)
    def drawn(*arguments: P.args, **named: P.kwargs) -> go.Figure:
        try:
            return draw(*arguments, **named)
        except NotDefined as error:
            return saying(str(error))

    return drawn


def progress(*runs: Run, split: str = "val") -> go.Figure:
    """Draws AP, churn, found-by churn and instability of the runs over training."""
    points = pd.concat([overview.progress_points(run, split, RESULTS) for run in runs], ignore_index=True)
    return noted(overview.progress_figure(points, [run.name for run in runs]), undefined_of(runs, "churn"))


def losses(run: Run) -> go.Figure:
    """Draws what a run logged over training: the loss, every term and the gradients."""
    return training.training_figure(training.thinned(training.training_lines(run))[0])


def results(*runs: Run) -> go.Figure:
    """Draws AP of finished runs by arm: one mark per seed with its interval over resampled images, and the teacher as a line."""
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
    """Draws AP, churn, found-by churn and instability over training, with a mean and a band over seeds for each arm."""
    names = {run.name for run in runs}
    entries = [entry for entry in catalog(runs[0].path.parent) if entry.run.name in names]
    points = pd.concat([overview.progress_points(run, split, RESULTS) for run in runs], ignore_index=True)
    return noted(stability.arm_figure(stability.arm_points(points, entries)), undefined_of(runs, "churn"))


def layers(*runs: Run, split: str = "val") -> go.Figure:
    """Draws the share of targets whose query changes from one decoder layer to the next, for students and their teacher."""
    points = pd.concat([overview.layer_points(run, split) for run in runs], ignore_index=True)
    why = " ".join(said for number in LAYER_NUMBERS if (said := undefined_of(runs, number)))
    return saying(why) if points.empty and why else noted(overview.layers_figure(points, [run.name for run in runs]), why)


def agreement(*runs: Run, split: str = "val") -> go.Figure:
    """Draws the agreement with the teacher over training: the share of targets that both models give to paired queries."""
    points = pd.concat([stability.agreement_points(run, split) for run in runs], ignore_index=True)
    why = undefined_of(runs, "agreement")
    return saying(why) if points.empty and why else noted(stability.agreement_figure(points, [run.name for run in runs]), why)


@or_says_why
def churn_by_layer(run: Run, split: str = "val") -> go.Figure:
    """Draws churn from one evaluation to the next, one line per decoder layer, with intervals over resampled images."""
    return stability.by_layer_figure(RESULTS.churn_by_layer(all_evaluations(run, split)))


def found_by(run: Run, split: str = "val") -> go.Figure:
    """Draws found-by churn over training with intervals: the share of detected targets that another candidate detects than before."""
    return stability.found_by_figure(RESULTS.found_by_churn(all_evaluations(run, split)))


@or_says_why
def change_causes(run: Run, split: str = "val") -> go.Figure:
    """Draws churn from one evaluation to the next, divided by why the targets changed their query."""
    return unsettled.causes_figure(RESULTS.churn_by_cause(all_evaluations(run, split)))


def found_by_teacher(run: Run, split: str = "val", least_score: float = LEAST_SCORE) -> go.Figure:
    """Draws how many targets the teacher and the student found at the last evaluation with queries: the table of two by two.

    Args:
        run: a run that keeps its teacher's queries.
        split: split of the data.
        least_score: least score of a detection that counts.
    """
    at = last_with_queries(run, split)
    cells = RESULTS.found_cells(at, at, least_score)
    return lost_views.cells_figure(cells[cells["by"] == "all"], "lost")


def lost(*runs: Run, split: str = "val", least_score: float = LEAST_SCORE) -> go.Figure:
    """Draws which share of the targets that their teacher found students lost, by class, size and crowding.

    Args:
        *runs: students of one teacher; the first keeps the teacher's queries that all are set beside.
        split: split of the data.
        least_score: least score of a detection that counts.
    """
    taught = last_with_queries(runs[0], split)
    return lost_views.shares_figure({run.name: RESULTS.lost_shares(last_with_queries(run, split), taught, least_score) for run in runs})


@or_says_why
def holders(run: Run, targets: int = 20, split: str = "val") -> go.Figure:
    """Draws which query was matched to which target at each evaluation, starting with the targets that changed most often.

    Args:
        run: a run with at least two evaluations.
        targets: number of targets that are drawn.
        split: split of the data.
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
    """Draws one image: targets, boxes of teacher and student, and lines between paired queries.

    Args:
        run: a run that keeps queries of this image.
        number: number of the image.
        step: step of the student.
        layer: decoder layer of the student; by default the last.
        score: boxes with a lower score are left out.
        mask: True to lay the teacher's selection mask over the image.
        split: split of the data.
    """
    data = open_data(run.info(), split)
    record = data.records[number - 1]
    student, teacher = image_rows(run, record.image_id, step, split)
    student, teacher = paired_layer(student, teacher, layer)
    seen = RESULTS.image_masks(last_with_queries(run, split, step).teacher, record.image_id) if mask else {}
    drawn = seen[max(seen)] if seen else None
    return image_views.image_figure(data.image(number - 1), record, data.classes, student, teacher, score, drawn)


def masks(run: Run, number: int = 1, step: int | None = None, split: str = "val") -> go.Figure:
    """Draws the selection masks of every layer of the teacher over an image, the student's, and their difference.

    Args:
        run: a run whose method uses a selection mask.
        number: number of the image.
        step: step of the student.
        split: split of the data.

    Raises:
        RunError: the run keeps no masks of this image.
    """
    data = open_data(run.info(), split)
    record = data.records[number - 1]
    teacher = read_masks(run, split, TEACHER_STEP, record.image_id)
    at = last_with_queries(run, split, step)
    own, _ = RESULTS.image_queries(at, record.image_id)
    layers = mask_views.paired_masks(teacher, RESULTS.image_masks(at, record.image_id), taught_layers(run, own))
    return mask_views.masks_figure(data.image(number - 1), record, layers, 0.7)


@or_says_why
def slot_values(run: Run, split: str = "val") -> go.Figure:
    """Draws the AP drop of every query slot: exact, with jackknife intervals over blocks of images."""
    return value.slots_figure(RESULTS.slot_drops(last_with_queries(run, split)), "ap_drop", None)


@or_says_why
def predictors(run: Run, baseline: Run, split: str = "val") -> go.Figure:
    """Draws what predicts the gain over the baseline: the rank correlation of each property of a target with its gain."""
    at = last_with_queries(run, split)
    return value.correlation_figure(RESULTS.correlations(at, last_with_queries(baseline, split, at.step)))


def costs(*runs: Run, split: str = "val") -> go.Figure:
    """Draws the cost of each type of error, with intervals over resampled images."""
    return error_views.costs_figure({run.name: RESULTS.error_costs(last_with_detections(run, split)) for run in runs})


def cost_differences(run: Run, baseline: Run, split: str = "val") -> go.Figure:
    """Draws by how much the cost of each type of error differs from the baseline's, with intervals and verdicts."""
    pair = [last_with_detections(one, split) for one in (baseline, run)]
    return error_views.difference_figure(RESULTS.compared_errors(*pair)[0])


def sampler_curves(curves: pd.DataFrame) -> go.Figure:
    """Draws how good the best formula is that each sampler has found, with intervals over its seeds; of ``FitnessTable.race``."""
    return search_views.curves_figure(curves)


def survivors(table: pd.DataFrame) -> go.Figure:
    """Draws how common each choice is among the best fifth of a search as it goes on; of ``wb.survivors``."""
    return search_views.survivors_figure(table)


def image_rows(run: Run, image_id: int, step: int | None = None, split: str = "val") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the query rows of one image, of the student at a step and of the teacher.

    Raises:
        RunError: the run keeps no queries of this image at this step.
    """
    at = last_with_queries(run, split, step)
    student, teacher = RESULTS.image_queries(at, image_id)
    if student.empty:
        raise RunError(
            f"run '{run.name}' keeps no queries of image {image_id} at step {at.step}. Choose another image or step, or record its queries "
            f"with 'workbench record {run.name} --split {split}'."
        )
    return student, teacher


__all__ = [
    "agreement", "change_causes", "churn_by_layer", "cost_differences", "costs", "found_by", "found_by_teacher", "holders", "image",
    "image_rows", "layers", "losses", "lost", "masks", "predictors", "progress", "results", "sampler_curves", "seeds", "slot_values",
    "survivors",
]  # fmt: skip


def __dir__() -> list[str]:
    """Lists the figures, so that completion offers nothing else."""
    return __all__

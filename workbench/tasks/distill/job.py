"""Runs a job: teacher, cache, students, answer. Each stage is skipped if it is done, so a job that was stopped goes on."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from workbench.analysis.diagnosis.teacher_input import LEAST_AP
from workbench.analysis.report.answer import Answer, answer, first_cause
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.of_runs import Results
from workbench.device import resolve_device
from workbench.duration import duration
from workbench.errors import ConfigError, Interrupted, RunError
from workbench.files import read_json, write_json
from workbench.recipe.loading import load_recipe
from workbench.recipe.setup import build
from workbench.store.groups import DISTILLED, EQUAL_STEPS, UNDISTILLED
from workbench.store.jobs import DONE, PLAN, enter_stage, jobs_root, working
from workbench.store.run import Run, runs_root
from workbench.tasks.compare import Row, compare_rows, execute, plan, state
from workbench.tasks.distill.budget import Division, divide
from workbench.tasks.distill.pace import Pace, measure
from workbench.tasks.distill.planning import Plan, Request, make_plan
from workbench.tasks.distill.recipes import STUDENT, TEACHER, scheduled, write_recipe
from workbench.teacher_cache.build import Builder
from workbench.training.launch import teacher_name

FORMAT = 1


class Watch(Protocol):
    """Receives the progress of a job."""

    def stage(self, text: str, left: float) -> None:
        """A stage begins; ``left`` seconds are expected until the job is done, 0 if that is not known."""

    def runs(self, runs: list[Run], /) -> None:
        """These runs are in progress; called about twice a second."""

    def cached(self, done: int, total: int) -> None:
        """So many of the teacher's outputs are there."""


@dataclass(frozen=True)
class Done:
    """A finished job.

    Attributes:
        folder: Its folder, with both recipes.
        recipe: The student's recipe.
        rows: Its runs.
        table: Result of ``compare_rows``.
        answer: Whether distillation helped.
        best: The run to export: the best on the validation split among those at equal steps.
    """

    folder: Path
    recipe: Path
    rows: list[Row]
    table: pd.DataFrame
    answer: Answer
    best: Run


def distill(name: str, request: Request, jobs: int, watch: Watch, finish: Callable[[Done], None] = lambda done: None) -> Done:
    """Starts a job, or continues it.

    Args:
        name: name of the job.
        request: what is asked for.
        jobs: number of runs at a time.
        watch: receives the progress.
        finish: writes what belongs to the answer; the job is done when it returns.

    Raises:
        ConfigError: a job of that name was started with another request; the message names the differences.
        RunError: another process works on the job.
        Interrupted: the user pressed Ctrl-C; the message says what is kept.
        WorkbenchError: a problem that the user can fix.
    """
    start = time.monotonic()
    folder = jobs_root() / name
    try:
        return _distill(folder, request, jobs, watch, finish, start)
    except KeyboardInterrupt as error:
        kept = "What is done is kept; the same command goes on from there." if (folder / PLAN).is_file() else "Nothing was begun."
        raise Interrupted(f"the job '{name}' was stopped. {kept}") from error


def _distill(folder: Path, request: Request, jobs: int, watch: Watch, finish: Callable[[Done], None], start: float) -> Done:
    kept = _kept(folder, request)
    if kept is None:
        planned = make_plan(folder.name, request, jobs)
        for line in planned.told:
            watch.stage(line, 0.0)
        watch.stage(pace_text(planned), 0.0)
        watch.stage(f"plan: {stages_text(planned)}", planned.division.seconds)
        _write(planned, folder)
        kept = _kept(folder, request) or {}
    with working(folder):
        done = _work(folder, kept, request, jobs, watch, start)
        watch.runs([])
        finish(done)
        enter_stage(folder, DONE)
    return done


def _work(folder: Path, kept: dict[str, Any], request: Request, jobs: int, watch: Watch, start: float) -> Done:
    """Does what is left of the stages; ``start`` is when the process began, by the monotonic clock."""
    expected = Division(**kept["expected"])
    _train_teacher(folder, jobs, request, watch, expected.seconds)
    _build_cache(folder, request, watch, expected.seconds - expected.teacher)
    if not kept["students_scheduled"]:
        # the clock says better than the first measurement how fast this machine is
        kept = _reschedule(folder, kept, request, jobs, time.monotonic() - start)
    rows = _students(folder, request)
    if any(state(row) != "done" for row in rows):
        left = Division(**kept["expected"])
        enter_stage(folder, "students")
        watch.stage(f"students: {len(rows)} runs, {kept['student_steps']} steps each at equal steps", left.students + left.answer)
    execute(
        sorted(rows, key=lambda row: (row.schedule != EQUAL_STEPS, row.arm != DISTILLED)), jobs, device=request.device, watch=watch.runs
    )
    enter_stage(folder, "answer")
    return _done(folder, rows)


def _students(folder: Path, request: Request) -> list[Row]:
    return plan(folder / STUDENT, [UNDISTILLED, DISTILLED], range(request.seeds), [DISTILLED])


def pace_text(planned: Plan) -> str:
    """Returns what was measured, in wall time, which is what the budget is in."""
    paces = {"teacher": planned.teacher_pace, "student": planned.student_pace}
    measured = {who: pace for who, pace in paces.items() if pace is not None}
    told = f"measured: {', '.join(f'{who} {pace}' for who, pace in measured.items())}"
    if any(pace.waits for pace in measured.values()):
        told += "; the rest is waiting, most likely for other work on this machine, and the plan is for the speed of now"
    return told


def stages_text(planned: Plan) -> str:
    """Returns the stages with their steps and times."""
    division = planned.division
    taught = f"teacher {division.teacher_steps} steps, {duration(division.teacher)}; " if division.teacher_steps else ""
    cached = f"cache {duration(division.cache)}; " if division.cache else ""
    return f"{taught}{cached}students {division.student_steps} steps, {duration(division.students)}; answer {duration(division.answer)}"


def _kept(folder: Path, request: Request) -> dict[str, Any] | None:
    """Returns what is kept of a job; None if there is none of that name.

    Raises:
        ConfigError: it was started with another request.
    """
    if not (folder / PLAN).is_file():
        return None
    kept = read_json(folder / PLAN)
    if kept.get("format") != FORMAT:
        raise ConfigError(f"{folder / PLAN} was written by another version of the workbench. Give this job another --name.")
    now = _plain(request)
    if changes := [f"{key} {kept['request'].get(key)}, now {now[key]}" for key in now if kept["request"].get(key) != now[key]]:
        raise ConfigError(
            f"the job '{folder.name}' was started with other settings: {'; '.join(changes)}. Repeat them to go on, or give this job "
            "another --name."
        )
    return kept


def _plain(request: Request) -> dict[str, Any]:
    return {**dataclasses.asdict(request), "changes": list(request.changes)}


def _write(planned: Plan, folder: Path) -> None:
    """Writes both recipes and, last, the plan: a job without a plan starts again."""
    division, pair = planned.division, planned.pair
    rules = "\n".join(f"{choice.key}: {choice.rule}" for choice in planned.choices)
    if pair.teacher is not None:
        write_recipe(scheduled(pair.teacher, division.teacher_steps), folder / TEACHER, f"Teacher of the job '{planned.name}'.\n{rules}")
    _write_student(pair.student, division.student_steps, folder, planned.name, rules)
    taught = plan(folder / TEACHER, [UNDISTILLED], [0], []) if pair.teacher is not None else []
    students = _students(folder, planned.request)
    write_json(
        folder / PLAN,
        {
            "format": FORMAT, "request": _plain(planned.request), "rules": rules, "student": pair.student,
            "teacher_pace": _pace(planned.teacher_pace), "student_pace": _pace(planned.student_pace),
            "expected": dataclasses.asdict(division), "student_steps": division.student_steps, "students_scheduled": False,
            "planned": division.seconds, "stage": "teacher" if taught else "cache", "stage_began": time.time(),
            "runs": {"teacher": taught[0].name if taught else None, "students": [row.name for row in students]},
        },
    )  # fmt: skip


def _write_student(values: dict[str, Any], steps: int, folder: Path, name: str, rules: str) -> None:
    heading = f"Students of the job '{name}': 'workbench compare {folder / STUDENT}' trains more of them.\n{rules}"
    write_recipe(scheduled(values, steps), folder / STUDENT, heading)


def _pace(pace: Any) -> dict[str, Any] | None:
    return None if pace is None else dataclasses.asdict(pace)


def _train_teacher(folder: Path, jobs: int, request: Request, watch: Watch, left: float) -> None:
    if not (folder / TEACHER).is_file():
        return
    rows = plan(folder / TEACHER, [UNDISTILLED], [0], [])
    if state(rows[0]) != "done":
        enter_stage(folder, "teacher")
        watch.stage(f"teacher: run '{rows[0].name}'", left)
    execute(rows, jobs, device=request.device, watch=watch.runs)
    run = Run(runs_root() / rows[0].name)
    if (ap := _best_on_val(run)) < LEAST_AP:
        steps = run.info()["recipe"]["train"]["steps"]
        raise RunError(
            f"after {steps} steps the teacher has {100 * ap:.1f} AP on validation, so it would teach nothing. Give it more time "
            f"(--budget, with another --name), or a --teacher that is trained. It is kept as run '{run.name}'."
        )


def _build_cache(folder: Path, request: Request, watch: Watch, left: float) -> None:
    recipe = load_recipe(folder / STUDENT)
    if recipe.cache is None:
        return
    builder = Builder(build(recipe, teacher_name(recipe, folder), record_teacher=False), resolve_device(request.device))
    estimate = builder.estimate()
    if estimate.bytes_left:
        enter_stage(folder, "cache")
        watch.stage(f"teacher cache: {estimate.images} images x {estimate.variants} variants, {estimate.bytes / 1e9:.2f} GB", left)
        builder.build(estimate, accept=True, progress=watch.cached)


def _reschedule(folder: Path, kept: dict[str, Any], request: Request, jobs: int, spent: float) -> dict[str, Any]:
    """Fits the students' steps into what is left of the budget, now that teacher and cache are there, and writes them down."""
    recipe = load_recipe(folder / STUDENT)
    taught, slowness = teacher_name(recipe, folder), 1.0
    if kept["teacher_pace"] is not None and taught is not None:
        last = Run.open(taught).timings()[-1]
        slowness = last["wall"] / last["step"] / kept["teacher_pace"]["step"]
        spent = max(spent, float(last["wall"]))  # a job that was stopped and goes on has spent more than this process
    student = Pace(**kept["student_pace"])
    # by process time where it is known: two short measurements on a busy machine differ by what else ran meanwhile
    distilled = measure(recipe, request.device, taught).work / measure(recipe, request.device).work
    division = divide(request.budget - spent, None, student, 0.0, request.seeds, jobs, distilled, slowness)
    _write_student(kept["student"], division.student_steps, folder, folder.name, kept["rules"])
    expected = dataclasses.asdict(division)
    kept = {**read_json(folder / PLAN), "expected": expected, "student_steps": division.student_steps, "students_scheduled": True}
    write_json(folder / PLAN, kept)
    return kept


def _done(folder: Path, rows: list[Row]) -> Done:
    runs = [Run(runs_root() / row.name) for row in rows]
    results = Results(data_held())
    found = answer(runs, results, first_cause(runs, results))
    equal = [run for row, run in zip(rows, runs, strict=True) if row.schedule == EQUAL_STEPS]
    return Done(folder, folder / STUDENT, rows, compare_rows(rows), found[0], max(equal, key=_best_on_val))


def _best_on_val(run: Run) -> float:
    return max((line["coco"]["ap"] or 0.0 for line in run.evaluations() if line["split"] == "val"), default=0.0)

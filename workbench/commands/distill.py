"""``workbench distill``: from a dataset to a small detector that learned from a large one."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.commands.options import Device, Json, Root, Set, use_root

if TYPE_CHECKING:
    from workbench.store.run import Run
    from workbench.tasks.distill.job import Done
    from workbench.tasks.distill.planning import Plan

TOLD_EVERY = 10.0  # seconds


def distill(
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="Your dataset: COCO, VOC, KITTI or YOLO; or shapes.")],
    student: Annotated[str, typer.Option("--student", metavar="SIZE", help="tiny, small or medium; or a recipe of the student.")] = "small",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="T", help="A run, a detector folder or a name on the hub; without it one is trained."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for everything, such as 10m, 1h or 8h.")] = "1h",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How many seeds to train each student with.")] = 1,
    val: Annotated[float, typer.Option("--val", metavar="SHARE", help="Share of the images to validate on, without such a split.")] = 0.2,
    test: Annotated[float, typer.Option("--test", metavar="SHARE", help="Share of the images to report on, likewise.")] = 0.2,
    split_seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of these splits.")] = 0,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the job; else that of data and student.")] = None,
    overrides: Set = None,
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="How many runs to train at a time.")] = 2,
    device: Device = "auto",
    dry: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Distil a small detector for your images.

    It reads the data, chooses settings by rules that it prints, trains the teacher unless you have one, trains students with
    and without it, and says whether distillation helped. Ctrl-C keeps what is done; the same command goes on from there.

    Example: workbench distill --data ~/cells --budget 30m
    """
    from workbench.commands.console import console, print_comparison
    from workbench.commands.progress import console_watch
    from workbench.datasets.opening import find_format
    from workbench.device import resolve_device

    use_root(runs)
    if device != "auto":
        resolve_device(device)
    # the same job from whatever folder it is started
    data = data if data == "shapes" else str(Path(data).expanduser().resolve())
    if data != "shapes":
        find_format(Path(data))  # refuses what is no dataset before torch is loaded
    from workbench.tasks.distill.budget import seconds_of
    from workbench.tasks.distill.job import distill as run_job
    from workbench.tasks.distill.planning import Request, default_name, make_plan

    resolve_device(device)
    request = Request(data, student, teacher, seconds_of(budget), seeds, val, test, split_seed, tuple(overrides or ()), device)
    name = name or default_name(request)
    if dry:
        _print_plan(make_plan(name, request, jobs))
        return

    def finish(done: "Done") -> None:
        print_comparison([done.table], json_path)
        _finish(done)

    with console_watch(console) as show:
        run_job(name, request, jobs, _Told(show), finish)


class _Told:
    """Shows the stages of a job, the runs in progress and the cache that is being built."""

    def __init__(self, runs: "Callable[[list[Run]], None]"):
        self.runs, self._since = runs, time.monotonic()

    def stage(self, text: str, left: float) -> None:
        from rich.text import Text

        from workbench.commands.console import console
        from workbench.duration import duration

        console.print(Text.assemble((text, "bold"), f"; about {duration(left)} left in all" if left else ""), soft_wrap=True)

    def cached(self, done: int, total: int) -> None:
        from workbench.commands.console import console

        if done == total or time.monotonic() - self._since > TOLD_EVERY:
            self._since = time.monotonic()
            console.print(f"teacher cache: {done} of {total} outputs", soft_wrap=True)


def _print_plan(plan: "Plan") -> None:
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.duration import duration
    from workbench.tasks.distill.job import pace_text, stages_text

    lines = list(plan.told)
    lines += [f"{choice.key} = {choice.value}: {choice.rule}" for choice in plan.choices]
    lines.append(pace_text(plan))
    lines.append(f"{duration(plan.division.seconds)} of {duration(plan.request.budget)}: {stages_text(plan)}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _finish(done: "Done") -> None:
    """Prints the answer, writes report and export, and says where everything is."""
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.export.onnx_file import export_onnx
    from workbench.store.run import Run, runs_root
    from workbench.views.report import write_report

    console.print(Text(done.answer.sentence(), style="bold"), soft_wrap=True)
    report = done.folder / "report.html"
    write_report([Run(runs_root() / row.name) for row in done.rows], report)
    files = [("report", report), ("recipe", done.recipe)]
    onnx = done.folder / f"{done.best.name}.onnx"
    console.print(Text(str(export_onnx(done.best.name, onnx))), soft_wrap=True)
    files.append((f"best student on validation ({done.best.name})", onnx))
    for what, path in files:
        console.print(Text(f"{what}: {path}"), soft_wrap=True)
    console.print(
        Text(f"look closer: workbench app --runs {runs_root()}    go on: workbench run {done.recipe} --set train.steps=N"), soft_wrap=True
    )

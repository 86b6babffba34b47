"""``workbench record``: records the queries of a checkpoint for the dashboard and notebooks."""

from typing import Annotated

import typer

from workbench.commands.options import Device, Root, RunName, use_root


def record(
    run: RunName,
    checkpoint: Annotated[
        int | None,
        typer.Option("--checkpoint", metavar="STEP", help="Step of the checkpoint; by default the run's result."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", help="Record this many images, a sample that holds every class; by default all."),
    ] = None,
    device: Device = "auto",
    runs: Root = None,
) -> None:
    """Record queries: what a checkpoint predicts on a split.

    Writes the queries, decoder states and selection masks of a run's checkpoint, and of its teacher, for the dashboard, the notebooks
    and FiftyOne to show. The sizes are printed first. An earlier recording is replaced only when the new one is complete.

    Example: workbench record bccd-distilled-seed0 --split test --images 200
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.commands.progress import console_count
    from workbench.device import resolve_device
    from workbench.store.run import Run
    from workbench.tasks.record import QueryRecording

    use_root(runs)
    resolve_device(device)
    planned = QueryRecording(Run.open(run), checkpoint, split, images, device)
    sizes = planned.sizes
    group = f", up to {sizes.group_rows:,} of the teacher's queries in its decoder" if sizes.group_rows else ""
    teacher = f" and {sizes.teacher_rows:,} of the teacher" if sizes.teacher_rows else ""
    what = f"{sizes.images:,} of {sizes.of:,} images, {sizes.student_rows:,} rows of the student{group}{teacher}"
    states = f"states of {sizes.state_images:,} images, " if sizes.state_images else ""
    size = f"{states}about {sizes.bytes / 1e6:,.1f} MB"
    console.print(Text(f"{planned.run.name}, step {planned.step}, split {split}: {what}, {size}"), soft_wrap=True)
    with console_count(console, "images") as progress:
        planned.write(progress)
    console.print(Text(f"written: {planned.run.queries_path(split, planned.step)}"), soft_wrap=True)

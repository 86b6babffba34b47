"""``workbench trace``: the query store of a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text


def trace(
    run: Annotated[str, typer.Argument(help="Name of a run.")],
    checkpoint: Annotated[int | None, typer.Option("--checkpoint", help="Step of one of its checkpoints; default: its result.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    images: Annotated[int | None, typer.Option("--images", help="So many, stratified by class; default: all.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of the runs (default $WORKBENCH_RUNS or ./runs).")] = None,
) -> None:
    """Write the queries, states and masks of a checkpoint on a split; what is there of it is replaced when all is done."""
    from workbench.commands.console import console, use_root
    from workbench.commands.progress import console_count
    from workbench.tasks.record import QueryRecording

    use_root(runs)
    planned = QueryRecording(Run.open(run), checkpoint, split, images, device)
    sizes = planned.sizes
    group = f", up to {sizes.group_rows:,} of the teacher's queries in its decoder" if sizes.group_rows else ""
    teacher = f" and {sizes.teacher_rows:,} of the teacher" if sizes.teacher_rows else ""
    what = f"{sizes.images:,} of {sizes.of:,} images, {sizes.student_rows:,} rows of the student{group}{teacher}"
    size = f"states of {sizes.state_images:,} images, about {sizes.bytes / 1e6:,.1f} MB"
    console.print(Text(f"{planned.run.name}, step {planned.step}, split {split}: {what}, {size}"), soft_wrap=True)
    with console_count(console, "images") as progress:
        planned.write(progress)
    console.print(Text(f"written: {planned.run.queries_path(split, planned.step)}"), soft_wrap=True)

"""``workbench data check|shapes``: datasets."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.commands.options import Json, Verb, sub_app

data_app = sub_app("Check a dataset, or write the embedded one to a folder.")


@data_app.command("check", cls=Verb)
def data_check(
    path: Annotated[str, typer.Argument(metavar="FOLDER", help="Dataset folder.")],
    split: Annotated[str | None, typer.Option("--split", help="Check this split only.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="auto, coco, voc, kitti or yolo.")] = "auto",
    json_path: Json = None,
) -> None:
    """Say what is wrong with a dataset.

    It also says what training would do about it. Every image is opened; nothing is changed. The exit status is 1 if annotations or
    images would be lost.

    Example: workbench data check ~/bccd
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.commands.progress import console_count
    from workbench.datasets.check import check
    from workbench.files import write_json

    with console_count(console, "images") as progress:
        report = check(path, split, form, progress=progress)
    found = report.to_dict()
    console.print(Text(f"{report.path}: {report.format}"))
    print_rows([{"split": name, **counts} for name, counts in report.splits.items()], None)
    for issue in report.issues:
        console.print(Text(f"{issue.severity}: {issue}"), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, found)
    console.print("nothing is lost" if report.ok else "annotations or images would be lost: see the errors above")
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("shapes", cls=Verb)
def data_shapes(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write; it must not hold a dataset yet.")],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Another seed gives other images.")] = 0,
) -> None:
    """Write the embedded dataset to a folder in COCO format.

    Example: workbench data shapes ~/shapes
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.datasets.coco import write_coco
    from workbench.datasets.opening import open_dataset

    for split in ("train", "val", "test"):
        dataset = open_dataset("shapes", split, seed=seed)
        write_coco(dataset, out)
        console.print(Text(f"{split}: {len(dataset)} images"))

"""``workbench data check|shapes``: datasets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands.options import Json, Verb, sub_app
from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.datasets.transforms import FixedSize

SHOWN_CLASSES = 40

data_app = sub_app("Check a dataset, or write the embedded one to a folder.")


@data_app.command("check", cls=Verb)
def data_check(
    path: Annotated[str, typer.Argument(metavar="FOLDER", help="Dataset folder.")],
    split: Annotated[str | None, typer.Option("--split", help="Check this split only.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="auto, coco, voc, kitti or yolo.")] = "auto",
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Check as this recipe reads it: its format, policy, options and size.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Size that training brings images to; counts boxes that vanish there.")
    ] = None,
    json_path: Json = None,
) -> None:
    """Say what a dataset holds and what is wrong with it.

    It also says what training would do about it. Every image that has changed since the last check is opened; nothing is changed. The
    exit status is 1 if annotations or images would be lost.

    Example: workbench data check ~/bccd --recipe bccd
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.commands.progress import console_count
    from workbench.datasets.check import check
    from workbench.files import write_json

    options: dict[str, Any] = {"format": form, "resize": _size(size)}
    if recipe is not None:
        from workbench.recipe.loading import load_recipe, recipe_path

        data = load_recipe(recipe_path(recipe)).data
        transform = data.evaluation_transform or data.transform
        options = {"format": data.format if form == "auto" else form, "policy": data.policy, **data.options}
        options["resize"] = _size(size) or transform.resize
    with console_count(console, "images") as progress:
        report = check(path, split, progress=progress, **options)
    for line in report.summary():
        console.print(Text(line), soft_wrap=True)
    print_rows([{"split": name, **{what: f"{n:,}" for what, n in counts.items()}} for name, counts in report.splits.items()], None)
    rows = report.class_rows()
    print_rows(rows[:SHOWN_CLASSES], None)
    if len(rows) > SHOWN_CLASSES:
        console.print(Text(f"... and {len(rows) - SHOWN_CLASSES:,} more classes; --json FILE lists all"), soft_wrap=True)
    for issue in report.issues:
        console.print(Text(f"{issue.severity}: {issue}"), soft_wrap=True)
    for remark in report.remarks:
        console.print(Text(f"look: {remark}"), soft_wrap=True)
    if json_path is not None:
        write_json(json_path, report.to_dict())
    looks = f"; worth a look: {len(report.remarks)}" if report.remarks else ""
    console.print(Text(("nothing is lost" if report.ok else "annotations or images would be lost: see the errors above") + looks))
    if not report.ok:
        raise typer.Exit(1)


def _size(text: str | None) -> "FixedSize | None":
    """Reads ``WxH``, or one number for a square."""
    from workbench.datasets.transforms import FixedSize

    if text is None:
        return None
    try:
        sides = [int(side) for side in text.lower().split("x")]
        return FixedSize(width=sides[0], height=sides[-1]) if len(sides) <= 2 else FixedSize.model_validate({})
    except ValueError as error:
        raise ConfigError(f"--size {text} must look like 640x480, width first, or 320 for a square.") from error


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

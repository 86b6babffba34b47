"""``workbench evaluate``: the AP of a detector, and what its errors cost."""

from typing import Annotated

import typer

from workbench.commands.options import Detector, Device, Json, Root, use_root


def evaluate(
    detector: Detector,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="Dataset folder, or shapes; by default the run's own data, else shapes."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of the data to evaluate on.")] = "val",
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", help="Step of a run's checkpoint; by default the run's result.")
    ] = None,
    device: Device = "auto",
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """Measure a detector's AP and what its errors cost.

    The table has the twelve COCO numbers with 95 % intervals, the AP of each class, the AP lost to each type of error, and on KITTI
    data KITTI's own AP, all in percent. With --json they are shares, 0 to 1.

    Example: workbench evaluate bccd-distilled-seed0 --split test
    """
    from workbench.commands.console import percent, print_rows
    from workbench.files import write_json
    from workbench.tasks.evaluate import evaluate as evaluate_detector

    use_root(runs)
    rows = evaluate_detector(detector, data, split, step, device).rows()
    shown = [{f"split {split}, in %": _title(row["what"]), "": percent(row["value"]), **row} for row in rows]
    for row in shown:
        row |= {"low": percent(row["low"]), "high": percent(row["high"])}
        del row["what"], row["value"]
    print_rows(shown)
    if json_path is not None:
        write_json(json_path, rows)


def _title(what: str) -> str:
    """Returns the usual name of a number: AP, AP50, AR100, AP small."""
    name, _, size = what.partition("_")
    return f"{name.upper()} {size}".rstrip() if name.startswith(("ap", "ar")) and " " not in what else what

"""``workbench export``: a detector for production."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.commands.options import Detector, Root, use_root


def export(
    detector: Detector,
    onnx: Annotated[bool, typer.Option("--onnx/--transformers", help="Write one ONNX file, or a folder for transformers.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File or folder to write; by default ./NAME.onnx or ./NAME-transformers."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FOLDER", help="Dataset to check the export on, or shapes; by default the run's own data."),
    ] = None,
    nms: Annotated[bool, typer.Option("--nms", help="Put the suppression of duplicates into the ONNX file, and masks.")] = False,
    runs: Root = None,
) -> None:
    """Write a detector as ONNX, or for transformers.

    The export and the detector both run on real images first. If their answers differ, nothing is written.

    Example: workbench export bccd-distilled-seed0 --onnx
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.commands.progress import console_count
    from workbench.errors import ExportError
    from workbench.export.onnx_file import export_onnx
    from workbench.export.transformers_folder import export_transformers

    if nms and not onnx:
        raise ExportError("--nms is about an ONNX file, and --transformers writes none. Leave one of them out.")
    use_root(runs)
    name = Path(detector).name
    where = out or Path(f"{name}.onnx" if onnx else f"{name}-transformers")
    with console_count(console, "images checked") as progress:
        agreement = export_onnx(detector, where, data, progress, nms) if onnx else export_transformers(detector, where, data, progress)
    console.print(Text(str(agreement)), soft_wrap=True)
    console.print(Text(f"written: {where}"), soft_wrap=True)

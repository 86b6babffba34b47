"""``workbench export``: a detector for production."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text


def export(
    detector: Annotated[str, typer.Argument(metavar="RUN", help="A run, a detector folder, or an embedded detector.")],
    onnx: Annotated[bool, typer.Option("--onnx/--transformers", help="One ONNX file, or a folder for transformers.")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="File or folder to write (default: ./RUN.onnx or ./RUN-transformers).")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Dataset folder, or shapes, to check on; default: the run's own.")] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of the runs (default $WORKBENCH_RUNS or ./runs).")] = None,
) -> None:
    """Write a detector for production; one that does not answer as the detector on real images is refused and not written."""
    from workbench.commands.console import console, use_root
    from workbench.commands.progress import console_count
    from workbench.export.onnx_file import export_onnx
    from workbench.export.transformers_folder import export_transformers

    use_root(runs)
    name = Path(detector).name
    where = out or Path(f"{name}.onnx" if onnx else f"{name}-transformers")
    with console_count(console, "images checked") as progress:
        agreement = (export_onnx if onnx else export_transformers)(detector, where, data, progress)
    console.print(Text(str(agreement)), soft_wrap=True)
    console.print(Text(f"written: {where}"), soft_wrap=True)

"""``workbench convert``: public checkpoints become safetensors or detectors."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.errors import ConfigError


def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth or .bin file of tensors; with --layout also a .safetensors file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="File to write, by default model.safetensors; with --layout, the folder to write."),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="LAYOUT", help="Whose names the checkpoint uses. It then becomes a detector folder."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG", help="The checkpoint's model and classes: a YAML file, or the name of a shipped one."),
    ] = None,
) -> None:
    """Turn a public checkpoint into safetensors, or into a detector.

    This is the only verb that reads a .pth file. It loads tensors and nothing else, so a hostile file cannot run code.

    Example: workbench convert checkpoint.pth --out model.safetensors
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.tasks.convert import convert as convert_file
    from workbench.tasks.convert import convert_detector

    if layout is None:
        if config is not None:
            raise ConfigError("--config works only with --layout. Add --layout, or leave --config out.")
        file = out or Path("model.safetensors")
        console.print(Text(f"{convert_file(source, file)} tensors written to {file}"))
        return
    if config is None or out is None:
        raise ConfigError("--layout needs --config FILE, the model and classes of the checkpoint, and --out FOLDER.")
    console.print(Text(f"{convert_detector(source, layout, config, out):,} parameters written to {out}"))

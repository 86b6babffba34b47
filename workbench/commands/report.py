"""``workbench report``: one page and one file of numbers about runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text


def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs.")],
    out: Annotated[Path, typer.Option("--out", help="The page; the numbers lie beside it as .json.")] = Path("report.html"),
    split: Annotated[str, typer.Option("--split", help="Whose queries are looked at: val or test.")] = "val",
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of the runs (default $WORKBENCH_RUNS or ./runs).")] = None,
) -> None:
    """Write one HTML page that needs nothing else, and all its numbers as JSON: results, verdicts, diagnoses, errors, query value."""
    from workbench.commands.console import console, use_root
    from workbench.store.run import Run
    from workbench.views.report import write_report

    use_root(runs)
    numbers = write_report([Run.open(name) for name in dict.fromkeys(names)], out, split)
    console.print(Text(f"written: {out} and {numbers}"), soft_wrap=True)

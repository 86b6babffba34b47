"""``workbench report``: writes one page, and one file of numbers, about runs."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.commands.options import Root, Split, use_root


def report(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, or their paths.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write; its numbers go beside it as .json.")] = Path(
        "report.html"
    ),
    split: Split = "val",
    runs: Root = None,
) -> None:
    """Write one HTML page about runs, and its numbers as JSON.

    The page holds results, verdicts, diagnoses, errors and the value of queries. It needs no other file and no network.

    Example: workbench report bccd-undistilled-seed0 bccd-distilled-seed0
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.store.run import Run
    from workbench.views.report import write_report

    use_root(runs)
    numbers = write_report([Run.open(name) for name in dict.fromkeys(names)], out, split)
    console.print(Text(f"written: {out} and {numbers}"), soft_wrap=True)

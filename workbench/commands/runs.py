"""``workbench runs list|show|rm``: lists, shows and removes runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands.options import Json, Root, RunName, Split, Verb, sub_app, use_root
from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.store.run import Run

runs_app = sub_app("List, show and remove runs.")


@runs_app.command("list", cls=Verb)
def runs_list(runs: Root = None, json_path: Json = None) -> None:
    """List all runs with their state and their last AP."""
    from workbench.commands.console import percent, print_rows
    from workbench.files import write_json
    from workbench.store.run import list_runs

    use_root(runs)
    rows = [_status(run) for run in list_runs()]
    print_rows([{**row, "AP": percent(row["AP"])} for row in rows])
    if json_path is not None:
        write_json(json_path, rows)


@runs_app.command("show", cls=Verb)
def runs_show(name: RunName, split: Split = "val", runs: Root = None, json_path: Json = None) -> None:
    """Show everything that is known about a run."""
    from rich.text import Text

    from workbench.commands.console import console, show_runs
    from workbench.commands.terminal import printable
    from workbench.store.run import Run

    use_root(runs)
    run = Run.open(name)
    show_runs([run], json_path, split)
    repeats = run.info().get("reproducibility")
    if repeats is not None:
        console.print(Text(f"reproducibility: {printable(repeats['kind'])}: {printable(repeats['why'])}"))
    if (state := run.state()) != "done":
        console.print(f"state: {state}")


@runs_app.command("rm", cls=Verb)
def runs_rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, or their paths.")],
    runs: Root = None,
) -> None:
    """Remove runs and everything in their folders.

    Nothing is removed unless all of them exist.
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.store.run import Run

    use_root(runs)
    for found in [Run.open(name) for name in names]:
        found.remove()
        console.print(Text(f"removed {found.name}"))


def _status(run: "Run") -> dict[str, Any]:
    try:
        last, state = (run.evaluations() or [{}])[-1], run.state()
    except WorkbenchError as error:
        # one damaged run must not hide the others
        return {"run": run.name, "state": f"unreadable: {error}", "split": None, "step": None, "AP": None}
    return {"run": run.name, "state": state, "split": last.get("split"), "step": last.get("step"), "AP": last.get("coco", {}).get("ap")}

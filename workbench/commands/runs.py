"""``workbench runs``: lists, finds, shows, labels, renames and removes runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands.options import Json, Root, RunName, Split, Verb, sub_app, use_root
from workbench.errors import RunError, WorkbenchError

if TYPE_CHECKING:
    from workbench.store.changes import Change
    from workbench.store.run import Run

runs_app = sub_app("List, find, label, rename and remove runs.")
RunNames = Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, or their paths.")]


def _wanted(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar=name.upper(), help=f"Only runs {what}. Repeat it for more.")


@runs_app.command("list", cls=Verb)
def runs_list(
    search: Annotated[str, typer.Option("--search", metavar="WORDS", help="Only runs whose name, tags or note have all words.")] = "",
    tag: Annotated[list[str] | None, _wanted("tag", "with this tag")] = None,
    recipe: Annotated[list[str] | None, _wanted("recipe", "of this recipe")] = None,
    arm: Annotated[list[str] | None, _wanted("arm", "of this arm")] = None,
    family: Annotated[list[str] | None, _wanted("family", "whose student is of this family")] = None,
    seed: Annotated[list[str] | None, _wanted("seed", "of this seed")] = None,
    state: Annotated[list[str] | None, _wanted("state", "in this state, such as done or failed")] = None,
    data: Annotated[list[str] | None, _wanted("data", "on this data")] = None,
    since: Annotated[str, typer.Option("--since", metavar="DAY", help="Only runs made on this day (UTC) or later: 2026-11-30.")] = "",
    saved: Annotated[str | None, typer.Option("--set", metavar="SET", help="Only runs of this saved set.")] = None,
    archived: Annotated[bool, typer.Option("--archived", help="List the archived runs, which are left out otherwise.")] = False,
    sort: Annotated[str, typer.Option("--sort", metavar="ORDER", help="oldest, newest, AP, name or comparison.")] = "oldest",
    runs: Root = None,
    json_path: Json = None,
) -> None:
    """List runs with their state, last AP and tags.

    Example: workbench runs list --tag paper --state done --sort AP
    """
    from workbench.commands.console import percent, print_rows
    from workbench.files import write_json
    from workbench.store.run import list_runs, runs_root
    from workbench.views.catalog import catalog
    from workbench.views.run_list import ORDERS, Wanted, matching

    use_root(runs)
    if sort not in ORDERS:
        raise RunError(f"'{sort}' is no order of runs. Orders: {', '.join(ORDERS)}.")
    facets = {"tag": tag, "recipe": recipe, "arm": arm, "family": family, "seed": seed, "state": state, "data": data}
    asked = Wanted(search, {name: values for name, values in facets.items() if values}, since, archived=archived)
    entries = catalog(runs_root())
    if saved is not None:
        names = _set(saved)
        entries = [entry for entry in entries if entry.run.name in names]
    found = matching(entries, asked, sort)
    if asked == Wanted() and saved is None and sort == "oldest":
        away = {entry.run.name for entry in entries if entry.labels.archived}
        rows = [_status(run) for run in list_runs() if run.name not in away]  # those that cannot be read too
    else:
        rows = [_status(entry.run) for entry in found]
    tags = {entry.run.name: list(entry.labels.tags) for entry in entries}
    rows = [{**row, "tags": tags.get(row["run"], [])} for row in rows]
    print_rows([{**row, "AP": percent(row["AP"]), "tags": ", ".join(row["tags"])} for row in rows])
    if json_path is not None:
        write_json(json_path, rows)


@runs_app.command("show", cls=Verb)
def runs_show(name: RunName, split: Split = "val", runs: Root = None, json_path: Json = None) -> None:
    """Show everything that is known about a run.

    Example: workbench runs show shapes-distilled-seed0
    """
    from rich.text import Text

    from workbench.commands.console import console, show_runs
    from workbench.commands.terminal import printable
    from workbench.store.labels import read_labels
    from workbench.store.run import Run

    use_root(runs)
    run = Run.open(name)
    show_runs([run], json_path, split)
    repeats = run.info().get("reproducibility")
    if repeats is not None:
        console.print(Text(f"reproducibility: {printable(repeats['kind'])}: {printable(repeats['why'])}"))
    if (state := run.state()) != "done":
        console.print(f"state: {state}")
    labels = read_labels(run)
    for what, said in (("tags", ", ".join(labels.tags)), ("note", labels.note), ("archived", "yes" if labels.archived else "")):
        if said:
            console.print(Text(f"{what}: {said}"))


@runs_app.command("tag", cls=Verb)
def runs_tag(
    names: RunNames,
    add: Annotated[list[str] | None, typer.Option("--add", metavar="TAG", help="Tag to add. Repeat it for more.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="TAG", help="Tag to take off. Repeat it for more.")] = None,
    runs: Root = None,
) -> None:
    """Add tags to runs, or take them off.

    Example: workbench runs tag shapes-distilled-seed0 --add paper
    """
    from workbench.store.changes import tag

    use_root(runs)
    _say(tag(_opened(names), add or (), remove or ()))


@runs_app.command("note", cls=Verb)
def runs_note(
    name: RunName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The note, in place of the one before. '' removes it.")],
    runs: Root = None,
) -> None:
    """Write a note to a run.

    Example: workbench runs note shapes-distilled-seed0 'loss jumps at step 400'
    """
    from workbench.store.changes import note

    use_root(runs)
    _say(note(_opened([name]), text))


@runs_app.command("archive", cls=Verb)
def runs_archive(
    names: RunNames,
    back: Annotated[bool, typer.Option("--back", help="Take the runs back instead.")] = False,
    runs: Root = None,
) -> None:
    """Leave runs out of lists and pages; their files stay.

    Example: workbench runs archive shapes-distilled-seed0
    """
    from workbench.store.changes import archive

    use_root(runs)
    _say(archive(_opened(names), not back))


@runs_app.command("rename", cls=Verb)
def runs_rename(
    name: RunName,
    new: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    runs: Root = None,
) -> None:
    """Give a run another name.

    Saved sets and the pinned baseline follow. A run that taught others keeps its name, because they know it by that.

    Example: workbench runs rename shapes-distilled-seed0 shapes-first
    """
    from workbench.store.changes import rename

    use_root(runs)
    _say(rename(_opened([name])[0], new))


@runs_app.command("rm", cls=Verb)
def runs_rm(names: RunNames, runs: Root = None) -> None:
    """Move runs to the trash.

    Nothing is moved unless all of them exist. 'workbench runs restore' brings them back, 'workbench runs empty' frees their space.

    Example: workbench runs rm shapes-distilled-seed0
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.store.changes import delete

    use_root(runs)
    found = _opened(names)
    delete(found)
    for run in found:
        console.print(Text(f"removed {run.name}"))
    console.print("'workbench runs restore' brings runs back, 'workbench runs empty' removes them for good and frees their space.")


@runs_app.command("restore", cls=Verb)
def runs_restore(
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs in the trash.")],
    runs: Root = None,
) -> None:
    """Bring removed runs back out of the trash.

    Example: workbench runs restore shapes-distilled-seed0
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.store.changes import restore
    from workbench.store.run import runs_root

    use_root(runs)
    for run in restore(Path(runs_root()), names):
        console.print(Text(f"brought back {run.name}"))


@runs_app.command("empty", cls=Verb)
def runs_empty(runs: Root = None) -> None:
    """Remove what is in the trash for good.

    Example: workbench runs empty
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.store.changes import empty_trash
    from workbench.store.run import runs_root

    use_root(runs)
    gone = empty_trash(Path(runs_root()))
    console.print(Text(f"removed for good: {', '.join(gone)}" if gone else "the trash is empty"))


@runs_app.command("save", cls=Verb)
def runs_save(
    name: Annotated[str, typer.Argument(metavar="SET", help="Name of the set.")],
    names: RunNames,
    runs: Root = None,
) -> None:
    """Save runs as a set that lists and pages open.

    Example: workbench runs save seeds shapes-distilled-seed0 shapes-distilled-seed1
    """
    from workbench.store.changes import keep_set
    from workbench.store.run import runs_root

    use_root(runs)
    _say(keep_set(runs_root(), name, [run.name for run in _opened(names)]))


@runs_app.command("pin", cls=Verb)
def runs_pin(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of the run; without it the baseline is unpinned.")] = None,
    runs: Root = None,
) -> None:
    """Pin the run that every page compares with.

    Without a pinned run, pages compare with the undistilled run of the same recipe, data and seed.

    Example: workbench runs pin shapes-undistilled-seed0
    """
    from workbench.store.changes import pin_baseline
    from workbench.store.run import runs_root

    use_root(runs)
    _say(pin_baseline(runs_root(), _opened([name])[0].name if name is not None else None))


def _opened(names: list[str]) -> "list[Run]":
    from workbench.store.run import Run

    return [Run.open(name) for name in names]


def _set(name: str) -> tuple[str, ...]:
    from workbench.store.run import runs_root
    from workbench.store.sets import read_sets

    sets = read_sets(runs_root()).sets
    if name not in sets:
        raise RunError(f"there is no set '{name}' in {runs_root()}. Sets there: {', '.join(sets) or 'none'}.")
    return sets[name]


def _say(change: "Change") -> None:
    from rich.text import Text

    from workbench.commands.console import console

    console.print(Text(change.said), soft_wrap=True)


def _status(run: "Run") -> dict[str, Any]:
    try:
        last, state = (run.evaluations() or [{}])[-1], run.state()
    except WorkbenchError as error:
        # one damaged run must not hide the others
        return {"run": run.name, "state": f"unreadable: {error}", "split": None, "step": None, "AP": None}
    return {"run": run.name, "state": state, "split": last.get("split"), "step": last.get("step"), "AP": last.get("coco", {}).get("ap")}

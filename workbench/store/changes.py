"""Changes what a folder of runs shows: tags, notes, names, what is put away or thrown away. Every change can be undone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.errors import RunError, WorkbenchError
from workbench.store.labels import Labels, read_labels, write_labels
from workbench.store.run import Run, list_runs
from workbench.store.sets import pin, read_sets, remove_set, renamed, save_set, write_sets
from workbench.store.trash import Thrown, bring_back, rename_run, throw_away, thrown_away


@dataclass(frozen=True)
class Change:
    """A change that was made.

    Attributes:
        said: What was done, as a sentence without its full stop.
        undo: Puts back what was there before; raises a ``WorkbenchError`` where that is no longer possible.
    """

    said: str
    undo: Callable[[], None]


def tag(runs: Sequence[Run], add: Iterable[str] = (), remove: Iterable[str] = ()) -> Change:
    """Adds tags to runs and removes others.

    Raises:
        RunError: a tag cannot be one, or a run would have too many; no run is changed.
    """
    add, remove = list(add), list(remove)
    words = [f"tagged {_named(runs)} with {_quoted(add)}"] * bool(add) + [f"took {_quoted(remove)} off {_named(runs)}"] * bool(remove)
    return _label(runs, lambda labels: labels.tagged(add, remove), " and ".join(words) or "changed nothing")


def note(runs: Sequence[Run], text: str) -> Change:
    """Replaces the note of runs; "" removes it."""
    said = f"wrote a note to {_named(runs)}" if text.strip() else f"removed the note of {_named(runs)}"
    return _label(runs, lambda labels: replace(labels, note=text.strip()), said)


def archive(runs: Sequence[Run], archived: bool = True) -> Change:
    """Puts runs away, so that lists leave them out, or takes them back."""
    return _label(runs, lambda labels: replace(labels, archived=archived), f"{'archived' if archived else 'took back'} {_named(runs)}")


def rename(run: Run, name: str) -> Change:
    """Gives a run another name; saved sets and the pinned baseline follow it.

    Raises:
        RunError: the name cannot be one or is taken, a process is writing to the run, or other runs name it as their teacher.
    """
    taught = [other.name for other in list_runs(run.path.parent) if _teacher(other) == run.name]
    if taught:
        raise RunError(f"run '{run.name}' is the teacher of {_named_texts(taught)}, which would no longer find it. It keeps its name.")
    after, root = rename_run(run, name), run.path.parent
    renamed(root, run.name, name)

    def undo() -> None:
        rename_run(after, run.name)
        renamed(root, name, run.name)

    return Change(f"renamed {run.name} to {name}", undo)


def delete(runs: Sequence[Run]) -> Change:
    """Moves runs into the trash of their folder.

    Raises:
        RunError: a run cannot be moved; those before it are brought back.
    """
    thrown: list[Thrown] = []

    def undo() -> None:
        for one in reversed(thrown):
            bring_back(one)

    try:
        for run in runs:
            thrown.append(throw_away(run))
    except WorkbenchError:
        undo()
        raise
    return Change(f"moved {_named(runs)} to the trash", undo)


def restore(root: Path, names: Sequence[str]) -> list[Run]:
    """Brings the runs of these names back out of the trash; of several of one name the last one thrown away.

    Raises:
        RunError: the trash has no run of a name, or another run has it by now; nothing is brought back.
    """
    there: dict[str, Thrown] = {}
    for one in thrown_away(root):
        there.setdefault(one.name, one)
    for name in names:
        if name not in there:
            raise RunError(f"there is no run '{name}' in the trash of {root}. Runs there: {', '.join(sorted(there)) or 'none'}.")
    return [bring_back(there[name]) for name in names]


def empty_trash(root: Path) -> list[str]:
    """Removes the runs in the trash of a folder for good, and returns their names."""
    thrown = thrown_away(root)
    for one in thrown:
        Run(one.path).remove()
    return [one.name for one in thrown]


def keep_set(root: Path, name: str, runs: Sequence[str]) -> Change:
    """Saves a set of runs under a name, in place of the set that had it."""
    before = read_sets(root)
    save_set(root, name, runs)
    return Change(f"saved the set '{name.strip()}'", lambda: write_sets(root, before))


def drop_set(root: Path, name: str) -> Change:
    """Removes a saved set; its runs stay."""
    before = read_sets(root)
    remove_set(root, name)
    return Change(f"removed the set '{name}'", lambda: write_sets(root, before))


def pin_baseline(root: Path, run: str | None) -> Change:
    """Makes a run the baseline that pages open with; None goes back to the undistilled run of the same recipe and seed."""
    before = read_sets(root)
    pin(root, run)
    said = f"pinned {run} as the baseline" if run is not None else "unpinned the baseline"
    return Change(said, lambda: write_sets(root, before))


def _label(runs: Sequence[Run], change: Callable[[Labels], Labels], said: str) -> Change:
    before = [(run, read_labels(run)) for run in runs]
    after = [(run, change(labels)) for run, labels in before]  # all are checked before one is written
    for run, labels in after:
        write_labels(run, labels)

    def undo() -> None:
        for run, labels in before:
            write_labels(run, labels)

    return Change(said, undo)


def _teacher(run: Run) -> str | None:
    try:
        return run.info().get("teacher")
    except WorkbenchError:
        return None


def _named(runs: Sequence[Run]) -> str:
    return _named_texts([run.name for run in runs])


def _named_texts(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f"'{word.strip()}'" for word in words)

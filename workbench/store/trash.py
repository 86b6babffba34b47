"""Moves runs into the trash of their folder, and back; a run in the trash is in no list until it is brought back."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workbench.errors import RunError
from workbench.files import sync_folder
from workbench.remote import is_remote
from workbench.store.run import Run, run_path

TRASH = ".trash"
_MARK = "~"  # between the name of a run and the time at which it was thrown away; no name holds it


@dataclass(frozen=True)
class Thrown:
    """A run in the trash.

    Attributes:
        name: Name of the run.
        when: Time at which it was thrown away (UTC), as text that sorts.
        path: Its folder in the trash.
    """

    name: str
    when: str
    path: Path


def throw_away(run: Run) -> Thrown:
    """Moves a run into the trash of its folder.

    Raises:
        RunError: a process is writing to it, it is remote or a link, or it cannot be moved.
    """
    run.check_removable()
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    thrown = Thrown(run.name, when, run.path.parent / TRASH / f"{run.name}{_MARK}{when}")
    with run.locked():
        _move(run.path, thrown.path)
    return thrown


def thrown_away(root: Path) -> list[Thrown]:
    """Lists the runs in the trash of a folder of runs, the last one thrown away first."""
    if is_remote(root) or not (root / TRASH).is_dir():
        return []
    named = [(path, *path.name.rpartition(_MARK)) for path in (root / TRASH).iterdir() if (path / "run.json").is_file()]
    return sorted((Thrown(name, when, path) for path, name, mark, when in named if mark), key=lambda one: one.when, reverse=True)


def bring_back(thrown: Thrown) -> Run:
    """Moves a run out of the trash to where it was.

    Raises:
        RunError: it is no longer in the trash, another run has its name by now, or it cannot be moved.
    """
    path = run_path(thrown.name, thrown.path.parent.parent)
    if not thrown.path.is_dir():
        raise RunError(f"run '{thrown.name}' is no longer in the trash.")
    if path.exists():
        raise RunError(f"another run is called '{thrown.name}' by now. Rename it, then bring the old one back.")
    _move(thrown.path, path)
    return Run(path)


def rename_run(run: Run, name: str) -> Run:
    """Gives a run another name, which is that of its folder.

    Raises:
        RunError: the name is not a plain file name or is taken, a process is writing to the run, or it is remote or a link.
    """
    path = run_path(name, run.path.parent)
    run.check_removable()
    if path.exists():
        raise RunError(f"there is already a run or file '{name}' in {run.path.parent}. Choose another name.")
    with run.locked():
        _move(run.path, path)
    return Run(path)


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(source, target)
        sync_folder(target.parent)
        sync_folder(source.parent)
    except OSError as error:
        raise RunError(f"cannot move {source} to {target}: {error.strerror or error}. It stays where it is.") from error

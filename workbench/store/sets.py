"""Keeps the named sets of runs of a folder, and the run that is pinned there as the baseline of every comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from workbench.errors import RunError
from workbench.files import read_json, write_json
from workbench.remote import is_remote
from workbench.store.schemas import StoredSets

SETS = "sets.json"
LONGEST_NAME = 60


@dataclass(frozen=True)
class Sets:
    """What a folder of runs keeps beside its runs.

    Attributes:
        sets: Names of the runs of each saved set, by the name of the set.
        baseline: Name of the pinned run; None if none is pinned.
    """

    sets: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    baseline: str | None = None


def read_sets(root: Path) -> Sets:
    """Returns the saved sets and the pinned baseline of a folder of runs.

    Raises:
        WorkbenchError: the file is damaged.
    """
    if not (root / SETS).exists():
        return Sets()
    kept = read_json(root / SETS, StoredSets)
    return Sets({name: tuple(runs) for name, runs in kept.get("sets", {}).items()}, kept.get("baseline"))


def save_set(root: Path, name: str, runs: Sequence[str]) -> None:
    """Saves a set of runs under a name, in place of the set that had this name.

    Raises:
        RunError: the name is empty or too long, or the folder is remote.
        WorkbenchError: the folder cannot be written.
    """
    name = name.strip()
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise RunError(f"{name[:LONGEST_NAME]!r} cannot be the name of a set: use 1 to {LONGEST_NAME} letters on one line.")
    before = read_sets(root)
    write_sets(root, Sets(before.sets | {name: tuple(runs)}, before.baseline))


def remove_set(root: Path, name: str) -> None:
    """Removes a saved set; its runs stay.

    Raises:
        RunError: there is no such set.
    """
    before = read_sets(root)
    if name not in before.sets:
        raise RunError(f"there is no set '{name}' in {root}. Sets there: {', '.join(before.sets) or 'none'}.")
    write_sets(root, Sets({other: runs for other, runs in before.sets.items() if other != name}, before.baseline))


def pin(root: Path, run: str | None) -> None:
    """Makes a run the baseline that every page opens with; None goes back to the undistilled run of the same recipe and seed."""
    write_sets(root, Sets(read_sets(root).sets, run))


def renamed(root: Path, old: str, new: str) -> None:
    """Puts the new name of a run into every set that holds the old one."""
    before = read_sets(root)
    sets = {name: tuple(new if run == old else run for run in runs) for name, runs in before.sets.items()}
    after = Sets(sets, new if before.baseline == old else before.baseline)
    if after != before:
        write_sets(root, after)


def write_sets(root: Path, sets: Sets) -> None:
    """Replaces the saved sets of a folder of runs.

    Raises:
        RunError: the folder is remote.
        WorkbenchError: it cannot be written.
    """
    if is_remote(root):
        raise RunError(f"{root} is remote, and the workbench only reads remote runs, so nothing is saved there.")
    write_json(root / SETS, {"sets": {name: list(runs) for name, runs in sets.sets.items()}, "baseline": sets.baseline})

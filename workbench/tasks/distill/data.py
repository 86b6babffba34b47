"""Finds the data of a job and its splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.datasets.opening import find_format
from workbench.datasets.reading import match_split
from workbench.errors import DataError

ROLES = ("train", "val", "test")


@dataclass(frozen=True)
class FoundData:
    """The data of a job.

    Attributes:
        path: Its folder or file, as an absolute path.
        format: Its format.
        splits: Name of the split for ``train``, ``val`` and ``test``.
    """

    path: str
    format: str
    splits: dict[str, str]

    def values(self) -> dict[str, Any]:
        """Returns the keys of ``data:`` in a recipe."""
        return {"path": self.path, "format": self.format, **self.splits}


def find_data(path: str) -> FoundData:
    """Finds the data and its splits.

    Raises:
        DataError: there is no dataset, or it lacks a split.
    """
    if path == "shapes":
        return FoundData(path, "shapes", {role: role for role in ROLES})
    found, root = find_format(Path(path))
    there = found.splits(root)
    splits = {role: match_split(role, there) for role in ROLES}
    known = {role: split for role, split in splits.items() if split is not None}
    if missing := [role for role in ROLES if role not in known]:
        raise DataError(f"{root} has the splits {', '.join(there) or 'none'}, and none of them is for {', '.join(missing)}.")
    return FoundData(str(Path(path).resolve()), found.name, known)

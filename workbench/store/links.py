"""Finds links in a run's folder that lead out of the folder of runs. Nothing behind them is read, shown or removed."""

import os
from pathlib import Path

from workbench.remote import is_remote


def lies_below(path: Path, folder: Path) -> bool:
    """Returns True if a path, with all links followed, lies in a folder; remote paths have no links. Links in a circle lie nowhere."""
    try:
        return is_remote(path) or path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # RuntimeError is what Python 3.11 says of a circle
        return False


def link_that_leads_out(folder: Path) -> str:
    """Returns the folder of a run, or a link in it, that leads out of the folder of runs; "" if there is none."""
    if is_remote(folder):
        return ""
    root = folder.parent
    if not lies_below(folder, root):
        return folder.name
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not lies_below(path, root):
                return str(path.relative_to(root))
    return ""

"""The folder of searches: where it lies, and which recipes the searches in it have found."""

import os
from pathlib import Path

DEFAULT_ROOT = Path("searches")


def searches_root() -> Path:
    """Returns the folder of searches: ``$WORKBENCH_SEARCHES``, or else ``./searches``."""
    return Path(os.environ.get("WORKBENCH_SEARCHES") or DEFAULT_ROOT)


def search_folders(root: Path | None = None) -> list[Path]:
    """Returns the folders of all searches, the one whose journal changed last first."""
    folders = [path.parent for path in (root or searches_root()).glob("*/study.json")]
    return sorted(folders, key=lambda folder: (-changed(folder), folder.name))


def changed(folder: Path) -> float:
    """Returns when the journal of a search changed last, as seconds since 1970; 0 if there is none."""
    try:
        return (folder / "journal.log").stat().st_mtime
    except OSError:
        return 0.0


def found_recipes(root: Path | None = None) -> dict[str, Path]:
    """Returns the recipes that searches have found, by name (``found/NAME``)."""
    return {f"found/{path.stem}": path for path in sorted((root or searches_root()).glob("*/found/*.yaml"))}

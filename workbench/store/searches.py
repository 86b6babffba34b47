"""The folder of searches: where it lies, and which recipes the searches in it have found."""

import os
from pathlib import Path

DEFAULT_ROOT = Path("searches")


def searches_root() -> Path:
    """Returns the folder of searches: ``$WORKBENCH_SEARCHES``, or else ``./searches``."""
    return Path(os.environ.get("WORKBENCH_SEARCHES") or DEFAULT_ROOT)


def found_recipes(root: Path | None = None) -> dict[str, Path]:
    """Returns the recipes that searches have found, by name (``found/NAME``)."""
    return {f"found/{path.stem}": path for path in sorted((root or searches_root()).glob("*/found/*.yaml"))}

"""Finds the app, the recipes and the embedded data: beside the package in a checkout, inside it in a wheel."""

import hashlib
import os
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Literal

from workbench.errors import WorkbenchError


def checkout_root() -> Path | None:
    """Returns the root of the checkout this package runs from; None if it was installed from a wheel."""
    package = Path(str(files("workbench")))
    return None if (package / "_share").is_dir() else package.parent


def named_file(name: str) -> Path | None:
    """Returns the file that a user has named: by a path with a separator, or by a name with a suffix. None if there is no such file.

    A bare word is the name of something that comes with the workbench. A file of that name in the current folder does not replace it.
    """
    path = Path(name)
    try:
        return path if (path.suffix or "/" in name or os.sep in name) and path.is_file() else None
    except OSError:  # a name that no file can have
        return None


def share_path(kind: Literal["app", "recipes", "data"]) -> Path:
    """Returns the folder of the given kind.

    Raises:
        WorkbenchError: the folder is missing, so the installation is incomplete.
    """
    root = checkout_root() or Path(str(files("workbench"))) / "_share"
    path = root / kind
    if not path.is_dir():
        raise WorkbenchError(f"the folder '{kind}' is missing at {path}. Install workbench again, or restore the checkout.")
    return path


def code_hash() -> str:
    """Returns the hash of every Python file of the package: equal only where the same code reads a setting."""
    root = Path(str(files("workbench")))
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def code_commit() -> str | None:
    """Returns the commit of the checkout this package runs from, with ``+`` if tracked files differ from it; None outside git.

    Changed benchmark results do not count: the code writes them, and they do not change it.
    """
    root = checkout_root()
    if root is None or not (root / ".git").exists():
        return None
    status = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"]
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changes = subprocess.run(status, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")

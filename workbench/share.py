"""Where the app, the recipes and the embedded data lie: beside the package in a checkout, inside it in a wheel."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from workbench.errors import WorkbenchError


def checkout_root() -> Path | None:
    """The root of the checkout this package runs from; None when it was installed from a wheel."""
    package = Path(str(files("workbench")))
    return None if (package / "_share").is_dir() else package.parent


def share_path(kind: Literal["app", "recipes", "data"]) -> Path:
    """The folder of the given kind.

    Raises:
        WorkbenchError: the folder is missing, so the installation is not whole.
    """
    root = checkout_root() or Path(str(files("workbench"))) / "_share"
    path = root / kind
    if not path.is_dir():
        raise WorkbenchError(f"the folder '{kind}' is missing at {path}. Install workbench again, or restore the checkout.")
    return path

"""From a path to a ``Dataset``: which format it is, and what to say when it is none."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workbench.datasets.base import Dataset
from workbench.datasets.issues import Policy
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.errors import ConfigError, DataError


def open_dataset(path: str | Path, split: str, format: str = "auto", policy: Policy | None = None, **options: Any) -> Dataset:
    """Opens one split.

    Args:
        path: a folder or file, or ``shapes`` for the embedded generator.
        split: its name.
        format: auto, shapes.
        policy: what to do about problems in the files.
        options: of the format.

    Raises:
        DataError: the dataset cannot be used; the message says what was seen and what was expected.
        ConfigError: an unknown format or option.
    """
    if str(path) == "shapes" and format in ("auto", "shapes"):
        try:
            config = ShapesConfig(**options)
        except ValidationError as error:
            raise ConfigError(f"options of the dataset shapes: {error}") from error
        return generate_shapes(config, split)
    raise DataError(f"{path} is no dataset.")

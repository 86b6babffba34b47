"""Reads pickle-based files as tensors only. No other part of the workbench reads them."""

from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import CheckpointError


def read_checkpoint(source: Path) -> dict[str, Tensor]:
    """Returns the tensors of a ``.pth`` file, or of its ``state_dict`` or ``model`` if it has one.

    Raises:
        CheckpointError: the file does not exist, is damaged, or holds something other than tensors.
    """
    if not source.is_file():
        raise CheckpointError(f"there is no file {source}. Check the path.")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{source} cannot be read as tensors only: {_first_line(error)} Files with other objects are refused. Save only the state dict."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{source} contains a {type(loaded).__name__}, not a state dict. Save only the state dict.")
    tensors = {str(k): v.clone().contiguous() for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{source} contains no tensors. Save the state dict of the model.")
    return tensors


def _first_line(error: Exception) -> str:
    """Returns the first sentence of an error, without torch's advice on how to load the file anyway."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".") + "."

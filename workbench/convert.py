"""The one place that reads a pickle-based checkpoint, restricted to tensors."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from workbench.errors import CheckpointError
from workbench.files import replacing


def convert(source: Path, out: Path) -> int:
    """Writes the tensors of a ``.pth`` as safetensors; returns how many.

    Raises:
        CheckpointError: no such file, it holds something other than tensors, or is damaged.
    """
    if not source.is_file():
        raise CheckpointError(f"there is no file {source}.")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{source} cannot be read as tensors only: {_first_line(error)} Files with other objects are "
                              "refused; save the state dict alone.") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{source} holds a {type(loaded).__name__}, not a state dict.")
    tensors = {str(k): v.clone().contiguous() for k, v in loaded.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors.")
    with replacing(out) as temporary:
        save_file(tensors, temporary)
    return len(tensors)


def _first_line(error: Exception) -> str:
    """Without the hints for code that loads anyway."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.partition(". ")[0].rstrip(".") + "."

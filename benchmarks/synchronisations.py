"""Counts how often the host waits for the device."""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

_WAITS = ("item", "cpu", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__")
_ROOT = Path(__file__).resolve().parents[1]
_CUDA_SAYS = "called a synchronizing CUDA operation"


@contextmanager
def counted(device: torch.device) -> Iterator[Counter[str]]:
    """Yields a counter of the places, ``file:line``, in which the host waited for the device while the block ran.

    On CUDA torch says so itself. On a CPU, where nothing waits, the calls that would wait for a value of a GPU are counted: ``item``,
    ``cpu``, ``tolist``, ``nonzero``, ``bool`` and their like, of whatever tensor. Those of tensors that would be on the host count too, so
    that the count of a CPU is an upper bound; waits that no call shows, such as a mask as an index, are missing from it.
    """
    places: Counter[str] = Counter()
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield places
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places.update(f"{_short(w.filename)}:{w.lineno}" for w in caught if _CUDA_SAYS in str(w.message))
        return
    inside = [False]
    with ExitStack() as stack:
        for name in _WAITS:
            stack.enter_context(patch.object(Tensor, name, _counting(getattr(Tensor, name), places, inside)))
        yield places


def _counting(function: Callable[..., Any], places: Counter[str], inside: list[bool]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        if inside[0]:  # tolist and their like call one another
            return function(*arguments, **named)
        inside[0] = True
        try:
            frames = [f for f in traceback.extract_stack()[:-1] if str(_ROOT) in f.filename and f.filename != __file__]
            if frames:
                places[f"{_short(frames[-1].filename)}:{frames[-1].lineno}"] += 1
            return function(*arguments, **named)
        finally:
            inside[0] = False

    return call


def _short(name: str) -> str:
    path = Path(name)
    return path.relative_to(_ROOT).as_posix() if path.is_relative_to(_ROOT) else "/".join(path.parts[-2:])

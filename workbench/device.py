"""The device a model runs on: the only place that turns a device's name into a ``torch.device``."""

import re
from typing import TYPE_CHECKING

from workbench.errors import DeviceError

if TYPE_CHECKING:
    import torch

_CUDA = re.compile(r"cuda(?::(\d{1,4}))?")


def resolve_device(name: str) -> "torch.device":
    """Returns the device that a name stands for on this machine.

    Args:
        name: ``auto`` (the first CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: the name is unknown, this machine has no CUDA GPU, or it has none with that number.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    found = _CUDA.fullmatch(name)
    if found is None:
        raise DeviceError(f"there is no device '{name}'. Choose auto, cpu, cuda or cuda:N.")
    if not count:
        raise DeviceError(
            f"device '{name}' is not available: torch finds no CUDA GPU on this machine. Choose cpu or auto; "
            "'workbench doctor' shows what torch finds."
        )
    if found[1] is None:
        return torch.device("cuda")
    if int(found[1]) >= count:
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise DeviceError(f"device '{name}' is not available: torch finds {there} on this machine. Choose one of these, or auto.")
    return torch.device("cuda", int(found[1]))

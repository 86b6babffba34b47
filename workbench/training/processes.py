"""Runs training in several processes (torchrun, accelerate launch) and handles the signal that stops them; a single one works too."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object

from workbench.device import resolve_device
from workbench.errors import DeviceError

Value = TypeVar("Value")
# how long the other processes wait for the first, which evaluates alone
PATIENCE = timedelta(hours=12)


def init_processes(device: str) -> PartialState:
    """Joins the other processes of this run, if there are any, and gives each its device.

    Call it before anything is written. A later run in the same process, as in a notebook, may name another device.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DeviceError: this machine does not have the device, or has fewer GPUs than processes.
    """
    wanted = resolve_device(device)
    cpu = wanted.type == "cpu"
    os.environ["ACCELERATE_USE_CPU"] = str(cpu).lower()
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        if not cpu:
            _check_gpu_each(wanted, count)
        return PartialState(cpu=cpu, timeout=PATIENCE)
    # accelerate keeps its first device for the whole process, even if another one is requested later
    if PartialState._shared_state and PartialState().device != wanted:
        AcceleratorState._reset_state(reset_partial_state=True)
    if not cpu:
        torch.cuda.set_device(wanted.index or 0)
    with _environment("ACCELERATE_TORCH_DEVICE", str(wanted)):
        return PartialState(cpu=cpu)


def _check_gpu_each(wanted: torch.device, count: int) -> None:
    """Raises ``DeviceError`` unless every process on this machine can have its own GPU."""
    if wanted.index is not None:
        raise DeviceError(f"device '{wanted}' is one GPU, but each of the {count} processes of this run needs its own. Choose cuda.")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", count)), torch.cuda.device_count()
    if here > gpus:
        raise DeviceError(f"{here} processes need a GPU each, but torch finds {gpus} on this machine. Start {gpus}, or choose cpu.")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable while the block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def broadcast_from_main(value: Value) -> Value:
    """Returns the first process's value in every process."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gathered(values: list[Any]) -> list[Any]:
    """Returns the values of all processes, one after the other."""
    return values if PartialState().num_processes == 1 else gather_object(values)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells between steps whether any process is to stop: by Ctrl-C, or by SIGTERM from whoever started it.

    A second Ctrl-C interrupts at once. SIGTERM does not count as one, because a comparison that Ctrl-C stops sends it to runs that may have
    received the same Ctrl-C.
    """
    flag = threading.Event()

    def asked() -> bool:
        return any(gathered([flag.is_set()]))

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()

    # of several processes, one is ended by SIGTERM when another has died, and could not agree with it on a step to stop at
    numbers = (signal.SIGINT, signal.SIGTERM) if PartialState().num_processes == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

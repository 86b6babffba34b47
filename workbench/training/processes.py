"""Runs training in several processes (torchrun, accelerate launch) and handles the signals that stop them; a single one works too."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from workbench.device import resolve_device
from workbench.errors import DeviceError
from workbench.training.spread import rank_and_world

Value = TypeVar("Value")
# how long the other processes wait for the first, which computes AP and writes alone
PATIENCE = timedelta(hours=12)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each makes a run save once and end with 128 plus its number


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
    world = rank_and_world()[1]
    if world == 1:
        return values
    found: list[list[Any]] = [[]] * world
    dist.all_gather_object(found, values)
    return [value for own in found for value in own]


class Stopped(BaseException):
    """Ends an evaluation as soon as a signal asks the run to stop."""


class Interruption:
    """Remembers the signal that asked this run to stop: Ctrl-C, SIGTERM, or SIGHUP of a terminal that was closed."""

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False

    def asked(self) -> int:
        """Returns the number of the signal that some process of the run has got, or 0. All processes must ask together."""
        return max(gathered([self.number]))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Makes a signal end the block by ``Stopped``; one that came before ends it at its start."""
        if self.number:
            raise Stopped
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def handle(self, number: int, frame: Any) -> None:
        """Notes a signal; Ctrl-C after it interrupts whatever runs.

        SIGTERM never does, because a comparison that Ctrl-C stops sends it to runs that may have received the same Ctrl-C.
        """
        if self.number:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.number = number
        if self._at_once:
            raise Stopped


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Yields what tells between steps whether the run is to stop; in another thread than the main one no signal is seen."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:  # nohup leaves a run alone
                signal.signal(number, interruption.handle)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

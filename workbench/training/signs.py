"""What processes of a run tell each other, and what one can know of another on the same machine."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

LEFT = -1  # beats of a process that has ended its training as it should
_EXCHANGES = ("torch.distributed", "torch.nn.parallel")  # modules in which a thread waits for other processes


class Store(Protocol):
    """What processes share: the part of torch's stores that is used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class AgreedStore:
    """Is the store by which torch's processes find each other, through a client of its own, since torch may wait with the one that it has.

    Methods raise ``RuntimeError`` where the store cannot be reached, or is not connected.
    """

    def __init__(self) -> None:
        self._client: TCPStore | None = None

    def connect(self, seconds: float) -> None:
        """Waits until the store is there, but no longer than this.

        torchrun and accelerate have it before they start the processes, else the first process makes it when it joins the others.
        """
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._client = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))

    def set(self, key: str, value: str) -> None:
        """Keeps a value."""
        self._connected().set(key, value)

    def get(self, key: str) -> bytes:
        """Returns the value of a key that is there."""
        return self._connected().get(key)

    def check(self, keys: list[str]) -> bool:
        """True if all keys are there."""
        return self._connected().check(keys)

    def _connected(self) -> TCPStore:
        if self._client is None:
            raise RuntimeError("the store of the processes is not connected")
        return self._client


class Sign(NamedTuple):
    """What a process says of itself.

    Attributes:
        beats: Grows while the process lives; ``LEFT`` once it has ended its training.
        moves: Grows with each step; 0 before the first one begins.
        step: The last step that was done.
        alone: Above 0 while the process does something for which the others wait.
        process: See ``this_process``.
    """

    beats: int = 0
    moves: int = 0
    step: int = 0
    alone: int = 1
    process: str = ""

    @property
    def when(self) -> str:
        """How far the process was, in words."""
        return f"after step {self.step}" if self.moves else "before training began"


@cache
def _machine() -> str:
    """Names the machine, or the container, in which the number of a process means the same one; empty if that is not known."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    return ""


def this_process() -> str:
    """Names this process on its machine, for ``has_ended``; empty where other processes could not know whether it lives."""
    return f"{_machine()} {os.getpid()}" if _machine() else ""


def has_ended(process: str) -> bool:
    """True if a process on this machine is known to have ended; False of one on another machine."""
    machine, _, number = process.rpartition(" ")
    if not machine or machine != _machine():
        return False
    try:
        return psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def this_thread_works() -> Callable[[], bool]:
    """Returns a function that tells, in any thread, whether the calling one works since the last call, or waits for other processes.

    A thread that hangs, such as in a read from a disk that does not answer, uses no time of a processor.
    """
    if not hasattr(time, "pthread_getcpuclockid"):
        return lambda: True
    number = threading.get_ident()
    clock = time.pthread_getcpuclockid(number)
    used = -1.0

    def works() -> bool:
        nonlocal used
        before, used = used, time.clock_gettime(clock)
        return used > before or _waits_for_others(number)

    return works


def _waits_for_others(thread: int) -> bool:
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage] - Python's only way to see another thread
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_EXCHANGES):
            return True
        frame = frame.f_back
    return False

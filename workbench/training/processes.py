"""Several processes of one run (torchrun, accelerate launch) and the signal that stops them; one process passes through unchanged."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

Value = TypeVar("Value")
# the others wait for the first, which evaluates alone
PATIENCE = timedelta(hours=12)


def join(device: str) -> PartialState:
    """Joins the other processes, where there are any, before anything is written."""
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=device == "cpu", **({"timeout": PATIENCE} if several else {}))


def agree(value: Value) -> Value:
    """The first process's value, in all of them."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def gathered(values: list[Any]) -> list[Any]:
    """The values of all processes, one after the other."""
    return values if PartialState().num_processes == 1 else gather_object(values)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C sets a flag that is read between steps, of all processes at once; a second one interrupts at once."""
    flag = threading.Event()

    def asked() -> bool:
        return any(gathered([flag.is_set()]))

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

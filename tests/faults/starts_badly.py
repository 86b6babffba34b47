"""The command line with a fault before training begins: ``python -m tests.faults.starts_badly FAULT PLACE RANK ARGUMENTS...``."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from workbench.cli import main
from workbench.errors import DataError
from workbench.training import launch


def _fail() -> None:
    raise DataError("image 7 cannot be read")


# what a process does, and the function of the launch before which it does it
FAULTS: dict[str, Callable[[], None]] = {
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "is frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hangs": lambda: time.sleep(3600),
    "fails": _fail,
}
PLACES = {"joins": "_init_processes", "reads its data": "build", "trains": "_train"}


def break_(fault: str, place: str) -> None:
    """Makes this process do something wrong where it comes to a place."""
    before: Any = getattr(launch, PLACES[place])

    def broken(*arguments: Any) -> Any:
        FAULTS[fault]()
        return before(*arguments)

    setattr(launch, PLACES[place], broken)


if __name__ == "__main__":
    fault, place, rank = sys.argv[1:4]
    del sys.argv[1:4]
    if rank in ("all", os.environ["RANK"]):
        break_(fault, place)
    main()

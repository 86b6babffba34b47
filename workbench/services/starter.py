"""Makes a process end with the one that started it, in whatever way that ends."""

import ctypes
import os
import signal
import sys
import threading

_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_starter() -> None:
    """Kills this process as soon as the other end of its standard input is closed, which the system does when its starter is gone.

    The starter gives it a pipe as standard input and keeps the other end open, without writing.
    """
    threading.Thread(target=_end_at_end_of_input, name="starter", daemon=True).start()


def _end_at_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_with_parent() -> None:
    """Asks the system to send this process SIGTERM when its parent ends; to be run in a child between fork and exec. Linux alone has it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)

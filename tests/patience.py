"""Waits of the tests: as long as this machine needs now, so that a slow or busy one fails no test that a quiet one passes."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

ROOM = 4  # a machine may be this many times slower than what was measured of it
NUMBERS, QUIET_SECONDS = 3_000_000, 0.15  # so many squares are added up, and how long that takes on a quiet core
_SLOWNESS = "WORKBENCH_TESTS_SLOWNESS"


def measure() -> None:
    """Measures once how slow this machine is; the workers of pytest-xdist and every process they start inherit the answer."""
    if _SLOWNESS not in os.environ:
        began = time.perf_counter()
        sum(number * number for number in range(NUMBERS))
        os.environ[_SLOWNESS] = str((time.perf_counter() - began) / QUIET_SECONDS)


def patience(seconds: float) -> float:
    """Returns how long to wait for what a quiet machine does within ``seconds``.

    Never less than that: ``ROOM`` times as long, and longer on a machine that was slow when the tests began, or that has more processes
    waiting for a core by now than it has cores.
    """
    measure()
    waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * ROOM * max(1.0, float(os.environ[_SLOWNESS]), waiting)


def patient(context: Any, seconds: float = 60) -> Any:
    """Returns a context or page of playwright whose waits are all ``patience(seconds)``."""
    context.set_default_timeout(1000 * patience(seconds))
    return context


def wait_until(holds: Callable[[], object], seconds: float = 60, what: Callable[[], str] = lambda: "what was waited for") -> None:
    """Waits until ``holds()`` is true; fails the test once ``patience(seconds)`` is over, measured anew at each look."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience(seconds):
            pytest.fail(f"{what()} did not come within {patience(seconds):.0f} s")
        time.sleep(0.02)

"""Runs that several test files read: trained once for all workers, and copied for each."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_copy(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns a new copy of a folder that ``make`` fills once for all workers of this session.

    The folder itself stays as it was made: data that a run names by its path may lie in it, and a test that writes into its copy
    disturbs no other.

    Args:
        factory: of pytest.
        name: of what is made; the same name stands for the same ``make``.
        make: fills the folder it is given.
    """
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made, finished = shared / f"shared-{name}", shared / f"shared-{name}.done"
    with open(shared / f"shared-{name}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(made, ignore_errors=True)  # of a worker that failed in between
            made.mkdir()
            make(made)
            finished.touch()
    return Path(shutil.copytree(made, factory.mktemp(name) / "copy", symlinks=True))

"""The dashboard as a user has it: a server of its own for each folder of runs, and one Chromium."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.app.example_runs import make_hostile_runs, make_runs
from tests.conftest import ROOT
from tests.patience import patience, patient
from tests.shared_runs import shared_copy


@contextmanager
def serving(root: Path, cwd: Path = ROOT, **environment: str) -> Iterator[str]:
    """`workbench app` on a free port, started in a folder with more variables in its environment; yields its address.

    Every worker looks among ports of its own, so that the address in a failure tells whose server it was.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    command = [sys.executable, "-P", "-m", "workbench", "app", "--port", str(8610 + 100 * worker), "--runs", str(root)]
    given = os.environ | environment
    process = subprocess.Popen(command, cwd=cwd, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("dashboard: "):
                break
        else:
            pytest.fail("the dashboard did not start:\n" + "".join(lines))
        address = lines[-1].split()[1]
        # a pipe that nobody reads is full after 64 KiB, and the server would wait for ever at its next word
        Thread(target=lines.extend, args=(process.stdout,), daemon=True).start()
        yield address
    finally:
        process.terminate()
        process.wait(timeout=patience(30))


@pytest.fixture(scope="session")
def runs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_copy(tmp_path_factory, "dashboard", lambda folder: make_runs(folder / "runs")) / "runs"


@pytest.fixture(scope="session")
def hostile_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_copy(tmp_path_factory, "hostile", lambda folder: make_hostile_runs(folder / "runs", folder / "data")) / "runs"


@pytest.fixture(scope="session")
def address(runs_root: Path) -> Iterator[str]:
    with serving(runs_root) as where:
        yield where


@pytest.fixture(scope="session")
def hostile_address(hostile_root: Path) -> Iterator[str]:
    with serving(hostile_root) as where:
        yield where


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[str], Any]]:
    """Opens an address and waits until Streamlit has run the page; a dialog that a page opens fails the test."""
    dialogs: list[str] = []
    with ExitStack() as stack:

        def open_at(url: str) -> Any:
            context = patient(chromium.new_context(viewport={"width": 1900, "height": 1000}))
            stack.callback(context.close)
            page = context.new_page()
            page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            page.goto(url)
            settle(page)
            return page

        yield open_at
    assert dialogs == []


def settle(page: Any) -> None:
    """Waits until the script has run to its end."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_function("() => !document.querySelector('[data-stale=true]')")

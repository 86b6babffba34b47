"""Starts the dashboard on the loopback address."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

from workbench.errors import MissingExtraError, WorkbenchError
from workbench.share import share_path

START_SECONDS = 60


def serve(port: int, ready: Callable[[str], None]) -> None:
    """Runs Streamlit until it is stopped; the next free port is taken when ``port`` is in use.

    Args:
        port: wished for.
        ready: called with the address once the server answers.

    Raises:
        MissingExtraError: streamlit is not installed.
        WorkbenchError: the server did not start.
    """
    if find_spec("streamlit") is None:
        raise MissingExtraError("the dashboard needs streamlit: pip install 'workbench[app]'.")
    port = _free_port(port)
    command = [sys.executable, "-m", "streamlit", "run", str(share_path("app") / "Home.py"), "--server.address", "127.0.0.1"]
    command += ["--server.port", str(port), "--server.headless", "true", "--browser.gatherUsageStats", "false", "--runner.magicEnabled", "false"]
    process = subprocess.Popen(command, env=dict(os.environ), stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise WorkbenchError(f"the dashboard did not start on port {port}; see its output above.")
            time.sleep(0.2)
        ready(f"http://127.0.0.1:{port}")
        process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        process.terminate()
        process.wait()


def _free_port(first: int) -> int:
    for port in range(first, first + 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise WorkbenchError(f"no free port between {first} and {first + 49}.")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

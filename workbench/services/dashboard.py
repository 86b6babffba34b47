"""Starts the dashboard on the loopback address."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec

from workbench.errors import MissingExtraError, WorkbenchError, pip_install
from workbench.resources import share_path
from workbench.services.servers import ADDRESS, lookup_server, registered, reserved_port, server_file, stopped_by_signals, wait_until_ready

DASHBOARD, PORT = "dashboard", 8501
START_SECONDS = 300  # on a busy machine the imports of a server alone take a minute
# Flags instead of a config.toml: Streamlit looks for that in the working directory, so an installed package cannot bring one.
OPTIONS = {
    "server.address": ADDRESS,
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "logger.hideWelcomeMessage": "true",
    "runner.magicEnabled": "false",
    # Python collects garbage by itself; doing so after every page takes as long as the page itself if much is held in memory
    "runner.postScriptGC": "false",
    "theme.baseFontSize": "14",
    "theme.baseRadius": "4px",
    "theme.light.primaryColor": "#0072B2",
    "theme.dark.primaryColor": "#56B4E9",
}


def serve(port: int, ready: Callable[[str], None]) -> None:
    """Runs Streamlit until Ctrl-C or SIGTERM, on the next free port if ``port`` is in use.

    Args:
        port: the preferred port.
        ready: called with the address once the server answers.

    Raises:
        MissingExtraError: streamlit is not installed.
        WorkbenchError: the server did not start, or ended by itself.
    """
    if find_spec("streamlit") is None:
        raise MissingExtraError(f"the dashboard needs streamlit, which is not installed. Run: {pip_install('app')}")
    with stopped_by_signals(), reserved_port(port) as port:
        options = [f"--{name}={value}" for name, value in {**OPTIONS, "server.port": port}.items()]
        command = [sys.executable, "-P", "-m", "streamlit", "run", str(share_path("app") / "Home.py"), *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            if not wait_until_ready(process, lambda: _answers(port), START_SECONDS):
                raise WorkbenchError(f"the dashboard did not start on port {port}. Its output above says why.")
            with registered(DASHBOARD, port):
                ready(f"http://{ADDRESS}:{port}")
                status = process.wait()
                raise WorkbenchError(f"the dashboard has ended with status {status}. Read its output above, then start it again.")
        except KeyboardInterrupt:
            pass
        finally:
            process.terminate()
            process.wait()


def dashboard_address() -> str:
    """Returns the address of this user's dashboard, or its default address if none is running."""
    server = lookup_server(server_file(DASHBOARD))
    return server.address if server is not None else f"http://{ADDRESS}:{PORT}"


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{ADDRESS}:{port}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False

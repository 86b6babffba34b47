"""Starts the dashboard, on the loopback address unless the user names another."""

import ipaddress
import math
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec

import psutil

from workbench.errors import MissingExtraError, WorkbenchError, pip_install
from workbench.resources import share_path
from workbench.services.guard import bearer, new_token, with_token
from workbench.services.servers import ADDRESS, lookup_server, registered, reserved_port, server_file, stopped_by_signals, wait_until_ready

DASHBOARD, PORT = "dashboard", 8501
TOKEN_VARIABLE = "WORKBENCH_DASHBOARD_TOKEN"  # not an option, because every user of the machine reads the options of a process
_EVERYWHERE = ("0.0.0.0", "::")
END_SECONDS = 10
START_SECONDS = math.inf  # on a busy machine the imports alone take minutes; a server that cannot start ends and says why
# Flags instead of a config.toml: Streamlit looks for that in the working directory, so an installed package cannot bring one.
OPTIONS = {
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


def allowed_hosts(host: str) -> list[str]:
    """Returns the names under which a browser may ask a dashboard that listens at ``host``.

    A page of the web that makes its own name point to this machine is then refused, since its requests carry that name.
    """
    names = ["localhost", ADDRESS, "::1", host]
    if host in _EVERYWHERE:
        addresses = [address.address for card in psutil.net_if_addrs().values() for address in card]
        names += [socket.gethostname(), socket.getfqdn(), *(address.split("%")[0] for address in addresses)]
    return list(dict.fromkeys(name for name in names if name and name not in _EVERYWHERE))


def is_loopback(host: str) -> bool:
    """True if only programs of this machine reach a server at this address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(port: int, ready: Callable[[str], None], host: str = ADDRESS) -> None:
    """Runs Streamlit until Ctrl-C or SIGTERM, on the next free port if ``port`` is in use.

    Args:
        port: the preferred port.
        ready: called with the address once the server answers.
        host: the address to listen at. Beyond loopback the server answers only who has opened the address that ``ready`` gets, which
            holds a token.

    Raises:
        MissingExtraError: streamlit is not installed.
        WorkbenchError: the server did not start, or ended by itself.
    """
    if find_spec("streamlit") is None:
        raise MissingExtraError(f"the dashboard needs streamlit, which is not installed. Run: {pip_install('app')}")
    with stopped_by_signals(), reserved_port(port) as port:
        options = [f"--{name}={value}" for name, value in {**OPTIONS, "server.address": host, "server.port": port}.items()]
        options += [f"--server.allowedHosts={name}" for name in allowed_hosts(host)]
        at = ADDRESS if host in _EVERYWHERE else host
        token = None if is_loopback(host) else new_token()
        command = [sys.executable, "-P", "-m", "streamlit", "run", str(share_path("app") / "server.py"), *options]
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        environment |= {TOKEN_VARIABLE: token} if token is not None else {}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # it ends when the pipe does
        try:
            if not wait_until_ready(process, lambda: _answers(at, port, token), START_SECONDS):
                raise WorkbenchError(_why_not(port, process.wait()))
            with registered(DASHBOARD, port, token=token):
                ready(with_token(f"http://{_bracketed(at)}:{port}", token))
                status = process.wait()
                raise WorkbenchError(f"the dashboard has ended with status {status}. Read its output above, then start it again.")
        except KeyboardInterrupt:
            pass
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:  # it may wait for a browser that never closes its connection
                process.kill()
                process.wait()


def dashboard_address(page: str) -> str:
    """Returns the address of a page of this user's dashboard, on the default port if none is running.

    page: the page and its query, beginning with a slash.
    """
    server = lookup_server(server_file(DASHBOARD))
    return with_token(server.address + page, server.facts.get("token")) if server is not None else f"http://{ADDRESS}:{PORT}{page}"


def _why_not(port: int, status: int) -> str:
    """Returns why a server that has ended did not start; what it wrote itself stands above, because it shares our output."""
    told = f"the dashboard did not start on port {port}: "
    if status < 0:
        return f"{told}it was ended by signal {-status}. Signal 9 may mean that memory ran out; end other programs and try again."
    return f"{told}it ended with status {status}. Its output above says why."


def _bracketed(host: str) -> str:
    """Returns an address as it stands in a link."""
    return f"[{host}]" if ":" in host else host


def _answers(host: str, port: int, token: str | None) -> bool:
    health = urllib.request.Request(f"http://{_bracketed(host)}:{port}/_stcore/health", headers=bearer(token))
    try:
        with urllib.request.urlopen(health, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False

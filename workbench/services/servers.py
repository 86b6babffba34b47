"""Registers this user's servers, so that other processes find them, and the ports they use on the loopback address."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from workbench.errors import WorkbenchError
from workbench.files import cache_folder, read_json, try_lock, write_json

ADDRESS = "127.0.0.1"
PORTS = 50  # ports tried, beginning with the preferred one
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Server:
    """A server that is running.

    Attributes:
        process: Process of the server, or of the program that started it.
        port: Port on the loopback address; 0 if it listens on a socket file instead.
        facts: Other registered values.
    """

    process: psutil.Process
    port: int
    facts: dict[str, Any]

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.port}"


def register_server(path: Path, pid: int, port: int, **facts: Any) -> None:
    """Writes where a server is, so that ``lookup_server`` finds it; ``facts`` are plain values, which only this user can read."""
    write_json(path, {"pid": pid, "started": _started(psutil.Process(pid)), "port": port, "facts": facts}, private=True)


def lookup_server(path: Path) -> Server | None:
    """Returns the registered server; None if there is none, it has ended, or its process id now belongs to another process."""
    try:
        entry = read_json(path) if path.is_file() else {}
        process = psutil.Process(int(entry["pid"]))
        if abs(_started(process) - float(entry["started"])) >= 1 or not _lives(process):
            return None
        return Server(process, int(entry["port"]), dict(entry["facts"]))
    except (WorkbenchError, psutil.Error, KeyError, TypeError, ValueError):
        return None


def _started(process: psutil.Process) -> float:
    """Returns the seconds from the start of the machine to that of a process; the time of day may be set in between."""
    return process.create_time() - psutil.boot_time()


@contextlib.contextmanager
def registered(name: str, port: int, **facts: Any) -> Iterator[None]:
    """Registers this process as the server of a name while the block runs; if several do, the last to begin is found."""
    path = server_file(name)
    register_server(path, os.getpid(), port, **facts)
    try:
        yield
    finally:
        server = lookup_server(path)
        if server is not None and server.process.pid == os.getpid() and server.port == port:
            path.unlink(missing_ok=True)


def server_file(name: str) -> Path:
    """Returns the file in which the server of a name is registered."""
    return cache_folder() / "servers" / f"{name}.json"


def listens(port: int) -> bool:
    """True if a server accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((ADDRESS, port)) == 0


@contextlib.contextmanager
def reserved_port(first: int = 0) -> Iterator[int]:
    """Yields an unused port: any, or the next from ``first`` on. No other command of this user gets it while the block runs.

    A server binds its port seconds after it was chosen, so the block must last until the server listens or has ended. The port is locked
    by a file in the user's cache, which is never removed: a process that opened it before its removal would lock another file than a
    process that opens it afterwards.

    Raises:
        WorkbenchError: fifty ports in a row are taken, or the cache cannot be written.
    """
    for wished in range(first, first + PORTS) if first else [0] * PORTS:
        port = _free(wished)
        if port is None:
            continue
        with open_lock(cache_folder() / "ports" / f"{port}.lock") as file:
            # checked again, because the former holder of the lock may listen by now
            if try_lock(file) and _free(port) is not None:
                yield port
                return
    last = first + PORTS - 1
    raise WorkbenchError(f"there is no free port between {first} and {last}. Stop one of these servers, or choose another port.")


def _free(port: int) -> int | None:
    """Returns the port, or any free one for 0; None if the port is in use."""
    with socket.socket() as probe:
        # the port of a server that has just ended counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return None
        return probe.getsockname()[1]


def open_lock(path: Path) -> IO[bytes]:
    """Opens a lock file in the user's cache.

    Raises:
        WorkbenchError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab", opener=_private)
    except OSError as error:
        why = error.strerror or error
        raise WorkbenchError(f"cannot write {path.parent}: {why}. Set XDG_CACHE_HOME to a folder you can write.") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Makes SIGTERM and a closed terminal end the block as Ctrl-C does, so that no server outlives the process that started it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until_ready(process: subprocess.Popen[Any], answers: Callable[[], bool], seconds: float) -> bool:
    """Waits until a server that was just started is ready.

    Args:
        process: the server.
        answers: returns True once the server works.
        seconds: longest time to wait.

    Returns:
        False if the process ended or took longer; the caller must stop it.
    """
    deadline = time.monotonic() + seconds
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return process.poll() is None  # otherwise another program took the port first and answers


def first_to_end(processes: Mapping[str, psutil.Process]) -> str:
    """Waits until one of these processes, children or not, has ended, and returns its name; the first in order if several have."""
    while True:
        for name, process in processes.items():
            if not _lives(process):
                return name
        time.sleep(LOOK_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

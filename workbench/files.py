"""Writes files whole or not at all: under a temporary name in the same folder, then fsync, then rename."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.remote import is_remote, uploading, uploading_folder

if TYPE_CHECKING:
    from pydantic import BaseModel


@contextlib.contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on a clean exit the file is fsynced and renamed to ``path``, or uploaded if that is remote.

    Args:
        path: the file to write; its folder is created.
        private: nobody but this user may read the file; by default it gets the permissions of any new file.

    Raises:
        WorkbenchError: the folder cannot be written or the disk is full; ``path`` keeps its old content.
    """
    if is_remote(path):
        with uploading(path) as local:
            yield local
        return
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _settle(temporary, private)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise WorkbenchError(
            f"cannot write {path}: {error.strerror or error}. Nothing was lost. Free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``path``; on a clean exit its files are fsynced and it replaces ``path``, which may be remote.

    Only one process may write at a time, because whatever a killed writer left behind is removed.

    Args:
        path: the folder to write; its files lie directly in it.

    Raises:
        WorkbenchError: the folder cannot be written or the disk is full; ``path`` keeps its old content.
    """
    if is_remote(path):
        with uploading_folder(path) as local:
            yield local
        return
    temporary, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    try:
        for leftover in (temporary, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        yield temporary
        for file_path in temporary.iterdir():
            _settle(file_path)
        sync_folder(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise WorkbenchError(
            f"cannot write {path}: {error.strerror or error}. Nothing was lost. Free some space or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(path: Path, private: bool = False) -> None:
    """Flushes a file to disk and gives it the permissions of any new file of this user; temporary and safetensors files begin as 0600."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o600 if private else 0o666 & ~mask)


def sync_folder(folder: Path) -> None:
    """Makes a rename inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Writes ``text`` as UTF-8, either completely or not at all; a private file is for this user alone."""
    with replacing(path, private) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """Writes ``value`` as indented JSON; refuses NaN, which JSON does not have. A private file is for this user alone."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", private)


class Entries(dict[str, Any]):
    """A mapping read from a file. A key that it lacks is an error that names the file, so that a damaged file is one message.

    Args:
        entries: the mapping, or pairs of a key and a value.
        origin: what the file is. ``dataclasses.asdict`` makes a copy from the pairs alone.
    """

    def __init__(self, entries: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), origin: str = "a file that was read"):
        super().__init__(entries)
        self._origin = origin

    def __missing__(self, key: str) -> Any:
        raise WorkbenchError(f"{self._origin} lacks '{key}', so it is damaged. Restore it from a copy, or make it again.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Entries, (dict(self), self._origin)


def parse_json(text: str | bytes, origin: str) -> Any:
    """Returns the value of a JSON text, its mappings as ``Entries``.

    Args:
        text: the text; bytes are UTF-8.
        origin: what the text is, for messages, such as the path of its file.

    Raises:
        WorkbenchError: it is no JSON, nested too deeply, or holds a number that no 64-bit float can hold; the message names ``origin``.
    """
    try:
        value = json.loads(text, object_hook=lambda entries: Entries(entries, origin), parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(f"{origin} is not valid JSON: {error}.") from error
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def read_json(path: Path, schema: "type[BaseModel] | None" = None) -> Any:
    """Returns the content of a JSON file; raises a ``WorkbenchError`` with its path if it is broken.

    Args:
        path: the file.
        schema: what it must hold; None accepts every JSON.
    """
    try:
        value = parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise WorkbenchError(f"cannot read {path}: {error.strerror or error}.") from error
    return value if schema is None else checked(value, schema, str(path))


def checked(value: Any, schema: "type[BaseModel]", origin: str, advice: str = "Restore it from a copy, or make it again.") -> Any:
    """Returns ``value`` as it is if it has the shape of ``schema``.

    Args:
        value: JSON that was read.
        schema: its shape.
        origin: where it comes from, for messages.
        advice: what to do if it is damaged.

    Raises:
        WorkbenchError: it does not; the message names ``origin`` and the first entries that are wrong.
    """
    from pydantic import ValidationError

    try:
        schema.model_validate(value)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))} {item['msg'][:400]}".strip() for item in error.errors()[:3])
        raise WorkbenchError(f"{origin} is damaged: {wrong}. {advice}") from error
    return value


def try_lock(file: IO[Any], shared: bool = False) -> bool:
    """Locks an open file without waiting; the system releases the lock when the file is closed, however its process ends.

    Args:
        file: the open file; a second handle of the same file is another holder, even in this process.
        shared: take a shared lock, which several holders can have at once.

    Returns:
        True if the file is locked now, False if another holder has it.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_within(file: IO[Any], seconds: float) -> bool:
    """Locks an open file as ``try_lock`` does, and waits for another holder.

    Args:
        file: the open file.
        seconds: how long to wait.

    Returns:
        True if the file is locked now, False if another holder has kept it.
    """
    deadline = time.monotonic() + seconds
    while not try_lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def cache_folder() -> Path:
    """Returns the folder for files of the user that belong to no run: ``$XDG_CACHE_HOME/workbench`` or ``~/.cache/workbench``.

    Where it exists, nobody else may look into it: it holds addresses with tokens, pictures, and the names of files.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"
    with contextlib.suppress(OSError):  # a folder that cannot be made is an error where something is written into it
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    return folder


def time_of(path: Path) -> tuple[float, int]:
    """Returns a file's time of last change and its size, zeros if it does not exist; a remote file's time is in seconds."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return getattr(status, "st_mtime_ns", status.st_mtime), status.st_size


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Returns the SHA-256 of ``value`` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()

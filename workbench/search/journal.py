"""Keeps the trials of a search in a journal that any number of processes write to, and that survives the death of each of them.

The journal is Optuna's: one line of JSON for each change, only ever appended to. Optuna's own locks are files that a killed process leaves
behind, so that every other process waits for 30 seconds. Here the kernel holds the lock and frees it with the process. What a killed
process had begun to write is cut off by the next one that writes.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from workbench.errors import RunError
from workbench.files import lock_within

PATIENCE_SECONDS = 60.0  # proposing a trial holds the lock for a tenth of a second at most


class KernelLock(BaseJournalFileLock):
    """Locks the journal for this process; the kernel frees the lock when the process ends, however it ends.

    The lock's file holds the length of the journal after the last change, so that a journal that was cut since is noticed.

    Args:
        journal: the journal.
        lock: file to lock; it is made if it does not exist.
        patience: seconds to wait for other processes.
    """

    def __init__(self, journal: Path, lock: Path, patience: float = PATIENCE_SECONDS):
        self._journal, self._path, self._patience = journal, lock, patience
        self._file: Any = None
        self._depth = 0

    def acquire(self) -> bool:
        """Waits for the lock and mends the journal's last line; a process that has the lock already gets it again.

        Raises:
            RunError: another process keeps it, the folder cannot be written, or the journal is shorter than it was.
        """
        if self._file is None:
            try:
                self._path.touch()
                file = open(self._path, "r+b")
            except OSError as error:
                raise RunError(f"cannot write {self._path}: {error.strerror}. Make the search's folder writable, or copy it.") from error
            if not lock_within(file, self._patience):
                file.close()
                raise RunError(
                    f"{self._journal} has been locked by another process for {self._patience:.0f} seconds. A stopped or stuck worker "
                    f"holds it; 'fuser {self._path}' names it. End that process and start this one again; nothing was lost."
                )
            self._file = file
            try:
                self._mend()
            except BaseException:
                self._close()
                raise
        self._depth += 1
        return True

    def release(self) -> None:
        """Gives the lock back once it has been given back as often as it was taken."""
        self._depth -= 1
        if self._depth == 0:
            self._file.seek(0)
            self._file.write(b"%020d" % self._journal.stat().st_size)  # always as long, so that it is overwritten at once
            self._close()

    def _close(self) -> None:
        self._file.close()
        self._file = None

    def _mend(self) -> None:
        """Cuts off the half line of a writer that was killed; nobody else writes now."""
        size = self._journal.stat().st_size
        self._file.seek(0)
        known = int(self._file.read() or 0)
        if size < known:
            raise RunError(_shorter(self._journal, size, known, self._path))
        with open(self._journal, "r+b") as file:
            whole = _whole(file, size)
            if whole < size:
                file.truncate(whole)
                os.fsync(file.fileno())


class Journal(JournalFileBackend):
    """A journal whose changes can be written together: all of them or, if the process is killed, none.

    Writing through to the disk takes milliseconds, and a trial has a dozen changes.

    Args:
        path: the journal; it is made if it does not exist.
        lock: see ``KernelLock``.
    """

    def __init__(self, path: Path, lock: KernelLock):
        super().__init__(str(path), lock)
        self._kernel_lock = lock
        self._together: list[dict[str, Any]] | None = None
        self._before: int | None = None  # lines of the file, while changes are held back

    @contextmanager
    def together(self) -> Iterator[None]:
        """Holds the lock, and writes what is changed meanwhile at once when it ends."""
        self._kernel_lock.acquire()
        try:
            if self._together is not None:
                yield
                return
            self._together, self._before = [], None
            try:
                yield
            finally:
                # after an error too: this process has already read what it wrote
                changes, self._together = self._together, None
                if changes:
                    super().append_logs(changes)
                    if self._before is not None:
                        # the base class remembers where lines begin that it has read, and would start from the first one next time
                        for _ in super().read_logs(self._before):
                            pass
        finally:
            self._kernel_lock.release()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._together is None:
            super().append_logs(logs)
        else:
            self._together += json.loads(json.dumps(logs))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._together is None:
            yield from super().read_logs(log_number_from)
            return
        if self._before is None or log_number_from < self._before:
            count = log_number_from
            for log in super().read_logs(log_number_from):
                count += 1
                yield log
            self._before = count
        yield from self._together[max(log_number_from - self._before, 0) :]


def open_journal(folder: Path, write: bool) -> tuple[Journal, JournalStorage]:
    """Opens the journal of a search.

    Args:
        folder: folder of the search.
        write: whether trials will be changed; reading needs no lock and leaves a half last line alone.

    Raises:
        RunError: the journal is missing, cannot be read or written, is locked, was cut, or is not one of Optuna's.
    """
    path, lock = folder / "journal.log", folder / "locks" / "journal"
    if write:
        try:
            lock.parent.mkdir(exist_ok=True)
            path.touch()
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}. Make the search's folder writable, or copy it.") from error
        if not os.access(path, os.W_OK):
            raise RunError(f"cannot write {path}. Make it writable, or copy the search's folder.")
    elif not path.is_file():
        raise RunError(f"{folder} has no journal.log, so it has no trials. Restore the file, or begin the search with 'workbench search'.")
    _check(path)
    kernel_lock = KernelLock(path, lock)
    if write:
        kernel_lock.acquire()  # mends the last line, or says what is wrong
        kernel_lock.release()
    elif lock.is_file() and path.stat().st_size < (known := int(lock.read_text() or 0)):
        raise RunError(_shorter(path, path.stat().st_size, known, lock))
    journal = Journal(path, kernel_lock)
    try:
        return journal, JournalStorage(journal)
    except (KeyError, ValueError, TypeError, AssertionError) as error:
        raise RunError(f"{path} cannot be read: its lines do not follow from each other ({error!r}). Restore it from a copy.") from error


def _check(path: Path) -> None:
    """Refuses a file that is no journal of Optuna's, and one with a broken line before the last."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}.") from error
    for number, line in enumerate(lines, start=1):
        # a whole line costs more to parse than the search's page may wait; the storage parses it next and names what is wrong
        if not (line.startswith(b'{"op_code":') and line.endswith(b"}")):
            where = "It is not a journal of trials" if number == 1 else f"Line {number} of {len(lines)} is broken"
            raise RunError(f"{path} cannot be read. {where}. Restore it from a copy, or remove it together with the search to begin anew.")


def _whole(file: Any, size: int) -> int:
    """Returns the length of a file up to the end of its last whole line."""
    end = size
    while end > 0:
        begin = max(end - 65536, 0)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _shorter(journal: Path, size: int, known: int, lock: Path) -> str:
    return (
        f"{journal} was cut: it had {known} bytes and has {size}, so finished trials are missing. Restore it from a copy. To go "
        f"on with the trials that are left, remove {lock}."
    )

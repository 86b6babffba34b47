"""Notices in a run of several processes that one of them has ended, is frozen or hangs, and ends the others with one message.

Without it the others wait in an exchange of gradients, which nothing but its own end can interrupt, for as long as the first process may
need to evaluate alone.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol

from accelerate import PartialState
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from workbench.errors import ConfigError, Interrupted, RunError, WorkbenchError
from workbench.store.run import Run
from workbench.training.processes import interruptible

SETTING = "WORKBENCH_STEP_TIMEOUT"
STEP_SECONDS = 600.0  # the longest that a step may take where processes wait for each other
FROZEN_SECONDS = 40.0  # a process that gives no sign for so long is stopped, or its machine is gone; one that is alone has a step's time
_LOST_SECONDS = 3.0  # the same where an exchange has failed, so that some process is known to be gone
_EXPLAIN_SECONDS = 20.0  # torchrun kills the others 30 s after one has ended
_BEAT_SECONDS = 0.5
_ALL_GONE = "the process that holds the processes of this run together has ended"


class Store(Protocol):
    """What processes share: the part of torch's stores that is used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


def step_seconds() -> float:
    """Returns the longest that a step may take; the environment sets it.

    Raises:
        ConfigError: it is no number of seconds.
    """
    given = os.environ.get(SETTING, str(STEP_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{SETTING} is '{given}'. Give it the seconds that a step may take, such as {STEP_SECONDS:.0f}.")
    return seconds


class ProcessLostError(RunError):
    """Another process of the run is lost; raised in the one process that tells the user."""


class Watch:
    """Tells the other processes of a run that this one lives and how far it is, and looks whether they do.

    Args:
        rank: number of this process.
        count: number of processes.
        store: what they share.
        prefix: begins the keys, so that one training is not taken for the next one.
        seconds: the longest that a step may take.
        clock: seconds of a clock that no one sets.
    """

    def __init__(self, rank: int, count: int, store: Store, prefix: str, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.rank, self.count = rank, count
        self._store, self._prefix, self._seconds, self._clock = store, prefix, seconds, clock
        self._beats, self._moves, self._step, self._alone = 0, 0, 0, 1
        self._seen: dict[int, tuple[list[int], float]] = {}  # what each other process said last, and when that changed
        self._moved = self._looked = clock()

    def at(self, step: int) -> None:
        """Says that this process has finished a step, or is about to do the first one after it."""
        self._step, self._moves, self._alone, self._moved = step, self._moves + 1, 0, self._clock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lets the others wait for as long as the block runs: this process evaluates, or saves."""
        self._alone += 1
        try:
            yield
        finally:
            self._alone -= 1
            self._moved = self._clock()

    def beat(self) -> None:
        """Gives a sign of life."""
        self._beats += 1
        self._store.set(f"{self._prefix}/{self.rank}", json.dumps([self._beats, self._moves, self._step, self._alone]))

    def leave(self, cause: str | None = None) -> None:
        """Says that this process ends its training, and why if it failed."""
        with suppress(RuntimeError):
            self._store.set(f"{self._prefix}/{self.rank}", json.dumps(cause if cause is not None else [-1, self._moves, self._step, 0]))

    def lost(self, failed: bool = False) -> tuple[int, str] | None:
        """Returns the process that is lost and what is to be said of it; None if all is well.

        failed: an exchange has failed, so some process is gone, and a short silence tells which.
        """
        now, frozen = self._clock(), min(FROZEN_SECONDS, self._seconds)
        if now - self._looked > 10 * _BEAT_SECONDS:  # this process was stopped itself, as by Ctrl-Z: the others get their time again
            self._seen = {rank: (said, now) for rank, (said, _) in self._seen.items()}
            self._moved = now
        self._looked = now
        alone, silent = bool(self._alone), []
        for rank in set(range(self.count)) - {self.rank}:
            said = self._said(rank)
            step = self._seen[rank][0][2] if rank in self._seen else 0
            if isinstance(said, str):
                return rank, f"process {rank} of {self.count} has failed after step {step}: {said}"
            if said is None:  # it has not begun
                alone = True
                continue
            if rank not in self._seen or self._seen[rank][0] != said:
                self._seen[rank] = said, now
            beats, _, step, its_alone = said
            alone = alone or bool(its_alone)
            patience = _LOST_SECONDS if failed else self._seconds if its_alone else frozen  # what is done alone may let no thread beat
            if beats >= 0 and now - self._seen[rank][1] > patience:
                silent.append((now - self._seen[rank][1], rank, step))
        if silent:
            waited, rank, step = max(silent)
            return rank, f"process {rank} of {self.count} has ended or is frozen after step {step}: it has given no sign for {waited:.0f} s"
        if alone:
            self._moved = now
        if now - self._moved > self._seconds:
            behind = min([(said[2], rank) for rank, (said, _) in self._seen.items()], default=(self._step, self.rank))
            what = f"step {self._step + 1} has taken longer than {self._seconds:.0f} s. Process {behind[1]} of {self.count} is behind, "
            return behind[1], what + f"at step {behind[0]}. If a step takes so long here, set {SETTING} to more seconds"
        return None

    def speaks(self, lost: int) -> bool:
        """True if this process is the one that tells the user: the first that is not lost."""
        return self.rank == (1 if lost == 0 else 0)

    def _said(self, rank: int) -> list[int] | str | None:
        key = f"{self._prefix}/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None


class Unwatched:
    """Stands in for a ``Watch`` where a run has one process."""

    def at(self, step: int) -> None:
        """Does nothing."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Does nothing."""
        yield


_trainings = 0


@contextmanager
def watched(run: Run) -> Iterator[Watch | Unwatched]:
    """Watches the other processes while the block trains a run.

    If one is lost, the first of the others writes the state of the run and says what happened, and all end. An exchange that failed because
    of it is an error that says the same.

    Raises:
        ConfigError: the time of a step is not given in seconds.
        ProcessLostError: another process is lost.
    """
    seconds = step_seconds()
    if (count := PartialState().num_processes) == 1:
        yield Unwatched()
        return
    global _trainings
    _trainings += 1
    # a client of its own, since torch may wait with the one that it has
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=30))
    watch = Watch(PartialState().process_index, count, store, f"workbench/{_trainings}", seconds)
    over = threading.Event()
    thread = threading.Thread(target=_look_on, args=(watch, run, over), name="watch", daemon=True)
    watch.beat()
    thread.start()
    cause: str | None = None
    try:
        yield watch
    except RuntimeError as error:
        over.set()
        thread.join()
        with interruptible():  # torchrun sends SIGTERM meanwhile
            found = _explained(watch)
            message = _written(run, found[1]) if found is not None and watch.speaks(found[0]) else None
        if found is None:
            cause = f"{type(error).__name__}: {error}"
            raise
        if message is None:
            raise SystemExit(RunError.exit_code) from error
        raise ProcessLostError(message) from error
    except Interrupted:
        raise
    except BaseException as error:
        cause = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        raise
    finally:
        over.set()
        thread.join()
        watch.leave(cause)


def _written(run: Run, what: str) -> str:
    """Writes that the run has failed, and returns the message about it."""
    message = f"run '{run.name}' has stopped: {what}. Resume it from its last checkpoint: workbench run --resume {run.name}"
    with suppress(WorkbenchError, OSError):  # its folder may be what was lost
        run.update_info(state="failed", error=message)
    return message


def _explained(watch: Watch) -> tuple[int, str] | None:
    """Returns what made an exchange fail, as soon as it is known; None if all others live."""
    deadline = time.monotonic() + _EXPLAIN_SECONDS
    while time.monotonic() < deadline:
        try:
            watch.beat()
            found = watch.lost(failed=True)
        except RuntimeError:
            found = 0, _ALL_GONE
        if found is not None:
            return found
        time.sleep(_BEAT_SECONDS)
    return None


def _look_on(watch: Watch, run: Run, over: threading.Event) -> None:
    """Beats and looks until the training is over; ends this process if another one is lost."""
    while not over.wait(_BEAT_SECONDS):
        try:
            watch.beat()
            found = watch.lost()
        except RuntimeError:  # of the store
            found = 0, _ALL_GONE
        if found is not None and not over.is_set():
            if watch.speaks(found[0]):
                sys.stderr.write(f"workbench: {_written(run, found[1])}\n")
                sys.stderr.flush()
            os._exit(RunError.exit_code)  # the main thread waits for the lost process

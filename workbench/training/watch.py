"""Notices in a run of several processes that one of them has ended, is frozen or hangs, and ends the others with one message.

Without it the others wait in an exchange, such as that of gradients, which nothing but its own end can interrupt, for as long as the first
process may need to evaluate alone.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from workbench.errors import ConfigError, Interrupted, RunError, WorkbenchError
from workbench.store.run import Run
from workbench.training.processes import interruptible
from workbench.training.signs import LEFT, AgreedStore, Sign, Store, has_ended, this_process, this_thread_works

SETTING = "WORKBENCH_STEP_TIMEOUT"
STEP_SECONDS = 600.0  # the longest that a step may take where processes wait for each other
FROZEN_SECONDS = 40.0  # a process that gives no sign for so long is stopped, or its machine is gone; one that is alone has a step's time
_LOST_SECONDS = 3.0  # the same where an exchange has failed, so that some process is known to be gone
_EXPLAIN_SECONDS = 20.0  # torchrun kills the others 30 s after one has ended
_SAME_ERROR_SECONDS = 5.0  # an error that all processes make is told by the first one, if it comes to it within this time
_BEAT_SECONDS = 0.5
_JOIN_SECONDS = 5.0  # the thread may be connecting still
_ALL_GONE = "the process that holds the processes of this run together has ended"


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


class Lost(NamedTuple):
    """A process that is lost.

    Attributes:
        rank: Its number.
        what: What is to be said of it.
        failed: True if it has said itself that it failed; the first process then tells the user itself.
        told: True if the user knows already.
    """

    rank: int
    what: str
    failed: bool = False
    told: bool = False


class Watch:
    """Tells the other processes of a run that this one lives and how far it is, and looks whether they do.

    Args:
        rank: number of this process.
        count: number of processes.
        store: what they share.
        prefix: begins the keys, so that one training is not taken for the next one.
        seconds: the longest that a step may take.
        clock: seconds of a clock that no one sets.
        works: tells whether the thread that trains works, or waits for other processes.
        process: names this process on its machine; empty where nothing is to be known of it but its signs.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        store: Store,
        prefix: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        works: Callable[[], bool] = lambda: True,
        process: str = "",
    ):
        self.rank, self.count, self.name = rank, count, ""
        self.run: Run | None = None  # while it is trained
        self._store, self._prefix, self._seconds, self._clock, self._works = store, prefix, seconds, clock, works
        self._process, self._told = process, f"{prefix}/told"
        self._beats, self._moves, self._step, self._alone = 0, 0, 0, 1
        self._seen: dict[int, tuple[Sign, float]] = {}  # what each other process said last, and when that changed
        self._moved = self._looked = self._began = clock()

    def at(self, step: int) -> None:
        """Says that this process has finished a step, or is about to do the first one after it."""
        self._step, self._moves, self._alone, self._moved = step, self._moves + 1, 0, self._clock()
        if self._moves == 1:
            with suppress(RuntimeError):  # of the store; what beats finds out why
                self._say(self._beats)  # training has begun; a process that ends before its next sign was in it

    @contextmanager
    def starting(self, name: str) -> Iterator[None]:
        """Watches the start of another run while the block runs: that of a teacher, which is trained first."""
        before = self.name, self.run
        self.name, self.run = name, None
        try:
            yield
        finally:
            self.name, self.run = before
            self._step, self._moves, self._alone = 0, 0, 1

    @contextmanager
    def trains(self, run: Run) -> Iterator[None]:
        """Writes into the run, should a process be lost while the block runs, that it has failed."""
        self.run = run
        yield

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
        """Gives a sign of life; a process that does not train, so that no step has to end, gives it only while it works."""
        if not self._alone or self._works():
            self._beats += 1
        self._say(self._beats)

    def leave(self, cause: str | None = None) -> None:
        """Says that this process ends its training, and why if it failed."""
        with suppress(RuntimeError):
            self._say(LEFT) if cause is None else self._store.set(f"{self._prefix}/{self.rank}", json.dumps(cause))

    def lost(self, failed: bool = False) -> Lost | None:
        """Returns the process that is lost; None if all is well.

        failed: an exchange has failed, so some process is gone, and a short silence tells which.
        """
        now, frozen = self._clock(), min(FROZEN_SECONDS, self._seconds)
        if now - self._looked > 10 * _BEAT_SECONDS:  # this process was stopped itself, as by Ctrl-Z: the others get their time again
            self._seen = {rank: (said, now) for rank, (said, _) in self._seen.items()}
            self._moved = self._began = now
        self._looked = now
        if self._store.check([self._told]):
            return Lost(int(self._store.get(self._told)), "another process has told the user", told=True)
        alone, silent = bool(self._alone), []
        for rank in set(range(self.count)) - {self.rank}:
            said = self._said(rank)
            which, when = f"process {rank} of {self.count}", self._seen[rank][0].when if rank in self._seen else Sign().when
            if isinstance(said, str):
                return Lost(rank, f"{which} has failed {when}: {said}", failed=True)
            if said is None:
                alone = True
                if now - self._began > self._seconds:
                    return Lost(rank, f"{which} has not begun within {self._seconds:.0f} s")
                continue
            if rank not in self._seen or self._seen[rank][0] != said:
                self._seen[rank] = said, now
            if said.beats == LEFT:
                continue
            if has_ended(said.process):
                return Lost(rank, f"{which} has ended {said.when}")
            alone = alone or bool(said.alone)
            patience = _LOST_SECONDS if failed else self._seconds if said.alone else frozen  # what is done alone may let no thread beat
            if now - self._seen[rank][1] > patience:
                silent.append((now - self._seen[rank][1], rank, said))
        if silent:
            waited, rank, said = max(silent)
            how = "has ended, is frozen or hangs" if said.alone else "has ended or is frozen"
            return Lost(rank, f"process {rank} of {self.count} {how} {said.when}: it has given no sign for {waited:.0f} s")
        if alone:
            self._moved = now
        if now - self._moved > self._seconds:
            behind = min([(said.step, rank) for rank, (said, _) in self._seen.items()], default=(self._step, self.rank))
            what = f"step {self._step + 1} has taken longer than {self._seconds:.0f} s. Process {behind[1]} of {self.count} is behind, "
            return Lost(behind[1], what + f"at step {behind[0]}. If a step takes so long here, set {SETTING} to more seconds")
        return None

    def speaks(self, lost: Lost) -> bool:
        """True if this process is the one that tells the user: the first that is not lost, unless the first of all tells it itself."""
        return self.rank == (1 if lost.rank == 0 else 0) and not lost.told and not (lost.failed and lost.rank == 0)

    def have_left(self, ranks: set[int] | None = None) -> bool:
        """True if all these processes, by default all others, have said that they end."""
        ranks = set(range(self.count)) - {self.rank} if ranks is None else ranks
        return all(isinstance(said, str) or (said is not None and said.beats == LEFT) for said in map(self._said, ranks))

    def message(self, lost: Lost) -> str:
        """Returns what the user is told, after it was written into the run if that is trained.

        The others learn that it is told: one that hangs looks on, and would say that this process has ended.
        """
        with suppress(RuntimeError):
            self._store.set(self._told, str(lost.rank))
        if self.run is None or not self.run.info_path.exists():
            return f"run '{self.name}' did not get to its training: {lost.what}. Start it again."
        message = f"run '{self.name}' has stopped: {lost.what}. Resume it from its last checkpoint: workbench run --resume {self.name}"
        with suppress(WorkbenchError, OSError):  # its folder may be what was lost
            self.run.update_info(state="failed", error=message)
        return message

    def _say(self, beats: int) -> None:
        sign = Sign(beats, self._moves, self._step, self._alone, self._process)
        self._store.set(f"{self._prefix}/{self.rank}", json.dumps(sign))

    def _said(self, rank: int) -> Sign | str | None:
        key = f"{self._prefix}/{rank}"
        if not self._store.check([key]):
            return None
        said = json.loads(self._store.get(key))
        return said if isinstance(said, str) else Sign(*said)


class Unwatched:
    """Stands in for a ``Watch`` where a run has one process."""

    def at(self, step: int) -> None:
        """Does nothing."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Does nothing."""
        yield

    @contextmanager
    def trains(self, run: Run) -> Iterator[None]:
        """Does nothing."""
        yield


_watches = 0
_current: Watch | None = None


@contextmanager
def watched(name: str) -> Iterator[Watch | Unwatched]:
    """Watches the other processes while the block joins them, starts a run and trains it.

    If one is lost, the first of the others says what happened, and writes it into the run if that is trained, and all end. An exchange that
    failed because of it is an error that says the same. An error is told by one process.

    Args:
        name: name of the run.

    Raises:
        ConfigError: the time of a step is not given in seconds.
        ProcessLostError: another process is lost.
        SystemExit: in the processes that do not tell.
    """
    global _watches, _current
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if _current is not None:
        with _current.starting(name):
            yield _current
        return
    try:
        seconds = step_seconds()
    except ConfigError as error:
        if rank:
            raise SystemExit(error.exit_code) from error
        raise
    if count == 1:
        yield Unwatched()
        return
    _watches += 1
    prefix = f"workbench/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_watches}"
    store, over = AgreedStore(), threading.Event()
    _current = watch = Watch(rank, count, store, prefix, seconds, works=this_thread_works(), process=this_process())
    watch.name = name
    thread = threading.Thread(target=_look_on, args=(watch, over, lambda: store.connect(seconds)), name="watch", daemon=True)
    thread.start()
    try:
        yield watch
    except BaseException as error:
        with interruptible():  # torchrun sends SIGTERM meanwhile
            over.set()
            thread.join(_JOIN_SECONDS)
            _end(watch, error)
        raise
    else:
        over.set()
        thread.join(_JOIN_SECONDS)
        watch.leave()
    finally:
        _current = None


def _end(watch: Watch, error: BaseException) -> None:
    """Says to the other processes how this one ends; raises another error in place of ``error`` if they are its cause or tell of it."""
    if isinstance(error, WorkbenchError):
        watch.leave(None if isinstance(error, Interrupted) else str(error))
        if watch.rank == 0:
            return
        with suppress(RuntimeError):
            _wait(lambda: watch.have_left({0}), 2 * _SAME_ERROR_SECONDS)  # torchrun ends it as soon as this process has ended
        raise SystemExit(error.exit_code) from error
    stopped = isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128)
    if not stopped and not isinstance(error, RuntimeError):
        watch.leave(f"{type(error).__name__}: {error}")
        return
    if stopped:  # torchrun sends SIGTERM where another process has ended
        watch.leave()
    found = _explained(watch, stopped)
    message = watch.message(found) if found is not None and watch.speaks(found) else None
    watch.leave(f"{type(error).__name__}: {error}" if found is None and not stopped else None)
    if message is not None:
        raise ProcessLostError(message) from error
    if found is not None or (watch.rank and isinstance(error, KeyboardInterrupt)):
        raise SystemExit(RunError.exit_code if found is not None else Interrupted.exit_code) from error


def _wait(holds: Callable[[], object], seconds: float) -> None:
    """Waits until ``holds()`` is true, but no longer than this."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(_BEAT_SECONDS / 5)


def _explained(watch: Watch, stopped: bool) -> Lost | None:
    """Returns the process that made an exchange fail, or because of which this one was stopped, as soon as it is known."""
    found: Lost | None = None

    def known() -> bool:
        nonlocal found
        try:
            if not stopped:
                watch.beat()
            found = watch.lost(failed=not stopped)  # a process that reads a large file may give no sign for a while
            return found is not None or (stopped and watch.have_left())
        except RuntimeError:
            found = Lost(0, _ALL_GONE)
            return True

    _wait(known, 2 * _LOST_SECONDS if stopped else _EXPLAIN_SECONDS)
    return found


def _look_on(watch: Watch, over: threading.Event, connect: Callable[[], None]) -> None:
    """Beats and looks until the training is over; ends this process if another one is lost."""
    connected = False
    while not over.is_set():
        try:
            if not connected:
                connect()
                connected = True
            watch.beat()
            found = watch.lost()
        except RuntimeError:  # of the store
            found = Lost(0, _ALL_GONE)
        if found is not None and not over.wait(_SAME_ERROR_SECONDS if found.failed else 0):
            if watch.speaks(found):
                sys.stderr.write(f"workbench: {watch.message(found)}\n")
                sys.stderr.flush()
            os._exit(RunError.exit_code)  # the main thread waits for the lost process
        over.wait(_BEAT_SECONDS)

"""The loop of a worker: takes a trial, examines it, trains it, records what became of it, and takes the next.

A worker is a process that lives as long as the search, because starting one takes longer than a trial. Any number of them work on one
search.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from workbench.errors import Interrupted
from workbench.search.asked import Asked
from workbench.search.candidate import Candidate, Outcome
from workbench.search.records import TrialRecord
from workbench.search.stages import next_trial
from workbench.search.study import SearchStudy

PAUSE_SECONDS = 0.5


class Trainer(Protocol):
    """Trains candidates."""

    def train(self, candidate: Candidate, seed: int, rung: Callable[[int, float], bool]) -> Outcome:
        """Trains a candidate.

        Args:
            candidate: what to train.
            seed: seed of the student and the order of the data.
            rung: called with step and AP at each rung; True ends the trial there.
        """
        ...


def work(search: SearchStudy, trainer: Trainer, told: Callable[[Asked, Outcome], None] = lambda asked, outcome: None) -> bool:
    """Trains trials until the search is done or is stopped.

    Args:
        search: the search, opened for writing.
        trainer: trains the candidates.
        told: called after each trial.

    Returns:
        True if the search is done, False if it was stopped.

    Raises:
        Interrupted: Ctrl-C was pressed, once to end after the trial, or twice to end at once; the trial is then queued again.
    """
    with _interruptible() as interrupted:
        while True:
            search.sweep()
            if interrupted():
                raise Interrupted(f"search '{search.name}' was interrupted after a trial. The same command continues it.")
            if search.stop_path.exists():
                return False
            asked = next_trial(search)
            if asked == "done":
                return True
            if asked == "wait":
                time.sleep(PAUSE_SECONDS)
                continue
            told(asked, train(search, trainer, asked))


def train(search: SearchStudy, trainer: Trainer, asked: Asked) -> Outcome:
    """Trains one trial and records what became of it.

    Raises:
        Interrupted: Ctrl-C was pressed twice; the trial is queued again.
    """
    reason = asked.space.refusal(asked.genes)
    if reason is not None or asked.candidate is None:
        outcome = Outcome(None, gate="R0", reason=reason or "nothing is left of it")
        search.tell(asked, outcome)
        return outcome
    twin = _twin(search, asked)
    if twin is not None:
        gate: Any = twin.gate
        outcome = Outcome(twin.value, twin.rungs, gate, twin.reason)
        search.tell(asked, outcome, same_as=twin.number)
        return outcome
    try:
        outcome = trainer.train(asked.candidate, asked.seed, lambda step, ap: search.rung(asked, step, ap))
    except Exception as error:
        search.fail(asked, f"{type(error).__name__}: {error}", retry=False)
        raise
    except BaseException as error:
        search.fail(asked, "its worker was interrupted", retry=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"search '{search.name}' was interrupted. The same command continues it.") from error
        raise
    search.tell(asked, outcome)
    return outcome


def _twin(search: SearchStudy, asked: Asked) -> TrialRecord | None:
    """Returns the trial that has trained the same with the same seed, as samplers that repeat themselves propose it."""
    key = asked.space.key(asked.genes)
    ended = (r for r in search.records(asked.study) if r.state in ("COMPLETE", "PRUNED") and r.same_as is None and not r.repeat)
    return next((record for record in ended if (record.canonical, record.seed) == (key, asked.seed)), None)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed; the second time it interrupts as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)

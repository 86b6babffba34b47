"""Describes a trial that a process trains now, and holds the lock by which others see that the process lives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from optuna.trial import Trial

from workbench.errors import RunError
from workbench.files import try_lock
from workbench.search.candidate import Candidate
from workbench.search.genes import Space


@dataclass(eq=False)
class Asked:
    """A trial that this process trains now.

    Attributes:
        study: Name of its study.
        number: Its number there.
        space: What its study chooses from.
        genes: Its choices.
        candidate: What to train; None if the choices leave nothing.
        seed: Seed to train with.
        unpruned: Whether it runs to its end whatever a rung says.
        rungs: AP by step, of the rungs that it has reached.
    """

    study: str
    number: int
    space: Space
    genes: dict[str, Any]
    candidate: Candidate | None
    seed: int
    unpruned: bool
    trial: Trial
    lock: IO[Any]
    rungs: dict[int, float] = field(default_factory=dict[int, float])


class TrialLocks:
    """The locks of the trials that run, a file each, which the kernel frees with the process that holds it.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def take(self, study: str, number: int) -> IO[Any]:
        """Locks a trial for this process.

        Raises:
            RunError: another process holds it.
        """
        path = self._path(study, number)
        lock = open(path, "a+b")
        if not try_lock(lock):
            lock.close()
            raise RunError(f"{path} is locked by another process, though its trial has only begun.")
        return lock

    def give_back(self, asked: Asked) -> None:
        """Frees a trial that this process has ended."""
        self._path(asked.study, asked.number).unlink(missing_ok=True)
        asked.lock.close()

    @contextmanager
    def abandoned(self, study: str, number: int) -> Iterator[bool]:
        """Gives True if the process that trained a trial is gone; the lock is then held meanwhile, and its file removed at the end."""
        path = self._path(study, number)
        with open(path, "a+b") as lock:
            gone = try_lock(lock)
            yield gone
            if gone:
                path.unlink(missing_ok=True)

    def _path(self, study: str, number: int) -> Path:
        return self.folder / f"{study}-{number}"

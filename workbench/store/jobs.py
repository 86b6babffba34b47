"""The folder of the jobs of ``workbench distill``: where it lies, what a job keeps of its progress, and who works on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import RunError, WorkbenchError
from workbench.files import lock_within, read_json, try_lock, write_json
from workbench.store.run import LOCK_PATIENCE_SECONDS, runs_root

PLAN, LOCK = "plan.json", ".lock"
STAGES = ("teacher", "cache", "students", "answer")
DONE = "done"


@dataclass(frozen=True)
class Job:
    """What the files of a job say.

    Attributes:
        name: Name of the job.
        state: running, done, or stopped (neither done nor worked on).
        stage: One of ``STAGES``, or ``DONE``.
        began: When this stage began, as seconds since 1970.
        expected: Wall seconds that each stage was expected to take when the steps were last fitted to the budget.
        planned: Wall seconds that the whole job was expected to take when it was planned.
        teacher: Name of the teacher's run; None if the teacher was there.
        students: Names of the students' runs.
    """

    name: str
    state: str
    stage: str
    began: float
    expected: dict[str, float]
    planned: float
    teacher: str | None
    students: tuple[str, ...]


def jobs_root() -> Path:
    """Returns the folder of jobs, beside the folder of runs."""
    return Path(runs_root()).parent / "distilled"


def read_jobs(root: Path | None = None) -> list[Job]:
    """Returns the jobs of a folder by name; one whose plan cannot be read, or that was begun before plans held stages, is left out."""
    found: list[Job] = []
    for path in sorted((root or jobs_root()).glob(f"*/{PLAN}")):
        try:
            kept = read_json(path)
            expected = {stage: float(kept["expected"][stage]) for stage in STAGES}
            state = DONE if kept["stage"] == DONE else "running" if _is_worked_on(path.parent) else "stopped"
            found.append(Job(path.parent.name, state, kept["stage"], float(kept["stage_began"]), expected, float(kept["planned"]),
                             kept["runs"]["teacher"], tuple(kept["runs"]["students"])))  # fmt: skip
        except (WorkbenchError, KeyError, TypeError, ValueError):
            continue
    return found


def enter_stage(folder: Path, stage: str) -> None:
    """Writes down that a job enters a stage now."""
    kept: dict[str, Any] = read_json(folder / PLAN)
    write_json(folder / PLAN, {**kept, "stage": stage, "stage_began": time.time()})


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Marks a job as worked on; the kernel removes the mark when the process ends, however it ends.

    Raises:
        RunError: another process works on it.
    """
    with open(folder / LOCK, "w", encoding="ascii") as file:
        if not lock_within(file, LOCK_PATIENCE_SECONDS):
            raise RunError(f"the job '{folder.name}' is being worked on by another process. Wait for it or stop it.")
        yield


def _is_worked_on(folder: Path) -> bool:
    try:
        with open(folder / LOCK, "rb") as file:
            return not try_lock(file)
    except OSError:
        return False

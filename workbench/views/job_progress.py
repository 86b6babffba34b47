"""Says how far a job of ``workbench distill`` is: which stages are done, which are to come, and how long it takes yet."""

from dataclasses import dataclass
from pathlib import Path

from workbench.duration import duration
from workbench.errors import WorkbenchError
from workbench.store.jobs import DONE, STAGES, Job
from workbench.store.run import Run


@dataclass(frozen=True)
class JobProgress:
    """Progress of one job.

    Attributes:
        job: The job.
        share: Share of its expected time that is over, 0..1.
        left: Wall seconds that are expected until it is done.
        text: The same for people: stages done, in progress and to come, and the time left.
    """

    job: Job
    share: float
    left: float
    text: str


def progress_of(job: Job, runs: Path, now: float) -> JobProgress:
    """Returns the progress of a job.

    A stage that trains is as far as the steps of its runs; the others are as far as the time that they were expected to take.

    Args:
        job: the job.
        runs: folder of its runs.
        now: seconds since 1970.
    """
    if job.stage == DONE:
        return JobProgress(job, 1.0, 0.0, "done")
    place = STAGES.index(job.stage)
    names = {"teacher": [job.teacher] if job.teacher else [], "students": list(job.students)}.get(job.stage)
    if names is None:
        expected = job.expected[job.stage]
        over = min((now - job.began) / expected, 1.0) if job.state == "running" and expected > 0 else 0.0
    else:
        over = sum(_share(Run(runs / name)) for name in names) / max(len(names), 1)
    left = (1 - over) * job.expected[job.stage] + sum(job.expected[stage] for stage in STAGES[place + 1 :])
    parts = [f"{' and '.join(stages)} {what}" for stages, what in ((STAGES[:place], "done"), (STAGES[place + 1 :], "to come")) if stages]
    parts.insert(1 if place else 0, f"{job.stage} {100 * over:.0f} %")
    share = min(max(1 - left / job.planned, 0.0), 1.0) if job.planned > 0 else 0.0
    return JobProgress(job, share, left, f"{', '.join(parts)}; about {duration(left)} left")


def _share(run: Run) -> float:
    """Returns the share of its steps that a run has made; 0 if it has not begun."""
    try:
        steps, lines = int(run.info()["recipe"]["train"]["steps"]), run.timings()
        return 1.0 if run.info().get("state") == "done" else min(lines[-1]["step"] / steps, 1.0) if lines else 0.0
    except (WorkbenchError, OSError, KeyError, TypeError, ValueError):
        return 0.0

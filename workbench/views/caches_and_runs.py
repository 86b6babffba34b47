"""Shows what lies on disk and what is running: sizes of runs by part, their state and health, and the progress of a running one."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.remote import is_remote
from workbench.store.jobs import DONE, read_jobs
from workbench.store.manifest import is_complete
from workbench.store.run import Run
from workbench.views.catalog import Entry
from workbench.views.job_progress import JobProgress, progress_of
from workbench.views.style import COLOURS, GREY, Chart, plain, quiet, reach, with_names

PARTS = ("checkpoints", "queries", "states", "detections", "derived")
OTHER = "logs"
SIZES_CAPTION = "Size of each run's files by what they hold. Links are not followed."


def sizes(folder: Path) -> dict[str, int]:
    """Returns the bytes below a run's folder by part, and the number of ``files``; links are neither counted nor followed."""
    found: dict[str, int] = dict.fromkeys((*PARTS, OTHER, "files"), 0)
    if is_remote(folder):
        for path in folder.rglob("*"):
            if path.is_file():
                part = path.relative_to(folder).parts[0]
                found[part if part in PARTS else OTHER] += path.stat().st_size
                found["files"] += 1
        return found
    for place, _, names in os.walk(folder):
        part = os.path.relpath(place, folder).split(os.sep)[0]
        for name in names:
            path = os.path.join(place, name)
            try:
                if not os.path.islink(path):
                    found[part if part in PARTS else OTHER] += os.lstat(path).st_size
                    found["files"] += 1
            except OSError:  # removed in the meantime
                continue
    return found


def jobs_not_done(runs: Path) -> list[JobProgress]:
    """Returns the progress of the jobs beside a folder of runs that are running or were stopped; none for a remote folder."""
    if is_remote(runs):
        return []
    return [progress_of(job, runs, time.time()) for job in read_jobs() if job.state != DONE]


def health(entry: Entry) -> str:
    """Returns what is wrong with the files of a run; "" if they are complete."""
    if entry.problem:
        return entry.problem
    if entry.error:
        return f"failed: {entry.error}"
    if entry.state == "stopped":
        return f"stopped before its end and nothing writes to it; continue it with 'workbench run --resume {entry.run.name}'"
    broken = [path.name for kind in ("queries", "states") for path in sorted((entry.run.path / kind).glob("split=*/step=*"))
              if not is_complete(path)]  # fmt: skip
    return f"incomplete: {', '.join(broken)}" if broken else ""


def runs_table(entries: Sequence[Entry], found: dict[str, dict[str, int]]) -> pd.DataFrame:
    """Returns one row per run: what it is, its progress, the sizes of its parts (MB), and what is wrong with it.

    Args:
        entries: entries of the catalog.
        found: result of ``sizes`` by name of the run.
    """
    rows: list[dict[str, Any]] = []
    for entry in entries:
        own = found[entry.run.name]
        parts = {part: own[part] / 1e6 for part in (*PARTS, OTHER)}
        rows.append({
            "run": entry.run.name, "state": entry.state or "cannot be shown", "progress": entry.step / entry.steps if entry.steps else None,
            "recipe": entry.recipe, "arm": entry.arm, "seed": entry.seed, "created": entry.created[:16].replace("T", " "),
            "size": sum(parts.values()), **parts, "files": own["files"], "health": health(entry) or "good",
        })  # fmt: skip
    return pd.DataFrame(rows)


def sizes_figure(table: pd.DataFrame, most: int = 25) -> go.Figure:
    """Draws the largest runs of ``runs_table``, one bar each, divided into parts."""
    largest = table.sort_values("size", ascending=False).head(most)
    names = [plain(name) for name in largest["run"]]
    figure = Chart()
    for position, part in enumerate((*PARTS, OTHER)):
        figure.add_bar(
            y=list(range(len(names))), hovertext=names, x=largest[part], name=part, orientation="h",
            marker={"color": COLOURS[position] if position < len(PARTS) else GREY, "line_width": 0},
            hovertemplate=f"%{{hovertext}}<br>{part} %{{x:.1f}} MB<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="MB", range=reach(largest[[*PARTS, OTHER]].to_numpy(float).sum(1), zero=True))
    return with_names(quiet(figure, 110 + 20 * len(largest), barmode="stack", bargap=0.25, legend_y=1.01), names)


def pace(run: Run, step: int, steps: int) -> tuple[float | None, float | None]:
    """Returns steps per second over the last logged lines and the seconds that remain at that pace; None where it is unknown."""
    lines = run.timings()[-20:]
    if len(lines) < 2 or lines[-1]["wall"] <= lines[0]["wall"]:
        return None, None
    speed = (lines[-1]["step"] - lines[0]["step"]) / (lines[-1]["wall"] - lines[0]["wall"])
    return speed, (steps - step) / speed if speed > 0 else None

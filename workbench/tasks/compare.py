"""Trains arms times seeds of a recipe, several processes at a time; a finished run is a row that is not made again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from workbench.analysis.report.summary import TEACHER, table
from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.recipe.naming import written_name
from workbench.recipe.written import written_recipe
from workbench.store.groups import EQUAL_COMPUTE, EQUAL_STEPS, UNDISTILLED
from workbench.store.run import Run, runs_root
from workbench.tasks.same_settings import differences

# the cost of a step is read from a run once it has made this share of its steps
ENOUGH = 0.25


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Attributes:
        recipe: Recipe file.
        arm: Arm of the recipe, or the recipe's own arm: distilled, or undistilled if it has no methods.
        seed: Seed of initialisation and data order.
        schedule: Equal steps; or equal compute: shortened to the baseline's process seconds, with its own full schedule.
        name: Name of the run.
    """

    recipe: Path
    arm: str
    seed: int
    schedule: str
    name: str


def plan(
    recipe_path: Path,
    arms: Sequence[str],
    seeds: Sequence[int],
    equal_compute: Sequence[str],
    prefix: str = "",
    data: str | None = None,
) -> list[Row]:
    """Returns the rows in the order they should start: baselines first, equal-compute rows after those they depend on.

    Args:
        recipe_path: recipe file.
        arms: arms of the recipe.
        seeds: seeds of each arm.
        equal_compute: arms that are trained at equal compute too.
        prefix: what the names of the runs begin with.
        data: dataset path for every run, which their names carry; None takes the recipe's.

    Raises:
        ConfigError: the recipe or an arm is wrong, or an equal-compute row lacks the rows it is measured from.
    """
    for arm in equal_compute:
        if not {UNDISTILLED, arm} <= set(arms):
            raise ConfigError(
                f"equal compute for '{arm}' needs the arms '{UNDISTILLED}' and '{arm}' at equal steps in the same comparison. Add them."
            )
    given = [f"data.path={json.dumps(data)}"] if data is not None else []
    rows: list[Row] = []
    for chosen, schedule in ((arms, EQUAL_STEPS), (equal_compute, EQUAL_COMPUTE)):
        for seed in seeds:
            for arm in chosen:
                overrides = [*given, f"seed={seed}"]
                name = prefix + written_name(written_recipe(recipe_path, overrides, arm), arm, schedule == EQUAL_COMPUTE)
                rows.append(Row(recipe_path, arm, seed, schedule, name))
                if state(rows[-1]) != "done":
                    from workbench.recipe.loading import load_recipe  # it loads torch, which finished rows do not need

                    load_recipe(recipe_path, overrides, arm)
    return rows


def state(row: Row, root: Path | None = None) -> str:
    """Returns ``done``, ``partial`` or ``missing``."""
    path = (root or runs_root()) / row.name
    if not (path / "run.json").exists():
        return "missing"
    return "done" if Run(path).info().get("state") == "done" else "partial"


def execute(
    rows: Sequence[Row],
    jobs: int,
    overrides: Sequence[str] = (),
    data: str | None = None,
    device: str = "cpu",
    watch: Callable[[list[Run]], None] | None = None,
) -> None:
    """Runs every row that is not done, ``jobs`` processes at a time; a first row whose recipe makes the teacher runs alone.

    Args:
        rows: result of ``plan``.
        jobs: number of processes.
        overrides: ``key=value`` for every run.
        data: dataset path for every run.
        device: device of every run.
        watch: called about twice a second with the runs in progress.

    Raises:
        ConfigError: an override is wrong.
        RunError: an existing row was made with other settings, or a run failed. The other runs are then stopped and can be resumed; the
            message ends with the last lines of the failed run.
    """
    for row in rows:
        _refuse_other(row, overrides, data)
    waiting = [row for row in rows if state(row) != "done"]
    teachers = {row.name: _teacher_run(row, overrides, data) for row in waiting}
    begun = list(waiting)
    running: dict[str, tuple[Row, subprocess.Popen[bytes], Path]] = {}
    logs = runs_root() / ".logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create {logs}: {error.strerror}. Choose a writable folder with --runs.") from error
    try:
        while waiting or running:
            for row in list(waiting):
                if len(running) >= jobs:
                    break
                steps = _steps(row, rows)
                if steps is None or (running and not _done(teachers[row.name])):
                    continue
                waiting.remove(row)
                log = logs / f"{row.name}.log"
                running[row.name] = (row, _start(row, steps, overrides, data, device, log), log)
            if not running:
                raise RunError("equal-compute rows need the baseline and the arm at equal steps in the same comparison. Add both.")
            for name, (row, process, log) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    if process.returncode != 0:
                        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                        raise RunError(f"run '{row.name}' ended with code {process.returncode}:\n{tail}")
            if watch is not None:
                watch([Run(runs_root() / name) for name in running if (runs_root() / name / "run.json").exists()])
            time.sleep(0.4)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()
    for row in begun:
        # keeps what the next call would have to find out; that call also refuses a recipe that was edited in the meantime
        with suppress(WorkbenchError):
            _refuse_other(row, overrides, data)


def _refuse_other(row: Row, overrides: Sequence[str], data: str | None) -> None:
    """Refuses an existing row that was made from another recipe or other data."""
    run = Run(runs_root() / row.name)
    if not run.info_path.exists():
        return
    but = ("train.steps",) if row.schedule == EQUAL_COMPUTE else ()
    if changes := differences(run, row.recipe, _given(overrides, data), row.arm, but):
        raise RunError(
            f"run '{row.name}' already exists and was made with other settings: {'; '.join(changes)}. Remove it with "
            f"'workbench runs rm {row.name}', or use another folder with --runs."
        )


def _teacher_run(row: Row, overrides: Sequence[str], data: str | None) -> str | None:
    """Returns the name of the teacher's run if a recipe makes the teacher.

    Raises:
        ConfigError: the recipe of the row is wrong.
    """
    from workbench.recipe.loading import load_recipe  # these load torch, which finished rows do not need
    from workbench.training.launch import teacher_of

    made = teacher_of(load_recipe(row.recipe, _given(overrides, data), row.arm), row.recipe.parent)
    return None if made is None else made[2]


def _given(overrides: Sequence[str], data: str | None) -> list[str]:
    return [*overrides, *([f"data.path={json.dumps(data)}"] if data is not None else [])]


def _done(name: str | None) -> bool:
    path = runs_root() / str(name) / "run.json"
    return name is None or (path.exists() and Run(path.parent).info().get("state") == "done")


def _steps(row: Row, rows: Sequence[Row]) -> int | None:
    """Returns the row's number of steps: 0 for that of the recipe, None if an equal-compute row's number is not known yet."""
    if row.schedule == EQUAL_STEPS:
        return 0
    path = runs_root() / row.name / "run.json"
    if path.exists():
        return int(Run(path.parent).info()["recipe"]["train"]["steps"])
    names = {(r.arm, r.schedule): r.name for r in rows if r.recipe == row.recipe and r.seed == row.seed}
    baseline, arm = (Run(runs_root() / names[key, EQUAL_STEPS]) for key in (UNDISTILLED, row.arm))
    if state(next(r for r in rows if r.name == baseline.name)) != "done" or not arm.info_path.exists():
        return None
    spent = baseline.timings()[-1]
    timings = arm.timings()
    if not timings or timings[-1]["step"] < ENOUGH * spent["step"]:
        return None
    kind = "cpu" if str(baseline.info().get("device")) == "cpu" else "wall"
    return max(int(spent[kind] / (timings[-1][kind] / timings[-1]["step"])), 1)


def _start(row: Row, steps: int, overrides: Sequence[str], data: str | None, device: str, log: Path) -> subprocess.Popen[bytes]:
    if state(row) == "partial":
        command = [sys.executable, "-P", "-m", "workbench", "run", "--resume", row.name]
    else:
        command = [sys.executable, "-P", "-m", "workbench", "run", str(row.recipe), "--seed", str(row.seed), "--name", row.name]
        command += ["--group", row.schedule, "--arm", row.arm]
        for override in overrides:
            command += ["--set", override]
        if steps:
            command += ["--set", f"train.steps={steps}"]
        if data is not None:
            command += ["--data", data]
    command += ["--device", device, "--plain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)


def distilled_arms(arms: Sequence[str]) -> list[str]:
    """Returns the arms that a comparison also shows at equal compute: all but the baseline, none if there is no baseline."""
    return [arm for arm in arms if arm != UNDISTILLED] if UNDISTILLED in arms else []


def compare_rows(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns one line per finished run and one for the teacher, with the columns of ``analysis.report.summary``."""
    runs = [Run(runs_root() / row.name) for row in rows if state(row) == "done"]
    return table(runs, with_teacher=True)


def seed_table(frame: pd.DataFrame) -> str:
    """Returns ``seed_rows`` as Markdown."""
    heading, *rows = seed_rows(frame)
    return "\n".join(f"| {' | '.join(row)} |" for row in [heading, *rows]).replace("\n", "\n|" + "---|" * len(heading) + "\n", 1)


def seed_rows(frame: pd.DataFrame) -> list[list[str]]:
    """Returns arms by seeds: test AP of each seed, mean, range, and the paired difference to the undistilled run of the same seed.

    Args:
        frame: result of ``compare_rows`` for one recipe. If it has the columns ``ap_low`` and ``ap_high``, each AP is followed by its
            interval.

    Returns:
        Cells as text, headings first; the teacher has no line.
    """
    students = frame[frame["arm"] != TEACHER]
    seeds = sorted(students["seed"].unique())
    baseline = students[(students["arm"] == UNDISTILLED) & (students["schedule"] == EQUAL_STEPS)].set_index("seed")["ap"]
    seed_headings = [f"seed {seed}" for seed in seeds]
    lines = [["arm", "schedule", "steps", *seed_headings, "mean AP", "range", "difference to undistilled", "compute"]]
    for (arm, schedule), group in students.groupby(["arm", "schedule"], sort=False):
        by_seed = group.set_index("seed")
        aps = [by_seed["ap"].get(seed) for seed in seeds]
        known = [ap for ap in aps if ap is not None]
        pairs = [(by_seed["ap"][seed], baseline.get(seed)) for seed in by_seed.index]
        paired = [ap - other for ap, other in pairs if ap is not None and other is not None]
        gain = f"{100 * sum(paired) / len(paired):+.1f} ({', '.join(f'{100 * value:+.1f}' for value in paired)})" if paired else "-"
        cells = [
            str(arm), str(schedule), _span([int(value) for value in by_seed["steps"]]),
            *("-" if ap is None else _estimate(by_seed.loc[seed]) for seed, ap in zip(seeds, aps, strict=True)),
            f"{100 * sum(known) / len(known):.1f}" if known else "-",
            f"{100 * min(known):.1f} to {100 * max(known):.1f}" if known else "-",
            "-" if arm == UNDISTILLED and schedule == EQUAL_STEPS else gain,
            _span([round(value) for value in by_seed["compute_seconds"]]) + " s",
        ]  # fmt: skip
        lines.append(cells)
    return lines


def notes(frame: pd.DataFrame) -> list[str]:
    """Returns what a reader must know about the methods of the rows: which of them are re-implementations, and of what."""
    runs = [Run.open(str(name)) for name in frame.loc[frame["arm"] != TEACHER, "run"]]
    return notes_on(str(config["method"]) for run in runs for config in run.info()["recipe"]["methods"])


def notes_on(methods: Iterable[str]) -> list[str]:
    """Returns which of these methods are re-implementations, and of what, each once."""
    from workbench.methods.registry import METHODS, find_method  # it loads torch, which a table does not need

    sources = {name: find_method(name).citation for name in dict.fromkeys(methods) if name in METHODS}
    return [f"{name}: {source}" for name, source in sources.items() if "re-implementation" in source]


def _estimate(row: pd.Series) -> str:
    low, high = row.get("ap_low"), row.get("ap_high")
    return f"{100 * row['ap']:.1f}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _span(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"

"""Runs the workers of a search with its progress, and says how far it is in rows and sentences."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from workbench.commands.console import console
from workbench.commands.progress import console_count
from workbench.duration import duration
from workbench.errors import Interrupted, MissingExtraError, RunError, pip_install

if TYPE_CHECKING:
    from workbench.search.asked import Asked
    from workbench.search.candidate import Outcome
    from workbench.search.plan import SearchPlan
    from workbench.search.records import Mean
    from workbench.search.study import SearchStudy

LOOK_SECONDS = 1.0


def require_optuna() -> None:
    """Raises a ``MissingExtraError`` if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"a search needs Optuna. Run: {pip_install('search')}") from error


def train_here(plan: "SearchPlan", folder: Path, device: str, other_code: bool, plain: bool) -> "SearchStudy":
    """Trains the trials of a search in this process until it is done or stopped; returns the search.

    Args:
        plan: what to search.
        folder: folder of the search.
        device: device to train on.
        other_code: whether another commit may have begun it.
        plain: print a line for each trial instead of a progress bar.
    """
    from workbench.files import hash_json
    from workbench.search.stages import total_cost
    from workbench.search.study import SearchStudy
    from workbench.search.trainer import TrialTrainer
    from workbench.search.workers import work

    SearchStudy.check(plan, folder, other_code)
    trainer = TrialTrainer(plan, device, folder, lambda text: console.print(Text(text), soft_wrap=True))
    search = SearchStudy.open(plan, folder, hash_json(list(trainer.fitness_images)), other_code)
    with _counting(plain) as count:

        def told(asked: "Asked", outcome: "Outcome") -> None:
            cost = total_cost(search)
            count(cost.trials, cost.total)
            if plain or not console.is_terminal:
                ended = f"AP {100 * (outcome.ap or 0):.1f}" if outcome.gate is None else f"{outcome.gate}: {outcome.reason}"
                left = "" if cost.left is None else f", {duration(cost.left)} left"
                line = f"{asked.study} {asked.number}: {asked.candidate}: {ended} ({cost.trials} of {cost.total}{left})"
                console.print(Text(line), soft_wrap=True)

        work(search, trainer, told)
    return search


def train_there(plan: "SearchPlan", path: Path, folder: Path, workers: int, device: str, other_code: bool, plain: bool) -> "SearchStudy":
    """Trains the trials of a search in several processes until it is done or stopped; returns the search.

    Args:
        plan: what to search.
        path: file of the plan.
        folder: folder of the search.
        workers: number of processes.
        device: device of each of them.
        other_code: whether another commit may have begun it.
        plain: print lines instead of a progress bar.

    Raises:
        RunError: a worker failed; the message ends with its last lines. The others have been ended, and their trials queued again.
        Interrupted: Ctrl-C was pressed; the workers have ended after their trials.
    """
    from workbench.search.stages import total_cost
    from workbench.search.study import SearchStudy

    SearchStudy.check(plan, folder, other_code)
    logs = [folder / "workers" / f"{index}.log" for index in range(workers)]
    try:
        logs[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {logs[0].parent}: {error.strerror}. Choose a writable folder with WORKBENCH_SEARCHES.") from error
    processes = [_start(path, log, workers, device, other_code) for log in logs]
    search: SearchStudy | None = None
    try:
        with _counting(plain) as count:
            while any(process.poll() is None for process in processes):
                if any(process.returncode for process in processes):
                    break
                if (folder / "journal.log").is_file() and (folder / "study.json").is_file():
                    search = search or SearchStudy.read(folder)
                    cost = total_cost(search)
                    count(cost.trials, cost.total)
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        # the terminal has sent it to the workers too
        console.print("ending after the trials that run; press Ctrl-C again to end at once", soft_wrap=True)
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
    codes = {log: process.returncode for log, process in zip(logs, processes, strict=True)}
    if Interrupted.exit_code in codes.values():
        raise Interrupted(f"search '{plan.name}' was interrupted. The same command continues it.")
    for log, code in codes.items():
        if code not in (0, 143):
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise RunError(f"a worker of search '{plan.name}' ended with code {code}:\n{tail}")
    return SearchStudy.read(folder)


def _start(path: Path, log: Path, workers: int, device: str, other_code: bool) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-m", "workbench", "search", "run", str(path), "--worker", "--device", device]
    command += ["--other-code"] if other_code else []
    threads = str(max((os.cpu_count() or 1) // workers, 1))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with open(log, "ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)


@contextmanager
def _counting(plain: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows how many trials are done, and the time left; it shows nothing where lines are printed."""
    if plain:
        yield lambda done, total: None
        return
    with console_count(console, "trials") as count:
        yield count


def status_rows(search: "SearchStudy") -> list[dict[str, Any]]:
    """Returns one row for each study of a search: its trials, what ended them, and its best mean with the interval."""
    from workbench.search.records import means
    from workbench.search.stages import stages

    rows: list[dict[str, Any]] = []
    for one in stages(search):
        records = search.records(one.study)
        gates = {gate: sum(r.gate == gate for r in records if not r.repeat) for gate in ("R0", "R1", "R2", "rung")}
        leader = next(iter(means(records)), None)
        rows.append({
            "study": one.study, "trained": f"{one.trained} of {one.target}", "running": one.open + one.repeating, **gates,
            "failed": sum(r.state == "FAIL" for r in records), "repeats": one.repeats,
            "best (fresh seeds)": None if leader is None else _mean(leader), "formula": None if leader is None else leader.first.candidate,
        })  # fmt: skip
    return rows


def facts(search: "SearchStudy") -> list[str]:
    """Returns sentences about what rungs tell, noise, what was refused, and cost."""
    from workbench.search.records import noise, rejections
    from workbench.search.rungs import calibration
    from workbench.search.stages import total_cost

    plan, lines = search.plan, list[str]()
    everything = [record for name in search.studies for record in search.records(name)]
    for name in search.studies:
        for rung in calibration(search.records(name)):
            if rung.correlation is None:
                continue
            prunes = rung.trials >= plan.unpruned and rung.correlation >= plan.correlation
            what = "ends trials" if prunes else f"ends none (at least {plan.correlation:g} on {plan.unpruned} trials is needed)"
            lines.append(f"{name}, step {rung.step}: rank correlation with the end {rung.correlation:.2f} on {rung.trials} trials; {what}")
    for gate, reasons in rejections(everything).items():
        lines += [f"{gate} ended {count}: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
    spread = noise(everything)
    lines.append("spread between seeds: unknown yet" if spread is None else f"spread between seeds: {100 * spread:.2f} AP")
    cost = total_cost(search)
    left = "" if cost.left is None else f", about {duration(cost.left)} to come"
    lines.append(f"cost: {duration(cost.spent)} of CPU for {cost.trials} of {cost.total} trials{left}")
    return lines


def facts_json(search: "SearchStudy") -> dict[str, Any]:
    """Returns everything that ``search status`` says, and every trial."""
    from workbench.search.found import ranking
    from workbench.search.records import noise, rejections
    from workbench.search.rungs import calibration
    from workbench.search.stages import total_cost

    everything = {name: search.records(name) for name in search.studies}
    together = [record for records in everything.values() for record in records]
    return {
        "search": search.name, "hash": search.state["hash"], "studies": status_rows(search),
        "best": [
            {"candidate": one.first.candidate, "mean": one.mean, "low": one.low, "high": one.high, "values": list(one.values)}
            for one in ranking(search)
        ],
        "rungs": {name: [asdict(rung) for rung in calibration(records)] for name, records in everything.items()},
        "noise": noise(together), "rejections": rejections(together), "cost": asdict(total_cost(search)),
        "trials": [asdict(record) for record in together],
    }  # fmt: skip


def _mean(mean: "Mean") -> str:
    interval = "" if mean.low is None or mean.high is None else f" ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
    return f"{100 * mean.mean:.1f}{interval}"

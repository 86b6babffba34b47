"""Progress on the terminal: one run, or several at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from workbench.runs import Run

if TYPE_CHECKING:  # for real it would load the detectors, seconds that counting images does not need
    from workbench.training.loop import Listener

PLAIN_EVERY = 100


class _Bar:
    """A progress bar with time left; messages above it."""

    def __init__(self, console: Console, progress: Progress):
        self.console, self.progress = console, progress
        self.task: Any = None

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        if self.task is None:
            self.task = self.progress.add_task("training", total=steps, completed=step)
        self.progress.update(self.task, completed=step, description=f"loss {values['loss']:.2f}" if "loss" in values else None)

    def on_evaluation(self, line: dict[str, Any]) -> None:
        self.console.print(Text(_evaluation(line)))

    def on_message(self, text: str) -> None:
        self.console.print(Text(text))


class _Lines:
    """The same as plain lines, for logs."""

    def __init__(self, console: Console):
        self.console, self.started, self.first = console, time.monotonic(), 0

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.first = self.first or step
        if "loss" in values and (step % PLAIN_EVERY == 0 or step == steps):
            left = (time.monotonic() - self.started) / max(step - self.first + 1, 1) * (steps - step)
            self.console.print(Text(f"step {step} of {steps}, loss {values['loss']:.3f}, {left:.0f} s left"), soft_wrap=True)

    def on_evaluation(self, line: dict[str, Any]) -> None:
        self.console.print(Text(_evaluation(line)), soft_wrap=True)

    def on_message(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


@contextmanager
def console_listener(console: Console, plain: bool) -> "Iterator[Listener]":
    """Shows one run; plain lines where the output is no terminal."""
    if plain or not console.is_terminal:
        yield _Lines(console)
        return
    with _progress(console) as progress:
        yield _Bar(console, progress)


@contextmanager
def console_watch(console: Console) -> Iterator[Callable[[list[Run]], None]]:
    """Shows several runs by reading their metrics."""
    if not console.is_terminal:
        told: dict[str, int] = {}

        def tell(runs: list[Run]) -> None:
            for run in runs:
                step, steps = _position(run)
                if step // (PLAIN_EVERY * 4) > told.get(run.name, -1):
                    told[run.name] = step // (PLAIN_EVERY * 4)
                    console.print(Text(f"{run.name}: step {step} of {steps}"), soft_wrap=True)

        yield tell
        return
    with _progress(console) as progress:
        tasks: dict[str, Any] = {}

        def show(runs: list[Run]) -> None:
            for name in set(tasks) - {run.name for run in runs}:
                progress.remove_task(tasks.pop(name))
            for run in runs:
                step, steps = _position(run)
                if run.name not in tasks:
                    tasks[run.name] = progress.add_task(run.name, total=steps, completed=step)
                progress.update(tasks[run.name], completed=step)

        yield show


@contextmanager
def console_count(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many of something are done; nothing where the output is no terminal."""
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                  disable=not console.is_terminal, transient=True) as progress:  # fmt: skip
        task = progress.add_task(what)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _position(run: Run) -> tuple[int, int]:
    timings = run.timings()
    return (timings[-1]["step"] if timings else 0), int(run.info()["recipe"]["train"]["steps"])


def _progress(console: Console) -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                    console=console)  # fmt: skip


def _evaluation(line: dict[str, Any]) -> str:
    ap, ap50 = line["coco"]["ap"], line["coco"]["ap50"]
    return f"step {line['step']}: {line['split']} AP {100 * (ap or 0):.1f}, AP50 {100 * (ap50 or 0):.1f}"

"""Shows progress in the terminal or a notebook: of one run, or of several at once."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from workbench.store.run import Run

if TYPE_CHECKING:  # a real import would load the detectors, which takes seconds and counting images does not need
    from workbench.training.loop import Listener

PLAIN_EVERY = 100
REDRAWN_EVERY = 0.3  # seconds


class _Bar:
    """A progress bar with the time left; messages appear above it."""

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
    """Prints progress as plain lines, for logs."""

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


class _Cell:
    """A progress bar in a notebook's cell; the saved notebook shows its last state."""

    def __init__(self, title: str):
        self.title, self.started, self.drawn = title, time.monotonic(), 0.0
        self.step, self.steps, self.lines = 0, 1, list[str]()
        self.handle: Any = None

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.step, self.steps = step, steps
        if step == steps or time.monotonic() - self.drawn > REDRAWN_EVERY:
            self._draw()

    def on_evaluation(self, line: dict[str, Any]) -> None:
        self.lines.append(_evaluation(line))
        self._draw()

    def on_message(self, text: str) -> None:
        self.lines.append(text)
        self._draw()

    def _draw(self) -> None:
        self.drawn = time.monotonic()
        if self.handle is None:
            from IPython.display import display

            self.handle = display(self, display_id=True)
        else:
            self.handle.update(self)

    def __repr__(self) -> str:
        spent = time.monotonic() - self.started
        return "\n".join([f"{self.title}: step {self.step} of {self.steps}, {spent:.0f} s", *self.lines])

    def _repr_html_(self) -> str:
        from workbench.views.rendering import render  # only notebooks need jinja2

        heading, *rest = repr(self).split("\n")
        return render("progress.html.j2", step=self.step, steps=self.steps, heading=heading, lines=rest)


def cell_listener(title: str) -> "Listener":
    """Returns a listener that shows one run in a notebook's cell, or as lines outside of a notebook.

    Args:
        title: text before the numbers.
    """
    if "ipykernel" in sys.modules:
        return _Cell(title)
    return _Lines(Console())


@contextmanager
def console_listener(console: Console, plain: bool) -> "Iterator[Listener]":
    """Yields a listener that shows one run; it prints plain lines if the output is not a terminal."""
    if plain or not console.is_terminal:
        yield _Lines(console)
        return
    with _progress(console) as progress:
        yield _Bar(console, progress)


@contextmanager
def console_watch(console: Console) -> Iterator[Callable[[list[Run]], None]]:
    """Yields a function that shows the progress of several runs, read from their metrics."""
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
    """Yields a function that shows how many of something are done; it shows nothing if the output is not a terminal."""
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

"""Prints the results of verbs. Imported only where something is printed, because rich takes a while to load."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from workbench.commands.terminal import printable

if TYPE_CHECKING:
    from workbench.store.run import Run


class _Printable(Console):
    """A console that prints control characters in text as escapes, since names come from files."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


# tables are not folded to 80 columns if the output is a file or a pipe
console = _Printable(width=None if sys.stdout.isatty() else 200)


def show_runs(runs: "list[Run]", json_path: Path | None, split: str = "val") -> None:
    """Prints the summary of some runs; stability and agreement are of the queries recorded on ``split``."""
    from workbench.analysis.report.summary import table

    print_summary(table(runs, split), json_path)


def print_summary(frame: Any, json_path: Path | None) -> None:
    """Prints a summary with one column per run, because it has more numbers than a terminal has width."""
    import json

    from workbench.analysis.report.markdown import as_shown
    from workbench.files import write_json

    headings, cells = as_shown(frame)
    shown = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(len(cells) + 1):
        shown.add_column(overflow="fold")
    for index, heading in enumerate(headings):
        shown.add_row(Text(heading, style="bold"), *(Text(printable(row[index])) for row in cells))
    console.print(shown if cells else "nothing yet")
    if json_path is not None:
        write_json(json_path, json.loads(frame.to_json(orient="records")))


def print_comparison(frames: list[Any], json_path: Path | None) -> None:
    """Prints one table per recipe, with one line per arm and schedule, in percent of AP."""
    import json

    from workbench.analysis.report.summary import TEACHER
    from workbench.files import write_json
    from workbench.tasks.compare import notes, seed_rows

    for frame in frames:
        heading, *rows = seed_rows(frame)
        shown = Table(*heading, header_style="bold", box=None, pad_edge=False)  # arm names below are the user's and are escaped
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(Text(str(frame["recipe"].iloc[-1]), style="bold"))
        for teacher in frame[frame["arm"] == TEACHER].to_dict("records"):
            console.print(Text(f"teacher {teacher['run']}: AP {'-' if teacher['ap'] is None else format(100 * teacher['ap'], '.1f')}"))
        console.print(shown)
        for note in notes(frame):
            console.print(Text(note))
    if json_path is not None:
        write_json(json_path, [row for frame in frames for row in json.loads(frame.to_json(orient="records"))])


def percent(share: float | None) -> str | None:
    """Returns a share as people read AP, from 0 to 100; None stays None."""
    return None if share is None else f"{100 * share:.1f}"


def print_rows(rows: list[dict[str, Any]], json_path: Path | None = None) -> None:
    """Prints a table, one line per row, and writes it to ``json_path`` as JSON."""
    from workbench.files import write_json

    shown = Table(show_header=True, header_style="bold", box=None, pad_edge=False)
    for column in rows[0] if rows else []:
        shown.add_column(Text(str(column)), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(shown if rows else "nothing yet")
    if json_path is not None:
        write_json(json_path, rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    # escaped before the widths of columns are measured
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))

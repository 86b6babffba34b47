"""Provides what every page uses: the runs it can show, charts with their numbers, captions and banners.

Names of runs and classes come from users. They go into tables, text and options, which show them as plain text, and never into Markdown.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from workbench.analysis.defined import NotDefined
from workbench.analysis.of_run import SPLITS, RunData, RunSplit
from workbench.errors import WorkbenchError
from workbench.store.run import Run, runs_root
from workbench.views.catalog import DAMAGED, Entry, catalog
from workbench.views.csv_text import NOTE, csv_text
from workbench.views.style import laid_out

REFRESH_SECONDS = 5
INK = (49, 51, 63)  # colour of all text in a figure that has no colour of its own; Home.py replaces it by the page's text colour
FONT = {"size": 12, "color": f"rgb{INK}", "family": '"Source Sans", sans-serif'}
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


def question(text: str) -> None:
    """Shows, at the top of a page, the question that it answers."""
    st.markdown(f"##### {text}")


def usable_runs() -> dict[str, Entry]:
    """Returns the runs that can be shown, by name, and names the others in a banner. Ends the page if no run can be shown.

    An archived run is left out, unless the address of the page names it.
    """
    root = runs_root()
    entries = catalog(root)
    asked = {name for key in ("run", "compared", "baseline") for name in st.query_params.get_all(key)}
    usable = {entry.run.name: entry for entry in entries if not entry.problem and (not entry.labels.archived or entry.run.name in asked)}
    for entry in entries:
        if entry.problem:
            banner("warning", "A run cannot be shown", f"{entry.run.name}: {entry.problem}")
    if not usable:
        st.subheader("No runs yet", anchor=False)
        st.caption("This page shows the runs in the folder below and looks for new ones every few seconds. Either command creates runs:")
        st.code(f"workbench demo --runs {root.resolve()}\nworkbench run shapes --runs {root.resolve()}", language=None)
        _wait_for_a_run(root)
        st.stop()
    return usable


def runs_with(splits: Callable[[Run], Iterable[str]], title: str, detail: str) -> dict[str, Entry]:
    """Returns the runs that keep what a page shows, by name. Ends the page with a banner if there are none.

    Args:
        splits: the splits of which a run keeps it.
        title: first line of the banner.
        detail: what would make the page show something.
    """
    entries: dict[str, Entry] = {}
    for name, entry in usable_runs().items():
        try:
            if any(splits(entry.run)):
                entries[name] = entry
        except WorkbenchError as error:
            banner("warning", "A run cannot be shown", f"{name}: {error}")
    if not entries:
        banner("info", title, detail)
        st.stop()
    return entries


@st.fragment(run_every=REFRESH_SECONDS)
def _wait_for_a_run(root: Path) -> None:
    if any(not entry.problem for entry in catalog(root)):
        st.rerun()


def banner(kind: str, title: str, detail: str) -> None:
    """Shows a message without ending the page; ``detail`` is shown as plain text."""
    {"warning": st.warning, "error": st.error, "info": st.info}[kind](title, icon=":material/info:")
    st.text(detail)


@contextmanager
def guarded(title: str) -> Iterator[None]:
    """Guards one part of a page: if a file is missing or damaged, a banner takes its place and the rest of the page is still drawn.

    In place of a number that a many-to-one assignment does not define, a note says so.
    """
    try:
        yield
    except NotDefined as reason:
        note(str(reason))
    except WorkbenchError as error:
        banner("error", title, str(error))
    except DAMAGED as error:
        banner("error", title, f"A file of the run cannot be read: {error}")


def readable(shown: Sequence[RunSplit], read: Callable[[Sequence[RunSplit]], Any]) -> list[RunSplit]:
    """Returns the runs whose files can be read, so that a damaged one takes no other from a comparison; a banner names each damaged one.

    Args:
        shown: the runs to compare.
        read: reads all that the page needs of some runs.
    """
    try:
        read(shown)
    except (WorkbenchError, *DAMAGED):
        found: list[RunSplit] = []
        for own in shown:
            try:
                read([own])
                found.append(own)
            except (WorkbenchError, *DAMAGED) as error:
                banner("warning", "A run cannot be compared", f"{own.run.name}: {error}")
        return found
    return list(shown)


@contextmanager
def if_defined() -> Iterator[None]:
    """Guards one figure among others: where its number is not defined for the run, a note says so and why."""
    try:
        yield
    except NotDefined as reason:
        note(str(reason))


@contextmanager
def quietly() -> Iterator[None]:
    """Guards one number among many: if its files are missing or damaged, the table shows it as unknown."""
    with suppress(WorkbenchError, *DAMAGED):
        yield


def explorer_link(data: RunData, number: int) -> str:
    """Returns the link to one image of a run's split (counted from 1) in the matching explorer."""
    split = "" if data.split == SPLITS[0] else f"&split={data.split}"
    return f"image?run={quote(data.run.name)}{split}&image={number}"


def note(text: str) -> None:
    """Shows a caption below a chart or table, nothing if it is empty; its characters are shown as plain text."""
    if text:
        st.caption(_MARKDOWN.sub(r"\\\1", text))


def chart(figure: go.Figure, key: str, meaning: str, data: pd.DataFrame | None = None, *, on_select: Any = "ignore",
          modes: Any = ("points", "box"), **config: Any) -> Any:  # fmt: skip
    """Shows a figure with its caption and a download of its numbers as CSV; the bar above the figure saves it as PNG.

    Args:
        figure: made by ``workbench.views``.
        key: name of the element and of the downloaded files.
        meaning: caption that says what is shown, with n.
        data: numbers that the figure was drawn from.
        on_select: see ``st.plotly_chart``.
        modes: ways to select marks; see ``selection_mode`` of ``st.plotly_chart``.
        config: options of plotly.

    Returns:
        The selection if ``on_select`` asks for one.
    """
    # On the page the background is hidden (see Home.py). A downloaded PNG is dark on white, so that it can be read anywhere
    laid_out(figure, template=None, font=FONT, paper_bgcolor="#FFFFFF")
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    if axes and all(axis.range is not None for axis in axes):
        # Streamlit passes every figure to plotly twice. A constant `datarevision` tells plotly that the numbers are the same, so that it
        # does not draw twice. Only figures with fixed axis limits take it, because limits that plotly computes itself would be lost
        figure.layout.datarevision = 0
    image = {"format": "png", "filename": key, "scale": 2}
    bar = {"displaylogo": False, "toImageButtonOptions": image, **config}
    # Streamlit applies its own theme after the first drawing, and the figure would be drawn again
    event = st.plotly_chart(figure, theme=None, key=key, config=bar, on_select=on_select, selection_mode=modes)
    left, right = st.columns([14, 1], vertical_alignment="center") if data is not None else (nullcontext(), None)
    with left:
        note(meaning)
    if right is not None and data is not None:
        rows = data
        right.download_button("CSV", lambda: csv_text(rows), f"{key}.csv", "text/csv", key=f"{key}-csv", on_click="ignore",
                              type="tertiary", help=f"Download the numbers of this figure. {NOTE}")  # fmt: skip
    return event

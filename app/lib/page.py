"""What every page is made of: the runs it can show, charts with their numbers, explanations and banners.

Names of runs and classes are data: they go into tables, text and options, which show characters, never into markdown.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from workbench.analysis.of_run import SPLITS, RunData
from workbench.errors import WorkbenchError
from workbench.store.run import runs_root
from workbench.views.catalog import DAMAGED, Entry, catalog
from workbench.views.style import laid_out

REFRESH_SECONDS = 5
INK = (49, 51, 63)  # of all text in a figure that has no colour of its own; Home.py gives it the page's
FONT = {"size": 12, "color": f"rgb{INK}", "family": '"Source Sans", sans-serif'}
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


def usable_runs() -> dict[str, Entry]:
    """The runs that can be shown, by name; a banner names the others. Ends the page where there is none."""
    root = runs_root()
    entries = catalog(root)
    usable = {entry.run.name: entry for entry in entries if not entry.problem}
    for entry in entries:
        if entry.problem:
            banner("warning", "A run cannot be shown", f"{entry.run.name}: {entry.problem}")
    if not usable:
        st.subheader("No runs yet", anchor=False)
        st.caption("This page shows the runs of the folder below, and looks for them every few seconds. One of these commands makes some:")
        st.code(f"workbench demo --runs {root.resolve()}\nworkbench run shapes --runs {root.resolve()}", language=None)
        _wait_for_a_run(root)
        st.stop()
    return usable


@st.fragment(run_every=REFRESH_SECONDS)
def _wait_for_a_run(root: Path) -> None:
    if any(not entry.problem for entry in catalog(root)):
        st.rerun()


def banner(kind: str, title: str, detail: str) -> None:
    """A warning that does not end the page; ``detail`` is shown as text."""
    {"warning": st.warning, "error": st.error, "info": st.info}[kind](title, icon=":material/info:")
    st.text(detail)


@contextmanager
def guarded(title: str) -> Iterator[None]:
    """A part of a page: a file that is missing or damaged leaves a banner in its place, and the rest of the page is drawn."""
    try:
        yield
    except WorkbenchError as error:
        banner("error", title, str(error))
    except DAMAGED as error:
        banner("error", title, f"a file of the run cannot be read: {error}")


@contextmanager
def quietly() -> Iterator[None]:
    """One number among many: where its files are missing or damaged it stays unknown, and the table shows that."""
    with suppress(WorkbenchError, *DAMAGED):
        yield


def explorer_link(data: RunData, number: int) -> str:
    """Address of one image of a run's split (from 1) in the matching explorer."""
    split = "" if data.split == SPLITS[0] else f"&split={data.split}"
    return f"image?run={quote(data.run.name)}{split}&image={number}"


def note(text: str) -> None:
    """One line of explanation below a chart or table; its characters are shown as they are."""
    st.caption(_MARKDOWN.sub(r"\\\1", text))


def chart(figure: go.Figure, key: str, meaning: str, data: pd.DataFrame | None = None, *, on_select: Any = "ignore",
          modes: Any = ("points", "box"), **config: Any) -> Any:  # fmt: skip
    """A figure, its definition in one line, and its numbers as CSV; PNG is in the bar above the figure.

    Args:
        figure: of ``workbench.views``.
        key: of the element, and the name of its files.
        meaning: what is shown, with n.
        data: what it was drawn from.
        on_select: as of ``st.plotly_chart``.
        modes: of selection.
        config: of plotly.

    Returns:
        The selection, where there is one.
    """
    # the page lies behind it (see Home.py); a picture taken of it is dark on white, and can be read anywhere
    laid_out(figure, template=None, font=FONT, paper_bgcolor="#FFFFFF")
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    if axes and all(axis.range is not None for axis in axes):
        # Streamlit hands a figure over twice; plotly does not draw it again where it is told that its numbers are the same. Ends of axes
        # that plotly itself worked out would get lost in that
        figure.layout.datarevision = 0
    image = {"format": "png", "filename": key, "scale": 2}
    bar = {"displaylogo": False, "toImageButtonOptions": image, **config}
    # Streamlit's own theme is laid over a figure after the first drawing, which then has to be made again
    event = st.plotly_chart(figure, theme=None, key=key, config=bar, on_select=on_select, selection_mode=modes)
    left, right = st.columns([14, 1], vertical_alignment="center") if data is not None else (nullcontext(), None)
    with left:
        note(meaning)
    if right is not None and data is not None:
        rows = data
        right.download_button("CSV", lambda: rows.to_csv(index=False), f"{key}.csv", "text/csv", key=f"{key}-csv", on_click="ignore",
                              type="tertiary", help="The numbers behind this figure.")  # fmt: skip
    return event

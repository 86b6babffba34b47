"""What the pages share: the state of a page in its address, choices of run and evaluation, charts, tables and banners.

Names of runs and classes are data: they go into tables, text and options, which show characters, never into markdown.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from workbench.errors import WorkbenchError
from workbench.store.run import runs_root
from workbench.views.catalog import DAMAGED, Entry, catalog
from workbench.views.style import laid_out

REFRESH_SECONDS = 5
INK = (49, 51, 63)  # of all text in a figure that has no colour of its own; Home.py gives it the page's
FONT = {"size": 12, "color": f"rgb{INK}", "family": '"Source Sans", sans-serif'}
T = TypeVar("T")
_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")


def choose(key: str, options: Sequence[T], default: T) -> T:
    """Sees to it that the widget ``key`` starts with what the address says, or ``default``, and never with a value that is not offered.

    What was chosen on another page counts before ``default``. Call it before the widget, and ``write_address`` once all widgets are made.
    """
    known = {str(option): option for option in options}
    value = _asked(key)
    st.session_state[key] = known.get(str(value), default)
    return st.session_state[key]


def choose_number(key: str, low: float, high: float, default: float) -> float:
    """``choose`` for numbers between two ends."""
    try:
        value = float(_asked(key, default))
    except (TypeError, ValueError):
        value = default
    # also false for NaN
    st.session_state[key] = value if low <= value <= high else default
    return st.session_state[key]


def choose_several(key: str, options: Sequence[str], default: Sequence[str]) -> list[str]:
    """``choose`` for any number of names."""
    value = st.session_state.get(key)
    if not isinstance(value, list):
        value = st.query_params.get_all(key) if key in st.query_params else default
    st.session_state[key] = [name for name in value if name in options]
    return st.session_state[key]


def _asked(key: str, default: Any = None) -> Any:
    """What the widget holds, else what the address says, else what was last chosen on any page."""
    value = st.session_state.get(key)
    if value is None or isinstance(value, list):
        value = st.query_params.get(key, st.session_state.get("chosen", {}).get(key, default))
    return value


def write_address(**state: Any) -> None:
    """Puts a part of the page's state into the address, so that a link opens the same view, and keeps it for the other pages."""
    st.session_state["chosen"] = st.session_state.get("chosen", {}) | {k: v for k, v in state.items() if not isinstance(v, list)}
    before = {key: st.query_params.get_all(key) for key in st.query_params}
    after = before | {key: [str(v) for v in value] if isinstance(value, list) else [str(value)] for key, value in state.items()}
    if after != before:
        st.query_params.from_dict(after)


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


def select(place: Any, label: str, key: str, options: Sequence[T], default: T, **more: Any) -> T:
    """A select box whose choice is part of the address."""
    choose(key, options, default)
    return place.selectbox(label, options, key=key, **more)


def select_run(place: Any, entries: Mapping[str, Entry], key: str = "run", label: str = "Run") -> Entry:
    """A select box of runs; the newest is chosen at first."""
    newest = max(entries.values(), key=lambda entry: entry.created).run.name
    return entries[select(place, label, key, list(entries), newest, format_func=lambda name: entries[name].title)]


def part(parts: Mapping[str, str]) -> str:
    """Which part of a page is shown, by its name in the address; the others are not made, so that a change of run or step is quick.

    Args:
        parts: name in the address -> title.
    """
    choose("part", list(parts), next(iter(parts)))
    chosen = st.segmented_control("Part of the page", list(parts), format_func=parts.__getitem__, key="part", required=True,
                                  label_visibility="collapsed")  # fmt: skip
    assert chosen is not None  # one was chosen before the widget
    write_address(part=chosen)
    return chosen


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


def clicked(key: str) -> list[int] | None:
    """Whole numbers that the mark last clicked in a chart carries; None where none is selected."""
    points = [point for point in st.session_state[key]["selection"]["points"] if "customdata" in point]
    if not points:
        return None
    # an array of numbers comes back from the browser as an object with the keys 0, 1, ...
    carried = points[0]["customdata"]
    return [int(number) for number in (carried.values() if isinstance(carried, dict) else carried)]


def box_kept(chart: str, key: str) -> Callable[[], None]:
    """For ``on_select`` of a chart: keeps the box that was drawn in it, or that there is none any more."""

    def keep() -> None:
        boxes = st.session_state[chart]["selection"]["box"]
        ends = [*sorted(boxes[0]["x"]), *sorted(boxes[0]["y"])] if boxes else []
        st.session_state[key] = ",".join(f"{end:.4g}" for end in ends)

    return keep


def chosen_box(key: str) -> list[float] | None:
    """Ends ``x0, x1, y0, y1`` of the box that was kept, else of the one in the address."""
    try:
        ends = [float(end) for end in str(st.session_state.get(key, st.query_params.get(key, ""))).split(",")]
    except ValueError:
        ends = []
    found = ends if len(ends) == 4 and all(map(math.isfinite, ends)) else None
    st.session_state[key] = ",".join(f"{end:.4g}" for end in found or [])
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """One number among many: where its files are missing or damaged it stays unknown, and the table shows that."""
    with suppress(WorkbenchError, *DAMAGED):
        yield


def explorer_link(run: str, number: int) -> str:
    """Address of one image of a run (from 1) in the matching explorer."""
    return f"image?run={quote(run)}&image={number}"


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

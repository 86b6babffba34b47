"""Choices that are part of a page's address, so that a link opens the same view, and what was clicked in charts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from workbench.analysis.of_run import SPLITS
from workbench.views.catalog import Entry, baseline_of

NO_BASELINE = "no baseline"
T = TypeVar("T")


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


def select_split(place: Any, splits: Iterable[str]) -> str:
    """A select box of the splits of which a run keeps what the page shows; validation is chosen at first, where it is among them."""
    known = list(splits)
    return select(place, "Split", "split", known, known[0], help="Of the data, as the run calls it.")


def splits_of(entries: Iterable[Entry], kept: Callable[[Entry], Iterable[str]]) -> list[str]:
    """The splits that any of these runs keeps, in the order in which they are offered."""
    found: set[str] = set()
    for entry in entries:
        found |= set(kept(entry))
    return [split for split in SPLITS if split in found]


def name_of(baseline: Entry | None) -> str:
    """How the address calls the baseline."""
    return baseline.run.name if baseline else NO_BASELINE


def select_baseline(place: Any, entry: Entry, entries: Mapping[str, Entry], meaning: str) -> Entry | None:
    """A select box of the run that another is compared with, its undistilled one at first; None for none."""
    baseline = baseline_of(entry, list(entries.values()))
    names = [NO_BASELINE, *(name for name in entries if name != entry.run.name)]
    return entries.get(select(place, "Baseline", "baseline", names, name_of(baseline), help=meaning))


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

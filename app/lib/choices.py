"""Keeps the choices made on a page in its address, so that a link opens the same view, and reads clicks on charts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from workbench.analysis.of_run import SPLITS
from workbench.errors import WorkbenchError
from workbench.store.run import runs_root
from workbench.store.sets import read_sets
from workbench.views.catalog import Entry, baseline_of, catalog, opening_run

NO_BASELINE = "no baseline"
T = TypeVar("T")


def choose(key: str, options: Sequence[T], default: T) -> T:
    """Returns the value that the widget ``key`` starts with: the one in the address, or ``default`` if that is not among the options.

    A choice made on another page takes precedence over ``default``. Call this before the widget, and ``write_address`` after all widgets.
    """
    known = {str(option): option for option in options}
    value = _asked(key)
    st.session_state[key] = known.get(str(value), default)
    return st.session_state[key]


def choose_number(key: str, low: float, high: float, default: float) -> float:
    """Works like ``choose`` for a number between two limits."""
    try:
        value = float(_asked(key, default))
    except (TypeError, ValueError):
        value = default
    # the comparison is also false for NaN
    st.session_state[key] = value if low <= value <= high else default
    return st.session_state[key]


def choose_several(key: str, options: Sequence[str], default: Sequence[str]) -> list[str]:
    """Works like ``choose`` for any number of names."""
    value = st.session_state.get(key)
    if not isinstance(value, list):
        value = st.query_params.get_all(key) if key in st.query_params else default
    st.session_state[key] = [name for name in value if name in options]
    return st.session_state[key]


def choose_limit(key: str) -> float | None:
    """Works like ``choose`` for a number that may be missing."""
    if key not in st.session_state:
        try:
            value = float(st.query_params.get(key, ""))
        except ValueError:
            value = math.nan
        st.session_state[key] = value if math.isfinite(value) else None
    return st.session_state[key]


def _asked(key: str, default: Any = None) -> Any:
    """Returns the value of the widget; if it has none, the one in the address, and otherwise the last choice on any page."""
    value = st.session_state.get(key)
    if value is None or isinstance(value, list):
        value = st.query_params.get(key, st.session_state.get("chosen", {}).get(key, default))
    return value


def write_address(**state: Any) -> None:
    """Writes choices into the address, so that a link opens the same view, and keeps them for the other pages."""
    st.session_state["chosen"] = st.session_state.get("chosen", {}) | {k: v for k, v in state.items() if not isinstance(v, list)}
    before = {key: st.query_params.get_all(key) for key in st.query_params}
    after = before | {key: [str(v) for v in value] if isinstance(value, list) else [str(value)] for key, value in state.items()}
    if after != before:
        st.query_params.from_dict(after)


def select(place: Any, label: str, key: str, options: Sequence[T], default: T, **more: Any) -> T:
    """Shows a select box whose choice is part of the address."""
    choose(key, options, default)
    return place.selectbox(label, options, key=key, **more)


def select_run(place: Any, entries: Mapping[str, Entry], key: str = "run", label: str = "Run") -> Entry:
    """Shows a select box of runs; the distilled run of the newest comparison is the default, on every page that can show it."""
    everyone = [entry for entry in catalog(runs_root()) if not entry.problem]
    opening = opening_run(everyone).run.name
    default = opening if opening in entries else opening_run(list(entries.values())).run.name
    return entries[select(place, label, key, list(entries), default, format_func=lambda name: entries[name].title)]


def part(parts: Mapping[str, str]) -> str:
    """Lets the user choose one part of a page. The other parts are not computed, so that changing the run or step stays fast.

    Args:
        parts: title of each part, by its name in the address.

    Returns:
        The name of the chosen part.
    """
    choose("part", list(parts), next(iter(parts)))
    chosen = st.segmented_control("Part of the page", list(parts), format_func=parts.__getitem__, key="part", required=True,
                                  label_visibility="collapsed")  # fmt: skip
    assert chosen is not None  # ``choose`` has set it
    write_address(part=chosen)
    return chosen


def select_split(place: Any, splits: Iterable[str]) -> str:
    """Shows a select box of the splits that the run has recorded; validation is the default if it is among them."""
    known = list(splits)
    return select(place, "Split", "split", known, known[0], help="The part of the dataset whose images are shown.")


def splits_of(entries: Iterable[Entry], kept: Callable[[Entry], Iterable[str]]) -> list[str]:
    """Returns the splits that at least one of these runs has recorded, in the order in which they are offered."""
    found: set[str] = set()
    for entry in entries:
        found |= set(kept(entry))
    return [split for split in SPLITS if split in found]


def name_of(baseline: Entry | None) -> str:
    """Returns the name of the baseline in the address."""
    return baseline.run.name if baseline else NO_BASELINE


def select_baseline(place: Any, entry: Entry, entries: Mapping[str, Entry], meaning: str) -> Entry | None:
    """Shows a select box of the run to compare with. None means no comparison.

    The default is the pinned baseline, or else the undistilled run of the same recipe, data and seed.
    """
    pinned = pinned_baseline()
    baseline = baseline_of(entry, list(entries.values()), pinned)
    names = [NO_BASELINE, *(name for name in entries if name != entry.run.name)]
    chosen = select(place, "Baseline", "baseline", names, name_of(baseline), help=meaning,
                    format_func=lambda name: f"{name} · pinned" if name == pinned else name)  # fmt: skip
    return entries.get(chosen)


def pinned_baseline() -> str | None:
    """Returns the name of the run that is pinned as the baseline of every page; None if none is."""
    try:
        return read_sets(runs_root()).baseline
    except WorkbenchError:  # the page of runs says what is wrong with the file
        return None


def clicked(key: str) -> list[int] | None:
    """Returns the integers attached to the mark that was clicked last in a chart; None if no mark is selected."""
    points = [point for point in st.session_state[key]["selection"]["points"] if "customdata" in point]
    if not points:
        return None
    # the browser returns an array of numbers as an object with the keys 0, 1, ...
    carried = points[0]["customdata"]
    return [int(number) for number in (carried.values() if isinstance(carried, dict) else carried)]


def box_kept(chart: str, key: str) -> Callable[[], None]:
    """Returns a callback for ``on_select`` of a chart that stores the box drawn in it, or clears the stored box if it was removed."""

    def keep() -> None:
        boxes = st.session_state[chart]["selection"]["box"]
        ends = [*sorted(boxes[0]["x"]), *sorted(boxes[0]["y"])] if boxes else []
        st.session_state[key] = ",".join(f"{end:.4g}" for end in ends)

    return keep


def restored_box(chart: str, box: list[float] | None) -> list[float] | None:
    """Returns the stored box if the chart does not show it itself, because it comes from the address."""
    shown = st.session_state.get(chart)
    return None if shown is not None and shown["selection"]["box"] else box


def clear_button(key: str, box: list[float] | None) -> None:
    """Shows a button that removes the stored box, if there is one."""
    if box:
        st.button("Clear the box", key=f"{key}-clear", icon=":material/close:", on_click=_clear, args=(key,))


def _clear(key: str) -> None:
    st.session_state[key] = ""


def chosen_box(key: str) -> list[float] | None:
    """Returns the limits ``x0, x1, y0, y1`` of the stored box, or of the one in the address; None if there is no box."""
    try:
        ends = [float(end) for end in str(st.session_state.get(key, st.query_params.get(key, ""))).split(",")]
    except ValueError:
        ends = []
    found = ends if len(ends) == 4 and all(map(math.isfinite, ends)) else None
    st.session_state[key] = ",".join(f"{end:.4g}" for end in found or [])
    return found

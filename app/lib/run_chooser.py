"""Lets the user find runs among many and choose them in a table with checkboxes."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import streamlit as st

from lib import choices, page
from workbench.errors import WorkbenchError
from workbench.store.run import runs_root
from workbench.store.sets import read_sets
from workbench.views.catalog import Entry
from workbench.views.run_list import FACETS, ORDERS, Wanted, grouped, list_table, matching, offered

ONE_BY_ONE = "no groups"
ROW = 28  # pixels
TITLES = {"recipe": "Recipe", "arm": "Arm", "family": "Family", "seed": "Seed", "schedule": "Schedule", "state": "State", "data": "Data",
          "tag": "Tag"}  # fmt: skip
NUMBER, TEXT = st.column_config.NumberColumn, st.column_config.TextColumn
COLUMNS: dict[str, Any] = {
    "run": TEXT("run", pinned=True), "seed": NUMBER("seed", width=52),
    "progress": st.column_config.ProgressColumn("progress", min_value=0, max_value=1, format="percent", width=90,
                                                help="Share of the steps done."),
    "created": TEXT("created (UTC)"), "tags": st.column_config.ListColumn("tags"), "note": TEXT("note", width="medium"),
    "ap": NUMBER("AP (%)", format="%.1f", help="COCO AP of the evaluation that represents the run, on the split beside it: the test split "
                 "if the run was tested. In a group it is the mean of the runs that have one on this split."),
    "split": TEXT("split", width=52, help="The part of the data that AP was measured on."),
    "lowest": NUMBER("lowest AP", format="%.1f"), "highest": NUMBER("highest AP", format="%.1f"),
    "done": NUMBER("done", help="Number of runs that are done."), "seeds": NUMBER("seeds", help="Number of different seeds."),
    "newest": TEXT("newest (UTC)", help="Day on which the newest of these runs was made."),
}  # fmt: skip

OPTIONS: Mapping[str, tuple[Sequence[Any], Any]] = {
    "order": (list(ORDERS), "comparison"), "group": ([ONE_BY_ONE, *FACETS], ONE_BY_ONE), "archived": ([False, True], False),
}  # fmt: skip


def filters(entries: Sequence[Entry], prefix: str = "") -> tuple[list[Entry], str]:
    """Shows the search, the filters, the order and the grouping.

    Args:
        entries: runs to choose from.
        prefix: of the keys of the widgets; without one, the choices are part of the address.

    Returns:
        The wanted runs in order, and what to group them by.
    """
    known, in_address = offered(entries), not prefix
    for name, (options, default) in OPTIONS.items():
        choices.choose(prefix + name, options, default)
    head = st.columns([4, 1.3, 1.3, 1.1] if in_address else [3, 2, 2, 1.9], vertical_alignment="bottom")
    st.session_state.setdefault(prefix + "words", st.query_params.get("words", "") if in_address else "")
    words = head[0].text_input("Search", key=f"{prefix}words", type="search", placeholder="Words of the name, recipe, arm, tags or note")
    order = head[1].selectbox("Order", list(ORDERS), key=f"{prefix}order", help="A click on a heading sorts the table, too.")
    group = head[2].selectbox("Group by", OPTIONS["group"][0], key=f"{prefix}group")
    archived = head[3].toggle("Archived", key=f"{prefix}archived", help="Show the archived runs in place of the others.")
    shown = [name for name in FACETS if len(known[name]) > 1 or (known[name] and name == "tag")]
    at_once = 10 if in_address else 5
    fields = [*shown, "since", "until"]
    places = [place for first in range(0, len(fields), at_once)
              for place in st.columns(min(len(fields), at_once), vertical_alignment="bottom")][: len(fields)]  # fmt: skip
    facets: dict[str, list[str]] = {}
    for name, place in zip(shown, places[:-2], strict=True):
        choices.choose_several(prefix + name, known[name], [])
        facets[name] = place.multiselect(TITLES[name], known[name], key=prefix + name, placeholder="all")
    days = {
        name: _day(place, label, prefix + name) for name, label, place in zip(("since", "until"), ("From", "To"), places[-2:], strict=True)
    }
    if in_address:
        given = {"words": words, "order": order, "group": group, "archived": archived, **days}
        choices.write_address(**given, **facets)
    wanted = Wanted(words or "", facets, days["since"], days["until"], archived)
    return matching(entries, wanted, order), group or ONE_BY_ONE


def _day(place: Any, label: str, key: str) -> str:
    if key not in st.session_state:
        try:
            st.session_state[key] = date.fromisoformat(st.query_params.get(key, ""))
        except ValueError:
            st.session_state[key] = None
    chosen = place.date_input(label, key=key, format="YYYY-MM-DD", help="Day of creation (UTC).")
    return chosen.isoformat() if isinstance(chosen, date) else ""


def table(entries: Sequence[Entry], group: str, chosen: str, height: int) -> None:
    """Shows runs, or groups of runs, with a checkbox each. What is checked is chosen; chosen runs that are not listed stay chosen.

    Args:
        entries: the listed runs, in order.
        group: what to group them by, or ``ONE_BY_ONE``.
        chosen: key of the session state that holds the names of the chosen runs.
        height: most pixels of the table.
    """
    if group == ONE_BY_ONE:
        frame, groups = list_table(entries), [[entry] for entry in entries]
    else:
        frame, groups = grouped(entries, group)
    # columns that say nothing are left out
    bare = [name for name in ("tags", "note") if name in frame and not frame[name].map(len).any()]
    bare += ["progress"] if "progress" in frame and (frame["progress"] == 1).all() else []
    frame = frame.drop(columns=bare)
    rows = [[entry.run.name for entry in own] for own in groups]
    before = set(st.session_state[chosen])
    checked = [number for number, names in enumerate(rows) if before and before.issuperset(names)]
    # a table is another one as soon as it lists other runs, or other runs were chosen elsewhere; a click in it leaves it as it is
    own = f"{chosen}-table-{_hash(rows, group)}"
    if st.session_state.get(f"{own}-checked") != checked:
        st.session_state[f"{own}-made"] = st.session_state.get(f"{own}-made", 0) + 1
        st.session_state[f"{own}-checked"] = checked
    key = f"{own}-{st.session_state[f'{own}-made']}"

    def keep() -> None:
        picked = sorted(st.session_state[key]["selection"]["rows"])
        listed = {name for names in rows for name in names}
        inside = [name for number in picked for name in rows[number]]
        st.session_state[f"{own}-checked"] = picked
        st.session_state[chosen] = list(dict.fromkeys([name for name in st.session_state[chosen] if name not in listed] + inside))

    st.dataframe(frame, key=key, hide_index=True, row_height=ROW, height=min(height, ROW * (len(frame) + 1) + 12), on_select=keep,
                 selection_mode="multi-row", selection_default={"selection": {"rows": checked}}, column_config=COLUMNS | {
                     "run": TEXT("run", pinned=True, width=_wide_as(names for own in rows for names in own))},
                 placeholder="–")  # fmt: skip


def _wide_as(names: Iterable[str]) -> int:
    """Returns the pixels of a column that shows names in full, within bounds."""
    return min(max(24 + 7 * max(map(len, names), default=0), 120), 420)


def _hash(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def saved() -> Mapping[str, Sequence[str]]:
    """Returns the saved sets of runs by name; none if they cannot be read, which the page of runs says."""
    try:
        return read_sets(runs_root()).sets
    except WorkbenchError:
        return {}


def popover(place: Any, entries: Sequence[Entry], chosen: str, sets: Mapping[str, Sequence[str]]) -> None:
    """Shows a button that opens the filters and the table above a page; the page follows what is checked.

    Args:
        place: of the button.
        entries: runs to choose from.
        chosen: key of the session state that holds the names of the chosen runs.
        sets: saved sets of runs by name, which a click chooses.
    """
    with place.popover("Table", icon=":material/checklist:", width="stretch", on_change="rerun", key=f"{chosen}-popover") as opened:
        if not opened.open:
            return
        names = {entry.run.name for entry in entries}
        there = [name for name, runs in sets.items() if names & set(runs)]
        if there:
            st.pills("Saved sets", there, key=f"{chosen}-set", on_change=lambda: _take(chosen, sets, names))
        found, group = filters(entries, f"{chosen}-")
        table(found, group, chosen, 460)
        page.note(f"{len(found)} of {len(entries)} runs listed, {len(st.session_state[chosen])} chosen.")


def _take(chosen: str, sets: Mapping[str, Sequence[str]], names: set[str]) -> None:
    if (name := st.session_state[f"{chosen}-set"]) is not None:
        st.session_state[chosen] = [run for run in sets[name] if run in names]

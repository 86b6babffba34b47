"""Lists all runs: finds, compares, labels, renames, archives and removes them, and keeps sets of them."""

from collections.abc import Callable, Sequence

import streamlit as st

import workbench.store.changes as changes
from lib import page, run_chooser
from workbench.errors import WorkbenchError
from workbench.store.changes import Change
from workbench.store.run import Run, runs_root
from workbench.store.sets import Sets, read_sets
from workbench.store.trash import thrown_away
from workbench.views.catalog import Entry, catalog

CHOSEN = "picked"  # key of the session state: names of the checked runs
DONE, FAILED = "changes", "change-failed"  # keys of the session state: changes that can be undone, the newest last; what did not work
MOST_UNDONE = 20
PINNED = "The one run that every page compares with. Without it, pages compare with the undistilled run of the same recipe, data and seed."
page.question("Which runs are there, and which of them do I want to look at?")
root = runs_root()
everyone = {entry.run.name: entry for entry in catalog(root)}
entries = [entry for entry in everyone.values() if not entry.problem]
if not everyone:
    page.usable_runs()  # says how to make a run


def make(change: Callable[[], Change]) -> None:
    """Makes a change that can be undone, or keeps the reason why not."""
    try:
        done = change()
    except WorkbenchError as error:
        st.session_state[FAILED] = str(error)
        return
    st.session_state[DONE] = [*st.session_state.get(DONE, []), done][-MOST_UNDONE:]
    gone = {name for name in st.session_state.get(CHOSEN, []) if not (root / name / "run.json").is_file()}
    st.session_state[CHOSEN] = [name for name in st.session_state.get(CHOSEN, []) if name not in gone]


def undo() -> None:
    """Takes back the last change."""
    try:
        st.session_state[DONE].pop().undo()
    except WorkbenchError as error:
        st.session_state[FAILED] = str(error)


def last_change() -> None:
    """Says what was done last, with a button that takes it back."""
    if failed := st.session_state.pop(FAILED, None):
        page.banner("error", "That could not be done", failed)
    if done := st.session_state.get(DONE):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(f"{done[-1].said[0].upper()}{done[-1].said[1:]}.")
            st.button("Undo", icon=":material/undo:", on_click=undo, key="undo")


def open_comparison(names: Sequence[str]) -> None:
    """Opens Overview with the checked runs."""
    st.session_state["run"] = list(names)
    st.switch_page("screens/overview.py", query_params=[("run", name) for name in names])


def open_curves(names: Sequence[str]) -> None:
    """Opens the page of training curves with the checked runs laid over the first."""
    st.session_state["curves_of"] = list(names)
    st.switch_page("screens/training.py", query_params=[("run", names[0]), *(("beside", name) for name in names[1:])])


def actions(chosen: Sequence[Entry], sets: Sets) -> None:
    """Shows what can be done with the checked runs; without any the buttons stand where they will be."""
    names, runs = [entry.run.name for entry in chosen], [entry.run for entry in chosen]
    none, one = not runs, runs[0] if len(runs) == 1 else None
    with st.container(horizontal=True, vertical_alignment="center"):
        st.text(f"{len(runs)} checked" if runs else "Check runs:", width=92)
        if st.button("Compare", icon=":material/stacked_line_chart:", type="primary", key="compare", disabled=none,
                     help="Opens them on Overview."):  # fmt: skip
            open_comparison(names)
        if st.button("Training curves", icon=":material/show_chart:", key="curves", disabled=none):
            open_curves(names)
        tagging(chosen, runs)
        with st.popover("Note", icon=":material/edit_note:", disabled=none):
            key = f"note-{','.join(names)}"
            st.text_area("Note", chosen[0].labels.note if one is not None else "", key=key)
            st.button("Write", key="write-note", on_click=lambda: make(lambda: changes.note(runs, st.session_state[key])))
        renaming(one)
        pinned = one is not None and sets.baseline == one.name
        st.button("Unpin baseline" if pinned else "Pin as baseline", icon=":material/keep:", key="pin", disabled=one is None, help=PINNED,
                  on_click=repin, args=(None if pinned or one is None else one.name,))  # fmt: skip
        with st.popover("Save as a set", icon=":material/bookmark:", disabled=none):
            st.text_input("Name of the set", key="set-name")
            st.button("Save", key="save-set", on_click=lambda: make(lambda: changes.keep_set(root, st.session_state["set-name"], names)))
        away = not none and all(entry.labels.archived for entry in chosen)
        st.button("Take back" if away else "Archive", icon=":material/archive:", key="archive", help="Leaves them out of lists and pages.",
                  disabled=none, on_click=lambda: make(lambda: changes.archive(runs, not away)))  # fmt: skip
        st.button("Delete", icon=":material/delete:", key="delete", help="Moves them to the trash of the folder of runs.",
                  disabled=none, on_click=lambda: make(lambda: changes.delete(runs)))  # fmt: skip


def tagging(chosen: Sequence[Entry], runs: Sequence[Run]) -> None:
    """Shows the tags of the checked runs, to add and take off."""
    known = sorted({tag for entry in entries for tag in entry.labels.tags})
    shared = set.intersection(*(set(entry.labels.tags) for entry in chosen)) if chosen else set[str]()
    with st.popover("Tags", icon=":material/label:", disabled=not chosen):
        add = st.multiselect("Add tags", [tag for tag in known if tag not in shared], key="tags-to-add", accept_new_options=True,
                             placeholder="Choose tags, or write new ones")  # fmt: skip
        st.button("Add", key="add-tags", disabled=not add, on_click=lambda: retag(runs, "tags-to-add", "add"))
        if own := sorted({tag for entry in chosen for tag in entry.labels.tags}):
            gone = st.multiselect("Take tags off", own, key="tags-to-remove", placeholder="Choose tags")
            st.button("Take off", key="remove-tags", disabled=not gone, on_click=lambda: retag(runs, "tags-to-remove", "remove"))


def retag(runs: Sequence[Run], key: str, what: str) -> None:
    """Adds or removes the tags that a field holds, and empties the field."""
    tags = list(st.session_state[key])
    make(lambda: changes.tag(runs, **{what: tags}))
    st.session_state[key] = []


def renaming(run: Run | None) -> None:
    """Shows the field for a new name of the checked run."""
    with st.popover("Rename", icon=":material/edit:", disabled=run is None):
        if run is None:
            return
        key = f"name-{run.name}"
        written = st.text_input("New name", run.name, key=key)

        def rename() -> None:
            name = st.session_state[key].strip()
            make(lambda: changes.rename(run, name))
            st.session_state[CHOSEN] = [name if (root / name / "run.json").is_file() else run.name]

        st.button("Rename", key="rename", on_click=rename, disabled=written == run.name)


def repin(name: str | None) -> None:
    """Pins a baseline; pages that showed another one open with the new one."""
    make(lambda: changes.pin_baseline(root, name))
    st.session_state["chosen"] = {k: v for k, v in st.session_state.get("chosen", {}).items() if k != "baseline"}


@page.guarded("The saved sets cannot be read")
def saved_sets(sets: Sets) -> None:
    """Lists the saved sets, each with a button that opens it, and one that removes it."""
    st.markdown("**Saved sets**")
    if not sets.sets:
        st.caption(
            "There is none yet. Check some runs and save them as a set; its address is the same for everybody who opens this folder."
        )
    for number, (name, runs) in enumerate(sets.sets.items()):
        there = [run for run in runs if run in everyone]
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Open", key=f"open-set-{number}", icon=":material/open_in_new:"):
                st.session_state.pop("run", None)
                st.switch_page("screens/overview.py", query_params={"set": name})
            st.text(
                f"{name}: {len(there)} runs" + (f", {len(runs) - len(there)} of {len(runs)} are gone" if len(there) < len(runs) else "")
            )
            st.button(
                "Remove", key=f"remove-set-{number}", type="tertiary", on_click=make, args=(lambda name=name: changes.drop_set(root, name),)
            )


def trash() -> None:
    """Lists the trash, with a button that brings each run back."""
    thrown = thrown_away(root)
    if not thrown:
        return
    st.markdown("**Trash**")
    page.note(f"{len(thrown)} removed runs. 'workbench runs empty' removes them for good and frees their space.")
    for number, one in enumerate(thrown[:MOST_UNDONE]):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Bring back", key=f"restore-{number}", icon=":material/restore_from_trash:", on_click=bring_back, args=(one.name,))
            st.text(f"{one.name}, removed {one.when[:4]}-{one.when[4:6]}-{one.when[6:8]} {one.when[9:11]}:{one.when[11:13]} UTC")


def bring_back(name: str) -> None:
    """Takes a run out of the trash."""
    try:
        changes.restore(root, [name])
    except WorkbenchError as error:
        st.session_state[FAILED] = str(error)


@page.guarded("The runs cannot be listed")
def body() -> None:
    """Shows the filters, the table, what can be done with the checked runs, saved sets and the trash."""
    sets = read_sets(root)
    st.session_state[CHOSEN] = [name for name in st.session_state.get(CHOSEN, []) if name in everyone]
    found, group = run_chooser.filters(entries)
    place = st.container()
    run_chooser.table(found, group, CHOSEN, 620)
    with place:
        last_change()
        actions([everyone[name] for name in st.session_state[CHOSEN]], sets)
    bad = [entry for entry in everyone.values() if entry.problem]
    away = sum(entry.labels.archived for entry in entries)
    said = f"n = {len(found)} of {len(entries)} runs, {away} archived. "
    page.note(said + (f"The pinned baseline is {sets.baseline}." if sets.baseline else "No baseline is pinned."))
    for entry in bad:
        page.banner("warning", "A run cannot be shown", f"{entry.run.name}: {entry.problem}")
    saved_sets(sets)
    trash()


body()

"""Shows a search for a distiller while it runs and after it: trials, best candidates, what survives, the space, gates and cost."""

import shlex
from importlib.util import find_spec
from typing import Any

import pandas as pd
import streamlit as st

from lib import choices, page
from workbench.errors import pip_install
from workbench.store.searches import search_folders, searches_root
from workbench.views import search as views
from workbench.views import search_space as space_views

if find_spec("optuna") is None:
    page.banner("info", "A search needs Optuna", f"Run: {pip_install('search')}")
    st.stop()

from lib import held_searches as held

NUMBER = st.column_config.NumberColumn
PARTS = {
    "trials": "Trials", "best": "Best candidates", "survivors": "What survives", "space": "The space", "gates": "Gates, rungs and cost",
    "searches": "All searches",
}  # fmt: skip
OPERATIONS = {
    "position": st.column_config.TextColumn(width=80), "choice": st.column_config.TextColumn(width=150),
    "file": st.column_config.TextColumn(width=330), "line": NUMBER("line", width=60, format="%d"),
    "function": st.column_config.TextColumn(width=170), "does": st.column_config.TextColumn("what the function does", width=640),
}  # fmt: skip
LISTED = {"changed": st.column_config.TextColumn("last change (UTC)"), "share_trials": NUMBER("trials of shares"),
          "repeated": NUMBER("repeated candidates"), "repeats": NUMBER("fresh seeds")}  # fmt: skip
SHARES = {
    "share": NUMBER("of the best 20 %", format="%.0f %%", help="Share of the choice among the best 20 % of the trained trials."),
    "proposed": NUMBER("of all trained", format="%.0f %%", help="Share of the choice among all trained trials."),
}  # fmt: skip
SPACE = {"number": NUMBER("trial", width=70), "ap": NUMBER("AP", width=80, format="%.2f")}
COSTS = {
    "what": st.column_config.TextColumn("what became of it"), "seconds": NUMBER("CPU (s)", format="%.0f"),
    "each": NUMBER("each (s)", format="%.1f"),
}  # fmt: skip
root = searches_root()


@st.fragment(run_every=page.REFRESH_SECONDS)
def watch(before: object) -> None:
    """Runs the page again as soon as a journal has changed or a search has begun; until then it only looks at the files' times."""
    if seen() != before:
        st.rerun()


def seen() -> object:
    """Returns what the page depends on: which searches there are, and the state of the one that it shows."""
    folders = search_folders(root)
    shown = next((folder for folder in folders if folder.name == st.session_state.get("search")), None)
    return sorted(folders), shown and held.moment(shown)


page.question("Which distiller did the search find, and which of its choices made it good?")
folders = {folder.name: folder for folder in search_folders(root)}
if not folders:
    st.subheader("No searches yet", anchor=False)
    st.caption("This page shows the searches in the folder below and looks for new ones every few seconds. This command begins one:")
    st.code(f"WORKBENCH_SEARCHES={shlex.quote(str(root.resolve()))} workbench search shapes_fcos --workers 2", language=None)
    watch(seen())
    st.stop()

bar = st.columns([3, 2, 7], vertical_alignment="bottom")
name = choices.select(bar[0], "Search", "search", list(folders), next(iter(folders)), help="The search that changed last comes first.")
at = held.moment(folders[name])


@page.guarded("This search cannot be shown")
def body() -> None:
    """Shows the headline, and the chosen part."""
    read = held.read(at)
    if not read.records:
        page.banner("info", "No trial yet", "Trials appear here as soon as a worker has begun one.")
        return
    running = next((study for study, one in read.stages.items() if one.open or one.repeating), next(reversed(read.records)))
    study = choices.select(bar[1], "Study", "study", list(read.records), running, help="An input whose formulas are searched, or the "
                           "shares of the best formulas together.")  # fmt: skip
    choices.write_address(search=name, study=study)
    headline(read, study)
    part = choices.part(PARTS)
    if part == "trials":
        trials(study)
    elif part == "best":
        best(study)
    elif part == "survivors":
        survivors(study)
    elif part == "space":
        space(study)
    elif part == "gates":
        gates(study)
    else:
        searches()


def headline(read: held.Read, study: str) -> None:
    """Shows how far the study is, its best mean, the noise, and the cost of the whole search."""
    cells = st.columns(5)
    one, leaders = read.stages.get(study), held.table(at, study, "leaders")
    if one is not None:
        running = one.open + one.repeating
        cells[0].metric("Trials trained", f"{one.trained} of {one.target}", f"{running} running" if running else None, delta_color="off",
                        delta_arrow="off", help=f"{running} running or waiting, {one.repeats} repeats done.")  # fmt: skip
    if leaders.empty:
        cells[1].metric("Best AP, fresh seeds", "–", help="The best candidates are trained with fresh seeds when all trials of the "
                        "study are done. Until then nobody knows which is best: the best single one tends to be lucky.")  # fmt: skip
    else:
        last = leaders.iloc[-1]
        between = "" if pd.isna(last["low"]) else f" ({last['low']:.1f} to {last['high']:.1f})"
        cells[1].metric("Best AP, fresh seeds", f"{last['mean']:.1f}{between}", help=f"Mean over {last['n']} fresh seeds of the candidate "
                        f"of trial {last['number']}, with its 95 % interval.")  # fmt: skip
    spread = held.table(at, study, "noise")
    cells[2].metric("Spread between seeds", "–" if spread is None else f"{100 * spread:.2f} AP", help="Standard deviation of AP between "
                    "fresh seeds of one candidate, over all repeated candidates of the study.")  # fmt: skip
    cost = read.cost
    cells[3].metric("Cost so far", views.time_told(cost.spent), help=f"CPU time of the whole search: {cost.trials} of {cost.total} trials "
                    "and repeats.")  # fmt: skip
    cells[4].metric("To come", views.time_told(cost.left), help="CPU time of the trials and repeats that are "
                    "left, at the mean of those so far.")  # fmt: skip


@st.fragment
@page.guarded("The trials cannot be shown")
def trials(study: str) -> None:
    """Shows all trials of a study, and the chosen one in detail."""
    table, leaders = held.table(at, study, "trials"), held.table(at, study, "leaders")
    firsts = table[~table["repeat"]].set_index("number")
    above, below = st.container(), st.container()  # the figure points at the trial that is chosen below it
    chosen: int | None = None
    if len(firsts):
        default = int(firsts.index[-1]) if leaders.empty else int(leaders["number"].iloc[-1])
        asked = int(choices.choose("trial", sorted(firsts.index.tolist()), default))
        names = views.trial_names(views.offered(firsts, asked))
        left, right = below.columns([5, 1.2], vertical_alignment="bottom")
        help_text = "Or click a mark. Type to look for an operation."
        if len(names) < len(firsts):
            help_text += f" The {views.OFFERED} best trials are listed; any other is chosen by its number."
            st.session_state["trial_number"] = asked
            right.number_input("Trial by number", int(firsts.index.min()), int(firsts.index.max()), key="trial_number", step=1,
                               on_change=choose_number, args=(firsts.index,))  # fmt: skip
        chosen = left.selectbox("Trial", sorted(names), key="trial", format_func=names.__getitem__, width=760, help=help_text)
    with above:
        rungs = held.table(at, study, "rungs")
        counts = f"n = {len(firsts)} trials of study {study} and {len(table) - len(firsts)} repeats. Click a mark to see its formula."
        if many := views.without_rungs(table, rungs):
            counts += f" Because there are so many, rungs are left out, and {len(views.picked(table))} trials have marks, the best and an "
            counts += "even sample of the others. Of all others, shades say how many lie in each cell."
        figure = held.figure(at, study, "trials") if many else views.trials_figure(table, rungs, leaders, chosen)
        page.chart(figure, "search-trials", f"{views.TRIALS_CAPTION} {counts}", table, on_select=choose_trial, modes=["points"])
    if chosen is not None:
        detail(study, chosen)
        choices.write_address(trial=chosen)


def choose_trial() -> None:
    """Stores the trial whose mark was clicked."""
    found = choices.clicked("search-trials")
    if found:
        st.session_state["trial"] = found[0]


def choose_number(known: pd.Index) -> None:
    """Stores the trial whose number was written; of a number that no trial has, the next one below."""
    st.session_state["trial"] = int(known[known <= st.session_state["trial_number"]].max())


def detail(study: str, number: int) -> None:
    """Shows what a trial trained: its equation, what came out, where its operations are computed, and how a recipe uses it."""
    found = held.trial_details(at, study, number)
    if found.ended:
        st.text(found.ended)
    if not found.equations:
        st.caption("Its choices leave nothing to train.")
        return
    left, right = st.columns([1.15, 1], gap="medium")
    with left:
        for name, share, equation, meaning in found.equations:
            st.latex(equation)
            page.note(f"{name}, at {share:g} times the detection gradient. {meaning}")
        page.note("Student (S) and teacher (T) pass through the same steps. Angle brackets are the mean over all that is left.")
    with right:
        st.code(found.entry, language="yaml")
        page.note(f"This entry in a recipe trains with the formula. 'workbench search export {at.folder.name} --top 3' writes whole "
                  "recipes of the candidates that were trained with fresh seeds.")  # fmt: skip
    columns = ["input"] * (len(found.equations) > 1) + ["position", "choice", "file", "line", "function", "does"]
    places = pd.DataFrame(list(found.operations))[columns]
    st.dataframe(places, hide_index=True, row_height=28, key="operations", column_config=OPERATIONS)


@page.guarded("The best candidates cannot be shown")
def best(study: str) -> None:
    """Shows the candidates that were trained again, with their intervals."""
    table = held.table(at, study, "means")
    meaning = f"{views.MEANS_CAPTION} n = {len(table)} candidates, {int(table['n'].sum())} repeats of study {study}."
    page.chart(views.means_figure(table), "search-means", meaning, table)


@page.guarded("What survives cannot be shown")
def survivors(study: str) -> None:
    """Shows how common each choice is among the best trials as the search goes on."""
    table = held.table(at, study, "survivors")
    last = table[table["trials"] == table["trials"].max()]
    n = 0 if table.empty else int(table["trials"].max())
    page.chart(
        held.figure(at, study, "survivors"), "search-survivors", f"{views.SURVIVORS_CAPTION} n = {n} trials of study {study}.", table
    )
    shown = last.assign(choice=last["choice"].astype(str), share=100 * last["share"], proposed=100 * last["proposed"])
    st.dataframe(shown[["position", "choice", "share", "proposed"]], hide_index=True, row_height=28, key="survivor-table",
                 column_config=SHARES)  # fmt: skip


@st.fragment
@page.guarded("The space cannot be shown")
def space(study: str) -> None:
    """Shows the trained formulas as lines across the positions, and the trials that pass the places that are kept."""
    table, positions = held.table(at, study, "space")
    if table.empty:
        page.chart(space_views.space_figure(table, positions), "search-space", "n = 0 trials.")
        return
    axes = space_views.SpaceAxes(table, positions)
    chosen = kept_choices(axes)
    chart = "search-space"
    passing = chosen.of(table)
    drawn = len(space_views.drawn_of(passing))
    meaning = f"{space_views.SPACE_CAPTION} n = {len(passing)} of {len(table)} trials of study {study}."
    meaning += f" {drawn} of them are drawn, the best and an even sample of the others." if drawn < len(passing) else ""
    page.chart(space_views.space_figure(table, positions, chosen), chart, meaning, passing, modes=["box"],
               on_select=lambda: keep_boxed(chart, axes, chosen))  # fmt: skip
    shown = passing.sort_values("ap", ascending=False, kind="stable")
    st.dataframe(shown, hide_index=True, row_height=28, height=300, key="space-table", column_config=SPACE)


def kept_choices(axes: space_views.SpaceAxes) -> space_views.Kept:
    """Shows a list for each position and the limits of AP, and returns what they keep."""
    bar = st.columns([2] * len(axes.choices) + [1, 1])
    found: dict[str, list[Any]] = {}
    for place, (position, options) in zip(bar, axes.choices.items(), strict=False):
        names = {str(option): option for option in reversed(options)}
        key = f"keep_{position}"
        choices.choose_several(key, list(names), [])
        kept = place.multiselect(position, list(names), key=key, placeholder="all")
        found |= {position: [names[name] for name in kept]} if kept else {}
    for place, key, label, empty in zip(bar[-2:], ("keep_low", "keep_high"), ("AP from", "AP to"), ("lowest", "highest"), strict=True):
        choices.choose_limit(key)
        place.number_input(label, value=None, step=0.5, format="%.2f", key=key, placeholder=empty)
    low, high = st.session_state["keep_low"], st.session_state["keep_high"]
    limits = {key: [] if limit is None else [f"{limit:.2f}"] for key, limit in (("keep_low", low), ("keep_high", high))}
    choices.write_address(**{f"keep_{position}": list(map(str, found.get(position, ()))) for position in axes.choices}, **limits)
    return space_views.Kept(found, low, high)


def keep_boxed(chart: str, axes: space_views.SpaceAxes, before: space_views.Kept) -> None:
    """Stores what the box that was drawn over the axes keeps."""
    kept = axes.boxed(st.session_state[chart]["selection"]["box"], before)
    for position in axes.choices:
        st.session_state[f"keep_{position}"] = list(map(str, kept.choices.get(position, ())))
    st.session_state["keep_low"], st.session_state["keep_high"] = kept.low, kept.high


@page.guarded("The gates cannot be shown")
def gates(study: str) -> None:
    """Shows what was refused and why, how well rungs tell the end, and what trials cost."""
    plan = held.read(at).plan
    st.markdown("**Ended early**")
    table = held.table(at, study, "rejections")
    meaning = "R0: the formula cannot work; R1: its gradient on a batch; R2: training collapsed; rung: others were better there. "
    page.chart(views.rejections_figure(table), "search-rejections", f"{meaning}n = {int(table['trials'].sum())} trials of study {study}.",
               table)  # fmt: skip
    st.markdown("**Rungs**")
    points, rungs = held.table(at, study, "calibration")
    meaning = f"{views.RUNGS_CAPTION} The limit is {plan.correlation:g}, measured on at least {plan.unpruned} trials."
    page.chart(views.rungs_figure(points, rungs, plan.correlation, plan.unpruned), "search-rungs", f"{meaning} n = {len(points)} points.",
               points)  # fmt: skip
    st.markdown("**Cost**")
    costs = held.table(at, study, "cost")
    st.dataframe(costs.assign(what=costs["what"].map(views.KINDS)), hide_index=True, row_height=28, key="cost-table", column_config=COSTS)
    page.note(f"CPU seconds of the {int(costs['trials'].sum())} trials and repeats of study {study} that have ended.")


def searches() -> None:
    """Lists all searches."""
    st.dataframe(held.all_searches(list(folders.values())), hide_index=True, row_height=28, key="searches", placeholder="–",
                 column_config=LISTED)  # fmt: skip
    page.note(f"n = {len(folders)} searches in {root.resolve()}. Workers may run while you look.")
    st.caption("These commands end the search chosen above after its running trials, write its best candidates as recipes, and open its "
               "journal in optuna-dashboard:")  # fmt: skip
    own, journal = shlex.quote(name), shlex.quote(str(folders[name].resolve() / "journal.log"))
    st.code(f"workbench search stop {own}\nworkbench search export {own} --top 3\noptuna-dashboard {journal}", language=None)


body()
watch(seen())

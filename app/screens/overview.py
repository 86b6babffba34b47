"""Compares runs: whether distillation helped, the summary table, AP and match stability during training, final AP by arm and seed."""

from typing import Any
from urllib.parse import quote

import pandas as pd
import streamlit as st

from lib import choices, held, page, run_chooser
from lib.answer_cards import answer_cards
from lib.arm_verdicts import verdicts
from lib.held import RESULTS
from lib.layers_panel import layers_panel
from workbench.analysis.defined import NOT_DEFINED, undefined_of
from workbench.analysis.of_run import SPLITS, all_evaluations, common_step, one_evaluation, splits_with_queries
from workbench.analysis.report.summary import result_at
from workbench.views import overview as views
from workbench.views.catalog import baseline_of, latest_comparison
from workbench.views.csv_text import NOTE, csv_text
from workbench.views.summary import MAIN, Column, sortable

GAIN = {"gain": "gain", "low": "gain_low", "high": "gain_high", "n": "gain_n"}  # columns of a mean gain -> columns of the summary

WITH_ENDS = {"ap": 132, "difference": 158, "gain": 158}  # pixels of the columns that hold an interval once it is known


def column_config(columns: dict[str, Column], styled: set[str]) -> dict[str, Any]:
    """Returns headings, formats and help texts of the summary table; columns in ``styled`` bring their own texts."""
    links = {"images": st.column_config.LinkColumn("images", help="Opens this run in the matching explorer.", display_text="open")}
    return links | {
        name: st.column_config.NumberColumn(column.title, help=column.meaning, width=WITH_ENDS.get(name))
        if name in styled
        else st.column_config.TextColumn(column.title, help=column.meaning, pinned=name == "run", width=WITH_ENDS.get(name))
        if column.digits is None
        else st.column_config.NumberColumn(column.title, help=column.meaning, format=f"%.{column.digits}f")
        for name, column in columns.items()
    }


page.question("Did distillation help, and is it more than chance?")
entries = page.usable_runs()
names = list(entries)
sets = run_chooser.saved()
opening = [entry.run.name for entry in latest_comparison(list(entries.values()))]
choices.choose_several("run", names, sets.get(st.query_params.get("set", ""), opening))
bar = st.columns([7, 1.5, 1, 1], vertical_alignment="bottom")
bar[0].multiselect("Runs", names, key="run", format_func=lambda name: entries[name].title, placeholder="Choose runs to compare")
run_chooser.popover(bar[1], list(entries.values()), "run", sets)
pinned = choices.pinned_baseline()
asked = [name for name in names if name in st.session_state["run"]]
if not asked:
    choices.write_address(run=asked)
    st.caption("Choose at least one run.")
    st.stop()
splits = choices.splits_of((entries[name] for name in asked), lambda entry: splits_with_queries(entry.run))
split = choices.select_split(bar[2], splits or SPLITS[:1])
shown_columns = choices.select(bar[3], "Columns", "columns", ["main", "all"], "main", help="Columns of the table of runs.")


@st.fragment(run_every=page.REFRESH_SECONDS if any(entries[name].state == "running" for name in asked) else None)
@page.guarded("These runs cannot be compared")
def body() -> None:
    """Shows everything below the choice of runs; it is redrawn every few seconds while one of them is being trained."""
    for name in asked:
        if entries[name].error:
            page.banner("error", "A run failed", f"{name}: {entries[name].error}")
    shown = page.readable(
        [all_evaluations(entries[name].run, split) for name in asked],
        lambda runs: held.runs_table(tuple(runs)),
    )
    chosen = [own.run.name for own in shown]
    if not chosen:
        return
    table = held.runs_table(tuple(shown))
    place = st.empty()
    if st.session_state.get("with_intervals") != shown:
        show_table(place, table, "summary-first")
    points = pd.concat([held.progress(own) for own in shown])
    meaning = f"{views.PROGRESS_CAPTION} {views.counted(points)} split {split}, {len(chosen)} runs."
    page.chart(views.progress_figure(points, chosen), "progress", meaning, points)
    runs = [own.run for own in shown]
    page.note(undefined_of(runs, "churn"))
    left, right = st.columns(2, gap="medium")
    with right:
        layers_panel(shown, chosen, "layers", f"of split {split} over all lines.")
    table = with_intervals(table)
    with left:
        st.markdown("**Final AP**")
        results = views.result_points([entries[name] for name in asked])
        if len(results):
            known = table.dropna(subset=["ap_low"])[["run", "split", "step", "ap_low", "ap_high"]]
            results = results.merge(known.astype({"ap_low": float, "ap_high": float}), on=["run", "split", "step"], how="left")
            page.chart(views.results_figure(results, chosen), "results", f"{views.RESULTS_CAPTION} n = {len(results)} runs.", results)
        else:
            st.caption("None of these runs has finished yet.")
    show_table(place, table, "summary")
    st.session_state["with_intervals"] = shown
    choices.write_address(run=chosen, split=split, columns=shown_columns)


def show_table(place: Any, table: pd.DataFrame, key: str) -> None:
    """Shows the summary of the chosen runs and their teachers."""
    frame, columns, styled = sortable(table, images=[f"image?run={quote(name)}" if name in names else None for name in table["run"]])
    if pinned is not None and "difference" in columns:
        meaning = (
            f"AP minus that of the pinned baseline, {pinned}, on the same images (points). Runs on other data: of their undistilled run."
        )
        columns["difference"] = columns["difference"]._replace(meaning=meaning)
    order = [*(name for name in (MAIN if shown_columns == "main" else columns) if name in columns), "images"]
    with place.container():
        st.dataframe(frame, key=key, hide_index=True, row_height=28, column_config=column_config(columns, styled), column_order=order,
                     placeholder="–")  # fmt: skip
        left, right = st.columns([12, 1], vertical_alignment="center")
        left.caption("Point at a heading to see its definition. Brackets hold 95 % intervals over resampled images. AP is of the split in "
                     f"its heading. All but AP is of split {split}. 'All' adds n and costs.")  # fmt: skip
        right.download_button("CSV", lambda: csv_text(table), "runs.csv", "text/csv", key=f"{key}-csv", type="tertiary",
                              on_click="ignore", help=NOTE)  # fmt: skip


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Adds to the summary the intervals of AP, and the difference in AP and the gain over the undistilled run; null if they are unknown."""
    found: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        entry = entries.get(row["run"])
        found.append(dict.fromkeys(("ap_low", "ap_high", "difference", "difference_low", "difference_high", "gain")))
        if entry is None or row["step"] is None:
            continue
        with page.quietly():
            low, high = RESULTS.ap_interval(one_evaluation(entry.run, row["split"], row["step"]))
            found[-1] |= {"ap_low": low, "ap_high": high}
        baseline = baseline_of(entry, list(entries.values()), pinned)
        if baseline is not None:
            with page.quietly():
                end, at = result_at(baseline.run), one_evaluation(entry.run, row["split"], row["step"])
                if end is not None and end.split == at.split:
                    verdict = RESULTS.ap_difference(end, at)
                    ends = (verdict.difference, verdict.low, verdict.high)
                    found[-1] |= dict(zip(("difference", "difference_low", "difference_high"), ends, strict=True))
            if undefined_of((entry.run, baseline.run), "gain"):
                found[-1]["gain"] = NOT_DEFINED
                continue
            with page.quietly():
                step = common_step(entry.run, baseline.run, split)
                gain = RESULTS.mean_gain(*(one_evaluation(own.run, split, step) for own in (entry, baseline)))
                found[-1] |= {name: float(gain[column].iloc[0]) for column, name in GAIN.items() if len(gain)}
    return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)


answer = st.container()  # filled last, because the first time it takes seconds
body()
with answer:
    answer_cards([entries[name] for name in asked], list(entries.values()))
verdicts([entries[name] for name in asked], list(entries.values()), split)

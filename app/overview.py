"""Runs side by side: the summary table, AP beside match stability, and results by arm and seed."""

from typing import Any
from urllib.parse import quote

import analyses
import pandas as pd
import reads
import shared
import streamlit as st
import values
import verdicts

from workbench.views import overview as views
from workbench.views.catalog import VALIDATION, baseline_of, latest_comparison
from workbench.views.summary import Column, readable


def column_config(columns: dict[str, Column]) -> dict[str, Any]:
    """Headings, formats and help of the summary table."""
    links = {"images": st.column_config.LinkColumn("images", help="The image page of this run.", display_text="open")}
    return links | {
        name: st.column_config.TextColumn(column.title, help=column.meaning, pinned=name == "run")
        if column.digits is None
        else st.column_config.NumberColumn(column.title, help=column.meaning, format=f"%.{column.digits}f")
        for name, column in columns.items()
    }


entries = shared.usable_runs()
names = list(entries)
shared.choose_several("run", names, [entry.run.name for entry in latest_comparison(list(entries.values()))])
st.multiselect("Runs", names, key="run", format_func=lambda name: entries[name].title, placeholder="Choose runs to compare")
chosen = [name for name in names if name in st.session_state["run"]]
if not chosen:
    shared.write_address(run=chosen)
    st.caption("Choose at least one run.")
    st.stop()


@st.fragment(run_every=shared.REFRESH_SECONDS if any(entries[name].state == "running" for name in chosen) else None)
@shared.guarded("These runs cannot be compared")
def body() -> None:
    """Everything below the choice; drawn anew every few seconds while one of the runs is being trained."""
    for name in chosen:
        if entries[name].error:
            shared.banner("error", "A run failed", f"{name}: {entries[name].error}")
    runs = [entries[name].run for name in chosen]
    stamps = tuple(reads.run_stamp(run) for run in runs)
    table = reads.summary(tuple(str(run.path) for run in runs), stamps)
    place = st.empty()
    if st.session_state.get("with_intervals") != stamps:
        show_table(place, table, "summary-first")
    points = pd.concat([reads.progress(str(run.path), stamp) for run, stamp in zip(runs, stamps, strict=True)])
    meaning = f"{views.PROGRESS_CAPTION} n = {int(points['n'].sum())} pairs of target and evaluation, {len(chosen)} runs."
    shared.chart(views.progress_figure(points, chosen), "progress", meaning, points)
    left, right = st.columns(2, gap="medium")
    with right:
        st.markdown("**Churn between decoder layers**")
        layers = pd.concat([reads.layers(str(run.path), stamp) for run, stamp in zip(runs, stamps, strict=True)])
        meaning = f"{views.LAYERS_CAPTION} n = {int(layers['n'].sum())} targets over all lines."
        shared.chart(views.layers_figure(layers, chosen), "layers", meaning, layers)
    table = with_intervals(table)
    with left:
        st.markdown("**Results**")
        results = views.result_points([entries[name] for name in chosen])
        if len(results):
            known = table.dropna(subset=["ap_low"])[["run", "split", "step", "ap_low", "ap_high"]]
            results = results.merge(known.astype({"ap_low": float, "ap_high": float}), on=["run", "split", "step"], how="left")
            shared.chart(views.results_figure(results, chosen), "results", f"{views.RESULTS_CAPTION} n = {len(results)} runs.", results)
        else:
            st.caption("No run of these has finished yet.")
    show_table(place, table, "summary")
    st.session_state["with_intervals"] = stamps
    shared.write_address(run=chosen)


def show_table(place: Any, table: pd.DataFrame, key: str) -> None:
    """The summary of the chosen runs, and their teachers."""
    frame, columns = readable(table)
    # links lead to the image page with that run
    frame["images"] = [f"image?run={quote(name)}" if name in names else None for name in table["run"]]
    with place.container():
        st.dataframe(frame, key=key, hide_index=True, row_height=28, column_config=column_config(columns), placeholder="–")
        left, right = st.columns([12, 1], vertical_alignment="center")
        left.caption("Rest the pointer on a heading for its definition. n counts the targets or queries behind the number before it; "
                     "from and to are the ends of 95 % intervals.")  # fmt: skip
        right.download_button("CSV", lambda: table.to_csv(index=False), "runs.csv", "text/csv", key=f"{key}-csv", type="tertiary",
                              on_click="ignore")  # fmt: skip


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The summary with the intervals of AP, and the gain over the undistilled run; null where the files do not tell."""
    found: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        entry = entries.get(row["run"])
        found.append({"ap_low": None, "ap_high": None, "gain": None})
        if entry is None or row["step"] is None:
            continue
        with shared.quietly():
            file = reads.stamp(entry.run.info_path, entry.run.detections_path(row["split"], row["step"]))
            low, high = analyses.ap_interval(str(entry.run.path), row["split"], row["step"], file)
            found[-1] |= {"ap_low": low, "ap_high": high}
        baseline = baseline_of(entry, list(entries.values()))
        steps = set(entry.run.query_steps(VALIDATION)) & set(baseline.run.query_steps(VALIDATION)) if baseline else set()
        if baseline is not None and steps:
            with shared.quietly():
                found[-1] |= values.run_gain(analyses.at(entry.run, max(steps)), analyses.at(baseline.run, max(steps)))
    return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)


body()
verdicts.verdicts([entries[name] for name in chosen], list(entries.values()))

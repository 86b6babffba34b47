"""Where AP is lost: error types and what they cost, against a baseline, with the images behind each number."""

from typing import cast

import analyses
import pandas as pd
import reads
import shared
import streamlit as st

from workbench.analysis.tide import MAIN, SPECIAL, Error, images_behind, queries_behind, rows_behind
from workbench.views import errors as views
from workbench.views.catalog import baseline_of

NOBODY = "no baseline"
DRAWN = 15  # errors of an image
entries = {name: entry for name, entry in shared.usable_runs().items() if analyses.evaluated(entry.run)}
if not entries:
    shared.banner("info", "No evaluation yet", "Errors appear here after the first evaluation of a run.")
    st.stop()
bar = st.columns([3, 1, 3, 2], vertical_alignment="bottom")
entry = shared.select_run(bar[0], entries)
run = entry.run
steps = analyses.evaluated(run)
step = shared.select(bar[1], "Step", "step", steps, steps[-1])
baseline = baseline_of(entry, list(entries.values()))
others = [NOBODY, *(name for name in entries if name != run.name)]
against = shared.select(bar[2], "Baseline", "baseline", others, baseline.run.name if baseline else NOBODY,
                        help="Compared at its last evaluation up to that step.")  # fmt: skip
kinds = [*MAIN, *SPECIAL]
choice = shared.select(bar[3], "Errors shown below", "error", kinds, kinds[0], format_func=lambda name: name.replace("_", " "))
kind: Error = cast(Error, choice)
here = analyses.at(run, step)


def there() -> tuple[str, int, reads.Stamp] | None:
    """The baseline at its last evaluation up to the step."""
    if against == NOBODY:
        return None
    own = analyses.evaluated(entries[against].run)
    return analyses.at(entries[against].run, max((s for s in own if s <= step), default=own[0]))


@shared.guarded("The errors of this run cannot be shown")
def types() -> None:
    """Costs of the run and the baseline, and their differences."""
    other = there()
    tables = ({against: analyses.costs(*other)} if other else {}) | {run.name: analyses.costs(*here)}
    left, right = st.columns(2, gap="medium")
    count = int(tables[run.name].loc[~tables[run.name]["special"], "count"].sum())
    with left:
        meaning = f"{views.COSTS_CAPTION} n = {len(analyses.errors(*here).images)} images, {count} errors of this run at step {step}."
        together = pd.concat([table.assign(run=name) for name, table in tables.items()])
        shared.chart(views.costs_figure(tables), "error-costs", meaning, together)
    if other is None:
        return
    seeds = (entries[against].seed, entry.seed)
    differences, changed = analyses.compared(seeds, other, here)
    with right:
        meaning = f"{views.DIFFERENCE_CAPTION} n = {len(analyses.errors(*here).images)} images; it tells about these checkpoints."
        shared.chart(views.difference_figure(differences), "error-differences", meaning, differences)
    counts = changed["change"].value_counts()
    shared.note(
        f"Targets that this run lost: {counts.get('lost', 0)}, gained: {counts.get('gained', 0)}, missed otherwise: "
        f"{counts.get('other error', 0)}, of {len(analyses.errors(*here).targets)}, against the baseline at step {other[1]}."
    )


@shared.guarded("The classes of this run cannot be shown")
def classes_and_scores() -> None:
    """Confusion and calibration."""
    left, right = st.columns(2, gap="medium")
    found, other = analyses.errors(*here), there()
    with left:
        counts = analyses.confusion(*here)
        meaning = f"{views.CONFUSION_CAPTION} n = {int(counts.to_numpy().sum())} pairs."
        shared.chart(views.confusion_figure(counts, found.classes), "confusion", meaning, counts.reset_index())
    with right:
        tables = ({against: analyses.calibration(*other)} if other else {}) | {run.name: analyses.calibration(*here)}
        meaning = f"{views.CALIBRATION_CAPTION} n = {int(tables[run.name]['n'].sum())} detections of this run."
        shared.chart(views.calibration_figure(tables), "calibration", meaning, tables[run.name])


@shared.guarded("The images behind these errors cannot be shown")
def behind() -> None:
    """The images and slots with errors of one type, and one of the images."""
    found = analyses.errors(*here)
    images, slots = images_behind(found, kind), queries_behind(found, kind)
    if images.empty:
        st.caption("No image has an error of this type.")
        return
    left, middle, right = st.columns([1, 1, 2.4], gap="medium")
    with left:
        event = st.dataframe(images, key=f"images-{kind}", on_select="rerun", selection_mode="single-row", hide_index=True, row_height=28,
                             height=480)  # fmt: skip
        shared.note(f"{len(images)} images with errors of this type, most first. A click on the left of a row shows the image.")
    with middle:
        st.dataframe(slots, key="slots", hide_index=True, row_height=28, height=480)
        shared.note("Query slots whose detections these are, and in how many images; a missed target has none.")
    chosen = event["selection"]["rows"]
    known = images["image_id"].tolist()
    asked = known[chosen[0]] if chosen else shared.choose("image_id", known, known[0])
    st.session_state["image_id"] = asked
    data = reads.dataset(run.info())
    number = next(i for i, record in enumerate(data.records) if record.image_id == asked)
    wrong = rows_behind(found, kind)
    wrong = wrong[wrong["image_id"] == asked]
    with right:
        figure = views.wrong_figure(data.image(number), data.records[number], data.classes, wrong.head(DRAWN), found.classes)
        meaning = f"Image {asked}: n = {len(wrong)} errors of this type at step {step}; at most {DRAWN} are drawn, the best scores first."
        shared.chart(figure, "wrong", meaning, wrong, scrollZoom=True)


types()
classes_and_scores()
behind()
shared.write_address(run=run.name, step=step, baseline=against, error=kind, image_id=st.session_state.get("image_id", ""))

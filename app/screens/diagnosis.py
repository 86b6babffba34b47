"""Shows why distillation did not help or did harm: every known cause that was checked in a run, with its evidence."""

import streamlit as st

from lib import choices, page
from lib.held import RESULTS
from workbench.analysis.of_run import SPLITS, all_evaluations, splits_with_queries
from workbench.views.causes import CAPTION, checks_table, evidence_table, measures_figure, measures_table

WIDTHS = {"cause": st.column_config.TextColumn(width=140), "outcome": st.column_config.TextColumn(width=85),
          "figure": st.column_config.LinkColumn(display_text="open", width=56, help="Opens the page with the figure behind this cause."),
          "what it means": st.column_config.TextColumn(width=610),
          "why not": st.column_config.TextColumn("why it was not judged", width=430)}  # fmt: skip
EVIDENCE = {"evidence": st.column_config.TextColumn(width="large"),
            **{name: st.column_config.NumberColumn(format="%.3g") for name in ("value", "low", "high")}}  # fmt: skip

page.question("Why did distillation not help, or do harm?")
entries = page.usable_runs()
bar = st.columns([3, 1, 3, 3], vertical_alignment="bottom")
entry = choices.select_run(bar[0], entries)
split = choices.select_split(bar[1], list(splits_with_queries(entry.run)) or SPLITS[:1])
baseline = choices.select_baseline(bar[2], entry, entries, "The run that this one is compared with.")
choices.write_address(run=entry.run.name, split=split, baseline=choices.name_of(baseline))


@page.guarded("This run cannot be diagnosed")
def body() -> None:
    """Shows the findings first, then every cause that was checked."""
    found = RESULTS.diagnosis(all_evaluations(entry.run, split), all_evaluations(baseline.run, split) if baseline else None)
    judged = sum(check.outcome != "not judged" for check in found.checks)
    if not found.findings:
        st.success(f"None of the {judged} causes that could be judged applies to this run.", icon=":material/check:")
    for finding in found.findings:
        page.banner("error" if finding.severity == "error" else "warning", finding.cause.capitalize(), finding.statement)
        st.dataframe(evidence_table(finding), hide_index=True, row_height=28, placeholder="–", column_config=EVIDENCE)
        st.text(f"What to do: {finding.advice}")
    st.markdown("**Causes checked**")
    state = {"run": entry.run.name, "split": split, "baseline": choices.name_of(baseline)}
    st.dataframe(checks_table(found, **state), hide_index=True, row_height=28, key="checks", column_config=WIDTHS)
    page.note(
        f"{judged} of {len(found.checks)} causes could be judged from the queries of split {split}. A cause is reported only if the "
        "whole 95 % interval of its evidence lies beyond its threshold. Low and high are the ends of that interval."
    )
    measures = measures_table(found)
    if len(measures):
        st.markdown("**What was measured**")
        judged = measures["cause"].nunique()
        meaning = f"{CAPTION} n = {len(measures)} numbers of {judged} causes, split {split}."
        page.chart(measures_figure(found), "measures", meaning, measures)


body()

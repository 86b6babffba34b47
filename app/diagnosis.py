"""Why did distillation do nothing, or harm? Every cause looked for in a run, with its evidence."""

import analyses
import pandas as pd
import reads
import shared
import streamlit as st

from workbench.analysis.diagnosis.diagnose import MEANINGS
from workbench.views.catalog import baseline_of

OUTCOMES = {"found": "found", "clear": "not there", "not judged": "not judged"}
NOBODY = "no baseline"
WIDTHS = {"cause": st.column_config.TextColumn(width=150), "outcome": st.column_config.TextColumn(width=90),
          "what it means": st.column_config.TextColumn(width="large"),
          "why not": st.column_config.TextColumn("why it was not judged", width="large")}  # fmt: skip
EVIDENCE = {"evidence": st.column_config.TextColumn(width="large"),
            **{name: st.column_config.NumberColumn(format="%.3g") for name in ("value", "low", "high")}}  # fmt: skip

entries = shared.usable_runs()
bar = st.columns([3, 3, 4], vertical_alignment="bottom")
entry = shared.select_run(bar[0], entries)
baseline = baseline_of(entry, list(entries.values()))
others = [NOBODY, *(name for name in entries if name != entry.run.name)]
own = baseline.run.name if baseline else NOBODY
against = shared.select(bar[1], "Baseline", "baseline", others, own, help="The run it is compared with.")
shared.write_address(run=entry.run.name, baseline=against)


@shared.guarded("This run cannot be diagnosed")
def body() -> None:
    """Findings first, then every cause that was looked for."""
    other = entries[against].run if against != NOBODY else None
    key = reads.run_stamp(entry.run) + (reads.run_stamp(other) if other else ())
    found = analyses.diagnosis(str(entry.run.path), str(other.path) if other else None, key)
    judged = sum(check.outcome != "not judged" for check in found.checks)
    if not found.findings:
        st.success(f"None of the {judged} causes that could be judged was found.", icon=":material/check:")
    for finding in found.findings:
        shared.banner("error" if finding.severity == "error" else "warning", finding.cause.capitalize(), finding.statement)
        rows = [{"evidence": e.what, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "of": e.of} for e in finding.evidence]
        st.dataframe(pd.DataFrame(rows), hide_index=True, row_height=28, placeholder="–", column_config=EVIDENCE)
        st.text(f"What to do: {finding.advice}")
    st.markdown("**What was looked for**")
    checks = pd.DataFrame([
        {"cause": c.cause, "outcome": OUTCOMES[c.outcome], "what it means": MEANINGS[c.cause], "why not": c.why} for c in found.checks
    ])  # fmt: skip
    st.dataframe(checks, hide_index=True, row_height=28, key="checks", column_config=WIDTHS)
    shared.note(
        f"{judged} of {len(found.checks)} causes could be judged. A cause is named only when the whole 95 % interval of its evidence lies "
        "beyond its threshold; low and high are the ends of that interval."
    )


body()

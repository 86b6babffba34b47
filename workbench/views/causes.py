"""Turns a diagnosis into tables: the evidence of each finding, and the outcome for every cause."""

import pandas as pd

from workbench.analysis.diagnosis.diagnose import MEANINGS
from workbench.analysis.diagnosis.findings import Diagnosis, Finding

_OUTCOMES = {"found": "found", "clear": "not there", "not judged": "not judged"}


def evidence_table(finding: Finding) -> pd.DataFrame:
    """Returns one row per number behind a finding: ``evidence``, ``value``, ``low``, ``high``, ``n``, ``of``."""
    return pd.DataFrame([
        {"evidence": e.what, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "of": e.of} for e in finding.evidence
    ])  # fmt: skip


def checks_table(diagnosis: Diagnosis) -> pd.DataFrame:
    """Returns one row per cause: ``cause``, ``outcome``, ``what it means``, ``why not`` (why it was not judged)."""
    return pd.DataFrame([
        {"cause": c.cause, "outcome": _OUTCOMES[c.outcome], "what it means": MEANINGS[c.cause], "why not": c.why} for c in diagnosis.checks
    ])  # fmt: skip

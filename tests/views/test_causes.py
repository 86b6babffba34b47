"""A diagnosis as tables."""

from workbench.analysis.diagnosis.findings import Check, Diagnosis, Evidence, Finding
from workbench.views.causes import checks_table, evidence_table


def test_every_cause_and_every_number_behind_a_finding_has_a_row():
    evidence = (Evidence("share of the gradient", 0.2, 7, "steps", 0.1, 0.3), Evidence("AP", 0.5, 9, "images", None, None))
    finding = Finding("weak term", "warning", "It is weak.", evidence, "Raise it.")
    checks = (Check("weak term", "found"), Check("class map", "clear"), Check("resolution", "not judged", "no teacher"))
    table = evidence_table(finding)
    rows = table[["evidence", "value", "n", "of"]].to_numpy().tolist()
    assert rows == [
        ["share of the gradient", 0.2, 7, "steps"],
        ["AP", 0.5, 9, "images"],
    ]
    assert table["low"].isna().tolist() == [False, True]
    shown = checks_table(Diagnosis("run", None, (finding,), checks))
    assert shown["outcome"].tolist() == ["found", "not there", "not judged"]
    assert shown["why not"].tolist() == ["", "", "no teacher"] and all(shown["what it means"])

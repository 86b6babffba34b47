"""Markdown of the summary table."""

import re

from tests.analysis.run_examples import finished_run
from workbench.analysis.report.markdown import markdown, plain_text
from workbench.analysis.report.summary import table
from workbench.store.run import Run


def parsed(text: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines()]
    assert all(len(line) == len(lines[0]) for line in lines) and set(lines[1]) == {"---"}
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_numbers_are_shown_in_percent_with_their_n_and_what_is_not_known_as_a_dash():
    run, _ = finished_run("shown", seed=4)
    frame = table([run], with_teacher=True)
    teacher, student = parsed(markdown(frame))
    assert student["AP"] == "40.0" and student["AP50"] == "60.0" and teacher["AP"] == "60.0"
    assert student["parameters"] == "0.12 M" and student["GFLOPs"] == "0.040" and student["ms/image"] == "5.2"
    assert student["compute"] == "100 s cpu" and teacher["compute"] == "-"
    row = frame.iloc[1]
    assert student["churn between evaluations (n)"] == f"{100 * row['churn']:.1f} ({row['churn_n']})"
    assert student["seed"] == "4" and teacher["seed"] == "-"


def test_columns_that_no_row_fills_are_left_out():
    (row,) = parsed(markdown(table([Run.create("bare", {"seed": 1})])))
    assert row == {"seed": "1"}


def test_names_are_text_and_never_markup():
    run, _ = finished_run("names", arm="<img src=x onerror=alert(1)> | *b*\n# h")
    (row,) = parsed(markdown(table([run])))
    assert row["arm"] == r"\<img src=x onerror=alert\(1\)\> \| \*b\* \# h"
    assert row[r"AP a\|b (n)"] == "50.0 (5)"
    assert plain_text("[a](b) `c` $d$ &lt;") == r"\[a\]\(b\) \`c\` \$d\$ \&lt;"

import pandas as pd
import pytest

from tests.views.ticks import names_at
from workbench.analysis.stability.change_causes import CAUSES
from workbench.views.unsettled import SETTLED, cause_slices_figure, causes_figure, chosen_targets, rules_table, sentence

HOSTILE = "<img src=x onerror=alert(1)>"
STEPS = pd.DataFrame([{"step": step, "cause": cause, "churn": 0.1 * number, "low": 0.0, "high": 0.5, "changes": number, "n": 10,
                       "images": 3}
                      for step in (20, 10) for number, cause in enumerate(CAUSES)])  # fmt: skip


def test_bars_of_a_step_add_up_to_its_churn():
    figure = causes_figure(STEPS)
    assert [bar.name for bar in figure.data] == list(CAUSES.values())
    assert figure.layout.barmode == "stack"
    assert sum(bar.y[0] for bar in figure.data) == pytest.approx(60)
    assert names_at(figure.layout.xaxis, figure.data[0].x) == ["10", "20"]
    assert figure.layout.yaxis.range[1] > 60


def test_classes_and_sizes_are_bars_with_names_as_text():
    tables = {"label": STEPS[STEPS["step"] == 10].assign(label=0), "size": STEPS[STEPS["step"] == 10].assign(size="small")}
    figure = cause_slices_figure(tables, [HOSTILE])
    assert names_at(figure.layout.yaxis, figure.data[0].y) == ["&lt;img src=x onerror=alert(1)&gt;", "small"]
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_rules_stand_in_the_order_in_which_they_are_tried():
    table = pd.DataFrame({"cause": list(CAUSES), "targets": [3, 0, 1, 2], "changes": [4, 0, 1, 2], "iou": [0.1, None, 0.7, 0.8],
                          "margin": [0.5, None, 0.25, 0.125]})  # fmt: skip
    shown = rules_table(table)
    assert shown.index.tolist() == list(CAUSES.values())
    assert shown["targets"].tolist() == ["3", "0", "1", "2"] and shown["IoU"].tolist() == ["0.10", "–", "0.70", "0.80"]


def test_targets_are_chosen_by_class_size_and_cause():
    targets = pd.DataFrame(
        {"image_id": [1, 1, 2, 2], "target": [0, 1, 0, 1], "label": [0, 1, 0, 1], "size": ["small", "small", "large", "large"]}
    )
    frame = targets[["image_id", "target"]].assign(step=10)
    unsettled = pd.DataFrame({"image_id": [1, 2], "target": [0, 0], "cause": ["competing", "uncovered"]})

    def chosen(label: int | None, size: str, cause: str) -> list[tuple[int, int]]:
        rows = chosen_targets(frame, unsettled, targets, label, size, cause)
        return list(rows[["image_id", "target"]].itertuples(index=False, name=None))

    assert chosen(None, "", "") == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert chosen(0, "", "") == [(1, 0), (2, 0)] and chosen(None, "small", "") == [(1, 0), (1, 1)]
    assert chosen(None, "", "uncovered") == [(2, 0)] and chosen(None, "", SETTLED) == [(1, 1), (2, 1)]
    assert chosen(1, "large", "competing") == []


def test_a_target_is_told_in_words():
    row = ({"changes": 3, "n": 5, "uncovered": 2, "swapped": 0, "undecided": 1, "competing": 0, "iou": 0.123, "margin": 0.5,
                     "class_flips": 1, "swaps": 0, "neighbour_iou": 0.25})  # fmt: skip
    assert sentence(row).startswith("Changed 3 of 5 times (nobody really covers it: 2, class undecided: 1). ")

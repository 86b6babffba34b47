from pathlib import Path

import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES, PIXELS, record
from tests.views.ticks import names_at
from workbench.store.run import Run
from workbench.views.catalog import Entry
from workbench.views.stability import (
    CHANGED,
    FIRST,
    KEPT,
    agreement_figure,
    arm_figure,
    arm_points,
    found_figure,
    held,
    holder_table,
    holders_figure,
    matrix_figure,
    seed_pairs,
    stable_share,
    target_rows_of,
)


def matched(triples, source=-1) -> pd.DataFrame:
    frame = pd.DataFrame(triples, columns=["step", "image_id", "match", "query"])
    return frame.assign(source=source, score=0.5, match_iou=0.25, label=0, cx=0.5, cy=0.5, w=0.2, h=0.2, layer=1)


# target 0 of image 7 changes twice, target 1 never; target 0 of image 8 is matched once
ROWS = matched([(10, 7, 0, 3), (20, 7, 0, 5), (30, 7, 0, 3), (10, 7, 1, 4), (30, 7, 1, 4), (20, 8, 0, 9)])


def test_a_cell_says_whether_the_query_is_the_one_of_the_evaluation_before():
    frame = held(ROWS)
    assert frame[["image_id", "target", "step", "state"]].to_numpy().tolist() == [
        [7, 0, 10, FIRST], [7, 0, 20, CHANGED], [7, 0, 30, CHANGED], [7, 1, 10, FIRST], [7, 1, 30, KEPT], [8, 0, 20, FIRST],
    ]  # fmt: skip
    assert frame.drop_duplicates(["image_id", "target"])["changes"].tolist() == [2, 0, 0]
    assert stable_share(frame) == (1, 2)


def test_queries_selected_per_image_are_recognised_by_their_cell():
    rows = matched([(10, 7, 0, 3), (20, 7, 0, 5)]).assign(source=[40, 40])
    frame = held(rows)
    assert frame["state"].tolist() == [FIRST, KEPT]
    assert frame["held_by"].tolist() == [40, 40]


def test_targets_that_change_most_come_first_and_pages_do_not_overlap():
    frame = held(ROWS)
    pages = [target_rows_of(frame, first, 1) for first in range(3)]
    assert [(page["image_id"].iloc[0], page["target"].iloc[0]) for page in pages] == [(7, 0), (7, 1), (8, 0)]
    assert target_rows_of(frame, 3, 1).empty


def test_the_matrix_has_a_cell_for_every_target_and_evaluation_and_a_mark_for_every_match():
    rows = target_rows_of(held(ROWS), 0, 10)
    figure = matrix_figure(rows, [10, 20, 30])
    assert np.shape(figure.data[0].z) == (3, 3)
    assert np.array(figure.data[0].z).tolist() == [[FIRST, CHANGED, CHANGED], [FIRST, 3, KEPT], [3, FIRST, 3]]
    marks = figure.data[1]
    assert list(marks.text) == ["3", "5", "3", "4", "4", "9"]
    assert marks.customdata[1].tolist() == [7, 0, 20]
    assert matrix_figure(rows.head(0), [10]).data


def test_a_band_reaches_over_the_seeds_of_an_arm_and_over_nothing_else():
    runs = [("a", "distilled", 0), ("b", "distilled", 1), ("c", "<b>x</b>", 0)]
    entries = [Entry(Run(Path(name)), "shapes", arm, seed, "equal steps") for name, arm, seed in runs]
    points = pd.DataFrame([
        {"run": name, "step": 10, "ap": 0.1 * (i + 1), "churn": 0.2 * (i + 1), "found_by_churn": 0.3, "instability": 1.0 * (i + 1), "n": 5}
        for i, (name, _, _) in enumerate(runs)
    ])  # fmt: skip
    arms = arm_points(points, entries).set_index("arm")
    mine = arms.loc["shapes · distilled · equal steps"]
    assert mine[["seeds", "ap", "ap_low", "ap_high"]].tolist() == [2, 0.15000000000000002, 0.1, 0.2]
    assert arms.loc["shapes · <b>x</b> · equal steps", "churn_low"] == arms.loc["shapes · <b>x</b> · equal steps", "churn_high"]
    figure = arm_figure(arms.reset_index())
    assert [trace.name for trace in figure.data if trace.showlegend] == ["shapes · distilled · equal steps",
                                                                        "shapes · &lt;b&gt;x&lt;/b&gt; · equal steps"]  # fmt: skip
    assert list(figure.data[0].y) == [10, 20]


def test_each_query_that_held_a_target_is_drawn_once_with_its_steps():
    rows = ROWS[(ROWS["image_id"] == 7) & (ROWS["match"] == 0)]
    figure = holders_figure(PIXELS, record(), CLASSES, 0, rows)
    assert [trace.name for trace in figure.data if trace.name] == ["query 3: step 10, 30", "query 5: step 20", "target"]
    table = holder_table(rows.assign(label=1), CLASSES)
    assert table["query"].tolist() == [3, 5, 3]
    assert table["class"].tolist() == [CLASSES[1]] * 3


def test_runs_are_paired_where_only_the_seed_differs():
    kinds = [(arm, seed) for arm in ("distilled", "undistilled") for seed in (0, 1, 2)]
    entries = [Entry(Run(Path(f"{arm}-{seed}")), "r", arm, seed, "equal steps") for arm, seed in kinds]
    pairs = [(first.run.name, second.run.name) for first, second in seed_pairs(entries)]
    assert pairs[:3] == [("distilled-0", "distilled-1"), ("distilled-0", "distilled-2"), ("distilled-1", "distilled-2")]
    assert len(pairs) == 6
    assert len(seed_pairs(entries, most=2)) == 2
    assert seed_pairs(entries[:1] + entries[3:4]) == []


def test_what_two_seeds_find_is_drawn_with_its_interval_and_counts():
    table = pd.DataFrame({"pair": ["<b>"], "share": [0.5], "low": [0.4], "high": [0.8], "both": [5], "only_first": [2], "only_second": [1],
                          "neither": [2], "n": [10]})  # fmt: skip
    figure = found_figure(table)
    mark = figure.data[0]
    assert names_at(figure.layout.yaxis, mark.y) == ["&lt;b&gt;"]
    assert np.allclose([mark.x[0] - mark.error_x.arrayminus[0], mark.x[0], mark.x[0] + mark.error_x.array[0]], [40, 50, 80])
    assert mark.customdata.tolist() == [[5, 2, 1, 2]]


def test_agreement_is_a_line_a_run_that_has_any():
    points = pd.DataFrame({"run": ["a", "a"], "step": [20, 10], "agreement": [0.75, 0.5], "n": [4, 4]})
    (line,) = agreement_figure(points, ["a", "b"]).data
    assert (list(line.x), list(line.y)) == ([10, 20], [50, 75])

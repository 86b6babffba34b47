import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES, PIXELS, record
from tests.views.ticks import names_at
from workbench.analysis.detection.lost import CELLS, OUTCOMES
from workbench.views.gallery import SIDE, Thumbnail, gallery_figure
from workbench.views.lost import NAMES, cells_figure, difference_figure, nearest_figure, outcomes_figure, shares_figure, slice_names

HOSTILE = "<img src=x onerror=alert(1)>"
CELLS_TABLE = pd.DataFrame({
    "by": "class", "slice": HOSTILE, "cell": list(CELLS), "n": [5, 3, 2, 0], "targets": 10, "images": [4, 2, 1, 0],
    "share": [0.5, 0.3, 0.2, 0.0], "low": [0.4, 0.2, 0.1, 0.0], "high": [0.6, 0.4, 0.3, 0.0],
})  # fmt: skip
SHARES = pd.DataFrame({"by": ["all", "class"], "slice": ["all", HOSTILE], "found": [8, 0], "lost": [3, 0], "share": [0.375, np.nan],
                       "low": [0.1, np.nan], "high": [0.6, np.nan]})  # fmt: skip


def test_every_cell_of_the_table_has_its_number_and_carries_itself():
    figure = cells_figure(CELLS_TABLE, "lost")
    names, numbers, shares, marks = figure.data
    place = {text.removeprefix("<b>").removesuffix("</b>"): x for text, x in zip(names.text, names.x, strict=True)}
    assert place[NAMES["both"]] == place[NAMES["gained"]] == 0  # the student found it: the column at the left
    assert list(numbers.text) == ["5", "3", "2", "0"]
    assert shares.text[1] == "30.0 % [20.0, 40.0]"
    # a click carries the place of the cell, and is as near to its tile as the number
    for x, y, (number,) in zip(marks.x, marks.y, marks.customdata, strict=True):
        assert (round(x), round(y)) == (numbers.x[number], numbers.y[number])
    assert [shape.line.width for shape in figure.layout.shapes] == [1, 4, 1, 1]


def test_slices_have_names_to_choose_by():
    both = pd.concat([CELLS_TABLE.assign(by="all", slice="all"), CELLS_TABLE])
    assert slice_names(both) == {"all targets": ("all", "all"), f"class: {HOSTILE}": ("class", HOSTILE)}


def test_shares_and_outcomes_are_drawn_with_their_intervals_and_names_as_text():
    figure = shares_figure({HOSTILE: SHARES})
    drawn = figure.data[0]
    assert names_at(figure.layout.yaxis, drawn.y) == ["all targets", "class: &lt;img src=x onerror=alert(1)&gt;"]
    assert drawn.x[0] == 37.5 and np.isnan(drawn.x[1])
    assert (drawn.x[0] + drawn.error_x.array[0], drawn.x[0] - drawn.error_x.arrayminus[0]) == (60, 10)
    table = pd.DataFrame({"outcome": OUTCOMES, "n": range(5), "share": 0.2, "low": 0.1, "high": 0.3, "images": 1})
    bars = outcomes_figure({HOSTILE: table})
    assert names_at(bars.layout.xaxis, bars.data[0].x) == ["found", "low score", "other class", "badly placed", "nothing near"]
    for one in (figure, bars):
        assert "<img" not in one.to_json().replace("\\u003c", "<")


def test_a_difference_between_students_has_the_colour_of_its_verdict():
    table = SHARES.assign(difference=[-0.1, 0.0], low=[-0.2, -0.1], high=[-0.05, 0.1], verdict=["better", "not distinguishable"],
                          sentence=HOSTILE, both_lost=1, only_baseline=2, only_other=0)  # fmt: skip
    figure = difference_figure(table)
    drawn = {trace.name: list(trace.x) for trace in figure.data if len(trace.x)}
    assert drawn == {"better": [-10], "not distinguishable": [0]}
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_the_nearest_boxes_are_drawn_with_class_and_score():
    targets = pd.DataFrame({"target": [0]})
    box = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0, "target": 0, "category_id": 7}
    near = pd.DataFrame([{**box, "model": "teacher", "score": 0.9}, {**box, "model": "student", "score": 0.1}])
    figure = nearest_figure(PIXELS, record(), CLASSES, targets, near, {7: "<b>"})
    texts = [text for trace in figure.data if trace.mode == "text" for text in trace.text]
    assert "\u00a0&lt;b&gt; 0.90\u00a0" in texts and "\u00a0&lt;b&gt; 0.10\u00a0" in texts


def test_a_gallery_has_a_mark_in_the_middle_of_every_thumbnail_and_a_frame_around_the_chosen_one():
    wide = np.zeros((30, 60, 3), np.uint8)
    thumbnails = [Thumbnail(wide, 10 + n, f"{HOSTILE} {n}", {"target": np.array([[5, 5, 20, 20.0]])}) for n in range(3)]
    figure = gallery_figure(thumbnails, 2, chosen=12)
    marks, titles = figure.data
    assert [list(own) for own in marks.customdata] == [[10], [11], [12]]
    assert marks.x[0] == marks.x[2] == SIDE / 2 and marks.y[0] == marks.y[1] == SIDE / 4
    (frame,) = figure.layout.shapes
    assert (frame.x0, frame.x1 - frame.x0, frame.y1 - frame.y0) == (0, SIDE, SIDE / 2) and frame.y0 < marks.y[2] < frame.y1
    assert "<img" not in "".join(titles.text)
    assert figure.layout.yaxis.range[0] == figure.layout.height  # one pixel of the sheet is one of the page

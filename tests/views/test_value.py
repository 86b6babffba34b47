import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES
from tests.views.ticks import names_at
from workbench.views.style import COLOURS
from workbench.views.value import MOST_CLASSES, correlation_figure, inside, looks_figure, serves_figure, slots_figure


def test_slots_stand_by_value_with_their_intervals_and_the_chosen_one_in_another_colour():
    slots = pd.DataFrame({"query": [4, 7, 9], "ap_drop": [0.01, 0.03, np.nan], "low": [0.0, 0.02, np.nan], "high": [0.02, 0.05, np.nan],
                          "n": [5, 6, 7]})  # fmt: skip
    bar, ends = slots_figure(slots, "ap_drop", 4).data
    assert np.allclose(bar.y, [3, 1])
    assert bar.customdata[:, 0].tolist() == [7, 4]
    assert list(bar.marker.color) == [COLOURS[0], COLOURS[1]]
    assert np.allclose(np.array(ends.x, float).reshape(2, 3)[:, :2], [[0, 0], [1, 1]])
    assert np.allclose(np.array(ends.y, float).reshape(2, 3)[:, :2], [[2, 5], [0, 2]])


def test_a_cell_of_the_map_is_drawn_where_it_is_in_the_image():
    counts = np.zeros((4, 4), int)
    counts[0, 3] = 5
    heat = looks_figure(counts).data[0]
    assert (heat.x0 + 3 * heat.dx, heat.y0) == (0.875, 0.125)
    assert looks_figure(counts).layout.yaxis.range == (1, 0)


def test_of_many_classes_the_most_frequent_are_drawn():
    counts = np.array([3, 9, 1, 8] + [2] * MOST_CLASSES)
    table = pd.DataFrame({"label": range(len(counts)), "share": counts / counts.sum(), "low": 0.0, "high": 1.0, "n": counts})
    figure = serves_figure({"label": table, "size": table.head(1).assign(size="small")[["size", "share", "low", "high", "n"]]}, ())
    bar, size = figure.data
    assert bar.customdata.tolist() == [9, 8, 3] + [2] * (MOST_CLASSES - 3)
    assert names_at(figure.layout.yaxis, bar.y)[:3] == list(bar.hovertext)[:3] == ["label 1", "label 3", "label 0"]
    assert names_at(figure.layout.yaxis, size.y) == ["small"]


def test_classes_and_sizes_are_shares_of_the_targets():
    table = pd.DataFrame({"label": [1], "share": [0.5], "low": [0.25], "high": [1.0], "n": [2]})
    figure = serves_figure({"label": table}, CLASSES)
    bar = figure.data[0]
    assert names_at(figure.layout.yaxis, bar.y) == ["&lt;img src=x onerror=alert(1)&gt;"]
    assert (bar.x[0], bar.x[0] + bar.error_x.array[0], bar.x[0] - bar.error_x.arrayminus[0]) == (50, 100, 25)
    assert figure.layout.xaxis.range[0] == 0 and figure.layout.xaxis.range[1] > 100


def test_a_box_chooses_the_targets_in_it_greatest_gain_first():
    points = pd.DataFrame({"quality": [0.1, 0.5, 0.6], "gain": [0.9, -0.2, 0.3], "image_id": 1, "target": [0, 1, 2]})
    assert inside(points, "quality", [0.4, 0.7, -1, 1])["target"].tolist() == [2, 1]
    assert inside(points, "quality", None)["target"].tolist() == [0, 2, 1]


def test_both_correlations_are_drawn_with_their_intervals():
    table = pd.DataFrame({"property": ["quality"], "correlation": [0.4], "low": [0.3], "high": [0.6], "partial": [-0.1],
                          "partial_low": [-0.2], "partial_high": [0.1], "n": [9]})  # fmt: skip
    plain, partial = correlation_figure(table).data
    assert (plain.x[0], partial.x[0]) == (0.4, -0.1)
    assert np.isclose(partial.x[0] + partial.error_x.array[0], 0.1)
    assert plain.marker.symbol != partial.marker.symbol


def test_a_slot_without_targets_serves_nothing_on_axes_that_have_ends():
    nothing = pd.DataFrame({"label": [], "size": [], "share": [], "low": [], "high": [], "n": []}, dtype=float)
    figure = serves_figure({"label": nothing, "size": nothing}, CLASSES)
    assert [len(bar.x) for bar in figure.data] == [0, 0]
    assert figure.layout.yaxis.range == (0.5, -0.5)
    assert figure.layout.xaxis.range[0] < figure.layout.xaxis.range[1]

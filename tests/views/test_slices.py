import numpy as np
import pandas as pd

from tests.views.ticks import names_at
from workbench.views.slices import kitti_figure, slices_figure

SLICES = pd.DataFrame({
    "by": ["size", "overlap"], "slice": ["small", "apart"], "targets": [3, 4], "images": [2, 2], "ap": [0.5, np.nan],
    "ap_low": [0.4, np.nan], "ap_high": [0.7, np.nan], "recall": [0.2, 0.3], "recall_low": [0.1, 0.2], "recall_high": [0.4, 0.5],
})  # fmt: skip


def test_every_slice_has_ap_and_recall_with_their_intervals_and_n():
    figure = slices_figure({"<b>": SLICES})
    ap, recall = figure.data
    assert ap.name == "&lt;b&gt;"
    assert names_at(figure.layout.yaxis, ap.y) == names_at(figure.layout.yaxis2, recall.y) == ["size small", "overlap apart"]
    assert figure.layout.xaxis.range[1] > 70 and figure.layout.xaxis2.range[1] > 50
    assert np.allclose([ap.x[0], ap.x[0] - ap.error_x.arrayminus[0], ap.x[0] + ap.error_x.array[0]], [50, 40, 70])
    assert np.isnan(ap.x[1])
    assert np.allclose(recall.x, [20, 30])
    assert recall.customdata.tolist() == [[3, 2], [4, 2]]


def test_kittis_ap_is_a_bar_a_class_and_difficulty():
    table = pd.DataFrame({"class": ["Car", "Car"], "difficulty": ["easy", "hard"], "ap": [0.9, 0.6], "low": [0.8, 0.5], "high": [1, 0.7],
                          "targets": [5, 9]})  # fmt: skip
    bar = kitti_figure({"run": table}).data[0]
    assert [tuple(names) for names in bar.x] == [("Car", "Car"), ("easy", "hard")]
    assert np.allclose(np.array(bar.y) + bar.error_y.array, [100, 70])
    assert list(bar.customdata) == [5, 9]

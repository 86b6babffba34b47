import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.views.raster import Bounds, bounds_of, coloured, counted, raster_figure

BOUNDS = Bounds(0.0, 4.0, 0.0, 2.0)
points = arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1, 5, width=32))


@given(points, st.integers(0, 1000))
def test_every_point_inside_is_counted_in_its_cell_and_no_other(x: np.ndarray, seed: int):
    y = np.random.default_rng(seed).uniform(-1, 3, len(x))
    expected = np.zeros((2, 4), int)
    for a, b in zip(x, y, strict=True):
        if 0 <= a < 4 and 0 < b <= 2:
            expected[int(2 - b), int(a)] += 1
    assert np.array_equal(counted(x, y, BOUNDS, 4, 2), expected)


def test_all_points_lie_within_the_bounds_of_their_picture():
    x, y = np.array([3.0, 3.0, 3.0]), np.array([-1.0, 5.0, 2.0])
    bounds = bounds_of(x, y)
    assert counted(x, y, bounds, 10, 10).sum() == 3
    assert bounds_of(x[:0], y[:0]).x1 > bounds_of(x[:0], y[:0]).x0


def test_empty_pixels_are_transparent_and_more_points_are_brighter():
    picture = coloured(np.array([[0, 1, 5, 50]])).astype(int)
    assert picture[0, :, 3].tolist() == [0, 255, 255, 255]
    brightness = picture[0, 1:, :3].sum(1)
    assert (np.diff(brightness) > 0).all()
    assert coloured(np.zeros((2, 2), int))[..., 3].max() == 0


def test_a_million_points_are_one_picture_and_few_marks():
    rng = np.random.default_rng(0)
    figure = raster_figure(rng.normal(size=1_000_000), rng.normal(size=1_000_000), "x", "y")
    marks = figure.data[0]
    assert len(marks.x) <= 24 * 16
    assert marks.customdata.sum() == 1_000_000
    assert len(figure.to_json()) < 1_500_000


def test_the_marks_lie_where_the_points_of_their_cell_do():
    x, y = np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])
    marks = raster_figure(x, y, "x", "y").data[-1]
    assert sorted(marks.customdata.tolist()) == [1, 2]
    upper = int(np.argmax(marks.customdata))
    assert abs(marks.x[upper] - 1) < 0.05
    assert abs(marks.y[upper] - 1) < 0.05


def test_few_points_are_drawn_themselves_and_many_as_one_picture():
    x = np.arange(6000.0)
    assert len(raster_figure(x[:10], x[:10], "x", "y").data[0].x) == 10
    many = raster_figure(x, x, "x", "y")
    assert len(many.layout.images) == 1
    assert sum(len(trace.x) for trace in many.data) < 500

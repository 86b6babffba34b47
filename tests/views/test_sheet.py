import numpy as np
import pytest

from tests.views.test_image import CLASSES, PIXELS, STUDENT, record
from workbench.views.sheet import answer, sheet_figure


def test_an_answer_is_drawn_beside_the_target_and_a_missing_one_is_not():
    figure = sheet_figure([answer(PIXELS, record(), CLASSES, 0, "<b>", {"student": STUDENT.head(1), "teacher": STUDENT.head(0)})])
    texts = [text for trace in figure.data for text in trace.text or ()]
    assert texts == ["\u00a0cat\u00a0", "\u00a00 · 0.90\u00a0", "&lt;b&gt;"]


def test_images_stand_side_by_side_and_boxes_lie_in_their_own_image():
    rows, columns = PIXELS.shape[:2]
    one = answer(PIXELS, record(), CLASSES, 0, "", {})
    figure = sheet_figure([one, one])
    first, second = figure.layout.images
    assert second.x > first.x + first.sizex
    assert first.sizex == pytest.approx(columns / rows)
    outline = next(trace for trace in figure.data if trace.name == "target")
    x1, y1, x2, y2 = record().boxes[0] / rows
    x, y = np.array(outline.x, float).reshape(2, 6), np.array(outline.y, float).reshape(2, 6)
    assert np.allclose(x[0, :5], [x1, x2, x2, x1, x1])
    assert np.allclose(x[1, :5] - x[0, :5], second.x - first.x)
    assert np.allclose(y[:, :5], [y1, y1, y2, y2, y1])

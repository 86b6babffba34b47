import base64
import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.views.ticks import names_at
from workbench.boxes import cxcywh_to_xyxy, iou_and_giou
from workbench.datasets.base import Record
from workbench.overlap import centred_iou
from workbench.views.image import cost_figure, image_figure, mate_table, target_table

CLASSES = ("cat", "<img src=x onerror=alert(1)>")
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)


def record(boxes=((10.0, 5.0, 30.0, 25.0), (50.0, 10.0, 70.0, 30.0)), labels=(0, 1)) -> Record:
    n = len(boxes)
    return Record(7, "a.png", 80, 40, np.array(boxes).reshape(-1, 4), np.array(labels, int), np.zeros(n, bool), np.zeros(n, bool),
                  np.arange(n), np.ones(n))  # fmt: skip


def rows(model: str, boxes, scores, labels, match, mate=None) -> pd.DataFrame:
    n = len(scores)
    frame = pd.DataFrame(np.array(boxes, float).reshape(n, 4), columns=["cx", "cy", "w", "h"])
    mates = [np.nan] * n if mate is None else mate
    return frame.assign(model=model, layer=1, query=range(n), score=scores, label=labels, match=match, match_iou=0.5, quality=0.25,
                        mate=mates, mate_layer=2, mate_cost_class=0.5, mate_cost_bbox=0.125, mate_cost_giou=-0.75)  # fmt: skip


STUDENT = rows("student", [[0.25, 0.375, 0.25, 0.5], [0.75, 0.5, 0.25, 0.5], [0.5, 0.5, 0.1, 0.1]], [0.9, 0.5, 0.1], [0, 1, 0],
               [0, 1, -1], [2, 0, 1])  # fmt: skip
TEACHER = rows("teacher", [[0.75, 0.5, 0.25, 0.5], [0.1, 0.1, 0.1, 0.1], [0.25, 0.4, 0.25, 0.5]], [0.8, 0.05, 0.95], [1, 0, 0], [1, -1, 0])


def trace(figure, name):
    return next(t for t in figure.data if t.name == name)


def test_the_pixels_travel_inside_the_figure_unchanged():
    source = image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.3).layout.images[0].source
    assert source.startswith("data:image/png;base64,")
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    assert np.array_equal(decoded, PIXELS)


def test_boxes_are_drawn_in_pixels_of_the_image_and_only_at_or_above_the_threshold():
    figure = image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.5)
    student = np.array([trace(figure, "student").x, trace(figure, "student").y], float).T.reshape(2, 6, 2)
    assert student[0, 0].tolist() == [10, 5]  # first corner of (0.25, 0.375, 0.25, 0.5) in 80 x 40 pixels
    assert student[0, 2].tolist() == [30, 25]
    assert student[1, 0].tolist() == [50, 10]
    assert np.isnan(student[:, 5]).all()
    assert len(trace(image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.0), "student").x) == 18


def test_lines_join_the_centres_of_mates_of_which_both_are_shown():
    figure = image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.3)
    ends = np.array([trace(figure, "pairs").x, trace(figure, "pairs").y], float).T.reshape(-1, 3, 2)[:, :2]
    assert ends.tolist() == [[[20, 15], [20, 16]], [[60, 20], [60, 20]]]


def test_the_mask_covers_the_whole_image_whatever_its_cells():
    mask = np.arange(8.0).reshape(2, 4)
    heat = trace(image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.3, mask, 0.4), "mask")
    assert (heat.x0 - heat.dx / 2, heat.x0 + 3.5 * heat.dx) == (0, 80)
    assert (heat.y0 - heat.dy / 2, heat.y0 + 1.5 * heat.dy) == (0, 40)
    assert heat.opacity == 0.4
    assert np.array_equal(heat.z, mask)


def test_every_kind_of_mark_has_one_entry_in_the_legend():
    figure = image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.3, np.ones((2, 2)))
    assert [t.name for t in figure.data if t.showlegend is not False] == ["mask", "targets", "teacher", "student", "pairs"]


def test_class_names_never_reach_plotly_as_markup():
    figure = image_figure(PIXELS, record(), CLASSES, STUDENT, TEACHER, 0.0)
    texts = [text for t in figure.data if t.text is not None for text in t.text]
    assert any("&lt;img src=x" in text for text in texts)
    assert not any("<img" in text for text in texts)


def test_an_image_without_targets_queries_or_teacher_is_drawn():
    figure = image_figure(PIXELS, record((), ()), CLASSES, STUDENT[:0], TEACHER[:0], 0.3)
    assert figure.layout.images
    assert [len(t.x) for t in figure.data if t.showlegend is not False] == [1, 1, 1, 1]  # plotly keeps no empty trace in the legend
    assert len(mate_table(STUDENT, TEACHER[:0], CLASSES, 0.3)) == 0
    assert len(target_table(record((), ()), CLASSES, STUDENT[:0], TEACHER[:0])) == 0


def test_the_table_of_mates_holds_pairs_of_which_one_reaches_the_threshold_best_student_first():
    table = mate_table(STUDENT, TEACHER, CLASSES, 0.3)
    assert table["student_query"].tolist() == [0, 1]
    assert table["teacher_query"].tolist() == [2, 0]
    assert table["student_class"].tolist() == list(CLASSES)
    assert table["student_score"].tolist() == [0.9, 0.5]
    assert table["cost"].tolist() == [0.5 + 5 * 0.125 - 2 * 0.75] * 2
    assert table["iou"].tolist() == pytest.approx([19 / 21, 1.0])  # boxes of 20 x 20 pixels, one pixel apart
    assert len(mate_table(STUDENT, TEACHER, CLASSES, 0.0)) == 3


def test_iou_is_that_of_the_training_code():
    a, b = torch.rand(2, 200, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.1
    expected = iou_and_giou(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))[0]
    assert centred_iou(a.numpy(), b.numpy()) == pytest.approx(expected.numpy(), abs=1e-6)
    assert centred_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [0.0]


def test_the_table_of_targets_says_which_query_of_each_model_holds_it():
    table = target_table(record(), CLASSES, STUDENT, TEACHER)
    assert table["student_query"].tolist() == [0, 1]
    assert table["teacher_query"].tolist() == [2, 0]
    assert table["teacher_score"].tolist() == [0.95, 0.8]
    assert table["width"].tolist() == [20, 20]
    missed = target_table(record(), CLASSES, STUDENT[STUDENT["match"] != 1], TEACHER)
    assert missed["student_query"].isna().tolist() == [False, True]


def test_a_crowd_and_an_ignore_region_are_called_so():
    regions = Record(1, "a", 80, 40, np.array([[0.0, 0, 9, 9], [5, 5, 20, 20]]), np.array([0, -1]), np.array([True, False]),
                     np.array([False, True]), np.arange(2), np.ones(2))  # fmt: skip
    assert target_table(regions, CLASSES, STUDENT[:0], TEACHER[:0])["class"].tolist() == ["crowd", "ignore region"]


def test_the_parts_of_a_pairs_cost_are_weighted_and_add_up_to_it():
    mates = mate_table(STUDENT, TEACHER, CLASSES, 0.3)
    figure = cost_figure(mates)
    *parts, total = figure.data
    assert [part.name for part in parts] == ["class", "5 L1", "2 GIoU"]
    assert np.allclose(sum(np.array(part.y) for part in parts), total.y)
    assert list(total.y) == mates["cost"].tolist()
    assert names_at(figure.layout.xaxis, total.x) == list(total.hovertext) == ["0 – 2", "1 – 0"]
    low, high = figure.layout.yaxis.range
    assert low < sum(np.minimum(part.y, 0) for part in parts).min() and sum(np.maximum(part.y, 0) for part in parts).max() < high
    assert cost_figure(mates.head(0)).layout.xaxis.range == (-0.5, 0.5)

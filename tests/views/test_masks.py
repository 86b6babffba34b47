import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES, PIXELS, TEACHER, record
from workbench.views.masks import difference, masks_figure, normalised, ranked_queries


def test_a_mask_is_divided_by_its_largest_cell_and_an_empty_one_stays_empty():
    assert normalised(np.array([[1.0, 4.0]])).tolist() == [[0.25, 1.0]]
    assert normalised(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_the_difference_is_student_minus_teacher_on_the_finer_grid():
    teacher, student = np.array([[2.0, 4.0]]), np.array([[1.0, 1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert difference(teacher, student).tolist() == [[0.5, 0.5, -1.0, -0.5], [-0.5, -0.5, -1.0, -1.0]]


def test_every_mask_covers_its_own_copy_of_the_image():
    masks = {"teacher": np.ones((2, 4)), "student": np.ones((4, 8)), "difference": np.zeros((4, 8))}
    figure = masks_figure(PIXELS, record(), masks, 0.5, TEACHER.head(1))
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    assert [(heat.x0 - heat.dx / 2, heat.x0 + heat.dx * (np.shape(heat.z)[1] - 0.5)) for heat in heats] == [(0, 80)] * 3
    assert [(heat.zmin, heat.zmax) for heat in heats] == [(0, 1), (0, 1), (-1, 1)]
    assert len(figure.layout.images) == 3
    assert sum(trace.name == "query" for trace in figure.data) == 6  # halo and line in each panel
    assert not any(trace.name == "query" for trace in masks_figure(PIXELS, record(), masks, 0.5).data)


def test_queries_are_ranked_by_quality_then_score():
    rows = pd.DataFrame({"query": [0, 1, 2], "quality": [0.0, 0.5, 0.0], "score": [0.1, 0.2, 0.9], "label": [0, 1, 9]})
    ranked = ranked_queries(rows, CLASSES)
    assert ranked["query"].tolist() == [1, 2, 0]
    assert ranked["place"].tolist() == [1, 2, 3]
    assert ranked["class"].tolist() == [CLASSES[1], "label 9", CLASSES[0]]

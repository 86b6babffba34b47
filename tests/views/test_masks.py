from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd

from tests.views.test_image import CLASSES, PIXELS, TEACHER, record
from workbench.analysis.rows_of_run import taught_layers
from workbench.methods.context import divide_layers
from workbench.store.run import Run
from workbench.views.masks import (
    cells_table,
    difference,
    drawn_query,
    masks_figure,
    normalised,
    paired_masks,
    query_names,
    ranked_queries,
)

TEACHERS = {(0, 0): np.ones((4, 8)), (1, 0): np.arange(32.0).reshape(4, 8), (0, 1): np.ones((2, 4)), (1, 1): np.eye(2, 4)}
STUDENTS = {(0, 0): np.eye(2, 4), (0, 1): np.full((4, 8), 2.0)}  # its levels are in the other order


def test_a_mask_is_divided_by_its_largest_cell_and_an_empty_one_stays_empty():
    assert normalised(np.array([[1.0, 4.0]])).tolist() == [[0.25, 1.0]]
    assert normalised(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_the_difference_is_student_minus_teacher_on_the_finer_grid():
    teacher, student = np.array([[2.0, 4.0]]), np.array([[1.0, 1.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert difference(teacher, student).tolist() == [[0.5, 0.5, -1.0, -0.5], [-0.5, -0.5, -1.0, -1.0]]


def test_a_level_of_the_teacher_is_compared_with_the_students_of_nearest_size_and_an_untaught_layer_with_none():
    first, second = paired_masks(TEACHERS, STUDENTS, {0: 0})
    assert (first.teacher, first.student, second.teacher, second.student) == (0, 0, 1, None)
    assert first.masks[0, "student"] is STUDENTS[0, 1] and first.masks[1, "student"] is STUDENTS[0, 0]
    assert not first.masks[0, "difference"].any()
    assert first.masks[1, "difference"].tolist() == (np.eye(2, 4) - 1).tolist()
    assert set(second.masks) == {(0, "teacher"), (1, "teacher")}
    assert [layer.student for layer in paired_masks(TEACHERS, {}, {0: 0, 1: 0})] == [None, None]


def test_layers_go_across_and_teacher_student_and_difference_go_down_for_every_level():
    layers = paired_masks(TEACHERS, {**STUDENTS, **{(1, level): mask for (_, level), mask in STUDENTS.items()}}, {0: 0, 1: 1})
    figure = masks_figure(PIXELS, record(), layers, 0.5, queries={1: TEACHER.head(1)})
    heats = [trace for trace in figure.data if trace.type == "heatmap"]
    said = [heat.hovertemplate.split(":")[0] for heat in heats]
    kinds = ("teacher", "student", "difference")
    assert said == [f"{kind}, layer {layer}, level {level}" for level in (0, 1) for kind in kinds for layer in (0, 1)]
    assert [(heat.x0 - heat.dx / 2, heat.x0 + heat.dx * (np.shape(heat.z)[1] - 0.5)) for heat in heats] == [(0, 80)] * 12
    assert {heat.opacity for heat in heats} == {0.5}
    assert [heat.coloraxis for heat in heats] == [
        f"coloraxis{2 * (kind == 'difference') or ''}" for _ in "01" for kind in kinds for _ in "01"
    ]
    assert len(figure.layout.images) == 12
    # a query of layer 1 stands over the teacher's masks and the difference of its column: halo and line, on two levels
    assert sum(trace.name == "query" for trace in figure.data) == 2 * 2 * 2
    assert all(axis.range is not None for axis in (*figure.select_xaxes(), *figure.select_yaxes()))
    one = masks_figure(PIXELS, record(), layers, 0.5, levels=[1])
    assert sum(trace.type == "heatmap" for trace in one.data) == 6
    assert not any(trace.name == "query" for trace in one.data)


def test_without_masks_of_a_student_the_figure_has_one_row_a_level_and_one_colour_bar():
    figure = masks_figure(PIXELS, record(), paired_masks(TEACHERS, {}, {}), 0.7)
    assert sum(trace.type == "heatmap" for trace in figure.data) == 4
    assert figure.layout.coloraxis.colorbar.title.text == "mask" and "coloraxis2" not in figure.layout.to_plotly_json()


def test_the_numbers_behind_the_masks_are_their_cells():
    table = cells_table(paired_masks(TEACHERS, STUDENTS, {0: 0}))
    cell = table.query("teacher_layer == 1 and level == 0 and kind == 'teacher' and row == 2 and column == 3")["value"]
    assert cell.tolist() == [19.0]
    assert len(table) == 2 * (32 + 8) + 2 * (32 + 8)


def test_queries_are_ranked_by_quality_then_score_and_named_by_rank_or_by_number():
    rows = pd.DataFrame({"query": [0, 1, 2], "quality": [0.0, 0.5, 0.0], "score": [0.1, 0.2, 0.9], "label": [0, 1, 9]})
    ranked = ranked_queries(rows, CLASSES)
    assert ranked["query"].tolist() == [1, 2, 0]
    assert ranked["place"].tolist() == [1, 2, 3]
    assert ranked["class"].tolist() == [CLASSES[1], "label 9", CLASSES[0]]
    assert query_names(ranked, "rank")[1] == f"rank 1 (query 1): {CLASSES[1]}, score 0.20, quality 0.50"
    assert query_names(ranked, "query")[2] == "query 2 (rank 2): label 9, score 0.90, quality 0.00"
    assert list(query_names(ranked, "query")) == [0, 1, 2]
    other = ranked_queries(rows.assign(quality=[0.9, 0.1, 0.2]), CLASSES)
    by_rank, by_number = (drawn_query({0: ranked, 1: other}, by, 1) for by in ("rank", "query"))
    assert [by_rank[layer]["query"].item() for layer in (0, 1)] == [1, 0]
    assert [by_number[layer]["query"].item() for layer in (0, 1)] == [1, 1]
    assert drawn_query({0: ranked}, "query", 7) == {}


def run_of(layer_map: list[list[int]] | None) -> Run:
    return cast(Run, SimpleNamespace(info=lambda: {"recipe": {"layer_map": layer_map}}))


def test_every_teacher_layer_belongs_to_the_student_layer_that_learns_from_it():
    for student, teacher in ((2, 4), (2, 5), (3, 3), (1, 6)):
        groups = divide_layers(student, teacher)
        rows = pd.DataFrame({"layer": range(student), "mate_layer": [group[-1] for group in groups]})
        assert taught_layers(run_of(None), rows) == {own: layer for layer, group in enumerate(groups) for own in group}
    rows = pd.DataFrame({"layer": [0, 1], "mate_layer": [0, 3]})
    declared: Any = [[0], [3]]
    assert taught_layers(run_of(declared), rows) == {0: 0, 3: 1}
    more = pd.DataFrame({"layer": range(4), "mate_layer": [group[-1] for group in divide_layers(4, 2)]})
    assert taught_layers(run_of(None), more) == {0: 1, 1: 3}
    assert taught_layers(run_of(None), pd.DataFrame({"layer": [0], "mate_layer": [None]})) == {}

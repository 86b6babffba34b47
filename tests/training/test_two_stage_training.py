"""A two-stage detector is trained, resumed, recorded, and learns from and teaches detectors of other kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.detectors.two_stage_examples import CLASSES, SIZE, run, shared
from tests.examples import SPEC, small_detector
from tests.families import tiny, tiny_config
from tests.flows import TINY, Silent
from workbench.datasets.batches import evaluation_batches
from workbench.detectors.output import two_stage_output
from workbench.detectors.registry import load_detector
from workbench.recipe.loading import parse_recipe
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build
from workbench.store.queries import TEACHER_STEP, read_facts, read_queries
from workbench.store.run import Run, read_lines
from workbench.training.candidates import BEST
from workbench.training.loop import Trainer
from workbench.training.sanity import _in_order, _read_as_corners

DATA = {**TINY["data"], "options": {**TINY["data"]["options"], "classes": list(SPEC.classes)}}
TRAIN = {**TINY["train"], "steps": 4, "evaluate_every": 4}


def recipe_of(family: str, methods: list[dict[str, Any]] | None = None, teacher: Path | None = None) -> Recipe:
    values = {**TINY, "data": DATA, "train": TRAIN, "student": tiny_config(family)}
    taught = {"teacher": {"checkpoint": str(teacher)}, "methods": methods} if teacher is not None else {}
    return parse_recipe({**values, **taught}, "a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Run:
    setup = build(recipe_of("faster_rcnn"), None)
    before = {name: value.clone() for name, value in setup.student.named_parameters()}
    own = Run.create("trained", {}, folder)
    Trainer(own, setup, Silent(), "cpu").train()
    assert [name for name, value in setup.student.named_parameters() if torch.equal(value, before[name])] == []
    return own


def test_the_four_losses_of_every_step_are_logged(trained: Run):
    lines = read_lines(trained.metrics_path)
    names = {f"detection/{name}" for name in ("class", "bbox", "objectness", "rpn_bbox")}
    assert len(lines) == 4 and all(names <= set(line) for line in lines)
    assert all(line["loss"] == pytest.approx(sum(line[name] for name in names), rel=1e-5) for line in lines)


def test_an_interrupted_run_draws_the_samples_of_one_that_was_not(trained: Run, folder: Path):
    again = Run.create("again", {}, folder)
    trainer = Trainer(again, build(recipe_of("faster_rcnn"), None), Silent(), "cpu")
    one_step = trainer._train_step

    def stopped(batch: Any, step: int, logged: bool) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return one_step(batch, step, logged)

    trainer._train_step = stopped
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    Trainer(again, build(recipe_of("faster_rcnn"), None), Silent(), "cpu").train()
    ours, theirs = (load_detector(one.checkpoint_path(4)).state_dict() for one in (again, trained))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    losses = [[line["loss"] for line in read_lines(one.metrics_path)] for one in (again, trained)]
    assert losses[0] == losses[1]


def test_the_best_proposals_and_the_positives_of_an_image_have_rows(trained: Run):
    setup = build(recipe_of("faster_rcnn"), None)
    detector = load_detector(trained.checkpoint_path(4)).eval()
    batch = next(evaluation_batches(setup.val, setup.evaluation_transform, 8, list(range(8))))
    with torch.no_grad():
        output = two_stage_output(detector(batch.images, batch.padding))
    match = detector.assign(output, batch.targets)[0]
    rows = read_queries(trained, "val", [4])
    assert set(rows["model"]) == {"student"} and set(rows["layer"]) == {0} and (rows["source"] == -1).all() and rows["mate"].isna().all()
    assert output.valid is not None
    for image, image_id in enumerate(batch.image_ids):
        own = rows[rows["image_id"] == image_id]
        assert len(own) == min(BEST, int(output.valid[image].sum()))
        np.testing.assert_array_equal(own["match"], match[image].numpy()[own["query"]])
        np.testing.assert_allclose(own[["cx", "cy", "w", "h"]], output.boxes[0, image].numpy()[own["query"]], atol=1e-5)
    facts = read_facts(trained, "val", 4)
    assert (facts["assignment"], facts["geometric"], facts["rows"]) == ("many", False, "top")


@pytest.mark.parametrize(
    ("teacher", "student"),
    [("faster_rcnn", "fcos"), ("fcos", "faster_rcnn"), ("faster_rcnn", "deformable_detr"), ("deformable_detr", "faster_rcnn")],
)
def test_feature_methods_teach_between_a_two_stage_detector_and_others(tmp_path: Path, teacher: str, student: str):
    (small_detector() if teacher == "deformable_detr" else tiny(teacher)).save(tmp_path)
    methods = [{"method": name, "balance": 0.5} for name in ("pkd", "fgd")]
    setup = build(recipe_of(student, methods, tmp_path), str(tmp_path))
    own = Run.create("taught", {}, tmp_path)
    Trainer(own, setup, Silent(), "cpu").train()
    terms = {"pkd.features", *(f"fgd.{name}" for name in ("foreground", "background", "attention", "relation"))}
    for line in read_lines(own.metrics_path):
        assert {f"raw/{term}" for term in terms} <= set(line) and all(np.isfinite(line[f"weighted/{term}"]) for term in terms)
    assert len(read_queries(own, "val", [TEACHER_STEP])) > 0 and len(read_queries(own, "val", [4])) > 0


def test_a_doubted_teacher_s_boxes_of_every_class_are_read_anew():
    """The check of a teacher tries other readings of its answer; what is detected are the boxes of each class."""
    detector, sizes = shared(), torch.tensor([SIZE])
    output = run(detector, SIZE)
    order = [2, 0, 1]
    plain, permuted = detector.detections(output, sizes)[0], detector.detections(_in_order(output, order), sizes)[0]
    assert len(plain.scores) > 5 and len(set(plain.labels.tolist())) == CLASSES
    assert torch.equal(plain.labels, torch.tensor(order)[permuted.labels]) and torch.equal(plain.boxes, permuted.boxes)
    corners = two_stage_output(_read_as_corners(output))
    assert corners.class_boxes is not None and output.class_boxes is not None
    torch.testing.assert_close(corners.class_boxes[..., :2] * 2, output.class_boxes[..., :2] + output.class_boxes[..., 2:])

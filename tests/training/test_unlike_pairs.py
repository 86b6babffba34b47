"""A student and a teacher of different kinds through the trainer: what is trained, noted, measured and recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples import SPEC
from tests.families import tiny, tiny_config
from tests.flows import TINY, Silent
from workbench.analysis.alignment import linear_cka
from workbench.datasets.batches import evaluation_batches
from workbench.detectors.detector import InputSpec
from workbench.recipe.loading import parse_recipe
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import build
from workbench.store.queries import read_queries
from workbench.training import launch
from workbench.training.alignment import CELLS, FeatureAlignment
from workbench.training.launch import Launch, start

METHODS = [{"method": "fgd", "balance": 0.1}, {"method": "pkd"}, {"method": "clockdistill", "logits": None}]
SHAPES = InputSpec(("circle", "square", "triangle", "cross"), SPEC.mean, SPEC.std)
_MEETS = "a 1x1 convolution; strides 4, 16 of the"
LEVELS = {
    ("deformable_detr", "fcos"): f"head level of stride 8 (student 16 channels to the teacher's 32 by {_MEETS} student alone)",
    ("fcos", "deformable_detr"): f"head level of stride 8 (student 32 channels to the teacher's 16 by {_MEETS} teacher alone)",
    ("adamixer", "fcos"): f"head level of stride 8 (student 16 channels to the teacher's 32 by {_MEETS} student alone)",
    ("faster_rcnn", "fcos"): "neck levels of strides 4, 8, 16 (16 channels on both sides)",
}


def recipe_of(teacher: str, student: str, folder: Path, **changes: Any) -> Recipe:
    folder.mkdir()
    tiny(teacher, 3, SHAPES).save(folder)
    values = {**TINY, "student": tiny_config(student), "teacher": {"checkpoint": str(folder)}, "methods": METHODS}
    return parse_recipe(values | changes, "test")


@pytest.mark.parametrize(("teacher", "student"), LEVELS)
def test_an_unlike_pair_trains_and_says_which_levels_it_compares(
    teacher: str, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "check_teacher", lambda setup: 0.5)
    listener = Silent()
    # the pair without queries is trained as such pairs are published
    optimizer = "sgd" if teacher == "faster_rcnn" else "adamw"
    recipe = recipe_of(teacher, student, tmp_path / "teacher", train=TINY["train"] | {"optimizer": optimizer})
    run = start(recipe, Launch(name="unlike"), listener)
    info = run.info()
    assert info["state"] == "done"
    said = [f"{name} compares {LEVELS[teacher, student]}" for name in ("fgd", "pkd", "clockdistill")]
    assert info["notes"] == said and [message for message in listener.messages if " compares " in message] == said
    terms = {
        f"raw/{name}" for name in ("fgd.background", "fgd.attention", "fgd.relation", "pkd.features", "clockdistill.memory_background")
    }
    assert all(terms <= set(line) and all(np.isfinite(line[term]) for term in terms) for line in run.metrics())
    for line in (info["alignment_start"], run.evaluations()[0]["alignment"]):
        unlike = teacher != "faster_rcnn"
        assert set(line) == {"neck", "backbone"} | ({"head"} if unlike else set())
        assert set(line["head" if unlike else "neck"]) == ({"8"} if unlike else {"4", "8", "16"})
    rows = read_queries(run, "val", [-1, 2])
    assert set(rows["model"]) == {"teacher", "student"}


def test_the_alignment_of_an_unlike_pair_is_that_of_what_both_heads_read(tmp_path: Path):
    recipe = recipe_of("deformable_detr", "fcos", tmp_path / "teacher")
    setup = build(recipe, str(tmp_path / "teacher"))
    assert setup.teacher is not None
    found = FeatureAlignment(setup, setup.val, torch.device("cpu")).measure()["head"]["8"]
    batch = next(iter(evaluation_batches(setup.val, setup.evaluation_transform, 16, list(range(8)))))
    with torch.no_grad():
        own = setup.student.eval()(batch.images, batch.padding).neck[1].features
        other = setup.teacher(batch.images, batch.padding).memory[0].features
    every = int(np.ceil(np.sqrt(own[0, 0].numel() / CELLS)))
    cells = [values[:, :, ::every, ::every].permute(0, 2, 3, 1) for values in (own, other)]
    image = np.repeat(np.arange(8), cells[0][0, ..., 0].numel())
    wanted = linear_cka(cells[0].flatten(0, 2).numpy(), cells[1].flatten(0, 2).numpy(), image)
    assert found["value"] == pytest.approx(wanted.value, rel=1e-5)


def test_what_weighs_a_dense_students_features_by_its_teachers_queries_is_recorded_as_masks(tmp_path: Path):
    method = {"method": "detrdistill", "logits": None, "assignment": None}
    setup = build(recipe_of("deformable_detr", "fcos", tmp_path / "teacher", methods=[method]), str(tmp_path / "teacher"))
    (found,) = setup.methods
    assert found.mask_layers == (1,) and not found.sends_queries and found.state_layers == (1,)
    assert setup.notes == [f"detrdistill compares {LEVELS['deformable_detr', 'fcos']}"]

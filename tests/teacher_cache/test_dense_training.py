"""Training with the cache of a teacher without queries, or for a student without: the live teacher's numbers on the same pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.examples import SMALL, SPEC
from tests.families import tiny, tiny_config
from tests.flows import command, tiny_recipe, write_recipe
from tests.teacher_cache.teachers import built, opened
from tests.teacher_cache.test_training import CHANGES, train
from workbench.errors import IncompatibleError
from workbench.recipe.setup import Setup, build
from workbench.teacher_cache.build import Builder

FCOS = {name: value for name, value in tiny_config("fcos").items() if name != "family"}
STUDENTS: dict[str, dict[str, Any]] = {"fcos": {"family": "fcos", **FCOS}, "deformable_detr": {"family": "deformable_detr", **SMALL}}
PLAIN: dict[str, Any] = {
    "methods": [{"method": "fitnet", "balance": 0.3}], "data": {"transform": {"augment": ["dihedral"]}},
    "cache": {"variants": 2, "precision": "fp32"},
}  # fmt: skip


def detector_folder(parent: Path, family: str) -> Path:
    """A detector with random weights that knows the classes of the shapes."""
    folder = parent / family
    folder.mkdir()
    tiny(family, 2, spec=replace(SPEC, classes=(*SPEC.classes, "cross"))).save(folder)
    return folder


@pytest.fixture
def fcos_folder(tmp_path: Path) -> Path:
    return detector_folder(tmp_path, "fcos")


def pair(teacher: str, student: str) -> Setup:
    changes = {"teacher": {"checkpoint": teacher}, "student": None}
    return build(tiny_recipe(CHANGES, PLAIN, changes, {"student": STUDENTS[student]}), teacher, record_teacher=False)


@pytest.mark.parametrize(("teacher", "student"), [("fcos", "fcos"), ("fcos", "deformable_detr"), ("shapes_teacher", "fcos")])
def test_a_run_from_the_cache_logs_what_a_run_with_the_live_teacher_does(teacher: str, student: str, fcos_folder: Path):
    name = str(fcos_folder) if teacher == "fcos" else teacher
    live, cached = pair(name, student), pair(name, student)
    built(cached)
    wanted, _, asked = train("live", live)
    found, _, asked_cached = train("cached", cached, opened(cached))
    assert (asked, asked_cached) == (4, 0)
    for line, other in zip(found, wanted, strict=True):
        assert {key: pytest.approx(value, rel=1e-4, abs=1e-4) for key, value in other.items()} == line
        assert any(key.startswith("raw/fitnet") for key in line)


def two_stage_pair(folder: Path, logits_of: str, family: str = "faster_rcnn") -> Setup:
    """A two-stage detector that learns from another one's second stage."""
    part = {"logits": {"t3": "softmax_C", "distance": "kl"}, "logits_of": logits_of}
    changes = {"teacher": {"checkpoint": str(folder)}, "student": None}
    methods = [{"method": "detkds", "global_": None, "foreground": None, "balance": 0.3} | part]
    student = {"student": tiny_config(family), "methods": methods}
    return build(tiny_recipe(CHANGES, PLAIN, changes, student), str(folder), record_teacher=False)


@pytest.fixture
def two_stage_folder(tmp_path: Path) -> Path:
    return detector_folder(tmp_path, "faster_rcnn")


@pytest.mark.parametrize("family", ["faster_rcnn", "mask_rcnn"])
def test_the_teachers_proposals_and_what_it_says_of_them_are_cached(family: str, tmp_path: Path):
    folder = detector_folder(tmp_path, family)
    live, cached = (two_stage_pair(folder, "teacher_proposals", family) for _ in range(2))
    built(cached)
    wanted_fields = Builder(cached).contents
    assert wanted_fields.rois and not wanted_fields.dense_logits
    torch.manual_seed(0)  # a student draws the proposals that it learns from
    wanted, _, asked = train("live", live)
    torch.manual_seed(0)
    found, _, asked_cached = train("cached", cached, opened(cached))
    assert (asked, asked_cached) == (4, 0)
    for line, other in zip(found, wanted, strict=True):
        assert {key: pytest.approx(value, rel=1e-4, abs=1e-4) for key, value in other.items()} == line
        assert line["raw/detkds.logits"] > 0


def test_the_students_proposals_cannot_be_asked_of_a_cache(two_stage_folder: Path):
    message = r"asks the teacher about the student's own proposals .*needs the live teacher.* Set 'logits_of: teacher_proposals'"
    with pytest.raises(IncompatibleError, match=message):
        Builder(two_stage_pair(two_stage_folder, "student_proposals"))


def test_the_commands_say_what_a_dense_cache_holds(tmp_path: Path, fcos_folder: Path, runs_folder: Path):
    changes = {"teacher": {"checkpoint": str(fcos_folder)}, "student": None, "data": {"options": {"train": 4}}}
    recipe = str(write_recipe(tmp_path, PLAIN, changes, {"student": STUDENTS["fcos"]}))
    code, out, err = command("cache", "build", recipe)
    assert code == 10 and "neck maps" in err and "--accept" in err
    # 24 x 24, 12 x 12 and 6 x 6 cells of 16 float32 channels and a byte of padding, and two sides
    assert "4 images x 2 variants, 49.1 kB each, including neck maps" in out
    assert (576 + 144 + 36) * (4 * 16 + 1) + 8 == 49148
    code, out, err = command("cache", "build", recipe, "--accept")
    assert code == 0 and "8 outputs computed, 0 reused" in out, err
    code, out, _ = command("cache", "list")
    assert code == 0 and "neck [4, 8, 16]" in out and "logits" not in out
    code, out, err = command("cache", "check", recipe, "--answers", "3")
    assert code == 0 and "every file is intact" in out and "matchings" not in out, err

"""The frozen teacher sees images as it was trained on them; images that a detector cannot take are refused before training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.examples import SPEC, images_of, small_detector
from tests.families import tiny, tiny_config
from tests.flows import TINY
from workbench.datasets.base import Record
from workbench.datasets.transforms import Transform, TransformConfig, fixed_size
from workbench.detectors.detector import InputSpec
from workbench.errors import ConfigError, IncompatibleError
from workbench.recipe.loading import parse_recipe
from workbench.recipe.schema import Recipe
from workbench.recipe.setup import FrozenTeacher, build

FIXED = TransformConfig.model_validate({"resize": {"height": 64, "width": 64}})
OTHER = dataclasses.replace(SPEC, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))


def test_images_normalised_for_the_student_give_the_teachers_answer_on_its_own_normalisation_and_padding_stays_zero():
    detector = small_detector()
    own, padding = images_of((40, 48), (32, 64))
    mean, std = torch.tensor(SPEC.mean)[:, None, None], torch.tensor(SPEC.std)[:, None, None]
    pixels = own * std + mean
    seen = (pixels - torch.tensor(OTHER.mean)[:, None, None]) / torch.tensor(OTHER.std)[:, None, None]
    seen = seen * ~padding[:, None]
    fed: list[torch.Tensor] = []
    detector.register_forward_pre_hook(lambda _, arguments: fed.append(arguments[0]))
    with torch.no_grad():
        wanted = detector(own, padding)
    answer = FrozenTeacher(detector, OTHER)(seen, padding)
    torch.testing.assert_close(answer.logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(answer.boxes, wanted.boxes, atol=1e-5, rtol=0)
    assert (fed[1][padding[:, None].expand_as(own)] == 0).all()
    torch.testing.assert_close(fed[1], own, atol=1e-5, rtol=0)


def test_equal_normalisation_leaves_images_as_they_are():
    detector, (images, padding) = small_detector(), images_of((32, 32))
    fed: list[torch.Tensor] = []
    detector.register_forward_pre_hook(lambda _, arguments: fed.append(arguments[0]))
    FrozenTeacher(detector, SPEC)(images, padding)
    assert fed[0] is images


def test_a_teacher_is_never_trained():
    teacher = FrozenTeacher(small_detector().train(), SPEC)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(*images_of((32, 32))).logits.requires_grad


def sized(tmp_path: Path, sizes: list[tuple[int, int]], family: str, **data: Any) -> Recipe:
    """A recipe on COCO files with images of these (width, height), for a tiny detector of ``family``."""
    (tmp_path / "images").mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    for image in images:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / "images" / image["file_name"])
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0} for i in range(len(sizes))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    values = {
        "name": "sizes", "student": tiny_config(family), "train": {"steps": 1},
        "data": {"path": str(tmp_path), "train": "train", "val": "train", "test": None, **data},
    }  # fmt: skip
    return parse_recipe(values, "test")


@pytest.mark.parametrize("name", ["rt_detr", "rf_detr"])
def test_a_detector_that_needs_one_size_is_refused_before_training_where_batches_would_be_padded(name: str, tmp_path: Path):
    recipe = sized(tmp_path, [(64, 64), (64, 80)], name)
    with pytest.raises(ConfigError, match=rf"student {name} accepts images of one size only.*Set data\.transform\.resize: \{{height: H"):
        build(recipe, None)
    resized = recipe.model_copy(update={"data": recipe.data.model_copy(update={"transform": FIXED})})
    assert build(resized, None).student.family == name


def test_a_teacher_that_needs_one_size_is_refused_too(tmp_path: Path):
    teacher = tiny("rt_detr", spec=dataclasses.replace(SPEC, classes=("thing",)))
    (tmp_path / "teacher").mkdir()
    teacher.save(tmp_path / "teacher")
    (tmp_path / "data").mkdir()
    recipe = sized(tmp_path / "data", [(64, 64), (64, 80)], "deformable_detr")
    with pytest.raises(ConfigError, match="teacher rt_detr accepts images of one size only"):
        build(recipe, str(tmp_path / "teacher"))


def test_sides_that_do_not_fit_the_levels_are_refused_with_the_number_they_must_divide_by(tmp_path: Path):
    recipe = sized(tmp_path, [(60, 64)], "rt_detr")
    with pytest.raises(ConfigError, match="multiples of 8, but those of 'train' become 60x64"):
        build(recipe, None)


def test_a_detector_that_reads_the_padding_takes_any_sizes(tmp_path: Path):
    assert build(sized(tmp_path, [(64, 64), (60, 83)], "deformable_detr"), None).student.reads_padding


@pytest.mark.parametrize(("config", "sizes", "training", "wanted"), [
    ({}, [(8, 6), (8, 6)], True, (8, 6)),
    ({}, [(8, 6), (6, 8)], True, None),
    ({"resize": {"height": 4, "width": 2}}, [(8, 6), (6, 8)], True, (2, 4)),
    ({"resize": {"shortest": [12], "longest": 99}}, [(8, 6)], True, (16, 12)),
    ({"resize": {"shortest": [12, 18], "longest": 99}}, [(8, 6)], True, None),
    ({"resize": {"shortest": [12, 18], "longest": 99}}, [(8, 6)], False, (24, 18)),
    ({"augment": ["dihedral"]}, [(8, 6)], True, None),
    ({"augment": ["dihedral"]}, [(8, 6)], False, (8, 6)),
    ({"augment": ["dihedral", "flip"]}, [(8, 8)], True, (8, 8)),
    ({"augment": ["crop"]}, [(8, 8)], True, None),
    ({"augment": ["crop"], "resize": {"height": 4, "width": 2}}, [(8, 8)], True, (2, 4)),
])  # fmt: skip
def test_the_size_of_prepared_images_is_known_where_it_is_one(
    config: dict[str, Any], sizes: list[tuple[int, int]], training: bool, wanted: tuple[int, int] | None
):
    transform = TransformConfig.model_validate(config)
    assert fixed_size(transform, sizes, training) == wanted
    # what a transform does, drawn many times
    rng, seen = np.random.default_rng(0), set()
    for width, height in sizes * 30:
        ops = Transform(transform).draw(rng, width, height) if training else Transform(transform).evaluation_ops(width, height)
        none, flags = np.zeros(0, int), np.zeros(0, bool)
        record = Record(1, "a", width, height, np.zeros((0, 4)), none, flags, flags, none, none)
        seen.add(Transform(transform).apply(np.zeros((height, width, 3), np.uint8), record, ops).image.shape[1::-1])
    assert seen == {wanted} if wanted else len(seen) > 1


def with_teacher(tmp_path: Path, names: tuple[str, ...], class_map: dict[str, str]) -> Recipe:
    """A recipe on shapes whose teacher calls its classes ``names``."""
    small_detector(spec=InputSpec(names, SPEC.mean, SPEC.std)).save(tmp_path)
    values = {**TINY, "teacher": {"checkpoint": str(tmp_path)}, "methods": [{"method": "detrdistill"}], "class_map": class_map}
    return parse_recipe(values, "test")


def test_a_declared_class_map_pairs_classes_of_other_names_and_dropped_ones_are_reported(tmp_path: Path):
    names = ("round", "square", "cat", "triangle", "cross", "dog")
    recipe = with_teacher(tmp_path, names, {"round": "circle"})
    setup = build(recipe, str(tmp_path))
    assert setup.pairing is not None and setup.pairing.class_map is not None
    words = {"round": "circle"}
    taught = [words.get(names[index], names[index]) for index in setup.pairing.class_map]
    assert taught == list(setup.train.classes)
    assert any("that the data lacks and every term leaves out: cat, dog" in note for note in setup.notes)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"rond": "circle"}, "the teacher has no class 'rond'; similar: round"),
        ({"round": "circel"}, "the data has no class 'circel'; similar: circle"),
        ({"round": "circle", "cat": "circle"}, "more than one teacher class would become 'circle'"),
    ],
)
def test_a_class_map_that_makes_no_sense_is_refused(tmp_path: Path, class_map: dict[str, str], message: str):
    recipe = with_teacher(tmp_path, ("round", "square", "cat", "triangle", "cross"), class_map)
    with pytest.raises(ConfigError, match=message):
        build(recipe, str(tmp_path))


def test_classes_are_never_guessed_from_their_order(tmp_path: Path):
    recipe = with_teacher(tmp_path, ("round", "square", "triangle", "cross"), {})
    with pytest.raises(IncompatibleError, match=r"does not know 'circle'.*class_map"):
        build(recipe, str(tmp_path))

"""A teacher that would teach nothing is refused with its likely cause."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.flows import DISTILLED, Silent, teacher_copy, tiny_recipe
from workbench.analysis.detection.ap import coco_ap
from workbench.boxes import cxcywh_to_xyxy
from workbench.errors import IncompatibleError
from workbench.recipe.setup import Setup, build
from workbench.training.launch import Launch, start
from workbench.training.sanity import check_teacher

CLASSES = ["circle", "square", "triangle", "cross"]
VAL: dict[str, Any] = {"data": {"options": {"train": 16, "val": 32, "test": 8}}}


def setup_with(teacher: Path | str, *changes: dict[str, Any]) -> Setup:
    return build(tiny_recipe(DISTILLED, VAL, *changes), str(teacher))


def message_of(setup: Setup) -> str:
    with pytest.raises(IncompatibleError) as caught:
        check_teacher(setup)
    return str(caught.value)


def test_a_healthy_teacher_passes_with_the_ap_that_pycocotools_gives_its_detections():
    setup = setup_with("shapes_teacher")
    assert setup.teacher is not None
    truth, rows = setup.val.coco(), []
    for index, record in enumerate(setup.val.records):
        image = torch.from_numpy(setup.val.image(index).copy()).permute(2, 0, 1)[None].float() / 255
        image = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        output = setup.teacher(image, torch.zeros(1, *image.shape[-2:], dtype=torch.bool))
        boxes = cxcywh_to_xyxy(output.boxes[-1, 0]).clamp(0, 1) * torch.tensor([record.width, record.height] * 2)
        rows += [
            {"image_id": record.image_id, "category_id": setup.val.category_ids[label], "score": float(score),
             **dict(zip(("x1", "y1", "x2", "y2"), box.tolist(), strict=True))}
            for scores, box in zip(output.logits[-1, 0].sigmoid(), boxes, strict=True) for label, score in enumerate(scores)
        ]  # fmt: skip
    by_hand = coco_ap(truth, pd.DataFrame(rows), backend="pycocotools").ap
    assert by_hand > 0.5
    assert check_teacher(setup) == pytest.approx(by_hand, abs=1e-3)


@pytest.mark.parametrize("names", [("square", "triangle", "cross", "circle"), ("circle", "square", "cross", "triangle")])
def test_shuffled_class_names_are_recognised_and_the_message_lists_them_in_the_right_order(tmp_path: Path, names: tuple[str, ...]):
    """Such a teacher still reaches 7 and 39 AP: it puts some weight on every class, and two of them are right."""
    message = message_of(setup_with(teacher_copy(tmp_path, classes=list(names))))
    assert "Likely cause: class map" in message and "circle, square, triangle, cross" in message


def test_shuffled_class_names_are_recognised_where_the_data_has_them_in_another_order(tmp_path: Path):
    """Its columns mean cross, circle, square, triangle."""
    teacher = permuted_teacher(tmp_path, [3, 0, 1, 2], CLASSES)
    message = message_of(setup_with(teacher, {"data": {"options": {"classes": ["triangle", "cross", "circle", "square"]}}}))
    assert "Likely cause: class map" in message and "cross, circle, square, triangle" in message


@pytest.mark.parametrize(("mean", "std"), [([0.0] * 3, [1 / 255] * 3), ([0.0] * 3, [1.0] * 3), ([0.485, 0.456, 0.406], [8.0] * 3)])
def test_wrong_normalisation_is_recognised(tmp_path: Path, mean: list[float], std: list[float]):
    message = message_of(setup_with(teacher_copy(tmp_path, mean=mean, std=std)))
    assert "Likely cause: normalisation" in message and "ImageNet mean and std" in message and "workbench.json" in message


def test_a_normalisation_of_ones_own_is_found_where_the_recipe_has_it(tmp_path: Path):
    own = {"mean": [0.2, 0.2, 0.2], "std": [0.01, 0.01, 0.01]}
    teacher = shifted_teacher(tmp_path, own)
    healthy = setup_with(teacher, {"data": {"transform": own}})
    assert check_teacher(healthy) > 0.5
    (tmp_path / "wrong").mkdir()
    wrong = setup_with(shifted_teacher(tmp_path / "wrong", own, told={}), {"data": {"transform": own}})
    message = message_of(wrong)
    assert "Likely cause: normalisation" in message and "the recipe's mean and std" in message


def test_corner_boxes_are_recognised(monkeypatch: pytest.MonkeyPatch):
    setup = setup_with("shapes_teacher")
    assert setup.teacher is not None
    inner = setup.teacher.detector.forward

    def with_corners(*arguments: Any) -> Any:
        output = inner(*arguments)
        return dataclasses.replace(output, boxes=cxcywh_to_xyxy(output.boxes))

    monkeypatch.setattr(setup.teacher.detector, "forward", with_corners)
    message = message_of(setup)
    assert "Likely cause: box format" in message and "x1, y1, x2, y2" in message


def test_a_teacher_of_random_weights_gets_no_invented_cause(tmp_path: Path):
    folder = teacher_copy(tmp_path)
    torch.manual_seed(0)
    weights = {key: 0.1 * torch.randn_like(value) if value.is_floating_point() and "running_var" not in key else value
               for key, value in load_file(folder / "model.safetensors").items()}  # fmt: skip
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = message_of(setup_with(folder))
    assert "Likely cause" not in message and "or hardly at all" in message


def test_a_refused_teacher_leaves_no_run_behind(tmp_path: Path, runs_folder: Path):
    teacher = teacher_copy(tmp_path, classes=["square", "triangle", "cross", "circle"])
    with pytest.raises(IncompatibleError):
        start(tiny_recipe(DISTILLED, VAL, {"teacher": {"checkpoint": str(teacher)}}), Launch(device="cpu"), Silent())
    assert not runs_folder.exists() or not list(runs_folder.iterdir())


def test_a_teacher_with_its_classes_in_another_order_teaches_the_same(tmp_path: Path):
    order = [2, 0, 3, 1]
    teacher = permuted_teacher(tmp_path, order, [CLASSES[i] for i in order])
    same = start(tiny_recipe(DISTILLED), Launch("same", device="cpu"), Silent())
    other = start(tiny_recipe(DISTILLED, {"teacher": {"checkpoint": str(teacher)}}), Launch("other", device="cpu"), Silent())
    assert other.info()["teacher_ap"] == pytest.approx(same.info()["teacher_ap"], abs=1e-6)
    for one, two in zip(same.metrics(), other.metrics(), strict=True):
        assert any(key.startswith("raw/") for key in one)
        assert two == pytest.approx(one, rel=1e-4)


def permuted_teacher(folder: Path, order: list[int], names: list[str]) -> Path:
    """The embedded teacher whose column k is the original's column order[k], called names[k]."""
    target = teacher_copy(folder, classes=names)
    weights = load_file(target / "model.safetensors")
    moved = {key: value[order].contiguous() if "class_embed" in key else value for key, value in weights.items()}
    save_file(moved, target / "model.safetensors", metadata={"format": "pt"})
    return target


def shifted_teacher(folder: Path, own: dict[str, list[float]], told: dict[str, Any] | None = None) -> Path:
    """The embedded teacher made to expect images of another mean and std, by rescaling its first convolution."""
    target = teacher_copy(folder, **(own if told is None else told))
    weights = load_file(target / "model.safetensors")
    name = next(key for key, value in weights.items() if value.ndim == 4 and value.shape[1] == 3)
    scale = torch.tensor(own["std"]) / torch.tensor([0.229, 0.224, 0.225])
    weights[name] = (weights[name] * scale[:, None, None]).contiguous()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target

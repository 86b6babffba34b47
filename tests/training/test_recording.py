"""What a method of one's own selects and draws is recorded like what a built-in method does."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.detectors.detector import Detector
from workbench.detectors.output import DetectorOutput, Level
from workbench.methods import registry
from workbench.methods.context import MethodContext, Pairing
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import register
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.states import masked_images, read_masks
from workbench.training.launch import Launch, start


class EvenConfig(BaseMethodConfig, frozen=True):
    method: Literal["even"] = "even"

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("memory",)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"memory"})


class Even(Method):
    """Every second query teaches; the mask is the row of the cell."""

    name, Config, citation, terms = "even", EvenConfig, "a notebook", "memory"

    def __init__(self, config: Any, student: Detector, teacher: Detector, pairing: Pairing):
        super().__init__(config, student, teacher, pairing)
        self.adaptor = torch.nn.Conv2d(student.level_channels("memory")[8], teacher.level_channels("memory")[8], 1)

    @property
    def mask_layers(self) -> tuple[int, ...]:
        return (3,)

    def selected(self, teacher: DetectorOutput, context: MethodContext) -> Tensor:
        return (torch.arange(teacher.logits.shape[2]) % 2 == 0).expand(teacher.logits.shape[:3])

    def masks(
        self, teacher: DetectorOutput, layers: list[int], context: MethodContext, selected: Tensor | None
    ) -> list[tuple[Level, Tensor]]:
        assert selected is not None and not selected[..., 1::2].any()
        (level,) = teacher.memory
        batch, _, height, width = level.features.shape
        return [(level, torch.arange(height)[:, None].expand(len(layers), batch, height, width).float())]

    def forward(self, student: Any, teacher: Any, targets: Any, context: MethodContext) -> dict[str, Tensor]:
        assert context.training.num_boxes >= 1
        return {"memory": (self.adaptor(student.memory[0].features) - teacher.memory[0].features).square().mean()}


@pytest.fixture
def even() -> Iterator[None]:
    register(Even)
    yield
    registry._registered.pop("even")


def test_the_selection_and_the_masks_of_a_method_from_a_notebook_are_recorded(even: None):
    recipe = tiny_recipe(DISTILLED, {"methods": [{"method": "even"}]})
    run = start(recipe, Launch(name="even", device="cpu"), Silent())
    rows = read_queries(run, "val", [TEACHER_STEP], ["image_id", "query", "selected"])
    assert (rows["selected"] == (rows["query"] % 2 == 0)).all() and len(rows) == 8 * 4 * 20
    masks = read_masks(run, "val", TEACHER_STEP, int(rows["image_id"].iloc[0]))
    assert set(masks) == {(layer, 0) for layer in range(4)}
    for mask in masks.values():
        np.testing.assert_allclose(mask, np.arange(12)[:, None].repeat(12, 1), atol=11 / 255)


@pytest.mark.parametrize("methods", [DISTILLED["methods"], []])
def test_the_students_masks_are_kept_at_the_last_evaluation_for_every_layer_beside_those_of_its_teacher(methods: list[Any]):
    """An undistilled student keeps them too, where there is a teacher to compare it with."""
    evaluated_twice = {"methods": methods, "train": {"steps": 4, "evaluate_every": 2}}
    run = start(tiny_recipe(DISTILLED, evaluated_twice), Launch(name="masks", device="cpu"), Silent())
    images = masked_images(run, "val", 4)
    assert images == masked_images(run, "val", TEACHER_STEP) and len(images) == 8
    assert masked_images(run, "val", 2) == []
    own = read_masks(run, "val", 4, images[0])
    layers = read_queries(run, "val", [4], ["layer"], where="model = 'student'")["layer"].unique()
    assert {layer for layer, _ in own} == set(layers.tolist())
    assert all(mask.shape == (12, 12) and mask.min() >= 0 for mask in own.values())


def test_the_masks_of_a_method_that_says_nothing_of_the_student_have_no_students_beside_them(even: None):
    run = start(tiny_recipe(DISTILLED, {"methods": [{"method": "even"}]}), Launch(name="even", device="cpu"), Silent())
    assert masked_images(run, "val", 2) == [] and masked_images(run, "val", TEACHER_STEP)


def test_a_term_that_asks_for_the_step_outside_training_is_a_mistake_of_the_code():
    context = MethodContext(student=None, pairing=None, targets=None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="only computed in training"):
        _ = context.training

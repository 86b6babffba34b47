"""NaN stops a run before it can spoil a checkpoint, and the message says where it was."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.detectors.registry import load_detector
from workbench.errors import NonFiniteError
from workbench.store.run import Run, read_lines
from workbench.training import launch
from workbench.training.launch import Launch, start
from workbench.training.loop import Trainer

STEPS: dict[str, Any] = {"train": {"steps": 20, "checkpoint_every": 4, "evaluate_every": 20}}


def failing(
    monkeypatch: pytest.MonkeyPatch, before_step: int, fault: Callable[[Trainer], None], **changes: Any
) -> tuple[Run, str, list[int]]:
    """A run in which something happens just before a step: the run, the message, and the images of that step."""
    images: list[int] = []

    class Faulty(Trainer):
        def _train_step(self, batch: Any, step: int, logged: bool) -> Any:
            if step + 1 == before_step:
                fault(self)
                images.extend(batch.image_ids)
            return super()._train_step(batch, step, logged)

    monkeypatch.setattr(launch, "Trainer", Faulty)
    with pytest.raises(NonFiniteError) as caught:
        start(tiny_recipe(STEPS, changes), Launch("faulty", device="cpu"), Silent())
    return Run.open("faulty"), str(caught.value), images


def good(folder: Path) -> bool:
    return all(torch.isfinite(value).all() for value in load_detector(folder).state_dict().values())


def parameter(trainer: Trainer, ending: str) -> torch.nn.Parameter:
    (found,) = [p for name, p in trainer.setup.student.named_parameters() if name.endswith(ending)]
    return found


@pytest.mark.parametrize("changes", [{}, DISTILLED], ids=["undistilled", "distilled"])
def test_nan_in_a_weight_names_decoder_layer_images_and_step_and_keeps_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
):
    def fault(trainer: Trainer) -> None:
        with torch.no_grad():
            parameter(trainer, "decoder.layers.1.final_layer_norm.bias").fill_(math.nan)

    run, message, images = failing(monkeypatch, 6, fault, **changes)
    where = f"decoder layer 1: logits of images {images}; decoder layer 1: boxes of images {images}."
    assert f"step 6: found NaN or infinity in {where}" in message
    assert "layer 0" not in message
    assert run.checkpoint_steps() == [4]
    assert good(run.checkpoint_path(4))
    assert [line["step"] for line in read_lines(run.metrics_path)] == [1, 2, 3, 4, 5]
    assert run.info()["state"] == "failed"
    assert run.info()["error"] == message


def test_nan_in_one_image_names_that_image_alone(monkeypatch: pytest.MonkeyPatch):
    def fault(trainer: Trainer) -> None:
        def spoil(_: Any, __: Any, output: Any) -> None:
            output.logits[0, 2, 3] = math.nan

        trainer.setup.student.register_forward_hook(spoil)

    _, message, images = failing(monkeypatch, 2, fault)
    assert f"step 2: found NaN or infinity in decoder layer 0: logits of images [{images[2]}]." in message


def test_a_gradient_that_is_nan_stops_before_it_reaches_a_weight_or_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    def spoil(gradient: Tensor) -> Tensor:
        return gradient * math.nan

    def fault(trainer: Trainer) -> None:
        parameter(trainer, "level_embed").register_hook(spoil)

    run, message, images = failing(monkeypatch, 8, fault)
    assert f"step 8: found NaN or infinity in gradients of images {images}." in message
    assert run.checkpoint_steps() == [4], "the checkpoint of step 8 would hold NaN and replace the good one"
    assert good(run.checkpoint_path(4))


def test_a_loss_term_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch):
    def fault(trainer: Trainer) -> None:
        losses = trainer.setup.student.losses

        def spoiled(*arguments: Any) -> dict[str, Tensor]:
            found = losses(*arguments)
            return found | {"giou": found["giou"] * math.inf}

        monkeypatch.setattr(trainer.setup.student, "losses", spoiled)

    _, message, images = failing(monkeypatch, 3, fault)
    assert f"step 3: loss term giou is not finite on images {images}." in message

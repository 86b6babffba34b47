"""A checkpoint brings back every bit of a training, and a failed one takes nothing away."""

import errno
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tests.examples import batch_of, images_of, small_detector
from workbench.detectors import weights as storage
from workbench.detectors.detector import Detector
from workbench.detectors.registry import load_detector
from workbench.errors import CheckpointError, RunError
from workbench.files import read_json, write_json
from workbench.recipe.schema import TrainConfig
from workbench.store.intact import HASHES
from workbench.store.run import Run, result_folder
from workbench.training import checkpoints
from workbench.training.checkpoints import load_checkpoint, prune_checkpoints, save_checkpoint
from workbench.training.optim import Average, make_optimizer


@dataclass
class Training:
    """What a checkpoint holds, with dropout so that random numbers matter."""

    student: Detector
    adapters: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None

    @staticmethod
    def of(seed: int, ema: float, **changes: Any) -> "Training":
        student = small_detector(seed, dropout=0.1).train()
        student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - as the trainer does
        adapters = nn.ModuleList([nn.Conv2d(32, 8, 3).to(memory_format=torch.channels_last)])  # pyright: ignore[reportCallIssue]
        optimizer = make_optimizer(student, adapters, TrainConfig.model_validate({"steps": 10, "learning_rate": 1e-2} | changes))
        return Training(student, adapters, optimizer, Average(student, ema) if ema else None)

    def step(self, step: int) -> None:
        images, padding = images_of((32, 32), (32, 48), seed=step)
        targets = batch_of([2, 1], 3, torch.Generator().manual_seed(step))
        output = self.student(images, padding, targets)
        loss = torch.stack([*self.student.losses(output, targets, 3.0).values()]).sum()
        loss = loss + self.adapters[0](torch.randn(1, 32, 5, 5)).square().mean()  # pyright: ignore[reportIndexIssue]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.student, step)

    def save(self, run: Run, step: int) -> None:
        save_checkpoint(run, step, self.student, self.adapters, self.optimizer, self.average, None, {"note": step})

    def load(self, run: Run, step: int) -> dict[str, Any]:
        return load_checkpoint(run, step, self.student, self.adapters, self.optimizer, self.average, None)

    def everything(self) -> dict[str, Tensor]:
        moments = {f"moments.{i}.{k}": v for i, s in self.optimizer.state_dict()["state"].items() for k, v in s.items()}
        values = {f"student.{k}": v for k, v in self.student.state_dict().items()} | moments
        values |= {f"adapters.{k}": v for k, v in self.adapters.state_dict().items()} | {"rng": torch.get_rng_state()}
        values |= {f"average.{k}": v for k, v in self.average.values.items()} if self.average is not None else {}
        return {name: value.clone() for name, value in values.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize(("ema", "changes"), [
    (0.0, {}), (0.9, {}), (0.0, {"optimizer": "sgd"}), (0.0, {"optimizer": "sgd", "momentum": 0.0}),
])  # fmt: skip
def test_a_restored_training_has_every_bit_and_goes_on_as_the_one_that_was_never_stopped(ema: float, changes: dict[str, Any]):
    run, training = Run.create("saved", {}), Training.of(0, ema, **changes)
    training.step(0)
    training.step(1)
    before = training.everything()
    training.save(run, 2)
    assert not differing(training.everything(), before), "saving changes nothing"
    training.step(2)
    training.step(3)
    other = Training.of(5, ema, **changes)
    assert other.load(run, 2) == {"step": 2, "scaler": None, "note": 2}
    assert not differing(other.everything(), before)
    other.step(2)
    other.step(3)
    assert not differing(other.everything(), training.everything())


def test_the_exported_student_has_the_averaged_weights():
    run, training = Run.create("averaged", {}), Training.of(0, 0.9)
    training.step(0)
    training.save(run, 1)
    assert training.average is not None
    exported = load_detector(run.checkpoint_path(1)).state_dict()
    assert all(torch.equal(exported[name], value) for name, value in training.average.values.items())
    assert any(not torch.equal(exported[name], value) for name, value in training.student.state_dict().items())


def test_pruning_keeps_what_is_named_and_leaves_incomplete_folders_alone():
    run, training = Run.create("pruned", {}), Training.of(0, 0.0)
    for step in (1, 2, 3):
        training.save(run, step)
    (run.checkpoint_path(4)).mkdir()
    prune_checkpoints(run, {1, 3})
    assert run.checkpoint_steps() == [1, 3]
    assert not run.checkpoint_path(2).exists()
    assert load_detector(run.checkpoint_path(1)).spec == training.student.spec


def test_the_result_is_the_best_checkpoint_where_there_is_one_else_the_last():
    run = Run.create("result", {})
    with pytest.raises(RunError, match="run 'result' has no checkpoint yet"):
        result_folder(run)
    training = Training.of(0, 0.0)
    for step in (1, 2, 3):
        training.save(run, step)
    assert result_folder(run) == run.checkpoint_path(3)
    run.update_info(best_step=2)
    assert result_folder(run) == run.checkpoint_path(2)
    run.update_info(best_step=9)
    assert result_folder(run) == run.checkpoint_path(3)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left")], ids=repr)
@pytest.mark.parametrize("whose", ["the trainer's", "the student's"])
def test_a_full_disk_is_one_message_and_the_earlier_checkpoint_stays(failure: Exception, whose: str, monkeypatch: pytest.MonkeyPatch):
    run, training = Run.create("full", {}), Training.of(0, 0.9)
    training.save(run, 1)
    before = training.everything()

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    place = checkpoints if whose == "the trainer's" else storage
    monkeypatch.setattr(place, "save_file", fail)
    with pytest.raises(RunError) as caught:
        training.save(run, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert all(words in message for words in ("step 2", "No space left", "Earlier checkpoints are kept", "--resume full"))
    assert sorted(path.name for path in run.checkpoints_path.iterdir()) == ["0000001"]
    assert not differing(training.everything(), before), "the weights are still the training's own, not the averaged ones"
    Training.of(3, 0.9).load(run, 1)


def test_a_checkpoint_of_another_recipe_is_refused():
    run = Run.create("other", {})
    Training.of(0, 0.0).save(run, 1)
    other = Training.of(0, 0.0)
    other.student = small_detector(queries=7)
    with pytest.raises(CheckpointError, match="does not fit the run's recipe"):
        other.load(run, 1)


def test_a_checkpoint_of_the_time_when_activations_were_left_out_is_not_continued():
    student = small_detector(levels=2, backbone={"name": "mobilenet_v2", "levels": [1, 2], "norm": "frozen"})
    optimizer = make_optimizer(student, nn.Identity(), TrainConfig(steps=10))
    run, training = Run.create("old", {}), Training(student, nn.ModuleList(), optimizer, None)
    training.save(run, 1)
    training.load(run, 1)
    path = run.checkpoint_path(1) / "workbench.json"
    description = read_json(path)
    del description["exact_norms"]
    write_json(path, description)
    (path.parent / HASHES).unlink()  # there were none at that time
    with pytest.raises(CheckpointError, match="left the activations of this backbone out"):
        training.load(run, 1)

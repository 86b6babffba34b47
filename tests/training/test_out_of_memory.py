"""A step that does not fit into memory goes on in smaller passes with the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.detectors.registry import load_detector
from workbench.errors import DeviceError
from workbench.store.run import Run, read_lines
from workbench.training.launch import Launch, start
from workbench.training.step import DistillStep

# without batch statistics an image is seen in the same way, however many go through with it
PLAIN: dict[str, Any] = {"student": {"backbone": {"norm": "frozen"}}, "train": {"steps": 4, "checkpoint_every": 2, "evaluate_every": 4}}
METHODS: dict[str, Any] = {"methods": [{"method": "detrdistill"}, {"method": "fgfi"}, {"method": "fkd"}]}


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int, from_step: int = 2) -> None:
    """A device that is too small for more than that many images, from a step on (counted from 0)."""
    forward = DistillStep.forward

    def limited(self: DistillStep, given: Any, *arguments: Any, **named: Any) -> Any:
        if len(given) > images and named["progress"].step >= from_step:
            torch.rand(3)  # what the failed step has drawn
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, given, *arguments, **named)

    monkeypatch.setattr(DistillStep, "forward", limited)


def trained(name: str, **changes: Any) -> tuple[Run, Silent]:
    listener = Silent()
    return start(tiny_recipe(DISTILLED, PLAIN, METHODS, changes), Launch(name, device="cpu"), listener), listener


@pytest.fixture(autouse=True)
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))


def test_the_run_says_so_and_goes_on_from_the_same_step_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch):
    whole, _ = trained("whole")
    small_memory(monkeypatch, 1)
    halved, listener = trained("halved")
    said = [message for message in listener.messages if "out of memory" in message]
    assert [message.split(".")[1] for message in said] == [
        f" The run goes on from this step with {n} of its images at once" for n in (2, 1)
    ]
    assert all(message.startswith("step 3: ") for message in said)
    assert listener.steps == [1, 2, 3, 4]
    for a, b in zip(read_lines(halved.metrics_path), read_lines(whole.metrics_path), strict=True):
        assert a.keys() == b.keys()
        for name in ("loss", "gradient_norm", *(key for key in a if key.startswith(("raw/", "detection/")))):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-6), (a["step"], name)
    # AdamW takes a step of full length into the direction of a gradient that is nothing but rounding
    weights = [
        torch.cat([v.flatten().float() for v in load_detector(run.checkpoint_path(4)).state_dict().values()]) for run in (halved, whole)
    ]
    assert float((weights[0] - weights[1]).norm() / weights[1].norm()) < 1e-3


def test_where_smaller_passes_are_turned_off_the_run_ends_with_its_checkpoint_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch):
    small_memory(monkeypatch, 1)
    with pytest.raises(DeviceError, match=r"step 3: the memory of cpu is too small for 4 images in 1 parts.*train\.accumulate"):
        trained("stopped", train={**PLAIN["train"], "on_out_of_memory": "stop"})
    run = Run.open("stopped")
    assert (run.checkpoint_steps(), run.info()["state"]) == ([2], "failed")


def test_a_single_image_that_does_not_fit_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    small_memory(monkeypatch, 0)
    with pytest.raises(DeviceError, match="is too small"):
        trained("hopeless")


def test_what_happens_without_memory_is_no_part_of_the_result():
    assert tiny_recipe({"train": {"on_out_of_memory": "stop"}}).hash() == tiny_recipe().hash()

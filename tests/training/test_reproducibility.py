"""A run records how exactly it can be repeated, and shows it."""

from pathlib import Path

import pytest
import torch

from tests.flows import Silent, command, tiny_recipe
from workbench.store.run import Run
from workbench.training.launch import Launch, start
from workbench.training.reproducibility import reproducibility

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("processes", "passes", "kind", "why"),
    [(1, 1, "bit-equal", "fixed order"), (2, 1, "stated tolerance", "2 processes"), (1, 4, "stated tolerance", "4 passes")],
)
def test_a_divided_batch_is_equal_up_to_a_stated_tolerance_and_a_whole_one_to_the_bit(processes: int, passes: int, kind: str, why: str):
    found = reproducibility(CPU, processes, passes)
    assert found["kind"] == kind and why in found["why"]
    assert ("1e-05" in found["why"]) == (kind == "stated tolerance")


def test_cuda_is_deterministic_only_if_torch_is_told_to_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    assert reproducibility(torch.device("cuda"), 1)["kind"] == "stated tolerance"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    found = reproducibility(torch.device("cuda"), 1)
    assert found["kind"] == "deterministic kernels" and "a card" in found["why"]


def test_a_run_says_how_exactly_it_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = start(tiny_recipe({"train": {"steps": 1}}), Launch("run", device="cpu"), Silent())
    assert Run.open("run").info()["reproducibility"] == reproducibility(CPU, 1)
    code, out, _ = command("runs", "show", run.name)
    assert code == 0 and "reproducibility: bit-equal: one process" in " ".join(out.split())

"""Turning a .pth into safetensors reads tensors and nothing else."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.flows import command
from workbench.errors import CheckpointError
from workbench.tasks.convert import convert

STATE = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([1, 2]))


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "owned"))


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}, lambda state: {"state_dict": state}])
def test_the_tensors_of_a_state_dict_come_out_equal(tmp_path: Path, wrap: Any):
    torch.save(wrap(STATE), tmp_path / "in.pth")
    code, out, _ = command("convert", str(tmp_path / "in.pth"), "--out", str(tmp_path / "out.safetensors"))
    assert code == 0 and "2 tensors" in out
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == set(STATE)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in STATE.items())


def test_tensors_that_share_memory_and_views_come_out_whole(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"all": base, "again": base, "turned": base.T}, tmp_path / "in.pth")
    assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors") == 3
    assert torch.equal(load_file(tmp_path / "out.safetensors")["turned"], base.T)


@pytest.mark.parametrize("writer", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what, 2))], ids=["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_its_code_does_not_run(tmp_path: Path, writer: Any):
    writer({"model": STATE, "extra": Attack(tmp_path / "owned")}, tmp_path / "in.pth")
    code, _, err = command("convert", str(tmp_path / "in.pth"), "--out", str(tmp_path / "out.safetensors"))
    assert code == CheckpointError.exit_code and "cannot be read as tensors only" in err and "Traceback" not in err
    assert "weights_only=False" not in err
    assert not (tmp_path / "owned").exists() and not (tmp_path / "out.safetensors").exists()
    # the same file does harm where it is trusted
    torch.load(tmp_path / "in.pth", weights_only=False) if writer is torch.save else pickle.loads((tmp_path / "in.pth").read_bytes())
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(("content", "message"), [(b"", "cannot be read"), (b"not a checkpoint", "cannot be read"), (None, "no file")])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "in.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert str(tmp_path / "in.pth") in str(caught.value)


@pytest.mark.parametrize("value", [torch.ones(2), {"epoch": 3}, [torch.ones(1)]])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, value: Any):
    torch.save(value, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match=r"not a state dict|no tensors"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")

"""A device is resolved in one place: what this machine lacks is one message before any time is spent, never the CPU instead."""

from pathlib import Path

import pytest
import torch

from tests.flows import DISTILLED, command, write_recipe
from workbench import notebook
from workbench.device import resolve_device
from workbench.errors import DeviceError
from workbench.store.run import Run
from workbench.tasks.evaluate import evaluate
from workbench.tasks.predict import predict
from workbench.training import processes
from workbench.training.processes import init_processes


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Says how many CUDA GPUs torch finds."""

    def found(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return found


@pytest.mark.parametrize(("count", "name", "expected"), [
    (0, "auto", "cpu"), (0, "cpu", "cpu"), (1, "auto", "cuda"), (2, "auto", "cuda"), (1, "cpu", "cpu"), (1, "cuda", "cuda"),
    (1, "cuda:0", "cuda:0"), (2, "cuda:1", "cuda:1"),
])  # fmt: skip
def test_a_name_stands_for_a_device_of_this_machine(gpus, count: int, name: str, expected: str):
    gpus(count)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(("count", "name", "words"), [
    (0, "gpuu", "there is no device 'gpuu'. Choose auto, cpu, cuda or cuda:N"),
    (2, "", "there is no device ''"),
    (2, "CUDA", "there is no device 'CUDA'"),
    (2, "cuda:", "there is no device 'cuda:'"),
    (2, "cuda:-1", "there is no device 'cuda:-1'"),
    (2, "cuda:1\n", "there is no device"),
    (0, "cuda", "device 'cuda' is not available: torch finds no CUDA GPU on this machine"),
    (0, "cuda:0", "device 'cuda:0' is not available: torch finds no CUDA GPU"),
    (1, "cuda:1", "device 'cuda:1' is not available: torch finds cuda:0 on this machine"),
    (2, "cuda:7", "device 'cuda:7' is not available: torch finds cuda:0 to cuda:1 on this machine"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused_with_those_that_are(gpus, count: int, name: str, words: str):
    gpus(count)
    with pytest.raises(DeviceError) as caught:
        resolve_device(name)
    assert words in str(caught.value)


VERBS = {
    "run": ["run", "RECIPE", "--name", "new"],
    "run --dry-run": ["run", "RECIPE", "--dry-run"],
    "run --resume": ["run", "--resume", "there"],
    "distill": ["distill", "--data", "IMAGES"],
    "compare": ["compare", "RECIPE", "--seeds", "1"],
    "evaluate": ["evaluate", "shapes_teacher"],
    "predict": ["predict", "shapes_teacher", "IMAGES", "--out", "OUT"],
    "record": ["record", "there"],
    "search run": ["search", "shapes_fcos"],
    "cache build": ["cache", "build", "RECIPE"],
    "cache check": ["cache", "check", "RECIPE"],
}


@pytest.mark.parametrize("device", ["gpuu", "cuda", "cuda:3"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_bad_device_in_one_line_and_writes_nothing(
    tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch, gpus, verb: str, device: str
):
    gpus(0)
    Run.create("there", {"state": "interrupted"})
    for name in ("workbench.recipe.setup.open_split", "workbench.recipe.setup.load_detector", "workbench.tasks.predict.load_detector"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("time was spent"))
    recipe = str(write_recipe(tmp_path, DISTILLED, {"cache": {"variants": 1}}))
    before = sorted(tmp_path.rglob("*"))
    words = {"RECIPE": recipe, "IMAGES": str(tmp_path), "OUT": str(tmp_path / "out")}
    code, out, err = command(*[words.get(word, word) for word in VERBS[verb]], "--device", device)
    assert (code, out) == (DeviceError.exit_code, ""), err
    assert err.startswith("workbench: ") and err.count("\n") == 1 and f"'{device}'" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_verbs_of_this_test_are_those_that_take_a_device():
    import typer

    from workbench.cli import app

    def with_device(command, *names: str):
        if isinstance(command, typer.core.TyperGroup):
            for name, one in command.commands.items():
                yield from with_device(one, *names, name)
        elif any("--device" in param.opts for param in command.params):
            yield " ".join(names)

    assert set(with_device(typer.main.get_command(app))) == {verb.split(" --")[0] for verb in VERBS} | {"trace"}


def test_a_notebook_is_refused_alike(tmp_path: Path, gpus):
    gpus(0)
    for call in (
        lambda: notebook.train(str(write_recipe(tmp_path)), device="cuda"),
        lambda: evaluate("shapes_teacher", device="cuda"),
        lambda: predict("shapes_teacher", tmp_path, tmp_path / "out", 0.3, "cuda"),
    ):
        with pytest.raises(DeviceError, match="no CUDA GPU"):
            call()


def test_the_next_run_of_a_process_gets_the_device_that_it_asks_for(monkeypatch: pytest.MonkeyPatch):
    """Accelerate keeps the first device of a process; ``meta`` stands for a GPU here."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert init_processes("cpu").device == torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(processes, "resolve_device", lambda name: torch.device("meta"))
        assert init_processes("cuda").device == torch.device("meta") and chosen == [0]
    assert init_processes("cpu").device == torch.device("cpu") and chosen == [0]


@pytest.mark.parametrize(("device", "words"), [
    ("cuda:1", "device 'cuda:1' is one GPU, but each of the 3 processes of this run needs its own"),
    ("cuda", "3 processes need a GPU each, but torch finds 2"),
])  # fmt: skip
def test_processes_of_one_run_get_a_gpu_each_or_are_refused(gpus, monkeypatch: pytest.MonkeyPatch, device: str, words: str):
    gpus(2)
    for name, value in (("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=words):
        init_processes(device)

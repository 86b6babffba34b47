"""A run that is killed or interrupted, in a process of its own, ends in the same bytes as one that never was."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.flows import DISTILLED, Silent, command, write_recipe
from workbench.errors import Interrupted, RunError
from workbench.recipe.loading import load_recipe
from workbench.store.run import Run, read_lines
from workbench.training import evaluation
from workbench.training.launch import Launch, resume, start
from workbench.training.loop import Trainer
from workbench.training.processes import interruptible

STEPS: dict[str, Any] = {
    "student": {"dropout": 0.1},
    "train": {"steps": 40, "checkpoint_every": 10, "evaluate_every": 20, "ema": 0.9},
}


def stopped_by(number: signal.Signals, recipe: Path, name: str, arm: str, lines: int) -> tuple[int, Run, str]:
    """Starts ``workbench run``, sends a signal once so many steps are logged; exit code, the run, what was said."""
    arguments = ["run", str(recipe), "--name", name, "--device", "cpu", "--plain", "--arm", arm]
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ)
    )
    run = Run(Path(os.environ["WORKBENCH_RUNS"]) / name)
    try:
        while process.poll() is None and len(read_lines(run.metrics_path)) < lines:
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate()[0]
    finally:
        process.kill()
    return process.returncode, run, said


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs ``distilled`` and ``undistilled``, which nothing interrupted; only read."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = str(write_recipe(folder, DISTILLED, STEPS))
    for arm in ("distilled", "undistilled"):
        code, *said = command("run", recipe, "--name", arm, "--arm", arm, "--runs", str(folder / "runs"), "--device", "cpu", "--plain")
        assert code == 0, said
    return folder / "runs"


def same_end(run: Run, whole: Run) -> None:
    """Every byte that training decides."""
    assert run.info()["state"] == whole.info()["state"] == "done"
    assert run.metrics_path.read_bytes() == whole.metrics_path.read_bytes()
    for file in ("model.safetensors", "trainer.safetensors"):
        assert (run.checkpoint_path(40) / file).read_bytes() == (whole.checkpoint_path(40) / file).read_bytes(), file
    evaluations = [[(line["step"], line["split"], line["coco"]) for line in read_lines(each.evaluations_path)] for each in (run, whole)]
    assert evaluations[0] == evaluations[1]
    assert len(evaluations[0]) == 3
    assert [line["step"] for line in read_lines(run.timings_path)] == list(range(1, 41))


@pytest.mark.parametrize("arm", ["distilled", "undistilled"])
def test_a_run_killed_at_any_moment_and_resumed_ends_in_the_bytes_of_one_that_was_not(tmp_path: Path, whole_runs: Path, arm: str):
    recipe = write_recipe(tmp_path, DISTILLED, STEPS)
    lines = random.randint(11, 30)
    code, run, said = stopped_by(signal.SIGKILL, recipe, "killed", arm, lines)
    assert code == -signal.SIGKILL, said
    before = run.checkpoint_steps()
    assert before, "nothing was saved before the kill"
    assert before[-1] < 40, "the kill came too late"
    assert command("run", "--resume", "killed", "--device", "cpu", "--plain")[0] == 0
    same_end(run, Run(whole_runs / arm))


def test_ctrl_c_before_the_first_step_says_that_the_run_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def pressed(self: Trainer) -> None:
        raise KeyboardInterrupt

    recipe = str(write_recipe(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", pressed)
        code, _, said = command("run", recipe, "--name", "early", "--device", "cpu", "--plain")
    assert code == 130
    assert "run 'early' was stopped at once. It has no checkpoint yet and begins again at its first step" in said
    assert Run.open("early").info()["state"] == "interrupted"
    assert command("run", "--resume", "early", "--device", "cpu", "--plain")[0] == 0


def test_ctrl_c_before_a_run_is_made_ends_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.training.launch.build", pressed)
    code, _, said = command("run", str(write_recipe(tmp_path)), "--name", "none", "--device", "cpu", "--plain")
    assert code == 130 and "stopped. What was finished before is kept." in said
    assert Run.find("none") is None


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_once_ends_with_its_code_and_says_how_to_go_on_to_the_same_end(
    tmp_path: Path, whole_runs: Path, number: signal.Signals, wanted: int
):
    recipe = write_recipe(tmp_path, DISTILLED, STEPS, {"train": {"checkpoint_every": 1000}})
    code, run, said = stopped_by(number, recipe, "stopped", "distilled", 5)
    assert code == wanted, said
    (step,) = run.checkpoint_steps()
    assert 5 <= step < 40
    assert f"stopped at step {step} and saved. Resume with: workbench run --resume stopped" in said
    assert "Traceback" not in said
    assert run.info()["state"] == "interrupted"
    assert [line["step"] for line in read_lines(run.metrics_path)] == list(range(1, step + 1))
    assert command("run", "--resume", "stopped", "--device", "cpu", "--plain")[0] == 0
    same_end(run, Run(whole_runs / "distilled"))  # which was saved more often


@pytest.mark.parametrize("call", [1, 2, 3], ids=["evaluation", "last evaluation", "evaluation of the result"])
def test_a_signal_during_an_evaluation_ends_it_saves_and_the_resumed_run_makes_it(
    tmp_path: Path, whole_runs: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    recipe = write_recipe(tmp_path, DISTILLED, STEPS)
    calls: list[int] = []
    write = evaluation.write_detections

    def stopping(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        write(*arguments)

    monkeypatch.setattr(evaluation, "write_detections", stopping)
    with pytest.raises(Interrupted) as caught:
        start(load_recipe(recipe, arm="distilled"), Launch("evaluated", arm="distilled", device="cpu"), Silent())
    assert caught.value.exit_code == 143
    run = Run.open("evaluated")
    step = 20 if call == 1 else 40
    assert run.info()["state"] == run.state() == "interrupted" and run.checkpoint_steps() == [step]
    assert [line["step"] for line in read_lines(run.evaluations_path)] == [20, 40][: call - 1]
    assert not [path for path in run.path.rglob("*") if path.name.startswith(".") and path.name != ".lock"], "nothing is half written"
    resume(run, Launch(device="cpu"), Silent())
    same_end(run, Run(whole_runs / "distilled"))


def test_a_run_whose_process_is_gone_is_shown_as_stopped_and_one_that_nohup_protects_goes_on(tmp_path: Path, whole_runs: Path):
    recipe = write_recipe(tmp_path, DISTILLED, STEPS)
    code, run, said = stopped_by(signal.SIGKILL, recipe, "gone", "undistilled", 12)
    assert code == -signal.SIGKILL, said
    assert run.info()["state"] == "running" and run.state() == "stopped" and not run.is_running()
    for verb, words in ((("runs", "list"), "stopped"), (("runs", "show", "gone"), "stopped")):
        code, out, err = command(*verb)
        assert code == 0 and words in out, err
    with run.locked():
        assert run.state() == "running"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.asked() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("log_every", [1, 50], ids=["seen by the log", "seen by the checkpoint"])
def test_a_folder_that_is_removed_in_mid_run_ends_the_run_with_one_message_and_is_not_made_again(tmp_path: Path, log_every: int):
    class Removing(Silent):
        def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
            if step == 3:
                shutil.rmtree(Run.open("removed").path)

    recipe = write_recipe(tmp_path, STEPS, {"train": {"log_every": log_every, "checkpoint_every": 5}})
    with pytest.raises(RunError, match="folder of run 'removed' has been removed or moved"):
        start(load_recipe(recipe), Launch("removed", device="cpu"), Removing())
    assert not (Path(os.environ["WORKBENCH_RUNS"]) / "removed").exists()


def test_a_run_that_is_removed_while_it_starts_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    create = Run.create
    monkeypatch.setattr(Run, "create", lambda *arguments: shutil.rmtree(create(*arguments).path))
    with pytest.raises(RunError, match="folder of run 'early' has been removed or moved"):
        start(load_recipe(write_recipe(tmp_path, STEPS)), Launch("early", device="cpu"), Silent())

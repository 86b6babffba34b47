"""One of several processes of a run is lost before training begins, or they are started or stopped in another way than by torchrun."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.together import Together, messages
from tests.flows import write_recipe
from workbench.training.watch import SETTING

SHORT: dict[str, Any] = {"train": {"steps": 4, "checkpoint_every": 4, "evaluate_every": 4, "log_every": 1}}
LONG: dict[str, Any] = {"train": {"steps": 4000, "checkpoint_every": 4000, "evaluate_every": 4000, "log_every": 1}}
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def starts_badly(folder: Path, fault: str, place: str, rank: str, seconds: float) -> Together:
    """Starts a run of which one process, or all, does something wrong before training."""
    program = ("-m", "tests.faults.starts_badly", fault, place, rank)
    return Together(folder, "run", str(write_recipe(folder, SHORT)), "--name", "two", program=program, **{SETTING: str(seconds)})


@pytest.mark.parametrize(("fault", "place", "lost"), [
    ("is killed", "reads its data", 1), ("is killed", "trains", 0),
    ("is frozen", "joins", 1), ("is frozen", "reads its data", 0), ("hangs", "reads its data", 1),
])  # fmt: skip
def test_a_process_that_is_lost_before_training_ends_the_others_with_one_message(tmp_path: Path, fault: str, place: str, lost: int):
    together = starts_badly(tmp_path, fault, place, str(lost), 25 if fault != "is killed" else 600)
    said = together.end()
    (message,) = messages(said)
    what = "has ended before training began" if fault == "is killed" else "has ended, is frozen or hangs before training began"
    if place == "joins":  # before it can give a sign
        what = f"({what}|has not begun within 25 s)"
    assert re.search(rf"run 'two' (did not get to its training|has stopped): process {lost} of 2 {what}", message), message
    assert together.launcher.returncode != 0
    assert not together.run.info_path.exists() or together.run.info()["state"] == "failed", "the first process may have made the run"


@pytest.mark.parametrize("rank", ["0", "1", "all"])
def test_an_error_before_training_is_said_once_by_whichever_process_made_it(tmp_path: Path, rank: str):
    together = starts_badly(tmp_path, "fails", "reads its data", rank, 600)
    (message,) = messages(together.end())
    if rank == "1":  # the first process may have made the run meanwhile
        what = r"(did not get to its training|has stopped): process 1 of 2 has failed before training began: image 7 cannot be read"
        assert re.search(rf"run 'two' {what}", message), message
        assert not together.run.path.exists() or together.run.info()["state"] == "failed"
    else:
        assert message == "workbench: image 7 cannot be read" and not together.run.info_path.exists(), message


def test_accelerate_starts_two_processes_that_a_signal_stops_and_saves_once(tmp_path: Path):
    together = Together(tmp_path, "run", str(write_recipe(tmp_path, LONG)), "--name", "two", launcher=ACCELERATE)
    together.wait_for_step(2)
    assert together.run.info()["processes"] == 2
    together.launcher.send_signal(signal.SIGHUP)
    said = together.end()
    (step,) = together.run.checkpoint_steps()
    assert messages(said) == [f"workbench: stopped at step {step} and saved. Resume with: workbench run --resume two"], said


def test_accelerate_on_a_cpu_starts_one_process(tmp_path: Path):
    launcher = ("accelerate.commands.accelerate_cli", "launch", "--num_processes", "2", "--cpu")
    together = Together(tmp_path, "run", str(write_recipe(tmp_path, SHORT)), "--name", "two", launcher=launcher)
    said = together.end()
    assert together.launcher.returncode == 0, said
    assert together.run.info()["state"] == "done" and together.run.info()["processes"] == 1

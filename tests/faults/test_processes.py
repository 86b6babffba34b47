"""One of several processes of a run, or one that loads data, is killed, frozen or told to end; the others do not wait for it in silence."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.together import Together, messages
from tests.flows import command, write_recipe
from tests.patience import patience, wait_until
from workbench.errors import ConfigError
from workbench.store.run import Run, read_lines
from workbench.training.signs import has_ended, this_process, this_thread_works
from workbench.training.watch import FROZEN_SECONDS, SETTING, Watch, step_seconds

LONG: dict[str, Any] = {"train": {"steps": 4000, "checkpoint_every": 4000, "evaluate_every": 4000, "log_every": 1}}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_several_processes_saves_once_and_one_of_them_says_so(tmp_path: Path, number: signal.Signals):
    together = Together(tmp_path, "run", str(write_recipe(tmp_path, LONG)), "--name", "two")
    together.wait_for_step(2)
    together.launcher.send_signal(number)
    said = together.end()
    (step,) = together.run.checkpoint_steps()
    assert messages(said) == [f"workbench: stopped at step {step} and saved. Resume with: workbench run --resume two"], said
    assert together.run.info()["state"] == together.run.state() == "interrupted"


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_frozen_ends_the_others_with_one_message(tmp_path: Path, lost: int, how: signal.Signals):
    together = Together(tmp_path, "run", str(write_recipe(tmp_path, LONG)), "--name", "two", **{SETTING: "6"})
    together.wait_for_step(2)
    other, begun = together.rank(1 - lost), time.monotonic()
    together.rank(lost).send_signal(how)
    other.wait(patience(60))
    assert time.monotonic() - begun < patience(60)
    said = together.end()
    (message,) = messages(said)
    what = r"has ended after step \d+\." if how == signal.SIGKILL else r"has ended or is frozen after step \d+: it has given no sign"
    assert re.search(rf"run 'two' has stopped: process {lost} of 2 {what}.*workbench run --resume two", message)
    assert together.run.info()["state"] == "failed" and together.run.info()["error"] in message


def loading(process: psutil.Process) -> psutil.Process:
    """Returns the child that loads data; others come and go, such as the one that asks for the commit."""
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline())
            if "python" in words and "resource_tracker" not in words:
                return child
    raise AssertionError("no process loads data")


def test_a_process_that_loads_data_and_is_killed_is_one_message_with_the_last_step(tmp_path: Path):
    recipe = write_recipe(tmp_path, LONG, {"train": {"workers": 1}})
    arguments = ["run", str(recipe), "--name", "loading", "--device", "cpu", "--plain"]
    run = Run(Path(os.environ["WORKBENCH_RUNS"]) / "loading")
    with psutil.Popen(
        [sys.executable, "-m", "workbench", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            deadline = time.monotonic() + patience(120)
            while len(read_lines(run.metrics_path)) < 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            loading(process).kill()
            said = process.communicate(timeout=patience(60))[0]
        finally:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    (message,) = messages(said)
    assert re.search(r"after step \d+ a process that loads data has ended: .*train\.workers", message) and "Traceback" not in said
    assert process.returncode == 5 and run.info()["state"] == "failed"


class Shared(dict[str, bytes]):
    """Stands in for the store of torch."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self[key]

    def check(self, keys: list[str]) -> bool:
        return set(keys) <= set(self)


class Clock:
    """Seconds that a test sets; ``pass_`` looks every half second, as the thread does."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float, each: Callable[[], object]) -> None:
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            each()


@pytest.fixture
def pair() -> tuple[Watch, Watch, Clock]:
    store, clock = Shared(), Clock()
    first, second = (Watch(rank, 2, store, "run", 600, clock) for rank in (0, 1))
    return first, second, clock


def test_a_process_that_starts_or_has_left_is_not_lost(pair: tuple[Watch, Watch, Clock]):
    first, second, clock = pair
    first.at(0)
    clock.pass_(599, lambda: None if first.lost() is None else pytest.fail("it may still load its modules"))
    clock.pass_(5000, lambda: (second.beat(), first.lost() and pytest.fail("it may still read its data")))
    second.at(0)
    second.leave()
    with first.alone():
        clock.pass_(5000, lambda: None if first.lost() is None else pytest.fail("it left well, and the first evaluates"))


def test_a_process_that_has_not_begun_within_the_time_of_a_step_is_lost(pair: tuple[Watch, Watch, Clock]):
    first, _, clock = pair
    clock.pass_(601, first.lost)
    assert first.lost() == (1, "process 1 of 2 has not begun within 600 s", False, False)


def test_a_process_that_hangs_while_it_starts_or_evaluates_gives_no_signs():
    store, clock, working = Shared(), Clock(), [True]
    first = Watch(0, 2, store, "run", 600, clock)
    second = Watch(1, 2, store, "run", 600, clock, works=lambda: working[0])
    clock.pass_(5000, lambda: (second.beat(), first.lost() and pytest.fail("it reads its data")))
    working[0] = False
    clock.pass_(599, lambda: (second.beat(), first.lost() and pytest.fail("a disk may be slow")))
    clock.pass_(3, lambda: (second.beat(), first.lost()))
    found = first.lost()
    assert found is not None and found.what.startswith("process 1 of 2 has ended, is frozen or hangs before training began")
    assert first.speaks(found) and first.message(found)
    told = second.lost()
    assert told is not None and not second.speaks(told), "the process that hangs does not say that the first one has ended"


def test_a_thread_works_while_it_computes_or_waits_for_other_processes_and_not_while_it_sleeps():
    go_on, asked, working = threading.Event(), threading.Event(), list[Callable[[], bool]]()

    def wait() -> None:
        working.append(this_thread_works())
        asked.set()
        go_on.wait(patience(60))

    exec(compile("def exchange(wait): wait()", "exchange", "exec"), others := {"__name__": "torch.distributed.exchange"})
    for body, expected in ((wait, False), (lambda: others["exchange"](wait), True)):
        for one in (go_on, asked, working):
            one.clear()
        thread = threading.Thread(target=body)
        thread.start()
        asked.wait(patience(60))
        working[0]()
        wait_until(lambda expected=expected: working[0]() is expected, what=lambda expected=expected: f"works is {expected}")
        go_on.set()
        thread.join()
    works = this_thread_works()
    works()
    sum(range(1_000_000))
    assert works()


def test_a_process_of_this_machine_that_has_ended_is_known_to_have_ended():
    assert not has_ended(this_process()) and not has_ended("")
    with psutil.Popen([sys.executable, "-c", ""]) as process:
        machine = this_process().rpartition(" ")[0]
        wait_until(lambda: has_ended(f"{machine} {process.pid}"))  # not reaped yet
        process.wait()
        assert has_ended(f"{machine} {process.pid}") and not has_ended(f"another-machine {process.pid}")


def test_a_process_that_works_alone_may_take_hours_if_it_gives_signs(pair: tuple[Watch, Watch, Clock]):
    first, second, clock = pair
    for watch in pair[:2]:
        watch.at(7)
        watch.beat()
    with first.alone():
        clock.pass_(40_000, lambda: (first.beat(), second.lost() and pytest.fail("it evaluates")))
    first.beat()
    assert second.lost() is None, "the time of a step begins anew"


def test_a_process_that_hangs_while_its_signs_go_on_is_found_by_the_time_of_a_step(pair: tuple[Watch, Watch, Clock]):
    first, second, clock = pair
    for step, watch in ((8, first), (7, second)):
        watch.at(step)
        watch.beat()
    clock.pass_(599, lambda: (second.beat(), first.lost() and pytest.fail("a step may take so long")))
    clock.pass_(2, lambda: (second.beat(), first.lost()))
    found = first.lost()
    assert found is not None and found[0] == 1
    assert (
        f"step 9 has taken longer than 600 s. Process 1 of 2 is behind, at step 7. If a step takes so long here, set {SETTING}" in found[1]
    )


def test_a_frozen_process_is_found_within_a_minute_and_a_failed_one_says_why(pair: tuple[Watch, Watch, Clock]):
    first, second, clock = pair
    for watch in pair[:2]:
        watch.at(3)
        watch.beat()
    assert FROZEN_SECONDS < 55
    clock.pass_(FROZEN_SECONDS - 1, lambda: first.lost() and pytest.fail("too early"))
    clock.pass_(3, first.lost)
    found = first.lost()
    assert found is not None and found[0] == 1 and "process 1 of 2 has ended or is frozen after step 3" in found[1]
    second.leave("image 7 cannot be read")
    assert first.lost() == (1, "process 1 of 2 has failed after step 3: image 7 cannot be read", True, False)
    assert first.speaks(found) and not second.speaks(found) and second.speaks(found._replace(rank=0))
    assert not second.speaks(found._replace(rank=0, failed=True)), "the first process says itself why it failed"


def test_after_this_process_was_stopped_itself_the_others_get_their_time_again(pair: tuple[Watch, Watch, Clock]):
    first, second, clock = pair
    for watch in pair[:2]:
        watch.at(3)
        watch.beat()
    first.lost()
    clock.now += 10_000  # Ctrl-Z, or a machine that slept
    assert first.lost() is None
    second.beat()
    assert first.lost() is None


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_time_of_a_step_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str):
    monkeypatch.setenv(SETTING, given)
    with pytest.raises(ConfigError, match=f"{SETTING} is '{given}'"):
        step_seconds()
    code, _, said = command("run", str(write_recipe(tmp_path)), "--name", "x", "--device", "cpu", "--plain")
    assert code == 2 and SETTING in said and Run.find("x") is None

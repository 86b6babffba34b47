"""Workers: a search goes on whatever happens to them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.patience import patience, wait_until
from tests.search.examples import TableTrainer, opened, train_in_a_process
from workbench.errors import Interrupted
from workbench.search.candidate import Outcome
from workbench.search.records import TrialRecord
from workbench.search.study import SearchStudy
from workbench.search.workers import work


def everything(search: SearchStudy) -> list[TrialRecord]:
    return [record for name in search.studies for record in search.records(name)]


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A way to start worker processes in milliseconds: they are forks of a server that has imported everything and runs nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.search.worker_server"])
    started: list[Any] = []

    def start(folder: Path, trials: int) -> Any:
        process = context.Process(target=train_in_a_process, args=(str(folder), trials))
        with pytest.MonkeyPatch.context() as patch:
            # a page that a test of the dashboard ran in this process is still the main module, which workers would run too
            patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
            process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def running(search: SearchStudy) -> list[TrialRecord]:
    return [record for record in everything(search) if record.state == "RUNNING"]


def test_killed_workers_lose_no_trial_double_none_and_leave_none_running(tmp_path: Path, workers):
    folder, trials = tmp_path / "tried", 24
    opened(folder, trials=trials, sampler="recommended")
    search = SearchStudy.read(folder)
    seen: dict[tuple[str, int, bool], float | None] = {}
    working = [workers(folder, trials) for _ in range(2)]
    for killed in range(5):
        before = sum(record.trained for record in everything(search))
        # in the middle of a trial, after at least one more was finished
        wait_until(lambda before=before: sum(r.trained for r in everything(search)) > before and running(search), 60)
        seen |= {(r.study, r.number, r.repeat): r.value for r in everything(search) if r.state == "COMPLETE"}
        victim = working[killed % 2]
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        working[killed % 2] = workers(folder, trials)
    for worker in working:
        worker.join(patience(60))
        assert worker.exitcode == 0
    records = everything(search)
    assert {(r.study, r.number, r.repeat): r.value for r in records if r.state == "COMPLETE"}.items() >= seen.items()
    assert not [record for record in records if record.open]
    dead = [record for record in records if record.state == "FAIL"]
    assert len(dead) >= 1 and all("was killed" in record.reason for record in dead)
    formulas = [record for record in records if record.study == "logits" and not record.repeat]
    assert sum(record.trained for record in formulas) == trials
    assert max(Counter(record.canonical for record in formulas if record.state == "COMPLETE").values()) == 1
    lost = {record.canonical for record in formulas if record.state == "FAIL"}
    assert lost <= {record.canonical for record in formulas if record.state != "FAIL"}, "the candidate of a killed worker is tried again"
    assert len({(r.study, r.repeat_of, r.seed) for r in records if r.repeat and r.state == "COMPLETE"}) == 8


def test_a_trial_whose_worker_lives_is_left_alone(tmp_path: Path):
    search = opened(tmp_path)
    mine = search.ask("logits")
    other = opened(tmp_path)
    assert other.sweep() == []
    assert other.ask("logits").number == 1
    search.tell(mine, Outcome(0.5))
    assert [record.state for record in search.records("logits")] == ["COMPLETE", "RUNNING"]


def test_a_candidate_whose_workers_die_three_times_is_given_up(tmp_path: Path):
    search = opened(tmp_path, trials=2)
    for _ in range(3):
        search.ask("logits").lock.close()  # as the kernel does when the process ends
        search.sweep()
    records = search.records("logits")
    assert [record.state for record in records] == ["FAIL", "FAIL", "FAIL"]
    assert len({record.canonical for record in records}) == 1
    assert [record.retry_of for record in records] == [None, 0, 1]
    assert work(search, TableTrainer())
    assert sum(record.trained for record in search.records("logits")) == 2


def test_a_trial_that_was_killed_while_it_was_proposed_is_failed_and_forgotten(tmp_path: Path):
    search = opened(tmp_path)
    search.study("logits").ask()  # no choices yet
    assert search.sweep() == [("logits", 0)]
    assert [record.state for record in search.records("logits")] == ["FAIL"]
    assert work(search, TableTrainer())


def test_stop_lets_a_worker_end_after_its_trial(tmp_path: Path):
    search = opened(tmp_path)

    class Stopping(TableTrainer):
        def train(self, *given):
            search.stop_path.touch()
            return super().train(*given)

    assert not work(search, Stopping())
    assert [record.state for record in search.records("logits")] == ["COMPLETE"]
    search.stop_path.unlink()
    assert work(search, TableTrainer())


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_ends_after_the_trial_and_twice_at_once(tmp_path: Path, presses: int):
    search = opened(tmp_path)

    class Pressed(TableTrainer):
        def train(self, *given):
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return super().train(*given)

    with pytest.raises(Interrupted, match="The same command continues it"):
        work(search, Pressed())
    states = [record.state for record in search.records("logits")]
    assert states == (["COMPLETE"] if presses == 1 else ["FAIL", "WAITING"])
    assert work(search, TableTrainer())
    assert sum(record.trained for record in search.records("logits")) == 6


def test_an_error_of_the_trainer_is_recorded_with_its_text_and_ends_the_worker(tmp_path: Path):
    search = opened(tmp_path)

    class Broken(TableTrainer):
        def train(self, *given):
            raise ArithmeticError("the sum is odd")

    with pytest.raises(ArithmeticError):
        work(search, Broken())
    (record,) = search.records("logits")
    assert (record.state, record.reason) == ("FAIL", "ArithmeticError: the sum is odd")


def test_workers_that_wait_train_the_repeats_of_the_last_trials(tmp_path: Path):
    searches = [opened(tmp_path, inputs=["logits", "localization"], trials=5) for _ in range(3)]
    threads = [threading.Thread(target=work, args=(search, TableTrainer(seconds=0.02))) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(30))
    records = everything(searches[0])
    assert not [record for record in records if record.open or record.state == "FAIL"]
    for name, trials in (("logits", 5), ("localization", 5), ("shares", 3)):
        own = [record for record in records if record.study == name]
        assert sum(record.trained for record in own) == trials
        assert set(Counter(record.repeat_of for record in own if record.repeat).values()) == {2}


def test_a_formula_that_repeats_itself_is_trained_once(tmp_path: Path):
    search, trainer = opened(tmp_path, sampler="family", inputs=["localization"], trials=25), TableTrainer()
    assert work(search, trainer)
    records = [record for record in search.records("localization") if not record.repeat]
    copies = [record for record in records if record.same_as is not None]
    assert copies and all(record.value == records[record.same_as].value and record.seconds == 0 for record in copies)
    firsts = [candidate for candidate, seed in trainer.trained if seed == 0 and ";" not in candidate]
    assert max(Counter(one for one in firsts if one.endswith("at 3")).values()) <= 2  # once here, once as a share


def test_a_formula_that_cannot_work_is_refused_before_it_is_trained(tmp_path: Path):
    search, trainer = opened(tmp_path, inputs=["logits"], mode="official", trials=40, sampler="random"), TableTrainer()
    assert work(search, trainer)
    refused = [record for record in search.records("logits") if record.gate == "R0"]
    assert refused and all(record.state == "PRUNED" and record.reason for record in refused)
    assert not {record.candidate for record in refused} & {candidate for candidate, _ in trainer.trained}
    assert sum(record.trained for record in search.records("logits")) == 40

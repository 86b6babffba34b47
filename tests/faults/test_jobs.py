"""A signal during a job that is no run: the build of a cache, a search, a cell of a notebook."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.flows import command, write_recipe
from tests.patience import patience
from tests.search.examples import TableTrainer, opened
from tests.teacher_cache.teachers import CACHED
from workbench.files import hash_file
from workbench.search.workers import work
from workbench.store.run import Run
from workbench.teacher_cache.ask_teacher import RowMaker
from workbench.teacher_cache.folders import caches_root


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """The command line's own way to end, as every verb has it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    command("--help")
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_the_build_of_a_cache_keeps_its_shards_and_the_next_build_makes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, wanted: int
):
    monkeypatch.setattr("workbench.teacher_cache.build.SHARD_ROWS", 8)
    recipe = str(write_recipe(tmp_path, CACHED))
    assert command("cache", "build", recipe, "--accept")[0] == 0
    (folder,) = [path for path in caches_root().iterdir() if path.is_dir()]
    whole = {path.name: hash_file(path) for path in folder.iterdir() if path.suffix == ".safetensors"}
    assert len(whole) > 3
    assert command("cache", "prune", folder.name)[0] == 0
    rows, calls = RowMaker.rows, [0]

    def stopping(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        return rows(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RowMaker, "rows", stopping)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
        try:
            code, _, said = command("cache", "build", recipe, "--accept")
        finally:
            signal.signal(signal.SIGINT, before)
    assert code == wanted and "Traceback" not in said
    assert not list(folder.glob(".*.partial"))
    code, out, _ = command("cache", "build", recipe, "--accept")
    assert code == 0, out
    assert {path.name: hash_file(path) for path in folder.iterdir() if path.suffix == ".safetensors"} == whole


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_a_search_queues_its_trial_again(tmp_path: Path, number: signal.Signals, wanted: int):
    search = opened(tmp_path)

    class Ended(TableTrainer):
        def train(self, candidate: Any, seed: int, rung: Any) -> Any:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
            return super().train(candidate, seed, rung)

    with pytest.raises(SystemExit) as ended:
        work(search, Ended())
    assert ended.value.code == wanted
    assert [record.state for record in search.records("logits")] == ["FAIL", "WAITING"]
    assert work(search, TableTrainer())
    assert sum(record.trained for record in search.records("logits")) == 6


def answer(client: Any, cell: str) -> Any:
    """What became of a cell; a kernel also answers what was asked when it started."""
    while True:
        message = client.get_shell_msg(timeout=patience(60))
        if message["parent_header"].get("msg_id") == cell:
            return message["content"]


def test_the_interrupt_of_a_notebook_saves_the_run_and_the_next_cell_works(tmp_path: Path):
    from jupyter_client.manager import start_new_kernel

    recipe = write_recipe(tmp_path, {"train": {"steps": 4000, "checkpoint_every": 4000, "evaluate_every": 4000}})
    manager, client = start_new_kernel(cwd=str(ROOT), env={**os.environ, "PYTHONPATH": str(ROOT)}, startup_timeout=patience(60))
    run = Run(Path(os.environ["WORKBENCH_RUNS"]) / "cell")
    try:
        cell = client.execute(f"import workbench.notebook as wb\nwb.train({str(recipe)!r}, name='cell', device='cpu')")
        deadline = time.monotonic() + patience(120)
        while not (run.metrics_path.is_file() and run.metrics_path.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        manager.interrupt_kernel()
        said = answer(client, cell)
        after = answer(client, client.execute("1 + 1"))
        while after["status"] == "aborted" and time.monotonic() < deadline:  # sent before the kernel was done with the error
            after = answer(client, client.execute("1 + 1"))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert said["ename"] == "Interrupted" and "and saved. Resume with: workbench run --resume cell" in said["evalue"], said
    assert after["status"] == "ok" and run.info()["state"] == "interrupted" and len(run.checkpoint_steps()) == 1

"""The machine gives out: a full disk at each write of a verb, too little memory, a clock that is set, two readers beside a writer."""

import builtins
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import ROOT
from tests.faults.conftest import SAVED
from tests.faults.counting import tried
from tests.faults.mutations import FUZZED
from tests.flows import command, write_recipe
from tests.patience import patience
from workbench.files import hash_file
from workbench.services.servers import lookup_server, register_server
from workbench.store.queries import read_queries
from workbench.store.run import Run, append_line, list_runs
from workbench.views.catalog import catalog

KEYS = ["step", "image_id", "model", "layer", "query", "match"]
WRITES = 5  # of a verb; the first, the last and some between are tried
ALL_WRITES = FUZZED.max_examples > 1000  # as make fuzz does


class Disk:
    """Counts writes below a folder, and refuses one of them as a full disk does."""

    def __init__(self, folder: Path, full_at: int | None = None):
        self.folder, self.full_at, self.writes = str(folder), full_at, 0

    def write(self) -> None:
        self.writes += 1
        if self.writes - 1 == self.full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Every file that Python opens to write there, and every file or folder that is written whole."""
        opened, synced = builtins.open, os.fsync

        def opening(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, (str, Path)) and str(file).startswith(self.folder) and set(mode) & set("wax+") and ".lock" not in str(file):
                self.write()
            return opened(file, mode, *arguments, **options)

        def syncing(handle: int) -> None:
            self.write()
            synced(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builtins, "open", opening)
            patch.setattr(io, "open", opening)
            patch.setattr(os, "fsync", syncing)
            yield


VERBS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "run": lambda folder: ("run", str(folder / "tiny.yaml"), "--name", "new", "--device", "cpu", "--plain"),
    "resume": lambda folder: ("run", "--resume", "interrupted", "--device", "cpu", "--plain"),
    "evaluate": lambda folder: ("evaluate", "distilled", "--json", str(folder / "evaluated.json")),
    "record": lambda folder: ("record", "interrupted"),
    "diagnose": lambda folder: ("diagnose", "distilled", "--json", str(folder / "diagnosed.json")),
    "report": lambda folder: ("report", "distilled", "--out", str(folder / "report.html")),
    "show": lambda folder: ("runs", "show", "distilled", "--json", str(folder / "shown.json")),
    "predict": lambda folder: ("predict", "distilled", str(folder / "images"), "--out", str(folder / "predicted")),
    "export": lambda folder: ("export", "distilled", "--transformers", "--out", str(folder / "exported")),
}


def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stored runs, a recipe and an image, which the verbs use."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "images" / "a.png")
    for name in ("distilled", "interrupted"):
        shutil.copytree(SAVED / name, folder / "runs" / name)
    write_recipe(folder)
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_disk_that_is_full_at_any_write_of_a_verb_is_one_message_and_loses_nothing(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = fresh(tmp_path / "counted", monkeypatch)
    counted = Disk(folder)
    with counted.used():
        assert command(*VERBS[verb](folder))[0] == 0
    assert counted.writes
    places = list(range(counted.writes))
    if not ALL_WRITES and len(places) > WRITES:
        places = sorted({round(number * (len(places) - 1) / (WRITES - 1)) for number in range(WRITES)})
    for place in places:
        folder = fresh(tmp_path / str(place), monkeypatch)
        before = {path: hash_file(path) for path in folder.rglob("*") if path.is_file() and path.suffix not in (".json", ".jsonl")}
        if verb == "resume":  # its tables and checkpoints are its own to replace; that they are whole shows when it is resumed again
            before = {path: value for path, value in before.items() if "interrupted" not in path.parts}
        if verb == "record":  # it may replace the rows of the step that it records, by rows of this processor; they stay whole
            before = {path: value for path, value in before.items() if not {"interrupted", "queries", "step=4"} <= set(path.parts)}
        full = Disk(folder, place)
        with full.used():
            code, _, said = command(*VERBS[verb](folder))
        if full.writes <= place:  # this process still holds what it has written at first
            continue
        tried()
        if code:  # what is only kept to be faster may be left out without a word
            assert said.count("workbench: ") == 1 and "No space left on device" in said and "Traceback" not in said, said
        assert {path: hash_file(path) for path in before} == before
        if verb == "record":
            there, stored = (read_queries(Run(runs / "interrupted"), "val", [4]) for runs in (folder / "runs", SAVED))
            assert there[KEYS].equals(stored[KEYS])
            np.testing.assert_allclose(there["score"], stored["score"], atol=1e-4)
        assert not [path for path in folder.rglob("*.partial")]
        again = VERBS[verb](folder)
        if verb == "run" and Run.find("new") is not None:
            again = ("run", "--resume", "new", "--device", "cpu", "--plain")
        if verb == "predict":  # what it has written it does not replace
            again = (*again[:-1], str(folder / "elsewhere"))
        if code:
            assert command(*again)[0] == 0
        shutil.rmtree(folder)


def run_within(tmp_path: Path, limit: str, recipe: Path) -> tuple[int, str]:
    """``workbench run`` in a process that has set itself a limit once all is imported."""
    code = (
        "import resource, torch, psutil, sys\n"
        "import workbench.training.launch\n"
        "from workbench.cli import main\n"
        f"resource.setrlimit(*{limit})\n"
        f"sys.argv = ['workbench', 'run', {str(recipe)!r}, '--name', 'limited', '--device', 'cpu', '--plain']\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=patience(120))
    return done.returncode, done.stdout + done.stderr


def test_too_little_memory_is_one_message_and_the_run_has_failed(tmp_path: Path):
    recipe = write_recipe(tmp_path, {"data": {"options": {"train": 600}}, "train": {"batch_size": 600}})
    limit = "(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (400 << 20),) * 2)"
    code, said = run_within(tmp_path, limit, recipe)
    assert code == 5 and said.count("workbench: ") == 1 and "Traceback" not in said, said
    assert "there is too little memory" in said and "train.accumulate" in said
    assert Run.open("limited").info()["state"] == "failed"


def test_a_file_that_may_not_grow_is_one_message_and_the_run_goes_on_where_it_was(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    code, said = run_within(tmp_path, "(resource.RLIMIT_FSIZE, (60_000, 60_000))", recipe)
    assert code and said.count("workbench: ") == 1 and "Traceback" not in said, said
    assert "File too large" in said and Run.open("limited").info()["state"] == "failed"
    assert command("run", "--resume", "limited", "--device", "cpu", "--plain")[0] == 0


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_is_set_while_a_run_is_trained_changes_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int):
    recipe = str(write_recipe(tmp_path, {"train": {"steps": 4, "checkpoint_every": 2}}))
    assert command("run", recipe, "--name", "before", "--device", "cpu", "--plain")[0] == 0
    now, calls = time.time, [0]

    def set_back_and_forth() -> float:
        calls[0] += 1
        return now() + (years * 365 * 86400 if calls[0] % 2 else 0)

    monkeypatch.setattr(time, "time", set_back_and_forth)
    assert command("run", recipe, "--name", "during", "--device", "cpu", "--plain")[0] == 0
    one, other = Run.open("before"), Run.open("during")
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()
    assert all(0 <= line["wall"] < 3600 for line in other.timings()) and other.state() == "done"
    when = now() + years * 365 * 86400
    for path in other.path.rglob("*"):
        os.utime(path, (when, when))
    assert [entry.run.name for entry in catalog(Path(os.environ["WORKBENCH_RUNS"]))] == ["before", "during"]
    assert command("report", "during", "--out", str(tmp_path / "report.html"))[0] == 0


def test_a_server_is_found_after_the_clock_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    register_server(tmp_path / "server.json", os.getpid(), 1)
    boot = psutil.boot_time()
    for place in ("psutil.boot_time", "psutil._psplatform.boot_time"):
        monkeypatch.setattr(place, lambda: boot + 86400)  # the system works it out from the time of day
    assert lookup_server(tmp_path / "server.json") is not None


def test_two_readers_see_a_whole_run_while_it_is_written(runs_folder: Path):
    run = Run.create("written", {"state": "running", "classes": ["a"], "group": {"recipe": "r", "arm": "a", "seed": 0, "schedule": "s"}})
    over, faults, seen = threading.Event(), list[Exception](), [0, 0]

    def read(reader: int) -> None:
        own = Run(run.path)
        try:
            while not over.is_set():
                lines = [line["step"] for line in own.metrics()]
                assert lines == list(range(1, len(lines) + 1))
                assert own.info()["best_step"] >= 0 if "best_step" in own.info() else True
                assert [each.name for each in list_runs()] == ["written"] and len(catalog(runs_folder)) == 1
                seen[reader] += 1
        except Exception as error:
            faults.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    with run.locked():
        for reader in readers:
            reader.start()
        deadline, step = time.monotonic() + patience(20), 0
        while (step < 200 or min(seen) < 20) and time.monotonic() < deadline and not faults:
            step += 1
            append_line(run.metrics_path, {"step": step, "loss": 0.5})
            if step % 5 == 0:
                run.save_logs()
                run.update_info(best_step=step)
            if step % 50 == 0:  # as a run that is resumed from an earlier checkpoint does
                run.update_info(saved_logs={})
                kept = "".join(line + "\n" for line in run.metrics_path.read_text().splitlines()[: step // 2])
                run.metrics_path.with_name("new").write_text(kept)
                os.replace(run.metrics_path.with_name("new"), run.metrics_path)
                run.save_logs()
                for again in range(step // 2 + 1, step + 1):
                    append_line(run.metrics_path, {"step": again, "loss": 0.5})
        over.set()
        for reader in readers:
            reader.join(patience(30))
    assert not faults, faults
    assert min(seen) >= 20
    tried(sum(seen))

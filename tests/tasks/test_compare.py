"""Comparisons: which runs there are and in what order, what is kept, what equal compute means, what the table says."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.flows import DISTILLED, InProcess, write_recipe
from workbench.errors import ConfigError, RunError
from workbench.recipe.loading import load_recipe
from workbench.store.groups import EQUAL_COMPUTE, EQUAL_STEPS
from workbench.store.run import Run, append_line
from workbench.tasks import compare as comparison
from workbench.tasks.compare import Row, compare_rows, execute, notes, plan, seed_table, state


def replace_processes(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(comparison, "subprocess", SimpleNamespace(Popen=kind, DEVNULL=None, STDOUT=None))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Rows run in this process; the list of commands."""
    InProcess.started.clear()
    replace_processes(monkeypatch, InProcess)
    monkeypatch.setattr(comparison, "time", SimpleNamespace(sleep=lambda seconds: None))
    return InProcess.started


def test_rows_are_named_after_recipe_arm_and_seed_and_equal_compute_comes_last(tmp_path: Path):
    path = write_recipe(tmp_path, DISTILLED)
    rows = plan(path, ["undistilled", "distilled"], [4, 5], ["distilled"], prefix="quick-")
    assert [(row.name, row.seed, row.schedule) for row in rows] == [
        ("quick-tiny-undistilled-seed4", 4, EQUAL_STEPS),
        ("quick-tiny-distilled-seed4", 4, EQUAL_STEPS),
        ("quick-tiny-undistilled-seed5", 5, EQUAL_STEPS),
        ("quick-tiny-distilled-seed5", 5, EQUAL_STEPS),
        ("quick-tiny-distilled-equal-compute-seed4", 4, EQUAL_COMPUTE),
        ("quick-tiny-distilled-equal-compute-seed5", 5, EQUAL_COMPUTE),
    ]


def test_an_arm_that_the_recipe_lacks_is_refused_with_those_it_has(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no arm 'distiled'\. Its arms are distilled, undistilled"):
        plan(write_recipe(tmp_path, DISTILLED), ["distiled"], [0], [])


def test_the_recipe_as_written_is_its_own_arm_whatever_is_overridden(tmp_path: Path):
    path = write_recipe(tmp_path, DISTILLED)
    assert load_recipe(path, arm="distilled").methods and not load_recipe(path, arm="undistilled").methods
    assert not load_recipe(path, ["methods=[]"], "distilled").methods


def test_a_comparison_trains_what_is_missing_once(tmp_path: Path, in_process: list[list[str]], runs_folder: Path):
    path = write_recipe(tmp_path, DISTILLED)
    rows = plan(path, ["undistilled", "distilled"], [0], ["distilled"])
    watched: list[list[str]] = []
    overrides = ["train.steps=4", "train.evaluate_every=2"]
    execute(rows, 1, overrides, watch=lambda runs: watched.append([run.name for run in runs]))
    assert len(in_process) == 3 and [state(row) for row in rows] == ["done"] * 3
    infos = [Run.open(row.name).info() for row in rows]
    assert [(info["group"]["arm"], info["group"]["schedule"]) for info in infos] == [
        ("undistilled", EQUAL_STEPS), ("distilled", EQUAL_STEPS), ("distilled", EQUAL_COMPUTE),
    ]  # fmt: skip
    assert [info["recipe"]["train"]["steps"] for info in infos[:2]] == [4, 4]
    # a distilled step costs more than an undistilled one
    assert 1 <= infos[2]["recipe"]["train"]["steps"] <= 4
    frame = compare_rows(rows)
    assert list(frame["arm"]) == ["teacher", "undistilled", "distilled", "distilled"]
    files = {file: file.stat().st_mtime_ns for file in runs_folder.rglob("*") if file.is_file() and "derived" not in file.parts}
    execute(rows, 1, overrides)
    assert len(in_process) == 3
    after = {file: file.stat().st_mtime_ns for file in runs_folder.rglob("*") if file.is_file() and "derived" not in file.parts}
    assert after == files


def test_a_row_really_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[Any] = []

    def counting(command: list[str], **options: Any) -> Any:
        started.append(command)
        return subprocess.Popen(command, **options)

    replace_processes(monkeypatch, counting)
    (row,) = plan(write_recipe(tmp_path), ["undistilled"], [7], [])
    execute([row], 1)
    assert state(row) == "done" and started[0][:5] == [sys.executable, "-P", "-m", "workbench", "run"]
    assert Run.open(row.name).info()["seed"] == 7


def test_a_finished_row_of_another_recipe_is_not_passed_off_as_the_one_asked_for(tmp_path: Path, in_process: list[list[str]]):
    path = write_recipe(tmp_path)
    rows = plan(path, ["undistilled"], [0], [])
    execute(rows, 1)
    with pytest.raises(RunError, match=r"train.steps 2, now 3.*runs rm tiny-undistilled-seed0"):
        execute(rows, 1, ["train.steps=3"])
    write_recipe(tmp_path, {"train": {"learning_rate": 5e-3}})
    with pytest.raises(RunError, match=r"train.learning_rate 0.001, now 0.005"):
        execute(rows, 1)
    write_recipe(tmp_path, {"note": "words change no result"}, {"arms": {"more": {"train": {"steps": 9}}}})
    execute(rows, 1)
    assert len(in_process) == 1


def test_what_is_kept_of_a_comparison_does_not_outlive_the_code(
    tmp_path: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    (row,) = plan(write_recipe(tmp_path), ["undistilled"], [0], [])
    execute([row], 1)
    kept = Run.open(row.name).path / "derived"
    (before,) = kept.glob("settings-*.json")
    execute([row], 1)
    assert list(kept.glob("settings-*.json")) == [before]
    monkeypatch.setattr("workbench.tasks.same_settings.code_hash", lambda: "other code")
    monkeypatch.setattr("workbench.training.launch.changes_since", lambda *_: ["train.ema 0, now 1"])
    with pytest.raises(RunError, match=r"train\.ema 0, now 1"):
        execute([row], 1)


def test_data_that_was_moved_is_compared_each_time(tmp_path: Path, in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    (row,) = plan(write_recipe(tmp_path), ["undistilled"], [0], [])
    execute([row], 1)
    for found in ([], ["data shapes, now elsewhere"]):
        monkeypatch.setattr("workbench.training.launch.other_data", lambda *_, found=found: found)
        if found:
            with pytest.raises(RunError, match="now elsewhere"):
                execute([row], 1, data="elsewhere")
        else:
            execute([row], 1, data="elsewhere")


def test_a_wrong_override_is_refused_before_anything_starts(tmp_path: Path, in_process: list[list[str]]):
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        execute(plan(write_recipe(tmp_path), ["undistilled"], [0], []), 1, ["train.stepps=3"])
    assert not in_process


def test_a_failed_row_ends_the_comparison_with_the_end_of_its_log(tmp_path: Path, in_process: list[list[str]]):
    path = write_recipe(tmp_path, DISTILLED, {"data": {"options": {"classes": ["ring", "bar"]}}})
    with pytest.raises(RunError, match=r"run 'tiny-undistilled-seed0' ended with code 8:\n.*the teacher does not know 'ring', 'bar'"):
        execute(plan(path, ["undistilled", "distilled"], [0], []), 1)
    assert len(in_process) == 1


@pytest.mark.usefixtures("in_process")
def test_one_row_makes_the_teacher_while_the_others_wait(tmp_path: Path, runs_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("workbench.training.launch.check_teacher", lambda setup: 0.5)
    write_recipe(tmp_path, {"name": "big"})
    path = write_recipe(tmp_path, DISTILLED, {"teacher": {"recipe": "big.yaml"}, "name": "small"})
    path.write_text(path.read_text().replace("  checkpoint: shapes_teacher\n", ""))

    there_at_start: list[bool] = []

    class Slow:
        """Does its work only when asked a third time."""

        def __init__(self, arguments: list[str], stdout: Any, **_: Any):
            there_at_start.append((runs_folder / "big-undistilled-seed0" / "run.json").exists())
            self.arguments, self.log, self.asked = arguments, Path(stdout.name), 0

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked < 3:
                return None
            with open(self.log, "ab") as log:
                self.returncode = InProcess(self.arguments, log).poll()
            return self.returncode

        def terminate(self) -> None: ...
        def wait(self) -> None: ...

    replace_processes(monkeypatch, Slow)
    execute(plan(path, ["undistilled", "distilled"], [0], []), 2)
    assert there_at_start == [False, True]
    assert [Run.open(f"small-{arm}-seed0").info()["teacher"] for arm in ("undistilled", "distilled")] == ["big-undistilled-seed0"] * 2


def fixture_run(row: Row, steps: int, done: bool, timings: list[tuple[int, float, float]], device: str = "cpu") -> None:
    run = Run.create(row.name, {"state": "done" if done else "running", "device": device,
                                "recipe": load_recipe(row.recipe, [f"train.steps={steps}"]).model_dump(mode="json")})  # fmt: skip
    for step, cpu, wall in timings:
        append_line(run.timings_path, {"step": step, "cpu": cpu, "wall": wall})


@pytest.mark.parametrize(("device", "expected"), [("cpu", 71), ("cuda:0", 62)])
def test_equal_compute_steps_are_the_baselines_seconds_over_the_arms_seconds_a_step(tmp_path: Path, device: str, expected: int):
    """Baseline: 100 steps in 50 CPU and 30 wall seconds. Arm: 40 steps in 28 and 19.2, so 0.7 and 0.48 a step: 71.4 and 62.5 steps."""
    path = write_recipe(tmp_path, DISTILLED)
    rows = plan(path, ["undistilled", "distilled"], [0], ["distilled"])
    fixture_run(rows[0], 100, True, [(50, 24.0, 14.0), (100, 50.0, 30.0)], device)
    fixture_run(rows[1], 100, False, [(20, 15.0, 9.0), (40, 28.0, 19.2)], device)
    assert comparison._steps(rows[2], rows) == expected


def test_equal_compute_waits_for_the_baselines_end_and_a_quarter_of_the_arm(tmp_path: Path):
    path = write_recipe(tmp_path, DISTILLED)
    rows = plan(path, ["undistilled", "distilled"], [0], ["distilled"])
    assert comparison._steps(rows[2], rows) is None
    fixture_run(rows[0], 100, False, [(100, 50.0, 30.0)])
    fixture_run(rows[1], 100, False, [(24, 15.0, 9.0)])
    assert comparison._steps(rows[2], rows) is None
    Run.open(rows[0].name).update_info(state="done")
    assert comparison._steps(rows[2], rows) is None
    append_line(Run.open(rows[1].name).timings_path, {"step": 25, "cpu": 25.0, "wall": 10.0})
    assert comparison._steps(rows[2], rows) == 50


def test_an_interrupted_equal_compute_row_keeps_its_steps(tmp_path: Path):
    rows = plan(write_recipe(tmp_path, DISTILLED), ["undistilled", "distilled"], [0], ["distilled"])
    fixture_run(rows[2], 37, False, [])
    assert comparison._steps(rows[2], rows) == 37


def test_overrides_cannot_change_the_steps_of_an_equal_compute_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of two values for a key the last one wins, and the computed one comes last."""
    seen: list[list[str]] = []
    replace_processes(monkeypatch, lambda command, **_: seen.append(command))
    row = plan(write_recipe(tmp_path, DISTILLED), ["undistilled", "distilled"], [0], ["distilled"])[2]
    comparison._start(row, 31, ["train.steps=999", "train.batch_size=8"], None, "cpu", tmp_path / "log")
    changes = [seen[0][at + 1] for at, word in enumerate(seen[0]) if word == "--set"]
    recipe = load_recipe(row.recipe, changes)
    assert recipe.train.steps == 31 and recipe.train.batch_size == 8


def test_equal_compute_without_a_baseline_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="equal compute for 'distilled' needs the arms 'undistilled' and 'distilled'"):
        plan(write_recipe(tmp_path, DISTILLED), ["distilled"], [0], ["distilled"])


def row_of(arm: str, seed: int, ap: float | None, schedule: str = EQUAL_STEPS, steps: int = 100, seconds: float = 60.0) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "schedule": schedule, "steps": steps, "ap": ap, "compute_seconds": seconds}


def cells(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_the_table_of_seeds_has_means_ranges_and_paired_differences():
    """Undistilled 30, 36, 33: mean 33. Distilled 40, 41, 45: mean 42, differences 10, 5, 12: mean 9."""
    frame = pd.DataFrame(
        [
            {"arm": "teacher", "seed": None, "schedule": None, "steps": None, "ap": 0.6, "compute_seconds": None},
            *(row_of("undistilled", seed, ap, seconds=60 + seed) for seed, ap in enumerate((0.30, 0.36, 0.33))),
            *(row_of("distilled", seed, ap) for seed, ap in enumerate((0.40, 0.41, 0.45))),
            *(row_of("distilled", seed, ap, EQUAL_COMPUTE, 70 + seed) for seed, ap in enumerate((0.29, 0.35, 0.38))),
        ],
        dtype=object,
    )
    found = cells(seed_table(frame))
    assert found[0] == [
        "arm", "schedule", "steps", "seed 0", "seed 1", "seed 2", "mean AP", "range", "difference to undistilled", "compute",
    ]  # fmt: skip
    assert {len(line) for line in found} == {10}
    assert found[2] == ["undistilled", "equal steps", "100", "30.0", "36.0", "33.0", "33.0", "30.0 to 36.0", "-", "60 to 62 s"]
    assert found[3] == [
        "distilled", "equal steps", "100", "40.0", "41.0", "45.0", "42.0", "40.0 to 45.0", "+9.0 (+10.0, +5.0, +12.0)", "60 s",
    ]  # fmt: skip
    # 29 - 30, 35 - 36 and 38 - 33
    assert found[4][2:] == ["70 to 72", "29.0", "35.0", "38.0", "34.0", "29.0 to 38.0", "+1.0 (-1.0, -1.0, +5.0)", "60 s"]


def test_the_table_of_seeds_leaves_open_what_is_not_known_and_pairs_only_what_is_there():
    frame = pd.DataFrame(
        [row_of("undistilled", 0, 0.30), row_of("undistilled", 1, None), row_of("distilled", 1, 0.50), row_of("distilled", 2, None),
         row_of("distilled", 0, 0.37), row_of("uniform", 3, None)], dtype=object,
    )  # fmt: skip
    found = {line[0]: line for line in cells(seed_table(frame))}
    assert found["distilled"][3:9] == ["37.0", "50.0", "-", "-", "43.5", "37.0 to 50.0"]
    assert found["distilled"][9] == "+7.0 (+7.0)"
    assert found["uniform"][7:10] == ["-", "-", "-"]


def test_a_comparison_says_which_of_its_methods_are_re_implementations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    for name, methods in (("a", ["detrdistill", "clockdistill"]), ("b", ["clockdistill"]), ("c", [])):
        Run.create(name, {"recipe": {"methods": [{"method": method} for method in methods]}})
    frame = pd.DataFrame({"run": ["shapes_teacher", "a", "b", "c"], "arm": ["teacher", "x", "y", "undistilled"]})
    (note,) = notes(frame)
    assert note.startswith("clockdistill: re-implementation of CLoCKDistill")

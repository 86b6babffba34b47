import os
from pathlib import Path

from tests.views.test_catalog import make
from workbench.store.run import append_line
from workbench.views.caches_and_runs import health, pace, runs_table, sizes, sizes_figure
from workbench.views.catalog import catalog


def test_sizes_are_of_the_files_themselves_and_links_count_nothing(tmp_path: Path):
    run = make(tmp_path / "runs", "a")
    (run.path / "checkpoints" / "0000001").mkdir(parents=True)
    (run.path / "checkpoints" / "0000001" / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "large").write_bytes(b"x" * 5000)
    os.symlink(tmp_path / "outside", run.path / "queries")
    os.symlink(tmp_path / "outside" / "large", run.path / "link")
    found = sizes(run.path)
    assert (found["checkpoints"], found["queries"], found["logs"]) == (1000, 0, run.info_path.stat().st_size)
    assert found["files"] == 2
    assert sizes(tmp_path / "gone")["files"] == 0


def test_health_names_what_is_wrong(tmp_path: Path):
    make(tmp_path, "good")
    make(tmp_path, "left", state="running")
    make(tmp_path, "bad", state="failed", error="NaN in layer 1")
    (make(tmp_path, "half").path / "queries" / "split=val" / "step=10").mkdir(parents=True)
    entries = {entry.run.name: entry for entry in catalog(tmp_path)}
    assert health(entries["good"]) == ""
    assert "--resume left" in health(entries["left"])
    assert health(entries["bad"]) == "failed: NaN in layer 1"
    assert health(entries["half"]) == "incomplete: step=10"
    table = runs_table(list(entries.values()), {name: sizes(entry.run.path) for name, entry in entries.items()}).set_index("run")
    assert table.loc["good", "health"] == "good"
    assert len(sizes_figure(table.reset_index()).data[0].y) == 4


def test_pace_is_of_the_last_lines_and_says_what_remains(tmp_path: Path):
    run = make(tmp_path, "a")
    assert pace(run, 0, 100) == (None, None)
    for step, wall in ((10, 5.0), (20, 10.0), (30, 15.0)):
        append_line(run.timings_path, {"step": step, "wall": wall, "cpu": wall})
    assert pace(run, 30, 100) == (2.0, 35.0)

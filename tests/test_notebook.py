"""The library as notebooks use it: a run is made once, and one made otherwise is never taken for it."""

from pathlib import Path

import pytest

import workbench.notebook as wb
from tests.app.example_runs import runs_in
from workbench.errors import RunError
from workbench.training.loop import Silent

TINY = ["train.steps=4", "train.evaluate_every=2", "train.checkpoint_every=4", "train.batch_size=2",
        "data.options.train=4", "data.options.val=3", "data.options.test=3"]  # fmt: skip


def test_a_run_is_trained_once_then_opened_and_another_recipe_under_its_name_is_refused(tmp_path: Path):
    with runs_in(tmp_path):
        run = wb.train("shapes", arm="undistilled", overrides=TINY, device="cpu", listener=Silent())
        assert run.name == "shapes-undistilled-seed0"
        before = run.metrics_path.stat().st_mtime_ns
        assert wb.train("shapes", arm="undistilled", overrides=TINY, listener=Silent()).path == run.path
        assert run.metrics_path.stat().st_mtime_ns == before
        with pytest.raises(RunError, match=r"made with other settings: train.batch_size 2, now 3.*name="):
            wb.train("shapes", arm="undistilled", overrides=[*TINY, "train.batch_size=3"], listener=Silent())
        # the verdict of a run against itself
        assert wb.compare({0: run}, {0: run}).difference == 0
        assert wb.summary(run).loc[run.name, "steps"] == 4

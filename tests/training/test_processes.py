"""Several processes learn what one learns from the whole batch, and one of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.flows import DISTILLED, command, write_recipe
from tests.patience import patience
from workbench.store.run import Run

# without batch statistics and dropout a process's part of a batch is seen as in the whole
PLAIN: dict[str, Any] = {"student": {"backbone": {"norm": "frozen"}}, "train": {"steps": 3}}
METHODS = [{"method": "detrdistill"}, {"method": "fgfi", "balance": 0.1}]


def together(processes: int, root: Path, *arguments: str) -> str:
    """``workbench`` in that many processes of one run; what they print."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    environment = {**os.environ, "WORKBENCH_RUNS": str(root), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command_line = [sys.executable, *launch, "-m", "workbench", *arguments, "--device", "cpu", "--plain"]
    done = subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_take_the_step_of_one_with_twice_the_batch_and_one_of_them_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    path = write_recipe(tmp_path, DISTILLED, PLAIN, {"methods": METHODS})
    printed = together(2, tmp_path, "run", str(path), "--name", "two", "--set", "train.batch_size=2")
    assert printed.count("term weights:") == 1
    two = Run.open("two")
    assert (two.info()["processes"], two.info()["state"]) == (2, "done")
    lines = [json.loads(line) for line in two.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [(line["split"], line["step"]) for line in two.evaluations()] == [("val", 2), ("val", 3), ("test", 3)]
    # the weight that both processes measured together, because halves of a batch have other gradients than the whole
    weight = two.info()["term_weights"]["fgfi.features"]
    same = write_recipe(tmp_path, DISTILLED, PLAIN, {"methods": [METHODS[0], {"method": "fgfi", "weights": {"features": weight}}]})
    code, _, err = command("run", str(same), "--name", "one", "--device", "cpu", "--plain")
    assert code == 0, err
    expected = json.loads(Run.open("one").metrics_path.read_text().splitlines()[0])
    assert lines[0]["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)

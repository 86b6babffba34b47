"""What a divided batch teaches is what the whole one does: for every family that counts for itself, and for every method."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import ROOT
from tests.patience import patience
from tests.training.divided import CASES, COUNTS, DIVISIONS, evaluation, in_passes, shares, whole
from workbench.files import read_json
from workbench.methods.registry import METHODS
from workbench.store.detections import read_detections
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run
from workbench.store.states import images_with_states, read_states


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.norm()) > 0
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and three gloo processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    # from a process of its own: new processes begin with the main module, which a test of a page has replaced by that page
    begin = "import sys, torch; from tests.training.divided import each_process; "
    begin += f"torch.multiprocessing.spawn(each_process, (sys.argv[1],), nprocs={max(DIVISIONS)})"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", begin, str(folder)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=patience(240)
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def of_processes(folder: Path) -> dict[int, dict[str, Tensor]]:
    """The mean gradients of two and of three gloo processes, by case."""
    return {count: load_file(folder / f"{count}.safetensors") for count in DIVISIONS}


def test_every_method_is_among_the_cases():
    assert {config["method"] for _, config in CASES.values() if config is not None} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_processes_with_unequal_shares_of_a_batch_learn_what_one_learns_from_it(case: str, of_processes: dict[int, dict[str, Tensor]]):
    for count in DIVISIONS:
        assert_same(of_processes[count][case], whole(case))


@pytest.mark.parametrize("case", CASES)
def test_parts_that_go_through_one_by_one_learn_what_the_whole_batch_does(case: str):
    for parts in DIVISIONS.values():
        assert_same(in_passes(case, parts), whole(case))


def test_the_logged_gradient_shares_are_those_of_all_processes(folder: Path):
    wanted = shares(0, len(COUNTS))
    for count in DIVISIONS:
        found = read_json(folder / f"{count}.json")["shares"]
        assert found.keys() == wanted.keys()
        for name, numbers in wanted.items():
            assert found[name] == pytest.approx(numbers, rel=1e-4, abs=1e-5), name


def test_processes_evaluate_together_what_one_does_alone(folder: Path, tmp_path: Path):
    wanted = json.loads(json.dumps(evaluation(tmp_path, "alone")))
    alone = Run.open("alone", tmp_path)
    for count in DIVISIONS:
        found, run = read_json(folder / f"{count}.json"), Run.open(f"of{count}", folder)
        assert {**found, "shares": None} == {**wanted, "shares": None}
        assert found["coco"]["ap"] is not None
        for step in (TEACHER_STEP, 1):
            pd.testing.assert_frame_equal(read_queries(run, "val", [step]), read_queries(alone, "val", [step]), rtol=1e-4, atol=1e-4)
        pd.testing.assert_frame_equal(read_detections(run, "val", 1), read_detections(alone, "val", 1), rtol=1e-4, atol=1e-4)
        images = images_with_states(alone, "val", 1)
        assert images_with_states(run, "val", 1) == images
        for image in images[:: len(images) - 1]:
            np.testing.assert_allclose(read_states(run, "val", 1, image), read_states(alone, "val", 1, image), atol=1e-3)

"""The benchmark of a GPU runs on a CPU as well, and its bundle in an empty environment."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import CPU_PAIRS, idle_share, of_pair
from benchmarks.harness import temporary_runs
from benchmarks.synchronisations import counted
from gpu.bundle import LARGEST, bundle
from tests.flows import DISTILLED, tiny_recipe
from tests.patience import patience
from workbench.recipe.setup import build
from workbench.training.learner import Learner

STEPS = ("machine", "tests", "benchmark", "evidence")


def test_the_idle_share_is_that_of_a_raster_of_the_time():
    generator = np.random.default_rng(0)
    begins = np.sort(generator.integers(0, 900, 40))
    spans = [(int(begin), int(begin + length)) for begin, length in zip(begins, generator.integers(1, 30, 40), strict=True)]
    raster = np.zeros(1000, bool)
    for begin, end in spans:
        raster[begin:end] = True
    first, last = spans[0][0], max(end for _, end in spans)
    assert idle_share([(float(a), float(b)) for a, b in spans]) == pytest.approx(1 - raster[first:last].mean())
    assert idle_share([]) == 1.0


def test_a_pair_is_measured_on_a_cpu_with_every_figure_that_needs_no_gpu(tmp_path: Path):
    with temporary_runs():
        found = {figure.name.split(": ", 1)[1]: figure for figure in of_pair(CPU_PAIRS[0], torch.device("cpu"), tmp_path)}
    steps = ("student step", "teacher forward", "live step", "step from the cache")
    assert set(found) == {
        *steps,
        "live step / (student step + teacher forward)",
        "step from the cache / student step",
        *(f"synchronisations of a {name}" for name in steps if name != "teacher forward"),
        *(f"{name} in bf16 / in fp32" for name in ("student step", "live step")),
    }
    assert all(np.isfinite(figure.value) and figure.value > 0 for figure in found.values())
    assert all(figure.line()["machine"]["gpu"] is None for figure in found.values()) or torch.cuda.is_available()


@pytest.mark.parametrize(("distilled", "most"), [(False, 4), (True, 20)])
def test_a_step_that_is_not_logged_asks_tensors_for_values_in_few_places_and_the_loop_itself_in_none(distilled: bool, most: int):
    recipe = tiny_recipe(DISTILLED, {} if distilled else {"methods": []}, {"train": {"log_every": 1000}})
    learner = Learner(build(recipe, "shapes_teacher"), "cpu")
    learner.term_weights = dict.fromkeys(learner.step_module.term_names, 1.0)
    batch = learner.loader.batch(0)
    learner._train_step(batch, 0, False)
    with counted(torch.device("cpu")) as places:
        learner._train_step(batch, 1, False)
    # of the four without a teacher one copies the costs; one is of a tensor of the host, one a flag that has arrived, one in transformers
    assert sum(places.values()) <= most, places
    never = ("workbench/training/learner", "workbench/training/step", "workbench/datasets")
    assert not [place for place in places if place.startswith(never)]


@pytest.mark.cuda
def test_a_step_on_cuda_that_is_not_logged_waits_once():
    recipe = tiny_recipe({"train": {"log_every": 1000}})
    learner = Learner(build(recipe, None), "cuda")
    for step in range(2):
        learner._train_step(learner.loader.batch(step).to("cuda"), step, False)
    batch = learner.loader.batch(2).to("cuda")
    with counted(torch.device("cuda")) as places:
        learner._train_step(batch, 2, False)
    assert sum(places.values()) <= 1, places


def test_the_bundle_runs_in_an_empty_environment_and_a_cut_loses_no_step(tmp_path: Path):
    size = bundle(tmp_path / "bundle.tar.gz", None)
    assert size < LARGEST
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "bundle"
    assert len(list((folder / "gpu" / "images").glob("*.jpg"))) == 200
    assert (folder / "data" / "shapes_teacher" / "config.json").is_file()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    allowed = patience(20)
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "gpu/check.sh"], cwd=folder, env={**environment, "GPU_SECONDS": str(int(allowed))}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < allowed + patience(10)
    for name in STEPS:
        said = json.loads((folder / "results" / f"{name}.json").read_text())
        assert said["step"] == name
        assert said["cut"] or said["status"] in (0, 1, 5), (said, (folder / "results" / f"{name}.log").read_text())
    assert json.loads((folder / "results" / "machine.jsonl").read_text())["torch"] == torch.__version__.split("+")[0]
    if not torch.cuda.is_available():  # there is no evidence about a GPU without one
        evidence = json.loads((folder / "results" / "evidence.json").read_text())
        assert evidence["cut"] or evidence["status"] == 1
        lines = folder / "results" / "evidence.jsonl"  # not there if no time was left to begin
        assert not lines.exists() or lines.read_text() == ""

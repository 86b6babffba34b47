"""Runs, a teacher cache and recipes that an older commit wrote are read as it read them (tests/stored/make.py says how they were made)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.flows import Silent, command
from workbench.analysis.derived import match_frame
from workbench.analysis.diagnosis.diagnose import diagnose
from workbench.analysis.report.summary import summarise
from workbench.methods.detrdistill.config import DETRDistillConfig
from workbench.recipe.loading import load_recipe, stored_recipe
from workbench.recipe.setup import build
from workbench.store.detections import read_detections
from workbench.store.queries import TEACHER_STEP, read_queries
from workbench.store.run import Run, list_runs
from workbench.store.states import read_masks, read_states
from workbench.teacher_cache.read import open_cache
from workbench.training.launch import Launch, changes_since, resume

STORED = ROOT / "tests" / "stored"
NUMBERS: dict[str, Any] = json.loads((STORED / "numbers.json").read_text())
RUNS = sorted(NUMBERS["runs"])
# DETRDistill as the paper has it matches negatives by the box alone since then. The recipes that committed tables were made from say
# the older cost and keep their hash; from these no table was made.
CHANGED = {
    "published/coco_adamixer_detrdistill.yaml:": "8a4649fede90370d",
    "published/coco_adamixer_detrdistill.yaml:mobilenet_v2": "10ba32cf36095bd6",
    "published/coco_adamixer_detrdistill.yaml:r18": "fedce2924bb0b2a9",
    "published/coco_conditional_detr_detrdistill.yaml:": "d83585bf6fa2de04",
    "published/coco_conditional_detr_detrdistill.yaml:encoder3_decoder3": "66c30ca4300b25ed",
    "published/coco_conditional_detr_detrdistill.yaml:encoder3_decoder6": "2816b43cd055147e",
    "published/coco_conditional_detr_detrdistill.yaml:encoder6_decoder3": "bfc3578b8b2c333f",
    "published/coco_conditional_detr_detrdistill.yaml:mobilenet_v2": "b4e45588a889ab43",
    "published/coco_conditional_detr_detrdistill.yaml:r18": "0de796d6e3e8e3b9",
    "published/coco_deformable_detr_detrdistill.yaml:paper": "7e114258db1d704a",
    # The share of LD was chosen anew under the criterion of D-FINE that matches once over all layers; its table was made with this one.
    "compare/d_fine.yaml:ld": "9c9cc3059164e985",
}


@pytest.fixture
def root(runs_folder: Path) -> Path:
    """A copy, because what is computed from a run is kept beside it."""
    shutil.copytree(STORED / "saved", runs_folder)
    return runs_folder


def close(value: Any) -> Any:
    """The value, its floats compared with a tolerance: other versions of the libraries add up in another order."""
    if isinstance(value, dict):
        return {key: close(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [close(entry) for entry in value]
    return pytest.approx(value, rel=1e-5, abs=1e-7, nan_ok=True) if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value))


def test_all_stored_runs_are_listed(root: Path):
    assert sorted(run.name for run in list_runs()) == sorted([*RUNS, "interrupted"])


@pytest.mark.parametrize("name", RUNS)
def test_rows_states_masks_and_detections_of_a_stored_run_are_what_was_written(name: str, root: Path):
    run, wanted = Run.open(name), NUMBERS["runs"][name]
    queries = {step: read_queries(run, "val", [step]) for step in [TEACHER_STEP, *run.query_steps("val")]}
    assert {str(step) for step in queries} == set(wanted["queries"])
    for step, rows in queries.items():
        found = {"rows": len(rows), "columns": list(rows), "matched": int((rows["match"] >= 0).sum()),
                 "score": float(rows["score"].sum()), "mates": int(rows["mate"].fillna(-2).sum())}  # fmt: skip
        assert found == close(wanted["queries"][str(step)])
    image = int(queries[6]["image_id"].iloc[0])
    masks = read_masks(run, "val", TEACHER_STEP, image)
    assert {f"{layer}/{level}": float(mask.sum()) for (layer, level), mask in masks.items()} == close(wanted["masks"])
    assert float(read_states(run, "val", 6, image).sum()) == close(wanted["state"])
    detections = {str(step): float(read_detections(run, "val", step)["score"].sum()) for step in run.query_steps("val")}
    assert detections == close(wanted["detections"])


@pytest.mark.parametrize("name", RUNS)
def test_the_summary_the_churn_and_the_diagnosis_of_a_stored_run_are_unchanged(name: str, root: Path):
    run, wanted = Run.open(name), NUMBERS["runs"][name]
    assert plain(summarise(run)) == close(wanted["summary"])
    assert plain(match_frame(run, "churn_steps", "val").to_dict("records")) == close(wanted["churn"])
    outcomes = {check["cause"]: check["outcome"] for check in diagnose(run).to_json()["checks"]}
    assert outcomes == {check["cause"]: check["outcome"] for check in wanted["diagnosis"]["checks"]}


def test_a_stored_run_that_was_recorded_on_the_test_split_has_its_rows(root: Path):
    run = Run.open("distilled")
    assert run.query_steps("test") == [6] and len(read_queries(run, "test", [6])) == 4 * (2 * 6 + 2 * 20)


@pytest.mark.parametrize("name", RUNS)
def test_the_stored_recipe_of_a_run_has_the_hash_that_it_was_made_with(name: str, root: Path):
    info = Run.open(name).info()
    assert stored_recipe(info["recipe"], name).hash() == info["recipe_hash"] == NUMBERS["runs"][name]["recipe_hash"]


@pytest.mark.parametrize("recipe", sorted(NUMBERS["recipes"]))
def test_every_shipped_recipe_and_arm_has_the_hash_it_had(recipe: str):
    path, _, arm = recipe.partition(":")
    assert load_recipe(ROOT / "recipes" / path, arm=arm or None).hash() == {**NUMBERS["recipes"], **CHANGED}[recipe]


def test_a_stored_run_of_the_papers_profile_says_that_its_negatives_were_matched_with_the_class(root: Path):
    run = Run.open("distilled")
    (method,) = stored_recipe(run.info()["recipe"], "distilled").methods
    assert isinstance(method, DETRDistillConfig) and method.logits is not None
    assert (method.profile, method.logits.negative_cost) == ("paper", "class_and_box")
    (change,) = changes_since(run, load_recipe(STORED / "recipes" / "distilled.yaml"))
    before, now = change.split("now")
    assert "'negative_cost': 'class_and_box'" in before and "'negative_cost': 'box'" in now


def test_a_stored_cache_serves_the_recipe_it_was_built_for(root: Path):
    setup = build(load_recipe(STORED / "recipes" / "from-the-cache.yaml"), "shapes_teacher", record_teacher=False)
    cache = open_cache(setup)
    assert cache is not None and setup.variants is not None
    answer = cache.read([3], 1, [setup.variants.ops(3, 1)]).answer()
    assert answer.output.logits.shape[1:3] == (1, 20) and answer.match is not None and answer.prepared


def test_a_stored_run_that_was_interrupted_goes_on_to_its_end(root: Path):
    run = resume(Run.open("interrupted"), Launch(device="cpu"), Silent())
    assert run.info()["state"] == "done" and run.checkpoint_steps()[-1] == 6
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_shown_by_the_queries_of_the_split_that_is_asked_for(root: Path, tmp_path: Path):
    churn = {}
    for split in ("val", "test"):
        code, _, _ = command("runs", "show", "distilled", "--split", split, "--json", str(tmp_path / f"{split}.json"))
        assert code == 0
        (churn[split],) = (row["churn_n"] for row in json.loads((tmp_path / f"{split}.json").read_text()))
    # three evaluations on val; the test split was recorded at one step, so there is nothing to compare it with
    assert churn["val"] == NUMBERS["runs"]["distilled"]["summary"]["churn_n"] and not churn["test"]

"""Runs of a dense student from the command line: alone, taught by a dense teacher, taught by a DETR; every file and verb after them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests.examples import SPEC, assert_detected_alike
from tests.families import tiny, tiny_config
from tests.flows import TINY, Silent, command, write_recipe
from tests.shared_runs import shared_copy
from workbench.analysis.detection.ap import coco_ap
from workbench.boxes import cxcywh_to_xyxy
from workbench.datasets.batches import evaluation_batches
from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.datasets.transforms import Transform
from workbench.detectors.dense_detector import DenseDetector
from workbench.detectors.output import dense_output
from workbench.detectors.registry import load_detector
from workbench.errors import Interrupted
from workbench.files import read_json
from workbench.recipe.loading import parse_recipe
from workbench.store.queries import TEACHER_STEP, complete_steps, read_facts, read_queries
from workbench.store.run import Run
from workbench.store.states import images_with_states
from workbench.training import launch
from workbench.training.candidates import BEST
from workbench.training.launch import Launch, start
from workbench.training.loop import Trainer

CLASSES = ("circle", "square", "triangle", "cross")
TRAIN = {**TINY["train"], "steps": 4}
METHODS = [{"method": "fgd", "balance": 0.1}, {"method": "pkd", "balance": 0.1}]
TEACHERS = {"alone": None, "dense": "retinanet", "detr": "shapes_teacher"}
TERMS = {"class", "giou", "centreness"}
STRIDES = [4, 8, 16]
every_run = pytest.mark.parametrize("name", TEACHERS)


def recipe(folder: Path, name: str) -> dict[str, Any]:
    """The recipe of a run; the dense teacher's weights are random and are written to ``folder``."""
    values = {**TINY, "name": name, "student": tiny_config("fcos"), "train": TRAIN}
    teacher = TEACHERS[name]
    if teacher == "retinanet":
        tiny(teacher, 1, replace(SPEC, classes=CLASSES)).save(folder)
        teacher = str(folder)
    return values if teacher is None else {**values, "teacher": {"checkpoint": teacher}, "methods": METHODS}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three runs, which nobody changes, each with a teacher in ``teacher-NAME``."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
            patch.setattr(launch, "check_teacher", lambda setup: 0.5)  # random weights detect nothing
            torch.set_num_threads(1)
            for name in TEACHERS:
                (folder / f"teacher-{name}").mkdir()
                start(parse_recipe(recipe(folder / f"teacher-{name}", name), name), Launch(name, device="cpu"), Silent())

    return shared_copy(tmp_path_factory, "dense-runs", make)


@pytest.fixture
def own(once: Path) -> Path:
    """A copy of the runs in this test's own folder of runs."""
    return Path(shutil.copytree(once / "runs", os.environ["WORKBENCH_RUNS"]))


def run_of(once: Path, name: str) -> Run:
    return Run(once / "runs" / name)


def student_of(run: Run) -> DenseDetector:
    student = load_detector(run.checkpoint_path(4)).eval()
    assert isinstance(student, DenseDetector)
    return student


@every_run
def test_every_step_logs_the_three_losses_and_each_term_of_the_methods(name: str, once: Path):
    lines = run_of(once, name).metrics()
    methods = {"fgd.foreground", "fgd.background", "fgd.attention", "fgd.relation", "pkd.features"} if name != "alone" else set[str]()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {key for key in line if key.startswith("detection/")} == {f"detection/{term}" for term in TERMS}
        assert {key for key in line if key.startswith("raw/")} == {f"raw/{term}" for term in methods}
        assert all(np.isfinite(value) for value in line.values())
        parts = sum(line[f"detection/{term}"] for term in TERMS) + sum(line[f"weighted/{term}"] for term in methods)
        assert line["loss"] == pytest.approx(parts, rel=1e-5)


@every_run
def test_the_rows_of_the_last_evaluation_are_the_positives_and_the_best_of_every_image(name: str, once: Path):
    run = run_of(once, name)
    student, data = student_of(run), generate_shapes(ShapesConfig(train=16, val=8, test=8), "val")
    rows = read_queries(run, "val", [4], where="model = 'student'")
    assert set(read_queries(run, "val", [4])["model"]) == {"student"}
    transform = Transform()
    transform.config = transform.config.model_copy(update={"mean": student.spec.mean, "std": student.spec.std})
    (batch,) = evaluation_batches(data, transform, 16)
    with torch.no_grad():
        output = dense_output(student(batch.images, batch.padding))
    match = student.assign(output, batch.targets)[0]
    assert output.quality is not None
    score = (output.logits[0].sigmoid() * output.quality[0].sigmoid()[..., None]).sqrt()
    for image, image_id in enumerate(batch.image_ids):
        found = rows[rows["image_id"] == image_id]
        best = set(score[image].amax(-1).topk(BEST).indices.tolist())
        positive = set((match[image] >= 0).nonzero()[:, 0].tolist())
        assert found["query"].tolist() == sorted(best | positive)
        query = torch.tensor(found["query"].tolist())
        np.testing.assert_array_equal(found["match"], match[image, query])
        np.testing.assert_array_equal(found["source"], output.grid.cell[query])
        np.testing.assert_allclose(found["score"], score[image, query].amax(-1), atol=1e-6)
        np.testing.assert_allclose(found[["cx", "cy", "w", "h"]], output.boxes[0, image, query], atol=1e-6)
    assert set(rows["layer"]) == {0} and (rows["match"] >= 0).any()
    assert rows[["mate", "mate_layer", "train_mate", "selected"]].isna().all(axis=None)
    assert rows[["loss_class", "loss_bbox", "loss_giou"]].notna().all(axis=None)


@every_run
def test_the_manifest_of_every_table_says_what_its_candidates_are(name: str, once: Path):
    run = run_of(once, name)
    grid = {"strides": STRIDES, "sizes_differ": False, "shapes": 1, "levels": 3}
    for step in (2, 4):
        facts = read_facts(run, "val", step)
        assert (facts["assignment"], facts["geometric"], facts["rows"], facts["grid"]) == ("many", True, "top", grid)
    assert complete_steps(run, "val") == [2, 4] if name == "alone" else [TEACHER_STEP, 2, 4]
    if name == "dense":
        facts = read_facts(run, "val", TEACHER_STEP)
        assert (facts["assignment"], facts["geometric"], facts["rows"]) == ("many", True, "top")
        assert facts["grid"] == {**grid, "shapes": 9}
        teacher = read_queries(run, "val", [TEACHER_STEP])
        assert set(teacher["model"]) == {"teacher"} and teacher.groupby("image_id").size().min() >= BEST
    if name == "detr":
        facts = read_facts(run, "val", TEACHER_STEP)
        assert (facts["assignment"], facts["rows"], facts["grid"]) == ("one", "all", None)
        assert len(read_queries(run, "val", [TEACHER_STEP])) == 8 * 4 * 20
    assert bool(images_with_states(run, "val", TEACHER_STEP)) == (name == "detr") and not images_with_states(run, "val", 4)


@every_run
def test_detections_and_ap_are_those_of_the_saved_student(name: str, once: Path):
    run = run_of(once, name)
    student, data = student_of(run), generate_shapes(ShapesConfig(train=16, val=8, test=8), "val")
    stored = pd.read_parquet(run.path / "detections" / "split=val" / "step=4.parquet")
    transform = Transform()
    transform.config = transform.config.model_copy(update={"mean": student.spec.mean, "std": student.spec.std})
    (batch,) = evaluation_batches(data, transform, 16)
    with torch.no_grad():
        output = student(batch.images, batch.padding)
        found = student.detections(output, batch.sizes)
    for image, image_id in enumerate(batch.image_ids):
        own = stored[stored["image_id"] == image_id]
        category_ids = [data.category_ids[label] for label in found[image].labels.tolist()]
        answers = (own["query"], own["category_id"], own["score"]), (found[image].queries, category_ids, found[image].scores)
        assert_detected_alike(*answers, within=1e-5)
        boxes = cxcywh_to_xyxy(output.boxes[0, image, torch.from_numpy(own["query"].to_numpy(np.int64))]) * 96
        np.testing.assert_allclose(own[["x1", "y1", "x2", "y2"]], boxes.clamp(0, 96), atol=1e-3)
    line = next(line for line in run.evaluations() if line["split"] == "val" and line["step"] == 4)
    assert line["coco"]["ap"] == pytest.approx(coco_ap(data.coco(), stored).to_json()["coco"]["ap"])
    result = run.evaluations()[-1]
    assert result["split"] == "test" and result["parameters"] == sum(p.numel() for p in student.parameters()) and result["flops"] > 0
    assert ("teacher" in result) == (name != "alone") == ("alignment" in line)


@every_run
def test_a_dry_run_takes_one_step_and_writes_nothing(name: str, tmp_path: Path, runs_folder: Path):
    (tmp_path / "teacher").mkdir()
    path = write_recipe(tmp_path, {"student": None}, recipe(tmp_path / "teacher", name))
    code, out, err = command("run", str(path), "--dry-run", "--json", str(tmp_path / "dry.json"))
    assert code == 0, err
    said = {row["what"]: row["value"] for row in json.loads((tmp_path / "dry.json").read_text())}
    assert {f"term {term}" for term in TERMS} <= set(said) and ("term fgd.foreground" in said) == (name != "alone")
    assert said["student_parameters"] == 19_441 and not runs_folder.exists() and "centreness" in out


@every_run
def test_the_verb_evaluate_gives_the_ap_of_the_run(name: str, own: Path, tmp_path: Path):
    code, _, err = command("evaluate", name, "--split", "test", "--device", "cpu", "--json", str(tmp_path / "found.json"))
    assert code == 0, err
    numbers = {row["what"]: row["value"] for row in json.loads((tmp_path / "found.json").read_text())}
    wanted = Run(own / name).evaluations()[-1]["coco"]
    for key in ("ap", "ap50", "ar100"):
        assert numbers[key] == pytest.approx(wanted[key], abs=1e-9, nan_ok=True)


@every_run
def test_the_verb_record_writes_the_same_rows_again_and_those_of_another_split(name: str, own: Path, once: Path):
    run = Run(own / name)
    shutil.rmtree(run.path / "queries")
    code, out, err = command("record", name, "--device", "cpu")
    assert code == 0, err
    assert "8 of 8 images, 800 rows of the student" in out and ("states of 8 images" in out) == (name == "detr")
    assert {"alone": "student, about", "dense": "and 800 of the teacher, about", "detr": "and 640 of the teacher, states"}[name] in out
    for step in complete_steps(run_of(once, name), "val"):
        if step != 2:
            pd.testing.assert_frame_equal(read_queries(run, "val", [step]), read_queries(run_of(once, name), "val", [step]))
            assert read_facts(run, "val", step) == read_facts(run_of(once, name), "val", step)
    code, _, err = command("record", name, "--split", "train", "--images", "5", "--device", "cpu")
    assert code == 0, err
    assert read_queries(run, "train", [4])["image_id"].nunique() == 5 and read_facts(run, "train", 4)["sampled"]


@every_run
def test_the_verb_predict_finds_objects_in_images_of_any_size(name: str, own: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for index, size in enumerate(((96, 96), (70, 45))):
        Image.fromarray(np.full((size[1], size[0], 3), 90 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    code, _, err = command("predict", name, str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--device", "cpu")
    assert code == 0, err
    found = read_json(tmp_path / "out" / "results.json")
    assert {row["image_id"] for row in found} == {1, 2}
    assert all(0 <= row["bbox"][0] and row["bbox"][0] + row["bbox"][2] <= 70.001 for row in found if row["image_id"] == 2)
    assert len(list((tmp_path / "out" / "drawn").iterdir())) == 2


@every_run
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(name: str, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Trainer._save

    def stopped(self: Trainer, step: int) -> None:
        real(self, step)
        if step == 2:
            raise Interrupted("stopped")

    (tmp_path / "teacher").mkdir()
    monkeypatch.setattr(launch, "check_teacher", lambda setup: 0.5)
    torch.set_num_threads(1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stopped)
        with pytest.raises(Interrupted):
            start(parse_recipe(recipe(tmp_path / "teacher", name), name), Launch(name, device="cpu"), Silent())
    code, out, err = command("run", "--resume", name, "--device", "cpu", "--plain")
    assert code == 0, err
    assert "resumed at step 2 of 4" in out
    again, whole = Run.open(name), run_of(once, name)
    ours, theirs = student_of(again).state_dict(), student_of(whole).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert [line["loss"] for line in again.metrics()] == [line["loss"] for line in whole.metrics()]
    pd.testing.assert_frame_equal(read_queries(again, "val", [4]), read_queries(whole, "val", [4]))


@every_run
def test_the_verbs_that_read_a_run_take_a_dense_one(name: str, own: Path, tmp_path: Path):
    for arguments in (("runs", "show", name), ("report", name, "--out", str(tmp_path / "report")), ("diagnose", name)):
        code, out, err = command(*arguments)
        assert code == 0, (arguments, out, err)


def test_images_of_several_sizes_with_crowds_train_to_the_end(tmp_path: Path):
    made = generate_shapes(ShapesConfig(train=8, val=8), "train")
    for split in ("train", "val"):
        made.split = split
        write_coco(made, tmp_path / "data")
        path = tmp_path / "data" / "annotations" / f"instances_{split}.json"
        content = read_json(path)
        for index, image in enumerate(content["images"]):
            image["width"] = 96 - 10 * (index % 3)  # the right part is cut off, and what lay there is left out
            file = tmp_path / "data" / "images" / split / image["file_name"]
            Image.open(file).crop((0, 0, image["width"], 96)).save(file)
            whole = [a for a in content["annotations"] if a["image_id"] == image["id"] and a["bbox"][0] + a["bbox"][2] > image["width"]]
            content["annotations"] = [a for a in content["annotations"] if a not in whole]
            region = {"id": 1000 + index, "image_id": image["id"], "category_id": 1, "bbox": [0, 0, 40, 96], "area": 3840, "iscrowd": 1}
            content["annotations"].append(region)
        path.write_text(json.dumps(content))
    data = {"path": str(tmp_path / "data"), "train": "train", "val": "val", "test": None}
    run = start(parse_recipe({**TINY, "student": tiny_config("fcos"), "data": data}, "sizes"), Launch("sizes", device="cpu"), Silent())
    assert all(np.isfinite(line["loss"]) for line in run.metrics())
    rows = read_queries(run, "val", [2])
    assert read_facts(run, "val", 2)["grid"]["sizes_differ"]
    # the batch is padded to 96 pixels; no candidate of the padding has a row, and those in the crowd are ignored
    width = {image["id"]: image["width"] for image in content["images"]}
    cells = [24 * 24, 12 * 12, 6 * 6]
    for image_id, cell, match in rows[["image_id", "source", "match"]].itertuples(index=False):
        level = int(np.searchsorted(np.cumsum(cells), cell, side="right"))
        side, stride = (24, 12, 6)[level], STRIDES[level]
        x = ((cell - sum(cells[:level])) % side + 0.5) * stride
        assert x < width[image_id] and (match != -1 or x >= 40)
    assert (rows["match"] == -2).any()

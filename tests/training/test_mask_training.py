"""A detector of masks is trained, evaluated and distilled; runs of others hear nothing of masks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.families import tiny, tiny_config
from tests.flows import Silent
from tests.training.test_two_stage_training import DATA, TRAIN, recipe_of
from workbench.analysis.detection.bootstrap import draws, weighted_ap
from workbench.analysis.detection.intervals import coco_intervals
from workbench.analysis.detection.mask_ap import coco_mask_ap
from workbench.analysis.of_run import one_evaluation
from workbench.analysis.results.detections import data_held
from workbench.analysis.results.of_runs import Results
from workbench.analysis.results.query_tests import compare_masks
from workbench.datasets.coco import write_coco
from workbench.datasets.opening import open_dataset
from workbench.errors import ConfigError
from workbench.recipe.loading import load_recipe, parse_recipe
from workbench.recipe.setup import build, student_class
from workbench.resources import share_path
from workbench.store.detections import DETECTION_SCHEMA, read_detections
from workbench.store.run import Run, read_lines
from workbench.tasks.evaluate import judge_detections
from workbench.training.loop import Trainer


def trained(folder: Path, family: str, **taught: Any) -> Run:
    recipe = recipe_of(family, **taught)
    setup = build(recipe, str(taught["teacher"]) if taught else None)
    run = Run.create(family, {"recipe": recipe.model_dump(mode="json"), "classes": list(setup.train.classes)}, folder)
    Trainer(run, setup, Silent(), "cpu").train()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("runs"), "mask_rcnn")


def test_the_loss_of_masks_is_logged_and_evaluations_hold_the_numbers_of_masks(run: Run):
    lines = read_lines(run.metrics_path)
    assert len(lines) == 4 and all(np.isfinite(line["detection/mask"]) and line["detection/mask"] > 0 for line in lines)
    evaluations = read_lines(run.path / "evaluations.jsonl")
    assert evaluations and all({"coco", "per_class", "masks"} <= set(line) for line in evaluations)
    line = next(line for line in evaluations if line["split"] == "val")
    dataset = open_dataset("shapes", "val", masks=True, **DATA["options"])
    detections = read_detections(run, "val", line["step"])
    assert detections["mask"].str.len().gt(0).all()
    oracle = coco_mask_ap(dataset.coco(), detections, "pycocotools").to_json()
    assert line["masks"]["coco"] == {name: pytest.approx(value, abs=1e-6) for name, value in oracle["coco"].items()}
    rows = pd.DataFrame(judge_detections(dataset, detections, 5).rows()).set_index("what")
    assert rows.loc["mask ap", "value"] == pytest.approx(line["masks"]["coco"]["ap"]) and "mask AP of circle" in rows.index
    interval = coco_intervals(dataset.coco(), detections, 5, iou="mask")["ap"]
    assert rows.loc["mask ap", ["low", "high"]].tolist() == pytest.approx([interval.low, interval.high], nan_ok=True)


def test_verdicts_of_runs_with_masks_have_mask_ap_beside_ap(run: Run):
    step = run.detection_steps("val")[-1]
    at = one_evaluation(run, "val", step)
    table = Results(data_held()).verdicts(((0, at),), ((0, at),)).set_index("quantity")
    truth = open_dataset("shapes", "val", masks=True, **DATA["options"]).coco()
    oracle = 100 * coco_mask_ap(truth, read_detections(run, "val", step), "pycocotools").ap
    assert table.loc["mask AP", ["baseline", "other", "difference"]].tolist() == pytest.approx([oracle, oracle, 0.0], abs=1e-4)
    assert list(table.index)[:2] == ["AP", "mask AP"]


def test_a_report_of_runs_with_masks_judges_the_numbers_of_masks(run: Run):
    truth = open_dataset("shapes", "val", masks=True, **DATA["options"]).coco()
    rows = read_detections(run, "val", run.detection_steps("val")[-1])
    better = rows.assign(score=np.linspace(1, 0, len(rows), dtype=np.float32))
    found = {verdict.quantity.name: verdict for verdict in compare_masks(truth, {0: rows}, {0: better}, samples=20, seed=3)}
    assert {"mask AP", "mask AP50", "mask AP75"} <= set(found)
    for name, key in {"mask AP": "ap", "mask AP50": "ap50", "mask AR, 100 detections an image": "ar100"}.items():
        before, after = (coco_mask_ap(truth, one, "pycocotools").to_json()["coco"][key] for one in (rows, better))
        assert (found[name].baseline, found[name].other) == pytest.approx((before, after), abs=1e-6)
    counts = draws(len(truth["images"]), 20, 3)
    apart = weighted_ap(truth, better, counts, iou="mask") - weighted_ap(truth, rows, counts, iou="mask")
    assert (found["mask AP"].low, found["mask AP"].high) == pytest.approx(tuple(np.nanpercentile(apart, [2.5, 97.5])), nan_ok=True)


def test_a_run_without_masks_writes_the_files_that_it_wrote_before(tmp_path: Path):
    run = trained(tmp_path, "faster_rcnn")
    for line in read_lines(run.path / "evaluations.jsonl"):
        assert "masks" not in line
    (step,) = run.detection_steps("val")
    at = one_evaluation(run, "val", step)
    assert "mask AP" not in set(Results(data_held()).verdicts(((0, at),), ((0, at),))["quantity"])
    assert pq.read_schema(str(run.detections_path("val", step))).equals(DETECTION_SCHEMA)
    assert "mask" not in read_detections(run, "val", step)


def test_a_mask_rcnn_learns_from_another_one(tmp_path: Path):
    tiny("mask_rcnn", 2).save(tmp_path)
    run = trained(tmp_path / "runs", "mask_rcnn", methods=[{"method": "fgd", "balance": 0.5}], teacher=tmp_path)
    lines = read_lines(run.metrics_path)
    assert all({"raw/fgd.foreground", "detection/mask"} <= set(line) for line in lines)


def test_data_without_masks_is_refused_before_training_and_splits_are_opened_with_masks_only_for_those_who_learn_them(tmp_path: Path):
    for split in ("train", "val", "test"):
        write_coco(open_dataset("shapes", split, **DATA["options"]), tmp_path)
    values = {"name": "a", "data": {"path": str(tmp_path)}, "student": tiny_config("mask_rcnn"), "train": TRAIN}
    with pytest.raises(ConfigError, match=r"learns masks, but .* has none"):
        build(parse_recipe(values, "a test"), None)
    boxes, masks = (build(recipe_of(family), None) for family in ("faster_rcnn", "mask_rcnn"))
    assert boxes.train.records[0].masks is None and masks.train.has_masks and boxes.train.hash() == masks.train.hash()
    student = {"checkpoint": str(tmp_path / "detector"), "head": "reset"}
    (tmp_path / "detector").mkdir()
    tiny("mask_rcnn").save(tmp_path / "detector")
    assert "masks" in student_class(parse_recipe({**values, "student": student}, "a test")).provides


def test_the_recipe_for_shapes_makes_a_model_of_under_800_000_parameters_and_a_small_student():
    path = share_path("recipes") / "families" / "mask_rcnn.yaml"
    counts: list[int] = []
    for arm in (None, "small"):
        recipe = load_recipe(path, arm=arm)
        config: Any = recipe.student
        assert (config.mask_cells, config.family) == (14, "mask_rcnn")
        values = {**json.loads(recipe.model_dump_json()), "arms": {}}
        values["data"]["options"] = {"train": 2, "val": 2, "test": 2}
        counts.append(sum(p.numel() for p in build(parse_recipe(values, "a test"), None).student.parameters()))
    assert counts[1] < 150_000 < counts[0] < 800_000


def test_masks_of_yolo_segments_reach_the_batches_of_training(tmp_path: Path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (tmp_path / "classes.txt").write_text("thing\n")
    student = tiny_config("mask_rcnn")
    train = {"steps": 1, "batch_size": 1}
    values = {"name": "a", "data": {"path": str(tmp_path), "test": None}, "student": student, "train": train}
    setup = build(parse_recipe(values, "a test"), None)
    trainer = Trainer(Run.create("yolo", {}, tmp_path / "runs"), setup, Silent(), "cpu")
    masks = trainer.loader.batch(0).targets.masks
    assert masks is not None and masks[0].shape == (1, 48, 64) and int(masks[0].sum()) == 32 * 24

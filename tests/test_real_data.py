"""The shipped recipes on the real images of ../shared/data, made tiny: every format trains, evaluates and keeps its category ids."""

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.flows import Silent, command
from workbench.analysis.detection.ap import coco_ap
from workbench.datasets.opening import open_dataset
from workbench.detectors.detector import Detections
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.recipe.schema import Recipe
from workbench.store.run import Run
from workbench.training.evaluation import collect_detections
from workbench.training.launch import Launch, start

TINY = [
    "student.backbone={stem: 8, widths: [8, 16], depths: [1, 1], levels: [2]}", "student.width=32", "student.ffn=32",
    "student.decoder_layers=2", "student.queries=20", "data.transform.resize={height: 96, width: 96}",
    "train.steps=50", "train.batch_size=4", "train.warmup=2", "train.evaluate_every=50", "train.log_every=5",
]  # fmt: skip
TWELVE = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
ONE_SPLIT = ["data.train=all", "data.val=all", "data.test=null"]


def tiny(name: str, data: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe_path(name), [*TINY, f"data.path={data}", *overrides])


def train(recipe: Recipe) -> Run:
    return start(recipe, Launch("run", device="cpu"), Silent())


def losses(run: Run) -> np.ndarray:
    return np.array([line["loss"] for line in run.metrics()])


def published(truth: Path, detections: pa.Table) -> np.ndarray:
    """The twelve numbers of pycocotools on an annotation file as it was published."""
    rows = detections.to_pylist()
    results = [
        {"image_id": row["image_id"], "category_id": row["category_id"], "score": row["score"],
         "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]]} for row in rows
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(truth))
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_blood_cells_train_with_the_official_split_by_the_shipped_recipe(shared_data: Path):
    run = train(tiny("bccd_teacher", shared_data / "bccd"))
    assert run.info()["classes"] == ["Platelets", "RBC", "WBC"]
    assert [line["split"] for line in run.evaluations()] == ["val", "test"]
    assert np.isfinite(losses(run)).all() and losses(run)[-1] < losses(run)[0]
    # the two boxes of one point are dropped and said to be
    assert any("without area" in issue or "zero" in issue for issue in run.info()["issues"])


def test_the_coco_sample_trains_and_its_ap_is_that_of_pycocotools_on_the_original_annotations(shared_data: Path):
    folder = shared_data / "coco_sample"
    run = train(tiny("any", folder, *ONE_SPLIT))
    (line,) = [line for line in run.evaluations() if line["split"] == "val" and "parameters" not in line]
    original = folder / "instances.json"
    expected = published(original, pq.read_table(run.detections_path("val", 50)))
    assert [line["coco"][name] for name in TWELVE] == pytest.approx(expected.tolist(), abs=1e-6)
    declared = {category["id"] for category in json.loads(original.read_text())["categories"]}
    found = set(pq.read_table(run.detections_path("val", 50))["category_id"].to_pylist())
    assert found <= declared and max(found) > 80


def test_good_detections_of_the_coco_sample_score_as_pycocotools_scores_them_on_the_original_annotations(shared_data: Path):
    """The run above finds next to nothing. Here a detector whose classes are in another order finds most targets, not exactly."""
    dataset = open_dataset(shared_data / "coco_sample", "all")
    classes = dataset.classes[::-1]
    generator = torch.Generator().manual_seed(0)
    found = []
    for record in dataset.records:
        count = len(record.boxes)
        boxes = torch.from_numpy(record.boxes).float() + 4 * torch.randn(count, 4, generator=generator)
        labels = len(classes) - 1 - torch.from_numpy(record.labels)
        wrong = torch.rand(count, generator=generator) < 0.2
        labels[wrong] = torch.randint(len(classes), (int(wrong.sum()),), generator=generator)
        item = Detections(torch.arange(count), labels, torch.rand(count, generator=generator), boxes)
        found.append((SimpleNamespace(image_ids=(record.image_id,)), [item]))
    detections = collect_detections(dataset, found, classes)
    ours = coco_ap(dataset.coco(), detections).to_json()["coco"]
    expected = published(shared_data / "coco_sample" / "instances.json", detections)
    assert expected[0] > 0.2
    assert [ours[name] for name in TWELVE] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_kitti_sample_trains_and_its_dontcare_regions_are_no_targets(shared_data: Path):
    run = train(tiny("any", shared_data / "kitti_sample", *ONE_SPLIT))
    assert np.isfinite(losses(run)).all()
    targets = sum(value["targets"] for value in run.evaluations()[0]["per_class"].values())
    # 27 rows, 11 of them DontCare
    assert targets == 16
    assert set(run.info()["classes"]) >= {"Car", "Pedestrian", "Cyclist"}


@pytest.mark.parametrize("name", ["coco_sample", "kitti_sample"])
def test_data_of_one_split_says_in_one_message_what_to_set(shared_data: Path, name: str):
    code, _, err = command("run", "any", "--data", str(shared_data / name))
    assert code == 2 and "Traceback" not in err
    assert "--set data.train=all --set data.val=all --set data.test=null" in err

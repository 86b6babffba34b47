"""COCO: sparse ids to labels and back, crowd and ignore regions as the evaluation needs them, planted problems, writing."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workbench.datasets.base import Dataset, Record
from workbench.datasets.coco import splits, write_coco
from workbench.datasets.issues import Policy
from workbench.datasets.opening import open_dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.errors import DataError


def annotation(annotation_id: int, image_id: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": annotation_id, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images, categories 3 and 90 out of order, one crowd region."""
    return {
        "images": [{"id": 50, "file_name": "b.png", "width": 20, "height": 10}, {"id": 7, "file_name": "a.png", "width": 20, "height": 10}],
        "annotations": [
            annotation(11, 50, 90, [1, 2, 3, 4], area=5.5, iscrowd=0),
            annotation(12, 7, 3, [0, 0, 20, 10], iscrowd=1),
            annotation(10, 50, 3, [5, 5, 2, 2]),
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    }


@pytest.fixture
def place(tmp_path: Path, make_image, content: dict[str, Any]):
    """Writes ``content`` and its images; gives the folder."""

    def write() -> Path:
        for name in ("a.png", "b.png"):
            make_image(tmp_path / "images" / name)
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return tmp_path

    return write


def ap(ground_truth: dict[str, Any], detections: list[dict[str, Any]]) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_images_and_targets_keep_the_order_of_the_file_and_categories_become_ranks(place) -> None:
    dataset = open_dataset(place(), "all")
    assert dataset.classes == ("car", "toothbrush") and dataset.category_ids == (3, 90)
    first, second = dataset.records
    assert (first.image_id, first.file_name, second.image_id) == (50, "b.png", 7)
    assert first.boxes.tolist() == [[1, 2, 4, 6], [5, 5, 7, 7]]
    assert first.labels.tolist() == [1, 0] and first.annotation_ids.tolist() == [11, 10]
    assert first.areas.tolist() == [5.5, 4]
    assert second.crowd.tolist() == [True] and second.trainable.tolist() == [False]
    assert dataset.image(0).shape == (10, 20, 3)
    assert dataset.paths is not None and dataset.paths[0].name == "b.png"


def test_what_is_handed_to_the_evaluation_is_what_the_file_said(place, content: dict[str, Any]) -> None:
    exported = open_dataset(place(), "all").coco()
    assert {(c["id"], c["name"]) for c in exported["categories"]} == {(90, "toothbrush"), (3, "car")}
    assert [image["id"] for image in exported["images"]] == [50, 7]
    given = {a["id"]: a for a in content["annotations"]}
    assert len(exported["annotations"]) == len(given)
    for got in exported["annotations"]:
        want = given[got["id"]]
        assert (got["image_id"], got["category_id"], got["iscrowd"]) == (want["image_id"], want["category_id"], want.get("iscrowd", 0))
        assert got["bbox"] == want["bbox"]
        assert got["area"] == want.get("area", want["bbox"][2] * want["bbox"][3])


def test_an_ignore_region_excuses_detections_of_every_class_inside_it() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 40, 10.0]])
    ignore = np.array([False, True])
    record = Record(1, "a.png", 40, 10, boxes, np.array([0, -1]), np.zeros(2, bool), ignore, np.array([0, 1]), np.array([100, 200.0]))
    truth = Dataset("d", "s", ["car", "van"], [1, 5], [record], [np.zeros((10, 40, 3), np.uint8)]).coco()
    assert min(a["id"] for a in truth["annotations"]) == 1, "pycocotools takes a match with id 0 for none"
    assert len({a["id"] for a in truth["annotations"]}) == 3
    detections = [
        {"image_id": 1, "category_id": category, "bbox": [22 + 4 * i, 1, 5, 5], "score": 0.9} for category in (1, 5) for i in range(3)
    ]
    found = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.1}
    assert ap(truth, [*detections, found])[0] == pytest.approx(1)
    outside = {"image_id": 1, "category_id": 1, "bbox": [10, 0, 9, 10], "score": 0.9}
    assert ap(truth, [outside, found])[0] < 0.6


def test_shapes_written_as_coco_are_read_back_equal(tmp_path: Path) -> None:
    for split in ("train", "val"):
        drawn = generate_shapes(ShapesConfig(train=5, val=3), split)
        write_coco(drawn, tmp_path / "out")
        again = open_dataset(tmp_path / "out", split)
        assert again.hash() == drawn.hash()
        assert all((again.image(i) == drawn.image(i)).all() for i in range(len(drawn)))
        assert len(again.issues) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["annotations", "images"]


def test_writing_refuses_a_file_name_that_leaves_the_folder(tmp_path: Path) -> None:
    drawn = generate_shapes(ShapesConfig(train=1), "train")
    record = Record(**{**vars(drawn.records[0]), "file_name": "../../a.png"})
    dataset = Dataset("d", "train", drawn.classes, drawn.category_ids, [record], [drawn.image(0)])
    with pytest.raises(DataError, match="leaves its folder"):
        write_coco(dataset, tmp_path / "out")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "layout",
    [
        ("annotations/instances_val2017.json", "val2017", "val"),
        ("annotations/instances_val.json", "images/val", "val"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("val.json", "images", "val"),
        ("instances_val.json", ".", "val"),
    ],
)
def test_the_usual_layouts_are_found(tmp_path: Path, make_image, content: dict[str, Any], layout: tuple[str, str, str]) -> None:
    file, images, split = layout
    for name in ("a.png", "b.png"):
        make_image(tmp_path / images / name)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "package.json").write_text("{}")
    assert len(open_dataset(tmp_path, split)) == 2


def test_a_single_file_and_another_image_folder_can_be_given(tmp_path: Path, make_image, content: dict[str, Any]) -> None:
    for name in ("a.png", "b.png"):
        make_image(tmp_path / "pictures" / name)
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert len(open_dataset(tmp_path / "x.json", "all", images="pictures")) == 2
    with pytest.raises(DataError, match="can be opened as split 'all'"):
        open_dataset(tmp_path / "x.json", "train", images="pictures")


PLANTED = [
    ("duplicate_image_id", lambda c: c["images"].append(dict(c["images"][0])), "refused"),
    ("duplicate_annotation_id", lambda c: c["annotations"].append(dict(c["annotations"][0])), "fixed"),
    ("dangling_reference", lambda c: c["annotations"][0].update(image_id=99), "dropped"),
    ("dangling_reference", lambda c: c["annotations"][0].update(category_id=1), "dropped"),
    ("broken_annotation", lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "dropped"),
    ("broken_annotation", lambda c: c["annotations"][0].update(bbox="big"), "dropped"),
    ("broken_annotation", lambda c: c["annotations"][0].pop("bbox"), "dropped"),
    ("broken_annotation", lambda c: c["annotations"].append(None), "dropped"),
    ("broken_annotation", lambda c: c["images"][0].pop("file_name"), "dropped"),
    ("non_finite_box", lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "dropped"),
    ("inverted_box", lambda c: c["annotations"][0].update(bbox=[5, 5, -3, -2]), "fixed"),
    ("zero_size_box", lambda c: c["annotations"][0].update(bbox=[5, 5, 0, 2]), "dropped"),
    ("box_outside", lambda c: c["annotations"][0].update(bbox=[-5, 5, 10, 2]), "fixed"),
    ("missing_image", lambda c: c["images"][0].update(file_name="c.png"), "refused"),
    ("unsafe_file_name", lambda c: c["images"][0].update(file_name="../../etc/passwd"), "refused"),
    ("size_mismatch", lambda c: c["images"][0].update(width=30), "refused"),
    ("undeclared_size", lambda c: c["images"][0].pop("width"), "fixed"),
    ("image_without_boxes", lambda c: c["annotations"].pop(1), "kept"),
]


@pytest.mark.parametrize(("kind", "plant", "action"), PLANTED, ids=[f"{i}-{kind}" for i, (kind, _, _) in enumerate(PLANTED)])
def test_each_planted_problem_is_found_once_and_dealt_with(place, content: dict[str, Any], kind: str, plant: Any, action: str) -> None:
    plant(content)
    folder = place()
    if action == "refused":
        with pytest.raises(DataError, match=kind.replace("_", " ")):
            open_dataset(folder, "all")
        return
    dataset = open_dataset(folder, "all")
    assert [(i.kind, i.action, i.count) for i in dataset.issues if i.kind == kind] == [(kind, action, 1)]
    ids = [i for record in dataset.records for i in record.annotation_ids.tolist()]
    assert len(ids) == len(set(ids))


def test_a_refused_problem_passes_when_the_policy_drops_it(place, content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "c.png"
    dataset = open_dataset(place(), "all", policy=Policy(missing_image="drop"))
    assert [record.image_id for record in dataset.records] == [7]
    assert dataset.issues.count("missing_image") == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [',
        "",
        "[]",
        '{"images": [], "annotations": []}',
        '{"images": [], "annotations": [], "categories": [{"name": "car"}]}',
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
    ],
)
def test_broken_json_gives_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "all")
    assert "instances.json" in str(caught.value) and "\n" not in str(caught.value)


def test_the_coco_sample_is_read_whole_and_scores_as_its_original_annotations_do(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "coco_sample", "all")
    assert len(dataset) == 156
    assert sum(len(record.boxes) for record in dataset.records) == 1363
    assert sum(int(record.crowd.sum()) for record in dataset.records) == 17
    assert len(dataset.classes) == 80 and len({label for record in dataset.records for label in record.labels.tolist()}) == 74
    assert dataset.issues.count("image_without_boxes") == 3
    rng = np.random.default_rng(0)
    detections = []
    for record in dataset.records:
        for box, label in zip(record.boxes, record.labels, strict=True):
            wrong = rng.random() < 0.2
            x1, y1, x2, y2 = (box + rng.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)).tolist()
            category = dataset.category_ids[int(rng.integers(80)) if wrong else int(label)]
            bbox = [x1, y1, x2 - x1, y2 - y1]
            detections.append({"image_id": record.image_id, "category_id": category, "bbox": bbox, "score": rng.random()})
    original = json.loads((shared_data / "coco_sample" / "instances.json").read_text())
    scores = ap(original, detections)
    assert 0.2 < scores[0] < 0.8
    np.testing.assert_allclose(ap(dataset.coco(), detections), scores, atol=1e-9)


def one_file(folder: Path, number: int, categories: list[dict[str, Any]]) -> None:
    content = {
        "images": [{"id": 0, "file_name": f"{number}.png", "width": 20, "height": 10}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": categories[-1]["id"], "bbox": [number, 1, 2, 3]}],
        "categories": categories,
    }
    (folder / f"{number}.json").write_text(json.dumps(content))


def test_a_folder_of_one_file_per_image_is_one_split(tmp_path: Path, make_image) -> None:
    for number in range(6):
        make_image(tmp_path / f"{number}.png")
        one_file(tmp_path, number, [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}])
    dataset = open_dataset(tmp_path, "all")
    assert splits(tmp_path) == ("all",)
    assert [record.image_id for record in dataset.records] == [1, 2, 3, 4, 5, 6]
    assert [record.boxes[0, 0] for record in dataset.records] == [0, 1, 2, 3, 4, 5]
    assert dataset.category_ids == (3, 8) and all(record.labels.tolist() == [1] for record in dataset.records)


def test_files_per_image_that_number_their_categories_differently_are_joined_by_name(tmp_path: Path, make_image) -> None:
    for number in range(4):
        make_image(tmp_path / f"{number}.png")
        one_file(tmp_path, number, [{"id": 1, "name": ["dog", "cat"][number % 2]}])
    dataset = open_dataset(tmp_path, "all")
    assert dataset.classes == ("cat", "dog") and dataset.category_ids == (1, 2)
    assert [record.labels.tolist() for record in dataset.records] == [[1], [0], [1], [0]]


def test_folders_of_one_file_per_image_are_the_splits(tmp_path: Path, make_image) -> None:
    for split in ("train", "val"):
        for number in range(4):
            make_image(tmp_path / split / f"{number}.png")
            one_file(tmp_path / split, number, [{"id": 1, "name": "cat"}])
    assert splits(tmp_path) == ("train", "val")
    assert len(open_dataset(tmp_path, "val")) == 4


def test_three_files_of_one_image_each_stay_three_splits(tmp_path: Path, make_image) -> None:
    for number in range(3):
        make_image(tmp_path / f"{number}.png")
        one_file(tmp_path, number, [{"id": 1, "name": "cat"}])
    assert splits(tmp_path) == ("0", "1", "2")


def test_a_broken_file_among_those_per_image_follows_the_policy(tmp_path: Path, make_image) -> None:
    for number in range(5):
        make_image(tmp_path / f"{number}.png")
        one_file(tmp_path, number, [{"id": 1, "name": "cat"}])
    (tmp_path / "4.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"broken file: 1 refused .*4\.json"):
        open_dataset(tmp_path, "all")
    assert len(open_dataset(tmp_path, "all", policy=Policy(broken_file="drop"))) == 4


def test_a_lone_file_in_a_folder_answers_to_all_whatever_its_name(tmp_path: Path, make_image, content: dict[str, Any]) -> None:
    for name in ("a.png", "b.png"):
        make_image(tmp_path / name)
    (tmp_path / "cells.json").write_text(json.dumps(content))
    assert splits(tmp_path) == ("cells",)
    assert len(open_dataset(tmp_path, "all")) == len(open_dataset(tmp_path, "cells")) == 2

"""The report on a dataset: every planted problem in it, nothing twice, the exit code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from workbench.cli import app
from workbench.datasets import pixels
from workbench.datasets.check import check
from workbench.datasets.images import decode
from workbench.datasets.issues import Policy
from workbench.datasets.transforms import FixedSize, ShortestSide
from workbench.errors import ConfigError, DataError


@pytest.fixture
def faulty(tmp_path: Path, make_image) -> Path:
    """A COCO folder with one of everything that can be wrong in it."""
    images = tmp_path / "images"
    make_image(images / "good.jpg")
    make_image(images / "empty.jpg")
    make_image(images / "palette.png", mode="P")
    make_image(images / "cmyk.jpg", mode="CMYK")
    make_image(images / "turned.jpg", orientation=3)
    cut = make_image(images / "cut.jpg", 20, 10)
    cut.write_bytes(cut.read_bytes()[:-100])
    inner = make_image(images / "inner.png", 64, 64)
    data = bytearray(inner.read_bytes())
    data[len(data) // 2] ^= 0xFF  # header and end are whole, the pixels are not
    inner.write_bytes(bytes(data))
    names = ["good.jpg", "empty.jpg", "palette.png", "cmyk.jpg", "turned.jpg", "cut.jpg", "inner.png", "missing.jpg", "../secret.jpg"]
    sizes = {"inner.png": (64, 64)}
    listed = [
        {"id": i, "file_name": name, "width": sizes.get(name, (20, 10))[0], "height": sizes.get(name, (20, 10))[1]}
        for i, name in enumerate(names)
    ]
    boxes = [[1, 1, 5, 5], [1, 1, float("nan"), 5], [5, 5, -2, -2], [1, 1, 0, 5], [15, 5, 10, 2]]
    annotations = [{"id": 100 + i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    annotations += [{"id": 200 + i, "image_id": i, "category_id": 1, "bbox": [1, 1, 5, 5]} for i in (2, 3, 4, 5, 6)]
    annotations += [
        {"id": 100, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]},
        {"id": 300, "image_id": 0, "category_id": 2, "bbox": [1, 1, 5, 5]},
        {"id": 301, "image_id": 77, "category_id": 1, "bbox": [1, 1, 5, 5]},
    ]
    listed.append({**listed[0], "file_name": "again.jpg"})
    content = {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


EXPECTED = {
    "missing_image": ("error", 1),
    "unsafe_file_name": ("error", 1),
    "unreadable_image": ("error", 2),
    "duplicate_image_id": ("error", 1),
    "duplicate_annotation_id": ("warning", 1),
    "dangling_reference": ("error", 2),
    "non_finite_box": ("error", 1),
    "inverted_box": ("warning", 1),
    "zero_size_box": ("error", 1),
    "box_outside": ("warning", 1),
    "palette_image": ("warning", 1),
    "cmyk_image": ("warning", 1),
    "exif_rotated_image": ("warning", 1),
    "image_without_boxes": ("warning", 1),
}


def test_every_planted_problem_is_in_the_report_with_its_count_and_severity(faulty: Path) -> None:
    report = check(faulty)
    found = {row["kind"]: (row["severity"], row["count"]) for row in report.rows()}
    assert found == EXPECTED
    assert not report.ok
    assert all(row["examples"] for row in report.rows())


def test_the_report_is_json_and_the_command_line_ends_with_one(faulty: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    result = CliRunner().invoke(app, ["data", "check", str(faulty), "--json", str(target)])
    assert result.exit_code == 1
    written = json.loads(target.read_text())
    assert written == check(faulty).to_dict()
    assert written["ok"] is False and written["format"] == "coco"
    assert "cut.jpg" in result.output


def test_a_sound_dataset_is_ok_and_progress_counts_every_image_once(tmp_path: Path, make_image) -> None:
    make_image(tmp_path / "JPEGImages" / "a.jpg")
    make_image(tmp_path / "JPEGImages" / "b.jpg")
    (tmp_path / "Annotations").mkdir()
    dog = "<object><name>dog</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>5</ymax></bndbox></object>"
    size = "<size><width>20</width><height>10</height></size>"
    for stem, right in (("a", 6), ("b", 2)):
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{dog.format(6)}{dog.format(right)}</annotation>")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, stems in (("train", "a"), ("val", "b"), ("trainval", "a\nb")):
        (lists / f"{split}.txt").write_text(stems)
    calls: list[tuple[int, int]] = []
    report = check(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    assert report.splits == {
        "train": {"images": 1, "boxes": 2},
        "trainval": {"images": 2, "boxes": 3},
        "val": {"images": 1, "boxes": 1},
        "all": {"images": 2, "boxes": 3},
    }
    assert [(row["kind"], row["count"]) for row in report.rows()] == [("zero_size_box", 1)], "one box, in three lists"
    assert check(tmp_path, split="train").ok


def test_what_is_an_error_follows_the_policy(faulty: Path) -> None:
    strict = check(faulty, policy=Policy(inverted_box="refuse"))
    assert {row["kind"]: row["severity"] for row in strict.rows()}["inverted_box"] == "error"


@pytest.mark.parametrize("text", ['{"images": [', '{"images": []}'])
def test_a_broken_annotation_file_is_an_error_of_the_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "instances.json").write_text(text)
    report = check(tmp_path)
    assert [(row["kind"], row["severity"]) for row in report.rows()] == [("broken_file", "error")]
    assert not report.ok


def test_a_split_without_usable_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    assert [row["kind"] for row in check(tmp_path).rows()] == ["empty_split"]


def test_what_is_no_dataset_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty folder"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("name", "ok", "kinds"),
    [
        ("bccd", False, {"zero_size_box": 2}),
        ("coco_sample", True, {"image_without_boxes": 3}),
        ("kitti_sample", True, {"palette_image": 1, "inverted_box": 1}),
    ],
)
def test_the_real_data_has_the_traps_that_its_description_lists(shared_data: Path, name: str, ok: bool, kinds: dict[str, int]) -> None:
    report = check(shared_data / name)
    assert report.ok == ok
    assert {row["kind"]: row["count"] for row in report.rows()} == kinds


def cells(root: Path, splits: dict[str, dict[str, list]], categories: list[dict], size: int = 64) -> Path:
    """Writes a COCO folder: for each split the seeds of its images with their boxes as (category, x, y, width, height)."""
    for split, images in splits.items():
        listed, annotations = [], []
        for number, (seed, boxes) in enumerate(images.items()):
            pixels = np.random.default_rng(int(seed.strip("'"))).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            path = root / "images" / split / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(path)
            listed.append({"id": number, "file_name": path.name, "width": size, "height": size})
            annotations += [
                {"id": len(annotations) + n, "image_id": number, "category_id": c, "bbox": b} for n, (c, *b) in enumerate(boxes)
            ]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


CATEGORIES = [{"id": i, "name": name} for i, name in enumerate(["things", "Cat", "cats", "dog"])]
BOX = [2, 2, 30, 30]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Image 3 is in train and val under two names, class dog only in val, one box is a whole image and one is small."""
    train = {"1": [[1, *BOX], [2, 0, 0, 64, 64]], "2": [[1, *BOX], [2, 10, 10, 6, 20]], "3": [[2, *BOX]]}
    return cells(tmp_path, {"train": train, "val": {"'3'": [[3, *BOX]], "4": [[1, *BOX], [2, *BOX]]}}, CATEGORIES)


def found(root: Path, **options: object) -> dict[str, tuple[int, list[str]]]:
    return {remark.kind: (remark.count, remark.examples) for remark in check(root, **options).remarks}


def test_what_is_legal_and_often_a_mistake_is_found_with_its_count_and_place(leaky: Path) -> None:
    assert found(leaky) == {
        "class_without_boxes": (1, ["things"]),
        "class_not_in_split": (1, ["dog"]),
        "class_names_alike": (1, ["'Cat' and 'cats'"]),
        "leak": (1, ["'3'.png and train 3.png"]),
        "near_duplicates": (1, ["3.png, '3'.png"]),
        "box_is_whole_image": (1, ["1.png"]),
    }
    assert check(leaky).ok, "nothing is lost"


def test_boxes_that_a_size_makes_too_small_are_counted_at_that_size(leaky: Path) -> None:
    assert "box_vanishes" not in found(leaky, resize=FixedSize(width=64, height=64))
    small = next(f for f in check(leaky, resize=FixedSize(width=32, height=64)).remarks if f.kind == "box_vanishes")
    assert small.count == 1 and "1 of 8 boxes (12.5 %) have a side below 4 pixels at 32x64; most are of cats 1" in small.text
    both = next(f for f in check(leaky, resize=ShortestSide(shortest=(4, 6), longest=20)).remarks if f.kind == "box_vanishes")
    assert "8 of 8" not in both.text and "7 of 8 boxes" in both.text and "at a shorter side of 6" in both.text


def test_boxes_and_images_of_each_class_are_counted_by_split(leaky: Path) -> None:
    report = check(leaky)
    assert report.classes == {
        "things": {"train": (0, 0), "val": (0, 0)},
        "Cat": {"train": (2, 2), "val": (1, 1)},
        "cats": {"train": (3, 3), "val": (1, 1)},
        "dog": {"train": (0, 0), "val": (1, 1)},
    }
    assert report.images == 5 and report.boxes == 8 and report.image_sizes == {(64, 64): 5}
    assert report.summary()[0].endswith("format coco, 5 images, 8 boxes, 4 classes")
    assert report.class_rows()[1] == {"class": "Cat", "train: boxes in images": "2 in 2", "val: boxes in images": "1 in 1"}


def test_splits_that_number_their_classes_differently_are_found(leaky: Path) -> None:
    file = leaky / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"][3]["name"] = "wolf"
    file.write_text(json.dumps(content))
    assert found(leaky)["classes_differ"] == (2, ["dog", "wolf"])


def test_a_second_check_decodes_only_what_has_changed_and_says_the_same(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = check(leaky).to_dict()
    decoded: list[str] = []
    monkeypatch.setattr(pixels, "decode", lambda path, upright: decoded.append(path.name) or decode(path, upright))
    assert check(leaky).to_dict() == first and decoded == []
    changed = leaky / "images" / "train" / "2.png"
    Image.open(changed).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(changed)
    os.utime(changed, ns=(1, 1))
    assert check(leaky).to_dict() == first and decoded == ["2.png"]
    changed.write_bytes(changed.read_bytes()[:-200])
    assert not check(leaky).ok and not check(leaky).ok, "an error is remembered too"


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Dog", "dog"], 1),
        (["bus", "buses"], 1),
        (["box", "boxes"], 1),
        (["berry", "berries"], 1),
        (["hard hat", "hard-hat", "hardhats"], 2),
        (["glass", "class", "gas", "bus", "car", "cat"], 0),
        (["0", "1", "a", "as"], 0),
    ],
)
def test_names_that_differ_by_case_punctuation_or_plural_are_found(tmp_path: Path, names: list[str], pairs: int) -> None:
    images = {"1": [[i, *BOX] for i in range(len(names))]}
    cells(tmp_path, {"train": images}, [{"id": i, "name": name} for i, name in enumerate(names)])
    assert found(tmp_path).get("class_names_alike", (0, []))[0] == pairs


def test_ten_thousand_classes_and_a_thousand_sizes_fit_on_a_screen(tmp_path: Path) -> None:
    listed, annotations = [], []
    for number in range(1000):
        size = (20 + number, 30)
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", size).save(path)
        listed.append({"id": number, "file_name": path.name, "width": size[0], "height": size[1]})
        annotations.append({"id": number, "image_id": number, "category_id": number, "bbox": [1, 1, 5, 5]})
    categories = [{"id": i, "name": f"class {i}"} for i in range(10_000)]
    (tmp_path / "instances.json").write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert result.exit_code == 0 and len(result.output.splitlines()) < 60
    assert "1,000 sizes from 20x30 to 1019x30" in result.output and "9,960 more classes" in result.output


def test_a_class_list_that_is_missing_is_said_and_not_reported_as_a_broken_file(tmp_path: Path, make_image) -> None:
    make_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match=r"Add classes\.txt"):
        check(tmp_path)


def test_the_recipe_decides_on_format_policy_and_size(leaky: Path) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(leaky), "--recipe", "bccd"])
    assert "format coco, but voc was asked for" in str(result.exception)
    result = CliRunner().invoke(app, ["data", "check", str(leaky), "--recipe", "any", "--size", "32x64"])
    assert "at 32x64" in result.output


@pytest.mark.parametrize("size", ["wide", "1x2x3", "0", ""])
def test_a_size_that_is_none_is_refused(leaky: Path, size: str) -> None:
    result = CliRunner().invoke(app, ["data", "check", str(leaky), "--size", size])
    assert isinstance(result.exception, ConfigError) and "640x480" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "pair"),
    [("bccd", "BloodImage_00037.jpg and train BloodImage_00038.jpg"), ("neu_det", "patches_101.jpg and train patches_105.jpg")],
)
def test_the_real_data_leaks_one_image_from_training_into_validation(shared_data: Path, name: str, pair: str) -> None:
    assert found(shared_data / name)["leak"] == (1, [pair])

"""The report on a dataset: every planted problem in it, nothing twice, the exit code."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.datasets.check import check
from workbench.datasets.issues import Policy
from workbench.errors import DataError


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

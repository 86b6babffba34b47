"""KITTI: rows, DontCare regions, lists of splits, planted problems."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.datasets.opening import open_dataset
from workbench.errors import DataError

TAIL = "1.89 0.48 1.20 1.84 1.47 8.41 0.01"


def row(name: str, box: str, seen: str = "0.00 0") -> str:
    return f"{name} {seen} -0.20 {box} {TAIL}"


@pytest.fixture
def root(tmp_path: Path, make_image) -> Path:
    """Two images below training/."""
    for stem in ("000000", "000001"):
        make_image(tmp_path / "training" / "image_2" / f"{stem}.png", 20, 10)
    labels = tmp_path / "training" / "label_2"
    labels.mkdir()
    rows = [row("Car", "1.5 2.0 8.25 9.0"), row("DontCare", "10 1 12 3", "-1 -1"), row("Cyclist", "0 0 20 10", "0.25 2")]
    (labels / "000000.txt").write_text("\n".join(rows))
    (labels / "000001.txt").write_text("")
    return tmp_path


def write(root: Path, *rows: str) -> None:
    (root / "training" / "label_2" / "000001.txt").write_text("\n".join(rows))


def test_rows_are_continuous_boxes_and_dontcare_is_an_ignore_region_without_class(root: Path) -> None:
    dataset = open_dataset(root, "all")
    record = dataset.records[0]
    assert record.boxes.tolist() == [[1.5, 2, 8.25, 9], [10, 1, 12, 3], [0, 0, 20, 10]]
    assert [dataset.classes[label] for label in record.labels[record.trainable]] == ["Car", "Cyclist"]
    assert record.ignore.tolist() == [False, True, False] and record.labels[1] == -1
    assert record.attributes["truncation"].tolist() == [0, -1, 0.25] and record.attributes["occlusion"].tolist() == [0, -1, 2]
    assert "DontCare" not in dataset.classes
    assert len(dataset.records[1].boxes) == 0 and dataset.issues.count("image_without_boxes") == 1


def test_lists_in_imagesets_make_the_splits(root: Path) -> None:
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text("000001\n")
    assert [record.file_name for record in open_dataset(root, "val").records] == ["000001.png"]
    with pytest.raises(DataError, match="Splits there: val, all"):
        open_dataset(root, "train")


def test_classes_may_be_chosen_and_objects_of_others_are_counted(root: Path) -> None:
    dataset = open_dataset(root, "all", classes=["Cyclist"])
    assert dataset.records[0].labels.tolist() == [-1, 0]
    assert dataset.issues.count("dangling_reference") == 1


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (row("Car", "5 5 3 3"), "inverted_box"),
        (row("Car", "5 5 5 8"), "zero_size_box"),
        (row("Car", "nan 5 5 8"), "non_finite_box"),
        (row("Car", "-3 5 5 8"), "box_outside"),
        (row("Horse", "1 1 5 8"), "dangling_reference"),
        ("Car 1 2 3", "broken_annotation"),
        (row("Car", "a 1 5 8"), "broken_annotation"),
    ],
)
def test_each_planted_problem_is_counted(root: Path, line: str, kind: str) -> None:
    write(root, row("Car", "1 1 5 5"), line)
    dataset = open_dataset(root, "all")
    assert dataset.issues.count(kind) == 1
    assert len(dataset.records[1].boxes) in (1, 2)


def test_an_image_without_label_file_and_a_label_file_without_image_are_refused(root: Path) -> None:
    labels = root / "training" / "label_2"
    (labels / "000001.txt").rename(labels / "000002.txt")
    with pytest.raises(DataError) as caught:
        open_dataset(root, "all")
    assert "000001.txt" in str(caught.value) and "000002.png" in str(caught.value)


def test_a_list_that_leaves_the_folder_is_refused(root: Path) -> None:
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="unsafe file name"):
        open_dataset(root, "val")


def test_the_kitti_sample_has_27_rows_of_which_11_are_ignored_a_palette_image_and_a_mended_region(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "kitti_sample", "all")
    assert len(dataset) == 5
    assert sum(len(record.boxes) for record in dataset.records) == 27
    assert sum(int(record.ignore.sum()) for record in dataset.records) == 11
    assert {(i.kind, i.action, i.count) for i in dataset.issues} == {("palette_image", "converted", 1), ("inverted_box", "fixed", 1)}
    record = dataset.records[3]
    assert record.file_name == "000007.png"
    assert record.boxes[5].tolist() == [780.37, 174.72, 781.17, 175.52] and record.ignore[5]
    with Image.open(shared_data / "kitti_sample" / "training" / "image_2" / "000007.png") as stored:
        palette = np.array(stored.getpalette()).reshape(-1, 3)
        assert (dataset.image(3) == palette[np.asarray(stored)]).all()

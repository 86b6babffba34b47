"""YOLO: data.yaml and bare folders, normalised rows, planted problems."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from workbench.datasets.opening import find_format, open_dataset
from workbench.errors import DataError


@pytest.fixture
def root(tmp_path: Path, make_image) -> Path:
    """images/train with a and b, images/val with c; b has no label file."""
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        make_image(tmp_path / "images" / split / f"{stem}.png", 20, 10)
        (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 1 1\n0 0.25 0.4 0.1 0.2\n")
    (tmp_path / "labels" / "val" / "c.txt").write_text("")
    return tmp_path


def configure(root: Path, **values: object) -> Path:
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **values}))
    return root


def test_rows_are_shares_of_the_image(root: Path) -> None:
    dataset = open_dataset(configure(root), "train")
    record = dataset.records[0]
    np.testing.assert_allclose(record.boxes, [[0, 0, 20, 10], [4, 3, 6, 5]], atol=1e-9)
    assert record.labels.tolist() == [1, 0]
    assert dataset.classes == ("cat", "dog") and dataset.category_ids == (0, 1)
    assert [r.file_name for r in dataset.records] == ["images/train/a.png", "images/train/b.png"]
    assert dataset.issues.count("image_without_boxes") == 1, "no label file means no objects"


def test_folders_without_yaml_need_classes_txt_and_make_the_splits(root: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt"):
        open_dataset(root, "train")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert len(open_dataset(root, "train")) == 2
    assert len(open_dataset(root, "val")) == 1
    with pytest.raises(DataError, match="train, val"):
        open_dataset(root, "test")


def test_numbers_of_classes_may_have_gaps_and_are_kept_as_category_ids(root: Path) -> None:
    dataset = open_dataset(configure(root, names={7: "dog", 0: "cat", 1: "eel"}), "train")
    assert dataset.classes == ("cat", "eel", "dog") and dataset.category_ids == (0, 1, 7)


@pytest.mark.parametrize("place", ["images/train", "../images/train", "train.txt", ["images/train"]])
def test_data_yaml_may_name_a_folder_a_list_or_one_level_too_high(root: Path, place: object) -> None:
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    assert len(open_dataset(configure(root, train=place), "train")) == 2
    assert len(open_dataset(root / "data.yaml", "train")) == 2


@pytest.mark.parametrize("place", ["/etc", "../../etc", "nowhere"])
def test_data_yaml_may_not_point_out_of_its_folder(root: Path, place: str) -> None:
    with pytest.raises(DataError, match="must lie in the dataset's folder"):
        open_dataset(configure(root, train=place), "train")


def test_a_list_that_leaves_the_folder_is_refused(root: Path) -> None:
    (root / "train.txt").write_text("../outside/a.png\n")
    with pytest.raises(DataError, match="unsafe file name"):
        open_dataset(configure(root, train="train.txt"), "train")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 0.5 0.5 0 0.1", "zero_size_box"),
        ("0 0.5 0.5 -0.1 0.1", "inverted_box"),
        ("0 nan 0.5 0.1 0.1", "non_finite_box"),
        ("0 0.1 0.1 nan 0.1 0.2 0.2", "non_finite_box"),
        ("0 0.98 0.5 0.2 0.1", "box_outside"),
        ("2 0.5 0.5 0.1 0.1", "dangling_reference"),
        ("0 0.5 0.5 0.1", "broken_annotation"),
        ("0 0.1 0.1 0.2 0.1 0.2", "broken_annotation"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1", "broken_annotation"),
        ("cat 0.5 0.5 0.1 0.1", "broken_annotation"),
        ("nan 0.5 0.5 0.1 0.1", "broken_annotation"),
    ],
)
def test_each_planted_problem_is_counted_and_the_rest_is_read(root: Path, line: str, kind: str) -> None:
    (root / "labels" / "train" / "b.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{line}\n")
    dataset = open_dataset(configure(root), "train")
    assert dataset.issues.count(kind) == 1
    assert len(dataset.records[1].boxes) in (1, 2)


def test_a_label_file_that_is_no_text_is_refused(root: Path) -> None:
    (root / "labels" / "train" / "b.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=r"b\.txt cannot be read"):
        open_dataset(configure(root), "train")


def test_an_unreadable_image_with_labels_is_dropped_and_a_missing_one_refused(root: Path) -> None:
    (root / "images" / "train" / "a.png").write_bytes(b"no image")
    dataset = open_dataset(configure(root), "train")
    assert [record.file_name for record in dataset.records] == ["images/train/b.png"]
    assert [(i.kind, i.count) for i in dataset.issues if i.severity == "error"] == [("unreadable_image", 1)]
    (root / "train.txt").write_text("images/train/z.png\nimages/train/b.png\n")
    with pytest.raises(DataError, match=r"missing image: 1 refused .*z\.png"):
        open_dataset(configure(root, train="train.txt"), "train")


@pytest.mark.parametrize("text", ["train: [", "just text", "train: images/train\nnames: 3", "!!python/object/apply:os.system [ls]"])
def test_a_broken_data_yaml_gives_one_error_that_names_it(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml"):
        open_dataset(root, "train")


def test_labels_beside_their_images_are_read_with_classes_txt(tmp_path: Path, make_image) -> None:
    make_image(tmp_path / "a.png", 20, 10)
    make_image(tmp_path / "b.png", 20, 10)
    (tmp_path / "a.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    dataset = open_dataset(tmp_path, "all")
    assert [record.boxes.tolist() for record in dataset.records] == [[[0, 0, 20, 10]], []]
    assert dataset.classes == ("cat", "dog")


def test_a_missing_list_of_classes_is_named_with_the_numbers_in_use(root: Path) -> None:
    with pytest.raises(DataError, match=r"Add classes\.txt .* go from 0 to 1"):
        open_dataset(root, "train")
    assert open_dataset(root, "train", classes=["cat", "dog"]).classes == ("cat", "dog")


def test_folders_of_these_names_beside_another_format_are_not_taken_for_yolo(root: Path) -> None:
    (root / "instances.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    assert find_format(root)[0].name == "coco"

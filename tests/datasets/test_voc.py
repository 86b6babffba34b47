"""Pascal VOC: corners counted from 1, lists of splits, planted problems, safe XML."""

from pathlib import Path

import numpy as np
import pytest

from workbench.datasets.issues import Policy
from workbench.datasets.opening import open_dataset
from workbench.errors import DataError


def write_xml(root: Path, stem: str, objects: list[tuple], size: tuple[int, int] | None = (20, 10), head: str = "", name: str = "") -> None:
    text = [head, "<annotation>", f"<filename>{name or stem}</filename>"]
    if size:
        text.append(f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for label, corners, *rest in objects:
        box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=False))
        text.append(f"<object><name>{label}</name><difficult>{rest[0] if rest else 0}</difficult><bndbox>{box}</bndbox></object>")
    (root / "Annotations").mkdir(exist_ok=True, parents=True)
    (root / "Annotations" / f"{stem}.xml").write_text("".join([*text, "</annotation>"]))


@pytest.fixture
def root(tmp_path: Path, make_image) -> Path:
    """Images a and b in train, c in val."""
    for stem in ("a", "b", "c"):
        make_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
    write_xml(tmp_path, "a", [("dog", (1, 1, 20, 10)), ("cat", (3, 4, 5, 6))])
    write_xml(tmp_path, "b", [("cat", (2, 2, 9, 9), 1)])
    write_xml(tmp_path, "c", [("bird", (2.5, 2, 9, 9))])
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na  1\n")
    (lists / "val.txt").write_text("c\n")
    return tmp_path


def test_a_box_from_pixel_1_to_the_last_pixel_covers_the_image(root: Path) -> None:
    dataset = open_dataset(root, "train")
    assert [record.file_name for record in dataset.records] == ["b.jpg", "a.jpg"]
    assert dataset.records[1].boxes.tolist() == [[0, 0, 20, 10], [2, 3, 5, 6]]
    assert dataset.records[1].areas.tolist() == [200, 9]
    assert open_dataset(root, "val").records[0].boxes.tolist() == [[1.5, 1, 9, 9]]


def test_all_splits_share_the_sorted_names_of_all_annotations_unless_names_are_given(root: Path) -> None:
    for split in ("train", "val"):
        assert open_dataset(root, split).classes == ("bird", "cat", "dog")
    dataset = open_dataset(root, "train", classes=["dog", "cat"])
    assert dataset.classes == ("dog", "cat") and dataset.category_ids == (1, 2)
    assert dataset.records[1].labels.tolist() == [0, 1]
    fewer = open_dataset(root, "train", classes=["dog"])
    assert fewer.issues.count("dangling_reference") == 2


def test_difficult_objects_are_never_trained_on_and_do_not_count_in_evaluation(root: Path) -> None:
    dataset = open_dataset(root, "train")
    assert dataset.records[0].trainable.tolist() == [False]
    assert [a["iscrowd"] for a in dataset.coco()["annotations"]] == [1, 0, 0]


def test_corners_that_coincide_are_points_and_mixed_conventions_clip_at_the_border(root: Path) -> None:
    corners = [(5, 5, 5, 5), (5, 5, 5, 9), (0, 0, 4, 4), (9, 8, 3, 2), (5, 5, 6, 6)]
    write_xml(root, "a", [("dog", box) for box in corners])
    dataset = open_dataset(root, "train")
    assert dataset.issues.count("zero_size_box") == 2
    assert dataset.issues.count("inverted_box") == 1
    assert dataset.records[1].boxes.tolist() == [[0, 0, 4, 4], [2, 1, 9, 8], [4, 4, 6, 6]]


def test_the_folder_may_lie_two_levels_below_and_lists_may_be_absent(root: Path) -> None:
    assert len(open_dataset(root, "all")) == 3
    devkit = root.parent / "devkit" / "VOCdevkit"
    devkit.mkdir(parents=True)
    root.rename(devkit / "VOC2007")
    assert len(open_dataset(devkit.parent, "train")) == 2


def test_an_unknown_split_is_refused_with_the_names_of_those_there_are(root: Path) -> None:
    with pytest.raises(DataError, match="train, val, all"):
        open_dataset(root, "test")


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'
FILE = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [BOMB, FILE])
def test_document_types_and_their_entities_are_refused(root: Path, head: str) -> None:
    write_xml(root, "a", [("dog", (1, 1, 5, 5))], head=head)
    with pytest.raises(DataError, match="DOCTYPE"):
        open_dataset(root, "train")


def test_a_document_type_in_another_encoding_is_refused_as_well(root: Path) -> None:
    (root / "Annotations" / "a.xml").write_bytes((FILE + "<annotation><object><name>&b;</name></object></annotation>").encode("utf-16"))
    with pytest.raises(DataError, match="DOCTYPE"):
        open_dataset(root, "train")


def test_broken_xml_is_refused_or_dropped(root: Path) -> None:
    (root / "Annotations" / "a.xml").write_text("<annotation><object>")
    with pytest.raises(DataError, match=r"a\.xml is not valid XML"):
        open_dataset(root, "train")
    dataset = open_dataset(root, "train", policy=Policy(broken_file="drop"))
    assert [record.file_name for record in dataset.records] == ["b.jpg"]


@pytest.mark.parametrize(("stem", "kind"), [("../c", "unsafe file name"), ("z", "broken file")])
def test_a_list_that_names_what_is_not_there_or_leaves_the_folder_is_refused(root: Path, stem: str, kind: str) -> None:
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{stem}\n")
    with pytest.raises(DataError, match=kind):
        open_dataset(root, "train")


@pytest.mark.parametrize(
    ("objects", "size", "kind"),
    [
        ([("dog", (1, 1, 5))], (20, 10), "broken_annotation"),
        ([("dog", ("x", 1, 5, 6))], (20, 10), "broken_annotation"),
        ([("dog", ("nan", 1, 5, 6))], (20, 10), "non_finite_box"),
        ([("dog", (15, 5, 25, 9))], (20, 10), "box_outside"),
        ([], (20, 10), "image_without_boxes"),
        ([], None, "undeclared_size"),
        ([], (0, 0), "undeclared_size"),
    ],
)
def test_each_planted_problem_is_counted_and_the_rest_is_read(root: Path, objects: list, size: tuple[int, int] | None, kind: str) -> None:
    write_xml(root, "a", [("cat", (1, 1, 5, 5)), *objects] if objects else [], size)
    dataset = open_dataset(root, "train")
    assert dataset.issues.count(kind) == 1
    assert len(dataset) == 2


def test_names_in_the_file_are_text_and_never_paths(root: Path) -> None:
    write_xml(root, "a", [("&lt;b&gt;dog", (1, 1, 5, 5))], name="../../../etc/passwd")
    dataset = open_dataset(root, "train")
    assert dataset.records[1].file_name == "a.jpg"
    assert "<b>dog" in dataset.classes


def test_the_blood_cells_have_their_official_split_and_both_one_point_boxes_are_reported(shared_data: Path) -> None:
    counts = {}
    boxes = np.zeros(3, int)
    points: list[str] = []
    for split in ("train", "val", "test"):
        dataset = open_dataset(shared_data / "bccd", split)
        assert dataset.classes == ("Platelets", "RBC", "WBC")
        counts[split] = len(dataset)
        boxes += np.bincount(np.concatenate([record.labels for record in dataset.records]), minlength=3)
        assert len(dataset.issues) == dataset.issues.count("zero_size_box")
        points += [example for issue in dataset.issues for example in issue.examples]
    assert counts == {"train": 205, "val": 87, "test": 72}
    assert boxes.sum() + len(points) == 4888
    assert boxes.tolist() == [361, 4153, 372]
    assert sorted(point[:16] for point in points) == ["BloodImage_00338", "BloodImage_00343"]


def flat(folder: Path, stems: str, make_image) -> None:
    """Writes each image with its XML beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        make_image(folder / f"{stem}.jpg")
        write_xml(folder, stem, [("cat", (2, 2, 9, 9))])
        (folder / "Annotations" / f"{stem}.xml").rename(folder / f"{stem}.xml")
    (folder / "Annotations").rmdir()


def test_xml_beside_the_images_is_read_as_one_split(tmp_path: Path, make_image) -> None:
    flat(tmp_path, "abc", make_image)
    dataset = open_dataset(tmp_path, "all")
    assert [record.file_name for record in dataset.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert dataset.records[0].boxes.tolist() == [[1, 1, 9, 9]] and dataset.classes == ("cat",)


@pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets"])
def test_lists_beside_flat_files_make_the_splits(tmp_path: Path, make_image, lists: str) -> None:
    flat(tmp_path, "abc", make_image)
    (tmp_path / lists).mkdir(parents=True)
    (tmp_path / lists / "val.txt").write_text("c\n")
    assert [record.file_name for record in open_dataset(tmp_path, "val").records] == ["c.jpg"]
    assert len(open_dataset(tmp_path, "all")) == 3


def test_folders_of_flat_files_are_the_splits_and_share_their_classes(tmp_path: Path, make_image) -> None:
    for split, stems in (("train", "ab"), ("valid", "c")):
        flat(tmp_path / split, stems, make_image)
    write_xml(tmp_path / "valid", "c", [("dog", (2, 2, 9, 9))])
    (tmp_path / "valid" / "Annotations" / "c.xml").replace(tmp_path / "valid" / "c.xml")
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (2, 1)
    assert train.classes == val.classes == ("cat", "dog")


@pytest.mark.parametrize(("annotations", "images"), [("annotations", "images"), ("Annotations", "images")])
def test_images_and_annotations_in_two_folders_are_read(tmp_path: Path, make_image, annotations: str, images: str) -> None:
    write_xml(tmp_path, "a", [("cat", (2, 2, 9, 9))])
    (tmp_path / "Annotations").rename(tmp_path / annotations)
    make_image(tmp_path / images / "a.jpg")
    assert len(open_dataset(tmp_path, "all")) == 1


def test_xml_of_something_else_beside_images_is_no_dataset(tmp_path: Path, make_image) -> None:
    make_image(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text("<svg/>")
    with pytest.raises(DataError, match="not a dataset"):
        open_dataset(tmp_path, "all")

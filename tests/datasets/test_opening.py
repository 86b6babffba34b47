"""Finding out what lies at a path, and saying what was seen where it is nothing known."""

from pathlib import Path

import pytest

from workbench.datasets.base import Dataset
from workbench.datasets.opening import open_dataset
from workbench.errors import ConfigError, DataError


def make_kitti(root: Path, make_image) -> None:
    make_image(root / "image_2" / "000000.png")
    (root / "label_2").mkdir()
    (root / "label_2" / "000000.txt").write_text("")


def test_shapes_is_the_embedded_dataset_and_takes_its_options() -> None:
    dataset = open_dataset("shapes", "val", val=2, size=48, max_size=20)
    assert isinstance(dataset, Dataset) and len(dataset) == 2 and dataset.records[0].width == 48


def test_wrong_options_of_shapes_are_one_line_with_the_names_of_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        open_dataset("shapes", "val", sizes=3)
    assert "sizes" in str(caught.value) and "max_objects" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_folder_is_refused_with_what_was_seen_and_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path, "train")
    message = str(caught.value)
    assert "Seen: notes.txt, pictures/" in message
    for expected in ("coco:", "ImageSets/Main/SPLIT.txt", "label_2", "data.yaml"):
        assert expected in message


@pytest.mark.parametrize("name", ["nothing", "shapes2"])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / name, "train")


def test_an_empty_folder_and_a_file_of_no_known_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an empty folder"):
        open_dataset(tmp_path, "train")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"one file 'a\.csv'"):
        open_dataset(tmp_path / "a.csv", "train")


def test_a_folder_that_fits_two_formats_is_opened_only_when_told_which(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path, make_image)
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(DataError, match=r"coco at .*; kitti at"):
        open_dataset(tmp_path, "all")
    assert len(open_dataset(tmp_path, "all", format="kitti")) == 1


def test_two_datasets_side_by_side_are_not_chosen_between(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path / "one", make_image)
    make_kitti(tmp_path / "two", make_image)
    with pytest.raises(DataError, match="more than one dataset"):
        open_dataset(tmp_path, "all")


def test_a_format_that_is_asked_for_and_not_there_says_what_it_expects(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="Expected one of: voc: a folder with Annotations"):
        open_dataset(tmp_path, "all", format="voc")


def test_unknown_formats_and_options_are_refused_with_those_there_are(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path, make_image)
    with pytest.raises(ConfigError, match="coco, voc, kitti, yolo"):
        open_dataset(tmp_path, "all", format="tfrecord")
    with pytest.raises(ConfigError, match="kitti has no option images; it has classes"):
        open_dataset(tmp_path, "all", images="x")


def test_an_image_that_breaks_after_opening_gives_an_error_that_names_it(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path, make_image)
    dataset = open_dataset(tmp_path, "all")
    (tmp_path / "image_2" / "000000.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"000000\.png cannot be decoded"):
        dataset.image(0)
    make_image(tmp_path / "image_2" / "000000.png", 30, 30)
    with pytest.raises(DataError, match="is now 30x30 but was 20x10"):
        dataset.image(0)


def test_the_hash_tells_boxes_labels_names_and_sizes_apart(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path, make_image)
    row = "{} 0 0 0 {} 1 1 1 1 1 1 1"
    hashes = set()
    for name, box in (("Car", "1 1 5 5"), ("Car", "1 1 5 6"), ("Van", "1 1 5 5"), ("DontCare", "1 1 5 5"), ("", "")):
        (tmp_path / "label_2" / "000000.txt").write_text(row.format(name, box) if name else "")
        hashes.add(open_dataset(tmp_path, "all").hash())
        assert open_dataset(tmp_path, "all").hash() in hashes
    make_image(tmp_path / "image_2" / "000000.png", 30, 30)
    hashes.add(open_dataset(tmp_path, "all").hash())
    assert len(hashes) == 6


def test_another_format_than_the_one_asked_for_is_named_with_what_to_set(tmp_path: Path, make_image) -> None:
    make_kitti(tmp_path, make_image)
    with pytest.raises(DataError, match=r"is a dataset of format kitti, but voc was asked for.*--set data\.format=kitti"):
        open_dataset(tmp_path, "all", format="voc")


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        ({"a.jpg": "", "b.jpg": ""}, "2 images and no annotations"),
        ({"labels/a.txt": "0", "labels/b.txt": "0"}, "2 txt files and no images"),
        ({"xml/a.xml": "<annotation/>", "xml/b.xml": "<annotation/>"}, "2 xml files and no images"),
        ({"a.jpg": "", "a.json": '{"shapes": [], "version": 1}'}, "a.json, the first of 1 JSON files, is not COCO: it lacks images"),
        (
            {"a.jpg": "", "a.json": '{"shapes": [], "imagePath": "a.jpg"}'},
            "labelme JSON, which is not read. Convert .* to VOC",
        ),
        ({"a.jpg": "", "a.json": "{"}, "is not valid JSON"),
        ({"cells/data.yaml": "names: [a]"}, r"A dataset lies below it: .*cells \(yolo\)"),
    ],
)
def test_what_a_folder_lacks_is_said(tmp_path: Path, files: dict[str, str], advice: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=advice):
        open_dataset(tmp_path, "all")


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="archive: unpack it"):
        open_dataset(tmp_path / "data.zip", "all")

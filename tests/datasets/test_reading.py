"""The policy: what becomes of bad boxes, sizes and files, and what is said about it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workbench.datasets.base import Dataset, Record
from workbench.datasets.issues import Issues, Policy
from workbench.datasets.reading import Contents, entry_from_rows, match_split, usable
from workbench.errors import DataError

NAN = float("nan")


def read(folder: Path, boxes: list[list[float]], policy: Policy, size: Any = (20, 10), name: str = "a.png") -> tuple[list[Record], Issues]:
    rows = [{"box": box, "label": 0, "id": g + 1} for g, box in enumerate(boxes)]
    issues = Issues()
    contents = Contents("d", ("a",), (7,), folder, [entry_from_rows(1, name, size, rows)])
    return [item.record for item in usable(contents, policy, issues)], issues


@pytest.fixture
def folder(tmp_path: Path, make_image) -> Path:
    make_image(tmp_path / "a.png", 20, 10)
    return tmp_path


BAD = {
    "non_finite_box": [1, NAN, 3, 4],
    "inverted_box": [9, 1, 5, 4],
    "zero_size_box": [3, 1, 3, 4],
    "box_outside": [15, -2, 26, 4],
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("choice", ["drop", "refuse"])
def test_a_bad_box_is_dropped_or_refused_with_its_place_and_its_neighbours_stay(folder: Path, kind: str, choice: str) -> None:
    (record,), issues = read(folder, [[0, 0, 4, 4], BAD[kind], [1, 2, 3, 4]], Policy.model_validate({kind: choice}))
    assert record.boxes.tolist() == [[0, 0, 4, 4], [1, 2, 3, 4]]
    assert record.annotation_ids.tolist() == [1, 3]
    (issue,) = issues
    assert (issue.kind, issue.count, issue.severity) == (kind, 1, "error")
    assert "a.png: box 2 (" in issue.examples[0]
    if choice == "refuse":
        with pytest.raises(DataError, match=f"{kind}: drop"):
            issues.raise_refused("d")


@pytest.mark.parametrize(("kind", "mended"), [("inverted_box", [5, 1, 9, 4]), ("box_outside", [15, 0, 20, 4])])
def test_inverted_boxes_are_swapped_and_protruding_ones_clipped_by_default(folder: Path, kind: str, mended: list[float]) -> None:
    (record,), issues = read(folder, [BAD[kind]], Policy())
    assert record.boxes.tolist() == [mended]
    assert [(i.kind, i.action, i.severity) for i in issues] == [(kind, "fixed", "warning")]
    issues.raise_refused("d")


def test_a_box_wholly_outside_counts_as_one_without_size(folder: Path) -> None:
    (record,), issues = read(folder, [[21, 1, 30, 4], [-5, -5, 0, 0]], Policy())
    assert len(record.boxes) == 0
    assert issues.count("zero_size_box") == 2 and issues.count("box_outside") == 0 and issues.count("image_without_boxes") == 1


def test_rounding_over_the_border_is_clipped_without_a_word(folder: Path) -> None:
    (record,), issues = read(folder, [[-0.04, 0, 20.04, 10]], Policy())
    assert record.boxes.tolist() == [[0, 0, 20, 10]]
    assert len(issues) == 0


@given(st.lists(st.lists(st.floats(-50, 50) | st.just(NAN) | st.just(float("inf")), min_size=4, max_size=4), max_size=6))
def test_whatever_the_file_says_boxes_that_stay_are_finite_ordered_and_inside(tmp_path_factory, boxes: list[list[float]]) -> None:
    folder = tmp_path_factory.getbasetemp() / "one_image"
    if not folder.exists():
        from PIL import Image

        folder.mkdir()
        Image.new("RGB", (20, 10)).save(folder / "a.png")
    (record,), issues = read(folder, boxes, Policy())
    assert np.isfinite(record.boxes).all()
    assert (record.boxes[:, :2] < record.boxes[:, 2:]).all()
    assert (record.boxes >= 0).all() and (record.boxes <= [20, 10, 20, 10]).all()
    assert len(record.boxes) + issues.count("non_finite_box") + issues.count("zero_size_box") == len(boxes)
    assert (record.areas > 0).all()


def test_the_files_own_area_is_kept_where_it_has_one(folder: Path) -> None:
    rows = [{"box": [0, 0, 4, 5], "label": 0, "id": 1, "area": 7.5}, {"box": [0, 0, 4, 5], "label": 0, "id": 2}]
    (item,) = usable(Contents("d", ("a",), (1,), folder, [entry_from_rows(1, "a.png", None, rows)]), Policy(), Issues())
    assert item.record.areas.tolist() == [7.5, 20]


def test_an_image_of_another_size_than_declared_is_refused_unless_the_policy_says_otherwise(folder: Path) -> None:
    _, issues = read(folder, [], Policy(), size=(40, 20))
    with pytest.raises(DataError, match="declared 40x20, is 20x10"):
        issues.raise_refused("d")
    records, _ = read(folder, [], Policy(size_mismatch="drop"), size=(40, 20))
    assert records == []
    (record,), issues = read(folder, [], Policy(size_mismatch="fix"), size=(40, 20))
    assert (record.width, record.height) == (20, 10)
    issues.raise_refused("d")


def test_a_size_that_is_not_declared_is_taken_from_the_image(folder: Path) -> None:
    (record,), issues = read(folder, [], Policy(), size=(0, 0))
    assert (record.width, record.height) == (20, 10)
    assert issues.count("undeclared_size") == 1


@pytest.mark.parametrize(("declared", "upright", "size"), [((10, 20), True, (10, 20)), ((20, 10), False, (20, 10)), (None, True, (10, 20))])
def test_the_declared_size_decides_whether_a_turned_image_is_set_upright(
    tmp_path: Path, make_image, declared: Any, upright: bool, size: tuple[int, int]
) -> None:
    make_image(tmp_path / "a.jpg", 20, 10, orientation=6)
    issues = Issues()
    (item,) = usable(Contents("d", ("a",), (1,), tmp_path, [entry_from_rows(1, "a.jpg", declared, [])]), Policy(), issues)
    assert item.upright == upright
    assert (item.record.width, item.record.height) == size
    assert [i.action for i in issues if i.kind == "exif_rotated_image"] == ["converted" if upright else "kept"]


def test_missing_and_unsafe_files_are_refused_and_unreadable_ones_dropped(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    for name, kind, action in [
        ("b.png", "missing_image", "refused"),
        ("../a.png", "unsafe_file_name", "refused"),
        ("broken.png", "unreadable_image", "dropped"),
    ]:
        records, issues = read(folder, [], Policy(), name=name)
        assert records == []
        assert [(i.kind, i.action) for i in issues] == [(kind, action)]


def test_an_issue_counts_each_place_once_and_shows_the_first_five() -> None:
    issues = Issues()
    for i in [*range(8), *range(8)]:
        issues.add("zero_size_box", "dropped", f"place {i}")
    (issue,) = issues
    assert issue.count == 8
    assert issue.examples == [f"place {i}" for i in range(5)]
    assert str(issue) == "zero size box: 8 dropped (place 0; place 1; place 2; place 3; place 4, ...)"


def test_a_policy_refuses_what_it_does_not_know() -> None:
    for wrong in ({"zero_size": "drop"}, {"zero_size_box": "fix"}, {"box_outside": "keep"}):
        with pytest.raises(ValidationError):
            Policy.model_validate(wrong)


@pytest.mark.parametrize(
    ("wanted", "available", "found"),
    [
        ("val", ["train", "val"], "val"),
        ("val", ["train2017", "val2017"], "val2017"),
        ("val", ["train", "valid"], "valid"),
        ("val", ["val2014", "val2017"], None),
        ("test", ["train"], None),
        ("train", ["trainval"], None),
    ],
)
def test_a_split_is_found_under_its_usual_other_names_where_that_is_unambiguous(
    wanted: str, available: list[str], found: str | None
) -> None:
    assert match_split(wanted, available) == found


def test_a_dataset_without_images_or_classes_is_refused() -> None:
    with pytest.raises(DataError, match="no usable image"):
        Dataset("d", "train", ["a"], [1], [], [])


def test_the_documented_policy_is_the_one_in_force() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (fix|drop|refuse) \|", text, re.MULTILINE))
    assert rows == Policy().model_dump()

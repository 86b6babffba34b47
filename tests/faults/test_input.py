"""Data and recipes that nobody wrote on purpose: each is read within its bounds, counted as a problem, or refused with one message."""

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.faults.counting import tried
from tests.faults.mutations import FUZZED, ODD, mutated, mutated_lines
from tests.flows import DISTILLED, TINY, command
from workbench.datasets.base import Dataset
from workbench.datasets.images import MOST_MEGAPIXELS, decode, inside
from workbench.datasets.issues import Policy
from workbench.datasets.opening import open_dataset
from workbench.errors import DataError, WorkbenchError
from workbench.recipe.loading import load_recipe
from workbench.yaml_text import YamlError, parse_yaml

# without limits on fixtures: the folder is the same for all cases, and each case writes all of its files
fuzzed: Callable[..., Any] = settings(FUZZED, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
LENIENT = Policy.model_validate({kind: "drop" for kind in Policy.model_fields})
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}, {"id": 2, "file_name": "b.png", "width": 20, "height": 10}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 4], "area": 20, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [3.5, 2, 5, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}
VOC = (
    "<annotation> <size> <width> 20 </width> <height> 10 </height> </size> <object> <name> cat </name> <difficult> 0 </difficult>\n"
    "<bndbox> <xmin> 2 </xmin> <ymin> 3 </ymin> <xmax> 9 </xmax> <ymax> 8 </ymax> </bndbox> </object> </annotation>\n"
)
KITTI = "Car 0.00 0 -1.57 2.0 1.0 9.0 8.0 1.5 1.6 3.7 1.0 1.7 20.0 -1.6\nDontCare -1 -1 -10 1 1 3 3 -1 -1 -1 -1000 -1000 -1000 -10\n"
YOLO = "0 0.5 0.5 0.25 0.5\n1 0.25 0.5 0.1 0.1\n"
DATA_YAML: dict[str, Any] = {"path": ".", "train": "images", "val": ["images"], "names": {0: "cat", 1: "dog"}}


def pictures(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (20, 10)).save(folder / name)


def sound(dataset: Dataset) -> None:
    """Whatever was read is a dataset."""
    for record in dataset.records:
        assert np.isfinite(record.boxes).all()
        assert (record.boxes >= 0).all() and (record.boxes <= [record.width, record.height] * 2).all()
        assert ((record.labels >= 0) | record.ignore).all() and (record.labels < len(dataset.classes)).all()
    json.dumps(dataset.coco(), allow_nan=False)
    assert len(dataset.hash()) == 64
    "".join(dataset.classes).encode()


def opened(folder: Path, split: str, format: str) -> None:
    for policy in (Policy(), LENIENT):
        try:
            sound(open_dataset(folder, split, format, policy))
        except WorkbenchError as error:
            assert str(error)


@fuzzed
@given(value=mutated(COCO))
def test_a_mutated_coco_file_is_read_counted_or_refused(tmp_path: Path, value: Any):
    tried()
    pictures(tmp_path / "coco", "a.png", "b.png")
    # Python writes numbers of any length and infinity, which other programs do too
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    (tmp_path / "coco" / "instances.json").write_text(json.dumps(value))
    sys.set_int_max_str_digits(before)
    opened(tmp_path / "coco", "all", "coco")


@fuzzed
@given(text=mutated_lines(VOC))
def test_a_mutated_voc_file_is_read_counted_or_refused(tmp_path: Path, text: str):
    tried()
    pictures(tmp_path / "voc" / "JPEGImages", "a.png")
    (tmp_path / "voc" / "Annotations").mkdir(exist_ok=True)
    (tmp_path / "voc" / "Annotations" / "a.xml").write_text(text)
    opened(tmp_path / "voc", "all", "voc")


@fuzzed
@given(text=mutated_lines(KITTI))
def test_a_mutated_kitti_file_is_read_counted_or_refused(tmp_path: Path, text: str):
    tried()
    pictures(tmp_path / "kitti" / "image_2", "000001.png")
    (tmp_path / "kitti" / "label_2").mkdir(exist_ok=True)
    (tmp_path / "kitti" / "label_2" / "000001.txt").write_text(text)
    opened(tmp_path / "kitti", "all", "kitti")


@fuzzed
@given(text=mutated_lines(YOLO), config=mutated(DATA_YAML), both=st.booleans())
def test_mutated_yolo_files_are_read_counted_or_refused(tmp_path: Path, text: str, config: Any, both: bool):
    tried()
    root = tmp_path / "yolo"
    pictures(root / "images", "a.png")
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "a.txt").write_text(text if both else YOLO)
    (root / "data.yaml").write_text(written(config))
    for split in ("train", "val"):
        opened(root, split, "yolo")


@fuzzed
@given(value=mutated({**TINY, **DISTILLED}), arm=st.sampled_from((None, "undistilled", "x")))
def test_a_mutated_recipe_is_read_or_refused(tmp_path: Path, value: Any, arm: str | None):
    tried()
    (tmp_path / "recipe.yaml").write_text(written(value))
    try:
        load_recipe(tmp_path / "recipe.yaml", arm=arm).hash()
    except WorkbenchError as error:
        assert str(error)


@pytest.mark.parametrize("odd", [["detr"], {"detr": 1}, 3, True])
@pytest.mark.parametrize("place", ["student.family", "student.backbone.name", "methods.0.method", "methods.0.profile", "teacher.recipe"])
def test_a_list_where_a_name_belongs_is_refused(tmp_path: Path, place: str, odd: Any):
    recipe: Any = json.loads(json.dumps({**TINY, **DISTILLED}))
    at, *path = recipe, *place.split(".")
    for part in path[:-1]:
        at = at[int(part) if isinstance(at, list) else part]
    at[path[-1]] = odd
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(WorkbenchError, match=place.split(".")[0]):
        load_recipe(tmp_path / "recipe.yaml")


def written(value: Any) -> str:
    """YAML of any value, as another program may write it."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return yaml.safe_dump(value, sort_keys=False)
    finally:
        sys.set_int_max_str_digits(before)


HOSTILE_YAML = {
    "an impossible date": "a: 2020-02-31\n",
    "a number that is none": "a: !!int abc\n",
    "deep": "[" * 100_000,
    "deep mappings": "{a: " * 1000,
    "five thousand digits": f"a: {'9' * 5000}\n",
    "64 bits": f"a: {2**63}\n",
    "infinite": "a: .inf\n",
    "not a number": "a: .nan\n",
    "binary": "a: !!binary aGk=\n",
    "a set": "a: !!set {x}\n",
    "python": "a: !!python/object/apply:os.system [ls]\n",
    "itself": "a: &x [*x]\n",
    "a list as key": "? [1, 2]\n: 3\n",
    "half a letter": 'a: "\\ud800"\n',
    "merging a number": "a: {<<: 3}\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "a bomb": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
    "a bomb of mappings": "a0: &a0 {k0: 1, k1: 1}\n"
    + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}, z: *a{n - 1}}}\n" for n in range(1, 20)),
    "too long": "a: " + "x" * 4_000_001,
}


@pytest.mark.parametrize("what", HOSTILE_YAML)
def test_yaml_beyond_its_bounds_is_one_line_of_message_and_cheap(what: str, tmp_path: Path):
    text = HOSTILE_YAML[what]
    if what == "an impossible date":
        assert parse_yaml(text) == {"a": "2020-02-31"}, "dates are text"
    else:
        with pytest.raises(YamlError) as caught:
            parse_yaml(text)
        assert len(str(caught.value)) <= 500 and "\n" not in str(caught.value)
    (tmp_path / "recipe.yaml").write_text(text)
    code, _, err = command("run", str(tmp_path / "recipe.yaml"), "--device", "cpu")
    assert code == 2 and err.startswith("workbench: "), err
    pictures(tmp_path / "images", "a.png")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError):
        open_dataset(tmp_path, "train", "yolo")


def test_plain_yaml_means_what_it_means_everywhere():
    text = "a: [1, 2.5, true, null, text, 1e-3, 0x10]\nb: &x {c: d}\ne: *x\nf: {<<: *x, g: h}\ni: '2020-01-01'\n"
    assert parse_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=.inf",
        "train.learning_rate=inf",
        "train.steps=1e400",
        "arms=x",
        "methods=3",
        "train.steps=" + "9" * 5000,
        "data.policy={a: 1}",
        "x" * 300,
        "data=" + "[" * 5000,
    ],
)
def test_an_override_beyond_its_bounds_is_refused(override: str):
    code, _, err = command("run", "shapes", "--device", "cpu", "--set", override)
    assert code == 2 and err.startswith("workbench: ") and len(err) < 3000, err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("runs", "show"),
        ("evaluate",),
        ("report",),
        ("diagnose",),
        ("data", "check"),
        ("recipe", "show"),
        ("export",),
        ("compare",),
        ("search", "status"),
    ],
)
@pytest.mark.parametrize("text", ["x" * 300, "./" + "x" * 300, "a\udcffb", "\n", "./a\0b", "²"], ids=ascii)
def test_an_argument_that_nothing_can_be_called_is_one_message(arguments: tuple[str, ...], text: str):
    code, _, err = command(*arguments, text)
    assert 0 < code < 13 and err.startswith("workbench: ") and "Traceback" not in err, err


def test_coco_numbers_have_the_bounds_that_are_stated(tmp_path: Path):
    pictures(tmp_path, "a.png", "b.png")

    def read(**changes: Any) -> Dataset:
        value = json.loads(json.dumps(COCO))
        for place, odd in changes.items():
            kind, key = place.split("__")
            value[kind][0][key] = odd
        (tmp_path / "instances.json").write_text(json.dumps(value))
        return open_dataset(tmp_path, "all", "coco", LENIENT)

    for change in ({"annotations__bbox": "1234"}, {"annotations__bbox": ["1", "2", "3", "4"]}, {"annotations__bbox": [True, 1, 2, 3]},
                   {"annotations__id": 2**63}, {"annotations__image_id": 1.5}):  # fmt: skip
        assert read(**change).issues.count("broken_annotation") == 1, change
    assert read(images__id=2**63).issues.count("broken_annotation") == 1
    assert read(images__file_name="x" * 300 + ".png").issues.count("unsafe_file_name") == 1
    for odd in (float("inf"), 2**63, "\ud800"):
        with pytest.raises(DataError, match="categor"):
            read(**{"categories__name" if isinstance(odd, str) else "categories__id": odd})
    assert read(annotations__id=2**62 - 1).issues.count("broken_annotation") == 0


def test_names_that_no_file_can_have_are_not_looked_up(tmp_path: Path):
    for name in ("x" * 256, "a/" * 600, "\ud800", "a\0", "é" * 200):
        assert inside(tmp_path, name) is None
    assert inside(tmp_path, "é" * 127) == tmp_path / ("é" * 127)


def png_of_zeros(path: Path, width: int, height: int) -> None:
    """A grey PNG that is small on disk and large in memory, written without making its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join([packer.compress(bytes(width + 1)) for _ in range(height)] + [packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_an_image_of_too_many_pixels_is_counted_and_never_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pictures(tmp_path, "a.png")
    png_of_zeros(tmp_path / "b.png", 2000, 1000)
    value = json.loads(json.dumps(COCO))
    value["images"][1] |= {"width": 2000, "height": 1000}
    (tmp_path / "instances.json").write_text(json.dumps(value))
    assert len(open_dataset(tmp_path, "all")) == 2
    monkeypatch.setenv(MOST_MEGAPIXELS, "1.5")
    dataset = open_dataset(tmp_path, "all")
    assert [record.file_name for record in dataset.records] == ["a.png"] and dataset.issues.count("too_many_pixels") == 1
    with pytest.raises(DataError, match=r"2000x1000 pixels, and at most 1\.5 million are decoded"):
        decode(tmp_path / "b.png", False)
    with pytest.raises(DataError, match="too many pixels"):
        open_dataset(tmp_path, "all", policy=Policy(too_many_pixels="refuse"))
    for nonsense in ("x", "-1", "nan", "inf", "0"):
        monkeypatch.setenv(MOST_MEGAPIXELS, nonsense)
        with pytest.raises(DataError, match="Set it to a number above 0"):
            open_dataset(tmp_path, "all")


def test_the_odd_values_of_the_mutations_are_odd():
    assert len(ODD) > 30 and any(isinstance(odd, int) and odd > 2**63 for odd in ODD)

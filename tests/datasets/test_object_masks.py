"""Masks of every format, through every transform; bad ones are refused before C code sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as pycocotools_mask
import pytest
from PIL import Image

from workbench.datasets import object_masks as module
from workbench.datasets import shapes
from workbench.datasets.base import Record
from workbench.datasets.batches import collate
from workbench.datasets.check import check
from workbench.datasets.coco import write_coco
from workbench.datasets.mask_remarks import crosses_itself
from workbench.datasets.object_masks import BrokenMaskError, decoded, encoded, masks_of, read_mask
from workbench.datasets.opening import open_dataset
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.datasets.transforms import Op, Transform

coco_masks: Any = pycocotools_mask  # its hints know one RLE where it takes lists of them
H, W = 10, 20
SQUARE = [2.0, 1.0, 8.0, 1.0, 8.0, 6.0, 2.0, 6.0]


def random_pixels(count: int, height: int = H, width: int = W, seed: int = 0) -> np.ndarray:
    """Blots of several runs."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((count, -(-height // 3), -(-width // 3))) < 0.5, np.ones((1, 3, 3), bool))[:, :height, :width]


def uncompressed(pixels: np.ndarray) -> dict[str, Any]:
    """COCO's RLE as a list, by a loop over the columns."""
    runs, value = [0], False
    for pixel in pixels.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(pixels.shape), "counts": runs}


def coco_folder(folder: Path, make_image: Any, *segmentations: Any, box: tuple[float, ...] = (2, 1, 6, 5)) -> Path:
    make_image(folder / "images" / "a.png", W, H)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": W, "height": H}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": list(box)} | ({} if one is ... else {"segmentation": one})
            for number, one in enumerate(segmentations, start=1)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


def masks_in(folder: Path, split: str = "all") -> np.ndarray:
    masks = open_dataset(folder, split, masks=True).records[0].masks
    assert masks is not None
    return masks.arrays()


def test_coco_polygons_and_both_forms_of_rle_are_the_pixels_that_pycocotools_says(tmp_path: Path, make_image: Any) -> None:
    pixels = random_pixels(1)[0]
    compressed = coco_masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
    text = {"size": [H, W], "counts": compressed["counts"].decode()}
    second = [12.5, 3.25, 17.0, 3.5, 15.0, 8.75]
    folder = coco_folder(tmp_path, make_image, [SQUARE, second], uncompressed(pixels), text, [], ...)
    found = masks_in(folder)
    two = coco_masks.decode(coco_masks.frPyObjects([SQUARE, second], H, W)).any(-1)
    assert (found[0] == two).all() and (found[1] == pixels).all() and (found[2] == pixels).all() and not found[3:].any()
    dataset = open_dataset(folder, "all", masks=True)
    masks = dataset.records[0].masks
    assert masks is not None and masks.counts[3:] == (None, None) and masks.rle(2) == text
    assert masks.areas.tolist() == [two.sum(), pixels.sum(), pixels.sum(), 0, 0]


def test_a_dataset_is_the_same_with_and_without_masks_but_for_the_masks(tmp_path: Path, make_image: Any) -> None:
    folder = coco_folder(tmp_path, make_image, [SQUARE])
    without, with_masks = open_dataset(folder, "all"), open_dataset(folder, "all", masks=True)
    assert without.records[0].masks is None and not without.has_masks and with_masks.has_masks
    assert without.hash() == with_masks.hash()
    truth = with_masks.coco()
    for annotation in truth["annotations"]:
        assert annotation.pop("segmentation")["size"] == [H, W] and annotation.pop("mask_area") == 30
    assert truth == without.coco()


@pytest.mark.parametrize(("source", "reason"), [
    ({"size": [W, H], "counts": [H * W]}, "says size"),
    ({"size": [H, W], "counts": [H * W - 1]}, "fills 199 of the image's 200"),
    ({"size": [H, W], "counts": [5, 10**9]}, "fills 1,000,000,005"),
    ({"size": [H, W], "counts": [H * W + 5, -5]}, "not a whole number from 0 on"),
    ({"size": [H, W], "counts": [0] * 300}, "more runs than the image has pixels"),
    ({"size": [H, W], "counts": "not RLE!"}, "RLE"),
    ({"size": [H, W], "counts": "oooooooooooo0"}, "not COCO's compressed text"),
    ({"size": [H, W], "counts": "X"}, "ends within a run"),
    ({"size": [H, W], "counts": "O"}, "negative length"),
    ({"size": [H, W], "counts": "0" * 9999}, "more runs than the image has pixels"),
    ({"size": [H, W]}, "no counts"),
    ({"counts": [H * W]}, "says size None"),
    ([[1.0, 1.0, 5.0, 5.0]], "4 numbers"),
    ([SQUARE[:7]], "7 numbers"),
    ([[*SQUARE[:7], "x"]], "not a number"),
    ([[*SQUARE[:7], float("nan")]], "NaN"),
    (SQUARE, "neither a list of polygons"),
    ("text", "neither a list of polygons"),
    ([[1.0, 2.0] * 1_000_000], "more than 20,000 points"),
    ([[0.0, 0.0, 1e9, 0.0, 1e9, 1e9]], "pixels long"),
    ([[0.0, 0.0, 200.0, 200.0] * 4500], "pixels long"),
    ([[1e12 + x for x in SQUARE]], "pixels away"),
])  # fmt: skip
def test_a_mask_that_lies_or_has_no_bound_is_refused_and_says_why(source: Any, reason: str) -> None:
    with pytest.raises(BrokenMaskError, match=reason):
        read_mask(source, H, W)


def test_a_broken_mask_is_counted_and_its_target_stays(tmp_path: Path, make_image: Any) -> None:
    folder = coco_folder(tmp_path, make_image, {"size": [1, 1], "counts": [1]}, [SQUARE])
    dataset = open_dataset(folder, "all", masks=True)
    (issue,) = dataset.issues
    assert (issue.kind, issue.action, issue.count) == ("broken_mask", "dropped", 1) and "annotation 1" in issue.examples[0]
    assert len(dataset.records[0].boxes) == 2
    assert not open_dataset(folder, "all").issues, "a detector without masks never hears of it"


def test_every_text_of_compressed_runs_is_read_as_pycocotools_reads_it() -> None:
    for seed in range(30):
        (counts,) = encoded(random_pixels(1, 40, 37, seed))
        assert sum(module._runs(counts)) == 40 * 37
        runs = uncompressed(decoded(counts, 40, 37))["counts"]
        assert module._runs(counts) == runs


def test_a_yolo_segment_is_a_box_for_everyone_and_a_mask_for_those_who_ask(tmp_path: Path, make_image: Any) -> None:
    make_image(tmp_path / "images" / "a.png", W, H)
    shares = [value / side for value, side in zip(SQUARE, [W, H] * 4, strict=True)]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2\n0 {' '.join(map(str, shares))}\n")
    (tmp_path / "classes.txt").write_text("thing\n")
    dataset = open_dataset(tmp_path, "all")
    assert dataset.records[0].boxes[1].tolist() == pytest.approx([2, 1, 8, 6])
    found = masks_in(tmp_path)
    assert not found[0].any() and (found[1] == coco_masks.decode(coco_masks.frPyObjects([SQUARE], H, W)[0])).all()


def test_a_voc_mask_is_the_value_of_its_object_in_the_image_of_objects(tmp_path: Path, make_image: Any) -> None:
    xml = "".join(
        f"<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>" for name in "ab"
    )
    for name in ("one", "two", "odd"):
        make_image(tmp_path / "JPEGImages" / f"{name}.png", W, H)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{xml}</annotation>")
    numbers = np.zeros((H, W), np.uint8)
    numbers[1:4, 2:5], numbers[4:9, 6:9], numbers[4, 2:5] = 1, 2, 255
    (tmp_path / "SegmentationObject").mkdir()
    picture = Image.fromarray(numbers)
    picture.putpalette([value % 256 for value in range(768)])
    picture.save(tmp_path / "SegmentationObject" / "one.png")
    Image.fromarray(numbers[:5]).save(tmp_path / "SegmentationObject" / "odd.png")
    dataset = open_dataset(tmp_path, "all", masks=True)
    odd, one, two = (record.masks for record in dataset.records)
    assert one is not None and odd is not None and two is not None
    assert (one.arrays() == np.stack([numbers == 1, numbers == 2])).all()
    assert not odd.has_any and not two.has_any and dataset.issues.count("broken_mask") == 2


def test_shapes_draws_the_pixels_that_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_NOISE", 0)
    monkeypatch.setattr(shapes, "_texture", lambda random, size, bits, amplitude: np.zeros((size, size, 3), np.int32))
    config = ShapesConfig(train=12, min_objects=4)
    dataset, hidden = generate_shapes(config, "train", masks=True), 0
    assert dataset.hash() == generate_shapes(config, "train").hash()
    for index, record in enumerate(dataset.records):
        assert record.masks is not None
        pixels, image = record.masks.arrays(), dataset.image(index)
        assert pixels.sum(0).max() == 1, "a pixel shows one shape"
        ground = (image == image[0, 0]).all(-1) if not pixels[:, 0, 0].any() else np.zeros((96, 96), bool)
        assert not (ground & pixels.any(0)).any(), "without texture and noise the ground has one colour, and no shape has it"
        for mask, box in zip(pixels, record.boxes.astype(int), strict=True):
            assert not mask[: box[1]].any() and not mask[box[3] :].any() and not mask[:, : box[0]].any() and not mask[:, box[2] :].any()
            _, counts = np.unique(image[mask], axis=0, return_counts=True)
            assert counts.max() / counts.sum() > 0.3, "inside it has one colour, its border is blended"
        last = pixels[-1]
        rows, columns = np.flatnonzero(last.any(1)), np.flatnonzero(last.any(0))
        drawn = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert abs(drawn - record.boxes[-1]).max() <= 1, (
            "nothing hides the last shape; the box also has pixels of which it covers a quarter"
        )
        around = record.masks.boxes()
        hidden += int((abs(around - record.boxes).max(1) > 2).sum())
    assert hidden, "boxes go on behind what hides a shape, masks do not"


OPS: dict[str, list[Op]] = {
    "flip": [{"op": "flip"}],
    **{f"move {move}": [{"op": "dihedral", "move": move}] for move in range(1, 8)},
    "crop": [{"op": "crop", "x": 3, "y": 2, "width": 11, "height": 7}],
    "larger": [{"op": "resize", "width": 33, "height": 25}],
    "smaller": [{"op": "resize", "width": 9, "height": 4}],
    "color": [{"op": "color", "brightness": 900, "contrast": 1100, "saturation": 1000}],
    "all": [
        {"op": "flip"}, {"op": "dihedral", "move": 5}, {"op": "crop", "x": 1, "y": 4, "width": 8, "height": 13},
        {"op": "color", "brightness": 1024, "contrast": 1024, "saturation": 1024}, {"op": "resize", "width": 24, "height": 31},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_a_mask_goes_through_a_transform_as_an_image_of_it_does(name: str) -> None:
    pixels, nothing = random_pixels(3), np.zeros(3, bool)
    boxes = np.tile([0.0, 0.0, W, H], (3, 1))
    record = Record(1, "a", W, H, boxes, np.zeros(3, np.int64), nothing, nothing, np.arange(3), boxes[:, 2], masks=masks_of(pixels))
    transform = Transform()
    picture = np.repeat(pixels[0][:, :, None], 3, axis=2).astype(np.uint8) * 255
    sample = transform.apply(picture, record, OPS[name])
    again = transform.apply(picture, record, json.loads(json.dumps(OPS[name])))
    assert sample.masks is not None and again.masks is not None
    assert sample.masks.tobytes() == again.masks.tobytes() and sample.masks.flags.c_contiguous
    for mask, own in zip(sample.masks, pixels, strict=True):
        shown = transform.apply(np.repeat(own[:, :, None], 3, axis=2).astype(np.uint8) * 255, record, OPS[name]).image[..., 0]
        assert mask.shape == shown.shape == sample.image.shape[:2]
        assert (mask == ((shown > shown.min()) if name == "color" else (shown >= 128))).all()


def test_masks_of_a_batch_keep_the_size_of_their_image_and_its_top_left_corner() -> None:
    dataset = generate_shapes(ShapesConfig(val=2), "val", masks=True)
    ops = [[{"op": "crop", "x": 0, "y": 0, "width": 50, "height": 96}], [{"op": "crop", "x": 0, "y": 0, "width": 96, "height": 40}]]
    transform = Transform()
    samples = [transform.apply(dataset.image(i), dataset.records[i], own) for i, own in enumerate(ops)]
    batch = collate(dataset, [0, 1], samples, transform.config)
    masks = batch.targets.masks
    assert masks is not None and [own.shape[1:] for own in masks] == [(96, 50), (40, 96)]
    for own, padding, record in zip(masks, batch.padding, dataset.records, strict=True):
        whole = record.masks.arrays() if record.masks is not None else None
        assert whole is not None and (own.numpy() == whole[:, : own.shape[1], : own.shape[2]]).all()
        assert not padding[: own.shape[1], : own.shape[2]].any()
    part = batch.part(1, 2).targets
    assert part.masks is not None and len(part.masks) == 1 and part.masks[0] is masks[1]


def test_hundreds_of_masks_in_an_image_are_read_and_measured(tmp_path: Path, make_image: Any) -> None:
    dataset = open_dataset(coco_folder(tmp_path, make_image, *[[SQUARE]] * 300), "all", masks=True)
    masks = dataset.records[0].masks
    assert masks is not None and masks.areas.tolist() == [30] * 300 and masks.boxes().tolist() == [[2, 1, 8, 6]] * 300


def test_an_image_without_targets_has_no_masks_of_the_right_size() -> None:
    none = np.zeros(0, bool)
    masks = masks_of(random_pixels(0))
    record = Record(1, "a", W, H, np.zeros((0, 4)), np.zeros(0, np.int64), none, none, np.zeros(0, np.int64), np.zeros(0), masks=masks)
    sample = Transform().apply(np.zeros((H, W, 3), np.uint8), record, OPS["all"])
    assert sample.masks is not None and sample.masks.shape == (0, 31, 24) and masks.boxes().shape == (0, 4) and not masks.has_any


def test_a_dataset_without_masks_makes_batches_without_them() -> None:
    dataset = generate_shapes(ShapesConfig(val=1), "val")
    sample = Transform().apply(dataset.image(0), dataset.records[0], [])
    assert sample.masks is None and collate(dataset, [0], [sample], Transform().config).targets.masks is None


def test_masks_written_as_coco_are_read_as_they_were(tmp_path: Path) -> None:
    dataset = generate_shapes(ShapesConfig(val=3), "val", masks=True)
    write_coco(dataset, tmp_path)
    again = open_dataset(tmp_path, "val", masks=True)
    for one, two in zip(dataset.records, again.records, strict=True):
        assert one.masks is not None and two.masks is not None
        assert one.masks.counts == two.masks.counts and (one.masks.areas == two.masks.areas).all()


def test_the_check_says_what_is_odd_about_masks(tmp_path: Path, make_image: Any) -> None:
    bow = [2.0, 1.0, 8.0, 6.0, 8.0, 1.0, 2.0, 6.0]
    outside = [2.0, 1.0, 25.0, 1.0, 25.0, 6.0, 2.0, 6.0]
    elsewhere = [12.0, 1.0, 18.0, 1.0, 18.0, 6.0, 12.0, 6.0]
    sliver = [4.0, 4.0, 4.1, 4.0, 4.1, 4.1]
    report = check(
        coco_folder(tmp_path, make_image, [SQUARE], [bow], [outside], [elsewhere], [sliver], ..., {"size": [1, 1], "counts": [1]})
    )
    remarks = {remark.kind: remark.examples for remark in report.remarks if remark.kind.startswith("mask_")}
    assert remarks == {
        "mask_missing": ["a.png: box 6", "a.png: box 7"],
        "mask_empty": ["a.png: box 5"],
        "mask_crosses_itself": ["a.png: annotation 2"],
        "mask_outside": ["a.png: annotation 3"],
        "mask_and_box_differ": ["a.png: box 3", "a.png: box 4"],
    }
    assert [row["kind"] for row in report.rows()] == ["broken_mask"] and not report.ok


def test_the_check_of_data_without_masks_says_nothing_about_them(tmp_path: Path, make_image: Any) -> None:
    report = check(coco_folder(tmp_path, make_image, ..., []))
    assert report.ok and not [remark for remark in report.remarks if remark.kind.startswith("mask")]


def test_a_polygon_crosses_itself_if_filling_it_by_the_two_rules_differs_and_a_convex_one_never_does() -> None:
    assert not crosses_itself(np.array(SQUARE).reshape(-1, 2)) and not crosses_itself(np.array([[0, 0], [4, 0], [0, 4]], float))
    star = np.array([[np.sin(4 * np.pi * k / 5), np.cos(4 * np.pi * k / 5)] for k in range(5)])
    assert crosses_itself(star)
    angles = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 200))
    ragged = np.stack([np.cos(angles), np.sin(angles)], 1) * np.random.default_rng(1).uniform(0.5, 2, 200)[:, None]
    assert not crosses_itself(ragged), "seen from the middle, its corners go round once"
    repeated = np.repeat(np.array(SQUARE).reshape(-1, 2), 2, axis=0)
    assert not crosses_itself(repeated)


def test_a_polygon_covers_the_pixels_whose_centre_is_in_it_but_for_its_outline() -> None:
    polygon = [3.0, 2.0, 30.0, 5.0, 25.0, 28.0, 8.0, 20.0]
    counts = read_mask([polygon], 32, 40)
    assert counts is not None
    corners = np.array(polygon).reshape(-1, 2)
    y, x = np.mgrid[:32, :40] + 0.5
    distance = np.full((32, 40), np.inf)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        distance = np.minimum(distance, ((x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)) / np.hypot(x2 - x1, y2 - y1))
    clear = abs(distance) > 0.75
    assert (decoded(counts, 32, 40)[clear] == (distance > 0)[clear]).all() and (~clear).mean() < 0.12

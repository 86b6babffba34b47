import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workbench.datasets.shapes import ShapesConfig, draw_image
from workbench.detectors.deformable_detr import DeformableDetr
from workbench.detectors.detector import InputSpec
from workbench.detectors.registry import load_detector
from workbench.errors import CheckpointError, DataError, RunError
from workbench.recipe.loading import load_recipe
from workbench.resources import share_path
from workbench.tasks.predict import predict

CLASSES = ("circle", "<b>square</b>", "dreieck ü")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    config = load_recipe(share_path("recipes") / "shapes.yaml").student
    spec = InputSpec(CLASSES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), {"height": 96, "width": 96})
    DeformableDetr.build(config, spec).save(folder)  # pyright: ignore[reportArgumentType]
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    picture = Image.fromarray(draw_image(ShapesConfig(), "val", 0)[0])
    picture.save(folder / "b.png")
    picture.resize((200, 120)).save(folder / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees
    picture.resize((64, 32)).save(folder / "turned.jpg", exif=exif)
    buffer = io.BytesIO()
    picture.resize((300, 300)).save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:20_000])
    (folder / "notes.txt").write_text("no image")
    (folder / "more").mkdir()
    return folder


def test_a_folder_gives_strict_coco_results_in_name_order(detector: Path, images: Path, tmp_path: Path):
    found = predict(str(detector), images, tmp_path / "out", 0.0, "cpu")
    results = json.loads((tmp_path / "out/results.json").read_text())
    about = json.loads((tmp_path / "out/images.json").read_text())
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in about["images"]] == [
        (1, "a.jpg", 200, 120), (2, "b.png", 96, 96), (3, "turned.jpg", 32, 64),
    ]  # fmt: skip
    assert about["categories"] == [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    assert found.images == 3
    assert found.detections == len(results) > 0
    sizes = {i["id"]: (i["width"], i["height"]) for i in about["images"]}
    for row in results:
        assert set(row) == {"image_id", "category_id", "bbox", "score"}
        x, y, w, h = row["bbox"]
        width, height = sizes[row["image_id"]]
        assert 0 <= row["score"] <= 1
        assert 0 <= x <= x + w <= width + 1e-3
        assert 0 <= y <= y + h <= height + 1e-3
    for image_id in sizes:
        scores = [row["score"] for row in results if row["image_id"] == image_id]
        assert scores == sorted(scores, reverse=True)
        assert 0 < len(scores) <= 100


def test_what_is_no_image_is_skipped_and_named(detector: Path, images: Path, tmp_path: Path):
    skipped = predict(str(detector), images, tmp_path / "out", 0.3, "cpu").skipped
    assert len(skipped) == 3
    assert all(any(name in line for line in skipped) for name in ("cut.png", "notes.txt", "more"))


def test_the_numbers_are_those_of_the_detector_on_the_image_it_was_given(detector: Path, images: Path, tmp_path: Path):
    predict(str(detector), images / "b.png", tmp_path / "out", 0.3, "cpu")
    results = json.loads((tmp_path / "out/results.json").read_text())
    model = load_detector(detector).eval()
    pixels = torch.from_numpy(np.array(Image.open(images / "b.png"))).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor(model.spec.mean).view(3, 1, 1), torch.tensor(model.spec.std).view(3, 1, 1)
    with torch.no_grad():
        output = model((pixels - mean) / std, torch.zeros(1, 96, 96, dtype=torch.bool))
    scores = output.logits[-1, 0].sigmoid()
    best = int(scores.max(1).values.argmax())
    cx, cy, w, h = (output.boxes[-1, 0, best] * 96).tolist()
    x1, y1, x2, y2 = max(cx - w / 2, 0), max(cy - h / 2, 0), min(cx + w / 2, 96), min(cy + h / 2, 96)
    assert results[0]["score"] == pytest.approx(float(scores[best].max()), abs=1e-5)
    assert results[0]["category_id"] == int(scores[best].argmax()) + 1
    assert results[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-2)


def test_a_picture_is_drawn_for_every_image_with_boxes_at_or_above_the_threshold(detector: Path, images: Path, tmp_path: Path):
    predict(str(detector), images, tmp_path / "all", 0.0, "cpu")
    predict(str(detector), images, tmp_path / "none", 1.1, "cpu")
    assert sorted(p.name for p in (tmp_path / "all/drawn").iterdir()) == ["a.jpg.png", "b.png.png", "turned.jpg.png"]
    plain = np.asarray(Image.open(tmp_path / "none/drawn/b.png.png"))
    original = np.asarray(Image.open(images / "b.png"))
    factor = plain.shape[0] // 96
    assert np.array_equal(plain[::factor, ::factor], original)
    drawn = np.asarray(Image.open(tmp_path / "all/drawn/b.png.png"))
    assert drawn.shape == plain.shape
    assert not np.array_equal(drawn, plain)


def test_predictions_that_are_there_are_left_as_they_are(detector: Path, images: Path, tmp_path: Path):
    predict(str(detector), images / "b.png", tmp_path / "out", 0.3, "cpu")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"out holds predictions already \(results\.json, drawn\).*--out"):
        predict(str(detector), images / "a.jpg", tmp_path / "out", 0.3, "cpu")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    (tmp_path / "out" / "results.json").unlink()
    with pytest.raises(RunError, match=r"\(drawn\)"):
        predict(str(detector), images / "a.jpg", tmp_path / "out", 0.3, "cpu")


def test_a_missing_path_or_a_folder_without_images_is_an_error_that_names_it(detector: Path, tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        predict(str(detector), tmp_path / "nowhere", tmp_path / "out", 0.3, "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        predict(str(detector), tmp_path / "empty", tmp_path / "out", 0.3, "cpu")
    assert not (tmp_path / "out").exists()


def test_an_unknown_detector_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no detector 'nothing'"):
        predict("nothing", tmp_path, tmp_path / "out", 0.3, "cpu")

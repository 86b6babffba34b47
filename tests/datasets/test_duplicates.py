"""Near-duplicates: found after usual changes, not among textures, and never by chance of the blocks."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from workbench.datasets import duplicates
from workbench.datasets.duplicates import groups, thumbnail, twins


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC)


def seen(*images: Image.Image) -> np.ndarray:
    return np.stack([thumbnail(np.array(image)) for image in images])


def saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        saved_again,
        lambda image: image.resize((100, 80)),
        lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        lambda image: image.crop((3, 2, 317, 238)),
    ],
)
def test_an_image_is_found_again_after_a_small_change(change) -> None:
    for seed in range(5):
        assert twins(seen(change(picture(seed))), seen(*map(picture, range(5)))).tolist() == [seed]


def test_different_images_and_flat_ones_of_different_grey_are_apart_and_equal_flat_ones_together() -> None:
    flat = [Image.new("RGB", (64, 48), (grey, grey, grey)) for grey in (10, 200, 10)]
    assert len(set(groups(seen(*map(picture, range(20)), *flat)).tolist())) == 22
    found = groups(seen(*flat))
    assert found[0] == found[2] != found[1]


thumbnails = st.integers(0, 2**32 - 1).map(
    lambda seed: (np.random.default_rng(seed).integers(0, 256, (6, 256)) + 0).astype(np.uint8)[
        np.random.default_rng(seed + 1).integers(0, 6, 40)
    ]
)


@given(thumbnails, st.integers(1, 9))
def test_groups_are_the_components_of_the_pairs_whatever_the_block(images: np.ndarray, block: int) -> None:
    noise = np.random.default_rng(0).integers(-8, 9, images.shape)
    images = np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)
    halves = (images // 2).astype(int).reshape(-1, 16, 16)
    vectors = np.concatenate([np.diff(halves, axis=2).reshape(40, -1), np.diff(halves, axis=1).reshape(40, -1)], 1).astype(float)
    cosine = vectors @ vectors.T / np.outer(np.linalg.norm(vectors, axis=1), np.linalg.norm(vectors, axis=1))
    expected = list(range(40))
    for _ in range(40):
        expected = [min(expected[other] for other in range(40) if cosine[own, other] >= 0.95) for own in range(40)]
    before = duplicates._BLOCK
    try:
        duplicates._BLOCK = block
        found = groups(images)
        first = twins(images, images[:20])
    finally:
        duplicates._BLOCK = before
    assert len(set(zip(found.tolist(), expected, strict=True))) == len(set(expected)) == len(set(found.tolist()))
    assert first.tolist() == [next((other for other in range(20) if cosine[own, other] >= 0.95), -1) for own in range(40)]


def test_real_data_holds_the_pairs_that_a_look_at_them_confirms(shared_data: Path) -> None:
    cells = sorted((shared_data / "bccd").rglob("*.jpg"))
    found = groups(np.stack([thumbnail(np.array(Image.open(path).convert("RGB"))) for path in cells]))
    counts = np.bincount(found)
    assert [path.stem for path, group in zip(cells, found, strict=True) if counts[group] > 1] == ["BloodImage_00037", "BloodImage_00038"]

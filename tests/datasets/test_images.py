"""Image files of every odd kind become 8-bit RGB, or an error that names the file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.datasets.images import FolderImages, decode, inside, read_header
from workbench.errors import DataError

# EXIF orientation -> what a viewer does to the stored rows and columns (EXIF 2.3, tag 274)
VIEWED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def write_png(path: Path, pixels: np.ndarray, colour: int) -> None:
    """A 16-bit PNG by hand: Pillow cannot write 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "mode", "kinds"),
    [
        ("a.png", "P", ("palette_image",)),
        ("a.jpg", "CMYK", ("cmyk_image",)),
        ("a.jpg", "L", ()),
        ("a.png", "RGBA", ()),
        ("a.png", "LA", ()),
        ("a.png", "1", ()),
        ("a.gif", "P", ("palette_image",)),
        ("a.bmp", "RGB", ()),
        ("a.webp", "RGB", ()),
    ],
)
def test_every_mode_is_decoded_to_rgb_and_what_is_converted_is_told(tmp_path: Path, make_image, name: str, mode: str, kinds: tuple) -> None:
    path = make_image(tmp_path / name, 20, 10, mode)
    header = read_header(path)
    image = decode(path, upright=False)
    assert image.shape == (10, 20, 3) and image.dtype == np.uint8
    assert header.conversions == kinds
    assert header.stored == header.displayed == (20, 10)


def test_sixteen_bit_pixels_keep_their_high_byte_instead_of_being_cut_to_white(tmp_path: Path) -> None:
    grey = (np.arange(12 * 8).reshape(8, 12) * 683).astype(np.uint16)
    colour = np.stack([grey, grey // 2, grey // 3], axis=2)
    write_png(tmp_path / "grey.png", grey, 0)
    write_png(tmp_path / "colour.png", colour, 2)
    assert read_header(tmp_path / "grey.png").conversions == ("sixteen_bit_image",)
    assert read_header(tmp_path / "colour.png").conversions == ("sixteen_bit_image",)
    assert (decode(tmp_path / "grey.png", False) == (grey >> 8)[:, :, None]).all()
    assert (decode(tmp_path / "colour.png", False) == colour >> 8).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_exif_orientation_is_applied_as_a_viewer_does(tmp_path: Path, make_image, orientation: int, ending: str) -> None:
    path = make_image(tmp_path / f"a.{ending}", 20, 10, orientation=orientation)
    header = read_header(path)
    stored = decode(path, upright=False)
    assert stored.shape == (10, 20, 3) and header.stored == (20, 10)
    shown = VIEWED[orientation](stored)
    assert header.turned == (orientation != 1)
    assert header.displayed == (shown.shape[1], shown.shape[0])
    assert (decode(path, upright=True) == shown).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_file_that_is_cut_off_is_noticed_when_its_header_is_read(tmp_path: Path, make_image, name: str) -> None:
    path = make_image(tmp_path / name, 200, 100)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=name):
        read_header(path)
    with pytest.raises(DataError, match=name):
        decode(path, False)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_gives_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_header, lambda p: decode(p, False)):
        with pytest.raises(DataError) as caught:
            read(path)
        assert "a.png" in str(caught.value) and "\n" not in str(caught.value)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="floating-point"):
        decode(tmp_path / "a.tiff", False)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "x/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\a.jpg", "", " ", "a\0.jpg"]
)
def test_a_name_that_leaves_the_folder_is_no_path(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) is None


@pytest.mark.parametrize("name", ["a.jpg", "x/y/a.jpg", "a..b.jpg", "<b>.jpg", "ä ö.jpg"])
def test_an_ordinary_name_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


def test_a_small_folder_is_decoded_once_and_what_it_returns_cannot_be_written_to(tmp_path: Path, make_image) -> None:
    path = make_image(tmp_path / "a.png")
    images = FolderImages([path], [False])
    first = images[0]
    path.unlink()
    assert images[0] is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1

"""Reads image files: what their header says, and their pixels as 8-bit RGB."""

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from workbench.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LONGEST_NAME, _LONGEST_PATH = 255, 1024  # bytes of a name, which file systems allow, and characters of a path
MOST_MEGAPIXELS = "WORKBENCH_MOST_MEGAPIXELS"  # environment variable
_MEGAPIXELS = 100.0  # 300 MB once decoded
_KEPT_BYTES = 256 * 2**20
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    MemoryError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        stored: Width and height of the stored pixels.
        turned: True if the EXIF orientation asks a viewer to flip or rotate the stored pixels.
        transposed: True if this exchanges width and height.
        conversions: Issue kinds of the conversions that decoding will make.
    """

    stored: tuple[int, int]
    turned: bool
    transposed: bool
    conversions: tuple[str, ...]

    @property
    def displayed(self) -> tuple[int, int]:
        """Returns width and height after the EXIF orientation."""
        return (self.stored[1], self.stored[0]) if self.transposed else self.stored


def read_header(path: Path) -> Header:
    """Reads the header, and all pixels if the file seems to be cut off.

    Raises:
        DataError: the file is not an image, or is cut off.
    """
    try:
        with _opened(path) as image:
            # Pillow decodes a whole PNG to look for EXIF after the pixels; only what stands before them counts here.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            header = Header(image.size, orientation in range(2, 9), orientation in range(5, 9), _conversions(image))
            if header.stored[0] * header.stored[1] > most_pixels():
                return header
            if not _ends_well(path, image.format):
                image.load()
        return header
    except _READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as an image: {_reason(error)}") from error


def decode(path: Path, upright: bool) -> np.ndarray:
    """Decodes a file to ``[H, W, 3]`` uint8 RGB.

    Palette, CMYK and grey images are converted, transparency is dropped, and 16-bit channels keep their high byte.

    Args:
        path: the file.
        upright: True applies the EXIF orientation, which the caller knows from ``read_header``.

    Raises:
        DataError: the file cannot be decoded; the message names it.
    """
    try:
        with _opened(path) as image:
            if image.size[0] * image.size[1] > most_pixels():
                raise ValueError(too_large(image.size))
            if image.mode == "F":
                raise ValueError("floating-point pixels have no agreed range; convert the file to 8 bits")
            picture = ImageOps.exif_transpose(image) if upright else image
            if picture.mode in _SIXTEEN_BIT:
                grey = (np.clip(np.asarray(picture), 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(picture.convert("RGB"))
    except _READ_ERRORS as error:
        raise DataError(f"{path} cannot be decoded: {_reason(error)}. Run 'workbench data check' on the dataset.") from error


def most_pixels() -> float:
    """Returns how many pixels an image may have to be decoded: a hundred million, or what ``WORKBENCH_MOST_MEGAPIXELS`` says.

    Raises:
        DataError: the variable holds no number above 0.
    """
    text = os.environ.get(MOST_MEGAPIXELS) or str(_MEGAPIXELS)
    try:
        found = 1e6 * float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise DataError(f"{MOST_MEGAPIXELS} is {text[:50]!r}. Set it to a number above 0, such as 200, or remove it.")
    return found


def too_large(size: tuple[int, int]) -> str:
    """Returns what to say about an image with too many pixels."""
    return f"it has {size[0]}x{size[1]} pixels, and at most {most_pixels() / 1e6:g} million are decoded ({MOST_MEGAPIXELS} changes that)"


def inside(folder: Path, name: str) -> Path | None:
    """Returns ``folder / name``, or None if ``name`` is absolute, climbs with '..', or is a name that no file can have."""
    try:
        parts = name.encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return None
    if len(name) > _LONGEST_PATH or max(map(len, parts)) > _LONGEST_NAME:
        return None
    for pure in (PurePosixPath(name), PureWindowsPath(name)):
        if pure.is_absolute() or pure.drive or pure.root or ".." in pure.parts:
            return None
    return folder / name if name.strip() and "\0" not in name else None


class FolderImages:
    """Decodes files when asked for and keeps the first 256 MiB, so that small datasets are decoded once.

    Args:
        files: one file per record.
        upright: for each record, whether to apply the EXIF orientation.
    """

    def __init__(self, files: list[Path], upright: list[bool]):
        self._files = files
        self._upright = upright
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0

    def __getitem__(self, index: int, /) -> np.ndarray:
        image = self._kept.get(index)
        if image is None:
            image = decode(self._files[index], self._upright[index])
            image.flags.writeable = False
            if self._bytes + image.nbytes <= _KEPT_BYTES:
                self._kept[index] = image
                self._bytes += image.nbytes
        return image


def _opened(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF blocks and large images do not concern the reader
        return Image.open(path)


def _conversions(image: Image.Image) -> tuple[str, ...]:
    kinds = []
    if image.mode in ("P", "PA"):
        kinds.append("palette_image")
    if image.mode in ("CMYK", "YCCK"):
        kinds.append("cmyk_image")
    # Pillow reports 16-bit colour as mode RGB and drops the low byte; only the raw mode tells.
    tiles = getattr(image, "tile", [])
    raw = [tile[3] if isinstance(tile[3], str) else str((tile[3] or ("",))[0]) for tile in tiles]
    if image.mode in _SIXTEEN_BIT or any(";16" in mode for mode in raw):
        kinds.append("sixteen_bit_image")
    return tuple(kinds)


def _ends_well(path: Path, format: str | None) -> bool:
    """False if a JPEG or PNG lacks its end marker in the last kilobytes. Other formats are not checked."""
    marker = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(format or "")
    if marker is None:
        return True
    with open(path, "rb") as file:
        file.seek(-min(4096, path.stat().st_size), 2)
        return marker in file.read()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return str(error) or type(error).__name__

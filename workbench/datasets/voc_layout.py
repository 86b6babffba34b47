"""Finds where a Pascal VOC dataset keeps its annotations and images: the development kit's folders, two folders, or all in one."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from workbench.datasets.images import SUFFIXES
from workbench.datasets.reading import subfolders

_PAIRS = (("Annotations", "JPEGImages"), ("annotations", "images"), ("Annotations", "images"), ("annotations", "JPEGImages"))
_PROBED = 20  # files


@dataclass(frozen=True)
class Layout:
    """Folders of one part of the data.

    Attributes:
        annotations: Folder of the XML files.
        images: Folder of the images; the same one if each XML lies beside its image.
    """

    annotations: Path
    images: Path

    def image_names(self) -> dict[str, str]:
        """Returns the file name of each image by its name without ending; the first of ``SUFFIXES`` wins."""
        files = [file.name for file in self.images.iterdir() if file.suffix.lower() in SUFFIXES]
        order = {suffix: position for position, suffix in enumerate(SUFFIXES)}
        return {Path(name).stem: name for name in sorted(files, key=lambda name: (-order[Path(name).suffix.lower()], name))}


def layouts(root: Path) -> dict[str, Layout]:
    """Returns the parts of a dataset: one without a name, or one for each folder of XML files beside their images.

    Args:
        root: a folder.

    Returns:
        Empty if there is no VOC dataset.
    """
    own = _layout(root)
    if own is not None:
        return {"": own}
    parts = {folder.name: _layout(folder) for folder in subfolders(root)}
    return {name: part for name, part in parts.items() if part is not None and part.images.name != "JPEGImages"}


def roots(path: Path) -> list[Path]:
    """Returns ``path`` or folders up to two levels below it (VOCdevkit/VOC2007)."""
    if not path.is_dir():
        return []
    below = subfolders(path)
    for folders in ([path], below, [folder for parent in below for folder in subfolders(parent)]):
        found = [folder for folder in folders if layouts(folder)]
        if found:
            return found
    return []


def _layout(folder: Path) -> Layout | None:
    for number, (annotations, images) in enumerate(_PAIRS):
        pair = Layout(folder / annotations, folder / images)
        # only the development kit's names say by themselves that this is VOC
        if pair.annotations.is_dir() and pair.images.is_dir() and (not number or any(_voc_files(pair.annotations))):
            return pair
    here = Layout(folder, folder)
    first = list(islice(_voc_files(folder), _PROBED))
    names = here.image_names() if first else {}
    return here if any(file.stem in names for file in first) else None


def _voc_files(folder: Path) -> Iterable[Path]:
    """Yields the XML files that hold a VOC annotation."""
    return (file for file in folder.glob("*.xml") if _is_voc(file))


def _is_voc(file: Path) -> bool:
    try:
        with open(file, "rb") as stream:
            return b"<annotation" in stream.read(2048)
    except OSError:
        return False

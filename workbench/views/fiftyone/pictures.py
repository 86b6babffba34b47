"""Finds the image files of a dataset for the App; images that exist only in memory are written as PNG files."""

from pathlib import Path

from PIL import Image

from workbench.datasets.base import Dataset
from workbench.files import cache_folder, replacing_folder
from workbench.remote import is_remote
from workbench.store.run import Run


def picture_paths(dataset: Dataset, run: Run, split: str) -> list[Path]:
    """Returns one file per record, in order. Images without a file are written once: into the run, or the user's cache if it is remote."""
    if dataset.paths is not None:
        return [Path(path).absolute() for path in dataset.paths]
    key = dataset.hash()[:16]
    folder = cache_folder() / "pictures" / key if is_remote(run.path) else run.pictures_path(split, key).absolute()
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing_folder(folder) as temporary:
            for index in range(len(dataset)):
                Image.fromarray(dataset.image(index)).save(temporary / f"{index:06d}.png", compress_level=1)
    return [folder / f"{index:06d}.png" for index in range(len(dataset))]

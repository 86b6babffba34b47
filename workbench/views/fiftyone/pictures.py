"""Where the App finds the pixels of a dataset: its own files, or PNG files made of images that exist in memory only."""

from pathlib import Path

from PIL import Image

from workbench.datasets.base import Dataset
from workbench.files import replacing_folder
from workbench.remote import is_remote
from workbench.services.servers import cache_folder
from workbench.store.run import Run


def picture_paths(dataset: Dataset, run: Run, split: str) -> list[Path]:
    """One file per record, in their order; images that have none are written once, into the run, or the user's cache for a remote run."""
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

"""Runs that lie in no local folder: any address that fsspec knows, such as ``s3://bucket/runs``.

What is read there is read in place. Folders of the query store can be written there too; training and its logs, which are appended to,
need a local folder.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from workbench.errors import MissingExtraError, RunError

# what completes a folder of several files comes last, so that a reader finds all of it or none
_LAST = ("manifest.json", "DONE")


def as_path(name: str | Path) -> Path:
    """A local path, or for an address with ``://`` what stands for one: it reads like a ``Path``.

    Raises:
        MissingExtraError: the file system of the address is not installed.
        RunError: no file system is called so.
    """
    if not isinstance(name, str):
        return name
    if "://" not in name:
        return Path(name)
    from upath import UPath

    try:
        # listings of a file system that others write to are not kept
        path = UPath(name, use_listings_cache=False)
        path.fs  # noqa: B018 - found and imported here
    except ImportError as error:
        raise MissingExtraError(f"{name} cannot be read: {error}") from error
    except (ValueError, OSError) as error:
        raise RunError(f"{name} cannot be read: {error}") from error
    return cast(Path, path)  # universal_pathlib's has every method of a Path that is used, and is no subclass of it


def is_remote(path: Any) -> bool:
    """Whether ``path`` is not of this machine's own file system."""
    return not isinstance(path, Path | str)


def file_system(path: Path) -> Any:
    """The fsspec file system of a remote path."""
    return path.fs  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def uploading(path: Path) -> Iterator[Path]:
    """Yields a local temporary file; on a clean exit it is stored at ``path``, whole: object stores have no half-written files."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        local.touch()
        yield local
        file_system(path).put_file(str(local), _inner(path))


@contextmanager
def uploading_folder(path: Path) -> Iterator[Path]:
    """Yields a local temporary folder; on a clean exit its files take the place of those below ``path``, the manifest last.

    A reader finds no complete folder meanwhile.
    """
    local = Path(tempfile.mkdtemp())
    try:
        yield local
        fs = file_system(path)
        for name in _LAST:
            if (path / name).exists():
                (path / name).unlink()
        if path.exists():
            fs.rm(_inner(path), recursive=True)
        for file in sorted(local.iterdir(), key=lambda file: (file.name in _LAST, file.name)):
            fs.put_file(str(file), _inner(path / file.name))
    finally:
        shutil.rmtree(local, ignore_errors=True)


def _inner(path: Path) -> str:
    """The path as its file system names it."""
    return path.path  # pyright: ignore[reportAttributeAccessIssue]

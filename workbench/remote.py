"""Runs in remote folders: any address that fsspec knows, such as ``s3://bucket/runs``.

Remote files are read in place. Folders of the query store can also be written remotely. Training needs a local folder because it
appends to its logs.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from workbench.errors import MissingExtraError, RunError

# these files mark a folder of several files as complete; they are stored last, so that a reader finds all of it or nothing
_LAST = ("manifest.json", "DONE")


def as_path(name: str | Path) -> Path:
    """Returns a local path, or for an address with ``://`` an object that reads like a ``Path``.

    Raises:
        MissingExtraError: the package for the address's file system is not installed.
        RunError: no file system has that name.
    """
    if not isinstance(name, str):
        return name
    if "://" not in name:
        return Path(name)
    from upath import UPath

    try:
        # listings are not cached, because other processes write to the same file system
        path = UPath(name, use_listings_cache=False)
        path.fs  # noqa: B018 - this access imports the file system
    except ImportError as error:
        raise MissingExtraError(f"{name} cannot be read: {error}") from error
    except (ValueError, OSError) as error:
        raise RunError(f"{name} cannot be read: {error}") from error
    return cast(Path, path)  # a UPath has every method of Path that is used here, but is not a subclass of it


def is_remote(path: Any) -> bool:
    """True if ``path`` is not on this machine's own file system."""
    return not isinstance(path, Path | str)


def file_system(path: Path) -> Any:
    """Returns the fsspec file system of a remote path."""
    return path.fs  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def uploading(path: Path) -> Iterator[Path]:
    """Yields a local temporary file; on a clean exit it is stored whole at ``path``, since object stores have no half-written files."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / path.name
        local.touch()
        yield local
        file_system(path).put_file(str(local), _inner(path))


@contextmanager
def uploading_folder(path: Path) -> Iterator[Path]:
    """Yields a local temporary folder; on a clean exit its files replace those below ``path``, the manifest last.

    Meanwhile a reader finds no complete folder there.
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
    """Returns the path as its file system names it."""
    return path.path  # pyright: ignore[reportAttributeAccessIssue]

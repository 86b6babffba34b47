"""Connects to FiftyOne and its database. No other package of the library imports fiftyone, and this one only inside ``connected``, because
fiftyone reads its settings when it is first imported.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import MissingExtraError, WorkbenchError, pip_install
from workbench.files import hash_json
from workbench.services import mongo
from workbench.store.run import Run

PLUGINS = Path(__file__).parent / "plugins"
PING_MS = 10_000
GOODBYE_SECONDS = 1
FoDataset = Any  # fiftyone's classes are made of database fields, whose types no checker can follow


def dataset_name(run: Run, baseline: Run | None, split: str) -> str:
    """Returns the name of a comparison in the App's list. Its end tells the folders of runs apart, which may hold runs of the same name."""
    folders = [str(one.path.absolute().parent) for one in (run, baseline) if one is not None]
    return f"{former_name(run, baseline, split)} ({hash_json(folders)[:6]})"


def former_name(run: Run, baseline: Run | None, split: str) -> str:
    """Returns the name that a comparison had in earlier versions, under which its tags may lie."""
    return f"{run.name} against {baseline.name}, {split}" if baseline is not None else f"{run.name}, {split}"


@contextlib.contextmanager
def connected(folder: Path | None = None) -> Iterator[str]:
    """Provides FiftyOne with its database for as long as the block runs and yields the database's address.

    Args:
        folder: folder of the database; the user's cache by default. Ignored if the environment names a database.

    Raises:
        MissingExtraError: fiftyone is not installed.
        WorkbenchError: there is no MongoDB, or it does not answer.
    """
    _need_fiftyone()
    with mongo.database(folder) as uri:
        ours = not os.environ.get(mongo.URI)  # otherwise the user set the address, or an enclosing block did
        try:
            with using(uri):
                yield uri
        finally:
            if ours:
                _disconnect()


@contextlib.contextmanager
def using(uri: str) -> Iterator[None]:
    """Sets FiftyOne up to use a running database, for this process and those that it starts.

    Raises:
        MissingExtraError: fiftyone is not installed.
        WorkbenchError: the database does not answer.
    """
    _need_fiftyone()
    # the App's own process reads these settings too, and has to find this package for the panel
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        mongo.URI: uri, "FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_PLUGINS_DIR": str(PLUGINS), "FIFTYONE_DATABASE_VALIDATION": "false",
        "FIFTYONE_LOGGING_LEVEL": "ERROR", "FIFTYONE_SHOW_PROGRESS_BARS": "false",
        "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _check(uri)
        if "fiftyone" in sys.modules:
            _apply(uri)
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _need_fiftyone() -> None:
    if find_spec("fiftyone") is None:
        raise MissingExtraError(f"looking at errors in FiftyOne needs fiftyone. Install it with {pip_install('inspect')}.")


def _check(uri: str) -> None:
    """Fails at once where FiftyOne would wait, and does not print the address, which may hold a password."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        with MongoClient(uri, serverSelectionTimeoutMS=PING_MS) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        raise WorkbenchError(
            f"no MongoDB answers at the address in {mongo.URI} ({type(error).__name__}). Start it or correct the address. If you "
            "unset the variable, the workbench starts its own."
        ) from error


def _apply(uri: str) -> None:
    """Applies the settings to a fiftyone that was imported earlier."""
    import fiftyone

    if fiftyone.config.database_uri != uri:  # it keeps using the first address that it was given
        _disconnect()
    fiftyone.config.database_uri = uri
    fiftyone.config.plugins_dir = str(PLUGINS)
    fiftyone.config.do_not_track = True
    fiftyone.config.database_validation = False


def _disconnect() -> None:
    """Disconnects fiftyone, which would otherwise ask the stopped database for half a minute when Python ends."""
    if "fiftyone" in sys.modules:
        import pymongo
        from fiftyone.core.odm import database

        with pymongo.timeout(GOODBYE_SECONDS):  # the database may be gone already, and pymongo would wait for it
            database._disconnect()

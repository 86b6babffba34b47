"""The FiftyOne App on the loopback address: served here, found by other processes, and told by them what to show."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from workbench import mongo
from workbench.errors import MissingExtraError, WorkbenchError
from workbench.servers import ADDRESS, Server, find, free_port, listens, named, noted
from workbench.views.fiftyone import FoDataset

APP = "fiftyone"
START_SECONDS = 180


@contextlib.contextmanager
def serving(dataset: FoDataset, database: str, port: int = 5151) -> Iterator[str]:
    """Serves the App for as long as the block runs; yields its address. Called inside ``connected``.

    FiftyOne's own session gives its server one minute to start, which a busy machine does not keep; the server is therefore started here.

    Args:
        dataset: shown.
        database: address of the database, for processes that attach.
        port: wished for; another one where it is taken.

    Raises:
        WorkbenchError: the App does not answer.
    """
    import fiftyone as fo
    import fiftyone.constants as foc

    port = free_port() if listens(port) else port
    command = [sys.executable, "main.py", "--port", str(port), "--address", ADDRESS]
    server = subprocess.Popen(command, cwd=foc.SERVER_DIR, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise WorkbenchError(f"FiftyOne's App did not answer on port {port} within {START_SECONDS} s; see its output above.")
            time.sleep(0.2)
        # the App shows what its server's session says, whatever the address
        fo.launch_app(dataset, port=port, address=ADDRESS, remote=True, auto=False)
        with noted(APP, port, database=database):
            yield f"http://{ADDRESS}:{port}"
    finally:
        fo.close_app()
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def running() -> Server | None:
    """The App of this user that ``workbench inspect`` serves; None where there is none. Does not import fiftyone."""
    server = find(named(APP))
    return server if server is not None and listens(server.port) else None


def show(server: Server, dataset: str, image_ids: Sequence[int] | None = None, saved_view: str | None = None) -> str:
    """Makes a running App show a comparison; whoever has it open sees it change.

    Args:
        server: of ``running``.
        dataset: its name, of ``fiftyone.dataset_name``.
        image_ids: only these images, in this order; all by default.
        saved_view: name of a saved view to start from.

    Returns:
        The address to open or embed.

    Raises:
        WorkbenchError: fiftyone is not installed here, or its database has no such dataset or view.
    """
    if find_spec("fiftyone") is None:
        raise MissingExtraError("the App is told what to show through fiftyone, which is not installed: pip install 'workbench[inspect]'.")
    database = str(server.facts["database"])
    if "fiftyone" not in sys.modules:
        os.environ |= {mongo.URI: database, "FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_VALIDATION": "false"}
    import fiftyone as fo

    fo.config.database_uri = database
    if not fo.dataset_exists(dataset):
        raise WorkbenchError(f"FiftyOne has no comparison '{dataset}' yet. Make it with 'workbench inspect'.")
    shown: FoDataset = fo.load_dataset(dataset)
    shown.reload()
    if saved_view is not None and not shown.has_saved_view(saved_view):
        raise WorkbenchError(f"'{dataset}' has no saved view '{saved_view}'; it has {', '.join(shown.list_saved_views())}.")
    view = shown.load_saved_view(saved_view) if saved_view is not None else shown.view()
    if image_ids is not None:
        view = view.select_by("image_id", [int(image) for image in image_ids], ordered=True)
    session = _attached(server.process.pid, server.port)
    session.view = view
    return server.address


@functools.cache
def _attached(pid: int, port: int) -> Any:
    """A session that drives the App another process serves; made once for each."""
    import fiftyone as fo

    return fo.launch_app(port=port, address=ADDRESS, remote=True, auto=False)

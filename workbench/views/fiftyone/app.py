"""The FiftyOne App on the loopback address: served here, found by other processes, and told by them what to show."""

import contextlib
import http.client
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from workbench.errors import WorkbenchError
from workbench.services.servers import ADDRESS, Server, listens, lookup_server, registered, reserved_port, server_file, wait_until_ready
from workbench.views.fiftyone.connection import FoDataset, using

APP = "fiftyone"
START_SECONDS, ANSWER_SECONDS = 300, 60
# FiftyOne's server passes on what it is told every 0.2 s, and of two things told meanwhile the newer first: the older would be shown
PASSED_ON_SECONDS = 0.3
_SET_VIEW = """mutation ($subscription: String!, $dataset: String!, $view: BSONArray, $saved: String) {
  setView(subscription: $subscription, session: null, datasetName: $dataset, view: $view, savedViewSlug: $saved, form: {})
}"""


@contextlib.contextmanager
def serving(dataset: FoDataset, database: str, port: int = 5151) -> Iterator[Server]:
    """Serves the App for as long as the block runs; yields it with its own process. Called inside ``connected``.

    Without a session of FiftyOne's: that gives its server one minute to start, which a busy machine does not keep, and says what is shown
    from a thread, at a moment of its own, when another program may have said something else.

    Args:
        dataset: shown.
        database: address of the database, for processes that attach.
        port: wished for; another one where it is taken.

    Raises:
        WorkbenchError: the App does not answer.
    """
    import fiftyone.constants as foc

    with reserved_port(port) as port:
        command = [sys.executable, "-P", "main.py", "--port", str(port), "--address", ADDRESS]
        # in a session of its own, and ended at once: it has nothing to save, and says pages about a Ctrl-C
        server = subprocess.Popen(command, cwd=foc.SERVER_DIR, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            if not wait_until_ready(server, lambda: listens(port), START_SECONDS):
                raise WorkbenchError(f"FiftyOne's App did not answer on port {port} within {START_SECONDS} s; see its output above.")
            _tell(port, "event", _whole(dataset))
            with registered(APP, port, database=database):
                yield Server(psutil.Process(server.pid), port, {"database": database})
        finally:
            server.kill()
            server.wait()


def running() -> Server | None:
    """The App of this user that ``workbench inspect`` serves; None where there is none. Does not import fiftyone."""
    server = lookup_server(server_file(APP))
    return server if server is not None and listens(server.port) else None


def show(server: Server, datasets: Sequence[str], image_ids: Sequence[int] | None = None, saved_view: str | None = None) -> str:
    """Makes a running App show a comparison; whoever has it open or opens it sees that. Panels stay open.

    Args:
        server: of ``running``.
        datasets: names, of ``fiftyone.dataset_name``; the first that there is is shown.
        image_ids: only these images, in this order; all by default.
        saved_view: name of a saved view to start from.

    Returns:
        The address to open or embed.

    Raises:
        WorkbenchError: fiftyone is not installed here, its database or the App does not answer, or has no such dataset or view.
    """
    with using(str(server.facts["database"])):
        import fiftyone as fo
        from fiftyone.core.utils import to_slug

        dataset = next((name for name in datasets if fo.dataset_exists(name)), None)
        if dataset is None:
            wanted = " or ".join(f"'{name}'" for name in dict.fromkeys(datasets))
            raise WorkbenchError(
                f"FiftyOne has no comparison {wanted} yet. Make it with 'workbench inspect RUN --against BASELINE "
                "--no-app'; the App need not be started again."
            )
        shown: FoDataset = fo.load_dataset(dataset)
        shown.reload()
        if saved_view is not None and not shown.has_saved_view(saved_view):
            raise WorkbenchError(f"'{dataset}' has no saved view '{saved_view}'; it has {', '.join(shown.list_saved_views())}.")
        view = shown.load_saved_view(saved_view) if saved_view is not None else shown.view()
        if image_ids is not None:
            view = view.select_by("image_id", [int(image) for image in image_ids], ordered=True)
        # by its name where it is shown as it was saved, which the App then shows too
        slug = to_slug(saved_view) if saved_view is not None and image_ids is None else None
        wanted = {"dataset": dataset, "view": view._serialize(), "saved": slug, "subscription": str(uuid.uuid4())}
        _tell(server.port, "graphql", {"query": _SET_VIEW, "variables": wanted})
    time.sleep(PASSED_ON_SECONDS)
    return server.address


def _whole(dataset: FoDataset) -> dict[str, Any]:
    """The event that shows a dataset from its start, in its own colours."""
    from dataclasses import asdict

    import fiftyone as fo
    from fiftyone.core.odm import default_workspace_factory
    from fiftyone.core.session.events import StateUpdate, dict_factory
    from fiftyone.core.state import StateDescription, build_color_scheme

    colours = build_color_scheme(None, dataset, fo.app_config)
    state = StateDescription(dataset=dataset, spaces=default_workspace_factory(), color_scheme=colours)
    event = asdict(StateUpdate(state=state), dict_factory=dict_factory)
    return {"event": "state_update", "data": event, "subscription": str(uuid.uuid4())}


def _tell(port: int, route: str, what: dict[str, Any]) -> None:
    """Sends the App's server something; once this returns, whoever opens the App gets it.

    Raises:
        WorkbenchError: it does not answer, or refuses.
    """
    from bson import json_util

    request = urllib.request.Request(f"http://{ADDRESS}:{port}/{route}", json_util.dumps(what).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            errors = (json_util.loads(answer.read()) or {}).get("errors")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WorkbenchError(
            f"FiftyOne's App on port {port} does not take what it shall show: {error}. Start it again: 'workbench inspect'."
        ) from error
    if errors:
        raise WorkbenchError(f"FiftyOne's App on port {port} refuses what it shall show: {errors[0].get('message')}.")

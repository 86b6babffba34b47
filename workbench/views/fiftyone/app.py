"""Serves the FiftyOne App on the loopback address, finds it from other processes, and tells it what to show."""

import contextlib
import http.client
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil

from workbench.errors import WorkbenchError
from workbench.services import mongo
from workbench.services.guard import bearer, new_token, with_token
from workbench.services.servers import ADDRESS, Server, listens, lookup_server, registered, reserved_port, server_file, wait_until_ready
from workbench.views.fiftyone.connection import FoDataset, using
from workbench.views.fiftyone.guarded_server import HOSTS, TOKEN_VARIABLE

APP = "fiftyone"
START_SECONDS, ANSWER_SECONDS = 300, 60
# FiftyOne's server forwards messages every 0.2 s, the newer of two that arrive in between first, so the App would end with the older one
PASSED_ON_SECONDS = 0.3
_SET_VIEW = """mutation ($subscription: String!, $dataset: String!, $view: BSONArray, $saved: String) {
  setView(subscription: $subscription, session: null, datasetName: $dataset, view: $view, savedViewSlug: $saved, form: {})
}"""


@contextlib.contextmanager
def serving(dataset: FoDataset, database: str, port: int = 5151) -> Iterator[Server]:
    """Serves the App for as long as the block runs and yields its server. Call it inside ``connected``.

    It does not use a session of FiftyOne's. A session gives its server only one minute to start, which is too short on a busy machine, and
    sends what to show from a thread, at a time when another program may already have sent something else.

    Args:
        dataset: dataset that is shown.
        database: address of the database, for processes that attach. It is not written down if it may hold a password.
        port: preferred port; another one is used if it is taken.

    Raises:
        WorkbenchError: the App does not answer.
    """
    token = new_token()
    with reserved_port(port) as port:
        command = [sys.executable, "-P", "-m", "workbench.views.fiftyone.guarded_server", str(port)]
        # In a session of its own, and killed at the end: it has nothing to save, and would print pages about a Ctrl-C.
        server = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env={**os.environ, TOKEN_VARIABLE: token})
        try:
            if not wait_until_ready(server, lambda: listens(port), START_SECONDS):
                raise WorkbenchError(f"FiftyOne's App did not answer on port {port} within {START_SECONDS} s. See its output above.")
            _tell(port, "event", _whole(dataset), token)
            facts = {"database": None if "@" in database or "?" in database else database, "token": token}
            with registered(APP, port, **facts):
                yield Server(psutil.Process(server.pid), port, facts)
        finally:
            server.kill()
            server.wait()


def running() -> Server | None:
    """Returns the App of this user that ``workbench inspect`` serves, or None if none is running. Does not import fiftyone."""
    server = lookup_server(server_file(APP))
    return server if server is not None and listens(server.port) else None


def address(server: Server, asked: str = ADDRESS) -> str:
    """Returns the address that opens the App in a browser, with its token.

    Args:
        server: server, as ``running`` returns it.
        asked: Host under which the browser has asked for the page that embeds the App. A browser sends the App's cookie only below a page
            that has the same name.
    """
    host = urlsplit(f"//{asked}").hostname
    return with_token(f"http://{host if host in HOSTS else ADDRESS}:{server.port}/", server.facts.get("token"))


def show(server: Server, datasets: Sequence[str], image_ids: Sequence[int] | None = None, saved_view: str | None = None) -> str:
    """Makes a running App show a comparison to everyone who has it open or opens it. Panels stay open.

    Args:
        server: server, as ``running`` returns it.
        datasets: names, as ``fiftyone.dataset_name`` makes them; the first one that exists is shown.
        image_ids: shows only these images, in this order; all by default.
        saved_view: name of a saved view to start from.

    Returns:
        The address to open or embed, with the App's token.

    Raises:
        WorkbenchError: fiftyone is not installed here, the address of its database is not known here, its database or the App does not
            answer, or there is no such dataset or view.
    """
    database = server.facts.get("database") or os.environ.get(mongo.URI)
    if database is None:
        raise WorkbenchError(
            f"FiftyOne's App uses the database that {mongo.URI} names, and an address with a password is never written down. Set the "
            "variable here too."
        )
    with using(database):
        import fiftyone as fo
        from fiftyone.core.utils import to_slug

        dataset = next((name for name in datasets if fo.dataset_exists(name)), None)
        if dataset is None:
            wanted = " or ".join(f"'{name}'" for name in dict.fromkeys(datasets))
            raise WorkbenchError(
                f"FiftyOne has no comparison {wanted} yet. Make it with 'workbench inspect RUN --against BASELINE "
                "--no-app'. You need not restart the App."
            )
        shown: FoDataset = fo.load_dataset(dataset)
        shown.reload()
        if saved_view is not None and not shown.has_saved_view(saved_view):
            raise WorkbenchError(f"'{dataset}' has no saved view '{saved_view}'. It has {', '.join(shown.list_saved_views())}.")
        view = shown.load_saved_view(saved_view) if saved_view is not None else shown.view()
        if image_ids is not None:
            view = view.select_by("image_id", [int(image) for image in image_ids], ordered=True)
        # a view that is shown as it was saved is sent by name, so that the App shows its name too
        slug = to_slug(saved_view) if saved_view is not None and image_ids is None else None
        wanted = {"dataset": dataset, "view": view._serialize(), "saved": slug, "subscription": str(uuid.uuid4())}
        _tell(server.port, "graphql", {"query": _SET_VIEW, "variables": wanted}, server.facts.get("token"))
    time.sleep(PASSED_ON_SECONDS)
    return address(server)


def _whole(dataset: FoDataset) -> dict[str, Any]:
    """Returns the event that shows a whole dataset in its own colours."""
    from dataclasses import asdict

    import fiftyone as fo
    from fiftyone.core.odm import default_workspace_factory
    from fiftyone.core.session.events import StateUpdate, dict_factory
    from fiftyone.core.state import StateDescription, build_color_scheme

    colours = build_color_scheme(None, dataset, fo.app_config)
    state = StateDescription(dataset=dataset, spaces=default_workspace_factory(), color_scheme=colours)
    event = asdict(StateUpdate(state=state), dict_factory=dict_factory)
    return {"event": "state_update", "data": event, "subscription": str(uuid.uuid4())}


def _tell(port: int, route: str, what: dict[str, Any], token: str | None) -> None:
    """Sends something to the App's server. After it returns, everyone who opens the App gets it.

    Raises:
        WorkbenchError: the server does not answer, or refuses.
    """
    from bson import json_util

    request = urllib.request.Request(f"http://{ADDRESS}:{port}/{route}", json_util.dumps(what).encode(),
                                     {"Content-Type": "application/json", **bearer(token)})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            errors = (json_util.loads(answer.read()) or {}).get("errors")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise WorkbenchError(
            f"FiftyOne's App on port {port} does not accept what it should show: {error}. Restart it with 'workbench inspect'."
        ) from error
    if errors:
        raise WorkbenchError(f"FiftyOne's App on port {port} refuses what it should show: {errors[0].get('message')}.")

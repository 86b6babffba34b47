"""Says which files FiftyOne's server may hand to a browser: the images of the comparisons that were made, and no others.

Left alone, the server answers ``/media?filepath=...`` with every file that its user can read.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from workbench.errors import WorkbenchError
from workbench.files import cache_folder, read_json, write_json
from workbench.services.guard import Asgi, Receive, Scope, Send
from workbench.services.servers import open_lock

ROUTE, PARAMETER = "/media", "filepath"


def allow(paths: Iterable[Path]) -> None:
    """Lets the server hand out files beside these, with the suffix that one of these has there. Links are followed first."""
    with _alone():
        known = _folders()
        folders = {folder: set(suffixes) for folder, suffixes in known.items()}
        for path in map(os.path.realpath, paths):
            folders.setdefault(os.path.dirname(path), set()).add(os.path.splitext(path)[1])
        changed = {folder: sorted(suffixes) for folder, suffixes in folders.items()}
        if changed != known:
            write_json(_file(), changed, private=True)


def allowed(path: str) -> str | None:
    """Returns the file that the server may hand out for a path, links followed; None if it may not."""
    try:
        real = os.path.realpath(path, strict=True)
    except (OSError, ValueError):
        return None
    return real if os.path.splitext(real)[1] in _folders().get(os.path.dirname(real), ()) else None


class AllowedMedia:
    """An ASGI application that hands every request to FiftyOne's but those for files that are not allowed, which get a path of no file."""

    def __init__(self, app: Asgi):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") == ROUTE:
            asked = parse_qs(scope["query_string"].decode("latin-1")).get(PARAMETER, [])
            found = allowed(asked[0]) if len(asked) == 1 else None
            # FiftyOne gets the path without links, so that it opens what was looked at
            scope = {**scope, "query_string": urlencode({PARAMETER: found if found is not None else os.devnull}).encode()}
        await self.app(scope, receive, send)


def _file() -> Path:
    return cache_folder() / "fiftyone" / "media.json"


def _folders() -> dict[str, list[str]]:
    """Returns the allowed suffixes by folder; none if nothing was allowed yet or the file is damaged."""
    try:
        folders = read_json(_file()) if _file().is_file() else {}
    except WorkbenchError:
        return {}
    return {str(folder): [str(suffix) for suffix in suffixes] for folder, suffixes in folders.items()} if isinstance(folders, dict) else {}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with open_lock(_file().with_suffix(".lock")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

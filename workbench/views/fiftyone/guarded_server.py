"""Runs FiftyOne's server behind our own checks, as a process: ``python -m workbench.views.fiftyone.guarded_server PORT``.

FiftyOne asks nobody who they are. Here its application answers only names of this machine, requests with the token, and files of the
comparisons.
"""

import asyncio
import os
import sys
from typing import Any

from workbench.services.guard import Guard
from workbench.services.servers import ADDRESS
from workbench.services.starter import end_with_starter
from workbench.views.fiftyone.media import AllowedMedia

TOKEN_VARIABLE = "WORKBENCH_FIFTYONE_TOKEN"  # not an option, because every user of the machine reads the options of a process
HOSTS = ("localhost", ADDRESS)


def guarded(app: Any, port: int, token: str) -> Guard:
    """Returns FiftyOne's application behind the checks."""
    return Guard(AllowedMedia(app), HOSTS, token, f"fiftyone-{port}")


def run(port: int) -> None:
    """Serves until the process is ended."""
    end_with_starter()
    token = os.environ.pop(TOKEN_VARIABLE)
    os.environ["FIFTYONE_SERVER"] = "1"  # what FiftyOne's own entry sets before the import
    from fiftyone.server.app import app
    from fiftyone.server.events import set_port
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"{ADDRESS}:{port}"]
    set_port(port)
    asyncio.run(serve(guarded(app, port, token), config))  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    run(int(sys.argv[1]))

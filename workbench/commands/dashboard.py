"""``workbench app``: the dashboard in a browser."""

import threading
import time
from typing import Annotated

import typer

from workbench.commands.options import Root, use_root

SAY_SECONDS = 15  # between two lines of a start that takes long


def app(
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to use, or the next free one after it.")] = 8501,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen at. Beyond this machine, only the printed address opens it."),
    ] = "127.0.0.1",
    runs: Root = None,
) -> None:
    """Serve the dashboard to a browser on this machine.

    It shows any runs, finished or not, and stops with Ctrl-C.

    Example: workbench app --runs ./runs
    """
    use_root(runs)
    serve_dashboard(port, host)


def serve_dashboard(port: int, host: str = "127.0.0.1") -> None:
    """Serves the dashboard until Ctrl-C, prints its address, and until then that it is starting."""
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.services.dashboard import is_loopback, serve
    from workbench.store.run import runs_root

    if not is_loopback(host):
        console.print(
            Text(
                f"warning: the dashboard listens at {host}, beyond this machine. Whoever has the address below sees every run and "
                "the images of its data, and so does whoever reads the network in between: nothing is encrypted."
            ),
            soft_wrap=True,
        )
    console.print(Text(f"starting the dashboard on the runs in {runs_root()} ..."), soft_wrap=True)
    started = threading.Event()

    def ready(address: str) -> None:
        started.set()
        console.print(Text(f"dashboard: {address}  (Ctrl-C stops it)"), soft_wrap=True)

    def keep_saying() -> None:
        began = time.monotonic()
        while not started.wait(SAY_SECONDS):
            console.print(Text(f"still starting after {time.monotonic() - began:.0f} s. A busy machine takes a minute or two."))

    threading.Thread(target=keep_saying, daemon=True).start()
    try:
        serve(port, ready, host)
    finally:
        started.set()

"""``workbench app``: the dashboard in a browser."""

from typing import Annotated

import typer

from workbench.commands.options import Root, use_root


def app(
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port to use, or the next free one after it.")] = 8501,
    runs: Root = None,
) -> None:
    """Serve the dashboard to a browser on this machine.

    It shows any runs, finished or not, and stops with Ctrl-C.
    """
    use_root(runs)
    serve_dashboard(port)


def serve_dashboard(port: int) -> None:
    """Serves the dashboard until Ctrl-C and prints its address."""
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.services.dashboard import serve

    serve(port, lambda address: console.print(Text(f"dashboard: {address}  (Ctrl-C stops it)")))

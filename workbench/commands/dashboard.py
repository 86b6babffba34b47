"""``workbench app``: the dashboard in a browser."""

from typing import Annotated

import typer

from workbench.commands.options import Root, use_root


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
    """
    use_root(runs)
    serve_dashboard(port, host)


def serve_dashboard(port: int, host: str = "127.0.0.1") -> None:
    """Serves the dashboard until Ctrl-C and prints its address."""
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.services.dashboard import is_loopback, serve

    if not is_loopback(host):
        console.print(
            Text(
                f"warning: the dashboard listens at {host}, beyond this machine. Whoever has the address below sees every run and "
                "the images of its data, and so does whoever reads the network in between: nothing is encrypted."
            ),
            soft_wrap=True,
        )
    serve(port, lambda address: console.print(Text(f"dashboard: {address}  (Ctrl-C stops it)")), host)

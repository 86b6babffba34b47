"""The command line ``workbench``: registers the verbs of ``workbench.commands`` and turns an error into one message.

Help must appear at once. A verb's module therefore imports little at its top and the rest inside its function.
"""

import logging
import os
import signal
import sys
from typing import Any

import typer

from workbench.commands.cache import cache_app
from workbench.commands.compare import compare
from workbench.commands.convert import convert
from workbench.commands.dashboard import app as dashboard
from workbench.commands.data import data_app
from workbench.commands.demo import demo
from workbench.commands.detectors import detectors
from workbench.commands.diagnose import diagnose
from workbench.commands.distill import distill
from workbench.commands.doctor import doctor
from workbench.commands.evaluate import evaluate
from workbench.commands.export import export
from workbench.commands.inspect import inspect
from workbench.commands.methods import methods
from workbench.commands.options import Verb, Verbs
from workbench.commands.predict import predict
from workbench.commands.recipe import recipe_app
from workbench.commands.record import record
from workbench.commands.report import report
from workbench.commands.run import run
from workbench.commands.runs import runs_app
from workbench.commands.search import search_app
from workbench.commands.terminal import printable, use_escapes
from workbench.errors import Interrupted, WorkbenchError, lacks_memory

# a function is a verb, a Typer is a verb that has verbs of its own; help lists both in this order
VERBS = {
    "Train": {"demo": demo, "distill": distill, "run": run, "compare": compare, "search": search_app},
    "Look": {"app": dashboard, "diagnose": diagnose, "report": report, "inspect": inspect, "evaluate": evaluate, "record": record},
    "Export": {"predict": predict, "export": export, "convert": convert},
    "Manage": {
        "runs": runs_app,
        "data": data_app,
        "recipe": recipe_app,
        "cache": cache_app,
        "detectors": detectors,
        "methods": methods,
        "doctor": doctor,
    },
}
# one a heading; the help of each verb has its own
EXAMPLES = {
    "Train": "workbench compare shapes --seeds 3",
    "Look": "workbench app --runs ./runs",
    "Export": "workbench export shapes-distilled-seed0 --onnx",
    "Manage": "workbench runs list --tag paper --sort AP",
}


class Headings(Verbs):
    """Lists the verbs below their headings, one verb per line, each heading with an example."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(len(name) for verbs in VERBS.values() for name in verbs)
        for heading, verbs in VERBS.items():
            with formatter.section(heading):
                # all names are padded to one width, so that the lines of all headings begin in one column
                limit = formatter.width - width - 6
                formatter.write_dl([(f"{name:{width}}", self.commands[name].get_short_help_str(limit)) for name in verbs])
                formatter.write_text(f"Example: {EXAMPLES[heading]}")


app = typer.Typer(
    cls=Headings,
    help="Distil a large detector into a small one, and see why it did or did not work.",
    epilog="New here? Try 'workbench demo --quick'. Details: 'workbench VERB --help'.",
    context_settings={"max_content_width": 100},
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, verb in (item for verbs in VERBS.values() for item in verbs.items()):
    if isinstance(verb, typer.Typer):
        app.add_typer(verb, name=name)
    else:
        app.command(name, cls=Verb)(verb)
app.command("trace", cls=Verb, hidden=True)(record)  # its former name


def main() -> None:
    """Runs the command line; prints a ``WorkbenchError`` as one message and exits with its code."""
    use_escapes()
    keep_current_folder_out()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # outside of training, which saves first, these run the same clean-up as an error: a comparison also ends the runs it started, which
    # save and stop
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        code = app(prog_name="workbench", standalone_mode=False)  # click returns the code of typer.Exit instead of raising it
        if isinstance(code, int) and code:
            if code == Interrupted.exit_code:  # click makes it of a Ctrl-C that no job turned into a message of its own
                _say("stopped. What was finished before is kept.")
            sys.exit(code)
    except WorkbenchError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except OSError as error:
        # a full disk, a folder without permission, a name that no file can have: no defect, and whoever knows more has caught it before
        if error.filename is None:
            raise
        _say(f"{error.strerror or error}: {str(error.filename)[:500]}")
        sys.exit(WorkbenchError.exit_code)
    except Exception as error:
        if (advice := lacks_memory(error)) is not None:
            _say(advice)
            sys.exit(WorkbenchError.exit_code)
        # usage errors of the command line carry their own message and exit code
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _say(error.format_message())  # pyright: ignore[reportAttributeAccessIssue]
            sys.exit(int(error.exit_code))  # pyright: ignore[reportAttributeAccessIssue]
        raise


def keep_current_folder_out() -> None:
    """Removes empty entries from ``PYTHONPATH``, as ``PYTHONPATH=$PYTHONPATH:/x`` leaves one where nothing was set before.

    Python takes them for the current folder, also in a child process that is started with a safe path.
    """
    if given := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, given.split(os.pathsep)))


def _say(message: str) -> None:
    """Writes a message to the error stream itself, because ``typer.echo`` takes a stream that knows ASCII alone for one of UTF-8."""
    sys.stderr.write(printable(f"workbench: {message}\n"))

"""Measures how long imports take in fresh processes, run in turns, and how many modules each loads."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, interleaved

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
STATEMENTS = {
    "python alone": "pass",
    "workbench --help": "sys.argv = ['workbench', '--help']; from workbench.cli import main; main()",
    "import workbench": "import workbench",
    "import workbench.detectors.output": "import workbench.detectors.output",
    "import workbench.notebook": "import workbench.notebook",
}
# packages that take long to load and that `--help` does not need
HEAVY = ("torch", "transformers", "torchvision", "rich")
COUNTING = """
import atexit, sys
atexit.register(lambda: print("modules", *sys.modules, file=sys.stderr))
{statement}
"""


def figures() -> Iterator[Figure]:
    """Yields wall time and modules of each statement. `--help` must load no heavy package, and `detectors.output` no model family."""
    seconds = interleaved({name: _starting(statement) for name, statement in STATEMENTS.items()}, REPEATS)
    for name, statement in STATEMENTS.items():
        loaded = _modules(statement)
        yield Figure(f"{name}: wall time", float(np.median(seconds[name])), "s", repeats=REPEATS)
        yield Figure(f"{name}: modules", len(loaded), "modules")
        if name == "workbench --help":
            yield Figure(f"{name}: modules of {', '.join(HEAVY)}", _count(loaded, HEAVY), "modules", "<= 0")
        if name == "import workbench.detectors.output":
            yield Figure(f"{name}: modules of transformers, torchvision", _count(loaded, HEAVY[1:3]), "modules", "<= 0")


def _starting(statement: str) -> Callable[[], object]:
    return lambda: _python(f"import sys\n{statement}")


def _modules(statement: str) -> list[str]:
    """Returns the names of the modules that a fresh process has loaded when it ends."""
    return _python(COUNTING.format(statement=statement)).rsplit("modules ", 1)[1].split()


def _count(loaded: list[str], packages: tuple[str, ...]) -> int:
    return sum(name.split(".")[0] in packages for name in loaded)


def _python(program: str) -> str:
    """Runs a program in a new Python process on this checkout; returns what it writes to standard error."""
    done = subprocess.run([sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, check=True)  # fmt: skip
    return done.stderr

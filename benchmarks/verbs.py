"""Measures what verbs cost that have little to do: process seconds of fresh processes, run in turns, on the runs of ``demo --quick``.

Process seconds are those of the verb and of whatever it starts. A busy machine makes them longer too, because cores share caches and
memory, so each verb is also compared with a process that does nothing but import torch. ``diagnose`` and ``report`` are measured on runs
whose kept results were removed, as they are met for the first time.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness import Figure, interleaved, median_ratio

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 5
UNDISTILLED, DISTILLED = "quick-shapes-undistilled-seed0", "quick-shapes-distilled-seed0"
TORCH = "import torch"
# name of the figure -> arguments, seconds that it may take on a quiet core, and True to remove the kept results first
VERBS: dict[str, tuple[tuple[str, ...], int, bool]] = {
    "second demo --quick --no-app": (("demo", "--quick", "--no-app"), 5, False),
    "run --resume of a finished run": (("run", "--resume", DISTILLED), 5, False),
    "diagnose": (("diagnose", DISTILLED, "--against", UNDISTILLED), 10, True),
    "export --onnx": (("export", DISTILLED, "--onnx", "--out", "student.onnx"), 15, False),
    "export --transformers": (("export", DISTILLED, "--transformers", "--out", "student"), 15, False),
    "report of two runs": (("report", UNDISTILLED, DISTILLED, "--out", "report.html"), 6, True),
}


def figures() -> Iterator[Figure]:
    """Trains the runs of ``demo --quick`` in a temporary folder, then measures each verb on them and removes the folder."""
    with tempfile.TemporaryDirectory(prefix="workbench-verbs-") as name:
        folder = Path(name)
        _verb(folder, "demo", "--quick", "--no-app")
        # a folder of their own for verbs whose kept results are removed, so that the others keep theirs
        shutil.copytree(folder / "runs", folder / "first" / "runs")
        measured = {verb: _measured(folder, arguments, first) for verb, (arguments, _, first) in VERBS.items()}
        seconds = interleaved(measured | {TORCH: lambda: _python(folder, "-P", "-c", "import torch")}, REPEATS, clock=_children_seconds)
    yield Figure(f"{TORCH}: process time", float(np.median(seconds[TORCH])), "s", repeats=REPEATS)
    for verb, (_, target, _) in VERBS.items():
        yield Figure(f"{verb}: process time", float(np.median(seconds[verb])), "s", f"<= {target}", repeats=REPEATS)
        ratio = median_ratio(seconds[verb], seconds[TORCH])
        yield Figure(f"{verb} / {TORCH}", ratio.value, "x", interval=(ratio.low, ratio.high), repeats=REPEATS)


def _measured(folder: Path, arguments: tuple[str, ...], first: bool) -> Callable[[], None]:
    if not first:
        return lambda: _verb(folder, *arguments)

    def without_kept_results() -> None:
        for kept in (folder / "first" / "runs").glob("*/derived"):
            shutil.rmtree(kept)
        _verb(folder / "first", *arguments)

    return without_kept_results


def _children_seconds() -> float:
    """Returns the process seconds of all processes that this one started and that have ended, and of those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _verb(folder: Path, *arguments: str) -> None:
    _python(folder, "-P", "-m", "workbench", *arguments)


def _python(folder: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORKBENCH_RUNS": str(folder / "runs")}
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)

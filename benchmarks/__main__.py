"""`python -m benchmarks NAME` prints one JSON object per line. `all` runs every benchmark and writes benchmarks/results/NAME.jsonl."""

import os

# Set before numpy and torch are imported, because figures are measured on one thread, as training runs.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import importlib
import json
import subprocess
import sys
from pathlib import Path

from workbench.files import write_text

# Each name is a module of this folder whose function ``figures`` yields ``Figure``s.
NAMES = (
    "analysis",
    "ap",
    "app",
    "cache",
    "dense",
    "detectors",
    "fiftyone",
    "imports",
    "intact",
    "methods",
    "search",
    "search_page",
    "step",
    "store",
    "verbs",
)
APART = ("gpu",)  # needs a GPU for figures that mean something, so ``all`` leaves it out
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str]) -> int:
    """Runs one benchmark or all. Returns 1 if a target is missed and 2 if the name is unknown."""
    if len(arguments) != 1 or arguments[0] not in (*NAMES, *APART, "all"):
        print(f"usage: python -m benchmarks NAME. Names: {', '.join((*NAMES, *APART))}, all.", file=sys.stderr)
        return 2
    return run_all() if arguments[0] == "all" else run_one(arguments[0])


def run_one(name: str) -> int:
    """Prints the figures of one benchmark as they are measured. Returns 1 if a target is missed."""
    held = True
    for figure in importlib.import_module(f"benchmarks.{name}").figures():
        print(json.dumps(figure.line()), flush=True)
        held = held and figure.holds is not False
    return 0 if held else 1


def run_all() -> int:
    """Runs each benchmark in its own process, so that none inherits the memory or the caches of another. Returns the worst exit status."""
    worst = 0
    for name in NAMES:
        print(f"benchmarks: {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", "benchmarks", name], stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode in (0, 1) and done.stdout:
            write_text(RESULTS / f"{name}.jsonl", done.stdout)
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

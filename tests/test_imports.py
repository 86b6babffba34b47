"""Every module of the library can be the first that a program imports, and those that everybody needs bring little with them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows import DISTILLED, write_recipe
from workbench.detectors.registry import FAMILIES
from workbench.tasks.compare import execute, plan

ROOT = Path(__file__).resolve().parent.parent

# one process for all modules: what is slow to import is not ours and stays loaded
PROGRAM = """
import importlib, pkgutil, sys, traceback
import workbench
names = sorted(m.name for m in pkgutil.walk_packages(workbench.__path__, "workbench.") if not m.name.endswith("__main__"))
for name in names:
    for loaded in [m for m in sys.modules if m.split(".")[0] == "workbench"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception:
        print(name, traceback.format_exc().splitlines()[-1])
"""


def test_every_module_imports_first_without_a_circle():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""


LOADED = """
import contextlib, io, runpy, sys
sys.argv = ["workbench", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    {statement}
print(*sys.modules)
"""


FINISHED = """
import sys
from pathlib import Path
from workbench.tasks.compare import compare_rows, execute, plan
rows = plan(Path(sys.argv[1]), ["undistilled", "distilled"], [0], [])
execute(rows, 1)
assert list(compare_rows(rows)["arm"]) == ["teacher", "undistilled", "distilled"]
sys.argv = ["workbench", "run", "--resume", rows[0].name]
from workbench.cli import main
main()
print(*sys.modules)
"""


@pytest.mark.usefixtures("runs_folder")
def test_finished_runs_are_shown_without_torch(tmp_path: Path):
    path = write_recipe(tmp_path, DISTILLED)
    execute(plan(path, ["undistilled", "distilled"], [0], []), 2)
    done = subprocess.run([sys.executable, "-c", FINISHED, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "is finished" in done.stdout
    assert {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()} & {"torch", "transformers", "accelerate"} == set()


@pytest.mark.parametrize(("statement", "absent"), [
    ('runpy.run_module("workbench", run_name="__main__")', {"torch", "numpy", "pandas", "rich", "transformers", "torchvision"}),
    ("import workbench.boxes", {"transformers", "torchvision", "pandas", "accelerate"}),
    ("import workbench.detectors.output", {"transformers", "torchvision", "pandas", "accelerate"}),
])  # fmt: skip
def test_help_boxes_and_outputs_load_no_model_family(statement: str, absent: set[str]):
    program = LOADED.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name.split(".")[0] for name in loaded} & absent == set()
    families = {f"workbench.detectors.{name}" for name in FAMILIES}
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in families) and families & loaded == set()

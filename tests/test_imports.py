"""Every module of the library can be the first that a program imports."""

import subprocess
import sys
from pathlib import Path

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

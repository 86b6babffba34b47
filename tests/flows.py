"""Experiments of seconds, as a user would start them."""

import contextlib
import io
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml

from tests.examples import SMALL
from workbench import cli
from workbench.files import read_json, write_json
from workbench.recipe.loading import merge, parse_recipe
from workbench.recipe.schema import Recipe
from workbench.resources import share_path

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"path": "shapes", "options": {"train": 16, "val": 8, "test": 8}},
    "student": {"family": "deformable_detr", **SMALL},
    "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1},
}  # fmt: skip
DISTILLED: dict[str, Any] = {
    "teacher": {"checkpoint": "shapes_teacher"},
    "methods": [{"method": "detrdistill", "balance": {"logits_positive": 0.3, "logits_negative": 0.1, "features": 1.0}}],
    "arms": {"undistilled": {"methods": []}},
}


def command(*arguments: str) -> tuple[int, str, str]:
    """``workbench ARGUMENTS`` in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["workbench", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


class InProcess:
    """Stands for ``subprocess.Popen`` of ``python -m workbench ...``: done when it is made, without seconds of imports."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, arguments: list[str], stdout: Any, **_: Any):
        assert arguments[:4] == [sys.executable, "-P", "-m", "workbench"]
        self.started.append(arguments[4:])
        self.returncode, out, err = command(*arguments[4:])
        stdout.write((out + err).encode())

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None: ...
    def wait(self) -> None: ...


class Silent:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        self.steps.append(step)

    def on_evaluation(self, line: dict[str, Any]) -> None:
        pass

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def tiny_recipe(*changes: dict[str, Any]) -> Recipe:
    """The tiny recipe with mappings merged into it."""
    return parse_recipe(_merged(*changes), "tiny")


def write_recipe(folder: Path, *changes: dict[str, Any]) -> Path:
    """The same as a file."""
    values = _merged(*changes)
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def teacher_copy(folder: Path, **changes: Any) -> Path:
    """The embedded teacher with ``changes`` to its workbench.json."""
    target = folder / "teacher"
    shutil.copytree(share_path("data") / "shapes_teacher", target)
    write_json(target / "workbench.json", read_json(target / "workbench.json") | changes)
    return target


def _merged(*changes: dict[str, Any]) -> dict[str, Any]:
    values = TINY
    for change in changes:
        values = merge(values, change)
    return values

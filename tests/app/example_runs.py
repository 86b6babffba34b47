"""Small real runs for the tests of the dashboard: trained for a few dozen steps by the project's own loop."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workbench.datasets.coco import write_coco
from workbench.datasets.shapes import ShapesConfig, generate_shapes
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.store.run import Run
from workbench.training.launch import Launch, start
from workbench.training.loop import Silent

# What a careless page would render: HTML, markdown, a formula, a plotly template, a Streamlit directive.
HOSTILE_CLASSES = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "**bold** $x^2$", ":red[red] %{x} _a_")
HOSTILE_RUN = "<img src=x onerror=alert(3)> **bold** $x$ :red[r]"
SMALL = ("train.steps=30", "train.evaluate_every=10", "train.checkpoint_every=30", "train.batch_size=4")
FEW_IMAGES = ("data.options.train=16", "data.options.val=6", "data.options.test=6")


@contextmanager
def runs_in(root: Path) -> Iterator[None]:
    before = os.environ.get("WORKBENCH_RUNS")
    os.environ["WORKBENCH_RUNS"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WORKBENCH_RUNS"]
        else:
            os.environ["WORKBENCH_RUNS"] = before


def train(root: Path, recipe: str, name: str, *overrides: str, arm: str | None = None) -> Run:
    path = recipe_path(recipe)
    with runs_in(root):
        return start(load_recipe(path, [*SMALL, *overrides], arm), Launch(name=name, arm=arm, device="cpu"), Silent(), path.parent)


def make_runs(root: Path) -> None:
    """Two students of the embedded teacher, and one run without a teacher, on six validation images of the embedded data."""
    train(root, "shapes", "undistilled", *FEW_IMAGES, arm="undistilled")
    train(root, "shapes", "distilled", *FEW_IMAGES)
    train(root, "shapes_teacher", "tiny-teacher", *FEW_IMAGES, "data.test=null", "train.steps=10")


def make_stepped_run(root: Path) -> None:
    """The run ``stepped``: a distilled student of a dozen steps, evaluated twice."""
    train(root, "shapes", "stepped", *FEW_IMAGES, "train.steps=12", "train.evaluate_every=6", "train.checkpoint_every=12")


def make_hostile_runs(root: Path, data: Path) -> None:
    """One run on data whose class names are markup, in a folder whose name is, beside runs that cannot be shown."""
    for split in ("train", "val"):
        file = write_coco(generate_shapes(ShapesConfig(train=8, val=4), split), data)
        annotations = json.loads(file.read_text())
        for category, name in zip(annotations["categories"], HOSTILE_CLASSES, strict=True):
            category["name"] = name
        file.write_text(json.dumps(annotations))
    own = (f"data.path={data}", "data.format=coco", "data.test=null", "train.steps=20")
    train(root, "shapes_teacher", "tiny-teacher", *own)
    run = train(root, "shapes", "hostile", *own, "teacher.checkpoint=tiny-teacher", arm="undistilled")
    run.path.rename(root / HOSTILE_RUN)
    change_info(shutil.copytree(root / "tiny-teacher", root / "of-another-version"), format_version=99)
    (shutil.copytree(root / "tiny-teacher", root / "garbled") / "run.json").write_text('{"format_version": 1, "gro')
    shutil.rmtree(shutil.copytree(root / "tiny-teacher", root / "without-queries") / "queries")


def change_info(folder: Path, **changes: Any) -> None:
    Run(folder).update_info(**changes)

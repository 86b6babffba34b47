"""Made the runs, the cache and the numbers of this folder, once, at commit 67ca2a9, whose module names it uses.

It is kept as a record and does not run on newer code: the point of the files is that newer code reads what older code wrote.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
os.environ["WORKBENCH_RUNS"] = str(HERE / "saved")

import torch
import yaml

from tests.flows import DISTILLED, Silent, tiny_recipe
from workbench.analysis.derived import match_frame
from workbench.analysis.diagnosis import diagnose
from workbench.analysis.summary import summarise
from workbench.cache.detections import read_detections
from workbench.cache.queries import TEACHER_STEP, read_queries
from workbench.cache.states import read_masks, read_states
from workbench.cache.teacher.build import Builder
from workbench.config import load_recipe
from workbench.errors import WorkbenchError
from workbench.runs import list_runs
from workbench.trace import Trace
from workbench.training.launch import Launch, start
from workbench.training.setup import build

SMALL: dict[str, Any] = {
    "data": {"options": {"train": 8, "val": 4, "test": 4}},
    "train": {"steps": 6, "evaluate_every": 2, "checkpoint_every": 6},
}
# queries of its own (detrdistill), a mask without queries (fgd), and the teacher's queries in the student (kd_detr)
RECIPES: dict[str, tuple[dict[str, Any], str | None]] = {
    "undistilled": (DISTILLED, "undistilled"),
    "distilled": (DISTILLED, None),
    "several-methods": ({**DISTILLED, "methods": [{"method": "fgd"}, {"method": "kd_detr"}]}, None),
    "from-the-cache": ({**DISTILLED, "cache": {"variants": 2, "name": "answers"}}, None),
}


class StopAtFour(Silent):
    """Ctrl-C after the fourth step."""

    def on_step(self, step: int, steps: int, values: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def numbers() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for run in list_runs():
        if run.name == "interrupted":
            continue
        queries = {step: read_queries(run, "val", [step]) for step in [TEACHER_STEP, *run.query_steps("val")]}
        image = int(queries[6]["image_id"].iloc[0])
        masks = read_masks(run, "val", TEACHER_STEP, image)
        found[run.name] = {
            "recipe_hash": run.info()["recipe_hash"],
            "summary": summarise(run),
            "queries": {
                str(step): {"rows": len(rows), "columns": list(rows), "matched": int((rows["match"] >= 0).sum()),
                            "score": float(rows["score"].sum()), "mates": int(rows["mate"].fillna(-2).sum())}
                for step, rows in queries.items()
            },
            "churn": match_frame(run, "churn_steps", "val").to_dict("records"),
            "detections": {str(step): float(read_detections(run, "val", step)["score"].sum()) for step in run.query_steps("val")},
            "state": float(read_states(run, "val", 6, image).sum()),
            "masks": {f"{layer}/{level}": float(mask.sum()) for (layer, level), mask in masks.items()},
            "diagnosis": diagnose(run).to_json(),
        }
    return found


def recipe_hashes(root: Path) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for path in sorted((root / "recipes").rglob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        if "student" not in values:
            continue
        for arm in [None, *values.get("arms", {})]:
            hashes[f"{path.relative_to(root / 'recipes')}:{arm or ''}"] = load_recipe(path, arm=arm).hash()
    return hashes


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(HERE / "saved", ignore_errors=True)
    for name, (changes, arm) in RECIPES.items():
        merged = tiny_recipe(SMALL, changes)
        values = merged.model_dump(mode="json")
        path = HERE / "recipes" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        recipe = load_recipe(path, arm=arm)
        if recipe.cache is not None:
            builder = Builder(build(recipe, "shapes_teacher", trace_teacher=False))
            builder.build(builder.estimate(), accept=True)
        start(recipe, Launch(name=name, arm=arm, device="cpu"), Silent(), path.parent)
    with contextlib.suppress(WorkbenchError):
        start(load_recipe(HERE / "recipes" / "undistilled.yaml"), Launch(name="interrupted", device="cpu"), StopAtFour(), HERE / "recipes")
    for _ in Trace("distilled", None, "test", None, "cpu").write(lambda *_: None) or ():
        pass
    found = {"runs": numbers(), "recipes": recipe_hashes(Path(sys.argv[1]))}
    for run in list_runs():
        shutil.rmtree(run.path / "derived", ignore_errors=True)
        if run.name != "interrupted":  # nobody goes on with a run that is done, and this is half of its size
            for path in run.checkpoints_path.glob("*/trainer.safetensors"):
                path.unlink()
    (HERE / "numbers.json").write_text(json.dumps(found, indent=1, sort_keys=True))


main()

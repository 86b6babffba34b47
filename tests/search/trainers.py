"""Small searches for tests: few images, few steps, a teacher from the embedded weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from workbench.methods.detkds.genotype import Genotype
from workbench.search.candidate import Candidate
from workbench.search.plan import SearchPlan

PAIRS = {"fcos": "compare/fcos_of_detr", "deformable_detr": "compare/deformable_detr_cached"}
FITNET = Genotype("global", distance="l2")


def small_plan(folder: Path, pair: str = "fcos", recipe: Mapping[str, Any] | None = None, **settings: Any) -> SearchPlan:
    """Returns a plan of four steps on 40 images, whose recipe is written into a folder.

    Args:
        folder: where the recipe goes.
        pair: a key of ``PAIRS``.
        recipe: settings of the recipe to replace, section by section.
        settings: fields of the plan.
    """
    values: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / f"{PAIRS[pair]}.yaml").read_text(encoding="utf-8"))
    values["data"]["options"] = {"train": 40, "val": 1, "test": 1}
    values["cache"] = {"variants": 2, "precision": "fp32"}
    values["train"]["batch_size"] = 4
    for section, changes in (recipe or {}).items():
        values[section] = {**values[section], **changes} if isinstance(changes, dict) else changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    inputs = ("global", "foreground", "instance")
    return SearchPlan.model_validate({"name": "small", "recipe": str(path), "steps": 4, "inputs": inputs, **settings})


def alone(genotype: Genotype, share: float = 3.0) -> Candidate:
    """Returns a candidate of one formula."""
    return Candidate(((genotype, share),))

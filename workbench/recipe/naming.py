"""Names runs: by recipe, data, arm and seed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a real import would load torch, and a name is needed before it is known whether anything is trained
    from workbench.recipe.schema import Recipe

from workbench.recipe.written import data_path

# names that many datasets have, so that the folder above says more
_COMMON = re.compile(r"all|_?annotations?(\.coco)?|coco|data|datasets?|exports?|images|instances(_.*)?|(train|val|test)\d*|voc|yolo")
_LONGEST = 24


def run_name(recipe: "Recipe", arm: str | None = None, equal_compute: bool = False) -> str:
    """Returns the name that a run has unless it is given another: ``any-cells-undistilled-seed0``.

    The data is left out if the name of the recipe says it already, and for the embedded generator.

    Args:
        recipe: a recipe with its data.
        arm: arm of the recipe; None is the recipe's own.
        equal_compute: True for a run that is shortened to the compute of another.
    """
    return _joined(recipe.name, recipe.data.path, arm or recipe.own_arm, recipe.seed, equal_compute)


def written_name(values: dict[str, Any], arm: str, equal_compute: bool = False) -> str:
    """Returns the same name from the values of a recipe that were not validated; see ``written_recipe``."""
    return _joined(str(values.get("name")), data_path(values), arm, values.get("seed", 0), equal_compute)


def _joined(name: str, path: str | None, arm: str, seed: int, equal_compute: bool) -> str:
    data = data_name(path)
    parts = [name, *([data] if data and data.lower() not in name.lower() else []), arm]
    return "-".join([*parts, *(["equal-compute"] if equal_compute else []), f"seed{seed}"])


def data_name(path: str | None) -> str:
    """Returns a short name of a dataset, made from its path; empty for the embedded generator and if nothing in the path can be a name."""
    if path is None or path == "shapes":
        return ""
    place = Path(path).expanduser().absolute()
    for part in (place.with_suffix("") if place.suffix in (".json", ".yaml", ".yml") else place, *place.parents):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", part.name).strip("-._")[:_LONGEST].strip("-._")
        if name and not _COMMON.fullmatch(name.lower()):
            return name
    return ""

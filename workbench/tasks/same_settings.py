"""Says whether a run was made from what a recipe says now. The result is kept beside a finished run, so that reading it needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path

from workbench.analysis.derived import kept_json
from workbench.recipe.written import data_path, written_recipe
from workbench.resources import code_hash
from workbench.store.run import Run


def differences(run: Run, recipe: Path, overrides: Sequence[str], arm: str, but: Sequence[str] = ()) -> list[str]:
    """Lists what differs between an existing run and a recipe: settings that affect the result, else the data.

    The recipe is validated unless the same values were compared with the same run before, by the same code.

    Args:
        run: an existing run.
        recipe: recipe file.
        overrides: ``key=value`` for the recipe.
        arm: arm of the recipe.
        but: keys that are not compared.

    Raises:
        ConfigError: the recipe is wrong.
    """
    info = run.info()
    values = written_recipe(recipe, overrides, arm)

    def compared() -> list[str]:
        # they load torch, which a comparison that is finished does not need
        from workbench.recipe.loading import load_recipe
        from workbench.training.launch import changes_since, other_data

        now = load_recipe(recipe, overrides, arm)
        return changes_since(run, now, but) or other_data(run, now)

    if info.get("state") != "done" or data_path(values) != info["recipe"]["data"]["path"]:
        return compared()  # the answer may change although neither recipe does: data of another place may be the same data
    # a recipe may hold what JSON does not, such as a date
    inputs = [json.dumps(values, default=str, sort_keys=True), info["recipe"], list(but), code_hash()]
    return kept_json(run, "settings", inputs, compared)

"""Writes what a search has found as recipes, each with the search, trials and seeds that it comes from."""

from pathlib import Path
from typing import Any

import yaml

from workbench.errors import RunError
from workbench.files import write_text
from workbench.methods.detkds.config import DetKDSConfig
from workbench.methods.detkds.genotype import FEATURES, Genotype
from workbench.recipe.loading import load_recipe, parse_recipe, recipe_path
from workbench.recipe.schema import TeacherRecipeConfig
from workbench.recipe.writing import recipe_yaml
from workbench.search.candidate import Candidate
from workbench.search.plan import SearchPlan, cache_name
from workbench.search.records import Mean, TrialRecord, means
from workbench.search.stages import winner
from workbench.search.study import SearchStudy

NAME_LENGTH = 40  # of the search's name within the name of a recipe, which has at most 61 letters


def ranking(search: SearchStudy) -> list[Mean]:
    """Returns the candidates that were trained again with fresh seeds, the best mean first; a candidate of two studies stands once."""
    ranked = means([record for name in search.studies for record in search.records(name)])
    return list({one.first.candidate: one for one in reversed(ranked)}.values())[::-1]


def export(search: SearchStudy, top: int = 1, folder: Path | None = None) -> list[Path]:
    """Writes the best candidates of a search as recipes that train unchanged, and returns their files.

    A recipe is that of the plan with other methods. It keeps the name of the teacher's cache, and finds a teacher's recipe from anywhere.
    Its arms are what the found distiller has to surpass: no distillation and, where the search reads feature maps, the released formulas
    and PKD at the share that the search gives a formula. ``workbench compare found/NAME`` trains them beside it.

    Args:
        search: the search.
        top: how many candidates.
        folder: where to write; None writes below the folder of the search, where ``workbench run found/NAME`` finds it.

    Raises:
        RunError: no candidate has been trained with fresh seeds yet, or the folder cannot be written.
    """
    ranked = ranking(search)
    chosen: list[tuple[TrialRecord, Mean | None]] = [(one.first, one) for one in ranked[:top]]
    if not chosen and search.plan.repeated == 0:
        firsts = (winner(search, name) for name in search.studies)
        chosen = [(first, None) for first in sorted((one for one in firsts if one), key=lambda one: -(one.value or 0))[:top]]
    if not chosen:
        raise RunError(
            f"search '{search.name}' has trained no candidate with fresh seeds yet, so nobody knows which is best. Let it go on with "
            "'workbench search', or set fewer trials in its plan."
        )
    return [_write(search, first, mean, folder or search.folder / "found") for first, mean in chosen]


def candidate_of(record: TrialRecord) -> Candidate:
    """Returns the candidate that a trial trained."""
    parts = ({key: value for key, value in entry.items() if key != "share"} for entry in record.formulas)
    return Candidate(tuple((Genotype(**part), entry["share"]) for part, entry in zip(parts, record.formulas, strict=True)))


def _write(search: SearchStudy, first: TrialRecord, mean: Mean | None, folder: Path) -> Path:
    path = recipe_path(search.plan.recipe)
    recipe = load_recipe(path, arm=search.plan.arm)
    values = recipe.model_dump(mode="json", exclude={"arms"})
    values["name"] = f"{search.name[:NAME_LENGTH]}-{first.study}-{first.number}"
    values["note"] = f"Found by the search '{search.name}' from recipe '{recipe.name}'."
    values["methods"] = [candidate_of(first).method(search.plan.mode, **search.plan.settings)]
    if recipe.cache is not None:
        values["cache"]["name"] = recipe.cache.name or cache_name(search.plan, recipe.name)
    if isinstance(recipe.teacher, TeacherRecipeConfig) and (beside := path.parent / recipe.teacher.recipe).is_file():
        values["teacher"]["recipe"] = str(beside.resolve())
    repeats = [r for r in search.records(first.study) if r.repeat_of == first.number and r.value is not None] if mean else []
    values["lineage"] = {
        "search": search.name, "hash": search.state["hash"], "space": search.state["identity"]["space"],
        "fitness": search.state["identity"]["held_out"], "candidate": first.candidate, "study": first.study, "trial": first.number,
        "repeats": [r.number for r in repeats], "seeds": [first.seed, *(r.seed for r in repeats)],
        "mean": mean.mean if mean else None, "commit": first.commit,
    }  # fmt: skip
    written = folder / f"{values['name']}.yaml"
    write_text(written, recipe_yaml(parse_recipe(values, str(written))) + yaml.safe_dump({"arms": _rivals(search.plan)}, sort_keys=False))
    return written


def _rivals(plan: SearchPlan) -> dict[str, Any]:
    """Returns the arms of a found recipe."""
    arms: dict[str, Any] = {"undistilled": {"methods": []}}
    if set(FEATURES) & set(plan.inputs):
        released = DetKDSConfig.model_validate({"mode": plan.mode, **plan.settings})
        whole = sum(part.weight for part in released.formulas.values())
        shares = tuple((genotype, plan.share * released.formulas[input].weight / whole) for input, genotype in released.genotypes.items())
        feature = {"feature": plan.settings["feature"]} if "feature" in plan.settings else {}
        arms["released"] = {"methods": [Candidate(shares).method(plan.mode, **plan.settings)]}
        arms["pkd"] = {"methods": [{"method": "pkd", "balance": plan.share, **feature}]}
    return arms

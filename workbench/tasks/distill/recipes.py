"""Writes the two recipes of a job: the shipped ones with the data, the choices and the steps filled in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import ConfigError
from workbench.files import write_text
from workbench.recipe.loading import load_recipe, merge, read_mapping, recipe_beside, recipe_path
from workbench.recipe.schema import Recipe
from workbench.resources import share_path
from workbench.tasks.distill.budget import EVALUATIONS
from workbench.tasks.distill.rules import Choice

SIZES = ("tiny", "small", "medium")
STUDENT, TEACHER = "student.yaml", "teacher.yaml"
_OF_TEACHER = ("data.transform.resize", "data.transform.augment", "student.extra_levels", "train.batch_size")


@dataclass(frozen=True)
class Pair:
    """The recipes of a job as plain values, before and after the steps are known.

    Attributes:
        student: values of the student's recipe.
        teacher: values of the teacher's recipe; None if the teacher is there already.
    """

    student: dict[str, Any]
    teacher: dict[str, Any] | None


def shipped(name: str) -> Path:
    """Returns the recipe of a student: one of ``SIZES``, a file, or the name of a shipped recipe."""
    return share_path("recipes") / "own" / f"{name}.yaml" if name in SIZES else recipe_path(name)


def make_pair(
    name: str, student: Path, teacher: str | None, data: dict[str, Any], choices: Sequence[Choice], changes: dict[str, Any]
) -> Pair:
    """Fills in the recipes.

    Args:
        name: name of the job, which the names of its runs begin with.
        student: recipe of the student.
        teacher: a checkpoint, a run or a name on the hub; None trains the teacher that the student's recipe names.
        data: ``data:`` of both recipes: path, format and splits.
        choices: what was chosen from the data.
        changes: changes that the user asked for, which go over the choices; those of ``data`` hold for the teacher too.

    Raises:
        ConfigError: the recipe of the student has no method, or names no recipe for its teacher where none is given.
    """
    values = read_mapping(student, "recipe", Recipe.model_fields)
    if not values.get("methods"):
        raise ConfigError(f"{student} has no 'methods:', so nothing would be distilled. Choose another --student, or add a method to it.")
    beside = {"path", "format", "train", "val", "test", "splits", "options", "policy"}
    own = {key: value for key, value in (values.get("data") or {}).items() if key not in beside}
    values = _with({**values, "name": name, "data": {**own, **data}}, choices)
    values = merge({**values, "arms": {"undistilled": {"methods": []}}}, changes)
    if teacher is not None:
        return Pair({**values, "teacher": {"checkpoint": teacher}}, None)
    named = (values.get("teacher") or {}).get("recipe")
    if named is None:
        return Pair(values, None)
    made = read_mapping(recipe_beside(named, student.parent), "recipe", Recipe.model_fields)
    base = {key: value for key, value in (made.get("data") or {}).items() if key not in beside}
    shared = [choice for choice in choices if choice.key in _OF_TEACHER and _has(made, choice.key)]
    made = _with({**made, "name": f"{name}-teacher", "data": {**base, **data}}, shared)
    made = merge({**made, "arms": {}}, {"data": changes.get("data") or {}})
    return Pair({**values, "teacher": {"recipe": TEACHER, "seed": 0}}, made)


def scheduled(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Returns a recipe with this number of steps, evenly spaced evaluations and a warm-up that fits."""
    every = max(steps // EVALUATIONS, 1)
    warmup = min(int(values["train"].get("warmup", 0)), steps // 10)
    return merge(values, {"train": {"steps": steps, "evaluate_every": every, "checkpoint_every": every, "warmup": warmup}})


def write_recipe(values: dict[str, Any], path: Path, heading: str) -> Recipe:
    """Writes a recipe as YAML below a heading, and returns it validated.

    Raises:
        ConfigError: a value is wrong; the message names its key.
    """
    text = "".join(f"# {line}\n" for line in heading.splitlines()) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return load_recipe(path)


def _with(values: dict[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    """Returns the values with each choice in place of whatever stood there."""
    for choice in choices:
        *outer, last = choice.key.split(".")
        values = dict(values)
        inner = values
        for part in outer:
            inner[part] = dict(inner.get(part) or {})
            inner = inner[part]
        inner[last] = choice.value
    return values


def _has(values: dict[str, Any], key: str) -> bool:
    """Returns True unless the key is one that only some families have and this recipe's does not."""
    return not key.startswith("student.") or key.removeprefix("student.") in (values.get("student") or {})

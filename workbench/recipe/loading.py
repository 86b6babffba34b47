"""Reads recipes: files, arms, overrides, and error messages that name the nearest valid key."""

import difflib
import math
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError
from workbench.methods.registry import find_method
from workbench.recipe.inherit import InheritingConfig
from workbench.recipe.schema import NO_FAMILY, UNKNOWN_FAMILY, CheckpointConfig, Recipe, flat, models_in
from workbench.recipe.written import changed, merge, read_mapping, recipe_beside, recipe_path, written_recipe

__all__ = ["changed", "load_recipe", "merge", "parse_recipe", "read_mapping", "recipe_beside", "recipe_path", "stored_recipe"]


def load_recipe(path: Path, overrides: typing.Sequence[str] = (), arm: str | None = None) -> Recipe:
    """Reads a recipe, applies an arm and ``key=value`` overrides, and validates the whole.

    Args:
        path: a YAML file.
        overrides: values for keys, such as ``train.steps=100``; the value is YAML.
        arm: an arm below ``arms:``; None, or the name of the recipe's own arm, loads the recipe as written.

    Raises:
        ConfigError: the file is unreadable, a key is unknown (the message names the nearest one), a type is wrong, or the arm is unknown.

    Example:
        >>> recipe = load_recipe(Path("recipes/shapes.yaml"), ["train.steps=300"], arm="features")
    """
    return parse_recipe(written_recipe(path, overrides, arm), str(path))


def parse_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validates ``values``; errors name ``where``."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {_message(item, values)}" for item in error.errors())) from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply.") from error
    for key, value in flat(recipe.model_dump(mode="python", exclude={"arms", "lineage"})).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}:\n  {key}: must be a finite number (got {value})")
    return recipe


def stored_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Reads the recipe stored with a run, with the meaning its settings had when the run was made; errors name ``where``.

    The stored recipe has every setting that existed then. A setting that is missing was added later, and the run used what is now its
    default, even where a profile sets something else today. The exception is an optional part of a method (``null``): the run was made
    without it, even if it is on by default today.
    """
    return parse_recipe({**values, "methods": [_as_it_was(method) for method in values.get("methods") or ()]}, where)


def _as_it_was(method: dict[str, Any]) -> dict[str, Any]:
    """Completes the stored settings of a method, so that no profile fills in what the run did not have."""
    config = find_method(str(method.get("method"))).Config
    absent = {name: None for name, field in config.model_fields.items() if type(None) in typing.get_args(field.annotation)}
    completed = _defaults(config) | absent | method
    for name, value in method.items():
        if isinstance(value, dict) and name in config.model_fields:
            parts = [_defaults(model) for model in models_in(config.model_fields[name].annotation)]
            completed[name] = {key: default for part in parts for key, default in part.items()} | value
    return completed


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the default of every setting that has one."""
    fields = model.model_fields.items()
    return {name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}


def _message(item: Any, values: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    tags = {"checkpoint", "recipe"}
    where = ".".join(part for part in location if part not in tags or part == location[-1]) or "recipe"
    if item["type"] in (NO_FAMILY, UNKNOWN_FAMILY):
        return f"{where}{': ' if item['type'] == NO_FAMILY else '.family: '}{item['msg']}"
    if item["type"] == "extra_forbidden":
        names = _valid_names(location[:-1], values)
        near = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are {', '.join(names)}."
        return f"{where}: unknown key; {hint}"
    got = "" if item["type"] == "missing" else f" (got {item['input']!r:.80})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{got}"


def _valid_names(location: list[str], values: dict[str, Any]) -> list[str]:
    """Returns the field names of the models at a place of the recipe."""
    models: list[type[BaseModel]] = [Recipe]
    if location[:1] == ["methods"]:
        models = [find_method(values["methods"][int(location[1])]["method"]).Config]
        location = location[2:]
    student = values.get("student")
    if location[:1] == ["student"] and isinstance(student, dict):
        models = [CheckpointConfig] if "checkpoint" in student else [FAMILIES[student["family"]].config, InheritingConfig]
        location = location[1:]
    for part in location:
        following: list[type[BaseModel]] = []
        for model in models:
            if part in model.model_fields:
                following += models_in(model.model_fields[part].annotation)
        models = following or models
    return sorted({name for model in models for name in model.model_fields})

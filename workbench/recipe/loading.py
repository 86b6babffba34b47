"""Reads recipes: files, arms, overrides, and error messages that name the nearest valid key."""

import difflib
import math
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError, RunError
from workbench.methods.registry import find_method
from workbench.recipe.inherit import InheritingConfig
from workbench.recipe.schema import NO_FAMILY, UNKNOWN_FAMILY, CheckpointConfig, Recipe, flat, models_in
from workbench.resources import named_file, share_path
from workbench.store.groups import own_arm_name
from workbench.store.searches import found_recipes, searches_root
from workbench.yaml_text import YamlError, parse_yaml


def recipe_path(name: str) -> Path:
    """Returns the path of a recipe, given as a file, as the name of a shipped one, or as ``found/NAME`` if a search has found it.

    Raises:
        RunError: the name is none of these; the message lists the shipped recipes, or those that were found.
    """
    path = Path(name)
    if (file := named_file(name)) is not None:
        return file
    if path.parts[:1] == ("found",):
        recipes = found_recipes()
        if name not in recipes:
            known = ", ".join(recipes) or "none"
            raise RunError(
                f"no search in {searches_root()} has found a recipe '{name}'. Found there: {known}. 'search export' writes them."
            )
        return recipes[name]
    return _shipped(name)


def recipe_beside(name: str, folder: Path) -> Path:
    """Returns the path of a recipe that another one names: a file in its folder, or else what ``recipe_path`` returns.

    A name without a folder is never looked up in the current one.

    Args:
        name: the name in the recipe.
        folder: folder of the recipe.

    Raises:
        RunError: there is no such recipe.
    """
    file = named_file(str(folder / name))
    return file or (recipe_path(name) if len(Path(name).parts) > 1 else _shipped(name))


def _shipped(name: str) -> Path:
    folder = share_path("recipes")
    for candidate in (folder / name, folder / f"{name}.yaml", folder / Path(name).name):
        if (file := named_file(str(candidate))) is not None:
            return file
    found = (p.relative_to(folder) for p in folder.rglob("*.yaml"))
    shipped = ", ".join(sorted(str(p.with_suffix("")) for p in found if p.parts[0] not in ("checkpoints", "search")))
    raise RunError(f"there is no recipe '{name[:200]}': no such file exists, and the shipped recipes are {shipped}.")


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
    values = read_mapping(path, "recipe", Recipe.model_fields)
    arms = values.get("arms") or {}
    if not isinstance(arms, dict) or not all(isinstance(name, str) and isinstance(one or {}, dict) for name, one in arms.items()):
        raise ConfigError(f"{path}: arms must be a mapping of each arm's name to what it changes.")
    own_arm = own_arm_name(bool(values.get("methods")))
    if arm in arms:
        values = merge(values, arms[arm] or {})
    elif arm not in (None, own_arm):
        raise ConfigError(f"{path} has no arm '{arm}'. Its arms are {', '.join([own_arm, *arms])}.")
    for override in overrides:
        values = changed(values, override)
    return parse_recipe(values, str(path))


def read_mapping(path: Path, what: str, keys: typing.Iterable[str]) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Args:
        path: the file.
        what: what it is, for messages: ``recipe`` or ``search``.
        keys: keys that it may have.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror or error}.") from error
    except (YamlError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} is not a {what}. Expected a mapping with keys such as {', '.join(keys)}.")
    return typing.cast("dict[str, Any]", values)


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


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with ``changes`` merged into it: mappings key by key, everything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def changed(values: dict[str, Any], override: str) -> dict[str, Any]:
    """Returns the values of a recipe with an override such as ``train.steps=100``.

    It works like ``merge``, except that a checkpoint replaces a model or a recipe that was described there.

    Raises:
        ConfigError: the override is not ``key=value``, or its value is not YAML.
    """
    change = _override(override)
    replaced = {
        side: {}
        for side in ("student", "teacher")
        if isinstance(change.get(side), dict) and "checkpoint" in change[side] and "checkpoint" not in (values.get(side) or {})
    }
    return merge({**values, **replaced}, change)


def _override(text: str) -> dict[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text[:200]!r} must look like train.steps=100.")
    try:
        parsed: Any = parse_yaml(value)
    except YamlError as error:
        raise ConfigError(f"--set {text[:200]!r}: the value is not valid YAML: {error}") from error
    # YAML 1.1 reads 2e-3 as a string
    if isinstance(parsed, str):
        try:
            parsed = float(parsed) if math.isfinite(float(parsed)) else parsed
        except ValueError:
            pass
    nested: dict[str, Any] = {}
    *outer, last = key.strip().split(".")
    inner = nested
    for part in outer:
        inner[part] = {}
        inner = inner[part]
    inner[last] = parsed
    return nested


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

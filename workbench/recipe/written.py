"""Reads recipes as they are written: YAML, arms and overrides, not yet validated. It loads neither torch nor a detector family."""

import math
import typing
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, RunError
from workbench.resources import named_file, share_path
from workbench.store.groups import own_arm_name
from workbench.store.searches import found_recipes, searches_root
from workbench.yaml_text import YamlError, parse_yaml

KEYS = ("name", "data", "student", "teacher", "methods", "train")  # the chief keys of a recipe, for messages


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


def written_recipe(path: Path, overrides: typing.Sequence[str] = (), arm: str | None = None) -> dict[str, Any]:
    """Returns the values of a recipe with an arm and ``key=value`` overrides, as ``load_recipe`` validates them.

    Args:
        path: a YAML file.
        overrides: values for keys, such as ``train.steps=100``; the value is YAML.
        arm: an arm below ``arms:``; None, or the name of the recipe's own arm, takes the recipe as written.

    Raises:
        ConfigError: the file is unreadable, the arm is unknown, or an override is not ``key=value``.
    """
    values = read_mapping(path, "recipe", KEYS)
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
    return values


def data_path(values: dict[str, Any]) -> str | None:
    """Returns the path of the data in the values of a recipe; None if they name none, or not as text."""
    data = values.get("data")
    path = typing.cast("dict[str, Any]", data).get("path") if isinstance(data, dict) else None
    return path if isinstance(path, str) else None


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

"""Determines whether a cache fits a recipe: everything that affects its numbers is compared, and differences are named."""

from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.recipe.schema import Recipe, flat
from workbench.recipe.setup import Setup
from workbench.teacher_cache.fields import CacheFields, fields_of
from workbench.teacher_cache.folders import caches_root


def cache_folder(recipe: Recipe) -> Path:
    """Returns the folder of a recipe's cache, which may not exist yet.

    Raises:
        ConfigError: the recipe has no cache.
    """
    if recipe.cache is None:
        raise ConfigError(
            f"recipe '{recipe.name}' has no cache. Set the number of augmentations of each image, for example --set cache.variants=8."
        )
    return caches_root() / (recipe.cache.name or recipe.name)


def wanted_fields(setup: Setup) -> CacheFields:
    """Returns the fields that the methods of a setup read.

    Raises:
        ConfigError: the recipe has no cache, or no method that would read it.
        IncompatibleError: a method needs the live teacher, or the scores of all classes.
    """
    config = setup.recipe.cache
    if config is None:
        cache_folder(setup.recipe)
    if config is None or setup.teacher is None or not setup.methods:
        raise ConfigError(f"recipe '{setup.recipe.name}' has no methods that would read a cache. Add a method, or remove 'cache:'.")
    return fields_of(setup.methods, setup.student, setup.teacher.detector, config.precision, config.top_k)


def cache_key(setup: Setup, contents: CacheFields) -> dict[str, Any]:
    """Returns everything that affects the numbers of a cache, as JSON-able values."""
    assert setup.teacher is not None and setup.variants is not None
    spec = setup.teacher.detector.spec
    return {
        "teacher": setup.teacher_hash,
        "teacher_input": {"mean": list(spec.mean), "std": list(spec.std)},
        "classes": list(spec.classes),
        "dataset": setup.train.hash(),
        "split": setup.recipe.data.train,
        "transform": setup.recipe.data.transform.model_dump(mode="json"),
        "variants": setup.variants.count,
        "canvas": list(setup.variants.canvas),
        "contents": contents.model_dump(mode="json"),
    }


def differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Lists where a cache does not fit, such as ``variants 8, now 4``; it may hold more fields than wanted."""
    before, now = (flat({name: value for name, value in key.items() if name != "contents"}) for key in (kept, wanted))
    own, other = CacheFields.model_validate(kept["contents"]), CacheFields.model_validate(wanted["contents"])
    for name in ("precision", "top_k"):
        before[name], now[name] = getattr(own, name), getattr(other, name)
    changed = [f"{name} {before.get(name)}, now {now.get(name)}" for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return changed + [f"{what} not kept" for what in own.lacks(other)]

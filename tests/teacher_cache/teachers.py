"""A small cache, and what it is made from."""

import functools
import json
from dataclasses import replace
from typing import Any

import torch

from tests.flows import tiny_recipe
from workbench.recipe.setup import Setup, build
from workbench.teacher_cache.build import Builder, Built
from workbench.teacher_cache.read import TeacherCache, open_cache

CACHED: dict[str, Any] = {
    "teacher": {"checkpoint": "shapes_teacher"},
    "methods": [{"method": "detrdistill"}],
    "data": {"transform": {"augment": ["dihedral", "color"]}},
    "cache": {"variants": 2, "precision": "fp32"},
}


def setup_of(*changes: dict[str, Any]) -> Setup:
    """The tiny recipe, distilled from a cache; models are shared, so they are not to be trained."""
    return replace(_setup(json.dumps(changes)))


@functools.cache
def _setup(changes: str) -> Setup:
    return fresh_setup(*json.loads(changes))


def fresh_setup(*changes: dict[str, Any]) -> Setup:
    """The same with models of its own."""
    torch.set_num_threads(1)
    return build(tiny_recipe(CACHED, *changes), "shapes_teacher", record_teacher=False)


def built(setup: Setup, **changes: Any) -> Built:
    """Builds the cache of a setup, whatever its size."""
    builder = Builder(setup)
    return builder.build(builder.estimate(), **({"accept": True} | changes))


def opened(setup: Setup) -> TeacherCache:
    """The cache of a setup, as training opens it."""
    cache = open_cache(setup)
    assert cache is not None
    return cache

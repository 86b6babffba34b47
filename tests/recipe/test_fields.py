"""Every field of a configuration says what it does, where editors, the command line and the manual find it."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ConfigDict

from workbench.datasets.shapes import ShapesConfig
from workbench.detectors.registry import FAMILIES
from workbench.methods.registry import METHODS, find_method
from workbench.recipe.schema import Recipe, models_in
from workbench.search.plan import SearchPlan
from workbench.tasks.convert import CheckpointDescription


def reachable(*models: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The models themselves, their bases, and what their fields hold, each once."""
    seen: set[type[BaseModel]] = set()
    pending = list(models)
    while pending:
        model = pending.pop(0)
        if model in seen or model is BaseModel:
            continue
        seen.add(model)
        yield model
        pending += [base for base in model.__mro__[1:] if issubclass(base, BaseModel)]
        pending += [inner for item in model.model_fields.values() for inner in models_in(item.annotation)]


CHOSEN = [*(family.config for family in FAMILIES.values()), *(find_method(name).Config for name in METHODS)]
MODELS = list(reachable(Recipe, SearchPlan, ShapesConfig, CheckpointDescription, *CHOSEN))
FIELDS = {name for model in MODELS for name in model.model_fields}


def faults(model: type[BaseModel]) -> list[str]:
    """Fields whose documentation is missing or says nothing."""
    found: list[str] = []
    for name, item in model.model_fields.items():
        text = item.description or ""
        if len(text) < 15 or not text.endswith(".") or text.rstrip(".").lower().replace(" ", "_") in FIELDS:
            found.append(name)
    return found


class Lacking(BaseModel):
    """Lacks what the rule asks for."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    none: int = 0
    short: int = 0
    """Of it."""
    open: int = 0
    """Number of things without a full stop"""
    evaluation_transform: int = 0
    """Evaluation transform."""
    good: int = 0
    """Number of things that are counted."""


def test_a_field_without_a_line_of_its_own_is_found():
    assert faults(Lacking) == ["none", "short", "open", "evaluation_transform"]


def test_the_walk_reaches_all_families_all_methods_and_what_they_hold():
    names = {model.__name__ for model in MODELS}
    assert {"Recipe", "Policy", "Crop", "TrainConfig", "BackboneConfig", "ViTConfig", "SelectionConfig", "BaseMethodConfig"} <= names
    assert len(MODELS) > len(FAMILIES) + len(METHODS) + 20


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.__module__.removeprefix('workbench.')}.{model.__name__}")
def test_every_field_says_what_it_does_and_no_second_list_of_fields_can_fall_behind(model: type[BaseModel]):
    assert faults(model) == []
    assert "Attributes:" not in (model.__doc__ or "")

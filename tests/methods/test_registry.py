"""The table of methods, plug-ins and what a recipe may say of a method."""

from importlib.metadata import EntryPoint
from typing import Any, Literal

import pytest

from tests.flows import tiny_recipe
from workbench.errors import ConfigError
from workbench.methods import registry
from workbench.methods.detrdistill.detrdistill import DETRDistill
from workbench.methods.method import BaseMethodConfig, Method
from workbench.methods.registry import METHODS, find_method, method_names, register

TEACHER = {"teacher": {"checkpoint": "shapes_teacher"}}


class OwnConfig(BaseMethodConfig, frozen=True):
    method: Literal["own"] = "own"
    sharpness: float = 1.0

    @property
    def term_names(self) -> tuple[str, ...]:
        return ("all",)


class Own(Method):
    name, Config, citation, terms = "own", OwnConfig, "a notebook", "all"

    def forward(self, student: Any, teacher: Any, targets: Any, context: Any) -> dict[str, Any]:
        return {}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_registered", {})


def listed(*entries: Any) -> Any:
    return tiny_recipe(TEACHER, {"methods": list(entries)})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_listed_under_its_own_name_with_terms_and_source_and_has_a_published_form(name: str):
    method = find_method(name)
    config: Any = method.Config  # as published: without an argument
    assert method.name == name == config().method
    assert config().term_names and method.terms and method.citation
    assert all(term in method.terms for term in config().term_names)
    assert all(term in method.terms for term in config().published_weights)


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"methods\.0: unknown method 'detrdistil'; did you mean 'detrdistill'\?"):
        listed({"method": "detrdistil"})


def test_a_method_without_a_name_is_refused_and_the_names_are_listed():
    with pytest.raises(ConfigError, match=r"methods\.0: say which method.*detrdistill"):
        listed({"profile": "paper"})


@pytest.mark.parametrize(("entry", "near"), [
    ({"method": "detrdistill", "profil": "paper"}, r"methods\.0\.profil: .*'profile'"),
    ({"method": "detrdistill", "features": {"msk": "product"}}, r"methods\.0\.features\.msk: .*'mask'"),
    ({"method": "own", "sharpnes": 2}, r"methods\.0\.sharpnes: .*'sharpness'"),
])  # fmt: skip
def test_an_unknown_key_of_a_method_is_refused_with_the_nearest_of_that_method(entry: dict[str, Any], near: str):
    register(Own)
    with pytest.raises(ConfigError, match=near):
        listed(entry)


def test_a_method_listed_twice_is_refused():
    with pytest.raises(ConfigError, match="method detrdistill is listed twice"):
        listed({"method": "detrdistill"}, {"method": "detrdistill", "weight": 2.0})


def test_a_method_of_ones_own_is_known_once_it_is_registered_and_survives_the_round_trip_of_a_recipe():
    with pytest.raises(ConfigError, match="unknown method 'own'"):
        listed({"method": "own"})
    register(Own)
    recipe = listed({"method": "own", "sharpness": 2.0})
    assert recipe.methods == (OwnConfig(sharpness=2.0),)
    assert recipe.model_dump(mode="json")["methods"][0]["sharpness"] == 2.0
    assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


def test_the_name_of_a_built_in_method_is_refused():
    class Other(Own):
        name = "detrdistill"

    with pytest.raises(ConfigError, match=r"'detrdistill' is a built-in method \(workbench\.methods\.detrdistill"):
        register(Other)


def test_a_cell_that_registers_a_method_can_be_run_again():
    register(Own)

    class Again(Own):
        pass

    assert register(Again) is Again and find_method("own") is Again


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    points = {name: EntryPoint(name, value, registry.PLUGINS)}
    monkeypatch.setattr(registry, "_plugins", lambda: points)


def test_a_method_of_another_package_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch):
    plug_in(monkeypatch, "own", f"{__name__}:Own")
    assert method_names()[-1] == "own"
    monkeypatch.setattr(EntryPoint, "load", lambda point: Own)
    assert find_method("own") is Own and listed({"method": "own"}).methods == (OwnConfig(),)


@pytest.mark.parametrize(("value", "message"), [
    ("no_such_package:Own", "cannot be imported: ModuleNotFoundError"),
    ("workbench.errors:ConfigError", "is no Method with the name 'own'"),
    ("workbench.methods.detrdistill.detrdistill:DETRDistill", "is no Method with the name 'own'"),
])  # fmt: skip
def test_a_plug_in_that_is_broken_is_refused_by_name_when_it_is_asked_for(value: str, message: str, monkeypatch: pytest.MonkeyPatch):
    plug_in(monkeypatch, "own", value)
    assert find_method("detrdistill") is DETRDistill
    with pytest.raises(ConfigError, match=message):
        find_method("own")


def test_the_hash_of_a_recipe_follows_the_method_and_its_switches_and_not_what_is_at_its_default():
    register(Own)
    base = listed({"method": "own"}).hash()
    assert base == listed({"method": "own", "sharpness": 1.0, "weight": 1.0}).hash()
    changed = [listed({"method": "own", "sharpness": 2.0}), listed({"method": "detrdistill"}), listed()]
    assert len({base, *(recipe.hash() for recipe in changed)}) == 4

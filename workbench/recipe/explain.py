"""Explains the keys of a recipe: type, default, bounds and meaning, read from the models themselves.

A place is a dotted key, such as ``train.steps``. Where a recipe chooses one of several models by name (a family, a method, an
augmentation), the name is part of the key: ``student.dino.queries``, ``methods.fgd.temperature``.
"""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from workbench.datasets.shapes import ShapesConfig
from workbench.detectors.registry import FAMILIES
from workbench.errors import ConfigError
from workbench.methods.method import BaseMethodConfig
from workbench.methods.registry import find_method, method_names
from workbench.recipe.inherit import InheritingConfig
from workbench.recipe.schema import CheckpointConfig, DataConfig, Recipe, fields_of, is_tag, models_in

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any value"}
_PLURALS = {"true or false": "booleans", "text": "text", "any value": "values"}


@dataclass(frozen=True)
class Row:
    """Documents one key of a recipe.

    Attributes:
        key: Place of the key, such as ``train.steps``.
        type: Type in plain words.
        default: Default as YAML. ``{}`` is a section with its own defaults. ``required`` if there is no default, empty for the name of
            a model.
        bounds: Bounds of the value; empty if there are none.
        text: What the key does.
    """

    key: str
    type: str
    default: str
    bounds: str
    text: str


@dataclass(frozen=True)
class _Below:
    """The models below a key.

    Attributes:
        models: Models whose fields are the next part of the key.
        chosen: Models that the next part of the key names; each is imported when it is used.
    """

    models: tuple[type[BaseModel], ...] = ()
    chosen: Mapping[str, Callable[[], type[BaseModel]]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Lists every name that may be the next part of the key."""
        return [*(name for model in self.models for name in fields_of(model)), *self.chosen]


def explain(key: str = "") -> list[Row]:
    """Explains a key and the keys below it.

    Args:
        key: a place in a recipe; empty for the whole recipe.

    Returns:
        The row of the key itself, unless it is the whole recipe, followed by one row for each key directly below it.

    Raises:
        ConfigError: there is no such key; the message names the nearest one.
    """
    own, below = _find(key)
    return [*([own] if own is not None else []), *(row for row, _ in _steps(key, below))]


def sections() -> Iterator[tuple[str, list[Row], dict[str, str]]]:
    """Walks through all keys that a recipe can have.

    Yields:
        The place (empty for the recipe itself), the rows below it, and for each of these keys that has keys below it the place where
        those are explained: its own, or an earlier one with the same models.
    """
    places: dict[tuple[type[BaseModel], ...], str] = {}
    pending = [("", _Below((Recipe,)))]
    while pending:
        place, below = pending.pop(0)
        steps, inner, links = _steps(place, below), [], {}
        for row, deeper in steps:
            if not deeper.names():
                continue
            links[row.key] = row.key if deeper.chosen else places.setdefault(deeper.models, row.key)
            if links[row.key] == row.key:
                inner.append((row.key, deeper))
        pending = inner + pending
        yield place, [row for row, _ in steps], links


def _find(key: str) -> tuple[Row | None, _Below]:
    row, below, place = None, _Below((Recipe,)), ""
    for part in key.split(".") if key else ():
        here, place = place, f"{place}.{part}" if place else part
        if part not in below.names():
            raise ConfigError(_unknown(here, part, below))
        row, below = _step(place, below, part)
    return row, below


def _step(place: str, below: _Below, part: str) -> tuple[Row, _Below]:
    """Returns the row of ``part``, whose place is ``place``, and what lies below it."""
    if part in below.chosen:
        model = below.chosen[part]()
        return Row(place, "section", "", "", _paragraph(model)), _Below((model,))
    owner = next(model for model in below.models if part in model.model_fields)
    return _row(place, owner.model_fields[part]), _below(owner, part)


def _steps(place: str, below: _Below) -> list[tuple[Row, _Below]]:
    return [_step(f"{place}.{name}" if place else name, below, name) for name in below.names()]


def _below(owner: type[BaseModel], name: str) -> _Below:
    models = models_in(owner.model_fields[name].annotation)
    if (owner, name) == (DataConfig, "options"):
        return _Below((), {"shapes": lambda: ShapesConfig})
    if models == [BaseModel]:
        return _Below((CheckpointConfig, InheritingConfig), {name: lambda name=name: FAMILIES[name].config for name in FAMILIES})
    if models == [BaseMethodConfig]:
        return _Below((), {name: lambda name=name: find_method(name).Config for name in method_names()})
    tags = {model: _tag(model) if len(models) > 1 else None for model in models}
    return _Below(
        tuple(model for model in models if tags[model] is None),
        {tag: lambda model=model: model for model, tag in tags.items() if tag is not None},
    )


def _tag(model: type[BaseModel]) -> str | None:
    """Returns the value by which a recipe chooses ``model``, if it is one of several."""
    return next((typing.get_args(item.annotation)[0] for item in model.model_fields.values() if is_tag(item.annotation)), None)


def _unknown(place: str, part: str, below: _Below) -> str:
    key = f"{place}.{part}" if place else part
    if not below.names():
        return f"a recipe has no key '{key}': {place} has no keys below it."
    prefix = f"{place}." if place else ""
    holders = [f"{prefix}{name}.{part}" for name, model in below.chosen.items() if part in model().model_fields]
    if holders:
        return f"'{key}' depends on which {place} is chosen; explain one of {', '.join(holders)}."
    near = difflib.get_close_matches(part, below.names(), n=1, cutoff=0.5)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"keys there: {', '.join(below.names())}."
    return f"a recipe has no key '{key}'; {hint}"


def _row(key: str, info: FieldInfo) -> Row:
    bounds = list(dict.fromkeys(_bounds(info.annotation, info.metadata)))
    shown = [bound for bound in bounds if bound.removeprefix("each ") == bound or bound.removeprefix("each ") not in bounds]
    return Row(key, _words(info.annotation), _default(info), ", ".join(shown), " ".join((info.description or "").split()))


def _default(info: FieldInfo) -> str:
    # the name of a model has a default in its class, but a recipe must name it to choose the class
    if info.is_required() or is_tag(info.annotation):
        return "required"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return as_yaml(value.model_dump(mode="json", exclude_unset=True))
    return as_yaml(value)


def as_yaml(value: Any) -> str:
    """Writes a plain value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    text = text.removesuffix("\n").removesuffix("\n...")
    # a string contains a line break
    return text if "\n" not in text else yaml.safe_dump(value, default_style='"', width=math.inf).strip()


def _words(annotation: Any) -> str:
    """Returns a type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return _either([str(value) for value in arguments])
    if origin in (typing.Union, types.UnionType):
        words = list(dict.fromkeys(_words(part) for part in arguments if part is not type(None)))
        return _either(words + ["null"] * (type(None) in arguments))
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list of {count}{_plural(arguments[0])}"
    if origin is dict:
        return "mapping" if arguments[1] is Any else f"mapping of names to {_plural(arguments[1])}"
    return _WORDS.get(annotation, "section")


def _plural(annotation: Any) -> str:
    word = _words(annotation)
    if typing.get_origin(annotation) is Literal:
        return word
    first, *rest = word.split(" of ", 1)
    return _PLURALS.get(word) or " of ".join([f"{first}s", *rest])


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _bounds(annotation: Any, metadata: typing.Sequence[Any], each: str = "") -> Iterator[str]:
    """Yields the bounds of a value, then those of its entries."""
    for item in metadata:
        match item:
            case FieldInfo():
                yield from _bounds(None, item.metadata, each)
            case annotated_types.Gt():
                yield f"{each}> {item.gt}"
            case annotated_types.Ge():
                yield f"{each}>= {item.ge}"
            case annotated_types.Lt():
                yield f"{each}< {item.lt}"
            case annotated_types.Le():
                yield f"{each}<= {item.le}"
            case annotated_types.MultipleOf():
                yield f"{each}a multiple of {item.multiple_of}"
            case annotated_types.MinLen():
                yield f"{each}at least {item.min_length} entr{'y' if item.min_length == 1 else 'ies'}"
            case _:
                pass  # a pattern, which the text explains in words
    if isinstance(annotation, type):
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from _bounds(arguments[0], arguments[1:], each)
    elif origin is not Literal:
        for part in arguments:
            yield from _bounds(part, (), "each " if origin in (tuple, dict) else each)


def _paragraph(model: type[BaseModel]) -> str:
    """Returns the first paragraph of a model's docstring in one line."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())

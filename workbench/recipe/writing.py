"""Writes a resolved recipe, so that the user sees every value that a run would have."""

from collections.abc import Iterator

from pydantic import BaseModel

from workbench.recipe.explain import as_yaml
from workbench.recipe.schema import Recipe, fields_of, is_tag

DEFAULT = "  # default"


def recipe_yaml(recipe: Recipe) -> str:
    """Writes every value of a recipe as YAML, in the order of the reference; a comment marks values at their default.

    ``arms`` are left out because they are other recipes. The text loads as the same recipe without them.
    """
    return "\n".join(_lines(recipe.model_copy(update={"arms": {}}), "", skip="arms")) + "\n"


def _lines(model: BaseModel, indent: str, skip: str = "") -> Iterator[str]:
    for name, field in fields_of(type(model)).items():
        if name == skip:
            continue
        value = getattr(model, name)
        same = not is_tag(field.annotation) and value == field.get_default(call_default_factory=True)
        mark = DEFAULT if same else ""
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:{mark}"
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:{mark}"
            for item in value:
                first, *rest = _lines(item, f"{indent}    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from rest
        else:
            yield f"{indent}{name}: {as_yaml(value)}{mark}"

"""``workbench recipe explain|show``: explains the keys of a recipe, or shows a recipe with all its values."""

from typing import Annotated

import typer

from workbench.commands.options import Arm, Data, Json, Recipe, Set, Verb, sub_app

recipe_app = sub_app("Explain the keys of a recipe, or show one with every default.")


@recipe_app.command("explain", cls=Verb)
def recipe_explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A key such as train, train.steps or student.dino; without it, all top-level keys.")
    ] = "",
    json_path: Json = None,
) -> None:
    """Explain the keys of a recipe: type, default, bounds and meaning.

    Example: workbench recipe explain train.steps
    """
    from dataclasses import asdict

    from rich.padding import Padding
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.files import write_json
    from workbench.recipe.explain import explain

    rows = explain(key)
    for row in rows:
        default = {"": "", "required": "required"}.get(row.default, f"default: {row.default}")
        facts = "; ".join(filter(None, (row.type, default, row.bounds)))
        console.print(Text.assemble((row.key, "bold"), "  ", (facts, "dim")), soft_wrap=True)
        console.print(Padding(Text(row.text.replace("``", "`")), (0, 0, 0, 4), expand=False))
    if json_path is not None:
        write_json(json_path, [asdict(row) for row in rows])


@recipe_app.command("show", cls=Verb)
def recipe_show(
    recipe: Recipe,
    arm: Arm = None,
    data: Data = None,
    overrides: Set = None,
    json_path: Json = None,
) -> None:
    """Show a recipe as a run would read it, with every default.

    The arm and the overrides are applied.

    Example: workbench recipe show shapes --arm undistilled
    """
    from rich.text import Text

    from workbench.commands.console import console
    from workbench.files import write_json
    from workbench.recipe.loading import load_recipe, recipe_path
    from workbench.recipe.writing import recipe_yaml

    path = recipe_path(recipe)
    resolved = load_recipe(path, [*(overrides or []), *([f"data.path={data}"] if data else [])], arm)
    header = f"# arm {arm or resolved.own_arm} of {path.name}, hash {resolved.hash()}"
    console.print(Text(f"{header}\n{recipe_yaml(resolved)}"), soft_wrap=True, end="")
    if json_path is not None:
        write_json(json_path, resolved.model_dump(mode="json", exclude={"arms"}))

"""Writes docs/recipe.md, the reference of a recipe's keys: `python -m tools.recipe_page`. A test fails if the page is out of date."""

from pathlib import Path

from workbench.recipe.explain import Row, sections

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recipe.md"
HEAD = """# Recipes

A recipe is the one YAML file that describes an experiment. This page lists all of its keys. It is made from the code:
`workbench recipe explain KEY` prints the same, also of methods that you add. `workbench recipe show RECIPE --arm ARM` prints a recipe with
every default filled in. `--set train.steps=100` changes a key for one run.

Where a recipe chooses one of several models, the key names the choice: `student.dino.queries` is `queries` below `student:` with
`family: dino`, `methods.fgd.temperature` is `temperature` of the entry of `methods:` with `method: fgd`,
`data.transform.augment.crop.min` is `min` of the entry of `augment:` with `op: crop`, and `data.options.shapes.size` is `size` below
`options:` of the embedded data."""


def page() -> str:
    """Returns the page: one table for each section of a recipe, built from the documentation of the fields."""
    parts = [HEAD]
    for place, rows, links in sections():
        parts += [f"\n## {place or 'Top level'}\n", "| key | type | default | bounds | meaning |", "|---|---|---|---|---|"]
        parts += [_line(place, row, links) for row in rows]
    return "\n".join(parts) + "\n"


def _line(place: str, row: Row, links: dict[str, str]) -> str:
    name = f"`{row.key.removeprefix(f'{place}.')}`"
    if row.key in links:
        name = f"[{name}](#{links[row.key].replace('.', '')})"
    default = row.default if row.default in ("", "required") else f"`{row.default}`"
    text = row.text.replace("``", "`").replace("|", "\\|")
    return f"| {name} | {row.type} | {default} | {row.bounds} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""``workbench search space``: shows the space of formulas that DetKDS searches."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.commands.options import Json, Verb, sub_app

if TYPE_CHECKING:
    from workbench.methods.detkds.genotype import Input, Mode
    from workbench.search.space import Survey

search_app = sub_app("Search for the best distiller; see which formulas there are.")


@search_app.command("space", cls=Verb)
def search_space(
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="Images in a batch of one process.")] = 2,
    json_path: Json = None,
) -> None:
    """Show the formulas at each position, and how many of them work.

    Every formula is computed on a small probe, in about half a minute: whether its loss is finite, has a gradient, and is smallest where
    student and teacher are equal. Formulas that differ by name alone count once.

    Example: workbench search space --images 16
    """
    from rich.text import Text

    from workbench.commands.console import console, print_rows
    from workbench.commands.progress import console_count
    from workbench.files import write_json
    from workbench.methods.detkds.genotype import INPUTS
    from workbench.search.space import MODES, positions, survey

    tables: dict[Input, tuple[Any, Any]] = {input: (positions(input), positions(input, added=True)) for input in INPUTS}
    for inputs in _alike(tables):
        console.print(Text(", ".join(inputs), style="bold"))
        counted, whole = tables[inputs[0]]
        for position, choices in counted.items():
            ours = [choice for choice in whole[position] if choice not in choices]
            also = f" (ours besides: {', '.join(ours)})" if ours else ""
            console.print(Text(f"  {position}: {', '.join(choices)}{also}"), soft_wrap=True)
    pairs: list[tuple[Input, Mode]] = [(input, mode) for input in INPUTS for mode in MODES]
    with console_count(console, "inputs") as count:
        surveys: list[Survey] = []
        for done, (input, mode) in enumerate(pairs):
            count(done, len(pairs))
            surveys.append(survey(input, mode, images))
        count(len(pairs), len(pairs))
    rows = [
        {
            "input": one.input, "mode": one.mode, "formulas": one.formulas, "different": one.different,
            "illegal": one.outcomes["illegal"], "at batch 1": one.alone, "not finite": one.outcomes["not finite"],
            "no gradient": one.outcomes["no gradient"], "not minimal": one.outcomes["not minimal"], "works": one.outcomes["works"],
            "different of these": one.canonical, "on the probe": one.distinct,
        }
        for one in surveys
    ]  # fmt: skip
    console.print(Text(f"formulas of the released tables and of the paper's figure, with {images} images in a batch:"))
    print_rows(rows)
    if json_path is not None:
        choices = {input: {"released": counted, "with ours": whole} for input, (counted, whole) in tables.items()}
        write_json(json_path, {"images": images, "positions": choices, "formulas": rows})


def _alike(tables: "dict[Input, tuple[Any, Any]]") -> "list[list[Input]]":
    """Returns the inputs in groups that have the same choices."""
    groups: dict[str, list[Input]] = {}
    for input, table in tables.items():
        groups.setdefault(repr(table), []).append(input)
    return list(groups.values())

"""``workbench methods``: lists the distillation methods."""

from typing import Annotated, Any

import typer

from workbench.commands.options import Json


def methods(
    found: Annotated[bool, typer.Option("--found", help="List what searches have found instead, as recipes that can be run.")] = False,
    json_path: Json = None,
) -> None:
    """List the distillation methods: loss terms, needs, sources.

    The needs are what a method takes from teacher and student; the families are those that provide it. The second table says which kinds
    of teacher and student a method serves: detectors with queries, dense ones and two-stage ones.

    Example: workbench methods --found
    """
    if found:
        _found(json_path)
        return
    from workbench.commands.console import console, print_rows
    from workbench.files import write_json
    from workbench.methods.registry import find_method, method_matrix, pair_matrix, served_names

    families, *matrix = method_matrix()
    rows: list[dict[str, Any]] = []
    for name, *served in matrix:
        method = find_method(name)
        able = served_names(families[1:], served)
        rows.append({"method": name, "terms": method.terms, "needs": method.needs_text(), "families": able, "source": method.citation})
    print_rows(rows)
    kinds, *cells = pair_matrix()
    pairs = [dict(zip(kinds, row, strict=True)) for row in cells]
    console.print("\nKinds of teacher → student:")
    print_rows(pairs)
    if json_path is not None:
        served_pairs = ({key: cell for key, cell in pair.items() if key != "method"} for pair in pairs)
        write_json(json_path, [row | {"pairs": pair} for row, pair in zip(rows, served_pairs, strict=True)])


def _found(json_path: Json) -> None:
    """Lists the recipes that searches have found, with their mean AP on held-out images."""
    from workbench.commands.console import print_rows
    from workbench.recipe.loading import load_recipe
    from workbench.store.searches import found_recipes

    rows: list[dict[str, Any]] = []
    for name, path in found_recipes().items():
        lineage = load_recipe(path).lineage
        if lineage is not None:
            mean = None if lineage.mean is None else 100 * lineage.mean
            rows.append({"recipe": name, "distiller": lineage.candidate, "AP held out": mean, "seeds": len(lineage.seeds),
                         "search": lineage.search, "commit": lineage.commit})  # fmt: skip
    print_rows(rows, json_path)

"""``workbench methods``: lists the distillation methods."""

from typing import Any

from workbench.commands.options import Json


def methods(json_path: Json = None) -> None:
    """List the distillation methods: loss terms, needs, sources.

    The needs are what a method takes from teacher and student; the families are those that provide it.
    """
    from workbench.commands.console import print_rows
    from workbench.methods.registry import find_method, method_matrix

    families, *matrix = method_matrix()
    rows: list[dict[str, Any]] = []
    for name, *served in matrix:
        method = find_method(name)
        able = [family for family, lacks in zip(families[1:], served, strict=True) if lacks == "yes"]
        everywhere = "all" if len(able) == len(served) else ", ".join(able) or "none"
        needs = method.needs_text()
        rows.append({"method": name, "terms": method.terms, "needs": needs, "families": everywhere, "source": method.citation})
    print_rows(rows, json_path)

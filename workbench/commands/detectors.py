"""``workbench detectors``: the families of detectors."""

from typing import Any

from workbench.commands.options import Json


def detectors(json_path: Json = None) -> None:
    """List the detector families and the methods that each can use.

    Parameter counts are those of the published settings, with a ResNet-50 and 80 classes.

    Example: workbench detectors
    """
    from workbench.commands.console import print_rows
    from workbench.detectors.registry import FAMILIES, parameter_count
    from workbench.methods.registry import method_matrix, served_names

    columns = list(zip(*method_matrix(), strict=True))
    names = columns[0][1:]
    rows: list[dict[str, Any]] = []
    for family, *served in columns[1:]:
        rows.append({
            "family": family,
            "parameters": f"{parameter_count(family) / 1e6:.1f} M",
            "provides": ", ".join(sorted(FAMILIES[family].detector.provides)),
            "methods": served_names(names, served),
        })  # fmt: skip
    print_rows(rows, json_path)

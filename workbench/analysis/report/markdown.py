"""Writes the summary table as Markdown, for README and docs."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from workbench.analysis.defined import NOT_DEFINED

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&-])")


class _Column(NamedTuple):
    """A heading, the columns of the frame that it shows, and their format; a cell is empty if one of them is None."""

    heading: str
    names: tuple[str, ...]
    show: Callable[..., str]


def markdown(table: pd.DataFrame) -> str:
    """Returns a frame of ``analysis.report.summary.table`` as a Markdown table, shares in percent, each with its n.

    Columns that are empty in every row are left out.
    """
    headings, cells = as_shown(table, plain_text)
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *cells])


def as_shown(table: pd.DataFrame, text: Callable[[Any], str] = str) -> tuple[list[str], list[list[str]]]:
    """Returns headings and cells in readable form; columns that are empty in every row are left out.

    Args:
        table: frame of ``analysis.report.summary.table``.
        text: escapes a name from the data for where it is shown.
    """
    rows = table.to_dict("records")
    columns = [column for column in _columns(table, text) if any(_cell(column, row) != "-" for row in rows)]
    return [column.heading for column in columns], [[_cell(column, row) for column in columns] for row in rows]


def plain_text(value: Any) -> str:
    """Returns a name from the data on one line, with every character escaped that Markdown or HTML could read as markup."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def _columns(table: pd.DataFrame, text: Callable[[Any], str]) -> list[_Column]:
    classes = [name.removeprefix("ap ") for name in table.columns if name.startswith("ap ")]
    return [
        _Column("recipe", ("recipe",), text),
        _Column("arm", ("arm",), text),
        _Column("seed", ("seed",), str),
        _Column("schedule", ("schedule",), text),
        _Column("steps", ("steps",), "{:,}".format),
        _Column("AP on", ("split",), text),
        _Column("AP", ("ap",), _percent),
        _Column("AP50", ("ap50",), _percent),
        _Column("AP75", ("ap75",), _percent),
        *(_Column(f"AP {text(name)} (n)", (f"ap {name}", f"targets {name}"), _percent) for name in classes),
        _Column("churn between evaluations (n)", ("churn", "churn_n"), _percent),
        _Column("instability (queries)", ("instability",), "{:.2f}".format),
        _Column("instability, share of maximum", ("instability_normalised",), _percent),
        _Column("found-by churn (n)", ("found_by_churn", "found_by_churn_n"), _percent),
        _Column("churn between layers (n)", ("layers_churn", "layers_churn_n"), _percent),
        _Column("instability between layers (queries)", ("layers_instability",), "{:.2f}".format),
        _Column("instability between layers, share of maximum", ("layers_instability_normalised",), _percent),
        _Column("agreement (n)", ("agreement", "agreement_n"), _percent),
        _Column("quality (n)", ("quality", "quality_n"), "{:.3f} ({:,})".format),
        _Column("parameters", ("parameters",), lambda value: f"{value / 1e6:.2f} M"),
        _Column("GFLOPs", ("flops",), lambda value: f"{value / 1e9:.3f}"),
        _Column("ms/image", ("ms_per_image",), "{:.1f}".format),
        _Column("compute", ("compute_seconds", "compute_kind"), "{:.0f} s {}".format),
    ]


def _percent(share: float, n: int | None = None) -> str:
    return f"{100 * share:.1f}" + ("" if n is None else f" ({n:,})")


def _cell(column: _Column, row: Mapping[Any, Any]) -> str:
    values = [row.get(name) for name in column.names]
    if NOT_DEFINED in values:
        return NOT_DEFINED
    return "-" if any(value is None for value in values) else column.show(*values)

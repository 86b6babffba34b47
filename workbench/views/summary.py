"""Makes the summary table readable: which columns are shown, in what units, and what each means."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import pandas as pd
from pandas.io.formats.style import Styler

from workbench.analysis.defined import NOT_DEFINED


class Column(NamedTuple):
    """Says how one column of ``analysis.report.summary.table`` is shown.

    Attributes:
        title: heading.
        meaning: one line: the definition and the unit.
        scale: the number is multiplied by this.
        digits: after the point; None for text.
    """

    title: str
    meaning: str
    scale: float = 1
    digits: int | None = None


_CHURN = "Churn: of the targets matched at both of two consecutive {}, the share whose query changes (%)"
_IS = "Instability score IS of DN-DETR: mean number of queries per image whose target changes between two consecutive {}"
_EVALUATIONS = "evaluations (last decoder layer, all pairs of evaluations together)"
_LAYERS = "decoder layers (at the step of the result)"
CLASSES = "ap of classes"
COLUMNS: dict[str, Column] = {
    "run": Column("run", "Name of the run."),
    "arm": Column("arm", "Arm of the recipe. The arm 'teacher' is the model that the students learn from."),
    "seed": Column("seed", "Seed of the initial weights and of the order of the data.", digits=0),
    "schedule": Column(
        "schedule",
        "Equal steps: as many optimiser steps as the undistilled run. Equal compute: shortened to that run's process seconds.",
    ),
    "steps": Column("steps", "Number of optimiser steps.", digits=0),
    "ap": Column(
        "AP",
        "COCO AP, the mean over IoU thresholds from 0.50 to 0.95 (%). Measured on the test split if the run was tested, otherwise on the "
        "validation split.",
        100,
        1,
    ),
    "ap_low": Column("AP from", "Lower end of AP's 95 % interval over resampled images. It does not cover other seeds.", 100, 1),
    "ap_high": Column("AP to", "Upper end of AP's 95 % interval over resampled images.", 100, 1),
    "difference": Column("difference in AP", "AP minus that of the undistilled run of this seed, on the same images (points).", 100, 1),
    "difference_low": Column("difference from", "Lower end of the difference's 95 % interval over resampled images.", 100, 1),
    "difference_high": Column("difference to", "Upper end of the difference's 95 % interval over resampled images.", 100, 1),
    "ap50": Column("AP50", "COCO AP at IoU 0.50 (%).", 100, 1),
    "ap75": Column("AP75", "COCO AP at IoU 0.75 (%).", 100, 1),
    "churn": Column("churn (%)", _CHURN.format(_EVALUATIONS) + ".", 100, 1),
    "instability": Column("instability (queries)", _IS.format(_EVALUATIONS) + ".", digits=2),
    "found_by_churn": Column(
        "found-by churn (%)",
        "Found-by churn: of the targets detected at both of two consecutive evaluations, the share that another candidate detects (%). "
        "Defined for every detector.",
        100,
        1,
    ),
    "agreement": Column(
        "agreement (%)",
        "Of the targets matched in both student and teacher, the share that both give to corresponding queries (%). Last decoder layer.",
        100,
        1,
    ),
    "quality": Column(
        "quality (0 to 1)",
        "Mean of sqrt(score x IoU) with the matched target over all matched queries, from 0 to 1. Last decoder layer.",
        digits=3,
    ),
    "gain": Column(
        "gain (0 to 1)",
        "Mean over targets of score x IoU of the matched query, minus the same in the undistilled run of this seed at this step.",
        digits=3,
    ),
    "gain_low": Column("gain from", "Lower end of the mean gain's 95 % interval over resampled images.", digits=3),
    "gain_high": Column("gain to", "Upper end of the mean gain's 95 % interval over resampled images.", digits=3),
    "parameters": Column("params (k)", "Number of parameters, in thousands.", 1e-3, 1),
    "flops": Column("GFLOPs", "Floating-point operations for one image, in billions.", 1e-9, 3),
    "ms_per_image": Column("ms/image", "Time for one image at batch size 1, in milliseconds, on the machine of the run.", digits=1),
    "compute_seconds": Column(
        "compute (s)", "Seconds of training without evaluation: process time on a CPU, otherwise wall-clock time.", digits=0
    ),
    CLASSES: Column("AP {}", "COCO AP of this class (%).", 100, 1),
    "layers_churn": Column("churn, layers (%)", _CHURN.format(_LAYERS) + ".", 100, 1),
    "layers_instability": Column("instability, layers (queries)", _IS.format(_LAYERS) + ".", digits=2),
    "churn_n": Column("n churn", "Number of targets that churn is computed from.", digits=0),
    "found_by_churn_n": Column("n found-by", "Number of targets that found-by churn is computed from.", digits=0),
    "layers_churn_n": Column("n layers", "Number of targets that churn between layers is computed from.", digits=0),
    "agreement_n": Column("n agreement", "Number of targets that agreement is computed from.", digits=0),
    "quality_n": Column("n quality", "Number of queries that quality is computed from.", digits=0),
    "gain_n": Column("n gain", "Number of targets that gain is computed from.", digits=0),
    "split": Column("split", "Split on which AP was measured."),
    "state": Column("state", "State of the run: running, done, interrupted or failed."),
}

_ENDS = {name: (f"{name}_low", f"{name}_high") for name in ("ap", "difference", "gain")}  # columns that hold the ends of an interval
MAIN = ("run", "arm", "schedule", "seed", "ap", "difference", "churn", "instability", "found_by_churn", "agreement", "quality", "gain")


def readable(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Column]]:
    """Returns the table in the units of its headings, with the AP of every class in the place of ``CLASSES``.

    Args:
        table: frame of ``analysis.report.summary.table``.

    Returns:
        The frame with the columns of ``COLUMNS`` in which something is known (unknown values stay null), and how each column is shown. A
        column in which a number is not defined for a run holds text, and so does one whose intervals are known: "50.5 [49.0, 51.9]". If
        all rows are of one split, the headings of AP name it.
    """
    shown: dict[str, Column] = {}
    for name, column in COLUMNS.items():
        if name == CLASSES:
            classes = [key for key in table.columns if key.startswith("ap ")]
            shown |= {key: column._replace(title=column.title.format(key.removeprefix("ap "))) for key in classes}
        elif name in ("run", "ap") or (name in table and table[name].notna().any()):
            shown[name] = column
    splits = set(table["split"].dropna()) if "split" in table else set()
    if len(splits) == 1:
        shown = {name: column._replace(title=f"{column.title} ({next(iter(splits))})") if name.startswith("ap") else column
                 for name, column in shown.items()}  # fmt: skip
    frame = table[list(shown)].copy()
    for name, column in shown.items():
        if column.digits is None:
            continue
        if (frame[name] == NOT_DEFINED).any():
            frame[name] = [_as_text(value, column) for value in frame[name]]
            shown[name] = column._replace(digits=None)
        else:
            frame[name] = pd.to_numeric(frame[name]) * column.scale
    for name, ends in _ENDS.items():
        if name in shown and set(ends) <= set(shown):
            column = COLUMNS[name]
            frame[name] = [_with_ends(row, name, column, name == "difference") for row in table.to_dict("records")]
            shown[name] = shown[name]._replace(title=f"{shown[name].title} [95 %]", digits=None)
            for end in ends:
                del frame[end], shown[end]
    return frame, shown


def sortable(table: pd.DataFrame, **more: Sequence[Any]) -> tuple[Styler, dict[str, Column], set[str]]:
    """Returns the table of ``readable`` such that its columns with intervals hold numbers and show texts, so that they sort by number.

    Args:
        table: as in ``readable``.
        more: further columns, shown as they are.

    Returns:
        The table with its texts, how each column is shown, and the names of the columns whose numbers are shown as texts. A column in which
        a number is not defined for a run stays text.
    """
    frame, shown = readable(table)
    whole = [name for name in _ENDS if name in shown and shown[name].digits is None and (table[name] != NOT_DEFINED).all()]
    texts = {name: frame[name].tolist() for name in whole}
    frame = frame.reset_index(drop=True).assign(**more)
    for name in texts:
        frame[name] = pd.to_numeric(table[name]).to_numpy(float) * COLUMNS[name].scale
    style = frame.style
    for name, said in texts.items():
        for row, text in enumerate(said):
            if isinstance(text, str):
                style = style.format(text.strip(), subset=([row], [name]))
    return style, shown, set(texts)


def _with_ends(row: dict[Hashable, Any], name: str, column: Column, signed: bool) -> str | None:
    """Returns a number with the ends of its interval, padded so that the texts sort as the numbers do; None if it is not known."""
    value, (low, high) = row[name], (row[end] for end in _ENDS[name])
    if value is None or isinstance(value, str) or pd.isna(value):
        return value if isinstance(value, str) else None
    sign = "+" if signed else ""
    text = f"{format(column.scale * value, f'{sign}.{column.digits}f'):>5}"
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return text
    return f"{text} [{column.scale * low:{sign}.{column.digits}f}, {column.scale * high:{sign}.{column.digits}f}]"


def _as_text(value: float | str | None, column: Column) -> str | None:
    """Returns a value of a column that holds words as well: in the unit and digits of its heading, None if unknown."""
    if value is None or isinstance(value, str):
        return value
    return None if pd.isna(value) else f"{value * column.scale:,.{column.digits}f}"

"""The summary table as people read it: which columns, in what units, and what each means."""

from typing import NamedTuple

import pandas as pd


class Column(NamedTuple):
    """How one column of ``analysis.summary.table`` is shown.

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


_CHURN = "Churn: of the targets matched at both of two {}, the share whose query changed (%)"
_IS = "Instability IS (DN-DETR): mean over images of the number of queries whose target changed between two {} (queries per image)"
_EVALUATIONS = "consecutive evaluations, all pairs pooled, last layer"
_LAYERS = "consecutive decoder layers, at the step of the result"
CLASSES = "ap of classes"
COLUMNS: dict[str, Column] = {
    "run": Column("run", "Name of the run's folder."),
    "arm": Column("arm", "Which arm of the recipe; 'teacher' is the model learned from."),
    "seed": Column("seed", "Of initialisation and data order.", digits=0),
    "schedule": Column("schedule", "Equal steps: as many as the undistilled run. Equal compute: shortened to its process seconds."),
    "steps": Column("steps", "Optimiser steps of the schedule.", digits=0),
    "ap": Column("AP", "COCO AP, mean over IoU 0.50 to 0.95 (%), on the test split where the run was tested, else on validation.", 100, 1),
    "ap_low": Column("AP from", "Lower end of AP's 95 % interval over resampled images; it tells about these weights.", 100, 1),
    "ap_high": Column("AP to", "Upper end of AP's 95 % interval over resampled images.", 100, 1),
    "ap50": Column("AP50", "COCO AP at IoU 0.50 (%).", 100, 1),
    "ap75": Column("AP75", "COCO AP at IoU 0.75 (%).", 100, 1),
    "churn": Column("churn", _CHURN.format(_EVALUATIONS) + ".", 100, 1),
    "instability": Column("IS", _IS.format(_EVALUATIONS) + ".", digits=2),
    "agreement": Column("agreement", "Of the targets matched in both models, the share whose queries are mates (%). Last layer.", 100, 1),
    "quality": Column("quality", "Mean of sqrt(score x IoU) with the matched target, over matched queries (0 to 1). Last layer.", digits=3),
    "gain": Column("gain", "Mean over targets of score x IoU minus that of the undistilled run of the same seed and step.", digits=3),
    "gain_low": Column("gain from", "Lower end of the mean gain's 95 % interval over resampled images.", digits=3),
    "gain_high": Column("gain to", "Upper end of the mean gain's 95 % interval over resampled images.", digits=3),
    "parameters": Column("params (k)", "Parameters, thousands.", 1e-3, 1),
    "flops": Column("GFLOPs", "Floating-point operations of one image, 10^9.", 1e-9, 3),
    "ms_per_image": Column("ms/image", "Time of one image at batch 1 on the machine of the run (milliseconds).", digits=1),
    "compute_seconds": Column("compute (s)", "Seconds of training without evaluation: process seconds on a CPU, else wall.", digits=0),
    CLASSES: Column("AP {}", "COCO AP of one class (%).", 100, 1),
    "layers_churn": Column("churn, layers", _CHURN.format(_LAYERS) + ".", 100, 1),
    "layers_instability": Column("IS, layers", _IS.format(_LAYERS) + ".", digits=2),
    "churn_n": Column("n churn", "Targets behind churn.", digits=0),
    "layers_churn_n": Column("n layers", "Targets behind churn between layers.", digits=0),
    "agreement_n": Column("n agreement", "Targets behind agreement.", digits=0),
    "quality_n": Column("n quality", "Queries behind quality.", digits=0),
    "gain_n": Column("n gain", "Targets behind gain.", digits=0),
    "split": Column("split", "The split AP is of."),
    "state": Column("state", "Of the run."),
}


def readable(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Column]]:
    """The columns of ``COLUMNS``, the AP of every class in the place of ``CLASSES``, in the units of their headings.

    Args:
        table: of ``analysis.summary.table``.

    Returns:
        The frame, nulls kept, without columns in which nothing is known; and how each of its columns is shown.
    """
    shown: dict[str, Column] = {}
    for name, column in COLUMNS.items():
        if name == CLASSES:
            classes = [key for key in table.columns if key.startswith("ap ")]
            shown |= {key: column._replace(title=column.title.format(key.removeprefix("ap "))) for key in classes}
        elif name in ("run", "ap") or (name in table and table[name].notna().any()):
            shown[name] = column
    frame = table[list(shown)].copy()
    for name, column in shown.items():
        if column.digits is not None:
            frame[name] = pd.to_numeric(frame[name]) * column.scale
    return frame, shown

"""Writes numbers of a page as CSV that a spreadsheet opens as they are."""

from typing import Any

import pandas as pd

NOTE = "Text that a spreadsheet would take for a formula begins with an apostrophe."
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # some spreadsheets take the wide ones for the others


def csv_text(frame: pd.DataFrame) -> str:
    """Returns a frame as CSV. Names of classes and runs come from files, so text that begins like a formula gets an apostrophe in front."""
    safe = frame.rename(columns=_safe)
    for place, dtype in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(dtype):
            safe.isetitem(place, safe.iloc[:, place].astype(object).map(_safe).to_numpy(object))
    return safe.to_csv(index=False)


def _safe(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(_FORMULA) else cell

"""Quality of queries from the query table, in both of its definitions, and its mean by slice with intervals."""

import numpy as np
import pandas as pd

from workbench.analysis.detection.ratios import image_ratios


def official_quality(rows: pd.DataFrame) -> pd.Series:
    """Quality as DETRDistill's released code computes it: score times the largest IoU with any target, the score alone without targets.

    The column ``quality`` is the paper's (equation 8), which is 0 for unmatched queries.

    Args:
        rows: of the query table, all queries of each image; ``score``, ``best_iou`` and ``match`` are read.

    Returns:
        One value 0..1 per row, with the index of ``rows``.
    """
    # every image with targets has a matched query at every layer, whatever the layer
    keys = [name for name in ("step", "model", "image_id") if name in rows]
    targets = (rows["match"] >= 0).groupby([rows[name] for name in keys]).transform("any")
    return (rows["score"].astype(np.float64) * rows["best_iou"].where(targets, 1.0)).rename("quality")


def quality_by(
    queries: pd.DataFrame,
    model: str = "teacher",
    by: str | None = None,
    targets: pd.DataFrame | None = None,
    samples: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean quality of the queries matched with a target (the paper's is 0 for all others).

    Args:
        queries: rows of the query table, matched ones at least.
        model: whose rows.
        by: ``label`` or ``size`` of ``targets``, or ``query`` (slot); None for all together.
        targets: of ``targets.target_frame``.
        samples: resamples of the images.
        seed: of the draws.

    Returns:
        One row per step, layer and slice: ``step``, ``layer``, ``by``, ``quality`` 0..1 with ``low`` and ``high``, ``n`` queries,
        ``images``.
    """
    rows = queries[(queries["model"] == model) & (queries["match"] >= 0)]
    if by is not None and targets is not None:
        own = targets[["image_id", "target", by]].rename(columns={"target": "match"})
        rows = rows.drop(columns=by, errors="ignore").astype({"match": "int64"}).merge(own, on=["image_id", "match"])
    keys = ["step", "layer", *([by] if by else [])]
    grouped = rows.groupby(keys, observed=True)
    counts = pd.DataFrame({"n": grouped.size(), "images": grouped["image_id"].nunique()})
    means = image_ratios(
        rows["image_id"].to_numpy(), grouped.ngroup().to_numpy(), len(counts), rows["quality"].to_numpy(), samples=samples, seed=seed
    )
    frame = counts.rename_axis(keys).reset_index().assign(quality=means.value, low=means.low, high=means.high)
    return frame[[*keys, "quality", "low", "high", "n", "images"]]

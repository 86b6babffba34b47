"""Averages the quality of queries from the query table, in both of its definitions, by slice and with intervals."""

import pandas as pd

from workbench.analysis.detection.ratios import image_ratios


def quality_by(
    queries: pd.DataFrame,
    model: str = "teacher",
    by: str | None = None,
    targets: pd.DataFrame | None = None,
    samples: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the mean quality of the queries matched with a target (in the paper, the quality of all others is 0).

    Args:
        queries: rows of the query table, at least the matched ones.
        model: model whose rows are read.
        by: ``label`` or ``size`` of ``targets``, or ``query`` (slot); None for all together.
        targets: frame of ``targets.target_frame``.
        samples: number of resamples of the images.
        seed: seed of the draws.

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

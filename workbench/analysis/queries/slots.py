"""Describes what each query slot does: where on the image it looks, which classes and sizes it serves, and whether it serves any.

In families that select queries per image, a slot is a rank among the selected queries, not a query; the numbers are those of the rank.
"""

import numpy as np
import pandas as pd
from scipy import stats

from workbench.analysis.detection.bootstrap import LEVEL
from workbench.analysis.detection.ratios import image_ratios

NEEDED = ("image_id", "layer", "query", "label", "score", "cx", "cy", "match", "match_iou", "quality")
BINS = 32


def slot_table(rows: pd.DataFrame, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns one row for every slot of one model at one layer and step.

    Args:
        rows: rows of the query table, including unmatched ones.
        samples: number of resamples of the images, for the interval of the mean quality.
        seed: seed of the draws.

    Returns:
        One row per slot: ``query``, ``images`` (evaluated), ``n`` (targets matched with it), ``served`` (share of images in which it has a
        target) with ``served_low`` and ``served_high`` (Wilson), ``dead`` (it never has one), ``quality`` (mean over its targets, null
        without) with ``quality_low`` and ``quality_high`` (resampled images), ``score`` (mean over images), ``best_score``, ``cx`` and
        ``cy`` (mean centre), ``spread`` (root mean square distance from it, in image sides).
    """
    queries, slot = np.unique(rows["query"].to_numpy(), return_inverse=True)
    count = np.bincount(slot, minlength=len(queries))
    matched = rows["match"].to_numpy() >= 0
    n = np.bincount(slot[matched], minlength=len(queries))
    low, high = wilson(n, count)
    image = rows["image_id"].to_numpy()[matched]
    quality = image_ratios(image, slot[matched], len(queries), rows["quality"].to_numpy()[matched], samples=samples, seed=seed)
    score = rows["score"].to_numpy(dtype=np.float64)
    best = np.full(len(queries), -np.inf)
    np.maximum.at(best, slot, score)
    x, y = (rows[name].to_numpy(dtype=np.float64) for name in ("cx", "cy"))
    centre = [np.bincount(slot, values, len(queries)) / count for values in (x, y)]
    apart = (x - centre[0][slot]) ** 2 + (y - centre[1][slot]) ** 2
    return pd.DataFrame({
        "query": queries, "images": count, "n": n, "served": n / count, "served_low": low, "served_high": high, "dead": n == 0,
        "quality": quality.value, "quality_low": quality.low, "quality_high": quality.high,
        "score": np.bincount(slot, score, len(queries)) / count, "best_score": best, "cx": centre[0], "cy": centre[1],
        "spread": np.sqrt(np.bincount(slot, apart, len(queries)) / count),
    })  # fmt: skip


def slot_serves(rows: pd.DataFrame, targets: pd.DataFrame, by: str) -> pd.DataFrame:
    """Returns which classes or sizes the targets of each slot have.

    Args:
        rows: rows of the query table, of one model, layer and step; at least the matched ones.
        targets: frame of ``targets.target_frame``.
        by: its column ``label`` or ``size``.

    Returns:
        One row per slot and value: ``query``, ``by``, ``n`` (targets), ``share`` of the slot's targets with ``low`` and ``high``
        (Wilson), ``images``.
    """
    own = rows.loc[rows["match"] >= 0, ["image_id", "query", "match"]].rename(columns={"match": "target"})
    own = own.astype({"target": "int64"}).merge(targets[["image_id", "target", by]], on=["image_id", "target"])
    grouped = own.groupby(["query", by], observed=True)["image_id"]
    frame = pd.DataFrame({"n": grouped.size(), "images": grouped.nunique()}).reset_index()
    total = frame.groupby("query")["n"].transform("sum").to_numpy()
    low, high = wilson(frame["n"].to_numpy(), total)
    return frame.assign(share=frame["n"] / total, low=low, high=high)


def slot_heatmaps(rows: pd.DataFrame, bins: int = BINS, matched: bool = False) -> dict[int, np.ndarray]:
    """Returns where the boxes of each slot lie: how many have their centre in each cell of a grid over the image.

    Args:
        rows: rows of the query table, of one model, layer and step.
        bins: number of cells along each side.
        matched: True to count only boxes that are matched to a target.

    Returns:
        Counts ``[bins, bins]`` by slot, row 0 at the top, column 0 at the left; a centre outside the image falls in the nearest cell.
    """
    queries, slot = np.unique(rows["query"].to_numpy(), return_inverse=True)
    column, row = (np.clip((rows[name].to_numpy(dtype=np.float64) * bins).astype(int), 0, bins - 1) for name in ("cx", "cy"))
    counts = np.bincount(((slot * bins + row) * bins + column)[rows["match"].to_numpy() >= 0 if matched else slice(None)],
                         minlength=len(queries) * bins * bins).reshape(-1, bins, bins)  # fmt: skip
    return dict(zip(queries.tolist(), counts.astype(np.int32), strict=True))


def wilson(successes: np.ndarray, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 95 % score interval of a share (Wilson, JASA 1927); NaN without trials."""
    z = stats.norm.ppf((1 + LEVEL) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = successes / trials
        middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
        reach = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    return middle - reach, middle + reach

"""Compares stability over seeds and models, and the targets that two runs find."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from workbench.analysis.detection.bootstrap import LEVEL
from workbench.analysis.detection.ratios import image_ratios

FOUND_IOU = 0.5
MEASURES = ("churn", "instability", "instability_normalised")
_TARGET = ["image_id", "target"]


def seed_spread(changes: Mapping[str, pd.DataFrame], measures: tuple[str, ...] = MEASURES, by: str | None = None) -> pd.DataFrame:
    """Returns how much stability differs between runs of different seeds. Slots of different seeds do not correspond.

    Args:
        changes: by run, a frame of ``churn.churn_over_steps``, ``churn_over_layers`` or ``grouped.stability_by``, or of ``agreement``
            with other ``measures``.
        measures: columns of the frame.
        by: column of its slices, such as ``label``; None without slices.

    Returns:
        One row per moment, slice and measure: ``step``, ``layer``, ``by``, ``measure``, ``mean`` over runs with ``low`` and ``high``
        (Student's t; NaN of one run), ``minimum``, ``maximum``, ``deviation`` (n - 1 in the denominator), ``n`` (runs that have the
        moment). Moments that no run can compare have no row.
    """
    keys = ["step", "layer", *([by] if by else [])]
    columns = [*keys, *measures]
    rows = pd.concat([pd.DataFrame(columns=columns), *(frame[columns] for frame in changes.values())][bool(changes) :])
    long = rows.melt(keys, var_name="measure").dropna(subset="value")
    grouped = long.astype({"value": "float64"}).groupby([*keys, "measure"], observed=True)["value"]
    frame = grouped.agg(mean="mean", minimum="min", maximum="max", deviation="std", n="size").reset_index()
    n = frame["n"].to_numpy()
    reach = np.where(n > 1, stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1)) * frame["deviation"] / np.sqrt(n), np.nan)
    place = len(keys) + 2
    frame.insert(place, "low", frame["mean"] - reach)
    frame.insert(place + 1, "high", frame["mean"] + reach)
    return frame


def found_targets(rows: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Returns whether a model finds each target: its matched query has the right class and an IoU of 0.5 or more.

    Of a detector that gives a target several positive candidates, one of them is enough.

    Args:
        rows: rows of the query table, of one model and one step; the last layer is read.
        targets: frame of ``targets.target_frame``.

    Returns:
        ``targets`` with ``found``; a target without a query is not found.
    """
    last = rows[(rows["layer"] == rows["layer"].max()) & (rows["match"] >= 0)]
    answers = last[["image_id", "match", "label", "match_iou"]].rename(columns={"match": "target", "label": "said"})
    both = targets.merge(answers.astype({"target": "int64"}), on=_TARGET)
    right = both.loc[(both["said"] == both["label"]) & (both["match_iou"] >= FOUND_IOU), _TARGET]
    return targets.assign(found=pd.MultiIndex.from_frame(targets[_TARGET]).isin(pd.MultiIndex.from_frame(right)))


def found_by_both(
    first: pd.DataFrame, second: pd.DataFrame, targets: pd.DataFrame, by: str | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns the share of the targets that two runs find, such as two seeds of one recipe.

    Args:
        first: rows as for ``found_targets``.
        second: rows of the other run.
        targets: frame of ``targets.target_frame``.
        by: its column ``label`` or ``size``; None for all together.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per slice: ``by``, ``share`` (found by both, of all) with ``low`` and ``high``, ``both``, ``only_first``, ``only_second``,
        ``neither``, ``n`` targets, ``images``.
    """
    one, other = (found_targets(rows, targets)["found"].to_numpy() for rows in (first, second))
    group, names = pd.factorize(targets[by] if by else pd.Series(np.zeros(len(targets), dtype=int)), sort=True)
    image = targets["image_id"].to_numpy()
    shares = image_ratios(image, group, len(names), one & other, samples=samples, seed=seed)
    counts = {
        name: np.bincount(group[flags], minlength=len(names))
        for name, flags in {"both": one & other, "only_first": one & ~other, "only_second": other & ~one, "neither": ~one & ~other}.items()
    }
    images = targets.groupby(group)["image_id"].nunique().to_numpy()
    frame = pd.DataFrame({"share": shares.value, "low": shares.low, "high": shares.high, **counts})
    frame = frame.assign(n=np.bincount(group, minlength=len(names)), images=images)
    if by:
        frame.insert(0, by, names)
    return frame

"""Measures which properties of a target tell before the distilled training that it will gain, by rank correlations with its gain.

Gain is the distilled run's score x IoU minus the baseline's. A target that the baseline already detects well has little to gain, so
anything that is related to the baseline's detection correlates with gain. Each correlation is therefore also given with the baseline's
score x IoU held fixed: the partial rank correlation (Kendall, "Partial rank correlation", Biometrika 1942, here of Spearman's
coefficients).

Every model detects an easy target well, so some correlation remains that has nothing to do with distillation. A second undistilled run of
another seed in place of the distilled one tells how much: ``beyond_repetition``.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.analysis.detection.bootstrap import draws, with_all
from workbench.analysis.detection.ratios import percentiles
from workbench.analysis.stability.same_box import BOX
from workbench.overlap import centred_iou

PROPERTIES = ("quality", "score", "entropy", "target_size", "box_distance", "score_distance")
_TARGET = ["image_id", "target"]
_CONTROL = "baseline"


def target_properties(gains: pd.DataFrame, teacher: pd.DataFrame, baseline: pd.DataFrame, targets: pd.DataFrame) -> pd.DataFrame:
    """Returns the gain of every target that all three models matched, with what was known of it before.

    Args:
        gains: frame of ``gain.target_gain``.
        teacher: teacher rows of the query table; their last layer is read.
        baseline: student rows of the baseline run; the last layer at the step of ``gains`` is read.
        targets: frame of ``targets.target_frame``.

    Returns:
        One row per target: ``image_id``, ``target``, ``gain``, ``baseline`` (its score x IoU in the baseline run); of the teacher's
        query matched to it ``quality``, ``score`` and ``entropy`` (bits, of its best class against all others: of ``score`` alone);
        ``target_size`` (square pixels); ``box_distance`` (1 - IoU of the teacher's box and the baseline's) and ``score_distance``
        (absolute difference of their scores).
    """
    columns = [*_TARGET, "query", "score", "quality", *BOX]
    step = gains["step"].max()
    answer = _matched(teacher[teacher["model"] == "teacher"])[columns]
    student = _matched(baseline[(baseline["model"] == "student") & (baseline["step"] == step)])[columns]
    both = gains[[*_TARGET, "gain", "baseline"]].merge(answer, on=_TARGET).merge(student, on=_TARGET, suffixes=("", "_student"))
    both = both.merge(targets[[*_TARGET, "area"]], on=_TARGET)
    score = both["score"].astype(np.float64)
    iou = centred_iou(both[BOX].to_numpy(), both[[f"{name}_student" for name in BOX]].to_numpy())
    return pd.DataFrame({
        **{name: both[name] for name in (*_TARGET, "gain", "baseline", "quality", "score")}, "entropy": _entropy(score.to_numpy()),
        "target_size": both["area"], "box_distance": 1 - iou, "score_distance": (score - both["score_student"]).abs(),
    }).sort_values(_TARGET, ignore_index=True)  # fmt: skip


def rank_correlations(properties: pd.DataFrame, names: tuple[str, ...] = PROPERTIES, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns the Spearman correlation of each property with gain, plain and with the baseline's score x IoU held fixed.

    Intervals are percentiles over resamples of the images; ranks are computed again in each.

    Args:
        properties: frame of ``target_properties``.
        names: columns to correlate.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        One row per property: ``property``, ``correlation``, ``low``, ``high``, ``partial``, ``partial_low``, ``partial_high``,
        ``over_quality`` with ``over_quality_low`` and ``over_quality_high`` (size of its partial correlation minus that of quality's, on
        the same resamples: above 0 it predicts better), ``n`` targets, ``images``. NaN if a column does not vary.
    """
    used = [*names, *(["quality"] if "quality" not in names else [])]
    images, counts = _resamples(properties, samples, seed)
    plain, partial = np.moveaxis(_on_resamples(properties, used, images, counts), 1, 0)  # [1 + samples, K] each
    over = np.abs(partial) - np.abs(partial[:, used.index("quality"), None])
    frame = pd.DataFrame({"property": list(names)})
    for name, column in (("correlation", plain), ("partial", partial), ("over_quality", over)):
        low, high = percentiles(column[1:, : len(names)].T)
        prefix = "" if name == "correlation" else f"{name}_"
        frame[name], frame[f"{prefix}low"], frame[f"{prefix}high"] = column[0, : len(names)], low, high
    return frame.assign(n=len(properties), images=len(images))


def beyond_repetition(
    properties: pd.DataFrame, repetition: pd.DataFrame, names: tuple[str, ...] = PROPERTIES, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Returns how much better a property predicts the gain of distillation than the gain of training once more without it.

    Args:
        properties: frame of ``target_properties``, with the gain of the distilled run.
        repetition: the same over the same baseline, with a second undistilled run of another seed in place of the distilled one.
        names: columns to correlate.
        samples: number of resamples.
        seed: seed of the draws.

    Returns:
        One row per property: ``property``, ``partial`` and ``repetition`` (partial correlations on the targets that both have),
        ``difference`` with ``low`` and ``high`` (on the same resampled images), ``n`` targets, ``images``.
    """
    both = repetition[_TARGET].merge(properties, on=_TARGET), properties[_TARGET].merge(repetition, on=_TARGET)
    images, counts = _resamples(both[0], samples, seed)
    ours, theirs = (_on_resamples(frame, names, images, counts)[:, 1] for frame in both)
    low, high = percentiles((ours - theirs)[1:].T)
    return pd.DataFrame({
        "property": list(names), "partial": ours[0], "repetition": theirs[0], "difference": (ours - theirs)[0], "low": low, "high": high,
        "n": len(both[0]), "images": len(images),
    })  # fmt: skip


def _resamples(properties: pd.DataFrame, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of the images, and ``[1 + samples, I]`` how often each counts: first once, then as drawn."""
    images = np.unique(properties["image_id"].to_numpy())
    return images, with_all(draws(len(images), samples, seed))


def _on_resamples(properties: pd.DataFrame, names: Sequence[str], images: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns ``[1 + samples, 2, K]`` plain and partial correlations."""
    image = np.searchsorted(images, properties["image_id"].to_numpy())
    values = [np.unique(properties[name].to_numpy(dtype=np.float64), return_inverse=True)[1] for name in ("gain", _CONTROL, *names)]
    return np.array([_correlations(values, weight[image]) for weight in counts])


def _correlations(values: list[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Returns ``[2, K]``, plain and partial rank correlation of ``values[2:]`` with ``values[0]``, with ``values[1]`` held fixed.

    Args:
        values: ``[R]`` each; every value is replaced by its position among the distinct ones.
        weight: ``[R]`` how often a row counts.
    """
    if weight.sum() < 2:
        return np.full((2, len(values) - 2), np.nan)
    ranks = np.stack([_ranks(value, weight) for value in values])
    ranks -= np.average(ranks, axis=1, weights=weight)[:, None]
    products = (ranks * weight) @ ranks.T
    spread = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = products / np.outer(spread, spread)
        plain, control = correlation[0, 2:], correlation[1, 2:]
        with_gain = correlation[0, 1]
        room = np.sqrt((1 - control**2).clip(min=0) * max(1 - with_gain**2, 0))
        return np.stack([plain, np.where(room > 1e-9, (plain - control * with_gain) / room, np.nan)])


def _ranks(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns ``[R]``, the mean rank of equal values if each row occurs ``weight`` times."""
    count = np.bincount(value, weight)
    return (np.cumsum(count) - count / 2 + 0.5)[value]


def _matched(rows: pd.DataFrame) -> pd.DataFrame:
    last = rows[(rows["layer"] == rows["layer"].max()) & (rows["match"] >= 0)]
    return last.rename(columns={"match": "target"}).astype({"target": "int64"})


def _entropy(probability: np.ndarray) -> np.ndarray:
    """Returns the entropy of a binary outcome in bits."""
    sides = np.stack([probability, 1 - probability])
    return -np.where(sides > 0, sides * np.log2(np.where(sides > 0, sides, 1)), 0).sum(axis=0)

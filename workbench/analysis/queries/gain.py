"""Computes gain: how much better the distilled run detects a target than the baseline run.

Gain is score x IoU of the query matched to the target in the distilled run, minus the same in the baseline, at the last layer of the same
split and step. The score is the query table's, the probability of the query's best class. A teacher query inherits the gain of its target,
and a student slot has the mean over its targets; all others have no gain.
"""

import numpy as np
import pandas as pd

from workbench.analysis.detection.ratios import image_ratios
from workbench.analysis.rows_of_run import in_last_layer
from workbench.errors import RunError

NEEDED = ("step", "model", "image_id", "layer", "query", "label", "score", "cx", "cy", "w", "h", "match", "match_iou", "quality")
_TARGET = ["image_id", "target"]


def target_gain(distilled: pd.DataFrame, baseline: pd.DataFrame, step: int | None = None) -> pd.DataFrame:
    """Returns the gain of every target that is matched in both runs.

    Args:
        distilled: student rows of the query table, at least the matched ones.
        baseline: the same rows of the baseline run, on the same split.
        step: step of both; by default the last one that both have.

    Returns:
        One row per target, by image and target: ``image_id``, ``target``, ``query`` and ``baseline_query`` (slots matched to it),
        ``distilled`` and ``baseline`` (score x IoU, 0..1), ``gain``, ``step``.

    Raises:
        RunError: the two runs have no such step in common.
    """
    step = common_step(distilled, baseline) if step is None else step
    now, before = (_answers(rows, step) for rows in (distilled, baseline))
    both = now.merge(before, on=_TARGET, suffixes=("", "_baseline"))
    return pd.DataFrame({
        **{name: both[name] for name in _TARGET}, "query": both["query"], "baseline_query": both["query_baseline"],
        "distilled": both["worth"], "baseline": both["worth_baseline"], "gain": both["worth"] - both["worth_baseline"], "step": step,
    }).sort_values(_TARGET, ignore_index=True)  # fmt: skip


def common_step(distilled: pd.DataFrame, baseline: pd.DataFrame) -> int:
    """Returns the last step at which both runs have student rows.

    Raises:
        RunError: there is no such step.
    """
    steps = [set(rows.loc[rows["model"] == "student", "step"]) for rows in (distilled, baseline)]
    common = steps[0] & steps[1]
    if not common:
        theirs = [", ".join(str(step) for step in sorted(own)) or "none" for own in steps]
        raise RunError(
            f"gain compares two runs at the same step, but they have none in common: the distilled run has {theirs[0]}, "
            f"the baseline has {theirs[1]}. Train both with the same evaluation interval."
        )
    return int(max(common))


def slot_gain(gains: pd.DataFrame, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns the mean gain of the targets of each slot of the distilled run.

    Returns:
        One row per slot that has a target: ``query``, ``gain``, ``low``, ``high`` (resampled images), ``n`` (targets), ``images``.
    """
    return _mean_gain(gains, "query", samples, seed)


def gain_by(gains: pd.DataFrame, targets: pd.DataFrame, by: str, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns the mean gain of the targets of each class or size.

    Args:
        gains: frame of ``target_gain``.
        targets: frame of ``targets.target_frame``.
        by: its column ``label`` or ``size``.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        ``by``, ``gain``, ``low``, ``high``, ``n``, ``images``.
    """
    return _mean_gain(gains.merge(targets[[*_TARGET, by]], on=_TARGET), by, samples, seed)


def mean_gain(gains: pd.DataFrame, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns the mean gain of all targets: one row with ``gain``, ``low``, ``high``, ``n``, ``images``; no row without targets."""
    return _mean_gain(gains.assign(all=0), "all", samples, seed).drop(columns="all")


def _mean_gain(gains: pd.DataFrame, by: str, samples: int, seed: int) -> pd.DataFrame:
    group, names = pd.factorize(gains[by], sort=True)
    ratios = image_ratios(gains["image_id"].to_numpy(), group, len(names), gains["gain"].to_numpy(), samples=samples, seed=seed)
    images = gains.groupby(by, observed=True)["image_id"].nunique().reindex(names)
    return pd.DataFrame({
        by: names, "gain": ratios.value, "low": ratios.low, "high": ratios.high,
        "n": np.bincount(group, minlength=len(names)), "images": images.to_numpy(),
    })  # fmt: skip


def _answers(rows: pd.DataFrame, step: int) -> pd.DataFrame:
    rows = in_last_layer(rows[(rows["model"] == "student") & (rows["step"] == step)])
    rows = rows[rows["match"] >= 0]
    worth = rows["score"].astype(np.float64) * rows["match_iou"].astype(np.float64)
    target = rows["match"].astype("int64")
    return pd.DataFrame({"image_id": rows["image_id"], "target": target, "query": rows["query"], "worth": worth})

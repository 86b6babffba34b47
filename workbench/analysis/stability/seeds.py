"""Stability beside each other: over seeds, of teacher, distilled and undistilled student, and the targets that two runs find."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from workbench.analysis.detection.bootstrap import LEVEL
from workbench.analysis.detection.ratios import image_ratios
from workbench.analysis.stability.churn import Identity, Moment
from workbench.analysis.stability.grouped import Layers, image_counts, stability_by

FOUND_IOU = 0.5
MEASURES = ("churn", "instability", "instability_normalised")
_TARGET = ["image_id", "target"]


def seed_spread(changes: Mapping[str, pd.DataFrame], measures: tuple[str, ...] = MEASURES, by: str | None = None) -> pd.DataFrame:
    """How far the stability of runs that differ in their seed lies apart. Slots of different seeds share no identity.

    Args:
        changes: by run, a frame of ``stability.churn_over_steps``, ``churn_over_layers`` or ``stability_slices.stability_by``, or of
            ``agreement`` with other ``measures``.
        measures: its columns.
        by: the column of its slices, such as ``label``; None without.

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
    """Whether a model finds each target: its matched query says the right class, with an IoU of 0.5 at least.

    Args:
        rows: of the query table, of one model and one step; the last layer is read.
        targets: of ``targets.target_frame``.

    Returns:
        ``targets`` with ``found``; a target without a query is not found.
    """
    last = rows[(rows["layer"] == rows["layer"].max()) & (rows["match"] >= 0)]
    answers = last[["image_id", "match", "label", "match_iou"]].rename(columns={"match": "target", "label": "said"})
    both = targets.merge(answers.astype({"target": "int64"}), on=_TARGET, how="left")
    found = (both["said"] == both["label"]) & (both["match_iou"] >= FOUND_IOU)
    return targets.assign(found=found.fillna(False).to_numpy(dtype=bool))


def found_by_both(
    first: pd.DataFrame, second: pd.DataFrame, targets: pd.DataFrame, by: str | None = None, samples: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Share of the targets that two runs find, such as two seeds of one recipe.

    Args:
        first: rows as for ``found_targets``.
        second: the same of the other run.
        targets: of ``targets.target_frame``.
        by: its column, ``label`` or ``size``; None for all together.
        samples: resamples of the images.
        seed: of the draws.

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


def side_by_side(
    models: Mapping[str, pd.DataFrame],
    over: Moment = "layer",
    layers: Layers = "last",
    identity: Mapping[str, Identity] | None = None,
    targets: pd.DataFrame | None = None,
    by: str | None = None,
    samples: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Stability of several models in one frame, such as teacher, distilled and undistilled student.

    Args:
        models: by name, rows of the query table of one run. Where it has student rows they are meant, else the teacher's.
        over: layers, or evaluations, of which a teacher has none.
        layers: between evaluations, the last layer or every one.
        identity: between evaluations, of ``rows_of_run.identity_over_steps`` by name; slot or encoder cell where it is not named.
        targets: of ``targets.target_frame``, where ``by`` is given.
        by: its column, ``label`` or ``size``.
        samples: resamples of the images.
        seed: of the draws.

    Returns:
        ``name`` and the columns of ``stability_slices.stability_by``; the teacher's step is -1.
    """
    frames = []
    for name, rows in models.items():
        model = "student" if (rows["model"] == "student").any() else "teacher"
        if over == "layer" or model == "student":
            counts = image_counts(rows, over, model, layers, (identity or {}).get(name, "source"), targets, by)
            frames.append(stability_by(counts, by, samples, seed).assign(name=name))
    if not frames:
        raise ValueError("no model has two moments to compare: a teacher has no evaluations of its own")
    whole = pd.concat(frames, ignore_index=True)
    return whole[["name", *whole.columns.drop("name")]]

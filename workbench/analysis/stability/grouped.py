"""Measures churn and instability by class, size, image and target, with intervals by resampling images.

Definitions and moments are those of ``churn``. A slice is a set of targets; a query whose target lies outside counts as unmatched.
"""

from typing import Literal

import numpy as np
import pandas as pd

from workbench.analysis.detection.ratios import image_ratios
from workbench.analysis.stability.churn import Identity, Moment, Moments, differs, matched_rows
from workbench.analysis.stability.same_box import BOX, paired_boxes
from workbench.store.queries import TEACHER_STEP

Layers = Literal["last", "all"]
_MOMENT = ["step", "layer", "previous"]
_COUNTS = ["changed", "n", "queries", "matches"]
_HISTORY = ["image_id", "target", "n", "changes", "share", "queries", "first", "last_change"]


def target_changes(
    queries: pd.DataFrame,
    over: Moment = "step",
    model: str = "student",
    layers: Layers = "last",
    identity: Identity = "source",
) -> pd.DataFrame:
    """Returns which query was matched to each target at each moment, and whether it changed since the moment before.

    Args:
        queries: rows of the query table.
        over: evaluations, or decoder layers of each evaluation.
        model: model whose rows are read.
        layers: across evaluations, the last layer or every one.
        identity: across evaluations, what identifies a query; "box" needs ``cx``, ``cy``, ``w`` and ``h``;
            ``rows_of_run.identity_over_steps`` determines it for a run.

    Returns:
        One row per moment and matched target, by image, target, layer and step: ``step``, ``layer``, ``previous`` (the moment
        before, null at the first), ``image_id``, ``target``, ``query``, ``source``, ``previous_query`` and ``changed`` (null if the
        target had no query the moment before).
    """
    rows, at = _rows(queries, over, model, layers)
    before = at.earlier(rows["match"].to_numpy())
    there = before >= 0
    query = rows["query"].to_numpy()
    frame = pd.DataFrame({
        **{name: rows[name] for name in ("step", "layer", "image_id", "query", "source")}, "target": rows["match"],
        "previous": _previous(at, at.number),
        "previous_query": pd.Series(query[before] if len(query) else query, dtype="Int64").mask(~there),
        "changed": pd.Series(differs(rows, before, _between(identity, over)), dtype="boolean").mask(~there),
    })  # fmt: skip
    columns = [*_MOMENT, "image_id", "target", "query", "source", "previous_query", "changed"]
    return frame[columns].sort_values(["image_id", "target", "layer", "step"], ignore_index=True)


def target_histories(changes: pd.DataFrame, over: Moment = "step", identity: Identity = "source") -> pd.DataFrame:
    """Returns which targets change their query, and how often.

    Args:
        changes: frame of ``target_changes``.
        over: moments of that frame.
        identity: identity of that frame.

    Returns:
        One row per target and value that was held fixed (``layer``, or ``step``), most changes first: ``image_id``, ``target``, ``n``
        (compared moments), ``changes``, their ``share`` (null if n is 0), ``queries`` (number of different queries: slots, or encoder
        cells where queries are selected per image; by box one more than the changes, because a query cannot be recognised when it comes
        back), ``first`` (the first moment at which it was matched), ``last_change`` (null if it never changed).
    """
    fixed = "layer" if over == "step" else "step"
    keys = [fixed, "image_id", "target"]
    changed = changes["changed"].fillna(False).astype(bool)
    cell = changes["source"].where((changes["source"] >= 0) & (over == "step"), -1 - changes["query"])
    grouped = changes.assign(
        n=changes["changed"].notna(), changes=changed, last_change=changes[over].where(changed), first=changes[over], cell=cell
    ).groupby(keys)
    frame = grouped.agg(
        n=("n", "sum"), changes=("changes", "sum"), queries=("cell", "nunique"), first=("first", "min"), last_change=("last_change", "max")
    ).reset_index()
    frame["share"] = frame["changes"] / frame["n"].where(frame["n"] > 0)
    if _between(identity, over) == "box":
        frame["queries"] = frame["changes"] + 1
    frame = frame.astype({"n": "int64", "changes": "int64", "last_change": "Int64"})
    return frame[[fixed, *_HISTORY]].sort_values(["changes", *keys], ascending=[False, True, True, True], ignore_index=True)


def image_counts(
    queries: pd.DataFrame,
    over: Moment = "step",
    model: str = "student",
    layers: Layers = "last",
    identity: Identity = "source",
    targets: pd.DataFrame | None = None,
    by: str | None = None,
) -> pd.DataFrame:
    """Returns churn and instability of every image, as counts.

    Args:
        queries: rows of the query table.
        over: evaluations, or decoder layers.
        model: model whose rows are read.
        layers: across evaluations, the last layer or every one.
        identity: see ``target_changes``.
        targets: frame of ``targets.target_frame``; needed with ``by``.
        by: its column ``label`` or ``size``; counts each image once for every value among its targets.

    Returns:
        One row per moment and image that had matched targets at both moments: ``step``, ``layer``, ``previous``, ``image_id``, ``by``,
        ``changed`` (targets whose query changed) of ``n`` (matched at both), ``queries`` (whose target changed), ``matches``
        (targets matched now).
    """
    rows, at = _rows(queries, over, model, layers, targets, by)
    match = rows["match"].to_numpy()
    same_target = at.earlier(match)
    identity = _between(identity, over)
    if identity == "box":
        same_query = paired_boxes(at.group, at.stride, rows[BOX].to_numpy())
    else:
        same_query = at.earlier(rows["identity"].to_numpy())
    kept = (same_query >= 0) & (match == match[same_query]) if len(match) else same_query >= 0

    groups, first, place = np.unique(at.group, return_index=True, return_inverse=True)
    earlier = np.searchsorted(groups, groups - at.stride).clip(max=max(len(groups) - 1, 0))
    compared = groups[earlier] == groups - at.stride if len(groups) else np.zeros(0, dtype=bool)
    size, changed, both, common, same = (
        np.bincount(place, flags, len(groups)).astype(np.int64)
        for flags in (np.ones(len(match)), differs(rows, same_target, identity), same_target >= 0, same_query >= 0, kept)
    )
    # of the queries matched at one of the two moments at least, those that kept their target
    frame = pd.DataFrame({
        **{name: rows[name].to_numpy()[first] for name in ("step", "layer", "real_image", *([by] if by else []))},
        "previous": _previous(at, at.number[first]),
        "changed": changed, "n": both, "queries": size + (size[earlier] if len(size) else size) - common - same, "matches": size,
    }).rename(columns={"real_image": "image_id"})  # fmt: skip
    keys = [*_MOMENT, "image_id", *([by] if by else [])]
    return pd.DataFrame(frame[compared], columns=[*keys, *_COUNTS]).sort_values(keys, ignore_index=True)


def stability_by(counts: pd.DataFrame, by: str | None = None, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns churn and instability with intervals from the counts of images.

    Args:
        counts: frame of ``image_counts``, made with the same ``by``.
        by: column of the slices; None for all targets together.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per moment and slice: ``step``, ``layer``, ``previous``, ``by``, ``churn`` 0..1 with ``low`` and ``high``, ``n``
        (targets matched at both moments), ``instability`` (queries per image) with ``instability_low`` and ``instability_high``,
        ``instability_normalised`` 0..1, ``images``, ``matches``. The first moment has no row.
    """
    keys = [*_MOMENT, *([by] if by else [])]
    grouped = counts.groupby(keys, observed=True)
    frame = grouped[_COUNTS].sum().assign(images=grouped.size()).reset_index()
    group, image = grouped.ngroup().to_numpy(), counts["image_id"].to_numpy()
    churn = image_ratios(image, group, len(frame), counts["changed"].to_numpy(), counts["n"].to_numpy(), samples, seed)
    instability = image_ratios(image, group, len(frame), counts["queries"].to_numpy(), samples=samples, seed=seed)
    return frame[keys].assign(
        churn=churn.value, low=churn.low, high=churn.high, n=frame["n"],
        instability=instability.value, instability_low=instability.low, instability_high=instability.high,
        instability_normalised=frame["queries"] / (2 * frame["matches"]), images=frame["images"], matches=frame["matches"],
    )  # fmt: skip


def pooled_by(counts: pd.DataFrame, by: str | None = None, samples: int = 300, seed: int = 0) -> pd.DataFrame:
    """Returns ``stability_by`` with all moments counted together: one row per layer (across evaluations all, by ``layer``) and slice.

    Returns:
        ``layer``, ``by`` and the numbers of ``stability_by``; ``images`` counts an image once for every moment.
    """
    together = counts.assign(step=0, previous=0)
    return stability_by(together, by, samples, seed).drop(columns=["step", "previous"])


def share_of_targets(
    rows: pd.DataFrame,
    flag: str,
    name: str,
    over: list[str],
    by: str | None = None,
    targets: pd.DataFrame | None = None,
    samples: int = 300,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the share of the targets for which something holds, with 95 % intervals over resampled images.

    Args:
        rows: one row per target, with ``image_id``, ``target`` and the columns ``over`` and ``flag``.
        flag: boolean column that is averaged.
        name: what the share is called in the result.
        over: columns whose values are kept apart, such as ``step``.
        by: column of ``targets``, or ``image_id``, whose values are kept apart as well; None for all together.
        targets: frame of ``targets.target_frame``.
        samples: number of resamples of the images.
        seed: seed of the draws.

    Returns:
        One row per group: ``over``, ``by``, ``name`` 0..1 with ``low`` and ``high``, ``n`` targets, ``images``.
    """
    if by is not None and targets is not None:
        rows = rows.merge(targets[["image_id", "target", by]], on=["image_id", "target"])
    keys = [*over, *([by] if by else [])]
    grouped = rows.groupby(keys, observed=True)
    counts = pd.DataFrame({"n": grouped.size(), "images": grouped["image_id"].nunique()})
    group = grouped.ngroup().to_numpy()
    shares = image_ratios(rows["image_id"].to_numpy(), group, len(counts), rows[flag].to_numpy(), samples=samples, seed=seed)
    frame = counts.rename_axis(keys).reset_index().assign(**{name: shares.value, "low": shares.low, "high": shares.high})
    return frame[[*keys, name, "low", "high", "n", "images"]]


def _rows(
    queries: pd.DataFrame, over: Moment, model: str, layers: Layers, targets: pd.DataFrame | None = None, by: str | None = None
) -> tuple[pd.DataFrame, Moments]:
    """Returns matched rows and their moments. With ``by``, image and slice together replace ``image_id``."""
    rows = matched_rows(queries, model, by_source=over == "step")
    if over == "step":
        rows = rows[rows["step"] != TEACHER_STEP]
        rows = rows[rows["layer"] == rows["layer"].max()] if layers == "last" else rows
    rows = rows.assign(real_image=rows["image_id"]).reset_index(drop=True)
    if targets is not None and by is not None:
        # the label of a query is replaced by that of its target
        own = targets[["image_id", "target", by]].rename(columns={"target": "match"})
        rows = rows.drop(columns=by, errors="ignore").merge(own, on=["image_id", "match"])
        rows["image_id"] = rows.groupby(["image_id", by], observed=True).ngroup()
    return rows, Moments(rows, over)


def _between(identity: Identity, over: Moment) -> Identity:
    """Returns the slot for layers of one evaluation, whatever identifies a query across evaluations."""
    return identity if over == "step" else "source"


def _previous(at: Moments, number: np.ndarray) -> pd.Series:
    """Returns the moment before each numbered one, null for the first."""
    earlier = at.moments[np.maximum(number - 1, 0)] if len(at.moments) else number
    return pd.Series(earlier, dtype="Int64").mask(number == 0)

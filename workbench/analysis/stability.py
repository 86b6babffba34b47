"""How stable the matching is, and how far teacher and student agree in it; computed from rows of the query table.

Moments are evaluations (same layer) or decoder layers (same evaluation). Between evaluations a query is the same when its slot is, or,
for families that select queries per image, when its ``source`` (encoder cell) is. Between layers of one evaluation it is its slot.

Only matched rows are looked at. The rest follow: an unmatched query has target -1, an image with n targets has min(n, queries) matched
rows, and images without targets, which are left out, have none. Crowd and ignored regions are never matched, so they never count.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.cache.queries import TEACHER_STEP

NEEDED = ("step", "model", "image_id", "layer", "query", "source", "match", "quality", "mate", "mate_layer")  # columns of the table
Moment = Literal["step", "layer"]


def churn_over_steps(queries: pd.DataFrame, layers: Literal["last", "all"] = "last", model: str = "student") -> pd.DataFrame:
    """Churn and instability from each evaluation to the next.

    Churn: of the targets matched at both, the share whose query changed; totals over images. Instability (IS, DN-DETR): mean over
    images of the number of queries whose target index (or -1) changed; normalised: their total over 2 sum of min(targets, queries).

    Args:
        queries: rows of the query table.
        layers: the last layer, or every one.
        model: whose rows.

    Returns:
        One row per step and layer: ``step``, ``layer``, ``previous`` (the step compared with), ``churn`` 0..1, ``n`` (targets matched
        at both), ``instability`` (queries per image), ``instability_normalised`` 0..1, ``images``, ``matches`` (sum of min(targets,
        queries)). At the first step n, images and matches are 0 and the others null.
    """
    rows = _matched(queries, model, by_source=True)
    if layers == "last":
        rows = rows[rows["layer"] == rows["layer"].max()]
    return _changes(rows[rows["step"] != TEACHER_STEP], "step", "layer")


def churn_over_layers(queries: pd.DataFrame, step: int | None = None, model: str = "student") -> pd.DataFrame:
    """Churn and instability from each decoder layer to the next, as defined in ``churn_over_steps``.

    Args:
        queries: rows of the query table.
        step: one evaluation (``TEACHER_STEP`` for the teacher); every one by default.
        model: whose rows.

    Returns:
        Columns as of ``churn_over_steps``; ``previous`` is a layer, and layer 0 has nulls.
    """
    rows = _matched(queries, model)
    return _changes(rows if step is None else rows[rows["step"] == step], "layer", "step")


def churn_by_class(queries: pd.DataFrame, targets: pd.DataFrame, over: Moment = "step", model: str = "student") -> pd.DataFrame:
    """Churn of the targets of each class: between evaluations at the last layer, or between the layers of every evaluation.

    Args:
        queries: rows of the query table.
        targets: columns ``image_id``, ``target`` (index in file order), ``label``.
        over: which moments.
        model: whose rows.

    Returns:
        One row per moment and label: ``step``, ``layer``, ``previous``, ``label``, ``churn``, ``n``; the first moment is left out.
    """
    rows = _matched(queries, model, by_source=over == "step")
    if over == "step":
        rows = rows[(rows["layer"] == rows["layer"].max()) & (rows["step"] != TEACHER_STEP)]
    rows = rows.merge(targets.rename(columns={"target": "match"})[["image_id", "match", "label"]], on=["image_id", "match"])
    other = "layer" if over == "step" else "step"
    now, before, moments = _moments(rows, over)
    counted = _churn(now, before, ["moment", other, "label"]).reset_index()
    counted = counted.assign(**{over: moments[counted["moment"]], "previous": moments[counted["moment"] - 1]})
    return counted[["step", "layer", "previous", "label", "churn", "n"]].sort_values(["step", "layer", "label"], ignore_index=True)


def pooled(changes: pd.DataFrame) -> dict[str, Any]:
    """All moments of a frame of ``churn_over_steps`` or ``churn_over_layers`` as one, totals over targets and images.

    Returns:
        ``churn``, ``n``, ``instability``, ``instability_normalised``, ``images``, ``matches``; None where nothing was compared.
    """
    n, images, matches = (int(changes[name].sum()) for name in ("n", "images", "matches"))
    targets = float((changes["churn"] * changes["n"]).sum())
    queries = float((changes["instability"] * changes["images"]).sum())
    return {
        "churn": targets / n if n else None,
        "n": n,
        "instability": queries / images if images else None,
        "instability_normalised": queries / (2 * matches) if matches else None,
        "images": images,
        "matches": matches,
    }


def agreement(queries: pd.DataFrame) -> pd.DataFrame:
    """Of the targets matched in both models, the share whose two queries are each other's mates.

    Args:
        queries: rows of the query table, those of the teacher included.

    Returns:
        One row per step and student layer: ``step``, ``layer``, ``agreement`` 0..1, ``n`` targets. The teacher's layer is the mates'.
    """
    student = _matched(queries, "student").dropna(subset=["mate"])
    teacher = _matched(queries, "teacher")[["image_id", "layer", "match", "query"]]
    both = student.merge(
        teacher.rename(columns={"layer": "mate_layer", "query": "teacher_query"}), on=["image_id", "mate_layer", "match"]
    )
    both["agrees"] = both["mate"] == both["teacher_query"]
    agrees = both.groupby(["step", "layer"])["agrees"]
    return pd.DataFrame({"agreement": agrees.mean(), "n": agrees.size()}).reset_index()


def mean_quality(queries: pd.DataFrame, model: str = "teacher") -> pd.DataFrame:
    """Mean quality of the queries matched with a target (that of all others is 0 by definition).

    Returns:
        One row per step and layer: ``step``, ``layer``, ``quality`` 0..1, ``n`` queries.
    """
    rows = queries[(queries["model"] == model) & (queries["match"] >= 0)]
    quality = rows.groupby(["step", "layer"])["quality"]
    return pd.DataFrame({"quality": quality.mean(), "n": quality.size()}).reset_index()


def _matched(queries: pd.DataFrame, model: str, by_source: bool = False) -> pd.DataFrame:
    """Matched rows of a model with what a query is recognised by, ``identity``."""
    rows = queries[(queries["model"] == model) & (queries["match"] >= 0)]
    slot = rows["query"].astype("int64")
    # slots count down from -1, so that they never meet an encoder cell
    identity = rows["source"].astype("int64").where(rows["source"] >= 0, -1 - slot) if by_source else slot
    return rows.assign(identity=identity, match=rows["match"].astype("int64"))


def _moments(rows: pd.DataFrame, over: Moment) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Rows numbered by moment, the same rows under the number of the moment after theirs, and the moments in order."""
    moments = np.sort(rows[over].unique())
    now = rows.assign(moment=np.searchsorted(moments, rows[over]))
    before = now.assign(moment=now["moment"] + 1)
    return now, before, moments


def _churn(now: pd.DataFrame, before: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """``churn`` and ``n`` by ``keys``."""
    both = now.merge(before[[*keys, "image_id", "match", "identity"]], on=[*keys, "image_id", "match"], suffixes=("", "_before"))
    both["changed"] = both["identity"] != both["identity_before"]
    changed = both.groupby(keys)["changed"]
    return pd.DataFrame({"churn": changed.mean(), "n": changed.size()})


def _changes(rows: pd.DataFrame, over: Moment, other: Moment) -> pd.DataFrame:
    """The frame that the public functions return; ``other`` is held fixed."""
    now, before, moments = _moments(rows, over)
    keys = ["moment", other]
    image = [*keys, "image_id"]
    per_image = now.groupby(image).size().rename("matches").reset_index()
    # an image counts where it was looked at, and had targets, at both moments
    compared = per_image.merge(before[image].drop_duplicates(), on=image)

    pairs = now[[*image, "identity", "match"]].merge(before[[*image, "identity", "match"]], on=[*image, "identity"], how="outer",
                                                     suffixes=("", "_before"))
    changed = pairs[pairs["match"] != pairs["match_before"]].merge(compared[image], on=image)  # null, so unmatched, is unequal
    images = compared.groupby(keys).agg(images=("matches", "size"), matches=("matches", "sum"))
    counts = images.join(changed.groupby(keys).size().rename("queries")).fillna({"queries": 0}).join(_churn(now, before, keys))

    result = now[keys].drop_duplicates().sort_values(keys).merge(counts.reset_index(), on=keys, how="left")
    result = result.fillna({"n": 0, "images": 0, "matches": 0}).astype({"n": "int64", "images": "int64", "matches": "int64"})
    result["instability"] = result["queries"] / result["images"]
    result["instability_normalised"] = result["queries"] / (2 * result["matches"])
    number = result["moment"].to_numpy()
    result[over] = moments[number]
    result["previous"] = pd.Series(moments[np.maximum(number - 1, 0)], result.index, dtype="Int64").mask(number == 0)
    columns = ["step", "layer", "previous", "churn", "n", "instability", "instability_normalised", "images", "matches"]
    return result[columns].sort_values(["step", "layer"], ignore_index=True)

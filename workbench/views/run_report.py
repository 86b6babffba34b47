"""What ``analysis.run_report`` found of one run, as parts of a page."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from workbench.analysis.detection.tide import LABELS
from workbench.views.page import Column, share, table

_N = (Column("n", "n"), Column("images", "images"))
_CHURN = (
    share("churn %", "churn"),
    Column("IS", "instability", 1, 2, "instability_low", "instability_high"),
    Column("normalised IS %", "instability_normalised", 100, 1),
    *_N,
)
_AGREEMENT = (share("agreement %", "agreement"), *_N)
_BY = {"label": "class", "size": "size"}


def errors_part(found: Mapping[str, Any]) -> Iterable[str]:
    """Error types with the images behind them, confused classes, calibration, slices, KITTI's AP."""
    rows = [{**row, "type": LABELS[row["error"]], "worst": _images(found["images"][row["error"]])} for row in found["rows"]]
    columns = [Column("type", "type"), Column("count", "count"), share("cost, AP50", "cost"), Column("images with most", "worst")]
    yield table(rows, columns)
    error = found["calibration_error"]
    yield "<h4>By size, crowding and overlap</h4>"
    slices = [Column("by", "by"), Column("slice", "slice"), Column("targets", "targets"), Column("images", "images"),
              share("AP", "ap", "ap_low", "ap_high"), share("recall at IoU 0.5", "recall", "recall_low", "recall_high")]  # fmt: skip
    yield table(found["slices"], slices)
    yield "<h4>Calibration</h4>" + table([error], [share("expected calibration error %", "value"), Column("images", "images")])
    bins = [Column("score from", "from", 1, 1), Column("to", "to", 1, 1), Column("n", "n"), share("mean score %", "score", "", ""),
            share("right %", "precision")]  # fmt: skip
    yield table(found["calibration"], bins)
    yield "<h4>Classes taken for each other</h4>"
    yield table(found["confused"], [Column("target", "truth"), Column("detection", "predicted"), Column("n", "n")])
    if found["kitti"] is not None:
        yield "<h4>KITTI's 2D AP, 40 recall points</h4>"
        yield table(found["kitti"], [Column("class", "class"), Column("difficulty", "difficulty"), share("AP", "ap"),
                                     Column("targets", "targets"), Column("images", "images")])  # fmt: skip


def slots_part(found: Mapping[str, Any]) -> Iterable[str]:
    """The slots whose loss costs most AP."""
    dead = "" if found["dead"] is None else f"; {found['dead']} of the slots never hold a target (split {escape(found['traced'])})"
    yield f"<p class=note>The {len(found['rows'])} of {found['slots']} slots with the largest ap_drop{dead}.</p>"
    yield table(found["rows"], [
        Column("slot", "query"), Column("detections", "n"), share("ap_drop, AP", "ap_drop"),
        share("has a target, % of images", "served", "", ""), Column("quality", "quality"), Column("serves most", "serves"),
        share("of its targets %", "share", "", ""),
        Column("looks at x", "cx", 1, 2), Column("y", "cy", 1, 2), Column("spread", "spread", 1, 2),
    ])  # fmt: skip


def stability_part(found: Mapping[str, Any]) -> Iterable[str]:
    """Churn and IS over steps, by layer, class, size and target; agreement; quality."""
    how = "encoder cell or slot" if found["identity"] == "source" else "box (IoU 0.7 or more), for the size of the input differs"
    yield f"<p class=note>Between evaluations a query is recognised by its {how}; split {escape(found['split'])}.</p>"
    yield "<h4>Between evaluations, last layer</h4>" + table(found["steps"], [Column("step", "step"), *_CHURN])
    yield "<h4>By layer, all evaluations together</h4>" + table(found["by_layer"], [Column("layer", "layer"), *_CHURN])
    for by, name in _BY.items():
        yield f"<h4>By {name}, all evaluations together, last layer</h4>" + table(found[f"by_{by}"], [Column(name, by), *_CHURN])
    yield "<h4>From layer to layer, last evaluation</h4>" + table(found["between_layers"], [Column("layer", "layer"), *_CHURN])
    if found["teacher"]:
        yield "<h4>From layer to layer, teacher</h4>" + table(found["teacher"], [Column("layer", "layer"), *_CHURN])
    yield "<h4>Targets that change their query most often</h4>" + table(found["targets"], [
        Column("image", "image_id"), Column("target", "target"), Column("changes", "changes"), Column("of", "n"),
        Column("queries", "queries"), Column("first matched at", "first"), Column("last change at", "last_change"),
    ])  # fmt: skip
    for key, name in (("agreement", "Agreement with the teacher"), ("group", "Agreement with the teacher's queries in this decoder")):
        if found[key]["steps"]:
            yield f"<h4>{name}, last layer</h4>" + table(found[key]["steps"], [Column("step", "step"), *_AGREEMENT])
            for by, title in _BY.items():
                yield table(found[key][f"by_{by}"], [Column(title, by), *_AGREEMENT])
    for model in ("student", "teacher"):
        if found[f"{model}_quality"]["by_label"]:
            yield f"<h4>Quality of the {model}'s matched queries, last layer</h4>"
            for by, title in _BY.items():
                columns = [Column(title, by), Column("quality", "quality", 1, 3, "low", "high"), *_N]
                yield table(found[f"{model}_quality"][f"by_{by}"], columns)


def gain_part(found: Mapping[str, Any]) -> Iterable[str]:
    """Gain by class and size, and what predicts it."""
    gain = Column("gain", "gain", 1, 3, "low", "high")
    yield f"<p class=note>Against {escape(found['baseline'])} at step {found['step']}, split {escape(found['split'])}.</p>"
    yield table([{**row, "all": "all targets"} for row in found["mean"]], [Column("", "all"), gain, *_N])
    for by, title in _BY.items():
        yield table(found[f"by_{by}"], [Column(title, by), gain, *_N])
    if found["correlations"]:
        yield "<h4>What predicts it: rank correlation with gain</h4>" + table(found["correlations"], [
            Column("known before training", "property"), Column("plain", "correlation", 1, 2, "low", "high"),
            Column("baseline held fixed", "partial", 1, 2, "partial_low", "partial_high"),
            Column("size over quality's", "over_quality", 1, 2, "over_quality_low", "over_quality_high"), *_N,
        ])  # fmt: skip


def _images(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['image_id']} ({row['n']})" for row in list(rows)[:3])

"""Turns what ``analysis.report.one_run`` found in one run into blocks of a page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from workbench.analysis.detection.tide import LABELS
from workbench.analysis.stability.change_causes import CAUSES
from workbench.views.lost import NAMES as CELL_NAMES
from workbench.views.lost import OUTCOME_NAMES
from workbench.views.report_blocks import Block, Column, Table, share
from workbench.views.unsettled import RULES
from workbench.views.unsettled import TABLE_CAPTION as CAUSES_TABLE
from workbench.views.value import PROPERTIES

_N = (
    Column("n", "n", meaning="How many targets the number is computed from, each counted once per comparison."),
    Column("images", "images"),
)
_CHURN = (
    share("churn %", "churn"),
    Column(
        "instability (queries)",
        "instability",
        1,
        2,
        "instability_low",
        "instability_high",
        meaning="Queries per image whose target changes (the score IS of DN-DETR).",
    ),
    Column("instability %", "instability_normalised", 100, 1, meaning="Instability as a share of its largest possible value."),
    *_N,
)
_AGREEMENT = (share("agreement %", "agreement"), *_N)
_BY = {"label": "class", "size": "size"}


def errors_part(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yields error types with the images behind them, AP by slice, calibration, confused classes, and KITTI's AP on KITTI data."""
    rows = [{**row, "type": LABELS[row["error"]], "worst": _images(found["images"][row["error"]])} for row in found["rows"]]
    columns = [Column("type", "type"), Column("errors", "count"), share("cost, AP50", "cost"), Column("images with most (errors)", "worst")]
    yield Block(Table(rows, columns))
    slices = [Column("by", "by"), Column("slice", "slice"), Column("targets", "targets"), Column("images", "images"),
              share("AP", "ap", "ap_low", "ap_high"), share("recall at IoU 0.5", "recall", "recall_low", "recall_high")]  # fmt: skip
    yield Block(Table(found["slices"], slices), "By size, crowding and overlap of the targets")
    error = [share("expected calibration error %", "value"), Column("images", "images")]
    note = "A detector is calibrated if the share of right detections (precision) equals the mean score in every range of scores."
    yield Block(Table([found["calibration_error"]], error), "Calibration", note)
    bins = [Column("score from", "from", 1, 1), Column("to", "to", 1, 1), Column("detections", "n"), share("mean score %", "score", "", ""),
            share("precision %", "precision")]  # fmt: skip
    yield Block(Table(found["calibration"], bins))
    confused = [Column("class of the target", "truth"), Column("class of the detection", "predicted"), Column("pairs", "n")]
    yield Block(Table(found["confused"], confused), "Classes taken for each other")
    if found["kitti"] is not None:
        kitti = [Column("class", "class"), Column("difficulty", "difficulty"), share("AP", "ap"), Column("targets", "targets"),
                 Column("images", "images")]  # fmt: skip
        yield Block(Table(found["kitti"], kitti), "2D AP as KITTI defines it, at 40 recall points")


def lost_part(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yields what teacher and student found, what became of the lost targets, and what the baseline lost."""
    note = f"Step {found['step']}, least score {found['least_score']:g}, {found['images']} images."
    cells = [{**row, "name": CELL_NAMES[row["cell"]]} for row in found["cells"]]
    columns = [Column("targets that", "name"), Column("targets", "n"), share("% of all", "share"), Column("images", "images")]
    yield Block(Table(cells, columns), note=note)
    outcomes = [{**row, "name": OUTCOME_NAMES[row["outcome"]]} for row in found["outcomes"]]
    columns = [Column("in the student", "name"), Column("targets", "n"), share("% of the teacher's", "share"), Column("images", "images")]
    yield Block(Table(outcomes, columns), "What became of the targets that the teacher found")
    columns = [Column("by", "by"), Column("slice", "slice"), Column("found by the teacher", "found"), Column("lost", "lost"),
               share("lost %", "share")]  # fmt: skip
    yield Block(Table(found["shares"], columns), "Lost, by class, size and crowding")
    if found["differences"]:
        columns = [
            Column("by", "by"), Column("slice", "slice"), Column("lost by both", "both_lost"),
            Column("by the baseline alone", "only_baseline"), Column("by this run alone", "only_other"),
            share("difference, points", "difference"), Column("verdict", "verdict"),
        ]  # fmt: skip
        note = f"This run minus {found['baseline']['run']} at step {found['baseline']['step']}. Below 0 this run lost less."
        yield Block(Table(found["differences"], columns), "Difference from the baseline", note)


def slots_part(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yields the slots whose removal costs most AP."""
    if isinstance(found["rows"], str):
        yield Block(note=f"Query slots: {found['rows']}.")
        return
    note = f"Shown are the {len(found['rows'])} of {found['slots']} slots with the largest AP drop."
    if found["dead"] is not None:
        note += f" On the {found['traced']} split, {found['dead']} slots are never matched to a target."
    columns = [
        Column("slot", "query"), Column("detections", "n"), share("AP drop", "ap_drop"), share("matched, % of images", "served", "", ""),
        Column("quality", "quality", meaning="Mean of sqrt(score x IoU) over the targets matched to the slot."),
        Column("most frequent class", "serves"), share("share of its targets %", "share", "", ""),
        Column("mean x", "cx", 1, 2, meaning="Mean centre of its boxes; the image is 1 wide."),
        Column("mean y", "cy", 1, 2, meaning="Mean centre of its boxes; the image is 1 high."),
        Column("spread", "spread", 1, 2, meaning="Root mean square distance of its boxes from their mean centre, in image sides."),
    ]  # fmt: skip
    yield Block(Table(found["rows"], columns), note=note)


def stability_part(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yields churn and instability over steps, by layer, class, size and target; found-by churn; then agreement and quality."""
    if found["identity"] is not None:
        same = "have the same encoder cell, or the same slot where the detector selects none"
        if found["identity"] == "box":
            same = "have boxes with an IoU of 0.7 or more, because the size of the input differs"
        yield Block(note=f"Two queries of different evaluations count as the same if they {same}.")
    yield _rows(found["steps"], [Column("step", "step"), *_CHURN], "From one evaluation to the next, last decoder layer")
    yield from _causes(found["causes"])
    if found["found_by"] is not None:
        yield from _found_by(found["found_by"])
    yield _rows(found["by_layer"], [Column("layer", "layer"), *_CHURN], "By decoder layer, all evaluations together")
    for by, name in _BY.items():
        yield _rows(found[f"by_{by}"], [Column(name, by), *_CHURN], f"By {name}, all evaluations together, last decoder layer")
    layers = [Column("layer", "layer"), *_CHURN]
    yield _rows(found["between_layers"], layers, "From one decoder layer to the next, last evaluation")
    if found["teacher"]:
        yield _rows(found["teacher"], layers, "From one decoder layer to the next, teacher")
    targets = [
        Column("image", "image_id"), Column("target", "target"), Column("changes", "changes"), Column("possible changes", "n"),
        Column("different queries", "queries"), Column("first matched at step", "first"), Column("last change at step", "last_change"),
    ]  # fmt: skip
    yield _rows(found["targets"], targets, "Targets that change their query most often")
    yield from _agreement(found["agreement"], "Agreement with the teacher", "Each query of the student is paired with one of the teacher.")
    note = "The teacher's queries also pass through the student's decoder, beside the student's own."
    yield from _agreement(found["group"], "Agreement with the teacher's queries in the student's decoder", note)
    for model in ("student", "teacher"):
        yield from _quality(found[f"{model}_quality"], f"Quality of the {model}'s matched queries, last decoder layer")


def _rows(found: Sequence[Mapping[str, Any]] | str, columns: Sequence[Column], heading: str = "", note: str = "") -> Block:
    """Returns a table of rows, or the text that stands in their place where they are not defined."""
    if isinstance(found, str):
        return Block(heading=heading, note=f"{found[0].upper()}{found[1:]}.")
    return Block(Table(found, columns), heading, note)


def _causes(found: Mapping[str, Any] | str) -> Iterator[Block]:
    heading = "Why targets change their query"
    if isinstance(found, str):
        yield _rows(found, (), heading)
        return
    rows = [{**row, "name": CAUSES[row["cause"]], "rule": RULES[row["cause"]]} for row in found["targets"]]
    columns = [Column("cause", "name"), Column("first rule that holds for a change", "rule"), Column("targets", "targets"),
               Column("changes", "changes"), Column("median IoU", "iou", 1, 2), Column("median margin", "margin", 1, 2)]  # fmt: skip
    yield Block(Table(rows, columns), heading, CAUSES_TABLE)
    for key, column in (("steps", Column("step", "step")), *((f"by_{by}", Column(name, by)) for by, name in _BY.items())):
        own = [{**row, "name": CAUSES[row["cause"]]} for row in found[key]]
        columns = [column, Column("cause", "name"), share("churn %", "churn"), Column("changes", "changes"), *_N]
        yield Block(Table(own, columns), note="The churn of each cause; together they are the churn." if key == "steps" else "")


def _found_by(found: Mapping[str, Any]) -> Iterator[Block]:
    same = {
        "query": "have the same number", "source": "have the same encoder cell",
        "box": "have boxes with an IoU of 0.7 or more, because their numbers mean other places",
    }[found["identity"]]  # fmt: skip
    note = f"Two candidates of different evaluations count as the same if they {same}."
    columns = (share("found-by churn %", "found_by_churn"), *_N)
    yield _rows(found["steps"], [Column("step", "step"), *columns], "Found-by churn from one evaluation to the next", note)
    for by, name in _BY.items():
        yield _rows(found[f"by_{by}"], [Column(name, by), *columns], f"Found-by churn by {name}, all evaluations together")


def _agreement(found: Mapping[str, Any], heading: str, pairing: str) -> Iterator[Block]:
    if not found["steps"]:
        return
    if isinstance(found["steps"], str):
        yield _rows(found["steps"], (), heading)
        return
    note = f"{pairing} Agreement is the share of targets, of those matched in both, that both give to corresponding queries."
    yield Block(Table(found["steps"], [Column("step", "step"), *_AGREEMENT]), f"{heading}, last decoder layer", note)
    for by, title in _BY.items():
        yield Block(Table(found[f"by_{by}"], [Column(title, by), *_AGREEMENT]))


def _quality(found: Mapping[str, Any], heading: str) -> Iterator[Block]:
    if not found["by_label"]:
        return
    quality = (Column("quality", "quality", 1, 3, "low", "high"), *_N)
    yield Block(Table(found["by_label"], [Column("class", "label"), *quality]), heading, "Quality is sqrt(score x IoU) with the target.")
    yield Block(Table(found["by_size"], [Column("size", "size"), *quality]))


def gain_part(found: Mapping[str, Any]) -> Iterator[Block]:
    """Yields gain by class and size, and how well properties of a target predict it."""
    gain = (Column("gain", "gain", 1, 3, "low", "high"), *_N)
    note = f"Compared with {found['baseline']} at step {found['step']}."
    if isinstance(found["mean"], str):
        yield Block(note=f"{note} The gain is {found['mean']}.")
        return
    yield Block(Table([{**row, "all": "all targets"} for row in found["mean"]], [Column("", "all"), *gain]), note=note)
    for by, title in _BY.items():
        yield Block(Table(found[f"by_{by}"], [Column(title, by), *gain]))
    if isinstance(found["correlations"], str):
        yield _rows(found["correlations"], (), "What predicts the gain of a target")
    elif found["correlations"]:
        rows = [{**row, "property": PROPERTIES[row["property"]]} for row in found["correlations"]]
        columns = [
            Column("property of the target", "property"), Column("rank correlation", "correlation", 1, 2, "low", "high"),
            Column("with the baseline held fixed", "partial", 1, 2, "partial_low", "partial_high"),
            Column("absolute value, minus that of teacher quality", "over_quality", 1, 2, "over_quality_low", "over_quality_high"), *_N,
        ]  # fmt: skip
        note = "Each property is known from the teacher and the baseline. 'Baseline' is the baseline's score x IoU of the target."
        yield Block(Table(rows, columns), "What predicts the gain of a target", note)


def _images(rows: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['image_id']} ({row['n']})" for row in list(rows)[:3])

"""Collects all that is known about single boxes, targets and images of a comparison, one row each, for a viewer of errors.

The boxes of a model are its candidates at the last layer (the queries of a DETR), each with its best class. The best ``BOXES`` of an image
by score are kept, and error types are determined among them. Duplicates of a detector with a many-to-one assignment are left out first.
All numbers come from the other modules of ``analysis``, joined by image, query and target.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from workbench.analysis.defined import Number, many_to_one, undefined, undefined_of
from workbench.analysis.detection.contribution import image_contributions
from workbench.analysis.detection.lost import compared_targets, part_of
from workbench.analysis.detection.matches import BOX as CORNERS
from workbench.analysis.detection.matches import Matches
from workbench.analysis.detection.slices import slice_targets
from workbench.analysis.detection.tide import Errors, find_errors
from workbench.analysis.of_run import common_step
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.query_detections import query_detections, without_duplicates
from workbench.analysis.queries.value import ap_drops
from workbench.analysis.rows_of_run import Model, last_layer, layers, student_over_steps
from workbench.analysis.stability.agreement import teacher_agreement
from workbench.analysis.stability.change_causes import CAUSES, unsettled_targets
from workbench.analysis.stability.churn import CHURN_NEEDED
from workbench.analysis.stability.explained import explained_changes, in_units
from workbench.analysis.stability.grouped import image_counts, target_changes, target_histories
from workbench.analysis.stability.same_box import BOX
from workbench.datasets.base import Dataset
from workbench.errors import RunError
from workbench.overlap import centred_iou
from workbench.store.queries import TEACHER_STEP, complete_steps, read_queries
from workbench.store.run import Run

BOXES = 100  # per image and model
CONFIDENT = 0.3  # least score of a wrong box that is worth looking at, as on the dashboard
GRADED = 100  # number of best and of worst queries of the teacher
WRONG = ("classification", "localisation", "both", "duplicate", "background")
Role = Literal["teacher", "student", "baseline"]
_PAIR, _TARGET = ["image_id", "query"], ["image_id", "target"]
_COLUMNS = ("image_id", "layer", "query", "source", "label", "score", *BOX, "match", "match_iou", "quality", "mate", "mate_cost_class",
            "mate_cost_bbox", "mate_cost_giou", "train_mate", "loss_class", "loss_bbox", "loss_giou", "selected")  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """What is known about each image, target and box of a comparison. A value that does not apply is null.

    Attributes:
        dataset: dataset of the split.
        step: evaluation of the students.
        boxes: by model, in order of image and score: columns of the query table and ``error`` (of ``tide.Errors``), ``target`` (the target
            that was found or that the error is about), ``iou`` with it, ``mate_cost`` (class + 5 L1 + 2 GIoU), ``stability`` (1 - share of
            changes at which its matched target changed its query, over evaluations, for the teacher over decoder layers), ``value``
            (AP drop of its slot) and ``gain`` of its target. The student also has ``mate_error`` and ``mate_label`` (of its paired
            teacher query, if that is among the boxes), ``followed`` (both are wrong with the same class, and confident) and ``new``
            (wrong and confident where the baseline has no confident box of its class). The teacher also has ``grade`` (``best`` or
            ``worst`` by quality among its matched queries).
        targets: ``image_id``, ``target``, ``label`` (-1 for a region without class), ``x1 y1 x2 y2`` in pixels, ``area``, ``kind``
            (``target``, ``crowd``, ``ignore``), ``size``, ``crowding``, ``overlap``, ``gain``, and for each model ``<model>_error`` (state
            from ``tide.Errors``), ``<model>_query``, ``<model>_stability``, ``<model>_layer_changes`` (layers that changed it);
            ``cell``, whether teacher and student found it (``both``, ``lost``, ``gained`` or ``neither``, of ``lost.compared_targets``);
            ``student_change_cause``, why it changed its query over evaluations (of ``change_causes``, in words; null if it never did).
        images: ``image_id``, ``targets``, ``crowding``, and for each model ``<model>_contribution`` to AP50 and ``<model>_instability``
            (IS, mean over evaluations, for the teacher over decoder layers); ``agreement`` of student and teacher.
        not_defined: one sentence on each kind of number that a many-to-one assignment does not define; its columns are null or missing.
    """

    dataset: Dataset
    step: int
    boxes: dict[Role, pd.DataFrame]
    targets: pd.DataFrame
    images: pd.DataFrame
    not_defined: tuple[str, ...] = ()


def inspect(dataset: Dataset, run: Run, baseline: Run | None = None, split: str = "val") -> Inspection:
    """Reads the query tables of a comparison at the last step that both runs have.

    Args:
        dataset: dataset of the split.
        run: run of the student, and of its teacher if it has one.
        baseline: run it is compared with.
        split: split, as the runs call it.

    Raises:
        RunError: there is no evaluation with queries, the runs have none in common, or the runs are on other images.
    """
    step = common_step(run, baseline, split)
    truth = dataset.coco()
    sources: dict[Role, tuple[Run, Model]] = {"student": (run, "student")}
    if TEACHER_STEP in complete_steps(run, split):
        sources = {"teacher": (run, "teacher"), **sources}
    if baseline is not None:
        sources["baseline"] = (baseline, "student")
    boxes: dict[Role, pd.DataFrame] = {}
    errors: dict[Role, Errors] = {}
    answers: dict[Role, pd.DataFrame] = {}
    detections: dict[Role, pd.DataFrame] = {}
    for role, (own, model) in sources.items():
        rows = last_layer(own, split, step, model, _COLUMNS)
        if unknown := set(rows["image_id"]) - {record.image_id for record in dataset.records}:
            raise RunError(
                f"run '{own.name}' has queries of image {min(unknown)}, which the data does not have. Both runs must use the same images."
            )
        several = many_to_one(own, model)
        answers[role] = rows[rows["match"] >= 0][: 0 if several else None]  # of a target, which has one query at most
        # the candidate of a detector with several a target is known by its number, because its cell may have several
        rows = without_duplicates(rows).assign(source=-1) if several else rows
        detections[role] = query_detections(rows, dataset)
        boxes[role] = _best(rows)
        found = query_detections(boxes[role], dataset)
        errors[role] = find_errors(truth, found)
        boxes[role] = boxes[role].merge(_outcomes(errors[role]), on=_PAIR, how="left")
        if not several:
            value = ap_drops(truth, found, blocks=1)[["query", "ap_drop"]].rename(columns={"ap_drop": "value"})
            boxes[role] = boxes[role].merge(value, on="query", how="left")
    targets = _targets(dataset, errors["student"])
    images = pd.DataFrame({"image_id": [record.image_id for record in dataset.records]})
    images["targets"] = [int(record.trainable.sum()) for record in dataset.records]
    images = images.merge(targets.dropna(subset=["crowding"]).groupby("image_id")["crowding"].first().reset_index(), how="left")
    for role, (own, model) in sources.items():
        histories, instability, layers = _stability(own, split, step, role, model)
        targets = targets.merge(_states(role, errors[role], answers[role], histories, layers), on=_TARGET, how="left")
        matched = histories.rename(columns={"target": "match"})[["image_id", "match", "stability"]]
        boxes[role] = boxes[role].merge(matched, on=["image_id", "match"], how="left")
        contribution = image_contributions(truth, query_detections(boxes[role], dataset))
        images = images.merge(contribution.rename(columns={"contribution": f"{role}_contribution"}), on="image_id", how="left")
        images = images.merge(instability.rename(columns={"queries": f"{role}_instability"}), on="image_id", how="left")
    if "teacher" in detections:
        # what the page Errors shows of the same two: detections of the least score, on the images of which both were recorded
        student, teacher = detections["student"], detections["teacher"]
        both = np.intersect1d(student["image_id"].to_numpy(), teacher["image_id"].to_numpy())
        student, teacher = (side[side["image_id"].isin(both)] for side in (student, teacher))
        cells = compared_targets(part_of(truth, both), teacher, student)[[*_TARGET, "cell"]]
        targets = targets.merge(cells, on=_TARGET, how="left")
    if not undefined(run, "churn"):
        targets = targets.merge(_causes(run, split, step, dataset, targets), on=_TARGET, how="left")
    if "teacher" in boxes:
        boxes["teacher"]["grade"] = _grades(boxes["teacher"])
        if not undefined(run, "agreement"):
            images = images.merge(_agreement(run, split, step, answers["student"]["layer"].max()), on="image_id", how="left")
            boxes["student"] = _with_mates(boxes["student"], boxes["teacher"])
    if baseline is not None and not undefined_of((run, baseline), "gain"):
        now, before = (answers[role].assign(step=step, model="student") for role in ("student", "baseline"))
        gains = target_gain(now, before, step)
        targets = targets.merge(gains[[*_TARGET, "gain"]], on=_TARGET, how="left")
        for role in ("teacher", "student"):
            if role in boxes:
                own_gain = gains.rename(columns={"target": "match"})[["image_id", "match", "gain"]]
                boxes[role] = boxes[role].merge(own_gain, on=["image_id", "match"], how="left")
    if baseline is not None:
        boxes["student"]["new"] = _new(boxes["student"], boxes["baseline"])
    return Inspection(dataset, step, boxes, targets, images, _not_defined(run, baseline, "teacher" in boxes))


def _not_defined(run: Run, baseline: Run | None, taught: bool) -> tuple[str, ...]:
    """Returns a sentence on each kind of number that is not defined for the comparison."""
    runs = [run, *([baseline] if baseline is not None else [])]
    numbers: list[Number] = ["churn", "layer churn", "slots", *(["gain"] if baseline is not None else [])]
    told = [undefined_of(runs, number) for number in numbers]
    told += [undefined_of([run], number) for number in ("teacher layer churn", "agreement") if taught]
    return tuple(sentence for sentence in told if sentence)


def _best(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the best rows of each image by score; of equal scores the lower slot."""
    ordered = rows.sort_values(["image_id", "score", "query"], ascending=[True, False, True], ignore_index=True)
    kept = ordered[ordered.groupby("image_id").cumcount() < BOXES].reset_index(drop=True)
    cost = kept["mate_cost_class"] + 5 * kept["mate_cost_bbox"] + 2 * kept["mate_cost_giou"]
    return kept.drop(columns=["mate_cost_class", "mate_cost_bbox", "mate_cost_giou"]).assign(
        mate_cost=cost, **{name: kept[name].astype("int64") for name in ("query", "label", "match", "layer")}
    )  # fmt: skip


def _outcomes(errors: Errors) -> pd.DataFrame:
    """Returns for every box its error, the target that it found or is about, and the IoU with that target; null without one."""
    found = errors.detections.merge(errors.targets[[*_TARGET, *CORNERS]], on=_TARGET, how="left", suffixes=("", "_of_target"))
    sides = (found[CORNERS].to_numpy(float), found[[f"{name}_of_target" for name in CORNERS]].to_numpy(float))
    centred = [np.hstack([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]]) for box in sides]
    there = np.isfinite(centred[1]).all(axis=1)
    return found[[*_PAIR, "error", "target"]].assign(iou=np.where(there, centred_iou(*centred), np.nan))


def _targets(dataset: Dataset, errors: Errors) -> pd.DataFrame:
    """Returns all boxes of the data, including regions, with the slices that targets are in."""
    records = dataset.records
    counts = [len(record.boxes) for record in records]
    everything = pd.DataFrame(np.concatenate([record.boxes for record in records]), columns=CORNERS).assign(
        image_id=np.repeat([record.image_id for record in records], counts), target=np.concatenate([np.arange(count) for count in counts]),
        label=np.concatenate([record.labels for record in records]), area=np.concatenate([record.areas for record in records]),
        kind=np.select([np.concatenate([record.ignore for record in records]), np.concatenate([record.crowd for record in records])],
                       ["ignore", "crowd"], "target"),
    )  # fmt: skip
    slices = slice_targets(Matches(errors.detections, errors.targets, errors.images, errors.classes))
    slices = slices[[*_TARGET, "size", "crowding", "overlap"]]
    return everything.merge(slices, on=_TARGET, how="left")


def _stability(run: Run, split: str, step: int, role: Role, model: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Returns the stability of every target, the mean instability of every image, and every target's changes between layers."""
    if undefined(run, "teacher layer churn" if role == "teacher" else "layer churn"):
        nothing = pd.DataFrame(columns=[*_TARGET, "stability", "queries", "changes"]).astype({name: "int64" for name in _TARGET})
        return nothing[[*_TARGET, "stability"]], nothing[["image_id", "queries"]], nothing[[*_TARGET, "changes"]]
    here = TEACHER_STEP if role == "teacher" else step
    rows = read_queries(run, split, [here], CHURN_NEEDED, "model = $model", {"model": model}, matched=True)
    changes = target_changes(rows, "layer", model)
    layers = target_histories(changes, "layer")
    if role == "teacher":
        histories, counts = layers, image_counts(rows, "layer", model)
    else:
        rows, identity = student_over_steps(run, split, layer=int(rows["layer"].max()) if len(rows) else 0, until=step)
        histories = target_histories(target_changes(rows, "step", model, identity=identity), "step")
        counts = image_counts(rows, "step", model, identity=identity)
    histories = histories.assign(stability=1 - histories["share"])[[*_TARGET, "stability"]]
    return histories, counts.groupby("image_id")["queries"].mean().reset_index(), layers[[*_TARGET, "changes"]]


def _causes(run: Run, split: str, step: int, dataset: Dataset, targets: pd.DataFrame) -> pd.DataFrame:
    """Returns why each target changed its query between the evaluations up to a step, in words."""
    own = in_units(targets[targets["kind"] == "target"], dataset)
    changes = explained_changes(run, split, max(layers(run, split, step), default=0), own, step)
    causes = unsettled_targets(changes)[[*_TARGET, "cause"]]
    return causes.assign(cause=causes["cause"].map(CAUSES)).rename(columns={"cause": "student_change_cause"})


def _states(role: Role, errors: Errors, matched: pd.DataFrame, histories: pd.DataFrame, layers: pd.DataFrame) -> pd.DataFrame:
    """Returns the state of each target for one model."""
    query = matched.rename(columns={"match": "target"})[[*_TARGET, "query"]].astype("int64")
    frame = errors.targets[[*_TARGET, "error"]].merge(query, on=_TARGET, how="left")
    layers = layers.rename(columns={"changes": "layer_changes"})
    frame = frame.merge(histories, on=_TARGET, how="left").merge(layers, on=_TARGET, how="left")
    return frame.rename(columns={name: f"{role}_{name}" for name in ("error", "query", "stability", "layer_changes")})


def _agreement(run: Run, split: str, step: int, layer: int) -> pd.DataFrame:
    where = "model = 'teacher' or model = 'student' and layer = $layer"
    columns = (*CHURN_NEEDED, "mate", "mate_layer")
    rows = read_queries(run, split, [TEACHER_STEP, step], columns, where, {"layer": int(layer)}, matched=True)
    share = teacher_agreement(rows).groupby("image_id")["agrees"].mean()
    return share.rename("agreement").reset_index()


def _grades(boxes: pd.DataFrame) -> pd.Series:
    """Marks the best and worst matched queries by quality; of equal ones the first by image and slot."""
    grade = pd.Series(None, boxes.index, dtype=object)
    matched = boxes[boxes["match"] >= 0]
    for name, ascending in (("worst", True), ("best", False)):  # with few queries one may be both, and is marked best
        order = matched.sort_values(["quality", *_PAIR], ascending=[ascending, True, True])
        grade[order.index[:GRADED]] = name
    return grade


def _with_mates(student: pd.DataFrame, teacher: pd.DataFrame) -> pd.DataFrame:
    names = {"query": "mate", "label": "mate_label", "error": "mate_error", "score": "mate_score"}
    mates = teacher[["image_id", *names]].rename(columns=names)
    joined = student.merge(mates, on=["image_id", "mate"], how="left")
    both_wrong = joined["error"].isin(WRONG) & joined["mate_error"].isin(WRONG) & (joined["label"] == joined["mate_label"])
    confident = (joined["score"] >= CONFIDENT) & (joined["mate_score"] >= CONFIDENT)
    return joined.assign(followed=both_wrong & confident).drop(columns="mate_score")


def _new(student: pd.DataFrame, baseline: pd.DataFrame) -> pd.Series:
    """Marks wrong and confident boxes where the baseline has no confident box of that class with an IoU of 0.5."""
    wrong = student["error"].isin(WRONG) & (student["score"] >= CONFIDENT)
    there = baseline[baseline["score"] >= CONFIDENT]
    pairs = student[wrong][[*_PAIR, "label", *BOX]].merge(there[["image_id", "label", *BOX]], on=["image_id", "label"], suffixes=("", "_b"))
    near = centred_iou(pairs[BOX].to_numpy(), pairs[[f"{name}_b" for name in BOX]].to_numpy()) >= 0.5
    old = pd.MultiIndex.from_frame(pairs.loc[near, _PAIR].drop_duplicates())
    return wrong & ~pd.MultiIndex.from_frame(student[_PAIR]).isin(old)

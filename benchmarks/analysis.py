"""Measures query value, slices, intervals, verdicts and match stability on generated data.

The sizes are 300 slots with 200,000 detections, 5,000 images with 80 classes, and as many query rows as COCO's validation split has.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.ap import generated
from benchmarks.harness import Figure, interleaved
from benchmarks.store_rows import query_chunks
from workbench.analysis.detection.ap import coco_ap
from workbench.analysis.detection.intervals import coco_intervals
from workbench.analysis.detection.slices import slices
from workbench.analysis.detection.tide import error_table, find_errors
from workbench.analysis.queries.gain import target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.slots import slot_table
from workbench.analysis.queries.value import ap_drops, slot_interval
from workbench.analysis.results.query_tests import compare_detections
from workbench.analysis.stability.agreement import agreement_by, teacher_agreement
from workbench.analysis.stability.grouped import image_counts, stability_by, target_changes, target_histories

SLOTS = 300
CHECKED = 5  # slots for which AP is recomputed without their detections
REPEATS = 3
COCO_IMAGES = 5_000
# images, detections per image, categories; the second shape exceeds the limit of 100 detections per image and class
SHAPES = {"2000 images, 80 classes": (2_000, 100, 80), "667 images, 2 classes": (667, 300, 2)}


def figures() -> Iterator[Figure]:
    """Yields times, and the largest difference from evaluating AP again without a slot."""
    for name, (images, detections, categories) in SHAPES.items():
        yield from _value(name, *generated(images=images, detections=detections, categories=categories))
    yield from _parts()
    yield from _queries()


def _parts() -> Iterator[Figure]:
    """Yields times of AP and errors over many resamples, at the size of COCO's validation split."""
    truth, detections = generated(images=COCO_IMAGES)
    other = detections.assign(score=np.random.default_rng(2).permutation(detections["score"].to_numpy()))
    what = f"{len(detections)} detections, {COCO_IMAGES} images, 80 classes, 300 resamples"
    seconds = _timed({
        "slices by size, crowding and overlap": lambda: slices(truth, detections),
        "intervals of the twelve COCO numbers": lambda: coco_intervals(truth, detections),
        "error types and their cost": lambda: error_table(find_errors(truth, detections)),
        "verdicts on the twelve numbers and calibration": lambda: compare_detections(truth, {0: detections}, {0: other}),
    })  # fmt: skip
    for name, value in seconds.items():
        yield Figure(f"{name} ({what})", value, "s", repeats=REPEATS)


def _value(name: str, truth: dict[str, Any], detections: pd.DataFrame) -> Iterator[Figure]:
    rng = np.random.default_rng(1)
    count = detections.groupby("image_id").size()
    detections["query"] = np.concatenate([rng.permutation(SLOTS)[:own] for own in count.tolist()])
    what = f"{len(detections)} detections, {name}"
    frames: dict[str, pd.DataFrame] = {}

    def drops() -> None:
        frames["drops"] = ap_drops(truth, detections, blocks=0)

    seconds = _timed({
        "drops": drops, "jackknife": lambda: ap_drops(truth, detections), "slot": lambda: slot_interval(truth, detections, 7)
    })  # fmt: skip
    yield Figure(f"ap_drop of {SLOTS} slots, {what}", seconds["drops"], "s", "<= 20", repeats=REPEATS)
    yield Figure(f"ap_drop of {SLOTS} slots with a jackknife over 20 blocks, {what}", seconds["jackknife"], "s", "<= 20", repeats=REPEATS)
    yield Figure(f"200 Poisson resamples of one slot, {what}", seconds["slot"], "s", "<= 60", repeats=REPEATS)
    whole, drop = coco_ap(truth, detections).ap, frames["drops"].set_index("query")["ap_drop"]
    checked = rng.permutation(SLOTS)[:CHECKED].tolist()
    apart = [abs(whole - coco_ap(truth, detections[detections["query"] != slot]).ap - float(drop[slot])) for slot in checked]
    yield Figure(f"ap_drop: greatest difference from AP without the slot, {what}", max(apart), "AP", "<= 1e-9", repeats=CHECKED)


def _queries() -> Iterator[Figure]:
    first, second, teacher = (_rows(seed, model) for seed, model in ((1, "student"), (2, "student"), (3, "teacher")))
    both = pd.concat([first.assign(step=100), second.assign(step=200), teacher.assign(step=-1)], ignore_index=True)
    matched = both[both["match"] >= 0]
    student = matched[matched["model"] == "student"]
    targets = student[["image_id", "match"]].drop_duplicates().rename(columns={"match": "target"})
    targets = targets.assign(label=targets["target"] % 80, area=1000.0)
    last = second[second["layer"] == second["layer"].max()]
    baseline = student[student["step"] == 100].assign(step=200)
    gains = target_gain(student, baseline)
    properties = target_properties(gains, matched[matched["model"] == "teacher"], baseline, targets)
    seconds = _timed({
        "churn and IS of 80 classes between 6 layers of 2 steps, with intervals":
            lambda: stability_by(image_counts(matched, "layer", targets=targets, by="label"), "label"),
        "changes and histories of the targets over 6 layers of 2 steps":
            lambda: target_histories(target_changes(matched, "layer"), "layer"),
        "agreement of 80 classes, 6 layers and 2 steps, with intervals":
            lambda: agreement_by(teacher_agreement(matched), "label", targets),
        "gain of every target": lambda: target_gain(student, baseline),
        "rank correlations of six properties with gain, 300 resamples": lambda: rank_correlations(properties),
        "table of 300 slots from 1.5 million rows": lambda: slot_table(last),
    })  # fmt: skip
    for name, value in seconds.items():
        yield Figure(f"{name} ({len(targets)} targets)", value, "s", repeats=REPEATS)


def _rows(seed: int, model: str) -> pd.DataFrame:
    """Returns all queries of the last layer and the matched queries of the other layers, as the analyses read them."""
    columns = ["model", "image_id", "layer", "query", "source", "label", "score", "cx", "cy", "w", "h", "match", "match_iou", "quality",
               "mate", "mate_layer"]  # fmt: skip
    frames = []
    for chunk in query_chunks(seed, model=model):
        frame = chunk.select(columns).to_pandas()
        frames.append(frame[(frame["match"] >= 0) | (frame["layer"] == frame["layer"].max())])
    # -1: learned queries, which their slot identifies
    return pd.concat(frames, ignore_index=True).assign(source=-1)


def _timed(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    return {name: float(np.median(seconds)) for name, seconds in interleaved(functions, REPEATS, warmup=0).items()}

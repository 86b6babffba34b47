"""KITTI's AP: numbers worked out by hand, each rule by itself, and an oracle that counts anew at every threshold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.analysis.detection.test_matches import iou
from tests.analysis.kitti_examples import Row, kitti_dataset, random_kitti, record
from workbench.analysis.detection.bootstrap import draws
from workbench.analysis.detection.kitti_ap import is_kitti, kitti_ap
from workbench.datasets.base import Dataset
from workbench.datasets.kitti import CLASSES
from workbench.datasets.opening import open_dataset

LIMITS = {"easy": (40, 0, 0.15), "moderate": (25, 1, 0.3), "hard": (25, 2, 0.5)}
OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting", "Cyclist": "none"}


def box(x: float, height: float = 100, width: float = 100) -> tuple[float, ...]:
    return (x, 0, x + width, height)


def car(x: float, height: float = 100, hidden: int = 0, cut: float = 0.0, name: str = "Car") -> Row:
    return (name, cut, hidden, box(x, height))


def found(*rows: tuple[float, tuple[float, ...]], name: str = "Car") -> pd.DataFrame:
    """Detections of one image given as score and box."""
    table = pd.DataFrame([(0, CLASSES.index(name) + 1, score, *corners) for score, corners in rows],
                         columns=["image_id", "category_id", "score", "x1", "y1", "x2", "y2"])  # fmt: skip
    return table.assign(query=range(len(table)))


def ap_of(targets: list[Row], detections: pd.DataFrame, name: str = "Car") -> dict[str, float]:
    """AP of one class in one image, by difficulty."""
    table = kitti_ap(kitti_dataset([record(0, targets)]), detections)
    return table[table["class"] == name].set_index("difficulty")["ap"].to_dict()


def test_three_of_four_cars_with_one_false_positive_is_worked_out_by_hand():
    """Found at 0.9, 0.8 and 0.7, wrong at 0.85: precision 1, 2/3 and 3/4 at those scores.

    The best at each point or later is 1, 3/4, 3/4 and then nothing; the first point does not count: (3/4 + 3/4) / 40.
    """
    found_three = found((0.9, box(0)), (0.85, box(900)), (0.8, box(200)), (0.7, box(400)))
    assert ap_of([car(0), car(200), car(400), car(600)], found_three)["easy"] == pytest.approx(1.5 / 40)


def test_half_of_eighty_cars_behind_forty_false_positives_is_a_quarter():
    """Recall reaches one half, precision there is 40 / 80 and lower before: 20 of 40 points at one half. Without the wrong ones 20 at 1."""
    cars = [car(200 * n) for n in range(80)]
    right = [(0.5 - n / 1000, box(200 * n)) for n in range(40)]
    wrong = [(0.9 - n / 1000, box(200 * n + 100_000)) for n in range(40)]
    assert ap_of(cars, found(*right))["easy"] == pytest.approx(0.5)
    assert ap_of(cars, found(*wrong, *right))["easy"] == pytest.approx(0.25)
    everything = [(0.5 - n / 1000, box(200 * n)) for n in range(80)]
    assert ap_of(cars, found(*everything))["easy"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        (car(0), ["easy", "moderate", "hard"]),
        (car(0, height=40), ["moderate", "hard"]),
        (car(0, height=40.1), ["easy", "moderate", "hard"]),
        (car(0, height=25), []),
        (car(0, hidden=1), ["moderate", "hard"]),
        (car(0, hidden=2), ["hard"]),
        (car(0, hidden=3), []),
        (car(0, cut=0.15), ["easy", "moderate", "hard"]),
        (car(0, cut=0.3), ["moderate", "hard"]),
        (car(0, cut=0.5), ["hard"]),
        (car(0, cut=0.51), []),
        (car(0, name="Van"), []),
    ],
)
def test_a_difficulty_asks_for_targets_by_height_occlusion_and_truncation(target: Row, asked: list[str]):
    table = kitti_ap(kitti_dataset([record(0, [target])]), found((0.9, box(5000))))
    cars = table[table["class"] == "Car"].set_index("difficulty")
    assert cars.index[cars["targets"] == 1].tolist() == asked
    assert cars["ap"].isna().tolist() == [difficulty not in asked for difficulty in cars.index]


# 41 cars found at scores from 0.9 down, and one detection at 1.0 that is wrong or is not counted; where it is wrong the best precision
# after k cars is k / (k + 1), at most 41 / 42, which holds at every point
CARS = [car(300 * n) for n in range(41)]
RIGHT = [(0.9 - n / 100, box(300 * n)) for n in range(41)]
WRONG = pytest.approx(41 / 42)
AWAY = 50_000


@pytest.mark.parametrize(
    ("what", "extra", "detection", "wanted"),
    [
        ("nothing there", [], box(AWAY), WRONG),
        ("a van", [car(AWAY, name="Van")], box(AWAY), 1),
        ("a truck", [car(AWAY, name="Truck")], box(AWAY), WRONG),
        ("a hidden car", [car(AWAY, hidden=3)], box(AWAY), 1),
        ("a DontCare region three quarters cover", [("DontCare", -1, -1, box(AWAY, width=75))], box(AWAY), 1),
        ("a DontCare region two thirds cover", [("DontCare", -1, -1, box(AWAY, width=66))], box(AWAY), WRONG),
        ("a large DontCare region around it", [("DontCare", -1, -1, box(AWAY - 500, 2000, 2000))], box(AWAY), 1),
        ("nothing there, too low", [], box(AWAY, height=39.9), 1),
        ("a car it finds again", [], box(0, height=99), WRONG),
    ],
)
def test_a_detection_that_is_not_one_of_the_cars_is_wrong_or_not_counted(
    what: str, extra: list[Row], detection: tuple[float, ...], wanted: float
):
    assert ap_of([*CARS, *extra], found((1.0, detection), *RIGHT))["easy"] == wanted, what


def test_pedestrians_are_found_at_half_an_overlap_and_a_sitting_person_is_not_counted():
    people = [("Pedestrian", 0.0, 0, box(300 * n)) for n in range(41)]
    loose = [(score, (x1, y1, x2, y2 * 0.6)) for score, (x1, y1, x2, y2) in RIGHT]
    sitting = ("Person_sitting", 0.0, 0, box(AWAY))
    assert ap_of([*people, sitting], found((1.0, box(AWAY)), *loose, name="Pedestrian"), "Pedestrian")["easy"] == 1
    assert ap_of(CARS, found(*loose))["easy"] == 0


def oracle(dataset: Dataset, detections: pd.DataFrame, name: str, difficulty: str) -> float:
    """The development kit's way: match all images anew for each of the thresholds."""
    height, occlusion, truncation = LIMITS[difficulty]
    scenes = []
    for one in dataset.records:
        own = detections[detections["image_id"] == one.image_id]
        rows = [{"box": (r.x1, r.y1, r.x2, r.y2), "score": r.score, "low": int(r.y2 - r.y1) < height,
                 "own": CLASSES[r.category_id - 1] == name} for r in own.itertuples()]  # fmt: skip
        targets, regions = [], []
        for g, corners in enumerate(one.boxes.tolist()):
            seen = "DontCare" if one.ignore[g] else CLASSES[one.labels[g]]
            fit = (corners[3] - corners[1] > height and one.attributes["occlusion"][g] <= occlusion
                   and one.attributes["truncation"][g] <= truncation)  # fmt: skip
            if seen == "DontCare":
                regions.append(corners)
            elif seen in (name, NEIGHBOUR[name]):
                targets.append((corners, seen == name and fit))
        scenes.append(([row for row in rows if row["own"] or row["low"]], targets, regions))

    def count(least: float, by_score: bool) -> tuple[list[float], int]:
        """Scores of the true positives and the number of false ones, of detections that reach ``least``."""
        scores, wrong = [], 0
        for rows, targets, regions in scenes:
            free = [row for row in rows if row["score"] >= least]
            for corners, asked in targets:
                able = [row for row in free if iou(row["box"], corners) > OVERLAP[name]]
                if not by_score and any(not row["low"] for row in able):
                    able = [row for row in able if not row["low"]]
                if able:
                    chosen = max(able, key=lambda row: row["score"] if by_score else iou(row["box"], corners))
                    free.remove(chosen)
                    scores += [chosen["score"]] if asked and not chosen["low"] else []
            wrong += sum(not row["low"] and all(iou(row["box"], r, crowd=True) <= OVERLAP[name] for r in regions) for row in free)
        return scores, wrong

    total = sum(asked for _, targets, _ in scenes for _, asked in targets)
    if not total:
        return float("nan")
    ranked = sorted(count(-1, by_score=True)[0], reverse=True)
    precision, recall = [], 0.0
    for rank, score in enumerate(ranked, start=1):
        nearer_later = (rank + 1) / total - recall < recall - rank / total
        if rank < len(ranked) and nearer_later:
            continue
        right, wrong = count(score, by_score=False)
        precision.append(len(right) / (len(right) + wrong) if right else 0)
        recall += 1 / 40
    return sum(max(precision[n:], default=0) for n in range(1, 41)) / 40


@given(seed=st.integers(0, 10_000), images=st.sampled_from([3, 12]))
@hypothesis_settings(max_examples=4)
def test_every_class_and_difficulty_agrees_with_counting_anew_at_every_threshold(seed: int, images: int):
    dataset, detections = random_kitti(seed, images)
    table = kitti_ap(dataset, detections)
    wanted = [oracle(dataset, detections, row["class"], row["difficulty"]) for _, row in table.iterrows()]
    assert table["ap"].tolist() == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_many_targets_of_one_class_agree_too():
    dataset, detections = random_kitti(1, images=14, most=90)
    hard = kitti_ap(dataset, detections).iloc[2]
    assert (hard["class"], hard["difficulty"]) == ("Car", "hard") and hard["targets"] > 41
    assert hard["ap"] == pytest.approx(oracle(dataset, detections, "Car", "hard"), abs=1e-12)


def test_the_interval_is_of_resampled_images():
    dataset, detections = random_kitti(2, images=6, most=12)
    table = kitti_ap(dataset, detections, samples=8, seed=3)
    values = []
    for row in draws(6, 8, 3):
        records, rows = [], [detections.iloc[:0]]
        for place in np.repeat(np.arange(6), row):
            records.append(type(dataset.records[0])(**{**vars(dataset.records[place]), "image_id": len(records)}))
            rows.append(detections[detections["image_id"] == dataset.records[place].image_id].assign(image_id=len(records) - 1))
        values.append(kitti_ap(kitti_dataset(records), pd.concat(rows))["ap"].iloc[2])
    assert (table["low"].iloc[2], table["high"].iloc[2]) == pytest.approx(tuple(np.nanpercentile(values, [2.5, 97.5])))


def test_only_data_that_tells_occlusion_and_truncation_of_its_classes_has_this_ap():
    dataset, _ = random_kitti(0)
    assert is_kitti(dataset)
    assert not is_kitti(open_dataset("shapes", "val", val=2))
    assert not is_kitti(Dataset("k", "val", ["Tram"], [1], dataset.records, []))


def test_without_detections_ap_is_zero_where_there_are_targets():
    dataset, detections = random_kitti(4)
    table = kitti_ap(dataset, detections.iloc[:0])
    assert table["ap"].dropna().eq(0).all() and table["ap"].isna().tolist() == table["targets"].eq(0).tolist()


def test_the_truth_of_the_kitti_sample_given_back_is_found_with_precision_one(shared_data: Path):
    dataset = open_dataset(shared_data / "kitti_sample", "all")
    rows = [(r.image_id, r.labels[g] + 1, 0.9, *r.boxes[g]) for r in dataset.records for g in np.flatnonzero(~r.ignore)]
    detections = pd.DataFrame(rows, columns=["image_id", "category_id", "score", "x1", "y1", "x2", "y2"])
    table = kitti_ap(dataset, detections).set_index(["class", "difficulty"])
    # of so few targets only as many points are reached, the first of which does not count
    for _, row in table[table["targets"] > 0].iterrows():
        assert row["ap"] == pytest.approx((row["targets"] - 1) / 40)
    assert table.loc[("Car", "hard"), "targets"] > table.loc[("Car", "easy"), "targets"] > 0

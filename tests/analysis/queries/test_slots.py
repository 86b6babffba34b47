"""What slots do, counted in loops."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.analysis.answer_examples import random_answers, random_truth
from workbench.analysis.detection.targets import target_frame
from workbench.analysis.queries.slots import slot_heatmaps, slot_serves, slot_table, wilson


@pytest.fixture
def rows() -> pd.DataFrame:
    """The last layer of the last step of six images; slot 4 is dead."""
    answers = random_answers(11, images=6)
    answers = answers[(answers["model"] == "student") & (answers["step"] == 30) & (answers["layer"] == 1)].reset_index(drop=True)
    return answers.assign(match=answers["match"].where(answers["query"] != 4, -1))


def test_every_slot_is_counted_over_the_images(rows: pd.DataFrame):
    frame = slot_table(rows, samples=30)
    assert frame["query"].tolist() == [0, 1, 2, 3, 4]
    for found in frame.itertuples():
        own = [row for row in rows.itertuples() if row.query == found.query]
        held = [row for row in own if row.match >= 0]
        assert (found.images, found.n, found.served, found.dead) == (6, len(held), len(held) / 6, found.query == 4)
        assert found.quality == pytest.approx(math.fsum(r.quality for r in held) / len(held) if held else math.nan, nan_ok=True)
        assert not held or found.quality_low <= found.quality <= found.quality_high
        assert found.score == pytest.approx(np.mean([r.score for r in own])) and found.best_score == max(r.score for r in own)
        centre = np.mean([(r.cx, r.cy) for r in own], axis=0)
        assert (found.cx, found.cy) == pytest.approx(tuple(centre))
        assert found.spread == pytest.approx(math.sqrt(np.mean([(r.cx - centre[0]) ** 2 + (r.cy - centre[1]) ** 2 for r in own])))
        interval = stats.binomtest(len(held), 6).proportion_ci(method="wilson")
        assert (found.served_low, found.served_high) == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize("by", ["label", "size"])
def test_what_a_slot_serves_are_the_classes_and_sizes_of_its_targets(rows: pd.DataFrame, by: str):
    targets = target_frame(random_truth(12, images=6))
    value = {(t.image_id, t.target): getattr(t, by) for t in targets.itertuples()}
    frame = slot_serves(rows, targets, by)
    wanted: dict[tuple[int, object], list[int]] = {}
    for row in rows.itertuples():
        if row.match >= 0:
            wanted.setdefault((row.query, value[row.image_id, row.match]), []).append(row.image_id)
    total = {query: sum(len(images) for (slot, _), images in wanted.items() if slot == query) for query, _ in wanted}
    found = {(r.query, getattr(r, by)): (r.n, r.images, r.share) for r in frame.itertuples()}
    assert found == {key: (len(v), len(set(v)), pytest.approx(len(v) / total[key[0]])) for key, v in wanted.items()}
    assert (frame["low"] <= frame["share"]).all() and (frame["share"] <= frame["high"]).all()


def test_a_heat_map_counts_the_centres_of_its_slot_in_each_cell(rows: pd.DataFrame):
    rows = rows.assign(cx=rows["cx"].where(rows["query"] != 0, 1.0))
    for matched in (False, True):
        grids = slot_heatmaps(rows, bins=4, matched=matched)
        wanted = {query: np.zeros((4, 4)) for query in set(rows["query"])}
        for row in rows.itertuples():
            if row.match >= 0 or not matched:
                wanted[row.query][min(int(row.cy * 4), 3), min(int(row.cx * 4), 3)] += 1
        assert set(grids) == set(wanted)
        for query, grid in grids.items():
            np.testing.assert_array_equal(grid, wanted[query])


def test_a_share_of_nothing_has_no_interval():
    low, high = wilson(np.array([0, 0]), np.array([0, 5]))
    assert math.isnan(low[0]) and math.isnan(high[0]) and low[1] == pytest.approx(0) and high[1] == pytest.approx(0.4345, abs=1e-4)

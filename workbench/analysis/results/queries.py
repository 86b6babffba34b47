"""Provides results about the queries of an evaluation: what slots are worth and serve, what targets gained, and what predicts it."""

import numpy as np
import pandas as pd

from workbench.analysis.defined import require
from workbench.analysis.detection.bootstrap import Interval
from workbench.analysis.of_run import RunAt
from workbench.analysis.queries.gain import NEEDED as GAIN_NEEDED
from workbench.analysis.queries.gain import gain_by, mean_gain, slot_gain, target_gain
from workbench.analysis.queries.predictors import rank_correlations, target_properties
from workbench.analysis.queries.slots import NEEDED as SLOTS_NEEDED
from workbench.analysis.queries.slots import slot_heatmaps, slot_serves, slot_table
from workbench.analysis.queries.value import ap_drops, slot_interval
from workbench.analysis.results.detections import DetectionResults
from workbench.analysis.rows_of_run import Model, last_layer

LISTED = ("image_id", "query", "label", "score", "best_iou", "match", "quality")  # columns of a list of all queries


class QueryResults(DetectionResults):
    """Results about the rows of the last decoder layer.

    What is about slots, gain and its predictors raises ``NotDefined`` where the assignment is many-to-one.
    """

    def all_queries(self, at: RunAt, model: Model) -> pd.DataFrame:
        """Returns all queries of the last layer, in the columns that a list shows."""
        return last_layer(at.run, at.split, at.step, model, LISTED)

    def matched_queries(self, at: RunAt, model: Model) -> pd.DataFrame:
        """Returns the queries of the last layer that are matched to a target, best quality first."""
        rows = last_layer(at.run, at.split, at.step, model, GAIN_NEEDED, matched=True)
        return rows.sort_values(["quality", "score"], ascending=False, kind="stable")

    def slot_drops(self, at: RunAt) -> pd.DataFrame:
        """Returns the AP drop of every slot: ``value.ap_drops``."""
        require(at.run, "slots")
        return self._kept(at, "ap-drops", lambda: ap_drops(self.truth(at.data), self.detections(at)))

    def slot_drop_interval(self, at: RunAt, query: int) -> Interval:
        """Returns the AP drop of one slot with its interval by Poisson resamples."""
        require(at.run, "slots")
        return slot_interval(self.truth(at.data), self.detections(at), query)

    def slots(self, at: RunAt) -> pd.DataFrame:
        """Returns what every slot of the student does: ``slots.slot_table``."""
        require(at.run, "slots")
        return self._kept(at, "slots", lambda: slot_table(last_layer(at.run, at.split, at.step, "student", SLOTS_NEEDED)))

    def slot_heatmaps(self, at: RunAt) -> dict[int, np.ndarray]:
        """Returns where every slot of the student looks: ``slots.slot_heatmaps``."""
        require(at.run, "slots")
        return slot_heatmaps(last_layer(at.run, at.split, at.step, "student", ("query", "cx", "cy", "match")))

    def slot_serves(self, at: RunAt, by: str) -> pd.DataFrame:
        """Returns classes (``by`` label) or sizes (size) of the targets of each slot."""
        require(at.run, "slots")
        return slot_serves(self.matched_queries(at, "student"), self.targets(at.data), by)

    def gains(self, at: RunAt, baseline: RunAt) -> pd.DataFrame:
        """Returns the gain of every target over the baseline at the same step: ``gain.target_gain``."""
        require(at.run, "gain")
        require(baseline.run, "gain")
        return target_gain(self.matched_queries(at, "student"), self.matched_queries(baseline, "student"), at.step)

    def mean_gain(self, at: RunAt, baseline: RunAt) -> pd.DataFrame:
        """Returns the mean gain over all targets, one row with its interval; no row without targets."""
        return mean_gain(self.gains(at, baseline))

    def gain_by(self, at: RunAt, baseline: RunAt, by: str) -> pd.DataFrame:
        """Returns the mean gain by class (``by`` label) or size."""
        return gain_by(self.gains(at, baseline), self.targets(at.data), by)

    def slot_gains(self, at: RunAt, baseline: RunAt) -> pd.DataFrame:
        """Returns the mean gain of the targets of every slot."""
        require(at.run, "slots")
        return slot_gain(self.gains(at, baseline))

    def properties(self, at: RunAt, baseline: RunAt) -> pd.DataFrame:
        """Returns every target's gain beside what was known of it before training; empty without a teacher."""
        require(at.run, "predictors")
        teacher, before = self.matched_queries(at, "teacher"), self.matched_queries(baseline, "student")
        return target_properties(self.gains(at, baseline), teacher, before, self.targets(at.data))

    def correlations(self, at: RunAt, baseline: RunAt) -> pd.DataFrame:
        """Returns the rank correlation of each property with gain."""
        return rank_correlations(self.properties(at, baseline))

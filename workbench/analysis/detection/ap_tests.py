"""Tests whether one side of a comparison is better, in words and with the interval that they rest on, never as a bare difference.

A side is one run, or the runs of several seeds. Both sides are evaluated on the same resampled images, so the verdict is about these
checkpoints. With five or more seeds on both sides the differences between runs of the same seed are tested, so it is about the method.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from workbench.analysis.detection.ap import Detections
from workbench.analysis.detection.bootstrap import LEVEL, draws, interval, weighted_ap, with_all
from workbench.analysis.detection.cells import Overlap
from workbench.analysis.detection.tide import LABELS, MAIN, SPECIAL, Error, Errors, error_costs, error_counts

Word = Literal["better", "worse", "not distinguishable"]
About = Literal["these checkpoints", "this method"]
LEAST_SEEDS = 5
SAMPLES = 300
_T = TypeVar("_T")
Side = Mapping[int, _T]  # values by seed


@dataclass(frozen=True)
class Quantity:
    """A number that runs are compared by.

    Attributes:
        name: name that is shown.
        higher_is_better: True if higher values are better.
        scale: factor from the stored value to the shown one; 100 for shares and AP.
        decimals: number of decimals that are shown.
    """

    name: str
    higher_is_better: bool
    scale: float = 100
    decimals: int = 1


AP = Quantity("AP", True)
COCO = {
    "ap": AP, "ap50": Quantity("AP50", True), "ap75": Quantity("AP75", True),
    **{f"ap_{size}": Quantity(f"AP of {size} targets", True) for size in ("small", "medium", "large")},
    **{f"ar{most}": Quantity(f"AR, {most} detection{'s' * (most > 1)} an image", True) for most in (1, 10, 100)},
    **{f"ar_{size}": Quantity(f"AR of {size} targets", True) for size in ("small", "medium", "large")},
}  # fmt: skip
MASK_AP = Quantity("mask AP", True)
MASK_COCO = {"ap": MASK_AP} | {name: Quantity(f"mask {quantity.name}", True) for name, quantity in COCO.items() if name != "ap"}
CHURN = Quantity("churn", False)
INSTABILITY = Quantity("instability", False, scale=1, decimals=2)
FOUND_BY_CHURN = Quantity("found-by churn", False)
LAYER_CHURN = Quantity("churn between layers", False)
AGREEMENT = Quantity("agreement", True)
GROUP_AGREEMENT = Quantity("agreement of the teacher's group", True)
QUALITY = Quantity("quality", True, scale=1, decimals=3)
WORTH = Quantity("score x IoU", True, scale=1, decimals=3)
CALIBRATION_ERROR = Quantity("calibration error", False)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison.

    Attributes:
        quantity: number that was compared.
        word: verdict on ``other`` compared with the baseline.
        about: what the verdict holds for.
        baseline: value of the baseline, the mean over its seeds.
        other: value of the other side, the mean over its seeds.
        difference: ``other`` minus baseline; for ``this method`` the mean over pairs of one seed.
        low: lower end of the interval of the difference.
        high: upper end.
        images: number of images that were resampled or evaluated.
        seeds: numbers of runs of the baseline and of the other side; for ``this method`` the number of pairs, twice.
        level: level of the interval.
    """

    quantity: Quantity
    word: Word
    about: About
    baseline: float
    other: float
    difference: float
    low: float
    high: float
    images: int
    seeds: tuple[int, int]
    level: float = LEVEL

    def sentence(self) -> str:
        """Returns the verdict as a sentence."""
        form = f"+.{self.quantity.decimals}f"
        numbers = [format(self.quantity.scale * value, form) for value in (self.difference, self.low, self.high)]
        count, others = self.seeds[1], self.seeds[0]
        runs = f"{count} pairs of runs" if self.about == "this method" else f"{count} run{'s' * (count > 1)} against {others}"
        return (
            f"{self.quantity.name}: {self.word} ({numbers[0]}, {100 * self.level:.0f} % interval {numbers[1]} to {numbers[2]}; "
            f"{self.images:,} images, {runs}). The verdict is about {self.about}."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns ``quantity`` by name, ``verdict``, ``about``, ``baseline``, ``other``, ``difference``, ``low``, ``high`` (as stored,
        None for NaN), ``images``, ``seeds``, ``sentence``.
        """
        numbers = {name: getattr(self, name) for name in ("baseline", "other", "difference", "low", "high")}
        numbers = {name: None if np.isnan(value) else value for name, value in numbers.items()}
        return {
            "quantity": self.quantity.name,
            "verdict": self.word,
            "about": self.about,
            **numbers,
            "images": self.images,
            "seeds": list(self.seeds),
            "sentence": self.sentence(),
        }

    @classmethod
    def from_json(cls, quantity: Quantity, values: Mapping[str, Any]) -> "Verdict":
        """Returns the verdict that ``to_json`` made these values of; ``quantity`` is the number that they name."""
        numbers = {name: np.nan if values[name] is None else values[name] for name in ("baseline", "other", "difference", "low", "high")}
        first, second = values["seeds"]
        return cls(quantity, values["verdict"], values["about"], **numbers, images=values["images"], seeds=(first, second))


def judge(quantity: Quantity, baseline: Side[np.ndarray], other: Side[np.ndarray], images: int) -> Verdict:
    """Returns the verdict on a number that every run gives for all images and then for every resample, the same for all runs.

    With five or more pairs of runs of the same seed the verdict is about the method: the interval is Student's for the mean of their
    differences on all images. With fewer it is the percentile interval of the difference of the means over seeds.

    Args:
        quantity: number that the values are of.
        baseline: values ``[S + 1]`` by seed.
        other: values ``[S + 1]`` of the other side, by seed.
        images: number of images that were resampled.
    """
    pairs = sorted(set(baseline) & set(other))
    if len(pairs) >= LEAST_SEEDS:
        differences = np.array([other[seed][0] - baseline[seed][0] for seed in pairs])
        mean = float(differences.mean())
        half = float(stats.t.ppf(0.5 + LEVEL / 2, len(pairs) - 1) * differences.std(ddof=1) / np.sqrt(len(pairs)))
        before, after = (float(np.mean([side[seed][0] for seed in pairs])) for side in (baseline, other))
        word = _word(quantity, mean - half, mean + half)
        return Verdict(quantity, word, "this method", before, after, mean, mean - half, mean + half, images, (len(pairs), len(pairs)))
    first, second = (np.mean(list(side.values()), axis=0) for side in (baseline, other))
    found = interval(second - first, images)
    return Verdict(
        quantity,
        _word(quantity, found.low, found.high),
        "these checkpoints",
        float(first[0]),
        float(second[0]),
        found.value,
        found.low,
        found.high,
        images,
        (len(baseline), len(other)),
    )


def compare_ap(
    ground_truth: Mapping[str, Any],
    baseline: Side[Detections],
    other: Side[Detections],
    samples: int = SAMPLES,
    seed: int = 0,
    max_detections: int = 100,
    iou: Overlap = "box",
) -> Verdict:
    """Returns the verdict on AP, of boxes or of masks.

    Args:
        ground_truth: COCO dict.
        baseline: detections by seed.
        other: detections of the other side, by seed.
        samples: number of resamples.
        seed: seed of the resamples.
        max_detections: number of detections kept per image and class.
        iou: which of them; masks need ground truth with masks.
    """
    images = len(ground_truth["images"])
    counts = with_all(draws(images, samples, seed))
    first, second = both_sides(baseline, other, lambda found: weighted_ap(ground_truth, found, counts, max_detections, iou))
    return judge(AP if iou == "box" else MASK_AP, first, second, images)


def compare_errors(baseline: Side[Errors], other: Side[Errors], samples: int = SAMPLES, seed: int = 0) -> pd.DataFrame:
    """Returns verdicts on the cost of each type of error.

    Args:
        baseline: results of ``tide.find_errors`` by seed, all on one split.
        other: results of the other side, by seed.
        samples: number of resamples.
        seed: seed of the resamples.

    Returns:
        One row per type: ``error``, ``special``, ``baseline_count``, ``other_count`` (mean over seeds), ``baseline``, ``other``,
        ``difference``, ``low``, ``high`` (of its cost in AP50), ``verdict``, ``about``, ``sentence``.
    """
    images = len(next(iter(baseline.values())).images)
    counts = with_all(draws(images, samples, seed))
    costs = both_sides(baseline, other, lambda errors: error_costs(errors, counts))
    tallies = both_sides(baseline, other, error_counts)
    rows: list[dict[str, Any]] = []
    for error in (*MAIN, *SPECIAL):
        first, second = ({seed: value[error] for seed, value in side.items()} for side in costs)
        verdict = judge(Quantity(lost_to(error), False), first, second, images)
        means = [float(np.mean([tally[error] for tally in side.values()])) for side in tallies]
        facts = verdict.to_json()
        rows.append(
            {
                "error": error,
                "special": error in SPECIAL,
                "baseline_count": means[0],
                "other_count": means[1],
                **{name: facts[name] for name in ("baseline", "other", "difference", "low", "high", "verdict", "about", "sentence")},
            }
        )
    return pd.DataFrame(rows)


def lost_to(error: Error) -> str:
    """Returns the name of the number that the verdict on a type of error is about."""
    return f"AP50 lost to {LABELS[error]}"


def compare_totals(
    quantity: Quantity,
    baseline: Side[pd.DataFrame],
    other: Side[pd.DataFrame],
    images: Sequence[int],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Verdict:
    """Returns the verdict on a ratio of totals over images: churn, instability, agreement, mean quality or gain, a share of errors.

    Args:
        quantity: number that is compared.
        baseline: by seed, one or several rows per image: ``image_id``, ``total``, ``n``; the number is the sum of ``total`` over the sum
            of ``n``. Images without a row count nothing.
        other: rows of the other side, by seed.
        images: ids of all images of the split.
        samples: number of resamples.
        seed: seed of the resamples.
    """
    ids = np.sort(np.asarray(images))
    counts = with_all(draws(len(ids), samples, seed))
    first, second = both_sides(baseline, other, lambda totals: ratio(totals, ids, counts))
    return judge(quantity, first, second, len(ids))


def ratio(totals: pd.DataFrame, images: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns ``[S]``, the sum of ``total`` over that of ``n`` when image i of ``images``, ascending, counts ``counts[s, i]`` times.

    It is NaN for 0/0.
    """
    place = np.searchsorted(images, totals["image_id"])
    above, below = (counts @ np.bincount(place, totals[name].to_numpy(float), len(images)) for name in ("total", "n"))
    return np.divide(above, below, out=np.full(len(counts), np.nan), where=below != 0)


def changed_targets(baseline: Errors, other: Errors) -> pd.DataFrame:
    """Returns the targets whose state differs between two runs: what one lost or found that the other did not.

    Returns:
        ``image_id``, ``target``, ``category_id``, ``baseline``, ``other`` (``found``, ``missed``, ``classification``, ``localisation``),
        ``change``: ``lost``, ``gained``, ``other error``; in order of image and target.
    """
    names = ["image_id", "target", "category_id"]
    both = baseline.targets[[*names, "error"]].merge(other.targets[[*names, "error"]], on=names, suffixes=("_baseline", "_other"))
    both = both.rename(columns={"error_baseline": "baseline", "error_other": "other"})
    both = both[both["baseline"] != both["other"]]
    both["change"] = np.select([both["baseline"] == "found", both["other"] == "found"], ["lost", "gained"], "other error")
    return both.sort_values(["image_id", "target"], ignore_index=True)


def _word(quantity: Quantity, low: float, high: float) -> Word:
    if low > 0:
        return "better" if quantity.higher_is_better else "worse"
    if high < 0:
        return "worse" if quantity.higher_is_better else "better"
    return "not distinguishable"


def both_sides(baseline: Side[_T], other: Side[_T], function: Callable[[_T], Any]) -> tuple[dict[int, Any], dict[int, Any]]:
    """Calls ``function`` on every run of both sides."""
    first, second = ({seed: function(value) for seed, value in side.items()} for side in (baseline, other))
    return first, second

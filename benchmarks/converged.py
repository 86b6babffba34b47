"""Trains a student with and without its teacher for schedules of many lengths: does distillation still help one that has done learning?

The command is ``python -m benchmarks.evidence converged``. Every length is a whole schedule of its own, from warm-up to the end of the
cosine. All students read the same eight augmentations of each image, those that distil with the teacher's outputs from the cache. Finished
runs are reused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from benchmarks.harness import machine
from workbench.analysis.report.summary import TEACHER
from workbench.recipe.loading import load_recipe, recipe_path
from workbench.store.groups import DISTILLED, UNDISTILLED
from workbench.store.run import Run
from workbench.tasks.compare import Row, compare_rows, execute, plan
from workbench.views.style import Chart, interval, laid_out, quiet, run_style

RECIPE = "shapes_cached"
ARMS = (UNDISTILLED, DISTILLED, "uniform")
LENGTHS: Mapping[int, int] = {600: 3, 1200: 3, 2400: 3, 4800: 5, 9600: 3}  # steps -> number of seeds
EVALUATIONS = 4


def rows(steps: int) -> list[Row]:
    """Returns the runs of one length."""
    return plan(recipe_path(RECIPE), ARMS, tuple(range(LENGTHS[steps])), (), f"converged-{steps}-")


def overrides(steps: int) -> list[str]:
    """Returns the settings that make a schedule of this length."""
    return [f"train.steps={steps}", f"train.evaluate_every={steps // EVALUATIONS}", f"train.checkpoint_every={steps // EVALUATIONS}"]


def train(jobs: int, watch: Callable[[list[Run]], None] | None = None) -> None:
    """Trains what is missing, the short schedules first."""
    for steps in LENGTHS:
        execute(rows(steps), jobs, overrides(steps), watch=watch)


def record() -> dict[str, Any]:
    """Returns the numbers of all finished runs and the Markdown that docs/results.md shows."""
    frames = [compare_rows(rows(steps)) for steps in LENGTHS]
    frame = pd.concat([part[part["arm"] != TEACHER] for part in frames], ignore_index=True)
    kept = frame[["arm", "seed", "steps", "ap", "compute_seconds", "run", "commit"]]
    return {
        "table": "converged", "command": "python -m benchmarks.evidence converged", "recipe_hashes": recipe_hashes(),
        "seeds": sorted({int(seed) for seed in kept["seed"]}), "commits": sorted(set(kept["commit"])), "machine": machine(),
        "rows": kept.to_dict("records"), "markdown": f"{length_table(kept)}\n\n{verdict(kept)}",
    }  # fmt: skip


def recipe_hashes() -> dict[str, str]:
    """Returns the hash of each arm's recipe at each length."""
    return {f"{arm} {steps}": load_recipe(recipe_path(RECIPE), overrides(steps), arm).hash() for steps in LENGTHS for arm in ARMS}


def length_table(frame: pd.DataFrame) -> str:
    """Returns AP by length and arm as Markdown.

    Args:
        frame: ``arm``, ``seed``, ``steps``, ``ap`` (0..1) and ``compute_seconds`` of each run.
    """
    head = ["steps", "seeds", *(f"{arm} AP" for arm in ARMS), *(f"gain of {arm}" for arm in ARMS[1:]), *(f"{arm} CPU s" for arm in ARMS)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for steps, group in frame.groupby("steps"):
        by_arm = {arm: group[group["arm"] == arm].set_index("seed") for arm in ARMS}
        aps = [_ranged(100 * part["ap"].astype(float)) for part in by_arm.values()]
        gains = [_gain(by_arm[arm]["ap"], by_arm[UNDISTILLED]["ap"]) for arm in ARMS[1:]]
        seconds = [f"{part['compute_seconds'].mean():.0f}" for part in by_arm.values()]
        lines.append(f"| {' | '.join([str(steps), str(group['seed'].nunique()), *aps, *gains, *seconds])} |")
    return "\n".join(lines)


def _ranged(aps: pd.Series) -> str:
    return f"{aps.mean():.1f} ({aps.min():.1f} to {aps.max():.1f})" if len(aps) else "-"


def _gain(aps: pd.Series, others: pd.Series) -> str:
    paired = (100 * (aps - others)).dropna()
    return f"{paired.mean():+.1f} ({', '.join(f'{value:+.1f}' for value in paired)})" if len(paired) else "-"


def verdict(frame: pd.DataFrame) -> str:
    """Returns the sentence that says up to which compute distillation is ahead."""
    own, other = (_curve(frame, arm) for arm in (DISTILLED, UNDISTILLED))
    place = crossing(own, other)
    from_, to = max(own[0][0], other[0][0]), min(own[-1][0], other[-1][0])
    if place is None:
        ahead = "ahead of" if _at(own, to) >= _at(other, to) else "behind"
        return (
            f"At equal compute the distilled student is {ahead} the undistilled one throughout, from {from_:.0f} to {to:.0f} CPU seconds."
        )
    seconds, ap = place
    return f"At equal compute the two curves of mean AP cross at {seconds:.0f} CPU seconds, where both have {100 * ap:.1f} AP."


def _curve(frame: pd.DataFrame, arm: str) -> list[tuple[float, float]]:
    """Returns mean compute in seconds and mean AP at each length, by compute."""
    own = frame[frame["arm"] == arm].astype({"ap": float, "compute_seconds": float})
    return sorted(own.groupby("steps")[["compute_seconds", "ap"]].mean().itertuples(index=False, name=None))


def crossing(own: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Returns where two curves cross last: compute and AP, between the points on lines over the logarithm of compute.

    Args:
        own: compute (s) and AP, by compute.
        other: the same of the other curve.

    Returns:
        None if one curve is above the other over all of the compute that both have.
    """
    low, high = max(own[0][0], other[0][0]), min(own[-1][0], other[-1][0])
    places = sorted({low, high, *(x for x, _ in (*own, *other) if low <= x <= high)})
    apart = [(x, _at(own, x) - _at(other, x)) for x in places]
    found = [(a, b) for a, b in pairwise(apart) if a[1] * b[1] < 0 or (a[1] and not b[1])]
    if not found:
        return None
    (x1, d1), (x2, d2) = found[-1]
    x = float(np.exp(np.log(x1) + (np.log(x2) - np.log(x1)) * d1 / (d1 - d2)))
    return x, _at(own, x)


def _at(curve: Sequence[tuple[float, float]], x: float) -> float:
    return float(np.interp(np.log(x), [np.log(place) for place, _ in curve], [ap for _, ap in curve]))


def figure(frame: pd.DataFrame) -> go.Figure:
    """Draws mean AP over compute for each arm, with the range of its seeds."""
    chart = Chart()
    for index, (arm, points) in enumerate(_points(frame)):
        colour, dash = run_style(index)
        ranges = interval([points[name].to_numpy(float) for name in ("mean", "low", "high")], colour)
        chart.add_scatter(x=points["x"], y=points["mean"], name=arm, mode="lines+markers", line={"color": colour, "dash": dash, "width": 2},
                          marker={"color": colour, "size": 7}, error_y=ranges)  # fmt: skip
    chart.update_xaxes(title_text="CPU seconds of the training", type="log")
    chart.update_yaxes(title_text="test AP")
    return laid_out(quiet(chart, 420), margin={"l": 56, "r": 12, "t": 40, "b": 48})


def _points(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for arm in ARMS:
        own = frame[frame["arm"] == arm].astype({"ap": float, "compute_seconds": float})
        by_length = own.groupby("steps")
        aps = 100 * by_length["ap"].agg(["mean", "min", "max"])
        yield arm, pd.DataFrame({"x": by_length["compute_seconds"].mean(), "mean": aps["mean"], "low": aps["min"], "high": aps["max"]})

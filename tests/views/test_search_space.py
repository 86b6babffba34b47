"""The figure of the space of a search: what is drawn is what the table holds, and a box keeps what it covers."""

import numpy as np
import pandas as pd
import pytest

from tests.contrast import DARK, LEAST_MARK, LIGHT, contrast
from workbench.search import shown
from workbench.views import search_space as views
from workbench.views.search_space import Kept, SpaceAxes
from workbench.views.style import plain

HOSTILE = "<img src=x onerror=alert(1)> %{x} $y$"
TABLE = pd.DataFrame({
    "number": range(6), "ap": [10.0, 12.0, 14.0, 16.0, 18.0, 20.0], "t3": ["no", "norm_C", "no", "batch", "norm_C", "norm_C"],
    "distance": ["l1", "l2", "l1", "l2", "l1", "l2"],
})  # fmt: skip
POSITIONS = ["t3", "distance"]


def lines(figure, width: int = 1) -> list[tuple[str, np.ndarray]]:
    """Colour and heights of each line that is drawn."""
    found = [(trace.line.color, np.asarray(trace.y, float).reshape(-1, len(np.unique(np.asarray(trace.x)[np.isfinite(trace.x)])) + 1))
             for trace in figure.data if trace.mode == "lines" and trace.line.width == width]  # fmt: skip
    return [(colour, heights[:-1]) for colour, own in found for heights in own]


def test_a_line_passes_the_places_of_its_choices_and_ends_at_its_ap():
    axes, drawn = SpaceAxes(TABLE, POSITIONS), lines(views.space_figure(TABLE, POSITIONS))
    assert len(drawn) == len(TABLE)
    low, high = axes.ends
    for (_, heights), row in zip(sorted(drawn, key=lambda line: line[1][-1]), TABLE.itertuples(), strict=True):
        nearest = [axes.choices[name][int(height * len(axes.choices[name]))] for name, height in zip(POSITIONS, heights, strict=False)]
        assert nearest == [row.t3, row.distance]
        assert low + heights[-1] * (high - low) == pytest.approx(row.ap, abs=1e-2)


def test_the_best_choice_is_at_the_top_and_shares_keep_their_own_order():
    means = TABLE.groupby("t3")["ap"].mean()
    assert SpaceAxes(TABLE, POSITIONS).choices["t3"] == sorted(means.index, key=lambda name: means[name])
    shares = pd.DataFrame({"number": [0, 1, 2], "ap": [3.0, 2.0, 1.0], "logits": [0.0, 3.0, 10.0]})
    assert SpaceAxes(shares, ["logits"]).choices["logits"] == [0.0, 3.0, 10.0]


def test_lines_that_are_not_kept_are_grey_and_the_others_have_the_colour_of_their_ap():
    kept = Kept({"t3": ["norm_C"]})
    figure = views.space_figure(TABLE, POSITIONS, kept)
    axes = SpaceAxes(TABLE, POSITIONS)
    scale = {trace.y[0]: trace.line.color for trace in figure.data if trace.mode == "lines" and trace.line.width == 7}
    grey = {colour for colour, _ in lines(figure)} - set(scale.values())
    assert len(grey) == 1
    for colour, heights in lines(figure):
        ap = axes.ends[0] + heights[-1] * (axes.ends[1] - axes.ends[0])
        number = int(np.abs(TABLE["ap"] - ap).argmin())
        band = max(start for start in scale if start <= heights[-1])
        assert colour == (scale[band] if TABLE["t3"][number] == "norm_C" else next(iter(grey)))


@pytest.mark.parametrize(("kept", "numbers"), [
    (Kept(), [0, 1, 2, 3, 4, 5]), (Kept({"t3": ["no", "batch"]}), [0, 2, 3]), (Kept({"t3": ["norm_C"], "distance": ["l2"]}), [1, 5]),
    (Kept(low=14.0), [2, 3, 4, 5]), (Kept(high=14.0), [0, 1, 2]), (Kept({"distance": ["l1"]}, 12.0, 15.0), [2]),
])  # fmt: skip
def test_a_trial_is_kept_if_it_passes_everywhere(kept: Kept, numbers: list[int]):
    assert kept.of(TABLE)["number"].tolist() == numbers


def test_a_box_keeps_the_choices_that_it_touches_on_the_axes_that_it_crosses():
    axes = SpaceAxes(TABLE, POSITIONS)
    middles = axes.middle("t3")
    best = axes.choices["t3"][-1]
    box = {"x": [0.2, -0.2], "y": [1.0, middles[best] - 0.02]}  # drawn from the right to the left, and from the top down
    assert axes.boxed([box], Kept()) == Kept({"t3": [best]})
    before = Kept({"distance": ["l2"]}, low=12.0)
    assert axes.boxed([box], before) == Kept({"t3": [best], "distance": ["l2"]}, low=12.0)
    assert axes.boxed([{"x": [0.3, 0.7], "y": [0, 1]}], before) == before  # between two axes
    assert axes.boxed([{"x": [-0.5, 1.5], "y": [0, 1]}], Kept()).choices == {"t3": axes.choices["t3"], "distance": axes.choices["distance"]}


def test_a_box_over_the_axis_of_ap_sets_its_limits():
    axes = SpaceAxes(TABLE, POSITIONS)
    found = axes.boxed([{"x": [1.9, 2.1], "y": [axes.height(13.0), axes.height(17.0)]}], Kept())
    assert (found.low, found.high) == (pytest.approx(13.0), pytest.approx(17.0))
    open_end = axes.boxed([{"x": [1.9, 2.1], "y": [axes.height(13.0), 1.02]}], Kept())
    assert open_end.low == pytest.approx(13.0) and open_end.high is None


def test_of_very_many_lines_the_best_and_an_even_sample_are_drawn():
    table = pd.DataFrame({"number": range(3000), "ap": np.random.default_rng(0).permutation(3000) / 100, "t3": "no"})
    kept = views.drawn_of(table)
    assert len(kept) == kept["number"].nunique() == len(lines(views.space_figure(table, ["t3"]))) == 800
    assert sorted(kept["ap"])[-160:] == sorted(table["ap"])[-160:]
    others = np.sort(kept["ap"])[:-160]
    assert others[0] == 0 and np.diff(others).max() < 0.06
    assert len(views.drawn_of(table.head(800))) == 800
    assert len(lines(views.space_figure(table, ["t3"], Kept(low=29.0)))) == 100 + 200  # of those left out fewer are drawn


def test_names_are_drawn_as_text():
    table = pd.DataFrame({"number": [0, 1], "ap": [1.0, 2.0], HOSTILE: [HOSTILE, "no"]})
    content = str(views.space_figure(table, [HOSTILE]).to_dict())
    assert HOSTILE not in content and plain(HOSTILE) in content


def test_without_a_trained_trial_the_figure_says_so():
    assert "No trial has been trained" in views.space_figure(*shown.space_table([])).layout.annotations[0].text


def test_every_colour_of_a_line_stands_out_from_the_ground_of_both_themes_and_is_drawn_without_opacity():
    faint = {
        (hue, ground): contrast(hue, ground) for hue in views.COLOURS for ground in (LIGHT, DARK) if contrast(hue, ground) < LEAST_MARK
    }
    assert faint == {} and len(set(views.COLOURS)) == len(views.COLOURS)
    figure = views.space_figure(TABLE, POSITIONS)
    assert {colour for colour, _ in lines(figure)} <= set(views.COLOURS)
    assert all(trace.opacity in (None, 1) for trace in figure.data)
